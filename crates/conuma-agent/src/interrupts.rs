//! Interrupts and unbound kernel work.

use std::collections::{BTreeMap, BTreeSet};
use std::io;

use conuma_topology::{GuestCpuId, GuestCpuSet};

use crate::kernel::{Kernel, read_list, read_mask};
use crate::state::State;
use crate::wish::{Target, Touched};

const DEFAULT: &str = "proc/irq/default_smp_affinity";
const WORKQUEUES: &str = "sys/devices/virtual/workqueue/cpumask";
/// What was written there; since 6.9 isolated CPUs are missing in the file itself.
const WORKQUEUES_REQUESTED: &str = "sys/devices/virtual/workqueue/cpumask_requested";

/// What is known of the guest's interrupts. Their masks are in [`State`].
#[derive(Debug, Default)]
pub struct Interrupts {
    /// Their list and masks were read.
    listed: bool,
    /// Interrupts whose affinity the kernel does not let anybody set: it manages them itself.
    managed: BTreeSet<u32>,
    /// The CPUs of its mask that each really fires on; the kernel picks one or a few.
    fires_on: BTreeMap<u32, GuestCpuSet>,
}

/// Which interrupts to move.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Which<'a> {
    /// Those that fire on these CPUs. Moving one can cost exits to the hypervisor for each of its messages.
    FiringOn(&'a GuestCpuSet),
    /// Also those that only might, some day.
    All,
}

impl Interrupts {
    /// Reads the list of interrupts and their masks. Hundreds of interrupts are common.
    pub fn learn(&mut self, kernel: &dyn Kernel, state: &mut State) {
        self.listed = true;
        self.managed.clear();
        self.fires_on = list(kernel, state);
    }

    /// The same, unless it was done before: others seldom move them.
    pub fn learn_once(&mut self, kernel: &dyn Kernel, state: &mut State) {
        if !self.listed {
            self.learn(kernel, state);
        }
    }

    /// Moves known interrupts, and those to come, to the target, or back.
    pub fn confine(&mut self, kernel: &dyn Kernel, target: &Target, state: &mut State, which: Which<'_>) {
        if let Some(mask) = &mut state.default_interrupt {
            let wanted = target.cut(&mask.wish);
            if wanted != mask.wrote && kernel.write(DEFAULT, &wanted.to_mask()).is_ok() {
                mask.wrote = wanted;
            }
        }
        state.interrupts.retain(|&irq, mask| {
            if target.cut(&mask.wish) == mask.wrote || self.managed.contains(&irq) {
                return true;
            }
            if let Which::FiringOn(cpus) = which
                && !self.fires_on(kernel, irq, &mask.wrote, cpus)
            {
                return true;
            }
            // Somebody may have changed it since it was read.
            if let Ok(now) = read_list(kernel, &affinity_file(irq)) {
                *mask = Touched::observe(Some(mask.clone()), now);
            }
            let wanted = target.cut(&mask.wish);
            match kernel.write(&affinity_file(irq), &wanted.to_string()) {
                Ok(()) => {
                    let fires_on = if which == Which::All { fires_on_now(kernel, irq) } else { None };
                    self.fires_on.insert(irq, fires_on.unwrap_or_else(|| wanted.clone()));
                    mask.wrote = wanted;
                }
                Err(error) if error.kind() == io::ErrorKind::NotFound => return false,
                Err(_) => {
                    self.managed.insert(irq);
                }
            }
            true
        });
    }

    /// Whether an interrupt with this mask fires on some of `cpus`. What is known not to is believed; else it is read anew,
    /// since the kernel moves interrupts when CPUs go offline, and moving one costs more than reading.
    fn fires_on(&mut self, kernel: &dyn Kernel, irq: u32, mask: &GuestCpuSet, cpus: &GuestCpuSet) -> bool {
        if self.fires_on.get(&irq).is_some_and(|known| known.is_disjoint(cpus)) {
            return false;
        }
        let now = fires_on_now(kernel, irq).unwrap_or_else(|| mask.clone());
        let fires = !now.is_disjoint(cpus);
        self.fires_on.insert(irq, now);
        fires
    }

    /// How many interrupts the kernel keeps on some of these CPUs.
    pub fn managed_on(&self, cpus: &GuestCpuSet, state: &State) -> u32 {
        let masks = self.managed.iter().filter_map(|irq| state.interrupts.get(irq));
        masks.filter(|mask| !mask.wrote.is_disjoint(cpus)).count() as u32
    }
}

/// Reads all masks, and where the interrupts really fire.
fn list(kernel: &dyn Kernel, state: &mut State) -> BTreeMap<u32, GuestCpuSet> {
    let irqs = kernel.dirs("proc/irq").unwrap_or_default();
    let before = std::mem::take(&mut state.interrupts);
    let mut fires_on = BTreeMap::new();
    for irq in irqs.iter().filter_map(|name| name.parse().ok()) {
        let Ok(now) = read_list::<GuestCpuId>(kernel, &affinity_file(irq)) else { continue };
        fires_on.insert(irq, fires_on_now(kernel, irq).unwrap_or_else(|| now.clone()));
        state.interrupts.insert(irq, Touched::observe(before.get(&irq).cloned(), now));
    }
    let default = read_mask(kernel, DEFAULT).ok();
    state.default_interrupt = default.map(|now| Touched::observe(state.default_interrupt.take(), now));
    fires_on
}

/// Nowhere for one that nobody uses (who does has a directory); `None` if the kernel does not tell.
fn fires_on_now(kernel: &dyn Kernel, irq: u32) -> Option<GuestCpuSet> {
    if kernel.dirs(&format!("proc/irq/{irq}")).is_ok_and(|users| users.is_empty()) {
        return Some(GuestCpuSet::new());
    }
    read_list(kernel, &format!("proc/irq/{irq}/effective_affinity_list")).ok()
}

fn affinity_file(irq: u32) -> String {
    format!("proc/irq/{irq}/smp_affinity_list")
}

/// Moves unbound kernel work to the target, or back.
pub fn confine_workqueues(kernel: &dyn Kernel, target: &Target, state: &mut State) -> io::Result<()> {
    let now = match read_mask(kernel, WORKQUEUES_REQUESTED).or_else(|_| read_mask(kernel, WORKQUEUES)) {
        // Not every kernel shows it (no sysfs for workqueues): nothing to move then.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        now => now?,
    };
    let mut mask = Touched::observe(state.workqueues.take(), now);
    let wanted = target.cut(&mask.wish);
    let result = if wanted == mask.wrote { Ok(()) } else { kernel.write(WORKQUEUES, &wanted.to_mask()) };
    if result.is_ok() {
        mask.wrote = wanted;
    }
    state.workqueues = Some(mask);
    result
}
