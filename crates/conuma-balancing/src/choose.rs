//! Which cores and whose node, where a request names only a number.
//!
//! Preferences, most important first. Cores: repay the recipient, then what no guarantee names, then
//! what is owed to nobody, then nodes where the recipient has memory and cores (memory near its
//! user), then, for a VM that gives, nodes where it has few cores (it stays together), and for the pool
//! nodes where many are free (VMs that start together spread). Ties go to the highest number when a
//! VM gives (a guest's CPU 0 has duties nobody can take over) and to the lowest when the pool gives.
//!
//! Nothing here looks at load: a policy that does names the cores.

use std::cmp::Reverse;
use std::collections::BTreeMap;

use conuma_topology::{Bytes, CpuSet, NodeId};

use crate::holding::{CoreDemand, Resources};
use crate::host::{Host, HostCore};
use crate::ledger::Holder;
use crate::plan::{CoreChoice, CoreReason};

/// What the choice depends on.
pub(crate) struct Wish<'a> {
    pub(crate) host: &'a Host,
    /// Who gives.
    pub(crate) from: &'a Holder,
    /// What the giver has.
    pub(crate) has: &'a Resources,
    /// What the giver's guarantee says of cores.
    pub(crate) guarantee: Option<&'a CoreDemand>,
    /// What the giver owes the recipient.
    pub(crate) owed_to_recipient: &'a Resources,
    /// What the giver owes anyone.
    pub(crate) owed: &'a Resources,
    /// What the recipient has already.
    pub(crate) recipient: &'a Resources,
}

impl Wish<'_> {
    /// The best `count` cores of the giver, or how many it has; and what was compared.
    pub(crate) fn cores(&self, count: usize) -> Result<(CpuSet, Vec<CoreChoice>), usize> {
        if count == 0 {
            return Ok((CpuSet::new(), Vec::new()));
        }
        let near = self.cores_per_node(&self.recipient.cpus);
        let own = self.cores_per_node(&self.has.cpus);
        let mut candidates: Vec<(&HostCore, Rank)> = self
            .host
            .cores
            .values()
            .filter(|core| core.cpus.is_subset(&self.has.cpus))
            .map(|core| (core, self.rank(core, &near, &own)))
            .collect();
        if candidates.len() < count {
            return Err(candidates.len());
        }
        candidates.sort_by_key(|(core, rank)| {
            let first = core.cpus.first();
            let (low, high) = if self.giver_is_vm() { (None, first) } else { (first, None) };
            (Reverse(rank.clone()), core.node, low, Reverse(high))
        });
        let choices: Vec<CoreChoice> = candidates
            .iter()
            .enumerate()
            .map(|(place, (core, rank))| CoreChoice {
                from: self.from.clone(),
                cpus: core.cpus.clone(),
                node: core.node,
                reasons: self.reasons(rank),
                chosen: place < count,
            })
            .collect();
        let chosen = choices.iter().filter(|choice| choice.chosen).flat_map(|choice| choice.cpus.iter()).collect();
        Ok((chosen, choices))
    }

    /// `total` of what the giver has per node, or how much it has: where it repays, near the recipient's
    /// cores, far from the giver's, and then where most is.
    pub(crate) fn memory(&self, total: Bytes, block: Bytes) -> Result<BTreeMap<NodeId, Bytes>, Bytes> {
        let available = self.has.total_memory();
        if available < total {
            return Err(available);
        }
        let near = self.cores_per_node(&self.recipient.cpus);
        let own = self.cores_per_node(&self.has.cpus);
        let count = |of: &BTreeMap<NodeId, usize>, node: &NodeId| of.get(node).copied().unwrap_or(0);
        let mut nodes: Vec<(&NodeId, &Bytes)> = self.has.memory.iter().collect();
        nodes.sort_by_key(|(node, bytes)| {
            let owed = Reverse(self.owed_to_recipient.on(**node));
            (owed, Reverse(count(&near, node)), count(&own, node), Reverse(**bytes), **node)
        });
        let mut rest = total;
        let mut chosen = BTreeMap::new();
        for (node, bytes) in nodes {
            let part = rest.round_up(block).min(bytes.round_down(block));
            if !part.is_zero() {
                chosen.insert(*node, part);
            }
            rest = rest.saturating_sub(part);
        }
        if rest.is_zero() { Ok(chosen) } else { Err(total.saturating_sub(rest)) }
    }

    fn giver_is_vm(&self) -> bool {
        matches!(self.from, Holder::Vm(_))
    }

    fn rank(&self, core: &HostCore, near: &BTreeMap<NodeId, usize>, own: &BTreeMap<NodeId, usize>) -> Rank {
        let on_node = |of: &BTreeMap<NodeId, usize>| core.node.and_then(|node| of.get(&node).copied()).unwrap_or(0);
        let guaranteed = match self.guarantee {
            Some(CoreDemand::Cpus(cpus)) => !cpus.is_disjoint(&core.cpus),
            _ => false,
        };
        let giver_cores = on_node(own);
        Rank {
            repays: core.cpus.is_subset(&self.owed_to_recipient.cpus),
            not_guaranteed: !guaranteed,
            not_owed: core.cpus.is_disjoint(&self.owed.cpus),
            recipient_memory: core.node.map(|node| self.recipient.on(node)).unwrap_or_default(),
            recipient_cores: on_node(near),
            giver_cores: if self.giver_is_vm() { -(giver_cores as i64) } else { giver_cores as i64 },
        }
    }

    fn reasons(&self, rank: &Rank) -> Vec<CoreReason> {
        let mut reasons = Vec::new();
        if rank.repays {
            reasons.push(CoreReason::RepaysLoan);
        }
        if rank.not_guaranteed && matches!(self.guarantee, Some(CoreDemand::Cpus(_))) {
            reasons.push(CoreReason::NotGuaranteed);
        }
        if rank.not_owed && !self.owed.cpus.is_empty() {
            reasons.push(CoreReason::NotOwed);
        }
        reasons.push(CoreReason::RecipientMemory(rank.recipient_memory));
        reasons.push(CoreReason::RecipientCores(rank.recipient_cores));
        reasons.push(CoreReason::GiverCores(rank.giver_cores.unsigned_abs() as usize));
        reasons
    }

    fn cores_per_node(&self, cpus: &CpuSet) -> BTreeMap<NodeId, usize> {
        let mut counts = BTreeMap::new();
        for core in self.host.cores.values().filter(|core| core.cpus.is_subset(cpus)) {
            if let Some(node) = core.node {
                *counts.entry(node).or_default() += 1;
            }
        }
        counts
    }
}

/// Higher is better; the fields are compared in order.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Rank {
    repays: bool,
    not_guaranteed: bool,
    not_owed: bool,
    recipient_memory: Bytes,
    recipient_cores: usize,
    giver_cores: i64,
}
