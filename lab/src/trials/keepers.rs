//! Guests that keep memory they should give: it is full, locked, or pinned for devices.

use anyhow::{Context, Result, ensure};
use conuma_api::TransferState;
use conuma_topology::CpuId;

use super::daemon::all_is_well;
use super::grid::{GUESTS, as_at_first, cpus};
use super::guests::ready;
use super::{Trial, Verdict};
use crate::keeper::Keeper;
use crate::stage::Stage;

pub(super) const TRIALS: [Trial<Stage>; 1] =
    [Trial { name: "locked_and_pinned_memory_moves_out_of_the_way_where_there_is_room", body: with_room }];

/// Deadlines of memory have to pass in it.
pub(super) const LONG: [Trial<Stage>; 3] = [
    Trial { name: "memory_that_cannot_leave_stays_with_the_reason", body: full_of_files },
    Trial { name: "locked_memory_that_fills_a_guest_stays_with_the_reason", body: full_of_locked },
    Trial { name: "pinned_memory_that_cannot_be_moved_stays_with_the_reason", body: pinned },
];

/// Memory that is to move is on node 1.
const NEAR_NODE_1: Option<CpuId> = Some(CpuId(2));

/// Of `a`, with a core, which has nothing to do with memory.
const LEND: &[&str] = &["conuma", "lend", "--from", "a", "--to", "b", "--memory", "node1=256M", "--cpus", "6"];

/// Memory of processes in `a` that is in locked mappings and present, in KiB, by its kernel's word.
fn locked(stage: &Stage) -> Result<u64> {
    let text =
        stage.lab.guest("a", "cat /proc/[0-9]*/smaps 2>/dev/null | awk '/^Locked:/ {sum += $2} END {print sum}'")?;
    text.trim().parse().context("a number of KiB")
}

/// What a guest that has nothing free left may do: refuse, or be too slow to answer, and then gives nothing.
const FULL: [&str; 2] = ["run out of memory", "does not answer"];

/// MiB in `a` that could be filled without harm to it.
fn can_be_filled(stage: &Stage) -> Result<u64> {
    let free = stage.lab.guest("a", "awk '/MemAvailable/ {print int($2 / 1024) - 160}' /proc/meminfo")?;
    free.trim().parse().context("a number of MiB")
}

/// Lends, and gets a part at most, with the reason; nothing in the guest is killed for want of memory, and the core goes all the
/// same.
fn part_of_it(stage: &Stage, reasons: &[&str]) -> Verdict {
    let (code, lent) = stage.transfer(LEND)?;
    ensure!(code == 3 && lent.state == TransferState::Partial, "exit code {code}: {lent:#?}");
    let said: Vec<_> = lent.legs.iter().flat_map(|leg| &leg.shortfalls).map(|short| short.message.as_str()).collect();
    ensure!(said.iter().any(|message| reasons.iter().any(|reason| message.contains(reason))), "no reason: {said:?}");
    let killed = stage.lab.sh("grep -c 'Out of memory' /run/a.console || true")?;
    ensure!(killed.trim() == "0", "its kernel killed {killed} processes");
    ensure!(stage.guest_cpus("b")? == cpus("0-1,6"), "the plan did not go on: b may use {}", stage.guest_cpus("b")?);
    all_is_well(stage)
}

/// A kernel moves what is locked, and what is about to be pinned before it is: into memory that stays.
fn with_room(stage: &Stage) -> Verdict {
    ready(stage)?;
    let witness = stage.witness(&["a", "b"])?;
    let kept =
        [Keeper::begin(stage, "a", NEAR_NODE_1, "locked", 64)?, Keeper::begin(stage, "a", NEAR_NODE_1, "pinned", 48)?];
    let before = locked(stage)?;
    ensure!(before >= 64 * 1024, "{before} KiB are locked");
    stage.moved(LEND)?;
    let after = locked(stage)?;
    ensure!(after == before, "{after} KiB are locked, and {before} were");
    as_at_first(stage)?;
    for keeper in kept {
        keeper.end(stage)?;
    }
    witness.nothing_wrong().map(drop)
}

/// Files in memory that is full on every node, without swap, can go nowhere: only what the guest can do without is taken.
fn full_of_files(stage: &Stage) -> Verdict {
    ready(stage)?;
    let mib = can_be_filled(stage)?;
    stage.lab.guest(
        "a",
        &format!(
            "mkdir -p /run/full; mount -t tmpfs -o size=4g full /run/full; \
             dd if=/dev/zero of=/run/full/all bs=1M count={mib} 2>/dev/null"
        ),
    )?;
    part_of_it(stage, &FULL)?;
    stage.lab.guest("a", "umount /run/full")?;
    as_at_first(stage)
}

/// Nothing that is free is left for it to move to.
fn full_of_locked(stage: &Stage) -> Verdict {
    ready(stage)?;
    let keeper = Keeper::begin(stage, "a", NEAR_NODE_1, "locked", can_be_filled(stage)?)?;
    part_of_it(stage, &FULL)?;
    keeper.end(stage)?;
    as_at_first(stage)
}

/// Plugged where its kernel does not promise to be able to move, which Conuma does not do but a guest's owner may: what is pinned
/// there stays where it is.
fn pinned(stage: &Stage) -> Verdict {
    ready(stage)?;
    stage.lab.guest("a", "echo online_kernel > /sys/devices/system/memory/auto_online_blocks")?;
    stage.moved(&["conuma", "set", "a", "--memory", "node1=192M"])?;
    stage.moved(&["conuma", "set", "a", "--memory", "node1=448M"])?;
    let keeper = Keeper::begin(stage, "a", NEAR_NODE_1, "pinned", 240)?;
    part_of_it(stage, &["did not give it in time"])?;
    keeper.end(stage)?;
    // Its kernel has put things of its own there, too: only a guest that boots anew is as it was.
    stage.lab.ok(&["conuma", "stop", "a", "--force"])?;
    stage.start_again("a", &GUESTS)
}
