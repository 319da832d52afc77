//! Hosts of several shapes come up and say of themselves what they were built as.

use anyhow::{Context, Result, ensure};
use conuma_topology::Machine;

use super::{Report, Trial, Verdict};
use crate::host::{Kit, Lab};
use crate::spec::LabSpec;
use crate::stage::Stage;

const TRIALS: [(&str, Trial<Lab>); 2] = [
    ("1n2c1t@1G", Trial { name: "one_node_reads_back", body: reads_back }),
    ("2n2c2t@1G", Trial { name: "two_nodes_with_smt_read_back", body: reads_back }),
];

pub(super) fn run(kit: &Kit, report: &mut Report) -> Result<()> {
    for (topology, trial) in TRIALS {
        let name = trial.name;
        report.series(&[trial], || Lab::boot(kit, name, LabSpec::parse(topology)?))?;
    }
    Ok(())
}

/// What `conuma topology` reads in the host is what the host was built as.
pub(super) fn reads_back(lab: &Lab) -> Verdict {
    let text = lab.ok(&["conuma", "topology", "--json"])?;
    let read: Machine = serde_json::from_str(&text).context("conuma topology --json")?;
    let built = &lab.spec.machine;
    for (id, node) in &built.nodes {
        let there = read.nodes.get(id).with_context(|| format!("node {id} was not read"))?;
        ensure!(there.cpus == node.cpus, "node {id} has CPUs {}, built with {}", there.cpus, node.cpus);
        match (there.memory, node.memory) {
            (None, None) => {}
            // The kernel and the firmware keep a part.
            (Some(read), Some(built)) => ensure!(
                read.total <= built.total && read.total.0 > built.total.0 / 2,
                "node {id} has {}, built with {}",
                read.total,
                built.total
            ),
            (read, built) => anyhow::bail!("node {id} has memory {read:?}, built with {built:?}"),
        }
        for other in built.nodes.keys() {
            let (read, built) = (read.distance(*id, *other), built.distance(*id, *other));
            ensure!(read == built, "distance {id} to {other} is {read:?}, built with {built:?}");
        }
    }
    for cpu in built.online_cpus().iter() {
        ensure!(read.siblings(cpu) == built.siblings(cpu), "CPU {cpu} has siblings {}", read.siblings(cpu));
    }
    ensure!(read.packages().len() == built.packages().len(), "{} packages", read.packages().len());
    Ok(())
}

/// Each guest sees the host's nodes with their CPUs and distances, and its packages, dies, shared caches and threads; those
/// that are `blind` to threads all but these.
pub(super) fn replicates(stage: &Stage, blind: &[&str]) -> Verdict {
    let look = "cd /sys/devices/system/node; for n in node[0-9]*; do echo $n $(cat $n/cpulist) $(cat $n/distance); done; \
                cd ../cpu; for c in cpu[0-9]*; do echo $c $(cat $c/topology/physical_package_id $c/topology/die_id) \
                $(cat $c/cache/index3/shared_cpu_list 2>/dev/null); echo $c threads $(cat $c/topology/thread_siblings_list); done";
    let host = stage.lab.sh(look)?;
    for guest in ["a", "b"] {
        let seen = stage.lab.guest(guest, look)?;
        let sees = |line: &&str| !(blind.contains(&guest) && line.contains("threads"));
        let same = seen.lines().filter(sees).eq(host.lines().filter(sees));
        ensure!(same, "{guest} sees\n{seen}\nthe host is\n{host}");
    }
    Ok(())
}
