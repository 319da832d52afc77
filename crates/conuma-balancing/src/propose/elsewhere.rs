//! What one node did not give or take, from others.

use std::collections::BTreeMap;

use conuma_topology::{Bytes, CpuSet, NodeId};

use super::{Books, Draft, excused};
use crate::holding::Resources;
use crate::ledger::Holder;
use crate::plan::{Move, Request, TransferPlan};

/// Moves of as much of `missing` memory between each giver and recipient as there is on the nodes that are `open` to them.
pub(crate) fn plan_elsewhere(
    books: &Books,
    request: &Request,
    missing: &BTreeMap<(Holder, Holder), Bytes>,
    open: impl Fn(&Holder, &Holder, NodeId) -> bool,
) -> Vec<Move> {
    let mut moves = Vec::new();
    for ((from, to), bytes) in missing.iter().filter(|((from, to), _)| books.both_run(from, to)) {
        let mut draft = Draft { books, plan: TransferPlan { moves: moves.clone(), ..TransferPlan::default() } };
        let part = draft.can_come_from(request, from, to, |node| open(from, to, node));
        let (wanted, block) = ((*bytes).min(part.total_memory()), books.largest_block(&part, [from, to]));
        if let Ok(memory) = draft.wish(from, to, &part, |wish| wish.memory(wanted, block)) {
            draft.push(from, to, Resources { cpus: CpuSet::new(), memory });
        }
        // One pair that may not does not keep another from it.
        if let Ok(plan) = books.finish(draft.plan, &excused(request)) {
            moves = plan.moves;
        }
    }
    moves
}

impl Books<'_> {
    fn both_run(&self, from: &Holder, to: &Holder) -> bool {
        [from, to].into_iter().all(|holder| match holder {
            Holder::Vm(vm) => self.running(vm).is_ok(),
            _ => true,
        })
    }
}

impl Draft<'_> {
    /// Memory that the giver can spare and the recipient has room for, in whole blocks; of a recall, no more than is owed.
    fn can_come_from(
        &mut self,
        request: &Request,
        from: &Holder,
        to: &Holder,
        open: impl Fn(NodeId) -> bool,
    ) -> Resources {
        let mut part = Resources { cpus: CpuSet::new(), ..self.can_give(from) };
        if let (Request::Recall { .. }, Holder::Vm(vm)) = (request, to) {
            part = part.common(&self.books.loans.owed(from, vm));
        }
        part.memory.retain(|node, _| open(*node));
        if excused(request).is_empty() {
            part = self.spared(part, from, to);
        }
        part = self.fitting(part, from, to);
        let block = self.books.largest_block(&part, [from, to]);
        let whole = |(node, bytes): (&NodeId, &Bytes)| (*node, bytes.round_down(block));
        let nodes = part.memory.iter().map(whole).filter(|(_, bytes)| !bytes.is_zero());
        Resources { cpus: CpuSet::new(), memory: nodes.collect() }
    }
}
