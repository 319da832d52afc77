//! A guest: what is really in force for it, what it does with that, and the counters that a real one would show.

use std::collections::BTreeMap;
use std::time::Duration;

use conuma_balancing::{PluggedMemory, Resources, VmSeen};
use conuma_policy::{CpuSample, NodeSample, Sample};
use conuma_topology::{Bytes, CoreId, CpuSet, NodeId, VmName};

use crate::load::Load;
use crate::outcome::Slice;
use crate::pages::Pages;
use crate::site::{BLOCK, Site};
use crate::trace::{Kind, TraceVm};

/// What a liar claims to wait for.
const CLAIM: u32 = 1_000_000;

/// Whether it runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Life {
    /// Its agent is connected.
    Up,
    /// It boots until then.
    Boots(Duration),
    /// QEMU is dead; it is tried to start it then.
    Dead(Duration),
}

/// A VM, as it really is.
#[derive(Debug, Clone)]
pub struct Guest<'a> {
    /// Its name.
    pub name: VmName,
    /// Whether it runs.
    pub life: Life,
    /// When room for it is asked for again, while it cannot start.
    pub asks_again: Duration,
    /// CPUs whose gate is open.
    pub open: CpuSet,
    /// CPUs on which it runs although their gate is closed softly.
    pub runs_on: CpuSet,
    /// CPUs that its agent holds it to; `None`: all.
    pub using: Option<CpuSet>,
    /// Its virtio-mem devices.
    pub plugged: BTreeMap<NodeId, PluggedMemory>,
    /// What it does not unplug below.
    pub stuck: BTreeMap<NodeId, Bytes>,
    /// The newest action that its agent has seen.
    pub newest: u64,
    /// What it has to do.
    pub load: Load<'a>,
    /// Its working set.
    pub pages: Pages,
    boot: BTreeMap<NodeId, Bytes>,
    booted: Duration,
    /// What follows from `open`, `using` and the devices.
    cores: Vec<CoreId>,
    by_node: Vec<usize>,
    usable: Vec<f64>,
    counters: Counters,
    /// Bytes that could have been moved by now, by node.
    credit: BTreeMap<NodeId, f64>,
}

/// Since boot.
#[derive(Debug, Clone, Default)]
struct Counters {
    /// Seconds, by place of the CPU.
    busy: Vec<f64>,
    waited: f64,
    cpu_stall: f64,
    memory_stall: f64,
    /// Pages, by place of the node.
    refaults: Vec<f64>,
}

/// How fast memory moves, in bytes a second.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Rates {
    /// Out of a guest.
    pub unplug: f64,
    /// Into one.
    pub plug: f64,
    /// Pages that a guest reads again in a second in which it waits for nothing but memory, in bytes.
    pub refault: f64,
}

impl<'a> Guest<'a> {
    /// One that runs with what it holds at first.
    pub fn new(vm: &'a TraceVm, place: usize, site: &Site) -> Self {
        let initial = site.initial(place);
        let spec = &site.vms[place];
        let plug = |node: &NodeId| {
            let size = initial.on(*node).saturating_sub(spec.boot.get(node).copied().unwrap_or_default());
            (*node, PluggedMemory { requested: size, size })
        };
        let home = vm.terms.node.and_then(|home| site.nodes.iter().position(|node| *node == home));
        let mut guest = Self {
            name: vm.name.clone(),
            life: Life::Up,
            asks_again: Duration::ZERO,
            open: initial.cpus.clone(),
            runs_on: CpuSet::new(),
            using: Some(initial.cpus.clone()),
            plugged: spec.devices.keys().map(plug).collect(),
            stuck: BTreeMap::new(),
            newest: 0,
            load: Load::new(vm, site.limit(place)),
            pages: Pages::new(site.nodes.len(), home),
            boot: spec.boot.clone(),
            booted: Duration::ZERO,
            cores: Vec::new(),
            by_node: Vec::new(),
            usable: Vec::new(),
            counters: Counters::new(site),
            credit: BTreeMap::new(),
        };
        guest.refresh(site);
        guest
    }

    /// What a look at the host finds.
    pub fn seen(&self) -> VmSeen {
        VmSeen { open: self.open.clone(), runs_on: self.runs_on.clone(), plugged: self.plugged.clone() }
    }

    /// Whether QEMU runs.
    pub fn is_alive(&self) -> bool {
        !matches!(self.life, Life::Dead(_))
    }

    /// Cores that it can really use.
    pub fn held(&self) -> usize {
        if self.life == Life::Up { self.cores.len() } else { 0 }
    }

    /// Gates, the agent's holding, or a device have changed.
    pub fn refresh(&mut self, site: &Site) {
        let usable = match &self.using {
            Some(using) => self.open.intersection(using),
            None => self.open.clone(),
        };
        self.cores = site.layout.cores_in(&usable);
        self.by_node = site.by_node(&self.cores);
        self.usable = site.nodes.iter().map(|node| self.usable_on(*node).0 as f64).collect();
        self.pages.touch();
    }

    fn usable_on(&self, node: NodeId) -> Bytes {
        self.boot.get(&node).copied().unwrap_or_default()
            + self.plugged.get(&node).map(|device| device.size).unwrap_or_default()
    }

    /// What of all its memory it can do without.
    pub fn spare(&self) -> Bytes {
        let usable: f64 = self.usable.iter().sum();
        Bytes((usable * 0.98 - self.pages.wanted - BLOCK.0 as f64).max(0.0) as u64)
    }

    /// Free memory by node.
    pub fn free(&self, site: &Site) -> BTreeMap<NodeId, Bytes> {
        let free = |place: usize| Bytes((self.usable[place] - self.pages.on[place]).max(0.0) as u64);
        site.nodes.iter().enumerate().map(|(place, node)| (*node, free(place))).collect()
    }

    /// Moves pages away until so much of a node is free, as far as that is possible; whether it was.
    pub fn make_room(&mut self, node: NodeId, bytes: Bytes, site: &Site) -> bool {
        let Some(place) = site.nodes.iter().position(|known| *known == node) else { return false };
        let most = (self.usable[place] - bytes.0 as f64).max(0.0);
        self.pages.make_room(place, most, &self.usable);
        self.pages.on[place] <= most + 1.0
    }

    /// Whether a device is not as large as it should be and could be.
    pub fn plugs(&self) -> bool {
        self.is_alive() && self.plugged.iter().any(|(node, device)| device.size != self.goal(*node, device))
    }

    fn goal(&self, node: NodeId, device: &PluggedMemory) -> Bytes {
        let stuck = self.stuck.get(&node).copied().unwrap_or_default();
        device.requested.max(stuck.min(device.size))
    }

    /// Time passes: devices grow and shrink block by block. Whether any did.
    pub fn plug(&mut self, seconds: f64, rates: &Rates, site: &Site) -> bool {
        if self.life != Life::Up {
            return false;
        }
        let nodes: Vec<NodeId> = self.plugged.keys().copied().collect();
        let mut any = false;
        for node in nodes {
            let Some(device) = self.plugged.get(&node).copied() else { continue };
            let goal = self.goal(node, &device);
            if device.size == goal {
                self.credit.remove(&node);
                continue;
            }
            let grows = goal > device.size;
            let credit = self.credit.entry(node).or_default();
            *credit += seconds * if grows { rates.plug } else { rates.unplug };
            let blocks = (*credit / BLOCK.0 as f64).floor();
            *credit -= blocks * BLOCK.0 as f64;
            for _ in 0..blocks as u64 {
                any |= self.move_block(node, goal, site);
            }
        }
        if any {
            self.refresh(site);
        }
        any
    }

    fn move_block(&mut self, node: NodeId, goal: Bytes, site: &Site) -> bool {
        let size = self.plugged.get(&node).map(|device| device.size).unwrap_or_default();
        let next = if goal > size { (size + BLOCK).min(goal) } else { size.saturating_sub(BLOCK).max(goal) };
        if next < size {
            let less = size.saturating_sub(next);
            let usable: f64 = self.usable.iter().sum();
            let fits = usable - less.0 as f64 >= self.pages.wanted;
            if !fits || !self.make_room(node, less, site) {
                return false;
            }
        }
        if let Some(device) = self.plugged.get_mut(&node) {
            device.size = next;
        }
        if let Some(place) = site.nodes.iter().position(|known| *known == node) {
            self.usable[place] = self.usable_on(node).0 as f64;
        }
        next != size
    }

    /// Time passes at constant rates. What came of it; `None` while it does not run.
    pub fn run(&mut self, seconds: f64, far_loss: f64, rates: &Rates, site: &Site) -> Option<Slice> {
        if self.life != Life::Up {
            return None;
        }
        let held = self.cores.len();
        self.pages.step(self.load.memory().0 as f64, &self.usable, &self.by_node, seconds);
        let (wants, comes, busy) = (self.load.wants(), self.load.comes(), self.load.busy(held));
        let (near, fit) = (self.pages.near(&self.by_node), self.pages.fit());
        let loss = (far_loss * site.steps_away * (1.0 - near)).min(1.0);
        let done = self.load.work(self.load.speed(held) * fit * (1.0 - loss), seconds);
        self.counters.count(busy, (wants - held as f64).max(0.0), fit, seconds, rates, &self.cores, site);
        let (memory, short) = (self.pages.wanted, self.pages.short());
        Some(Slice { comes, wants, held: held as f64, done, busy: busy * seconds, near, memory, short, seconds })
    }

    /// Whether tasks wait for a CPU now.
    pub fn stalls(&self) -> bool {
        self.life == Life::Up && (self.load.kind() == Kind::Liar || self.load.wants() > self.cores.len() as f64 + 1e-9)
    }

    /// It begins anew, with what QEMU leaves in force.
    pub fn boot(&mut self, until: Duration, now: Duration, site: &Site) {
        self.life = Life::Boots(until);
        self.booted = now;
        self.using = None;
        self.newest = 0;
        self.stuck.clear();
        self.counters = Counters::new(site);
        for device in self.plugged.values_mut() {
            device.size = Bytes::ZERO;
        }
        self.refresh(site);
    }

    /// QEMU was started with this.
    pub fn started(&mut self, holding: &Resources, until: Duration, now: Duration, site: &Site) {
        self.open = holding.cpus.clone();
        self.runs_on = CpuSet::new();
        self.plugged.values_mut().for_each(|device| *device = PluggedMemory::default());
        self.boot(until, now, site);
    }

    /// Its counters now.
    pub fn sample(&self, now: Duration, site: &Site) -> Sample {
        let uptime = now.saturating_sub(self.booted);
        if self.load.kind() == Kind::Liar {
            return self.lie(now, uptime, site);
        }
        let counters = &self.counters;
        let cpus = site.cpus.iter().zip(&counters.busy).enumerate().map(|(place, (cpu, busy))| {
            let waited = if place == 0 { counters.waited } else { 0.0 };
            (
                *cpu,
                CpuSample {
                    busy: Duration::from_secs_f64(*busy),
                    waited: Some(Duration::from_secs_f64(waited)),
                    accounted: None,
                },
            )
        });
        let nodes = site.nodes.iter().enumerate().filter(|_| site.has_memory).map(|(place, node)| {
            let (total, used) = (self.usable[place], self.pages.on[place]);
            let available = (total - used).max(0.0);
            let file = available.min(used * 0.1);
            let sample = NodeSample {
                total: Bytes(total as u64),
                free: Bytes((available - file) as u64),
                available: Bytes(available as u64),
                kept: Bytes::ZERO,
                file: Bytes(file as u64),
                active_file: Some(Bytes(file as u64 / 4)),
                refaults: Some(counters.refaults[place] as u64),
            };
            (*node, sample)
        });
        Sample {
            at: now,
            uptime,
            cpus: cpus.collect(),
            runnable: Some(self.load.wants().ceil() as u32),
            cpu_stall: Some(Duration::from_secs_f64(counters.cpu_stall)),
            memory_stall: Some(Duration::from_secs_f64(counters.memory_stall)),
            nodes: nodes.collect(),
        }
    }

    fn lie(&self, now: Duration, uptime: Duration, site: &Site) -> Sample {
        let claim = CpuSample { busy: uptime, waited: Some(uptime.saturating_mul(CLAIM)), accounted: None };
        let nodes = site.nodes.iter().enumerate().filter(|_| site.has_memory).map(|(place, node)| {
            let total = Bytes(self.usable[place] as u64);
            let refaults = Some(uptime.as_secs() * u64::from(CLAIM));
            (*node, NodeSample { total, active_file: Some(Bytes::ZERO), refaults, ..NodeSample::default() })
        });
        Sample {
            at: now,
            uptime,
            cpus: site.cpus.iter().map(|cpu| (*cpu, claim)).collect(),
            runnable: Some(CLAIM),
            cpu_stall: Some(uptime),
            memory_stall: Some(uptime),
            nodes: nodes.collect(),
        }
    }
}

impl Counters {
    fn new(site: &Site) -> Self {
        Self { busy: vec![0.0; site.cpus.len()], refaults: vec![0.0; site.nodes.len()], ..Self::default() }
    }

    /// Cores are filled one after the other, with all their CPUs.
    #[expect(clippy::too_many_arguments, reason = "all that happened in one step")]
    fn count(&mut self, busy: f64, waiting: f64, fit: f64, seconds: f64, rates: &Rates, cores: &[CoreId], site: &Site) {
        let mut rest = busy;
        for core in cores {
            if rest <= 0.0 {
                break;
            }
            let part = rest.min(1.0);
            rest -= part;
            let Some(seat) = site.layout.cores.get(core) else { continue };
            // A core of which only a part of the time is used is used by one of its CPUs.
            let cpus = if part < 1.0 { 1 } else { seat.cpus.len() };
            for cpu in seat.cpus.iter().take(cpus) {
                if let Ok(place) = site.cpus.binary_search(&cpu) {
                    self.busy[place] += part * seconds;
                }
            }
        }
        let threads = cores.first().and_then(|core| site.layout.cores.get(core)).map_or(1, |seat| seat.cpus.len());
        self.waited += waiting * threads as f64 * seconds;
        if waiting > 1e-9 {
            self.cpu_stall += seconds;
        }
        self.memory_stall += (1.0 - fit) * seconds;
        let nodes = self.refaults.len().max(1) as f64;
        for refaults in &mut self.refaults {
            *refaults += (1.0 - fit) * rates.refault / 4096.0 * seconds / nodes;
        }
    }
}
