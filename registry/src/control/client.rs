//! The agent's side: one connection followed from its first message to its end. Connecting, and connecting
//! again after `backoff`, is the caller's.

use std::future::pending;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, sleep_until, timeout};

use super::codec::{FrameError, FrameReader, FrameWriter};
use super::followed::{Entries, Followed, FollowedError, Link, Staged};
use super::leases::RENEWALS;
use super::message::{
    Ack, Complete, FromControl, Goodbye, Health, Hello, MessageError, Nack, Outcome, Register,
    RegisterResult, Renew, Subscribe, Unknown, Welcome, frame, printable,
};
use super::registration::{Registration, health_changes};
use super::subscription::Subscription;
use super::{ANSWERS_RENEWALS, ENDPOINT_ADDRESSES, PROTOCOL, TAKES_HEALTH, understands};

/// The first pause before connecting again.
pub const FIRST_PAUSE: Duration = Duration::from_millis(250);
/// The longest pause. After a restart the control server gives hosts longer than that to return (`RETURN_WAIT`).
pub const LONGEST_PAUSE: Duration = Duration::from_secs(10);
/// How long the server has for its first message. It may itself be starting.
pub const WELCOME_WAIT: Duration = Duration::from_secs(30);
/// How long the server has to take a goodbye.
pub const GOODBYE_WAIT: Duration = Duration::from_secs(5);
/// How long until refused registrations are tried again: what was in their way may be gone by then.
pub const REGISTER_AGAIN: Duration = Duration::from_secs(30);
/// How long a reason is waited for when a write failed.
const LAST_WORD: Duration = Duration::from_secs(1);
/// Leases beyond these bounds are taken for them, so that a wrong one neither floods nor lapses.
const LEASE_BOUNDS: (u64, u64) = (1, 3600);

/// The pause before attempt number `attempt`, from 0. `random` is evenly spread over 0 to 1: a pause is between
/// half of its full length and all of it, so that hosts that lost one server do not come back in step.
pub fn backoff(attempt: u32, random: f64) -> Duration {
    let full = FIRST_PAUSE.saturating_mul(1 << attempt.min(16)).min(LONGEST_PAUSE);
    full.mul_f64(0.5 + 0.5 * random.clamp(0.0, 1.0))
}

/// What the agent brings to a connection.
pub struct Local {
    /// The agent's version.
    pub agent_version: String,
    /// All that this host runs.
    pub registrations: watch::Receiver<Vec<Registration>>,
    /// Whose endpoints are needed.
    pub subscription: watch::Receiver<Subscription>,
    /// True when the host is to be drained: its endpoints go before it does.
    pub shutdown: watch::Receiver<bool>,
    /// Who wants the state in force written to its file at once, and is told when it is.
    pub flush: mpsc::Receiver<oneshot::Sender<()>>,
}

/// How a connection ended in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// The server closed it.
    Closed,
    /// This host said goodbye.
    Goodbye,
}

/// Why a connection ended out of order. What was in force stays so.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)] // The messages say what each is.
pub enum FollowError {
    #[error(transparent)]
    Frame(#[from] FrameError),
    #[error(transparent)]
    Message(#[from] MessageError),
    #[error(transparent)]
    Followed(#[from] FollowedError),
    #[error("the control server ended the session: {0}")]
    Refused(String),
    #[error("the control server speaks protocol {0}, this agent {PROTOCOL}: upgrade the older of the two")]
    Protocol(u32),
    #[error("the control server's first message was not Welcome: is something else listening there?")]
    NoWelcome,
    #[error("nothing came from the control server for {} seconds", .0.as_secs())]
    Silent(Duration),
}

/// Follows one connection until it ends, and keeps `followed` for the next. `publish` puts a complete state in
/// force; its error is the reason that the server is told, and the state in force stays.
pub async fn follow<R, W, P>(
    reader: R,
    writer: W,
    followed: &mut Followed,
    local: &mut Local,
    publish: P,
) -> Result<Ended, FollowError>
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
    P: FnMut(&Entries, u64) -> Result<(), String>,
{
    let reader = FrameReader::new(reader);
    let wanted = local.subscription.borrow_and_update().clone();
    let mut connection = Connection {
        reader,
        writer: FrameWriter::new(writer),
        followed,
        publish,
        unknown: Unknown::default(),
        staged: Staged::default(),
        epoch: 0,
        confirmed: wanted,
        asked: None,
        needs_all: false,
        subscribed: 0,
        registered: 0,
        told: Vec::new(),
        again: None,
        dirty: None,
        saved: None,
    };
    let mut result = connection.run(local).await;
    if let Err(FollowError::Frame(FrameError::Connection(_))) = &result
        && let Some(reason) = connection.last_word().await
    {
        result = Err(FollowError::Refused(reason));
    }
    connection.save().await;
    connection.link(|link| link.connected = false);
    result
}

struct Connection<'a, R, W, P> {
    reader: FrameReader<R>,
    writer: FrameWriter<W>,
    followed: &'a mut Followed,
    publish: P,
    unknown: Unknown,
    staged: Staged,
    epoch: u64,
    /// The subscription that the server has answered, and the one that it has not. One at a time, so that a
    /// marker always says which of the two it satisfies.
    confirmed: Subscription,
    asked: Option<(u64, Subscription)>,
    /// Whether the server does not tell where the endpoints are that nobody asks for: nothing less than all of them is put in
    /// force then, for what is not known to be the mesh's would be called in plaintext.
    needs_all: bool,
    /// How many subscriptions were asked for, and lists of registrations sent.
    subscribed: u64,
    registered: u64,
    /// What the server was told last of what this host runs.
    told: Vec<Registration>,
    /// When refused registrations are tried again.
    again: Option<Instant>,
    /// When a state that is in force and not on disk is due there.
    dirty: Option<Instant>,
    /// When it was last written in this session.
    saved: Option<Instant>,
}

impl<R, W, P> Connection<'_, R, W, P>
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
    P: FnMut(&Entries, u64) -> Result<(), String>,
{
    async fn run(&mut self, local: &mut Local) -> Result<Ended, FollowError> {
        let hello = Hello {
            protocol: PROTOCOL,
            agent_version: local.agent_version.clone(),
            capabilities: Vec::new(),
            resume: self.followed.resume(&self.confirmed),
            subscribe: self.confirmed.written(),
        };
        self.writer.send(&frame(&hello)).await?;
        let Some(welcome) = self.welcomed().await? else { return Ok(Ended::Closed) };
        let lease = Duration::from_secs(welcome.lease_seconds.clamp(LEASE_BOUNDS.0, LEASE_BOUNDS.1));
        let takes_health = welcome.capabilities.iter().any(|capability| capability == TAKES_HEALTH);
        let answers = welcome.capabilities.iter().any(|capability| capability == ANSWERS_RENEWALS);
        self.needs_all = !welcome.capabilities.iter().any(|capability| capability == ENDPOINT_ADDRESSES);
        self.epoch = welcome.epoch;
        self.link(|link| {
            (link.connected, link.server_version) = (true, printable(&welcome.server_version));
        });
        self.register(local).await?;
        let (mut renewal, mut heard) = (Instant::now() + lease / RENEWALS, Instant::now());
        loop {
            self.subscribe(local).await?;
            tokio::select! {
                next = self.reader.next() => {
                    heard = Instant::now();
                    let Some(next) = next? else { return Ok(Ended::Closed) };
                    if let Some(message) = FromControl::read(&next, &self.unknown)? {
                        self.hear(message).await?;
                    }
                }
                () = changed(&mut local.registrations) => self.tell(local, takes_health).await?,
                () = changed(&mut local.subscription) => {}
                () = sleep_until(renewal) => {
                    self.writer.send(&frame(&Renew {})).await?;
                    renewal = Instant::now() + lease / RENEWALS;
                }
                () = at(answers.then(|| heard + lease)) => return Err(FollowError::Silent(lease)),
                () = at(self.again) => self.register(local).await?,
                () = at(self.dirty) => self.save().await,
                Some(done) = local.flush.recv() => {
                    self.save().await;
                    // Who asked may have given up.
                    let _ = done.send(());
                }
                () = told(&mut local.shutdown) => return self.goodbye().await,
            }
        }
    }

    /// Why the server ended the session, when a write met its end before its reason was read.
    async fn last_word(&mut self) -> Option<String> {
        let reading = async {
            while let Ok(Some(next)) = self.reader.next().await {
                if let Ok(Some(FromControl::Refused(refused))) = FromControl::read(&next, &self.unknown) {
                    return Some(printable(&refused.reason));
                }
            }
            None
        };
        timeout(LAST_WORD, reading).await.ok().flatten()
    }

    async fn welcomed(&mut self) -> Result<Option<Welcome>, FollowError> {
        loop {
            let next = timeout(WELCOME_WAIT, self.reader.next()).await;
            let Some(next) = next.map_err(|_| FollowError::Silent(WELCOME_WAIT))?? else { return Ok(None) };
            match FromControl::read(&next, &self.unknown)? {
                Some(FromControl::Welcome(welcome)) if understands(welcome.protocol) => {
                    return Ok(Some(welcome));
                }
                Some(FromControl::Welcome(welcome)) => return Err(FollowError::Protocol(welcome.protocol)),
                Some(FromControl::Refused(refused)) => {
                    return Err(FollowError::Refused(printable(&refused.reason)));
                }
                Some(_) => return Err(FollowError::NoWelcome),
                None => {}
            }
        }
    }

    async fn hear(&mut self, message: FromControl) -> Result<(), FollowError> {
        match message {
            FromControl::Upsert(upsert) => {
                let staged = self.staged.upsert(upsert);
                self.or_nack(staged).await?;
            }
            FromControl::Delete(delete) => {
                let staged = self.staged.delete(delete.key);
                self.or_nack(staged).await?;
            }
            FromControl::Complete(complete) => self.complete(&complete).await?,
            FromControl::RegisterResult(RegisterResult { number, results }) => {
                // Of a list that was sent again meanwhile, the result is still to come.
                if number == self.registered {
                    self.note(results);
                }
            }
            FromControl::Refused(refused) => return Err(FollowError::Refused(printable(&refused.reason))),
            FromControl::Renewed(_) => {}
            FromControl::Welcome(_) => return Err(FollowError::NoWelcome),
        }
        Ok(())
    }

    /// Tells the server why the state that it is sending cannot be taken; which version it has comes after it.
    async fn or_nack(&mut self, staged: Result<(), FollowedError>) -> Result<(), FollowError> {
        let Err(error) = staged else { return Ok(()) };
        self.writer.send(&frame(&Nack { version: 0, reason: error.to_string() })).await?;
        Err(error.into())
    }

    fn note(&mut self, results: Vec<Outcome>) {
        let faulty = || results.iter().filter_map(|result| Some((result, result.fault()?)));
        let again = faulty().next().map(|_| Instant::now() + REGISTER_AGAIN);
        if self.followed.link.borrow().registrations.as_ref() != Some(&results) {
            for (Outcome { service, refused, .. }, reason) in faulty() {
                match refused {
                    Some(_) => tracing::error!(service, reason, "the registration was refused"),
                    None => {
                        tracing::warn!(service, reason, "the service is registered without some addresses");
                    }
                }
            }
        }
        self.again = again;
        self.link(|link| link.registrations = Some(results));
    }

    async fn complete(&mut self, complete: &Complete) -> Result<(), FollowError> {
        if let Some((_, asked)) = self.asked.take_if(|(number, _)| *number == complete.subscribed) {
            self.confirmed = asked;
        }
        let staged = std::mem::take(&mut self.staged);
        let is_about_more = staged.is_about_more_than_endpoints();
        let news = complete.full || !staged.is_empty() || !self.followed.published;
        let former = match self.followed.apply(staged, complete, self.epoch, &self.confirmed) {
            Ok(former) => former,
            Err(error) => {
                let nack = Nack { version: complete.version, reason: error.to_string() };
                self.writer.send(&frame(&nack)).await?;
                return Err(error.into());
            }
        };
        if self.needs_all && self.confirmed != Subscription::All {
            // All of it is on its way.
            self.followed.refused(former);
            return Ok(());
        }
        let version = complete.version;
        match if news { (self.publish)(self.followed.entries(), version) } else { Ok(()) } {
            Ok(()) => {
                self.followed.accepted();
                // Right away after a quiet time.
                let now = Instant::now();
                let due = self.saved.map_or(now, |at| (at + self.followed.save_gap(is_about_more)).max(now));
                self.dirty = Some(self.dirty.map_or(due, |before| before.min(due)));
                self.link(|link| (link.version, link.nack) = (version, None));
                self.writer.send(&frame(&Ack { version })).await?;
            }
            Err(reason) => {
                self.followed.refused(former);
                let reason = printable(&reason);
                tracing::error!(version, reason, "the new state was refused, the former one stays in force");
                self.link(|link| link.nack = Some(reason.clone()));
                self.writer.send(&frame(&Nack { version, reason })).await?;
            }
        }
        Ok(())
    }

    /// Tells what has changed: where that is health alone, no more than that.
    async fn tell(&mut self, local: &mut Local, takes_health: bool) -> Result<(), FollowError> {
        let Some(changes) = health_changes(&self.told, &local.registrations.borrow()) else {
            return self.register(local).await;
        };
        self.told.clone_from(&local.registrations.borrow_and_update());
        // An older server keeps what it was told with the registrations.
        if takes_health && !changes.is_empty() {
            self.writer.send(&frame(&Health { changes })).await?;
        }
        Ok(())
    }

    async fn register(&mut self, local: &mut Local) -> Result<(), FollowError> {
        self.told.clone_from(&local.registrations.borrow_and_update());
        let written = self.told.iter().map(Registration::written).collect();
        self.registered += 1;
        self.again = None;
        let register = Register { number: self.registered, registrations: written };
        Ok(self.writer.send(&frame(&register)).await?)
    }

    async fn subscribe(&mut self, local: &mut Local) -> Result<(), FollowError> {
        let wanted = match (local.subscription.borrow_and_update(), self.needs_all) {
            (_, true) => Subscription::All,
            (wanted, false) => wanted.clone(),
        };
        if self.asked.is_some() || wanted == self.confirmed {
            return Ok(());
        }
        self.subscribed += 1;
        let subscribe = Subscribe { number: self.subscribed, subscribe: wanted.written() };
        self.asked = Some((self.subscribed, wanted));
        Ok(self.writer.send(&frame(&subscribe)).await?)
    }

    /// Says goodbye and waits until the server has taken it, which it shows by closing.
    async fn goodbye(&mut self) -> Result<Ended, FollowError> {
        self.writer.send(&frame(&Goodbye {})).await?;
        self.writer.close().await?;
        let closed = async { while let Ok(Some(_)) = self.reader.next().await {} };
        timeout(GOODBYE_WAIT, closed).await.map_err(|_| FollowError::Silent(GOODBYE_WAIT))?;
        Ok(Ended::Goodbye)
    }

    /// Writes the state in force to its file when it is not there yet.
    async fn save(&mut self) {
        let Some(save) = self.dirty.take().and_then(|_| self.followed.save()) else { return };
        self.saved = Some(Instant::now());
        let failed = match tokio::task::spawn_blocking(save).await {
            Ok(Ok(())) => None,
            Ok(Err(error)) => Some(error.to_string()),
            Err(_) => Some("the agent is stopping".to_owned()),
        };
        if let Some(reason) = &failed {
            tracing::error!(reason, "the state is in force and not on disk");
            self.dirty = Some(Instant::now() + self.followed.save_gap(false));
        }
        self.link(|link| link.unsaved = failed);
    }

    fn link(&self, change: impl FnOnce(&mut Link)) {
        self.followed.link.send_if_modified(|link| {
            let before = link.clone();
            change(link);
            *link != before
        });
    }
}

/// Waits for a change; for ever when nobody can make one.
async fn changed<T>(receiver: &mut watch::Receiver<T>) {
    if receiver.changed().await.is_err() {
        pending::<()>().await;
    }
}

async fn told(shutdown: &mut watch::Receiver<bool>) {
    if shutdown.wait_for(|shutdown| *shutdown).await.is_err() {
        pending::<()>().await;
    }
}

async fn at(moment: Option<Instant>) {
    match moment {
        Some(moment) => sleep_until(moment).await,
        None => pending().await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_a_bound_and_are_spread() {
        for (attempt, random, milliseconds) in [
            (0, 0.0, 125),
            (0, 1.0, 250),
            (1, 1.0, 500),
            (5, 1.0, 8000),
            (6, 1.0, 10_000),
            (6, 0.0, 5000),
            (u32::MAX, 1.0, 10_000),
            (6, f64::INFINITY, 10_000),
        ] {
            assert_eq!(backoff(attempt, random), Duration::from_millis(milliseconds), "{attempt}, {random}");
        }
    }
}
