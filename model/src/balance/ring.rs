//! A ring of points: each endpoint has as many as its weight says, and a key goes to the first point at or after its
//! hash. An endpoint that comes or goes moves its own keys alone.

use super::round_robin::gcd;
use super::{Member, hash};
use crate::destination_rule::HashTable;

/// The points, in their order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ring(Box<[Point]>);

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Point {
    at: u64,
    index: u32,
}

/// The number of points an endpoint of weight 1 has changes only when endpoints become this many times as many: a
/// change of it moves keys between endpoints that stay.
const STEP: u64 = 16;

impl Ring {
    /// A ring of at least `minimum` points, and at most `STEP` times as many. An endpoint of any weight has one at least.
    pub fn new(members: &[Member], minimum: u32) -> Self {
        let minimum = u64::from(minimum.clamp(1, HashTable::MAX_RING_SIZE));
        let divisor = members.iter().fold(0, |divisor, member| gcd(divisor, member.weight.into())).max(1);
        let units = |member: &Member| u64::from(member.weight) / divisor;
        let total: u64 = members.iter().map(units).sum();
        let mut each = minimum;
        while each > 1 && total.saturating_mul(each) > minimum.saturating_mul(STEP) {
            each = each.div_ceil(STEP);
        }
        // Weights that no ring could hold are brought down.
        let most = minimum.saturating_mul(STEP).max(members.len() as u64);
        let points_of = |member: &Member| {
            let points = u128::from(units(member)) * u128::from(each);
            let scaled =
                if total > most { (points * u128::from(most)).div_ceil(total.into()) } else { points };
            u64::try_from(scaled).unwrap_or(most)
        };
        let mut points = Vec::new();
        for (index, member) in (0_u32..).zip(members) {
            let own = hash::mix(member.id);
            points.extend((0..points_of(member)).map(|turn| Point { at: hash::mix(own ^ turn), index }));
        }
        points.sort_unstable();
        Self(points.into())
    }

    /// The first usable endpoint from the key's point on.
    pub fn pick(&self, hash: u64, usable: impl Fn(usize) -> bool) -> Option<usize> {
        let start = self.0.partition_point(|point| point.at < hash);
        let (before, from) = self.0.split_at(start);
        let mut last = None;
        let mut turned = from.iter().chain(before).map(|point| point.index as usize);
        // Neighbouring points of one endpoint are asked about once.
        turned.find(|index| last.replace(*index) != Some(*index) && usable(*index))
    }
}
