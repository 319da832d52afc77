//! The daemon ends and comes back; VMs run on.

use std::time::Duration;

use conuma_api::{AgentState, GateState, Holder, TransferState};
use conuma_hypervisor::fake::Faults;
use conuma_hypervisor::gate::{Gate, Grip};
use conuma_hypervisor::{Hypervisor as _, RunState, Vm as _};
use conuma_topology::VcpuId;

use crate::harness::{Host, cpus, lend, name, recall, vm_file};

#[tokio::test(flavor = "multi_thread")]
async fn vms_run_on_and_are_found_again_with_their_loans() {
    let mut host = Host::boot().await;
    let (a, b) = host.two_vms().await;
    host.transfer(lend("a", "b", cpus("2-3"))).await;
    host.stop_daemon().await;
    assert_eq!(host.fake("a").run_state().await.unwrap(), RunState::Running);
    host.start_daemon().await;
    assert_eq!((host.cpus_of("a").await, host.cpus_of("b").await), ("0-1".into(), "2-5".into()));
    host.settled(&["a", "b"]).await;
    assert_eq!(host.transfer(recall("a")).await.state, TransferState::Complete);
    assert!(a.uses("0-3") && b.uses("4-5"));
    host.check().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_journal_costs_loans_but_not_the_truth() {
    let mut host = Host::boot().await;
    let _guests = host.two_vms().await;
    host.transfer(lend("a", "b", cpus("2-3"))).await;
    for broken in [true, false] {
        host.stop_daemon().await;
        match broken {
            true => std::fs::write(host.state_file("journal.json"), "nonsense").unwrap(),
            false => std::fs::remove_file(host.state_file("journal.json")).unwrap(),
        }
        host.start_daemon().await;
        assert_eq!((host.cpus_of("a").await, host.cpus_of("b").await), ("0-1".into(), "2-5".into()));
        assert!(host.vm("a").await.loans.is_empty());
        host.settled(&["a", "b"]).await;
        host.check().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vm_that_ended_meanwhile_is_forgotten() {
    let mut host = Host::boot().await;
    let _guests = host.two_vms().await;
    host.stop_daemon().await;
    host.fake("b").crash();
    host.start_daemon().await;
    let names: Vec<_> = host.client.vms().await.unwrap().into_iter().map(|vm| vm.name).collect();
    assert_eq!(names, [name("a")]);
    assert_eq!(host.held(&Holder::Pool).await.cpus.to_string(), "4-7");
    host.check().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transfer_under_way_is_cut_and_everything_is_held_by_one() {
    let mut host = Host::boot().await;
    let _guests = host.two_vms().await;
    host.fake("a").set_faults(Faults { delay: std::time::Duration::from_millis(300), ..Faults::default() });
    let id = host.client.transfer(lend("a", "b", cpus("2-3"))).await.unwrap().id;
    host.stop_daemon().await;
    host.fake("a").set_faults(Faults::default());
    host.start_daemon().await;
    assert!(host.ended(id).await.state.is_final());
    host.settled(&["a", "b"]).await;
    host.check().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_daemon_on_the_same_state_refuses_to_start() {
    let mut host = Host::boot().await;
    let refused = host.second_daemon().await.err().map(|error| error.to_string()).unwrap_or_default();
    assert!(refused.contains("another conumad"), "{refused}");
    let _guests = host.two_vms().await;
    assert_eq!(host.vm("a").await.summary.agent, AgentState::Connected);
    host.stop_daemon().await;
    host.start_daemon().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vm_that_was_never_let_run_runs_after_a_restart() {
    let mut host = Host::boot().await;
    let _guests = host.two_vms().await;
    host.stop_daemon().await;
    // What a daemon leaves that was killed after it started QEMU.
    let plan = std::fs::read(host.state_file("vms/a/plan.json")).unwrap();
    host.fake("a").crash();
    host.hypervisor.start(&serde_json::from_slice(&plan).unwrap(), &"0-3".parse().unwrap()).await.unwrap();
    assert_eq!(host.fake("a").run_state().await.unwrap(), RunState::Paused);
    host.start_daemon().await;
    host.eventually("it runs", || async { host.fake("a").run_state().await.unwrap() == RunState::Running }).await;
    host.check().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_due_at_a_restart_is_done_at_once() {
    // Whatever finds nobody to do it waits so long.
    let mut host = Host::boot_with(|settings| settings.timing.retry = Duration::from_secs(60)).await;
    let _guests = host.two_vms().await;
    host.stop_daemon().await;
    host.fake("a").set_gate(VcpuId(1), Gate::Closed(Grip::SOFT)).await.unwrap();
    host.start_daemon().await;
    host.gate("a", 1, GateState::Open).await;
    host.check().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_that_runs_behind_a_gate_that_was_being_closed_keeps_its_cpu() {
    for busy in [true, false] {
        let mut host = Host::boot().await;
        let _guests = host.two_vms().await;
        host.stop_daemon().await;
        let a = host.fake("a");
        a.set_gate(VcpuId(1), Gate::Closed(Grip::SOFT)).await.unwrap();
        a.set_faults(Faults { busy: busy.then_some(VcpuId(1)).into_iter().collect(), ..Faults::default() });
        std::fs::remove_file(host.state_file("journal.json")).unwrap();
        host.start_daemon().await;
        assert_eq!(host.cpus_of("a").await, if busy { "0-3" } else { "0,2-3" });
        host.gate("a", 1, if busy { GateState::Open } else { GateState::Soft }).await;
        host.check().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_that_stops_while_a_vm_does_not_end_leaves_it_to_the_next() {
    let mut host = Host::boot().await;
    host.hypervisor.fault_next_start(Faults { silent: true, immortal: true, ..Faults::default() });
    host.client.start(&vm_file("a", "0-3"), false).await.unwrap();
    host.eventually("it is to be ended", || async {
        host.hypervisor.vm(&name("a")).is_some_and(|vm| vm.failed("end") > 0)
    })
    .await;
    host.stop_daemon().await;
    host.fake("a").set_faults(Faults::default());
    host.start_daemon().await;
    assert_eq!(host.cpus_of("a").await, "0-3");
    host.eventually("it runs", || async { host.fake("a").run_state().await.unwrap() == RunState::Running }).await;
    host.check().await;
}
