//! What is to become of a request: a pure function of the state in force, the request and a draw. The data path does what
//! it says, and `explain` shows it.

/// Requests that leave the mesh.
mod from_gateway;

use std::sync::Arc;

use baremesh_model::http::RequestHead;
use baremesh_model::identity::Identity;
use baremesh_model::name::{Key, Label};
use baremesh_model::token::Token;
use baremesh_model::virtual_service::{
    Caller, Destination, Gateway, HostName, HttpAction, Incoming, RouteMatch, Routed, Routes,
    WeightedDestination,
};

pub use from_gateway::from_gateway;

use crate::proxy::http::reply::Reply;
use crate::snapshot::external::Way;
use crate::snapshot::{Cluster, ServiceEntry, Snapshot};

/// Who asks, and where the connection was going.
#[derive(Debug, Clone, Copy)]
pub struct Asked<'a> {
    /// Who calls.
    pub identity: &'a Identity,
    /// The registration as which it calls, by its index in the state in force; none for the host itself.
    pub caller: Option<usize>,
    /// The service that was dialled.
    pub service: &'a Key,
    /// Its port.
    pub port: u16,
    /// What the token says that was verified for the caller's routes.
    pub token: Option<&'a Token>,
    /// What the request's authority says.
    pub authority: Authority,
    /// Whether a real address was dialled, and no virtual one.
    pub real_address: bool,
}

/// What the authority of a request is taken for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Authority {
    /// The service that is meant, where it names one.
    Names,
    /// A text: the service that was dialled is meant.
    SaysNothing,
}

/// What is to become of a request.
#[derive(Debug)]
pub enum Plan<'a> {
    /// The agent answers.
    Answer(Reply),
    /// It is sent on.
    Forward(Forward<'a>),
}

/// Where a request is sent, and by which route.
#[derive(Debug, Clone, Copy)]
pub struct Forward<'a> {
    /// The service.
    pub service: &'a Arc<ServiceEntry>,
    /// The index of its port.
    pub port: usize,
    /// The endpoints, of the whole service or of a subset.
    pub cluster: &'a Arc<Cluster>,
    /// The route; none: the service's own.
    pub route: Option<RouteMatch<'a>>,
    /// The route's destination that the draw took.
    pub to: Option<&'a WeightedDestination>,
}

/// Decides. A request names a service in its authority; one that does not is for the service that was dialled.
pub fn plan<'a>(snapshot: &'a Snapshot, asked: Asked<'_>, head: &RequestHead, random: u64) -> Plan<'a> {
    let from = asked.identity.namespace();
    let caller = asked.caller;
    let Some((service, routes)) = concerned(snapshot, asked, head) else {
        return Plan::Answer(Reply::no_route());
    };
    let labels = snapshot.labels_of(caller);
    let caller_of_routes = Caller { gateway: &Gateway::Mesh, namespace: from, labels };
    let incoming = Incoming { head, port: asked.port, caller: caller_of_routes, token: asked.token };
    let routed = match routes {
        Some(routes) => routes.http(incoming),
        None => Routed::Unconcerned,
    };
    match routed {
        Routed::NoRoute => Plan::Answer(Reply::no_route()),
        Routed::Unconcerned => {
            let Some(port) = service.port_index(asked.port) else {
                return Plan::Answer(Reply::no_route());
            };
            match service.cluster(caller, port, None) {
                Some(cluster) => Plan::Forward(Forward { service, port, cluster, route: None, to: None }),
                None => Plan::Answer(Reply::no_healthy_upstream()),
            }
        }
        Routed::Route(route) => taken(snapshot, (asked.port, caller), route, (head, random)),
    }
}

/// What becomes of a request that a route takes.
fn taken<'a>(
    snapshot: &'a Snapshot,
    (dialled, caller): (u16, Option<usize>),
    route: RouteMatch<'a>,
    (head, random): (&RequestHead, u64),
) -> Plan<'a> {
    match &route.route.action {
        HttpAction::Redirect(redirect) => {
            let location = redirect.location(head, dialled, route.path);
            let mut reply = Reply::new(redirect.status.code(), "", "-", "direct_response");
            // A location is made of what may stand in a head.
            let _ = reply.headers.set("location", location.as_bytes());
            Plan::Answer(marked(reply, &route))
        }
        HttpAction::Respond(response) => {
            let body = response.body.clone().unwrap_or_default();
            let reply = Reply { body, ..Reply::new(response.status, "", "-", "direct_response") };
            Plan::Answer(marked(reply, &route))
        }
        HttpAction::Forward(split) => {
            let to = &split.all()[split.pick(random)];
            forward(snapshot, (dialled, caller), route, to)
        }
    }
}

/// The service that a request is for, and the routes that hold for it, if there are any; nothing where the service that was
/// dialled is there no longer, or no longer for this caller. What the caller may not call is no service to it, and the routes of
/// that are none either, whatever the request's authority says.
pub fn concerned<'a>(
    snapshot: &'a Snapshot,
    asked: Asked<'_>,
    head: &RequestHead,
) -> Option<(&'a Arc<ServiceEntry>, Option<&'a Arc<Routes>>)> {
    let from = asked.identity.namespace();
    let is_called = |service: &ServiceEntry| {
        service.is_for(from) && snapshot.sidecar_against(asked.caller, &service.key, asked.port).is_none()
    };
    let (named, written) = match asked.authority {
        Authority::Names => match named(snapshot, head, from) {
            Some(service) if is_called(service) => (Some(service), Some(head)),
            Some(_) => (None, None),
            None => (None, (!snapshot.external.hides(head.host(), from)).then_some(head)),
        },
        Authority::SaysNothing => (None, None),
    };
    // Where callers are going is known of those who dial the address itself.
    let is_reached = |service: &&Arc<ServiceEntry>| match service.port_index(asked.port) {
        Some(port) => *service.way(port) != Way::OriginalDestination || asked.real_address,
        None => false,
    };
    // The state may have changed since the connection was let through. Checks of policies are no calls of the workload's own.
    let is_still_called =
        |service: &&Arc<ServiceEntry>| asked.authority == Authority::SaysNothing || is_called(service);
    let dialled = || snapshot.service(asked.service).filter(is_still_called);
    let service = named.filter(is_reached).or_else(dialled)?;
    Some((service, routes(snapshot, written, from, service)))
}

/// An answer of the agent's own with the fields that its route asks for.
fn marked(mut reply: Reply, route: &RouteMatch<'_>) -> Reply {
    if let Some(rules) = &route.route.options.headers {
        rules.response.apply(&mut reply.headers);
    }
    reply
}

/// Where a route's destination leads.
fn forward<'a>(
    snapshot: &'a Snapshot,
    dialled: (u16, Option<usize>),
    route: RouteMatch<'a>,
    to: &'a WeightedDestination,
) -> Plan<'a> {
    match destination(snapshot, dialled, &to.destination) {
        Some((service, port, cluster)) => {
            Plan::Forward(Forward { service, port, cluster, route: Some(route), to: Some(to) })
        }
        // A route may name what there is not, or not yet.
        None => Plan::Answer(Reply::cluster_not_found()),
    }
}

/// The service, port and endpoints that a route's destination names, as a caller of this host calls them who dialled
/// that port; nothing where there is no such service, port or subset.
pub fn destination<'a>(
    snapshot: &'a Snapshot,
    (dialled, caller): (u16, Option<usize>),
    to: &Destination,
) -> Option<(&'a Arc<ServiceEntry>, usize, &'a Arc<Cluster>)> {
    let service = snapshot.called(&to.host, snapshot.namespace_of(caller))?;
    let port = service.port_meant(to, dialled)?;
    let cluster = service.cluster(caller, port, to.subset.as_deref())?;
    Some((service, port, cluster))
}

/// The service that the request's authority names.
fn named<'a>(snapshot: &'a Snapshot, head: &RequestHead, from: &Label) -> Option<&'a Arc<ServiceEntry>> {
    let key = Key::resolve(head.host(), from, &snapshot.mesh.config.domain).ok();
    key.and_then(|key| snapshot.service(&key)).or_else(|| snapshot.external.named(head.host(), from))
}

/// The routes that hold: those of the name in the authority, else those of the service.
fn routes<'a>(
    snapshot: &'a Snapshot,
    head: Option<&RequestHead>,
    from: &Label,
    service: &ServiceEntry,
) -> Option<&'a Arc<Routes>> {
    if snapshot.routing.is_empty() {
        return None;
    }
    let domain = &snapshot.mesh.config.domain;
    let written = head.map(|head| HostName::resolve(head.host(), from, domain));
    written
        .and_then(|written| snapshot.routing.on_mesh(from, &written))
        .or_else(|| snapshot.routing.on_mesh(from, &HostName::of_service(&service.key, domain)))
}

#[cfg(test)]
mod tests;
