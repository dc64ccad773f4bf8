//! `localityLbSetting`.

use std::sync::Arc;

use baremesh_model::destination_rule::{
    Distribute, LocalityPattern, LocalitySetting, PriorityLabel, RegionFailover, Spread,
};
use serde_json::{Map, Value as Json, json};

use super::values::Out;
use crate::diagnostic::{Code, quote};
use crate::format::decode::{At, Decoder, optional};

/// Labels that stand for the locality, by which `failover` decides already.
const TOPOLOGY: [&str; 3] =
    ["topology.kubernetes.io/region", "topology.kubernetes.io/zone", "topology.istio.io/subzone"];

pub(super) fn decode(d: &mut Decoder<'_>, at: &At<'_>) -> Option<LocalitySetting> {
    let fields = d.fields(at)?;
    let enabled = optional(fields.take("enabled"), |at| d.boolean(&at));
    let distribute = optional(fields.take("distribute"), |at| d.each(&at, distribute));
    let regions = optional(fields.take("failover"), |at| d.each(&at, failover));
    let priority = optional(fields.take("failoverPriority"), |at| d.each(&at, priority));
    let (distribute, regions, priority) =
        (distribute?.unwrap_or_default(), regions?.unwrap_or_default(), priority?.unwrap_or_default());
    let fails_over = !regions.is_empty() || !priority.is_empty();
    if fails_over && !distribute.is_empty() {
        let message = "can not simultaneously specify 'distribute' and 'failover' or 'failoverPriority'";
        d.invalid(at, message, "remove one of them");
        return None;
    }
    let topology = priority.iter().find(|label| TOPOLOGY.contains(&&*label.key));
    if let (Some(label), false) = (topology, regions.is_empty()) {
        let message = format!(
            "can not simultaneously set 'failover' and topology label '{}' in 'failoverPriority'",
            label.key
        );
        d.invalid(at, message, "remove one of the two");
        return None;
    }
    let spread = if distribute.is_empty() {
        Spread::Failover { regions, priority }
    } else {
        Spread::Distribute(distribute)
    };
    Some(LocalitySetting { enabled: enabled?, spread })
}

fn pattern(d: &mut Decoder<'_>, at: &At<'_>, text: &str) -> Option<LocalityPattern> {
    LocalityPattern::new(text).map_err(|error| d.invalid(at, error.to_string(), "")).ok()
}

fn distribute(d: &mut Decoder<'_>, at: &At<'_>) -> Option<Distribute> {
    let fields = d.fields(at)?;
    let from = d.required(&fields, "from").and_then(|at| {
        let text = d.text(&at)?;
        pattern(d, &at, text)
    });
    let to = d.required(&fields, "to").and_then(|at| weights(d, &at));
    Some(Distribute { from: from?, to: to? })
}

/// Weights of 1 to 100 that make up 100.
fn weights(d: &mut Decoder<'_>, at: &At<'_>) -> Option<Vec<(LocalityPattern, u32)>> {
    let mut all = Vec::new();
    for entry in d.map(at)? {
        let at = at.entry(entry);
        let to = pattern(d, &at, &entry.key);
        let number = d.integer(&at)?;
        let weight = u32::try_from(number).ok().filter(|weight| (1..=100).contains(weight));
        if weight.is_none() {
            let message = format!("locality lb weight must be in range [1, 100], and is {number}");
            d.invalid(&at, message, "leave out what takes nothing");
        }
        all.push((to?, weight?));
    }
    let total: u32 = all.iter().map(|(_, weight)| weight).sum();
    if total != 100 {
        d.invalid(at, format!("total locality weight {total} != 100"), "let the weights make up 100");
        return None;
    }
    // In one order, whatever the form that they came in kept.
    all.sort();
    Some(all)
}

fn failover(d: &mut Decoder<'_>, at: &At<'_>) -> Option<RegionFailover> {
    let fields = d.fields(at)?;
    let mut side = |key| d.required(&fields, key).and_then(|at| region(d, &at));
    let (from, to) = (side("from"), side("to"));
    let (from, to) = (from?, to?);
    if from == to {
        d.invalid(at, "locality lb failover settings must specify different regions", "");
        return None;
    }
    Some(RegionFailover { from, to })
}

fn region(d: &mut Decoder<'_>, at: &At<'_>) -> Option<Arc<str>> {
    let text = d.text(at)?;
    if text.contains(['*', '/']) {
        let message = format!("locality lb failover region {} should not contain '*' or '/'", quote(text));
        d.invalid(at, message, "name a region: zones and sub-zones fail over by themselves");
        return None;
    }
    Some(text.into())
}

fn priority(d: &mut Decoder<'_>, at: &At<'_>) -> Option<PriorityLabel> {
    let text = d.text(at)?;
    let (key, value) = match text.split_once('=') {
        Some((key, value)) => (key, Some(value.into())),
        None => (text, None),
    };
    if key.is_empty() {
        d.invalid(at, format!("{} names no label", quote(text)), "write `key` or `key=value`");
        return None;
    }
    if matches!(key, "topology.istio.io/network" | "topology.istio.io/cluster" | "kubernetes.io/hostname") {
        let message = format!("{} counts only where workloads carry it as a label", quote(key));
        let help = "the mesh knows region, zone and sub-zone of a workload by its locality, and nothing more";
        d.findings.warning(at.node.span, Code::NoEffect, message, help);
    }
    Some(PriorityLabel { key: key.into(), value })
}

pub(super) fn encode(setting: &LocalitySetting) -> Json {
    let mut out = Out::default();
    out.put_some("enabled", setting.enabled);
    match &setting.spread {
        Spread::Distribute(rules) => {
            let rule = |rule: &Distribute| {
                let to: Map<String, Json> =
                    rule.to.iter().map(|(to, weight)| (to.to_string(), (*weight).into())).collect();
                json!({ "from": rule.from.to_string(), "to": to })
            };
            out.put("distribute", rules.iter().map(rule).collect::<Vec<_>>());
        }
        Spread::Failover { regions, priority } => {
            let region = |rule: &RegionFailover| json!({ "from": &*rule.from, "to": &*rule.to });
            if !regions.is_empty() {
                out.put("failover", regions.iter().map(region).collect::<Vec<_>>());
            }
            let label = |label: &PriorityLabel| match &label.value {
                Some(value) => format!("{}={value}", label.key),
                None => label.key.to_string(),
            };
            if !priority.is_empty() {
                out.put("failoverPriority", priority.iter().map(label).collect::<Vec<_>>());
            }
        }
    }
    out.object()
}
