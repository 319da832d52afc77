//! Load and memory, read when the host asks or a trigger of pressure has fired.

use std::collections::BTreeMap;

use conuma_agent_proto::{CpuReport, NodeReport, Pressure, PressureLine, Report};
use conuma_linux::procfs::{self, FreePages, Meminfo, ProcError, ProcFs, Resource};
use conuma_topology::{Bytes, GuestCpuId, GuestNodeId};

use crate::facts::online_nodes;
use crate::kernel::Kernel;
use crate::memory::{self, Blocks};
use crate::zones::Zones;

/// Makes reports; remembers what is dear to read and seldom changes.
#[derive(Debug, Default)]
pub struct Reporter {
    /// By node: its total and its number of blocks when they were read, and what was read. A node has thousands of blocks.
    blocks: BTreeMap<GuestNodeId, ((Bytes, usize), Blocks)>,
    zones: Zones,
}

impl Reporter {
    /// Load and memory now.
    pub fn report(&mut self, kernel: &dyn Kernel) -> Result<Report, ProcError> {
        let proc = ProcFs::new(kernel.root());
        let stat = proc.system_stat()?;
        let queues = proc.cpu_schedstat().unwrap_or_default();
        let cpus = stat.cpus.iter().map(|(&cpu, times)| {
            let queue = queues.get(&cpu);
            CpuReport {
                cpu: GuestCpuId(cpu),
                user: times.user + times.nice,
                system: times.system,
                interrupts: times.irq + times.softirq,
                idle: times.idle + times.iowait,
                steal: times.steal,
                ran: queue.map(|queue| queue.ran),
                waited: queue.map(|queue| queue.waited),
            }
        });
        let uptime = proc.uptime()?;
        let of_node = |node: GuestNodeId| (node, proc.node_meminfo(node.0).unwrap_or_default());
        let nodes: Vec<(GuestNodeId, Meminfo)> = online_nodes(kernel).iter().map(of_node).collect();
        self.zones.refresh(&proc, uptime, nodes.iter().map(|(_, info)| info.bytes("MemTotal")).collect());
        let free = proc.free_by_zone().unwrap_or_default();
        let pressure = |resource| proc.pressure(resource).ok().map(to_message);
        Ok(Report {
            uptime,
            cpus: cpus.collect(),
            nodes: nodes.iter().map(|(node, info)| self.node(kernel, &proc, *node, info, &free)).collect(),
            runnable: stat.running,
            blocked: stat.blocked,
            cpu_pressure: pressure(Resource::Cpu),
            memory_pressure: pressure(Resource::Memory),
            io_pressure: pressure(Resource::Io),
        })
    }

    fn node(
        &mut self,
        kernel: &dyn Kernel,
        proc: &ProcFs,
        node: GuestNodeId,
        info: &Meminfo,
        free_pages: &FreePages,
    ) -> NodeReport {
        let (total, free, file) = (info.bytes("MemTotal"), info.bytes("MemFree"), info.bytes("FilePages"));
        let (huge_total, huge_free) = memory::huge_pages(kernel, node);
        let blocks = self.blocks(kernel, node, total);
        NodeReport {
            node,
            total,
            free,
            available: info.available_on_node(),
            file,
            anonymous: info.bytes("AnonPages"),
            movable: self.zones.movable(node),
            huge_total,
            huge_free,
            blocks_online: blocks.online,
            blocks_offline: blocks.offline,
            refaults: proc.node_refaults(node.0).ok().flatten(),
            active_file: Some(info.bytes("Active(file)")),
            shmem: Some(info.bytes("Shmem")),
            kept: self.zones.kept(node, free_pages),
        }
    }

    /// Read again only when the node's size or the number of its blocks has changed.
    fn blocks(&mut self, kernel: &dyn Kernel, node: GuestNodeId, total: Bytes) -> Blocks {
        let names = memory::block_names(kernel, node);
        let key = (total, names.len());
        if let Some((known, blocks)) = self.blocks.get(&node)
            && *known == key
        {
            return *blocks;
        }
        let blocks = memory::read_blocks(kernel, &names);
        self.blocks.insert(node, (key, blocks));
        blocks
    }
}

fn to_message(pressure: procfs::Pressure) -> Pressure {
    let line = |line: procfs::PressureLine| {
        let share = |percent: f64| (percent * 100.0).round().clamp(0.0, 10_000.0) as u32;
        PressureLine { avg10: share(line.avg10), avg60: share(line.avg60), total: line.total }
    };
    Pressure { some: line(pressure.some), full: pressure.full.map(line) }
}
