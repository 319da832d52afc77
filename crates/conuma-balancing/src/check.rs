//! The invariants, as code that shares nothing with the planner.

use conuma_topology::{Bytes, CpuSet, NodeId, VmName};
use serde::{Deserialize, Serialize};

use crate::holding::Resources;
use crate::ledger::Holder;

/// An invariant that does not hold.
#[derive(Debug, Clone, PartialEq, Eq, Hash, thiserror::Error, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Violation {
    /// I1 in the ledger: two accounts hold the same CPUs.
    #[error("I1: {first} and {second} both hold CPUs {cpus}")]
    CoreHeldTwice {
        /// One.
        first: Holder,
        /// The other.
        second: Holder,
        /// What.
        cpus: CpuSet,
    },
    /// I1 in reality: two VMs can run on the same CPUs.
    #[error("I1: {first} and {second} can both run on CPUs {cpus}")]
    CoreUsableTwice {
        /// One.
        first: VmName,
        /// The other.
        second: VmName,
        /// What.
        cpus: CpuSet,
    },
    /// A core is split between accounts, or is not one of the host's.
    #[error("{holder} holds CPUs {cpus}, which are not whole cores of the host")]
    SplitCore {
        /// Who.
        holder: Holder,
        /// What.
        cpus: CpuSet,
    },
    /// Something of the host is in no account, or in more than there is.
    #[error("node accounts and host differ: {accounts} booked, {host} there")]
    NotConserved {
        /// All accounts together.
        accounts: Resources,
        /// The host.
        host: Resources,
    },
    /// I2: more memory of a node could be touched than there is, less the reserve.
    #[error("I2: VMs can touch {used} of node {node}, which has {capacity} for them")]
    OverCapacity {
        /// The node.
        node: NodeId,
        /// What VMs could touch.
        used: Bytes,
        /// Capacity less reserve.
        capacity: Bytes,
    },
    /// I3: a plan takes a VM below its guarantee without the owner's word.
    #[error("I3: {vm} would fall below its guarantee: {short} short")]
    BelowGuarantee {
        /// The VM.
        vm: VmName,
        /// By how much, for people.
        short: String,
    },
    /// I4: a transfer is older than its deadlines allow.
    #[error("I4: transfer {transfer} should have ended {late_ms} ms ago")]
    Overdue {
        /// Which.
        transfer: crate::ledger::TransferId,
        /// How late, in milliseconds.
        late_ms: u64,
    },
    /// I5: a VM can use what the ledger does not give it.
    #[error("I5: {vm} can use {beyond}, which the ledger does not give it")]
    BeyondLedger {
        /// The VM.
        vm: VmName,
        /// What.
        beyond: Resources,
    },
    /// A plan moves what the giver does not have.
    #[error("{holder} should give {missing}, which it does not have")]
    GivesWhatItLacks {
        /// Who.
        holder: Holder,
        /// What.
        missing: Resources,
    },
    /// A plan moves from or to an account that plans may not touch.
    #[error("plans may not move from or to {0}")]
    ForbiddenHolder(Holder),
    /// A plan takes a VM beyond its limit.
    #[error("{vm} would hold {excess} beyond its limit")]
    BeyondLimit {
        /// The VM.
        vm: VmName,
        /// What is too much.
        excess: Resources,
    },
}
