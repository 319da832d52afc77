//! When a guest that runs on CPUs it does not hold is not to be blamed for it. Every excuse has an end, and nothing that
//! a guest does by itself moves that end, but a reset.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use conuma_topology::{Bytes, NodeId};

/// How long after a change of size more of it is expected.
const CHANGE: Duration = Duration::from_secs(5);

/// Why the gates of a VM are held by no more than the idle class, whatever runs behind them.
#[derive(Debug)]
pub struct Excuses {
    /// How long a guest may take from its first instruction until its agent has told it what it holds.
    boot: Duration,
    /// How long memory may take to come or to go, from when that size was first asked for.
    memory: Duration,
    grounds: Mutex<Grounds>,
}

#[derive(Debug)]
struct Grounds {
    /// Until then the guest boots: before its agent has told it what it holds, it cannot know better than to use every CPU.
    booting: Option<Instant>,
    /// Until then memory of a node is on its way to this size. A kernel empties the page lists of every CPU, on that CPU,
    /// to give memory: with next to no time there it could not.
    moving: BTreeMap<NodeId, (Bytes, Instant)>,
    /// Until then sizes change, as QEMU says. Counts until `settles`: a guest can change them for ever.
    changing: Option<Instant>,
    /// By then what was asked for last, and what a guest plugs while it boots, should be there.
    settles: Instant,
    /// Times that its agent is making room for memory to go.
    preparing: usize,
}

impl Excuses {
    /// Of a VM that may be booting. `boot` and `memory` say how long a guest may boot, and how long memory may move.
    pub fn new(now: Instant, boot: Duration, memory: Duration) -> Self {
        let (booting, moving, changing, preparing) = (Some(now + boot), BTreeMap::new(), None, 0);
        let grounds = Grounds { booting, moving, changing, settles: now + memory, preparing };
        Self { boot, memory, grounds: Mutex::new(grounds) }
    }

    /// Whether there is one.
    pub(super) fn hold(&self, now: Instant) -> bool {
        let grounds = self.grounds();
        let changing = grounds.changing.map(|until| until.min(grounds.settles));
        let moving = grounds.moving.values().map(|(_, until)| *until);
        grounds.preparing > 0 || moving.chain(grounds.booting).chain(changing).any(|until| now < until)
    }

    /// The guest boots anew.
    pub fn boots(&self, now: Instant) {
        self.grounds().booting = Some(now + self.boot);
    }

    /// Its agent has told the guest what it holds.
    pub fn told(&self, now: Instant) {
        let mut grounds = self.grounds();
        if grounds.booting.take().is_some() {
            grounds.settles = grounds.settles.max(now + self.memory);
        }
    }

    /// The size of some node's memory has changed.
    pub fn size_changed(&self, now: Instant) {
        self.grounds().changing = Some(now + CHANGE);
    }

    /// A node's memory is to have this size. Asking for the same once more gives it no more time.
    pub(super) fn asked(&self, node: NodeId, bytes: Bytes, now: Instant) {
        let mut grounds = self.grounds();
        if grounds.moving.get(&node).is_none_or(|(asked, _)| *asked != bytes) {
            grounds.moving.insert(node, (bytes, now + self.memory));
            grounds.settles = grounds.settles.max(now + self.memory);
        }
    }

    /// It has that size.
    pub(super) fn at_rest(&self, node: NodeId) {
        self.grounds().moving.remove(&node);
    }

    /// For as long as the value lives the agent makes room.
    pub(super) fn preparing(&self) -> Preparing<'_> {
        self.grounds().preparing += 1;
        Preparing(self)
    }

    fn grounds(&self) -> MutexGuard<'_, Grounds> {
        self.grounds.lock().unwrap_or_else(PoisonError::into_inner)
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

    const BOOT: Duration = Duration::from_secs(600);
    const MOVE: Duration = Duration::from_secs(60);
    const SECOND: Duration = Duration::from_secs(1);

    fn booting(now: Instant) -> Excuses {
        Excuses::new(now, BOOT, MOVE)
    }

    #[test]
    fn an_excuse_ends_with_its_ground() {
        let now = Instant::now();
        let excuses = booting(now);
        assert!(excuses.hold(now), "a guest that was told nothing");
        excuses.told(now);
        assert!(!excuses.hold(now));
        let preparing = excuses.preparing();
        excuses.asked(NodeId(1), Bytes::mib(64), now);
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
        let excuses = booting(now);
        assert!(excuses.hold(now + BOOT - SECOND), "a slow boot");
        assert!(!excuses.hold(now + BOOT), "a guest without an agent");
        excuses.told(now);
        excuses.asked(NodeId(0), Bytes::mib(64), now);
        assert!(excuses.hold(now + MOVE / 2));
        assert!(!excuses.hold(now + MOVE), "memory that never comes");
    }

    #[test]
    fn the_same_size_asked_for_again_gives_no_more_time() {
        let now = Instant::now();
        let excuses = booting(now);
        excuses.told(now);
        // A stuck unplug is asked for again every few seconds.
        for seconds in 0..300 {
            excuses.asked(NodeId(0), Bytes::mib(64), now + SECOND * seconds);
        }
        assert!(!excuses.hold(now + MOVE));
        excuses.asked(NodeId(0), Bytes::mib(32), now + 5 * MOVE);
        assert!(excuses.hold(now + 5 * MOVE), "another size is");
    }

    #[test]
    fn a_guest_cannot_excuse_itself_by_changing_sizes() {
        let now = Instant::now();
        let excuses = booting(now);
        excuses.told(now);
        let mut excused = 0;
        for seconds in 0..300 {
            excuses.size_changed(now + SECOND * seconds);
            excused += u64::from(excuses.hold(now + SECOND * seconds));
        }
        assert_eq!(excused, MOVE.as_secs(), "what it plugs at its boot, and no more");
    }
}
