//! CPUs, cores, dies and packages.

use std::collections::BTreeMap;

use conuma_topology::{Core, CoreId, Cpu, CpuId, CpuSet, DieId, Machine, NodeId, PackageId};

use super::groups::{Believed, believe};
use super::notes::Notes;
use super::tree::Tree;

/// Where CPUs live.
pub(super) const CPUS: &str = "sys/devices/system/cpu";

/// What distinguishes CPUs of one core on some AMD machines from SMT siblings.
const COMPUTE_UNIT_FAMILIES: [u32; 2] = [21, 22];

/// A CPU of which nothing is known yet.
pub(super) const fn unknown_cpu(online: bool) -> Cpu {
    Cpu { online, node: None, package: None, die: None, core: None, llc: None }
}

/// Reads which CPUs there are; `None` if sysfs shows none.
pub(super) fn read_presence(tree: &Tree, machine: &mut Machine, notes: &mut Notes) -> Option<()> {
    let shown: CpuSet = tree.numbered(CPUS, "cpu").into_iter().filter(|n| *n < 65_536).map(CpuId).collect();
    if shown.is_empty() {
        return None;
    }
    let switched_off = |cpu: CpuId| tree.text(&format!("{CPUS}/cpu{cpu}/online")).is_some_and(|text| text == "0");
    let listed: Option<CpuSet> = tree.list(&format!("{CPUS}/online"));
    let online = match listed.filter(|listed| !listed.is_disjoint(&shown)) {
        Some(listed) => {
            let strange = listed.difference(&shown);
            if !strange.is_empty() {
                notes.add(
                    format!("{CPUS}/online"),
                    format!("CPUs {strange} are said to be online but have no directory: left out"),
                );
            }
            listed.intersection(&shown)
        }
        None => shown.iter().filter(|cpu| !switched_off(*cpu)).collect(),
    };
    let present: CpuSet = tree.list(&format!("{CPUS}/present")).unwrap_or_default();
    machine.cpus = shown.union(&present).iter().map(|cpu| (cpu, unknown_cpu(online.contains(cpu)))).collect();
    (!online.is_empty()).then_some(())
}

/// Reads cores, dies and packages of the online CPUs.
pub(super) fn read_topology(tree: &Tree, online: &CpuSet, machine: &mut Machine, notes: &mut Notes) {
    let siblings = claims(tree, online, &["core_cpus", "thread_siblings"]);
    let mut cores = believe(&siblings);
    if is_compute_units(tree, &cores) {
        notes.add(
            format!("{CPUS}/cpu*/topology"),
            "the kernel calls the CPUs of an AMD compute unit siblings but gives each a core of its own: \
             believed the cores, for each has its own integer pipeline",
        );
        cores = Believed { groups: online.iter().map(|cpu| CpuSet::from([cpu])).collect(), ..Believed::default() };
    }
    note_dissent(&cores, "SMT siblings", notes);
    let known: CpuSet = cores.groups.iter().flat_map(CpuSet::iter).collect();
    let silent = online.difference(&known);
    if !silent.is_empty() {
        notes.add(
            format!("{CPUS}/cpu*/topology"),
            format!("the siblings of CPUs {silent} are not told: each was taken for a core of its own"),
        );
        cores.groups.extend(silent.iter().map(|cpu| CpuSet::from([cpu])));
    }
    name_cores(machine, cores.groups);
    read_packages(tree, online, machine, notes);
    read_dies(tree, online, machine);
}

/// Numbers cores in the order of their first CPU.
pub(super) fn name_cores(machine: &mut Machine, mut cores: Vec<CpuSet>) {
    cores.sort_by_key(CpuSet::first);
    machine.cores.clear();
    for (id, cpus) in (0..).map(CoreId).zip(cores) {
        for cpu in cpus.iter() {
            set(machine, cpu, |cpu| cpu.core = Some(id));
        }
        machine.cores.insert(id, Core { cpus });
    }
}

/// Splits cores whose CPUs are on several nodes: no core is, so the siblings were a lie, or the nodes.
/// Either way neither half may be lent as if it were a core on one node.
pub(super) fn split_straddling(machine: &mut Machine, notes: &mut Notes) {
    let mut split = CpuSet::new();
    let mut parts = Vec::new();
    for core in machine.cores.values() {
        let mut by_node = BTreeMap::<NodeId, CpuSet>::new();
        let first = core.cpus.iter().find_map(|cpu| machine.node_of(cpu)).unwrap_or(NodeId(0));
        for cpu in core.cpus.iter() {
            by_node.entry(machine.node_of(cpu).unwrap_or(first)).or_default().insert(cpu);
        }
        if by_node.len() > 1 {
            split.extend(core.cpus.iter());
        }
        parts.extend(by_node.into_values());
    }
    if !split.is_empty() {
        notes.add(
            format!("{CPUS}/cpu*/topology"),
            format!("CPUs {split} are said to be SMT siblings of CPUs on other nodes: believed the nodes"),
        );
        name_cores(machine, parts);
    }
}

/// What every CPU says of its neighbours, from the first of `files` that is there. The mask is
/// read before the list: where they differ, someone has edited one of them, and other tools read the mask.
pub(super) fn claims(tree: &Tree, online: &CpuSet, files: &[&str]) -> BTreeMap<CpuId, CpuSet> {
    let of_cpu = |cpu: CpuId| {
        let file = |name: &&str| {
            let path = format!("{CPUS}/cpu{cpu}/topology/{name}");
            tree.mask(&path).or_else(|| tree.list(&format!("{path}_list")))
        };
        let claim: CpuSet = files.iter().find_map(file)?;
        Some((cpu, claim.intersection(online)))
    };
    online.iter().filter_map(of_cpu).collect()
}

/// Notes which CPUs contradict their group.
pub(super) fn note_dissent(believed: &Believed, what: &str, notes: &mut Notes) {
    if !believed.dissenters.is_empty() {
        notes.add(
            CPUS,
            format!(
                "CPUs {} and the lowest CPU that they share {what} with tell different things: believed the lowest CPU",
                believed.dissenters
            ),
        );
    }
}

fn set(machine: &mut Machine, cpu: CpuId, change: impl Fn(&mut Cpu)) {
    machine.cpus.entry(cpu).and_modify(change);
}

/// Whether this is a Bulldozer-like AMD machine whose siblings have core ids of their own.
fn is_compute_units(tree: &Tree, cores: &Believed) -> bool {
    let Some(pair) = cores.groups.iter().find(|cpus| cpus.len() > 1) else { return false };
    let id = |cpu: CpuId| tree.value::<i64>(&format!("{CPUS}/cpu{cpu}/topology/core_id"));
    let ids: Vec<Option<i64>> = pair.iter().take(2).map(id).collect();
    if ids[0] == ids[1] {
        return false;
    }
    let Some(cpuinfo) = tree.text("proc/cpuinfo") else { return false };
    let field = |name: &str| {
        let line = cpuinfo.lines().find(|line| line.split(':').next().is_some_and(|key| key.trim() == name))?;
        Some(line.split_once(':')?.1.trim())
    };
    let family = field("cpu family").and_then(|family| family.parse().ok());
    field("vendor_id") == Some("AuthenticAMD") && family.is_some_and(|f| COMPUTE_UNIT_FAMILIES.contains(&f))
}

/// Packages by their physical id; by the masks where ids are missing or name several packages.
fn read_packages(tree: &Tree, online: &CpuSet, machine: &mut Machine, notes: &mut Notes) {
    let mut by_id = BTreeMap::<Option<u32>, CpuSet>::new();
    for cpu in online.iter() {
        // -1 stands for unknown on several architectures.
        let id = tree.value(&format!("{CPUS}/cpu{cpu}/topology/physical_package_id"));
        by_id.entry(id.filter(|id| *id < u32::from(u16::MAX))).or_default().insert(cpu);
    }
    let mut next = by_id.keys().flatten().max().map_or(0, |last| last + 1);
    let believed = believe(&claims(tree, online, &["package_cpus", "core_siblings"]));
    let mut repeated = CpuSet::new();
    for (id, cpus) in by_id {
        let parts: Vec<&CpuSet> = believed.groups.iter().filter(|group| !group.is_disjoint(&cpus)).collect();
        let honest = believed.dissenters.is_disjoint(&cpus) && parts.iter().all(|part| part.is_subset(&cpus));
        match id {
            Some(id) if parts.len() < 2 || !honest => assign_package(machine, &cpus, id),
            None if parts.is_empty() => {}
            known => {
                for (index, part) in parts.into_iter().enumerate() {
                    let id = known.filter(|_| index == 0).unwrap_or_else(|| {
                        next += 1;
                        next - 1
                    });
                    assign_package(machine, &part.intersection(&cpus), id);
                }
                if known.is_some() {
                    repeated.extend(cpus.iter());
                }
            }
        }
    }
    if !repeated.is_empty() {
        notes.add(
            format!("{CPUS}/cpu*/topology/physical_package_id"),
            format!("CPUs {repeated} share package numbers across packages: believed the masks of siblings"),
        );
    }
}

fn assign_package(machine: &mut Machine, cpus: &CpuSet, id: u32) {
    for cpu in cpus.iter() {
        set(machine, cpu, |cpu| cpu.package = Some(PackageId(id)));
    }
}

/// Dies are numbered within their package; here they get numbers of their own.
fn read_dies(tree: &Tree, online: &CpuSet, machine: &mut Machine) {
    let mut dies = BTreeMap::<(Option<PackageId>, u32), DieId>::new();
    for cpu in online.iter() {
        let Some(die) = tree.value::<u32>(&format!("{CPUS}/cpu{cpu}/topology/die_id")) else { continue };
        let package = machine.cpus.get(&cpu).and_then(|cpu| cpu.package);
        let next = DieId(dies.len() as u32);
        let id = *dies.entry((package, die)).or_insert(next);
        set(machine, cpu, |cpu| cpu.die = Some(id));
    }
}
