//! What the engine asks of the outside, and what the outside tells it.
//!
//! # The executor's contract
//! 1. **Journal first.** Take the actions of one [`crate::Engine::next_actions`], write
//!    [`crate::Engine::state`] to the journal, then carry them out.
//! 2. **One actuator per VM, in order.** Actions of one VM and [`Lane`] begin in ascending [`ActionId`]; one
//!    older than one already begun is dropped. In the lanes of QEMU and the gates each ends before the next
//!    begins. An agent is asked in order too, but answers side by side: cores that move do not wait for
//!    a guest that makes room.
//! 3. **Decide nothing.** Each action says all; the executor translates host ids to the guest's and
//!    reports what came of it, once, as [`Event::Done`]. What is not known by the deadline is
//!    [`Failure::TimedOut`]; the engine gives up by itself a moment later and ignores the rest, so a lost
//!    or doubled report does no harm.
//! 4. **Say the truth or nothing.** Success means that the effect is in force: the cgroup file was
//!    read back, QEMU answered with its size.
//! 5. An action that changes something may take effect although its report was lost. The engine counts
//!    on that and books the larger of what was and what was asked for.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use conuma_topology::{Bytes, CpuSet, NodeId, VmName};
use serde::{Deserialize, Serialize};

/// Names an action; grows with every decision, so it also is the generation that fences agents and
/// actuators against older decisions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ActionId(pub u64);

/// Something to do, exactly.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Action {
    /// Comes back in [`Event::Done`]. The number is the decision's generation.
    pub id: ActionId,
    /// Whose actuator does it.
    pub vm: VmName,
    /// When an answer is of no more use, in engine time.
    pub deadline: Duration,
    /// What to do.
    pub kind: ActionKind,
}

/// What to do. CPUs and nodes are the host's.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ActionKind {
    /// Agent: use exactly these CPUs, leave all others idle. Answer: [`Outcome::Applied`].
    AgentApply {
        /// What the VM may use from now on.
        cpus: CpuSet,
    },
    /// Agent: make so much of the node free that it can be unplugged. Answer: [`Outcome::Prepared`].
    PrepareMemory {
        /// The node.
        node: NodeId,
        /// How much.
        bytes: Bytes,
    },
    /// Agent: wait until the node's hotplugged memory that is online is at least so much. Answer:
    /// [`Outcome::Confirmed`].
    ConfirmMemory {
        /// The node.
        node: NodeId,
        /// Plugged memory, boot memory not counted.
        plugged: Bytes,
    },
    /// QEMU: set the virtio-mem device's `requested-size`, even if it is that already (this
    /// restarts an unplug that is stuck). Answer: [`Outcome::Memory`], read after setting.
    SetRequestedSize {
        /// The device's node.
        node: NodeId,
        /// The size, boot memory not counted.
        bytes: Bytes,
    },
    /// QEMU: read the virtio-mem device's sizes. Answer: [`Outcome::Memory`].
    PollSize {
        /// The device's node.
        node: NodeId,
    },
    /// Host: brake the vCPU threads, and see whether their run time stands still. Answer:
    /// [`Outcome::GateClosed`].
    CloseGate {
        /// The vCPUs' CPUs.
        cpus: CpuSet,
        /// How firmly.
        grip: Grip,
        /// How long to watch, at the least; zero if it does not matter whether they still run.
        watch: Duration,
    },
    /// Host: take the brake off. Answer: [`Outcome::GateOpened`].
    OpenGate {
        /// The vCPUs' CPUs.
        cpus: CpuSet,
    },
}

/// Who carries out an action.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Lane {
    /// The guest's agent.
    Agent,
    /// QEMU, over QMP.
    Hypervisor,
    /// The host's cgroups and run times.
    Gate,
}

/// How firmly a gate is closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Grip {
    /// `cpu.idle`: for a guest that has left the CPU; stray interrupts still find a moment.
    Soft,
    /// Also `cpu.max` at its least: for a guest that has not. The host may be softer while the guest boots or its memory moves.
    Firm,
    /// The same, whatever the guest is about: its CPU is offline, so that it would run on another's.
    Stopped,
}

/// What came of an action.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// To `AgentApply`: in force, except for what is refused.
    Applied {
        /// CPUs that stay in use though they should not, or cannot be used though they may.
        refused: Vec<RefusedCpus>,
    },
    /// To `PrepareMemory`.
    Prepared {
        /// Whether there is as much room on the node as was asked.
        enough: bool,
        /// What of all its memory the guest can do without.
        spare: Bytes,
    },
    /// To `ConfirmMemory`.
    Confirmed {
        /// Whether it is all online on the right node.
        satisfied: bool,
    },
    /// To `SetRequestedSize` and `PollSize`.
    Memory(PluggedMemory),
    /// To `CloseGate`: in force.
    GateClosed {
        /// CPUs on which the VM ran on while it was watched.
        busy: CpuSet,
    },
    /// To `OpenGate`: in force.
    GateOpened,
    /// It was not done, or it is not known.
    Failed(Failure),
}

/// CPUs that a guest refused to leave or to use.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct RefusedCpus {
    /// The CPUs.
    pub cpus: CpuSet,
    /// The guest's reason, for people.
    pub why: String,
}

/// Why an action was not done.
#[derive(Debug, Clone, PartialEq, Eq, Hash, thiserror::Error, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Failure {
    /// There is no connection to the agent or to QEMU.
    #[error("not connected")]
    Unreachable,
    /// No answer in time; it may or may not have been done.
    #[error("no answer in time")]
    TimedOut,
    /// The other side says no, as a whole.
    #[error("refused: {0}")]
    Refused(String),
    /// It was tried and failed.
    #[error("failed: {0}")]
    Failed(String),
}

/// Sizes of a virtio-mem device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
pub struct PluggedMemory {
    /// What QEMU asks the guest to reach.
    pub requested: Bytes,
    /// What the guest has plugged.
    pub size: Bytes,
}

/// Something that happened outside.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Event {
    /// An action was answered.
    Done {
        /// Which.
        id: ActionId,
        /// What came of it.
        outcome: Outcome,
    },
    /// QEMU of a VM that was admitted by [`crate::Engine::start`] runs.
    VmStarted {
        /// The VM.
        vm: VmName,
        /// What is in force for it.
        seen: VmSeen,
    },
    /// QEMU of this VM is dead, verified (or never came to life).
    VmGone {
        /// The VM.
        vm: VmName,
    },
    /// The guest was reset: its agent forgot everything, its plugged memory is gone.
    VmReset {
        /// The VM.
        vm: VmName,
    },
    /// An agent is there.
    AgentConnected {
        /// Its VM.
        vm: VmName,
        /// The newest generation it has seen since the guest booted.
        newest: u64,
        /// The CPUs it holds the guest to, if it was told any since the guest booted.
        holding: Option<CpuSet>,
    },
    /// The connection to an agent ended.
    AgentLost {
        /// Its VM.
        vm: VmName,
    },
    /// QEMU says that some virtio-mem device of a VM has changed its size.
    SizeChanged {
        /// The VM.
        vm: VmName,
    },
    /// These CPUs of the host, and no others, are offline.
    HostCpus {
        /// The CPUs.
        offline: CpuSet,
    },
    /// The host has counted the pages of a VM.
    MemoryAudited {
        /// The VM.
        vm: VmName,
        /// Whether there are more on some node than it holds.
        trespasses: bool,
    },
    /// The hypervisor neither plugs nor unplugs memory of a VM, or does so again.
    MemoryFixed {
        /// The VM.
        vm: VmName,
        /// Why, if so.
        fixed: Option<Fixed>,
    },
    /// A guest's own word on its free memory: sizes the steps in which it grows.
    GuestMemory {
        /// The VM.
        vm: VmName,
        /// Free memory per node.
        free: BTreeMap<NodeId, Bytes>,
        /// How old it may be: it was asked for so long ago. Zero where it came unasked.
        age: Duration,
    },
}

/// Why the memory of a VM stays as it is, whatever its guest would do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Fixed {
    /// It is being migrated live.
    Migrates,
    /// It was migrated away.
    Migrated,
}

impl std::fmt::Display for Fixed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Migrates => "is being migrated live: its memory stays as it is until that ends",
            Self::Migrated => "was migrated away: its guest runs here no more, and its memory stays with it",
        })
    }
}

/// What is in force for a VM, as found on the host. The truth that the ledger must never be below.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct VmSeen {
    /// CPUs whose gate is open.
    pub open: CpuSet,
    /// CPUs on which it runs although their gate is closed softly.
    pub runs_on: CpuSet,
    /// Its virtio-mem devices.
    pub plugged: BTreeMap<NodeId, PluggedMemory>,
}

impl ActionKind {
    /// Who carries it out.
    pub fn lane(&self) -> Lane {
        match self {
            Self::AgentApply { .. } | Self::PrepareMemory { .. } | Self::ConfirmMemory { .. } => Lane::Agent,
            Self::SetRequestedSize { .. } | Self::PollSize { .. } => Lane::Hypervisor,
            Self::CloseGate { .. } | Self::OpenGate { .. } => Lane::Gate,
        }
    }
}

impl PluggedMemory {
    /// What the guest could reach without asking again.
    pub fn bound(self) -> Bytes {
        self.requested.max(self.size)
    }
}

impl fmt::Display for ActionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}
