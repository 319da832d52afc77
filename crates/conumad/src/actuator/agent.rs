//! The agent's lane: holdings, making room, confirming memory. Host ids become guest ids here.
//!
//! Questions are sent in order, and answers waited for side by side: making room may take long, and cores that
//! move meanwhile must not wait for it. The agent does what changes its holding in the order of arrival.

use std::sync::Arc;

use conuma_agent_proto::{AgentError, HoldingOutcome, Reply, RequestBody};
use conuma_balancing::{Action, ActionKind, Failure, Outcome, RefusedCpus};
use conuma_topology::Bytes;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::{Fence, Tools};
use crate::agent::{AskError, Asked};

/// Of plugged memory a guest's kernel may keep this part for itself (its page descriptors: 64 bytes
/// for 4 KiB).
const MEMMAP_PART: u64 = 64;

pub(super) async fn run(tools: Arc<Tools>, mut actions: mpsc::Receiver<Action>) {
    let mut fence = Fence::default();
    let mut answers = JoinSet::new();
    loop {
        tokio::select! {
            action = actions.recv() => match action {
                Some(action) if fence.lets_pass(action.id) => {
                    let asked = tools.ask_agent(&action).await;
                    let tools = tools.clone();
                    answers.spawn(async move { tools.await_agent(action, asked).await });
                }
                Some(_) => {}
                None => return,
            },
            Some(_) = answers.join_next() => {}
        }
    }
}

impl Tools {
    async fn ask_agent(&self, action: &Action) -> Result<Asked, Failure> {
        let body = self.request_body(&action.kind)?;
        let budget = self.clock.until(action.deadline);
        self.link.ask(action.id.0, budget, body).await.map_err(agent_failure)
    }

    async fn await_agent(&self, action: Action, asked: Result<Asked, Failure>) {
        let _excused = matches!(action.kind, ActionKind::PrepareMemory { .. }).then(|| self.excuses.preparing());
        let answer = async {
            match asked?.answer().await {
                Ok(reply) => Ok(self.agent_outcome(reply)),
                Err(error) => Err(agent_failure(error)),
            }
        };
        self.within(&action, async { answer.await.unwrap_or_else(Outcome::Failed) }).await;
    }

    fn request_body(&self, kind: &ActionKind) -> Result<RequestBody, Failure> {
        let guest_node = |node| {
            self.plan.replica.guest_node(node).ok_or_else(|| Failure::Refused(format!("the guest has no node {node}")))
        };
        match kind {
            ActionKind::AgentApply { cpus } => {
                Ok(RequestBody::ApplyHolding { cpus: self.plan.replica.guest_cpus(cpus) })
            }
            ActionKind::PrepareMemory { node, bytes } => {
                Ok(RequestBody::PrepareMemory { node: guest_node(*node)?, bytes: *bytes })
            }
            ActionKind::ConfirmMemory { node, plugged } => {
                let usable = plugged.saturating_sub(Bytes(plugged.0 / MEMMAP_PART));
                let at_least = self.baseline.of(*node) + usable;
                Ok(RequestBody::ConfirmMemory { node: guest_node(*node)?, at_least })
            }
            other => Err(Failure::Refused(format!("{other:?} is not for an agent"))),
        }
    }

    fn agent_outcome(&self, reply: Reply) -> Outcome {
        match reply {
            Reply::Holding(HoldingOutcome { refused, timings, .. }) => {
                tracing::debug!(vm = %self.plan.name, ?timings, "the agent applied a holding");
                self.excuses.told(std::time::Instant::now());
                let refused = refused.into_iter().map(|refusal| RefusedCpus {
                    cpus: self.plan.replica.host_cpus(&refusal.cpus),
                    why: refusal.reason.to_string(),
                });
                Outcome::Applied { refused: refused.collect() }
            }
            Reply::Prepared(prepared) => Outcome::Prepared { enough: prepared.enough, spare: prepared.spare },
            Reply::Memory(memory) => Outcome::Confirmed { satisfied: memory.satisfied },
            Reply::Hello(_) | Reply::Report(_) | Reply::Watching { .. } | Reply::Pushed(_) => {
                Outcome::Failed(Failure::Failed("the agent answered something that was not asked".into()))
            }
        }
    }
}

fn agent_failure(error: AskError) -> Failure {
    match error {
        AskError::Unreachable => Failure::Unreachable,
        AskError::TimedOut | AskError::Agent(AgentError::Deadline(_)) => Failure::TimedOut,
        AskError::Agent(error @ (AgentError::Unsupported(_) | AgentError::BadRequest(_) | AgentError::Version(_))) => {
            Failure::Refused(error.to_string())
        }
        AskError::Agent(error @ (AgentError::Stale { .. } | AgentError::Failed(_))) => {
            Failure::Failed(error.to_string())
        }
    }
}
