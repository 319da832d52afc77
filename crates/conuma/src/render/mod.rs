//! From API values to text. Nothing here does anything else.

pub mod amount;
pub mod decision;
mod estimate;
pub mod event;
pub mod grid;
pub mod host;
pub mod policy;
pub mod start;
pub mod transfer;
pub mod vm;
pub mod why;

#[cfg(test)]
mod tests;
#[cfg(test)]
mod tests_policy;
