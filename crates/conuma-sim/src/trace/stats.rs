//! What a trace is like, in numbers.

use std::time::Duration;

use serde::Serialize;

use super::{Trace, TraceVm};

/// How finely a trace is looked at.
const STEP: Duration = Duration::from_secs(1);

/// Demand of one VM, or of all together, in cores.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize)]
pub struct Demand {
    /// On average over time.
    pub mean: f64,
    /// 95 % of the time it is not more.
    pub p95: f64,
    /// The most.
    pub peak: f64,
    /// Mean length of a time above one and a half times the mean, in seconds; 0 if there is none.
    pub burst: f64,
}

/// A trace in numbers.
#[derive(Debug, Clone, PartialEq, Default, Serialize)]
pub struct Stats {
    /// Each VM.
    pub vms: Vec<(String, Demand)>,
    /// All VMs together.
    pub total: Demand,
    /// Mean correlation coefficient over all pairs of VMs: 1 if all rise and fall at once.
    pub correlation: f64,
}

impl Trace {
    /// What it is like, looked at once a second.
    pub fn stats(&self) -> Stats {
        let series: Vec<Vec<f64>> = self.vms.iter().map(|vm| sampled(vm, self.end)).collect();
        let steps = series.first().map_or(0, Vec::len);
        let total: Vec<f64> = (0..steps).map(|step| series.iter().map(|vm| vm[step]).sum()).collect();
        let mut pairs = Vec::new();
        for (place, one) in series.iter().enumerate() {
            pairs.extend(series[place + 1..].iter().filter_map(|other| correlation(one, other)));
        }
        Stats {
            vms: self.vms.iter().zip(&series).map(|(vm, series)| (vm.name.to_string(), demand(series))).collect(),
            total: demand(&total),
            correlation: mean(&pairs),
        }
    }
}

fn sampled(vm: &TraceVm, end: Duration) -> Vec<f64> {
    let steps = (end.as_secs_f64() / STEP.as_secs_f64()).ceil() as u32;
    (0..steps).map(|step| vm.at(STEP * step).cores).collect()
}

fn demand(series: &[f64]) -> Demand {
    let mut sorted = series.to_vec();
    sorted.sort_by(f64::total_cmp);
    let at = |share: f64| sorted.get(((sorted.len() as f64 * share) as usize).min(sorted.len().saturating_sub(1)));
    let mean = mean(series);
    let (mut above, mut bursts, mut before) = (0.0, 0.0, false);
    for cores in series {
        let now = *cores > mean * 1.5;
        above += f64::from(u8::from(now)) * STEP.as_secs_f64();
        bursts += f64::from(u8::from(now && !before));
        before = now;
    }
    let burst = if bursts > 0.0 { above / bursts } else { 0.0 };
    Demand { mean, p95: at(0.95).copied().unwrap_or(0.0), peak: sorted.last().copied().unwrap_or(0.0), burst }
}

fn mean(series: &[f64]) -> f64 {
    if series.is_empty() { 0.0 } else { series.iter().sum::<f64>() / series.len() as f64 }
}

fn correlation(one: &[f64], other: &[f64]) -> Option<f64> {
    let (mean_one, mean_other) = (mean(one), mean(other));
    let (mut both, mut square_one, mut square_other) = (0.0, 0.0, 0.0);
    for (a, b) in one.iter().zip(other) {
        both += (a - mean_one) * (b - mean_other);
        square_one += (a - mean_one).powi(2);
        square_other += (b - mean_other).powi(2);
    }
    let scale = (square_one * square_other).sqrt();
    (scale > 1e-12).then(|| both / scale)
}
