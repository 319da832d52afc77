//! Machines that lie or leave things out: what is believed, and that it is said.
//!
//! The trees are written here, file by file, after oddities that real machines have shown.
#![allow(clippy::unwrap_used)]

use std::os::unix::fs::symlink;
use std::path::Path;
use std::time::Instant;

use conuma_linux::sysfs::{ReadError, read_machine};
use conuma_topology::{Bytes, CpuId, CpuSet, Id, Machine, NodeId, PciAddress};
use proptest::prelude::*;

const CPU: &str = "sys/devices/system/cpu";
const NODE: &str = "sys/devices/system/node";
const PCI: &str = "sys/bus/pci/devices";

/// A tree to be read.
struct Tree(tempfile::TempDir);

impl Tree {
    fn empty() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    /// Nodes of two cores of two threads (siblings next to each other) that share an L3.
    fn honest(nodes: u32) -> Self {
        let tree = Self::empty();
        tree.file(&format!("{CPU}/online"), &format!("0-{}", nodes * 4 - 1));
        for node in 0..nodes {
            let cpus = CpuSet::range(node * 4, node * 4 + 3);
            for cpu in cpus.iter().map(Id::number) {
                let core = CpuSet::range(cpu / 2 * 2, cpu / 2 * 2 + 1);
                tree.topology(cpu, &core, &cpus, &node.to_string());
                tree.cache(cpu, 0, 1, "Data", &core);
                tree.cache(cpu, 1, 3, "Unified", &cpus);
            }
            let row: Vec<&str> = (0..nodes).map(|to| if to == node { "10" } else { "20" }).collect();
            tree.node(node, &cpus, 1 << 20, &row.join(" "));
        }
        tree
    }

    fn file(&self, path: &str, text: &str) -> &Self {
        let path = self.0.path().join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, format!("{text}\n")).unwrap();
        self
    }

    fn link(&self, path: &str, target: &str) -> &Self {
        let path = self.0.path().join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        symlink(target, path).unwrap();
        self
    }

    fn without(&self, path: &str) -> &Self {
        let path = self.0.path().join(path);
        if path.is_dir() {
            std::fs::remove_dir_all(path).unwrap()
        } else {
            std::fs::remove_file(path).unwrap()
        }
        self
    }

    fn topology(&self, cpu: u32, core: &CpuSet, package: &CpuSet, package_id: &str) {
        let directory = format!("{CPU}/cpu{cpu}/topology");
        self.file(&format!("{directory}/thread_siblings"), &core.to_mask());
        self.file(&format!("{directory}/core_siblings"), &package.to_mask());
        self.file(&format!("{directory}/physical_package_id"), package_id);
        self.file(&format!("{directory}/core_id"), &(cpu / 2).to_string());
    }

    fn cache(&self, cpu: u32, index: u32, level: u32, kind: &str, sharing: &CpuSet) {
        let directory = format!("{CPU}/cpu{cpu}/cache/index{index}");
        self.file(&format!("{directory}/level"), &level.to_string());
        self.file(&format!("{directory}/type"), kind);
        self.file(&format!("{directory}/size"), "32K");
        self.file(&format!("{directory}/shared_cpu_map"), &sharing.to_mask());
    }

    fn node(&self, node: u32, cpus: &CpuSet, kib: u64, distances: &str) {
        let directory = format!("{NODE}/node{node}");
        self.file(&format!("{directory}/cpumap"), &cpus.to_mask());
        self.file(&format!("{directory}/meminfo"), &format!("Node {node} MemTotal: {kib} kB"));
        self.file(&format!("{directory}/distance"), distances);
    }

    fn device(&self, address: &str, numa_node: &str, local_cpus: &str) -> &Self {
        self.file(&format!("{PCI}/{address}/class"), "0x020000");
        self.file(&format!("{PCI}/{address}/numa_node"), numa_node);
        self.file(&format!("{PCI}/{address}/local_cpus"), local_cpus)
    }

    fn read(&self) -> Machine {
        let machine = read_machine(self.0.path()).unwrap();
        assert_eq!(machine.validate(), Ok(()));
        machine
    }
}

/// Whether a note speaks of this place and says this.
#[track_caller]
fn check_noted(machine: &Machine, place: &str, text: &str) {
    let noted = machine.notes.iter().any(|note| note.place.contains(place) && note.text.contains(text));
    assert!(noted, "no note on {place} with `{text}` in {:#?}", machine.notes);
}

fn nodes(machine: &Machine) -> Vec<String> {
    machine.nodes.iter().map(|(id, node)| format!("{id}:{}", node.cpus)).collect()
}

fn cores(machine: &Machine) -> Vec<String> {
    machine.cores.values().map(|core| core.cpus.to_string()).collect()
}

fn home(machine: &Machine, address: &str) -> Option<u32> {
    machine.devices[&address.parse::<PciAddress>().unwrap()].home.map(|node| node.0)
}

#[test]
fn an_honest_machine_has_no_notes() {
    let machine = Tree::honest(2).read();
    assert_eq!(machine.notes, []);
    assert_eq!(nodes(&machine), ["0:0-3", "1:4-7"]);
    assert_eq!(cores(&machine), ["0-1", "2-3", "4-5", "6-7"]);
    assert_eq!(machine.llcs().values().map(CpuSet::to_string).collect::<Vec<_>>(), ["0-3", "4-7"]);
    assert_eq!(
        machine.to_text(),
        "2n2c2t@1G; dies=none".replace(
            "2n2c2t@1G",
            "node0 cpus=0-3 mem=1G free=0; \
                node1 cpus=4-7 mem=1G free=0; smt=2"
        )
    );
}

#[test]
fn no_machine_is_a_clear_error() {
    let tree = Tree::empty();
    let error = read_machine(tree.0.path()).unwrap_err();
    assert!(matches!(error, ReadError::NoMachine { .. }));
    assert!(error.to_string().contains(tree.0.path().to_str().unwrap()), "{error}");
    assert!(error.to_string().contains("name the directory that contains `sys`"), "{error}");
    let error = read_machine(Path::new("/nonexistent/root")).unwrap_err();
    assert!(error.to_string().contains("/nonexistent/root"), "{error}");
    let file = tree.file("plain", "");
    assert!(matches!(read_machine(&file.0.path().join("plain")), Err(ReadError::Root { .. })));
}

#[test]
fn offline_cpus_belong_to_nothing() {
    let tree = Tree::honest(2);
    tree.file(&format!("{CPU}/online"), "0-2,4-7").file(&format!("{CPU}/present"), "0-9");
    let machine = tree.read();
    assert_eq!(machine.online_cpus().to_string(), "0-2,4-7");
    assert_eq!(machine.offline_cpus().to_string(), "3,8-9");
    assert_eq!(cores(&machine), ["0-1", "2", "4-5", "6-7"]);
    assert_eq!(machine.node_of(CpuId(3)), None);
    // Old kernels have one file for each CPU instead.
    tree.without(&format!("{CPU}/online")).without(&format!("{CPU}/present")).file(&format!("{CPU}/cpu3/online"), "0");
    assert_eq!(tree.read().offline_cpus().to_string(), "3");
}

#[test]
fn cpu_zero_and_node_zero_may_be_offline() {
    let tree = Tree::honest(2);
    tree.file(&format!("{CPU}/online"), "4-7").file(&format!("{NODE}/online"), "1");
    tree.file(&format!("{NODE}/possible"), "0-1").without(&format!("{NODE}/node0"));
    tree.link(&format!("{CPU}/cpu0/node0"), "../../node/node0");
    let machine = tree.read();
    assert_eq!(nodes(&machine), ["1:4-7"]);
    assert_eq!(machine.distance(NodeId(1), NodeId(1)), Some(10));
    check_noted(&machine, "node/possible", "nodes 0");
    // Its CPUs may even be online.
    tree.file(&format!("{CPU}/online"), "0-7");
    let machine = tree.read();
    assert_eq!(machine.node_of(CpuId(0)), None);
    check_noted(&machine, CPU, "CPUs 0 are online but they point to node 0");
}

#[test]
fn masks_beat_lists() {
    let tree = Tree::honest(1);
    tree.file(&format!("{NODE}/node0/cpulist"), "0-63");
    let machine = tree.read();
    assert_eq!(nodes(&machine), ["0:0-3"]);
    check_noted(&machine, "node0/cpumap", "believed cpumap");
    tree.without(&format!("{NODE}/node0/cpumap")).file(&format!("{NODE}/node0/cpulist"), "0-3");
    assert_eq!(tree.read().notes, []);
    tree.without(&format!("{NODE}/node0/cpulist")).link(&format!("{NODE}/node0/cpu2"), "../../cpu/cpu2");
    let machine = tree.read();
    assert_eq!(nodes(&machine), ["0:2"]);
    check_noted(&machine, "node0", "neither cpumap nor cpulist");
}

#[test]
fn nodes_that_claim_the_same_cpus_are_left_out() {
    let tree = Tree::honest(2);
    tree.node(2, &CpuSet::range(3, 4), 1 << 20, "20 20 10");
    tree.file(&format!("{NODE}/node0/distance"), "10 20 20").file(&format!("{NODE}/node1/distance"), "20 10 20");
    let machine = tree.read();
    assert_eq!(nodes(&machine), ["0:0-3", "1:4-7"]);
    assert_eq!(machine.distances.nodes.len(), 2);
    check_noted(&machine, "cpumap", "nodes 2 with 1G claim CPUs that a lower node has too");
}

#[test]
fn memory_of_gpus_is_left_out() {
    let tree = Tree::honest(1);
    tree.node(255, &CpuSet::new(), 1 << 20, "80 10");
    tree.file(&format!("{NODE}/node0/distance"), "10 80");
    tree.file("proc/driver/nvidia/gpus/0004:05:00.0/numa_status", "Node:      255\nStatus: online");
    let machine = tree.read();
    assert_eq!(nodes(&machine), ["0:0-3"]);
    assert_eq!(machine.distances.values, [[10]]);
    check_noted(&machine, "numa_status", "nodes 255 with 1G are the memory of GPUs");
}

#[test]
fn nodes_without_cpus_or_memory_are_nodes() {
    let tree = Tree::honest(1);
    tree.node(1, &CpuSet::new(), 2 << 20, "20 10 30");
    tree.node(2, &CpuSet::new(), 0, "20 30 10");
    tree.file(&format!("{NODE}/node0/distance"), "10 20 20");
    tree.file(&format!("{NODE}/node1/access1/initiators/read_latency"), "26");
    tree.file(&format!("{NODE}/node1/access1/initiators/read_bandwidth"), "1000");
    tree.link(&format!("{NODE}/node1/access1/initiators/node0"), "../../../node0");
    let machine = tree.read();
    assert_eq!(nodes(&machine), ["0:0-3", "1:", "2:"]);
    assert_eq!(machine.memory_nodes().to_string(), "0-1");
    assert_eq!(machine.hmat.len(), 1);
    assert_eq!(machine.hmat[0].initiators.to_string(), "0");
    assert_eq!((machine.hmat[0].read_latency_ns, machine.hmat[0].write_latency_ns), (Some(26), None));
    assert_eq!(machine.notes, []);
}

#[test]
fn distances_that_do_not_fit_are_left_unknown() {
    for (row, why) in [("10", "wrong length"), ("10 x", "wrong length"), ("10 20 30", "distances left unknown")] {
        let tree = Tree::honest(2);
        tree.file(&format!("{NODE}/node0/distance"), row);
        let machine = tree.read();
        assert!(machine.distances.values.is_empty());
        check_noted(&machine, "distance", why);
    }
    let tree = Tree::honest(2);
    tree.without(&format!("{NODE}/node0/distance")).without(&format!("{NODE}/node1/distance"));
    check_noted(&tree.read(), "distance", "no distances are told");
}

#[test]
fn impossible_distances_are_left_unknown() {
    for row in ["5 20", "10 9", "30 20", "0 0"] {
        let tree = Tree::honest(2);
        tree.file(&format!("{NODE}/node0/distance"), row);
        let machine = tree.read();
        assert!(machine.distances.values.is_empty(), "{row}");
        check_noted(&machine, "node0/distance", "left unknown");
    }
}

#[test]
fn without_nodes_the_machine_is_one() {
    let tree = Tree::honest(2);
    tree.without(NODE).file("proc/meminfo", "MemTotal: 4096 kB\nMemFree: 1024 kB");
    tree.file("sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages", "3");
    tree.file("sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages", "9");
    let machine = tree.read();
    assert_eq!(nodes(&machine), ["0:0-7"]);
    assert_eq!(machine.memory_of(NodeId(0)), Bytes::mib(4));
    assert_eq!(machine.nodes[&NodeId(0)].huge_pages[&Bytes::mib(2)].free, 3);
    check_noted(&machine, "node", "the kernel shows no nodes");
}

#[test]
fn without_sysfs_the_cpus_are_read_from_procfs() {
    let tree = Tree::empty();
    tree.file(
        "proc/cpuinfo",
        "processor : 0\nphysical id : 0\ncore id : 1\n\nprocessor : 1\nphysical id : 0\ncore id : 1",
    );
    let machine = tree.read();
    assert_eq!(cores(&machine), ["0-1"]);
    assert_eq!(machine.packages().len(), 1);
    tree.file("proc/cpuinfo", "cpu : Alpha").file("proc/stat", "cpu 1 2\ncpu0 1 2\ncpu3 1 2");
    let machine = tree.read();
    assert_eq!(cores(&machine), ["0", "3"]);
    check_noted(&machine, "proc/stat", "sysfs shows no CPUs");
}

#[test]
fn cpus_that_tell_nothing_are_cores_of_their_own() {
    let tree = Tree::honest(1);
    tree.without(&format!("{CPU}/cpu2/topology")).without(&format!("{CPU}/cpu3/topology"));
    let machine = tree.read();
    assert_eq!(cores(&machine), ["0-1", "2", "3"]);
    check_noted(&machine, "topology", "the siblings of CPUs 2-3 are not told");
}

#[test]
fn contradicting_siblings_are_settled() {
    let tree = Tree::honest(1);
    tree.file(&format!("{CPU}/cpu1/topology/thread_siblings"), "e");
    let machine = tree.read();
    assert_eq!(cores(&machine), ["0-1", "2-3"]);
    check_noted(&machine, CPU, "CPUs 1 and the lowest CPU");
}

#[test]
fn cores_never_straddle_nodes() {
    let tree = Tree::honest(2);
    tree.file(&format!("{CPU}/cpu0/topology/thread_siblings"), "ff");
    let machine = tree.read();
    assert_eq!(cores(&machine), ["0-3", "4-7"]);
    check_noted(&machine, "topology", "believed the nodes");
}

#[test]
fn cores_of_compute_units_are_cores() {
    let tree = Tree::honest(1);
    for cpu in 0..4 {
        tree.file(&format!("{CPU}/cpu{cpu}/topology/core_id"), &cpu.to_string());
    }
    assert_eq!(cores(&tree.read()), ["0-1", "2-3"], "core ids alone say nothing");
    tree.file("proc/cpuinfo", "processor : 0\nvendor_id : AuthenticAMD\ncpu family : 21");
    let machine = tree.read();
    assert_eq!(cores(&machine), ["0", "1", "2", "3"]);
    check_noted(&machine, "topology", "compute unit");
}

#[test]
fn packages_without_or_with_repeated_numbers_follow_the_masks() {
    let tree = Tree::honest(3);
    for cpu in 0..12 {
        tree.file(&format!("{CPU}/cpu{cpu}/topology/physical_package_id"), "-1");
    }
    assert_eq!(tree.read().packages().len(), 3);
    for cpu in 0..12 {
        tree.file(&format!("{CPU}/cpu{cpu}/topology/physical_package_id"), "0");
    }
    let machine = tree.read();
    assert_eq!(machine.packages().len(), 3);
    check_noted(&machine, "physical_package_id", "share package numbers");
    for cpu in 0..12 {
        tree.without(&format!("{CPU}/cpu{cpu}/topology/core_siblings"));
    }
    assert_eq!(tree.read().packages().len(), 1);
}

#[test]
fn caches_without_or_with_empty_masks() {
    let tree = Tree::honest(1);
    tree.file(&format!("{CPU}/cpu0/cache/index1/shared_cpu_map"), "0");
    tree.without(&format!("{CPU}/cpu2/cache/index1/shared_cpu_map"));
    let machine = tree.read();
    assert_eq!(machine.llcs().values().map(CpuSet::to_string).collect::<Vec<_>>(), ["0-1"]);
    for cpu in 0..4 {
        tree.without(&format!("{CPU}/cpu{cpu}/cache"));
    }
    assert!(tree.read().llcs().is_empty());
}

#[test]
fn devices_are_at_home_where_their_cpus_are() {
    let tree = Tree::honest(2);
    tree.node(2, &CpuSet::new(), 1 << 20, "20 20 10");
    tree.file(&format!("{NODE}/node0/distance"), "10 20 20").file(&format!("{NODE}/node1/distance"), "20 10 20");
    tree.device("0000:00:01.0", "0", "f").device("0000:10:01.0", "-1", "f0").device("0000:20:01.0", "0", "f0");
    tree.device("0000:30:01.0", "7", "ff").device("0000:40:01.0", "2", "0").device("0000:50:01.0", "-1", "ff");
    tree.device("0000:60:01.0", "1", "ff");
    let machine = tree.read();
    assert_eq!(home(&machine, "0000:00:01.0"), Some(0));
    assert_eq!(home(&machine, "0000:10:01.0"), Some(1));
    assert_eq!(home(&machine, "0000:20:01.0"), Some(1));
    check_noted(&machine, "0000:20:01.0/numa_node", "says node 0 but local_cpus `4-7` are on node 1");
    assert_eq!(home(&machine, "0000:30:01.0"), None);
    check_noted(&machine, "0000:30:01.0/numa_node", "says node 7, which is not there");
    assert_eq!(home(&machine, "0000:40:01.0"), Some(2), "a node without CPUs");
    assert_eq!(home(&machine, "0000:50:01.0"), None);
    assert_eq!(home(&machine, "0000:60:01.0"), None);
    check_noted(&machine, "0000:60:01.0/numa_node", "believed neither");
}

#[test]
fn devices_below_a_bridge_share_its_home() {
    let tree = Tree::honest(2);
    let real = "sys/devices/pci0000:80/0000:80:02.0";
    for (directory, address, node) in [
        (real.to_owned(), "0000:80:02.0", "1"),
        (format!("{real}/0000:81:00.0"), "0000:81:00.0", "-1"),
        ("sys/devices/pci0000:80/0000:80:03.0".to_owned(), "0000:80:03.0", "-1"),
        ("sys/devices/pci0000:00/0000:00:03.0".to_owned(), "0000:00:03.0", "-1"),
    ] {
        tree.file(&format!("{directory}/class"), "0x060400").file(&format!("{directory}/numa_node"), node);
        tree.link(&format!("{PCI}/{address}"), &format!("../../../../{directory}"));
    }
    let device = format!("{real}/0000:81:00.0");
    tree.file(&format!("{device}/vendor"), "0x15b3").file(&format!("{device}/class"), "0x020000");
    tree.link(&format!("{device}/driver"), "../../../../bus/pci/drivers/mlx5_core");
    tree.link(&format!("{device}/iommu_group"), "../../../../kernel/iommu_groups/12");
    tree.link(&format!("{device}/physfn"), "../0000:80:03.0");
    tree.link("sys/class/net/eth4", "../../devices/pci0000:80/0000:80:02.0/0000:81:00.0/net/eth4");
    tree.link("sys/class/block/nvme0n1", "../../devices/pci0000:80/0000:80:03.0/nvme/nvme0/nvme0n1");
    tree.link("sys/class/infiniband/old0/device", "../../../devices/pci0000:00/0000:00:03.0");
    let machine = tree.read();
    assert_eq!(home(&machine, "0000:81:00.0"), Some(1));
    assert_eq!(home(&machine, "0000:80:03.0"), Some(1));
    assert_eq!(home(&machine, "0000:00:03.0"), None);
    let nic = &machine.devices[&"0000:81:00.0".parse().unwrap()];
    assert_eq!(nic.driver.as_deref(), Some("mlx5_core"));
    assert_eq!((nic.vendor, nic.class, nic.iommu_group), (0x15b3, 0x02_0000, Some(12)));
    assert_eq!(nic.physical_function, "0000:80:03.0".parse().ok());
    assert_eq!(nic.provides, ["eth4"]);
    assert_eq!(machine.devices[&"0000:80:03.0".parse().unwrap()].provides, ["nvme0n1"]);
    assert_eq!(machine.devices[&"0000:00:03.0".parse().unwrap()].provides, ["old0"]);
    tree.without(&format!("{device}/physfn")).link(&format!("{device}/physfn"), "../0000:99:00.0");
    check_noted(&tree.read(), "0000:81:00.0/physfn", "which is not there");
    tree.without(&format!("{device}/physfn")).link(&format!("{device}/physfn"), "../0000:80:03.0");
    // Without the bus the host bridges are searched.
    tree.without(PCI);
    assert_eq!(tree.read().devices, machine.devices);
}

#[test]
fn two_thousand_cpus_are_read_in_time_that_grows_with_their_number() {
    // One file a CPU: making the tree costs more than reading it.
    let read_time = |cpus: u32| {
        let tree = Tree::empty();
        for cpu in 0..cpus {
            let siblings = CpuSet::range(cpu / 2 * 2, cpu / 2 * 2 + 1);
            tree.file(&format!("{CPU}/cpu{cpu}/topology/core_cpus"), &siblings.to_mask());
        }
        let times = (0..3).map(|_| {
            let start = Instant::now();
            assert_eq!(tree.read().cores.len() as u32, cpus / 2);
            start.elapsed()
        });
        times.min().unwrap()
    };
    let (small, large) = (read_time(256), read_time(2048));
    assert!(large < small * 8 * 5, "256 CPUs take {small:?}, 2048 take {large:?}");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever the files say, the reader answers, and what it answers has no contradiction.
    #[test]
    fn what_is_read_is_valid(
        edits in proptest::collection::vec((any::<prop::sample::Index>(), prop_oneof![
            "[0-9a-f,]{0,6}", "-?[0-9]{1,3}", Just(String::new()), "\\PC{0,12}", Just("ffffffff,ffffffff".to_owned()),
        ]), 1..12),
        removed in proptest::collection::vec(any::<prop::sample::Index>(), 0..6),
    ) {
        let tree = Tree::honest(2);
        tree.device("0000:00:01.0", "0", "f").device("0000:10:01.0", "1", "f0");
        tree.file(&format!("{NODE}/online"), "0-1").file(&format!("{NODE}/possible"), "0-3");
        let mut files = Vec::new();
        collect(tree.0.path(), &mut files);
        files.sort();
        for (which, text) in edits {
            std::fs::write(which.get(&files), text).unwrap();
        }
        for which in removed {
            let _ = std::fs::remove_file(which.get(&files));
        }
        if let Ok(machine) = read_machine(tree.0.path()) {
            prop_assert_eq!(machine.validate(), Ok(()));
            let json = serde_json::to_string(&machine).unwrap();
            prop_assert_eq!(serde_json::from_str::<Machine>(&json).unwrap(), machine.clone());
            let _ = conuma_topology::draw(&machine, &conuma_topology::DrawOptions::default());
            let text = machine.to_text();
            prop_assert!(text.parse::<Machine>().is_ok(), "{}", text);
        }
    }
}

fn collect(directory: &Path, files: &mut Vec<std::path::PathBuf>) {
    for entry in std::fs::read_dir(directory).unwrap().flatten() {
        if entry.path().is_dir() { collect(&entry.path(), files) } else { files.push(entry.path()) }
    }
}
