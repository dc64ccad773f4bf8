//! What the administration socket says of registrations and the WorkloadGroups that they name.

use baremesh_model::name::{Key, Label};
use http::StatusCode;

use super::Agent;
use crate::admin::report::GroupReport;
use crate::admin::server::{Answer, json, text};
use crate::registration::LocalService;
use crate::registration::group::{Grouping, Standing, ports_of};
use crate::snapshot::Snapshot;

/// How a registration stands to its group.
pub(super) fn report(registered: &LocalService) -> Option<GroupReport> {
    let Grouping { name, standing, .. } = registered.group.as_ref()?;
    let (in_force, standing) = (*standing == Standing::InForce, standing.to_string());
    Some(GroupReport { name: name.to_string(), in_force, standing })
}

/// The groups that are not in force as they should be.
pub(super) fn warnings(snapshot: &Snapshot) -> Vec<String> {
    let registrations = snapshot.registrations.iter();
    let reports = registrations.filter_map(|local| Some((local.key.clone(), report(local)?)));
    let troubled = reports.filter(|(_, report)| !report.in_force);
    troubled
        .map(|(key, report)| format!("{key} names the group {}: {}", report.name, report.standing))
        .collect()
}

impl Agent {
    /// The ports that a registration in a group begins with: `/group-ports/NAMESPACE/GROUP/SERVICE`.
    pub(super) fn ports_of_group(&self, path: &str) -> Answer {
        let names: Option<Vec<Label>> = path.split('/').skip(2).map(|name| Label::new(name).ok()).collect();
        let Some([namespace, group, service]) = names.as_deref() else {
            return text(StatusCode::NOT_FOUND, "no such route\n");
        };
        let snapshot = self.publisher.snapshot().load_full();
        let key = |name: &Label| Key::new(namespace.clone(), name.clone());
        match snapshot.mesh.workload_groups.get(&key(group)) {
            Some(found) => json(&ports_of(found, snapshot.mesh.services.get(&key(service)))),
            None => text(StatusCode::NOT_FOUND, format!("there is no WorkloadGroup {namespace}/{group}\n")),
        }
    }
}
