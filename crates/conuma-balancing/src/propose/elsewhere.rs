//! What one node did not give or take, from others.

use std::collections::{BTreeMap, BTreeSet};

use conuma_topology::{Bytes, CpuSet, NodeId};

use super::{Books, Draft, excused};
use crate::holding::{MemoryDemand, Resources};
use crate::ledger::Holder;
use crate::plan::{Move, Refusal, Request, TransferPlan};

/// Moves of up to so much memory between each giver and recipient, without the nodes that are `barred`. None where nothing
/// more can be planned.
pub(crate) fn plan_elsewhere(
    books: &Books,
    request: &Request,
    missing: &BTreeMap<(Holder, Holder), Bytes>,
    barred: &BTreeSet<NodeId>,
) -> Vec<Move> {
    let mut draft = Draft { books, plan: TransferPlan::default(), barred };
    for ((from, to), bytes) in missing {
        let owed = draft.may_give(request, from, to);
        if let Ok(memory) = draft.as_much_as(bytes.to_owned().min(owed.total_memory()), from, to) {
            let memory = Resources { cpus: CpuSet::new(), memory };
            // Of what is only owed on some nodes, nothing is taken from the others.
            draft.push(from, to, memory.common(&owed));
        }
    }
    books.finish(draft.plan, &excused(request)).map(|plan| plan.moves).unwrap_or_default()
}

impl Draft<'_> {
    /// A recall takes no more than what is owed.
    fn may_give(&self, request: &Request, from: &Holder, to: &Holder) -> Resources {
        let owed = match (request, to) {
            (Request::Recall { .. }, Holder::Vm(vm)) => self.books.loans.owed(from, vm),
            _ => self.has(from),
        };
        let on_others = |(node, _): &(&NodeId, &Bytes)| !self.barred.contains(node);
        let memory = owed.memory.iter().filter(on_others).map(|(node, bytes)| (*node, *bytes)).collect();
        Resources { cpus: CpuSet::new(), memory }
    }

    /// So much, or what there is.
    fn as_much_as(&self, bytes: Bytes, from: &Holder, to: &Holder) -> Result<BTreeMap<NodeId, Bytes>, Refusal> {
        match self.choose_memory(from, to, &MemoryDemand::Total(bytes)) {
            Err(Refusal::TooLittleMemory { available, .. }) if !available.is_zero() => {
                self.choose_memory(from, to, &MemoryDemand::Total(available))
            }
            chosen => chosen,
        }
    }
}
