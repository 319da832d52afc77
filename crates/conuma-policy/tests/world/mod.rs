//! A host on which everything that is decided happens at once, and guests that want what a test says.

#![allow(dead_code, unreachable_pub, clippy::unwrap_used, reason = "each test file uses its part")]

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use conuma_balancing::{CoreDemand, Demand, Holder, Host, MemoryDemand, MemoryDevice, Resources};
use conuma_policy::{
    Balancer, Busy, CpuSample, Decision, HostSample, Layout, NodeSample, Rules, Sample, Scene, VmScene, WallTime,
};
use conuma_topology::{Bytes, CpuSet, Machine, NodeId, VmName};

/// What a guest wants: so many busy threads, and so much memory on each node.
#[derive(Debug, Clone, Default)]
pub struct Load {
    pub threads: f64,
    pub in_use: BTreeMap<NodeId, Bytes>,
    pub file: Bytes,
    /// What the kernel keeps free on every node.
    pub kept: Bytes,
    pub stall: f64,
}

pub struct World {
    pub host: Host,
    pub layout: Layout,
    pub balancer: Balancer,
    pub now: Duration,
    pub wall: WallTime,
    pub pool: Resources,
    pub vms: BTreeMap<VmName, VmScene>,
    pub loads: BTreeMap<VmName, Load>,
    counters: BTreeMap<VmName, Sample>,
    /// Moves so far, in cores and in memory moves.
    pub moved: usize,
    /// When, and how much of the budget of moves.
    pub spent: Vec<(Duration, u32)>,
}

pub fn name(text: &str) -> VmName {
    text.parse().unwrap()
}

impl World {
    pub fn new(shape: &str, policy: &str) -> Self {
        let machine: Machine = shape.parse().unwrap();
        let host = Host::new(&machine, &CpuSet::new(), Bytes::mib(256));
        let layout = Layout::flat(&host);
        let pool = host.everything().saturating_sub(&host.reserve);
        Self {
            balancer: Balancer::new(Rules::parse(policy, "policy.toml").unwrap()),
            layout,
            now: Duration::from_secs(1),
            wall: WallTime::default(),
            pool,
            vms: BTreeMap::new(),
            loads: BTreeMap::new(),
            counters: BTreeMap::new(),
            moved: 0,
            spent: Vec::new(),
            host,
        }
    }

    /// A VM that is guaranteed `cores`, holds `cpus` and `mib` of each node.
    pub fn vm(&mut self, vm: &str, cores: usize, cpus: &str, mib: u64) -> &mut VmScene {
        let memory: BTreeMap<NodeId, Bytes> = self
            .host
            .memory
            .keys()
            .map(|node| (*node, Bytes::mib(mib)))
            .filter(|(_, bytes)| !bytes.is_zero())
            .collect();
        let holding = Resources { cpus: cpus.parse().unwrap(), memory };
        assert!(self.pool.take(&holding), "{vm} holds what is not there");
        let device = |(node, total): (&NodeId, &Bytes)| (*node, MemoryDevice { max: *total, block: Bytes::mib(2) });
        let guarantee =
            Demand { cores: Some(CoreDemand::Count(cores)), memory: Some(MemoryDemand::Total(Bytes::mib(256))) };
        let scene = VmScene {
            name: name(vm),
            guarantee,
            limit: Demand::default(),
            weight: 100,
            boot: BTreeMap::new(),
            devices: self.host.memory.iter().map(device).collect(),
            homes: BTreeSet::new(),
            holding,
            busy: Busy::default(),
            lends_memory: true,
            takes_memory: true,
        };
        self.loads.insert(name(vm), Load::default());
        self.vms.entry(name(vm)).or_insert(scene)
    }

    pub fn load(&mut self, vm: &str, threads: f64) {
        self.loads.get_mut(&name(vm)).unwrap().threads = threads;
    }

    pub fn uses(&mut self, vm: &str, node: u32, mib: u64) {
        self.loads.get_mut(&name(vm)).unwrap().in_use.insert(NodeId(node), Bytes::mib(mib));
    }

    pub fn scene(&self) -> Scene<'_> {
        Scene {
            host: &self.host,
            layout: &self.layout,
            offline: CpuSet::new(),
            pool: self.pool.clone(),
            vms: self.vms.values().cloned().collect(),
            wall: self.wall,
        }
    }

    /// Everyone reports after `ms`.
    pub fn report(&mut self, ms: u64) {
        self.now += Duration::from_millis(ms);
        let elapsed = Duration::from_millis(ms);
        for (vm, load) in &self.loads {
            let Some(scene) = self.vms.get(vm) else { continue };
            let sample = self.counters.entry(vm.clone()).or_default();
            sample.at = self.now;
            sample.uptime = self.now;
            let cores = self.layout.cores_in(&scene.holding.cpus);
            let per_core = (load.threads / cores.len().max(1) as f64).min(1.0);
            let waiting = (load.threads - cores.len() as f64).max(0.0) / cores.len().max(1) as f64;
            for cpu in self.layout.of_cpu.keys() {
                let counted = sample
                    .cpus
                    .entry(*cpu)
                    .or_insert(CpuSample { waited: Some(Duration::ZERO), ..CpuSample::default() });
                if scene.holding.cpus.contains(*cpu) {
                    counted.busy += elapsed.mul_f64(per_core);
                    counted.waited = counted.waited.map(|waited| waited + elapsed.mul_f64(waiting));
                }
            }
            let stall = sample.memory_stall.unwrap_or_default() + elapsed.mul_f64(load.stall);
            sample.memory_stall = Some(stall);
            sample.nodes = self
                .host
                .memory
                .keys()
                .map(|node| {
                    let total = scene.holding.on(*node);
                    let used = load.in_use.get(node).copied().unwrap_or_default().min(total);
                    let available = total.saturating_sub(used);
                    let file = load.file.min(available);
                    let node_sample = NodeSample {
                        total,
                        free: available.saturating_sub(file),
                        available,
                        file,
                        kept: load.kept,
                        ..NodeSample::default()
                    };
                    (*node, node_sample)
                })
                .collect();
            let (sample, holding) = (sample.clone(), scene.holding.clone());
            self.balancer.observe(vm, sample, &holding, &self.layout);
        }
    }

    pub fn decide(&self) -> Decision {
        self.balancer.decide(&self.scene(), self.now)
    }

    /// Does what is decided, at once, and checks that nothing is lost or given twice.
    pub fn carry_out(&mut self, decision: &Decision) {
        for step in &decision.moves {
            let step = &step.step;
            match &step.from {
                Holder::Vm(vm) => {
                    assert!(self.vms.get_mut(vm).unwrap().holding.take(&step.what), "{vm} lacks {}", step.what)
                }
                _ => assert!(self.pool.take(&step.what), "the pool lacks {}", step.what),
            }
        }
        for step in &decision.moves {
            let step = &step.step;
            match &step.to {
                Holder::Vm(vm) => self.vms.get_mut(vm).unwrap().holding.add(&step.what),
                _ => self.pool.add(&step.what),
            }
            self.moved += self.layout.cores_in(&step.what.cpus).len() + step.what.memory.len();
        }
        self.spent.push((self.now, decision.spends));
        self.balancer.begun(decision, self.now);
        self.check();
    }

    pub fn check(&self) {
        let mut sum = self.pool.clone();
        for vm in self.vms.values() {
            assert!(!vm.holding.cpus.is_empty(), "{} has no core", vm.name);
            sum.add(&vm.holding);
        }
        assert_eq!(sum, self.host.everything().saturating_sub(&self.host.reserve));
    }

    /// Reports and decisions, one each second.
    pub fn run(&mut self, seconds: u64) {
        for _ in 0..seconds {
            self.report(1000);
            let decision = self.decide();
            self.carry_out(&decision);
        }
    }

    pub fn cores(&self, vm: &str) -> usize {
        self.layout.cores_in(&self.vms[&name(vm)].holding.cpus).len()
    }

    pub fn cpus(&self, vm: &str) -> String {
        self.vms[&name(vm)].holding.cpus.to_string()
    }

    pub fn mib(&self, vm: &str, node: u32) -> u64 {
        self.vms[&name(vm)].holding.on(NodeId(node)).0 >> 20
    }

    pub fn host_available(&mut self, node: u32, mib: u64) {
        let available = [(NodeId(node), Bytes::mib(mib))].into();
        let sample = HostSample { available, ..HostSample::default() };
        self.balancer.observe_host(&sample, &self.host, self.now);
    }
}
