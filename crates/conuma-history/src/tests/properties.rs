//! Any script of appends and outcomes, and any query, against a list in memory.

use proptest::prelude::*;

use super::*;

const VMS: [&str; 4] = ["a", "b", "c", "d"];
const STATES: [&str; 3] = ["done", "failed", "interrupted"];

#[derive(Debug, Clone)]
enum Op {
    /// When, in steps of six hours, and which VMs.
    Append(i64, Vec<usize>),
    /// Which decision, and how it ended.
    Finish(i64, usize),
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        3 => (-4_i64..200, proptest::collection::vec(0..VMS.len(), 0..4)).prop_map(|(at, vms)| Op::Append(at, vms)),
        2 => (0_i64..40, 0..STATES.len()).prop_map(|(id, state)| Op::Finish(id, state)),
    ]
}

fn time(step: i64) -> UnixMillis {
    UnixMillis(step * DAY / 4)
}

prop_compose! {
    fn query()(
        vm in proptest::option::of(0..VMS.len()),
        from in proptest::option::of(-5_i64..205),
        to in proptest::option::of(-5_i64..205),
        state in proptest::option::of(0..=STATES.len()),
        before in proptest::option::of(-1_i64..45),
        limit in 0_u32..30,
    ) -> Query {
        Query {
            vm: vm.map(|vm| super::vm(VMS[vm])),
            from: from.map(time),
            to: to.map(time),
            state: state.map(|state| {
                STATES.get(state).map_or(StateFilter::UnderWay, |state| StateFilter::Ended((*state).to_owned()))
            }),
            before: before.map(DecisionId),
            limit,
        }
    }
}

/// The list in memory.
struct Model {
    keep: Keep,
    last: i64,
    decisions: Vec<Decision>,
}

impl Model {
    fn append(&mut self, new: NewDecision) -> DecisionId {
        self.last += 1;
        let oldest = new.at.0 - i64::from(self.keep.days) * DAY;
        let gone = self.last - i64::from(self.keep.decisions);
        self.decisions.retain(|decision| decision.id.0 > gone && decision.at.0 >= oldest);
        self.decisions.push(kept(DecisionId(self.last), new));
        DecisionId(self.last)
    }

    fn finish(&mut self, id: DecisionId, outcome: &Outcome) -> Finished {
        match self.decisions.iter_mut().find(|decision| decision.id == id) {
            None => Finished::Unknown,
            Some(decision) if decision.outcome.is_some() => Finished::Already,
            Some(decision) => {
                decision.outcome = Some(outcome.clone());
                Finished::Recorded
            }
        }
    }

    fn list(&self, query: &Query) -> Vec<Decision> {
        let fits = |decision: &&Decision| {
            query.vm.as_ref().is_none_or(|vm| decision.vms.contains(vm))
                && query.from.is_none_or(|from| decision.at >= from)
                && query.to.is_none_or(|to| decision.at < to)
                && query.before.is_none_or(|before| decision.id < before)
                && match (&query.state, &decision.outcome) {
                    (None, _) | (Some(StateFilter::UnderWay), None) => true,
                    (Some(StateFilter::Ended(state)), Some(outcome)) => outcome.state == *state,
                    _ => false,
                }
        };
        self.decisions
            .iter()
            .rev()
            .filter(fits)
            .take(usize::try_from(query.limit).expect("a number"))
            .cloned()
            .collect()
    }
}

proptest! {
    #[test]
    fn a_list_is_what_a_filter_leaves_of_all_that_is_kept(
        decisions in 1_u32..30,
        days in 0_u32..60,
        script in proptest::collection::vec(op(), 0..60),
        queries in proptest::collection::vec(query(), 8),
    ) {
        let keep = Keep { decisions, days };
        let mut history = History::in_memory().expect("a history");
        history.set_keep(keep);
        let mut model = Model { keep, last: 0, decisions: Vec::new() };
        for op in script {
            match op {
                Op::Append(at, vms) => {
                    let vms = vms.into_iter().map(|vm| super::vm(VMS[vm])).collect();
                    let new = NewDecision { at: time(at), vms, ..decision(at) };
                    let id = history.append(&new).expect("appending");
                    prop_assert_eq!(id, model.append(new));
                }
                Op::Finish(id, state) => {
                    let (id, outcome) = (DecisionId(id), outcome(STATES[state]));
                    let found = history.finish(id, &outcome).expect("finishing");
                    prop_assert_eq!(found, model.finish(id, &outcome));
                }
            }
            prop_assert_eq!(usize::try_from(history.count().expect("counting")), Ok(model.decisions.len()));
        }
        for query in queries {
            prop_assert_eq!(history.list(&query).expect("listing"), model.list(&query), "{:?}", query);
        }
        for id in 0..45 {
            let expected = model.decisions.iter().find(|decision| decision.id.0 == id);
            prop_assert_eq!(history.get(DecisionId(id)).expect("reading"), expected.cloned());
        }
    }
}
