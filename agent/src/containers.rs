//! The containers of this host, as their engines tell of them. The agent speaks with no engine: whoever may is root on the
//! host. A process of its own follows an engine and tells the agent, over the administration socket, what registrations
//! by label need: which containers run, with which labels, at which addresses of which bridges.
//!
//! What is told holds for as long as somebody stands by it: with the end of that connection nothing of it is certain.

/// What engines answer, read.
pub mod engine;
/// What runs, with the labels that containers were given themselves.
mod listing;
/// Following one engine.
pub mod follow;
/// What the follower and the agent say to each other.
pub mod wire;
/// The agent's side: what was told, and whether it still holds.
pub mod heard;

use std::collections::{BTreeMap, HashSet};
use std::net::IpAddr;

use crate::registration::Container;

/// The most containers of one engine.
pub const MAX_CONTAINERS: usize = 4096;
/// The most labels of a container that are kept, in the order of their keys.
pub const MAX_LABELS: usize = 256;
/// The longest label that is kept, key and value together, in bytes; a registration names none that is longer.
pub const MAX_LABEL: usize = 1024;
/// The most addresses of a container, those of all its networks together.
pub const MAX_ADDRESSES: usize = 64;
/// The longest ID of a container and the longest name, in bytes.
pub const MAX_NAME: usize = 256;
/// The most engines of a host.
pub const MAX_ENGINES: usize = 8;

/// A container that runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Running {
    /// The engine's own ID for it.
    pub id: String,
    /// Its name, for people.
    pub name: String,
    /// When it was made, in seconds since 1970.
    pub created: i64,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// Where it is: the bridges that it is on, with its addresses there. None on bridges of this host is as good as none.
    pub places: Vec<Container>,
}

/// Everything that was told, by engine.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Known {
    /// By the engine's socket.
    pub engines: BTreeMap<String, Engine>,
}

impl Known {
    /// Where the containers of the engines that are followed are.
    pub fn followed_addresses(&self) -> HashSet<IpAddr> {
        let followed = self.engines.values().filter(|engine| engine.following == Following::Followed);
        let places = followed.flat_map(|engine| &engine.containers).flat_map(|running| &running.places);
        places.flat_map(|place| place.addresses.iter().copied()).collect()
    }

    /// Takes from engines that are not followed the addresses that one that is followed says are its containers'.
    pub fn settle(&mut self) {
        let followed = self.followed_addresses();
        let others = self.engines.values_mut().filter(|engine| engine.following != Following::Followed);
        for place in others.flat_map(|engine| &mut engine.containers).flat_map(|running| &mut running.places)
        {
            place.addresses.retain(|address| !followed.contains(address));
        }
    }
}

/// One engine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Engine {
    /// What runs, as told last.
    pub containers: Vec<Running>,
    /// Whether that still holds.
    pub following: Following,
}

/// Whether somebody stands by what was told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Following {
    /// Somebody follows the engine.
    Followed,
    /// Whoever did is gone since a moment: nothing that comes is certain to be anybody's, and what is delivered still
    /// goes where it went.
    Lingering,
    /// Nobody follows it.
    Lost,
}
