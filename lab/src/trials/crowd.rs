//! Many VMs that start at the same time.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use conuma_api::VmDetail;
use conuma_topology::{Bytes, NodeId};

use super::daemon::all_is_well;
use super::{Report, Trial, Verdict};
use crate::host::Kit;
use crate::stage::Stage;

const TRIALS: [Trial<Stage>; 1] = [Trial { name: "ten_qemus_that_start_together_spread_over_the_nodes", body: spread }];

/// A node has room for four of them.
const TOPOLOGY: &str = "4n4c1t@2G";
const VMS: usize = 10;
const MEMORY: Bytes = Bytes::mib(320);
/// Of that, what each node gives.
const BOOT: Bytes = Bytes::mib(64);

/// QEMU comes up ten times on two emulated processors of this machine.
const BUDGET: Duration = Duration::from_secs(600);

pub(super) fn run(kit: &Kit, report: &mut Report) -> Result<()> {
    report.series(&TRIALS, || Stage::open(kit, "crowd", TOPOLOGY, &[]))
}

/// Firmware that finds nothing to boot is guest enough for where cores and memory come from.
fn vm_file(name: &str) -> String {
    format!(
        "name = \"{name}\"\nagent = \"none\"\nqemu_args = [\"-serial\", \"null\", \"-qmp\", \
         \"unix:/run/witness-{name}.sock,server=on,wait=off\"]\n\n\
         [guarantee]\ncores = 1\nmemory = \"{MEMORY}\"\n\n[boot]\nmemory_per_node = \"{BOOT}\"\n"
    )
}

/// Each gets its core, and memory next to it; the nodes are shared evenly; no core and no memory is given twice on the way.
fn spread(stage: &Stage) -> Verdict {
    let names: Vec<String> = (0..VMS).map(|n| format!("vm{n}")).collect();
    for name in &names {
        stage.lab.write(&format!("/lab/{name}.toml"), &vm_file(name))?;
    }
    let witness = stage.witness(&names.iter().map(String::as_str).collect::<Vec<_>>())?;
    let starts: Vec<_> = names
        .iter()
        .map(|name| stage.lab.spawn(&["conuma", "start", &format!("/lab/{name}.toml")]))
        .collect::<Result<_>>()?;
    for (start, name) in starts.into_iter().zip(&names) {
        start.wait(BUDGET, &mut |_| {})?.ok().with_context(|| format!("starting {name}"))?;
    }
    let mut on_node: BTreeMap<NodeId, usize> = BTreeMap::new();
    for name in &names {
        let VmDetail { summary, .. } = stage.show(name)?;
        let machine = &stage.lab.spec.machine;
        let homes: Vec<NodeId> = machine
            .nodes
            .iter()
            .filter(|(_, node)| !node.cpus.is_disjoint(&summary.holding.cpus))
            .map(|(id, _)| *id)
            .collect();
        ensure!(summary.cores == 1 && homes.len() == 1, "{name} holds {:?}", summary.holding);
        *on_node.entry(homes[0]).or_default() += 1;
        let memory = &summary.holding.memory;
        let near = memory.get(&homes[0]).copied().unwrap_or_default();
        ensure!(memory.values().copied().sum::<Bytes>() >= MEMORY && near > BOOT, "{name} holds {:?}", summary.holding);
    }
    ensure!(on_node.len() == 4 && on_node.values().all(|count| (2..=3).contains(count)), "VMs by node: {on_node:?}");
    all_is_well(stage)?;
    let seen = witness.nothing_wrong()?;
    ensure!(seen.memory_samples > 0, "the witness saw no memory: {seen:?}");
    Ok(())
}
