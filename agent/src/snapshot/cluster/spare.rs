//! Connections that are kept for the next request hold places under `maxConnections`, on whichever worker they are. Where
//! a place is needed and none is left, one of them gives its own up.

use std::collections::VecDeque;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use tokio::sync::Notify;
use tokio::sync::futures::Notified;

use super::{Cluster, ClusterState};

/// Of those that are gone, so many are remembered besides as many as there are places.
const GONE: usize = 64;

/// A connection without a request.
pub trait Spare: Send + Sync {
    /// Closes it and frees its place, unless it is in use again. Whether a place was freed.
    fn give_up(&self) -> bool;
}

/// What a cluster's connections without a request are offered to.
#[derive(Debug, Clone)]
pub struct Offer {
    state: Arc<ClusterState>,
    /// Places that there are.
    places: usize,
}

/// Connections that would give their places up, the oldest offer first.
#[derive(Default)]
pub(in crate::snapshot) struct Spares {
    offered: Mutex<VecDeque<Weak<dyn Spare>>>,
    /// Told when a place is free, or offered.
    freed: Notify,
}

impl Spares {
    pub(super) fn tell(&self) {
        self.freed.notify_waiters();
    }

    /// Has one give its place up; whether one did.
    pub(super) fn give_up(&self) -> bool {
        loop {
            // Not held while the connection is closed: that frees its place, and tells.
            let next = self.offered.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
            match next.map(|spare| spare.upgrade()) {
                Some(Some(spare)) if spare.give_up() => return true,
                Some(_) => {}
                None => return false,
            }
        }
    }
}

impl fmt::Debug for Spares {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let offered = self.offered.lock().unwrap_or_else(PoisonError::into_inner).len();
        f.debug_struct("Spares").field("offered", &offered).finish_non_exhaustive()
    }
}

impl Offer {
    /// Offers the place of a connection that has no request now.
    pub fn make(&self, spare: Weak<dyn Spare>) {
        let spares = &self.state.counters.spares;
        let mut offered = spares.offered.lock().unwrap_or_else(PoisonError::into_inner);
        if offered.len() >= self.places.saturating_add(GONE) {
            offered.retain(|spare| spare.strong_count() > 0);
        }
        offered.push_back(spare);
        drop(offered);
        spares.tell();
    }
}

impl Cluster {
    /// To whom connections without a request are offered; nobody where any number of them may be open.
    pub fn offer(&self) -> Option<Offer> {
        let places = self.limits().max_connections;
        let places = (places < u32::MAX).then(|| usize::try_from(places).unwrap_or(usize::MAX))?;
        Some(Offer { state: Arc::clone(&self.state), places })
    }

    /// Ends when a connection of the cluster has closed or has no request any more, since the call.
    pub fn freed(&self) -> Notified<'_> {
        self.state.counters.spares.freed.notified()
    }

    /// Requests that wait for a connection, on all workers.
    pub fn waiting(&self) -> u32 {
        self.state.waiting()
    }
}
