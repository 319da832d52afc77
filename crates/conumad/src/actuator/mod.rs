//! The one place through which everything is written to a VM: an actuator per VM, with a lane for each
//! kind of knob. Actions of a lane are done one after the other; an action older than one that was begun
//! in its lane is dropped, and the agent refuses generations older than the newest it has seen.

mod agent;
mod brake;
mod excuse;
mod gate;
mod memory;
mod watch;

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use conuma_balancing::{Action, ActionId, Event, Failure, Lane, Outcome};
use conuma_binding::BindingPlan;
use conuma_hypervisor::qmp::QmpError;
use conuma_hypervisor::{HypervisorError, Vm};
use conuma_topology::{Bytes, NodeId};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::agent::AgentLink;
use crate::bus::Bus;
use crate::clock::Clock;
use crate::core::CoreHandle;

pub use excuse::Excuses;
pub(crate) use memory::plugged;
pub(crate) use watch::Watch;

/// Actions that wait in a lane; the engine has one or two under way per knob.
const QUEUE: usize = 256;

/// Takes the actions of one VM.
#[derive(Debug)]
pub struct Actuator {
    lanes: BTreeMap<Lane, mpsc::Sender<Action>>,
}

/// What an actuator acts on and tells.
pub struct Tools {
    /// The VM.
    pub vm: Arc<dyn Vm>,
    /// How host and guest ids go together.
    pub plan: Arc<BindingPlan>,
    /// Its agent.
    pub link: AgentLink,
    /// What each node of the guest has without plugged memory.
    pub baseline: Arc<Baseline>,
    /// Why the guest may run where it should not.
    pub excuses: Arc<Excuses>,
    /// Engine time.
    pub clock: Clock,
    /// Who is told what came of actions.
    pub core: CoreHandle,
    /// Who is told of gates that moved by themselves.
    pub bus: Bus,
    /// How often gated vCPUs are looked at.
    pub look: Duration,
    /// What a guest does in passing on a gated vCPU, in thousandths of the time; more is braked.
    pub stray: u32,
    /// No agent is expected in the guest.
    pub agentless: bool,
}

/// `MemTotal` of each node less what was plugged when it was measured: boot memory less what the guest's kernel
/// keeps. Needed to say how much a guest must have once more is plugged.
#[derive(Debug, Default)]
pub struct Baseline(Mutex<BTreeMap<NodeId, Bytes>>);

impl Baseline {
    /// What was measured for a node.
    pub fn of(&self, node: NodeId) -> Bytes {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get(&node).copied().unwrap_or_default()
    }

    /// Keeps what was measured.
    pub fn set(&self, node: NodeId, measured: Bytes) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(node, measured);
    }
}

impl Actuator {
    /// Starts the lanes of a VM, which are tasks of `lanes`; they end with `stop`, or when the actuator is dropped.
    pub fn start(tools: Arc<Tools>, stop: &CancellationToken, lanes: &TaskTracker) -> Self {
        let (agent, agent_actions) = mpsc::channel(QUEUE);
        let (memory, memory_actions) = mpsc::channel(QUEUE);
        let (gate, gate_actions) = mpsc::channel(QUEUE);
        let spawn = |work: std::pin::Pin<Box<dyn Future<Output = ()> + Send>>| {
            let stop = stop.clone();
            lanes.spawn(async move { stop.run_until_cancelled(work).await });
        };
        spawn(Box::pin(agent::run(tools.clone(), agent_actions)));
        spawn(Box::pin(memory::run(tools.clone(), memory_actions)));
        spawn(Box::pin(gate::run(tools, gate_actions)));
        lanes.close();
        Self { lanes: BTreeMap::from([(Lane::Agent, agent), (Lane::Hypervisor, memory), (Lane::Gate, gate)]) }
    }

    /// Puts an action into its lane; gives it back if that is full or has ended.
    pub(crate) fn send(&self, action: Action) -> Result<(), Action> {
        match self.lanes.get(&action.kind.lane()) {
            Some(lane) => lane.try_send(action).map_err(|refused| match refused {
                mpsc::error::TrySendError::Full(action) | mpsc::error::TrySendError::Closed(action) => action,
            }),
            None => Err(action),
        }
    }
}

/// The newest action begun in a lane.
#[derive(Debug, Default)]
struct Fence(ActionId);

impl Fence {
    fn lets_pass(&mut self, id: ActionId) -> bool {
        let passes = id > self.0;
        self.0 = self.0.max(id);
        passes
    }
}

impl Tools {
    /// Does an action within its deadline and tells the core what came of it.
    async fn within<F>(&self, action: &Action, work: F)
    where
        F: Future<Output = Outcome>,
    {
        let outcome = match tokio::time::timeout(self.clock.until(action.deadline), work).await {
            Ok(outcome) => outcome,
            Err(_) => Outcome::Failed(Failure::TimedOut),
        };
        if let Outcome::Failed(failure) = &outcome {
            tracing::debug!(vm = %action.vm, generation = action.id.0, kind = ?action.kind, %failure, "action failed");
        }
        self.core.happened(Event::Done { id: action.id, outcome });
    }
}

/// What a hypervisor's error means to the engine.
fn failure(error: &HypervisorError) -> Failure {
    match error {
        HypervisorError::TimedOut { .. } | HypervisorError::Qmp { source: QmpError::TimedOut { .. }, .. } => {
            Failure::TimedOut
        }
        HypervisorError::Ended { .. } | HypervisorError::Qmp { source: QmpError::Closed { .. }, .. } => {
            Failure::Unreachable
        }
        HypervisorError::Refused { .. } | HypervisorError::NoDevice { .. } => Failure::Refused(chain(error)),
        other => Failure::Failed(chain(other)),
    }
}

/// An error with its causes, in one line.
pub(crate) fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        next = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_monitor_that_does_not_answer_is_late_and_one_that_is_closed_is_gone() {
        let vm: conuma_topology::VmName = "a".parse().unwrap();
        let qmp = |source| failure(&HypervisorError::Qmp { vm: vm.clone(), source });
        let command = || "qom-set".to_owned();
        assert_eq!(qmp(QmpError::TimedOut { command: command(), budget: Duration::ZERO }), Failure::TimedOut);
        assert_eq!(qmp(QmpError::Closed { command: command() }), Failure::Unreachable);
        let malformed = qmp(QmpError::Malformed { command: command(), reason: "no size".into() });
        assert!(matches!(malformed, Failure::Failed(why) if why.contains("no size")));
        assert_eq!(failure(&HypervisorError::Ended { vm: vm.clone() }), Failure::Unreachable);
    }
}
