//! The control core of the policy: samples in, decisions out. All state is in one value; times come in as durations since any
//! start, and must not run backwards.

mod cores;
mod decide;
mod memory;
mod view;

use std::collections::BTreeMap;
use std::time::Duration;

use conuma_balancing::{Host, Resources};
use conuma_topology::VmName;

use crate::decision::Decision;
use crate::demand::{Estimate, Estimator, STALE};
use crate::host::{HostEstimator, HostNeed, HostSample};
use crate::pins::Pins;
use crate::rules::Rules;
use crate::sample::Sample;
use crate::scene::{Layout, Scene};
use crate::stability::Stability;

/// A guest that has reported and says nothing for so long gets no more than its fair share.
const MUTE: Duration = STALE.saturating_mul(4);

/// Decides. Deterministic: the same calls with the same times give the same decisions.
#[derive(Debug, Clone, Default)]
pub struct Balancer {
    rules: Rules,
    pins: Pins,
    estimators: BTreeMap<VmName, Estimator>,
    host: HostEstimator,
    stability: Stability,
}

impl Balancer {
    /// One that knows of no load yet.
    pub fn new(rules: Rules) -> Self {
        Self { rules, ..Self::default() }
    }

    /// The policy in force.
    pub fn rules(&self) -> &Rules {
        &self.rules
    }

    /// From now on another policy holds. What is known of loads stays.
    pub fn set_rules(&mut self, rules: Rules) {
        self.rules = rules;
    }

    /// What people set by hand.
    pub fn pins(&self) -> &Pins {
        &self.pins
    }

    /// To set and end pins.
    pub fn pins_mut(&mut self) -> &mut Pins {
        &mut self.pins
    }

    /// Learns of a VM's load, taken while it held `holding`.
    pub fn observe(&mut self, vm: &VmName, sample: Sample, holding: &Resources, layout: &Layout) {
        let estimator = self.estimators.entry(vm.clone()).or_default();
        estimator.observe(sample, holding, layout, &self.rules.tuning);
    }

    /// Learns how the host does.
    pub fn observe_host(&mut self, sample: &HostSample, host: &Host, now: Duration) {
        self.host.observe(sample, host, &self.rules.tuning, now);
    }

    /// A VM has ended: nothing is known of it any more.
    pub fn forget(&mut self, vm: &VmName) {
        self.estimators.remove(vm);
        self.stability.forget(vm);
    }

    /// VMs of which something is known.
    pub fn known(&self) -> impl Iterator<Item = &VmName> {
        self.estimators.keys()
    }

    /// What a VM is believed to want, if that is known and not too old.
    pub fn estimate(&self, vm: &VmName, now: Duration) -> Option<&Estimate> {
        self.estimators.get(vm)?.estimate(now)
    }

    /// Whether a VM that has reported has not done so for long.
    fn is_mute(&self, vm: &VmName, now: Duration) -> bool {
        let last = self.estimators.get(vm).and_then(|estimator| estimator.last().at);
        last.is_some_and(|at| now.saturating_sub(at) > MUTE)
    }

    /// What the host needs besides its reserve.
    pub fn host_need(&self) -> &HostNeed {
        self.host.need()
    }

    /// What should move now. Changes nothing: tell [`Balancer::begun`] if it is carried out.
    pub fn decide(&self, scene: &Scene<'_>, now: Duration) -> Decision {
        decide::decide(self, scene, now)
    }

    /// A decision is being carried out.
    pub fn begun(&mut self, decision: &Decision, now: Duration) {
        self.stability.begun(decision, now, &self.rules.tuning);
    }
}
