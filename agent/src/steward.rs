//! Capture kept in step: the rules follow the state in force, are looked at when the kernel says that somebody else changed
//! them, and now and then, and are put back.

/// How long two who both want the rules otherwise are kept apart.
mod respite;

use std::collections::BTreeSet;
use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{Notify, watch};

use self::respite::Respite;
use crate::admin::report::doctor::RestoredReport;
use crate::attribution::CgroupError;
use crate::beat;
use crate::capture::conntrack::Tracked;
use crate::capture::held::Held;
use crate::capture::notices::{Changed, Notices};
use crate::capture::{
    Anchor, Applied, Capture, CaptureError, CapturePlan, Change, Interface, State, Status, Waiting,
    apply_gone,
};
use crate::publish::Publisher;
use crate::registration::WhenGone;
use crate::snapshot::Snapshot;
use crate::snapshot::plan::CaptureSettings;
use crate::telemetry::metrics::Metrics;

/// How long changes are collected before the rules are changed once for all of them.
const SETTLE: Duration = Duration::from_millis(50);
/// How often the rules are looked at.
const LOOK: Duration = Duration::from_secs(30);
/// How long to wait after the rules could not be put in place. Also the time to the first look: the guard of an agent
/// that has just died may come late with its rules.
const RETRY: Duration = Duration::from_secs(2);
/// How often is looked for cgroups of services that are held to the registry.
const HELD_LOOK: Duration = Duration::from_secs(1);
/// How often it is looked whether others than containers are on captured bridges, as the DNS server does.
const BRIDGE_LOOK: Duration = Duration::from_secs(2);
/// What is wrong while the rules for a gone agent are kept.
const NOTHING_KNOWN: &str =
    "the rules for a gone agent stand until the mesh's state is known: closed services are refused";

/// What the keeper does with the rules.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Keeps them in place.
    Keep,
    /// Leaves them alone: nobody asked for them yet, or somebody had them removed.
    Off,
    /// They stand on trial: unless somebody confirms them they take themselves back, to those that were kept before
    /// or to none.
    Trial(Before),
}

impl Mode {
    /// The word for it in reports.
    pub fn word(self) -> &'static str {
        match self {
            Self::Keep => "keeps",
            Self::Off => "off",
            Self::Trial(_) => "trial",
        }
    }
}

/// How much of the rules is looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Look {
    /// All of them: somebody else may have changed them.
    AtAll,
    /// What another plan has otherwise.
    AtWhatDiffers,
}

/// What rules on trial give way to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Before {
    /// Rules that were kept.
    Kept,
    /// None.
    Nothing,
}

/// The keeper of the rules.
pub struct Steward {
    mode: Mutex<Mode>,
    capture: Arc<Mutex<Capture>>,
    publisher: Arc<Publisher>,
    settings: CaptureSettings,
    metrics: Arc<Metrics>,
    /// The plan that was put in place last, while nothing else was since.
    applied: Mutex<Option<CapturePlan>>,
    /// Who was held, and what led outside, when the last plan was made.
    seen: Mutex<Seen>,
    /// What stands, in words; empty while the rules are in place.
    trouble: watch::Sender<Option<String>>,
    /// The last time that the rules were put back.
    restored: Mutex<Option<Restored>>,
    /// Whether another agent has come to take over, and places the rules.
    is_left: AtomicBool,
    /// Told when that one did not take over.
    taken_up: Notify,
}

/// Rules that somebody else had changed, and that were put back.
#[derive(Debug, Clone)]
struct Restored {
    at: Instant,
    times: u64,
    found: String,
    by: Option<String>,
}

/// What the last plan was made with, besides the state.
#[derive(Debug, Default)]
struct Seen {
    held: Held,
    /// The bridges that others than containers are on, of those that are to be captured.
    outside: BTreeSet<Interface>,
    /// Why not all that should be.
    unheld: Option<String>,
}

/// Who is held to the registry now, who while the agent is gone, and why not all that should be.
fn held_of(snapshot: &Snapshot) -> (Held, Held, Option<CgroupError>) {
    let (mut held, mut when_gone) = (Held::default(), Held::default());
    let error = held.add(snapshot.held().map(|(matcher, _)| matcher)).err();
    let closed = snapshot.held().filter(|(_, registered)| registered.when_gone == WhenGone::Closed);
    // What cannot be seen for one cannot be seen for the other.
    let same = when_gone.add(closed.map(|(matcher, _)| matcher)).err();
    held.containers = snapshot.held_containers(None);
    when_gone.containers = snapshot.held_containers(Some(WhenGone::Closed));
    (held, when_gone, error.or(same))
}

impl Steward {
    /// A keeper of `capture`.
    pub fn new(
        (capture, mode): (Capture, Mode),
        publisher: Arc<Publisher>,
        settings: CaptureSettings,
        metrics: Arc<Metrics>,
    ) -> Arc<Self> {
        let trouble = watch::Sender::new(Some("the capture rules are not in place yet".to_owned()));
        let (mode, capture) = (Mutex::new(mode), Arc::new(Mutex::new(capture)));
        let (applied, restored, seen) = (Mutex::default(), Mutex::default(), Mutex::default());
        let (is_left, taken_up) = (AtomicBool::new(false), Notify::new());
        Arc::new(Self {
            mode,
            capture,
            publisher,
            settings,
            metrics,
            applied,
            seen,
            trouble,
            restored,
            is_left,
            taken_up,
        })
    }

    /// What somebody else had made of the rules the last time that they were put back.
    pub fn restored(&self) -> Option<RestoredReport> {
        let restored = self.restored.lock().unwrap_or_else(PoisonError::into_inner).clone()?;
        Some(RestoredReport {
            times: restored.times,
            seconds: restored.at.elapsed().as_secs(),
            found: restored.found,
            by: restored.by,
        })
    }

    fn note_restored(&self, found: String, by: Option<String>) {
        self.metrics.restored_rules.inc();
        let mut restored = self.restored.lock().unwrap_or_else(PoisonError::into_inner);
        let times = restored.as_ref().map_or(0, |before| before.times) + 1;
        tracing::error!(
            found,
            by = by.as_deref().unwrap_or("somebody"),
            times,
            "the capture rules were changed by somebody else, and were put back"
        );
        *restored = Some(Restored { at: Instant::now(), times, found, by });
    }

    /// Another agent places the rules from now on: what differs from this one's is left.
    /// What is under way has ended when this returns.
    pub async fn leave_to_another(&self) {
        self.is_left.store(true, Ordering::Relaxed);
        // Whether the lock could be had at all is told where rules are placed.
        let _ = self.on_capture(|_| Ok(())).await;
    }

    /// It did not come to that: what is left of it is put back at the next look.
    pub fn take_up_again(&self) {
        self.is_left.store(false, Ordering::Relaxed);
        self.forget_applied();
        self.taken_up.notify_one();
    }

    /// What is wrong with the rules.
    pub fn trouble(&self) -> watch::Receiver<Option<String>> {
        self.trouble.subscribe()
    }

    /// The plan that the state in force comes to.
    pub fn plan(&self) -> CapturePlan {
        let snapshot = self.publisher.snapshot().load_full();
        let outside = self.outside();
        let mut settings = self.settings.clone();
        settings.interfaces.retain(|interface| !outside.contains(interface));
        let mut plan = snapshot.capture_plan(&settings);
        let mut unheld = None;
        match held_of(&snapshot) {
            (held, when_gone, None) => (plan.held, plan.held_when_gone) = (held, when_gone),
            (held, when_gone, Some(error)) => {
                (plan.held, plan.held_when_gone) = (held, when_gone);
                unheld = Some(format!(
                    "REGISTRY_ONLY does not hold services that are told by unit or cgroup: {error}"
                ));
            }
        }
        let now = Seen { held: plan.held.clone(), outside, unheld };
        *self.seen.lock().unwrap_or_else(PoisonError::into_inner) = now;
        plan
    }

    /// The bridges of which nothing is captured, though it was asked for: others than containers are on them.
    fn outside(&self) -> BTreeSet<Interface> {
        self.settings.interfaces.iter().filter(|interface| interface.leads_outside()).cloned().collect()
    }

    /// Ends when other bridges lead outside than when the last plan was made.
    async fn until_bridges_change(&self) {
        loop {
            beat::next(BRIDGE_LOOK).await;
            // Some files of sysfs for each port, which are no disk's.
            let outside = self.outside();
            let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
            if outside != seen.outside {
                tracing::warn!(?outside, "bridges that others than containers are on are not captured");
                seen.outside = outside;
                return;
            }
        }
    }

    /// Ends when other cgroups are to be held than the last plan has: a unit's is another one after each start.
    async fn until_held_cgroups_change(&self) {
        loop {
            beat::next(HELD_LOOK).await;
            let snapshot = self.publisher.snapshot().load_full();
            if !snapshot.held().any(|(matcher, _)| matcher.names_a_place()) {
                continue;
            }
            let found = tokio::task::spawn_blocking(move || held_of(&snapshot)).await;
            let Ok((held, _, _)) = found else { continue };
            if held != self.seen.lock().unwrap_or_else(PoisonError::into_inner).held {
                return;
            }
        }
    }

    /// What the keeper does.
    pub fn mode(&self) -> Mode {
        *self.mode.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set_mode(&self, mode: Mode) {
        *self.mode.lock().unwrap_or_else(PoisonError::into_inner) = mode;
    }

    /// Puts the rules in place for good.
    pub async fn keep_from_now(&self) -> Result<Applied, CaptureError> {
        let applied = self.apply(Look::AtAll).await?;
        self.set_mode(Mode::Keep);
        Ok(applied)
    }

    /// Puts the rules in place on trial: they take themselves back after `limit` unless they are confirmed.
    pub async fn try_out(&self, exe: PathBuf, limit: Duration) -> Result<Applied, CaptureError> {
        if !self.mesh_is_known() {
            return Err(CaptureError::NothingKnown);
        }
        let plan = self.plan();
        self.forget_applied();
        let applied = self.on_capture(move |capture| capture.apply_with_confirm(&exe, &plan, limit)).await?;
        let before = if self.mode() == Mode::Keep { Before::Kept } else { Before::Nothing };
        self.set_mode(Mode::Trial(before));
        self.tell(None);
        Ok(applied)
    }

    /// Makes rules on trial stay.
    pub async fn confirm(&self) -> Result<(), CaptureError> {
        self.on_capture(|capture| capture.confirm()).await?;
        self.set_mode(Mode::Keep);
        Ok(())
    }

    /// Removes the rules, and leaves them off until they are asked for again.
    pub async fn remove(&self) -> Result<(), CaptureError> {
        self.set_mode(Mode::Off);
        self.forget_applied();
        self.on_capture(|capture| capture.remove(Anchor::Remove)).await?;
        self.tell(Some("the capture rules were removed by hand".to_owned()));
        Ok(())
    }

    /// The agent goes: the rules give way to those for a gone agent.
    pub async fn leave(&self) -> Result<(), CaptureError> {
        let mode = self.mode();
        self.set_mode(Mode::Off);
        self.forget_applied();
        match mode {
            Mode::Off => Ok(()),
            Mode::Keep | Mode::Trial(_) => {
                self.on_capture(|capture| apply_gone(&capture.gone_file(), Waiting::Reset)).await
            }
        }
    }

    /// Whether a state of the mesh has ever come: from the disk, from files or from the control server.
    fn mesh_is_known(&self) -> bool {
        self.publisher.published().version > 0
    }

    /// Brings the rules up to date; until the mesh's state is known, to those for a gone agent.
    async fn apply(&self, look: Look) -> Result<Applied, CaptureError> {
        if self.is_left.load(Ordering::Relaxed) {
            return Ok(Applied { change: Change::None, without_ipv6: None, found: None });
        }
        if !self.mesh_is_known() {
            return self.hold().await;
        }
        let plan = self.plan();
        let last = self.applied.lock().unwrap_or_else(PoisonError::into_inner).take();
        if look == Look::AtWhatDiffers && last.as_ref() == Some(&plan) {
            // Most changes of a mesh are none of which the rules know: of health, of policies.
            self.note_applied(plan);
            return Ok(Applied { change: Change::None, without_ipv6: None, found: None });
        }
        let put = plan.clone();
        let applied = self.on_capture(move |capture| match look {
            Look::AtAll => capture.apply(&put),
            Look::AtWhatDiffers => capture.follow(&put),
        });
        match applied.await {
            Ok(applied) => {
                self.note_applied(plan);
                let unheld = self.seen.lock().unwrap_or_else(PoisonError::into_inner).unheld.clone();
                self.tell(unheld);
                Ok(applied)
            }
            Err(error) => {
                self.tell(Some(error.to_string()));
                Err(error)
            }
        }
    }

    /// Something else than a plan is put in place.
    fn forget_applied(&self) {
        *self.applied.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    fn note_applied(&self, plan: CapturePlan) {
        *self.applied.lock().unwrap_or_else(PoisonError::into_inner) = Some(plan);
    }

    async fn hold(&self) -> Result<Applied, CaptureError> {
        let plan = self.plan();
        self.forget_applied();
        let held = self.on_capture(move |capture| capture.hold(&plan)).await;
        self.tell(Some(held.as_ref().map_or_else(ToString::to_string, |()| NOTHING_KNOWN.to_owned())));
        held.map(|()| Applied { change: Change::Held, without_ipv6: None, found: None })
    }

    /// What stands now, and whether it awaits its confirmation.
    pub async fn status(&self) -> Result<(Status, bool), CaptureError> {
        self.on_capture(|capture| Ok((capture.status()?, capture.is_unconfirmed()))).await
    }

    /// Whether the rules are what they were meant to be, in words.
    pub async fn in_words(&self) -> String {
        let state = match self.status().await {
            Ok((status, _)) => status.state,
            Err(error) => return error.to_string(),
        };
        match (state, self.mode()) {
            (State::Missing, Mode::Off) => "off".to_owned(),
            (State::Missing, _) => "missing".to_owned(),
            (State::InPlace, Mode::Off) => "off, but the rules of an agent before this one stand".to_owned(),
            (State::InPlace, Mode::Keep) => "in place".to_owned(),
            (State::InPlace, Mode::Trial(_)) => {
                "on trial: they are taken back unless they are confirmed".to_owned()
            }
            (State::Altered(differences), _) => format!("altered: {}", differences.join("; ")),
            (State::Gone, _) => "the rules for a gone agent".to_owned(),
        }
    }

    /// Keeps the rules in step for as long as it is polled.
    pub async fn keep(self: Arc<Self>) {
        let mut changed = self.publisher.changed();
        // A state may have come between the rules' first placing and this: it must not wait for the next look.
        changed.mark_changed();
        // However often the mesh changes, it is looked whether the rules still stand.
        let mut wait = RETRY;
        let mut due = Instant::now() + wait;
        let mut notices = open_notices();
        let mut respite = Respite::default();
        loop {
            let (mut by, mut was_noticed) = (None, false);
            let now = Instant::now();
            let pause = respite.bound(due.saturating_duration_since(now), now);
            let look = tokio::select! {
                told = changed.changed() => {
                    if told.is_err() {
                        return;
                    }
                    tokio::time::sleep(SETTLE).await;
                    changed.mark_unchanged();
                    if Instant::now() < due { Look::AtWhatDiffers } else { Look::AtAll }
                }
                told = noticed(&mut notices), if respite.is_over(now) => {
                    by = told.and_then(|changed| changed.by);
                    was_noticed = true;
                    Look::AtAll
                }
                () = self.until_held_cgroups_change(), if self.mode() == Mode::Keep => Look::AtWhatDiffers,
                () = self.until_bridges_change(), if self.mode() == Mode::Keep => Look::AtWhatDiffers,
                () = self.taken_up.notified() => Look::AtAll,
                () = tokio::time::sleep(pause) => Look::AtAll,
            };
            if look == Look::AtAll {
                due = Instant::now() + wait;
            }
            if self.is_left.load(Ordering::Relaxed) {
                continue;
            }
            if let Some(tracked) = Tracked::read().filter(|tracked| tracked.is_nearly_full()) {
                tracing::error!(tracked.entries, tracked.limit, "{tracked}");
            }
            match self.mode() {
                Mode::Keep => {}
                Mode::Off => continue,
                Mode::Trial(before) => {
                    self.look_at_trial(before).await;
                    continue;
                }
            }
            let applied = self.apply(look).await;
            if let Ok(Applied { found: Some(found), .. }) = &applied {
                self.note_restored(found.clone(), by);
                respite.begin(Instant::now());
            } else if was_noticed {
                respite.nothing_found(Instant::now());
            }
            wait = match applied.map(|applied| applied.change) {
                Ok(Change::None | Change::Held | Change::Restored) => LOOK,
                Ok(change) => {
                    tracing::info!(?change, "the capture rules were changed");
                    LOOK
                }
                Err(error) => {
                    tracing::error!(%error, "the capture rules could not be put in place");
                    RETRY
                }
            };
            due = if look == Look::AtAll { Instant::now() + wait } else { due.min(Instant::now() + wait) };
        }
    }

    /// Rules that took themselves back have left what was before them.
    async fn look_at_trial(&self, before: Before) {
        let pending = self.on_capture(|capture| Ok(capture.is_unconfirmed())).await;
        match (pending, before) {
            (Ok(false), Before::Kept) => self.set_mode(Mode::Keep),
            (Ok(false), Before::Nothing) => {
                self.set_mode(Mode::Off);
                self.tell(Some("the capture rules were not confirmed, and took themselves back".to_owned()));
            }
            (Ok(true) | Err(_), _) => {}
        }
    }

    fn tell(&self, trouble: Option<String>) {
        self.metrics.capture_in_place.set(i64::from(trouble.is_none()));
        self.trouble.send_if_modified(|current| {
            let changed = *current != trouble;
            *current = trouble;
            changed
        });
    }

    async fn on_capture<T: Send + 'static>(
        &self,
        act: impl FnOnce(&mut Capture) -> Result<T, CaptureError> + Send + 'static,
    ) -> Result<T, CaptureError> {
        let capture = Arc::clone(&self.capture);
        let acted = tokio::task::spawn_blocking(move || {
            let mut capture = capture.lock().unwrap_or_else(PoisonError::into_inner);
            act(&mut capture)
        });
        match acted.await {
            Ok(result) => result,
            Err(panic) => std::panic::resume_unwind(panic.into_panic()),
        }
    }
}

/// Without the kernel's notices, the rules are looked at now and then alone.
fn open_notices() -> Option<Notices> {
    let opened = Notices::open();
    opened
        .inspect_err(
            |error| tracing::warn!(%error, look = ?LOOK, "the kernel does not tell of changes of the rules"),
        )
        .ok()
}

/// Waits until somebody else has changed our table; for ever where the kernel does not say.
async fn noticed(notices: &mut Option<Notices>) -> Option<Changed> {
    let told: io::Result<Changed> = match notices {
        Some(notices) => notices.changed().await,
        None => std::future::pending().await,
    };
    match told {
        Ok(changed) => Some(changed),
        Err(error) => {
            tracing::warn!(%error, "the kernel tells no more of changes of the rules");
            *notices = None;
            None
        }
    }
}
