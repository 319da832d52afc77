//! What came to nothing lately, and is not tried again at once: a guest that refuses, keeps its memory or does not take any, or a request
//! that the engine refused. The knobs concerned count as busy, so that the next decision goes to others; each time it happens again,
//! for twice as long.

use std::collections::BTreeMap;
use std::time::Duration;

use conuma_balancing::{Move, Reason, Report};
use conuma_policy::VmScene;
use conuma_topology::{NodeId, VmName};

/// The first time, and at most.
const WAIT: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));

/// The cores of a VM, or its memory on a node.
type Knob = (VmName, Option<NodeId>);

/// Knobs that are left alone for a while.
#[derive(Debug, Default)]
pub(super) struct Setbacks(BTreeMap<Knob, Setback>);

#[derive(Debug, Clone, Copy)]
struct Setback {
    until: Duration,
    wait: Duration,
}

impl Setbacks {
    /// A transfer ended.
    pub(super) fn learn(&mut self, report: &Report, now: Duration) {
        for leg in &report.legs {
            let Move { from, to, .. } = &leg.planned;
            if leg.shortfalls.is_empty() {
                for (vm, node) in leg.planned.turns() {
                    self.0.remove(&(vm.clone(), node));
                }
            }
            for shortfall in &leg.shortfalls {
                let whose = match &shortfall.why {
                    Reason::Fixed(vm, _) => Some(vm),
                    Reason::RecipientDidNotTake | Reason::RecipientGone | Reason::NoRoom => to.vm(),
                    _ => from.vm(),
                };
                for (vm, node) in leg.planned.turns().filter(|(vm, _)| whose == Some(*vm)) {
                    self.again((vm.clone(), node), now);
                }
            }
        }
    }

    /// Moves were refused before they began.
    pub(super) fn refused(&mut self, moves: &[Move], now: Duration) {
        for knob in moves.iter().flat_map(Move::turns) {
            self.again((knob.0.clone(), knob.1), now);
        }
    }

    /// A VM has ended or boots anew.
    pub(super) fn forget(&mut self, vm: &VmName) {
        self.0.retain(|(other, _), _| other != vm);
    }

    /// What is left alone of a VM counts as busy.
    pub(super) fn apply(&self, vm: &mut VmScene, now: Duration) {
        let of = self.0.range((vm.name.clone(), None)..).take_while(|((name, _), _)| *name == vm.name);
        for ((_, node), setback) in of {
            match node {
                _ if setback.until <= now => {}
                None => vm.busy.cores = true,
                Some(node) => drop(vm.busy.memory.insert(*node)),
            }
        }
    }

    fn again(&mut self, knob: Knob, now: Duration) {
        let wait = match self.0.get(&knob) {
            // Several of one transfer count once.
            Some(before) if before.until > now => return,
            Some(before) => (before.wait * 2).min(WAIT.1),
            None => WAIT.0,
        };
        self.0.insert(knob, Setback { until: now + wait, wait });
    }
}

#[cfg(test)]
mod tests {
    use conuma_balancing::{Holder, Resources};
    use conuma_topology::{Bytes, CpuSet};

    use super::*;

    #[test]
    fn what_fails_again_is_left_alone_for_longer() {
        let step = Move {
            from: Holder::Vm("a".parse().unwrap()),
            to: Holder::Pool,
            what: Resources::memory(NodeId(1), Bytes::mib(2)),
        };
        let (mut setbacks, mut now) = (Setbacks::default(), Duration::from_secs(100));
        let mut waits = Vec::new();
        for _ in 0..8 {
            setbacks.refused(&[step.clone(), step.clone()], now);
            let setback = setbacks.0[&("a".parse().unwrap(), Some(NodeId(1)))];
            waits.push((setback.until - now).as_secs());
            now = setback.until;
        }
        assert_eq!(waits, [1, 2, 4, 8, 16, 32, 60, 60]);
        assert!(!setbacks.0.contains_key(&("a".parse().unwrap(), None)), "its cores have done nothing");
        assert_eq!(CpuSet::new(), step.what.cpus);
        setbacks.forget(&"a".parse().unwrap());
        assert!(setbacks.0.is_empty());
    }
}
