//! PCI devices and their home nodes.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use conuma_topology::{CpuSet, Machine, NodeId, NodeSet, PciAddress, PciDevice};

use super::notes::Notes;
use super::tree::Tree;

const BUS: &str = "sys/bus/pci/devices";
/// Bridges below bridges; real machines have fewer than ten.
const DEPTH_LIMIT: usize = 32;
/// Classes of what devices provide.
const CLASSES: [&str; 4] = ["net", "block", "infiniband", "nvme"];

/// A device and what is needed to find its home.
struct Found {
    device: PciDevice,
    /// The bridges above it, the nearest last.
    above: Vec<PciAddress>,
    /// The host bridge, as the name of its directory or, failing that, domain and bus.
    host_bridge: String,
}

/// Reads all PCI devices.
pub(super) fn read(tree: &Tree, machine: &mut Machine, notes: &mut Notes) {
    let mut found = BTreeMap::new();
    for (address, directory) in directories(tree) {
        found.insert(address, read_device(tree, address, &directory, machine, notes));
    }
    inherit_homes(&mut found, machine, notes);
    for (address, name) in provided(tree) {
        if let Some(found) = found.get_mut(&address) {
            found.device.provides.push(name);
        }
    }
    let known: BTreeSet<PciAddress> = found.keys().copied().collect();
    for (address, Found { mut device, .. }) in found {
        device.provides.sort_unstable();
        device.provides.dedup();
        if let Some(parent) = device.physical_function.take_if(|parent| !known.contains(parent)) {
            let text = format!("names physical function {parent}, which is not there: taken for a device of its own");
            notes.add(format!("{BUS}/{address}/physfn"), text);
        }
        machine.devices.insert(address, device);
    }
}

/// The directory of every device, from the bus or, where that is absent, from the trees of the
/// host bridges.
fn directories(tree: &Tree) -> BTreeMap<PciAddress, String> {
    let on_bus = |name: String| Some((name.parse().ok()?, format!("{BUS}/{name}")));
    let devices: BTreeMap<PciAddress, String> = tree.names(BUS).into_iter().filter_map(on_bus).collect();
    if !devices.is_empty() {
        return devices;
    }
    let mut devices = BTreeMap::new();
    let bridges = tree.names("sys/devices").into_iter().filter(|name| name.starts_with("pci"));
    let mut ahead: Vec<(String, usize)> = bridges.map(|name| (format!("sys/devices/{name}"), 0)).collect();
    while let Some((directory, depth)) = ahead.pop().filter(|(_, depth)| *depth < DEPTH_LIMIT) {
        for name in tree.names(&directory) {
            if let Ok(address) = name.parse::<PciAddress>() {
                ahead.push((format!("{directory}/{name}"), depth + 1));
                devices.insert(address, format!("{directory}/{name}"));
            }
        }
    }
    devices
}

fn read_device(tree: &Tree, address: PciAddress, directory: &str, machine: &Machine, notes: &mut Notes) -> Found {
    let file = |name: &str| format!("{directory}/{name}");
    let short = |name: &str| tree.hex(&file(name)).and_then(|value| u16::try_from(value).ok()).unwrap_or(0);
    let (above, host_bridge) = position(tree.directory(directory).as_deref(), address);
    Found {
        device: PciDevice {
            class: tree.hex(&file("class")).unwrap_or(0) & 0x00ff_ffff,
            vendor: short("vendor"),
            device: short("device"),
            driver: tree.link_name(&file("driver")),
            home: own_home(tree, directory, machine, notes),
            iommu_group: tree.link_name(&file("iommu_group")).and_then(|group| group.parse().ok()),
            physical_function: tree.link_name(&file("physfn")).and_then(|name| name.parse().ok()),
            provides: Vec::new(),
        },
        above,
        host_bridge,
    }
}

/// The bridges above a device, from where its directory really is.
fn position(directory: Option<&Path>, address: PciAddress) -> (Vec<PciAddress>, String) {
    let parts: Vec<&str> =
        directory.into_iter().flat_map(Path::components).filter_map(|part| part.as_os_str().to_str()).collect();
    let mut above: Vec<PciAddress> = parts.iter().filter_map(|part| part.parse().ok()).collect();
    above.retain(|bridge| *bridge != address);
    let is_host_bridge = |part: &&&str| part.starts_with("pci") && part.contains(':');
    let host_bridge = parts.iter().find(is_host_bridge).map(|part| (*part).to_owned());
    (above, host_bridge.unwrap_or_else(|| format!("{:04x}:{:02x}", address.domain, address.bus)))
}

/// The home node that the device itself tells of.
///
/// `local_cpus` comes before `numa_node`: it is what the kernel made of the firmware's word and what
/// interrupts go by. Only a device on a node without CPUs is believed on `numa_node` alone.
fn own_home(tree: &Tree, directory: &str, machine: &Machine, notes: &mut Notes) -> Option<NodeId> {
    let said = tree.value::<i64>(&format!("{directory}/numa_node")).filter(|node| *node >= 0);
    let said = said.map(|node| NodeId(u32::try_from(node).unwrap_or(u32::MAX)));
    let mask: Option<CpuSet> = tree.mask(&format!("{directory}/local_cpus"));
    let list: Option<CpuSet> = tree.list(&format!("{directory}/local_cpulist"));
    if let (Some(mask), Some(list)) = (&mask, &list)
        && mask != list
    {
        let text = format!("says CPUs `{mask}`, local_cpulist says `{list}`: believed local_cpus, as other tools do");
        notes.add(format!("{directory}/local_cpus"), text);
    }
    let local = mask.or(list).unwrap_or_default();
    let near: NodeSet = local.iter().filter_map(|cpu| machine.node_of(cpu)).collect();
    let by_cpus = near.first().filter(|_| near.len() == 1);
    let exists = |node: &NodeId| machine.nodes.contains_key(node);
    match (by_cpus, said) {
        (Some(node), Some(said)) if node != said => {
            let text = format!("says node {said} but local_cpus `{local}` are on node {node}: believed local_cpus");
            notes.add(format!("{directory}/numa_node"), text);
            Some(node)
        }
        (Some(node), _) => Some(node),
        (None, Some(said)) if exists(&said) && near.len() < 2 => Some(said),
        (None, Some(said)) if exists(&said) => {
            let text = format!("says node {said} but local_cpus `{local}` are on nodes {near}: believed neither");
            notes.add(format!("{directory}/numa_node"), text);
            None
        }
        (None, Some(said)) => {
            let text = format!("says node {said}, which is not there: not believed");
            notes.add(format!("{directory}/numa_node"), text);
            None
        }
        (None, None) => None,
    }
}

/// Gives devices without a word of their own the home of the nearest bridge above that has one, or
/// else the one home that all devices below the same host bridge agree on.
fn inherit_homes(found: &mut BTreeMap<PciAddress, Found>, machine: &Machine, notes: &mut Notes) {
    let only_node = machine.nodes.keys().next().copied().filter(|_| machine.nodes.len() == 1);
    let mut bridges = BTreeMap::<String, NodeSet>::new();
    let homes: BTreeMap<PciAddress, Option<NodeId>> = found.iter().map(|(a, found)| (*a, found.device.home)).collect();
    for found in found.values() {
        bridges.entry(found.host_bridge.clone()).or_default().extend(found.device.home);
    }
    let (mut inherited, mut unknown) = (BTreeMap::<NodeId, Vec<PciAddress>>::new(), Vec::new());
    for (address, found) in found.iter_mut().filter(|(_, found)| found.device.home.is_none()) {
        let above = found.above.iter().rev().find_map(|bridge| homes.get(bridge).copied().flatten());
        let shared = bridges.get(&found.host_bridge).filter(|homes| homes.len() == 1).and_then(|homes| homes.first());
        found.device.home = only_node.or(above).or(shared);
        match found.device.home {
            Some(home) if only_node.is_none() => inherited.entry(home).or_default().push(*address),
            Some(_) => {}
            None => unknown.push(*address),
        }
    }
    for (home, devices) in inherited {
        let text = format!("{} told no home node: taken from their bridge, node {home}", some_of(&devices));
        notes.add(BUS, text);
    }
    if !unknown.is_empty() {
        notes.add(BUS, format!("{} tell no believable home node: left without one", some_of(&unknown)));
    }
}

/// Names a few of many.
fn some_of(devices: &[PciAddress]) -> String {
    let named: Vec<String> = devices.iter().take(4).map(PciAddress::to_string).collect();
    match devices.len().saturating_sub(named.len()) {
        0 => named.join(", "),
        more => format!("{} and {more} more", named.join(", ")),
    }
}

/// What devices provide: the last PCI address on the way to a class device is who provides it.
fn provided(tree: &Tree) -> Vec<(PciAddress, String)> {
    let mut provided = Vec::new();
    for class in CLASSES {
        for name in tree.names(&format!("sys/class/{class}")) {
            let entry = format!("sys/class/{class}/{name}");
            if tree.has_entry(&format!("{entry}/partition")) {
                continue;
            }
            // Old kernels have a directory with a link named `device` in it.
            let target = tree.link(&entry).or_else(|| tree.link(&format!("{entry}/device")));
            let provider = target.and_then(|target| target.split('/').rev().find_map(|part| part.parse().ok()));
            provided.extend(provider.map(|address| (address, name)));
        }
    }
    provided
}
