//! What of the engine's state the journal keeps: what a recovery reads, and no more.
//!
//! How gates and sizes stood, and which answers were waited for, is left out: a recovery looks at the host for
//! that. So a size that is looked at twenty times is not written twenty times.

use std::collections::{BTreeMap, VecDeque};

use conuma_topology::VmName;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::control::Vm;
use crate::engine::State;
use crate::host::Host;
use crate::ledger::{Ledger, TransferId};
use crate::loans::Loans;
use crate::transfer::Transfer;
use crate::vm::VmSpec;

/// Numbers of actions are written ahead, in steps of this, so that a recovery never gives one again.
const AHEAD: u64 = 1 << 16;

#[derive(Serialize)]
struct Written<'a> {
    host: &'a Host,
    ledger: &'a Ledger,
    loans: &'a Loans,
    vms: BTreeMap<&'a VmName, &'a VmSpec>,
    transfers: &'a BTreeMap<TransferId, Transfer>,
    next_action: u64,
    next_transfer: u64,
}

#[derive(Deserialize)]
struct Read {
    host: Host,
    ledger: Ledger,
    loans: Loans,
    vms: BTreeMap<VmName, VmSpec>,
    transfers: BTreeMap<TransferId, Transfer>,
    next_action: u64,
    next_transfer: u64,
}

impl Serialize for State {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        Written {
            host: &self.host,
            ledger: &self.ledger,
            loans: &self.loans,
            vms: self.vms.iter().map(|(name, vm)| (name, &vm.spec)).collect(),
            transfers: &self.transfers,
            next_action: self.next_action.checked_next_multiple_of(AHEAD).unwrap_or(u64::MAX),
            next_transfer: self.next_transfer,
        }
        .serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for State {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let Read { host, ledger, loans, vms, transfers, next_action, next_transfer } = Read::deserialize(deserializer)?;
        let vms = vms.into_iter().map(|(name, spec)| (name, Vm::starting(spec))).collect();
        let (ended, pending) = (VecDeque::new(), BTreeMap::new());
        Ok(Self { host, ledger, loans, vms, transfers, ended, pending, next_action, next_transfer })
    }
}
