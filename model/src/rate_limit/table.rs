//! Counts by keys, never more than a bound. A count that is full again says nothing and goes first. Where every place is
//! in use, places are shared by parties, the callers behind the keys: a party with less than its share gets a place of the
//! one with the most, and a party with its share gets none, so that its new keys are counted together. Who makes up
//! keys without end fills its own share and is held to one limit beyond it; nobody else's counts are touched.

use std::collections::HashMap;

use super::bucket::{Bucket, Verdict};

/// Fewer counts than this are not looked through for such that are full again.
const FEW: usize = 64;

/// Counts by keys. Keys and parties are numbers that nobody can choose (`RateLimit::count_of`).
#[derive(Debug, Clone)]
pub struct Table {
    bucket: Bucket,
    most: usize,
    counts: HashMap<u64, Count>,
    /// How many counts each party has.
    parties: HashMap<u64, usize>,
    /// At so many counts they are looked through: twice as many as there were the last time, so that it costs a request
    /// nothing on the whole.
    sweep_at: usize,
    /// No count is full before this moment: until then there is nothing to look for.
    soonest: u64,
}

#[derive(Debug, Clone, Copy)]
struct Count {
    full_at: u64,
    party: u64,
}

impl Table {
    /// A table of at most so many counts.
    pub fn new(bucket: Bucket, most: usize) -> Self {
        let (counts, parties) = (HashMap::new(), HashMap::new());
        Self { bucket, most, counts, parties, sweep_at: FEW.min(most), soonest: u64::MAX }
    }

    /// How many counts there are.
    pub fn len(&self) -> usize {
        self.counts.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.counts.is_empty()
    }

    /// Takes a token of the key's count. `None` where there is no place for one of its own.
    pub fn take(&mut self, key: u64, party: u64, now: u64) -> Option<Verdict> {
        if let Some(count) = self.counts.get_mut(&key) {
            let (full_at, verdict) = self.bucket.take(count.full_at, now);
            count.full_at = full_at;
            return Some(verdict);
        }
        if self.counts.len() >= self.sweep_at && self.soonest <= now {
            self.sweep(now);
        }
        if self.counts.len() >= self.most && !self.make_room_for(party) {
            return None;
        }
        let (full_at, verdict) = self.bucket.take(now, now);
        self.soonest = self.soonest.min(full_at);
        self.counts.insert(key, Count { full_at, party });
        *self.parties.entry(party).or_default() += 1;
        Some(verdict)
    }

    /// Puts back a token that was taken.
    pub fn give_back(&mut self, key: u64) {
        if let Some(count) = self.counts.get_mut(&key) {
            count.full_at = self.bucket.give_back(count.full_at);
            self.soonest = self.soonest.min(count.full_at);
        }
    }

    /// Forgets what is full again, and gives memory back where little is left.
    pub fn sweep(&mut self, now: u64) {
        if self.soonest > now {
            return;
        }
        self.parties.clear();
        let (parties, mut soonest) = (&mut self.parties, u64::MAX);
        self.counts.retain(|_, count| {
            let stays = count.full_at > now;
            if stays {
                *parties.entry(count.party).or_default() += 1;
                soonest = soonest.min(count.full_at);
            }
            stays
        });
        self.soonest = soonest;
        let room = (2 * self.counts.len()).max(FEW);
        self.sweep_at = room.min(self.most);
        if self.counts.capacity() > 2 * room {
            self.counts.shrink_to(room);
            self.parties.shrink_to(room);
        }
    }

    /// The same counts under other numbers.
    pub fn converted(&self, bucket: Bucket, now: u64) -> Self {
        let mut converted = Self { bucket, ..self.clone() };
        for count in converted.counts.values_mut() {
            count.full_at = bucket.converted(count.full_at, now, &self.bucket);
        }
        // Looked for at the next occasion.
        converted.soonest = 0;
        converted
    }

    /// Takes a place from the party with the most, where `party` has less than its share. Of that party's counts the one
    /// goes that is full the soonest: the least is forgotten with it.
    fn make_room_for(&mut self, party: u64) -> bool {
        let own = self.parties.get(&party).copied().unwrap_or_default();
        let parties = self.parties.len() + usize::from(own == 0);
        if own >= self.most / parties {
            return false;
        }
        let Some(largest) =
            self.parties.iter().max_by_key(|(party, counts)| (**counts, **party)).map(|(party, _)| *party)
        else {
            return false;
        };
        let of_largest = self.counts.iter().filter(|(_, count)| count.party == largest);
        let Some(victim) = of_largest.min_by_key(|(key, count)| (count.full_at, **key)).map(|(key, _)| *key)
        else {
            return false;
        };
        self.counts.remove(&victim);
        match self.parties.get_mut(&largest) {
            Some(counts) if *counts > 1 => *counts -= 1,
            _ => _ = self.parties.remove(&largest),
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::super::Limit;
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    fn bucket(burst: u32) -> Bucket {
        Limit::new(1, Duration::from_secs(1), burst).expect("a limit").bucket()
    }

    fn allows(table: &mut Table, key: u64, party: u64, now: u64) -> Option<bool> {
        table.take(key, party, now).map(|verdict| verdict.allows())
    }

    #[test]
    fn who_makes_up_keys_without_end_pushes_out_nobody() {
        let (attacker, honest) = (1, 2);
        let mut table = Table::new(bucket(2), 100);
        let mut kept = 0;
        for key in 1000..11_000 {
            kept += usize::from(table.take(key, attacker, SECOND).is_some());
            assert!(table.len() <= 100);
        }
        assert_eq!(kept, 100, "the rest is counted together");
        // Others get places, up to their share, and keep them.
        for key in 0..50 {
            assert_eq!(allows(&mut table, key, honest, SECOND), Some(true), "{key}");
        }
        assert_eq!(table.take(50, honest, SECOND), None, "half of the places for one of two");
        for key in 20_000..30_000 {
            assert_eq!(table.take(key, attacker, SECOND), None);
        }
        for key in 0..50 {
            assert_eq!(allows(&mut table, key, honest, SECOND), Some(true), "the second of two");
            assert_eq!(allows(&mut table, key, honest, SECOND), Some(false), "is counted still");
        }
        assert_eq!(table.len(), 100);
        // What is full again makes room: after a second the attacker's counts, of one request each.
        assert_eq!(table.take(40_000, attacker, 2 * SECOND - 1), None);
        assert_eq!(allows(&mut table, 40_000, attacker, 2 * SECOND), Some(true));
        assert_eq!(table.len(), 51);
    }

    #[test]
    fn more_parties_than_places_are_refused_one() {
        let mut table = Table::new(bucket(1), 3);
        for party in 0..3 {
            assert!(table.take(party, party, SECOND).is_some());
        }
        assert_eq!(table.take(3, 3, SECOND), None);
        assert_eq!(Table::new(bucket(1), 0).take(1, 1, SECOND), None);
    }

    #[test]
    fn memory_goes_with_what_is_counted() {
        let mut table = Table::new(bucket(1), 10_000);
        for key in 0..10_000 {
            table.take(key, 1, SECOND);
        }
        assert_eq!(table.len(), 10_000);
        table.sweep(10 * SECOND);
        assert!(table.is_empty() && table.parties.is_empty());
        assert!(table.counts.capacity() < 1000, "{}", table.counts.capacity());
    }

    #[test]
    fn counts_are_kept_under_other_numbers() {
        let mut table = Table::new(bucket(2), 10);
        table.take(1, 1, SECOND);
        table.take(1, 1, SECOND);
        let three = Limit::new(3, Duration::from_secs(60), 3).expect("a limit").bucket();
        let mut converted = table.converted(three, SECOND);
        assert_eq!(converted.take(1, 1, SECOND), Some(Verdict::Allowed { left: 0 }));
        assert_eq!(allows(&mut converted, 1, 1, SECOND), Some(false));
        assert_eq!(converted.take(2, 1, SECOND), Some(Verdict::Allowed { left: 2 }));
    }

    proptest! {
        /// Within the bound it does what one bucket for each key would do; at no time is it over the bound, and its account
        /// of parties is right.
        #[test]
        fn is_a_bucket_for_each_key(
            most in 0..12_usize,
            asked in vec((0..20_u64, 0..4_u64, 0..2_000_000_000_u64, any::<bool>()), 1..300),
        ) {
            let bucket = bucket(3);
            let (mut table, mut apart, mut now) = (Table::new(bucket, most), HashMap::new(), SECOND);
            let mut whole = Table::new(bucket, usize::MAX);
            let mut eager = table.clone();
            for (key, party, step, given_back) in asked {
                now += step / 8;
                // One key is one party's, as where the caller is part of the key.
                let key = key * 4 + party;
                let full_at = apart.entry(key).or_insert(0);
                let (after, expected) = bucket.take(*full_at, now);
                *full_at = after;
                prop_assert_eq!(whole.take(key, party, now), Some(expected));
                // Looking for what is full each time comes to the same places.
                (eager.soonest, eager.sweep_at) = (0, eager.sweep_at.min(most));
                prop_assert_eq!(table.take(key, party, now), eager.take(key, party, now));
                prop_assert!(table.len() <= most);
                if given_back && expected.allows() {
                    *full_at = bucket.give_back(after);
                    for table in [&mut table, &mut whole, &mut eager] {
                        table.give_back(key);
                    }
                }
                let mut counted: HashMap<u64, usize> = HashMap::new();
                for count in table.counts.values() {
                    *counted.entry(count.party).or_default() += 1;
                }
                prop_assert_eq!(&counted, &table.parties);
            }
        }
    }
}
