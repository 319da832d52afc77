//! `/proc/stat` and `/proc/schedstat`: what CPUs did since boot.

use std::collections::BTreeMap;
use std::time::Duration;

use super::{ProcError, ProcFs, TICKS_PER_SECOND};

pub(super) fn ticks(ticks: u64) -> Duration {
    Duration::from_millis(ticks.saturating_mul(1000 / TICKS_PER_SECOND))
}

/// `/proc/stat`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct SystemStat {
    /// Online CPUs.
    pub cpus: BTreeMap<u32, CpuTimes>,
    /// Tasks that run or want to run now.
    pub running: u32,
    /// Tasks that wait for a disk now.
    pub blocked: u32,
}

/// What a CPU did since boot. `user` contains nested guests.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct CpuTimes {
    /// In user mode.
    pub user: Duration,
    /// In user mode at low priority.
    pub nice: Duration,
    /// In the kernel.
    pub system: Duration,
    /// Idle.
    pub idle: Duration,
    /// Idle while a task waits for a disk.
    pub iowait: Duration,
    /// In interrupts.
    pub irq: Duration,
    /// In software interrupts.
    pub softirq: Duration,
    /// Wanted, but used by the hypervisor for others.
    pub steal: Duration,
}

impl SystemStat {
    fn parse(text: &str) -> Option<Self> {
        let mut stat = Self::default();
        for line in text.lines() {
            let mut words = line.split_ascii_whitespace();
            let Some(key) = words.next() else { continue };
            if let Some(cpu) = key.strip_prefix("cpu").and_then(|cpu| cpu.parse().ok()) {
                let mut next = || ticks(words.next().and_then(|word| word.parse().ok()).unwrap_or(0));
                let times = CpuTimes {
                    user: next(),
                    nice: next(),
                    system: next(),
                    idle: next(),
                    iowait: next(),
                    irq: next(),
                    softirq: next(),
                    steal: next(),
                };
                stat.cpus.insert(cpu, times);
            } else if key == "procs_running" {
                stat.running = words.next()?.parse().ok()?;
            } else if key == "procs_blocked" {
                stat.blocked = words.next()?.parse().ok()?;
            }
        }
        (!stat.cpus.is_empty()).then_some(stat)
    }
}

/// A CPU's line of `/proc/schedstat`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct CpuSched {
    /// Time in which tasks ran.
    pub ran: Duration,
    /// Summed time tasks waited in the CPU's run queue.
    pub waited: Duration,
}

/// Fields 7 and 8 after the CPU's name, in every version of the file since Linux 2.6.26
/// (Documentation/scheduler/sched-stats.rst).
fn parse_schedstat(text: &str) -> Option<BTreeMap<u32, CpuSched>> {
    let mut cpus = BTreeMap::new();
    for line in text.lines() {
        let mut words = line.split_ascii_whitespace();
        let Some(cpu) = words.next().and_then(|key| key.strip_prefix("cpu")).and_then(|cpu| cpu.parse().ok()) else {
            continue;
        };
        let mut times = words.skip(6).map(|word| word.parse().map(Duration::from_nanos).ok());
        cpus.insert(cpu, CpuSched { ran: times.next()??, waited: times.next()?? });
    }
    Some(cpus)
}

impl ProcFs {
    /// What each online CPU did since boot, and how many tasks run.
    pub fn system_stat(&self) -> Result<SystemStat, ProcError> {
        self.parsed("proc/stat", "lines of CPU times", SystemStat::parse)
    }

    /// Run and wait time of each online CPU's run queue; needs a kernel with `CONFIG_SCHEDSTATS`.
    pub fn cpu_schedstat(&self) -> Result<BTreeMap<u32, CpuSched>, ProcError> {
        self.parsed("proc/schedstat", "lines of CPU run queues", parse_schedstat)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stat_of_a_machine_with_holes() {
        let text =
            "cpu  1 2 3 4\ncpu0 100 1 2 300 4 5 6 7 0 0\ncpu8 1 0 0 0\nintr 1 2 3\nprocs_running 3\nprocs_blocked 1\n";
        let stat = SystemStat::parse(text).unwrap();
        assert_eq!(stat.cpus.keys().copied().collect::<Vec<_>>(), [0, 8]);
        assert_eq!(stat.cpus[&0].idle, Duration::from_secs(3));
        assert_eq!(stat.cpus[&0].steal, Duration::from_millis(70));
        assert_eq!((stat.running, stat.blocked), (3, 1));
        assert_eq!(SystemStat::parse("nothing"), None);
    }

    #[test]
    fn schedstat_of_versions_15_and_17() {
        let text = "version 15\ntimestamp 1\ncpu0 0 0 0 0 0 0 1000 2000 3\ndomain0 3 0 0\n";
        let sched = parse_schedstat(text).unwrap();
        assert_eq!(sched[&0], CpuSched { ran: Duration::from_nanos(1000), waited: Duration::from_nanos(2000) });
        let text = "version 17\ntimestamp 1\ncpu3 0 0 0 0 0 0 5 6 7\ndomain0 MC 3 0 0\n";
        assert_eq!(parse_schedstat(text).unwrap()[&3].waited, Duration::from_nanos(6));
        assert_eq!(parse_schedstat("cpu0 1 2"), None);
    }
}
