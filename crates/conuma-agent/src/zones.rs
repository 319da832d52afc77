//! The kernel's zones, which are dear to read: they are remembered for a while.

use std::time::Duration;

use conuma_linux::procfs::{FreePages, ProcFs, Zone};
use conuma_topology::{Bytes, GuestNodeId};

use crate::memory;

/// Watermarks change when memory comes or goes, also on another node, and when somebody sets `vm.min_free_kbytes` or its like, which nobody
/// tells: they are looked at again after so long.
const FRESH: Duration = Duration::from_secs(30);

/// What was read last.
#[derive(Debug, Default)]
pub(crate) struct Zones {
    /// The guest's uptime then.
    at: Duration,
    /// `MemTotal` of its nodes then.
    totals: Vec<Bytes>,
    zones: Vec<Zone>,
}

impl Zones {
    /// Reads them again if that is due: `totals` are what the nodes have now.
    pub(crate) fn refresh(&mut self, proc: &ProcFs, uptime: Duration, totals: Vec<Bytes>) {
        if self.totals != totals || uptime.saturating_sub(self.at) >= FRESH {
            *self = Self { at: uptime, totals, zones: proc.zones().unwrap_or_default() };
        }
    }

    /// What of a node can be emptied.
    pub(crate) fn movable(&self, node: GuestNodeId) -> Bytes {
        movable(&self.zones, node)
    }

    /// What the kernel keeps of what is free on a node; `None` if it does not tell.
    pub(crate) fn kept(&self, node: GuestNodeId, free: &FreePages) -> Option<Bytes> {
        let own = self.zones.iter().filter(|zone| zone.node == node.0);
        let kept = own.map(|zone| {
            let free = free.get(&(zone.node, zone.name.clone()));
            zone.kept_of(free.copied().unwrap_or(zone.free))
        });
        (!self.zones.is_empty()).then(|| memory::pages(kept.sum()))
    }
}

/// What of a node can be emptied: its movable zone.
pub(crate) fn movable(zones: &[Zone], node: GuestNodeId) -> Bytes {
    let movable = zones.iter().filter(|zone| zone.node == node.0 && zone.name == "Movable");
    memory::pages(movable.map(|zone| zone.managed).sum())
}
