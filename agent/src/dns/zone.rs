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
    /// The mesh is the authority for this name, and it does not exist.
    NoSuchName,
    /// None of the mesh's business: asked upstream, unless the name is in the mesh's domain.
    NotOurs,
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
