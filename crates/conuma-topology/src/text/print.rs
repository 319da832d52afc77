//! Writing the text form: the shortest text that reads back as the same machine.

use std::collections::BTreeMap;

use crate::ids::Id;
use crate::machine::{CacheKind, Cpu, Machine, Node, PciAddress, PciDevice};
use crate::set::CpuSet;
use crate::text::shape::Shape;

/// Prints a machine.
pub(super) fn machine(machine: &Machine) -> String {
    let target = printable(machine);
    let reads_back = |text: &str| text.parse::<Machine>().is_ok_and(|read| printable(&read) == target);
    let extras = extras(&target);
    for shape in shapes(&target) {
        let text = join(std::iter::once(shape.to_string()).chain(extras.iter().cloned()));
        if reads_back(&text) {
            return text;
        }
    }
    let nodes: Vec<String> = target.nodes.iter().map(|(id, node)| node_item(id.0, node)).collect();
    let mut items = nodes;
    items.extend(extras);
    // Each group is written only if the machine cannot do without it.
    let threads = target.cores.values().map(|core| core.cpus.len()).max().unwrap_or(1);
    let smt = (threads > 1).then(|| format!("smt={threads}"));
    let cores = group_item("cores", target.cores.iter().map(|(id, core)| (id.0, core.cpus.clone())).collect());
    let packages = group_item("packages", numbers(target.packages()));
    let dies = group_item("dies", numbers(target.dies()));
    let llcs = group_item("llcs", numbers(target.llcs()));
    let mut best = join(items.iter().cloned().chain([cores.clone(), packages.clone(), dies.clone(), llcs.clone()]));
    for written in 0..16_u32 {
        let groups = [(&packages, 1), (&dies, 2), (&llcs, 4)];
        let groups = groups.into_iter().filter(|(_, bit)| written & bit != 0).map(|(text, _)| text.clone());
        let core_item = if written & 8 == 0 { smt.clone() } else { Some(cores.clone()) };
        let text = join(items.iter().cloned().chain(core_item).chain(groups));
        if text.len() < best.len() && reads_back(&text) {
            best = text;
        }
    }
    best
}

/// The machine as far as the text form can tell it.
fn printable(machine: &Machine) -> Machine {
    let mut printable = machine.clone();
    printable.notes.clear();
    printable.hmat.clear();
    printable.caches = machine.caches.iter().filter(|cache| cache.llc.is_some()).cloned().collect();
    for cache in &mut printable.caches {
        (cache.size, cache.level, cache.kind) = (None, 3, CacheKind::Unified);
    }
    printable.caches.sort_by_key(|cache| cache.llc);
    for cpu in printable.cpus.values_mut().filter(|cpu| !cpu.online) {
        *cpu = Cpu { online: false, node: None, package: None, die: None, core: None, llc: None };
    }
    printable
}

fn join(items: impl Iterator<Item = String>) -> String {
    items.collect::<Vec<_>>().join("; ")
}

/// Shapes that the machine could have, shortest first.
fn shapes(machine: &Machine) -> Vec<Shape> {
    let count = |n: usize| u32::try_from(n).ok();
    let per = |whole: usize, parts: usize| (parts > 0 && whole.is_multiple_of(parts)).then(|| whole / parts);
    let nodes = machine.nodes.len();
    let (cores, packages, llcs) = (machine.cores.len(), machine.packages().len(), machine.llcs().len());
    let memory = machine.nodes.keys().next().map(|node| machine.memory_of(*node)).unwrap_or_default();
    let shape = |packages: usize, llcs: Option<usize>| {
        Some(Shape {
            packages: Some(count(packages)?),
            nodes: count(per(nodes, packages)?)?,
            llcs: llcs.and_then(count),
            cores: count(per(per(cores, nodes)?, llcs.unwrap_or(1))?)?,
            threads: Some(count(per(machine.online_cpus().len(), cores)?)?),
            memory,
        })
    };
    let plain = |llcs: Option<usize>| Some(Shape { packages: None, ..shape(1, llcs)? });
    let per_node = per(llcs, nodes);
    [plain(None), plain(per_node), shape(packages, None), shape(packages, per_node)].into_iter().flatten().collect()
}

/// Distances, offline CPUs and devices: the same below a shape and below named nodes.
fn extras(machine: &Machine) -> Vec<String> {
    let mut items = Vec::new();
    let offline = machine.offline_cpus();
    if !offline.is_empty() {
        items.push(format!("off={offline}"));
    }
    let loose: CpuSet = machine.online_cpus().iter().filter(|cpu| machine.node_of(*cpu).is_none()).collect();
    if !loose.is_empty() {
        items.push(format!("cpus={loose}"));
    }
    if machine.distances.values.is_empty() {
        items.push("dist=none".into());
    } else {
        let default = |from: usize, to: usize| if from == to { 10 } else { 20 };
        let is_default = machine
            .distances
            .values
            .iter()
            .enumerate()
            .all(|(from, row)| row.iter().enumerate().all(|(to, distance)| *distance == default(from, to)));
        if !is_default {
            let row = |row: &Vec<u32>| row.iter().map(u32::to_string).collect::<Vec<_>>().join(",");
            items.push(format!("dist={}", machine.distances.values.iter().map(row).collect::<Vec<_>>().join("/")));
        }
    }
    items.extend(machine.devices.iter().map(|(address, device)| device_item(*address, device)));
    items
}

fn node_item(id: u32, node: &Node) -> String {
    let mut item = format!("node{id}");
    if !node.cpus.is_empty() {
        item.push_str(&format!(" cpus={}", node.cpus));
    }
    if let Some(memory) = node.memory {
        item.push_str(&format!(" mem={}", memory.total.exact()));
        if memory.free != memory.total {
            item.push_str(&format!(" free={}", memory.free.exact()));
        }
    }
    let pool = |(size, pages): (&crate::Bytes, &crate::HugePages)| match pages.free == pages.total {
        true => format!("{}:{}", size.exact(), pages.total),
        false => format!("{}:{}:{}", size.exact(), pages.total, pages.free),
    };
    if !node.huge_pages.is_empty() {
        let pools: Vec<String> = node.huge_pages.iter().map(pool).collect();
        item.push_str(&format!(" huge={}", pools.join(",")));
    }
    item
}

fn device_item(address: PciAddress, device: &PciDevice) -> String {
    let mut item = format!("dev {address}");
    let mut word = |key: &str, value: Option<String>| {
        if let Some(value) = value {
            item.push_str(&format!(" {key}={value}"));
        }
    };
    word("node", device.home.map(|home| home.to_string()));
    word("class", (device.class != 0).then(|| format!("{:06x}", device.class)));
    word("vendor", (device.vendor != 0).then(|| format!("{:04x}", device.vendor)));
    word("device", (device.device != 0).then(|| format!("{:04x}", device.device)));
    word("driver", device.driver.as_deref().map(plain));
    word("iommu", device.iommu_group.map(|group| group.to_string()));
    word("pf", device.physical_function.map(|function| function.to_string()));
    word(
        "gives",
        (!device.provides.is_empty())
            .then(|| device.provides.iter().map(|name| plain(name)).collect::<Vec<_>>().join(",")),
    );
    item
}

/// A name without the characters that mean something in a text.
fn plain(name: &str) -> String {
    name.chars().map(|c| if c.is_whitespace() || ",;=".contains(c) { '_' } else { c }).collect()
}

fn numbers<T: Id>(groups: BTreeMap<T, CpuSet>) -> Vec<(u32, CpuSet)> {
    groups.into_iter().map(|(id, cpus)| (id.number(), cpus)).collect()
}

fn group_item(key: &str, groups: Vec<(u32, CpuSet)>) -> String {
    if groups.is_empty() {
        return format!("{key}=none");
    }
    let part = |(index, (id, cpus)): (u32, &(u32, CpuSet))| match index == *id {
        true => cpus.to_string(),
        false => format!("{id}:{cpus}"),
    };
    let parts: Vec<String> = (0..).zip(&groups).map(part).collect();
    format!("{key}={}", parts.join("/"))
}
