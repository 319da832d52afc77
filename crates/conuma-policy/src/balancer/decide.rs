//! One decision from all its parts.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use conuma_balancing::{Holder, Resources};
use conuma_topology::{Bytes, CoreId, NodeId, VmName};

use super::view::View;
use super::{Balancer, cores, memory};
use crate::decision::{Decision, Outlook};
use crate::place::Map;
use crate::scene::Scene;
use crate::score::{self, Means};

pub(super) fn decide(balancer: &Balancer, scene: &Scene<'_>, now: Duration) -> Decision {
    // What a VM holds that does not run yet is nobody's to give.
    let known = scene.vms.iter().fold(scene.pool.cpus.clone(), |sum, vm| sum.union(&vm.holding.cpus));
    let usable = known.difference(&scene.host.reserve.cpus).difference(&scene.offline);
    let map = Map::new(scene.layout, scene.host.memory.keys().copied(), |from, to| scene.host.distance(from, to));
    let views: Vec<View<'_>> = scene.vms.iter().map(|vm| View::new(balancer, scene, vm, &map, &usable, now)).collect();
    let mut cores = cores::plan(balancer, scene, &views, &usable, now);
    let budget = balancer.stability.budget(now, &balancer.rules.tuning, views.len());
    let paid = u32::try_from(cores.paid).unwrap_or(u32::MAX);
    let mut memory = memory::plan(balancer, scene, &views, budget.saturating_sub(paid), now);
    let paid_for_memory = memory.steps.iter().filter(|step| step.why.is_paid()).count();
    let spends = paid.saturating_add(u32::try_from(paid_for_memory).unwrap_or(u32::MAX));
    let mut moves = std::mem::take(&mut cores.steps);
    moves.append(&mut memory.steps);
    moves.sort_by_key(|step| step.why);
    let mut rejected = std::mem::take(&mut cores.rejected);
    rejected.append(&mut memory.rejected);

    let mut after: BTreeMap<&VmName, Resources> =
        views.iter().map(|view| (&view.vm.name, view.vm.holding.clone())).collect();
    for step in &moves {
        if let Holder::Vm(vm) = &step.step.from
            && let Some(holding) = after.get_mut(vm)
        {
            *holding = holding.saturating_sub(&step.step.what);
        }
    }
    for step in &moves {
        if let Holder::Vm(vm) = &step.step.to
            && let Some(holding) = after.get_mut(vm)
        {
            holding.add(&step.step.what);
        }
    }
    let unknown = BTreeMap::new();
    let mut outlooks: Vec<(u32, Outlook)> = Vec::with_capacity(views.len());
    let mut below = BTreeSet::new();
    for (index, view) in views.iter().enumerate() {
        let after = after.remove(&view.vm.name).unwrap_or_default();
        // Only who is known not to need it, and whose policy says so, lends of its guarantee.
        if view.estimate.is_some() && balancer.rules.tuning.lend_idle_guarantee {
            below.insert(view.vm.name.clone());
        }
        let wanted = if view.estimate.is_some() { &view.memory } else { &unknown };
        let score = |holding: &Resources, own: &[CoreId]| score(balancer, scene, view, holding, own, wanted);
        let score_now = score(&view.vm.holding, &view.cores);
        let score_after = match after == view.vm.holding {
            true => score_now,
            false => score(&after, &scene.layout.cores_in(&after.cpus.intersection(&usable))),
        };
        let outlook = Outlook {
            vm: view.vm.name.clone(),
            estimate: view.estimate.cloned().unwrap_or_default(),
            holding: view.vm.holding.clone(),
            wanted_cores: view.wanted,
            needed_cores: view.needed,
            lacks_memory: memory.lacks[index],
            share: cores.shares.get(index).copied().unwrap_or_default(),
            held: view.held,
            score_now,
            score_after,
            after,
        };
        outlooks.push((view.terms.weight, outlook));
    }
    let score_now = score::of_host(outlooks.iter().map(|(weight, outlook)| (*weight, outlook.score_now)));
    let score_after = score::of_host(outlooks.iter().map(|(weight, outlook)| (*weight, outlook.score_after)));
    let vms = outlooks.into_iter().map(|(_, outlook)| outlook).collect();
    Decision { at: now, vms, spends, below, moves, rejected, score_now, score_after }
}

fn score(
    balancer: &Balancer,
    scene: &Scene<'_>,
    view: &View<'_>,
    holding: &Resources,
    own: &[CoreId],
    wanted: &BTreeMap<NodeId, Bytes>,
) -> f64 {
    score::of_vm(&Means {
        wanted: view.estimate.map(|estimate| estimate.cores.wanted),
        cores: own.len(),
        lost: cores::far(scene, &view.home, own, &balancer.rules.tuning),
        memory: wanted,
        holding,
    })
}
