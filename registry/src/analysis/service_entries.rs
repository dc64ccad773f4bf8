//! ServiceEntries: hosts that lead somewhere, by protocols on which those who share a host agree.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use baremesh_model::mesh::Kind;
use baremesh_model::name::Key;
use baremesh_model::service::Protocol;
use baremesh_model::service_entry::{Endpoints, Resolution, ServiceEntry};
use baremesh_model::workload::selects;

use super::known::Known;
use super::report::{Place, Report};
use crate::diagnostic::{Code, quote};

pub(super) fn analyze(known: &Known<'_>, report: &mut Report<'_>) {
    for entry in known.parts.service_entries.values() {
        addresses(report, entry);
        leads_nowhere(known, report, entry);
        virtual_addresses(known, report, entry);
    }
    protocols(known, report);
}

fn place(entry: &ServiceEntry) -> Place {
    Place::of(Kind::ServiceEntry, &entry.key)
}

/// Bytes say nothing of the host that is meant: without an address of its own it is reached at a virtual one alone.
fn addresses(report: &mut Report<'_>, entry: &ServiceEntry) {
    if !entry.addresses.is_empty() || !entry.assigned.is_empty() {
        return;
    }
    let says_nothing = |protocol| matches!(protocol, Protocol::Tcp | Protocol::Auto);
    let Some(index) = entry.ports.iter().position(|port| says_nothing(port.protocol)) else { return };
    let reached = match entry.resolution {
        Resolution::None => "nothing tells connections to its hosts from others",
        _ => "its hosts are reached by name alone, where the agent answers DNS",
    };
    let message =
        format!("port {} carries bytes, and the entry has no addresses: {reached}", entry.ports[index].port);
    let at = place(entry).field("ports").item(index);
    report.warning(&at, Code::AddressesRequired, message, "set `addresses`, or the port's `protocol`");
}

fn leads_nowhere(known: &Known<'_>, report: &mut Report<'_>, entry: &ServiceEntry) {
    if entry.ports.is_empty() {
        let help = "add `ports`";
        report.warning(&place(entry), Code::LeadsNowhere, "it has no ports: nothing is reached".into(), help);
        return;
    }
    let (field, message, help) = match &entry.endpoints {
        Endpoints::Listed(listed) if listed.is_empty() && entry.resolution == Resolution::Static => {
            ("resolution", "STATIC, and there are no endpoints", "list `endpoints`")
        }
        Endpoints::Selected(labels) if known.is_whole() => {
            let workloads = known.workloads_in(&entry.key.namespace);
            if workloads.iter().any(|workload| selects(labels, &workload.labels)) {
                return;
            }
            ("workloadSelector", "no WorkloadEntry of the namespace has these labels", "compare the labels")
        }
        _ => return,
    };
    report.warning(&place(entry).field(field), Code::LeadsNowhere, message.into(), help);
}

fn virtual_addresses(known: &Known<'_>, report: &mut Report<'_>, entry: &ServiceEntry) {
    let ranges = &known.parts.config.virtual_ranges;
    for address in entry.assigned.values().flatten().filter(|address| !ranges.contains(**address)) {
        let message = format!("{address} lies outside the mesh's virtual ranges and has no effect");
        let help = "leave it out: one is assigned";
        report.warning(&place(entry).field("virtualAddresses"), Code::NoEffect, message, help);
    }
}

/// What several entries say of one host and port, for callers who see both.
fn protocols(known: &Known<'_>, report: &mut Report<'_>) {
    type Stated<'p> = (&'p Arc<ServiceEntry>, Protocol);
    let mut by_port: BTreeMap<(Arc<str>, u16), Vec<Stated<'_>>> = BTreeMap::new();
    for entry in known.parts.service_entries.values() {
        for host in entry.host_names() {
            for port in &entry.ports {
                let key = (Arc::clone(&host), port.port.get());
                by_port.entry(key).or_default().push((entry, port.protocol));
            }
        }
    }
    let mut said: BTreeSet<&Key> = BTreeSet::new();
    for ((host, port), stated) in &by_port {
        for (entry, protocol) in stated {
            let differs =
                |other: &&Stated<'_>| other.1 != *protocol && entry.export_to.overlaps(&other.0.export_to);
            let Some((other, theirs)) = stated.iter().find(differs) else { continue };
            if !said.insert(&entry.key) {
                continue;
            }
            let message = format!(
                "port {port} of {} speaks {protocol} here and {theirs} in {}",
                quote(host),
                report.place_of(Kind::ServiceEntry, &other.key)
            );
            let help = "agree on one: the first by namespace and name decides within a namespace";
            report.warning(&place(entry).name(), Code::ProtocolsDiffer, message, help);
        }
    }
}
