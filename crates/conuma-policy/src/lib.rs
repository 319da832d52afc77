//! Who should hold what: from what every guest and the host report to the moves that do most good.
//!
//! # Problem
//! VMs want different amounts of cores and node memory at different times, and nobody knows how much until it was tried. What is guaranteed
//! must be there when it is needed; the rest should go where it is used, in fair shares, near its memory, without moving for ever.
//!
//! # Words
//! A [`Sample`] is what was counted, an [`Estimate`] what a VM is believed to want. The **floor** of a VM is what it needs of its
//! guarantee; its **share** is what the fair division gives it. A [`Decision`] is a list of moves with its reasons.
//!
//! # Method
//! 1. [`demand`]: samples become estimates: quick to rise, slow to fall; a VM whose cores are all busy is probed upwards.
//! 2. [`divide`]: weighted max-min fairness in whole cores, after floors and up to limits, exact; the same for each node's memory.
//! 3. [`place`]: which nodes the cores are on: a minimum-cost flow, exact for its (convex) cost; then which cores.
//! 4. [`Balancer::decide`]: only what gains more than it costs, outside of dwell times, within a budget. Guarantees come first and
//!    wait for nothing.
//!
//! The [`conuma_balancing::Engine`] carries decisions out and refuses any that breaks an invariant: nothing here is trusted with safety.
//!
//! # Properties
//! Each has a test of its name in `tests/properties.rs`: `guarantee`, `conservation`, `fairness`, `stability_under_constant_load`,
//! `monotonicity_in_weight`.
//!
//! # Limits
//! Estimates are about the next seconds, not about tomorrow. What a guest claims is believed up to its fair share. A VM without
//! reports keeps what it holds, except that others' guarantees come first.
#![forbid(unsafe_code)]

mod balancer;
mod decision;
pub mod demand;
pub mod divide;
mod host;
mod pins;
pub mod place;
pub mod rules;
mod sample;
mod scene;
mod score;
mod stability;
#[cfg(test)]
mod testing;

pub use balancer::Balancer;
pub use decision::{Decision, Held, Outlook, Rejected, Step, Why, WhyNot};
pub use demand::Estimate;
pub use host::{HostNeed, HostSample};
pub use pins::{Pin, Pins};
pub use rules::{Mode, Priority, Rules, Terms, Tuning, WallTime};
pub use sample::{CpuSample, NodeReading, NodeSample, Reading, SHORTEST, Sample};
pub use scene::{Busy, Layout, Scene, Seat, VmFacts, VmScene, scene_of};
