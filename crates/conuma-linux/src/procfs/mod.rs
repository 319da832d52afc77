//! Readers of procfs below a root directory, and of sysfs files that have a procfs form (a node's
//! `meminfo`). The one thing that is written is a trigger of pressure. Each reader pairs with a parser that takes text, so odd kernels are easy to test.
//!
//! Ids are plain numbers of the kernel whose procfs this is; where a set of CPUs is read, the
//! caller says which kind of id they are (host or guest).

mod memory;
mod pressure;
mod stat;
mod task;
mod zones;

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::read_text;
pub use memory::{Meminfo, NumaMapping, parse_numa_maps};
pub use pressure::{Pressure, PressureLine, Resource, parse_pressure};
pub use stat::{CpuSched, CpuTimes, SystemStat};
pub use task::{Pid, SchedStat, TaskStat, Tid};
pub use zones::{FreePages, Zone};

/// The unit of times in `/proc/stat` and of task start times: `USER_HZ`, 100 a second on every
/// architecture that Conuma runs on (x86-64, arm64).
pub const TICKS_PER_SECOND: u64 = 100;

/// Procfs (and sysfs) below a root directory.
#[derive(Debug, Clone)]
pub struct ProcFs {
    root: PathBuf,
}

/// A file could not be read or understood.
#[derive(Debug, thiserror::Error)]
pub enum ProcError {
    /// Reading failed.
    #[error("cannot read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The kernel does not watch pressure as it was asked to.
    #[error("cannot set a trigger on {}", path.display())]
    Trigger {
        /// The file.
        path: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The text has another form than this kernel interface should have.
    #[error("{} has an unexpected form: {what}", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What was looked for.
        what: &'static str,
    },
}

impl ProcError {
    /// Whether the file or its task does not exist (any more): tasks end at any time.
    pub fn is_gone(&self) -> bool {
        match self {
            Self::Read { source, .. } | Self::Trigger { source, .. } => {
                source.kind() == io::ErrorKind::NotFound || source.raw_os_error() == Some(libc::ESRCH)
            }
            Self::Malformed { .. } => false,
        }
    }
}

impl ProcFs {
    /// Procfs at `<root>/proc`, sysfs at `<root>/sys`.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// The root directory.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// `uname -r`.
    pub fn kernel_release(&self) -> Result<String, ProcError> {
        Ok(self.read("proc/sys/kernel/osrelease")?.trim().to_owned())
    }

    /// Random text that the kernel makes up at each boot.
    pub fn boot_id(&self) -> Result<String, ProcError> {
        Ok(self.read("proc/sys/kernel/random/boot_id")?.trim().to_owned())
    }

    /// The kernel's command line.
    pub fn cmdline(&self) -> Result<String, ProcError> {
        Ok(self.read("proc/cmdline")?.trim().to_owned())
    }

    /// Whether the first CPU has this flag by `/proc/cpuinfo` (x86).
    pub fn cpu_has(&self, flag: &str) -> Result<bool, ProcError> {
        let text = self.read("proc/cpuinfo")?;
        let flags = text.lines().find_map(|line| line.strip_prefix("flags")?.split_once(':'));
        Ok(flags.is_some_and(|(_, flags)| flags.split_ascii_whitespace().any(|word| word == flag)))
    }

    /// Time since boot.
    pub fn uptime(&self) -> Result<Duration, ProcError> {
        self.parsed("proc/uptime", "seconds since boot", |text| {
            let seconds: f64 = text.split_whitespace().next()?.parse().ok()?;
            Duration::try_from_secs_f64(seconds).ok()
        })
    }

    fn read(&self, path: impl AsRef<Path>) -> Result<String, ProcError> {
        let path = self.root.join(path);
        read_text(&path).map_err(|source| ProcError::Read { path, source })
    }

    fn parsed<T>(
        &self,
        path: impl AsRef<Path>,
        what: &'static str,
        parse: impl FnOnce(&str) -> Option<T>,
    ) -> Result<T, ProcError> {
        let text = self.read(&path)?;
        parse(&text).ok_or_else(|| ProcError::Malformed { path: self.root.join(path), what })
    }
}
