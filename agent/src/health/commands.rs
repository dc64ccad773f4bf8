//! Commands of checks in a process of their own. To become the service's user takes capabilities that the agent, which
//! reads what strangers send, is not to have. So a process that talks to nobody else has them, and the agent asks it for
//! the check of a service by the service's name: which command that is, and as whom it runs, that process reads from the
//! registrations itself. Whoever takes the agent over can have checks made that the host's administrator wrote, and no
//! others.

/// The other process.
mod serving;
/// The words between both.
mod wire;

use std::collections::HashMap;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream as Socket;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use baremesh_model::name::Key;
use tokio::io::BufReader;
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{mpsc, oneshot};

use self::wire::{Asked, Said, receive, send};
use super::probe::RunAs;
use crate::config::AgentConfig;

pub(super) use serving::run;
pub use serving::serve;

/// The verb that starts it.
pub const VERB: &str = "health-commands";
/// What is asked and not written yet; what does not fit waits.
const QUEUE: usize = 256;
/// What a look is told when there is nobody to ask.
const GONE: &str = "the process that runs commands of checks has ended: restart the agent";

/// Where commands run.
pub enum Commands {
    /// In this process, as what it can become.
    Here(RunAs),
    /// In one that has what it takes to become another user.
    Apart(Apart),
}

impl Commands {
    /// Starts the process, where this one can become another user now; to be called before that is given up.
    pub fn start(config: &AgentConfig) -> io::Result<Self> {
        match RunAs::of_this_process() {
            RunAs::Anybody => Apart::start(config).map(Self::Apart),
            oneself @ RunAs::Oneself { .. } => Ok(Self::Here(oneself)),
        }
    }
}

/// The other process, before there is a runtime to speak with it in.
pub struct Apart {
    socket: Socket,
    process: Child,
}

impl Apart {
    fn start(config: &AgentConfig) -> io::Result<Self> {
        let (socket, theirs) = Socket::pair()?;
        let mut command = Command::new(std::env::current_exe()?);
        command.arg("--config-dir").arg(&config.directories.config).arg(VERB);
        command.stdin(Stdio::from(OwnedFd::from(theirs))).stdout(Stdio::null());
        // With `command` goes the only other copy of its end.
        Ok(Self { socket, process: command.spawn()? })
    }

    /// Begins to speak with it.
    pub(super) fn speak(self) -> io::Result<Speaking> {
        self.socket.set_nonblocking(true)?;
        let (from, to) = UnixStream::from_std(self.socket)?.into_split();
        let (asks, asked) = mpsc::channel(QUEUE);
        let looks = Arc::<Mutex<Looks>>::default();
        tokio::spawn(write(asked, to));
        tokio::spawn(read(from, Arc::clone(&looks), self.process));
        Ok(Speaking { asks, looks })
    }
}

/// Those that wait for an answer.
#[derive(Default)]
struct Looks {
    waiting: HashMap<u64, oneshot::Sender<Result<(), String>>>,
    last: u64,
    /// Whether nobody answers any more.
    over: bool,
}

/// The other process, as looks ask it.
pub(super) struct Speaking {
    asks: mpsc::Sender<Asked>,
    looks: Arc<Mutex<Looks>>,
}

impl Speaking {
    /// Has the command of a service's check run, once. It is killed when this is dropped.
    pub(super) async fn run(&self, service: &Key) -> Result<(), String> {
        let (tell, told) = oneshot::channel();
        let id = {
            let mut looks = locked(&self.looks);
            if looks.over {
                return Err(GONE.to_owned());
            }
            looks.last += 1;
            let id = looks.last;
            looks.waiting.insert(id, tell);
            id
        };
        let _look = Look { of: self, id };
        let gone = || Err(GONE.to_owned());
        match self.asks.send(Asked::Run { id, service: service.to_string() }).await {
            Ok(()) => told.await.unwrap_or_else(|_| gone()),
            Err(_) => gone(),
        }
    }
}

/// A look that waits; when it is dropped before the answer, the command is not waited for.
struct Look<'a> {
    of: &'a Speaking,
    id: u64,
}

impl Drop for Look<'_> {
    fn drop(&mut self) {
        if locked(&self.of.looks).waiting.remove(&self.id).is_some() {
            // Where the queue is full, its own time ends the command.
            let _ = self.of.asks.try_send(Asked::Leave { id: self.id });
        }
    }
}

fn locked(looks: &Mutex<Looks>) -> MutexGuard<'_, Looks> {
    looks.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn write(mut asked: mpsc::Receiver<Asked>, mut to: OwnedWriteHalf) {
    while let Some(one) = asked.recv().await {
        // That it failed is seen by who reads, too.
        if send(&mut to, &one).await.is_err() {
            return;
        }
    }
}

async fn read(from: OwnedReadHalf, looks: Arc<Mutex<Looks>>, mut process: Child) {
    let mut from = BufReader::new(from);
    while let Ok(Some(Said { id, failed })) = receive(&mut from).await {
        if let Some(look) = locked(&looks).waiting.remove(&id) {
            let _ = look.send(failed.map_or(Ok(()), Err));
        }
    }
    let waiting = {
        let mut looks = locked(&looks);
        looks.over = true;
        std::mem::take(&mut looks.waiting)
    };
    drop(waiting);
    // It has closed its end, and ends; one that hangs is not waited for by anybody but a thread of those that may block.
    let ended = tokio::task::spawn_blocking(move || process.wait()).await;
    tracing::error!(
        ?ended,
        "the process that runs commands of checks has ended: checks by command fail until a restart"
    );
}
