//! The guard's post. A guard that is killed alone is replaced, so that the agent's own death never finds the post
//! empty for longer than a look takes.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;

use super::{AgentError, doing};
use crate::beat;
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
    /// Whether somebody else has them too.
    shared: bool,
}

/// What a post is told.
enum Order {
    /// From now on somebody else has the listeners too. Who is told then has it from the guard as well.
    Share(oneshot::Sender<()>),
    /// The post ends.
    Relieve(Relief),
}

impl GuardPost {
    /// Posts a guard over the listeners. `shared` says that somebody else has them too.
    pub fn start(gone_file: PathBuf, listeners: &[Listeners], shared: bool) -> Result<Self, AgentError> {
        let exe = std::env::current_exe().map_err(doing("finding the agent's own binary"))?;
        let sockets: io::Result<Vec<OwnedFd>> = listeners
            .iter()
            .flat_map(Listeners::sockets)
            .map(|socket| socket.as_fd().try_clone_to_owned())
            .collect();
        let sockets = sockets.map_err(doing("duplicating the listeners for the guard"))?;
        let mut post = Self { guard: None, exe, gone_file, sockets: Arc::new(sockets), shared };
        post.fill()?;
        Ok(post)
    }

    /// The listeners, for when nobody accepts from them any more.
    pub fn sockets(&self) -> Arc<Vec<OwnedFd>> {
        Arc::clone(&self.sockets)
    }

    fn fill(&mut self) -> Result<(), CaptureError> {
        let sockets: Vec<BorrowedFd<'_>> = self.sockets.iter().map(AsFd::as_fd).collect();
        let mut guard = Guard::spawn(&self.exe, &self.gone_file, &sockets)?;
        if self.shared {
            tell_of_sharing(&mut guard);
        }
        self.guard = Some(guard);
        Ok(())
    }

    /// Replaces guards that end, until the post is relieved; then the last one is dismissed, or left to its duty.
    async fn keep(mut self, mut orders: mpsc::Receiver<Order>) {
        let relief = loop {
            tokio::select! {
                order = orders.recv() => match order {
                    None => break Relief::Dismissed,
                    Some(Order::Relieve(relief)) => break relief,
                    Some(Order::Share(done)) => {
                        self.shared = true;
                        self.guard.as_mut().map(tell_of_sharing);
                        // Who gave the order may have stopped waiting.
                        let _ = done.send(());
                    }
                },
                () = beat::next(LOOK) => {}
            }
            // No more than a system call, and no thread's work.
            if matches!(self.guard.as_mut().map(Guard::ended), Some(Ok(None))) {
                continue;
            }
            let watched = tokio::task::spawn_blocking(move || {
                self.replace();
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

    fn replace(&mut self) {
        let ended = self.guard.as_mut().map(Guard::ended);
        tracing::error!(?ended, "the guard has ended: another one is posted");
        if let Err(error) = self.fill() {
            tracing::error!(%error, "no guard could be posted");
        }
    }
}

fn tell_of_sharing(guard: &mut Guard) {
    if let Err(error) = guard.share() {
        // It is dead, and the next one is told.
        tracing::debug!(%error, "the guard is not told that the listeners are shared");
    }
}

/// A post that is kept, as the agent has it.
pub struct Guarding {
    orders: mpsc::Sender<Order>,
    keeping: JoinHandle<()>,
}

impl Guarding {
    /// Keeps a post.
    pub fn of(post: GuardPost) -> Self {
        let (orders, ordered) = mpsc::channel(1);
        Self { orders, keeping: tokio::spawn(post.keep(ordered)) }
    }

    /// Somebody else has the listeners too from now on.
    pub async fn share(&self) {
        let (done, is_done) = oneshot::channel();
        // A post that has ended has no guard.
        if self.orders.send(Order::Share(done)).await.is_ok() {
            let _ = is_done.await;
        }
    }

    /// Ends the post.
    pub async fn relieve(self, relief: Relief) {
        let _ = self.orders.send(Order::Relieve(relief)).await;
        // A panic there has been reported already.
        let _ = self.keeping.await;
    }
}
