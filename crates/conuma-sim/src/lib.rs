//! Simulated hosts, guests, loads and faults around the real engine and the real policy.
//!
//! # Problem
//! What a policy is worth shows over hours and under loads that nobody has at hand, and it can only be compared with others if all see
//! the same load. So time, guests and actuators are simulated; [`conuma_balancing::Engine`] and [`conuma_policy::Balancer`] are what
//! the daemon runs.
//!
//! # Words
//! A [`trace::Trace`] says what each VM wants at which time. A [`load::Load`] turns that into work that is done, late or lost. A
//! [`guest::Guest`] is a VM that uses what it holds and counts what a real one would. An [`outcome::Outcome`] is what came of a run.
//!
//! # Method
//! [`world`] runs engine and policy from event to event: between two events all rates are constant and are integrated exactly. [`fluid`]
//! runs the policies to compare with, which need no engine. Both measure with the same [`outcome::Meter`].
//!
//! # Properties
//! Each has a test of its name in `tests/properties.rs`: `the_same_seed_gives_the_same_result`, `no_invariant_breaks_at_any_event`,
//! `guarantees_hold_on_random_traces`, `work_is_conserved`.
//!
//! # Limits
//! Work is counted in core-seconds; caches, clock rates and I/O are not modelled. See `docs/simulator.md`.
#![forbid(unsafe_code)]

pub mod actuator;
pub mod bound;
pub mod cli;
pub mod compare;
pub mod fault;
pub mod fluid;
pub mod guest;
mod lifecycle;
pub mod load;
pub mod outcome;
pub mod pages;
pub mod render;
pub mod script;
pub mod share;
pub mod site;
pub mod trace;
pub mod world;
