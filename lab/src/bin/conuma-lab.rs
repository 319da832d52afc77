//! Boots a virtual NUMA host and does something in it.

use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use clap::{Parser, Subcommand};
use conuma_lab::chaos::{self, Chaos};
use conuma_lab::trials::{self, Tally};
use conuma_lab::{Kit, Lab, LabSpec, bench, demo, shell};

#[derive(Parser)]
#[command(about = "A virtual NUMA host with real KVM guests")]
struct Cli {
    /// Unpacked kernels.
    #[arg(long)]
    kernels: PathBuf,
    /// The project's programs, statically linked.
    #[arg(long)]
    bin_dir: PathBuf,
    /// Where images, sockets and logs go.
    #[arg(long)]
    work: PathBuf,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run the lab's tests.
    Test {
        /// Only those whose name contains this.
        #[arg(default_value = "")]
        filter: String,
        /// Also those that take long.
        #[arg(long)]
        all: bool,
    },
    /// Tell the whole story once, with live output.
    Demo,
    /// Measure against what it is meant to replace, in the same run.
    BenchLend {
        /// How often each is measured.
        #[arg(long, default_value_t = 9)]
        rounds: usize,
    },
    /// Random loads, transfers and faults under the eyes of an independent witness.
    Chaos {
        /// Where the random numbers begin.
        #[arg(long)]
        seed: u64,
        /// For how long.
        #[arg(long, default_value_t = 5)]
        minutes: u64,
    },
    /// A shell in the virtual host.
    Shell {
        /// Its topology.
        #[arg(default_value = "4n2c1t@2G")]
        topology: String,
    },
}

fn main() -> Result<ExitCode> {
    let cli = Cli::parse();
    let kit = Kit { kernels: cli.kernels, programs: cli.bin_dir, work: cli.work };
    match cli.command {
        Command::Test { filter, all } => {
            let tally = trials::run(&kit, &filter, all)?;
            let Tally { passed, failed, skipped } = tally;
            writeln!(std::io::stdout(), "{passed} passed, {failed} failed, {skipped} skipped")?;
            if tally.failed > 0 || tally.passed == 0 {
                return Ok(ExitCode::FAILURE);
            }
        }
        Command::Demo => demo::run(&kit)?,
        Command::BenchLend { rounds } => bench::run(&kit, rounds)?,
        Command::Chaos { seed, minutes } => {
            chaos::run(&kit, Chaos { seed, length: Duration::from_secs(60 * minutes) })?;
        }
        Command::Shell { topology } => shell(&Lab::boot(&kit, "shell", LabSpec::parse(&topology)?)?)?,
    }
    Ok(ExitCode::SUCCESS)
}
