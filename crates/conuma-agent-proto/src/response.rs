//! What an agent answers.

use std::time::Duration;

use conuma_topology::{Bytes, GuestCpuId, GuestCpuSet, GuestNodeId};
use serde::{Deserialize, Serialize};

use crate::pressure::{Pushed, Trigger};
use crate::report::Report;
use crate::request::{Generation, RequestId, Versions};

/// The answer to one request, or what is sent unasked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Response {
    /// The request's id; [`RequestId::PUSHED`] if, and only if, the body is [`Reply::Pushed`].
    pub id: RequestId,
    /// What came of it.
    pub body: Result<Reply, AgentError>,
}

/// A successful answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reply {
    /// To `Hello`.
    Hello(GuestFacts),
    /// To `ApplyHolding`.
    Holding(HoldingOutcome),
    /// To `PrepareMemory`.
    Prepared(Prepared),
    /// To `ConfirmMemory`.
    Memory(MemoryState),
    /// To `Report`.
    Report(Report),
    /// To `Watch`: the triggers that are set. The guest's kernel may take other windows only; then the stall is the same
    /// share of its window as was asked for.
    Watching {
        /// For CPUs; `None` if it was not asked for, or the kernel does not take it.
        cpu: Option<Trigger>,
        /// For memory.
        memory: Option<Trigger>,
    },
    /// To nothing: a trigger has fired.
    Pushed(Pushed),
}

/// Why an agent did not do what was asked, at all.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
pub enum AgentError {
    /// No common version.
    #[error("the agent speaks protocol versions {0} only")]
    Version(Versions),
    /// The request belongs to an older decision than one already seen.
    #[error("stale request: the agent has already seen generation {newest}")]
    Stale {
        /// The newest generation the agent has seen.
        newest: Generation,
    },
    /// The deadline passed before anything could be said.
    #[error("the agent did not finish within the deadline: {0}")]
    Deadline(String),
    /// The request makes no sense to this agent.
    #[error("the agent does not accept the request: {0}")]
    BadRequest(String),
    /// The guest cannot do this (no cgroup v2, no such node, no pressure stall information).
    #[error("the guest cannot do this: {0}")]
    Unsupported(String),
    /// It was tried and failed as a whole.
    #[error("the agent failed: {0}")]
    Failed(String),
}

/// How the guest's cgroups are mounted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CgroupMode {
    /// cgroup v2 with the cpuset controller: holdings can be applied.
    Unified,
    /// cgroup v2 is there, but the cpuset controller belongs to v1 or is missing.
    Hybrid,
    /// No cgroup v2.
    Absent,
}

/// What the guest's kernel does with memory that appears.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum AutoOnline {
    /// The kernel has no memory hotplug.
    Absent,
    /// Leaves it offline: memory given to this guest does not arrive.
    Offline,
    /// Onlines it, mostly in kernel zones: it may never come back.
    Online,
    /// Onlines it in kernel zones: it may never come back.
    OnlineKernel,
    /// Onlines it in the movable zone, or by the kernel's `auto-movable` policy: it can be taken
    /// again.
    OnlineMovable,
}

/// What an agent says of its guest once per connection.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuestFacts {
    /// The protocol version to use on this connection.
    pub version: u32,
    /// Version of the agent's program.
    pub agent_version: String,
    /// `uname -r`.
    pub kernel_release: String,
    /// The kernel's boot id; a new one means that the guest was restarted.
    pub boot_id: String,
    /// Online CPUs.
    pub cpus_online: GuestCpuSet,
    /// Online nodes, ascending.
    pub nodes: Vec<GuestNodeFacts>,
    /// Whether holdings can be applied.
    pub cgroup_mode: CgroupMode,
    /// Whether the kernel zeroes pages when it allocates them, which makes unplugging slower;
    /// `None` if it does not say.
    pub init_on_alloc: Option<bool>,
    /// What happens to memory that appears.
    pub auto_online: AutoOnline,
    /// Size of the kernel's hotplug memory blocks; `None` without memory hotplug.
    pub memory_block: Option<Bytes>,
    /// Whether the kernel has pressure stall information.
    pub psi: bool,
    /// The newest generation the agent has seen, since the guest booted.
    pub newest: Generation,
    /// The CPUs of the last holding applied since the guest booted, if any.
    pub holding: Option<GuestCpuSet>,
}

/// A node of the guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuestNodeFacts {
    /// Its number.
    pub node: GuestNodeId,
    /// Its online CPUs.
    pub cpus: GuestCpuSet,
    /// `MemTotal`: zero for a node without memory.
    pub memory: Bytes,
}

/// What became of a holding. Every online CPU is in exactly one of `held`, `quiesced`, `refused`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct HoldingOutcome {
    /// Asked to use, and in use.
    pub held: GuestCpuSet,
    /// Not to be used, and verified: no user task runs there or is allowed there.
    pub quiesced: GuestCpuSet,
    /// What could not be done, and why: CPUs that stay in use though they should not, or that
    /// cannot be used though they should.
    pub refused: Vec<Refusal>,
    /// What may still run on quiesced CPUs.
    pub leftovers: Leftovers,
    /// How long each stage took, in the order they ran.
    pub timings: Vec<StageTime>,
}

/// CPUs for which a request was refused, for one reason.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refusal {
    /// The CPUs.
    pub cpus: GuestCpuSet,
    /// The reason.
    pub reason: RefusalReason,
}

/// Why.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
pub enum RefusalReason {
    /// A cgroup of the guest owns the CPUs exclusively (partition or `cpuset.cpus.exclusive`).
    #[error("cgroup {cgroup} owns them exclusively")]
    Exclusive {
        /// Its path below the cgroup root.
        cgroup: String,
    },
    /// The guest has no such CPU, or it is offline.
    #[error("not online in the guest")]
    NotOnline,
    /// The kernel refused a write.
    #[error("cgroup {cgroup} could not be changed: {error}")]
    Cgroup {
        /// The cgroup's path below the cgroup root.
        cgroup: String,
        /// The kernel's answer.
        error: String,
    },
    /// User tasks were still there, or still allowed there, when the deadline came.
    #[error("still in use: {tasks}")]
    InUse {
        /// Some of them, for people.
        tasks: String,
    },
    /// A newer agent's reason.
    #[error("{0}")]
    Other(String),
}

/// What may still run on CPUs that are not held. All of it is kernel work: the gate keeps it short.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Leftovers {
    /// Tasks other than per-CPU kernel threads; at most [`crate::MAX_LEFTOVERS`].
    pub tasks: Vec<Leftover>,
    /// Further tasks like them, not listed.
    pub more_tasks: u32,
    /// Kernel threads that the kernel binds to CPUs (`PF_NO_SETAFFINITY`), and which are mostly asleep.
    pub bound_kernel_threads: u32,
    /// Interrupts that stay because the kernel manages them (multi-queue devices).
    pub managed_interrupts: u32,
}

/// A task that may still run where it should not.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Leftover {
    /// Thread id.
    pub tid: u32,
    /// `comm`.
    pub name: String,
    /// The CPU it last ran on.
    pub cpu: GuestCpuId,
    /// User or kernel.
    pub kind: TaskKind,
}

/// User or kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TaskKind {
    /// Has an address space of its own.
    User,
    /// A kernel thread.
    Kernel,
}

/// What an agent's work consists of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Stage {
    /// Writing member cpusets.
    Cgroups,
    /// Moving stray tasks and setting or restoring affinities.
    Tasks,
    /// Moving interrupts.
    Interrupts,
    /// Moving unbound kernel work.
    Workqueues,
    /// Checking the result.
    Verify,
    /// Moving pages to other nodes.
    Migrate,
    /// Dropping clean cache.
    Reclaim,
    /// Waiting for the kernel to bring memory online.
    Wait,
}

/// How long a stage took (wire precision: microseconds).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct StageTime {
    /// Which.
    pub stage: Stage,
    /// How long.
    pub took: Duration,
}

/// What making room on a node achieved.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Prepared {
    /// The node.
    pub node: GuestNodeId,
    /// Free on it before.
    pub free_before: Bytes,
    /// Free on it now.
    pub free_after: Bytes,
    /// What moving pages to other nodes freed.
    pub migrated: Bytes,
    /// What dropping clean cache freed.
    pub reclaimed: Bytes,
    /// Whether so much is free as was asked.
    pub enough: bool,
    /// What of all its memory the guest can do without; of an agent that does not tell, what is free on the node.
    pub spare: Bytes,
    /// How long each stage took.
    pub timings: Vec<StageTime>,
}

/// The memory of a node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryState {
    /// The node.
    pub node: GuestNodeId,
    /// `MemTotal` of the node: what is usable.
    pub total: Bytes,
    /// Free on the node.
    pub free: Bytes,
    /// The node's memory blocks that are online.
    pub online: Bytes,
    /// Of these, what is in the movable zone.
    pub movable: Bytes,
    /// The node's memory blocks that are not online: memory that was given but cannot be used.
    pub offline: Bytes,
    /// Whether what was asked for is online, on this node and usable.
    pub satisfied: bool,
    /// How long the agent waited (wire precision: microseconds).
    pub waited: Duration,
}
