//! Reports that agents send unasked: what they change, and how many are believed to matter.

use std::time::Duration;

use conuma_agent_proto::Resource;
use conuma_api::{PolicyMode, TransferState};
use conumad::Triggers;
use conumad::agent::{AgentLink, Door, LinkEvent};
use conumad::clock::Clock;
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;

use crate::guest::{Guest, UPTIME};
use crate::harness::{Host, cpus, lend, vm_file};

/// Milliseconds that a guest is up by a report that it was asked for.
const ASKED: u64 = UPTIME.as_millis() as u64;

/// How long a guest is up by the report of this number that it was not asked for.
fn uptime(number: u64) -> Duration {
    Duration::from_secs(100 + number)
}

/// Up for so long, by the last report that the daemon has.
async fn seen(host: &Host, vm: &str) -> Option<u64> {
    host.vm(vm).await.report.map(|report| report.uptime_ms)
}

/// With reports that are asked for when an agent connects, and then for an hour no more; with a policy that guests' pressure concerns.
async fn patient_host() -> Host {
    let host = Host::boot_with(|settings| {
        settings.report = Duration::from_secs(3600);
        settings.balance_tick = Duration::from_secs(3600);
    })
    .await;
    host.client.set_policy_mode(PolicyMode::Advise).await.unwrap();
    host
}

#[tokio::test(flavor = "multi_thread")]
async fn a_report_that_was_not_asked_for_is_seen_at_once() {
    let host = patient_host().await;
    let a = host.guest("a");
    host.client.start(&vm_file("a", "0-3"), true).await.unwrap();
    host.settled(&["a"]).await;
    host.eventually("the agent was told what to watch", || async { a.state().triggers.is_some() }).await;
    let Triggers { cpu, memory } = Triggers::default();
    assert_eq!(a.state().triggers, Some((Some(cpu), Some(memory))));
    host.eventually("the report that was asked for is there", || async { seen(&host, "a").await == Some(ASKED) }).await;
    for (number, resource) in [Resource::Memory, Resource::Cpu].into_iter().enumerate() {
        let uptime = uptime(number as u64);
        a.push(resource, uptime);
        let expected = uptime.as_millis() as u64;
        host.eventually("the pushed report is there", || async { seen(&host, "a").await == Some(expected) }).await;
    }
    assert!(a.state().reports <= 2, "a push is no reason to ask: {}", a.state().reports);
    host.check().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_comes_back_is_told_again_what_to_watch() {
    let host = patient_host().await;
    let a = host.guest("a");
    host.client.start(&vm_file("a", "0-3"), true).await.unwrap();
    host.eventually("the agent was told what to watch", || async { a.state().triggers.is_some() }).await;
    a.vanish();
    let a = host.guest("a");
    host.eventually("the agent was told what to watch", || async { a.state().triggers.is_some() }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn guests_watch_while_a_policy_is_in_force_and_only_then() {
    let host = Host::boot().await;
    let a = host.guest("a");
    host.client.start(&vm_file("a", "0-3"), true).await.unwrap();
    host.settled(&["a"]).await;
    assert_eq!(a.state().triggers, None, "nobody would act by it");
    host.client.set_policy_mode(PolicyMode::Advise).await.unwrap();
    host.eventually("the agent was told what to watch", || async {
        matches!(a.state().triggers, Some((Some(_), Some(_))))
    })
    .await;
    host.client.set_policy_mode(PolicyMode::Off).await.unwrap();
    host.eventually("the agent was told to stop", || async { a.state().triggers == Some((None, None)) }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_of_before_pushes_is_asked_for_reports_as_ever() {
    let host = Host::boot().await;
    let a = host.guest("a");
    a.state().old = true;
    host.client.start(&vm_file("a", "0-3"), true).await.unwrap();
    host.settled(&["a"]).await;
    host.eventually("it is asked again and again", || async { a.state().reports >= 3 }).await;
    assert_eq!(seen(&host, "a").await, Some(ASKED));
    assert_eq!(a.state().greetings, 1, "and stays connected");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_that_pushes_without_end_is_served_as_others_are() {
    let host = patient_host().await;
    let (a, b) = host.two_vms().await;
    let flood = tokio::spawn(async move {
        let mut ticks = tokio::time::interval(Duration::from_millis(10));
        for number in 0.. {
            a.push(Resource::Memory, uptime(number));
            if number % 100 == 0 {
                ticks.tick().await;
            }
        }
    });
    host.eventually("the flood has come", || async { seen(&host, "a").await.is_some_and(|ms| ms > ASKED) }).await;
    let transfer = host.transfer(lend("a", "b", cpus("2-3"))).await;
    assert_eq!(transfer.state, TransferState::Complete, "{transfer:#?}");
    host.settled(&["a", "b"]).await;
    assert!(b.uses("2-5"));
    assert!(!flood.is_finished());
    flood.abort();
    host.check().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn of_a_flood_eight_a_second_are_passed_on_and_the_rest_is_counted() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.sock");
    let guest = Guest::listen(&path);
    let (events, mut link) = mpsc::channel(16);
    let stop = CancellationToken::new();
    let _end = stop.clone().drop_guard();
    let _link = AgentLink::start(Door::Socket(path), Clock::start(), events, stop);
    let budget = Duration::from_secs(20);
    let connected = timeout(budget, link.recv()).await.unwrap();
    assert!(matches!(connected, Some(LinkEvent::Connected(_))), "{connected:?}");

    let began = Instant::now();
    let (mut sent, mut passed, mut left_out) = (0, 0, 0);
    // Until one was passed on after others were not.
    while left_out == 0 {
        assert!(began.elapsed() < budget, "{passed} of {sent}");
        for _ in 0..50 {
            guest.push(Resource::Cpu, uptime(sent));
            sent += 1;
        }
        while let Ok(Some(event)) = timeout(Duration::from_millis(20), link.recv()).await {
            let LinkEvent::Pressed { report, dropped, .. } = event else { panic!("{event:?}") };
            passed += 1;
            left_out += dropped;
            assert_eq!(report.uptime, uptime(passed + left_out - 1), "every one is passed on or counted");
        }
    }
    let seconds = began.elapsed().as_secs() + 2;
    assert!(passed <= 8 * seconds, "{passed} of {sent} in {seconds} s");
    assert!(left_out > passed, "{passed} of {sent}, {left_out} were left out");
}
