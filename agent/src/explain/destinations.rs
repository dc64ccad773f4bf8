//! Where a call may go: the endpoints of a cluster, how they stand, and what is decided at each.

use std::net::SocketAddr;
use std::sync::Arc;

use baremesh_model::destination_rule::ClientTls;
use baremesh_model::health::Health;
use baremesh_model::virtual_service::Destination;

use super::{Case, NOT_ASKED, policies, words};
use crate::admin::report::explain::{
    DecisionReport, DestinationReport, EndpointStandingReport, Explanation, Outcome,
};
use crate::proxy::error::ProxyError;
use crate::snapshot::cluster::Standing;
use crate::snapshot::external::Way;
use crate::snapshot::{Cluster, Endpoint, ServiceEntry, Transport};

/// What a cluster comes to for a call whose key hashes to `hash`.
pub(super) fn of_cluster(
    case: &Case<'_>,
    (service, cluster): (&ServiceEntry, &Cluster),
    share: f64,
    hash: Option<u64>,
) -> DestinationReport {
    let way = service.port_index(cluster.name.port).map_or(&Way::Endpoints, |port| service.way(port));
    let unlisted = match way {
        Way::Endpoints => None,
        Way::OriginalDestination => Some(format!("to where the caller was going: {}", case.dialled)),
        Way::AskedName(hosts) => Some(format!(
            "to the addresses that DNS has for the name that is asked for, if {hosts} takes it in"
        )),
    };
    if let Some(unlisted) = unlisted {
        let mut report = report(case, (service, cluster), &[], (share, None));
        report.effects.insert(0, words::effect("resolution", unlisted));
        return DestinationReport { passes: true, fault: None, balancer: None, ..report };
    }
    let hashed_to = hash.and_then(|hash| cluster.pick(&[], Some(hash), case.now, hash).ok());
    let hashed_to = hashed_to.map(|endpoint| endpoint.address);
    report(case, (service, cluster), &cluster.standings(case.now), (share, hashed_to))
}

/// What an endpoint comes to that was dialled by its own address.
pub(super) fn of_endpoint(
    case: &Case<'_>,
    (service, cluster): (&ServiceEntry, &Cluster),
    endpoint: &Arc<Endpoint>,
) -> DestinationReport {
    let standing = Standing::alone(endpoint, case.now);
    DestinationReport { balancer: None, ..report(case, (service, cluster), &[standing], (100.0, None)) }
}

fn report(
    case: &Case<'_>,
    (service, cluster): (&ServiceEntry, &Cluster),
    standings: &[Standing<'_>],
    (share, hashed_to): (f64, Option<SocketAddr>),
) -> DestinationReport {
    let mut decisions = Vec::new();
    let endpoints: Vec<_> = standings
        .iter()
        .map(|standing| endpoint(case, (service, cluster), standing, hashed_to, &mut decisions))
        .collect();
    let mut candidates = endpoints.iter().filter(|endpoint| endpoint.share > 0.0).peekable();
    let fault = match candidates.peek() {
        Some(_) => None,
        None if !service.is_held() => Some(NOT_ASKED),
        None if endpoints.is_empty() && service.out_of_reach.is_empty() => Some("there is no endpoint"),
        None if endpoints.is_empty() => Some("no endpoint is in reach"),
        None => Some("every endpoint is unhealthy or left out at the moment"),
    };
    let takes =
        |endpoint: &EndpointStandingReport| endpoint.fault.is_none() && decisions[endpoint.decision].allowed;
    DestinationReport {
        service: service.key.to_string(),
        port: Some(cluster.name.port),
        subset: cluster.name.subset.as_ref().map(ToString::to_string),
        share,
        passes: fault.is_none() && candidates.all(takes),
        fault: fault.map(str::to_owned),
        out_of_reach: service.out_of_reach.iter().map(ToString::to_string).collect(),
        destination_rules: cluster.name.rules.iter().map(policies::slashed).collect(),
        balancer: Some(words::of_balancer(&cluster.policy.load_balancer.algorithm)),
        hashed_to,
        effects: words::of_policy(&cluster.policy),
        endpoints,
        decisions,
    }
}

/// A destination that there is not.
pub(super) fn missing(to: &Destination, share: f64) -> DestinationReport {
    DestinationReport {
        service: to.host.to_string(),
        port: to.port.map(Into::into),
        subset: to.subset.as_ref().map(ToString::to_string),
        share,
        passes: false,
        fault: Some("there is no such service, port or subset".to_owned()),
        out_of_reach: Vec::new(),
        destination_rules: Vec::new(),
        balancer: None,
        hashed_to: None,
        effects: Vec::new(),
        endpoints: Vec::new(),
        decisions: Vec::new(),
    }
}

fn endpoint(
    case: &Case<'_>,
    (service, cluster): (&ServiceEntry, &Cluster),
    standing: &Standing<'_>,
    hashed_to: Option<SocketAddr>,
    decisions: &mut Vec<DecisionReport>,
) -> EndpointStandingReport {
    let endpoint = standing.endpoint;
    let decision = policies::decide(case, service, endpoint);
    let decision = decisions.iter().position(|known| *known == decision).unwrap_or_else(|| {
        decisions.push(decision);
        decisions.len() - 1
    });
    let share = match hashed_to {
        Some(address) => f64::from(u8::from(address == endpoint.address)),
        None => standing.share,
    };
    EndpointStandingReport {
        workload: endpoint.workload.to_string(),
        address: endpoint.address,
        transport: endpoint.transport.word().to_owned(),
        agent: match endpoint.transport {
            Transport::Hbone(ref agent) => Some(agent.address),
            Transport::Plain | Transport::Local(_) => None,
        },
        network: endpoint.network().map(ToString::to_string),
        locality: endpoint.locality.to_string(),
        priority: standing.priority,
        weight: endpoint.weight,
        share: share * 100.0,
        health: match (endpoint.health, standing.ejected_for) {
            (Health::Unhealthy, _) => "unhealthy",
            (Health::Healthy, Some(_)) => "ejected",
            (Health::Healthy, None) => "healthy",
        }
        .to_owned(),
        // What is left of a second counts as one.
        ejected_for: standing.ejected_for.map(|time| time.as_secs() + 1),
        active: endpoint.state.active(),
        fault: fault(case, cluster, endpoint).map(|error| error.to_string()),
        decision,
    }
}

/// Why nothing is sent to an endpoint, whatever policies say.
fn fault(case: &Case<'_>, cluster: &Cluster, endpoint: &Endpoint) -> Option<ProxyError> {
    match endpoint.transport {
        Transport::Hbone(_) if !(case.certified)(&case.caller.identity) => {
            Some(ProxyError::NoCertificate(case.caller.identity.to_string()))
        }
        Transport::Plain if case.snapshot.here(endpoint).is_none() => match cluster.tls() {
            Some(tls @ ClientTls::IstioMutual) => {
                Some(ProxyError::NeedsTls { address: endpoint.address, mode: tls.mode() })
            }
            _ => None,
        },
        _ => None,
    }
}

/// Puts destinations in, and says what becomes of the call by them.
pub(super) fn settle(case: &Case<'_>, destinations: Vec<DestinationReport>, explanation: &mut Explanation) {
    let used = || destinations.iter().filter(|destination| destination.share > 0.0);
    let passing = used().filter(|destination| destination.passes).count();
    let places: Vec<String> = used().map(|destination| place(destination, used().count())).collect();
    let to = places.join(", ");
    let (outcome, summary) = if passing == used().count() {
        (Outcome::Forwarded, format!("sent to {to}, and allowed"))
    } else {
        let why = used().filter(|destination| !destination.passes).map(|destination| {
            let (outcome, why) = why_not(destination);
            (outcome, format!("{}: {why}", place(destination, 1)))
        });
        let (outcomes, reasons): (Vec<_>, Vec<_>) = why.unzip();
        let reasons = reasons.join("; ");
        let takes_some = passing > 0 || used().any(takes_some);
        match outcomes.first() {
            _ if takes_some => (Outcome::Partly, format!("sent to {to}, and taken in part: {reasons}")),
            Some(Outcome::Refused) => (Outcome::Refused, format!("refused at {reasons}")),
            Some(outcome) => (*outcome, format!("nowhere to send it at {reasons}")),
            None => (Outcome::NoEndpoint, "there is nowhere to send it".to_owned()),
        }
    };
    explanation.passes = outcome == Outcome::Forwarded;
    explanation.outcome = outcome;
    explanation.summary = summary;
    let decisions = || destinations.iter().flat_map(|destination| &destination.decisions);
    if decisions().any(|decision| decision.by == "agent") {
        explanation.notes.push(
            "what agents of other hosts decide is computed from the state in force here; whether they have the same one, and whether their programs answer, is not known here".to_owned(),
        );
    }
    let unknown = case.asked.source_ip.is_none() && case.caller.addresses.is_empty();
    let asking = case.snapshot.mesh.authorization_policies.iter();
    let mut asking_address = asking.clone().filter(|policy| policies::asks_for_addresses(policy));
    let mut asking_token = asking.filter(|policy| policies::asks_for_tokens(policy));
    let selects =
        |name: &str| decisions().any(|decision| decision.policies.iter().any(|policy| policy.policy == name));
    if case.asked.token.is_none() && asking_token.any(|policy| selects(&policies::slashed(&policy.key))) {
        let note = "policies ask who the request's token names: it is explained without one, --token and --claim give it one";
        explanation.notes.push(note.to_owned());
    }
    if unknown && asking_address.any(|policy| selects(&policies::slashed(&policy.key))) {
        explanation.notes.push(
            "policies ask for the address that calls come from, and none is known: give it with --source-ip"
                .to_owned(),
        );
    }
    explanation.destinations = destinations;
}

/// Whether some endpoint takes the call.
fn takes_some(destination: &DestinationReport) -> bool {
    let mut candidates = destination.endpoints.iter().filter(|endpoint| endpoint.share > 0.0);
    candidates.any(|endpoint| endpoint.fault.is_none() && destination.decisions[endpoint.decision].allowed)
}

/// Why a destination does not take every call.
fn why_not(destination: &DestinationReport) -> (Outcome, String) {
    if let Some(fault) = &destination.fault {
        let missing = destination.balancer.is_none();
        let outcome = if missing { Outcome::NoDestination } else { Outcome::NoEndpoint };
        return (outcome, fault.clone());
    }
    let mut reasons: Vec<&str> = Vec::new();
    for endpoint in destination.endpoints.iter().filter(|endpoint| endpoint.share > 0.0) {
        let decision = &destination.decisions[endpoint.decision];
        let why = match &endpoint.fault {
            Some(fault) => fault.as_str(),
            None if !decision.allowed => decision.verdict.as_str(),
            None => continue,
        };
        if !reasons.contains(&why) {
            reasons.push(why);
        }
    }
    (Outcome::Refused, reasons.join(", "))
}

/// A destination as a sentence names it, with its share where it is one of several.
fn place(destination: &DestinationReport, of: usize) -> String {
    let share = if of > 1 { format!("{} ", words::percent(destination.share)) } else { String::new() };
    let port = destination.port.map(|port| format!(" port {port}")).unwrap_or_default();
    let subset = destination.subset.as_ref().map(|subset| format!(" subset {subset}")).unwrap_or_default();
    format!("{share}{}{port}{subset}", destination.service)
}
