//! What can go wrong with a hypervisor.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use conuma_topology::{NodeId, VmName};

use crate::gate::GateError;
use crate::qmp::QmpError;

/// Something asked of a hypervisor was not done.
#[derive(Debug, thiserror::Error)]
pub enum HypervisorError {
    /// The program could not be run or asked.
    #[error("cannot use {}: {reason}", program.display())]
    Program {
        /// The hypervisor's program.
        program: PathBuf,
        /// Why.
        reason: String,
    },
    /// A file or directory of the VM.
    #[error("VM {vm}: cannot {what} {}", path.display())]
    File {
        /// The VM.
        vm: VmName,
        /// What was tried.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
    /// QEMU ended before it could be used; `log` is the end of what it said.
    #[error("VM {vm}: QEMU ended while starting; it said: {log}")]
    EndedEarly {
        /// The VM.
        vm: VmName,
        /// Its last words.
        log: String,
    },
    /// Something did not happen in time.
    #[error("VM {vm}: {what} took longer than {} ms", budget.as_millis())]
    TimedOut {
        /// The VM.
        vm: VmName,
        /// What was waited for.
        what: String,
        /// How long.
        budget: Duration,
    },
    /// The VM's process is gone.
    #[error("VM {vm} has ended")]
    Ended {
        /// The VM.
        vm: VmName,
    },
    /// The VM has no memory device for this node.
    #[error("VM {vm} has no virtio-mem device for node {node}")]
    NoDevice {
        /// The VM.
        vm: VmName,
        /// The node.
        node: NodeId,
    },
    /// A VM of this name exists already.
    #[error("VM {vm} runs already")]
    Exists {
        /// The VM.
        vm: VmName,
    },
    /// The back end refuses: what it was asked cannot be.
    #[error("VM {vm}: {reason}")]
    Refused {
        /// The VM.
        vm: VmName,
        /// Why.
        reason: String,
    },
    /// QEMU's monitor.
    #[error("VM {vm}: monitor")]
    Qmp {
        /// The VM.
        vm: VmName,
        /// What went wrong.
        source: QmpError,
    },
    /// The VM's cgroups.
    #[error("VM {vm}: cgroups")]
    Gate {
        /// The VM.
        vm: VmName,
        /// What went wrong.
        source: GateError,
    },
}
