//! Pressure stall information (Documentation/accounting/psi.rst), of the machine or of a cgroup.

use std::fs::File;
use std::io::{self, Write as _};
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt as _;
use std::time::Duration;

use super::{ProcError, ProcFs};

/// What tasks wait for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Resource {
    /// CPUs.
    Cpu,
    /// Memory.
    Memory,
    /// Disks.
    Io,
}

/// One resource's pressure.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Pressure {
    /// At least one task waited.
    pub some: PressureLine,
    /// All tasks waited at the same time; CPUs have this since Linux 5.13.
    pub full: Option<PressureLine>,
}

/// Shares of time, in percent, and the time stalled since boot.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct PressureLine {
    /// Of the last 10 s, percent.
    pub avg10: f64,
    /// Of the last 60 s, percent.
    pub avg60: f64,
    /// Of the last 300 s, percent.
    pub avg300: f64,
    /// Since boot.
    pub total: Duration,
}

/// Reads the text of a pressure file; `None` if it has no `some` line.
pub fn parse_pressure(text: &str) -> Option<Pressure> {
    let mut some = None;
    let mut full = None;
    for line in text.lines() {
        let mut words = line.split_ascii_whitespace();
        let slot = match words.next() {
            Some("some") => &mut some,
            Some("full") => &mut full,
            _ => continue,
        };
        let mut parsed = PressureLine::default();
        for (key, value) in words.filter_map(|word| word.split_once('=')) {
            match key {
                "avg10" => parsed.avg10 = value.parse().ok()?,
                "avg60" => parsed.avg60 = value.parse().ok()?,
                "avg300" => parsed.avg300 = value.parse().ok()?,
                "total" => parsed.total = Duration::from_micros(value.parse().ok()?),
                _ => {}
            }
        }
        *slot = Some(parsed);
    }
    Some(Pressure { some: some?, full })
}

impl Resource {
    /// Its file, below the root.
    fn path(self) -> &'static str {
        match self {
            Self::Cpu => "proc/pressure/cpu",
            Self::Memory => "proc/pressure/memory",
            Self::Io => "proc/pressure/io",
        }
    }
}

impl ProcFs {
    /// The machine's pressure; fails where the kernel has none or it is switched off (`psi=0`).
    pub fn pressure(&self, resource: Resource) -> Result<Pressure, ProcError> {
        self.parsed(resource.path(), "a line starting with some", parse_pressure)
    }

    /// Has the kernel tell when at least one task waited for as long as `stall` within a `window` of 0.5 s to 10 s. What
    /// comes back is ready for `POLLPRI` then, once a window at most, and must be polled in one place: a poll that tells it
    /// takes it away. The trigger is gone when it is closed.
    ///
    /// # Errors
    /// [`ProcError::Trigger`]: where there is no pressure (see [`Self::pressure`]); `EINVAL` for times that the kernel does
    /// not take. Without `CAP_SYS_RESOURCE` these are all windows but multiples of 2 s, and before Linux 6.4 nobody may set a
    /// trigger (`EPERM`).
    pub fn pressure_trigger(
        &self,
        resource: Resource,
        stall: Duration,
        window: Duration,
    ) -> Result<OwnedFd, ProcError> {
        let path = self.root.join(resource.path());
        // The kernel puts a zero in the place of the last byte.
        let text = format!("some {} {}\n", stall.as_micros(), window.as_micros());
        let set = || -> io::Result<OwnedFd> {
            let mut file = File::options().read(true).write(true).custom_flags(libc::O_NONBLOCK).open(&path)?;
            file.write_all(text.as_bytes())?;
            Ok(file.into())
        };
        set().map_err(|source| ProcError::Trigger { path, source })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_lines_or_one() {
        let text =
            "some avg10=1.53 avg60=0.87 avg300=0.00 total=12345\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=7\n";
        let pressure = parse_pressure(text).unwrap();
        assert_eq!(pressure.some.avg10, 1.53);
        assert_eq!(pressure.some.total, Duration::from_micros(12345));
        assert_eq!(pressure.full.unwrap().total, Duration::from_micros(7));
        assert!(parse_pressure("some avg10=1 avg60=2 avg300=3 total=4").unwrap().full.is_none());
        assert_eq!(parse_pressure(""), None);
        assert_eq!(parse_pressure("some avg10=x"), None);
    }

    #[test]
    fn a_trigger_is_one_line_for_the_kernel() {
        let dir = tempfile::tempdir().unwrap();
        let proc = ProcFs::new(dir.path());
        let set = |resource| proc.pressure_trigger(resource, Duration::from_millis(100), Duration::from_secs(1));
        let error = set(Resource::Memory).unwrap_err();
        assert!(error.is_gone() && error.to_string().ends_with("proc/pressure/memory"), "{error}");
        let file = dir.path().join("proc/pressure/memory");
        std::fs::create_dir_all(file.parent().unwrap()).unwrap();
        std::fs::write(&file, "").unwrap();
        set(Resource::Memory).unwrap();
        assert_eq!(std::fs::read_to_string(file).unwrap(), "some 100000 1000000\n");
    }

    #[test]
    fn this_kernel_takes_a_trigger_and_refuses_a_senseless_one() {
        let proc = ProcFs::new("/");
        let set = |stall| proc.pressure_trigger(Resource::Cpu, stall, Duration::from_secs(2));
        if let Err(error) = set(Duration::from_secs(1)) {
            let why = std::error::Error::source(&error).map(ToString::to_string).unwrap_or_default();
            println!("skipped: {error}: {why}");
            return;
        }
        let Err(ProcError::Trigger { source, .. }) = set(Duration::from_secs(3)) else {
            unreachable!("no stall is longer than its window")
        };
        assert_eq!(source.kind(), io::ErrorKind::InvalidInput);
    }
}
