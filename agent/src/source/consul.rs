//! Consul as source: policy, trust and virtual addresses from its key-value store, endpoints from its catalog. This host's
//! own services are registered at the Consul agent beside it. What is known is kept on the disk, and an agent starts from
//! it with Consul dead; while Consul is away, the last good state serves.

/// Following the key-value store.
mod store;
/// Following the catalog.
mod catalog;
/// Which services are waited for, and which are read in turn.
mod choice;
/// Registering this host's services.
mod registering;
/// What is known, and what is published of it.
mod known;
/// How Consul stands, as it is shown.
pub mod standing;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use baremesh_model::mesh::Mesh;
use baremesh_model::name::Label;
use baremesh_registry::consul::catalog::Leader;
use baremesh_registry::consul::{Client, Settings, state};
use baremesh_registry::control::REVOKED;
use baremesh_registry::control::client::backoff;
use baremesh_registry::control::followed::{Entries, Entry, Followed, WholeError};
use baremesh_registry::control::subscription::Subscription;
use serde_json::Value;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;

use self::known::{Holding, Known};
use self::standing::Standing;
use super::resources::Resources;
use crate::agent::{AgentError, empty_mesh};
use crate::membership::Membership;
use crate::proxy::socket::{self, Mark};
use crate::publish::Publisher;
use crate::telemetry::metrics::Metrics;
use crate::trust::Trust;

/// The file of the last good state.
const STATE_FILE: &str = "last-good-consul.state";
/// How long connecting to Consul may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// How long what is heard is gathered before it is published as one.
const GATHER: Duration = Duration::from_millis(200);
/// The same while a call waits for an answer.
const GATHER_FOR_CALL: Duration = Duration::from_millis(20);
/// How much may be heard that is not yet looked at.
const HEARD: usize = 256;
/// How often it is looked at what is held although the catalog lacks it.
const LOOK: Duration = Duration::from_secs(30);
/// The longest wait for something new.
const WAIT: Duration = Duration::from_secs(60);

/// A part of what is followed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Part {
    Resources,
    Trust,
    Addresses,
    Catalog,
    Registrations,
}

impl Part {
    fn in_words(self) -> &'static str {
        match self {
            Self::Resources => "resources",
            Self::Trust => "what is trusted",
            Self::Addresses => "virtual addresses",
            Self::Catalog => "the catalog",
            Self::Registrations => "this host's registrations",
        }
    }
}

/// What a follower tells.
#[derive(Debug)]
enum Heard {
    /// Something is known now.
    Known(known::News),
    /// A part is in reach, and at which index it stands where it has one.
    Fine(Part, Option<u64>),
    /// A part is not, and why.
    Failed(Part, String),
    /// Who leads; nothing where nobody says so.
    Leader(Option<Leader>),
}

/// Consul to follow.
pub struct ConsulSource {
    settings: Settings,
    followed: Followed,
    file: PathBuf,
    trust: Arc<Trust>,
    mark: Mark,
    host: Label,
    subscription: watch::Receiver<Subscription>,
    notes: watch::Sender<Vec<String>>,
    standing: watch::Sender<Standing>,
}

impl ConsulSource {
    /// With the last good state of the state directory. What that says of trust is in force from here on.
    pub fn open(settings: Settings, state: &Path, membership: &Membership, trust: &Arc<Trust>) -> Self {
        let file = state.join(STATE_FILE);
        let followed = Followed::load(&file).unwrap_or_else(|error| {
            tracing::error!(%error, "the last good state cannot be used; Consul is asked for a new one");
            Followed::new(Some(file.clone()))
        });
        let values = followed.values();
        if let Err(reason) = trust.take(|key| values.get(key).cloned()) {
            tracing::error!(file = %file.display(), reason, "what the last good state says of trust cannot be used");
        }
        let (trust, host) = (Arc::clone(trust), membership.host.clone());
        let (notes, standing) = (watch::Sender::default(), watch::Sender::default());
        let subscription = watch::channel(Subscription::All).1;
        Self { settings, followed, file, trust, mark: Mark(None), host, subscription, notes, standing }
    }

    /// The last good mesh, or an empty one that lets nobody in without a certificate; with its version.
    pub fn last_good(&self, membership: &Membership) -> Result<(Mesh, u64), AgentError> {
        if self.followed.entries().is_empty() {
            return Ok((empty_mesh(membership)?, 0));
        }
        match Derived::default().mesh(&self.followed.values(), (&self.settings, &self.trust)).1 {
            Ok(mesh) => Ok((mesh, self.followed.version())),
            Err(reason) => {
                tracing::error!(file = %self.file.display(), reason, "the last good state cannot be used");
                Ok((empty_mesh(membership)?, 0))
            }
        }
    }

    /// The state that is on the disk now, with its version; nothing where there is none.
    pub fn reread(&mut self) -> Result<Option<(Mesh, u64)>, String> {
        let followed = Followed::load(&self.file).map_err(|error| error.to_string())?;
        if followed.entries().is_empty() {
            return Ok(None);
        }
        let values = followed.values();
        self.trust.take(|key| values.get(key).cloned())?;
        let mesh = Derived::default().mesh(&values, (&self.settings, &self.trust)).1?;
        let version = followed.version();
        self.followed = followed;
        Ok(Some((mesh, version)))
    }

    /// Connects over sockets that no rule captures from now on.
    pub fn with(self, mark: Mark) -> Self {
        Self { mark, ..self }
    }

    /// Holds these endpoints, and not all.
    pub fn asking_for(self, subscription: watch::Receiver<Subscription>) -> Self {
        Self { subscription, ..self }
    }

    /// What operators ought to know of it, in words.
    pub fn notes(&self) -> watch::Receiver<Vec<String>> {
        self.notes.subscribe()
    }

    /// How Consul stands, as it changes.
    pub fn standing(&self) -> watch::Receiver<Standing> {
        self.standing.subscribe()
    }

    /// Follows Consul until `leaving`, and takes this host's services out of it then.
    pub async fn follow(
        self,
        publisher: Arc<Publisher>,
        connected: watch::Sender<bool>,
        metrics: Arc<Metrics>,
        leaving: impl Future<Output = ()>,
    ) {
        let (tell, heard) = mpsc::channel(HEARD);
        let mark = self.mark;
        let dial = move || -> Arc<baremesh_ca::client::Dial> {
            Arc::new(move |to| Box::pin(socket::connect(to, mark, CONNECT_TIMEOUT)))
        };
        let client = Client::new(self.settings.clone(), dial());
        let beside = Client::new(self.settings.of_agent(), dial());
        let registering = registering::Registering::new(beside, self.host.clone(), Arc::clone(&publisher));
        // They end with this function.
        let mut followers = JoinSet::new();
        followers.spawn(store::resources(client.clone(), tell.clone()));
        followers.spawn(store::trust(client.clone(), tell.clone()));
        followers.spawn(store::addresses(client.clone(), tell.clone()));
        let (ask, asked) = watch::channel(self.subscription.borrow().clone());
        followers.spawn(catalog::follow(client.clone(), tell.clone(), asked));
        followers.spawn(standing::follow(client, tell.clone()));
        let goodbye = registering.clone();
        followers.spawn(registering.keep(tell));
        tokio::select! {
            () = Box::pin(self.take_all((heard, ask), &publisher, &connected, &metrics)) => {}
            () = leaving => {}
        }
        // Nothing is registered again behind the goodbye.
        followers.shutdown().await;
        goodbye.say().await;
    }

    async fn take_all(
        self,
        (mut heard, ask): (mpsc::Receiver<Heard>, watch::Sender<Subscription>),
        publisher: &Publisher,
        connected: &watch::Sender<bool>,
        metrics: &Metrics,
    ) {
        let Self { settings, mut followed, trust, mut subscription, notes, standing, .. } = self;
        let mut known = Known::new(&followed, ask.borrow().clone(), Instant::now());
        let mut derived = Derived::default();
        let mut attempt = 0;
        let (mut again, mut took) = (None, GATHER);
        loop {
            let (mut looked, mut gather) = (false, took.max(GATHER));
            let patience = known.patience(Instant::now()).unwrap_or(LOOK);
            tokio::select! {
                first = heard.recv() => match first {
                    Some(first) => known.take(first, Instant::now()),
                    None => return,
                },
                Ok(()) = subscription.changed() => {
                    let asked = subscription.borrow_and_update().clone();
                    known.ask(&asked, Instant::now());
                    ask.send_replace(asked);
                    gather = Duration::ZERO;
                }
                () = tokio::time::sleep(again.unwrap_or(LOOK).min(patience)) => looked = true,
            }
            if known.patience(Instant::now()).is_some() || patience < LOOK {
                gather = gather.min(GATHER_FOR_CALL);
            }
            // Publishing takes half of the time at most, however large the mesh is, unless a call waits.
            tokio::time::sleep(gather).await;
            while let Ok(more) = heard.try_recv() {
                known.take(more, Instant::now());
            }
            let is_connected = known.is_connected();
            connected.send_if_modified(|before| std::mem::replace(before, is_connected) != is_connected);
            standing.send_replace(known.standing().clone());
            metrics.registry_connected.set(i64::from(is_connected));
            if known.is_changed() || looked {
                let began = Instant::now();
                again = match publish(
                    &mut known,
                    (&mut followed, &mut derived),
                    (&settings, &trust),
                    publisher,
                ) {
                    Ok(()) => {
                        attempt = 0;
                        None
                    }
                    // A refused state stays refused until something is heard; a full disk may have room again.
                    Err(WholeError::Unsaved(error)) => {
                        tracing::error!(%error, "the state in force is not on the disk");
                        attempt += 1;
                        Some(backoff(attempt, rand::random()).max(GATHER))
                    }
                    Err(WholeError::Refused(_) | WholeError::Bounds(_)) => None,
                };
                took = began.elapsed();
            }
            let holding = known.holding(Instant::now());
            if let Err(reason) = derived.hold(holding, &followed, (&settings, &trust), publisher) {
                publisher.refuse(reason);
            }
            let said = known.notes();
            notes.send_if_modified(|notes| {
                let changed = *notes != said;
                *notes = said;
                changed
            });
        }
    }
}

/// What the entries of the mesh were last, and what was read from them.
#[derive(Default)]
struct Derived {
    entries: Entries,
    resources: Resources,
    /// The mesh that is in force, with all endpoints, and which of them the publisher has.
    in_force: Option<(Mesh, Option<Holding>)>,
}

impl Derived {
    /// The mesh of some inputs, with all endpoints.
    fn mesh(
        &mut self,
        inputs: &BTreeMap<String, Value>,
        (settings, trust): (&Settings, &Trust),
    ) -> (state::Derived, Result<Mesh, String>) {
        let derived = state::derive(inputs, settings);
        self.entries = entries_of(&derived.entries, &self.entries);
        let made = self.resources.mesh(&self.entries, &trust.now());
        (derived, made)
    }

    /// Publishes what is in force as a host knows it that holds these endpoints, where that is not the case yet.
    fn hold(
        &mut self,
        holding: Holding,
        followed: &Followed,
        with: (&Settings, &Trust),
        publisher: &Publisher,
    ) -> Result<(), String> {
        if followed.entries().is_empty() {
            return Ok(());
        }
        let mesh = match self.in_force.take() {
            Some((mesh, Some(held))) if held == holding => {
                self.in_force = Some((mesh, Some(held)));
                return Ok(());
            }
            Some((mesh, _)) => mesh,
            // The agent has begun with it.
            None => self.mesh(&followed.values(), with).1?,
        };
        let held = mesh.clone().holding(|service| holding.holds(service));
        let told = publisher.take_mesh(held, followed.version());
        self.in_force = Some((mesh, told.is_ok().then_some(holding)));
        told
    }
}

/// Values as entries; those that have not changed are the ones from before.
fn entries_of(values: &BTreeMap<String, Value>, before: &Entries) -> Entries {
    let entry = |(key, value): (&String, &Value)| {
        let entry = Entry::of(key, value);
        let known = before.get(key).filter(|known| ***known == entry);
        (key.clone(), known.map_or_else(|| Arc::new(entry), Arc::clone))
    };
    values.iter().map(entry).collect()
}

/// Publishes what is known, where there is a whole set of resources, and keeps it.
fn publish(
    known: &mut Known,
    (followed, before): (&mut Followed, &mut Derived),
    (settings, trust): (&Settings, &Trust),
    publisher: &Publisher,
) -> Result<(), WholeError> {
    let Some((mut inputs, version)) = known.inputs(Instant::now()) else { return Ok(()) };
    let is_in_force = |inputs: &BTreeMap<String, Value>, followed: &Followed, known: &Known| {
        !known.is_unsaved() && followed.is_of(inputs, version)
    };
    if is_in_force(&inputs, followed, known) {
        known.note_older_list(None);
        return Ok(());
    }
    // Not put off by anything that this agent cannot take.
    let older = match trust.take(|key| inputs.get(key).cloned()) {
        Ok(older) => older,
        Err(reason) => {
            publisher.refuse(reason.clone());
            return Err(WholeError::Refused(reason));
        }
    };
    // What is kept on the disk is what is in force.
    inputs.extend(older.as_ref().and_then(|older| Some((REVOKED.to_owned(), older.kept.clone()?))));
    if let Some(news) = known.note_older_list(older) {
        publisher.refuse_list(news);
    }
    if is_in_force(&inputs, followed, known) {
        return Ok(());
    }
    let holding = known.holding(Instant::now());
    let (inputs, derived, made, instead) = in_any_case(inputs, followed, before, (settings, trust));
    if instead.is_some() && is_in_force(&inputs, followed, known) {
        known.published(&Ok(()), derived.report, instead);
        return Ok(());
    }
    let put = followed.put_in_force(&inputs, version, || {
        let mesh = made.inspect_err(|reason| publisher.refuse(reason.clone()))?;
        publisher.take_mesh(mesh.clone().holding(|service| holding.holds(service)), version)?;
        before.in_force = Some((mesh, Some(holding)));
        Ok(())
    });
    if let Err(WholeError::Bounds(error)) = &put {
        publisher.refuse(error.to_string());
    }
    known.published(&put, derived.report, instead);
    put
}

/// A mesh of the inputs. Should what stands in the catalog keep one from being made, for a reason that deriving it does not
/// know, one of the same resources with the catalog as it was in force last, or with none: policy goes on. What it was made of, and what
/// is to be said then.
fn in_any_case(
    inputs: BTreeMap<String, Value>,
    followed: &Followed,
    before: &mut Derived,
    with: (&Settings, &Trust),
) -> (BTreeMap<String, Value>, state::Derived, Result<Mesh, String>, Option<String>) {
    let (derived, made) = before.mesh(&inputs, with);
    let Err(reason) = &made else { return (inputs, derived, made, None) };
    let last = followed.values();
    for (of, words) in [(Some(&last), "the catalog of before"), (None, "nothing of the catalog")] {
        let others = state::with_catalog(&inputs, of);
        let (derived, made) = before.mesh(&others, with);
        if made.is_ok() {
            let said =
                format!("Consul's catalog cannot come into force: {reason}; {words} is, with all policy");
            return (others, derived, made, Some(said));
        }
    }
    (inputs, derived, made, None)
}
