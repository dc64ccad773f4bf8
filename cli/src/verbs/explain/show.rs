//! An explanation as people read it: the call and its outcome, the routes up to the one that takes it, and then each place
//! where it may go.

use std::fmt::Write as _;

use baremesh_agent::admin::report::explain::{
    DecisionReport, DestinationReport, EffectReport, EndpointStandingReport, Explanation, PolicyReport,
    RouteReport,
};

use crate::output::{printable, table};

/// The whole answer.
pub(super) fn text(explanation: &Explanation) -> String {
    let mut text = String::new();
    head(explanation, &mut text);
    routes(explanation, &mut text);
    for destination in &explanation.destinations {
        text.push('\n');
        self::destination(destination, &mut text);
    }
    if !explanation.notes.is_empty() {
        text.push('\n');
    }
    for note in &explanation.notes {
        line(&mut text, 0, &format!("note: {note}"));
    }
    text
}

/// One line; what others wrote in it does not steer the terminal.
fn line(text: &mut String, indent: usize, said: &str) {
    // Writing to a text does not fail.
    _ = writeln!(text, "{:indent$}{}", "", printable(said).trim_end());
}

fn head(explanation: &Explanation, text: &mut String) {
    let request = &explanation.request;
    let method = request.method.as_ref().map(|method| format!("{method} ")).unwrap_or_default();
    line(text, 0, &format!("{method}{}", request.url));
    let seen = request.source_ip.map(|address| format!(", seen as {address}")).unwrap_or_default();
    let who = request.service.as_deref().unwrap_or("the host itself");
    line(text, 2, &format!("from     {who} ({}){seen}", request.identity));
    if let Some(called) = &explanation.service {
        line(text, 2, &format!("for      {} port {} ({})", called.host, called.port, called.protocol));
    }
    line(text, 2, &format!("outcome  {}", explanation.summary));
    if let Some(answer) = &explanation.answer {
        let said = match answer.status {
            Some(status) => format!("{status} by the agent"),
            None => "a reset".to_owned(),
        };
        line(text, 2, &format!("answer   {said} (flags {}, {})", answer.flags, answer.details));
    }
}

fn routes(explanation: &Explanation, text: &mut String) {
    let Some(service) = &explanation.virtual_service else { return };
    text.push('\n');
    if explanation.routes.is_empty() {
        return line(text, 0, &format!("VirtualService {service} has no route for such calls"));
    }
    line(text, 0, &format!("Routes of VirtualService {service}, the first that matches takes it:"));
    let named = |route: &RouteReport| match &route.name {
        Some(name) => format!("{} {name}", route.route),
        None => route.route.clone(),
    };
    let width = explanation.routes.iter().map(|route| named(route).chars().count()).max().unwrap_or(0);
    for route in &explanation.routes {
        let name = named(route);
        let said = match route.matches.last() {
            _ if route.taken && route.matches.is_empty() => "takes it, as it takes everything".to_owned(),
            _ if route.taken => match route.matches.len() {
                1 => "takes it".to_owned(),
                number => format!("takes it, by its match {number}"),
            },
            _ => {
                let blocks = route.matches.iter().map(|block| {
                    let unmet = block.unmet.as_deref().unwrap_or("nothing");
                    let name = block.name.as_ref().map(|name| format!("{name}: ")).unwrap_or_default();
                    format!("{name}{unmet}, not {}", block.found.as_deref().unwrap_or("this"))
                });
                format!("asks for {}", blocks.collect::<Vec<_>>().join("; or "))
            }
        };
        line(text, 2, &format!("{} {name:width$}  {said}", if route.taken { '>' } else { '-' }));
    }
    effects(&explanation.effects, 4, text);
}

fn effects(effects: &[EffectReport], indent: usize, text: &mut String) {
    let width = effects.iter().map(|effect| effect.field.chars().count()).max().unwrap_or(0);
    for EffectReport { field, effect } in effects {
        line(text, indent, &format!("{field:width$}  {effect}"));
    }
}

fn destination(destination: &DestinationReport, text: &mut String) {
    let port = destination.port.map(|port| format!(" port {port}")).unwrap_or_default();
    let subset = destination.subset.as_ref().map(|subset| format!(" subset {subset}")).unwrap_or_default();
    let mut about = Vec::new();
    about.extend(destination.balancer.clone());
    if !destination.destination_rules.is_empty() {
        about.push(format!("DestinationRule {}", destination.destination_rules.join(" and ")));
    }
    if let Some(address) = destination.hashed_to {
        about.push(format!("the key leads to {address}"));
    }
    let about = if about.is_empty() { String::new() } else { format!("  ({})", about.join("; ")) };
    let share = percent(destination.share);
    line(text, 0, &format!("{share} to {}{port}{subset}{about}", destination.service));
    if let Some(fault) = &destination.fault {
        line(text, 2, fault);
    }
    for endpoint in &destination.out_of_reach {
        line(text, 2, &format!("out of reach: {endpoint}"));
    }
    effects(&destination.effects, 2, text);
    let decisions = destination.decisions.len();
    if !destination.endpoints.is_empty() {
        let rows = destination.endpoints.iter().map(|endpoint| row(endpoint, decisions)).collect();
        let header = &HEADER[..HEADER.len() - usize::from(decisions < 2)];
        table(header, rows, "").lines().for_each(|row| line(text, 2, row));
    }
    for endpoint in &destination.endpoints {
        if let Some(fault) = &endpoint.fault {
            line(text, 2, &format!("{}: {fault}", endpoint.workload));
        }
    }
    for (index, decision) in destination.decisions.iter().enumerate() {
        let number = if decisions > 1 { format!("{}. ", index + 1) } else { String::new() };
        self::decision(&number, decision, text);
    }
}

/// Which decision is an endpoint's is only said where there are several.
const HEADER: [&str; 9] =
    ["SHARE", "WORKLOAD", "ADDRESS", "TRANSPORT", "STATE", "PRIORITY", "WEIGHT", "IN FLIGHT", "POLICY"];

fn row(endpoint: &EndpointStandingReport, decisions: usize) -> Vec<String> {
    let state = match endpoint.ejected_for {
        Some(seconds) => format!("{} ({seconds} s)", endpoint.health),
        None => endpoint.health.clone(),
    };
    let priority = match endpoint.locality.as_str() {
        "" => endpoint.priority.to_string(),
        locality => format!("{} ({locality})", endpoint.priority),
    };
    let mut cells = vec![
        percent(endpoint.share),
        endpoint.workload.clone(),
        endpoint.address.to_string(),
        match &endpoint.network {
            Some(network) => format!("{} through {network}", endpoint.transport),
            None => endpoint.transport.clone(),
        },
        state,
        priority,
        endpoint.weight.to_string(),
        endpoint.active.to_string(),
    ];
    cells.extend((decisions > 1).then(|| format!("{}.", endpoint.decision + 1)));
    cells
}

fn decision(number: &str, decision: &DecisionReport, text: &mut String) {
    let what = if decision.allowed { "allowed" } else { "refused" };
    let by = match decision.by.as_str() {
        "agent" => " by the endpoint's agent",
        "this_agent" => " by this agent",
        _ => "",
    };
    line(text, 2, &format!("{number}{what}{by}: {}", decision.verdict));
    for asks in &decision.asks {
        line(text, 4, &format!("first {asks}, which must allow it"));
    }
    if let Some(mtls) = &decision.mtls {
        line(text, 4, &format!("mTLS {} ({})", mtls.mode, mtls.from));
    }
    if let Some(token) = &decision.token {
        line(text, 4, &format!("token {token}"));
    }
    for limit in &decision.rate_limits {
        line(text, 4, &format!("RateLimit {limit}"));
    }
    let named = |policy: &PolicyReport| match policy.dry_run {
        true => format!("{} (dry run)", policy.policy),
        false => policy.policy.clone(),
    };
    let width = decision.policies.iter().map(|policy| named(policy).chars().count()).max().unwrap_or(0);
    for policy in &decision.policies {
        line(text, 4, &format!("{:5} {:width$}  {}", policy.action, named(policy), rules(policy)));
    }
}

fn rules(policy: &PolicyReport) -> String {
    if let Some(rule) = policy.matched_rule {
        return format!("rule {rule} matches");
    }
    let unmet = policy.unmet.iter().flatten().enumerate();
    let unmet: Vec<_> = unmet.map(|(index, unmet)| format!("{}) {unmet}", index + 1)).collect();
    match unmet.len() {
        0 => "has no rules, and matches nothing".to_owned(),
        _ => format!("no rule matches: {}", unmet.join("; ")),
    }
}

/// A share, to a tenth.
fn percent(share: f64) -> String {
    format!("{} %", (share * 10.0).round() / 10.0)
}
