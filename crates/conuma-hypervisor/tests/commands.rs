//! Command lines: golden ones of telling machines, and the real QEMU's own account of what it made of each.
#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout, reason = "tests")]

use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use conuma_binding::{Accel, BindingPlan, PlanOptions, Reserve, VmSpec};
use conuma_hypervisor::fake::MemoryGateRoot;
use conuma_hypervisor::qemu::{Qemu, command_line, shell_text};
use conuma_hypervisor::qmp::Qmp;
use conuma_hypervisor::{Hypervisor, HypervisorFacts};
use conuma_linux::procfs::ProcFs;
use conuma_topology::{CpuSet, Machine, NodeId};
use serde_json::{Value, json};

const QEMU: &str = "qemu-system-x86_64";
const BUDGET: Duration = Duration::from_secs(60);
const SMALL: &str = "[guarantee]\ncores = 1\nmemory = \"256M\"\n[boot]\nmemory_per_node = \"64M\"";

fn plan(machine: &str, vm: &str, accel: Accel, dir: &Path) -> BindingPlan {
    let machine: Machine = machine.parse().unwrap();
    let spec = VmSpec::parse(&format!("name = \"a\"\n{vm}"), "a.toml").unwrap();
    let options = PlanOptions { accel, cid: (accel == Accel::Kvm).then_some(3), dir: dir.to_owned() };
    BindingPlan::new(&spec, &machine, &Reserve::default(), &options).unwrap()
}

fn check(name: &str, machine: &str, vm: &str, facts: &HypervisorFacts) {
    let plan = plan(machine, vm, Accel::Kvm, Path::new("/vms/a"));
    insta::assert_snapshot!(name, shell_text(Path::new(QEMU), &command_line(&plan, facts)));
}

#[test]
fn four_nodes_with_a_kernel() {
    let vm = "[guarantee]\ncores = 1\nmemory = \"512M\"\n[boot]\nmemory_per_node = \"128M\"\n\
              kernel = \"/boot/vmlinuz\"\ninitrd = \"/boot/initrd\"\ncmdline = \"console=ttyS0 quiet\"";
    let vm = format!("qemu_args = [\"-netdev\", \"user,id=n0\", \"-device\", \"virtio-net-pci,netdev=n0\"]\n{vm}");
    check(
        "four_nodes_with_a_kernel",
        "4n2c1t@1G; dist=10,16,32,32/16,10,32,32/32,32,10,16/32,32,16,10",
        &vm,
        &qemu_10(),
    );
}

#[test]
fn an_older_qemu_gets_no_new_options() {
    let facts = HypervisorFacts {
        release: (7, 2),
        dynamic_memslots: false,
        unplugged_inaccessible: true,
        smp_cache: false,
        ..qemu_10()
    };
    check("an_older_qemu_gets_no_new_options", "1p2n2l2c2t@2G", SMALL, &facts);
}

#[test]
fn caches_and_odd_distances() {
    check("caches_and_odd_distances", "1p2n2l2c2t@2G; dist=10,16/31,10", SMALL, &qemu_10());
}

#[test]
fn an_irregular_grid() {
    check("an_irregular_grid", "node0 cpus=0-2 mem=1G; node1 cpus=3-4; node4 mem=2G", SMALL, &qemu_10());
}

#[test]
fn threads_and_caches_on_amd() {
    let facts = HypervisorFacts { topoext: true, ..qemu_10() };
    check("threads_and_caches_on_amd", "1n2c2t@2G", SMALL, &facts);
}

#[test]
fn devices_and_a_disk() {
    let machine = "2n2c@2G; dev 0000:3b:00.0 node=1; dev 0000:3b:00.1 node=1; dev 0000:00:1f.0";
    let vm = format!("devices = [\"3b:00.0\", \"3b:00.1\", \"00:1f.0\"]\n{SMALL}\ndisk = \"/disks/a,b.qcow2\"");
    check("devices_and_a_disk", machine, &vm, &qemu_10());
}

#[test]
fn more_vcpus_than_plain_interrupts_reach() {
    let vm = "[guarantee]\ncores = 1\nmemory = \"8G\"\n[boot]\nmemory_per_node = \"512M\"";
    check("more_vcpus_than_plain_interrupts_reach", "4n64c2t@64G", vm, &qemu_10());
}

fn qemu_10() -> HypervisorFacts {
    HypervisorFacts::qemu_10()
}

/// QEMU starts each of these, paused, and says of every vCPU what the replica says.
#[tokio::test(flavor = "multi_thread")]
async fn qemu_makes_what_the_plan_says() {
    let there = Command::new(QEMU).arg("--version").stdout(Stdio::null()).status().is_ok_and(|status| status.success());
    if !there {
        println!("skipped: {QEMU} is not installed");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let qemu = Qemu::probe(QEMU, Arc::new(MemoryGateRoot::default()), ProcFs::new("/"), dir.path()).await.unwrap();
    for machine in [
        "4n2c1t@1G",
        "2p2n2l2c2t@1G",
        "node0 cpus=0-3,8-11 mem=1G; node1 cpus=4-7,12-15 mem=1G; cores=0,8/1,9/2,10/3,11/4,12/5,13/6,14/7,15; \
         packages=0-3,8-11/4-7,12-15; llcs=0-3,8-11/4-7,12-15",
        "node0 cpus=0-2 mem=1G; node1 cpus=3-7 mem=1G; packages=0-2/3-7; dist=10,16/31,10",
        "node0 cpus=0-7 mem=1G; cores=0,1/2,3/4/5/6/7; packages=0-7; llcs=0-7",
        "node0 cpus=0-7 mem=1G; packages=0-7; dies=0-3/4-7; llcs=0-7",
        "node0 mem=2G; node3 cpus=4-5 mem=1G; node8 cpus=16,20",
        "node0 cpus=0-1; node1 cpus=2-3 mem=1G; node2",
        "node0 cpus=0,2,4,6 mem=1G; node1 cpus=1,3,5,7 mem=1G; packages=0-7; llcs=0-7",
        "16n20c1t@512M",
    ] {
        let mut plan = plan(machine, SMALL_OR_ALL, Accel::Tcg, dir.path());
        // This machine may have one node only; where memory is bound to has no part in this.
        for node in &mut plan.memory {
            node.host = NodeId(0);
        }
        let vm = qemu.start(&plan, &CpuSet::new()).await.unwrap_or_else(|error| panic!("{machine}: {error:?}"));
        drop(vm);
        let qmp = Qmp::connect(&plan.files.qmp_socket, BUDGET).await.unwrap();
        compare(machine, &plan, &qmp).await;
        drop(qmp);
        qemu.attach(&plan).await.unwrap().unwrap().end(BUDGET).await.unwrap();
    }
}

/// Sixteen nodes need a guarantee for the boot memory of all.
const SMALL_OR_ALL: &str = "[guarantee]\ncores = 1\n[boot]\nmemory_per_node = \"64M\"";

async fn compare(machine: &str, plan: &BindingPlan, qmp: &Qmp) {
    let cpus = qmp.call("query-cpus-fast", json!({}), BUDGET).await.unwrap();
    let cpus = cpus.as_array().unwrap();
    assert_eq!(cpus.len(), plan.replica.vcpus.len(), "{machine}");
    for cpu in cpus {
        let props = &cpu["props"];
        let number = |key: &str| props[key].as_u64().unwrap_or_default() as u32;
        let id = cpu["cpu-index"].as_u64().unwrap() as u32;
        let vcpu = plan.replica.vcpus.iter().find(|vcpu| vcpu.id.0 == id).unwrap_or_else(|| panic!("{machine}: {cpu}"));
        assert_eq!(number("node-id"), vcpu.node.0, "{machine}: {cpu}");
        let slot = [number("socket-id"), number("die-id"), number("module-id"), number("core-id"), number("thread-id")];
        let wanted = [vcpu.slot.socket, vcpu.slot.die, vcpu.slot.module, vcpu.slot.core, vcpu.slot.thread];
        assert_eq!(slot, wanted, "{machine}: {cpu}");
    }
    let backends = qmp.call("query-memdev", json!({}), BUDGET).await.unwrap();
    let sizes = |prefix: &str| -> u64 {
        let backends = backends.as_array().unwrap().iter();
        backends.filter(|b| b["id"].as_str().is_some_and(|id| id.starts_with(prefix))).map(|b| size(&b["size"])).sum()
    };
    assert_eq!(sizes("boot"), plan.memory.iter().map(|node| node.boot.0).sum::<u64>(), "{machine}");
    assert_eq!(sizes("vmem"), plan.memory.iter().map(|node| node.maximum.0).sum::<u64>(), "{machine}");
    let devices = qmp.call("query-memory-devices", json!({}), BUDGET).await.unwrap();
    for device in devices.as_array().unwrap() {
        let planned = plan.memory.iter().find(|node| device["data"]["id"] == node.device_id()).unwrap();
        assert_eq!(device["data"]["node"].as_u64(), Some(planned.node.0.into()), "{machine}");
        // The guest's kernel uses only whole blocks of 128 MiB.
        assert_eq!(size(&device["data"]["memaddr"]) % (128 << 20), 0, "{machine}: {device}");
    }
}

fn size(value: &Value) -> u64 {
    value.as_u64().unwrap()
}
