//! Tunnels to other agents: one HTTP/2 connection inside mutual TLS carries many streams, and is shared by all
//! connections from one identity to another at one address. A handshake is paid once for a hundred connections.

/// Asking for a stream.
mod ask;
/// What ends a tunnel that its peer does not.
mod ends;
/// Tunnels to other networks, within tunnels to their gateways.
mod gateway;

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use baremesh_ca::tls::{Purpose, TrustBundle, describe_io, peer_leaf_facts, placeholder_server_name};
use baremesh_model::identity::Identity;
use bytes::Bytes;
use h2::client::SendRequest;
use rustls_pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::watch;

use self::ask::request;
pub use self::ends::until_dead;
use self::ends::until_unused;
use super::error::ProxyError;
use super::flood::{Alarm, Flooded, MAX_RESETS_SENT, Starts, Watched};
use super::hbone;
use super::relay::{TunnelStream, is_not_taken_up};
use super::socket::{self, Mark};
use super::tls::{self, Session};
use crate::credentials::{Credential, Credentials};
use crate::snapshot::endpoint::Agent;
use crate::trust::{Ends, Stranger, until_untrusted};

/// How long a tunnel that stood before may take to answer a CONNECT. One whose peer has vanished looks like any other
/// until a PING goes unanswered; a new tunnel finds out at once, and another endpoint can be tried.
const KEPT_ANSWER: Duration = Duration::from_secs(3);

/// Tunnels that may be made for one stream and end before their peer takes it up. An agent that is started anew ends those that
/// come to it at its last moment, and the next agent has the next.
const MAX_TURNED_AWAY: u32 = 1;

/// How long the answer to a CONNECT in a new tunnel may take: longer than the peer gives its program to accept.
const FRESH_ANSWER: Duration = Duration::from_secs(15);

/// Who calls whom, and where. Connections that agree in all of it may share a tunnel.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct PoolKey {
    source: Identity,
    destination: Identity,
    agent: Agent,
}

/// What a tunnel is opened with.
#[derive(Clone, Copy)]
pub struct Peer<'a> {
    /// The certificates of this host.
    pub credentials: &'a Credentials,
    /// The caller's certificate.
    pub source: &'a Arc<Credential>,
    /// The identity that the peer must show.
    pub destination: &'a Identity,
    /// The peer's agent.
    pub agent: &'a Agent,
}

/// The tunnels of one worker.
pub struct Pool {
    slots: Mutex<HashMap<PoolKey, Arc<Slot>>>,
    mark: Mark,
    connect_timeout: Duration,
    trust: watch::Receiver<Arc<TrustBundle>>,
}

/// The tunnels of one key. One handshake at a time: those who wait for it share what it yields, be it a failure. Each
/// would wait for a dead host's timeout in turn otherwise.
#[derive(Default)]
struct Slot {
    tunnels: Mutex<Vec<Arc<Tunnel>>>,
    connecting: tokio::sync::Mutex<()>,
    failed: Mutex<Option<(Instant, ProxyError)>>,
}

/// One HTTP/2 connection to a peer.
pub struct Tunnel {
    sender: SendRequest<Bytes>,
    active: AtomicU32,
    over: AtomicBool,
    revoked: AtomicBool,
    retire_at: Instant,
    expires_at: SystemTime,
    /// What was counted of its frames.
    alarm: Arc<Alarm>,
    /// The serial number of the certificate that the peer showed.
    pub peer_serial: Arc<str>,
    /// The same of the certificate that we showed.
    own_serial: String,
    /// The peer, where it is of another trust domain.
    stranger: Option<Stranger>,
}

/// A stream's place in its tunnel.
pub struct Place(Arc<Tunnel>);

impl Place {
    /// The tunnel that the stream runs in.
    pub fn tunnel(&self) -> &Tunnel {
        &self.0
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.active.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Tunnel {
    /// Takes a place if the tunnel may still open streams.
    fn enter(self: &Arc<Self>) -> Option<Place> {
        if self.is_retiring() || SystemTime::now() >= self.expires_at {
            return None;
        }
        let limit = self.sender.current_max_send_streams().min(hbone::MAX_STREAMS as usize);
        let before = self.active.fetch_add(1, Ordering::SeqCst);
        let place = Place(Arc::clone(self));
        // Looked at again after entering: the driver ends only a tunnel that is over and has nobody in it.
        ((before as usize) < limit && !self.over.load(Ordering::SeqCst)).then_some(place)
    }

    /// Whether it is over, or due to be replaced.
    pub fn is_retiring(&self) -> bool {
        self.over.load(Ordering::Relaxed) || self.is_due(Instant::now())
    }

    /// Whether it ended because a certificate of it was revoked.
    pub fn is_revoked(&self) -> bool {
        self.revoked.load(Ordering::Relaxed)
    }

    /// Whether it is to be replaced: by its age, or because its peer will not bear with many more resets.
    fn is_due(&self, now: Instant) -> bool {
        now >= self.retire_at || self.alarm.resets_sent() >= MAX_RESETS_SENT
    }

    fn is_unused(&self) -> bool {
        self.active.load(Ordering::SeqCst) == 0
    }
}

/// Whether a stream's tunnel was there already, in which case it may have died unnoticed.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Age {
    Fresh,
    Kept,
}

impl Pool {
    /// An empty pool, whose sockets carry `mark`. Tunnels end when `trust` refuses a certificate of theirs.
    pub fn new(mark: Mark, connect_timeout: Duration, trust: watch::Receiver<Arc<TrustBundle>>) -> Self {
        Self { slots: Mutex::default(), mark, connect_timeout, trust }
    }

    /// Opens a stream to `authority` in a tunnel to `peer`, and waits for the peer's 200.
    pub async fn open(
        &self,
        peer: Peer<'_>,
        authority: SocketAddr,
        client: Option<SocketAddr>,
    ) -> Result<(TunnelStream, Place), ProxyError> {
        let slot = self.slot(&peer);
        let mut turned_away = 0;
        loop {
            let (place, age) = self.place(&slot, &peer).await?;
            let asked = request(&place, peer.agent.address, authority, client);
            let limit = match age {
                Age::Fresh => FRESH_ANSWER,
                Age::Kept => KEPT_ANSWER,
            };
            let answered = tokio::time::timeout(limit, asked).await.unwrap_or_else(|_| {
                place.0.over.store(true, Ordering::Relaxed);
                Err(ProxyError::Tunnel { address: peer.agent.address, source: h2::Reason::CANCEL.into() })
            });
            match answered {
                // A kept tunnel may have gone while nobody looked. Nothing was sent: another one may be tried, and
                // each turn uses one up.
                Err(ProxyError::Tunnel { .. }) if age == Age::Kept => {
                    place.0.over.store(true, Ordering::Relaxed);
                }
                Err(ProxyError::Tunnel { source, .. })
                    if is_not_taken_up(&source) && turned_away < MAX_TURNED_AWAY =>
                {
                    place.0.over.store(true, Ordering::Relaxed);
                    turned_away += 1;
                }
                Err(error) => return Err(error),
                Ok(stream) => return Ok((stream, place)),
            }
        }
    }

    /// How many tunnels stand.
    pub fn tunnels(&self) -> usize {
        let slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        slots.values().map(|slot| slot.tunnels.lock().unwrap_or_else(PoisonError::into_inner).len()).sum()
    }

    /// Drops tunnels that are over, unused for long, or due to be replaced and unused.
    pub fn sweep(&self) {
        let now = Instant::now();
        let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        slots.retain(|_, slot| {
            let mut tunnels = slot.tunnels.lock().unwrap_or_else(PoisonError::into_inner);
            tunnels.retain(|tunnel| {
                let spent = tunnel.is_unused() && tunnel.is_due(now);
                !spent && !tunnel.over.load(Ordering::Relaxed)
            });
            !tunnels.is_empty() || Arc::strong_count(slot) > 1
        });
    }

    fn slot(&self, peer: &Peer<'_>) -> Arc<Slot> {
        let key = PoolKey {
            source: peer.source.identity.clone(),
            destination: peer.destination.clone(),
            agent: peer.agent.clone(),
        };
        let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(slots.entry(key).or_default())
    }

    async fn place(&self, slot: &Slot, peer: &Peer<'_>) -> Result<(Place, Age), ProxyError> {
        if let Some(place) = slot.enter() {
            return Ok((place, Age::Kept));
        }
        let since = Instant::now();
        let _turn = slot.connecting.lock().await;
        if let Some(place) = slot.enter() {
            return Ok((place, Age::Kept));
        }
        if let Some(error) = slot.failed_since(since) {
            return Err(error);
        }
        let tunnel = Box::pin(self.connect(peer)).await.inspect_err(|error| slot.remember(error))?;
        let place = tunnel.enter().ok_or(ProxyError::CertificateExpired)?;
        slot.tunnels.lock().unwrap_or_else(PoisonError::into_inner).push(tunnel);
        Ok((place, Age::Fresh))
    }

    async fn connect(&self, peer: &Peer<'_>) -> Result<Arc<Tunnel>, ProxyError> {
        if let Some(network) = &peer.agent.beyond {
            return gateway::connect(self, *peer, network).await;
        }
        let address = peer.agent.address;
        let connected = socket::connect(address, self.mark, self.connect_timeout).await;
        let stream = connected.map_err(|source| ProxyError::Connect { address, source })?;
        let config = peer.credentials.caller(peer.source, peer.destination);
        let handshake = tls::connect(config, server_name(peer.destination), stream);
        let (tls, session) = self.in_time(address, handshake).await?;
        self.stand(peer, (tls, session), None).await
    }

    /// What a handshake comes to, within its time.
    async fn in_time<T>(
        &self,
        address: SocketAddr,
        handshake: impl Future<Output = io::Result<T>>,
    ) -> Result<T, ProxyError> {
        let failed = |source: io::Error| ProxyError::Handshake {
            address,
            source: io::Error::new(source.kind(), describe_io(&source)),
        };
        let within = tokio::time::timeout(self.connect_timeout, handshake).await;
        within.map_err(|_| failed(io::ErrorKind::TimedOut.into()))?.map_err(failed)
    }

    /// Makes a tunnel of a stream whose handshake is done. What it runs `within` is held for as long as it stands.
    async fn stand<T>(
        &self,
        peer: &Peer<'_>,
        (tls, session): (T, Session),
        within: Option<Place>,
    ) -> Result<Arc<Tunnel>, ProxyError>
    where
        T: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let address = peer.agent.address;
        let facts = peer_leaf_facts(&session.peer)
            .map_err(|error| ProxyError::Handshake { address, source: io::Error::other(error) })?;
        let (tls, alarm) = Watched::new(tls, Starts::We);
        let (sender, connection) = builder()
            .handshake::<_, Bytes>(tls)
            .await
            .map_err(|source| ProxyError::Tunnel { address, source })?;
        let now = SystemTime::now();
        let expires_at = facts.not_after.min(peer.source.not_after);
        let life = expires_at.duration_since(now).unwrap_or_default();
        let tunnel = Arc::new(Tunnel {
            sender,
            active: AtomicU32::new(0),
            over: AtomicBool::new(false),
            revoked: AtomicBool::new(false),
            retire_at: Instant::now() + life / 2,
            expires_at,
            alarm: Arc::clone(&alarm),
            peer_serial: facts.serial.into(),
            own_serial: peer.source.serial.clone(),
            stranger: Stranger::of(
                (&session.peer, &session.issuers),
                facts.identity.trust_domain(),
                Purpose::Server,
                peer.credentials.bundle(),
            ),
        });
        let (trust, driven) = (self.trust.clone(), Arc::clone(&tunnel));
        tokio::spawn(async move {
            drive((connection, alarm), driven, address, trust).await;
            drop(within);
        });
        Ok(tunnel)
    }
}

/// The name that is asked for. One that is no DNS name cannot be sent; the peer then shows what it shows the unnamed.
fn server_name(destination: &Identity) -> ServerName<'static> {
    ServerName::try_from(destination.server_name()).unwrap_or_else(|_| placeholder_server_name())
}

impl Slot {
    fn enter(&self) -> Option<Place> {
        let tunnels = self.tunnels.lock().unwrap_or_else(PoisonError::into_inner);
        // The fullest first, so that the others fall idle and can go.
        tunnels.iter().find_map(Tunnel::enter)
    }

    /// Why an attempt failed that ended after `since`, if one did.
    fn failed_since(&self, since: Instant) -> Option<ProxyError> {
        let failed = self.failed.lock().unwrap_or_else(PoisonError::into_inner);
        failed.as_ref().filter(|(at, _)| *at >= since).and_then(|(_, error)| copy(error))
    }

    fn remember(&self, error: &ProxyError) {
        let failed = copy(error).map(|error| (Instant::now(), error));
        *self.failed.lock().unwrap_or_else(PoisonError::into_inner) = failed;
    }
}

/// The same error again, where it is one of connecting.
fn copy(error: &ProxyError) -> Option<ProxyError> {
    let again = |source: &io::Error| io::Error::new(source.kind(), source.to_string());
    match error {
        ProxyError::Connect { address, source } => {
            Some(ProxyError::Connect { address: *address, source: again(source) })
        }
        ProxyError::Handshake { address, source } => {
            Some(ProxyError::Handshake { address: *address, source: again(source) })
        }
        _ => None,
    }
}

fn builder() -> h2::client::Builder {
    let mut builder = h2::client::Builder::new();
    builder
        .initial_window_size(hbone::STREAM_WINDOW)
        .initial_connection_window_size(hbone::CONNECTION_WINDOW)
        .max_frame_size(hbone::MAX_FRAME)
        .max_header_list_size(hbone::MAX_HEADER_LIST)
        .max_concurrent_reset_streams(hbone::MAX_RESETS)
        .enable_push(false);
    builder
}

/// Drives a tunnel's connection until it is over: dead, told to go, flooded, revoked, or unused for long.
async fn drive<T>(
    (mut connection, alarm): (h2::client::Connection<T, Bytes>, Arc<Alarm>),
    tunnel: Arc<Tunnel>,
    address: SocketAddr,
    mut trust: watch::Receiver<Arc<TrustBundle>>,
) where
    T: AsyncRead + AsyncWrite + Unpin,
{
    let ping = connection.ping_pong();
    let ends =
        Ends { serials: [&tunnel.peer_serial, &tunnel.own_serial], stranger: tunnel.stranger.as_ref() };
    tokio::select! {
        ended = connection => {
            if let Err(error) = ended {
                tracing::debug!(%error, "a tunnel ended");
            }
        }
        () = until_dead(ping) => tracing::debug!("a tunnel no longer answers"),
        () = alarm.flooded() => tracing::warn!(%address, "a tunnel was closed: its peer sent too many {}", Flooded::FRAMES.0),
        () = until_untrusted(&mut trust, &ends) => {
            // Known before the streams' own tasks find that they have broken.
            tunnel.revoked.store(true, Ordering::Relaxed);
            tracing::warn!(%address, "a tunnel was closed: a certificate of it was revoked, or its trust domain is federated no more");
        }
        () = until_unused(&tunnel) => {}
    }
    tunnel.over.store(true, Ordering::Relaxed);
}

#[cfg(test)]
mod tests;
