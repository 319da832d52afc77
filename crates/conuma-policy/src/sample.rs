//! What is known of a VM's load: counters as its guest or the host tells them, in host ids.
//!
//! Counters come from a guest, so nothing here trusts them further than the VM's own share: a CPU cannot have been busy for longer than
//! the time between two samples, by the host's clock as by the guest's.

use std::collections::BTreeMap;
use std::time::Duration;

use conuma_topology::{Bytes, CpuId, CpuSet, NodeId};
use serde::{Deserialize, Serialize};

use crate::scene::Layout;

/// Two samples nearer to each other than this are one.
pub const SHORTEST: Duration = Duration::from_millis(40);

/// Load and memory of a VM at one instant. Counters grow from the guest's boot.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Sample {
    /// When it was taken, by the host's clock.
    pub at: Duration,
    /// Time since the guest booted; an earlier one means another boot. Of a sample of the host: since anything.
    pub uptime: Duration,
    /// By host CPU.
    pub cpus: BTreeMap<CpuId, CpuSample>,
    /// Tasks that run or want to run; `None` if nobody knows (the host cannot).
    pub runnable: Option<u32>,
    /// Time in which at least one task waited for a CPU (PSI `some`), since boot.
    pub cpu_stall: Option<Duration>,
    /// The same for memory.
    pub memory_stall: Option<Duration>,
    /// By host node.
    pub nodes: BTreeMap<NodeId, NodeSample>,
}

/// One CPU's counters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct CpuSample {
    /// In user mode, in the kernel and in interrupts.
    pub busy: Duration,
    /// Summed time that tasks waited in its run queue.
    pub waited: Option<Duration>,
    /// Busy and idle: where that grows slower than time does, the CPU stood still, or its kernel is behind with counting. `None` if nobody
    /// knows.
    pub accounted: Option<Duration>,
}

/// One node's memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct NodeSample {
    /// Usable.
    pub total: Bytes,
    /// Unused.
    pub free: Bytes,
    /// Could be unused without swapping: free, clean cache, reclaimable kernel objects.
    pub available: Bytes,
    /// Of what is free, what the kernel does not give to tasks.
    pub kept: Bytes,
    /// Page cache, without shared memory.
    pub file: Bytes,
    /// Of that, what is used again and again (the active list).
    pub active_file: Option<Bytes>,
    /// Pages that had to be read again soon after they were dropped, since boot.
    pub refaults: Option<u64>,
}

/// What two samples of the same boot say of the time between them.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Reading {
    /// When it ends, by the host's clock.
    pub at: Duration,
    /// How long it is.
    pub window: Duration,
    /// Cores in use, on average: a core is in use while any of its CPUs is.
    pub used: f64,
    /// Cores that tasks waited for, on average; `None` where nobody counts.
    pub waiting: Option<f64>,
    /// Share of the time in which a task waited for a CPU.
    pub cpu_stall: Option<f64>,
    /// The same for memory.
    pub memory_stall: Option<f64>,
    /// By host node.
    pub nodes: BTreeMap<NodeId, NodeReading>,
}

/// A node's memory between two samples.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct NodeReading {
    /// At the end.
    pub sample: NodeSample,
    /// What the guest cannot do without: total less available.
    pub in_use: Bytes,
    /// How fast that grew, in bytes a second; negative when it shrank.
    pub growth: f64,
    /// Pages read again, in bytes a second; `None` where nobody counts.
    pub refaults: Option<f64>,
}

/// Where less than this share of the time is accounted for, it is waited for the rest of it ...
const BEHIND: f64 = 0.5;
/// ... but not longer than this.
const PATIENCE: Duration = Duration::from_secs(2);
/// With less than this nothing is known of a CPU.
const STILL: f64 = 0.05;

/// Bytes of a page.
const PAGE: f64 = 4096.0;

impl Sample {
    /// What lies between `before` and this for a VM that holds `held`; `None` if they are of two boots, in the wrong order, or too near, or
    /// if the guest has yet to account for much of the time. What a CPU that is held did while it ran stands for the time in which it did
    /// not: before its gate opened, or while the host was held up.
    pub fn since(&self, before: &Self, layout: &Layout, held: &CpuSet) -> Option<Reading> {
        let window = self.uptime.checked_sub(before.uptime).filter(|window| *window >= SHORTEST)?;
        // A guest whose clock runs away gets no more of it than there was.
        let window = window.max(self.at.saturating_sub(before.at).mul_f64(0.5));
        let seconds = window.as_secs_f64();
        let share = |now: Duration, then: Duration| now.saturating_sub(then).as_secs_f64() / seconds;
        let mut idle: BTreeMap<_, f64> = BTreeMap::new();
        let (mut waiting, mut counted) = (0.0, false);
        for (cpu, now) in &self.cpus {
            let Some(core) = layout.of_cpu.get(cpu) else { continue };
            let Some(then) = before.cpus.get(cpu) else { continue };
            let accounted = now.accounted.zip(then.accounted).filter(|_| held.contains(*cpu));
            let accounted = accounted.map_or(1.0, |(now, then)| share(now, then).min(1.0));
            if accounted < BEHIND && window < PATIENCE {
                return None;
            }
            let scale = if accounted < STILL { 1.0 } else { 1.0 / accounted };
            let busy = (share(now.busy, then.busy) * scale).min(1.0);
            *idle.entry(*core).or_insert(1.0) *= 1.0 - busy;
            if let (Some(now), Some(then)) = (now.waited, then.waited) {
                let threads = layout.cores.get(core).map_or(1, |seat| seat.cpus.len().max(1));
                waiting += share(now, then) / threads as f64;
                counted = true;
            }
        }
        let stall = |now: Option<Duration>, then: Option<Duration>| Some(share(now?, then?).min(1.0));
        let node = |(node, now): (&NodeId, &NodeSample)| {
            let in_use = now.total.saturating_sub(now.available);
            let then = before.nodes.get(node);
            let used_then = then.map_or(in_use, |then| then.total.saturating_sub(then.available));
            let refaults = then.and_then(|then| Some(now.refaults?.saturating_sub(then.refaults?) as f64));
            let reading = NodeReading {
                sample: *now,
                in_use,
                growth: (in_use.0 as f64 - used_then.0 as f64) / seconds,
                refaults: refaults.map(|pages| pages * PAGE / seconds),
            };
            (*node, reading)
        };
        Some(Reading {
            at: self.at,
            window,
            used: idle.values().map(|idle| 1.0 - idle).sum(),
            waiting: counted.then(|| waiting.min(layout.cores.len() as f64)),
            cpu_stall: stall(self.cpu_stall, before.cpu_stall),
            memory_stall: stall(self.memory_stall, before.memory_stall),
            nodes: self.nodes.iter().map(node).collect(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::layout;

    fn sample(at: u64, busy: &[(u32, u64)], waited: u64) -> Sample {
        let cpus = busy.iter().map(|(cpu, ms)| {
            let waited = Some(Duration::from_millis(if *cpu == 0 { waited } else { 0 }));
            (CpuId(*cpu), CpuSample { busy: Duration::from_millis(*ms), waited, accounted: None })
        });
        let at = Duration::from_millis(at);
        Sample { at, uptime: at, cpus: cpus.collect(), ..Sample::default() }
    }

    #[test]
    fn busy_siblings_are_one_core_and_waiting_tasks_are_counted_in_cores() {
        let layout = layout("1n2c2t@1G");
        let before = sample(1000, &[(0, 0), (1, 0), (2, 0), (3, 0)], 0);
        let after = sample(2000, &[(0, 1000), (1, 1000), (2, 500), (3, 0)], 4000);
        let reading = after.since(&before, &layout, &CpuSet::new()).unwrap();
        let siblings = layout.cores.values().next().unwrap().cpus.clone();
        assert_eq!(siblings.len(), 2);
        assert!((1.0..=2.0).contains(&reading.used), "{reading:?}");
        assert_eq!(reading.waiting, Some(2.0));
    }

    #[test]
    fn what_a_cpu_did_while_it_ran_stands_for_the_time_in_which_it_stood_still() {
        let layout = layout("1n2c1t@1G");
        let accounted = |mut sample: Sample, ms: [u64; 2]| {
            for (cpu, ms) in sample.cpus.values_mut().zip(ms) {
                cpu.accounted = Some(Duration::from_millis(ms));
            }
            sample
        };
        let before = accounted(sample(1000, &[(0, 0), (1, 0)], 0), [0, 0]);
        let after = |ms: [u64; 2]| accounted(sample(11_000, &[(0, 2_000), (1, 0)], 1000), ms);
        let held: CpuSet = "0-1".parse().unwrap();
        let reading = after([2_000, 10_000]).since(&before, &layout, &held).unwrap();
        assert!((reading.used - 1.0).abs() < 1e-9 && (reading.waiting.unwrap() - 0.1).abs() < 1e-9, "{reading:?}");
        let other = "1".parse().unwrap();
        let reading = after([2_000, 10_000]).since(&before, &layout, &other).unwrap();
        assert!((reading.used - 0.2).abs() < 1e-9, "behind its gate it did what it did: {reading:?}");
        let soon = accounted(sample(2000, &[(0, 100), (1, 0)], 0), [100, 1000]);
        assert_eq!(soon.since(&before, &layout, &held), None, "the guest's kernel may yet count the rest");
        assert!(soon.since(&before, &layout, &other).is_some());
    }

    #[test]
    fn a_guest_that_lies_about_time_gets_no_more_than_there_is() {
        let layout = layout("1n2c1t@1G");
        let before = sample(1000, &[(0, 0), (1, 0)], 0);
        let mut after = sample(2000, &[(0, 1 << 40), (1, 1 << 40)], 1 << 40);
        let reading = after.since(&before, &layout, &CpuSet::new()).unwrap();
        assert!(reading.used <= 2.0 && reading.waiting <= Some(2.0), "{reading:?}");
        after.uptime = Duration::from_millis(900);
        assert_eq!(after.since(&before, &layout, &CpuSet::new()), None, "another boot");
    }
}
