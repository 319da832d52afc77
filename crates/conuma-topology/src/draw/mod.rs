//! A machine as a drawing in text: a box for each node with its caches, cores, memory and devices,
//! the distances, and what was odd.

mod boxes;
mod devices;
mod node;

use std::collections::BTreeSet;

use boxes::{Block, bold, clean, rows, wrap, wrap_text};

use crate::ids::{CoreId, NodeId, PackageId};
use crate::machine::{HmatLink, Machine};
use crate::set::CpuSet;

/// Less than this many columns are of no use; a narrower drawing is as wide as this.
const LEAST_WIDTH: usize = 40;

/// A box with less room than this is rather alone in its row.
const LEAST_INNER: usize = 32;

/// How a machine is drawn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DrawOptions {
    /// Columns to stay within where possible.
    pub width: usize,
    /// Whether to use escape sequences for bold titles.
    pub color: bool,
}

impl Default for DrawOptions {
    fn default() -> Self {
        Self { width: 100, color: false }
    }
}

/// Draws a machine, every line ended.
pub fn draw(machine: &Machine, options: &DrawOptions) -> String {
    let drawing = Drawing { machine, width: options.width.max(LEAST_WIDTH), color: options.color };
    let sections = [
        drawing.summary(),
        drawing.nodes(),
        drawing.legend(),
        drawing.elsewhere(),
        drawing.distances(),
        drawing.hmat(),
        drawing.notes(),
    ];
    let mut text = String::new();
    for section in sections.iter().filter(|section| !section.is_empty()) {
        if !text.is_empty() {
            text.push('\n');
        }
        for line in section {
            text.push_str(line.trim_end());
            text.push('\n');
        }
    }
    text
}

/// Columns for the text in each of several boxes: so that two stand side by side where that leaves
/// room enough to read.
fn inner_width(width: usize, boxes: usize) -> usize {
    let half = (width - 1) / 2 - 4;
    if boxes > 1 && half >= LEAST_INNER { half } else { width - 4 }
}

struct Drawing<'a> {
    machine: &'a Machine,
    width: usize,
    color: bool,
}

impl Drawing<'_> {
    fn head(&self, text: &str) -> String {
        bold(text, self.color)
    }

    fn summary(&self) -> Vec<String> {
        let machine = self.machine;
        let mut words = vec![
            counted(machine.nodes.len(), "node"),
            counted(machine.packages().len(), "package"),
            counted(machine.cores.len(), "core"),
            counted(machine.online_cpus().len(), "CPU"),
            format!("{} of memory", machine.total_memory()),
        ];
        words.retain(|word| !word.starts_with("0 "));
        vec![self.head(&words.join(", "))]
    }

    /// Nodes in the order of their numbers; nodes of one package within its box.
    fn nodes(&self) -> Vec<String> {
        let several_packages = self.machine.packages().len() > 1;
        // Where every node is the package of its number, the number says it all.
        let same = |id: &NodeId| self.only_package(*id) == Some(PackageId(id.0));
        let name_package = several_packages && !self.machine.cpu_nodes().iter().all(|id| same(&id));
        let inner = inner_width(self.width, self.machine.nodes.len());
        let mut blocks = Vec::new();
        let mut drawn = BTreeSet::<NodeId>::new();
        for (id, node) in &self.machine.nodes {
            if !drawn.insert(*id) {
                continue;
            }
            let package = self.only_package(*id);
            let together: Vec<NodeId> = match package {
                Some(package) => {
                    self.machine.nodes.keys().copied().filter(|id| self.only_package(*id) == Some(package)).collect()
                }
                None => vec![*id],
            };
            match package.filter(|_| several_packages && together.len() > 1) {
                Some(package) => {
                    drawn.extend(&together);
                    blocks.push(self.package_block(package, &together));
                }
                None => blocks.push(node::block(self.machine, *id, node, inner, name_package)),
            }
        }
        rows(&blocks, self.width, self.color)
    }

    fn package_block(&self, package: PackageId, nodes: &[NodeId]) -> Block {
        let width = self.width - 4;
        let inner = inner_width(width, nodes.len());
        let block = |id: &NodeId| Some(node::block(self.machine, *id, self.machine.nodes.get(id)?, inner, false));
        let blocks: Vec<Block> = nodes.iter().filter_map(block).collect();
        Block { title: format!("package {package}"), lines: rows(&blocks, width, self.color) }
    }

    /// The package of a node that lies in one.
    fn only_package(&self, node: NodeId) -> Option<PackageId> {
        match node::packages_of(self.machine, self.machine.nodes.get(&node)?).as_slice() {
            [package] => Some(*package),
            _ => None,
        }
    }

    /// What brackets mean, where there are some to explain.
    fn legend(&self) -> Vec<String> {
        let example = self.machine.cores.values().find(|core| core.cpus.len() > 1);
        let text = example.map(|core| {
            let cpus: Vec<String> = core.cpus.iter().map(|cpu| cpu.to_string()).collect();
            format!("[{}] is a core with its CPUs; LLC is a last-level cache.", cpus.join(" "))
        });
        text.map(|text| wrap_text(&text, self.width, 2)).unwrap_or_default()
    }

    /// What is on no node.
    fn elsewhere(&self) -> Vec<String> {
        let machine = self.machine;
        let mut lines = Vec::new();
        let homeless: CpuSet = machine.online_cpus().iter().filter(|cpu| machine.node_of(*cpu).is_none()).collect();
        if !homeless.is_empty() {
            let cores: BTreeSet<CoreId> = homeless.iter().filter_map(|cpu| machine.core_of(cpu)).collect();
            let text = format!("On no node: CPUs {homeless} ({})", counted(cores.len(), "core"));
            lines.extend(wrap_text(&text, self.width, 2));
        }
        let offline = machine.offline_cpus();
        if !offline.is_empty() {
            lines.extend(wrap_text(&format!("Offline: CPUs {offline}"), self.width, 2));
        }
        let devices = devices::lines(machine, None, self.width - 2);
        if !devices.is_empty() {
            lines.push("Devices without a home node:".into());
            lines.extend(devices.into_iter().map(|line| format!("  {line}")));
        }
        lines
    }

    /// The table of distances, in several parts if it is too wide.
    fn distances(&self) -> Vec<String> {
        let table = &self.machine.distances;
        if table.nodes.len() < 2 {
            return Vec::new();
        }
        let numbers = table.values.iter().flatten().copied().chain(table.nodes.iter().map(|node| node.0));
        let cell = numbers.max().map_or(2, |most| most.to_string().len()) + 2;
        let columns = ((self.width.saturating_sub(cell + 5)) / cell).max(1);
        let mut lines = vec![self.head("Distances")];
        for part in table.nodes.chunks(columns) {
            let row = |cells: Vec<String>| cells.iter().map(|text| format!("{text:>cell$}")).collect::<String>();
            lines.push(format!("  {:>cell$}{}", "to", row(part.iter().map(NodeId::to_string).collect())));
            for from in &table.nodes {
                let distance = |to: &NodeId| table.get(*from, *to).map_or_else(|| "?".to_owned(), |d| d.to_string());
                lines.push(format!("  {from:>cell$}{}", row(part.iter().map(distance).collect())));
            }
        }
        lines
    }

    fn hmat(&self) -> Vec<String> {
        let line = |link: &HmatLink| {
            let both = |what: &str, unit: &str, read: Option<u64>, write: Option<u64>| match (read, write) {
                (None, None) => None,
                (read, write) => {
                    let text = |value: Option<u64>| value.map_or_else(|| "?".to_owned(), |value| value.to_string());
                    Some(format!("{what} {}/{} {unit}", text(read), text(write)))
                }
            };
            let facts = [
                both("latency", "ns", link.read_latency_ns, link.write_latency_ns),
                both("bandwidth", "MB/s", link.read_bandwidth_mbps, link.write_bandwidth_mbps),
            ];
            let facts: Vec<String> = facts.into_iter().flatten().collect();
            let from = if link.initiators.is_empty() { "?".to_owned() } else { link.initiators.to_string() };
            (!facts.is_empty()).then(|| {
                format!("  node {} from node {from} (class {}): {}", link.target, link.access_class, facts.join(", "))
            })
        };
        let mut lines: Vec<String> = self.machine.hmat.iter().filter_map(line).collect();
        if !lines.is_empty() {
            lines.insert(0, self.head("Promised by firmware (HMAT), read/write"));
        }
        lines
    }

    fn notes(&self) -> Vec<String> {
        let mut lines = Vec::new();
        for note in &self.machine.notes {
            let text = clean(&format!("{}: {}", note.place, note.text));
            let words: Vec<String> = text.split_whitespace().map(str::to_owned).collect();
            lines.extend(
                wrap(&words, self.width - 4, 4)
                    .into_iter()
                    .enumerate()
                    .map(|(index, line)| if index == 0 { format!("  - {line}") } else { line }),
            );
        }
        if !lines.is_empty() {
            lines.insert(0, self.head("What was odd, and what was believed"));
        }
        lines
    }
}

fn counted(count: usize, what: &str) -> String {
    if count == 1 { format!("1 {what}") } else { format!("{count} {what}s") }
}
