//! A VM that QEMU runs.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use conuma_binding::BindingPlan;
use conuma_linux::cgroup::Limit;
use conuma_linux::procfs::{Pid, ProcFs, Tid};
use conuma_topology::{Bytes, CpuId, NodeId, VcpuId, VcpuSet, VmName};
use serde_json::{Value, json};
use tokio::sync::broadcast;
use tokio::task::AbortHandle;
use tokio::time::{Instant, sleep};

use super::process::Process;
use super::{ceiling, with_overhead};
use crate::error::HypervisorError;
use crate::gate::{Gate, GateError};
use crate::gates::Gates;
use crate::qmp::{Qmp, QmpError, QmpEvent};
use crate::vm::{Adopted, MemoryState, RunState, Vm, VmEvent};

/// For one answer of QEMU's; it answers at once unless its main loop is busy (mapping memory, under emulation).
const ANSWER: Duration = Duration::from_secs(10);
/// Events kept for a slow reader before it misses the oldest.
const EVENT_BACKLOG: usize = 64;
/// Between two tries to remove a cgroup whose last task is just leaving.
const TRY_AGAIN: Duration = Duration::from_millis(5);

type Result<T, E = HypervisorError> = std::result::Result<T, E>;

#[derive(Debug)]
pub(super) struct QemuVm {
    name: VmName,
    process: Process,
    qmp: Arc<Qmp>,
    gates: Arc<dyn Gates>,
    proc: ProcFs,
    threads: BTreeMap<VcpuId, Tid>,
    /// What each vCPU is bound to.
    cpus: BTreeMap<VcpuId, CpuId>,
    /// The ceiling on all memory of its process. Locked while it is written to the cgroup.
    memory_max: Mutex<Bytes>,
    devices: BTreeMap<NodeId, String>,
    events: broadcast::Sender<VmEvent>,
    listener: AbortHandle,
}

impl QemuVm {
    /// The VM behind a monitor, its threads where they belong. Gives the process back if that fails.
    pub(super) async fn new(
        plan: &BindingPlan,
        process: Process,
        qmp: Qmp,
        gates: Arc<dyn Gates>,
        proc: ProcFs,
    ) -> std::result::Result<Self, (Process, HypervisorError)> {
        let threads = match vcpu_threads(plan, &qmp).await {
            Ok(threads) => threads,
            Err(error) => return Err((process, error)),
        };
        if let Err(source) = gates.adopt(process.pid(), &threads) {
            return Err((process, HypervisorError::Gate { vm: plan.name.clone(), source }));
        }
        let (events, _) = broadcast::channel(EVENT_BACKLOG);
        let qmp = Arc::new(qmp);
        // Of a migration QEMU tells nothing unless told to. It refuses while one is under way; then an earlier daemon has said it.
        let events_of_migrations = json!({"capabilities": [{"capability": "events", "state": true}]});
        if let Err(error) = qmp.call("migrate-set-capabilities", events_of_migrations, ANSWER).await {
            tracing::debug!(vm = %plan.name, %error, "QEMU will not tell of migrations");
        }
        let listener = tokio::spawn(translate(qmp.events(), events.clone())).abort_handle();
        let devices = plan.memory.iter().filter(|node| node.is_flexible()).map(|node| (node.host, node.device_id()));
        let devices = devices.collect();
        let cpus = plan.replica.vcpus.iter().map(|vcpu| (vcpu.id, vcpu.cpu)).collect();
        let memory_max = Mutex::new(ceiling(plan));
        let name = plan.name.clone();
        Ok(Self { name, process, qmp, gates, proc, threads, cpus, memory_max, devices, events, listener })
    }

    /// What QEMU says of a guest that has not ended.
    async fn ask_run_state(&self) -> Result<RunState> {
        // First: a migration that ends in between is seen by what it has become.
        let migrates = self.migrates().await?;
        let status = self.call("query-status", json!({})).await?;
        Ok(match status["status"].as_str().unwrap_or_default() {
            "finish-migrate" => RunState::Migrating,
            "postmigrate" => RunState::Migrated,
            "running" | "paused" | "prelaunch" | "suspended" if migrates => RunState::Migrating,
            "running" => RunState::Running,
            "prelaunch" | "paused" | "suspended" | "inmigrate" | "save-vm" | "restore-vm" => RunState::Paused,
            _ => RunState::Stopped,
        })
    }

    /// Whether a live migration is under way.
    async fn migrates(&self) -> Result<bool> {
        let migration = self.call("query-migrate", json!({})).await?;
        let over = ["none", "cancelled", "completed", "failed"];
        Ok(migration["status"].as_str().is_some_and(|status| !over.contains(&status)))
    }

    async fn call(&self, command: &str, arguments: Value) -> Result<Value> {
        self.qmp.call(command, arguments, ANSWER).await.map_err(|source| self.failed(source))
    }

    /// A closed monitor means that the VM has ended.
    fn failed(&self, source: QmpError) -> HypervisorError {
        match source {
            QmpError::Closed { .. } => HypervisorError::Ended { vm: self.name.clone() },
            source => HypervisorError::Qmp { vm: self.name.clone(), source },
        }
    }

    fn device(&self, node: NodeId) -> Result<&str> {
        let device = self.devices.get(&node).map(String::as_str);
        device.ok_or_else(|| HypervisorError::NoDevice { vm: self.name.clone(), node })
    }

    fn gate_failed(&self, source: GateError) -> HypervisorError {
        HypervisorError::Gate { vm: self.name.clone(), source }
    }
}

impl Drop for QemuVm {
    fn drop(&mut self) {
        self.listener.abort();
    }
}

#[async_trait]
impl Vm for QemuVm {
    fn name(&self) -> &VmName {
        &self.name
    }

    fn process(&self) -> Pid {
        self.process.pid()
    }

    async fn resume(&self) -> Result<()> {
        self.call("cont", json!({})).await.map(drop)
    }

    async fn run_state(&self) -> Result<RunState> {
        if self.process.has_ended() {
            return Ok(RunState::Ended);
        }
        match self.ask_run_state().await {
            Err(HypervisorError::Ended { .. }) => Ok(RunState::Ended),
            state => state,
        }
    }

    async fn power_down(&self) -> Result<()> {
        self.call("system_powerdown", json!({})).await.map(drop)
    }

    async fn end(&self, budget: Duration) -> Result<()> {
        let until = Instant::now() + budget;
        let left = || until.saturating_duration_since(Instant::now());
        // Half of the time for QEMU to end by itself, with its files in order; it may be past answering.
        let polite = async {
            let _ = self.qmp.call("quit", json!({}), ANSWER).await;
            self.process.ended().await;
        };
        if tokio::time::timeout(budget / 2, polite).await.is_err() {
            tracing::warn!(vm = %self.name, "QEMU does not quit and is killed");
            self.process.kill();
            let killed = tokio::time::timeout(left(), self.process.ended()).await;
            killed.map_err(|_| HypervisorError::TimedOut {
                vm: self.name.clone(),
                what: "the death of QEMU after a kill".into(),
                budget,
            })?;
        }
        remove_gates(&self.name, self.gates.as_ref(), left()).await
    }

    async fn set_requested(&self, node: NodeId, bytes: Bytes) -> Result<MemoryState> {
        let path = format!("/machine/peripheral/{}", self.device(node)?);
        self.call("qom-set", json!({"path": path, "property": "requested-size", "value": bytes.0})).await?;
        self.memory(node).await
    }

    async fn memory(&self, node: NodeId) -> Result<MemoryState> {
        let device = self.device(node)?;
        let answer = self.call("query-memory-devices", json!({})).await?;
        let entry = answer.as_array().and_then(|list| list.iter().find(|entry| entry["data"]["id"] == device));
        let read = |key: &str| entry?["data"][key].as_u64().map(Bytes);
        let state = (|| {
            Some(MemoryState {
                requested: read("requested-size")?,
                size: read("size")?,
                max: read("max-size")?,
                block: read("block-size")?,
            })
        })();
        state.ok_or_else(|| {
            let reason = format!("no sizes of {device} in it");
            self.failed(QmpError::Malformed { command: "query-memory-devices".into(), reason })
        })
    }

    async fn limit_memory(&self, bytes: Bytes) -> Result<()> {
        let mut memory_max = self.memory_max.lock().unwrap_or_else(PoisonError::into_inner);
        let wanted = with_overhead(bytes);
        self.gates.set_memory_max(Limit::At(wanted)).map_err(|source| self.gate_failed(source))?;
        *memory_max = wanted;
        Ok(())
    }

    async fn set_gate(&self, vcpu: VcpuId, gate: Gate) -> Result<()> {
        self.gates.set(vcpu, gate).map_err(|source| self.gate_failed(source))
    }

    async fn gates(&self) -> Result<BTreeMap<VcpuId, Gate>> {
        self.gates.all().map_err(|source| self.gate_failed(source))
    }

    async fn run_times(&self, vcpus: &[VcpuId]) -> Result<BTreeMap<VcpuId, Duration>> {
        let time = |vcpu: &VcpuId| {
            let thread =
                *self.threads.get(vcpu).ok_or_else(|| GateError::NoVcpu { vm: self.name.clone(), vcpu: *vcpu })?;
            match self.proc.task_schedstat(self.process.pid(), thread) {
                // Its guest has ejected the CPU: it does not run.
                Err(error) if error.is_gone() => Ok(None),
                stat => Ok(Some((*vcpu, stat?.ran))),
            }
        };
        let times = vcpus.iter().map(time).collect::<Result<Vec<_>, GateError>>();
        times.map(|times| times.into_iter().flatten().collect()).map_err(|source| self.gate_failed(source))
    }

    async fn runnable(&self, vcpus: &[VcpuId]) -> Result<VcpuSet> {
        let mut runnable = VcpuSet::new();
        for vcpu in vcpus {
            let Some(thread) = self.threads.get(vcpu) else { continue };
            match self.proc.task_stat(self.process.pid(), *thread) {
                Err(error) if error.is_gone() => {}
                stat => {
                    if stat.map_err(|source| self.gate_failed(source.into()))?.is_runnable() {
                        runnable.insert(*vcpu);
                    }
                }
            }
        }
        Ok(runnable)
    }

    async fn adopt_threads(&self) -> Result<Adopted> {
        self.gates.adopt(self.process.pid(), &self.threads).map_err(|source| self.gate_failed(source))
    }

    async fn put_right(&self, gates: &BTreeMap<VcpuId, Gate>) -> Result<Vec<String>> {
        let memory_max = self.memory_max.lock().unwrap_or_else(PoisonError::into_inner);
        self.gates.put_right(&self.cpus, gates, *memory_max).map_err(|source| self.gate_failed(source))
    }

    async fn release(&self) -> Result<()> {
        self.gates.release(self.process.pid()).map_err(|source| self.gate_failed(source))
    }

    async fn memory_by_node(&self) -> Result<BTreeMap<NodeId, Bytes>> {
        // The kernel walks all page tables of QEMU for it: seconds for hundreds of GiB.
        let (proc, pid) = (self.proc.clone(), self.process.pid());
        let read = tokio::task::spawn_blocking(move || proc.numa_maps(pid)).await;
        // It can only be that the program ends.
        let maps = read.map_err(|_| HypervisorError::Ended { vm: self.name.clone() })?;
        let maps = maps.map_err(|source| self.gate_failed(source.into()))?;
        let mut nodes = BTreeMap::<NodeId, Bytes>::new();
        for map in &maps {
            for node in map.pages.keys() {
                *nodes.entry(NodeId(*node)).or_default() += map.on_node(*node);
            }
        }
        Ok(nodes)
    }

    async fn console(&self) -> Result<String> {
        let answer = self.call("ringbuf-read", json!({"device": "console", "size": 65536})).await?;
        Ok(answer.as_str().unwrap_or_default().to_owned())
    }

    fn events(&self) -> broadcast::Receiver<VmEvent> {
        self.events.subscribe()
    }

    async fn ended(&self) {
        self.process.ended().await;
    }
}

/// The vCPU threads by QEMU's own account. A guest can eject CPUs, so some may be missing, but none may be there that the
/// plan does not have.
async fn vcpu_threads(plan: &BindingPlan, qmp: &Qmp) -> Result<BTreeMap<VcpuId, Tid>> {
    let vm = || plan.name.clone();
    let failed = |source| HypervisorError::Qmp { vm: vm(), source };
    let command = "query-cpus-fast";
    let answer = qmp.call(command, json!({}), ANSWER).await.map_err(failed)?;
    let number = |value: &Value| value.as_u64().and_then(|n| u32::try_from(n).ok());
    let thread = |cpu: &Value| Some((VcpuId(number(&cpu["cpu-index"])?), Tid(number(&cpu["thread-id"])?)));
    let threads: Option<BTreeMap<VcpuId, Tid>> = answer.as_array().and_then(|cpus| cpus.iter().map(thread).collect());
    let threads = threads.ok_or_else(|| {
        failed(QmpError::Malformed { command: command.into(), reason: "no cpu-index or thread-id".into() })
    })?;
    let there: conuma_topology::VcpuSet = threads.keys().copied().collect();
    let wanted: conuma_topology::VcpuSet = plan.replica.vcpus.iter().map(|vcpu| vcpu.id).collect();
    if there.is_empty() || !there.is_subset(&wanted) {
        return Err(HypervisorError::Refused {
            vm: vm(),
            reason: format!("QEMU has vCPUs {there}, the plan wants {wanted}"),
        });
    }
    Ok(threads)
}

/// Removes a VM's gates after its death; the last task may take a moment to leave them.
pub(super) async fn remove_gates(vm: &VmName, gates: &dyn Gates, budget: Duration) -> Result<()> {
    let until = Instant::now() + budget;
    loop {
        match gates.remove() {
            Ok(()) => return Ok(()),
            Err(source) if Instant::now() >= until => {
                return Err(HypervisorError::Gate { vm: vm.clone(), source });
            }
            Err(_) => sleep(TRY_AGAIN).await,
        }
    }
}

async fn translate(mut from: broadcast::Receiver<QmpEvent>, to: broadcast::Sender<VmEvent>) {
    loop {
        let event = match from.recv().await {
            Ok(event) => event,
            Err(broadcast::error::RecvError::Lagged(missed)) => {
                let _ = to.send(VmEvent::Missed(missed));
                continue;
            }
            Err(broadcast::error::RecvError::Closed) => return,
        };
        let event = match event.name.as_str() {
            "RESET" => VmEvent::Reset,
            "SHUTDOWN" | "GUEST_PANICKED" => VmEvent::Stopped,
            "STOP" => VmEvent::Paused,
            "RESUME" => VmEvent::Resumed,
            "MIGRATION" => VmEvent::Migration,
            "MEMORY_DEVICE_SIZE_CHANGE" => VmEvent::MemoryChanged,
            _ => continue,
        };
        // Nobody listening is fine.
        let _ = to.send(event);
    }
}
