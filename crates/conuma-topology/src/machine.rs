//! The machine model: plain values, filled by a reader or by the compact text form.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::bytes::Bytes;
use crate::ids::{CoreId, CpuId, DieId, LlcId, NodeId, PackageId};
use crate::set::{CpuSet, NodeSet};

/// One NUMA machine at one instant.
///
/// CPUs may be offline, nodes may lack CPUs or memory, numbers may have holes, distances may be
/// asymmetric: all of these are ordinary.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Machine {
    /// Version of the JSON form.
    #[serde(default)]
    pub schema: Schema,
    /// Every node that the firmware or kernel knows, also those without CPUs or without memory.
    pub nodes: BTreeMap<NodeId, Node>,
    /// Every possible CPU that is present, online or not.
    pub cpus: BTreeMap<CpuId, Cpu>,
    /// Physical cores that have at least one CPU of which the siblings are known.
    pub cores: BTreeMap<CoreId, Core>,
    /// Caches of all levels; the last level is what [`Cpu::llc`] points at.
    pub caches: Vec<Cache>,
    /// Distances between nodes (SLIT).
    pub distances: Distances,
    /// PCI devices, by address.
    pub devices: BTreeMap<PciAddress, PciDevice>,
    /// Measured or promised latencies and bandwidths (ACPI HMAT), where the kernel exposes them.
    pub hmat: Vec<HmatLink>,
    /// What the reader found odd, what it believed, and why.
    pub notes: Vec<Note>,
}

/// The version of a machine's JSON form: written as a number, and refused when read if it is another
/// than this Conuma knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Schema;

impl Schema {
    /// The only version so far.
    pub const VERSION: u32 = 1;
}

impl Serialize for Schema {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u32(Self::VERSION)
    }
}

impl<'de> Deserialize<'de> for Schema {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let version = u32::deserialize(deserializer)?;
        if version == Self::VERSION {
            return Ok(Self);
        }
        let known = Self::VERSION;
        Err(serde::de::Error::custom(format!("a machine of schema {version}; this Conuma reads schema {known}")))
    }
}

/// A NUMA node.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Node {
    /// Online CPUs whose memory this node is nearest to.
    pub cpus: CpuSet,
    /// `None` for a node without memory.
    pub memory: Option<NodeMemory>,
    /// Huge page pools by page size.
    pub huge_pages: BTreeMap<Bytes, HugePages>,
}

/// Memory of a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct NodeMemory {
    /// What the kernel manages (`MemTotal`): the node's capacity.
    pub total: Bytes,
    /// `MemFree` at the time of reading.
    pub free: Bytes,
}

/// A pool of huge pages of one size on one node, in pages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct HugePages {
    /// Pages in the pool.
    pub total: u64,
    /// Pages not in use.
    pub free: u64,
}

/// A logical CPU.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cpu {
    /// Whether the kernel uses it. What an offline CPU belongs to is mostly unknown.
    pub online: bool,
    /// The node it belongs to.
    pub node: Option<NodeId>,
    /// Its package.
    pub package: Option<PackageId>,
    /// Its die.
    pub die: Option<DieId>,
    /// Its core.
    pub core: Option<CoreId>,
    /// Its last-level cache.
    pub llc: Option<LlcId>,
}

/// A physical core: the unit that moves between VMs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Core {
    /// Its online CPUs, SMT siblings of each other.
    pub cpus: CpuSet,
}

/// What a cache holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CacheKind {
    /// Data only.
    Data,
    /// Instructions only.
    Instruction,
    /// Both.
    Unified,
}

/// A cache and the online CPUs that share it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cache {
    /// 1 is nearest to the core.
    pub level: u32,
    /// What it holds.
    pub kind: CacheKind,
    /// `None` where the kernel does not tell.
    pub size: Option<Bytes>,
    /// Who shares it.
    pub cpus: CpuSet,
    /// Set for the last-level cache of its CPUs.
    pub llc: Option<LlcId>,
}

/// Node distances in SLIT units: 10 is local, 20 is "twice as far". May be asymmetric.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Distances {
    /// The nodes in ascending order, naming rows and columns of `values`.
    pub nodes: Vec<NodeId>,
    /// `values[from][to]`; empty when the kernel gives none.
    pub values: Vec<Vec<u32>>,
}

impl Distances {
    /// The distance from a CPU on `from` to memory on `to`; `None` if unknown.
    pub fn get(&self, from: NodeId, to: NodeId) -> Option<u32> {
        let row = self.nodes.binary_search(&from).ok()?;
        let column = self.nodes.binary_search(&to).ok()?;
        self.values.get(row)?.get(column).copied()
    }
}

/// One initiator-target relation of the HMAT as the kernel exposes it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HmatLink {
    /// Nodes with CPUs (or other initiators) that reach the target at this performance.
    pub initiators: NodeSet,
    /// The node with the memory.
    pub target: NodeId,
    /// 0: best initiators of any kind; 1: best CPUs.
    pub access_class: u32,
    /// Read and write latency, nanoseconds.
    pub read_latency_ns: Option<u64>,
    /// Write latency, nanoseconds.
    pub write_latency_ns: Option<u64>,
    /// Read bandwidth, MB/s (10^6 bytes).
    pub read_bandwidth_mbps: Option<u64>,
    /// Write bandwidth, MB/s (10^6 bytes).
    pub write_bandwidth_mbps: Option<u64>,
}

/// A PCI address: domain, bus, device, function.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PciAddress {
    /// PCI segment.
    pub domain: u32,
    /// Bus number.
    pub bus: u8,
    /// Device number, 0 to 31.
    pub device: u8,
    /// Function number, 0 to 7.
    pub function: u8,
}

/// A PCI device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PciDevice {
    /// Class code: base class, subclass, programming interface (24 bits).
    pub class: u32,
    /// PCI vendor id.
    pub vendor: u16,
    /// PCI device id.
    pub device: u16,
    /// Bound driver.
    pub driver: Option<String>,
    /// The node it hangs off; `None` when firmware says nothing believable.
    pub home: Option<NodeId>,
    /// IOMMU group.
    pub iommu_group: Option<u32>,
    /// The physical function, if this is an SR-IOV virtual function.
    pub physical_function: Option<PciAddress>,
    /// Kernel names of what the device provides (`eth0`, `nvme0n1`, `mlx5_0`).
    pub provides: Vec<String>,
}

/// Something odd in what the machine says of itself, and what was believed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Note {
    /// Where it was read, relative to the root.
    pub place: String,
    /// What was found, what was believed instead, and why.
    pub text: String,
}

impl fmt::Display for PciAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&format!("{:04x}:{:02x}:{:02x}.{:x}", self.domain, self.bus, self.device, self.function))
    }
}

impl std::str::FromStr for PciAddress {
    type Err = String;

    /// Reads `0000:3b:00.1`, or `3b:00.1` in domain 0.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let read = || {
            let (rest, function) = text.rsplit_once('.')?;
            let mut parts = rest.rsplit(':');
            let device = u8::from_str_radix(parts.next()?, 16).ok()?;
            let bus = u8::from_str_radix(parts.next()?, 16).ok()?;
            let domain = parts.next().map_or(Some(0), |d| u32::from_str_radix(d, 16).ok())?;
            let function = u8::from_str_radix(function, 16).ok()?;
            (parts.next().is_none() && device < 32 && function < 8).then_some(Self { domain, bus, device, function })
        };
        read().ok_or_else(|| format!("`{text}` is not a PCI address (expected the form `0000:3b:00.1`)"))
    }
}

impl Serialize for PciAddress {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for PciAddress {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}
