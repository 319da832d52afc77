//! Reality, simulated: what VMs could really use, whatever the ledger says.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use conuma_topology::{Bytes, CoreId, CpuId, CpuSet, NodeId, VmName};

use crate::check::check_against_reality;
use crate::transfer::{Leg, Transfer};
use crate::*;

/// The unit in which memory moves in tests.
pub(super) const UNIT: Bytes = Bytes::mib(128);

/// What becomes of an action.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Fate {
    /// Done and answered.
    Works,
    /// Done, but nobody hears of it.
    AnswerLost,
    /// Not done, and nobody hears of it.
    Lost,
    /// Not done; the answer says so.
    Fails,
    /// A guest's no: it changes nothing about its CPUs, stays busy, has no room; or QEMU's, to a look.
    Refused,
    /// Done, and the answer comes twice.
    Twice,
    /// Done, and the answer comes later, perhaps after that of another action.
    AnswerLate,
}

/// How the executor behaves: only tests of the tests use anything but `Honest`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Executor {
    Honest,
    /// Says that gates are closed without closing them.
    ClosesNothing,
    /// Says that QEMU's size is what was asked.
    BelievesGuests,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct RealVm {
    pub(super) boot: BTreeMap<NodeId, Bytes>,
    pub(super) open: CpuSet,
    /// Where it runs on behind a soft gate.
    pub(super) runs_on: CpuSet,
    /// What its guest says that it can do without.
    pub(super) spare: Bytes,
    pub(super) plugged: BTreeMap<NodeId, PluggedMemory>,
    /// The agent runs and is reachable.
    pub(super) agent: bool,
    pub(super) newest: u64,
    pub(super) using: Option<CpuSet>,
    /// What it last reported, of what the daemon has heard.
    pub(super) said: Option<Said>,
}

/// What a guest reports to have free.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Said {
    pub(super) free: BTreeMap<NodeId, Bytes>,
    pub(super) made: Duration,
    /// What was plugged then.
    pub(super) plugged: BTreeMap<NodeId, PluggedMemory>,
}

#[derive(Debug, Clone)]
pub(super) struct World {
    pub(super) engine: Engine,
    pub(super) now: Duration,
    pub(super) vms: BTreeMap<VmName, RealVm>,
    pub(super) specs: BTreeMap<VmName, VmSpec>,
    /// Actions on their way, in order per VM and lane.
    pub(super) in_flight: BTreeMap<(VmName, Lane), VecDeque<Action>>,
    /// Answers to actions that took effect, still on their way: they may overtake each other.
    pub(super) answers: Vec<Event>,
    /// Reports of guests, still on their way, in whatever order.
    pub(super) reports: Vec<(VmName, Said)>,
    /// Of whom memory began to be taken though nothing that its guest had said allowed it.
    pub(super) unasked: Vec<VmName>,
    pub(super) notices: Vec<Notice>,
    pub(super) executor: Executor,
}

pub(super) fn name(text: &str) -> VmName {
    text.parse().unwrap()
}

pub(super) fn cpus(list: &str) -> CpuSet {
    list.parse().unwrap()
}

pub(super) fn units(n: u64) -> Bytes {
    Bytes(UNIT.0 * n)
}

pub(super) fn on(node: u32, n: u64) -> BTreeMap<NodeId, Bytes> {
    BTreeMap::from([(NodeId(node), units(n))])
}

/// `nodes` nodes of `cores` cores with `threads` CPUs each and `memory` units.
pub(super) fn host(nodes: u32, cores: u32, threads: u32, memory: u64) -> Host {
    let mut host = Host::default();
    for core in 0..nodes * cores {
        let cpus = (core * threads..(core + 1) * threads).map(CpuId).collect();
        host.cores.insert(CoreId(core), HostCore { cpus, node: Some(NodeId(core / cores)) });
    }
    host.memory = (0..nodes).map(|node| (NodeId(node), units(memory))).collect();
    host
}

/// A VM that boots with one unit per node and holds `cpus` and `memory` units per node.
pub(super) fn spec(host: &Host, vm: &str, cpus: &str, memory: u64) -> VmSpec {
    let nodes = |n| host.memory.keys().map(|node| (*node, units(n))).collect::<BTreeMap<_, _>>();
    let holding = Demand {
        cores: Some(CoreDemand::Cpus(cpus.parse().unwrap())),
        memory: Some(MemoryDemand::PerNode(nodes(memory))),
    };
    VmSpec {
        name: name(vm),
        guarantee: Demand { cores: Some(CoreDemand::Count(1)), memory: Some(MemoryDemand::PerNode(nodes(1))) },
        limit: Demand::default(),
        initial: holding,
        boot: nodes(1),
        devices: host.memory.iter().map(|(n, max)| (*n, MemoryDevice { max: *max, block: UNIT })).collect(),
        agentless: false,
    }
}

pub(super) fn lend(from: &str, to: &str, what: Demand) -> Request {
    Request::Lend { from: name(from), to: name(to), what, below_guarantee: false }
}

pub(super) fn recall(to: &str) -> Request {
    Request::Recall { to: name(to), from: None, what: None }
}

pub(super) fn of_cpus(list: &str) -> Demand {
    Demand { cores: Some(CoreDemand::Cpus(cpus(list))), memory: None }
}

pub(super) fn of_cores(count: usize) -> Demand {
    Demand { cores: Some(CoreDemand::Count(count)), memory: None }
}

pub(super) fn of_memory(node: u32, n: u64) -> Demand {
    Demand { cores: None, memory: Some(MemoryDemand::PerNode(on(node, n))) }
}

impl RealVm {
    /// What a look at the host finds.
    pub(super) fn seen(&self) -> VmSeen {
        VmSeen { open: self.open.clone(), runs_on: self.runs_on.clone(), plugged: self.plugged.clone() }
    }

    /// What it has free at most on a node, by what it said and what came and went since.
    fn still_free(&self, node: NodeId, said: &Said) -> Bytes {
        let free = said.free.get(&node).copied().unwrap_or_default();
        (free + self.plugged[&node].size).saturating_sub(said.plugged[&node].size)
    }
}

impl World {
    /// A host with VMs that run, connected and settled.
    pub(super) fn with(host: Host, specs: Vec<VmSpec>) -> Self {
        Self::with_timing(host, specs, Timing::default())
    }

    pub(super) fn with_timing(host: Host, specs: Vec<VmSpec>, timing: Timing) -> Self {
        let engine = Engine::new(host, timing);
        let mut world = Self {
            engine,
            now: Duration::ZERO,
            vms: BTreeMap::new(),
            specs: specs.iter().map(|spec| (spec.name.clone(), spec.clone())).collect(),
            in_flight: BTreeMap::new(),
            answers: Vec::new(),
            reports: Vec::new(),
            unasked: Vec::new(),
            notices: Vec::new(),
            executor: Executor::Honest,
        };
        for spec in specs {
            let name = spec.name.clone();
            world.engine.start(spec, world.now).unwrap();
            world.boot(&name);
            world.connect(&name);
        }
        world.run_until_settled();
        world
    }

    /// QEMU of an admitted VM comes up.
    pub(super) fn boot(&mut self, name: &VmName) {
        let spec = &self.specs[name];
        let open = self.engine.ledger().vm(name).cpus.clone();
        let plugged: BTreeMap<_, _> = spec.devices.keys().map(|node| (*node, PluggedMemory::default())).collect();
        let seen = VmSeen { open: open.clone(), plugged: plugged.clone(), ..VmSeen::default() };
        let boot = spec.boot.clone();
        self.vms.insert(
            name.clone(),
            RealVm {
                boot,
                open,
                runs_on: CpuSet::new(),
                spare: units(1000),
                plugged,
                agent: false,
                newest: 0,
                using: None,
                said: None,
            },
        );
        self.tell(Event::VmStarted { vm: name.clone(), seen });
    }

    pub(super) fn connect(&mut self, name: &VmName) {
        // A new connection ends the one before, with what was asked on it.
        self.hang_up(name);
        let Some(vm) = self.vms.get_mut(name) else { return };
        vm.agent = true;
        let event = Event::AgentConnected { vm: name.clone(), newest: vm.newest, holding: vm.using.clone() };
        self.tell(event);
    }

    pub(super) fn disconnect(&mut self, name: &VmName) {
        let Some(vm) = self.vms.get_mut(name) else { return };
        vm.agent = false;
        vm.said = None;
        self.hang_up(name);
        self.tell(Event::AgentLost { vm: name.clone() });
    }

    fn hang_up(&mut self, name: &VmName) {
        self.in_flight.remove(&(name.clone(), Lane::Agent));
        self.reports.retain(|(vm, _)| vm != name);
    }

    pub(super) fn kill(&mut self, name: &VmName) {
        self.vms.remove(name);
        self.in_flight.retain(|(vm, _), _| vm != name);
        self.reports.retain(|(vm, _)| vm != name);
        self.tell(Event::VmGone { vm: name.clone() });
    }

    pub(super) fn reset(&mut self, name: &VmName) {
        let Some(vm) = self.vms.get_mut(name) else { return };
        vm.agent = false;
        vm.newest = 0;
        vm.using = None;
        vm.said = None;
        for plugged in vm.plugged.values_mut() {
            plugged.size = Bytes::ZERO;
        }
        self.hang_up(name);
        self.tell(Event::VmReset { vm: name.clone() });
    }

    pub(super) fn tell(&mut self, event: Event) {
        self.engine.update(event, self.now);
        self.pump();
    }

    pub(super) fn ask(&mut self, request: Request) -> Result<TransferId, Refusal> {
        let id = self.engine.request(request, self.now)?;
        self.pump();
        Ok(id)
    }

    /// One turn of the daemon's loop: journal, then send. The engine changes nowhere else, so its state is
    /// what the journal says.
    pub(super) fn pump(&mut self) {
        let before = self.shrinking();
        let actions = self.engine.next_actions(self.now);
        for leg in self.shrinking().difference(&before) {
            self.unasked.extend(self.taken_unasked(*leg));
        }
        for action in actions {
            self.in_flight.entry((action.vm.clone(), action.kind.lane())).or_default().push_back(action);
        }
        self.notices.extend(self.engine.take_notices());
    }

    /// The legs that are taking memory from a guest.
    fn shrinking(&self) -> BTreeSet<(TransferId, usize)> {
        let legs = |(id, transfer): (&TransferId, &Transfer)| {
            let shrink = transfer.legs.iter().enumerate().filter(|(_, leg)| leg.stage == Stage::Shrink);
            shrink.map(|(place, _)| (*id, place)).collect::<Vec<_>>()
        };
        self.engine.state.transfers.iter().flat_map(legs).collect()
    }

    /// From whom a leg that has just begun to take memory takes it, unless its guest was asked before or has said just now
    /// that it has more free than that.
    fn taken_unasked(&self, (id, place): (TransferId, usize)) -> Option<VmName> {
        let leg = &self.engine.state.transfers[&id].legs[place];
        let name = leg.from.vm()?;
        let vm = self.vms.get(name)?;
        let nobody_to_ask = self.specs[name].agentless && !vm.agent;
        let fresh = |said: &&Said| said.made + self.engine.timing.fresh >= self.now;
        let said = vm.said.as_ref().filter(fresh);
        let free = |node| said.map(|said| vm.still_free(node, said)).unwrap_or_default();
        let covered = leg.load.memory.keys().all(|node| {
            let goal = self.engine.state.vms[name].memory[node].goal.unwrap_or_default();
            let taken = vm.plugged[node].size.saturating_sub(goal);
            taken.is_zero() || taken < free(*node)
        });
        (!was_asked(leg) && !nobody_to_ask && !covered).then(|| name.clone())
    }

    /// A guest reports what it has free on a node.
    pub(super) fn report_free(&mut self, name: &VmName, free: BTreeMap<NodeId, Bytes>) {
        let said = Said { free, made: self.now, plugged: self.vms[name].plugged.clone() };
        self.reports.push((name.clone(), said));
    }

    /// One of the reports that are on their way arrives.
    pub(super) fn hear(&mut self, place: usize) {
        let (name, said) = self.reports.remove(place);
        let (free, age) = (said.free.clone(), self.now - said.made);
        let vm = self.vms.get_mut(&name).expect("the reports of a VM end with it");
        if vm.said.as_ref().is_none_or(|last| last.made <= said.made) {
            vm.said = Some(said);
        }
        self.tell(Event::GuestMemory { vm: name, free, age });
    }

    /// Time passes until the engine wants to be asked again.
    pub(super) fn tick(&mut self) -> bool {
        let Some(next) = self.engine.next_deadline() else { return false };
        assert!(next > self.now, "a deadline that has passed");
        self.now = next;
        self.pump();
        true
    }

    /// The daemon dies and comes back, with its journal or without.
    pub(super) fn crash(&mut self, keep_journal: bool) {
        let found = |(name, vm): (&VmName, &RealVm)| {
            (name.clone(), VmFound { spec: self.specs[name].clone(), seen: vm.seen() })
        };
        let found = self.vms.iter().map(found).collect();
        let journal = keep_journal.then(|| written_and_read(self.engine.state()));
        let (host, timing) = (self.engine.host().clone(), self.engine.timing.clone());
        self.engine = Engine::recover(journal, host, found, timing, self.now);
        self.in_flight.clear();
        self.answers.clear();
        self.reports.clear();
        self.vms.values_mut().for_each(|vm| vm.said = None);
        self.pump();
        let connected: Vec<VmName> = self.vms.iter().filter(|(_, vm)| vm.agent).map(|(name, _)| name.clone()).collect();
        connected.iter().for_each(|name| self.connect(name));
    }

    /// The next action of a lane meets its fate. Tells whether there was one.
    pub(super) fn deliver(&mut self, vm: &VmName, lane: Lane, fate: Fate) -> bool {
        let Some(queue) = self.in_flight.get_mut(&(vm.clone(), lane)) else { return false };
        let Some(action) = queue.pop_front() else { return false };
        if queue.is_empty() {
            self.in_flight.remove(&(vm.clone(), lane));
        }
        let does = matches!(fate, Fate::Works | Fate::AnswerLost | Fate::Twice | Fate::Refused | Fate::AnswerLate);
        let outcome = if does { self.perform(&action, fate) } else { Outcome::Failed(Failure::Failed("fault".into())) };
        let done = Event::Done { id: action.id, outcome };
        match fate {
            Fate::Lost | Fate::AnswerLost => {}
            Fate::AnswerLate => self.answers.push(done),
            Fate::Twice => {
                // The second time after whatever happens meanwhile.
                self.answers.push(done.clone());
                self.tell(done);
            }
            Fate::Works | Fate::Fails | Fate::Refused => self.tell(done),
        }
        true
    }

    /// One of the answers that are on their way arrives.
    pub(super) fn arrive(&mut self, place: usize) {
        let answer = self.answers.remove(place);
        self.tell(answer);
    }

    fn perform(&mut self, action: &Action, fate: Fate) -> Outcome {
        let executor = self.executor;
        let Some(vm) = self.vms.get_mut(&action.vm) else { return Outcome::Failed(Failure::Unreachable) };
        let refused = fate == Fate::Refused;
        if action.kind.lane() == Lane::Agent {
            if !vm.agent {
                return Outcome::Failed(Failure::Unreachable);
            }
            if action.id.0 < vm.newest {
                return Outcome::Failed(Failure::Refused("stale".into()));
            }
            vm.newest = action.id.0;
        }
        match &action.kind {
            ActionKind::AgentApply { cpus } if refused => {
                let before = vm.using.clone().unwrap_or_default();
                let (stays, unused) = (before.difference(cpus), cpus.difference(&before));
                vm.using = Some(before);
                let refused = [stays, unused].into_iter().filter(|cpus| !cpus.is_empty());
                Outcome::Applied {
                    refused: refused.map(|cpus| RefusedCpus { cpus, why: "exclusive".into() }).collect(),
                }
            }
            ActionKind::AgentApply { cpus } => {
                vm.using = Some(cpus.clone());
                Outcome::Applied { refused: Vec::new() }
            }
            ActionKind::PrepareMemory { .. } => {
                Outcome::Prepared { enough: !refused, spare: if refused { units(1) } else { vm.spare } }
            }
            ActionKind::ConfirmMemory { .. } => Outcome::Confirmed { satisfied: !refused },
            ActionKind::SetRequestedSize { node, bytes } => {
                let plugged = vm.plugged.get_mut(node).unwrap();
                plugged.requested = *bytes;
                let size = if executor == Executor::BelievesGuests { *bytes } else { plugged.size };
                Outcome::Memory(PluggedMemory { size, ..*plugged })
            }
            ActionKind::PollSize { .. } if refused => Outcome::Failed(Failure::Refused("broken".into())),
            ActionKind::PollSize { node } => Outcome::Memory(vm.plugged[node]),
            ActionKind::CloseGate { cpus, grip, .. } => {
                let busy = if refused { cpus.clone() } else { CpuSet::new() };
                if executor != Executor::ClosesNothing {
                    vm.open = vm.open.difference(cpus);
                    vm.runs_on = vm.runs_on.difference(cpus);
                    if *grip == Grip::Soft {
                        vm.runs_on = vm.runs_on.union(&busy);
                    }
                }
                Outcome::GateClosed { busy }
            }
            ActionKind::OpenGate { cpus } => {
                vm.open = vm.open.union(cpus);
                vm.runs_on = vm.runs_on.difference(cpus);
                Outcome::GateOpened
            }
        }
    }

    /// A guest plugs or unplugs one unit, if QEMU lets it.
    pub(super) fn guest_moves(&mut self, vm: &VmName, node: NodeId) -> bool {
        let Some(plugged) = self.vms.get_mut(vm).and_then(|vm| vm.plugged.get_mut(&node)) else { return false };
        match plugged.size.cmp(&plugged.requested) {
            std::cmp::Ordering::Less => plugged.size += UNIT,
            std::cmp::Ordering::Equal => return false,
            std::cmp::Ordering::Greater => plugged.size = plugged.size.saturating_sub(UNIT),
        }
        true
    }

    /// Everything goes well from now on, until nothing is left to do. Panics if that never happens.
    pub(super) fn run_until_settled(&mut self) {
        for _ in 0..5_000 {
            if !self.answers.is_empty() {
                self.arrive(0);
            } else if !self.deliver_any() && !self.guests_move() {
                let vms = self.engine.vms();
                if vms.iter().all(|vm| vm.settled) && self.engine.state.transfers.is_empty() {
                    return;
                }
                assert!(self.tick(), "nothing to wait for, but not settled: {vms:#?}");
            }
        }
        panic!("does not settle: {:#?}", self.engine.state());
    }

    pub(super) fn deliver_any(&mut self) -> bool {
        match self.in_flight.keys().next().cloned() {
            Some((vm, lane)) => self.deliver(&vm, lane, Fate::Works),
            None => false,
        }
    }

    fn guests_move(&mut self) -> bool {
        let all: Vec<(VmName, NodeId)> = self
            .vms
            .iter()
            .flat_map(|(name, vm)| vm.plugged.keys().map(|node| (name.clone(), *node)).collect::<Vec<_>>())
            .collect();
        all.iter().fold(false, |any, (name, node)| self.guest_moves(name, *node) || any)
    }

    /// I1, I2, I5 against reality, the ledger by itself, I4, and that the engine noticed no defect of its own.
    pub(super) fn violations(&self) -> Vec<Violation> {
        let host = self.engine.host();
        let seen: Vec<(&VmSpec, VmSeen)> = self.vms.iter().map(|(name, vm)| (&self.specs[name], vm.seen())).collect();
        let mut violations = check_ledger(host, self.engine.ledger());
        violations.extend(check_against_reality(host, self.engine.ledger(), seen.iter().map(|(s, v)| (*s, v))));
        violations.extend(self.engine.check_deadlines(self.now));
        violations.extend(self.notices.iter().filter_map(|notice| match notice {
            Notice::Violated(violation) => Some(violation.clone()),
            _ => None,
        }));
        violations
    }

    pub(super) fn check(&self) {
        let violations = self.violations();
        assert!(violations.is_empty(), "{violations:#?}\n{:#?}\n{:#?}", self.vms, self.engine.state());
    }

    pub(super) fn holds(&self, vm: &str) -> String {
        self.engine.ledger().vm(&name(vm)).to_string()
    }

    pub(super) fn report(&self, id: TransferId) -> Report {
        self.engine.report(id).unwrap()
    }
}

/// Whether the guest was asked before its memory was taken.
pub(super) fn was_asked(leg: &Leg) -> bool {
    leg.report.stages.iter().any(|stage| stage.stage == Stage::Prepare)
}

/// A state as a recovery finds it in the journal.
pub(super) fn written_and_read(state: &State) -> State {
    let text = serde_json::to_string(state).expect("a state can be written");
    let read: State = serde_json::from_str(&text).expect("what was written can be read");
    assert_eq!(serde_json::to_string(&read).expect("it can be written again"), text);
    read.with_history(state.ended.clone())
}
