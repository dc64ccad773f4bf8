//! Calls whose requests are routed one by one. Which route takes a request is `plan`'s to say; it is asked once for every
//! destination that chance might choose.

use baremesh_model::http::RequestHead;
use baremesh_model::rate_limit::Asking;
use baremesh_model::virtual_service::{
    CorsDecision, Gateway, HttpAction, HttpMatch, HttpRoute, Incoming, Percentage, RouteMatch, Routed,
    Routes, Split, WeightedDestination,
};

use super::policies::slashed;
use super::{Case, called, destinations, gateways, limits, tokens, words};
use crate::admin::report::explain::{
    AnswerReport, DestinationReport, Explanation, MatchReport, Outcome, RouteReport,
};
use crate::proxy::http::caller::plan::{self, Asked, Authority, Forward, Plan};
use crate::proxy::http::caller::{aborted, prepare};
use crate::proxy::http::reply::Reply;
use crate::snapshot::ServiceEntry;

/// Explains a request to a port of a service.
pub(super) fn explain(case: &Case<'_>, dialled: &ServiceEntry, port: usize, explanation: &mut Explanation) {
    let (snapshot, head) = (case.snapshot, &case.asked.head);
    let number = dialled.ports[port].port;
    let token = tokens::for_routes(case);
    let (token, authority) = (token.as_ref(), Authority::Names);
    let (identity, service) = (&case.caller.identity, &dialled.key);
    let ranges = &case.snapshot.mesh.config.virtual_ranges;
    let real_address = !ranges.contains(case.dialled.ip());
    let caller = case.caller.index;
    let asked = Asked { identity, caller, service, port: number, token, authority, real_address };
    let caller = baremesh_model::virtual_service::Caller {
        gateway: &Gateway::Mesh,
        namespace: case.caller.identity.namespace(),
        labels: snapshot.labels_of(case.caller.index),
    };
    let incoming = Incoming { head, port: number, caller, token };
    let mut routed = Routed::Unconcerned;
    if let Some((service, routes)) = plan::concerned(snapshot, asked, head) {
        if let Some(at) = service.port_index(number) {
            explanation.service = Some(called(service, number, service.ports[at].protocol));
        }
        if let Some(routes) = routes {
            routed = routes.http(incoming);
            explanation.virtual_service = Some(slashed(&routes.key));
            explanation.routes = listed(routes, incoming, routed);
        }
    }
    match (routed, plan::plan(snapshot, asked, head, 0)) {
        (Routed::Route(route), first) => match &route.route.action {
            HttpAction::Forward(split) => {
                let dialled = (number, case.caller.index);
                let exists = |to: &_| plan::destination(snapshot, dialled, to).is_some();
                explanation.effects = words::of_route(route.route, head, exists);
                let draws = draws(split)
                    .map(|(to, share, random)| (to, share, plan::plan(snapshot, asked, head, random)));
                let all = draws.map(|(to, share, plan)| destination(case, (to, share), &plan)).collect();
                destinations::settle(case, all, explanation);
                refuse(explanation);
                if let Plan::Forward(forward) = &first {
                    refused_at_gateway(case, forward, explanation);
                }
                before(route.route, head, explanation);
            }
            HttpAction::Redirect(_) | HttpAction::Respond(_) => {
                if let Plan::Answer(reply) = first {
                    answered(Outcome::Answered, &reply, explanation);
                    let location = explanation.answer.as_ref().and_then(|answer| answer.location.clone());
                    let to = location.map(|location| format!(", to {location}")).unwrap_or_default();
                    explanation.summary = format!("answered by its route: {}{to}", reply.status);
                }
            }
        },
        (Routed::NoRoute | Routed::Unconcerned, Plan::Answer(reply)) => {
            answered(Outcome::NoRoute, &reply, explanation);
            explanation.summary = format!("no route takes it: {}", reply.status);
        }
        (Routed::NoRoute | Routed::Unconcerned, Plan::Forward(forward)) => {
            if !explanation.routes.is_empty() {
                let note = "none of the routes is for this caller and port: the request goes to the service that it names";
                explanation.notes.push(note.to_owned());
            }
            let to = of_forward(case, &forward, 100.0);
            destinations::settle(case, vec![to], explanation);
            refuse(explanation);
            refused_at_gateway(case, &forward, explanation);
        }
    }
}

/// The routes up to the one that takes the request.
fn listed(routes: &Routes, incoming: Incoming<'_>, routed: Routed<'_>) -> Vec<RouteReport> {
    let taken = match routed {
        Routed::Route(route) => Some(route),
        Routed::NoRoute | Routed::Unconcerned => None,
    };
    let is_taken = |route: &HttpRoute| taken.is_some_and(|taken| std::ptr::eq(&**taken.route, route));
    let mut reports = Vec::new();
    for (index, route) in routes.http.iter().enumerate() {
        let taken = taken.filter(|_| is_taken(route));
        reports.push(RouteReport {
            route: format!("http[{index}]"),
            name: route.name.as_ref().map(ToString::to_string),
            taken: taken.is_some(),
            matches: tried(route, taken).iter().map(|block| match_report(block, incoming)).collect(),
        });
        if taken.is_some() {
            break;
        }
    }
    reports
}

/// The matches of a route that were looked at.
fn tried<'a>(route: &'a HttpRoute, taken: Option<RouteMatch<'_>>) -> &'a [HttpMatch] {
    let block = taken.and_then(|taken| taken.block);
    let at = block.and_then(|block| route.matches.iter().position(|own| std::ptr::eq(own, block)));
    at.map_or(&route.matches, |at| &route.matches[..=at])
}

fn match_report(block: &HttpMatch, incoming: Incoming<'_>) -> MatchReport {
    let unmet = block.unmet(incoming);
    MatchReport {
        name: block.name.as_ref().map(ToString::to_string),
        unmet: unmet.map(|unmet| unmet.to_string()),
        found: unmet.map(|unmet| words::found(unmet, incoming)),
    }
}

/// Every destination with its share in per cent, and a draw that takes it, if one does.
pub(super) fn draws(split: &Split) -> impl Iterator<Item = (&WeightedDestination, f64, u64)> {
    let weight = |to: &WeightedDestination| u64::from(to.weight);
    let total: u64 = split.all().iter().map(weight).sum();
    let mut before = 0;
    split.all().iter().map(move |to| {
        let random = before;
        before += weight(to);
        let alone = split.all().len() == 1;
        let share = if alone { 100.0 } else { weight(to) as f64 * 100.0 / total.max(1) as f64 };
        (to, share, random)
    })
}

fn destination(
    case: &Case<'_>,
    (to, share): (&WeightedDestination, f64),
    plan: &Plan<'_>,
) -> DestinationReport {
    match plan {
        Plan::Forward(forward) if forward.to.is_some_and(|drawn| std::ptr::eq(drawn, to)) => {
            of_forward(case, forward, share)
        }
        // A weight of 0 is never drawn, and the draw is the next one's; or it names what there is not.
        Plan::Forward(_) | Plan::Answer(_) => {
            let snapshot = case.snapshot;
            let dialled = (case.dialled.port(), case.caller.index);
            match plan::destination(snapshot, dialled, &to.destination) {
                Some((service, _, cluster)) => {
                    destinations::of_cluster(case, (service, cluster), share, None)
                }
                None => destinations::missing(&to.destination, share),
            }
        }
    }
}

fn of_forward(case: &Case<'_>, forward: &Forward<'_>, share: f64) -> DestinationReport {
    let head = &case.asked.head;
    let key = forward.cluster.hash_key();
    let hash = key.and_then(|key| {
        let by_address = matches!(key, baremesh_model::destination_rule::HashKey::SourceIp);
        let source = case.client_ip();
        // Without an address there is no key; every other key is the request's own.
        if by_address && source.is_none() { None } else { key.of_request(head, source.unwrap_or(ANY)) }
    });
    let mut sent = head.clone();
    prepare(&mut sent, forward, case.snapshot.mesh.config.path_normalization);
    let case = &Case { sent: Some(&sent), ..*case };
    let mut report = destinations::of_cluster(case, (forward.service, forward.cluster), share, hash);
    let mut effects = Vec::new();
    if (&sent.target, &sent.authority) != (&head.target, &head.authority) {
        let said = format!("{} {} to {}", sent.method, sent.target, sent.authority);
        effects.push(words::effect("rewrite", said));
    }
    if let Some(to) = forward.to {
        words::of_headers(&to.headers, &mut effects);
    }
    if let Some(told) = gateways::of_request(case, forward, &sent) {
        let said = told.unwrap_or_else(|error| format!("refused there: {error}"));
        effects.push(words::effect("gateway", said));
    }
    let port = forward.service.ports[forward.port].port;
    let address = case.client_ip().unwrap_or(ANY);
    let asking = Asking { head, port, source: Some(&case.caller.identity), address, token: None };
    effects.extend(limits::on_sending(case, &forward.service.key, &asking));
    effects.append(&mut report.effects);
    DestinationReport { effects, ..report }
}

/// Stands for the caller's address where a key does not look at it.
const ANY: std::net::IpAddr = std::net::IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED);

/// What the caller is told where the request is not carried.
fn refuse(explanation: &mut Explanation) {
    let by_policy = |destination: &DestinationReport| {
        let mut endpoints = destination.endpoints.iter().filter(|endpoint| endpoint.share > 0.0);
        let decided = endpoints.find(|endpoint| endpoint.fault.is_none())?;
        destination.decisions.get(decided.decision)?.answer.clone()
    };
    let reply = match explanation.outcome {
        Outcome::NoEndpoint => Reply::no_healthy_upstream(),
        Outcome::NoDestination => Reply::cluster_not_found(),
        Outcome::Refused => match explanation.destinations.iter().find_map(by_policy) {
            Some(said) => return explanation.answer = Some(said),
            None => Reply::connect_failed(),
        },
        _ => return,
    };
    explanation.answer = Some(answer(&reply));
}

/// What a gateway refuses to which the request is sent is refused.
fn refused_at_gateway(case: &Case<'_>, forward: &Forward<'_>, explanation: &mut Explanation) {
    if explanation.outcome != Outcome::Forwarded || !explanation.passes {
        return;
    }
    let mut sent = case.asked.head.clone();
    prepare(&mut sent, forward, case.snapshot.mesh.config.path_normalization);
    if let Some(Err(error)) = gateways::of_request(case, forward, &sent) {
        answered(Outcome::NoRoute, &crate::proxy::http::gateway::refused(&error), explanation);
        explanation.summary = format!("refused at the gateway: {error}");
    }
}

/// What the route does before anything is sent: it may answer itself.
fn before(route: &HttpRoute, head: &RequestHead, explanation: &mut Explanation) {
    let cors = route.options.cors.as_ref().map(|cors| cors.decide(head));
    if matches!(cors, Some(CorsDecision::Preflight(_) | CorsDecision::Ignored)) {
        answered(Outcome::Answered, &Reply::new(200, "", "-", "cors_response"), explanation);
        explanation.summary = "a preflight: answered by its route's CORS policy with 200".to_owned();
        return;
    }
    let abort = route.options.fault.as_ref().and_then(|fault| fault.abort.as_ref());
    match abort {
        Some(abort) if abort.percentage == Percentage::ALL => {
            let reply = aborted(abort.status);
            answered(Outcome::Aborted, &reply, explanation);
            explanation.summary = format!("always answered by a fault of its route: {}", reply.status);
        }
        Some(abort) if abort.percentage > Percentage::NONE => {
            let note =
                format!("{}; but {} of the requests are aborted", explanation.summary, abort.percentage);
            explanation.summary = note;
        }
        _ => {}
    }
}

fn answered(outcome: Outcome, reply: &Reply, explanation: &mut Explanation) {
    explanation.outcome = outcome;
    explanation.passes = outcome == Outcome::Answered;
    explanation.answer = Some(answer(reply));
}

/// What the caller is told.
pub(super) fn answer(reply: &Reply) -> AnswerReport {
    AnswerReport {
        status: Some(reply.status),
        flags: reply.flags.to_owned(),
        details: reply.details.clone().into_owned(),
        location: reply.headers.text("location").map(std::borrow::Cow::into_owned),
    }
}
