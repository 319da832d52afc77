//! An independent witness inside the virtual host.
//!
//! Shares no code with the daemon: it reads the cgroup tree, `/proc` and a QMP monitor of its own, ten times a
//! second, and counts every instant at which two VMs could use the same core or a node's memory was promised twice.
//!
//! A sample reads the whole state twice. A single pass is not an instant: a core may be read as still
//! open in one VM and, a moment later, as already open in the other. What stands in *both* passes was true between them,
//! so only that counts as a violation.

mod memory;
mod vcpus;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use self::memory::MemoryWitness;
use self::vcpus::Leaf;

/// What to watch, and for how long.
#[derive(Debug, Clone)]
pub struct Watch {
    /// Root of the file system with `proc` and `sys`; `/` in the virtual host.
    pub root: PathBuf,
    /// Directory that holds one cgroup per VM.
    pub cgroups: PathBuf,
    /// A QMP monitor per VM that nobody else uses; VMs without one are watched for cores only.
    pub monitors: BTreeMap<String, PathBuf>,
    /// Time between samples.
    pub period: Duration,
    /// Memory per node, in bytes, that VMs may use together.
    pub node_limits: BTreeMap<u32, u64>,
    /// Ends the watch when it appears.
    pub until: PathBuf,
}

/// What was seen from start to end.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Findings {
    /// Samples taken.
    pub samples: u64,
    /// Milliseconds watched.
    pub watched_ms: u64,
    /// The longest time between two samples, milliseconds.
    pub longest_gap_ms: u64,
    /// Samples of memory sizes taken.
    pub memory_samples: u64,
    /// Everything that must never be; at most [`MOST_VIOLATIONS`] are kept.
    pub violations: Vec<Violation>,
    /// Number of violations, also those not kept.
    pub violation_count: u64,
    /// Run time of each VM's vCPU threads, nanoseconds, by whether their gate was open (held) or closed (stray).
    pub run_time: BTreeMap<String, RunTime>,
    /// The largest part of one sample (0 to 1) that one vCPU ran behind a closed gate, once its gate had been closed for
    /// a whole second.
    pub worst_stray_share: f64,
    /// Sets of CPUs that each VM held at some sample, in order of appearance.
    pub holdings_seen: BTreeMap<String, Vec<String>>,
}

/// Run time of a VM's vCPU threads, nanoseconds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunTime {
    /// While the gate was open at both ends of a sample.
    pub held_ns: u64,
    /// While the gate was closed at both ends of a sample.
    pub stray_ns: u64,
}

/// Something that must never be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Violation {
    /// Milliseconds after the watch began.
    pub at_ms: u64,
    /// What was seen.
    pub what: String,
}

/// Violations kept word for word.
pub const MOST_VIOLATIONS: usize = 50;

/// A gate that closed just now may still have work to hand over; stray time counts after this.
const SETTLING: Duration = Duration::from_secs(1);

/// Watches until the stop file appears.
pub fn watch(watch: &Watch) -> Result<Findings> {
    let mut state = State::new(watch);
    while !watch.until.exists() {
        let due = Instant::now() + watch.period;
        state.sample()?;
        std::thread::sleep(due.saturating_duration_since(Instant::now()));
    }
    Ok(state.finish())
}

struct State<'a> {
    watch: &'a Watch,
    begun: Instant,
    last: Option<Instant>,
    findings: Findings,
    before: BTreeMap<(String, u32), Leaf>,
    closed_since: BTreeMap<(String, u32), Instant>,
    cores: Vec<BTreeSet<u32>>,
    memory: MemoryWitness,
}

impl<'a> State<'a> {
    fn new(watch: &'a Watch) -> Self {
        Self {
            watch,
            begun: Instant::now(),
            last: None,
            findings: Findings::default(),
            before: BTreeMap::new(),
            closed_since: BTreeMap::new(),
            cores: vcpus::cores(&watch.root),
            memory: MemoryWitness::new(watch.monitors.clone()),
        }
    }

    fn sample(&mut self) -> Result<()> {
        let now = Instant::now();
        let first = self.read_leaves()?;
        let sizes_first = self.memory.sizes();
        let second = self.read_leaves()?;
        let sizes_second = self.memory.sizes();
        self.count_gap(now);
        self.check_cores(&first, &second);
        self.check_memory(&sizes_first, &sizes_second);
        self.count_run_time(now, &second);
        self.note_holdings(&second);
        self.findings.samples += 1;
        self.before = second;
        Ok(())
    }

    fn read_leaves(&self) -> Result<BTreeMap<(String, u32), Leaf>> {
        vcpus::read(&self.watch.root, &self.watch.cgroups)
            .with_context(|| format!("reading VM cgroups below {}", self.watch.cgroups.display()))
    }

    fn count_gap(&mut self, now: Instant) {
        if let Some(last) = self.last.replace(now) {
            let gap = now.duration_since(last).as_millis() as u64;
            self.findings.longest_gap_ms = self.findings.longest_gap_ms.max(gap);
        }
    }

    /// At most one VM has an open gate on any CPU of a core.
    fn check_cores(&mut self, first: &BTreeMap<(String, u32), Leaf>, second: &BTreeMap<(String, u32), Leaf>) {
        let steady: Vec<_> =
            second.iter().filter(|(key, leaf)| leaf.open && first.get(*key).is_some_and(|l| l.open)).collect();
        for core in self.cores.clone() {
            let users: BTreeSet<&str> = steady
                .iter()
                .filter(|(_, leaf)| !leaf.cpus.is_disjoint(&core))
                .map(|((vm, _), _)| vm.as_str())
                .collect();
            if users.len() > 1 {
                self.violation(format!("core {core:?} is open to {users:?} at once"));
            }
        }
        for ((vm, vcpu), leaf) in second {
            if leaf.cpus.len() != 1 {
                self.violation(format!("vCPU {vcpu} of {vm} may run on {:?}", leaf.cpus));
            }
        }
    }

    /// Per node, what VMs could touch together stays below the limit.
    fn check_memory(&mut self, first: &memory::Sizes, second: &memory::Sizes) {
        if !second.is_empty() {
            self.findings.memory_samples += 1;
        }
        for (node, limit) in &self.watch.node_limits {
            let sum: u64 = second
                .iter()
                .filter(|(key, _)| key.1 == *node)
                .map(|(key, bytes)| first.get(key).map_or(0, |earlier| (*earlier).min(*bytes)))
                .sum();
            if sum > *limit {
                self.violation(format!("node {node}: VMs could touch {sum} bytes together, {limit} are there"));
            }
        }
    }

    fn count_run_time(&mut self, now: Instant, leaves: &BTreeMap<(String, u32), Leaf>) {
        for (key, leaf) in leaves {
            let closed_for = if leaf.open {
                self.closed_since.remove(key);
                Duration::ZERO
            } else {
                now.duration_since(*self.closed_since.entry(key.clone()).or_insert(now))
            };
            let Some(before) = self.before.get(key).filter(|before| before.thread == leaf.thread) else { continue };
            let ran = leaf.run_ns.saturating_sub(before.run_ns);
            let total = self.findings.run_time.entry(key.0.clone()).or_default();
            match (before.open, leaf.open) {
                (true, true) => total.held_ns += ran,
                (false, false) => {
                    total.stray_ns += ran;
                    let window = leaf.read_at.duration_since(before.read_at).as_nanos() as f64;
                    if closed_for >= SETTLING && window > 0.0 {
                        self.findings.worst_stray_share = self.findings.worst_stray_share.max(ran as f64 / window);
                    }
                }
                _ => {}
            }
        }
    }

    fn note_holdings(&mut self, leaves: &BTreeMap<(String, u32), Leaf>) {
        let mut held: BTreeMap<&str, BTreeSet<u32>> = BTreeMap::new();
        for ((vm, _), leaf) in leaves {
            let cpus = held.entry(vm).or_default();
            if leaf.open {
                cpus.extend(&leaf.cpus);
            }
        }
        for (vm, cpus) in held {
            let text = cpus.iter().map(u32::to_string).collect::<Vec<_>>().join(",");
            let seen = self.findings.holdings_seen.entry(vm.to_owned()).or_default();
            if seen.last() != Some(&text) {
                seen.push(text);
            }
        }
    }

    fn violation(&mut self, what: String) {
        self.findings.violation_count += 1;
        if self.findings.violations.len() < MOST_VIOLATIONS {
            let at_ms = self.begun.elapsed().as_millis() as u64;
            self.findings.violations.push(Violation { at_ms, what });
        }
    }

    fn finish(mut self) -> Findings {
        self.findings.watched_ms = self.begun.elapsed().as_millis() as u64;
        self.findings
    }
}
