//! Two resources for the same, of which the first by namespace and name decides where Istio takes the older one.

use std::collections::{BTreeMap, HashMap};

use baremesh_model::destination_rule::{DestinationRule, TrafficPolicy};
use baremesh_model::mesh::Kind;
use baremesh_model::name::{Key, Label};
use baremesh_model::peer_authentication::PeerAuthentication;
use baremesh_model::workload::{Labels, selects};

use super::known::Known;
use super::report::{Place, Report};
use crate::diagnostic::{Code, quote};

const MERGE: &str = "merge the two, or let them be for different ones";

pub(super) fn analyze(known: &Known<'_>, report: &mut Report<'_>) {
    peer_authentications(known, report);
    destination_rules(known, report);
}

/// Of the policies of one level the first decides for a workload.
fn peer_authentications(known: &Known<'_>, report: &mut Report<'_>) {
    let mut spaces: BTreeMap<&Label, Vec<&PeerAuthentication>> = BTreeMap::new();
    for policy in &known.parts.peer_authentications {
        spaces.entry(&policy.key.namespace).or_default().push(policy);
    }
    for (namespace, policies) in spaces {
        let (selecting, wide): (Vec<_>, Vec<_>) =
            policies.into_iter().partition(|policy| policy.selector.is_some());
        // Who loses, to whom; each is told once.
        let mut lost: BTreeMap<&Key, (&PeerAuthentication, &PeerAuthentication)> = BTreeMap::new();
        let mut groups: Vec<Vec<&PeerAuthentication>> = vec![wide];
        let mut alike: HashMap<Option<&Labels>, Vec<&PeerAuthentication>> = HashMap::new();
        selecting.iter().for_each(|policy| alike.entry(policy.selector.as_ref()).or_default().push(policy));
        groups.extend(alike.into_values());
        let of_workload = known.workloads_in(namespace).iter().map(|workload| {
            let is_for = |policy: &&&PeerAuthentication| {
                policy.selector.as_ref().is_some_and(|selector| selects(selector, &workload.labels))
            };
            selecting.iter().filter(is_for).copied().collect::<Vec<_>>()
        });
        groups.extend(of_workload);
        for group in groups {
            let Some((winner, others)) = group.split_first() else { continue };
            let differs =
                |other: &&&PeerAuthentication| (other.mode, &other.ports) != (winner.mode, &winner.ports);
            for loser in others.iter().filter(differs) {
                lost.entry(&loser.key).or_insert((loser, winner));
            }
        }
        for (loser, winner) in lost.into_values() {
            let other = report.place_of(Kind::PeerAuthentication, &winner.key);
            let message = format!("{other} is for the same workloads and decides, being the first by name");
            report.warning(
                &Place::of(Kind::PeerAuthentication, &loser.key).name(),
                Code::OrderDecides,
                message,
                MERGE,
            );
        }
    }
}

/// Rules of one namespace for one host: those for the same callers are one rule, of the others the first counts.
fn destination_rules(known: &Known<'_>, report: &mut Report<'_>) {
    let mut by_host: BTreeMap<(&Label, String), Vec<&DestinationRule>> = BTreeMap::new();
    for rule in &known.parts.destination_rules {
        let host = match Key::resolve(rule.host.as_str(), &rule.key.namespace, &known.parts.config.domain) {
            Ok(key) if rule.host.suffix().is_none() => key.host(&known.parts.config.domain),
            _ => rule.host.to_string(),
        };
        by_host.entry((&rule.key.namespace, host)).or_default().push(rule);
    }
    for rules in by_host.values().filter(|rules| rules.len() > 1) {
        for (index, rule) in rules.iter().enumerate() {
            let before = &rules[..index];
            merged(report, rule, before);
            side_by_side(report, rule, before);
        }
    }
}

fn is_one(a: &DestinationRule, b: &DestinationRule) -> bool {
    a.export_to == b.export_to && a.workload_selector == b.workload_selector
}

/// What a merged rule does not take of this one.
fn merged(report: &mut Report<'_>, rule: &DestinationRule, before: &[&DestinationRule]) {
    let place = Place::of(Kind::DestinationRule, &rule.key);
    let before = || before.iter().filter(|other| is_one(other, rule));
    let default = TrafficPolicy::default();
    if let Some(first) = before().find(|other| other.policy != default)
        && rule.policy != default
        && rule.policy != first.policy
    {
        let other = report.place_of(Kind::DestinationRule, &first.key);
        let message = format!(
            "this policy is not in force: that of {other} for the same host is, being the first by name"
        );
        report.warning(&place.field("trafficPolicy"), Code::OrderDecides, message, MERGE);
    }
    for (index, subset) in rule.subsets.iter().enumerate() {
        let same = |other: &&&DestinationRule| {
            other.subsets.iter().any(|one| one.name == subset.name && one != subset)
        };
        if let Some(first) = before().find(same) {
            let other = report.place_of(Kind::DestinationRule, &first.key);
            let name = quote(&subset.name);
            let message = format!(
                "this subset {name} is not in force: that of {other} for the same host is, being the first by name"
            );
            report.warning(
                &place.field("subsets").item(index).field("name"),
                Code::OrderDecides,
                message,
                MERGE,
            );
        }
    }
}

/// Rules for all callers of their own namespace that are exported differently.
fn side_by_side(report: &mut Report<'_>, rule: &DestinationRule, before: &[&DestinationRule]) {
    if rule.workload_selector.is_some() {
        return;
    }
    let rival = before.iter().find(|other| other.workload_selector.is_none() && !is_one(other, rule));
    if let Some(first) = rival {
        let other = report.place_of(Kind::DestinationRule, &first.key);
        let message = format!(
            "{other} is for the same host, and holds for callers that both are for, being the first by name"
        );
        report.warning(
            &Place::of(Kind::DestinationRule, &rule.key).field("host"),
            Code::OrderDecides,
            message,
            MERGE,
        );
    }
}
