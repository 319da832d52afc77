//! The conformance suite against the fake and against the real QEMU, emulating: what is under test is the conversation
//! with QEMU, which its emulator holds as its KVM does.

use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;

use conuma_binding::{Accel, BindingPlan, PlanOptions, Reserve, VmSpec};
use conuma_hypervisor::conformance::Subject;
use conuma_hypervisor::fake::{FakeHypervisor, MemoryGateRoot};
use conuma_hypervisor::qemu::Qemu;
use conuma_hypervisor::{Hypervisor, HypervisorError};
use conuma_linux::procfs::ProcFs;
use conuma_topology::{CpuSet, Machine};

const QEMU: &str = "qemu-system-x86_64";
const VM: &str = "name = \"vm-1\"\n[guarantee]\ncores = 1\nmemory = \"64M\"\n[boot]\nmemory_per_node = \"64M\"";

fn plan(vm: &str, dir: &Path) -> BindingPlan {
    let machine: Machine = "1n2c1t@512M".parse().unwrap();
    let spec = VmSpec::parse(vm, "vm.toml").unwrap();
    let options = PlanOptions { accel: Accel::Tcg, cid: None, dir: dir.to_owned() };
    BindingPlan::new(&spec, &machine, &Reserve::default(), &options).unwrap()
}

async fn qemu(dir: &Path) -> Option<Qemu> {
    let there = Command::new(QEMU).arg("--version").stdout(Stdio::null()).status().is_ok_and(|status| status.success());
    if !there {
        eprintln!("SKIP: {QEMU} is not installed");
        return None;
    }
    Some(Qemu::probe(QEMU, Arc::new(MemoryGateRoot::default()), ProcFs::new("/"), dir).await.unwrap())
}

#[tokio::test]
async fn the_fake_conforms() {
    let plan = plan(VM, Path::new("/nowhere"));
    Subject { hypervisor: &FakeHypervisor::default(), plan: &plan, guest_follows: true }.conforms().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn qemu_conforms() {
    let dir = tempfile::tempdir().unwrap();
    let Some(qemu) = qemu(dir.path()).await else { return };
    assert!(qemu.facts().release >= (7, 0), "{:?}", qemu.facts());
    let plan = plan(VM, dir.path());
    Subject { hypervisor: &qemu, plan: &plan, guest_follows: false }.conforms().await;
    let left: Vec<_> = std::fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left, ["qemu.log"], "only the log stays behind");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_qemu_that_refuses_its_arguments_says_why() {
    let dir = tempfile::tempdir().unwrap();
    let Some(qemu) = qemu(dir.path()).await else { return };
    let plan = plan(&format!("qemu_args = [\"-device\", \"no-such-device\"]\n{VM}"), dir.path());
    match qemu.start(&plan, &CpuSet::new()).await.map(drop) {
        Err(HypervisorError::EndedEarly { log, .. }) => assert!(log.contains("no-such-device"), "{log}"),
        other => panic!("{other:?}"),
    }
    assert!(qemu.attach(&plan).await.unwrap().is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_program_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let gates = Arc::new(MemoryGateRoot::default());
    let error = Qemu::probe("no-such-qemu", gates, ProcFs::new("/"), dir.path()).await.unwrap_err();
    assert!(error.to_string().contains("no-such-qemu"), "{error}");
}
