//! What the daemon can be told at its start.

use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Parser, ValueEnum, ValueHint};
use conuma_agent_proto::Trigger;
use conuma_balancing::Timing;
use conuma_binding::{Accel, Reserve};
use conuma_topology::{Bytes, CpuSet};

use crate::agent::Doors;

/// The host daemon of Conuma
///
/// Starts virtual machines that see the whole NUMA host, keeps the ledger of who holds which core and how
/// much memory of which node, and moves them between VMs on request. VMs run on when it ends, and it
/// finds them again. Listens on a Unix socket; see `conuma` for the command line.
#[derive(Debug, Clone, Parser)]
#[command(name = "conumad", version, max_term_width = 100)]
pub struct Config {
    /// Where VMs and the journal are kept
    #[arg(long, value_name = "DIR", default_value = "/var/lib/conuma", value_hint = ValueHint::DirPath)]
    pub state: PathBuf,

    /// Where the socket of the API, `conumad.sock`, is made
    #[arg(long, value_name = "DIR", default_value = "/run/conuma", value_hint = ValueHint::DirPath)]
    pub run: PathBuf,

    /// The group whose members may change things, besides root: equal to root on the host
    #[arg(long, value_name = "GROUP", value_parser = group_id)]
    pub group: Option<u32>,

    /// The group whose members may look, by a socket of its own, `viewers.sock`
    #[arg(long, value_name = "GROUP", value_parser = group_id)]
    pub viewers: Option<u32>,

    /// Where sys/ and proc/ of the host are
    #[arg(long, value_name = "DIR", default_value = "/", value_hint = ValueHint::DirPath)]
    pub root: PathBuf,

    /// The cgroup (v2) below which VMs get theirs; made if it is not there
    #[arg(long, value_name = "DIR", default_value = "/sys/fs/cgroup/conuma", value_hint = ValueHint::DirPath)]
    pub cgroup_root: PathBuf,

    /// Memory that the host keeps on each node
    #[arg(long, value_name = "SIZE", default_value = "256M")]
    pub reserve_memory: Bytes,

    /// CPUs that the host keeps for itself
    #[arg(long, value_name = "LIST", default_value = "", hide_default_value = true)]
    pub reserve_cpus: CpuSet,

    /// The QEMU program
    #[arg(long, value_name = "PROGRAM", default_value = "qemu-system-x86_64", value_hint = ValueHint::CommandName)]
    pub qemu: PathBuf,

    /// What runs the guests: the kernel's hypervisor, or QEMU's emulator
    #[arg(long, value_enum, value_name = "ACCEL", default_value_t = AccelChoice::Kvm)]
    pub accel: AccelChoice,

    /// Reach agents at DIR/VM.sock, which something else carries into the guests, instead of by vsock
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub agent_sockets: Option<PathBuf>,

    /// Seconds between counts of the pages that each VM has on each node; for a VM of a TiB a count takes seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 60, value_parser = clap::value_parser!(u32).range(1..=86_400))]
    pub audit_every: u32,

    /// Milliseconds within which a VM has the cores that it needs of its guarantee; two fifths of that a borrower's guest may take to leave
    /// them, and as long again to stand still there
    #[arg(long, value_name = "MS", default_value_t = 1000, value_parser = clap::value_parser!(u32).range(50..=600_000))]
    pub recall_deadline: u32,

    /// Multiplies all deadlines, and what a guest may do in passing on a CPU it does not hold; for slow hosts and guests
    #[arg(long, value_name = "FACTOR", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=100))]
    pub patience: u32,

    /// The policy file to apply at the start if it has changed since the last one; without any policy nothing moves by
    /// itself (`conuma policy mode` switches that on and off)
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub policy: Option<PathBuf>,

    /// What is logged, for example `debug` or `info,conumad::core=debug`
    #[arg(long, value_name = "FILTER", env = "CONUMAD_LOG", default_value = "info")]
    pub log: String,

    /// Print the description of the API (OpenAPI) and do nothing else
    #[arg(long)]
    pub openapi: bool,
}

/// A timer, an interrupt that could not be moved: thousandths of a CPU on a host of usual speed.
const STRAY: u32 = 50;
/// No guest is that slow: two that want a CPU get half each.
const MOST_STRAY: u32 = 250;

/// What runs the guests.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum AccelChoice {
    /// The kernel's hypervisor.
    Kvm,
    /// QEMU's emulator: slow.
    Tcg,
}

/// What the daemon goes by; made from [`Config`], or by a test.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Where VMs and the journal are kept.
    pub state: PathBuf,
    /// Where the socket is made.
    pub run: PathBuf,
    /// The group that may change things; none: root alone.
    pub group: Option<u32>,
    /// The group that may look; none: root alone.
    pub viewers: Option<u32>,
    /// What stays with the host.
    pub reserve: Reserve,
    /// What runs the guests.
    pub accel: Accel,
    /// Where agents are reached.
    pub doors: Doors,
    /// The engine's deadlines.
    pub timing: Timing,
    /// How often gated vCPUs are looked at, and QEMU's threads placed.
    pub look: Duration,
    /// What a guest does in passing on a gated vCPU, in thousandths of the time; more is braked.
    pub stray: u32,
    /// How often agents are asked for a report.
    pub report: Duration,
    /// When agents are to report at once.
    pub triggers: Triggers,
    /// How often the memory of QEMU processes is audited.
    pub audit: Duration,
    /// How long the host's own steps of starting and ending a VM may take each.
    pub step: Duration,
    /// The policy file to apply at the start, if it has changed.
    pub policy: Option<PathBuf>,
    /// How often the policy looks, at least, where it decides anything.
    pub balance_tick: Duration,
    /// How long a VM may wait for what it needs of its guarantee before people are told.
    pub recall_deadline: Duration,
}

/// When a guest is so short of something that its agent reports at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Triggers {
    /// Tasks wait for a CPU.
    pub cpu: Trigger,
    /// Tasks wait for memory.
    pub memory: Trigger,
}

impl Default for Triggers {
    /// A tenth of a second in which a task waits for a CPU, and half of that for memory, whose lack slows down much more.
    fn default() -> Self {
        let trigger = |millis| Trigger { stall: Duration::from_millis(millis), window: Duration::from_secs(1) };
        Self { cpu: trigger(100), memory: trigger(50) }
    }
}

impl Config {
    /// What the daemon goes by.
    pub fn settings(&self) -> Settings {
        let slower = |time: Duration| time * self.patience;
        let recall_deadline = slower(Duration::from_millis(self.recall_deadline.into()));
        let timing = Timing::default();
        Settings {
            state: self.state.clone(),
            run: self.run.clone(),
            group: self.group,
            viewers: self.viewers,
            reserve: Reserve { cpus: self.reserve_cpus.clone(), memory_per_node: self.reserve_memory },
            accel: match self.accel {
                AccelChoice::Kvm => Accel::Kvm,
                AccelChoice::Tcg => Accel::Tcg,
            },
            doors: self.agent_sockets.clone().map_or(Doors::Vsock, Doors::Sockets),
            timing: Timing {
                agent: slower(timing.agent),
                recall: recall_deadline * 2 / 5,
                host: slower(timing.host),
                verify: slower(timing.verify),
                prepare: slower(timing.prepare),
                shrink: slower(timing.shrink),
                grow: slower(timing.grow),
                confirm: slower(timing.confirm),
                ..timing
            },
            look: Duration::from_secs(1),
            // What takes a slow guest longer takes it a larger share of its time.
            stray: (STRAY * self.patience).min(MOST_STRAY),
            report: Duration::from_secs(5),
            triggers: Triggers::default(),
            audit: Duration::from_secs(self.audit_every.into()),
            step: slower(Duration::from_secs(15)),
            policy: self.policy.clone(),
            balance_tick: Duration::from_secs(1),
            recall_deadline,
        }
    }
}

impl Settings {
    /// The API's socket.
    pub fn socket(&self) -> PathBuf {
        self.run.join("conumad.sock")
    }

    /// The API's socket for those who may only look.
    pub fn viewers_socket(&self) -> PathBuf {
        self.run.join(conuma_api::VIEWERS)
    }

    /// The directory of all VMs.
    pub fn vms(&self) -> PathBuf {
        self.state.join("vms")
    }

    /// How long a guest may boot, and use every CPU, before its agent has told it what it holds: 10 min for a host of
    /// usual speed.
    pub fn boot_grace(&self) -> Duration {
        10 * self.timing.shrink
    }
}

/// Makes a directory that only root and the daemon's group may enter.
pub fn make_private_dir(path: &Path) -> std::io::Result<()> {
    make_dir(path, 0o750)
}

/// Makes a directory with this mode, unless it is there.
pub fn make_dir(path: &Path, mode: u32) -> std::io::Result<()> {
    use std::os::unix::fs::DirBuilderExt as _;
    std::fs::DirBuilder::new().recursive(true).mode(mode).create(path)
}

/// The number of a group, which may be given by its name in /etc/group.
fn group_id(text: &str) -> Result<u32, String> {
    if let Ok(number) = text.parse() {
        return Ok(number);
    }
    let groups =
        std::fs::read_to_string("/etc/group").map_err(|error| format!("/etc/group cannot be read: {error}"))?;
    let named =
        groups.lines().map(|line| line.split(':').collect::<Vec<_>>()).find(|fields| fields.first() == Some(&text));
    let number = named.and_then(|fields| fields.get(2)?.parse().ok());
    number.ok_or_else(|| format!("there is no group `{text}` in /etc/group (a number will do, too)"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory as _;

    #[test]
    fn the_definition_is_sound() {
        Config::command().debug_assert();
    }

    #[test]
    fn patience_stretches_deadlines_but_not_the_looks() {
        let config = Config::parse_from(["conumad", "--patience", "3"]);
        let (patient, usual) = (config.settings(), Timing::default());
        assert_eq!(patient.timing.shrink, 3 * usual.shrink);
        assert_eq!(patient.timing.poll, usual.poll);
        assert_eq!(patient.boot_grace(), Duration::from_secs(1800));
        assert_eq!(patient.stray, 150);
    }
}
