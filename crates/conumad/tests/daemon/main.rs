//! The daemon as a whole, through its API, on a fake hypervisor and fake agents.
#![allow(clippy::unwrap_used, clippy::panic, unreachable_pub)]

mod brake;
mod ends;
mod enforce;
mod guest;
mod harness;
mod life;
mod restart;
mod transfers;
