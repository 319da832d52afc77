//! The checks themselves are checked: an executor that breaks the order must be caught, or a green
//! model check would mean nothing.
//!
//! The same was done to the engine by hand. Each of these changes makes the named test fail (and mostly others):
//!
//! | change | caught by |
//! | --- | --- |
//! | give a core before its gate is confirmed shut | `a_core_is_usable_by_at_most_one_vm`, the model |
//! | give memory before QEMU's size is there, or on the guest's size alone | `a_node_is_never_overcommitted`, the model |
//! | forget a gate or a size that was asked for but not answered | `the_ledger_is_never_below_real_use`, the model |
//! | believe the journal rather than the host after a restart | `a_core_is_usable_by_at_most_one_vm`, the model |
//! | drop the deadline of quiesce or of shrink | `every_transfer_ends_by_its_deadline`, the model |
//! | count an answer twice | `a_doubled_answer_changes_nothing` |
//! | plan without what is already on its way out | `a_guarantee_counts_what_is_already_on_its_way_out` |
//! | do not check guarantees | `a_guarantee_is_kept_unless_the_owner_agrees` |
//! | recall what the borrower needs itself | `a_recall_of_all_that_is_owed_is_never_refused` |

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
