//! The codec against arbitrary values and arbitrary bytes.
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests")]

use std::time::Duration;

use conuma_agent_proto::*;
use conuma_topology::{Bytes, GuestCpuId, GuestCpuSet, GuestNodeId};
use proptest::collection::vec;
use proptest::prelude::*;

fn text() -> impl Strategy<Value = String> {
    "[a-zäß/ .:-]{0,40}"
}

fn cpus() -> impl Strategy<Value = GuestCpuSet> {
    vec(0u32..300, 0..40).prop_map(|ids| ids.into_iter().map(GuestCpuId).collect())
}

fn bytes() -> impl Strategy<Value = Bytes> {
    any::<u64>().prop_map(Bytes)
}

fn micros() -> impl Strategy<Value = Duration> {
    any::<u64>().prop_map(Duration::from_micros)
}

fn node() -> impl Strategy<Value = GuestNodeId> {
    (0u32..1024).prop_map(GuestNodeId)
}

fn versions() -> impl Strategy<Value = Versions> {
    (0u32..9, 0u32..9).prop_map(|(a, b)| Versions { min: a.min(b), max: a.max(b) })
}

fn trigger() -> impl Strategy<Value = Option<Trigger>> {
    let (shortest, longest) = (MIN_WINDOW.as_micros() as u64, MAX_WINDOW.as_micros() as u64);
    let trigger = (shortest..=longest, any::<prop::sample::Index>()).prop_map(|(window, stall)| Trigger {
        stall: Duration::from_micros(1 + stall.index(window as usize) as u64),
        window: Duration::from_micros(window),
    });
    proptest::option::of(trigger)
}

fn requests() -> impl Strategy<Value = Request> {
    let body = prop_oneof![
        (versions(), text())
            .prop_map(|(versions, daemon_version)| RequestBody::Hello(Hello { versions, daemon_version })),
        cpus().prop_map(|cpus| RequestBody::ApplyHolding { cpus }),
        (node(), bytes()).prop_map(|(node, bytes)| RequestBody::PrepareMemory { node, bytes }),
        (node(), bytes()).prop_map(|(node, at_least)| RequestBody::ConfirmMemory { node, at_least }),
        Just(RequestBody::Report),
        (trigger(), trigger()).prop_map(|(cpu, memory)| RequestBody::Watch { cpu, memory }),
    ];
    (0..RequestId::PUSHED.0, any::<u64>(), any::<u32>(), body).prop_map(|(id, generation, deadline, body)| Request {
        id: RequestId(id),
        generation: Generation(generation),
        deadline: Duration::from_millis(deadline.into()),
        body,
    })
}

fn timings() -> impl Strategy<Value = Vec<StageTime>> {
    let stage = prop::sample::select(vec![
        Stage::Cgroups,
        Stage::Tasks,
        Stage::Interrupts,
        Stage::Workqueues,
        Stage::Verify,
        Stage::Migrate,
        Stage::Reclaim,
        Stage::Wait,
    ]);
    vec((stage, micros()).prop_map(|(stage, took)| StageTime { stage, took }), 0..8)
}

fn facts() -> impl Strategy<Value = GuestFacts> {
    let node_facts = (node(), cpus(), bytes()).prop_map(|(node, cpus, memory)| GuestNodeFacts { node, cpus, memory });
    let modes = prop::sample::select(vec![CgroupMode::Unified, CgroupMode::Hybrid, CgroupMode::Absent]);
    let policies = prop::sample::select(vec![
        AutoOnline::Absent,
        AutoOnline::Offline,
        AutoOnline::Online,
        AutoOnline::OnlineKernel,
        AutoOnline::OnlineMovable,
    ]);
    let texts = (text(), text(), text());
    let kernel = (modes, policies, any::<Option<bool>>(), proptest::option::of(bytes()), any::<bool>());
    let holding = (any::<u64>(), proptest::option::of(cpus()));
    (any::<u32>(), texts, cpus(), vec(node_facts, 0..5), kernel, holding).prop_map(
        |(version, texts, cpus_online, nodes, kernel, holding)| GuestFacts {
            version,
            agent_version: texts.0,
            kernel_release: texts.1,
            boot_id: texts.2,
            cpus_online,
            nodes,
            cgroup_mode: kernel.0,
            auto_online: kernel.1,
            init_on_alloc: kernel.2,
            memory_block: kernel.3,
            psi: kernel.4,
            newest: Generation(holding.0),
            holding: holding.1,
        },
    )
}

fn outcomes() -> impl Strategy<Value = HoldingOutcome> {
    let reason = prop_oneof![
        text().prop_map(|cgroup| RefusalReason::Exclusive { cgroup }),
        Just(RefusalReason::NotOnline),
        (text(), text()).prop_map(|(cgroup, error)| RefusalReason::Cgroup { cgroup, error }),
        text().prop_map(|tasks| RefusalReason::InUse { tasks }),
        text().prop_map(RefusalReason::Other),
    ];
    let refusal = (cpus(), reason).prop_map(|(cpus, reason)| Refusal { cpus, reason });
    let task = (any::<u32>(), text(), 0u32..300, any::<bool>()).prop_map(|(tid, name, cpu, kernel)| Leftover {
        tid,
        name,
        cpu: GuestCpuId(cpu),
        kind: if kernel { TaskKind::Kernel } else { TaskKind::User },
    });
    let leftovers = (vec(task, 0..4), any::<u32>(), any::<u32>(), any::<u32>()).prop_map(|(tasks, a, b, c)| {
        Leftovers { tasks, more_tasks: a, bound_kernel_threads: b, managed_interrupts: c }
    });
    (cpus(), cpus(), vec(refusal, 0..4), leftovers, timings()).prop_map(
        |(held, quiesced, refused, leftovers, timings)| HoldingOutcome { held, quiesced, refused, leftovers, timings },
    )
}

fn reports() -> impl Strategy<Value = Report> {
    let cpu = (0u32..300, [micros(), micros(), micros(), micros(), micros()], any::<Option<u32>>()).prop_map(
        |(cpu, [user, system, interrupts, idle, steal], queue)| CpuReport {
            cpu: GuestCpuId(cpu),
            user,
            system,
            interrupts,
            idle,
            steal,
            ran: queue.map(|n| Duration::from_micros(n.into())),
            waited: queue.map(|n| Duration::from_micros(n.into())),
        },
    );
    let newer = any::<(Option<u64>, Option<u64>, Option<u64>, Option<u64>)>();
    let memory = (node(), any::<[u64; 10]>(), newer).prop_map(|(node, n, newer)| NodeReport {
        node,
        total: Bytes(n[0]),
        free: Bytes(n[1]),
        available: Bytes(n[2]),
        file: Bytes(n[3]),
        anonymous: Bytes(n[4]),
        movable: Bytes(n[5]),
        huge_total: Bytes(n[6]),
        huge_free: Bytes(n[7]),
        blocks_online: Bytes(n[8]),
        blocks_offline: Bytes(n[9]),
        refaults: newer.0,
        active_file: newer.1.map(Bytes),
        shmem: newer.2.map(Bytes),
        kept: newer.3.map(Bytes),
    });
    let line = || {
        (0u32..=10_000, 0u32..=10_000, micros()).prop_map(|(avg10, avg60, total)| PressureLine { avg10, avg60, total })
    };
    let pressure = move || {
        proptest::option::of((line(), proptest::option::of(line())).prop_map(|(some, full)| Pressure { some, full }))
    };
    (micros(), vec(cpu, 0..5), vec(memory, 0..4), any::<(u32, u32)>(), [pressure(), pressure(), pressure()]).prop_map(
        |(uptime, cpus, nodes, (runnable, blocked), [cpu_pressure, memory_pressure, io_pressure])| Report {
            uptime,
            cpus,
            nodes,
            runnable,
            blocked,
            cpu_pressure,
            memory_pressure,
            io_pressure,
        },
    )
}

fn responses() -> impl Strategy<Value = Response> {
    let prepared =
        (node(), any::<[u64; 5]>(), any::<bool>(), timings()).prop_map(|(node, n, enough, timings)| Prepared {
            node,
            free_before: Bytes(n[0]),
            free_after: Bytes(n[1]),
            migrated: Bytes(n[2]),
            reclaimed: Bytes(n[3]),
            enough,
            spare: Bytes(n[4]),
            timings,
        });
    let memory =
        (node(), any::<[u64; 5]>(), any::<bool>(), micros()).prop_map(|(node, n, satisfied, waited)| MemoryState {
            node,
            total: Bytes(n[0]),
            free: Bytes(n[1]),
            online: Bytes(n[2]),
            movable: Bytes(n[3]),
            offline: Bytes(n[4]),
            satisfied,
            waited,
        });
    let reply = prop_oneof![
        facts().prop_map(Reply::Hello),
        outcomes().prop_map(Reply::Holding),
        prepared.prop_map(Reply::Prepared),
        memory.prop_map(Reply::Memory),
        reports().prop_map(Reply::Report),
        (trigger(), trigger()).prop_map(|(cpu, memory)| Reply::Watching { cpu, memory }),
    ];
    let error = prop_oneof![
        versions().prop_map(AgentError::Version),
        any::<u64>().prop_map(|newest| AgentError::Stale { newest: Generation(newest) }),
        text().prop_map(AgentError::Deadline),
        text().prop_map(AgentError::BadRequest),
        text().prop_map(AgentError::Unsupported),
        text().prop_map(AgentError::Failed),
    ];
    let body = prop_oneof![4 => reply.prop_map(Ok), 1 => error.prop_map(Err)];
    let answer = (0..RequestId::PUSHED.0, body).prop_map(|(id, body)| Response { id: RequestId(id), body });
    let pushed = (prop::sample::select(vec![Resource::Cpu, Resource::Memory]), reports())
        .prop_map(|(resource, report)| push(Pushed { resource, report }));
    prop_oneof![4 => answer, 1 => pushed]
}

fn push(pushed: Pushed) -> Response {
    Response { id: RequestId::PUSHED, body: Ok(Reply::Pushed(pushed)) }
}

proptest! {
    #[test]
    fn a_request_comes_back_as_it_was(request in requests()) {
        prop_assert_eq!(decode_request(&encode_request(&request)), Ok(request));
    }

    #[test]
    fn a_response_comes_back_as_it_was(response in responses()) {
        let bytes = encode_response(&response);
        prop_assert_eq!(is_pushed(&bytes), matches!(response.body, Ok(Reply::Pushed(_))));
        prop_assert_eq!(decode_response(&bytes), Ok(response));
    }

    #[test]
    fn arbitrary_bytes_never_panic(bytes in vec(any::<u8>(), 0..400)) {
        let _ = decode_request(&bytes);
        let _ = decode_response(&bytes);
        let _ = is_pushed(&bytes);
    }

    /// Nearer to real messages than arbitrary bytes, so it reaches deeper.
    #[test]
    fn damaged_messages_never_panic(
        response in responses(),
        at in any::<prop::sample::Index>(),
        with in any::<u8>(),
        cut in any::<prop::sample::Index>(),
    ) {
        let mut bytes = encode_response(&response);
        let index = at.index(bytes.len());
        bytes[index] = with;
        let _ = decode_response(&bytes);
        let _ = decode_request(&bytes);
        let _ = decode_response(&bytes[..cut.index(bytes.len())]);
    }

    #[test]
    fn unknown_fields_are_ignored(request in requests(), value in any::<u32>()) {
        let mut bytes = encode_request(&request);
        // Field 1000, 32 bits wide: two bytes of key, shifted by the wire type 5.
        bytes.extend([0xc5, 0x3e]);
        bytes.extend(value.to_le_bytes());
        prop_assert_eq!(decode_request(&bytes), Ok(request));
    }
}

fn holding_request(bounds: &[u8]) -> Vec<u8> {
    let ranges = [&[0x0a, bounds.len() as u8], bounds].concat();
    let apply = [&[0x0a, ranges.len() as u8], ranges.as_slice()].concat();
    [&[0x5a, apply.len() as u8], apply.as_slice()].concat()
}

#[test]
fn a_set_has_one_form_only() {
    let check = |bounds: &[u8], expected: Result<&str, &str>| {
        let got = decode_request(&holding_request(bounds));
        match (got, expected) {
            (Ok(Request { body: RequestBody::ApplyHolding { cpus }, .. }), Ok(list)) => {
                assert_eq!(cpus.to_string(), list)
            }
            (Err(DecodeError::OutOfBounds { what: "cpus", why }), Err(expected)) => assert_eq!(why, expected),
            (got, expected) => panic!("{bounds:?}: {got:?}, expected {expected:?}"),
        }
    };
    check(&[], Ok(""));
    check(&[0, 3, 5, 5], Ok("0-3,5"));
    check(&[0], Err("a range without an end"));
    check(&[3, 1], Err("ranges not in ascending order"));
    check(&[0, 3, 2, 5], Err("ranges not in ascending order"));
    check(&[0, 0xff, 0xff, 0xff, 0xff, 0x0f], Err("id too large"));
}

#[test]
fn limits_hold_on_both_sides() {
    let long = "ü".repeat(MAX_TEXT);
    let response = Response { id: RequestId(1), body: Err(AgentError::Failed(long)) };
    let Ok(Response { body: Err(AgentError::Failed(cut)), .. }) = decode_response(&encode_response(&response)) else {
        panic!("the sender must cut what is too long");
    };
    assert_eq!(cut.len(), MAX_TEXT);
    assert_eq!(decode_request(&vec![0; MAX_FRAME + 1]), Err(DecodeError::TooLong(MAX_FRAME + 1)));

    let cpu = |id| CpuReport {
        cpu: GuestCpuId(id),
        user: Duration::from_secs(40_000_000),
        system: Duration::from_secs(40_000_000),
        interrupts: Duration::from_secs(40_000_000),
        idle: Duration::from_secs(40_000_000),
        steal: Duration::from_secs(40_000_000),
        ran: Some(Duration::from_secs(40_000_000)),
        waited: Some(Duration::from_secs(40_000_000)),
    };
    let largest = Report { cpus: (0..MAX_CPUS as u32).map(cpu).collect(), ..Report::default() };
    let frame = encode_response(&push(Pushed { resource: Resource::Memory, report: largest }));
    assert!(frame.len() <= MAX_FRAME, "the largest report has {} bytes", frame.len());
}

#[test]
fn versions_meet_at_the_newest_common_one() {
    let range = |min, max| Versions { min, max };
    assert_eq!(range(1, 3).common(range(2, 9)), Some(3));
    assert_eq!(range(1, 1).common(range(1, 1)), Some(1));
    assert_eq!(range(1, 2).common(range(3, 4)), None);
    assert_eq!(VERSIONS.common(VERSIONS), Some(VERSIONS.max));
}

/// The bytes of version 1, so that nobody changes a field number by accident.
#[test]
fn version_1_bytes() {
    let request = Request {
        id: RequestId(7),
        generation: Generation(300),
        deadline: Duration::from_millis(500),
        body: RequestBody::ApplyHolding { cpus: "0-3,8".parse().unwrap() },
    };
    let expected = [8, 7, 16, 172, 2, 24, 244, 3, 90, 8, 10, 6, 10, 4, 0, 3, 8, 8];
    assert_eq!(encode_request(&request), expected);
    let trigger =
        |stall, window| Some(Trigger { stall: Duration::from_micros(stall), window: Duration::from_micros(window) });
    let body = RequestBody::Watch { cpu: trigger(3, 500_000), memory: trigger(4, 500_001) };
    let request = Request { generation: Generation(0), deadline: Duration::ZERO, body, ..request };
    let expected = [8, 7, 122, 16, 10, 6, 8, 3, 16, 160, 194, 30, 18, 6, 8, 4, 16, 161, 194, 30];
    assert_eq!(encode_request(&request), expected);
}

#[test]
fn only_what_is_sent_unasked_bears_the_id_kept_for_it() {
    let id = RequestId::PUSHED;
    let request = Request { id, generation: Generation(0), deadline: Duration::ZERO, body: RequestBody::Report };
    let reserved = "kept for what is sent unasked";
    let refused = decode_request(&encode_request(&request));
    assert_eq!(refused, Err(DecodeError::OutOfBounds { what: "the request's id", why: reserved }));
    assert_eq!(request_id(&encode_request(&request)), Some(id), "it can be refused");

    let answer = Response { id, body: Ok(Reply::Report(Report::default())) };
    let unlike = |response: &Response| {
        let refused = decode_response(&encode_response(response));
        assert!(matches!(refused, Err(DecodeError::OutOfBounds { what: "the answer's id", .. })), "{refused:?}");
    };
    unlike(&answer);
    unlike(&Response { body: Err(AgentError::Failed(String::new())), ..answer });
    unlike(&Response { id: RequestId(1), ..push(Pushed { resource: Resource::Cpu, report: Report::default() }) });
}

#[test]
fn a_push_names_its_resource_and_has_a_report() {
    // The reserved id, and body 17 of these bytes.
    let pushed = |body: &[u8]| {
        let id = [8, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1];
        let bytes = [&id[..], &[0x8a, 1, body.len() as u8], body].concat();
        assert!(is_pushed(&bytes));
        decode_response(&bytes)
    };
    assert_eq!(pushed(&[8, 1, 18, 0]), Ok(push(Pushed { resource: Resource::Cpu, report: Report::default() })));
    assert_eq!(pushed(&[18, 0]), Err(DecodeError::Missing("the pressed resource")));
    assert_eq!(pushed(&[8, 9, 18, 0]), Err(DecodeError::Missing("the pressed resource")));
    assert_eq!(pushed(&[8, 2]), Err(DecodeError::Missing("the pushed report")));
}

#[test]
fn a_trigger_is_within_bounds() {
    let check = |stall: u64, window: u64, expected: Result<(), &'static str>| {
        let trigger = Trigger { stall: Duration::from_micros(stall), window: Duration::from_micros(window) };
        let body = RequestBody::Watch { cpu: None, memory: Some(trigger) };
        let request = Request { id: RequestId(1), generation: Generation(0), deadline: Duration::ZERO, body };
        let expected = match expected {
            Ok(()) => Ok(request.clone()),
            Err(why) => Err(DecodeError::OutOfBounds { what: "a trigger", why }),
        };
        assert_eq!(decode_request(&encode_request(&request)), expected, "{stall} in {window} us");
    };
    const WINDOW: &str = "window too short or too long";
    const STALL: &str = "no stall, or one that is longer than its window";
    check(1, 500_000, Ok(()));
    check(10_000_000, 10_000_000, Ok(()));
    check(1, 499_999, Err(WINDOW));
    check(1, 10_000_001, Err(WINDOW));
    check(1, u64::MAX, Err(WINDOW));
    check(0, 1_000_000, Err(STALL));
    check(1_000_001, 1_000_000, Err(STALL));
    check(u64::MAX, 1_000_000, Err(STALL));
}

/// An agent of before pushes sees a request without a body and refuses it; a node of its reports lacks what came later.
#[test]
fn older_peers_are_understood() {
    // Id 7, and body 15, which it does not know: as 99 is to this version.
    assert_eq!(decode_request(&[8, 7, 0x9a, 6, 0]), Err(DecodeError::Missing("the request's body")));
    // Id 1, and a report of node 3, which has 5 bytes.
    let report = decode_response(&[8, 1, 0x72, 6, 0x1a, 4, 8, 3, 16, 5]).unwrap();
    let Ok(Reply::Report(Report { nodes, .. })) = report.body else { panic!("{report:?}") };
    assert_eq!((nodes[0].node, nodes[0].total), (GuestNodeId(3), Bytes(5)));
    assert_eq!((nodes[0].refaults, nodes[0].active_file, nodes[0].shmem, nodes[0].kept), (None, None, None, None));
}

#[test]
fn a_text_of_a_guest_moves_no_cursor_and_forges_no_line() {
    let forged = "\u{1b}[2J\r\n2026 ERROR \u{202e}drawkcab\u{0}\u{9b}31m";
    let body = Err(AgentError::Failed(forged.into()));
    let bytes = encode_response(&Response { id: RequestId(1), body });
    let Err(AgentError::Failed(text)) = decode_response(&bytes).expect("it is decoded").body else {
        panic!("no error")
    };
    assert_eq!(text, "?[2J??2026 ERROR ?drawkcab??31m");
}
