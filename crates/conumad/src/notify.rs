//! What systemd is told: ready, stopping, still alive. Nothing happens where systemd did not start the daemon.

use std::time::Duration;

use sd_notify::NotifyState;
use tokio::time::interval;
use tokio_util::sync::CancellationToken;

use crate::core::CoreHandle;

/// The daemon can be used.
pub fn ready() {
    tell(&[NotifyState::Ready]);
}

/// The daemon ends; VMs run on.
pub fn stopping() {
    tell(&[NotifyState::Stopping]);
}

/// Tells systemd that the daemon lives, as often as it wants to hear it and only while the core answers.
pub async fn watchdog(core: CoreHandle, stop: CancellationToken) {
    let Some(limit) = sd_notify::watchdog_enabled() else { return };
    let mut beats = interval((limit / 3).max(Duration::from_millis(100)));
    let beat = async {
        loop {
            beats.tick().await;
            if core.look(|_, _| ()).await.is_ok() {
                tell(&[NotifyState::Watchdog]);
            }
        }
    };
    stop.run_until_cancelled(beat).await;
}

fn tell(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        tracing::warn!(%error, "systemd cannot be told");
    }
}
