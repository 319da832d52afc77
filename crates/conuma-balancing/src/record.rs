//! What of the engine's state the journal keeps: what a recovery reads, and no more.
//!
//! How gates and sizes stood, how far a move is, and which answers were waited for, is left out: a recovery looks at the
//! host for that. So a size that is looked at twenty times is not written twenty times, and a move of cores is written when
//! it begins, when it changes hands and when it ends.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use conuma_topology::{CpuSet, VmName};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::control::Vm;
use crate::engine::State;
use crate::host::Host;
use crate::ledger::{Ledger, TransferId};
use crate::loans::Loans;
use crate::report::Stage;
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
    transfers: BTreeMap<TransferId, Transfer>,
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

/// A transfer without what a recovery does not ask for.
fn lasting(transfer: &Transfer) -> Transfer {
    let mut transfer = transfer.clone();
    for leg in transfer.legs.iter_mut().filter(|leg| leg.stage != Stage::Done) {
        // Of stages it matters only whether it was the last.
        leg.stage = Stage::Quiesce;
        leg.report.stages.clear();
        leg.until = Duration::MAX;
        (leg.room_asked, leg.needed) = (false, false);
        leg.asked = None;
        leg.answer = None;
        leg.refusal = None;
    }
    transfer
}

impl Serialize for State {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        Written {
            host: &self.host,
            ledger: &self.ledger,
            loans: &self.loans,
            vms: self.vms.iter().map(|(name, vm)| (name, &vm.spec)).collect(),
            transfers: self.transfers.iter().map(|(id, transfer)| (*id, lasting(transfer))).collect(),
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
        let (offline, ended, pending) = (CpuSet::new(), VecDeque::new(), BTreeMap::new());
        Ok(Self { host, ledger, loans, vms, offline, transfers, ended, pending, next_action, next_transfer })
    }
}
