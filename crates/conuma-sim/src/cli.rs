//! The command line: `compare`, `run`, `generate`, `stats`.

use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use clap::{Args, Parser, Subcommand};
use conuma_policy::Rules;
use std::time::Duration;

use crate::compare::{POLICIES, Policy, compare};
use crate::render;
use crate::script::Script;
use crate::trace::generate::{Mix, generate};
use crate::trace::{Trace, shipped};
use crate::world::{Cadence, Options};

/// Runs the real engine and the real policy against simulated guests and hosts.
#[derive(Debug, Parser)]
#[command(name = "conuma-sim", version, max_term_width = 100)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
    /// Print JSON instead of text
    #[arg(long, global = true)]
    json: bool,
}

#[derive(Debug, Subcommand)]
enum Command {
    Compare(CompareArgs),
    Run(RunArgs),
    Generate(GenerateArgs),
    Stats(StatsArgs),
}

/// Compare policies on the same traces
///
/// A trace is a CSV file of `seconds,vm,cores[,memory_mib]`, or the name of one that comes with the program. See
/// docs/simulator.md for its form, for what the policies do and for how to read the table.
#[derive(Debug, Args)]
struct CompareArgs {
    /// Files, or names of shipped traces; all shipped ones if left out
    #[arg(value_name = "TRACE")]
    traces: Vec<String>,
    /// Only these policies
    #[arg(long, value_enum, value_delimiter = ',')]
    policy: Vec<Policy>,
    /// Of all that is random: how long agents take
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// The host, such as 4n16c1t@32G, instead of the one that the trace names
    #[arg(long, value_name = "SHAPE")]
    host: Option<String>,
    /// What each core wanted beyond those that are there costs all, where vCPUs share cores: a share of their speed
    #[arg(long, default_value_t = 0.3, value_parser = share)]
    penalty: f64,
    /// Seconds between two reports of a guest
    #[arg(long, default_value_t = 1.0, value_parser = tick)]
    tick: f64,
    /// A policy file: its tuning and what it says of VMs hold for `ours`
    #[arg(long, value_name = "FILE")]
    rules: Option<PathBuf>,
    /// Only so many seconds of each trace
    #[arg(long)]
    seconds: Option<u64>,
    /// Exit with 1 if ours does not do as promised on any trace
    #[arg(long)]
    check: bool,
}

/// Run a script and say whether its outcome is as it expects
#[derive(Debug, Args)]
struct RunArgs {
    /// Files in TOML; crates/conuma-sim/scripts has some
    #[arg(required = true, value_name = "SCRIPT")]
    scripts: Vec<PathBuf>,
}

/// Make a trace and print it
#[derive(Debug, Args)]
struct GenerateArgs {
    /// web-and-batch, diurnal-mix, hpc-and-burst or random
    #[arg(long, value_name = "MIX")]
    kind: Mix,
    /// The same seed gives the same trace
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Into this file instead
    #[arg(long, short, value_name = "FILE")]
    output: Option<PathBuf>,
}

/// Say what traces are like: mean, peak, 95th percentile, bursts, correlation
#[derive(Debug, Args)]
struct StatsArgs {
    /// Files, or names of shipped traces; all shipped ones if left out
    #[arg(value_name = "TRACE")]
    traces: Vec<String>,
}

fn share(text: &str) -> Result<f64, String> {
    let value: f64 = text.parse().map_err(|_| format!("`{text}` is not a number"))?;
    if (0.0..=1.0).contains(&value) { Ok(value) } else { Err("not from 0 to 1".into()) }
}

fn tick(text: &str) -> Result<f64, String> {
    let value: f64 = text.parse().map_err(|_| format!("`{text}` is not a number"))?;
    if (0.05..=60.0).contains(&value) { Ok(value) } else { Err("not from 0.05 to 60".into()) }
}

/// Runs a command. Whether all is as promised or expected.
pub fn run(cli: &Cli, out: &mut dyn Write) -> Result<bool> {
    match &cli.command {
        Command::Compare(args) => run_compare(args, cli.json, out),
        Command::Run(args) => run_scripts(args, cli.json, out),
        Command::Generate(args) => run_generate(args, cli.json, out),
        Command::Stats(args) => run_stats(args, cli.json, out),
    }
}

fn load(names: &[String]) -> Result<Vec<Trace>> {
    let all: Vec<String> = shipped::SHIPPED.iter().map(|(name, _)| (*name).to_owned()).collect();
    let names = if names.is_empty() { &all } else { names };
    names.iter().map(|name| load_one(name)).collect()
}

fn load_one(name: &str) -> Result<Trace> {
    if let Some(trace) = shipped::find(name).filter(|_| !Path::new(name).exists()) {
        return Ok(trace?);
    }
    let known: Vec<&str> = shipped::SHIPPED.iter().map(|(name, _)| *name).collect();
    let text = std::fs::read_to_string(name)
        .with_context(|| format!("reading {name} (no file, and not one of {})", known.join(", ")))?;
    Ok(Trace::parse(&text, name)?)
}

fn run_compare(args: &CompareArgs, json: bool, out: &mut dyn Write) -> Result<bool> {
    let rules = match &args.rules {
        None => Rules::default(),
        Some(path) => {
            let text = std::fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
            Rules::parse(&text, &path.display().to_string())?
        }
    };
    let cadence = Cadence { tick: args.tick, ..Cadence::default() };
    let options = Options { seed: args.seed, cadence, rules, ..Options::default() };
    let policies = if args.policy.is_empty() { POLICIES.to_vec() } else { args.policy.clone() };
    let mut kept = true;
    let mut all = Vec::new();
    for (place, trace) in load(&args.traces)?.into_iter().enumerate() {
        let trace = match args.seconds {
            Some(seconds) => trace.cut(Duration::from_secs(seconds)),
            None => trace,
        };
        let comparison = compare(&trace, args.host.as_deref(), &policies, args.penalty, &options)
            .with_context(|| format!("trace {}", trace.name))?;
        kept &= comparison.verdict.is_none_or(|verdict| verdict.kept);
        if json {
            all.push(comparison);
        } else {
            let gap = if place > 0 { "\n" } else { "" };
            write!(out, "{gap}{}", render::comparison(&comparison))?;
        }
    }
    if json {
        writeln!(out, "{}", serde_json::to_string_pretty(&all)?)?;
    }
    Ok(kept || !args.check)
}

fn run_scripts(args: &RunArgs, json: bool, out: &mut dyn Write) -> Result<bool> {
    let mut expected = true;
    let mut all = Vec::new();
    for path in &args.scripts {
        let file = path.display().to_string();
        let text = std::fs::read_to_string(path).with_context(|| format!("reading {file}"))?;
        let played = Script::parse(&text, &file)?.play().with_context(|| file.clone())?;
        expected &= played.unexpected.is_empty();
        if json {
            all.push(serde_json::json!({ "script": file, "played": played }));
        } else {
            let head = if args.scripts.len() > 1 { format!("== {file}\n") } else { String::new() };
            write!(out, "{head}{}", played.render())?;
        }
    }
    if json {
        writeln!(out, "{}", serde_json::to_string_pretty(&all)?)?;
    }
    Ok(expected)
}

fn run_generate(args: &GenerateArgs, json: bool, out: &mut dyn Write) -> Result<bool> {
    let trace = generate(args.kind, args.seed)?;
    let text = trace.to_csv();
    match &args.output {
        Some(path) => std::fs::write(path, &text).with_context(|| format!("writing {}", path.display()))?,
        None if json => bail!("a trace is CSV; `stats` has JSON"),
        None => out.write_all(text.as_bytes())?,
    }
    Ok(true)
}

fn run_stats(args: &StatsArgs, json: bool, out: &mut dyn Write) -> Result<bool> {
    let traces = load(&args.traces)?;
    if json {
        let all: Vec<_> =
            traces.iter().map(|trace| serde_json::json!({ "trace": trace.name, "stats": trace.stats() })).collect();
        writeln!(out, "{}", serde_json::to_string_pretty(&all)?)?;
        return Ok(true);
    }
    for (place, trace) in traces.iter().enumerate() {
        let gap = if place > 0 { "\n" } else { "" };
        write!(out, "{gap}{}\n{}", trace.name, render::stats(&trace.stats()))?;
    }
    Ok(true)
}
