//! The story, told live: one host, two guests that both own it, and what moves between them.

use std::fmt::Write as _;
use std::io::Write as _;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use conuma_api::{Transfer, VmDetail};
use conuma_topology::Bytes;

use crate::host::Kit;
use crate::observe::Findings;
use crate::shell::print;
use crate::stage::Stage;
use crate::trials::{GUESTS, TOPOLOGY};
use crate::wire::Say;

/// The node whose memory moves in the story.
const NODE: u32 = 1;

/// Tells it; an error if anything came out other than it should.
pub fn run(kit: &Kit) -> Result<()> {
    let mut tale = Tale { begun: Instant::now() };
    tale.title("A virtual NUMA host boots: four nodes, eight cores, KVM inside")?;
    let stage = Stage::open(kit, "demo", TOPOLOGY)?;
    let told = tell(&mut tale, &stage);
    if told.is_err() {
        stage.lab.collect_logs();
        tale.line(&format!("logs: {}", stage.lab.logs.display()))?;
    }
    told
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
    stage.start_load("a", &[4, 6])?;
    let before = View::take(stage)?;
    let witness = stage.witness(&["a", "b"])?;

    tale.title("a lends b four cores and 256 MiB of node 1")?;
    let argv = ["conuma", "lend", "--from", "a", "--to", "b", "--cpus", "4-7", "--memory", "node1=256M"];
    tale.command(stage, &[&argv[..], &["--preview"]].concat())?;
    let (lend, lend_ms) = tale.transfer(stage, &argv)?;
    let during = View::take(stage)?;
    tale.command(stage, &["conuma", "show"])?;

    tale.title("And takes them back")?;
    let (recall, recall_ms) = tale.transfer(stage, &["conuma", "recall", "--to", "a"])?;
    let after = View::take(stage)?;
    let findings = witness.findings()?;
    let (home, elsewhere) = stage.placed_pages()?;

    tale.title("What happened")?;
    tale.line(&views([("before", &before), ("lent", &during), ("after", &after)]))?;
    tale.line(&stages([("lend", &lend, lend_ms), ("recall", &recall, recall_ms)]))?;
    tale.line(&witnessed(&findings, home, elsewhere))?;
    ensure!(before.guests == after.guests, "a guest has not got back what it had");
    ensure!(during.guests != before.guests, "nothing moved");
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

/// What guests and host say at one moment.
struct View {
    guests: Vec<(String, Bytes)>,
    hosts: Vec<VmDetail>,
}

impl View {
    fn take(stage: &Stage) -> Result<Self> {
        let mut view = Self { guests: Vec::new(), hosts: Vec::new() };
        for guest in &GUESTS {
            view.guests.push((stage.guest_cpus(guest.name)?.to_string(), stage.guest_memory(guest.name, NODE)?));
            view.hosts.push(stage.show(guest.name)?);
        }
        Ok(view)
    }
}

fn views(views: [(&str, &View); 3]) -> String {
    let mut text = format!(
        "{:<8}{:<6}{:<22}{:<26}{:<22}node {NODE}, host's count\n",
        "",
        "guest",
        "CPUs, guest's word",
        "CPUs, open gates (host)",
        format!("node {NODE}, guest's word")
    );
    for (when, view) in views {
        for ((guest, (cpus, memory)), host) in GUESTS.iter().zip(&view.guests).zip(&view.hosts) {
            let open: conuma_topology::CpuSet =
                host.vcpus.iter().filter(|v| v.gate == conuma_api::GateState::Open).map(|v| v.cpu).collect();
            let counted = host.memory.iter().find(|memory| memory.node.0 == NODE).map(|memory| memory.held);
            let counted = counted.unwrap_or_default().to_string();
            let _ = writeln!(
                text,
                "{when:<8}{:<6}{cpus:<22}{:<26}{:<22}{counted}",
                guest.name,
                open.to_string(),
                memory.to_string()
            );
        }
    }
    text
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
            "  {vm}: ran {:.1} s on cores that it held, {share:.2} % of its run time behind closed gates",
            run.held_ns as f64 / 1e9
        );
    }
    let _ = write!(text, "memory of the guests: {home} pages on the node they are bound to, remote pages {elsewhere}");
    text
}
