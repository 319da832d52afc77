//! What is owed comes back.
//!
//! A claim does not make the borrower poorer than it may be: it keeps boot memory, its last core and its
//! guarantee. Where all that is owed is asked for, whatever can come does, and the plan says what is
//! withheld; what is asked for by name or number comes whole or is refused.

use conuma_topology::{Bytes, CpuSet, NodeId, VmName};

use super::Draft;
use crate::check::{Shortage, excesses, shortages};
use crate::holding::{CoreDemand, Demand, MemoryDemand, Resources};
use crate::ledger::Holder;
use crate::loans::Loan;
use crate::plan::{Move, Refusal, Withheld};
use crate::report::Reason;

/// Parts of a claim, and why each does not come.
type Kept = Vec<(Resources, Reason)>;

impl Draft<'_> {
    pub(super) fn recall(&mut self, to: &VmName, from: Option<&VmName>, what: Option<&Demand>) -> Result<(), Refusal> {
        let what = what.filter(|what| **what != Demand::default());
        let asked =
            |loan: &&Loan| loan.lender == *to && from.is_none_or(|from| loan.borrower == Holder::Vm(from.clone()));
        let loans: Vec<&Loan> = self.books.loans.all().iter().filter(asked).collect();
        if loans.is_empty() && (from.is_some() || what.is_some()) {
            from.map_or(Ok(()), |from| self.books.running(from))?;
            return Err(Refusal::NotLent { lender: to.clone(), borrower: from.cloned() });
        }
        if let Some(what) = what {
            return self.recall_part(to, loans, what);
        }
        let recipient = Holder::Vm(to.clone());
        for loan in loans {
            let (part, kept) = self.can_come(loan, &recipient);
            self.push(&loan.borrower, &recipient, part);
            for (what, why) in kept {
                self.withhold(&loan.borrower, &recipient, what, why);
            }
        }
        if from.is_none() {
            self.fill_up(to);
        }
        Ok(())
    }

    /// What the guarantee still lacks, as far as the pool has it.
    fn fill_up(&mut self, to: &VmName) {
        let (books, recipient) = (self.books, Holder::Vm(to.clone()));
        let Some(spec) = books.specs.get(to) else { return };
        let unfit = books.unfit(&Holder::Pool, &recipient).map(|(vm, why)| why.reason(vm));
        let unfit = |short: &Shortage| unfit.clone().filter(|_| is_memory(short));
        for short in shortages(books.host, &spec.guarantee, &self.has(&recipient)) {
            if unfit(&short).is_none() {
                let demand = self.what_the_pool_has(short, &recipient);
                // What was cut down to what the pool has is there; rounding alone can still be too much.
                let _nothing_there = self.give(&Holder::Pool, &recipient, &demand);
            }
        }
        for short in shortages(books.host, &spec.guarantee, &self.has(&recipient)) {
            let why = unfit(&short).unwrap_or(Reason::PoolLacks(short));
            self.withhold(&Holder::Pool, &recipient, Resources::default(), why);
        }
    }

    fn what_the_pool_has(&self, short: Shortage, recipient: &Holder) -> Demand {
        let books = self.books;
        let pool = self.can_give(&Holder::Pool);
        let free = pool.common(&self.room(recipient));
        let cores = |cores| Demand { cores: Some(cores), memory: None };
        let memory = |memory| Demand { cores: None, memory: Some(memory) };
        match short {
            Shortage::Cores(n) => cores(CoreDemand::Count(n.min(books.host.count_cores(&pool.cpus)))),
            Shortage::Cpus(cpus) => cores(CoreDemand::Cpus(books.host.whole_part(&cpus.intersection(&pool.cpus)))),
            Shortage::Memory(bytes) => memory(MemoryDemand::Total(bytes.min(free.total_memory()))),
            Shortage::NodeMemory(node, bytes) => {
                let block = books.block([&Holder::Pool, recipient], node);
                let bytes = bytes.min(free.on(node).round_down(block));
                memory(MemoryDemand::PerNode([(node, bytes)].into()))
            }
        }
    }

    /// So much of what one VM owes, and before that of what the pool does.
    fn recall_part(&mut self, to: &VmName, mut loans: Vec<&Loan>, what: &Demand) -> Result<(), Refusal> {
        let (books, recipient) = (self.books, Holder::Vm(to.clone()));
        if let Some(CoreDemand::Cpus(cpus)) = &what.cores {
            books.host.whole_cores(cpus).map_err(|split| Refusal::NotWholeCores { split })?;
        }
        let borrowers: Vec<VmName> =
            loans.iter().filter_map(|loan| books.spec(&loan.borrower)).map(|spec| spec.name.clone()).collect();
        if borrowers.len() > 1 {
            return Err(Refusal::SeveralBorrowers { lender: to.clone(), borrowers });
        }
        loans.sort_by_key(|loan| loan.borrower != Holder::Pool);
        let (mut owed, mut comes) = (Resources::default(), Resources::default());
        let (mut sources, mut kept) = (Vec::new(), Vec::new());
        for loan in loans {
            let (part, not) = self.can_come(loan, &recipient);
            owed.add(&loan.what);
            comes.add(&part);
            kept.extend(not.into_iter().map(|(what, why)| (&loan.borrower, what, why)));
            sources.push((&loan.borrower, part));
        }
        let Some((borrower, _)) = sources.last() else { return Ok(()) };
        if let Some(beyond) = shortages(books.host, what, &owed).into_iter().next() {
            return Err(Refusal::NotOwed { lender: to.clone(), borrower: (*borrower).clone(), owed, beyond });
        }
        if let Some(excess) = shortages(books.host, what, &comes).into_iter().next() {
            let of_its_kind = |(_, what, _): &(_, Resources, _)| what.cpus.is_empty() == is_memory(&excess);
            return Err(match kept.into_iter().find(of_its_kind) {
                Some((borrower, what, Reason::DonorNeeds)) => Refusal::Needed { borrower: borrower.clone(), what },
                Some((_, _, Reason::Unanswering(vm))) => Refusal::Silent(vm),
                Some((_, _, Reason::Trespasses(vm))) => Refusal::Trespasses(vm),
                Some((_, _, Reason::Fixed(vm, why))) => Refusal::Fixed(vm, why),
                _ => Refusal::BeyondLimit { vm: to.clone(), excess },
            });
        }
        let mut rest = what.clone();
        for (borrower, part) in sources {
            let part = self.share(&mut rest, borrower, &recipient, &part);
            self.push(borrower, &recipient, part);
        }
        Ok(())
    }

    /// As much of `part` as `rest` still asks for, which is then less.
    fn share(&mut self, rest: &mut Demand, from: &Holder, to: &Holder, part: &Resources) -> Resources {
        let mut share = Resources::default();
        match &mut rest.cores {
            Some(CoreDemand::Count(count)) => {
                share.cpus = self.at_most(*count, part.cpus.clone(), from, to);
                *count = count.saturating_sub(self.books.host.count_cores(&share.cpus));
            }
            Some(CoreDemand::Cpus(cpus)) => share.cpus = cpus.intersection(&part.cpus),
            None => {}
        }
        let books = self.books;
        match &mut rest.memory {
            Some(MemoryDemand::Total(total)) => {
                share.memory = part_of(part, *total, |node| books.block([from, to], node)).memory;
                *total = total.saturating_sub(share.total_memory());
            }
            Some(MemoryDemand::PerNode(nodes)) => {
                for (node, bytes) in nodes {
                    let taken = bytes.round_up(books.block([from, to], *node)).min(part.on(*node));
                    share.add(&Resources::memory(*node, taken));
                    *bytes = bytes.saturating_sub(taken);
                }
            }
            None => {}
        }
        share
    }

    /// Of a loan, what can come now; and what cannot, with the reason.
    fn can_come(&mut self, loan: &Loan, to: &Holder) -> (Resources, Kept) {
        let owed = loan.what.common(&self.has(&loan.borrower));
        let spared = self.spared(owed.common(&self.can_give(&loan.borrower)), &loan.borrower, to);
        let mut comes = self.fitting(spared.clone(), &loan.borrower, to);
        let mut kept =
            vec![(owed.saturating_sub(&spared), Reason::DonorNeeds), (spared.saturating_sub(&comes), Reason::NoRoom)];
        if let Some((vm, why)) = self.books.unfit(&loan.borrower, to) {
            let memory = std::mem::take(&mut comes.memory);
            kept.push((Resources { cpus: CpuSet::new(), memory }, why.reason(vm)));
        }
        kept.retain(|(what, _)| !what.is_empty());
        (comes, kept)
    }

    /// What `from` can spare of `part`: it keeps a core, and its guarantee.
    pub(super) fn spared(&mut self, part: Resources, from: &Holder, to: &Holder) -> Resources {
        let books = self.books;
        let Some(spec) = books.spec(from) else { return part };
        let has = self.has(from);
        let short = shortages(books.host, &spec.guarantee, &has.saturating_sub(&part));
        let spared = self.reduced(part, short, from, to);
        let last = has.cpus.is_subset(&spared.cpus).then_some(Shortage::Cores(1));
        self.reduced(spared, last, from, to)
    }

    /// What of `part` does not take `to` beyond its limit or its devices.
    pub(super) fn fitting(&mut self, part: Resources, from: &Holder, to: &Holder) -> Resources {
        let books = self.books;
        let Some(spec) = books.spec(to) else { return part };
        let fits = Resources { memory: part.common(&self.room(to)).memory, cpus: part.cpus };
        let mut then = self.has(to);
        then.add(&fits);
        self.reduced(fits, excesses(books.host, &spec.limit, &then), from, to)
    }

    /// `part` without as much as `by` says, in whole cores and blocks.
    fn reduced(
        &mut self,
        mut part: Resources,
        by: impl IntoIterator<Item = Shortage>,
        from: &Holder,
        to: &Holder,
    ) -> Resources {
        let books = self.books;
        let block = |node| books.block([from, to], node);
        for less in by {
            match less {
                Shortage::Cores(n) => {
                    let most = books.host.count_cores(&part.cpus).saturating_sub(n);
                    part.cpus = self.at_most(most, part.cpus, from, to);
                }
                Shortage::Cpus(cpus) => part.cpus = books.host.whole_part(&part.cpus.difference(&cpus)),
                Shortage::Memory(bytes) => part = part.saturating_sub(&part_of(&part, bytes, block)),
                Shortage::NodeMemory(node, bytes) => {
                    part = part.saturating_sub(&Resources::memory(node, bytes.round_up(block(node))));
                }
            }
        }
        part
    }

    /// The best `most` cores of `cpus`: first those that the recipient's guarantee names.
    fn at_most(&mut self, most: usize, cpus: CpuSet, from: &Holder, to: &Holder) -> CpuSet {
        let host = self.books.host;
        if host.count_cores(&cpus) <= most {
            return cpus;
        }
        let named = match self.books.spec(to).and_then(|spec| spec.guarantee.cores.as_ref()) {
            Some(CoreDemand::Cpus(named)) => host.whole_part(&cpus.intersection(named)),
            _ => CpuSet::new(),
        };
        let first = most.min(host.count_cores(&named));
        let mut chosen = CpuSet::new();
        for (count, of) in [(first, named.clone()), (most - first, cpus.difference(&named))] {
            if let Ok((cores, choices)) = self.wish(from, to, &Resources::cores(of), |wish| wish.cores(count)) {
                chosen = chosen.union(&cores);
                self.plan.choices.extend(choices);
            }
        }
        chosen
    }

    fn withhold(&mut self, from: &Holder, to: &Holder, what: Resources, why: Reason) {
        let step = Move { from: from.clone(), to: to.clone(), what };
        self.plan.withheld.push(Withheld { step, why });
    }
}

fn is_memory(short: &Shortage) -> bool {
    matches!(short, Shortage::Memory(_) | Shortage::NodeMemory(..))
}

/// So much of the memory of `what`, in whole blocks.
fn part_of(what: &Resources, bytes: Bytes, block: impl Fn(NodeId) -> Bytes) -> Resources {
    let mut part = Resources::default();
    for (node, there) in &what.memory {
        let rest = bytes.saturating_sub(part.total_memory());
        part.add(&Resources::memory(*node, rest.round_up(block(*node)).min(*there)));
    }
    part
}
