//! What the engine owes every VM at all times: gates, guest and QEMU follow the ledger.
//!
//! For each knob there is a goal (the ledger's word, unless a transfer is taking something) and what
//! is in force; a duty is the action that brings one to the other, tried again until it is so. Nothing
//! here decides anything. A guest that reboots, an agent that comes late, a lost answer, a daemon
//! that restarts: all of them only leave a difference behind, and the duties remove it.

use std::time::Duration;

use conuma_topology::{Bytes, CpuSet, NodeId, VmName};

use crate::action::{ActionKind, Failure, Grip, Outcome};
use crate::control::{Told, Vm};
use crate::engine::{Engine, Owner};
use crate::holding::Resources;
use crate::pace::pause;
use crate::report::Notice;
use crate::timing::Timing;
use crate::vm::Life;

/// A knob of a VM. A transfer has those it turns to itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Knob {
    Gates,
    Agent,
    Memory(NodeId),
}

impl Engine {
    /// Issues what is due for every VM.
    pub(crate) fn do_duties(&mut self, now: Duration) {
        let names: Vec<VmName> = self.state.vms.keys().cloned().collect();
        for name in names {
            let Some(vm) = self.state.vms.get(&name).filter(|vm| vm.life == Life::Running) else { continue };
            let held = self.state.ledger.vm(&name).clone();
            // Gates come first: what is being opened is told to the agent in the same breath.
            let memory = vm.memory.keys().map(|node| Knob::Memory(*node));
            let knobs: Vec<Knob> = [Knob::Gates, Knob::Agent].into_iter().chain(memory).collect();
            for knob in knobs {
                self.issue_if_due(&name, knob, &held, now);
            }
            self.note_settled(&name, &held);
        }
    }

    fn issue_if_due(&mut self, name: &VmName, knob: Knob, held: &Resources, now: Duration) {
        let Some(vm) = self.state.vms.get(name) else { return };
        if let Some(kind) = duty(vm, knob, held, &self.timing, now) {
            self.issue_duty(name, knob, kind, now);
        }
    }

    fn issue_duty(&mut self, name: &VmName, knob: Knob, kind: ActionKind, now: Duration) {
        let limit = match &kind {
            ActionKind::CloseGate { watch, .. } => self.timing.host + *watch,
            _ if knob == Knob::Agent => self.timing.agent,
            _ => self.timing.host,
        };
        let id = self.issue(name, now + limit, kind.clone(), Owner::Duty(name.clone(), knob));
        let Some(vm) = self.state.vms.get_mut(name) else { return };
        match &kind {
            ActionKind::OpenGate { cpus } => {
                vm.cores.maybe_open = vm.cores.maybe_open.union(cpus);
                vm.cores.opening = cpus.clone();
                vm.cores.gate.pending = Some(id);
            }
            ActionKind::CloseGate { cpus, .. } => {
                vm.cores.surely_open = vm.cores.surely_open.difference(cpus);
                vm.cores.gate.pending = Some(id);
            }
            ActionKind::AgentApply { .. } => {
                vm.cores.told = None;
                vm.cores.apply.pending = Some(id);
            }
            ActionKind::SetRequestedSize { node, bytes } => {
                if let Some(memory) = vm.memory.get_mut(node) {
                    if memory.asked != *bytes {
                        (memory.began, memory.from, memory.changed) = (now, memory.seen.size, now);
                    }
                    memory.asked = memory.asked.max(*bytes);
                    memory.certain = false;
                    memory.set = now;
                    memory.attempt.pending = Some(id);
                }
            }
            ActionKind::PollSize { node } => {
                if let Some(memory) = vm.memory.get_mut(node) {
                    memory.attempt.pending = Some(id);
                }
            }
            _ => {}
        }
    }

    /// A duty's action was answered.
    pub(crate) fn duty_done(&mut self, name: &VmName, knob: Knob, kind: ActionKind, outcome: Outcome, now: Duration) {
        let retry = now + self.timing.retry;
        let Some(vm) = self.state.vms.get_mut(name) else { return };
        match knob {
            Knob::Gates => gate_done(vm, &kind, &outcome, retry),
            Knob::Agent => agent_done(vm, kind, outcome, retry),
            Knob::Memory(node) => memory_done(vm, node, &kind, outcome, &self.timing, now),
        }
    }

    fn note_settled(&mut self, name: &VmName, held: &Resources) {
        let Some(vm) = self.state.vms.get_mut(name) else { return };
        let settled = is_settled(vm, held);
        if settled && !vm.settled {
            self.notices.push(Notice::Settled { vm: name.clone() });
        }
        vm.settled = settled;
    }
}

/// Whether all knobs stand right.
fn is_settled(vm: &Vm, held: &Resources) -> bool {
    let cores = &vm.cores;
    let gates = cores.gate_goal(&held.cpus);
    let goal = cores.apply_goal(&held.cpus);
    let told = vm.is_on_its_own() || cores.told.as_ref().is_some_and(|told| told.cpus == goal);
    let sized = |(node, memory): (&NodeId, &crate::control::MemoryKnob)| {
        let goal = memory_goal(vm, *node, held.on(*node));
        memory.certain && memory.asked == goal && memory.seen.size == goal
    };
    cores.maybe_open == gates
        && cores.surely_open == gates
        && cores.astray().is_empty()
        && told
        && vm.memory.iter().all(sized)
}

fn duty(vm: &Vm, knob: Knob, held: &Resources, timing: &Timing, now: Duration) -> Option<ActionKind> {
    match knob {
        Knob::Gates => gate_duty(vm, held, timing, now),
        Knob::Agent => agent_duty(vm, held, now),
        Knob::Memory(node) => memory_duty(vm, node, held.on(node), timing, now),
    }
}

/// Closing goes before opening. Whether the guest runs on is watched where it is asked to leave.
fn gate_duty(vm: &Vm, held: &Resources, timing: &Timing, now: Duration) -> Option<ActionKind> {
    let cores = &vm.cores;
    if cores.gate.pending.is_some() || now < cores.gate.not_before {
        return None;
    }
    let goal = cores.gate_goal(&held.cpus);
    let close = cores.maybe_open.difference(&goal);
    if !close.is_empty() {
        let grip = if close.is_disjoint(&cores.offline) { cores.grip } else { Grip::Stopped };
        let left = grip == Grip::Soft && !close.is_disjoint(&cores.closing);
        let watch = if left { timing.idle_window } else { Duration::ZERO };
        return Some(ActionKind::CloseGate { cpus: close, grip, watch });
    }
    let astray = cores.astray();
    if !astray.is_empty() {
        return Some(ActionKind::CloseGate { cpus: astray, grip: Grip::Stopped, watch: Duration::ZERO });
    }
    let open = goal.difference(&cores.surely_open);
    (!open.is_empty()).then_some(ActionKind::OpenGate { cpus: open })
}

fn gate_done(vm: &mut Vm, kind: &ActionKind, outcome: &Outcome, retry: Duration) {
    let cores = &mut vm.cores;
    cores.gate.pending = None;
    cores.opening = CpuSet::new();
    match (kind, outcome) {
        (ActionKind::OpenGate { cpus }, Outcome::GateOpened) => cores.surely_open = cores.surely_open.union(cpus),
        (ActionKind::CloseGate { cpus, grip, .. }, Outcome::GateClosed { busy }) => {
            if *grip == Grip::Stopped {
                cores.stopped = cores.stopped.union(&cpus.intersection(&cores.offline));
            }
            let runs_on = busy.intersection(&cores.closing);
            cores.maybe_open = cores.maybe_open.difference(&cpus.difference(&runs_on));
        }
        _ => cores.gate.not_before = retry,
    }
}

fn agent_duty(vm: &Vm, held: &Resources, now: Duration) -> Option<ActionKind> {
    let cores = &vm.cores;
    if !vm.agent || cores.apply.pending.is_some() || now < cores.apply.not_before {
        return None;
    }
    let goal = cores.apply_goal(&held.cpus);
    let told = cores.told.as_ref().is_some_and(|told| told.cpus == goal);
    (!told && !goal.is_empty()).then_some(ActionKind::AgentApply { cpus: goal })
}

fn agent_done(vm: &mut Vm, kind: ActionKind, outcome: Outcome, retry: Duration) {
    vm.cores.apply.pending = None;
    match (kind, outcome) {
        (ActionKind::AgentApply { cpus }, Outcome::Applied { refused }) => {
            vm.cores.told = Some(Told { cpus, refused });
            vm.cores.untold = None;
            vm.silent = false;
        }
        (_, Outcome::Failed(failure)) => {
            vm.cores.untold = Some(failure);
            vm.cores.apply.not_before = retry;
        }
        _ => vm.cores.apply.not_before = retry,
    }
}

fn memory_goal(vm: &Vm, node: NodeId, held: Bytes) -> Bytes {
    let goal = vm.memory.get(&node).and_then(|memory| memory.goal);
    goal.unwrap_or_else(|| held.saturating_sub(vm.boot(node)))
}

/// Sets the size, then looks until it is reached. Asking for a shrink once more restarts a guest that is stuck.
fn memory_duty(vm: &Vm, node: NodeId, held: Bytes, timing: &Timing, now: Duration) -> Option<ActionKind> {
    let memory = vm.memory.get(&node)?;
    if memory.attempt.pending.is_some() || now < memory.attempt.not_before {
        return None;
    }
    let goal = memory_goal(vm, node, held);
    let stuck = memory.seen.size > goal && now >= memory.set.max(memory.changed) + timing.restart;
    if !memory.certain || memory.asked != goal || stuck {
        return Some(ActionKind::SetRequestedSize { node, bytes: goal });
    }
    (memory.seen.size != goal).then_some(ActionKind::PollSize { node })
}

fn memory_done(vm: &mut Vm, node: NodeId, kind: &ActionKind, outcome: Outcome, timing: &Timing, now: Duration) {
    let Some(memory) = vm.memory.get_mut(&node) else { return };
    memory.attempt.pending = None;
    match outcome {
        Outcome::Memory(seen) => {
            if seen.size != memory.seen.size {
                memory.changed = now;
            }
            memory.seen = seen;
            memory.failed = None;
            if let ActionKind::SetRequestedSize { bytes, .. } = kind {
                memory.certain = seen.requested == *bytes;
                memory.asked = if memory.certain { *bytes } else { memory.asked.max(seen.requested) };
            }
            memory.attempt.not_before = now + pause(memory.progress(), timing, now);
        }
        other => {
            let failure = if let Outcome::Failed(failure) = other { failure } else { Failure::TimedOut };
            memory.failed = Some(failure);
            memory.attempt.not_before = now + timing.retry;
        }
    }
}

/// When a duty of this VM may be due next, if it is not yet.
pub(crate) fn next_duty(vm: &Vm, held: &Resources, timing: &Timing) -> Option<Duration> {
    if vm.life != Life::Running {
        return None;
    }
    let later =
        |attempt: &crate::control::Attempt, due: bool| (due && attempt.pending.is_none()).then_some(attempt.not_before);
    let late = Duration::MAX;
    let due = |knob| duty(vm, knob, held, timing, late).is_some();
    let gates = later(&vm.cores.gate, due(Knob::Gates));
    let agent = later(&vm.cores.apply, due(Knob::Agent));
    let memory = vm.memory.iter().filter_map(|(node, memory)| later(&memory.attempt, due(Knob::Memory(*node))));
    memory.chain(gates).chain(agent).min()
}
