//! Stories: what is decided when, and what is not.
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests")]

mod world;

use std::time::Duration;

use conuma_balancing::{CoreDemand, Demand, Holder, MemoryDemand, Request, Resources};
use conuma_policy::{Held, Pin, Rules, Why, WhyNot};
use conuma_topology::{Bytes, NodeId};
use world::{World, name};

const AUTO: &str = "mode = \"auto\"\n";

fn two(policy: &str) -> World {
    let mut world = World::new("2n4c1t@4G", policy);
    world.vm("a", 4, "0-3", 1024);
    world.vm("b", 2, "4-7", 1024);
    for vm in ["a", "b"] {
        world.uses(vm, 0, 300);
        world.uses(vm, 1, 300);
    }
    world
}

#[test]
fn a_burst_gets_its_guarantee_and_more_and_all_goes_back() {
    let mut world = two(AUTO);
    world.load("a", 0.3);
    world.load("b", 20.0);
    world.run(20);
    assert_eq!((world.cores("a"), world.cores("b")), (1, 7), "what a does not need of its guarantee is lent");
    world.load("a", 6.0);
    world.report(100);
    world.report(400);
    let decision = world.decide();
    let guaranteed: usize = decision
        .moves
        .iter()
        .filter(|step| step.why == Why::Guarantee)
        .map(|step| world.layout.cores_in(&step.step.what.cpus).len())
        .sum();
    assert_eq!(guaranteed, 3, "{decision:#?}");
    world.carry_out(&decision);
    assert!(world.cores("a") >= 4, "at the first report");
    world.run(5);
    assert_eq!((world.cores("a"), world.cores("b")), (4, 4), "equal weights");
    world.load("a", 0.3);
    world.run(20);
    assert_eq!((world.cores("a"), world.cores("b")), (1, 7));
}

#[test]
fn a_guarantee_by_name_comes_back_core_by_core() {
    let mut world = World::new("2n4c1t@4G", AUTO);
    world.vm("a", 3, "3-5", 1024).guarantee =
        Demand { cores: Some(CoreDemand::Cpus("4-6".parse().unwrap())), memory: None };
    world.vm("b", 2, "0-2,6-7", 1024);
    world.load("a", 3.0);
    world.load("b", 9.0);
    world.run(20);
    assert_eq!(world.cpus("a"), "4-6");
    assert_eq!(world.cores("b"), 5);
}

#[test]
fn a_guarantee_that_is_not_to_be_lent_stays() {
    let mut world = two("mode = \"auto\"\n[tuning]\nlend_idle_guarantee = false\n");
    world.load("b", 20.0);
    world.run(20);
    assert_eq!((world.cores("a"), world.cores("b")), (4, 4));
}

#[test]
fn weights_priorities_and_limits_of_the_policy_count() {
    let mut world =
        two("mode = \"auto\"\n[vm.a]\nweight = 300\nguarantee = { cores = 1 }\n[vm.b]\nguarantee = { cores = 1 }\n");
    for vm in ["a", "b"] {
        world.load(vm, 20.0);
    }
    world.run(10);
    assert_eq!((world.cores("a"), world.cores("b")), (6, 2));
    let low = "mode = \"auto\"\n[vm.a]\npriority = \"low\"\nguarantee = { cores = 2 }\n[vm.b]\nlimit = { cores = 5 }\n";
    world.balancer.set_rules(Rules::parse(low, "p.toml").unwrap());
    world.run(10);
    assert_eq!((world.cores("a"), world.cores("b")), (3, 5));
    let decision = world.decide();
    let limit =
        |vm: &str| decision.rejected.iter().any(|rejected| rejected.vm == name(vm) && rejected.why == WhyNot::Limit);
    assert!(limit("b"), "{:#?}", decision.rejected);
}

#[test]
fn what_people_set_is_left_alone_until_its_end() {
    let mut world = two(AUTO);
    world.balancer.pins_mut().pin(name("a"), Pin { until: Some(Duration::from_secs(31)) });
    world.load("b", 20.0);
    world.run(25);
    assert_eq!((world.cores("a"), world.cores("b")), (4, 4));
    assert_eq!(world.decide().of(&name("a")).unwrap().held, Some(Held::Pinned));
    world.run(10);
    assert_eq!((world.cores("a"), world.cores("b")), (1, 7));
}

#[test]
fn hands_off_means_hands_off() {
    let mut world = two("mode = \"auto\"\n[vm.a]\nhands_off = true\n");
    world.load("b", 20.0);
    world.uses("b", 1, 1020);
    world.run(20);
    assert_eq!((world.cores("a"), world.mib("a", 1)), (4, 1024));
    assert_eq!(world.cores("b"), 4);
}

#[test]
fn a_vm_without_reports_keeps_what_it_has_but_for_the_guarantees_of_others() {
    let mut world = two(AUTO);
    world.loads.remove(&name("a"));
    world.load("b", 20.0);
    world.run(20);
    assert_eq!((world.cores("a"), world.cores("b")), (4, 4));
    world.vms.get_mut(&name("a")).unwrap().guarantee.cores = Some(CoreDemand::Count(1));
    world.vms.get_mut(&name("b")).unwrap().guarantee.cores = Some(CoreDemand::Count(6));
    world.run(5);
    assert_eq!((world.cores("a"), world.cores("b")), (2, 6));
}

#[test]
fn cores_come_near_their_memory() {
    let mut world = World::new("2n4c1t@4G", AUTO);
    world.vm("a", 2, "4-7", 1024);
    world.vm("b", 2, "0-3", 1024);
    world.uses("a", 0, 900);
    world.uses("b", 1, 900);
    world.load("a", 4.0);
    world.load("b", 4.0);
    world.run(30);
    assert_eq!((world.cpus("a").as_str(), world.cpus("b").as_str()), ("0-3", "4-7"));
    let settled = world.moved;
    world.run(120);
    assert_eq!(world.moved, settled);
}

#[test]
fn memory_goes_to_whom_it_is_short_before_it_stalls() {
    let mut world = two(AUTO);
    let reserve_free = world.pool.memory.clone();
    // Nothing is left in the pool.
    for (node, bytes) in reserve_free {
        let what = Resources::memory(node, bytes);
        assert!(world.pool.take(&what));
        world.vms.get_mut(&name("a")).unwrap().holding.add(&what);
    }
    let before = world.mib("b", 1);
    for step in 0..40 {
        world.uses("b", 1, 300 + 40 * step);
        world.run(1);
        let used = 300 + 40 * step;
        assert!(world.mib("b", 1) > used, "second {step}: {used} MiB used, {} MiB held", world.mib("b", 1));
    }
    assert!(world.mib("b", 1) > before + 700);
    assert!(world.mib("a", 1) >= 300, "what a uses stays");
}

#[test]
fn what_a_kernel_keeps_is_no_room() {
    // What a keeps of node 1 when b wants more of it than there is, and what b then holds, while all use 300 MiB.
    let held = |kept: u64| {
        let mut world = two(AUTO);
        for vm in ["a", "b"] {
            world.loads.get_mut(&name(vm)).unwrap().kept = Bytes::mib(kept);
        }
        world.run(60);
        let quiet = world.mib("b", 1);
        world.uses("b", 1, 4000);
        world.run(60);
        (world.mib("a", 1), quiet)
    };
    let (without, with) = (held(0), held(100));
    assert_eq!(without.1, with.1, "nobody is short");
    assert!(with.0 >= without.0 + 100, "{without:?}, {with:?}");
}

#[test]
fn nobody_has_more_than_it_holds_whatever_it_claims() {
    let mut world = two(AUTO);
    world.loads.get_mut(&name("a")).unwrap().kept = Bytes(u64::MAX);
    world.report(1000);
    world.report(1000);
    let decision = world.decide();
    let a = decision.vms.iter().find(|outlook| outlook.vm == name("a")).unwrap();
    let node = a.estimate.memory[&NodeId(1)];
    assert_eq!(node.in_use + node.kept, Bytes::mib(1024));
    assert!(node.wanted <= Bytes::mib(1024 + 45), "{node:?}");
}

#[test]
fn what_a_node_does_not_have_comes_from_the_nearest() {
    let mut world = World::new("2n4c1t@1G", AUTO);
    world.vm("a", 2, "0-3", 0);
    world.vm("b", 2, "4-7", 256);
    world.uses("b", 1, 250);
    world.load("b", 2.0);
    // All of node 1 is b's, and it wants more.
    world.run(60);
    world.uses("b", 1, 2000);
    world.run(60);
    // All but what is too little to move.
    assert!(world.mib("b", 1) > 700, "{}", world.mib("b", 1));
    assert!(world.mib("b", 0) > 256, "node 0: {} MiB, node 1: {} MiB", world.mib("b", 0), world.mib("b", 1));
}

#[test]
fn memory_that_is_guaranteed_anywhere_is_had_where_it_is() {
    let mut world = World::new("2n4c1t@4G", AUTO);
    world.vm("a", 2, "0-3", 240).guarantee.memory = Some(MemoryDemand::Total(Bytes::mib(2048)));
    let b = world.vm("b", 2, "4-7", 3600);
    let here = [(NodeId(0), Bytes::mib(3600))].into();
    b.guarantee.memory = Some(MemoryDemand::PerNode(here));
    // All of node 1 is b's, and b uses all of everything.
    let mut rest = world.pool.on(NodeId(1));
    rest += world.vms.get_mut(&name("a")).unwrap().holding.memory.remove(&NodeId(1)).unwrap();
    world.pool.memory.remove(&NodeId(1));
    world.vms.get_mut(&name("b")).unwrap().holding.add(&Resources::memory(NodeId(1), rest));
    world.uses("b", 0, 4000);
    world.uses("b", 1, 4000);
    world.uses("a", 0, 2000);
    world.report(1000);
    world.report(1000);
    let decision = world.decide();
    assert!(decision.of(&name("a")).unwrap().lacks_memory > Bytes::ZERO, "{decision:#?}");
    world.run(30);
    assert_eq!(world.mib("b", 0), 3600, "its own guarantee, all of which it uses");
    assert!(world.mib("a", 1) > 0, "nothing on node 1, of which nothing is free");
}

#[test]
fn a_host_that_is_short_gets_what_vms_do_not_need() {
    let mut world = World::new("1n4c1t@4G", AUTO);
    world.vm("a", 1, "0-1", 2000);
    world.vm("b", 1, "2-3", 1800);
    world.uses("a", 0, 1200);
    world.uses("b", 0, 400);
    world.run(5);
    let pool = world.pool.on(NodeId(0));
    for _ in 0..10 {
        world.host_available(0, 10);
        world.run(1);
    }
    assert!(world.pool.on(NodeId(0)) > pool + Bytes::mib(100), "{} was {pool}", world.pool.on(NodeId(0)));
    assert!(world.mib("a", 0) >= 1200 && world.mib("b", 0) >= 400);
}

#[test]
fn a_guest_that_presses_without_need_gets_its_share_at_most() {
    let mut world = two(AUTO);
    world.load("a", 6.0);
    world.load("b", 1e9);
    world.run(30);
    assert_eq!((world.cores("a"), world.cores("b")), (4, 4));
    world.load("a", 0.2);
    world.run(30);
    world.load("a", 4.0);
    world.run(2);
    assert!(world.cores("a") >= 4);
}

#[test]
fn moves_are_budgeted_but_for_guarantees() {
    let mut world = two("mode = \"auto\"\n[tuning]\nmoves_per_minute = 2\n");
    for round in 0..10 {
        let (a, b) = if round % 2 == 0 { (0.1, 20.0) } else { (2.0, 1.0) };
        world.load("a", a);
        world.load("b", b);
        world.run(12);
    }
    // Two minutes: twice the budget, and what guarantees asked for.
    let budget = 2 * 4 + 10 * 4;
    assert!(world.moved <= budget, "{} moves", world.moved);
    world.load("a", 9.0);
    world.load("b", 20.0);
    world.run(2);
    assert!(world.cores("a") >= 4);
}

#[test]
fn a_decision_explains_itself_and_becomes_requests() {
    let mut world = two(AUTO);
    world.load("a", 0.3);
    world.load("b", 20.0);
    world.uses("b", 1, 1020);
    world.report(1000);
    world.report(6000);
    let decision = world.decide();
    assert!(decision.score_after > decision.score_now + 5.0, "{} {}", decision.score_now, decision.score_after);
    let b = decision.of(&name("b")).unwrap();
    assert!(b.estimate.cores.waiting.unwrap() > 4.0 && b.share == 7, "{b:#?}");
    let requests = decision.requests();
    assert!(requests.len() >= 2, "cores and memory turn different knobs: {requests:#?}");
    for request in requests {
        let Request::Rebalance { moves, below, .. } = request else { panic!("another request") };
        let givers: Vec<_> = moves
            .iter()
            .filter_map(|step| match &step.from {
                Holder::Vm(vm) => Some(vm),
                _ => None,
            })
            .collect();
        assert!(givers.into_iter().all(|vm| below.contains(vm)));
    }
    let text = serde_json::to_string(&decision).unwrap();
    assert_eq!(serde_json::from_str::<conuma_policy::Decision>(&text).unwrap().moves, decision.moves);
}
