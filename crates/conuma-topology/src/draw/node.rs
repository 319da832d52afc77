//! What is drawn in the box of a node.

use std::collections::BTreeMap;

use crate::bytes::Bytes;
use crate::draw::boxes::{Block, wrap};
use crate::draw::devices;
use crate::ids::{Id, LlcId, NodeId, PackageId};
use crate::machine::{Core, Machine, Node};
use crate::set::CpuSet;

/// With more cores than this on a node, caches are named with their CPUs instead of cores.
const CORES_DRAWN: usize = 32;
/// With more last-level caches than this on such a node, they are only counted.
const CACHES_NAMED: usize = 16;

/// The packages that the CPUs of a node are in.
pub(super) fn packages_of(machine: &Machine, node: &Node) -> Vec<PackageId> {
    let mut packages: Vec<PackageId> =
        node.cpus.iter().filter_map(|cpu| machine.cpus.get(&cpu).and_then(|cpu| cpu.package)).collect();
    packages.sort_unstable();
    packages.dedup();
    packages
}

/// The box of a node, with lines of at most `width` columns.
pub(super) fn block(machine: &Machine, id: NodeId, node: &Node, width: usize, name_package: bool) -> Block {
    let mut title = format!("node {id}");
    match node.memory {
        Some(memory) => title.push_str(&format!(" · {}", memory.total)),
        None => title.push_str(" · no memory"),
    }
    let packages = packages_of(machine, node);
    if let ([package], true) = (packages.as_slice(), name_package) {
        title.push_str(&format!(" · package {package}"));
    }
    let mut lines = Vec::new();
    if node.cpus.is_empty() {
        lines.push("no CPUs".to_owned());
    } else if packages.len() > 1 {
        for package in packages {
            let of_package = |cpu| machine.cpus.get(&cpu).is_some_and(|cpu| cpu.package == Some(package));
            let cpus = node.cpus.iter().filter(|cpu| of_package(*cpu)).collect();
            let inner = cpu_lines(machine, &cpus, width - 2);
            // A package with one cache is one line with it.
            match inner.split_first().filter(|(_, cores)| cores.iter().all(|line| line.starts_with(' '))) {
                Some((llc, cores)) if llc.starts_with("LLC ") => {
                    lines.push(format!("package {package} · {llc}"));
                    lines.extend_from_slice(cores);
                }
                _ => {
                    lines.push(format!("package {package}"));
                    lines.extend(inner.into_iter().map(|line| format!("  {line}")));
                }
            }
        }
    } else {
        lines.extend(cpu_lines(machine, &node.cpus, width));
    }
    if let Some(memory) = node.memory.filter(|memory| memory.free != memory.total) {
        lines.push(format!("free {}", memory.free));
    }
    let pools = node.huge_pages.iter().filter(|(_, pool)| pool.total > 0);
    lines.extend(pools.map(|(size, pool)| format!("huge {} x {size}, {} free", pool.total, pool.free)));
    lines.extend(devices::lines(machine, Some(id), width));
    Block { title, lines }
}

/// Last-level caches and their cores, in as much detail as is readable.
fn cpu_lines(machine: &Machine, cpus: &CpuSet, width: usize) -> Vec<String> {
    let mut cores = BTreeMap::<Option<LlcId>, Vec<&Core>>::new();
    for core in machine.cores.values().filter(|core| core.cpus.first().is_some_and(|first| cpus.contains(first))) {
        let llc = core.cpus.first().and_then(|cpu| machine.cpus.get(&cpu)).and_then(|cpu| cpu.llc);
        cores.entry(llc).or_default().push(core);
    }
    let count: usize = cores.values().map(Vec::len).sum();
    if count > CORES_DRAWN && cores.len() > CACHES_NAMED {
        return wrap(&[format!("CPUs {cpus}:"), format!("{count} cores,"), format!("{} LLCs", cores.len())], width, 2);
    }
    // Caches of one core each are drawn as one group: the brackets say it all.
    let private = cores.len() > 1 && cores.values().all(|cores| cores.len() == 1);
    if private && count <= CORES_DRAWN {
        let mut lines = vec![format!("{count} LLCs, one a core{}", llc_size(machine, cores.keys().next().copied()))];
        lines.extend(core_lines(cores.values().flatten().copied(), width));
        return lines;
    }
    let mut lines = Vec::new();
    for (llc, cores) in cores {
        let name = llc.map_or_else(|| "no LLC known".to_owned(), |llc| format!("LLC {llc}"));
        let is_told = llc.is_some() || !machine.caches.is_empty();
        let size = llc_size(machine, Some(llc));
        if count > CORES_DRAWN {
            let cpus: CpuSet = cores.iter().flat_map(|core| core.cpus.iter()).collect();
            let words = [format!("{name}{size}:"), format!("CPUs {cpus},"), format!("{} cores", cores.len())];
            lines.extend(wrap(&words, width, 2));
        } else {
            lines.extend(is_told.then(|| format!("{name}{size}")));
            lines.extend(core_lines(cores.into_iter(), width));
        }
    }
    lines
}

/// Cores as brackets around their CPUs, aligned in columns.
fn core_lines<'a>(cores: impl Iterator<Item = &'a Core>, width: usize) -> Vec<String> {
    let cores: Vec<Vec<u32>> = cores.map(|core| core.cpus.iter().map(Id::number).collect()).collect();
    let digits = cores.iter().flatten().max().map_or(1, |last| last.to_string().len());
    let threads = cores.iter().map(Vec::len).max().unwrap_or(1);
    let bracket = |cpus: &Vec<u32>| {
        let cpus: Vec<String> = cpus.iter().map(|cpu| format!("{cpu:>digits$}")).collect();
        let text = format!("[{}]", cpus.join(" "));
        format!("{text:<full$}", full = threads * (digits + 1) + 1)
    };
    let brackets: Vec<String> = cores.iter().map(bracket).collect();
    let mut lines = wrap(&brackets, width - 2, 0);
    for line in &mut lines {
        *line = format!("  {}", line.trim_end());
    }
    lines
}

fn llc_size(machine: &Machine, llc: Option<Option<LlcId>>) -> String {
    let size = |llc: LlcId| machine.caches.iter().find(|cache| cache.llc == Some(llc))?.size;
    llc.flatten().and_then(size).map(|size: Bytes| format!(" · {size}")).unwrap_or_default()
}
