//! Caches and who shares them.

use std::collections::BTreeMap;

use conuma_topology::{Bytes, Cache, CacheKind, CpuId, CpuSet, LlcId, Machine};

use super::cpus::{CPUS, note_dissent};
use super::groups::believe;
use super::notes::Notes;
use super::tree::Tree;

type Claims = BTreeMap<CpuId, CpuSet>;

/// Reads the caches of the online CPUs.
pub(super) fn read(tree: &Tree, online: &CpuSet, machine: &mut Machine, notes: &mut Notes) {
    let mut levels = BTreeMap::<(u32, CacheKind), Claims>::new();
    let mut directories = BTreeMap::<(u32, CacheKind, CpuId), String>::new();
    let mut top = BTreeMap::<CpuId, u32>::new();
    for cpu in online.iter() {
        for index in tree.numbered(&format!("{CPUS}/cpu{cpu}/cache"), "index") {
            let directory = format!("{CPUS}/cpu{cpu}/cache/index{index}");
            let Some(level) = tree.value::<u32>(&format!("{directory}/level")).filter(|level| (1..=9).contains(level))
            else {
                continue;
            };
            let kind = kind(tree.text(&format!("{directory}/type")).as_deref());
            if kind != CacheKind::Instruction {
                let highest = top.entry(cpu).or_insert(level);
                *highest = level.max(*highest);
            }
            let Some(claim) = sharing(tree, &directory, cpu, machine) else { continue };
            levels.entry((level, kind)).or_default().insert(cpu, claim.intersection(online));
            directories.insert((level, kind, cpu), directory);
        }
    }
    for ((level, kind), claims) in levels {
        let believed = believe(&claims);
        note_dissent(&believed, &format!("a level {level} cache"), notes);
        for cpus in believed.groups {
            let size = cpus.first().and_then(|cpu| directories.get(&(level, kind, cpu)));
            let size = size.and_then(|directory| size_of(tree.text(&format!("{directory}/size"))?.as_str()));
            machine.caches.push(Cache { level, kind, size, cpus, llc: None });
        }
    }
    name_last_levels(machine, &top);
}

fn kind(text: Option<&str>) -> CacheKind {
    match text {
        Some("Data") => CacheKind::Data,
        Some("Instruction") => CacheKind::Instruction,
        _ => CacheKind::Unified,
    }
}

/// Who shares the cache. Some firmware leaves the mask empty, which stands for the core.
fn sharing(tree: &Tree, directory: &str, cpu: CpuId, machine: &Machine) -> Option<CpuSet> {
    let map: CpuSet = tree
        .mask(&format!("{directory}/shared_cpu_map"))
        .or_else(|| tree.list(&format!("{directory}/shared_cpu_list")))?;
    Some(if map.is_empty() { machine.siblings(cpu) } else { map })
}

/// Sizes are written as `32K`; a size of zero says nothing.
fn size_of(text: &str) -> Option<Bytes> {
    text.parse().ok().filter(|size: &Bytes| !size.is_zero())
}

/// Numbers the last-level caches in the order of their first CPU. The last level of a CPU is
/// the highest that it tells of, even if who shares it is not known.
fn name_last_levels(machine: &mut Machine, top: &BTreeMap<CpuId, u32>) {
    let is_last = |cache: &&mut Cache| {
        cache.kind != CacheKind::Instruction
            && cache.cpus.first().is_some_and(|cpu| top.get(&cpu) == Some(&cache.level))
    };
    let mut last: Vec<&mut Cache> = machine.caches.iter_mut().filter(is_last).collect();
    last.sort_by_key(|cache| cache.cpus.first());
    for (id, cache) in (0..).map(LlcId).zip(last) {
        cache.llc = Some(id);
        for cpu in cache.cpus.iter() {
            machine.cpus.entry(cpu).and_modify(|cpu| cpu.llc = cpu.llc.or(Some(id)));
        }
    }
}
