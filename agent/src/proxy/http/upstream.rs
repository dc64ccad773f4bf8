//! Connections to endpoints, kept from request to request. Each is one stream of a tunnel, or one socket where no agent
//! is at the other end. HTTP/1 connections are lent to one request at a time; an HTTP/2 connection is shared by as many
//! as its peer takes, and another one is opened when they are full.

/// Sockets that are kept, over all workers.
mod kept;
/// Connections of HTTP/2.
mod shared;

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

use baremesh_model::destination_rule::ClientTls;
use baremesh_model::identity::Identity;

use super::bytes::{ByteReader, ByteWriter};
use super::h1::{self, HttpLimits};
use crate::proxy::tunnel::Place;
use crate::snapshot::Cluster;
use crate::snapshot::cluster::{Held, Offer, Spare};
use crate::snapshot::endpoint::Agent;

use kept::KeptSocket;
pub use kept::KeptSockets;
use shared::SharedSlot;
pub use shared::{Lent, Need, ShareError};

/// Connections of HTTP/1 that are kept unused for one endpoint; further ones are closed after their request.
const MAX_IDLE_OF_ENDPOINT: usize = 256;

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
    /// By this agent.
    Tunnel(Agent),
    /// By a socket, in the TLS that the rule asks for, of the host of that name.
    Socket(Option<(ClientTls, Arc<str>)>),
    /// On this host, at this address.
    Local(SocketAddr),
}

/// What a connection takes: a place in a tunnel, and one under a DestinationRule's limit.
pub type Places = (Option<Place>, Option<Held>);

/// What a connection is kept under.
#[derive(Debug, Clone)]
pub struct Terms {
    /// How long it may have no request.
    idle: Duration,
    /// Requests at once on one of HTTP/2.
    streams: u32,
    /// Who is offered its place while it has no request.
    offer: Option<Offer>,
}

impl Terms {
    /// Those of a DestinationRule, and the agent's `idle` where it says nothing.
    pub fn of(cluster: &Cluster, idle: Duration) -> Self {
        let limits = cluster.limits();
        let idle = limits.http_idle_timeout.unwrap_or(idle);
        Self { idle, streams: limits.max_concurrent_streams, offer: cluster.offer() }
    }

    /// The agent's own.
    pub fn plain(idle: Duration) -> Self {
        Self { idle, streams: u32::MAX, offer: None }
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
    _held: Option<Held>,
    /// How many requests it has carried.
    pub served: u32,
    /// The endpoint closes it after the answer.
    pub closes: bool,
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

/// A connection of HTTP/1 that waits for a request.
struct Idle {
    /// Gone once its place was given up.
    connection: Mutex<Option<Connection>>,
    until: Instant,
    /// Of those that have a socket of their own.
    _kept: Option<KeptSocket>,
}

impl Idle {
    /// The connection, if another request may be sent on it.
    fn take(&self) -> Option<Connection> {
        if Instant::now() >= self.until {
            return None;
        }
        lock(&self.connection).take().and_then(Connection::if_fit)
    }

    fn is_fit(&self) -> bool {
        Instant::now() < self.until && lock(&self.connection).as_mut().is_some_and(Connection::is_fit)
    }
}

impl Spare for Idle {
    fn give_up(&self) -> bool {
        let connection = lock(&self.connection).take();
        connection.is_some()
    }
}

/// The connections of one worker.
#[derive(Default)]
pub struct Upstreams {
    idle: Mutex<HashMap<UpstreamKey, Vec<Arc<Idle>>>>,
    shared: Mutex<HashMap<UpstreamKey, Arc<SharedSlot>>>,
    /// Requests of this worker that wait for a connection, by which.
    waiting: Mutex<HashMap<UpstreamKey, u32>>,
    kept: Arc<KeptSockets>,
}

/// A request of this worker that waits for a connection.
pub struct Waiting<'a> {
    upstreams: &'a Upstreams,
    key: UpstreamKey,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        let mut waiting = lock(&self.upstreams.waiting);
        match waiting.get_mut(&self.key) {
            Some(count) if *count > 1 => *count -= 1,
            _ => drop(waiting.remove(&self.key)),
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Upstreams {
    /// No connections yet; what is kept of sockets counts in `kept`.
    pub fn new(kept: Arc<KeptSockets>) -> Self {
        Self { kept, ..Self::default() }
    }

    /// A kept connection of HTTP/1, the one used last: the others fall idle and go.
    pub fn take(&self, key: &UpstreamKey) -> Option<Connection> {
        let mut idle = lock(&self.idle);
        let kept = idle.get_mut(key)?;
        while let Some(connection) = kept.pop() {
            let fit = connection.take();
            if fit.is_some() {
                return fit;
            }
        }
        None
    }

    /// Keeps a connection of HTTP/1 for the next request. Where requests wait for a place, the connection goes to those of
    /// other workers as often as to those of this one: a place is of use to all, and a connection to this worker alone.
    pub fn keep(&self, key: UpstreamKey, connection: Connection, terms: &Terms, waiting: u32) {
        if waiting > 0 && is_for_others(self.waiting_here(&key), waiting, rand::random()) {
            return;
        }
        let kept = match connection.place {
            Some(_) => None,
            None => match KeptSocket::new(&self.kept) {
                Some(kept) => Some(kept),
                None => return,
            },
        };
        let until = Instant::now() + terms.idle;
        let connection = Arc::new(Idle { connection: Mutex::new(Some(connection)), until, _kept: kept });
        let mut idle = lock(&self.idle);
        let connections = idle.entry(key).or_default();
        if connections.len() >= MAX_IDLE_OF_ENDPOINT {
            return;
        }
        connections.push(Arc::clone(&connection));
        drop(idle);
        if let Some(offer) = &terms.offer {
            let spare: Weak<Idle> = Arc::downgrade(&connection);
            offer.make(spare);
        }
    }

    /// Notes that a request waits for a connection.
    pub fn wait(&self, key: UpstreamKey) -> Waiting<'_> {
        *lock(&self.waiting).entry(key.clone()).or_default() += 1;
        Waiting { upstreams: self, key }
    }

    fn waiting_here(&self, key: &UpstreamKey) -> u32 {
        lock(&self.waiting).get(key).copied().unwrap_or_default()
    }

    /// Lets go of what is closed, or has been unused for too long.
    pub fn sweep(&self) {
        let now = Instant::now();
        lock(&self.idle).retain(|_, kept| {
            kept.retain(|connection| connection.is_fit());
            !kept.is_empty()
        });
        lock(&self.shared).retain(|_, slot| slot.sweep(now) || Arc::strong_count(slot) > 1);
    }
}

/// Whether a place that is free now is for the requests that wait elsewhere, `here` of all being this worker's own.
fn is_for_others(here: u32, all: u32, random: u64) -> bool {
    random % u64::from(all.max(1)) >= u64::from(here)
}

#[cfg(test)]
mod tests;
