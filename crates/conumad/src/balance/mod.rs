//! The balancing manager: decides by itself what should move, if people switched that on.
//!
//! One task owns the policy, what is known of loads, the pins, and the decisions that are under way. It wakes on a tick, when
//! a guest is pressed, when a VM starts, ends or is reset, and when a transfer ends; then it looks at the engine, feeds the
//! pure [`conuma_policy::Balancer`] and carries out what that decides ([`carry`]). All safety is the engine's: it refuses
//! what breaks a rule, and a refusal is no more than an outcome.
//!
//! What people ask of the policy goes through the same task, and so do the transfers that they begin: a decision never comes
//! between a transfer and its pin.

mod carry;
mod files;
mod host;
mod look;
mod newcomers;
mod pins;
mod policy;
mod record;
mod samples;
mod setbacks;
mod show;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use conuma_api::{
    DecisionInfo, EventKind, PinAnswer, PinOrder, PolicyApplied, PolicyCheck, PolicyInfo, PolicyMode, PolicyText,
    Problem, TransferRequest, VmWhy,
};
use conuma_balancing::{Host, TransferId, VmSpec};
use conuma_policy::{Balancer, Decision, Layout, Mode};
use conuma_topology::VmName;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::sync::oneshot;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until};
use tokio_util::sync::CancellationToken;

use crate::bus::Bus;
use crate::core::{NotBegun, Stopped};
use crate::vms::Room;
use carry::UnderWay;
use files::{Kept, PolicyFiles};
use look::Snapshot;
use newcomers::Newcomer;
use pins::Origins;
use record::{Jobs, NumberSlot};
use samples::Sampler;
use setbacks::Setbacks;

pub(crate) use host::HostReader;
pub(crate) use record::Recorder;

/// Two decisions are never nearer to each other.
const APART: Duration = Duration::from_millis(50);

/// A guest that has just become busy is asked again so often, so far apart: its first report averages over the time before.
const CHASES: u32 = 4;
const CHASE: Duration = Duration::from_millis(100);

/// Guests are not asked so often again before then, however often one says that it is pressed.
const CHASE_AGAIN: Duration = Duration::from_secs(1);

/// After a restart nothing moves for so long, unless earlier there are reports of all VMs that run: what was lent would be taken back.
const STRANGERS: Duration = Duration::from_secs(15);

/// How long a decision waits for the guests that were just asked how they do.
const ANSWERS: Duration = Duration::from_millis(200);

/// Speaks to the balancing manager.
#[derive(Debug, Clone)]
pub(crate) struct BalanceHandle {
    asks: UnboundedSender<Ask>,
    /// The history of decisions.
    pub(crate) history: Recorder,
}

/// What a manager that has not started yet is asked, and is to keep.
pub(crate) struct Inbox {
    asks: UnboundedReceiver<Ask>,
    jobs: Jobs,
}

/// What is asked of it.
enum Ask {
    Policy(Reply<PolicyInfo>),
    Check(PolicyText, Reply<Result<PolicyCheck, Problem>>),
    Apply(PolicyText, Reply<Result<PolicyApplied, Problem>>),
    Mode(Mode, Reply<Result<PolicyInfo, Problem>>),
    Plan(Reply<Result<DecisionInfo, Problem>>),
    Rebalance(Reply<Result<DecisionInfo, Problem>>),
    Why(VmName, Reply<Result<VmWhy, Problem>>),
    Pin(VmName, PinOrder, Reply<Result<PinAnswer, Problem>>),
    Unpin(VmName, Reply<Result<PinAnswer, Problem>>),
    Order(TransferRequest, Option<Duration>, Reply<Result<TransferId, NotBegun>>),
    Admits(Box<VmSpec>, u32, Reply<Result<(), Problem>>),
    MakeRoom(Box<VmSpec>, u32, Reply<bool>),
}

type Reply<T> = oneshot::Sender<T>;

impl std::fmt::Debug for Ask {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Ask")
    }
}

/// Why it looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Cause {
    Tick,
    Pressure,
    Transfer,
    Start,
    End,
    Reset,
    Window,
    Policy,
    Pin,
    Manual,
    Preview,
}

impl Cause {
    fn name(self) -> &'static str {
        match self {
            Self::Tick => "tick",
            Self::Pressure => "pressure",
            Self::Transfer => "transfer",
            Self::Start => "start",
            Self::End => "end",
            Self::Reset => "reset",
            Self::Window => "window",
            Self::Policy => "policy",
            Self::Pin => "pin",
            Self::Manual => "manual",
            Self::Preview => "preview",
        }
    }
}

/// A manager to be started: it can be asked things already.
pub(crate) fn open(bus: Bus) -> (BalanceHandle, Inbox) {
    let (history, jobs) = record::open(bus);
    let (sender, asks) = unbounded_channel();
    (BalanceHandle { asks: sender, history }, Inbox { asks, jobs })
}

/// What is asked of the manager. All of it fails with [`Stopped`] when the daemon ends.
impl BalanceHandle {
    /// The policy in force.
    pub(crate) async fn policy(&self) -> Result<PolicyInfo, Stopped> {
        self.ask(Ask::Policy).await
    }

    /// Whether a policy could be applied.
    pub(crate) async fn check(&self, text: PolicyText) -> Result<Result<PolicyCheck, Problem>, Stopped> {
        self.ask(|reply| Ask::Check(text, reply)).await
    }

    /// Applies a policy.
    pub(crate) async fn apply(&self, text: PolicyText) -> Result<Result<PolicyApplied, Problem>, Stopped> {
        self.ask(|reply| Ask::Apply(text, reply)).await
    }

    /// Switches the mode.
    pub(crate) async fn set_mode(&self, mode: Mode) -> Result<Result<PolicyInfo, Problem>, Stopped> {
        self.ask(|reply| Ask::Mode(mode, reply)).await
    }

    /// What would be decided now.
    pub(crate) async fn plan(&self) -> Result<Result<DecisionInfo, Problem>, Stopped> {
        self.ask(Ask::Plan).await
    }

    /// Decides now, and carries that out.
    pub(crate) async fn rebalance(&self) -> Result<Result<DecisionInfo, Problem>, Stopped> {
        self.ask(Ask::Rebalance).await
    }

    /// Why a VM holds what it holds.
    pub(crate) async fn why(&self, vm: VmName) -> Result<Result<VmWhy, Problem>, Stopped> {
        self.ask(|reply| Ask::Why(vm, reply)).await
    }

    /// Leaves a VM as it is.
    pub(crate) async fn pin(&self, vm: VmName, order: PinOrder) -> Result<Result<PinAnswer, Problem>, Stopped> {
        self.ask(|reply| Ask::Pin(vm, order, reply)).await
    }

    /// Ends a pin.
    pub(crate) async fn unpin(&self, vm: VmName) -> Result<Result<PinAnswer, Problem>, Stopped> {
        self.ask(|reply| Ask::Unpin(vm, reply)).await
    }

    /// Begins a transfer for people, who are not to be undone by the next decision.
    pub(crate) async fn order(
        &self,
        request: TransferRequest,
        pin_for: Option<Duration>,
    ) -> Result<TransferId, NotBegun> {
        self.ask(|reply| Ask::Order(request, pin_for, reply)).await?
    }

    /// Whether the policy can hold beside a VM that should start.
    pub(crate) async fn admits(&self, spec: VmSpec, weight: u32) -> Result<Result<(), Problem>, Stopped> {
        self.ask(|reply| Ask::Admits(Box::new(spec), weight, reply)).await
    }

    /// Makes room for a VM that should start and for which there is none; whether there is now.
    pub(crate) async fn make_room(&self, spec: VmSpec, weight: u32) -> Result<bool, Stopped> {
        self.ask(|reply| Ask::MakeRoom(Box::new(spec), weight, reply)).await
    }

    async fn ask<T>(&self, ask: impl FnOnce(Reply<T>) -> Ask) -> Result<T, Stopped> {
        let (answer, answered) = oneshot::channel();
        self.asks.send(ask(answer)).map_err(|_| Stopped)?;
        answered.await.map_err(|_| Stopped)
    }
}

/// The balancing manager's state.
struct Manager {
    room: Arc<Room>,
    host: Host,
    layout: Arc<Layout>,
    balancer: Balancer,
    files: PolicyFiles,
    kept: Kept,
    origins: Origins,
    sampler: Sampler,
    host_reader: HostReader,
    history: Recorder,
    under_way: Vec<UnderWay>,
    /// What came to nothing lately.
    setbacks: Setbacks,
    /// VMs of which nothing is known yet, since an earlier daemon knew it, and until when they are waited for.
    strangers: (BTreeSet<VmName>, Instant),
    /// VMs that should start and for which room is made.
    newcomers: Vec<Newcomer>,
    /// The decision that was made last, also if nothing moved by it.
    last: Option<Decision>,
    /// What was recorded last, if nothing moved by it: it is not recorded again.
    idle: Option<Vec<conuma_policy::Step>>,
    /// The decision that last moved something of each VM.
    moved: BTreeMap<VmName, NumberSlot>,
    /// VMs that lack a part of the guarantee that they need.
    late: BTreeMap<(VmName, Lacks), Late>,
    /// Windows that were open when it was last looked.
    windows: BTreeSet<(VmName, usize)>,
    /// When and why it looks next, and when it looked last.
    due: Option<(Instant, Cause)>,
    looked: Option<Instant>,
    /// When guests are asked out of turn, how often still, and when that last began.
    chase: Option<Instant>,
    chases: u32,
    chased: Option<Instant>,
}

/// What of its guarantee a VM lacks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Lacks {
    Cores,
    Memory,
}

/// A VM that lacks what it needs of its guarantee.
struct Late {
    since: Duration,
    told: bool,
}

/// Runs the manager until `stop`.
pub(crate) async fn run(inbox: Inbox, room: Arc<Room>, reader: HostReader, stop: CancellationToken) {
    let Inbox { mut asks, jobs } = inbox;
    let mut listener = room.bus.listen();
    let (state, clock, bus, ended) = (room.settings.state.clone(), room.clock, room.bus.clone(), stop.clone());
    room.tasks.spawn_blocking(move || record::keep(jobs, &state, clock, bus, &ended));
    let Ok(host) = room.core.look(|engine, _| engine.host().clone()).await else { return };
    let mut manager = Manager::new(room.clone(), host, reader);
    if manager.resume().await.is_err() {
        return;
    }
    let asked = manager.sampler.asked();
    let mut ticks = interval(room.settings.balance_tick);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        manager.listen();
        let (due, chase) = (manager.due.map(|(at, _)| at), manager.chase);
        let step = tokio::select! {
            () = stop.cancelled() => break,
            _ = ticks.tick() => {
                manager.tick();
                Ok(())
            }
            () = room.pressed.notified() => {
                manager.pressed();
                Ok(())
            }
            () = sleep_until(chase.unwrap_or_else(Instant::now)), if chase.is_some() => {
                manager.chase();
                Ok(())
            }
            () = asked.done.notified() => {
                manager.answered();
                Ok(())
            }
            event = listener.next() => match event {
                Some(event) => {
                    manager.happened(&event.what);
                    Ok(())
                }
                None => break,
            },
            ask = asks.recv() => match ask {
                Some(ask) => {
                    manager.answer(ask).await;
                    Ok(())
                }
                None => break,
            },
            () = sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => manager.due().await,
        };
        if step.is_err() {
            break;
        }
    }
    manager.history.stop();
}

impl Manager {
    fn new(room: Arc<Room>, host: Host, host_reader: HostReader) -> Self {
        let layout = Arc::new(Layout::new(&host, &room.machine));
        let files = PolicyFiles::of(&room.settings.state);
        let history = room.balance.history.clone();
        let strangers = (room.entries().keys().cloned().collect(), Instant::now() + STRANGERS);
        Self {
            room,
            host,
            layout,
            balancer: Balancer::default(),
            files,
            kept: Kept::default(),
            origins: Origins::default(),
            sampler: Sampler::default(),
            host_reader,
            history,
            under_way: Vec::new(),
            setbacks: Setbacks::default(),
            strangers,
            newcomers: Vec::new(),
            last: None,
            idle: None,
            moved: BTreeMap::new(),
            late: BTreeMap::new(),
            windows: BTreeSet::new(),
            due: None,
            looked: None,
            chase: None,
            chases: 0,
            chased: None,
        }
    }

    /// The mode in force.
    fn mode(&self) -> Mode {
        self.balancer.rules().mode
    }

    fn tick(&mut self) {
        let now = self.room.clock.now();
        let sample = self.host_reader.read(&self.host, now);
        self.balancer.observe_host(&sample, &self.host, now);
        if self.mode() == Mode::Off {
            self.wake(Cause::Tick, Duration::ZERO);
        } else {
            self.sampler.ask(&self.room);
            let wait = if self.sampler.waits() { ANSWERS } else { Duration::ZERO };
            self.wake(Cause::Tick, wait);
        }
    }

    /// Has guests say that they are pressed while that matters, and only then: it costs them something.
    fn listen(&self) {
        let wanted = self.mode() != Mode::Off;
        self.room.pressure.send_if_modified(|before| std::mem::replace(before, wanted) != wanted);
    }

    /// A guest says that it is pressed.
    fn pressed(&mut self) {
        if self.mode() == Mode::Off {
            return;
        }
        self.wake(Cause::Pressure, Duration::ZERO);
        let now = Instant::now();
        let again = self.chased.is_none_or(|at| now.duration_since(at) >= CHASE_AGAIN);
        if again {
            (self.chase, self.chases, self.chased) = (Some(now + CHASE), CHASES, Some(now));
        }
    }

    /// Guests are asked out of turn.
    fn chase(&mut self) {
        self.chases = self.chases.saturating_sub(1);
        self.chase = (self.chases > 0).then(|| Instant::now() + CHASE);
        self.sampler.ask(&self.room);
        self.wake(Cause::Pressure, if self.sampler.waits() { ANSWERS } else { Duration::ZERO });
    }

    /// All guests that were asked have answered: what waits for that need not wait longer.
    fn answered(&mut self) {
        if let Some((_, cause)) = self.due {
            self.wake(cause, Duration::ZERO);
        }
    }

    /// Looks in `wait`, unless it looks earlier anyway.
    fn wake(&mut self, cause: Cause, wait: Duration) {
        let now = Instant::now();
        let earliest = self.looked.map_or(now, |looked| (looked + APART).max(now));
        let at = earliest.max(now + wait);
        self.due = match self.due {
            // What happened says more than that time passed.
            Some((due, before)) => Some((due.min(at), if before == Cause::Tick { cause } else { before })),
            None => Some((at, cause)),
        };
    }

    fn happened(&mut self, what: &EventKind) {
        match what {
            EventKind::VmRunning { .. } => self.wake(Cause::Start, Duration::ZERO),
            EventKind::VmGone { vm, .. } => {
                self.gone(vm);
                self.wake(Cause::End, Duration::ZERO);
            }
            EventKind::VmReset { vm } => {
                self.sampler.forget(vm);
                self.setbacks.forget(vm);
                self.wake(Cause::Reset, Duration::ZERO);
            }
            EventKind::VmChanged { vm, .. } => {
                self.setbacks.forget(vm);
                self.wake(Cause::Tick, Duration::ZERO);
            }
            EventKind::TransferEnded(_) => self.wake(Cause::Transfer, Duration::ZERO),
            EventKind::HostCpus { .. } => self.wake(Cause::Tick, Duration::ZERO),
            EventKind::Missed { .. } => {
                self.reconcile();
                self.wake(Cause::Tick, Duration::ZERO);
            }
            _ => {}
        }
    }

    /// A VM ended: what is known of it is of no more use, also if another of its name begins.
    fn gone(&mut self, vm: &VmName) {
        self.balancer.forget(vm);
        self.sampler.forget(vm);
        self.setbacks.forget(vm);
        self.moved.remove(vm);
        self.late.retain(|(late, _), _| late != vm);
        self.drop_pin(vm);
    }

    /// Events were missed, perhaps of VMs that ended.
    fn reconcile(&mut self) {
        let mut known: BTreeSet<VmName> = self.balancer.known().chain(self.moved.keys()).cloned().collect();
        known.extend(self.balancer.pins().iter().map(|(vm, _)| vm.clone()));
        for vm in self.room.entries().keys() {
            known.remove(vm);
        }
        for vm in known {
            self.gone(&vm);
        }
    }

    /// The time has come.
    async fn due(&mut self) -> Result<(), Stopped> {
        let Some((_, cause)) = self.due.take() else { return Ok(()) };
        self.looked = Some(Instant::now());
        self.round(cause).await
    }

    async fn answer(&mut self, ask: Ask) {
        // Whoever asked may have gone.
        match ask {
            Ask::Policy(reply) => drop(reply.send(self.policy_info())),
            Ask::Check(text, reply) => drop(reply.send(self.check(&text).await)),
            Ask::Apply(text, reply) => drop(reply.send(self.apply(text).await)),
            Ask::Mode(mode, reply) => drop(reply.send(self.switch(mode).await)),
            Ask::Plan(reply) => drop(reply.send(self.preview().await)),
            Ask::Rebalance(reply) => self.rebalance(reply).await,
            Ask::Why(vm, reply) => drop(reply.send(self.why(&vm).await)),
            Ask::Pin(vm, order, reply) => drop(reply.send(self.pin(&vm, order))),
            Ask::Unpin(vm, reply) => drop(reply.send(self.unpin(&vm))),
            Ask::Order(request, pin_for, reply) => drop(reply.send(self.order(request, pin_for).await)),
            Ask::Admits(spec, weight, reply) => drop(reply.send(self.admits(*spec, weight).await)),
            Ask::MakeRoom(spec, weight, reply) => self.make_room(*spec, weight, reply),
        }
    }

    /// Looks at the engine, and at what is under way.
    async fn look(&self) -> Result<Snapshot, Stopped> {
        let transfers = self.under_way.iter().flat_map(UnderWay::awaited).collect();
        let newcomers = self.newcomers.iter().map(|newcomer| newcomer.spec.clone()).collect();
        Snapshot::take(&self.room, &self.layout, transfers, newcomers).await
    }

    fn api_mode(&self) -> PolicyMode {
        crate::wire::decision::mode(self.mode())
    }
}
