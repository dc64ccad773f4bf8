//! The control server's state behind one handle. Changes take turns: each is decided, stored, applied and
//! published before the next begins, on a thread that may block, and goes on to its end even when the session
//! that asked for it has gone.

use std::collections::BTreeSet;
use std::fmt;
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime};

use baremesh_model::identity::Identity;
use baremesh_model::mesh_config::MeshConfig;
use baremesh_model::name::{Key, Label};
use baremesh_model::service::Service;
use baremesh_model::service_entry::ServiceEntry;
use baremesh_model::workload::Workload;
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{Semaphore, watch};

use super::addresses::AddressError;
use super::admission::Refusal;
use super::catalog::{Change, Declared};
use super::codec::MAX_MESSAGE;
use super::leases::Alarm;
use super::memory::{Core, HostStatus};
use super::message::{Outcome, Unknown};
use super::ownership::{AddressGrants, NotOwn, of_one_network, owned};
use super::push::MAX_LARGE_PUSHES;
use super::registration::{Registration, RegistrationError};
use super::session::{self, SessionError};
use super::store::{Store, StoreError};
use super::turns::Shared;

/// Largest resource in bytes, as JSON: a message less what goes around it and what an assigned address adds.
pub const MAX_RESOURCE: usize = MAX_MESSAGE - 4096;
/// Most hosts.
pub const MAX_HOSTS: usize = 20_000;
/// How often leases are looked at.
pub const SWEEP: Duration = Duration::from_secs(1);

/// How services and workloads are written in the values of resources.
#[derive(Clone, Copy)]
pub struct Format {
    /// Reads a Service.
    pub read_service: fn(&Key, &Value) -> Result<Service, String>,
    /// Writes a Service.
    pub write_service: fn(&Service) -> Value,
    /// Reads a WorkloadEntry.
    pub read_workload: fn(&Key, &Value) -> Result<Workload, String>,
    /// Writes a WorkloadEntry.
    pub write_workload: fn(&Workload) -> Value,
    /// Reads a ServiceEntry.
    pub read_service_entry: fn(&Key, &Value) -> Result<ServiceEntry, String>,
    /// Writes a ServiceEntry.
    pub write_service_entry: fn(&ServiceEntry) -> Value,
}

/// Says which identities a host may be given. Called on a thread that may block, once a registration.
pub type Grants = Arc<dyn Fn(&Label, &Identity) -> bool + Send + Sync>;

/// What a control server is told at its start.
#[derive(Clone)]
pub struct Settings {
    /// A lease's length.
    pub lease: Duration,
    /// The server's version, told to agents.
    pub version: String,
    /// The written forms.
    pub format: Format,
    /// Which identities a host may be given.
    pub allowed: Grants,
    /// Which addresses a host may announce besides those that it speaks from.
    pub addresses: AddressGrants,
}

/// Why a change was refused. Nothing has changed.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)] // The messages say what each is.
pub enum ControlError {
    #[error("{key}: {reason}")]
    Resource { key: String, reason: String },
    #[error("{key} is {size} bytes, and the limit is {MAX_RESOURCE}: split it")]
    TooLarge { key: String, size: usize },
    #[error(transparent)]
    Address(#[from] AddressError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("a newer session of this host has taken over")]
    Superseded,
    #[error("the control server is stopping")]
    Stopping,
}

/// What went wrong on connections, since the start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Counts {
    /// Messages of types that only another version knows.
    pub unknown_messages: u64,
    /// Fields that only another version knows.
    pub unknown_fields: u64,
    /// Sessions that ended in an error.
    pub failed_sessions: u64,
}

/// The control server. Cheap to clone.
#[derive(Clone)]
pub struct Control(pub(super) Arc<Shared>);

impl fmt::Debug for Control {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Control").field("version", &*self.0.version.borrow()).finish_non_exhaustive()
    }
}

impl Control {
    /// Takes up the stored records. Every host that has not said goodbye gets one full lease, and
    /// `RETURN_WAIT` at least.
    pub async fn open(store: Store, settings: Settings) -> Result<Self, ControlError> {
        let loading = tokio::task::spawn_blocking(move || store.load().map(|records| (store, records)));
        let (store, records) = loading.await.map_err(|_| ControlError::Stopping)??;
        let core = Core::load(&records, rand::random(), settings.lease, Instant::now());
        Ok(Self(Arc::new(Shared {
            settings,
            unknown: Unknown::default(),
            failed_sessions: AtomicU64::new(0),
            version: watch::Sender::new(None),
            large_pushes: Arc::new(Semaphore::new(MAX_LARGE_PUSHES)),
            store,
            turn: Arc::default(),
            core: Mutex::new(core),
        })))
    }

    /// Puts other resources in force, as one. They have been validated as a set; `Kind/namespace/name` to value.
    pub async fn set_resources(
        &self,
        config: MeshConfig,
        resources: Vec<(String, Value)>,
    ) -> Result<(), ControlError> {
        self.take_turn(move |shared| {
            let declared = declare(config, &resources, &shared.settings.format)?;
            shared.redeclare(declared, Some(resources.into_iter().collect()))?;
            let version = shared.core().state.version();
            // From the first time on there is a mesh to tell agents of.
            shared.version.send_if_modified(|published| published.replace(version) != Some(version));
            Ok(())
        })
        .await
    }

    /// Runs one agent's session to its end. `host` is who the agent's certificate says it is, and `from` the addresses
    /// that the connection shows to be the host's.
    pub async fn connect<R, W>(
        &self,
        host: Label,
        from: Vec<IpAddr>,
        reader: R,
        writer: W,
    ) -> Result<(), SessionError>
    where
        R: AsyncRead + Unpin,
        W: AsyncWrite + Unpin,
    {
        session::run(self, (host, from), reader, writer).await
    }

    /// Takes addresses for a host's from which it spoke with its node credential, and says which of `wanted` would be
    /// refused if the host registered them, in a session that begins next too.
    pub async fn show(
        &self,
        host: Label,
        from: Vec<IpAddr>,
        wanted: Vec<IpAddr>,
    ) -> Result<Vec<IpAddr>, ControlError> {
        self.0.core().show(&host, &from, Instant::now());
        self.settle(&host, from).await?;
        let shared = self.0.clone();
        let asking = tokio::task::spawn_blocking(move || {
            let checked = shared.check(&host, wanted.into_iter().collect());
            let core = shared.core();
            let long_ago = |address| core.showed_long_ago(&host, address, Instant::now());
            let unknown = |(address, checked): (IpAddr, Result<(), NotOwn>)| {
                (checked.is_err() || long_ago(address)).then_some(address)
            };
            checked.into_iter().filter_map(unknown).collect()
        });
        asking.await.map_err(|_| ControlError::Stopping)
    }

    /// Takes addresses back from other hosts' registrations that `host` speaks from.
    pub(super) async fn settle(&self, host: &Label, from: Vec<IpAddr>) -> Result<(), ControlError> {
        let others = |core: &Core| {
            let claims = from.iter().flat_map(|address| core.catalog.claims.hosts_at(*address));
            claims.filter(|other| *other != host).cloned().collect::<BTreeSet<Label>>()
        };
        let others = others(&self.0.core());
        if others.is_empty() {
            return Ok(());
        }
        self.take_turn(move |shared| Ok(shared.revise(&others)?)).await
    }

    /// Takes a registration back on an operator's word. False when there is none.
    pub async fn deregister(&self, host: Label, service: Key) -> Result<bool, ControlError> {
        self.take_turn(move |shared| {
            let changes = shared.core().catalog.deregister(&host, &service, SystemTime::now());
            shared.change(&changes, None)?;
            Ok(!changes.is_empty())
        })
        .await
    }

    /// Ends the leases that have run out. `run` calls it; tests bring their own clock.
    pub async fn sweep(&self, now: Instant) -> Result<(), ControlError> {
        self.take_turn(move |shared| {
            let mut core = shared.core();
            let before = core.leases.alarm().is_some();
            let expired = core.leases.sweep(now);
            match core.leases.alarm() {
                Some(Alarm { silent, hosts, .. }) if !before => tracing::error!(
                    silent,
                    hosts,
                    "many hosts fell silent at once: their endpoints are kept. Is this server's network up? \
                     Clear the alarm if the hosts are really gone"
                ),
                None if before => tracing::info!("the hosts that fell silent are back or few"),
                _ => {}
            }
            shared.expire(core, &expired);
            Ok(())
        })
        .await
    }

    /// Sweeps leases until it is dropped.
    pub async fn run(&self) {
        let mut ticks = tokio::time::interval(SWEEP);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            if let Err(error) = self.sweep(Instant::now()).await {
                tracing::error!(%error, "leases were not looked at");
            }
        }
    }

    /// The alarm in force: many hosts fell silent at once.
    pub fn alarm(&self) -> Option<Alarm> {
        self.0.core().leases.alarm().cloned()
    }

    /// An operator's word that the silent hosts are gone. Returns them.
    pub async fn clear_alarm(&self) -> Result<Vec<Label>, ControlError> {
        self.take_turn(|shared| {
            let mut core = shared.core();
            let expired = core.leases.clear(Instant::now());
            shared.expire(core, &expired);
            Ok(expired)
        })
        .await
    }

    /// Every host that is known, in order.
    pub fn status(&self) -> Vec<HostStatus> {
        self.0.core().status(Instant::now())
    }

    /// All that is pushed: keys and values as JSON text.
    pub fn published(&self) -> Vec<(Arc<str>, Arc<str>)> {
        self.0.core().state.iter().map(|(key, text)| (key.clone(), text.into())).collect()
    }

    /// Follows the newest version; `None` before the first resources.
    pub fn versions(&self) -> watch::Receiver<Option<u64>> {
        self.0.version.subscribe()
    }

    /// What went wrong on connections.
    pub fn counts(&self) -> Counts {
        Counts {
            unknown_messages: self.0.unknown.messages(),
            unknown_fields: self.0.unknown.fields(),
            failed_sessions: self.0.failed_sessions.load(Ordering::Relaxed),
        }
    }

    pub(super) async fn register(
        &self,
        host: Label,
        session: u64,
        list: Vec<Result<Registration, RegistrationError>>,
    ) -> Result<Vec<Result<Vec<NotOwn>, Refusal>>, ControlError> {
        self.take_turn(move |shared| {
            let allowed = &*shared.settings.allowed;
            let (network, list) = of_one_network(list);
            let mut core = shared.core();
            // A session that was superseded says nothing of its host any more.
            if !core.is_current(&host, session) {
                return Err(ControlError::Superseded);
            }
            core.place(&host, network.as_ref());
            drop(core);
            let named = list.iter().flatten().flat_map(|registration| registration.addresses.iter().copied());
            let checked = shared.check(&host, named.collect());
            let check = |address: IpAddr| checked.get(&address).cloned().unwrap_or(Ok(()));
            let (list, faults): (Vec<_>, Vec<_>) =
                list.into_iter().map(|registration| owned(registration, check)).unzip();
            let core = shared.core();
            if !core.is_current(&host, session) {
                return Err(ControlError::Superseded);
            }
            // It is this change's turn: the catalog stays as it is while the state is not locked.
            let catalog = core.catalog.clone();
            drop(core);
            let plan = catalog.register(&host, &list, &|h, i| allowed(h, i), SystemTime::now());
            drop(catalog);
            shared.change(&plan.changes, Some((&host, true)))?;
            let outcomes = plan.outcomes.into_iter().zip(faults);
            Ok(outcomes.map(|(outcome, faults)| outcome.map(|()| faults)).collect())
        })
        .await
    }

    /// Notes what was refused for the operator. True when it is not what was refused before.
    pub(super) fn note_refused(&self, host: &Label, refused: &[Outcome]) -> bool {
        let mut core = self.0.core();
        let agent = core.agent(host);
        let news = agent.refused != refused;
        agent.refused = refused.to_vec();
        news
    }

    pub(super) async fn renew(&self, host: &Label, session: u64) -> Result<(), ControlError> {
        let returned = self.0.core().renew(host, session, Instant::now());
        if !returned {
            return Ok(());
        }
        // The lease had run out, and the session outlived it: what is stored holds together and is back.
        let host = host.clone();
        self.take_turn(move |shared| Ok(shared.change(&[], Some((&host, true)))?)).await
    }

    pub(super) async fn goodbye(&self, host: Label, session: u64) -> Result<(), ControlError> {
        self.take_turn(move |shared| {
            let mut core = shared.core();
            if !core.is_current(&host, session) {
                return Err(ControlError::Superseded);
            }
            core.leases.end(&host);
            let known = core.catalog.hosts().get(&host).is_some_and(|entry| !entry.registrations.is_empty());
            drop(core);
            let departed = Change::Departed { host: host.clone(), departed: true };
            let changes = if known { vec![departed] } else { Vec::new() };
            if let Err(error) = shared.change(&changes, Some((&host, false))) {
                // The endpoints go all the same; after a restart the host would have one lease more.
                tracing::warn!(%host, %error, "the host's goodbye was not stored");
                shared.change(&[], Some((&host, false)))?;
            }
            Ok(())
        })
        .await
    }

    pub(super) async fn take_turn<T: Send + 'static>(
        &self,
        change: impl FnOnce(&Shared) -> Result<T, ControlError> + Send + 'static,
    ) -> Result<T, ControlError> {
        let turn = self.0.turn.clone().lock_owned().await;
        let shared = self.0.clone();
        let running = tokio::task::spawn_blocking(move || {
            let _turn = turn;
            change(&shared)
        });
        running.await.map_err(|_| ControlError::Stopping)?
    }
}

fn declare(
    config: MeshConfig,
    resources: &[(String, Value)],
    format: &Format,
) -> Result<Declared, ControlError> {
    let mut declared = Declared { config, ..Declared::default() };
    for (name, value) in resources {
        let size = name.len() + value.to_string().len();
        if size > MAX_RESOURCE {
            return Err(ControlError::TooLarge { key: name.clone(), size });
        }
        let refused = |reason: String| ControlError::Resource { key: name.clone(), reason };
        let (kind, key) = parse_key(name).ok_or_else(|| refused("not a resource's key".to_owned()))?;
        match kind {
            "Service" => {
                let service = (format.read_service)(&key, value).map_err(refused)?;
                declared.services.insert(key, service);
            }
            "WorkloadEntry" => {
                let workload = (format.read_workload)(&key, value).map_err(refused)?;
                declared.workloads.insert(key, workload);
            }
            "ServiceEntry" => {
                let entry = (format.read_service_entry)(&key, value).map_err(refused)?;
                declared.service_entries.insert(key, Arc::new(entry));
            }
            _ => {}
        }
    }
    Ok(declared)
}

/// Reads `Kind/namespace/name`.
pub fn parse_key(key: &str) -> Option<(&str, Key)> {
    let (kind, rest) = key.split_once('/')?;
    let (namespace, name) = rest.split_once('/')?;
    Some((kind, Key::new(Label::new(namespace).ok()?, Label::new(name).ok()?)))
}
