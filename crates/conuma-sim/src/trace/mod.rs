//! What VMs want, over time: recorded, or made by [`generate`]. The form is described in `docs/simulator.md`.

pub mod generate;
mod read;
pub mod shipped;
pub mod stats;
mod write;

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use conuma_topology::{Bytes, NodeId, VmName};
use serde::{Deserialize, Serialize};

pub use read::TraceError;

/// The host of a trace that names none.
pub const USUAL_HOST: &str = "4n16c1t@32G";

/// What several VMs want.
#[derive(Debug, Clone, PartialEq)]
pub struct Trace {
    /// What it is called.
    pub name: String,
    /// The host that it is meant for, in the text form of `conuma-topology`.
    pub host: Option<String>,
    /// When it ends.
    pub end: Duration,
    /// The VMs, in the order in which they are named first.
    pub vms: Vec<TraceVm>,
}

/// What one VM wants, and on which terms.
#[derive(Debug, Clone, PartialEq)]
pub struct TraceVm {
    /// Its name.
    pub name: VmName,
    /// Its terms.
    pub terms: VmTerms,
    /// What it wants from each of these times on, ascending. Nothing before the first.
    pub points: Vec<Point>,
}

/// On which terms a VM shares the host.
#[derive(Debug, Clone, PartialEq)]
pub struct VmTerms {
    /// Its share; 100 is usual.
    pub weight: u32,
    /// Cores that it always gets back; `None`: half of an equal part of the host.
    pub guarantee: Option<usize>,
    /// Cores at most.
    pub limit: Option<usize>,
    /// Memory that it always gets back.
    pub memory: Option<Bytes>,
    /// What becomes of work for which there is no core.
    pub kind: Kind,
    /// Its working set is on this node, wherever its cores are.
    pub node: Option<NodeId>,
}

/// From a time on.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Point {
    /// From when.
    pub at: Duration,
    /// Cores that it would use if it had them.
    pub cores: f64,
    /// Its working set.
    pub memory: Bytes,
}

/// What a VM does with cores, and what becomes of work for which there is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// Requests that come when they come: lost if not served at once.
    #[default]
    Web,
    /// A queue: late work is done later.
    Batch,
    /// Threads in step: as fast as the slowest.
    Hpc,
    /// Like `Web`, but it waits by spinning: uses all that it holds while it wants anything.
    Spin,
    /// Like `Web`, but claims to want everything.
    Liar,
}

impl Default for VmTerms {
    fn default() -> Self {
        Self { weight: 100, guarantee: None, limit: None, memory: None, kind: Kind::Web, node: None }
    }
}

impl Trace {
    /// Whether it says anything of memory.
    pub fn has_memory(&self) -> bool {
        self.vms.iter().any(|vm| vm.points.iter().any(|point| !point.memory.is_zero()))
    }

    /// The same without what is at or after `end`.
    #[must_use]
    pub fn cut(mut self, end: Duration) -> Self {
        self.end = self.end.min(end);
        for vm in &mut self.vms {
            vm.points.retain(|point| point.at < end);
        }
        self
    }
}

impl TraceVm {
    /// What is in force at a time.
    pub fn at(&self, now: Duration) -> Point {
        let place = self.points.partition_point(|point| point.at <= now);
        let nothing = Point { at: Duration::ZERO, cores: 0.0, memory: Bytes::ZERO };
        place.checked_sub(1).and_then(|place| self.points.get(place)).copied().unwrap_or(nothing)
    }
}

impl FromStr for Kind {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "web" | "bursty" | "periodic" | "memory" => Ok(Self::Web),
            "batch" => Ok(Self::Batch),
            "hpc" => Ok(Self::Hpc),
            "spin" => Ok(Self::Spin),
            "liar" => Ok(Self::Liar),
            other => {
                Err(format!("`{other}` is no kind of load: web (bursty, periodic, memory), batch, hpc, spin, liar"))
            }
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Web => "web",
            Self::Batch => "batch",
            Self::Hpc => "hpc",
            Self::Spin => "spin",
            Self::Liar => "liar",
        })
    }
}
