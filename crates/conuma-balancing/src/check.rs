//! The invariants I1 to I5, as code that shares nothing with the planner or the engine.
//!
//! - [`check_ledger`]: the record by itself. Nothing lost, nothing held twice, whole cores only.
//! - [`check_against_reality`]: what VMs *could use* this instant against the record (I1, I2, I5).
//! - [`check_plan`]: a plan before it begins (I3, limits, nothing given that is not had).
//! - I4, that transfers end in time, is [`crate::Engine::check_deadlines`].

use std::collections::{BTreeMap, BTreeSet};

use conuma_topology::{Bytes, CpuSet, NodeId, VmName};
use serde::{Deserialize, Serialize};

use crate::action::VmSeen;
use crate::holding::{CoreDemand, Demand, MemoryDemand, Resources};
use crate::host::Host;
use crate::ledger::{Holder, Ledger, TransferId};
use crate::plan::TransferPlan;
use crate::vm::VmSpec;

/// An invariant that does not hold.
#[derive(Debug, Clone, PartialEq, Eq, Hash, thiserror::Error, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Violation {
    /// I1 in the ledger: two accounts hold the same CPUs.
    #[error("I1: {holder} holds CPUs {cpus}, which another holds too")]
    CoreHeldTwice {
        /// One of them.
        holder: Holder,
        /// What.
        cpus: CpuSet,
    },
    /// I1 in reality: two VMs can run on the same CPUs.
    #[error("I1: {vm} can run on CPUs {cpus}, and so can another VM")]
    CoreUsableTwice {
        /// One of them.
        vm: VmName,
        /// What.
        cpus: CpuSet,
    },
    /// A core is split, or is not one of the host's.
    #[error("{holder} holds CPUs {cpus}, which are not whole cores of the host")]
    SplitCore {
        /// Who.
        holder: Holder,
        /// What.
        cpus: CpuSet,
    },
    /// The accounts together are not what the host has.
    #[error("the accounts add up to {accounts}, the host has {host}")]
    NotConserved {
        /// All accounts together.
        accounts: Resources,
        /// The host.
        host: Resources,
    },
    /// I2: more memory of a node could be touched than there is, less the reserve.
    #[error("I2: VMs can touch {used} of node {node}, which has {capacity} for them")]
    OverCapacity {
        /// The node.
        node: NodeId,
        /// What VMs could touch.
        used: Bytes,
        /// Capacity less reserve.
        capacity: Bytes,
    },
    /// I3: a plan takes a VM below its guarantee without the owner's word.
    #[error("I3: {vm} would fall below its guarantee: {short}")]
    BelowGuarantee {
        /// The VM.
        vm: VmName,
        /// What would be missing.
        short: Shortage,
    },
    /// I4: a transfer is older than its deadlines allow.
    #[error("I4: transfer {transfer} should have ended {late_ms} ms ago")]
    Overdue {
        /// Which.
        transfer: TransferId,
        /// How late, in milliseconds.
        late_ms: u64,
    },
    /// I5: a VM can use what the ledger does not give it.
    #[error("I5: {vm} can use {beyond}, which the ledger does not give it")]
    BeyondLedger {
        /// The VM.
        vm: VmName,
        /// What.
        beyond: Resources,
    },
    /// A plan moves what the giver does not have.
    #[error("{holder} should give {missing}, which it does not have")]
    GivesWhatItLacks {
        /// Who.
        holder: Holder,
        /// What.
        missing: Resources,
    },
    /// A plan takes a VM's last core.
    #[error("{0} must keep at least one core")]
    LastCore(VmName),
    /// A plan moves from or to an account that plans may not touch, or from and to the same.
    #[error("a plan may not move from {from} to {to}")]
    ForbiddenMove {
        /// From.
        from: Holder,
        /// To.
        to: Holder,
    },
    /// A plan takes a VM beyond its limit or its devices.
    #[error("{vm} would hold {excess} beyond its limit")]
    BeyondLimit {
        /// The VM.
        vm: VmName,
        /// What is too much.
        excess: Shortage,
    },
}

/// How far two amounts are apart.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Shortage {
    /// So many cores.
    Cores(usize),
    /// These CPUs.
    Cpus(CpuSet),
    /// So much memory in all.
    Memory(Bytes),
    /// So much memory of a node.
    NodeMemory(NodeId, Bytes),
}

impl std::fmt::Display for Shortage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Cores(1) => f.write_str("1 core"),
            Self::Cores(n) => write!(f, "{n} cores"),
            Self::Cpus(cpus) => write!(f, "CPUs {cpus}"),
            Self::Memory(bytes) => write!(f, "{bytes} of memory"),
            Self::NodeMemory(node, bytes) => write!(f, "{bytes} of node {node}"),
        }
    }
}

/// What `held` lacks of `demand`.
pub fn shortages(host: &Host, demand: &Demand, held: &Resources) -> Vec<Shortage> {
    let mut short = Vec::new();
    match &demand.cores {
        Some(CoreDemand::Count(n)) => short.push(Shortage::Cores(n.saturating_sub(host.count_cores(&held.cpus)))),
        Some(CoreDemand::Cpus(cpus)) => short.push(Shortage::Cpus(cpus.difference(&held.cpus))),
        None => {}
    }
    match &demand.memory {
        Some(MemoryDemand::Total(bytes)) => short.push(Shortage::Memory(bytes.saturating_sub(held.total_memory()))),
        Some(MemoryDemand::PerNode(nodes)) => short.extend(
            nodes.iter().map(|(node, bytes)| Shortage::NodeMemory(*node, bytes.saturating_sub(held.on(*node)))),
        ),
        None => {}
    }
    short.retain(Shortage::is_real);
    short
}

/// What `held` has beyond `limit`; nodes that the limit does not name are not limited.
pub fn excesses(host: &Host, limit: &Demand, held: &Resources) -> Vec<Shortage> {
    let mut excess = Vec::new();
    match &limit.cores {
        Some(CoreDemand::Count(n)) => excess.push(Shortage::Cores(host.count_cores(&held.cpus).saturating_sub(*n))),
        Some(CoreDemand::Cpus(cpus)) => excess.push(Shortage::Cpus(held.cpus.difference(cpus))),
        None => {}
    }
    match &limit.memory {
        Some(MemoryDemand::Total(bytes)) => excess.push(Shortage::Memory(held.total_memory().saturating_sub(*bytes))),
        Some(MemoryDemand::PerNode(nodes)) => excess.extend(
            nodes.iter().map(|(node, bytes)| Shortage::NodeMemory(*node, held.on(*node).saturating_sub(*bytes))),
        ),
        None => {}
    }
    excess.retain(Shortage::is_real);
    excess
}

impl Shortage {
    /// Whether this is of the same kind as `other` and at least as large.
    fn covers(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Cores(this), Self::Cores(other)) => this >= other,
            (Self::Cpus(this), Self::Cpus(other)) => other.is_subset(this),
            (Self::Memory(this), Self::Memory(other)) => this >= other,
            (Self::NodeMemory(node, this), Self::NodeMemory(of, other)) => node == of && this >= other,
            _ => false,
        }
    }

    pub(crate) fn is_real(&self) -> bool {
        match self {
            Self::Cores(n) => *n > 0,
            Self::Cpus(cpus) => !cpus.is_empty(),
            Self::Memory(bytes) | Self::NodeMemory(_, bytes) => !bytes.is_zero(),
        }
    }
}

/// The ledger by itself: conservation, exclusivity, whole cores, the reserve untouched.
pub fn check_ledger(host: &Host, ledger: &Ledger) -> Vec<Violation> {
    let mut violations = Vec::new();
    let mut all = Resources::default();
    for (holder, held) in ledger.accounts() {
        let twice = all.cpus.intersection(&held.cpus);
        if !twice.is_empty() {
            violations.push(Violation::CoreHeldTwice { holder: holder.clone(), cpus: twice.clone() });
        }
        if let Err(cpus) = host.whole_cores(&held.cpus) {
            violations.push(Violation::SplitCore { holder, cpus });
        }
        all.add(&Resources { cpus: held.cpus.difference(&twice), memory: held.memory.clone() });
    }
    let everything = host.everything();
    if all != everything {
        violations.push(Violation::NotConserved { accounts: all, host: everything });
    }
    let reserve = ledger.held(&Holder::Reserve);
    if !reserve.contains(&host.reserve) {
        let missing = host.reserve.saturating_sub(reserve);
        violations.push(Violation::GivesWhatItLacks { holder: Holder::Reserve, missing });
    }
    violations
}

/// What is in force for VMs against the ledger. `seen` is what was found on the host; the VM's boot
/// memory comes from its spec.
pub fn check_against_reality<'a>(
    host: &Host,
    ledger: &Ledger,
    seen: impl IntoIterator<Item = (&'a VmSpec, &'a VmSeen)>,
) -> Vec<Violation> {
    let mut violations = Vec::new();
    let mut running = CpuSet::new();
    let mut touchable: BTreeMap<NodeId, Bytes> = BTreeMap::new();
    for (spec, seen) in seen {
        let usable = usable(spec, seen);
        let twice = running.intersection(&usable.cpus);
        if !twice.is_empty() {
            violations.push(Violation::CoreUsableTwice { vm: spec.name.clone(), cpus: twice });
        }
        running = running.union(&usable.cpus);
        for (node, bytes) in &usable.memory {
            *touchable.entry(*node).or_default() += *bytes;
        }
        let beyond = usable.saturating_sub(ledger.vm(&spec.name));
        if !beyond.is_empty() {
            violations.push(Violation::BeyondLedger { vm: spec.name.clone(), beyond });
        }
    }
    for (node, used) in touchable {
        let capacity = host.memory.get(&node).copied().unwrap_or_default().saturating_sub(host.reserve.on(node));
        if used > capacity {
            violations.push(Violation::OverCapacity { node, used, capacity });
        }
    }
    violations
}

/// What a VM can use without asking anyone: CPUs with open gates, or where it runs behind soft ones, boot memory, and
/// plugged or requested memory.
pub fn usable(spec: &VmSpec, seen: &VmSeen) -> Resources {
    let mut usable = Resources::cores(seen.open.union(&seen.runs_on));
    for (node, bytes) in &spec.boot {
        usable.add(&Resources::memory(*node, *bytes));
    }
    for (node, plugged) in &seen.plugged {
        usable.add(&Resources::memory(*node, plugged.bound()));
    }
    usable
}

/// A plan before it begins. `books` is what each holder will hold once all that is under way has
/// left its giver and arrived; `excused` are the VMs whose owner agreed that they fall below their
/// guarantee, `offline` the CPUs of the host that are of no use now.
pub fn check_plan(
    host: &Host,
    specs: &BTreeMap<VmName, VmSpec>,
    books: &BTreeMap<Holder, Resources>,
    plan: &TransferPlan,
    excused: &BTreeSet<VmName>,
    offline: &CpuSet,
) -> Result<(), Violation> {
    let mut after = books.clone();
    for step in &plan.moves {
        let allowed = |holder: &Holder| match holder {
            Holder::Pool => true,
            Holder::Vm(vm) => specs.contains_key(vm),
            Holder::Reserve | Holder::Transit(_) => false,
        };
        if !allowed(&step.from) || !allowed(&step.to) || step.from == step.to {
            return Err(Violation::ForbiddenMove { from: step.from.clone(), to: step.to.clone() });
        }
        if let Err(cpus) = host.whole_cores(&step.what.cpus) {
            return Err(Violation::SplitCore { holder: step.from.clone(), cpus });
        }
        let giver = after.entry(step.from.clone()).or_default();
        if !giver.take(&step.what) {
            let missing = step.what.saturating_sub(giver);
            return Err(Violation::GivesWhatItLacks { holder: step.from.clone(), missing });
        }
        after.entry(step.to.clone()).or_default().add(&step.what);
    }
    for (name, spec) in specs {
        let holder = Holder::Vm(name.clone());
        let nothing = Resources::default();
        let before = books.get(&holder).unwrap_or(&nothing);
        let after = after.get(&holder).unwrap_or(&nothing);
        if before != after {
            if after.cpus.is_subset(offline) && !before.cpus.is_subset(offline) {
                return Err(Violation::LastCore(name.clone()));
            }
            check_giver(host, spec, before, after, excused.contains(name))?;
            check_recipient(host, spec, before, after)?;
        }
    }
    Ok(())
}

/// A plan may leave a VM that is below its guarantee as it is, but not make it worse.
fn check_giver(
    host: &Host,
    spec: &VmSpec,
    before: &Resources,
    after: &Resources,
    excused: bool,
) -> Result<(), Violation> {
    let boot = Resources { cpus: CpuSet::new(), memory: spec.boot.clone() };
    let missing = boot.saturating_sub(after);
    if !missing.is_empty() && !boot.saturating_sub(before).contains(&missing) {
        return Err(Violation::GivesWhatItLacks { holder: Holder::Vm(spec.name.clone()), missing });
    }
    let was_short = shortages(host, &spec.guarantee, before);
    match worsened(shortages(host, &spec.guarantee, after), &was_short) {
        Some(short) if !excused => Err(Violation::BelowGuarantee { vm: spec.name.clone(), short }),
        _ => Ok(()),
    }
}

/// A plan may leave a VM that is beyond its limit as it is, but not make it worse.
fn check_recipient(host: &Host, spec: &VmSpec, before: &Resources, after: &Resources) -> Result<(), Violation> {
    let beyond = |held: &Resources| {
        let mut excess = excesses(host, &spec.limit, held);
        for (node, bytes) in &held.memory {
            let most = spec.boot.get(node).copied().unwrap_or_default()
                + spec.devices.get(node).map(|device| device.max).unwrap_or_default();
            if *bytes > most {
                excess.push(Shortage::NodeMemory(*node, bytes.saturating_sub(most)));
            }
        }
        excess
    };
    match worsened(beyond(after), &beyond(before)) {
        Some(excess) => Err(Violation::BeyondLimit { vm: spec.name.clone(), excess }),
        None => Ok(()),
    }
}

fn worsened(after: Vec<Shortage>, before: &[Shortage]) -> Option<Shortage> {
    after.into_iter().find(|now| !before.iter().any(|was| was.covers(now)))
}
