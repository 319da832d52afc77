//! When the host itself is short, and how much it then needs: cores and memory that nobody holds are its own to use.

use std::collections::BTreeMap;
use std::time::Duration;

use conuma_balancing::Host;
use conuma_topology::{Bytes, NodeId};
use serde::{Deserialize, Serialize};

use crate::rules::Tuning;

/// How the host does, outside of its VMs.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct HostSample {
    /// What of each node's memory could be had without swapping.
    pub available: BTreeMap<NodeId, Bytes>,
    /// Share of the time in which a task of the host, outside of its VMs, waited for a CPU; `None` where nobody counts.
    pub cpu_stall: Option<f64>,
}

/// What the host needs besides its reserve.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct HostNeed {
    /// By node.
    pub memory: BTreeMap<NodeId, Bytes>,
    /// Cores that nobody holds.
    pub cores: usize,
}

/// So many times what makes the host short is enough.
const ENOUGH: f64 = 3.0;
/// It needs nothing any more, or a core less, when it had enough for so long.
const CALM: Duration = Duration::from_secs(60);
/// It needs a core more when its tasks waited for so long.
const STALLED: Duration = Duration::from_secs(2);
/// It never needs more than one core of so many.
const CORES: usize = 4;

/// Makes a need from samples. Memory rises by a half of the reserve each time that the host is found short and falls when it had enough for
/// a while; cores rise and fall one by one.
#[derive(Debug, Clone, Default)]
pub(crate) struct HostEstimator {
    need: HostNeed,
    /// Since when each node has had enough.
    calm: BTreeMap<NodeId, Duration>,
    /// Since when its tasks have waited for cores.
    stalled: Option<Duration>,
    /// Since when they have not.
    idle: Option<Duration>,
}

impl HostEstimator {
    pub(crate) fn observe(&mut self, sample: &HostSample, host: &Host, tuning: &Tuning, now: Duration) {
        self.observe_memory(sample, host, tuning.host_short, now);
        match sample.cpu_stall {
            Some(stall) if stall > tuning.host_stall => {
                self.idle = None;
                let since = *self.stalled.get_or_insert(now);
                if now.saturating_sub(since) >= STALLED {
                    self.need.cores = (self.need.cores + 1).min(host.cores.len() / CORES);
                    self.stalled = Some(now);
                }
            }
            Some(stall) if stall < tuning.host_stall / ENOUGH => {
                self.stalled = None;
                let since = *self.idle.get_or_insert(now);
                if now.saturating_sub(since) >= CALM {
                    self.need.cores = self.need.cores.saturating_sub(1);
                    self.idle = Some(now);
                }
            }
            _ => (self.stalled, self.idle) = (None, None),
        }
    }

    fn observe_memory(&mut self, sample: &HostSample, host: &Host, short: f64, now: Duration) {
        for (node, available) in &sample.available {
            let reserve = host.reserve.on(*node);
            let mark = reserve.0 as f64 * short;
            let need = self.need.memory.get(node).copied().unwrap_or_default();
            if (available.0 as f64) < mark {
                self.calm.remove(node);
                let most = host.memory.get(node).copied().unwrap_or_default().saturating_sub(reserve);
                let more = need + Bytes(reserve.0 / 2).round_down(Bytes::mib(2));
                self.need.memory.insert(*node, more.min(Bytes(most.0 / 4).round_down(Bytes::mib(2))));
            } else if available.0 as f64 > mark * ENOUGH + need.0 as f64 {
                let since = *self.calm.entry(*node).or_insert(now);
                if now.saturating_sub(since) >= CALM {
                    self.need.memory.remove(node);
                }
            } else {
                self.calm.remove(node);
            }
        }
        self.need.memory.retain(|_, bytes| !bytes.is_zero());
    }

    pub(crate) fn need(&self) -> &HostNeed {
        &self.need
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use conuma_topology::{CpuSet, Machine};

    #[test]
    fn a_host_that_is_short_needs_more_until_it_was_calm() {
        let machine: Machine = "1n2c1t@4G".parse().unwrap();
        let host = Host::new(&machine, &CpuSet::new(), Bytes::mib(512));
        let mut estimator = HostEstimator::default();
        let mut look = |mib: u64, at: u64| {
            let available = [(NodeId(0), Bytes::mib(mib))].into();
            let sample = HostSample { available, ..HostSample::default() };
            estimator.observe(&sample, &host, &Tuning::default(), Duration::from_secs(at));
            estimator.need().memory.get(&NodeId(0)).copied().unwrap_or_default()
        };
        assert_eq!(look(400, 0), Bytes::ZERO);
        assert_eq!(look(100, 1), Bytes::mib(256));
        assert_eq!(look(100, 2), Bytes::mib(512));
        assert_eq!(look(500, 3), Bytes::mib(512), "some of that is what it was given");
        assert_eq!(look(1000, 4), Bytes::mib(512));
        assert_eq!(look(1000, 63), Bytes::mib(512));
        assert_eq!(look(1000, 64), Bytes::ZERO);
    }

    #[test]
    fn a_host_whose_tasks_wait_needs_cores_one_by_one() {
        let machine: Machine = "2n6c1t@4G".parse().unwrap();
        let host = Host::new(&machine, &CpuSet::new(), Bytes::ZERO);
        let mut estimator = HostEstimator::default();
        let mut look = |stall: Option<f64>, at: u64| {
            let sample = HostSample { cpu_stall: stall, ..HostSample::default() };
            estimator.observe(&sample, &host, &Tuning::default(), Duration::from_secs(at));
            estimator.need().cores
        };
        assert_eq!((look(Some(0.5), 0), look(Some(0.5), 1), look(Some(0.5), 2)), (0, 0, 1), "a moment is no need");
        assert_eq!((look(Some(0.15), 3), look(Some(0.5), 4), look(Some(0.5), 5)), (1, 1, 1));
        assert_eq!((6..20).map(|at| look(Some(0.9), at)).last(), Some(3), "a quarter of twelve");
        assert_eq!((look(Some(0.0), 20), look(Some(0.01), 79), look(Some(0.0), 80)), (3, 3, 2));
        assert_eq!(look(None, 200), 2, "nobody knows");
        assert_eq!((look(Some(0.0), 201), look(Some(0.0), 261), look(Some(0.0), 321)), (2, 1, 0));
    }
}
