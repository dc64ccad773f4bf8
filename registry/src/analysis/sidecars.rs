//! Sidecars: several for the same workloads, for workloads that are not there, and `ingress` that nothing comes in by.

use std::collections::{BTreeMap, BTreeSet};

use baremesh_model::mesh::Kind;
use baremesh_model::name::Key;
use baremesh_model::service::{Protocol, Service};
use baremesh_model::sidecar::{Ingress, Sidecar};
use baremesh_model::workload::{Labels, Workload, selects};

use super::known::Known;
use super::report::{Place, Report};
use crate::diagnostic::{Code, quote};

pub(super) fn analyze(known: &Known<'_>, report: &mut Report<'_>) {
    without_selector(known, report);
    // What could not be read may be what a Sidecar is for.
    if !known.is_whole() {
        return;
    }
    selecting(known, report);
    let served = known.served();
    for sidecar in &known.parts.sidecars {
        ingress(known, report, sidecar, &served);
    }
}

/// Of several that are for a whole namespace the first holds.
fn without_selector(known: &Known<'_>, report: &mut Report<'_>) {
    let mut spaces: BTreeMap<_, Vec<&Key>> = BTreeMap::new();
    for sidecar in known.parts.sidecars.iter().filter(|sidecar| sidecar.selector.is_none()) {
        spaces.entry(&sidecar.key.namespace).or_default().push(&sidecar.key);
    }
    for keys in spaces.values().filter(|keys| keys.len() > 1) {
        for key in keys {
            let others = others(report, key, keys);
            let message = format!(
                "{others} of the namespace has no `workloadSelector` either: {}",
                decides(keys[0], key)
            );
            let help = "merge them, or let all but one select workloads";
            report.error(
                &Place::of(Kind::Sidecar, key).name(),
                Code::SidecarsWithoutSelectors,
                message,
                help,
            );
        }
    }
}

/// Those that select a workload together, and those that select none.
fn selecting(known: &Known<'_>, report: &mut Report<'_>) {
    let mut met: BTreeMap<&Key, (Vec<&Key>, &Workload)> = BTreeMap::new();
    let mut idle: Vec<(&Sidecar, &Labels)> = Vec::new();
    let mut of_workload: BTreeMap<&Key, (Vec<&Key>, &Workload)> = BTreeMap::new();
    for sidecar in &known.parts.sidecars {
        let Some(selector) = &sidecar.selector else { continue };
        let chosen = known.workloads_in(&sidecar.key.namespace).iter();
        let mut chosen = chosen.filter(|workload| selects(selector, &workload.labels)).peekable();
        if chosen.peek().is_none() {
            idle.push((sidecar, selector));
        }
        for workload in chosen {
            of_workload.entry(&workload.key).or_insert((Vec::new(), workload)).0.push(&sidecar.key);
        }
    }
    for (keys, workload) in of_workload.into_values().filter(|(keys, _)| keys.len() > 1) {
        for key in &keys {
            // Each is told once, with the first workload.
            met.entry(key).or_insert((keys.clone(), workload));
        }
    }
    for (key, (keys, workload)) in met {
        let message = format!(
            "{} selects the workload {} too: {}",
            others(report, key, &keys),
            quote(&workload.key.to_string()),
            decides(keys[0], key)
        );
        let help = "let each workload be selected by one";
        report.error(&Place::of(Kind::Sidecar, key).name(), Code::SidecarsOverlap, message, help);
    }
    for (sidecar, selector) in idle {
        let labels: Vec<String> = selector.iter().map(|(key, value)| format!("{key}={value}")).collect();
        let message = format!("no workload of the namespace carries {}", quote(&labels.join(",")));
        let place = Place::of(Kind::Sidecar, &sidecar.key).field("workloadSelector").field("labels");
        let help = "compare the labels with those of `baremesh get WorkloadEntry`";
        report.error(&place, Code::MissingReference, message, help);
    }
}

/// The others of some, with their places.
fn others(report: &Report<'_>, key: &Key, all: &[&Key]) -> String {
    let others = all.iter().filter(|other| **other != key);
    others.map(|other| report.place_of(Kind::Sidecar, other)).collect::<Vec<_>>().join(", ")
}

fn decides(first: &Key, key: &Key) -> &'static str {
    if first == key {
        "this one holds, being the first by name"
    } else {
        "this one does not hold, not being the first by name"
    }
}

/// Entries of `ingress` that no workload has a port for.
fn ingress(
    known: &Known<'_>,
    report: &mut Report<'_>,
    sidecar: &Sidecar,
    served: &BTreeMap<&Key, Vec<&Service>>,
) {
    let Some(entries) = &sidecar.ingress else { return };
    let is_roots = sidecar.selector.is_none() && sidecar.key.namespace == known.parts.config.root_namespace;
    let of_all: Vec<&Workload>;
    let workloads = if is_roots {
        of_all = known.parts.workloads.values().map(|workload| &**workload).collect();
        &of_all
    } else {
        known.workloads_in(&sidecar.key.namespace)
    };
    let is_for = |workload: &&&Workload| {
        sidecar.selector.as_ref().is_none_or(|selector| selects(selector, &workload.labels))
    };
    let mut ports: BTreeSet<(u16, Protocol)> = BTreeSet::new();
    for workload in workloads.iter().filter(is_for) {
        let services = served.get(&workload.key).into_iter().flatten();
        let all = services.flat_map(|service| &service.ports);
        ports.extend(all.map(|port| (workload.endpoint(port).port(), port.protocol)));
    }
    if ports.is_empty() {
        return;
    }
    for (index, entry) in entries.iter().enumerate() {
        let place = Place::of(Kind::Sidecar, &sidecar.key).field("ingress").item(index).field("port");
        port(report, &place, *entry, &ports);
    }
}

fn port(report: &mut Report<'_>, place: &Place, entry: Ingress, ports: &BTreeSet<(u16, Protocol)>) {
    if ports.iter().any(|(port, protocol)| entry.is_of(*port, *protocol)) {
        return;
    }
    let number = entry.port;
    match ports.iter().find(|(port, _)| *port == number) {
        Some((_, protocol)) => {
            let message = format!("port {number} speaks {}: nobody is let in by this entry", protocol.name());
            let help = "leave `protocol` out, or write that of the Service";
            report.error(&place.field("protocol"), Code::NobodyLetIn, message, help);
        }
        None => {
            let message =
                format!("no workload of the Sidecar serves port {number}: the entry lets nobody in");
            let all: BTreeSet<String> = ports.iter().map(|(port, _)| port.to_string()).collect();
            let help = format!("they serve {}", all.into_iter().collect::<Vec<_>>().join(", "));
            report.warning(&place.field("number"), Code::PortNotServed, message, &help);
        }
    }
}
