//! Starting a VM, and finding those again that an earlier daemon started.
//!
//! The order makes the ledger an upper bound at every instant: resources are booked, and in the journal,
//! before QEMU exists; every gate that is not the VM's is closed before the guest's first instruction; and the
//! files that let another daemon find the VM are there before its process is.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use anyhow::Context as _;
use conuma_api::{Code, EventKind, Problem, StartPlan, VmDetail};
use conuma_balancing::{Event, Holder, Refusal, Resources, VmFound};
use conuma_binding::{Agent, BindingPlan, PlanError, PlanOptions, VmSpec};
use conuma_hypervisor::gate::{Gate, Grip};
use conuma_hypervisor::qemu::command_line;
use conuma_hypervisor::{Hypervisor, HypervisorError, RunState, Vm};
use conuma_topology::VmName;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep};

use super::files::VmFiles;
use super::spec::engine_spec;
use super::{Entry, Phase, Room, Running, observe};
use crate::actuator::{Actuator, Baseline, Excuses, Tools, Watch, chain};
use crate::agent::AgentLink;
use crate::config::Settings;
use crate::core::NotBegun;
use crate::guest::GuestState;
use crate::wire::{not_begun, refusal, resources};

/// Context ids below are the hypervisor's and the host's own.
const FIRST_CID: u32 = 3;

/// Between attempts to reach a QEMU that an earlier daemon started.
const ATTACH_AGAIN: Duration = Duration::from_millis(500);

/// A VM file that was read and planned.
struct Planned {
    spec: VmSpec,
    plan: Arc<BindingPlan>,
}

impl Room {
    /// What starting the VM of this file would do.
    pub(crate) async fn preview_start(&self, file: &str) -> Result<StartPlan, Problem> {
        let Planned { spec, plan } = self.plan(file)?;
        let engine_spec = engine_spec(&spec, &plan);
        self.policy_admits(&engine_spec, &spec).await?;
        let moves = self.core.look(move |engine, _| engine.preview_start(&engine_spec)).await;
        let moves = moves.map_err(stopping)?.map_err(|why| refusal(&why))?;
        let mut holding = Resources::default();
        for step in &moves.moves {
            holding.add(&step.what);
        }
        Ok(StartPlan {
            name: spec.name.clone(),
            holding: resources(&holding),
            vcpus: plan.replica.vcpus.iter().map(|vcpu| (vcpu.id, vcpu.cpu)).collect(),
            boot_memory: plan.boot_memory(),
            memory_devices: plan
                .memory
                .iter()
                .filter(|node| node.is_flexible())
                .map(|node| (node.host, node.maximum))
                .collect(),
            command: command_line(&plan, self.hypervisor.facts()),
            notes: plan.notes.clone(),
        })
    }

    /// Starts the VM of this file; with `wait` comes back when QEMU runs the guest.
    pub(crate) async fn start(self: &Arc<Self>, file: &str, wait: bool) -> Result<VmDetail, Problem> {
        // On its own: whoever asked may go away, a VM that was admitted must be booted or let go.
        let (answer, admitted) = oneshot::channel();
        let (room, file) = (self.clone(), file.to_owned());
        self.tasks.spawn(async move {
            match room.admit(&file).await {
                Ok((entry, held)) => {
                    let _ = answer.send(Ok(entry.clone()));
                    room.boot(&entry, held).await;
                }
                Err(problem) => drop(answer.send(Err(problem))),
            }
        });
        let entry = admitted.await.map_err(|_| stopping(crate::core::Stopped))??;
        let name = entry.plan.name.clone();
        let mut phase = entry.phase.subscribe();
        if wait {
            let reached = phase.wait_for(|phase| !matches!(phase, Phase::Starting));
            // A VM that did not boot, and whose QEMU does not end, is starting until the daemon stops.
            let reached = self.stop.run_until_cancelled(reached).await.ok_or_else(|| stopping(crate::core::Stopped))?;
            if let Ok(Phase::Gone(why)) = reached.as_deref() {
                let log = VmFiles::of(&self.settings.vms(), &name).dir().join("qemu.log");
                return Err(Problem::new(Code::Hypervisor, format!("VM {name} could not be started: {why}"))
                    .with_hint(format!("{} has what QEMU said", log.display())));
            }
        }
        self.detail(&name).await
    }

    /// Books what the VM gets, and keeps what it is started from.
    async fn admit(&self, file: &str) -> Result<(Arc<Entry>, Resources), Problem> {
        let entry = self.claim(file)?;
        let name = entry.plan.name.clone();
        let spec = engine_spec(&entry.spec, &entry.plan);
        let admitted = match self.policy_admits(&spec, &entry.spec).await {
            Ok(()) => self.book(spec, &entry.spec).await.map_err(|why| not_begun(&why)),
            Err(problem) => Err(problem),
        };
        let kept = admitted.and_then(|held| {
            let kept = VmFiles::of(&self.settings.vms(), &name).keep(file, &entry.plan);
            kept.map_err(|error| {
                self.core.happened(Event::VmGone { vm: name.clone() });
                Problem::new(Code::Internal, format!("{error:#}"))
            })?;
            Ok(held)
        });
        match kept {
            Ok(held) => {
                tracing::info!(vm = %name, holding = %held, "VM admitted");
                self.bus.tell(EventKind::VmStarting { vm: name });
                Ok((entry, held))
            }
            Err(problem) => {
                self.entries().remove(&name);
                Err(problem)
            }
        }
    }

    /// Books what a VM begins with. Where nobody holds that much, the policy in force may make room first.
    async fn book(&self, spec: conuma_balancing::VmSpec, file: &VmSpec) -> Result<Resources, NotBegun> {
        let lacks = match self.core.admit(spec.clone()).await {
            Err(NotBegun::Refused(why)) if is_for_room(&why) => why,
            booked => return booked,
        };
        match self.balance.make_room(spec.clone(), file.weight).await {
            Ok(true) => self.core.admit(spec).await,
            Ok(false) | Err(_) => Err(lacks.into()),
        }
    }

    /// Refuses a VM with which the policy in force could not hold.
    async fn policy_admits(&self, spec: &conuma_balancing::VmSpec, file: &VmSpec) -> Result<(), Problem> {
        // Without the policy the engine alone says who may start.
        self.balance.admits(spec.clone(), file.weight).await.unwrap_or(Ok(()))
    }

    /// Plans the VM of this file and takes its name and its context id: from then on nobody else gets them.
    fn claim(&self, file: &str) -> Result<Arc<Entry>, Problem> {
        loop {
            let Planned { spec, plan } = self.plan(file)?;
            let name = &plan.name;
            let mut entries = self.entries();
            if entries.contains_key(name) {
                return Err(Problem::new(Code::Exists, format!("VM {name} exists already"))
                    .with_hint(format!("`conuma show {name}` shows it, `conuma stop {name}` ends it")));
            }
            match entries.values().find(|other| plan.cid.is_some() && other.plan.cid == plan.cid) {
                None => {
                    let entry = Entry::new(spec, plan.clone(), Phase::Starting);
                    entries.insert(name.clone(), entry.clone());
                    return Ok(entry);
                }
                Some(other) if spec.cid.is_some() => {
                    return Err(Problem::new(
                        Code::Refused,
                        format!("VM {} has the vsock context id that {name} asks for", other.plan.name),
                    )
                    .with_hint("leave `cid` out of the VM file: the daemon finds one"));
                }
                // Another VM that was planned at the same time was faster: there are more ids.
                Some(_) => {}
            }
        }
    }

    fn plan(&self, file: &str) -> Result<Planned, Problem> {
        let bad_file = |text: String| Problem::new(Code::BadVmFile, text);
        let spec = VmSpec::parse(file, "VM file").map_err(|error| bad_file(error.to_string()))?;
        let used: BTreeSet<u32> = self.entries().values().filter_map(|entry| entry.plan.cid).collect();
        let options = PlanOptions {
            accel: self.settings.accel,
            cid: self.hypervisor.facts().vsock.then(|| (FIRST_CID..).find(|cid| !used.contains(cid))).flatten(),
            dir: VmFiles::of(&self.settings.vms(), &spec.name).dir().to_owned(),
        };
        match BindingPlan::new(&spec, &self.machine, &self.settings.reserve, &options) {
            Ok(plan) => Ok(Planned { spec, plan: Arc::new(plan) }),
            Err(PlanError::Spec(error)) => Err(bad_file(error.to_string())),
            Err(error) => Err(Problem::new(Code::Refused, error.to_string())),
        }
    }

    async fn boot(self: &Arc<Self>, entry: &Arc<Entry>, held: Resources) {
        let name = entry.plan.name.clone();
        match self.try_boot(entry, &held).await {
            Ok(()) => {
                tracing::info!(vm = %name, "VM runs");
                self.bus.tell(EventKind::VmRunning { vm: name });
            }
            Err(NotBooted { error, dead }) => {
                let why = chain(&error);
                tracing::error!(vm = %name, "VM could not be started: {why}");
                if dead {
                    self.gone(entry, why);
                }
            }
        }
    }

    async fn try_boot(self: &Arc<Self>, entry: &Arc<Entry>, held: &Resources) -> Result<(), NotBooted> {
        let plan = &entry.plan;
        let vm = self.hypervisor.start(plan, &held.cpus).await.map_err(|error| NotBooted { error, dead: true })?;
        let ready = async {
            for node in plan.memory.iter().filter(|node| node.is_flexible()) {
                let wanted = held.on(node.host).saturating_sub(node.boot).round_down(plan.memory_unit);
                vm.set_requested(node.host, wanted.min(node.maximum)).await?;
            }
            observe(vm.as_ref(), plan).await
        };
        let seen = match ready.await {
            Ok(seen) => seen,
            Err(error) => return Err(NotBooted { error, dead: self.end(plan, vm.as_ref()).await }),
        };
        let running = self.take_charge(entry, vm);
        // Before its agent can be told anything: that ends the boot.
        running.excuses.boots(std::time::Instant::now());
        self.core.happened(Event::VmStarted { vm: plan.name.clone(), seen });
        if let Err(error) = running.vm.resume().await {
            return Err(NotBooted { error, dead: self.end(plan, running.vm.as_ref()).await });
        }
        // Unless the supervisor has seen its end already.
        entry.phase.send_if_modified(|phase| {
            let starting = matches!(phase, Phase::Starting);
            if starting {
                *phase = Phase::Running(running);
            }
            starting
        });
        Ok(())
    }

    /// Begins to watch a VM and to act on it.
    fn take_charge(self: &Arc<Self>, entry: &Arc<Entry>, vm: Arc<dyn Vm>) -> Arc<Running> {
        let plan = entry.plan.clone();
        let stop = self.stop.child_token();
        let (events, link_events) = mpsc::channel(16);
        let door = self.settings.doors.of(&plan.name, plan.cid);
        let link = AgentLink::start(door, self.clock, events, stop.clone());
        let baseline = Arc::new(Baseline::default());
        let agentless = entry.spec.agent == Agent::None;
        // Nobody will say that it has booted.
        let boot = if agentless { self.settings.timing.shrink } else { self.settings.boot_grace() };
        let memory = self.settings.timing.shrink;
        let excuses = Arc::new(Excuses::new(std::time::Instant::now(), boot, memory));
        let running = Running::new(
            vm.clone(),
            link.clone(),
            baseline.clone(),
            excuses.clone(),
            GuestState::default(),
            stop.clone(),
        );
        let tools = Tools {
            vm,
            plan: plan.clone(),
            link,
            baseline,
            excuses,
            clock: self.clock,
            core: self.core.clone(),
            bus: self.bus.clone(),
            look: self.settings.look,
            stray: self.settings.stray,
            agentless,
        };
        self.core.attach(plan.name.clone(), Actuator::start(Arc::new(tools), &stop, &running.lanes));
        let (room, entry, watched) = (self.clone(), entry.clone(), running.clone());
        let events = running.vm.events();
        self.tasks.spawn(async move { room.supervise(&entry, &watched, events, link_events, stop).await });
        running
    }

    /// Takes charge of a VM that an earlier daemon started.
    pub(crate) fn resume_charge(self: &Arc<Self>, found: Found) {
        let plan = Arc::new(found.plan);
        let entry = Entry::new(found.spec, plan.clone(), Phase::Starting);
        self.entries().insert(plan.name.clone(), entry.clone());
        let running = self.take_charge(&entry, found.vm);
        entry.phase.send_replace(Phase::Running(running.clone()));
        // An earlier daemon may have ended between starting QEMU and letting the guest run.
        let room = self.clone();
        self.tasks.spawn(async move {
            let resumed = match room.look_at_guest(&entry, &running).await {
                Ok(RunState::Paused) => running.vm.resume().await,
                Ok(_) => return,
                Err(error) => Err(error),
            };
            match resumed {
                Ok(()) => tracing::warn!(vm = %plan.name, "VM was found paused and runs again"),
                Err(error) => tracing::warn!(vm = %plan.name, "VM may be paused: {}", chain(&error)),
            }
        });
    }

    /// The VM is no more: its resources are free. Only the first call counts.
    pub(super) fn gone(&self, entry: &Entry, why: String) {
        if entry.ended.swap(true, Ordering::AcqRel) {
            return;
        }
        let name = &entry.plan.name;
        VmFiles::of(&self.settings.vms(), name).forget();
        self.core.detach(name.clone());
        self.core.happened(Event::VmGone { vm: name.clone() });
        self.entries().remove(name);
        entry.phase.send_replace(Phase::Gone(why.clone()));
        self.bus.tell(EventKind::VmGone { vm: name.clone(), why });
    }
}

/// Whether nobody holds what a VM should begin with, though it could be promised to it.
fn is_for_room(why: &Refusal) -> bool {
    let lacking = match why {
        Refusal::NotHeld { from, .. } | Refusal::TooFewCores { from, .. } | Refusal::TooLittleMemory { from, .. } => {
            from
        }
        _ => return false,
    };
    *lacking == Holder::Pool
}

/// A VM did not come to run.
struct NotBooted {
    error: HypervisorError,
    /// Whether its QEMU is dead for sure. If not, the daemon is ending, and the next one finds it.
    dead: bool,
}

/// A VM of an earlier daemon.
pub struct Found {
    spec: VmSpec,
    plan: BindingPlan,
    vm: Arc<dyn Vm>,
    /// What the engine must know.
    pub engine: VmFound,
}

/// Finds the VMs that an earlier daemon started and that still run.
///
/// One whose files cannot be read, or whose QEMU does not answer, may still use its cores: then nothing can be
/// said about who holds what, and the daemon does not start.
pub(crate) async fn find(hypervisor: &dyn Hypervisor, settings: &Settings) -> anyhow::Result<Vec<(VmName, Found)>> {
    let mut found = Vec::new();
    for (name, files) in VmFiles::all(&settings.vms())? {
        let kept = files.read().with_context(|| {
            format!("VM {name} may run, but is not known (end its QEMU and remove {} if not)", files.dir().display())
        })?;
        let Some(kept) = kept else { continue };
        let attached = attach(hypervisor, &kept.plan, settings).await;
        let attached = attached.with_context(|| format!("VM {name} runs, but cannot be reached (end its QEMU?)"))?;
        match attached {
            Some((vm, seen)) => {
                tracing::info!(vm = %name, pid = vm.process().0, "VM found running");
                let engine = VmFound { spec: engine_spec(&kept.spec, &kept.plan), seen };
                found.push((name, Found { spec: kept.spec, plan: kept.plan, vm, engine }));
            }
            None => {
                tracing::info!(vm = %name, "VM ended while no daemon ran");
                files.forget();
            }
        }
    }
    Ok(found)
}

/// Tries for a while: a QEMU that is just ending, or very busy, may not answer at once.
async fn attach(
    hypervisor: &dyn Hypervisor,
    plan: &BindingPlan,
    settings: &Settings,
) -> Result<Option<(Arc<dyn Vm>, conuma_balancing::VmSeen)>, HypervisorError> {
    let until = Instant::now() + settings.step;
    loop {
        let attempt = async {
            match hypervisor.attach(plan).await? {
                Some(vm) => {
                    let mut seen = observe(vm.as_ref(), plan).await?;
                    // An earlier daemon may just have closed a gate softly: then the guest can still run behind it.
                    let soft = vm.gates().await?.into_iter().filter(|(_, gate)| *gate == Gate::Closed(Grip::SOFT));
                    let soft = plan.replica.cpus_of(&soft.map(|(vcpu, _)| vcpu).collect());
                    let watch = Watch::begin(vm.as_ref(), plan, &soft).await?;
                    seen.runs_on = watch.end(settings.timing.idle_window).await?;
                    Ok(Some((vm, seen)))
                }
                None => Ok(None),
            }
        };
        match attempt.await {
            Err(error) if Instant::now() < until => {
                tracing::debug!(vm = %plan.name, "not reached yet: {}", chain(&error));
                sleep(ATTACH_AGAIN).await;
            }
            result => return result,
        }
    }
}

pub(super) fn stopping(_: crate::core::Stopped) -> Problem {
    Problem::new(Code::Stopping, "the daemon is stopping").with_hint("VMs run on; ask again when it is back")
}
