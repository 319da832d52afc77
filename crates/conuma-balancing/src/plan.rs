//! From a request to a plan, without doing anything.

use std::collections::BTreeSet;

use conuma_topology::{Bytes, CpuSet, NodeId, VmName};
use serde::{Deserialize, Serialize};

use crate::action::Fixed;
use crate::check::{Shortage, Violation};
use crate::holding::{Demand, Resources};
use crate::ledger::Holder;
use crate::report::{Reason, Shortfall};

/// What someone asks to be moved.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Request {
    /// Move from one VM to another and remember it as a loan.
    Lend {
        /// Who gives.
        from: VmName,
        /// Who gets.
        to: VmName,
        /// How much, or what.
        what: Demand,
        /// The owner agrees that the giver falls below its guarantee.
        #[serde(default)]
        below_guarantee: bool,
    },
    /// Give a VM back what it lent. Without `from` and `what` that is all of it, and the VM is filled up to its
    /// guarantee from the pool.
    Recall {
        /// Who gets.
        to: VmName,
        /// Only what this VM owes.
        #[serde(default)]
        from: Option<VmName>,
        /// Only so much, or this; refused if it is not owed.
        #[serde(default)]
        what: Option<Demand>,
    },
    /// Make a VM hold this much, taking from the pool or giving to it.
    Set {
        /// Which VM.
        vm: VmName,
        /// What it should hold; where nothing is said, what it has.
        what: Demand,
        /// The owner agrees that the VM falls below its guarantee.
        #[serde(default)]
        below_guarantee: bool,
    },
    /// Move exactly this, all of it planned by the caller, between running VMs and the pool. Nothing of it is a loan.
    Rebalance {
        /// The moves, in an order in which each giver has what it gives.
        moves: Vec<Move>,
        /// VMs that may fall below their guarantee by it, as they do not need all of it now.
        #[serde(default)]
        below: BTreeSet<VmName>,
        /// The recipients are guaranteed what they get, and need it: a guest's refusal does not keep it.
        #[serde(default)]
        owed: bool,
    },
}

/// What would move. Immutable once made: whoever carries it out decides nothing.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
pub struct TransferPlan {
    /// The moves. Each is cores only, or memory of one node only.
    pub moves: Vec<Move>,
    /// How cores were chosen where only a number was asked for.
    pub choices: Vec<CoreChoice>,
    /// What is due but cannot move now. Only the recall of all that is owed has any.
    #[serde(default)]
    pub withheld: Vec<Withheld>,
}

/// A move that is due but cannot be made now.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Withheld {
    /// What should move. Of nothing where only a number of cores or an amount of memory is missing.
    pub step: Move,
    /// Why it does not.
    pub why: Reason,
}

impl Withheld {
    /// As a leg would tell it.
    pub fn as_shortfall(&self) -> Shortfall {
        Shortfall { what: self.step.what.clone(), why: self.why.clone(), now_with: self.step.from.clone() }
    }
}

/// One part of a plan.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Move {
    /// Who gives.
    pub from: Holder,
    /// Who gets.
    pub to: Holder,
    /// What.
    pub what: Resources,
}

impl Move {
    /// What it turns: the cores of a VM (`None`), or its memory on a node.
    pub fn turns(&self) -> impl Iterator<Item = (&VmName, Option<NodeId>)> {
        [&self.from, &self.to].into_iter().filter_map(Holder::vm).flat_map(|vm| {
            let cores = (!self.what.cpus.is_empty()).then_some((vm, None));
            cores.into_iter().chain(self.what.memory.keys().map(move |node| (vm, Some(*node))))
        })
    }
}

/// A core that could have been chosen.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct CoreChoice {
    /// Who would give it.
    pub from: Holder,
    /// Its CPUs.
    pub cpus: CpuSet,
    /// Its node.
    pub node: Option<NodeId>,
    /// Why it was preferred over others, most important first.
    pub reasons: Vec<CoreReason>,
    /// Whether it was chosen.
    pub chosen: bool,
}

/// Why a core was preferred.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum CoreReason {
    /// The recipient lent it to the giver before.
    RepaysLoan,
    /// Not named in the giver's guarantee.
    NotGuaranteed,
    /// The giver owes it to nobody.
    NotOwed,
    /// The recipient has this much memory on the core's node.
    RecipientMemory(Bytes),
    /// The recipient holds this many cores of the core's node.
    RecipientCores(usize),
    /// The giver has this many cores of that node. A VM gives first where it has few, so that it stays
    /// together; the pool where it has many, so that VMs spread.
    GiverCores(usize),
}

/// Why there is no plan.
#[derive(Debug, Clone, PartialEq, Eq, Hash, thiserror::Error, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Refusal {
    /// No such VM.
    #[error("there is no VM {0}; see `conuma list`")]
    UnknownVm(VmName),
    /// The VM was started already.
    #[error("VM {0} is started already")]
    AlreadyStarted(VmName),
    /// A transfer from or to a VM of this name is still ending.
    #[error("a transfer from or to VM {0} is still ending; try again in a moment")]
    Busy(VmName),
    /// Memory of a node that a VM gives is in more than one move.
    #[error("what {vm} gives of node {node}'s memory cannot be in another move, too: ask for one after the other")]
    TornMemory {
        /// Which VM.
        vm: VmName,
        /// Which node.
        node: NodeId,
    },
    /// Nothing moves between these.
    #[error("nothing moves from {from} to {to}: only between two VMs, or a VM and the pool")]
    NotBetween {
        /// Who should give.
        from: Holder,
        /// Who should get.
        to: Holder,
    },
    /// Giver and recipient are the same.
    #[error("{0} cannot lend to itself")]
    SameVm(VmName),
    /// The request to lend names nothing.
    #[error("nothing to lend: name cores or memory")]
    NothingToLend,
    /// CPUs that are not whole cores of this host.
    #[error("CPUs {split} are not whole cores of this host; whole cores move, with all SMT siblings")]
    NotWholeCores {
        /// Those that are left over.
        split: CpuSet,
    },
    /// No such node, or it has no memory.
    #[error("node {0} has no memory on this host; see `conuma topology`")]
    NoSuchNode(NodeId),
    /// The giver does not have it (or must keep it as boot memory).
    #[error("{from} has no {missing} to give{}", holders(.held_by))]
    NotHeld {
        /// Who should give.
        from: Holder,
        /// What it lacks.
        missing: Resources,
        /// Who has it.
        held_by: Vec<(Holder, Resources)>,
    },
    /// Fewer cores than asked for.
    #[error("{from} has {} to give, {wanted} asked for{}", cores(*.available), holders(.held_by))]
    TooFewCores {
        /// Who should give.
        from: Holder,
        /// How many it could give.
        available: usize,
        /// How many were asked for.
        wanted: usize,
        /// Who has cores.
        held_by: Vec<(Holder, Resources)>,
    },
    /// Less memory than asked for.
    #[error("{from} has {available} of memory to give, {wanted} asked for{}", holders(.held_by))]
    TooLittleMemory {
        /// Who should give.
        from: Holder,
        /// How much it could give.
        available: Bytes,
        /// How much was asked for.
        wanted: Bytes,
        /// Who has memory.
        held_by: Vec<(Holder, Resources)>,
    },
    /// The giver would fall below its guarantee.
    #[error("{vm} would be {short} short of its guarantee; --below-guarantee allows it")]
    BelowGuarantee {
        /// The giver.
        vm: VmName,
        /// What would be missing.
        short: Shortage,
    },
    /// What is guaranteed to all VMs together would be more than there is.
    #[error("{vm} cannot be guaranteed that much: {missing} missing{}", guarantees(.others))]
    Overpromised {
        /// The VM that should start.
        vm: VmName,
        /// What is not there to promise.
        missing: Shortage,
        /// Who is promised how much of its kind.
        others: Vec<(VmName, Shortage)>,
    },
    /// A VM keeps at least one core.
    #[error("{0} must keep at least one core")]
    LastCore(VmName),
    /// The recipient cannot have that much.
    #[error("{vm} cannot hold {excess}: beyond its limit")]
    BeyondLimit {
        /// The recipient.
        vm: VmName,
        /// What is too much.
        excess: Shortage,
    },
    /// Nobody, or not this one, owes the VM anything.
    #[error("{lender} lent {} nothing", .borrower.as_ref().map_or("anyone", |borrower| borrower.as_str()))]
    NotLent {
        /// Who would get it back.
        lender: VmName,
        /// Who should give.
        borrower: Option<VmName>,
    },
    /// It is not said which of several borrowers should give.
    #[error("{lender} lent to several VMs: {}", names(.borrowers))]
    SeveralBorrowers {
        /// Who would get it back.
        lender: VmName,
        /// Who could give.
        borrowers: Vec<VmName>,
    },
    /// Less is owed than asked for.
    #[error("{borrower} owes {lender} {owed}, not {beyond} more")]
    NotOwed {
        /// Who would get it back.
        lender: VmName,
        /// Who should give.
        borrower: Holder,
        /// What it owes.
        owed: Resources,
        /// What it does not.
        beyond: Shortage,
    },
    /// The borrower cannot spare what it owes.
    #[error("{borrower} cannot give {what} now: a VM keeps its boot memory, its last core and its guarantee")]
    Needed {
        /// Who should give.
        borrower: Holder,
        /// What it needs.
        what: Resources,
    },
    /// A VM that did not answer neither lends nor grows memory.
    #[error("{0} does not answer: its memory can neither shrink nor grow until its agent connects again")]
    Silent(VmName),
    /// A VM that uses more memory than it holds is given none.
    #[error(
        "{0} uses more memory than it holds, and gets none until an audit finds that it does not; see `conuma show`"
    )]
    Trespasses(VmName),
    /// The hypervisor neither plugs nor unplugs its memory.
    #[error("{0} {1}")]
    Fixed(VmName, Fixed),
    /// CPUs that nobody can use now.
    #[error("CPUs {0} of the host are offline")]
    Offline(CpuSet),
    /// The VM is not running yet.
    #[error("{0} is still starting")]
    Starting(VmName),
    /// The checker refused what was proposed: a defect.
    #[error("the plan would break an invariant: {0} (this is a defect, please report it)")]
    Unsound(Violation),
}

fn cores(count: usize) -> String {
    if count == 1 { "1 core".into() } else { format!("{count} cores") }
}

fn guarantees(of: &[(VmName, Shortage)]) -> String {
    if of.is_empty() {
        return String::new();
    }
    let each: Vec<String> = of.iter().map(|(vm, what)| format!("{vm} is guaranteed {what}")).collect();
    format!(" ({})", each.join("; "))
}

fn names(of: &[VmName]) -> String {
    of.iter().map(VmName::as_str).collect::<Vec<_>>().join(", ")
}

/// Who has what was asked for, as a hint.
fn holders(held_by: &[(Holder, Resources)]) -> String {
    if held_by.is_empty() {
        return String::new();
    }
    let each: Vec<String> = held_by.iter().map(|(holder, held)| format!("{holder} holds {held}")).collect();
    format!(" ({}; `conuma recall` or `conuma set` can free it)", each.join("; "))
}

/// A violation that says no more than that the request asks too much is an ordinary refusal.
impl From<Violation> for Refusal {
    fn from(violation: Violation) -> Self {
        match violation {
            Violation::BelowGuarantee { vm, short } => Self::BelowGuarantee { vm, short },
            Violation::BeyondLimit { vm, excess } => Self::BeyondLimit { vm, excess },
            Violation::LastCore(vm) => Self::LastCore(vm),
            other => Self::Unsound(other),
        }
    }
}
