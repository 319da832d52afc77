//! How long one decision takes, and how that grows: `cargo bench -p conuma-policy`.
//!
//! The decision is a hard one: every VM's load has changed, so that cores of all of them move, and a third of them want memory. Beside it
//! stands the usual one, where nothing has. Fails if a decision takes longer than SPEC.md says.

#![allow(
    clippy::print_stdout,
    clippy::unwrap_used,
    clippy::disallowed_types,
    reason = "a benchmark takes times and tells them"
)]

use std::collections::{BTreeMap, BTreeSet};
use std::hint::black_box;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use conuma_balancing::{CoreDemand, Demand, Host, MemoryDemand, MemoryDevice, Resources};
use conuma_policy::{Balancer, Busy, CpuSample, Layout, NodeSample, Rules, Sample, Scene, VmScene, WallTime};
use conuma_topology::{Bytes, CpuId, CpuSet, Machine, NodeId};

/// Nodes, cores a node, threads a core, VMs, and the most that a decision may take.
const SIZES: [(u32, u32, u32, u32, Option<Duration>); 5] = [
    (1, 4, 2, 2, None),
    (2, 16, 2, 8, None),
    (4, 32, 2, 32, None),
    (8, 32, 2, 64, Some(Duration::from_millis(1))),
    (16, 64, 2, 256, Some(Duration::from_millis(10))),
];
const ROUNDS: usize = 31;
/// A part of the largest decision costs so many times what one of a small one does, at most; its data are some hundred times as large.
const MOST_GROWTH: f64 = 3.0;

struct Case {
    host: Host,
    layout: Layout,
    vms: Vec<VmScene>,
    pool: Resources,
    balancer: Balancer,
    now: Duration,
}

impl Case {
    fn new(nodes: u32, cores: u32, threads: u32, vms: u32) -> Self {
        let machine: Machine = format!("{nodes}n{cores}c{threads}t@256G").parse().unwrap();
        let host = Host::new(&machine, &CpuSet::new(), Bytes::gib(2));
        let layout = Layout::new(&host, &machine);
        let mut pool = host.everything().saturating_sub(&host.reserve);
        let per_vm = (nodes * cores / vms) as usize;
        let mut seats = layout.cores.values();
        // Three quarters of a VM's memory are where its cores are.
        let memory = |total: &Bytes, home: bool| {
            let there = total.saturating_sub(Bytes::gib(2)).0;
            let (at_home, all) = (u64::from(vms.div_ceil(nodes)), u64::from(vms));
            Bytes(if home { there / 4 * 3 / at_home } else { there / 4 / all }).round_down(Bytes::mib(2))
        };
        let vms = (0..vms).map(|index| {
            let mut cpus = CpuSet::new();
            for seat in seats.by_ref().take(per_vm) {
                cpus.extend(seat.cpus.iter());
            }
            let home = index * nodes / vms;
            let memory = host.memory.iter().map(|(node, total)| (*node, memory(total, node.0 == home)));
            let holding = Resources { cpus, memory: memory.collect() };
            assert!(pool.take(&holding));
            VmScene {
                name: format!("vm-{index}").parse().unwrap(),
                guarantee: Demand {
                    cores: Some(CoreDemand::Count(1 + per_vm / 2)),
                    memory: Some(MemoryDemand::Total(Bytes::gib(1))),
                },
                limit: Demand::default(),
                weight: 100 + index % 7 * 50,
                boot: BTreeMap::new(),
                devices: host
                    .memory
                    .iter()
                    .map(|(node, max)| (*node, MemoryDevice { max: *max, block: Bytes::mib(2) }))
                    .collect(),
                homes: BTreeSet::new(),
                holding,
                busy: Busy::default(),
                lends_memory: true,
                takes_memory: true,
            }
        });
        let vms = vms.collect();
        let balancer = Balancer::new(Rules::parse("mode = \"auto\"", "bench").unwrap());
        Self { vms, pool, balancer, now: Duration::ZERO, layout, host }
    }

    /// Every VM reports; `load` gives, by VM, how many times what it holds it wants.
    fn report(&mut self, load: impl Fn(usize) -> f64) {
        self.now += Duration::from_secs(1);
        for (index, vm) in self.vms.iter().enumerate() {
            let times = load(index);
            let cpu = |cpu: CpuId| {
                let counted = CpuSample {
                    busy: self.now.mul_f64(times.min(1.0)),
                    waited: Some(self.now.mul_f64((times - 1.0).max(0.0))),
                    accounted: Some(self.now),
                };
                (cpu, counted)
            };
            let node = |(node, total): (&NodeId, &Bytes)| {
                let part = if times > 1.0 && (index + node.0 as usize).is_multiple_of(3) { 0.98 } else { 0.4 };
                let available = Bytes((total.0 as f64 * (1.0 - part)) as u64);
                (*node, NodeSample { total: *total, free: available, available, ..NodeSample::default() })
            };
            let sample = Sample {
                at: self.now,
                uptime: self.now,
                cpus: vm.holding.cpus.iter().map(cpu).collect(),
                nodes: vm.holding.memory.iter().map(node).collect(),
                ..Sample::default()
            };
            self.balancer.observe(&vm.name, sample, &vm.holding, &self.layout);
        }
    }

    fn scene(&self) -> Scene<'_> {
        Scene {
            host: &self.host,
            layout: &self.layout,
            offline: CpuSet::new(),
            pool: self.pool.clone(),
            vms: self.vms.clone(),
            wall: WallTime::default(),
        }
    }

    fn median(&self) -> (Duration, usize) {
        let scene = self.scene();
        let mut moves = 0;
        let mut times: Vec<Duration> = (0..ROUNDS)
            .map(|_| {
                let began = Instant::now();
                let decision = self.balancer.decide(black_box(&scene), self.now);
                moves = decision.moves.len();
                black_box(decision.requests());
                began.elapsed()
            })
            .collect();
        times.sort();
        (times[ROUNDS / 2], moves)
    }
}

fn main() -> ExitCode {
    println!("one decision, median of {ROUNDS}");
    println!("{:>28}  {:>12} {:>6}  {:>12} {:>6}  {:>9}", "host", "changed", "moves", "unchanged", "moves", "per part");
    let mut failed = false;
    let mut grown: Vec<f64> = Vec::new();
    for (nodes, cores, threads, vms, most) in SIZES {
        let mut case = Case::new(nodes, cores, threads, vms);
        for _ in 0..3 {
            case.report(|_| 0.9);
        }
        let (unchanged, few) = case.median();
        for _ in 0..3 {
            case.report(|index| if index % 2 == 0 { 0.2 } else { 3.0 });
        }
        let (changed, moves) = case.median();
        // What a decision has to look at: a number for each VM on each node, and every core.
        let parts = f64::from(vms * nodes + nodes * cores);
        grown.push(changed.as_secs_f64() * 1e6 / parts);
        let host = format!("{nodes} nodes, {} CPUs, {vms} VMs", nodes * cores * threads);
        println!(
            "{host:>28}  {:>9.3} ms {moves:>6}  {:>9.3} ms {few:>6}  {:>6.2} us",
            changed.as_secs_f64() * 1e3,
            unchanged.as_secs_f64() * 1e3,
            grown[grown.len() - 1],
        );
        if let Some(most) = most.filter(|most| changed > *most) {
            println!("{:>28}  more than {} ms", "", most.as_millis());
            failed = true;
        }
    }
    let growth = grown[grown.len() - 1] / grown[1];
    println!("from the second size to the largest, a part costs {growth:.1} times as much");
    if growth > MOST_GROWTH {
        println!("more than {MOST_GROWTH} times: that is not nearly linear");
        failed = true;
    }
    if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}
