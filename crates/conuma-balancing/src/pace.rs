//! When to look again at a size that is on its way.
//!
//! A look costs QEMU and the host time that the guest needs to go on, and one that comes late delays all that follows.
//! QEMU tells of a first change at once and of later ones up to a second late, so the end has to be looked for: most
//! looks are made about when it is due, if the guest goes on as it went so far.

use std::time::Duration;

use conuma_topology::Bytes;

use crate::timing::Timing;

/// The longest between two looks while a guest makes progress.
const LONGEST: Duration = Duration::from_millis(100);

/// How far a size has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Progress {
    /// When it was asked for.
    pub(crate) began: Duration,
    /// What the size was then.
    pub(crate) from: Bytes,
    /// When it was last seen to change, or was asked for.
    pub(crate) changed: Duration,
    /// What it is.
    pub(crate) size: Bytes,
    /// What it is to be.
    pub(crate) goal: Bytes,
}

/// How long to wait before the next look. A part of what it lasts already, at most a twentieth of it where the end is
/// due; for a guest that stands still longer and longer.
pub(crate) fn pause(progress: Progress, timing: &Timing, now: Duration) -> Duration {
    let lasted = now.saturating_sub(progress.began);
    let still = now.saturating_sub(progress.changed);
    let wait = match expected_end(progress) {
        // The first change is told.
        None => lasted / 2,
        Some(end) => (end.saturating_sub(now) * 3 / 4).max(lasted / 20),
    };
    wait.min(LONGEST).max(still / 10).clamp(timing.poll, timing.retry.max(timing.poll))
}

/// When the size is what it should be, if it goes on changing as it did.
fn expected_end(Progress { began, from, changed, size, goal }: Progress) -> Option<Duration> {
    let done = from.0.abs_diff(size.0);
    let left = size.0.abs_diff(goal.0);
    let took = changed.saturating_sub(began).as_secs_f64();
    (done > 0).then(|| changed + Duration::from_secs_f64((took * left as f64 / done as f64).min(3600.0)))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZE: Bytes = Bytes::mib(1024);

    /// A guest gives `SIZE` in so many blocks, one every `each`; how often it is looked at, and how late its end is seen.
    fn watch(blocks: u32, each: Duration) -> (u32, Duration) {
        let timing = Timing::default();
        let size_at = |now: Duration| {
            let given = (now.as_nanos() / each.as_nanos()).min(blocks.into()) as u64;
            Bytes(SIZE.0 - SIZE.0 / u64::from(blocks) * given)
        };
        let mut progress =
            Progress { began: Duration::ZERO, from: SIZE, changed: Duration::ZERO, size: SIZE, goal: Bytes::ZERO };
        let (mut now, mut looks) = (Duration::ZERO, 0);
        while progress.size != progress.goal {
            let next = now + pause(progress, &timing, now);
            // QEMU tells of the first change.
            now = if now < each { next.min(each) } else { next };
            looks += 1;
            if size_at(now) != progress.size {
                progress = Progress { changed: now, size: size_at(now), ..progress };
            }
        }
        (looks, now - each * blocks)
    }

    #[test]
    fn the_end_is_seen_soon_and_with_few_looks() {
        for (blocks, each_ms, most_looks) in [(1, 5, 1), (1, 400, 12), (2, 300, 14), (8, 100, 24), (64, 5, 16)] {
            let each = Duration::from_millis(each_ms);
            let (looks, late) = watch(blocks, each);
            let fair = (each * blocks / 10).max(Timing::default().poll);
            assert!(looks <= most_looks && late <= fair, "{blocks} x {each_ms} ms: {looks} looks, {late:?} late");
        }
    }

    #[test]
    fn a_guest_that_stands_still_is_looked_at_more_and_more_rarely() {
        let timing = Timing::default();
        let stuck = Progress {
            began: Duration::ZERO,
            from: SIZE,
            changed: Duration::from_millis(100),
            size: Bytes::mib(512),
            goal: Bytes::ZERO,
        };
        let at = |seconds| pause(stuck, &timing, Duration::from_secs(seconds));
        assert!(at(1) <= LONGEST);
        assert!(at(20) > Duration::from_secs(1) && at(20) < Duration::from_secs(3));
        assert_eq!(at(3600), timing.retry);
    }
}
