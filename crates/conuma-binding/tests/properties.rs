//! What holds for the replica and plan of every machine.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

use std::collections::BTreeMap;
use std::path::Path;

use conuma_binding::{Accel, BindingPlan, LlcLevel, PlanOptions, Replica, Reserve, VmSpec};
use conuma_topology::{Bytes, CpuId, CpuSet, GuestCpuId, GuestNodeId, Machine, NodeId};
use proptest::prelude::*;

/// Machines with holes in all numberings: sockets and nodes of odd core counts, cores of one or two CPUs, nodes
/// without CPUs or memory, siblings next to each other or far apart, asymmetric distances.
fn machines() -> impl Strategy<Value = Machine> {
    let node = (prop::collection::vec(1_u32..=2, 0..5), prop::option::of(1_u64..8), 1_u32..4);
    (prop::collection::vec(node, 1..6), any::<bool>(), prop::collection::vec(10_u32..60, 36))
        .prop_filter_map("needs a CPU and memory", |(nodes, far, distances)| build(&nodes, far, &distances))
}

fn build(nodes: &[(Vec<u32>, Option<u64>, u32)], far: bool, distances: &[u32]) -> Option<Machine> {
    let total: u32 = nodes.iter().map(|(cores, ..)| cores.len() as u32).sum();
    if total == 0 || nodes.iter().all(|(_, memory, _)| memory.is_none()) {
        return None;
    }
    let (mut items, mut cores, mut packages) = (Vec::new(), Vec::new(), Vec::new());
    let (mut next_cpu, mut core_count, mut id) = (0, 0, 0);
    for (threads, memory, gap) in nodes {
        let mut cpus = Vec::new();
        for count in threads {
            let pair: Vec<u32> = match (count, far) {
                (1, _) => vec![next_cpu],
                (_, true) => vec![next_cpu, 100 + core_count],
                (_, false) => vec![next_cpu, next_cpu + 1],
            };
            next_cpu += if far { 1 } else { *count } + u32::from(*gap == 3);
            core_count += 1;
            cores.push(list(&pair));
            cpus.extend(pair);
        }
        let mut item = format!("node{id}");
        if !cpus.is_empty() {
            item.push_str(&format!(" cpus={}", list(&cpus)));
            packages.push(list(&cpus));
        }
        if let Some(gib) = memory {
            item.push_str(&format!(" mem={gib}G"));
        }
        items.push(item);
        id += gap;
    }
    let count = nodes.len();
    let at = |from: usize, to: usize| if from == to { 10 } else { distances[from * 6 + to].max(11) };
    let rows: Vec<String> =
        (0..count).map(|from| (0..count).map(|to| at(from, to).to_string()).collect::<Vec<_>>().join(",")).collect();
    items.push(format!("cores={}", cores.join("/")));
    items.push(format!("packages={}", packages.join("/")));
    items.push(format!("dist={}", rows.join("/")));
    let text = items.join("; ");
    Some(text.parse().unwrap_or_else(|error| panic!("{text}: {error}")))
}

fn list(ids: &[u32]) -> String {
    ids.iter().map(u32::to_string).collect::<Vec<_>>().join(",")
}

fn replica(machine: &Machine) -> Replica {
    Replica::new(machine, &machine.memory_nodes()).unwrap()
}

proptest! {
    #[test]
    fn every_online_cpu_is_bound_to_exactly_one_vcpu(machine in machines()) {
        let replica = replica(&machine);
        prop_assert_eq!(replica.cpus(), machine.online_cpus());
        prop_assert_eq!(replica.vcpus.len(), machine.online_cpus().len());
        prop_assert!(replica.vcpus.is_sorted_by_key(|vcpu| vcpu.id));
        prop_assert_eq!(replica.vcpus[0].id.0, 0, "the guest boots on the first place");
        for (rank, vcpu) in replica.vcpus.iter().enumerate() {
            prop_assert_eq!(vcpu.guest_cpu, GuestCpuId(rank as u32));
            prop_assert_eq!(replica.smp.vcpu(vcpu.slot), vcpu.id);
            prop_assert_eq!(replica.smp.slot(vcpu.id), vcpu.slot);
            prop_assert!(u64::from(vcpu.id.0) < replica.smp.places());
        }
    }

    #[test]
    fn siblings_are_siblings(machine in machines()) {
        let replica = replica(&machine);
        for a in &replica.vcpus {
            for b in &replica.vcpus {
                let core = |slot: conuma_binding::Slot| (slot.socket, slot.die, slot.module, slot.core);
                prop_assert_eq!(core(a.slot) == core(b.slot), machine.core_of(a.cpu) == machine.core_of(b.cpu));
                let package = |cpu: CpuId| machine.cpus[&cpu].package;
                prop_assert_eq!(a.slot.socket == b.slot.socket, package(a.cpu) == package(b.cpu));
            }
        }
    }

    #[test]
    fn nodes_are_kept(machine in machines()) {
        let replica = replica(&machine);
        let hosts: BTreeMap<NodeId, GuestNodeId> = replica.nodes.iter().map(|node| (node.host, node.id)).collect();
        prop_assert!(hosts.keys().eq(machine.nodes.keys()));
        for (at, node) in replica.nodes.iter().enumerate() {
            prop_assert_eq!(node.id, GuestNodeId(at as u32));
            prop_assert_eq!(&replica.cpus_of(&node.vcpus), &machine.nodes[&node.host].cpus);
        }
        // The guest's Linux numbers nodes as it meets them, vCPUs first.
        let mut met = Vec::new();
        for node in replica.nodes_of_places() {
            if !met.contains(&node) {
                met.push(node);
            }
        }
        prop_assert!(met.iter().enumerate().all(|(at, node)| node.0 == at as u32), "{met:?}");
        for vcpu in &replica.vcpus {
            prop_assert_eq!(replica.nodes_of_places()[vcpu.id.0 as usize], vcpu.node);
            prop_assert_eq!(Some(hosts[&machine.node_of(vcpu.cpu).unwrap()]), Some(vcpu.node));
        }
    }

    #[test]
    fn distances_are_equal(machine in machines()) {
        let replica = replica(&machine);
        for from in &replica.nodes {
            for to in &replica.nodes {
                let distance = replica.distances[from.id.0 as usize][to.id.0 as usize];
                prop_assert_eq!(Some(distance), machine.distance(from.host, to.host));
            }
        }
    }

    #[test]
    fn ids_map_there_and_back(machine in machines(), picked in prop::collection::vec(any::<bool>(), 40)) {
        let replica = replica(&machine);
        let cpus: CpuSet = machine.online_cpus().iter().zip(picked).filter(|(_, take)| *take).map(|(cpu, _)| cpu).collect();
        prop_assert_eq!(&replica.cpus_of(&replica.vcpus_on(&cpus)), &cpus);
        prop_assert_eq!(&replica.host_cpus(&replica.guest_cpus(&cpus)), &cpus);
        for node in machine.nodes.keys() {
            prop_assert_eq!(replica.guest_node(*node).and_then(|guest| replica.host_node(guest)), Some(*node));
        }
    }

    #[test]
    fn memory_never_exceeds_what_a_node_has(machine in machines(), boot in 1_u64..600, reserve in 0_u64..3000) {
        let spec = format!("name = \"a\"\n[guarantee]\n[boot]\nmemory_per_node = \"{}M\"", boot * 2);
        let spec = VmSpec::parse(&spec, "a.toml").unwrap();
        let reserve = Reserve { memory_per_node: Bytes::mib(reserve), ..Reserve::default() };
        let options = PlanOptions { accel: Accel::Kvm, cid: None, dir: Path::new("/a").to_owned() };
        let Ok(plan) = BindingPlan::new(&spec, &machine, &reserve, &options) else { return Ok(()) };
        prop_assert_eq!(plan.memory.len(), machine.nodes.len());
        for node in &plan.memory {
            let usable = machine.memory_of(node.host).saturating_sub(reserve.memory_per_node);
            prop_assert!(node.boot + node.maximum <= usable);
            prop_assert!(node.boot <= spec.boot.memory_per_node);
            prop_assert_eq!(node.maximum, node.maximum.round_down(plan.memory_unit));
            // Less than a block of the guest's kernel is lost.
            prop_assert!(node.boot.is_zero() || usable.saturating_sub(node.boot + node.maximum) < Bytes::mib(128));
        }
        prop_assert!(plan.envelope_cpus.is_subset(&machine.online_cpus()));
    }
}

#[test]
fn caches_of_dense_machines_are_at_a_level() {
    for (text, level) in [
        ("2n4c2t@1G", LlcLevel::Die),
        ("2p2n1l4c@1G", LlcLevel::Module),
        ("1p2n2l4c2t@1G", LlcLevel::Module),
        ("1n4l1c2t@1G", LlcLevel::Core),
        ("node0 cpus=0-7 mem=1G; packages=0-7; dies=0-3/4-7; llcs=0-7", LlcLevel::Socket),
        ("node0 cpus=0-7 mem=1G; packages=0-7; dies=0-3/4-7; llcs=0-3/4-7", LlcLevel::Die),
    ] {
        let machine: Machine = text.parse().unwrap();
        assert_eq!(replica(&machine).llc, Some(level), "{text}");
    }
}

#[test]
fn identity_where_the_host_numbers_as_qemu_does() {
    let machine: Machine = "2p2n2l4c2t@1G".parse().unwrap();
    let replica = replica(&machine);
    assert!(replica.vcpus.iter().all(|vcpu| vcpu.id.0 == vcpu.cpu.0 && vcpu.guest_cpu.0 == vcpu.cpu.0));
    assert!(replica.is_regular());
}

#[test]
fn largest_apic_id_counts_bits_not_places() {
    let machine: Machine = "3n3c@1G".parse().unwrap();
    // Two bits for three cores, then three sockets.
    assert_eq!(replica(&machine).smp.largest_apic_id(), 0b1010);
    let machine: Machine = "16n64c2t@64G".parse().unwrap();
    assert_eq!(replica(&machine).smp.largest_apic_id(), 2047);
}

#[test]
fn impossible_machines_are_errors() {
    for text in ["node0 mem=1G", "node0 cpus=0-4999 mem=64G"] {
        let machine: Machine = text.parse().unwrap();
        assert!(Replica::new(&machine, &machine.memory_nodes()).is_err(), "{text}");
    }
}
