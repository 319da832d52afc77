//! What Conuma asks of a hypervisor: narrow, so that a fake can do all of it and one conformance suite holds for every
//! back end.
//!
//! A back end starts a VM *paused*, with every vCPU thread bound to its CPU and its gate where it should be, and only then
//! lets it run. The VM outlives the daemon: [`Hypervisor::attach`] finds it again.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use conuma_binding::BindingPlan;
use conuma_linux::procfs::Pid;
use conuma_topology::{Bytes, CpuSet, NodeId, VcpuId, VcpuSet, VmName};
use serde::{Deserialize, Serialize};
use tokio::sync::broadcast;

use crate::error::HypervisorError;
use crate::facts::HypervisorFacts;
use crate::gate::Gate;

/// A hypervisor on this host.
#[async_trait]
pub trait Hypervisor: Send + Sync {
    /// What it can do, probed once.
    fn facts(&self) -> &HypervisorFacts;

    /// Starts a VM by its plan, paused: gates of CPUs in `open` are open, all others closed; virtio-mem devices ask for
    /// nothing yet. Fails without leaving anything behind.
    async fn start(&self, plan: &BindingPlan, open: &CpuSet) -> Result<Arc<dyn Vm>, HypervisorError>;

    /// Finds a VM that was started before, by the plan that it was started with; `None` if it does not run any more.
    /// What a VM that has ended left behind (cgroups, sockets) is removed.
    async fn attach(&self, plan: &BindingPlan) -> Result<Option<Arc<dyn Vm>>, HypervisorError>;
}

/// A VM that runs or did.
#[async_trait]
pub trait Vm: Send + Sync {
    /// Its name.
    fn name(&self) -> &VmName;

    /// Its process on the host; what a fake gives is no process of this machine.
    fn process(&self) -> Pid;

    /// Lets it run.
    async fn resume(&self) -> Result<(), HypervisorError>;

    /// Whether it runs.
    async fn run_state(&self) -> Result<RunState, HypervisorError>;

    /// Asks the guest to power down, as by its power button. It may ignore that.
    async fn power_down(&self) -> Result<(), HypervisorError>;

    /// Ends it, with or without its consent, and comes back when it is dead and its cgroups are gone.
    async fn end(&self, budget: Duration) -> Result<(), HypervisorError>;

    /// Sets the `requested-size` of a node's virtio-mem device, also to the value it has, and reads the device back.
    async fn set_requested(&self, node: NodeId, bytes: Bytes) -> Result<MemoryState, HypervisorError>;

    /// Sizes of a node's virtio-mem device.
    async fn memory(&self, node: NodeId) -> Result<MemoryState, HypervisorError>;

    /// Sets the ceiling on all memory of its process: so much for the guest, and what QEMU needs for itself.
    async fn limit_memory(&self, bytes: Bytes) -> Result<(), HypervisorError>;

    /// Opens or closes a vCPU's gate; in force when this comes back.
    async fn set_gate(&self, vcpu: VcpuId, gate: Gate) -> Result<(), HypervisorError>;

    /// Where all gates stand.
    async fn gates(&self) -> Result<BTreeMap<VcpuId, Gate>, HypervisorError>;

    /// How long each of these vCPU threads has run since it began.
    async fn run_times(&self, vcpus: &[VcpuId]) -> Result<BTreeMap<VcpuId, Duration>, HypervisorError>;

    /// Those of these vCPUs whose thread runs, or wants to, at this instant.
    async fn runnable(&self, vcpus: &[VcpuId]) -> Result<VcpuSet, HypervisorError>;

    /// Puts threads that appeared since into their leaf, and vCPU threads that someone moved back.
    async fn adopt_threads(&self) -> Result<Adopted, HypervisorError>;

    /// Sets right what somebody else changed: to which CPU a vCPU's thread is bound, and gates that do not stand where
    /// `gates` says. Tells what was found, a line each.
    async fn put_right(&self, gates: &BTreeMap<VcpuId, Gate>) -> Result<Vec<String>, HypervisorError>;

    /// Lets go of it for good, while it runs on: its threads may run on every CPU, nothing brakes them, and what was made
    /// for it on the host besides its process is gone.
    async fn release(&self) -> Result<(), HypervisorError>;

    /// Where the VM's memory really is: bytes by host node, of all its mappings.
    async fn memory_by_node(&self) -> Result<BTreeMap<NodeId, Bytes>, HypervisorError>;

    /// What the guest wrote to its first serial port since this was last read, the last 64 KiB at most; an error if the VM
    /// file attached that port elsewhere. Text from a guest: show it with care.
    async fn console(&self) -> Result<String, HypervisorError>;

    /// Events from now on.
    fn events(&self) -> broadcast::Receiver<VmEvent>;

    /// Comes back when the VM has ended, for whatever reason.
    async fn ended(&self);
}

/// Threads that were put into their place.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Adopted {
    /// Those of these vCPUs.
    pub vcpus: Vec<VcpuId>,
    /// How many others.
    pub others: usize,
}

/// Whether a VM runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RunState {
    /// It runs.
    Running,
    /// It is paused: before its first instruction, or by someone.
    Paused,
    /// A live migration is under way: it runs here still, or stands still for a moment, and its QEMU neither plugs nor unplugs
    /// memory.
    Migrating,
    /// It was migrated away: its guest runs elsewhere, and here only if whoever migrated it lets it run again.
    Migrated,
    /// The guest panicked, shut down or had an internal error.
    Stopped,
    /// Its process is gone.
    Ended,
}

/// Sizes of a virtio-mem device, boot memory not counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct MemoryState {
    /// What the guest is asked to reach.
    pub requested: Bytes,
    /// What the guest has plugged.
    pub size: Bytes,
    /// The most it can have.
    pub max: Bytes,
    /// Sizes are multiples of this.
    pub block: Bytes,
}

/// Something that happened to a VM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum VmEvent {
    /// The guest was reset: it boots again, all plugged memory is gone.
    Reset,
    /// The guest shut down or panicked.
    Stopped,
    /// Someone paused it.
    Paused,
    /// It runs (again).
    Resumed,
    /// A live migration began, went on, ended or failed: a hint to look at the run state.
    Migration,
    /// A virtio-mem device has a new size. Rate-limited by QEMU: a hint to look, not a record.
    MemoryChanged,
    /// So many events were missed: any of them may have been.
    Missed(u64),
}
