//! When the host itself is short, and how much it then needs: cores and memory that nobody holds are its own to use.

use std::collections::BTreeMap;
use std::time::Duration;

use conuma_balancing::Host;
use conuma_topology::{Bytes, NodeId};
use serde::{Deserialize, Serialize};

/// How the host does, outside of its VMs.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct HostSample {
    /// What of each node's memory could be had without swapping.
    pub available: BTreeMap<NodeId, Bytes>,
    /// Share of the time in which some task of the host outside of VMs waited for a CPU; `None` where nobody counts.
    pub cpu_stall: Option<f64>,
    /// The same for memory.
    pub memory_stall: Option<f64>,
}

/// What the host needs besides its reserve.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct HostNeed {
    /// By node.
    pub memory: BTreeMap<NodeId, Bytes>,
}

/// Above this many times the mark below which the host is short it needs nothing any more.
const ENOUGH: f64 = 3.0;
/// It needs nothing any more when it had enough for so long.
const CALM: Duration = Duration::from_secs(60);

/// Makes a need from samples. Rises by a half of the reserve each time that the host is found short, falls when it had enough for a while.
#[derive(Debug, Clone, Default)]
pub(crate) struct HostEstimator {
    need: HostNeed,
    /// Since when each node has had enough.
    calm: BTreeMap<NodeId, Duration>,
}

impl HostEstimator {
    pub(crate) fn observe(&mut self, sample: &HostSample, host: &Host, short: f64, now: Duration) {
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
            estimator.observe(&sample, &host, 0.25, Duration::from_secs(at));
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
}
