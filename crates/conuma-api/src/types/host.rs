//! The host and who holds what of it.

use conuma_topology::{Bytes, CoreId, CpuSet, Machine, NodeId};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::resources::{Holder, LoanInfo, Resources};

/// The host.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct HostInfo {
    /// Version of the daemon.
    pub version: String,
    /// When the daemon started, milliseconds since 1970.
    pub started_unix_ms: u64,
    /// The machine, in the form that `conuma topology --json` prints.
    #[schema(value_type = Object)]
    pub machine: Machine,
    /// What the host keeps for itself.
    pub reserve: Resources,
    /// Who holds what.
    pub ledger: LedgerInfo,
}

/// Who holds what: every core and every byte once.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
pub struct LedgerInfo {
    /// By holder; holders of nothing are left out.
    pub accounts: Vec<Account>,
    /// By core, ascending.
    pub cores: Vec<CoreShare>,
    /// By node with memory, ascending.
    pub nodes: Vec<NodeShare>,
    /// What VMs lent each other.
    pub loans: Vec<LoanInfo>,
}

/// What one holder holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Account {
    /// Who.
    pub holder: Holder,
    /// What.
    pub holds: Resources,
}

/// Who holds a core.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct CoreShare {
    /// The core.
    #[schema(value_type = u32)]
    pub core: CoreId,
    /// Its CPUs.
    #[schema(value_type = String)]
    pub cpus: CpuSet,
    /// Its node, where known.
    #[schema(value_type = Option<u32>)]
    pub node: Option<NodeId>,
    /// Who.
    pub holder: Holder,
}

/// Who holds a node's memory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct NodeShare {
    /// The node.
    #[schema(value_type = u32)]
    pub node: NodeId,
    /// Its capacity in bytes.
    #[schema(value_type = u64)]
    pub capacity: Bytes,
    /// Who holds how much; the sum is the capacity.
    pub shares: Vec<Share>,
}

/// A part of a node's memory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Share {
    /// Who.
    pub holder: Holder,
    /// Bytes.
    #[schema(value_type = u64)]
    pub bytes: Bytes,
}

/// The invariants, held against what is in force on the host at this moment.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
pub struct CheckReport {
    /// Whether all of them hold.
    pub ok: bool,
    /// Those that do not.
    pub violations: Vec<ViolationInfo>,
    /// What could not be looked at, and why; nothing is claimed about it.
    pub unseen: Vec<String>,
}

/// An invariant that does not hold.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ViolationInfo {
    /// The kind, for programs.
    pub code: String,
    /// What is wrong.
    pub message: String,
}
