//! What is kept, and what is answered.

use serde_json::{Value, json};

use super::*;
use crate::store::{PRUNE_BY_AGE, PRUNE_BY_NUMBER};

fn history_of(numbers: std::ops::Range<i64>) -> History {
    let mut history = History::in_memory().expect("a history");
    for number in numbers {
        history.append(&decision(number)).expect("appending");
    }
    history
}

#[test]
fn a_decision_reads_as_it_was_written() {
    let mut history = History::in_memory().expect("a history");
    let mut new = decision(7);
    new.vms = vec![vm("b"), vm("a"), vm("b")];
    let id = history.append(&new).expect("appending");
    let mut expected = kept(id, new);
    assert_eq!(expected.vms, [vm("a"), vm("b")]);
    assert_eq!(history.get(id).expect("reading").as_ref(), Some(&expected));
    assert_eq!(history.finish(id, &outcome("done")).expect("finishing"), Finished::Recorded);
    expected.outcome = Some(outcome("done"));
    assert_eq!(history.get(id).expect("reading").as_ref(), Some(&expected));
    assert_eq!(history.list(&Query::default()).expect("listing"), [expected]);
    assert_eq!(history.count().expect("counting"), 1);
}

#[test]
fn the_first_outcome_stays() {
    let mut history = history_of(0..2);
    let mut finish = |id, state| history.finish(DecisionId(id), &outcome(state)).expect("finishing");
    assert_eq!(finish(1, "done"), Finished::Recorded);
    assert_eq!(finish(1, "done"), Finished::Already);
    assert_eq!(finish(1, "failed"), Finished::Already);
    assert_eq!(finish(3, "done"), Finished::Unknown);
    assert_eq!(history.get(DecisionId(1)).expect("reading").expect("it is there").outcome, Some(outcome("done")));
    assert_eq!(ids(&history.under_way().expect("listing")), [2]);
    assert_eq!(history.get(DecisionId(3)).expect("reading"), None);
}

#[test]
fn filters_are_all_to_hold() {
    let mut history = History::in_memory().expect("a history");
    for (number, names) in [(1, vec!["a"]), (2, vec!["a", "b"]), (3, vec![]), (4, vec!["b"]), (5, vec!["a"])] {
        let vms = names.into_iter().map(vm).collect();
        history.append(&NewDecision { vms, ..decision(number) }).expect("appending");
    }
    for (id, state) in [(1, "done"), (2, "failed"), (4, "done")] {
        history.finish(DecisionId(id), &outcome(state)).expect("finishing");
    }
    let check = |query: Query, expected: &[i64]| {
        assert_eq!(ids(&history.list(&query).expect("listing")), expected, "{query:?}");
    };
    let all = Query::default;
    let ended = |state: &str| Some(StateFilter::Ended(state.to_owned()));
    check(all(), &[5, 4, 3, 2, 1]);
    check(Query { vm: Some(vm("a")), ..all() }, &[5, 2, 1]);
    check(Query { vm: Some(vm("c")), ..all() }, &[]);
    check(Query { from: Some(decision(2).at), to: Some(decision(4).at), ..all() }, &[3, 2]);
    check(Query { from: Some(decision(4).at), ..all() }, &[5, 4]);
    check(Query { state: ended("done"), ..all() }, &[4, 1]);
    check(Query { state: ended("don"), ..all() }, &[]);
    check(Query { state: Some(StateFilter::UnderWay), ..all() }, &[5, 3]);
    check(Query { vm: Some(vm("a")), state: ended("done"), to: Some(decision(2).at), ..all() }, &[1]);
    check(Query { before: Some(DecisionId(4)), limit: 2, ..all() }, &[3, 2]);
    check(Query { limit: 0, ..all() }, &[]);
}

#[test]
fn pages_follow_each_other() {
    let history = history_of(0..25);
    let mut seen = Vec::new();
    let mut query = Query { limit: 10, ..Query::default() };
    loop {
        let page = ids(&history.list(&query).expect("listing"));
        let Some(last) = page.last() else { break };
        query.before = Some(DecisionId(*last));
        seen.extend(page);
    }
    assert_eq!(seen, (1..=25).rev().collect::<Vec<_>>());
}

#[test]
fn an_answer_is_bounded_in_number_and_in_bytes() {
    let history = history_of(0..1_010);
    assert_eq!(history.list(&Query { limit: u32::MAX, ..Query::default() }).expect("listing").len(), 1_000);
    assert_eq!(history.list(&Query::default()).expect("listing").len(), 100);
    let mut history = History::in_memory().expect("a history");
    let long = NewDecision { inputs: Value::from("x".repeat(MAX_VALUE - 2)), ..decision(0) };
    let fit = MAX_ANSWER / MAX_VALUE;
    for _ in 0..fit + 3 {
        history.append(&long).expect("appending");
    }
    let first = history.list(&Query::default()).expect("listing");
    assert!(first.len() <= fit && first.len() + 1 >= fit, "{} decisions", first.len());
    let before = first.last().map(|last| last.id);
    let second = history.list(&Query { before, ..Query::default() }).expect("listing");
    assert_eq!(first.len() + second.len(), fit + 3);
}

#[test]
fn only_the_newest_are_kept() {
    let mut history = History::in_memory().expect("a history");
    history.set_keep(Keep { decisions: 10, days: 90 });
    for number in 0..25 {
        history.append(&decision(number)).expect("appending");
        assert!(history.count().expect("counting") <= 10);
    }
    let all = |history: &History| ids(&history.list(&Query::default()).expect("listing"));
    assert_eq!(all(&history), (16..=25).rev().collect::<Vec<_>>());
    history.set_keep(Keep { decisions: 0, days: 90 });
    history.append(&decision(25)).expect("appending");
    assert_eq!(all(&history), [26], "the last one is always kept");
}

#[test]
fn none_is_kept_for_longer_than_so_many_days() {
    let mut history = History::in_memory().expect("a history");
    history.set_keep(Keep { decisions: 100, days: 30 });
    let on_day = |day: i64, more: i64| NewDecision { at: UnixMillis(day * DAY + more), ..decision(0) };
    for new in [on_day(1, 0), on_day(2, -1), on_day(2, 0), on_day(20, 0)] {
        history.append(&new).expect("appending");
    }
    history.append(&on_day(32, 0)).expect("appending");
    assert_eq!(ids(&history.list(&Query::default()).expect("listing")), [5, 4, 3]);
    // A decision that is no longer kept takes its VMs along.
    let names: i64 = history
        .connection
        .query_row("SELECT count(DISTINCT decision) FROM decision_vms", [], |row| row.get(0))
        .expect("counting");
    assert_eq!(names, 3);
    let id = history.append(&on_day(1_000, 0)).expect("appending");
    assert_eq!((id, history.count().expect("counting")), (DecisionId(6), 1), "an id is never used twice");
}

#[test]
fn pruning_and_paging_go_by_an_index() {
    let history = history_of(0..1);
    let check = |sql: &str| {
        let mut statement = history.connection.prepare(&format!("EXPLAIN QUERY PLAN {sql}")).expect("SQL");
        let plan: Vec<String> =
            statement.query_map([1_i64], |row| row.get("detail")).and_then(|rows| rows.collect()).expect("a plan");
        assert!(plan.iter().all(|line| !line.starts_with("SCAN")), "{sql}: {plan:?}");
    };
    check(PRUNE_BY_NUMBER);
    check(PRUNE_BY_AGE);
    check("DELETE FROM decision_vms WHERE decision = ?1");
    check("SELECT id FROM decisions WHERE state IS NULL AND id < ?1 ORDER BY id DESC");
    check("SELECT id FROM decisions WHERE id < ?1 ORDER BY id DESC");
}

#[test]
fn what_cannot_be_kept_is_refused_and_named() {
    let nested = |levels: usize| (0..levels).fold(json!(1), |inner, _| json!([inner]));
    let of_length = |length: usize| Value::from("x".repeat(length - 2));
    let mut history = history_of(0..1);
    let mut check = |new: NewDecision, expected: Option<(&str, Refusal)>| {
        let before = history.count().expect("counting");
        match (history.append(&new), expected) {
            (Ok(id), None) => assert_eq!(history.get(id).expect("reading"), Some(kept(id, new))),
            (Err(error), Some((name, expected))) => {
                assert_eq!(error.kind(), Kind::Refused);
                let text = error.to_string();
                assert!(text.starts_with(&format!("cannot append a decision to :memory:: `{name}` ")), "{text}");
                assert!(matches!(error, HistoryError::Refused { why, .. } if why == expected), "{text}");
                assert_eq!(history.count().expect("counting"), before);
            }
            (answer, _) => panic!("{answer:?}"),
        }
    };
    check(NewDecision { inputs: of_length(MAX_VALUE), ..decision(1) }, None);
    let long = Refusal::TooLong { bytes: MAX_VALUE + 1 };
    check(NewDecision { inputs: of_length(MAX_VALUE + 1), ..decision(1) }, Some(("inputs", long)));
    check(NewDecision { plan: of_length(MAX_VALUE + 1), ..decision(1) }, Some(("plan", long)));
    check(NewDecision { summary: "x".repeat(MAX_VALUE + 1), ..decision(1) }, Some(("summary", long)));
    check(NewDecision { plan: nested(MAX_DEPTH), ..decision(1) }, None);
    check(NewDecision { plan: nested(MAX_DEPTH + 1), ..decision(1) }, Some(("plan", Refusal::TooDeep)));
    for predicted in [f64::NAN, f64::INFINITY] {
        check(NewDecision { predicted, ..decision(1) }, Some(("predicted", Refusal::NotFinite)));
    }

    let finish = |detail: Value, achieved: Option<f64>| Outcome { detail, achieved, ..outcome("done") };
    for bad in [finish(of_length(MAX_VALUE + 1), None), finish(nested(200), None), finish(json!(1), Some(f64::NAN))] {
        let error = history.finish(DecisionId(1), &bad).expect_err("refused");
        assert!(error.to_string().starts_with("cannot finish decision 1 in :memory:: `"), "{error}");
    }
    let good = finish(json!(null), None);
    assert_eq!(history.finish(DecisionId(1), &good).expect("finishing"), Finished::Recorded);
    assert_eq!(history.get(DecisionId(1)).expect("reading").expect("it is there").outcome, Some(good));
}

#[test]
fn times_before_1970_and_beyond_all_bounds_are_times() {
    let mut history = History::in_memory().expect("a history");
    for at in [i64::MIN, i64::MIN + 1] {
        history.append(&NewDecision { at: UnixMillis(at), ..decision(0) }).expect("appending");
    }
    assert_eq!(ids(&history.list(&Query::default()).expect("listing")), [2, 1]);
    history.append(&NewDecision { at: UnixMillis(i64::MAX), ..decision(0) }).expect("appending");
    assert_eq!(ids(&history.list(&Query::default()).expect("listing")), [3]);
    let epoch = std::time::SystemTime::UNIX_EPOCH;
    let second = std::time::Duration::from_secs(1);
    assert_eq!(UnixMillis::from(epoch + second), UnixMillis(1_000));
    assert_eq!(UnixMillis::from(epoch - second), UnixMillis(-1_000));
}

#[test]
fn it_can_be_handed_to_a_thread() {
    fn sendable<T: Send>(_: &T) {}
    sendable(&History::in_memory().expect("a history"));
}
