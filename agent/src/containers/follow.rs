//! Following one engine: its events are listened to first, then everything is listed and told, and from then on what ends
//! is taken back at once and what changes is listed anew. The agent is told over a connection that stays; without the
//! engine it is ended, since nobody can stand by what was told.

use std::collections::HashSet;
use std::convert::Infallible;
use std::path::PathBuf;
use std::time::Duration;

use http::Method;
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncWriteExt as _, BufReader, WriteHalf};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until, timeout};

use super::Running;
use super::engine::{self, Event, Unreadable};
use super::heard::read_line;
use super::listing::Listing;
use super::wire::{Answer, MAX_LINE, PROTOCOL, ROUTE, SAYS, Told};
use crate::admin::client::{Socket, SocketError};

/// Where engines listen unless they are told otherwise.
pub const USUAL_ENGINES: [&str; 2] = ["/run/docker.sock", "/run/podman/podman.sock"];
/// How long the engine, or the agent, may take to answer.
const PATIENCE: Duration = Duration::from_secs(10);
/// The pause before the engine is asked again whether it answers.
const PINGS: Duration = Duration::from_secs(3);
/// The pause between two lists: a burst of events comes to few of them.
const PAUSE: Duration = Duration::from_millis(50);
/// How often everything is listed though nothing happened.
const ANEW: Duration = Duration::from_secs(60);
/// The first pause before another attempt, and the longest; each is up to a half shorter by chance.
const BACK_OFF: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));
/// The longest event, in bytes: it has the container's labels in it.
const MAX_EVENT: usize = 1024 * 1024;
/// Events that wait to be looked at; beyond, the engine waits.
const EVENTS: usize = 1024;
/// The longest answer of the agent to a list, in bytes.
const MAX_ANSWER: usize = 64 * 1024;

/// Why an engine is followed no longer.
#[derive(Debug, thiserror::Error)]
pub enum FollowError {
    /// The engine, or the agent, does not answer.
    #[error(transparent)]
    Socket(#[from] SocketError),
    /// It answers what no engine says.
    #[error(transparent)]
    Unreadable(#[from] Unreadable),
    /// It took too long.
    #[error("{0} gave no answer within {patience} s", patience = PATIENCE.as_secs())]
    TooLate(&'static str),
    /// It has closed the connection.
    #[error("{0} has closed the connection")]
    Ended(&'static str),
    /// The agent does not take what it was told.
    #[error("the agent refuses the list: {0}")]
    Refused(String),
    /// There is more than can be told.
    #[error("the list of containers is {0} bytes long, and the limit is {MAX_LINE}")]
    TooLong(usize),
}

/// Follows one engine for one agent.
#[derive(Debug, Clone)]
pub struct Follower {
    /// The engine's socket.
    pub engine: PathBuf,
    /// The agent's administration socket.
    pub agent: PathBuf,
}

impl Follower {
    /// Follows it for ever. What fails is tried again, later each time.
    pub async fn run(self) -> Infallible {
        let mut back_off = BACK_OFF.0;
        let mut said = String::new();
        loop {
            let began = Instant::now();
            let Err(error) = Box::pin(self.follow(&mut said)).await;
            // What held for a while is tried again at once.
            if began.elapsed() > BACK_OFF.1 {
                back_off = BACK_OFF.0;
            }
            let error = error.to_string();
            if error != said {
                tracing::warn!(engine = %self.engine.display(), error, "containers are not followed");
                said = error;
            }
            tokio::time::sleep(back_off.mul_f64(rand::random_range(0.5..=1.0))).await;
            back_off = (back_off * 2).min(BACK_OFF.1);
        }
    }

    fn engine(&self) -> Socket<'_> {
        Socket { path: &self.engine, program: "the container engine" }
    }

    /// Follows it until something fails. What was `said` of it is forgotten when the agent has taken a list.
    async fn follow(&self, said: &mut String) -> Result<Infallible, FollowError> {
        let kind = engine::kind(&ask(&self.engine(), engine::VERSION).await?)?;
        let mut tasks = JoinSet::new();
        // Before the list: what happens while it is made is not missed.
        let events = timeout(PATIENCE, self.engine().stream(engine::EVENTS)).await;
        let events = events.map_err(|_| FollowError::TooLate("the container engine"))??;
        let (event, mut events_read) = mpsc::channel(EVENTS);
        tasks.spawn(read_events(events, event));
        let (pinged, mut silent) = mpsc::channel(1);
        tasks.spawn(ping(self.clone(), pinged));
        let (listing, mut running) = Listing::new(self.engine.clone(), kind).list().await?;
        let mut idle = Some(listing);
        let mut agent = Agent::open(self, &mut tasks).await?;
        agent.tell(&running).await?;
        let mut is_taken = false;

        let mut listing = JoinSet::new();
        let mut ended_meanwhile = HashSet::new();
        let mut list_at = Instant::now() + ANEW;
        let mut still_at = Instant::now() + SAYS;
        loop {
            tokio::select! {
                event = events_read.recv() => {
                    match event.ok_or(FollowError::Ended("the container engine"))?? {
                        Event::Nothing => continue,
                        Event::Changed => {}
                        Event::Ended(id) => {
                            let before = running.len();
                            running.retain(|one| one.id != id);
                            if running.len() < before {
                                agent.tell(&running).await?;
                            }
                            ended_meanwhile.insert(id);
                        }
                    }
                    list_at = list_at.min(Instant::now() + PAUSE);
                }
                () = sleep_until(list_at), if idle.is_some() => {
                    ended_meanwhile.clear();
                    if let Some(lister) = idle.take() {
                        listing.spawn(lister.list());
                    }
                    list_at = Instant::now() + ANEW;
                }
                Some(listed) = listing.join_next() => {
                    let (lister, mut listed) = listed.map_err(|_| FollowError::Ended("the container engine"))??;
                    idle = Some(lister);
                    // The list may be older than their end; another one is made after it.
                    listed.retain(|one| !ended_meanwhile.contains(&one.id));
                    if listed != running {
                        running = listed;
                        agent.tell(&running).await?;
                    }
                }
                () = sleep_until(still_at) => {
                    agent.say(b"\n").await?;
                    still_at = Instant::now() + SAYS;
                }
                answer = agent.answers.recv() => {
                    if let Some(reason) = answer.ok_or(FollowError::Ended("the agent"))?.refused {
                        return Err(FollowError::Refused(reason));
                    }
                    if !is_taken {
                        tracing::info!(engine = %self.engine.display(), ?kind, containers = running.len(), "containers are followed");
                        is_taken = true;
                        said.clear();
                    }
                }
                Some(error) = silent.recv() => return Err(error),
            }
        }
    }
}

/// One question to the engine.
pub(super) async fn ask(engine: &Socket<'_>, what: &str) -> Result<bytes::Bytes, FollowError> {
    let answer = timeout(PATIENCE, engine.call(Method::GET, what, Vec::new())).await;
    Ok(answer.map_err(|_| FollowError::TooLate("the container engine"))??)
}

/// Asks again and again whether the engine answers, and ends when it does not: [`PATIENCE`] after its last answer.
async fn ping(follower: Follower, silent: mpsc::Sender<FollowError>) {
    let engine = follower.engine();
    loop {
        tokio::time::sleep(PINGS).await;
        let error = match timeout(PATIENCE - PINGS, ask(&engine, engine::PING)).await {
            Ok(Ok(_)) => continue,
            Ok(Err(error)) => error,
            Err(_) => FollowError::TooLate("the container engine"),
        };
        let _ = silent.send(error).await;
        return;
    }
}

/// Reads what happens, one line after another, for as long as somebody takes it. A line that is too long may say anything.
async fn read_events(mut body: Incoming, events: mpsc::Sender<Result<Event, FollowError>>) {
    let mut rest: Vec<u8> = Vec::new();
    let mut is_too_long = false;
    while let Some(Ok(frame)) = body.frame().await {
        let Ok(data) = frame.into_data() else { continue };
        rest.extend_from_slice(&data);
        let mut from = 0;
        while let Some(length) = rest[from..].iter().position(|byte| *byte == b'\n') {
            let line = rest[from..from + length].trim_ascii();
            from += length + 1;
            if std::mem::take(&mut is_too_long) {
                continue;
            }
            if !line.is_empty() && events.send(engine::event(line).map_err(FollowError::from)).await.is_err()
            {
                return;
            }
        }
        rest.drain(..from);
        if rest.len() > MAX_EVENT {
            if !is_too_long && events.send(Ok(Event::Changed)).await.is_err() {
                return;
            }
            is_too_long = true;
            rest.clear();
        }
    }
}

/// The connection to the agent.
struct Agent {
    engine: String,
    writer: WriteHalf<TokioIo<Upgraded>>,
    answers: mpsc::Receiver<Answer>,
}

impl Agent {
    async fn open(follower: &Follower, tasks: &mut JoinSet<()>) -> Result<Self, FollowError> {
        let socket = Socket { path: &follower.agent, program: "baremesh agent" };
        let upgraded = timeout(PATIENCE, socket.upgrade(ROUTE, PROTOCOL)).await;
        let upgraded = upgraded.map_err(|_| FollowError::TooLate("the agent"))??;
        let (reader, writer) = tokio::io::split(TokioIo::new(upgraded));
        let (answer, answers) = mpsc::channel(1);
        tasks.spawn(async move {
            let mut reader = BufReader::new(reader);
            while let Ok(Some(line)) = read_line(&mut reader, MAX_ANSWER).await {
                let Ok(said) = serde_json::from_slice(&line) else { return };
                if answer.send(said).await.is_err() {
                    return;
                }
            }
        });
        Ok(Self { engine: follower.engine.display().to_string(), writer, answers })
    }

    async fn tell(&mut self, running: &[Running]) -> Result<(), FollowError> {
        // Those on no bridge of this host are nobody's.
        let placed = running.iter().filter(|one| !one.places.is_empty());
        let mut line = serde_json::to_vec(&Told::new(&self.engine, placed)).unwrap_or_default();
        if line.len() > MAX_LINE {
            return Err(FollowError::TooLong(line.len()));
        }
        line.push(b'\n');
        self.say(&line).await
    }

    async fn say(&mut self, line: &[u8]) -> Result<(), FollowError> {
        let said = timeout(PATIENCE, self.writer.write_all(line)).await;
        let said = said.map_err(|_| FollowError::TooLate("the agent"))?;
        said.map_err(|_| FollowError::Ended("the agent"))
    }
}

#[cfg(test)]
mod tests;
