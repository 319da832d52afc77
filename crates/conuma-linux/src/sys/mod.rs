//! The raw system calls that no library wraps safely, or not for any number of CPUs and nodes: affinity,
//! memory placement, memory that is kept where it is, addresses where none is, and mount namespaces. Ids are those of the running kernel.
#![allow(unsafe_code)]

mod affinity;
mod kept;
mod mask;
mod memory;
mod mounts;
mod physical;

pub use affinity::{affinity, set_affinity};
pub use kept::Kept;
pub use memory::{PagePlace, has_memory, migrate_pages, move_pages};
pub use mounts::own_mounts;
pub use physical::touch_unclaimed;
