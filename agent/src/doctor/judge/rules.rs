//! The capture rules, and rules of others that are in their way.

use crate::admin::report::capture::CaptureReport;
use crate::admin::report::doctor::RestoredReport;
use crate::capture::ROUTES_ALONE;
use crate::doctor::code::Code;
use crate::doctor::look::firewall::{Action, Chain, Hook};
use crate::doctor::{Check, Finding};

/// The priority of the agent's chains that redirect.
const OURS: i64 = -105;
/// Somebody else's change of the rules is worth a word for so long, in seconds.
const RECENT: u64 = 3600;

/// Whether the agent is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Agent {
    /// It answers.
    Runs,
    /// It does not.
    Gone,
}

/// The agent's own rules and routes.
pub fn own(report: &CaptureReport, restored: Option<&RestoredReport>, agent: Agent) -> Check {
    let mut check = Check::new("rules");
    let mode = report.agent.as_deref().unwrap_or("no agent");
    check.seen = format!("{} ({mode}), {} routes of virtual ranges", report.state, report.routes.len());
    let differences = report.differences.join("; ");
    match (report.state.as_str(), report.agent.as_deref()) {
        ("in-place", Some("trial")) => {
            check.found(Code::RulesOff, "they are on trial, and take themselves back");
        }
        ("in-place", _) => {}
        ("missing", Some("off")) => check.found(Code::RulesOff, "capture is off, and there are no rules"),
        // Without an agent nobody expects them.
        ("missing", None) if agent == Agent::Gone => {}
        ("missing", _) => check.found(Code::RulesMissing, "the table `inet baremesh` is not there"),
        ("altered", _) if differences == ROUTES_ALONE => check.found(Code::RulesMissing, differences),
        ("gone", _) => check.found(Code::RulesGone, "the table has the rules for a gone agent"),
        (_, _) if report.routes.is_empty() && differences.contains("routes") => {
            check.found(Code::RouteMissing, differences);
        }
        (_, _) => check.found(Code::RulesAltered, differences),
    }
    if let Some(restored) = restored.filter(|restored| restored.seconds < RECENT) {
        let by = restored.by.as_deref().unwrap_or("somebody");
        let said = format!(
            "{} times since the agent began, last {} s ago by {by}: {}",
            restored.times, restored.seconds, restored.found
        );
        check.found(Code::RulesRestored, said);
    }
    check
}

/// Rules of others. `hbone` is the port of tunnels.
pub fn of_others(chains: &[Chain], hbone: u16) -> Check {
    let mut check = Check::new("firewall");
    let hooks = chains.iter().filter(|chain| chain.hook.is_some()).count();
    check.seen = format!("{hooks} chains of others");
    for chain in chains {
        let Some(hook) = &chain.hook else { continue };
        check.findings.extend(redirects(chain, hook, chains));
        check.findings.extend(drops(chain, hook, chains, hbone));
    }
    check
}

/// The first chain that translates a connection decides, and one that hands packets to another socket does in any case.
fn redirects(chain: &Chain, hook: &Hook, chains: &[Chain]) -> Option<Finding> {
    let is_before = hook.priority < OURS && matches!(hook.at.as_str(), "output" | "prerouting");
    let redirecting = within(chain, chains)
        .find(|chain| chain.rules.iter().any(|rule| rule.action == Action::Redirect && !rule.is_narrow))?;
    let said = format!("the chain `{}` at priority {} of {}", redirecting.name, hook.priority, hook.at);
    is_before.then(|| {
        Finding::new(Code::ForeignRedirect, said).with_remedy(format!(
            "`nft -a list chain {}` shows the rule: remove it, or give the chain a priority above {OURS}",
            redirecting.name
        ))
    })
}

/// Whether tunnels are dropped: by a rule that names their port, or by a policy that no rule excepts them from.
fn drops(chain: &Chain, hook: &Hook, chains: &[Chain], hbone: u16) -> Option<Finding> {
    if hook.kind != "filter" || !matches!(hook.at.as_str(), "input" | "output" | "prerouting") {
        return None;
    }
    let mut accepted = false;
    for one in within(chain, chains) {
        for rule in &one.rules {
            match rule.action {
                Action::Drop if rule.names(hbone) && !accepted => {
                    let said = format!("a rule of the chain `{}` drops TCP port {hbone}", one.name);
                    return Some(Finding::new(Code::FirewallDrops, said).with_remedy(format!(
                        "`nft -a list chain {}` shows the rule: have it let port {hbone} pass between the hosts of the mesh",
                        one.name
                    )));
                }
                // Where a rule leads elsewhere, that chain is looked at as well.
                Action::Accept if rule.may_match(hbone) && !rule.is_narrow => accepted = true,
                _ => {}
            }
        }
    }
    let said =
        format!("the chain `{}` drops what no rule accepts, and none accepts TCP port {hbone}", chain.name);
    (hook.drops && !accepted).then(|| {
        Finding::new(Code::FirewallDrops, said).with_remedy(format!(
            "`nft add rule {} tcp dport {hbone} accept`, and the same where that firewall is set up",
            chain.name
        ))
    })
}

/// A base chain, and those of its table that are no base chains: what it may jump to.
fn within<'a>(chain: &'a Chain, chains: &'a [Chain]) -> impl Iterator<Item = &'a Chain> {
    let others = chains.iter().filter(|other| other.table == chain.table && other.hook.is_none());
    let jumps = chain.rules.iter().any(|rule| rule.action == Action::Jump);
    std::iter::once(chain).chain(others.filter(move |_| jumps))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::look::firewall::Rule;

    fn report(state: &str, agent: Option<&str>, differences: &[&str], routes: usize) -> CaptureReport {
        CaptureReport {
            state: state.to_owned(),
            agent: agent.map(str::to_owned),
            differences: differences.iter().map(|text| (*text).to_owned()).collect(),
            counters: Default::default(),
            elements: Default::default(),
            routes: vec!["240.240.0.0/16".to_owned(); routes],
            unconfirmed: false,
        }
    }

    #[test]
    fn tells_how_the_own_rules_stand() {
        let check = |report: CaptureReport, agent, expected: &[Code]| {
            let check = own(&report, None, agent);
            let codes: Vec<_> = check.findings.iter().map(|finding| finding.code).collect();
            assert_eq!(codes, expected, "{report:?}");
        };
        check(report("in-place", Some("keeps"), &[], 2), Agent::Runs, &[]);
        check(report("in-place", Some("trial"), &[], 2), Agent::Runs, &[Code::RulesOff]);
        check(report("missing", Some("keeps"), &[], 0), Agent::Runs, &[Code::RulesMissing]);
        check(report("missing", Some("off"), &[], 0), Agent::Runs, &[Code::RulesOff]);
        check(report("missing", None, &[], 0), Agent::Gone, &[]);
        check(report("gone", None, &[], 0), Agent::Gone, &[Code::RulesGone]);
        check(
            report("altered", Some("keeps"), &["chain a is missing"], 2),
            Agent::Runs,
            &[Code::RulesAltered],
        );
        check(report("altered", Some("keeps"), &[ROUTES_ALONE], 2), Agent::Runs, &[Code::RulesMissing]);
        let routes = "the local routes of the virtual addresses are missing";
        check(report("altered", Some("keeps"), &[routes], 0), Agent::Runs, &[Code::RouteMissing]);
        let restored = |seconds| RestoredReport { times: 2, seconds, found: "x".to_owned(), by: None };
        let stands = report("in-place", Some("keeps"), &[], 2);
        assert_eq!(own(&stands, Some(&restored(5)), Agent::Runs).findings.len(), 1);
        assert_eq!(own(&stands, Some(&restored(RECENT)), Agent::Runs).findings.len(), 0);
    }

    fn chain(
        name: &str,
        hook: Option<(&str, &str, i64, bool)>,
        rules: &[(Action, Option<u16>, bool)],
    ) -> Chain {
        let hook = hook.map(|(kind, at, priority, drops)| Hook {
            kind: kind.to_owned(),
            at: at.to_owned(),
            priority,
            drops,
        });
        let rule = |(action, port, is_narrow): &(Action, Option<u16>, bool)| Rule {
            action: *action,
            ports: port.map(|port| vec![(port, port)]),
            is_narrow: *is_narrow,
        };
        Chain {
            name: format!("inet fw {name}"),
            table: "inet fw".to_owned(),
            hook,
            rules: rules.iter().map(rule).collect(),
        }
    }

    #[test]
    fn tells_what_is_in_the_way() {
        use Action::{Accept, Drop, Jump, Redirect};
        let check = |chains: &[Chain], expected: &[Code]| {
            let check = of_others(chains, 15008);
            let codes: Vec<_> = check.findings.iter().map(|finding| finding.code).collect();
            assert_eq!(codes, expected, "{chains:?}");
        };
        let nat = |priority| Some(("nat", "output", priority, false));
        check(&[chain("a", nat(-100), &[(Redirect, Some(80), false)])], &[]);
        check(&[chain("a", nat(-150), &[(Redirect, Some(80), false)])], &[Code::ForeignRedirect]);
        check(&[chain("a", nat(-150), &[(Accept, None, false)])], &[]);
        let elsewhere = chain("b", None, &[(Redirect, None, false)]);
        check(&[chain("a", nat(-150), &[(Jump, None, false)]), elsewhere.clone()], &[Code::ForeignRedirect]);
        check(&[chain("a", nat(-150), &[]), elsewhere], &[]);
        let input = |drops| Some(("filter", "input", 0, drops));
        let answers = (Accept, None, true);
        check(&[chain("a", input(false), &[])], &[]);
        check(&[chain("a", input(false), &[(Drop, Some(15008), false)])], &[Code::FirewallDrops]);
        check(&[chain("a", input(false), &[(Drop, Some(22), false)])], &[]);
        check(&[chain("a", input(true), &[answers, (Accept, Some(22), false)])], &[Code::FirewallDrops]);
        check(&[chain("a", input(true), &[answers, (Accept, Some(15008), false)])], &[]);
        check(&[chain("a", input(true), &[answers, (Accept, None, false)])], &[]);
        let ours = chain("b", None, &[(Accept, Some(15008), false)]);
        check(&[chain("a", input(true), &[answers, (Jump, None, false)]), ours], &[]);
        check(&[chain("a", Some(("filter", "forward", 0, true)), &[])], &[]);
        let first = [(Accept, Some(15008), false), (Drop, Some(15008), false)];
        check(&[chain("a", input(true), &first)], &[]);
    }
}
