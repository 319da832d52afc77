//! What is decided of each node's memory: it goes to whom it is short, first from what nobody holds, then from whom it is spare; what a
//! node does not have is looked for on the nearest that has.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use conuma_balancing::{Holder, MemoryDemand, Move, Resources};
use conuma_topology::{Bytes, NodeId};

use super::Balancer;
use super::view::View;
use crate::decision::{Held, Rejected, Step, Why, WhyNot};
use crate::divide::{self, MemoryClaim};
use crate::rules::Tuning;
use crate::scene::Scene;

/// Smaller moves are not worth it.
const LEAST: Bytes = Bytes::mib(16);
/// Nor are those smaller than this part of what is wanted.
const PART: u64 = 16;
/// Sizes move in multiples of this where no device says otherwise.
const BLOCK: Bytes = Bytes::mib(2);
const GIB: f64 = (1_u64 << 30) as f64;

#[derive(Debug, Default)]
pub(super) struct MemoryPlan {
    pub(super) steps: Vec<Step>,
    pub(super) rejected: Vec<Rejected>,
}

/// A node that is being divided.
struct Table<'a> {
    node: NodeId,
    block: Bytes,
    views: &'a [View<'a>],
    rows: Vec<Row>,
    /// Free, less what the host needs.
    pool: Bytes,
    steps: Vec<Step>,
    /// Who gets some: it cannot give at the same time.
    gets: Vec<bool>,
    /// Who has given: it cannot give to a second at the same time, nor get.
    given: Vec<bool>,
    /// Who can give without missing it, those with most last; those that have given are taken off.
    spares: Vec<usize>,
}

/// A VM's part.
#[derive(Debug, Clone, Copy, Default)]
struct Row {
    held: Bytes,
    /// Of its guarantee, what it needs.
    needed: Bytes,
    /// What it cannot do without.
    keeps: Bytes,
    wanted: Bytes,
    /// By the fair division.
    target: Bytes,
    most: Bytes,
    gives: bool,
    takes: bool,
}

impl Row {
    /// What it holds and does not need.
    fn spare(&self) -> Bytes {
        self.held.saturating_sub(self.target.max(self.keeps).max(self.needed))
    }
}

pub(super) fn plan(balancer: &Balancer, scene: &Scene<'_>, views: &[View<'_>], now: Duration) -> MemoryPlan {
    let tuning = &balancer.rules.tuning;
    let nodes: Vec<NodeId> = scene.host.memory.keys().copied().collect();
    let needed: Vec<BTreeMap<NodeId, Bytes>> =
        views.iter().map(|view| view.needed_memory(&nodes, tuning.lend_idle_guarantee)).collect();
    let mut plan = MemoryPlan::default();
    let mut left: BTreeMap<NodeId, Bytes> = BTreeMap::new();
    let mut turned: BTreeSet<(usize, NodeId)> = BTreeSet::new();
    let mut unmet: Vec<(usize, NodeId, Bytes)> = Vec::new();
    // Limits on all memory together, used up node by node.
    let mut room: Vec<Bytes> = views.iter().map(total_room).collect();
    for node in &nodes {
        let mut table = Table::new(balancer, scene, views, &needed, &room, *node, now);
        table.host(balancer, scene);
        for short in table.short() {
            let got = table.serve(short, balancer, &mut plan.rejected, tuning, now);
            room[short] = room[short].saturating_sub(got);
            table.rows[short].held += got;
        }
        for (index, (view, row)) in views.iter().zip(&table.rows).enumerate() {
            let rest = row.wanted.min(row.most).saturating_sub(row.held);
            if row.takes && !rest.is_zero() && view.estimate.is_some() {
                unmet.push((index, *node, rest));
            }
        }
        left.insert(*node, table.pool);
        turned.extend(
            (0..views.len()).filter(|index| table.gets[*index] || table.given[*index]).map(|index| (index, *node)),
        );
        plan.steps.append(&mut table.steps);
    }
    elsewhere(scene, views, &mut plan, left, &turned, unmet, &mut room, tuning, balancer, now);
    plan
}

/// How much more a VM may hold in all.
fn total_room(view: &View<'_>) -> Bytes {
    match &view.terms.limit.memory {
        Some(MemoryDemand::Total(limit)) => limit.saturating_sub(view.vm.holding.total_memory()),
        _ => Bytes(u64::MAX),
    }
}

impl<'a> Table<'a> {
    fn new(
        balancer: &Balancer,
        scene: &Scene<'_>,
        views: &'a [View<'a>],
        needed: &[BTreeMap<NodeId, Bytes>],
        room: &[Bytes],
        node: NodeId,
        now: Duration,
    ) -> Self {
        let tuning = &balancer.rules.tuning;
        let devices = views.iter().filter_map(|view| view.vm.devices.get(&node));
        let block = devices.map(|device| device.block).max().filter(|block| !block.is_zero()).unwrap_or(BLOCK);
        let need = balancer.host_need().memory.get(&node).copied().unwrap_or_default();
        let pool = scene.pool.on(node).saturating_sub(need);
        let mut rows: Vec<Row> = views
            .iter()
            .zip(needed)
            .zip(room)
            .map(|((view, needed), room)| {
                let rests = balancer.stability.memory_dwells(&view.vm.name, node, now, tuning);
                row(view, needed.get(&node).copied().unwrap_or_default(), *room, node, block, rests)
            })
            .collect();
        let claims: Vec<MemoryClaim> = views.iter().zip(&rows).map(|(view, row)| claim(view, row)).collect();
        let total = rows.iter().map(|row| row.held).sum::<Bytes>() + pool;
        for (row, target) in rows.iter_mut().zip(divide::memory(total, block, &claims)) {
            row.target = target;
        }
        let none = vec![false; rows.len()];
        let mut spares: Vec<usize> = (0..rows.len()).filter(|index| rows[*index].gives).collect();
        spares.retain(|index| rows[*index].spare() >= block);
        spares.sort_by_key(|index| (rows[*index].spare(), std::cmp::Reverse(*index)));
        Self { spares, node, block, views, rows, pool, steps: Vec::new(), gets: none.clone(), given: none }
    }

    /// The host is short: what is above guarantees, and not in use, goes to the pool.
    fn host(&mut self, balancer: &Balancer, scene: &Scene<'_>) {
        let need = balancer.host_need().memory.get(&self.node).copied().unwrap_or_default();
        let mut missing = need.saturating_sub(scene.pool.on(self.node));
        while missing >= self.block {
            let unused = |row: &Row| row.held.saturating_sub(row.needed.max(row.keeps));
            let Some((index, part)) = self.giver(usize::MAX, unused, missing) else { return };
            self.step(Holder::Vm(self.views[index].vm.name.clone()), Holder::Pool, part, Why::Host);
            self.given[index] = true;
            self.rows[index].held = self.rows[index].held.saturating_sub(part);
            missing = missing.saturating_sub(part);
        }
    }

    /// Those who should have more, most urgent first.
    fn short(&self) -> Vec<usize> {
        let mut short: Vec<usize> = (0..self.rows.len())
            .filter(|index| {
                let row = &self.rows[*index];
                let least = if row.held < row.needed { self.block } else { LEAST.max(Bytes(row.wanted.0 / PART)) };
                row.takes && row.target.saturating_sub(row.held) >= least && !self.given[*index]
            })
            .collect();
        short.sort_by_key(|index| {
            let row = &self.rows[*index];
            (
                std::cmp::Reverse(row.needed.saturating_sub(row.held)),
                std::cmp::Reverse(row.target.saturating_sub(row.held)),
                *index,
            )
        });
        short
    }

    /// Gives one VM what it should have more, as far as it goes; how much that is.
    fn serve(
        &mut self,
        index: usize,
        balancer: &Balancer,
        rejected: &mut Vec<Rejected>,
        tuning: &Tuning,
        now: Duration,
    ) -> Bytes {
        let row = self.rows[index];
        let urgent = row.held < row.needed;
        let missing = row.target.saturating_sub(row.held).round_down(self.block);
        let name = self.views[index].vm.name.clone();
        let (node, stuck_with) = (self.node, name.clone());
        let mut reject = |why: WhyNot| {
            let (name, memory) = (stuck_with.clone(), BTreeMap::from([(node, missing)]));
            rejected.push(Rejected { vm: name, cores: 0, memory, why });
        };
        if !urgent {
            let used = self.views[index].estimate.map_or(0.0, |estimate| estimate.cores.used).max(0.25);
            let gain = used * tuning.foresight * (missing.0 as f64 / row.wanted.0.max(1) as f64);
            let from_others = missing.saturating_sub(self.pool);
            let cost = (from_others.0 as f64 + 0.2 * missing.0 as f64) / GIB * tuning.memory_cost;
            if gain <= cost {
                reject(WhyNot::NoGain { gain, cost });
                return Bytes::ZERO;
            }
            if balancer.stability.budget(now, tuning, self.views.len()) == 0 {
                reject(WhyNot::Budget(tuning.moves_per_minute));
                return Bytes::ZERO;
            }
        }
        let why = if urgent { Why::Guarantee } else { Why::Demand };
        let mut got = Bytes::ZERO;
        let part = missing.min(self.pool).round_down(self.block);
        if !part.is_zero() {
            self.step(Holder::Pool, Holder::Vm(name.clone()), part, why);
            self.gets[index] = true;
            self.pool = self.pool.saturating_sub(part);
            got += part;
        }
        // What others do not need; for a guarantee, then what they use beyond theirs.
        let beyond = |row: &Row| row.held.saturating_sub(row.needed);
        while missing.saturating_sub(got) >= self.block {
            let wanted = missing.saturating_sub(got);
            let giver = self.spare_giver(index, wanted);
            let giver = giver.or_else(|| urgent.then(|| self.giver(index, beyond, wanted)).flatten());
            let Some((giver, part)) = giver else { break };
            self.step(Holder::Vm(self.views[giver].vm.name.clone()), Holder::Vm(name.clone()), part, why);
            self.gets[index] = true;
            self.given[giver] = true;
            self.rows[giver].held = self.rows[giver].held.saturating_sub(part);
            got += part;
        }
        if got.is_zero() {
            let stuck =
                self.rows.iter().enumerate().any(|(other, row)| other != index && !row.gives && !row.spare().is_zero());
            reject(if stuck { WhyNot::MemoryStuck } else { WhyNot::FairShare });
        }
        got
    }

    /// Who can give most without missing it.
    fn spare_giver(&mut self, but: usize, wanted: Bytes) -> Option<(usize, Bytes)> {
        while let Some(index) = self.spares.pop() {
            if index != but && !self.given[index] && !self.gets[index] {
                return Some((index, self.rows[index].spare().min(wanted).round_down(self.block)));
            }
        }
        None
    }

    /// Who can give most of what `spare` says, and how much of `wanted`.
    fn giver(&self, but: usize, spare: impl Fn(&Row) -> Bytes, wanted: Bytes) -> Option<(usize, Bytes)> {
        let can = |index: &usize| *index != but && self.rows[*index].gives && !self.given[*index] && !self.gets[*index];
        let most = |index: &usize| (spare(&self.rows[*index]), std::cmp::Reverse(*index));
        let best = (0..self.rows.len()).filter(can).max_by_key(most)?;
        let part = spare(&self.rows[best]).min(wanted).round_down(self.block);
        (!part.is_zero()).then_some((best, part))
    }

    fn step(&mut self, from: Holder, to: Holder, bytes: Bytes, why: Why) {
        self.steps.push(Step { step: Move { from, to, what: Resources::memory(self.node, bytes) }, why });
    }
}

fn row(view: &View<'_>, needed: Bytes, room: Bytes, node: NodeId, block: Bytes, rests: bool) -> Row {
    let vm = view.vm;
    let held = vm.holding.on(node);
    let boot = vm.boot.get(&node).copied().unwrap_or_default();
    let device = vm.devices.get(&node).map(|device| device.max).unwrap_or_default();
    let limit = match &view.terms.limit.memory {
        Some(MemoryDemand::PerNode(nodes)) => nodes.get(&node).copied().unwrap_or_default(),
        _ => Bytes(u64::MAX),
    };
    let most = (boot + device).min(limit).min(Bytes(held.0.saturating_add(room.0))).max(held);
    let untouched = matches!(view.held, Some(Held::Pinned | Held::HandsOff)) || vm.busy.memory.contains(&node);
    // A part of a block is had with the whole of it only.
    let wanted = view.wanted_on(node).max(boot).saturating_sub(boot).round_up(block) + boot;
    let needed = needed.min(most).max(boot);
    Row {
        held,
        needed,
        keeps: view.keeps_on(node).max(boot),
        wanted,
        target: held,
        most,
        gives: !untouched && vm.lends_memory && held > boot,
        takes: !untouched && vm.takes_memory && (!rests || held < needed),
    }
}

fn claim(view: &View<'_>, row: &Row) -> MemoryClaim {
    // What cannot be taken, or should not, is its own.
    let kept = if row.gives { row.keeps.min(row.held) } else { row.held };
    let most = if row.takes { row.most } else { row.held };
    let floor = row.needed.max(kept).min(most);
    MemoryClaim { weight: view.terms.weight, priority: view.terms.priority, floor, most, wanted: row.wanted.max(floor) }
}

/// What a node did not have is as good as had on a near one: a guest's kernel goes there by itself.
#[allow(clippy::too_many_arguments, reason = "one place, all of it about one decision")]
fn elsewhere(
    scene: &Scene<'_>,
    views: &[View<'_>],
    plan: &mut MemoryPlan,
    mut left: BTreeMap<NodeId, Bytes>,
    turned: &BTreeSet<(usize, NodeId)>,
    unmet: Vec<(usize, NodeId, Bytes)>,
    room: &mut [Bytes],
    tuning: &Tuning,
    balancer: &Balancer,
    now: Duration,
) {
    let mut more: BTreeSet<(usize, NodeId)> = BTreeSet::new();
    for (index, node, rest) in unmet {
        let view = &views[index];
        let vm = &view.vm;
        if rest < LEAST.max(Bytes(view.wanted_on(node).0 / PART)) {
            continue;
        }
        let mut near: Vec<(u32, NodeId)> = left
            .keys()
            .filter(|other| **other != node && left[*other] >= LEAST && !turned.contains(&(index, **other)))
            .filter(|other| vm.devices.contains_key(other) && !vm.busy.memory.contains(other))
            .map(|other| (scene.host.distances.get(node, *other).unwrap_or(20), *other))
            .collect();
        near.sort();
        let mut rest = rest;
        for (_, other) in near {
            if more.contains(&(index, other)) || balancer.stability.memory_dwells(&vm.name, other, now, tuning) {
                continue;
            }
            // What it has unused there already counts.
            let idle = vm.holding.on(other).saturating_sub(view.keeps_on(other));
            rest = rest.saturating_sub(idle);
            let block =
                vm.devices.get(&other).map(|device| device.block).filter(|block| !block.is_zero()).unwrap_or(BLOCK);
            let row = row(view, Bytes::ZERO, room[index], other, block, false);
            let pool = left.get(&other).copied().unwrap_or_default();
            let part = rest.min(pool).min(row.most.saturating_sub(row.held)).round_down(block);
            if !row.takes || part < LEAST {
                continue;
            }
            let step =
                Move { from: Holder::Pool, to: Holder::Vm(vm.name.clone()), what: Resources::memory(other, part) };
            plan.steps.push(Step { step, why: Why::Demand });
            more.insert((index, other));
            left.insert(other, pool.saturating_sub(part));
            room[index] = room[index].saturating_sub(part);
            rest = rest.saturating_sub(part);
        }
    }
}
