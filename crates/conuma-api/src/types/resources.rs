//! Amounts of the host, and who has them.

use std::collections::BTreeMap;
use std::fmt;

use conuma_topology::{Bytes, CpuSet, NodeId, VmName};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Cores and node memory.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
pub struct Resources {
    /// CPUs of whole cores, as a list such as `0-3,8`.
    #[schema(value_type = String, example = "4-7")]
    #[serde(default)]
    pub cpus: CpuSet,
    /// Bytes by node.
    #[schema(value_type = BTreeMap<String, u64>)]
    #[serde(default)]
    pub memory: BTreeMap<NodeId, Bytes>,
}

impl Resources {
    /// Whether this is nothing.
    pub fn is_empty(&self) -> bool {
        self.cpus.is_empty() && self.memory.values().all(|bytes| bytes.is_zero())
    }

    /// Memory of all nodes.
    pub fn total_memory(&self) -> Bytes {
        self.memory.values().copied().sum()
    }
}

/// `CPUs 4-7, node1=256M`, or `nothing`.
impl fmt::Display for Resources {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut parts = Vec::new();
        if !self.cpus.is_empty() {
            parts.push(format!("CPUs {}", self.cpus));
        }
        parts.extend(self.memory.iter().map(|(node, bytes)| format!("node{node}={bytes}")));
        f.pad(if parts.is_empty() { "nothing".into() } else { parts.join(", ") }.as_str())
    }
}

/// What is asked for, or promised. What is not named is nothing in a guarantee, no bound in a limit,
/// and left as it is in a target.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
pub struct Demand {
    /// Cores.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cores: Option<CoreDemand>,
    /// Memory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory: Option<MemoryDemand>,
}

/// How many cores, or which.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum CoreDemand {
    /// So many whole cores, whichever fit best.
    Count(u32),
    /// Exactly these CPUs: whole cores.
    #[schema(value_type = String)]
    Cpus(CpuSet),
}

/// How much memory, or how much where.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum MemoryDemand {
    /// So many bytes, on whichever nodes.
    #[schema(value_type = u64)]
    Total(Bytes),
    /// So many bytes on each named node.
    #[schema(value_type = BTreeMap<String, u64>)]
    PerNode(BTreeMap<NodeId, Bytes>),
}

/// Who can hold something.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Holder {
    /// Nobody: free for anyone.
    Pool,
    /// The host itself.
    Reserve,
    /// A VM.
    #[schema(value_type = String)]
    Vm(VmName),
    /// Nobody: on its way in the transfer of this number.
    Transit(u64),
}

impl Holder {
    /// The VM that it is.
    pub fn vm(&self) -> Option<&VmName> {
        match self {
            Self::Vm(vm) => Some(vm),
            Self::Pool | Self::Reserve | Self::Transit(_) => None,
        }
    }
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pool => f.pad("free"),
            Self::Reserve => f.pad("host"),
            Self::Vm(vm) => vm.fmt(f),
            Self::Transit(id) => f.pad(&format!("transfer {id}")),
        }
    }
}

/// What one VM gave to another and can have back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct LoanInfo {
    /// Who gets it back.
    #[schema(value_type = String)]
    pub lender: VmName,
    /// Who owes it: a VM, or the pool where a borrower ended or gave it up.
    pub borrower: Holder,
    /// What.
    pub what: Resources,
}
