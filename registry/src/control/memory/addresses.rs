//! Where the endpoints of services are, for the agents that have not asked for them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use baremesh_model::endpoint_addresses::EndpointAddresses;
use baremesh_model::name::{Key, Label};
use baremesh_model::service_entry::{Endpoints, ServiceEntry};
use baremesh_model::workload::{Labels, Workload, selects};
use serde_json::Value;

use super::super::catalog::Declared;
use super::super::endpoint_addresses::{entry_key, written};
use super::super::state::Audience;
use super::Core;

impl Core {
    /// Publishes where a service's endpoints are, to those who have not asked for them.
    pub(super) fn publish_addresses(&mut self, service: &Key) {
        let parts = self.addresses(service);
        for (part, value) in parts.iter().enumerate() {
            let audience = Audience::OthersThanCallersOf(service.clone());
            self.state.set(&entry_key(service, part), audience, value);
        }
        let mut surplus = parts.len();
        while self.state.contains(&entry_key(service, surplus)) {
            self.state.remove(&entry_key(service, surplus));
            surplus += 1;
        }
    }

    /// Where a service's endpoints are, registered and hand-written ones.
    pub(super) fn addresses(&self, key: &Key) -> Vec<Value> {
        let Some(service) = self.catalog.base(key) else { return Vec::new() };
        let registered = self.catalog.endpoints_of(key);
        let workloads = &self.catalog.declared().workloads;
        let names = self.written.of_service.get(key).into_iter().flatten();
        let by_hand =
            names.filter_map(|name| workloads.get(name)).filter(|workload| workload.serves(&service));
        EndpointAddresses::of(&service, registered.iter().chain(by_hand))
            .map_or(Vec::new(), |all| written(&all))
    }
}

/// What the resources say of workloads, at hand for each change of a registration.
#[derive(Default)]
pub(super) struct Written {
    /// The hand-written workloads that may be endpoints of each service; of one that is not declared those whose label `app`
    /// names it.
    of_service: BTreeMap<Key, Vec<Key>>,
    /// What ServiceEntries select, by namespace and labels.
    selected: Vec<(Label, Labels)>,
}

impl Written {
    pub(super) fn of(declared: &Declared) -> Self {
        let mut of_service: BTreeMap<Key, Vec<Key>> = BTreeMap::new();
        for workload in declared.workloads.values() {
            let serving = declared.services.values().filter(|service| workload.serves(service));
            let mut services: BTreeSet<Key> = serving.map(|service| service.key.clone()).collect();
            let app = workload.service.clone();
            let app = app.or_else(|| Label::new(workload.labels.get("app")?).ok());
            services.extend(app.map(|app| Key::new(workload.key.namespace.clone(), app)));
            for service in services {
                of_service.entry(service).or_default().push(workload.key.clone());
            }
        }
        let selecting = |entry: &Arc<ServiceEntry>| match &entry.endpoints {
            Endpoints::Selected(labels) => Some((entry.key.namespace.clone(), labels.clone())),
            Endpoints::Listed(_) => None,
        };
        Self { of_service, selected: declared.service_entries.values().filter_map(selecting).collect() }
    }

    /// Whether a ServiceEntry has the workload among its endpoints.
    pub(super) fn is_selected(&self, workload: &Workload) -> bool {
        let labels = &workload.labels;
        self.selected
            .iter()
            .any(|(namespace, selector)| *namespace == workload.key.namespace && selects(selector, labels))
    }
}
