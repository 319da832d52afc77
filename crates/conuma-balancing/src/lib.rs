//! Who holds which core and how much of each node's memory, and how that changes hands.
#![forbid(unsafe_code)]

mod action;
mod check;
mod engine;
mod holding;
mod host;
mod ledger;
mod plan;
mod report;
mod timing;
mod vm;

pub use action::{
    Action, ActionId, ActionKind, Event, Failure, Grip, Lane, Outcome, PluggedMemory, RefusedCpus, VmSeen,
};
pub use check::Violation;
pub use engine::{Engine, State};
pub use holding::{CoreDemand, Demand, MemoryDemand, Resources};
pub use host::{Host, HostCore};
pub use ledger::{Holder, Ledger, ShiftError, TransferId};
pub use plan::{CoreChoice, CoreReason, Move, Refusal, Request, TransferPlan};
pub use report::{LegReport, Notice, Reason, Remark, Report, Shortfall, Stage, StageTime, Verdict};
pub use timing::Timing;
pub use vm::{Life, Loan, MemoryDevice, VmSpec, VmView};
