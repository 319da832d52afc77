//! Load and memory as the guest sees them.

use std::time::Duration;

use conuma_topology::{Bytes, GuestCpuId, GuestNodeId};
use serde::{Deserialize, Serialize};

/// Load and memory of a guest at one instant. Counters grow from boot; rates are for the reader to
/// compute from two reports of the same boot.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Report {
    /// Time since the guest booted (wire precision: microseconds).
    pub uptime: Duration,
    /// Online CPUs, ascending.
    pub cpus: Vec<CpuReport>,
    /// Online nodes, ascending.
    pub nodes: Vec<NodeReport>,
    /// Tasks that run or want to run now.
    pub runnable: u32,
    /// Tasks that wait for a disk now.
    pub blocked: u32,
    /// Share of time in which tasks waited for a CPU; `None` without PSI.
    pub cpu_pressure: Option<Pressure>,
    /// Share of time in which tasks waited for memory.
    pub memory_pressure: Option<Pressure>,
    /// Share of time in which tasks waited for I/O.
    pub io_pressure: Option<Pressure>,
}

/// One CPU. Times are counters since boot (wire precision: microseconds; the kernel's is 10 ms
/// for all but the last two).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CpuReport {
    /// The CPU.
    pub cpu: GuestCpuId,
    /// In user mode, including low priority and nested guests.
    pub user: Duration,
    /// In the kernel, without interrupts.
    pub system: Duration,
    /// In interrupts.
    pub interrupts: Duration,
    /// Idle, including waiting for I/O.
    pub idle: Duration,
    /// Wanted by the guest but used by the host.
    pub steal: Duration,
    /// Time in which tasks ran; `None` if the kernel does not count it.
    pub ran: Option<Duration>,
    /// Summed time tasks waited in this CPU's run queue: grows by n seconds a second while n
    /// tasks wait. `None` if the kernel does not count it.
    pub waited: Option<Duration>,
}

/// One node's memory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeReport {
    /// The node.
    pub node: GuestNodeId,
    /// `MemTotal`.
    pub total: Bytes,
    /// `MemFree`.
    pub free: Bytes,
    /// What could be free without swapping: free, page cache that is not shared memory, and
    /// reclaimable kernel objects.
    pub available: Bytes,
    /// Page cache, shared memory included.
    pub file: Bytes,
    /// Anonymous pages.
    pub anonymous: Bytes,
    /// Managed by the node's movable zone: can be taken again.
    pub movable: Bytes,
    /// In huge page pools.
    pub huge_total: Bytes,
    /// In huge page pools and unused.
    pub huge_free: Bytes,
    /// Hotplug memory blocks that are online; zero without memory hotplug.
    pub blocks_online: Bytes,
    /// Hotplug memory blocks that are not.
    pub blocks_offline: Bytes,
    /// Pages, of the guest's base size, that were read again soon after they had been dropped or swapped out
    /// (`workingset_refault_*`); a counter since boot: what grows is part of the working set and had no room. `None` if the
    /// kernel does not count it, or the agent does not tell.
    pub refaults: Option<u64>,
    /// Page cache that was used more than once (`Active(file)`, no shared memory): what of the cache likely is part of the
    /// working set. `None` of an agent that does not tell.
    pub active_file: Option<Bytes>,
    /// Shared memory and tmpfs (`Shmem`): part of `file`, but cannot be dropped. `None` of an agent that does not tell.
    pub shmem: Option<Bytes>,
    /// Of `free`, what the kernel keeps from tasks: high watermarks, and what lower zones keep from those who could use higher ones. Before
    /// it gives that, it takes memory of another node, or reclaims. `None` of an agent that does not tell.
    pub kept: Option<Bytes>,
}

/// Pressure stall information of one resource.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Pressure {
    /// At least one task waited.
    pub some: PressureLine,
    /// All tasks waited; `None` where the kernel has no such line (CPU, before 5.13).
    pub full: Option<PressureLine>,
}

/// One line of pressure stall information.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct PressureLine {
    /// Share of the last 10 s, in hundredths of a percent (0 to 10,000).
    pub avg10: u32,
    /// Share of the last 60 s, in hundredths of a percent.
    pub avg60: u32,
    /// Time stalled since boot (wire precision: microseconds).
    pub total: Duration,
}
