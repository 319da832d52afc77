//! When a guest that runs where it should not is braked, and when it is not to be blamed.

use std::time::Duration;

use conuma_api::{AgentState, GateState};
use conuma_hypervisor::VmEvent;
use conuma_hypervisor::fake::Faults;
use conuma_topology::VcpuId;

use crate::harness::{Host, vm_file};

fn busy() -> Faults {
    Faults { busy: [VcpuId(7)].into(), ..Faults::default() }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_that_knows_what_it_holds_is_braked_also_by_the_next_daemon() {
    let mut host = Host::boot().await;
    let _guests = host.two_vms().await;
    host.stop_daemon().await;
    host.start_daemon().await;
    host.settled(&["a", "b"]).await;
    host.fake("a").set_faults(busy());
    host.gate("a", 7, GateState::Firm).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_without_an_agent_is_braked_when_it_should_have_booted() {
    let host = Host::boot_with(|settings| settings.timing.shrink = Duration::from_millis(100)).await;
    host.client.start(&vm_file("a", "0-3"), true).await.unwrap();
    host.fake("a").set_faults(busy());
    host.gate("a", 7, GateState::Firm).await;
    // It boots anew.
    host.fake("a").reset();
    host.gate("a", 7, GateState::Soft).await;
    host.gate("a", 7, GateState::Firm).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_that_changes_its_memory_without_end_is_braked() {
    let host = Host::boot_with(|settings| settings.timing.shrink = Duration::from_millis(500)).await;
    let _guests = host.two_vms().await;
    host.fake("a").set_faults(busy());
    let fake = host.fake("a");
    let restless = tokio::spawn(async move {
        loop {
            fake.tell(VmEvent::MemoryChanged);
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    });
    host.gate("a", 7, GateState::Firm).await;
    assert!(!restless.is_finished());
    restless.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reset_that_drowns_in_other_events_is_taken_for_one() {
    let host = Host::boot().await;
    let (a, _b) = host.two_vms().await;
    host.fake("a").set_faults(busy());
    host.gate("a", 7, GateState::Firm).await;
    // The daemon is kept from listening while it asks for sizes, as it does when an agent connects.
    a.vanish();
    let agent = async || host.client.vms().await.unwrap()[0].agent;
    host.eventually("the agent is lost", || async { agent().await == AgentState::Lost }).await;
    host.fake("a").set_faults(Faults { delay: Duration::from_millis(500), ..busy() });
    let again = host.guest("a");
    again.state().silent = true;
    // It knows what it holds: nobody tells it anew.
    again.state().holding = Some("0-3".parse().unwrap());
    host.eventually("the agent is there", || async { agent().await == AgentState::Connected }).await;
    host.fake("a").reset();
    for _ in 0..100 {
        host.fake("a").tell(VmEvent::Resumed);
    }
    host.fake("a").set_faults(busy());
    host.gate("a", 7, GateState::Soft).await;
    // The guest is back.
    again.state().silent = false;
    host.gate("a", 7, GateState::Firm).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gate_that_could_not_be_set_is_set_later() {
    let host = Host::boot().await;
    let _guests = host.two_vms().await;
    host.fake("a").set_faults(Faults { gates_stuck: true, ..busy() });
    // More often than there are steps of the brake.
    host.eventually("the gate was not set", || async { host.fake("a").failed("set-gate") >= 10 }).await;
    host.fake("a").set_faults(busy());
    host.gate("a", 7, GateState::Firm).await;
}
