//! The hypervisor's lane: sizes of virtio-mem devices.

use std::sync::Arc;
use std::time::Instant;

use conuma_balancing::{Action, ActionKind, Failure, Outcome, PluggedMemory};
use conuma_hypervisor::MemoryState;
use tokio::sync::mpsc;

use super::{Fence, Tools, failure};

pub(super) async fn run(tools: Arc<Tools>, mut actions: mpsc::Receiver<Action>) {
    let mut fence = Fence::default();
    while let Some(action) = actions.recv().await {
        if fence.lets_pass(action.id) {
            tools.within(&action, tools.turn_memory(&action)).await;
        }
    }
}

impl Tools {
    async fn turn_memory(&self, action: &Action) -> Outcome {
        let (node, answer) = match &action.kind {
            ActionKind::SetRequestedSize { node, bytes } => {
                self.excuses.asked(*node, *bytes, Instant::now());
                (*node, self.vm.set_requested(*node, *bytes).await)
            }
            ActionKind::PollSize { node } => (*node, self.vm.memory(*node).await),
            other => return Outcome::Failed(Failure::Refused(format!("{other:?} is not for a hypervisor"))),
        };
        match answer {
            Ok(state) => {
                if state.requested == state.size {
                    self.excuses.at_rest(node);
                }
                Outcome::Memory(plugged(state))
            }
            Err(error) => Outcome::Failed(failure(&error)),
        }
    }
}

/// Sizes as the engine knows them.
pub(crate) fn plugged(state: MemoryState) -> PluggedMemory {
    PluggedMemory { requested: state.requested, size: state.size }
}
