//! The guard's post. A guard that is killed alone is replaced, so that the agent's own death never finds the post
//! empty for longer than a look takes.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::oneshot;

use super::{AgentError, doing};
use crate::capture::CaptureError;
use crate::capture::guard::Guard;
use crate::proxy::Listeners;

/// How often the post is looked at.
const LOOK: Duration = Duration::from_secs(1);

/// What becomes of the guard.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Relief {
    /// It is dismissed: the rules stay as they are.
    Dismissed,
    /// It does its duty as if the agent had died: who was to take over has.
    OnDuty,
}

/// A guard, and what a further one needs.
pub struct GuardPost {
    guard: Option<Guard>,
    exe: PathBuf,
    gone_file: PathBuf,
    sockets: Arc<Vec<OwnedFd>>,
}

impl GuardPost {
    /// Posts a guard over the listeners.
    pub fn start(gone_file: PathBuf, listeners: &[Listeners]) -> Result<Self, AgentError> {
        let exe = std::env::current_exe().map_err(doing("finding the agent's own binary"))?;
        let sockets: io::Result<Vec<OwnedFd>> = listeners
            .iter()
            .flat_map(Listeners::sockets)
            .map(|socket| socket.as_fd().try_clone_to_owned())
            .collect();
        let sockets = sockets.map_err(doing("duplicating the listeners for the guard"))?;
        let mut post = Self { guard: None, exe, gone_file, sockets: Arc::new(sockets) };
        post.fill()?;
        Ok(post)
    }

    /// The listeners, for when nobody accepts from them any more.
    pub fn sockets(&self) -> Arc<Vec<OwnedFd>> {
        Arc::clone(&self.sockets)
    }

    fn fill(&mut self) -> Result<(), CaptureError> {
        let sockets: Vec<BorrowedFd<'_>> = self.sockets.iter().map(AsFd::as_fd).collect();
        self.guard = Some(Guard::spawn(&self.exe, &self.gone_file, &sockets)?);
        Ok(())
    }

    /// Replaces guards that end, until the post is relieved; then the last one is dismissed, or left to its duty.
    pub async fn keep(mut self, mut relieved: oneshot::Receiver<Relief>) {
        let relief = loop {
            tokio::select! {
                relief = &mut relieved => break relief.unwrap_or(Relief::Dismissed),
                () = tokio::time::sleep(LOOK) => {}
            }
            let watched = tokio::task::spawn_blocking(move || {
                self.look();
                self
            });
            match watched.await {
                Ok(post) => self = post,
                Err(panic) => std::panic::resume_unwind(panic.into_panic()),
            }
        };
        let Some(guard) = self.guard.take() else { return };
        if relief == Relief::OnDuty {
            drop(guard);
            return;
        }
        let dismissed = tokio::task::spawn_blocking(move || guard.dismiss()).await;
        if !matches!(dismissed, Ok(Ok(()))) {
            tracing::warn!("the guard did not leave by itself");
        }
    }

    fn look(&mut self) {
        let ended = self.guard.as_mut().map(Guard::ended);
        if matches!(ended, Some(Ok(None))) {
            return;
        }
        tracing::error!(?ended, "the guard has ended: another one is posted");
        if let Err(error) = self.fill() {
            tracing::error!(%error, "no guard could be posted");
        }
    }
}
