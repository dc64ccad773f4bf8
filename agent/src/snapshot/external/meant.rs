//! What a captured connection means to its caller, where hosts of ServiceEntries may be at the address: as far as that is
//! known before its first bytes are looked at.

use std::net::SocketAddr;
use std::sync::Arc;

use super::super::{Route, ServiceEntry, Snapshot};
use super::Way;
use crate::proxy::error::ProxyError;

/// What a connection means.
#[derive(Debug)]
pub enum Meant<'a> {
    /// What its address says.
    Routed(Route),
    /// The one of these hosts, of which there is at least one, that the first bytes name, else the first.
    Hosts(Vec<&'a Arc<ServiceEntry>>),
    /// The one of these hosts, which have no addresses, that the first bytes name, if any; else it goes out of the mesh.
    Unaddressed(Vec<&'a Arc<ServiceEntry>>),
    /// A host that the caller does not see, at the virtual address that it was given: DNS does not know who asks.
    Unseen(Arc<ServiceEntry>),
}

impl Snapshot {
    /// What a connection of a caller of this host, a registration by its index or the host, to `destination` means.
    pub fn meant(
        &self,
        caller: Option<usize>,
        (route, destination): (Route, SocketAddr),
    ) -> Result<Meant<'_>, ProxyError> {
        let (from, port) = (self.namespace_of(caller), destination.port());
        let calls = |host: &&Arc<ServiceEntry>| self.sidecar_against(caller, &host.key, port).is_none();
        // What the Sidecar forbids is there to be refused where there is nothing else.
        let callable = |mut all: Vec<_>| {
            if all.iter().any(calls) {
                all.retain(calls);
            }
            all
        };
        let at = || callable(self.external.at(destination, from).collect());
        match &route {
            Route::Service(service, _) if service.external.is_some() => {
                let takes = |host: &&Arc<ServiceEntry>| {
                    host.port_index(port).is_some_and(|index| *host.way(index) != Way::OriginalDestination)
                };
                let namesake = self.external.named(&service.host, from).filter(takes);
                let own = namesake.filter(|host| host.key.namespace == *from && calls(host));
                if let Some(own) = own {
                    return Ok(Meant::Hosts(vec![own]));
                }
                match (at(), namesake) {
                    (all, _) if !all.is_empty() => Ok(Meant::Hosts(all)),
                    (_, Some(namesake)) => Ok(Meant::Hosts(vec![namesake])),
                    (_, None) if service.host.starts_with('*') => Err(ProxyError::NoSuchService(destination)),
                    (_, None) => Ok(Meant::Unseen(Arc::clone(service))),
                }
            }
            // An endpoint of a host that is not there for this caller is an address like others.
            Route::Endpoint(service, ..) if service.is_for(from) => Ok(Meant::Routed(route)),
            Route::Endpoint(..) | Route::Passthrough => {
                let all = at();
                if !all.is_empty() {
                    return Ok(Meant::Hosts(all));
                }
                Ok(Meant::Unaddressed(callable(self.external.on_port(port, from).collect())))
            }
            Route::Service(..) | Route::Unheld(..) | Route::Local(_) => Ok(Meant::Routed(route)),
        }
    }
}
