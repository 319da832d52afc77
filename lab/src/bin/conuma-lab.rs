//! Boots a virtual NUMA host and does something in it.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};
use conuma_lab::{Kit, Lab, LabSpec};

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
        Command::Shell { topology } => Lab::boot(&kit, "shell", LabSpec::parse(&topology)?)?.shell()?,
    }
    Ok(ExitCode::SUCCESS)
}
