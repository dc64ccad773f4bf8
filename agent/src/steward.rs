//! Capture kept in step: the rules follow the state in force, are looked at now and then, and are put back when
//! somebody else took them away.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::watch;

use crate::attribution::CgroupError;
use crate::capture::conntrack::Tracked;
use crate::capture::held::Held;
use crate::capture::{
    Anchor, Applied, Capture, CaptureError, CapturePlan, Change, State, Status, apply_gone,
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
    /// Who was held when the last plan was made.
    seen: Mutex<Seen>,
    /// What stands, in words; empty while the rules are in place.
    trouble: watch::Sender<Option<String>>,
}

/// Who is held to the registry.
#[derive(Debug, Default)]
struct Seen {
    held: Held,
    /// Why not all that should be.
    unheld: Option<String>,
}

/// Who is held to the registry now, who while the agent is gone, and why not all that should be.
fn held_of(snapshot: &Snapshot) -> (Held, Held, Option<CgroupError>) {
    let (mut held, mut when_gone) = (Held::default(), Held::default());
    let error = held.add(snapshot.held().map(|(matcher, _)| matcher)).err();
    let closed = snapshot.held().filter(|(_, when_gone)| *when_gone == WhenGone::Closed);
    // What cannot be seen for one cannot be seen for the other.
    let same = when_gone.add(closed.map(|(matcher, _)| matcher)).err();
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
        let seen = Mutex::default();
        Arc::new(Self { mode, capture, publisher, settings, metrics, seen, trouble })
    }

    /// What is wrong with the rules.
    pub fn trouble(&self) -> watch::Receiver<Option<String>> {
        self.trouble.subscribe()
    }

    /// The plan that the state in force comes to.
    pub fn plan(&self) -> CapturePlan {
        let snapshot = self.publisher.snapshot().load_full();
        let mut plan = snapshot.capture_plan(&self.settings);
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
        *self.seen.lock().unwrap_or_else(PoisonError::into_inner) = Seen { held: plan.held.clone(), unheld };
        plan
    }

    /// Ends when other cgroups are to be held than the last plan has: a unit's is another one after each start.
    async fn until_held_cgroups_change(&self) {
        loop {
            tokio::time::sleep(HELD_LOOK).await;
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
        let applied = self.apply().await?;
        self.set_mode(Mode::Keep);
        Ok(applied)
    }

    /// Puts the rules in place on trial: they take themselves back after `limit` unless they are confirmed.
    pub async fn try_out(&self, exe: PathBuf, limit: Duration) -> Result<Applied, CaptureError> {
        if !self.mesh_is_known() {
            return Err(CaptureError::NothingKnown);
        }
        let plan = self.plan();
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
        self.on_capture(|capture| capture.remove(Anchor::Remove)).await?;
        self.tell(Some("the capture rules were removed by hand".to_owned()));
        Ok(())
    }

    /// The agent goes: the rules give way to those for a gone agent.
    pub async fn leave(&self) -> Result<(), CaptureError> {
        let mode = self.mode();
        self.set_mode(Mode::Off);
        match mode {
            Mode::Off => Ok(()),
            Mode::Keep | Mode::Trial(_) => self.on_capture(|capture| apply_gone(&capture.gone_file())).await,
        }
    }

    /// Whether a state of the mesh has ever come: from the disk, from files or from the control server.
    fn mesh_is_known(&self) -> bool {
        self.publisher.published().version > 0
    }

    /// Brings the rules up to date; until the mesh's state is known, to those for a gone agent.
    async fn apply(&self) -> Result<Applied, CaptureError> {
        if !self.mesh_is_known() {
            return self.hold().await;
        }
        let plan = self.plan();
        let applied = self.on_capture(move |capture| capture.apply(&plan)).await;
        match applied {
            Ok(applied) => {
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

    async fn hold(&self) -> Result<Applied, CaptureError> {
        let plan = self.plan();
        let held = self.on_capture(move |capture| capture.hold(&plan)).await;
        self.tell(Some(held.as_ref().map_or_else(ToString::to_string, |()| NOTHING_KNOWN.to_owned())));
        held.map(|()| Applied { change: Change::Held, without_ipv6: None })
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
        let mut wait = RETRY;
        loop {
            tokio::select! {
                told = changed.changed() => {
                    if told.is_err() {
                        return;
                    }
                    tokio::time::sleep(SETTLE).await;
                    changed.mark_unchanged();
                }
                () = tokio::time::sleep(wait) => {}
                () = self.until_held_cgroups_change(), if self.mode() == Mode::Keep => {}
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
            wait = match self.apply().await.map(|applied| applied.change) {
                Ok(Change::None | Change::Held) => LOOK,
                Ok(change) => {
                    tracing::info!(?change, "the capture rules were changed");
                    LOOK
                }
                Err(error) => {
                    tracing::error!(%error, "the capture rules could not be put in place");
                    RETRY
                }
            };
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
