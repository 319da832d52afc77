//! What is kept of decisions, also over a restart.

use conuma_api::{Code, DecisionState, DecisionSummary, EventKind, HistoryQuery, Holder, TransferState};

use crate::balance::{apply, gets, two_idle_vms};
use crate::harness::{Host, name, problem};

async fn list(host: &Host, query: HistoryQuery) -> Vec<DecisionSummary> {
    host.client.history(&query).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_decision_is_kept_with_inputs_plan_and_outcome() {
    let host = Host::boot().await;
    let (_a, b) = two_idle_vms(&host).await;
    let mut events = host.client.events(None, &["decision-made", "decision-ended"]).await.unwrap();
    apply(&host, "auto", "").await;
    b.run(4.0);
    gets(&host, "b", 4).await;
    let EventKind::DecisionMade { id: Some(id), summary } = events.next().await.unwrap().unwrap().what else {
        panic!("a decision was made")
    };
    assert!(summary.contains("to b"), "{summary}");
    loop {
        if let EventKind::DecisionEnded { id: ended, state, .. } = events.next().await.unwrap().unwrap().what
            && ended == Some(id)
        {
            assert_eq!(state, DecisionState::Done);
            break;
        }
    }
    let kept = host.client.decision(id).await.unwrap();
    assert_eq!((kept.state, kept.summary.as_str()), (DecisionState::Done, summary.as_str()));
    assert!(kept.score_after > kept.score_now && kept.score_achieved.is_some(), "{kept:#?}");
    let of_b = kept.vms.iter().find(|vm| vm.vm == name("b")).expect("b");
    assert!(of_b.cores_after > of_b.cores_now && of_b.estimate.cores.used > 0.1, "{of_b:#?}");
    assert!(of_b.estimate.at_unix_ms.is_some() && !of_b.estimate.cores.why.text.is_empty());
    let step = kept.moves.iter().find(|step| step.to == Holder::Vm(name("b"))).expect("a move to b");
    assert_eq!(step.state, Some(TransferState::Complete));
    let transfer = host.client.transfer_by_id(step.transfer.expect("a transfer")).await.unwrap();
    assert_eq!(transfer.state, TransferState::Complete);

    let of_b = HistoryQuery { vm: Some(name("b")), ..HistoryQuery::default() };
    let summaries = list(&host, of_b.clone()).await;
    let summary = summaries.iter().find(|summary| summary.id == id).expect("it is listed");
    assert!(summary.predicted > 0.0 && summary.achieved.is_some(), "{summary:#?}");
    assert_eq!(host.client.why(&name("b")).await.unwrap().last_moved_by, Some(summaries[0].id));
    assert!(list(&host, HistoryQuery { before: Some(id), ..of_b.clone() }).await.is_empty());
    assert_eq!(list(&host, HistoryQuery { limit: Some(1), ..of_b.clone() }).await.len(), 1);
    assert!(list(&host, HistoryQuery { until_ms: Some(1), ..of_b }).await.is_empty());
    let (code, _) = problem(host.client.decision(999_999).await.expect_err("unknown"));
    assert_eq!(code, Code::NotFound);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_under_way_at_a_restart_was_interrupted() {
    let mut host = Host::boot().await;
    let (a, b) = two_idle_vms(&host).await;
    // It takes a while to take cores from a guest that does not answer.
    a.state().silent = true;
    apply(&host, "auto", "").await;
    b.run(8.0);
    let under_way = HistoryQuery { state: Some(DecisionState::UnderWay), vm: Some(name("a")), ..Default::default() };
    host.eventually("a decision is under way", || async { !list(&host, under_way.clone()).await.is_empty() }).await;
    let id = list(&host, under_way).await[0].id;
    host.stop_daemon().await;
    host.start_daemon().await;
    let kept = host.client.decision(id).await.unwrap();
    assert_eq!((kept.state, kept.score_achieved), (DecisionState::Interrupted, None), "{kept:#?}");
    assert!(!kept.moves.is_empty() && !kept.vms.is_empty());
    let interrupted = HistoryQuery { state: Some(DecisionState::Interrupted), ..HistoryQuery::default() };
    assert!(list(&host, interrupted).await.iter().any(|decision| decision.id == id));
    a.state().silent = false;
    host.settled(&["a", "b"]).await;
    gets(&host, "b", 6).await;
    host.check().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_history_that_is_lost_stops_nothing() {
    let mut host = Host::boot().await;
    host.stop_daemon().await;
    // Nothing can be written there.
    std::fs::remove_file(host.state_file("decisions.db")).unwrap();
    std::fs::create_dir(host.state_file("decisions.db")).unwrap();
    host.start_daemon().await;
    let (_a, b) = two_idle_vms(&host).await;
    let mut events = host.client.events(None, &["decision-made"]).await.unwrap();
    apply(&host, "auto", "").await;
    b.run(4.0);
    gets(&host, "b", 4).await;
    let event = events.next().await.unwrap().expect("the daemon runs");
    assert!(matches!(event.what, EventKind::DecisionMade { id: None, .. }), "{event:?}");
    let (code, _) = problem(host.client.history(&HistoryQuery::default()).await.expect_err("no history"));
    assert_eq!(code, Code::Internal);
}
