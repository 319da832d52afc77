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

/// The time of day, UTC, of milliseconds since 1970: `06:12:03.123Z`.
pub fn clock(unix_ms: u64) -> String {
    let seconds = unix_ms / 1000;
    let (h, m, s) = (seconds / 3600 % 24, seconds / 60 % 60, seconds % 60);
    format!("{h:02}:{m:02}:{s:02}.{:03}Z", unix_ms % 1000)
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
    fn the_clock_is_utc() {
        assert_eq!(clock(1_700_000_000_123), "22:13:20.123Z");
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
