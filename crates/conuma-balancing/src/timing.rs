//! How long things may take. All of it is data, so that a slow lab and a test can say otherwise.

use std::time::Duration;

use conuma_topology::Bytes;
use serde::{Deserialize, Serialize};

/// Deadlines and intervals.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Timing {
    /// A guest leaves CPUs, or begins to use them.
    pub agent: Duration,
    /// A guest leaves CPUs that another needs of its guarantee, and stands still there; never longer than where it may take its time.
    pub recall: Duration,
    /// A gate, or one answer of QEMU.
    pub host: Duration,
    /// How long run times must stand still.
    pub idle_window: Duration,
    /// How long a guest that said it left may still be seen running before the gate closes anyway.
    pub verify: Duration,
    /// Memory is taken unasked by what a guest reported to be free for so long: it may fill it within seconds.
    pub fresh: Duration,
    /// A guest makes room on a node.
    pub prepare: Duration,
    /// A guest gives memory back, all of it.
    pub shrink: Duration,
    /// A guest takes memory, all of it.
    pub grow: Duration,
    /// A guest confirms that memory is online.
    pub confirm: Duration,
    /// Between two looks at a size that should change, at the least; see `pace`.
    pub poll: Duration,
    /// After so long without progress an unplug is asked for again (the driver would wait 50 s).
    pub restart: Duration,
    /// Before something that failed is tried again.
    pub retry: Duration,
    /// The largest step in which a guest grows whose free memory is unknown.
    pub step: Bytes,
}

impl Timing {
    /// How long until a gate, or QEMU, is where it should be, with one more try.
    pub(crate) fn gate(&self) -> Duration {
        self.host * 2 + self.retry
    }
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            agent: Duration::from_secs(5),
            recall: Duration::from_millis(400),
            host: Duration::from_secs(5),
            idle_window: Duration::from_millis(5),
            verify: Duration::from_secs(2),
            fresh: Duration::from_secs(1),
            prepare: Duration::from_secs(20),
            shrink: Duration::from_secs(60),
            grow: Duration::from_secs(60),
            confirm: Duration::from_secs(10),
            poll: Duration::from_millis(10),
            restart: Duration::from_secs(5),
            retry: Duration::from_secs(5),
            step: Bytes::gib(1),
        }
    }
}
