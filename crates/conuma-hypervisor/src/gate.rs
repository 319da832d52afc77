//! The gate: the host's own brake on vCPU threads that their VM does not hold.
//!
//! Every VM has one cgroup. QEMU's process lives in it; below are a leaf for each vCPU thread, bound to the vCPU's CPU,
//! and one for all other threads of QEMU:
//!
//! ```text
//! <root>/<vm>            domain threaded: memory.max
//! <root>/<vm>/vcpu0      threaded: cpuset.cpus, cpu.idle, cpu.weight, cpu.max of vCPU 0
//! <root>/<vm>/emulator   threaded: main loop, I/O and vhost threads
//! ```
//!
//! A gate is *open* (normal weight, no quota) or *closed* with a [`Grip`]. Closing always sets the idle class first, so at
//! no instant does a thread with a quota compete with normal weight; opening takes the quota off first.
//! The idle class alone lets a stray interrupt find a moment, which keeps the guest from stalling; the quota is for a
//! guest that goes on running there.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::PathBuf;

use conuma_linux::cgroup::{Cgroup, CgroupError, CpuMax, Idle, Limit};
use conuma_linux::procfs::{Pid, ProcError, ProcFs, Tid};
use conuma_topology::{Bytes, CpuId, CpuSet, VcpuId, VmName};

use crate::vm::Adopted;

/// How firmly a gate is closed: 0 is the idle class alone, each step more a smaller quota.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, serde::Serialize, serde::Deserialize)]
#[serde(transparent)]
pub struct Grip(u8);

/// Shares of a CPU, in percent, for grips 1, 2, 3 and 4. The kernel refuses quotas below 1 ms, which is 1 % of its period.
const QUOTAS: [u64; 4] = [50, 20, 5, 1];

impl Grip {
    /// The idle class alone.
    pub const SOFT: Self = Self(0);
    /// Leaves a guest a fifth of the CPU: enough for what its kernel has to do on every CPU, to give memory above all.
    pub const WORKING: Self = Self(2);
    /// The smallest quota there is.
    pub const FIRM: Self = Self(QUOTAS.len() as u8);

    /// One step firmer.
    #[must_use]
    pub fn tighter(self) -> Self {
        Self((self.0 + 1).min(Self::FIRM.0))
    }

    /// One step softer.
    #[must_use]
    pub fn looser(self) -> Self {
        Self(self.0.saturating_sub(1))
    }

    /// The quota that belongs to it.
    pub fn cpu_max(self) -> CpuMax {
        match usize::from(self.0).checked_sub(1).and_then(|step| QUOTAS.get(step)) {
            Some(percent) => {
                CpuMax { quota: Limit::At(CpuMax::PERIOD * *percent as u32 / 100), period: CpuMax::PERIOD }
            }
            None => CpuMax::NONE,
        }
    }

    /// What it leaves of a CPU, in thousandths; `None` where there is no quota.
    pub fn share(self) -> Option<u32> {
        match self.cpu_max().quota {
            Limit::Max => None,
            Limit::At(quota) => u32::try_from(quota.as_micros() * 1000 / CpuMax::PERIOD.as_micros()).ok(),
        }
    }

    fn of(max: CpuMax) -> Self {
        match max.quota {
            Limit::Max => Self::SOFT,
            Limit::At(quota) => {
                let percent = quota.as_micros() * 100 / max.period.as_micros().max(1);
                let step = QUOTAS.iter().position(|limit| u128::from(*limit) <= percent);
                Self(step.map_or(Self::FIRM.0, |step| step as u8 + 1))
            }
        }
    }
}

/// Where a gate stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Gate {
    /// Normal weight, no quota.
    Open,
    /// Idle class, and a quota by its grip.
    Closed(Grip),
}

impl fmt::Display for Gate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Open => f.write_str("open"),
            Self::Closed(grip) => match grip.cpu_max().quota {
                Limit::Max => f.write_str("closed"),
                Limit::At(quota) => write!(f, "closed with a quota of {} ms", quota.as_millis()),
            },
        }
    }
}

/// Something about a VM's cgroups went wrong.
#[derive(Debug, thiserror::Error)]
pub enum GateError {
    /// A cgroup file.
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
    /// A file below `/proc`.
    #[error(transparent)]
    Proc(#[from] ProcError),
    /// The VM has no such vCPU.
    #[error("VM {vm} has no vCPU {vcpu}")]
    NoVcpu {
        /// The VM.
        vm: VmName,
        /// The vCPU.
        vcpu: VcpuId,
    },
}

/// A VM's cgroup tree. Knows nothing that it does not read back, so a new daemon finds it as the old one left it.
#[derive(Debug, Clone)]
pub struct VmCgroups {
    vm: VmName,
    domain: Cgroup,
    proc: ProcFs,
}

const EMULATOR: &str = "emulator";
const CONTROLLERS: [&str; 3] = ["cpu", "cpuset", "memory"];
const THREADED_CONTROLLERS: [&str; 2] = ["cpu", "cpuset"];

impl VmCgroups {
    /// The tree of `vm` below the cgroup directory `root`, whether it exists or not. `proc` lists threads.
    pub fn at(root: impl Into<PathBuf>, vm: VmName, proc: ProcFs) -> Self {
        let domain = Cgroup::at(root).child(vm.as_str());
        Self { vm, domain, proc }
    }

    /// Makes `root` able to hold VMs: it and its parent hand out the controllers.
    pub fn prepare_root(root: &Cgroup) -> Result<(), GateError> {
        if let Some(parent) = root.path().parent() {
            Cgroup::at(parent).enable(&CONTROLLERS)?;
        }
        root.create()?;
        Ok(root.enable(&CONTROLLERS)?)
    }

    /// Makes the tree: a leaf for each vCPU, bound to its CPU, with its gate closed unless the CPU is in `open`; and the
    /// emulator's leaf on `emulator` (empty: anywhere). Call it before QEMU runs; [`Self::adopt`] places the threads.
    pub fn create(&self, vcpus: &BTreeMap<VcpuId, CpuId>, open: &CpuSet, emulator: &CpuSet) -> Result<(), GateError> {
        self.domain.create()?;
        let emulator_leaf = self.domain.child(EMULATOR);
        emulator_leaf.create()?;
        emulator_leaf.make_threaded()?;
        self.domain.enable(&THREADED_CONTROLLERS)?;
        emulator_leaf.set_cpus(emulator)?;
        for (vcpu, cpu) in vcpus {
            let leaf = self.leaf(*vcpu);
            leaf.create()?;
            leaf.make_threaded()?;
            leaf.set_cpus(&CpuSet::from([*cpu]))?;
            self.set(*vcpu, if open.contains(*cpu) { Gate::Open } else { Gate::Closed(Grip::SOFT) })?;
        }
        Ok(())
    }

    /// Whether the tree exists.
    pub fn exists(&self) -> bool {
        self.domain.exists()
    }

    /// The VM's own cgroup: QEMU is started in it.
    pub fn domain(&self) -> &Cgroup {
        &self.domain
    }

    /// Puts vCPU threads into their leaves and every other thread of the process into the emulator's. Threads come and
    /// go while QEMU runs, so this is called again from time to time; returns which had to be moved.
    pub fn adopt(&self, process: Pid, vcpu_threads: &BTreeMap<VcpuId, Tid>) -> Result<Adopted, GateError> {
        // Somebody who moves the process as a whole takes its threads out of reach of the leaves.
        match self.adopt_inside(process, vcpu_threads) {
            Err(GateError::Cgroup(error)) if self.exists() && !error.is_gone() => {
                tracing::debug!(vm = %self.vm, %error, "the process is brought back");
                self.domain.add_process(process)?;
                self.adopt_inside(process, vcpu_threads)
            }
            adopted => adopted,
        }
    }

    fn adopt_inside(&self, process: Pid, vcpu_threads: &BTreeMap<VcpuId, Tid>) -> Result<Adopted, GateError> {
        let mut moved = Adopted::default();
        for (vcpu, thread) in vcpu_threads {
            let leaf = self.leaf(*vcpu);
            match leaf.threads().and_then(|inside| place(&leaf, &inside, *thread)) {
                // A guest can eject a CPU: then its thread ends.
                Err(error) if error.is_gone() => {}
                placed => moved.vcpus.extend(placed?.then_some(*vcpu)),
            }
        }
        let emulator = self.domain.child(EMULATOR);
        let inside = emulator.threads()?;
        let vcpus: BTreeSet<Tid> = vcpu_threads.values().copied().collect();
        for thread in self.proc.threads(process)?.into_iter().filter(|thread| !vcpus.contains(thread)) {
            match place(&emulator, &inside, thread) {
                Err(error) if error.is_gone() => {}
                placed => moved.others += usize::from(placed?),
            }
        }
        Ok(moved)
    }

    /// Sets right what somebody else wrote: each vCPU's leaf is bound to its CPU, its gate stands where `gates` says, and
    /// nothing but `memory_max` (of whole pages) limits the VM as a whole. What was found, a line each. A leaf that is gone
    /// belongs to a vCPU that is.
    pub fn put_right(
        &self,
        vcpus: &BTreeMap<VcpuId, CpuId>,
        gates: &BTreeMap<VcpuId, Gate>,
        memory_max: Bytes,
    ) -> Result<Vec<String>, GateError> {
        let mut found = self.put_domain_right(&vcpus.values().copied().collect(), memory_max)?;
        for (vcpu, cpu) in vcpus {
            let (leaf, own) = (self.leaf(*vcpu), CpuSet::from([*cpu]));
            let bound = match leaf.cpus() {
                Err(error) if error.is_gone() => continue,
                bound => bound?,
            };
            if bound != own {
                leaf.set_cpus(&own)?;
                found.push(format!("vCPU {vcpu} was bound to CPUs {{{bound}}}, not to {cpu}"));
            }
            let Some(wanted) = gates.get(vcpu) else { continue };
            let (gate, idle) = (self.gate(*vcpu)?, leaf.idle()?);
            if gate != *wanted {
                found.push(format!("the gate of vCPU {vcpu} was {gate}, not {wanted}"));
            } else if *wanted != Gate::Open && idle == Idle::No {
                found.push(format!("vCPU {vcpu} behind its gate was not in the idle class"));
            } else {
                continue;
            }
            self.set(*vcpu, *wanted)?;
        }
        Ok(found)
    }

    /// The VM as a whole: whatever its leaves say, they get no more than it has.
    fn put_domain_right(&self, cpus: &CpuSet, memory_max: Bytes) -> Result<Vec<String>, GateError> {
        let (domain, mut found) = (&self.domain, Vec::new());
        let bound = domain.cpus()?;
        if !bound.is_empty() && !cpus.is_subset(&bound) {
            // A cpuset with a thread in it cannot be unset.
            domain.set_cpus(&bound.union(cpus))?;
            found.push(format!("the VM's cgroup was bound to CPUs {{{bound}}}"));
        }
        if domain.idle()? == Idle::Yes {
            domain.set_idle(Idle::No)?;
            found.push("the VM's cgroup was in the idle class".into());
        }
        let weight = domain.weight()?;
        if weight != Cgroup::WEIGHT {
            domain.set_weight(Cgroup::WEIGHT)?;
            found.push(format!("the VM's cgroup had a weight of {weight}"));
        }
        let quota = domain.cpu_max()?;
        if quota != CpuMax::NONE {
            domain.set_cpu_max(CpuMax::NONE)?;
            found.push(format!("the VM's cgroup had a quota of {quota}"));
        }
        let ceiling = domain.memory_max()?;
        if ceiling != Limit::At(memory_max) {
            domain.set_memory_max(Limit::At(memory_max))?;
            let was = match ceiling {
                Limit::At(bytes) => bytes.to_string(),
                Limit::Max => "none".into(),
            };
            found.push(format!("the ceiling of the VM's memory was {was}, not {memory_max}"));
        }
        Ok(found)
    }

    /// Moves the process, with all its threads, to where the cgroup of all VMs is, and removes its own. From then on it is
    /// bound to nothing and braked by nothing.
    pub fn release(&self, process: Pid) -> Result<(), GateError> {
        // The kernel looks at the first thread's cpuset only when it decides whether a move changes what threads may use.
        // A cpuset with a thread in it cannot be unset.
        let all = self.domain.effective_cpus()?;
        for vcpu in self.vcpus()? {
            self.leaf(vcpu).set_cpus(&all)?;
        }
        let all_vms = self.domain.path().parent().and_then(std::path::Path::parent);
        let outside = Cgroup::at(all_vms.unwrap_or(self.domain.path()));
        outside.add_process(process)?;
        self.remove()
    }

    /// Opens or closes a vCPU's gate.
    pub fn set(&self, vcpu: VcpuId, gate: Gate) -> Result<(), GateError> {
        let leaf = self.leaf(vcpu);
        let set = || match gate {
            Gate::Closed(grip) => {
                leaf.set_idle(Idle::Yes)?;
                self.set_quota(&leaf, grip.cpu_max())
            }
            Gate::Open => {
                self.set_quota(&leaf, CpuMax::NONE)?;
                leaf.set_idle(Idle::No)
            }
        };
        set().map_err(|error| self.failed(vcpu, error))
    }

    /// Writing a quota visits every CPU of the host in the kernel; reading it does not.
    fn set_quota(&self, leaf: &Cgroup, max: CpuMax) -> Result<(), CgroupError> {
        if leaf.cpu_max()? == max { Ok(()) } else { leaf.set_cpu_max(max) }
    }

    /// Where a vCPU's gate stands.
    pub fn gate(&self, vcpu: VcpuId) -> Result<Gate, GateError> {
        let leaf = self.leaf(vcpu);
        let read = || Ok((leaf.idle()?, leaf.cpu_max()?));
        Ok(match read().map_err(|error| self.failed(vcpu, error))? {
            (Idle::No, CpuMax::NONE) => Gate::Open,
            // A quota without the idle class is nothing that Conuma sets: count it as closed as its quota says, so that it
            // is never taken for open.
            (Idle::Yes | Idle::No, max) => Gate::Closed(Grip::of(max)),
        })
    }

    /// All gates.
    pub fn gates(&self) -> Result<BTreeMap<VcpuId, Gate>, GateError> {
        self.vcpus()?.into_iter().map(|vcpu| Ok((vcpu, self.gate(vcpu)?))).collect()
    }

    /// The vCPUs that have a leaf.
    pub fn vcpus(&self) -> Result<Vec<VcpuId>, GateError> {
        let mut vcpus: Vec<VcpuId> = self
            .domain
            .children()?
            .iter()
            .filter_map(|leaf| leaf.name().strip_prefix("vcpu")?.parse().ok())
            .map(VcpuId)
            .collect();
        vcpus.sort();
        Ok(vcpus)
    }

    /// Sets the ceiling on all memory of the VM's processes together, QEMU's own included.
    pub fn set_memory_max(&self, max: Limit<Bytes>) -> Result<(), GateError> {
        Ok(self.domain.set_memory_max(max)?)
    }

    /// Removes the tree after QEMU's death.
    pub fn remove(&self) -> Result<(), GateError> {
        Ok(self.domain.remove_tree()?)
    }

    fn leaf(&self, vcpu: VcpuId) -> Cgroup {
        self.domain.child(&format!("vcpu{vcpu}"))
    }

    fn failed(&self, vcpu: VcpuId, error: CgroupError) -> GateError {
        if self.leaf(vcpu).exists() { error.into() } else { GateError::NoVcpu { vm: self.vm.clone(), vcpu } }
    }
}

/// Moves a thread into a leaf unless it is among those inside; whether it was moved.
fn place(leaf: &Cgroup, inside: &[Tid], thread: Tid) -> Result<bool, CgroupError> {
    if inside.contains(&thread) {
        return Ok(false);
    }
    leaf.add_thread(thread).map(|()| true)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn grips_get_firmer_step_by_step_and_read_back_as_themselves() {
        let mut grip = Grip::SOFT;
        let mut last = u128::MAX;
        loop {
            assert_eq!(Grip::of(grip.cpu_max()), grip);
            if let Limit::At(quota) = grip.cpu_max().quota {
                assert!(quota.as_micros() < last && quota >= Duration::from_millis(1));
                last = quota.as_micros();
            }
            if grip == Grip::FIRM {
                break;
            }
            assert_eq!(grip.tighter().looser(), grip);
            grip = grip.tighter();
        }
        assert_eq!(grip.tighter(), Grip::FIRM);
    }
}
