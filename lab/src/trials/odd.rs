//! An odd host: SMT, a node without memory, a node without CPUs; and a guest with an older kernel.

use anyhow::{Result, ensure};
use conuma_topology::{Bytes, CpuSet};

use super::{Report, Trial, Verdict, shapes};
use crate::host::Kit;
use crate::image::GUEST_KERNELS;
use crate::stage::{GuestSpec, Stage};

const TOPOLOGY: &str = "node0 cpus=0-3 mem=2G; node1 cpus=4-7; node2 mem=1G; smt=2; packages=0-3/4-7; \
                        dist=10,16,20/16,10,20/20,20,10";

/// The kernel of guest `a`, where the distribution has one so old.
const OLDER: &str = "guest-6.1";

const TRIALS: [Trial<Stage>; 4] = [
    Trial { name: "an_odd_host_reads_back", body: |stage| shapes::reads_back(&stage.lab) },
    Trial { name: "guests_replicate_an_odd_host", body: replicate },
    Trial { name: "smt_cpuless_and_memoryless_nodes_lend", body: lend },
    Trial { name: "guests_run_the_older_kernel", body: older_kernel },
];

pub(super) fn run(kit: &Kit, report: &mut Report) -> Result<()> {
    let older = kit.kernels.join(OLDER).exists();
    let open = || Stage::open(kit, "odd", TOPOLOGY, &guests(if older { OLDER } else { GUEST_KERNELS[0] }));
    if older {
        return report.series(&TRIALS, open);
    }
    let (usual, with_older) = TRIALS.split_at(3);
    report.series(usual, open)?;
    report.skip(with_older, "this distribution has no Linux 6.1")
}

fn guests(kernel: &'static str) -> [GuestSpec; 2] {
    const OF_A: &[(u32, Bytes)] = &[(2, Bytes::mib(128))];
    let guarantee = "cores = 1";
    [
        GuestSpec { kernel, memory: OF_A, ..GuestSpec::plain("a", guarantee, "0-1,4-7") },
        GuestSpec::plain("b", guarantee, "2-3"),
    ]
}

fn older_kernel(stage: &Stage) -> Verdict {
    let release = stage.lab.guest("a", "uname -r")?;
    ensure!(release.starts_with("6.1."), "a runs {release}");
    Ok(())
}

/// On AMD, Linux before 6.9 learns of threads by `topoext` alone, which the emulated host does not have.
fn replicate(stage: &Stage) -> Verdict {
    let older = older_kernel(stage).is_ok();
    shapes::replicates(stage, if older { &["a"] } else { &[] })
}

/// A whole core of the node without memory and memory of the node without CPUs go from `a` to `b` and back; a task's own
/// affinity survives that on a kernel that does not keep it by itself.
fn lend(stage: &Stage) -> Verdict {
    let own = "grep Cpus_allowed_list /proc/$(cat /run/bound)/status | cut -f2";
    stage.lab.guest("a", "setsid taskset -c 5 sleep 100000 >/dev/null 2>&1 & echo $! > /run/bound")?;
    let before = [stage.guest_memory("a", 2)?, stage.guest_memory("b", 2)?];
    let witness = stage.witness(&["a", "b"])?;
    let argv = ["conuma", "lend", "--from", "a", "--to", "b", "--cpus", "4-5", "--memory", "node2=128M"];
    stage.moved(&argv)?;
    ensure!(stage.guest_cpus("b")? == "2-5".parse::<CpuSet>()?, "b may use {}", stage.guest_cpus("b")?);
    ensure!(stage.guest_memory("b", 2)? == before[1] + Bytes::mib(128), "node 2 of b did not grow");
    stage.moved(&["conuma", "recall", "--to", "a"])?;
    let after = [stage.guest_memory("a", 2)?, stage.guest_memory("b", 2)?];
    ensure!(after == before, "node 2 had {before:?} before and has {after:?} after");
    let bound = stage.lab.guest("a", own)?;
    ensure!(bound.trim() == "5", "the task was bound to CPU 5 and may now run on {bound}");
    witness.nothing_wrong().map(drop)
}
