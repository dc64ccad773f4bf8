//! Who came to which service of this host, within the last hour: what reports and simulations of policies go by. Counted
//! where policies are asked, and bounded.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use baremesh_model::flow::{Flow, Way};
use baremesh_model::identity::Identity;

use crate::snapshot::LocalEndpoint;

/// How long a flow is remembered after its last connection.
pub const KEPT: Duration = Duration::from_secs(3600);
/// Flows that are remembered. Beyond it a new one is counted, and not kept.
pub const MAX_FLOWS: usize = 4096;
/// Parts of the table with a lock each: connections of several threads seldom meet.
const SHARDS: usize = 8;

/// What tells one flow from another.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct FlowKey {
    destination: SocketAddr,
    source: Option<Identity>,
    source_ip: IpAddr,
    way: Way,
}

/// A flow with its connections. Those that speak HTTP within the host are asked for each request, and so are counted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    /// Who came to what.
    pub flow: Flow,
    /// How often.
    pub count: u64,
    /// When last.
    pub last: Instant,
}

/// The flows of this host.
#[derive(Debug, Default)]
pub struct Flows {
    shards: [Mutex<HashMap<FlowKey, Seen>>; SHARDS],
    hasher: RandomState,
    missed: AtomicU64,
}

impl Flows {
    /// Notes that a connection from `source` came to a service of this host, whatever policies say of it.
    pub fn note(
        &self,
        local: &LocalEndpoint,
        source: Option<&Identity>,
        source_ip: IpAddr,
        (way, now): (Way, Instant),
    ) {
        let key = FlowKey { destination: local.advertised, source: source.cloned(), source_ip, way };
        let shard = self.hasher.hash_one(&key) as usize % SHARDS;
        let mut flows = self.shards[shard].lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(seen) = flows.get_mut(&key).filter(|seen| seen.flow.service == local.service) {
            seen.count += 1;
            seen.last = now;
            return;
        }
        if flows.len() >= MAX_FLOWS / SHARDS {
            flows.retain(|_, seen| now.saturating_duration_since(seen.last) < KEPT);
        }
        if flows.len() >= MAX_FLOWS / SHARDS {
            self.missed.fetch_add(1, Ordering::Relaxed);
            return;
        }
        let flow = Flow {
            service: local.service.clone(),
            identity: local.identity.clone(),
            labels: local.labels.clone(),
            destination: local.advertised,
            source: key.source.clone(),
            source_ip,
            way,
        };
        flows.insert(key, Seen { flow, count: 1, last: now });
    }

    /// The flows that had a connection within the last hour, and since a moment where one is given.
    pub fn since(&self, since: Option<Instant>, now: Instant) -> Vec<Seen> {
        let recent = |seen: &&Seen| {
            since.is_none_or(|since| seen.last >= since) && now.saturating_duration_since(seen.last) < KEPT
        };
        let of_shard = |shard: &Mutex<HashMap<FlowKey, Seen>>| {
            let flows = shard.lock().unwrap_or_else(PoisonError::into_inner);
            flows.values().filter(recent).cloned().collect::<Vec<_>>()
        };
        self.shards.iter().flat_map(of_shard).collect()
    }

    /// Connections whose flows were not kept because the table was full.
    pub fn missed(&self) -> u64 {
        self.missed.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;
    use std::sync::Arc;

    use super::*;
    use crate::snapshot::Snapshot;
    use crate::snapshot::tests::{host, mesh, registration};

    fn local_endpoint() -> Arc<LocalEndpoint> {
        let orders = registration("name = \"orders\"\nports = [{ port = 7000 }]\n");
        let snapshot = Snapshot::build(&mesh(""), &[orders], &host(), 15008, None).expect("a snapshot");
        let advertised = "10.0.0.1:7000".parse().expect("an address");
        Arc::clone(snapshot.advertised(advertised).expect("a service of this host"))
    }

    #[test]
    fn counts_by_who_came_and_forgets_after_an_hour() {
        let (flows, local) = (Flows::default(), local_endpoint());
        let (start, minute) = (Instant::now(), Duration::from_secs(60));
        let ip = IpAddr::from([10, 0, 0, 9]);
        for _ in 0..3 {
            flows.note(&local, Some(&local.identity), ip, (Way::MutualTls, start));
        }
        flows.note(&local, None, ip, (Way::Plaintext, start + minute));
        let mut all = flows.since(None, start + minute);
        all.sort_by_key(|seen| seen.count);
        assert_eq!(all.iter().map(|seen| seen.count).collect::<Vec<_>>(), [1, 3]);
        assert_eq!((all[0].flow.way, all[0].flow.source.as_ref()), (Way::Plaintext, None));
        assert_eq!(flows.since(Some(start + minute), start + minute).len(), 1, "what came since");
        assert_eq!(flows.since(None, start + KEPT).len(), 1, "an hour after the first");
        assert!(flows.since(None, start + KEPT + minute).is_empty());
    }

    #[test]
    fn callers_without_end_take_no_more_room_than_there_is() {
        let (flows, local) = (Flows::default(), local_endpoint());
        let start = Instant::now();
        let from = |n: u32| IpAddr::from(Ipv4Addr::from(n));
        for n in 0..2 * MAX_FLOWS as u32 {
            flows.note(&local, None, from(n), (Way::Plaintext, start));
        }
        assert!(flows.since(None, start).len() <= MAX_FLOWS);
        assert!(flows.missed() >= MAX_FLOWS as u64, "{}", flows.missed());
        // An hour later there is room again.
        let later = start + KEPT;
        flows.note(&local, None, from(u32::MAX), (Way::Plaintext, later));
        assert_eq!(flows.since(None, later).len(), 1);
    }
}
