//! From a request to a plan: what would move, on paper.
//!
//! The planner only proposes; whether a VM may give or take so much is for [`crate::check_plan`] to
//! say, and every plan passes it.

mod elsewhere;
mod recall;

use std::collections::{BTreeMap, BTreeSet};

use conuma_topology::{Bytes, CpuSet, NodeId, VmName};

use crate::action::Fixed;
use crate::admission::admit;
use crate::check::check_plan;
use crate::choose::Wish;
use crate::holding::{CoreDemand, Demand, MemoryDemand, Resources};
use crate::host::Host;
use crate::ledger::Holder;
use crate::loans::Loans;
use crate::plan::{CoreChoice, Move, Refusal, Request, TransferPlan};
use crate::report::Reason;
use crate::vm::VmSpec;

pub(crate) use elsewhere::plan_elsewhere;

/// What plans are made from: a snapshot.
pub(crate) struct Books<'a> {
    pub(crate) host: &'a Host,
    pub(crate) loans: &'a Loans,
    pub(crate) specs: BTreeMap<VmName, VmSpec>,
    /// VMs of which QEMU does not run yet.
    pub(crate) starting: BTreeSet<VmName>,
    /// VMs whose memory can neither shrink nor grow.
    pub(crate) silent: BTreeSet<VmName>,
    /// VMs that use more memory than they hold: they are given none.
    pub(crate) trespassing: BTreeSet<VmName>,
    /// VMs whose memory stays as it is, whatever their guests would do.
    pub(crate) fixed: BTreeMap<VmName, Fixed>,
    /// CPUs of the host that nobody can use now.
    pub(crate) offline: &'a CpuSet,
    /// What each holder has once everything under way has left its giver and reached its VM.
    pub(crate) held: BTreeMap<Holder, Resources>,
}

/// The plan for a request, checked. One without moves means that all is as asked for already.
pub(crate) fn plan(books: &Books, request: &Request) -> Result<TransferPlan, Refusal> {
    let mut draft = Draft { books, plan: TransferPlan::default() };
    match request {
        Request::Lend { from, to, what, .. } => {
            books.running(from)?;
            books.running(to)?;
            if from == to {
                return Err(Refusal::SameVm(from.clone()));
            }
            draft.give(&Holder::Vm(from.clone()), &Holder::Vm(to.clone()), what)?;
            if draft.plan.moves.is_empty() {
                return Err(Refusal::NothingToLend);
            }
        }
        Request::Recall { to, from, what } => {
            books.running(to)?;
            draft.recall(to, from.as_ref(), what.as_ref())?;
        }
        Request::Set { vm, what, .. } => {
            books.running(vm)?;
            draft.set(vm, what)?;
        }
        Request::Rebalance { moves, .. } => {
            for step in moves {
                draft.movable(step)?;
                draft.push(&step.from, &step.to, step.what.clone());
            }
        }
    }
    books.finish(draft.plan, &excused(request))
}

/// Whose owner agreed that it falls below its guarantee.
fn excused(request: &Request) -> BTreeSet<VmName> {
    match request {
        Request::Lend { from: vm, below_guarantee: true, .. } | Request::Set { vm, below_guarantee: true, .. } => {
            BTreeSet::from([vm.clone()])
        }
        Request::Rebalance { below, .. } => below.clone(),
        _ => BTreeSet::new(),
    }
}

/// What a VM would hold at start: everything comes from the pool.
pub(crate) fn plan_start(books: &mut Books, spec: &VmSpec) -> Result<TransferPlan, Refusal> {
    if books.specs.contains_key(&spec.name) {
        return Err(Refusal::AlreadyStarted(spec.name.clone()));
    }
    admit(books.host, &books.specs, spec)?;
    let (pool, vm) = (Holder::Pool, Holder::Vm(spec.name.clone()));
    let cores = spec.initial.cores.clone().or_else(|| spec.guarantee.cores.clone()).unwrap_or(CoreDemand::Count(1));
    let memory = spec.initial.memory.clone().or_else(|| spec.guarantee.memory.clone());
    books.specs.insert(spec.name.clone(), spec.clone());
    let mut draft = Draft { books, plan: TransferPlan::default() };
    draft.give(&pool, &vm, &Demand { cores: Some(cores), memory: Some(MemoryDemand::PerNode(spec.boot.clone())) })?;
    let beyond_boot = match memory {
        None => MemoryDemand::Total(Bytes::ZERO),
        Some(MemoryDemand::Total(total)) => {
            MemoryDemand::Total(total.saturating_sub(spec.boot.values().copied().sum()))
        }
        Some(MemoryDemand::PerNode(nodes)) => {
            let booted = |node| spec.boot.get(node).copied().unwrap_or_default();
            MemoryDemand::PerNode(
                nodes.iter().map(|(node, bytes)| (*node, bytes.saturating_sub(booted(node)))).collect(),
            )
        }
    };
    draft.give(&pool, &vm, &Demand { cores: None, memory: Some(beyond_boot) })?;
    books.finish(draft.plan, &BTreeSet::new())
}

/// Why a VM's memory is left as it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unfit {
    Silent,
    Trespasses,
    Fixed(Fixed),
}

impl Unfit {
    fn refusal(self, vm: VmName) -> Refusal {
        match self {
            Self::Silent => Refusal::Silent(vm),
            Self::Trespasses => Refusal::Trespasses(vm),
            Self::Fixed(fixed) => Refusal::Fixed(vm, fixed),
        }
    }

    fn reason(self, vm: VmName) -> Reason {
        match self {
            Self::Silent => Reason::Unanswering(vm),
            Self::Trespasses => Reason::Trespasses(vm),
            Self::Fixed(fixed) => Reason::Fixed(vm, fixed),
        }
    }
}

impl Books<'_> {
    fn running(&self, vm: &VmName) -> Result<(), Refusal> {
        match self.specs.get(vm) {
            None => Err(Refusal::UnknownVm(vm.clone())),
            Some(_) if self.starting.contains(vm) => Err(Refusal::Starting(vm.clone())),
            Some(_) => Ok(()),
        }
    }

    fn finish(&self, plan: TransferPlan, excused: &BTreeSet<VmName>) -> Result<TransferPlan, Refusal> {
        check_plan(self.host, &self.specs, &self.held, &plan, excused, self.offline)?;
        for step in plan.moves.iter().filter(|step| !step.what.memory.is_empty()) {
            if let Some((vm, memory)) = self.unfit(&step.from, &step.to) {
                return Err(memory.refusal(vm));
            }
        }
        Ok(plan)
    }

    /// Which of two VMs memory can neither leave nor reach now, and why.
    fn unfit(&self, from: &Holder, to: &Holder) -> Option<(VmName, Unfit)> {
        let both = || [from, to].into_iter().filter_map(Holder::vm);
        let fixed = both().find_map(|vm| Some((vm, Unfit::Fixed(*self.fixed.get(vm)?))));
        let silent = || both().find(|vm| self.silent.contains(*vm)).map(|vm| (vm, Unfit::Silent));
        let trespasses = || to.vm().filter(|vm| self.trespassing.contains(*vm)).map(|vm| (vm, Unfit::Trespasses));
        let (vm, unfit) = fixed.or_else(silent).or_else(trespasses)?;
        Some((vm.clone(), unfit))
    }

    fn spec(&self, holder: &Holder) -> Option<&VmSpec> {
        match holder {
            Holder::Vm(vm) => self.specs.get(vm),
            _ => None,
        }
    }

    /// Sizes on a node move in multiples of this.
    fn block(&self, holders: [&Holder; 2], node: NodeId) -> Bytes {
        let block = |holder| Some(self.spec(holder)?.devices.get(&node)?.block);
        holders.into_iter().filter_map(block).max().filter(|block| !block.is_zero()).unwrap_or(Bytes::mib(2))
    }

    /// What sizes on every node of `what` can move in multiples of.
    fn largest_block(&self, what: &Resources, holders: [&Holder; 2]) -> Bytes {
        what.memory.keys().map(|node| self.block(holders, *node)).max().unwrap_or(Bytes::mib(2))
    }

    /// Other VMs that have any of `what`.
    fn held_by(&self, what: &Resources, but: &[&Holder]) -> Vec<(Holder, Resources)> {
        let share = |(holder, held): (&Holder, &Resources)| (holder.clone(), held.common(what));
        let useful = |(holder, held): &(Holder, Resources)| {
            matches!(holder, Holder::Vm(_)) && !but.contains(&holder) && !held.is_empty()
        };
        self.held.iter().map(share).filter(useful).collect()
    }
}

/// A plan in the making.
struct Draft<'a> {
    books: &'a Books<'a>,
    plan: TransferPlan,
}

impl Draft<'_> {
    /// What `holder` has, the moves so far taken into account.
    fn has(&self, holder: &Holder) -> Resources {
        let mut has = self.books.held.get(holder).cloned().unwrap_or_default();
        for step in &self.plan.moves {
            if step.from == *holder {
                has = has.saturating_sub(&step.what);
            }
            if step.to == *holder {
                has.add(&step.what);
            }
        }
        has
    }

    /// What `holder` can give: boot memory stays.
    fn can_give(&self, holder: &Holder) -> Resources {
        let boot = self.books.spec(holder).map(|spec| spec.boot.clone()).unwrap_or_default();
        self.has(holder).saturating_sub(&Resources { cpus: CpuSet::new(), memory: boot })
    }

    /// Whether a move that the caller planned is one at all. What it does to promises is for the checker.
    fn movable(&self, step: &Move) -> Result<(), Refusal> {
        let (Move { from, to, what }, books) = (step, self.books);
        let between = |holder: &Holder| matches!(holder, Holder::Pool | Holder::Vm(_));
        if !between(from) || !between(to) || from == to {
            return Err(Refusal::NotBetween { from: from.clone(), to: to.clone() });
        }
        [from, to].into_iter().filter_map(Holder::vm).try_for_each(|vm| books.running(vm))?;
        books.host.whole_cores(&what.cpus).map_err(|split| Refusal::NotWholeCores { split })?;
        if !what.cpus.is_disjoint(books.offline) {
            return Err(Refusal::Offline(what.cpus.intersection(books.offline)));
        }
        for node in what.memory.keys() {
            if let Some(vm) = self.torn(step, *node) {
                return Err(Refusal::TornMemory { vm, node: *node });
            }
        }
        let missing = what.saturating_sub(&self.can_give(from));
        if !missing.is_empty() {
            let held_by = books.held_by(&missing, &[from]);
            return Err(Refusal::NotHeld { from: from.clone(), missing, held_by });
        }
        Ok(())
    }

    /// What of it can be used now.
    fn online(&self, what: Resources) -> Resources {
        let offline = self.books.host.widened(self.books.offline);
        Resources { cpus: what.cpus.difference(&offline), ..what }
    }

    /// A VM has one device for the memory of a node: while it shrinks for one move no other can be told apart from that. The VM
    /// of which `step` would make two.
    fn torn(&self, step: &Move, node: NodeId) -> Option<VmName> {
        let others = || self.plan.moves.iter().filter(|other| other.what.memory.contains_key(&node));
        let vms = [&step.from, &step.to].into_iter().filter_map(Holder::vm);
        let gives = |of: &Move, vm: &VmName| of.from.vm() == Some(vm);
        let gets = |of: &Move, vm: &VmName| of.to.vm() == Some(vm);
        let torn = |vm: &&VmName| others().any(|other| gives(other, vm) || gives(step, vm) && gets(other, vm));
        vms.into_iter().find(torn).cloned()
    }

    fn push(&mut self, from: &Holder, to: &Holder, what: Resources) {
        let mut step = |what: Resources| {
            if !what.is_empty() {
                self.plan.moves.push(Move { from: from.clone(), to: to.clone(), what });
            }
        };
        step(Resources::cores(what.cpus));
        for (node, bytes) in what.memory {
            step(Resources::memory(node, bytes));
        }
    }

    fn give(&mut self, from: &Holder, to: &Holder, what: &Demand) -> Result<(), Refusal> {
        let mut moved = Resources::default();
        if let Some(cores) = &what.cores {
            let (cpus, choices) = self.choose_cores(from, to, cores)?;
            moved.cpus = cpus;
            self.plan.choices.extend(choices);
        }
        if let Some(memory) = &what.memory {
            moved.memory = self.choose_memory(from, to, memory)?;
        }
        self.push(from, to, moved);
        Ok(())
    }

    fn choose_cores(
        &self,
        from: &Holder,
        to: &Holder,
        demand: &CoreDemand,
    ) -> Result<(CpuSet, Vec<CoreChoice>), Refusal> {
        let books = self.books;
        let has = self.can_give(from);
        match demand {
            CoreDemand::Cpus(cpus) => {
                books.host.whole_cores(cpus).map_err(|split| Refusal::NotWholeCores { split })?;
                if !cpus.is_disjoint(books.offline) {
                    return Err(Refusal::Offline(cpus.intersection(books.offline)));
                }
                let missing = Resources::cores(cpus.difference(&has.cpus));
                if missing.is_empty() {
                    return Ok((cpus.clone(), Vec::new()));
                }
                let held_by = books.held_by(&missing, &[from]);
                Err(Refusal::NotHeld { from: from.clone(), missing, held_by })
            }
            CoreDemand::Count(count) => {
                self.wish(from, to, &self.online(has), |wish| wish.cores(*count)).map_err(|available| {
                    let all = Resources::cores(books.host.everything().cpus);
                    let held_by = books.held_by(&all, &[from, to]);
                    Refusal::TooFewCores { from: from.clone(), available, wanted: *count, held_by }
                })
            }
        }
    }

    fn choose_memory(
        &self,
        from: &Holder,
        to: &Holder,
        demand: &MemoryDemand,
    ) -> Result<BTreeMap<NodeId, Bytes>, Refusal> {
        let books = self.books;
        let has = self.can_give(from);
        match demand {
            MemoryDemand::PerNode(nodes) => {
                if let Some(node) = nodes.keys().find(|node| !books.host.memory.contains_key(node)) {
                    return Err(Refusal::NoSuchNode(*node));
                }
                let rounded =
                    |(node, bytes): (&NodeId, &Bytes)| (*node, bytes.round_up(books.block([from, to], *node)));
                let mut wanted = Resources::default();
                for (node, bytes) in nodes.iter().map(rounded) {
                    wanted.add(&Resources::memory(node, bytes));
                }
                let missing = wanted.saturating_sub(&has);
                if missing.is_empty() {
                    return Ok(wanted.memory);
                }
                let all = Resources {
                    cpus: CpuSet::new(),
                    memory: missing.memory.keys().map(|n| (*n, Bytes(u64::MAX))).collect(),
                };
                let held_by = books.held_by(&all, &[from, to]);
                Err(Refusal::NotHeld { from: from.clone(), missing, held_by })
            }
            MemoryDemand::Total(total) => {
                let room = has.common(&self.room(to));
                let block = books.largest_block(&room, [from, to]);
                self.wish(from, to, &room, |wish| wish.memory(*total, block)).map_err(|available| {
                    let held_by =
                        books.held_by(&Resources { cpus: CpuSet::new(), ..books.host.everything() }, &[from, to]);
                    Refusal::TooLittleMemory { from: from.clone(), available, wanted: *total, held_by }
                })
            }
        }
    }

    fn wish<T>(&self, from: &Holder, to: &Holder, has: &Resources, choose: impl Fn(Wish) -> T) -> T {
        let owed_to_recipient = match to {
            Holder::Vm(vm) => self.books.loans.owed(from, vm),
            _ => Resources::default(),
        };
        choose(Wish {
            host: self.books.host,
            from,
            has,
            guarantee: self.books.spec(from).and_then(|spec| spec.guarantee.cores.as_ref()),
            owed_to_recipient: &owed_to_recipient,
            owed: &self.books.loans.owed_by(from),
            recipient: &self.has(to),
        })
    }

    /// How much more memory `holder` could take.
    fn room(&self, holder: &Holder) -> Resources {
        let mut room = Resources { cpus: CpuSet::new(), ..self.books.host.everything() };
        if let Some(spec) = self.books.spec(holder) {
            let has = self.has(holder);
            room = Resources::default();
            for (node, device) in &spec.devices {
                let plugged = has.on(*node).saturating_sub(spec.boot.get(node).copied().unwrap_or_default());
                room.add(&Resources::memory(*node, device.max.saturating_sub(plugged)));
            }
        }
        room
    }

    fn set(&mut self, vm: &VmName, what: &Demand) -> Result<(), Refusal> {
        let (pool, holder) = (Holder::Pool, Holder::Vm(vm.clone()));
        let has = self.has(&holder);
        let mut give = Demand::default();
        let mut take = Demand::default();
        match &what.cores {
            Some(CoreDemand::Count(count)) => {
                let now = self.books.host.count_cores(&has.cpus);
                give.cores = Some(CoreDemand::Count(now.saturating_sub(*count)));
                take.cores = Some(CoreDemand::Count(count.saturating_sub(now)));
            }
            Some(CoreDemand::Cpus(cpus)) => {
                give.cores = Some(CoreDemand::Cpus(has.cpus.difference(cpus)));
                take.cores = Some(CoreDemand::Cpus(cpus.difference(&has.cpus)));
            }
            None => {}
        }
        match &what.memory {
            Some(MemoryDemand::Total(total)) => {
                give.memory = Some(MemoryDemand::Total(has.total_memory().saturating_sub(*total)));
                take.memory = Some(MemoryDemand::Total(total.saturating_sub(has.total_memory())));
            }
            Some(MemoryDemand::PerNode(nodes)) => {
                let part = |difference: &dyn Fn(Bytes, Bytes) -> Bytes| {
                    let each = nodes.iter().map(|(node, bytes)| (*node, difference(*bytes, has.on(*node))));
                    Some(MemoryDemand::PerNode(each.collect()))
                };
                give.memory = part(&|wanted, now| now.saturating_sub(wanted));
                take.memory = part(&|wanted, now| wanted.saturating_sub(now));
            }
            None => {}
        }
        self.give(&holder, &pool, &give)?;
        self.give(&pool, &holder, &take)
    }
}
