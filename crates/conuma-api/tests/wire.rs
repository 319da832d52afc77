//! The written form of what goes over the wire.

#![allow(clippy::unwrap_used)]

use std::collections::{BTreeMap, BTreeSet};

use conuma_api::{
    CoreDemand, DecisionState, Demand, Event, EventKind, HistoryQuery, Holder, MemoryDemand, Move, Paths, Plan,
    PolicyMode, Resources, Stage, TransferOrder, TransferRequest, TransferState, VmState,
};
use conuma_topology::{Bytes, CpuSet, NodeId};
use serde::Serialize;
use serde::de::DeserializeOwned;

fn check<T: Serialize + DeserializeOwned + PartialEq + std::fmt::Debug>(value: &T, expected: &str) {
    let text = serde_json::to_string(value).unwrap();
    assert_eq!(text, expected);
    assert_eq!(&serde_json::from_str::<T>(&text).unwrap(), value);
}

fn some_resources() -> Resources {
    Resources { cpus: CpuSet::range(4, 7), memory: BTreeMap::from([(NodeId(1), Bytes::mib(256))]) }
}

#[test]
fn orders_are_written_with_one_key_for_their_kind() {
    let what =
        Demand { cores: Some(CoreDemand::Count(2)), memory: Some(MemoryDemand::PerNode(some_resources().memory)) };
    let request =
        TransferRequest::Lend { from: "a".parse().unwrap(), to: "b".parse().unwrap(), what, below_guarantee: false };
    check(
        &TransferOrder { request, preview: true, pin_for_ms: None },
        r#"{"request":{"lend":{"from":"a","to":"b","what":{"cores":{"count":2},"memory":{"per-node":{"1":268435456}}},"below_guarantee":false}},"preview":true}"#,
    );
    let recall: TransferOrder = serde_json::from_str(r#"{"request":{"recall":{"to":"a"}}}"#).unwrap();
    let everything = TransferRequest::Recall { to: "a".parse().unwrap(), from: None, what: None };
    assert_eq!(recall, TransferOrder { request: everything, preview: false, pin_for_ms: None });
}

#[test]
fn events_with_memory_by_node_can_be_read_back() {
    let moved = Move { from: Holder::Vm("a".parse().unwrap()), to: Holder::Pool, what: some_resources() };
    let plan = Plan { moves: vec![moved], choices: Vec::new(), withheld: Vec::new() };
    check(
        &Event { sequence: 3, unix_ms: 5, what: EventKind::TransferBegan { transfer: 7, plan } },
        r#"{"sequence":3,"unix_ms":5,"what":{"transfer-began":{"transfer":7,"plan":{"moves":[{"from":{"vm":"a"},"to":"pool","what":{"cpus":"4-7","memory":{"1":268435456}}}],"choices":[]}}}}"#,
    );
}

#[test]
fn words_of_a_newer_daemon_are_not_errors() {
    assert_eq!(serde_json::from_str::<VmState>("\"hibernating\"").unwrap(), VmState::Unknown);
    assert_eq!(serde_json::from_str::<TransferState>("\"paused\"").unwrap(), TransferState::Unknown);
    assert_eq!(serde_json::from_str::<Stage>("\"wash\"").unwrap(), Stage::Unknown);
    assert!(serde_json::from_str::<Resources>(r#"{"cpus":"0","colour":"red"}"#).is_ok());
}

#[test]
fn policies_and_decisions_are_named_as_in_files_and_paths() {
    assert_eq!(serde_json::from_str::<PolicyMode>("\"eager\"").unwrap(), PolicyMode::Unknown);
    assert_eq!(serde_json::from_str::<DecisionState>("\"dreamt\"").unwrap(), DecisionState::Unknown);
    for state in [DecisionState::Planned, DecisionState::UnderWay, DecisionState::Interrupted, DecisionState::Advised] {
        check(&state, &format!("\"{state}\""));
        assert_eq!(DecisionState::of(state.name()), state);
    }
    for mode in [PolicyMode::Off, PolicyMode::Advise, PolicyMode::Auto] {
        check(&mode, &format!("\"{mode}\""));
    }
    let query = HistoryQuery {
        vm: "a".parse().ok(),
        state: Some(DecisionState::UnderWay),
        limit: Some(5),
        ..HistoryQuery::default()
    };
    assert_eq!(Paths::history(&query), "/v1/history?vm=a&state=under-way&limit=5");
    assert_eq!(Paths::history(&HistoryQuery::default()), "/v1/history");
    let moves = vec![Move { from: Holder::Pool, to: Holder::Vm("a".parse().unwrap()), what: Resources::default() }];
    let rebalance = |below| TransferRequest::Rebalance { moves: moves.clone(), below, owed: false };
    let text = serde_json::to_string(&rebalance(BTreeSet::new())).unwrap();
    assert!(
        !text.contains("below")
            && serde_json::from_str::<TransferRequest>(&text).unwrap() == rebalance(BTreeSet::new())
    );
}
