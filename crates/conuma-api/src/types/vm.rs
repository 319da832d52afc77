//! Virtual machines.

use std::collections::BTreeMap;

use conuma_topology::{Bytes, CpuId, NodeId, VcpuId, VmName};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::resources::{Demand, LoanInfo, Resources};

/// How a VM stands with the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum VmState {
    /// It holds its resources; QEMU is being started.
    Starting,
    /// QEMU runs.
    Running,
    /// Someone paused the guest.
    Paused,
    /// The guest is being migrated live: its memory stays as it is meanwhile.
    Migrating,
    /// The guest was migrated away: it runs elsewhere, and the VM keeps its memory here until it is stopped.
    Migrated,
    /// The guest panicked or had an internal error, and cannot go on.
    Halted,
    /// It was told to end.
    Stopping,
    /// A state that this client does not know.
    #[serde(other)]
    Unknown,
}

/// How the agent in the guest stands with the daemon.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum AgentState {
    /// It answers.
    Connected,
    /// The daemon has not reached it since the guest started.
    Awaited,
    /// It was connected and is not any more.
    Lost,
    /// There is none, and is not meant to be: the host alone enforces what the VM holds.
    None,
    /// A state that this client does not know.
    #[serde(other)]
    Unknown,
}

/// A VM in a line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct VmSummary {
    /// Its name.
    #[schema(value_type = String)]
    pub name: VmName,
    /// How it stands with the host.
    pub state: VmState,
    /// How its agent stands with the daemon.
    pub agent: AgentState,
    /// What it holds by the ledger.
    pub holding: Resources,
    /// Whole cores it holds.
    pub cores: u32,
    /// What it always gets back.
    pub guarantee: Demand,
    /// Whether guest, gates and QEMU all follow the ledger.
    pub settled: bool,
    /// Whether memory can move from and to it; `false` after it did not answer.
    pub lends_memory: bool,
    /// Whether it can be given memory; `false` also while it uses more than it holds.
    pub takes_memory: bool,
}

/// A VM in full.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct VmDetail {
    /// In a line.
    pub summary: VmSummary,
    /// What it can hold at most.
    pub limit: Demand,
    /// Its share of what is left after guarantees, as its file says; a policy may say otherwise.
    pub weight: u32,
    /// What it lent and borrowed.
    pub loans: Vec<LoanInfo>,
    /// Its process; `None` while it has none.
    pub process: Option<ProcessInfo>,
    /// Its virtual CPUs, ascending.
    pub vcpus: Vec<VcpuInfo>,
    /// Its memory by host node, ascending.
    pub memory: Vec<VmMemory>,
    /// Its agent.
    pub agent: AgentInfo,
    /// What its guest says of its load: its own claim.
    pub report: Option<GuestReport>,
}

/// The process of a VM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ProcessInfo {
    /// Process id of QEMU.
    pub pid: u32,
    /// vsock context id of the guest, if it has one.
    pub cid: Option<u32>,
}

/// The host's brake on a virtual CPU.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum GateState {
    /// Runs as it likes.
    Open,
    /// Runs only when its CPU has nothing better to do.
    Soft,
    /// Besides, it may run for a small part of the time only.
    Firm,
    /// A state that this client does not know.
    #[serde(other)]
    Unknown,
}

/// A virtual CPU.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct VcpuInfo {
    /// As QEMU counts.
    #[schema(value_type = u32)]
    pub vcpu: VcpuId,
    /// The host CPU it is bound to.
    #[schema(value_type = u32)]
    pub cpu: CpuId,
    /// The host node of that CPU, where known.
    #[schema(value_type = Option<u32>)]
    pub node: Option<NodeId>,
    /// Whether the VM holds the CPU.
    pub held: bool,
    /// The brake.
    pub gate: GateState,
    /// How long its thread has run since it was made, in microseconds; `None` if not known.
    pub run_time_us: Option<u64>,
}

/// A VM's memory on one host node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct VmMemory {
    /// The host node.
    #[schema(value_type = u32)]
    pub node: NodeId,
    /// Boot memory: always there.
    #[schema(value_type = u64)]
    pub boot: Bytes,
    /// What it holds by the ledger, boot memory included.
    #[schema(value_type = u64)]
    pub held: Bytes,
    /// What the virtio-mem device asks the guest to reach.
    #[schema(value_type = u64)]
    pub requested: Bytes,
    /// What the guest has plugged.
    #[schema(value_type = u64)]
    pub plugged: Bytes,
    /// The most that can be plugged.
    #[schema(value_type = u64)]
    pub max: Bytes,
    /// Pages of the QEMU process that are really on this node (`numa_maps`); `None` if not known.
    #[schema(value_type = Option<u64>)]
    pub resident: Option<Bytes>,
}

/// The agent of a VM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct AgentInfo {
    /// How it stands with the daemon.
    pub state: AgentState,
    /// When that began, milliseconds since 1970.
    pub since_unix_ms: u64,
    /// What it said of its guest when it connected last.
    pub guest: Option<GuestInfo>,
    /// Why the last attempt to reach it failed, or that it is connected and does not answer.
    pub last_error: Option<String>,
}

/// What an agent says of its guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct GuestInfo {
    /// Version of the agent.
    pub agent_version: String,
    /// Release of the guest's kernel.
    pub kernel: String,
    /// Of the guest's present boot.
    pub boot_id: String,
    /// Online CPUs as the guest numbers them.
    pub cpus: String,
    /// Nodes online in the guest.
    pub nodes: u32,
    /// What is worth knowing about it: things that make moving slower or impossible.
    pub notes: Vec<String>,
}

/// Load and memory as the guest sees them, translated to the host's CPUs and nodes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct GuestReport {
    /// How old it is, in milliseconds.
    pub age_ms: u64,
    /// Time since the guest booted, in milliseconds.
    pub uptime_ms: u64,
    /// Tasks that run or want to run.
    pub runnable: u32,
    /// Tasks that wait for a disk.
    pub blocked: u32,
    /// By host CPU, ascending.
    pub cpus: Vec<CpuLoad>,
    /// By host node, ascending.
    pub nodes: Vec<NodeLoad>,
    /// Waiting for CPUs, if the guest's kernel measures it.
    pub cpu_pressure: Option<PressureInfo>,
    /// Waiting for memory.
    pub memory_pressure: Option<PressureInfo>,
    /// Waiting for I/O.
    pub io_pressure: Option<PressureInfo>,
}

/// A CPU's load: counters since the guest booted, in microseconds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct CpuLoad {
    /// The host CPU behind it.
    #[schema(value_type = u32)]
    pub cpu: CpuId,
    /// Not idle and not stolen.
    pub busy_us: u64,
    /// Idle.
    pub idle_us: u64,
    /// Wanted by the guest, used by the host.
    pub steal_us: u64,
    /// Summed time that tasks waited in its run queue since boot; `None` if the guest's kernel does not count it.
    pub waited_us: Option<u64>,
    /// Busy share since the report before, in hundredths of a percent; `None` in the first report.
    pub busy_share: Option<u32>,
}

/// A node's memory in the guest, in bytes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct NodeLoad {
    /// The host node behind it.
    #[schema(value_type = u32)]
    pub node: NodeId,
    /// `MemTotal`.
    #[schema(value_type = u64)]
    pub total: Bytes,
    /// `MemFree`.
    #[schema(value_type = u64)]
    pub free: Bytes,
    /// What could be free without swapping.
    #[schema(value_type = u64)]
    pub available: Bytes,
    /// Page cache.
    #[schema(value_type = u64)]
    pub file: Bytes,
    /// Anonymous pages.
    #[schema(value_type = u64)]
    pub anonymous: Bytes,
    /// Managed by the movable zone: can be taken again.
    #[schema(value_type = u64)]
    pub movable: Bytes,
    /// In huge page pools.
    #[schema(value_type = u64)]
    pub huge_total: Bytes,
    /// In huge page pools and unused.
    #[schema(value_type = u64)]
    pub huge_free: Bytes,
    /// Hotplug memory blocks that are online.
    #[schema(value_type = u64)]
    pub online: Bytes,
    /// Hotplug memory blocks that are not: plugged but of no use.
    #[schema(value_type = u64)]
    pub offline: Bytes,
}

/// Share of the last 10 and 60 seconds in which some task waited, in hundredths of a percent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PressureInfo {
    /// Of the last 10 s.
    pub avg10: u32,
    /// Of the last 60 s.
    pub avg60: u32,
}

/// How a VM is started. The body of the request is the VM file's text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct StartQuery {
    /// Only tell what would be done.
    #[serde(default)]
    pub preview: bool,
    /// Answer when QEMU runs the guest; otherwise as soon as its resources are booked.
    #[serde(default = "yes")]
    pub wait: bool,
}

/// What became of a release.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ReleaseAnswer {
    /// Whether its agent was told to use every CPU. Without that the guest goes on with those it had until it boots anew.
    pub agent_told: bool,
    /// Why it was not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub why_not: Option<String>,
}

/// How a VM is stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct StopQuery {
    /// End QEMU at once instead of asking the guest to power off.
    #[serde(default)]
    pub force: bool,
    /// Answer when QEMU has ended and its resources are free; otherwise at once.
    #[serde(default = "yes")]
    pub wait: bool,
    /// How long the guest may take to power off, in milliseconds (30 s unless said).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deadline_ms: Option<u64>,
}

impl Default for StartQuery {
    fn default() -> Self {
        Self { preview: false, wait: true }
    }
}

impl Default for StopQuery {
    fn default() -> Self {
        Self { force: false, wait: true, deadline_ms: None }
    }
}

fn yes() -> bool {
    true
}

/// What came of a request to start a VM.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum StartAnswer {
    /// A preview: nothing was done.
    Plan(Box<StartPlan>),
    /// It was started.
    Vm(Box<VmDetail>),
}

/// What starting a VM would do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct StartPlan {
    /// Its name.
    #[schema(value_type = String)]
    pub name: VmName,
    /// What it would hold.
    pub holding: Resources,
    /// Where its virtual CPUs would be bound: host CPU by vCPU.
    #[schema(value_type = BTreeMap<String, u32>)]
    pub vcpus: BTreeMap<VcpuId, CpuId>,
    /// Its boot memory, in bytes by host node.
    #[schema(value_type = BTreeMap<String, u64>)]
    pub boot_memory: BTreeMap<NodeId, Bytes>,
    /// Its virtio-mem devices' maximum, in bytes by host node.
    #[schema(value_type = BTreeMap<String, u64>)]
    pub memory_devices: BTreeMap<NodeId, Bytes>,
    /// The QEMU program and its arguments.
    pub command: Vec<String>,
    /// What is worth knowing.
    pub notes: Vec<String>,
}
