//! What goes wrong, by chance but from a seed.

use conuma_topology::VmName;
use serde::{Deserialize, Serialize};

/// How often what goes wrong. Shares are from 0 to 1.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Faults {
    /// Share of what agents are asked that is neither done nor answered.
    pub silent: f64,
    /// Share of requests to leave CPUs that a guest refuses.
    pub refuse: f64,
    /// Share of unplugs that stop half-way.
    pub partial: f64,
    /// How often each guest resets.
    pub resets_per_hour: f64,
    /// How often each VM ends, to be started again.
    pub crashes_per_hour: f64,
    /// VMs of which the agent never answers.
    pub mute: Vec<VmName>,
}

/// What becomes of an action.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Fate {
    /// It is done.
    Works,
    /// It is not done, and nobody says so.
    Silent,
    /// The guest says no.
    Refused,
    /// The guest gives half.
    Half,
}
