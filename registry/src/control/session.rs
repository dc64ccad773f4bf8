//! One agent's session at the server. What the agent says is read by one loop and what it is to know is written
//! by another: an agent that takes nothing for a while can still renew its lease, and when it takes again, it is
//! sent the newest state and nothing in between.

use std::net::IpAddr;
use std::pin::Pin;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use baremesh_model::name::Label;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use tokio::time::{sleep, timeout};

use super::admission::Refusal;
use super::codec::{FrameError, FrameReader, FrameWriter};
use super::memory::Nack;
use super::message::{
    Finding, FromAgent, Hello, MessageError, Outcome, Refused, Register, RegisterResult, Renewed, Welcome,
    frame, printable,
};
use super::ownership::NotOwn;
use super::push::{LARGE, Push};
use super::registration::{Registration, read_health};
use super::server::{Control, ControlError, MAX_HOSTS};
use super::state::Held;
use super::subscription::{Subscription, service_key};
use super::{ANSWERS_RENEWALS, ENDPOINT_ADDRESSES, PROTOCOL, TAKES_HEALTH, understands};

/// How long a new connection has for its first message.
pub const HELLO_WAIT: Duration = Duration::from_secs(10);
/// Leases after which a session in which nothing is heard ends.
pub const SILENT_LEASES: u32 = 4;
/// The least time between two pushes to one agent: changes that come together are pushed together.
pub const PUSH_GAP: Duration = Duration::from_millis(50);
/// What that grows by for each agent, so that changes without end cost thousands of agents no more pushes a second than
/// hundreds. The first change after a quiet time waits for nothing.
const PUSH_COST: Duration = Duration::from_micros(200);
/// How long one push may take, however slowly the agent takes it.
const PUSH_TIME: Duration = Duration::from_secs(300);
/// How long the last word of a session may take.
const LAST_WORD: Duration = Duration::from_secs(2);

/// Why a session ended before the agent ended it.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)] // The messages say what each is.
pub enum SessionError {
    #[error(transparent)]
    Frame(#[from] FrameError),
    #[error(transparent)]
    Message(#[from] MessageError),
    #[error("the first message must be Hello, once")]
    Hello,
    #[error("nothing was said for {} seconds", .0.as_secs())]
    Silent(Duration),
    #[error("the agent speaks protocol {0}, this server {PROTOCOL}: upgrade the older of the two")]
    Protocol(u32),
    #[error("the subscription names what is no service: write `*` or name.namespace")]
    Subscription,
    #[error("there are {MAX_HOSTS} hosts already")]
    TooManyHosts,
    #[error("a newer session of this host has taken over")]
    Superseded,
    #[error("what this host may announce has changed: it is to register anew")]
    Reconsidered,
}

/// What the reading loop leaves for the writing one: the newest of each kind, never a queue.
struct Outbox {
    contents: Mutex<Contents>,
    filled: Notify,
}

#[derive(Clone)]
struct Contents {
    result: Option<RegisterResult>,
    renewed: bool,
    subscription: Subscription,
    subscribed: u64,
}

impl Outbox {
    fn new(subscription: Subscription) -> Self {
        let contents = Contents { result: None, renewed: false, subscription, subscribed: 0 };
        Self { contents: Mutex::new(contents), filled: Notify::new() }
    }

    fn put(&self, change: impl FnOnce(&mut Contents)) {
        change(&mut self.contents.lock().unwrap_or_else(PoisonError::into_inner));
        self.filled.notify_one();
    }

    fn take(&self) -> Contents {
        let mut contents = self.contents.lock().unwrap_or_else(PoisonError::into_inner);
        let taken = contents.clone();
        (contents.result, contents.renewed) = (None, false);
        taken
    }
}

/// Runs a session to its end, and tells the agent why when the end is the server's doing.
pub(super) async fn run<R, W>(
    control: &Control,
    (host, from): (Label, Vec<IpAddr>),
    reader: R,
    writer: W,
) -> Result<(), SessionError>
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    let mut reader = FrameReader::new(reader);
    let mut writer = FrameWriter::new(writer);
    let result = serve(control, (&host, from), &mut reader, &mut writer).await;
    if let Err(error) = &result {
        if !matches!(error, SessionError::Superseded | SessionError::Reconsidered) {
            control.0.failed_sessions.fetch_add(1, Ordering::Relaxed);
        }
        let refused = frame(&Refused { reason: error.to_string() });
        // The connection may be what failed: the agent learns that by itself.
        let _ = timeout(LAST_WORD, writer.send(&refused)).await;
    }
    let _ = timeout(LAST_WORD, writer.close()).await;
    result
}

/// Ends the session in the books, however its future ends.
struct Session<'a> {
    control: &'a Control,
    host: &'a Label,
    number: u64,
}

impl Drop for Session<'_> {
    fn drop(&mut self) {
        self.control.0.core().end(self.host, self.number);
    }
}

async fn serve<R, W>(
    control: &Control,
    (host, from): (&Label, Vec<IpAddr>),
    reader: &mut FrameReader<R>,
    writer: &mut FrameWriter<W>,
) -> Result<(), SessionError>
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    let Some(hello) = read_hello(control, reader).await? else { return Ok(()) };
    let subscription = Subscription::read(&hello.subscribe).ok_or(SessionError::Subscription)?;
    let said = (&*printable(&hello.agent_version), &*from);
    let begun = control.0.core().begin(host, said, Instant::now());
    let (number, interrupted) = begun.ok_or(SessionError::TooManyHosts)?;
    let session = Session { control, host, number };
    if let Err(error) = control.settle(host, from).await {
        tracing::error!(%host, %error, "addresses of this host stay in registrations of others");
    }
    let outbox = Outbox::new(subscription);
    let both = async {
        // Before there are resources, nothing can be compared with them. The sender outlives this session.
        let _ = control.versions().wait_for(Option::is_some).await;
        tokio::select! {
            read = session.read(reader, &outbox) => read,
            written = session.write(writer, &outbox, &hello) => written,
        }
    };
    tokio::select! {
        ended = both => ended,
        () = interrupted.notified() => match control.0.core().is_current(host, number) {
            true => Err(SessionError::Reconsidered),
            false => Err(SessionError::Superseded),
        },
    }
}

async fn read_hello<R: AsyncRead + Unpin>(
    control: &Control,
    reader: &mut FrameReader<R>,
) -> Result<Option<Hello>, SessionError> {
    let first = timeout(HELLO_WAIT, reader.next()).await.map_err(|_| SessionError::Silent(HELLO_WAIT))??;
    let Some(first) = first else { return Ok(None) };
    match FromAgent::read(&first, &control.0.unknown)? {
        Some(FromAgent::Hello(hello)) if understands(hello.protocol) => Ok(Some(hello)),
        Some(FromAgent::Hello(hello)) => Err(SessionError::Protocol(hello.protocol)),
        _ => Err(SessionError::Hello),
    }
}

impl Session<'_> {
    async fn read<R: AsyncRead + Unpin>(
        &self,
        reader: &mut FrameReader<R>,
        outbox: &Outbox,
    ) -> Result<(), SessionError> {
        let patience = self.control.0.settings.lease * SILENT_LEASES;
        loop {
            let next = timeout(patience, reader.next()).await.map_err(|_| SessionError::Silent(patience))?;
            let Some(next) = next? else { return Ok(()) };
            let Some(message) = FromAgent::read(&next, &self.control.0.unknown)? else { continue };
            match message {
                FromAgent::Hello(_) => return Err(SessionError::Hello),
                FromAgent::Register(register) => self.register(register, outbox).await?,
                FromAgent::Health(told) => self.take_health(&told.changes).await?,
                FromAgent::Subscribe(subscribe) => {
                    let subscription =
                        Subscription::read(&subscribe.subscribe).ok_or(SessionError::Subscription)?;
                    outbox.put(|contents| {
                        (contents.subscription, contents.subscribed) = (subscription, subscribe.number);
                    });
                }
                FromAgent::Ack(ack) => {
                    let mut core = self.control.0.core();
                    let agent = core.agent(self.host);
                    (agent.acked, agent.nack) = (ack.version, None);
                }
                FromAgent::Nack(nack) => {
                    let reason = printable(&nack.reason);
                    tracing::error!(host = %self.host, version = nack.version, reason, "the agent kept its former state");
                    self.control.0.core().agent(self.host).nack =
                        Some(Nack { version: nack.version, reason });
                }
                FromAgent::Renew(_) => {
                    if let Err(error) = self.control.renew(self.host, self.number).await {
                        tracing::error!(host = %self.host, %error, "the host is back and was not published");
                    }
                    outbox.put(|contents| contents.renewed = true);
                }
                FromAgent::Goodbye(_) => {
                    if let Err(error) = self.control.goodbye(self.host.clone(), self.number).await {
                        tracing::error!(host = %self.host, %error, "the host's goodbye had no effect");
                    }
                    return Ok(());
                }
            }
        }
    }

    /// Takes what the host's checks have found, and publishes what that changes. What this version cannot read, or the
    /// host has not registered, changes nothing.
    async fn take_health(&self, told: &[Finding]) -> Result<(), SessionError> {
        let read = |one: &Finding| Some((service_key(&one.service)?, read_health(&one.health).ok()?));
        let found: Vec<_> = told.iter().filter_map(read).collect();
        let (host, number) = (self.host.clone(), self.number);
        let taken = self.control.take_turn(move |shared| {
            let core = shared.core();
            if !core.is_current(&host, number) {
                return Err(ControlError::Superseded);
            }
            let changes = core.catalog.health_changes(&host, &found);
            drop(core);
            if let Err(error) = shared.commit(&changes) {
                // Callers are to know all the same; after a restart it is what it was until the host is back.
                tracing::warn!(%host, %error, "a change of health was not stored");
            }
            shared.apply(&changes, None);
            Ok(())
        });
        match taken.await {
            Err(ControlError::Superseded) => Err(SessionError::Superseded),
            Err(error) => {
                tracing::error!(host = %self.host, %error, "a change of health was not published");
                Ok(())
            }
            Ok(()) => Ok(()),
        }
    }

    async fn register(&self, register: Register, outbox: &Outbox) -> Result<(), SessionError> {
        let list: Vec<_> = register.registrations.iter().map(Registration::read).collect();
        let registered = self.control.register(self.host.clone(), self.number, list).await;
        let results: Vec<Outcome> = match registered {
            Ok(outcomes) => {
                let named = register.registrations.iter().zip(outcomes);
                named.map(|(raw, outcome)| outcome_of(raw, outcome)).collect()
            }
            Err(ControlError::Superseded) => return Err(SessionError::Superseded),
            Err(error) => {
                tracing::error!(host = %self.host, %error, "registrations were refused, the former ones stay");
                let refused = Some(error.to_string());
                let raw = register.registrations.iter();
                let outcome =
                    |raw| Outcome { service: service_of(raw), refused: refused.clone(), without: None };
                raw.map(outcome).collect()
            }
        };
        let refused: Vec<Outcome> =
            results.iter().filter(|result| result.fault().is_some()).cloned().collect();
        // Agents try again what was refused: the log says it once.
        if self.control.note_refused(self.host, &refused) {
            for outcome in &refused {
                let (service, reason) = (&outcome.service, outcome.fault().unwrap_or_default());
                match outcome.refused {
                    Some(_) => {
                        tracing::warn!(host = %self.host, service, reason, "a registration was refused");
                    }
                    None => {
                        tracing::warn!(host = %self.host, service, reason, "a registration was taken without some addresses");
                    }
                }
            }
        }
        self.control.0.core().note_registered(self.host, self.number);
        let result = RegisterResult { number: register.number, results };
        outbox.put(|contents| contents.result = Some(result));
        Ok(())
    }

    async fn write<W: AsyncWrite + Unpin>(
        &self,
        writer: &mut FrameWriter<W>,
        outbox: &Outbox,
        hello: &Hello,
    ) -> Result<(), SessionError> {
        let mut versions = self.control.versions();
        let asked = Subscription::read(&hello.subscribe).ok_or(SessionError::Subscription)?;
        let resume = hello.resume.as_ref();
        let mut held = resume.and_then(|resume| self.control.0.core().state.resume(resume, &asked));
        writer.send(&frame(&self.welcome())).await?;
        let (mut subscribed, mut marked) = (None, 0);
        let mut large = LargePlace::new(&self.control.0.large_pushes);
        loop {
            versions.borrow_and_update();
            let contents = outbox.take();
            if let Some(result) = &contents.result {
                writer.feed(&frame(result)).await?;
            }
            if contents.renewed {
                writer.feed(&frame(&Renewed {})).await?;
            }
            let wanted = contents.subscription;
            if !large.is_taken() && self.control.0.core().state.is_behind(held.as_ref(), &wanted, LARGE) {
                writer.flush().await?;
                // Whoever waits for a place is answered meanwhile, and keeps its turn.
                tokio::select! {
                    () = large.take() => {}
                    () = outbox.filled.notified() => {}
                }
                continue;
            }
            let push = self.control.0.core().push(held.as_ref(), &wanted);
            let version = push.version;
            // What has changed may be nothing that this agent asked for: with its next renewal it learns that it has the newest.
            let is_behind = contents.renewed && marked != version;
            let is_news = subscribed != Some(contents.subscribed) || !push.pieces.is_empty() || is_behind;
            if is_news {
                let pushing = push_to(writer, &push, contents.subscribed);
                timeout(PUSH_TIME, pushing).await.map_err(|_| FrameError::Stalled)??;
            }
            writer.flush().await?;
            drop(push);
            large.give_back();
            if is_news {
                marked = version;
                self.control.0.core().agent(self.host).sent = version;
            }
            (held, subscribed) = (Some(Held { version, subscription: wanted }), Some(contents.subscribed));
            if is_news {
                sleep(push_gap(self.control.0.version.receiver_count())).await;
            }
            tokio::select! {
                _ = versions.changed() => {}
                () = outbox.filled.notified() => {}
            }
        }
    }

    fn welcome(&self) -> Welcome {
        let core = self.control.0.core();
        let mesh = core.resources.range("MeshConfig/".to_owned()..).next();
        let mesh = mesh.filter(|(key, _)| key.starts_with("MeshConfig/"));
        Welcome {
            protocol: PROTOCOL,
            server_version: self.control.0.settings.version.clone(),
            capabilities: [ANSWERS_RENEWALS, TAKES_HEALTH, ENDPOINT_ADDRESSES].map(str::to_owned).into(),
            lease_seconds: core.leases.period().as_secs().max(1),
            epoch: core.state.epoch(),
            mesh: mesh.map(|(_, value)| value.clone()),
        }
    }
}

async fn push_to<W: AsyncWrite + Unpin>(
    writer: &mut FrameWriter<W>,
    push: &Push,
    subscribed: u64,
) -> Result<(), FrameError> {
    for piece in &push.pieces {
        writer.feed_encoded(piece).await?;
    }
    writer.feed(&frame(&push.complete(subscribed))).await
}

/// The least time between two pushes to one agent among so many.
fn push_gap(agents: usize) -> Duration {
    PUSH_GAP.max(PUSH_COST * u32::try_from(agents).unwrap_or(u32::MAX))
}

/// A session's place among those that send much at once.
struct LargePlace {
    waiting: Option<Pin<Box<dyn Future<Output = Option<OwnedSemaphorePermit>> + Send>>>,
    taken: Option<OwnedSemaphorePermit>,
    places: Arc<Semaphore>,
}

impl LargePlace {
    fn new(places: &Arc<Semaphore>) -> Self {
        Self { waiting: None, taken: None, places: Arc::clone(places) }
    }

    fn is_taken(&self) -> bool {
        self.taken.is_some()
    }

    /// Waits for a place. Who stops waiting and goes on later has not lost its turn.
    async fn take(&mut self) {
        let places = &self.places;
        let waiting = self.waiting.get_or_insert_with(|| {
            let places = Arc::clone(places);
            // Nobody closes the semaphore.
            Box::pin(async move { places.acquire_owned().await.ok() })
        });
        self.taken = waiting.await;
        self.waiting = None;
    }

    fn give_back(&mut self) {
        (self.waiting, self.taken) = (None, None);
    }
}

fn outcome_of(raw: &serde_json::Value, outcome: Result<Vec<NotOwn>, Refusal>) -> Outcome {
    let service = service_of(raw);
    match outcome {
        Ok(faults) if faults.is_empty() => Outcome { service, ..Outcome::default() },
        Ok(faults) => {
            let reasons: Vec<_> = faults.iter().map(ToString::to_string).collect();
            Outcome { service, refused: None, without: Some(reasons.join("; ")) }
        }
        Err(refusal) => Outcome { service, refused: Some(refusal.to_string()), without: None },
    }
}

/// The service that a registration names, for its outcome, however wrong the rest of it is.
fn service_of(raw: &serde_json::Value) -> String {
    printable(raw.get("service").and_then(serde_json::Value::as_str).unwrap_or_default())
}
