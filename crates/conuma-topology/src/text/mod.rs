//! The compact text form of a machine, for tests, the lab and the command line.
//!
//! A text is a list of items separated by `;` or line ends. Most machines are one item, a *shape*:
//!
//! ```text
//! 4n2c1t@1G          4 nodes of 2 cores of 1 thread, 1 GiB each
//! 2p2n2l4c2t@8G      2 packages of 2 nodes of 2 last-level caches of 4 cores of 2 threads; 8 GiB a node
//! ```
//!
//! In a shape every number counts per thing to its left; `p`, `l` and `t` may be left out. Without
//! `p` every node is a package of its own, without `l` every node has one last-level cache, without
//! `t` a core has one thread, without `@` the nodes have no memory. CPUs are numbered node by
//! node, SMT siblings next to each other.
//!
//! Odd machines name their parts; a shape may come first and the other items add to it:
//!
//! | item | meaning |
//! | --- | --- |
//! | `node1 cpus=4-7 mem=4G` | a node with these CPUs and this memory; either may be absent. A node of the shape keeps its CPUs. |
//! | `node1 mem=4G free=1G huge=2M:512:100,1G:2` | free memory (else all of it), huge page pools as `SIZE:PAGES[:FREE]` |
//! | `smt=2` | so many threads a core, siblings next to each other within their node |
//! | `cores=0,4/1,5` | which CPUs are siblings, core by core; `3:0,4/...` gives a core's number |
//! | `packages=0-3/4-7`, `dies=...`, `llcs=...` | likewise; `none` for none. Dies are the packages unless given. |
//! | `dist=10,20/20,10` | rows of the distance table in node order (rows may also be separated by `;`); `none` for unknown, else 10 and 20 |
//! | `cpus=4-5` | CPUs that are online but on no node (firmware lies) |
//! | `off=6-7` | CPUs that are there but offline |
//! | `dev 0000:3b:00.0 node=1 class=020000 vendor=15b3 device=1017 driver=mlx5_core iommu=4 pf=0000:3b:00.0 gives=eth0,mlx5_0` | a PCI device; all but the address may be absent |
//!
//! Printing ([`Machine::to_text`]) chooses the shortest of these that reads back as the same
//! machine. Other caches, HMAT and notes have no text form and are left out; JSON keeps them.

mod layout;
mod parse;
mod print;
mod shape;

use std::str::FromStr;

use crate::machine::Machine;

pub use parse::ParseMachineError;

impl FromStr for Machine {
    type Err = ParseMachineError;

    /// Reads the text form, see the documentation of the module.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        parse::machine(text)
    }
}

impl Machine {
    /// The text form: what [`str::parse`] reads back as the same machine, but for caches other than
    /// the last level, HMAT and notes.
    pub fn to_text(&self) -> String {
        print::machine(self)
    }
}
