//! CPUs from procfs, for kernels whose sysfs does not show them.

use std::collections::BTreeMap;

use conuma_topology::{CpuId, CpuSet, Machine, PackageId};

use super::cpus::{name_cores, unknown_cpu};
use super::notes::Notes;
use super::tree::Tree;

/// What `/proc/cpuinfo` says of a CPU.
#[derive(Debug, Default, Clone, Copy, PartialEq)]
struct Processor {
    package: Option<u32>,
    core: Option<u32>,
}

/// Reads CPUs, cores and packages from `/proc/cpuinfo`, or at least the CPUs from `/proc/stat`;
/// `None` if neither names one.
pub(super) fn read(tree: &Tree, machine: &mut Machine, notes: &mut Notes) -> Option<()> {
    let cpuinfo = tree.document("proc/cpuinfo").map(|text| processors(&text)).unwrap_or_default();
    let (place, processors) = if cpuinfo.is_empty() {
        ("proc/stat", tree.document("proc/stat").map(|text| stat_cpus(&text)).unwrap_or_default())
    } else {
        ("proc/cpuinfo", cpuinfo)
    };
    if processors.is_empty() {
        return None;
    }
    notes.add(place, "sysfs shows no CPUs: believed this file, which tells of online CPUs only and of no caches");
    let mut cores = BTreeMap::<(Option<u32>, u32), CpuSet>::new();
    let mut alone = Vec::new();
    for (id, processor) in &processors {
        let mut cpu = unknown_cpu(true);
        cpu.package = processor.package.map(PackageId);
        machine.cpus.insert(*id, cpu);
        match processor.core {
            Some(core) => _ = cores.entry((processor.package, core)).or_default().insert(*id),
            None => alone.push(CpuSet::from([*id])),
        }
    }
    name_cores(machine, cores.into_values().chain(alone).collect());
    Some(())
}

/// `processor : 3` begins a CPU, `physical id` and `core id` place it; s390 writes `processor 3: ...`.
fn processors(text: &str) -> BTreeMap<CpuId, Processor> {
    let mut found = BTreeMap::new();
    let mut current = None;
    for line in text.lines() {
        let Some((key, value)) = line.split_once(':') else { continue };
        let number = value.trim().parse::<u32>().ok();
        match key.trim() {
            "processor" => {
                current = number.filter(|n| *n < 65_536).map(CpuId);
                current.map(|cpu| found.insert(cpu, Processor::default()));
            }
            "physical id" => place(&mut found, current, |processor| processor.package = number),
            "core id" => place(&mut found, current, |processor| processor.core = number),
            other => {
                let number = other.strip_prefix("processor ").and_then(|number| number.trim().parse().ok());
                if let Some(number) = number.filter(|n| *n < 65_536) {
                    found.insert(CpuId(number), Processor::default());
                }
            }
        }
    }
    found
}

fn place(found: &mut BTreeMap<CpuId, Processor>, current: Option<CpuId>, set: impl Fn(&mut Processor)) {
    if let Some(processor) = current.and_then(|cpu| found.get_mut(&cpu)) {
        set(processor);
    }
}

fn stat_cpus(text: &str) -> BTreeMap<CpuId, Processor> {
    let cpu = |line: &str| {
        let number: u32 = line.split_whitespace().next()?.strip_prefix("cpu")?.parse().ok()?;
        (number < 65_536).then_some((CpuId(number), Processor::default()))
    };
    text.lines().filter_map(cpu).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpuinfo_of_several_architectures_is_read() {
        let x86 = "processor\t: 0\nphysical id\t: 1\ncore id\t: 4\n\nprocessor\t: 2\ncore id : x\n";
        let placed = Processor { package: Some(1), core: Some(4) };
        let plain = Processor::default();
        assert_eq!(processors(x86), BTreeMap::from([(CpuId(0), placed), (CpuId(2), plain)]));
        let s390 = "# processors    : 2\nprocessor 0: version = FF\nprocessor 1: version = FF\n";
        assert_eq!(processors(s390), BTreeMap::from([(CpuId(0), plain), (CpuId(1), plain)]));
        assert_eq!(processors("cpu\t: Alpha\ncpus detected: 4\n"), BTreeMap::new());
        assert_eq!(stat_cpus("cpu  1 2\ncpu0 1 2\ncpu7 1\nintr 5\n").len(), 2);
    }
}
