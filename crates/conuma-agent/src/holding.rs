//! Applying a holding: everything that keeps work off CPUs the guest does not hold.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use conuma_agent_proto::{
    AgentError, CgroupMode, Generation, HoldingOutcome, Leftover, Leftovers, MAX_LEFTOVERS, Refusal, RefusalReason,
    Stage, StageTime, TaskKind,
};
use conuma_linux::procfs::ProcFs;
use conuma_topology::GuestCpuSet;

use crate::cgroups::{Cgroups, Owner};
use crate::interrupts::{Interrupts, Which, confine_workqueues};
use crate::kernel::{Kernel, read_list};
use crate::state::{State, StateFile};
use crate::tasks::{self, KernelThreads, Look, Stray};
use crate::warn;
use crate::wish::{Target, Touched};

/// Before what was left undone and failed is tried again.
const RETRY: Duration = Duration::from_secs(5);

/// How much to look at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Depth {
    /// Only what could have changed the effect of the holding: cgroups and new tasks.
    Light,
    /// Also what users' tasks in the root cgroup, which no cpuset holds, may still use.
    Verify,
    /// Also every interrupt and kernel thread anew, and what every task may use.
    Everything,
}

/// The one place that changes where work runs in this guest.
pub struct Holder {
    kernel: Arc<dyn Kernel>,
    proc: ProcFs,
    state: State,
    file: StateFile,
    /// Whether the kernel keeps tasks' own affinity wishes when it changes cpusets (6.2 and later).
    keeps_own_affinity: bool,
    threads: KernelThreads,
    interrupts: Interrupts,
    before: Option<Target>,
    /// Since when something is left for some time after an answer.
    unfinished: Option<Instant>,
}

impl Holder {
    /// Learns what an earlier run of the agent left behind in `run_dir` during this boot.
    pub fn open(kernel: Arc<dyn Kernel>, run_dir: &Path) -> anyhow::Result<Self> {
        use anyhow::Context as _;
        let proc = ProcFs::new(kernel.root());
        let release = proc.kernel_release()?;
        let (file, state) = StateFile::open(run_dir, proc.boot_id()?)
            .with_context(|| format!("cannot use {} (choose another with --run)", run_dir.display()))?;
        Ok(Self {
            kernel,
            proc,
            state,
            file,
            keeps_own_affinity: version(&release) >= Some((6, 2)),
            threads: KernelThreads::default(),
            interrupts: Interrupts::default(),
            before: None,
            unfinished: None,
        })
    }

    /// The newest generation seen during this boot.
    pub fn newest(&self) -> Generation {
        self.state.newest
    }

    /// The last holding applied during this boot.
    pub fn holding(&self) -> Option<&GuestCpuSet> {
        self.state.holding.as_ref()
    }

    /// Refuses what is older than what was already seen.
    pub fn fence(&mut self, generation: Generation) -> Result<(), AgentError> {
        if self.advance(generation)? {
            self.save();
        }
        Ok(())
    }

    /// Whether it is newer than what was already seen.
    fn advance(&mut self, generation: Generation) -> Result<bool, AgentError> {
        let before = self.state.newest;
        if generation < before {
            return Err(AgentError::Stale { newest: before });
        }
        self.state.newest = generation;
        Ok(generation > before)
    }

    /// Does ahead of time what the first holding would have to wait for, and applies the holding
    /// of an earlier run again.
    pub fn settle(&mut self) -> Result<(), AgentError> {
        if Cgroups::new(&*self.kernel).mode() != CgroupMode::Unified {
            return Err(unsupported());
        }
        match self.state.holding.clone() {
            Some(holding) => self.enforce(&holding, Depth::Everything, Instant::now()).map(drop),
            None => {
                let cgroups = Cgroups::new(&*self.kernel);
                cgroups.enable().map_err(|error| failed("enabling cpusets", &error))?;
                self.interrupts.learn(&*self.kernel, &mut self.state);
                let stuck = self.threads.sweep(&*self.kernel, &self.proc, Look::Full);
                stuck.map(drop).map_err(|error| failed("reading the root cgroup", &error))
            }
        }
    }

    /// Uses exactly these CPUs from now on, as far as it can be done.
    pub fn apply(
        &mut self,
        generation: Generation,
        cpus: &GuestCpuSet,
        deadline: Instant,
    ) -> Result<HoldingOutcome, AgentError> {
        if Cgroups::new(&*self.kernel).mode() != CgroupMode::Unified {
            return Err(unsupported());
        }
        // What is enforced is saved with its generation, so that need not be done twice.
        let newer = self.advance(generation)?;
        self.enforce(cpus, Depth::Verify, deadline).inspect_err(|_| {
            if newer {
                self.save();
            }
        })
    }

    /// Applies the last holding again, if there is one: cgroups come and go.
    pub fn reapply(&mut self, depth: Depth) -> Result<Option<HoldingOutcome>, AgentError> {
        let Some(holding) = self.state.holding.clone() else { return Ok(None) };
        self.enforce(&holding, depth, Instant::now()).map(Some)
    }

    /// Since when there is something that [`Self::apply`] left for some time after its answer.
    pub fn unfinished_since(&self) -> Option<Instant> {
        self.unfinished
    }

    /// Does what [`Self::apply`] left for some time after its answer.
    pub fn finish(&mut self) -> Result<(), AgentError> {
        if self.unfinished.take().is_none() {
            return Ok(());
        }
        self.interrupts.learn(&*self.kernel, &mut self.state);
        self.reapply(Depth::Light).map(drop).inspect_err(|_| self.unfinished = Some(Instant::now() + RETRY))
    }

    /// Whether some CPU is not to be used, so that the holding needs watching.
    pub fn is_restricted(&self) -> bool {
        self.before.as_ref().is_some_and(|target| !target.unrestricted)
    }

    fn enforce(
        &mut self,
        holding: &GuestCpuSet,
        depth: Depth,
        deadline: Instant,
    ) -> Result<HoldingOutcome, AgentError> {
        let kernel = Arc::clone(&self.kernel);
        let cgroups = Cgroups::new(&*kernel);
        let mut clock = Clock::start();
        let online: GuestCpuSet = read_list(&*kernel, "sys/devices/system/cpu/online")
            .map_err(|error| failed("reading the online CPUs", &error))?;
        cgroups.enable().map_err(|error| failed("enabling cpusets", &error))?;
        let owners = cgroups.owners(&online).map_err(|error| failed("reading the cgroups", &error))?;
        let exclusive = owners.iter().fold(GuestCpuSet::new(), |all, owner| all.union(&owner.cpus));
        let target = Target::new(holding, &online, &exclusive).ok_or_else(|| {
            AgentError::BadRequest(format!(
                "no CPU would be left: of {{{holding}}} none is both online ({online}) and not exclusively owned ({exclusive})"
            ))
        })?;

        if depth == Depth::Everything {
            self.threads.forget();
        }
        let before = self.before.replace(target.clone()).or_else(|| {
            // After a restart of the agent: what its last run enforced.
            Target::new(self.state.holding.as_ref()?, &online, &exclusive)
        });
        let before = before.unwrap_or_else(|| Target { cpus: online.difference(&exclusive), unrestricted: true });
        // Tasks can use what is new as soon as the cpusets say so. The rest only spreads work that has where to run.
        let only_grows = before != target && before.cpus.is_subset(&target.cpus);
        if !self.keeps_own_affinity {
            self.state.own_affinities =
                tasks::own_affinities(&*kernel, &self.proc, &self.threads, &before, &self.state.own_affinities);
        }
        self.state.holding = Some(holding.clone());

        let mut refused = refusals_up_front(holding, &online, &owners);
        refused.extend(self.write_cpusets(&target, &owners).map_err(|error| failed("reading the cgroups", &error))?);
        clock.lap(Stage::Cgroups);
        let held = target.cpus.union(&exclusive.intersection(holding));
        if depth == Depth::Verify && only_grows {
            if !self.keeps_own_affinity {
                tasks::restore_own_affinities(&*kernel, &self.state.own_affinities);
            }
            self.unfinished.get_or_insert_with(Instant::now);
            self.save();
            return Ok(self.outcome(held, &online, refused, Vec::new(), clock));
        }

        let mut left = self.confine_tasks(&target, depth, &mut clock)?;
        self.confine_interrupts(&target, depth, &before.cpus.difference(&target.cpus));
        clock.lap(Stage::Interrupts);

        // Kernel threads, and interrupts that fire elsewhere, may wait: they seldom run. And the kernel makes new pools for all
        // its unbound work, which takes longer than all the rest, and does not move what is under way: nothing is won by
        // making the host wait for that.
        if depth == Depth::Verify {
            self.unfinished.get_or_insert_with(Instant::now);
        } else {
            self.unfinished = None;
            self.confine_workqueues(&target);
            clock.lap(Stage::Workqueues);
        }
        self.save();

        let usable = target.cpus.union(&exclusive);
        if depth != Depth::Light && !target.unrestricted {
            // Where a cgroup did not follow, people want to know whom that concerns.
            let all = depth == Depth::Everything || !refused.is_empty();
            let strays = self.verify(&usable, all, deadline);
            refused.extend(still_in_use(&strays));
            left.extend(strays.into_iter().map(|stray| stray.task));
        }
        clock.lap(Stage::Verify);

        Ok(self.outcome(held, &online, refused, left, clock))
    }

    /// Moves users' tasks out of the root cgroup and, unless that may wait, kernel threads to the target; gives those that
    /// stay outside.
    fn confine_tasks(&mut self, target: &Target, depth: Depth, clock: &mut Clock) -> Result<Vec<Leftover>, AgentError> {
        let kernel = Arc::clone(&self.kernel);
        let look = if depth == Depth::Verify { Look::Quick } else { Look::Full };
        let swept = self.threads.sweep(&*kernel, &self.proc, look);
        for (pid, error) in swept.map_err(|error| failed("reading the root cgroup", &error))? {
            warn!("process {pid} stays in the root cgroup: {error}");
        }
        if !self.keeps_own_affinity {
            tasks::restore_own_affinities(&*kernel, &self.state.own_affinities);
        }
        let left = if depth == Depth::Verify {
            Vec::new()
        } else {
            let look = if depth == Depth::Everything { Look::Full } else { Look::Quick };
            self.threads.confine(&*kernel, target, &mut self.state.kernel_threads, look)
        };
        clock.lap(Stage::Tasks);
        Ok(left)
    }

    /// `leaving` are CPUs that were used until now.
    fn confine_interrupts(&mut self, target: &Target, depth: Depth, leaving: &GuestCpuSet) {
        match depth {
            Depth::Light => {}
            // What changed since it was last read is seen after the answer.
            Depth::Verify => self.interrupts.learn_once(&*self.kernel, &mut self.state),
            Depth::Everything => self.interrupts.learn(&*self.kernel, &mut self.state),
        }
        let which = if depth == Depth::Verify { Which::FiringOn(leaving) } else { Which::All };
        self.interrupts.confine(&*self.kernel, target, &mut self.state, which);
    }

    fn confine_workqueues(&mut self, target: &Target) {
        if let Err(error) = confine_workqueues(&*self.kernel, target, &mut self.state) {
            warn!("unbound kernel work cannot be moved: {error}");
        }
    }

    fn outcome(
        &self,
        held: GuestCpuSet,
        online: &GuestCpuSet,
        refused: Vec<Refusal>,
        left: Vec<Leftover>,
        clock: Clock,
    ) -> HoldingOutcome {
        let kept_busy = refused.iter().fold(GuestCpuSet::new(), |all, refusal| all.union(&refusal.cpus));
        let quiesced = online.difference(&held).difference(&kept_busy);
        HoldingOutcome { leftovers: self.leftovers(left, &quiesced), held, quiesced, refused, timings: clock.laps }
    }

    /// Writes every top-level cgroup's `cpuset.cpus`, and reads back what came of it.
    fn write_cpusets(&mut self, target: &Target, owners: &[Owner]) -> io::Result<Vec<Refusal>> {
        let cgroups = Cgroups::new(&*self.kernel);
        let mut touched = BTreeMap::new();
        let mut refused = Vec::new();
        for name in cgroups.top_level()? {
            if owners.iter().any(|owner| owner.is_top_level() && owner.path == name) {
                continue;
            }
            let below = owners.iter().filter(|owner| owner.top_level() == name);
            let owned_below = below.fold(GuestCpuSet::new(), |all, owner| all.union(&owner.cpus));
            let now = match cgroups.cpus(&name) {
                // Removed meanwhile.
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                now => now?,
            };
            let mut mask = Touched::observe(self.state.cgroups.get(&name).cloned(), now);
            let wanted = target.cut_cpuset(&mask.wish, &owned_below);
            let mut answer = None;
            if wanted != mask.wrote {
                if cgroups.is_partition(&name) {
                    answer = Some(format!("it is to own CPUs {} exclusively", mask.wrote));
                } else {
                    // A cpuset with tasks in it cannot be unset: then it is to have every CPU.
                    let unset = wanted.is_empty().then(|| target.cpus.clone());
                    let written = cgroups.set_cpus(&name, &wanted).map(|()| wanted).or_else(|error| match unset {
                        Some(all) => cgroups.set_cpus(&name, &all).map(|()| all),
                        None => Err(error),
                    });
                    match written {
                        Ok(wrote) => mask.wrote = wrote,
                        Err(error) => answer = Some(error.to_string()),
                    }
                }
            }
            if !target.unrestricted {
                let effective = cgroups.effective(&name).unwrap_or_default();
                let outside = effective.difference(&target.cpus.union(&owned_below));
                if !outside.is_empty() {
                    let error = answer.unwrap_or_else(|| format!("tasks in it may still use {effective}"));
                    let reason = RefusalReason::Cgroup { cgroup: name.clone(), error };
                    refused.push(Refusal { cpus: outside, reason });
                }
            }
            touched.insert(name, mask);
        }
        self.state.cgroups = touched;
        Ok(refused)
    }

    /// Looks until no task may run outside `usable`, at least once: new processes may have been started in the root cgroup
    /// while it was swept. Other tasks are held by a cpuset that was read back: their masks, which take long to read in
    /// large guests, are looked at only with `all`.
    fn verify(&mut self, usable: &GuestCpuSet, all: bool, deadline: Instant) -> Vec<Stray> {
        const ROUNDS: usize = 3;
        let mut strays = Vec::new();
        for _ in 0..ROUNDS {
            let Ok(stuck) = self.threads.sweep(&*self.kernel, &self.proc, Look::Quick) else { break };
            let pids = match all {
                true => tasks::others(&self.proc, &self.threads),
                false => stuck.into_iter().map(|(pid, _)| pid).collect(),
            };
            strays = tasks::strays(&*self.kernel, &self.proc, &pids, usable);
            if strays.is_empty() || Instant::now() >= deadline {
                break;
            }
        }
        strays
    }

    fn leftovers(&self, mut tasks: Vec<Leftover>, quiesced: &GuestCpuSet) -> Leftovers {
        let more_tasks = tasks.len().saturating_sub(MAX_LEFTOVERS) as u32;
        tasks.truncate(MAX_LEFTOVERS);
        Leftovers {
            tasks,
            more_tasks,
            bound_kernel_threads: self.threads.bound_to(quiesced),
            managed_interrupts: self.interrupts.managed_on(quiesced, &self.state),
        }
    }

    fn save(&mut self) {
        if let Err(error) = self.file.save(&self.state) {
            warn!("what must be remembered cannot be saved, so a restart of the agent would forget it: {error}");
        }
    }
}

/// What is clear before anything is tried.
fn refusals_up_front(holding: &GuestCpuSet, online: &GuestCpuSet, owners: &[Owner]) -> Vec<Refusal> {
    let mut refused = Vec::new();
    let missing = holding.difference(online);
    if !missing.is_empty() {
        refused.push(Refusal { cpus: missing, reason: RefusalReason::NotOnline });
    }
    for owner in owners {
        let cpus = owner.cpus.difference(holding);
        if !cpus.is_empty() {
            refused.push(Refusal { cpus, reason: RefusalReason::Exclusive { cgroup: owner.path.clone() } });
        }
    }
    refused
}

/// One refusal for all CPUs that users' tasks may still use.
fn still_in_use(strays: &[Stray]) -> Option<Refusal> {
    const NAMED: usize = 5;
    let users = || strays.iter().filter(|stray| stray.task.kind == TaskKind::User);
    let cpus = users().fold(GuestCpuSet::new(), |all, stray| all.union(&stray.outside));
    let names: Vec<String> =
        users().take(NAMED).map(|stray| format!("{} ({})", stray.task.name, stray.task.tid)).collect();
    let tasks = match users().count() {
        count if count > NAMED => format!("{} and {} more", names.join(", "), count - NAMED),
        _ => names.join(", "),
    };
    (!cpus.is_empty()).then_some(Refusal { cpus, reason: RefusalReason::InUse { tasks } })
}

fn unsupported() -> AgentError {
    AgentError::Unsupported(
        "there is no cgroup v2 with the cpuset controller in /sys/fs/cgroup (mount it, and keep cpuset out of cgroup v1)"
            .into(),
    )
}

fn failed(what: &str, error: &io::Error) -> AgentError {
    AgentError::Failed(format!("{what}: {error}"))
}

/// Major and minor version of a kernel release.
fn version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(['.', '-']).map_while(|part| part.parse().ok());
    Some((numbers.next()?, numbers.next()?))
}

struct Clock {
    last: Instant,
    laps: Vec<StageTime>,
}

impl Clock {
    fn start() -> Self {
        Self { last: Instant::now(), laps: Vec::new() }
    }

    fn lap(&mut self, stage: Stage) {
        let now = Instant::now();
        self.laps.push(StageTime { stage, took: now - self.last });
        self.last = now;
    }
}

#[cfg(test)]
mod tests {
    use super::version;

    #[test]
    fn versions_of_releases() {
        assert_eq!(version("6.1.0-44-amd64"), Some((6, 1)));
        assert_eq!(version("6.12.95+deb12-cloud-amd64"), Some((6, 12)));
        assert!(version("6.12.1") >= Some((6, 2)));
        assert!(version("6.1.0") < Some((6, 2)));
        assert!(version("odd") < Some((6, 2)));
    }
}
