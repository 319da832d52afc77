//! The raw system calls that no library wraps for any number of CPUs and nodes: affinity and
//! memory placement. Ids are those of the running kernel.
#![allow(unsafe_code)]

mod affinity;
mod mask;
mod memory;

pub use affinity::{affinity, set_affinity};
pub use memory::{PagePlace, has_memory, migrate_pages, move_pages};
