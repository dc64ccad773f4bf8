//! One place where a new state comes into force: the mesh from its source and the host's own registrations are
//! compiled together, and either both hold from here on, or the last good state stays and the reason is told.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use arc_swap::ArcSwap;
use baremesh_model::health::Health;
use baremesh_model::identity::Identity;
use baremesh_model::mesh::Mesh;
use tokio::sync::watch;

use crate::containers::Known;
use crate::originate::{Originations, REREAD};
use crate::registration::LocalService;
use crate::registration::labelled::in_containers;
use crate::resolution::Resolved;
use crate::snapshot::{Host, Snapshot};
use crate::telemetry::metrics::Metrics;
use crate::trust::OlderList;

/// What there is news of. What was refused is remembered for each by itself: that the source's next state is taken says
/// nothing of a registration that cannot be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum News {
    /// The state of the mesh, from its source.
    Mesh,
    /// The host's registrations, from their files.
    Registrations,
    /// What the agent found out about its host: addresses, containers, health, and what DNS says.
    Host,
}

impl fmt::Display for News {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Mesh => "the state of the mesh",
            Self::Registrations => "registrations",
            Self::Host => "what was found on this host",
        })
    }
}

/// What goes into the next snapshot, and how the last attempts went.
struct Inputs {
    mesh: Arc<Mesh>,
    registrations: Vec<Arc<LocalService>>,
    /// What is known of containers.
    known: Arc<Known>,
    resolved: Arc<Resolved>,
    host: Host,
    refused: BTreeMap<News, String>,
    version: u64,
    taken: SystemTime,
}

/// The state in force, and the way to the next one.
pub struct Publisher {
    inputs: Mutex<Inputs>,
    hbone_port: u16,
    snapshot: Arc<ArcSwap<Snapshot>>,
    originations: Arc<Originations>,
    changed: watch::Sender<u64>,
    wanted: watch::Sender<Vec<Identity>>,
    registered: watch::Sender<Vec<Arc<LocalService>>>,
    metrics: Arc<Metrics>,
}

/// How the state in force came about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Published {
    /// The source's version of the state in force.
    pub version: u64,
    /// When it was taken.
    pub taken: SystemTime,
    /// Of what the last was refused, and why.
    pub refused: BTreeMap<News, String>,
}

impl Publisher {
    /// Publishes the first state. Without a good one there is nothing to start with, and the reason is the error.
    pub fn new(
        (mesh, version): (Mesh, u64),
        registrations: &[Arc<LocalService>],
        (host, hbone_port): (Host, u16),
        originations: Arc<Originations>,
        metrics: Arc<Metrics>,
    ) -> Result<Arc<Self>, String> {
        let registrations = in_groups(&mesh, registrations);
        let snapshot = Snapshot::build(&mesh, &registrations, &host, hbone_port, None);
        let snapshot = snapshot.map_err(|error| error.to_string())?;
        originations.load(&snapshot);
        metrics.rate_limits.are(&snapshot.rate_limits);
        metrics.external_authorization.are(&snapshot.providers);
        let wanted = watch::Sender::new(snapshot.identities.clone());
        let inputs = Inputs {
            mesh: Arc::new(mesh),
            registrations: registrations.clone(),
            known: Arc::default(),
            resolved: Arc::default(),
            host,
            refused: BTreeMap::new(),
            version,
            taken: SystemTime::now(),
        };
        note(&metrics, &inputs);
        Ok(Arc::new(Self {
            inputs: Mutex::new(inputs),
            hbone_port,
            snapshot: Arc::new(ArcSwap::from_pointee(snapshot)),
            originations,
            changed: watch::Sender::new(0),
            wanted,
            registered: watch::Sender::new(registrations),
            metrics,
        }))
    }

    /// The state in force.
    pub fn snapshot(&self) -> Arc<ArcSwap<Snapshot>> {
        Arc::clone(&self.snapshot)
    }

    /// Told at every change.
    pub fn changed(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// Reads the certificates that rules name again, once in a while, for ever.
    pub async fn reread_certificates(self: Arc<Self>) {
        loop {
            tokio::time::sleep(REREAD).await;
            let publisher = Arc::clone(&self);
            let reading = move || {
                // No other state comes into force meanwhile.
                let _inputs = publisher.lock();
                publisher.originations.load(&publisher.snapshot.load());
            };
            if let Err(error) = tokio::task::spawn_blocking(reading).await {
                tracing::error!(%error, "certificates of DestinationRules were not read again");
            }
        }
    }

    /// The identities that the host needs.
    pub fn wanted(&self) -> watch::Receiver<Vec<Identity>> {
        self.wanted.subscribe()
    }

    /// The host's registrations in force.
    pub fn registered(&self) -> watch::Receiver<Vec<Arc<LocalService>>> {
        self.registered.subscribe()
    }

    /// How the state in force came about.
    pub fn published(&self) -> Published {
        let inputs = self.lock();
        Published { version: inputs.version, taken: inputs.taken, refused: inputs.refused.clone() }
    }

    /// Takes a new mesh from the source.
    pub fn take_mesh(&self, mesh: Mesh, version: u64) -> Result<(), String> {
        let mut inputs = self.lock();
        let registrations = inputs.registrations.clone();
        self.publish(&mut inputs, News::Mesh, (Arc::new(mesh), version), &registrations)
    }

    /// What is in force is the source's state of this version: it says so where nothing changed, after it counted anew.
    pub fn confirm(&self, version: u64) {
        let mut inputs = self.lock();
        if inputs.version != version {
            inputs.version = version;
            note(&self.metrics, &inputs);
        }
    }

    /// Takes new registrations of this host. What was found of those before holds as far as it is about the same.
    pub fn take_registrations(&self, registrations: &[Arc<LocalService>]) -> Result<(), String> {
        let mut inputs = self.lock();
        let mut registrations = in_containers(registrations, &inputs.known);
        for registration in &mut registrations {
            let before = inputs.registrations.iter().find(|before| before.key == registration.key);
            *registration = Arc::clone(registration).remembering(before.map(|before| &**before));
            *registration = registration.in_group(&inputs.mesh.workload_groups);
            let health = registration.first_health(before.map(|before| &**before));
            set_health(registration, health);
        }
        let before = inputs.registrations.clone();
        self.publish_own(&mut inputs, News::Registrations, &registrations)?;
        drop(inputs);
        tell_of_changes(&before, &registrations);
        Ok(())
    }

    /// Takes what checks have found. Of a service that has been registered anew meanwhile, nothing was found yet.
    pub fn take_health(&self, found: &[(Arc<LocalService>, Health)]) -> Result<(), String> {
        let mut inputs = self.lock();
        let mut registrations = inputs.registrations.clone();
        for (checked, health) in found {
            let same = registrations.iter_mut().find(|registered| registered.is_checked_like(checked));
            same.into_iter().for_each(|registered| set_health(registered, *health));
        }
        if registrations == inputs.registrations {
            return Ok(());
        }
        self.publish_own(&mut inputs, News::Host, &registrations)
    }

    /// Remembers that a state of the source was refused before it came here.
    pub fn refuse(&self, reason: String) {
        self.note_refusal(&mut self.lock(), News::Mesh, reason);
    }

    /// Remembers that the host's registrations were refused before they came here.
    pub fn refuse_registrations(&self, reason: String) {
        self.note_refusal(&mut self.lock(), News::Registrations, reason);
    }

    /// Notes that a list of revoked certificates was not taken.
    pub fn refuse_list(&self, older: &OlderList) {
        self.metrics.refused_revocation_lists.inc();
        tracing::error!("{older}");
    }

    /// The source is what is in force again.
    pub fn clear_refusal(&self) {
        self.lock().refused.remove(&News::Mesh);
    }

    /// Takes what DNS says of names. A state that was good with other addresses is with these.
    pub fn take_resolved(&self, resolved: Resolved) {
        let mut inputs = self.lock();
        if *self.snapshot.load().resolved == resolved {
            return;
        }
        inputs.resolved = Arc::new(resolved);
        let registrations = inputs.registrations.clone();
        // What keeps it from coming into force is noted there.
        let _ = self.publish_own(&mut inputs, News::Host, &registrations);
    }

    /// Takes the addresses at which others reach this host now, and why it is these, and has its services registered there.
    /// Returns whether they are others than before.
    pub fn take_addresses(&self, addresses: Vec<IpAddr>, why: &str) -> Result<bool, String> {
        let mut inputs = self.lock();
        if inputs.host.addresses == addresses {
            return Ok(false);
        }
        let host = Host { addresses, why: why.into(), ..inputs.host.clone() };
        let before = std::mem::replace(&mut inputs.host, host);
        let registrations = inputs.registrations.clone();
        if let Err(reason) = self.publish_own(&mut inputs, News::Host, &registrations) {
            inputs.host = before;
            return Err(reason);
        }
        // They are the same, and are to be told with other addresses.
        self.registered.send_modify(|_| {});
        Ok(true)
    }

    /// Takes what is known of containers.
    pub fn take_containers(&self, known: Known) -> Result<(), String> {
        let mut inputs = self.lock();
        inputs.known = Arc::new(known);
        let registrations = in_containers(&inputs.registrations, &inputs.known);
        if registrations == inputs.registrations {
            return Ok(());
        }
        self.publish_own(&mut inputs, News::Host, &registrations)
    }

    /// What is known of containers.
    pub fn containers(&self) -> Arc<Known> {
        Arc::clone(&self.lock().known)
    }

    /// Publishes what changed on this host, under the mesh in force.
    fn publish_own(
        &self,
        inputs: &mut Inputs,
        news: News,
        registrations: &[Arc<LocalService>],
    ) -> Result<(), String> {
        let mesh = (Arc::clone(&inputs.mesh), inputs.version);
        self.publish(inputs, news, mesh, registrations)
    }

    fn publish(
        &self,
        inputs: &mut Inputs,
        news: News,
        (mesh, version): (Arc<Mesh>, u64),
        registrations: &[Arc<LocalService>],
    ) -> Result<(), String> {
        let previous = self.snapshot.load();
        let registrations = in_groups(&mesh, registrations);
        let known = (Some(&**previous), &inputs.resolved);
        match Snapshot::build_resolved(&mesh, &registrations, (&inputs.host, self.hbone_port), known) {
            Ok(snapshot) => {
                let identities = snapshot.identities.clone();
                // Before it is in force: a call by it finds what it needs.
                self.originations.load(&snapshot);
                self.metrics.rate_limits.are(&snapshot.rate_limits);
                self.metrics.external_authorization.are(&snapshot.providers);
                self.snapshot.store(Arc::new(snapshot));
                (inputs.mesh, inputs.version) = (mesh, version);
                inputs.registrations.clone_from(&registrations);
                if news == News::Mesh {
                    inputs.taken = SystemTime::now();
                }
                inputs.refused.remove(&news);
                // It did not fit what was in force then, and that has changed.
                if news != News::Host {
                    inputs.refused.remove(&News::Host);
                }
                self.tell(inputs, identities, registrations);
                Ok(())
            }
            Err(error) => {
                let reason = error.to_string();
                self.note_refusal(inputs, news, reason.clone());
                Err(reason)
            }
        }
    }

    fn note_refusal(&self, inputs: &mut Inputs, news: News, reason: String) {
        self.metrics.rejected_configurations.inc();
        tracing::error!(of = %news, reason, "a new state was refused; the last good one stays in force");
        inputs.refused.insert(news, reason);
    }

    fn tell(&self, inputs: &Inputs, identities: Vec<Identity>, registrations: Vec<Arc<LocalService>>) {
        note(&self.metrics, inputs);
        self.wanted.send_if_modified(|wanted| {
            let changed = *wanted != identities;
            *wanted = identities;
            changed
        });
        self.registered.send_if_modified(|registered| {
            let changed = *registered != registrations;
            *registered = registrations;
            changed
        });
        self.changed.send_modify(|version| *version += 1);
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Inputs> {
        self.inputs.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The registrations with what their groups say of them.
fn in_groups(mesh: &Mesh, registrations: &[Arc<LocalService>]) -> Vec<Arc<LocalService>> {
    registrations.iter().map(|registration| registration.in_group(&mesh.workload_groups)).collect()
}

fn set_health(registration: &mut Arc<LocalService>, health: Health) {
    if registration.health != health {
        *registration = Arc::new(LocalService { health, ..LocalService::clone(registration) });
    }
}

/// Notes in the log which services of this host came, changed and went.
fn tell_of_changes(before: &[Arc<LocalService>], now: &[Arc<LocalService>]) {
    let of = |all: &[Arc<LocalService>], one: &LocalService| {
        all.iter().find(|other| other.key == one.key).cloned()
    };
    for one in now {
        match of(before, one) {
            None => tracing::info!(service = %one.key, "the service is registered on this host"),
            // Whether it is well is told where it is found out.
            Some(former) if LocalService { health: one.health, ..LocalService::clone(&former) } != **one => {
                tracing::info!(service = %one.key, "the service is registered anew on this host");
            }
            Some(_) => {}
        }
    }
    for one in before.iter().filter(|one| of(now, one).is_none()) {
        tracing::info!(service = %one.key, "the service is no longer registered on this host");
    }
}

/// Tells the metrics which state is in force.
fn note(metrics: &Metrics, inputs: &Inputs) {
    metrics.of_mesh(inputs.mesh.config.name.as_str());
    metrics.snapshot_version.set(i64::try_from(inputs.version).unwrap_or(i64::MAX));
    let taken = inputs.taken.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
    metrics.snapshot_taken.set(i64::try_from(taken).unwrap_or(i64::MAX));
}

#[cfg(test)]
mod tests;
