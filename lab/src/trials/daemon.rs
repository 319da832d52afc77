//! The daemon's own misfortunes: killed at any step, its journal lost, its disk full, a second one.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use conuma_api::{CheckReport, HostInfo};
use conuma_topology::CpuSet;
use serde::Deserialize;

use super::grid::{as_at_first, cpus};
use super::{Trial, Verdict};
use crate::host::Look;
use crate::stage::Stage;

pub(super) const TRIALS: [Trial<Stage>; 4] = [
    Trial { name: "a_daemon_killed_at_some_steps_finishes_or_undoes", body: killed_at_some_steps },
    Trial { name: "a_journal_that_is_lost_cut_or_old_is_no_obstacle", body: journals },
    Trial { name: "nothing_begins_with_a_full_disk_and_nothing_is_lost", body: full_disk },
    Trial { name: "a_second_daemon_refuses_to_start", body: second_daemon },
];

pub(super) const LONG: [Trial<Stage>; 1] =
    [Trial { name: "a_daemon_killed_at_every_step_finishes_or_undoes", body: killed_at_every_step }];

/// Far more steps than any transfer has.
const MOST_STEPS: u32 = 60;

/// What `conuma show --json` says.
#[derive(Deserialize)]
struct Host {
    #[serde(flatten)]
    host: HostInfo,
    check: CheckReport,
}

/// The invariants hold against the host, everything is in some VM's account or free, and nothing is on its way.
pub(crate) fn all_is_well(stage: &Stage) -> Result<()> {
    let text = stage.lab.until("a check while nothing moves", Duration::from_secs(60), |lab| {
        let text = lab.ok(&["conuma", "show", "--json"])?;
        let host: Host = serde_json::from_str(&text)?;
        Ok(if host.check.ok && host.check.unseen.is_empty() { Look::Done(text) } else { Look::NotYet(text) })
    })?;
    let host: Host = serde_json::from_str(&text)?;
    let accounts = &host.host.ledger.accounts;
    let all = accounts.iter().fold(CpuSet::new(), |sum, account| sum.union(&account.holds.cpus));
    let count: usize = accounts.iter().map(|account| account.holds.cpus.len()).sum();
    let there = stage.lab.spec.machine.online_cpus();
    ensure!(all == there && count == there.len(), "the ledger leaks or doubles: {text}");
    let known: BTreeSet<String> = accounts.iter().map(|account| account.holder.to_string()).collect();
    ensure!(!known.iter().any(|name| name.starts_with("transfer")), "something is on its way for ever: {known:?}");
    stage.nothing_was_refused()
}

/// A new daemon takes over and all is as the ledger says.
fn recover(stage: &Stage) -> Result<()> {
    stage.start_daemon()?;
    stage.until_agent("a")?;
    stage.until_agent("b")?;
    all_is_well(stage)
}

/// Runs a transfer whose daemon dies at its n-th step. Whether there was such a step.
fn dies_at(stage: &Stage, argv: &[&str], nth: u32) -> Result<bool> {
    stage.lab.sh(&format!(
        "rm -f /run/armed /run/killed; \
         setsid conuma-lab-init kill-at $(cat /run/conumad.pid) {nth} --armed /run/armed --killed /run/killed \
         /var/lib/conuma /sys/fs/cgroup/conuma/[ab]/vcpu6/cpu.idle >/run/killer.log 2>&1 & echo $! > /run/killer.pid; \
         while [ ! -e /run/armed ]; do sleep 0.1; done"
    ))?;
    let output = stage.lab.run(argv)?;
    let killed = stage.lab.sh("kill $(cat /run/killer.pid) 2>/dev/null; [ -e /run/killed ] && echo yes || echo no")?;
    let killed = killed.trim() == "yes";
    ensure!(killed || output.code == 0, "{argv:?}: exit code {}: {}", output.code, output.err);
    Ok(killed)
}

const LEND_CORES: &[&str] = &["conuma", "lend", "--from", "a", "--to", "b", "--cpus", "6"];
const LEND_MEMORY: &[&str] = &["conuma", "lend", "--from", "a", "--to", "b", "--memory", "node1=256M"];
const RECALL: &[&str] = &["conuma", "recall", "--to", "a"];

/// The daemon dies at these steps, those that there are, of giving and of taking back; each time everything is right again,
/// and the guests have not noticed.
fn killed_at(stage: &Stage, lend: &[&str], steps: impl Iterator<Item = u32> + Clone) -> Result<u32> {
    let mut deaths = 0;
    for (prepare, argv) in [(None, lend), (Some(lend), RECALL)] {
        for step in steps.clone() {
            as_at_first(stage)?;
            if let Some(prepare) = prepare {
                let (code, transfer) = stage.transfer(prepare)?;
                ensure!(code == 0, "{transfer:#?}");
            }
            let pids = stage.lab.sh("pidof qemu-system-x86_64")?;
            if !dies_at(stage, argv, step).with_context(|| format!("step {step} of {argv:?}"))? {
                ensure!(step > 2, "{argv:?} has {} steps only", step - 1);
                break;
            }
            deaths += 1;
            ensure!(stage.lab.sh("pidof qemu-system-x86_64")? == pids, "a guest did not survive the daemon");
            recover(stage).with_context(|| format!("after step {step} of {argv:?}"))?;
        }
    }
    as_at_first(stage)?;
    all_is_well(stage)?;
    Ok(deaths)
}

fn killed_at_some_steps(stage: &Stage) -> Verdict {
    let witness = stage.witness(&["a", "b"])?;
    let deaths = killed_at(stage, LEND_CORES, [1, 3].into_iter())? + killed_at(stage, LEND_MEMORY, [2].into_iter())?;
    ensure!(deaths == 6, "{deaths} deaths");
    witness.nothing_wrong().map(drop)
}

fn killed_at_every_step(stage: &Stage) -> Verdict {
    let witness = stage.witness(&["a", "b"])?;
    let deaths = killed_at(stage, LEND_CORES, 1..MOST_STEPS)? + killed_at(stage, LEND_MEMORY, 1..MOST_STEPS)?;
    ensure!(deaths >= 12, "{deaths} deaths");
    witness.nothing_wrong().map(drop)
}

/// Who holds what does not depend on the journal.
fn journals(stage: &Stage) -> Verdict {
    as_at_first(stage)?;
    for damage in [
        "rm journal.json",
        "f=$(wc -c < journal.json); head -c $((f / 2)) journal.json | tr -d '\\n' > cut; mv cut journal.json",
        "echo '{\"format\":1,\"boot\":\"an older daemon\",\"content\":{}}' > journal.json",
    ] {
        let (code, transfer) = stage.transfer(LEND_CORES)?;
        ensure!(code == 0, "{transfer:#?}");
        let before = [stage.show("a")?.summary.holding, stage.show("b")?.summary.holding];
        stage.kill_daemon()?;
        stage.lab.sh(&format!("cd /var/lib/conuma && {damage}"))?;
        stage.lab.sh("echo > /run/conumad.log")?;
        recover(stage).with_context(|| damage.to_owned())?;
        let after = [stage.show("a")?.summary.holding, stage.show("b")?.summary.holding];
        ensure!(after == before, "{damage}: held {before:?} before and {after:?} after");
        let warned = stage.lab.sh("grep -c 'it is not used' /run/conumad.log || true")?;
        let expected = if damage.starts_with("rm") { "0" } else { "1" };
        ensure!(warned.trim() == expected, "{damage}: {warned} warnings");
        stage.lab.sh("grep 'WARN.*no journal tells of these VMs' /run/conumad.log").context("no warning")?;
        // The loan is forgotten with the journal: what is to come back goes by way of the pool.
        for (vm, cpus) in [("b", "0-1"), ("a", "2-7")] {
            let (code, transfer) = stage.transfer(&["conuma", "set", vm, "--cpus", cpus])?;
            ensure!(code == 0, "{transfer:#?}");
        }
    }
    Ok(())
}

fn full_disk(stage: &Stage) -> Verdict {
    as_at_first(stage)?;
    let (code, transfer) = stage.transfer(LEND_CORES)?;
    ensure!(code == 0, "{transfer:#?}");
    stage.fill_disk()?;
    let refused = stage.lab.run(&["conuma", "lend", "--from", "a", "--to", "b", "--cpus", "5"])?;
    ensure!(refused.code != 0 && refused.err.contains("journal"), "exit code {}: {}", refused.code, refused.err);
    ensure!(stage.guest_cpus("a")? == cpus("2-5,7"), "a may use {}", stage.guest_cpus("a")?);
    ensure!(stage.guest_cpus("b")? == cpus("0-1,6"), "b may use {}", stage.guest_cpus("b")?);
    all_is_well(stage)?;
    // Also a daemon that comes up on a full disk knows who holds what.
    stage.kill_daemon()?;
    recover(stage)?;
    ensure!(stage.show("b")?.summary.holding.cpus == cpus("0-1,6"), "b has lost what it borrowed");
    stage.free_disk()?;
    stage.moved(RECALL)?;
    ensure!(stage.guest_cpus("a")? == cpus("2-7"), "a may use {}", stage.guest_cpus("a")?);
    Ok(())
}

fn second_daemon(stage: &Stage) -> Verdict {
    let second = stage.lab.run(&["conumad", "--reserve-memory", "256M"])?;
    ensure!(second.code != 0 && second.err.contains("another conumad"), "exit code {}: {}", second.code, second.err);
    all_is_well(stage)
}
