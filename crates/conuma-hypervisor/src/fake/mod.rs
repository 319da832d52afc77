//! A stateful fake: does all that a back end does, in memory, and misbehaves when told to.
//!
//! Holds to the same conformance suite as real back ends. VMs live in the [`FakeHypervisor`], so a daemon that is restarted with the same one finds them again.

mod gates;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use conuma_binding::BindingPlan;
use conuma_linux::procfs::Pid;
use conuma_topology::{Bytes, CpuSet, NodeId, VcpuId, VcpuSet, VmName};
use tokio::sync::{broadcast, watch};

pub use gates::{MemoryGateRoot, MemoryGates};

use crate::error::HypervisorError;
use crate::facts::HypervisorFacts;
use crate::gate::{Gate, GateError, Grip};
use crate::qmp::QmpError;
use crate::vm::{Adopted, Hypervisor, MemoryState, RunState, Vm, VmEvent};

/// How a fake VM misbehaves.
#[derive(Debug, Clone, Default)]
pub struct Faults {
    /// Every call takes so long.
    pub delay: Duration,
    /// The guest keeps at least so much of a node plugged, whatever is asked.
    pub keeps: BTreeMap<NodeId, Bytes>,
    /// The guest plugs at most so much of a node.
    pub takes: BTreeMap<NodeId, Bytes>,
    /// Run times of these vCPUs grow, gate or no gate.
    pub busy: BTreeSet<VcpuId>,
    /// These vCPUs run, but the kernel has not counted it yet.
    pub stale: BTreeSet<VcpuId>,
    /// Gates cannot be set.
    pub gates_stuck: bool,
    /// QEMU's monitor does not answer. What goes past it works: gates, run times, an end by force.
    pub silent: bool,
    /// Its process cannot be ended.
    pub immortal: bool,
    /// The VM uses so much more of a node than it has plugged: what only a look from outside shows.
    pub touches: BTreeMap<NodeId, Bytes>,
    /// The guest ignores its power button.
    pub ignores_power_button: bool,
}

/// A hypervisor in memory.
#[derive(Debug, Clone)]
pub struct FakeHypervisor {
    facts: HypervisorFacts,
    vms: Arc<Mutex<BTreeMap<VmName, Arc<FakeVm>>>>,
    fail_start: Arc<Mutex<Option<String>>>,
    fault_start: Arc<Mutex<Option<Faults>>>,
}

/// A VM in memory.
#[derive(Debug)]
pub struct FakeVm {
    name: VmName,
    pid: Pid,
    block: Bytes,
    begun: Instant,
    state: Mutex<State>,
    events: broadcast::Sender<VmEvent>,
    alive: watch::Sender<bool>,
}

#[derive(Debug)]
struct State {
    run: RunState,
    gates: BTreeMap<VcpuId, Gate>,
    memory: BTreeMap<NodeId, MemoryState>,
    boot: BTreeMap<NodeId, Bytes>,
    console: String,
    faults: Faults,
    failed: BTreeMap<&'static str, u32>,
    released: bool,
    ceiling: Option<Bytes>,
}

const EVENT_BACKLOG: usize = 64;

impl Default for FakeHypervisor {
    fn default() -> Self {
        let facts = HypervisorFacts {
            version: "fake".into(),
            release: (10, 0),
            dynamic_memslots: true,
            unplugged_inaccessible: true,
            smp_cache: true,
            vsock: true,
            vfio: true,
            pxb_pcie: true,
            topoext: false,
        };
        Self { facts, vms: Arc::default(), fail_start: Arc::default(), fault_start: Arc::default() }
    }
}

impl FakeHypervisor {
    /// A VM that was started, also after its end.
    pub fn vm(&self, name: &VmName) -> Option<Arc<FakeVm>> {
        lock(&self.vms).get(name).cloned()
    }

    /// Lets the next start fail with this reason.
    pub fn fail_next_start(&self, reason: &str) {
        *lock(&self.fail_start) = Some(reason.to_owned());
    }

    /// Lets the next VM that is started misbehave from its beginning.
    pub fn fault_next_start(&self, faults: Faults) {
        *lock(&self.fault_start) = Some(faults);
    }
}

#[async_trait]
impl Hypervisor for FakeHypervisor {
    fn facts(&self) -> &HypervisorFacts {
        &self.facts
    }

    async fn start(&self, plan: &BindingPlan, open: &CpuSet) -> Result<Arc<dyn Vm>, HypervisorError> {
        let vm = plan.name.clone();
        if let Some(reason) = lock(&self.fail_start).take() {
            return Err(HypervisorError::Refused { vm, reason });
        }
        let mut vms = lock(&self.vms);
        if vms.get(&vm).is_some_and(|vm| vm.is_alive()) {
            return Err(HypervisorError::Exists { vm });
        }
        let started = Arc::new(FakeVm::new(plan, open, Pid(1000 + vms.len() as u32)));
        started.set_faults(lock(&self.fault_start).take().unwrap_or_default());
        vms.insert(vm, started.clone());
        Ok(started)
    }

    async fn attach(&self, plan: &BindingPlan) -> Result<Option<Arc<dyn Vm>>, HypervisorError> {
        Ok(self.vm(&plan.name).filter(|vm| vm.is_alive()).map(|vm| vm as Arc<dyn Vm>))
    }
}

impl FakeVm {
    /// Somebody other than its daemon turns a gate.
    pub fn turn_gate(&self, vcpu: VcpuId, gate: Gate) {
        lock(&self.state).gates.insert(vcpu, gate);
    }

    /// The ceiling on its memory that was set last.
    pub fn ceiling(&self) -> Option<Bytes> {
        lock(&self.state).ceiling
    }

    /// Whether its daemon let go of it.
    pub fn is_released(&self) -> bool {
        lock(&self.state).released
    }

    fn new(plan: &BindingPlan, open: &CpuSet, pid: Pid) -> Self {
        let gate = |cpu| if open.contains(cpu) { Gate::Open } else { Gate::Closed(Grip::SOFT) };
        let device = |max| MemoryState { max, block: plan.memory_unit, ..MemoryState::default() };
        let state = State {
            run: RunState::Paused,
            gates: plan.replica.vcpus.iter().map(|vcpu| (vcpu.id, gate(vcpu.cpu))).collect(),
            memory: plan.memory.iter().filter(|n| !n.maximum.is_zero()).map(|n| (n.host, device(n.maximum))).collect(),
            boot: plan.memory.iter().map(|node| (node.host, node.boot)).collect(),
            console: String::new(),
            faults: Faults::default(),
            failed: BTreeMap::new(),
            released: false,
            ceiling: None,
        };
        let (events, _) = broadcast::channel(EVENT_BACKLOG);
        Self {
            name: plan.name.clone(),
            pid,
            block: plan.memory_unit,
            begun: Instant::now(),
            state: Mutex::new(state),
            events,
            alive: watch::Sender::new(true),
        }
    }

    /// Makes it misbehave from now on; the default value makes it behave.
    pub fn set_faults(&self, faults: Faults) {
        let mut state = lock(&self.state);
        state.faults = faults;
        // What it was asked for before stands.
        let nodes: Vec<NodeId> = state.memory.keys().copied().collect();
        for node in nodes {
            state.follow(node);
        }
    }

    /// Ends it as a crash would.
    pub fn crash(&self) {
        lock(&self.state).run = RunState::Ended;
        self.alive.send_replace(false);
    }

    /// Resets the guest: it plugs nothing any more.
    pub fn reset(&self) {
        let mut state = lock(&self.state);
        for memory in state.memory.values_mut() {
            memory.size = Bytes::ZERO;
        }
        drop(state);
        // Nobody listening is fine.
        let _ = self.events.send(VmEvent::Reset);
    }

    /// The guest stops as one does that cannot go on: QEMU lives, and says no more than that it is paused.
    pub fn halt(&self) {
        self.becomes(RunState::Stopped, VmEvent::Paused);
    }

    /// Somebody pauses the guest.
    pub fn pause(&self) {
        self.becomes(RunState::Paused, VmEvent::Paused);
    }

    /// A live migration is at this point: [`RunState::Migrating`], [`RunState::Migrated`], or, when it has failed,
    /// [`RunState::Running`]. Only a guest that runs undisturbed plugs and unplugs memory.
    pub fn migrate(&self, state: RunState) {
        self.becomes(state, VmEvent::Migration);
    }

    fn becomes(&self, state: RunState, event: VmEvent) {
        lock(&self.state).run = state;
        let _ = self.events.send(event);
    }

    /// Says that this happened, to those who listen.
    pub fn tell(&self, event: VmEvent) {
        let _ = self.events.send(event);
    }

    /// How often a fault made this fail: a command of QEMU's monitor, `set-gate` or `end`.
    pub fn failed(&self, what: &str) -> u32 {
        lock(&self.state).failed.get(what).copied().unwrap_or_default()
    }

    /// The guest writes to its console.
    pub fn print(&self, text: &str) {
        lock(&self.state).console.push_str(text);
    }

    fn is_alive(&self) -> bool {
        *self.alive.borrow()
    }

    /// What goes past QEMU's monitor.
    async fn enter(&self) -> Result<MutexGuard<'_, State>, HypervisorError> {
        let delay = lock(&self.state).faults.delay;
        if !delay.is_zero() {
            tokio::time::sleep(delay).await;
        }
        if !self.is_alive() {
            return Err(HypervisorError::Ended { vm: self.name.clone() });
        }
        Ok(lock(&self.state))
    }

    /// A command to QEMU's monitor.
    async fn command(&self, command: &'static str) -> Result<MutexGuard<'_, State>, HypervisorError> {
        let mut state = self.enter().await?;
        if state.faults.silent {
            state.fails(command);
            let source = QmpError::TimedOut { command: command.into(), budget: state.faults.delay };
            return Err(HypervisorError::Qmp { vm: self.name.clone(), source });
        }
        Ok(state)
    }

    fn device(&self, state: &State, node: NodeId) -> Result<MemoryState, HypervisorError> {
        state.memory.get(&node).copied().ok_or_else(|| HypervisorError::NoDevice { vm: self.name.clone(), node })
    }
}

impl State {
    fn fails(&mut self, what: &'static str) {
        *self.failed.entry(what).or_default() += 1;
    }

    /// The guest plugs or unplugs until it has what was asked, as far as its faults let it.
    fn follow(&mut self, node: NodeId) {
        let Some(memory) = self.memory.get_mut(&node) else { return };
        let least = self.faults.keeps.get(&node).copied().unwrap_or(Bytes::ZERO).min(memory.size);
        let most = self.faults.takes.get(&node).copied().unwrap_or(memory.max).max(memory.size);
        memory.size = memory.requested.clamp(least, most);
    }
}

#[async_trait]
impl Vm for FakeVm {
    fn name(&self) -> &VmName {
        &self.name
    }

    fn process(&self) -> Pid {
        self.pid
    }

    async fn resume(&self) -> Result<(), HypervisorError> {
        self.command("cont").await?.run = RunState::Running;
        let _ = self.events.send(VmEvent::Resumed);
        Ok(())
    }

    async fn run_state(&self) -> Result<RunState, HypervisorError> {
        if !self.is_alive() {
            return Ok(RunState::Ended);
        }
        Ok(self.command("query-status").await?.run)
    }

    async fn power_down(&self) -> Result<(), HypervisorError> {
        let ignored = self.command("system_powerdown").await?.faults.ignores_power_button;
        if !ignored {
            let _ = self.events.send(VmEvent::Stopped);
            self.crash();
        }
        Ok(())
    }

    async fn end(&self, budget: Duration) -> Result<(), HypervisorError> {
        let mut state = lock(&self.state);
        if state.faults.immortal && self.is_alive() {
            state.fails("end");
            let what = "the death of QEMU after a kill".into();
            return Err(HypervisorError::TimedOut { vm: self.name.clone(), what, budget });
        }
        drop(state);
        self.crash();
        Ok(())
    }

    async fn set_requested(&self, node: NodeId, bytes: Bytes) -> Result<MemoryState, HypervisorError> {
        let mut state = self.command("qom-set").await?;
        let device = self.device(&state, node)?;
        if bytes > device.max || bytes.round_down(self.block) != bytes {
            let reason = format!("requested-size {bytes} is above {} or no multiple of {}", device.max, self.block);
            return Err(HypervisorError::Refused { vm: self.name.clone(), reason });
        }
        state.memory.insert(node, MemoryState { requested: bytes, ..device });
        if state.run == RunState::Running {
            state.follow(node);
            let _ = self.events.send(VmEvent::MemoryChanged);
        }
        self.device(&state, node)
    }

    async fn memory(&self, node: NodeId) -> Result<MemoryState, HypervisorError> {
        let mut state = self.command("query-memory-devices").await?;
        if state.run == RunState::Running {
            state.follow(node);
        }
        self.device(&state, node)
    }

    async fn limit_memory(&self, bytes: Bytes) -> Result<(), HypervisorError> {
        self.enter().await?.ceiling = Some(bytes);
        Ok(())
    }

    async fn set_gate(&self, vcpu: VcpuId, gate: Gate) -> Result<(), HypervisorError> {
        let mut state = self.enter().await?;
        if state.faults.gates_stuck {
            state.fails("set-gate");
            return Err(HypervisorError::Refused { vm: self.name.clone(), reason: "the gate is stuck".into() });
        }
        match state.gates.get_mut(&vcpu) {
            Some(there) => *there = gate,
            None => {
                let source = GateError::NoVcpu { vm: self.name.clone(), vcpu };
                return Err(HypervisorError::Gate { vm: self.name.clone(), source });
            }
        }
        Ok(())
    }

    async fn gates(&self) -> Result<BTreeMap<VcpuId, Gate>, HypervisorError> {
        Ok(self.enter().await?.gates.clone())
    }

    async fn run_times(&self, vcpus: &[VcpuId]) -> Result<BTreeMap<VcpuId, Duration>, HypervisorError> {
        let state = self.enter().await?;
        let ran = |vcpu: &VcpuId| if state.faults.busy.contains(vcpu) { self.begun.elapsed() } else { Duration::ZERO };
        Ok(vcpus.iter().map(|vcpu| (*vcpu, ran(vcpu))).collect())
    }

    async fn runnable(&self, vcpus: &[VcpuId]) -> Result<VcpuSet, HypervisorError> {
        let state = self.enter().await?;
        let busy = |vcpu: &&VcpuId| state.faults.busy.contains(vcpu) || state.faults.stale.contains(vcpu);
        Ok(vcpus.iter().filter(busy).copied().collect())
    }

    async fn adopt_threads(&self) -> Result<Adopted, HypervisorError> {
        Ok(Adopted::default())
    }

    async fn put_right(&self, gates: &BTreeMap<VcpuId, Gate>) -> Result<Vec<String>, HypervisorError> {
        Ok(gates::put_right(&mut self.enter().await?.gates, gates))
    }

    async fn release(&self) -> Result<(), HypervisorError> {
        let mut state = self.enter().await?;
        state.gates.values_mut().for_each(|gate| *gate = Gate::Open);
        state.released = true;
        Ok(())
    }

    async fn console(&self) -> Result<String, HypervisorError> {
        Ok(std::mem::take(&mut self.command("ringbuf-read").await?.console))
    }

    async fn memory_by_node(&self) -> Result<BTreeMap<NodeId, Bytes>, HypervisorError> {
        let state = self.enter().await?;
        let plugged = |node: &NodeId| {
            let size = state.memory.get(node).map_or(Bytes::ZERO, |memory| memory.size);
            size + state.faults.touches.get(node).copied().unwrap_or_default()
        };
        Ok(state.boot.iter().map(|(node, boot)| (*node, *boot + plugged(node))).collect())
    }

    fn events(&self) -> broadcast::Receiver<VmEvent> {
        self.events.subscribe()
    }

    async fn ended(&self) {
        let mut alive = self.alive.subscribe();
        // An error means that the sender is gone, and the VM with it.
        let _ = alive.wait_for(|alive| !alive).await;
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
