//! What a hypervisor can do, probed once and passed on.

use serde::{Deserialize, Serialize};

/// What the hypervisor on this host can do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HypervisorFacts {
    /// Its name and version, for people.
    pub version: String,
    /// Major and minor version.
    pub release: (u64, u64),
    /// `dynamic-memslots` of virtio-mem (QEMU 8.2): only slots with plugged memory are mapped.
    pub dynamic_memslots: bool,
    /// `unplugged-inaccessible` of virtio-mem (QEMU 7.0): the guest cannot read what it has not plugged.
    pub unplugged_inaccessible: bool,
    /// `-machine smp-cache` on x86 (QEMU 10.0): which CPUs share an L3 can be said outright.
    pub smp_cache: bool,
    /// vhost-vsock is there, so agents can be reached.
    pub vsock: bool,
    /// Devices can be passed through with VFIO.
    pub vfio: bool,
    /// Nodes can have PCIe roots of their own (`pxb-pcie`).
    pub pxb_pcie: bool,
    /// The host's CPUs tell of threads and shared caches by AMD's `topoext`, which `-cpu host` has only if asked for.
    pub topoext: bool,
}

impl HypervisorFacts {
    /// What QEMU 10.0 can do: for showing command lines where there is no QEMU to ask.
    pub fn qemu_10() -> Self {
        Self {
            version: "QEMU 10.0 (assumed)".into(),
            release: (10, 0),
            dynamic_memslots: true,
            unplugged_inaccessible: true,
            smp_cache: true,
            vsock: true,
            vfio: true,
            pxb_pcie: true,
            topoext: false,
        }
    }
}
