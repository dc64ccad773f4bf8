//! Names that callers ask for below a wildcard, looked up when they do and kept for as long as the answer says.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use baremesh_model::virtual_address::VirtualRanges;
use tokio::sync::Semaphore;
use tokio::time::Instant;

use super::{MAX_TTL, MIN_TTL, usable};
use crate::dns::{LookUpError, Resolver};
use crate::telemetry::resolution::Lookups;

/// The most names that are kept; the one that is next to be asked for anew makes room.
pub const MAX_ASKED: usize = 4096;
/// Callers that may wait for answers at one time; further ones are refused at once.
const MAX_WAITING: usize = 64;
/// How long the last answer serves when none is to be had any more.
const STALE: Duration = Duration::from_secs(3600);

struct Known {
    addresses: Arc<[IpAddr]>,
    until: Instant,
}

/// Names that callers ask for.
pub struct AskedNames {
    resolver: Arc<Resolver>,
    lookups: Arc<Lookups>,
    known: Mutex<HashMap<Arc<str>, Known>>,
    waiting: Semaphore,
}

impl AskedNames {
    /// None yet.
    pub fn new(resolver: Arc<Resolver>, lookups: Arc<Lookups>) -> Self {
        Self { resolver, lookups, known: Mutex::default(), waiting: Semaphore::new(MAX_WAITING) }
    }

    /// The addresses of a name, waiting for them for `patience` at most. An answer that has run out serves where no new
    /// one is to be had.
    pub async fn addresses(
        &self,
        name: &str,
        ranges: &VirtualRanges,
        patience: Duration,
    ) -> Result<Arc<[IpAddr]>, LookUpError> {
        let now = Instant::now();
        let before = self.known(name);
        if let Some((addresses, _)) = before.as_ref().filter(|(_, until)| *until > now) {
            return Ok(Arc::clone(addresses));
        }
        let asked = async {
            let _place = self.waiting.try_acquire().map_err(|_| LookUpError::Busy)?;
            let asking = tokio::time::timeout(patience, self.resolver.look_up(name));
            let answer = asking.await.unwrap_or(Err(LookUpError::NoAnswer))?;
            let (addresses, left_out) = usable(answer.addresses, ranges);
            self.lookups.left_out.inc_by(left_out as u64);
            if addresses.is_empty() { Err(LookUpError::NoAddress) } else { Ok((addresses, answer.ttl)) }
        };
        match asked.await {
            Ok((addresses, ttl)) => {
                self.lookups.answered.inc();
                let addresses: Arc<[IpAddr]> = addresses.into();
                self.keep(name, Arc::clone(&addresses), now + ttl.clamp(MIN_TTL, MAX_TTL));
                Ok(addresses)
            }
            Err(error) => {
                self.lookups.failed.inc();
                let stale = before.filter(|(_, until)| *until + STALE > now);
                stale.map(|(addresses, _)| addresses).ok_or(error)
            }
        }
    }

    fn known(&self, name: &str) -> Option<(Arc<[IpAddr]>, Instant)> {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.get(name).map(|known| (Arc::clone(&known.addresses), known.until))
    }

    fn keep(&self, name: &str, addresses: Arc<[IpAddr]>, until: Instant) {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= MAX_ASKED && !known.contains_key(name) {
            let oldest = known.iter().min_by_key(|(_, known)| known.until).map(|(name, _)| Arc::clone(name));
            if let Some(oldest) = oldest {
                known.remove(&oldest);
            }
        }
        known.insert(name.into(), Known { addresses, until });
    }
}
