//! What can be typed about the policy: the file and its mode, what was decided, pins.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum, ValueHint};
use conuma_topology::VmName;

use super::values::parse_duration;

/// `conuma policy`.
#[derive(Debug, Args)]
#[command(subcommand_required = true, arg_required_else_help = true, disable_help_subcommand = true)]
#[command(after_long_help = "\
Nothing moves by itself until a policy is in force whose mode is `auto`; docs/policy.md tells what it does.

Examples:
  conuma policy example > policy.toml
  conuma policy check policy.toml           also without a daemon
  conuma policy apply policy.toml
  conuma policy mode advise                 decide and show, but move nothing
  conuma plan rebalance                     what it would do now, and why")]
pub struct PolicyArgs {
    /// What to do.
    #[command(subcommand)]
    pub command: PolicyCommand,
}

/// The commands about the policy.
#[derive(Debug, Subcommand)]
pub enum PolicyCommand {
    /// Show the mode, the pins, and the terms of every VM with where they come from
    Show(PolicyShowArgs),
    /// Check a policy file, also without a daemon
    ///
    /// Exit codes: 0 the file is valid (what the daemon is concerned about is told), 1 it is not.
    Check(PolicyFileArgs),
    /// Show what applying a policy file would change
    Diff(PolicyFileArgs),
    /// Put a policy file in force, and show what that changes; an invalid one changes nothing
    Apply(PolicyFileArgs),
    /// Switch the policy off, let it advise only, or let it move things
    Mode(PolicyModeArgs),
    /// Print a policy file with every key explained, to begin with
    Example,
}

/// `conuma policy show`.
#[derive(Debug, Args)]
pub struct PolicyShowArgs {
    /// Print the policy file that is in force, and nothing else
    #[arg(long)]
    pub text: bool,
}

/// A policy file.
#[derive(Debug, Args)]
pub struct PolicyFileArgs {
    /// The policy file
    #[arg(value_name = "POLICY.toml", value_hint = ValueHint::FilePath)]
    pub file: PathBuf,
}

/// `conuma policy mode`.
#[derive(Debug, Args)]
#[command(after_long_help = "\
The mode is kept over restarts of the daemon. All else of the policy stays as it is.")]
pub struct PolicyModeArgs {
    /// The mode from now on
    #[arg(value_enum, value_name = "MODE")]
    pub mode: PolicyModeChoice,
}

/// Whether decisions are made, and whether they are carried out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum PolicyModeChoice {
    /// Nothing is decided, nothing moves by itself
    Off,
    /// Decisions are made, shown and kept; nothing moves
    Advise,
    /// Decisions are carried out
    Auto,
}

/// `conuma plan rebalance`.
#[derive(Debug, Subcommand)]
pub enum PlanCommand {
    /// Show what the policy would move now, and why, without doing it
    ///
    /// Every VM: cores, what it wants and is guaranteed, how well it does now and would do; the moves with their reasons; what is not
    /// done, and why not. Works in every mode, also `off`.
    Rebalance,
}

/// `conuma rebalance`.
#[derive(Debug, Args)]
#[command(after_long_help = "\
Works in every mode, also `off`. `conuma plan rebalance` shows it first.

Exit codes: 0 done, or there was nothing to do, 3 part of it moved, 4 refused, 1 error.")]
pub struct RebalanceArgs {
    /// Stop watching after this long; what was begun goes on
    #[arg(long, value_name = "TIME", value_parser = parse_duration)]
    pub deadline: Option<Duration>,
    /// Show what became of it, but no progress
    #[arg(long, short = 'q')]
    pub quiet: bool,
}

const STATES: [&str; 6] = ["under-way", "done", "partial", "refused", "interrupted", "advised"];

/// `conuma history`.
#[derive(Debug, Args)]
#[command(after_long_help = "\
Newest first. The score is in points of 100 of the host's: what a decision should gain by its own prediction, and what it was found to have gained afterwards (- where that cannot be told).

Examples:
  conuma history
  conuma history --vm db --since 1h
  conuma history --state partial
  conuma history 42                         all of one: what it was made from, its moves, its outcome")]
pub struct HistoryArgs {
    /// All of this decision
    #[arg(value_name = "ID", conflicts_with_all = ["vm", "since", "state", "limit"])]
    pub id: Option<u64>,
    /// Only decisions that move something from or to this VM
    #[arg(long, value_name = "VM")]
    pub vm: Option<VmName>,
    /// Only those of this last time, such as 30m, 12h or 7d
    #[arg(long, value_name = "TIME", value_parser = parse_duration)]
    pub since: Option<Duration>,
    /// Only those in this state
    #[arg(long, value_name = "STATE", value_parser = STATES)]
    pub state: Option<String>,
    /// So many at most
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub limit: u32,
}

/// `conuma pin`.
#[derive(Debug, Args)]
#[command(after_long_help = "\
The policy neither takes from a pinned VM nor gives to it. `conuma lend`, `recall` and `set` work as ever.

Examples:
  conuma pin db                             until `conuma unpin db`
  conuma pin db --for 2h")]
pub struct PinArgs {
    /// The VM
    #[arg(value_name = "VM")]
    pub vm: VmName,
    /// For this long, such as 30m, 2h or 1d; until `conuma unpin` without it
    #[arg(long = "for", value_name = "TIME", value_parser = parse_duration)]
    pub how_long: Option<Duration>,
}

/// `conuma unpin`.
#[derive(Debug, Args)]
pub struct UnpinArgs {
    /// The VM
    #[arg(value_name = "VM")]
    pub vm: VmName,
}
