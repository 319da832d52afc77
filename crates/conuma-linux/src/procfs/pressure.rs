//! Pressure stall information (Documentation/accounting/psi.rst), of the machine or of a cgroup.

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

impl ProcFs {
    /// The machine's pressure; fails where the kernel has none or it is switched off (`psi=0`).
    pub fn pressure(&self, resource: Resource) -> Result<Pressure, ProcError> {
        let name = match resource {
            Resource::Cpu => "cpu",
            Resource::Memory => "memory",
            Resource::Io => "io",
        };
        self.parsed(format!("proc/pressure/{name}"), "a line starting with some", parse_pressure)
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
}
