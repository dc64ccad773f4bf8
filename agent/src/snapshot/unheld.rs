//! Services whose endpoints this host has not asked the control server for: it knows where those are, so that a connection to
//! the real address of one is captured, and nothing else of them.

use std::collections::{BTreeSet, HashMap};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use baremesh_model::endpoint_addresses::EndpointAddress;
use baremesh_model::mesh::Mesh;
use baremesh_model::name::Key;
use baremesh_model::sidecar::{EgressName, EgressNamespace, Scope};
use baremesh_model::workload::Tunnel;

use super::ways::Ways;
use super::{LocalEndpoint, ServiceEntry, Snapshot, Transport};
use crate::proxy::error::ProxyError;
use crate::registration::Serves;

impl ServiceEntry {
    /// Whether what is known of its endpoints is enough to call it. One that runs on this host too is called here while the
    /// others were not asked for.
    pub fn is_held(&self) -> bool {
        let mut endpoints = self.ports.iter().flat_map(|port| &port.endpoints);
        self.elsewhere.is_none()
            || endpoints.any(|endpoint| matches!(endpoint.transport, Transport::Local(_)))
    }

    /// Notes that somebody calls it, and says so where its endpoints have to be asked for first, which may take `within`.
    pub fn call(&self, within: Duration) -> Result<(), ProxyError> {
        // Read far more often than written: no worker takes the line from the others at each call.
        if !self.called.load(Ordering::Relaxed) {
            self.called.store(true, Ordering::Relaxed);
        }
        if self.is_held() { Ok(()) } else { Err(self.unknown(within)) }
    }

    /// That its endpoints have to be asked for first.
    pub fn unknown(&self, within: Duration) -> ProxyError {
        ProxyError::EndpointsUnknown { service: self.key.clone(), within }
    }

    /// Whether somebody has called it since this was last asked.
    pub fn take_called(&self) -> bool {
        self.called.swap(false, Ordering::Relaxed)
    }

    /// Its endpoints that were not asked for, each once a port.
    pub fn preferred_elsewhere(&self) -> impl Iterator<Item = EndpointAddress<'_>> {
        let elsewhere = self.elsewhere.iter().flat_map(|elsewhere| elsewhere.all());
        elsewhere.filter(|one| one.preferred)
    }
}

impl Snapshot {
    /// Whether nothing of a service's endpoints has to be asked for; there may be no such service.
    pub fn holds(&self, service: &Key) -> bool {
        self.services.get(service).is_none_or(|service| service.elsewhere.is_none())
    }

    /// The agents of this host's network that serve endpoints of services that were not asked for, with the services.
    pub fn agents_elsewhere(&self) -> impl Iterator<Item = (SocketAddr, &Arc<ServiceEntry>)> {
        let port = self.basis.hbone_port;
        self.unheld.iter().map(move |(address, (service, _))| (SocketAddr::new(address.ip(), port), service))
    }

    /// The services whose endpoints are to be asked for although nobody has called them: those of this host, and those that
    /// Sidecars of its services name. Nothing where it needs all.
    pub fn declared_calls(&self) -> Option<BTreeSet<Key>> {
        let leads_out = self.registrations.iter().any(|local| local.serves == Serves::Gateway);
        if self.host.is_gateway() || leads_out {
            return None;
        }
        let mut declared: BTreeSet<Key> = self.registrations.iter().map(|local| local.key.clone()).collect();
        let (sidecars, root) = (&self.mesh.sidecars, &self.mesh.config.root_namespace);
        if sidecars.is_empty() {
            return Some(declared);
        }
        for (local, source) in self.registrations.iter().zip(&self.sources) {
            let own = &local.key.namespace;
            let Some((_, egress)) = Scope::of(sidecars, (own, &source.labels), root).egress else { continue };
            let hosts = egress.iter().flat_map(|entry| &entry.hosts);
            let named = hosts.filter(|host| {
                host.namespace != EgressNamespace::Any || !matches!(host.name, EgressName::Any)
            });
            for host in named {
                let services = self.mesh.services.keys();
                declared
                    .extend(services.filter(|key| host.matches(key, own, &self.mesh.config.domain)).cloned());
            }
        }
        Some(declared)
    }
}

/// Endpoints that agents of this host's network serve, of services that were not asked for.
pub(super) fn dialled_directly(
    mesh: &Mesh,
    services: &HashMap<Key, Arc<ServiceEntry>>,
    (advertised, ways): (&HashMap<SocketAddr, Arc<LocalEndpoint>>, &Ways<'_>),
) -> HashMap<SocketAddr, (Arc<ServiceEntry>, u16)> {
    let mut all = HashMap::new();
    for (key, addresses) in &mesh.unheld {
        let Some(service) = services.get(key) else { continue };
        let agents = addresses.all().filter(|one| {
            one.tunnel == Tunnel::Hbone && ways.is_near(one.network) && !advertised.contains_key(&one.address)
        });
        all.extend(agents.map(|one| (one.address, (Arc::clone(service), one.port))));
    }
    all
}

#[cfg(test)]
mod tests;
