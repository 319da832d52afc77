//! What a text says, before the things it leaves open are filled in.

use std::collections::BTreeMap;

use crate::ids::{CpuId, Id, LlcId, NodeId};
use crate::machine::{Cache, CacheKind, Core, Cpu, Distances, Machine, Node, PciAddress, PciDevice};
use crate::set::CpuSet;

/// Level of the caches that a text speaks of.
const LLC_LEVEL: u32 = 3;

/// Numbered groups of CPUs.
pub(super) type Groups = Vec<(u32, CpuSet)>;

/// A machine as a text describes it.
#[derive(Debug, Default)]
pub(super) struct Layout {
    pub(super) nodes: BTreeMap<NodeId, NodeLayout>,
    /// Threads per core where `cores` does not tell.
    pub(super) threads: Option<u32>,
    /// `None`: left open.
    pub(super) cores: Option<Groups>,
    pub(super) packages: Option<Groups>,
    pub(super) dies: Option<Groups>,
    pub(super) llcs: Option<Groups>,
    /// `None`: left open; empty: unknown.
    pub(super) distances: Option<Vec<Vec<u32>>>,
    pub(super) offline: CpuSet,
    /// Online CPUs on no node.
    pub(super) loose: CpuSet,
    pub(super) devices: BTreeMap<PciAddress, PciDevice>,
}

/// A node and how its CPUs are grouped unless said otherwise.
#[derive(Debug, Default)]
pub(super) struct NodeLayout {
    pub(super) node: Node,
    /// Nodes with the same key share a package; `None`: a package of its own.
    pub(super) package: Option<u32>,
    /// Last-level caches on it, all of the same size.
    pub(super) llcs: usize,
}

impl Layout {
    /// Fills in what was left open.
    pub(super) fn into_machine(mut self) -> Machine {
        let cores = self.cores.take().unwrap_or_else(|| self.open_cores());
        let packages = self.packages.take().unwrap_or_else(|| self.open_packages());
        let dies = self.dies.take().unwrap_or_else(|| packages.clone());
        let llcs = self.llcs.take().unwrap_or_else(|| self.open_llcs());
        let distances = self.distances();

        let offline = self.offline;
        let online = |(id, cpus): (u32, CpuSet)| (id, cpus.difference(&offline));
        let keep = |groups: Groups| groups.into_iter().map(online).filter(|(_, cpus)| !cpus.is_empty()).collect();
        let [cores, packages, dies, llcs]: [Groups; 4] = [cores, packages, dies, llcs].map(keep);

        let mut machine = Machine { distances, devices: self.devices, ..Machine::default() };
        for (id, layout) in self.nodes {
            let mut node = layout.node;
            node.cpus = node.cpus.difference(&offline);
            machine.cpus.extend(node.cpus.iter().map(|cpu| (cpu, Cpu { node: Some(id), ..ONLINE })));
            machine.nodes.insert(id, node);
        }
        machine.cpus.extend(self.loose.iter().map(|cpu| (cpu, ONLINE)));
        machine.cpus.extend(offline.iter().map(|cpu| (cpu, Cpu { online: false, ..ONLINE })));
        let cpus = &mut machine.cpus;
        assign(cpus, &cores, |cpu, id| cpu.core = Some(Id::from_number(id)));
        assign(cpus, &packages, |cpu, id| cpu.package = Some(Id::from_number(id)));
        assign(cpus, &dies, |cpu, id| cpu.die = Some(Id::from_number(id)));
        assign(cpus, &llcs, |cpu, id| cpu.llc = Some(LlcId(id)));
        machine.caches = llcs.into_iter().map(llc).collect();
        machine.cores = cores.into_iter().map(|(id, cpus)| (Id::from_number(id), Core { cpus })).collect();
        machine
    }

    /// CPUs of every node in chunks of the number of threads.
    fn open_cores(&self) -> Groups {
        let threads = self.threads.unwrap_or(1).max(1) as usize;
        let homes = self.nodes.values().map(|node| &node.node.cpus).chain([&self.loose]);
        numbered(homes.flat_map(|cpus| chunks(cpus, threads)).collect())
    }

    fn open_packages(&self) -> Groups {
        let mut shared = BTreeMap::<u32, CpuSet>::new();
        let mut own = Vec::new();
        for node in self.nodes.values() {
            match node.package {
                Some(key) => shared.entry(key).or_default().extend(node.node.cpus.iter()),
                None => own.push(node.node.cpus.clone()),
            }
        }
        own.extend(shared.into_values());
        numbered(own)
    }

    fn open_llcs(&self) -> Groups {
        let per_node = |node: &NodeLayout| {
            let size = node.node.cpus.len().div_ceil(node.llcs.max(1)).max(1);
            chunks(&node.node.cpus, size)
        };
        numbered(self.nodes.values().flat_map(per_node).collect())
    }

    fn distances(&mut self) -> Distances {
        let nodes: Vec<NodeId> = self.nodes.keys().copied().collect();
        match self.distances.take() {
            Some(values) if values.is_empty() => Distances::default(),
            Some(values) => Distances { nodes, values },
            None => {
                let row = |from: &NodeId| nodes.iter().map(|to| if from == to { 10 } else { 20 }).collect();
                Distances { values: nodes.iter().map(row).collect(), nodes }
            }
        }
    }
}

const ONLINE: Cpu = Cpu { online: true, node: None, package: None, die: None, core: None, llc: None };

fn llc((id, cpus): (u32, CpuSet)) -> Cache {
    Cache { level: LLC_LEVEL, kind: CacheKind::Unified, size: None, cpus, llc: Some(LlcId(id)) }
}

fn assign(cpus: &mut BTreeMap<CpuId, Cpu>, groups: &Groups, set: impl Fn(&mut Cpu, u32)) {
    for (id, members) in groups {
        for cpu in members.iter() {
            cpus.entry(cpu).and_modify(|cpu| set(cpu, *id));
        }
    }
}

fn chunks(cpus: &CpuSet, size: usize) -> Vec<CpuSet> {
    let cpus: Vec<CpuId> = cpus.iter().collect();
    cpus.chunks(size).map(|chunk| chunk.iter().copied().collect()).collect()
}

/// Groups in the order of their first CPU, numbered from 0.
fn numbered(mut groups: Vec<CpuSet>) -> Groups {
    groups.retain(|cpus| !cpus.is_empty());
    groups.sort_by_key(CpuSet::first);
    (0..).zip(groups).collect()
}
