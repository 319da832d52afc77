//! Whether a VM may start: what is guaranteed must be there for all VMs at once.
//!
//! Cores by number can be any, so together they need only be as many as there are; CPUs by name must be
//! each one VM's alone. Memory of a node must be enough for what is promised on it, and all memory
//! for all that is promised. A core and the boot memory that a VM never gives count as promised to it.

use std::collections::{BTreeMap, BTreeSet};

use conuma_topology::{Bytes, CpuSet, NodeId, VmName};

use crate::check::Shortage;
use crate::holding::{CoreDemand, MemoryDemand, Resources};
use crate::host::Host;
use crate::plan::Refusal;
use crate::vm::VmSpec;

/// Refuses `new` if what it is guaranteed is not there beside what `others` are.
pub(crate) fn admit(host: &Host, others: &BTreeMap<VmName, VmSpec>, new: &VmSpec) -> Result<(), Refusal> {
    let there = host.everything().saturating_sub(&host.reserve);
    let own = Promise::to(host, new);
    let others: Vec<(&VmName, Promise)> = others.iter().map(|(name, spec)| (name, Promise::to(host, spec))).collect();
    let refuse = |missing: Shortage, part: &dyn Fn(&Promise) -> Shortage| {
        let others = others.iter().map(|(name, promise)| ((*name).clone(), part(promise)));
        let others = others.filter(|(_, part)| part.is_real()).collect();
        Err(Refusal::Overpromised { vm: new.name.clone(), missing, others })
    };

    let taken = others.iter().fold(CpuSet::new(), |sum, (_, promise)| sum.union(&promise.cpus));
    let missing = own.cpus.difference(&there.cpus.difference(&taken));
    if !missing.is_empty() {
        let part = |promise: &Promise| Shortage::Cpus(promise.cpus.intersection(&own.cpus));
        return refuse(Shortage::Cpus(missing), &part);
    }
    let cores = own.cores + others.iter().map(|(_, promise)| promise.cores).sum::<usize>();
    let missing = cores.saturating_sub(host.count_cores(&there.cpus));
    if missing > 0 {
        return refuse(Shortage::Cores(missing), &|promise| Shortage::Cores(promise.cores));
    }
    let on = |promise: &Promise, node| promise.nodes.get(&node).copied().unwrap_or_default();
    for (node, bytes) in &own.nodes {
        let sum = *bytes + others.iter().map(|(_, promise)| on(promise, *node)).sum();
        let missing = sum.saturating_sub(there.on(*node));
        if !missing.is_zero() {
            return refuse(Shortage::NodeMemory(*node, missing), &|promise| {
                Shortage::NodeMemory(*node, on(promise, *node))
            });
        }
    }
    let sum = own.total + others.iter().map(|(_, promise)| promise.total).sum();
    let missing = sum.saturating_sub(there.total_memory());
    if !missing.is_zero() {
        return refuse(Shortage::Memory(missing), &|promise| Shortage::Memory(promise.total));
    }
    Ok(())
}

/// What a VM always has, or gets on request.
struct Promise {
    /// By name.
    cpus: CpuSet,
    /// By number, those by name among them.
    cores: usize,
    nodes: BTreeMap<NodeId, Bytes>,
    total: Bytes,
}

impl Promise {
    fn to(host: &Host, spec: &VmSpec) -> Self {
        let (cpus, cores) = match &spec.guarantee.cores {
            // What the host does not have stays in: it is what is missing.
            Some(CoreDemand::Cpus(cpus)) => {
                let whole = host.widened(cpus);
                (whole.union(cpus), host.count_cores(&whole))
            }
            Some(CoreDemand::Count(count)) => (CpuSet::new(), *count),
            None => (CpuSet::new(), 0),
        };
        let named = match &spec.guarantee.memory {
            Some(MemoryDemand::PerNode(nodes)) => nodes.clone(),
            _ => BTreeMap::new(),
        };
        let all: BTreeSet<NodeId> = named.keys().chain(spec.boot.keys()).copied().collect();
        let either = |node: &NodeId| [&named, &spec.boot].into_iter().filter_map(|of| of.get(node)).max().copied();
        let nodes: BTreeMap<NodeId, Bytes> = all.into_iter().filter_map(|node| Some((node, either(&node)?))).collect();
        let fixed = Resources { cpus: CpuSet::new(), memory: nodes.clone() }.total_memory();
        let total = match &spec.guarantee.memory {
            Some(MemoryDemand::Total(total)) => fixed.max(*total),
            _ => fixed,
        };
        Self { cpus, cores: cores.max(1), nodes, total }
    }
}
