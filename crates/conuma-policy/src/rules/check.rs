//! Whether a policy can hold: what it guarantees must be there for all VMs at once, at any time of the week.

use std::collections::{BTreeMap, BTreeSet};

use conuma_balancing::{CoreDemand, Demand, Host, MemoryDemand};
use conuma_topology::{Bytes, CpuSet, NodeId, VmName};
use serde::{Deserialize, Serialize};

use super::{Rules, Terms, WallTime};
use crate::scene::VmScene;

/// Why a policy cannot hold.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Concern {
    /// More cores are guaranteed than there are.
    #[error("{guaranteed} cores are guaranteed to {}, but the host has {there} to give", names(vms))]
    Cores {
        /// In all.
        guaranteed: usize,
        /// That are there.
        there: usize,
        /// To whom.
        vms: BTreeSet<VmName>,
    },
    /// The same CPU is guaranteed to two VMs.
    #[error("CPUs {cpus} are guaranteed to {} both", names(vms))]
    SameCpus {
        /// Which.
        cpus: CpuSet,
        /// To whom.
        vms: BTreeSet<VmName>,
    },
    /// CPUs are named that the host does not have to give, or that split a core.
    #[error("CPUs {cpus} are guaranteed to {vm}, but are no whole cores that the host has to give")]
    NoSuchCpus {
        /// Which.
        cpus: CpuSet,
        /// To whom.
        vm: VmName,
    },
    /// More memory of a node is guaranteed than it has.
    #[error("{guaranteed} of node {node} is guaranteed to {}, but it has {there} to give", names(vms))]
    NodeMemory {
        /// Which node.
        node: NodeId,
        /// In all.
        guaranteed: Bytes,
        /// That is there.
        there: Bytes,
        /// To whom.
        vms: BTreeSet<VmName>,
    },
    /// More memory is guaranteed than there is.
    #[error("{guaranteed} of memory is guaranteed to {}, but the host has {there} to give", names(vms))]
    Memory {
        /// In all.
        guaranteed: Bytes,
        /// That is there.
        there: Bytes,
        /// To whom.
        vms: BTreeSet<VmName>,
    },
    /// A VM is guaranteed more than it can have at most.
    #[error("{vm} is guaranteed more than its limit")]
    BeyondLimit {
        /// Which.
        vm: VmName,
    },
}

fn names(vms: &BTreeSet<VmName>) -> String {
    vms.iter().map(VmName::as_str).collect::<Vec<_>>().join(", ")
}

impl Rules {
    /// Why this policy cannot hold for these VMs on a host, at some time of the week; nothing if it can.
    pub fn check(&self, host: &Host, vms: &[VmScene]) -> Vec<Concern> {
        let mut times: BTreeSet<WallTime> = BTreeSet::from([WallTime::default()]);
        for rules in self.vms.values() {
            times.extend(rules.windows.iter().flat_map(|(window, _)| window.edges()));
        }
        let mut concerns = Vec::new();
        // The edges are local times already.
        let local = Self { utc_offset: super::UtcOffset::default(), ..self.clone() };
        for time in times {
            let terms: BTreeMap<&VmName, Terms> = vms.iter().map(|vm| (&vm.name, local.terms(vm, time))).collect();
            for concern in at_once(host, vms, &terms) {
                if !concerns.contains(&concern) {
                    concerns.push(concern);
                }
            }
        }
        concerns
    }
}

fn at_once(host: &Host, vms: &[VmScene], terms: &BTreeMap<&VmName, Terms>) -> Vec<Concern> {
    let there = host.everything().saturating_sub(&host.reserve);
    let mut concerns = Vec::new();
    let (mut cores, mut total) = (0, Bytes::ZERO);
    let (mut named, mut nodes): (Vec<(&VmName, CpuSet)>, BTreeMap<NodeId, Bytes>) = (Vec::new(), BTreeMap::new());
    for vm in vms {
        let Some(terms) = terms.get(&vm.name) else { continue };
        let Demand { cores: wanted, memory } = &terms.guarantee;
        cores += match wanted {
            Some(CoreDemand::Cpus(cpus)) => {
                if !cpus.is_subset(&there.cpus) || host.whole_cores(cpus).is_err() {
                    concerns.push(Concern::NoSuchCpus { cpus: cpus.clone(), vm: vm.name.clone() });
                }
                named.push((&vm.name, cpus.clone()));
                host.count_cores(cpus).max(1)
            }
            Some(CoreDemand::Count(count)) => (*count).max(1),
            None => 1,
        };
        let fixed: BTreeMap<NodeId, Bytes> = match memory {
            Some(MemoryDemand::PerNode(guaranteed)) => {
                let mut either = guaranteed.clone();
                for (node, boot) in &vm.boot {
                    let bytes = either.entry(*node).or_default();
                    *bytes = (*bytes).max(*boot);
                }
                either
            }
            _ => vm.boot.clone(),
        };
        let sum: Bytes = fixed.values().copied().sum();
        total += match memory {
            Some(MemoryDemand::Total(bytes)) => sum.max(*bytes),
            _ => sum,
        };
        for (node, bytes) in fixed {
            *nodes.entry(node).or_default() += bytes;
        }
        if beyond_limit(host, &terms.guarantee, &terms.limit) {
            concerns.push(Concern::BeyondLimit { vm: vm.name.clone() });
        }
    }
    let all: BTreeSet<VmName> = vms.iter().map(|vm| vm.name.clone()).collect();
    for (index, (vm, cpus)) in named.iter().enumerate() {
        for (other, others) in &named[index + 1..] {
            let both = cpus.intersection(others);
            if !both.is_empty() {
                concerns.push(Concern::SameCpus { cpus: both, vms: [(*vm).clone(), (*other).clone()].into() });
            }
        }
    }
    let usable = host.count_cores(&there.cpus);
    if cores > usable {
        concerns.push(Concern::Cores { guaranteed: cores, there: usable, vms: all.clone() });
    }
    for (node, guaranteed) in nodes {
        if guaranteed > there.on(node) {
            concerns.push(Concern::NodeMemory { node, guaranteed, there: there.on(node), vms: all.clone() });
        }
    }
    if total > there.total_memory() {
        concerns.push(Concern::Memory { guaranteed: total, there: there.total_memory(), vms: all });
    }
    concerns
}

fn beyond_limit(host: &Host, guarantee: &Demand, limit: &Demand) -> bool {
    let count = |demand: &CoreDemand| match demand {
        CoreDemand::Count(count) => *count,
        CoreDemand::Cpus(cpus) => host.count_cores(cpus),
    };
    let cores = match (&guarantee.cores, &limit.cores) {
        (Some(CoreDemand::Cpus(wanted)), Some(CoreDemand::Cpus(most))) => !wanted.is_subset(most),
        (Some(wanted), Some(most)) => count(wanted) > count(most),
        _ => false,
    };
    let memory = match (&guarantee.memory, &limit.memory) {
        (Some(MemoryDemand::PerNode(wanted)), Some(MemoryDemand::PerNode(most))) => {
            wanted.iter().any(|(node, bytes)| *bytes > most.get(node).copied().unwrap_or_default())
        }
        (Some(wanted), Some(most)) => all_of(wanted) > all_of(most),
        _ => false,
    };
    cores || memory
}

fn all_of(demand: &MemoryDemand) -> Bytes {
    match demand {
        MemoryDemand::Total(total) => *total,
        MemoryDemand::PerNode(nodes) => nodes.values().copied().sum(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{bare, host};

    fn check(text: &str) -> Vec<String> {
        let host = host("2n4c1t@1G");
        let vms = [bare("a"), bare("b")];
        Rules::parse(text, "p.toml").unwrap().check(&host, &vms).iter().map(Concern::to_string).collect()
    }

    #[test]
    fn what_is_guaranteed_must_be_there_at_once() {
        assert!(check("mode = \"auto\"").is_empty());
        let text = "mode = \"auto\"\n[vm.a]\nguarantee = { cores = 6 }\n[vm.b]\nguarantee = { cores = 3 }";
        assert_eq!(check(text), ["9 cores are guaranteed to a, b, but the host has 8 to give"]);
        let text = "mode = \"auto\"\n[vm.a]\nguarantee = { cpus = \"0-3\" }\n[vm.b]\nguarantee = { cpus = \"3-4\" }";
        assert_eq!(check(text), ["CPUs 3 are guaranteed to a, b both"]);
    }

    #[test]
    fn windows_must_hold_too() {
        let text = "mode = \"auto\"\n[vm.a]\nguarantee = { cores = 6 }\n[[vm.b.window]]\nfrom = \"22:00\"\nto = \"06:00\"\n\
                    guarantee = { cores = 3 }";
        assert_eq!(check(text).len(), 1);
        let apart = text.replace("[vm.a]\n", "[[vm.a.window]]\nfrom = \"06:00\"\nto = \"22:00\"\n");
        assert!(check(&apart).is_empty(), "{:?}", check(&apart));
    }
}
