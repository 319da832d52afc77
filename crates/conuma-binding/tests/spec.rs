//! VM files: what they say, and what is said of wrong ones.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

use conuma_binding::{BootSource, CoreWish, MemoryWish, Reserve, VmSpec};
use conuma_topology::{Bytes, CpuId, CpuSet, Machine, NodeId};

const FULL: &str = r#"
name = "db-1"
weight = 300
cid = 42
devices = ["0000:3b:00.0", "3b:00.1"]
qemu_args = ["-device", "virtio-net-pci,netdev=n0"]

[guarantee]
cores = 2
memory = "1.5G"

[initial]
cpus = "0-3"

[limit]
memory = { node0 = "2G", node1 = 1073741824 }

[boot]
memory_per_node = "192M"
kernel = "/boot/vmlinuz"
initrd = "/boot/initrd"
cmdline = "quiet"
"#;

#[test]
fn a_full_file() {
    let spec = VmSpec::parse(FULL, "db.toml").unwrap();
    assert_eq!(spec.name.as_str(), "db-1");
    assert_eq!((spec.weight, spec.cid), (300, Some(42)));
    assert_eq!(spec.guarantee.cores, Some(CoreWish::Count(2)));
    assert_eq!(spec.guarantee.memory, Some(MemoryWish::Total(Bytes::mib(1536))));
    let initial = spec.initial_wish();
    assert_eq!(initial.cores, Some(CoreWish::Cpus(CpuSet::range(0, 3))));
    assert_eq!(initial.memory, spec.guarantee.memory, "what `[initial]` leaves out is the guarantee's");
    let limit = MemoryWish::PerNode([(NodeId(0), Bytes::gib(2)), (NodeId(1), Bytes::gib(1))].into());
    assert_eq!(spec.limit.as_ref().unwrap().memory, Some(limit));
    assert_eq!(spec.boot.memory_per_node, Bytes::mib(192));
    assert!(matches!(&spec.boot.source, BootSource::Kernel { cmdline, .. } if cmdline == "quiet"));
    assert_eq!(spec.devices.len(), 2);
    assert_eq!(spec.qemu_args.len(), 2);
    let json = serde_json::to_string(&spec).unwrap();
    assert_eq!(serde_json::from_str::<VmSpec>(&json).unwrap(), spec);
}

#[test]
fn the_least_file() {
    let spec = VmSpec::parse("name = \"a\"\nguarantee = {}", "a.toml").unwrap();
    assert_eq!((spec.weight, spec.cid, spec.boot.source.clone()), (100, None, BootSource::Other));
    assert_eq!(spec.guarantee.cores, None);
    assert_eq!(spec.boot.memory_per_node, Bytes::mib(256));
}

/// All that parsing says of each of these files.
#[test]
fn wrong_files() {
    let files = [
        ("not TOML", "name = \"a\"\n[guarantee\ncores = 2\n"),
        ("a typing error", "name = \"a\"\n\n[guarantee]\ncors = 2\nmemory = \"1G\"\n"),
        ("a key in the wrong place", "name = \"a\"\n[guarantee]\ncores = 1\nweight = 3\nkernel = \"/k\"\n"),
        ("a key that nothing is like", "name = \"a\"\ncolour = \"blue\"\n[guarantee]\n"),
        ("an impossible size", "name = \"a\"\n[guarantee]\nmemory = \"12 parsecs\"\n"),
        ("another type", "name = 3\nqemu_args = \"-s\"\n[guarantee]\ncores = \"2\"\n"),
        ("an unsafe name", "name = \"../a\"\n[guarantee]\n"),
        ("nothing", ""),
        ("two ways to say it", "name = \"a\"\n[guarantee]\ncores = 1\ncpus = \"0\"\n"),
        ("a node by another name", "name = \"a\"\n[guarantee]\nmemory = { numa0 = \"1G\" }\n"),
        ("boot memory that is no multiple", "name = \"a\"\n[guarantee]\n[boot]\nmemory_per_node = \"3M\"\n"),
        ("a kernel that is missing", "name = \"a\"\n[guarantee]\n[boot]\ninitrd = \"/i\"\n"),
        ("two things to boot", "name = \"a\"\n[guarantee]\n[boot]\nkernel = \"/k\"\ndisk = \"/d\"\n"),
        (
            "more than the limit",
            "name = \"a\"\n[guarantee]\ncores = 4\nmemory = \"4G\"\n[limit]\ncores = 2\nmemory = \"2G\"\n",
        ),
        ("a device twice", "name = \"a\"\ndevices = [\"3b:00.0\", \"0000:3b:00.0\", \"eth0\"]\n[guarantee]\n"),
        ("numbers out of range", "name = \"a\"\nweight = 0\ncid = 2\n[guarantee]\ncores = -1\n"),
        ("tabs and other letters", "name = \"a\"\n[guarantee]\n\tmemory = { \"knöten\" = \"1G\" }\n"),
    ];
    let mut all = String::new();
    for (what, text) in files {
        let error = VmSpec::parse(text, "a.toml").unwrap_err();
        all.push_str(&format!("## {what}\n{error}\n\n"));
    }
    insta::assert_snapshot!(all);
}

/// All that checking against a machine says.
#[test]
fn files_that_do_not_fit_the_machine() {
    let machine: Machine = "2n2c2t@1G; dev 3b:00.0 node=1 iommu=3; dev 3c:00.0 node=1".parse().unwrap();
    let boot = "[boot]\nmemory_per_node = \"128M\"\n";
    let files = [
        ("too many cores", "[guarantee]\ncores = 5\n"),
        ("too much memory", "[guarantee]\nmemory = \"1T\"\n"),
        ("too much on a node", "[guarantee]\nmemory = { node0 = \"1G\", node1 = \"128M\" }\n"),
        ("an unknown node", "[guarantee]\nmemory = { node0 = \"128M\", node1 = \"128M\", node7 = \"1G\" }\n"),
        ("an unknown CPU", "[guarantee]\ncpus = \"0-1,64\"\n"),
        ("half a core", "[guarantee]\ncpus = \"2-4\"\n"),
        ("a reserved CPU", "[guarantee]\ncpus = \"0-3\"\n"),
        ("an unknown CPU in the limit", "[guarantee]\n[limit]\ncpus = \"0-99\"\n"),
        ("less than boots", "[guarantee]\nmemory = \"128M\"\n"),
        ("less on a node than boots", "[guarantee]\nmemory = { node0 = \"512M\" }\n"),
        ("less at start than boots", "[guarantee]\n[initial]\nmemory = { node0 = \"64M\", node1 = \"256M\" }\n"),
        ("a limit below what boots", "[guarantee]\n[limit]\nmemory = \"128M\"\n"),
        (
            "an unknown device and one without a group",
            "devices = [\"ff:00.0\", \"3b:00.0\", \"3c:00.0\"]\n[guarantee]\n",
        ),
    ];
    let reserve = Reserve { cpus: CpuSet::from([CpuId(0)]), memory_per_node: Bytes::mib(128) };
    let mut all = String::new();
    for (what, text) in files {
        let spec = VmSpec::parse(&format!("name = \"a\"\n{text}{boot}"), "a.toml").unwrap();
        let error = spec.check(&machine, &reserve).unwrap_err();
        all.push_str(&format!("## {what}\n{error}\n\n"));
    }
    let huge = "name = \"a\"\n[guarantee]\n[boot]\nmemory_per_node = \"2G\"\n";
    let error = VmSpec::parse(huge, "a.toml").unwrap().check(&machine, &reserve).unwrap_err();
    all.push_str(&format!("## boot memory that fits nowhere\n{error}\n"));
    insta::assert_snapshot!(all);
}

#[test]
fn without_a_file_errors_name_the_value_only() {
    let machine: Machine = "1n1c@1G".parse().unwrap();
    let spec = VmSpec::parse("name = \"a\"\n[guarantee]\ncores = 3", "a.toml").unwrap();
    let again: VmSpec = serde_json::from_str(&serde_json::to_string(&spec).unwrap()).unwrap();
    let error = again.check(&machine, &Reserve::default()).unwrap_err();
    assert_eq!(error.to_string(), "VM: 3 cores are asked for, the host has 1");
}
