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
    let weight = |index: usize| f64::from(claims[index].weight.max(1));
    let mut open: Vec<usize> = (0..claims.len()).filter(|index| shares[*index] < cap(&claims[*index])).collect();
    // By the level at which each has all that it wants.
    open.sort_by(|a, b| {
        let full = |index: usize| cap(&claims[index]) as f64 / weight(index);
        full(*a).total_cmp(&full(*b)).then(a.cmp(b))
    });
    let level = level(rest, &open, shares, &cap, claims, &weight);
    for index in open {
        let wanted = cap(&claims[index]).min((level * weight(index)) as u64).max(shares[index]);
        let more = (wanted - shares[index]).min(rest);
        shares[index] += more;
        rest -= more;
    }
    rest
}

/// The level, in bytes by weight, up to which `rest` lifts everyone. `open` is sorted by the level at which each has all that it wants.
fn level(
    rest: u64,
    open: &[usize],
    shares: &[u64],
    cap: &impl Fn(&MemoryClaim) -> u64,
    claims: &[MemoryClaim],
    weight: &impl Fn(usize) -> f64,
) -> f64 {
    // Between two levels at which somebody begins to be lifted or has enough, what is needed grows evenly.
    let mut edges: Vec<(f64, f64)> = Vec::with_capacity(2 * open.len());
    for index in open {
        let weight = weight(*index);
        edges.push((shares[*index] as f64 / weight, weight));
        edges.push((cap(&claims[*index]) as f64 / weight, -weight));
    }
    edges.sort_by(|a, b| a.0.total_cmp(&b.0));
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
}
