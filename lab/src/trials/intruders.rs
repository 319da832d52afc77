//! Others on the host who interfere: with threads, with cgroups, with CPUs.

use std::time::Duration;

use anyhow::{Context as _, ensure};
use conuma_topology::CpuId;

use super::daemon::all_is_well;
use super::grid::{as_at_first, cpus};
use super::{Trial, Verdict};
use crate::host::Look;
use crate::stage::Stage;

pub(super) const TRIALS: [Trial<Stage>; 3] = [
    Trial { name: "what_others_change_is_noticed_and_set_right", body: changes },
    Trial { name: "a_cpu_that_the_host_loses_is_used_by_nobody", body: offline },
    Trial { name: "released_vms_run_on_as_if_nobody_had_bound_them", body: release },
];

const CGROUP: &str = "/sys/fs/cgroup/conuma/a";

/// A vCPU thread is bound elsewhere, moved to another cgroup, its cpuset rewritten, its gate opened, the VM as a whole limited
/// or no longer: within a period each is as before, and was told.
fn changes(stage: &Stage) -> Verdict {
    as_at_first(stage)?;
    let thread = stage.lab.sh(&format!("cat {CGROUP}/vcpu1/cgroup.threads"))?;
    let thread = thread.trim();
    let allowed = || stage.lab.sh(&format!("grep Cpus_allowed_list /proc/{thread}/status | cut -f2"));
    // The kernel itself keeps a thread in its cpuset.
    stage.lab.sh(&format!("taskset -pc 4 {thread} >/dev/null 2>&1 || true"))?;
    ensure!(allowed()?.trim() == "1", "vCPU 1 may run on {}", allowed()?);
    let pid = stage.show("a")?.process.context("a runs")?.pid;
    for (what, done, told) in [
        (
            format!("mkdir -p /sys/fs/cgroup/other; echo {pid} > /sys/fs/cgroup/other/cgroup.procs"),
            format!("grep -c . {CGROUP}/vcpu2/cgroup.threads"),
            "vCPU 2 was in another cgroup",
        ),
        (
            format!("echo {thread} > {CGROUP}/emulator/cgroup.threads"),
            format!("grep -c '^{thread}$' {CGROUP}/vcpu1/cgroup.threads"),
            "vCPU 1 was in another cgroup",
        ),
        (
            format!("echo 0-7 > {CGROUP}/vcpu1/cpuset.cpus"),
            format!("grep -c '^1$' {CGROUP}/vcpu1/cpuset.cpus"),
            "vCPU 1 was bound to",
        ),
        (
            format!("echo 0 > {CGROUP}/vcpu1/cpu.idle"),
            format!("grep -c '^1$' {CGROUP}/vcpu1/cpu.idle"),
            "the gate of vCPU 1 was open",
        ),
        (
            format!("echo '10000 100000' > {CGROUP}/vcpu3/cpu.max"),
            format!("grep -c '^max' {CGROUP}/vcpu3/cpu.max"),
            "the gate of vCPU 3 was",
        ),
        (
            format!("echo 2-7 > {CGROUP}/cpuset.cpus"),
            format!("grep -c '^0-7$' {CGROUP}/cpuset.cpus"),
            "the VM.s cgroup was bound to CPUs {2-7}",
        ),
        (
            format!("echo 1 > {CGROUP}/cpu.weight"),
            format!("grep -c '^100$' {CGROUP}/cpu.weight"),
            "the VM.s cgroup had a weight of 1",
        ),
        (
            format!("echo max > {CGROUP}/memory.max"),
            format!("grep -c '^[0-9]' {CGROUP}/memory.max"),
            "the ceiling of the VM.s memory was none",
        ),
    ] {
        stage.lab.sh(&what)?;
        stage.lab.until(told, Duration::from_secs(60), |lab| {
            let right = lab.sh(&format!("{done} || true"))?;
            let said = lab.sh(&format!("grep -c '{told}' /run/conumad.log || true"))?;
            let both = right.trim() == "1" && said.trim() != "0";
            Ok(if both { Look::Done(()) } else { Look::NotYet(format!("right: {right} said: {said}")) })
        })?;
    }
    ensure!(allowed()?.trim() == "1", "vCPU 1 may run on {}", allowed()?);
    stage.lab.sh("rmdir /sys/fs/cgroup/other")?;
    all_is_well(stage)
}

/// The kernel moves a vCPU's thread elsewhere when its CPU goes: it is stopped there, the guest leaves the CPU, and when
/// that is back all is as before.
fn offline(stage: &Stage) -> Verdict {
    as_at_first(stage)?;
    let online = "/sys/devices/system/cpu/cpu7/online";
    stage.lab.sh(&format!("echo 0 > {online}"))?;
    stage.lab.until("a to leave CPU 7", Duration::from_secs(120), |lab| {
        let quota = lab.sh(&format!("cat {CGROUP}/vcpu7/cpu.max"))?;
        let may = stage.guest_cpus("a")?;
        let behind_closed_gate = lab.sh("cat /sys/fs/cgroup/conuma/b/vcpu7/cpu.max")?;
        let firm = |quota: &str| quota.starts_with("1000 ");
        let left = firm(&quota) && firm(&behind_closed_gate) && !may.contains(CpuId(7));
        Ok(if left {
            Look::Done(())
        } else {
            Look::NotYet(format!("quotas {quota} {behind_closed_gate}, a may use {may}"))
        })
    })?;
    let refused = stage.lab.run(&["conuma", "lend", "--from", "a", "--to", "b", "--cpus", "7"])?;
    ensure!(refused.code != 0 && refused.err.contains("offline"), "{refused:?}");
    ensure!(stage.show("a")?.summary.holding.cpus == cpus("2-7"), "it is lost from the ledger");
    stage.lab.sh(&format!("echo 1 > {online}"))?;
    stage.lab.until("a to use CPU 7 again", Duration::from_secs(120), |_| {
        let may = stage.guest_cpus("a")?;
        Ok(if may.contains(CpuId(7)) { Look::Done(()) } else { Look::NotYet(may.to_string()) })
    })?;
    stage.until_agent("a")?;
    let thread = stage.lab.sh(&format!("cat {CGROUP}/vcpu7/cgroup.threads"))?;
    let allowed = stage.lab.sh(&format!("grep Cpus_allowed_list /proc/{}/status | cut -f2", thread.trim()))?;
    ensure!(allowed.trim() == "7", "vCPU 7 may run on {allowed}");
    all_is_well(stage)
}

/// Last, as it ends what the others need: no cgroup, no bound thread, no gate is left, the guests run and use every CPU, and
/// have the memory that they had.
fn release(stage: &Stage) -> Verdict {
    as_at_first(stage)?;
    let pids = stage.lab.sh("pidof qemu-system-x86_64")?;
    let memory = stage.guest_memory("a", 1)?;
    let asked = stage.lab.run(&["conuma", "release", "a"])?;
    ensure!(asked.code != 0 && asked.err.contains("--yes"), "{asked:?}");
    ensure!(stage.show("a")?.summary.settled, "it was only asked about");
    let said = stage.lab.ok(&["conuma", "release", "--all", "--yes", "--json"])?;
    ensure!(said.matches("\"agent_told\": true").count() == 2, "{said}");
    ensure!(stage.lab.sh("pidof qemu-system-x86_64")? == pids, "a guest has ended");
    let bound = stage.lab.sh(
        "for pid in $(pidof qemu-system-x86_64); do grep -h Cpus_allowed_list /proc/$pid/task/*/status; done | sort -u | cut -f2",
    )?;
    ensure!(bound.trim() == "0-7", "threads are bound to {bound}");
    let left = stage.lab.sh("ls -d /sys/fs/cgroup/conuma/*/ 2>/dev/null || true")?;
    ensure!(left.is_empty(), "left behind: {left}");
    for vm in ["a", "b"] {
        ensure!(stage.guest_cpus(vm)? == cpus("0-7"), "{vm} may use {}", stage.guest_cpus(vm)?);
    }
    ensure!(stage.guest_memory("a", 1)? == memory, "its memory has changed");
    let list = stage.lab.ok(&["conuma", "list", "--json"])?;
    ensure!(list.trim() == "[]", "the daemon knows {list}");
    stage.lab.sh("kill $(pidof qemu-system-x86_64)").map(drop)
}
