//! What people say of how the host is to be divided: the policy file.
//!
//! ```toml
//! mode = "auto"                     # off, advise, or auto
//! utc_offset = "+01:00"             # of the times below; UTC if left out
//!
//! [tuning]                          # see `Tuning`; what is left out is as it comes
//! moves_per_minute = 60
//!
//! [vm.db]
//! weight = 300                      # instead of what its VM file says, as all of these
//! guarantee = { cores = 4, memory = "8G" }
//! limit = { cores = 12 }
//! priority = "high"                 # high, normal or low: who comes first above guarantees
//!
//! [[vm.db.window]]                  # other terms at times; the last that fits counts
//! days = ["mon", "tue", "wed", "thu", "fri"]
//! from = "08:00"
//! to = "18:00"                      # beyond midnight if it is not after `from`
//! weight = 600
//!
//! [vm.legacy]
//! hands_off = true                  # the policy neither takes from it nor gives to it
//! ```

mod check;
mod diff;
mod parse;
mod time;
mod tuning;

use std::collections::BTreeMap;

use conuma_balancing::{CoreDemand, Demand, MemoryDemand};
use conuma_topology::VmName;
use serde::{Deserialize, Serialize};

pub use check::Concern;
pub use conuma_binding::{Problem, SpecError as RulesError};
pub use diff::Change;
pub use time::{Days, TimeOfDay, UtcOffset, WallTime, Window};
pub use tuning::Tuning;

use crate::scene::VmScene;

/// Whether decisions are made, and whether they are carried out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// Nothing is decided.
    #[default]
    Off,
    /// Decisions are made and shown; nothing moves.
    Advise,
    /// Decisions are carried out.
    Auto,
}

/// Who comes first, above guarantees.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Priority {
    /// Gets what the others leave.
    Low,
    /// Usual.
    #[default]
    Normal,
    /// Gets what it wants before the others.
    High,
}

/// A policy.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Rules {
    /// Whether decisions are made and carried out.
    pub mode: Mode,
    /// What windows are meant in.
    pub utc_offset: UtcOffset,
    /// How quickly and how boldly.
    pub tuning: Tuning,
    /// What is said of VMs, by name. They need not run.
    pub vms: BTreeMap<VmName, VmRules>,
}

/// What the policy says of a VM.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct VmRules {
    /// At any time.
    pub always: Partial,
    /// Other terms at times; the last that fits counts, term by term.
    pub windows: Vec<(Window, Partial)>,
}

/// Terms, where they are not left to others.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Partial {
    /// Its share, 1 to 10,000.
    pub weight: Option<u32>,
    /// Cores that it always gets back.
    pub guaranteed_cores: Option<CoreDemand>,
    /// Memory that it always gets back.
    pub guaranteed_memory: Option<MemoryDemand>,
    /// Cores at most.
    pub most_cores: Option<CoreDemand>,
    /// Memory at most.
    pub most_memory: Option<MemoryDemand>,
    /// Who comes first.
    pub priority: Option<Priority>,
    /// Left alone.
    pub hands_off: Option<bool>,
}

/// What holds for a VM at a time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Terms {
    /// Its share of what is left after guarantees.
    pub weight: u32,
    /// What it always gets back.
    pub guarantee: Demand,
    /// What it can hold at most.
    pub limit: Demand,
    /// Who comes first.
    pub priority: Priority,
    /// Left alone.
    pub hands_off: bool,
}

impl Rules {
    /// Reads a policy file; `file` only appears in errors. All that is wrong is told at once.
    pub fn parse(text: &str, file: &str) -> Result<Self, RulesError> {
        parse::parse(text, file)
    }

    /// What holds for a VM at that time.
    pub fn terms(&self, vm: &VmScene, wall: WallTime) -> Terms {
        let file = Terms {
            weight: vm.weight,
            guarantee: vm.guarantee.clone(),
            limit: vm.limit.clone(),
            priority: Priority::Normal,
            hands_off: false,
        };
        match self.vms.get(&vm.name) {
            Some(rules) => rules.at(wall.local(self.utc_offset)).over(file),
            None => file,
        }
    }
}

impl VmRules {
    /// What is said for that time, which is local.
    pub fn at(&self, local: WallTime) -> Partial {
        let fits = self.windows.iter().filter(|(window, _)| window.contains(local));
        fits.fold(self.always.clone(), |terms, (_, window)| window.clone().or(terms))
    }
}

impl Partial {
    fn or(self, other: Self) -> Self {
        Self {
            weight: self.weight.or(other.weight),
            guaranteed_cores: self.guaranteed_cores.or(other.guaranteed_cores),
            guaranteed_memory: self.guaranteed_memory.or(other.guaranteed_memory),
            most_cores: self.most_cores.or(other.most_cores),
            most_memory: self.most_memory.or(other.most_memory),
            priority: self.priority.or(other.priority),
            hands_off: self.hands_off.or(other.hands_off),
        }
    }

    fn over(self, terms: Terms) -> Terms {
        Terms {
            weight: self.weight.unwrap_or(terms.weight),
            guarantee: Demand {
                cores: self.guaranteed_cores.or(terms.guarantee.cores),
                memory: self.guaranteed_memory.or(terms.guarantee.memory),
            },
            limit: Demand {
                cores: self.most_cores.or(terms.limit.cores),
                memory: self.most_memory.or(terms.limit.memory),
            },
            priority: self.priority.unwrap_or(terms.priority),
            hands_off: self.hands_off.unwrap_or(terms.hands_off),
        }
    }
}
