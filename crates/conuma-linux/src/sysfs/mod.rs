//! Reader of a machine from sysfs and procfs below a root directory.
//!
//! Real machines are odd: files are missing, firmware lies, CPUs and nodes are offline. Nothing of
//! that is an error. What was found, what was believed instead and why becomes a
//! [`Note`](conuma_topology::Note); only a root that shows no CPU at all is refused.
//!
//! The rules, in short. CPUs are online if the kernel lists them and shows their directory. Cores
//! and caches are groups that their lowest CPU claims. Nodes are those online; one that claims
//! CPUs of a lower node, or is the memory of a GPU, is left out. A device is at home where its
//! `local_cpus` are, else at its `numa_node`, else where its bridge is.

mod caches;
mod cpus;
mod fallback;
mod groups;
mod hmat;
mod nodes;
mod notes;
mod pci;
mod tree;

use std::io;
use std::path::{Path, PathBuf};

use conuma_topology::Machine;

use notes::Notes;
use tree::Tree;

/// Why no machine could be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The root is not a directory that can be entered.
    #[error("cannot enter {}", root.display())]
    Root {
        /// The root.
        root: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
    /// Nothing below the root tells of an online CPU.
    #[error(
        "no machine below {}: neither sys/devices/system/cpu nor proc/cpuinfo there shows an online CPU \
         (name the directory that contains `sys` and `proc`)",
        root.display()
    )]
    NoMachine {
        /// The root.
        root: PathBuf,
    },
}

/// Reads the machine below `root`, which is `/` for the machine that this runs on.
///
/// # Errors
/// If `root` is not a directory, or shows no online CPU.
pub fn read_machine(root: &Path) -> Result<Machine, ReadError> {
    let tree = Tree::open(root).map_err(|source| ReadError::Root { root: root.to_owned(), source })?;
    let mut machine = Machine::default();
    let mut notes = Notes::default();
    if cpus::read_presence(&tree, &mut machine, &mut notes).is_some() {
        let online = machine.online_cpus();
        cpus::read_topology(&tree, &online, &mut machine, &mut notes);
        caches::read(&tree, &online, &mut machine, &mut notes);
    } else {
        fallback::read(&tree, &mut machine, &mut notes)
            .ok_or_else(|| ReadError::NoMachine { root: root.to_owned() })?;
    }
    let online = machine.online_cpus();
    nodes::read(&tree, &online, &mut machine, &mut notes);
    cpus::split_straddling(&mut machine, &mut notes);
    hmat::read(&tree, &mut machine);
    pci::read(&tree, &mut machine, &mut notes);
    machine.notes = notes.into_inner();
    Ok(machine)
}
