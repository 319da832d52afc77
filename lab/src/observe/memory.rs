//! What QEMU says each VM could touch, asked over a QMP monitor of the witness's own.

use std::collections::BTreeMap;
use std::path::PathBuf;

use crate::monitor::Monitor;

/// Bytes by VM and host node.
pub(super) type Sizes = BTreeMap<(String, u32), u64>;

/// Asks every VM's monitor; connects when a monitor appears and again after its VM was restarted.
pub(super) struct MemoryWitness {
    paths: BTreeMap<String, PathBuf>,
    monitors: BTreeMap<String, Monitor>,
}

impl MemoryWitness {
    pub(super) fn new(paths: BTreeMap<String, PathBuf>) -> Self {
        Self { paths, monitors: BTreeMap::new() }
    }

    /// What each VM could touch now: boot memory and plugged virtio-mem, by host node.
    pub(super) fn sizes(&mut self) -> Sizes {
        let mut sizes = Sizes::new();
        for (vm, path) in &self.paths {
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
