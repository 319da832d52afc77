//! Questions that everyone asks of a machine.

use std::collections::BTreeMap;

use crate::bytes::Bytes;
use crate::ids::{CoreId, CpuId, DieId, LlcId, NodeId, PackageId};
use crate::machine::{Core, Machine, PciAddress, PciDevice};
use crate::set::{CpuSet, NodeSet};

impl Machine {
    /// CPUs that the kernel uses.
    pub fn online_cpus(&self) -> CpuSet {
        self.cpus.iter().filter(|(_, cpu)| cpu.online).map(|(id, _)| *id).collect()
    }

    /// CPUs that are there but not in use.
    pub fn offline_cpus(&self) -> CpuSet {
        self.cpus.iter().filter(|(_, cpu)| !cpu.online).map(|(id, _)| *id).collect()
    }

    /// The node of a CPU; `None` if unknown, as of most offline CPUs.
    pub fn node_of(&self, cpu: CpuId) -> Option<NodeId> {
        self.cpus.get(&cpu)?.node
    }

    /// The physical core of a CPU; known for every online CPU.
    pub fn core_of(&self, cpu: CpuId) -> Option<CoreId> {
        self.cpus.get(&cpu)?.core
    }

    /// The online CPUs of the same core, `cpu` itself among them; empty for a CPU that is offline
    /// or not there.
    pub fn siblings(&self, cpu: CpuId) -> CpuSet {
        self.core_of(cpu).and_then(|core| self.cores.get(&core)).map(|core| core.cpus.clone()).unwrap_or_default()
    }

    /// All online CPUs of these cores; cores that do not exist add nothing.
    pub fn cpus_of_cores(&self, cores: impl IntoIterator<Item = CoreId>) -> CpuSet {
        let mut cpus = CpuSet::new();
        for core in cores.into_iter().filter_map(|id| self.cores.get(&id)) {
            cpus.extend(core.cpus.iter());
        }
        cpus
    }

    /// The cores of which all online CPUs are in `cpus`, in ascending order.
    pub fn cores_within(&self, cpus: &CpuSet) -> Vec<CoreId> {
        self.cores.iter().filter(|(_, core)| core.cpus.is_subset(cpus)).map(|(id, _)| *id).collect()
    }

    /// `cpus` and all SMT siblings of its members: the whole cores that it touches.
    pub fn whole_cores(&self, cpus: &CpuSet) -> CpuSet {
        self.cpus_of_cores(cpus.iter().filter_map(|cpu| self.core_of(cpu)))
    }

    /// The cores on a node, in ascending order. A core that straddles nodes (buggy firmware)
    /// counts on the node of its first CPU.
    pub fn cores_on(&self, node: NodeId) -> Vec<CoreId> {
        self.cores.iter().filter(|(_, core)| self.node_of_core(core) == Some(node)).map(|(id, _)| *id).collect()
    }

    /// The node of a core: that of its first CPU.
    pub fn node_of_core(&self, core: &Core) -> Option<NodeId> {
        self.node_of(core.cpus.first()?)
    }

    /// All nodes.
    pub fn node_set(&self) -> NodeSet {
        self.nodes.keys().copied().collect()
    }

    /// Nodes with memory.
    pub fn memory_nodes(&self) -> NodeSet {
        self.nodes.iter().filter(|(_, node)| node.memory.is_some()).map(|(id, _)| *id).collect()
    }

    /// Nodes with online CPUs.
    pub fn cpu_nodes(&self) -> NodeSet {
        self.nodes.iter().filter(|(_, node)| !node.cpus.is_empty()).map(|(id, _)| *id).collect()
    }

    /// The online CPUs of every last-level cache.
    pub fn llcs(&self) -> BTreeMap<LlcId, CpuSet> {
        self.group_online(|cpu| cpu.llc)
    }

    /// The online CPUs of every package.
    pub fn packages(&self) -> BTreeMap<PackageId, CpuSet> {
        self.group_online(|cpu| cpu.package)
    }

    /// The online CPUs of every die.
    pub fn dies(&self) -> BTreeMap<DieId, CpuSet> {
        self.group_online(|cpu| cpu.die)
    }

    /// The distance from a CPU on `from` to memory on `to` in SLIT units; `None` if unknown.
    pub fn distance(&self, from: NodeId, to: NodeId) -> Option<u32> {
        self.distances.get(from, to)
    }

    /// The online CPUs nearest to the memory of a node: its own; for a node without CPUs those of its
    /// HMAT initiators, else of the nodes at the smallest distance (all of them, if several are).
    pub fn nearest_cpus(&self, node: NodeId) -> CpuSet {
        let cpus_of = |nodes: &NodeSet| -> CpuSet {
            nodes.iter().filter_map(|node| self.nodes.get(&node)).flat_map(|node| node.cpus.iter()).collect()
        };
        let own = cpus_of(&NodeSet::from([node]));
        if !own.is_empty() {
            return own;
        }
        // Class 1 speaks of CPUs only, class 0 of any initiator.
        for class in [1, 0] {
            let links = self.hmat.iter().filter(|link| link.target == node && link.access_class == class);
            let cpus: CpuSet = links.flat_map(|link| cpus_of(&link.initiators).iter().collect::<Vec<_>>()).collect();
            if !cpus.is_empty() {
                return cpus;
            }
        }
        let candidates = self.cpu_nodes();
        let nearest = candidates.iter().filter_map(|from| self.distance(from, node)).min();
        cpus_of(&candidates.iter().filter(|from| self.distance(*from, node) == nearest).collect())
    }

    /// The capacity of a node; zero for one without memory.
    pub fn memory_of(&self, node: NodeId) -> Bytes {
        self.nodes.get(&node).and_then(|node| node.memory).map(|memory| memory.total).unwrap_or_default()
    }

    /// The capacity of all nodes together.
    pub fn total_memory(&self) -> Bytes {
        self.nodes.keys().map(|node| self.memory_of(*node)).sum()
    }

    /// The devices at home on a node, by address.
    pub fn devices_on(&self, node: NodeId) -> impl Iterator<Item = (PciAddress, &PciDevice)> {
        self.devices
            .iter()
            .filter(move |(_, device)| device.home == Some(node))
            .map(|(address, device)| (*address, device))
    }

    fn group_online<G: Ord>(&self, group: impl Fn(&crate::machine::Cpu) -> Option<G>) -> BTreeMap<G, CpuSet> {
        let mut groups = BTreeMap::<G, CpuSet>::new();
        for (id, cpu) in self.cpus.iter().filter(|(_, cpu)| cpu.online) {
            if let Some(group) = group(cpu) {
                groups.entry(group).or_default().insert(*id);
            }
        }
        groups
    }
}
