//! What every machine must fulfil, whatever made it.
//!
//! A reader's machine fulfils this by construction. Machines from JSON or by hand may not, and whoever
//! takes one from outside validates it first.

use std::collections::BTreeMap;

use crate::bytes::Bytes;
use crate::ids::{CoreId, CpuId, LlcId, NodeId};
use crate::machine::{CacheKind, Machine, PciAddress};
use crate::set::{CpuSet, NodeSet};

/// The smallest distance that ACPI allows: a node to itself.
const LOCAL_DISTANCE: u32 = 10;

/// A contradiction within a machine.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    /// Nothing can run.
    #[error("no CPU is online")]
    NoCpu,
    /// There is nothing to bind to.
    #[error("there is no node")]
    NoNode,
    /// A node lists CPUs that are offline or not there.
    #[error("node {node} lists CPUs {cpus}, which are offline or not there")]
    NodeLists {
        /// The node.
        node: NodeId,
        /// The CPUs.
        cpus: CpuSet,
    },
    /// A node's list and its CPUs contradict each other.
    #[error("CPU {cpu} says that it is {}, but is listed {}", on_node(*.says), on_node(*.listed))]
    NodeOfCpu {
        /// The CPU.
        cpu: CpuId,
        /// What the CPU says.
        says: Option<NodeId>,
        /// The node that lists it.
        listed: Option<NodeId>,
    },
    /// Several nodes list the same CPUs.
    #[error("CPUs {cpus} of node {node} are on a lower node too")]
    NodesOverlap {
        /// The later node.
        node: NodeId,
        /// The CPUs.
        cpus: CpuSet,
    },
    /// More memory is free than there is.
    #[error("node {node} has {total} of memory but {free} free")]
    FreeMemory {
        /// The node.
        node: NodeId,
        /// Its capacity.
        total: Bytes,
        /// What is said to be free.
        free: Bytes,
    },
    /// A core has no CPUs, or CPUs that are offline or not there.
    #[error("core {core} lists CPUs `{cpus}`, which are none, offline or not there")]
    CoreLists {
        /// The core.
        core: CoreId,
        /// The CPUs.
        cpus: CpuSet,
    },
    /// An online CPU is not in the core that it names, or names none.
    #[error("CPUs {cpus} are online but not in the core that they name")]
    CoreOfCpu {
        /// The CPUs.
        cpus: CpuSet,
    },
    /// Several cores list the same CPUs.
    #[error("CPUs {cpus} of core {core} are in a lower core too")]
    CoresOverlap {
        /// The later core.
        core: CoreId,
        /// The CPUs.
        cpus: CpuSet,
    },
    /// SMT siblings on different nodes.
    #[error("core {core} has CPUs on nodes {nodes}")]
    CoreStraddles {
        /// The core.
        core: CoreId,
        /// The nodes.
        nodes: NodeSet,
    },
    /// A CPU names a last-level cache that is not there or not shared by it.
    #[error("CPU {cpu} names last-level cache {llc}, which does not list it")]
    LlcOfCpu {
        /// The CPU.
        cpu: CpuId,
        /// The cache.
        llc: LlcId,
    },
    /// Two caches of the same level and kind list the same CPUs.
    #[error("several level {level} caches list CPUs {cpus}")]
    CachesOverlap {
        /// The level.
        level: u32,
        /// The CPUs.
        cpus: CpuSet,
    },
    /// The distance table is of other nodes than the machine's, or not square.
    #[error("the distance table is not one row and column for each node")]
    DistanceShape,
    /// A distance below local, or a remote node nearer than the node itself.
    #[error("the distance from node {from} to node {to} is {distance}, below {least}")]
    Distance {
        /// Row.
        from: NodeId,
        /// Column.
        to: NodeId,
        /// What it is.
        distance: u32,
        /// What it is at least.
        least: u32,
    },
    /// A device is at home on a node that is not there.
    #[error("device {device} is at home on node {node}, which is not there")]
    DeviceHome {
        /// The device.
        device: PciAddress,
        /// The node.
        node: NodeId,
    },
    /// A virtual function of a device that is not there.
    #[error("device {device} is a virtual function of {parent}, which is not there")]
    DeviceParent {
        /// The device.
        device: PciAddress,
        /// Its physical function.
        parent: PciAddress,
    },
    /// HMAT speaks of a node that is not there.
    #[error("HMAT speaks of target node {node}, which is not there")]
    HmatTarget {
        /// The node.
        node: NodeId,
    },
}

fn on_node(node: Option<NodeId>) -> String {
    node.map_or_else(|| "on no node".to_owned(), |node| format!("on node {node}"))
}

impl Machine {
    /// Checks that the parts of the machine do not contradict each other.
    ///
    /// # Errors
    /// All contradictions found.
    pub fn validate(&self) -> Result<(), Vec<Problem>> {
        let online = self.online_cpus();
        let mut problems = Vec::new();
        if online.is_empty() {
            problems.push(Problem::NoCpu);
        }
        if self.nodes.is_empty() {
            problems.push(Problem::NoNode);
        }
        self.validate_nodes(&online, &mut problems);
        self.validate_cores(&online, &mut problems);
        self.validate_caches(&mut problems);
        self.validate_distances(&mut problems);
        self.validate_devices(&mut problems);
        if problems.is_empty() { Ok(()) } else { Err(problems) }
    }

    fn validate_nodes(&self, online: &CpuSet, problems: &mut Vec<Problem>) {
        let mut listed = BTreeMap::<CpuId, NodeId>::new();
        let mut taken = CpuSet::new();
        for (id, node) in &self.nodes {
            let strange = node.cpus.difference(online);
            if !strange.is_empty() {
                problems.push(Problem::NodeLists { node: *id, cpus: strange });
            }
            let twice = node.cpus.intersection(&taken);
            if !twice.is_empty() {
                problems.push(Problem::NodesOverlap { node: *id, cpus: twice });
            }
            for cpu in node.cpus.iter() {
                listed.entry(cpu).or_insert(*id);
            }
            taken.extend(node.cpus.iter());
            if let Some(memory) = node.memory.filter(|memory| memory.free > memory.total) {
                problems.push(Problem::FreeMemory { node: *id, total: memory.total, free: memory.free });
            }
        }
        for (cpu, of) in self.cpus.iter().filter(|(_, cpu)| cpu.online) {
            let listed = listed.get(cpu).copied();
            if of.node != listed {
                problems.push(Problem::NodeOfCpu { cpu: *cpu, says: of.node, listed });
            }
        }
    }

    fn validate_cores(&self, online: &CpuSet, problems: &mut Vec<Problem>) {
        let mut taken = CpuSet::new();
        for (id, core) in &self.cores {
            if core.cpus.is_empty() || !core.cpus.is_subset(online) {
                problems.push(Problem::CoreLists { core: *id, cpus: core.cpus.difference(online) });
            }
            let twice = core.cpus.intersection(&taken);
            if !twice.is_empty() {
                problems.push(Problem::CoresOverlap { core: *id, cpus: twice });
            }
            taken.extend(core.cpus.iter());
            let nodes: NodeSet = core.cpus.iter().filter_map(|cpu| self.node_of(cpu)).collect();
            if nodes.len() > 1 {
                problems.push(Problem::CoreStraddles { core: *id, nodes });
            }
        }
        let strange: CpuSet = online.iter().filter(|cpu| !self.siblings(*cpu).contains(*cpu)).collect();
        if !strange.is_empty() {
            problems.push(Problem::CoreOfCpu { cpus: strange });
        }
    }

    fn validate_caches(&self, problems: &mut Vec<Problem>) {
        let mut taken = BTreeMap::<(u32, CacheKind), CpuSet>::new();
        for cache in &self.caches {
            let taken = taken.entry((cache.level, cache.kind)).or_default();
            let twice = cache.cpus.intersection(taken);
            if !twice.is_empty() {
                problems.push(Problem::CachesOverlap { level: cache.level, cpus: twice });
            }
            taken.extend(cache.cpus.iter());
        }
        let sharing: BTreeMap<LlcId, &CpuSet> =
            self.caches.iter().filter_map(|cache| Some((cache.llc?, &cache.cpus))).collect();
        for (cpu, llc) in self.cpus.iter().filter_map(|(id, cpu)| Some((*id, cpu.llc?))) {
            if sharing.get(&llc).is_none_or(|cpus| !cpus.contains(cpu)) {
                problems.push(Problem::LlcOfCpu { cpu, llc });
            }
        }
    }

    fn validate_distances(&self, problems: &mut Vec<Problem>) {
        let table = &self.distances;
        if table.values.is_empty() && table.nodes.is_empty() {
            return;
        }
        let width = table.nodes.len();
        let square = table.values.len() == width && table.values.iter().all(|row| row.len() == width);
        if !square || !table.nodes.iter().eq(self.nodes.keys()) {
            problems.push(Problem::DistanceShape);
            return;
        }
        for (row, from) in table.values.iter().zip(&table.nodes) {
            let local = table.get(*from, *from).unwrap_or(LOCAL_DISTANCE).max(LOCAL_DISTANCE);
            for (&distance, to) in row.iter().zip(&table.nodes).filter(|(distance, _)| **distance < local) {
                problems.push(Problem::Distance { from: *from, to: *to, distance, least: local });
            }
        }
    }

    fn validate_devices(&self, problems: &mut Vec<Problem>) {
        for (address, device) in &self.devices {
            if let Some(node) = device.home.filter(|home| !self.nodes.contains_key(home)) {
                problems.push(Problem::DeviceHome { device: *address, node });
            }
            if let Some(parent) = device.physical_function.filter(|parent| !self.devices.contains_key(parent)) {
                problems.push(Problem::DeviceParent { device: *address, parent });
            }
        }
        let targets = self.hmat.iter().map(|link| link.target).filter(|target| !self.nodes.contains_key(target));
        problems.extend(targets.map(|node| Problem::HmatTarget { node }));
    }
}
