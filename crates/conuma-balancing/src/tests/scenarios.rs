//! Stories: what happens when everything goes well, and in each way it can go wrong.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use conuma_topology::{Bytes, NodeId, VmName};

use super::world::*;
use crate::*;

/// Two VMs on two nodes: four cores and eight units of memory each.
pub(super) fn pair() -> World {
    let host = host(2, 4, 1, 8);
    let specs = vec![spec(&host, "a", "0-3", 3), spec(&host, "b", "4-7", 3)];
    World::with(host, specs)
}

/// Runs `request` to its end; each action meets the fate that `fate` names, `None` leaves it in flight.
pub(super) fn run(world: &mut World, request: Request, fate: impl Fn(&Action) -> Option<Fate>) -> Report {
    run_with(world, request, fate, |_, _, _| true)
}

/// The same, with guests that move memory on those nodes only that `moves` names.
pub(super) fn run_with(
    world: &mut World,
    request: Request,
    fate: impl Fn(&Action) -> Option<Fate>,
    moves: impl Fn(&World, &VmName, NodeId) -> bool,
) -> Report {
    let id = world.ask(request).unwrap();
    run_to_end(world, id, fate, moves);
    world.report(id)
}

/// Runs on until a transfer ends.
pub(super) fn run_to_end(
    world: &mut World,
    id: TransferId,
    fate: impl Fn(&Action) -> Option<Fate>,
    moves: impl Fn(&World, &VmName, NodeId) -> bool,
) {
    for _ in 0..10_000 {
        world.check();
        if world.report(id).ended.is_some() {
            return;
        }
        let next = world.in_flight.iter().find_map(|(key, queue)| Some((key.clone(), fate(queue.front()?)?)));
        match next {
            Some(((vm, lane), fate)) => world.deliver(&vm, lane, fate),
            None => {
                let vms: Vec<_> = world.vms.keys().cloned().collect();
                let nodes: Vec<_> = world.engine.host().memory.keys().copied().collect();
                let pairs = vms.iter().flat_map(|vm| nodes.iter().map(move |node| (vm, *node)));
                let moved =
                    pairs.fold(false, |any, (vm, node)| (moves(world, vm, node) && world.guest_moves(vm, node)) || any);
                moved || world.tick()
            }
        };
    }
    panic!("never ends: {:#?}", world.report(id));
}

pub(super) fn works(_: &Action) -> Option<Fate> {
    Some(Fate::Works)
}

fn stages(report: &Report) -> Vec<Vec<Stage>> {
    report.legs.iter().map(|leg| leg.stages.iter().map(|time| time.stage).collect()).collect()
}

pub(super) fn shortfalls(report: &Report) -> Vec<(String, Reason, String)> {
    let all = report.legs.iter().flat_map(|leg| &leg.shortfalls);
    all.map(|short| (short.what.to_string(), short.why.clone(), short.now_with.to_string())).collect()
}

#[test]
fn cores_and_memory_move_and_come_back() {
    let mut world = pair();
    let what = Demand { cores: Some(CoreDemand::Cpus(cpus("2-3"))), memory: of_memory(1, 2).memory };
    let report = run(&mut world, lend("a", "b", what), works);
    assert_eq!(report.verdict, Verdict::Complete);
    assert_eq!(
        stages(&report),
        [
            vec![Stage::Quiesce, Stage::Close, Stage::Open, Stage::Enable],
            vec![Stage::Prepare, Stage::Shrink, Stage::Grow, Stage::Confirm],
        ]
    );
    assert!(report.legs.iter().flat_map(|leg| &leg.stages).all(|time| time.took.is_some()));
    assert_eq!(world.holds("a"), "CPUs 0-1, node0=384M, node1=128M");
    assert_eq!(world.holds("b"), "CPUs 2-7, node0=384M, node1=640M");
    assert_eq!(world.vms[&name("b")].using, Some(cpus("2-7")));

    let back = run(&mut world, recall("a"), works);
    assert_eq!(back.verdict, Verdict::Complete);
    assert_eq!(world.holds("a"), "CPUs 0-3, node0=384M, node1=384M");
    assert!(world.engine.loans().is_empty());
    world.run_until_settled();
    world.check();
}

#[test]
fn a_refused_core_stays_and_the_rest_moves() {
    let mut world = pair();
    let host = world.engine.host().clone();
    // The guest keeps CPU 3: told to use 0-1, it answers that 3 stays in use.
    let id = world.ask(lend("a", "b", of_cpus("2-3"))).unwrap();
    let (vm, lane) = (name("a"), Lane::Agent);
    let action = world.in_flight.get_mut(&(vm, lane)).unwrap().pop_front().unwrap();
    let refused = vec![RefusedCpus { cpus: cpus("3"), why: "owned by a partition".into() }];
    world.tell(Event::Done { id: action.id, outcome: Outcome::Applied { refused } });
    while world.deliver_any() {}
    let report = world.report(id);
    assert_eq!(report.verdict, Verdict::Partial);
    let why = Reason::DonorRefused("owned by a partition".into());
    assert_eq!(shortfalls(&report), [("CPUs 3".into(), why, "a".into())]);
    assert_eq!(world.holds("a"), "CPUs 0-1,3, node0=384M, node1=384M");
    assert!(check_ledger(&host, world.engine.ledger()).is_empty());
    world.run_until_settled();
    assert_eq!(world.vms[&name("a")].using, Some(cpus("0-1,3")));
}

#[test]
fn a_silent_guest_loses_its_cores_by_the_gate() {
    let mut world = pair();
    let silent = |action: &Action| (action.vm != name("a") || action.kind.lane() != Lane::Agent).then_some(Fate::Works);
    let report = run(&mut world, lend("a", "b", of_cpus("3")), silent);
    assert_eq!(report.verdict, Verdict::Complete);
    assert_eq!(report.legs[0].remarks, [Remark::DonorSilent(Failure::TimedOut)]);
    assert_eq!(world.vms[&name("a")].open, cpus("0-2"));
    // It is told as soon as it listens again.
    world.run_until_settled();
    assert_eq!(world.vms[&name("a")].using, Some(cpus("0-2")));
}

#[test]
fn a_silent_guest_does_not_keep_from_another_what_that_is_owed() {
    let mut world = pair();
    let took = |world: &mut World, request: Request, donor: &str| {
        let silent =
            |action: &Action| (action.vm != name(donor) || action.kind.lane() != Lane::Agent).then_some(Fate::Works);
        let report = run(world, request, silent);
        assert_eq!(report.verdict, Verdict::Complete);
        assert_eq!(report.legs[0].remarks, [Remark::DonorSilent(Failure::TimedOut)]);
        report.ended.unwrap() - report.asked
    };
    let lent = took(&mut world, lend("a", "b", of_cpus("3")), "a");
    let recalled = took(&mut world, recall("a"), "b");
    assert!(lent >= world.engine.timing.agent, "{lent:?}");
    assert!(recalled < Duration::from_secs(1), "{recalled:?}");
}

#[test]
fn a_busy_guest_gets_a_firm_gate() {
    let mut world = pair();
    let busy = |action: &Action| {
        let watched = matches!(action.kind, ActionKind::CloseGate { grip: Grip::Soft, .. });
        Some(if watched { Fate::Refused } else { Fate::Works })
    };
    let id = world.ask(lend("a", "b", of_cpus("3"))).unwrap();
    for _ in 0..200 {
        let (vm, lane) = world.in_flight.keys().next().cloned().unwrap();
        let action = world.in_flight[&(vm.clone(), lane)].front().unwrap().clone();
        if matches!(action.kind, ActionKind::CloseGate { grip: Grip::Firm, .. }) {
            assert_eq!(world.holds("a"), "CPUs 0-3, node0=384M, node1=384M");
            world.run_until_settled();
            world.check();
            assert_eq!(world.report(id).legs[0].remarks, [Remark::DonorBusy(cpus("3"))]);
            return;
        }
        // Watching takes its time.
        world.now += Duration::from_millis(20);
        world.deliver(&vm, lane, busy(&action).unwrap());
    }
    panic!("the gate never closed");
}

#[test]
fn a_gate_that_cannot_close_keeps_the_core_with_the_donor() {
    let mut world = pair();
    let broken = |action: &Action| {
        Some(if matches!(action.kind, ActionKind::CloseGate { .. }) { Fate::Fails } else { Fate::Works })
    };
    let report = run(&mut world, lend("a", "b", of_cpus("3")), broken);
    assert_eq!(report.verdict, Verdict::Nothing);
    assert_eq!(shortfalls(&report), [("CPUs 3".into(), Reason::GateFailed(Failure::TimedOut), "a".into())]);
    world.run_until_settled();
    assert_eq!(world.vms[&name("a")].using, Some(cpus("0-3")));
}

#[test]
fn part_of_the_memory_comes_and_the_donor_keeps_the_rest() {
    let mut world = pair();
    let id = world.ask(lend("a", "b", of_memory(1, 2))).unwrap();
    while world.deliver_any() {}
    world.guest_moves(&name("a"), NodeId(1));
    // The second unit is pinned: nothing more comes until the deadline.
    while world.report(id).ended.is_none() {
        world.check();
        let grows = world.vms.keys().find(|vm| **vm == name("b")).cloned().unwrap();
        let moved = world.deliver_any() || world.guest_moves(&grows, NodeId(1));
        assert!(moved || world.tick());
    }
    let report = world.report(id);
    assert_eq!(report.verdict, Verdict::Partial);
    assert_eq!(shortfalls(&report), [("node1=128M".into(), Reason::DonorKept, "a".into())]);
    assert_eq!(world.holds("a"), "CPUs 0-3, node0=384M, node1=256M");
    assert_eq!(world.holds("b"), "CPUs 4-7, node0=384M, node1=512M");
    world.run_until_settled();
    world.check();
}

#[test]
fn a_stuck_unplug_is_asked_for_again() {
    let mut world = pair();
    world.ask(lend("a", "b", of_memory(1, 2))).unwrap();
    let mut asked = 0;
    let began = world.now;
    while world.now - began < Duration::from_secs(30) {
        let first = world.in_flight.iter().find_map(|(key, queue)| Some((key.clone(), queue.front()?.clone())));
        match first {
            Some(((vm, lane), action)) => {
                let wanted = ActionKind::SetRequestedSize { node: NodeId(1), bytes: Bytes::ZERO };
                asked += u32::from(vm == name("a") && action.kind == wanted);
                world.deliver(&vm, lane, Fate::Works);
            }
            None => assert!(world.tick()),
        }
    }
    assert!((5..=8).contains(&asked), "{asked} times in 30 s");
}

#[test]
fn a_guest_that_gives_no_memory_and_no_answer_is_left_alone() {
    let mut world = pair();
    let id = world.ask(lend("a", "b", of_memory(1, 1))).unwrap();
    while world.report(id).ended.is_none() {
        let hypervisor = world.in_flight.keys().find(|(_, lane)| *lane == Lane::Hypervisor).cloned();
        let delivered = hypervisor.is_some_and(|(vm, lane)| world.deliver(&vm, lane, Fate::Works));
        assert!(delivered || world.tick());
        world.check();
    }
    assert_eq!(world.report(id).verdict, Verdict::Nothing);
    assert!(world.notices.contains(&Notice::Silent { vm: name("a") }));
    assert_eq!(world.ask(lend("a", "b", of_memory(0, 1))), Err(Refusal::Silent(name("a"))));
    assert_eq!(world.ask(lend("b", "a", of_memory(0, 1))), Err(Refusal::Silent(name("a"))));
    world.connect(&name("a"));
    assert!(world.ask(lend("a", "b", of_memory(0, 1))).is_ok());
}

#[test]
fn what_the_recipient_does_not_take_goes_back() {
    let mut world = pair();
    let id = world.ask(lend("a", "b", of_memory(1, 2))).unwrap();
    while world.report(id).ended.is_none() {
        world.check();
        let moved = world.deliver_any() || world.guest_moves(&name("a"), NodeId(1));
        assert!(moved || world.tick());
    }
    let report = world.report(id);
    assert_eq!(report.verdict, Verdict::Nothing);
    assert_eq!(shortfalls(&report), [("node1=256M".into(), Reason::RecipientDidNotTake, "a".into())]);
    assert!(world.engine.loans().is_empty());
    world.run_until_settled();
    assert_eq!(world.holds("a"), "CPUs 0-3, node0=384M, node1=384M");
}

#[test]
fn memory_grows_in_steps_that_leave_room_for_the_memmap() {
    // 8 MiB of free memory allow 256 MiB; what came allows the rest, unless the guest says what is left of it.
    let of_two: Vec<u64> = (2..=32).step_by(2).collect();
    for (reports, expected) in [(false, vec![2, 4, 32]), (true, of_two)] {
        let host = host(1, 2, 1, 64);
        let specs = vec![spec(&host, "a", "0", 40), spec(&host, "b", "1", 2)];
        let mut world = World::with(host, specs);
        let report = |world: &mut World| {
            let free = BTreeMap::from([(NodeId(0), Bytes::mib(8))]);
            world.tell(Event::GuestMemory { vm: name("b"), free, age: Duration::ZERO });
        };
        report(&mut world);
        world.now += Duration::from_millis(1);
        let id = world.ask(lend("a", "b", of_memory(0, 30))).unwrap();
        let mut sizes = Vec::new();
        while world.report(id).ended.is_none() {
            let booked = world.engine.ledger().vm(&name("b")).total_memory().0 / UNIT.0;
            if sizes.last() != Some(&booked) {
                sizes.push(booked);
                if reports && sizes.len() == 2 {
                    report(&mut world);
                }
            }
            let node = NodeId(0);
            let moved =
                world.deliver_any() || world.guest_moves(&name("a"), node) || world.guest_moves(&name("b"), node);
            assert!(moved || world.tick());
        }
        assert_eq!(sizes, expected);
    }
}

/// Delivers what is for QEMU of `a`, with `moves` the guest goes on; gives what was delivered.
fn poll(world: &mut World, node: u32, moves: bool) -> Option<ActionKind> {
    let key = (name("a"), Lane::Hypervisor);
    let kind = world.in_flight.get(&key)?.front()?.kind.clone();
    if moves {
        world.guest_moves(&name("a"), NodeId(node));
    }
    world.deliver(&key.0, key.1, Fate::Works);
    Some(kind)
}

/// Enough on node 0 for what a guest has to keep.
fn free_on_both(on_node_1: u64) -> BTreeMap<NodeId, Bytes> {
    [(NodeId(0), units(2)), (NodeId(1), units(on_node_1))].into()
}

#[test]
fn memory_that_seems_free_is_not_taken_unasked_if_it_is_all_there_is() {
    let mut world = pair();
    world.tell(Event::GuestMemory { vm: name("a"), free: on(1, 2), age: Duration::ZERO });
    let report = run(&mut world, lend("a", "b", of_memory(1, 2)), works);
    assert_eq!(stages(&report)[0][0], Stage::Prepare);
}

#[test]
fn a_guest_that_reported_a_while_ago_is_asked_first() {
    let timing = Timing::default();
    for (age, first) in [(timing.fresh, Stage::Shrink), (timing.fresh + Duration::from_millis(1), Stage::Prepare)] {
        let mut world = pair();
        world.tell(Event::GuestMemory { vm: name("a"), free: free_on_both(2), age: Duration::ZERO });
        world.now += age;
        let report = run(&mut world, lend("a", "b", of_memory(1, 2)), works);
        assert_eq!((stages(&report)[0][0], report.verdict), (first, Verdict::Complete), "{age:?}");
    }
}

/// What it reports while it makes room tells of memory that is about to be taken.
#[test]
fn a_report_from_before_memory_moved_says_nothing() {
    let mut world = pair();
    world.now += Duration::from_secs(10);
    let report = |world: &mut World, age| {
        world.tell(Event::GuestMemory { vm: name("a"), free: free_on_both(2), age });
    };
    let request = || lend("a", "b", of_memory(1, 1));
    report(&mut world, Timing::default().fresh * 2);
    let (id, began) = (world.ask(request()).unwrap(), world.now);
    report(&mut world, Duration::ZERO);
    world.run_until_settled();
    assert_eq!(stages(&world.report(id))[0][0], Stage::Prepare);
    let since = world.now - began;
    report(&mut world, since + Duration::from_millis(1));
    let again = run(&mut world, request(), works);
    assert_eq!(stages(&again)[0][0], Stage::Prepare, "only what it says from now on counts");
    world.now += Duration::from_millis(1);
    report(&mut world, Duration::ZERO);
    report(&mut world, Duration::from_millis(1));
    assert_eq!(
        world.engine.state.vms[&name("a")].heard,
        world.now,
        "an older report does not take the place of a newer"
    );
}

/// Two nodes at once: each has room, and both together more than the guest can do without.
#[test]
fn moves_of_several_nodes_share_what_a_guest_can_do_without() {
    for just_reported in [false, true] {
        let mut world = pair();
        let both = Demand {
            cores: None,
            memory: Some(MemoryDemand::PerNode([(NodeId(0), units(2)), (NodeId(1), units(2))].into())),
        };
        let held = world.engine.ledger().vm(&name("a")).total_memory();
        if just_reported {
            world.tell(Event::GuestMemory { vm: name("a"), free: free_on_both(2), age: Duration::ZERO });
        }
        world.vms.get_mut(&name("a")).unwrap().spare = units(3) + Bytes::mib(1);
        let report = run(&mut world, lend("a", "b", both), works);
        assert_eq!(report.verdict, Verdict::Partial, "{report:#?}");
        assert!(shortfalls(&report).iter().all(|short| short.1 == Reason::DonorStarves), "{report:#?}");
        let left = world.engine.ledger().vm(&name("a")).total_memory();
        assert_eq!(held.saturating_sub(left), units(3), "{just_reported}: {report:#?}");
        world.check();
    }
}

#[test]
fn room_is_asked_for_where_nothing_comes_though_enough_seemed_free() {
    let mut world = pair();
    world.tell(Event::GuestMemory { vm: name("a"), free: free_on_both(2), age: Duration::ZERO });
    let id = world.ask(lend("a", "b", of_memory(1, 2))).unwrap();
    let agent = (name("a"), Lane::Agent);
    while !world.in_flight.contains_key(&agent) {
        assert!(poll(&mut world, 1, false).is_some() || world.tick());
    }
    let restart = Timing::default().restart;
    assert!(world.now >= restart && world.now < 2 * restart, "{:?}", world.now);
    let asked = world.in_flight[&agent][0].kind.clone();
    assert_eq!(asked, ActionKind::PrepareMemory { node: NodeId(1), bytes: units(2) });
    while poll(&mut world, 1, false).is_some() {}
    world.deliver(&agent.0, agent.1, Fate::Works);
    let again = ActionKind::SetRequestedSize { node: NodeId(1), bytes: Bytes::ZERO };
    assert_eq!(poll(&mut world, 1, false), Some(again), "the guest is asked once more as soon as there is room");
    world.run_until_settled();
    let report = world.report(id);
    assert_eq!(stages(&report), [vec![Stage::Shrink, Stage::Grow, Stage::Confirm]]);
    assert_eq!((report.verdict, &report.legs[0].remarks[..]), (Verdict::Complete, &[][..]));
}

#[test]
fn a_size_is_looked_at_as_soon_as_qemu_tells_of_a_change() {
    let mut world = pair();
    world.tell(Event::GuestMemory { vm: name("a"), free: free_on_both(2), age: Duration::ZERO });
    world.ask(lend("a", "b", of_memory(1, 2))).unwrap();
    poll(&mut world, 1, false);
    assert_eq!(poll(&mut world, 1, true), None, "the next look is due later");
    world.guest_moves(&name("a"), NodeId(1));
    world.tell(Event::SizeChanged { vm: name("a") });
    assert_eq!(poll(&mut world, 1, false), Some(ActionKind::PollSize { node: NodeId(1) }));
    world.run_until_settled();
    world.tell(Event::SizeChanged { vm: name("a") });
    assert!(world.in_flight.is_empty(), "nothing is on its way");
}

#[test]
fn what_has_moved_counts_until_a_guest_reports_again() {
    let mut world = pair();
    world.tell(Event::GuestMemory { vm: name("a"), free: free_on_both(2), age: Duration::ZERO });
    world.tell(Event::GuestMemory { vm: name("b"), free: on(1, 1), age: Duration::ZERO });
    assert_eq!(stages(&run(&mut world, lend("a", "b", of_memory(1, 1)), works))[0][0], Stage::Shrink);
    let free = |world: &World, vm: &str| world.engine.state.vms[&name(vm)].free[&NodeId(1)];
    assert_eq!(free(&world, "a"), units(1));
    assert_eq!(free(&world, "b"), Bytes(units(2).0 - units(1).0 / 64), "less what its kernel takes for itself");
    assert_eq!(stages(&run(&mut world, lend("a", "b", of_memory(1, 1)), works))[0][0], Stage::Shrink);
    assert_eq!(free(&world, "a"), Bytes::ZERO);
}

#[test]
fn what_comes_while_a_guest_reports_counts_once() {
    let came = Bytes(units(1).0 - units(1).0 / 64);
    for (asked_meanwhile, free) in [(true, units(2)), (false, units(1) + came)] {
        let mut world = pair();
        let report = |world: &mut World, free, age| {
            world.tell(Event::GuestMemory { vm: name("b"), free: on(1, free), age });
        };
        report(&mut world, 1, Duration::ZERO);
        world.now += Duration::from_secs(1);
        let began = world.now;
        let id = world.ask(lend("a", "b", of_memory(1, 1))).unwrap();
        while world.report(id).legs[0].stages.last().unwrap().stage != Stage::Confirm {
            let moves = ["a", "b"].iter().any(|vm| world.guest_moves(&name(vm), NodeId(1)));
            assert!(moves || world.deliver_any() || world.tick());
        }
        let age = if asked_meanwhile { Duration::ZERO } else { world.now - began };
        report(&mut world, 2, age);
        world.run_until_settled();
        assert_eq!(world.engine.state.vms[&name("b")].free[&NodeId(1)], free, "{asked_meanwhile}");
    }
}

/// While it grows on one node, and after it reported, its agent makes room on another.
#[test]
fn what_leaves_a_guest_that_grows_does_not_count_twice_what_came() {
    let mut world = pair();
    let report = |world: &mut World| {
        world.tell(Event::GuestMemory { vm: name("b"), free: free_on_both(2), age: Duration::ZERO });
    };
    report(&mut world);
    world.now += Timing::default().fresh * 2;
    let grows = world.ask(lend("a", "b", of_memory(1, 1))).unwrap();
    while world.report(grows).legs[0].stages.last().unwrap().stage != Stage::Grow {
        assert!(world.guest_moves(&name("a"), NodeId(1)) || world.deliver_any() || world.tick());
    }
    world.now += Duration::from_millis(1);
    report(&mut world);
    world.now += Timing::default().fresh * 2;
    let gives = world.ask(lend("b", "a", of_memory(0, 1))).unwrap();
    while world.report(gives).ended.is_none() {
        let moves = ["a", "b"].iter().any(|vm| world.guest_moves(&name(vm), NodeId(0)));
        assert!(moves || world.deliver_any() || world.tick());
    }
    assert!(stages(&world.report(gives))[0].contains(&Stage::Prepare));
    world.run_until_settled();
    assert_eq!(world.engine.state.vms[&name("b")].free, BTreeMap::from([(NodeId(0), units(1)), (NodeId(1), units(2))]));
}

#[test]
fn a_recipient_that_ends_leaves_everything_with_the_donor_or_the_pool() {
    for stage in [Stage::Quiesce, Stage::Close, Stage::Open, Stage::Enable] {
        let mut world = pair();
        let id = world.ask(lend("a", "b", of_cpus("3"))).unwrap();
        // Gates first: an agent that has answered by the time they are open ends the transfer at once.
        while world.report(id).legs[0].stages.last().unwrap().stage != stage {
            let gate = world.in_flight.keys().find(|(_, lane)| *lane == Lane::Gate).cloned();
            assert!(match gate {
                Some((vm, lane)) => world.deliver(&vm, lane, Fate::Works),
                None => world.deliver_any(),
            });
        }
        world.kill(&name("b"));
        world.run_until_settled();
        world.check();
        let report = world.report(id);
        assert_eq!(report.verdict, Verdict::Nothing, "{stage:?}");
        assert!(shortfalls(&report).iter().all(|(_, why, _)| *why == Reason::RecipientGone), "{stage:?}");
        let pool = world.engine.ledger().held(&Holder::Pool).cpus.clone();
        let given = matches!(stage, Stage::Open | Stage::Enable);
        assert_eq!(pool, cpus(if given { "3-7" } else { "4-7" }), "{stage:?}");
    }
}

#[test]
fn a_rebooted_guest_gets_its_holding_again() {
    let mut world = pair();
    run(&mut world, lend("a", "b", of_cpus("3")), works);
    world.reset(&name("b"));
    world.check();
    assert_eq!(world.vms[&name("b")].open, cpus("3-7"));
    world.connect(&name("b"));
    world.run_until_settled();
    assert_eq!(world.vms[&name("b")].using, Some(cpus("3-7")));
    let node = NodeId(1);
    assert_eq!(world.vms[&name("b")].plugged[&node].size, units(2));
}

#[test]
fn transfers_of_other_knobs_run_at_once_and_of_the_same_wait() {
    let mut world = pair();
    let first = world.ask(lend("a", "b", of_cpus("3"))).unwrap();
    let second = world.ask(lend("a", "b", of_memory(0, 1))).unwrap();
    let third = world.ask(lend("b", "a", of_cpus("7"))).unwrap();
    assert_eq!(world.report(first).verdict, Verdict::Moving);
    assert_eq!(world.report(second).verdict, Verdict::Moving);
    assert_eq!(world.report(third).verdict, Verdict::Waiting);
    world.run_until_settled();
    assert_eq!(world.report(third).verdict, Verdict::Complete);
    assert_eq!(world.holds("a"), "CPUs 0-2,7, node0=256M, node1=384M");
}

#[test]
fn a_recall_does_not_depend_on_the_borrowers_consent() {
    let mut world = pair();
    run(&mut world, lend("a", "b", of_cpus("3")), works);
    let refuses = |action: &Action| {
        let leaves = action.vm == name("b") && matches!(action.kind, ActionKind::AgentApply { .. });
        Some(if leaves { Fate::Refused } else { Fate::Works })
    };
    let report = run(&mut world, recall("a"), refuses);
    assert_eq!(report.verdict, Verdict::Complete);
    assert_eq!(report.legs[0].remarks, [Remark::DonorRefused("exclusive".into())]);
    assert_eq!(world.vms[&name("b")].open, cpus("4-7"));
}

#[test]
fn a_recipient_is_told_while_its_gates_open() {
    let mut world = pair();
    let id = world.ask(lend("a", "b", of_cpus("3"))).unwrap();
    let lane = |lane| (name("b"), lane);
    while !world.in_flight.contains_key(&lane(Lane::Gate)) {
        assert!(world.deliver_any());
    }
    let told = ActionKind::AgentApply { cpus: cpus("3-7") };
    assert_eq!(world.in_flight[&lane(Lane::Agent)][0].kind, told);
    // It answers at once; the gate does not open, so it is told to leave until it does.
    world.deliver(&name("b"), Lane::Agent, Fate::Works);
    world.deliver(&name("b"), Lane::Gate, Fate::Fails);
    assert_eq!(world.report(id).legs[0].stages.last().unwrap().stage, Stage::Open);
    assert_eq!(world.in_flight[&lane(Lane::Agent)][0].kind, ActionKind::AgentApply { cpus: cpus("4-7") });
    world.run_until_settled();
    assert_eq!(world.report(id).verdict, Verdict::Complete);
    assert_eq!(world.vms[&name("b")].using, Some(cpus("3-7")));
}

#[test]
fn a_rebalance_moves_between_several_at_once_and_is_no_loan() {
    let host = host(2, 4, 1, 8);
    let specs = vec![spec(&host, "a", "0-2", 3), spec(&host, "b", "4-5", 3), spec(&host, "c", "6-7", 2)];
    let mut world = World::with(host, specs);
    let step = |from: Holder, to: &str, what| Move { from, to: Holder::Vm(name(to)), what };
    let vm = |vm: &str| Holder::Vm(name(vm));
    let moves = vec![
        step(vm("a"), "b", Resources::cores(cpus("2"))),
        step(vm("c"), "b", Resources::memory(NodeId(1), units(1))),
        step(Holder::Pool, "c", Resources::cores(cpus("3"))),
    ];
    let report =
        run(&mut world, Request::Rebalance { moves, below: BTreeSet::new(), owed: false }, |_| Some(Fate::Works));
    assert_eq!(report.verdict, Verdict::Complete, "{report:#?}");
    assert_eq!(world.engine.ledger().vm(&name("b")).cpus, cpus("2,4-5"));
    assert_eq!(world.engine.ledger().vm(&name("c")).cpus, cpus("3,6-7"));
    assert!(world.engine.loans().is_empty());
}

#[test]
fn memory_of_a_node_that_a_vm_gives_is_in_one_move_only() {
    let host = host(2, 4, 1, 8);
    let specs = vec![spec(&host, "a", "0-2", 3), spec(&host, "b", "4-5", 2), spec(&host, "c", "6-7", 2)];
    let vm = |vm: &str| Holder::Vm(name(vm));
    let step = |from: Holder, to: Holder, node| Move { from, to, what: Resources::memory(NodeId(node), units(1)) };
    for (moves, whole) in [
        ([step(vm("a"), vm("b"), 0), step(vm("a"), vm("c"), 0)], false),
        ([step(vm("a"), vm("b"), 0), step(vm("b"), vm("c"), 0)], false),
        ([step(vm("b"), vm("c"), 0), step(vm("a"), vm("b"), 0)], false),
        ([step(vm("a"), vm("c"), 0), step(vm("b"), vm("c"), 0)], true),
        ([step(vm("a"), vm("b"), 0), step(vm("a"), vm("c"), 1)], true),
    ] {
        let mut world = World::with(host.clone(), specs.clone());
        let asked = Request::Rebalance { moves: moves.to_vec(), below: BTreeSet::new(), owed: false };
        if whole {
            assert_eq!(run(&mut world, asked, works).verdict, Verdict::Complete, "{moves:?}");
        } else {
            let refused = world.ask(asked).unwrap_err();
            assert!(matches!(refused, Refusal::TornMemory { node: NodeId(0), .. }), "{moves:?}: {refused:?}");
        }
    }
}

#[test]
fn a_rebalance_that_is_none_is_refused_with_its_place() {
    let mut world = pair();
    let mut refused = |from: Holder, to: Holder, what: Resources| {
        world
            .ask(Request::Rebalance { moves: vec![Move { from, to, what }], below: BTreeSet::new(), owed: false })
            .unwrap_err()
    };
    let (a, b) = (Holder::Vm(name("a")), Holder::Vm(name("b")));
    let core = Resources::cores(cpus("1"));
    let nowhere = Refusal::NotBetween { from: Holder::Reserve, to: a.clone() };
    assert_eq!(refused(Holder::Reserve, a.clone(), core.clone()), nowhere);
    let same = Refusal::NotBetween { from: a.clone(), to: a.clone() };
    assert_eq!(refused(a.clone(), a.clone(), core.clone()), same);
    let lacks = refused(b, a.clone(), core.clone());
    assert!(matches!(&lacks, Refusal::NotHeld { missing, .. } if *missing == core), "{lacks:?}");
    assert_eq!(refused(a.clone(), Holder::Vm(name("x")), core.clone()), Refusal::UnknownVm(name("x")));
    world.tell(Event::HostCpus { offline: cpus("1") });
    let mut refused = |what: Resources| {
        let (from, to) = (a.clone(), Holder::Vm(name("b")));
        world
            .ask(Request::Rebalance { moves: vec![Move { from, to, what }], below: BTreeSet::new(), owed: false })
            .unwrap_err()
    };
    assert_eq!(refused(core), Refusal::Offline(cpus("1")));
    let guaranteed = refused(Resources::cores(cpus("0,2-3")));
    assert!(matches!(guaranteed, Refusal::LastCore(_) | Refusal::BelowGuarantee { .. }), "{guaranteed:?}");
}

#[test]
fn a_guest_keeps_what_it_cannot_do_without() {
    for (spare, came, verdict) in [(1, 1, Verdict::Partial), (0, 0, Verdict::Nothing)] {
        let mut world = pair();
        world.vms.get_mut(&name("a")).unwrap().spare = units(spare) + Bytes::mib(1);
        let lowest = std::cell::Cell::new(u64::MAX);
        let fate = |action: &Action| {
            if let ActionKind::SetRequestedSize { bytes, .. } = action.kind
                && action.vm == name("a")
            {
                lowest.set(lowest.get().min(bytes.0));
            }
            Some(Fate::Works)
        };
        let held = world.engine.ledger().vm(&name("a")).on(NodeId(1));
        let report = run(&mut world, lend("a", "b", of_memory(1, 2)), fate);
        assert_eq!(report.verdict, verdict, "{report:#?}");
        assert_eq!(shortfalls(&report)[0].1, Reason::DonorStarves);
        assert_eq!(report.legs[0].arrived.on(NodeId(1)), units(came));
        assert_eq!(world.engine.ledger().vm(&name("a")).on(NodeId(1)) + units(came), held);
        let boot = world.specs[&name("a")].boot.get(&NodeId(1)).copied().unwrap_or_default();
        let least = held.saturating_sub(boot + units(came));
        assert!(lowest.get() >= least.0, "it was asked for more than it can do without: {}", lowest.get());
    }
}

/// Whatever it reported: it may have filled since, and be silent because of that.
#[test]
fn a_guest_that_does_not_answer_gives_only_what_it_owes() {
    let mut world = pair();
    let free = [(NodeId(1), units(1) + Bytes::mib(80))].into();
    world.tell(Event::GuestMemory { vm: name("a"), free, age: Duration::ZERO });
    let lost = |action: &Action| {
        let prepares = matches!(action.kind, ActionKind::PrepareMemory { .. });
        Some(if prepares { Fate::Lost } else { Fate::Works })
    };
    let report = run(&mut world, lend("a", "b", of_memory(1, 2)), lost);
    assert_eq!(report.verdict, Verdict::Nothing, "{report:#?}");
    assert_eq!(shortfalls(&report)[0].1, Reason::Unanswering(name("a")));
    assert!(!world.engine.vm(&name("a")).unwrap().lends_memory);
    // What is owed is asked for all the same.
    let mut world = pair();
    run(&mut world, lend("b", "a", of_memory(1, 1)), works);
    let report = run(&mut world, recall("b"), lost);
    assert_eq!(report.verdict, Verdict::Complete, "{report:#?}");
}

#[test]
fn who_does_not_need_all_of_its_guarantee_can_be_taken_below_it() {
    let host = host(2, 4, 1, 8);
    let mut specs = vec![spec(&host, "a", "0-3", 3), spec(&host, "b", "4-7", 3)];
    specs[0].guarantee.cores = Some(CoreDemand::Count(3));
    let mut world = World::with(host, specs);
    let (from, to) = (Holder::Vm(name("a")), Holder::Vm(name("b")));
    let held = world.engine.ledger().vm(&name("a")).cpus.clone();
    let step = Move { from, to, what: Resources::cores(held.iter().skip(1).collect()) };
    let rebalance = |below: BTreeSet<_>| Request::Rebalance { moves: vec![step.clone()], below, owed: false };
    let refused = world.engine.clone().preview(&rebalance(BTreeSet::new())).unwrap_err();
    assert!(matches!(refused, Refusal::BelowGuarantee { .. }), "{refused:?}");
    let report = run(&mut world, rebalance([name("a")].into()), |_| Some(Fate::Works));
    assert_eq!(report.verdict, Verdict::Complete, "{report:#?}");
    assert!(world.engine.loans().is_empty());
}

#[test]
fn what_is_owed_by_a_rebalance_does_not_depend_on_the_giver() {
    let step = |cpus: conuma_topology::CpuSet| Move {
        from: Holder::Vm(name("b")),
        to: Holder::Vm(name("a")),
        what: Resources::cores(cpus),
    };
    for (owed, verdict) in [(false, Verdict::Nothing), (true, Verdict::Complete)] {
        let mut world = pair();
        let cpu = world.engine.ledger().vm(&name("b")).cpus.last().unwrap();
        let moves = vec![step(conuma_topology::CpuSet::from([cpu]))];
        let fate = |action: &Action| match action.kind {
            ActionKind::AgentApply { .. } if action.vm == name("b") => Some(Fate::Refused),
            _ => Some(Fate::Works),
        };
        let report = run(&mut world, Request::Rebalance { moves, below: BTreeSet::new(), owed }, fate);
        assert_eq!(report.verdict, verdict, "owed: {owed}: {report:#?}");
    }
}
