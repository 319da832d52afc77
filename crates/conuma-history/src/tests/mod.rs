//! What the history keeps and answers (`answers`), checked against a list in memory (`properties`), and what it makes of
//! files and disks (`files`).

mod answers;
mod files;
mod properties;

use conuma_topology::VmName;
use serde_json::json;

use crate::*;

const MINUTE: i64 = 60_000;
const DAY: i64 = 24 * 60 * MINUTE;

fn vm(name: &str) -> VmName {
    name.parse().expect("a name")
}

/// One that differs from others by its number, a minute after the one before it.
fn decision(number: i64) -> NewDecision {
    NewDecision {
        at: UnixMillis(1_700_000_000_000 + number * MINUTE),
        cause: "pressure".to_owned(),
        mode: "auto".to_owned(),
        vms: vec![vm("db"), vm("batch")],
        summary: format!("{number} cores from db to batch"),
        predicted: 1.5,
        inputs: json!({ "number": number, "scores": [0.25, -3, null], "text": "größer\u{0}\n" }),
        plan: json!([{ "from": "db", "to": "batch", "cores": [4, 5] }]),
    }
}

fn outcome(state: &str) -> Outcome {
    Outcome {
        at: UnixMillis(1_700_000_000_500),
        state: state.to_owned(),
        achieved: Some(-0.125),
        detail: json!({ "moved": 2 }),
    }
}

/// How a decision is read that was appended and not finished.
fn kept(id: DecisionId, new: NewDecision) -> Decision {
    let NewDecision { at, cause, mode, mut vms, summary, predicted, inputs, plan } = new;
    vms.sort();
    vms.dedup();
    Decision { id, at, cause, mode, vms, summary, predicted, inputs, plan, outcome: None }
}

fn ids(decisions: &[Decision]) -> Vec<i64> {
    decisions.iter().map(|decision| decision.id.0).collect()
}
