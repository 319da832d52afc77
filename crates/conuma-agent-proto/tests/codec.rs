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

fn requests() -> impl Strategy<Value = Request> {
    let body = prop_oneof![
        (versions(), text())
            .prop_map(|(versions, daemon_version)| RequestBody::Hello(Hello { versions, daemon_version })),
        cpus().prop_map(|cpus| RequestBody::ApplyHolding { cpus }),
        (node(), bytes()).prop_map(|(node, bytes)| RequestBody::PrepareMemory { node, bytes }),
        (node(), bytes()).prop_map(|(node, at_least)| RequestBody::ConfirmMemory { node, at_least }),
        Just(RequestBody::Report),
    ];
    (any::<u64>(), any::<u64>(), any::<u32>(), body).prop_map(|(id, generation, deadline, body)| Request {
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
    let memory = (node(), any::<[u64; 10]>()).prop_map(|(node, n)| NodeReport {
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
    (any::<u64>(), body).prop_map(|(id, body)| Response { id: RequestId(id), body })
}

proptest! {
    #[test]
    fn a_request_comes_back_as_it_was(request in requests()) {
        prop_assert_eq!(decode_request(&encode_request(&request)), Ok(request));
    }

    #[test]
    fn a_response_comes_back_as_it_was(response in responses()) {
        prop_assert_eq!(decode_response(&encode_response(&response)), Ok(response));
    }

    #[test]
    fn arbitrary_bytes_never_panic(bytes in vec(any::<u8>(), 0..400)) {
        let _ = decode_request(&bytes);
        let _ = decode_response(&bytes);
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
    let frame = encode_response(&Response { id: RequestId(1), body: Ok(Reply::Report(largest)) });
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
