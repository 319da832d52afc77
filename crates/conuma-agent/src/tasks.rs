//! Tasks: who sits in the root cgroup, which kernel threads can be moved, who may still run where
//! nobody should.

use std::collections::{BTreeMap, BTreeSet};
use std::io;

use conuma_agent_proto::{Leftover, TaskKind};
use conuma_linux::procfs::{Pid, ProcFs, TaskStat, Tid};
use conuma_topology::{GuestCpuId, GuestCpuSet};

use crate::cgroups::Cgroups;
use crate::kernel::Kernel;
use crate::state::TaskKey;
use crate::wish::{Target, Touched, own_affinity};

/// A kernel thread in the root cgroup.
#[derive(Debug, Clone)]
struct KernelThread {
    name: String,
    start_ticks: u64,
    /// For one that the kernel has bound for good: to where. `None` for one that can be moved.
    bound_to: Option<GuestCpuSet>,
}

/// What is known of kernel threads, so that applying a holding costs one look at new tasks only.
#[derive(Debug, Default)]
pub struct KernelThreads {
    known: BTreeMap<Pid, KernelThread>,
    /// New ones, of which only that is known: they have no memory of their own.
    new: BTreeSet<Pid>,
}

/// How closely kernel threads are looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Look {
    /// Enough to tell them from users' processes. The kernel makes threads for its work all the time, dozens when a CPU
    /// comes online, and reading what each is would take most of the time that a holding takes.
    Quick,
    /// What each is, and where it may run now.
    Full,
}

/// Processes of users that could not be moved out of the root cgroup.
pub type Stuck = Vec<(Pid, io::Error)>;

impl KernelThreads {
    /// Forgets everything, so that the next sweep looks at every task again: ids are used again.
    pub fn forget(&mut self) {
        self.known.clear();
        self.new.clear();
    }

    /// Whether this is a known kernel thread.
    pub fn contains(&self, pid: Pid) -> bool {
        self.known.contains_key(&pid) || self.new.contains(&pid)
    }

    /// How many kernel threads are bound for good to some of these CPUs.
    pub fn bound_to(&self, cpus: &GuestCpuSet) -> u32 {
        let bound = self.known.values().filter_map(|thread| thread.bound_to.as_ref());
        bound.filter(|on| !on.is_disjoint(cpus)).count() as u32
    }

    /// Moves users' processes out of the root cgroup and learns the kernel threads there. Repeats
    /// while new ones turn up, as a process may fork while it is moved.
    pub fn sweep(&mut self, kernel: &dyn Kernel, proc: &ProcFs, look: Look) -> io::Result<Stuck> {
        const ROUNDS: usize = 4;
        let cgroups = Cgroups::new(kernel);
        let mut stuck = Stuck::new();
        for _ in 0..ROUNDS {
            stuck.clear();
            let mut moved = false;
            let pids = cgroups.root_processes()?;
            self.known.retain(|pid, _| pids.contains(pid));
            self.new.retain(|pid| look == Look::Quick && pids.contains(pid));
            for pid in pids {
                if self.contains(pid) {
                    continue;
                }
                if look == Look::Quick && kernel.has_memory(pid).is_ok_and(|has| !has) {
                    self.new.insert(pid);
                    continue;
                }
                // Gone meanwhile, or on its way.
                let Ok(stat) = proc.task_stat(pid, pid.into()) else { continue };
                if stat.is_kernel_thread() {
                    self.learn(kernel, pid, stat);
                } else if !stat.is_dead() {
                    match cgroups.move_to_rest(pid) {
                        Ok(()) => moved = true,
                        Err(error) if error.raw_os_error() == Some(rustix::io::Errno::SRCH.raw_os_error()) => {}
                        Err(error) => stuck.push((pid, error)),
                    }
                }
            }
            if !moved {
                break;
            }
        }
        Ok(stuck)
    }

    fn learn(&mut self, kernel: &dyn Kernel, pid: Pid, stat: TaskStat) {
        let bound_to = stat.is_bound().then(|| kernel.affinity(pid.into()).unwrap_or_default());
        self.known.insert(pid, KernelThread { name: stat.name, start_ticks: stat.start_ticks, bound_to });
    }

    /// Cuts the affinity of every kernel thread that can be moved to the target, or restores it. With [`Look::Quick`] those
    /// of which that was done are believed to be as they were left.
    pub fn confine(
        &mut self,
        kernel: &dyn Kernel,
        target: &Target,
        touched: &mut BTreeMap<TaskKey, Touched>,
        look: Look,
    ) -> Vec<Leftover> {
        let mut left = Vec::new();
        let mut before = std::mem::take(touched);
        for (&pid, thread) in &mut self.known {
            if thread.bound_to.is_some() {
                continue;
            }
            let tid = Tid::from(pid);
            let key = TaskKey { tid, start_ticks: thread.start_ticks };
            let done = |mask: &Touched| look == Look::Quick && target.cut(&mask.wish) == mask.wrote;
            let mut mask = match before.remove(&key) {
                Some(mask) if done(&mask) => mask,
                known => {
                    let Ok(now) = kernel.affinity(tid) else { continue };
                    Touched::observe(known, now)
                }
            };
            let wanted = target.cut(&mask.wish);
            if wanted != mask.wrote {
                match kernel.set_affinity(tid, &wanted) {
                    Ok(()) => mask.wrote = wanted,
                    Err(error) if error.kind() == io::ErrorKind::InvalidInput => {
                        // The kernel bound it after it was first seen.
                        thread.bound_to = Some(mask.wrote.clone());
                        continue;
                    }
                    Err(_) => {}
                }
            }
            if !target.unrestricted
                && let Some(cpu) = mask.wrote.difference(&target.cpus).first()
            {
                left.push(Leftover { tid: tid.0, name: thread.name.clone(), cpu, kind: TaskKind::Kernel });
            }
            touched.insert(key, mask);
        }
        left
    }
}

/// Every process that is not a known kernel thread.
pub fn others(proc: &ProcFs, known: &KernelThreads) -> Vec<Pid> {
    proc.processes().unwrap_or_default().into_iter().filter(|pid| !known.contains(*pid)).collect()
}

fn threads_of(proc: &ProcFs, pids: &[Pid]) -> Vec<(Pid, Tid)> {
    // A process may end at any time: then it has no threads.
    let threads = |&pid| proc.threads(pid).unwrap_or_default().into_iter().map(move |tid| (pid, tid));
    pids.iter().flat_map(threads).collect()
}

/// Of the threads of these processes those that may run, or do run, outside `usable`; kernel threads that are bound for
/// good left out.
pub fn strays(kernel: &dyn Kernel, proc: &ProcFs, pids: &[Pid], usable: &GuestCpuSet) -> Vec<Stray> {
    let mut strays = Vec::new();
    for (pid, tid) in threads_of(proc, pids) {
        let Ok(allowed) = kernel.affinity(tid) else { continue };
        let outside = allowed.difference(usable);
        if outside.is_empty() {
            continue;
        }
        let Ok(stat) = proc.task_stat(pid, tid) else { continue };
        if stat.is_dead() || (stat.is_kernel_thread() && stat.is_bound()) {
            continue;
        }
        let kind = if stat.is_kernel_thread() { TaskKind::Kernel } else { TaskKind::User };
        let task = Leftover { tid: tid.0, name: stat.name, cpu: GuestCpuId(stat.last_cpu), kind };
        strays.push(Stray { task, outside });
    }
    strays
}

/// A task that may run where it should not.
#[derive(Debug, Clone)]
pub struct Stray {
    /// Who, and where it ran last.
    pub task: Leftover,
    /// CPUs it may use though it should not.
    pub outside: GuestCpuSet,
}

/// Learns the tasks' own affinity wishes before cpusets are written: a kernel before 6.2 forgets
/// them then. What is not returned wants nothing of its own.
pub fn own_affinities(
    kernel: &dyn Kernel,
    proc: &ProcFs,
    known: &KernelThreads,
    before: &Target,
    recorded: &BTreeMap<TaskKey, GuestCpuSet>,
) -> BTreeMap<TaskKey, GuestCpuSet> {
    let by_tid: BTreeMap<Tid, &GuestCpuSet> = recorded.iter().map(|(key, own)| (key.tid, own)).collect();
    let mut found = BTreeMap::new();
    for (pid, tid) in threads_of(proc, &others(proc, known)) {
        let Ok(allowed) = kernel.affinity(tid) else { continue };
        if allowed == before.cpus && by_tid.is_empty() {
            continue;
        }
        let Ok(stat) = proc.task_stat(pid, tid) else { continue };
        if stat.is_kernel_thread() {
            continue;
        }
        let key = TaskKey { tid, start_ticks: stat.start_ticks };
        let leader = by_tid.get(&pid.into()).copied();
        let inherited = leader.or_else(|| by_tid.get(&Tid(stat.parent)).copied());
        if let Some(own) = own_affinity(recorded.get(&key), inherited, &allowed, before) {
            found.insert(key, own);
        }
    }
    found
}

/// Gives tasks their own affinity again, as far as their cpuset lets them.
pub fn restore_own_affinities(kernel: &dyn Kernel, own: &BTreeMap<TaskKey, GuestCpuSet>) {
    for (key, wish) in own {
        // Nothing of the wish is left, or the task has ended: then the cpuset alone counts.
        let _ = kernel.set_affinity(key.tid, wish);
    }
}
