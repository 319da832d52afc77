//! What is kept of a decision.

use std::fmt;
use std::time::{Duration, SystemTime};

use conuma_topology::VmName;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// A time of day: milliseconds since 1970-01-01 00:00 UTC, without leap seconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct UnixMillis(pub i64);

impl From<SystemTime> for UnixMillis {
    fn from(time: SystemTime) -> Self {
        let millis = |span: Duration| i64::try_from(span.as_millis()).unwrap_or(i64::MAX);
        match time.duration_since(SystemTime::UNIX_EPOCH) {
            Ok(since) => Self(millis(since)),
            Err(before) => Self(-millis(before.duration())),
        }
    }
}

/// Which decision: 1 for the first one, growing, never used twice in one file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct DecisionId(pub i64);

impl fmt::Display for DecisionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A decision as it is made.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct NewDecision {
    /// When it was made. It is also "now" for the age of older ones.
    pub at: UnixMillis,
    /// What it was made for, as `tick`, `pressure`, `recall`, `start` or `manual plan`.
    pub cause: String,
    /// Whether it was only told (`advise`) or carried out (`auto`).
    pub mode: String,
    /// The VMs concerned, in any order. A name that comes twice is kept once.
    pub vms: Vec<VmName>,
    /// One line for people.
    pub summary: String,
    /// The host's score that it should gain, in points; a finite number.
    pub predicted: f64,
    /// What was known when it was made.
    pub inputs: Value,
    /// What was to be done.
    pub plan: Value,
}

/// What came of a decision.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Outcome {
    /// When it was known.
    pub at: UnixMillis,
    /// In one word, as `done`, `partial`, `failed` or `interrupted`.
    pub state: String,
    /// The host's score that was gained, in points, where it could be measured; a finite number.
    pub achieved: Option<f64>,
    /// All else.
    pub detail: Value,
}

/// A decision as it is kept.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Decision {
    /// Which.
    pub id: DecisionId,
    /// When it was made.
    pub at: UnixMillis,
    /// What it was made for.
    pub cause: String,
    /// Whether it was only told or carried out.
    pub mode: String,
    /// The VMs concerned, by name, each once.
    pub vms: Vec<VmName>,
    /// One line for people.
    pub summary: String,
    /// The host's score that it should gain, in points.
    pub predicted: f64,
    /// What was known when it was made.
    pub inputs: Value,
    /// What was to be done.
    pub plan: Value,
    /// What came of it; none while it is under way.
    pub outcome: Option<Outcome>,
}
