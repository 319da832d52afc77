//! The story, told live: one host, two guests that both own it, and what moves between them.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::Write as _;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use conuma_api::{GateState, Transfer, VmDetail, VmMemory};
use conuma_topology::{Bytes, CpuId, CpuSet};

use crate::host::Kit;
use crate::observe::Findings;
use crate::shell::print;
use crate::stage::{GuestSpec, Stage};
use crate::trials::{GUESTS, TOPOLOGY};
use crate::wire::Say;

/// The node whose memory moves in the story.
const NODE: u32 = 1;
/// The guest with the load.
const BUSY: &str = "a";
/// So long it must have been busy before that is compared, and so often it is looked for.
const WORTH_COMPARING: Duration = Duration::from_secs(1);
const LOOKS: usize = 30;

/// Tells it; an error if anything came out other than it should.
pub fn run(kit: &Kit) -> Result<()> {
    let mut tale = Tale { begun: Instant::now() };
    tale.title("A virtual NUMA host boots: four nodes, eight cores, KVM inside")?;
    Stage::play(kit, "demo", TOPOLOGY, &[], |stage| tell(&mut tale, stage))
}

fn tell(tale: &mut Tale, stage: &Stage) -> Result<()> {
    tale.command(stage, &["conuma", "topology"])?;
    tale.title("Two guests start. Each is a replica of the whole host; each core is held by one of them")?;
    stage.start_guests(&GUESTS)?;
    tale.command(stage, &["conuma", "show"])?;
    for guest in &GUESTS {
        let nodes = stage.lab.guest(guest.name, "cd /sys/devices/system/node; for n in node[0-9]*; do echo \"  $n: CPUs $(cat $n/cpulist), distances $(cat $n/distance)\"; done")?;
        tale.line(&format!("{} itself says:\n{}", guest.name, nodes.trim_end()))?;
    }

    tale.title("Guest a gets busy, on CPUs that it is going to lend")?;
    stage.start_load(BUSY, &[4, 6])?;
    let before = View::take(stage)?;
    let witness = stage.witness(&["a", "b"])?;

    tale.title("a lends b four cores and 256 MiB of node 1")?;
    let argv = ["conuma", "lend", "--from", "a", "--to", "b", "--cpus", "4-7", "--memory", "node1=256M"];
    tale.command(stage, &[&argv[..], &["--preview"]].concat())?;
    let (lend, lend_ms) = tale.transfer(stage, &argv)?;
    let during = View::take(stage)?;
    tale.command(stage, &["conuma", "show"])?;
    let still = View::once_busy_since(&during, stage)?;

    tale.title("And takes them back")?;
    let (recall, recall_ms) = tale.transfer(stage, &["conuma", "recall", "--to", "a"])?;
    let after = View::take(stage)?;
    let findings = witness.findings()?;
    let (home, elsewhere) = stage.placed_pages()?;

    tale.title("What happened")?;
    tale.line(&views([("before", &before), ("lent", &during), ("after", &after)]))?;
    let ran = Ran::between(&during, &still);
    tale.line(&format!("while it was lent:\n{}", ran.iter().map(Ran::tell).collect::<String>()))?;
    tale.line(&stages([("lend", &lend, lend_ms), ("recall", &recall, recall_ms)]))?;
    tale.line(&witnessed(&findings, home, elsewhere))?;
    for view in [&before, &during, &still, &after] {
        agree(&before, view)?;
    }
    for ran in &ran {
        ran.agree(ran.name == BUSY)?;
    }
    for ((before, during), after) in before.0.iter().zip(&during.0).zip(&after.0) {
        let of = |view: &GuestView| (view.cpus.clone(), view.memory);
        ensure!(of(after) == of(before), "{} has not what it had before", before.name);
        ensure!(during.cpus != before.cpus && during.memory != before.memory, "nothing moved");
    }
    ensure!(findings.violation_count == 0, "exclusivity was violated: {:#?}", findings.violations);
    ensure!(elsewhere == 0, "{elsewhere} pages lie on another node than they are bound to");
    let total = tale.begun.elapsed().as_secs();
    tale.title(&format!("Done in {total} s. The same daemon and commands run on a real NUMA host: see docs/install.md"))
}

/// Prints the story as it unfolds.
struct Tale {
    begun: Instant,
}

impl Tale {
    fn title(&mut self, text: &str) -> Result<()> {
        let seconds = self.begun.elapsed().as_secs();
        self.line(&format!("\n[{seconds:>3} s] {text}"))
    }

    fn line(&mut self, text: &str) -> Result<()> {
        let mut out = std::io::stdout().lock();
        writeln!(out, "{text}")?;
        Ok(out.flush()?)
    }

    /// Runs a command in the host and shows what it says.
    fn command(&mut self, stage: &Stage, argv: &[&str]) -> Result<()> {
        self.line(&format!("host# {}", argv.join(" ")))?;
        let output = stage.lab.live(argv, &mut print)?;
        ensure!(output.code == 0, "exit code {}", output.code);
        Ok(())
    }

    /// Runs a command that moves something, shows its progress, and gives what became of it and the command's own
    /// milliseconds.
    fn transfer(&mut self, stage: &Stage, argv: &[&str]) -> Result<(Transfer, u64)> {
        self.line(&format!("host# {}", argv.join(" ")))?;
        let argv = [argv, &["--json"]].concat();
        let began = Instant::now();
        let mut progress = |say: &Say| {
            if matches!(say, Say::Err { .. }) {
                print(say);
            }
        };
        let output = stage.lab.live(&argv, &mut progress)?;
        let took = began.elapsed();
        ensure!(output.code == 0, "exit code {}: {}", output.code, output.out);
        let transfer = serde_json::from_str(&output.out).with_context(|| format!("{argv:?} printed {}", output.out))?;
        Ok((transfer, took.as_millis() as u64))
    }
}

/// What guests and host say at one moment, by guest.
struct View(Vec<GuestView>);

struct GuestView {
    name: &'static str,
    /// CPUs that its tasks may use, by the guest's own word.
    cpus: CpuSet,
    /// `MemTotal` of the node, by the guest's own word.
    memory: Bytes,
    /// How long each CPU was busy, by the guest's `/proc/stat`.
    busy: BTreeMap<CpuId, Duration>,
    /// What the host sees: gates, run times of vCPU threads, what QEMU plugged, pages by `numa_maps`.
    host: VmDetail,
}

impl View {
    fn take(stage: &Stage) -> Result<Self> {
        let look = |guest: &GuestSpec| {
            Ok(GuestView {
                name: guest.name,
                cpus: stage.guest_cpus(guest.name)?,
                memory: stage.guest_memory(guest.name, NODE)?,
                busy: stage.guest_busy(guest.name)?,
                host: stage.show(guest.name)?,
            })
        };
        Ok(Self(GUESTS.iter().map(look).collect::<Result<_>>()?))
    }

    /// One that is worth comparing: its load has shown in the guest's own figures.
    fn once_busy_since(before: &Self, stage: &Stage) -> Result<Self> {
        for _ in 0..LOOKS {
            let view = Self::take(stage)?;
            if Ran::between(before, &view).iter().any(|ran| ran.name == BUSY && ran.guest[0] >= WORTH_COMPARING) {
                return Ok(view);
            }
        }
        anyhow::bail!("{BUSY} has a load, but was not busy by its own word")
    }
}

impl GuestView {
    fn open_gates(&self) -> CpuSet {
        self.host.vcpus.iter().filter(|vcpu| vcpu.gate == GateState::Open).map(|vcpu| vcpu.cpu).collect()
    }

    fn on_node<T: Default>(&self, pick: impl Fn(&VmMemory) -> T) -> T {
        self.host.memory.iter().find(|memory| memory.node.0 == NODE).map(pick).unwrap_or_default()
    }

    /// Busy time by its own word on CPUs that it holds, and on others.
    fn was_busy(&self) -> [Duration; 2] {
        [true, false].map(|held| {
            let there = self.busy.iter().filter(|(cpu, _)| self.cpus.contains(**cpu) == held);
            there.map(|(_, time)| *time).sum()
        })
    }

    /// Run time of the vCPU threads on CPUs that it holds, and on others.
    fn ran(&self) -> [Duration; 2] {
        [true, false].map(|held| {
            let vcpus = self.host.vcpus.iter().filter(|vcpu| vcpu.held == held);
            vcpus.filter_map(|vcpu| vcpu.run_time_us).map(Duration::from_micros).sum()
        })
    }
}

/// Guest and host must say the same: which CPUs are used, and how much memory came or went since `before`.
fn agree(before: &View, now: &View) -> Result<()> {
    for (before, now) in before.0.iter().zip(&now.0) {
        let (name, open) = (now.name, now.open_gates());
        ensure!(now.cpus == open, "tasks in {name} may use {}, and the host lets it run on {open}", now.cpus);
        let plugged = |view: &GuestView| view.on_node(|memory| memory.plugged);
        let (guest, host) = (now.memory + plugged(before), before.memory + plugged(now));
        ensure!(guest == host, "{name} has {} of node {NODE} and QEMU has plugged {}", now.memory, plugged(now));
        let (resident, held) = (now.on_node(|memory| memory.resident.unwrap_or_default()), now.on_node(|m| m.held));
        ensure!(resident <= held + Bytes::mib(64), "{name} has {resident} of pages on node {NODE} and holds {held}");
    }
    Ok(())
}

fn views(views: [(&str, &View); 3]) -> String {
    let mut text = format!(
        "{:<8}{:<6}{:<22}{:<26}{:<22}{:<16}pages there (host)\n",
        "",
        "guest",
        "CPUs, guest's word",
        "CPUs, open gates (host)",
        format!("node {NODE}, guest's word"),
        "plugged (host)"
    );
    for (when, view) in views {
        for guest in &view.0 {
            let _ = writeln!(
                text,
                "{when:<8}{:<6}{:<22}{:<26}{:<22}{:<16}{}",
                guest.name,
                guest.cpus.to_string(),
                guest.open_gates().to_string(),
                guest.memory.to_string(),
                guest.on_node(|memory| memory.plugged).to_string(),
                guest.on_node(|memory| memory.resident.unwrap_or_default()),
            );
        }
    }
    text
}

/// How long a guest ran between two moments with the same holding, by both words.
struct Ran {
    name: &'static str,
    cpus: CpuSet,
    /// By its `/proc/stat`: on CPUs that it holds, and on others. An emulated guest loses most of its clock's ticks, and with
    /// them what they would have counted.
    guest: [Duration; 2],
    /// Run time of its vCPU threads.
    host: [Duration; 2],
}

impl Ran {
    fn between(from: &View, to: &View) -> Vec<Self> {
        let each = from.0.iter().zip(&to.0).map(|(from, to)| {
            let passed = |of: fn(&GuestView) -> [Duration; 2]| {
                let (from, to) = (of(from), of(to));
                [0, 1].map(|which| to[which].saturating_sub(from[which]))
            };
            Self {
                name: from.name,
                cpus: from.cpus.clone(),
                guest: passed(GuestView::was_busy),
                host: passed(GuestView::ran),
            }
        });
        each.collect()
    }

    fn tell(&self) -> String {
        let [guest, host] = [self.guest, self.host].map(|[held, other]| {
            format!("{:.2} s on CPUs {}, {:.2} s on others", held.as_secs_f32(), self.cpus, other.as_secs_f32())
        });
        format!("  {}: busy by its /proc/stat {guest}; its vCPU threads ran, by the host, {host}\n", self.name)
    }

    /// A guest cannot have been busy for longer than its threads ran; and by both words one with a load was busy where it holds
    /// CPUs, and not elsewhere.
    fn agree(&self, loaded: bool) -> Result<()> {
        // Both were read one after the other.
        let slack = Duration::from_secs(2);
        let [guest, host] = [self.guest, self.host].map(|[held, other]| held + other);
        ensure!(guest <= host + slack, "{}: busy for {guest:?}, but its threads ran for {host:?}", self.name);
        for [held, other] in [self.guest, self.host].into_iter().filter(|_| loaded) {
            ensure!(held > other, "{}: ran for {held:?} on CPUs {}, and for {other:?} on others", self.name, self.cpus);
        }
        Ok(())
    }
}

fn stages(transfers: [(&str, &Transfer, u64); 2]) -> String {
    let mut text = String::new();
    for (name, transfer, command_ms) in transfers {
        let took = Duration::from_micros(transfer.took_us).as_millis();
        let _ = writeln!(
            text,
            "{name}: {took} ms in the daemon, {command_ms} ms with the command (emulated: compare, do not quote)"
        );
        for leg in &transfer.legs {
            let stages: Vec<String> = leg
                .stages
                .iter()
                .filter_map(|stage| Some(format!("{} {} ms", stage.stage, stage.took_us? / 1000)))
                .collect();
            let _ =
                writeln!(text, "  {} -> {}: {} ({})", leg.planned.from, leg.planned.to, leg.arrived, stages.join(", "));
        }
    }
    text
}

fn witnessed(findings: &Findings, home: u64, elsewhere: u64) -> String {
    let mut text = format!(
        "independent witness: {} samples in {} s, exclusivity violations {}\n",
        findings.samples,
        findings.watched_ms / 1000,
        findings.violation_count
    );
    for (vm, run) in &findings.run_time {
        let share = 100.0 * run.stray_ns as f64 / (run.stray_ns + run.held_ns).max(1) as f64;
        let _ = writeln!(
            text,
            "  {vm}: ran {:.1} s on cores that it held; {share:.2} % of its run time behind closed gates, in what their holders left",
            run.held_ns as f64 / 1e9
        );
    }
    let _ = write!(text, "memory of the guests: {home} pages on the node they are bound to, remote pages {elsewhere}");
    text
}
