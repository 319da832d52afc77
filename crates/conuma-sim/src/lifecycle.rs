//! Guests that reset, and VMs that end and are started again.

use std::collections::BTreeMap;
use std::time::Duration;

use conuma_balancing::{
    CoreDemand, Demand, Engine, Event, Holder, MemoryDemand, Move, Refusal, Request, Resources, VmSpec,
};
use conuma_topology::VmName;
use fastrand::Rng;

use crate::fault::Faults;

/// When something happens to a guest by itself, for the whole run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Mishap {
    pub(crate) at: Duration,
    pub(crate) guest: usize,
    pub(crate) ends: bool,
}

/// What happens when, earliest last.
pub(crate) fn mishaps(faults: &Faults, guests: usize, end: Duration, seed: u64) -> Vec<Mishap> {
    let mut rng = Rng::with_seed(seed ^ 0x11fe);
    let mut all = Vec::new();
    for guest in 0..guests {
        for (per_hour, ends) in [(faults.resets_per_hour, false), (faults.crashes_per_hour, true)] {
            if per_hour <= 0.0 {
                continue;
            }
            let mut at = 0.0;
            loop {
                at += -3600.0 / per_hour * (1.0 - rng.f64()).ln();
                if at >= end.as_secs_f64() {
                    break;
                }
                all.push(Mishap { at: Duration::from_secs_f64(at), guest, ends });
            }
        }
    }
    all.sort_unstable();
    all.reverse();
    all
}

/// Starts a VM that ended: with what it is guaranteed, or with the least if that is not free. What it holds then.
pub(crate) fn start_again(engine: &mut Engine, spec: &VmSpec, now: Duration) -> Result<Resources, Refusal> {
    let boot = Some(MemoryDemand::PerNode(spec.boot.clone()));
    let with = |cores| VmSpec { initial: Demand { cores, memory: boot.clone() }, ..spec.clone() };
    let usual = with(spec.guarantee.cores.clone());
    engine.start(usual, now).or_else(|_| engine.start(with(Some(CoreDemand::Count(1))), now))
}

/// Asks for what a VM needs to start: a core, and its boot memory, of whoever has most.
pub(crate) fn make_way(engine: &mut Engine, spec: &VmSpec, now: Duration) {
    let pool = engine.ledger().held(&Holder::Pool).clone();
    let mut moves: BTreeMap<VmName, Resources> = BTreeMap::new();
    let vms = engine.vms();
    if pool.cpus.is_empty()
        && let Some(rich) = vms.iter().max_by_key(|vm| (vm.holding.cpus.len(), vm.spec.name.clone()))
        && let Some(core) = engine.host().cores.values().find(|core| core.cpus.is_subset(&rich.holding.cpus))
    {
        moves.entry(rich.spec.name.clone()).or_default().add(&Resources::cores(core.cpus.clone()));
    }
    for (node, bytes) in &spec.boot {
        let missing = bytes.saturating_sub(pool.on(*node));
        let spare = |vm: &conuma_balancing::VmView| {
            vm.holding.on(*node).saturating_sub(vm.spec.boot.get(node).copied().unwrap_or_default())
        };
        if !missing.is_zero()
            && let Some(rich) = vms.iter().max_by_key(|vm| (spare(vm), vm.spec.name.clone()))
        {
            let what = missing.round_up(crate::site::BLOCK).min(spare(rich));
            moves.entry(rich.spec.name.clone()).or_default().add(&Resources::memory(*node, what));
        }
    }
    for (from, what) in moves {
        let parts = parts(&what);
        let moves: Vec<Move> =
            parts.into_iter().map(|what| Move { from: Holder::Vm(from.clone()), to: Holder::Pool, what }).collect();
        let below = [from].into();
        // Refused: tried again in a second.
        drop(engine.request(Request::Rebalance { moves, below, owed: false }, now));
    }
}

/// Each move is of cores or of one node's memory.
fn parts(what: &Resources) -> Vec<Resources> {
    let cores = (!what.cpus.is_empty()).then(|| Resources::cores(what.cpus.clone()));
    cores.into_iter().chain(what.memory.iter().map(|(node, bytes)| Resources::memory(*node, *bytes))).collect()
}

/// The agent of a guest that has booted connects.
pub(crate) fn connected(vm: &VmName) -> Event {
    Event::AgentConnected { vm: vm.clone(), newest: 0, holding: None }
}
