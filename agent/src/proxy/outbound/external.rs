//! Hosts of ServiceEntries: which of them a captured connection means, and where it goes where no endpoints are listed.

use std::net::SocketAddr;
use std::sync::Arc;

use baremesh_model::identity::Identity;
use baremesh_model::service::Protocol;
use baremesh_model::virtual_service::HostPattern;
use tokio::net::TcpStream;

use super::{Call, Upstream, reach, stream_route};
use crate::proxy::error::ProxyError;
use crate::proxy::{Worker, sniff};
use crate::snapshot::endpoint::Origin;
use crate::snapshot::external::{Meant, Way, ad_hoc, best};
use crate::snapshot::{Cluster, Route, ServiceEntry, Snapshot};
use crate::telemetry::Record;

/// Where a connection goes.
pub(super) enum Settled {
    /// By a route.
    Route(Route),
    /// As without a mesh, to a host that the caller does not see and was given a virtual address of.
    Unseen(Arc<ServiceEntry>),
}

/// The route of a connection once it is known which host the caller means: several may share an address, some have none,
/// and none is for everybody.
pub(super) async fn settled(
    call: &Call<'_>,
    client: &TcpStream,
    (route, destination): (Route, SocketAddr),
) -> Result<Settled, ProxyError> {
    let port = destination.port();
    let found = match call.snapshot.meant(call.index, (route, destination))? {
        Meant::Routed(route) => return Ok(Settled::Route(route)),
        Meant::Unseen(host) => return Ok(Settled::Unseen(host)),
        Meant::Hosts(all) => among(client, &all, port).await.or(all.first().copied()),
        Meant::Unaddressed(all) => by_name_alone(&all, client, port).await,
    };
    let index = found.and_then(|host| Some((host, host.port_index(port)?)));
    let route = index.map(|(host, index)| Route::Service(Arc::clone(host), index));
    Ok(Settled::Route(route.unwrap_or(Route::Passthrough)))
}

/// To a host that the caller does not see, as without a mesh: to the addresses of its name. DNS gave the caller a virtual
/// address, for it does not know who asks.
pub(super) async fn unseen(
    call: &Call<'_>,
    (host, destination): (&ServiceEntry, SocketAddr),
    record: &mut Record,
) -> Result<Upstream, ProxyError> {
    reach::let_out(call, destination, record)?;
    let shared = &call.worker.shared;
    let ranges = &call.snapshot.mesh.config.virtual_ranges;
    let asked = (&call.caller, &*host.host);
    let addresses =
        Box::pin(shared.asked_names.addresses(asked, ranges, shared.limits.connect_timeout)).await;
    let unresolved = |source| ProxyError::Unresolved { name: host.host.to_string(), source };
    let addresses = addresses.map_err(unresolved)?;
    let mut last = None;
    for address in addresses.iter().take(shared.limits.max_attempts) {
        let address = SocketAddr::new(*address, destination.port());
        match reach::passed_on(call, (address, Origin::Dns), record).await {
            Ok(upstream) => return Ok(upstream),
            Err(error) => last = Some(error),
        }
    }
    Err(last.unwrap_or_else(|| ProxyError::NoEndpoint(host.key.clone())))
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
    hosts: &[&'a Arc<ServiceEntry>],
    client: &TcpStream,
    port: u16,
) -> Option<&'a Arc<ServiceEntry>> {
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

/// What a connection of bytes asks for in its own TLS.
#[derive(Clone, Copy)]
pub(super) enum Opened<'a> {
    /// Its first bytes tell.
    Socket(&'a TcpStream),
    /// It was looked at already.
    Named(Option<&'a str>),
}

/// The endpoints of a connection of bytes where the host lists none; nothing where it does.
pub(super) async fn endpoints(
    call: &Call<'_>,
    client: Opened<'_>,
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
            let name = match client {
                Opened::Socket(client) => sniff::server_name(client).await,
                Opened::Named(name) => name.map(str::to_owned),
            };
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
        Ok(Arc::new(cluster.toward(&service.host, vec![ad_hoc(address, &service.host, Origin::Given)])))
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
        let patience = self.connect_timeout(cluster);
        let ranges = &snapshot.mesh.config.virtual_ranges;
        let addresses = Box::pin(self.shared.asked_names.addresses((caller, &name), ranges, patience)).await;
        let unresolved = |source| ProxyError::Unresolved { name: name.clone(), source };
        let addresses = addresses.map_err(unresolved)?;
        let (host, number) = (name.as_str().into(), service.targets[port]);
        let endpoint = |address: &_| ad_hoc(SocketAddr::new(*address, number), &host, Origin::Dns);
        let endpoints = addresses.iter().map(endpoint);
        Ok(Arc::new(cluster.toward(&host, endpoints.collect())))
    }
}
