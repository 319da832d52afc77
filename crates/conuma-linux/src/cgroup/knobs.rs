//! Knobs and counters of the cpu, cpuset and memory controllers.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use conuma_topology::{Bytes, CpuSet};

use super::{Cgroup, CgroupError};
use crate::procfs::{Pressure, Resource, parse_pressure};

/// A limit that may be absent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Limit<T> {
    /// At most this.
    At(T),
    /// None; the kernel writes `max`.
    Max,
}

/// `cpu.max`: how long a cgroup may run in each period.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CpuMax {
    /// The most it may run in a period.
    pub quota: Limit<Duration>,
    /// The period; 100 ms unless said otherwise.
    pub period: Duration,
}

/// `cpu.idle`: whether members run only when their CPU has nothing else to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Idle {
    /// Only then.
    Yes,
    /// By their weight.
    No,
}

impl CpuMax {
    /// The kernel's default period.
    pub const PERIOD: Duration = Duration::from_millis(100);

    /// No limit.
    pub const NONE: Self = Self { quota: Limit::Max, period: Self::PERIOD };
}

impl fmt::Display for CpuMax {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.quota {
            Limit::At(quota) => write!(f, "{} {}", quota.as_micros(), self.period.as_micros()),
            Limit::Max => write!(f, "max {}", self.period.as_micros()),
        }
    }
}

/// The text is not a `cpu.max`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NotCpuMax;

impl FromStr for CpuMax {
    type Err = NotCpuMax;

    fn from_str(text: &str) -> Result<Self, NotCpuMax> {
        let (quota, period) = text.trim().split_once(' ').ok_or(NotCpuMax)?;
        let micros = |text: &str| text.parse().map(Duration::from_micros).map_err(|_| NotCpuMax);
        let quota = if quota == "max" { Limit::Max } else { Limit::At(micros(quota)?) };
        Ok(Self { quota, period: micros(period)? })
    }
}

impl Cgroup {
    /// `cpu.idle` (Linux 5.15).
    pub fn idle(&self) -> Result<Idle, CgroupError> {
        match self.read("cpu.idle")?.as_str() {
            "0" => Ok(Idle::No),
            "1" => Ok(Idle::Yes),
            text => Err(self.malformed("cpu.idle", text)),
        }
    }

    /// Sets `cpu.idle`. With `Yes` the cgroup has no weight until it is `No` again.
    pub fn set_idle(&self, idle: Idle) -> Result<(), CgroupError> {
        self.write("cpu.idle", if idle == Idle::Yes { "1" } else { "0" })
    }

    /// `cpu.max`.
    pub fn cpu_max(&self) -> Result<CpuMax, CgroupError> {
        let text = self.read("cpu.max")?;
        text.parse().map_err(|NotCpuMax| self.malformed("cpu.max", &text))
    }

    /// Sets `cpu.max`. The kernel refuses quotas below 1 ms.
    pub fn set_cpu_max(&self, max: CpuMax) -> Result<(), CgroupError> {
        self.write("cpu.max", &max.to_string())
    }

    /// The `cpu.weight` that a cgroup has at first.
    pub const WEIGHT: u32 = 100;

    /// `cpu.weight`, 1 to 10,000; 100 unless said otherwise.
    pub fn weight(&self) -> Result<u32, CgroupError> {
        self.parsed("cpu.weight")
    }

    /// Sets `cpu.weight`.
    pub fn set_weight(&self, weight: u32) -> Result<(), CgroupError> {
        self.write("cpu.weight", &weight.to_string())
    }

    /// How long members have run, from `cpu.stat`.
    pub fn cpu_usage(&self) -> Result<Duration, CgroupError> {
        let stat = self.read("cpu.stat")?;
        let usage = stat.lines().find_map(|line| line.strip_prefix("usage_usec ")?.parse().ok());
        usage.map(Duration::from_micros).ok_or_else(|| self.malformed("cpu.stat", &stat))
    }

    /// `cpuset.cpus`: what was asked for; empty means whatever the parent has.
    pub fn cpus(&self) -> Result<CpuSet, CgroupError> {
        self.parsed("cpuset.cpus")
    }

    /// Sets `cpuset.cpus`; the empty set unsets it.
    pub fn set_cpus(&self, cpus: &CpuSet) -> Result<(), CgroupError> {
        // An empty write would do nothing at all.
        self.write("cpuset.cpus", &format!("{cpus}\n"))
    }

    /// `cpuset.cpus.effective`: what members may really use.
    pub fn effective_cpus(&self) -> Result<CpuSet, CgroupError> {
        self.parsed("cpuset.cpus.effective")
    }

    /// Sets `memory.max` of all memory together.
    pub fn set_memory_max(&self, max: Limit<Bytes>) -> Result<(), CgroupError> {
        match max {
            Limit::At(bytes) => self.write("memory.max", &bytes.0.to_string()),
            Limit::Max => self.write("memory.max", "max"),
        }
    }

    /// `memory.max`.
    pub fn memory_max(&self) -> Result<Limit<Bytes>, CgroupError> {
        match self.read("memory.max")?.as_str() {
            "max" => Ok(Limit::Max),
            _ => self.parsed("memory.max").map(|bytes| Limit::At(Bytes(bytes))),
        }
    }

    /// `memory.current`: what members use.
    pub fn memory_current(&self) -> Result<Bytes, CgroupError> {
        self.parsed("memory.current").map(Bytes)
    }

    /// Pressure of this cgroup alone.
    pub fn pressure(&self, resource: Resource) -> Result<Pressure, CgroupError> {
        let name = match resource {
            Resource::Cpu => "cpu.pressure",
            Resource::Memory => "memory.pressure",
            Resource::Io => "io.pressure",
        };
        let text = self.read(name)?;
        parse_pressure(&text).ok_or_else(|| self.malformed(name, &text))
    }
}
