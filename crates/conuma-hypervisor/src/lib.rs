//! What Conuma asks of a hypervisor, and the back ends that do it.

mod error;
mod facts;
pub mod fake;
pub mod gate;
pub mod qmp;
mod vm;

pub use error::HypervisorError;
pub use facts::HypervisorFacts;
pub use vm::{Hypervisor, MemoryState, RunState, Vm, VmEvent};
