//! Outcomes as text.

use std::fmt::Write;

use crate::compare::{Comparison, OF_ORACLE, OVER_STATIC, Verdict};
use crate::outcome::Outcome;
use crate::trace::stats::{Demand, Stats};

/// Width of a bar.
const BAR: usize = 24;

/// A comparison as a table.
pub fn comparison(comparison: &Comparison) -> String {
    let Comparison { trace, host, cores, seconds, vms, wanted, bound, .. } = comparison;
    let mut text = format!(
        "{trace}: {vms} VMs on {host} ({cores} cores), {seconds:.0} s; wanted {:.1} cores on average, {:.1} at the 95th percentile, \
         {:.1} at most; {bound:.0} core-seconds can be useful\n\n",
        wanted.mean, wanted.p95, wanted.peak
    );
    let outcomes = &comparison.outcomes;
    let most = outcomes.iter().map(|outcome| outcome.useful).fold(0.0, f64::max);
    let rows = outcomes.iter().map(|outcome| row(outcome, most)).collect::<Vec<_>>();
    text.push_str(&table(&HEAD, &rows));
    if let Some(verdict) = &comparison.verdict {
        text.push('\n');
        text.push_str(&summary(verdict));
    }
    for outcome in outcomes {
        for broken in &outcome.broken {
            // Writing to a string cannot fail.
            let _ = writeln!(text, "{}: DEFECT: {broken}", outcome.policy);
        }
    }
    text
}

const HEAD: [&str; 11] = [
    "policy",
    "useful core-seconds",
    "",
    "",
    "unmet",
    "moved cores",
    "moved MiB",
    "guarantee violations",
    "recall p50/p99/max ms",
    "fairness",
    "local",
];

fn row(outcome: &Outcome, most: f64) -> Vec<String> {
    let share = if most > 0.0 { outcome.useful / most } else { 0.0 };
    let recalls = &outcome.recalls;
    vec![
        outcome.policy.clone(),
        bar(share),
        format!("{:.0}", outcome.useful),
        format!("{:.1} %", share * 100.0),
        format!("{:.0}", outcome.unmet),
        outcome.moves.cores.to_string(),
        outcome.moves.mib.to_string(),
        outcome.guarantee_violations.to_string(),
        format!("{:.0}/{:.0}/{:.0}", recalls.p50_ms, recalls.p99_ms, recalls.max_ms),
        format!("{:.3}", outcome.jain),
        format!("{:.0} %", outcome.locality * 100.0),
    ]
}

fn bar(share: f64) -> String {
    let full = (share.clamp(0.0, 1.0) * BAR as f64).round() as usize;
    "█".repeat(full) + &"·".repeat(BAR - full)
}

fn summary(verdict: &Verdict) -> String {
    let word = |kept: bool| if kept { "kept" } else { "NOT KEPT" };
    format!(
        "ours: {:.1} % of the oracle (at least {:.0} %: {}), {:+.1} % over static (at least {:+.0} %: {}), \
         {} guarantee violations ({})\n",
        verdict.of_oracle * 100.0,
        OF_ORACLE * 100.0,
        word(verdict.of_oracle >= OF_ORACLE),
        (verdict.over_static - 1.0) * 100.0,
        (OVER_STATIC - 1.0) * 100.0,
        word(verdict.over_static >= OVER_STATIC),
        verdict.guarantee_violations,
        word(verdict.guarantee_violations == 0),
    )
}

/// One run with its VMs.
pub fn outcome(outcome: &Outcome) -> String {
    let Outcome { moves, recalls, .. } = outcome;
    let share = if outcome.demand > 0.0 { outcome.useful / outcome.demand * 100.0 } else { 100.0 };
    let mut lines = vec![
        format!("wanted                {:.0} core-seconds", outcome.demand),
        format!("useful                {:.0} core-seconds ({share:.1} %)", outcome.useful),
        format!("memory without room   {:.1} GiB-seconds", outcome.memory_unmet),
        format!("moved                 {} cores ({} after 2 minutes)", moves.cores, moves.cores_later),
        format!("                      {} MiB ({} after 2 minutes)", moves.mib, moves.mib_later),
        format!("transfers             {} ({} not wholly, {} refused)", moves.transfers, moves.short, moves.refused),
        format!("guarantee violations  {}", outcome.guarantee_violations),
        format!(
            "guarantees recalled   {} times, p50 {:.0} ms, p99 {:.0} ms, longest {:.0} ms",
            recalls.count, recalls.p50_ms, recalls.p99_ms, recalls.max_ms
        ),
        format!("fairness              {:.3}", outcome.jain),
        format!("local                 {:.1} %", outcome.locality * 100.0),
        String::new(),
    ];
    lines.extend(outcome.broken.iter().map(|broken| format!("DEFECT: {broken}")));
    let rows: Vec<Vec<String>> = outcome
        .vms
        .iter()
        .map(|vm| {
            vec![
                vm.vm.clone(),
                format!("{:.0}", vm.demand),
                format!("{:.0}", vm.useful),
                format!("{:.1} %", vm.satisfaction * 100.0),
                vm.guarantee_violations.to_string(),
            ]
        })
        .collect();
    lines.join("\n") + "\n" + &table(&["VM", "wanted", "useful", "of fair", "guarantee violations"], &rows)
}

/// Statistics of a trace.
pub fn stats(stats: &Stats) -> String {
    let row = |name: &str, demand: &Demand| {
        let cells = [demand.mean, demand.p95, demand.peak, demand.burst];
        [name.to_owned()].into_iter().chain(cells.map(|cell| format!("{cell:.1}"))).collect::<Vec<_>>()
    };
    let mut rows: Vec<Vec<String>> = stats.vms.iter().map(|(name, demand)| row(name, demand)).collect();
    rows.push(row("together", &stats.total));
    let head = ["VM", "mean", "p95", "peak", "burst s"];
    format!("{}correlation {:.2}\n", table(&head, &rows), stats.correlation)
}

/// Columns two spaces apart: the first two to the left, numbers to the right.
fn table(head: &[&str], rows: &[Vec<String>]) -> String {
    let width = |text: &str| text.chars().count();
    let widths: Vec<usize> = (0..head.len())
        .map(|column| {
            let cells = rows.iter().filter_map(|row| row.get(column)).map(|cell| width(cell));
            cells.chain([width(head[column])]).max().unwrap_or(0)
        })
        .collect();
    let bars = rows.iter().any(|row| row.get(1).is_some_and(|cell| cell.contains(['█', '·'])));
    let line = |cells: Vec<&str>| {
        let padded = cells.iter().zip(&widths).enumerate().map(|(column, (cell, most))| {
            let space = " ".repeat(most - width(cell));
            if column == 0 || bars && column == 1 { format!("{cell}{space}") } else { format!("{space}{cell}") }
        });
        let text = padded.collect::<Vec<_>>().join("  ");
        text.trim_end().to_owned() + "\n"
    };
    let mut text = line(head.to_vec());
    for row in rows {
        text.push_str(&line(row.iter().map(String::as_str).collect()));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned() {
        let text = table(&["a", "number"], &[vec!["long".into(), "1".into()], vec!["b".into(), "22".into()]]);
        assert_eq!(text, "a     number\nlong       1\nb         22\n");
        assert_eq!(bar(0.5), "█".repeat(12) + &"·".repeat(12));
    }
}
