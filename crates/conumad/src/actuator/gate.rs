//! The gates' lane: opens, closes, watches run times; between actions it looks at gated vCPUs and at new
//! threads of QEMU.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use conuma_api::EventKind;
use conuma_balancing as balancing;
use conuma_balancing::{Action, ActionKind, Failure, Outcome};
use conuma_hypervisor::gate::{Gate, Grip};
use conuma_hypervisor::{Adopted, HypervisorError};
use conuma_topology::{CpuSet, VcpuId};
use tokio::sync::mpsc;
use tokio::time::{Instant, MissedTickBehavior, interval};

use super::brake::Brake;
use super::watch::Watch;
use super::{Fence, Tools, chain, failure};
use crate::wire::gate_state;

pub(super) async fn run(tools: Arc<Tools>, mut actions: mpsc::Receiver<Action>) {
    let mut lane = GateLane {
        tools,
        brakes: BTreeMap::new(),
        seen: BTreeMap::new(),
        looked: Instant::now(),
        ailing: false,
        looks: 0,
        learned: false,
    };
    lane.learn().await;
    let mut fence = Fence::default();
    let mut looks = interval(lane.tools.look);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            biased;
            action = actions.recv() => match action {
                Some(action) if fence.lets_pass(action.id) => {
                    let tools = lane.tools.clone();
                    tools.within(&action, lane.turn(&action)).await;
                }
                Some(_) => {}
                None => return,
            },
            _ = looks.tick() => lane.look().await,
        }
    }
}

struct GateLane {
    tools: Arc<Tools>,
    /// The brakes on closed gates.
    brakes: BTreeMap<VcpuId, Brake>,
    /// Run times at the last look.
    seen: BTreeMap<VcpuId, Duration>,
    looked: Instant,
    /// The last look failed: said once.
    ailing: bool,
    /// Looks so far.
    looks: u32,
    /// How the gates stood when it began is known.
    learned: bool,
}

/// Every so many looks gates and bindings are read back: somebody else may have changed them.
const LOOKS_PER_AUDIT: u32 = 5;

impl GateLane {
    /// Learns how gates stand, as another daemon may have left them.
    async fn learn(&mut self) {
        let Ok(gates) = self.tools.vm.gates().await else { return };
        for (vcpu, gate) in gates {
            if let Gate::Closed(grip) = gate {
                self.brakes.entry(vcpu).or_insert(Brake::closed(grip));
            }
        }
        self.learned = true;
    }

    async fn turn(&mut self, action: &Action) -> Outcome {
        let done = match &action.kind {
            ActionKind::CloseGate { cpus, grip, watch } => {
                let brake = match grip {
                    balancing::Grip::Soft => Brake::closed(Grip::SOFT),
                    balancing::Grip::Firm => Brake::closed(Grip::FIRM),
                    balancing::Grip::Stopped => Brake::STOPPED,
                };
                self.close(cpus, brake, *watch).await.map(|busy| Outcome::GateClosed { busy })
            }
            ActionKind::OpenGate { cpus } => self.set(cpus, None).await.map(|()| Outcome::GateOpened),
            other => return Outcome::Failed(Failure::Refused(format!("{other:?} is not for a gate"))),
        };
        done.unwrap_or_else(|error| Outcome::Failed(failure(&error)))
    }

    /// Closes gates with a brake, or opens them.
    async fn set(&mut self, cpus: &CpuSet, brake: Option<Brake>) -> Result<(), HypervisorError> {
        for vcpu in self.tools.plan.replica.vcpus_on(cpus).iter() {
            self.tools.vm.set_gate(vcpu, gate(brake)).await?;
            match brake {
                None => drop(self.brakes.remove(&vcpu)),
                Some(brake) => drop(self.brakes.insert(vcpu, brake)),
            }
            self.seen.remove(&vcpu);
        }
        Ok(())
    }

    /// Closes gates and gives the CPUs on which the guest runs on. It is watched from before the first gate closes,
    /// for `watch` at the least.
    async fn close(&mut self, cpus: &CpuSet, brake: Brake, watch: Duration) -> Result<CpuSet, HypervisorError> {
        if watch.is_zero() {
            return self.set(cpus, Some(brake)).await.map(|()| CpuSet::new());
        }
        let tools = self.tools.clone();
        let watched = Watch::begin(tools.vm.as_ref(), &tools.plan, cpus).await?;
        self.set(cpus, Some(brake)).await?;
        watched.end(watch).await
    }

    /// Looks at gated vCPUs and new threads.
    async fn look(&mut self) {
        let looked = self.try_look().await;
        match looked {
            Ok(()) => self.ailing = false,
            // An ended VM is noticed elsewhere.
            Err(HypervisorError::Ended { .. }) => {}
            Err(error) if !self.ailing => {
                self.ailing = true;
                tracing::warn!(vm = %self.tools.plan.name, "gated vCPUs cannot be looked at: {}", chain(&error));
            }
            Err(_) => {}
        }
    }

    /// Finds and sets right what somebody else has changed. Threads are looked at each time, as QEMU makes new ones.
    async fn audit(&mut self) -> Result<(), HypervisorError> {
        let Adopted { vcpus, others } = self.tools.vm.adopt_threads().await?;
        if others > 0 {
            tracing::debug!(vm = %self.tools.plan.name, others, "threads were placed");
        }
        let mut found: Vec<String> =
            vcpus.iter().map(|vcpu| format!("the thread of vCPU {vcpu} was in another cgroup")).collect();
        self.looks += 1;
        if !self.learned {
            self.learn().await;
        } else if self.looks.is_multiple_of(LOOKS_PER_AUDIT) {
            let vcpus = self.tools.plan.replica.vcpus.iter();
            let gates = vcpus.map(|vcpu| (vcpu.id, gate(self.brakes.get(&vcpu.id).copied())));
            found.extend(self.tools.vm.put_right(&gates.collect()).await?);
        }
        if !found.is_empty() {
            let vm = self.tools.plan.name.clone();
            tracing::warn!(%vm, "somebody else changes what Conuma has set; set right: {}", found.join("; "));
            self.tools.bus.tell(EventKind::Repaired { vm, what: found });
        }
        Ok(())
    }

    async fn try_look(&mut self) -> Result<(), HypervisorError> {
        // What cannot be set right is no reason to leave the brakes alone, nor is one gate that cannot be turned.
        let mut result = self.audit().await;
        let closed: Vec<VcpuId> = self.brakes.keys().copied().collect();
        let now = Instant::now();
        let window = now.saturating_duration_since(self.looked);
        self.looked = now;
        let times = self.tools.vm.run_times(&closed).await?;
        let before = std::mem::replace(&mut self.seen, times.clone());
        for (vcpu, time) in times {
            if let Some(before) = before.get(&vcpu) {
                result = result.and(self.adjust(vcpu, time.saturating_sub(*before), window).await);
            }
        }
        result
    }

    async fn adjust(&mut self, vcpu: VcpuId, ran: Duration, window: Duration) -> Result<(), HypervisorError> {
        let Some(brake) = self.brakes.get_mut(&vcpu) else { return Ok(()) };
        let was = *brake;
        let grip = match self.tools.excuses.excuse(std::time::Instant::now()) {
            Some(excuse) => brake.release(excuse),
            None => brake.seen(ran, window, self.tools.stray),
        };
        if grip == was.grip() {
            return Ok(());
        }
        let gate = Gate::Closed(grip);
        if let Err(error) = self.tools.vm.set_gate(vcpu, gate).await {
            *brake = was;
            return Err(error);
        }
        if let Some(cpu) = self.tools.plan.replica.cpu_of(vcpu) {
            let vm = self.tools.plan.name.clone();
            tracing::debug!(%vm, cpu = cpu.0, ?gate, ran_us = ran.as_micros() as u64, "brake changed");
            self.tools.bus.tell(EventKind::GateChanged { vm, cpu, gate: gate_state(gate) });
        }
        Ok(())
    }
}

/// How the gate of a vCPU stands that has this brake, or none.
fn gate(brake: Option<Brake>) -> Gate {
    brake.map_or(Gate::Open, |brake| Gate::Closed(brake.grip()))
}
