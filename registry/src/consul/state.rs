//! What everything that is known of Consul comes to: the keyed entries of one mesh. What is kept on the disk, and what is
//! followed, are the inputs: resources, what is said of trust, addresses, instances as Consul has them. A mesh is made of
//! them by one pure function, which leaves out what would not hold together with the rest and says why: whoever may write
//! to the catalog cannot keep a state from coming into force.

/// Services and their addresses.
mod services;
/// Who has which address and port.
mod claims;
/// Endpoints.
mod endpoints;
/// Where Consul is.
mod consul_itself;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use baremesh_model::grant::Grant;
use baremesh_model::mesh_config::MeshConfig;
use baremesh_model::name::{Key, Label};
use baremesh_model::service::Service;
use baremesh_model::service_entry::ServiceEntry;
use baremesh_model::workload::Workload;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::catalog::Instance;
use super::instance::{What, what};
use super::mark;
use super::settings::Settings;
use crate::format;
use crate::resource::{HostGrant, Resource};
use claims::Claims;
use consul_itself::ConsulItself;

/// Before the name of a service in the catalog: its instances, as Consul has them.
pub const INSTANCES: &str = "consul/instances/";
/// Before a virtual address: whose it is.
pub const ADDRESS: &str = "consul/address/";
/// Before a service, as `name.namespace`, that agents of this mesh were seen to have: when the last one was, in seconds since 1970.
pub const MESHED: &str = "consul/meshed/";
/// How long a service counts as meshed after the last of its agents was seen, in seconds: seven days, as long as its
/// virtual address is nobody else's.
pub const MESHED_FOR: u64 = 7 * 24 * 3600;
/// Consul's own servers, in their catalog.
const CONSUL_ITSELF: &str = "consul";
/// Most things that a report names.
const MAX_NAMED: usize = 100;

/// Whose a virtual address is, as `addresses/<ip>` says it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AddressRecord {
    /// The service, as `name.namespace`, or a host of a ServiceEntry, as `namespace/host`.
    pub service: String,
    /// Since when, in seconds since 1970.
    pub since: u64,
    /// Since when the service is gone; nothing while it is there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub released: Option<u64>,
}

/// What a state came to.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Report {
    /// Endpoints with an agent.
    pub agents: usize,
    /// Endpoints without one.
    pub plain: usize,
    /// How much of the catalog was left out.
    pub left_out: usize,
    /// Some of that, with the reason.
    pub named: BTreeMap<String, String>,
}

impl Report {
    fn leave_out(&mut self, what: String, why: impl Into<String>) {
        self.left_out += 1;
        if self.named.len() < MAX_NAMED {
            self.named.insert(what, why.into());
        }
    }
}

/// Entries and what is to be said of them.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Derived {
    /// The entries that a mesh is made of, by `Kind/namespace/name`.
    pub entries: BTreeMap<String, Value>,
    /// What became of the catalog.
    pub report: Report,
}

/// What resources say, as far as the catalog has to agree with it.
struct Declared {
    /// Namespaces that some resource is in, or that a HostGrant grants services of.
    namespaces: BTreeSet<Label>,
    config: MeshConfig,
    services: BTreeMap<Key, Service>,
    workloads: Vec<Arc<Workload>>,
    grants: Vec<HostGrant>,
    service_entries: BTreeMap<Key, Arc<ServiceEntry>>,
}

/// Whether an entry of the inputs is about Consul's catalog or addresses, and no resource.
pub fn is_input(key: &str) -> bool {
    key.starts_with("consul/")
}

/// The entries of the mesh. Services in `plain` of the settings take endpoints without an agent beside those with one.
pub fn derive(inputs: &BTreeMap<String, Value>, settings: &Settings) -> Derived {
    let mut derived = Derived::default();
    let is_told = |key: &str| !is_input(key) && !key.starts_with("HostGrant/");
    derived.entries.extend(
        inputs.iter().filter(|(key, _)| is_told(key)).map(|(key, value)| (key.clone(), value.clone())),
    );
    let declared = declared(inputs);
    let mut catalog = services::catalog(inputs, &declared, settings, &mut derived.report);
    let claims = Claims::declared(&mut catalog, &declared, &mut derived.report);
    let services = services::with_addresses(inputs, &declared, catalog, &mut derived);
    endpoints::add(services, claims, &ConsulItself::of(inputs, settings), &mut derived);
    derived
}

/// The namespace of a resource, of the key of an entry.
fn namespace_of(key: &str) -> Option<Label> {
    let mut parts = key.splitn(3, '/');
    let (_, namespace, _) = (parts.next()?, parts.next()?, parts.next()?);
    (!is_input(key)).then(|| Label::new(namespace).ok())?
}

fn declared(inputs: &BTreeMap<String, Value>) -> Declared {
    let mut declared = Declared {
        namespaces: inputs.keys().filter_map(|key| namespace_of(key)).collect(),
        config: MeshConfig::default(),
        services: BTreeMap::new(),
        workloads: Vec::new(),
        grants: Vec::new(),
        service_entries: BTreeMap::new(),
    };
    let about = ["MeshConfig/", "Service/", "WorkloadEntry/", "ServiceEntry/", "HostGrant/"];
    for (_, value) in inputs.iter().filter(|(key, _)| about.iter().any(|kind| key.starts_with(kind))) {
        match format::decode_from_newer(value).map(|read| read.resource) {
            Ok(Resource::MeshConfig(config)) => declared.config = *config,
            Ok(Resource::Service(service)) => _ = declared.services.insert(service.key.clone(), *service),
            Ok(Resource::Workload(workload)) => declared.workloads.push(workload),
            Ok(Resource::HostGrant(grant)) => {
                declared.namespaces.extend(grant.services.iter().filter_map(Grant::namespace));
                declared.grants.push(*grant);
            }
            Ok(Resource::ServiceEntry(entry)) => {
                declared.service_entries.insert(entry.key.clone(), Arc::new(*entry));
            }
            // Whoever makes the mesh says what cannot be read.
            Ok(_) | Err(_) => {}
        }
    }
    declared
}

/// The instances of every service of the inputs.
fn instances(inputs: &BTreeMap<String, Value>) -> impl Iterator<Item = (&str, Vec<Instance>)> {
    let named = inputs.range(INSTANCES.to_owned()..).take_while(|(key, _)| key.starts_with(INSTANCES));
    named.map(|(key, value)| {
        let all = Vec::<Instance>::deserialize(value).unwrap_or_default();
        (&key[INSTANCES.len()..], all)
    })
}

/// Which addresses are which services', of those that are there.
fn assigned(inputs: &BTreeMap<String, Value>) -> BTreeMap<IpAddr, Key> {
    let records = inputs.range(ADDRESS.to_owned()..).take_while(|(key, _)| key.starts_with(ADDRESS));
    let read = |(key, value): (&String, &Value)| {
        let record = AddressRecord::deserialize(value).ok().filter(|record| record.released.is_none())?;
        Some((key[ADDRESS.len()..].parse().ok()?, Key::read(&record.service)?))
    };
    records.filter_map(read).collect()
}

/// Whether an instance is an agent's with the account of its service. The marks of one alone do not make a service meshed.
fn is_agent_of(key: &Key, what: &What, declared: &Declared) -> bool {
    let stated = declared.services.get(key).map(|service| &service.service_account);
    match what {
        What::Agent { registration, .. } => registration.account() == stated.unwrap_or(&key.name),
        What::Foreign { .. } => false,
    }
}

/// The same inputs with another catalog, or with none.
pub fn with_catalog(
    inputs: &BTreeMap<String, Value>,
    of: Option<&BTreeMap<String, Value>>,
) -> BTreeMap<String, Value> {
    let is_catalog = |key: &str| key.starts_with(INSTANCES);
    let own = inputs.iter().filter(|(key, _)| !is_catalog(key));
    let other = of.into_iter().flatten().filter(|(key, _)| is_catalog(key));
    own.chain(other).map(|(key, value)| (key.clone(), value.clone())).collect()
}

/// Remembers which services agents of this mesh were seen to have.
pub fn remember(inputs: &mut BTreeMap<String, Value>, now: u64) {
    /// How old a memory is made anew, so that the state does not change with each look.
    const RENEWED: u64 = 24 * 3600;
    let declared = declared(inputs);
    let named = |(name, all): (&str, Vec<Instance>)| {
        let key = mark::service_named(name).ok()?;
        let has_agent = all.iter().any(|one| {
            what(&key, one, &declared.grants).is_ok_and(|what| is_agent_of(&key, &what, &declared))
        });
        has_agent.then_some(key)
    };
    let seen: BTreeSet<Key> = instances(inputs).filter_map(named).collect();
    inputs.retain(|key, value| {
        let since = || value.as_u64().unwrap_or(0);
        !key.starts_with(MESHED) || now.saturating_sub(since()) < MESHED_FOR
    });
    for service in seen {
        let since = inputs.entry(format!("{MESHED}{service}")).or_insert_with(|| now.into());
        if since.as_u64().is_none_or(|since| now.saturating_sub(since) >= RENEWED) {
            *since = now.into();
        }
    }
}

#[cfg(test)]
mod tests;
