//! Calls that a route leads to a gateway: whether they leave the mesh there, and for where.

use std::net::{IpAddr, Ipv4Addr};

use baremesh_model::gateway::Carries;
use baremesh_model::http::RequestHead;

use super::Case;
use crate::proxy::error::ProxyError;
use crate::proxy::http::caller::plan::{self, Forward, Plan};
use crate::proxy::outbound::stream_route;
use crate::snapshot::ServiceEntry;
use crate::snapshot::gateway::{AskedHost, GatewayPort};

/// What becomes at the gateway of a request as it is sent there; nothing where it is not sent to one.
pub(super) fn of_request(
    case: &Case<'_>,
    forward: &Forward<'_>,
    sent: &RequestHead,
) -> Option<Result<String, ProxyError>> {
    let gateway = gateway(case, forward.service, forward.port)?;
    if gateway.carries != Carries::Requests {
        // In the clear, so that no TLS asks for a name there.
        return of_bytes(case, (forward.service, forward.port), None);
    }
    let asked = case.snapshot.asked_at(&gateway, sent.host());
    Some(plan::from_gateway(case.snapshot, &gateway, (sent, None), 0).map(|plan| match plan {
        Plan::Answer(reply) => format!("answered at the gateway with {}", reply.status),
        Plan::Forward(to) => {
            let port = to.service.ports[to.port].port;
            format!("leaves through {} for {}:{port}", listed(&gateway, Some(&asked)), to.service.host)
        }
    }))
}

/// The same of a connection of bytes, by the name that its TLS asks for.
pub(super) fn of_bytes(
    case: &Case<'_>,
    (service, port): (&ServiceEntry, usize),
    name: Option<&str>,
) -> Option<Result<String, ProxyError>> {
    let gateway = gateway(case, service, port).filter(|gateway| gateway.carries != Carries::Requests)?;
    let asked = name.map(|name| case.snapshot.asked_at(&gateway, name));
    let address = service.ports[port].endpoints.first().map(|endpoint| endpoint.address.ip());
    let at = (&gateway, address.unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED)));
    Some(stream_route::from_gateway(case.snapshot, at, name, 0).map(|to| {
        let port = to.service.ports[to.port].port;
        format!("leaves through {} for {}:{port}", listed(&gateway, asked.as_ref()), to.service.host)
    }))
}

/// The port of a gateway as its own host has it: what it carries is what its registration says.
fn gateway(case: &Case<'_>, service: &ServiceEntry, port: usize) -> Option<GatewayPort> {
    let entry = &service.ports[port];
    let carries = Carries::of_port(entry.protocol).filter(|_| case.snapshot.is_gateway(&service.key))?;
    let labels = &entry.endpoints.first()?.labels;
    Some(GatewayPort::new(&case.snapshot.mesh, (&service.key, labels), entry.port, carries))
}

/// The first Gateway that lists what is asked for, with the server's name where it has one.
fn listed(gateway: &GatewayPort, asked: Option<&AskedHost>) -> String {
    match gateway.listed(asked).next() {
        Some(listing) => match &listing.server {
            Some(server) => format!("Gateway {} ({server})", listing.gateway),
            None => format!("Gateway {}", listing.gateway),
        },
        None => "no Gateway".to_owned(),
    }
}
