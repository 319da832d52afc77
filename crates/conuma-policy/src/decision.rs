//! What was decided, and everything that explains it: data for people and programs, nothing of it is text to parse.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use conuma_balancing::{Move, Request, Resources};
use conuma_topology::{Bytes, NodeId, VmName};
use serde::{Deserialize, Serialize};

use crate::demand::Estimate;

/// A decision: what should move now, and why.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Decision {
    /// When, by the host's clock.
    pub at: Duration,
    /// Each VM, by name.
    pub vms: Vec<Outlook>,
    /// What should move, in an order in which each giver has what it gives.
    pub moves: Vec<Step>,
    /// Cores, and memory moves, among them that count against the budget.
    pub spends: u32,
    /// VMs of which a part of the guarantee is lent by it, since they do not need it.
    pub below: BTreeSet<VmName>,
    /// What would be better on paper but is not done, and why.
    pub rejected: Vec<Rejected>,
    /// How well the host does, 0 to 100: what VMs do, by weight.
    pub score_now: f64,
    /// How well it will do, by prediction.
    pub score_after: f64,
}

/// A move and its reason.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Step {
    /// What moves.
    pub step: Move,
    /// Why.
    pub why: Why,
}

/// Why something moves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Why {
    /// The recipient needs what it is guaranteed: nothing stands before that.
    Guarantee,
    /// The host itself is short.
    Host,
    /// It can do more with it than the giver.
    Demand,
    /// It is nearer to its memory or devices.
    Locality,
}

impl Why {
    /// Whether it counts against the budget: nothing makes it necessary.
    pub(crate) fn is_paid(self) -> bool {
        !matches!(self, Self::Guarantee | Self::Host)
    }
}

/// A VM's side of a decision.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Outlook {
    /// Which.
    pub vm: VmName,
    /// What it wants, with the inputs of that.
    pub estimate: Estimate,
    /// What it holds.
    pub holding: Resources,
    /// What it will hold.
    pub after: Resources,
    /// Whole cores it was found to want, those that a steady load makes no difference to left out.
    pub wanted_cores: usize,
    /// Of its guarantee, what it needs: it has or gets so many cores.
    pub needed_cores: usize,
    /// Memory that it lacks of what it needs of its guarantee, on all nodes together.
    pub lacks_memory: Bytes,
    /// Its fair share: cores that the division gives it.
    pub share: usize,
    /// Why it is left as it is, if it is.
    pub held: Option<Held>,
    /// How well it does, 0 to 100.
    pub score_now: f64,
    /// How well it will do.
    pub score_after: f64,
}

/// Why a VM's cores are left as they are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Held {
    /// People set what it holds.
    Pinned,
    /// The policy file says hands off.
    HandsOff,
    /// A transfer turns its knobs.
    Busy,
    /// It gave or got a moment ago.
    Dwell,
    /// Nothing is known of its load.
    Unknown,
}

/// What is not done.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Rejected {
    /// Whom it concerns.
    pub vm: VmName,
    /// Cores that it would have more (or, negative, fewer).
    pub cores: i64,
    /// Memory that it would have more on these nodes.
    pub memory: BTreeMap<NodeId, Bytes>,
    /// Why not.
    pub why: WhyNot,
}

/// Why something is not done.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum WhyNot {
    /// It is left as it is.
    Held(Held),
    /// There is nothing to give that nobody needs more: the share is fair.
    FairShare,
    /// Its limit.
    Limit,
    /// Moving costs more than it brings (both in core-seconds).
    NoGain {
        /// What it brings.
        gain: f64,
        /// What it costs.
        cost: f64,
    },
    /// The moves of this minute are used up: so many for each VM.
    Budget(u32),
    /// The giver's memory cannot be taken, or the recipient's not be given.
    MemoryStuck,
}

impl Decision {
    /// Whether nothing is to be done.
    pub fn is_empty(&self) -> bool {
        self.moves.is_empty()
    }

    /// As requests to the engine. What brings VMs what they are guaranteed comes first and waits for nobody's consent. Of the rest, as far
    /// as it does not concern the same knobs, moves
    /// that turn the same knob are one request and others are requests of their own, so that a slow one holds up nothing else.
    pub fn requests(&self) -> Vec<Request> {
        let (owed, others): (Vec<&Step>, Vec<&Step>) = self.moves.iter().partition(|step| step.why == Why::Guarantee);
        // What turns the same knobs as those is for the next decision: waiting for them it would keep VMs busy.
        let first: BTreeSet<(&VmName, Option<NodeId>)> = owed.iter().flat_map(|step| step.step.turns()).collect();
        let free = |moves: &Vec<Move>| moves.iter().all(|step| !step.turns().any(|knob| first.contains(&knob)));
        let owed = grouped(owed).into_iter().map(|moves| self.request(moves, true));
        let others = grouped(others).into_iter().filter(free).map(|moves| self.request(moves, false));
        owed.chain(others).collect()
    }

    fn request(&self, moves: Vec<Move>, owed: bool) -> Request {
        let givers = moves.iter().filter_map(|step| step.from.vm());
        let below = givers.filter(|vm| self.below.contains(*vm)).cloned().collect();
        Request::Rebalance { moves, below, owed }
    }

    /// What the decision says of a VM.
    pub fn of(&self, vm: &VmName) -> Option<&Outlook> {
        self.vms.iter().find(|outlook| outlook.vm == *vm)
    }
}

/// Moves that turn the same knob, together.
fn grouped(steps: Vec<&Step>) -> Vec<Vec<Move>> {
    let mut group_of: BTreeMap<(&VmName, Option<NodeId>), usize> = BTreeMap::new();
    // By group: the group that it has become a part of, or itself.
    let mut joined: Vec<usize> = Vec::new();
    let root = |joined: &Vec<usize>, mut group: usize| {
        while joined[group] != group {
            group = joined[group];
        }
        group
    };
    let mut firsts = Vec::with_capacity(steps.len());
    for step in &steps {
        let own = joined.len();
        joined.push(own);
        firsts.push(own);
        for knob in step.step.turns() {
            let other = *group_of.entry(knob).or_insert(own);
            let (a, b) = (root(&joined, own), root(&joined, other));
            joined[a.max(b)] = a.min(b);
        }
    }
    let mut groups: BTreeMap<usize, Vec<Move>> = BTreeMap::new();
    for (step, first) in steps.into_iter().zip(firsts) {
        groups.entry(root(&joined, first)).or_default().push(step.step.clone());
    }
    groups.into_values().collect()
}
