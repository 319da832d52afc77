//! The whole agent over a Unix socket: the library against a fake kernel, and the program.
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests")]

mod fake;
mod host;

use std::time::Duration;

use bytes::Bytes as Buffer;
use conuma_agent_proto::*;
use conuma_topology::{Bytes, GuestNodeId};
use fake::set;
use futures_util::SinkExt as _;
use host::{BUDGET, Program, with_agent};

#[tokio::test]
async fn a_whole_lending_as_the_host_sees_it() {
    with_agent(|mut host, guest| async move {
        let facts = host.greet().await;
        assert_eq!((facts.version, facts.kernel_release.as_str()), (1, "6.12.95"));
        assert_eq!(facts.cpus_online, set("0-7"));
        assert_eq!(facts.nodes[1].cpus, set("4-7"));
        assert_eq!((facts.cgroup_mode, facts.auto_online), (CgroupMode::Unified, AutoOnline::OnlineMovable));
        assert_eq!((facts.init_on_alloc, facts.psi), (Some(false), true));
        assert_eq!((facts.newest, facts.holding), (Generation(0), None));

        let Ok(Reply::Holding(outcome)) = host.ask(1, RequestBody::ApplyHolding { cpus: set("0-3") }).await else {
            panic!("the holding is applied")
        };
        assert_eq!((outcome.held, outcome.quiesced), (set("0-3"), set("4-7")));
        assert_eq!(outcome.timings.len(), 4);
        assert_eq!(guest.mask(100), "0-3");

        let prepare = RequestBody::PrepareMemory { node: GuestNodeId(1), bytes: Bytes::mib(256) };
        let Ok(Reply::Prepared(prepared)) = host.ask(2, prepare).await else { panic!("there is room") };
        assert!(prepared.enough);

        let confirm = RequestBody::ConfirmMemory { node: GuestNodeId(0), at_least: Bytes::mib(512) };
        let Ok(Reply::Memory(memory)) = host.ask(2, confirm).await else { panic!("it is there") };
        assert!(memory.satisfied);

        let Ok(Reply::Report(report)) = host.ask(0, RequestBody::Report).await else { panic!("it reports") };
        assert_eq!(report.nodes.len(), 2);

        let stale = host.ask(1, RequestBody::ApplyHolding { cpus: set("0-7") }).await;
        assert_eq!(stale, Err(AgentError::Stale { newest: Generation(2) }));
        let facts = host.greet().await;
        assert_eq!((facts.newest, facts.holding), (Generation(2), Some(set("0-3"))));
    })
    .await;
}

#[tokio::test]
async fn what_an_answer_leaves_undone_is_done_soon_after_it_or_when_the_host_hangs_up() {
    let workqueues = |guest: &fake::FakeGuest| guest.text("sys/devices/virtual/workqueue/cpumask");
    with_agent(|mut host, guest| async move {
        host.greet().await;
        for (generation, cpus, mask) in [(1, "0-3", "f"), (2, "0-7", "ff")] {
            let before = workqueues(&guest);
            host.ask(generation, RequestBody::ApplyHolding { cpus: set(cpus) }).await.unwrap();
            assert_eq!(workqueues(&guest), before, "not waited for");
            while workqueues(&guest) != mask {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        }
        host.ask(3, RequestBody::ApplyHolding { cpus: set("0-1") }).await.unwrap();
        drop(host);
        while workqueues(&guest) != "3" {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

#[tokio::test]
async fn the_first_word_is_a_greeting_in_a_common_version() {
    with_agent(|mut host, _| async move {
        assert!(matches!(host.ask(0, RequestBody::Report).await, Err(AgentError::BadRequest(_))));
        let hello = Hello { versions: Versions { min: 90, max: 91 }, daemon_version: "of the future".into() };
        assert_eq!(host.ask(0, RequestBody::Hello(hello)).await, Err(AgentError::Version(VERSIONS)));
        assert!(matches!(host.ask(0, RequestBody::Report).await, Err(AgentError::BadRequest(_))));
        host.greet().await;
        assert!(host.ask(0, RequestBody::Report).await.is_ok());
    })
    .await;
}

#[tokio::test]
async fn a_question_is_answered_while_memory_is_waited_for() {
    with_agent(|mut host, _| async move {
        host.greet().await;
        let confirm = RequestBody::ConfirmMemory { node: GuestNodeId(0), at_least: Bytes::gib(9) };
        let slow = host.send(0, Duration::from_millis(300), confirm).await;
        let quick = host.send(0, BUDGET, RequestBody::Report).await;
        assert_eq!(host.receive().await.unwrap().id, quick);
        let answer = host.receive().await.unwrap();
        assert_eq!(answer.id, slow);
        assert!(matches!(answer.body, Ok(Reply::Memory(MemoryState { satisfied: false, .. }))));
    })
    .await;
}

#[tokio::test]
async fn unknown_requests_are_refused_and_rubbish_ends_the_conversation() {
    with_agent(|mut host, _| async move {
        host.greet().await;
        // Id 7 and a body with the number 99.
        host.frames.send(Buffer::from_static(&[8, 7, 0x9a, 0x06, 0])).await.unwrap();
        let answer = host.receive().await.unwrap();
        assert_eq!(answer.id, RequestId(7));
        assert!(matches!(answer.body, Err(AgentError::BadRequest(_))));
        host.frames.send(Buffer::from_static(&[0xff; 40])).await.unwrap();
        assert_eq!(host.receive().await, None);
    })
    .await;
}

#[tokio::test]
async fn the_newest_connection_wins() {
    let program = Program::start();
    let mut first = program.connect().await;
    first.greet().await;
    let mut second = program.connect().await;
    second.greet().await;
    assert_eq!(first.receive().await, None);
    assert!(second.ask(0, RequestBody::Report).await.is_ok());
}

#[tokio::test]
async fn the_program_is_small_and_sleeps_when_nothing_happens() {
    let program = Program::start();
    let mut host = program.connect().await;
    host.greet().await;
    for _ in 0..20 {
        assert!(host.ask(0, RequestBody::Report).await.is_ok());
    }
    let resident = program.resident_kib();
    assert!(resident <= 6 << 10, "{resident} KiB are resident");
    let before = program.wakeups();
    tokio::time::sleep(Duration::from_millis(700)).await;
    let after = program.wakeups();
    assert!(after - before <= 1, "woke up {} times in 0.7 s", after - before);
}
