//! Processes and their threads.

use std::fmt;
use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use conuma_topology::{Id, IdSet};

use super::{ProcError, ProcFs};

/// A process (thread group) id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Pid(pub u32);

/// A thread id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Tid(pub u32);

impl fmt::Display for Pid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Display for Tid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl From<Pid> for Tid {
    /// The thread that the process began with.
    fn from(pid: Pid) -> Self {
        Self(pid.0)
    }
}

/// `/proc/PID/task/TID/stat`, what Conuma needs of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TaskStat {
    /// `comm`, without the brackets.
    pub name: String,
    /// `R` running or runnable, `S` and `D` asleep, `Z` and `X` ended, and so on.
    pub state: char,
    /// The process that is told when this one ends; 0 for the first.
    pub parent: u32,
    /// The kernel's `PF_*` flags.
    pub flags: u64,
    /// Time in user mode.
    pub user: Duration,
    /// Time in the kernel.
    pub system: Duration,
    /// Ticks after boot at which it began: with the id, it names a task for the whole boot.
    pub start_ticks: u64,
    /// The CPU it runs on or last ran on.
    pub last_cpu: u32,
}

const PF_KTHREAD: u64 = 0x0020_0000;
const PF_NO_SETAFFINITY: u64 = 0x0400_0000;

impl TaskStat {
    /// Whether this is a kernel thread.
    pub fn is_kernel_thread(&self) -> bool {
        self.flags & PF_KTHREAD != 0
    }

    /// Whether the kernel has bound the task to its CPUs for good.
    pub fn is_bound(&self) -> bool {
        self.flags & PF_NO_SETAFFINITY != 0
    }

    /// Whether it is running or waits to run.
    pub fn is_runnable(&self) -> bool {
        self.state == 'R'
    }

    /// Whether it has ended and only waits to be reaped.
    pub fn is_dead(&self) -> bool {
        matches!(self.state, 'Z' | 'X' | 'x')
    }

    fn parse(text: &str) -> Option<Self> {
        // The name may contain spaces and brackets; the last bracket ends it.
        let name_from = text.find('(')? + 1;
        let name_to = text.rfind(')')?;
        let name = text.get(name_from..name_to)?.to_owned();
        let rest: Vec<&str> = text.get(name_to + 1..)?.split_ascii_whitespace().collect();
        // Numbered as in proc_pid_stat(5), whose third field is the state.
        let field = |number: usize| rest.get(number - 3);
        let number = |at: usize| field(at)?.parse::<u64>().ok();
        Some(Self {
            name,
            state: field(3)?.chars().next()?,
            parent: field(4)?.parse().ok()?,
            flags: number(9)?,
            user: super::stat::ticks(number(14)?),
            system: super::stat::ticks(number(15)?),
            start_ticks: number(22)?,
            last_cpu: field(39)?.parse().ok()?,
        })
    }
}

/// `/proc/PID/task/TID/schedstat`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct SchedStat {
    /// Time on a CPU.
    pub ran: Duration,
    /// Time runnable but waiting for a CPU.
    pub waited: Duration,
    /// Times it was put on a CPU.
    pub slices: u64,
}

impl SchedStat {
    fn parse(text: &str) -> Option<Self> {
        let mut numbers = text.split_ascii_whitespace().map(|n| n.parse::<u64>().ok());
        let mut next = || numbers.next().flatten();
        Some(Self { ran: Duration::from_nanos(next()?), waited: Duration::from_nanos(next()?), slices: next()? })
    }
}

impl ProcFs {
    /// All processes, kernel threads included, in the kernel's order.
    pub fn processes(&self) -> Result<Vec<Pid>, ProcError> {
        Ok(self.numbers_in("proc")?.into_iter().map(Pid).collect())
    }

    /// The threads of a process.
    pub fn threads(&self, pid: Pid) -> Result<Vec<Tid>, ProcError> {
        Ok(self.numbers_in(format!("proc/{pid}/task"))?.into_iter().map(Tid).collect())
    }

    /// State, flags, times and CPU of a thread.
    pub fn task_stat(&self, pid: Pid, tid: Tid) -> Result<TaskStat, ProcError> {
        self.parsed(format!("proc/{pid}/task/{tid}/stat"), "the fields of a task's stat", TaskStat::parse)
    }

    /// The CPUs a thread may run on now: its own affinity cut to its cpuset.
    pub fn task_allowed_cpus<C: Id>(&self, pid: Pid, tid: Tid) -> Result<IdSet<C>, ProcError> {
        self.parsed(format!("proc/{pid}/task/{tid}/status"), "Cpus_allowed_list", |text| {
            status_field(text, "Cpus_allowed_list")?.parse().ok()
        })
    }

    /// The nodes a thread may take memory from.
    pub fn task_allowed_nodes<N: Id>(&self, pid: Pid, tid: Tid) -> Result<IdSet<N>, ProcError> {
        self.parsed(format!("proc/{pid}/task/{tid}/status"), "Mems_allowed_list", |text| {
            status_field(text, "Mems_allowed_list")?.parse().ok()
        })
    }

    /// Time a thread ran and waited.
    pub fn task_schedstat(&self, pid: Pid, tid: Tid) -> Result<SchedStat, ProcError> {
        self.parsed(format!("proc/{pid}/task/{tid}/schedstat"), "three numbers", SchedStat::parse)
    }

    /// The thread's cgroup v2 path, starting with `/`; `None` without cgroup v2.
    pub fn task_cgroup(&self, pid: Pid, tid: Tid) -> Result<Option<String>, ProcError> {
        let text = self.read(format!("proc/{pid}/task/{tid}/cgroup"))?;
        Ok(text.lines().find_map(|line| line.strip_prefix("0::")).map(str::to_owned))
    }

    fn numbers_in(&self, dir: impl Into<PathBuf>) -> Result<Vec<u32>, ProcError> {
        let path = self.root.join(dir.into());
        let failed = |source| ProcError::Read { path: path.clone(), source };
        let mut numbers = Vec::new();
        for entry in fs::read_dir(&path).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            if let Some(number) = entry.file_name().to_str().and_then(|name| name.parse().ok()) {
                numbers.push(number);
            }
        }
        Ok(numbers)
    }
}

fn status_field<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).map(str::trim)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_may_look_like_the_rest_of_the_line() {
        let line = "77 (a) S (b c) R 1 77 77 0 -1 4194560 10 0 0 0 250 50 0 0 20 0 1 0 4711 1 1 1 0 0 0 0 0 0 0 0 0 0 0 0 17 9 0 0";
        let stat = TaskStat::parse(line).unwrap();
        assert_eq!(stat.name, "a) S (b c");
        assert_eq!(stat.state, 'R');
        assert_eq!(stat.user, Duration::from_millis(2500));
        assert_eq!(stat.system, Duration::from_millis(500));
        assert_eq!(stat.start_ticks, 4711);
        assert_eq!(stat.last_cpu, 9);
        assert!(!stat.is_kernel_thread() && !stat.is_bound() && stat.is_runnable());
    }

    #[test]
    fn a_cut_line_is_no_stat() {
        assert_eq!(TaskStat::parse("77 (a) S 1 77"), None);
        assert_eq!(TaskStat::parse(""), None);
        assert_eq!(TaskStat::parse(") ("), None);
    }

    #[test]
    fn this_process_reads_itself() {
        let proc = ProcFs::new("/");
        let pid = Pid(std::process::id());
        assert!(proc.processes().unwrap().contains(&pid));
        let tid = proc.threads(pid).unwrap()[0];
        let stat = proc.task_stat(pid, tid).unwrap();
        assert!(!stat.is_kernel_thread());
        let allowed: conuma_topology::CpuSet = proc.task_allowed_cpus(pid, tid).unwrap();
        assert!(!allowed.is_empty());
        assert!(proc.task_stat(Pid(u32::MAX / 2), Tid(1)).unwrap_err().is_gone());
    }
}
