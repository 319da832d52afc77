//! How well a VM does with what it has, 0 to 100, and a host with its VMs.

use std::collections::BTreeMap;

use conuma_balancing::Resources;
use conuma_topology::{Bytes, NodeId};

/// What a VM's score is made from.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Means<'a> {
    /// Cores that it wants; `None` if that is not known.
    pub(crate) wanted: Option<f64>,
    /// Cores that it has.
    pub(crate) cores: usize,
    /// What it loses by far cores, in cores.
    pub(crate) lost: f64,
    /// What it wants of each node's memory.
    pub(crate) memory: &'a BTreeMap<NodeId, Bytes>,
    /// What it has.
    pub(crate) holding: &'a Resources,
}

/// The part of its cores' work that it gets done, times the part of its memory that is where it wants it.
pub(crate) fn of_vm(means: &Means<'_>) -> f64 {
    let wanted = means.wanted.unwrap_or(means.cores as f64).max(0.01);
    let served = (means.cores as f64).min(wanted);
    // Far cores are used last.
    let lost = means.lost.min(served) * (served / (means.cores.max(1) as f64));
    let cores = ((served - lost) / wanted).clamp(0.0, 1.0);
    let all: u64 = means.memory.values().map(|bytes| bytes.0).sum();
    let there: u64 = means.memory.iter().map(|(node, wanted)| means.holding.on(*node).min(*wanted).0).sum();
    let memory = if all == 0 { 1.0 } else { there as f64 / all as f64 };
    100.0 * cores * memory
}

/// The mean of VMs, by weight; 100 for a host without any.
pub(crate) fn of_host(scores: impl Iterator<Item = (u32, f64)>) -> f64 {
    let (mut sum, mut weights) = (0.0, 0.0);
    for (weight, score) in scores {
        sum += f64::from(weight) * score;
        weights += f64::from(weight);
    }
    if weights > 0.0 { sum / weights } else { 100.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_or_far_costs_points() {
        let (memory, holding) = ([(NodeId(0), Bytes::gib(1))].into(), Resources::memory(NodeId(0), Bytes::gib(1)));
        let full = Means { wanted: Some(4.0), cores: 4, lost: 0.0, memory: &memory, holding: &holding };
        assert!((of_vm(&full) - 100.0).abs() < 1e-9);
        assert!((of_vm(&Means { cores: 2, ..full }) - 50.0).abs() < 1e-9);
        assert!((of_vm(&Means { lost: 0.4, ..full }) - 90.0).abs() < 1e-9);
        let half = Resources::memory(NodeId(0), Bytes::mib(512));
        assert!((of_vm(&Means { holding: &half, ..full }) - 50.0).abs() < 1e-9);
        assert!((of_host([(300, 100.0), (100, 0.0)].into_iter()) - 75.0).abs() < 1e-9);
    }
}
