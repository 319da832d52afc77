//! What a VM was promised, and where its knobs stand.

use std::collections::{BTreeMap, BTreeSet};

use conuma_topology::{Bytes, CpuSet, NodeId, VmName};
use serde::{Deserialize, Serialize};

use crate::action::PluggedMemory;
use crate::holding::{Demand, Resources};

/// A VM as its owner describes it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct VmSpec {
    /// Its name.
    pub name: VmName,
    /// What it always gets back on request.
    #[serde(default)]
    pub guarantee: Demand,
    /// What it can hold at most.
    #[serde(default)]
    pub limit: Demand,
    /// What it holds at start; where nothing is said, its guarantee.
    #[serde(default)]
    pub initial: Demand,
    /// Boot memory per node: always held, never moves.
    #[serde(default)]
    pub boot: BTreeMap<NodeId, Bytes>,
    /// Its virtio-mem devices.
    #[serde(default)]
    pub devices: BTreeMap<NodeId, MemoryDevice>,
    /// No agent is expected in its guest: what it holds is enforced by the host alone, unless one appears.
    #[serde(default)]
    pub agentless: bool,
}

/// A virtio-mem device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct MemoryDevice {
    /// The most that can be plugged.
    pub max: Bytes,
    /// Sizes are multiples of this.
    pub block: Bytes,
}

/// How the VM stands with the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Life {
    /// Admitted: it holds its resources, QEMU is being started.
    Starting,
    /// QEMU runs.
    Running,
}

/// What of a VM transfers are turning.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Turning {
    /// Its cores.
    pub cores: bool,
    /// Its memory on these nodes.
    pub memory: BTreeSet<NodeId>,
}

/// What the API shows of a VM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmView {
    /// As its owner describes it.
    pub spec: VmSpec,
    /// How it stands with the host.
    pub life: Life,
    /// What it holds by the ledger.
    pub holding: Resources,
    /// Whether its agent is connected.
    pub agent: bool,
    /// Whether guest, gates and QEMU all follow the ledger.
    pub settled: bool,
    /// CPUs whose gate is open, or may be.
    pub open: CpuSet,
    /// What QEMU last said of its virtio-mem devices.
    pub plugged: BTreeMap<NodeId, PluggedMemory>,
    /// Whether memory can be taken from it; `false` after it was silent, until it answers again.
    pub lends_memory: bool,
    /// Whether it can be given memory; `false` while it has more in use than it holds.
    pub takes_memory: bool,
}
