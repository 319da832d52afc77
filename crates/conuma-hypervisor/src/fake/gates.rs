//! Gates in memory, where there is no cgroup v2 to turn.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use conuma_linux::cgroup::Limit;
use conuma_linux::procfs::{Pid, Tid};
use conuma_topology::{Bytes, CpuId, CpuSet, VcpuId, VmName};

use super::lock;
use crate::gate::{Gate, GateError, Grip};
use crate::gates::{GateRoot, Gates};
use crate::vm::Adopted;

/// Gates of any number of VMs in memory.
#[derive(Debug, Default)]
pub struct MemoryGateRoot {
    vms: Mutex<BTreeMap<VmName, Arc<MemoryGates>>>,
}

impl GateRoot for MemoryGateRoot {
    fn of(&self, vm: &VmName) -> Arc<dyn Gates> {
        lock(&self.vms).entry(vm.clone()).or_insert_with(|| Arc::new(MemoryGates::new(vm.clone()))).clone()
    }
}

/// Gates of one VM in memory.
#[derive(Debug)]
pub struct MemoryGates {
    vm: VmName,
    state: Mutex<Option<State>>,
}

#[derive(Debug, Default)]
struct State {
    gates: BTreeMap<VcpuId, Gate>,
    adopted: BTreeSet<Tid>,
}

impl MemoryGates {
    fn new(vm: VmName) -> Self {
        Self { vm, state: Mutex::default() }
    }

    fn with<T>(&self, vcpu: VcpuId, what: impl FnOnce(&mut State) -> T) -> Result<T, GateError> {
        let mut state = lock(&self.state);
        let known = state.as_mut().filter(|state| state.gates.contains_key(&vcpu));
        known.map(what).ok_or_else(|| GateError::NoVcpu { vm: self.vm.clone(), vcpu })
    }
}

/// Sets gates right that somebody else turned; what was found.
pub(super) fn put_right(there: &mut BTreeMap<VcpuId, Gate>, wanted: &BTreeMap<VcpuId, Gate>) -> Vec<String> {
    let mut found = Vec::new();
    for (vcpu, gate) in there {
        if let Some(wanted) = wanted.get(vcpu).filter(|wanted| *wanted != gate) {
            found.push(format!("the gate of vCPU {vcpu} was {gate}, not {wanted}"));
            *gate = *wanted;
        }
    }
    found
}

impl Gates for MemoryGates {
    fn create(&self, vcpus: &BTreeMap<VcpuId, CpuId>, open: &CpuSet, _emulator: &CpuSet) -> Result<(), GateError> {
        let gate = |cpu: CpuId| if open.contains(cpu) { Gate::Open } else { Gate::Closed(Grip::SOFT) };
        let gates = vcpus.iter().map(|(vcpu, cpu)| (*vcpu, gate(*cpu))).collect();
        *lock(&self.state) = Some(State { gates, ..State::default() });
        Ok(())
    }

    fn exist(&self) -> bool {
        lock(&self.state).is_some()
    }

    fn in_use(&self) -> Result<bool, GateError> {
        Ok(false)
    }

    fn entrance(&self) -> Option<PathBuf> {
        None
    }

    fn adopt(&self, _process: Pid, vcpu_threads: &BTreeMap<VcpuId, Tid>) -> Result<Adopted, GateError> {
        let mut state = lock(&self.state);
        let Some(State { adopted, .. }) = state.as_mut() else { return Ok(Adopted::default()) };
        let new = vcpu_threads.iter().filter(|(_, thread)| adopted.insert(**thread));
        Ok(Adopted { vcpus: new.map(|(vcpu, _)| *vcpu).collect(), others: 0 })
    }

    fn put_right(
        &self,
        _vcpus: &BTreeMap<VcpuId, CpuId>,
        gates: &BTreeMap<VcpuId, Gate>,
        _memory_max: Bytes,
    ) -> Result<Vec<String>, GateError> {
        Ok(lock(&self.state).as_mut().map(|state| put_right(&mut state.gates, gates)).unwrap_or_default())
    }

    fn release(&self, _process: Pid) -> Result<(), GateError> {
        self.remove()
    }

    fn set(&self, vcpu: VcpuId, gate: Gate) -> Result<(), GateError> {
        self.with(vcpu, |state| state.gates.insert(vcpu, gate)).map(drop)
    }

    fn all(&self) -> Result<BTreeMap<VcpuId, Gate>, GateError> {
        Ok(lock(&self.state).as_ref().map(|state| state.gates.clone()).unwrap_or_default())
    }

    fn set_memory_max(&self, _max: Limit<Bytes>) -> Result<(), GateError> {
        Ok(())
    }

    fn kill(&self) -> Result<(), GateError> {
        Ok(())
    }

    fn remove(&self) -> Result<(), GateError> {
        *lock(&self.state) = None;
        Ok(())
    }
}
