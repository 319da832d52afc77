//! Every captured machine loads and agrees with hwloc, which reads the same trees by its own rules.
//!
//! The machines are not part of the project; they are looked for beside it. Where they, or
//! `hwloc-ls` (Debian package `hwloc-nox`), are absent, the test says so and does nothing.
#![allow(clippy::unwrap_used, clippy::print_stdout)]

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;
use std::path::{Path, PathBuf};
use std::process::Command;

use conuma_linux::sysfs::read_machine;
use conuma_topology::{CpuSet, IdSet, Machine, NodeId, NodeSet, PciAddress};
use roxmltree::{Document, Node, ParsingOptions};

/// Where we knowingly differ: machine, aspect, why. An entry that is not needed any more fails the
/// test.
const EXCEPTIONS: [(&str, &str, &str); 1] = [(
    "32em64t-2n8c+dax+nvme+mic+dimms",
    "PCI devices",
    "hwloc leaves out bridge 0000:00:11.0, whose bus numbers in config space are not set; to us it is a device",
)];

/// What both tell of a machine, in comparable form.
#[derive(Default)]
struct View {
    nodes: BTreeMap<u32, (CpuSet, u64)>,
    distances: BTreeMap<(u32, u32), u32>,
    online: CpuSet,
    cores: BTreeSet<String>,
    level3: BTreeSet<String>,
    homes: BTreeMap<PciAddress, Option<u32>>,
}

#[test]
fn captured_machines_agree_with_hwloc() {
    let beside = || Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/topologies");
    let folder = std::env::var_os("CONUMA_TOPOLOGIES").map_or_else(beside, PathBuf::from);
    if !folder.is_dir() {
        println!("skipped: no captured machines (CONUMA_TOPOLOGIES names their folder)");
        return;
    }
    if Command::new("hwloc-ls").arg("--version").output().is_err() {
        println!("skipped: hwloc-ls is not installed (apt-get install hwloc-nox)");
        return;
    }
    let unpacked = tempfile::tempdir().unwrap();
    let mut compared = 0;
    let mut differences = Vec::new();
    let mut excused = BTreeSet::new();
    for archive in archives(&folder) {
        let name = archive.file_name().unwrap().to_str().unwrap().trim_end_matches(".tar.bz2").to_owned();
        let tree = unpack(&archive, &unpacked.path().join(&name));
        let machine = read_machine(&tree).unwrap_or_else(|error| panic!("{name}: {error}"));
        if let Err(problems) = machine.validate() {
            differences.push(format!("{name}: not valid: {problems:?}"));
        }
        let mut report = |aspect: &str, difference: Option<String>| {
            let Some(difference) = difference else { return };
            match EXCEPTIONS.iter().find(|(machine, what, _)| (*machine, *what) == (name.as_str(), aspect)) {
                Some((.., why)) => {
                    excused.insert((name.clone(), aspect.to_owned()));
                    println!("{name}: {aspect} differ as expected: {why}");
                }
                None => differences.push(format!("{name}: {aspect} differ: {difference}")),
            }
        };
        let (ours, theirs) = (our_view(&machine), their_view(&hwloc(&tree)));
        report("online CPUs", compare(&ours.online, &theirs.online));
        report("nodes", compare(&nodes(&ours), &nodes(&theirs)));
        report(
            "node CPUs",
            differing(&ours.nodes, &theirs.nodes, |(cpus, _)| (!cpus.is_empty()).then(|| cpus.clone())),
        );
        report("memory", differing(&ours.nodes, &theirs.nodes, |(_, memory)| Some(*memory)));
        report("distances", compare(&ours.distances, &theirs.distances));
        report("cores", compare(&ours.cores, &theirs.cores));
        report("L3 groups", compare(&ours.level3, &theirs.level3));
        report("PCI homes", differing(&ours.homes, &theirs.homes, |home| Some(*home)));
        report("PCI devices", compare(&addresses(&ours), &addresses(&theirs)));
        compared += 1;
    }
    println!("compared {compared} machines");
    assert!(differences.is_empty(), "{} differences:\n{}", differences.len(), differences.join("\n"));
    for (machine, aspect, _) in EXCEPTIONS {
        assert!(excused.contains(&(machine.into(), aspect.into())), "{machine}: {aspect} agree, drop the exception");
    }
}

fn archives(folder: &Path) -> Vec<PathBuf> {
    let paths = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let mut archives: Vec<PathBuf> = paths.filter(|path| path.to_string_lossy().ends_with(".tar.bz2")).collect();
    archives.sort();
    archives
}

/// Unpacks an archive and finds the one directory in it.
fn unpack(archive: &Path, into: &Path) -> PathBuf {
    std::fs::create_dir_all(into).unwrap();
    let done = Command::new("tar").arg("-xjf").arg(archive).arg("-C").arg(into).status().unwrap();
    assert!(done.success(), "cannot unpack {}", archive.display());
    std::fs::read_dir(into).unwrap().next().unwrap().unwrap().path()
}

/// What hwloc says of a tree: all CPUs whatever a cgroup forbids, all PCI devices.
fn hwloc(tree: &Path) -> String {
    let output = Command::new("hwloc-ls")
        .args(["--if", "fsroot", "--of", "xml", "--disallowed", "--whole-io", "--input"])
        .arg(tree)
        .env("HWLOC_HIDE_ERRORS", "2")
        .output()
        .unwrap();
    assert!(output.status.success(), "hwloc-ls failed on {}", tree.display());
    String::from_utf8(output.stdout).unwrap()
}

fn our_view(machine: &Machine) -> View {
    let nodes = machine.nodes.keys().map(|id| (id.0, (machine.nearest_cpus(*id), machine.memory_of(*id).0)));
    let table = &machine.distances;
    let cells = table.nodes.iter().flat_map(|from| table.nodes.iter().map(move |to| (*from, *to)));
    // hwloc shows no table for a single node.
    let cells = cells.filter(|_| table.nodes.len() > 1);
    View {
        nodes: nodes.collect(),
        distances: cells.map(|(from, to)| ((from.0, to.0), table.get(from, to).unwrap())).collect(),
        online: machine.online_cpus(),
        cores: machine.cores.values().map(|core| core.cpus.to_string()).collect(),
        level3: machine.caches.iter().filter(|cache| cache.level == 3).map(|cache| cache.cpus.to_string()).collect(),
        homes: machine.devices.iter().map(|(address, device)| (*address, device.home.map(|NodeId(n)| n))).collect(),
    }
}

fn their_view(xml: &str) -> View {
    let options = ParsingOptions { allow_dtd: true, ..ParsingOptions::default() };
    let document = Document::parse_with_options(xml, options).unwrap();
    let objects: Vec<Node<'_, '_>> = document.descendants().filter(|node| node.has_tag_name("object")).collect();
    let of_type = |kind: &'static str| objects.iter().filter(move |node| node.attribute("type") == Some(kind));
    let cpus_of = |node: &Node<'_, '_>| set(node.attribute("cpuset").unwrap());
    let nodes: BTreeMap<u32, (CpuSet, u64)> = of_type("NUMANode")
        .map(|node| {
            let memory = node.attribute("local_memory").map_or(0, |memory| memory.parse().unwrap());
            (node.attribute("os_index").unwrap().parse().unwrap(), (cpus_of(node), memory))
        })
        .collect();
    let with_cpus: NodeSet =
        nodes.iter().filter(|(_, (cpus, _))| !cpus.is_empty()).map(|(id, _)| NodeId(*id)).collect();
    let home = |device: &Node<'_, '_>| {
        let place = device.ancestors().skip(1).find(|above| above.has_attribute("nodeset")).unwrap();
        let near: NodeSet = set(place.attribute("nodeset").unwrap());
        let near = near.intersection(&with_cpus);
        near.first().filter(|_| near.len() == 1).map(|node| node.0)
    };
    let devices = objects.iter().filter(|node| node.has_attribute("pci_busid"));
    View {
        online: cpus_of(of_type("Machine").next().unwrap()),
        cores: of_type("Core").map(|node| cpus_of(node).to_string()).collect(),
        level3: of_type("L3Cache").map(|node| cpus_of(node).to_string()).collect(),
        distances: distances(&document),
        homes: devices.map(|node| (node.attribute("pci_busid").unwrap().parse().unwrap(), home(node))).collect(),
        nodes,
    }
}

fn distances(document: &Document<'_>) -> BTreeMap<(u32, u32), u32> {
    let of_nodes =
        |node: &Node<'_, '_>| node.has_tag_name("distances2") && node.attribute("name") == Some("NUMALatency");
    let Some(table) = document.descendants().find(of_nodes) else { return BTreeMap::new() };
    let numbers = |tag: &str| -> Vec<u32> {
        let texts = table.children().filter(|node| node.has_tag_name(tag)).filter_map(|node| node.text());
        texts.flat_map(str::split_whitespace).map(|number| number.parse().unwrap()).collect()
    };
    let (nodes, values) = (numbers("indexes"), numbers("u64values"));
    let pairs = nodes.iter().flat_map(|from| nodes.iter().map(move |to| (*from, *to)));
    pairs.zip(values).collect()
}

/// hwloc's masks are the kernel's with `0x` before each group, and empty for zero groups.
fn set<T: conuma_topology::Id>(mask: &str) -> IdSet<T> {
    let groups = mask.split(',').map(|group| match group.trim_start_matches("0x") {
        "" => "0",
        digits => digits,
    });
    IdSet::from_mask(&groups.collect::<Vec<_>>().join(",")).unwrap()
}

fn nodes(view: &View) -> Vec<u32> {
    view.nodes.keys().copied().collect()
}

fn addresses(view: &View) -> BTreeSet<String> {
    view.homes.keys().map(PciAddress::to_string).collect()
}

fn compare<T: PartialEq + Debug>(ours: &T, theirs: &T) -> Option<String> {
    (ours != theirs).then(|| format!("\n  ours   {ours:?}\n  theirs {theirs:?}"))
}

/// Compares what both know; the keys themselves are compared elsewhere.
fn differing<K: Ord + Debug, V, T: PartialEq + Debug>(
    ours: &BTreeMap<K, V>,
    theirs: &BTreeMap<K, V>,
    what: impl Fn(&V) -> Option<T>,
) -> Option<String> {
    let both = ours.iter().filter_map(|(key, our)| Some((key, what(our), what(theirs.get(key)?))));
    let differing: Vec<String> = both
        .filter(|(_, our, their)| their.is_some() && our != their)
        .map(|(key, our, their)| format!("\n  {key:?}: ours {our:?}, theirs {their:?}"))
        .collect();
    (!differing.is_empty()).then(|| differing.concat())
}
