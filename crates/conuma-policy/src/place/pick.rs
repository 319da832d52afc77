//! Which cores on a node: a VM that gives parts with those whose cache it shares least, and keeps low numbers, as a guest's first CPU has
//! duties that nobody takes over; one that gets takes from the cache where it has most, then from the one with most free cores.

use std::collections::{BTreeMap, BTreeSet};

use conuma_topology::{CoreId, CpuId};

use super::{Grid, Tenant};
use crate::scene::Layout;

/// The cores of every tenant, ascending.
pub(super) fn pick(layout: &Layout, grid: &Grid, tenants: &[Tenant], counts: &[Vec<usize>]) -> Vec<Vec<CoreId>> {
    let mut chosen: Vec<BTreeSet<CoreId>> = tenants
        .iter()
        .zip(&grid.locked)
        .map(|(tenant, locked)| if tenant.fixed { &tenant.held } else { locked })
        .map(|cores| cores.iter().copied().collect())
        .collect();
    for (node, cores) in grid.cores.iter().enumerate() {
        let mut rest: BTreeSet<CoreId> = cores.iter().copied().collect();
        let comes = |row: usize| counts[row][node] > 0 && !tenants[row].fixed;
        // Those who may not have every core choose first, those with the fewest before the others.
        let mut limited: Vec<usize> =
            (0..tenants.len()).filter(|row| comes(*row) && tenants[*row].allowed.is_some()).collect();
        limited
            .sort_by_key(|row| (tenants[*row].allowed.as_ref().map_or(usize::MAX, conuma_topology::CpuSet::len), *row));
        for row in limited {
            let tenant = &tenants[row];
            let own: Vec<CoreId> = tenant.held.iter().copied().filter(|core| rest.contains(core)).collect();
            for core in stay(layout, own, counts[row][node]) {
                rest.remove(&core);
                chosen[row].insert(core);
            }
            let here = chosen[row].iter().filter(|core| cores.binary_search(core).is_ok()).count();
            let locked = grid.locked[row].iter().filter(|core| cores.binary_search(core).is_ok()).count();
            let missing = counts[row][node].saturating_sub(here - locked);
            for core in take(layout, tenant, &chosen[row], &rest, missing) {
                rest.remove(&core);
                chosen[row].insert(core);
            }
        }
        // Then what stays with the others.
        let unlimited = |(row, tenant): &(usize, &Tenant)| comes(*row) && tenant.allowed.is_none();
        for (row, tenant) in tenants.iter().enumerate().filter(unlimited) {
            let own: Vec<CoreId> = tenant.held.iter().copied().filter(|core| rest.contains(core)).collect();
            for core in stay(layout, own, counts[row][node]) {
                rest.remove(&core);
                chosen[row].insert(core);
            }
        }
        // Then what is new, first to those who get most.
        let have = |row: usize, chosen: &[BTreeSet<CoreId>]| {
            chosen[row].iter().filter(|core| cores.binary_search(core).is_ok()).count()
        };
        let mut takers: Vec<(usize, usize)> = (0..tenants.len())
            .filter(|row| comes(*row) && tenants[*row].allowed.is_none())
            .map(|row| (row, counts[row][node].saturating_sub(have(row, &chosen))))
            .filter(|(_, missing)| *missing > 0)
            .collect();
        takers.sort_by_key(|(row, missing)| (std::cmp::Reverse(*missing), *row));
        for (row, missing) in takers {
            let taken = take(layout, &tenants[row], &chosen[row], &rest, missing);
            for core in taken {
                rest.remove(&core);
                chosen[row].insert(core);
            }
        }
    }
    chosen.into_iter().map(|cores| cores.into_iter().collect()).collect()
}

fn cache(layout: &Layout, core: CoreId) -> Option<CpuId> {
    layout.cores.get(&core).map(|seat| seat.cache)
}

fn by_cache(layout: &Layout, cores: impl IntoIterator<Item = CoreId>) -> BTreeMap<Option<CpuId>, usize> {
    let mut counts = BTreeMap::new();
    for core in cores {
        *counts.entry(cache(layout, core)).or_default() += 1;
    }
    counts
}

/// Which of its own cores a VM keeps.
fn stay(layout: &Layout, mut own: Vec<CoreId>, count: usize) -> Vec<CoreId> {
    while own.len() > count {
        let counts = by_cache(layout, own.iter().copied());
        let least = |core: &CoreId| counts.get(&cache(layout, *core)).copied().unwrap_or(0);
        let first = own.iter().min().copied();
        let worst = (0..own.len()).min_by_key(|index| {
            let core = own[*index];
            (Some(core) == first, least(&core), std::cmp::Reverse(core))
        });
        match worst {
            Some(index) => drop(own.remove(index)),
            None => break,
        }
    }
    own
}

/// Which free cores a VM gets.
fn take(
    layout: &Layout,
    tenant: &Tenant,
    has: &BTreeSet<CoreId>,
    free: &BTreeSet<CoreId>,
    count: usize,
) -> Vec<CoreId> {
    let allowed = |core: &CoreId| match (&tenant.allowed, layout.cores.get(core)) {
        (Some(allowed), Some(seat)) => seat.cpus.is_subset(allowed),
        (_, seat) => seat.is_some(),
    };
    let mut own = by_cache(layout, has.iter().copied());
    let mut left: Vec<CoreId> = free.iter().copied().filter(allowed).collect();
    let mut room = by_cache(layout, left.iter().copied());
    let mut taken = Vec::new();
    while taken.len() < count {
        let best = (0..left.len()).max_by_key(|index| {
            let cache = cache(layout, left[*index]);
            let of = |counts: &BTreeMap<Option<CpuId>, usize>| counts.get(&cache).copied().unwrap_or(0);
            // A cache that it has a part of; then one with just enough room, so that large blocks stay whole.
            let missing = count - taken.len();
            let fits = of(&room) >= missing;
            let room = if fits { i64::MAX / 2 - of(&room) as i64 } else { of(&room) as i64 };
            (of(&own), fits, room, std::cmp::Reverse(left[*index]))
        });
        let Some(index) = best else { break };
        let core = left.remove(index);
        let cache = cache(layout, core);
        *own.entry(cache).or_default() += 1;
        if let Some(room) = room.get_mut(&cache) {
            *room -= 1;
        }
        taken.push(core);
    }
    taken
}

#[cfg(test)]
mod tests {
    use conuma_topology::CpuSet;

    use super::*;
    use crate::scene::Seat;

    /// Two caches of four cores.
    fn layout() -> Layout {
        let seat = |core: u32| {
            let cpus = CpuSet::from([CpuId(core)]);
            (CoreId(core), Seat { node: None, cache: CpuId(core / 4 * 4), cpus })
        };
        Layout {
            cores: (0..8).map(seat).collect(),
            of_cpu: (0..8).map(|cpu| (CpuId(cpu), CoreId(cpu))).collect(),
            nodes: [None].into(),
            ..Layout::default()
        }
    }

    fn ids(cores: &[u32]) -> Vec<CoreId> {
        cores.iter().map(|core| CoreId(*core)).collect()
    }

    #[test]
    fn slivers_go_first_and_the_first_core_last() {
        assert_eq!(stay(&layout(), ids(&[0, 4, 5, 6]), 3), ids(&[0, 4, 5]));
        assert_eq!(stay(&layout(), ids(&[1, 2, 3, 7]), 3), ids(&[1, 2, 3]));
        assert_eq!(stay(&layout(), ids(&[0, 1, 2, 3]), 2), ids(&[0, 1]));
    }

    #[test]
    fn whole_caches_are_taken_before_parts_and_blocks_stay_whole() {
        let (tenant, none) = (Tenant::default(), BTreeSet::new());
        let free: BTreeSet<CoreId> = ids(&[1, 2, 4, 5, 6, 7]).into_iter().collect();
        assert_eq!(take(&layout(), &tenant, &none, &free, 4), ids(&[4, 5, 6, 7]));
        assert_eq!(take(&layout(), &tenant, &none, &free, 2), ids(&[1, 2]), "the smaller block");
        let has: BTreeSet<CoreId> = ids(&[0, 3]).into_iter().collect();
        assert_eq!(take(&layout(), &tenant, &has, &free, 3), ids(&[1, 2, 4]));
    }
}
