//! Fair division: weighted max-min fairness after floors and up to limits.
//!
//! Every claim gets its floor. What is left goes, priority by priority, to whom it lifts least: one core after the other to the claim that
//! has least of its weight, as long as it wants more. For whole cores that is exact: the result is, among all divisions in whole cores,
//! the lexicographically largest of sorted shares by weight. What nobody wants stays where it is.

mod bytes;

use std::cmp::{Ordering, Reverse};
use std::collections::BinaryHeap;

pub use bytes::{MemoryClaim, memory};

use crate::rules::Priority;

/// What one VM brings to the division of cores.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct CoreClaim {
    /// Its share of what is left, at least 1.
    pub weight: u32,
    /// Who comes first, above floors.
    pub priority: Priority,
    /// What it holds.
    pub held: usize,
    /// What it must have.
    pub floor: usize,
    /// Of that, what is not even given for the floors of others.
    pub firm: usize,
    /// What it can have at most.
    pub most: usize,
    /// What it wants, in whole cores.
    pub wanted: usize,
    /// How much of the last core that it wants it would use, 0 to 1.
    pub last: f64,
}

impl CoreClaim {
    /// One that is left as it is.
    pub fn fixed(held: usize) -> Self {
        let (floor, firm, most, wanted) = (held, held, held, held);
        Self { weight: 1, priority: Priority::Normal, held, floor, firm, most, wanted, last: 1.0 }
    }
}

/// How many of `total` cores each claim gets, in the order of the claims. Never more than `total` in all; floors that are more than that
/// together are cut where most is above the first core.
pub fn cores(total: usize, claims: &[CoreClaim]) -> Vec<usize> {
    let mut shares: Vec<usize> = claims.iter().map(|claim| claim.floor.min(claim.most)).collect();
    cut(total, claims, &mut shares);
    let mut rest = total - shares.iter().sum::<usize>();
    for priority in [Priority::High, Priority::Normal, Priority::Low] {
        // A core that is used in full comes before one that is used in part.
        for whole in [true, false] {
            let cap = |claim: &CoreClaim| {
                let cores = if whole && claim.last < 0.5 { claim.wanted.saturating_sub(1) } else { claim.wanted };
                if claim.priority == priority { cores.min(claim.most) } else { 0 }
            };
            rest = fill(rest, claims, &mut shares, cap);
        }
    }
    keep(rest, claims, &mut shares);
    shares
}

/// Hands out `rest` one by one; gives what is left.
fn fill(mut rest: usize, claims: &[CoreClaim], shares: &mut [usize], cap: impl Fn(&CoreClaim) -> usize) -> usize {
    let next = |index: usize, share: usize| {
        let weight = claims[index].weight.max(1);
        (share < cap(&claims[index])).then_some(Reverse(Next { share, weight, index }))
    };
    let mut queue: BinaryHeap<Reverse<Next>> =
        shares.iter().enumerate().filter_map(|(index, share)| next(index, *share)).collect();
    while rest > 0 {
        let Some(Reverse(Next { index, .. })) = queue.pop() else { break };
        shares[index] += 1;
        rest -= 1;
        queue.extend(next(index, shares[index]));
    }
    rest
}

/// What nobody wants stays with whom it is, as far as it goes: he who has most beyond what he wants gives first.
fn keep(mut rest: usize, claims: &[CoreClaim], shares: &mut [usize]) {
    let spare = |index: usize, share: usize| claims[index].held.min(claims[index].most).saturating_sub(share);
    let mut spares: Vec<usize> = shares.iter().enumerate().map(|(index, share)| spare(index, *share)).collect();
    let mut given = spares.iter().sum::<usize>().saturating_sub(rest);
    let mut largest: BinaryHeap<(usize, Reverse<usize>)> = spares
        .iter()
        .enumerate()
        .filter(|(_, spare)| **spare > 0)
        .map(|(index, spare)| (*spare, Reverse(index)))
        .collect();
    while given > 0 {
        let Some((spare, Reverse(index))) = largest.pop() else { break };
        spares[index] = spare - 1;
        given -= 1;
        if spare > 1 {
            largest.push((spare - 1, Reverse(index)));
        }
    }
    for (share, spare) in shares.iter_mut().zip(spares) {
        let part = spare.min(rest);
        *share += part;
        rest -= part;
    }
}

/// Floors that are more than there is: first goes what is wanted least, of the largest shares by weight.
fn cut(total: usize, claims: &[CoreClaim], shares: &mut [usize]) {
    let mut over = shares.iter().sum::<usize>().saturating_sub(total);
    while over > 0 {
        let largest = (0..shares.len()).filter(|index| shares[*index] > 0).max_by(|a, b| {
            let harmless = |index: usize| {
                let (claim, share) = (&claims[index], shares[index]);
                let by_weight = share as f64 / f64::from(claim.weight.max(1));
                ((share > claim.firm, share > claim.wanted, share > 1), by_weight)
            };
            let ((a_kind, a_share), (b_kind, b_share)) = (harmless(*a), harmless(*b));
            a_kind.cmp(&b_kind).then(a_share.total_cmp(&b_share)).then(b.cmp(a))
        });
        let Some(index) = largest else { return };
        shares[index] -= 1;
        over -= 1;
    }
}

/// Who is lifted next: who has least of its weight; of several, whom one core more lifts most.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Next {
    share: usize,
    weight: u32,
    index: usize,
}

impl Ord for Next {
    fn cmp(&self, other: &Self) -> Ordering {
        let (own, its) = (self.share as u128 * u128::from(other.weight), other.share as u128 * u128::from(self.weight));
        own.cmp(&its).then(self.weight.cmp(&other.weight)).then(self.index.cmp(&other.index))
    }
}

impl PartialOrd for Next {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn claim(weight: u32, floor: usize, wanted: usize, held: usize) -> CoreClaim {
        CoreClaim { weight, priority: Priority::Normal, held, floor, firm: floor, most: usize::MAX, wanted, last: 1.0 }
    }

    #[test]
    fn what_is_wanted_by_all_is_shared_by_weight() {
        assert_eq!(cores(12, &[claim(100, 1, 12, 6), claim(200, 1, 12, 6)]), [4, 8]);
        assert_eq!(cores(12, &[claim(100, 6, 12, 6), claim(200, 1, 12, 6)]), [6, 6], "a floor comes first");
        assert_eq!(cores(12, &[claim(100, 1, 2, 6), claim(100, 1, 12, 6)]), [2, 10], "what one does not want");
    }

    #[test]
    fn what_nobody_wants_stays_where_it_is() {
        assert_eq!(cores(12, &[claim(100, 1, 1, 6), claim(100, 1, 2, 6)]), [6, 6]);
        assert_eq!(cores(12, &[claim(100, 1, 1, 6), claim(100, 1, 2, 2), claim(100, 1, 5, 4)]), [5, 2, 5]);
        assert_eq!(cores(16, &[claim(100, 1, 9, 6), claim(100, 1, 2, 4)]), [9, 4], "from the pool");
    }

    #[test]
    fn priorities_come_one_after_the_other() {
        let high = CoreClaim { priority: Priority::High, ..claim(1, 1, 8, 1) };
        let low = CoreClaim { priority: Priority::Low, ..claim(9999, 2, 8, 2) };
        assert_eq!(cores(12, &[low, high, claim(100, 1, 8, 1)]), [2, 8, 2]);
    }

    #[test]
    fn a_core_that_is_used_in_full_comes_before_one_that_is_used_in_part() {
        let part = CoreClaim { last: 0.2, ..claim(100, 1, 4, 3) };
        assert_eq!(cores(8, &[part, claim(100, 1, 5, 5)]), [3, 5]);
    }

    #[test]
    fn what_is_not_firm_gives_way_to_floors() {
        let resting = CoreClaim { firm: 2, most: 8, ..claim(100, 8, 8, 8) };
        assert_eq!(cores(8, &[resting, claim(100, 3, 3, 0)]), [5, 3]);
        let idle = CoreClaim { wanted: 1, firm: 1, ..claim(100, 4, 1, 4) };
        assert_eq!(cores(8, &[CoreClaim { floor: 4, ..resting }, idle, claim(100, 2, 2, 0)]), [4, 2, 2]);
    }

    #[test]
    fn floors_beyond_what_is_there_are_cut() {
        assert_eq!(cores(4, &[claim(100, 3, 3, 3), claim(100, 3, 3, 1)]).iter().sum::<usize>(), 4);
    }
}
