//! Where a connection of bytes goes: as a VirtualService says by what was dialled or by the TLS server name, else to the
//! service and port that were dialled.

use std::net::SocketAddr;
use std::sync::Arc;

use baremesh_model::service::Protocol;
use baremesh_model::virtual_service::{Caller, Gateway, HostName, Opening};
use baremesh_model::workload::Labels;
use tokio::net::TcpStream;

use super::super::error::ProxyError;
use super::super::http::caller::plan;
use super::super::sniff;
use super::{Call, no_endpoint};
use crate::snapshot::ServiceEntry;

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
pub async fn target(
    call: &Call<'_>,
    client: &TcpStream,
    (address, number, protocol): (SocketAddr, u16, Protocol),
    (service, port): (Arc<ServiceEntry>, usize),
) -> Result<Target, ProxyError> {
    let snapshot = call.snapshot;
    let dialled = |service| Ok(Target { service, port, subset: None });
    if snapshot.routing.is_empty() {
        return dialled(service);
    }
    let namespace = call.caller.namespace();
    let host = HostName::of_service(&service.key, &snapshot.mesh.config.domain);
    let Some(routes) = snapshot.routing.on_mesh(namespace, &host) else { return dialled(service) };
    let (none, gateway) = (Labels::new(), Gateway::Mesh);
    let labels = call.index.map_or(&none, |index| &snapshot.sources[index].labels);
    let caller = Caller { gateway: &gateway, namespace, labels };
    let opening = Opening { destination: address.ip(), port: number, caller };
    let by_name = match protocol {
        Protocol::Tls | Protocol::Https if !routes.tls.is_empty() => {
            let name = sniff::server_name(client).await;
            routes.tls(opening, name.as_deref()).map(|route| &route.split)
        }
        _ => None,
    };
    let Some(split) = by_name.or_else(|| routes.tcp(opening).map(|route| &route.split)) else {
        return dialled(service);
    };
    let to = &split.all()[split.pick(rand::random())].destination;
    match plan::destination(snapshot, (number, call.index), to) {
        Some((service, port, _)) => {
            Ok(Target { service: Arc::clone(service), port, subset: to.subset.clone() })
        }
        // A route may name what there is not, or not yet.
        None => Err(no_endpoint(&service)),
    }
}
