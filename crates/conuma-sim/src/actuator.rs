//! Carries actions out: each takes its time, those of one VM and lane one after the other, and some go wrong.

use std::collections::BTreeMap;
use std::time::Duration;

use conuma_balancing::{Action, ActionKind, Failure, Grip, Lane, Outcome, RefusedCpus};
use conuma_topology::{Bytes, CpuSet};
use fastrand::Rng;
use serde::{Deserialize, Serialize};

use crate::fault::{Fate, Faults};
use crate::guest::{Guest, Life, Rates};
use crate::site::Site;

/// How long things take.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Latency {
    /// An agent leaves or begins to use CPUs: from so many milliseconds ...
    pub agent_least_ms: u64,
    /// ... to so many.
    pub agent_most_ms: u64,
    /// A gate.
    pub gate_ms: u64,
    /// An answer of QEMU.
    pub qemu_ms: u64,
    /// Out of a guest, MiB a second.
    pub unplug_mib: f64,
    /// Into one, MiB a second.
    pub plug_mib: f64,
    /// A boot, in seconds.
    pub boot: f64,
}

impl Default for Latency {
    fn default() -> Self {
        Self {
            agent_least_ms: 10,
            agent_most_ms: 30,
            gate_ms: 1,
            qemu_ms: 2,
            unplug_mib: 2048.0,
            plug_mib: 4096.0,
            boot: 10.0,
        }
    }
}

impl Latency {
    /// Speeds of memory.
    pub fn rates(&self) -> Rates {
        let mib = 1024.0 * 1024.0;
        Rates { unplug: self.unplug_mib.max(1.0) * mib, plug: self.plug_mib.max(1.0) * mib, refault: 256.0 * mib }
    }
}

/// An action on its way.
#[derive(Debug, Clone)]
pub struct Errand {
    /// Whose guest.
    pub guest: usize,
    /// What.
    pub action: Action,
    /// What becomes of it.
    pub fate: Fate,
}

/// All actuators.
#[derive(Debug)]
pub struct Actuators {
    latency: Latency,
    faults: Faults,
    rng: Rng,
    /// By the time at which they are done, and the order in which they came.
    errands: BTreeMap<(Duration, u64), Errand>,
    order: u64,
    /// When each lane has done all that it has.
    free: BTreeMap<(usize, Lane), Duration>,
}

impl Actuators {
    /// With nothing to do.
    pub fn new(latency: Latency, faults: Faults, seed: u64) -> Self {
        let rng = Rng::with_seed(seed ^ 0xac70);
        Self { latency, faults, rng, errands: BTreeMap::new(), order: 0, free: BTreeMap::new() }
    }

    /// When the next is done.
    pub fn next(&self) -> Option<Duration> {
        self.errands.keys().next().map(|(due, _)| *due)
    }

    /// Takes an action.
    pub fn accept(&mut self, action: Action, place: usize, guest: &Guest<'_>, site: &Site, now: Duration) {
        let fate = self.fate(&action, guest);
        let takes = self.takes(&action, guest, site);
        let lane = (place, action.kind.lane());
        let free = self.free.get(&lane).copied().unwrap_or_default();
        // An agent makes room beside all else that it does.
        let beside = matches!(action.kind, ActionKind::PrepareMemory { .. });
        let due = if beside { now + takes } else { now.max(free) + takes };
        if !beside {
            self.free.insert(lane, due);
        }
        self.order += 1;
        self.errands.insert((due, self.order), Errand { guest: place, action, fate });
    }

    /// The next that is done by now.
    pub fn take(&mut self, now: Duration) -> Option<Errand> {
        let entry = self.errands.first_entry()?;
        if entry.key().0 <= now { Some(entry.remove()) } else { None }
    }

    /// Forgets what an agent, or all of a VM, was to do.
    pub fn forget(&mut self, guest: usize, only_agent: bool) {
        let stays = |errand: &Errand| errand.guest != guest || (only_agent && errand.action.kind.lane() != Lane::Agent);
        self.errands.retain(|_, errand| stays(errand));
        self.free.retain(|(place, lane), _| *place != guest || (only_agent && *lane != Lane::Agent));
    }

    fn fate(&mut self, action: &Action, guest: &Guest<'_>) -> Fate {
        // Always the same number of draws, so that one fault does not shift all others.
        let (silent, refuse, partial) = (self.rng.f64(), self.rng.f64(), self.rng.f64());
        let faults = &self.faults;
        match &action.kind {
            kind if kind.lane() == Lane::Agent && (silent < faults.silent || faults.mute.contains(&guest.name)) => {
                Fate::Silent
            }
            ActionKind::AgentApply { .. } | ActionKind::PrepareMemory { .. } if refuse < faults.refuse => Fate::Refused,
            ActionKind::SetRequestedSize { .. } if partial < faults.partial => Fate::Half,
            _ => Fate::Works,
        }
    }

    fn takes(&mut self, action: &Action, guest: &Guest<'_>, site: &Site) -> Duration {
        let latency = &self.latency;
        let ms = Duration::from_millis;
        let agent = ms(self.rng.u64(latency.agent_least_ms..=latency.agent_most_ms.max(latency.agent_least_ms)));
        match &action.kind {
            ActionKind::AgentApply { .. } => agent,
            ActionKind::ConfirmMemory { .. } => ms(latency.agent_least_ms),
            ActionKind::PrepareMemory { node, bytes } => {
                let free = guest.free(site).get(node).copied().unwrap_or_default();
                let moved = bytes.saturating_sub(free).0 as f64;
                agent + Duration::from_secs_f64(moved / latency.rates().unplug)
            }
            ActionKind::SetRequestedSize { .. } | ActionKind::PollSize { .. } => ms(latency.qemu_ms),
            ActionKind::CloseGate { watch, .. } => ms(latency.gate_ms) + *watch,
            ActionKind::OpenGate { .. } => ms(latency.gate_ms),
        }
    }
}

/// Does it; the answer, or `None` if there is none.
pub fn perform(guest: &mut Guest<'_>, action: &Action, fate: Fate, site: &Site) -> Option<Outcome> {
    if fate == Fate::Silent {
        return None;
    }
    if action.kind.lane() == Lane::Agent {
        if guest.life != Life::Up {
            return Some(Outcome::Failed(Failure::Unreachable));
        }
        guest.newest = guest.newest.max(action.id.0);
    }
    let outcome = match &action.kind {
        ActionKind::AgentApply { cpus } => apply(guest, cpus, fate),
        ActionKind::PrepareMemory { node, bytes } => {
            let enough = fate == Fate::Works && guest.make_room(*node, *bytes, site);
            Outcome::Prepared { enough, spare: guest.spare() }
        }
        ActionKind::ConfirmMemory { node, plugged } => {
            let size = guest.plugged.get(node).map(|device| device.size).unwrap_or_default();
            Outcome::Confirmed { satisfied: size >= *plugged }
        }
        ActionKind::SetRequestedSize { node, bytes } => {
            let device = guest.plugged.get_mut(node)?;
            device.requested = *bytes;
            let (device, less) = (*device, device.size.saturating_sub(*bytes));
            let floor = *bytes + Bytes(less.0 / 2).round_down(crate::site::BLOCK);
            match fate {
                Fate::Half if !less.is_zero() => guest.stuck.insert(*node, floor),
                _ => guest.stuck.remove(node),
            };
            Outcome::Memory(device)
        }
        ActionKind::PollSize { node } => Outcome::Memory(*guest.plugged.get(node)?),
        ActionKind::CloseGate { cpus, grip, .. } => {
            // Behind a firm gate nothing runs, whatever the guest would do.
            let busy = match &guest.using {
                _ if *grip != Grip::Soft => CpuSet::new(),
                Some(using) => cpus.intersection(using),
                None => cpus.clone(),
            };
            guest.open = guest.open.difference(cpus);
            guest.runs_on = guest.runs_on.difference(cpus).union(&busy);
            Outcome::GateClosed { busy }
        }
        ActionKind::OpenGate { cpus } => {
            guest.open = guest.open.union(cpus);
            guest.runs_on = guest.runs_on.difference(cpus);
            Outcome::GateOpened
        }
    };
    guest.refresh(site);
    Some(outcome)
}

fn apply(guest: &mut Guest<'_>, cpus: &CpuSet, fate: Fate) -> Outcome {
    let before = guest.using.clone().unwrap_or_default();
    if fate != Fate::Refused {
        guest.using = Some(cpus.clone());
        return Outcome::Applied { refused: Vec::new() };
    }
    let parts = [before.difference(cpus), cpus.difference(&before)];
    let refused = parts.into_iter().filter(|cpus| !cpus.is_empty());
    Outcome::Applied { refused: refused.map(|cpus| RefusedCpus { cpus, why: "exclusive".into() }).collect() }
}
