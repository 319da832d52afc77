//! What QEMU says each VM could touch, asked over a QMP monitor of the witness's own.

use std::collections::BTreeMap;
use std::time::Instant;

use super::{Violations, Watch};
use crate::monitor::Monitor;

/// Bytes by VM and host node.
type Sizes = BTreeMap<(String, u32), u64>;

/// Asks every VM's monitor; connects when a monitor appears and again after its VM was restarted.
pub(super) struct MemoryWitness<'a> {
    watch: &'a Watch,
    monitors: BTreeMap<String, Monitor>,
    pub(super) samples: u64,
    pub(super) violations: Violations,
}

impl<'a> MemoryWitness<'a> {
    pub(super) fn new(watch: &'a Watch, begun: Instant) -> Self {
        Self { watch, monitors: BTreeMap::new(), samples: 0, violations: Violations::new(begun) }
    }

    /// Per node, what VMs could touch together stays below the limit.
    pub(super) fn sample(&mut self) {
        let first = self.sizes();
        let second = self.sizes();
        self.samples += u64::from(!second.is_empty());
        for (node, limit) in &self.watch.node_limits {
            let sum: u64 = second
                .iter()
                .filter(|(key, _)| key.1 == *node)
                .map(|(key, bytes)| first.get(key).map_or(0, |earlier| (*earlier).min(*bytes)))
                .sum();
            if sum > *limit {
                self.violations.add(format!("node {node}: VMs could touch {sum} bytes together, {limit} are there"));
            }
        }
    }

    /// What each VM could touch now: boot memory and plugged virtio-mem, by host node.
    fn sizes(&mut self) -> Sizes {
        let mut sizes = Sizes::new();
        for (vm, path) in &self.watch.monitors {
            if !self.monitors.contains_key(vm) {
                let Ok(monitor) = Monitor::connect(path) else { continue };
                self.monitors.insert(vm.clone(), monitor);
            }
            match self.monitors.get_mut(vm).map(Monitor::by_node) {
                Some(Ok(by_node)) => {
                    for (node, bytes) in by_node {
                        *sizes.entry((vm.clone(), node)).or_default() += bytes;
                    }
                }
                _ => drop(self.monitors.remove(vm)),
            }
        }
        sizes
    }
}
