//! Transfers: what would move, how it goes, what came of it.

use std::collections::{BTreeMap, BTreeSet};

use conuma_api::{Holder, LedgerInfo, Leg, Move, Plan, Resources, Shortfall, Stage, Transfer, TransferState};
use conuma_topology::{Bytes, CpuSet, NodeId};

use super::amount;
use crate::style::Style;
use crate::table::Table;

/// What `plan` would move, and what everyone concerned holds before and after.
pub fn preview(plan: &Plan, ledger: &LedgerInfo, style: Style) -> String {
    let withheld: String =
        plan.withheld.iter().map(|shortfall| not_moved("would not move:", shortfall, style)).collect();
    if plan.moves.is_empty() {
        return if withheld.is_empty() { "nothing would move: it is so already\n".into() } else { withheld };
    }
    let mut moves = Table::new(&["what", "from", "to"]).indented(2);
    for planned in &plan.moves {
        moves.row([what(&planned.what, ledger), planned.from.to_string(), planned.to.to_string()]);
    }
    let mut text = format!("{}\n{}", style.bold("Would move"), moves.render(style));
    let chosen: Vec<_> = plan.choices.iter().filter(|c| c.chosen && !c.reasons.is_empty()).collect();
    if !chosen.is_empty() {
        text.push_str(&format!("\n{}\n", style.bold("Cores chosen")));
    }
    for choice in chosen {
        let node = choice.node.map(|node| format!(" on node {node}")).unwrap_or_default();
        text.push_str(&format!("  {}{node}: {}\n", amount::cpus(&choice.cpus), style.dim(&choice.reasons.join("; "))));
    }
    text.push_str(&format!("\n{}\n{}", style.bold("Held before and after"), before_and_after(plan, ledger, style)));
    if withheld.is_empty() { text } else { text + "\n" + &withheld }
}

fn not_moved(head: &str, shortfall: &Shortfall, style: Style) -> String {
    let (head, what, message) = (style.warn(head), &shortfall.what, &shortfall.message);
    match what.cpus.is_empty() && what.memory.is_empty() {
        true => format!("{head} {message}\n"),
        false => format!("{head} {} is with {}: {message}\n", amount::resources(what), shortfall.now_with),
    }
}

fn before_and_after(plan: &Plan, ledger: &LedgerInfo, style: Style) -> String {
    let mut after: BTreeMap<Holder, Resources> =
        ledger.accounts.iter().map(|account| (account.holder.clone(), account.holds.clone())).collect();
    let before = after.clone();
    let mut holders = BTreeSet::new();
    for planned in &plan.moves {
        take(after.entry(planned.from.clone()).or_default(), &planned.what);
        put(after.entry(planned.to.clone()).or_default(), &planned.what);
        holders.extend([planned.from.clone(), planned.to.clone()]);
    }
    let nothing = Resources::default();
    let held = |account: &BTreeMap<Holder, Resources>, holder: &Holder| account.get(holder).unwrap_or(&nothing).clone();
    let nodes: BTreeSet<NodeId> = plan.moves.iter().flat_map(|m| m.what.memory.keys().copied()).collect();
    let names: Vec<String> = nodes.iter().map(|node| format!("node{node}")).collect();
    let head: Vec<&str> = ["holder", "cores", "CPUs"].into_iter().chain(names.iter().map(String::as_str)).collect();
    let mut table = Table::new(&head).indented(2);
    for holder in &holders {
        let (before, after) = (held(&before, holder), held(&after, holder));
        let count = |cpus: &CpuSet| amount::count_cores(ledger, cpus).to_string();
        let set = |cpus: &CpuSet| if cpus.is_empty() { "none".to_owned() } else { cpus.to_string() };
        let on = |held: &Resources, node: &NodeId| held.memory.get(node).copied().unwrap_or_default().to_string();
        let mut row = vec![
            style.bold(&holder.to_string()),
            amount::change(&count(&before.cpus), &count(&after.cpus)),
            amount::change(&set(&before.cpus), &set(&after.cpus)),
        ];
        row.extend(nodes.iter().map(|node| amount::change(&on(&before, node), &on(&after, node))));
        table.row(row);
    }
    table.render(style)
}

fn take(from: &mut Resources, what: &Resources) {
    from.cpus = from.cpus.difference(&what.cpus);
    for (node, bytes) in &what.memory {
        let held = from.memory.entry(*node).or_insert(Bytes::ZERO);
        *held = held.saturating_sub(*bytes);
    }
}

fn put(to: &mut Resources, what: &Resources) {
    to.cpus = to.cpus.union(&what.cpus);
    for (node, bytes) in &what.memory {
        *to.memory.entry(*node).or_insert(Bytes::ZERO) += *bytes;
    }
}

/// `2 cores: CPUs 4-7`, or `node1=256M`.
fn what(what: &Resources, ledger: &LedgerInfo) -> String {
    match amount::count_cores(ledger, &what.cpus) {
        0 => amount::resources(what),
        count => format!("{}: {}", amount::cores(count), amount::resources(what)),
    }
}

/// Stages as people tell them: take from the giver, verify that it is gone, give to the recipient.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Phase {
    Take,
    Verify,
    Give,
}

const PHASES: [(Phase, &str); 3] = [(Phase::Take, "take"), (Phase::Verify, "verify"), (Phase::Give, "give")];

fn phase(stage: Stage) -> Option<Phase> {
    match stage {
        Stage::Quiesce | Stage::Prepare | Stage::Shrink => Some(Phase::Take),
        Stage::Close | Stage::Force | Stage::Settle => Some(Phase::Verify),
        Stage::Open | Stage::Enable | Stage::Grow | Stage::Confirm => Some(Phase::Give),
        Stage::Return | Stage::Done | Stage::Unknown => None,
    }
}

/// Time in a phase, in microseconds; `None` if it was not gone through or is not over.
fn time_in(leg: &Leg, of: Phase) -> Option<u64> {
    let mut stages = leg.stages.iter().filter(|stage| phase(stage.stage) == Some(of)).peekable();
    stages.peek()?;
    stages.map(|stage| stage.took_us).sum()
}

/// How a transfer under way stands, one line a move.
pub fn progress(transfer: &Transfer, style: Style) -> Vec<String> {
    match transfer.state {
        TransferState::Waiting => vec!["waiting for another transfer of the same VMs".into()],
        TransferState::Moving if transfer.legs.is_empty() => vec!["planning".into()],
        _ => transfer.legs.iter().map(|leg| leg_progress(leg, style)).collect(),
    }
}

fn leg_progress(leg: &Leg, style: Style) -> String {
    let Move { from, to, what } = &leg.planned;
    let mut text = format!("{from} → {to}  {}", amount::resources(what));
    for (of, name) in PHASES {
        if let Some(took) = time_in(leg, of) {
            text.push_str(&format!("  {name} {}", style.good(&amount::micros(took))));
        }
    }
    match leg.stages.last() {
        Some(stage) if stage.stage == Stage::Done => {}
        Some(stage) if stage.took_us.is_none() => text.push_str(&format!("  {} …", stage.stage)),
        _ => {}
    }
    text
}

/// What came of a transfer, with the time of each stage and the reason of each shortfall.
pub fn result(transfer: &Transfer, style: Style) -> String {
    let mut text = verdict(transfer, style);
    if !transfer.legs.is_empty() {
        text.push_str(&format!(" in {}", amount::micros(transfer.took_us)));
    }
    text.push('\n');
    if let Some(refusal) = &transfer.refusal {
        text.push_str(&format!("  {}\n", refusal.message));
    }
    if !transfer.legs.is_empty() {
        text.push_str(&legs(&transfer.legs, style));
    }
    for leg in &transfer.legs {
        for shortfall in &leg.shortfalls {
            text.push_str(&not_moved("not moved:", shortfall, style));
        }
        for remark in &leg.remarks {
            text.push_str(&format!(
                "{} {}: {}\n",
                style.dim("note:"),
                amount::resources(&leg.planned.what),
                remark.message
            ));
        }
    }
    text
}

fn legs(legs: &[Leg], style: Style) -> String {
    let mut table = Table::new(&["what", "from", "to", "moved", ">take", ">verify", ">give"]).indented(2);
    for leg in legs {
        let arrived = amount::resources(&leg.arrived);
        let all = leg.shortfalls.is_empty() && leg.arrived == leg.planned.what;
        let time = |of| time_in(leg, of).map_or("-".into(), amount::micros);
        table.row([
            amount::resources(&leg.planned.what),
            leg.planned.from.to_string(),
            leg.planned.to.to_string(),
            if all { style.good("all") } else { style.warn(&arrived) },
            time(Phase::Take),
            time(Phase::Verify),
            time(Phase::Give),
        ]);
    }
    table.render(style)
}

fn verdict(transfer: &Transfer, style: Style) -> String {
    let number = format!("transfer {}", transfer.id);
    match transfer.state {
        TransferState::Complete if transfer.legs.is_empty() => format!("{number}: {}", style.good("it is so already")),
        TransferState::Complete => format!("{number}: {}", style.good("all of it moved")),
        TransferState::Partial => format!("{number}: {}", style.warn("a part moved")),
        TransferState::Nothing => format!("{number}: {}", style.bad("nothing moved")),
        TransferState::Refused => format!("{number}: {}", style.bad("refused, nothing moved")),
        TransferState::Waiting => format!("{number}: {}", style.warn("waits")),
        TransferState::Moving => format!("{number}: {}", style.warn("under way")),
        TransferState::Unknown => format!("{number}: unknown state"),
    }
}
