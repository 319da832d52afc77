//! Making traces: the shapes that loads have, and the three mixes that are shipped. The same seed gives the same trace.

use std::f64::consts::TAU;
use std::str::FromStr;
use std::time::Duration;

use conuma_topology::{Bytes, ParseVmNameError};
use fastrand::Rng;

use super::{Kind, Point, Trace, TraceVm, VmTerms};

/// A mix of VMs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mix {
    /// Six bursty web VMs beside four with queues that never end.
    WebAndBatch,
    /// Twelve VMs with days of 20 minutes, half of them at night while the others have noon; their working sets follow.
    DiurnalMix,
    /// Two parallel jobs that alternate between computing and writing, beside six bursty VMs.
    HpcAndBurst,
    /// Some VMs of all kinds: for tests.
    Random,
}

impl FromStr for Mix {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "web-and-batch" => Ok(Self::WebAndBatch),
            "diurnal-mix" => Ok(Self::DiurnalMix),
            "hpc-and-burst" => Ok(Self::HpcAndBurst),
            "random" => Ok(Self::Random),
            other => Err(format!("`{other}` is no mix: web-and-batch, diurnal-mix, hpc-and-burst, random")),
        }
    }
}

/// How much a VM wants over time.
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(tag = "shape", rename_all = "lowercase", deny_unknown_fields)]
pub enum Shape {
    /// Always the same.
    Steady {
        /// Cores.
        cores: f64,
    },
    /// Requests that come in bursts, at random times (Poisson) for random lengths (exponential, at least a quarter of the mean).
    Bursts {
        /// Cores between bursts.
        base: f64,
        /// Cores within one, on average: each has from three quarters to five quarters of it.
        peak: f64,
        /// Seconds from the end of one to the begin of the next, on average.
        every: f64,
        /// Seconds that one lasts, on average.
        lasts: f64,
    },
    /// A day: low at night, high at noon.
    Periodic {
        /// At night.
        low: f64,
        /// At noon.
        high: f64,
        /// Seconds of a day.
        period: f64,
        /// Where in the day it begins, 0 to 1; 0 is the evening.
        #[serde(default)]
        phase: f64,
        /// Random differences, as a share of the value.
        #[serde(default)]
        noise: f64,
    },
    /// High for a while, low for a while.
    Phases {
        /// In the one.
        high: f64,
        /// In the other.
        low: f64,
        /// Seconds that it is high, on average; each from half of it to one and a half.
        on: f64,
        /// Seconds that it is low.
        off: f64,
    },
    /// As listed.
    Steps {
        /// Seconds and cores.
        steps: Vec<(f64, f64)>,
    },
}

/// A trace of this mix.
pub fn generate(mix: Mix, seed: u64) -> Result<Trace, ParseVmNameError> {
    let mut rng = Rng::with_seed(seed);
    match mix {
        Mix::WebAndBatch => web_and_batch(&mut rng),
        Mix::DiurnalMix => diurnal_mix(&mut rng),
        Mix::HpcAndBurst => hpc_and_burst(&mut rng),
        Mix::Random => random(&mut rng),
    }
}

fn terms(weight: u32, guarantee: usize, limit: usize, kind: Kind) -> VmTerms {
    VmTerms { weight, guarantee: Some(guarantee), limit: Some(limit), kind, ..VmTerms::default() }
}

fn trace(name: &str, host: &str, seconds: u64, vms: Vec<TraceVm>) -> Trace {
    Trace { name: name.into(), host: Some(host.into()), end: Duration::from_secs(seconds), vms }
}

fn web_and_batch(rng: &mut Rng) -> Result<Trace, ParseVmNameError> {
    let mut vms = Vec::new();
    for number in 1..=6 {
        let shape = Shape::Bursts { base: 1.8, peak: 14.0, every: 150.0, lasts: 36.0 };
        vms.push(vm(&format!("web{number}"), terms(200, 4, 32, Kind::Web), &shape, 3600.0, rng)?);
    }
    for number in 1..=4 {
        let shape = Shape::Phases { high: 8.0, low: 3.0, on: 180.0, off: 180.0 };
        vms.push(vm(&format!("batch{number}"), terms(100, 2, 48, Kind::Batch), &shape, 3600.0, rng)?);
    }
    Ok(trace("web-and-batch", "4n16c1t@32G", 3600, vms))
}

fn diurnal_mix(rng: &mut Rng) -> Result<Trace, ParseVmNameError> {
    let mut vms = Vec::new();
    for number in 0..12_u32 {
        let phase = if number % 2 == 0 { 0.0 } else { 0.5 } + rng.f64() * 0.12;
        let shape = Shape::Periodic { low: 0.4, high: 8.0 + rng.f64() * 3.0, period: 1200.0, phase, noise: 0.06 };
        let weight = if number < 4 { 150 } else { 100 };
        let name = format!("{}{}", if number % 2 == 0 { "east" } else { "west" }, number / 2 + 1);
        let mut vm = vm(&name, terms(weight, 2, 32, Kind::Web), &shape, 3600.0, rng)?;
        vm.terms.memory = Some(Bytes::gib(2));
        for point in &mut vm.points {
            // From 2 to 15 GiB, in steps of 64 MiB.
            point.memory = Bytes::mib((2048.0 + point.cores * 1200.0) as u64).round_down(Bytes::mib(64));
        }
        vms.push(vm);
    }
    Ok(trace("diurnal-mix", "4n16c1t@32G", 3600, vms))
}

fn hpc_and_burst(rng: &mut Rng) -> Result<Trace, ParseVmNameError> {
    let mut vms = Vec::new();
    for number in 1..=2 {
        let shape = Shape::Phases { high: 16.0, low: 1.0, on: 120.0, off: 110.0 };
        vms.push(vm(&format!("hpc{number}"), terms(100, 16, 16, Kind::Hpc), &shape, 3600.0, rng)?);
    }
    for number in 1..=6 {
        let shape = Shape::Bursts { base: 1.0, peak: 14.0, every: 90.0, lasts: 30.0 };
        vms.push(vm(&format!("burst{number}"), terms(100, 1, 24, Kind::Web), &shape, 3600.0, rng)?);
    }
    Ok(trace("hpc-and-burst", "4n16c1t@32G", 3600, vms))
}

fn random(rng: &mut Rng) -> Result<Trace, ParseVmNameError> {
    let cores = 16.0;
    let count = rng.usize(2..=6);
    let mut vms = Vec::new();
    for number in 0..count {
        let high = 1.0 + rng.f64() * cores * 0.8;
        let shape = match rng.u32(0..4) {
            0 => Shape::Steady { cores: rng.f64() * cores / 2.0 },
            1 => Shape::Bursts { base: rng.f64(), peak: high, every: 20.0, lasts: 3.0 + rng.f64() * 10.0 },
            2 => Shape::Periodic { low: rng.f64(), high, period: 60.0, phase: rng.f64(), noise: 0.1 },
            _ => Shape::Phases { high, low: rng.f64(), on: 15.0, off: 15.0 },
        };
        let kind = [Kind::Web, Kind::Web, Kind::Batch, Kind::Hpc, Kind::Spin][rng.usize(0..5)];
        let guarantee = rng.usize(0..=(16 / count));
        let limit = rng.usize(guarantee.max(1)..=16);
        vms.push(vm(&format!("vm{number}"), terms(rng.u32(50..300), guarantee, limit, kind), &shape, 120.0, rng)?);
    }
    Ok(trace("random", "2n8c1t@8G", 120, vms))
}

fn vm(name: &str, terms: VmTerms, shape: &Shape, seconds: f64, rng: &mut Rng) -> Result<TraceVm, ParseVmNameError> {
    Ok(TraceVm { name: name.parse()?, terms, points: shape.points(seconds, rng) })
}

impl Shape {
    /// Points without memory, for so many seconds. Numbers are such that a trace that is written reads back as the same.
    pub fn points(&self, seconds: f64, rng: &mut Rng) -> Vec<Point> {
        let mut points = match self {
            Self::Steady { cores } => vec![(0.0, *cores)],
            Self::Steps { steps } => steps.clone(),
            Self::Bursts { base, peak, every, lasts } => bursts(*base, *peak, *every, *lasts, seconds, rng),
            Self::Phases { high, low, on, off } => phases(*high, *low, *on, *off, seconds, rng),
            Self::Periodic { low, high, period, phase, noise } => {
                let step = (period / 120.0).max(1.0);
                let count = (seconds / step).ceil() as u32;
                let value = |number: u32| {
                    let at = f64::from(number) * step;
                    let noon = 0.5 - 0.5 * ((at / period + phase) * TAU).cos();
                    let rough = 1.0 + noise * (rng.f64() * 2.0 - 1.0);
                    (at, (low + (high - low) * noon.powf(2.5)) * rough)
                };
                (0..count).map(value).collect()
            }
        };
        points.retain(|(at, _)| *at < seconds);
        points.into_iter().map(|(at, cores)| point(at, cores)).collect()
    }
}

fn point(at: f64, cores: f64) -> Point {
    let round = |value: f64, digits: f64| (value.max(0.0) * digits).round() / digits;
    let at = Duration::from_millis((at.max(0.0) * 10.0).round() as u64 * 100);
    Point { at, cores: round(cores, 100.0), memory: Bytes::ZERO }
}

fn exponential(mean: f64, rng: &mut Rng) -> f64 {
    -mean * (1.0 - rng.f64()).ln()
}

fn bursts(base: f64, peak: f64, every: f64, lasts: f64, seconds: f64, rng: &mut Rng) -> Vec<(f64, f64)> {
    let quiet = |rng: &mut Rng| base * (0.8 + 0.4 * rng.f64());
    let mut points = vec![(0.0, quiet(rng))];
    let mut at = exponential(every, rng);
    while at < seconds {
        points.push((at, peak * (0.75 + 0.5 * rng.f64())));
        at += lasts * 0.25 + exponential(lasts * 0.75, rng);
        points.push((at, quiet(rng)));
        at += 1.0 + exponential(every, rng);
    }
    points
}

fn phases(high: f64, low: f64, on: f64, off: f64, seconds: f64, rng: &mut Rng) -> Vec<(f64, f64)> {
    let mut is_high = rng.bool();
    let mut points = Vec::new();
    // The first began before.
    let mut at = 0.0;
    let mut first = rng.f64();
    while at < seconds {
        points.push((at, if is_high { high } else { low }));
        at += if is_high { on } else { off } * (0.5 + rng.f64()) * first;
        first = 1.0;
        is_high = !is_high;
    }
    points
}
