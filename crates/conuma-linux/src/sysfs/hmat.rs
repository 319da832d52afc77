//! Latencies and bandwidths that firmware promises (ACPI HMAT), as the kernel shows them below
//! `nodeN/accessM/initiators`.

use conuma_topology::{HmatLink, Machine, NodeId, NodeSet};

use super::nodes::NODES;
use super::tree::Tree;

/// Reads the links of all nodes.
pub(super) fn read(tree: &Tree, machine: &mut Machine) {
    let targets: Vec<NodeId> = machine.nodes.keys().copied().collect();
    for target in targets {
        for access_class in tree.numbered(&format!("{NODES}/node{target}"), "access") {
            let directory = format!("{NODES}/node{target}/access{access_class}/initiators");
            if !tree.has_directory(&directory) {
                continue;
            }
            let numbers = tree.numbered(&directory, "node").into_iter().filter(|n| *n < 65_536);
            let initiators: NodeSet = numbers.map(NodeId).collect();
            let known = |file: &str| tree.value(&format!("{directory}/{file}")).filter(|value: &u64| *value > 0);
            machine.hmat.push(HmatLink {
                initiators,
                target,
                access_class,
                read_latency_ns: known("read_latency"),
                write_latency_ns: known("write_latency"),
                read_bandwidth_mbps: known("read_bandwidth"),
                write_bandwidth_mbps: known("write_bandwidth"),
            });
        }
    }
}
