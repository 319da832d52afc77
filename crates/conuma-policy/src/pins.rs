//! What people set by hand and the policy leaves alone, until a time or for good.

use std::collections::BTreeMap;
use std::time::Duration;

use conuma_topology::VmName;
use serde::{Deserialize, Serialize};

/// A VM that is left as people set it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Pin {
    /// Until then, by the host's clock (for what is kept over restarts: seconds since 1970); `None`: until it is unpinned.
    pub until: Option<Duration>,
}

/// All pins.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Pins(BTreeMap<VmName, Pin>);

impl Pins {
    /// Pins a VM, also one that is pinned already: the new end counts.
    pub fn pin(&mut self, vm: VmName, pin: Pin) {
        self.0.insert(vm, pin);
    }

    /// Lets the policy have it again; whether it was pinned.
    pub fn unpin(&mut self, vm: &VmName) -> bool {
        self.0.remove(vm).is_some()
    }

    /// Whether it is pinned at that time.
    pub fn holds(&self, vm: &VmName, now: Duration) -> bool {
        self.0.get(vm).is_some_and(|pin| pin.until.is_none_or(|until| now < until))
    }

    /// Forgets those that have ended, and gives their names.
    pub fn expire(&mut self, now: Duration) -> Vec<VmName> {
        let ended = |pin: &Pin| pin.until.is_some_and(|until| until <= now);
        let names = self.0.iter().filter(|(_, pin)| ended(pin)).map(|(vm, _)| vm.clone()).collect();
        self.0.retain(|_, pin| !ended(pin));
        names
    }

    /// All of them, by name.
    pub fn iter(&self) -> impl Iterator<Item = (&VmName, &Pin)> {
        self.0.iter()
    }
}
