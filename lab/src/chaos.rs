//! Random loads, transfers and faults, while an independent witness watches.
//!
//! Everything follows from the seed, but not the instants at which things meet: that is the emulator's and the machine's doing.
//! So a seed says what is tried, in which order, and a run that found something is worth repeating more than once.
//!
//! Left out is what would make the witness see a hand of its own: gates that chaos itself opens, bindings that it rewrites. Those have
//! trials of their own.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use conuma_api::{AgentState, Transfer, VmState, VmSummary};
use conuma_topology::{Bytes, CpuSet, NodeId};
use serde::Serialize;

use crate::client::Output;
use crate::host::{Kit, Look};
use crate::keeper::Keeper;
use crate::stage::Stage;
use crate::trials::{GUESTS, REFUSED, TOPOLOGY, all_is_well};

/// How long a transfer may take at most: the deadlines of all its stages, at the lab's patience.
const TRANSFER_BUDGET: Duration = Duration::from_secs(400);
/// What is owed comes back within the daemon's deadline for that; of memory, within that of a transfer.
const RECALL_DEADLINE: Duration = crate::stage::RECALL_DEADLINE;
/// The witness looks ten times a second, as far as the emulator lets it.
const LEAST_SAMPLES: u64 = 4;
const VMS: [&str; 2] = ["a", "b"];
/// What a guest boots with, on each node: that stays with it.
const LEAST_MEMORY: Bytes = Bytes::mib(192);

/// What to do.
#[derive(Debug, Clone, Copy)]
pub struct Chaos {
    /// Where the random numbers begin.
    pub seed: u64,
    /// For how long.
    pub length: Duration,
}

/// What was done and seen.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Outcome {
    /// Where the random numbers began.
    pub seed: u64,
    /// How long it lasted, in seconds.
    pub seconds: u64,
    /// Transfers by what became of them.
    pub transfers: BTreeMap<String, u64>,
    /// Faults by kind.
    pub faults: BTreeMap<String, u64>,
    /// The slowest recall, in milliseconds.
    pub slowest_recall_ms: u64,
    /// The slowest part of a recall that was about cores, which have a deadline of their own, in milliseconds.
    pub slowest_cores_back_ms: u64,
    /// Samples of the witness, and those of memory.
    pub samples: (u64, u64),
    /// The longest time between two samples, in milliseconds.
    pub longest_gap_ms: u64,
    /// The largest part of a sample that a vCPU ran behind a gate that had been closed for a second.
    pub worst_stray_share: f64,
}

/// Runs it and prints what came of it; fails at the first violation.
pub fn run(kit: &Kit, chaos: Chaos) -> Result<()> {
    let outcome = Stage::play(kit, "chaos", TOPOLOGY, &GUESTS, |stage| play(stage, chaos))?;
    let mut out = std::io::stdout().lock();
    writeln!(out, "{}", serde_json::to_string_pretty(&outcome)?)?;
    writeln!(out, "chaos: seed {}, {} s, 0 violations", outcome.seed, outcome.seconds)?;
    Ok(())
}

fn play(stage: &Stage, chaos: Chaos) -> Result<Outcome> {
    let witness = stage.witness(&VMS)?;
    let mut game = Game {
        stage,
        dice: fastrand::Rng::with_seed(chaos.seed),
        outcome: Outcome { seed: chaos.seed, ..Outcome::default() },
        loaded: false,
        began: Instant::now(),
    };
    let began = game.began;
    while began.elapsed() < chaos.length {
        game.turn().with_context(|| format!("seed {}, after {:?}", chaos.seed, game.outcome))?;
    }
    game.settle()?;
    let Game { mut outcome, .. } = game;
    outcome.seconds = began.elapsed().as_secs();
    let findings = witness.nothing_wrong().with_context(|| format!("seed {}", chaos.seed))?;
    let broken = stage.lab.sh("grep 'an invariant does not hold' /run/conumad.log || true")?;
    ensure!(broken.trim().is_empty(), "the daemon itself saw: {broken}");
    ensure!(
        findings.samples >= outcome.seconds * LEAST_SAMPLES && findings.memory_samples * 10 >= outcome.seconds,
        "the witness saw too little: {findings:?}"
    );
    outcome.samples = (findings.samples, findings.memory_samples);
    outcome.longest_gap_ms = findings.longest_gap_ms;
    outcome.worst_stray_share = findings.worst_stray_share;
    Ok(outcome)
}

struct Game<'a> {
    stage: &'a Stage,
    dice: fastrand::Rng,
    outcome: Outcome,
    /// Some guest has a load.
    loaded: bool,
    began: Instant,
}

/// Undoes a fault.
type Heal = Box<dyn FnOnce(&Stage) -> Result<()>>;

/// What goes wrong while something moves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    None,
    DaemonKilled,
    JournalLost,
    JournalCut,
    AgentKilled,
    AgentStopped,
    AgentLies,
    GuestPaused,
    GuestReset,
    MigrationFails,
    SecondTransfer,
    ThreadMoved,
    Throttled,
    DiskFull,
    CpuOffline,
    MemoryLocked,
    MemoryPinned,
    CpuKept,
    QemuKilled,
    GuestPanics,
    MigratedAway,
}

impl Fault {
    /// Nobody is left who could tell what became of a transfer.
    fn ends_the_daemon(self) -> bool {
        matches!(self, Self::DaemonKilled | Self::JournalLost | Self::JournalCut)
    }

    /// The VM does not come back by itself.
    fn ends_the_vm(self) -> bool {
        ENDS.contains(&self)
    }

    /// The next one.
    fn draw(dice: &mut fastrand::Rng) -> Self {
        match FAULTS.get(dice.usize(0..=FAULTS.len())) {
            Some(fault) => *fault,
            None => ENDS[dice.usize(0..ENDS.len())],
        }
    }
}

/// One of them comes as often as any other fault: a guest that is started again takes a tenth of a run.
const ENDS: [Fault; 3] = [Fault::QemuKilled, Fault::GuestPanics, Fault::MigratedAway];

/// One that is named more than once is more likely.
const FAULTS: [Fault; 23] = [
    Fault::None,
    Fault::None,
    Fault::None,
    Fault::None,
    Fault::None,
    Fault::DaemonKilled,
    Fault::DaemonKilled,
    Fault::JournalLost,
    Fault::JournalCut,
    Fault::AgentKilled,
    Fault::AgentStopped,
    Fault::AgentLies,
    Fault::GuestPaused,
    Fault::GuestReset,
    Fault::MigrationFails,
    Fault::SecondTransfer,
    Fault::ThreadMoved,
    Fault::Throttled,
    Fault::DiskFull,
    Fault::CpuOffline,
    Fault::MemoryLocked,
    Fault::MemoryPinned,
    Fault::CpuKept,
];

impl Game<'_> {
    /// A load perhaps, a transfer, a fault in the midst of it, and what undoes the fault.
    fn turn(&mut self) -> Result<()> {
        if self.dice.u32(0..4) == 0 {
            self.change_loads()?;
        }
        let argv = self.transfer()?;
        let argv: Vec<&str> = argv.iter().map(String::as_str).collect();
        let fault = Fault::draw(&mut self.dice);
        let vm = VMS[self.dice.usize(0..VMS.len())];
        let during = if fault == Fault::None { String::new() } else { format!(" while {fault:?} ({vm})") };
        let seconds = self.began.elapsed().as_secs();
        writeln!(std::io::stderr(), "chaos: {seconds} s: {}{during}", argv[1..argv.len() - 1].join(" "))?;
        let running = self.stage.lab.spawn(&argv)?;
        let pause = Duration::from_millis(self.dice.u64(0..1500));
        std::thread::sleep(pause);
        if let Some(heal) = self.inflict(fault, vm)? {
            *self.outcome.faults.entry(format!("{fault:?}")).or_default() += 1;
            heal(self.stage)?;
        }
        let output = running.wait(TRANSFER_BUDGET, &mut |_| {})?;
        self.note(&argv, fault, &output)?;
        self.recovered(fault, vm)
    }

    /// Something that can be asked for now, as a rule, though not all of it may be possible.
    fn transfer(&mut self) -> Result<Vec<String>> {
        let (from, to) = if self.dice.bool() { ("a", "b") } else { ("b", "a") };
        let mut argv: Vec<String> = match self.dice.u32(0..6) {
            0 => ["conuma", "recall", "--to", from].map(str::to_owned).to_vec(),
            1 => {
                let (node, mib) = (self.dice.u32(0..4), 192 + 64 * self.dice.u32(0..5));
                ["conuma", "set", from, "--memory", &format!("node{node}={mib}M")].map(str::to_owned).to_vec()
            }
            _ => self.lend(from, to)?,
        };
        argv.push("--json".into());
        Ok(argv)
    }

    /// Cores, memory or both, of what there is.
    fn lend(&mut self, from: &str, to: &str) -> Result<Vec<String>> {
        let holds = self.stage.show(from)?.summary.holding;
        let mut argv = ["conuma", "lend", "--from", from, "--to", to, "--below-guarantee"].map(str::to_owned).to_vec();
        // It has to keep one.
        let most = u32::try_from(holds.cpus.len())?.min(4);
        let nodes: Vec<u32> =
            (0..4).filter(|node| holds.memory.get(&NodeId(*node)).is_some_and(|has| *has > LEAST_MEMORY)).collect();
        let (cores, memory) = match (most > 1, !nodes.is_empty()) {
            (true, true) => [(true, false), (false, true), (true, true)][self.dice.usize(0..3)],
            (false, false) => return Ok(["conuma", "recall", "--to", from].map(str::to_owned).to_vec()),
            only => only,
        };
        if cores {
            argv.extend(["--cores".into(), self.dice.u32(1..most).to_string()]);
        }
        if memory {
            let (node, mib) = (nodes[self.dice.usize(0..nodes.len())], 64 * self.dice.u32(1..5));
            argv.extend(["--memory".into(), format!("node{node}={mib}M")]);
        }
        Ok(argv)
    }

    fn note(&mut self, argv: &[&str], fault: Fault, output: &Output) -> Result<()> {
        let became = match serde_json::from_str::<Transfer>(&output.out) {
            Ok(transfer) => {
                if argv.contains(&"recall") {
                    self.note_recall(&transfer)?;
                }
                format!("{:?}", transfer.state)
            }
            Err(_) if output.code == REFUSED => "Refused".into(),
            // It had ended before it was asked for.
            Err(_) if fault.ends_the_vm() && output.err.contains("there is no VM") => "Refused".into(),
            Err(_) if fault.ends_the_daemon() => "Unanswered".into(),
            Err(error) => {
                bail!("{argv:?}, {fault:?}: exit code {}, {error}: {}{}", output.code, output.err, output.out)
            }
        };
        writeln!(std::io::stderr(), "chaos:   {became} {}", output.err.lines().next().unwrap_or_default())?;
        *self.outcome.transfers.entry(became).or_default() += 1;
        Ok(())
    }

    /// Cores that are owed come back within their deadline, whatever happens to the guest that has them.
    fn note_recall(&mut self, recall: &Transfer) -> Result<()> {
        let took = recall.took_us / 1000;
        self.outcome.slowest_recall_ms = self.outcome.slowest_recall_ms.max(took);
        for leg in recall.legs.iter().filter(|leg| !leg.planned.what.cpus.is_empty()) {
            let took = leg.stages.iter().filter_map(|stage| stage.took_us).sum::<u64>() / 1000;
            ensure!(u128::from(took) <= RECALL_DEADLINE.as_millis(), "cores came back after {took} ms: {recall:#?}");
            self.outcome.slowest_cores_back_ms = self.outcome.slowest_cores_back_ms.max(took);
        }
        Ok(())
    }

    fn change_loads(&mut self) -> Result<()> {
        let vm = VMS[self.dice.usize(0..VMS.len())];
        if self.loaded {
            self.stop_loads()?;
        } else {
            let cpus: Vec<u32> = (0..self.dice.u32(1..3)).map(|_| self.dice.u32(0..8)).collect();
            // A CPU that it may not use now is refused to the load, too.
            let _refused = self.stage.start_load(vm, &cpus);
            self.loaded = true;
        }
        Ok(())
    }

    fn stop_loads(&mut self) -> Result<()> {
        let running = self.stage.lab.ok(&["conuma", "list", "--json"])?;
        let running: Vec<VmSummary> = serde_json::from_str(&running)?;
        for vm in running {
            self.stage.stop_any_load(vm.name.as_str())?;
        }
        self.loaded = false;
        Ok(())
    }

    /// Makes it happen, if it can now; gives what undoes it.
    fn inflict(&mut self, fault: Fault, vm: &'static str) -> Result<Option<Heal>> {
        let stage = self.stage;
        let lasts = Duration::from_millis(self.dice.u64(0..6000));
        let heal: Heal = match fault {
            Fault::None => return Ok(None),
            Fault::DaemonKilled => {
                stage.kill_daemon()?;
                Box::new(Stage::start_daemon)
            }
            Fault::JournalLost => {
                stage.kill_daemon()?;
                stage.lab.sh("rm -f /var/lib/conuma/journal.json")?;
                Box::new(Stage::start_daemon)
            }
            Fault::JournalCut => {
                stage.kill_daemon()?;
                stage.lab.sh("cd /var/lib/conuma; truncate -s $(($(wc -c < journal.json) / 2)) journal.json")?;
                Box::new(Stage::start_daemon)
            }
            Fault::MigrationFails => {
                stage.lab.sh("rm -f /run/destination")?;
                stage.migrate(vm, "echo $$ > /run/destination; exec sleep 100000")?;
                Box::new(move |stage| {
                    std::thread::sleep(lasts);
                    let kill = "while [ ! -s /run/destination ]; do sleep 0.1; done; kill -9 $(cat /run/destination)";
                    stage.lab.sh(kill).map(drop)
                })
            }
            Fault::SecondTransfer => {
                // Of the same VMs, and perhaps of the same cores.
                let argv = ["conuma", "lend", "--from", vm, "--to", if vm == "a" { "b" } else { "a" }, "--cores", "1"];
                let output = stage.lab.run(&argv)?;
                ensure!([0, 3, REFUSED].contains(&output.code), "{argv:?}: {output:?}");
                Box::new(|_| Ok(()))
            }
            Fault::AgentKilled => {
                stage.lab.guest(vm, "kill -9 $(pidof conuma-agent); true")?;
                Box::new(|_| Ok(()))
            }
            Fault::AgentStopped => {
                stage.lab.guest(vm, "kill -STOP $(pidof conuma-agent); true")?;
                Box::new(move |stage| {
                    std::thread::sleep(lasts);
                    stage.lab.guest(vm, "kill -CONT $(pidof conuma-agent); true").map(drop)
                })
            }
            Fault::AgentLies => {
                let lies = ["absurd", "claims", "flood", "malformed", "huge", "endless", "old", "mute", "escapes"];
                let lie = lies[self.dice.usize(0..lies.len())];
                stage.begin_to_lie(vm, lie)?;
                Box::new(move |stage| {
                    std::thread::sleep(lasts);
                    stage.end_lies(vm)
                })
            }
            Fault::GuestPaused => {
                stage.monitor(vm, "stop")?;
                Box::new(move |stage| {
                    std::thread::sleep(lasts);
                    stage.monitor(vm, "cont")
                })
            }
            Fault::GuestReset => {
                stage.monitor(vm, "system_reset")?;
                Box::new(|stage| {
                    stage.lab.until("the daemon to hear of the reset", Duration::from_secs(60), |lab| {
                        let heard = lab.sh("grep -c 'guest was reset' /run/conumad.log || true")?;
                        Ok(if heard.trim() == "0" { Look::NotYet(heard) } else { Look::Done(()) })
                    })?;
                    stage.forgive_reset()
                })
            }
            Fault::ThreadMoved => {
                let leaf = format!("/sys/fs/cgroup/conuma/{vm}");
                stage.lab.sh(&format!("cat {leaf}/vcpu3/cgroup.threads > {leaf}/emulator/cgroup.threads"))?;
                Box::new(|_| Ok(()))
            }
            Fault::Throttled => {
                stage.lab.sh(&format!("echo '5000 100000' > /sys/fs/cgroup/conuma/{vm}/vcpu2/cpu.max"))?;
                Box::new(|_| Ok(()))
            }
            Fault::DiskFull => {
                stage.fill_disk()?;
                Box::new(Stage::free_disk)
            }
            Fault::MemoryLocked | Fault::MemoryPinned => {
                let (how, mib) = if fault == Fault::MemoryLocked { ("locked", 96) } else { ("pinned", 48) };
                let kept = Keeper::begin(stage, vm, None, how, mib)?;
                Box::new(move |stage| {
                    std::thread::sleep(lasts);
                    kept.end(stage)
                })
            }
            Fault::CpuKept => {
                let mut rest = stage.guest_cpus(vm)?;
                let owned = rest.iter().last().context("a guest may use some CPU")?;
                rest.remove(owned);
                // A partition is valid only if others are left, and no sibling names its CPUs: the agent may come between.
                let script = format!(
                    "cd /sys/fs/cgroup; mkdir owner; echo {rest} > conuma.rest/cpuset.cpus; echo {owned} > owner/cpuset.cpus; \
                     echo root > owner/cpuset.cpus.partition; cat owner/cpuset.cpus.partition"
                );
                if rest.is_empty() || stage.lab.guest(vm, &script)?.trim() != "root" {
                    stage.lab.guest(vm, "rmdir /sys/fs/cgroup/owner 2>/dev/null; true")?;
                    return Ok(None);
                }
                Box::new(move |stage| {
                    std::thread::sleep(lasts);
                    stage.lab.guest(vm, "rmdir /sys/fs/cgroup/owner").map(drop)
                })
            }
            Fault::QemuKilled => {
                let pid = stage.show(vm)?.process.context("it runs")?.pid;
                stage.lab.sh(&format!("kill -9 {pid}"))?;
                Box::new(|_| Ok(()))
            }
            Fault::GuestPanics => {
                stage.panic(vm)?;
                Box::new(move |stage| {
                    std::thread::sleep(lasts);
                    stage.lab.ok(&["conuma", "stop", vm, "--force"]).map(drop)
                })
            }
            Fault::MigratedAway => {
                stage.migrate(vm, "cat > /dev/null")?;
                Box::new(move |stage| {
                    stage.until_state(vm, VmState::Migrated)?;
                    stage.lab.ok(&["conuma", "stop", vm]).map(drop)
                })
            }
            Fault::CpuOffline => {
                stage.lab.sh("echo 0 > /sys/devices/system/cpu/cpu7/online")?;
                Box::new(move |stage| {
                    std::thread::sleep(lasts);
                    stage.lab.sh("echo 1 > /sys/devices/system/cpu/cpu7/online").map(drop)
                })
            }
        };
        Ok(Some(heal))
    }

    /// After a fault everything follows the ledger again, and the ledger follows reality.
    fn recovered(&mut self, fault: Fault, vm: &str) -> Result<()> {
        if fault == Fault::None {
            return Ok(());
        }
        if fault.ends_the_vm() {
            self.start_again(vm).with_context(|| format!("{vm} after {fault:?}"))?;
        }
        for vm in VMS {
            self.stage.until_agent(vm).with_context(|| format!("after {fault:?}"))?;
        }
        all_is_well(self.stage).with_context(|| format!("after {fault:?}"))
    }

    /// Nothing that it held is lost.
    fn start_again(&mut self, vm: &str) -> Result<()> {
        self.stage.until_gone(vm)?;
        all_is_well(self.stage)?;
        // A guest boots on CPU 0, which may be another's: under load that takes minutes here.
        self.stop_loads()?;
        self.stage.start_again(vm, &GUESTS)
    }

    /// At last everything that is owed comes back, and all is as it was.
    fn settle(&mut self) -> Result<()> {
        for vm in VMS {
            self.stage.stop_any_load(vm)?;
            ensure!(self.stage.until_agent(vm)?.summary.agent == AgentState::Connected, "{vm} has no agent");
        }
        for vm in VMS {
            let (code, back) = self.stage.transfer(&["conuma", "recall", "--to", vm])?;
            ensure!(code == 0, "{back:#?}");
        }
        for vm in VMS {
            let held: CpuSet = self.stage.until_agent(vm)?.summary.holding.cpus;
            // Where a partition was left behind its agent looks again every five seconds.
            self.stage.lab.until(&format!("{vm} to use {held}"), Duration::from_secs(60), |_| {
                let uses = self.stage.guest_cpus(vm)?;
                Ok(if uses == held { Look::Done(()) } else { Look::NotYet(format!("{uses}")) })
            })?;
        }
        all_is_well(self.stage)
    }
}
