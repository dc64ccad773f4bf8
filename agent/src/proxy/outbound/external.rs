//! Hosts of ServiceEntries: which of them a captured connection means, and where it goes where no endpoints are listed.

use std::net::SocketAddr;
use std::sync::Arc;

use baremesh_model::identity::Identity;
use baremesh_model::name::Label;
use baremesh_model::service::Protocol;
use baremesh_model::virtual_service::HostPattern;
use tokio::net::TcpStream;

use super::{Call, stream_route};
use crate::proxy::error::ProxyError;
use crate::proxy::{Worker, sniff};
use crate::snapshot::external::{Way, ad_hoc};
use crate::snapshot::{Cluster, Route, ServiceEntry, Snapshot};

/// The route of a connection once it is known which host the caller means: several may share an address, some have none,
/// and none is for everybody.
pub(super) async fn settled(
    call: &Call<'_>,
    client: &TcpStream,
    (route, destination): (Route, SocketAddr),
) -> Result<Route, ProxyError> {
    let from = call.caller.namespace();
    let hosts = &call.snapshot.external;
    let found = match &route {
        Route::Service(service, _) if service.external.is_some() => {
            let all: Vec<_> = hosts.at(destination, from).collect();
            if all.is_empty() {
                return Err(ProxyError::NoSuchService(destination));
            }
            among(client, &all, destination.port()).await.or(all.first().copied())
        }
        Route::Passthrough => {
            let all: Vec<_> = hosts.at(destination, from).collect();
            match among(client, &all, destination.port()).await.or(all.first().copied()) {
                Some(found) => Some(found),
                None => by_name_alone(call.snapshot, client, (destination.port(), from)).await,
            }
        }
        // It is not there for this caller.
        Route::Endpoint(service, ..) if service.external.is_some() && !service.is_for(from) => {
            return Ok(Route::Passthrough);
        }
        _ => None,
    };
    let index = found.and_then(|host| Some((host, host.port_index(destination.port())?)));
    Ok(index.map_or(route, |(host, index)| Route::Service(Arc::clone(host), index)))
}

/// The one of several hosts that the caller's first bytes name.
async fn among<'a>(
    client: &TcpStream,
    hosts: &[&'a Arc<ServiceEntry>],
    port: u16,
) -> Option<&'a Arc<ServiceEntry>> {
    match hosts {
        [] => None,
        [only] => Some(*only),
        [first, ..] => {
            let protocol = first.port_index(port).map(|index| first.ports[index].protocol)?;
            let name = named_by(client, protocol, port).await?;
            best(hosts.iter().copied(), &name)
        }
    }
}

/// The host without an address that the caller's first bytes name, or whose port carries bytes that name nothing.
async fn by_name_alone<'a>(
    snapshot: &'a Snapshot,
    client: &TcpStream,
    (port, from): (u16, &'a Label),
) -> Option<&'a Arc<ServiceEntry>> {
    let hosts: Vec<_> = snapshot.external.on_port(port, from).collect();
    let speaks = |host: &&Arc<ServiceEntry>| host.port_index(port).map(|index| host.ports[index].protocol);
    let is_named = |host: &&&Arc<ServiceEntry>| speaks(host) != Some(Protocol::Tcp);
    if let Some(first) = hosts.iter().find(is_named)
        && let Some(name) = named_by(client, speaks(first)?, port).await
        && let Some(found) = best(hosts.iter().filter(is_named).copied(), &name)
    {
        return Some(found);
    }
    hosts.iter().find(|host| !is_named(host)).copied()
}

/// The name that a caller's first bytes ask for.
async fn named_by(client: &TcpStream, protocol: Protocol, port: u16) -> Option<String> {
    match protocol {
        Protocol::Tcp => None,
        Protocol::Tls | Protocol::Https => sniff::server_name(client).await,
        Protocol::Http | Protocol::Http2 | Protocol::Grpc => sniff::host(client).await,
        Protocol::Auto => match sniff::is_http(client, port).await {
            true => sniff::host(client).await,
            false => sniff::server_name(client).await,
        },
    }
}

/// The exact host of that name, else the longest wildcard.
fn best<'a>(hosts: impl Iterator<Item = &'a Arc<ServiceEntry>>, name: &str) -> Option<&'a Arc<ServiceEntry>> {
    let meant = hosts.filter(|host| match host.host.strip_prefix('*') {
        Some(suffix) => name.len() > suffix.len() && name.ends_with(suffix),
        None => *host.host == *name,
    });
    meant.max_by_key(|host| (!host.host.starts_with('*'), host.host.len()))
}

/// The endpoints of a connection of bytes where the host lists none; nothing where it does.
pub(super) async fn endpoints(
    call: &Call<'_>,
    client: &TcpStream,
    (target, cluster): (&stream_route::Target, &Arc<Cluster>),
    destination: SocketAddr,
) -> Result<Option<Arc<Cluster>>, ProxyError> {
    let service = &*target.service;
    match service.way(target.port) {
        Way::Endpoints => Ok(None),
        Way::OriginalDestination => {
            call.worker.where_it_was_going(call.snapshot, (service, cluster), Some(destination)).map(Some)
        }
        Way::AskedName(pattern) => {
            let name = sniff::server_name(client).await;
            let at = (service, cluster, target.port);
            let asked = (&call.caller, pattern, name.as_deref());
            call.worker.at_asked_name(call.snapshot, at, asked).await.map(Some)
        }
    }
}

impl Worker {
    /// The cluster towards the address that a caller dialled itself.
    pub(in crate::proxy) fn where_it_was_going(
        &self,
        snapshot: &Snapshot,
        (service, cluster): (&ServiceEntry, &Arc<Cluster>),
        destination: Option<SocketAddr>,
    ) -> Result<Arc<Cluster>, ProxyError> {
        let ranges = &snapshot.mesh.config.virtual_ranges;
        let real = destination.filter(|address| !ranges.contains(address.ip()));
        let address = real.ok_or_else(|| ProxyError::NoEndpoint(service.key.clone()))?;
        Ok(Arc::new(cluster.toward(&service.host, vec![ad_hoc(address, &service.host)])))
    }

    /// The cluster towards the addresses of the name that a caller asks for, if it is one of those that are meant. Waits
    /// for DNS where the name was not asked for lately.
    pub(in crate::proxy) async fn at_asked_name(
        &self,
        snapshot: &Snapshot,
        (service, cluster, port): (&ServiceEntry, &Arc<Cluster>, usize),
        (caller, pattern, name): (&Identity, &HostPattern, Option<&str>),
    ) -> Result<Arc<Cluster>, ProxyError> {
        let name = name.map(|name| name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase());
        let Some(name) = name.filter(|name| pattern.matches_text(name)) else {
            return Err(ProxyError::NotNamed(service.key.clone()));
        };
        let patience = cluster.limits().connect_timeout.unwrap_or(self.shared.limits.connect_timeout);
        let ranges = &snapshot.mesh.config.virtual_ranges;
        let addresses = Box::pin(self.shared.asked_names.addresses((caller, &name), ranges, patience)).await;
        let unresolved = |source| ProxyError::Unresolved { name: name.clone(), source };
        let addresses = addresses.map_err(unresolved)?;
        let (host, number) = (name.as_str().into(), service.targets[port]);
        let endpoints = addresses.iter().map(|address| ad_hoc(SocketAddr::new(*address, number), &host));
        Ok(Arc::new(cluster.toward(&host, endpoints.collect())))
    }
}
