//! Where so much memory was asked for in all, what one node does not give or take is looked for on others.
//!
//! A round of legs ends; what fell short of it is planned anew between the same two, on nodes where nothing fell short and
//! no other transfer moves their memory, and the new legs join the transfer. What cannot be planned so stays a shortfall.
//! It lasts a few rounds at most, and its deadline counts them from the beginning.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use conuma_topology::{Bytes, NodeId};

use crate::action::Failure;
use crate::duty::Knob;
use crate::engine::Engine;
use crate::holding::{MemoryDemand, Resources};
use crate::ledger::{Holder, TransferId};
use crate::plan::{Move, Request};
use crate::propose::plan_elsewhere;
use crate::report::{LegReport, Reason, Remark, Verdict};
use crate::transfer::{Leg, Transfer};

/// Rounds of a transfer at most: who was kept waiting so often has waited long enough.
const ROUNDS: u32 = 3;

/// How many rounds a request can come to.
pub(crate) fn rounds(request: &Request) -> u32 {
    let what = match request {
        Request::Lend { what, .. } | Request::Set { what, .. } => Some(what),
        Request::Recall { what, .. } => what.as_ref(),
        Request::Rebalance { .. } => None,
    };
    match what.and_then(|what| what.memory.as_ref()) {
        Some(MemoryDemand::Total(_)) => ROUNDS,
        _ => 1,
    }
}

impl Engine {
    /// Adds the legs of another round to a transfer whose legs have all ended; whether there are any.
    pub(crate) fn look_elsewhere(&mut self, id: TransferId, transfer: &mut Transfer, now: Duration) -> bool {
        if transfer.report.verdict != Verdict::Moving || transfer.rounds_left == 0 {
            return false;
        }
        let missing = missing(&transfer.legs);
        if missing.is_empty() {
            return false;
        }
        let (barred, turned) = (barred(&transfer.legs), self.turned_before(Some(id)));
        let open = |from: &Holder, to: &Holder, node| {
            let mut vms = [from, to].into_iter().filter_map(Holder::vm);
            !barred.contains(&node) && vms.all(|vm| !turned.contains(&(vm.clone(), Knob::Memory(node))))
        };
        let moves = plan_elsewhere(&self.books(), &transfer.report.request, &missing, open);
        if moves.is_empty() {
            return false;
        }
        transfer.rounds_left -= 1;
        for step in &moves {
            replace(&mut transfer.legs, step);
        }
        self.add_legs(id, transfer, &moves, now);
        true
    }
}

/// What of a leg another node could make good.
fn fell_short(report: &LegReport) -> impl Iterator<Item = &Resources> {
    // A QEMU that does not answer is no better on another node.
    let of_the_node = |why: &Reason| match why {
        Reason::DonorKept | Reason::DonorStarves | Reason::RecipientDidNotTake => true,
        Reason::HypervisorFailed(failure) => matches!(failure, Failure::Refused(_) | Failure::Failed(_)),
        _ => false,
    };
    report.shortfalls.iter().filter(move |short| of_the_node(&short.why)).map(|short| &short.what)
}

fn missing(legs: &[Leg]) -> BTreeMap<(Holder, Holder), Bytes> {
    let mut missing = BTreeMap::new();
    for leg in legs {
        let bytes: Bytes = fell_short(&leg.report).map(Resources::total_memory).sum();
        if !bytes.is_zero() {
            *missing.entry((leg.from.clone(), leg.to.clone())).or_default() += bytes;
        }
    }
    missing
}

/// Nodes where something fell short.
fn barred(legs: &[Leg]) -> BTreeSet<NodeId> {
    let replaced = |remark: &Remark| matches!(remark, Remark::Elsewhere(_));
    let fell_short = |leg: &&Leg| fell_short(&leg.report).next().is_some() || leg.report.remarks.iter().any(replaced);
    legs.iter().filter(fell_short).flat_map(|leg| leg.report.planned.what.memory.keys().copied()).collect()
}

/// What `step` is to make good is no shortfall any more.
fn replace(legs: &mut [Leg], step: &Move) {
    let mut good = step.what.total_memory();
    for leg in legs.iter_mut().filter(|leg| leg.from == step.from && leg.to == step.to) {
        let short: Vec<Resources> = fell_short(&leg.report).cloned().collect();
        for (node, bytes) in short.iter().flat_map(|what| &what.memory) {
            let part = (*bytes).min(good);
            good = good.saturating_sub(part);
            leg.made_good(&Resources::memory(*node, part));
        }
    }
}
