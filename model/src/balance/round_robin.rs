//! One after the other, by weight: a schedule in which the turns of each endpoint lie as far apart as they can.

use super::{Draw, FULL, Load, Member, hash};

/// The most turns of a schedule. Weights that need more are brought down to it.
const MAX_TURNS: u64 = 16 * 1024;
/// Draws that an endpoint in its warm-up may pass on; after that the next one takes it.
const MAX_PASSES: u64 = 8;

/// The order of turns.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Schedule {
    /// All weigh the same: in their order.
    Even(usize),
    /// Indices in the order of their turns.
    Weighted(Box<[u32]>),
}

impl Schedule {
    /// The schedule of these endpoints.
    pub fn new(members: &[Member]) -> Self {
        let first = members.first().map(|member| member.weight);
        if members.iter().all(|member| Some(member.weight) == first) {
            return Self::Even(members.len());
        }
        let divisor = members.iter().fold(0, |divisor, member| gcd(divisor, member.weight.into())).max(1);
        let total: u64 = members.iter().map(|member| u64::from(member.weight) / divisor).sum();
        let turns_of = |member: &Member| {
            let turns = u64::from(member.weight) / divisor;
            let scaled = if total > MAX_TURNS { turns * MAX_TURNS / total } else { turns };
            if turns == 0 { 0 } else { scaled.max(1) }
        };
        // The k-th of n turns is best at (2k + 1) / 2n of the round; ties go to the earlier endpoint.
        let mut turns: Vec<(f64, u32)> = Vec::new();
        for (index, member) in (0_u32..).zip(members) {
            let own = turns_of(member);
            turns.extend((0..own).map(|turn| ((2 * turn + 1) as f64 / (2 * own) as f64, index)));
        }
        turns.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
        Self::Weighted(turns.into_iter().map(|(_, index)| index).collect())
    }

    fn turns(&self) -> u64 {
        let turns = match self {
            Self::Even(count) => *count,
            Self::Weighted(turns) => turns.len(),
        };
        u64::try_from(turns).unwrap_or(u64::MAX)
    }

    fn at(&self, turn: u64) -> usize {
        let turn = usize::try_from(turn).unwrap_or(0);
        match self {
            Self::Even(_) => turn,
            Self::Weighted(turns) => turns[turn] as usize,
        }
    }

    /// The endpoint whose turn it is. One that is out of use passes its turn on to any other, so that its neighbour does
    /// not get both; one that warms up passes on a part of its turns.
    pub fn pick(&self, draw: Draw, load: impl Fn(usize) -> Load) -> Option<usize> {
        let turns = Some(self.turns()).filter(|turns| *turns > 0)?;
        let mut place = draw.turn % turns;
        for pass in 0..MAX_PASSES {
            let index = self.at(place);
            let Load { weight, warmth, .. } = load(index);
            let dice = hash::mix(draw.random ^ pass);
            if weight > 0 && (warmth >= FULL || dice % u64::from(FULL) < u64::from(warmth)) {
                return Some(index);
            }
            place = (dice >> 16) % turns;
        }
        let mut turned = (0..turns).map(|step| self.at((place + step) % turns));
        turned.find(|index| load(*index).weight > 0)
    }
}

/// The greatest common divisor.
pub(super) fn gcd(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { gcd(b, a % b) }
}
