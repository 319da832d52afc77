//! Properties of the engine under random scripts of requests and faults. After every single step the
//! world is checked: the ledger by itself, and against what VMs could really use.
//!
//! The names say what would be wrong if they failed:
//! `a_core_is_usable_by_at_most_one_vm` (I1), `a_node_is_never_overcommitted` (I2),
//! `a_plan_never_takes_a_vm_below_its_guarantee` (I3), `every_transfer_ends_by_its_deadline` (I4),
//! `the_ledger_is_never_below_real_use` (I5).

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use conuma_topology::{NodeId, VmName};
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::TestRunner;

use super::world::*;
use crate::*;

/// One step of a script. Numbers pick among what is there.
#[derive(Debug, Clone)]
enum Op {
    Lend {
        from: usize,
        to: usize,
        cores: usize,
        node: u32,
        memory: u64,
        below: bool,
    },
    LendAnywhere {
        from: usize,
        to: usize,
        memory: u64,
    },
    Recall(usize),
    RecallPart {
        to: usize,
        from: Option<usize>,
        cores: usize,
        node: u32,
        memory: u64,
    },
    Set {
        vm: usize,
        cores: usize,
        node: u32,
        memory: u64,
    },
    /// Each: who gives (one more than there are VMs is the pool), who gets, whether a core, else memory of a node.
    Rebalance(Vec<(usize, usize, bool, u32, u64)>),
    Deliver {
        pick: usize,
        fate: Fate,
    },
    GuestMoves {
        vm: usize,
        node: u32,
    },
    Arrive(usize),
    Tick,
    Disconnect(usize),
    Connect(usize),
    Reset(usize),
    Fix(usize, Option<Fixed>),
    Kill(usize),
    Start(usize),
    Crash {
        keep_journal: bool,
    },
}

const NAMES: [&str; 3] = ["a", "b", "c"];
const NODES: u32 = 2;

fn fates() -> impl Strategy<Value = Fate> {
    prop_oneof![
        12 => Just(Fate::Works),
        1 => Just(Fate::AnswerLost),
        1 => Just(Fate::Lost),
        1 => Just(Fate::Fails),
        2 => Just(Fate::Refused),
        1 => Just(Fate::Twice),
        1 => Just(Fate::AnswerLate),
    ]
}

fn ops() -> impl Strategy<Value = Op> {
    let vm = 0..NAMES.len();
    let lend = (vm.clone(), vm.clone(), 0..3usize, 0..NODES, 0..4u64, any::<bool>());
    prop_oneof![
        2 => proptest::collection::vec((0..NAMES.len() + 1, 0..NAMES.len() + 1, any::<bool>(), 0..NODES, 1..3u64), 1..4)
            .prop_map(Op::Rebalance),
        4 => lend.prop_map(|(from, to, cores, node, memory, below)| Op::Lend { from, to, cores, node, memory, below }),
        2 => (vm.clone(), vm.clone(), 1..5u64)
            .prop_map(|(from, to, memory)| Op::LendAnywhere { from, to, memory }),
        2 => vm.clone().prop_map(Op::Recall),
        1 => (vm.clone(), prop::option::of(vm.clone()), 0..3usize, 0..NODES, 0..3u64)
            .prop_map(|(to, from, cores, node, memory)| Op::RecallPart { to, from, cores, node, memory }),
        2 => (vm.clone(), 1..5usize, 0..NODES, 1..5u64)
            .prop_map(|(vm, cores, node, memory)| Op::Set { vm, cores, node, memory }),
        40 => (0..8usize, fates()).prop_map(|(pick, fate)| Op::Deliver { pick, fate }),
        16 => (vm.clone(), 0..NODES).prop_map(|(vm, node)| Op::GuestMoves { vm, node }),
        3 => (0..4usize).prop_map(Op::Arrive),
        10 => Just(Op::Tick),
        1 => vm.clone().prop_map(Op::Disconnect),
        2 => vm.clone().prop_map(Op::Connect),
        1 => vm.clone().prop_map(Op::Reset),
        1 => (vm.clone(), prop::option::of(prop_oneof![Just(Fixed::Migrates), Just(Fixed::Migrated)]))
            .prop_map(|(vm, fixed)| Op::Fix(vm, fixed)),
        1 => vm.clone().prop_map(Op::Kill),
        2 => vm.prop_map(Op::Start),
        1 => any::<bool>().prop_map(|keep_journal| Op::Crash { keep_journal }),
    ]
}

fn scripts() -> impl Strategy<Value = Vec<Op>> {
    prop::collection::vec(ops(), 1..120)
}

/// Two nodes with three cores of two CPUs and ten units each; two VMs run, a third may be started.
fn world() -> World {
    let host = host(NODES, 3, 2, 10);
    let specs = vec![spec(&host, "a", "0-3", 4), spec(&host, "b", "6-9", 4)];
    let third = spec(&host, "c", "4-5", 2);
    let mut world = World::with(host, specs);
    world.specs.insert(third.name.clone(), third);
    world
}

fn demand(cores: usize, node: u32, memory: u64) -> Demand {
    let cores = (cores > 0).then_some(CoreDemand::Count(cores));
    Demand { cores, memory: (memory > 0).then(|| MemoryDemand::PerNode(on(node, memory))) }
}

fn vm(index: usize) -> VmName {
    name(NAMES[index])
}

fn play(world: &mut World, op: &Op) {
    match *op {
        Op::Lend { from, to, cores, node, memory, below } => {
            let what = demand(cores, node, memory);
            let _ = world.ask(Request::Lend { from: vm(from), to: vm(to), what, below_guarantee: below });
        }
        Op::LendAnywhere { from, to, memory } => {
            let what = Demand { cores: None, memory: Some(MemoryDemand::Total(units(memory))) };
            drop(world.ask(Request::Lend { from: vm(from), to: vm(to), what, below_guarantee: false }));
        }
        Op::Recall(to) => drop(world.ask(recall(NAMES[to]))),
        Op::RecallPart { to, from, cores, node, memory } => {
            let what = Some(demand(cores, node, memory));
            drop(world.ask(Request::Recall { to: vm(to), from: from.map(vm), what }));
        }
        Op::Set { vm: index, cores, node, memory } => {
            let what = demand(cores, node, memory);
            drop(world.ask(Request::Set { vm: vm(index), what, below_guarantee: false }));
        }
        Op::Rebalance(ref moves) => {
            let holder = |index: usize| NAMES.get(index).map_or(Holder::Pool, |vm| Holder::Vm(name(vm)));
            let step = |&(from, to, core, node, memory): &(usize, usize, bool, u32, u64)| {
                let has = world.engine.ledger().held(&holder(from)).cpus.last();
                let what = match (core, has) {
                    (true, Some(cpu)) => Resources::cores([cpu].into()),
                    _ => Resources::memory(NodeId(node), units(memory)),
                };
                Move { from: holder(from), to: holder(to), what }
            };
            let moves = moves.iter().map(step).collect();
            drop(world.ask(Request::Rebalance { moves, below: BTreeSet::new(), owed: false }));
        }
        Op::Deliver { pick, fate } => {
            let lanes: Vec<(VmName, Lane)> = world.in_flight.keys().cloned().collect();
            if let Some((vm, lane)) = lanes.get(pick % lanes.len().max(1)) {
                world.deliver(vm, *lane, fate);
            }
        }
        Op::GuestMoves { vm: index, node } => drop(world.guest_moves(&vm(index), NodeId(node))),
        Op::Arrive(pick) => {
            if let Some(place) = pick.checked_rem(world.answers.len()) {
                world.arrive(place);
            }
        }
        Op::Tick => drop(world.tick()),
        Op::Disconnect(index) => world.disconnect(&vm(index)),
        Op::Connect(index) => world.connect(&vm(index)),
        Op::Reset(index) => world.reset(&vm(index)),
        Op::Fix(index, fixed) => world.tell(Event::MemoryFixed { vm: vm(index), fixed }),
        Op::Kill(index) => world.kill(&vm(index)),
        Op::Start(index) => {
            let spec = world.specs[&vm(index)].clone();
            if world.engine.start(spec, world.now).is_ok() {
                world.boot(&vm(index));
            }
        }
        Op::Crash { keep_journal } => world.crash(keep_journal),
    }
}

/// Plays a script and looks with `check` after every step.
fn run(script: &[Op], check: impl FnMut(&World)) -> World {
    run_from(world(), script, check)
}

fn run_from(mut world: World, script: &[Op], mut check: impl FnMut(&World)) -> World {
    check(&world);
    for op in script {
        play(&mut world, op);
        check(&world);
    }
    world
}

fn none_of(world: &World, wrong: impl Fn(&Violation) -> bool) {
    let found: Vec<Violation> = world.violations().into_iter().filter(wrong).collect();
    assert!(found.is_empty(), "{found:#?}\nreally: {:#?}\nstate: {:#?}", world.vms, world.engine.state());
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_core_is_usable_by_at_most_one_vm(script in scripts()) {
        run(&script, |world| none_of(world, |violation| {
            matches!(violation, Violation::CoreUsableTwice { .. } | Violation::CoreHeldTwice { .. })
        }));
    }

    #[test]
    fn a_node_is_never_overcommitted(script in scripts()) {
        run(&script, |world| none_of(world, |violation| matches!(violation, Violation::OverCapacity { .. })));
    }

    #[test]
    fn the_ledger_is_never_below_real_use(script in scripts()) {
        run(&script, |world| none_of(world, |violation| matches!(violation, Violation::BeyondLedger { .. })));
    }

    #[test]
    fn nothing_is_lost_or_split(script in scripts()) {
        run(&script, |world| none_of(world, |_| true));
    }

    #[test]
    fn a_plan_never_takes_a_vm_below_its_guarantee(script in scripts()) {
        let mut world = world();
        for op in &script {
            let before = shortage(&world);
            let excused = matches!(op, Op::Lend { below: true, .. }) || excuses(&world);
            play(&mut world, op);
            let killed = matches!(op, Op::Kill(_) | Op::Start(_) | Op::Crash { .. });
            for (vm, short) in shortage(&world) {
                let was = before.get(&vm).copied().unwrap_or(0);
                prop_assert!(short <= was || excused || killed, "{vm} is {short} short, was {was}");
            }
        }
    }

    #[test]
    fn a_recall_of_all_that_is_owed_is_never_refused(script in scripts()) {
        // What `b` borrowed is all that it has.
        let mut world = world();
        world.ask(lend("a", "b", of_cpus("2-3"))).unwrap();
        world.run_until_settled();
        world.ask(Request::Set { vm: name("b"), what: of_cpus("2-3"), below_guarantee: false }).unwrap();
        world.run_until_settled();
        run_from(world, &script, |world| {
            for name in world.vms.keys() {
                let plan = world.engine.preview(&recall(name.as_str()));
                assert!(plan.is_ok(), "{name}: {plan:?}\n{:#?}", world.engine.state());
            }
        });
    }

    #[test]
    fn every_transfer_ends_by_its_deadline(script in scripts()) {
        let mut world = run(&script, |world| none_of(world, |violation| matches!(violation, Violation::Overdue { .. })));
        // Nobody answers any more: everything ends all the same.
        world.in_flight.clear();
        let mut steps = 0;
        while !world.engine.state.transfers.is_empty() {
            prop_assert!(world.tick() && steps < 10_000, "transfers that never end");
            none_of(&world, |violation| matches!(violation, Violation::Overdue { .. }));
            steps += 1;
        }
    }

    #[test]
    fn reality_follows_the_ledger_when_everyone_answers(script in scripts()) {
        let mut world = run(&script, |_| {});
        let names: Vec<VmName> = world.vms.keys().cloned().collect();
        names.iter().for_each(|name| world.connect(name));
        world.run_until_settled();
        for (name, real) in &world.vms {
            let held = world.engine.ledger().vm(name);
            prop_assert_eq!(&real.open, &held.cpus);
            prop_assert_eq!(real.using.as_ref(), Some(&held.cpus));
            for (node, plugged) in &real.plugged {
                prop_assert_eq!(plugged.size + world.specs[name].boot[node], held.on(*node));
            }
        }
        none_of(&world, |_| true);
    }

    #[test]
    fn a_doubled_answer_changes_nothing(script in scripts()) {
        let with = |fates: &[Fate]| -> Vec<Op> {
            script.iter().map(|op| match op {
                Op::Deliver { pick, fate } if fates.contains(fate) => Op::Deliver { pick: *pick, fate: Fate::Works },
                other => other.clone(),
            }).collect()
        };
        let (script, once) = (with(&[Fate::AnswerLate]), with(&[Fate::AnswerLate, Fate::Twice]));
        let (twice, once) = (run(&script, |_| {}), run(&once, |_| {}));
        prop_assert_eq!(twice.engine.state(), once.engine.state());
    }

    #[test]
    fn the_journal_reads_back_as_it_was_written(script in scripts()) {
        let world = run(&script, |_| {});
        let read = written_and_read(world.engine.state());
        let history = serde_json::to_string(world.engine.history()).unwrap();
        prop_assert_eq!(&serde_json::from_str::<VecDeque<Report>>(&history).unwrap(), world.engine.history());
        prop_assert!(read.next_action >= world.engine.state().next_action);
    }
}

/// The scripts are no good if they never get anywhere: all that can become of a transfer that moves must occur.
#[test]
fn the_scripts_reach_what_can_become_of_a_transfer() {
    let mut runner = TestRunner::deterministic();
    let mut seen = BTreeSet::new();
    for _ in 0..600 {
        let script = scripts().new_tree(&mut runner).unwrap().current();
        let world = run(&script, |_| {});
        for report in world.engine.reports() {
            seen.insert(word(&report.verdict));
            for leg in &report.legs {
                seen.extend(leg.shortfalls.iter().map(|short| word(&short.why)));
                seen.extend(leg.remarks.iter().map(word));
                seen.extend(leg.stages.iter().map(|time| word(&time.stage)));
            }
        }
    }
    let missing: Vec<&str> = REACHED.into_iter().filter(|word| !seen.contains(*word)).collect();
    assert!(missing.is_empty(), "never reached: {missing:?}");
}

const REACHED: [&str; 30] = [
    "Complete",
    "Partial",
    "Nothing",
    "Refused",
    "Quiesce",
    "Force",
    "Close",
    "Open",
    "Enable",
    "Prepare",
    "Shrink",
    "Settle",
    "Grow",
    "Return",
    "Confirm",
    "DonorRefused",
    "DonorKept",
    "GateFailed",
    "HypervisorFailed",
    "Fixed",
    "DonorGone",
    "RecipientGone",
    "Interrupted",
    "DonorSilent",
    "DonorBusy",
    "RecipientUntold",
    "RecipientRefused",
    "Unconfirmed",
    "Unprepared",
    "Elsewhere",
];

/// The name of a variant.
fn word(value: &impl std::fmt::Debug) -> String {
    format!("{value:?}").split(|c: char| !c.is_alphanumeric()).next().unwrap_or_default().to_owned()
}

fn shortage(world: &World) -> BTreeMap<VmName, u64> {
    let host = world.engine.host();
    let weight = |short: &Shortage| match short {
        Shortage::Cores(n) => *n as u64 * 1000,
        Shortage::Cpus(cpus) => cpus.len() as u64 * 1000,
        Shortage::Memory(bytes) | Shortage::NodeMemory(_, bytes) => bytes.0 / UNIT.0,
    };
    let of = |view: VmView| {
        let short = shortages(host, &view.spec.guarantee, &view.holding);
        (view.spec.name, short.iter().map(weight).sum())
    };
    world.engine.vms().into_iter().map(of).collect()
}

/// Whether a lend is on its way whose owner agreed to fall below the guarantee.
fn excuses(world: &World) -> bool {
    let agreed = |report: &Report| matches!(report.request, Request::Lend { below_guarantee: true, .. });
    world.engine.reports().iter().any(|report| report.ended.is_none() && agreed(report))
}
