//! Stopping a VM.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use conuma_api::{Code, Problem, StopQuery};
use conuma_topology::VmName;
use tokio::time::timeout;

use super::{Entry, Phase, Room};
use crate::actuator::chain;

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
        running.stopping.store(true, Ordering::Relaxed);
        tracing::info!(vm = %name, how.force, "VM is stopped");
        let asked = if how.force { running.vm.end(self.settings.step).await } else { running.vm.power_down().await };
        asked.map_err(|error| {
            Problem::new(Code::Hypervisor, format!("VM {name} cannot be stopped: {}", chain(&error)))
        })?;
        if !how.wait {
            return Ok(());
        }
        let budget = how.deadline_ms.map_or(POWER_OFF, Duration::from_millis);
        let gone = self.wait_gone(&entry, budget + if how.force { self.settings.step } else { Duration::ZERO }).await;
        if gone.is_err() {
            running.stopping.store(false, Ordering::Relaxed);
        }
        gone
    }

    async fn wait_gone(&self, entry: &Entry, budget: Duration) -> Result<(), Problem> {
        let mut phase = entry.phase.subscribe();
        let gone = timeout(budget, phase.wait_for(|phase| matches!(phase, Phase::Gone(_)))).await;
        match gone {
            Ok(_) => Ok(()),
            Err(_) => {
                let name = &entry.plan.name;
                let message = format!("the guest of VM {name} did not power off within {} s", budget.as_secs());
                Err(Problem::new(Code::TimedOut, message)
                    .with_hint(format!("`conuma stop {name} --force` ends it at once")))
            }
        }
    }
}
