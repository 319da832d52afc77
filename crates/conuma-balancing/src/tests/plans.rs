//! What is planned, and what is refused with which words.

use super::world::*;
use crate::*;

/// Two nodes, four cores of two threads each; `a` holds CPUs 0-9, `b` 10-13, the pool 14-15.
fn world() -> World {
    let host = host(2, 4, 2, 10);
    World::with(host.clone(), vec![spec(&host, "a", "0-9", 4), spec(&host, "b", "10-13", 2)])
}

/// The moves of a plan, one a line, or the refusal.
fn check(request: Request, expected: &[&str]) {
    let world = world();
    let lines: Vec<String> = match world.engine.preview(&request) {
        Ok(plan) => plan.moves.iter().map(|step| format!("{} -> {}: {}", step.from, step.to, step.what)).collect(),
        Err(refusal) => vec![refusal.to_string()],
    };
    assert_eq!(lines, expected, "{request:?}");
}

fn set(vm: &str, what: Demand) -> Request {
    Request::Set { vm: name(vm), what, below_guarantee: false }
}

#[test]
fn named_cores_and_node_memory() {
    let what = Demand { cores: of_cpus("4-7").cores, memory: of_memory(1, 2).memory };
    check(lend("a", "b", what), &["a -> b: CPUs 4-7", "a -> b: node1=256M"]);
}

#[test]
fn counted_cores_come_from_where_the_recipient_is_and_the_giver_is_not() {
    // b lives on node 1, where a has only CPUs 8-9.
    check(lend("a", "b", of_cores(1)), &["a -> b: CPUs 8-9"]);
    check(lend("a", "b", of_cores(2)), &["a -> b: CPUs 6-9"]);
    let plan = world().engine.preview(&lend("a", "b", of_cores(1))).unwrap();
    let chosen: Vec<_> = plan.choices.iter().filter(|choice| choice.chosen).collect();
    assert_eq!(chosen.len(), 1);
    assert!(chosen[0].reasons.contains(&CoreReason::RecipientCores(2)), "{chosen:?}");
    assert_eq!(plan.choices.len(), 5);
}

#[test]
fn total_memory_comes_from_where_the_recipient_is() {
    let total = Demand { cores: None, memory: Some(MemoryDemand::Total(units(2))) };
    check(lend("a", "b", total), &["a -> b: node1=256M"]);
}

#[test]
fn a_holding_is_set_from_and_to_the_pool() {
    check(set("b", of_cpus("12-15")), &["b -> the pool: CPUs 10-11", "the pool -> b: CPUs 14-15"]);
    check(set("a", of_cores(3)), &["a -> the pool: CPUs 6-9"]);
    check(set("b", of_memory(0, 4)), &["the pool -> b: node0=256M"]);
    check(set("b", of_memory(0, 1)), &["b -> the pool: node0=128M"]);
}

#[test]
fn refusals_say_what_is_missing_and_who_has_it() {
    check(lend("a", "x", of_cores(1)), &["there is no VM x; see `conuma list`"]);
    check(lend("a", "a", of_cores(1)), &["a cannot lend to itself"]);
    check(lend("a", "b", Demand::default()), &["nothing to lend: name cores or memory"]);
    check(
        lend("a", "b", of_cpus("4")),
        &["CPUs 4 are not whole cores of this host; whole cores move, with all SMT siblings"],
    );
    check(
        lend("a", "b", of_cpus("12-15")),
        &["a has no CPUs 12-15 to give (b holds CPUs 12-13; `conuma recall` or `conuma set` can free it)"],
    );
    check(
        set("a", of_cores(7)),
        &["the pool has 1 core to give, 2 asked for \
           (b holds CPUs 10-13; `conuma recall` or `conuma set` can free it)"],
    );
    check(lend("a", "b", of_memory(7, 1)), &["node 7 has no memory on this host; see `conuma topology`"]);
    // Boot memory is never given: of four units on the node one is boot memory.
    check(lend("a", "b", of_memory(0, 4)), &["a has no node0=128M to give"]);
}

#[test]
fn a_guarantee_is_kept_unless_the_owner_agrees() {
    let host = host(1, 4, 1, 8);
    let mut a = spec(&host, "a", "0-2", 4);
    a.guarantee = Demand { cores: Some(CoreDemand::Count(2)), memory: Some(MemoryDemand::Total(units(3))) };
    let mut world = World::with(host.clone(), vec![a, spec(&host, "b", "3", 1)]);
    let refusal = |what| world.engine.preview(&lend("a", "b", what)).unwrap_err().to_string();
    assert_eq!(refusal(of_cores(2)), "a would be 1 core short of its guarantee; --below-guarantee allows it");
    assert_eq!(
        refusal(of_memory(0, 2)),
        "a would be 128M of memory short of its guarantee; --below-guarantee allows it"
    );
    assert_eq!(refusal(of_cores(3)), "a must keep at least one core");
    let agreed = Request::Lend { from: name("a"), to: name("b"), what: of_cores(2), below_guarantee: true };
    world.ask(agreed).unwrap();
    world.run_until_settled();
    assert_eq!(world.holds("b"), "CPUs 1-3, node0=128M");
    world.ask(recall("a")).unwrap();
    world.run_until_settled();
    assert_eq!(world.holds("a"), "CPUs 0-2, node0=512M");
}

#[test]
fn a_guarantee_counts_what_is_already_on_its_way_out() {
    let host = host(2, 2, 1, 8);
    let mut a = spec(&host, "a", "0-1", 3);
    a.guarantee = Demand { cores: None, memory: Some(MemoryDemand::Total(units(5))) };
    let mut world = World::with(host.clone(), vec![a, spec(&host, "b", "2-3", 1)]);
    world.ask(lend("a", "b", of_memory(0, 1))).unwrap();
    assert!(matches!(world.ask(lend("a", "b", of_memory(1, 1))), Err(Refusal::BelowGuarantee { .. })));
}

#[test]
fn a_recipient_stays_within_its_limit() {
    let host = host(1, 4, 1, 8);
    let mut b = spec(&host, "b", "3", 1);
    b.limit = Demand { cores: Some(CoreDemand::Count(2)), memory: Some(MemoryDemand::PerNode(on(0, 2))) };
    let world = World::with(host.clone(), vec![spec(&host, "a", "0-2", 5), b]);
    let refusal = |what| world.engine.preview(&lend("a", "b", what)).unwrap_err().to_string();
    assert_eq!(refusal(of_cores(2)), "b cannot hold 1 core: beyond its limit");
    assert_eq!(refusal(of_memory(0, 2)), "b cannot hold 128M of node 0: beyond its limit");
}

#[test]
fn a_start_takes_from_the_pool_or_says_what_is_missing() {
    let mut world = world();
    let host = world.engine.host().clone();
    let small = VmSpec { initial: of_cores(1), ..spec(&host, "c", "0", 1) };
    assert_eq!(world.engine.preview_start(&small).unwrap().moves[0].what.to_string(), "CPUs 14-15");
    let large = VmSpec { initial: of_cores(3), ..small.clone() };
    assert_eq!(
        world.engine.start(large, world.now).unwrap_err().to_string(),
        "the pool has 1 core to give, 3 asked for \
         (a holds CPUs 0-9; b holds CPUs 10-13; `conuma recall` or `conuma set` can free it)"
    );
    let held = world.engine.start(small.clone(), world.now).unwrap();
    assert_eq!(held.to_string(), "CPUs 14-15, node0=128M, node1=128M");
    assert_eq!(world.engine.start(small, world.now), Err(Refusal::AlreadyStarted(name("c"))));
}

#[test]
fn a_recall_takes_from_the_pool_what_a_borrower_left_there() {
    let mut world = world();
    world.ask(lend("a", "b", of_cpus("8-9"))).unwrap();
    world.run_until_settled();
    world.kill(&name("b"));
    world.ask(recall("a")).unwrap();
    world.run_until_settled();
    assert_eq!(world.holds("a"), "CPUs 0-9, node0=512M, node1=512M");
    assert!(world.engine.loans().is_empty());
}

#[test]
fn a_plan_that_breaks_an_invariant_is_refused_whoever_made_it() {
    let host = host(1, 2, 2, 4);
    let specs = std::collections::BTreeMap::from([(name("a"), spec(&host, "a", "0-3", 2))]);
    let (a, pool) = (Holder::Vm(name("a")), Holder::Pool);
    let books = std::collections::BTreeMap::from([
        (a.clone(), Resources { cpus: cpus("0-1"), memory: on(0, 2) }),
        (pool.clone(), Resources { cpus: cpus("2-3"), memory: on(0, 2) }),
    ]);
    let verdict = |from: &Holder, to: &Holder, what: Resources| {
        let plan =
            TransferPlan { moves: vec![Move { from: from.clone(), to: to.clone(), what }], ..TransferPlan::default() };
        check_plan(&host, &specs, &books, &plan, &Default::default(), &Default::default())
            .map_err(|violation| violation.to_string())
    };
    let cores = |list: &str| Resources::cores(cpus(list));
    assert_eq!(verdict(&pool, &a, cores("2-3")), Ok(()));
    assert_eq!(
        verdict(&pool, &a, cores("2")),
        Err("the pool holds CPUs 2, which are not whole cores of the host".into())
    );
    assert_eq!(verdict(&pool, &a, cores("0-1")), Err("the pool should give CPUs 0-1, which it does not have".into()));
    assert_eq!(verdict(&a, &pool, cores("0-1")), Err("a must keep at least one core".into()));
    assert_eq!(verdict(&Holder::Reserve, &a, cores("2-3")), Err("a plan may not move from the host to a".into()));
    let memory = |n| Resources { cpus: cpus(""), memory: on(0, n) };
    assert_eq!(verdict(&a, &pool, memory(2)), Err("a should give node0=128M, which it does not have".into()));
}
