//! What became of a transfer: data to explain it by.

use std::time::Duration;

use conuma_topology::VmName;
use serde::{Deserialize, Serialize};

use crate::action::{Failure, Fixed};
use crate::check::{Shortage, Violation};
use crate::holding::Resources;
use crate::ledger::{Holder, TransferId};
use crate::plan::{Move, Refusal, Request, TransferPlan};

/// A transfer, under way or ended.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Report {
    /// Which.
    pub id: TransferId,
    /// What was asked.
    pub request: Request,
    /// What was planned; `None` while it waits for others, or if nothing could be planned.
    pub plan: Option<TransferPlan>,
    /// One for each move of the plan, then one for each that was withheld, then those that make good on other nodes what
    /// fell short.
    pub legs: Vec<LegReport>,
    /// When it was asked for, in engine time.
    pub asked: Duration,
    /// When it ended.
    pub ended: Option<Duration>,
    /// What came of it.
    pub verdict: Verdict,
}

/// What came of a transfer.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// It waits for a transfer that uses the same VMs.
    Waiting,
    /// It is under way.
    Moving,
    /// All of it moved.
    Complete,
    /// A part moved; the legs say what did not, and why.
    Partial,
    /// Nothing moved; the legs say why.
    Nothing,
    /// When its turn came there was nothing left that could be planned.
    Refused(Refusal),
}

/// One move of a transfer.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct LegReport {
    /// What was planned.
    pub planned: Move,
    /// What arrived.
    pub arrived: Resources,
    /// What did not, and why.
    pub shortfalls: Vec<Shortfall>,
    /// What went another way than planned but cost nothing.
    pub remarks: Vec<Remark>,
    /// The stages gone through, in order.
    pub stages: Vec<StageTime>,
}

/// Something that did not arrive.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Shortfall {
    /// What.
    pub what: Resources,
    /// Why.
    pub why: Reason,
    /// Who has it now.
    pub now_with: Holder,
}

/// Why something did not arrive.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reason {
    /// The donor's guest refused, with its reason.
    DonorRefused(String),
    /// The donor gave no memory, or not all, within the deadline.
    DonorKept,
    /// The donor's guest would run out of memory without it.
    DonorStarves,
    /// The recipient plugged nothing, or not all, within the deadline.
    RecipientDidNotTake,
    /// The donor's gate could not be closed.
    GateFailed(Failure),
    /// QEMU did not do what it was told.
    HypervisorFailed(Failure),
    /// The donor ended.
    DonorGone,
    /// The recipient ended.
    RecipientGone,
    /// The daemon was restarted before it was taken.
    Interrupted,
    /// The donor owes it, but needs it itself: boot memory, its last core, its guarantee.
    DonorNeeds,
    /// It would take the recipient beyond its limit or its devices.
    NoRoom,
    /// This VM did not answer: its memory is left alone until it does.
    Unanswering(VmName),
    /// This VM uses more memory than it holds: it is given none until it does not.
    Trespasses(VmName),
    /// The hypervisor neither plugs nor unplugs memory of this VM.
    Fixed(VmName, Fixed),
    /// The recipient is still so far below its guarantee, and the pool cannot help.
    PoolLacks(Shortage),
}

/// Something worth saying about a move that arrived.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Remark {
    /// The donor's agent did not answer; its gate was closed firmly without it.
    DonorSilent(Failure),
    /// The donor refused with this reason, but owed it: its gate was closed firmly.
    DonorRefused(String),
    /// The donor said it left but was still seen running: its gate was closed firmly.
    DonorBusy(conuma_topology::CpuSet),
    /// The recipient's gate is not confirmed open yet: that is tried until it is.
    GateNotOpen,
    /// The recipient was not told yet: its agent hears it when it connects.
    RecipientUntold,
    /// The recipient does not use these CPUs, with its reason.
    RecipientRefused(conuma_topology::CpuSet, String),
    /// The recipient has plugged the memory but did not confirm that it is online.
    Unconfirmed,
    /// The donor's agent could not make room beforehand.
    Unprepared,
    /// This did not come or was not taken; so much was looked for on other nodes.
    Elsewhere(Resources),
}

/// A stage of a move.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Stage {
    /// The donor's guest leaves the CPUs.
    Quiesce,
    /// Its gate closes, and its run time must stand still.
    Close,
    /// It has not left: its gate closes firmly.
    Force,
    /// The recipient's gate opens.
    Open,
    /// The recipient's guest is told.
    Enable,
    /// The donor's guest makes room.
    Prepare,
    /// The donor unplugs.
    Shrink,
    /// The donor gave not all in time: what it keeps is made certain.
    Settle,
    /// The recipient plugs.
    Grow,
    /// What the recipient did not plug goes back.
    Return,
    /// The recipient confirms that the memory is online.
    Confirm,
    /// Over.
    Done,
}

/// How long a stage took.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct StageTime {
    /// Which.
    pub stage: Stage,
    /// When it began, in engine time.
    pub began: Duration,
    /// How long it took; `None` while it lasts.
    pub took: Option<Duration>,
}

/// Something to tell people and programs that watch.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Notice {
    /// A transfer was accepted and waits for another.
    Waiting {
        /// Which.
        transfer: TransferId,
    },
    /// A transfer began.
    Began {
        /// Which.
        transfer: TransferId,
        /// What it will do.
        plan: TransferPlan,
    },
    /// A move reached a stage.
    Stage {
        /// The transfer.
        transfer: TransferId,
        /// Its move, counted from 0.
        leg: usize,
        /// The stage.
        stage: Stage,
    },
    /// A transfer ended.
    Ended(Box<Report>),
    /// A VM's guest, gates and QEMU all follow the ledger.
    Settled {
        /// The VM.
        vm: VmName,
    },
    /// A VM uses more memory than it holds, or does no longer.
    Trespasses {
        /// The VM.
        vm: VmName,
        /// Whether it does.
        trespasses: bool,
    },
    /// CPUs of the host went offline or came back.
    HostCpus {
        /// Those that are offline now.
        offline: conuma_topology::CpuSet,
    },
    /// A VM no longer lends memory, since it did not answer.
    Silent {
        /// The VM.
        vm: VmName,
    },
    /// An invariant does not hold; found on the host, not in a plan.
    Violated(Violation),
}
