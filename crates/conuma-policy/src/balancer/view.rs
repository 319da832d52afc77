//! What one decision knows of one VM.

use std::collections::BTreeMap;
use std::time::Duration;

use conuma_balancing::{CoreDemand, MemoryDemand, Resources};
use conuma_topology::{Bytes, CoreId, CpuSet, NodeId};

use super::Balancer;
use crate::decision::Held;
use crate::demand::{Estimate, NodeEstimate};
use crate::divide::CoreClaim;
use crate::place::{Home, Map};
use crate::rules::Terms;
use crate::scene::{Scene, VmScene};

/// Of a VM's home, what its devices count beside its memory.
const DEVICES: f64 = 0.3;

/// A VM as it is decided on.
#[derive(Debug)]
pub(super) struct View<'a> {
    pub(super) vm: &'a VmScene,
    pub(super) terms: Terms,
    /// What it wants, if that is known.
    pub(super) estimate: Option<&'a Estimate>,
    /// The cores that it holds and could use.
    pub(super) cores: Vec<CoreId>,
    /// Cores that it wants, whole, and how much of the last.
    pub(super) wanted: usize,
    pub(super) last: f64,
    /// Of its guarantee, what it needs.
    pub(super) needed: usize,
    /// Cores at most.
    pub(super) most: usize,
    /// Why its cores are left as they are.
    pub(super) held: Option<Held>,
    /// It reported once, and does no longer: it keeps no more than its fair share.
    pub(super) is_mute: bool,
    /// Cores that its guarantee names, of those that can be used.
    pub(super) named: Vec<CoreId>,
    /// The only cores that it may have.
    pub(super) allowed: Option<CpuSet>,
    /// Where its memory and its devices are.
    pub(super) home: Home,
    /// What it wants of each node's memory; where that is not known, what it holds.
    pub(super) memory: BTreeMap<NodeId, Bytes>,
}

impl<'a> View<'a> {
    pub(super) fn new(
        balancer: &'a Balancer,
        scene: &'a Scene<'_>,
        vm: &'a VmScene,
        map: &Map,
        usable: &CpuSet,
        now: Duration,
    ) -> Self {
        let tuning = &balancer.rules.tuning;
        let terms = balancer.rules.terms(vm, scene.wall);
        let estimate = balancer.estimate(&vm.name, now);
        let cores = scene.layout.cores_in(&vm.holding.cpus.intersection(usable));
        let count = |demand: &CoreDemand| match demand {
            CoreDemand::Count(count) => *count,
            CoreDemand::Cpus(cpus) => scene.layout.cores_in(&cpus.intersection(usable)).len(),
        };
        let guaranteed = terms.guarantee.cores.as_ref().map_or(1, count).max(1);
        let named = match &terms.guarantee.cores {
            Some(CoreDemand::Cpus(cpus)) => scene.layout.cores_in(&cpus.intersection(usable)),
            _ => Vec::new(),
        };
        let (most, allowed) = match &terms.limit.cores {
            None => (usize::MAX, None),
            Some(CoreDemand::Count(count)) => (*count, None),
            Some(CoreDemand::Cpus(cpus)) => {
                (scene.layout.cores_in(&cpus.intersection(usable)).len(), Some(cpus.clone()))
            }
        };
        // What is above a limit already need not go.
        let file = vm.limit.cores.as_ref().map_or(usize::MAX, count);
        let most = most.min(file).max(1);
        let (wanted, last) = match estimate {
            Some(estimate) => whole(estimate.cores.wanted, cores.len(), tuning.dead_band),
            None => (cores.len().max(guaranteed), 1.0),
        };
        let needed = match estimate {
            Some(estimate) if tuning.lend_idle_guarantee => guaranteed.min(at_least(estimate.cores.wanted)),
            _ => guaranteed,
        };
        let held = match () {
            () if balancer.pins.holds(&vm.name, now) => Some(Held::Pinned),
            () if terms.hands_off => Some(Held::HandsOff),
            () if vm.busy.cores => Some(Held::Busy),
            () if balancer.stability.cores_dwell(&vm.name, now, tuning) => Some(Held::Dwell),
            () if estimate.is_none() => Some(Held::Unknown),
            () => None,
        };
        let is_mute = estimate.is_none() && balancer.is_mute(&vm.name, now);
        let home = map.home(&home(vm, estimate));
        let memory = scene.host.memory.keys().map(|node| (*node, wants(vm, estimate, *node))).collect();
        Self {
            vm,
            terms,
            estimate,
            cores,
            wanted,
            last,
            needed: needed.min(most),
            most,
            held,
            is_mute,
            named,
            allowed,
            home,
            memory,
        }
    }

    /// Whether nothing may be done to it, also for the guarantees of others.
    pub(super) fn is_fixed(&self) -> bool {
        matches!(self.held, Some(Held::Pinned | Held::HandsOff | Held::Busy))
    }

    /// What it brings to the division of cores; if `urgent`, only what is needed of guarantees moves.
    pub(super) fn claim(&self, urgent: bool) -> CoreClaim {
        let held = self.cores.len();
        if self.is_fixed() {
            return CoreClaim::fixed(held);
        }
        let rests =
            urgent || matches!(self.held, Some(Held::Dwell)) || (self.held == Some(Held::Unknown) && !self.is_mute);
        let floor = if rests { held.max(self.needed) } else { self.needed };
        CoreClaim {
            weight: self.terms.weight,
            priority: self.terms.priority,
            held,
            floor,
            firm: self.needed,
            most: if rests { floor } else { self.most.max(self.needed) },
            wanted: self.wanted,
            last: self.last,
        }
    }

    /// What it wants of a node's memory.
    pub(super) fn wanted_on(&self, node: NodeId) -> Bytes {
        self.memory.get(&node).copied().unwrap_or_default()
    }

    /// What it cannot do without on a node; what its kernel cannot give it is part of that.
    pub(super) fn keeps_on(&self, node: NodeId) -> Bytes {
        let held = self.vm.holding.on(node);
        match estimate_on(self.estimate, node) {
            Some(estimate) => {
                let out_of_reach = held.saturating_sub(estimate.total);
                estimate.in_use + estimate.kept + Bytes(estimate.headroom.0 / 2) + out_of_reach
            }
            None => held,
        }
    }

    /// Of its guarantee of memory, what it needs on each node.
    pub(super) fn needed_memory(&self, lend_idle: bool) -> BTreeMap<NodeId, Bytes> {
        let lend_idle = lend_idle && self.estimate.is_some();
        let wanted = |node: &NodeId| self.wanted_on(*node);
        let held = |node: &NodeId| self.vm.holding.on(*node);
        match &self.terms.guarantee.memory {
            None => BTreeMap::new(),
            Some(MemoryDemand::PerNode(guaranteed)) => {
                let needed = |(node, bytes): (&NodeId, &Bytes)| {
                    (*node, if lend_idle { (*bytes).min(wanted(node)) } else { *bytes })
                };
                guaranteed.iter().map(needed).collect()
            }
            Some(MemoryDemand::Total(total)) => {
                let claim =
                    |(node, wanted): (&NodeId, &Bytes)| if lend_idle { *wanted } else { held(node).max(*wanted) };
                let parts = anywhere(*total, self.memory.keys().map(held), self.memory.iter().map(claim));
                self.memory.keys().copied().zip(parts).collect()
            }
        }
    }
}

/// A guarantee of memory that names no nodes, by node: first what is there where it is wanted; then what is there besides, for a guest's
/// kernel goes there when there is no more where it is wanted; what is then still missing, where it is wanted.
fn anywhere(
    total: Bytes,
    held: impl Iterator<Item = Bytes>,
    wanted: impl Iterator<Item = Bytes>,
) -> impl Iterator<Item = Bytes> {
    let nodes: Vec<(Bytes, Bytes)> = held.zip(wanted).collect();
    let sum = |part: &dyn Fn(&(Bytes, Bytes)) -> Bytes| nodes.iter().map(part).sum::<Bytes>();
    let needed = total.min(sum(&|(_, wanted)| *wanted));
    let here = sum(&|(held, wanted)| *held.min(wanted));
    let besides = sum(&|(held, wanted)| held.saturating_sub(*wanted));
    let lacks = sum(&|(held, wanted)| wanted.saturating_sub(*held));
    let of_here = needed.min(here);
    let of_besides = needed.saturating_sub(of_here).min(besides);
    let of_lacks = needed.saturating_sub(of_here).saturating_sub(of_besides);
    let part = |of: Bytes, bytes: Bytes, all: Bytes| match all.is_zero() {
        true => Bytes::ZERO,
        false => Bytes((u128::from(bytes.0) * u128::from(of.0) / u128::from(all.0)) as u64),
    };
    nodes.into_iter().map(move |(held, wanted)| {
        part(of_here, held.min(wanted), here)
            + part(of_besides, held.saturating_sub(wanted), besides)
            + part(of_lacks, wanted.saturating_sub(held), lacks)
    })
}

/// So many whole cores, and how much of the last it uses. A core more comes only for more than the band, and goes only with next to nothing
/// left for it to do.
fn whole(wanted: f64, held: usize, band: f64) -> (usize, f64) {
    let own = held as f64;
    let cores = if wanted > own {
        (wanted - band - 0.02 * wanted).ceil().max(own)
    } else {
        (wanted - (band / 4.0).min(0.25)).ceil().min(own)
    };
    let cores = cores.max(1.0);
    (cores as usize, if cores > own { (wanted - (cores - 1.0)).clamp(0.0, 1.0) } else { 1.0 })
}

/// So many whole cores it takes to serve what is wanted, whatever is held: less than half of what counts as a broken guarantee is let pass,
/// which a load that trembles does not reach.
fn at_least(wanted: f64) -> usize {
    (wanted - 0.15 - (0.015 * wanted).min(0.15)).ceil().max(1.0) as usize
}

/// What a VM is believed to want of a node.
fn estimate_on(estimate: Option<&Estimate>, node: NodeId) -> Option<&NodeEstimate> {
    estimate?.memory.get(&node)
}

/// What it wants of a node's memory; where that is not known, what it holds.
fn wants(vm: &VmScene, estimate: Option<&Estimate>, node: NodeId) -> Bytes {
    match (estimate, estimate_on(estimate, node)) {
        // What is out of its kernel's reach, as the map of memory, is no part of what it reports, but of what it holds.
        (_, Some(estimate)) => estimate.wanted + vm.holding.on(node).saturating_sub(estimate.total),
        (Some(_), None) => Bytes::ZERO,
        (None, None) => vm.holding.on(node),
    }
}

/// Where a VM's memory and devices are, as shares.
fn home(vm: &VmScene, estimate: Option<&Estimate>) -> BTreeMap<NodeId, f64> {
    let used: BTreeMap<NodeId, f64> = match estimate {
        Some(estimate) if !estimate.memory.is_empty() => {
            estimate.memory.iter().map(|(node, memory)| (*node, (memory.in_use.0 + memory.cache.0) as f64)).collect()
        }
        _ => held_shares(&vm.holding),
    };
    let all: f64 = used.values().sum();
    if all <= 0.0 && vm.homes.is_empty() {
        return BTreeMap::new();
    }
    let devices = if vm.homes.is_empty() { 0.0 } else { DEVICES };
    let memory = if all > 0.0 { 1.0 - devices } else { 0.0 };
    let devices = 1.0 - memory;
    let mut home: BTreeMap<NodeId, f64> = BTreeMap::new();
    for (node, bytes) in used.into_iter().filter(|(_, bytes)| *bytes > 0.0) {
        *home.entry(node).or_default() += memory * bytes / all;
    }
    for node in &vm.homes {
        *home.entry(*node).or_default() += devices / vm.homes.len() as f64;
    }
    home
}

fn held_shares(holding: &Resources) -> BTreeMap<NodeId, f64> {
    holding.memory.iter().map(|(node, bytes)| (*node, bytes.0 as f64)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guarantee_anywhere_keeps_what_is_there() {
        let by_node = |total: u64, held: [u64; 2], wanted: [u64; 2]| -> Vec<u64> {
            let bytes = |mib: u64| Bytes::mib(mib);
            let parts = anywhere(bytes(total), held.into_iter().map(bytes), wanted.into_iter().map(bytes));
            parts.map(|bytes| bytes.0 >> 20).collect()
        };
        assert_eq!(by_node(2000, [1000, 1000], [2000, 1000]), [1000, 1000], "all of it is there");
        assert_eq!(
            by_node(2000, [1000, 1000], [2000, 0]),
            [1000, 1000],
            "what is not where it is wanted is used all the same"
        );
        assert_eq!(by_node(2000, [500, 300], [3000, 0]), [1700, 300], "the rest is looked for where it is wanted");
        assert_eq!(by_node(2000, [500, 3000], [600, 200]), [500, 300], "no more than is wanted");
        assert_eq!(by_node(1000, [2000, 2000], [2000, 2000]), [500, 500], "no more than is guaranteed");
        assert_eq!(by_node(1000, [0, 0], [0, 0]), [0, 0]);
    }

    #[test]
    fn small_differences_change_nothing() {
        for wanted in [3.1, 3.4, 3.9, 4.0, 4.1, 4.25] {
            assert_eq!(whole(wanted, 4, 0.2).0, 4, "{wanted}");
        }
        assert_eq!(whole(4.5, 4, 0.2).0, 5);
        assert_eq!(whole(3.0, 4, 0.2).0, 3);
        assert_eq!(whole(3.1, 3, 0.2).0, 3);
        assert_eq!(whole(2.6, 4, 0.2).0, 3);
        assert_eq!(whole(0.0, 4, 0.2).0, 1);
        assert_eq!(whole(7.5, 2, 0.2), (8, 0.5));
    }
}
