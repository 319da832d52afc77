//! The NUMA machine as values.
//!
//! Everything here is pure: no I/O, no clock, no environment. A reader (`conuma-linux`) fills a
//! [`Machine`]; the rest of Conuma only looks at it.
#![forbid(unsafe_code)]

mod bytes;
mod draw;
mod ids;
mod machine;
mod name;
mod query;
mod set;
pub mod text;
mod validate;

pub use bytes::{Bytes, ParseBytesError};
pub use draw::{DrawOptions, draw};
pub use ids::{CoreId, CpuId, DieId, GuestCpuId, GuestNodeId, Id, LlcId, NodeId, PackageId, VcpuId};
pub use machine::{
    Cache, CacheKind, Core, Cpu, Distances, HmatLink, HugePages, Machine, Node, NodeMemory, Note, PciAddress,
    PciDevice, Schema,
};
pub use name::{ParseVmNameError, VmName};
pub use set::{CpuSet, GuestCpuSet, IdSet, NodeSet, ParseSetError, VcpuSet};
pub use text::ParseMachineError;
pub use validate::Problem;
