//! The VMs: started, watched, found again, stopped.

mod files;
mod release;
mod reports;
mod spec;
mod start;
mod stop;
mod supervise;
mod view;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use conuma_api::{Code, Problem};
use conuma_balancing::VmSeen;
use conuma_binding::{BindingPlan, VmSpec};
use conuma_hypervisor::gate::Gate;
use conuma_hypervisor::{Hypervisor, HypervisorError, Vm};
use conuma_topology::{Machine, VmName};
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::actuator::{Baseline, Excuses};
use crate::agent::AgentLink;
use crate::balance::BalanceHandle;
use crate::bus::Bus;
use crate::clock::Clock;
use crate::config::Settings;
use crate::core::CoreHandle;
use crate::guest::GuestState;
use crate::voice::Voice;

pub(crate) use reports::Reports;
pub use start::Found;
pub(crate) use start::find;

/// What everything around VMs needs.
pub struct Room {
    /// What the daemon goes by.
    pub settings: Settings,
    /// The host.
    pub machine: Machine,
    /// Engine time.
    pub clock: Clock,
    /// When the daemon started.
    pub started: Duration,
    /// Who is told what happens.
    pub bus: Bus,
    /// The owner of the ledger.
    pub core: CoreHandle,
    /// What runs VMs.
    pub hypervisor: Arc<dyn Hypervisor>,
    /// Ends everything that watches VMs.
    pub stop: CancellationToken,
    /// What must end before the daemon does.
    pub tasks: TaskTracker,
    /// Wakes one who waits when a guest has said that it is short of something and its report is there; remembers one such
    /// call while nobody waits.
    pub pressed: Arc<Notify>,
    /// Whether guests should say at once that they are short of something: while somebody decides by it.
    pub pressure: watch::Sender<bool>,
    /// Decides what should move by itself.
    pub(crate) balance: BalanceHandle,
    vms: Mutex<BTreeMap<VmName, Arc<Entry>>>,
}

/// A VM from its admission to its end.
pub(crate) struct Entry {
    pub(crate) spec: VmSpec,
    pub(crate) plan: Arc<BindingPlan>,
    pub(crate) phase: watch::Sender<Phase>,
    ended: AtomicBool,
}

/// How far a VM is.
#[derive(Clone)]
pub(crate) enum Phase {
    /// Its resources are booked.
    Starting,
    /// QEMU runs.
    Running(Arc<Running>),
    /// It ended, with the reason.
    Gone(String),
}

/// A VM whose QEMU runs.
pub(crate) struct Running {
    pub(crate) vm: Arc<dyn Vm>,
    pub(crate) link: AgentLink,
    pub(crate) baseline: Arc<Baseline>,
    pub(crate) excuses: Arc<Excuses>,
    pub(crate) guest: GuestState,
    pub(crate) reports: Mutex<Reports>,
    /// The guest may have been reset without a word of it; its next answer tells that it is back.
    pub(crate) reset_missed: AtomicBool,
    /// How many are ending it.
    stops: AtomicUsize,
    /// Ends all that watches it and acts on it.
    stop: CancellationToken,
    /// Those that act on it.
    lanes: TaskTracker,
    voice: Voice,
}

impl Room {
    /// A room without VMs.
    #[expect(clippy::too_many_arguments, reason = "called once, all of them are parts of the room")]
    pub(crate) fn new(
        settings: Settings,
        machine: Machine,
        clock: Clock,
        bus: Bus,
        core: CoreHandle,
        hypervisor: Arc<dyn Hypervisor>,
        stop: CancellationToken,
        tasks: TaskTracker,
        balance: BalanceHandle,
    ) -> Arc<Self> {
        let (pressed, pressure, vms) = (Arc::default(), watch::Sender::default(), Mutex::default());
        let started = clock.now();
        Arc::new(Self {
            settings,
            machine,
            started,
            clock,
            bus,
            core,
            hypervisor,
            stop,
            tasks,
            pressed,
            pressure,
            balance,
            vms,
        })
    }

    /// A VM.
    pub(crate) fn entry(&self, name: &VmName) -> Result<Arc<Entry>, Problem> {
        self.entries().get(name).cloned().ok_or_else(|| {
            Problem::new(Code::NotFound, format!("there is no VM {name}")).with_hint("`conuma list` shows them all")
        })
    }

    pub(crate) fn entries(&self) -> MutexGuard<'_, BTreeMap<VmName, Arc<Entry>>> {
        self.vms.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Entry {
    fn new(spec: VmSpec, plan: Arc<BindingPlan>, phase: Phase) -> Arc<Self> {
        Arc::new(Self { spec, plan, phase: watch::Sender::new(phase), ended: AtomicBool::new(false) })
    }

    pub(crate) fn running(&self) -> Option<Arc<Running>> {
        match &*self.phase.borrow() {
            Phase::Running(running) => Some(running.clone()),
            Phase::Starting | Phase::Gone(_) => None,
        }
    }
}

impl Running {
    fn new(
        vm: Arc<dyn Vm>,
        link: AgentLink,
        baseline: Arc<Baseline>,
        excuses: Arc<Excuses>,
        guest: GuestState,
        stop: CancellationToken,
    ) -> Arc<Self> {
        Arc::new(Self {
            vm,
            link,
            baseline,
            excuses,
            guest,
            reports: Mutex::default(),
            reset_missed: AtomicBool::new(false),
            stops: AtomicUsize::new(0),
            stop,
            lanes: TaskTracker::new(),
            voice: Voice::new(Instant::now()),
        })
    }

    /// Whether something that its guest caused may be logged.
    fn speaks(&self) -> bool {
        self.voice.speaks(self.vm.name(), Instant::now())
    }

    /// Whether someone ends it.
    pub(crate) fn is_stopping(&self) -> bool {
        self.stops.load(Ordering::Relaxed) > 0
    }

    /// It is being ended for as long as the value lives.
    fn stopping(self: &Arc<Self>) -> Stopping {
        self.stops.fetch_add(1, Ordering::Relaxed);
        Stopping(self.clone())
    }

    pub(crate) fn reports(&self) -> MutexGuard<'_, Reports> {
        self.reports.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// See [`Running::stopping`].
struct Stopping(Arc<Running>);

impl Drop for Stopping {
    fn drop(&mut self) {
        self.0.stops.fetch_sub(1, Ordering::Relaxed);
    }
}

/// What is in force for a VM.
pub(crate) async fn observe(vm: &dyn Vm, plan: &BindingPlan) -> Result<VmSeen, HypervisorError> {
    let mut seen = VmSeen::default();
    for (vcpu, gate) in vm.gates().await? {
        if gate == Gate::Open
            && let Some(cpu) = plan.replica.cpu_of(vcpu)
        {
            seen.open.insert(cpu);
        }
    }
    for node in plan.memory.iter().filter(|node| node.is_flexible()) {
        seen.plugged.insert(node.host, crate::actuator::plugged(vm.memory(node.host).await?));
    }
    Ok(seen)
}
