//! Whether a machine can do what a VM file asks for.

use conuma_topology::{Bytes, CpuSet, Machine, NodeId, PciAddress};
use serde::{Deserialize, Serialize};

use super::error::{Problem, SpecError};
use super::{Boot, CoreWish, MEMORY_UNIT, MemoryWish, VmSpec, Wish};

/// What stays with the host itself.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Reserve {
    /// CPUs; a core of which any CPU is here is reserved as a whole.
    pub cpus: CpuSet,
    /// So much of every node's memory (all of a smaller node).
    pub memory_per_node: Bytes,
}

impl Reserve {
    /// CPUs of the cores that VMs may use.
    pub fn usable_cpus(&self, machine: &Machine) -> CpuSet {
        machine.online_cpus().difference(&machine.whole_cores(&self.cpus)).difference(&self.cpus)
    }

    /// Memory of a node that VMs may use.
    pub fn usable_memory(&self, machine: &Machine, node: NodeId) -> Bytes {
        machine.memory_of(node).saturating_sub(self.memory_per_node)
    }
}

impl Boot {
    /// Boot memory on one node: less than elsewhere on a node that has less to give.
    pub fn memory_on(&self, machine: &Machine, reserve: &Reserve, node: NodeId) -> Bytes {
        self.memory_per_node.min(reserve.usable_memory(machine, node).round_down(MEMORY_UNIT))
    }
}

impl VmSpec {
    /// Whether `machine` less `reserve` has all that this VM asks for (not whether it is free).
    pub fn check(&self, machine: &Machine, reserve: &Reserve) -> Result<(), SpecError> {
        let mut check = Check { spec: self, machine, reserve, problems: Vec::new() };
        check.wish("guarantee", &self.guarantee);
        if let Some(initial) = &self.initial {
            check.wish("initial", initial);
        }
        if let Some(limit) = &self.limit {
            check.names("limit", limit);
        }
        check.boot_memory();
        for (index, address) in self.devices.iter().enumerate() {
            check.device(&format!("devices.{index}"), *address);
        }
        if check.problems.is_empty() { Ok(()) } else { Err(self.source.error(check.problems)) }
    }
}

struct Check<'a> {
    spec: &'a VmSpec,
    machine: &'a Machine,
    reserve: &'a Reserve,
    problems: Vec<Problem>,
}

impl Check<'_> {
    fn wish(&mut self, path: &str, wish: &Wish) {
        self.names(path, wish);
        let usable = self.reserve.usable_cpus(self.machine);
        if let Some(CoreWish::Count(wanted)) = &wish.cores {
            let there = self.machine.cores_within(&usable).len();
            if *wanted > there {
                let message = format!("{wanted} cores are asked for, the host has {there}{}", self.less_reserve());
                self.wrong(&format!("{path}.cores"), message, None);
            }
        }
        if let Some(MemoryWish::Total(wanted)) = &wish.memory {
            let there: Bytes =
                self.machine.nodes.keys().map(|node| self.reserve.usable_memory(self.machine, *node)).sum();
            if *wanted > there {
                let message = format!("{wanted} of memory is asked for, the host has {there}{}", self.less_reserve());
                self.wrong(&format!("{path}.memory"), message, None);
            }
        }
        if let Some(MemoryWish::PerNode(nodes)) = &wish.memory {
            for (node, wanted) in nodes {
                let there = self.reserve.usable_memory(self.machine, *node);
                if self.machine.nodes.contains_key(node) && *wanted > there {
                    let message =
                        format!("{wanted} of node {node} is asked for, it has {there}{}", self.less_reserve());
                    self.wrong(&format!("{path}.memory.node{node}"), message, None);
                }
            }
        }
    }

    /// Nodes and CPUs that are named must be there, and CPUs must be whole cores.
    fn names(&mut self, path: &str, wish: &Wish) {
        if let Some(MemoryWish::PerNode(nodes)) = &wish.memory {
            for node in nodes.keys().filter(|node| !self.machine.nodes.contains_key(node)) {
                let hint = format!("the host's nodes: {}", self.machine.node_set());
                self.wrong(&format!("{path}.memory.node{node}"), format!("the host has no node {node}"), Some(hint));
            }
        }
        let Some(CoreWish::Cpus(cpus)) = &wish.cores else { return };
        let path = format!("{path}.cpus");
        let absent = cpus.difference(&self.machine.online_cpus());
        let reserved = cpus.difference(&absent).difference(&self.reserve.usable_cpus(self.machine));
        let whole = self.machine.whole_cores(cpus);
        if !absent.is_empty() {
            let hint = format!("the host's online CPUs: {}", self.machine.online_cpus());
            self.wrong(&path, format!("the host has no online CPU {absent}"), Some(hint));
        } else if !reserved.is_empty() {
            let hint = format!("CPUs that VMs may use: {}", self.reserve.usable_cpus(self.machine));
            self.wrong(&path, format!("CPU {reserved} is reserved for the host"), Some(hint));
        } else if !cpus.is_subset(&whole) || !whole.is_subset(cpus) {
            let missing = whole.difference(cpus);
            let message = format!("CPUs {cpus} are not whole cores: their SMT siblings {missing} are missing");
            self.wrong(&path, message, Some(format!("write \"{whole}\"")));
        }
    }

    /// Boot memory sits on every node, so it must fit everywhere, and within what is guaranteed.
    fn boot_memory(&mut self) {
        let boot = self.spec.boot.memory_per_node;
        let nodes: Vec<NodeId> = self.machine.memory_nodes().iter().collect();
        let most = nodes.iter().map(|node| self.reserve.usable_memory(self.machine, *node)).max().unwrap_or_default();
        if boot > most {
            let message =
                format!("boot memory of {boot} per node fits no node: the largest has {most}{}", self.less_reserve());
            self.wrong("boot.memory_per_node", message, None);
            return;
        }
        let boot_on = |node: NodeId| self.spec.boot.memory_on(self.machine, self.reserve, node);
        let total: Bytes = nodes.iter().map(|node| boot_on(*node)).sum();
        self.boot_memory_within("guarantee", self.spec.guarantee.memory.as_ref(), &nodes);
        let initial = self.spec.initial.as_ref();
        self.boot_memory_within("initial", initial.and_then(|wish| wish.memory.as_ref()), &nodes);
        if let Some(limit) = self.spec.limit.as_ref().and_then(|limit| limit.memory.as_ref())
            && limit.total() < total
        {
            let message = format!("the limit is {}, but boot memory alone is {total} ({boot} per node)", limit.total());
            self.wrong("limit.memory", message, Some("a guest needs boot memory on every node to see it".into()));
        }
    }

    /// Boot memory is part of whatever the VM holds, from its start to its end.
    fn boot_memory_within(&mut self, path: &str, wish: Option<&MemoryWish>, nodes: &[NodeId]) {
        let boot = self.spec.boot.memory_per_node;
        let boot_on = |node: &NodeId| self.spec.boot.memory_on(self.machine, self.reserve, *node);
        let hint = || Some(format!("boot memory never leaves the VM, so it counts in `[{path}]`"));
        match wish {
            Some(MemoryWish::Total(asked)) => {
                let total: Bytes = nodes.iter().map(boot_on).sum();
                if *asked < total {
                    let message =
                        format!("{asked} in all is too little: boot memory alone is {total} ({boot} per node)");
                    self.wrong(&format!("{path}.memory"), message, hint());
                }
            }
            Some(MemoryWish::PerNode(asked)) => {
                let have = |node: &NodeId| asked.get(node).copied().unwrap_or_default();
                let short: Vec<NodeId> = nodes.iter().copied().filter(|node| have(node) < boot_on(node)).collect();
                for node in short {
                    let message = format!(
                        "{} of node {node} is too little: boot memory alone is {}",
                        have(&node),
                        self.spec.boot.memory_on(self.machine, self.reserve, node)
                    );
                    let written = asked.contains_key(&node).then(|| format!("{path}.memory.node{node}"));
                    self.wrong(&written.unwrap_or_else(|| format!("{path}.memory")), message, hint());
                }
            }
            None => {}
        }
    }

    fn device(&mut self, path: &str, address: PciAddress) {
        let Some(device) = self.machine.devices.get(&address) else {
            let hint = "see `conuma topology` for the host's devices".to_owned();
            self.wrong(path, format!("the host has no PCI device {address}"), Some(hint));
            return;
        };
        // Without groups the IOMMU is off, or the machine is a description that does not tell.
        let grouped = self.machine.devices.values().any(|device| device.iommu_group.is_some());
        if grouped && device.iommu_group.is_none() {
            let hint = "passing devices through needs the IOMMU: boot the host with it enabled".to_owned();
            self.wrong(path, format!("PCI device {address} is in no IOMMU group"), Some(hint));
        }
    }

    fn less_reserve(&self) -> &'static str {
        if *self.reserve == Reserve::default() { "" } else { " (without its reserve)" }
    }

    fn wrong(&mut self, path: &str, message: String, hint: Option<String>) {
        self.problems.push(self.spec.source.problem(path, message, hint));
    }
}
