//! All tests: those of the crates, then those in virtual hosts.

mod report;

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context, Result};
use clap::Args;

use self::report::{Report, Skip, Tally};
use crate::run::Workspace;
use crate::setup::{self, Needs, Ready};
use crate::{build, lab};

/// Reasons for which a test may skip itself: one line each, `#` begins a remark.
const EXPECTED_SKIPS: &str = include_str!("../../expected-skips.txt");

/// Which tests.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Also those that take long: tests of crates that are marked as ignored, and the lab's long trials.
    #[arg(long)]
    all: bool,
    /// Only tests whose name contains this.
    filter: Option<String>,
}

/// Runs them; the last line counts them.
pub(crate) fn run(workspace: &Workspace, options: &Options) -> Result<ExitCode> {
    let ready = setup::ensure(workspace, Needs::Tests)?;
    let programs = build::programs(workspace, ready.target)?;
    let mut report = Report::default();
    let mut broken = Vec::new();

    println!("test: crates");
    let ended_well = watch(&mut crates(workspace, options), &mut report)?;
    if !ended_well && report.tally.failed == 0 {
        broken.push("the crates' tests ended without counting a failure: see above");
    }
    let crates = std::mem::take(&mut report);

    println!("test: lab");
    let ended_well = watch(&mut trials(workspace, &ready, &programs, options), &mut report)?;
    let left_out = options.filter.is_some() && report.tally == Tally::default();
    if !ended_well && report.tally.failed == 0 && !left_out {
        broken.push("the lab's tests ended without counting a failure: see above");
    }

    let tally = crates.tally + report.tally;
    if tally == Tally::default() {
        broken.push("no test was run");
    }
    let unexpected = tell_skips(crates.skips.iter().chain(&report.skips));
    if unexpected > 0 {
        broken.push("tests skipped themselves for reasons that xtask/expected-skips.txt does not name");
    }
    broken.iter().for_each(|what| println!("error: {what}"));
    println!("{tally}");
    Ok(if tally.failed == 0 && broken.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// libtest shows what passed tests have printed, so that a test can say that it skipped itself, and why.
fn crates(workspace: &Workspace, options: &Options) -> Command {
    let mut cargo = workspace.cargo(&["test", "--workspace", "--no-fail-fast", "--", "--show-output"]);
    if options.all {
        cargo.arg("--include-ignored");
    }
    cargo.args(&options.filter);
    cargo
}

fn trials(workspace: &Workspace, ready: &Ready, programs: &Path, options: &Options) -> Command {
    let mut lab = lab::program(workspace, ready, programs, "test");
    if options.all {
        lab.arg("--all");
    }
    lab.args(&options.filter);
    lab
}

/// Shows what a program prints, line by line, and collects what it says of tests. Whether it ended well.
fn watch(command: &mut Command, report: &mut Report) -> Result<bool> {
    let mut child = command.stdout(Stdio::piped()).spawn().context("cannot run the tests")?;
    let output = child.stdout.take().context("the tests' output is a pipe")?;
    for line in BufReader::new(output).split(b'\n') {
        if let Some(line) = report.line(&String::from_utf8_lossy(&line?)) {
            println!("{line}");
        }
    }
    Ok(child.wait()?.success())
}

/// Prints them, and counts those that nobody expects.
fn tell_skips<'a>(skips: impl Iterator<Item = &'a Skip>) -> usize {
    let expected: Vec<&str> =
        EXPECTED_SKIPS.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#')).collect();
    let mut unexpected = 0;
    for skip in skips {
        let known = expected.contains(&skip.reason.as_str());
        unexpected += usize::from(!known);
        println!("skipped{}: {}: {}", if known { "" } else { " unexpectedly" }, skip.test, skip.reason);
    }
    unexpected
}
