//! Power of two choices: of two endpoints that are drawn by weight, the one that is less loaded for its weight. While
//! nothing is in flight, that is a draw by weight; under load, connections in flight come to be shared by weight.

use super::weighted::Shares;
use super::{FULL, Load, Member, hash};

/// Draws for each of the two before whatever is usable is taken.
const DRAWS: u64 = 8;

/// How the two are drawn.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LeastRequest {
    /// All weigh the same.
    Even(usize),
    /// By weight.
    Weighted(Shares),
}

impl LeastRequest {
    /// The draws among these endpoints.
    pub fn new(members: &[Member]) -> Self {
        let first = members.first().map(|member| member.weight);
        if members.iter().all(|member| Some(member.weight) == first) {
            Self::Even(members.len())
        } else {
            Self::Weighted(Shares::new(members))
        }
    }

    /// The index of an endpoint; `None` without one of weight.
    pub fn pick(&self, random: u64, load: impl Fn(usize) -> Load) -> Option<usize> {
        let Some(first) = self.draw(random, &load, |_| true) else { return self.any(random, &load) };
        let Some(second) = self.draw(hash::mix(random), &load, |index| index != first) else {
            return Some(first);
        };
        let (a, b) = (load(first), load(second));
        // a/weight of a <= b/weight of b, without a division. The warmth makes a new endpoint look smaller.
        let scaled = |load: Load, other: Load| {
            u128::from(load.active) * u128::from(other.weight) * u128::from(other.warmth.max(1))
        };
        Some(if scaled(a, b) <= scaled(b, a) { first } else { second })
    }

    /// A usable endpoint, unless luck has it that none is drawn. One that warms up declines most draws at first.
    fn draw(
        &self,
        random: u64,
        load: &impl Fn(usize) -> Load,
        wanted: impl Fn(usize) -> bool,
    ) -> Option<usize> {
        for turn in 0..DRAWS {
            let number = hash::mix(random ^ turn);
            let index = self.at(number)?;
            if !wanted(index) {
                continue;
            }
            let Load { weight, warmth, .. } = load(index);
            // Bits that the draw itself hardly depends on.
            let accepts = warmth >= FULL || (number >> 40) % u64::from(FULL) < u64::from(warmth);
            if weight > 0 && accepts {
                return Some(index);
            }
        }
        None
    }

    fn at(&self, number: u64) -> Option<usize> {
        match self {
            Self::Even(0) => None,
            Self::Even(count) => usize::try_from(number % (*count as u64)).ok(),
            Self::Weighted(shares) => shares.at(number),
        }
    }

    /// Whatever is usable, from anywhere on.
    fn any(&self, random: u64, load: &impl Fn(usize) -> Load) -> Option<usize> {
        let start = self.at(random)?;
        let count = match self {
            Self::Even(count) => *count,
            Self::Weighted(shares) => shares.len(),
        };
        (0..count).map(|step| (start + step) % count).find(|index| load(*index).weight > 0)
    }
}
