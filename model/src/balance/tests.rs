//! What holds for every balancer: shares within bounds, nothing that is out of use, and few keys that move.

use std::collections::HashMap;

use proptest::prelude::*;

use super::*;
use crate::destination_rule::HashKey;

const FREE: Load = Load { active: 0, weight: 1, warmth: FULL };

fn members(weights: &[u32]) -> Vec<Member> {
    (0_u64..)
        .zip(weights)
        .map(|(n, weight)| Member { id: hash::of(&n.to_be_bytes()), weight: *weight })
        .collect()
}

fn hashed(table: HashTable) -> Algorithm {
    Algorithm::ConsistentHash(ConsistentHash { key: HashKey::SourceIp, table })
}

fn all() -> Vec<Algorithm> {
    vec![
        Algorithm::LeastRequest,
        Algorithm::RoundRobin,
        Algorithm::Random,
        hashed(HashTable::Ring { minimum_size: 1024 }),
        hashed(HashTable::Maglev { size: 4099 }),
    ]
}

/// How often each endpoint is picked in `draws`.
fn counts(balancer: &Balancer, weights: &[u32], draws: u64, load: impl Fn(usize) -> Load) -> Vec<u64> {
    let mut counts = vec![0; weights.len()];
    for turn in 0..draws {
        let random = hash::mix(turn ^ 0xfeed);
        let picked = balancer.pick(Draw { random, turn, hash: Some(hash::mix(random)) }, &load);
        counts[picked.expect("an endpoint")] += 1;
    }
    counts
}

#[test]
fn shares_follow_weights() {
    const DRAWS: u64 = 60_000;
    for algorithm in all() {
        for weights in [&[1, 1, 1, 1, 1][..], &[1, 2, 3], &[50, 100], &[9, 1, 1, 1]] {
            let balancer = Balancer::new(&algorithm, &members(weights));
            let total: u64 = weights.iter().map(|weight| u64::from(*weight)).sum();
            let found = counts(&balancer, weights, DRAWS, |index| Load { weight: weights[index], ..FREE });
            // A ring is as even as its points are many; the others are far nearer.
            let tolerance = if matches!(balancer, Balancer::Ring(_)) { 0.2 } else { 0.06 };
            for (count, weight) in found.iter().zip(weights) {
                let expected = (DRAWS * u64::from(*weight) / total) as f64;
                let off = (*count as f64 - expected).abs() / expected;
                assert!(off < tolerance, "{algorithm:?} {weights:?}: {found:?}");
            }
        }
    }
}

#[test]
fn the_less_loaded_of_two_is_taken() {
    let weights = [1, 1];
    let balancer = Balancer::new(&Algorithm::LeastRequest, &members(&weights));
    let found = counts(&balancer, &weights, 10_000, |index| Load { active: [5, 1][index], ..FREE });
    // The other one only where both draws were the same by chance.
    assert!(found[0] < 100, "{found:?}");
}

#[test]
fn connections_in_flight_come_to_be_shared_by_weight() {
    let weights = [1, 4];
    let balancer = Balancer::new(&Algorithm::LeastRequest, &members(&weights));
    let mut active = [0_u32; 2];
    for turn in 0..5_000 {
        let draw = Draw { random: hash::mix(turn), turn, hash: None };
        let load = |index: usize| Load { active: active[index], weight: weights[index], warmth: FULL };
        active[balancer.pick(draw, load).expect("an endpoint")] += 1;
    }
    assert!((900..1100).contains(&active[0]), "{active:?}");
}

#[test]
fn turns_are_spread_through_the_round() {
    let turns = |weights: &[u32], rounds: u64| -> Vec<usize> {
        let schedule = round_robin::Schedule::new(&members(weights));
        let pick = |turn| schedule.pick(Draw { random: 0, turn, hash: None }, |_| FREE).expect("one");
        (0..rounds).map(pick).collect()
    };
    assert_eq!(turns(&[5, 5, 5], 6), [0, 1, 2, 0, 1, 2]);
    assert_eq!(turns(&[2, 1], 6), [0, 1, 0, 0, 1, 0]);
    assert_eq!(turns(&[40, 10, 10], 6), [0, 0, 1, 2, 0, 0]);
    // Weights that no schedule could hold are brought down, and nobody is left out.
    let counted = turns(&[u32::MAX, 1], 20_000);
    assert!((1..10).contains(&counted.iter().filter(|index| **index == 1).count()));
}

#[test]
fn new_endpoints_take_their_share_little_by_little() {
    for algorithm in [Algorithm::LeastRequest, Algorithm::RoundRobin] {
        let weights = [1, 1, 1];
        let balancer = Balancer::new(&algorithm, &members(&weights));
        let warmth = |index: usize| if index == 0 { 250 } else { FULL };
        let found = counts(&balancer, &weights, 30_000, |index| Load { warmth: warmth(index), ..FREE });
        let share = found[0] as f64 / 30_000.0;
        assert!((0.05..0.14).contains(&share), "{algorithm:?}: {found:?}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn what_is_out_of_use_is_not_picked(
        weights in proptest::collection::vec(0..20_u32, 0..12),
        out in proptest::collection::vec(proptest::bool::ANY, 12),
        random: u64, turn: u64, key: Option<u64>,
    ) {
        let usable = |index: usize| weights[index] > 0 && !out[index];
        let load = |index: usize| Load { weight: if usable(index) { weights[index] } else { 0 }, ..FREE };
        for algorithm in all() {
            let balancer = Balancer::new(&algorithm, &members(&weights));
            let picked = balancer.pick(Draw { random, turn, hash: key }, load);
            match picked {
                Some(index) => prop_assert!(usable(index), "{:?}", algorithm),
                None => prop_assert!(!(0..weights.len()).any(usable), "{:?} found none", algorithm),
            }
        }
    }

    #[test]
    fn a_lost_endpoint_moves_its_own_keys_alone(count in 2..16_usize, lost in 0..16_usize, seed: u64) {
        let lost = lost % count;
        let every = members(&vec![1; count]);
        let left: Vec<Member> = every.iter().copied().filter(|member| *member != every[lost]).collect();
        for (table, allowed) in [
            (HashTable::Ring { minimum_size: 1024 }, 0),
            // Maglev trades a few moved keys for even shares.
            (HashTable::Maglev { size: 4099 }, 60),
        ] {
            let (before, after) = (Balancer::new(&hashed(table), &every), Balancer::new(&hashed(table), &left));
            let mut moved = 0;
            for key in 0..1000 {
                let draw = Draw { random: 0, turn: 0, hash: Some(hash::mix(seed ^ key)) };
                let was = every[before.pick(draw, |_| FREE).expect("one")];
                let is = left[after.pick(draw, |_| FREE).expect("one")];
                moved += usize::from(was != every[lost] && was != is);
            }
            prop_assert!(moved <= allowed, "{:?}: {} of 1000 moved", table, moved);
        }
    }

    #[test]
    fn an_ejected_endpoint_moves_its_own_keys_alone(count in 2..10_usize, out in 0..10_usize) {
        let every = members(&vec![1; count]);
        let out = out % count;
        let mut taken: HashMap<usize, usize> = HashMap::new();
        for table in [HashTable::Ring { minimum_size: 1024 }, HashTable::Maglev { size: 4099 }] {
            let balancer = Balancer::new(&hashed(table), &every);
            for key in 0..500 {
                let draw = Draw { random: 0, turn: 0, hash: Some(hash::mix(key)) };
                let was = balancer.pick(draw, |_| FREE).expect("one");
                let without = |index: usize| Load { weight: u32::from(index != out), ..FREE };
                let is = balancer.pick(draw, without).expect("one");
                prop_assert_eq!(was == out, is != was, "{:?}: from {} to {}", table, was, is);
                if was == out {
                    *taken.entry(is).or_default() += 1;
                }
            }
        }
        // With many points, what it had goes to all of the others.
        prop_assert!(count < 4 || taken.len() > 1, "{:?}", taken);
    }
}
