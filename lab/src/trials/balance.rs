//! The policy at work: nobody asks for anything, and what guests do moves cores and memory.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use conuma_api::{Account, DecisionSummary, Holder, HostInfo, VmDetail};
use conuma_topology::{Bytes, NodeId};

use super::{Trial, Verdict};
use crate::host::Look;
use crate::stage::Stage;

pub(super) const TRIALS: [Trial<Stage>; 2] = [
    Trial { name: "a_burst_gets_its_guarantee_and_more_and_all_goes_back", body: burst },
    Trial { name: "a_guest_that_grows_gets_memory_before_it_spills", body: growth },
];

/// It takes minutes of doing nothing.
pub(super) const LONG: [Trial<Stage>; 1] = [Trial { name: "a_constant_load_moves_nothing", body: constant }];

/// `a` is guaranteed four cores and gets three times what `b` gets of the rest. Here everything takes ten times as long as on a real host,
/// and so does what guests do in passing: estimates are slower, and small loads count less.
const POLICY: &str = "mode = \"auto\"\n\n[tuning]\nattack = 1.0\ndecay = 6.0\ndwell = 3.0\ndead_band = 0.45\n\n\
                      [vm.a]\nweight = 300\nguarantee = { cores = 4 }\n\n[vm.b]\nguarantee = { cores = 1 }\n";

const FILE: &str = "/lab/policy.toml";

/// How long what is decided may take to show.
const BUDGET: Duration = Duration::from_secs(300);

fn switch_on(stage: &Stage) -> Result<()> {
    stage.lab.write(FILE, POLICY)?;
    // What people set before is theirs until they let go.
    stage.lab.run(&["conuma", "unpin", "a"])?;
    stage.lab.run(&["conuma", "unpin", "b"])?;
    stage.lab.ok(&["conuma", "policy", "apply", FILE])?;
    Ok(())
}

/// The policy rests; what guests hold stays as it is.
fn switch_off(stage: &Stage) -> Result<()> {
    stage.lab.ok(&["conuma", "policy", "mode", "off"])?;
    stage.lab.guest("b", "umount -l /run/node1 2>/dev/null; true")?;
    for vm in ["a", "b"] {
        stage.stop_any_load(vm)?;
        stage.until_agent(vm)?;
    }
    Ok(())
}

/// Does something with the policy at work; afterwards it rests, whatever came of it.
fn with_policy(stage: &Stage, body: impl FnOnce() -> Verdict) -> Verdict {
    let done = switch_on(stage).and_then(|()| body());
    done.and(switch_off(stage))
}

/// Tasks that never sleep and may run anywhere.
fn start_batch(stage: &Stage, vm: &str, tasks: usize) -> Result<()> {
    let script = format!(
        "for i in $(seq {tasks}); do setsid sh -c 'while :; do :; done' >/dev/null 2>&1 & echo $! >> /run/load; done"
    );
    stage.lab.guest(vm, &script).map(drop)
}

fn accounts(stage: &Stage) -> Result<Vec<Account>> {
    let text = stage.lab.ok(&["conuma", "show", "--json"])?;
    let host: HostInfo = serde_json::from_str(&text).with_context(|| text.clone())?;
    Ok(host.ledger.accounts)
}

fn on_node_1(memory: &BTreeMap<NodeId, Bytes>) -> Bytes {
    memory.get(&NodeId(1)).copied().unwrap_or_default()
}

fn held_on_1(stage: &Stage, vm: &str) -> Result<Bytes> {
    Ok(on_node_1(&stage.show(vm)?.summary.holding.memory))
}

fn until_cores(stage: &Stage, vm: &str, what: &str, enough: impl Fn(usize) -> bool) -> Result<(VmDetail, Duration)> {
    let began = Instant::now();
    stage.lab.until(&format!("{vm} to hold {what}"), BUDGET, |_| {
        let detail = stage.show(vm)?;
        let cores = detail.summary.holding.cpus.len();
        Ok(if enough(cores) { Look::Done((detail, began.elapsed())) } else { Look::NotYet(format!("{cores} cores")) })
    })
}

/// A batch guest has what a bursty one does not use; the burst gets its guarantee and more; afterwards the batch has all of it back.
fn burst(stage: &Stage) -> Verdict {
    with_policy(stage, || {
        let witness = stage.witness(&["a", "b"])?;
        start_batch(stage, "b", 12)?;
        until_cores(stage, "b", "at least six cores, as a is idle", |cores| cores >= 6)?;
        start_batch(stage, "a", 12)?;
        let (_, guaranteed) = until_cores(stage, "a", "its guarantee", |cores| cores >= 4)?;
        until_cores(stage, "a", "more than its guarantee", |cores| cores >= 5)?;
        // The guest uses it, by its own word and the host's.
        let detail = stage.until_agent("a")?;
        ensure!(stage.guest_cpus("a")? == detail.summary.holding.cpus, "a may use {}", stage.guest_cpus("a")?);
        stage.stop_load("a")?;
        until_cores(stage, "b", "what it had", |cores| cores >= 6)?;
        let findings = witness.nothing_wrong()?;
        ensure!(findings.samples >= 10, "the witness saw too little: {findings:#?}");
        let history = stage.lab.ok(&["conuma", "history", "--json"])?;
        ensure!(history.contains("guarantee"), "the history does not tell of a guarantee: {history}");
        // Emulated seconds are not a host's: a bound far from chance, not a promise.
        ensure!(guaranteed < Duration::from_secs(120), "the guarantee took {guaranteed:?}");
        Ok(())
    })
}

/// Nothing of node 1 is in the pool; `a` has it and does not use it. `b` fills it bit by bit, and never has to go elsewhere.
fn growth(stage: &Stage) -> Verdict {
    // What the policy keeps free where a guest works is 32 MiB or more, less 16 MiB or more that are not worth moving. A larger step could be
    // foreseen by nobody.
    const STEP: Bytes = Bytes::mib(10);
    const STEPS: u64 = 38;
    with_policy(stage, || {
        let free = accounts(stage)?.into_iter().find(|account| account.holder == Holder::Pool);
        let free = free.map(|account| on_node_1(&account.holds.memory)).unwrap_or_default();
        let all = held_on_1(stage, "a")? + free;
        let argv = ["conuma", "set", "a", "--memory", &format!("node1={}M", (all.0 >> 20) / 2 * 2)];
        let (code, transfer) = stage.transfer(&argv)?;
        ensure!(code == 0, "{transfer:#?}");
        stage.lab.ok(&["conuma", "unpin", "a"])?;
        stage.lab.guest("b", "mkdir -p /run/node1; mount -t tmpfs -o size=2g,mpol=prefer:1 none /run/node1")?;
        let before = stage.guest_memory("b", 1)?;
        let stalled = || -> Result<u64> {
            let text = stage.lab.guest("b", "sed -n 's/^full.*total=//p' /proc/pressure/memory")?;
            Ok(text.trim().parse()?)
        };
        let stalls = stalled()?;
        for step in 0..STEPS {
            let script = format!("dd if=/dev/zero of=/run/node1/{step} bs=1M count={} 2>/dev/null", STEP.0 >> 20);
            stage.lab.guest("b", &script)?;
            // The next step comes when the guest has had time to report this one, and the host to act on it.
            stage.lab.until("b to have room for the next step", BUDGET, |_| {
                let free = Bytes::kib(stage.lab.guest("b", FREE_FOR_TASKS)?.trim().parse()?);
                Ok(if free >= STEP {
                    Look::Done(())
                } else {
                    let held = held_on_1(stage, "b")?;
                    Look::NotYet(format!("before step {step}, of {held}, {free} of node 1 are free for tasks"))
                })
            })?;
        }
        let after = stage.guest_memory("b", 1)?;
        ensure!(after >= before + Bytes::mib(128), "node 1 of b had {before} and has {after}");
        let script = "grep Shmem: /sys/devices/system/node/node1/meminfo | tr -s ' ' | cut -d' ' -f4";
        let there = Bytes::kib(stage.lab.guest("b", script)?.trim().parse()?);
        let written = Bytes(STEP.0 * STEPS);
        // A kernel that is near its low watermark takes a page elsewhere now and then.
        ensure!(there.0 * 20 >= written.0 * 19, "{there} of {written} lie on node 1");
        let stalls = stalled()? - stalls;
        ensure!(stalls < 1_000_000, "all of b stalled for {stalls} us");
        let left = held_on_1(stage, "a")?;
        ensure!(left < all, "a still has {left} of node 1");
        stage.lab.guest("b", "umount /run/node1")?;
        Ok(())
    })
}

/// KiB of node 1 that the kernel gives to tasks before it goes elsewhere: of each zone what is free beyond its high watermark and its protection.
const FREE_FOR_TASKS: &str = "awk '/^Node/ { here = $2 == \"1,\" } !here { next } \
    $1 == \"pages\" { free = $3 } $1 == \"high\" { kept = $2 } \
    $1 == \"protection:\" { most = 0; gsub(/[(),]/, \" \"); for (i = 2; i <= NF; i++) if ($i > most) most = $i; \
    if (free > kept + most) sum += free - kept - most } END { print sum * 4 }' /proc/zoneinfo";

/// Both guests work, always the same: once everyone has found his place nothing moves for three minutes of the host's.
fn constant(stage: &Stage) -> Verdict {
    with_policy(stage, || {
        start_batch(stage, "a", 12)?;
        start_batch(stage, "b", 12)?;
        until_cores(stage, "a", "its share", |cores| cores == 6)?;
        let moved = || -> Result<u64> {
            let text = stage.lab.ok(&["conuma", "history", "--json"])?;
            let decisions: Vec<DecisionSummary> = serde_json::from_str(&text).with_context(|| text.clone())?;
            Ok(decisions.first().map_or(0, |newest| newest.id))
        };
        // What is better in place only moves a minute after the last move: rest is what is longer.
        let uptime = || -> Result<f64> {
            let text = stage.lab.sh("cut -d' ' -f1 /proc/uptime")?;
            Ok(text.trim().parse()?)
        };
        let (mut last, mut since) = (moved()?, uptime()?);
        let mut until_quiet = |seconds: f64, budget: Duration| {
            stage.lab.until(&format!("{seconds} seconds without a decision"), budget, |_| {
                let (newest, now) = (moved()?, uptime()?);
                if newest != last {
                    (last, since) = (newest, now);
                }
                let quiet = now - since;
                Ok(if quiet >= seconds {
                    Look::Done(newest)
                } else {
                    Look::NotYet(format!("{quiet} s, decision {newest}"))
                })
            })
        };
        let settled = until_quiet(100.0, Duration::from_secs(900))?;
        let after = until_quiet(280.0, Duration::from_secs(900))?;
        if after != settled {
            let mut told = String::new();
            for id in settled + 1..=after {
                told.push_str(&stage.lab.ok(&["conuma", "history", &id.to_string(), "--json"])?);
            }
            anyhow::bail!("decisions {settled} to {after} were made under a constant load: {told}");
        }
        ensure!(stage.show("a")?.summary.holding.cpus.len() == 6, "{:?}", stage.show("a")?.summary);
        Ok(())
    })
}
