//! What tests of this crate share.

use conuma_balancing::Host;
use conuma_topology::{Bytes, CpuSet, Machine, VmName};

use crate::scene::Layout;

pub(crate) fn host(shape: &str) -> Host {
    let machine: Machine = shape.parse().expect("a shape");
    Host::new(&machine, &CpuSet::new(), Bytes::ZERO)
}

pub(crate) fn layout(shape: &str) -> Layout {
    Layout::flat(&host(shape))
}

pub(crate) fn vm(name: &str) -> VmName {
    name.parse().expect("a name")
}

/// A VM about which nothing special is said.
pub(crate) fn bare(name: &str) -> crate::scene::VmScene {
    crate::scene::VmScene {
        name: vm(name),
        guarantee: conuma_balancing::Demand::default(),
        limit: conuma_balancing::Demand::default(),
        weight: 100,
        boot: std::collections::BTreeMap::new(),
        devices: std::collections::BTreeMap::new(),
        homes: std::collections::BTreeSet::new(),
        holding: conuma_balancing::Resources::default(),
        busy: crate::scene::Busy::default(),
        lends_memory: true,
        takes_memory: true,
    }
}
