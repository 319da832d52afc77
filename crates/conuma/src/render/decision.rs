//! Decisions: what would move by itself, what became of it, and what was decided before.

use conuma_api::{
    DecidedMove, DecisionInfo, DecisionState, DecisionSummary, PolicyMode, Reason, RejectedInfo, Transfer,
    TransferState, VmOutlook,
};
use conuma_topology::NodeId;

use super::{amount, estimate, transfer};
use crate::style::Style;
use crate::table::Table;

/// What would be done now, and why.
pub fn plan(decision: &DecisionInfo, style: Style) -> String {
    let (now, after) = (format!("{:.1}", decision.score_now), format!("{:.1}", decision.score_after));
    let mut text = match decision.moves.len() as u64 {
        0 => format!("nothing would move; the host's score is {now} of 100\n"),
        count => {
            let head = style.bold(&format!("Would make {}", amount::plural(count, "move")));
            format!(
                "{head}; the host's score {} of 100\n{}",
                amount::change(&now, &after),
                moves(&decision.moves, style)
            )
        }
    };
    text.push_str(&about_vms(decision, style));
    if decision.mode == PolicyMode::Off {
        let hint = "the policy is off, so nothing of this happens by itself: `conuma rebalance` does it once, `conuma policy mode auto` always";
        text.push_str(&format!("\n{} {hint}\n", style.good("hint:")));
    }
    text
}

/// What came of a decision that was asked for now.
pub fn result(decision: &DecisionInfo, style: Style) -> String {
    if decision.moves.is_empty() {
        let score = format!("the host's score is {:.1} of 100\n", decision.score_now);
        return format!("{}: {score}", style.good("nothing is to be moved")) + &not_done(&decision.rejected, style);
    }
    let number = decision.id.map(|id| format!("decision {id}: ")).unwrap_or_default();
    let mut text = format!("{number}{}; {}\n", state(decision.state, style), scores(decision));
    text.push_str(&moves(&decision.moves, style));
    text + &refusals(&decision.moves, style)
}

/// All of a decision: what it was made from, its moves, what came of it. `now_unix_ms` is when it is looked at.
pub fn full(decision: &DecisionInfo, now_unix_ms: u64, style: Style) -> String {
    let number = decision.id.map_or("decision".into(), |id| format!("decision {id}"));
    let mut text = format!("{}: {}\n", style.bold(&number), decision.summary);
    let took = decision.ended_unix_ms.map(|ended| ended.saturating_sub(decision.at_unix_ms) * 1000);
    let took = took.map(|us| format!(" after {}", amount::micros(us))).unwrap_or_default();
    let ago = amount::since(decision.at_unix_ms, now_unix_ms);
    let lines = [
        ("made", format!("{ago} ago, {}", amount::moment(decision.at_unix_ms))),
        ("cause", format!("{}, in mode {}", decision.cause, decision.mode)),
        ("state", format!("{}{took}", state(decision.state, style))),
        ("score", scores(decision)),
    ];
    for (key, value) in lines {
        text.push_str(&format!("  {}{value}\n", style.dim(&format!("{key:<7}"))));
    }
    if !decision.moves.is_empty() {
        text.push_str(&format!("\n{}\n{}", style.bold("Moves"), moves(&decision.moves, style)));
        text.push_str(&refusals(&decision.moves, style));
    }
    text.push_str(&about_vms(decision, style));
    let inputs = estimate::tables(decision.vms.iter().map(|vm| (vm.vm.as_str(), &vm.estimate)), style);
    if !inputs.is_empty() {
        text.push_str(&format!("\n{}\n{inputs}", style.bold("What it was made from")));
    }
    text
}

/// Decisions, a line each, with the points predicted and achieved. `filtered` is whether some are left out.
pub fn list(decisions: &[DecisionSummary], filtered: bool, now_unix_ms: u64, style: Style) -> String {
    if decisions.is_empty() {
        return match filtered {
            true => "no decision is like that\n".into(),
            false => "nothing was decided yet; `conuma policy show` tells whether the policy is on\n".into(),
        };
    }
    let mut table = Table::new(&[">id", ">age", "cause", "state", ">score", "summary"]);
    for decision in decisions {
        table.row([
            decision.id.to_string(),
            amount::age(now_unix_ms.saturating_sub(decision.at_unix_ms) / 1000),
            decision.cause.clone(),
            state(decision.state, style),
            format!("{}/{}", amount::points(decision.predicted), decision.achieved.map_or("-".into(), amount::points)),
            decision.summary.clone(),
        ]);
    }
    table.render(style)
}

/// How the transfers of a decision stand, a line for each move of one that is not over.
pub fn progress(transfers: &[Transfer], style: Style) -> Vec<String> {
    let under_way = transfers.iter().filter(|transfer| !transfer.state.is_final());
    under_way.flat_map(|under_way| transfer::progress(under_way, style)).collect()
}

/// A state in colour.
pub(super) fn state(state: DecisionState, style: Style) -> String {
    match state {
        DecisionState::Planned | DecisionState::Advised | DecisionState::Unknown => state.to_string(),
        DecisionState::Done => style.good("done"),
        DecisionState::UnderWay | DecisionState::Partial => style.warn(state.name()),
        DecisionState::Refused | DecisionState::Interrupted => style.bad(state.name()),
    }
}

/// `60.0 → 88.0 predicted (+28.0), 85.0 achieved (+25.0)`.
fn scores(decision: &DecisionInfo) -> String {
    let (now, after) = (decision.score_now, decision.score_after);
    let predicted = format!("{now:.1} → {after:.1} predicted ({})", amount::points(after - now));
    match decision.score_achieved {
        Some(achieved) => format!("{predicted}, {achieved:.1} achieved ({})", amount::points(achieved - now)),
        None => predicted,
    }
}

fn moves(moves: &[DecidedMove], style: Style) -> String {
    let begun = moves.iter().any(|decided| decided.transfer.is_some() || decided.refusal.is_some());
    let head: &[&str] = match begun {
        true => &["what", "from", "to", ">transfer", "came to", "why"],
        false => &["what", "from", "to", "why"],
    };
    let mut table = Table::new(head).indented(2);
    for decided in moves {
        let mut row = vec![amount::resources(&decided.what), decided.from.to_string(), decided.to.to_string()];
        if begun {
            row.push(decided.transfer.map_or("-".into(), |id| id.to_string()));
            row.push(came_to(decided, style));
        }
        row.push(decided.why.text.clone());
        table.row(row);
    }
    table.render(style)
}

fn came_to(decided: &DecidedMove, style: Style) -> String {
    match decided.state {
        Some(TransferState::Complete) => style.good("all"),
        Some(TransferState::Partial) => style.warn("a part"),
        Some(TransferState::Nothing) => style.bad("nothing"),
        Some(TransferState::Refused) => style.bad("refused"),
        Some(TransferState::Waiting) => style.warn("waits"),
        Some(TransferState::Moving) => style.warn("under way"),
        Some(TransferState::Unknown) => "unknown".into(),
        None if decided.refusal.is_some() => style.bad("refused"),
        None => "-".into(),
    }
}

fn refusals(moves: &[DecidedMove], style: Style) -> String {
    let refused = moves.iter().filter_map(|decided| Some((decided, decided.refusal.as_ref()?)));
    let line = |(decided, refusal): (&DecidedMove, &conuma_api::Problem)| {
        let what = amount::resources(&decided.what);
        format!("{} {what} to {}: {}\n", style.warn("not moved:"), decided.to, refusal.message)
    };
    refused.map(line).collect()
}

/// What every VM holds and will hold, and what is not done.
fn about_vms(decision: &DecisionInfo, style: Style) -> String {
    let mut cores = Table::new(&["vm", ">cores", ">wanted", ">guaranteed", ">fair share", ">score"]).indented(2);
    let mut memory = Table::new(&["vm", ">node", ">memory", ">wanted"]).indented(2);
    for vm in &decision.vms {
        let score = |score: f64| format!("{score:.0}");
        cores.row([
            style.bold(vm.vm.as_str()),
            amount::change(&vm.cores_now.to_string(), &vm.cores_after.to_string()),
            vm.wanted_cores.to_string(),
            vm.needed_cores.to_string(),
            vm.share.to_string(),
            amount::change(&score(vm.score_now), &score(vm.score_after)),
        ]);
        let held = |node: &NodeId| vm.now.memory.get(node).copied().unwrap_or_default();
        let will_hold = |node: &NodeId| vm.after.memory.get(node).copied().unwrap_or_default();
        let mut nodes: Vec<&NodeId> = vm.now.memory.keys().chain(vm.after.memory.keys()).collect();
        nodes.sort_unstable();
        nodes.dedup();
        for node in nodes.into_iter().filter(|node| held(node) != will_hold(node)) {
            memory.row([
                style.bold(vm.vm.as_str()),
                node.to_string(),
                amount::change(&held(node).to_string(), &will_hold(node).to_string()),
                vm.memory_wanted.get(node).map_or("-".into(), ToString::to_string),
            ]);
        }
    }
    let mut text = String::new();
    if !cores.is_empty() {
        text.push_str(&format!("\n{}\n{}", style.bold("Cores"), cores.render(style)));
    }
    if !memory.is_empty() {
        text.push_str(&format!("\n{}\n{}", style.bold("Memory that changes"), memory.render(style)));
    }
    let told = |vm: &VmOutlook, why: &Reason| {
        decision.rejected.iter().any(|rejected| rejected.vm == vm.vm && rejected.why == *why)
    };
    let left = decision.vms.iter().filter_map(|vm| Some((vm, vm.held_why.as_ref()?)));
    let left = left.filter(|(vm, why)| vm.now == vm.after && !told(vm, why));
    let left: String = left.map(|(vm, why)| format!("  {}: {}\n", style.bold(vm.vm.as_str()), why.text)).collect();
    if !left.is_empty() {
        text.push_str(&format!("\n{}\n{left}", style.bold("Left as they are")));
    }
    text + &not_done(&decision.rejected, style)
}

fn not_done(rejected: &[RejectedInfo], style: Style) -> String {
    if rejected.is_empty() {
        return String::new();
    }
    let lines = rejected.iter().map(|rejected| format!("  {}\n", rejection(rejected, style)));
    std::iter::once(format!("\n{}\n", style.bold("Not done"))).chain(lines).collect()
}

/// `db: 1 core more: its share is fair`.
pub(super) fn rejection(rejected: &RejectedInfo, style: Style) -> String {
    let mut what = Vec::new();
    if rejected.cores != 0 {
        let word = if rejected.cores < 0 { "fewer" } else { "more" };
        what.push(format!("{} {word}", amount::plural(rejected.cores.unsigned_abs(), "core")));
    }
    let memory = rejected.memory.iter().filter(|(_, bytes)| !bytes.is_zero());
    what.extend(memory.map(|(node, bytes)| format!("{bytes} more on node {node}")));
    let what = if what.is_empty() { String::new() } else { format!("{}: ", what.join(", ")) };
    format!("{}: {what}{}", style.bold(rejected.vm.as_str()), rejected.why.text)
}
