//! Which endpoint takes the next connection or request. Whatever has to be computed of all endpoints is in a table that
//! is built when they change; a choice then costs a few look-ups and no memory. Randomness, turns and what is known of
//! each endpoint at the moment are arguments.

use crate::destination_rule::{Algorithm, ConsistentHash, HashTable};

/// From a request to the key that is hashed.
pub mod affinity;
/// A hash that is the same on every host and in every version.
pub mod hash;
/// The less loaded of two.
pub mod least_request;
/// Groups of endpoints by how near they are, and which of them is next.
pub mod locality;
/// Maglev's table.
pub mod maglev;
/// A ring of points.
pub mod ring;
/// One after the other.
pub mod round_robin;
/// The growing share of new endpoints.
pub mod warmup;
/// Any, by weight.
pub mod weighted;

/// What is known of one endpoint at this moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Load {
    /// Connections or requests in flight.
    pub active: u32,
    /// Share relative to the others; 0 takes nothing.
    pub weight: u32,
    /// How much of its share it takes while it warms up, in thousandths.
    pub warmth: u32,
}

/// All of a share, in thousandths.
pub const FULL: u32 = 1000;

/// An endpoint as tables know it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Member {
    /// A hash of what stays the same about it: its address.
    pub id: u64,
    /// Share relative to the others.
    pub weight: u32,
}

/// What one choice is made by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Draw {
    /// A random number.
    pub random: u64,
    /// How many choices were made before.
    pub turn: u64,
    /// The hash of the request's key, where it has one.
    pub hash: Option<u64>,
}

/// A way of choosing, with its table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Balancer {
    /// The less loaded of two.
    LeastRequest(least_request::LeastRequest),
    /// One after the other.
    RoundRobin(round_robin::Schedule),
    /// Any.
    Random(weighted::Shares),
    /// The same for the same key, by a ring.
    Ring(ring::Ring),
    /// The same for the same key, by Maglev's table.
    Maglev(maglev::Maglev),
}

impl Balancer {
    /// The table of `algorithm` for these endpoints.
    pub fn new(algorithm: &Algorithm, members: &[Member]) -> Self {
        match algorithm {
            Algorithm::LeastRequest | Algorithm::Passthrough => {
                Self::LeastRequest(least_request::LeastRequest::new(members))
            }
            Algorithm::RoundRobin => Self::RoundRobin(round_robin::Schedule::new(members)),
            Algorithm::Random => Self::Random(weighted::Shares::new(members)),
            Algorithm::ConsistentHash(ConsistentHash { table: HashTable::Ring { minimum_size }, .. }) => {
                Self::Ring(ring::Ring::new(members, *minimum_size))
            }
            Algorithm::ConsistentHash(ConsistentHash { table: HashTable::Maglev { size }, .. }) => {
                Self::Maglev(maglev::Maglev::new(members, *size))
            }
        }
    }

    /// The index of the endpoint that is next; `None` where none has weight. A key without a hash is a random one.
    pub fn pick(&self, draw: Draw, load: impl Fn(usize) -> Load) -> Option<usize> {
        let usable = |index| load(index).weight > 0;
        match self {
            Self::LeastRequest(draws) => draws.pick(draw.random, load),
            Self::RoundRobin(schedule) => schedule.pick(draw, load),
            Self::Random(shares) => shares.pick(draw.random, usable),
            Self::Ring(ring) => ring.pick(draw.hash.unwrap_or(draw.random), usable),
            Self::Maglev(table) => table.pick(draw.hash.unwrap_or(draw.random), usable),
        }
    }
}

#[cfg(test)]
mod tests;
