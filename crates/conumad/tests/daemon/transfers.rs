//! Lend, recall, set: all of it, a part, nothing.

use std::time::Duration;

use conuma_api::{Code, EventKind, GateState, Holder, Stage, TransferState};
use conuma_hypervisor::Vm as _;
use conuma_hypervisor::fake::Faults;
use conuma_hypervisor::gate::{Gate, Grip};
use conuma_topology::{Bytes, NodeId, VcpuId};

use crate::harness::{Host, cores, cpus, lend, memory, name, problem, recall, set, vm_file};

#[tokio::test(flavor = "multi_thread")]
async fn lent_cores_change_guests_gates_and_ledger_and_come_back() {
    let host = Host::boot().await;
    let (a, b) = host.two_vms().await;
    let lent = host.transfer(lend("a", "b", cpus("2-3"))).await;
    assert_eq!(lent.state, TransferState::Complete, "{lent:#?}");
    assert_eq!((host.cpus_of("a").await, host.cpus_of("b").await), ("0-1".into(), "2-5".into()));
    assert!(a.uses("0-1") && b.uses("2-5"));
    let gates = |vcpus: Vec<conuma_api::VcpuInfo>| -> Vec<u32> {
        vcpus.iter().filter(|vcpu| vcpu.gate == GateState::Open).map(|vcpu| vcpu.cpu.0).collect()
    };
    assert_eq!(gates(host.vm("a").await.vcpus), [0, 1]);
    assert_eq!(gates(host.vm("b").await.vcpus), [2, 3, 4, 5]);
    let stages: Vec<Stage> = lent.legs[0].stages.iter().map(|time| time.stage).collect();
    assert!(stages.starts_with(&[Stage::Quiesce, Stage::Close, Stage::Open]), "{stages:?}");
    host.check().await;

    let back = host.transfer(recall("a")).await;
    assert_eq!(back.state, TransferState::Complete, "{back:#?}");
    assert_eq!((host.cpus_of("a").await, host.cpus_of("b").await), ("0-3".into(), "4-5".into()));
    assert!(host.vm("a").await.loans.is_empty());
    host.check().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn lent_memory_is_unplugged_here_and_plugged_there() {
    let host = Host::boot().await;
    let _guests = host.two_vms().await;
    let lent = host.transfer(lend("a", "b", memory(1, 64))).await;
    assert_eq!(lent.state, TransferState::Complete, "{lent:#?}");
    let on_node_1 = |vm: conuma_api::VmDetail| {
        let memory = vm.memory.into_iter().find(|memory| memory.node == NodeId(1)).unwrap();
        (memory.held, memory.plugged, memory.resident)
    };
    let mib = Bytes::mib;
    assert_eq!(on_node_1(host.vm("a").await), (mib(192), mib(64), Some(mib(192))));
    assert_eq!(on_node_1(host.vm("b").await), (mib(320), mib(192), Some(mib(320))));
    assert_eq!(host.vm("a").await.loans[0].borrower, Holder::Vm(name("b")));
    host.check().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_part_of_what_was_lent_can_be_recalled() {
    let host = Host::boot().await;
    let _guests = host.two_vms().await;
    host.transfer(lend("a", "b", cores(2))).await;
    let part = conuma_api::TransferRequest::Recall { to: name("a"), from: None, what: Some(cores(1)) };
    assert_eq!(host.transfer(part).await.state, TransferState::Complete);
    let a = host.vm("a").await;
    assert_eq!((a.summary.cores, a.loans[0].what.cpus.len()), (3, 1));
    let more = conuma_api::TransferRequest::Recall { to: name("a"), from: Some(name("b")), what: Some(cores(2)) };
    let (code, message) = host.refused(more).await;
    assert!(code == Code::Refused && message.contains("1 core more"), "{message}");
}

#[tokio::test(flavor = "multi_thread")]
async fn set_takes_from_the_pool_and_gives_to_it() {
    let host = Host::boot().await;
    let (_a, b) = host.two_vms().await;
    assert_eq!(host.transfer(set("b", cpus("4-7"))).await.state, TransferState::Complete);
    assert!(b.uses("4-7"));
    assert_eq!(host.held(&Holder::Pool).await.cpus.to_string(), "");
    assert_eq!(host.transfer(set("b", cpus("6-7"))).await.state, TransferState::Complete);
    assert!(b.uses("6-7"));
    assert_eq!(host.held(&Holder::Pool).await.cpus.to_string(), "4-5");
    // Asked for what is so already: done, and nothing moved.
    let again = host.transfer(set("b", cpus("6-7"))).await;
    assert_eq!((again.state, again.legs.len()), (TransferState::Complete, 0));
    host.check().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_breaks_a_rule_is_refused_with_a_reason() {
    let host = Host::boot().await;
    let _guests = host.two_vms().await;
    let (code, message) = host.refused(lend("a", "b", cores(3))).await;
    assert!(code == Code::Refused && message.contains("guarantee"), "{message}");
    let (code, _) = host.refused(lend("a", "nobody", cores(1))).await;
    assert_eq!(code, Code::NotFound);
    assert!(host.client.transfers().await.unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_preview_moves_nothing() {
    let host = Host::boot().await;
    let _guests = host.two_vms().await;
    let plan = host.client.preview_transfer(lend("a", "b", cores(2))).await.unwrap();
    assert_eq!(plan.moves.len(), 1);
    assert_eq!(plan.choices.iter().filter(|choice| choice.chosen).count(), 2);
    assert_eq!(host.cpus_of("a").await, "0-3");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_that_clings_to_a_cpu_keeps_it() {
    let host = Host::boot().await;
    let (a, _b) = host.two_vms().await;
    a.state().clings_to = "3".parse().unwrap();
    let lent = host.transfer(lend("a", "b", cpus("2-3"))).await;
    assert_eq!(lent.state, TransferState::Partial, "{lent:#?}");
    assert_eq!((host.cpus_of("a").await, host.cpus_of("b").await), ("0-1,3".into(), "2,4-5".into()));
    let shortfall = &lent.legs[0].shortfalls[0];
    assert!(shortfall.message.contains("/mine"), "{shortfall:?}");
    assert_eq!(shortfall.now_with, Holder::Vm(name("a")));
    host.check().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_that_keeps_memory_gives_a_part() {
    let host = Host::boot().await;
    let _guests = host.two_vms().await;
    host.fake("a").set_faults(Faults { keeps: [(NodeId(1), Bytes::mib(96))].into(), ..Faults::default() });
    let lent = host.transfer(lend("a", "b", memory(1, 64))).await;
    assert_eq!(lent.state, TransferState::Partial, "{lent:#?}");
    assert_eq!(lent.legs[0].arrived.total_memory(), Bytes::mib(32));
    host.check().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_gate_takes_cores_from_a_guest_that_does_not_answer() {
    let host = Host::boot().await;
    let (a, b) = host.two_vms().await;
    a.state().silent = true;
    host.fake("a").set_faults(Faults { busy: [VcpuId(3)].into(), ..Faults::default() });
    let lent = host.transfer(lend("a", "b", cpus("3"))).await;
    assert_eq!(lent.state, TransferState::Complete, "{lent:#?}");
    assert!(b.uses("3-5"));
    let gate = host.vm("a").await.vcpus[3].gate;
    assert_eq!(gate, GateState::Firm);
    host.check().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_transfers_over_the_same_cores_never_give_one_twice() {
    let host = Host::boot().await;
    let _guests = (host.guest("a"), host.guest("b"), host.guest("c"));
    for (vm, initial) in [("a", "0-3"), ("b", "4-5"), ("c", "6-7")] {
        host.client.start(&vm_file(vm, initial), true).await.unwrap();
    }
    host.settled(&["a", "b", "c"]).await;
    let asks = (0..12).map(|n| {
        let (client, to) = (host.client.clone(), if n % 2 == 0 { "b" } else { "c" });
        let request = if n % 3 == 2 { recall("a") } else { lend("a", to, cpus("2-3")) };
        tokio::spawn(async move { client.transfer(request).await.map(|transfer| transfer.id) })
    });
    let mut begun = Vec::new();
    for ask in asks.collect::<Vec<_>>() {
        // One that comes too late is refused, as the cores are gone.
        begun.extend(ask.await.unwrap());
    }
    assert!(begun.len() >= 2, "{begun:?}");
    for id in begun {
        host.ended(id).await;
    }
    host.settled(&["a", "b", "c"]).await;
    host.check().await;
    let held = [host.cpus_of("a").await, host.cpus_of("b").await, host.cpus_of("c").await];
    let takers = [&held[1], &held[2]].into_iter().filter(|cpus| cpus.starts_with("2-")).count();
    assert!(takers <= 1 && (takers == 1) == (held[0] == "0-1"), "{held:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vcpu_that_runs_on_is_seen_also_where_its_time_is_not_counted_yet() {
    let host = Host::boot().await;
    let _guests = host.two_vms().await;
    host.fake("a").set_faults(Faults { stale: [VcpuId(3)].into(), ..Faults::default() });
    let lent = host.transfer(lend("a", "b", cpus("2-3"))).await;
    assert_eq!(lent.state, TransferState::Complete);
    assert_eq!(lent.legs[0].remarks[0].code, "donor-busy", "{lent:#?}");
    assert_eq!(host.vm("a").await.vcpus[3].gate, GateState::Firm);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gated_vcpu_that_keeps_running_is_braked_step_by_step() {
    let host = Host::boot().await;
    let _guests = host.two_vms().await;
    let mut events = host.client.events(Some(&name("a")), &["gate-changed"]).await.unwrap();
    host.fake("a").set_faults(Faults { busy: [VcpuId(7)].into(), ..Faults::default() });
    let event = events.next().await.unwrap().expect("the daemon runs");
    let EventKind::GateChanged { cpu, gate, .. } = event.what else { panic!("{event:?}") };
    assert_eq!((cpu.0, gate), (7, GateState::Firm));
}

#[tokio::test(flavor = "multi_thread")]
async fn events_tell_a_transfer_from_its_beginning_to_its_end() {
    let host = Host::boot().await;
    let _guests = host.two_vms().await;
    let mut events = host.client.events(None, &[]).await.unwrap();
    let id = host.client.transfer(lend("a", "b", memory(0, 64))).await.unwrap().id;
    let mut kinds = Vec::new();
    let mut last = 0;
    loop {
        let event = events.next().await.unwrap().expect("the daemon runs");
        assert!(event.sequence > last);
        last = event.sequence;
        if event.what.transfer() == Some(id) {
            kinds.push(event.what.name());
        }
        if let EventKind::TransferEnded(transfer) = event.what {
            assert_eq!(transfer.state, TransferState::Complete);
            break;
        }
    }
    assert_eq!(kinds.first(), Some(&"transfer-began"));
    assert!(kinds.iter().filter(|kind| **kind == "transfer-stage").count() >= 2, "{kinds:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kind_of_events_that_is_not_is_refused_with_those_that_are() {
    let host = Host::boot().await;
    let (code, message) = problem(host.client.events(None, &["transfer-over"]).await.expect_err("no such kind"));
    assert_eq!(code, Code::BadRequest);
    assert!(message.contains("transfer-over") && message.contains("transfer-ended"), "{message}");
}

#[tokio::test(flavor = "multi_thread")]
async fn cores_do_not_wait_for_a_guest_that_is_slow_to_make_room() {
    let host = Host::boot().await;
    let (a, _b) = host.two_vms().await;
    // It has enough to spare, but not on that node.
    a.begin_load(host.fake("a"));
    a.fill(1, 250);
    let free = |node: &conuma_api::NodeLoad| node.node == NodeId(1) && node.free == Bytes::mib(6);
    host.eventually("it has reported so", || async {
        host.vm("a").await.report.is_some_and(|report| report.nodes.iter().any(free))
    })
    .await;
    a.state().never_makes_room = true;
    let memory_first = host.client.transfer(lend("a", "b", memory(1, 64))).await.unwrap().id;
    let cores = host.transfer(lend("a", "b", cpus("2-3"))).await;
    assert_eq!(cores.state, TransferState::Complete, "{cores:#?}");
    assert!(cores.legs[0].remarks.is_empty(), "{:?}", cores.legs[0].remarks);
    let memory = host.ended(memory_first).await;
    let ended = |transfer: &conuma_api::Transfer| transfer.asked_unix_ms + transfer.took_us / 1000;
    assert!(ended(&cores) < ended(&memory), "{cores:#?} {memory:#?}");
    // Who does not answer may be full since it reported.
    assert_eq!(memory.state, TransferState::Nothing, "{memory:#?}");
    let shortfall = &memory.legs[0].shortfalls[0];
    assert!(shortfall.message.contains("does not answer"), "{shortfall:?}");
    let remark = &memory.legs[0].remarks[0];
    assert!(remark.code == "donor-silent" && remark.message.contains("made room"), "{remark:?}");
    host.check().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_check_takes_no_transfer_for_a_violation() {
    // Long before the daemon itself finds and mends what is wrong.
    let host = Host::boot_with(|settings| settings.look = Duration::from_secs(600)).await;
    let _guests = (host.guest("a"), host.guest("b"), host.guest("c"));
    for (vm, initial) in [("a", "0-3"), ("b", "4-5"), ("c", "6-7")] {
        host.client.start(&vm_file(vm, initial), true).await.unwrap();
    }
    host.settled(&["a", "b", "c"]).await;
    // A look at b takes long: what goes to and fro between a and c is seen at one of them early, at the other late.
    host.fake("b").set_faults(Faults { delay: Duration::from_millis(150), ..Faults::default() });
    let under_way = async || {
        let client = host.client.clone();
        let check = tokio::spawn(async move { client.check().await.unwrap() });
        while !check.is_finished() {
            assert_eq!(host.transfer(lend("a", "c", cpus("2-3"))).await.state, TransferState::Complete);
            assert_eq!(host.transfer(recall("a")).await.state, TransferState::Complete);
        }
        check.await.unwrap()
    };
    let report = under_way().await;
    assert!(report.ok, "{report:#?}");
    // While nothing stands still, nothing is claimed; and as soon as it does, all that is wrong is.
    host.fake("c").set_gate(VcpuId(0), Gate::Open).await.unwrap();
    let report = under_way().await;
    assert!(report.ok && report.unseen[0].contains("moved all the time"), "{report:#?}");
    host.fake("b").set_faults(Faults::default());
    assert!(!host.client.check().await.unwrap().ok);
    host.fake("c").set_gate(VcpuId(0), Gate::Closed(Grip::SOFT)).await.unwrap();
    host.check().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_qemu_that_is_silent_for_a_moment_costs_a_transfer_nothing() {
    let host = Host::boot().await;
    let _guests = host.two_vms().await;
    host.fake("a").set_faults(Faults { silent: true, ..Faults::default() });
    let id = host.client.transfer(lend("a", "b", memory(1, 64))).await.unwrap().id;
    host.eventually("memory was asked for in vain", || async { host.fake("a").failed("qom-set") >= 2 }).await;
    host.fake("a").set_faults(Faults::default());
    let lent = host.ended(id).await;
    assert_eq!(lent.state, TransferState::Complete, "{lent:#?}");
}
