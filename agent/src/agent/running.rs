//! The agent at work, and its end: goodbye to the source, the drain, the rules for a gone agent, the guard's
//! dismissal, and everything else.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use sd_notify::NotifyState;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{oneshot, watch};
use tokio::task::JoinHandle as Task;

use super::guard_post::Relief;
use super::handover::{InCharge, Offer, Successor};
use super::routes;
use crate::capture::guard::refuse_all;
use crate::proxy::Phase;
use crate::resolved::Resolved;
use crate::telemetry::access_log::Writing;

/// How long the last lines of the access log may take.
const LOG_PATIENCE: Duration = Duration::from_secs(5);

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
    /// Keeps the guard's post, until it is told what becomes of the guard.
    pub guarding: Option<(oneshot::Sender<Relief>, Task<()>)>,
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
        let until = tokio::time::Instant::now() + limit;
        tracing::info!(process, ?limit, "another agent takes over; what is open goes on here");
        self.offer.1.flush_state().await;
        // Before anything is told that this agent goes, so that no goodbye is said: the host stays, and the other one speaks
        // for it from now on.
        for task in std::iter::once(self.source).chain(self.keeping).chain(self.others) {
            task.abort();
            // It was cancelled, or has ended.
            let _ = task.await;
        }
        // The followers of container engines look for the other one.
        self.agent.heard.end_all();
        self.phase.send_replace(Phase::HandedOver);
        drop((self.offer, self.held));
        // Outside systemd there is nobody to tell.
        let _: std::io::Result<()> = sd_notify::notify(&[NotifyState::MainPid(process)]);
        let lives = successor.take().await;
        if let Some((relieve, guarding)) = self.guarding {
            let _ = relieve.send(if lives { Relief::Dismissed } else { Relief::OnDuty });
            // A panic there has been reported already.
            let _ = guarding.await;
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
        if let Some(steward) = &self.agent.steward
            && let Err(error) = steward.leave().await
        {
            tracing::error!(%error, "the capture rules could not be exchanged for those of a gone agent");
        }
        if let Some((relieve, guarding)) = self.guarding {
            let _ = relieve.send(Relief::Dismissed);
            // A panic there has been reported already.
            let _ = guarding.await;
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
