//! The agent at work, and its end: goodbye to the source, the drain, the rules for a gone agent, the guard's
//! dismissal, and everything else.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use sd_notify::NotifyState;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinHandle as Task;

use super::guard_post::{Guarding, Relief};
use super::handover::{InCharge, Offer, Successor};
use super::routes;
use crate::capture::guard::refuse_all;
use crate::capture::interval::Interval;
use crate::proxy::Phase;
use crate::resolved::Resolved;
use crate::service_manager::store;
use crate::steward::Mode;
use crate::telemetry::access_log::Writing;

/// How long the last lines of the access log may take.
const LOG_PATIENCE: Duration = Duration::from_secs(5);
/// How long what is still open may take to end once nothing is accepted any more and what comes waits for the next agent.
const PAUSE: Duration = Duration::from_secs(2);

/// Everything that runs.
pub struct Running {
    /// What the routes answer from.
    pub agent: Arc<routes::Agent>,
    /// How far the agent is in stopping.
    pub phase: watch::Sender<Phase>,
    /// The data path.
    pub workers: Vec<JoinHandle<()>>,
    /// The access log's writer, which ends with the last worker.
    pub log: Option<Writing>,
    /// Follows the source; ends when it has said goodbye.
    pub source: Task<()>,
    /// Keeps the rules, where there are any.
    pub keeping: Option<Task<()>>,
    /// The guard's copies of the listening sockets.
    pub held: Option<Arc<Vec<OwnedFd>>>,
    /// The time from this agent to the next, where there are rules.
    pub interval: Option<Interval>,
    /// Keeps the guard's post.
    pub guarding: Option<Guarding>,
    /// Has one more for each worker that carries nothing of before a restart.
    pub settled: Arc<Semaphore>,
    /// Where another agent may take over, and what it is handed.
    pub offer: (Offer, InCharge),
    /// Tells systemd-resolved of the mesh's names, where it is told.
    pub resolved: Option<Arc<Resolved>>,
    /// What may simply be dropped.
    pub others: Vec<Task<()>>,
}

impl Running {
    /// Ends when another agent is ready to take over.
    pub async fn taken(&self) -> Successor {
        let (offer, this) = &self.offer;
        offer.taken(this).await
    }

    /// Leaves everything to another agent, and carries what is open to its end.
    pub async fn hand_over(self, successor: Successor) {
        let (limit, process) = (self.agent.config.drain, successor.process);
        if let Some(guarding) = &self.guarding {
            guarding.share().await;
        }
        let until = tokio::time::Instant::now() + limit;
        tracing::info!(process, ?limit, "another agent takes over; what is open goes on here");
        self.offer.1.flush_state().await;
        end_without_goodbye(std::iter::once(self.source).chain(self.keeping).chain(self.others)).await;
        // The followers of container engines look for the other one.
        self.agent.heard.end_all();
        self.phase.send_replace(Phase::HandedOver);
        drop((self.offer, self.held));
        // Outside systemd there is nobody to tell.
        let _: std::io::Result<()> = sd_notify::notify(&[NotifyState::MainPid(process)]);
        let lives = successor.take().await;
        if let Some(guarding) = self.guarding {
            guarding.relieve(if lives { Relief::Dismissed } else { Relief::OnDuty }).await;
        }
        let phase = self.phase.clone();
        let closing = async {
            if let Ok(mut terminate) = signal(SignalKind::terminate()) {
                terminate.recv().await;
                tracing::info!("what is open is closed");
                phase.send_replace(Phase::Closing);
            }
            std::future::pending::<()>().await;
        };
        let left = until.saturating_duration_since(tokio::time::Instant::now());
        tokio::select! {
            () = drain(self.workers, &self.phase, left) => {}
            () = closing => {}
        }
        if let Some(log) = self.log {
            log.finish(LOG_PATIENCE).await;
        }
        tracing::info!("baremesh agent ended after another one took over");
    }

    /// Whether its rules may stay while it is started anew. Those on trial may not.
    pub fn may_leave_its_rules(&self) -> bool {
        !self.agent.steward.as_ref().is_some_and(|steward| matches!(steward.mode(), Mode::Trial(_)))
    }

    /// Stops to be started anew: what comes meanwhile waits in line at the sockets that the service manager keeps. First all goes
    /// on but what is open, which is told that it ends; when that has ended nothing more is taken, and what came last has a
    /// moment.
    pub async fn stop_to_start_anew(self) {
        let limit = self.agent.config.drain;
        tracing::info!(
            ?limit,
            "this agent is being started anew; what is open ends, and what comes is served"
        );
        self.phase.send_replace(Phase::StartingAnew);
        let workers = u32::try_from(self.workers.len()).unwrap_or(u32::MAX);
        if tokio::time::timeout(limit, self.settled.acquire_many(workers)).await.is_err() {
            tracing::warn!("connections are still open at the end of the drain time");
        }
        self.offer.1.flush_state().await;
        end_without_goodbye(std::iter::once(self.source).chain(self.keeping).chain(self.others)).await;
        self.phase.send_replace(Phase::HandedOver);
        drain(self.workers, &self.phase, PAUSE).await;
        if let Some(interval) = self.interval
            && let Err(error) = tokio::task::spawn_blocking(move || interval.begin()).await.unwrap_or(Ok(()))
        {
            tracing::error!(%error, "what comes is refused until the next agent runs");
            leave_rules(&self.agent).await;
        }
        if let Some(guarding) = self.guarding {
            guarding.relieve(Relief::Dismissed).await;
        }
        if let Some(log) = self.log {
            log.finish(LOG_PATIENCE).await;
        }
        tracing::info!("baremesh agent stopped to be started anew");
    }

    /// Stops everything in good order.
    pub async fn stop(self) {
        let limit = self.agent.config.drain;
        tracing::info!(?limit, "draining");
        self.phase.send_replace(Phase::Draining);
        // The source says goodbye first, so that no new call comes here while the open ones end.
        let _ = tokio::time::timeout(limit, self.source).await;
        self.keeping.inspect(Task::abort);
        drain(self.workers, &self.phase, limit).await;
        // The guard's copies outlive the workers', and who waits there has to be told while the rules lead the answer back.
        self.held.iter().for_each(|sockets| refuse_all(sockets));
        if let Err(error) = store::keep(&[]) {
            tracing::warn!(%error, "the service manager keeps listeners that listen no more");
        }
        leave_rules(&self.agent).await;
        if let Some(guarding) = self.guarding {
            guarding.relieve(Relief::Dismissed).await;
        }
        self.phase.send_replace(Phase::Closing);
        self.others.iter().for_each(Task::abort);
        if let Some(resolved) = self.resolved {
            resolved.forget().await;
        }
        if let Some(log) = self.log {
            log.finish(LOG_PATIENCE).await;
        }
        tracing::info!("baremesh agent stopped");
    }
}

/// Has the rules for a gone agent take the place of this one's.
async fn leave_rules(agent: &routes::Agent) {
    if let Some(steward) = &agent.steward
        && let Err(error) = steward.leave().await
    {
        tracing::error!(%error, "the capture rules could not be exchanged for those of a gone agent");
    }
}

/// Ends tasks before anything tells them that this agent goes, so that no goodbye is said: the host stays, and another agent
/// speaks for it from now on.
async fn end_without_goodbye(tasks: impl Iterator<Item = Task<()>>) {
    for task in tasks {
        task.abort();
        // It was cancelled, or has ended.
        let _ = task.await;
    }
}

/// Lets open connections end, for `limit` at most; then they are closed.
async fn drain(workers: Vec<JoinHandle<()>>, phase: &watch::Sender<Phase>, limit: Duration) {
    let join = tokio::task::spawn_blocking(move || {
        for worker in workers {
            let _ = worker.join();
        }
    });
    tokio::pin!(join);
    if tokio::time::timeout(limit, &mut join).await.is_err() {
        tracing::warn!("connections are still open at the end of the drain time: they are closed");
        phase.send_replace(Phase::Closing);
        let _ = join.await;
    }
}
