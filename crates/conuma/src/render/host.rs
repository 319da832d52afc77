//! The host: who holds which core and how much of each node's memory.

use std::collections::BTreeMap;

use conuma_api::{CheckReport, Holder, HostInfo, LedgerInfo};
use conuma_topology::{Bytes, CpuSet, Machine, NodeId};

use super::amount;
use super::grid::{GridNode, Owner, grid};
use crate::style::Style;

/// The whole host, and whether the invariants hold.
pub fn show(host: &HostInfo, check: &CheckReport, style: Style) -> String {
    let mut text = grid(&nodes(&host.machine, &host.ledger), style);
    if !host.ledger.loans.is_empty() {
        text.push_str(&format!("\n{}\n", style.bold("Loans")));
    }
    for loan in &host.ledger.loans {
        text.push_str(&format!("  {} lent {}\n", loan.lender, amount::lent(loan)));
    }
    text + "\n" + &invariants(check, style)
}

/// What was found when ledger and reality were compared.
pub fn invariants(check: &CheckReport, style: Style) -> String {
    let mut lines = Vec::new();
    if check.ok {
        lines.push(format!("{} ledger and reality agree, nothing is used twice", style.good("ok")));
    }
    lines.extend(check.violations.iter().map(|v| format!("{} {}", style.bad("violated:"), v.message)));
    lines.extend(check.unseen.iter().map(|unseen| format!("{} {unseen}", style.warn("not looked at:"))));
    lines.join("\n") + "\n"
}

fn nodes(machine: &Machine, ledger: &LedgerInfo) -> Vec<GridNode> {
    let mut nodes: BTreeMap<NodeId, GridNode> = BTreeMap::new();
    let mut cpus: BTreeMap<NodeId, CpuSet> = BTreeMap::new();
    for node in machine.nodes.keys() {
        nodes.insert(*node, GridNode { node: node.0, ..GridNode::default() });
    }
    for core in &ledger.cores {
        // A core of no known node is drawn with the first.
        let Some(node) = core.node.or_else(|| machine.nodes.keys().next().copied()) else { continue };
        nodes
            .entry(node)
            .or_insert_with(|| GridNode { node: node.0, ..GridNode::default() })
            .cores
            .push(owner(&core.holder));
        cpus.entry(node).or_default().extend(core.cpus.iter());
    }
    for share in &ledger.nodes {
        let Some(node) = nodes.get_mut(&share.node) else { continue };
        node.memory = Some(share.capacity);
        for part in &share.shares {
            *node.parts.entry(owner(&part.holder)).or_insert(Bytes::ZERO) += part.bytes;
        }
    }
    for (node, set) in cpus {
        if let Some(grid) = nodes.get_mut(&node) {
            grid.cpus = set.to_string();
        }
    }
    nodes.into_values().collect()
}

fn owner(holder: &Holder) -> Owner {
    match holder {
        Holder::Pool => Owner::Free,
        Holder::Reserve => Owner::Reserve,
        Holder::Vm(vm) => Owner::Vm(vm.to_string()),
        Holder::Transit(_) => Owner::Moving,
    }
}
