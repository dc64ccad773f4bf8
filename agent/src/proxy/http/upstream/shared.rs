//! Connections of HTTP/2, each shared by requests.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use bytes::Bytes;
use h2::client::SendRequest;
use tokio::sync::Notify;

use super::super::bytes::Joined;
use super::super::h1::HttpLimits;
use super::super::h2 as http2;
use super::kept::KeptSocket;
use super::{Places, Terms, UpstreamKey, Upstreams, lock};
use crate::proxy::flood::{Flooded, Starts, Watched};
use crate::proxy::relay::h2_error;
use crate::proxy::tunnel::Place;
use crate::snapshot::cluster::{Held, Offer, Spare};

/// Requests that one HTTP/2 connection carries at once, at most; its peer may say less.
const MAX_SHARED: u32 = 100;
/// HTTP/2 connections to one endpoint that take requests.
const MAX_SHARED_CONNECTIONS: usize = 64;
/// HTTP/2 connections to one endpoint that take no more, and carry requests still: a peer that tells each connection to go as soon
/// as there is a long stream on it would have as many as there are streams.
const MAX_LEAVING_CONNECTIONS: usize = 256;

/// One connection of HTTP/2, shared by requests.
struct Shared {
    sender: SendRequest<Bytes>,
    active: AtomicU32,
    served: AtomicU32,
    /// It takes no further requests: it has ended, or is to be left to those who are on it.
    over: AtomicBool,
    /// Its place is being given up, or has been.
    given_up: AtomicBool,
    /// It is among those that would give their place up.
    is_offered: AtomicBool,
    idle_since: Mutex<Instant>,
    idle: Duration,
    streams: u32,
    /// The stream's place in its tunnel.
    place: Option<Place>,
    /// Its place under the limit of a DestinationRule.
    held: Mutex<Option<Held>>,
    offer: Option<Offer>,
    /// Of those that have a socket of their own, and may be kept without a request.
    kept: Option<KeptSocket>,
    /// Told when it is to end at once.
    ends: Arc<Notify>,
}

/// A request's place on a shared connection.
pub struct Lent {
    /// Where the request is sent.
    pub sender: SendRequest<Bytes>,
    shared: Arc<Shared>,
}

/// The HTTP/2 connections to one endpoint. One connects at a time; who waits takes what came about.
#[derive(Default)]
pub(super) struct SharedSlot {
    connections: Mutex<Vec<Arc<Shared>>>,
    connecting: tokio::sync::Mutex<()>,
}

/// What a connection is opened for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Need {
    /// This worker has none.
    First,
    /// Those that it has are full.
    Further,
}

/// Why no place on a shared connection was had.
#[derive(Debug)]
pub enum ShareError<E> {
    /// No connection came about.
    Connect(E),
    /// The peer speaks no HTTP/2.
    Handshake(io::Error),
    /// All connections are full, and there may be no further one.
    Full,
}

impl Upstreams {
    /// A place on a connection of HTTP/2, which `connect` opens where none has room.
    pub async fn share<E, F>(
        &self,
        key: &UpstreamKey,
        terms: Terms,
        connect: impl FnOnce(Need) -> F,
    ) -> Result<Lent, ShareError<E>>
    where
        F: Future<Output = Result<(Joined, Places), E>>,
    {
        let slot = Arc::clone(lock(&self.shared).entry(key.clone()).or_default());
        if let Some(lent) = slot.enter() {
            return Ok(lent);
        }
        let _turn = slot.connecting.lock().await;
        if let Some(lent) = slot.enter() {
            return Ok(lent);
        }
        let need = match slot.count() {
            (MAX_SHARED_CONNECTIONS.., _) | (_, MAX_LEAVING_CONNECTIONS..) => return Err(ShareError::Full),
            (0, _) => Need::First,
            _ => Need::Further,
        };
        let (io, (place, held)) = connect(need).await.map_err(ShareError::Connect)?;
        let (io, alarm) = Watched::new(io, Starts::We);
        let handshake = http2::client(&HttpLimits::default()).handshake::<_, Bytes>(io);
        let (sender, connection) = handshake.await.map_err(|error| ShareError::Handshake(h2_error(error)))?;
        let ends = Arc::new(Notify::new());
        let shared = Arc::new(Shared {
            sender,
            active: AtomicU32::new(0),
            served: AtomicU32::new(0),
            over: AtomicBool::new(false),
            given_up: AtomicBool::new(false),
            is_offered: AtomicBool::new(false),
            idle_since: Mutex::new(Instant::now()),
            idle: terms.idle,
            streams: terms.streams.min(MAX_SHARED),
            kept: place.is_none().then(|| KeptSocket::new(&self.kept)).flatten(),
            place,
            held: Mutex::new(held),
            offer: terms.offer,
            ends: Arc::clone(&ends),
        });
        // Held weakly: a connection goes on for as long as somebody could send on it.
        let driven = Arc::downgrade(&shared);
        let address = key.address;
        tokio::spawn(async move {
            tokio::select! {
                ended = connection => {
                    if let Err(error) = ended {
                        tracing::debug!(%error, "a connection to an endpoint ended");
                    }
                }
                () = ends.notified() => {}
                () = alarm.flooded() => {
                    tracing::warn!(%address, "a connection was closed: the endpoint sent too many {}", Flooded::FRAMES.0);
                }
            }
            if let Some(shared) = driven.upgrade() {
                shared.over.store(true, Ordering::Relaxed);
                drop(lock(&shared.held).take());
            }
        });
        lock(&slot.connections).push(Arc::clone(&shared));
        Lent::enter(&shared).ok_or(ShareError::Full)
    }
}

impl SharedSlot {
    fn enter(&self) -> Option<Lent> {
        lock(&self.connections).iter().find_map(Lent::enter)
    }

    /// How many take requests, or will again, and how many do not and carry some still.
    fn count(&self) -> (usize, usize) {
        let connections = lock(&self.connections);
        let leaving = || connections.iter().filter(|shared| shared.is_leaving());
        let busy = leaving().filter(|shared| shared.active.load(Ordering::Acquire) > 0);
        (connections.len() - leaving().count(), busy.count())
    }

    /// Lets go of what is over or unused; whether any is left.
    pub(super) fn sweep(&self, now: Instant) -> bool {
        let mut connections = lock(&self.connections);
        connections.retain(|shared| {
            if shared.active.load(Ordering::Acquire) > 0 {
                return true;
            }
            let since = now.saturating_duration_since(*lock(&shared.idle_since));
            since < shared.idle && !shared.is_leaving()
        });
        !connections.is_empty()
    }
}

impl Shared {
    /// Whether it takes no further requests: it is over, its place was given up, or its tunnel is due to be replaced.
    fn is_leaving(&self) -> bool {
        self.over.load(Ordering::Relaxed)
            || self.given_up.load(Ordering::SeqCst)
            || self.place.as_ref().is_some_and(|place| place.tunnel().is_retiring())
    }

    /// The last request on it has ended.
    fn fell_idle(self: &Arc<Self>) {
        *lock(&self.idle_since) = Instant::now();
        if self.place.is_none() && self.kept.is_none() {
            // There are as many kept sockets as there may be.
            self.over.store(true, Ordering::Relaxed);
        }
        if let Some(offer) = &self.offer
            && !self.is_offered.swap(true, Ordering::AcqRel)
        {
            let spare: Weak<Self> = Arc::downgrade(self);
            offer.make(spare);
        }
    }
}

impl Spare for Shared {
    fn give_up(&self) -> bool {
        self.is_offered.store(false, Ordering::Release);
        // Said before looking: who enters looks after entering, so that one of the two sees the other.
        self.given_up.store(true, Ordering::SeqCst);
        if self.active.load(Ordering::SeqCst) > 0 {
            self.given_up.store(false, Ordering::SeqCst);
            return false;
        }
        let held = lock(&self.held).take();
        self.ends.notify_one();
        held.is_some()
    }
}

impl Lent {
    fn enter(shared: &Arc<Shared>) -> Option<Self> {
        if shared.is_leaving() {
            return None;
        }
        let limit = shared.sender.current_max_send_streams().min(shared.streams as usize);
        let before = shared.active.fetch_add(1, Ordering::SeqCst);
        let mut lent = Self { sender: shared.sender.clone(), shared: Arc::clone(shared) };
        let has_room = (before as usize) < limit && !shared.given_up.load(Ordering::SeqCst);
        let is_in = has_room && !lent.retire_if_told_to();
        is_in.then(|| {
            shared.served.fetch_add(1, Ordering::Relaxed);
            lent
        })
    }

    /// How many requests the connection has carried.
    pub fn served(&self) -> u32 {
        self.shared.served.load(Ordering::Relaxed)
    }

    /// Leaves the connection to those who are on it: it takes no further requests.
    pub fn retire(&self) {
        self.shared.over.store(true, Ordering::Relaxed);
    }

    /// Retires the connection if its peer takes no further streams: it said so by GOAWAY (RFC 9113, section 6.8), or has gone. With
    /// streams on it a connection may go on for long after that. Says whether it does not.
    pub fn retire_if_told_to(&mut self) -> bool {
        // What has not sent anything yet waits for nothing: it is told at once.
        let ready = self.sender.poll_ready(&mut Context::from_waker(Waker::noop()));
        let is_told = matches!(ready, Poll::Ready(Err(_)));
        if is_told {
            self.retire();
        }
        is_told
    }

    /// The serial number of the certificate that the peer's agent showed.
    pub fn peer_serial(&self) -> Option<Arc<str>> {
        self.shared.place.as_ref().map(|place| Arc::clone(&place.tunnel().peer_serial))
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        if self.shared.active.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.shared.fell_idle();
        }
    }
}
