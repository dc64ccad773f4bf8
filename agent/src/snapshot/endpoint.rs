//! Endpoints: where a service's connections can go, and what this host has learnt of each. What was learnt is kept
//! from one snapshot to the next.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

use baremesh_model::health::Health;
use baremesh_model::name::Label;
use baremesh_model::network::Network;
use baremesh_model::outlier::{Cause, Ejections, Outcome, OutlierDetection, Streaks};
use baremesh_model::workload::{Labels, Locality, Tunnel};

use super::LocalEndpoint;

/// How long an endpoint is left out after its first failed connect; as often longer as it failed in a row.
const BASE_EJECTION: Duration = Duration::from_secs(5);
/// The longest time that an endpoint is left out.
const MAX_EJECTION: Duration = Duration::from_secs(60);

/// How an endpoint is reached.
#[derive(Debug, Clone)]
pub enum Transport {
    /// Over mutual TLS, by this agent.
    Hbone(Agent),
    /// As it is: no agent is there.
    Plain,
    /// On this host, without a wire.
    Local(Arc<LocalEndpoint>),
}

impl Transport {
    /// The word for it, in reports.
    pub fn word(&self) -> &'static str {
        match self {
            Self::Hbone(_) => Tunnel::Hbone.word(),
            Self::Plain => Tunnel::Plain.word(),
            Self::Local(_) => "local",
        }
    }
}

/// The agent of an endpoint, and the way to it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Agent {
    /// Where it takes tunnels, in its own network.
    pub address: SocketAddr,
    /// The network, where it is another one than this host's: its gateways lead there.
    pub beyond: Option<Arc<Network>>,
}

impl Agent {
    /// One that this host reaches by itself.
    pub fn direct(address: SocketAddr) -> Self {
        Self { address, beyond: None }
    }
}

/// Who says that an endpoint is one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// The registry, or the caller by dialling it.
    Given,
    /// DNS, for a name: whoever answers for that may name any address.
    Dns,
}

/// One place where a service's connections can go.
#[derive(Debug, Clone)]
pub struct Endpoint {
    /// The workload's address and port.
    pub address: SocketAddr,
    /// How it is reached.
    pub transport: Transport,
    /// Who says so.
    pub origin: Origin,
    /// The workload's name.
    pub workload: Arc<str>,
    /// The workload's labels.
    pub labels: Labels,
    /// Where it stands.
    pub locality: Locality,
    /// Share of the connections.
    pub weight: u32,
    /// What its host's checks say of it.
    pub health: Health,
    /// What was learnt of it.
    pub state: Arc<EndpointState>,
}

impl Endpoint {
    /// The network that it is in, where that is another one than this host's.
    pub fn network(&self) -> Option<&Label> {
        match &self.transport {
            Transport::Hbone(agent) => agent.beyond.as_ref().map(|network| &network.name),
            Transport::Plain | Transport::Local(_) => None,
        }
    }

    /// What tells it from the others of its service: one address is two hosts in two networks.
    pub fn place(&self) -> (SocketAddr, Option<&Label>) {
        (self.address, self.network())
    }
}

/// What was learnt of an endpoint. Counts and times only, so that every thread reads and writes it freely.
#[derive(Debug)]
pub struct EndpointState {
    /// Shared by all clusters that the endpoint is in.
    load: Arc<SharedLoad>,
    /// Failures in a row: of connects, or packed `Streaks` under outlier detection.
    failures: AtomicU64,
    /// Ejections that count towards the next one's length.
    ejections: AtomicU32,
    /// Milliseconds since the process began, until which the endpoint is left out.
    ejected_until: AtomicU64,
}

/// What an endpoint has to do, through whichever cluster.
#[derive(Debug)]
struct SharedLoad {
    active: AtomicU32,
    /// Milliseconds since the process began, at which it was first seen.
    known_since: u64,
}

static BEGAN: LazyLock<Instant> = LazyLock::new(Instant::now);

/// Milliseconds since the process began.
pub(super) fn milliseconds(now: Instant) -> u64 {
    u64::try_from(now.saturating_duration_since(*BEGAN).as_millis()).unwrap_or(u64::MAX)
}

/// Nanoseconds since the process began.
pub(super) fn nanoseconds(now: Instant) -> u64 {
    u64::try_from(now.saturating_duration_since(*BEGAN).as_nanos()).unwrap_or(u64::MAX)
}

impl Default for EndpointState {
    fn default() -> Self {
        let load = SharedLoad { active: AtomicU32::new(0), known_since: milliseconds(Instant::now()) };
        Self::with_load(Arc::new(load))
    }
}

impl EndpointState {
    fn with_load(load: Arc<SharedLoad>) -> Self {
        let (failures, ejected_until) = (AtomicU64::new(0), AtomicU64::new(0));
        Self { load, failures, ejections: AtomicU32::new(0), ejected_until }
    }

    /// The state of the same endpoint in a cluster with rules of its own on who is left out.
    pub(super) fn beside(&self) -> Self {
        Self::with_load(Arc::clone(&self.load))
    }

    /// Connections or requests in flight.
    pub fn active(&self) -> u32 {
        self.load.active.load(Ordering::Relaxed)
    }

    /// Counts a connection or a request for as long as the guard lives.
    pub fn enter(&self) -> InFlight {
        self.load.active.fetch_add(1, Ordering::Relaxed);
        InFlight(Arc::clone(&self.load))
    }

    /// How long it has been known.
    pub(super) fn age(&self, now: u64) -> Duration {
        Duration::from_millis(now.saturating_sub(self.load.known_since))
    }

    /// Whether the endpoint is left out at the moment.
    pub fn is_ejected(&self) -> bool {
        self.is_ejected_at(milliseconds(Instant::now()))
    }

    pub(super) fn is_ejected_at(&self, now: u64) -> bool {
        let until = self.ejected_until.load(Ordering::Relaxed);
        until != 0 && now < until
    }

    /// For how much longer the endpoint is left out; none where it is not.
    pub(super) fn ejected_for(&self, now: u64) -> Option<Duration> {
        let until = self.ejected_until.load(Ordering::Relaxed);
        (until > now).then(|| Duration::from_millis(until - now))
    }

    /// A connect succeeded.
    pub fn succeeded(&self) {
        // Written only where it changes something: the common case shares the cache line.
        if self.failures.load(Ordering::Relaxed) != 0 {
            self.failures.store(0, Ordering::Relaxed);
            self.ejected_until.store(0, Ordering::Relaxed);
        }
    }

    /// A connect failed: the endpoint is left out for a while.
    pub fn failed(&self) {
        let failures = self.failures.fetch_add(1, Ordering::Relaxed).saturating_add(1);
        let failures = u32::try_from(failures).unwrap_or(u32::MAX);
        let ejection = BASE_EJECTION.saturating_mul(failures).min(MAX_EJECTION);
        let ejection = u64::try_from(ejection.as_millis()).unwrap_or(u64::MAX);
        let now = milliseconds(Instant::now());
        self.ejected_until.store(now.saturating_add(ejection), Ordering::Relaxed);
    }

    /// Counts an outcome under outlier detection; says whether it was one too many.
    pub(super) fn count(&self, outcome: Outcome, outlier: &OutlierDetection) -> Option<Cause> {
        let mut before = self.failures.load(Ordering::Relaxed);
        loop {
            let (after, cause) = Streaks::unpack(before).after(outcome, outlier);
            if after.pack() == before {
                // A success after a success, mostly: nothing is written.
                return cause;
            }
            match self.failures.compare_exchange_weak(
                before,
                after.pack(),
                Ordering::Relaxed,
                Ordering::Relaxed,
            ) {
                Ok(_) => return cause,
                Err(now) => before = now,
            }
        }
    }

    /// Leaves the endpoint out once more.
    pub(super) fn eject(&self, outlier: &OutlierDetection, now: u64) -> Ejections {
        let before = Ejections {
            count: self.ejections.load(Ordering::Relaxed),
            until: Duration::from_millis(self.ejected_until.load(Ordering::Relaxed)),
        };
        let after = before.another(outlier, Duration::from_millis(now));
        // It comes back with a clean record: a streak of another kind does not cut its return short.
        self.failures.store(0, Ordering::Relaxed);
        self.ejections.store(after.count, Ordering::Relaxed);
        let until = u64::try_from(after.until.as_millis()).unwrap_or(u64::MAX);
        self.ejected_until.store(until, Ordering::Relaxed);
        after
    }
}

/// One connection or request in flight at an endpoint.
#[derive(Debug)]
pub struct InFlight(Arc<SharedLoad>);

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.active.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_what_is_in_flight() {
        let state = EndpointState::default();
        let (one, beside) = (state.enter(), state.beside());
        assert_eq!((state.active(), beside.active()), (1, 1));
        drop(one);
        assert_eq!(state.active(), 0);
    }

    #[test]
    fn a_failed_connect_counts_until_one_succeeds() {
        let state = EndpointState::default();
        state.failed();
        assert!(state.is_ejected() && !state.beside().is_ejected());
        state.succeeded();
        assert!(!state.is_ejected());
    }
}
