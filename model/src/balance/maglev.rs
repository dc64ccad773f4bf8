//! Maglev's look-up table (Eisenbud et al., NSDI 2016): every endpoint fills places in an order of its own, in turns by
//! weight, so that shares are even and a change moves few keys beside those that it must.

use super::{Member, hash};
use crate::destination_rule::HashTable;

/// The table: an endpoint's index in each place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Maglev(Box<[u32]>);

const EMPTY: u32 = u32::MAX;

/// How one endpoint fills the table.
struct Filling {
    next: u64,
    skip: u64,
    weight: u64,
    credit: u64,
}

impl Maglev {
    /// A table with `size` places, which must be a prime: then every order visits every place.
    pub fn new(members: &[Member], size: u32) -> Self {
        let places = u64::from(size.clamp(2, HashTable::MAX_MAGLEV_SIZE));
        let heaviest = members.iter().map(|member| u64::from(member.weight)).max().unwrap_or(0);
        if heaviest == 0 {
            return Self(Box::default());
        }
        let filling = |member: &Member| Filling {
            next: hash::mix(member.id) % places,
            skip: hash::mix(!member.id) % (places - 1) + 1,
            weight: member.weight.into(),
            credit: 0,
        };
        let mut fillings: Vec<Filling> = members.iter().map(filling).collect();
        let mut table = vec![EMPTY; usize::try_from(places).unwrap_or(usize::MAX)];
        let mut left = places;
        while left > 0 {
            for (index, filling) in (0_u32..).zip(&mut fillings) {
                filling.credit += filling.weight;
                if filling.credit < heaviest || left == 0 {
                    continue;
                }
                filling.credit -= heaviest;
                while table[filling.next as usize] != EMPTY {
                    filling.next = (filling.next + filling.skip) % places;
                }
                table[filling.next as usize] = index;
                left -= 1;
            }
        }
        Self(table.into())
    }

    /// The key's endpoint; where that is not usable, the one of the next place whose is.
    pub fn pick(&self, hash: u64, usable: impl Fn(usize) -> bool) -> Option<usize> {
        let size = u64::try_from(self.0.len()).ok().filter(|size| *size > 0)?;
        let start = usize::try_from(hash % size).unwrap_or(0);
        let (before, from) = self.0.split_at(start);
        let mut last = None;
        let mut turned = from.iter().chain(before).map(|index| *index as usize);
        turned.find(|index| last.replace(*index) != Some(*index) && usable(*index))
    }
}
