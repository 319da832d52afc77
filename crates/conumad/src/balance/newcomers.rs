//! Room for VMs that should start. The policy gives away what nobody holds; so where it decides, it also makes room again for
//! what a VM is to begin with, as for a guarantee that is needed.

use std::collections::BTreeSet;
use std::time::Duration;

use conuma_balancing::{Demand, Holder, VmSpec};
use conuma_policy::{Decision, Mode, VmScene};
use conuma_topology::VmName;
use tokio::sync::oneshot;

use super::{Cause, Manager, Snapshot};

/// What was made free is kept free for so long: until then the VM has been admitted.
const KEPT: Duration = Duration::from_secs(2);

/// A VM for which room is made.
pub(super) struct Newcomer {
    pub(super) spec: VmSpec,
    scene: VmScene,
    until: Duration,
    /// Who waits; `None` once it was answered.
    reply: Option<oneshot::Sender<bool>>,
}

impl Newcomer {
    /// Until it exists it goes by another name, of which the policy file says nothing.
    fn new(name: VmName, spec: VmSpec, weight: u32, until: Duration, reply: oneshot::Sender<bool>) -> Self {
        let begins_with = Demand {
            cores: spec.initial.cores.clone().or_else(|| spec.guarantee.cores.clone()),
            memory: spec.initial.memory.clone().or_else(|| spec.guarantee.memory.clone()),
        };
        let of = spec.clone();
        let scene = VmScene { name, guarantee: begins_with, takes_memory: true, ..newcomer(of, weight) };
        Self { spec, scene, until, reply: Some(reply) }
    }

    fn answer(&mut self, room: bool) {
        if let Some(reply) = self.reply.take() {
            // Whoever asked may have gone.
            let _ = reply.send(room);
        }
    }
}

impl Manager {
    /// Makes room for a VM that should start, and answers when there is, or when there is not going to be.
    pub(super) fn make_room(&mut self, spec: VmSpec, weight: u32, reply: oneshot::Sender<bool>) {
        if self.mode() != Mode::Auto {
            let _ = reply.send(false);
            return;
        }
        let until = self.room.clock.now() + self.room.settings.timing.shrink;
        let taken = |name: &VmName| {
            self.room.entries().contains_key(name)
                || self.balancer.rules().vms.contains_key(name)
                || self.newcomers.iter().any(|other| other.scene.name == *name)
        };
        let mut names = (0..).filter_map(|number| format!("new-{number}").parse::<VmName>().ok());
        let name = names.find(|name| !taken(name)).unwrap_or_else(|| spec.name.clone());
        self.newcomers.push(Newcomer::new(name, spec, weight, until, reply));
        self.wake(Cause::Start, Duration::ZERO);
    }

    /// VMs that should start, as the policy sees them.
    pub(super) fn newcomers(&self) -> Vec<VmScene> {
        self.newcomers.iter().map(|newcomer| newcomer.scene.clone()).collect()
    }

    /// Answers those for whom there is room now, or for whom nothing more can be done.
    pub(super) fn settle_newcomers(&mut self, snapshot: &Snapshot) {
        let (auto, at_work) = (self.mode() == Mode::Auto, !self.under_way.is_empty());
        let here = |name: &VmName| {
            snapshot.vm(name).is_some() || snapshot.starting.iter().any(|(starting, _)| starting.name == *name)
        };
        self.newcomers.retain_mut(|newcomer| {
            if here(&newcomer.spec.name) || snapshot.now >= newcomer.until {
                newcomer.answer(false);
                return false;
            }
            if newcomer.reply.is_none() {
                return true;
            }
            if snapshot.rooms.contains(&newcomer.spec.name) {
                newcomer.until = snapshot.now + KEPT;
                newcomer.answer(true);
                return true;
            }
            let hopes = auto && at_work;
            if !hopes {
                newcomer.answer(false);
            }
            hopes
        });
    }
}

/// What is decided for VMs that do not exist yet goes to the pool, from which they begin.
pub(super) fn into_pool(mut made: Decision, newcomers: &[VmScene]) -> Decision {
    let names: BTreeSet<&VmName> = newcomers.iter().map(|newcomer| &newcomer.name).collect();
    for step in &mut made.moves {
        if matches!(&step.step.to, Holder::Vm(vm) if names.contains(vm)) {
            step.step.to = Holder::Pool;
        }
    }
    made.moves.retain(|step| step.step.from != step.step.to);
    made.vms.retain(|outlook| !names.contains(&outlook.vm));
    made.rejected.retain(|rejected| !names.contains(&rejected.vm));
    made
}

/// A VM that should start, as it will be once it runs.
pub(super) fn newcomer(spec: VmSpec, weight: u32) -> VmScene {
    VmScene {
        name: spec.name,
        guarantee: spec.guarantee,
        limit: spec.limit,
        weight,
        boot: spec.boot,
        devices: spec.devices,
        homes: Default::default(),
        holding: Default::default(),
        busy: Default::default(),
        lends_memory: false,
        takes_memory: false,
    }
}
