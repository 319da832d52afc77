//! What the agent says of its guest when the host connects.

use conuma_agent_proto::{AutoOnline, GuestFacts, GuestNodeFacts};
use conuma_linux::procfs::{ProcFs, Resource};
use conuma_topology::{Bytes, GuestCpuSet, GuestNodeId, IdSet};

use crate::cgroups::Cgroups;
use crate::holding::Holder;
use crate::kernel::{Kernel, read_list};
use crate::memory;

/// Reads them; what the guest's kernel does not tell is empty or `None`.
pub fn facts(kernel: &dyn Kernel, holder: &Holder, version: u32) -> GuestFacts {
    let proc = ProcFs::new(kernel.root());
    let node_facts = |node: GuestNodeId| GuestNodeFacts {
        node,
        cpus: read_list(kernel, &format!("sys/devices/system/node/node{node}/cpulist")).unwrap_or_default(),
        memory: proc.node_meminfo(node.0).map_or(Bytes::ZERO, |info| info.bytes("MemTotal")),
    };
    GuestFacts {
        version,
        agent_version: env!("CARGO_PKG_VERSION").into(),
        kernel_release: proc.kernel_release().unwrap_or_default(),
        boot_id: proc.boot_id().unwrap_or_default(),
        cpus_online: online_cpus(kernel),
        nodes: online_nodes(kernel).iter().map(node_facts).collect(),
        cgroup_mode: Cgroups::new(kernel).mode(),
        init_on_alloc: init_on_alloc(kernel, &proc),
        auto_online: memory::auto_online(kernel).unwrap_or(AutoOnline::Absent),
        memory_block: memory::block_size(kernel),
        psi: proc.pressure(Resource::Cpu).is_ok(),
        newest: holder.newest(),
        holding: holder.holding().cloned(),
    }
}

/// Online CPUs.
pub fn online_cpus(kernel: &dyn Kernel) -> GuestCpuSet {
    read_list(kernel, "sys/devices/system/cpu/online").unwrap_or_default()
}

/// Online nodes.
pub fn online_nodes(kernel: &dyn Kernel) -> IdSet<GuestNodeId> {
    read_list(kernel, "sys/devices/system/node/online").unwrap_or_default()
}

/// From the command line, else from the kernel's configuration if it lies about.
fn init_on_alloc(kernel: &dyn Kernel, proc: &ProcFs) -> Option<bool> {
    let cmdline = proc.cmdline().ok()?;
    let said = cmdline.split_ascii_whitespace().filter_map(|word| word.strip_prefix("init_on_alloc=")).next_back();
    match said {
        Some(value) => Some(matches!(value, "1" | "y" | "Y" | "on")),
        None => {
            let config = kernel.read(&format!("boot/config-{}", proc.kernel_release().ok()?)).ok()?;
            Some(config.lines().any(|line| line == "CONFIG_INIT_ON_ALLOC_DEFAULT_ON=y"))
        }
    }
}
