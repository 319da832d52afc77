//! Who holds which core and how much of each node's memory, and how that changes hands.
#![forbid(unsafe_code)]

mod action;
mod check;
mod choose;
mod control;
mod duty;
mod engine;
mod holding;
mod host;
mod ledger;
mod leg;
mod loans;
mod plan;
mod propose;
mod recover;
mod report;
mod timing;
mod transfer;
mod vm;

pub use action::{
    Action, ActionId, ActionKind, Event, Failure, Grip, Lane, Outcome, PluggedMemory, RefusedCpus, VmSeen,
};
pub use check::{Shortage, Violation, check_against_reality, check_ledger, check_plan, excesses, shortages, usable};
pub use engine::{Engine, State};
pub use holding::{CoreDemand, Demand, MemoryDemand, Resources};
pub use host::{Host, HostCore};
pub use ledger::{Holder, Ledger, ShiftError, TransferId};
pub use loans::Loan;
pub use plan::{CoreChoice, CoreReason, Move, Refusal, Request, TransferPlan};
pub use recover::VmFound;
pub use report::{LegReport, Notice, Reason, Remark, Report, Shortfall, Stage, StageTime, Verdict};
pub use timing::Timing;
pub use vm::{Life, MemoryDevice, VmSpec, VmView};

#[cfg(test)]
mod tests;
