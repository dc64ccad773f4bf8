//! One agent takes over from another, and no connection notices: the new one is handed the listening sockets, with what
//! waits in line at them, and everything that it needs to serve is in place before the old one lets go. Until that moment
//! the old one is in charge, whatever becomes of the new one; from then on it carries what is open to its end.
//!
//! They speak over a Unix socket beside the administration socket, in lines of JSON:
//!
//! | the new one | the old one |
//! |---|---|
//! | `hello`: its version of this | `sockets`: what each is for, and the sockets behind it; which services are healthy |
//! | `rules`: it is about to place its own | `go`: it no longer puts back what differs; which containers run |
//! | `ready`: it lacks nothing but the sockets' connections | `yours`: it accepts no more and follows nothing, and the state in force is on the disk |
//! | `guarded`: a guard is over it | |

use std::io::{self, Read as _, Write as _};
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use baremesh_model::health::Health;
use rustix::process::{Pid, test_kill_process};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::net::UnixListener;
use tokio::sync::{mpsc, oneshot};

use super::{AgentError, doing};
use crate::containers::heard::Heard;
use crate::descriptors;
use crate::proxy::Ports;
use crate::publish::Publisher;
use crate::service_manager::{store, watchdog};
use crate::steward::{Mode, Steward};

/// The version of what is spoken.
const VERSION: u32 = 1;
/// How long the other side may take for what it has at hand.
const PROMPT: Duration = Duration::from_secs(10);
/// How long a new agent may take to prepare itself, and to become ready.
const PREPARATION: Duration = Duration::from_secs(120);
/// How long writing the state in force may take.
const FLUSH: Duration = Duration::from_secs(5);
/// The longest line.
const MAX_LINE: usize = 256 * 1024;

/// What a socket is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Use {
    /// Connections that programs of this host open.
    Outbound,
    /// Connections that come to this host in plaintext.
    Inbound,
    /// Tunnels.
    Hbone,
    /// Names, asked over UDP.
    DnsUdp,
    /// Names, asked over TCP.
    DnsTcp,
    /// The administration socket.
    Administration,
    /// Metrics.
    Metrics,
    /// Readiness.
    Readiness,
    /// Something of a newer version.
    #[serde(other)]
    Unknown,
}

/// Listening sockets, each with what it is for.
#[derive(Debug, Default)]
pub struct Sockets(Vec<(Use, OwnedFd)>);

impl Sockets {
    /// Adds a copy of a socket.
    pub fn add(&mut self, of: Use, socket: impl AsFd) -> io::Result<()> {
        self.0.push((of, socket.as_fd().try_clone_to_owned()?));
        Ok(())
    }

    /// Copies of those that are to outlive the process: of the data path and of names.
    pub fn lasting(&self) -> io::Result<Vec<OwnedFd>> {
        let lasts =
            |of: Use| matches!(of, Use::Outbound | Use::Inbound | Use::Hbone | Use::DnsUdp | Use::DnsTcp);
        self.0.iter().filter(|(of, _)| lasts(*of)).map(|(_, socket)| socket.try_clone()).collect()
    }

    /// Whether there are any for the data path.
    pub fn has_listeners(&self) -> bool {
        self.0.iter().any(|(of, _)| matches!(of, Use::Outbound | Use::Inbound | Use::Hbone))
    }

    /// Takes those for one use out, in order.
    pub fn take<S: From<OwnedFd>>(&mut self, of: Use) -> Vec<S> {
        let (taken, rest) = std::mem::take(&mut self.0).into_iter().partition(|(one, _)| *one == of);
        self.0 = rest;
        let taken: Vec<(Use, OwnedFd)> = taken;
        taken.into_iter().map(|(_, socket)| S::from(socket)).collect()
    }
}

#[derive(Serialize, Deserialize)]
struct Hello {
    hello: u32,
}

#[derive(Serialize, Deserialize)]
struct Given {
    sockets: Vec<Use>,
    /// Services of this host whose checks passed last.
    healthy: Vec<String>,
    /// How often the service manager wants to hear of the main process, in microseconds.
    #[serde(default)]
    watchdog: Option<u64>,
}

/// What an agent is handed that takes over.
#[derive(Debug, Default)]
pub struct Handed {
    /// The listening sockets.
    pub sockets: Sockets,
    /// Services of this host, as `name.namespace`, whose checks passed last.
    pub healthy: Vec<String>,
    /// How often the service manager wants to hear of the main process.
    pub watchdog: Option<Duration>,
}

impl Handed {
    /// What the service manager kept of an agent before this one, and wants of it.
    pub fn by_service_manager(ports: Ports, dns_port: u16) -> Self {
        let store::Started { tcp, udp } = store::take();
        let at = |address: io::Result<SocketAddr>| address.map_or(0, |address| address.port());
        let use_of = |port: u16| match port {
            port if port == ports.outbound => Some(Use::Outbound),
            port if port == ports.inbound => Some(Use::Inbound),
            port if port == ports.hbone => Some(Use::Hbone),
            port if port == dns_port => Some(Use::DnsTcp),
            _ => None,
        };
        // What is at another port than now is closed.
        let listening = tcp
            .into_iter()
            .filter_map(|listener| Some((use_of(at(listener.local_addr()))?, OwnedFd::from(listener))));
        let asked = udp.into_iter().filter(|socket| at(socket.local_addr()) == dns_port);
        let asked = asked.map(|socket| (Use::DnsUdp, OwnedFd::from(socket)));
        let sockets = Sockets(listening.chain(asked).collect());
        Self { sockets, healthy: Vec::new(), watchdog: watchdog::wanted() }
    }
}

#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Word {
    Rules,
    /// With what was told of containers.
    Go(Value),
    Ready,
    Yours,
    Guarded,
    Refused(String),
}

/// The line between the two. It blocks: nothing is said in a hurry.
struct Channel(UnixStream);

impl Channel {
    fn say(&mut self, message: &impl Serialize) -> io::Result<()> {
        let mut line = serde_json::to_vec(message)?;
        line.push(b'\n');
        self.0.write_all(&line)
    }

    /// The next line. What follows it is not read: sockets come with the bytes behind it.
    fn hear<M: DeserializeOwned>(&mut self, within: Duration) -> io::Result<M> {
        self.0.set_read_timeout(Some(within))?;
        let mut line = Vec::new();
        let mut byte = [0];
        loop {
            self.0.read_exact(&mut byte)?;
            match byte {
                [b'\n'] => return serde_json::from_slice(&line).map_err(io::Error::from),
                _ if line.len() >= MAX_LINE => return Err(io::Error::other("a line without end")),
                [byte] => line.push(byte),
            }
        }
    }

    fn expect(&mut self, word: &Word, within: Duration) -> io::Result<()> {
        match self.hear::<Word>(within)? {
            heard if heard == *word => Ok(()),
            Word::Refused(reason) => Err(io::Error::other(reason)),
            other => Err(io::Error::other(format!("it said {other:?} and not {word:?}"))),
        }
    }
}

fn unexpected(word: &Word) -> AgentError {
    AgentError::State(format!("the agent that runs said {word:?}, and stays in charge"))
}

/// Does something with the line that blocks.
async fn with<T: Send + 'static>(
    mut channel: Channel,
    act: impl FnOnce(&mut Channel) -> io::Result<T> + Send + 'static,
) -> io::Result<(Channel, T)> {
    let acted = tokio::task::spawn_blocking(move || act(&mut channel).map(|acted| (channel, acted)));
    acted.await.map_err(io::Error::other)?
}

/// The running agent, as one sees it that is to take over.
pub struct Predecessor {
    channel: Option<Channel>,
}

impl Predecessor {
    /// Finds the agent that runs, and is handed its sockets.
    ///
    /// # Errors
    /// None runs, it is of a version that cannot hand over, or it does not let this user.
    pub async fn meet(path: &Path) -> Result<(Self, Handed), AgentError> {
        let failed = || doing(format!("taking over from the agent that runs, at {}", path.display()));
        let stream = UnixStream::connect(path).map_err(failed())?;
        let met = with(Channel(stream), |channel| {
            channel.say(&Hello { hello: VERSION })?;
            let Given { sockets: uses, healthy, watchdog } = match channel.hear(PROMPT)? {
                Answer::Given(given) => given,
                Answer::Word(Word::Refused(reason)) => return Err(io::Error::other(reason)),
                Answer::Word(other) => return Err(io::Error::other(format!("it said {other:?}"))),
            };
            if uses.len() > descriptors::MOST {
                return Err(io::Error::other("it has more sockets than an agent can have"));
            }
            let sockets = descriptors::take(&channel.0, uses.len())?;
            if sockets.len() != uses.len() {
                return Err(io::Error::other("it ended before it had handed over its sockets"));
            }
            let watchdog = watchdog.map(Duration::from_micros);
            Ok(Handed { sockets: Sockets(uses.into_iter().zip(sockets).collect()), healthy, watchdog })
        });
        let (channel, handed) = met.await.map_err(failed())?;
        Ok((Self { channel: Some(channel) }, handed))
    }

    /// Says something, and waits for the answer.
    async fn ask(&mut self, word: Word) -> Result<Word, AgentError> {
        let gone = || io::Error::other("it is gone");
        let failed = || doing("taking over from the agent that runs");
        let channel = self.channel.take().ok_or_else(gone).map_err(failed())?;
        let asked = with(channel, move |channel| {
            channel.say(&word)?;
            channel.hear(PREPARATION)
        });
        let (channel, answer) = asked.await.map_err(failed())?;
        self.channel = Some(channel);
        Ok(answer)
    }

    /// From now on the rules are this agent's. Returns what the other one was told of containers, as `Heard::last` has it.
    pub async fn let_go_of_rules(&mut self) -> Result<Value, AgentError> {
        match self.ask(Word::Rules).await? {
            Word::Go(containers) => Ok(containers),
            other => Err(unexpected(&other)),
        }
    }

    /// From now on everything is: nobody else accepts connections or follows the mesh.
    pub async fn give_way(&mut self) -> Result<(), AgentError> {
        match self.ask(Word::Ready).await? {
            Word::Yours => Ok(()),
            other => Err(unexpected(&other)),
        }
    }

    /// A guard is over this agent: the one over the other may go.
    pub async fn note_guard(mut self) {
        if let Some(channel) = self.channel.take() {
            // The other one may have ended since; nothing hangs on it any more.
            let _ = with(channel, |channel| channel.say(&Word::Guarded)).await;
        }
    }
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Answer {
    Given(Given),
    Word(Word),
}

/// What an agent that is in charge has to hand over, or to let go of.
pub struct InCharge {
    /// Copies of its listening sockets.
    pub sockets: Sockets,
    /// The keeper of its rules.
    pub steward: Option<Arc<Steward>>,
    /// What is registered and in force.
    pub publisher: Arc<Publisher>,
    /// What was told of containers.
    pub heard: Arc<Heard>,
    /// How often the service manager wants to hear of the main process.
    pub watchdog: Option<Duration>,
    /// By which the state in force is written to its file at once.
    pub flush: Option<mpsc::Sender<oneshot::Sender<()>>>,
}

impl InCharge {
    /// Services of this host whose checks passed last.
    fn healthy(&self) -> Vec<String> {
        let registered = self.publisher.registered().borrow().clone();
        let well = registered.iter().filter(|one| one.check.is_some() && one.health == Health::Healthy);
        well.map(|one| one.key.to_string()).collect()
    }

    /// Has the state in force written to the disk, where another agent finds it.
    pub async fn flush_state(&self) {
        let Some(flush) = &self.flush else { return };
        let (done, is_done) = oneshot::channel();
        let flushed = async { flush.send(done).await.is_ok() && is_done.await.is_ok() };
        if tokio::time::timeout(FLUSH, flushed).await != Ok(true) {
            tracing::warn!("the state in force may not be on the disk yet");
        }
    }
}

/// Where an agent waits for one that takes over.
pub struct Offer {
    listener: UnixListener,
}

/// The agent that takes over, ready for it.
pub struct Successor {
    /// Its process.
    pub process: u32,
    channel: Channel,
}

impl Offer {
    /// Waits at `path`, where an agent before this one may have waited.
    pub fn bind(path: &Path) -> Result<Self, AgentError> {
        let aside = path.with_extension(format!("{}", std::process::id()));
        let bind = || {
            let _ = std::fs::remove_file(&aside);
            let listener = UnixListener::bind(&aside)?;
            std::fs::set_permissions(&aside, std::fs::Permissions::from_mode(0o600))?;
            std::fs::rename(&aside, path)?;
            Ok(listener)
        };
        let listener = bind().map_err(doing(format!("making the socket {}", path.display())))?;
        Ok(Self { listener })
    }

    /// Ends when an agent is ready to take over from `this`. Whatever becomes of one that is not, this one stays in charge.
    pub async fn taken(&self, this: &InCharge) -> Successor {
        let own = rustix::process::geteuid().as_raw();
        loop {
            let stream = match self.listener.accept().await {
                Ok((stream, _)) => stream,
                Err(error) => {
                    tracing::warn!(%error, "who wants to take over cannot be heard");
                    tokio::time::sleep(Duration::from_secs(1)).await;
                    continue;
                }
            };
            let is_ours = |uid| uid == 0 || uid == own;
            if !stream.peer_cred().is_ok_and(|peer| is_ours(peer.uid())) {
                continue;
            }
            match hear_out(stream, this).await {
                Ok(successor) => return successor,
                Err(error) => {
                    tracing::error!(%error, "another agent did not come to take over: this one goes on");
                    if let Some(steward) = &this.steward {
                        steward.take_up_again();
                    }
                }
            }
        }
    }
}

/// Hears out one that wants to take over, until it is ready.
async fn hear_out(stream: tokio::net::UnixStream, this: &InCharge) -> io::Result<Successor> {
    let process = stream.peer_cred()?.pid().and_then(|process| u32::try_from(process).ok());
    let process = process.ok_or_else(|| io::Error::other("the kernel does not say which process it is"))?;
    let stream = stream.into_std()?;
    stream.set_nonblocking(false)?;
    let sockets = &this.sockets.0;
    let uses = sockets.iter().map(|(of, _)| *of).collect();
    let copies = sockets.iter().map(|(_, socket)| socket.try_clone()).collect::<io::Result<Vec<_>>>()?;
    if this.steward.as_ref().is_some_and(|steward| matches!(steward.mode(), Mode::Trial(_))) {
        let reason =
            "the capture rules are on trial: `baremesh capture confirm` them, or let them end, first";
        let refused = with(Channel(stream), move |channel| channel.say(&Word::Refused(reason.to_owned())));
        return refused.await.and(Err(io::Error::other(reason)));
    }
    let (channel, ()) = with(Channel(stream), move |channel| {
        let Hello { hello } = channel.hear(PROMPT)?;
        if hello != VERSION {
            let reason =
                format!("it hands over in version {VERSION}, and not {hello}: restart the service instead");
            channel.say(&Word::Refused(reason.clone()))?;
            return Err(io::Error::other(reason));
        }
        Ok(())
    })
    .await?;
    tracing::info!(process, "another agent prepares to take over");
    // It begins with the state that is on the disk.
    this.flush_state().await;
    let healthy = this.healthy();
    let watchdog = this.watchdog.map(|within| u64::try_from(within.as_micros()).unwrap_or(u64::MAX));
    let (channel, ()) = with(channel, move |channel| {
        channel.say(&Given { sockets: uses, healthy, watchdog })?;
        let borrowed: Vec<BorrowedFd<'_>> = copies.iter().map(AsFd::as_fd).collect();
        descriptors::give(&channel.0, &borrowed)?;
        channel.expect(&Word::Rules, PREPARATION)
    })
    .await?;
    if let Some(steward) = &this.steward {
        steward.leave_to_another().await;
    }
    let containers = this.heard.last();
    let (channel, ()) = with(channel, move |channel| {
        channel.say(&Word::Go(containers))?;
        channel.expect(&Word::Ready, PREPARATION)
    })
    .await?;
    Ok(Successor { process, channel })
}

impl Successor {
    /// Leaves everything to it, and waits until a guard is over it. False where it has died before that.
    pub async fn take(self) -> bool {
        let taken = with(self.channel, |channel| {
            channel.say(&Word::Yours)?;
            channel.expect(&Word::Guarded, PROMPT)
        });
        let Err(error) = taken.await else { return true };
        tracing::error!(process = self.process, %error, "the agent that takes over has no guard");
        let process = i32::try_from(self.process).ok().and_then(Pid::from_raw);
        process.is_some_and(|process| test_kill_process(process).is_ok())
    }
}

#[cfg(test)]
mod tests;
