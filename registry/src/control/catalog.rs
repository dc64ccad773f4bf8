//! Everything that the control server knows: the resources of the files, the registrations of the hosts, who of
//! them is there, and the virtual addresses. A change is decided first, as a list of records; the records are
//! stored, and only then applied. Reading the store back is applying the same records. Deciding is `decision`'s.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use baremesh_model::health::Health;
use baremesh_model::mesh_config::MeshConfig;
use baremesh_model::name::{Key, Label};
use baremesh_model::service::Service;
use baremesh_model::service_entry::{ExternalHost, ServiceEntry, hosts};
use baremesh_model::workload::Workload;

use super::addresses::{AddressChange, Addresses};
use super::admission::{Claim, Claims, Refusal};
use super::registration::Registration;

/// What the resources of the files come to, as far as registrations have to agree with it.
#[derive(Debug, Clone, Default)]
pub struct Declared {
    /// Mesh-wide settings.
    pub config: MeshConfig,
    /// Services by key.
    pub services: BTreeMap<Key, Service>,
    /// Hand-written workloads by key.
    pub workloads: BTreeMap<Key, Workload>,
    /// Hosts that no service stands for.
    pub service_entries: BTreeMap<Key, Arc<ServiceEntry>>,
}

impl Declared {
    /// The hosts of service entries that have virtual addresses, each with those that it states. Where one address is
    /// several hosts', the first has it.
    pub fn addressed_hosts(&self) -> BTreeMap<Key, Vec<IpAddr>> {
        let mut seen = BTreeSet::new();
        let all = hosts(&self.service_entries, &self.config.virtual_ranges).into_values();
        let stated = |host: ExternalHost| {
            let mut addresses = if host.is_hashed { Vec::new() } else { host.virtual_addresses };
            addresses.retain(|address| seen.insert(*address));
            (host.is_hashed || !addresses.is_empty()).then_some((host.key, addresses))
        };
        all.filter(|host| !host.virtual_addresses.is_empty()).filter_map(stated).collect()
    }
}

/// A registration that was accepted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Registered {
    /// Counts up over all registrations: the oldest of a service without a Service resource says what it is.
    pub sequence: u64,
    /// What was registered.
    pub registration: Registration,
    /// The workload's name.
    pub workload: Label,
    /// Why it is not published, when resources that came later contradict it.
    pub held: Option<Refusal>,
}

/// A host and what it registered.
#[derive(Debug, Clone, Default)]
pub struct Host {
    /// Whether its endpoints are published.
    pub live: bool,
    /// Whether it said goodbye, so that a restart of the server gives it no lease.
    pub departed: bool,
    /// Its registrations by service.
    pub registrations: BTreeMap<Key, Registered>,
}

/// A record that changes, in the order of applying.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs)] // Each field is `Registered`'s or `Host`'s.
pub enum Change {
    /// A registration, new or changed.
    Register { host: Label, sequence: u64, workload: Label, registration: Registration },
    /// A registration that is gone.
    Deregister { host: Label, service: Key },
    /// What a host's checks have found of what it registered.
    Health { host: Label, service: Key, health: Health },
    /// Whether a host said goodbye.
    Departed { host: Label, departed: bool },
    /// A virtual address.
    Address(AddressChange),
}

/// What has to be published anew after a change.
#[derive(Debug, Default)]
pub struct Effects {
    /// Services.
    pub services: BTreeSet<Key>,
    /// Endpoints, by host and service.
    pub endpoints: BTreeSet<(Label, Key)>,
    /// Workloads whose registration is gone,
    pub gone: Vec<Key>,
    /// and the services that they were of.
    pub left: BTreeSet<Key>,
}

/// Everything known.
#[derive(Debug, Clone, Default)]
pub struct Catalog {
    pub(super) declared: Declared,
    pub(super) hosts: BTreeMap<Label, Host>,
    /// The hosts of each service, the oldest registration first.
    pub(super) members: BTreeMap<Key, BTreeMap<u64, Label>>,
    pub(super) workload_names: BTreeMap<Key, (Label, Key)>,
    pub(super) claims: Claims,
    pub(super) addresses: Addresses,
    pub(super) next_sequence: u64,
}

impl Catalog {
    /// The hosts and what they registered.
    pub fn hosts(&self) -> &BTreeMap<Label, Host> {
        &self.hosts
    }

    /// Mesh-wide settings.
    pub fn config(&self) -> &MeshConfig {
        &self.declared.config
    }

    /// What the files declare.
    pub fn declared(&self) -> &Declared {
        &self.declared
    }

    /// The services that there are: declared, and implied by registrations.
    pub fn services(&self) -> BTreeSet<&Key> {
        self.declared.services.keys().chain(self.members.keys()).collect()
    }

    /// A service, declared or implied by the oldest registration, with its virtual addresses.
    pub fn service(&self, key: &Key) -> Option<Service> {
        let mut service = self.base(key)?;
        if service.addresses.is_empty() {
            service.addresses = self.addresses.of(key);
        }
        Some(service)
    }

    /// A service entry with the virtual addresses that its hosts were assigned.
    pub fn service_entry(&self, key: &Key) -> Option<ServiceEntry> {
        let mut entry = (**self.declared.service_entries.get(key)?).clone();
        if entry.needs_virtual_addresses() {
            for host in entry.host_names().collect::<Vec<_>>() {
                let addresses = self.addresses.of(&entry.key_of(&host));
                if !addresses.is_empty() {
                    entry.assigned.insert(host, addresses);
                }
            }
        }
        Some(entry)
    }

    /// The service entries that have a host.
    pub fn entries_with(&self, host: &Key) -> Vec<&Key> {
        let Some(name) = host.as_host() else { return Vec::new() };
        let entries = self.declared.service_entries.values();
        let has = |entry: &&Arc<ServiceEntry>| {
            entry.key.namespace == host.namespace && entry.host_names().any(|host| *host == *name)
        };
        entries.filter(has).map(|entry| &entry.key).collect()
    }

    /// The endpoint that a registration comes to, when it is to be published.
    pub fn endpoint(&self, host: &Label, service: &Key) -> Option<Workload> {
        let registered = self.published(host, service)?;
        let service = self.base(service)?;
        Some(registered.registration.workload(registered.workload.clone(), host.clone(), &service))
    }

    /// The endpoints of a service that its registrations come to, as far as they are to be published.
    pub fn endpoints_of(&self, key: &Key) -> Vec<Workload> {
        let Some(service) = self.base(key) else { return Vec::new() };
        let hosts = self.members.get(key).into_iter().flat_map(BTreeMap::values);
        let endpoint = |host: &Label| {
            let Registered { registration, workload, .. } = self.published(host, key)?;
            Some(registration.workload(workload.clone(), host.clone(), &service))
        };
        hosts.filter_map(endpoint).collect()
    }

    /// The registration, when its host is there and nothing contradicts it.
    fn published(&self, host: &Label, service: &Key) -> Option<&Registered> {
        let host = self.hosts.get(host).filter(|host| host.live)?;
        host.registrations.get(service).filter(|registered| registered.held.is_none())
    }

    /// Marks a host as there or not. Returns what has to be published anew.
    pub fn mark(&mut self, host: &Label, live: bool) -> Effects {
        let mut effects = Effects::default();
        if let Some(entry) = self.hosts.get_mut(host).filter(|entry| entry.live != live) {
            entry.live = live;
            effects.endpoints = entry.registrations.keys().map(|key| (host.clone(), key.clone())).collect();
        }
        self.drop_empty(host);
        effects
    }

    /// Applies records. Returns what has to be published anew.
    pub fn apply(&mut self, changes: &[Change]) -> Effects {
        let mut effects = Effects::default();
        for change in changes {
            match change {
                Change::Register { host, sequence, workload, registration } => {
                    let key = &registration.service;
                    self.rebased(key, &mut effects, |catalog, effects| {
                        catalog.forget(host, key, effects);
                        let registered = Registered {
                            sequence: *sequence,
                            registration: registration.clone(),
                            workload: workload.clone(),
                            held: None,
                        };
                        catalog.remember(host, registered);
                    });
                    effects.endpoints.insert((host.clone(), key.clone()));
                }
                Change::Deregister { host, service } => {
                    self.rebased(service, &mut effects, |catalog, effects| {
                        catalog.forget(host, service, effects);
                    });
                    self.drop_empty(host);
                }
                Change::Health { host, service, health } => {
                    let entry = self.hosts.get_mut(host);
                    if let Some(known) = entry.and_then(|entry| entry.registrations.get_mut(service)) {
                        known.registration.health = *health;
                        effects.endpoints.insert((host.clone(), service.clone()));
                    }
                }
                Change::Departed { host, departed } => {
                    self.hosts.entry(host.clone()).or_default().departed = *departed;
                    self.drop_empty(host);
                }
                Change::Address(change) => {
                    let before = self.addresses.holder(&change.0).cloned();
                    effects.services.extend(before);
                    effects.services.extend(change.1.as_ref().map(|assignment| assignment.service.clone()));
                    self.addresses.apply(change);
                }
            }
        }
        effects
    }

    /// A host that is not there and has registered nothing need not be known.
    fn drop_empty(&mut self, host: &Label) {
        let empty = |host: &Host| host.registrations.is_empty() && !host.departed && !host.live;
        if self.hosts.get(host).is_some_and(empty) {
            self.hosts.remove(host);
        }
    }

    /// Whether resources contradict some registration.
    pub fn holds_back(&self) -> bool {
        let mut registered = self.hosts.values().flat_map(|host| host.registrations.values());
        registered.any(|registered| registered.held.is_some())
    }

    /// Makes a change of a service's registrations and sees whether the service or its other endpoints change.
    fn rebased(&mut self, key: &Key, effects: &mut Effects, change: impl FnOnce(&mut Self, &mut Effects)) {
        let before = self.base(key);
        change(self, effects);
        if self.base(key) != before {
            effects.services.insert(key.clone());
            // Ports are mapped relative to the service's.
            let members = self.members.get(key).into_iter().flat_map(BTreeMap::values);
            effects.endpoints.extend(members.map(|host| (host.clone(), key.clone())));
        }
    }

    pub(super) fn remember(&mut self, host: &Label, registered: Registered) {
        let registration = &registered.registration;
        let key = registration.service.clone();
        if registered.held.is_none() {
            let declared = self.declared.services.get(&key).map(|service| &service.service_account);
            let account = declared.unwrap_or_else(|| registration.account()).clone();
            let network = registration.network.clone();
            let claim = Claim { service: key.clone(), account, host: host.clone(), network };
            self.claims.add(&claim, registration);
        }
        let name = Key::new(key.namespace.clone(), registered.workload.clone());
        self.workload_names.insert(name, (host.clone(), key.clone()));
        self.members.entry(key.clone()).or_default().insert(registered.sequence, host.clone());
        self.next_sequence = self.next_sequence.max(registered.sequence + 1);
        self.hosts.entry(host.clone()).or_default().registrations.insert(key, registered);
    }

    fn forget(&mut self, host: &Label, service: &Key, effects: &mut Effects) {
        let Some(before) = self.hosts.get_mut(host).and_then(|entry| entry.registrations.remove(service))
        else {
            return;
        };
        self.claims.remove(host, &before.registration);
        let name = Key::new(service.namespace.clone(), before.workload);
        if self.workload_names.get(&name).is_some_and(|(owner, _)| owner == host) {
            self.workload_names.remove(&name);
        }
        effects.gone.push(name);
        effects.left.insert(service.clone());
        if let Some(members) = self.members.get_mut(service) {
            members.remove(&before.sequence);
            if members.is_empty() {
                self.members.remove(service);
            }
        }
    }

    /// The service without assigned addresses: declared, or what the oldest registration implies.
    pub(super) fn base(&self, key: &Key) -> Option<Service> {
        if let Some(declared) = self.declared.services.get(key) {
            return Some(declared.clone());
        }
        let mut members = self.members.get(key)?.values();
        let oldest = members.find_map(|host| {
            self.hosts.get(host)?.registrations.get(key).filter(|registered| registered.held.is_none())
        })?;
        Some(oldest.registration.implicit_service())
    }
}
