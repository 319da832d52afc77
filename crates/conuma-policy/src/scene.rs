//! What a decision is made from: a snapshot of the host and its VMs. The caller makes it from the ledger.

use std::collections::{BTreeMap, BTreeSet};

use conuma_balancing::{Demand, Engine, Holder, Host, Life, MemoryDevice, Resources};
use conuma_topology::{Bytes, CoreId, CpuId, CpuSet, Machine, NodeId, VmName};

use crate::rules::WallTime;

/// Where the host's cores are.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Layout {
    /// Each core's node, last-level cache and CPUs.
    pub cores: BTreeMap<CoreId, Seat>,
    /// The core of each CPU.
    pub of_cpu: BTreeMap<CpuId, CoreId>,
    /// The nodes that have cores.
    pub nodes: BTreeSet<Option<NodeId>>,
    /// By number of a CPU: the core that it is the first of, with all its CPUs. The same as the maps, found quicker.
    pub(crate) firsts: Vec<Option<(CoreId, CpuSet)>>,
    /// By number of a core: its node's place in `nodes`.
    pub(crate) places: Vec<Option<usize>>,
}

/// Where a core is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seat {
    /// Its node; `None` where the kernel does not tell.
    pub node: Option<NodeId>,
    /// Its last-level cache, by the lowest CPU that shares it.
    pub cache: CpuId,
    /// Its CPUs.
    pub cpus: CpuSet,
}

impl Layout {
    /// Of a host on a machine. A core whose cache is not known counts as having one of its own.
    pub fn new(host: &Host, machine: &Machine) -> Self {
        let mut caches = BTreeMap::new();
        for cpus in machine.llcs().values() {
            if let Some(first) = cpus.first() {
                caches.extend(cpus.iter().map(|cpu| (cpu, first)));
            }
        }
        Self::with(host, |cpu| caches.get(&cpu).copied())
    }

    /// Of a host in which all cores of a node share a cache.
    pub fn flat(host: &Host) -> Self {
        let mut first = BTreeMap::new();
        for core in host.cores.values() {
            if let (Some(node), Some(cpu)) = (core.node, core.cpus.first()) {
                first.entry(node).or_insert(cpu);
            }
        }
        let node_of: BTreeMap<CpuId, NodeId> =
            host.cores.values().filter_map(|core| Some((core.cpus.first()?, core.node?))).collect();
        Self::with(host, |cpu| first.get(node_of.get(&cpu)?).copied())
    }

    fn with(host: &Host, cache: impl Fn(CpuId) -> Option<CpuId>) -> Self {
        let mut layout = Self::default();
        for (id, core) in &host.cores {
            let Some(first) = core.cpus.first() else { continue };
            let (cache, cpus) = (cache(first).unwrap_or(first), core.cpus.clone());
            let seat = Seat { node: core.node, cache, cpus };
            layout.nodes.insert(seat.node);
            layout.of_cpu.extend(core.cpus.iter().map(|cpu| (cpu, *id)));
            let number = first.0 as usize;
            layout.firsts.resize(layout.firsts.len().max(number + 1), None);
            layout.firsts[number] = Some((*id, core.cpus.clone()));
            layout.cores.insert(*id, seat);
        }
        for (core, seat) in &layout.cores {
            let number = core.0 as usize;
            layout.places.resize(layout.places.len().max(number + 1), None);
            layout.places[number] = layout.nodes.iter().position(|node| *node == seat.node);
        }
        layout
    }

    /// The place of a core's node in [`Layout::nodes`].
    pub(crate) fn place(&self, core: CoreId) -> Option<usize> {
        *self.places.get(core.0 as usize)?
    }

    /// The whole cores in a set of CPUs, ascending.
    pub fn cores_in(&self, cpus: &CpuSet) -> Vec<CoreId> {
        let whole = |cpu: CpuId| {
            let (core, own) = self.firsts.get(cpu.0 as usize)?.as_ref()?;
            own.is_subset(cpus).then_some(*core)
        };
        let mut cores: Vec<CoreId> = cpus.iter().filter_map(whole).collect();
        cores.sort();
        cores
    }
}

/// The host and its VMs now.
#[derive(Debug, Clone)]
pub struct Scene<'a> {
    /// What there is to divide.
    pub host: &'a Host,
    /// Where its cores are.
    pub layout: &'a Layout,
    /// CPUs that nobody can use.
    pub offline: CpuSet,
    /// What nobody holds, once all that is under way has arrived.
    pub pool: Resources,
    /// The VMs that run.
    pub vms: Vec<VmScene>,
    /// For time windows.
    pub wall: WallTime,
}

/// A VM now.
#[derive(Debug, Clone, PartialEq)]
pub struct VmScene {
    /// Its name.
    pub name: VmName,
    /// What its file says it always gets back.
    pub guarantee: Demand,
    /// What its file says it can hold at most.
    pub limit: Demand,
    /// What its file says of its share of what is left. Greater than 0; 100 is usual.
    pub weight: u32,
    /// Boot memory per node: never moves.
    pub boot: BTreeMap<NodeId, Bytes>,
    /// Its virtio-mem devices.
    pub devices: BTreeMap<NodeId, MemoryDevice>,
    /// Nodes of devices that are passed through to it.
    pub homes: BTreeSet<NodeId>,
    /// What it holds, once all that is under way has arrived.
    pub holding: Resources,
    /// What of it is under way, and so is left alone.
    pub busy: Busy,
    /// Whether memory can be taken from it.
    pub lends_memory: bool,
    /// Whether it can be given memory.
    pub takes_memory: bool,
}

/// The knobs of a VM that are being turned.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Busy {
    /// Its cores.
    pub cores: bool,
    /// Its memory on these nodes.
    pub memory: BTreeSet<NodeId>,
}

/// What of a VM only its file says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VmFacts {
    /// Its share.
    pub weight: u32,
    /// Nodes of devices that are passed through to it.
    pub homes: BTreeSet<NodeId>,
}

/// The scene that an engine shows: VMs that run, with what they will hold once all that is under way has arrived.
pub fn scene_of<'a>(
    engine: &'a Engine,
    layout: &'a Layout,
    facts: impl Fn(&VmName) -> VmFacts,
    wall: WallTime,
) -> Scene<'a> {
    let mut expected = engine.expected();
    let turning = engine.turning();
    let running = engine.vms().into_iter().filter(|view| view.life == Life::Running);
    let vms = running.map(|view| {
        let name = view.spec.name.clone();
        let VmFacts { weight, homes } = facts(&name);
        let busy = turning.get(&name).cloned().unwrap_or_default();
        VmScene {
            guarantee: view.spec.guarantee,
            limit: view.spec.limit,
            weight,
            boot: view.spec.boot,
            devices: view.spec.devices,
            homes,
            holding: expected.remove(&Holder::Vm(name.clone())).unwrap_or_default(),
            busy: Busy { cores: busy.cores, memory: busy.memory },
            lends_memory: view.lends_memory,
            takes_memory: view.takes_memory,
            name,
        }
    });
    let vms = vms.collect();
    let pool = expected.remove(&Holder::Pool).unwrap_or_default();
    Scene { host: engine.host(), layout, offline: engine.state().offline().clone(), pool, vms, wall }
}
