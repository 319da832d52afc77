//! What is decided of each node's memory: it goes to whom it is short, first from what nobody holds, then from whom it is spare; what a
//! node does not have is looked for on the nearest that has.

use std::cmp::Reverse;
use std::collections::BTreeMap;
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
    /// By view: what it lacks of what it needs of its guarantee, in whole blocks.
    pub(super) lacks: Vec<Bytes>,
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
    /// Who should get nothing, as it costs too much.
    refused: Vec<bool>,
    /// Who has given: it cannot give to a second at the same time, nor get.
    given: Vec<bool>,
    /// Who can give without missing it.
    spares: Givers,
    /// Who can give what it uses beyond its guarantee, once that was asked.
    users: Option<Givers>,
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
    /// Its memory can grow here.
    grows: bool,
    /// It moved here a moment ago.
    rests: bool,
}

impl Row {
    /// Whether it is to get what it should have more.
    fn takes(&self) -> bool {
        self.grows && (!self.rests || self.held < self.needed)
    }

    /// What it holds and does not need.
    fn spare(&self) -> Bytes {
        self.held.saturating_sub(self.target.max(self.keeps).max(self.needed))
    }

    /// What it holds beyond what it needs of its guarantee, whether it uses that or not.
    fn beyond(&self) -> Bytes {
        self.held.saturating_sub(self.needed)
    }

    /// What of that it does not use.
    fn unused(&self) -> Bytes {
        self.held.saturating_sub(self.needed.max(self.keeps))
    }
}

/// Those who can give, who has most last; each is asked once.
#[derive(Debug)]
struct Givers {
    rows: Vec<usize>,
    part: fn(&Row) -> Bytes,
}

impl Givers {
    fn new(rows: &[Row], block: Bytes, part: fn(&Row) -> Bytes) -> Self {
        let can = |index: &usize| rows[*index].gives && part(&rows[*index]) >= block;
        let mut givers: Vec<usize> = (0..rows.len()).filter(can).collect();
        givers.sort_by_key(|index| (part(&rows[*index]), Reverse(*index)));
        Self { rows: givers, part }
    }

    /// Who of those who are `free` can give most, and how much of `wanted`.
    fn next(
        &mut self,
        rows: &[Row],
        free: impl Fn(usize) -> bool,
        wanted: Bytes,
        block: Bytes,
    ) -> Option<(usize, Bytes)> {
        while let Some(index) = self.rows.pop() {
            let part = (self.part)(&rows[index]).min(wanted).round_down(block);
            if free(index) && !part.is_zero() {
                return Some((index, part));
            }
        }
        None
    }
}

pub(super) fn plan(
    balancer: &Balancer,
    scene: &Scene<'_>,
    views: &[View<'_>],
    budget: u32,
    now: Duration,
) -> MemoryPlan {
    let nodes: Vec<NodeId> = scene.host.memory.keys().copied().collect();
    let lend_idle = balancer.rules.tuning.lend_idle_guarantee;
    let needed = views.iter().map(|view| view.needed_memory(lend_idle)).collect();
    let mut draft = Draft {
        balancer,
        scene,
        views,
        now,
        needed,
        room: views.iter().map(total_room).collect(),
        lacks: vec![Bytes::ZERO; views.len()],
        budget,
        tables: Vec::with_capacity(nodes.len()),
        rejected: Vec::new(),
    };
    for node in nodes {
        draft.divide(node);
    }
    draft.owe();
    draft.look_elsewhere();
    let steps = draft.tables.into_iter().flat_map(|table| table.steps).collect();
    MemoryPlan { steps, rejected: draft.rejected, lacks: draft.lacks }
}

/// A decision on memory while it is made.
struct Draft<'a> {
    balancer: &'a Balancer,
    scene: &'a Scene<'a>,
    views: &'a [View<'a>],
    now: Duration,
    /// By view: of its guarantee, what it needs on each node.
    needed: Vec<BTreeMap<NodeId, Bytes>>,
    /// By view: its limit on all memory together, used up node by node.
    room: Vec<Bytes>,
    lacks: Vec<Bytes>,
    /// Moves that may still be made.
    budget: u32,
    /// The nodes that were divided.
    tables: Vec<Table<'a>>,
    rejected: Vec<Rejected>,
}

impl Draft<'_> {
    fn divide(&mut self, node: NodeId) {
        let mut table = Table::new(self, node);
        for (lacks, row) in self.lacks.iter_mut().zip(&table.rows) {
            *lacks += row.needed.saturating_sub(row.held).round_down(table.block);
        }
        table.host(self.balancer, self.scene);
        let short = table.short();
        let place = self.tables.len();
        self.tables.push(table);
        for index in short {
            self.serve(place, index);
        }
    }

    /// Gives one VM what it should have more of one node, as far as it goes; how much that is.
    fn serve(&mut self, place: usize, index: usize) -> Bytes {
        let table = &mut self.tables[place];
        let steps = table.steps.len();
        let got = table.serve(index, &self.balancer.rules.tuning, self.budget, &mut self.rejected);
        let paid = table.steps[steps..].iter().filter(|step| step.why.is_paid()).count();
        self.budget = self.budget.saturating_sub(u32::try_from(paid).unwrap_or(u32::MAX));
        table.rows[index].held += got;
        self.room[index] = self.room[index].saturating_sub(got);
        got
    }

    /// What is guaranteed without saying where, and is not there where it is wanted, is had where others have it.
    fn owe(&mut self) {
        for (index, view) in self.views.iter().enumerate() {
            if !matches!(view.terms.guarantee.memory, Some(MemoryDemand::Total(_))) {
                continue;
            }
            let held: Bytes = self.tables.iter().map(|table| table.rows[index].held).sum();
            let needed: Bytes = self.needed[index].values().copied().sum();
            let mut rest = needed.saturating_sub(held);
            if rest.is_zero() {
                continue;
            }
            let most_wanted = self.tables.iter().max_by_key(|table| {
                let row = &table.rows[index];
                (row.needed.saturating_sub(row.held), Reverse(table.node))
            });
            let Some(node) = most_wanted.map(|table| table.node) else { continue };
            // That it lacks something was told where it is wanted.
            let told = self.rejected.len();
            for place in self.near(node) {
                let table = &mut self.tables[place];
                let row = table.rows[index];
                let most = row.most.min(Bytes(row.held.0.saturating_add(self.room[index].0)));
                let goal = (row.held + rest).min(most);
                if rest >= table.block && row.grows && goal > row.held && table.is_free(index) {
                    table.rows[index] = Row { needed: goal, target: goal, ..row };
                    rest = rest.saturating_sub(self.serve(place, index));
                }
            }
            self.rejected.truncate(told);
        }
    }

    /// The nodes, by index, nearest first.
    fn near(&self, node: NodeId) -> Vec<usize> {
        let mut near: Vec<usize> = (0..self.tables.len()).collect();
        near.sort_by_key(|place| {
            let other = self.tables[*place].node;
            (self.scene.host.distance(node, other), other)
        });
        near
    }

    /// What a node did not have is as good as had on a near one: a guest's kernel goes there by itself.
    fn look_elsewhere(&mut self) {
        let unmet = |(place, table): (usize, &Table<'_>)| -> Vec<(usize, usize, Bytes)> {
            let rest = |(index, row): (usize, &Row)| {
                let rest = row.wanted.min(row.most).saturating_sub(row.held);
                let known = self.views[index].estimate.is_some() && !table.refused[index];
                (row.takes() && known && rest >= least_of(row.wanted)).then_some((place, index, rest))
            };
            table.rows.iter().enumerate().filter_map(rest).collect()
        };
        let unmet: Vec<_> = self.tables.iter().enumerate().flat_map(unmet).collect();
        // Once by node: there may be many who want more of the same.
        let mut near = (usize::MAX, Vec::new());
        for (place, index, mut rest) in unmet {
            if self.budget == 0 || self.tables.iter().all(|table| table.pool < LEAST) {
                return;
            }
            if near.0 != place {
                near = (place, self.near(self.tables[place].node));
            }
            let others = || near.1.iter().copied().filter(|other| *other != place);
            // What it has unused elsewhere, or has just got, already counts.
            for other in others() {
                let row = &self.tables[other].rows[index];
                rest = rest.saturating_sub(row.held.saturating_sub(row.wanted.max(row.keeps)));
            }
            for other in others() {
                if rest < LEAST || self.budget == 0 {
                    break;
                }
                let table = &mut self.tables[other];
                let row = &mut table.rows[index];
                let most = row.most.saturating_sub(row.held).min(self.room[index]);
                let part = rest.min(table.pool).min(most).round_down(table.block);
                if part < LEAST || !row.takes() || !table.is_free(index) {
                    continue;
                }
                table.rows[index].held += part;
                table.step(Holder::Pool, Holder::Vm(self.views[index].vm.name.clone()), part, Why::Demand);
                table.gets[index] = true;
                table.pool = table.pool.saturating_sub(part);
                self.room[index] = self.room[index].saturating_sub(part);
                self.budget -= 1;
                rest = rest.saturating_sub(part);
            }
        }
    }
}

/// Less than that more of what is wanted is not worth moving.
fn least_of(wanted: Bytes) -> Bytes {
    LEAST.max(Bytes(wanted.0 / PART))
}

/// How much more a VM may hold in all.
fn total_room(view: &View<'_>) -> Bytes {
    match &view.terms.limit.memory {
        Some(MemoryDemand::Total(limit)) => limit.saturating_sub(view.vm.holding.total_memory()),
        _ => Bytes(u64::MAX),
    }
}

impl<'a> Table<'a> {
    fn new(draft: &Draft<'a>, node: NodeId) -> Self {
        let Draft { balancer, scene, views, now, needed, room, .. } = draft;
        let tuning = &balancer.rules.tuning;
        let devices = views.iter().filter_map(|view| view.vm.devices.get(&node));
        let block = devices.map(|device| device.block).max().filter(|block| !block.is_zero()).unwrap_or(BLOCK);
        let mut rows: Vec<Row> = views
            .iter()
            .zip(needed)
            .zip(room)
            .map(|((view, needed), room)| {
                let rests = balancer.stability.memory_dwells(&view.vm.name, node, *now, tuning);
                row(view, needed.get(&node).copied().unwrap_or_default(), *room, node, block, rests)
            })
            .collect();
        // The host comes before what nobody is guaranteed, and after the rest.
        let need = balancer.host_need().memory.get(&node).copied().unwrap_or_default();
        let owed = rows.iter().map(|row| row.needed.saturating_sub(row.held)).sum();
        let free = scene.pool.on(node);
        let pool = free.saturating_sub(need).max(free.min(owed));
        let claims: Vec<MemoryClaim> = views.iter().zip(&rows).map(|(view, row)| claim(view, row)).collect();
        let total = rows.iter().map(|row| row.held).sum::<Bytes>() + pool;
        for (row, target) in rows.iter_mut().zip(divide::memory(total, block, &claims)) {
            row.target = target;
        }
        let none = vec![false; rows.len()];
        Self {
            spares: Givers::new(&rows, block, Row::spare),
            users: None,
            node,
            block,
            views,
            rows,
            pool,
            steps: Vec::new(),
            gets: none.clone(),
            refused: none.clone(),
            given: none,
        }
    }

    /// The host is short: what is above guarantees, and not in use, goes to the pool.
    fn host(&mut self, balancer: &Balancer, scene: &Scene<'_>) {
        let need = balancer.host_need().memory.get(&self.node).copied().unwrap_or_default();
        let mut missing = need.saturating_sub(scene.pool.on(self.node));
        let mut unused = Givers::new(&self.rows, self.block, Row::unused);
        while missing >= self.block {
            let free = |index: usize| self.is_free(index);
            let Some((index, part)) = unused.next(&self.rows, free, missing, self.block) else { return };
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
                let least = if row.held < row.needed { self.block } else { least_of(row.wanted) };
                row.takes() && row.target.saturating_sub(row.held) >= least && !self.given[*index]
            })
            .collect();
        short.sort_by_key(|index| {
            let row = &self.rows[*index];
            (Reverse(row.needed.saturating_sub(row.held)), Reverse(row.target.saturating_sub(row.held)), *index)
        });
        short
    }

    /// Whether nothing of a VM is moved here yet.
    fn is_free(&self, index: usize) -> bool {
        !self.gets[index] && !self.given[index]
    }

    /// Gives one VM what it should have more, as far as it goes; how much that is.
    fn serve(&mut self, index: usize, tuning: &Tuning, budget: u32, rejected: &mut Vec<Rejected>) -> Bytes {
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
            let why_not = match () {
                () if gain <= cost => Some(WhyNot::NoGain { gain, cost }),
                () if budget == 0 => Some(WhyNot::Budget(tuning.moves_per_minute)),
                () => None,
            };
            if let Some(why) = why_not {
                reject(why);
                self.refused[index] = true;
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
        while missing.saturating_sub(got) >= self.block {
            let Some((giver, part)) = self.giver(index, urgent, missing.saturating_sub(got)) else { break };
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

    /// Who can give most, and how much of `wanted`: what it does not need; for a guarantee, then what it uses beyond its own.
    fn giver(&mut self, to: usize, urgent: bool, wanted: Bytes) -> Option<(usize, Bytes)> {
        let Self { rows, block, gets, given, spares, users, .. } = self;
        let free = |index: usize| index != to && !gets[index] && !given[index];
        let spare = spares.next(rows, free, wanted, *block);
        if spare.is_some() || !urgent {
            return spare;
        }
        let users = users.get_or_insert_with(|| Givers::new(rows, *block, Row::beyond));
        users.next(rows, free, wanted, *block)
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
        grows: !untouched && vm.takes_memory && vm.devices.contains_key(&node),
        rests,
    }
}

fn claim(view: &View<'_>, row: &Row) -> MemoryClaim {
    // What cannot be taken, or should not, is its own.
    let kept = if row.gives { row.keeps.min(row.held) } else { row.held };
    let most = if row.takes() { row.most } else { row.held };
    let floor = row.needed.max(kept).min(most);
    MemoryClaim { weight: view.terms.weight, priority: view.terms.priority, floor, most, wanted: row.wanted.max(floor) }
}
