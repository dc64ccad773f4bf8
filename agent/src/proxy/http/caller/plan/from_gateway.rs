//! What is to become of a request that arrived at a gateway.

use baremesh_model::http::RequestHead;
use baremesh_model::token::Token;
use baremesh_model::virtual_service::{Caller, Incoming, Routed};

use super::{Forward, Plan, taken};
use crate::proxy::error::ProxyError;
use crate::proxy::http::reply::Reply;
use crate::snapshot::Snapshot;
use crate::snapshot::gateway::GatewayPort;

/// Decides. The request's authority is held against what Gateways list at the port; then routes that are bound to those
/// Gateways say where it goes, else the ServiceEntry of the host itself.
pub fn from_gateway<'a>(
    snapshot: &'a Snapshot,
    gateway: &GatewayPort,
    (head, token): (&RequestHead, Option<&Token>),
    random: u64,
) -> Result<Plan<'a>, ProxyError> {
    let asked = snapshot.asked_at(gateway, head.host());
    if gateway.listed(Some(&asked)).next().is_none() {
        return Err(gateway.unlisted(Some(&asked)));
    }
    let index = snapshot.registration(Some(&gateway.service));
    let namespace = &gateway.service.namespace;
    let mut routed = Routed::Unconcerned;
    for (at, routes) in gateway.routes(&snapshot.routing, Some(&asked)) {
        let caller = Caller { gateway: at, namespace, labels: &gateway.labels };
        match routes.http(Incoming { head, port: gateway.port, caller, token }) {
            Routed::Unconcerned => {}
            Routed::NoRoute => routed = Routed::NoRoute,
            Routed::Route(route) => {
                routed = Routed::Route(route);
                break;
            }
        }
    }
    let plan = match routed {
        Routed::NoRoute => Plan::Answer(Reply::no_route()),
        Routed::Route(route) => taken(snapshot, (gateway.port, index), route, (head, random)),
        Routed::Unconcerned => {
            let (service, port) = snapshot.itself_from_gateway(gateway, Some(&asked))?;
            match service.cluster(index, port, None) {
                Some(cluster) => Plan::Forward(Forward { service, port, cluster, route: None, to: None }),
                None => Plan::Answer(Reply::no_healthy_upstream()),
            }
        }
    };
    if let Plan::Forward(forward) = &plan {
        snapshot.goes_on(gateway, Some(&asked), (forward.service, forward.port))?;
    }
    Ok(plan)
}
