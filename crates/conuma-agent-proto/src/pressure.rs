//! What an agent tells unasked: that tasks waited long for a CPU or for memory.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::report::Report;

/// What tasks of a guest wait for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Resource {
    /// CPUs.
    Cpu,
    /// Memory.
    Memory,
}

/// A threshold of pressure (PSI `some`, Documentation/accounting/psi.rst): that within `window` there was at least one
/// task that waited for as long as `stall` (wire precision of both: microseconds).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Trigger {
    /// More than zero, the window at most.
    pub stall: Duration,
    /// From [`crate::MIN_WINDOW`] to [`crate::MAX_WINDOW`]. A guest that is pressed all the time tells it once a window.
    pub window: Duration,
}

/// A report that was not asked for, as a trigger has fired.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pushed {
    /// Whose trigger.
    pub resource: Resource,
    /// Load and memory after it fired.
    pub report: Report,
}
