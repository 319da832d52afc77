//! The lab's hand inside its machines: runs commands for the other end of a virtio-serial port, passes commands on to
//! guests, and watches as an independent witness.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;
use std::str::FromStr as _;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};
use conuma_lab::observe::{Watch, watch};
use conuma_lab::{Client, Hold, Kill, Lie, Monitor, confine, keep, kill_at, lie, print, serve};
use conuma_linux::sys::touch_unclaimed;

#[derive(Parser)]
#[command(about = "The lab's hand inside its machines")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run commands for whoever is at the other end of a virtio-serial port.
    Serve {
        /// Name of the port.
        port: String,
    },
    /// Run a command in a guest.
    Exec {
        /// QEMU's end of the guest's port.
        #[arg(long)]
        socket: PathBuf,
        /// Seconds until it is killed.
        #[arg(long, default_value_t = 120)]
        budget: u64,
        /// Program and arguments.
        #[arg(trailing_var_arg = true, required = true)]
        argv: Vec<String>,
    },
    /// Move virtio-mem from one VM to another without the daemon; prints the microseconds it took.
    Resize {
        /// Monitor of the VM that gives.
        from: PathBuf,
        /// Monitor of the VM that gets.
        to: PathBuf,
        /// The host node.
        node: u32,
        /// How much.
        bytes: u64,
    },
    /// Give one command to a QMP monitor.
    Qmp {
        /// The monitor.
        monitor: PathBuf,
        /// The command.
        command: String,
        /// Its arguments, a JSON object.
        #[arg(default_value = "{}", value_parser = serde_json::Value::from_str)]
        arguments: serde_json::Value,
    },
    /// Keep memory that the kernel cannot give away, until a file is removed.
    Keep {
        /// How it is kept.
        how: Hold,
        /// How much, in MiB.
        mib: usize,
        /// The file, made once the memory is kept.
        held: PathBuf,
    },
    /// Tell where the memory of a virtio-mem device begins in its guest; prints the physical address.
    Address {
        /// Monitor of the VM.
        monitor: PathBuf,
        /// The host node of the device.
        node: u32,
    },
    /// Write to physical addresses that are neither memory nor devices; prints how many pages kept what was written.
    Touch {
        /// The first address.
        address: u64,
        /// How much, in MiB.
        mib: usize,
    },
    /// Kill a process at the n-th change of files that it writes.
    KillAt {
        /// The process.
        pid: i32,
        /// The step after which it dies, from 1.
        nth: u32,
        /// Made as soon as steps are counted.
        #[arg(long)]
        armed: PathBuf,
        /// Made when the process is dead.
        #[arg(long)]
        killed: PathBuf,
        /// Files whose changes are steps; of a directory, those of `journal.json` in it.
        #[arg(required = true)]
        watch: Vec<PathBuf>,
    },
    /// Run `conumad` or `conuma-agent` with what its unit grants: capabilities, system calls, address families.
    Confine {
        /// Program and arguments.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true, required = true)]
        argv: Vec<String>,
    },
    /// Take the place of the agent, and lie to the host.
    Lie {
        /// About what.
        about: Lie,
    },
    /// Watch VMs until a file appears; prints findings as JSON.
    Observe {
        /// Directory with one cgroup per VM.
        #[arg(long)]
        cgroups: PathBuf,
        /// A VM's own QMP monitor, `vm=path`.
        #[arg(long = "monitor", value_parser = pair::<PathBuf>)]
        monitors: Vec<(String, PathBuf)>,
        /// Bytes that VMs may use together on a node, `node=bytes`.
        #[arg(long = "limit", value_parser = pair::<u64>)]
        limits: Vec<(String, u64)>,
        /// Milliseconds between samples.
        #[arg(long, default_value_t = 100)]
        period: u64,
        /// The file that ends the watch.
        #[arg(long)]
        until: PathBuf,
    },
}

const RESIZE_BUDGET: Duration = Duration::from_secs(120);

fn pair<T: std::str::FromStr>(text: &str) -> Result<(String, T), String> {
    let (name, value) = text.split_once('=').ok_or("expected name=value")?;
    Ok((name.to_owned(), value.parse().map_err(|_| format!("`{value}` is not understood"))?))
}

fn main() -> ExitCode {
    match run(Cli::parse().command) {
        Ok(code) => code,
        Err(error) => {
            // Nobody to tell if even this fails.
            let _ = writeln!(std::io::stderr(), "conuma-lab-init: {error:#}");
            ExitCode::from(127)
        }
    }
}

fn run(command: Command) -> Result<ExitCode> {
    match command {
        Command::Serve { port } => serve(&port).map(|()| ExitCode::SUCCESS),
        Command::Exec { socket, budget, argv } => {
            let client = Client::connect(&socket)?;
            let argv: Vec<&str> = argv.iter().map(String::as_str).collect();
            let output = client.start(&argv, "")?.wait(Duration::from_secs(budget), &mut print)?;
            Ok(ExitCode::from(u8::try_from(output.code).unwrap_or(u8::MAX)))
        }
        Command::Qmp { monitor, command, arguments } => {
            Monitor::connect(&monitor)?.order(&command, arguments).map(|()| ExitCode::SUCCESS)
        }
        Command::Keep { how, mib, held } => keep(mib << 20, how, &held).map(|()| ExitCode::SUCCESS),
        Command::Address { monitor, node } => {
            writeln!(std::io::stdout(), "{}", Monitor::connect(&monitor)?.address(node)?)?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Touch { address, mib } => {
            writeln!(std::io::stdout(), "{}", touch_unclaimed(address, mib << 20).context("touching")?)?;
            Ok(ExitCode::SUCCESS)
        }
        Command::KillAt { pid, nth, armed, killed, watch } => {
            kill_at(&Kill { pid, watch, nth, armed, killed }).map(|()| ExitCode::SUCCESS)
        }
        Command::Confine { argv } => confine(&argv).map(|()| ExitCode::SUCCESS),
        Command::Lie { about } => lie(about).map(|()| ExitCode::SUCCESS),
        Command::Resize { from, to, node, bytes } => {
            let (mut from, mut to) = (Monitor::connect(&from)?, Monitor::connect(&to)?);
            let less = from.plugged(node)?.checked_sub(bytes).context("the giving VM has less than that")?;
            let more = to.plugged(node)? + bytes;
            let began = Instant::now();
            from.resize(node, less, RESIZE_BUDGET)?;
            let shrunk = began.elapsed();
            to.resize(node, more, RESIZE_BUDGET)?;
            let grown = began.elapsed() - shrunk;
            writeln!(std::io::stdout(), "{} {}", shrunk.as_micros(), grown.as_micros())?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Observe { cgroups, monitors, limits, period, until } => {
            let node_limits = limits
                .into_iter()
                .map(|(node, bytes)| Ok((node.parse().context("a node is a number")?, bytes)))
                .collect::<Result<BTreeMap<u32, u64>>>()?;
            // It is to look ten times a second, whatever loads the host.
            rustix::process::nice(-20).context("cannot run before others")?;
            let findings = watch(&Watch {
                root: "/".into(),
                cgroups,
                monitors: monitors.into_iter().collect(),
                period: Duration::from_millis(period),
                node_limits,
                until,
            })?;
            writeln!(std::io::stdout(), "{}", serde_json::to_string(&findings)?)?;
            Ok(ExitCode::SUCCESS)
        }
    }
}
