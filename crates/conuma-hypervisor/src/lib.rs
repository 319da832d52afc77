//! What Conuma asks of a hypervisor, and the back ends that do it.

#[cfg(feature = "testing")]
pub mod conformance;
mod error;
mod facts;
pub mod fake;
pub mod gate;
mod gates;
pub mod qemu;
pub mod qmp;
mod vm;

pub use error::HypervisorError;
pub use facts::HypervisorFacts;
pub use gates::{CgroupRoot, GateRoot, Gates};
pub use vm::{Adopted, Hypervisor, MemoryState, RunState, Vm, VmEvent};
