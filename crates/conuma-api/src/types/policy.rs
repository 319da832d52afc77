//! How the host is to be divided, and who decides.

use std::collections::BTreeMap;

use conuma_topology::{Bytes, NodeId, VmName};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::decision::{EstimateInfo, RejectedInfo, VmOutlook};
use super::resources::Demand;

/// Whether decisions are made, and whether they are carried out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum PolicyMode {
    /// Nothing is decided.
    Off,
    /// Decisions are made and shown; nothing moves.
    Advise,
    /// Decisions are carried out.
    Auto,
    /// A mode that this client does not know.
    #[serde(other)]
    Unknown,
}

impl PolicyMode {
    /// Its name, as on the wire and in policy files.
    pub fn name(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::Advise => "advise",
            Self::Auto => "auto",
            Self::Unknown => "unknown",
        }
    }
}

impl std::fmt::Display for PolicyMode {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(self.name())
    }
}

/// The policy in force.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PolicyInfo {
    /// Whether decisions are made and carried out. May differ from what the text says, if it was switched since.
    pub mode: PolicyMode,
    /// The policy file in force; empty if none was applied.
    pub text: String,
    /// Where it came from: the path given to `--policy`, or `applied`; `None` if there is none.
    pub source: Option<String>,
    /// When it was applied, milliseconds since 1970; `None` if there is none.
    pub applied_at: Option<u64>,
    /// The VMs that are left as people set them, by name.
    pub pins: Vec<PinInfo>,
    /// What the host is short of besides its reserve, in bytes by node; empty if of nothing.
    #[schema(value_type = BTreeMap<String, u64>)]
    pub host_need: BTreeMap<NodeId, Bytes>,
    /// Cores that the host is short of, besides those that are reserved.
    #[serde(default)]
    pub host_need_cores: u32,
}

/// The text of a policy file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PolicyText {
    /// The file (TOML).
    pub text: String,
    /// What to call it in messages, as the path that it was read from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
}

/// Whether a policy could be applied, and what would change.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
pub struct PolicyCheck {
    /// Whether it can be applied: there are no problems and no concerns that stand in the way.
    pub ok: bool,
    /// What is wrong with the text, all of it at once.
    pub problems: Vec<PolicyProblem>,
    /// What cannot hold on this host with the VMs that run, or will not do what it seems to.
    pub concerns: Vec<String>,
    /// How it differs from the policy in force, in the file's own words.
    pub changes: Vec<String>,
}

/// Something wrong in a policy file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PolicyProblem {
    /// Its line, from 1; 0 if it is about no line.
    pub line: u32,
    /// Its column, from 1; 0 if it is about no line.
    pub column: u32,
    /// What is wrong.
    pub message: String,
    /// What can be done about it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
    /// The line itself; empty if it is about no line.
    pub excerpt: String,
}

/// A policy was applied.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PolicyApplied {
    /// What changed, in the file's own words.
    pub changes: Vec<String>,
    /// What is in force now.
    pub policy: PolicyInfo,
}

/// Which mode.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ModeOrder {
    /// The mode from now on.
    pub mode: PolicyMode,
}

/// A VM that is left as people set it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PinInfo {
    /// The VM.
    #[schema(value_type = String)]
    pub vm: VmName,
    /// Until when, milliseconds since 1970; `None`: until it is unpinned.
    pub until_unix_ms: Option<u64>,
    /// What pinned it: `pin`, `lend`, `set` or `recall`.
    pub by: String,
    /// The transfer that pinned it, if one did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub transfer: Option<u64>,
}

/// How long a VM is pinned: until a time, for a time, or (if neither is named) until it is unpinned.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
pub struct PinOrder {
    /// Until then, milliseconds since 1970.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until_unix_ms: Option<u64>,
    /// For so many milliseconds from now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub for_ms: Option<u64>,
}

/// A VM was pinned or unpinned.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PinAnswer {
    /// Its pin now; `None` if it has none.
    pub pin: Option<PinInfo>,
    /// Whether it was pinned before.
    pub was_pinned: bool,
}

/// Who comes first, above guarantees.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum PriorityInfo {
    /// Gets what the others leave.
    Low,
    /// Usual.
    Normal,
    /// Gets what it wants before the others.
    High,
    /// One that this client does not know.
    #[serde(other)]
    Unknown,
}

/// What holds for a VM now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct TermsInfo {
    /// Its share of what is left after guarantees; 100 is usual.
    pub weight: u32,
    /// What it always gets back.
    pub guarantee: Demand,
    /// What it can hold at most.
    pub limit: Demand,
    /// Who comes first.
    pub priority: PriorityInfo,
    /// Whether the policy leaves it alone.
    pub hands_off: bool,
    /// Whether the policy file says anything of it; otherwise all comes from its VM file.
    pub in_policy: bool,
    /// The time windows that are open, in which some of it holds: `mon,tue 08:00-18:00`.
    pub windows: Vec<String>,
}

/// Why a VM holds what it holds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct VmWhy {
    /// The VM.
    #[schema(value_type = String)]
    pub vm: VmName,
    /// Whether decisions are made and carried out.
    pub mode: PolicyMode,
    /// What holds for it now.
    pub terms: TermsInfo,
    /// Its pin, if it has one.
    pub pin: Option<PinInfo>,
    /// What it is believed to want, and from what that was found; `None` if nothing was learnt for a while.
    pub estimate: Option<EstimateInfo>,
    /// What the last decision says of it; made for this question in mode `off`.
    pub outlook: Option<VmOutlook>,
    /// What that decision would have liked to do for it but does not, and why.
    pub rejected: Vec<RejectedInfo>,
    /// When that decision was made, milliseconds since 1970.
    pub decided_unix_ms: Option<u64>,
    /// The last decision in the history that moved something of it.
    pub last_moved_by: Option<u64>,
}
