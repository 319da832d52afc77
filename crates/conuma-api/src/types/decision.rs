//! What was decided, why, and what came of it.

use std::collections::BTreeMap;

use conuma_topology::{Bytes, NodeId, VmName};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::policy::PolicyMode;
use super::problem::Problem;
use super::resources::{Holder, Resources};
use super::transfer::TransferState;

/// How a decision stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum DecisionState {
    /// A preview: nothing was done or recorded.
    Planned,
    /// Its transfers are under way.
    UnderWay,
    /// All of it moved.
    Done,
    /// A part moved.
    Partial,
    /// Nothing moved: the engine refused it, or nothing could be taken.
    Refused,
    /// The daemon ended before its outcome was known.
    Interrupted,
    /// It was only told, as the mode was `advise`.
    Advised,
    /// A state that this client does not know.
    #[serde(other)]
    Unknown,
}

impl DecisionState {
    /// Its name, as on the wire.
    pub fn name(self) -> &'static str {
        match self {
            Self::Planned => "planned",
            Self::UnderWay => "under-way",
            Self::Done => "done",
            Self::Partial => "partial",
            Self::Refused => "refused",
            Self::Interrupted => "interrupted",
            Self::Advised => "advised",
            Self::Unknown => "unknown",
        }
    }

    /// By its name.
    pub fn of(name: &str) -> Self {
        let all =
            [Self::Planned, Self::UnderWay, Self::Done, Self::Partial, Self::Refused, Self::Interrupted, Self::Advised];
        all.into_iter().find(|state| state.name() == name).unwrap_or(Self::Unknown)
    }
}

impl std::fmt::Display for DecisionState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(self.name())
    }
}

/// A decision in full.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct DecisionInfo {
    /// Its number in the history; `None` if it is not in it: a preview, or one without moves.
    pub id: Option<u64>,
    /// When it was made, milliseconds since 1970.
    pub at_unix_ms: u64,
    /// What it was made for: `tick`, `pressure`, `transfer`, `start`, `end`, `reset`, `window`, `policy`, `pin`, `manual`, `preview`.
    pub cause: String,
    /// The mode in which it was made.
    pub mode: PolicyMode,
    /// How it stands.
    pub state: DecisionState,
    /// In one line, for people.
    pub summary: String,
    /// How well the host did, 0 to 100: what VMs do, by weight.
    pub score_now: f64,
    /// How well it should do, by prediction.
    pub score_after: f64,
    /// How well it did when all had ended; `None` before, and where it could not be found.
    pub score_achieved: Option<f64>,
    /// When all had ended, milliseconds since 1970.
    pub ended_unix_ms: Option<u64>,
    /// Each VM, by name.
    pub vms: Vec<VmOutlook>,
    /// What moves, in an order in which each giver has what it gives.
    pub moves: Vec<DecidedMove>,
    /// What would be better on paper but is not done, and why.
    pub rejected: Vec<RejectedInfo>,
}

/// A VM's side of a decision.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct VmOutlook {
    /// Which.
    #[schema(value_type = String)]
    pub vm: VmName,
    /// Whole cores that it was found to want.
    pub wanted_cores: u32,
    /// Of its guarantee, the cores that it needs: it has or gets them.
    pub needed_cores: u32,
    /// Cores that the fair division gives it.
    pub share: u32,
    /// Cores that it holds.
    pub cores_now: u32,
    /// Cores that it will hold.
    pub cores_after: u32,
    /// What it holds.
    pub now: Resources,
    /// What it will hold.
    pub after: Resources,
    /// What it wants of memory, in bytes by node.
    #[schema(value_type = BTreeMap<String, u64>)]
    pub memory_wanted: BTreeMap<NodeId, Bytes>,
    /// How well it does, 0 to 100.
    pub score_now: f64,
    /// How well it will do.
    pub score_after: f64,
    /// Why it is left as it is, if it is.
    pub held_why: Option<Reason>,
    /// What it is believed to want, and from what that was found.
    pub estimate: EstimateInfo,
}

/// A reason, for programs and for people.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
pub struct Reason {
    /// The kind, for programs.
    pub code: String,
    /// In words.
    pub text: String,
}

/// What a VM is believed to want.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct EstimateInfo {
    /// When its load was last seen, milliseconds since 1970; `None` if it never was.
    pub at_unix_ms: Option<u64>,
    /// Of cores.
    pub cores: CoreEstimateInfo,
    /// Of memory, by node.
    #[schema(value_type = BTreeMap<String, NodeEstimateInfo>)]
    pub memory: BTreeMap<NodeId, NodeEstimateInfo>,
}

/// What it wants of cores. All in cores.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct CoreEstimateInfo {
    /// So many.
    pub wanted: f64,
    /// In use between the last two samples.
    pub used: f64,
    /// Waited for; `None` where nobody counts.
    pub waiting: Option<f64>,
    /// Share of the time (0 to 1) in which a task waited for a CPU.
    pub stall: Option<f64>,
    /// Held when it was looked at.
    pub held: u32,
    /// Asked for beyond what the load shows.
    pub probe: f64,
    /// Why so many.
    pub why: Reason,
}

/// What it wants of a node's memory.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct NodeEstimateInfo {
    /// So much.
    #[schema(value_type = u64)]
    pub wanted: Bytes,
    /// What it cannot do without.
    #[schema(value_type = u64)]
    pub in_use: Bytes,
    /// Page cache worth keeping.
    #[schema(value_type = u64)]
    pub cache: Bytes,
    /// What its kernel keeps free, and no task can use.
    #[serde(default)]
    #[schema(value_type = u64)]
    pub kept: Bytes,
    /// Room that it should have.
    #[schema(value_type = u64)]
    pub headroom: Bytes,
    /// What it is expected to use more soon.
    #[schema(value_type = u64)]
    pub growth: Bytes,
    /// Bytes a second that it reads again soon after they were dropped.
    pub refaults: Option<f64>,
    /// Share of the time (0 to 1) in which a task waited for memory, on any node.
    pub stall: Option<f64>,
    /// Why so much.
    pub why: Reason,
}

/// A move of a decision.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct DecidedMove {
    /// Who gives.
    pub from: Holder,
    /// Who gets.
    pub to: Holder,
    /// What.
    pub what: Resources,
    /// Why: `guarantee`, `host`, `demand` or `locality`.
    pub why: Reason,
    /// The transfer that carries it out.
    pub transfer: Option<u64>,
    /// How that transfer went; `None` while nothing is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state: Option<TransferState>,
    /// Why it was not begun, or moved nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refusal: Option<Problem>,
}

/// What is not done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct RejectedInfo {
    /// Whom it concerns.
    #[schema(value_type = String)]
    pub vm: VmName,
    /// Cores that it would have more (or, negative, fewer).
    pub cores: i64,
    /// Memory that it would have more, in bytes by node.
    #[schema(value_type = BTreeMap<String, u64>)]
    pub memory: BTreeMap<NodeId, Bytes>,
    /// Why not.
    pub why: Reason,
}

/// A decision in a line.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct DecisionSummary {
    /// Its number.
    pub id: u64,
    /// When it was made, milliseconds since 1970.
    pub at_unix_ms: u64,
    /// What it was made for.
    pub cause: String,
    /// The mode in which it was made.
    pub mode: PolicyMode,
    /// How it stands.
    pub state: DecisionState,
    /// In one line, for people.
    pub summary: String,
    /// The VMs between which something moves.
    #[schema(value_type = Vec<String>)]
    pub vms: Vec<VmName>,
    /// The host's score that it should gain, in points.
    pub predicted: f64,
    /// The host's score that it gained.
    pub achieved: Option<f64>,
    /// When its outcome was known, milliseconds since 1970.
    pub ended_unix_ms: Option<u64>,
}

/// Which decisions: newest first.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct HistoryQuery {
    /// Those that concern this VM.
    #[param(value_type = Option<String>)]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vm: Option<VmName>,
    /// Those that were made then or later, milliseconds since 1970.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since_ms: Option<u64>,
    /// Those that were made before then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until_ms: Option<u64>,
    /// Those of this state.
    #[param(inline)]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state: Option<DecisionState>,
    /// Those before this one: the last of an answer gives the next page.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub before: Option<u64>,
    /// At most so many (100 unless said, 1000 at most).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<u32>,
}
