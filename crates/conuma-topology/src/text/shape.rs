//! Shapes: `2p2n2l4c2t@8G`.

use std::fmt;

use crate::bytes::Bytes;
use crate::ids::{CpuId, NodeId};
use crate::machine::{Node, NodeMemory};
use crate::set::CpuSet;
use crate::text::layout::{Layout, NodeLayout};

/// No shape may have more CPUs than a set of CPUs can name, nor more nodes.
const MOST: u64 = 65_536;

/// A regular machine; every number counts per thing to its left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Shape {
    /// `None`: every node is a package.
    pub(super) packages: Option<u32>,
    pub(super) nodes: u32,
    /// `None`: one per node.
    pub(super) llcs: Option<u32>,
    pub(super) cores: u32,
    pub(super) threads: Option<u32>,
    /// Memory of every node.
    pub(super) memory: Bytes,
}

impl Shape {
    /// Whether `text` looks as if it was meant as a shape.
    pub(super) fn looks_like(text: &str) -> bool {
        text.starts_with(|c: char| c.is_ascii_digit())
            && text.contains(|c: char| "pnlct".contains(c.to_ascii_lowercase()))
    }

    /// Reads a shape; errors name the offset within `text` and what is wrong.
    pub(super) fn parse(text: &str) -> Result<Self, (usize, String)> {
        let (counts, memory) = text.split_once('@').map_or((text, None), |(counts, memory)| (counts, Some(memory)));
        let memory = match memory {
            Some(memory) => memory.parse().map_err(|error| (counts.len() + 1, format!("{error}")))?,
            None => Bytes::ZERO,
        };
        let mut found: [Option<u32>; 5] = [None; 5];
        let mut next = 0;
        let mut rest = counts;
        while !rest.is_empty() {
            let at = counts.len() - rest.len();
            let digits = rest.len() - rest.trim_start_matches(|c: char| c.is_ascii_digit()).len();
            let (number, after) = rest.split_at(digits);
            let Some(letter) = after.chars().next() else {
                return Err((at, format!("`{number}` counts nothing; a letter of p, n, l, c, t must follow")));
            };
            let Some(place) = LETTERS.iter().position(|known| *known == letter.to_ascii_lowercase()) else {
                return Err((at + digits, format!("`{letter}` is not one of p, n, l, c, t")));
            };
            if place < next {
                return Err((at, format!("`{number}{letter}` comes too late; the order is p, n, l, c, t")));
            }
            match number.parse() {
                Ok(count) if count > 0 => found[place] = Some(count),
                _ => return Err((at, format!("`{number}{letter}`: the number must be 1 or more"))),
            }
            next = place + 1;
            rest = &after[letter.len_utf8()..];
        }
        let [packages, nodes, llcs, cores, threads] = found;
        let Some(nodes) = nodes else { return Err((0, "the number of nodes is missing".into())) };
        let Some(cores) = cores else { return Err((counts.len(), "the number of cores is missing".into())) };
        let shape = Self { packages, nodes, llcs, cores, threads, memory };
        if shape.cpus().is_none_or(|cpus| cpus > MOST) {
            return Err((0, format!("more than {MOST} CPUs")));
        }
        Ok(shape)
    }

    /// CPUs in all; `None` if beyond counting.
    fn cpus(&self) -> Option<u64> {
        [self.packages.unwrap_or(1), self.nodes, self.llcs.unwrap_or(1), self.cores, self.threads.unwrap_or(1)]
            .into_iter()
            .try_fold(1_u64, |product, count| product.checked_mul(count.into()))
    }

    /// Adds the nodes of the shape to an empty layout.
    pub(super) fn fill(&self, layout: &mut Layout) {
        let llcs = self.llcs.unwrap_or(1);
        let per_node = llcs * self.cores * self.threads.unwrap_or(1);
        let memory = (!self.memory.is_zero()).then_some(NodeMemory { total: self.memory, free: self.memory });
        for id in 0..self.packages.unwrap_or(1) * self.nodes {
            let first = id * per_node;
            let mut cpus = CpuSet::new();
            cpus.insert_range(CpuId(first), CpuId(first + per_node - 1));
            let node = Node { cpus, memory, ..Node::default() };
            let package = self.packages.map(|_| id / self.nodes);
            layout.nodes.insert(NodeId(id), NodeLayout { node, package, llcs: llcs as usize });
        }
        layout.threads = Some(self.threads.unwrap_or(1));
    }
}

const LETTERS: [char; 5] = ['p', 'n', 'l', 'c', 't'];

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let counts = [self.packages, Some(self.nodes), self.llcs, Some(self.cores), self.threads];
        for (count, letter) in counts.into_iter().zip(LETTERS) {
            count.map_or(Ok(()), |count| write!(f, "{count}{letter}"))?;
        }
        if self.memory.is_zero() { Ok(()) } else { write!(f, "@{}", self.memory.exact()) }
    }
}
