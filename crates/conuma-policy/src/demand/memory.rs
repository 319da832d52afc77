//! How much memory of a node a VM wants.
//!
//! What it cannot do without, page cache worth keeping, what its kernel keeps free, and room: a guest that has run out of memory cannot grow, as the map of new memory
//! costs memory. So growth is foreseen, and pressure asks for more than is seen.

use std::time::Duration;

use conuma_topology::Bytes;

use super::{MemoryWhy, NodeEstimate, follow};
use crate::rules::Tuning;
use crate::sample::NodeReading;

/// At least this much room.
const LEAST_ROOM: Bytes = Bytes::mib(32);
/// It waits for memory from this share of the time on.
const STALLED: f64 = 0.01;
/// It reads again what was dropped from this share of the node a second on.
const REFAULTS: f64 = 0.01;
/// Under pressure it wants so much more than it has.
const PRESSED: f64 = 0.25;
/// Growth slower than this share of the node a second is chance.
const DRIFT: f64 = 0.002;

/// Follows one VM's memory on one node.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct NodeEstimator {
    level: f64,
    growth: f64,
}

impl NodeEstimator {
    pub(super) fn observe(
        &mut self,
        now: &NodeReading,
        stall: Option<f64>,
        elapsed: Duration,
        tuning: &Tuning,
    ) -> NodeEstimate {
        let sample = &now.sample;
        let total = sample.total.0 as f64;
        let active = sample.active_file.unwrap_or_default().0 as f64;
        let file = sample.file.0 as f64;
        let cache = active.min(file).max(file * tuning.cache_worth);
        let in_use = now.in_use.0 as f64;
        let rising = if now.growth > DRIFT * total { now.growth } else { 0.0 };
        self.growth = follow(self.growth, rising, elapsed, tuning.attack, tuning.decay);
        // A jump is no trend: twice what is in use is foreseen at most.
        let growth = (self.growth * tuning.foresight).min(in_use);
        let headroom = (in_use * tuning.headroom).max(LEAST_ROOM.0 as f64);
        // It changes with the size of the node, so it is no part of what is in use, whose growth is foreseen.
        let kept = sample.kept;
        let short = (sample.available.saturating_sub(kept).0 as f64) < headroom;
        let refaults = now.refaults.is_some_and(|bytes| bytes > REFAULTS * total.max(1.0));
        // A stall is of the guest as a whole: it is about this node if little is available here.
        let pressed = refaults || (short && stall.is_some_and(|stall| stall > STALLED));
        let calm = in_use + cache + headroom + kept.0 as f64;
        let target = if pressed { calm.max(total * (1.0 + PRESSED)) } else { calm };
        self.level = follow(self.level, target, elapsed, tuning.attack, tuning.memory_decay);
        let wanted = self.level.max(calm + growth);
        let why = match () {
            () if pressed => MemoryWhy::Pressure,
            () if growth > headroom => MemoryWhy::Growth,
            () if wanted > target * 1.1 => MemoryWhy::Fading,
            () => MemoryWhy::WorkingSet,
        };
        let bytes = |value: f64| Bytes(value.max(0.0) as u64);
        NodeEstimate {
            wanted: bytes(wanted),
            total: sample.total,
            in_use: now.in_use,
            cache: bytes(cache),
            kept,
            headroom: bytes(headroom),
            growth: bytes(growth),
            refaults: now.refaults,
            stall,
            why,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sample::NodeSample;

    fn reading(total: u64, used: u64, file: u64, growth: f64, refaults: f64) -> NodeReading {
        let (total, in_use) = (Bytes::mib(total), Bytes::mib(used));
        let sample = NodeSample {
            total,
            free: total.saturating_sub(in_use + Bytes::mib(file)),
            available: total.saturating_sub(in_use),
            file: Bytes::mib(file),
            ..NodeSample::default()
        };
        NodeReading { sample, in_use, growth, refaults: Some(refaults) }
    }

    fn settle(reading: NodeReading, stall: f64, seconds: u32) -> NodeEstimate {
        let (mut estimator, tuning) = (NodeEstimator::default(), Tuning::default());
        let mut last = NodeEstimate::default();
        for _ in 0..seconds {
            last = estimator.observe(&reading, Some(stall), Duration::from_secs(1), &tuning);
        }
        last
    }

    #[test]
    fn cache_counts_at_a_discount() {
        let without = settle(reading(4096, 1000, 0, 0.0, 0.0), 0.0, 60);
        let with = settle(reading(4096, 1000, 1000, 0.0, 0.0), 0.0, 60);
        let difference = with.wanted.saturating_sub(without.wanted);
        assert!(difference > Bytes::mib(200) && difference < Bytes::mib(300), "{difference}");
    }

    #[test]
    fn what_the_kernel_keeps_is_wanted_besides() {
        let mut keeps = reading(1024, 500, 0, 0.0, 0.0);
        let without = settle(keeps, 0.2, 60);
        keeps.sample.kept = Bytes::mib(100);
        assert_eq!(settle(keeps, 0.0, 60).wanted, without.wanted + Bytes::mib(100));
        // Nothing is left of what is free: stalls are about this node.
        keeps.sample.kept = Bytes::mib(500);
        let pressed = settle(keeps, 0.2, 60);
        assert!(without.why == MemoryWhy::WorkingSet && pressed.why == MemoryWhy::Pressure, "{pressed:?}");
    }

    #[test]
    fn growth_is_met_ahead_and_pressure_asks_for_more_than_there_is() {
        let grows = settle(reading(1024, 500, 0, 20.0 * 1048576.0, 0.0), 0.0, 5);
        assert!(grows.wanted > Bytes::mib(1000), "{grows:?}");
        assert_eq!(grows.why, MemoryWhy::Growth);
        let full = settle(reading(1024, 1010, 0, 0.0, 0.0), 0.2, 5);
        assert!(full.wanted > Bytes::mib(1200) && full.why == MemoryWhy::Pressure, "{full:?}");
        let refaults = settle(reading(1024, 300, 700, 0.0, 100.0 * 1048576.0), 0.0, 5);
        assert!(refaults.wanted > Bytes::mib(1200), "{refaults:?}");
    }
}
