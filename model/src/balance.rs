//! Which endpoint takes the next connection: power of two choices over the least loaded, by weight.

/// What is known of one endpoint at this moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Load {
    /// Connections or requests in flight.
    pub active: u32,
    /// Share relative to the others; 0 takes nothing.
    pub weight: u32,
}

/// Picks the index of an endpoint: two are drawn by `random`, and the one with the larger weight/(active+1) is
/// taken. `None` without an endpoint of weight.
pub fn pick(count: usize, random: u64, load: impl Fn(usize) -> Load) -> Option<usize> {
    let len = u64::try_from(count).ok().filter(|len| *len > 0)?;
    let index = |number: u64| usize::try_from(number % len).unwrap_or(0);
    let first = index(random & u64::from(u32::MAX));
    // The second differs from the first whenever there are two.
    let second = if len > 1 { (first + 1 + index_below(random >> 32, len - 1)) % count } else { first };
    let (a, b) = (load(first), load(second));
    let score = |load: Load, other: Load| u64::from(load.weight) * (u64::from(other.active) + 1);
    let better = if score(a, b) >= score(b, a) { first } else { second };
    // Both draws may be out of use: the search for one that is not starts at the draw, so that the load spreads.
    let mut turned = (0..count).map(|step| (better + step) % count);
    turned.find(|index| load(*index).weight > 0)
}

fn index_below(random: u64, bound: u64) -> usize {
    usize::try_from(random % bound.max(1)).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn takes_the_less_loaded_of_two() {
        let loads = [Load { active: 5, weight: 1 }, Load { active: 1, weight: 1 }];
        for random in [0, 1, u64::MAX, 1 << 32, 7 << 32 | 3] {
            assert_eq!(pick(2, random, |index| loads[index]), Some(1));
        }
    }

    #[test]
    fn weight_counts_and_zero_takes_nothing() {
        let loads =
            [Load { active: 1, weight: 1 }, Load { active: 3, weight: 4 }, Load { active: 0, weight: 0 }];
        for random in 0..100_u64 {
            let picked = pick(3, random.wrapping_mul(0x9e37_79b9_7f4a_7c15), |index| loads[index]);
            assert_ne!(picked, Some(2));
        }
        assert_eq!(pick(0, 1, |_| loads[0]), None);
        assert_eq!(pick(1, 1, |_| loads[2]), None);
    }

    #[test]
    fn spreads_evenly_over_equal_endpoints() {
        let mut hits = [0_u32; 5];
        let mut random = 1_u64;
        for _ in 0..10_000 {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let picked = pick(5, random ^ (random >> 29), |index| Load { active: hits[index], weight: 1 });
            hits[picked.expect("an endpoint")] += 1;
        }
        assert!(hits.iter().all(|hit| (1900..2100).contains(hit)), "{hits:?}");
    }
}
