//! The same for a node's memory, which is divided in blocks.

use conuma_topology::Bytes;

use crate::rules::Priority;

/// What one VM brings to the division of a node's memory.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct MemoryClaim {
    /// Its share of what is left, at least 1.
    pub weight: u32,
    /// Who comes first, above floors.
    pub priority: Priority,
    /// What it must have: what it needs of its guarantee, what it cannot give.
    pub floor: Bytes,
    /// What it can have at most.
    pub most: Bytes,
    /// What it wants.
    pub wanted: Bytes,
}

/// How much of `total` each claim gets, in the order of the claims; what nobody wants is not handed out. Floors come first, also
/// where they are more than there is.
pub fn memory(total: Bytes, block: Bytes, claims: &[MemoryClaim]) -> Vec<Bytes> {
    let mut shares: Vec<u64> = claims.iter().map(|claim| claim.floor.min(claim.most).0).collect();
    let mut rest = total.0.saturating_sub(shares.iter().sum());
    for priority in [Priority::High, Priority::Normal, Priority::Low] {
        let cap = |claim: &MemoryClaim| if claim.priority == priority { claim.wanted.min(claim.most).0 } else { 0 };
        rest = fill(rest, claims, &mut shares, cap);
    }
    let whole = |(claim, share): (&MemoryClaim, u64)| Bytes(share).round_down(block).max(claim.floor.min(claim.most));
    claims.iter().zip(shares).map(whole).collect()
}

/// Raises the lowest shares by weight together until nothing is left or all have what they want.
fn fill(mut rest: u64, claims: &[MemoryClaim], shares: &mut [u64], cap: impl Fn(&MemoryClaim) -> u64) -> u64 {
    let open = claims.iter().enumerate().filter(|(index, claim)| shares[*index] < cap(claim)).map(|(index, claim)| {
        Open { index, weight: f64::from(claim.weight.max(1)), share: shares[index], cap: cap(claim) }
    });
    let mut open: Vec<Open> = open.collect();
    let enough = open.iter().try_fold(rest, |rest, claim| rest.checked_sub(claim.cap - claim.share)).is_some();
    let level = if enough {
        f64::INFINITY
    } else {
        // By the level at which each has all that it wants.
        open.sort_unstable_by(|a, b| a.full().total_cmp(&b.full()).then(a.index.cmp(&b.index)));
        level(rest, &open)
    };
    for Open { index, weight, share, cap } in open {
        let wanted = cap.min((level * weight) as u64).max(share);
        let more = (wanted - share).min(rest);
        shares[index] += more;
        rest -= more;
    }
    rest
}

/// A claim that wants more than it has yet.
struct Open {
    index: usize,
    weight: f64,
    /// What it has.
    share: u64,
    /// What it wants.
    cap: u64,
}

impl Open {
    /// The level at which it has all that it wants.
    fn full(&self) -> f64 {
        self.cap as f64 / self.weight
    }
}

/// The level, in bytes by weight, up to which `rest` lifts everyone.
fn level(rest: u64, open: &[Open]) -> f64 {
    // Between two levels at which somebody begins to be lifted or has enough, what is needed grows evenly.
    let mut edges: Vec<(f64, f64)> = Vec::with_capacity(2 * open.len());
    for claim in open {
        edges.push((claim.share as f64 / claim.weight, claim.weight));
        edges.push((claim.full(), -claim.weight));
    }
    edges.sort_unstable_by(|a, b| a.0.total_cmp(&b.0));
    let (mut level, mut lifted, mut left) = (0.0, 0.0, rest as f64);
    for (edge, weight) in edges {
        let needed = (edge - level) * lifted;
        if needed > left {
            return level + left / lifted;
        }
        left -= needed;
        (level, lifted) = (edge, lifted + weight);
    }
    level * (1.0 + 1e-9) + 1.0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn claim(weight: u32, floor: u64, wanted: u64) -> MemoryClaim {
        let (floor, wanted) = (Bytes::mib(floor), Bytes::mib(wanted));
        MemoryClaim { weight, priority: Priority::Normal, floor, most: Bytes::gib(64), wanted }
    }

    fn shares(total: u64, claims: &[MemoryClaim]) -> Vec<u64> {
        memory(Bytes::mib(total), Bytes::mib(2), claims).iter().map(|bytes| bytes.0 >> 20).collect()
    }

    #[test]
    fn what_is_wanted_by_all_is_shared_by_weight() {
        assert_eq!(shares(3000, &[claim(100, 0, 4000), claim(200, 0, 4000)]), [1000, 2000]);
        assert_eq!(shares(3000, &[claim(100, 0, 400), claim(200, 0, 4000)]), [400, 2600]);
        assert_eq!(shares(3000, &[claim(100, 2000, 4000), claim(100, 0, 4000)]), [2000, 1000]);
        assert_eq!(shares(3000, &[claim(100, 0, 400), claim(100, 0, 500)]), [400, 500]);
    }

    #[test]
    fn where_it_is_just_enough_no_block_is_lost() {
        for weight in 1..1000 {
            assert_eq!(
                shares(3002, &[claim(weight, 0, 1000), claim(70, 0, 1000), claim(170, 0, 1002)]),
                [1000, 1000, 1002]
            );
        }
    }
}
