//! Readers of procfs.
