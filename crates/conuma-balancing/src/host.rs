//! What there is to divide: the host's cores and node memory, as far as the ledger cares.

use std::collections::BTreeMap;

use conuma_topology::{Bytes, CoreId, CpuSet, Distances, Machine, NodeId};
use serde::{Deserialize, Serialize};

use crate::holding::Resources;

/// The host as the ledger sees it. Does not change while the daemon runs.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Host {
    /// Whole cores: the unit that moves.
    pub cores: BTreeMap<CoreId, HostCore>,
    /// Capacity (`MemTotal`) of each node that has memory.
    pub memory: BTreeMap<NodeId, Bytes>,
    /// Distances between nodes, to choose near ones.
    pub distances: Distances,
    /// What stays with the host itself.
    pub reserve: Resources,
}

/// A core of the host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostCore {
    /// Its online CPUs.
    pub cpus: CpuSet,
    /// Its node; `None` where the kernel does not tell.
    pub node: Option<NodeId>,
}

impl Host {
    /// How far a node is from another, as the firmware tells: 10 is near. What it does not tell is one step.
    pub fn distance(&self, from: NodeId, to: NodeId) -> u32 {
        self.distances.get(from, to).unwrap_or(if from == to { 10 } else { 20 })
    }

    /// The host that `machine` describes, less a reserve: whole cores of which any CPU is in
    /// `reserve_cpus`, and `reserve_memory` of each node (all of a smaller node).
    ///
    /// An online CPU whose core is unknown counts as a core of its own.
    pub fn new(machine: &Machine, reserve_cpus: &CpuSet, reserve_memory: Bytes) -> Self {
        let mut cores = BTreeMap::new();
        let mut covered = CpuSet::new();
        for (id, core) in &machine.cores {
            let node = core.cpus.first().and_then(|cpu| machine.cpus.get(&cpu)?.node);
            covered.extend(core.cpus.iter());
            cores.insert(*id, HostCore { cpus: core.cpus.clone(), node });
        }
        let first = cores.keys().next_back().map_or(0, |id| id.0 + 1);
        let alone = machine.cpus.iter().filter(|(cpu, facts)| facts.online && !covered.contains(**cpu));
        for (id, (cpu, facts)) in (first..).zip(alone) {
            cores.insert(CoreId(id), HostCore { cpus: CpuSet::from([*cpu]), node: facts.node });
        }
        let capacity = |(id, node): (&NodeId, &conuma_topology::Node)| Some((*id, node.memory?.total));
        let memory: BTreeMap<NodeId, Bytes> =
            machine.nodes.iter().filter_map(capacity).filter(|(_, bytes)| !bytes.is_zero()).collect();
        let kept = cores.values().filter(|core| !core.cpus.is_disjoint(reserve_cpus));
        let reserve = Resources {
            cpus: kept.flat_map(|core| core.cpus.iter().collect::<Vec<_>>()).collect(),
            memory: memory
                .iter()
                .map(|(node, capacity)| (*node, reserve_memory.min(*capacity)))
                .filter(|(_, bytes)| !bytes.is_zero())
                .collect(),
        };
        Self { cores, memory, distances: machine.distances.clone(), reserve }
    }

    /// All there is, reserve included.
    pub fn everything(&self) -> Resources {
        let cpus = self.cores.values().flat_map(|core| core.cpus.iter()).collect();
        Resources { cpus, memory: self.memory.clone() }
    }

    /// The cores that `cpus` are made of, or the CPUs that are not part of a whole core in it.
    pub fn whole_cores(&self, cpus: &CpuSet) -> Result<Vec<CoreId>, CpuSet> {
        let mut rest = cpus.clone();
        let mut cores = Vec::new();
        for (id, core) in &self.cores {
            if !core.cpus.is_empty() && core.cpus.is_subset(cpus) {
                rest = rest.difference(&core.cpus);
                cores.push(*id);
            }
        }
        if rest.is_empty() { Ok(cores) } else { Err(rest) }
    }

    /// The CPUs of `cpus` that are part of a core that is wholly in it.
    pub fn whole_part(&self, cpus: &CpuSet) -> CpuSet {
        match self.whole_cores(cpus) {
            Ok(_) => cpus.clone(),
            Err(split) => cpus.difference(&split),
        }
    }

    /// All CPUs of the cores that `cpus` touch.
    pub fn widened(&self, cpus: &CpuSet) -> CpuSet {
        let touched = self.cores.values().filter(|core| !core.cpus.is_disjoint(cpus));
        touched.fold(CpuSet::new(), |sum, core| sum.union(&core.cpus))
    }

    /// How many whole cores are in `cpus`.
    pub fn count_cores(&self, cpus: &CpuSet) -> usize {
        self.cores.values().filter(|core| core.cpus.is_subset(cpus)).count()
    }
}
