//! WorkloadEntries: each is an endpoint of a service, or of a ServiceEntry that selects it.

use baremesh_model::mesh::Kind;
use baremesh_model::service_entry::Endpoints;
use baremesh_model::workload::{Workload, selects};

use super::known::Known;
use super::report::{Place, Report};
use crate::diagnostic::Code;

pub(super) fn analyze(known: &Known<'_>, report: &mut Report<'_>) {
    if !known.is_whole() {
        return;
    }
    let served = known.served();
    let entries = known.parts.service_entries.values();
    let selecting: Vec<_> = entries
        .filter_map(|entry| match &entry.endpoints {
            Endpoints::Selected(labels) => Some((&entry.key.namespace, labels)),
            Endpoints::Listed(_) => None,
        })
        .collect();
    let is_selected = |workload: &Workload| {
        let mut of_namespace = selecting.iter().filter(|(of, _)| **of == workload.key.namespace);
        of_namespace.any(|(_, labels)| selects(labels, &workload.labels))
    };
    for workload in known.parts.workloads.values() {
        // One that names a service which is not there is refused.
        if workload.service.is_some() || served.contains_key(&workload.key) || is_selected(workload) {
            continue;
        }
        let message =
            "no service has this workload as an endpoint: no Service or ServiceEntry of its namespace selects its labels"
                .to_owned();
        let help = "set `service`, or a label that a Service or a ServiceEntry selects";
        report.warning(
            &Place::of(Kind::WorkloadEntry, &workload.key).name(),
            Code::ServesNothing,
            message,
            help,
        );
    }
}
