//! What the host asks of an agent.

use std::fmt;
use std::time::Duration;

use conuma_topology::{Bytes, GuestCpuSet, GuestNodeId};
use serde::{Deserialize, Serialize};

use crate::pressure::Trigger;

/// Tells answers apart; chosen by the host, unique on a connection, and never [`RequestId::PUSHED`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct RequestId(pub u64);

impl RequestId {
    /// What an agent sends unasked bears it; no request does.
    pub const PUSHED: Self = Self(u64::MAX);
}

/// The age of the decision behind a request; grows with every decision about this VM.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Generation(pub u64);

impl fmt::Display for Generation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A range of protocol versions, both ends included.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Versions {
    /// Oldest version spoken.
    pub min: u32,
    /// Newest version spoken.
    pub max: u32,
}

impl Versions {
    /// The newest version that both speak, or `None`.
    pub fn common(self, other: Self) -> Option<u32> {
        let best = self.max.min(other.max);
        (best >= self.min.max(other.min)).then_some(best)
    }
}

impl fmt::Display for Versions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} to {}", self.min, self.max)
    }
}

/// The host's greeting.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// What the host speaks.
    pub versions: Versions,
    /// Version of the daemon's program, for logs.
    pub daemon_version: String,
}

/// One request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    /// Comes back in the answer.
    pub id: RequestId,
    /// Fences what changes something; ignored by questions.
    pub generation: Generation,
    /// How long the agent may take from receipt to answer (wire precision: milliseconds). An
    /// agent answers what it reached by then, or [`crate::AgentError::Deadline`].
    pub deadline: Duration,
    /// What is asked.
    pub body: RequestBody,
}

/// What is asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum RequestBody {
    /// First on every connection; answered by [`crate::Reply::Hello`].
    Hello(Hello),
    /// Use exactly these CPUs from now on and leave all others idle; answered by
    /// [`crate::Reply::Holding`].
    ApplyHolding {
        /// The CPUs to use.
        cpus: GuestCpuSet,
    },
    /// Make so much memory of a node free, so that it can be unplugged; answered by
    /// [`crate::Reply::Prepared`].
    PrepareMemory {
        /// The node to give from.
        node: GuestNodeId,
        /// How much should be free.
        bytes: Bytes,
    },
    /// Wait until memory that was plugged is online on its node; answered by
    /// [`crate::Reply::Memory`], satisfied or not, at the deadline at the latest.
    ConfirmMemory {
        /// The node that grew.
        node: GuestNodeId,
        /// What the node's `MemTotal` should be at least: what it was before, plus what was plugged.
        at_least: Bytes,
    },
    /// Tell the load and memory; answered by [`crate::Reply::Report`].
    Report,
    /// Tell the load and memory unasked ([`crate::Reply::Pushed`]) whenever one of these triggers fires, until the
    /// connection ends or another `Watch` comes; answered by [`crate::Reply::Watching`]. An agent that is older refuses
    /// it, and is asked for reports only.
    Watch {
        /// Tasks wait for a CPU.
        cpu: Option<Trigger>,
        /// Tasks wait for memory.
        memory: Option<Trigger>,
    },
}
