//! From API values to text. Nothing here does anything else.

pub mod amount;
pub mod event;
pub mod grid;
pub mod host;
pub mod start;
pub mod transfer;
pub mod vm;

#[cfg(test)]
mod tests;
