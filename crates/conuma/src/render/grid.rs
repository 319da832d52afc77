//! Who holds what, as a picture: a letter a core, a bar a node's memory.

use std::collections::{BTreeMap, BTreeSet};

use conuma_topology::Bytes;

use crate::style::Style;

/// Who holds a core or a piece of memory.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Owner {
    /// A VM, by name.
    Vm(String),
    /// Between two holders.
    Moving,
    /// The host, for itself.
    Reserve,
    /// Nobody.
    Free,
}

/// What is drawn for one node.
#[derive(Debug, Clone, Default)]
pub struct GridNode {
    /// The node's number.
    pub node: u32,
    /// Owners of its cores, in the order of their CPUs.
    pub cores: Vec<Owner>,
    /// Its CPUs as a list.
    pub cpus: String,
    /// Its memory; `None` for a node without.
    pub memory: Option<Bytes>,
    /// Who holds how much of it.
    pub parts: BTreeMap<Owner, Bytes>,
}

const BAR: usize = 40;
const CORES_A_GROUP: usize = 4;
const CORES_A_LINE: usize = 32;
const LETTERS: &str = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ";

/// The letter of each VM: its first letter where that is free, else the next free one.
pub fn letters<'a>(names: impl IntoIterator<Item = &'a str>) -> BTreeMap<String, char> {
    let mut letters = BTreeMap::new();
    let mut taken = BTreeSet::new();
    let mut rest = Vec::new();
    for name in names.into_iter().collect::<BTreeSet<_>>() {
        match name.chars().next().filter(char::is_ascii_alphabetic).map(|c| c.to_ascii_lowercase()) {
            Some(first) if taken.insert(first) => _ = letters.insert(name.to_owned(), first),
            _ => rest.push(name),
        }
    }
    for name in rest {
        let letter = LETTERS.chars().find(|c| taken.insert(*c)).unwrap_or('?');
        letters.insert(name.to_owned(), letter);
    }
    letters
}

/// Draws the nodes and explains the signs.
pub fn grid(nodes: &[GridNode], style: Style) -> String {
    let signs = Signs::of(nodes, style);
    let mut text = String::new();
    for node in nodes {
        text.push_str(&style.bold(&format!("node {}", node.node)));
        let cpus = if node.cpus.is_empty() { "no CPUs".to_owned() } else { format!("CPUs {}", node.cpus) };
        text.push_str(&format!("  {}\n", style.dim(&cpus)));
        for (index, line) in node.cores.chunks(CORES_A_LINE).enumerate() {
            let groups = line.chunks(CORES_A_GROUP).map(|group| group.iter().map(|owner| signs.paint(owner)).collect());
            let name = if index == 0 { "cores" } else { "" };
            text.push_str(&format!("  {name:<7} {}\n", groups.collect::<Vec<String>>().join(" ")));
        }
        if let Some(memory) = node.memory {
            text.push_str(&format!("  memory  {}\n", signs.bar(memory, &node.parts)));
        }
    }
    text + "\n" + &signs.legend() + "\n"
}

struct Signs {
    letters: BTreeMap<String, char>,
    owners: BTreeSet<Owner>,
    style: Style,
}

impl Signs {
    fn of(nodes: &[GridNode], style: Style) -> Self {
        let owners: BTreeSet<Owner> =
            nodes.iter().flat_map(|node| node.cores.iter().chain(node.parts.keys())).cloned().collect();
        let names =
            owners.iter().filter_map(|owner| if let Owner::Vm(name) = owner { Some(name.as_str()) } else { None });
        Self { letters: letters(names), owners, style }
    }

    fn sign(&self, owner: &Owner) -> char {
        match owner {
            Owner::Vm(name) => self.letters.get(name).copied().unwrap_or('?'),
            Owner::Moving => '~',
            Owner::Reserve => '#',
            Owner::Free => '.',
        }
    }

    fn color(&self, owner: &Owner, text: &str) -> String {
        match owner {
            Owner::Vm(name) => self.style.vm(self.letters.keys().position(|n| n == name).unwrap_or(0), text),
            Owner::Moving => self.style.warn(text),
            Owner::Reserve | Owner::Free => self.style.dim(text),
        }
    }

    fn paint(&self, owner: &Owner) -> String {
        self.color(owner, &self.sign(owner).to_string())
    }

    /// A bar in which whoever holds anything has at least one column.
    fn bar(&self, total: Bytes, parts: &BTreeMap<Owner, Bytes>) -> String {
        let mut columns_left = BAR;
        let mut bytes_left = total.0.max(parts.values().map(|part| part.0).sum());
        let mut bar = String::new();
        let mut words = Vec::new();
        let mut parts_left = parts.values().filter(|part| !part.is_zero()).count();
        for (owner, part) in parts.iter().filter(|(_, part)| !part.is_zero()) {
            parts_left -= 1;
            let share = (part.0 as f64 / bytes_left.max(1) as f64 * columns_left as f64).round() as usize;
            let columns = share.clamp(1, columns_left.saturating_sub(parts_left).max(1)).min(columns_left);
            bar.push_str(&self.color(owner, &self.sign(owner).to_string().repeat(columns)));
            words.push(format!("{} {part}", self.name(owner)));
            columns_left -= columns;
            bytes_left = bytes_left.saturating_sub(part.0);
        }
        bar.push_str(&" ".repeat(columns_left));
        format!("[{bar}] {total}: {}", words.join(", "))
    }

    fn name(&self, owner: &Owner) -> String {
        match owner {
            Owner::Vm(name) => name.clone(),
            Owner::Moving => "moving".into(),
            Owner::Reserve => "reserve".into(),
            Owner::Free => "free".into(),
        }
    }

    fn legend(&self) -> String {
        let entry = |owner: &Owner| match owner {
            Owner::Vm(name) if *name == self.sign(owner).to_string() => self.paint(owner),
            _ => format!("{} {}", self.paint(owner), self.name(owner)),
        };
        self.owners.iter().map(entry).collect::<Vec<_>>().join("   ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vm(name: &str) -> Owner {
        Owner::Vm(name.into())
    }

    #[test]
    fn letters_are_first_letters_where_they_can_be() {
        let letters = letters(["web", "db", "worker", "9p"]);
        assert_eq!(
            letters,
            [("9p", 'a'), ("db", 'd'), ("web", 'w'), ("worker", 'b')].map(|(n, c)| (n.into(), c)).into()
        );
    }

    #[test]
    fn nodes_are_drawn_with_cores_and_memory() {
        let nodes = [
            GridNode {
                node: 0,
                cores: [vec![vm("a"); 5], vec![Owner::Moving, vm("b"), Owner::Reserve]].concat(),
                cpus: "0-7".into(),
                memory: Some(Bytes::gib(1)),
                parts: [
                    (vm("a"), Bytes::mib(512)),
                    (vm("b"), Bytes::mib(2)),
                    (Owner::Reserve, Bytes::mib(128)),
                    (Owner::Free, Bytes::mib(382)),
                ]
                .into(),
            },
            GridNode {
                node: 2,
                memory: Some(Bytes::gib(4)),
                parts: [(Owner::Free, Bytes::gib(4))].into(),
                ..Default::default()
            },
            GridNode { node: 5, cores: vec![Owner::Free; 40], cpus: "8-47".into(), ..Default::default() },
        ];
        insta::assert_snapshot!("grid", grid(&nodes, Style::PLAIN));
        assert_eq!(crate::table::width(&grid(&nodes, Style::COLOR)), crate::table::width(&grid(&nodes, Style::PLAIN)));
    }
}
