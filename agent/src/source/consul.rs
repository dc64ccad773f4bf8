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
/// The mesh that is made of it.
mod in_force;
/// How Consul stands, as it is shown.
pub mod standing;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use baremesh_model::mesh::Mesh;
use baremesh_model::name::Label;
use baremesh_registry::consul::catalog::Leader;
use baremesh_registry::consul::{Client, Settings};
use baremesh_registry::control::client::backoff;
use baremesh_registry::control::followed::{Followed, WholeError};
use baremesh_registry::control::subscription::Subscription;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;

use self::in_force::{Derived, publish};
use self::known::Known;
use self::standing::Standing;
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
        let (mut attempt, mut again) = (0, None);
        let (mut looked, mut took) = (Instant::now(), Duration::ZERO);
        loop {
            let look = looked + again.unwrap_or(LOOK);
            // Publishing takes half of the time at most, however large the mesh is.
            let due = |known: &Known| known.publish_at(took.max(GATHER)).unwrap_or(look);
            let now = Instant::now();
            let wait = due(&known).saturating_duration_since(now);
            tokio::select! {
                first = heard.recv() => match first {
                    Some(first) => known.take(first, Instant::now()),
                    None => return,
                },
                Ok(()) = subscription.changed() => {
                    let asked = subscription.borrow_and_update().clone();
                    known.ask(&asked, Instant::now());
                    ask.send_replace(asked);
                }
                () = tokio::time::sleep(known.patience(now).map_or(wait, |patience| wait.min(patience))) => {}
            }
            while let Ok(more) = heard.try_recv() {
                known.take(more, Instant::now());
            }
            let is_connected = known.is_connected();
            connected.send_if_modified(|before| std::mem::replace(before, is_connected) != is_connected);
            standing.send_replace(known.standing().clone());
            metrics.registry_connected.set(i64::from(is_connected));
            // What a call waits for is not kept back by what is gathered.
            derived.hold(known.holding(Instant::now()), &followed, (&settings, &trust), publisher);
            if Instant::now() >= due(&known) {
                looked = Instant::now();
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
                took = looked.elapsed();
                derived.hold(known.holding(Instant::now()), &followed, (&settings, &trust), publisher);
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
