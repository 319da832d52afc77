//! What a guest's kernel has to be told so that memory can be taken back from it.

use crate::spec::{BootSource, VmSpec};

/// Without it the kernel may put its own data, which it cannot move, into memory that virtio-mem adds. The agent sets the
/// same later; this also covers what the guest gets before its agent runs.
const ONLINE_POLICY: &str = "memhp_default_state";
const ONLINE_MOVABLE: &str = "memhp_default_state=online_movable";

/// What the VM boots, its kernel told how to use added memory, unless the VM file says so itself.
pub(super) fn source(spec: &VmSpec, notes: &mut Vec<String>) -> BootSource {
    let mut source = spec.boot.source.clone();
    match &mut source {
        BootSource::Kernel { cmdline, .. } if !cmdline.contains(ONLINE_POLICY) => {
            let space = if cmdline.is_empty() { "" } else { " " };
            cmdline.push_str(&format!("{space}{ONLINE_MOVABLE}"));
            notes.push(format!("{ONLINE_MOVABLE} is added to the kernel's command line, so that memory can be taken back"));
        }
        BootSource::Disk(_) => notes.push(format!(
            "memory that the guest gets before its agent runs may never come back, unless the disk's own kernel command \
             line has {ONLINE_MOVABLE}"
        )),
        BootSource::Kernel { .. } | BootSource::Other => {}
    }
    source
}
