//! What is known of each check. Behind one lock that is never held across a wait.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use baremesh_model::health::{Course, Health, Outcome};
use baremesh_model::name::Key;
use tokio::task::JoinHandle;

use crate::admin::report::HealthReport;
use crate::registration::LocalService;
use crate::registration::check::{Check, Probe};

/// One check that runs.
pub(super) struct Entry {
    /// The registration that it is about.
    pub(super) service: Arc<LocalService>,
    pub(super) check: Arc<Check>,
    /// Tells its results from those of the check that was there before.
    pub(super) generation: u64,
    pub(super) course: Course,
    /// Why the last result failed.
    pub(super) reason: Option<String>,
    /// What was published last.
    pub(super) published: Health,
    /// Looks; a service that speaks for itself needs none.
    pub(super) task: Option<JoinHandle<()>>,
}

impl Drop for Entry {
    /// A look under way ends here, its command with it.
    fn drop(&mut self) {
        self.task.iter().for_each(JoinHandle::abort);
    }
}

impl Entry {
    fn is_looked_at(&self) -> bool {
        let waits = self.task.is_some() && self.check.schedule.initial_delay.is_zero();
        !waits || self.course.last.is_some()
    }

    fn ttl(&self) -> Option<Duration> {
        match self.check.probe {
            Probe::Ttl(ttl) => Some(ttl),
            _ => None,
        }
    }

    /// When the service's own word runs out.
    fn runs_out(&self) -> Option<Duration> {
        self.course.runs_out(self.ttl()?)
    }

    /// Whether nothing was heard from a service that is to speak for itself.
    pub(super) fn has_run_out(&self, now: Duration) -> bool {
        self.runs_out().is_some_and(|end| end <= now)
    }

    pub(super) fn report(&self, now: Duration) -> HealthReport {
        let ago = |at: Duration| now.saturating_sub(at).as_secs();
        HealthReport {
            check: self.check.probe.kind().to_owned(),
            health: self.course.health.word().to_owned(),
            seconds: ago(self.course.since),
            last: self.course.last.map(|(outcome, _)| match outcome {
                Outcome::Passed => "passed".to_owned(),
                Outcome::Failed => "failed".to_owned(),
            }),
            last_seconds: self.course.last.map(|(_, at)| ago(at)),
            reason: self.reason.clone(),
        }
    }
}

/// Every check that runs.
#[derive(Default)]
pub(super) struct Known {
    /// One a registration at most: `MAX_SERVICES` bounds them.
    pub(super) entries: BTreeMap<Key, Entry>,
    /// Checks begun so far.
    pub(super) generation: u64,
}

impl Known {
    /// When the first word runs out of those that services gave of themselves.
    pub(super) fn next_to_run_out(&self) -> Option<Duration> {
        self.entries.values().filter_map(Entry::runs_out).min()
    }

    /// Services whose word has run out.
    pub(super) fn silent(&self, now: Duration) -> Vec<(Key, Duration)> {
        let silent = self.entries.iter().filter(|(_, entry)| entry.has_run_out(now));
        silent.filter_map(|(key, entry)| Some((key.clone(), entry.ttl()?))).collect()
    }

    /// Services of which something else was found than was published.
    pub(super) fn unpublished(&self) -> Vec<&Key> {
        let differs = |(_, entry): &(&Key, &Entry)| entry.course.health != entry.published;
        self.entries.iter().filter(differs).map(|(key, _)| key).collect()
    }

    /// The same, which count as published from here on.
    pub(super) fn take_unpublished(&mut self) -> Vec<(Arc<LocalService>, Health)> {
        let news = self.entries.values_mut().filter(|entry| entry.course.health != entry.published);
        news.map(|entry| {
            entry.published = entry.course.health;
            (Arc::clone(&entry.service), entry.published)
        })
        .collect()
    }

    /// Whether everything has been looked at that is to be looked at without delay.
    pub(super) fn is_looked_at(&self) -> bool {
        self.entries.values().all(Entry::is_looked_at)
    }
}
