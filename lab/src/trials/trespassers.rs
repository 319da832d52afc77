//! A guest whose kernel reaches for memory of its virtio-mem devices that is not plugged.

use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::daemon::all_is_well;
use super::grid::{GUESTS, as_at_first};
use super::guests::ready;
use super::{Trial, Verdict};
use crate::host::Look;
use crate::stage::{GuestSpec, Stage};

pub(super) const TRIALS: [Trial<Stage>; 1] =
    [Trial { name: "memory_that_is_not_plugged_is_inaccessible", body: inaccessible }];

/// An audit has to pass in it.
pub(super) const UNGUARDED: [Trial<Stage>; 1] =
    [Trial { name: "memory_beyond_the_holding_is_found_and_ends_growth", body: found }];

/// Its memory on node 1 is all mapped, as QEMU did before version 8.2.
pub(super) const WITHOUT_SLOTS: GuestSpec =
    GuestSpec { qemu_args: &["-set", "device.vmem1.dynamic-memslots=off"], ..GUESTS[1] };

const PAGES_PER_MIB: u64 = 256;

/// `b`, without the driver that would keep its kernel from it, writes to memory of node 1 that is not plugged: how many pages kept
/// what was written.
fn touch(stage: &Stage, mib: u64) -> Result<u64> {
    let address = stage.lab.ok(&["conuma-lab-init", "address", "/run/hand-b.sock", "1"])?;
    stage.lab.guest("b", "rmmod virtio_mem")?;
    let kept = stage.lab.guest("b", &format!("conuma-lab-init touch {} {mib}", address.trim()))?;
    kept.trim().parse().context("a number of pages")
}

/// What of `b` is in the host's memory, in KiB.
fn resident(stage: &Stage) -> Result<u64> {
    let pid = stage.show("b")?.process.context("b runs")?.pid;
    let text = stage.lab.sh(&format!("grep VmRSS /proc/{pid}/status | tr -dc 0-9"))?;
    text.trim().parse().context("a number of KiB")
}

/// There is nothing behind these addresses: it costs the host no memory, and harms nobody.
fn inaccessible(stage: &Stage) -> Verdict {
    const MIB: u64 = 16;
    ready(stage)?;
    let before = resident(stage)?;
    let kept = touch(stage, MIB)?;
    let after = resident(stage)?;
    ensure!(kept == 0, "{kept} pages kept what was written");
    ensure!(after < before + MIB * 1024 / 2, "b grew from {before} to {after} KiB");
    all_is_well(stage)?;
    // With its driver it gets memory as ever.
    stage.lab.guest("b", "insmod /lib/modules/$(grep virtio.mem /lib/modules/load)")?;
    stage.moved(&["conuma", "lend", "--from", "a", "--to", "b", "--memory", "node1=128M"])?;
    as_at_first(stage)
}

/// QEMU does not keep it from doing so: the audit sees it, tells it, and it grows no more.
fn found(stage: &Stage) -> Verdict {
    /// More than what QEMU itself may need.
    const MIB: u64 = 640;
    ensure!(stage.show("b")?.summary.takes_memory, "{:?}", stage.show("b")?.summary);
    let kept = touch(stage, MIB)?;
    ensure!(kept == MIB * PAGES_PER_MIB, "{kept} pages kept what was written");
    stage.lab.until("the audit", Duration::from_secs(120), |_| {
        let summary = stage.show("b")?.summary;
        Ok(if summary.takes_memory { Look::NotYet(format!("{summary:?}")) } else { Look::Done(()) })
    })?;
    let refused = stage.lab.run(&["conuma", "lend", "--from", "a", "--to", "b", "--memory", "node1=128M"])?;
    ensure!(refused.code != 0 && refused.err.contains("uses more memory than it holds"), "{refused:?}");
    let shown = stage.lab.run(&["conuma", "show"])?.out;
    ensure!(shown.contains("on node 1"), "show does not tell: {shown}");
    Ok(())
}
