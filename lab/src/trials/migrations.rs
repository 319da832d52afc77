//! Guests that are migrated away while something moves. There is no second host: a program that reads to the end is as good a
//! destination for what happens here, and one that does not read is a migration that does not end.

use anyhow::{Context, Result, ensure};
use conuma_api::{Transfer, VmState};

use super::daemon::all_is_well;
use super::grid::{GUESTS, as_at_first, cpus};
use super::guests::{BUDGET, begin_to_lend, ready, until_memory};
use super::{Trial, Verdict};
use crate::stage::Stage;

pub(super) const TRIALS: [Trial<Stage>; 2] = [
    Trial { name: "a_live_migration_that_fails_in_a_transfer_changes_nothing", body: fails },
    Trial { name: "a_guest_that_migrates_away_in_a_transfer_leaves_all_when_it_is_stopped", body: away },
];

/// Migrates `a` while cores and memory of it move; gives what became of the transfer.
fn migrate_in_a_transfer(stage: &Stage, into: &str) -> Result<Transfer> {
    let lend = begin_to_lend(stage)?;
    stage.migrate("a", into)?;
    let output = lend.wait(BUDGET, &mut |_| {})?;
    serde_json::from_str(&output.out).with_context(|| format!("the transfer: {}{}", output.err, output.out))
}

/// Memory that was faster than the migration has moved; of what was not, the reason is told.
fn only_the_migration_kept_memory(lent: &Transfer) -> Verdict {
    let mut kept = lent.legs.iter().flat_map(|leg| &leg.shortfalls);
    ensure!(kept.all(|short| short.message.contains("migrated")), "{lent:#?}");
    Ok(())
}

/// Memory of `a` does not move now, and the reason is told.
fn memory_stays(stage: &Stage, reason: &str) -> Verdict {
    // More than it has, whatever has moved before: there is room for that.
    let refused = stage.lab.run(&["conuma", "set", "a", "--memory", "node1=576M"])?;
    ensure!(refused.code != 0 && refused.err.contains(reason), "{refused:?}");
    all_is_well(stage)
}

/// The destination reads nothing, and then is gone: the guest has run here all the time, and has all again that it had.
fn fails(stage: &Stage) -> Verdict {
    ready(stage)?;
    let witness = stage.witness(&["a", "b"])?;
    let before = stage.guest_memory("a", 1)?;
    let lent = migrate_in_a_transfer(stage, "echo $$ > /run/destination; exec sleep 100000")?;
    ensure!(stage.guest_cpus("b")? == cpus("0-1,6-7"), "cores move in a migration, too: {lent:#?}");
    only_the_migration_kept_memory(&lent)?;
    stage.until_state("a", VmState::Migrating)?;
    memory_stays(stage, "is being migrated live")?;
    stage.lab.sh("kill -9 $(cat /run/destination)")?;
    stage.until_state("a", VmState::Running)?;
    as_at_first(stage)?;
    until_memory(stage, before)?;
    all_is_well(stage)?;
    witness.nothing_wrong().map(drop)
}

/// What moved has moved, what did not is told. The VM keeps the rest, which nobody could take from a guest that does not run; its
/// cores go by the gate. When it is stopped all of it is free.
fn away(stage: &Stage) -> Verdict {
    ready(stage)?;
    let witness = stage.witness(&["a", "b"])?;
    let lent = migrate_in_a_transfer(stage, "cat > /dev/null")?;
    ensure!(stage.guest_cpus("b")? == cpus("0-1,6-7"), "cores move in a migration, too: {lent:#?}");
    only_the_migration_kept_memory(&lent)?;
    stage.until_state("a", VmState::Migrated)?;
    all_is_well(stage)?;
    memory_stays(stage, "runs here no more")?;
    let (code, lent) = stage.transfer(&["conuma", "lend", "--from", "a", "--to", "b", "--cpus", "5"])?;
    ensure!(code == 0 && stage.guest_cpus("b")?.contains(conuma_topology::CpuId(5)), "its cores go: {lent:#?}");
    let listed = stage.lab.ok(&["conuma", "list"])?;
    ensure!(listed.contains("migrated away"), "list does not tell: {listed}");
    witness.nothing_wrong()?;

    // No guest is left that could power off: nobody has to insist.
    stage.lab.ok(&["conuma", "stop", "a"])?;
    all_is_well(stage)?;
    stage.start_again("a", &GUESTS)
}
