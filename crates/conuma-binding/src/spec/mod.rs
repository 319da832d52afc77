//! What a VM file says.
//!
//! ```toml
//! name = "db"
//! weight = 100                 # its share of what is left after guarantees, where a policy divides it
//!
//! [guarantee]                  # what it gets back whenever it asks
//! cores = 4                    # whole cores; or `cpus = "4-7"` to say which
//! memory = "8G"                # or where: `memory = { node0 = "4G", node1 = "4G" }`
//!
//! [boot]
//! memory_per_node = "512M"
//! disk = "/srv/db.qcow2"       # or kernel, initrd and cmdline
//! ```
//!
//! `[initial]` (what it holds at start; the guarantee if left out) and `[limit]` (what it could
//! hold at most; the whole host if left out) have the keys of `[guarantee]`. See the fields of
//! [`VmSpec`] for the rest.

mod check;
mod error;
mod parse;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::str::FromStr;

use conuma_topology::{Bytes, CpuSet, NodeId, PciAddress, VmName};
use serde::{Deserialize, Serialize};

use crate::form::Source;
pub use check::Reserve;
pub use error::{Problem, SpecError};

/// What virtio-mem gives and takes at a time; boot memory is a multiple of it too.
pub(crate) const MEMORY_UNIT: Bytes = Bytes::mib(2);

/// What a VM's owner wants, read from a VM file.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct VmSpec {
    /// `name`.
    pub name: VmName,
    /// `weight`, 1 to 10000; 100 if left out: its share of what is left after guarantees, where a policy divides it.
    pub weight: u32,
    /// `agent`: whether the guest is to have an agent; it is if left out.
    #[serde(default)]
    pub agent: Agent,
    /// `[guarantee]`: what it always gets back on request.
    pub guarantee: Wish,
    /// `[initial]`: what it holds at start; `None`: its guarantee.
    pub initial: Option<Wish>,
    /// `[limit]`: what it could hold at most; `None`: the whole host less the reserve.
    pub limit: Option<Wish>,
    /// `[boot]`.
    pub boot: Boot,
    /// `cid`: its vsock address; `None`: the daemon chooses one.
    pub cid: Option<u32>,
    /// `devices`: PCI devices passed through to it.
    pub devices: Vec<PciAddress>,
    /// `qemu_args`: plain QEMU arguments (network, disks, serial ports).
    pub qemu_args: Vec<String>,
    /// Where in which file each value stands, for errors; empty in a spec that did not come from a file.
    #[serde(skip)]
    source: Source,
}

/// Whether a guest is to have an agent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Agent {
    /// It is: what moves, moves by agreement with it.
    #[default]
    Expected,
    /// It is not: the host alone enforces what the VM holds, until an agent appears all the same.
    None,
}

impl FromStr for Agent {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "expected" => Ok(Self::Expected),
            "none" => Ok(Self::None),
            _ => Err(format!("`{text}` is neither \"expected\" nor \"none\"")),
        }
    }
}

/// Cores and memory that someone asks for; what is `None` is not asked for.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Wish {
    /// How many cores, or which.
    pub cores: Option<CoreWish>,
    /// How much memory, or how much where.
    pub memory: Option<MemoryWish>,
}

/// Cores: how many, or which.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CoreWish {
    /// `cores`: so many whole cores.
    Count(usize),
    /// `cpus`: these CPUs of the host, which must be whole cores.
    Cpus(CpuSet),
}

/// Memory: how much, or how much where.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MemoryWish {
    /// So much in all.
    Total(Bytes),
    /// So much on each of these nodes of the host, nothing elsewhere.
    PerNode(BTreeMap<NodeId, Bytes>),
}

impl MemoryWish {
    /// All of it.
    pub fn total(&self) -> Bytes {
        match self {
            Self::Total(total) => *total,
            Self::PerNode(nodes) => nodes.values().copied().sum(),
        }
    }
}

/// What the guest boots from, and in how much memory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Boot {
    /// `memory_per_node`: memory that the guest has on each node from its first instruction and that
    /// never leaves it; counts in what the VM holds. 256 MiB if left out.
    pub memory_per_node: Bytes,
    /// What it boots.
    pub source: BootSource,
}

/// What a guest boots.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BootSource {
    /// A kernel that QEMU loads: `kernel`, `initrd`, `cmdline`.
    Kernel {
        /// The kernel image.
        kernel: PathBuf,
        /// The initial file system.
        initrd: Option<PathBuf>,
        /// The kernel's command line.
        cmdline: String,
    },
    /// A disk image, whose format (qcow2 or raw) the name's ending tells.
    Disk(PathBuf),
    /// Whatever `qemu_args` bring.
    Other,
}

impl VmSpec {
    /// Reads a VM file; `file_name` only appears in errors. Reports all that is wrong at once.
    pub fn parse(text: &str, file_name: &str) -> Result<Self, SpecError> {
        parse::parse(text, file_name)
    }

    /// What it holds at start: `[initial]`, with what that leaves out taken from `[guarantee]`.
    pub fn initial_wish(&self) -> Wish {
        let initial = self.initial.clone().unwrap_or_default();
        Wish {
            cores: initial.cores.or_else(|| self.guarantee.cores.clone()),
            memory: initial.memory.or_else(|| self.guarantee.memory.clone()),
        }
    }
}

/// Equal if they ask for the same, wherever they were read from.
impl PartialEq for VmSpec {
    fn eq(&self, other: &Self) -> bool {
        let key = |s: &Self| {
            (
                s.name.clone(),
                s.weight,
                s.agent,
                s.guarantee.clone(),
                s.initial.clone(),
                s.limit.clone(),
                s.boot.clone(),
                s.cid,
            )
        };
        key(self) == key(other) && self.devices == other.devices && self.qemu_args == other.qemu_args
    }
}
