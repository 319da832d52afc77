//! Pins: set and ended by people, or by the transfers that people begin; kept over restarts.

use std::collections::BTreeMap;
use std::time::Duration;

use conuma_api::{PinInfo, TransferRequest};
use conuma_balancing::Engine;
use conuma_policy::{Pin, Pins};
use conuma_topology::VmName;

use super::files::KeptPin;
use crate::clock::unix_ms;

pub(super) const BY_PIN: &str = "pin";
const BY_LEND: &str = "lend";
const BY_SET: &str = "set";
const BY_RECALL: &str = "recall";
const BY_REBALANCE: &str = "rebalance";

/// What pinned a VM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Origin {
    pub(super) by: &'static str,
    pub(super) transfer: Option<u64>,
}

/// Where each pin comes from.
#[derive(Debug, Clone, Default)]
pub(super) struct Origins(BTreeMap<VmName, Origin>);

impl Origins {
    pub(super) fn set(&mut self, vm: VmName, origin: Origin) {
        self.0.insert(vm, origin);
    }

    pub(super) fn forget(&mut self, vm: &VmName) {
        self.0.remove(vm);
    }

    /// What made a VM's pin.
    pub(super) fn by(&self, vm: &VmName) -> Option<&'static str> {
        self.0.get(vm).map(|origin| origin.by)
    }

    /// Whether a VM's pin was made by a loan.
    pub(super) fn lent(&self, vm: &VmName) -> bool {
        self.by(vm) == Some(BY_LEND)
    }

    /// A pin, as it is shown.
    pub(super) fn info(&self, vm: &VmName, pin: &Pin) -> PinInfo {
        let origin = self.0.get(vm);
        PinInfo {
            vm: vm.clone(),
            until_unix_ms: pin.until.map(unix_ms),
            by: origin.map_or(BY_PIN, |origin| origin.by).to_owned(),
            transfer: origin.and_then(|origin| origin.transfer),
        }
    }

    /// All pins, as they are kept.
    pub(super) fn to_keep(&self, pins: &Pins) -> Vec<KeptPin> {
        let keep = |(vm, pin): (&VmName, &Pin)| {
            let info = self.info(vm, pin);
            KeptPin { vm: info.vm, until: pin.until, by: info.by, transfer: info.transfer }
        };
        pins.iter().map(keep).collect()
    }

    /// Takes over pins that an earlier daemon kept.
    pub(super) fn restore(&mut self, kept: Vec<KeptPin>, pins: &mut Pins) {
        for KeptPin { vm, until, by, transfer } in kept {
            let known = [BY_PIN, BY_LEND, BY_SET, BY_RECALL, BY_REBALANCE].into_iter().find(|known| *known == by);
            self.set(vm.clone(), Origin { by: known.unwrap_or(BY_PIN), transfer });
            pins.pin(vm, Pin { until });
        }
    }
}

/// What a transfer that people begin means for pins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Meaning {
    /// It pins these VMs.
    Pins(Vec<VmName>, &'static str),
    /// It ends the pins of those among these that loans made.
    Ends(Vec<VmName>),
    /// Nothing.
    Nothing,
}

/// Finds out what a request means for pins, before it changes the loans. `pin_for` is what was said with it.
pub(super) fn meaning(request: &TransferRequest, pin_for: Option<Duration>, engine: &Engine) -> Meaning {
    let pins = pin_for != Some(Duration::ZERO);
    match request {
        TransferRequest::Lend { from, to, .. } if pins => Meaning::Pins(vec![from.clone(), to.clone()], BY_LEND),
        TransferRequest::Set { vm, .. } if pins => Meaning::Pins(vec![vm.clone()], BY_SET),
        TransferRequest::Recall { to, from, what } => {
            let borrowers =
                engine.loans().iter().filter(|loan| loan.lender == *to).filter_map(|loan| loan.borrower.vm());
            let mut vms: Vec<VmName> = match from {
                Some(from) => vec![from.clone()],
                None => borrowers.cloned().collect(),
            };
            vms.push(to.clone());
            match (pin_for, what) {
                (Some(time), _) if !time.is_zero() => Meaning::Pins(vms, BY_RECALL),
                // What is left of the loan is still what people wanted.
                (_, Some(_)) => Meaning::Nothing,
                (_, None) => Meaning::Ends(vms),
            }
        }
        // Of programs that balance themselves.
        request if pin_for.is_some() && pins => Meaning::Pins(named(request), BY_REBALANCE),
        _ => Meaning::Nothing,
    }
}

fn named(request: &TransferRequest) -> Vec<VmName> {
    let TransferRequest::Rebalance { moves, .. } = request else { return Vec::new() };
    let holders = moves.iter().flat_map(|step| [&step.from, &step.to]);
    let vms: std::collections::BTreeSet<VmName> = holders.filter_map(|holder| holder.vm().cloned()).collect();
    vms.into_iter().collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use conuma_api::Demand;
    use conuma_balancing::{Host, Timing};

    fn vm(name: &str) -> VmName {
        name.parse().unwrap()
    }

    #[test]
    fn lend_and_set_pin_and_a_whole_recall_ends_that() {
        let engine = Engine::new(Host::default(), Timing::default());
        let what = Demand::default();
        let lend = TransferRequest::Lend { from: vm("a"), to: vm("b"), what: what.clone(), below_guarantee: false };
        let set = TransferRequest::Set { vm: vm("a"), what: what.clone(), below_guarantee: false };
        let recall = |what| TransferRequest::Recall { to: vm("a"), from: Some(vm("b")), what };
        let of = |request: &TransferRequest, pin_for| meaning(request, pin_for, &engine);
        let second = Some(Duration::from_secs(1));
        assert_eq!(of(&lend, None), Meaning::Pins(vec![vm("a"), vm("b")], BY_LEND));
        assert_eq!(of(&lend, Some(Duration::ZERO)), Meaning::Nothing);
        assert_eq!(of(&set, second), Meaning::Pins(vec![vm("a")], BY_SET));
        assert_eq!(of(&recall(None), None), Meaning::Ends(vec![vm("b"), vm("a")]));
        assert_eq!(of(&recall(Some(what)), None), Meaning::Nothing);
        assert_eq!(of(&recall(None), second), Meaning::Pins(vec![vm("b"), vm("a")], BY_RECALL));
    }

    #[test]
    fn pins_are_kept_and_restored_with_what_made_them() {
        let (mut origins, mut pins) = (Origins::default(), Pins::default());
        let until = Some(Duration::from_millis(1500));
        pins.pin(vm("a"), Pin { until });
        origins.set(vm("a"), Origin { by: BY_LEND, transfer: Some(4) });
        let kept = origins.to_keep(&pins);
        let (mut again, mut pins_again) = (Origins::default(), Pins::default());
        again.restore(kept, &mut pins_again);
        assert_eq!(pins_again, pins);
        assert!(again.lent(&vm("a")) && !again.lent(&vm("b")));
        let info = again.info(&vm("a"), &Pin { until });
        assert_eq!((info.until_unix_ms, info.by.as_str(), info.transfer), (Some(1500), "lend", Some(4)));
    }
}
