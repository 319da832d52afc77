//! Amounts of a machine: what someone holds, and what someone asks for.

use std::collections::BTreeMap;
use std::fmt;

use conuma_topology::{Bytes, CpuSet, NodeId};
use serde::{Deserialize, Serialize};

/// Cores and node memory. Cores are written as the CPUs of whole cores: a set that splits SMT
/// siblings never enters the ledger.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
pub struct Resources {
    /// CPUs of whole cores.
    #[serde(default)]
    pub cpus: CpuSet,
    /// Memory per node; nodes with nothing are left out.
    #[serde(default)]
    pub memory: BTreeMap<NodeId, Bytes>,
}

impl Resources {
    /// Only cores.
    pub fn cores(cpus: CpuSet) -> Self {
        Self { cpus, memory: BTreeMap::new() }
    }

    /// Only memory of one node.
    pub fn memory(node: NodeId, bytes: Bytes) -> Self {
        let mut resources = Self::default();
        resources.add_memory(node, bytes);
        resources
    }

    /// Memory on `node`.
    pub fn on(&self, node: NodeId) -> Bytes {
        self.memory.get(&node).copied().unwrap_or_default()
    }

    /// Memory on all nodes.
    pub fn total_memory(&self) -> Bytes {
        self.memory.values().copied().sum()
    }

    /// Whether this is nothing.
    pub fn is_empty(&self) -> bool {
        self.cpus.is_empty() && self.memory.is_empty()
    }

    /// Whether all of `other` is part of this.
    pub fn contains(&self, other: &Self) -> bool {
        other.cpus.is_subset(&self.cpus) && other.memory.iter().all(|(node, bytes)| self.on(*node) >= *bytes)
    }

    /// Puts `other` to this; its cores must not be here already.
    pub fn add(&mut self, other: &Self) {
        debug_assert!(self.cpus.is_disjoint(&other.cpus), "a core is added twice");
        self.cpus = self.cpus.union(&other.cpus);
        for (node, bytes) in &other.memory {
            self.add_memory(*node, *bytes);
        }
    }

    /// Takes `other` away if all of it is here; tells whether it was.
    pub fn take(&mut self, other: &Self) -> bool {
        let all = self.contains(other);
        if all {
            *self = self.saturating_sub(other);
        }
        all
    }

    /// What is left after taking away as much of `other` as is here.
    pub fn saturating_sub(&self, other: &Self) -> Self {
        let left = |(node, bytes): (&NodeId, &Bytes)| {
            let rest = bytes.saturating_sub(other.on(*node));
            (!rest.is_zero()).then_some((*node, rest))
        };
        Self { cpus: self.cpus.difference(&other.cpus), memory: self.memory.iter().filter_map(left).collect() }
    }

    /// What is part of both.
    pub fn common(&self, other: &Self) -> Self {
        let both = |(node, bytes): (&NodeId, &Bytes)| {
            let both = (*bytes).min(other.on(*node));
            (!both.is_zero()).then_some((*node, both))
        };
        Self { cpus: self.cpus.intersection(&other.cpus), memory: self.memory.iter().filter_map(both).collect() }
    }

    fn add_memory(&mut self, node: NodeId, bytes: Bytes) {
        if !bytes.is_zero() {
            *self.memory.entry(node).or_default() += bytes;
        }
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

/// What is asked for; `None` asks for nothing (in a limit: does not limit; in a target: leaves
/// as it is).
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
pub struct Demand {
    /// Cores.
    pub cores: Option<CoreDemand>,
    /// Memory.
    pub memory: Option<MemoryDemand>,
}

/// How many cores, or which.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CoreDemand {
    /// So many whole cores, whichever fit best.
    Count(usize),
    /// Exactly these CPUs; they must be whole cores.
    Cpus(CpuSet),
}

/// How much memory, or how much where.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MemoryDemand {
    /// So much in all, on whichever nodes.
    Total(Bytes),
    /// So much on each named node.
    PerNode(BTreeMap<NodeId, Bytes>),
}
