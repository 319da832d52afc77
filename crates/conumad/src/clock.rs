//! Engine time: a duration since an arbitrary start that never goes back.
//!
//! The start is 1970 as the wall clock had it when the daemon began, so times of an earlier daemon in
//! the journal stay comparable, and a later step of the wall clock moves nothing.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// The daemon's only clock.
#[derive(Debug, Clone, Copy)]
pub struct Clock {
    began: Instant,
    offset: Duration,
}

impl Clock {
    /// A clock that starts with the wall clock's present time.
    pub fn start() -> Self {
        let offset = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self { began: Instant::now(), offset }
    }

    /// Engine time now.
    pub fn now(&self) -> Duration {
        self.offset + self.began.elapsed()
    }

    /// When an engine time is, for tokio's timers.
    pub fn instant(&self, at: Duration) -> tokio::time::Instant {
        tokio::time::Instant::from_std(self.began + at.saturating_sub(self.offset))
    }

    /// How long it is until an engine time; zero if it has passed.
    pub fn until(&self, at: Duration) -> Duration {
        at.saturating_sub(self.now())
    }
}

/// Milliseconds since 1970, as the API shows an engine time.
pub fn unix_ms(at: Duration) -> u64 {
    u64::try_from(at.as_millis()).unwrap_or(u64::MAX)
}
