//! Calls that are carried as bytes: routed by what was dialled or by the TLS server name, or to exactly the endpoint that was
//! dialled.

use std::net::SocketAddr;
use std::sync::Arc;

use baremesh_model::service::Protocol;
use baremesh_model::virtual_service::{Opening, Routes, Split, TcpMatch, TlsMatch, Unmet};

use super::policies::slashed;
use super::requests::draws;
use super::{Case, called, destinations, gateways, policies, words};
use crate::admin::report::explain::{
    DestinationReport, EndpointStandingReport, Explanation, MatchReport, Outcome, RouteReport,
};
use crate::proxy::outbound::stream_route;
use crate::snapshot::{Endpoint, LocalEndpoint, ServiceEntry};

/// Explains a connection to a port of a service.
pub(super) fn explain(
    case: &Case<'_>,
    service: &Arc<ServiceEntry>,
    port: usize,
    explanation: &mut Explanation,
) {
    let (snapshot, caller) = (case.snapshot, case.caller);
    let entry = &service.ports[port];
    let (number, protocol) = (entry.port, entry.protocol);
    let mut split = None;
    if let Some(routes) = stream_route::concerned(snapshot, &caller.identity, service) {
        let name = case.asked.sni.as_deref();
        let dialled = SocketAddr::new(case.dialled.ip(), number);
        let opening = stream_route::opening(snapshot, (&caller.identity, caller.index), (dialled, number));
        split = stream_route::split(routes, opening, protocol, name);
        explanation.virtual_service = Some(slashed(&routes.key));
        explanation.routes = listed((routes, split), opening, protocol, name);
        if split.is_none() && !explanation.routes.is_empty() {
            explanation.notes.push("no route takes it: the connection goes where it was going".to_owned());
        }
    }
    let all = match split {
        Some(split) => draws(split)
            .map(|(to, share, _)| {
                match stream_route::aimed(snapshot, (number, caller.index), &to.destination) {
                    Some(target) => aimed(case, &target, share),
                    None => destinations::missing(&to.destination, share),
                }
            })
            .collect(),
        None => {
            let target = stream_route::Target { service: Arc::clone(service), port, subset: None };
            vec![aimed(case, &target, 100.0)]
        }
    };
    destinations::settle(case, all, explanation);
}

fn aimed(case: &Case<'_>, target: &stream_route::Target, share: f64) -> DestinationReport {
    let service = &target.service;
    let cluster = service.cluster(case.caller.index, target.port, target.subset.as_deref());
    let Some(cluster) = cluster else {
        let host = Arc::clone(&service.host);
        let subset = target.subset.clone();
        let to = baremesh_model::virtual_service::Destination { host, subset, port: None };
        return destinations::missing(&to, share);
    };
    let hash = case.client_ip().and_then(|address| cluster.hash_of_connection(address));
    let report = destinations::of_cluster(case, (service, cluster), share, hash);
    through_gateway(case, (service, target.port), report)
}

/// Adds what becomes of the connection at a gateway, where it is sent to one.
fn through_gateway(
    case: &Case<'_>,
    at: (&ServiceEntry, usize),
    mut report: DestinationReport,
) -> DestinationReport {
    match gateways::of_bytes(case, at, case.asked.sni.as_deref()) {
        None => {}
        Some(Ok(said)) => report.effects.push(words::effect("gateway", said)),
        Some(Err(error)) => {
            report.passes = false;
            let decisions = &report.decisions;
            // Policies come first there.
            let lets_in = |endpoint: &&mut EndpointStandingReport| decisions[endpoint.decision].allowed;
            for endpoint in report.endpoints.iter_mut().filter(lets_in) {
                endpoint.fault.get_or_insert_with(|| error.to_string());
            }
        }
    }
    report
}

/// The routes up to the one that takes the connection: first those by server name, where that is looked at.
fn listed(
    (routes, split): (&Routes, Option<&Split>),
    opening: Opening<'_>,
    protocol: Protocol,
    name: Option<&str>,
) -> Vec<RouteReport> {
    let name = name.unwrap_or_default().to_ascii_lowercase();
    let by_name: &[_] = if stream_route::goes_by_name(routes, protocol) { &routes.tls } else { &[] };
    let report = |kind: &str, index: usize, own: &Split, matches| RouteReport {
        route: format!("{kind}[{index}]"),
        name: None,
        taken: split.is_some_and(|split| std::ptr::eq(split, own)),
        matches,
    };
    let of_tls = |block: &TlsMatch| match_report(block.unmet(opening, &name), opening, &name);
    let of_tcp = |block: &TcpMatch| match_report(block.unmet(opening), opening, &name);
    let tls = by_name
        .iter()
        .enumerate()
        .map(|(index, route)| report("tls", index, &route.split, route.matches.iter().map(of_tls).collect()));
    let tcp =
        routes.tcp.iter().enumerate().map(|(index, route)| {
            report("tcp", index, &route.split, route.matches.iter().map(of_tcp).collect())
        });
    let all: Vec<RouteReport> = tls.chain(tcp).collect();
    let until = all.iter().position(|route| route.taken).map_or(all.len(), |at| at + 1);
    all.into_iter().take(until).collect()
}

fn match_report(unmet: Option<Unmet<'_>>, opening: Opening<'_>, name: &str) -> MatchReport {
    let found = |unmet| match unmet {
        Unmet::SniHosts(_) if name.is_empty() => "no server name".to_owned(),
        Unmet::SniHosts(_) => name.to_owned(),
        Unmet::DestinationSubnets(_) => opening.destination.to_string(),
        of_caller => words::found_of_caller(of_caller, (opening.caller, opening.port)),
    };
    MatchReport { name: None, unmet: unmet.map(|unmet| unmet.to_string()), found: unmet.map(found) }
}

/// Explains a connection to the own address of an endpoint of another host.
pub(super) fn explain_endpoint(
    case: &Case<'_>,
    (service, port): (&ServiceEntry, u16),
    endpoint: &Arc<Endpoint>,
    explanation: &mut Explanation,
) {
    let index = service.port_index(port);
    let cluster = index.and_then(|index| service.cluster(case.caller.index, index, None));
    let (Some(index), Some(cluster)) = (index, cluster) else {
        explanation.outcome = Outcome::NoEndpoint;
        explanation.summary = format!("{} has no port {port}", service.key);
        return;
    };
    explanation.service = Some(called(service, port, service.ports[index].protocol));
    explanation.notes.push(format!(
        "{} was dialled by its own address: no route is looked at, and no other endpoint tried",
        endpoint.workload
    ));
    let to = destinations::of_endpoint(case, (service, cluster), endpoint);
    let to = through_gateway(case, (service, index), to);
    destinations::settle(case, vec![to], explanation);
}

/// Explains a connection to an address at which a service of this host is reached.
pub(super) fn explain_local(case: &Case<'_>, local: &LocalEndpoint, explanation: &mut Explanation) {
    let decision = policies::decide_here(case, local);
    explanation.passes = decision.allowed && local.is_known;
    explanation.outcome = match (decision.allowed, local.is_known) {
        (true, true) => Outcome::Forwarded,
        (true, false) => Outcome::NoEndpoint,
        (false, _) => Outcome::Refused,
    };
    let what = if decision.allowed { "allowed" } else { "refused" };
    explanation.summary =
        format!("{what} at {}, a service of this host: {}", local.service, decision.verdict);
    let delivered = match local.is_known {
        true => local.deliver.to_string(),
        false => "nobody: no container is certain to be the service".to_owned(),
    };
    explanation.destinations.push(DestinationReport {
        service: local.service.to_string(),
        port: None,
        subset: None,
        share: 100.0,
        passes: explanation.passes,
        fault: None,
        out_of_reach: Vec::new(),
        destination_rules: Vec::new(),
        balancer: None,
        hashed_to: None,
        effects: vec![words::effect("delivered to", delivered)],
        endpoints: Vec::new(),
        decisions: vec![decision],
    });
}
