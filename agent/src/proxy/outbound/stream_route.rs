//! Where a connection of bytes goes: as a VirtualService says by what was dialled or by the TLS server name, else to the
//! service and port that were dialled.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use baremesh_model::gateway::Carries;
use baremesh_model::identity::Identity;
use baremesh_model::service::Protocol;
use baremesh_model::virtual_service::{Caller, Destination, Gateway, HostName, Opening, Routes, Split};
use tokio::net::TcpStream;

use super::super::error::ProxyError;
use super::super::http::caller::plan;
use super::super::sniff;
use super::{Call, no_endpoint};
use crate::snapshot::gateway::GatewayPort;
use crate::snapshot::{ServiceEntry, Snapshot};

/// A service's port, of all endpoints or of a subset.
pub struct Target {
    /// The service.
    pub service: Arc<ServiceEntry>,
    /// The index of its port.
    pub port: usize,
    /// The subset; none: all endpoints.
    pub subset: Option<Arc<str>>,
}

/// Decides for a connection to `opened`: the address, the port and what the port speaks.
pub(super) async fn target(
    call: &Call<'_>,
    client: &TcpStream,
    (address, number, protocol): (SocketAddr, u16, Protocol),
    (service, port): (Arc<ServiceEntry>, usize),
) -> Result<Target, ProxyError> {
    let snapshot = call.snapshot;
    let dialled = |service| Ok(Target { service, port, subset: None });
    let Some(routes) = concerned(snapshot, &call.caller, &service) else { return dialled(service) };
    let name = match goes_by_name(routes, protocol) {
        true => sniff::server_name(client).await,
        false => None,
    };
    let opening = opening(snapshot, (&call.caller, call.index), (address, number));
    let Some(split) = split(routes, opening, protocol, name.as_deref()) else { return dialled(service) };
    let to = &split.all()[split.pick(rand::random())].destination;
    // A route may name what there is not, or not yet.
    aimed(snapshot, (number, call.index), to).ok_or_else(|| no_endpoint(&service))
}

/// The routes that hold for a connection to a service, if there are any.
pub fn concerned<'a>(
    snapshot: &'a Snapshot,
    caller: &Identity,
    service: &ServiceEntry,
) -> Option<&'a Arc<Routes>> {
    if snapshot.routing.is_empty() {
        return None;
    }
    let host = HostName::of_service(&service.key, &snapshot.mesh.config.domain);
    snapshot.routing.on_mesh(caller.namespace(), &host)
}

/// A connection as routes see it: who calls, with the index of its registration, and what was dialled.
pub fn opening<'a>(
    snapshot: &'a Snapshot,
    (caller, index): (&'a Identity, Option<usize>),
    (address, port): (SocketAddr, u16),
) -> Opening<'a> {
    let labels = snapshot.labels_of(index);
    let caller = Caller { gateway: &Gateway::Mesh, namespace: caller.namespace(), labels };
    Opening { destination: address.ip(), port, caller }
}

/// Whether the TLS server name is looked at.
pub fn goes_by_name(routes: &Routes, protocol: Protocol) -> bool {
    matches!(protocol, Protocol::Tls | Protocol::Https) && !routes.tls.is_empty()
}

/// The destinations of the route that takes a connection; none: it goes where it was going.
pub fn split<'a>(
    routes: &'a Routes,
    opening: Opening<'_>,
    protocol: Protocol,
    server_name: Option<&str>,
) -> Option<&'a Split> {
    let by_name =
        goes_by_name(routes, protocol).then(|| routes.tls(opening, server_name)).flatten().map(|r| &r.split);
    by_name.or_else(|| routes.tcp(opening).map(|route| &route.split))
}

/// Where a connection leaves for that arrived at a gateway, at `address`, and asks for `name`: by the routes that are bound to
/// the Gateways which list that, else to the ServiceEntry of the name itself.
pub fn from_gateway(
    snapshot: &Snapshot,
    (gateway, address): (&GatewayPort, IpAddr),
    name: Option<&str>,
    random: u64,
) -> Result<Target, ProxyError> {
    let asked = name.map(|name| snapshot.asked_at(gateway, name));
    let asked = asked.as_ref();
    if gateway.listed(asked).next().is_none() {
        return Err(gateway.unlisted(asked));
    }
    let index = snapshot.registration(Some(&gateway.service));
    let protocol = if gateway.carries == Carries::Tls { Protocol::Tls } else { Protocol::Tcp };
    let by_route = gateway.routes(&snapshot.routing, asked).into_iter().find_map(|(at, routes)| {
        let caller = Caller { gateway: at, namespace: &gateway.service.namespace, labels: &gateway.labels };
        let opening = Opening { destination: address, port: gateway.port, caller };
        split(routes, opening, protocol, name)
    });
    let target = match by_route {
        Some(split) => {
            let to = &split.all()[split.pick(random)].destination;
            let aimed = aimed(snapshot, (gateway.port, index), to);
            aimed.ok_or_else(|| {
                gateway.no_way(asked, "its route leads to a host, port or subset that is not there")
            })?
        }
        None => {
            let (service, port) = snapshot.itself_from_gateway(gateway, asked)?;
            Target { service: Arc::clone(service), port, subset: None }
        }
    };
    snapshot.goes_on(gateway, asked, (&target.service, target.port))?;
    // What is of this host answers to policies of its own, which bytes from here would not come before.
    let mut endpoints = target.service.ports[target.port].endpoints.iter();
    if endpoints.any(|endpoint| snapshot.here(endpoint).is_some()) {
        let to = target.service.key.clone();
        return Err(ProxyError::GatewayLoop { gateway: gateway.service.clone(), to });
    }
    Ok(target)
}

/// Where a destination leads those who dialled a port; none where there is no such service, port or subset.
pub fn aimed(snapshot: &Snapshot, dialled: (u16, Option<usize>), to: &Destination) -> Option<Target> {
    let (service, port, _) = plan::destination(snapshot, dialled, to)?;
    Some(Target { service: Arc::clone(service), port, subset: to.subset.clone() })
}
