//! Guests that are migrated away, or were to be.

use conuma_api::{Code, Holder, StopQuery, TransferState, VmState};
use conuma_hypervisor::fake::Faults;
use conuma_hypervisor::{RunState, Vm as _};
use conuma_topology::{Bytes, NodeId};

use crate::harness::{Host, cpus, lend, memory, name};

async fn is(host: &Host, state: VmState) {
    host.eventually(&format!("a is {state:?}"), || async { host.vm("a").await.summary.state == state }).await;
}

/// Why memory is not even begun to be moved.
async fn kept(host: &Host, from: &str, to: &str) -> String {
    let (code, message) = host.refused(lend(from, to, memory(1, 64))).await;
    assert_eq!(code, Code::Refused, "{message}");
    message
}

#[tokio::test(flavor = "multi_thread")]
async fn memory_stays_while_a_guest_migrates_and_cores_move() {
    let host = Host::boot().await;
    let (_a, b) = host.two_vms().await;
    host.fake("a").migrate(RunState::Migrating);
    is(&host, VmState::Migrating).await;
    for (from, to) in [("a", "b"), ("b", "a")] {
        let why = kept(&host, from, to).await;
        assert!(why.contains("being migrated live"), "{from} to {to}: {why}");
    }
    assert_eq!(host.transfer(lend("a", "b", cpus("3"))).await.state, TransferState::Complete);
    assert!(b.uses("3-5"));
    host.check().await;

    // It failed: all is as it was.
    host.fake("a").migrate(RunState::Running);
    is(&host, VmState::Running).await;
    assert_eq!(host.transfer(lend("a", "b", memory(1, 64))).await.state, TransferState::Complete);
    host.check().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_migration_in_the_middle_of_a_transfer_ends_it_with_the_reason() {
    let host = Host::boot().await;
    let (a, _b) = host.two_vms().await;
    // The transfer waits for a guest that gives nothing, or says nothing.
    host.fake("a").set_faults(Faults { keeps: [(NodeId(1), Bytes::mib(128))].into(), ..Faults::default() });
    for silent in [false, true] {
        a.state().silent = silent;
        let asked = host.client.transfer(lend("a", "b", memory(1, 64))).await.unwrap();
        host.fake("a").migrate(RunState::Migrating);
        let ended = host.ended(asked.id).await;
        assert!(ended.legs[0].shortfalls[0].message.contains("being migrated live"), "{ended:#?}");
        host.check().await;
        host.fake("a").migrate(RunState::Running);
        is(&host, VmState::Running).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_that_was_migrated_away_keeps_what_it_holds_until_it_is_stopped() {
    let mut host = Host::boot().await;
    let (a, b) = host.two_vms().await;
    host.fake("a").migrate(RunState::Migrated);
    a.state().silent = true;
    is(&host, VmState::Migrated).await;
    let why = kept(&host, "a", "b").await;
    assert!(why.contains("runs here no more"), "{why}");
    assert_eq!(host.transfer(lend("a", "b", cpus("3"))).await.state, TransferState::Complete);
    assert!(b.uses("3-5"));

    // Nobody but who migrated it may let it run here again.
    host.stop_daemon().await;
    host.start_daemon().await;
    is(&host, VmState::Migrated).await;
    assert_eq!(host.fake("a").run_state().await.unwrap(), RunState::Migrated);
    assert_eq!(host.cpus_of("a").await, "0-2");

    // There is no guest that could heed a power button.
    host.fake("a").set_faults(Faults { ignores_power_button: true, ..Faults::default() });
    host.client.stop(&name("a"), StopQuery { wait: true, ..StopQuery::default() }).await.unwrap();
    assert_eq!(host.held(&Holder::Pool).await.cpus.to_string(), "0-2,6-7");
    host.check().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_that_somebody_pauses_is_said_to_be_paused() {
    let host = Host::boot().await;
    let _guests = host.two_vms().await;
    host.fake("a").pause();
    is(&host, VmState::Paused).await;
    host.fake("a").resume().await.unwrap();
    is(&host, VmState::Running).await;
}
