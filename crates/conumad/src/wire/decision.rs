//! Decisions, estimates and terms of the policy, each reason with its code and its words.

use std::collections::BTreeMap;

use conuma_api as api;
use conuma_balancing::Holder;
use conuma_policy::demand::{CoreEstimate, CoreWhy, MemoryWhy, NodeEstimate};
use conuma_policy::{Decision, Estimate, Held, Layout, Mode, Outlook, Priority, Rejected, Step, Terms, Why, WhyNot};
use conuma_topology::{Bytes, NodeId};

use super::moves::kind_of;
use super::{count, demand, holder, resources};
use crate::clock::unix_ms;

/// So many moves are named in a line; of the others only how many they are.
const NAMED: usize = 4;

pub(crate) fn mode(of: Mode) -> api::PolicyMode {
    match of {
        Mode::Off => api::PolicyMode::Off,
        Mode::Advise => api::PolicyMode::Advise,
        Mode::Auto => api::PolicyMode::Auto,
    }
}

/// A mode that a client asks for, if it is one.
pub(crate) fn policy_mode(of: api::PolicyMode) -> Option<Mode> {
    match of {
        api::PolicyMode::Off => Some(Mode::Off),
        api::PolicyMode::Advise => Some(Mode::Advise),
        api::PolicyMode::Auto => Some(Mode::Auto),
        api::PolicyMode::Unknown => None,
    }
}

/// A decision that was not carried out (yet).
pub(crate) fn decision(of: &Decision, cause: &str, mode: api::PolicyMode, layout: &Layout) -> api::DecisionInfo {
    api::DecisionInfo {
        id: None,
        at_unix_ms: unix_ms(of.at),
        cause: cause.to_owned(),
        mode,
        state: api::DecisionState::Planned,
        summary: summary(of, layout),
        score_now: finite(of.score_now),
        score_after: finite(of.score_after),
        score_achieved: None,
        ended_unix_ms: None,
        vms: of.vms.iter().map(|vm| outlook(vm, layout)).collect(),
        moves: of.moves.iter().map(decided_move).collect(),
        rejected: of.rejected.iter().map(rejected).collect(),
    }
}

/// What moves, in a line: `2 cores from a to b (demand), 64M of node 1 from free to b (guarantee)`.
pub(crate) fn summary(of: &Decision, layout: &Layout) -> String {
    let mut cores: BTreeMap<(&Holder, &Holder, Why), usize> = BTreeMap::new();
    let mut memory: BTreeMap<(&Holder, &Holder, Why, NodeId), Bytes> = BTreeMap::new();
    for Step { step, why } in &of.moves {
        let moved = layout.cores_in(&step.what.cpus).len();
        if moved > 0 {
            *cores.entry((&step.from, &step.to, *why)).or_default() += moved;
        }
        for (node, bytes) in &step.what.memory {
            *memory.entry((&step.from, &step.to, *why, *node)).or_default() += *bytes;
        }
    }
    let between =
        |from: &Holder, to: &Holder, why: Why| format!("from {} to {} ({})", holder(from), holder(to), kind_of(&why));
    let cores = cores.into_iter().map(|((from, to, why), cores)| {
        let noun = if cores == 1 { "core" } else { "cores" };
        format!("{cores} {noun} {}", between(from, to, why))
    });
    let memory = memory
        .into_iter()
        .map(|((from, to, why, node), bytes)| format!("{bytes} of node {node} {}", between(from, to, why)));
    let mut parts: Vec<String> = cores.chain(memory).collect();
    if parts.is_empty() {
        return "nothing moves".into();
    }
    let more = parts.len().saturating_sub(NAMED);
    parts.truncate(NAMED);
    let named = parts.join(", ");
    if more == 0 { named } else { format!("{named}, and {more} more") }
}

pub(crate) fn outlook(of: &Outlook, layout: &Layout) -> api::VmOutlook {
    api::VmOutlook {
        vm: of.vm.clone(),
        wanted_cores: count(of.wanted_cores),
        needed_cores: count(of.needed_cores),
        share: count(of.share),
        cores_now: count(layout.cores_in(&of.holding.cpus).len()),
        cores_after: count(layout.cores_in(&of.after.cpus).len()),
        now: resources(&of.holding),
        after: resources(&of.after),
        memory_wanted: of.estimate.memory.iter().map(|(node, estimate)| (*node, estimate.wanted)).collect(),
        score_now: finite(of.score_now),
        score_after: finite(of.score_after),
        held_why: of.held.map(held),
        estimate: estimate(&of.estimate),
    }
}

pub(crate) fn estimate(of: &Estimate) -> api::EstimateInfo {
    api::EstimateInfo {
        at_unix_ms: of.at.map(unix_ms),
        cores: core_estimate(&of.cores),
        memory: of.memory.iter().map(|(node, estimate)| (*node, node_estimate(estimate))).collect(),
    }
}

fn core_estimate(of: &CoreEstimate) -> api::CoreEstimateInfo {
    let text = match of.why {
        CoreWhy::Unknown => "nothing is known of its load",
        CoreWhy::Use => "what it uses",
        CoreWhy::Queue => "what it uses, and what tasks wait for",
        CoreWhy::Fading => "its load has fallen, and might come back",
        CoreWhy::Probing => "all its cores are busy: more are tried",
        CoreWhy::Saturated => "all its cores are busy, but more did not help",
    };
    api::CoreEstimateInfo {
        wanted: finite(of.wanted),
        used: finite(of.used),
        waiting: of.waiting.map(finite),
        stall: of.stall.map(finite),
        held: count(of.held),
        probe: finite(of.probe),
        why: reason(&of.why, text),
    }
}

fn node_estimate(of: &NodeEstimate) -> api::NodeEstimateInfo {
    let text = match of.why {
        MemoryWhy::Unknown => "nothing is known of its load",
        MemoryWhy::WorkingSet => "what it works with, and some room",
        MemoryWhy::Growth => "it grows",
        MemoryWhy::Pressure => "it waits for memory, or reads again what was dropped",
        MemoryWhy::Fading => "its load has fallen, and might come back",
    };
    api::NodeEstimateInfo {
        wanted: of.wanted,
        in_use: of.in_use,
        cache: of.cache,
        kept: of.kept,
        headroom: of.headroom,
        growth: of.growth,
        refaults: of.refaults.map(finite),
        stall: of.stall.map(finite),
        why: reason(&of.why, text),
    }
}

/// A move of a decision of which nothing has been begun.
pub(crate) fn decided_move(of: &Step) -> api::DecidedMove {
    let text = match of.why {
        Why::Guarantee => "it needs what it is guaranteed",
        Why::Host => "the host itself is short",
        Why::Demand => "it can do more with it",
        Why::Locality => "it is nearer to its memory or devices",
    };
    api::DecidedMove {
        from: holder(&of.step.from),
        to: holder(&of.step.to),
        what: resources(&of.step.what),
        why: reason(&of.why, text),
        transfer: None,
        state: None,
        refusal: None,
    }
}

pub(crate) fn rejected(of: &Rejected) -> api::RejectedInfo {
    let why = match &of.why {
        WhyNot::Held(why) => held(*why),
        WhyNot::FairShare => reason(&of.why, "its share is fair: nobody needs what there is less"),
        WhyNot::Limit => reason(&of.why, "its limit"),
        WhyNot::NoGain { gain, cost } => {
            reason(&of.why, format!("it brings {gain:.2} core-seconds and costs {cost:.2}"))
        }
        WhyNot::Budget(moves) => reason(&of.why, format!("the moves of this minute are used up: {moves} for each VM")),
        WhyNot::MemoryStuck => reason(&of.why, "memory of the giver cannot be taken, or of the recipient not be given"),
    };
    api::RejectedInfo { vm: of.vm.clone(), cores: of.cores, memory: of.memory.clone(), why }
}

fn held(of: Held) -> api::Reason {
    let text = match of {
        Held::Pinned => "it is pinned: people set what it holds",
        Held::HandsOff => "the policy file says hands off",
        Held::Busy => "a transfer from or to it is under way",
        Held::Dwell => "it gave or got a moment ago",
        Held::Unknown => "nothing is known of its load",
    };
    reason(&of, text)
}

/// What holds for a VM, with the windows that are open.
pub(crate) fn terms(of: &Terms, in_policy: bool, windows: Vec<String>) -> api::TermsInfo {
    api::TermsInfo {
        weight: of.weight,
        guarantee: demand(&of.guarantee),
        limit: demand(&of.limit),
        priority: match of.priority {
            Priority::Low => api::PriorityInfo::Low,
            Priority::Normal => api::PriorityInfo::Normal,
            Priority::High => api::PriorityInfo::High,
        },
        hands_off: of.hands_off,
        in_policy,
        windows,
    }
}

fn reason(of: &impl serde::Serialize, text: impl Into<String>) -> api::Reason {
    api::Reason { code: kind_of(of), text: text.into() }
}

/// JSON has no other numbers.
fn finite(number: f64) -> f64 {
    if number.is_finite() { number } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use conuma_balancing::{Host, Move, Resources};
    use conuma_topology::{CpuSet, Machine, VmName};

    fn layout() -> Layout {
        let machine: Machine = "2n4c2t@1G".parse().unwrap();
        Layout::flat(&Host::new(&machine, &CpuSet::new(), Bytes::ZERO))
    }

    fn vm(name: &str) -> Holder {
        Holder::Vm(name.parse::<VmName>().unwrap())
    }

    #[test]
    fn a_line_sums_up_what_moves_for_the_same_reason() {
        let layout = layout();
        let core = |n: usize| layout.cores.values().nth(n).unwrap().cpus.clone();
        let step = |from: &str, cpus: CpuSet, mib: u64, why| {
            let memory = if mib > 0 { [(NodeId(1), Bytes::mib(mib))].into() } else { BTreeMap::new() };
            Step { step: Move { from: vm(from), to: vm("b"), what: Resources { cpus, memory } }, why }
        };
        let moves = vec![
            step("a", core(0), 0, Why::Demand),
            step("a", core(1), 0, Why::Demand),
            step("c", core(2), 0, Why::Guarantee),
            step("c", CpuSet::new(), 64, Why::Demand),
        ];
        let decision = Decision { moves, ..Decision::default() };
        let line = "2 cores from a to b (demand), 1 core from c to b (guarantee), 64M of node 1 from c to b (demand)";
        assert_eq!(summary(&decision, &layout).replace("64 MiB", "64M"), line);
        assert_eq!(summary(&Decision::default(), &layout), "nothing moves");
    }

    #[test]
    fn every_reason_has_a_code_and_words() {
        let rejected = |why| {
            let of = Rejected { vm: "a".parse().unwrap(), cores: 1, memory: BTreeMap::new(), why };
            super::rejected(&of).why
        };
        let why = rejected(WhyNot::NoGain { gain: 0.5, cost: 2.0 });
        assert_eq!((why.code.as_str(), why.text.as_str()), ("no-gain", "it brings 0.50 core-seconds and costs 2.00"));
        assert_eq!(rejected(WhyNot::Held(Held::HandsOff)).code, "hands-off");
        assert_eq!(rejected(WhyNot::FairShare).code, "fair-share");
        assert_eq!(rejected(WhyNot::Budget(9)).code, "budget");
    }

    #[test]
    fn numbers_that_are_none_do_not_break_what_is_written() {
        let decision = Decision { score_now: f64::NAN, score_after: f64::INFINITY, ..Decision::default() };
        let info = super::decision(&decision, "tick", api::PolicyMode::Auto, &layout());
        let text = serde_json::to_string(&info).unwrap();
        assert_eq!(serde_json::from_str::<api::DecisionInfo>(&text).unwrap(), info);
    }
}
