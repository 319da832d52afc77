//! The messages as they travel. Field numbers are for ever; a removed one is never used again.

/// What the host sends.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Request {
    #[prost(uint64, tag = "1")]
    pub(crate) id: u64,
    #[prost(uint64, tag = "2")]
    pub(crate) generation: u64,
    #[prost(uint32, tag = "3")]
    pub(crate) deadline_ms: u32,
    #[prost(oneof = "RequestBody", tags = "10, 11, 12, 13, 14, 15")]
    pub(crate) body: Option<RequestBody>,
}

#[derive(Clone, PartialEq, prost::Oneof)]
pub(crate) enum RequestBody {
    #[prost(message, tag = "10")]
    Hello(Hello),
    #[prost(message, tag = "11")]
    ApplyHolding(ApplyHolding),
    #[prost(message, tag = "12")]
    PrepareMemory(NodeAmount),
    #[prost(message, tag = "13")]
    ConfirmMemory(NodeAmount),
    #[prost(message, tag = "14")]
    Report(Nothing),
    #[prost(message, tag = "15")]
    Watch(Triggers),
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Nothing {}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Versions {
    #[prost(uint32, tag = "1")]
    pub(crate) min: u32,
    #[prost(uint32, tag = "2")]
    pub(crate) max: u32,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Hello {
    #[prost(message, optional, tag = "1")]
    pub(crate) versions: Option<Versions>,
    #[prost(string, tag = "2")]
    pub(crate) daemon_version: String,
}

/// A set of ids as pairs (first, last), ascending and not touching: one form per set, and no more
/// work to read than its members.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct IdRanges {
    #[prost(uint32, repeated, tag = "1")]
    pub(crate) bounds: Vec<u32>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct ApplyHolding {
    #[prost(message, optional, tag = "1")]
    pub(crate) cpus: Option<IdRanges>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct NodeAmount {
    #[prost(uint32, tag = "1")]
    pub(crate) node: u32,
    #[prost(uint64, tag = "2")]
    pub(crate) bytes: u64,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Triggers {
    #[prost(message, optional, tag = "1")]
    pub(crate) cpu: Option<Trigger>,
    #[prost(message, optional, tag = "2")]
    pub(crate) memory: Option<Trigger>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Trigger {
    #[prost(uint64, tag = "1")]
    pub(crate) stall_us: u64,
    #[prost(uint64, tag = "2")]
    pub(crate) window_us: u64,
}

/// What the agent sends.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Response {
    #[prost(uint64, tag = "1")]
    pub(crate) id: u64,
    #[prost(oneof = "ResponseBody", tags = "10, 11, 12, 13, 14, 15, 16, 17")]
    pub(crate) body: Option<ResponseBody>,
}

#[derive(Clone, PartialEq, prost::Oneof)]
pub(crate) enum ResponseBody {
    #[prost(message, tag = "10")]
    Hello(Facts),
    #[prost(message, tag = "11")]
    Holding(Holding),
    #[prost(message, tag = "12")]
    Prepared(Prepared),
    #[prost(message, tag = "13")]
    Memory(Memory),
    #[prost(message, tag = "14")]
    Report(Report),
    #[prost(message, tag = "15")]
    Error(Error),
    #[prost(message, tag = "16")]
    Watching(Triggers),
    #[prost(message, tag = "17")]
    Pushed(Pushed),
}

/// The id of a message alone: all else is passed over.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Envelope {
    #[prost(uint64, tag = "1")]
    pub(crate) id: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub(crate) enum ErrorKind {
    Failed = 0,
    Version = 1,
    Stale = 2,
    Deadline = 3,
    BadRequest = 4,
    Unsupported = 5,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Error {
    #[prost(enumeration = "ErrorKind", tag = "1")]
    pub(crate) kind: i32,
    #[prost(string, tag = "2")]
    pub(crate) text: String,
    #[prost(message, optional, tag = "3")]
    pub(crate) versions: Option<Versions>,
    #[prost(uint64, tag = "4")]
    pub(crate) newest: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub(crate) enum CgroupMode {
    Absent = 0,
    Hybrid = 1,
    Unified = 2,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub(crate) enum AutoOnline {
    Absent = 0,
    Offline = 1,
    Online = 2,
    OnlineKernel = 3,
    OnlineMovable = 4,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Facts {
    #[prost(uint32, tag = "1")]
    pub(crate) version: u32,
    #[prost(string, tag = "2")]
    pub(crate) agent_version: String,
    #[prost(string, tag = "3")]
    pub(crate) kernel_release: String,
    #[prost(string, tag = "4")]
    pub(crate) boot_id: String,
    #[prost(message, optional, tag = "5")]
    pub(crate) cpus_online: Option<IdRanges>,
    #[prost(message, repeated, tag = "6")]
    pub(crate) nodes: Vec<NodeFacts>,
    #[prost(enumeration = "CgroupMode", tag = "7")]
    pub(crate) cgroup_mode: i32,
    #[prost(bool, optional, tag = "8")]
    pub(crate) init_on_alloc: Option<bool>,
    #[prost(enumeration = "AutoOnline", tag = "9")]
    pub(crate) auto_online: i32,
    #[prost(uint64, optional, tag = "10")]
    pub(crate) memory_block: Option<u64>,
    #[prost(bool, tag = "11")]
    pub(crate) psi: bool,
    #[prost(uint64, tag = "12")]
    pub(crate) newest: u64,
    #[prost(message, optional, tag = "13")]
    pub(crate) holding: Option<IdRanges>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct NodeFacts {
    #[prost(uint32, tag = "1")]
    pub(crate) node: u32,
    #[prost(message, optional, tag = "2")]
    pub(crate) cpus: Option<IdRanges>,
    #[prost(uint64, tag = "3")]
    pub(crate) memory: u64,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Holding {
    #[prost(message, optional, tag = "1")]
    pub(crate) held: Option<IdRanges>,
    #[prost(message, optional, tag = "2")]
    pub(crate) quiesced: Option<IdRanges>,
    #[prost(message, repeated, tag = "3")]
    pub(crate) refused: Vec<Refusal>,
    #[prost(message, repeated, tag = "4")]
    pub(crate) tasks: Vec<Leftover>,
    #[prost(uint32, tag = "5")]
    pub(crate) more_tasks: u32,
    #[prost(uint32, tag = "6")]
    pub(crate) bound_kernel_threads: u32,
    #[prost(uint32, tag = "7")]
    pub(crate) managed_interrupts: u32,
    #[prost(message, repeated, tag = "8")]
    pub(crate) timings: Vec<StageTime>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub(crate) enum RefusalKind {
    Other = 0,
    Exclusive = 1,
    NotOnline = 2,
    Cgroup = 3,
    InUse = 4,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Refusal {
    #[prost(message, optional, tag = "1")]
    pub(crate) cpus: Option<IdRanges>,
    #[prost(enumeration = "RefusalKind", tag = "2")]
    pub(crate) kind: i32,
    #[prost(string, tag = "3")]
    pub(crate) cgroup: String,
    #[prost(string, tag = "4")]
    pub(crate) text: String,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Leftover {
    #[prost(uint32, tag = "1")]
    pub(crate) tid: u32,
    #[prost(string, tag = "2")]
    pub(crate) name: String,
    #[prost(uint32, tag = "3")]
    pub(crate) cpu: u32,
    #[prost(bool, tag = "4")]
    pub(crate) kernel: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub(crate) enum Stage {
    Unknown = 0,
    Cgroups = 1,
    Tasks = 2,
    Interrupts = 3,
    Workqueues = 4,
    Verify = 5,
    Migrate = 6,
    Reclaim = 7,
    Wait = 8,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct StageTime {
    #[prost(enumeration = "Stage", tag = "1")]
    pub(crate) stage: i32,
    #[prost(uint64, tag = "2")]
    pub(crate) took_us: u64,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Prepared {
    #[prost(uint32, tag = "1")]
    pub(crate) node: u32,
    #[prost(uint64, tag = "2")]
    pub(crate) free_before: u64,
    #[prost(uint64, tag = "3")]
    pub(crate) free_after: u64,
    #[prost(uint64, tag = "4")]
    pub(crate) migrated: u64,
    #[prost(uint64, tag = "5")]
    pub(crate) reclaimed: u64,
    #[prost(bool, tag = "6")]
    pub(crate) enough: bool,
    #[prost(message, repeated, tag = "7")]
    pub(crate) timings: Vec<StageTime>,
    #[prost(uint64, optional, tag = "8")]
    pub(crate) spare: Option<u64>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Memory {
    #[prost(uint32, tag = "1")]
    pub(crate) node: u32,
    #[prost(uint64, tag = "2")]
    pub(crate) total: u64,
    #[prost(uint64, tag = "3")]
    pub(crate) free: u64,
    #[prost(uint64, tag = "4")]
    pub(crate) online: u64,
    #[prost(uint64, tag = "5")]
    pub(crate) movable: u64,
    #[prost(uint64, tag = "6")]
    pub(crate) offline: u64,
    #[prost(bool, tag = "7")]
    pub(crate) satisfied: bool,
    #[prost(uint64, tag = "8")]
    pub(crate) waited_us: u64,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Report {
    #[prost(uint64, tag = "1")]
    pub(crate) uptime_us: u64,
    #[prost(message, repeated, tag = "2")]
    pub(crate) cpus: Vec<CpuReport>,
    #[prost(message, repeated, tag = "3")]
    pub(crate) nodes: Vec<NodeReport>,
    #[prost(uint32, tag = "4")]
    pub(crate) runnable: u32,
    #[prost(uint32, tag = "5")]
    pub(crate) blocked: u32,
    #[prost(message, optional, tag = "6")]
    pub(crate) cpu_pressure: Option<Pressure>,
    #[prost(message, optional, tag = "7")]
    pub(crate) memory_pressure: Option<Pressure>,
    #[prost(message, optional, tag = "8")]
    pub(crate) io_pressure: Option<Pressure>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct CpuReport {
    #[prost(uint32, tag = "1")]
    pub(crate) cpu: u32,
    #[prost(uint64, tag = "2")]
    pub(crate) user_us: u64,
    #[prost(uint64, tag = "3")]
    pub(crate) system_us: u64,
    #[prost(uint64, tag = "4")]
    pub(crate) interrupts_us: u64,
    #[prost(uint64, tag = "5")]
    pub(crate) idle_us: u64,
    #[prost(uint64, tag = "6")]
    pub(crate) steal_us: u64,
    #[prost(uint64, optional, tag = "7")]
    pub(crate) ran_us: Option<u64>,
    #[prost(uint64, optional, tag = "8")]
    pub(crate) waited_us: Option<u64>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct NodeReport {
    #[prost(uint32, tag = "1")]
    pub(crate) node: u32,
    #[prost(uint64, tag = "2")]
    pub(crate) total: u64,
    #[prost(uint64, tag = "3")]
    pub(crate) free: u64,
    #[prost(uint64, tag = "4")]
    pub(crate) available: u64,
    #[prost(uint64, tag = "5")]
    pub(crate) file: u64,
    #[prost(uint64, tag = "6")]
    pub(crate) anonymous: u64,
    #[prost(uint64, tag = "7")]
    pub(crate) movable: u64,
    #[prost(uint64, tag = "8")]
    pub(crate) huge_total: u64,
    #[prost(uint64, tag = "9")]
    pub(crate) huge_free: u64,
    #[prost(uint64, tag = "10")]
    pub(crate) blocks_online: u64,
    #[prost(uint64, tag = "11")]
    pub(crate) blocks_offline: u64,
    #[prost(uint64, optional, tag = "12")]
    pub(crate) refaults: Option<u64>,
    #[prost(uint64, optional, tag = "13")]
    pub(crate) active_file: Option<u64>,
    #[prost(uint64, optional, tag = "14")]
    pub(crate) shmem: Option<u64>,
    #[prost(uint64, optional, tag = "15")]
    pub(crate) kept: Option<u64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub(crate) enum Resource {
    Unknown = 0,
    Cpu = 1,
    Memory = 2,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Pushed {
    #[prost(enumeration = "Resource", tag = "1")]
    pub(crate) resource: i32,
    #[prost(message, optional, tag = "2")]
    pub(crate) report: Option<Report>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Pressure {
    #[prost(message, optional, tag = "1")]
    pub(crate) some: Option<PressureLine>,
    #[prost(message, optional, tag = "2")]
    pub(crate) full: Option<PressureLine>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct PressureLine {
    #[prost(uint32, tag = "1")]
    pub(crate) avg10: u32,
    #[prost(uint32, tag = "2")]
    pub(crate) avg60: u32,
    #[prost(uint64, tag = "3")]
    pub(crate) total_us: u64,
}
