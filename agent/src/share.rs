//! Shares of something that there is a limited number of, counted by who holds them: nobody takes what is there for
//! everybody.

use std::collections::HashMap;
use std::hash::Hash;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::{Arc, Mutex, PoisonError};

/// How much each holder has. Holders with nothing take no memory.
#[derive(Debug)]
pub struct Shares<K>(Arc<Mutex<HashMap<K, usize>>>);

/// What a holder has taken, until this is dropped.
#[derive(Debug)]
pub struct Share<K: Eq + Hash> {
    holder: K,
    count: usize,
    held: Arc<Mutex<HashMap<K, usize>>>,
}

impl<K> Default for Shares<K> {
    fn default() -> Self {
        Self(Arc::default())
    }
}

impl<K: Clone + Eq + Hash> Shares<K> {
    /// One more for `holder`, unless it has `most` already.
    pub fn take(&self, holder: K, most: usize) -> Option<Share<K>> {
        self.take_many(holder, 1, most)
    }

    /// So many more for `holder`, unless it would have more than `most` then.
    pub fn take_many(&self, holder: K, count: usize, most: usize) -> Option<Share<K>> {
        let mut held = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let before = held.get(&holder).copied().unwrap_or_default();
        let after = before.checked_add(count).filter(|after| *after <= most)?;
        held.insert(holder.clone(), after);
        Some(Share { holder, count, held: Arc::clone(&self.0) })
    }
}

impl<K: Eq + Hash> Drop for Share<K> {
    fn drop(&mut self) {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        let left = held.get_mut(&self.holder).map(|count| {
            *count -= self.count;
            *count
        });
        if left == Some(0) {
            held.remove(&self.holder);
        }
    }
}

/// The host behind an address: a program of this one may dial from any address of its loopback network.
pub fn host_of(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        loopback if loopback.is_loopback() => Ipv4Addr::LOCALHOST.into(),
        address => address,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_takes_more_than_its_share_and_what_is_given_back_can_be_taken_again() {
        let shares = Shares::default();
        let held = [shares.take("a", 2), shares.take("a", 2)];
        assert!(held.iter().all(Option::is_some) && shares.take("a", 2).is_none());
        assert!(shares.take("b", 2).is_some(), "others have theirs");
        drop(held);
        assert!(shares.0.lock().expect("not poisoned").is_empty(), "who holds nothing is forgotten");
        assert!(shares.take("a", 2).is_some());
        let many = shares.take_many("c", 3, 4);
        assert!(many.is_some() && shares.take_many("c", 2, 4).is_none());
        assert!(shares.take_many("c", usize::MAX, usize::MAX).is_none());
        drop(many);
        assert!(shares.take_many("c", 4, 4).is_some());
    }

    #[test]
    fn the_loopback_network_is_one_host() {
        let host = |address: &str| host_of(address.parse().expect("an address")).to_string();
        for (address, expected) in [
            ("127.0.0.1", "127.0.0.1"),
            ("127.9.8.7", "127.0.0.1"),
            ("::1", "127.0.0.1"),
            ("::ffff:127.0.0.5", "127.0.0.1"),
            ("::ffff:10.0.0.1", "10.0.0.1"),
            ("fd00::1", "fd00::1"),
        ] {
            assert_eq!(host(address), expected, "{address}");
        }
    }
}
