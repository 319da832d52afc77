//! What keeps decisions from following every breath: dwell times, and a budget of moves.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use conuma_balancing::Holder;
use conuma_topology::{NodeId, VmName};

use crate::decision::Decision;
use crate::rules::Tuning;

/// What the budget is counted over.
const MINUTE: Duration = Duration::from_secs(60);
/// Memory moves slower than cores: it dwells so many times longer.
const MEMORY: u32 = 10;

/// What moved lately.
#[derive(Debug, Clone, Default)]
pub(crate) struct Stability {
    cores: BTreeMap<VmName, Duration>,
    memory: BTreeMap<VmName, BTreeMap<NodeId, Duration>>,
    /// When, and how many moves of the budget.
    spent: VecDeque<(Duration, u32)>,
}

impl Stability {
    /// A decision is carried out.
    pub(crate) fn begun(&mut self, decision: &Decision, now: Duration, tuning: &Tuning) {
        for step in &decision.moves {
            for vm in [&step.step.from, &step.step.to].into_iter().filter_map(Holder::vm) {
                if !step.step.what.cpus.is_empty() {
                    self.cores.insert(vm.clone(), now);
                }
                for node in step.step.what.memory.keys() {
                    self.memory.entry(vm.clone()).or_default().insert(*node, now);
                }
            }
        }
        if decision.spends > 0 {
            self.spent.push_back((now, decision.spends));
        }
        self.spent.retain(|(at, _)| now.saturating_sub(*at) < MINUTE);
        let dwell = tuning.dwell() * MEMORY;
        self.memory.retain(|_, nodes| {
            nodes.retain(|_, at| now.saturating_sub(*at) < dwell);
            !nodes.is_empty()
        });
        self.cores.retain(|_, at| now.saturating_sub(*at) < MINUTE.max(dwell * 2));
    }

    /// Whether a VM's cores moved a moment ago.
    pub(crate) fn cores_dwell(&self, vm: &VmName, now: Duration, tuning: &Tuning) -> bool {
        self.cores.get(vm).is_some_and(|at| now.saturating_sub(*at) < tuning.dwell())
    }

    /// Whether a VM's cores moved within that time.
    pub(crate) fn cores_moved_within(&self, vm: &VmName, time: Duration, now: Duration) -> bool {
        self.cores.get(vm).is_some_and(|at| now.saturating_sub(*at) < time)
    }

    /// Whether a VM's memory on a node moved a moment ago.
    pub(crate) fn memory_dwells(&self, vm: &VmName, node: NodeId, now: Duration, tuning: &Tuning) -> bool {
        let at = self.memory.get(vm).and_then(|nodes| nodes.get(&node));
        at.is_some_and(|at| now.saturating_sub(*at) < tuning.dwell() * MEMORY)
    }

    /// How many more moves may be made now on a host with so many VMs.
    pub(crate) fn budget(&self, now: Duration, tuning: &Tuning, vms: usize) -> u32 {
        let recent = self.spent.iter().filter(|(at, _)| now.saturating_sub(*at) < MINUTE);
        let all = tuning.moves_per_minute.saturating_mul(u32::try_from(vms).unwrap_or(u32::MAX));
        all.saturating_sub(recent.map(|(_, moves)| moves).sum())
    }

    /// A VM has ended.
    pub(crate) fn forget(&mut self, vm: &VmName) {
        self.cores.remove(vm);
        self.memory.remove(vm);
    }
}
