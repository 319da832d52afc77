//! An independent witness inside the virtual host.
//!
//! Shares no code with the daemon: it reads the cgroup tree, `/proc` and a QMP monitor of its own, ten times a
//! second, and counts every instant at which two VMs could use the same core or a node's memory was promised twice.
//!
//! Cores and memory are watched side by side: QEMU may be slow to answer, cgroups are not.
//! A sample reads the state twice. A single pass is not an instant: a core may be read as still
//! open in one VM and, a moment later, as already open in the other. What stands in *both* passes was true between them,
//! so only that counts as a violation.

mod cores;
mod memory;
mod vcpus;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::Result;
use serde::{Deserialize, Serialize};

use self::cores::CoreWitness;
use self::memory::MemoryWitness;

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
    /// Samples of cores taken.
    pub samples: u64,
    /// Milliseconds watched.
    pub watched_ms: u64,
    /// The longest time between two samples of cores, milliseconds.
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

/// Watches until the stop file appears.
pub fn watch(watch: &Watch) -> Result<Findings> {
    let begun = Instant::now();
    let mut cores = CoreWitness::new(watch, begun);
    let mut memory = MemoryWitness::new(watch, begun);
    let watched = std::thread::scope(|scope| {
        scope.spawn(|| {
            every(watch, || {
                memory.sample();
                Ok(())
            })
        });
        every(watch, || cores.sample())
    });
    watched?;
    let mut findings = cores.finish();
    findings.memory_samples = memory.samples;
    let kept = MOST_VIOLATIONS.saturating_sub(findings.violations.len());
    findings.violations.extend(memory.violations.kept.into_iter().take(kept));
    findings.violation_count += memory.violations.count;
    findings.watched_ms = begun.elapsed().as_millis() as u64;
    Ok(findings)
}

/// Does something once a period until the stop file appears.
fn every(watch: &Watch, mut what: impl FnMut() -> Result<()>) -> Result<()> {
    while !watch.until.exists() {
        let due = Instant::now() + watch.period;
        what()?;
        std::thread::sleep(due.saturating_duration_since(Instant::now()));
    }
    Ok(())
}

/// What must never be, with the time since the watch began.
struct Violations {
    begun: Instant,
    kept: Vec<Violation>,
    count: u64,
}

impl Violations {
    fn new(begun: Instant) -> Self {
        Self { begun, kept: Vec::new(), count: 0 }
    }

    fn add(&mut self, what: String) {
        self.count += 1;
        if self.kept.len() < MOST_VIOLATIONS {
            let at_ms = self.begun.elapsed().as_millis() as u64;
            self.kept.push(Violation { at_ms, what });
        }
    }
}
