//! Whether any core is open to two VMs, and how long vCPUs ran behind closed gates.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::vcpus::{self, Leaf};
use super::{Findings, Violations, Watch};

/// A gate that closed just now may still have work to hand over; stray time counts after this.
const SETTLING: Duration = Duration::from_secs(1);

pub(super) struct CoreWitness<'a> {
    watch: &'a Watch,
    last: Option<Instant>,
    findings: Findings,
    violations: Violations,
    before: BTreeMap<(String, u32), Leaf>,
    closed_since: BTreeMap<(String, u32), Instant>,
    cores: Vec<BTreeSet<u32>>,
}

impl<'a> CoreWitness<'a> {
    pub(super) fn new(watch: &'a Watch, begun: Instant) -> Self {
        Self {
            watch,
            last: None,
            findings: Findings::default(),
            violations: Violations::new(begun),
            before: BTreeMap::new(),
            closed_since: BTreeMap::new(),
            cores: vcpus::cores(&watch.root),
        }
    }

    pub(super) fn sample(&mut self) -> Result<()> {
        let now = Instant::now();
        let first = self.read_leaves()?;
        let second = self.read_leaves()?;
        self.count_gap(now);
        self.check_cores(&first, &second);
        self.count_run_time(now, &second);
        self.note_holdings(&second);
        self.findings.samples += 1;
        self.before = second;
        Ok(())
    }

    pub(super) fn finish(self) -> Findings {
        Findings { violations: self.violations.kept, violation_count: self.violations.count, ..self.findings }
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
                self.violations.add(format!("core {core:?} is open to {users:?} at once"));
            }
        }
        for ((vm, vcpu), leaf) in second {
            if leaf.cpus.len() != 1 {
                self.violations.add(format!("vCPU {vcpu} of {vm} may run on {:?}", leaf.cpus));
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
}
