//! NUMA nodes: CPUs, memory, huge pages, distances.

use std::collections::{BTreeMap, BTreeSet};

use conuma_topology::{Bytes, CpuId, CpuSet, Distances, HugePages, Machine, Node, NodeId, NodeMemory, NodeSet};

use super::notes::Notes;
use super::tree::Tree;

/// Where nodes live.
pub(super) const NODES: &str = "sys/devices/system/node";

/// Reads the nodes, or makes one of the whole machine where the kernel shows none.
pub(super) fn read(tree: &Tree, online: &CpuSet, machine: &mut Machine, notes: &mut Notes) {
    let kernel_nodes = online_nodes(tree, notes);
    if kernel_nodes.is_empty() {
        notes.add(NODES, "the kernel shows no nodes: the whole machine was taken for node 0");
        let memory = memory(tree.document("proc/meminfo").as_deref());
        let huge_pages = pools(tree, "sys/kernel/mm/hugepages");
        machine.nodes.insert(NodeId(0), Node { cpus: online.clone(), memory, huge_pages });
    } else {
        let gpu_nodes = gpu_memory(tree);
        let mut taken = CpuSet::new();
        let mut overlapping = LeftOut::default();
        let mut gpus = LeftOut::default();
        for id in &kernel_nodes {
            let node = read_node(tree, *id, online, notes);
            let size = node.memory.map(|memory| memory.total).unwrap_or_default();
            if !node.cpus.is_disjoint(&taken) {
                overlapping.add(*id, size);
            } else if gpu_nodes.contains(*id) {
                gpus.add(*id, size);
            } else {
                taken.extend(node.cpus.iter());
                machine.nodes.insert(*id, node);
            }
        }
        overlapping.note(
            "claim CPUs that a lower node has too: believed the lower node, for a CPU is on one node only",
            &format!("{NODES}/node*/cpumap"),
            notes,
        );
        gpus.note("are the memory of GPUs, in which no VM can live", "proc/driver/nvidia/gpus/*/numa_status", notes);
        read_distances(tree, &kernel_nodes, machine, notes);
    }
    for (id, node) in &machine.nodes {
        for cpu in node.cpus.iter() {
            machine.cpus.entry(cpu).and_modify(|cpu| cpu.node = Some(*id));
        }
    }
    note_homeless_cpus(tree, machine, notes);
}

/// The nodes in use, ascending. Nodes that are merely possible are not part of the machine.
fn online_nodes(tree: &Tree, notes: &mut Notes) -> Vec<NodeId> {
    let shown: NodeSet = tree.numbered(NODES, "node").into_iter().filter(|n| *n < 65_536).map(NodeId).collect();
    let listed: Option<NodeSet> = tree.list(&format!("{NODES}/online"));
    let online = match listed.filter(|listed| !listed.is_disjoint(&shown)) {
        Some(listed) => {
            let missing = listed.difference(&shown);
            if !missing.is_empty() {
                let text = format!("nodes {missing} are said to be online but have no directory: left out");
                notes.add(format!("{NODES}/online"), text);
            }
            listed.intersection(&shown)
        }
        None => shown,
    };
    let possible: NodeSet = tree.list(&format!("{NODES}/possible")).unwrap_or_default();
    let idle = possible.difference(&online);
    if !idle.is_empty() {
        notes.add(
            format!("{NODES}/possible"),
            format!("possible but not online: nodes {idle}; left out, for they have neither CPUs nor memory now"),
        );
    }
    online.iter().collect()
}

/// Nodes that are not made part of the machine.
#[derive(Default)]
struct LeftOut {
    nodes: NodeSet,
    memory: Bytes,
}

impl LeftOut {
    fn add(&mut self, node: NodeId, memory: Bytes) {
        self.nodes.insert(node);
        self.memory += memory;
    }

    fn note(&self, why: &str, place: &str, notes: &mut Notes) {
        if !self.nodes.is_empty() {
            notes.add(place, format!("nodes {} with {} {why}: left out", self.nodes, self.memory));
        }
    }
}

fn read_node(tree: &Tree, id: NodeId, online: &CpuSet, notes: &mut Notes) -> Node {
    let directory = format!("{NODES}/node{id}");
    Node {
        cpus: node_cpus(tree, &directory, notes).intersection(online),
        memory: memory(tree.text(&format!("{directory}/meminfo")).as_deref()),
        huge_pages: pools(tree, &format!("{directory}/hugepages")),
    }
}

/// The CPUs that a node claims. The mask is read before the list: where they differ, someone has
/// edited one of them, and other tools read the mask.
fn node_cpus(tree: &Tree, directory: &str, notes: &mut Notes) -> CpuSet {
    let mask: Option<CpuSet> = tree.mask(&format!("{directory}/cpumap"));
    let list: Option<CpuSet> = tree.list(&format!("{directory}/cpulist"));
    match (mask, list) {
        (Some(mask), Some(list)) => {
            if mask != list {
                notes.add(
                    format!("{directory}/cpumap"),
                    format!("cpumap says CPUs `{mask}`, cpulist says `{list}`: believed cpumap, as other tools do"),
                );
            }
            mask
        }
        (Some(cpus), None) | (None, Some(cpus)) => cpus,
        (None, None) => {
            let cpus: CpuSet = tree.numbered(directory, "cpu").into_iter().map(CpuId).collect();
            let text = format!("neither cpumap nor cpulist can be read: believed the CPUs linked there, `{cpus}`");
            notes.add(directory, text);
            cpus
        }
    }
}

/// Nodes that are memory of NVIDIA GPUs.
fn gpu_memory(tree: &Tree) -> NodeSet {
    const GPUS: &str = "proc/driver/nvidia/gpus";
    let node = |gpu: String| {
        let status = tree.text(&format!("{GPUS}/{gpu}/numa_status"))?;
        let line = status.lines().find_map(|line| line.trim().strip_prefix("Node:"))?;
        line.trim().parse().ok().filter(|node| *node < 65_536).map(NodeId)
    };
    tree.names(GPUS).into_iter().filter_map(node).collect()
}

/// Memory from a `meminfo`, of a node (`Node 0 MemTotal: 1 kB`) or of the machine (`MemTotal: 1 kB`).
fn memory(meminfo: Option<&str>) -> Option<NodeMemory> {
    let value = |key: &str| {
        let line = |line: &str| {
            let (name, value) = line.split_once(':')?;
            (name.split_whitespace().next_back() == Some(key)).then_some(())?;
            let kib: u64 = value.trim().trim_end_matches("kB").trim_end().parse().ok()?;
            kib.checked_mul(1024).map(Bytes)
        };
        meminfo?.lines().find_map(line)
    };
    let total = value("MemTotal").filter(|total| !total.is_zero())?;
    let free = value("MemFree").unwrap_or_default().min(total);
    Some(NodeMemory { total, free })
}

/// Huge page pools from a directory of `hugepages-2048kB`.
fn pools(tree: &Tree, directory: &str) -> BTreeMap<Bytes, HugePages> {
    let pool = |name: &String| {
        let kib: u64 = name.strip_prefix("hugepages-")?.strip_suffix("kB")?.parse().ok()?;
        let total = tree.value(&format!("{directory}/{name}/nr_hugepages"))?;
        let free = tree.value(&format!("{directory}/{name}/free_hugepages")).unwrap_or(0).min(total);
        Some((Bytes(kib.checked_mul(1024)?), HugePages { total, free }))
    };
    tree.names(directory).iter().filter_map(pool).collect()
}

/// Reads the table of distances. Each row has one number for every node that was online when it was
/// read; a table that does not fit is given up as a whole, for half of one misleads.
fn read_distances(tree: &Tree, kernel_nodes: &[NodeId], machine: &mut Machine, notes: &mut Notes) {
    let read_row = |id: &NodeId| {
        let row: Option<Vec<u32>> =
            tree.text(&format!("{NODES}/node{id}/distance"))?.split_whitespace().map(|n| n.parse().ok()).collect();
        row
    };
    let rows: Vec<Option<Vec<u32>>> = kernel_nodes.iter().map(read_row).collect();
    if rows.iter().all(Option::is_none) {
        if kernel_nodes.len() > 1 {
            notes.add(format!("{NODES}/node*/distance"), "no distances are told: left unknown");
        }
        return;
    }
    let possible: NodeSet = tree.list(&format!("{NODES}/possible")).unwrap_or_default();
    let possible: Vec<NodeId> = possible.iter().collect();
    let width = rows.iter().flatten().map(Vec::len).max().unwrap_or(0);
    let columns = if width == kernel_nodes.len() {
        kernel_nodes
    } else if width == possible.len() {
        let text =
            format!("rows have {width} numbers, online nodes {}: read as rows of the possible nodes", rows.len());
        notes.add(format!("{NODES}/node*/distance"), text);
        &possible
    } else {
        let text = format!("rows have {width} numbers, online nodes {}: distances left unknown", rows.len());
        notes.add(format!("{NODES}/node*/distance"), text);
        return;
    };
    let kept: BTreeSet<NodeId> = machine.nodes.keys().copied().collect();
    let mut values = Vec::new();
    for (id, row) in kernel_nodes.iter().zip(&rows) {
        let Some(row) = row.as_ref().filter(|row| row.len() == columns.len()) else {
            let text = format!("the row of node {id} cannot be read or has the wrong length: distances left unknown");
            notes.add(format!("{NODES}/node{id}/distance"), text);
            return;
        };
        let own = columns.iter().position(|column| column == id).and_then(|at| row.get(at)).copied().unwrap_or(0);
        if own < 10 || row.iter().any(|distance| *distance < own) {
            let text =
                format!("the row of node {id} has a distance below 10 or nearer than itself: distances left unknown");
            notes.add(format!("{NODES}/node{id}/distance"), text);
            return;
        }
        if kept.contains(id) {
            let cells = columns.iter().zip(row).filter(|(column, _)| kept.contains(column));
            values.push(cells.map(|(_, distance)| *distance).collect());
        }
    }
    machine.distances = Distances { nodes: kept.into_iter().collect(), values };
}

/// Notes online CPUs that no node claims, and which node they point to.
fn note_homeless_cpus(tree: &Tree, machine: &Machine, notes: &mut Notes) {
    let homeless = machine.cpus.iter().filter(|(_, cpu)| cpu.online && cpu.node.is_none()).map(|(id, _)| *id);
    let mut by_link = BTreeMap::<Vec<u32>, CpuSet>::new();
    for cpu in homeless {
        by_link.entry(tree.numbered(&format!("sys/devices/system/cpu/cpu{cpu}"), "node")).or_default().insert(cpu);
    }
    for (linked, cpus) in by_link {
        let why = match linked.as_slice() {
            [] => "no node claims them".to_owned(),
            nodes => {
                let nodes: NodeSet = nodes.iter().filter(|n| **n < 65_536).map(|n| NodeId(*n)).collect();
                format!("they point to node {nodes}, which was left out or does not claim them")
            }
        };
        notes.add("sys/devices/system/cpu", format!("CPUs {cpus} are online but {why}: they were given no node"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_read_from_both_forms() {
        let memory_of = |text| memory(Some(text)).map(|memory| (memory.total.0, memory.free.0));
        assert_eq!(memory_of("Node 0 MemTotal:  8 kB\nNode 0 MemFree: 2 kB\n"), Some((8192, 2048)));
        assert_eq!(memory_of("MemTotal:  8 kB\n"), Some((8192, 0)));
        assert_eq!(memory_of("Node 3 MemTotal: 0 kB\n"), None);
        assert_eq!(memory_of("Node 3 MemTotal: 99999999999999999999 kB\n"), None);
        assert_eq!(memory_of("MemTotal 8\nnonsense"), None);
        assert_eq!(memory_of("MemTotal: 1 kB\nMemFree: 2 kB"), Some((1024, 1024)));
    }
}
