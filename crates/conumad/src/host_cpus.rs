//! CPUs of the host that go offline and come back. The kernel moves the threads of one that goes to others, also vCPU threads
//! that are bound to it: those must be stopped, or they would run on a CPU of another VM.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context as _;
use conuma_balancing::Event;
use conuma_topology::CpuSet;
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

use crate::vms::Room;

/// Tells the engine which of its CPUs are offline, whenever that changes, until `stop`.
pub(crate) async fn watch(online: PathBuf, room: Arc<Room>, stop: CancellationToken) {
    let Ok(all) = room.core.look(|engine, _| engine.host().everything().cpus).await else { return };
    let mut looks = interval(room.settings.look);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut known = None;
    let mut ailing = false;
    while stop.run_until_cancelled(looks.tick()).await.is_some() {
        match read(&online) {
            Ok(online) => {
                ailing = false;
                let offline = all.difference(&online);
                if known.as_ref() != Some(&offline) {
                    room.core.happened(Event::HostCpus { offline: offline.clone() });
                    known = Some(offline);
                }
            }
            Err(error) if !ailing => {
                ailing = true;
                tracing::warn!("it cannot be seen which CPUs of the host are online: {error:#}");
            }
            Err(_) => {}
        }
    }
}

fn read(online: &Path) -> anyhow::Result<CpuSet> {
    let text = std::fs::read_to_string(online).with_context(|| format!("reading {}", online.display()))?;
    text.trim().parse().with_context(|| format!("{} does not list CPUs", online.display()))
}
