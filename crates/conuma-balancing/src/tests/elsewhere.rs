//! Stories of memory that was asked for on whichever nodes, and of which one node does not give or take all.

use conuma_topology::{NodeId, VmName};

use super::scenarios::{pair, run_with, shortfalls, works};
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
