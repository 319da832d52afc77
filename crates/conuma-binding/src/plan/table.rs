//! A plan as text for people.

use std::fmt::Write;

use conuma_topology::{CpuSet, GuestCpuSet, Id, VcpuSet};

use super::{BindingPlan, Bridge};
use crate::replica::LlcLevel;

/// The plan as a table of at most 100 columns for usual hosts, ending with a line break.
pub fn render_table(plan: &BindingPlan) -> String {
    let mut text = String::new();
    text.push_str(&summary(plan));
    text.push('\n');
    text.push_str(&columns(&nodes(plan)));
    if plan.replica.nodes.len() > 1 {
        text.push('\n');
        text.push_str(&columns(&distances(plan)));
    }
    if !plan.bridges.is_empty() {
        text.push('\n');
        text.push_str(&columns(&devices(plan)));
    }
    for note in &plan.notes {
        let _ = write!(text, "\nnote: {note}");
    }
    if !plan.notes.is_empty() {
        text.push('\n');
    }
    text
}

fn summary(plan: &BindingPlan) -> String {
    let smp = &plan.replica.smp;
    let mut shape = vec![(smp.sockets, "socket")];
    shape.extend((smp.dies > 1).then_some((smp.dies, "die")));
    shape.extend((smp.modules > 1).then_some((smp.modules, "module")));
    shape.extend([(smp.cores, "core"), (smp.threads, "thread")]);
    let shape: Vec<String> =
        shape.into_iter().map(|(n, what)| format!("{n} {what}{}", if n == 1 { "" } else { "s" })).collect();
    let empty = smp.places() - plan.replica.vcpus.len() as u64;
    let llc = match plan.replica.llc {
        Some(LlcLevel::Core) => "one per core",
        Some(LlcLevel::Module) => "one per module",
        Some(LlcLevel::Die) => "one per die",
        Some(LlcLevel::Socket) => "one per socket",
        None => "as QEMU's default",
    };
    let rows = [
        ("VM", plan.name.to_string()),
        (
            "vCPUs",
            format!(
                "{}: {}{}",
                plan.replica.vcpus.len(),
                shape.join(" x "),
                if empty > 0 { format!(", {empty} places empty") } else { String::new() }
            ),
        ),
        ("last-level caches", llc.into()),
        ("may use CPUs", plan.envelope_cpus.to_string()),
        ("QEMU's own threads", format!("CPUs {}", plan.emulator_cpus)),
        ("vsock CID", plan.cid.map_or("none".into(), |cid| cid.to_string())),
    ];
    rows.iter().map(|(key, value)| format!("{key:<19} {value}\n")).collect()
}

fn nodes(plan: &BindingPlan) -> Vec<Vec<String>> {
    let head = ["guest node", "host node", "vCPUs", "bound to CPUs", "guest CPUs", "boot memory", "can grow by"];
    let mut rows = vec![head.map(String::from).to_vec()];
    for (node, memory) in plan.replica.nodes.iter().zip(&plan.memory) {
        let cpus: CpuSet = plan.replica.cpus_of(&node.vcpus);
        let guest: GuestCpuSet = plan.replica.guest_cpus(&cpus);
        rows.push(vec![
            node.id.to_string(),
            node.host.to_string(),
            vcpus_text(&node.vcpus),
            or_dash(bindings(plan, &node.vcpus)),
            or_dash(guest.to_string()),
            memory.boot.to_string(),
            if memory.is_flexible() { memory.maximum.to_string() } else { "-".into() },
        ]);
    }
    rows
}

/// The CPUs in the order of the vCPUs, so that the first belongs to the first: `0,8,1,9`. Long lists that run
/// with a steady stride are shortened.
fn bindings(plan: &BindingPlan, vcpus: &VcpuSet) -> String {
    let cpus: Vec<u32> =
        plan.replica.vcpus.iter().filter(|vcpu| vcpus.contains(vcpu.id)).map(|vcpu| vcpu.cpu.number()).collect();
    let mut parts: Vec<String> = Vec::new();
    let mut rest = cpus.as_slice();
    while let [first, ..] = rest {
        let run = rest.iter().zip(*first..).take_while(|(cpu, wanted)| *cpu == wanted).count();
        parts.push(if run == 1 { first.to_string() } else { format!("{first}-{}", first + run as u32 - 1) });
        rest = &rest[run..];
    }
    if parts.len() <= 12 {
        return parts.join(",");
    }
    format!("{},..,{}", parts[..6].join(","), parts[parts.len() - 2..].join(","))
}

fn vcpus_text(vcpus: &VcpuSet) -> String {
    or_dash(vcpus.to_string())
}

fn or_dash(text: String) -> String {
    if text.is_empty() { "-".into() } else { text }
}

fn distances(plan: &BindingPlan) -> Vec<Vec<String>> {
    let mut head = vec!["distance".to_owned()];
    head.extend(plan.replica.nodes.iter().map(|node| node.id.to_string()));
    let mut rows = vec![head];
    for (node, row) in plan.replica.nodes.iter().zip(&plan.replica.distances) {
        let mut cells = vec![node.id.to_string()];
        cells.extend(row.iter().map(u32::to_string));
        rows.push(cells);
    }
    rows
}

fn devices(plan: &BindingPlan) -> Vec<Vec<String>> {
    let mut rows = vec![["device", "guest node", "host node"].map(String::from).to_vec()];
    for Bridge { node, devices, .. } in &plan.bridges {
        let host = node.and_then(|node| plan.replica.host_node(node));
        for address in devices {
            rows.push(vec![
                address.to_string(),
                node.map_or("-".into(), |node| node.to_string()),
                host.map_or("-".into(), |host| host.to_string()),
            ]);
        }
    }
    rows
}

fn columns(rows: &[Vec<String>]) -> String {
    let width = |column: usize| rows.iter().filter_map(|row| row.get(column)).map(String::len).max().unwrap_or(0);
    let widths: Vec<usize> = (0..rows.first().map_or(0, Vec::len)).map(width).collect();
    let line = |row: &Vec<String>| {
        let cells: Vec<String> = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
        format!("{}\n", cells.join("  ").trim_end())
    };
    rows.iter().map(line).collect()
}
