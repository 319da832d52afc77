//! Each rendering of a small host, as it looks without colours.

use conuma_api::*;
use conuma_topology::{Bytes, CoreId, CpuId, CpuSet, Machine, NodeId, VcpuId, VmName};

use super::{event, host, start, transfer, vm};
use crate::style::Style;

fn name(text: &str) -> VmName {
    text.parse().expect("a name")
}

fn held(cpus: &str, memory: &[(u32, u64)]) -> Resources {
    Resources {
        cpus: cpus.parse().expect("CPUs"),
        memory: memory.iter().map(|(n, m)| (NodeId(*n), Bytes::mib(*m))).collect(),
    }
}

fn vm_holder(text: &str) -> Holder {
    Holder::Vm(name(text))
}

/// Two nodes of four cores and 1 GiB; `a` holds CPUs 0-4, `b` 5 and 6, the host 7.
fn ledger() -> LedgerInfo {
    let accounts = [
        (vm_holder("a"), held("0-4", &[(0, 512), (1, 512)])),
        (vm_holder("b"), held("5-6", &[(0, 256), (1, 128)])),
        (Holder::Reserve, held("7", &[(0, 64), (1, 64)])),
        (Holder::Pool, held("", &[(0, 192), (1, 320)])),
    ];
    let holder_of = |cpu: u32| accounts.iter().find(|(_, held)| held.cpus.contains(CpuId(cpu))).map(|(h, _)| h.clone());
    let cores = (0..8).map(|cpu| CoreShare {
        core: CoreId(cpu),
        cpus: CpuSet::from([CpuId(cpu)]),
        node: Some(NodeId(cpu / 4)),
        holder: holder_of(cpu).expect("held"),
    });
    let nodes = (0..2).map(|node| {
        let share =
            |(holder, held): &(Holder, Resources)| Share { holder: holder.clone(), bytes: held.memory[&NodeId(node)] };
        NodeShare { node: NodeId(node), capacity: Bytes::gib(1), shares: accounts.iter().map(share).collect() }
    });
    LedgerInfo {
        cores: cores.collect(),
        nodes: nodes.collect(),
        loans: vec![LoanInfo { lender: name("b"), borrower: vm_holder("a"), what: held("4", &[(1, 256)]) }],
        accounts: accounts.into_iter().map(|(holder, holds)| Account { holder, holds }).collect(),
    }
}

fn summary() -> VmSummary {
    VmSummary {
        name: name("a"),
        state: VmState::Running,
        agent: AgentState::Connected,
        holding: held("0-4", &[(0, 512), (1, 512)]),
        cores: 5,
        guarantee: Demand { cores: Some(CoreDemand::Count(2)), memory: Some(MemoryDemand::Total(Bytes::mib(512))) },
        settled: true,
        lends_memory: true,
        takes_memory: true,
    }
}

fn detail() -> VmDetail {
    let vcpu = |cpu: u32| VcpuInfo {
        vcpu: VcpuId(cpu),
        cpu: CpuId(cpu),
        node: Some(NodeId(cpu / 4)),
        held: cpu < 5,
        gate: match cpu {
            0..5 => GateState::Open,
            7 => GateState::Firm,
            _ => GateState::Soft,
        },
        run_time_us: Some(1_000_000 * u64::from(cpu)),
    };
    let memory = |node: u32, plugged: u64| VmMemory {
        node: NodeId(node),
        boot: Bytes::mib(128),
        held: Bytes::mib(512),
        requested: Bytes::mib(384),
        plugged: Bytes::mib(plugged),
        max: Bytes::mib(768),
        resident: (node == 0).then_some(Bytes::mib(300)),
    };
    let load = |node: u32| NodeLoad {
        node: NodeId(node),
        total: Bytes::mib(490),
        free: Bytes::mib(100),
        available: Bytes::mib(400),
        file: Bytes::mib(50),
        anonymous: Bytes::mib(30),
        movable: Bytes::mib(384),
        huge_total: Bytes::ZERO,
        huge_free: Bytes::ZERO,
        online: Bytes::mib(384),
        offline: Bytes::ZERO,
    };
    let cpu = |cpu: u32| CpuLoad {
        cpu: CpuId(cpu),
        busy_us: 5,
        idle_us: 5,
        steal_us: 0,
        waited_us: Some(7),
        busy_share: Some(2500 * cpu),
    };
    VmDetail {
        summary: summary(),
        limit: Demand::default(),
        weight: 100,
        loans: vec![
            LoanInfo { lender: name("b"), borrower: vm_holder("a"), what: held("4", &[(1, 256)]) },
            LoanInfo { lender: name("a"), borrower: vm_holder("c"), what: held("", &[(0, 64)]) },
            LoanInfo { lender: name("a"), borrower: Holder::Pool, what: held("6", &[]) },
        ],
        process: Some(ProcessInfo { pid: 4242, cid: Some(3) }),
        vcpus: (0..8).map(vcpu).collect(),
        memory: vec![memory(0, 384), memory(1, 256)],
        agent: AgentInfo {
            state: AgentState::Connected,
            since_unix_ms: 1_700_000_000_000,
            guest: Some(GuestInfo {
                agent_version: "0.1.0".into(),
                kernel: "6.12.9".into(),
                boot_id: "b".into(),
                cpus: "0-7".into(),
                nodes: 2,
                notes: vec!["init_on_alloc is on: giving memory back takes longer".into()],
            }),
            last_error: None,
        },
        report: Some(GuestReport {
            age_ms: 740,
            uptime_ms: 60_000,
            runnable: 3,
            blocked: 0,
            cpus: (0..5).map(cpu).collect(),
            nodes: vec![load(0), load(1)],
            cpu_pressure: Some(PressureInfo { avg10: 1234, avg60: 0 }),
            memory_pressure: None,
            io_pressure: Some(PressureInfo { avg10: 0, avg60: 0 }),
        }),
    }
}

fn plan() -> Plan {
    let planned = |what| Move { from: vm_holder("a"), to: vm_holder("b"), what };
    let choice = |cpu: u32, chosen| CoreChoice {
        from: vm_holder("a"),
        cpus: CpuSet::from([CpuId(cpu)]),
        node: Some(NodeId(cpu / 4)),
        chosen,
        reasons: vec!["b lent it before".into(), "b holds 2 cores of this node".into()],
    };
    Plan {
        moves: vec![planned(held("3-4", &[])), planned(held("", &[(1, 256)]))],
        choices: vec![choice(4, true), choice(3, true), choice(2, false)],
        withheld: Vec::new(),
    }
}

fn leg(planned: Move, arrived: Resources, stages: &[(Stage, Option<u64>)]) -> Leg {
    let mut began_us = 0;
    let stages = stages.iter().map(|(stage, took_us)| {
        let time = StageTime { stage: *stage, began_us, took_us: *took_us };
        began_us += took_us.unwrap_or(0);
        time
    });
    Leg { planned, arrived, shortfalls: Vec::new(), remarks: Vec::new(), stages: stages.collect() }
}

fn moving() -> Transfer {
    let [cores, memory] = <[Move; 2]>::try_from(plan().moves).expect("two moves");
    let cores = leg(
        cores,
        Resources::default(),
        &[(Stage::Quiesce, Some(640)), (Stage::Close, Some(1_190)), (Stage::Open, None)],
    );
    let memory = leg(memory, Resources::default(), &[(Stage::Prepare, Some(30_000)), (Stage::Shrink, None)]);
    Transfer {
        id: 12,
        request: TransferRequest::Recall { to: name("b"), from: None, what: None },
        state: TransferState::Moving,
        plan: Some(plan()),
        legs: vec![cores, memory],
        asked_unix_ms: 1_700_000_000_000,
        took_us: 31_000,
        refusal: None,
    }
}

fn ended() -> Transfer {
    let mut ended = moving();
    ended.state = TransferState::Partial;
    ended.took_us = 2_345_678;
    let all = ended.legs[0].planned.what.clone();
    ended.legs[0] = leg(
        ended.legs[0].planned.clone(),
        all,
        &[
            (Stage::Quiesce, Some(640)),
            (Stage::Close, Some(1_190)),
            (Stage::Open, Some(80)),
            (Stage::Enable, Some(2_500)),
            (Stage::Done, Some(0)),
        ],
    );
    ended.legs[0]
        .remarks
        .push(Remark { code: "recipient-untold".into(), message: "b hears of it when its agent connects".into() });
    ended.legs[1] = leg(
        ended.legs[1].planned.clone(),
        held("", &[(1, 128)]),
        &[
            (Stage::Prepare, Some(30_000)),
            (Stage::Shrink, Some(2_000_000)),
            (Stage::Settle, Some(5_000)),
            (Stage::Grow, Some(210_000)),
            (Stage::Confirm, Some(31_000)),
            (Stage::Done, Some(0)),
        ],
    );
    ended.legs[1].shortfalls.push(Shortfall {
        what: held("", &[(1, 128)]),
        code: "donor-kept".into(),
        message: "the guest did not give it within the deadline".into(),
        now_with: vm_holder("a"),
    });
    ended
}

#[test]
fn vms_are_listed() {
    let starting = VmSummary {
        name: name("long-name"),
        state: VmState::Starting,
        agent: AgentState::Awaited,
        settled: false,
        lends_memory: false,
        takes_memory: false,
        ..summary()
    };
    let alone = VmSummary { name: name("alone"), agent: AgentState::None, takes_memory: false, ..summary() };
    let away = VmSummary {
        name: name("away"),
        state: VmState::Migrated,
        agent: AgentState::Lost,
        settled: false,
        ..summary()
    };
    insta::assert_snapshot!("list", vm::list(&[summary(), starting, alone, away], Style::PLAIN));
    insta::assert_snapshot!("list_none", vm::list(&[], Style::PLAIN));
}

#[test]
fn a_vm_is_shown() {
    insta::assert_snapshot!("vm", vm::show(&detail(), 1_700_000_200_000, Style::PLAIN));
}

#[test]
fn a_vm_that_is_starting_is_shown() {
    let mut starting = detail();
    starting.summary.state = VmState::Starting;
    starting.summary.agent = AgentState::Awaited;
    starting.agent = AgentInfo {
        state: AgentState::Awaited,
        since_unix_ms: 1_700_000_199_000,
        guest: None,
        last_error: Some("connection refused".into()),
    };
    starting.process = None;
    starting.report = None;
    starting.vcpus.clear();
    starting.memory.clear();
    starting.loans.clear();
    insta::assert_snapshot!("vm_starting", vm::show(&starting, 1_700_000_200_000, Style::PLAIN));
}

#[test]
fn the_host_is_shown() {
    let host = HostInfo {
        version: "0.1.0".into(),
        started_unix_ms: 0,
        machine: "2n4c1t@1G".parse::<Machine>().expect("a machine"),
        reserve: held("7", &[(0, 64), (1, 64)]),
        ledger: ledger(),
    };
    let good = CheckReport { ok: true, violations: vec![], unseen: vec![] };
    insta::assert_snapshot!("host", host::show(&host, &good, Style::PLAIN));
    let bad = CheckReport {
        ok: false,
        violations: vec![ViolationInfo { code: "i1".into(), message: "core 4 is open to a and b".into() }],
        unseen: vec!["numa_maps of b: no such process".into()],
    };
    insta::assert_snapshot!("host_violated", host::invariants(&bad, Style::PLAIN));
}

#[test]
fn a_plan_is_shown_before_and_after() {
    insta::assert_snapshot!("preview", transfer::preview(&plan(), &ledger(), Style::PLAIN));
    let owed = Shortfall {
        what: held("", &[(1, 128)]),
        code: "unanswering".into(),
        message: "b does not answer: its memory is left alone until it does".into(),
        now_with: vm_holder("b"),
    };
    let partly = Plan { withheld: vec![owed], ..plan() };
    insta::assert_snapshot!("preview_withheld", transfer::preview(&partly, &ledger(), Style::PLAIN));
    insta::assert_snapshot!("preview_nothing", transfer::preview(&Plan::default(), &ledger(), Style::PLAIN));
}

#[test]
fn a_transfer_under_way_tells_its_stages() {
    insta::assert_snapshot!("progress", transfer::progress(&moving(), Style::PLAIN).join("\n"));
    let waiting = Transfer { state: TransferState::Waiting, legs: vec![], plan: None, ..moving() };
    insta::assert_snapshot!("progress_waiting", transfer::progress(&waiting, Style::PLAIN).join("\n"));
}

#[test]
fn a_transfer_that_ended_tells_what_moved_and_why_not() {
    insta::assert_snapshot!("result", transfer::result(&ended(), Style::PLAIN));
    let refusal = Some(Problem::new(Code::Refused, "a would fall below its guarantee"));
    let refused = Transfer { state: TransferState::Refused, legs: vec![], plan: None, refusal, ..moving() };
    insta::assert_snapshot!("result_refused", transfer::result(&refused, Style::PLAIN));
}

#[test]
fn events_are_a_line_each() {
    let kinds = [
        EventKind::VmStarting { vm: name("a") },
        EventKind::VmRunning { vm: name("a") },
        EventKind::AgentConnected { vm: name("a") },
        EventKind::TransferWaiting { transfer: 12 },
        EventKind::TransferBegan { transfer: 12, plan: plan() },
        EventKind::TransferStage {
            transfer: 12,
            leg: 0,
            from: Some(vm_holder("a")),
            to: Some(vm_holder("b")),
            stage: Stage::Quiesce,
        },
        EventKind::TransferEnded(Box::new(ended())),
        EventKind::GateChanged { vm: name("a"), cpu: CpuId(3), gate: GateState::Firm },
        EventKind::VmSettled { vm: name("a") },
        EventKind::VmSilent { vm: name("b") },
        EventKind::VmTrespasses { vm: name("b"), trespasses: true },
        EventKind::VmTrespasses { vm: name("b"), trespasses: false },
        EventKind::HostCpus { offline: "3".parse().expect("CPUs") },
        EventKind::HostCpus { offline: CpuSet::new() },
        EventKind::Repaired { vm: name("b"), what: vec!["the thread of vCPU 3 may run on CPUs 0-7".into()] },
        EventKind::VmReset { vm: name("b") },
        EventKind::VmChanged { vm: name("b"), state: VmState::Migrating },
        EventKind::AgentLost { vm: name("b"), why: "the connection was reset".into() },
        EventKind::Violated(ViolationInfo { code: "i1".into(), message: "core 4 is open to a and b".into() }),
        EventKind::Missed { events: 1 },
        EventKind::VmGone { vm: name("b"), why: "QEMU ended with status 1".into() },
    ];
    let events = kinds.into_iter().enumerate().map(|(i, what)| Event {
        sequence: i as u64,
        unix_ms: 1_700_000_000_000 + 250 * i as u64,
        what,
    });
    let lines: Vec<String> = events.map(|e| event::line(&e, Style::PLAIN)).collect();
    insta::assert_snapshot!("events", lines.join("\n"));
}

#[test]
fn a_start_is_previewed() {
    let plan = StartPlan {
        name: name("a"),
        holding: held("0-1", &[(0, 256), (1, 256)]),
        vcpus: (0..8).map(|n| (VcpuId(n), CpuId(n))).collect(),
        boot_memory: [(NodeId(0), Bytes::mib(128)), (NodeId(1), Bytes::mib(128))].into(),
        memory_devices: [(NodeId(0), Bytes::mib(768)), (NodeId(1), Bytes::mib(768))].into(),
        command: vec!["qemu-system-x86_64".into()],
        notes: vec!["node 1 has no CPUs".into()],
    };
    insta::assert_snapshot!("start", start::preview(&plan, Style::PLAIN));
}
