//! The replica: the host's topology once more, as a guest sees it.
//!
//! **Problem.** A guest must see exactly the host's sockets, dies, cores, threads, last-level caches,
//! nodes and distances, and know nothing of the host's numbering: QEMU wants node ids without holes and
//! places vCPUs in a regular grid, and the guest's Linux numbers CPUs and nodes by itself.
//!
//! **Method.** All online CPUs are put in a grid of sockets x dies x modules x cores x threads, whose sides are
//! the largest count that occurs; a place of the grid that the host has nothing for stays empty. QEMU's
//! `cpu-index` ([`VcpuId`]) is the number of the place. Modules are used only for caches smaller than a die.
//!
//! The guest's Linux numbers CPUs in the order of the MADT, which has the vCPUs that are there in the order
//! of the grid. It numbers nodes in the order in which the SRAT first names them: vCPUs in the order of the
//! grid, then memory in the order of QEMU's nodes. QEMU's nodes are numbered in just that order here, so
//! [`GuestNodeId`] is right for QEMU and for the guest alike.
//!
//! **Properties** (tests of the same names): every online CPU is bound to exactly one vCPU; siblings are
//! siblings; nodes are kept; distances are equal.
//!
//! **Limits.** A node with neither CPUs nor boot memory is unknown to a guest's Linux; it is numbered last and noted.

mod grid;

use conuma_topology::{
    Bytes, CpuId, CpuSet, GuestCpuId, GuestCpuSet, GuestNodeId, Machine, NodeId, NodeSet, VcpuId, VcpuSet,
};
use serde::{Deserialize, Serialize};

use grid::Grid;

/// The most vCPUs, empty places included, that QEMU's q35 machine takes.
pub const VCPU_LIMIT: u32 = 4096;

/// SLIT: the distance of a node to itself, and the least possible.
const LOCAL_DISTANCE: u32 = 10;
/// SLIT: what is assumed where the host's firmware says nothing.
const REMOTE_DISTANCE: u32 = 20;
const LARGEST_DISTANCE: u32 = 254;

/// The host's topology as the guest sees it, and the maps between host and guest ids.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Replica {
    /// The sides of the grid.
    pub smp: Smp,
    /// What the last-level cache is shared by; `None` if the host's caches do not fit any level.
    pub llc: Option<LlcLevel>,
    /// The vCPUs that are there, by id.
    pub vcpus: Vec<Vcpu>,
    /// The nodes, by guest id, without holes.
    pub nodes: Vec<GuestNode>,
    /// `distances[from][to]` by guest node, SLIT units, 10 to 254.
    pub distances: Vec<Vec<u32>>,
    /// What could not be replicated exactly, and what was done instead.
    pub notes: Vec<String>,
}

/// The sides of the grid of vCPUs, each counted within the one before.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Smp {
    /// Sockets.
    pub sockets: u32,
    /// Dies in a socket.
    pub dies: u32,
    /// Modules in a die; more than 1 only where a last-level cache is smaller than a die.
    pub modules: u32,
    /// Cores in a module.
    pub cores: u32,
    /// Threads in a core.
    pub threads: u32,
}

/// A place in the grid.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Slot {
    /// Socket.
    pub socket: u32,
    /// Die in the socket.
    pub die: u32,
    /// Module in the die.
    pub module: u32,
    /// Core in the module.
    pub core: u32,
    /// Thread in the core.
    pub thread: u32,
}

/// What a last-level cache is shared by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LlcLevel {
    /// Every core has its own.
    Core,
    /// A part of a die.
    Module,
    /// A die (which may be the whole socket).
    Die,
    /// A socket of several dies.
    Socket,
}

/// A vCPU and the CPU it is bound to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Vcpu {
    /// QEMU's `cpu-index`.
    pub id: VcpuId,
    /// The host's CPU that its thread is bound to.
    pub cpu: CpuId,
    /// What the guest's Linux calls it.
    pub guest_cpu: GuestCpuId,
    /// Its node.
    pub node: GuestNodeId,
    /// Its place in the grid.
    pub slot: Slot,
}

/// A node of the guest and the host's node behind it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuestNode {
    /// The guest's and QEMU's id.
    pub id: GuestNodeId,
    /// The host's node.
    pub host: NodeId,
    /// Its vCPUs.
    pub vcpus: VcpuSet,
    /// Capacity of the host's node.
    pub capacity: Bytes,
}

/// A machine cannot be replicated.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReplicaError {
    /// No CPU is online.
    #[error("cannot replicate a machine without online CPUs")]
    NoCpus,
    /// No node is known.
    #[error("cannot replicate a machine without nodes")]
    NoNodes,
    /// The grid is too large.
    #[error("cannot replicate {cpus} CPUs: they need a grid of {places} vCPUs, QEMU takes {VCPU_LIMIT}")]
    TooLarge {
        /// Online CPUs.
        cpus: usize,
        /// Places of the smallest grid they fit in.
        places: u64,
    },
}

impl Smp {
    /// Places in the grid: QEMU's `maxcpus`.
    pub fn places(&self) -> u64 {
        [self.sockets, self.dies, self.modules, self.cores, self.threads].into_iter().map(u64::from).product()
    }

    /// The number of a place, which is the `cpu-index` of a vCPU there.
    pub fn vcpu(&self, slot: Slot) -> VcpuId {
        let die = slot.socket * self.dies + slot.die;
        let core = (die * self.modules + slot.module) * self.cores + slot.core;
        VcpuId(core * self.threads + slot.thread)
    }

    /// The place with this number.
    pub fn slot(&self, vcpu: VcpuId) -> Slot {
        let (rest, thread) = (vcpu.0 / self.threads, vcpu.0 % self.threads);
        let (rest, core) = (rest / self.cores, rest % self.cores);
        let (rest, module) = (rest / self.modules, rest % self.modules);
        Slot { socket: rest / self.dies, die: rest % self.dies, module, core, thread }
    }

    /// The largest APIC id: every side takes a whole number of its bits.
    pub fn largest_apic_id(&self) -> u64 {
        let sides = [self.dies, self.modules, self.cores, self.threads];
        let bits: u32 = sides.iter().map(|side| side.next_power_of_two().trailing_zeros()).sum();
        let inner = sides
            .iter()
            .fold(0_u64, |id, side| (id << side.next_power_of_two().trailing_zeros()) | u64::from(side - 1));
        (u64::from(self.sockets - 1) << bits) | inner
    }
}

impl Replica {
    /// The replica of `machine`; `with_memory` are the nodes on which the guest has boot memory.
    pub fn new(machine: &Machine, with_memory: &NodeSet) -> Result<Self, ReplicaError> {
        if machine.nodes.is_empty() {
            return Err(ReplicaError::NoNodes);
        }
        let mut notes = Vec::new();
        let grid = Grid::new(machine, &mut notes)?;
        let order = node_order(machine, &grid, with_memory, &mut notes);
        let guest_node = |host: NodeId| {
            let at = order.iter().position(|node| *node == host).expect("every node is in the order");
            GuestNodeId(at as u32)
        };
        let vcpus: Vec<Vcpu> = grid
            .places
            .iter()
            .enumerate()
            .map(|(rank, (slot, cpu))| Vcpu {
                id: grid.smp.vcpu(*slot),
                cpu: *cpu,
                guest_cpu: GuestCpuId(rank as u32),
                node: guest_node(grid.node_of(*cpu)),
                slot: *slot,
            })
            .collect();
        let nodes = order.iter().enumerate().map(|(at, host)| {
            let id = GuestNodeId(at as u32);
            let vcpus = vcpus.iter().filter(|vcpu| vcpu.node == id).map(|vcpu| vcpu.id).collect();
            GuestNode { id, host: *host, vcpus, capacity: machine.memory_of(*host) }
        });
        let nodes = nodes.collect();
        let distances = distances(machine, &order, &mut notes);
        Ok(Self { smp: grid.smp, llc: grid.llc, vcpus, nodes, distances, notes })
    }

    /// Whether every place of the grid has a vCPU.
    pub fn is_regular(&self) -> bool {
        self.smp.places() == self.vcpus.len() as u64
    }

    /// A vCPU, if it is there.
    pub fn vcpu(&self, id: VcpuId) -> Option<&Vcpu> {
        let at = self.vcpus.binary_search_by_key(&id, |vcpu| vcpu.id).ok()?;
        self.vcpus.get(at)
    }

    /// The vCPU that is bound to a CPU.
    pub fn vcpu_on(&self, cpu: CpuId) -> Option<&Vcpu> {
        self.vcpus.iter().find(|vcpu| vcpu.cpu == cpu)
    }

    /// The CPU that a vCPU is bound to.
    pub fn cpu_of(&self, vcpu: VcpuId) -> Option<CpuId> {
        self.vcpu(vcpu).map(|vcpu| vcpu.cpu)
    }

    /// All CPUs that vCPUs are bound to.
    pub fn cpus(&self) -> CpuSet {
        self.vcpus.iter().map(|vcpu| vcpu.cpu).collect()
    }

    /// The vCPUs bound to these CPUs.
    pub fn vcpus_on(&self, cpus: &CpuSet) -> VcpuSet {
        self.vcpus.iter().filter(|vcpu| cpus.contains(vcpu.cpu)).map(|vcpu| vcpu.id).collect()
    }

    /// The CPUs behind these vCPUs.
    pub fn cpus_of(&self, vcpus: &VcpuSet) -> CpuSet {
        self.vcpus.iter().filter(|vcpu| vcpus.contains(vcpu.id)).map(|vcpu| vcpu.cpu).collect()
    }

    /// What the guest calls the vCPUs on these CPUs.
    pub fn guest_cpus(&self, cpus: &CpuSet) -> GuestCpuSet {
        self.vcpus.iter().filter(|vcpu| cpus.contains(vcpu.cpu)).map(|vcpu| vcpu.guest_cpu).collect()
    }

    /// The host's CPUs behind what the guest calls its CPUs; ids that the guest cannot have are left out.
    pub fn host_cpus(&self, guest: &GuestCpuSet) -> CpuSet {
        self.vcpus.iter().filter(|vcpu| guest.contains(vcpu.guest_cpu)).map(|vcpu| vcpu.cpu).collect()
    }

    /// What the guest calls a node of the host.
    pub fn guest_node(&self, host: NodeId) -> Option<GuestNodeId> {
        self.nodes.iter().find(|node| node.host == host).map(|node| node.id)
    }

    /// The host's node behind a node of the guest.
    pub fn host_node(&self, guest: GuestNodeId) -> Option<NodeId> {
        self.nodes.get(guest.0 as usize).map(|node| node.host)
    }

    /// The node of every place of the grid, also of empty ones: that of the nearest vCPU before it.
    pub fn nodes_of_places(&self) -> Vec<GuestNodeId> {
        let mut nodes = Vec::with_capacity(self.smp.places() as usize);
        let mut last = GuestNodeId(0);
        // Grids are filled from the first place of each group on, so the vCPU before an empty place
        // is in its own core, module, die or socket, whichever has one.
        let mut vcpus = self.vcpus.iter().peekable();
        for place in 0..self.smp.places() as u32 {
            if let Some(vcpu) = vcpus.next_if(|vcpu| vcpu.id.0 == place) {
                last = vcpu.node;
            }
            nodes.push(last);
        }
        nodes
    }
}

/// The host's nodes in the order in which a guest's Linux meets them.
fn node_order(machine: &Machine, grid: &Grid, with_memory: &NodeSet, notes: &mut Vec<String>) -> Vec<NodeId> {
    let mut order: Vec<NodeId> = Vec::new();
    let mut seen = NodeSet::new();
    for (_, cpu) in &grid.places {
        let node = grid.node_of(*cpu);
        if seen.insert(node) {
            order.push(node);
        }
    }
    let rest: Vec<NodeId> = machine.nodes.keys().copied().filter(|node| !seen.contains(*node)).collect();
    let (known, unknown): (Vec<NodeId>, Vec<NodeId>) = rest.into_iter().partition(|node| with_memory.contains(*node));
    if !unknown.is_empty() {
        let unknown: NodeSet = unknown.iter().copied().collect();
        notes.push(format!("node {unknown} has neither CPUs nor boot memory: the guest's Linux will not show it"));
    }
    order.extend(known);
    order.extend(unknown);
    order
}

fn distances(machine: &Machine, order: &[NodeId], notes: &mut Vec<String>) -> Vec<Vec<u32>> {
    let mut changed = false;
    let mut unknown = false;
    let mut between = |from: NodeId, to: NodeId| {
        let wanted = match machine.distance(from, to) {
            Some(distance) => distance,
            None if from == to => LOCAL_DISTANCE,
            None => {
                unknown = true;
                REMOTE_DISTANCE
            }
        };
        let least = if from == to { LOCAL_DISTANCE } else { LOCAL_DISTANCE + 1 };
        let most = if from == to { LOCAL_DISTANCE } else { LARGEST_DISTANCE };
        changed |= wanted != wanted.clamp(least, most);
        wanted.clamp(least, most)
    };
    let rows = order.iter().map(|from| order.iter().map(|to| between(*from, *to)).collect()).collect();
    if unknown {
        notes.push(format!("the host gives no distances between some nodes: {REMOTE_DISTANCE} is assumed"));
    }
    if changed {
        notes.push(format!(
            "some distances are outside what a SLIT allows ({LOCAL_DISTANCE} at home, {} to {LARGEST_DISTANCE} \
             elsewhere) and were cut to it",
            LOCAL_DISTANCE + 1
        ));
    }
    rows
}
