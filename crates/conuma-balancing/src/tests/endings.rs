//! How transfers end: with whom what moved stays when a VM ends at the last moment, and how late the last moment is.

use std::time::Duration;

use conuma_topology::NodeId;

use super::scenarios::{pair, shortfalls};
use super::world::*;
use crate::*;

/// `b` took one of the two units that `a` lent it and is asked to confirm that; the other went back to `a`.
fn half_lent() -> (World, TransferId) {
    let mut world = pair();
    let id = world.ask(lend("a", "b", of_memory(1, 2))).unwrap();
    let stage = |world: &World| world.report(id).legs[0].stages.last().unwrap().stage;
    let mut taken = false;
    while stage(&world) != Stage::Confirm {
        world.check();
        let moved = world.deliver_any() || world.guest_moves(&name("a"), NodeId(1));
        let moved = moved || (!taken && stage(&world) == Stage::Grow && world.guest_moves(&name("b"), NodeId(1)));
        taken |= world.vms[&name("b")].plugged[&NodeId(1)].size == units(3);
        assert!(moved || world.tick());
    }
    assert_eq!(shortfalls(&world.report(id)), [("node1=128M".into(), Reason::RecipientDidNotTake, "a".into())]);
    (world, id)
}

#[test]
fn what_the_recipient_has_is_its_own_when_the_donor_ends() {
    let (mut world, id) = half_lent();
    world.kill(&name("a"));
    world.run_until_settled();
    world.check();
    let report = world.report(id);
    assert_eq!(report.verdict, Verdict::Partial);
    assert_eq!(report.legs[0].arrived, Resources { cpus: cpus(""), memory: on(1, 1) });
    assert_eq!(report.legs[0].shortfalls.len(), 1);
    assert_eq!(world.holds("b"), "CPUs 4-7, node0=384M, node1=512M");
}

#[test]
fn what_the_recipient_had_goes_to_the_pool_when_it_ends() {
    let (mut world, id) = half_lent();
    world.kill(&name("b"));
    world.run_until_settled();
    world.check();
    let report = world.report(id);
    assert_eq!(report.verdict, Verdict::Nothing);
    let whys: Vec<_> = shortfalls(&report).into_iter().map(|(_, why, with)| (why, with)).collect();
    let gone = (Reason::RecipientGone, "the pool".to_owned());
    assert_eq!(whys, [(Reason::RecipientDidNotTake, "a".to_owned()), gone]);
    assert_eq!(world.holds("a"), "CPUs 0-3, node0=384M, node1=256M");
}

#[test]
fn a_transfer_of_cores_that_lasts_as_long_as_it_can_is_in_time() {
    // Memory would take longer by far.
    let soon = Duration::ZERO;
    let timing = Timing { prepare: soon, shrink: soon, grow: soon, confirm: soon, ..Timing::default() };
    let host = host(1, 8, 1, 8);
    let specs = vec![spec(&host, "a", "0-3", 3), spec(&host, "b", "4-7", 3)];
    let mut world = World::with_timing(host, specs, timing);
    let began = world.now;
    let id = world.ask(lend("a", "b", of_cpus("3"))).unwrap();
    let (step, mut lost) = (Duration::from_millis(10), Vec::new());
    while world.report(id).ended.is_none() {
        world.check();
        let first = world.in_flight.iter().find_map(|(key, queue)| Some((key.clone(), queue.front()?.clone())));
        let Some(((vm, lane), action)) = first else {
            assert!(world.tick());
            continue;
        };
        let verified = world.engine.state.transfers[&id].legs[0].until;
        let fate = match action.kind {
            ActionKind::CloseGate { grip: Grip::Soft, .. } if world.now + step < verified => {
                world.now += step;
                Fate::Refused
            }
            ActionKind::CloseGate { grip: Grip::Soft, .. } => Fate::Lost,
            ActionKind::CloseGate { .. } | ActionKind::OpenGate { .. } if !lost.contains(&vm) => {
                lost.push(vm.clone());
                Fate::Lost
            }
            _ => {
                world.now = action.deadline - Duration::from_millis(1);
                Fate::Works
            }
        };
        world.check();
        world.deliver(&vm, lane, fate);
    }
    assert_eq!(world.report(id).verdict, Verdict::Complete);
    assert_eq!((world.now - began).as_secs(), 46, "not all of the deadlines were used up");
}
