//! After a restart: from the journal and from what is found on the host to a ledger that is true again.
//!
//! VMs ran on meanwhile with what they last had. The rules:
//! 1. **What is found on the host wins.** The CPU of an open gate and plugged or requested memory are booked to their VM,
//!    whatever the journal says; so is, without a journal, the CPU of a vCPU that runs behind a soft gate. If that needs what the journal gave to
//!    another, the other must lose it: an open gate goes to whom the journal names, and the other VM's gate is closed.
//! 2. **What was taken is given; what was not taken stays.** Every transfer under way is cut: what is in
//!    transit goes to its heir in the ledger, all else stays with its giver.
//! 3. **The duties do the rest.** They bring gates, guests and QEMU in step with the ledger; an agent
//!    tells its newest generation when it connects.
//! 4. **No journal is no reason not to start**: then the ledger is what is found, and loans are forgotten. Of a journal
//!    about another host (another reserve, say) only the loans count.

use std::collections::BTreeMap;
use std::time::Duration;

use conuma_topology::{CpuSet, VmName};
use serde::{Deserialize, Serialize};

use crate::action::{Event, VmSeen};
use crate::check::{check_against_reality, usable};
use crate::control::Vm;
use crate::engine::{Engine, State};
use crate::holding::Resources;
use crate::host::Host;
use crate::ledger::{Holder, Ledger};
use crate::report::{Notice, Reason, Stage};
use crate::timing::Timing;
use crate::vm::VmSpec;

/// A VM that was found running.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmFound {
    /// As its owner described it when it was started.
    pub spec: VmSpec,
    /// What is in force for it.
    pub seen: VmSeen,
}

impl Engine {
    /// The engine after a restart of the daemon. `journal` is what was last written, if it can be read;
    /// `found` are the VMs whose QEMU runs. What does not add up is told as [`Notice::Violated`].
    pub fn recover(
        journal: Option<State>,
        host: Host,
        mut found: BTreeMap<VmName, VmFound>,
        timing: Timing,
        now: Duration,
    ) -> Self {
        let known = journal.as_ref().is_some_and(|state| state.host == host);
        let state = match journal {
            Some(state) if known => state,
            Some(state) => state.for_another(host, &found),
            None => State::new(host),
        };
        let mut engine = Self::with(state, timing, now);
        let gone: Vec<VmName> = engine.state.vms.keys().filter(|name| !found.contains_key(*name)).cloned().collect();
        for name in gone {
            engine.update(Event::VmGone { vm: name }, now);
        }
        engine.cut_transfers(now);
        if known {
            // By running there a guest gets no CPU that was not to be its own.
            for (name, vm) in &mut found {
                vm.seen.runs_on = vm.seen.runs_on.intersection(&engine.state.ledger.vm(name).cpus);
            }
        }
        let raised = reconciled(&engine.state.ledger, &engine.state.host, &found);
        let journal = std::mem::replace(&mut engine.state.ledger, raised);
        let record = if known { &journal } else { &engine.state.ledger };
        // What a guest does behind a closed gate is for its brake to find, not for the ledger.
        let gates = |vm: &VmFound| VmSeen { runs_on: CpuSet::new(), ..vm.seen.clone() };
        let seen: Vec<(&VmSpec, VmSeen)> = found.values().map(|vm| (&vm.spec, gates(vm))).collect();
        let wrong = check_against_reality(&engine.state.host, record, seen.iter().map(|(spec, seen)| (*spec, seen)));
        engine.notices.extend(wrong.into_iter().map(Notice::Violated));
        engine.state.vms = found.into_iter().map(|(name, vm)| (name, resumed(vm, now))).collect();
        engine
    }

    fn cut_transfers(&mut self, now: Duration) {
        for (id, mut transfer) in std::mem::take(&mut self.state.transfers) {
            for leg in transfer.legs.iter_mut().filter(|leg| leg.stage != Stage::Done) {
                let giver = leg.from.clone();
                if leg.taken {
                    let rest = leg.load.saturating_sub(&leg.report.arrived);
                    let (transit, heir) = (Holder::Transit(id), leg.heir.clone());
                    self.shift(&rest, &transit, &heir);
                    if heir == leg.to {
                        leg.arrived(&rest, self);
                    } else {
                        leg.falls_short(rest, Reason::RecipientGone, &heir);
                    }
                } else {
                    let load = leg.load.clone();
                    leg.falls_short(load, Reason::Interrupted, &giver);
                }
                leg.end(now);
            }
            self.end(transfer, now);
        }
        self.state.pending.clear();
    }
}

impl State {
    /// What of this state is still worth something on `host`.
    fn for_another(self, host: Host, found: &BTreeMap<VmName, VmFound>) -> Self {
        let Self { mut loans, ended, next_action, next_transfer, .. } = self;
        self.vms.keys().filter(|name| !found.contains_key(*name)).for_each(|name| loans.ended(name));
        Self { loans, ended, next_action, next_transfer, ..Self::new(host) }
    }
}

fn resumed(found: VmFound, now: Duration) -> Vm {
    let mut vm = Vm::starting(found.spec);
    vm.started(&found.seen, now);
    vm
}

/// The ledger, raised to what is found wherever that is more. What is missing for that is drawn from
/// where it is least surely used: the pool, what other accounts hold beyond what is found of them, and at
/// last the reserve.
fn reconciled(journal: &Ledger, host: &Host, found: &BTreeMap<VmName, VmFound>) -> Ledger {
    let mut ledger = journal.clone();
    let in_use: BTreeMap<Holder, Resources> =
        found.iter().map(|(name, vm)| (Holder::Vm(name.clone()), usable(&vm.spec, &vm.seen))).collect();
    let sole = sole_users(journal, &in_use, found);
    for (holder, used) in &in_use {
        let mut needed = used.saturating_sub(ledger.held(holder));
        needed.cpus = host.widened(&needed.cpus.intersection(&sole[holder]));
        let mut sources: Vec<Holder> = ledger.accounts().map(|(source, _)| source).collect();
        sources.sort_by_key(|source| (*source == Holder::Reserve, *source != Holder::Pool));
        for source in sources.into_iter().filter(|source| source != holder) {
            let kept = in_use
                .get(&source)
                .map(|used| Resources { cpus: used.cpus.intersection(&sole[&source]), memory: used.memory.clone() });
            let spare = ledger.held(&source).saturating_sub(&kept.unwrap_or_default());
            let mut part = spare.common(&needed);
            part.cpus = host.whole_part(&part.cpus);
            if ledger.shift(&part, &source, holder).is_ok() {
                needed = needed.saturating_sub(&part);
            }
        }
    }
    ledger
}

/// Of the CPUs that each VM can use, those that are to be its own: where several can, the one that the journal names,
/// or else the first whose gate is open, or else the first.
fn sole_users(
    journal: &Ledger,
    in_use: &BTreeMap<Holder, Resources>,
    found: &BTreeMap<VmName, VmFound>,
) -> BTreeMap<Holder, CpuSet> {
    let mut sole = BTreeMap::new();
    let mut given = CpuSet::new();
    for (holder, used) in in_use {
        let own = used.cpus.intersection(&journal.held(holder).cpus);
        given = given.union(&own);
        sole.insert(holder.clone(), own);
    }
    let open = found.iter().map(|(name, vm)| (Holder::Vm(name.clone()), &vm.seen.open));
    let any = in_use.iter().map(|(holder, used)| (holder.clone(), &used.cpus));
    for (holder, cpus) in open.chain(any) {
        let more = cpus.difference(&given);
        given = given.union(&more);
        let own: &mut CpuSet = sole.entry(holder).or_default();
        *own = own.union(&more);
    }
    sole
}
