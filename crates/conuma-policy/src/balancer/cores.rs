//! What is decided of cores.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::time::Duration;

use conuma_balancing::{Holder, Move, Resources};
use conuma_topology::{CoreId, CpuSet};

use super::Balancer;
use super::view::View;
use crate::decision::{Held, Rejected, Step, Why, WhyNot};
use crate::divide;
use crate::place::{self, Home, Tenant};
use crate::rules::Tuning;
use crate::scene::Scene;

/// A VM whose cores moved is left where it is for so many dwell times, unless it gets more or fewer.
const SETTLES: u32 = 20;

/// What moves.
#[derive(Debug, Default)]
pub(super) struct CorePlan {
    pub(super) steps: Vec<Step>,
    /// By view: its fair share.
    pub(super) shares: Vec<usize>,
    pub(super) rejected: Vec<Rejected>,
    /// Cores that move and count against the budget.
    pub(super) paid: usize,
}

pub(super) fn plan(
    balancer: &Balancer,
    scene: &Scene<'_>,
    views: &[View<'_>],
    usable: &CpuSet,
    now: Duration,
) -> CorePlan {
    let tuning = &balancer.rules.tuning;
    let ground = Ground { balancer, scene, views, usable, now };
    let all = ground.draft(ground.shares(false), false);
    let mut least = None;
    // What the host takes is a loss that nothing else has to make up for.
    let lost = match balancer.host_need().cores {
        0 => 0.0,
        _ => least.insert(ground.least()).gain.min(0.0),
    };
    let (gain, cost) = ((all.gain - lost) * tuning.horizon, all.paid as f64 * tuning.core_cost);
    let budget = balancer.stability.budget(now, tuning, views.len()) as usize;
    let mut rejected = unmet(views, &all.shares);
    let (worth, affordable) = (all.paid == 0 || gain > cost, all.paid <= budget);
    if worth && affordable {
        return CorePlan { steps: all.steps, shares: all.shares, rejected, paid: all.paid };
    }
    // What is needed moves in any case; of the rest, what the budget allows.
    let least = least.unwrap_or_else(|| ground.least());
    let shares = || toward(least.shares.clone(), &all.shares, ground.for_vms(), budget);
    let some = (worth && budget > 0).then(|| ground.draft(shares(), true));
    let chosen = match some {
        Some(some) if some.paid <= budget => some,
        _ => least,
    };
    let why = if worth { WhyNot::Budget(tuning.moves_per_minute) } else { WhyNot::NoGain { gain, cost } };
    let missed = views.iter().zip(all.after.iter().zip(&chosen.after)).filter(|(_, (all, chosen))| all != chosen);
    rejected.extend(missed.map(|(view, (all, chosen))| Rejected {
        vm: view.vm.name.clone(),
        cores: all.len() as i64 - chosen.len() as i64,
        memory: BTreeMap::new(),
        why: why.clone(),
    }));
    CorePlan { steps: chosen.steps, shares: all.shares, rejected, paid: chosen.paid }
}

/// From these shares toward `goal`, by at most so many cores: one after the other from whom has most above its goal, or from nobody, to
/// whom lacks most.
fn toward(mut shares: Vec<usize>, goal: &[usize], total: usize, cores: usize) -> Vec<usize> {
    let mut free = total.saturating_sub(shares.iter().sum());
    for _ in 0..cores {
        let by = |difference: &dyn Fn(usize) -> usize| {
            let index = (0..shares.len()).max_by_key(|index| (difference(*index), Reverse(*index)))?;
            (difference(index) > 0).then_some(index)
        };
        let Some(poor) = by(&|index| goal[index].saturating_sub(shares[index])) else { break };
        if free > 0 {
            free -= 1;
        } else {
            let Some(rich) = by(&|index| shares[index].saturating_sub(goal[index])) else { break };
            shares[rich] -= 1;
        }
        shares[poor] += 1;
    }
    shares
}

/// VMs that would use more than they get, and why they do not get it.
fn unmet(views: &[View<'_>], shares: &[usize]) -> Vec<Rejected> {
    let missing = |(view, share): (&View<'_>, &usize)| {
        let more = view.wanted.checked_sub(*share).filter(|more| *more > 0 && view.estimate.is_some())?;
        let why = match view.held {
            Some(held) => WhyNot::Held(held),
            None if *share >= view.most => WhyNot::Limit,
            None => WhyNot::FairShare,
        };
        Some(Rejected { vm: view.vm.name.clone(), cores: more as i64, memory: BTreeMap::new(), why })
    };
    views.iter().zip(shares).filter_map(missing).collect()
}

/// What is divided among whom, and when.
#[derive(Clone, Copy)]
struct Ground<'a> {
    balancer: &'a Balancer,
    scene: &'a Scene<'a>,
    views: &'a [View<'a>],
    usable: &'a CpuSet,
    now: Duration,
}

impl Ground<'_> {
    /// The fair division; if `urgent`, only what is needed of guarantees goes to somebody else.
    fn shares(&self, urgent: bool) -> Vec<usize> {
        let claims: Vec<_> = self.views.iter().map(|view| view.claim(urgent)).collect();
        divide::cores(self.for_vms(), &claims)
    }

    /// Cores for VMs: all but those that the host needs and nobody is guaranteed.
    fn for_vms(&self) -> usize {
        let all = self.scene.layout.cores_in(self.usable).len();
        let firm = self.views.iter().map(|view| view.claim(true).firm).sum();
        all - self.balancer.host_need().cores.min(all.saturating_sub(firm))
    }

    /// What has to be done in any case.
    fn least(&self) -> Draft {
        self.draft(self.shares(true), true)
    }

    /// Where everyone's cores are then; if `rests`, nobody moves for a better place.
    fn draft(&self, shares: Vec<usize>, rests: bool) -> Draft {
        let Self { balancer, scene, views, usable, now } = *self;
        let tuning = &balancer.rules.tuning;
        let tenants: Vec<Tenant> =
            views.iter().zip(&shares).map(|(view, share)| tenant(balancer, scene, view, *share, now, rests)).collect();
        let after = place::place(scene.layout, usable, &tenants, tuning.far_loss).cores;
        let mut draft = Draft { shares, after, ..Draft::default() };
        draft.steps = draft.steps(self);
        draft.gain = draft.gain(self);
        let cores = |step: &Step| scene.layout.cores_in(&step.step.what.cpus).len();
        draft.paid = draft.steps.iter().filter(|step| step.why.is_paid()).map(cores).sum();
        draft
    }
}

/// A division with its placement.
#[derive(Default)]
struct Draft {
    shares: Vec<usize>,
    after: Vec<Vec<CoreId>>,
    steps: Vec<Step>,
    /// In cores, as long as the load lasts.
    gain: f64,
    /// Cores that move and count against the budget.
    paid: usize,
}

impl Draft {
    /// Who gets which cores from whom.
    fn steps(&self, ground: &Ground<'_>) -> Vec<Step> {
        let Ground { balancer, scene, views, .. } = *ground;
        let mut owner: BTreeMap<CoreId, usize> = BTreeMap::new();
        for (index, view) in views.iter().enumerate() {
            owner.extend(view.cores.iter().map(|core| (*core, index)));
        }
        // By giver, recipient and reason; `None` is the pool.
        let mut parts: BTreeMap<(Why, Option<usize>, Option<usize>), CpuSet> = BTreeMap::new();
        let mut add = |why: Why, from: Option<usize>, to: Option<usize>, core: CoreId| {
            if let Some(seat) = scene.layout.cores.get(&core) {
                parts.entry((why, from, to)).or_default().extend(seat.cpus.iter());
            }
        };
        let mut taken: BTreeMap<CoreId, usize> = BTreeMap::new();
        for (index, (view, after)) in views.iter().zip(&self.after).enumerate() {
            let new = after.iter().filter(|core| view.cores.binary_search(core).is_err());
            for (more, core) in new.enumerate() {
                let owed = view.cores.len() + more < view.needed || view.named.contains(core);
                let why = match () {
                    () if owed => Why::Guarantee,
                    () if after.len() > view.cores.len() => Why::Demand,
                    () => Why::Locality,
                };
                add(why, owner.get(core).copied(), Some(index), *core);
                taken.insert(*core, index);
            }
        }
        let unheld = scene.layout.cores_in(&scene.pool.cpus.intersection(ground.usable)).len();
        let mut for_host = balancer.host_need().cores.saturating_sub(unheld);
        for (index, (view, after)) in views.iter().zip(&self.after).enumerate() {
            for core in view.cores.iter().filter(|core| after.binary_search(core).is_err() && !taken.contains_key(core))
            {
                let why = if for_host > 0 { Why::Host } else { Why::Locality };
                for_host = for_host.saturating_sub(1);
                add(why, Some(index), None, *core);
            }
        }
        let holder =
            |index: Option<usize>| index.map_or(Holder::Pool, |index| Holder::Vm(views[index].vm.name.clone()));
        let step = |((why, from, to), cpus): ((Why, Option<usize>, Option<usize>), CpuSet)| Step {
            step: Move { from: holder(from), to: holder(to), what: Resources::cores(cpus) },
            why,
        };
        parts.into_iter().map(step).collect()
    }

    /// What all of it brings, in cores: what is used more, what comes nearer to its fair share, and what is near instead of far.
    fn gain(&self, ground: &Ground<'_>) -> f64 {
        let Ground { balancer, scene, views, .. } = *ground;
        let tuning = &balancer.rules.tuning;
        let mut gain = 0.0;
        for (view, after) in views.iter().zip(&self.after).filter(|(view, _)| !view.is_fixed()) {
            let wanted = view.estimate.map_or(view.wanted as f64, |estimate| estimate.cores.wanted);
            let useful = |cores: usize| (cores as f64).min(wanted);
            let change = useful(after.len()) - useful(view.cores.len());
            // What is taken from a VM that uses it was above its share.
            gain += if change < 0.0 { change / 2.0 } else { change };
            gain += far(scene, &view.home, &view.cores, tuning) - far(scene, &view.home, after, tuning);
        }
        gain
    }
}

/// What a VM loses by far cores, in cores.
pub(super) fn far(scene: &Scene<'_>, home: &Home, cores: &[CoreId], tuning: &Tuning) -> f64 {
    let mut counts = vec![0; scene.layout.nodes.len()];
    for place in cores.iter().filter_map(|core| scene.layout.place(*core)) {
        counts[place] += 1;
    }
    place::far_cores(home, &counts, tuning.far_loss)
}

fn tenant(balancer: &Balancer, scene: &Scene<'_>, view: &View<'_>, share: usize, now: Duration, rests: bool) -> Tenant {
    let tuning = &balancer.rules.tuning;
    let rests = rests
        || view.held.is_some()
        || balancer.stability.cores_moved_within(&view.vm.name, tuning.dwell() * SETTLES, now);
    // Twice what it costs: what is as good elsewhere is no reason to go there.
    let step = if rests { 100.0 } else { 2.0 * tuning.core_cost / tuning.horizon.max(0.1) + 0.02 };
    let fixed =
        view.is_fixed() || (view.held == Some(Held::Dwell) && share == view.cores.len() && view.named.is_empty());
    let named = if fixed { Vec::new() } else { named(scene, view) };
    Tenant {
        count: share,
        held: view.cores.clone(),
        fixed,
        named,
        allowed: view.allowed.clone(),
        home: view.home.clone(),
        step,
    }
}

/// Of the cores that a guarantee names, those that are needed now: first those that are there, then those that nobody has.
fn named(scene: &Scene<'_>, view: &View<'_>) -> Vec<CoreId> {
    let free = |core: &CoreId| scene.layout.cores.get(core).is_some_and(|seat| seat.cpus.is_subset(&scene.pool.cpus));
    let mut named = view.named.clone();
    named.sort_by_key(|core| (view.cores.binary_search(core).is_err(), !free(core), *core));
    named.truncate(view.needed);
    named
}
