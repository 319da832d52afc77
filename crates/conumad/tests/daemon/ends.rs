//! Starts and stops that do not go as they should: who asked goes away, QEMU does not end.

use std::time::Duration;

use conuma_api::{Code, Holder, StopQuery, VmState};
use conuma_hypervisor::fake::Faults;
use tokio::time::timeout;

use crate::harness::{Host, name, problem, vm_file};

/// How long somebody waits who goes away.
const IMPATIENT: Duration = Duration::from_millis(200);

#[tokio::test(flavor = "multi_thread")]
async fn nothing_of_a_vm_is_free_while_its_qemu_lives() {
    let host = Host::boot().await;
    host.hypervisor.fault_next_start(Faults { silent: true, immortal: true, ..Faults::default() });
    let client = host.client.clone();
    let start = tokio::spawn(async move { client.start(&vm_file("a", "0-3"), true).await });
    host.eventually("it is to be ended a second time", || async {
        host.hypervisor.vm(&name("a")).is_some_and(|vm| vm.failed("end") >= 2)
    })
    .await;
    assert_eq!(host.cpus_of("a").await, "0-3");
    assert!(host.state_file("vms/a/plan.json").exists());
    let (code, _) = problem(host.client.start(&vm_file("b", "3-4"), true).await.expect_err("CPU 3 is taken"));
    assert_eq!(code, Code::Refused);

    host.fake("a").set_faults(Faults::default());
    let (code, message) = problem(start.await.unwrap().expect_err("no VM"));
    assert!(code == Code::Hypervisor && message.contains("could not be started"), "{message}");
    assert_eq!(host.held(&Holder::Pool).await.cpus.to_string(), "0-7");
    assert!(!host.state_file("vms/a/plan.json").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vm_is_started_also_when_who_asked_goes_away() {
    let host = Host::boot().await;
    let _a = host.guest("a");
    // The core is busy for so long that the request is given up while the VM is being admitted.
    let core = host.daemon.as_ref().unwrap().core();
    let busy = tokio::spawn(async move { core.look(|_, _| std::thread::sleep(5 * IMPATIENT)).await });
    timeout(IMPATIENT, host.client.start(&vm_file("a", "0-3"), true)).await.expect_err("the core is busy");
    busy.await.unwrap().unwrap();
    host.settled(&["a"]).await;
    assert_eq!(host.vm("a").await.summary.state, VmState::Running);
    host.check().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vm_that_does_not_power_off_is_said_to_run_again() {
    let host = Host::boot().await;
    let _guests = host.two_vms().await;
    let state = async || host.vm("a").await.summary.state;
    let runs_again = || host.eventually("it runs again", || async { state().await == VmState::Running });
    host.fake("a").set_faults(Faults { ignores_power_button: true, ..Faults::default() });
    let soon = |wait| StopQuery { wait, deadline_ms: Some(1000), ..StopQuery::default() };
    host.client.stop(&name("a"), soon(false)).await.unwrap();
    assert_eq!(state().await, VmState::Stopping);
    runs_again().await;
    timeout(IMPATIENT, host.client.stop(&name("a"), soon(true))).await.expect_err("the guest does not power off");
    assert_eq!(state().await, VmState::Stopping);
    runs_again().await;
    host.fake("a").set_faults(Faults { silent: true, ..Faults::default() });
    let (code, _) = problem(host.client.stop(&name("a"), soon(false)).await.expect_err("QEMU does not answer"));
    assert_eq!((code, state().await), (Code::Hypervisor, VmState::Running));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vm_whose_guest_cannot_go_on_keeps_what_it_holds_until_it_is_stopped() {
    let mut host = Host::boot().await;
    let _guests = host.two_vms().await;
    host.fake("a").halt();
    host.stop_daemon().await;
    host.start_daemon().await;
    assert_eq!(host.cpus_of("a").await, "0-3");
    host.client.stop(&name("a"), StopQuery { force: true, ..StopQuery::default() }).await.unwrap();
    assert_eq!(host.held(&Holder::Pool).await.cpus.to_string(), "0-3,6-7");
}
