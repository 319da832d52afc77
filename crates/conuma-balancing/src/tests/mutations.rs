//! The checks themselves are checked: an executor that breaks the order must be caught, or a green
//! model check would mean nothing.

use super::world::*;
use crate::*;

fn caught(executor: Executor, request: Request, wrong: impl Fn(&Violation) -> bool) -> bool {
    let host = host(1, 3, 1, 4);
    let mut world = World::with(host.clone(), vec![spec(&host, "a", "0-1", 3), spec(&host, "b", "2", 1)]);
    world.executor = executor;
    world.ask(request).unwrap();
    for _ in 0..100 {
        if world.violations().iter().any(&wrong) {
            return true;
        }
        // The recipient's guest takes what it is offered; the donor's gives nothing.
        let moved = world.deliver_any() || world.guest_moves(&name("b"), conuma_topology::NodeId(0));
        if !moved && !world.tick() {
            return false;
        }
    }
    false
}

#[test]
fn a_gate_that_only_says_it_is_closed_is_caught() {
    let twice = |violation: &Violation| matches!(violation, Violation::CoreUsableTwice { .. });
    let beyond = |violation: &Violation| matches!(violation, Violation::BeyondLedger { .. });
    assert!(caught(Executor::ClosesNothing, lend("a", "b", of_cpus("1")), twice));
    assert!(caught(Executor::ClosesNothing, lend("a", "b", of_cpus("1")), beyond));
    assert!(!caught(Executor::Honest, lend("a", "b", of_cpus("1")), twice));
}

#[test]
fn memory_that_was_not_unplugged_is_caught() {
    let over = |violation: &Violation| matches!(violation, Violation::OverCapacity { .. });
    let beyond = |violation: &Violation| matches!(violation, Violation::BeyondLedger { .. });
    assert!(caught(Executor::BelievesGuests, lend("a", "b", of_memory(0, 2)), over));
    assert!(caught(Executor::BelievesGuests, lend("a", "b", of_memory(0, 2)), beyond));
    assert!(!caught(Executor::Honest, lend("a", "b", of_memory(0, 2)), over));
}
