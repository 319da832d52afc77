//! Each rendering of the policy and its decisions, as it looks without colours.

use conuma_api::*;
use conuma_topology::{Bytes, NodeId, VmName};

use super::{decision, event, policy, why};
use crate::style::Style;
use crate::table::width;

/// When everything here is looked at.
const NOW: u64 = 1_700_000_200_000;

fn name(text: &str) -> VmName {
    text.parse().expect("a name")
}

fn vm_holder(text: &str) -> Holder {
    Holder::Vm(name(text))
}

fn held(cpus: &str, memory: &[(u32, u64)]) -> Resources {
    Resources {
        cpus: cpus.parse().expect("CPUs"),
        memory: memory.iter().map(|(n, m)| (NodeId(*n), Bytes::mib(*m))).collect(),
    }
}

fn reason(code: &str, text: &str) -> Reason {
    Reason { code: code.into(), text: text.into() }
}

fn estimate() -> EstimateInfo {
    let node = |wanted: u64, refaults| NodeEstimateInfo {
        wanted: Bytes::mib(wanted),
        in_use: Bytes::mib(wanted - 200),
        cache: Bytes::mib(64) + Bytes(12_345),
        kept: Bytes::mib(8),
        headroom: Bytes::mib(100),
        growth: Bytes::mib(36),
        refaults,
        stall: Some(0.001),
        why: reason("working-set", "what it works with, and some room"),
    };
    EstimateInfo {
        at_unix_ms: Some(NOW - 400),
        cores: CoreEstimateInfo {
            wanted: 6.12,
            used: 3.94,
            waiting: Some(1.2),
            stall: Some(0.123),
            held: 4,
            probe: 1.0,
            why: reason("probing", "all its cores are busy: more are tried"),
        },
        memory: [(NodeId(0), node(400, Some(1_234_567.0))), (NodeId(1), node(1536, None))].into(),
    }
}

fn outlook(vm: &str, cores: (u32, u32), now: Resources, after: Resources) -> VmOutlook {
    VmOutlook {
        vm: name(vm),
        wanted_cores: cores.1,
        needed_cores: 2,
        share: cores.1,
        cores_now: cores.0,
        cores_after: cores.1,
        memory_wanted: [(NodeId(1), Bytes::mib(512))].into(),
        now,
        after,
        score_now: 61.4,
        score_after: 92.0,
        held_why: None,
        estimate: estimate(),
    }
}

fn rejected() -> Vec<RejectedInfo> {
    let one = |vm: &str, cores, memory: &[(u32, u64)], why| RejectedInfo {
        vm: name(vm),
        cores,
        memory: held("", memory).memory,
        why,
    };
    vec![
        one("db", 1, &[(0, 128)], reason("fair-share", "its share is fair: nobody needs what there is less")),
        one("batch", -1, &[], reason("dwell", "it gave or got a moment ago")),
    ]
}

fn planned() -> DecisionInfo {
    let decided = |from: Holder, what, why| DecidedMove {
        from,
        to: vm_holder("db"),
        what,
        why,
        transfer: None,
        state: None,
        refusal: None,
    };
    let pinned = VmOutlook {
        held_why: Some(reason("pinned", "it is pinned: people set what it holds")),
        score_after: 61.4,
        estimate: EstimateInfo { at_unix_ms: None, ..estimate() },
        ..outlook("web", (2, 2), held("6-7", &[(0, 256)]), held("6-7", &[(0, 256)]))
    };
    DecisionInfo {
        id: None,
        at_unix_ms: NOW,
        cause: "preview".into(),
        mode: PolicyMode::Off,
        state: DecisionState::Planned,
        summary: "2 cores from batch to db (guarantee), 256M of node 1 from free to db (demand)".into(),
        score_now: 70.96,
        score_after: 88.0,
        score_achieved: None,
        ended_unix_ms: None,
        vms: vec![
            outlook("batch", (4, 2), held("0-3", &[(0, 512), (1, 512)]), held("0-1", &[(0, 512), (1, 512)])),
            outlook("db", (2, 4), held("4-5", &[(0, 512), (1, 256)]), held("2-5", &[(0, 512), (1, 512)])),
            pinned,
        ],
        moves: vec![
            decided(vm_holder("batch"), held("2-3", &[]), reason("guarantee", "it needs what it is guaranteed")),
            decided(Holder::Pool, held("", &[(1, 256)]), reason("demand", "it can do more with it")),
        ],
        rejected: rejected(),
    }
}

fn ended() -> DecisionInfo {
    let mut decision = planned();
    decision.id = Some(42);
    decision.at_unix_ms = NOW - 200_000;
    decision.ended_unix_ms = Some(NOW - 198_750);
    decision.cause = "pressure".into();
    decision.mode = PolicyMode::Auto;
    decision.state = DecisionState::Partial;
    decision.score_achieved = Some(80.0);
    decision.moves[0].transfer = Some(12);
    decision.moves[0].state = Some(TransferState::Complete);
    decision.moves[1].refusal = Some(Problem::new(Code::Refused, "nothing of node 1 is free any more"));
    decision
}

fn terms() -> TermsInfo {
    TermsInfo {
        weight: 600,
        guarantee: Demand { cores: Some(CoreDemand::Count(4)), memory: Some(MemoryDemand::Total(Bytes::gib(8))) },
        limit: Demand { cores: Some(CoreDemand::Count(12)), memory: None },
        priority: PriorityInfo::High,
        hands_off: false,
        in_policy: true,
        windows: vec!["mon,tue,wed,thu,fri 08:00-18:00".into()],
    }
}

fn pin(vm: &str, until: Option<u64>) -> PinInfo {
    PinInfo { vm: name(vm), until_unix_ms: until, by: "lend".into(), transfer: Some(12) }
}

fn in_force() -> PolicyInfo {
    PolicyInfo {
        mode: PolicyMode::Auto,
        text: "mode = \"auto\"\n".into(),
        source: Some("/etc/conuma/policy.toml".into()),
        applied_at: Some(NOW - 7_380_000),
        pins: vec![
            PinInfo { by: "pin".into(), transfer: None, ..pin("batch", None) },
            pin("db", Some(NOW + 7_140_000)),
        ],
        host_need: [(NodeId(0), Bytes::mib(64))].into(),
        host_need_cores: 2,
    }
}

/// Nothing but sentences is longer than a line of a narrow terminal.
fn check_narrow(text: &str) {
    for line in text.lines().filter(|line| !line.contains(": ") && !line.contains("; ")) {
        assert!(width(line) <= 80, "{} columns: {line}", width(line));
    }
}

#[test]
fn the_policy_is_shown_with_the_terms_of_every_vm() {
    let plain = TermsInfo {
        weight: 100,
        guarantee: Demand::default(),
        limit: Demand::default(),
        priority: PriorityInfo::Normal,
        hands_off: false,
        in_policy: false,
        windows: vec![],
    };
    let legacy = TermsInfo { hands_off: true, in_policy: true, ..plain.clone() };
    let vms = [(name("batch"), plain), (name("db"), terms()), (name("legacy"), legacy)];
    let text = policy::show(&in_force(), vms.iter().map(|(vm, terms)| (vm, terms)), NOW, Style::PLAIN);
    check_narrow(&text);
    let none = PolicyInfo {
        mode: PolicyMode::Off,
        text: String::new(),
        source: None,
        applied_at: None,
        pins: vec![],
        host_need: Default::default(),
        host_need_cores: 0,
    };
    let none = policy::show(&none, std::iter::empty(), NOW, Style::PLAIN);
    insta::assert_snapshot!("policy", format!("{text}\n---\n{none}"));
}

#[test]
fn a_policy_file_is_checked() {
    let problem = |line, column, message: &str, excerpt: &str, hint: Option<&str>| PolicyProblem {
        line,
        column,
        message: message.into(),
        hint: hint.map(Into::into),
        excerpt: excerpt.into(),
    };
    let bad = PolicyCheck {
        problems: vec![
            problem(3, 1, "unknown key `wieght`", "wieght = 300", Some("did you mean `weight`?")),
            problem(12, 9, "`8:00` is no time of day (expected the form `08:30`)", "\tfrom = \"8:00\"", None),
            problem(0, 0, "something about all of it", "", None),
        ],
        ..PolicyCheck::default()
    };
    let good = PolicyCheck {
        ok: true,
        concerns: vec!["no VM is called legacy".into()],
        changes: vec![
            r#"~ mode = "auto" (was "off")"#.into(),
            "+ vm.db.weight = 300".into(),
            "- vm.db.hands_off = true".into(),
        ],
        ..PolicyCheck::default()
    };
    let stands_in_the_way =
        PolicyCheck { concerns: vec!["guarantees of 20 cores do not fit 16".into()], ..PolicyCheck::default() };
    let show = |check, daemon| policy::check(check, "p.toml", daemon, Style::PLAIN);
    let texts = [show(&bad, true), show(&good, true), show(&good, false), show(&stands_in_the_way, true)];
    insta::assert_snapshot!("policy_check", texts.join("---\n"));
    let applied = PolicyApplied { changes: good.changes, policy: in_force() };
    let same = PolicyApplied { changes: vec![], policy: in_force() };
    let texts = [&applied, &same].map(|applied| policy::applied(applied, Style::PLAIN));
    insta::assert_snapshot!("policy_applied", texts.join("---\n"));
}

#[test]
fn modes_and_pins_are_told() {
    let modes = [PolicyMode::Off, PolicyMode::Advise, PolicyMode::Auto, PolicyMode::Unknown];
    let mut lines: Vec<String> =
        modes.into_iter().map(|mode| policy::mode(&PolicyInfo { mode, ..in_force() }, Style::PLAIN)).collect();
    let answer = |pin, was_pinned| PinAnswer { pin, was_pinned };
    let db = name("db");
    lines.push(policy::pinned(&db, &answer(Some(pin("db", None)), false), NOW, Style::PLAIN));
    lines.push(policy::pinned(&db, &answer(Some(pin("db", Some(NOW + 7_200_000))), true), NOW, Style::PLAIN));
    lines.push(policy::unpinned(&db, &answer(None, true), Style::PLAIN));
    lines.push(policy::unpinned(&db, &answer(None, false), Style::PLAIN));
    let by_lend = [pin("a", Some(NOW + 7_199_900)), pin("b", Some(NOW + 7_199_900))];
    for pins in [&by_lend[..], &[pin("a", None)], &[PinInfo { transfer: None, ..pin("a", None) }]] {
        lines.push(format!("{:?}\n", policy::pinned_by_transfer(pins, 12, NOW)));
    }
    insta::assert_snapshot!("pins", lines.concat());
}

#[test]
fn a_decision_is_planned() {
    let text = decision::plan(&planned(), Style::PLAIN);
    check_narrow(&text);
    let nothing = DecisionInfo { moves: vec![], vms: vec![], rejected: vec![], mode: PolicyMode::Auto, ..planned() };
    let nothing = decision::plan(&nothing, Style::PLAIN);
    insta::assert_snapshot!("rebalance_plan", format!("{text}\n---\n{nothing}"));
}

#[test]
fn a_decision_that_ended_tells_all() {
    let result = decision::result(&ended(), Style::PLAIN);
    let nothing = DecisionInfo { moves: vec![], ..planned() };
    let nothing = decision::result(&nothing, Style::PLAIN);
    insta::assert_snapshot!("rebalance_result", format!("{result}\n---\n{nothing}"));
    let full = decision::full(&ended(), NOW, Style::PLAIN);
    insta::assert_snapshot!("history_one", full);
}

#[test]
fn decisions_are_listed() {
    let summary = |id, seconds: u64, state, achieved| DecisionSummary {
        id,
        at_unix_ms: NOW - seconds * 1000,
        cause: "pressure".into(),
        mode: PolicyMode::Auto,
        state,
        summary: "2 cores from a to b (demand)".into(),
        vms: vec![name("batch"), name("db")],
        predicted: 17.04,
        achieved,
        ended_unix_ms: None,
    };
    let decisions = [
        summary(1042, 1, DecisionState::UnderWay, None),
        summary(41, 200, DecisionState::Done, Some(15.5)),
        summary(7, 9 * 86_400, DecisionState::Interrupted, Some(-1.0)),
    ];
    let text = decision::list(&decisions, false, NOW, Style::PLAIN);
    check_narrow(&text);
    let none = [false, true].map(|filtered| decision::list(&[], filtered, NOW, Style::PLAIN));
    insta::assert_snapshot!("history", format!("{text}\n---\n{}", none.concat()));
}

#[test]
fn why_a_vm_holds_what_it_holds() {
    let mut known = VmWhy {
        vm: name("db"),
        mode: PolicyMode::Auto,
        terms: terms(),
        pin: Some(pin("db", Some(NOW + 7_140_000))),
        estimate: Some(estimate()),
        outlook: planned().vms.into_iter().nth(1),
        rejected: rejected().into_iter().take(1).collect(),
        decided_unix_ms: Some(NOW - 3_000),
        last_moved_by: Some(42),
    };
    let text = why::show(&known, NOW, Style::PLAIN);
    check_narrow(&text);
    known.estimate = None;
    known.outlook = None;
    known.pin = None;
    known.last_moved_by = None;
    known.mode = PolicyMode::Off;
    known.terms = TermsInfo { hands_off: true, in_policy: false, windows: vec![], ..terms() };
    let unknown = why::show(&known, NOW, Style::PLAIN);
    insta::assert_snapshot!("why", format!("{text}\n---\n{unknown}"));
}

#[test]
fn events_of_the_policy_are_a_line_each() {
    let kinds = [
        EventKind::PolicyApplied { mode: PolicyMode::Auto, changes: vec!["~ vm.db.weight = 300 (was 100)".into()] },
        EventKind::PolicyApplied { mode: PolicyMode::Off, changes: vec![] },
        EventKind::DecisionMade { id: Some(42), summary: "2 cores from batch to db (demand)".into() },
        EventKind::DecisionEnded {
            id: None,
            state: DecisionState::Done,
            summary: "2 cores from batch to db (demand)".into(),
        },
        EventKind::DecisionEnded {
            id: Some(42),
            state: DecisionState::Partial,
            summary: "2 cores from batch to db (demand)".into(),
        },
        EventKind::VmPinned { vm: name("db"), until_unix_ms: Some(NOW + 7_200_000) },
        EventKind::VmPinned { vm: name("db"), until_unix_ms: None },
        EventKind::VmUnpinned { vm: name("db") },
        EventKind::GuaranteeLate { vm: name("db"), waited_ms: 1_250, cores: 2, memory: Bytes::mib(64) },
        EventKind::GuaranteeLate { vm: name("db"), waited_ms: 1_250, cores: 0, memory: Bytes::mib(64) },
    ];
    let events = kinds.into_iter().map(|what| Event { sequence: 0, unix_ms: NOW, what });
    let lines: Vec<String> = events.map(|e| event::line(&e, Style::PLAIN)).collect();
    insta::assert_snapshot!("policy_events", lines.join("\n"));
}
