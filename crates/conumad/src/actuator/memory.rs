//! The hypervisor's lane: sizes of virtio-mem devices, and, where the host alone enforces what a VM holds, the ceiling on
//! all memory of its process.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use conuma_balancing::{Action, ActionKind, Failure, Outcome, PluggedMemory};
use conuma_hypervisor::{HypervisorError, MemoryState};
use conuma_topology::{Bytes, NodeId};
use tokio::sync::mpsc;

use super::{Fence, Tools, chain, failure};

pub(super) async fn run(tools: Arc<Tools>, mut actions: mpsc::Receiver<Action>) {
    let mut fence = Fence::default();
    let mut ceiling = Ceiling::of(&tools).await;
    while let Some(action) = actions.recv().await {
        if fence.lets_pass(action.id) {
            tools.within(&action, tools.turn_memory(&action, &mut ceiling)).await;
        }
    }
}

/// What a VM without an agent can have of each device: its process gets no more than that in all.
#[derive(Debug)]
struct Ceiling(Option<BTreeMap<NodeId, Bytes>>);

impl Ceiling {
    async fn of(tools: &Tools) -> Self {
        if !tools.agentless {
            return Self(None);
        }
        let mut devices = BTreeMap::new();
        for node in tools.plan.memory.iter().filter(|node| node.is_flexible()) {
            // A size that is not known might be any.
            let bound = tools.vm.memory(node.host).await.map_or(node.maximum, |state| plugged(state).bound());
            devices.insert(node.host, bound);
        }
        if let Err(error) = limit(tools, &devices).await {
            tracing::warn!(vm = %tools.plan.name, "its memory has no ceiling until some moves: {}", chain(&error));
        }
        Self(Some(devices))
    }

    /// From now on the device can have this much. Raised before it is asked for, lowered after it is gone.
    async fn set(&mut self, tools: &Tools, node: NodeId, bound: Bytes) -> Result<(), HypervisorError> {
        let Some(devices) = &mut self.0 else { return Ok(()) };
        if devices.get(&node) == Some(&bound) {
            return Ok(());
        }
        let mut wanted = devices.clone();
        wanted.insert(node, bound);
        limit(tools, &wanted).await?;
        *devices = wanted;
        Ok(())
    }

    fn on(&self, node: NodeId) -> Bytes {
        self.0.as_ref().and_then(|devices| devices.get(&node)).copied().unwrap_or_default()
    }
}

async fn limit(tools: &Tools, devices: &BTreeMap<NodeId, Bytes>) -> Result<(), HypervisorError> {
    let boot: Bytes = tools.plan.boot_memory().values().copied().sum();
    tools.vm.limit_memory(boot + devices.values().copied().sum()).await
}

impl Tools {
    async fn turn_memory(&self, action: &Action, ceiling: &mut Ceiling) -> Outcome {
        let (node, answer) = match &action.kind {
            ActionKind::SetRequestedSize { node, bytes } => {
                self.excuses.asked(*node, *bytes, Instant::now());
                let raised = ceiling.set(self, *node, ceiling.on(*node).max(*bytes)).await;
                let asked = match raised {
                    Ok(()) => self.vm.set_requested(*node, *bytes).await,
                    Err(error) => Err(error),
                };
                (*node, asked)
            }
            ActionKind::PollSize { node } => (*node, self.vm.memory(*node).await),
            other => return Outcome::Failed(Failure::Refused(format!("{other:?} is not for a hypervisor"))),
        };
        match answer {
            Ok(state) => {
                if state.requested == state.size {
                    self.excuses.at_rest(node);
                }
                if let Err(error) = ceiling.set(self, node, plugged(state).bound()).await {
                    tracing::warn!(vm = %self.plan.name, "its ceiling stays too high: {}", chain(&error));
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
