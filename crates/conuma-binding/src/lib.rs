//! The binding manager's pure half: from a machine and a VM's wishes to its replica and bindings.
//!
//! A [`VmSpec`] is what a VM file says. A [`Replica`] is the host's topology once more, as a guest
//! will see it, with the maps between host and guest ids; this crate is the only place that knows
//! both. A [`BindingPlan`] adds everything else that starting the VM needs, so exactly that a
//! hypervisor back end decides nothing.
//!
//! Everything here is pure: no I/O, no clock, no environment.
#![forbid(unsafe_code)]

pub mod form;
mod plan;
mod replica;
mod spec;

pub use plan::{Accel, BindingPlan, Bridge, Files, NodePlan, PlanError, PlanOptions, render_table};
pub use replica::{GuestNode, LlcLevel, Replica, ReplicaError, Slot, Smp, VCPU_LIMIT, Vcpu};
pub use spec::{Agent, Boot, BootSource, CoreWish, MemoryWish, Problem, Reserve, SpecError, VmSpec, Wish};
