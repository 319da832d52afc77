//! From a topology in the compact text form to the QEMU arguments of a virtual host that has it.

use anyhow::{Result, bail};
use conuma_topology::{Machine, NodeId};

/// A virtual host.
#[derive(Debug, Clone)]
pub struct LabSpec {
    /// Its topology.
    pub machine: Machine,
}

/// The buses of the nodes' own PCIe roots start here, each root with so many for what is behind it.
const FIRST_BUS: u32 = 32;
const BUSES_PER_ROOT: u32 = 8;

impl LabSpec {
    /// Reads a topology in the compact text form.
    pub fn parse(text: &str) -> Result<Self> {
        Ok(Self { machine: text.parse()? })
    }

    /// QEMU arguments for CPUs, memory, nodes, distances and devices.
    pub(crate) fn qemu_arguments(&self) -> Result<Vec<String>> {
        let mut arguments = vec!["-smp".to_owned(), self.smp()?, "-m".to_owned(), format!("{}B", self.memory())];
        for (id, node) in &self.machine.nodes {
            let mut numa = format!("node,nodeid={id}");
            for range in node.cpus.to_string().split(',').filter(|range| !range.is_empty()) {
                numa.push_str(&format!(",cpus={range}"));
            }
            if let Some(memory) = node.memory {
                let backend = format!("memory-backend-ram,id=node{id},size={}B", memory.total.0);
                arguments.extend(["-object".to_owned(), backend]);
                numa.push_str(&format!(",memdev=node{id}"));
            }
            arguments.extend(["-numa".to_owned(), numa]);
        }
        for from in self.machine.nodes.keys() {
            for to in self.machine.nodes.keys().filter(|to| *to != from) {
                let Some(distance) = self.machine.distance(*from, *to) else { continue };
                arguments.extend(["-numa".to_owned(), format!("dist,src={from},dst={to},val={distance}")]);
            }
        }
        arguments.extend(self.devices());
        Ok(arguments)
    }

    fn memory(&self) -> u64 {
        self.machine.total_memory().0
    }

    fn smp(&self) -> Result<String> {
        let cpus = self.machine.cpus.len();
        let threads = self.machine.cores.values().map(|core| core.cpus.len()).max().unwrap_or(1);
        let sockets = self.machine.packages().len().max(1);
        let cores = cpus / (sockets * threads).max(1);
        if sockets * cores * threads != cpus || !self.machine.offline_cpus().is_empty() {
            bail!("the lab builds hosts whose packages are alike and whose CPUs are all online; this one is not");
        }
        Ok(format!("{cpus},sockets={sockets},cores={cores},threads={threads}"))
    }

    /// A PCIe root for each node that has devices, and a network card for each device.
    fn devices(&self) -> Vec<String> {
        let mut arguments = Vec::new();
        let homes: std::collections::BTreeSet<NodeId> = self.machine.devices.values().filter_map(|d| d.home).collect();
        for (index, node) in homes.into_iter().enumerate() {
            let bus = FIRST_BUS + BUSES_PER_ROOT * index as u32;
            let mut device = |text: String| arguments.extend(["-device".to_owned(), text]);
            device(format!("pxb-pcie,id=root{node},bus=pcie.0,bus_nr={bus},numa_node={node}"));
            for (slot, _) in self.machine.devices_on(node).enumerate() {
                device(format!("pcie-root-port,id=port{node}.{slot},bus=root{node},chassis={bus},slot={slot}"));
                device(format!("virtio-net-pci,bus=port{node}.{slot}"));
            }
        }
        arguments
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, expected: &[&str]) {
        let arguments = LabSpec::parse(text).unwrap().qemu_arguments().unwrap().join(" ");
        for part in expected {
            assert!(arguments.contains(part), "{text}: no `{part}` in {arguments}");
        }
    }

    #[test]
    fn topologies_become_arguments() {
        check(
            "4n2c1t@1G",
            &["-smp 8,sockets=4,cores=2,threads=1", "-m 4294967296B", "node,nodeid=3,cpus=6-7,memdev=node3"],
        );
        check("2n2c2t@1G", &["-smp 8,sockets=2,cores=2,threads=2", "dist,src=0,dst=1,val=20"]);
        check("1n2c@1G", &["-smp 2,sockets=1,cores=2,threads=1", "node,nodeid=0,cpus=0-1"]);
        check(
            "2n2c@1G; node2 mem=1G; dist=10,16,32/16,10,32/32,32,10",
            &["-numa node,nodeid=2,memdev=node2", "dist,src=0,dst=2,val=32", "-smp 4,sockets=2"],
        );
        check("4n2c1t@1G; dev 0000:3b:00.0 node=2 class=020000", &["numa_node=2", "virtio-net-pci,bus=port2.0"]);
    }
}
