//! Memory that neither comes nor goes: QEMU says so, or the guest is being migrated.

use conuma_topology::{NodeId, VmName};

use super::scenarios::{pair, run_with, shortfalls};
use super::world::*;
use crate::*;

#[test]
fn what_qemu_says_to_a_look_at_memory_is_told_at_once() {
    for stuck in ["a", "b"] {
        let mut world = pair();
        let still = |action: &Action| {
            let polled = matches!(action.kind, ActionKind::PollSize { .. }) && action.vm == name(stuck);
            Some(if polled { Fate::Refused } else { Fate::Works })
        };
        let report = run_with(&mut world, lend("a", "b", of_memory(1, 2)), still, |_, vm, _| *vm != name(stuck));
        assert_eq!(report.verdict, Verdict::Nothing, "{report:#?}");
        let why = Reason::HypervisorFailed(Failure::Refused("broken".into()));
        assert_eq!(shortfalls(&report), [("node1=256M".into(), why, "a".into())]);
        assert!(report.ended.unwrap() - report.asked < world.engine.timing.shrink, "{report:#?}");
        assert_eq!(world.holds("a"), "CPUs 0-3, node0=384M, node1=384M");
        world.run_until_settled();
        world.check();
    }
}

#[test]
fn nothing_is_begun_of_memory_that_stays_as_it_is() {
    let mut world = pair();
    world.tell(Event::MemoryFixed { vm: name("a"), fixed: Some(Fixed::Migrated) });
    for (from, to) in [("a", "b"), ("b", "a")] {
        let refused = world.ask(lend(from, to, of_memory(1, 1)));
        assert_eq!(refused, Err(Refusal::Fixed(name("a"), Fixed::Migrated)));
    }
    world.tell(Event::MemoryFixed { vm: name("a"), fixed: None });
    world.ask(lend("a", "b", of_memory(1, 1))).unwrap();
}

/// A migration begins at each point of a transfer, of the one that gives and of the one that gets: nothing is lost, nobody waits
/// for a deadline, and when it has failed all follows the ledger.
#[test]
fn a_migration_at_any_point_of_a_transfer_ends_what_it_must() {
    let mut kept = 0;
    for stuck in ["a", "b"] {
        for point in 0..40 {
            let mut world = pair();
            let id = world.ask(lend("a", "b", of_memory(1, 2))).unwrap();
            let frozen = |world: &World, vm: &VmName| world.engine.vm(vm).is_some_and(|vm| !vm.lends_memory);
            for step in 0.. {
                if step == point {
                    world.tell(Event::MemoryFixed { vm: name(stuck), fixed: Some(Fixed::Migrates) });
                }
                if world.report(id).ended.is_some() {
                    break;
                }
                assert!(step < 1000, "never ends: {:#?}", world.report(id));
                let next = world.in_flight.iter().find(|(_, queue)| !queue.is_empty()).map(|(key, _)| key.clone());
                let moved = match next {
                    Some((vm, lane)) => world.deliver(&vm, lane, Fate::Works),
                    None => {
                        let guests = ["a", "b"].map(name);
                        guests.iter().any(|vm| !frozen(&world, vm) && world.guest_moves(vm, NodeId(1)))
                    }
                };
                assert!(moved || world.tick(), "stuck: {:#?}", world.report(id));
                world.check();
            }
            let report = world.report(id);
            let why = Reason::Fixed(name(stuck), Fixed::Migrates);
            kept += shortfalls(&report).len();
            assert!(shortfalls(&report).iter().all(|short| short.1 == why), "{report:#?}");
            assert!(report.ended.unwrap() - report.asked < world.engine.timing.shrink, "{report:#?}");
            world.tell(Event::MemoryFixed { vm: name(stuck), fixed: None });
            world.run_until_settled();
            world.check();
        }
    }
    assert!(kept > 10, "it began in the middle {kept} times only");
}
