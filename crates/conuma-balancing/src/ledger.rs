//! Where it is decided who holds a core, and each node's memory.
//!
//! Everything of the [`Host`] is in exactly one account at any instant: a VM's, the free pool's,
//! the host reserve's, or that of a transfer under way. [`Ledger::shift`] is the only way to change
//! that, and it only shifts between two accounts, so nothing is ever lost or counted twice.
//!
//! The ledger is an *upper bound* of real use: a VM's account is lowered only after it has been seen
//! that the VM no longer uses the thing, and raised before the VM could begin to use it.

use std::collections::BTreeMap;
use std::fmt;

use conuma_topology::VmName;
use serde::{Deserialize, Serialize};

use crate::holding::Resources;
use crate::host::Host;

/// Who can hold something.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Holder {
    /// Nobody: free for anyone.
    Pool,
    /// The host itself; never given away.
    Reserve,
    /// A VM.
    Vm(VmName),
    /// Nobody: on its way in a transfer.
    Transit(TransferId),
}

impl Holder {
    /// The VM that it is.
    pub fn vm(&self) -> Option<&VmName> {
        match self {
            Self::Vm(vm) => Some(vm),
            Self::Pool | Self::Reserve | Self::Transit(_) => None,
        }
    }
}

/// A transfer; never used twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct TransferId(pub u64);

/// Why a shift is impossible.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
#[error("{from} does not hold {missing}, which should move to {to}")]
pub struct ShiftError {
    /// Who should give.
    pub from: Holder,
    /// Who should get.
    pub to: Holder,
    /// What the giver lacks.
    pub missing: Resources,
}

/// Who holds what.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
pub struct Ledger {
    pool: Resources,
    reserve: Resources,
    vms: BTreeMap<VmName, Resources>,
    transit: BTreeMap<TransferId, Resources>,
}

impl Ledger {
    /// All of `host` is in the pool, except for the reserve.
    pub fn new(host: &Host) -> Self {
        let pool = host.everything().saturating_sub(&host.reserve);
        Self { pool, reserve: host.reserve.clone(), ..Self::default() }
    }

    /// What `holder` holds.
    pub fn held(&self, holder: &Holder) -> &Resources {
        static NOTHING: Resources = Resources { cpus: conuma_topology::CpuSet::new(), memory: BTreeMap::new() };
        match holder {
            Holder::Pool => &self.pool,
            Holder::Reserve => &self.reserve,
            Holder::Vm(vm) => self.vms.get(vm).unwrap_or(&NOTHING),
            Holder::Transit(transfer) => self.transit.get(transfer).unwrap_or(&NOTHING),
        }
    }

    /// What `vm` holds.
    pub fn vm(&self, vm: &VmName) -> &Resources {
        self.held(&Holder::Vm(vm.clone()))
    }

    /// All accounts, those that are empty left out.
    pub fn accounts(&self) -> impl Iterator<Item = (Holder, &Resources)> {
        let vms = self.vms.iter().map(|(vm, held)| (Holder::Vm(vm.clone()), held));
        let transit = self.transit.iter().map(|(id, held)| (Holder::Transit(*id), held));
        [(Holder::Pool, &self.pool), (Holder::Reserve, &self.reserve)]
            .into_iter()
            .chain(vms)
            .chain(transit)
            .filter(|(_, held)| !held.is_empty())
    }

    /// Shifts `what` from one account to another, or changes nothing if the giver lacks any of it.
    pub fn shift(&mut self, what: &Resources, from: &Holder, to: &Holder) -> Result<(), ShiftError> {
        let giver = self.account(from);
        if !giver.take(what) {
            let missing = what.saturating_sub(giver);
            self.forget_if_empty(from);
            return Err(ShiftError { from: from.clone(), to: to.clone(), missing });
        }
        self.forget_if_empty(from);
        self.account(to).add(what);
        self.forget_if_empty(to);
        Ok(())
    }

    fn account(&mut self, holder: &Holder) -> &mut Resources {
        match holder {
            Holder::Pool => &mut self.pool,
            Holder::Reserve => &mut self.reserve,
            Holder::Vm(vm) => self.vms.entry(vm.clone()).or_default(),
            Holder::Transit(transfer) => self.transit.entry(*transfer).or_default(),
        }
    }

    fn forget_if_empty(&mut self, holder: &Holder) {
        if self.held(holder).is_empty() {
            match holder {
                Holder::Vm(vm) => drop(self.vms.remove(vm)),
                Holder::Transit(transfer) => drop(self.transit.remove(transfer)),
                Holder::Pool | Holder::Reserve => {}
            }
        }
    }
}

impl fmt::Display for TransferId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pool => f.pad("the pool"),
            Self::Reserve => f.pad("the host"),
            Self::Vm(vm) => vm.fmt(f),
            Self::Transit(transfer) => f.pad(&format!("transfer {transfer}")),
        }
    }
}
