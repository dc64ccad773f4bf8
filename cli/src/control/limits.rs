//! How much of everything there may be, so that neither strangers nor a host gone wrong can take the server from the
//! others.

use std::collections::HashMap;
use std::hash::Hash;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use baremesh_model::name::Label;
use tokio::sync::Semaphore;

/// Connections that wait to be accepted.
pub(super) const BACKLOG: i32 = 1024;
/// Connections of hosts that showed their node credential.
const MAX_MEMBERS: usize = 32_768;
/// Connections of one host: its state, its certificates, and one of each that the network has lost.
const MAX_CONNECTIONS_OF_HOST: usize = 16;
/// Connections of everybody else: in their handshake, joining, or an operator's.
const MAX_STRANGERS: usize = 512;
/// Of those, the ones of one network: whoever holds all that it may leaves room for the others. Hosts behind one gateway
/// that come back all at once wait for each other's handshakes.
const MAX_STRANGERS_OF_NETWORK: usize = 128;
/// How long a TLS handshake may take.
pub(super) const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a connection without a node credential may last.
pub(super) const STRANGER_LIFETIME: Duration = Duration::from_secs(60);
/// How long a connection without a request is kept.
pub(super) const IDLE_TIMEOUT: Duration = Duration::from_secs(60);
/// Requests at once on one connection.
pub(super) const MAX_STREAMS: u32 = 8;
/// Bytes that a request's header may have.
pub(super) const MAX_HEADER: u32 = 16 * 1024;
/// Bytes of one stream, and of one connection, that may be on their way to us.
pub(super) const STREAM_WINDOW: u32 = 256 * 1024;
/// Bytes of one stream that may wait to be sent.
pub(super) const SEND_BUFFER: usize = 256 * 1024;
/// How long a request's body may take.
pub(super) const BODY_TIMEOUT: Duration = Duration::from_secs(30);
/// How often open connections are checked against the ledger, and for the end of their certificate.
pub(super) const RECHECK: Duration = Duration::from_secs(30);
/// Calls that are worked on at once: they wait for one disk.
const MAX_CALLS: usize = 32;
/// Certificate calls of one host in a minute; an agent makes a few an hour.
const ISSUING_A_MINUTE: u32 = 60;
/// Times in a minute that one host may begin to follow the state; an agent pauses between attempts.
const FOLLOWING_A_MINUTE: u32 = 60;
/// Times in a minute that one host may ask about its addresses; an agent asks once for each when it connects.
const SHOWING_A_MINUTE: u32 = 240;
/// Calls in a minute in which one host may tell of its flows; a full table is told in 64.
const TELLING_A_MINUTE: u32 = 300;
/// Times in a minute that one host may ask whether the server is there: `doctor` asks twice.
const REACHING_A_MINUTE: u32 = 60;
/// Joins from one address in a minute: a rack of new hosts behind one gateway is welcome, a guesser is not.
const JOINS_A_MINUTE: u32 = 120;
/// Orders of one operator in a minute.
const ORDERS_A_MINUTE: u32 = 300;
/// Orders from afar that are worked on at once: each may hold a file of the largest size.
const MAX_ORDERS: usize = 8;
/// Of those, the ones of one operator: whoever sends slowly leaves room for the others.
const MAX_ORDERS_OF_OPERATOR: usize = 2;
/// Hosts or addresses that rates are remembered of.
const MAX_RATES: usize = 32_768;

/// The limits, as they are used up.
pub(super) struct Limits {
    pub(super) members: Arc<Semaphore>,
    pub(super) strangers: Arc<Semaphore>,
    pub(super) calls: Semaphore,
    pub(super) orders: Semaphore,
    pub(super) ordering: Rates<Label>,
    operators: Places<Label>,
    pub(super) issuing: Rates<Label>,
    pub(super) following: Rates<Label>,
    pub(super) showing: Rates<Label>,
    pub(super) telling: Rates<Label>,
    pub(super) reaching: Rates<Label>,
    pub(super) joining: Rates<IpAddr>,
    hosts: Places<Label>,
    networks: Places<IpAddr>,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            members: Arc::new(Semaphore::new(MAX_MEMBERS)),
            strangers: Arc::new(Semaphore::new(MAX_STRANGERS)),
            calls: Semaphore::new(MAX_CALLS),
            orders: Semaphore::new(MAX_ORDERS),
            ordering: Rates::new(ORDERS_A_MINUTE),
            operators: Places::new(MAX_ORDERS_OF_OPERATOR),
            issuing: Rates::new(ISSUING_A_MINUTE),
            following: Rates::new(FOLLOWING_A_MINUTE),
            showing: Rates::new(SHOWING_A_MINUTE),
            telling: Rates::new(TELLING_A_MINUTE),
            reaching: Rates::new(REACHING_A_MINUTE),
            joining: Rates::new(JOINS_A_MINUTE),
            hosts: Places::new(MAX_CONNECTIONS_OF_HOST),
            networks: Places::new(MAX_STRANGERS_OF_NETWORK),
        }
    }
}

impl Limits {
    /// A place for one more connection of a host, if it has one left.
    pub(super) fn place(&self, host: &Label) -> Option<Place<Label>> {
        self.hosts.take(host.clone())
    }

    /// A place for one more order of an operator, if it has one left.
    pub(super) fn order_place(&self, operator: &Label) -> Option<Place<Label>> {
        self.operators.take(operator.clone())
    }

    /// A place for one more connection of somebody unknown, if the network has one left.
    pub(super) fn strange_place(&self, address: IpAddr) -> Option<Place<IpAddr>> {
        self.networks.take(network_of(address))
    }
}

/// So many places for each of many.
struct Places<K> {
    most: usize,
    taken: Arc<Mutex<HashMap<K, usize>>>,
}

impl<K: Eq + Hash + Clone> Places<K> {
    fn new(most: usize) -> Self {
        Self { most, taken: Arc::default() }
    }

    fn take(&self, key: K) -> Option<Place<K>> {
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        let count = taken.entry(key.clone()).or_default();
        if *count >= self.most {
            return None;
        }
        *count += 1;
        Some(Place { key, taken: self.taken.clone() })
    }
}

/// A place, given back when it is dropped.
pub(super) struct Place<K: Eq + Hash> {
    key: K,
    taken: Arc<Mutex<HashMap<K, usize>>>,
}

impl<K: Eq + Hash> Drop for Place<K> {
    fn drop(&mut self) {
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = taken.get_mut(&self.key) {
            *count -= 1;
            if *count == 0 {
                taken.remove(&self.key);
            }
        }
    }
}

/// What stands for a caller whose address is its own choice within a network: the IPv6 network of 64 bits.
pub(super) fn network_of(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) => {
            let [a, b, c, d, ..] = v6.segments();
            Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0).into()
        }
        v4 => v4,
    }
}

/// How often each of many may do something: a minute's worth at once, then steadily.
pub(super) struct Rates<K> {
    a_minute: u32,
    /// When each would have used nothing, were it to stop now.
    settled: Mutex<HashMap<K, Instant>>,
}

impl<K: Eq + Hash> Rates<K> {
    fn new(a_minute: u32) -> Self {
        Self { a_minute, settled: Mutex::default() }
    }

    /// Whether `key` may do it once more now.
    pub(super) fn allow(&self, key: K, now: Instant) -> bool {
        let minute = Duration::from_secs(60);
        let mut settled = self.settled.lock().unwrap_or_else(PoisonError::into_inner);
        if settled.len() >= MAX_RATES {
            settled.retain(|_, at| *at > now);
            if settled.len() >= MAX_RATES && !settled.contains_key(&key) {
                return false;
            }
        }
        let from = settled.get(&key).copied().unwrap_or(now).max(now);
        let next = from + minute / self.a_minute;
        let allowed = next <= now + minute;
        if allowed {
            settled.insert(key, next);
        }
        allowed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_minute_s_worth_at_once_then_steadily() {
        let (rates, start) = (Rates::new(60), Instant::now());
        let at = |seconds| start + Duration::from_secs(seconds);
        let allowed = (0..100).filter(|_| rates.allow("a", start)).count();
        assert_eq!(allowed, 60);
        assert!(rates.allow("b", start), "another is not kept from it");
        assert!(rates.allow("a", at(1)));
        assert!(!rates.allow("a", at(1)));
        assert_eq!((0..100).filter(|_| rates.allow("a", at(120))).count(), 60);
    }

    #[test]
    fn remembers_no_more_than_it_may() {
        let (rates, start) = (Rates::new(60), Instant::now());
        for key in 0..MAX_RATES {
            assert!(rates.allow(key, start));
        }
        assert!(!rates.allow(MAX_RATES, start), "full");
        assert!(rates.allow(0, start), "who is known goes on");
        assert!(rates.allow(MAX_RATES, start + Duration::from_secs(60)), "settled ones make room");
        assert!(rates.settled.lock().expect("a lock").len() < MAX_RATES);
    }

    #[test]
    fn a_host_has_so_many_places() {
        let limits = Limits::default();
        let host = Label::new("h1").expect("a label");
        let mut places: Vec<_> = (0..MAX_CONNECTIONS_OF_HOST).map(|_| limits.place(&host)).collect();
        assert!(places.iter().all(Option::is_some));
        assert!(limits.place(&host).is_none());
        places.pop();
        assert!(limits.place(&host).is_some());
        drop(places);
        assert!(limits.hosts.taken.lock().expect("a lock").is_empty());
    }

    #[test]
    fn one_operator_leaves_room_for_the_orders_of_others() {
        let limits = Limits::default();
        let name = |text| Label::new(text).expect("a label");
        let held: Vec<_> = (0..MAX_ORDERS).map_while(|_| limits.order_place(&name("ann"))).collect();
        assert!(held.len() < MAX_ORDERS);
        assert!(limits.order_place(&name("ann")).is_none() && limits.order_place(&name("bob")).is_some());
        drop(held);
        assert!(limits.order_place(&name("ann")).is_some());
    }

    #[test]
    fn one_network_of_strangers_leaves_room_for_others() {
        let limits = Limits::default();
        let from = |n: u8| IpAddr::from([10, 0, 0, n]);
        let held: Vec<_> = (0..MAX_STRANGERS_OF_NETWORK).map(|_| limits.strange_place(from(1))).collect();
        assert!(held.iter().all(Option::is_some) && held.len() < MAX_STRANGERS);
        assert!(limits.strange_place(from(1)).is_none());
        assert!(limits.strange_place(from(2)).is_some());
        drop(held);
        assert!(limits.strange_place(from(1)).is_some());
    }

    #[test]
    fn one_ipv6_network_is_one_caller() {
        let network = |text: &str| network_of(text.parse().expect("an address")).to_string();
        assert_eq!(network("2001:db8:1:2:3::4"), "2001:db8:1:2::");
        assert_eq!(network("::ffff:10.0.0.1"), "10.0.0.1");
        assert_eq!(network("10.0.0.1"), "10.0.0.1");
    }
}
