//! The binding plan: all that starting a VM needs, decided.

mod boot;
mod table;

use std::collections::BTreeMap;
use std::path::PathBuf;

use conuma_topology::{Bytes, CpuSet, GuestNodeId, Machine, NodeId, NodeSet, PciAddress, VmName};
use serde::{Deserialize, Serialize};

use crate::replica::{Replica, ReplicaError};
use crate::spec::{BootSource, CoreWish, MEMORY_UNIT, MemoryWish, Reserve, SpecError, VmSpec};

pub use table::render_table;

/// Linux adds memory in blocks of this size (guests with less than 64 GiB of boot memory): virtio-mem
/// devices are made of whole ones, as a guest could not use the rest.
const GUEST_MEMORY_BLOCK: Bytes = Bytes::mib(128);
/// The first bus number of extra host bridges; those below are for what `qemu_args` bring.
const FIRST_BRIDGE_BUS: u32 = 0x20;

/// What runs the guest's instructions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Accel {
    /// The kernel's hypervisor.
    #[default]
    Kvm,
    /// QEMU's emulator: slow, for machines without KVM.
    Tcg,
}

/// What a plan needs besides the VM file and the machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlanOptions {
    /// What runs the guest.
    pub accel: Accel,
    /// The guest's vsock address, where the VM file names none; `None` there too: no vsock.
    pub cid: Option<u32>,
    /// The VM's state directory.
    pub dir: PathBuf,
}

/// Files of a running VM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Files {
    /// QEMU's control socket.
    pub qmp_socket: PathBuf,
    /// QEMU's process id.
    pub pid_file: PathBuf,
    /// What QEMU says.
    pub log: PathBuf,
}

impl Files {
    /// The usual names in a VM's state directory.
    pub fn in_dir(dir: &std::path::Path) -> Self {
        Self { qmp_socket: dir.join("qmp.sock"), pid_file: dir.join("qemu.pid"), log: dir.join("qemu.log") }
    }
}

/// All that starting a VM needs. Made once and never changed; a hypervisor back end decides nothing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BindingPlan {
    /// The VM.
    pub name: VmName,
    /// What runs the guest.
    pub accel: Accel,
    /// vCPUs and nodes, and what they are bound to.
    pub replica: Replica,
    /// Memory of every node, by guest node.
    pub memory: Vec<NodePlan>,
    /// The smallest amount that virtio-mem gives or takes.
    pub memory_unit: Bytes,
    /// CPUs that the VM may ever use. vCPUs elsewhere exist, as the guest must see the whole host, but their
    /// gates never open.
    pub envelope_cpus: CpuSet,
    /// What the VM may ever have in all, boot memory included, if its limit says so.
    pub envelope_memory: Option<Bytes>,
    /// Devices passed through, with the host bridges that put them at their home nodes.
    pub bridges: Vec<Bridge>,
    /// CPUs for QEMU's own threads and the kernel's on its behalf (main, I/O, vhost).
    pub emulator_cpus: CpuSet,
    /// The guest's vsock address.
    pub cid: Option<u32>,
    /// What it boots.
    pub boot: BootSource,
    /// Plain QEMU arguments from the VM file.
    pub qemu_args: Vec<String>,
    /// Its files.
    pub files: Files,
    /// What a person should know: what could not be done exactly, and what was done instead.
    pub notes: Vec<String>,
}

/// Memory of a guest on one node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodePlan {
    /// The guest's node.
    pub node: GuestNodeId,
    /// The host's node that the memory is bound to.
    pub host: NodeId,
    /// What the guest has from its first instruction to its end.
    pub boot: Bytes,
    /// What virtio-mem can add at most; zero: there is no device.
    pub maximum: Bytes,
}

/// PCI devices of one home node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bridge {
    /// The home node in the guest; `None`: the host does not tell the home, so they hang off the guest's
    /// first bus.
    pub node: Option<GuestNodeId>,
    /// The number of the bridge's own bus; `None` where `node` is.
    pub bus: Option<u8>,
    /// The devices, each behind a root port of its own.
    pub devices: Vec<PciAddress>,
}

/// A VM cannot be planned.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PlanError {
    /// The machine cannot do what the VM file asks for.
    #[error(transparent)]
    Spec(#[from] SpecError),
    /// The machine cannot be replicated.
    #[error(transparent)]
    Replica(#[from] ReplicaError),
    /// No node has memory that VMs may use.
    #[error("VM {vm}: no node has memory left for VMs: the reserve of {reserve} per node takes all of it")]
    NoMemory {
        /// The VM.
        vm: VmName,
        /// The reserve.
        reserve: Bytes,
    },
    /// PCI has 256 buses.
    #[error("VM {vm}: {devices} devices passed through need more PCI buses than there are")]
    TooManyDevices {
        /// The VM.
        vm: VmName,
        /// Devices.
        devices: usize,
    },
}

impl BindingPlan {
    /// Plans `spec` on `machine`, of which `reserve` stays with the host. Checks the spec first.
    pub fn new(spec: &VmSpec, machine: &Machine, reserve: &Reserve, options: &PlanOptions) -> Result<Self, PlanError> {
        spec.check(machine, reserve)?;
        let boot: BTreeMap<NodeId, Bytes> =
            machine.nodes.keys().map(|node| (*node, spec.boot.memory_on(machine, reserve, *node))).collect();
        let with_memory: NodeSet = boot.iter().filter(|(_, bytes)| !bytes.is_zero()).map(|(node, _)| *node).collect();
        if with_memory.is_empty() {
            return Err(PlanError::NoMemory { vm: spec.name.clone(), reserve: reserve.memory_per_node });
        }
        let replica = Replica::new(machine, &with_memory)?;
        let mut notes = replica.notes.clone();
        for node in with_memory.iter().filter(|node| boot[node] < spec.boot.memory_per_node) {
            notes.push(format!(
                "node {node} has {} of boot memory instead of {}: it has no more for VMs",
                boot[&node], spec.boot.memory_per_node
            ));
        }
        let memory = replica
            .nodes
            .iter()
            .map(|node| NodePlan {
                node: node.id,
                host: node.host,
                boot: boot[&node.host],
                maximum: node_maximum(spec, machine, reserve, node.host, boot[&node.host]),
            })
            .collect();
        let usable = reserve.usable_cpus(machine);
        let limit = spec.limit.as_ref();
        Ok(Self {
            name: spec.name.clone(),
            accel: options.accel,
            memory,
            memory_unit: MEMORY_UNIT,
            envelope_cpus: match limit.and_then(|limit| limit.cores.as_ref()) {
                Some(CoreWish::Cpus(cpus)) => cpus.intersection(&usable),
                Some(CoreWish::Count(_)) | None => usable,
            },
            envelope_memory: limit.and_then(|limit| limit.memory.as_ref()).map(MemoryWish::total),
            bridges: bridges(spec, machine, &replica, &mut notes)?,
            emulator_cpus: emulator_cpus(spec, machine, reserve),
            cid: spec.cid.or(options.cid),
            boot: boot::source(spec, &mut notes),
            qemu_args: spec.qemu_args.clone(),
            files: Files::in_dir(&options.dir),
            replica,
            notes,
        })
    }

    /// Memory plan of a node of the host.
    pub fn memory_on(&self, host: NodeId) -> Option<&NodePlan> {
        self.memory.iter().find(|node| node.host == host)
    }

    /// Boot memory by the host's nodes; nodes without any are left out.
    pub fn boot_memory(&self) -> BTreeMap<NodeId, Bytes> {
        self.memory.iter().filter(|node| !node.boot.is_zero()).map(|node| (node.host, node.boot)).collect()
    }

    /// The nodes that devices passed through are at home on.
    pub fn device_homes(&self) -> NodeSet {
        self.bridges.iter().filter_map(|bridge| self.replica.host_node(bridge.node?)).collect()
    }
}

impl NodePlan {
    /// The id of the node's virtio-mem device.
    pub fn device_id(&self) -> String {
        format!("vmem{}", self.node)
    }

    /// Whether there is a virtio-mem device.
    pub fn is_flexible(&self) -> bool {
        !self.maximum.is_zero()
    }
}

/// What virtio-mem can add on a node: its capacity less the reserve and the boot memory, and not more than
/// the VM's limit for it, in whole blocks of the guest's kernel.
fn node_maximum(spec: &VmSpec, machine: &Machine, reserve: &Reserve, node: NodeId, boot: Bytes) -> Bytes {
    if boot.is_zero() {
        return Bytes::ZERO;
    }
    let usable = reserve.usable_memory(machine, node);
    let limit = match spec.limit.as_ref().and_then(|limit| limit.memory.as_ref()) {
        Some(MemoryWish::PerNode(nodes)) => nodes.get(&node).copied().unwrap_or_default(),
        Some(MemoryWish::Total(total)) => *total,
        None => usable,
    };
    usable.min(limit).saturating_sub(boot).round_down(GUEST_MEMORY_BLOCK)
}

/// One host bridge per home node; devices without a known home come first.
fn bridges(
    spec: &VmSpec,
    machine: &Machine,
    replica: &Replica,
    notes: &mut Vec<String>,
) -> Result<Vec<Bridge>, PlanError> {
    let mut by_home = BTreeMap::<Option<GuestNodeId>, Vec<PciAddress>>::new();
    for address in &spec.devices {
        let home = machine.devices.get(address).and_then(|device| device.home);
        let node = home.and_then(|home| replica.guest_node(home));
        if node.is_none() {
            notes.push(format!("the host does not tell the home node of device {address}: the guest will not know it"));
        }
        by_home.entry(node).or_default().push(*address);
    }
    let mut next = FIRST_BRIDGE_BUS;
    by_home
        .into_iter()
        .map(|(node, devices)| {
            let bus = node.map(|_| next);
            // The bridge's own bus and one behind each port.
            next += node.map_or(0, |_| 1 + devices.len() as u32);
            let too_many = || PlanError::TooManyDevices { vm: spec.name.clone(), devices: spec.devices.len() };
            if next > 256 || (node.is_none() && devices.len() as u32 >= FIRST_BRIDGE_BUS) {
                return Err(too_many());
            }
            let bus = bus.map(u8::try_from).transpose().map_err(|_| too_many())?;
            Ok(Bridge { node, bus, devices })
        })
        .collect()
}

/// CPUs for QEMU's own threads: the host's reserved CPUs if there are any, near the devices if some are
/// there; else all CPUs near the devices; else all.
fn emulator_cpus(spec: &VmSpec, machine: &Machine, reserve: &Reserve) -> CpuSet {
    let homes = spec.devices.iter().filter_map(|address| machine.devices.get(address)?.home);
    let mut near = CpuSet::new();
    for node in homes.filter_map(|home| machine.nodes.get(&home)) {
        near.extend(node.cpus.iter());
    }
    let online = machine.online_cpus();
    let reserved = online.difference(&reserve.usable_cpus(machine));
    let choices = [reserved.intersection(&near), reserved, near];
    choices.into_iter().find(|cpus| !cpus.is_empty()).unwrap_or(online)
}
