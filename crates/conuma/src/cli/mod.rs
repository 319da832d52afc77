//! What can be typed: commands, flags and their help. Nothing here reads the terminal or the
//! machine; `main` and the reference generator share it.

mod policy;
mod values;

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, CommandFactory, FromArgMatches, Parser, Subcommand, ValueEnum, ValueHint};
use conuma_api::EventKind;
use conuma_topology::{Bytes, CpuSet, VmName};

pub use policy::{
    HistoryArgs, PinArgs, PlanCommand, PolicyArgs, PolicyCommand, PolicyFileArgs, PolicyModeArgs, PolicyModeChoice,
    PolicyShowArgs, RebalanceArgs, UnpinArgs,
};
pub use values::{NodeAmount, parse_duration, parse_node_amount};

/// Where the daemon listens unless told otherwise.
pub const DEFAULT_SOCKET: &str = "/run/conuma/conumad.sock";

/// Cores and node memory moved between the virtual machines of one NUMA host
///
/// Every VM sees the whole host as it is: the same nodes, cores, caches and distances. At any
/// instant each core and each piece of node memory is used by one VM at most; `conuma` asks the
/// daemon, `conumad`, to move them from one to another, and shows who holds what.
#[derive(Debug, Parser)]
#[command(name = "conuma", version, max_term_width = 100)]
#[command(subcommand_required = true, arg_required_else_help = true, disable_help_subcommand = true)]
#[command(after_long_help = "\
Examples:
  conuma topology                                    the machine: nodes, caches, cores, distances
  conuma plan a.toml --qemu                          what starting `a` would do, and do nothing
  conuma start a.toml                                start it and wait for its agent
  conuma lend --from a --to b --cores 2 --memory node1=256M
  conuma recall --to a                               and everything `a` lent comes back
  conuma show                                        who holds which core, and how much memory

Exit codes:
  0  done, all of it
  1  not done: the error says why
  2  the command line is wrong
  3  done in part: the rest stayed where it was
  4  refused: a guest or a rule said no, nothing moved")]
pub struct Cli {
    /// What applies to every command.
    #[command(flatten)]
    pub global: Global,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// Flags of every command.
#[derive(Debug, Args)]
#[command(next_help_heading = "Options for every command")]
pub struct Global {
    /// Socket on which the daemon listens
    #[arg(long, global = true, env = "CONUMA_SOCKET", hide_env_values = true, value_name = "PATH")]
    #[arg(default_value = DEFAULT_SOCKET, value_hint = ValueHint::FilePath)]
    pub socket: PathBuf,

    /// Print JSON for programs instead of text for people
    #[arg(long, global = true)]
    pub json: bool,

    /// When to use colour; `auto` obeys NO_COLOR and whether the output is a terminal
    #[arg(long, global = true, value_enum, default_value_t = ColorChoice::Auto, value_name = "WHEN", hide_possible_values = true)]
    #[arg(help = "When to use colour: auto, always or never; `auto` obeys NO_COLOR")]
    pub color: ColorChoice,
}

/// When output is coloured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ColorChoice {
    /// On a terminal, unless `NO_COLOR` is set.
    Auto,
    /// Also into files and pipes.
    Always,
    /// Nowhere.
    Never,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Draw a machine: nodes, caches, cores, memory, devices and distances
    Topology(TopologyArgs),
    /// Show how a VM would be bound, or what the policy would move, without doing anything
    Plan(PlanArgs),
    /// Start a VM from its file
    Start(StartArgs),
    /// Stop a VM and free what it holds
    Stop(StopArgs),
    /// Let go of VMs: they run on with every CPU, without Conuma
    Release(ReleaseArgs),
    /// List the VMs and what they hold
    List,
    /// Show one VM in full, or without a name who holds what on the host
    Show(ShowArgs),
    /// Move cores and node memory from one VM to another
    Lend(LendArgs),
    /// Bring back what a VM lent
    Recall(RecallArgs),
    /// Set what a VM holds; the difference comes from or goes to the free pool
    Set(SetArgs),
    /// Show and change how the host is divided by itself
    Policy(PolicyArgs),
    /// Do once what the policy would do now
    Rebalance(RebalanceArgs),
    /// Keep the policy from changing what a VM holds
    Pin(PinArgs),
    /// Let the policy have a VM again
    Unpin(UnpinArgs),
    /// List what was decided, why, and what came of it
    History(HistoryArgs),
    /// Follow what happens on the host
    Events(EventsArgs),
    /// Print a completion script for a shell
    Completions(CompletionsArgs),
    /// Write the man pages into a directory
    Man(ManArgs),
}

/// `conuma topology`.
#[derive(Debug, Args)]
#[command(after_long_help = "\
Examples:
  conuma topology
  conuma topology --topology 4n2c2t@1G      4 nodes of 2 cores of 2 threads, 1 GiB each
  conuma topology --topology saved/         a copy of another machine's sys/ and proc/
  conuma topology --json > m.json           and again: conuma topology --topology m.json")]
pub struct TopologyArgs {
    /// Where sys/ and proc/ of the machine are
    #[arg(long, value_name = "DIR", default_value = "/", value_hint = ValueHint::DirPath, conflicts_with = "topology")]
    pub root: PathBuf,
    /// The machine to show
    #[command(flatten)]
    pub machine: MachineArg,
}

/// The machine that is meant, where it need not be this one.
#[derive(Debug, Args)]
pub struct MachineArg {
    /// Another machine than this one: a directory with its sys/ and proc/, a JSON file from
    /// `conuma topology --json`, or a text such as 4n2c1t@1G
    #[arg(long, value_name = "DIR|FILE|TEXT", value_hint = ValueHint::AnyPath)]
    pub topology: Option<String>,
}

/// `conuma plan`.
#[derive(Debug, Args)]
#[command(subcommand_negates_reqs = true, disable_help_subcommand = true)]
#[command(override_usage = "conuma plan [OPTIONS] <VM.toml>\n       conuma plan rebalance")]
#[command(after_long_help = "\
For a VM file it works without the daemon: the machine and the file are all it reads.

Examples:
  conuma plan rebalance                        what the policy would move now, and why
  conuma plan a.toml
  conuma plan a.toml --topology 4n2c1t@1G --reserve-memory 128M
  conuma plan a.toml --qemu                    the exact command line, one option a line
  conuma plan a.toml --json | jq .")]
pub struct PlanArgs {
    /// The VM file
    #[arg(value_name = "VM.toml", value_hint = ValueHint::FilePath, required = true)]
    pub file: Option<PathBuf>,
    /// Something else than a VM.
    #[command(subcommand)]
    pub command: Option<PlanCommand>,
    /// The machine to plan for
    #[command(flatten)]
    pub machine: MachineArg,
    /// Where sys/ and proc/ of the machine are
    #[arg(long, value_name = "DIR", default_value = "/", value_hint = ValueHint::DirPath, conflicts_with = "topology")]
    pub root: PathBuf,
    /// Print the QEMU command line instead of the table
    #[arg(long)]
    pub qemu: bool,
    /// The QEMU program that the command line names
    #[arg(long, value_name = "PROGRAM", default_value = "qemu-system-x86_64", requires = "qemu", value_hint = ValueHint::CommandName)]
    pub qemu_program: String,
    /// The daemon's state directory, where the command line puts the VM's sockets
    #[arg(long, value_name = "DIR", default_value = "/var/lib/conuma", requires = "qemu", value_hint = ValueHint::DirPath)]
    pub state: PathBuf,
    /// The guest's vsock address where the VM file names none; the daemon takes the next free one
    #[arg(long, value_name = "CID", default_value_t = 3)]
    pub cid: u32,
    /// The host's reserve
    #[command(flatten)]
    pub reserve: ReserveArgs,
}

/// What the host keeps; the daemon has the same flags.
#[derive(Debug, Args)]
pub struct ReserveArgs {
    /// Memory that the host keeps on each node
    #[arg(long, value_name = "SIZE", default_value = "256M")]
    pub reserve_memory: Bytes,
    /// CPUs that the host keeps for itself
    #[arg(long, value_name = "LIST", default_value = "", hide_default_value = true)]
    pub reserve_cpus: CpuSet,
}

/// `conuma start`.
#[derive(Debug, Args)]
#[command(after_long_help = "\
Examples:
  conuma start a.toml
  conuma start a.toml --preview                what the daemon would start, and do nothing
  conuma start a.toml --wait boot              return as soon as QEMU runs the guest")]
pub struct StartArgs {
    /// The VM file
    #[arg(value_name = "VM.toml", value_hint = ValueHint::FilePath)]
    pub file: PathBuf,
    /// Show what would be bound to what, and do nothing
    #[arg(long, short = 'n')]
    pub preview: bool,
    /// How far to wait
    #[arg(long, value_enum, default_value_t = WaitFor::Agent, value_name = "STAGE")]
    pub wait: WaitFor,
    /// Give up waiting after this long; the VM goes on
    #[arg(long, value_name = "TIME", default_value = "5m", value_parser = parse_duration)]
    pub deadline: Duration,
}

/// How far `start` waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum WaitFor {
    /// Until the agent in the guest answers
    Agent,
    /// Until QEMU runs the guest
    Boot,
    /// Only until its resources are booked
    None,
}

/// `conuma stop`.
#[derive(Debug, Args)]
pub struct StopArgs {
    /// The VM
    #[arg(value_name = "VM")]
    pub vm: VmName,
    /// Do not ask the guest: end QEMU at once
    #[arg(long)]
    pub force: bool,
    /// Give the guest this long to power off
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = parse_duration, conflicts_with = "force")]
    pub deadline: Duration,
}

/// `conuma release`.
#[derive(Debug, Args)]
#[command(after_long_help = "\
A VM that was released runs on with the memory that it has. Its vCPUs are bound to nothing and braked by
nothing, its cgroups are gone, its agent was told to use every CPU. What it held is free in the ledger
although it is used: release all of them to take Conuma off a host.

Examples:
  conuma release db                          what would happen
  conuma release db --yes
  conuma release --all --yes")]
pub struct ReleaseArgs {
    /// The VMs
    #[arg(value_name = "VM", required_unless_present = "all")]
    pub vms: Vec<VmName>,
    /// All of them
    #[arg(long, conflicts_with = "vms")]
    pub all: bool,
    /// Do it
    #[arg(long)]
    pub yes: bool,
}

/// `conuma show`.
#[derive(Debug, Args)]
#[command(after_long_help = "\
Examples:
  conuma show               the host: who holds which core, and node memory
  conuma show a             holding, guarantee, limit, loans, memory, gates, agent
  conuma show a --watch     the same, again whenever something changes
  conuma show a --why       what the policy believes it wants, from what, and on which terms")]
pub struct ShowArgs {
    /// The VM; the whole host without it
    #[arg(value_name = "VM")]
    pub vm: Option<VmName>,
    /// Show it again whenever something changes, until interrupted
    #[arg(long, short = 'w')]
    pub watch: bool,
    /// Show what the policy believes of the VM: what it wants and why, its terms, its last decision, its pin
    #[arg(long, requires = "vm")]
    pub why: bool,
}

/// Cores, or exactly which CPUs, and memory on nodes.
#[derive(Debug, Args)]
#[group(multiple = true)]
#[command(next_help_heading = "What moves")]
pub struct What {
    /// So many whole cores; the daemon picks them
    #[arg(long, value_name = "N", conflicts_with = "cpus")]
    pub cores: Option<u32>,
    /// Exactly these CPUs of the host, in whole cores
    #[arg(long, value_name = "LIST")]
    pub cpus: Option<CpuSet>,
    /// Memory of a node, for example node1=256M; may be given again for another node. A size alone is that much in all: the
    /// daemon picks the nodes, and where one does not give, another
    #[arg(long, value_name = "[NODE=]SIZE", value_delimiter = ',', value_parser = parse_node_amount)]
    pub memory: Vec<NodeAmount>,
}

/// How a move is made.
#[derive(Debug, Args)]
#[command(next_help_heading = "How it moves")]
pub struct How {
    /// Show what would move, before and after, and do nothing
    #[arg(long, short = 'n')]
    pub preview: bool,
    /// Stop watching after this long; the transfer goes on by the daemon's own deadlines
    #[arg(long, value_name = "TIME", value_parser = parse_duration)]
    pub deadline: Option<Duration>,
    /// Show what became of it, but no progress
    #[arg(long, short = 'q')]
    pub quiet: bool,
}

const MOVE_EXIT_CODES: &str = "\
Exit codes: 0 all of it moved, 3 part of it moved, 4 refused, 1 error.";

/// `conuma lend`.
#[derive(Debug, Args)]
#[command(after_long_help = format!("\
Examples:
  conuma lend --from a --to b --cores 2 --memory node1=256M
  conuma lend --from a --to b --cpus 4-7 --preview
  conuma lend --from a --to b --memory 512M
  conuma lend --from a --to b --cores 2 --for 2h       the policy leaves both so for 2 hours
  conuma lend --from a --to b --memory node0=1G,node1=1G --below-guarantee

{MOVE_EXIT_CODES}"))]
pub struct LendArgs {
    /// The VM that gives
    #[arg(long, value_name = "VM")]
    pub from: VmName,
    /// The VM that gets
    #[arg(long, value_name = "VM")]
    pub to: VmName,
    /// What moves.
    #[command(flatten)]
    pub what: What,
    /// How it moves.
    #[command(flatten)]
    pub how: How,
    /// Also take what the giving VM is guaranteed; it can recall it at any time
    #[arg(long, help_heading = "How it moves")]
    pub below_guarantee: bool,
    /// If a policy is at work, it leaves both VMs so for this long (0: not at all); without
    /// this until `conuma unpin`
    #[arg(long = "for", value_name = "TIME", value_parser = parse_duration, conflicts_with = "preview", help_heading = "How it moves")]
    pub how_long: Option<Duration>,
}

/// `conuma recall`.
#[derive(Debug, Args)]
#[command(after_long_help = format!("\
Without --cores, --cpus and --memory everything that was lent comes back.

Examples:
  conuma recall --to a
  conuma recall --to a --from b --cores 1

{MOVE_EXIT_CODES}"))]
pub struct RecallArgs {
    /// The VM that lent and gets back
    #[arg(long, value_name = "VM")]
    pub to: VmName,
    /// Only what this VM borrowed
    #[arg(long, value_name = "VM")]
    pub from: Option<VmName>,
    /// What comes back.
    #[command(flatten)]
    pub what: What,
    /// How it moves.
    #[command(flatten)]
    pub how: How,
}

/// `conuma set`.
#[derive(Debug, Args)]
#[command(after_long_help = format!("\
What is not named stays as it is.

Examples:
  conuma set a --cores 4
  conuma set a --cpus 0-3 --memory node0=1G,node1=512M

{MOVE_EXIT_CODES}"))]
pub struct SetArgs {
    /// The VM
    #[arg(value_name = "VM")]
    pub vm: VmName,
    /// What it shall hold.
    #[command(flatten)]
    pub what: What,
    /// How it moves.
    #[command(flatten)]
    pub how: How,
    /// Also less than the VM is guaranteed
    #[arg(long, help_heading = "How it moves")]
    pub below_guarantee: bool,
    /// If a policy is at work, it leaves the VM so for this long (0: not at all); without
    /// this until `conuma unpin`
    #[arg(long = "for", value_name = "TIME", value_parser = parse_duration, conflicts_with = "preview", help_heading = "How it moves")]
    pub how_long: Option<Duration>,
}

/// `conuma events`.
#[derive(Debug, Args)]
#[command(after_long_help = "\
Follows until interrupted. With --json one JSON object a line.

Examples:
  conuma events
  conuma events --vm a --json
  conuma events --kind transfer-ended,violated")]
pub struct EventsArgs {
    /// Only what concerns this VM
    #[arg(long, value_name = "VM")]
    pub vm: Option<VmName>,

    /// Only events of these kinds
    #[arg(long = "kind", value_name = "KIND", value_delimiter = ',', value_parser = EventKind::NAMES)]
    pub kinds: Vec<String>,
}

/// `conuma completions`.
#[derive(Debug, Args)]
#[command(after_long_help = "\
Examples:
  conuma completions bash > /etc/bash_completion.d/conuma
  conuma completions fish > ~/.config/fish/completions/conuma.fish")]
pub struct CompletionsArgs {
    /// The shell
    #[arg(value_enum)]
    pub shell: clap_complete::Shell,
}

/// `conuma man`.
#[derive(Debug, Args)]
pub struct ManArgs {
    /// The directory; made if it is not there
    #[arg(value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub dir: PathBuf,
}

/// The commands in the groups and the order in which help shows them.
pub const GROUPS: [(&str, &[&str]); 6] = [
    ("The machine", &["topology", "plan"]),
    ("Virtual machines", &["start", "stop", "release", "list", "show"]),
    ("Moving cores and memory", &["lend", "recall", "set"]),
    ("Moving by itself", &["policy", "rebalance", "pin", "unpin"]),
    ("Watching", &["events", "history"]),
    ("Setting up", &["completions", "man"]),
];

/// What a command line asks for; the error also stands for a wish for help.
pub fn parse<I, T>(words: I) -> Result<Cli, clap::Error>
where
    I: IntoIterator<Item = T>,
    T: Into<OsString> + Clone,
{
    Cli::from_arg_matches(&command().try_get_matches_from(words)?)
}

/// The whole command, its help grouped.
pub fn command() -> clap::Command {
    let mut command = Cli::command();
    for must_say_what in ["lend", "set"] {
        command = command.mut_subcommand(must_say_what, |sub| sub.mut_group("What", |group| group.required(true)));
    }
    let template = help_template(&command);
    command.help_template(template)
}

fn help_template(command: &clap::Command) -> String {
    let about = |name: &str| command.find_subcommand(name).and_then(|sub| sub.get_about()).map(ToString::to_string);
    let mut text = String::from("{before-help}{about-with-newline}\n{usage-heading} {usage}\n");
    for (group, names) in GROUPS {
        text.push_str(&format!("\n{group}:\n"));
        for name in names {
            text.push_str(&format!("  {name:<12} {}\n", about(name).unwrap_or_default()));
        }
    }
    text.push_str("\nOptions:\n{options}{after-help}");
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(line: &str) -> String {
        parse(line.split_whitespace()).expect_err(line).to_string()
    }

    #[test]
    fn the_definition_is_sound() {
        command().debug_assert();
    }

    #[test]
    fn every_command_is_in_one_group_of_the_help() {
        let mut grouped: Vec<&str> = GROUPS.iter().flat_map(|(_, names)| names.iter().copied()).collect();
        let command = command();
        let mut all: Vec<&str> = command.get_subcommands().map(clap::Command::get_name).collect();
        grouped.sort_unstable();
        all.sort_unstable();
        assert_eq!(grouped, all);
    }

    #[test]
    fn what_moves_must_be_said() {
        insta::assert_snapshot!("lend_nothing", refused("conuma lend --from a --to b"));
        assert!(refused("conuma set a").contains("required"));
        assert!(parse("conuma recall --to a".split(' ')).is_ok());
    }

    #[test]
    fn cores_and_cpus_exclude_each_other() {
        assert!(refused("conuma lend --from a --to b --cores 2 --cpus 4-7").contains("cannot be used with"));
        assert!(
            parse("conuma lend --from a --to b --cpus 4-7 --memory node0=1G,1=512M --memory 2=1G".split(' ')).is_ok()
        );
    }

    #[test]
    fn wrong_values_are_named_with_the_right_form() {
        let lines = ["--memory lots", "--memory node1=much", "--cpus 7-4", "--cores 1 --deadline soon"];
        let errors = lines.map(|line| refused(&format!("conuma lend --from a --to b {line}")));
        insta::assert_snapshot!("wrong_values", errors.join("\n"));
    }
}
