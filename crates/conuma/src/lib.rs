//! `conuma`, the command line over the daemon's API.
//!
//! The library never looks at the terminal or the environment: `main` does, once, and passes
//! what it found. Renderers are plain functions from API values to text.

pub mod cli;
pub mod console;
pub mod failure;
mod outcome;
pub mod reference;
pub mod render;
pub mod run;
mod source;
pub mod style;
pub mod table;

pub use outcome::Outcome;

/// A policy file with every key explained.
pub const EXAMPLE_POLICY: &str = include_str!("example.toml");
