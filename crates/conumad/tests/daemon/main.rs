//! The daemon as a whole, through its API, on a fake hypervisor and fake agents.
#![allow(clippy::unwrap_used, clippy::panic, unreachable_pub)]

mod balance;
mod balance_history;
mod balance_policy;
mod brake;
mod ends;
mod enforce;
mod guest;
mod harness;
mod life;
mod load;
mod migrations;
mod pushes;
mod restart;
mod transfers;
