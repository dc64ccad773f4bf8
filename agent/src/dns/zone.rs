//! Where the names come from: two closures over the mesh's snapshot, so that this module knows neither services nor
//! how they are kept.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

/// What the mesh knows about a name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Found {
    /// A service, with the addresses that clients are to connect to. Both lists empty: the name exists (a
    /// namespace, say, with services below it) and has no address.
    Service {
        /// For A questions.
        v4: Vec<Ipv4Addr>,
        /// For AAAA questions.
        v6: Vec<Ipv6Addr>,
    },
    /// `_NAME._tcp` of a service: where those of its ports are that have the name, for SRV questions (RFC 2782).
    Ports(Ports),
    /// The mesh is the authority for this name, and it does not exist.
    NoSuchName,
    /// None of the mesh's business: asked upstream, unless the name is in the mesh's domain.
    NotOurs,
}

/// What an SRV question about a service's port is answered with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ports {
    /// The service's full name, without the final dot.
    pub host: String,
    /// Its ports of that name, at least one.
    pub ports: Vec<u16>,
    /// Its addresses, which the answer brings along.
    pub v4: Vec<Ipv4Addr>,
    /// The same of IPv6.
    pub v6: Vec<Ipv6Addr>,
}

type Find = dyn Fn(&str) -> Found + Send + Sync;
type Reverse = dyn Fn(IpAddr) -> Option<String> + Send + Sync;

/// The mesh's names, forwards and backwards.
#[derive(Clone)]
pub struct Zone {
    find: Arc<Find>,
    reverse: Arc<Reverse>,
}

impl Zone {
    /// `find` is given a name in lower case without the final dot; bytes that are not letters, digits, `-` or `_`
    /// are written `\DDD`. `reverse` is given an address in the virtual ranges, and names its service in full.
    pub fn new(
        find: impl Fn(&str) -> Found + Send + Sync + 'static,
        reverse: impl Fn(IpAddr) -> Option<String> + Send + Sync + 'static,
    ) -> Self {
        Self { find: Arc::new(find), reverse: Arc::new(reverse) }
    }

    pub(super) fn find(&self, name: &str) -> Found {
        (self.find)(name)
    }

    pub(super) fn reverse(&self, address: IpAddr) -> Option<String> {
        (self.reverse)(address)
    }
}

impl fmt::Debug for Zone {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Zone")
    }
}
