//! Reports about the capture rules, for people.

use baremesh_agent::admin::report::capture::{CaptureReport, ChangeReport, FlowReport, PlanReport};

use crate::output::table;

/// The open connections of a plan, as comments: the rules before them stay what `nft -f` takes.
pub(super) fn flows(plan: &PlanReport) -> String {
    let row = |flow: &FlowReport| {
        let becomes = match flow.under_the_rules.as_str() {
            "ended" => "it is reset",
            _ => "it goes on past the agent, in plaintext",
        };
        let service = flow.service.clone().unwrap_or_default();
        vec![flow.from.to_string(), flow.to.to_string(), service, flow.uid.to_string(), becomes.to_owned()]
    };
    let rows = plan.flows.iter().map(row).collect();
    let mut text = match &plan.flows_unknown {
        Some(reason) => format!("open connections could not be listed: {reason}"),
        None if plan.flows.is_empty() => "no open connection is from before the capture".to_owned(),
        None => format!(
            "open connections from before the capture:\n{}",
            table(&["FROM", "TO", "SERVICE", "UID", "WHAT BECOMES OF IT"], rows, "")
        ),
    };
    if plan.flows_left_out > 0 {
        text.push_str(&format!("\n{} more are not listed", plan.flows_left_out));
    }
    text.lines().map(|line| format!("# {line}\n")).collect()
}

/// What a change of the rules came to.
pub(super) fn change(report: &ChangeReport) -> String {
    let mut text = match report.change.as_str() {
        "none" => "the rules stand: nothing was to be changed".to_owned(),
        "elements" => {
            format!("the rules stand: {} elements came, {} went", report.added, report.removed)
        }
        "held" => "the agent knows no state of the mesh yet: the rules for a gone agent stand until it does"
            .to_owned(),
        _ => "the rules are in place".to_owned(),
    };
    if let Some(reason) = &report.without_ipv6 {
        text.push_str(&format!("\nvirtual IPv6 addresses are not reachable: {reason}"));
    }
    if let Some(seconds) = report.taken_back_after_seconds {
        text.push_str(&format!("\nthey are taken back in {seconds} s unless they are confirmed"));
    }
    text
}

/// What stands.
pub(super) fn status(report: &CaptureReport) -> String {
    let off = report.agent.as_deref() == Some("off");
    let word = match (report.state.as_str(), off) {
        ("missing", true) => "off: the agent was told to place none (`capture.enabled`, `capture remove`)",
        ("in-place", true) => "those of an agent before this one, which was told to place none",
        ("in-place", false) => "in place",
        ("gone", _) if report.agent.is_some() => {
            "those for a gone agent: closed services are refused until the agent has placed its own"
        }
        ("gone", _) => "the agent is gone: its closed services are refused until it is back",
        (state, _) => state,
    };
    let mut text = format!("the capture rules: {word}\n");
    report.differences.iter().for_each(|difference| text.push_str(&format!("  {difference}\n")));
    if report.unconfirmed {
        text.push_str("  a change awaits its confirmation: baremesh capture confirm\n");
    }
    let row = |(name, counter): (&String, &baremesh_agent::admin::report::capture::CounterReport)| {
        vec![name.clone(), counter.packets.to_string(), counter.bytes.to_string()]
    };
    text + &table(&["COUNTER", "PACKETS", "BYTES"], report.counters.iter().map(row).collect(), "")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(flows: Vec<FlowReport>) -> PlanReport {
        PlanReport { rules: String::new(), flows, flows_left_out: 0, flows_unknown: None }
    }

    #[test]
    fn whatever_is_said_of_open_connections_is_a_comment() {
        let flow = FlowReport {
            direction: "incoming".to_owned(),
            service: Some("orders.shop".to_owned()),
            from: ([10, 0, 0, 9], 4000).into(),
            to: ([10, 0, 0, 1], 8080).into(),
            uid: 7,
            under_the_rules: "ended".to_owned(),
        };
        let refused = PlanReport { flows_unknown: Some("one\ntwo".to_owned()), ..plan(vec![]) };
        for plan in [plan(vec![]), PlanReport { flows_left_out: 3, ..plan(vec![flow]) }, refused] {
            let text = flows(&plan);
            assert!(text.lines().count() > 0 && text.lines().all(|line| line.starts_with("# ")), "{text}");
        }
    }

    #[test]
    fn changes_are_told_in_sentences() {
        let report = |change: &str, seconds| ChangeReport {
            change: change.to_owned(),
            added: 2,
            removed: 1,
            without_ipv6: None,
            taken_back_after_seconds: seconds,
        };
        let check = |change: &str, seconds, expected: &str| {
            assert_eq!(self::change(&report(change, seconds)), expected);
        };
        check("none", None, "the rules stand: nothing was to be changed");
        check("elements", None, "the rules stand: 2 elements came, 1 went");
        check(
            "replaced",
            Some(60),
            "the rules are in place\nthey are taken back in 60 s unless they are confirmed",
        );
    }
}
