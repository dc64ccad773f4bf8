//! What all agents have seen, for whoever asks.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

/// Reasons of failures that are kept, for those who look for their cause.
const REASONS: usize = 5;

/// What all agents have seen since the last mark.
#[derive(Debug)]
pub struct Board {
    marked: Mutex<Instant>,
    /// Agents that hold all that they asked for, over an open connection.
    whole: AtomicUsize,
    /// Microseconds since the mark at which the last agent became whole.
    last_whole: AtomicU64,
    pub connects: AtomicU64,
    pub versions: AtomicU64,
    pub fulls: AtomicU64,
    pub upserts: AtomicU64,
    pub deletes: AtomicU64,
    pub bytes: AtomicU64,
    pub renewals: AtomicU64,
    failures: Mutex<(u64, Vec<String>)>,
    watched: RwLock<Option<Arc<Watched>>>,
}

/// An entry that is awaited: when each agent had put it in force and said so.
#[derive(Debug)]
pub struct Watched {
    /// Its key, and what its text holds; as many as there are forms in which it is told, each to some agents.
    forms: Vec<(String, String)>,
    since: Instant,
    seen: Mutex<HashMap<usize, Duration>>,
}

impl Watched {
    /// Whether it is this one.
    pub fn is(&self, key: &str, text: &str) -> bool {
        self.forms.iter().any(|(form, marker)| form == key && text.contains(marker))
    }

    /// Notes that an agent has acknowledged it.
    pub fn saw(&self, agent: usize) {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        seen.entry(agent).or_insert_with(|| self.since.elapsed());
    }
}

impl Default for Board {
    fn default() -> Self {
        Self {
            marked: Mutex::new(Instant::now()),
            whole: AtomicUsize::default(),
            last_whole: AtomicU64::default(),
            connects: AtomicU64::default(),
            versions: AtomicU64::default(),
            fulls: AtomicU64::default(),
            upserts: AtomicU64::default(),
            deletes: AtomicU64::default(),
            bytes: AtomicU64::default(),
            renewals: AtomicU64::default(),
            failures: Mutex::default(),
            watched: RwLock::default(),
        }
    }
}

impl Board {
    /// Counts from here.
    pub fn mark(&self) {
        *self.marked.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
        for counter in [
            &self.last_whole,
            &self.connects,
            &self.versions,
            &self.fulls,
            &self.upserts,
            &self.deletes,
            &self.bytes,
            &self.renewals,
        ] {
            counter.store(0, Ordering::Relaxed);
        }
        *self.failures.lock().unwrap_or_else(PoisonError::into_inner) = Default::default();
    }

    fn since_mark(&self) -> Duration {
        self.marked.lock().unwrap_or_else(PoisonError::into_inner).elapsed()
    }

    /// How many agents hold all that they asked for.
    pub fn whole(&self) -> usize {
        self.whole.load(Ordering::Acquire)
    }

    /// One more is whole.
    pub fn became_whole(&self) {
        let now = u64::try_from(self.since_mark().as_micros()).unwrap_or(u64::MAX);
        self.last_whole.fetch_max(now, Ordering::AcqRel);
        self.whole.fetch_add(1, Ordering::AcqRel);
    }

    /// One that was whole has lost its connection.
    pub fn lost(&self) {
        self.whole.fetch_sub(1, Ordering::AcqRel);
    }

    /// A connection, or an attempt at one, failed.
    pub fn failed(&self, reason: String) {
        let mut failures = self.failures.lock().unwrap_or_else(PoisonError::into_inner);
        failures.0 += 1;
        if failures.1.len() < REASONS && !failures.1.contains(&reason) {
            failures.1.push(reason);
        }
    }

    /// Awaits an entry, in any of these forms: a key, and what its text holds.
    pub fn watch(&self, forms: Vec<(String, String)>) {
        let watched = Watched { forms, since: Instant::now(), seen: Mutex::default() };
        *self.watched.write().unwrap_or_else(PoisonError::into_inner) = Some(Arc::new(watched));
    }

    /// What is awaited.
    pub fn watched(&self) -> Option<Arc<Watched>> {
        self.watched.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// How long it took until agents had what is awaited, in order.
    pub fn seen(&self) -> Vec<Duration> {
        let Some(watched) = self.watched() else { return Vec::new() };
        let mut seen: Vec<_> =
            watched.seen.lock().unwrap_or_else(PoisonError::into_inner).values().copied().collect();
        seen.sort_unstable();
        seen
    }

    /// All that is counted.
    pub fn report(&self) -> Value {
        let of = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let failures = self.failures.lock().unwrap_or_else(PoisonError::into_inner).clone();
        json!({
            "whole": self.whole(),
            "seconds": self.since_mark().as_secs_f64(),
            "last_whole_seconds": Duration::from_micros(of(&self.last_whole)).as_secs_f64(),
            "connects": of(&self.connects),
            "versions": of(&self.versions),
            "fulls": of(&self.fulls),
            "upserts": of(&self.upserts),
            "deletes": of(&self.deletes),
            "bytes": of(&self.bytes),
            "renewals": of(&self.renewals),
            "failures": failures.0,
            "reasons": failures.1,
        })
    }
}
