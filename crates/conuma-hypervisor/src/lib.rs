//! What Conuma asks of a hypervisor, and the back ends that do it.

pub mod gate;
pub mod qmp;
