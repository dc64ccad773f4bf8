//! Checks of this host's services: each is looked at beside its program, and what is found of it decides whether it is
//! called, here and, by way of the control server, everywhere. A check runs one look at a time, in a task of its own, so
//! that one that hangs holds up nobody else. Looks are the agent's own connections: they carry its mark and go to the
//! delivery address, past the rules, and are no calls of the mesh.

/// Commands in a process of their own.
pub mod commands;
/// Looking once.
pub mod probe;
/// What is known of each check, and what comes of a result.
mod state;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use baremesh_model::health::{Course, Health, Outcome};
use baremesh_model::name::Key;
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, sleep, sleep_until, timeout};

use self::probe::Prober;
use self::state::{Entry, Known};
use crate::admin::report::HealthReport;
use crate::publish::Publisher;
use crate::registration::LocalService;
use crate::registration::check::{Check, Probe};
use crate::telemetry::metrics::Metrics;

/// How long findings are gathered before they are published as one.
const GATHER: Duration = Duration::from_millis(50);
/// How long a starting agent waits for first results before it tells the control server what runs here: an agent that
/// restarts takes nothing out of service that is well.
const FIRST_RESULTS: Duration = Duration::from_secs(5);
/// So many checks that begin together are spread over all of `START_SPREAD`, fewer over less.
const SPREAD_OVER: usize = 100;
/// Longest reason of a result, in bytes; what is longer is cut.
pub const MAX_REASON: usize = 256;

/// Why a service's word was not taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HeartbeatError {
    /// There is no such registration.
    #[error("{0} is not registered on this host: `baremesh service list` shows what is")]
    Unknown(Key),
    /// The registration has another check, or none.
    #[error(
        "{0} is not registered with a check that waits for its word: register it with --check-ttl, or leave heartbeats out"
    )]
    NotTtl(Key),
}

/// All checks of this host.
pub struct Checks {
    known: Mutex<Known>,
    /// Told when something was found that is not published.
    found: Notify,
    /// Whether what was registered at the start has been looked at.
    first: watch::Sender<bool>,
    publisher: Arc<Publisher>,
    prober: Arc<Prober>,
    metrics: Arc<Metrics>,
    began: Instant,
}

impl Checks {
    /// Of what `publisher` has registered; nothing is looked at before `run`.
    pub fn new(publisher: Arc<Publisher>, prober: Prober, metrics: Arc<Metrics>) -> Arc<Self> {
        Arc::new(Self {
            known: Mutex::default(),
            found: Notify::new(),
            first: watch::Sender::new(false),
            publisher,
            prober: Arc::new(prober),
            metrics,
            began: Instant::now(),
        })
    }

    /// Runs the checks of what is registered, for as long as it is polled.
    pub async fn run(self: Arc<Self>) {
        let mut registered = self.publisher.registered();
        registered.mark_changed();
        loop {
            let runs_out = self.known().next_to_run_out().map(|at| self.began + at);
            tokio::select! {
                changed = registered.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    registered.mark_unchanged();
                    self.follow();
                }
                () = self.found.notified() => {}
                () = until(runs_out) => {
                    let now = self.now();
                    let silent = self.known().silent(now);
                    silent.iter().for_each(|(key, ttl)| {
                        let reason = format!("nothing was heard from it for {ttl:?}");
                        self.take(key, Said::Silence, Err(reason));
                    });
                }
            }
            self.publish().await;
        }
    }

    /// Ends when everything that was registered at the start has been looked at once, or after a few seconds.
    pub async fn first_results(&self) {
        let mut first = self.first.subscribe();
        let waited = timeout(FIRST_RESULTS, first.wait_for(|first| *first)).await;
        if waited.is_err() {
            tracing::info!(limit = ?FIRST_RESULTS, "some checks have no result yet: their services are announced as unhealthy");
        }
    }

    /// Takes a service's word on itself.
    pub fn heartbeat(
        self: &Arc<Self>,
        key: &Key,
        result: Result<(), String>,
    ) -> Result<Health, HeartbeatError> {
        // One that was registered a moment ago may not be known here yet.
        self.follow();
        match self.known().entries.get(key).map(|entry| &entry.check.probe) {
            Some(Probe::Ttl(_)) => {}
            None if !self.publisher.registered().borrow().iter().any(|local| local.key == *key) => {
                return Err(HeartbeatError::Unknown(key.clone()));
            }
            Some(_) | None => return Err(HeartbeatError::NotTtl(key.clone())),
        }
        let health = self.take(key, Said::Word, result);
        health.ok_or_else(|| HeartbeatError::Unknown(key.clone()))
    }

    /// What is known of a service's check; nothing where it has none.
    pub fn report(&self, key: &Key) -> Option<HealthReport> {
        let now = self.now();
        self.known().entries.get(key).map(|entry| entry.report(now))
    }

    /// Begins to look at what is new, and leaves what is gone.
    fn follow(self: &Arc<Self>) {
        let now = self.now();
        let mut known = self.known();
        let services = self.publisher.registered().borrow().clone();
        let checked: BTreeMap<&Key, (&Arc<LocalService>, &Arc<Check>)> = services
            .iter()
            .filter_map(|service| Some((&service.key, (service, service.check.as_ref()?))))
            .collect();
        known.entries.retain(|key, entry| match checked.get(key) {
            Some((service, _)) if service.is_checked_like(&entry.service) => {
                // It may have been away in between, and then begins anew for all others.
                entry.published = service.health;
                true
            }
            _ => {
                self.metrics.health.forget(key, entry.check.probe.kind());
                false
            }
        });
        let begin: Vec<_> = checked.iter().filter(|(key, _)| !known.entries.contains_key(**key)).collect();
        let spread = (begin.len() as f64 / SPREAD_OVER as f64).min(1.0);
        for (key, (service, check)) in begin {
            known.generation += 1;
            let generation = known.generation;
            let task = match check.probe {
                Probe::Ttl(_) => None,
                _ => {
                    let checks = Arc::clone(self);
                    let (key, check) = ((*key).clone(), Arc::clone(check));
                    let random = rand::random::<f64>() * spread;
                    Some(tokio::spawn(
                        async move { checks.keep_looking(&key, &check, generation, random).await },
                    ))
                }
            };
            self.metrics.health.up(key, service.health);
            let entry = Entry {
                service: Arc::clone(service),
                check: Arc::clone(check),
                generation,
                course: Course::begin(service.health, now),
                reason: None,
                published: service.health,
                task,
            };
            known.entries.insert((*key).clone(), entry);
        }
    }

    /// Looks at one service again and again.
    async fn keep_looking(&self, key: &Key, check: &Check, generation: u64, random: f64) {
        sleep(check.schedule.first(random)).await;
        loop {
            let began = self.now();
            let result = self.prober.look(key, &check.probe, check.schedule.timeout).await;
            self.take(key, Said::Check(generation), result);
            sleep(check.schedule.next(began, self.now(), rand::random())).await;
        }
    }

    /// Takes one result. `None` where it is about a check that is gone.
    fn take(&self, key: &Key, said: Said, result: Result<(), String>) -> Option<Health> {
        let now = self.now();
        let mut known = self.known();
        let entry = known.entries.get_mut(key)?;
        if matches!(said, Said::Check(generation) if generation != entry.generation) {
            return None;
        }
        let outcome = if result.is_ok() { Outcome::Passed } else { Outcome::Failed };
        let before = entry.course;
        // Its word may have come just before.
        if matches!(said, Said::Silence) && !entry.has_run_out(now) {
            return None;
        }
        entry.course = match said {
            Said::Check(_) => before.after(outcome, entry.check.thresholds, now),
            Said::Word | Said::Silence => before.told(outcome, now),
        };
        entry.reason = result.err().map(|reason| bounded(&reason));
        let (health, kind) = (entry.course.health, entry.check.probe.kind());
        self.metrics.health.result(key, kind, outcome);
        if health != before.health {
            self.metrics.health.up(key, health);
            let reason = entry.reason.as_deref().unwrap_or("its check passes");
            match health {
                Health::Healthy => {
                    tracing::info!(service = %key, check = kind, reason, "the service is healthy");
                }
                Health::Unhealthy => {
                    tracing::warn!(service = %key, check = kind, reason, "the service is unhealthy: it takes no new calls");
                }
            }
        }
        drop(known);
        // First results count even where they change nothing.
        self.found.notify_one();
        Some(health)
    }

    /// Publishes what has been found, all of it as one.
    async fn publish(&self) {
        if self.known().unpublished().is_empty() {
            self.note_first_results();
            return;
        }
        sleep(GATHER).await;
        let found = self.known().take_unpublished();
        if let Err(reason) = self.publisher.take_health(&found) {
            tracing::error!(reason, "what checks found is not in force");
        }
        self.note_first_results();
    }

    fn note_first_results(&self) {
        let is_told = || {
            let known = self.known();
            known.is_looked_at() && known.unpublished().is_empty()
        };
        if !*self.first.borrow() && is_told() {
            self.first.send_replace(true);
        }
    }

    fn now(&self) -> Duration {
        self.began.elapsed()
    }

    fn known(&self) -> std::sync::MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Where a result comes from.
#[derive(Debug, Clone, Copy)]
enum Said {
    /// From a check that began with this number.
    Check(u64),
    /// From the service itself.
    Word,
    /// From nobody, for too long.
    Silence,
}

async fn until(moment: Option<Instant>) {
    match moment {
        Some(moment) => sleep_until(moment).await,
        None => std::future::pending().await,
    }
}

/// A text of a program's or a person's, cut to the limit and free of control characters.
pub fn bounded(text: &str) -> String {
    let mut end = text.len().min(MAX_REASON);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text[..end].chars().map(|c| if c.is_control() { ' ' } else { c }).collect::<String>().trim().to_owned()
}

#[cfg(test)]
mod tests;
