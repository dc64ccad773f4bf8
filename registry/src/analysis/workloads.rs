//! WorkloadEntries: each is an endpoint of a service, or of a ServiceEntry that selects it.

use std::sync::Arc;

use baremesh_model::mesh::Kind;
use baremesh_model::service_entry::selected_by;

use super::known::Known;
use super::report::{Place, Report};
use crate::diagnostic::Code;

pub(super) fn analyze(known: &Known<'_>, report: &mut Report<'_>) {
    if !known.is_whole() {
        return;
    }
    let served = known.served();
    let is_selected = selected_by(known.parts.service_entries.values().map(Arc::as_ref));
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
