//! The engine's own record of a VM: its knobs, and how sure it is of them.
//!
//! Every knob keeps two bounds, since an answer can get lost: what is *surely* in force, and what *may* be.
//! A knob is lowered in the record when the outside has confirmed it, and raised before the outside
//! is asked.

use std::collections::BTreeMap;
use std::time::Duration;

use conuma_topology::{Bytes, CpuSet, NodeId};

use crate::action::{ActionId, Failure, Fixed, Grip, PluggedMemory, RefusedCpus, VmSeen};
use crate::pace::Progress;
use crate::vm::{Life, VmSpec};

/// Of memory that a guest plugs its kernel keeps one part in so many for itself: 64 bytes of 4 KiB.
const MEMMAP_PART: u64 = 64;

/// A VM under control.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Vm {
    pub(crate) spec: VmSpec,
    pub(crate) life: Life,
    /// Its agent is connected.
    pub(crate) agent: bool,
    /// It left a request for memory unanswered: its memory neither shrinks nor grows.
    pub(crate) silent: bool,
    /// It was found to use more memory than it holds: it is given none.
    pub(crate) trespasses: bool,
    /// Its memory neither comes nor goes for this reason.
    pub(crate) fixed: Option<Fixed>,
    pub(crate) cores: CoreKnob,
    pub(crate) memory: BTreeMap<NodeId, MemoryKnob>,
    /// The guest's last word on its free memory, with what has moved since.
    pub(crate) free: BTreeMap<NodeId, Bytes>,
    /// When it said that, at the earliest.
    pub(crate) heard: Duration,
    /// Memory of it has moved since: what it said before then is out of date.
    pub(crate) outdated: Duration,
    /// Room was made for what it gave since: it has other pages free than it said.
    pub(crate) shuffled: bool,
    /// All knobs stood right when last looked at.
    pub(crate) settled: bool,
}

/// Gates and the agent's holding.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct CoreKnob {
    /// The guest should leave these, though the ledger still gives them to it.
    pub(crate) leaving: CpuSet,
    /// Of these, what should be gated.
    pub(crate) closing: CpuSet,
    pub(crate) grip: Grip,
    /// CPUs on which the VM may run on: those whose gate may be open, and, where it should have left them, those
    /// on which it was seen behind a soft gate. An upper bound.
    pub(crate) maybe_open: CpuSet,
    /// Gates that surely are open: a lower bound.
    pub(crate) surely_open: CpuSet,
    /// Gates that are being opened.
    pub(crate) opening: CpuSet,
    /// CPUs that the host has lost: they are of no use to anyone.
    pub(crate) offline: CpuSet,
    /// Of these, those whose gate was closed for that, whether it was closed before or not.
    pub(crate) stopped: CpuSet,
    /// What the agent last put in force; `None` while that is not known.
    pub(crate) told: Option<Told>,
    /// Why the last attempt to tell the agent came to nothing.
    pub(crate) untold: Option<Failure>,
    pub(crate) gate: Attempt,
    pub(crate) apply: Attempt,
}

/// A holding that an agent put in force.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Told {
    pub(crate) cpus: CpuSet,
    pub(crate) refused: Vec<RefusedCpus>,
}

/// A virtio-mem device.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct MemoryKnob {
    /// What a transfer wants it to be, instead of what the ledger says.
    pub(crate) goal: Option<Bytes>,
    /// The largest `requested-size` that may be in force.
    pub(crate) asked: Bytes,
    /// QEMU confirmed `asked`, and nothing was asked since.
    pub(crate) certain: bool,
    /// What QEMU last said.
    pub(crate) seen: PluggedMemory,
    /// When QEMU was last asked for another size than before, and what the size was then.
    pub(crate) began: Duration,
    pub(crate) from: Bytes,
    /// When the goal or the size last changed.
    pub(crate) changed: Duration,
    /// When QEMU was last asked to set the size.
    pub(crate) set: Duration,
    pub(crate) failed: Option<Failure>,
    pub(crate) attempt: Attempt,
}

/// An action that is out, or when the next one may go out.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub(crate) struct Attempt {
    pub(crate) pending: Option<ActionId>,
    pub(crate) not_before: Duration,
}

impl Vm {
    /// A VM that was admitted.
    pub(crate) fn starting(spec: VmSpec) -> Self {
        Self {
            spec,
            life: Life::Starting,
            agent: false,
            silent: false,
            trespasses: false,
            fixed: None,
            cores: CoreKnob::default(),
            memory: BTreeMap::new(),
            free: BTreeMap::new(),
            heard: Duration::ZERO,
            outdated: Duration::ZERO,
            shuffled: false,
            settled: false,
        }
    }

    /// Nobody in the guest is asked: the host alone enforces what it holds.
    pub(crate) fn is_on_its_own(&self) -> bool {
        self.spec.agentless && !self.agent
    }

    /// QEMU runs, and this is in force.
    pub(crate) fn started(&mut self, seen: &VmSeen, now: Duration) {
        self.life = Life::Running;
        self.cores = CoreKnob {
            maybe_open: seen.open.union(&seen.runs_on),
            surely_open: seen.open.clone(),
            ..CoreKnob::default()
        };
        let knob = |node: &NodeId| {
            let seen = seen.plugged.get(node).copied().unwrap_or_default();
            (*node, MemoryKnob::new(seen, now))
        };
        self.memory = self.spec.devices.keys().map(knob).collect();
    }

    /// The guest reports what it has free, by a report made then or since. One that is older than the last, or than the last move
    /// of its memory, says nothing.
    pub(crate) fn reports(&mut self, free: BTreeMap<NodeId, Bytes>, made: Duration) {
        // Its agent speaks.
        self.silent = false;
        if made >= self.heard.max(self.outdated) {
            self.free = free;
            self.heard = made;
            self.shuffled = false;
        }
    }

    /// Memory was taken from the guest. Where room was made for that it has other pages free than before, and must report anew
    /// before it is gone by.
    pub(crate) fn gave(&mut self, node: NodeId, bytes: Bytes, room_was_made: bool, now: Duration) {
        if let Some(free) = self.free.get_mut(&node) {
            *free = free.saturating_sub(bytes);
        }
        self.outdated = now;
        self.shuffled |= room_was_made;
    }

    /// Memory begins to come to the guest: a report that was asked for before may count some of it, or none.
    pub(crate) fn takes(&mut self, now: Duration) {
        self.outdated = now;
    }

    /// What so much memory, which began to come then, adds to what the guest has said to have free: its kernel keeps the memmap of
    /// it, and a report made since may count it already.
    pub(crate) fn gains(&self, bytes: Bytes, began: Duration) -> Bytes {
        if self.heard < began { bytes.saturating_sub(Bytes(bytes.0 / MEMMAP_PART)) } else { Bytes::ZERO }
    }

    /// So much memory, which began to come then, is of use to the guest.
    pub(crate) fn took(&mut self, node: NodeId, bytes: Bytes, began: Duration) {
        let gains = self.gains(bytes, began);
        if let Some(free) = self.free.get_mut(&node) {
            *free += gains;
        }
    }

    /// What is about to be taken from it on other nodes: it is spent, though it still seems free.
    pub(crate) fn promised(&self, but: NodeId) -> Bytes {
        let others = self.memory.iter().filter(|(node, _)| **node != but);
        others.filter_map(|(_, knob)| Some(knob.seen.size.saturating_sub(knob.goal?))).sum()
    }

    /// Boot memory on `node`.
    pub(crate) fn boot(&self, node: NodeId) -> Bytes {
        self.spec.boot.get(&node).copied().unwrap_or_default()
    }
}

impl Default for CoreKnob {
    fn default() -> Self {
        Self {
            leaving: CpuSet::new(),
            closing: CpuSet::new(),
            grip: Grip::Soft,
            maybe_open: CpuSet::new(),
            surely_open: CpuSet::new(),
            opening: CpuSet::new(),
            offline: CpuSet::new(),
            stopped: CpuSet::new(),
            told: None,
            untold: None,
            gate: Attempt::default(),
            apply: Attempt::default(),
        }
    }
}

impl CoreKnob {
    /// What the guest should use, if the ledger gives it `held`. It is told while gates are being opened: what it
    /// begins too early only waits for a moment.
    pub(crate) fn apply_goal(&self, held: &CpuSet) -> CpuSet {
        let usable = held.difference(&self.leaving).difference(&self.offline);
        usable.intersection(&self.surely_open.union(&self.opening))
    }

    /// Which gates should be open, if the ledger gives it `held`. A vCPU whose CPU is offline would run elsewhere, on a CPU
    /// of another VM.
    pub(crate) fn gate_goal(&self, held: &CpuSet) -> CpuSet {
        held.difference(&self.closing).difference(&self.offline)
    }

    /// Asks the guest to leave `cpus`.
    pub(crate) fn leave(&mut self, cpus: &CpuSet) {
        self.leaving = self.leaving.union(cpus);
        self.untold = None;
        self.apply.not_before = Duration::ZERO;
    }

    /// Wants the gates of `cpus` closed.
    pub(crate) fn close(&mut self, cpus: &CpuSet, grip: Grip) {
        self.closing = self.closing.union(cpus);
        self.grip = grip;
        self.gate.not_before = Duration::ZERO;
    }

    /// Gates that a soft grip holds and that are to be firm: the thread of a CPU that is offline runs elsewhere, on a CPU of
    /// another VM or of the host.
    pub(crate) fn astray(&self) -> CpuSet {
        self.offline.difference(&self.stopped)
    }

    /// Wants nothing of `cpus` any more: the ledger alone counts.
    pub(crate) fn release(&mut self, cpus: &CpuSet) {
        self.leaving = self.leaving.difference(cpus);
        self.closing = self.closing.difference(cpus);
        self.gate.not_before = Duration::ZERO;
        self.apply.not_before = Duration::ZERO;
    }
}

impl MemoryKnob {
    fn new(seen: PluggedMemory, now: Duration) -> Self {
        Self {
            goal: None,
            asked: seen.requested,
            certain: true,
            seen,
            began: now,
            from: seen.size,
            changed: now,
            set: now,
            failed: None,
            attempt: Attempt::default(),
        }
    }

    /// The most that the guest can reach, also while an answer is out: QEMU lets a guest plug no more than is
    /// requested, and `asked` falls only when QEMU has confirmed it.
    pub(crate) fn bound(&self) -> Bytes {
        self.asked.max(self.seen.bound())
    }

    /// How far it has come.
    pub(crate) fn progress(&self) -> Progress {
        let Self { began, from, changed, seen, asked, .. } = self;
        Progress { began: *began, from: *from, changed: *changed, size: seen.size, goal: *asked }
    }

    /// QEMU says that it has changed: looks at once if more is to come.
    pub(crate) fn look(&mut self, now: Duration) {
        if self.seen.size != self.asked {
            self.attempt.not_before = now;
        }
    }

    /// Sets the size once more: a guest that gave up may have room now.
    pub(crate) fn ask_again(&mut self, now: Duration) {
        self.certain = false;
        self.attempt.not_before = now;
    }

    /// Wants another size than the ledger says, or no longer.
    pub(crate) fn want(&mut self, goal: Option<Bytes>, now: Duration) {
        self.goal = goal;
        self.failed = None;
        self.changed = now;
        self.attempt.not_before = Duration::ZERO;
    }
}
