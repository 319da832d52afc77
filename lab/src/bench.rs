//! What a move costs, as a ratio against what it replaces, measured in the same guests and the same run.
//!
//! - **Cores**: lending four cores from one guest to the other, against taking the same four vCPUs offline in the one and
//!   bringing them online in the other by hot-plug's own way (`/sys/devices/system/cpu/cpuN/online`), each while it holds
//!   them, so that no gate slows it down.
//! - **Memory**: lending, against a bare virtio-mem resize of the same size: `qom-set requested-size` down in the one, up in
//!   the other, over QMP monitors that the daemon does not use. The guest has just reported what it has free, as it does all the
//!   time where the policy is at work: the daemon asks one first that has not.
//!
//! A first round is not counted: in it the emulator translates what it has not run before. The others alternate, so that
//! whatever else the machine does falls on both; each measurement begins when the guests have come to rest, so that what one
//! leaves behind does not fall on the next. Only ratios mean anything.

use std::io::Write as _;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use conuma_topology::{Bytes, NodeId};

use crate::host::{Kit, Look};
use crate::stage::Stage;
use crate::trials::{GUESTS, TOPOLOGY};

/// How many times cheaper than hot-plug a move of cores has to be at least.
const CORES_AT_LEAST: f64 = 10.0;
/// How many times the bare resize a move of memory may cost at most.
const MEMORY_AT_MOST: f64 = 1.2;

/// Measures, prints a table, and fails if a ratio is missed.
pub fn run(kit: &Kit, rounds: usize) -> Result<()> {
    let (cores, memory) = Stage::play(kit, "bench-lend", TOPOLOGY, &GUESTS, |stage| measure(stage, rounds))?;
    let mut out = std::io::stdout().lock();
    writeln!(out, "\n{:<34}{:>14}{:>18}{:>10}", "", "lend, median", "instead, median", "ratio")?;
    writeln!(out, "{:<34}{}", "4 cores / CPU offline and online", cores.row())?;
    writeln!(out, "{:<34}{}", "256 MiB / bare virtio-mem resize", memory.row())?;
    let (faster, slower) = (1.0 / cores.ratio(), memory.ratio());
    writeln!(out, "\ncores: {faster:.1} times faster than hot-plug; memory: {slower:.2} times a bare resize")?;
    ensure!(faster >= CORES_AT_LEAST, "cores must be at least {CORES_AT_LEAST} times faster");
    ensure!(slower <= MEMORY_AT_MOST, "memory may take at most {MEMORY_AT_MOST} times a bare resize");
    Ok(())
}

fn measure(stage: &Stage, rounds: usize) -> Result<(Pair, Pair)> {
    let mut out = std::io::stdout().lock();
    let mut cores = Pair::default();
    let mut memory = Pair::default();
    // The first round warms the emulator up: it translates what it has not run before.
    for round in 0..=rounds {
        let unplugged = hotplug(stage, "a", 4, 7)?.0;
        stage.at_rest()?;
        let (took, core_stages) = lend(stage, &["--cpus", "4-7"])?;
        cores.ours.push(took);
        cores.theirs.push(unplugged + hotplug(stage, "b", 4, 7)?.1);
        recall(stage)?;
        // Whoever is first finds page lists full of what the cores did; so neither is, and each is second in turn.
        resize(stage, 1, 256)?;
        let mut theirs = None;
        if round % 2 == 0 {
            theirs = Some(resize(stage, 1, 256)?);
        }
        stage.at_rest()?;
        has_just_reported(stage, "a", 1, Bytes::mib(256))?;
        let (took, memory_stages) = lend(stage, &["--memory", "node1=256M"])?;
        memory.ours.push(took);
        recall(stage)?;
        let (shrink, grow) = theirs.map_or_else(|| resize(stage, 1, 256), Ok)?;
        memory.theirs.push(shrink + grow);
        let which = if round == 0 { "warm-up".into() } else { format!("round {round} of {rounds}") };
        writeln!(out, "{which}: cores {}, memory {}", cores.last(), memory.last())?;
        let (shrink, grow) = (shrink.as_millis(), grow.as_millis());
        writeln!(out, "  {core_stages}\n  {memory_stages} / shrink {shrink} ms, grow {grow} ms")?;
        out.flush()?;
        if round == 0 {
            (cores, memory) = Default::default();
        }
    }
    Ok((cores, memory))
}

#[derive(Default)]
struct Pair {
    ours: Vec<Duration>,
    theirs: Vec<Duration>,
}

impl Pair {
    fn last(&self) -> String {
        let ms = |times: &[Duration]| times.last().map_or(0, Duration::as_millis);
        format!("{} / {} ms", ms(&self.ours), ms(&self.theirs))
    }

    fn ratio(&self) -> f64 {
        median(&self.ours).as_secs_f64() / median(&self.theirs).as_secs_f64()
    }

    fn row(&self) -> String {
        let (ours, theirs) = (median(&self.ours), median(&self.theirs));
        format!("{:>11} ms{:>15} ms{:>10.3}", ours.as_millis(), theirs.as_millis(), self.ratio())
    }
}

fn median(times: &[Duration]) -> Duration {
    let mut sorted = times.to_vec();
    sorted.sort();
    sorted.get(sorted.len() / 2).copied().unwrap_or_default()
}

/// Lends; the time that the daemon took, and for each stage of it.
fn lend(stage: &Stage, what: &[&str]) -> Result<(Duration, String)> {
    let argv = [&["conuma", "lend", "--quiet", "--from", "a", "--to", "b"], what].concat();
    let (code, transfer) = stage.transfer(&argv)?;
    ensure!(code == 0, "{transfer:#?}");
    let stages = transfer.legs.iter().flat_map(|leg| &leg.stages);
    let stages: Vec<String> =
        stages.filter_map(|stage| Some(format!("{} {} ms", stage.stage, stage.took_us? / 1000))).collect();
    Ok((Duration::from_micros(transfer.took_us), stages.join(", ")))
}

/// Waits until the daemon hears from a guest that so much of a node is free.
fn has_just_reported(stage: &Stage, vm: &str, node: u32, bytes: Bytes) -> Result<()> {
    /// The daemon goes by a report for a second, of which asking for the move takes a part.
    const NEW_MS: u64 = 400;
    stage.lab.until("a report of free memory", Duration::from_secs(60), |_| {
        let Some(report) = stage.show(vm)?.report else { return Ok(Look::NotYet("none".into())) };
        let load = report.nodes.iter().find(|load| load.node == NodeId(node));
        let free = load.map(|load| load.free).unwrap_or_default();
        let enough = free >= bytes && report.age_ms < NEW_MS;
        Ok(if enough { Look::Done(()) } else { Look::NotYet(format!("{free}, {} ms ago", report.age_ms)) })
    })
}

fn recall(stage: &Stage) -> Result<()> {
    let (code, back) = stage.transfer(&["conuma", "recall", "--to", "a"])?;
    ensure!(code == 0, "{back:#?}");
    Ok(())
}

/// Takes vCPUs of a guest offline and brings them online again; how long each took, as the guest measures it.
fn hotplug(stage: &Stage, vm: &str, first: u32, last: u32) -> Result<(Duration, Duration)> {
    let timed = |online: u32| -> Result<Duration> {
        stage.at_rest()?;
        let text = stage.lab.guest(
            vm,
            &format!(
                "t0=$(cut -d' ' -f1 /proc/uptime); for c in $(seq {first} {last}); do \
                 echo {online} > /sys/devices/system/cpu/cpu$c/online; done; echo $t0 $(cut -d' ' -f1 /proc/uptime)"
            ),
        )?;
        let times: Vec<f64> = text.split_whitespace().filter_map(|word| word.parse().ok()).collect();
        ensure!(times.len() == 2, "two times expected: {text}");
        Ok(Duration::from_secs_f64((times[1] - times[0]).max(0.0)))
    };
    let times = (timed(0)?, timed(1)?);
    stage.until_agent(vm)?;
    Ok(times)
}

/// Shrinks a node of `a` and grows it in `b` by `mib`, and back; the times for both on the way there, measured in the host.
fn resize(stage: &Stage, node: u32, mib: u64) -> Result<(Duration, Duration)> {
    let (node, bytes) = (node.to_string(), (mib << 20).to_string());
    let step = |from: &str, to: &str| -> Result<(Duration, Duration)> {
        let (from, to) = (format!("/run/witness-{from}.sock"), format!("/run/witness-{to}.sock"));
        let text = stage.lab.ok(&["conuma-lab-init", "resize", &from, &to, &node, &bytes])?;
        let (shrink, grow) = text.trim().split_once(' ').context("two times expected")?;
        Ok((Duration::from_micros(shrink.parse()?), Duration::from_micros(grow.parse()?)))
    };
    stage.at_rest()?;
    let took = step("a", "b")?;
    step("b", "a")?;
    Ok(took)
}
