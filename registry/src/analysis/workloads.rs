//! WorkloadEntries: each is an endpoint of a service.

use baremesh_model::mesh::Kind;

use super::known::Known;
use super::report::{Place, Report};
use crate::diagnostic::Code;

pub(super) fn analyze(known: &Known<'_>, report: &mut Report<'_>) {
    if !known.is_whole() {
        return;
    }
    let served = known.served();
    for workload in known.parts.workloads.values() {
        // One that names a service which is not there is refused.
        if workload.service.is_some() || served.contains_key(&workload.key) {
            continue;
        }
        let message =
            "no service has this workload as an endpoint: no Service of its namespace selects its labels"
                .to_owned();
        let help = "set `service`, or a label that a Service selects";
        report.warning(
            &Place::of(Kind::WorkloadEntry, &workload.key).name(),
            Code::ServesNothing,
            message,
            help,
        );
    }
}
