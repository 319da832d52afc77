//! What starting a VM would do.

use std::collections::BTreeSet;

use conuma_api::StartPlan;
use conuma_topology::CpuSet;

use super::amount;
use crate::style::Style;
use crate::table::Table;

/// Holding, bindings and memory by node, notes.
pub fn preview(plan: &StartPlan, style: Style) -> String {
    let bound: CpuSet = plan.vcpus.values().copied().collect();
    let identity = plan.vcpus.iter().all(|(vcpu, cpu)| vcpu.0 == cpu.0);
    let map = if identity { "each to the CPU of its own number" } else { "see --json for which to which" };
    let mut text = format!("{} would start\n", style.bold(plan.name.as_str()));
    text.push_str(&format!("  holding  {}\n", amount::resources(&plan.holding)));
    text.push_str(&format!("  vCPUs    {}, bound to CPUs {bound} ({map})\n\n", plan.vcpus.len()));
    let mut table = Table::new(&["node", ">boot memory", ">can grow by"]).indented(2);
    let nodes: BTreeSet<_> = plan.boot_memory.keys().chain(plan.memory_devices.keys()).collect();
    for node in nodes {
        let boot = plan.boot_memory.get(node).copied().unwrap_or_default();
        let device = plan.memory_devices.get(node).copied().unwrap_or_default();
        table.row([node.to_string(), boot.to_string(), device.to_string()]);
    }
    text.push_str(&table.render(style));
    for note in &plan.notes {
        text.push_str(&format!("{} {note}\n", style.dim("note:")));
    }
    text
}
