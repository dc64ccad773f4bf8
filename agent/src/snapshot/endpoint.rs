//! Endpoints: where a service's connections can go, and what this host has learnt of each. What was learnt is kept
//! from one snapshot to the next.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

use baremesh_model::balance::{self, Load};
use baremesh_model::workload::{Labels, Locality};

use super::LocalEndpoint;

/// How long an endpoint is left out after its first failed connect; as often longer as it failed in a row.
const BASE_EJECTION: Duration = Duration::from_secs(5);
/// The longest time that an endpoint is left out.
const MAX_EJECTION: Duration = Duration::from_secs(60);

/// How an endpoint is reached.
#[derive(Debug, Clone)]
pub enum Transport {
    /// Over mutual TLS, by the agent at this address.
    Hbone(SocketAddr),
    /// As it is: no agent is there.
    Plain,
    /// On this host, without a wire.
    Local(Arc<LocalEndpoint>),
}

/// One place where a service's connections can go.
#[derive(Debug)]
pub struct Endpoint {
    /// The workload's address and port.
    pub address: SocketAddr,
    /// How it is reached.
    pub transport: Transport,
    /// The workload's name.
    pub workload: Arc<str>,
    /// The workload's labels.
    pub labels: Labels,
    /// Where it stands.
    pub locality: Locality,
    /// Share of the connections.
    pub weight: u32,
    /// What was learnt of it.
    pub state: Arc<EndpointState>,
}

/// What was learnt of an endpoint. Counts and times only, so that every thread reads and writes it freely.
#[derive(Debug, Default)]
pub struct EndpointState {
    active: AtomicU32,
    failures: AtomicU32,
    /// Milliseconds since the process began, until which the endpoint is left out.
    ejected_until: AtomicU64,
}

static BEGAN: LazyLock<Instant> = LazyLock::new(Instant::now);

fn now_ms() -> u64 {
    u64::try_from(BEGAN.elapsed().as_millis()).unwrap_or(u64::MAX)
}

impl EndpointState {
    /// Connections in flight.
    pub fn active(&self) -> u32 {
        self.active.load(Ordering::Relaxed)
    }

    /// Counts a connection for as long as the guard lives.
    pub fn enter(self: &Arc<Self>) -> InFlight {
        self.active.fetch_add(1, Ordering::Relaxed);
        InFlight(Arc::clone(self))
    }

    /// Whether the endpoint is left out at the moment.
    pub fn is_ejected(&self) -> bool {
        let until = self.ejected_until.load(Ordering::Relaxed);
        until != 0 && now_ms() < until
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
        let ejection = BASE_EJECTION.saturating_mul(failures).min(MAX_EJECTION);
        let ejection = u64::try_from(ejection.as_millis()).unwrap_or(u64::MAX);
        self.ejected_until.store(now_ms().saturating_add(ejection), Ordering::Relaxed);
    }
}

/// One connection in flight at an endpoint.
#[derive(Debug)]
pub struct InFlight(Arc<EndpointState>);

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.active.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Picks the endpoint for a connection, leaving out those in `tried`. Where every other one is ejected, an ejected
/// one is better than none.
pub fn pick<'a>(
    endpoints: &'a [Arc<Endpoint>],
    tried: &[SocketAddr],
    random: u64,
) -> Option<&'a Arc<Endpoint>> {
    let load = |index: usize, ejected_too: bool| {
        let endpoint = &endpoints[index];
        let out = tried.contains(&endpoint.address) || (!ejected_too && endpoint.state.is_ejected());
        Load { active: endpoint.state.active(), weight: if out { 0 } else { endpoint.weight } }
    };
    balance::pick(endpoints.len(), random, |index| load(index, false))
        .or_else(|| balance::pick(endpoints.len(), random, |index| load(index, true)))
        .map(|index| &endpoints[index])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn endpoint(address: &str) -> Arc<Endpoint> {
        Arc::new(Endpoint {
            address: address.parse().expect("an address"),
            transport: Transport::Plain,
            workload: "w".into(),
            labels: Labels::new(),
            locality: Locality::default(),
            weight: 1,
            state: Arc::default(),
        })
    }

    #[test]
    fn leaves_out_what_failed_until_nothing_else_is_left() {
        let endpoints = [endpoint("10.0.0.1:1"), endpoint("10.0.0.2:1")];
        endpoints[0].state.failed();
        for random in 0..50 {
            assert_eq!(pick(&endpoints, &[], random).expect("one").address, endpoints[1].address);
        }
        let tried = [endpoints[1].address];
        assert_eq!(pick(&endpoints, &tried, 1).expect("one").address, endpoints[0].address);
        assert!(pick(&endpoints, &[endpoints[0].address, endpoints[1].address], 1).is_none());
        endpoints[0].state.succeeded();
        assert!(!endpoints[0].state.is_ejected());
    }

    #[test]
    fn counts_what_is_in_flight() {
        let state = Arc::new(EndpointState::default());
        let one = state.enter();
        assert_eq!(state.active(), 1);
        drop(one);
        assert_eq!(state.active(), 0);
    }
}
