//! What VMs are believed to want, and from which readings.

use conuma_api::{CoreEstimateInfo, EstimateInfo, NodeEstimateInfo};
use conuma_topology::Bytes;

use super::amount;
use crate::style::Style;
use crate::table::Table;

/// Estimates of several VMs, with their inputs.
pub(super) fn tables<'a>(vms: impl Iterator<Item = (&'a str, &'a EstimateInfo)>, style: Style) -> String {
    let mut cores =
        Table::new(&["vm", ">wants", ">held", ">used", ">waiting", ">stall", ">probe", ">memory stall", "why"])
            .indented(2);
    let mut memory = Table::new(&[
        "vm",
        ">node",
        ">wants",
        ">in use",
        ">cache",
        ">kernel",
        ">headroom",
        ">growth",
        ">refaults",
        "why",
    ])
    .indented(2);
    for (vm, estimate) in vms {
        if estimate.at_unix_ms.is_none() {
            let unknown = std::iter::repeat_n("-".to_owned(), 7);
            cores.row(std::iter::once(style.bold(vm)).chain(unknown).chain([estimate.cores.why.code.clone()]));
            continue;
        }
        let CoreEstimateInfo { wanted, used, waiting, stall, held, probe, why } = &estimate.cores;
        let known = |value: &Option<f64>| value.map_or("-".into(), |value| format!("{value:.1}"));
        cores.row([
            style.bold(vm),
            format!("{wanted:.1}"),
            held.to_string(),
            format!("{used:.1}"),
            known(waiting),
            percent(*stall),
            format!("{probe:.1}"),
            percent(memory_stall(estimate)),
            why.code.clone(),
        ]);
        for (node, estimate) in &estimate.memory {
            let row = [style.bold(vm), node.to_string()].into_iter().chain(amounts(estimate));
            memory.row(row.chain([estimate.why.code.clone()]));
        }
    }
    let text = if cores.is_empty() { String::new() } else { cores.render(style) };
    if memory.is_empty() { text } else { text + "\n" + &memory.render(style) }
}

/// The estimate of one VM, with its reasons in words.
pub(super) fn one(estimate: &EstimateInfo, style: Style) -> String {
    let CoreEstimateInfo { wanted, used, waiting, stall, held, probe, why } = &estimate.cores;
    let waited = stall.map(|stall| format!("a task waited for a CPU {} of the time", amount::part(stall)));
    let waiting = waiting.map(|waiting| format!("{waiting:.1}")).into_iter().chain(waited);
    let lines = [
        ("used", format!("{used:.1}")),
        ("waiting", waiting.collect::<Vec<_>>().join(", ")),
        ("probe", if *probe > 0.0 { format!("{probe:.1} beyond what the load shows") } else { String::new() }),
        ("why", why.text.clone()),
    ];
    let mut text = format!("{}: wants {wanted:.1}, held {held}\n", style.bold("Cores"));
    for (key, value) in lines.iter().filter(|(_, value)| !value.is_empty()) {
        text.push_str(&format!("  {}{value}\n", style.dim(&format!("{key:<9}"))));
    }
    if estimate.memory.is_empty() {
        return text;
    }
    let mut table =
        Table::new(&[">node", ">wants", ">in use", ">cache", ">kernel", ">headroom", ">growth", ">refaults"])
            .indented(2);
    for (node, estimate) in &estimate.memory {
        table.row(std::iter::once(node.to_string()).chain(amounts(estimate)));
    }
    text.push_str(&format!("\n{}\n{}", style.bold("Memory by host node"), table.render(style)));
    if let Some(stall) = memory_stall(estimate) {
        text.push_str(&format!("  a task waited for memory {} of the time\n", amount::part(stall)));
    }
    for (node, estimate) in &estimate.memory {
        text.push_str(&format!("  node {node}: {}\n", estimate.why.text));
    }
    text
}

/// Wanted, in use, cache, what the kernel keeps, headroom, growth, refaults.
fn amounts(estimate: &NodeEstimateInfo) -> [String; 7] {
    let NodeEstimateInfo { wanted, in_use, cache, kept, headroom, growth, refaults, stall: _, why: _ } = estimate;
    [
        wanted.to_string(),
        in_use.to_string(),
        cache.to_string(),
        kept.to_string(),
        headroom.to_string(),
        growth.to_string(),
        // Saturates, and is 0 for what is no number.
        refaults.map_or("-".into(), |bytes| format!("{}/s", Bytes(bytes as u64))),
    ]
}

/// It is counted for all nodes together.
fn memory_stall(estimate: &EstimateInfo) -> Option<f64> {
    estimate.memory.values().filter_map(|node| node.stall).reduce(f64::max)
}

fn percent(part: Option<f64>) -> String {
    part.map_or("-".into(), amount::part)
}
