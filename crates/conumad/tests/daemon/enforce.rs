//! What the daemon enforces without a guest's consent, and what it does when somebody else on the host interferes.

use std::collections::BTreeMap;

use conuma_api::{Client, Code, EventKind, GateState, Holder, StopQuery, TransferState, VIEWERS};
use conuma_hypervisor::fake::Faults;
use conuma_hypervisor::gate::{Gate, Grip};
use conuma_hypervisor::{RunState, Vm as _};
use conuma_topology::{Bytes, NodeId, VcpuId};

use crate::harness::{Host, cpus, lend, memory, name, problem, recall, vm_file};

fn without_agent(vm: &str, initial: &str) -> String {
    vm_file(vm, initial).replacen("[guarantee]", "agent = \"none\"\n[guarantee]", 1)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gate_that_somebody_turned_is_set_right_and_told() {
    let host = Host::boot().await;
    let _guests = host.two_vms().await;
    let mut events = host.client.events(Some(&name("a")), &["repaired"]).await.unwrap();
    host.fake("a").turn_gate(VcpuId(7), Gate::Open);
    host.fake("a").turn_gate(VcpuId(0), Gate::Closed(Grip::FIRM));
    let event = events.next().await.unwrap().expect("the daemon runs");
    let EventKind::Repaired { what, .. } = event.what else { panic!("{event:?}") };
    assert_eq!(
        what,
        ["the gate of vCPU 0 was closed with a quota of 1 ms, not open", "the gate of vCPU 7 was open, not closed"]
    );
    host.gate("a", 7, GateState::Soft).await;
    host.gate("a", 0, GateState::Open).await;
    host.check().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cpu_that_the_host_loses_is_used_by_nobody_until_it_returns() {
    let host = Host::boot().await;
    let (a, _b) = host.two_vms().await;
    host.cpus_online("0-2,4-7");
    host.gate("a", 3, GateState::Firm).await;
    host.settled(&["a"]).await;
    assert!(a.uses("0-2"));
    assert_eq!(host.cpus_of("a").await, "0-3", "it is not lost from the ledger");
    let (code, message) = host.refused(lend("a", "b", cpus("3"))).await;
    assert_eq!((code, message.as_str()), (Code::Refused, "CPUs 3 of the host are offline"));
    host.cpus_online("0-7");
    host.gate("a", 3, GateState::Open).await;
    host.settled(&["a"]).await;
    assert!(a.uses("0-3"));
    host.check().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_without_an_agent_is_held_by_the_host_alone_and_asked_once_it_has_one() {
    let host = Host::boot().await;
    host.client.start(&without_agent("a", "0-3"), true).await.unwrap();
    let b = host.guest("b");
    host.client.start(&vm_file("b", "4-5"), true).await.unwrap();
    host.settled(&["b"]).await;
    assert!(host.vm("a").await.summary.settled, "there is nobody to be told");

    let lent = host.transfer(lend("a", "b", cpus("2-3"))).await;
    assert_eq!(lent.state, TransferState::Complete);
    assert!(lent.legs[0].remarks.is_empty(), "{lent:#?}");
    host.gate("a", 3, GateState::Firm).await;
    assert!(b.uses("2-5"));
    assert_eq!(host.transfer(lend("a", "b", memory(1, 128))).await.state, TransferState::Complete);
    assert_eq!(host.fake("a").ceiling(), Some(Bytes::mib(384)), "boot memory, and what node 0 has beyond it");
    assert_eq!(host.transfer(recall("a")).await.state, TransferState::Complete);
    assert_eq!(host.fake("a").ceiling(), Some(Bytes::mib(512)));

    let a = host.guest("a");
    host.settled(&["a"]).await;
    assert!(a.uses("0-3"));
    host.transfer(lend("a", "b", cpus("3"))).await;
    assert!(a.uses("0-2"));
    host.gate("a", 3, GateState::Soft).await;
    host.check().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vm_that_touches_memory_it_does_not_hold_is_found_and_gets_none() {
    let host = Host::boot().await;
    let _guests = host.two_vms().await;
    let touches = BTreeMap::from([(NodeId(1), Bytes::mib(600))]);
    let mut events = host.client.events(Some(&name("b")), &["vm-trespasses"]).await.unwrap();
    host.fake("b").set_faults(Faults { touches, ..Faults::default() });
    let event = events.next().await.unwrap().expect("the daemon runs");
    assert_eq!(event.what, EventKind::VmTrespasses { vm: name("b"), trespasses: true });
    let (code, message) = host.refused(lend("a", "b", memory(1, 128))).await;
    assert!(code == Code::Refused && message.contains("uses more memory than it holds"), "{message}");
    assert!(!host.vm("b").await.summary.takes_memory);
    host.fake("b").set_faults(Faults::default());
    let event = events.next().await.unwrap().expect("the daemon runs");
    assert_eq!(event.what, EventKind::VmTrespasses { vm: name("b"), trespasses: false });
    assert_eq!(host.transfer(lend("a", "b", memory(1, 128))).await.state, TransferState::Complete);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vm_that_is_released_runs_on_ungated_and_forgotten() {
    let mut host = Host::boot().await;
    let (a, _b) = host.two_vms().await;
    let answer = host.client.release(&name("a")).await.unwrap();
    assert!(answer.agent_told && a.uses("0-7"), "{answer:?}");
    let fake = host.fake("a");
    assert!(fake.is_released() && fake.gates().await.unwrap().values().all(|gate| *gate == Gate::Open));
    assert_eq!(fake.run_state().await.unwrap(), RunState::Running);
    assert_eq!(host.client.vms().await.unwrap().len(), 1);
    assert_eq!(host.held(&Holder::Pool).await.cpus.to_string(), "0-3,6-7");
    let (code, _) = problem(host.client.release(&name("a")).await.expect_err("it is forgotten"));
    assert_eq!(code, Code::NotFound);
    // Also by the next daemon.
    host.stop_daemon().await;
    host.start_daemon().await;
    assert_eq!(host.client.vms().await.unwrap().len(), 1);
    assert!(fake.gates().await.unwrap().values().all(|gate| *gate == Gate::Open));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_viewers_socket_shows_everything_and_changes_nothing() {
    let host = Host::boot().await;
    let _guests = host.two_vms().await;
    let viewer = Client::new(host.client.socket().with_file_name(VIEWERS));
    assert_eq!(viewer.vms().await.unwrap().len(), 2);
    assert!(viewer.check().await.unwrap().ok);
    viewer.events(None, &[]).await.unwrap();
    let refusals = [
        viewer.transfer(lend("a", "b", cpus("3"))).await.map(drop),
        viewer.stop(&name("a"), StopQuery::default()).await,
        viewer.start(&vm_file("c", "6"), true).await.map(drop),
        viewer.release(&name("a")).await.map(drop),
    ];
    for refused in refusals {
        let (code, message) = problem(refused.expect_err("only looking"));
        assert!(matches!(code, Code::Refused | Code::NotFound), "{message}");
    }
    assert_eq!((host.cpus_of("a").await, host.client.vms().await.unwrap().len()), ("0-3".into(), 2));
    for socket in [host.client.socket(), viewer.socket()] {
        let mode = std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(socket).unwrap().permissions());
        assert_eq!(mode & 0o777, 0o660, "{}", socket.display());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_begun_while_the_journal_cannot_be_written() {
    let mut host = Host::boot().await;
    let _guests = host.two_vms().await;
    host.stop_daemon().await;
    // It is begun anew at the first step, beside the old one.
    std::fs::create_dir(host.state_file("journal.new")).unwrap();
    host.start_daemon().await;
    host.settled(&["a", "b"]).await;
    let refused = host.refused(lend("a", "b", cpus("3"))).await;
    assert!(refused.0 == Code::Internal && refused.1.contains("journal"), "{refused:?}");
    let _c = host.guest("c");
    let (code, _) = problem(host.client.start(&vm_file("c", "6"), true).await.expect_err("no journal"));
    assert_eq!(code, Code::Internal);
    assert_eq!((host.cpus_of("a").await, host.client.vms().await.unwrap().len()), ("0-3".into(), 2));
    assert!(host.client.transfers().await.unwrap().is_empty(), "nothing was begun");
    host.check().await;
    std::fs::remove_dir(host.state_file("journal.new")).unwrap();
    assert_eq!(host.transfer(lend("a", "b", cpus("3"))).await.state, TransferState::Complete);
}
