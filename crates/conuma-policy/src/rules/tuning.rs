//! How quickly and how boldly decisions are made: the table `[tuning]` of a policy file.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// How quickly and how boldly. All of it can be said under `[tuning]`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Tuning {
    /// How quickly an estimate follows a load that grows: time constant, in seconds.
    pub attack: f64,
    /// How quickly it follows one that falls.
    pub decay: f64,
    /// The same for memory.
    pub memory_decay: f64,
    /// After its cores moved, a VM is left alone for so long, in seconds, unless it needs its guarantee.
    pub dwell: f64,
    /// Differences of so much of a core are no reason to move one.
    pub dead_band: f64,
    /// Cores, and memory moves, that the policy moves in a minute at most, for each VM that runs; guarantees are not counted.
    pub moves_per_minute: u32,
    /// For how long a load is believed to last, in seconds: what moving cores brings within it must exceed what it costs.
    pub horizon: f64,
    /// Core-seconds that moving a core costs.
    pub core_cost: f64,
    /// Core-seconds that moving a GiB costs.
    pub memory_cost: f64,
    /// What a core far from its memory loses of a core, for each step of distance 10.
    pub far_loss: f64,
    /// Whether what a VM is guaranteed but does not need may be lent, until it does.
    pub lend_idle_guarantee: bool,
    /// How much of the page cache counts as wanted, besides what is used again and again.
    pub cache_worth: f64,
    /// What a guest should have free on a node that it uses, as a share of what it uses there.
    pub headroom: f64,
    /// How far ahead growth of memory is foreseen, in seconds.
    pub foresight: f64,
    /// The host is short on a node where less than this share of its reserve is available.
    pub host_short: f64,
    /// The host is short of cores where its own tasks wait for one for more than this share of the time.
    pub host_stall: f64,
}

impl Default for Tuning {
    fn default() -> Self {
        Self {
            attack: 0.1,
            decay: 3.0,
            memory_decay: 30.0,
            dwell: 0.5,
            dead_band: 0.2,
            moves_per_minute: 120,
            horizon: 5.0,
            core_cost: 0.05,
            memory_cost: 0.5,
            far_loss: 0.15,
            lend_idle_guarantee: true,
            cache_worth: 0.25,
            headroom: 0.15,
            foresight: 30.0,
            host_short: 0.25,
            host_stall: 0.25,
        }
    }
}

impl Tuning {
    /// [`Tuning::dwell`] as a duration.
    pub fn dwell(&self) -> Duration {
        Duration::from_secs_f64(self.dwell.clamp(0.0, 3600.0))
    }
}

/// One key of the table.
pub(super) struct Key {
    pub(super) name: &'static str,
    pub(super) value: Place,
}

/// Where its value is, and what values it can have.
pub(super) enum Place {
    Number(fn(&mut Tuning) -> &mut f64, f64, f64),
    Count(fn(&mut Tuning) -> &mut u32, u64, u64),
    Switch(fn(&mut Tuning) -> &mut bool),
}

const fn number(name: &'static str, place: fn(&mut Tuning) -> &mut f64, min: f64, max: f64) -> Key {
    Key { name, value: Place::Number(place, min, max) }
}

/// All keys, in the order of the documentation.
pub(super) const KEYS: [Key; 16] = [
    number("attack", |tuning| &mut tuning.attack, 0.0, 3600.0),
    number("decay", |tuning| &mut tuning.decay, 0.0, 3600.0),
    number("memory_decay", |tuning| &mut tuning.memory_decay, 0.0, 36_000.0),
    number("dwell", |tuning| &mut tuning.dwell, 0.0, 3600.0),
    number("dead_band", |tuning| &mut tuning.dead_band, 0.0, 1.0),
    Key { name: "moves_per_minute", value: Place::Count(|tuning| &mut tuning.moves_per_minute, 0, 1_000_000) },
    number("horizon", |tuning| &mut tuning.horizon, 0.1, 3600.0),
    number("core_cost", |tuning| &mut tuning.core_cost, 0.0, 1000.0),
    number("memory_cost", |tuning| &mut tuning.memory_cost, 0.0, 1000.0),
    number("far_loss", |tuning| &mut tuning.far_loss, 0.0, 1.0),
    Key { name: "lend_idle_guarantee", value: Place::Switch(|tuning| &mut tuning.lend_idle_guarantee) },
    number("cache_worth", |tuning| &mut tuning.cache_worth, 0.0, 1.0),
    number("headroom", |tuning| &mut tuning.headroom, 0.0, 10.0),
    number("foresight", |tuning| &mut tuning.foresight, 0.0, 3600.0),
    number("host_short", |tuning| &mut tuning.host_short, 0.0, 1.0),
    number("host_stall", |tuning| &mut tuning.host_stall, 0.01, 1.0),
];

/// Their names.
pub(super) const NAMES: [&str; KEYS.len()] = {
    let mut names = [""; KEYS.len()];
    let mut index = 0;
    while index < KEYS.len() {
        names[index] = KEYS[index].name;
        index += 1;
    }
    names
};

impl Key {
    /// Its value, as text of the file.
    pub(super) fn text(&self, mut tuning: Tuning) -> String {
        match self.value {
            Place::Number(place, ..) => place(&mut tuning).to_string(),
            Place::Count(place, ..) => place(&mut tuning).to_string(),
            Place::Switch(place) => place(&mut tuning).to_string(),
        }
    }
}
