//! What came of a run, measured in the same way for every policy.

use std::time::Duration;

use serde::Serialize;

/// A VM that needs cores of its guarantee has them within this time.
pub const DEADLINE: Duration = Duration::from_secs(1);

/// A VM that needs memory of its guarantee has it within this time: another guest has to make room first.
pub const MEMORY_DEADLINE: Duration = Duration::from_secs(10);

/// Less memory, in bytes, is what kernels keep for themselves.
const MEMORY_SLACK: f64 = 64.0 * 1024.0 * 1024.0;

/// What a VM is guaranteed.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Promise {
    /// Cores.
    pub cores: usize,
    /// Bytes, wherever.
    pub memory: f64,
}

/// What moves after this time is told apart: a run begins with an even division that need not fit.
pub const SETTLED: Duration = Duration::from_secs(120);

/// What one VM did while nothing changed.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Slice {
    /// Work that came, in cores.
    pub comes: f64,
    /// Cores that it would have used.
    pub wants: f64,
    /// Cores that it could use.
    pub held: f64,
    /// Core-seconds of work that were done.
    pub done: f64,
    /// Core-seconds in which cores were busy.
    pub busy: f64,
    /// The share of memory accesses that stayed on their node.
    pub near: f64,
    /// Bytes of its working set.
    pub memory: f64,
    /// Those that had no room.
    pub short: f64,
    /// How long.
    pub seconds: f64,
}

/// What is known of one VM.
#[derive(Debug, Clone, Default)]
struct Account {
    promise: Promise,
    demand: f64,
    useful: f64,
    busy: f64,
    near: f64,
    short: f64,
    cores: Lack,
    room: Lack,
    violations: u64,
}

/// Whether a VM has what it needs of its guarantee.
#[derive(Debug, Clone, Copy, Default)]
struct Lack {
    /// Since when it has not.
    since: Option<f64>,
    /// The violation that lasts was counted.
    counted: bool,
}

impl Lack {
    /// It lacks something, or does not, from `begin` to `end`. Whether that makes one violation more, and how long it had lacked it if it
    /// does no longer.
    fn see(&mut self, lacks: bool, begin: f64, end: f64, deadline: Duration) -> (bool, Option<f64>) {
        if !lacks {
            self.counted = false;
            return (false, self.since.take().map(|since| begin - since));
        }
        let since = *self.since.get_or_insert(begin);
        let violates = !self.counted && end - since > deadline.as_secs_f64() + 1e-9;
        self.counted |= violates;
        (violates, None)
    }
}

/// Adds up what VMs do.
#[derive(Debug, Clone)]
pub struct Meter {
    accounts: Vec<Account>,
    recalls: Vec<f64>,
}

/// Moves of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct Moves {
    /// Cores, each time that one changes hands.
    pub cores: u64,
    /// Of these, after the first two minutes.
    pub cores_later: u64,
    /// MiB.
    pub mib: u64,
    /// Of these, after the first two minutes.
    pub mib_later: u64,
    /// Transfers.
    pub transfers: u64,
    /// Of these, those of which not all arrived.
    pub short: u64,
    /// Requests that the engine refused.
    pub refused: u64,
}

/// How long VMs waited for what they needed of their guarantee.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize)]
pub struct Recalls {
    /// How often that was.
    pub count: u64,
    /// Half of them took at most so many milliseconds.
    pub p50_ms: f64,
    /// 99 of 100.
    pub p99_ms: f64,
    /// All.
    pub max_ms: f64,
}

/// One VM's part.
#[derive(Debug, Clone, PartialEq, Default, Serialize)]
pub struct VmOutcome {
    /// Which.
    pub vm: String,
    /// Core-seconds of work that came.
    pub demand: f64,
    /// Core-seconds of work that were done.
    pub useful: f64,
    /// What it got of what a fair division with perfect knowledge gives it; 1 if that is nothing.
    pub satisfaction: f64,
    /// Times that it did not have its guarantee in time.
    pub guarantee_violations: u64,
}

/// What came of a run.
#[derive(Debug, Clone, PartialEq, Default, Serialize)]
pub struct Outcome {
    /// Who decided.
    pub policy: String,
    /// Core-seconds of work that came.
    pub demand: f64,
    /// Core-seconds of work that were done.
    pub useful: f64,
    /// The difference: lost, or late when the run ended.
    pub unmet: f64,
    /// GiB-seconds of working sets that had no room.
    pub memory_unmet: f64,
    /// What moved.
    pub moves: Moves,
    /// Times that a VM did not have its guarantee in time.
    pub guarantee_violations: u64,
    /// How long that took.
    pub recalls: Recalls,
    /// Jain's index over satisfaction, 1 if all got the same part of what is fair.
    pub jain: f64,
    /// The share of memory accesses, by busy cores, that stayed on their node.
    pub locality: f64,
    /// Invariants that broke: always empty, or there is a defect.
    pub broken: Vec<String>,
    /// Each VM.
    pub vms: Vec<VmOutcome>,
}

impl Meter {
    /// For VMs with these guarantees.
    pub fn new(promises: impl Iterator<Item = Promise>) -> Self {
        let account = |promise| Account { promise, ..Account::default() };
        Self { accounts: promises.map(account).collect(), recalls: Vec::new() }
    }

    /// A VM did this, from `begin` on.
    pub fn add(&mut self, vm: usize, begin: Duration, slice: &Slice) {
        let Some(account) = self.accounts.get_mut(vm) else { return };
        account.demand += slice.comes * slice.seconds;
        account.useful += slice.done;
        account.busy += slice.busy;
        account.near += slice.busy * slice.near;
        account.short += slice.short * slice.seconds;
        let begin = begin.as_secs_f64();
        let end = begin + slice.seconds;
        // A part of a core is no reason to give a whole one.
        let needs = slice.wants.min(account.promise.cores as f64);
        let lacks = needs - slice.held > 0.25 + 0.02 * slice.wants;
        let (late, recalled) = account.cores.see(lacks, begin, end, DEADLINE);
        self.recalls.extend(recalled);
        let needs = slice.memory.min(account.promise.memory);
        let lacks = needs - (slice.memory - slice.short) > MEMORY_SLACK + 0.02 * needs;
        let (memory_late, _) = account.room.see(lacks, begin, end, MEMORY_DEADLINE);
        account.violations += u64::from(late) + u64::from(memory_late);
    }

    /// A VM does not run.
    pub fn absent(&mut self, vm: usize) {
        if let Some(account) = self.accounts.get_mut(vm) {
            (account.cores, account.room) = Default::default();
        }
    }

    /// Core-seconds that each VM got done.
    pub fn useful(&self) -> Vec<f64> {
        self.accounts.iter().map(|account| account.useful).collect()
    }

    /// The result. `fair` is what each VM would have got done by a fair division with perfect knowledge.
    pub fn finish(
        mut self,
        policy: &str,
        names: &[String],
        fair: &[f64],
        moves: Moves,
        broken: Vec<String>,
    ) -> Outcome {
        let sum = |part: &dyn Fn(&Account) -> f64| self.accounts.iter().map(part).sum::<f64>();
        let (demand, useful, busy) = (sum(&|a| a.demand), sum(&|a| a.useful), sum(&|a| a.busy));
        let near = sum(&|a| a.near);
        let satisfaction = |place: usize| match fair.get(place) {
            Some(fair) if *fair > 1e-9 => self.accounts[place].useful / fair,
            _ => 1.0,
        };
        let vm = |(place, account): (usize, &Account)| VmOutcome {
            vm: names.get(place).cloned().unwrap_or_default(),
            demand: account.demand,
            useful: account.useful,
            satisfaction: satisfaction(place),
            guarantee_violations: account.violations,
        };
        let vms: Vec<VmOutcome> = self.accounts.iter().enumerate().map(vm).collect();
        let jain = jain(&vms.iter().map(|vm| vm.satisfaction).collect::<Vec<_>>());
        let guarantee_violations = self.accounts.iter().map(|account| account.violations).sum();
        let memory_unmet = sum(&|a| a.short) / f64::from(1 << 30);
        self.recalls.sort_by(f64::total_cmp);
        Outcome {
            policy: policy.into(),
            demand,
            useful,
            unmet: (demand - useful).max(0.0),
            memory_unmet,
            moves,
            guarantee_violations,
            recalls: recalls(&self.recalls),
            jain,
            locality: if busy > 0.0 { near / busy } else { 1.0 },
            broken,
            vms,
        }
    }
}

fn recalls(sorted: &[f64]) -> Recalls {
    let at = |share: f64| {
        let place = ((sorted.len() as f64 * share).ceil() as usize).saturating_sub(1);
        sorted.get(place).copied().unwrap_or(0.0) * 1000.0
    };
    Recalls { count: sorted.len() as u64, p50_ms: at(0.5), p99_ms: at(0.99), max_ms: at(1.0) }
}

/// Jain's fairness index (Jain, Chiu, Hawe 1984): from 1/n to 1.
pub fn jain(parts: &[f64]) -> f64 {
    let (sum, squares): (f64, f64) = (parts.iter().sum(), parts.iter().map(|part| part * part).sum());
    if squares > 0.0 { sum * sum / (parts.len() as f64 * squares) } else { 1.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fairness_is_one_if_all_get_the_same() {
        assert!((jain(&[0.5, 0.5, 0.5]) - 1.0).abs() < 1e-12);
        assert!((jain(&[1.0, 0.0, 0.0, 0.0]) - 0.25).abs() < 1e-12);
    }

    #[test]
    fn a_guarantee_that_comes_late_is_a_violation_once() {
        let mut meter = Meter::new([Promise { cores: 4, ..Promise::default() }].into_iter());
        let slice = |held: f64, wants: f64| Slice { held, wants, seconds: 0.6, ..Slice::default() };
        let mut at = Duration::ZERO;
        for (held, wants) in [(4.0, 8.0), (2.0, 3.0), (2.0, 3.0), (2.0, 3.0), (3.0, 3.0), (2.0, 4.0), (4.0, 4.0)] {
            meter.add(0, at, &slice(held, wants));
            at += Duration::from_millis(600);
        }
        let outcome = meter.finish("x", &["a".into()], &[], Moves::default(), Vec::new());
        assert_eq!(outcome.guarantee_violations, 1);
        assert_eq!(outcome.recalls.count, 2);
        assert!((outcome.recalls.max_ms - 1800.0).abs() < 1e-6 && (outcome.recalls.p50_ms - 600.0).abs() < 1e-6);
    }

    #[test]
    fn memory_of_a_guarantee_may_take_longer_but_not_for_ever() {
        let gib = f64::from(1 << 30);
        let mut meter = Meter::new([Promise { cores: 1, memory: 2.0 * gib }].into_iter());
        let slice = |memory: f64, short: f64| Slice { memory, short, held: 1.0, seconds: 6.0, ..Slice::default() };
        let slices = [
            // Beyond its guarantee; late, but not too late; too late.
            (slice(4.0 * gib, 2.0 * gib), 0),
            (slice(4.0 * gib, 2.0 * gib), 0),
            (slice(4.0 * gib, 3.0 * gib), 0),
            (slice(1.0 * gib, 0.0), 0),
            (slice(1.0 * gib, 0.5 * gib), 0),
            (slice(1.0 * gib, 0.5 * gib), 1),
            (slice(1.0 * gib, 0.5 * gib), 1),
        ];
        for (number, (slice, violations)) in slices.into_iter().enumerate() {
            meter.add(0, Duration::from_secs(6 * number as u64), &slice);
            assert_eq!(meter.accounts[0].violations, violations, "{number}");
        }
    }
}
