//! Who holds which core and how much of each node's memory, and how that changes hands.
//!
//! # Problem
//! Several VMs see the whole host, but at any instant each core and each byte of each node may be *used*
//! by one of them at most. Use has to move while guests run, although guests refuse, answer late,
//! give a part, lie, reboot and die, and although the daemon itself can die between any two steps.
//!
//! # Words
//! A **holding** is what a VM may use now ([`Resources`]); the [`Ledger`] is the one record of all
//! holdings. A **transfer** moves resources between holders after a [`TransferPlan`]; each [`Move`] of
//! the plan is a **leg**. A **knob** is a thing that can be set and may not be at once: the gates, the agent's
//! holding, a virtio-mem size. A **duty** is what brings a knob in step with the ledger. A **loan** is
//! what one VM can have back from another.
//!
//! # Method
//! Take first, verify, give last:
//! 1. [`Engine::request`] plans (`propose`, `choose`) and has the plan checked by code that shares nothing
//!    with the planner ([`check_plan`]).
//! 2. Each leg (`leg::cores`, `leg::memory`) takes from the donor, sees it verified, moves it in the ledger out
//!    of the donor's account, moves it into the recipient's, and only then lets the recipient use it.
//! 3. Duties (`duty`) issue the actions: whatever differs from the ledger is set right, for as long as it
//!    takes. Legs only turn what the duties aim at.
//!
//! Everything goes through [`Engine::update`] (an [`Event`] happened) and [`Engine::next_actions`] (what to do).
//! Exact as the [`Action`]s are, the executor decides nothing; its contract is in [`action`].
//! Transfers that turn different knobs run at once, others wait in the order in which they came.
//!
//! # Properties
//! Each has a test of its name in `tests::properties`, and all hold in every state that
//! `tests::model` reaches:
//! - I1 `a_core_is_usable_by_at_most_one_vm`
//! - I2 `a_node_is_never_overcommitted`
//! - I3 `a_plan_never_takes_a_vm_below_its_guarantee`
//! - I4 `every_transfer_ends_by_its_deadline`
//! - I5 `the_ledger_is_never_below_real_use`
//! - `a_recall_of_all_that_is_owed_is_never_refused`, `nothing_is_lost_or_split`, `a_doubled_answer_changes_nothing`,
//!   `reality_follows_the_ledger_when_everyone_answers`, `the_journal_reads_back_as_it_was_written`
//!
//! # Decisions
//! - No VM starts whose guarantee could not be kept beside those of the others (`admission`).
//! - A silent or busy guest loses cores by a firm gate; it is told when it listens again.
//! - A guest that refuses cores keeps them, except when they are owed (a recall): a guarantee must not
//!   depend on the borrower's consent. It never takes what the borrower itself is guaranteed (`propose::recall`).
//! - Memory cannot be forced. What a donor keeps stays booked to it, what a recipient does not plug goes back. A guest
//!   that neither answered nor gave is left alone until it answers.
//! - What is not known (a lost answer of QEMU or the gate) stays booked to whoever could use it.
//! - A recipient that is not heard of keeps its cores: its gates are open, its agent is told later.
//!
//! # Limits
//! The engine trusts its executor and QEMU, not guests: a guest that touches unplugged memory is for the host's
//! audit to find. It knows nothing of load; whom to give to is the caller's business. Work is linear in
//! VMs, nodes and transfers for each call; sets of CPUs cost a word for 64.
#![forbid(unsafe_code)]

pub mod action;
mod admission;
mod check;
mod choose;
mod control;
mod duty;
mod elsewhere;
mod engine;
mod holding;
mod host;
mod ledger;
mod leg;
mod loans;
mod pace;
mod plan;
mod propose;
mod record;
mod recover;
mod report;
mod timing;
mod transfer;
mod vm;

pub use action::{
    Action, ActionId, ActionKind, Event, Failure, Fixed, Grip, Lane, Outcome, PluggedMemory, RefusedCpus, VmSeen,
};
pub use check::{Shortage, Violation, check_against_reality, check_ledger, check_plan, excesses, shortages, usable};
pub use engine::{Engine, State};
pub use holding::{CoreDemand, Demand, MemoryDemand, Resources};
pub use host::{Host, HostCore};
pub use ledger::{Holder, Ledger, ShiftError, TransferId};
pub use loans::Loan;
pub use plan::{CoreChoice, CoreReason, Move, Refusal, Request, TransferPlan, Withheld};
pub use recover::VmFound;
pub use report::{LegReport, Notice, Reason, Remark, Report, Shortfall, Stage, StageTime, Verdict};
pub use timing::Timing;
pub use vm::{Life, MemoryDevice, Turning, VmSpec, VmView};

#[cfg(test)]
mod tests;
