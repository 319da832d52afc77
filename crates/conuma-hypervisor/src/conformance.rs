//! What holds for every back end: one suite, run against the fake and against real hypervisors.
#![allow(clippy::expect_used, clippy::panic, reason = "a suite fails by panicking")]

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use conuma_binding::BindingPlan;
use conuma_topology::{Bytes, CpuId, CpuSet, NodeId, VcpuId};
use tokio::sync::broadcast::Receiver;
use tokio::time::timeout;

use crate::error::HypervisorError;
use crate::gate::{Gate, GateError, Grip};
use crate::vm::{Adopted, Hypervisor, RunState, Vm, VmEvent};

/// Longest that anything may take; generous, as emulation on a busy machine is slow.
const BUDGET: Duration = Duration::from_secs(60);

/// A back end and a plan to try it with: at least two vCPUs, and virtio-mem of at least 128 MiB on some node.
pub struct Subject<'a> {
    /// The back end.
    pub hypervisor: &'a dyn Hypervisor,
    /// The plan of a VM that does not run.
    pub plan: &'a BindingPlan,
    /// Whether the guest's driver does what `requested-size` says.
    pub guest_follows: bool,
}

impl Subject<'_> {
    /// The whole suite, one VM after the other. Panics at what does not hold.
    pub async fn conforms(&self) {
        self.starts_paused_with_its_gates().await;
        self.a_name_is_taken_while_its_vm_runs().await;
        self.gates_read_back_as_they_were_set().await;
        self.memory_requests_are_kept_within_bounds().await;
        self.outlives_its_handles().await;
        self.ends_for_good_and_can_start_again().await;
    }

    async fn starts_paused_with_its_gates(&self) {
        let vm = self.start().await;
        assert_eq!(vm.name(), &self.plan.name);
        assert_eq!(vm.run_state().await.expect("run state"), RunState::Paused);
        let gates = vm.gates().await.expect("gates");
        assert_eq!(gates.len(), self.plan.replica.vcpus.len(), "every vCPU has a gate");
        for vcpu in &self.plan.replica.vcpus {
            let expected = if vcpu.cpu == self.open() { Gate::Open } else { Gate::Closed(Grip::SOFT) };
            assert_eq!(gates[&vcpu.id], expected, "gate of vCPU {}", vcpu.id);
        }
        let memory = vm.memory(self.node()).await.expect("memory");
        assert_eq!((memory.requested, memory.size), (Bytes::ZERO, Bytes::ZERO));
        assert_eq!(memory.max, self.plan.memory_on(self.node()).expect("planned").maximum);
        let mut events = vm.events();
        vm.resume().await.expect("resume");
        expect_event(&mut events, &VmEvent::Resumed).await;
        assert_eq!(vm.run_state().await.expect("run state"), RunState::Running);
        let vcpus: Vec<VcpuId> = self.plan.replica.vcpus.iter().map(|vcpu| vcpu.id).collect();
        assert_eq!(vm.run_times(&vcpus).await.expect("run times").len(), vcpus.len());
        vm.adopt_threads().await.expect("adopt");
        assert_eq!(
            vm.adopt_threads().await.expect("adopt again"),
            Adopted::default(),
            "threads stay where they were put"
        );
        vm.console().await.expect("console");
        vm.end(BUDGET).await.expect("end");
    }

    async fn a_name_is_taken_while_its_vm_runs(&self) {
        let vm = self.start().await;
        drop(vm);
        let again = self.hypervisor.start(self.plan, &CpuSet::new()).await.map(drop);
        assert!(matches!(again, Err(HypervisorError::Exists { .. })), "{again:?}");
        self.attach().await.expect("still runs").end(BUDGET).await.expect("end");
    }

    async fn gates_read_back_as_they_were_set(&self) {
        let vm = self.start().await;
        let vcpu = self.plan.replica.vcpus[0].id;
        for gate in [Gate::Open, Gate::Closed(Grip::FIRM), Gate::Closed(Grip::SOFT.tighter()), Gate::Open] {
            vm.set_gate(vcpu, gate).await.expect("set gate");
            assert_eq!(vm.gates().await.expect("gates")[&vcpu], gate);
        }
        let right = vm.gates().await.expect("gates");
        assert!(vm.put_right(&right).await.expect("put right").is_empty(), "nothing was wrong");
        let other = BTreeMap::from([(vcpu, Gate::Closed(Grip::FIRM))]);
        let found = vm.put_right(&other).await.expect("put right");
        assert_eq!(found, [format!("the gate of vCPU {vcpu} was open, not closed with a quota of 1 ms")]);
        assert_eq!(vm.gates().await.expect("gates")[&vcpu], Gate::Closed(Grip::FIRM));
        let unknown = vm.set_gate(VcpuId(60_000), Gate::Open).await;
        assert!(matches!(unknown, Err(HypervisorError::Gate { source: GateError::NoVcpu { .. }, .. })), "{unknown:?}");
        vm.end(BUDGET).await.expect("end");
    }

    async fn memory_requests_are_kept_within_bounds(&self) {
        let vm = self.start().await;
        vm.resume().await.expect("resume");
        let node = self.node();
        let block = vm.memory(node).await.expect("memory").block;
        let wanted = block.max(Bytes::mib(64));
        for _ in 0..2 {
            let state = vm.set_requested(node, wanted).await.expect("request, also the same again");
            assert_eq!(state.requested, wanted);
        }
        if self.guest_follows {
            self.wait_for_size(vm.as_ref(), wanted).await;
        } else {
            assert_eq!(vm.memory(node).await.expect("memory").size, Bytes::ZERO);
        }
        let max = vm.memory(node).await.expect("memory").max;
        for wrong in [max + block, wanted + Bytes(1)] {
            vm.set_requested(node, wrong).await.expect_err("more than there is, or no multiple");
            assert_eq!(vm.memory(node).await.expect("memory").requested, wanted, "a refused request changes nothing");
        }
        let unknown = vm.set_requested(NodeId(60_000), wanted).await;
        assert!(matches!(unknown, Err(HypervisorError::NoDevice { .. })), "{unknown:?}");
        assert_eq!(vm.set_requested(node, Bytes::ZERO).await.expect("take back").requested, Bytes::ZERO);
        if self.guest_follows {
            self.wait_for_size(vm.as_ref(), Bytes::ZERO).await;
        }
        vm.memory_by_node().await.expect("memory by node");
        vm.end(BUDGET).await.expect("end");
    }

    async fn outlives_its_handles(&self) {
        let vm = self.start().await;
        vm.resume().await.expect("resume");
        vm.set_gate(self.plan.replica.vcpus[0].id, Gate::Closed(Grip::FIRM)).await.expect("set gate");
        vm.set_requested(self.node(), Bytes::mib(64)).await.expect("request");
        let (process, gates) = (vm.process(), vm.gates().await.expect("gates"));
        drop(vm);
        let vm = self.attach().await.expect("still runs");
        assert_eq!(vm.process(), process);
        assert_eq!(vm.run_state().await.expect("run state"), RunState::Running);
        assert_eq!(vm.gates().await.expect("gates"), gates);
        assert_eq!(vm.memory(self.node()).await.expect("memory").requested, Bytes::mib(64));
        vm.end(BUDGET).await.expect("end");
    }

    async fn ends_for_good_and_can_start_again(&self) {
        for _ in 0..2 {
            let vm = self.start().await;
            vm.resume().await.expect("resume");
            let ended = {
                let vm = vm.clone();
                tokio::spawn(async move { vm.ended().await })
            };
            vm.end(BUDGET).await.expect("end");
            timeout(BUDGET, ended).await.expect("whoever waits for the end is told").expect("no panic");
            assert_eq!(vm.run_state().await.expect("run state"), RunState::Ended);
            vm.end(BUDGET).await.expect("ending again is no error");
            vm.resume().await.expect_err("the dead do not run");
            drop(vm);
            assert!(self.attach().await.is_none(), "nothing to attach to");
        }
    }

    async fn start(&self) -> Arc<dyn Vm> {
        let open = CpuSet::from([self.open()]);
        self.hypervisor.start(self.plan, &open).await.unwrap_or_else(|error| panic!("start: {}", chain(&error)))
    }

    async fn attach(&self) -> Option<Arc<dyn Vm>> {
        self.hypervisor.attach(self.plan).await.unwrap_or_else(|error| panic!("attach: {}", chain(&error)))
    }

    fn open(&self) -> CpuId {
        self.plan.replica.vcpus[0].cpu
    }

    fn node(&self) -> NodeId {
        self.plan.memory.iter().find(|node| node.is_flexible()).expect("the plan has virtio-mem").host
    }

    async fn wait_for_size(&self, vm: &dyn Vm, wanted: Bytes) {
        let reached = async {
            while vm.memory(self.node()).await.expect("memory").size != wanted {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        timeout(BUDGET, reached).await.expect("the guest follows");
    }
}

async fn expect_event(events: &mut Receiver<VmEvent>, wanted: &VmEvent) {
    let arrives = async { while events.recv().await.expect("events go on") != *wanted {} };
    timeout(BUDGET, arrives).await.unwrap_or_else(|_| panic!("{wanted:?} does not come"));
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(&format!(": {error}"));
        cause = error.source();
    }
    text
}
