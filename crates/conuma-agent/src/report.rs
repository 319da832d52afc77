//! Load and memory, read when the host asks or a trigger of pressure has fired.

use std::cell::OnceCell;
use std::collections::BTreeMap;

use conuma_agent_proto::{CpuReport, NodeReport, Pressure, PressureLine, Report};
use conuma_linux::procfs::{self, ProcError, ProcFs, Resource, Zone};
use conuma_topology::{Bytes, GuestCpuId, GuestNodeId};

use crate::facts::online_nodes;
use crate::kernel::Kernel;
use crate::memory::{self, Blocks};

/// Makes reports; remembers what is dear to read and seldom changes.
#[derive(Debug, Default)]
pub struct Reporter {
    /// By node: its total and its number of blocks when the rest was read, and what was read.
    layouts: BTreeMap<GuestNodeId, ((Bytes, usize), Layout)>,
}

/// What of a node's memory only changes when memory comes or goes.
#[derive(Debug, Clone, Copy)]
struct Layout {
    blocks: Blocks,
    /// Pages of the zone that can be emptied.
    movable: u64,
    /// Pages that the kernel keeps free.
    kept: u64,
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
        let zones = OnceCell::new();
        let pressure = |resource| proc.pressure(resource).ok().map(to_message);
        Ok(Report {
            uptime: proc.uptime()?,
            cpus: cpus.collect(),
            nodes: online_nodes(kernel).iter().map(|node| self.node(kernel, &proc, node, &zones)).collect(),
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
        zones: &OnceCell<Vec<Zone>>,
    ) -> NodeReport {
        let info = proc.node_meminfo(node.0).unwrap_or_default();
        let (total, free, file) = (info.bytes("MemTotal"), info.bytes("MemFree"), info.bytes("FilePages"));
        let (huge_total, huge_free) = memory::huge_pages(kernel, node);
        let Layout { blocks, movable, kept } = self.layout(kernel, proc, node, total, zones);
        NodeReport {
            node,
            total,
            free,
            available: info.available_on_node(),
            file,
            anonymous: info.bytes("AnonPages"),
            movable: memory::pages(movable),
            huge_total,
            huge_free,
            blocks_online: blocks.online,
            blocks_offline: blocks.offline,
            refaults: proc.node_refaults(node.0).ok().flatten(),
            active_file: Some(info.bytes("Active(file)")),
            shmem: Some(info.bytes("Shmem")),
            kept: Some(memory::pages(kept)),
        }
    }

    /// A node has thousands of blocks, and the kernel tells of zones only together with every CPU's part in each: they are
    /// read again only when the node's size or the number of its blocks has changed.
    fn layout(
        &mut self,
        kernel: &dyn Kernel,
        proc: &ProcFs,
        node: GuestNodeId,
        total: Bytes,
        zones: &OnceCell<Vec<Zone>>,
    ) -> Layout {
        let names = memory::block_names(kernel, node);
        let key = (total, names.len());
        if let Some((known, layout)) = self.layouts.get(&node)
            && *known == key
        {
            return *layout;
        }
        let zones = zones.get_or_init(|| proc.zones().unwrap_or_default());
        let own = || zones.iter().filter(|zone| zone.node == node.0);
        let movable = own().filter(|zone| zone.name == "Movable").map(|zone| zone.managed).sum();
        let kept = own().map(Zone::kept).sum();
        let layout = Layout { blocks: memory::read_blocks(kernel, &names), movable, kept };
        self.layouts.insert(node, (key, layout));
        layout
    }
}

fn to_message(pressure: procfs::Pressure) -> Pressure {
    let line = |line: procfs::PressureLine| {
        let share = |percent: f64| (percent * 100.0).round().clamp(0.0, 10_000.0) as u32;
        PressureLine { avg10: share(line.avg10), avg60: share(line.avg60), total: line.total }
    };
    Pressure { some: line(pressure.some), full: pressure.full.map(line) }
}
