//! Moves of cores and memory.

use std::collections::BTreeSet;

use conuma_topology::{CpuSet, NodeId, VmName};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::problem::Problem;
use super::resources::{Demand, Holder, Resources};

/// What to do about a transfer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct TransferOrder {
    /// What is asked.
    pub request: TransferRequest,
    /// Only tell what would move.
    #[serde(default)]
    pub preview: bool,
    /// For so many milliseconds the policy leaves what this makes as it is; 0: not at all. Unless said, `lend` and `set` pin
    /// their VMs until they are unpinned, and `recall` ends what `lend` pinned.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pin_for_ms: Option<u64>,
}

/// What should move.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum TransferRequest {
    /// From one VM to another, remembered as a loan.
    Lend {
        /// Who gives.
        #[schema(value_type = String)]
        from: VmName,
        /// Who gets.
        #[schema(value_type = String)]
        to: VmName,
        /// How much, or what.
        what: Demand,
        /// Also what the giver is guaranteed.
        #[serde(default)]
        below_guarantee: bool,
    },
    /// What a VM lent comes back; without `from` and `what` all of it, and the VM is filled up to
    /// its guarantee.
    Recall {
        /// Who lent and gets back.
        #[schema(value_type = String)]
        to: VmName,
        /// Only what this VM borrowed.
        #[schema(value_type = Option<String>)]
        #[serde(default, skip_serializing_if = "Option::is_none")]
        from: Option<VmName>,
        /// Only so much, or this.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        what: Option<Demand>,
    },
    /// A VM holds this much afterwards; the difference comes from or goes to the free pool.
    Set {
        /// Which VM.
        #[schema(value_type = String)]
        vm: VmName,
        /// What it should hold; what is not named stays.
        what: Demand,
        /// Also less than it is guaranteed.
        #[serde(default)]
        below_guarantee: bool,
    },
    /// Exactly these moves between running VMs and the free pool, all at once; none is remembered as a loan.
    Rebalance {
        /// The moves, in an order in which each giver has what it gives.
        moves: Vec<Move>,
        /// VMs that may fall below their guarantee by it, as they do not need all of it now.
        #[schema(value_type = Vec<String>)]
        #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
        below: BTreeSet<VmName>,
        /// The recipients are guaranteed what they get, and need it: a guest's refusal does not keep it.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        owed: bool,
    },
}

/// What came of an order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum TransferAnswer {
    /// A preview: nothing was done.
    Plan(Plan),
    /// The transfer was accepted; look at it again, or at the events, to see how it goes.
    Transfer(Box<Transfer>),
}

/// What would move.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
pub struct Plan {
    /// The moves: each cores only, or memory of one node only.
    pub moves: Vec<Move>,
    /// How cores were chosen where only a number was asked for, best first.
    pub choices: Vec<CoreChoice>,
    /// What is due but would not move, and why.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub withheld: Vec<Shortfall>,
}

/// One move.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Move {
    /// Who gives.
    pub from: Holder,
    /// Who gets.
    pub to: Holder,
    /// What.
    pub what: Resources,
}

/// A core that could have been chosen.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct CoreChoice {
    /// Who would give it.
    pub from: Holder,
    /// Its CPUs.
    #[schema(value_type = String)]
    pub cpus: CpuSet,
    /// Its node, where known.
    #[schema(value_type = Option<u32>)]
    pub node: Option<NodeId>,
    /// Whether it was chosen.
    pub chosen: bool,
    /// Why it stands where it stands, most important first.
    pub reasons: Vec<String>,
}

/// A transfer, under way or ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Transfer {
    /// Its number, never used twice.
    pub id: u64,
    /// What was asked.
    pub request: TransferRequest,
    /// How it stands.
    pub state: TransferState,
    /// What was planned; `None` while it waits for another, or if nothing could be planned.
    pub plan: Option<Plan>,
    /// One for each move of the plan, one for each that was withheld, and those that make good on other nodes what fell short.
    pub legs: Vec<Leg>,
    /// When it was asked for, milliseconds since 1970.
    pub asked_unix_ms: u64,
    /// How long it took, or has taken so far, in microseconds.
    pub took_us: u64,
    /// Why nothing could be planned, if the state is `refused`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refusal: Option<Problem>,
}

/// How a transfer stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum TransferState {
    /// Waits for a transfer of the same VMs.
    Waiting,
    /// Under way.
    Moving,
    /// All of it moved.
    Complete,
    /// A part moved.
    Partial,
    /// Nothing moved.
    Nothing,
    /// There was nothing left to plan when its turn came.
    Refused,
    /// A state that this client does not know.
    #[serde(other)]
    Unknown,
}

impl TransferState {
    /// Whether it is over.
    pub fn is_final(self) -> bool {
        !matches!(self, Self::Waiting | Self::Moving)
    }
}

/// One move of a transfer and how it went.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Leg {
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
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Shortfall {
    /// What.
    pub what: Resources,
    /// The kind of reason, for programs.
    pub code: String,
    /// Why.
    pub message: String,
    /// Who has it now.
    pub now_with: Holder,
}

/// Something worth saying about a move.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Remark {
    /// The kind, for programs.
    pub code: String,
    /// What.
    pub message: String,
}

/// A stage of a move.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Stage {
    /// The giver's guest leaves the CPUs.
    Quiesce,
    /// Its gate closes, and its run time must stand still.
    Close,
    /// It has not left: its gate closes firmly.
    Force,
    /// The recipient's gate opens.
    Open,
    /// The recipient's guest is told.
    Enable,
    /// The giver's guest makes room.
    Prepare,
    /// The giver unplugs.
    Shrink,
    /// What was taken or not taken is made certain.
    Settle,
    /// The recipient plugs.
    Grow,
    /// The recipient confirms that the memory is online.
    Confirm,
    /// What the recipient did not take goes back.
    Return,
    /// Over.
    Done,
    /// A stage that this client does not know.
    #[serde(other)]
    Unknown,
}

impl Stage {
    /// Its name, as on the wire.
    pub fn name(self) -> &'static str {
        match self {
            Self::Quiesce => "quiesce",
            Self::Close => "close",
            Self::Force => "force",
            Self::Open => "open",
            Self::Enable => "enable",
            Self::Prepare => "prepare",
            Self::Shrink => "shrink",
            Self::Settle => "settle",
            Self::Grow => "grow",
            Self::Confirm => "confirm",
            Self::Return => "return",
            Self::Done => "done",
            Self::Unknown => "unknown",
        }
    }
}

impl std::fmt::Display for Stage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(self.name())
    }
}

/// How long a stage took.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct StageTime {
    /// Which.
    pub stage: Stage,
    /// When it began, in microseconds since the transfer was asked for.
    pub began_us: u64,
    /// How long it took, in microseconds; `None` while it lasts.
    pub took_us: Option<u64>,
}
