//! Any endpoint, by weight.

use super::{Member, hash};

/// Draws before the search goes on in order.
const DRAWS: u64 = 8;

/// The sums of all weights up to each endpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shares(Box<[u64]>);

impl Shares {
    /// The shares of these endpoints.
    pub fn new(members: &[Member]) -> Self {
        let sums = members.iter().scan(0, |sum, member| {
            *sum += u64::from(member.weight);
            Some(*sum)
        });
        Self(sums.collect())
    }

    /// The endpoint that a number falls to.
    pub(super) fn at(&self, number: u64) -> Option<usize> {
        let total = self.0.last().copied().filter(|total| *total > 0)?;
        Some(self.0.partition_point(|sum| *sum <= number % total))
    }

    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    /// Any usable endpoint. Where a draw meets one that is not, it is drawn again, so that its share goes to all.
    pub fn pick(&self, random: u64, usable: impl Fn(usize) -> bool) -> Option<usize> {
        for draw in 0..DRAWS {
            let index = self.at(hash::mix(random ^ draw))?;
            if usable(index) {
                return Some(index);
            }
        }
        let start = self.at(random)?;
        let count = self.len();
        (0..count).map(|step| (start + step) % count).find(|index| usable(*index))
    }
}
