//! Whose endpoints this host asks its source, the control server or Consul, for: those of services that are called from here, learnt at the first
//! call and remembered, and those that it says beforehand. A call to a service of which nothing but the addresses is known
//! waits for the rest.

/// The file of what is called.
mod remembered;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use arc_swap::ArcSwap;
use baremesh_model::name::Key;
use baremesh_registry::control::subscription::{MAX_SUBSCRIBED, Subscription};
use tokio::sync::{Notify, Semaphore, watch};
use tokio::time::{MissedTickBehavior, interval, sleep, timeout_at};

use crate::proxy::error::ProxyError;
use crate::publish::Publisher;
use crate::snapshot::Snapshot;
use crate::telemetry::metrics::Metrics;

/// Calls that wait for endpoints at once, over all workers; further ones fail. Each waits no longer than its connectTimeout.
pub const MAX_WAITING_FOR_ENDPOINTS: usize = 1024;
/// A service that nobody has called for so long is no longer asked for. Longer than what runs once a week is silent.
pub const FORGOTTEN_AFTER: Duration = Duration::from_secs(8 * 24 * 3600);
/// How often it is looked at which services were called.
const SWEEP: Duration = Duration::from_secs(3600);
/// The least time between two writes of the file.
const SAVE_GAP: Duration = Duration::from_secs(2);
/// The file, in the state directory.
const FILE: &str = "called-services";

/// How much of the mesh's endpoints is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Wanted {
    /// Those of all services.
    All,
    /// Those of services that are called from this host.
    #[default]
    Called,
}

/// Seconds since 1970.
type Seconds = u64;

/// What is asked for, and why.
#[derive(Debug, Default)]
struct Sets {
    wanted: Wanted,
    /// Services that were called, each with when that was seen last; one more than can be asked for by name, at most.
    called: BTreeMap<Key, Seconds>,
    /// Services that are asked for whoever calls; none: all.
    declared: Option<BTreeSet<Key>>,
}

impl Sets {
    fn subscription(&self) -> Subscription {
        match (&self.declared, self.wanted) {
            (Some(declared), Wanted::Called) => {
                Subscription::of(self.called.keys().chain(declared).cloned().collect())
            }
            _ => Subscription::All,
        }
    }

    /// Notes a call. True when the service was not among those called.
    fn note(&mut self, service: &Key, now: Seconds) -> bool {
        if let Some(last) = self.called.get_mut(service) {
            *last = now;
            return false;
        }
        // Where there are more, all are asked for.
        let has_room = self.called.len() <= MAX_SUBSCRIBED;
        has_room && self.called.insert(service.clone(), now).is_none()
    }

    /// Forgets what nobody calls. True when something was.
    fn forget(&mut self, now: Seconds) -> bool {
        let before = self.called.len();
        self.called.retain(|_, last| now.saturating_sub(*last) < FORGOTTEN_AFTER.as_secs());
        self.called.len() != before
    }
}

/// What is asked for, in figures.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Asked {
    /// Whether that is everything.
    pub all: bool,
    /// Services that are remembered as called.
    pub called: usize,
    /// Services that are asked for whoever calls.
    pub declared: usize,
}

/// The demand for endpoints.
pub struct Demand {
    sets: Mutex<Sets>,
    subscription: watch::Sender<Subscription>,
    waiting: Semaphore,
    snapshot: Arc<ArcSwap<Snapshot>>,
    changed: watch::Receiver<u64>,
    unsaved: Notify,
    file: PathBuf,
    metrics: Arc<Metrics>,
}

impl Demand {
    /// With what is remembered in the state directory.
    pub fn open(wanted: Wanted, state: &Path, publisher: &Publisher, metrics: &Arc<Metrics>) -> Arc<Self> {
        let file = state.join(FILE);
        let called = remembered::load(&file).unwrap_or_else(|error| {
            tracing::warn!(error, "which services are called from here is learnt anew");
            BTreeMap::new()
        });
        let snapshot = publisher.snapshot();
        let declared = snapshot.load().declared_calls();
        let mut sets = Sets { wanted, called, declared };
        sets.forget(now());
        Arc::new(Self {
            subscription: watch::Sender::new(sets.subscription()),
            sets: Mutex::new(sets),
            waiting: Semaphore::new(MAX_WAITING_FOR_ENDPOINTS),
            snapshot,
            changed: publisher.changed(),
            unsaved: Notify::new(),
            file,
            metrics: Arc::clone(metrics),
        })
    }

    /// What is to be asked for, as it changes.
    pub fn subscription(&self) -> watch::Receiver<Subscription> {
        self.subscription.subscribe()
    }

    /// What is asked for.
    pub fn asked(&self) -> Asked {
        let sets = self.lock();
        Asked {
            all: sets.subscription() == Subscription::All,
            called: sets.called.len(),
            declared: sets.declared.as_ref().map_or(0, BTreeSet::len),
        }
    }

    /// Asks for the endpoints for want of which a call cannot go on, and waits until they are there: no longer than the error
    /// says from `began` on. The error comes back where it is another, or they do not come.
    pub async fn wait(&self, error: ProxyError, began: Instant) -> Result<(), ProxyError> {
        let ProxyError::EndpointsUnknown { service, within } = &error else { return Err(error) };
        let Ok(_place) = self.waiting.try_acquire() else {
            return Err(ProxyError::Overloaded("MAX_WAITING_FOR_ENDPOINTS"));
        };
        let mut changed = self.changed.clone();
        changed.mark_unchanged();
        if self.snapshot.load().holds(service) {
            return Ok(());
        }
        self.ask(service);
        let come = async {
            while changed.changed().await.is_ok() {
                if self.snapshot.load().holds(service) {
                    return true;
                }
            }
            false
        };
        match timeout_at((began + *within).into(), come).await {
            Ok(true) => Ok(()),
            Ok(false) | Err(_) => {
                self.metrics.endpoints_not_told.inc();
                Err(error)
            }
        }
    }

    fn ask(&self, service: &Key) {
        let mut sets = self.lock();
        if sets.note(service, now()) {
            self.metrics.endpoints_asked.inc();
            self.tell(&sets);
            self.unsaved.notify_one();
        }
    }

    /// Follows what is declared, looks at what is called, and keeps the file, for ever.
    pub async fn keep(self: Arc<Self>) {
        let declaring = async {
            let mut changed = self.changed.clone();
            while changed.changed().await.is_ok() {
                self.declare();
            }
        };
        let sweeping = async {
            let mut ticks = interval(SWEEP);
            ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
            ticks.tick().await;
            loop {
                ticks.tick().await;
                self.sweep(now());
            }
        };
        let saving = async {
            loop {
                self.unsaved.notified().await;
                self.save().await;
                sleep(SAVE_GAP).await;
            }
        };
        tokio::join!(declaring, sweeping, saving);
    }

    /// Takes up what the state in force says beforehand.
    fn declare(&self) {
        let declared = self.snapshot.load().declared_calls();
        let mut sets = self.lock();
        if sets.declared != declared {
            sets.declared = declared;
            self.tell(&sets);
        }
    }

    /// Remembers what was called since the last time, and forgets what was not for long.
    fn sweep(&self, now: Seconds) {
        let snapshot = self.snapshot.load();
        let called =
            snapshot.services().filter(|service| service.external.is_none() && service.take_called());
        let mut sets = self.lock();
        for service in called {
            sets.note(&service.key, now);
        }
        sets.forget(now);
        self.tell(&sets);
        self.unsaved.notify_one();
    }

    fn tell(&self, sets: &Sets) {
        let wanted = sets.subscription();
        self.subscription.send_if_modified(|subscription| {
            let changed = *subscription != wanted;
            *subscription = wanted;
            changed
        });
    }

    async fn save(&self) {
        let (called, file) = (self.lock().called.clone(), self.file.clone());
        let saving = tokio::task::spawn_blocking(move || remembered::save(&file, &called));
        match saving.await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                tracing::error!(%error, "which services are called from here is not on the disk: it is tried again");
                self.unsaved.notify_one();
            }
            // The agent is stopping.
            Err(_) => {}
        }
    }

    fn lock(&self) -> MutexGuard<'_, Sets> {
        self.sets.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn now() -> Seconds {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs()
}

#[cfg(test)]
mod tests;
