//! Contradictions are found, and machines from texts have none.
#![allow(clippy::unwrap_used)]

use conuma_topology::{Bytes, CoreId, CpuId, LlcId, Machine, NodeId, Problem};

const PLAIN: &str = "2n2c2t@1G; dev 0000:01:00.0 node=1";

fn check(break_it: impl FnOnce(&mut Machine), expected: &str) {
    let mut machine: Machine = PLAIN.parse().unwrap();
    assert_eq!(machine.validate(), Ok(()));
    break_it(&mut machine);
    let problems = machine.validate().expect_err(expected);
    let texts: Vec<String> = problems.iter().map(Problem::to_string).collect();
    assert!(texts.iter().any(|text| text.contains(expected)), "{expected}: {texts:?}");
}

#[test]
fn every_contradiction_is_found() {
    check(|m| m.cpus.values_mut().for_each(|cpu| cpu.online = false), "no CPU is online");
    check(|m| m.nodes.clear(), "there is no node");
    check(|m| _ = m.nodes.get_mut(&NodeId(1)).unwrap().cpus.insert(CpuId(9)), "lists CPUs 9");
    check(|m| _ = m.nodes.get_mut(&NodeId(1)).unwrap().cpus.insert(CpuId(0)), "are on a lower node too");
    check(|m| m.cpus.get_mut(&CpuId(0)).unwrap().node = Some(NodeId(1)), "says that it is on node 1");
    check(|m| _ = m.nodes.get_mut(&NodeId(0)).unwrap().cpus.remove(CpuId(0)), "listed on no node");
    check(|m| m.nodes.get_mut(&NodeId(0)).unwrap().memory.as_mut().unwrap().free = Bytes::gib(2), "2G free");
    check(|m| m.cores.get_mut(&CoreId(0)).unwrap().cpus = [CpuId(0), CpuId(2)].into(), "in a lower core too");
    check(|m| m.cores.get_mut(&CoreId(0)).unwrap().cpus = [CpuId(0), CpuId(4)].into(), "has CPUs on nodes 0-1");
    check(|m| m.cores.get_mut(&CoreId(0)).unwrap().cpus = [CpuId(99)].into(), "offline or not there");
    check(|m| m.cpus.get_mut(&CpuId(3)).unwrap().core = None, "CPUs 3 are online but not in the core");
    check(|m| m.cpus.get_mut(&CpuId(3)).unwrap().llc = Some(LlcId(1)), "does not list it");
    check(|m| m.caches.push(m.caches[0].clone()), "several level 3 caches list CPUs 0-3");
    check(|m| m.distances.values[0].push(20), "one row and column for each node");
    check(|m| m.distances.nodes[1] = NodeId(7), "one row and column for each node");
    check(|m| m.distances.values[0][1] = 9, "from node 0 to node 1 is 9, below 10");
    check(|m| m.distances.values[1][1] = 25, "from node 1 to node 0 is 20, below 25");
    check(|m| m.devices.values_mut().for_each(|d| d.home = Some(NodeId(5))), "at home on node 5");
    check(|m| m.devices.values_mut().for_each(|d| d.physical_function = "02:00.0".parse().ok()), "virtual function of");
}
