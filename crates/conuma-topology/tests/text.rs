//! The text form: what each item means, what is refused and how, and that it reads back.
#![allow(clippy::unwrap_used, clippy::panic)]

use conuma_topology::{Bytes, CpuId, Machine, NodeId};
use proptest::prelude::*;

fn read(text: &str) -> Machine {
    text.parse().unwrap_or_else(|error| panic!("{text}: {error}"))
}

fn check_prints_as(text: &str, printed: &str) {
    assert_eq!(read(text).to_text(), printed, "of {text}");
}

fn check_refused(text: &str, column: usize, reason: &str) {
    let error = text.parse::<Machine>().expect_err(text);
    assert!(error.reason.contains(reason), "{text}: {error}");
    assert_eq!(error.column, column, "{text}: {error}");
}

#[test]
fn a_shape_counts_per_thing_to_its_left() {
    let machine = read("2p2n2l4c2t@8G");
    assert_eq!(machine.packages().len(), 2);
    assert_eq!(machine.nodes.len(), 4);
    assert_eq!(machine.llcs().len(), 8);
    assert_eq!(machine.cores.len(), 32);
    assert_eq!(machine.online_cpus().to_string(), "0-63");
    assert_eq!(machine.siblings(CpuId(17)).to_string(), "16-17");
    assert_eq!(machine.node_of(CpuId(17)), Some(NodeId(1)));
    assert_eq!(machine.total_memory(), Bytes::gib(32));
    assert_eq!(machine.distance(NodeId(0), NodeId(3)), Some(20));
}

#[test]
fn the_shortest_form_is_printed() {
    check_prints_as("4n2c1t@1G", "4n2c1t@1G");
    check_prints_as("4n2c@1G", "4n2c1t@1G");
    check_prints_as("2p1n2c2t@1G", "2n2c2t@1G");
    check_prints_as("2p2n4c2t@8G", "2p2n4c2t@8G");
    check_prints_as("1n2l4c2t", "1n2l4c2t");
    check_prints_as("node0 cpus=0-3 mem=1G; node1 cpus=4-7 mem=1G; smt=2", "2n2c2t@1G");
    check_prints_as("2n2c@1G; dist=10,21;21,10", "2n2c1t@1G; dist=10,21/21,10");
    check_prints_as(
        "node0 cpus=0-3 mem=4G; node1 mem=8G; node2 cpus=4-7; smt=2",
        "node0 cpus=0-3 mem=4G; node1 mem=8G; node2 cpus=4-7; smt=2",
    );
    check_prints_as("node0 cpus=0-7 mem=4G; cores=0,4/1,5/2,6/3,7", "node0 cpus=0-7 mem=4G; cores=0,4/1,5/2,6/3,7");
    check_prints_as("2n2c@1G; cpus=4-5", "node0 cpus=0-1 mem=1G; node1 cpus=2-3 mem=1G; cpus=4-5");
    check_prints_as(
        "4n2c1t@1G; dev 0000:3b:00.0 node=2 class=020000 gives=eth0",
        "4n2c1t@1G; dev 0000:3b:00.0 node=2 class=020000 gives=eth0",
    );
}

#[test]
fn nodes_may_add_to_a_shape() {
    let machine = read("2n2c@1G; node2 mem=2G; node1 mem=512M free=1M huge=2M:16:4");
    assert_eq!(machine.memory_nodes().to_string(), "0-2");
    assert_eq!(machine.cpu_nodes().to_string(), "0-1");
    assert_eq!(machine.memory_of(NodeId(1)), Bytes::mib(512));
    assert_eq!(machine.nodes[&NodeId(1)].huge_pages[&Bytes::mib(2)].free, 4);
}

#[test]
fn offline_cpus_belong_to_nothing() {
    let machine = read("2n2c2t@1G; off=3,7");
    assert_eq!(machine.online_cpus().to_string(), "0-2,4-6");
    assert_eq!(machine.offline_cpus().to_string(), "3,7");
    assert_eq!(machine.siblings(CpuId(2)).to_string(), "2");
    assert!(machine.siblings(CpuId(3)).is_empty());
    assert_eq!(read(&machine.to_text()), machine);
}

#[test]
fn errors_name_place_and_hint() {
    check_refused("", 1, "no node");
    check_refused("4n2x", 4, "not one of p, n, l, c, t");
    check_refused("4c2n", 3, "the order is");
    check_refused("4n2c@1Q", 6, "not an amount of memory");
    check_refused("9999n9999c", 1, "more than");
    check_refused("2n2c; 2n2c", 7, "must be the first item");
    check_refused("node0 cpus=0-x", 12, "not a number");
    check_refused("node0 cpu=0", 7, "expected cpus=");
    check_refused("node0 cpus=0; node1 cpus=0", 1, "on an earlier node");
    check_refused("2n2c; dist=10,20", 1, "2 rows of 2 numbers");
    check_refused("2n2c; dev 0000:00:01.0 node=7", 1, "not there");
    check_refused("2n2c; cores=0/1", 1, "in no core");
    check_refused("2n2c; llcs=0-9", 1, "on no node");
    check_refused("2n2c; wat=1", 7, "not known; expected a shape");
    check_refused("node0 mem=1G free=2G", 19, "more is free");
}

/// Texts of odd machines, from parts that fit together.
fn texts() -> impl Strategy<Value = String> {
    let shape = (1..3_u32, 1..4_u32, 1..3_u32, 1..4_u32, 1..3_u32, 0..5_u64).prop_map(|(p, n, l, c, t, mem)| {
        let cpus = p * n * l * c * t;
        (format!("{p}p{n}n{l}l{c}c{t}t@{mem}G"), p * n, cpus)
    });
    let off = proptest::collection::vec(0..60_u32, 0..4);
    (shape, off, proptest::option::of(1..9_u64), any::<bool>(), 10..30_u32).prop_map(
        |((shape, nodes, cpus), off, extra, device, far)| {
            let mut text = shape;
            let off: Vec<String> = off.into_iter().filter(|cpu| *cpu < cpus).map(|cpu| cpu.to_string()).collect();
            if !off.is_empty() {
                text += &format!("; off={}", off.join(","));
            }
            if let Some(memory) = extra {
                text += &format!("; node{} mem={memory}G huge=2M:3:1", nodes + 2);
            }
            if device {
                text += &format!("; dev 0000:01:00.0 node={} iommu=3", nodes - 1);
            }
            let nodes = nodes + u32::from(extra.is_some());
            let row =
                |from| (0..nodes).map(|to| if from == to { 10 } else { far + from }.to_string()).collect::<Vec<_>>();
            let rows: Vec<String> = (0..nodes).map(|from| row(from).join(",")).collect();
            text + "; dist=" + &rows.join("/")
        },
    )
}

proptest! {
    #[test]
    fn what_is_printed_reads_back_as_the_same_machine(text in texts()) {
        let machine = read(&text);
        let printed = machine.to_text();
        prop_assert_eq!(read(&printed), machine, "{}", printed);
    }

    #[test]
    fn printing_is_stable(text in texts()) {
        let printed = read(&text).to_text();
        prop_assert_eq!(read(&printed).to_text(), printed);
    }

    #[test]
    fn no_text_makes_it_panic(text in "[0-9pnlct@GM;=/:, \\-a-z]{0,40}") {
        let _ = text.parse::<Machine>();
    }
}
