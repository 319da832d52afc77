//! The raw system calls that no library wraps safely, or not for any number of CPUs and nodes: affinity,
//! memory placement, and memory that is kept where it is. Ids are those of the running kernel.
#![allow(unsafe_code)]

mod affinity;
mod kept;
mod mask;
mod memory;

pub use affinity::{affinity, set_affinity};
pub use kept::Kept;
pub use memory::{PagePlace, has_memory, migrate_pages, move_pages};
