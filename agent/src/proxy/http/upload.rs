//! A request's body on its way: pulled from the caller as the upstream takes it, and kept as long as it is small, so that
//! it can be sent again.

/// What is read of one before anything is sent.
mod ahead;

use std::future::{pending, poll_fn};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::Poll;
use std::time::{Duration, Instant};

use baremesh_model::external_authorization::{Changes, Vouched};
use baremesh_model::http::Headers;
use baremesh_model::pattern::Pattern;
use bytes::{Bytes, BytesMut};
use tokio::sync::Notify;

use super::attempt::Failure;
use super::body::{BodyError, Sink, Source};
use super::grpc::MessageCount;
use super::h1::{Frame, Framing, Hop, Persistence};
use crate::jwt::TokenRules;
use crate::proxy::relay::Meter;
use ahead::Ahead;
pub(super) use ahead::{RoomAhead, UnreadAhead};

/// The most of a request's body that is kept to be sent again; a longer one is sent once.
pub const REPLAY_LIMIT: usize = 64 * 1024;

/// How long an exchange may stand still.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stall {
    /// While the caller's body is waited for, and no answer has begun.
    pub body: Duration,
    /// Otherwise.
    pub idle: Duration,
}

/// Whether a request could be sent again from its start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Replay {
    /// All that came of it is kept.
    Possible,
    /// Too much of it has come.
    Impossible,
}

/// A request's body on its way, and what of it is kept for further attempts.
pub struct Upload<'a> {
    source: Source<'a>,
    /// How the body ends, and whether another protocol is to follow.
    pub(super) hop: Hop,
    /// How long the exchange may stand still; for as long as who asked for it likes, if none is given.
    stall: Option<Stall>,
    /// A copy: parts of read buffers would keep the whole of each.
    kept: BytesMut,
    /// All of it, where the agent itself sends it.
    own: Option<Bytes>,
    /// What was read of it before anything was sent on.
    ahead: Ahead,
    trailers: Option<Headers>,
    /// The rules for tokens of the service of this host that it is sent to.
    rules: Option<Arc<TokenRules>>,
    /// What its providers say of it, and no trailer.
    vouched: Vouched,
    /// When all of it had come; time limits count from there.
    whole_at: Option<Instant>,
    /// Bytes that came from the caller.
    pub bytes: u64,
    /// gRPC messages among them, where it is gRPC.
    pub messages: Option<MessageCount>,
}

impl Upload<'static> {
    /// A body that the agent itself sends.
    pub fn own(body: Bytes) -> Self {
        let framing = Framing::Length(body.len() as u64);
        Self {
            whole_at: Some(Instant::now()),
            bytes: body.len() as u64,
            own: Some(body),
            ..Self::new(Source::Over, Hop { framing, persistence: Persistence::Keep, upgrade: false })
        }
    }
}

impl<'a> Upload<'a> {
    /// The body that comes from `source`.
    pub fn new(source: Source<'a>, hop: Hop) -> Self {
        let is_whole = matches!(hop.framing, Framing::None | Framing::Length(0));
        Self {
            source,
            hop,
            stall: None,
            kept: BytesMut::new(),
            own: None,
            ahead: Ahead::default(),
            trailers: None,
            rules: None,
            vouched: Vouched::default(),
            whole_at: is_whole.then(Instant::now),
            bytes: 0,
            messages: None,
        }
    }

    /// The same, in an exchange that may stand still for so long.
    pub fn within(self, stall: Stall) -> Self {
        Self { stall: Some(stall), ..self }
    }

    /// The next attempt goes to a service of this host with these rules for tokens, or to one without. Nobody has vouched for
    /// anything yet.
    pub fn hold_to(&mut self, rules: Option<&Arc<TokenRules>>) {
        self.rules = rules.cloned();
        self.vouched = Vouched::default();
    }

    /// What a provider says of the request, or might have said, is no trailer's to say.
    pub(super) fn vouched_for(&mut self, patterns: &[Pattern], changes: &Changes) {
        self.vouched.add(patterns, changes);
    }

    /// The trailers as they may be sent on, where some are to be changed.
    fn stripped_trailers(&self) -> Option<Headers> {
        if self.rules.is_none() && self.vouched.is_empty() {
            return None;
        }
        let mut trailers = self.trailers.clone()?;
        if let Some(rules) = &self.rules {
            rules.strip_trailers(&mut trailers);
        }
        self.vouched.strip_trailers(&mut trailers);
        Some(trailers)
    }

    /// How long the exchange may stand still. A gRPC call may be quiet for long before it says more.
    pub(super) fn stall(&self, is_grpc: bool) -> Option<Stall> {
        self.stall.map(|stall| if is_grpc { Stall { body: stall.idle, ..stall } } else { stall })
    }

    /// Whether the request can be sent again from its start.
    pub fn can_replay(&self) -> bool {
        self.own.is_some() || self.kept.len() as u64 == self.bytes
    }

    /// Whether there is neither a body nor trailers.
    pub(super) fn is_bare(&self) -> bool {
        self.is_whole() && self.bytes == 0 && self.trailers.is_none()
    }

    /// Whether all of the body has come.
    pub fn is_whole(&self) -> bool {
        self.whole_at.is_some()
    }

    /// When all of it had come.
    pub fn whole_at(&self) -> Option<Instant> {
        self.whole_at
    }

    /// The same body for another request, if all of it is kept.
    pub fn copy(&self) -> Option<Upload<'static>> {
        (self.is_whole() && self.can_replay()).then(|| Upload {
            source: Source::Over,
            hop: Hop { upgrade: false, ..self.hop },
            stall: None,
            kept: self.kept.clone(),
            own: self.own.clone(),
            ahead: Ahead::default(),
            trailers: self.trailers.clone(),
            rules: None,
            vouched: Vouched::default(),
            whole_at: self.whole_at,
            bytes: self.bytes,
            messages: None,
        })
    }

    /// Reads the body until more than `most` bytes of it are there, or all of it is. What follows an upgrade is no body.
    pub(super) async fn read_ahead(&mut self, most: usize, room: RoomAhead<'_>) -> Result<(), UnreadAhead> {
        while !self.hop.upgrade && !self.has_come() && self.kept.len() + self.ahead.len() <= most {
            match self.source.frame().await.map_err(UnreadAhead::Body)? {
                Some(Frame::Data(data)) => {
                    self.ahead.hold(data.len(), &room)?;
                    self.ahead.data.extend_from_slice(&data);
                }
                Some(Frame::Trailers(trailers)) => self.ahead.trailers = Some(trailers),
                None => self.ahead.is_over = true,
            }
        }
        Ok(())
    }

    /// As much of the body as was read, `most` bytes at most, and whether that is not all.
    pub(super) fn start(&mut self, most: usize) -> (Bytes, bool) {
        let Ahead { shown, data, .. } = &mut self.ahead;
        if shown.is_empty() {
            *shown = data.split().freeze();
        } else if !data.is_empty() {
            *shown = [&**shown, &**data].concat().into();
            *data = BytesMut::new();
        }
        // Not copied: it is the agent's to hold until the program has it. What was sent once already is short.
        let mut start = match self.kept.is_empty() {
            true => shown.clone(),
            false => [&*self.kept, &**shown].concat().into(),
        };
        let is_cut = start.len() > most || !(self.has_come() || self.hop.upgrade);
        start.truncate(most);
        (start, is_cut)
    }

    /// How many bytes it has, where that is known.
    pub(super) fn length(&self) -> Option<u64> {
        match self.hop.framing {
            Framing::None => Some(0),
            Framing::Length(length) => Some(length),
            _ if self.has_come() => Some((self.kept.len() + self.ahead.len()) as u64),
            _ => None,
        }
    }

    /// Whether all of it has been read, whether or not it was sent on.
    fn has_come(&self) -> bool {
        self.ahead.is_over || self.whole_at.is_some()
    }

    /// Ends when the caller has gone, as far as what it sends tells. Nothing that it sends meanwhile is lost.
    pub(super) async fn gone(&mut self) {
        self.source.gone().await;
    }

    fn keep(&mut self, data: &Bytes) {
        let is_whole_so_far = self.can_replay();
        self.bytes += data.len() as u64;
        if is_whole_so_far && self.kept.len() + data.len() <= REPLAY_LIMIT {
            self.kept.extend_from_slice(data);
        } else {
            self.kept = BytesMut::new();
        }
    }

    /// Sends what is kept and what comes, and then watches whether the caller stays. Ends with a failure alone.
    pub(super) async fn pump(&mut self, sink: &mut Sink<'_>, progress: &Progress) -> Failure {
        let closed = |_: std::io::Error| Failure::UpstreamClosed;
        if self.hop.upgrade {
            if let Err(failure) = sink.flush().await.map_err(closed) {
                return failure;
            }
            tokio::select! {
                () = progress.switched.notified() => {}
                () = self.source.gone() => return Failure::CallerGone,
            }
            self.source.upgrade();
            self.whole_at = None;
        }
        let again = self.own.clone().unwrap_or_else(|| self.kept.clone().freeze());
        if !again.is_empty()
            && let Err(failure) = sink.data(again).await.map_err(closed)
        {
            return failure;
        }
        while self.whole_at.is_none() {
            let next = if let Some(frame) = self.ahead.next() {
                Ok(frame)
            } else {
                let mut frame = pin!(self.source.frame());
                // What is there already leaves in one piece with the head; what is waited for may wait for the head.
                match poll_fn(|cx| Poll::Ready(frame.as_mut().poll(cx))).await {
                    Poll::Ready(next) => next,
                    Poll::Pending => match sink.flush().await.map_err(closed) {
                        Ok(()) => {
                            progress.awaits_body.store(true, Ordering::Relaxed);
                            frame.await
                        }
                        Err(failure) => return failure,
                    },
                }
            };
            progress.moved();
            match next {
                Ok(Some(Frame::Data(data))) => {
                    self.keep(&data);
                    if !self.can_replay() {
                        progress.is_beyond_replay.store(true, Ordering::Relaxed);
                    }
                    if let Some(messages) = &mut self.messages {
                        messages.count(&data);
                    }
                    progress.meter.sent(data.len());
                    if let Err(failure) = sink.data(data).await.map_err(closed) {
                        return failure;
                    }
                }
                Ok(Some(Frame::Trailers(trailers))) => self.trailers = Some(trailers),
                Ok(None) => self.whole_at = Some(Instant::now()),
                Err(BodyError::Broken(_)) => return Failure::CallerGone,
                Err(BodyError::Malformed(why)) => return Failure::CallerMalformed(why),
            }
        }
        progress.whole.notify_one();
        let stripped = self.stripped_trailers();
        let trailers = stripped.as_ref().or(self.trailers.as_ref());
        if let Err(failure) = sink.finish(trailers).await.map_err(closed) {
            return failure;
        }
        if self.hop.upgrade {
            sink.shutdown();
            progress.said_all.notify_one();
            return pending().await;
        }
        progress.is_sent.store(true, Ordering::Relaxed);
        self.source.gone().await;
        Failure::CallerGone
    }
}

/// What the two directions of an attempt tell each other.
#[derive(Default)]
pub(super) struct Progress {
    /// All of the request was sent.
    pub(super) is_sent: AtomicBool,
    /// The upstream has granted another protocol.
    pub(super) switched: Notify,
    /// All of the request has come.
    pub(super) whole: Notify,
    /// The caller has said all that it had to say in another protocol.
    pub(super) said_all: Notify,
    /// What has moved, either way.
    pub(super) meter: Meter,
    /// More of the request has come than is kept.
    is_beyond_replay: AtomicBool,
    /// Something has moved since this was last looked at.
    has_moved: AtomicBool,
    /// The caller is to send more.
    awaits_body: AtomicBool,
    /// An answer has begun.
    pub(super) is_answered: AtomicBool,
}

impl Progress {
    /// Of an attempt that begins with what has come of `upload`.
    pub(super) fn of(upload: &Upload<'_>) -> Self {
        Self { is_beyond_replay: AtomicBool::new(!upload.can_replay()), ..Self::default() }
    }

    /// Something came, from either side.
    pub(super) fn moved(&self) {
        self.has_moved.store(true, Ordering::Relaxed);
        self.awaits_body.store(false, Ordering::Relaxed);
    }

    /// Ends when nothing has moved for as long as that may be, or up to twice as long.
    pub(super) async fn stalls(&self, stall: Option<Stall>) -> Failure {
        let Some(Stall { body, idle }) = stall else { return pending().await };
        let look = body.min(idle);
        let mut quiet = Duration::ZERO;
        loop {
            tokio::time::sleep(look).await;
            if self.has_moved.swap(false, Ordering::Relaxed) {
                quiet = Duration::ZERO;
                continue;
            }
            quiet += look;
            if quiet >= body && self.awaits_body() {
                return Failure::CallerStalled;
            }
            if quiet >= idle {
                return Failure::Idle;
            }
        }
    }

    fn awaits_body(&self) -> bool {
        self.awaits_body.load(Ordering::Relaxed) && !self.is_answered.load(Ordering::Relaxed)
    }

    pub(super) fn replay(&self) -> Replay {
        match self.is_beyond_replay.load(Ordering::Relaxed) {
            true => Replay::Impossible,
            false => Replay::Possible,
        }
    }
}

#[cfg(test)]
mod tests;
