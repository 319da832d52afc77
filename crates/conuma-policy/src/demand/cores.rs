//! How many cores a VM wants.
//!
//! What is in use and what tasks wait for are counted by the guest's scheduler; their sum is the demand. Where all cores are busy and
//! nothing waits, nobody can see what more would bring: as many threads as cores may spin, compute, or size themselves by what they find.
//! So more is tried, and kept only if it is used. What did not help is not tried again until the load has changed, so a constant load
//! comes to rest.

use std::time::Duration;

use super::{CoreEstimate, CoreWhy, follow};
use crate::rules::Tuning;
use crate::sample::Reading;

/// A VM uses all it holds from this share on.
const FULL: f64 = 0.93;
/// Waiting tasks beyond this share of what is held are a queue, not chance.
const QUEUE: f64 = 0.05;
/// More is worth keeping if this share of it is used.
const HELPS: f64 = 0.5;
/// The load has changed if what is used differs by this share from what it was.
const CHANGED: f64 = 0.2;
/// A VM that uses less than this share of what it held does less than it did.
const FELL: f64 = 0.7;
/// A trial ends after so long with more, or without any more.
const TRIAL: Duration = Duration::from_secs(3);
/// Of what is held, this much more is tried, and twice as much each time that it helps.
const FIRST: f64 = 0.125;

/// Follows one VM's cores.
#[derive(Debug, Clone, Default)]
pub(super) struct CoreEstimator {
    level: f64,
    probe: Probe,
    /// How much more to try next, as a share.
    stride: f64,
}

#[derive(Debug, Clone, Copy, Default)]
enum Probe {
    /// Nothing to find out.
    #[default]
    Rest,
    /// More is asked for, since then, when it used and held so much.
    Trying { since: Duration, used: f64, held: usize, extra: f64 },
    /// More than `held` did not help a VM that used `used`.
    Useless { used: f64, held: usize },
}

impl CoreEstimator {
    /// What is wanted after a reading that covers `elapsed`, taken with `held` cores of the host's `most`.
    pub(super) fn observe(
        &mut self,
        reading: &Reading,
        elapsed: Duration,
        held: usize,
        most: usize,
        tuning: &Tuning,
    ) -> CoreEstimate {
        let used = reading.used;
        // Where nobody counts who waits, a stall tells at least that somebody does.
        let guess = || reading.cpu_stall.filter(|_| used >= FULL * held as f64).map(|stall| stall * held as f64);
        let waiting = reading.waiting.or_else(guess).unwrap_or(0.0);
        let raw = (used + waiting).min(most as f64);
        let full = held > 0 && used >= FULL * held as f64;
        let queue = waiting > (QUEUE * held as f64).max(0.1);
        self.probe = self.next_probe(reading.at, used, raw, held, full, queue);
        let extra = match self.probe {
            Probe::Trying { held: then, extra, .. } => (then as f64 + extra - raw).max(0.0),
            Probe::Rest | Probe::Useless { .. } => 0.0,
        };
        let target = (raw + extra).min(most as f64);
        self.level = follow(self.level, target, elapsed, tuning.attack, tuning.decay);
        // What is used is wanted, however slowly the level follows.
        let wanted = self.level.max(raw.min(held as f64));
        let why = match self.probe {
            Probe::Trying { .. } => CoreWhy::Probing,
            _ if queue => CoreWhy::Queue,
            Probe::Useless { .. } => CoreWhy::Saturated,
            Probe::Rest if wanted > raw + 0.5 => CoreWhy::Fading,
            Probe::Rest => CoreWhy::Use,
        };
        CoreEstimate { wanted, used, waiting: reading.waiting, stall: reading.cpu_stall, held, probe: extra, why }
    }

    fn next_probe(&mut self, now: Duration, used: f64, raw: f64, held: usize, full: bool, queue: bool) -> Probe {
        let begin = |stride: f64| {
            let extra = (held as f64 * stride).round().max(1.0);
            Probe::Trying { since: now, used, held, extra }
        };
        match self.probe {
            // A queue says how much is wanted; that one comes and goes does not make useful what was not.
            Probe::Rest | Probe::Trying { .. } if queue => Probe::Rest,
            Probe::Rest if full => {
                self.stride = FIRST;
                begin(FIRST)
            }
            Probe::Rest => Probe::Rest,
            Probe::Trying { since, used: before, held: then, .. } => {
                let more = held.saturating_sub(then);
                if more > 0 && used - before >= HELPS * more as f64 {
                    self.stride = (self.stride * 2.0).min(1.0);
                    if full { begin(self.stride) } else { Probe::Rest }
                } else if used < FELL * then as f64 || (more == 0 && used < FULL * then as f64) {
                    Probe::Rest
                } else if now.saturating_sub(since) >= TRIAL {
                    // What it got besides is not wanted either.
                    Probe::Useless { used: before.max(used.min(then as f64)), held: then }
                } else {
                    self.probe
                }
            }
            Probe::Useless { used: before, held: then } => {
                let differs = |now: f64| (now - before).abs() > (CHANGED * before).max(0.5);
                let changed = differs(used) || differs(raw);
                // With fewer cores than it had then all of them are busy again: it may want those back.
                if changed {
                    Probe::Rest
                } else if full && held < then {
                    begin(FIRST)
                } else {
                    self.probe
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A guest with so many busy threads, of which `waits` tells whether those beyond its cores are seen to wait.
    fn run(threads: f64, waits: bool, mut held: usize, most: usize, seconds: u64) -> (Vec<usize>, CoreEstimate) {
        let tuning = Tuning::default();
        let mut estimator = CoreEstimator::default();
        let mut history = vec![held];
        let mut estimate = CoreEstimate::default();
        for second in 0..seconds {
            let used = threads.min(held as f64);
            let waiting = waits.then_some((threads - used).max(0.0));
            let at = Duration::from_secs(second);
            let reading = Reading { at, window: Duration::from_secs(1), used, waiting, ..Reading::default() };
            estimate = estimator.observe(&reading, Duration::from_secs(1), held, most, &tuning);
            let wanted = (estimate.wanted - 0.2).ceil().max(1.0) as usize;
            if wanted != held {
                held = wanted.min(most);
                history.push(held);
            }
        }
        (history, estimate)
    }

    #[test]
    fn a_queue_is_asked_for_at_once() {
        let (history, estimate) = run(11.0, true, 4, 16, 20);
        assert!(history.len() <= 4 && *history.last().unwrap() == 11, "{history:?} {estimate:?}");
    }

    #[test]
    fn threads_that_nobody_counts_are_found_by_probing() {
        let (history, estimate) = run(11.0, false, 4, 16, 60);
        assert!((11..=12).contains(history.last().unwrap()), "{history:?} {estimate:?}");
    }

    #[test]
    fn a_constant_load_comes_to_rest() {
        for (threads, waits) in [(4.0, true), (4.0, false), (3.3, true), (40.0, true), (1.0, false)] {
            let (short, _) = run(threads, waits, 4, 16, 60);
            let (long, estimate) = run(threads, waits, 4, 16, 6 * 3600);
            assert_eq!(short, long, "{threads} threads, counted: {waits}; {estimate:?}");
        }
    }

    #[test]
    fn an_idle_guest_wants_next_to_nothing_after_a_while() {
        let (history, estimate) = run(0.05, true, 8, 16, 30);
        assert_eq!(history.last(), Some(&1), "{history:?} {estimate:?}");
    }
}
