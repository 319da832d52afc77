//! The daemon from its start to its end: lock, journal, what runs already, the engine, the API.

use std::fs::{File, TryLockError};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use conuma_balancing::{Engine, Event, Host, State};
use conuma_hypervisor::Hypervisor;
use conuma_linux::cgroup::Cgroup;
use conuma_linux::procfs::ProcFs;
use conuma_topology::{CpuSet, Machine};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::balance::{self, HostReader};
use crate::bus::Bus;
use crate::clock::Clock;
use crate::config::{Settings, make_dir, make_private_dir};
use crate::core::{self, CoreHandle, CoreTask};
use crate::host_cpus;
use crate::http::{self, Access};
use crate::journal::Journal;
use crate::vms::{Room, find};

/// How long requests under way may take to end.
const STOP: Duration = Duration::from_secs(10);

/// What a daemon works on.
pub struct Surroundings {
    /// The host.
    pub machine: Machine,
    /// Tells one boot of the host from another.
    pub boot_id: String,
    /// What runs VMs.
    pub hypervisor: Arc<dyn Hypervisor>,
    /// The file in which the kernel lists the host's CPUs that are online.
    pub online: PathBuf,
    /// What the kernel tells of the host's own memory.
    pub proc: ProcFs,
    /// The cgroup of all VMs; those beside it are the host's own.
    pub cgroup: Cgroup,
}

/// A daemon that serves.
pub struct Daemon {
    stop: CancellationToken,
    tasks: TaskTracker,
    room: Arc<Room>,
    core: CoreTask,
    _locks: [File; 2],
}

impl Surroundings {
    /// This host's, read below `root`; VMs have theirs below `cgroup`.
    pub fn read(root: &Path, cgroup: &Path, hypervisor: Arc<dyn Hypervisor>) -> anyhow::Result<Self> {
        let machine = conuma_linux::sysfs::read_machine(root).context("cannot read the host's topology")?;
        let proc = ProcFs::new(root);
        let boot_id = proc.boot_id().context("cannot tell which boot of the host this is")?;
        let online = root.join("sys/devices/system/cpu/online");
        Ok(Self { machine, boot_id, hypervisor, online, proc, cgroup: Cgroup::at(cgroup) })
    }
}

impl Daemon {
    /// Starts: comes back when the API can be used and all VMs that run are in charge.
    pub async fn start(settings: Settings, surroundings: Surroundings) -> anyhow::Result<Self> {
        for dir in [&settings.state, &settings.vms()] {
            make_private_dir(dir).with_context(|| format!("cannot make {}", dir.display()))?;
        }
        // The sockets in it say themselves who may use them.
        make_dir(&settings.run, 0o755).with_context(|| format!("cannot make {}", settings.run.display()))?;
        let locks = [lock(&settings.state)?, lock(&settings.run)?];
        let Surroundings { machine, boot_id, hypervisor, online, proc, cgroup } = surroundings;
        let clock = Clock::start();
        let (journal, state, history) = Journal::open::<State, _>(&settings.state, &boot_id)?;
        let state = state.map(|state| state.with_history(history.unwrap_or_default()));
        let mut found = find(hypervisor.as_ref(), &settings).await?;
        if state.is_none() && !found.is_empty() {
            tracing::warn!(
                vms = found.len(),
                "no journal tells of these VMs: who holds what is read from the host, loans are forgotten"
            );
        }
        let host = Host::new(&machine, &settings.reserve.cpus, settings.reserve.memory_per_node);
        let offline: CpuSet = machine.cpus.iter().filter(|(_, cpu)| !cpu.online).map(|(id, _)| *id).collect();
        let host = match &state {
            Some(state) => state.host_despite(host, &offline),
            None => host,
        };
        let known = found.iter().map(|(name, found)| (name.clone(), found.engine.clone())).collect();
        let mut engine = Engine::recover(state, host, known, settings.timing.clone(), clock.now());
        // Before anything is opened on them.
        let offline = offline.intersection(&engine.host().everything().cpus);
        engine.update(Event::HostCpus { offline }, clock.now());
        let bus = Bus::new(clock);
        let (handle, inbox) = core::open();
        let (balance, asked) = balance::open(bus.clone());
        let (stop, tasks) = (CancellationToken::new(), TaskTracker::new());
        let (socket, viewers_socket) = (settings.socket(), settings.viewers_socket());
        let (group, viewers) = (settings.group, settings.viewers);
        let (told, ends) = (bus.clone(), stop.clone());
        let room = Room::new(settings, machine, clock, told, handle, hypervisor, ends, tasks.clone(), balance);
        for (_, found) in found.drain(..) {
            room.resume_charge(found);
        }
        // Not before: what is due at once must have somewhere to go.
        let core = core::start(inbox, engine, journal, clock, bus);
        let sockets = [(socket.clone(), group, Access::Change), (viewers_socket, viewers, Access::View)];
        tasks.spawn(host_cpus::watch(online, room.clone(), stop.clone()));
        tasks.spawn(balance::run(asked, room.clone(), HostReader::new(proc, cgroup), stop.clone()));
        for (path, group, access) in sockets {
            let listener = http::bind(&path, group)?;
            let (serving, ended) = (room.clone(), stop.clone());
            tasks.spawn(async move {
                if let Err(error) = http::serve(listener, access, serving, ended).await {
                    tracing::error!("{error:#}");
                }
            });
        }
        tracing::info!(socket = %socket.display(), "ready");
        Ok(Self { stop, tasks, room, core, _locks: locks })
    }

    /// The owner of the engine.
    pub fn core(&self) -> CoreHandle {
        self.room.core.clone()
    }

    /// Fires when the daemon begins to stop.
    pub fn stopped(&self) -> CancellationToken {
        self.stop.clone()
    }

    /// Stops: VMs run on.
    pub async fn stop(self) {
        self.stop.cancel();
        self.tasks.close();
        if tokio::time::timeout(STOP, self.tasks.wait()).await.is_err() {
            tracing::warn!("a VM was being started: the next daemon finds it or what is left of it");
        }
        self.room.core.stop();
        // The lock is let go when nobody writes the journal any more.
        self.core.ended().await;
    }
}

/// One daemon per directory of states or sockets: two that kept ledgers of the same host would each give away the other's.
fn lock(dir: &Path) -> anyhow::Result<File> {
    let path = dir.join("lock");
    let file = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&path)
        .with_context(|| format!("cannot open {}", path.display()))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => bail!("another conumad uses {}: one serves a host", dir.display()),
        Err(TryLockError::Error(error)) => Err(error).with_context(|| format!("cannot lock {}", path.display())),
    }
}
