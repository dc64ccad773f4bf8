//! What the control server has in memory: the catalog, what of it is pushed, who is there, and what each agent
//! said last. All of it is behind one lock, and nothing here waits.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use baremesh_model::health::Health;
use baremesh_model::name::{Key, Label};
use baremesh_model::workload::Workload;
use serde_json::Value;
use tokio::sync::Notify;

use super::catalog::{Catalog, Change, Effects};
use super::endpoint_addresses::entry_key;
use super::leases::Leases;
use super::message::Outcome;
use super::ownership::Speakers;
use super::push::{Push, Pushes};
use super::server::{Format, MAX_HOSTS, parse_key};
use super::state::{Audience, Held, State};
use super::subscription::Subscription;

/// Where endpoints are, for those who have not asked for them.
mod addresses;

use addresses::Written;

/// A version that an agent could not put in force.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Nack {
    /// The version.
    pub version: u64,
    /// Why, in the agent's words.
    pub reason: String,
}

/// A registration as the operator sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RegistrationStatus {
    /// The service.
    pub service: Key,
    /// The workload that it is published as.
    pub workload: Key,
    /// What its host's checks have found.
    pub health: Health,
    /// Why it is accepted and not published, when other resources contradict it.
    pub held: Option<String>,
}

/// A host as the operator sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostStatus {
    /// The host.
    pub host: Label,
    /// Whether a session is open.
    pub connected: bool,
    /// The agent's version.
    pub agent_version: String,
    /// The version that it was sent last.
    pub sent: u64,
    /// The version that it has in force.
    pub acked: u64,
    /// The version that it could not put in force, when it is the last that it answered.
    pub nack: Option<Nack>,
    /// How long its lease still runs, when it has one.
    pub lease: Option<Duration>,
    /// Whether its endpoints are published.
    pub live: bool,
    /// What it registered.
    pub registrations: Vec<RegistrationStatus>,
    /// What it wanted to register last and was refused, as a whole or for some addresses.
    pub refused: Vec<Outcome>,
}

/// What an agent said last.
#[derive(Default)]
pub(super) struct Agent {
    session: Option<(u64, Arc<Notify>)>,
    /// Whether the open session has sent its registrations.
    registered: bool,
    pub(super) version: String,
    pub(super) sent: u64,
    pub(super) acked: u64,
    pub(super) nack: Option<Nack>,
    pub(super) refused: Vec<Outcome>,
}

pub(super) struct Core {
    /// Changed in turns only; shared while a change is decided.
    pub(super) catalog: Arc<Catalog>,
    pub(super) resources: BTreeMap<String, Value>,
    /// What the authority says, beside the resources.
    pub(super) statements: BTreeMap<String, Value>,
    pub(super) state: State,
    written: Written,
    pushes: Pushes,
    pub(super) leases: Leases,
    pub(super) speakers: Speakers,
    agents: BTreeMap<Label, Agent>,
    next_session: u64,
}

impl Core {
    pub(super) fn load(records: &[Change], epoch: u64, lease: Duration, now: Instant) -> Self {
        let mut catalog = Catalog::default();
        catalog.apply(records);
        let mut leases = Leases::new(lease);
        let here = catalog.hosts().iter().filter(|(_, host)| !host.departed);
        for host in here.map(|(host, _)| host.clone()).collect::<Vec<_>>() {
            catalog.mark(&host, true);
            leases.take_up(&host, now);
        }
        let (resources, statements, agents) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
        let catalog = Arc::new(catalog);
        let (state, written) = (State::new(epoch), Written::default());
        let (pushes, speakers) = (Pushes::default(), Speakers::default());
        Self {
            catalog,
            resources,
            statements,
            state,
            written,
            pushes,
            leases,
            speakers,
            agents,
            next_session: 1,
        }
    }

    /// What brings an agent that holds `held` to the newest version of `wanted`.
    pub(super) fn push(&mut self, held: Option<&Held>, wanted: &Subscription) -> Arc<Push> {
        self.pushes.of(&self.state, held, wanted)
    }

    /// Opens a session, which ends the host's former one. `None` when there are too many hosts.
    pub(super) fn begin(
        &mut self,
        host: &Label,
        (version, from): (&str, &[IpAddr]),
        now: Instant,
    ) -> Option<(u64, Arc<Notify>)> {
        if !self.agents.contains_key(host) && self.agents.len() >= MAX_HOSTS {
            return None;
        }
        let session = (self.next_session, Arc::new(Notify::new()));
        self.next_session += 1;
        let agent = self.agents.entry(host.clone()).or_default();
        if let Some((_, former)) = agent.session.replace(session.clone()) {
            former.notify_one();
        }
        (agent.registered, agent.version) = (false, version.to_owned());
        self.leases.renew(host, now);
        self.speakers.begin(host, from, now);
        Some(session)
    }

    /// Notes that a host spoke from addresses. It begins a session next, or is forgotten with the idle.
    pub(super) fn show(&mut self, host: &Label, from: &[IpAddr], now: Instant) {
        if self.agents.contains_key(host) || self.agents.len() < MAX_HOSTS {
            self.agents.entry(host.clone()).or_default();
            self.speakers.show(host, from, now);
        }
    }

    /// Whether an address that the host showed is to be shown anew.
    pub(super) fn showed_long_ago(&self, host: &Label, address: IpAddr, now: Instant) -> bool {
        self.speakers.showed_long_ago(host, address, now)
    }

    /// Notes which network a host says it is in.
    pub(super) fn place(&mut self, host: &Label, network: Option<&Label>) {
        self.speakers.place(host, network);
    }

    pub(super) fn end(&mut self, host: &Label, session: u64) {
        if self.is_current(host, session) {
            self.agent(host).session = None;
            self.speakers.end(host);
        }
    }

    /// Ends a host's session, so that its agent registers anew.
    pub(super) fn interrupt(&mut self, host: &Label) {
        if let Some((_, session)) = self.agents.get(host).and_then(|agent| agent.session.as_ref()) {
            session.notify_one();
        }
    }

    /// Whether a host has a session that has sent its registrations.
    pub(super) fn has_registered(&self, host: &Label) -> bool {
        self.agents.get(host).is_some_and(|agent| agent.session.is_some() && agent.registered)
    }

    pub(super) fn is_current(&self, host: &Label, session: u64) -> bool {
        let agent = self.agents.get(host);
        agent.and_then(|agent| agent.session.as_ref()).is_some_and(|(current, _)| *current == session)
    }

    /// What is known of an agent that has a session.
    pub(super) fn agent(&mut self, host: &Label) -> &mut Agent {
        self.agents.entry(host.clone()).or_default()
    }

    /// Renews a lease. True when the host had been left out and is now to be published again.
    pub(super) fn renew(&mut self, host: &Label, session: u64, now: Instant) -> bool {
        if !self.is_current(host, session) {
            return false;
        }
        self.leases.renew(host, now);
        let out = self.catalog.hosts().get(host).is_some_and(|entry| !entry.live && !entry.departed);
        out && self.agent(host).registered
    }

    /// Notes that a session has sent its registrations.
    pub(super) fn note_registered(&mut self, host: &Label, session: u64) {
        if self.is_current(host, session) {
            self.agent(host).registered = true;
        }
    }

    /// Forgets agents of which nothing is left.
    pub(super) fn forget_idle(&mut self) {
        let (catalog, leases, now) = (&self.catalog, &self.leases, Instant::now());
        let speakers = &mut self.speakers;
        self.agents.retain(|host, agent| {
            let known = catalog.hosts().contains_key(host) || leases.remaining(host, now).is_some();
            let stays = agent.session.is_some() || known;
            if !stays {
                speakers.forget(host);
            }
            stays
        });
    }

    /// Publishes what a change affects.
    pub(super) fn publish(&mut self, effects: &Effects, format: &Format) {
        for key in &effects.services {
            if key.as_host().is_some() {
                for entry in self.catalog.entries_with(key) {
                    if let Some((name, value)) = self.service_entry(entry, format) {
                        self.state.set(&name, Audience::Everyone, &value);
                    }
                }
                continue;
            }
            let name = format!("Service/{}/{}", key.namespace, key.name);
            match self.service(key, &name, format) {
                Some(value) => self.state.set(&name, Audience::Everyone, &value),
                None => self.state.remove(&name),
            }
        }
        let mut entries: BTreeMap<String, Option<(Audience, Value)>> = BTreeMap::new();
        for key in &effects.gone {
            entries.insert(workload_entry(key), None);
        }
        for (host, service) in &effects.endpoints {
            let hosts = self.catalog.hosts();
            let Some(registered) = hosts.get(host).and_then(|entry| entry.registrations.get(service)) else {
                continue;
            };
            let name = Key::new(service.namespace.clone(), registered.workload.clone());
            let endpoint = self.catalog.endpoint(host, service);
            let value = endpoint
                .map(|workload| (self.audience_of(&workload, service), (format.write_workload)(&workload)));
            entries.insert(workload_entry(&name), value);
        }
        for (name, value) in entries {
            match value {
                Some((audience, value)) => self.state.set(&name, audience, &value),
                // A hand-written workload can have taken the name over.
                None if self.resources.contains_key(&name) => {}
                None => self.state.remove(&name),
            }
        }
        let of_endpoints = effects.endpoints.iter().map(|(_, service)| service);
        let services: BTreeSet<&Key> = of_endpoints
            .chain(&effects.services)
            .chain(&effects.left)
            .filter(|key| key.as_host().is_none())
            .collect();
        for service in services {
            self.publish_addresses(service);
        }
    }

    /// Publishes a statement of the authority to everyone, or takes one back.
    pub(super) fn say(&mut self, name: &str, value: Option<Value>) {
        match value {
            Some(value) => {
                self.state.set(name, Audience::Everyone, &value);
                self.statements.insert(name.to_owned(), value);
            }
            None if self.statements.remove(name).is_some() => self.state.remove(name),
            None => {}
        }
    }

    /// Publishes everything; what is the same as before is no change.
    pub(super) fn publish_all(&mut self, format: &Format) {
        self.written = Written::of(self.catalog.declared());
        let mut entries: BTreeMap<String, (Audience, Value)> = BTreeMap::new();
        for (name, value) in &self.resources {
            let audience = match parse_key(name) {
                Some(("WorkloadEntry", key)) => self.audience(&key),
                _ => Audience::Everyone,
            };
            entries.insert(name.clone(), (audience, value.clone()));
        }
        let statements = self.statements.iter();
        entries.extend(statements.map(|(name, value)| (name.clone(), (Audience::Everyone, value.clone()))));
        for key in self.catalog.services() {
            let name = format!("Service/{}/{}", key.namespace, key.name);
            if let Some(value) = self.service(key, &name, format) {
                entries.insert(name, (Audience::Everyone, value));
            }
        }
        let service_entries = self.catalog.declared().service_entries.keys();
        let written = service_entries.filter_map(|key| self.service_entry(key, format));
        entries.extend(written.map(|(name, value)| (name, (Audience::Everyone, value))));
        for (host, entry) in self.catalog.hosts() {
            for workload in entry.registrations.keys().filter_map(|key| self.catalog.endpoint(host, key)) {
                let service = workload.service.clone().unwrap_or_else(|| workload.key.name.clone());
                let service = Key::new(workload.key.namespace.clone(), service);
                let value = (format.write_workload)(&workload);
                entries.insert(workload_entry(&workload.key), (self.audience_of(&workload, &service), value));
            }
        }
        for service in self.catalog.services().into_iter().filter(|key| key.as_host().is_none()) {
            let audience = || Audience::OthersThanCallersOf(service.clone());
            let parts = self.addresses(service).into_iter().enumerate();
            entries.extend(parts.map(|(part, value)| (entry_key(service, part), (audience(), value))));
        }
        self.state.replace(&entries);
    }

    /// The Service as it is written, where its addresses are written too, else with those assigned.
    fn service(&self, key: &Key, name: &str, format: &Format) -> Option<Value> {
        let declared = self.catalog.declared().services.get(key);
        match self.resources.get(name) {
            Some(value) if declared.is_some_and(|service| !service.addresses.is_empty()) => {
                Some(value.clone())
            }
            _ => self.catalog.service(key).map(|service| (format.write_service)(&service)),
        }
    }

    /// The ServiceEntry as it is pushed, with the addresses that its hosts were assigned.
    fn service_entry(&self, key: &Key, format: &Format) -> Option<(String, Value)> {
        let entry = self.catalog.service_entry(key)?;
        Some((format!("ServiceEntry/{}/{}", key.namespace, key.name), (format.write_service_entry)(&entry)))
    }

    /// Who is sent an endpoint of a service: its callers, and everyone where a ServiceEntry selects it, since what those call is
    /// not asked for.
    fn audience_of(&self, workload: &Workload, service: &Key) -> Audience {
        match self.written.is_selected(workload) {
            true => Audience::Everyone,
            false => Audience::CallersOf(service.clone()),
        }
    }

    /// Who is sent a hand-written workload: the callers of the one service that it serves, and everyone when
    /// that cannot be told for good, since registrations may imply services later.
    fn audience(&self, key: &Key) -> Audience {
        let declared = self.catalog.declared();
        let Some(workload) = declared.workloads.get(key) else { return Audience::Everyone };
        // A label `app` can name a service that registrations bring later.
        let app = workload.labels.get("app").and_then(|app| Label::new(app).ok());
        let named = app.map(|app| Key::new(key.namespace.clone(), app));
        let known = named.is_none_or(|named| declared.services.contains_key(&named));
        let mut services = declared.services.values().filter(|service| workload.serves(service));
        match (services.next(), services.next()) {
            (Some(only), None) if known => self.audience_of(workload, &only.key),
            _ => Audience::Everyone,
        }
    }

    /// Every host that is known.
    pub(super) fn status(&self, now: Instant) -> Vec<HostStatus> {
        let nobody = Agent::default();
        let hosts: BTreeSet<&Label> = self.agents.keys().chain(self.catalog.hosts().keys()).collect();
        let status = |host: &Label| {
            let agent = self.agents.get(host).unwrap_or(&nobody);
            let entry = self.catalog.hosts().get(host);
            let registrations = entry.into_iter().flat_map(|entry| &entry.registrations);
            HostStatus {
                host: host.clone(),
                connected: agent.session.is_some(),
                agent_version: agent.version.clone(),
                sent: agent.sent,
                acked: agent.acked,
                nack: agent.nack.clone(),
                lease: self.leases.remaining(host, now),
                live: entry.is_some_and(|entry| entry.live),
                registrations: registrations
                    .map(|(service, registered)| RegistrationStatus {
                        service: service.clone(),
                        workload: Key::new(service.namespace.clone(), registered.workload.clone()),
                        health: registered.registration.health,
                        held: registered.held.as_ref().map(ToString::to_string),
                    })
                    .collect(),
                refused: agent.refused.clone(),
            }
        };
        hosts.into_iter().map(status).collect()
    }
}

fn workload_entry(key: &Key) -> String {
    format!("WorkloadEntry/{}/{}", key.namespace, key.name)
}
