//! Whose gates a back end turns: cgroups on a host, values in memory where the host has no cgroup v2.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::path::PathBuf;
use std::sync::Arc;

use conuma_linux::cgroup::{Cgroup, Limit};
use conuma_linux::procfs::{Pid, ProcFs, Tid};
use conuma_topology::{Bytes, CpuId, CpuSet, VcpuId, VmName};

use crate::gate::{Gate, GateError, VmCgroups};
use crate::vm::Adopted;

/// The gates of one VM.
pub trait Gates: Send + Sync + Debug {
    /// Makes them, before the VM's process runs: closed unless the CPU is in `open`.
    fn create(&self, vcpus: &BTreeMap<VcpuId, CpuId>, open: &CpuSet, emulator: &CpuSet) -> Result<(), GateError>;

    /// Whether they are there.
    fn exist(&self) -> bool;

    /// Whether any process is behind them.
    fn in_use(&self) -> Result<bool, GateError>;

    /// The file that a process writes its id to before it becomes the VM's, if it must.
    fn entrance(&self) -> Option<PathBuf>;

    /// Puts every thread of the process where it belongs; which had to be moved.
    fn adopt(&self, process: Pid, vcpu_threads: &BTreeMap<VcpuId, Tid>) -> Result<Adopted, GateError>;

    /// Sets right where vCPUs are bound, where their gates stand, and the ceiling of all memory; what was found, a line
    /// each.
    fn put_right(
        &self,
        vcpus: &BTreeMap<VcpuId, CpuId>,
        gates: &BTreeMap<VcpuId, Gate>,
        memory_max: Bytes,
    ) -> Result<Vec<String>, GateError>;

    /// Moves the process out and removes them.
    fn release(&self, process: Pid) -> Result<(), GateError>;

    /// Opens or closes a gate; in force when this comes back.
    fn set(&self, vcpu: VcpuId, gate: Gate) -> Result<(), GateError>;

    /// Where all gates stand.
    fn all(&self) -> Result<BTreeMap<VcpuId, Gate>, GateError>;

    /// Sets the ceiling on all memory of the VM's process.
    fn set_memory_max(&self, max: Limit<Bytes>) -> Result<(), GateError>;

    /// Kills every process behind the gates.
    fn kill(&self) -> Result<(), GateError>;

    /// Removes them; no process may be left behind them.
    fn remove(&self) -> Result<(), GateError>;
}

/// Where the gates of all VMs are.
pub trait GateRoot: Send + Sync + Debug {
    /// The gates of a VM, whether they exist or not.
    fn of(&self, vm: &VmName) -> Arc<dyn Gates>;
}

/// Gates as cgroups below one directory.
#[derive(Debug, Clone)]
pub struct CgroupRoot {
    root: PathBuf,
    proc: ProcFs,
}

impl CgroupRoot {
    /// Makes the cgroup directory `root` ready for VMs. `proc` lists threads.
    pub fn prepare(root: impl Into<PathBuf>, proc: ProcFs) -> Result<Self, GateError> {
        let root = root.into();
        VmCgroups::prepare_root(&Cgroup::at(&root))?;
        Ok(Self { root, proc })
    }
}

impl GateRoot for CgroupRoot {
    fn of(&self, vm: &VmName) -> Arc<dyn Gates> {
        Arc::new(VmCgroups::at(&self.root, vm.clone(), self.proc.clone()))
    }
}

impl Gates for VmCgroups {
    fn create(&self, vcpus: &BTreeMap<VcpuId, CpuId>, open: &CpuSet, emulator: &CpuSet) -> Result<(), GateError> {
        self.create(vcpus, open, emulator)
    }

    fn exist(&self) -> bool {
        self.exists()
    }

    fn in_use(&self) -> Result<bool, GateError> {
        Ok(self.domain().populated()?)
    }

    fn entrance(&self) -> Option<PathBuf> {
        Some(self.domain().path().join("cgroup.procs"))
    }

    fn adopt(&self, process: Pid, vcpu_threads: &BTreeMap<VcpuId, Tid>) -> Result<Adopted, GateError> {
        self.adopt(process, vcpu_threads)
    }

    fn put_right(
        &self,
        vcpus: &BTreeMap<VcpuId, CpuId>,
        gates: &BTreeMap<VcpuId, Gate>,
        memory_max: Bytes,
    ) -> Result<Vec<String>, GateError> {
        self.put_right(vcpus, gates, memory_max)
    }

    fn release(&self, process: Pid) -> Result<(), GateError> {
        self.release(process)
    }

    fn set(&self, vcpu: VcpuId, gate: Gate) -> Result<(), GateError> {
        self.set(vcpu, gate)
    }

    fn all(&self) -> Result<BTreeMap<VcpuId, Gate>, GateError> {
        self.gates()
    }

    fn set_memory_max(&self, max: Limit<Bytes>) -> Result<(), GateError> {
        self.set_memory_max(max)
    }

    fn kill(&self) -> Result<(), GateError> {
        Ok(self.domain().kill()?)
    }

    fn remove(&self) -> Result<(), GateError> {
        self.remove()
    }
}
