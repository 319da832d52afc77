//! Guests that lie, die, are reset, keep what they should give, or have no agent.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use conuma_api::{AgentState, TransferState};
use conuma_topology::Bytes;

use super::daemon::all_is_well;
use super::grid::{GUESTS, as_at_first, cpus, share_of_cpu_6};
use super::trespassers::WITHOUT_SLOTS;
use super::{Trial, Verdict};
use crate::host::{Look, Running};
use crate::stage::{GuestSpec, Stage};

pub(super) const TRIALS: [Trial<Stage>; 7] = [
    Trial { name: "two_transfers_at_once_give_no_core_twice", body: two_at_once },
    Trial { name: "an_agent_that_lies_gains_nothing_and_harms_nobody", body: liars },
    Trial { name: "an_agent_that_claims_to_have_left_loses_the_core_by_the_gate", body: claims },
    Trial { name: "an_agent_that_is_killed_in_a_transfer_is_told_again", body: killed_agent },
    Trial { name: "a_paused_guest_loses_cores_and_learns_it_later", body: paused },
    Trial { name: "a_guest_that_is_reset_in_a_transfer_gets_its_holding_again", body: reset },
    Trial { name: "a_qemu_that_dies_in_a_transfer_leaves_all_to_the_pool", body: killed_qemu },
];

/// Deadlines of memory have to pass in it.
pub(super) const LONG: [Trial<Stage>; 2] = [
    Trial { name: "an_agent_that_lies_in_any_other_way_gains_nothing_either", body: other_liars },
    Trial { name: "a_guest_that_panics_in_a_transfer_leaves_all_when_it_is_stopped", body: panics },
];

/// `a` has no agent; `b` has one.
pub(super) const ALONE: [GuestSpec; 2] = [GuestSpec { agentless: true, ..GUESTS[0] }, WITHOUT_SLOTS];

pub(super) const UNAIDED: [Trial<Stage>; 1] =
    [Trial { name: "a_guest_without_an_agent_is_held_by_the_host_alone", body: without_agent }];

const LEND_CORE: &[&str] = &["conuma", "lend", "--from", "a", "--to", "b", "--cpus", "6"];

/// Of what moves in the background while something befalls a guest.
const LEND_BOTH: &[&str] =
    &["conuma", "lend", "--from", "a", "--to", "b", "--cpus", "6-7", "--memory", "node1=256M", "--json"];

/// How `conuma` ends when something was refused.
pub(crate) const REFUSED: i32 = 4;

/// For what a guest does in its own time: booting, plugging memory.
pub(super) const BUDGET: Duration = Duration::from_secs(300);

/// From now on a liar answers in the place of the agent of `a`, and the daemon has heard it.
fn begin_to_lie(stage: &Stage, about: &str) -> Result<()> {
    stage.begin_to_lie("a", about)?;
    stage.lab.until(&format!("the daemon to hear lies ({about})"), Duration::from_secs(120), |_| {
        let agent = stage.show("a")?.agent;
        let error = agent.last_error.clone().unwrap_or_default();
        let heard = match about {
            // Their greeting is as good as any; what comes then is not.
            "malformed" => error.contains("not a message"),
            "huge" => error.contains("too big"),
            "old" => error.contains("version 0"),
            _ => agent
                .guest
                .as_ref()
                .is_some_and(|guest| guest.kernel.contains("lies") || guest.kernel.contains("forged")),
        };
        Ok(if heard { Look::Done(()) } else { Look::NotYet(format!("{agent:?}")) })
    })
}

/// Whatever a trial left behind is undone: `a` runs, idle and honest, and has all that it had at first.
pub(super) fn ready(stage: &Stage) -> Result<()> {
    stage.monitor("a", "cont")?;
    stage.stop_any_load("a")?;
    stage.end_lies("a")?;
    stage.lab.guest("a", "rm -f /run/no-agent /run/kept-*; umount /run/full 2>/dev/null; true")?;
    stage.until_agent("a")?;
    as_at_first(stage)?;
    // Where a liar has just gone the daemon may not have noticed yet, and the agent not have heard what its guest holds.
    stage.lab.until("a to use what it holds", Duration::from_secs(120), |_| {
        let uses = stage.guest_cpus("a")?;
        Ok(if uses == cpus("2-7") { Look::Done(()) } else { Look::NotYet(format!("{uses}")) })
    })
}

/// Begins to move cores and memory of `a` to `b`, and gives the command that waits for the end once the daemon has accepted it.
pub(super) fn begin_to_lend(stage: &Stage) -> Result<Running<'_>> {
    let accepted =
        || -> Result<u64> { Ok(stage.lab.sh("grep -c 'transfer accepted' /run/conumad.log || true")?.trim().parse()?) };
    let before = accepted()?;
    let lend = stage.lab.spawn(LEND_BOTH)?;
    stage.lab.until("the transfer to begin", Duration::from_secs(60), |_| {
        Ok(if accepted()? > before { Look::Done(()) } else { Look::NotYet("none was accepted".into()) })
    })?;
    Ok(lend)
}

/// Waits until the kernel of `a` has so much memory on node 1.
pub(super) fn until_memory(stage: &Stage, wanted: Bytes) -> Result<()> {
    stage.lab.until("the memory of a", BUDGET, |_| {
        let now = stage.guest_memory("a", 1)?;
        Ok(if now == wanted { Look::Done(()) } else { Look::NotYet(format!("{now} of {wanted}")) })
    })
}

/// Resident memory of the daemon in KiB.
fn daemons_memory(stage: &Stage) -> Result<u64> {
    let text = stage.lab.sh("grep VmRSS /proc/$(cat /run/conumad.pid)/status | tr -dc 0-9")?;
    text.trim().parse().context("a number of KiB")
}

/// What a liar may cost at most, in CPUs: emulated, as all is here, a daemon at rest takes a twentieth.
const MOST_OF_A_CPU: f64 = 0.5;

/// How much of a CPU the daemon takes now.
fn daemons_share(stage: &Stage) -> Result<f64> {
    let look = "cut -d' ' -f1 /proc/uptime; cat /proc/$(cat /run/conumad.pid)/task/*/schedstat | awk '{sum += $1} END {print sum}'";
    let at = || -> Result<[f64; 2]> {
        let text = stage.lab.sh(look)?;
        let numbers: Vec<f64> = text.split_whitespace().filter_map(|word| word.parse().ok()).collect();
        numbers.try_into().ok().with_context(|| format!("two numbers expected: {text}"))
    };
    let [begun, before] = at()?;
    let [now, after] = stage.lab.until("five seconds", Duration::from_secs(120), |_| {
        let seen = at()?;
        Ok(if seen[0] - begun >= 5.0 { Look::Done(seen) } else { Look::NotYet(format!("{seen:?}")) })
    })?;
    Ok((after - before) / 1e9 / (now - begun))
}

/// Whatever is said in the place of the agent: the daemon lives, stays small and serves the other guest; nothing that `a`
/// does not hold becomes its own; and `show` tells of it. When the agent is back all is as before.
fn lies(stage: &Stage, lies: &[&str]) -> Verdict {
    ready(stage)?;
    let witness = stage.witness(&["a", "b"])?;
    let (small, pid) = (daemons_memory(stage)?, stage.lab.sh("cat /run/conumad.pid")?);
    for about in lies.iter().copied() {
        begin_to_lie(stage, about)?;
        let share = daemons_share(stage)?;
        ensure!(share < MOST_OF_A_CPU, "{about}: the daemon runs {share:.2} of the time");
        // The other guest is served meanwhile, and the liar gets and loses what the host gives and takes.
        let (code, lent) = stage.transfer(LEND_CORE)?;
        ensure!(code == 0 && lent.state == TransferState::Complete, "{about}: {lent:#?}");
        ensure!(stage.guest_cpus("b")? == cpus("0-1,6"), "{about}: b may use {}", stage.guest_cpus("b")?);
        let now = daemons_memory(stage)?;
        ensure!(now < small + 32 * 1024, "{about}: the daemon grew from {small} to {now} KiB");
        ready(stage).with_context(|| format!("after {about}"))?;
        all_is_well(stage)?;
    }
    ensure!(stage.lab.sh("cat /run/conumad.pid; kill -0 $(cat /run/conumad.pid)")? == pid, "the daemon died");
    let log = stage.lab.sh("wc -c < /run/conumad.log; grep -c \"$(printf '\\033')\" /run/conumad.log || true; grep -c '^2026 ERROR forged' /run/conumad.log || true")?;
    let numbers: Vec<u64> = log.split_whitespace().filter_map(|word| word.parse().ok()).collect();
    ensure!(
        numbers.len() == 3 && numbers[0] < 200_000 && numbers[1..] == [0, 0],
        "the log: bytes, escapes, forged lines: {log}"
    );
    witness.nothing_wrong().map(drop)
}

fn liars(stage: &Stage) -> Verdict {
    lies(stage, &["flood", "malformed", "old", "escapes"])
}

fn other_liars(stage: &Stage) -> Verdict {
    lies(stage, &["absurd", "huge", "endless"])
}

/// It says that it left a CPU on which its guest is busy: the host sees it run, and closes the gate firmly.
fn claims(stage: &Stage) -> Verdict {
    ready(stage)?;
    let witness = stage.witness(&["a", "b"])?;
    stage.start_load("a", &[6])?;
    begin_to_lie(stage, "claims")?;
    stage.lab.until("the host to believe it", Duration::from_secs(60), |_| {
        let agent = stage.show("a")?.summary.agent;
        Ok(if agent == AgentState::Connected { Look::Done(()) } else { Look::NotYet(format!("{agent:?}")) })
    })?;
    let lent = stage.moved(LEND_CORE)?;
    let remarks: Vec<_> = lent.legs.iter().flat_map(|leg| &leg.remarks).map(|remark| remark.code.as_str()).collect();
    ensure!(remarks.contains(&"donor-busy"), "nobody saw that it runs on: {remarks:?}");
    stage.stop_load("a")?;
    ready(stage)?;
    witness.nothing_wrong().map(drop)
}

fn killed_agent(stage: &Stage) -> Verdict {
    ready(stage)?;
    stage.lab.guest("a", "touch /run/no-agent; kill -9 $(pidof conuma-agent)")?;
    let lent = stage.moved(LEND_CORE)?;
    ensure!(lent.legs.iter().any(|leg| !leg.remarks.is_empty()), "no word of the agent: {lent:#?}");
    // Memory is asked for in vain; after that it gets none, either.
    let (code, asked) = stage.transfer(&["conuma", "lend", "--from", "a", "--to", "b", "--memory", "node1=64M"])?;
    ensure!(code == REFUSED && asked.state == TransferState::Nothing, "exit code {code}: {asked:#?}");
    let refused = stage.lab.run(&["conuma", "set", "a", "--memory", "node1=512M"])?;
    ensure!(refused.code == REFUSED && refused.err.contains("does not answer"), "{refused:?}");
    let detail = stage.show("a")?;
    ensure!(detail.summary.agent == AgentState::Lost && detail.agent.last_error.is_some(), "{:?}", detail.agent);
    stage.lab.guest("a", "rm /run/no-agent")?;
    stage.until_agent("a")?;
    ensure!(stage.guest_cpus("a")? == cpus("2-5,7"), "a may use {}", stage.guest_cpus("a")?);
    for node1 in ["node1=512M", "node1=448M"] {
        stage.moved(&["conuma", "set", "a", "--memory", node1])?;
    }
    as_at_first(stage)
}

/// A guest that does not run answers nothing: its core goes by the gate, its memory stays, and it is told when it runs again.
fn paused(stage: &Stage) -> Verdict {
    ready(stage)?;
    stage.monitor("a", "stop")?;
    stage.moved(LEND_CORE)?;
    all_is_well(stage)?;
    stage.monitor("a", "cont")?;
    stage.until_agent("a")?;
    ensure!(stage.guest_cpus("a")? == cpus("2-5,7"), "a may use {}", stage.guest_cpus("a")?);
    as_at_first(stage)
}

/// The same core is lent twice at the same time: one comes first, the other is refused, as it is gone.
fn two_at_once(stage: &Stage) -> Verdict {
    ready(stage)?;
    let witness = stage.witness(&["a", "b"])?;
    let lend = ["conuma", "lend", "--from", "a", "--to", "b", "--cpus", "6", "--json"];
    let asked = || -> Result<u32> {
        let of_whom = "'asked uid=0 pid=[1-9][0-9]* method=POST path=\"/v1/transfers\"'";
        Ok(stage.lab.sh(&format!("grep -c {of_whom} /run/conumad.log; true"))?.trim().parse()?)
    };
    let before = asked()?;
    let both = [stage.lab.spawn(&lend)?, stage.lab.spawn(&lend)?];
    let ends = both.map(|command| command.wait(BUDGET, &mut |_| {}));
    let [one, other] = ends;
    let mut codes = [one?.code, other?.code];
    codes.sort_unstable();
    ensure!(codes == [0, REFUSED], "exit codes {codes:?}");
    // Who asked for each is in the log, by the kernel's word.
    let asked = asked()? - before;
    ensure!(asked == 2, "{asked} of both requests are in the log with who asked");
    ensure!(stage.guest_cpus("b")? == cpus("0-1,6"), "b may use {}", stage.guest_cpus("b")?);
    all_is_well(stage)?;
    as_at_first(stage)?;
    witness.nothing_wrong().map(drop)
}

/// Boots anew while it gives memory and cores: what it does not hold is gated from its first instruction, and it gets its
/// memory again step by step.
fn reset(stage: &Stage) -> Verdict {
    ready(stage)?;
    let witness = stage.witness(&["a", "b"])?;
    let before = stage.guest_memory("a", 1)?;
    let lend = begin_to_lend(stage)?;
    stage.monitor("a", "system_reset")?;
    lend.wait(BUDGET, &mut |_| {})?;
    stage.until_agent("a")?;
    as_at_first(stage)?;
    until_memory(stage, before)?;
    all_is_well(stage)?;
    witness.nothing_wrong()?;
    // What follows is not to take this reset for a fault of the emulator.
    stage.forgive_reset()
}

/// Its kernel gives up while it gives memory and cores: the cores go by the gate, the rest when it is stopped.
fn panics(stage: &Stage) -> Verdict {
    ready(stage)?;
    let witness = stage.witness(&["a", "b"])?;
    let lend = begin_to_lend(stage)?;
    stage.panic("a")?;
    let output = lend.wait(BUDGET, &mut |_| {})?;
    stage.lab.until("the panic", BUDGET, |lab| {
        let text = lab.sh("grep -c 'Kernel panic' /run/a.console || true")?;
        Ok(if text.trim() == "0" { Look::NotYet(text) } else { Look::Done(()) })
    })?;
    ensure!(stage.guest_cpus("b")? == cpus("0-1,6-7"), "its cores did not go: {}{}", output.err, output.out);
    all_is_well(stage)?;
    witness.nothing_wrong()?;
    stage.lab.ok(&["conuma", "stop", "a", "--force"])?;
    all_is_well(stage)?;
    stage.start_again("a", &GUESTS)
}

fn killed_qemu(stage: &Stage) -> Verdict {
    ready(stage)?;
    let pid = stage.show("b")?.process.context("b runs")?.pid;
    let lend = begin_to_lend(stage)?;
    stage.lab.sh(&format!("kill -9 {pid}"))?;
    lend.wait(BUDGET, &mut |_| {})?;
    stage.until_gone("b")?;
    stage.until_agent("a")?;
    all_is_well(stage)?;
    let a = stage.show("a")?.summary.holding;
    ensure!(cpus("2-5").is_subset(&a.cpus), "a has lost more than it lent: {a:?}");
    let left = stage.lab.sh("ls -d /sys/fs/cgroup/conuma/b 2>/dev/null || true")?;
    ensure!(left.is_empty(), "left behind: {left}");
    // Others need it.
    stage.start_guests(&GUESTS[1..])
}

/// Cores go by the gate at once, memory as its kernel gives it; and a vCPU that is busy behind a closed gate takes next to
/// nothing from the owner of its core.
fn without_agent(stage: &Stage) -> Verdict {
    ensure!(stage.show("a")?.summary.agent == AgentState::None, "{:?}", stage.show("a")?.summary);
    stage.start_load("a", &[6])?;
    stage.moved(LEND_CORE)?;
    stage.moved(&["conuma", "set", "a", "--memory", "node1=320M"])?;
    stage.start_load("b", &[6])?;
    // After memory has moved the brake is as firm as it gets.
    stage.lab.until("the quota of a's vCPU 6", Duration::from_secs(300), |lab| {
        let max = lab.sh("cat /sys/fs/cgroup/conuma/a/vcpu6/cpu.max")?;
        Ok(if max.starts_with("1000 ") { Look::Done(()) } else { Look::NotYet(max) })
    })?;
    let (a, b) = share_of_cpu_6(stage, 20_000_000)?;
    ensure!(a * 50 <= a + b, "a ran {a} us on the core that it had lent, b {b} us: more than 2 %");
    stage.stop_load("b")?;
    stage.stop_load("a")?;
    let ceiling: u64 = stage.lab.sh("cat /sys/fs/cgroup/conuma/a/memory.max")?.trim().parse()?;
    ensure!(ceiling < Bytes::mib(2048).0, "the ceiling of a is {ceiling}");
    // An agent appears: from now on it is asked, and has been told.
    stage.lab.guest("a", "touch /run/agent-after-all")?;
    stage.until_agent("a")?;
    ensure!(stage.guest_cpus("a")? == cpus("2-5,7"), "a may use {}", stage.guest_cpus("a")?);
    for argv in [&["conuma", "recall", "--to", "a"][..], &["conuma", "set", "a", "--memory", "node1=448M"]] {
        let (code, back) = stage.transfer(argv)?;
        ensure!(code == 0, "{back:#?}");
    }
    ensure!(stage.guest_cpus("a")? == cpus("2-7"), "a may use {}", stage.guest_cpus("a")?);
    Ok(())
}
