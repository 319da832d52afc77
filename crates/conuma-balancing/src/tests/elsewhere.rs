//! Stories of memory that was asked for on whichever nodes, and of which one node does not give or take all.

use conuma_topology::{Bytes, NodeId, VmName};

use super::scenarios::{pair, run_to_end, run_with, shortfalls, works};
use super::world::*;
use crate::*;

fn of_total(n: u64) -> Demand {
    Demand { cores: None, memory: Some(MemoryDemand::Total(units(n))) }
}

/// What arrived, leg by leg, and what was said of it.
fn arrivals(report: &Report) -> Vec<(String, Vec<Remark>)> {
    report.legs.iter().map(|leg| (leg.arrived.to_string(), leg.remarks.clone())).collect()
}

fn elsewhere(node: u32, n: u64) -> Vec<Remark> {
    vec![Remark::Elsewhere(Resources::memory(NodeId(node), units(n)))]
}

/// All guests move memory, but not this one on this node.
fn but(stuck: &'static str, node: u32) -> impl Fn(&World, &VmName, NodeId) -> bool {
    move |_, vm, on| *vm != name(stuck) || on != NodeId(node)
}

#[test]
fn what_one_node_keeps_comes_from_another() {
    let mut world = pair();
    let report = run_with(&mut world, lend("a", "b", of_total(2)), works, but("a", 1));
    assert_eq!(report.verdict, Verdict::Complete);
    assert_eq!(arrivals(&report), [("nothing".into(), elsewhere(1, 2)), ("node0=256M".into(), vec![])]);
    assert_eq!(world.holds("a"), "CPUs 0-3, node0=128M, node1=384M");
    assert_eq!(world.holds("b"), "CPUs 4-7, node0=640M, node1=384M");
    assert_eq!(world.engine.loans().len(), 1);
    world.run_until_settled();
    world.check();
}

#[test]
fn the_part_that_one_node_gave_stays_given() {
    let mut world = pair();
    let once = |world: &World, vm: &VmName, node: NodeId| {
        *vm != name("a") || node != NodeId(1) || world.vms[vm].plugged[&node].size > units(1)
    };
    let report = run_with(&mut world, lend("a", "b", of_total(2)), works, once);
    assert_eq!(report.verdict, Verdict::Complete);
    assert_eq!(arrivals(&report), [("node1=128M".into(), elsewhere(1, 1)), ("node0=128M".into(), vec![])]);
}

#[test]
fn what_the_recipient_does_not_plug_on_one_node_it_gets_on_another() {
    let mut world = pair();
    let report = run_with(&mut world, lend("a", "b", of_total(2)), works, but("b", 1));
    assert_eq!(report.verdict, Verdict::Complete);
    assert_eq!(arrivals(&report), [("nothing".into(), elsewhere(1, 2)), ("node0=256M".into(), vec![])]);
    world.run_until_settled();
    assert_eq!(world.holds("a"), "CPUs 0-3, node0=128M, node1=384M");
}

#[test]
fn what_no_other_node_has_falls_short() {
    let mut world = pair();
    let report = run_with(&mut world, lend("a", "b", of_total(3)), works, but("a", 1));
    assert_eq!(report.verdict, Verdict::Partial);
    // Node 1 was to give two of the three, and node 0, which gave one, has one more.
    assert_eq!(shortfalls(&report), [("node1=128M".into(), Reason::DonorKept, "a".into())]);
    assert_eq!(world.holds("a"), "CPUs 0-3, node0=128M, node1=384M");
}

#[test]
fn a_recall_looks_only_where_something_is_owed() {
    let mut world = pair();
    let both = Demand {
        cores: None,
        memory: Some(MemoryDemand::PerNode([on(0, 1), on(1, 1)].into_iter().flatten().collect())),
    };
    run_with(&mut world, lend("a", "b", both), works, |_, _, _| true);
    let part = |n| Request::Recall { to: name("a"), from: None, what: Some(of_total(n)) };
    let report = run_with(&mut world, part(1), works, but("b", 0));
    assert_eq!(arrivals(&report), [("nothing".into(), elsewhere(0, 1)), ("node1=128M".into(), vec![])]);
    let report = run_with(&mut world, part(1), works, but("b", 0));
    assert_eq!(report.verdict, Verdict::Nothing, "b has more on node 1, but owes nothing there");
}

#[test]
fn a_target_is_reached_on_other_nodes() {
    let mut world = pair();
    let set = Request::Set { vm: name("a"), what: of_total(5), below_guarantee: false };
    let first = world.engine.preview(&set).unwrap().moves[0].what.memory.keys().next().copied().unwrap();
    let report = run_with(&mut world, set, works, but("a", first.0));
    assert_eq!(report.verdict, Verdict::Complete);
    assert_eq!(report.legs.len(), 2);
    assert_eq!(world.engine.ledger().vm(&name("a")).total_memory(), units(5));
}

#[test]
fn another_transfer_on_the_other_node_is_not_disturbed() {
    let mut world = pair();
    world.ask(lend("b", "a", of_memory(0, 1))).unwrap();
    let id = world.ask(lend("a", "b", of_total(2))).unwrap();
    assert!(world.report(id).verdict == Verdict::Waiting, "it may come to need that node, so it waits");
    world.run_until_settled();
    assert_eq!(world.report(id).verdict, Verdict::Complete);
}

/// Three nodes; `a` can give one unit of each.
fn three_nodes() -> World {
    let host = host(3, 2, 1, 8);
    let specs = vec![spec(&host, "a", "0-1", 2), spec(&host, "b", "2-3", 2), spec(&host, "c", "4-5", 2)];
    World::with(host, specs)
}

#[test]
fn a_node_where_another_transfer_is_at_work_is_left_out() {
    let mut world = three_nodes();
    let id = world.ask(lend("a", "b", of_total(1))).unwrap();
    world.pump();
    assert_eq!(world.report(id).legs[0].planned.what.to_string(), "node1=128M");
    // Begins later, when that has waited for a while, and has the memory of `a` on node 0, which would be the next choice.
    assert!((0..5).all(|_| world.deliver_any() || world.tick()));
    let other = world.ask(lend("a", "c", of_memory(0, 1))).unwrap();
    let stuck = |_: &World, vm: &VmName, node: NodeId| *vm != name("a") || node == NodeId(2);
    run_to_end(&mut world, id, works, stuck);
    let report = world.report(id);
    assert_eq!(arrivals(&report), [("nothing".into(), elsewhere(1, 1)), ("node2=128M".into(), vec![])]);
    world.run_until_settled();
    assert!(world.report(other).ended.is_some());
}

#[test]
fn rounds_are_few_and_their_shortfalls_add_up() {
    let mut world = three_nodes();
    let report = run_with(&mut world, lend("a", "b", of_total(1)), works, |_, vm, _| *vm != name("a"));
    assert_eq!(report.verdict, Verdict::Nothing);
    let said: Vec<_> = report.legs.iter().map(|leg| leg.remarks.clone()).collect();
    assert_eq!(said.len(), 3, "one node after the other");
    assert_eq!(said[..2], [elsewhere(1, 1), elsewhere(report.legs[1].planned.what.memory.keys().next().unwrap().0, 1)]);
    assert_eq!(shortfalls(&report).len(), 1);
}

#[test]
fn a_vm_that_was_started_again_under_the_name_owes_nothing() {
    let mut world = three_nodes();
    let id = world.ask(lend("a", "b", of_total(1))).unwrap();
    world.pump();
    world.tell(Event::VmGone { vm: name("a") });
    let spec = world.specs[&name("a")].clone();
    let now = world.now;
    world.engine.start(spec, now).unwrap();
    world.pump();
    let report = world.report(id);
    assert_eq!(report.verdict, Verdict::Nothing);
    assert_eq!(report.legs.len(), 1);
}

#[test]
fn a_pool_that_is_not_in_whole_blocks_gives_what_is() {
    let mut host = host(2, 2, 1, 8);
    host.memory.insert(NodeId(1), units(2) + Bytes::mib(1));
    let specs = vec![spec(&host, "a", "0-1", 1)];
    let mut world = World::with(host, specs);
    let set = Request::Set { vm: name("a"), what: of_total(4), below_guarantee: false };
    let report = run_with(&mut world, set, works, but("a", 0));
    assert_eq!(arrivals(&report), [("nothing".into(), elsewhere(0, 1)), ("node1=128M".into(), vec![])]);
    assert_eq!(report.verdict, Verdict::Partial);
}
