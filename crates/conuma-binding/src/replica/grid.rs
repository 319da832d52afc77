//! Putting the host's online CPUs in a regular grid.

use std::collections::BTreeMap;

use conuma_topology::{CpuId, CpuSet, Machine, NodeId};

use super::{LlcLevel, ReplicaError, Slot, Smp, VCPU_LIMIT};

/// The host's CPUs, each at its place.
pub(super) struct Grid {
    pub(super) smp: Smp,
    pub(super) llc: Option<LlcLevel>,
    /// In ascending order of places.
    pub(super) places: Vec<(Slot, CpuId)>,
    nodes: BTreeMap<CpuId, NodeId>,
}

/// What a CPU is part of, from the outside in. Parts are named by their first CPU, which also sorts them.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Parts {
    package: CpuId,
    die: CpuId,
    module: CpuId,
    core: CpuId,
    cpu: CpuId,
}

/// How much of the structure between socket and core is kept.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Keep {
    All,
    Dies,
    Sockets,
}

impl Grid {
    pub(super) fn new(machine: &Machine, notes: &mut Vec<String>) -> Result<Self, ReplicaError> {
        let parts = parts(machine);
        if parts.is_empty() {
            return Err(ReplicaError::NoCpus);
        }
        let llc = llc_level(machine, &parts);
        if llc.is_none() && machine.cpus.values().any(|cpu| cpu.online && cpu.llc.is_some()) {
            notes.push(
                "last-level caches are shared by neither sockets, dies, cores nor parts of a die: \
                        the guest will see one per die"
                    .into(),
            );
        }
        let mut fallback = 0;
        for keep in [Keep::All, Keep::Dies, Keep::Sockets] {
            let simplified = simplify(&parts, keep, llc);
            let (smp, places) = fill(&simplified);
            if smp.places() <= VCPU_LIMIT.into() {
                if keep != Keep::All {
                    let lost = if keep == Keep::Dies { "parts of dies" } else { "dies" };
                    notes.push(format!("a grid with the host's {lost} is too large: the guest will not see them"));
                }
                let kept = llc.filter(|level| match level {
                    LlcLevel::Module => keep == Keep::All,
                    LlcLevel::Die => keep != Keep::Sockets || smp.dies == 1,
                    LlcLevel::Core | LlcLevel::Socket => true,
                });
                return Ok(Self { smp, llc: kept, places, nodes: nodes(machine, notes) });
            }
            fallback = smp.places();
        }
        Err(ReplicaError::TooLarge { cpus: parts.len(), places: fallback })
    }

    pub(super) fn node_of(&self, cpu: CpuId) -> NodeId {
        self.nodes[&cpu]
    }
}

/// The node of every online CPU; one without a known node counts to the first node.
fn nodes(machine: &Machine, notes: &mut Vec<String>) -> BTreeMap<CpuId, NodeId> {
    let first = *machine.nodes.keys().next().expect("checked by the caller");
    let mut homeless = CpuSet::new();
    let mut nodes = BTreeMap::new();
    for cpu in machine.online_cpus().iter() {
        let node = machine.node_of(cpu).filter(|node| machine.nodes.contains_key(node)).unwrap_or_else(|| {
            homeless.insert(cpu);
            first
        });
        nodes.insert(cpu, node);
    }
    if !homeless.is_empty() {
        notes.push(format!("CPU {homeless} belongs to no known node: node {first} is assumed"));
    }
    nodes
}

/// Every online CPU's parts, sorted. What is unknown is assumed to be one with what is around it; a CPU
/// whose core is unknown is a core of its own. Siblings stay together, whatever else is said of them.
fn parts(machine: &Machine) -> Vec<Parts> {
    let online = machine.online_cpus();
    let mut packages = BTreeMap::new();
    let mut dies = BTreeMap::new();
    let mut modules = BTreeMap::new();
    let mut cores = BTreeMap::<_, Parts>::new();
    let mut parts = Vec::with_capacity(online.len());
    for id in online.iter() {
        let cpu = &machine.cpus[&id];
        if let Some(first) = cpu.core.and_then(|core| cores.get(&core)) {
            parts.push(Parts { cpu: id, ..*first });
            continue;
        }
        let package = *packages.entry(cpu.package).or_insert(id);
        let die = *dies.entry((package, cpu.die)).or_insert(id);
        let module = *modules.entry((die, cpu.llc)).or_insert(id);
        let part = Parts { package, die, module, core: id, cpu: id };
        if let Some(core) = cpu.core {
            cores.insert(core, part);
        }
        parts.push(part);
    }
    parts.sort();
    parts
}

/// What every last-level cache is the same as. Where a die is the whole socket, the die.
fn llc_level(machine: &Machine, parts: &[Parts]) -> Option<LlcLevel> {
    let caches = machine.llcs();
    let covered: usize = caches.values().map(CpuSet::len).sum();
    if caches.is_empty() || covered != parts.len() {
        return None;
    }
    let is_same = |part: fn(&Parts) -> CpuId| {
        let mut groups = BTreeMap::<CpuId, CpuSet>::new();
        for p in parts {
            groups.entry(part(p)).or_default().insert(p.cpu);
        }
        groups.len() == caches.len() && caches.values().all(|cache| groups.values().any(|group| group == cache))
    };
    if is_same(|p| p.die) {
        Some(LlcLevel::Die)
    } else if is_same(|p| p.package) {
        Some(LlcLevel::Socket)
    } else if is_same(|p| p.core) {
        Some(LlcLevel::Core)
    } else if is_same(|p| p.module) {
        Some(LlcLevel::Module)
    } else {
        None
    }
}

fn simplify(parts: &[Parts], keep: Keep, llc: Option<LlcLevel>) -> Vec<Parts> {
    let mut simplified: Vec<Parts> = parts
        .iter()
        .map(|p| {
            let die = if keep == Keep::Sockets { p.package } else { p.die };
            let modular = keep == Keep::All && llc == Some(LlcLevel::Module);
            Parts { die, module: if modular { p.module } else { die }, ..*p }
        })
        .collect();
    simplified.sort();
    simplified
}

/// Numbers the parts within each other. `parts` is sorted, so every change of a part begins the next one.
fn fill(parts: &[Parts]) -> (Smp, Vec<(Slot, CpuId)>) {
    let mut smp = Smp { sockets: 1, dies: 1, modules: 1, cores: 1, threads: 1 };
    let mut slot = Slot { socket: 0, die: 0, module: 0, core: 0, thread: 0 };
    let mut places = Vec::with_capacity(parts.len());
    let mut before: Option<&Parts> = None;
    for part in parts {
        slot = match before {
            None => slot,
            Some(p) if p.package != part.package => {
                Slot { socket: slot.socket + 1, die: 0, module: 0, core: 0, thread: 0 }
            }
            Some(p) if p.die != part.die => Slot { die: slot.die + 1, module: 0, core: 0, thread: 0, ..slot },
            Some(p) if p.module != part.module => Slot { module: slot.module + 1, core: 0, thread: 0, ..slot },
            Some(p) if p.core != part.core => Slot { core: slot.core + 1, thread: 0, ..slot },
            Some(_) => Slot { thread: slot.thread + 1, ..slot },
        };
        smp.sockets = smp.sockets.max(slot.socket + 1);
        smp.dies = smp.dies.max(slot.die + 1);
        smp.modules = smp.modules.max(slot.module + 1);
        smp.cores = smp.cores.max(slot.core + 1);
        smp.threads = smp.threads.max(slot.thread + 1);
        places.push((slot, part.cpu));
        before = Some(part);
    }
    (smp, places)
}
