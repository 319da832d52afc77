//! Developer commands: `cargo xtask <command>`.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "what these commands say goes to the terminal")]

mod build;
mod check;
mod lab;
mod run;
mod setup;
mod test;
mod tidy;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Result;
use clap::{Args, Parser, Subcommand};

use crate::run::Workspace;
use crate::setup::Needs;

#[derive(Parser)]
#[command(name = "cargo xtask", about = "Developer commands", disable_help_subcommand = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Install what tests and lab need that is missing, and fetch the lab's kernels.
    Setup,
    /// Build the programs as the lab uses them: statically linked.
    Build,
    /// Set up, build, run unit tests and lab tests.
    Test(test::Options),
    /// Set up, build, and tell the whole story once, with live output.
    Demo,
    /// Set up, build, and measure.
    #[command(subcommand)]
    Bench(Bench),
    /// The virtual NUMA host.
    #[command(subcommand)]
    Lab(LabCommand),
    /// All that a change has to pass besides the tests: format, lints, tidy, licences, docs, generated files.
    Check(check::Options),
    /// Set up, build, and let random faults loose on a virtual host, watched by an independent witness.
    Chaos(Rest),
    /// Check the law of the rings and what else no lint knows.
    Tidy,
}

#[derive(Subcommand)]
enum Bench {
    /// Lending cores and memory against hot-plugging them, in the same guests.
    Lend(Rest),
}

#[derive(Subcommand)]
enum LabCommand {
    /// A shell in a virtual host.
    Shell(Rest),
}

/// Handed on to the lab program.
#[derive(Args)]
struct Rest {
    /// Arguments for the lab program, such as a topology, `--rounds N` or `--seed N --minutes M`.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    arguments: Vec<String>,
}

fn main() -> ExitCode {
    match Cli::parse().command.run() {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

impl Command {
    fn run(self) -> Result<ExitCode> {
        let workspace = Workspace::find(root())?;
        match self {
            Self::Setup => {
                setup::ensure(&workspace, Needs::Tests)?;
            }
            Self::Build => {
                let ready = setup::ensure(&workspace, Needs::Lab)?;
                println!("built: {}", build::programs(&workspace, ready.target)?.display());
            }
            Self::Test(options) => return test::run(&workspace, &options),
            Self::Demo => return lab::run(&workspace, "demo", &[]),
            Self::Bench(Bench::Lend(rest)) => return lab::run(&workspace, "bench-lend", &rest.arguments),
            Self::Chaos(rest) => return lab::run(&workspace, "chaos", &rest.arguments),
            Self::Lab(LabCommand::Shell(rest)) => return lab::run(&workspace, "shell", &rest.arguments),
            Self::Check(options) => check::run(&workspace, &options)?,
            Self::Tidy => tidy::run(&workspace.root)?,
        }
        Ok(ExitCode::SUCCESS)
    }
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().map(Path::to_owned).unwrap_or_default()
}
