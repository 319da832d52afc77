//! Who owes what to whom.
//!
//! A loan is a claim, not a holding: the ledger alone says who holds a thing. One rule keeps the
//! claims in step with it. When `what` moves from one holder to another,
//! 1. what the giver owed the recipient is repaid;
//! 2. what the giver owed others is owed by the recipient from now on. For cores that is exact.
//!    Memory has no name: a giver passes on only what it owes beyond what it still holds;
//! 3. if one VM lends it to another, what is left is a new loan.
//!
//! The pool can owe: a borrower that ended, or gave up what it had borrowed, leaves it there.

use conuma_topology::VmName;
use serde::{Deserialize, Serialize};

use crate::holding::Resources;
use crate::ledger::Holder;

/// What a VM gave to another and can have back.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Loan {
    /// Who gets it back.
    pub lender: VmName,
    /// Who owes it: a VM or the pool.
    pub borrower: Holder,
    /// What.
    pub what: Resources,
}

/// All loans: at most one for each pair.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub(crate) struct Loans(Vec<Loan>);

/// Whether a move between two VMs is remembered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Remember {
    /// As a loan.
    Yes,
    /// Not: it only repays or passes on.
    No,
}

impl Loans {
    /// All of them.
    pub(crate) fn all(&self) -> &[Loan] {
        &self.0
    }

    /// What `borrower` owes anyone.
    pub(crate) fn owed_by(&self, borrower: &Holder) -> Resources {
        let mut sum = Resources::default();
        for loan in self.0.iter().filter(|loan| loan.borrower == *borrower) {
            sum.add(&loan.what);
        }
        sum
    }

    /// What `borrower` owes `lender`.
    pub(crate) fn owed(&self, borrower: &Holder, lender: &VmName) -> Resources {
        let loan = self.0.iter().find(|loan| loan.borrower == *borrower && loan.lender == *lender);
        loan.map(|loan| loan.what.clone()).unwrap_or_default()
    }

    /// `what` arrived with `to`; it came from `from`, which still holds `left`.
    pub(crate) fn moved(&mut self, what: &Resources, from: &Holder, to: &Holder, left: &Resources, new: Remember) {
        let mut rest = what.clone();
        if let Holder::Vm(recipient) = to {
            let repaid = self.owed(from, recipient).common(&rest);
            self.reduce(from, recipient, &repaid);
            rest.take(&repaid);
        }
        let mut passed = self.owed_by(from).saturating_sub(left).common(&rest);
        for lender in self.lenders(from) {
            let part = self.owed(from, &lender).common(&passed);
            self.reduce(from, &lender, &part);
            self.increase(&lender, to, &part);
            passed.take(&part);
            rest.take(&part);
        }
        if let (Holder::Vm(lender), Holder::Vm(_), Remember::Yes) = (from, to, new) {
            self.increase(lender, to, &rest);
        }
    }

    /// `vm` ended: nothing is owed to it any more, and what it owed is with the pool.
    pub(crate) fn ended(&mut self, vm: &VmName) {
        self.0.retain(|loan| loan.lender != *vm);
        let borrower = Holder::Vm(vm.clone());
        for lender in self.lenders(&borrower) {
            let what = self.owed(&borrower, &lender);
            self.reduce(&borrower, &lender, &what);
            self.increase(&lender, &Holder::Pool, &what);
        }
    }

    fn lenders(&self, borrower: &Holder) -> Vec<VmName> {
        self.0.iter().filter(|loan| loan.borrower == *borrower).map(|loan| loan.lender.clone()).collect()
    }

    fn reduce(&mut self, borrower: &Holder, lender: &VmName, by: &Resources) {
        for loan in self.0.iter_mut().filter(|loan| loan.borrower == *borrower && loan.lender == *lender) {
            loan.what = loan.what.saturating_sub(by);
        }
        self.0.retain(|loan| !loan.what.is_empty());
    }

    fn increase(&mut self, lender: &VmName, borrower: &Holder, by: &Resources) {
        if by.is_empty() {
            return;
        }
        match self.0.iter_mut().find(|loan| loan.borrower == *borrower && loan.lender == *lender) {
            Some(loan) => loan.what.add(by),
            None => self.0.push(Loan { lender: lender.clone(), borrower: borrower.clone(), what: by.clone() }),
        }
    }
}

#[cfg(test)]
mod tests {
    use conuma_topology::{Bytes, CpuSet, NodeId};

    use super::*;

    fn vm(name: &str) -> Holder {
        Holder::Vm(name.parse().expect("a name"))
    }

    fn cpus(list: &str) -> Resources {
        Resources::cores(list.parse::<CpuSet>().expect("a list"))
    }

    fn show(loans: &Loans) -> Vec<String> {
        loans.all().iter().map(|loan| format!("{} owes {} {}", loan.borrower, loan.lender, loan.what)).collect()
    }

    #[test]
    fn lending_back_repays() {
        let mut loans = Loans::default();
        loans.moved(&cpus("4-7"), &vm("a"), &vm("b"), &cpus("0-3"), Remember::Yes);
        loans.moved(&cpus("4-5,8"), &vm("b"), &vm("a"), &cpus("6-7,9"), Remember::Yes);
        assert_eq!(show(&loans), ["b owes a CPUs 6-7", "a owes b CPUs 8"]);
    }

    #[test]
    fn lending_on_passes_the_claim() {
        let mut loans = Loans::default();
        loans.moved(&cpus("4-5"), &vm("a"), &vm("b"), &cpus("0-3"), Remember::Yes);
        loans.moved(&cpus("5-6"), &vm("b"), &vm("c"), &cpus("4,7"), Remember::Yes);
        assert_eq!(show(&loans), ["b owes a CPUs 4", "c owes a CPUs 5", "c owes b CPUs 6"]);
    }

    #[test]
    fn memory_passes_on_only_what_is_owed_beyond_what_is_held() {
        let on0 = |mib| Resources::memory(NodeId(0), Bytes::mib(mib));
        let mut loans = Loans::default();
        loans.moved(&on0(256), &vm("a"), &vm("b"), &on0(512), Remember::Yes);
        loans.moved(&on0(128), &vm("b"), &vm("c"), &on0(384), Remember::Yes);
        loans.moved(&on0(256), &vm("b"), &Holder::Pool, &on0(128), Remember::No);
        assert_eq!(show(&loans), ["b owes a node0=128M", "c owes b node0=128M", "the pool owes a node0=128M"]);
    }

    #[test]
    fn a_borrower_that_ends_leaves_the_claim_with_the_pool() {
        let mut loans = Loans::default();
        loans.moved(&cpus("4-5"), &vm("a"), &vm("b"), &cpus("0-3"), Remember::Yes);
        loans.ended(&"b".parse().expect("a name"));
        assert_eq!(show(&loans), ["the pool owes a CPUs 4-5"]);
        loans.moved(&cpus("4"), &Holder::Pool, &vm("a"), &cpus("5"), Remember::No);
        assert_eq!(show(&loans), ["the pool owes a CPUs 5"]);
    }
}
