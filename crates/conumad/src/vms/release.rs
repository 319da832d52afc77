//! Letting go of a VM: it runs on as if Conuma had never been there.

use std::sync::Arc;

use conuma_agent_proto::RequestBody;
use conuma_api::{Code, Problem, ReleaseAnswer};
use conuma_topology::VmName;

use super::Room;
use super::start::stopping;
use crate::actuator::chain;
use crate::agent::AskError;
use crate::core::Stopped;

/// Newer than any decision: after it no other is made for this guest.
const LAST: u64 = u64::MAX;

impl Room {
    /// Lets go of a VM for good: its agent is told to use every CPU, its threads may run anywhere, nothing brakes them, and its
    /// cgroups are gone. Its memory stays as large as it is. What it held is free in the ledger, though it uses it.
    pub(crate) async fn release(self: &Arc<Self>, name: &VmName) -> Result<ReleaseAnswer, Problem> {
        // On its own: whoever asked may go away, a release that was begun must be ended.
        let (room, name) = (self.clone(), name.clone());
        let released = self.tasks.spawn(async move { room.let_go(&name).await });
        released.await.unwrap_or_else(|_| Err(stopping(Stopped)))
    }

    async fn let_go(&self, name: &VmName) -> Result<ReleaseAnswer, Problem> {
        let entry = self.entry(name)?;
        let Some(running) = entry.running().filter(|running| !running.is_stopping()) else {
            return Err(Problem::new(Code::Refused, format!("VM {name} is starting or stopping"))
                .with_hint("try again in a moment"));
        };
        // From now on nobody else acts on it.
        self.core.detach(name.clone());
        running.lanes.wait().await;
        running.vm.release().await.map_err(|error| {
            Problem::new(Code::Hypervisor, format!("VM {name} cannot be released: {}", chain(&error)))
                .with_hint("nobody acts on it now: restart conumad, which takes charge of it again")
        })?;
        // Only now that it is done: an agent that has heard this follows no other decision before its guest boots anew.
        let cpus = entry.plan.replica.vcpus.iter().map(|vcpu| vcpu.id).collect();
        let cpus = entry.plan.replica.guest_cpus(&entry.plan.replica.cpus_of(&cpus));
        let asked = running.link.ask(LAST, self.settings.step, RequestBody::ApplyHolding { cpus }).await;
        let told = match asked {
            Ok(asked) => asked.answer().await.map(drop),
            Err(error) => Err(error),
        };
        running.stop.cancel();
        self.gone(&entry, "it was released and runs on without Conuma".into());
        tracing::info!(vm = %name, "VM released");
        Ok(ReleaseAnswer { agent_told: told.is_ok(), why_not: told.err().map(|error: AskError| error.to_string()) })
    }
}
