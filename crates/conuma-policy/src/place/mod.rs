//! Which cores, once it is known how many.
//!
//! First, on which nodes. Each VM has on each node so many cores that are *near*: up to the share of its memory (and of its devices) there.
//! A core beyond that is far, and costs what far cores lose; a core that it does not hold costs a move. Both costs grow with the number of
//! cores on a node, so the problem is a flow with convex costs, and `flow` finds its minimum exactly. Then `pick` chooses the
//! cores on each node: those that a guarantee names, whole caches over slivers.

mod flow;
mod pick;

use std::collections::BTreeMap;

use conuma_topology::{CoreId, CpuSet, NodeId};

use crate::scene::Layout;

/// What is to be placed of one VM.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Tenant {
    /// How many cores it is to have.
    pub count: usize,
    /// The cores that it holds.
    pub held: Vec<CoreId>,
    /// Stays as it is: then `count` is what it holds.
    pub fixed: bool,
    /// Cores that its guarantee names and that it must have now.
    pub named: Vec<CoreId>,
    /// The only cores that it may have; `None`: any.
    pub allowed: Option<CpuSet>,
    /// Where its memory and its devices are.
    pub home: Home,
    /// What a core that it gets costs, in cores.
    pub step: f64,
}

/// Where what a VM uses is, seen from each node that has cores (in the order of [`Layout::nodes`]).
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Home {
    /// The share of it that is on that node.
    pub share: Vec<f64>,
    /// How far all of it is from there, on average: 0 if all is there, 1 for each step of distance 10.
    pub far: Vec<f64>,
}

/// How far memory is from each node that has cores.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Map {
    nodes: Vec<Option<NodeId>>,
    /// By node of memory: steps of distance 10 from each node that has cores.
    steps: BTreeMap<NodeId, Vec<f64>>,
}

impl Map {
    /// Of a layout with memory on some nodes. `distance` gives SLIT distances.
    pub fn new(
        layout: &Layout,
        memory: impl IntoIterator<Item = NodeId>,
        distance: impl Fn(NodeId, NodeId) -> u32,
    ) -> Self {
        let nodes: Vec<Option<NodeId>> = layout.nodes.iter().copied().collect();
        let steps = |to: NodeId| {
            let from =
                |from: &Option<NodeId>| from.map_or(0.0, |from| (f64::from(distance(from, to)) / 10.0 - 1.0).max(0.0));
            (to, nodes.iter().map(from).collect())
        };
        let steps = memory.into_iter().map(steps).collect();
        Self { nodes, steps }
    }

    /// Where something is of which these shares are on these nodes; they sum up to 1, or there is nothing.
    pub fn home(&self, shares: &BTreeMap<NodeId, f64>) -> Home {
        let share = |node: &Option<NodeId>| node.and_then(|node| shares.get(&node)).copied().unwrap_or(0.0);
        let share = self.nodes.iter().map(share).collect();
        let mut far = vec![0.0; self.nodes.len()];
        for (node, part) in shares {
            if let Some(steps) = self.steps.get(node) {
                far.iter_mut().zip(steps).for_each(|(far, steps)| *far += part * steps);
            }
        }
        Home { share, far }
    }
}

/// The cores of every tenant, in their order.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Placement {
    /// Ascending.
    pub cores: Vec<Vec<CoreId>>,
}

/// Places tenants on the cores that can be used. A far core loses `far_loss` of a core for each step of distance 10. Whoever asks for
/// more than there is gets less.
pub fn place(layout: &Layout, usable: &CpuSet, tenants: &[Tenant], far_loss: f64) -> Placement {
    let grid = Grid::new(layout, usable, tenants, far_loss);
    let counts = flow::solve(&grid);
    Placement { cores: pick::pick(layout, &grid, tenants, &counts) }
}

/// What far cores lose, in cores: `far_loss` for each step of distance 10, and no more than all of it. `counts` are cores on each node, in the order of
/// [`Layout::nodes`].
pub(crate) fn far_cores(home: &Home, counts: &[usize], far_loss: f64) -> f64 {
    let near = near(home, counts.iter().sum());
    let beyond =
        |((count, near), far): ((&usize, usize), &f64)| count.saturating_sub(near) as f64 * (far * far_loss).min(1.0);
    counts.iter().zip(near).zip(&home.far).map(beyond).sum()
}

/// The problem by nodes.
#[derive(Debug)]
pub(crate) struct Grid {
    /// The nodes that have cores.
    pub(crate) nodes: Vec<Option<NodeId>>,
    /// Usable cores of each node that no fixed tenant and no name takes.
    pub(crate) free: Vec<usize>,
    /// By tenant.
    pub(crate) rows: Vec<Row>,
    /// The usable cores of each node that are to be had.
    pub(crate) cores: Vec<Vec<CoreId>>,
    /// Cores that are given by name, by tenant.
    pub(crate) locked: Vec<Vec<CoreId>>,
}

/// One tenant's side of it.
#[derive(Debug, Default)]
pub(crate) struct Row {
    /// Cores to be placed, those with names not counted.
    pub(crate) count: usize,
    /// By node: held, near, the most there may be, and what a far core costs.
    pub(crate) held: Vec<usize>,
    pub(crate) near: Vec<usize>,
    pub(crate) most: Vec<usize>,
    pub(crate) far: Vec<f64>,
    /// What a core costs that it does not hold.
    pub(crate) step: f64,
}

impl Row {
    /// What the `k`-th core on a node costs.
    pub(crate) fn cost(&self, node: usize, k: usize) -> f64 {
        if k > self.most[node] {
            return f64::INFINITY;
        }
        let far = if k > self.near[node] { self.far[node] } else { 0.0 };
        let moves = if k > self.held[node] { self.step } else { 0.0 };
        far + moves
    }
}

impl Grid {
    fn new(layout: &Layout, usable: &CpuSet, tenants: &[Tenant], far_loss: f64) -> Self {
        let nodes: Vec<Option<NodeId>> = layout.nodes.iter().copied().collect();
        let index = |core: &CoreId| layout.place(*core);
        let mut owner: BTreeMap<CoreId, usize> = BTreeMap::new();
        for (row, tenant) in tenants.iter().enumerate() {
            if tenant.fixed {
                owner.extend(tenant.held.iter().map(|core| (*core, row)));
            }
        }
        let usable_core = |core: &CoreId| layout.cores.get(core).is_some_and(|seat| seat.cpus.is_subset(usable));
        let mut locked: Vec<Vec<CoreId>> = vec![Vec::new(); tenants.len()];
        for (row, tenant) in tenants.iter().enumerate().filter(|(_, tenant)| !tenant.fixed) {
            for core in tenant.named.iter().filter(|core| usable_core(core)) {
                if let std::collections::btree_map::Entry::Vacant(place) = owner.entry(*core) {
                    place.insert(row);
                    locked[row].push(*core);
                }
            }
        }
        let mut cores: Vec<Vec<CoreId>> = vec![Vec::new(); nodes.len()];
        for core in layout.cores.keys().filter(|core| usable_core(core) && !owner.contains_key(core)) {
            if let Some(node) = index(core) {
                cores[node].push(*core);
            }
        }
        let free: Vec<usize> = cores.iter().map(Vec::len).collect();
        let rows = tenants.iter().enumerate().map(|(row, tenant)| {
            if tenant.fixed {
                return Row::default();
            }
            let mut held = vec![0; nodes.len()];
            for core in tenant.held.iter().filter(|core| usable_core(core) && !owner.contains_key(core)) {
                if let Some(node) = index(core) {
                    held[node] += 1;
                }
            }
            let most = match &tenant.allowed {
                None => free.clone(),
                Some(allowed) => {
                    let fits = |core: &&CoreId| layout.cores.get(core).is_some_and(|seat| seat.cpus.is_subset(allowed));
                    cores.iter().map(|cores| cores.iter().filter(fits).count()).collect()
                }
            };
            let mut named = vec![0; nodes.len()];
            for core in &locked[row] {
                if let Some(node) = index(core) {
                    named[node] += 1;
                }
            }
            let near = near(&tenant.home, tenant.count);
            let far = if tenant.home.far.is_empty() { vec![0.0; nodes.len()] } else { tenant.home.far.clone() };
            Row {
                count: tenant.count.saturating_sub(locked[row].len()),
                near: near
                    .iter()
                    .chain(std::iter::repeat(&tenant.count))
                    .zip(named)
                    .map(|(near, named)| near.saturating_sub(named))
                    .collect(),
                far: far.iter().map(|steps| (steps * far_loss).min(1.0)).collect(),
                step: tenant.step,
                held,
                most,
            }
        });
        let rows = rows.collect();
        Self { nodes, free, rows, cores, locked }
    }
}

/// So much of a core more is near than the share of memory says.
const SLACK: f64 = 0.2;

/// How many of `count` cores are near on each node: by the share of what is there. Shares on nodes without cores count where it is nearest;
/// without any shares every core is near.
fn near(home: &Home, count: usize) -> Vec<usize> {
    let here: f64 = home.share.iter().sum();
    if here <= 0.0 {
        // All of it is on nodes without cores, if there is any: the nearest are as good as it gets.
        let best = home.far.iter().copied().fold(f64::INFINITY, f64::min);
        return home.far.iter().map(|steps| if *steps <= best { count } else { 0 }).collect();
    }
    // Rounded up with a little room: what is hardly more or less is no reason to move a core there and back.
    let part = |share: &f64| if *share > 0.0 { (share / here * count as f64 + SLACK).ceil() as usize } else { 0 };
    home.share.iter().map(part).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::layout;

    fn ids(cores: &[u32]) -> Vec<CoreId> {
        cores.iter().map(|core| CoreId(*core)).collect()
    }

    /// On two nodes with cores; a third, without, is nearer to the first.
    fn at(shares: &[(u32, f64)]) -> Home {
        let distance = |from: NodeId, to: NodeId| match (from.0, to.0) {
            (from, to) if from == to => 10,
            (0, 2) => 17,
            (1, 2) => 24,
            _ => 20,
        };
        let map = Map::new(&layout("2n4c1t@1G"), [NodeId(0), NodeId(1), NodeId(2)], distance);
        map.home(&shares.iter().map(|(node, share)| (NodeId(*node), *share)).collect())
    }

    fn run(shape: &str, tenants: &[Tenant]) -> Vec<Vec<u32>> {
        let layout = layout(shape);
        let usable = layout.cores.values().fold(CpuSet::new(), |sum, seat| sum.union(&seat.cpus));
        let placed = place(&layout, &usable, tenants, 0.15);
        placed.cores.iter().map(|cores| cores.iter().map(|core| core.0).collect()).collect()
    }

    fn tenant(count: usize, held: &[u32], home: &[(u32, f64)]) -> Tenant {
        Tenant { count, held: ids(held), home: at(home), step: 0.04, ..Tenant::default() }
    }

    #[test]
    fn cores_go_where_the_memory_is() {
        let placed = run("2n4c1t@1G", &[tenant(3, &[0], &[(1, 1.0)]), tenant(3, &[1], &[(0, 1.0)])]);
        assert!(placed[0].iter().all(|core| *core >= 4), "{placed:?}");
        assert!(placed[1].iter().all(|core| *core < 4) && placed[1].contains(&1), "{placed:?}");
    }

    #[test]
    fn a_third_gives_way_where_that_costs_least() {
        // What a has on node 0 is near; b, without a home, moves over.
        let placed = run("2n2c1t@1G", &[tenant(2, &[], &[(0, 1.0)]), tenant(2, &[0, 1], &[])]);
        assert_eq!(placed, [vec![0, 1], vec![2, 3]]);
    }

    #[test]
    fn cores_that_are_near_beyond_the_share_of_memory_are_not() {
        let placed = run("2n4c1t@1G", &[tenant(4, &[], &[(0, 0.75), (1, 0.25)]), tenant(2, &[0], &[(1, 1.0)])]);
        assert!((1..=3).contains(&placed[0].iter().filter(|core| **core < 4).count()), "{placed:?}");
    }

    #[test]
    fn nothing_moves_that_is_well_placed() {
        let tenants = [tenant(4, &[0, 1, 2, 3], &[(0, 1.0)]), tenant(3, &[4, 6, 7], &[(1, 1.0)])];
        assert_eq!(run("2n4c1t@1G", &tenants), [vec![0, 1, 2, 3], vec![4, 6, 7]]);
    }

    #[test]
    fn named_cores_come_to_whom_they_are_guaranteed() {
        let named = Tenant { named: ids(&[0, 1]), ..tenant(3, &[4], &[]) };
        let placed = run("2n4c1t@1G", &[named, tenant(4, &[0, 1, 2, 3], &[(0, 1.0)])]);
        assert!(placed[0].starts_with(&[0, 1]) && placed[0].len() == 3, "{placed:?}");
        assert_eq!(placed[1].len(), 4);
    }

    #[test]
    fn what_is_asked_for_beyond_what_there_is_is_left_out() {
        let placed = run("1n4c1t@1G", &[tenant(3, &[0], &[]), tenant(3, &[1, 2], &[])]);
        assert_eq!(placed.iter().map(Vec::len).sum::<usize>(), 4, "{placed:?}");
    }

    #[test]
    fn memory_on_nodes_without_cores_is_near_from_the_nearest() {
        assert_eq!(near(&at(&[(2, 1.0)]), 3), [3, 0]);
        assert_eq!(near(&at(&[(0, 0.5), (1, 0.5)]), 3), [2, 2]);
        assert_eq!(near(&at(&[(0, 0.1), (1, 0.9)]), 2), [1, 2]);
        assert_eq!(near(&at(&[]), 2), [2, 2]);
    }
}
