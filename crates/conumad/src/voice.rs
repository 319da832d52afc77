//! How much a guest can make the daemon log. What a guest can repeat without end (reboots, broken connections) is told
//! this often at most; that something was left out is told once.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use conuma_topology::VmName;

/// So many lines in this time.
const LINES: u32 = 30;
const WHILE: Duration = Duration::from_secs(60);

/// The voice of one VM in the log.
#[derive(Debug)]
pub(crate) struct Voice(Mutex<Said>);

#[derive(Debug)]
struct Said {
    since: Instant,
    lines: u32,
}

impl Voice {
    pub(crate) fn new(now: Instant) -> Self {
        Self(Mutex::new(Said { since: now, lines: 0 }))
    }

    /// Whether one more line may be said of this VM now.
    pub(crate) fn speaks(&self, vm: &VmName, now: Instant) -> bool {
        let mut said = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if now.saturating_duration_since(said.since) >= WHILE {
            if let Some(left_out) = said.lines.checked_sub(LINES).filter(|lines| *lines > 0) {
                tracing::warn!(%vm, left_out, "messages that its guest caused were left out");
            }
            *said = Said { since: now, lines: 0 };
        }
        said.lines = said.lines.saturating_add(1);
        if said.lines == LINES + 1 {
            tracing::warn!(%vm, "its guest causes too many messages: they are left out for a while");
        }
        said.lines <= LINES
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guest_that_repeats_itself_is_cut_short_and_heard_again_later() {
        let (vm, begin) = ("a".parse().expect("a name"), Instant::now());
        let voice = Voice::new(begin);
        let said = (0..10_000).filter(|n| voice.speaks(&vm, begin + Duration::from_millis(*n))).count();
        assert_eq!(said, LINES as usize);
        assert!(voice.speaks(&vm, begin + WHILE));
    }
}
