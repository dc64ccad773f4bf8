//! What a set of resources does not do although each of them is taken: a route to a host that is not there, a policy that
//! selects nothing, a rule that another hides. Every analyser is a pure function of the set; a finding has the place of
//! the field that it is about. Codes are Istio's where Istio's analysers find the same; what only concerns kinds that are
//! refused (Telemetry) comes with them.
//!
//! Modules in the order in which they run.

use std::collections::BTreeSet;

use baremesh_model::mesh::ResourceId;
use baremesh_model::service_entry::hosts;

use crate::diagnostic::{Code, Diagnostic};
use crate::format::Parsed;
use crate::resource::{Located, Resource};
use crate::set::{MAX_SET_FINDINGS, assemble, canonical_id, gather, root_namespace};

/// What there is to refer to: services, endpoints, rules.
mod known;
/// Findings with their places.
mod report;

/// Destinations of routes: hosts, ports, subsets.
mod destinations;
/// Hosts that VirtualServices are for.
mod routed_hosts;
/// Routes and blocks that take nothing.
mod matches;
/// DestinationRules.
mod rules;
/// AuthorizationPolicies and PeerAuthentications.
mod policies;
/// Two resources where one decides.
mod order;
/// Sidecars.
mod sidecars;
/// WorkloadEntries.
mod workloads;
/// ServiceEntries.
mod service_entries;
/// Gateways.
mod gateways;
/// Older forms of fields.
mod deprecated;

#[cfg(test)]
mod tests;

use known::Known;
use report::Report;

/// Analyses resources. `read` are the findings of reading them: what could not be read is not said to be missing.
pub fn analyze(resources: Vec<Located<Resource>>, read: &[Diagnostic]) -> Vec<Diagnostic> {
    let (parts, origins) = gather(resources);
    let external = hosts(&parts.service_entries, &parts.config.virtual_ranges);
    let external = external.into_iter().map(|(key, host)| (key, host.as_service())).collect();
    let known = Known::new(&parts, &external, Unread::of(read));
    let mut report = Report::new(&origins);
    let analysers = [
        destinations::analyze,
        routed_hosts::analyze,
        matches::analyze,
        rules::analyze,
        policies::analyze,
        order::analyze,
        sidecars::analyze,
        workloads::analyze,
        service_entries::analyze,
        gateways::analyze,
        deprecated::analyze,
    ];
    for analyser in analysers {
        analyser(&known, &mut report);
    }
    let mut findings = report.into_findings();
    findings.sort_by(|a, b| {
        let place =
            |finding: &Diagnostic| (finding.severity, finding.file.clone(), finding.line, finding.column);
        place(a).cmp(&place(b))
    });
    findings.truncate(MAX_SET_FINDINGS);
    findings
}

/// A set as it is to be judged.
#[derive(Debug, Default)]
pub struct Subject {
    /// The resources as they are written.
    pub resources: Vec<Located<Resource>>,
    /// What was said of reading them.
    pub findings: Vec<Diagnostic>,
    /// What there is besides, such as what hosts registered. What is written goes before it.
    pub beside: Vec<Located<Resource>>,
}

impl Subject {
    /// The subject with what texts hold over it: their resources replace those of the same kind and key. Two of the texts
    /// that hold the same are still at fault.
    pub fn with(mut self, texts: Vec<Parsed>) -> Self {
        let root = root_namespace(&self.resources);
        let id = |located: &Located<Resource>| canonical_id(located.value.id(), &root);
        let new: BTreeSet<ResourceId> = texts.iter().flat_map(|text| &text.resources).map(id).collect();
        self.resources.retain(|old| !new.contains(&id(old)));
        for text in texts {
            self.resources.extend(text.resources);
            self.findings.extend(text.findings);
        }
        self
    }

    /// Everything there is to say of the set: of reading it, of putting it together, and of what it does not do. Errors
    /// come first.
    pub fn judge(self) -> Vec<Diagnostic> {
        let all = self.resources.iter().chain(&self.beside).cloned().collect();
        let analysed = analyze(all, &self.findings);
        let mut findings = match assemble(self.resources, self.findings) {
            Ok(loaded) => loaded.warnings,
            Err(refused) => refused.0,
        };
        findings.extend(analysed);
        findings.sort_by_key(|finding| finding.severity);
        findings
    }
}

/// What is written and could not be read.
#[derive(Debug, Default)]
struct Unread {
    /// Resources of which that much is known.
    resources: BTreeSet<ResourceId>,
    /// Whether there may be others: a whole text could not be read.
    others: bool,
}

impl Unread {
    fn of(read: &[Diagnostic]) -> Self {
        let mut unread = Self::default();
        for finding in read.iter().filter(|finding| finding.is_error()) {
            match (&finding.resource, finding.code) {
                (Some(id), _) => _ = unread.resources.insert(id.clone()),
                // What is refused by its name is not there.
                (None, Code::RefusedKind) => {}
                (None, _) => unread.others = true,
            }
        }
        unread
    }
}
