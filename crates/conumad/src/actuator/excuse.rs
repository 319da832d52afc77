//! When a guest that runs on CPUs it does not hold is not to be blamed for it.

use std::collections::BTreeSet;
use std::sync::{Mutex, MutexGuard, PoisonError};

use conuma_topology::NodeId;

/// Why the gates of a VM are held by the idle class alone, whatever runs behind them.
#[derive(Debug, Default)]
pub struct Excuses(Mutex<Grounds>);

#[derive(Debug, Default)]
struct Grounds {
    /// Since it booted, its agent has told the guest what it holds. Before that it cannot know better than to use every
    /// CPU.
    told: bool,
    /// Nodes whose memory is on its way. A kernel empties the page lists of every CPU, on that CPU, to give memory: with
    /// next to no time there it could not.
    moving: BTreeSet<NodeId>,
    /// Times that its agent is making room for memory to go.
    preparing: usize,
}

impl Excuses {
    /// Whether there is one now.
    pub(super) fn hold(&self) -> bool {
        let grounds = self.grounds();
        !grounds.told || !grounds.moving.is_empty() || grounds.preparing > 0
    }

    /// The agent has told the guest its holding; or the guest boots anew.
    pub(super) fn told(&self, told: bool) {
        self.grounds().told = told;
    }

    /// Memory of a node is on its way, or has come to rest.
    pub(super) fn moving(&self, node: NodeId, moving: bool) {
        let mut grounds = self.grounds();
        if moving {
            grounds.moving.insert(node)
        } else {
            grounds.moving.remove(&node)
        };
    }

    /// For as long as the value lives the agent makes room.
    pub(super) fn preparing(&self) -> Preparing<'_> {
        self.grounds().preparing += 1;
        Preparing(self)
    }

    fn grounds(&self) -> MutexGuard<'_, Grounds> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// See [`Excuses::preparing`].
pub(super) struct Preparing<'a>(&'a Excuses);

impl Drop for Preparing<'_> {
    fn drop(&mut self) {
        self.0.grounds().preparing -= 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_excuse_ends_with_its_ground() {
        let excuses = Excuses::default();
        assert!(excuses.hold(), "a guest that was told nothing");
        excuses.told(true);
        assert!(!excuses.hold());
        let preparing = excuses.preparing();
        excuses.moving(NodeId(1), true);
        drop(preparing);
        assert!(excuses.hold());
        excuses.moving(NodeId(0), false);
        assert!(excuses.hold());
        excuses.moving(NodeId(1), false);
        assert!(!excuses.hold());
        excuses.told(false);
        assert!(excuses.hold());
    }
}
