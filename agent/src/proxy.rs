//! The data path. Each worker is a thread with its own runtime, listeners and tunnels: a connection stays on the
//! worker that accepted it, and workers share nothing that is written often. `outbound` and `inbound` read top to
//! bottom as what happens to one connection.

/// Why a connection was not carried.
pub mod error;
/// The wire between agents.
pub mod hbone;
/// What peers send too much of.
mod flood;
/// The agent's own sockets.
pub mod socket;
/// Mutual TLS under a tunnel.
pub mod tls;
/// Bytes both ways.
pub mod relay;
/// HTTP on the wire.
pub mod http;
/// Tunnels to other agents.
pub mod tunnel;
/// The certificates that a handshake needs.
mod certificates;
/// What local programs open.
pub mod outbound;
/// What arrives over mutual TLS.
pub mod inbound;
/// What arrives in plaintext.
pub mod plaintext;
/// The local program's side of a connection.
mod deliver;
/// Connections that are open now.
mod open;
/// What ports speak that do not say it.
mod sniff;
/// Accepting, and the limits on it.
mod accept;

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use baremesh_ca::tls::TrustBundle;
use baremesh_model::identity::Identity;
use socket2::SockRef;
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, watch};

use crate::attribution::{Attributor, Cgroups};
use crate::beat;
use crate::capture::Outbound;
use crate::credentials::Keyring;
use crate::demand::Demand;
use crate::flows::Flows;
use crate::headroom::{MEMORY_MAX, Memory};
use crate::originate::Originations;
use crate::resolution::AskedNames;
use crate::service_manager::watchdog::Pulse;
use crate::share::Shares;
use crate::snapshot::{Cluster, Snapshot};
use crate::telemetry::Telemetry;
use error::ProxyError;
use http::upstream::{KeptSockets, Upstreams};
use open::OpenConnections;
use socket::Mark;
use tunnel::Pool;

/// How often byte counters are brought up to date and unused things are let go.
const TICK: Duration = Duration::from_secs(5);

/// Ports of the agent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ports {
    /// Captured outbound connections.
    pub outbound: u16,
    /// Captured plaintext from other hosts.
    pub inbound: u16,
    /// Tunnels.
    pub hbone: u16,
}

impl Default for Ports {
    fn default() -> Self {
        Self { outbound: 15001, inbound: 15006, hbone: 15008 }
    }
}

/// Named limits and times of the data path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// How long a connect, and a handshake, may take.
    pub connect_timeout: Duration,
    /// How long a peer may take for its handshake.
    pub handshake_timeout: Duration,
    /// How long a connection may be quiet both ways.
    pub idle_timeout: Duration,
    /// How long a request's body that is waited for may stand still, before its answer has begun.
    pub body_timeout: Duration,
    /// Connections that may be open at once, over all workers.
    pub max_connections: usize,
    /// Sockets to endpoints that may be kept without a request, over all workers.
    pub max_kept: usize,
    /// Endpoints that are tried for one connection.
    pub max_attempts: usize,
}

/// Descriptors that connections leave free: administration, metrics and readiness (64 each), connections that were
/// accepted and are about to be refused, the pipes of nft, files, name servers.
const RESERVED_DESCRIPTORS: u64 = 384;
/// The most that one connection takes: its own socket, and the one that it is carried on.
const DESCRIPTORS_A_CONNECTION: u64 = 2;
/// Of the descriptors that connections have, one in so many may be a socket that is kept for the next request.
const KEPT_SHARE: u64 = 8;
/// Sockets that are kept for the next request, at most.
const MAX_KEPT: usize = 8192;

impl Limits {
    /// With no more connections than there are descriptors for. What comes beyond is refused at once, and the agent
    /// itself still answers.
    pub fn within(self, descriptors: u64) -> Self {
        let spare = descriptors.saturating_sub(RESERVED_DESCRIPTORS).max(descriptors / 4);
        let number = |descriptors: u64| usize::try_from(descriptors).unwrap_or(usize::MAX);
        let max_kept = self.max_kept.min(number(spare / KEPT_SHARE));
        let most = number(spare.saturating_sub(max_kept as u64) / DESCRIPTORS_A_CONNECTION).max(1);
        Self { max_connections: self.max_connections.min(most), max_kept, ..self }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connect_timeout: Duration::from_secs(10),
            handshake_timeout: Duration::from_secs(10),
            idle_timeout: Duration::from_secs(3600),
            // As Envoy's default for streams.
            body_timeout: Duration::from_secs(300),
            max_connections: 100_000,
            max_kept: MAX_KEPT,
            max_attempts: 3,
        }
    }
}

/// How often it is looked whether connections have ended that an agent waits for which is on its way out.
const LOOK: Duration = Duration::from_millis(50);

/// How far the agent is in stopping.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// Everything is taken.
    Running,
    /// The process is about to be started anew: what is open ends, what is new is taken.
    StartingAnew,
    /// Nothing new is taken; what is open goes on.
    Draining,
    /// Another process takes what is new; what is open goes on here.
    HandedOver,
    /// What is open is closed.
    Closing,
}

impl Phase {
    /// Whether nothing new is served, not even what is new on an open connection. Where another process takes what is new,
    /// each connection carries one request more, and says with the answer that it ends: no caller finds it closed under his
    /// request.
    fn serves_no_more(self) -> bool {
        matches!(self, Self::Draining | Self::Closing)
    }

    /// Whether a connection that began in `began` is told to end.
    fn ends_what_began(self, began: Self) -> bool {
        self >= if began == Self::StartingAnew { Self::Draining } else { Self::StartingAnew }
    }
}

/// What all workers share, each read far more often than written.
#[derive(Clone)]
pub struct Shared {
    /// The state in force.
    pub snapshot: Arc<ArcSwap<Snapshot>>,
    /// Told when the state in force has changed.
    pub snapshot_changed: watch::Receiver<u64>,
    /// The certificates in force.
    pub credentials: Arc<Keyring>,
    /// Tells when what peers are verified against has changed.
    pub trust: watch::Receiver<Arc<TrustBundle>>,
    /// TLS towards endpoints without an agent.
    pub originations: Arc<Originations>,
    /// How far the agent is in stopping.
    pub phase: watch::Receiver<Phase>,
    /// Places of cgroups.
    pub cgroups: Arc<Cgroups>,
    /// Connections open over all workers.
    pub connections: Arc<AtomicUsize>,
    /// Sockets to endpoints that are kept without a request, over all workers.
    pub kept: Arc<KeptSockets>,
    /// The mark of the agent's own sockets.
    pub mark: Mark,
    /// Ports.
    pub ports: Ports,
    /// Limits.
    pub limits: Limits,
    /// What is captured, and so whether anything may leave the mesh through the agent.
    pub outbound: Outbound,
    /// Who came to which service of this host.
    pub flows: Arc<Flows>,
    /// Names that callers ask for below wildcards.
    pub asked_names: Arc<AskedNames>,
    /// Whose endpoints are asked for.
    pub demand: Arc<Demand>,
    /// Streams that are led to other agents of this host's network, by whose they are, over all workers.
    pub led: Arc<Shares<Identity>>,
    /// Has one more for each worker that carries nothing of before the process was to be started anew.
    pub settled: Arc<Semaphore>,
    /// What memory is left.
    pub memory: Arc<Memory>,
    /// By which every worker shows that it comes round.
    pub pulse: Arc<Pulse>,
}

/// One thread of the data path.
pub struct Worker {
    /// Which of them this is.
    index: usize,
    shared: Shared,
    attributor: Mutex<Attributor>,
    /// Places for handshakes with peers that are not known yet.
    handshakes: Semaphore,
    /// The same, by the host that they come from.
    shaking: Shares<IpAddr>,
    /// Tunnels by who is at their other end, and the address that it calls from.
    peers: Shares<(Identity, IpAddr)>,
    pool: Pool,
    /// HTTP connections to endpoints.
    upstreams: Upstreams,
    /// Places for copies of requests.
    copies: Arc<Semaphore>,
    open: OpenConnections,
    /// Held by whatever accepts connections, and by each that was accepted, to its end.
    accepted: Arc<()>,
    telemetry: Telemetry,
}

/// The sockets on which one worker takes connections.
pub struct Listeners {
    outbound: Vec<std::net::TcpListener>,
    inbound: Vec<std::net::TcpListener>,
    hbone: Vec<std::net::TcpListener>,
}

impl Listeners {
    /// Binds a worker's listeners, IPv6 too where the host has it.
    pub fn bind(ports: Ports, mark: Mark) -> io::Result<Self> {
        let listen = |port: u16| -> io::Result<Vec<std::net::TcpListener>> {
            let v4 = socket::listen((Ipv4Addr::UNSPECIFIED, port).into(), mark).map_err(|error| {
                io::Error::new(error.kind(), format!("listening on port {port}: {error}"))
            })?;
            // A host without IPv6 has no socket of that family; whatever else is wrong with it showed above.
            let v6 = socket::listen((Ipv6Addr::UNSPECIFIED, port).into(), mark).ok();
            Ok(std::iter::once(v4).chain(v6).collect())
        };
        // Accepted sockets inherit it: should the agent be killed, its callers see a reset, and no end that looks whole.
        let for_programs = |port: u16| -> io::Result<Vec<std::net::TcpListener>> {
            let listeners = listen(port)?;
            let reset = |listener| SockRef::from(listener).set_linger(Some(Duration::ZERO));
            listeners.iter().try_for_each(reset)?;
            Ok(listeners)
        };
        Ok(Self {
            outbound: for_programs(ports.outbound)?,
            inbound: for_programs(ports.inbound)?,
            hbone: listen(ports.hbone)?,
        })
    }

    /// Takes over sockets that another process listens on, and binds what is not among them. Each worker has its share.
    pub fn taken_over(
        workers: usize,
        ports: Ports,
        mark: Mark,
        [outbound, inbound, hbone]: [Vec<std::net::TcpListener>; 3],
    ) -> io::Result<Vec<Self>> {
        let shares = |all: Vec<std::net::TcpListener>, port: u16| {
            let mut shares: Vec<Vec<_>> = (0..workers).map(|_| Vec::new()).collect();
            let mut next = [0, 0];
            for listener in all {
                let Ok(address) = listener.local_addr() else { continue };
                // The configuration names another port now.
                if address.port() == port {
                    let next = &mut next[usize::from(address.is_ipv6())];
                    shares[*next % workers].push(listener);
                    *next += 1;
                }
            }
            shares
        };
        let outbound = shares(outbound, ports.outbound);
        let inbound = shares(inbound, ports.inbound);
        let hbone = shares(hbone, ports.hbone);
        let together = outbound.into_iter().zip(inbound).zip(hbone);
        let taken = together.map(|((outbound, inbound), hbone)| Self { outbound, inbound, hbone });
        let mut taken: Vec<Self> = taken.collect();
        let Some((first, others)) = taken.split_first_mut() else { return Ok(taken) };
        if first.by_use().iter().any(|sockets| sockets.is_empty()) {
            // Other ports than before.
            let own = Self::bind(ports, mark)?;
            for (sockets, own) in [
                (&mut first.outbound, own.outbound),
                (&mut first.inbound, own.inbound),
                (&mut first.hbone, own.hbone),
            ] {
                if sockets.is_empty() {
                    *sockets = own;
                }
            }
        }
        // Where there were fewer workers, several accept from one socket. One of their own would be given connections before
        // this agent takes any.
        for (sockets, of_first) in others.iter_mut().flat_map(|other| {
            let Self { outbound, inbound, hbone } = other;
            [(outbound, &first.outbound), (inbound, &first.inbound), (hbone, &first.hbone)]
        }) {
            if sockets.is_empty() {
                *sockets =
                    of_first.iter().map(std::net::TcpListener::try_clone).collect::<io::Result<_>>()?;
            }
        }
        Ok(taken)
    }

    /// The sockets by what they are for: those that programs are led to, those that callers are, and those of tunnels.
    pub fn by_use(&self) -> [&[std::net::TcpListener]; 3] {
        [&self.outbound, &self.inbound, &self.hbone]
    }

    /// All sockets: the guard holds them too, so that nobody else takes the ports when the agent is gone.
    pub fn sockets(&self) -> impl Iterator<Item = &std::net::TcpListener> {
        self.outbound.iter().chain(&self.inbound).chain(&self.hbone)
    }
}

impl Worker {
    /// A worker. It asks the kernel about the network namespace of the thread that makes it.
    pub fn new(
        index: usize,
        shared: Shared,
        telemetry: Telemetry,
    ) -> Result<Arc<Self>, crate::attribution::LookupError> {
        Ok(Arc::new(Self {
            index,
            attributor: Mutex::new(Attributor::new(Arc::clone(&shared.cgroups))?),
            handshakes: Semaphore::new(hbone::MAX_HANDSHAKES),
            shaking: Shares::default(),
            peers: Shares::default(),
            pool: Pool::new(shared.mark, shared.limits.connect_timeout, shared.trust.clone()),
            upstreams: Upstreams::new(Arc::clone(&shared.kept)),
            copies: Arc::new(Semaphore::new(http::MAX_COPIES)),
            open: OpenConnections::default(),
            accepted: Arc::default(),
            telemetry,
            shared,
        }))
    }

    /// Takes connections until the agent has stopped and every connection has ended.
    pub async fn run(self: Arc<Self>, listeners: Listeners) -> io::Result<()> {
        let mut loops = Vec::new();
        for listener in listeners.outbound {
            let listener = TcpListener::from_std(listener)?;
            loops.push(tokio::spawn(accept::loop_over(Arc::clone(&self), listener, outbound::carry)));
        }
        for listener in listeners.inbound {
            let listener = TcpListener::from_std(listener)?;
            loops.push(tokio::spawn(accept::loop_over(Arc::clone(&self), listener, plaintext::carry)));
        }
        for listener in listeners.hbone {
            let listener = TcpListener::from_std(listener)?;
            loops.push(tokio::spawn(accept::loop_over(Arc::clone(&self), listener, inbound::serve)));
        }
        let all_accept = move || loops.iter().all(|accepting| !accepting.is_finished());
        tokio::spawn(Arc::clone(&self.shared.pulse).answer(self.index, all_accept));
        let mut phase = self.shared.phase.clone();
        let ticking = tokio::spawn(Arc::clone(&self).tick());
        let judging = tokio::spawn(Arc::clone(&self).judge_open_connections());
        // An error means that the agent itself is gone, which is the same.
        let _ = phase.wait_for(|phase| *phase >= Phase::StartingAnew).await;
        let settled = async {
            self.open.until_those_end().await;
            self.shared.settled.add_permits(1);
            std::future::pending::<()>().await;
        };
        tokio::select! {
            biased;
            _ = phase.wait_for(|phase| *phase >= Phase::Draining) => {}
            () = settled => {}
        }
        let is_handed_over = *phase.borrow() == Phase::HandedOver;
        let ended = async {
            // What was accepted at the last moment may not count as open yet, and nobody else has it.
            while is_handed_over && Arc::strong_count(&self.accepted) > 1 {
                tokio::time::sleep(LOOK).await;
            }
            self.open.until_empty().await;
        };
        tokio::select! {
            () = ended => {}
            _ = phase.wait_for(|phase| *phase == Phase::Closing) => {
                self.open.close_all();
                // They end at their next turn; the record of each is written then.
                let _ = tokio::time::timeout(TICK, self.open.until_empty()).await;
            }
        }
        ticking.abort();
        judging.abort();
        self.open.flush();
        Ok(())
    }

    /// Keeps counters current and lets unused tunnels and series go.
    async fn tick(self: Arc<Self>) {
        let mut tunnels_before = 0;
        loop {
            beat::next(TICK).await;
            self.open.flush();
            self.pool.sweep();
            self.upstreams.sweep();
            self.telemetry.sweep();
            self.shared.snapshot.load().rate_limits.sweep(Instant::now());
            let tunnels = i64::try_from(self.pool.tunnels()).unwrap_or(i64::MAX);
            self.telemetry.metrics().tunnels.inc_by(tunnels - tunnels_before);
            tunnels_before = tunnels;
        }
    }

    /// Closes open connections that a changed policy no longer allows.
    async fn judge_open_connections(self: Arc<Self>) {
        let mut changed = self.shared.snapshot_changed.clone();
        while changed.changed().await.is_ok() {
            let snapshot = self.shared.snapshot.load_full();
            self.open.judge(&snapshot);
        }
    }

    /// Whether `destination` is one of the agent's own ports on this host: carrying there would come back here.
    fn is_own(&self, snapshot: &Snapshot, destination: SocketAddr) -> bool {
        let ports = [self.shared.ports.outbound, self.shared.ports.inbound, self.shared.ports.hbone];
        let here = |address: IpAddr| address.is_loopback() || snapshot.host.addresses.contains(&address);
        ports.contains(&destination.port()) && here(destination.ip())
    }

    /// How long connecting to an endpoint of a cluster may take.
    fn connect_timeout(&self, cluster: &Cluster) -> Duration {
        cluster.limits().connect_timeout.unwrap_or(self.shared.limits.connect_timeout)
    }

    /// Counts a connection against the limit for as long as the guard lives. Fails where there is no place for it, or no memory.
    fn enter(&self) -> Result<Entered, ProxyError> {
        let before = self.shared.connections.fetch_add(1, Ordering::Relaxed);
        let entered = Entered(Arc::clone(&self.shared.connections));
        if !self.shared.memory.has_place_beside(before) {
            return Err(ProxyError::Overloaded(MEMORY_MAX));
        }
        let has_place = before < self.shared.limits.max_connections;
        has_place.then_some(entered).ok_or(ProxyError::Overloaded("max_connections"))
    }
}

/// A connection that counts against the limit.
pub struct Entered(Arc<AtomicUsize>);

impl Drop for Entered {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_leave_descriptors_for_the_agent_itself() {
        let check = |descriptors, expected| {
            let limits = Limits { max_connections: 5_000, ..Limits::default() }.within(descriptors);
            assert_eq!(limits.max_connections, expected, "{descriptors}");
        };
        check(u64::MAX, 5_000);
        check(20_000, 5_000);
        check(1024, 280);
        check(384, 42);
        check(0, 1);
        let within = |descriptors| Limits::default().within(descriptors);
        assert_eq!(within(u64::MAX).max_kept, MAX_KEPT);
        for descriptors in [0, 384, 1024, 65_536] {
            let Limits { max_connections, max_kept, .. } = within(descriptors);
            let taken = 2 * max_connections + max_kept;
            assert!(taken <= descriptors.max(2) as usize, "{taken} of {descriptors}");
        }
    }
}
