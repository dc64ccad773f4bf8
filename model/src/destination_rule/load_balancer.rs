//! How an endpoint is chosen, as a DestinationRule says it. The choice itself is `balance`'s.

use std::sync::Arc;
use std::time::Duration;

use super::locality::LocalitySetting;
use crate::decimal::Decimal;

/// Choosing an endpoint.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct LoadBalancer {
    /// Among endpoints that are as near.
    pub algorithm: Algorithm,
    /// New endpoints take their share little by little.
    pub warmup: Option<Warmup>,
    /// Near endpoints before far ones, where it differs from the default.
    pub locality: Option<LocalitySetting>,
}

/// Among endpoints that are as near.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Algorithm {
    /// The less loaded of two drawn at random, by weight/(active+1).
    #[default]
    LeastRequest,
    /// One after the other, by weight.
    RoundRobin,
    /// Any, by weight.
    Random,
    /// The address that was dialled. Behind a virtual address there is none, and it is as `LeastRequest`.
    Passthrough,
    /// The same one for the same key.
    ConsistentHash(ConsistentHash),
}

/// The same endpoint for the same key, for as long as it is there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConsistentHash {
    /// What is hashed.
    pub key: HashKey,
    /// By which table.
    pub table: HashTable,
}

/// What is hashed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HashKey {
    /// A request header's value; the name is lower case.
    Header(Arc<str>),
    /// A cookie's value.
    Cookie(Cookie),
    /// The address that the connection came from.
    SourceIp,
    /// A query parameter's value.
    QueryParameter(Arc<str>),
}

/// A cookie that is hashed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cookie {
    /// Its name.
    pub name: Arc<str>,
    /// Its path, where it is generated.
    pub path: Option<Arc<str>>,
    /// How long a generated one lives; zero for the session. Without it, none is generated.
    pub ttl: Option<Duration>,
    /// Further attributes of a generated one, such as `SameSite` with `Strict`.
    pub attributes: Vec<(Arc<str>, Option<Arc<str>>)>,
}

/// The table behind a consistent hash.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HashTable {
    /// Points on a ring; each endpoint has many.
    Ring {
        /// The fewest points, 1 to `MAX_RING_SIZE`.
        minimum_size: u32,
    },
    /// Maglev's look-up table.
    Maglev {
        /// A prime, at most `MAX_MAGLEV_SIZE`.
        size: u32,
    },
}

impl HashTable {
    /// The fewest points of a ring, unless set.
    pub const DEFAULT_RING_SIZE: u32 = 1024;
    /// The most points of a ring, as Envoy has it.
    pub const MAX_RING_SIZE: u32 = 8 * 1024 * 1024;
    /// The size of Maglev's table, unless set.
    pub const DEFAULT_MAGLEV_SIZE: u32 = 65_537;
    /// The largest table of Maglev's, as Envoy has it.
    pub const MAX_MAGLEV_SIZE: u32 = 5_000_011;
}

impl Default for HashTable {
    fn default() -> Self {
        Self::Ring { minimum_size: Self::DEFAULT_RING_SIZE }
    }
}

/// New endpoints take their share little by little: after `t` of `duration`, `(t / duration) ^ (1 / aggression)` of it,
/// and at least `minimum_percent`. Only for `LeastRequest` and `RoundRobin`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Warmup {
    /// How long it takes; more than zero.
    pub duration: Duration,
    /// The share at the beginning, 0 to 100 per cent.
    pub minimum_percent: Decimal,
    /// 1 grows evenly, more grows sooner.
    pub aggression: Decimal,
}

impl Warmup {
    /// The share at the beginning, unless set.
    pub const DEFAULT_MINIMUM_PERCENT: Decimal = Decimal::whole(10);
    /// Even growth, unless set.
    pub const DEFAULT_AGGRESSION: Decimal = Decimal::whole(1);
}
