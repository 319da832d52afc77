//! When a guest that runs on CPUs it does not hold is not to be blamed for it. Every excuse has an end, and nothing that
//! a guest does by itself moves that end, but a reset; and one that resets itself again and again uses up its time to boot.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use conuma_topology::{Bytes, NodeId};

/// How long after a change of size more of it is expected.
const CHANGE: Duration = Duration::from_secs(5);

/// Time that a guest was not booting gives it so much less time to boot again: it is excused for a quarter of all
/// time at most.
const SAVING: u32 = 3;

/// What a guest is about that excuses what it runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Excuse {
    /// It boots, as QEMU said: it needs every vCPU, however firmly its gate was closed before.
    Boots,
    /// Memory comes or goes, or it may be booting since before this daemon ran.
    Busy,
}

/// Why the gates of a VM are held no firmer than they were closed, or by no more than the idle class, whatever runs behind them.
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
    booting: Booting,
    /// It is known to boot: a guest that was found running may have been told long ago.
    surely: bool,
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

/// Before its agent has told it what it holds, a guest cannot know better than to use every CPU.
#[derive(Debug, Clone, Copy)]
enum Booting {
    /// Until then.
    Until(Instant),
    /// It was told, then; so much of its time was left.
    Told(Instant, Duration),
}

impl Booting {
    /// Boots, with what was left and what it has saved since, `whole` at most. A guest that boots goes on doing so.
    fn begin(self, now: Instant, whole: Duration) -> Self {
        let (since, left) = match self {
            Self::Until(end) if now < end => return self,
            Self::Until(end) => (end, Duration::ZERO),
            Self::Told(at, left) => (at, left),
        };
        let saved = now.saturating_duration_since(since) / SAVING;
        Self::Until(now + whole.min(left + saved))
    }

    fn until(self) -> Option<Instant> {
        match self {
            Self::Until(end) => Some(end),
            Self::Told(..) => None,
        }
    }
}

impl Excuses {
    /// Of a VM that may be booting. `boot` and `memory` say how long a guest may boot, and how long memory may move.
    pub fn new(now: Instant, boot: Duration, memory: Duration) -> Self {
        let (booting, moving, changing, preparing) = (Booting::Until(now + boot), BTreeMap::new(), None, 0);
        let grounds = Grounds { booting, surely: false, moving, changing, settles: now + memory, preparing };
        Self { boot, memory, grounds: Mutex::new(grounds) }
    }

    /// The best there is.
    pub(super) fn excuse(&self, now: Instant) -> Option<Excuse> {
        let grounds = self.grounds();
        if grounds.booting.until().is_some_and(|until| now < until) {
            return Some(if grounds.surely { Excuse::Boots } else { Excuse::Busy });
        }
        let changing = grounds.changing.map(|until| until.min(grounds.settles));
        let moving = grounds.moving.values().map(|(_, until)| *until);
        let busy = grounds.preparing > 0 || moving.chain(changing).any(|until| now < until);
        busy.then_some(Excuse::Busy)
    }

    /// The guest boots.
    pub fn boots(&self, now: Instant) {
        let mut grounds = self.grounds();
        grounds.surely = true;
        grounds.booting = grounds.booting.begin(now, self.boot);
    }

    /// Its agent has told the guest what it holds.
    pub fn told(&self, now: Instant) {
        let mut grounds = self.grounds();
        if let Booting::Until(end) = grounds.booting {
            // A boot that took longer than it should is over since then.
            grounds.booting = Booting::Told(now.min(end), end.saturating_duration_since(now));
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

    fn hold(excuses: &Excuses, now: Instant) -> bool {
        excuses.excuse(now).is_some()
    }

    fn booting(now: Instant) -> Excuses {
        Excuses::new(now, BOOT, MOVE)
    }

    #[test]
    fn an_excuse_ends_with_its_ground() {
        let now = Instant::now();
        let excuses = booting(now);
        assert_eq!(excuses.excuse(now), Some(Excuse::Busy), "a guest that was told nothing, for all that is known");
        excuses.told(now);
        assert!(!hold(&excuses, now));
        let preparing = excuses.preparing();
        excuses.asked(NodeId(1), Bytes::mib(64), now);
        drop(preparing);
        excuses.at_rest(NodeId(0));
        assert_eq!(excuses.excuse(now), Some(Excuse::Busy), "node 1 is not at rest");
        excuses.at_rest(NodeId(1));
        assert!(!hold(&excuses, now));
        excuses.boots(now);
        assert_eq!(excuses.excuse(now), Some(Excuse::Boots));
    }

    #[test]
    fn no_excuse_lasts_for_ever() {
        let now = Instant::now();
        let excuses = booting(now);
        assert!(hold(&excuses, now + BOOT - SECOND), "a slow boot");
        assert!(!hold(&excuses, now + BOOT), "a guest without an agent");
        excuses.told(now);
        excuses.asked(NodeId(0), Bytes::mib(64), now);
        assert!(hold(&excuses, now + MOVE / 2));
        assert!(!hold(&excuses, now + MOVE), "memory that never comes");
    }

    #[test]
    fn a_guest_that_resets_itself_for_ever_uses_up_its_time_to_boot() {
        let now = Instant::now();
        let excuses = booting(now);
        let mut excused = 0;
        let long = 40 * BOOT.as_secs();
        for seconds in 0..long {
            let now = now + SECOND * u32::try_from(seconds).unwrap();
            // Its agent answers every other time.
            match seconds % 20 {
                0 => excuses.boots(now),
                15 => excuses.told(now),
                _ => {}
            }
            excused += u64::from(hold(&excuses, now));
        }
        assert!(excused < BOOT.as_secs() + long / 4, "{excused} s of {long} s");
        excuses.told(now + SECOND * u32::try_from(long).unwrap());
        let later = now + SECOND * u32::try_from(long).unwrap() + SAVING * BOOT;
        excuses.boots(later);
        assert!(hold(&excuses, later + BOOT - SECOND), "a guest that ran for long boots as at first");
    }

    #[test]
    fn a_reset_while_a_guest_boots_gives_it_no_more_time() {
        let now = Instant::now();
        let excuses = booting(now);
        for seconds in 0..2 * u32::try_from(BOOT.as_secs()).unwrap() {
            excuses.boots(now + SECOND * seconds.min(599));
        }
        assert!(!hold(&excuses, now + BOOT));
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
        assert!(!hold(&excuses, now + MOVE));
        excuses.asked(NodeId(0), Bytes::mib(32), now + 5 * MOVE);
        assert!(hold(&excuses, now + 5 * MOVE), "another size is");
    }

    #[test]
    fn a_guest_cannot_excuse_itself_by_changing_sizes() {
        let now = Instant::now();
        let excuses = booting(now);
        excuses.told(now);
        let mut excused = 0;
        for seconds in 0..300 {
            excuses.size_changed(now + SECOND * seconds);
            excused += u64::from(hold(&excuses, now + SECOND * seconds));
        }
        assert_eq!(excused, MOVE.as_secs(), "what it plugs at its boot, and no more");
    }
}
