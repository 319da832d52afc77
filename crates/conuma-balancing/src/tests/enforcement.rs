//! What the host enforces without anybody's consent: guests without an agent, CPUs that are gone, memory that is touched
//! though it is not held.

use super::scenarios::{pair, run, shortfalls, works};
use super::world::*;
use crate::*;

/// `a` has no agent and is not meant to have one.
fn a_without_agent() -> World {
    let host = host(2, 4, 1, 8);
    let (a, b) = (spec(&host, "a", "0-3", 3), spec(&host, "b", "4-7", 3));
    let mut world = World::with(host, vec![VmSpec { agentless: true, ..a }, b]);
    world.disconnect(&name("a"));
    world
}

fn stages(report: &Report) -> Vec<Stage> {
    report.legs[0].stages.iter().map(|time| time.stage).collect()
}

#[test]
fn a_guest_without_an_agent_loses_cores_by_a_firm_gate_at_once_and_nobody_is_asked() {
    let mut world = a_without_agent();
    let began = world.now;
    let report = run(&mut world, lend("a", "b", of_cpus("2-3")), works);
    assert_eq!(report.verdict, Verdict::Complete);
    assert_eq!(stages(&report), [Stage::Force, Stage::Open, Stage::Enable]);
    assert!(report.legs[0].remarks.is_empty(), "{:?}", report.legs[0].remarks);
    assert_eq!(world.now, began, "nothing was waited for");
    assert_eq!(world.vms[&name("a")].open, cpus("0-1"));

    let back = run(&mut world, recall("a"), works);
    assert_eq!(back.verdict, Verdict::Complete);
    assert_eq!(stages(&back), [Stage::Quiesce, Stage::Close, Stage::Open]);
    assert!(back.legs[0].remarks.is_empty());
    world.run_until_settled();
    world.check();
}

#[test]
fn memory_of_a_guest_without_an_agent_moves_as_far_as_its_kernel_gives_it() {
    let mut world = a_without_agent();
    let report = run(&mut world, lend("a", "b", of_memory(1, 2)), works);
    assert_eq!(report.verdict, Verdict::Complete);
    assert_eq!(stages(&report), [Stage::Shrink, Stage::Grow, Stage::Confirm]);
    let back = run(&mut world, recall("a"), works);
    assert_eq!(back.verdict, Verdict::Complete);
    assert_eq!(stages(&back)[..], [Stage::Prepare, Stage::Shrink, Stage::Grow]);
    world.run_until_settled();
}

#[test]
fn a_guest_without_an_agent_that_keeps_its_memory_is_not_called_silent() {
    let mut world = a_without_agent();
    let request = lend("a", "b", of_memory(1, 1));
    let report = super::scenarios::run_with(&mut world, request, works, |_, vm, _| *vm != name("a"));
    assert_eq!(shortfalls(&report), [("node1=128M".into(), Reason::DonorKept, "a".into())]);
    assert!(world.engine.vm(&name("a")).unwrap().lends_memory);
    world.run_until_settled();
}

#[test]
fn a_guest_is_asked_again_as_soon_as_an_agent_appears() {
    let mut world = a_without_agent();
    run(&mut world, lend("a", "b", of_cpus("3")), works);
    world.connect(&name("a"));
    world.run_until_settled();
    assert_eq!(world.vms[&name("a")].using, Some(cpus("0-2")), "it is told what it lost");
    let report = run(&mut world, lend("a", "b", of_cpus("2")), works);
    assert_eq!(stages(&report), [Stage::Quiesce, Stage::Close, Stage::Open, Stage::Enable]);
}

#[test]
fn a_cpu_that_the_host_loses_is_stopped_firmly_and_comes_back_as_it_was() {
    let mut world = pair();
    world.tell(Event::HostCpus { offline: cpus("3") });
    let closes = |queue: &std::collections::VecDeque<Action>| {
        queue.iter().any(|action| matches!(&action.kind, ActionKind::CloseGate { grip: Grip::Stopped, cpus, .. } if cpus.contains(conuma_topology::CpuId(3))))
    };
    assert!(closes(&world.in_flight[&(name("a"), Lane::Gate)]));
    world.run_until_settled();
    assert_eq!((&world.vms[&name("a")].open, &world.vms[&name("a")].using), (&cpus("0-2"), &Some(cpus("0-2"))));
    assert_eq!(world.holds("a"), "CPUs 0-3, node0=384M, node1=384M", "it is not lost from the ledger");
    world.check();

    assert_eq!(world.ask(lend("a", "b", of_cpus("3"))).unwrap_err(), Refusal::Offline(cpus("3")));
    let report = run(&mut world, lend("a", "b", of_cores(1)), works);
    assert_eq!(report.legs[0].arrived.cpus, cpus("2"), "one that is of use");

    world.tell(Event::HostCpus { offline: cpus("") });
    world.run_until_settled();
    assert_eq!(world.vms[&name("a")].open, cpus("0-1,3"));
    let told: Vec<_> =
        world.notices.iter().filter(|notice| matches!(notice, Notice::HostCpus { .. })).cloned().collect();
    assert_eq!(told.len(), 2);
}

#[test]
fn a_soft_gate_on_a_cpu_that_the_host_loses_becomes_firm() {
    let mut world = pair();
    world.tell(Event::HostCpus { offline: cpus("0") });
    let action = world.in_flight[&(name("b"), Lane::Gate)].front().unwrap().kind.clone();
    let firmly = ActionKind::CloseGate { cpus: cpus("0"), grip: Grip::Stopped, watch: std::time::Duration::ZERO };
    assert_eq!(action, firmly, "the thread of b's vCPU 0 may run anywhere now");
    assert!(!world.engine.vm(&name("b")).unwrap().settled);
    world.run_until_settled();
    assert!(world.in_flight.values().all(|queue| queue.is_empty()), "once is enough");
    world.tell(Event::HostCpus { offline: cpus("") });
    world.tell(Event::HostCpus { offline: cpus("0") });
    assert_eq!(world.in_flight[&(name("b"), Lane::Gate)].front().unwrap().kind, firmly, "it may be soft again by now");
}

#[test]
fn a_vm_keeps_a_core_that_is_online() {
    let mut world = pair();
    world.tell(Event::HostCpus { offline: cpus("0") });
    world.run_until_settled();
    let excused = Request::Set { vm: name("a"), what: of_cpus("0"), below_guarantee: true };
    assert_eq!(world.ask(excused).unwrap_err(), Refusal::LastCore(name("a")));
}

#[test]
fn a_vm_that_starts_while_a_cpu_is_offline_is_not_let_onto_it() {
    let host = host(1, 4, 1, 8);
    let mut world = World::with(host.clone(), vec![spec(&host, "a", "0", 2)]);
    world.tell(Event::HostCpus { offline: cpus("3") });
    let late = spec(&host, "b", "2-3", 2);
    world.specs.insert(late.name.clone(), late.clone());
    assert_eq!(world.engine.start(late.clone(), world.now).unwrap_err(), Refusal::Offline(cpus("3")));
    world.tell(Event::HostCpus { offline: cpus("") });
    world.engine.start(late, world.now).unwrap();
    world.tell(Event::HostCpus { offline: cpus("3") });
    world.boot(&name("b"));
    world.connect(&name("b"));
    world.run_until_settled();
    assert_eq!(world.vms[&name("b")].open, cpus("2"));
}

#[test]
fn a_vm_that_uses_more_memory_than_it_holds_gets_none_until_it_does_not() {
    let mut world = pair();
    let audited = |trespasses| Event::MemoryAudited { vm: name("b"), trespasses };
    world.tell(audited(true));
    world.tell(audited(true));
    assert!(!world.engine.vm(&name("b")).unwrap().takes_memory);
    assert_eq!(world.ask(lend("a", "b", of_memory(1, 1))).unwrap_err(), Refusal::Trespasses(name("b")));
    let report = run(&mut world, lend("b", "a", of_memory(1, 1)), works);
    assert_eq!(report.verdict, Verdict::Complete, "it can give");
    let owed = run(&mut world, recall("b"), works);
    assert_eq!(owed.verdict, Verdict::Nothing, "{owed:#?}");
    assert_eq!(shortfalls(&owed)[0].1, Reason::Trespasses(name("b")));
    world.tell(audited(false));
    assert_eq!(run(&mut world, recall("b"), works).verdict, Verdict::Complete);
    let told = world.notices.iter().filter(|notice| matches!(notice, Notice::Trespasses { .. })).count();
    assert_eq!(told, 2, "once when it begins, once when it ends");
}
