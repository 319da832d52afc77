//! Scripts: a host, VMs with loads, faults, and what is expected of the outcome, in TOML.
//!
//! ```toml
//! host = "4n8c1t@16G"
//! seconds = 600
//! seed = 1                       # 1 if left out
//!
//! [[vm]]
//! name = "web"
//! count = 3                      # web1 to web3; one VM of just that name if left out
//! weight = 200
//! guarantee = 2
//! limit = 16
//! kind = "web"                   # web, batch, hpc, spin, liar
//! load = { shape = "bursts", base = 1.0, peak = 9.0, every = 60.0, lasts = 10.0 }
//! memory = { from = "1G", to = "6G", begin = 60.0, end = 300.0 }   # working set; grows between these times
//! guaranteed_memory = "2G"
//! node = 1                       # where the working set is; where the cores are if left out
//!
//! [faults]                       # see `Faults`
//! [cadence]                      # see `Cadence`
//! [latency]                      # see `Latency`
//! [tuning]                       # as in a policy file
//!
//! [expect]                       # what the outcome must be; each may be left out
//! guarantee_violations = 0
//! cores_moved_later = 0          # after the first two minutes, at most
//! least_useful = 0.9             # of what was wanted
//! least_of_oracle = 0.9          # of what the oracle does
//! most_recall_ms = 900.0
//! ```

use std::time::Duration;

use conuma_policy::{Rules, Tuning};
use conuma_topology::{Bytes, NodeId};
use fastrand::Rng;
use serde::Deserialize;

use crate::actuator::Latency;
use crate::fault::Faults;
use crate::fluid::{self, Fluid};
use crate::outcome::Outcome;
use crate::render;
use crate::site::{Site, SiteError};
use crate::trace::generate::Shape;
use crate::trace::{Kind, Point, Trace, TraceVm, VmTerms};
use crate::world::{self, Cadence, Options};

/// A script.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Script {
    /// The host.
    pub host: String,
    /// How long.
    pub seconds: f64,
    /// Of all that is random.
    #[serde(default = "one")]
    pub seed: u64,
    /// The VMs.
    #[serde(default)]
    pub vm: Vec<ScriptVm>,
    /// What goes wrong.
    #[serde(default)]
    pub faults: Faults,
    /// When guests report.
    #[serde(default)]
    pub cadence: Cadence,
    /// How long things take.
    #[serde(default)]
    pub latency: Latency,
    /// Of the policy.
    #[serde(default)]
    pub tuning: Tuning,
    /// What the outcome must be.
    #[serde(default)]
    pub expect: Expect,
}

/// A VM, or several alike.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ScriptVm {
    name: String,
    count: Option<u32>,
    #[serde(default = "hundred")]
    weight: u32,
    guarantee: Option<usize>,
    limit: Option<usize>,
    #[serde(default)]
    kind: Kind,
    load: Shape,
    memory: Option<Growth>,
    guaranteed_memory: Option<Bytes>,
    node: Option<u32>,
}

/// A working set.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(deny_unknown_fields)]
struct Growth {
    from: Bytes,
    to: Option<Bytes>,
    #[serde(default)]
    begin: f64,
    #[serde(default)]
    end: f64,
}

/// What the outcome must be.
#[derive(Debug, Clone, Copy, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Expect {
    /// At most so many.
    pub guarantee_violations: Option<u64>,
    /// At most so many after the first two minutes.
    pub cores_moved_later: Option<u64>,
    /// MiB, at most so many after the first two minutes.
    pub mib_moved_later: Option<u64>,
    /// At least this share of what was wanted.
    pub least_useful: Option<f64>,
    /// At least this share of what the oracle does.
    pub least_of_oracle: Option<f64>,
    /// The longest recall of a guarantee, at most.
    pub most_recall_ms: Option<f64>,
    /// GiB-seconds without room, at most.
    pub most_memory_unmet: Option<f64>,
}

fn one() -> u64 {
    1
}

fn hundred() -> u32 {
    100
}

/// Why a script cannot be run.
#[derive(Debug, thiserror::Error)]
pub enum ScriptError {
    /// It cannot be read.
    #[error("{file}: {source}")]
    Toml {
        /// Which.
        file: String,
        /// Where and why.
        source: toml::de::Error,
    },
    /// A VM's name is none.
    #[error(transparent)]
    Name(#[from] conuma_topology::ParseVmNameError),
    /// It lasts no time, or longer than ten years.
    #[error("{file}: `seconds` must be above 0 and at most a year's")]
    Seconds {
        /// Which.
        file: String,
    },
    /// Its host or VMs do not work.
    #[error(transparent)]
    Site(#[from] SiteError),
}

/// What came of a script.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct Played {
    /// What came of it.
    pub outcome: Outcome,
    /// Useful core-seconds of the oracle.
    pub oracle: f64,
    /// What is not as expected.
    pub unexpected: Vec<String>,
}

impl Script {
    /// Reads a script; `file` only appears in errors.
    pub fn parse(text: &str, file: &str) -> Result<Self, ScriptError> {
        let script: Self = toml::from_str(text).map_err(|source| ScriptError::Toml { file: file.into(), source })?;
        if script.seconds > 0.0 && script.seconds <= 366.0 * 86_400.0 {
            Ok(script)
        } else {
            Err(ScriptError::Seconds { file: file.into() })
        }
    }

    /// What its VMs want, over time.
    pub fn trace(&self) -> Result<Trace, ScriptError> {
        let mut rng = Rng::with_seed(self.seed);
        let mut vms = Vec::new();
        for vm in &self.vm {
            for number in 1..=vm.count.unwrap_or(1) {
                let name = if vm.count.is_some() { format!("{}{number}", vm.name) } else { vm.name.clone() };
                let mut points = vm.load.points(self.seconds, &mut rng);
                if let Some(growth) = &vm.memory {
                    points = growth.along(&points);
                }
                let terms = VmTerms {
                    weight: vm.weight,
                    guarantee: vm.guarantee,
                    limit: vm.limit,
                    memory: vm.guaranteed_memory,
                    kind: vm.kind,
                    node: vm.node.map(NodeId),
                };
                vms.push(TraceVm { name: name.parse()?, terms, points });
            }
        }
        let end = Duration::from_secs_f64(self.seconds);
        Ok(Trace { name: "script".into(), host: Some(self.host.clone()), end, vms })
    }

    /// Runs it.
    pub fn play(&self) -> Result<Played, ScriptError> {
        let trace = self.trace()?;
        let site = Site::new(&trace, None)?;
        let options = Options {
            seed: self.seed,
            cadence: self.cadence.clone(),
            latency: self.latency.clone(),
            faults: self.faults.clone(),
            rules: Rules { tuning: self.tuning, ..Rules::default() },
            ..Options::default()
        };
        let terms = fluid::Terms { penalty: 0.0, far_loss: self.tuning.far_loss };
        let fair = fluid::fair(&trace, &site, &terms);
        let oracle = fluid::run(&trace, &site, Fluid::Oracle, &terms, &fair).useful;
        let outcome = world::run(&trace, &site, &options, &fair)?;
        let unexpected = self.expect.check(&outcome, oracle);
        Ok(Played { outcome, oracle, unexpected })
    }
}

impl Expect {
    fn check(&self, outcome: &Outcome, oracle: f64) -> Vec<String> {
        let mut wrong: Vec<String> =
            outcome.broken.iter().map(|broken| format!("an invariant broke: {broken}")).collect();
        let mut most = |what: &str, value: f64, most: Option<f64>| {
            if let Some(most) = most.filter(|most| value > *most) {
                wrong.push(format!("{what}: {value:.1}, at most {most:.1} expected"));
            }
        };
        let count = |count: Option<u64>| count.map(|count| count as f64);
        most("guarantee violations", outcome.guarantee_violations as f64, count(self.guarantee_violations));
        most("cores moved after 2 minutes", outcome.moves.cores_later as f64, count(self.cores_moved_later));
        most("MiB moved after 2 minutes", outcome.moves.mib_later as f64, count(self.mib_moved_later));
        most("longest recall in ms", outcome.recalls.max_ms, self.most_recall_ms);
        most("memory without room", outcome.memory_unmet, self.most_memory_unmet);
        let mut least = |what: &str, of: f64, least: Option<f64>| {
            let share = if of > 0.0 { outcome.useful / of } else { 1.0 };
            if let Some(least) = least.filter(|least| share < *least) {
                wrong.push(format!("useful, of {what}: {share:.3}, at least {least:.3} expected"));
            }
        };
        least("what was wanted", outcome.demand, self.least_useful);
        least("what the oracle does", oracle, self.least_of_oracle);
        wrong
    }
}

impl Growth {
    /// The same points with a working set, and more of them where that grows: once a second.
    fn along(&self, points: &[Point]) -> Vec<Point> {
        let at = |time: f64| {
            let to = self.to.unwrap_or(self.from);
            let done = if self.end > self.begin {
                ((time - self.begin) / (self.end - self.begin)).clamp(0.0, 1.0)
            } else {
                0.0
            };
            let bytes = self.from.0 as f64 + (to.0 as f64 - self.from.0 as f64) * done;
            Bytes(bytes as u64).round_down(Bytes::mib(1))
        };
        let mut times: Vec<Duration> = points.iter().map(|point| point.at).collect();
        times.extend((self.begin.max(0.0) as u64..=self.end.max(0.0) as u64).map(Duration::from_secs));
        times.sort_unstable();
        times.dedup();
        let mut cores = 0.0;
        let mut next = points.iter().peekable();
        times
            .into_iter()
            .map(|time| {
                while let Some(point) = next.next_if(|point| point.at <= time) {
                    cores = point.cores;
                }
                Point { at: time, cores, memory: at(time.as_secs_f64()) }
            })
            .collect()
    }
}

impl Played {
    /// As text.
    pub fn render(&self) -> String {
        let share = if self.oracle > 0.0 { self.outcome.useful / self.oracle * 100.0 } else { 100.0 };
        let mut text = format!("of the oracle         {share:.1} %\n") + &render::outcome(&self.outcome);
        for wrong in &self.unexpected {
            text.push_str(&format!("\nNOT AS EXPECTED: {wrong}\n"));
        }
        text
    }
}
