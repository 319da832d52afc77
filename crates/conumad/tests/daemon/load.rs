//! A load that a fake guest has: threads that want to run, and memory in use. Counts as a kernel would.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use conuma_agent_proto::{CpuReport, NodeReport, Report};
use conuma_hypervisor::Vm as _;
use conuma_hypervisor::fake::FakeVm;
use conuma_topology::{Bytes, GuestCpuId, GuestCpuSet, GuestNodeId, NodeId};

use crate::guest::{BOOT, CPUS, NODES};

/// What runs in a guest, and what its kernel has counted of it.
#[derive(Debug)]
pub struct Load {
    /// So many threads want to run all the time.
    pub threads: f64,
    /// Claims that every CPU is busy and that tasks wait on each, whatever is true.
    pub lies: bool,
    /// What is in use, by node.
    pub in_use: BTreeMap<u32, Bytes>,
    vm: Arc<FakeVm>,
    boot: Instant,
    counted: Instant,
    busy: BTreeMap<u32, Duration>,
    waited: BTreeMap<u32, Duration>,
}

impl Load {
    /// None, in the guest of this VM.
    pub fn none(vm: Arc<FakeVm>) -> Self {
        let now = Instant::now();
        let (in_use, busy, waited) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
        Self { threads: 0.0, lies: false, in_use, vm, boot: now, counted: now, busy, waited }
    }

    /// The VM that it runs in.
    pub fn vm(&self) -> Arc<FakeVm> {
        self.vm.clone()
    }

    /// Counts what has run since it counted last, on these CPUs.
    pub fn count(&mut self, held: &GuestCpuSet) {
        let now = Instant::now();
        let elapsed = now.duration_since(std::mem::replace(&mut self.counted, now));
        let mut left = self.threads;
        for cpu in 0..CPUS {
            let runs = match (self.lies, held.contains(GuestCpuId(cpu))) {
                (true, _) => 1.0,
                (false, true) => left.clamp(0.0, 1.0),
                (false, false) => 0.0,
            };
            left -= runs;
            *self.busy.entry(cpu).or_default() += elapsed.mul_f64(runs);
        }
        let first = held.first().map_or(0, |cpu| cpu.0);
        let waits = if self.lies { 100.0 } else { left.max(0.0) };
        *self.waited.entry(first).or_default() += elapsed.mul_f64(waits);
    }

    /// What its agent reports, with what the guest has of each node.
    pub fn report(&self, totals: &BTreeMap<u32, Bytes>) -> Report {
        let cpu = |cpu: u32| {
            let busy = self.busy.get(&cpu).copied().unwrap_or_default();
            CpuReport {
                cpu: GuestCpuId(cpu),
                user: busy,
                system: Duration::ZERO,
                interrupts: Duration::ZERO,
                idle: self.boot.elapsed().saturating_sub(busy),
                steal: Duration::ZERO,
                ran: Some(busy),
                waited: Some(self.waited.get(&cpu).copied().unwrap_or_default()),
            }
        };
        let node = |node: u32| {
            let total = totals.get(&node).copied().unwrap_or(BOOT);
            let free = total.saturating_sub(self.in_use.get(&node).copied().unwrap_or_default());
            NodeReport {
                node: GuestNodeId(node),
                total,
                free,
                available: free,
                file: Bytes::ZERO,
                anonymous: total.saturating_sub(free),
                movable: Bytes::ZERO,
                huge_total: Bytes::ZERO,
                huge_free: Bytes::ZERO,
                blocks_online: total,
                blocks_offline: Bytes::ZERO,
                refaults: Some(0),
                active_file: Some(Bytes::ZERO),
                shmem: Some(Bytes::ZERO),
                kept: Some(Bytes::ZERO),
            }
        };
        Report {
            uptime: self.counted.duration_since(self.boot),
            cpus: (0..CPUS).map(cpu).collect(),
            nodes: (0..NODES).map(node).collect(),
            runnable: self.threads.ceil() as u32,
            ..Report::default()
        }
    }
}

/// What the guest of a VM has of each node: boot memory, and what it has plugged.
pub async fn totals(vm: &FakeVm) -> BTreeMap<u32, Bytes> {
    let mut totals = BTreeMap::new();
    for node in 0..NODES {
        let plugged = vm.memory(NodeId(node)).await.map(|memory| memory.size).unwrap_or_default();
        totals.insert(node, BOOT + plugged);
    }
    totals
}
