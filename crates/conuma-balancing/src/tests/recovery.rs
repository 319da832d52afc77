//! The daemon dies at every point of a transfer, with and without its journal.

use std::collections::BTreeMap;

use conuma_topology::NodeId;

use super::world::*;
use crate::*;

fn world() -> World {
    let host = host(1, 4, 1, 8);
    World::with(host.clone(), vec![spec(&host, "a", "0-1", 3), spec(&host, "b", "2-3", 3)])
}

fn both() -> Request {
    lend("a", "b", Demand { cores: of_cpus("1").cores, memory: of_memory(0, 2).memory })
}

/// One thing goes on, if anything can without waiting.
fn goes_on(world: &mut World) -> bool {
    world.deliver_any() || world.guest_moves(&name("a"), NodeId(0)) || world.guest_moves(&name("b"), NodeId(0))
}

#[test]
fn a_crash_at_any_point_finishes_or_undoes() {
    for keep_journal in [true, false] {
        let mut ends = std::collections::BTreeSet::new();
        for point in 0..200 {
            let mut world = world();
            let id = world.ask(both()).unwrap();
            for _ in 0..point {
                if !goes_on(&mut world) && world.report(id).ended.is_none() {
                    world.tick();
                }
            }
            let over = world.report(id).ended.is_some();
            world.crash(keep_journal);
            world.check();
            world.run_until_settled();
            world.check();
            ends.insert((world.holds("a"), world.holds("b")));
            if over {
                break;
            }
        }
        let undone = ("CPUs 0-1, node0=384M".to_owned(), "CPUs 2-3, node0=384M".to_owned());
        let finished = ("CPUs 0, node0=128M".to_owned(), "CPUs 1-3, node0=640M".to_owned());
        assert!(ends.contains(&undone) && ends.contains(&finished), "{keep_journal}: {ends:#?}");
    }
}

#[test]
fn an_interrupted_transfer_says_so() {
    let mut world = world();
    let id = world.ask(both()).unwrap();
    world.crash(true);
    let report = world.report(id);
    assert_eq!(report.verdict, Verdict::Nothing);
    let whys: Vec<&Reason> = report.legs.iter().flat_map(|leg| &leg.shortfalls).map(|short| &short.why).collect();
    assert_eq!(whys, [&Reason::Interrupted, &Reason::Interrupted]);
}

#[test]
fn a_history_that_is_ahead_of_its_state_tells_nothing_twice() {
    let mut world = world();
    let first = world.ask(lend("a", "b", of_cpus("1"))).unwrap();
    let under_way = world.engine.state().clone();
    world.run_until_settled();
    let second = world.ask(recall("a")).unwrap();
    world.run_until_settled();
    let history = world.engine.history().clone();
    assert!(history.iter().any(|report| report.id == first) && history.iter().any(|report| report.id == second));
    let state = under_way.with_history(history);
    assert!(!state.ended.iter().any(|report| report.id == first), "it is under way again");
    assert!(state.next_transfer > second.0, "no other transfer gets the number of one that is told of");
}

#[test]
fn a_vm_that_died_meanwhile_leaves_everything_to_the_pool() {
    let mut world = world();
    world.vms.remove(&name("b"));
    world.crash(true);
    assert_eq!(world.engine.ledger().held(&Holder::Pool).to_string(), "CPUs 2-3, node0=640M");
    world.check();
}

#[test]
fn a_gate_that_someone_opened_is_closed_again_and_told() {
    let mut world = world();
    world.vms.get_mut(&name("a")).unwrap().open = cpus("0-2");
    world.crash(true);
    let twice = |notice: &Notice| matches!(notice, Notice::Violated(Violation::CoreUsableTwice { .. }));
    assert!(world.notices.iter().any(twice));
    world.run_until_settled();
    assert_eq!(world.vms[&name("a")].open, cpus("0-1"));
    assert_eq!(world.vms[&name("b")].open, cpus("2-3"));
}

#[test]
fn memory_that_someone_plugged_is_booked() {
    let mut world = world();
    let more = PluggedMemory { requested: units(4), size: units(4) };
    world.vms.get_mut(&name("a")).unwrap().plugged.insert(NodeId(0), more);
    world.crash(true);
    assert_eq!(world.holds("a"), "CPUs 0-1, node0=640M");
    world.notices.clear();
    world.check();
}

#[test]
fn agents_that_have_seen_newer_decisions_are_told_newer_ones() {
    let mut world = world();
    world.vms.get_mut(&name("a")).unwrap().newest = 1_000;
    world.crash(false);
    world.ask(lend("a", "b", of_cpus("1"))).unwrap();
    world.run_until_settled();
    assert_eq!(world.vms[&name("a")].using, Some(cpus("0")));
}

#[test]
fn an_agent_that_claims_to_know_the_last_number_harms_nobody_else() {
    let mut world = world();
    world.tell(Event::AgentConnected { vm: name("b"), newest: u64::MAX, holding: None });
    world.ask(Request::Set { vm: name("a"), what: of_cpus("0"), below_guarantee: true }).unwrap();
    world.run_until_settled();
    assert_eq!(world.vms[&name("a")].using, Some(cpus("0")));
}

#[test]
fn a_loan_ends_with_its_lender_whatever_becomes_of_the_host() {
    let mut world = world();
    world.ask(lend("a", "b", of_cpus("1"))).unwrap();
    world.run_until_settled();
    let mut other = world.engine.host().clone();
    other.reserve = Resources::memory(NodeId(0), units(1));
    let state = written_and_read(world.engine.state());
    let engine = Engine::recover(Some(state), other, BTreeMap::new(), Timing::default(), world.now);
    assert_eq!(engine.loans(), &[]);
}

#[test]
fn a_journal_about_another_host_keeps_its_loans_only() {
    let mut world = world();
    world.ask(lend("a", "b", of_cpus("1"))).unwrap();
    world.run_until_settled();
    let state = written_and_read(world.engine.state());
    let found =
        world.vms.iter().map(|(name, vm)| (name.clone(), VmFound { spec: world.specs[name].clone(), seen: vm.seen() }));
    let mut other = world.engine.host().clone();
    other.reserve = Resources::memory(NodeId(0), units(1));
    let engine = Engine::recover(Some(state), other, found.collect(), Timing::default(), world.now);
    assert_eq!(engine.loans(), world.engine.loans());
    assert_eq!(engine.ledger().vm(&name("b")).to_string(), "CPUs 1-3, node0=384M");
    assert_eq!(engine.ledger().held(&Holder::Pool).to_string(), "node0=128M");
}

#[test]
fn a_guest_that_runs_on_behind_a_soft_gate_keeps_its_cpu_when_the_journal_is_lost() {
    let mut world = world();
    world.ask(lend("a", "b", of_cpus("1"))).unwrap();
    world.deliver(&name("a"), Lane::Agent, Fate::Works);
    world.deliver(&name("a"), Lane::Gate, Fate::Refused);
    assert_eq!(world.vms[&name("a")].seen().runs_on, cpus("1"));
    world.crash(false);
    world.check();
    assert_eq!(world.engine.ledger().vm(&name("a")).cpus, cpus("0-1"));
    world.run_until_settled();
    assert_eq!(world.vms[&name("a")].open, cpus("0-1"), "its gate opens again");
}

#[test]
fn a_guest_that_comes_back_to_what_it_gave_to_the_pool_is_not_booked_it() {
    let mut world = world();
    world.ask(Request::Set { vm: name("a"), what: of_cpus("0"), below_guarantee: true }).unwrap();
    world.run_until_settled();
    world.vms.get_mut(&name("a")).unwrap().runs_on = cpus("1");
    world.crash(true);
    assert_eq!(world.engine.ledger().vm(&name("a")).cpus, cpus("0"));
    world.run_until_settled();
    assert_eq!(world.vms[&name("a")].open, cpus("0"));
}

#[test]
fn an_open_gate_counts_more_than_a_guest_that_runs_behind_a_closed_one() {
    let mut world = world();
    world.ask(lend("a", "b", of_cpus("1"))).unwrap();
    world.run_until_settled();
    // The guest that lent it comes back to it, before its brake is firm.
    world.vms.get_mut(&name("a")).unwrap().runs_on = cpus("1");
    world.crash(false);
    assert_eq!(world.engine.ledger().vm(&name("a")).cpus, cpus("0"));
    assert_eq!(world.engine.ledger().vm(&name("b")).cpus, cpus("1-3"));
    world.run_until_settled();
    assert_eq!(world.vms[&name("a")].open, cpus("0"));
}

#[test]
fn a_daemon_that_comes_back_while_a_cpu_is_offline_goes_on_with_what_it_knew() {
    let mut world = world();
    world.ask(lend("a", "b", of_cpus("1"))).unwrap();
    world.run_until_settled();
    let state = written_and_read(world.engine.state());
    let known = world.engine.host().clone();
    let mut found = known.clone();
    found.cores.retain(|_, core| core.cpus != cpus("1"));
    assert_eq!(state.host_despite(found.clone(), &cpus("1")), known);
    assert_eq!(state.host_despite(found.clone(), &cpus("")), found, "a CPU that is gone for good is another host");
    assert_eq!(state.host_despite(known.clone(), &cpus("")), known);
}
