//! VMs begin and end.

use std::collections::BTreeSet;
use std::time::Duration;

use conuma_api::{AgentState, Code, EventKind, GateState, Holder, StopQuery, TransferState, VmState};
use conuma_hypervisor::fake::Faults;
use conuma_topology::Bytes;

use crate::harness::{Host, cores, cpus, lend, memory, name, problem, vm_file};

#[tokio::test(flavor = "multi_thread")]
async fn a_vm_starts_with_what_it_holds_and_every_other_gate_closed() {
    let host = Host::boot().await;
    let a = host.guest("a");
    let vm = host.client.start(&vm_file("a", "0-3"), true).await.unwrap();
    assert_eq!(vm.summary.state, VmState::Running);
    assert_eq!(vm.summary.holding.cpus.to_string(), "0-3");
    for vcpu in &vm.vcpus {
        let expected = if vcpu.cpu.0 < 4 { GateState::Open } else { GateState::Soft };
        assert_eq!((vcpu.held, vcpu.gate), (vcpu.cpu.0 < 4, expected), "{vcpu:?}");
    }
    host.settled(&["a"]).await;
    assert!(a.uses("0-3"));
    assert_eq!(host.vm("a").await.memory[1].plugged, Bytes::mib(128));
    host.eventually("a report is there", || async { host.vm("a").await.report.is_some() }).await;
    host.check().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_vms_that_start_together_spread_over_the_nodes() {
    let host = Host::boot_on("4n6c1t@4G", |_| ()).await;
    let file = |n: u32| {
        format!("name = \"vm{n}\"\n[guarantee]\ncores = 2\nmemory = \"640M\"\n[boot]\nmemory_per_node = \"128M\"\n")
    };
    let starts: Vec<_> = (0..10)
        .map(|n| {
            let (client, file) = (host.client.clone(), file(n));
            tokio::spawn(async move { client.start(&file, true).await })
        })
        .collect();
    for start in starts {
        let vm = start.await.unwrap().unwrap();
        let nodes: BTreeSet<u32> = vm.summary.holding.cpus.iter().map(|cpu| cpu.0 / 6).collect();
        assert_eq!((vm.summary.cores, nodes.len()), (2, 1), "{:?}", vm.summary.holding);
    }
    let ledger = host.client.ledger().await.unwrap();
    let of_node = |node: u32| {
        let held = ledger.accounts.iter().filter(|account| matches!(account.holder, Holder::Vm(_)));
        held.filter(|account| account.holds.cpus.iter().any(|cpu| cpu.0 / 6 == node)).count()
    };
    let counts: Vec<usize> = (0..4).map(of_node).collect();
    assert!(counts.iter().all(|count| (2..=3).contains(count)), "VMs on each node: {counts:?}");
    host.check().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_preview_of_a_start_shows_the_bindings_and_starts_nothing() {
    let host = Host::boot().await;
    let plan = host.client.preview_start(&vm_file("a", "0-3")).await.unwrap();
    assert_eq!((plan.vcpus.len(), plan.holding.cpus.to_string()), (8, "0-3".into()));
    assert!(plan.command.iter().any(|argument| argument.contains("virtio-mem")), "{:?}", plan.command);
    assert!(host.client.vms().await.unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_start_that_cannot_be_says_why_and_leaves_nothing() {
    let host = Host::boot().await;
    let start = async |file: &str| problem(host.client.start(file, true).await.expect_err("no VM"));
    let (code, message) = start("name = \"a\"\ncolour = \"red\"\n").await;
    assert!(code == Code::BadVmFile && message.contains("colour"), "{message}");
    host.hypervisor.fail_next_start("no more luck");
    let (code, message) = start(&vm_file("a", "0-3")).await;
    assert!(code == Code::Hypervisor && message.contains("no more luck"), "{message}");
    assert_eq!(host.held(&Holder::Pool).await.cpus.to_string(), "0-7");
    host.client.start(&vm_file("a", "0-3"), true).await.unwrap();
    let (code, _) = start(&vm_file("a", "0-3")).await;
    assert_eq!(code, Code::Exists);
    let (code, message) = start(&vm_file("b", "3-4")).await;
    assert!(code == Code::Refused, "{message}");
    assert_eq!(host.client.vms().await.unwrap().len(), 1);
    host.check().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stopped_vm_gives_all_back() {
    let host = Host::boot().await;
    let _guests = host.two_vms().await;
    host.client.stop(&name("a"), StopQuery::default()).await.unwrap();
    host.client.stop(&name("b"), StopQuery { force: true, ..StopQuery::default() }).await.unwrap();
    assert!(host.client.vms().await.unwrap().is_empty());
    let pool = host.held(&Holder::Pool).await;
    assert_eq!((pool.cpus.to_string(), pool.total_memory()), ("0-7".into(), Bytes::mib(2 * (1024 - 128))));
    let (code, _) = problem(host.client.stop(&name("a"), StopQuery::default()).await.expect_err("no VM"));
    assert_eq!(code, Code::NotFound);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_crash_is_noticed_and_its_resources_are_free() {
    let host = Host::boot().await;
    let _guests = host.two_vms().await;
    let mut events = host.client.events(None, &["vm-gone", "violated"]).await.unwrap();
    host.fake("b").crash();
    let event = events.next().await.unwrap().expect("the daemon runs");
    assert!(matches!(&event.what, EventKind::VmGone { vm, .. } if *vm == name("b")), "{event:?}");
    host.eventually("the pool has its CPUs", || async { host.held(&Holder::Pool).await.cpus.to_string() == "4-7" })
        .await;
    host.check().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reset_guest_gets_its_holding_again() {
    let host = Host::boot().await;
    let (a, _b) = host.two_vms().await;
    host.fake("a").reset();
    a.vanish();
    host.eventually("the agent is lost", || async { host.vm("a").await.summary.agent == AgentState::Lost }).await;
    let again = host.guest("a");
    host.settled(&["a"]).await;
    assert!(again.uses("0-3"));
    assert_eq!(host.vm("a").await.memory[0].plugged, Bytes::mib(128));
    host.check().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_comes_late_is_told_what_it_missed() {
    let host = Host::boot().await;
    let b = host.guest("b");
    host.client.start(&vm_file("a", "0-3"), true).await.unwrap();
    host.client.start(&vm_file("b", "4-5"), true).await.unwrap();
    host.settled(&["b"]).await;
    host.transfer(lend("a", "b", cores(1))).await;
    let a = host.guest("a");
    host.settled(&["a", "b"]).await;
    assert_eq!(a.state().holding.clone().map(|cpus| cpus.len()), Some(3));
    assert_eq!(b.state().holding.clone().map(|cpus| cpus.len()), Some(3));
    host.check().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stuck_qemu_keeps_what_it_holds() {
    let host = Host::boot().await;
    let (_a, b) = host.two_vms().await;
    let all = host.held(&Holder::Vm(name("a"))).await;
    host.fake("a").set_faults(Faults { silent: true, immortal: true, ..Faults::default() });
    // Its memory cannot be taken, and it cannot be ended: neither makes anything of it free. Its gates do close.
    let lent = host.transfer(lend("a", "b", memory(1, 64))).await;
    assert_eq!((lent.state, lent.legs[0].arrived.total_memory()), (TransferState::Nothing, Bytes::ZERO), "{lent:#?}");
    let force = StopQuery { force: true, ..StopQuery::default() };
    let (code, _) = problem(host.client.stop(&name("a"), force).await.expect_err("it lives"));
    assert_eq!(code, Code::Hypervisor);
    assert_eq!(host.held(&Holder::Vm(name("a"))).await, all);
    assert_eq!(host.vm("a").await.summary.state, VmState::Running);
    assert_eq!(host.transfer(lend("a", "b", cpus("3"))).await.state, TransferState::Complete);
    assert!(b.uses("3-5"));
    let report = host.client.check().await.unwrap();
    assert!(!report.unseen.is_empty(), "what cannot be looked at is said");
    host.fake("a").set_faults(Faults { delay: Duration::from_millis(1), ..Faults::default() });
    host.check().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn vms_started_at_the_same_time_get_addresses_of_their_own() {
    let host = Host::boot().await;
    let files = [("a", "0-1"), ("b", "2-3"), ("c", "4-5")].map(|(vm, cpus)| vm_file(vm, cpus));
    let starts = files.map(|file| {
        let client = host.client.clone();
        tokio::spawn(async move { client.start(&file, true).await })
    });
    let mut cids = BTreeSet::new();
    for start in starts {
        cids.extend(start.await.unwrap().unwrap().process.unwrap().cid);
    }
    assert_eq!(cids.len(), 3, "{cids:?}");
}
