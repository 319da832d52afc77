//! What comes back, what cannot, and how that is said.

use super::scenarios::{run, works};
use super::world::*;
use crate::*;

/// `a` holds four cores and `b` four, of which it is guaranteed two; `a` lent `b` CPUs 2-3.
fn lent() -> World {
    let host = host(1, 8, 1, 12);
    let mut b = spec(&host, "b", "4-7", 2);
    b.guarantee.cores = Some(CoreDemand::Count(2));
    let mut world = World::with(host.clone(), vec![spec(&host, "a", "0-3", 6), b]);
    complete(&mut world, lend("a", "b", of_cpus("2-3")));
    world
}

fn complete(world: &mut World, request: Request) {
    assert_eq!(run(world, request, works).verdict, Verdict::Complete);
}

fn set(vm: &str, what: Demand) -> Request {
    Request::Set { vm: name(vm), what, below_guarantee: false }
}

fn part(to: &str, from: Option<&str>, what: Demand) -> Request {
    Request::Recall { to: name(to), from: from.map(name), what: (what != Demand::default()).then_some(what) }
}

/// What became of a recall: its verdict, and what did not come and why.
fn recalled(world: &mut World, request: Request) -> (Verdict, Vec<String>) {
    let report = run(world, request, works);
    let shortfalls = report.legs.iter().flat_map(|leg| &leg.shortfalls);
    (
        report.verdict,
        shortfalls.map(|short| format!("{} with {}: {:?}", short.what, short.now_with, short.why)).collect(),
    )
}

fn refused(world: &World, request: Request) -> String {
    world.engine.preview(&request).unwrap_err().to_string()
}

#[test]
fn a_borrower_keeps_its_guarantee_and_the_recall_says_so() {
    let mut world = lent();
    complete(&mut world, set("b", of_cpus("2-3")));
    let nothing = recalled(&mut world, recall("a"));
    assert_eq!(nothing, (Verdict::Nothing, vec!["CPUs 2-3 with b: DonorNeeds".into()]));
    complete(&mut world, set("b", of_cpus("2-4")));
    let some = recalled(&mut world, recall("a"));
    assert_eq!(some, (Verdict::Partial, vec!["CPUs 2 with b: DonorNeeds".into()]));
    assert_eq!(world.holds("b"), "CPUs 2,4, node0=256M");
    complete(&mut world, set("b", of_cores(3)));
    complete(&mut world, recall("a"));
    assert_eq!(world.holds("a"), "CPUs 0-3, node0=768M");
    // Nothing is owed and nothing is missing: it is so already.
    assert_eq!(recalled(&mut world, recall("a")), (Verdict::Complete, vec![]));
}

#[test]
fn a_borrower_keeps_its_last_core() {
    let mut world = lent();
    complete(&mut world, Request::Set { vm: name("b"), what: of_cpus("3"), below_guarantee: true });
    world.specs.get_mut(&name("b")).unwrap().guarantee.cores = None;
    world.engine.state.vms.get_mut(&name("b")).unwrap().spec.guarantee.cores = None;
    let (verdict, short) = recalled(&mut world, recall("a"));
    assert_eq!((verdict, short), (Verdict::Partial, vec!["CPUs 3 with b: DonorNeeds".into()]));
    // The pool owed the other one.
    assert_eq!(world.holds("a"), "CPUs 0-2, node0=768M");
}

#[test]
fn a_borrower_keeps_the_memory_it_is_guaranteed() {
    for guarantee in [MemoryDemand::Total(units(3)), MemoryDemand::PerNode(on(0, 3))] {
        let host = host(1, 4, 1, 12);
        let mut b = spec(&host, "b", "2-3", 4);
        b.guarantee.memory = Some(guarantee);
        let mut world = World::with(host.clone(), vec![spec(&host, "a", "0-1", 6), b]);
        complete(&mut world, lend("a", "b", of_memory(0, 3)));
        complete(&mut world, set("b", of_memory(0, 5)));
        let (verdict, short) = recalled(&mut world, recall("a"));
        assert_eq!((verdict, short), (Verdict::Partial, vec!["node0=128M with b: DonorNeeds".into()]));
        assert_eq!(world.holds("b"), "CPUs 2-3, node0=384M");
    }
}

#[test]
fn the_cores_that_the_lender_is_guaranteed_come_first() {
    let host = host(1, 4, 1, 8);
    let mut a = spec(&host, "a", "0-2", 2);
    a.guarantee.cores = Some(CoreDemand::Cpus(cpus("0-1")));
    let mut world = World::with(host.clone(), vec![a, spec(&host, "b", "3", 2)]);
    complete(&mut world, Request::Lend { from: name("a"), to: name("b"), what: of_cpus("1-2"), below_guarantee: true });
    complete(&mut world, set("b", of_cpus("1-2")));
    assert_eq!(recalled(&mut world, recall("a")).1, ["CPUs 2 with b: DonorNeeds"]);
    assert_eq!(world.holds("a"), "CPUs 0-1, node0=256M");
}

#[test]
fn a_guarantee_that_the_pool_cannot_fill_is_said() {
    let host = host(1, 4, 1, 8);
    let mut a = spec(&host, "a", "0-1", 3);
    a.guarantee.cores = Some(CoreDemand::Count(2));
    let mut world = World::with(host.clone(), vec![a, spec(&host, "b", "2-3", 2)]);
    complete(&mut world, Request::Set { vm: name("a"), what: of_cpus("0"), below_guarantee: true });
    complete(&mut world, set("b", of_cpus("1-3")));
    let missing = (Verdict::Nothing, vec!["nothing with the pool: PoolLacks(Cores(1))".to_owned()]);
    assert_eq!(recalled(&mut world, recall("a")), missing);
}

#[test]
fn what_the_lender_has_no_room_for_is_withheld() {
    let mut world = lent();
    world.engine.state.vms.get_mut(&name("a")).unwrap().spec.limit.cores = Some(CoreDemand::Count(3));
    let (verdict, short) = recalled(&mut world, recall("a"));
    assert_eq!((verdict, short), (Verdict::Partial, vec!["CPUs 2 with b: NoRoom".into()]));
}

#[test]
fn memory_of_a_silent_vm_is_withheld() {
    let mut world = lent();
    complete(&mut world, lend("a", "b", of_memory(0, 2)));
    world.engine.state.vms.get_mut(&name("b")).unwrap().silent = true;
    let (verdict, short) = recalled(&mut world, recall("a"));
    assert_eq!((verdict, short.len()), (Verdict::Partial, 1));
    assert!(short[0].starts_with("node0=256M with b: Unanswering"), "{short:?}");
}

#[test]
fn a_part_comes_back_if_it_is_owed_and_can_be_spared() {
    let mut world = lent();
    assert_eq!(refused(&world, part("b", None, of_cores(1))), "b lent anyone nothing");
    assert_eq!(refused(&world, part("b", Some("a"), Demand::default())), "b lent a nothing");
    assert_eq!(refused(&world, part("a", Some("c"), of_cores(1))), "there is no VM c; see `conuma list`");
    assert_eq!(refused(&world, part("a", None, of_cpus("3-4"))), "b owes a CPUs 2-3, not CPUs 4 more");
    assert_eq!(refused(&world, part("a", None, of_memory(0, 1))), "b owes a CPUs 2-3, not 128M of node 0 more");
    complete(&mut world, part("a", Some("b"), of_cores(1)));
    assert_eq!(world.holds("a"), "CPUs 0-1,3, node0=768M");
    complete(&mut world, set("b", of_cpus("2,4")));
    assert_eq!(
        refused(&world, part("a", None, of_cpus("2"))),
        "b cannot give CPUs 2 now: a VM keeps its boot memory, its last core and its guarantee"
    );
    complete(&mut world, set("b", of_cpus("2,4-5")));
    complete(&mut world, part("a", Some("b"), Demand::default()));
    assert!(world.engine.loans().is_empty());
}

#[test]
fn a_part_comes_from_the_pool_first_and_else_from_one_vm() {
    let host = host(1, 6, 1, 8);
    let specs = vec![spec(&host, "a", "0-3", 3), spec(&host, "b", "4", 1), spec(&host, "c", "5", 1)];
    let mut world = World::with(host, specs);
    complete(&mut world, lend("a", "b", of_cpus("2-3")));
    complete(&mut world, set("b", of_cpus("2,4")));
    complete(&mut world, part("a", None, of_cores(1)));
    assert_eq!(world.holds("a"), "CPUs 0-1,3, node0=384M");
    complete(&mut world, lend("a", "c", of_cpus("3")));
    assert_eq!(refused(&world, part("a", None, of_cores(1))), "a lent to several VMs: b, c");
    complete(&mut world, part("a", Some("c"), of_cores(1)));
    assert_eq!(world.holds("a"), "CPUs 0-1,3, node0=384M");
}

#[test]
fn two_recalls_of_the_same_do_not_both_pass() {
    let mut world = lent();
    let twice = part("a", Some("b"), of_cores(2));
    let first = world.ask(twice.clone()).unwrap();
    let second = world.ask(twice).unwrap();
    world.run_until_settled();
    assert_eq!(world.report(first).verdict, Verdict::Complete);
    let nothing = Refusal::NotLent { lender: name("a"), borrower: Some(name("b")) };
    assert_eq!(world.report(second).verdict, Verdict::Refused(nothing));
    assert_eq!(world.holds("b"), "CPUs 4-7, node0=256M");
}

#[test]
fn a_recall_of_a_part_does_not_depend_on_the_borrowers_consent() {
    let mut world = lent();
    let refuses = |action: &Action| {
        let leaves = action.vm == name("b") && matches!(action.kind, ActionKind::AgentApply { .. });
        Some(if leaves { Fate::Refused } else { Fate::Works })
    };
    let report = run(&mut world, part("a", None, of_cpus("3")), refuses);
    assert_eq!(report.verdict, Verdict::Complete);
    assert!(world.engine.loans().iter().all(|loan| loan.what == Resources::cores(cpus("2"))));
}

#[test]
fn boot_memory_owes_nothing() {
    let mut world = lent();
    complete(&mut world, lend("a", "b", of_memory(0, 2)));
    complete(&mut world, set("b", of_memory(0, 1)));
    let owed: Vec<_> = world.engine.loans().iter().filter(|loan| !loan.what.memory.is_empty()).collect();
    assert!(owed.iter().all(|loan| loan.borrower == Holder::Pool && loan.what.memory == on(0, 2)), "{owed:?}");
}
