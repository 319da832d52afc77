//! When a guest that runs on CPUs it does not hold is not to be blamed for it. Every excuse has an end.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use conuma_topology::NodeId;

/// How long a guest may take from its first instruction until its agent has told it what it holds.
const BOOT: Duration = Duration::from_secs(600);

/// How long memory may take to come or to go, from when it was last asked for.
const MOVE: Duration = Duration::from_secs(60);

/// How long after a change of size more of it is expected, whoever asked for it.
const CHANGE: Duration = Duration::from_secs(5);

/// Why the gates of a VM are held by no more than the idle class, whatever runs behind them.
#[derive(Debug)]
pub struct Excuses(Mutex<Grounds>);

#[derive(Debug)]
struct Grounds {
    /// Until then the guest boots: before its agent has told it what it holds, it cannot know better than to use every CPU.
    booting: Option<Instant>,
    /// Until then memory of a node is on its way. A kernel empties the page lists of every CPU, on that CPU, to give
    /// memory: with next to no time there it could not.
    moving: BTreeMap<NodeId, Instant>,
    /// Until then sizes change, as QEMU says.
    changing: Option<Instant>,
    /// Times that its agent is making room for memory to go.
    preparing: usize,
}

impl Excuses {
    /// Of a VM that may be booting.
    pub fn new(now: Instant) -> Self {
        let (moving, changing, preparing) = (BTreeMap::new(), None, 0);
        Self(Mutex::new(Grounds { booting: Some(now + BOOT), moving, changing, preparing }))
    }

    /// Whether there is one.
    pub(super) fn hold(&self, now: Instant) -> bool {
        let grounds = self.grounds();
        let mut until = grounds.booting.iter().chain(&grounds.changing).chain(grounds.moving.values());
        grounds.preparing > 0 || until.any(|until| now < *until)
    }

    /// The guest boots anew.
    pub fn boots(&self, now: Instant) {
        self.grounds().booting = Some(now + BOOT);
    }

    /// Its agent has told the guest what it holds.
    pub fn told(&self) {
        self.grounds().booting = None;
    }

    /// The size of some node's memory has changed.
    pub fn size_changed(&self, now: Instant) {
        self.grounds().changing = Some(now + CHANGE);
    }

    /// Memory of a node was asked for, or to be given back.
    pub(super) fn asked(&self, node: NodeId, now: Instant) {
        self.grounds().moving.insert(node, now + MOVE);
    }

    /// It has come, or gone.
    pub(super) fn at_rest(&self, node: NodeId) {
        self.grounds().moving.remove(&node);
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
        let now = Instant::now();
        let excuses = Excuses::new(now);
        assert!(excuses.hold(now), "a guest that was told nothing");
        excuses.told();
        assert!(!excuses.hold(now));
        let preparing = excuses.preparing();
        excuses.asked(NodeId(1), now);
        drop(preparing);
        excuses.at_rest(NodeId(0));
        assert!(excuses.hold(now), "node 1 is not at rest");
        excuses.at_rest(NodeId(1));
        assert!(!excuses.hold(now));
        excuses.boots(now);
        assert!(excuses.hold(now));
    }

    #[test]
    fn no_excuse_lasts_for_ever() {
        let now = Instant::now();
        let excuses = Excuses::new(now);
        assert!(!excuses.hold(now + BOOT), "a guest without an agent");
        excuses.told();
        excuses.asked(NodeId(0), now);
        excuses.size_changed(now);
        assert!(excuses.hold(now + MOVE / 2));
        assert!(!excuses.hold(now + MOVE), "memory that never comes");
    }
}
