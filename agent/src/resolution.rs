//! Addresses of names outside the mesh: those of ServiceEntries' endpoints are looked up in the background and come with
//! the next snapshot; those that callers ask for below a wildcard when they do.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use baremesh_model::virtual_address::VirtualRanges;
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::dns::{LookUpError, Resolver};
use crate::fetch::kept_from;
use crate::publish::Publisher;
use crate::telemetry::resolution::Lookups;

/// Names that callers ask for.
mod asked;

pub use asked::{AskedNames, MAX_ASKED};

/// The most names that are kept resolved; those beyond, by name, have no addresses.
pub const MAX_NAMES: usize = 1024;
/// Look-ups at one time.
const MAX_AT_ONCE: usize = 16;
/// The most addresses of one name.
pub const MAX_ADDRESSES: usize = 64;
/// An answer is asked for again after this at the earliest, whatever its TTL says.
pub const MIN_TTL: Duration = Duration::from_secs(5);
/// And at the latest.
pub const MAX_TTL: Duration = Duration::from_secs(300);
/// The pause after the first failure, twice as long after each further one.
const FIRST_RETRY: Duration = Duration::from_secs(1);
/// The longest pause after failures.
const LAST_RETRY: Duration = Duration::from_secs(30);

/// Names with their addresses, as endpoints are made of them.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Resolved(HashMap<Arc<str>, Vec<IpAddr>>);

impl Resolved {
    /// A name's addresses; none as long as it was never resolved.
    pub fn addresses(&self, name: &str) -> &[IpAddr] {
        self.0.get(name).map_or(&[], Vec::as_slice)
    }

    /// What DNS says in a test.
    #[cfg(test)]
    pub(crate) fn of<const N: usize>(names: [(&str, &[&str]); N]) -> Self {
        let address = |text: &&str| text.parse().expect("an address");
        Self(names.map(|(name, all)| (name.into(), all.iter().map(address).collect())).into())
    }
}

/// The addresses that may be connected to, in their order, IPv4's alone where there are some: the way to IPv6 may not be
/// there. With how many were left out because nobody is to be led there.
pub fn usable(found: Vec<IpAddr>, ranges: &VirtualRanges) -> (Vec<IpAddr>, usize) {
    let before = found.len();
    let mut usable: Vec<IpAddr> =
        found.into_iter().filter(|address| kept_from(*address, ranges).is_none()).collect();
    let left_out = before - usable.len();
    if usable.iter().any(IpAddr::is_ipv4) {
        usable.retain(IpAddr::is_ipv4);
    }
    usable.truncate(MAX_ADDRESSES);
    (usable, left_out)
}

/// What is known of one name.
struct Known {
    due: Instant,
    failures: u32,
    addresses: Vec<IpAddr>,
}

/// Keeps the names of the snapshot in force resolved, for ever.
pub async fn keep(publisher: Arc<Publisher>, resolver: Arc<Resolver>, lookups: Arc<Lookups>) {
    let mut changed = publisher.changed();
    let mut known: HashMap<Arc<str>, Known> = HashMap::new();
    loop {
        let snapshot = publisher.snapshot().load_full();
        let ranges = snapshot.mesh.config.virtual_ranges;
        let mut names = snapshot.names_to_resolve();
        drop(snapshot);
        if names.len() > MAX_NAMES {
            tracing::warn!(
                names = names.len(),
                most = MAX_NAMES,
                "too many names of ServiceEntries: the last have no addresses"
            );
            lookups.beyond.inc_by((names.len() - MAX_NAMES) as u64);
            names.truncate(MAX_NAMES);
        }
        known.retain(|name, _| names.binary_search(name).is_ok());
        for name in names {
            let fresh = || Known { due: Instant::now(), failures: 0, addresses: Vec::new() };
            known.entry(name).or_insert_with(fresh);
        }
        let now = Instant::now();
        let due: Vec<Arc<str>> =
            known.iter().filter(|(_, known)| known.due <= now).map(|(name, _)| Arc::clone(name)).collect();
        if !due.is_empty() {
            look_up(&due, &mut known, (&resolver, &lookups, &ranges)).await;
            let with_addresses = known.iter().filter(|(_, known)| !known.addresses.is_empty());
            let resolved = with_addresses.map(|(name, known)| (Arc::clone(name), known.addresses.clone()));
            publisher.take_resolved(Resolved(resolved.collect()));
            continue;
        }
        let next = known.values().map(|known| known.due).min();
        let pause = async {
            match next {
                Some(next) => tokio::time::sleep_until(next).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = pause => {}
            told = changed.changed() => if told.is_err() { return },
        }
    }
}

async fn look_up(
    due: &[Arc<str>],
    known: &mut HashMap<Arc<str>, Known>,
    (resolver, lookups, ranges): (&Arc<Resolver>, &Lookups, &VirtualRanges),
) {
    let (mut running, mut waiting) = (JoinSet::new(), due.iter());
    loop {
        while running.len() < MAX_AT_ONCE
            && let Some(name) = waiting.next()
        {
            let (resolver, name) = (Arc::clone(resolver), Arc::clone(name));
            running.spawn(async move {
                let answer = resolver.look_up(&name).await;
                (name, answer)
            });
        }
        let Some(ended) = running.join_next().await else { return };
        let Ok((name, answer)) = ended else { continue };
        let Some(entry) = known.get_mut(&name) else { continue };
        let answer = answer.and_then(|answer| {
            let (addresses, left_out) = usable(answer.addresses, ranges);
            lookups.left_out.inc_by(left_out as u64);
            if addresses.is_empty() { Err(LookUpError::NoAddress) } else { Ok((addresses, answer.ttl)) }
        });
        match answer {
            Ok((mut addresses, ttl)) => {
                lookups.answered.inc();
                // One that is still there stays the first where order means a choice: each answer may be turned round.
                if entry.failures > 0 {
                    tracing::info!(name = &*name, "is resolved again");
                }
                if !same(&entry.addresses, &addresses) {
                    tracing::info!(name = &*name, ?addresses, "is resolved");
                } else {
                    addresses.clone_from(&entry.addresses);
                }
                *entry = Known { due: Instant::now() + ttl.clamp(MIN_TTL, MAX_TTL), failures: 0, addresses };
            }
            Err(error) => {
                lookups.failed.inc();
                if entry.failures == 0 {
                    let kept = entry.addresses.len();
                    tracing::warn!(name = &*name, %error, kept, "is not resolved: the last addresses stay");
                }
                let pause = FIRST_RETRY.saturating_mul(1 << entry.failures.min(8)).min(LAST_RETRY);
                entry.failures = entry.failures.saturating_add(1);
                entry.due = Instant::now() + pause;
            }
        }
    }
}

/// Whether two answers have the same addresses; servers turn them round.
fn same(before: &[IpAddr], after: &[IpAddr]) -> bool {
    let (mut before, mut after) = (before.to_vec(), after.to_vec());
    before.sort();
    after.sort();
    before == after
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_is_led_to_addresses_that_are_nobody_s() {
        let check = |found: &[&str], expected: (&[&str], usize)| {
            let parse = |all: &[&str]| {
                all.iter().map(|text| text.parse().expect("an address")).collect::<Vec<IpAddr>>()
            };
            let (addresses, left_out) = usable(parse(found), &VirtualRanges::default());
            assert_eq!((addresses, left_out), (parse(expected.0), expected.1), "{found:?}");
        };
        check(&["192.0.2.1", "10.0.0.1"], (&["192.0.2.1", "10.0.0.1"], 0));
        check(&["127.0.0.1", "192.0.2.1"], (&["192.0.2.1"], 1));
        check(&["169.254.169.254", "240.240.0.7", "0.0.0.0", "::1", "fe80::1"], (&[], 5));
        check(&["2001:db8::1", "192.0.2.1"], (&["192.0.2.1"], 0));
        check(&["2001:db8::1"], (&["2001:db8::1"], 0));
    }

    #[test]
    fn answers_that_are_turned_round_are_the_same() {
        let addresses = |texts: [&str; 2]| texts.map(|text| text.parse::<IpAddr>().expect("an address"));
        assert!(same(&addresses(["192.0.2.1", "192.0.2.2"]), &addresses(["192.0.2.2", "192.0.2.1"])));
        assert!(!same(&addresses(["192.0.2.1", "192.0.2.2"]), &addresses(["192.0.2.1", "192.0.2.3"])));
    }
}
