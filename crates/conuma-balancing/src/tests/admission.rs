//! Guarantees that cannot all be kept are not given.

use super::world::*;
use crate::*;

/// Two nodes of two cores with two CPUs each and six units; `a` is guaranteed CPUs 0-1 and three units, `b` a core and one
/// unit of each node. Most of it is with the pool.
fn world() -> World {
    let host = host(2, 2, 2, 6);
    let mut a = spec(&host, "a", "0-1", 1);
    a.guarantee = Demand { cores: of_cpus("0-1").cores, memory: Some(MemoryDemand::Total(units(3))) };
    World::with(host.clone(), vec![a, spec(&host, "b", "4-5", 1)])
}

fn check(cores: Option<CoreDemand>, memory: Option<MemoryDemand>, expected: Result<&str, &str>) {
    let world = world();
    let mut c = spec(world.engine.host(), "c", "6-7", 1);
    c.guarantee = Demand { cores, memory };
    let plan = world.engine.preview_start(&c);
    let held = plan.map(|plan| plan.moves[0].what.to_string()).map_err(|refusal| refusal.to_string());
    assert_eq!(held, expected.map(Into::into).map_err(Into::into));
}

#[test]
fn a_guarantee_that_fits_is_given() {
    check(Some(CoreDemand::Count(2)), Some(MemoryDemand::Total(units(7))), Ok("CPUs 6-7"));
    check(of_cpus("2-3").cores, Some(MemoryDemand::PerNode(on(0, 4))), Ok("CPUs 6-7"));
    check(None, None, Ok("CPUs 6-7"));
}

#[test]
fn more_cores_than_there_are_cannot_be_guaranteed() {
    let others = "(a is guaranteed 1 core; b is guaranteed 1 core)";
    check(Some(CoreDemand::Count(3)), None, Err(&format!("c cannot be guaranteed that much: 1 core missing {others}")));
}

#[test]
fn a_cpu_is_guaranteed_to_one_vm_only() {
    let text = "c cannot be guaranteed that much: CPUs 0-1 missing (a is guaranteed CPUs 0-1)";
    check(of_cpus("0-3").cores, None, Err(text));
    // Half of another's core is another's core, too.
    check(of_cpus("1").cores, None, Err(text));
    check(of_cpus("8-9").cores, None, Err("c cannot be guaranteed that much: CPUs 8-9 missing"));
}

#[test]
fn more_memory_than_there_is_cannot_be_guaranteed() {
    check(
        None,
        Some(MemoryDemand::PerNode(on(0, 5))),
        Err("c cannot be guaranteed that much: 128M of node 0 missing \
             (a is guaranteed 128M of node 0; b is guaranteed 128M of node 0)"),
    );
    check(
        None,
        Some(MemoryDemand::Total(units(8))),
        Err("c cannot be guaranteed that much: 128M of memory missing \
             (a is guaranteed 384M of memory; b is guaranteed 256M of memory)"),
    );
}

#[test]
fn what_the_host_keeps_is_guaranteed_to_nobody() {
    let mut host = host(1, 4, 1, 4);
    host.reserve = Resources { cpus: cpus("0"), memory: on(0, 1) };
    let engine = Engine::new(host.clone(), Timing::default());
    let refusal = |guarantee| {
        let spec = VmSpec { guarantee, ..spec(&host, "a", "1", 1) };
        engine.preview_start(&spec).unwrap_err().to_string()
    };
    assert_eq!(refusal(of_cpus("0-1")), "a cannot be guaranteed that much: CPUs 0 missing");
    assert_eq!(refusal(of_cores(4)), "a cannot be guaranteed that much: 1 core missing");
    assert_eq!(refusal(of_memory(0, 4)), "a cannot be guaranteed that much: 128M of node 0 missing");
}
