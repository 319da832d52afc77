//! Stopping a VM.

use std::sync::Arc;
use std::time::Duration;

use conuma_api::{Code, Problem, StopQuery};
use conuma_hypervisor::RunState;
use conuma_topology::VmName;
use tokio::sync::oneshot;
use tokio::time::timeout;

use super::start::stopping;
use super::{Entry, Phase, Room, Running};
use crate::actuator::chain;
use crate::core::Stopped;

/// How long a guest may take to power off unless said otherwise.
const POWER_OFF: Duration = Duration::from_secs(30);

impl Room {
    /// Ends a VM: asks its guest to power off, or with `force` ends QEMU.
    pub(crate) async fn stop(self: &Arc<Self>, name: &VmName, how: StopQuery) -> Result<(), Problem> {
        let entry = self.entry(name)?;
        let Some(running) = entry.running() else {
            return Err(
                Problem::new(Code::Refused, format!("VM {name} is still starting")).with_hint("try again in a moment")
            );
        };
        // On its own: whoever asked may go away, a VM that was told to end must end or be said to run on.
        let (asked, was_asked) = oneshot::channel();
        let (room, wait) = (self.clone(), how.wait);
        let ending = self.tasks.spawn(async move {
            let _stopping = running.stopping();
            let budget = room.ask_to_end(&entry, &running, &how).await?;
            // Who asked may not wait for this.
            let _ = asked.send(());
            room.wait_gone(&entry, budget).await
        });
        if !wait && was_asked.await.is_ok() {
            return Ok(());
        }
        ending.await.unwrap_or_else(|_| Err(stopping(Stopped)))
    }

    /// Asks; how long it may then take to be gone. Where no guest runs any more that could power off, QEMU is ended.
    async fn ask_to_end(&self, entry: &Entry, running: &Running, how: &StopQuery) -> Result<Duration, Problem> {
        let force = how.force || matches!(running.vm.run_state().await, Ok(RunState::Migrated));
        tracing::info!(vm = %entry.plan.name, force, "VM is stopped");
        let asked = if force { running.vm.end(self.settings.step).await } else { running.vm.power_down().await };
        asked.map_err(|error| {
            let name = &entry.plan.name;
            Problem::new(Code::Hypervisor, format!("VM {name} cannot be stopped: {}", chain(&error)))
        })?;
        let budget = how.deadline_ms.map_or(POWER_OFF, Duration::from_millis);
        Ok(budget + if force { self.settings.step } else { Duration::ZERO })
    }

    async fn wait_gone(&self, entry: &Entry, budget: Duration) -> Result<(), Problem> {
        let mut phase = entry.phase.subscribe();
        let gone = timeout(budget, phase.wait_for(|phase| matches!(phase, Phase::Gone(_))));
        match self.stop.run_until_cancelled(gone).await {
            Some(Ok(_)) => Ok(()),
            Some(Err(_)) => {
                let name = &entry.plan.name;
                let message = format!("the guest of VM {name} did not power off within {} s", budget.as_secs());
                Err(Problem::new(Code::TimedOut, message)
                    .with_hint(format!("`conuma stop {name} --force` ends it at once")))
            }
            None => Err(stopping(Stopped)),
        }
    }
}
