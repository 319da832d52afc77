//! From API values to text. Nothing here does anything else.

pub mod grid;
