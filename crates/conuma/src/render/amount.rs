//! Amounts, times and wishes as people read them.

use conuma_api::{CoreDemand, Demand, Holder, LedgerInfo, LoanInfo, MemoryDemand, Resources};
use conuma_topology::CpuSet;

/// `1 core`, `2 cores`.
pub fn cores(count: usize) -> String {
    plural(count as u64, "core")
}

/// `1 thing`, `2 things`.
pub fn plural(count: u64, thing: &str) -> String {
    if count == 1 { format!("1 {thing}") } else { format!("{count} {thing}s") }
}

/// How many whole cores of the ledger are in `cpus`.
pub fn count_cores(ledger: &LedgerInfo, cpus: &CpuSet) -> usize {
    ledger.cores.iter().filter(|core| core.cpus.is_subset(cpus)).count()
}

/// `2 cores, 512M`; `nothing_said` where the demand says nothing.
pub fn demand(demand: &Demand, nothing_said: &str) -> String {
    let mut parts = Vec::new();
    match &demand.cores {
        Some(CoreDemand::Count(count)) => parts.push(cores(*count as usize)),
        Some(CoreDemand::Cpus(cpus)) => parts.push(self::cpus(cpus)),
        None => {}
    }
    match &demand.memory {
        Some(MemoryDemand::Total(bytes)) => parts.push(bytes.to_string()),
        Some(MemoryDemand::PerNode(nodes)) => {
            parts.extend(nodes.iter().map(|(node, bytes)| format!("node{node}={bytes}")));
        }
        None => {}
    }
    if parts.is_empty() { nothing_said.to_owned() } else { parts.join(", ") }
}

/// `CPUs 4-7, node1=256M` with nodes of nothing left out; `nothing` if that leaves nothing.
pub fn resources(resources: &Resources) -> String {
    let mut parts = Vec::new();
    if !resources.cpus.is_empty() {
        parts.push(self::cpus(&resources.cpus));
    }
    let memory = resources.memory.iter().filter(|(_, bytes)| !bytes.is_zero());
    parts.extend(memory.map(|(node, bytes)| format!("node{node}={bytes}")));
    if parts.is_empty() { "nothing".into() } else { parts.join(", ") }
}

/// `CPU 4`, `CPUs 4-7`.
pub fn cpus(cpus: &CpuSet) -> String {
    format!("{} {cpus}", if cpus.len() == 1 { "CPU" } else { "CPUs" })
}

/// A loan as its lender sees it: `CPU 4 to b`.
pub fn lent(loan: &LoanInfo) -> String {
    let what = resources(&loan.what);
    match &loan.borrower {
        Holder::Pool => format!("{what}, now free: the borrower gave it up"),
        borrower => format!("{what} to {borrower}"),
    }
}

/// Microseconds with three digits at most: `850 µs`, `4.2 ms`, `1.25 s`, `3 min 20 s`.
pub fn micros(us: u64) -> String {
    let scaled = |value: f64, unit: &str| {
        let digits = if value >= 100.0 {
            0
        } else if value >= 10.0 {
            1
        } else {
            2
        };
        format!("{value:.digits$} {unit}")
    };
    match us {
        0..1_000 => format!("{us} µs"),
        1_000..1_000_000 => scaled(us as f64 / 1e3, "ms"),
        1_000_000..60_000_000 => scaled(us as f64 / 1e6, "s"),
        _ => long(us / 1_000_000),
    }
}

/// Whole seconds: `12 s`, `3 min 20 s`, `5 h 2 min`, `9 d 4 h`.
pub fn long(seconds: u64) -> String {
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86_400);
    if days > 0 {
        format!("{days} d {} h", hours % 24)
    } else if hours > 0 {
        format!("{hours} h {} min", minutes % 60)
    } else if minutes > 0 {
        format!("{minutes} min {} s", seconds % 60)
    } else {
        format!("{seconds} s")
    }
}

/// Whole seconds, only the greatest unit: `12 s`, `3 min`, `5 h`, `9 d`.
pub fn age(seconds: u64) -> String {
    match seconds {
        0..60 => format!("{seconds} s"),
        60..3_600 => format!("{} min", seconds / 60),
        3_600..86_400 => format!("{} h", seconds / 3_600),
        _ => format!("{} d", seconds / 86_400),
    }
}

/// `4`, or `4 → 6` where it changes.
pub fn change(before: &str, after: &str) -> String {
    if before == after { before.to_owned() } else { format!("{before} → {after}") }
}

/// A part of one: `12.3 %`.
pub fn part(part: f64) -> String {
    format!("{:.1} %", part * 100.0)
}

/// Points of a score: `+12.3`.
pub fn points(points: f64) -> String {
    // Not `-0.0`.
    let points = if points.abs() < 0.05 { 0.0 } else { points };
    format!("{points:+.1}")
}

/// How long until a time, both in milliseconds since 1970, to the nearest second.
pub fn until(then_unix_ms: u64, now_unix_ms: u64) -> String {
    long((then_unix_ms.saturating_sub(now_unix_ms) + 500) / 1000)
}

/// How long since a time, both in milliseconds since 1970.
pub fn since(then_unix_ms: u64, now_unix_ms: u64) -> String {
    long(now_unix_ms.saturating_sub(then_unix_ms) / 1000)
}

/// The time of day, UTC, of milliseconds since 1970: `06:12:03.123Z`.
pub fn clock(unix_ms: u64) -> String {
    let seconds = unix_ms / 1000;
    let (h, m, s) = (seconds / 3600 % 24, seconds / 60 % 60, seconds % 60);
    format!("{h:02}:{m:02}:{s:02}.{:03}Z", unix_ms % 1000)
}

/// Date and time, UTC, of milliseconds since 1970: `2023-11-14 22:13:20Z`.
pub fn moment(unix_ms: u64) -> String {
    let (days, clock) = (unix_ms / 86_400_000, clock(unix_ms));
    // Counted from 1 March of the year 0, so that a leap day is the last of its year; 146,097 days are 400 years.
    let days = days + 719_468;
    let (era, of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let from_march = (5 * of_year + 2) / 153;
    let day = of_year - (153 * from_march + 2) / 5 + 1;
    let month = if from_march < 10 { from_march + 3 } else { from_march - 9 };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    format!("{year:04}-{month:02}-{day:02} {}Z", clock.get(..8).unwrap_or_default())
}

/// Hundredths of a percent: `12.3 %`.
pub fn share(hundredths: u32) -> String {
    format!("{:.1} %", f64::from(hundredths) / 100.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_have_a_fitting_unit() {
        let times = [0, 850, 4_230, 42_300, 423_000, 1_250_000, 59_990_000, 200_000_000, 18_120_000_000];
        let texts = times.map(micros);
        assert_eq!(
            texts.each_ref().map(String::as_str),
            ["0 µs", "850 µs", "4.23 ms", "42.3 ms", "423 ms", "1.25 s", "60.0 s", "3 min 20 s", "5 h 2 min"]
        );
    }

    #[test]
    fn ages_have_one_unit_and_points_a_sign() {
        assert_eq!([0, 59, 60, 7_199, 90_000].map(age), ["0 s", "59 s", "1 min", "1 h", "1 d"]);
        assert_eq!([12.34, 0.0, -0.04, -3.0].map(points), ["+12.3", "+0.0", "+0.0", "-3.0"]);
        assert_eq!(until(7_200_000, 100), "2 h 0 min");
        assert_eq!(until(0, 100), "0 s");
    }

    #[test]
    fn the_clock_is_utc() {
        assert_eq!(clock(1_700_000_000_123), "22:13:20.123Z");
        let moments = [0, 951_782_399_000, 951_782_400_000, 1_700_000_000_123, 4_107_542_400_000].map(moment);
        let expected = [
            "1970-01-01 00:00:00Z",
            "2000-02-28 23:59:59Z",
            "2000-02-29 00:00:00Z",
            "2023-11-14 22:13:20Z",
            "2100-03-01 00:00:00Z",
        ];
        assert_eq!(moments, expected);
    }

    #[test]
    fn what_is_not_demanded_is_not_shown() {
        assert_eq!(demand(&Demand::default(), "no bound"), "no bound");
        let some = Demand {
            cores: Some(CoreDemand::Count(1)),
            memory: Some(MemoryDemand::Total(conuma_topology::Bytes::mib(512))),
        };
        assert_eq!(demand(&some, "nothing"), "1 core, 512M");
    }
}
