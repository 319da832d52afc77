//! The host of a run, and who holds what at its begin.

use std::collections::BTreeMap;

use conuma_balancing::{CoreDemand, Demand, Host, MemoryDemand, MemoryDevice, Resources, VmSpec};
use conuma_policy::Layout;
use conuma_topology::{Bytes, CoreId, CpuId, CpuSet, Machine, NodeId};

use crate::outcome::Promise;
use crate::share::{Claim, fill_whole};
use crate::trace::{Trace, TraceVm, USUAL_HOST};

/// In what memory moves.
pub const BLOCK: Bytes = Bytes::mib(128);

/// Why a trace cannot be run.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SiteError {
    /// The host cannot be read.
    #[error("host `{shape}`: {why}")]
    Shape {
        /// As written.
        shape: String,
        /// What is wrong.
        why: String,
    },
    /// More is guaranteed than there is.
    #[error("{promised} cores are guaranteed, the host has {cores} (each VM always has one)")]
    Overpromised {
        /// To all VMs.
        promised: usize,
        /// Of the host.
        cores: usize,
    },
    /// The engine does not admit a VM.
    #[error("{vm} cannot start: {why}")]
    Refused {
        /// Which.
        vm: String,
        /// Why.
        why: String,
    },
}

/// A host, with VMs to share it.
#[derive(Debug, Clone)]
pub struct Site {
    /// As it was written.
    pub shape: String,
    /// As the ledger sees it.
    pub host: Host,
    /// Where its cores are.
    pub layout: Layout,
    /// Its nodes.
    pub nodes: Vec<NodeId>,
    /// Its CPUs, ascending.
    pub cpus: Vec<CpuId>,
    /// Its cores, node by node, each with the place of its node.
    pub cores: Vec<(CoreId, usize)>,
    /// Mean distance to another node beyond that to the own, in steps of 10.
    pub steps_away: f64,
    /// Each VM of the trace: what it is promised, and what it holds at first.
    pub vms: Vec<VmSpec>,
    /// Memory moves.
    pub has_memory: bool,
}

impl Site {
    /// The host that a trace, or who runs it, names, divided in proportion.
    pub fn new(trace: &Trace, host: Option<&str>) -> Result<Self, SiteError> {
        let shape = host.or(trace.host.as_deref()).unwrap_or(USUAL_HOST).to_owned();
        let wrong = |why: String| SiteError::Shape { shape: shape.clone(), why };
        let machine: Machine =
            shape.parse().map_err(|error: conuma_topology::ParseMachineError| wrong(error.to_string()))?;
        let host = Host::new(&machine, &CpuSet::new(), Bytes::ZERO);
        let layout = Layout::new(&host, &machine);
        let nodes: Vec<NodeId> = machine.nodes.keys().copied().collect();
        let place = |node: Option<NodeId>| nodes.iter().position(|known| Some(*known) == node).unwrap_or(0);
        let mut cores: Vec<(CoreId, usize)> = host.cores.iter().map(|(id, core)| (*id, place(core.node))).collect();
        cores.sort_by_key(|(core, node)| (*node, *core));
        if cores.is_empty() || nodes.is_empty() {
            return Err(wrong("no cores".into()));
        }
        let has_memory = trace.has_memory();
        if has_memory && host.memory.is_empty() {
            return Err(wrong("the trace wants memory, the host has none; write it as in 4n8c1t@16G".into()));
        }
        let cpus = layout.of_cpu.keys().copied().collect();
        let steps_away = steps_away(&host, &nodes);
        let mut site = Self { shape, host, layout, nodes, cpus, cores, steps_away, vms: Vec::new(), has_memory };
        site.vms = site.divide(trace)?;
        Ok(site)
    }

    /// Cores that a VM is guaranteed.
    pub fn guarantee(&self, vm: usize) -> usize {
        match self.vms[vm].guarantee.cores {
            Some(CoreDemand::Count(count)) => count,
            _ => 0,
        }
    }

    /// All that a VM is guaranteed.
    pub fn promise(&self, vm: usize) -> Promise {
        let memory = match &self.vms[vm].guarantee.memory {
            Some(MemoryDemand::Total(bytes)) => bytes.0 as f64,
            Some(MemoryDemand::PerNode(nodes)) => nodes.values().map(|bytes| bytes.0 as f64).sum(),
            None => 0.0,
        };
        Promise { cores: self.guarantee(vm), memory }
    }

    /// Cores that a VM can hold at most.
    pub fn limit(&self, vm: usize) -> usize {
        match self.vms[vm].limit.cores {
            Some(CoreDemand::Count(count)) => count,
            _ => self.cores.len(),
        }
    }

    /// What a VM holds at first.
    pub fn initial(&self, vm: usize) -> Resources {
        let demand = &self.vms[vm].initial;
        let cpus = match &demand.cores {
            Some(CoreDemand::Cpus(cpus)) => cpus.clone(),
            _ => CpuSet::new(),
        };
        let memory = match &demand.memory {
            Some(MemoryDemand::PerNode(memory)) => memory.clone(),
            _ => BTreeMap::new(),
        };
        Resources { cpus, memory }
    }

    /// Cores by the place of their node.
    pub fn by_node(&self, cores: &[CoreId]) -> Vec<usize> {
        let mut count = vec![0; self.nodes.len()];
        for core in cores {
            let node = self.layout.cores.get(core).and_then(|seat| seat.node);
            if let Some(place) = self.nodes.iter().position(|known| Some(*known) == node) {
                count[place] += 1;
            }
        }
        count
    }

    /// Each VM gets its guarantee and its part of the rest by weight: neighbouring cores, and the memory beside them.
    fn divide(&self, trace: &Trace) -> Result<Vec<VmSpec>, SiteError> {
        let all = self.cores.len();
        let usual = (all / (2 * trace.vms.len())).max(1);
        let limit = |vm: &TraceVm| vm.terms.limit.unwrap_or(all).clamp(1, all);
        let guarantee = |vm: &TraceVm| vm.terms.guarantee.unwrap_or(usual).min(limit(vm));
        let promised = trace.vms.iter().map(|vm| guarantee(vm).max(1)).sum();
        if promised > all {
            return Err(SiteError::Overpromised { promised, cores: all });
        }
        let claim = |vm: &TraceVm| Claim {
            floor: guarantee(vm).max(1) as f64,
            cap: limit(vm) as f64,
            weight: f64::from(vm.terms.weight),
        };
        let parts = fill_whole(all, &trace.vms.iter().map(claim).collect::<Vec<_>>());
        let mut next = self.cores.iter();
        let mine: Vec<Vec<(CoreId, usize)>> =
            parts.iter().map(|part| next.by_ref().take(*part).copied().collect()).collect();
        let boot = self.boot(trace.vms.len());
        Ok(trace
            .vms
            .iter()
            .zip(mine)
            .map(|(vm, cores)| VmSpec {
                name: vm.name.clone(),
                guarantee: Demand {
                    cores: Some(CoreDemand::Count(guarantee(vm))),
                    memory: vm.terms.memory.filter(|_| self.has_memory).map(MemoryDemand::Total),
                },
                limit: Demand { cores: vm.terms.limit.map(|_| CoreDemand::Count(limit(vm))), memory: None },
                initial: Demand {
                    cores: Some(CoreDemand::Cpus(self.cpus_of(&cores))),
                    memory: Some(MemoryDemand::PerNode(self.memory_beside(&cores, &boot, trace.vms.len()))),
                },
                boot: boot.clone(),
                devices: self.devices(),
                agentless: false,
            })
            .collect())
    }

    fn cpus_of(&self, cores: &[(CoreId, usize)]) -> CpuSet {
        let seats = cores.iter().filter_map(|(core, _)| self.layout.cores.get(core));
        seats.fold(CpuSet::new(), |sum, seat| sum.union(&seat.cpus))
    }

    /// A little on each node, so that every guest sees all of them.
    fn boot(&self, vms: usize) -> BTreeMap<NodeId, Bytes> {
        let part = |capacity: Bytes| Bytes(capacity.0 / (2 * vms as u64)).min(BLOCK).round_down(Bytes::mib(2));
        let nodes = self.host.memory.iter().filter(|_| self.has_memory);
        let boot = nodes.map(|(node, capacity)| (*node, part(*capacity)));
        boot.filter(|(_, bytes)| !bytes.is_zero()).collect()
    }

    fn devices(&self) -> BTreeMap<NodeId, MemoryDevice> {
        let device = |(node, capacity): (&NodeId, &Bytes)| (*node, MemoryDevice { max: *capacity, block: BLOCK });
        if self.has_memory { self.host.memory.iter().map(device).collect() } else { BTreeMap::new() }
    }

    /// Of each node's memory the part that its cores are of the node's.
    fn memory_beside(
        &self,
        cores: &[(CoreId, usize)],
        boot: &BTreeMap<NodeId, Bytes>,
        vms: usize,
    ) -> BTreeMap<NodeId, Bytes> {
        let mut memory = boot.clone();
        for (place, node) in self.nodes.iter().enumerate().filter(|_| self.has_memory) {
            let all = self.cores.iter().filter(|(_, of)| *of == place).count() as u64;
            let mine = cores.iter().filter(|(_, of)| *of == place).count() as u64;
            let boots = Bytes(boot.get(node).copied().unwrap_or_default().0 * vms as u64);
            let free = self.host.memory.get(node).copied().unwrap_or_default().saturating_sub(boots);
            if mine > 0 {
                *memory.entry(*node).or_default() += Bytes(free.0 / all * mine).round_down(BLOCK);
            }
        }
        memory
    }
}

fn steps_away(host: &Host, nodes: &[NodeId]) -> f64 {
    let mut steps = Vec::new();
    for from in nodes {
        for to in nodes.iter().filter(|to| *to != from) {
            steps.push(f64::from(host.distance(*from, *to).saturating_sub(10)) / 10.0);
        }
    }
    if steps.is_empty() { 0.0 } else { steps.iter().sum::<f64>() / steps.len() as f64 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_host_is_divided_in_proportion_with_memory_beside_the_cores() {
        let text =
            "# host 2n4c2t@4G\n# vm a weight=100 guarantee=1\n# vm b weight=300 guarantee=1\n0,a,1,100\n0,b,1,100\n";
        let trace = Trace::parse(text, "x").unwrap();
        let site = Site::new(&trace, None).unwrap();
        let held: Vec<Resources> = (0..2).map(|vm| site.initial(vm)).collect();
        assert_eq!(site.layout.cores_in(&held[0].cpus).len(), 3, "1 and a quarter of 6, rounded");
        assert_eq!(site.layout.cores_in(&held[1].cpus).len(), 5);
        assert_eq!(held[0].on(NodeId(1)), BLOCK, "only what it boots with");
        let sum = held[0].on(NodeId(0)) + held[1].on(NodeId(0));
        assert!(sum <= Bytes::gib(4) && sum > Bytes::mib(3584), "{held:?}");
    }

    #[test]
    fn too_many_guarantees_are_told() {
        let trace = Trace::parse("# host 1n2c1t@1G\n# vm a guarantee=2\n0,a,1\n0,b,1\n", "x").unwrap();
        assert_eq!(Site::new(&trace, None).unwrap_err(), SiteError::Overpromised { promised: 3, cores: 2 });
        assert!(matches!(Site::new(&trace, Some("4x")), Err(SiteError::Shape { .. })));
    }
}
