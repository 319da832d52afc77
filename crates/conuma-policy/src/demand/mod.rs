//! From samples to what a VM is believed to want. Every estimate carries its inputs and its reason.

mod cores;
mod memory;

use std::collections::BTreeMap;
use std::time::Duration;

use conuma_balancing::Resources;
use conuma_topology::{Bytes, NodeId};
use serde::{Deserialize, Serialize};

use crate::rules::Tuning;
use crate::sample::{SHORTEST, Sample};
use crate::scene::Layout;

use cores::CoreEstimator;
use memory::NodeEstimator;

/// An estimate without a new sample for so long says nothing any more.
pub const STALE: Duration = Duration::from_secs(15);

/// What a VM is believed to want.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Estimate {
    /// When the last sample was taken; `None` if there was none: then nothing is known.
    pub at: Option<Duration>,
    /// Of cores.
    pub cores: CoreEstimate,
    /// Of memory, by node.
    pub memory: BTreeMap<NodeId, NodeEstimate>,
}

/// What it wants of cores, and from what that was found. All in cores.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct CoreEstimate {
    /// So many.
    pub wanted: f64,
    /// In use, on average, between the last two samples.
    pub used: f64,
    /// Waited for; `None` where nobody counts.
    pub waiting: Option<f64>,
    /// Share of the time in which a task waited for a CPU.
    pub stall: Option<f64>,
    /// Held when it was looked at.
    pub held: usize,
    /// Asked for beyond what the load shows.
    pub probe: f64,
    /// Why so many.
    pub why: CoreWhy,
}

/// Why so many cores.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum CoreWhy {
    /// Nothing is known.
    #[default]
    Unknown,
    /// What it uses.
    Use,
    /// What it uses, and what tasks wait for.
    Queue,
    /// The load has fallen, and might come back.
    Fading,
    /// All its cores are busy: more are tried.
    Probing,
    /// All its cores are busy, but more did not help.
    Saturated,
}

/// What it wants of a node's memory.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct NodeEstimate {
    /// So much.
    pub wanted: Bytes,
    /// What the guest could use of it when it was looked at.
    pub total: Bytes,
    /// What it cannot do without.
    pub in_use: Bytes,
    /// Page cache worth keeping.
    pub cache: Bytes,
    /// What its kernel keeps free, and no task can use.
    pub kept: Bytes,
    /// Room that it should have.
    pub headroom: Bytes,
    /// What it is expected to use more by the end of the foresight.
    pub growth: Bytes,
    /// Bytes a second that it reads again soon after they were dropped.
    pub refaults: Option<f64>,
    /// Share of the time in which a task waited for memory, on any node.
    pub stall: Option<f64>,
    /// Why so much.
    pub why: MemoryWhy,
}

/// Why so much memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum MemoryWhy {
    /// Nothing is known.
    #[default]
    Unknown,
    /// Its working set, with room.
    WorkingSet,
    /// It grows.
    Growth,
    /// It waits for memory, or reads again what was dropped.
    Pressure,
    /// The load has fallen, and might come back.
    Fading,
}

/// Makes estimates of one VM.
#[derive(Debug, Clone, Default)]
pub struct Estimator {
    last: Option<Sample>,
    cores: CoreEstimator,
    nodes: BTreeMap<NodeId, NodeEstimator>,
    estimate: Estimate,
}

impl Estimator {
    /// Learns of a sample, taken while the VM held `holding`.
    pub fn observe(&mut self, mut sample: Sample, holding: &Resources, layout: &Layout, tuning: &Tuning) {
        // Nobody has more of a node than it holds, whatever it claims.
        for (node, claimed) in &mut sample.nodes {
            let held = holding.on(*node);
            claimed.total = claimed.total.min(held);
            claimed.available = claimed.available.min(claimed.total);
            claimed.kept = claimed.kept.min(claimed.available);
            claimed.file = claimed.file.min(claimed.total);
            claimed.active_file = claimed.active_file.map(|active| active.min(claimed.total));
        }
        let Some(before) = &self.last else {
            self.last = Some(sample);
            return;
        };
        if sample.uptime < before.uptime {
            *self = Self { last: Some(sample), ..Self::default() };
            return;
        }
        if sample.uptime - before.uptime < SHORTEST {
            return;
        }
        let Some(reading) = sample.since(before, layout, &holding.cpus) else { return };
        let elapsed = sample.at.saturating_sub(before.at).max(reading.window);
        let held = layout.cores_in(&holding.cpus).len();
        let cores = self.cores.observe(&reading, elapsed, held, layout.cores.len(), tuning);
        let mut memory = BTreeMap::new();
        for (node, now) in &reading.nodes {
            let estimator = self.nodes.entry(*node).or_default();
            memory.insert(*node, estimator.observe(now, reading.memory_stall, elapsed, tuning));
        }
        self.estimate = Estimate { at: Some(sample.at), cores, memory };
        self.last = Some(sample);
    }

    /// What it is believed to want; nothing is known if the last sample is too old.
    pub fn estimate(&self, now: Duration) -> Option<&Estimate> {
        self.estimate.at.filter(|at| now.saturating_sub(*at) <= STALE).map(|_| &self.estimate)
    }

    /// The last estimate, however old.
    pub fn last(&self) -> &Estimate {
        &self.estimate
    }
}

/// A value that follows another, quickly when that rises and slowly when it falls.
pub(crate) fn follow(value: f64, target: f64, elapsed: Duration, attack: f64, decay: f64) -> f64 {
    let constant = if target > value { attack } else { decay };
    let part = if constant > 0.0 { 1.0 - (-elapsed.as_secs_f64() / constant).exp() } else { 1.0 };
    value + (target - value) * part
}
