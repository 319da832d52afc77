//! Every interleaving of small configurations, by explicit-state search.
//!
//! A state is the engine's record together with reality (open gates, plugged memory, agents, actions on
//! their way). From each state every next step is tried: a request, the delivery of the next
//! action of any actuator, a unit of memory that a guest plugs or unplugs, the passing of a deadline, in some configurations
//! a report of a guest on what it has free, soon or late or never heard, and, as long as the budget lasts, a fault: a lost
//! action or answer, a failure, a guest's refusal, an answer that comes twice, after others or too late, a lost connection, a reboot, the death of a VM or of the
//! daemon (with or without its journal). In every state all invariants must hold against reality, and
//! no transfer may be older than its deadlines allow. Memory is taken from a guest only if it was asked before, or if what it
//! last said is fresh and leaves it some.
//!
//! States that differ only in clock, action numbers or reports are one: what is hashed is their
//! canonical form.

use std::collections::BTreeMap;
use std::fmt;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use std::time::Duration;

use conuma_topology::{NodeId, VmName};
use stateright::{Checker, Model, Property};

use super::world::*;
use crate::*;

/// A small configuration and what may be asked in it, each once and in any order.
struct Small {
    world: World,
    requests: Vec<Request>,
    faults: u8,
    /// Who may say that so many units are free, each once and in any order.
    reports: Vec<(VmName, u64)>,
}

#[derive(Clone)]
struct Scene {
    world: Arc<World>,
    asked: u32,
    faults: u8,
    reported: u32,
    fingerprint: u64,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Move {
    Ask(usize),
    Deliver(VmName, Lane, Fate),
    /// One of the answers that are on their way arrives, in whatever order.
    Arrive(usize),
    GuestMoves(VmName, NodeId),
    /// A guest says what it has free.
    Report(usize),
    /// One of the reports that are on their way arrives, in whatever order.
    Hear(usize),
    /// Nothing is to be done for a while.
    Idle,
    Tick,
    Late,
    Connect(VmName),
    Disconnect(VmName),
    Reset(VmName),
    Kill(VmName),
    Crash {
        keep_journal: bool,
    },
}

/// What a guest said so long ago says nothing any more.
const OLD: Duration = Duration::from_millis(1001);

/// All deadlines alike: what may happen before another is not a matter of their lengths.
fn timing() -> Timing {
    let second = Duration::from_secs(1);
    Timing {
        agent: second,
        recall: second,
        host: second,
        idle_window: Duration::ZERO,
        verify: second,
        fresh: second,
        prepare: second,
        shrink: second * 2,
        grow: second * 2,
        confirm: second,
        poll: second,
        restart: second,
        retry: second,
        step: UNIT,
    }
}

impl Small {
    fn new(host: Host, specs: Vec<VmSpec>, requests: Vec<Request>, faults: u8) -> Self {
        Self { world: World::with_timing(host, specs, timing()), requests, faults, reports: Vec::new() }
    }

    /// Searches all states. Were there fewer than `least`, the search would have become narrower.
    fn check(self, least: usize) {
        let reports = !self.reports.is_empty();
        let checker = self.checker().spawn_bfs().join();
        for property in ["holds", "in time", "asks first"] {
            if let Some(path) = checker.discovery(property) {
                let moves: Vec<Move> = path.clone().into_actions();
                let last = path.last_state().world.clone();
                panic!(
                    "not `{property}`: {moves:#?}\n{:#?}\n{:#?}\n{:#?}",
                    last.violations(),
                    last.vms,
                    last.engine.state()
                );
            }
        }
        checker.assert_discovery_exists("something moves");
        checker.assert_discovery_exists("all moves and comes back");
        if reports {
            checker.assert_discovery_exists("takes unasked");
        }
        let states = checker.unique_state_count();
        assert!(states >= least, "only {states} states");
    }
}

trait Exists {
    fn assert_discovery_exists(&self, name: &'static str);
}

impl<C: Checker<Small>> Exists for C {
    fn assert_discovery_exists(&self, name: &'static str) {
        assert!(self.discovery(name).is_some(), "never: {name}");
    }
}

impl Model for Small {
    type State = Scene;
    type Action = Move;

    fn init_states(&self) -> Vec<Scene> {
        vec![Scene::new(self.world.clone(), 0, self.faults, 0)]
    }

    fn actions(&self, scene: &Scene, moves: &mut Vec<Move>) {
        let world = &scene.world;
        moves.extend((0..self.requests.len()).filter(|index| scene.asked & (1 << index) == 0).map(Move::Ask));
        for ((vm, lane), queue) in &world.in_flight {
            let mut fates = vec![Fate::Works];
            if scene.faults > 0 {
                fates.extend([Fate::Lost, Fate::AnswerLost, Fate::AnswerLate, Fate::Twice, Fate::Fails]);
                if queue.front().is_some_and(|action| can_refuse(&action.kind)) {
                    fates.push(Fate::Refused);
                }
            }
            moves.extend(fates.into_iter().map(|fate| Move::Deliver(vm.clone(), *lane, fate)));
        }
        moves.extend((0..world.answers.len()).map(Move::Arrive));
        let reports = self.reports.iter().enumerate().filter(|(index, _)| scene.reported & (1 << index) == 0);
        let can_speak = reports.filter(|(_, (vm, _))| world.vms.get(vm).is_some_and(|vm| vm.agent));
        moves.extend(can_speak.map(|(index, _)| Move::Report(index)));
        moves.extend((0..world.reports.len()).map(Move::Hear));
        for (name, vm) in &world.vms {
            let unsettled = vm.plugged.iter().filter(|(_, plugged)| plugged.size != plugged.requested);
            moves.extend(unsettled.map(|(node, _)| Move::GuestMoves(name.clone(), *node)));
            if !vm.agent {
                moves.push(Move::Connect(name.clone()));
            }
            if scene.faults > 0 {
                moves.extend([Move::Reset(name.clone()), Move::Kill(name.clone())]);
                moves.extend(vm.agent.then(|| Move::Disconnect(name.clone())));
            }
        }
        if world.in_flight.is_empty() && world.answers.is_empty() {
            moves.push(Move::Tick);
            moves.extend((!self.reports.is_empty() && world.engine.next_deadline().is_none()).then_some(Move::Idle));
        } else if scene.faults > 0 {
            moves.push(Move::Late);
        }
        if scene.faults > 0 {
            moves.extend([true, false].map(|keep_journal| Move::Crash { keep_journal }));
        }
    }

    fn next_state(&self, scene: &Scene, step: Move) -> Option<Scene> {
        let mut world = World::clone(&scene.world);
        world.unasked.clear();
        let (mut asked, mut reported) = (scene.asked, scene.reported);
        let costs = match &step {
            Move::Ask(_) | Move::Arrive(_) | Move::GuestMoves(..) | Move::Tick | Move::Connect(_) => 0,
            Move::Report(..) | Move::Hear(_) | Move::Idle => 0,
            Move::Deliver(_, _, Fate::Works) => 0,
            _ => 1,
        };
        match step {
            Move::Ask(index) => {
                asked |= 1 << index;
                let _refused_is_fine = world.ask(self.requests[index].clone());
            }
            Move::Deliver(vm, lane, fate) => drop(world.deliver(&vm, lane, fate)),
            Move::Arrive(place) => world.arrive(place),
            Move::GuestMoves(vm, node) => drop(world.guest_moves(&vm, node)),
            Move::Report(index) => {
                reported |= 1 << index;
                let (vm, free) = &self.reports[index];
                world.report_free(vm, on(0, *free));
            }
            Move::Hear(place) => world.hear(place),
            Move::Idle => world.now += OLD,
            Move::Tick | Move::Late => {
                if !world.tick() {
                    return None;
                }
            }
            Move::Connect(vm) => world.connect(&vm),
            Move::Disconnect(vm) => world.disconnect(&vm),
            Move::Reset(vm) => world.reset(&vm),
            Move::Kill(vm) => world.kill(&vm),
            Move::Crash { keep_journal } => world.crash(keep_journal),
        }
        world.notices.retain(|notice| matches!(notice, Notice::Violated(_)));
        Some(Scene::new(world, asked, scene.faults - costs, reported))
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always("holds", |_, scene: &Scene| {
                let overdue = |violation: &Violation| matches!(violation, Violation::Overdue { .. });
                scene.world.violations().iter().all(overdue)
            }),
            Property::always("in time", |_, scene: &Scene| {
                scene.world.engine.check_deadlines(scene.world.now).is_empty()
            }),
            Property::always("asks first", |_, scene: &Scene| scene.world.unasked.is_empty()),
            Property::sometimes("takes unasked", |_, scene: &Scene| {
                let legs = scene.world.engine.state.transfers.values().flat_map(|transfer| &transfer.legs);
                legs.filter(|leg| leg.stage == Stage::Shrink).any(|leg| !was_asked(leg))
            }),
            Property::sometimes("something moves", |_, scene: &Scene| !scene.world.engine.loans().is_empty()),
            Property::sometimes("all moves and comes back", |model: &Self, scene: &Scene| {
                let engine = &scene.world.engine;
                scene.asked.count_ones() as usize == model.requests.len()
                    && completed(&scene.world) == model.requests.len()
                    && engine.loans().is_empty()
            }),
        ]
    }
}

fn can_refuse(kind: &ActionKind) -> bool {
    matches!(
        kind,
        ActionKind::AgentApply { .. }
            | ActionKind::PrepareMemory { .. }
            | ActionKind::ConfirmMemory { .. }
            | ActionKind::CloseGate { grip: Grip::Soft, .. }
    )
}

impl Scene {
    fn new(world: World, asked: u32, faults: u8, reported: u32) -> Self {
        let mut hasher = DefaultHasher::new();
        (asked, faults, reported).hash(&mut hasher);
        hash_canonical(&world, &mut hasher);
        Self { fingerprint: hasher.finish(), world: Arc::new(world), asked, faults, reported }
    }
}

impl Hash for Scene {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.fingerprint.hash(state);
    }
}

impl PartialEq for Scene {
    fn eq(&self, other: &Self) -> bool {
        self.fingerprint == other.fingerprint
    }
}

impl fmt::Debug for Scene {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.world.vms)
    }
}

fn completed(world: &World) -> usize {
    world.engine.reports().iter().filter(|report| report.verdict == Verdict::Complete).count()
}

/// Hashes the world without what makes no difference to its future.
fn hash_canonical(world: &World, hasher: &mut impl Hasher) {
    let now = world.now;
    let mut state = world.engine.state().clone();
    let numbers: BTreeMap<ActionId, ActionId> =
        state.pending.keys().enumerate().map(|(place, id)| (*id, ActionId(place as u64))).collect();
    let renumber = |id: &mut Option<ActionId>| *id = id.and_then(|id| numbers.get(&id).copied());
    let ahead = |time: &mut Duration| {
        if *time != Duration::MAX {
            *time = time.saturating_sub(now);
        }
    };
    let since = |time: Duration| now.saturating_sub(time).min(OLD);
    let behind = |time: &mut Duration| *time = now.saturating_sub(*time).min(Duration::from_secs(1));
    state.pending = std::mem::take(&mut state.pending)
        .into_iter()
        .map(|(id, mut pending)| {
            pending.action.id = numbers[&id];
            ahead(&mut pending.action.deadline);
            (numbers[&id], pending)
        })
        .collect();
    for transfer in state.transfers.values_mut() {
        ahead(&mut transfer.due);
        transfer.report.asked = Duration::ZERO;
        transfer.report.plan = None;
        for leg in &mut transfer.legs {
            ahead(&mut leg.until);
            renumber(&mut leg.asked);
            // What came to a guest before it reported is not counted again.
            let to = leg.to.vm().and_then(|vm| state.vms.get(vm)).filter(|vm| !vm.free.is_empty());
            let uncounted = |stage: &StageTime| to.is_some_and(|vm| vm.heard < stage.began);
            leg.report.stages.retain(|stage| stage.stage == Stage::Grow && uncounted(stage));
            for stage in &mut leg.report.stages {
                (stage.began, stage.took) = (Duration::ZERO, None);
            }
        }
    }
    for (name, vm) in &mut state.vms {
        let on_their_way = world.reports.iter().any(|(of, _)| of == name);
        // They only tell which reports count.
        let reported = on_their_way || !vm.free.is_empty();
        vm.heard = if reported { since(vm.heard) } else { Duration::ZERO };
        vm.outdated = if on_their_way { since(vm.outdated) } else { Duration::ZERO };
        vm.shuffled &= !vm.free.is_empty();
        for attempt in [&mut vm.cores.gate, &mut vm.cores.apply] {
            ahead(&mut attempt.not_before);
            renumber(&mut attempt.pending);
        }
        for memory in vm.memory.values_mut() {
            behind(&mut memory.began);
            behind(&mut memory.changed);
            behind(&mut memory.set);
            ahead(&mut memory.attempt.not_before);
            renumber(&mut memory.attempt.pending);
        }
    }
    (&state.ledger, &state.loans, &state.vms, &state.transfers, &state.pending).hash(hasher);
    for (key, queue) in &world.in_flight {
        key.hash(hasher);
        queue.iter().for_each(|action| (numbers.get(&action.id), &action.kind).hash(hasher));
    }
    for answer in &world.answers {
        if let Event::Done { id, outcome } = answer {
            (numbers.get(id), outcome).hash(hasher);
        }
    }
    let hash_said = |said: &Said, hasher: &mut _| (&said.free, since(said.made), &said.plugged).hash(hasher);
    for (name, said) in &world.reports {
        name.hash(hasher);
        hash_said(said, hasher);
    }
    for (name, vm) in &world.vms {
        (name, &vm.open, &vm.runs_on, &vm.plugged, vm.agent, &vm.using).hash(hasher);
        vm.said.iter().filter(|said| since(said.made) < OLD).for_each(|said| hash_said(said, hasher));
    }
    (world.notices.len(), world.unasked.len(), completed(world)).hash(hasher);
}

/// `a` with two cores, `b` with one; nothing but cores.
fn cores(faults: u8) -> Small {
    let host = host(1, 3, 1, 2);
    let specs = vec![spec(&host, "a", "0-1", 1), spec(&host, "b", "2", 1)];
    Small::new(host, specs, vec![lend("a", "b", of_cpus("1")), recall("a")], faults)
}

/// `a` can spare two units of memory.
fn memory(faults: u8) -> Small {
    let host = host(1, 2, 1, 4);
    let specs = vec![spec(&host, "a", "0", 3), spec(&host, "b", "1", 1)];
    Small::new(host, specs, vec![lend("a", "b", of_memory(0, 2)), recall("a")], faults)
}

/// `a` can spare one unit of memory; guests say what they have free.
fn reporting(faults: u8, reports: &[(&str, u64)]) -> Small {
    let host = host(1, 2, 1, 3);
    let specs = vec![spec(&host, "a", "0", 2), spec(&host, "b", "1", 1)];
    let small = Small::new(host, specs, vec![lend("a", "b", of_memory(0, 1)), recall("a")], faults);
    Small { reports: reports.iter().map(|(vm, free)| (name(vm), *free)).collect(), ..small }
}

#[test]
fn every_interleaving_of_two_vms_lending_cores() {
    cores(2).check(20_000);
}

#[test]
fn every_interleaving_of_two_vms_lending_memory() {
    memory(1).check(40_000);
}

#[test]
fn every_interleaving_of_two_reports_of_a_borrower() {
    reporting(0, &[("b", 2), ("b", 1)]).check(50_000);
}

#[test]
fn every_interleaving_of_a_report_of_a_lender() {
    reporting(1, &[("a", 2)]).check(80_000);
}

#[test]
fn every_interleaving_of_memory_from_whichever_node() {
    let host = host(2, 1, 1, 3);
    let specs = vec![spec(&host, "a", "0", 2), spec(&host, "b", "1", 1)];
    let one = Demand { cores: None, memory: Some(MemoryDemand::Total(UNIT)) };
    Small::new(host, specs, vec![lend("a", "b", one), recall("a")], 1).check(20_000);
}

#[test]
fn every_interleaving_of_three_vms_and_two_nodes() {
    let host = host(2, 2, 1, 5);
    let specs = vec![spec(&host, "a", "0-1", 2), spec(&host, "b", "2", 1), spec(&host, "c", "3", 1)];
    let both = Demand { cores: of_cpus("1").cores, memory: of_memory(1, 1).memory };
    let requests = vec![lend("a", "b", both), lend("b", "c", of_cpus("1"))];
    Small::new(host, specs, requests, 1).check(100_000);
}

#[test]
fn every_interleaving_with_a_guest_that_has_no_agent_until_one_appears() {
    let host = host(1, 3, 1, 2);
    let (a, b) = (spec(&host, "a", "0-1", 1), spec(&host, "b", "2", 1));
    let requests = vec![lend("a", "b", of_cpus("1")), recall("a")];
    let mut small = Small::new(host, vec![VmSpec { agentless: true, ..a }, b], requests, 1);
    small.world.disconnect(&name("a"));
    small.world.run_until_settled();
    small.check(2_000);
}
