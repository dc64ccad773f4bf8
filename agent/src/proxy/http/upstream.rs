//! Connections to endpoints, kept from request to request. Each is one stream of a tunnel, or one socket where no agent
//! is at the other end. HTTP/1 connections are lent to one request at a time; an HTTP/2 connection is shared by as many
//! as its peer takes, and another one is opened when they are full.

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use baremesh_model::destination_rule::ClientTls;
use baremesh_model::identity::Identity;
use bytes::Bytes;
use h2::client::SendRequest;
use tokio::sync::Notify;
use tokio::sync::futures::Notified;

use super::bytes::{ByteReader, ByteWriter, Joined};
use super::h1::{self, HttpLimits};
use super::h2 as http2;
use crate::proxy::flood::{Flooded, Starts, Watched};
use crate::proxy::relay::h2_error;
use crate::proxy::tunnel::Place;
use crate::snapshot::cluster::Held;

/// Connections of HTTP/1 that are kept unused for one endpoint; further ones are closed after their request.
const MAX_IDLE_OF_ENDPOINT: usize = 256;
/// Requests that one HTTP/2 connection carries at once, at most; its peer may say less.
const MAX_SHARED: usize = 100;
/// HTTP/2 connections to one endpoint.
const MAX_SHARED_CONNECTIONS: usize = 64;

/// Whose connections may carry whose requests.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct UpstreamKey {
    /// Who calls: its certificate is on the tunnel.
    pub source: Identity,
    /// Who is called.
    pub destination: Identity,
    /// The endpoint.
    pub address: SocketAddr,
    /// How it is reached.
    pub via: Via,
}

/// How an endpoint is reached.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Via {
    /// By the agent at this address.
    Tunnel(SocketAddr),
    /// By a socket, in the TLS that the rule asks for.
    Socket(Option<ClientTls>),
    /// On this host, at this address.
    Local(SocketAddr),
}

/// What a connection takes: a place in a tunnel, and one under a DestinationRule's limit.
pub type Places = (Option<Place>, Option<Limited>);

/// A place under a DestinationRule's limit. Who waits for one is told when it is free again, however it came to be.
pub struct Limited {
    _held: Held,
    // After the place: it is free when the word goes out.
    _told: Told,
}

struct Told(Arc<Notify>);

impl Drop for Told {
    fn drop(&mut self) {
        self.0.notify_waiters();
    }
}

/// One connection of HTTP/1 to an endpoint, lent to one request.
pub struct Connection {
    /// What comes back.
    pub reader: h1::Reader,
    /// What is sent.
    pub writer: h1::Writer,
    /// The stream's place in its tunnel.
    place: Option<Place>,
    /// Its place under the limit of a DestinationRule.
    _held: Option<Limited>,
    /// How many requests it has carried.
    pub served: u32,
    /// The endpoint closes it after the answer.
    pub closes: bool,
    idle_since: Instant,
}

impl Connection {
    /// A new connection.
    pub fn new(reader: ByteReader, writer: ByteWriter, (place, held): Places) -> Self {
        Self {
            reader: h1::Reader::new(reader, HttpLimits::default()),
            writer: h1::Writer::new(writer),
            place,
            _held: held,
            served: 0,
            closes: false,
            idle_since: Instant::now(),
        }
    }

    /// Whether the message before was sent and read to its end, so that another may follow.
    pub fn can_be_kept(&self) -> bool {
        !self.closes && self.reader.is_over() && self.writer.is_over()
    }

    /// Both directions, unused as they are.
    pub fn into_halves(self) -> (ByteReader, ByteWriter) {
        (self.reader.into_parts().0, self.writer.into_bytes())
    }

    /// The serial number of the certificate that the peer's agent showed.
    pub fn peer_serial(&self) -> Option<Arc<str>> {
        self.place.as_ref().map(|place| Arc::clone(&place.tunnel().peer_serial))
    }

    /// The connection, if another request may be sent on it.
    pub fn if_fit(mut self) -> Option<Self> {
        self.is_fit().then_some(self)
    }

    /// Whether another request may be sent on it: it is open, nothing came that nobody asked for, and its tunnel is not
    /// due to be replaced.
    fn is_fit(&mut self) -> bool {
        self.place.as_ref().is_none_or(|place| !place.tunnel().is_retiring()) && self.reader.is_quiet()
    }
}

/// One connection of HTTP/2, shared by requests.
struct Shared {
    sender: SendRequest<Bytes>,
    active: AtomicU32,
    served: AtomicU32,
    over: AtomicBool,
    idle_since: Mutex<Instant>,
}

/// A request's place on a shared connection.
pub struct Lent {
    /// Where the request is sent.
    pub sender: SendRequest<Bytes>,
    shared: Arc<Shared>,
}

impl Lent {
    /// How many requests the connection has carried.
    pub fn served(&self) -> u32 {
        self.shared.served.load(Ordering::Relaxed)
    }

    /// Leaves the connection to those who are on it: it takes no further requests.
    pub fn retire(&self) {
        self.shared.over.store(true, Ordering::Relaxed);
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        if self.shared.active.fetch_sub(1, Ordering::AcqRel) == 1 {
            *self.shared.idle_since.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
        }
    }
}

/// The connections of one worker.
#[derive(Default)]
pub struct Upstreams {
    idle: Mutex<HashMap<UpstreamKey, Vec<Connection>>>,
    shared: Mutex<HashMap<UpstreamKey, Arc<SharedSlot>>>,
    /// Told when a connection is kept or closed.
    freed: Arc<Notify>,
}

/// The HTTP/2 connections to one endpoint. One connects at a time; who waits takes what came about.
#[derive(Default)]
struct SharedSlot {
    connections: Mutex<Vec<Arc<Shared>>>,
    connecting: tokio::sync::Mutex<()>,
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Upstreams {
    /// A kept connection of HTTP/1, the one used last: the others fall idle and go.
    pub fn take(&self, key: &UpstreamKey) -> Option<Connection> {
        let mut idle = lock(&self.idle);
        let kept = idle.get_mut(key)?;
        while let Some(connection) = kept.pop() {
            let fit = connection.if_fit();
            if fit.is_some() {
                return fit;
            }
        }
        None
    }

    /// Keeps a connection of HTTP/1 for the next request.
    pub fn keep(&self, key: UpstreamKey, mut connection: Connection) {
        connection.idle_since = Instant::now();
        let mut idle = lock(&self.idle);
        let kept = idle.entry(key).or_default();
        if kept.len() < MAX_IDLE_OF_ENDPOINT {
            kept.push(connection);
        }
        drop(idle);
        self.freed.notify_waiters();
    }

    /// A place under a limit, as a connection of these keeps it.
    pub fn limited(&self, held: Held) -> Limited {
        Limited { _held: held, _told: Told(Arc::clone(&self.freed)) }
    }

    /// Ends when a connection has been kept or closed since the call.
    pub fn freed(&self) -> Notified<'_> {
        self.freed.notified()
    }

    /// A place on a connection of HTTP/2, which `connect` opens where none has room.
    pub async fn share<E>(
        &self,
        key: &UpstreamKey,
        connect: impl Future<Output = Result<(Joined, Places), E>>,
    ) -> Result<Lent, ShareError<E>> {
        let slot = Arc::clone(lock(&self.shared).entry(key.clone()).or_default());
        if let Some(lent) = slot.enter() {
            return Ok(lent);
        }
        let _turn = slot.connecting.lock().await;
        if let Some(lent) = slot.enter() {
            return Ok(lent);
        }
        if lock(&slot.connections).len() >= MAX_SHARED_CONNECTIONS {
            return Err(ShareError::Full);
        }
        let (io, places) = connect.await.map_err(ShareError::Connect)?;
        let (io, alarm) = Watched::new(io, Starts::We);
        let handshake = http2::client(&HttpLimits::default()).handshake::<_, Bytes>(io);
        let (sender, connection) = handshake.await.map_err(|error| ShareError::Handshake(h2_error(error)))?;
        let shared = Arc::new(Shared {
            sender,
            active: AtomicU32::new(0),
            served: AtomicU32::new(0),
            over: AtomicBool::new(false),
            idle_since: Mutex::new(Instant::now()),
        });
        // Held weakly: a connection goes on for as long as somebody could send on it.
        let driven = Arc::downgrade(&shared);
        let address = key.address;
        tokio::spawn(async move {
            let _places = places;
            tokio::select! {
                ended = connection => if let Err(error) = ended {
                    tracing::debug!(%error, "a connection to an endpoint ended");
                },
                () = alarm.flooded() => {
                    tracing::warn!(%address, "a connection was closed: the endpoint sent too many {}", Flooded::FRAMES.0);
                }
            }
            if let Some(shared) = driven.upgrade() {
                shared.over.store(true, Ordering::Relaxed);
            }
        });
        lock(&slot.connections).push(Arc::clone(&shared));
        Lent::enter(&shared).ok_or(ShareError::Full)
    }

    /// Lets go of what is closed, or has been unused for `idle`.
    pub fn sweep(&self, idle: Duration) {
        let now = Instant::now();
        lock(&self.idle).retain(|_, kept| {
            kept.retain_mut(|connection| {
                now.duration_since(connection.idle_since) < idle && connection.is_fit()
            });
            !kept.is_empty()
        });
        lock(&self.shared).retain(|_, slot| {
            let mut connections = lock(&slot.connections);
            connections.retain(|shared| {
                let unused = shared.active.load(Ordering::Acquire) == 0
                    && now.duration_since(*lock(&shared.idle_since)) >= idle;
                !unused && !shared.over.load(Ordering::Relaxed)
            });
            !connections.is_empty() || Arc::strong_count(slot) > 1
        });
    }
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

impl SharedSlot {
    fn enter(&self) -> Option<Lent> {
        lock(&self.connections).iter().find_map(Lent::enter)
    }
}

impl Lent {
    fn enter(shared: &Arc<Shared>) -> Option<Self> {
        if shared.over.load(Ordering::Relaxed) {
            return None;
        }
        let limit = shared.sender.current_max_send_streams().min(MAX_SHARED);
        let before = shared.active.fetch_add(1, Ordering::AcqRel);
        shared.served.fetch_add(1, Ordering::Relaxed);
        let lent = Self { sender: shared.sender.clone(), shared: Arc::clone(shared) };
        ((before as usize) < limit).then_some(lent)
    }
}
