//! The control core: events in, actions out, all state in one value.
//!
//! ```text
//! loop {
//!     engine.update(event, now);                          // something happened
//!     let actions = engine.next_actions(now);             // what to do about it
//!     journal.write(engine.state());                      // first on disk,
//!     for action in actions { actuators.send(action) }    // then done
//!     for notice in engine.take_notices() { tell(notice) }
//!     wait until an event comes or engine.next_deadline() passes
//! }
//! ```
//!
//! Times are durations since an arbitrary start; they must not run backwards. Commands
//! ([`Engine::start`], [`Engine::request`]) are answered at once and change only the record; what they lead
//! to comes out of `next_actions`.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use conuma_topology::{CpuSet, VmName};

use crate::action::{Action, ActionId, ActionKind, Event, Failure, Outcome};
use crate::check::{Violation, check_ledger};
use crate::control::{Told, Vm};
use crate::duty::{Knob, next_duty};
use crate::elsewhere::rounds;
use crate::holding::Resources;
use crate::host::Host;
use crate::ledger::{Holder, Ledger, TransferId};
use crate::loans::{Loan, Loans, Remember};
use crate::plan::{Move, Refusal, Request, TransferPlan};
use crate::propose::{Books, plan, plan_start};
use crate::report::{Notice, Reason, Report, Stage};
use crate::timing::Timing;
use crate::transfer::{Knobs, Leg, Step, Transfer, knobs_of_request};
use crate::vm::{Life, Turning, VmSpec, VmView};
use crate::{leg, report::Verdict};

/// How many ended transfers are remembered.
const REMEMBERED: usize = 64;

/// An agent may know of actions so many numbers ahead of ours.
const LEAP: u64 = 1 << 32;

/// The control core. Deterministic: the same calls with the same times give the same actions.
#[derive(Debug, Clone)]
pub struct Engine {
    pub(crate) state: State,
    pub(crate) timing: Timing,
    pub(crate) notices: Vec<Notice>,
    actions: Vec<Action>,
    /// The ledger as it was when last checked.
    checked: Ledger,
    /// The last time that was told.
    now: Duration,
}

/// All that the engine knows. The journal keeps what a recovery needs of it (see `record`), and beside that the transfers
/// that ended ([`Engine::history`], [`State::with_history`]): they are much, and change only when one ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct State {
    pub(crate) host: Host,
    pub(crate) ledger: Ledger,
    pub(crate) loans: Loans,
    pub(crate) vms: BTreeMap<VmName, Vm>,
    /// CPUs of the host that are offline now.
    pub(crate) offline: CpuSet,
    pub(crate) transfers: BTreeMap<TransferId, Transfer>,
    pub(crate) ended: VecDeque<Report>,
    pub(crate) pending: BTreeMap<ActionId, Pending>,
    pub(crate) next_action: u64,
    pub(crate) next_transfer: u64,
}

/// An action that is out.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Pending {
    pub(crate) action: Action,
    pub(crate) owner: Owner,
}

/// Who waits for an action's outcome.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum Owner {
    Duty(VmName, Knob),
    Leg(TransferId, usize),
}

impl State {
    pub(crate) fn new(host: Host) -> Self {
        Self {
            ledger: Ledger::new(&host),
            host,
            loans: Loans::default(),
            vms: BTreeMap::new(),
            offline: CpuSet::new(),
            transfers: BTreeMap::new(),
            ended: VecDeque::new(),
            pending: BTreeMap::new(),
            next_action: 1,
            next_transfer: 1,
        }
    }

    /// The host to go on with: the one that this state knows, if what was found is the same but for CPUs that are offline
    /// just now, and else what was found.
    pub fn host_despite(&self, found: Host, offline: &CpuSet) -> Host {
        let known = &self.host;
        let cores = |host: &Host| -> Vec<CpuSet> {
            let online = host.cores.values().map(|core| core.cpus.difference(offline));
            let mut cores: Vec<CpuSet> = online.filter(|cpus| !cpus.is_empty()).collect();
            cores.sort_by_key(CpuSet::first);
            cores
        };
        let same_memory = known.memory == found.memory && known.reserve.memory == found.reserve.memory;
        let same_reserve = known.reserve.cpus.difference(offline) == found.reserve.cpus.difference(offline);
        if same_memory && same_reserve && cores(known) == cores(&found) { known.clone() } else { found }
    }

    /// CPUs of the host that are offline.
    pub fn offline(&self) -> &CpuSet {
        &self.offline
    }

    /// With the transfers that ended, oldest first.
    #[must_use]
    pub fn with_history(self, mut ended: VecDeque<Report>) -> Self {
        // The history is written first: the daemon may have died before the state without the transfer was.
        ended.retain(|report| !self.transfers.contains_key(&report.id));
        let after = ended.iter().map(|report| report.id.0 + 1).max().unwrap_or(0);
        Self { ended, next_transfer: self.next_transfer.max(after), ..self }
    }
}

/// What is asked of it and told to it.
impl Engine {
    /// An engine for a host without VMs.
    pub fn new(host: Host, timing: Timing) -> Self {
        Self::with(State::new(host), timing, Duration::ZERO)
    }

    pub(crate) fn with(state: State, timing: Timing, now: Duration) -> Self {
        Self { state, timing, notices: Vec::new(), actions: Vec::new(), checked: Ledger::default(), now }
    }

    /// Admits a VM: what it holds at start moves from the pool to it, at once, before it exists. The
    /// daemon then starts QEMU with the gates of just these CPUs open and reports
    /// [`Event::VmStarted`], or [`Event::VmGone`] if that failed.
    pub fn start(&mut self, spec: VmSpec, now: Duration) -> Result<Resources, Refusal> {
        self.now = now;
        if self.state.transfers.values().flat_map(|transfer| &transfer.legs).any(|leg| leg.involves(&spec.name)) {
            return Err(Refusal::Busy(spec.name));
        }
        let plan = plan_start(&mut self.books(), &spec)?;
        let name = spec.name.clone();
        self.state.vms.insert(name.clone(), Vm::starting(spec));
        for step in plan.moves {
            self.shift(&step.what, &step.from, &step.to);
            let left = self.can_part_with(&step.from);
            self.state.loans.moved(&step.what, &step.from, &step.to, &left, Remember::No);
        }
        Ok(self.state.ledger.vm(&name).clone())
    }

    /// What [`Engine::start`] would give.
    pub fn preview_start(&self, spec: &VmSpec) -> Result<TransferPlan, Refusal> {
        plan_start(&mut self.books(), spec)
    }

    /// Accepts a request: it begins with the next [`Engine::next_actions`], or when those before it
    /// that turn the same knobs have ended. Refused at once if nothing can be planned and nothing
    /// that is under way could change that.
    pub fn request(&mut self, request: Request, now: Duration) -> Result<TransferId, Refusal> {
        self.now = now;
        let must_wait = !self.turned_before(None).is_disjoint(&knobs_of_request(&request, self));
        if !must_wait {
            self.preview(&request)?;
        }
        let id = TransferId(self.state.next_transfer);
        self.state.next_transfer += 1;
        let due =
            self.state.transfers.values().map(|before| before.due).fold(now, Duration::max) + self.longest(&request);
        self.state.transfers.insert(id, Transfer::waiting(id, request, now, due));
        if must_wait {
            self.notices.push(Notice::Waiting { transfer: id });
        }
        Ok(id)
    }

    /// What a request would move, if it began now.
    pub fn preview(&self, request: &Request) -> Result<TransferPlan, Refusal> {
        plan(&self.books(), request)
    }

    /// Tells what happened. What to do about it comes out of [`Engine::next_actions`].
    pub fn update(&mut self, event: Event, now: Duration) {
        self.now = now;
        match event {
            Event::Done { id, outcome } => self.done(id, outcome, now),
            Event::VmStarted { vm, seen } => {
                if let Some(vm) = self.state.vms.get_mut(&vm) {
                    vm.started(&seen, now);
                    vm.cores.offline = self.state.offline.clone();
                }
            }
            Event::VmGone { vm } => self.vm_gone(&vm, now),
            Event::VmReset { vm } => self.agent_gone(&vm, now, true),
            Event::AgentConnected { vm, newest, holding } => {
                // A guest's word: believed as far as an earlier daemon can have got. What is beyond that only makes the
                // agent that said it refuse everything.
                if newest < self.state.next_action.saturating_add(LEAP) {
                    self.state.next_action = self.state.next_action.max(newest + 1);
                }
                if let Some(vm) = self.state.vms.get_mut(&vm) {
                    vm.agent = true;
                    vm.silent = false;
                    vm.cores.told = holding.map(|cpus| Told { cpus, refused: Vec::new() });
                    vm.cores.apply.not_before = now;
                }
            }
            Event::AgentLost { vm } => self.agent_gone(&vm, now, false),
            Event::HostCpus { offline } => self.host_cpus(offline, now),
            Event::MemoryAudited { vm: name, trespasses } => {
                if let Some(vm) = self.state.vms.get_mut(&name)
                    && std::mem::replace(&mut vm.trespasses, trespasses) != trespasses
                {
                    self.notices.push(Notice::Trespasses { vm: name, trespasses });
                }
            }
            Event::MemoryFixed { vm, fixed } => {
                if let Some(vm) = self.state.vms.get_mut(&vm) {
                    vm.fixed = fixed;
                }
            }
            Event::SizeChanged { vm } => {
                let vm = self.state.vms.get_mut(&vm);
                vm.into_iter().flat_map(|vm| vm.memory.values_mut()).for_each(|memory| memory.look(now));
            }
            Event::GuestMemory { vm, free, age } => {
                if let Some(vm) = self.state.vms.get_mut(&vm) {
                    vm.reports(free, now.saturating_sub(age));
                }
            }
        }
    }

    /// What is to be done now. Write [`Engine::state`] to the journal before doing it.
    pub fn next_actions(&mut self, now: Duration) -> Vec<Action> {
        self.now = now;
        self.expire(now);
        self.run_transfers(now);
        self.do_duties(now);
        if self.checked != self.state.ledger {
            self.notices.extend(check_ledger(&self.state.host, &self.state.ledger).into_iter().map(Notice::Violated));
            self.checked = self.state.ledger.clone();
        }
        std::mem::take(&mut self.actions)
    }

    /// When to call [`Engine::next_actions`] again at the latest, in engine time. Ask after calling it.
    pub fn next_deadline(&self) -> Option<Duration> {
        let state = &self.state;
        let pending = state.pending.values().map(|pending| pending.action.deadline);
        let legs = state.transfers.values().flat_map(|transfer| &transfer.legs);
        let stages = legs.filter(|leg| leg.stage != Stage::Done).map(|leg| leg.until);
        let duties = state.vms.iter().filter_map(|(name, vm)| next_duty(vm, state.ledger.vm(name), &self.timing));
        pending.chain(stages).chain(duties).filter(|time| *time > self.now).min()
    }

    /// What happened since the last call, for people and programs that watch.
    pub fn take_notices(&mut self) -> Vec<Notice> {
        std::mem::take(&mut self.notices)
    }
}

/// What can be seen of it.
impl Engine {
    /// What the journal keeps.
    pub fn state(&self) -> &State {
        &self.state
    }

    /// The last transfers that ended, oldest first.
    pub fn history(&self) -> &VecDeque<Report> {
        &self.state.ended
    }

    /// The host.
    pub fn host(&self) -> &Host {
        &self.state.host
    }

    /// Who holds what.
    pub fn ledger(&self) -> &Ledger {
        &self.state.ledger
    }

    /// What each holder has once everything under way has left its giver and reached its VM.
    pub fn expected(&self) -> BTreeMap<Holder, Resources> {
        self.books().held
    }

    /// Which knobs of which VMs are being turned by transfers, those that wait counted.
    pub fn turning(&self) -> BTreeMap<VmName, Turning> {
        let mut turning: BTreeMap<VmName, Turning> = BTreeMap::new();
        for (vm, knob) in self.turned_before(None) {
            let turned = turning.entry(vm).or_default();
            match knob {
                Knob::Gates | Knob::Agent => turned.cores = true,
                Knob::Memory(node) => drop(turned.memory.insert(node)),
            }
        }
        turning
    }

    /// Who owes what to whom.
    pub fn loans(&self) -> &[Loan] {
        self.state.loans.all()
    }

    /// A VM.
    pub fn vm(&self, name: &VmName) -> Option<VmView> {
        self.state.vms.get(name).map(|vm| VmView {
            spec: vm.spec.clone(),
            life: vm.life,
            holding: self.state.ledger.vm(name).clone(),
            agent: vm.agent,
            settled: vm.settled,
            open: vm.cores.maybe_open.clone(),
            plugged: vm.memory.iter().map(|(node, memory)| (*node, memory.seen)).collect(),
            lends_memory: !vm.silent && vm.fixed.is_none(),
            takes_memory: !vm.silent && !vm.trespasses && vm.fixed.is_none(),
        })
    }

    /// All VMs, by name.
    pub fn vms(&self) -> Vec<VmView> {
        self.state.vms.keys().filter_map(|name| self.vm(name)).collect()
    }

    /// A transfer: waiting, under way, or among the last that ended.
    pub fn report(&self, id: TransferId) -> Option<Report> {
        let under_way = self.state.transfers.get(&id).map(Transfer::snapshot);
        under_way.or_else(|| self.state.ended.iter().find(|report| report.id == id).cloned())
    }

    /// The last transfers that ended, oldest first, then those that wait or are under way.
    pub fn reports(&self) -> Vec<Report> {
        self.state.ended.iter().cloned().chain(self.state.transfers.values().map(Transfer::snapshot)).collect()
    }

    /// I4: transfers that are older than their deadlines allow.
    pub fn check_deadlines(&self, now: Duration) -> Vec<Violation> {
        let late = |(id, transfer): (&TransferId, &Transfer)| {
            let late_ms = now.checked_sub(transfer.due).filter(|late| !late.is_zero())?.as_millis();
            Some(Violation::Overdue { transfer: *id, late_ms: u64::try_from(late_ms).unwrap_or(u64::MAX) })
        };
        self.state.transfers.iter().filter_map(late).collect()
    }
}

/// What legs and duties use.
impl Engine {
    /// Puts an action out.
    pub(crate) fn issue(&mut self, vm: &VmName, deadline: Duration, kind: ActionKind, owner: Owner) -> ActionId {
        let id = ActionId(self.state.next_action);
        self.state.next_action += 1;
        let action = Action { id, vm: vm.clone(), deadline, kind };
        self.state.pending.insert(id, Pending { action: action.clone(), owner });
        self.actions.push(action);
        id
    }

    /// Moves `what` in the ledger. That the giver has it was made sure before; if not, that is a defect
    /// which is told and changes nothing.
    pub(crate) fn shift(&mut self, what: &Resources, from: &Holder, to: &Holder) {
        if let Err(error) = self.state.ledger.shift(what, from, to) {
            let violation = Violation::GivesWhatItLacks { holder: error.from, missing: error.missing };
            self.notices.push(Notice::Violated(violation));
        }
    }

    /// What `holder` has besides boot memory.
    pub(crate) fn can_part_with(&self, holder: &Holder) -> Resources {
        let memory = holder.vm().and_then(|vm| self.state.vms.get(vm)).map(|vm| vm.spec.boot.clone());
        let boot = Resources { memory: memory.unwrap_or_default(), ..Resources::default() };
        self.state.ledger.held(holder).saturating_sub(&boot)
    }

    /// The leg's load leaves its giver's account.
    pub(crate) fn take(&mut self, leg: &mut Leg, id: TransferId) {
        self.shift(&leg.load, &leg.from, &Holder::Transit(id));
        leg.taken = true;
    }

    /// Who gets what a leg has taken, if its recipient cannot: the giver, if it still runs, or the pool.
    pub(crate) fn heir_without_recipient(&self, leg: &Leg) -> Holder {
        match leg.from.vm().and_then(|vm| self.state.vms.get(vm)) {
            Some(_) => leg.from.clone(),
            None => Holder::Pool,
        }
    }
}

/// How it works inside.
impl Engine {
    pub(crate) fn books(&self) -> Books<'_> {
        let state = &self.state;
        let mut held: BTreeMap<Holder, Resources> =
            state.ledger.accounts().map(|(holder, held)| (holder, held.clone())).collect();
        let legs = state.transfers.values().flat_map(|transfer| &transfer.legs);
        for leg in legs.filter(|leg| leg.stage != Stage::Done) {
            let leaves = if leg.taken { Resources::default() } else { leg.load.clone() };
            let comes = leg.load.saturating_sub(&leg.report.arrived);
            let giver = held.entry(leg.from.clone()).or_default();
            *giver = giver.saturating_sub(&leaves);
            if leg.heir.vm().is_some() {
                held.entry(leg.heir.clone()).or_default().add(&comes);
            }
        }
        let named = |pick: &dyn Fn(&Vm) -> bool| -> BTreeSet<VmName> {
            state.vms.iter().filter(|(_, vm)| pick(vm)).map(|(name, _)| name.clone()).collect()
        };
        Books {
            host: &state.host,
            loans: &state.loans,
            specs: state.vms.iter().map(|(name, vm)| (name.clone(), vm.spec.clone())).collect(),
            starting: named(&|vm| vm.life == Life::Starting),
            silent: named(&|vm| vm.silent),
            trespassing: named(&|vm| vm.trespasses),
            fixed: state.vms.iter().filter_map(|(name, vm)| Some((name.clone(), vm.fixed?))).collect(),
            offline: &state.offline,
            held,
        }
    }

    fn done(&mut self, id: ActionId, outcome: Outcome, now: Duration) {
        let Some(Pending { action, owner }) = self.state.pending.remove(&id) else { return };
        match owner {
            Owner::Duty(vm, knob) => self.duty_done(&vm, knob, action.kind, outcome, now),
            Owner::Leg(transfer, place) => {
                let transfer = self.state.transfers.get_mut(&transfer);
                if let Some(leg) = transfer.and_then(|transfer| transfer.legs.get_mut(place)) {
                    leg.answered(id, outcome);
                }
            }
        }
    }

    fn expire(&mut self, now: Duration) {
        let expired = |pending: &&Pending| pending.action.deadline <= now;
        let ids: Vec<ActionId> = self.state.pending.values().filter(expired).map(|pending| pending.action.id).collect();
        for id in ids {
            self.done(id, Outcome::Failed(Failure::TimedOut), now);
        }
    }

    /// CPUs of the host came or went.
    fn host_cpus(&mut self, offline: CpuSet, now: Duration) {
        if offline == self.state.offline {
            return;
        }
        for vm in self.state.vms.values_mut() {
            vm.cores.stopped = vm.cores.stopped.intersection(&offline);
            vm.cores.offline = offline.clone();
            vm.cores.gate.not_before = now;
            vm.cores.apply.not_before = now;
        }
        self.notices.push(Notice::HostCpus { offline: offline.clone() });
        self.state.offline = offline;
    }

    /// What the agent was asked is lost with it.
    fn agent_gone(&mut self, name: &VmName, now: Duration, reset: bool) {
        let asked_of_agent =
            |pending: &&Pending| pending.action.vm == *name && pending.action.kind.lane() == crate::action::Lane::Agent;
        let lost: Vec<ActionId> =
            self.state.pending.values().filter(asked_of_agent).map(|pending| pending.action.id).collect();
        for id in lost {
            self.done(id, Outcome::Failed(Failure::Unreachable), now);
        }
        let Some(vm) = self.state.vms.get_mut(name) else { return };
        vm.agent = false;
        // Nobody is left who could answer.
        vm.silent &= !vm.spec.agentless;
        vm.cores.told = None;
        vm.free.clear();
        if reset {
            for memory in vm.memory.values_mut() {
                memory.certain = false;
                memory.attempt.not_before = now;
            }
        }
    }

    fn vm_gone(&mut self, name: &VmName, now: Duration) {
        if self.state.vms.remove(name).is_none() {
            return;
        }
        self.state.pending.retain(|_, pending| pending.action.vm != *name);
        let holder = Holder::Vm(name.clone());
        let held = self.state.ledger.vm(name).clone();
        self.shift(&held, &holder, &Holder::Pool);
        self.state.loans.ended(name);
        let mut transfers = std::mem::take(&mut self.state.transfers);
        // Another VM may begin under its name before they end.
        for transfer in transfers.values_mut().filter(|transfer| transfer.legs.iter().any(|leg| leg.names(&holder))) {
            transfer.rounds_left = 0;
        }
        for leg in transfers.values_mut().flat_map(|transfer| &mut transfer.legs) {
            leg.vm_gone(name, self, now);
        }
        self.state.transfers = transfers;
    }

    /// Knobs turned by transfers under way, and by those that wait for their turn before `before`.
    pub(crate) fn turned_before(&self, before: Option<TransferId>) -> Knobs {
        let mut knobs = Knobs::new();
        for (id, transfer) in &self.state.transfers {
            if !transfer.is_waiting() {
                knobs.extend(transfer.knobs());
            } else if before.is_none_or(|before| *id < before) {
                knobs.extend(knobs_of_request(&transfer.report.request, self));
            }
        }
        knobs
    }

    fn run_transfers(&mut self, now: Duration) {
        loop {
            let mut went = false;
            let ids: Vec<TransferId> = self.state.transfers.keys().copied().collect();
            for id in ids {
                let Some(mut transfer) = self.state.transfers.remove(&id) else { continue };
                if !transfer.is_waiting() {
                    for (place, leg) in transfer.legs.iter_mut().enumerate() {
                        went |= leg.step(id, place, self, now) == Step::Went;
                    }
                } else if self.turned_before(Some(id)).is_disjoint(&knobs_of_request(&transfer.report.request, self)) {
                    self.begin(id, &mut transfer, now);
                    went = true;
                }
                let over = !transfer.is_waiting() && transfer.legs.iter().all(|leg| leg.stage == Stage::Done);
                if over && !self.look_elsewhere(id, &mut transfer, now) {
                    self.end(transfer, now);
                } else {
                    self.state.transfers.insert(id, transfer);
                }
                went |= over;
            }
            if !went {
                return;
            }
        }
    }

    /// The longest that a transfer can last once it has begun.
    fn longest(&self, request: &Request) -> Duration {
        let round = leg::cores::longest(&self.timing).max(leg::memory::longest(&self.timing));
        round * rounds(request)
    }

    fn begin(&mut self, id: TransferId, transfer: &mut Transfer, now: Duration) {
        let plan = match plan(&self.books(), &transfer.report.request) {
            Ok(plan) => plan,
            Err(refusal) => {
                transfer.report.verdict = Verdict::Refused(refusal);
                return;
            }
        };
        self.notices.push(Notice::Began { transfer: id, plan: plan.clone() });
        let terms = transfer.terms();
        transfer.report.verdict = Verdict::Moving;
        transfer.due = now + self.longest(&transfer.report.request);
        self.add_legs(id, transfer, &plan.moves, now);
        transfer.legs.extend(plan.withheld.iter().map(|withheld| Leg::withheld(withheld, terms)));
        transfer.report.plan = Some(plan);
    }

    pub(crate) fn add_legs(&mut self, id: TransferId, transfer: &mut Transfer, moves: &[Move], now: Duration) {
        let (before, terms) = (transfer.legs.len(), transfer.terms());
        transfer.legs.extend(moves.iter().map(|step| Leg::new(step, terms)));
        for (place, leg) in transfer.legs.iter_mut().enumerate().skip(before) {
            if leg.load.cpus.is_empty() {
                leg::memory::begin(leg, id, place, self, now);
            } else {
                leg::cores::begin(leg, id, self, now);
            }
        }
    }

    pub(crate) fn end(&mut self, mut transfer: Transfer, now: Duration) {
        if transfer.report.verdict == Verdict::Moving {
            transfer.report.verdict = transfer.verdict();
        }
        transfer.report.ended = Some(now);
        let report = transfer.snapshot();
        self.notices.push(Notice::Ended(Box::new(report.clone())));
        self.state.ended.push_back(report);
        if self.state.ended.len() > REMEMBERED {
            self.state.ended.pop_front();
        }
    }
}

impl Leg {
    fn names(&self, holder: &Holder) -> bool {
        self.from == *holder || self.to == *holder
    }

    fn involves(&self, vm: &VmName) -> bool {
        self.stage != Stage::Done && [&self.from, &self.to].into_iter().any(|holder| holder.vm() == Some(vm))
    }

    /// `vm` ended: what it held is in the pool.
    fn vm_gone(&mut self, vm: &VmName, engine: &Engine, now: Duration) {
        if self.takes_from(vm) {
            let load = self.load.clone();
            self.falls_short(load, Reason::DonorGone, &Holder::Pool);
            self.end(now);
        } else if matches!(self.stage, Stage::Open | Stage::Enable | Stage::Confirm) {
            // All is with whom it will stay; only the recipient's end still changes that.
            if self.to.vm() == Some(vm) {
                let lost = std::mem::take(&mut self.report.arrived);
                self.falls_short(lost, Reason::RecipientGone, &Holder::Pool);
                self.end(now);
            }
        } else if self.heir.vm() == Some(vm) {
            self.heir = if self.heir == self.to { engine.heir_without_recipient(self) } else { Holder::Pool };
        }
    }
}
