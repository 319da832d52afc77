//! The conformance suite against the fake and against the real QEMU, emulating: what is under test is the conversation
//! with QEMU, which its emulator holds as its KVM does.

#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout, reason = "tests")]

use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use conuma_binding::{Accel, BindingPlan, PlanOptions, Reserve, VmSpec};
use conuma_hypervisor::conformance::Subject;
use conuma_hypervisor::fake::{FakeHypervisor, MemoryGateRoot};
use conuma_hypervisor::gate::{Gate, Grip};
use conuma_hypervisor::qemu::Qemu;
use conuma_hypervisor::qmp::Qmp;
use conuma_hypervisor::{CgroupRoot, GateRoot, Hypervisor, HypervisorError, RunState, VmEvent};
use conuma_linux::procfs::ProcFs;
use conuma_topology::{CpuSet, Machine};
use serde_json::json;

const QEMU: &str = "qemu-system-x86_64";
const VM: &str = "name = \"vm-1\"\n[guarantee]\ncores = 1\nmemory = \"64M\"\n[boot]\nmemory_per_node = \"64M\"";

fn plan(vm: &str, dir: &Path) -> BindingPlan {
    let machine: Machine = "1n2c1t@512M".parse().unwrap();
    let spec = VmSpec::parse(vm, "vm.toml").unwrap();
    let options = PlanOptions { accel: Accel::Tcg, cid: None, dir: dir.to_owned() };
    BindingPlan::new(&spec, &machine, &Reserve::default(), &options).unwrap()
}

async fn qemu(dir: &Path, gates: Arc<dyn GateRoot>) -> Option<Qemu> {
    let there = Command::new(QEMU).arg("--version").stdout(Stdio::null()).status().is_ok_and(|status| status.success());
    if !there {
        println!("skipped: {QEMU} is not installed");
        return None;
    }
    Some(Qemu::probe(QEMU, gates, ProcFs::new("/"), dir).await.unwrap())
}

#[tokio::test]
async fn the_fake_conforms() {
    let plan = plan(VM, Path::new("/nowhere"));
    Subject { hypervisor: &FakeHypervisor::default(), plan: &plan, guest_follows: true }.conforms().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn qemu_conforms() {
    let dir = tempfile::tempdir().unwrap();
    let Some(qemu) = qemu(dir.path(), Arc::new(MemoryGateRoot::default())).await else { return };
    assert!(qemu.facts().release >= (7, 0), "{:?}", qemu.facts());
    let plan = plan(VM, dir.path());
    Subject { hypervisor: &qemu, plan: &plan, guest_follows: false }.conforms().await;
    let mut left: Vec<_> = std::fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    left.sort();
    assert_eq!(left, ["qemu.json", "qemu.log"], "only the log stays behind, and what the program can do");
}

/// As above with real gates, where this process may make cgroups (in the lab's virtual host it may).
#[tokio::test(flavor = "multi_thread")]
async fn qemu_conforms_behind_cgroups() {
    let mount = Path::new("/sys/fs/cgroup");
    let controllers = std::fs::read_to_string(mount.join("cgroup.controllers")).unwrap_or_default();
    if !["cpu", "cpuset", "memory"].iter().all(|wanted| controllers.split_whitespace().any(|there| there == *wanted)) {
        println!("skipped: no cgroup v2 with cpu, cpuset and memory here");
        return;
    }
    let root = mount.join(format!("conuma-test-{}", std::process::id()));
    let gates = match CgroupRoot::prepare(&root, ProcFs::new("/")) {
        Ok(gates) => Arc::new(gates),
        Err(error) => {
            println!("skipped: no cgroup can be made here");
            eprintln!("{error}");
            return;
        }
    };
    let dir = tempfile::tempdir().unwrap();
    let Some(qemu) = qemu(dir.path(), gates.clone()).await else { return };
    let kvm = std::fs::OpenOptions::new().read(true).write(true).open("/dev/kvm").is_ok();
    let plan = BindingPlan { accel: if kvm { Accel::Kvm } else { Accel::Tcg }, ..plan(VM, dir.path()) };
    eprintln!("with {:?}", plan.accel);
    let open = CpuSet::from([plan.replica.vcpus[0].cpu]);
    let vm = qemu.start(&plan, &open).await.unwrap();
    let [first, second] = [0, 1].map(|at| plan.replica.vcpus[at].id);
    let read = |file: &str| std::fs::read_to_string(root.join("vm-1").join(file)).unwrap().trim().to_owned();
    assert_eq!((read("vcpu0/cpu.idle"), read("vcpu1/cpu.idle")), ("0".into(), "1".into()));
    assert_eq!((read("vcpu0/cpuset.cpus"), read("vcpu1/cpuset.cpus")), ("0".into(), "1".into()));
    assert_eq!(read("vcpu0/cgroup.threads").lines().count(), 1);
    assert_eq!(read("cgroup.threads"), "", "every thread is in a leaf");
    assert!(!read("emulator/cgroup.threads").is_empty());
    vm.set_gate(second, Gate::Closed(Grip::FIRM)).await.unwrap();
    assert_eq!(read("vcpu1/cpu.max"), "1000 100000");
    vm.set_gate(second, Gate::Open).await.unwrap();
    assert_eq!((read("vcpu1/cpu.max"), read("vcpu1/cpu.idle")), ("max 100000".into(), "0".into()));
    vm.resume().await.unwrap();
    assert!(vm.run_times(&[first]).await.unwrap().contains_key(&first));
    vm.end(std::time::Duration::from_secs(60)).await.unwrap();
    assert!(!root.join("vm-1").exists(), "no cgroup stays behind");
    drop(vm);
    Subject { hypervisor: &qemu, plan: &plan, guest_follows: false }.conforms().await;
    std::fs::remove_dir(&root).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_qemu_that_refuses_its_arguments_says_why() {
    let dir = tempfile::tempdir().unwrap();
    let Some(qemu) = qemu(dir.path(), Arc::new(MemoryGateRoot::default())).await else { return };
    let plan = plan(&format!("qemu_args = [\"-device\", \"no-such-device\"]\n{VM}"), dir.path());
    match qemu.start(&plan, &CpuSet::new()).await.map(drop) {
        Err(HypervisorError::EndedEarly { log, .. }) => assert!(log.contains("no-such-device"), "{log}"),
        other => panic!("{other:?}"),
    }
    assert!(qemu.attach(&plan).await.unwrap().is_none());
}

/// Migrations into nowhere, one that is cancelled and one that comes to its end: where QEMU says that its guest stands.
#[tokio::test(flavor = "multi_thread")]
async fn qemu_tells_of_migrations() {
    const BUDGET: Duration = Duration::from_secs(60);
    let dir = tempfile::tempdir().unwrap();
    let Some(qemu) = qemu(dir.path(), Arc::new(MemoryGateRoot::default())).await else { return };
    let socket = dir.path().join("hand.sock");
    let hand = format!("qemu_args = [\"-qmp\", \"unix:{},server=on,wait=off\"]\n{VM}", socket.display());
    let vm = qemu.start(&plan(&hand, dir.path()), &CpuSet::new()).await.unwrap();
    vm.resume().await.unwrap();
    let hand = Qmp::connect(&socket, BUDGET).await.unwrap();
    let order = async |command: &str, arguments| hand.call(command, arguments, BUDGET).await.unwrap();
    let becomes = async |wanted: RunState| {
        let until = Instant::now() + BUDGET;
        while vm.run_state().await.unwrap() != wanted {
            assert!(Instant::now() < until, "not {wanted:?} but {:?}", vm.run_state().await);
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let mut events = vm.events();
    // So slow that it does not end by itself.
    order("migrate-set-parameters", json!({"max-bandwidth": 1024})).await;
    order("migrate", json!({"uri": "exec:cat > /dev/null"})).await;
    becomes(RunState::Migrating).await;
    let told = async { while events.recv().await.unwrap() != VmEvent::Migration {} };
    tokio::time::timeout(BUDGET, told).await.expect("an event of it");
    order("migrate_cancel", json!({})).await;
    becomes(RunState::Running).await;

    order("migrate-set-parameters", json!({"max-bandwidth": 1_u64 << 40})).await;
    order("migrate", json!({"uri": "exec:cat > /dev/null"})).await;
    becomes(RunState::Migrated).await;
    vm.resume().await.unwrap();
    becomes(RunState::Running).await;
    vm.end(BUDGET).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_program_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let gates = Arc::new(MemoryGateRoot::default());
    let error = Qemu::probe("no-such-qemu", gates, ProcFs::new("/"), dir.path()).await.unwrap_err();
    assert!(error.to_string().contains("no-such-qemu"), "{error}");
}
