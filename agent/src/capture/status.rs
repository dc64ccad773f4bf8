//! What stands now. It is told from the table alone, without the plan: the table carries a seal, the hashes of its
//! elements and of its structure as they were when it was put in place.

use std::collections::BTreeMap;

use ipnet::IpNet;

use super::gone::MARK_OF_GONE;
use super::listing::Listing;
use super::sets::{SEAL_OF_ELEMENTS, SEAL_OF_STRUCTURE, hash_of_elements};

/// The difference where somebody removed the table, and left the routes.
pub const ROUTES_ALONE: &str = "the local routes stand without the rules";

/// The state of the capture rules.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum State {
    /// There are none.
    Missing,
    /// They are as they were put in place.
    InPlace,
    /// Somebody changed them, or a change is under way; each difference in words.
    Altered(Vec<String>),
    /// The rules for a gone agent stand: its closed services are refused.
    Gone,
}

/// What stands now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Status {
    /// The state of the rules.
    pub state: State,
    /// The counters of our table by name.
    pub counters: BTreeMap<String, Counter>,
    /// How many elements each set has.
    pub elements: BTreeMap<String, usize>,
    /// The local routes of ours that stand.
    pub routes: Vec<IpNet>,
}

/// A counter's figures since the table was last replaced. In chains that redirect, a packet is a connection.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counter {
    /// Packets.
    pub packets: u64,
    /// Their bytes.
    pub bytes: u64,
}

impl Status {
    pub(super) fn of(listing: Option<&Listing>, routes: Vec<IpNet>) -> Self {
        let state = match listing {
            None if routes.is_empty() => State::Missing,
            None => State::Altered(vec![ROUTES_ALONE.to_owned()]),
            Some(listing) if listing.sets.contains_key(MARK_OF_GONE) => State::Gone,
            Some(listing) => state_of(listing, &routes),
        };
        let sets = listing.into_iter().flat_map(|listing| &listing.sets);
        Self {
            state,
            counters: listing.map(|listing| listing.counters.clone()).unwrap_or_default(),
            elements: sets.map(|(name, elements)| (name.clone(), elements.len())).collect(),
            routes,
        }
    }
}

fn state_of(listing: &Listing, routes: &[IpNet]) -> State {
    let mut altered = seal_is_broken(listing);
    if routes.is_empty() {
        altered.push("the local routes of the virtual addresses are missing".to_owned());
    }
    if altered.is_empty() { State::InPlace } else { State::Altered(altered) }
}

/// In which ways a table is not what was put in place.
pub(super) fn seal_is_broken(listing: &Listing) -> Vec<String> {
    let elements = hash_of_elements(listing.sets.iter().map(|(name, elements)| (name.as_str(), elements)));
    let mut broken = Vec::new();
    let mut check = |what: &str, seal: u32, hash: u64| match listing.sealed(seal) {
        Some(sealed) if sealed == format!("{hash:016x}") => {}
        Some(_) => broken.push(format!("{what} are not those that were put in place")),
        None => broken.push(format!("{what} were not put in place to the end")),
    };
    check("the elements of its sets", SEAL_OF_ELEMENTS, elements);
    check("its chains and rules", SEAL_OF_STRUCTURE, listing.structure);
    broken
}
