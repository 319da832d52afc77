//! Tests of the whole engine against a simulated reality.
//!
//! - [`world`]: hosts, guests, gates and QEMU as they really are, with every way to fail;
//! - [`scenarios`], [`endings`], [`elsewhere`], [`recalls`], [`enforcement`]: stories, told step by step;
//! - [`properties`]: random scripts of requests and faults, named after the property they hold;
//! - [`model`]: every interleaving of small configurations.
#![allow(clippy::unwrap_used, clippy::panic)]

mod admission;
mod elsewhere;
mod endings;
mod enforcement;
mod fixed;
mod model;
mod mutations;
mod plans;
mod properties;
mod recalls;
mod recovery;
mod scenarios;
mod world;
