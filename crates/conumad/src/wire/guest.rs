//! What a guest says of itself, in host ids. Ids that the guest cannot have are left out, and so is
//! whatever else in a report does not fit its replica.

use std::time::Duration;

use conuma_agent_proto::{AutoOnline, CgroupMode, CpuReport, GuestFacts, Pressure, Report};
use conuma_api as api;
use conuma_binding::Replica;
use conuma_topology::{GuestCpuId, GuestCpuSet};

use super::{count, micros};

pub(crate) fn guest_info(facts: &GuestFacts) -> api::GuestInfo {
    let mut notes = Vec::new();
    match facts.cgroup_mode {
        CgroupMode::Unified => {}
        CgroupMode::Hybrid => notes.push("its cpuset controller is on cgroup v1: cores cannot be quiesced".into()),
        CgroupMode::Absent => notes.push("it has no cgroup v2: cores cannot be quiesced".into()),
    }
    match facts.auto_online {
        AutoOnline::OnlineMovable => {}
        AutoOnline::Absent => notes.push("its kernel has no memory hotplug".into()),
        AutoOnline::Offline => notes.push("memory given to it stays offline".into()),
        AutoOnline::Online | AutoOnline::OnlineKernel => {
            notes.push("memory given to it may never come back: it is not onlined as movable".into());
        }
    }
    if facts.init_on_alloc == Some(true) {
        notes.push("its kernel zeroes pages on allocation, which makes taking memory slower (init_on_alloc)".into());
    }
    api::GuestInfo {
        agent_version: facts.agent_version.clone(),
        kernel: facts.kernel_release.clone(),
        boot_id: facts.boot_id.clone(),
        cpus: facts.cpus_online.to_string(),
        nodes: count(facts.nodes.len()),
        notes,
    }
}

/// `report`, taken `age` ago; `before` is the one before it of the same boot.
pub(crate) fn guest_report(
    report: &Report,
    before: Option<&Report>,
    age: Duration,
    replica: &Replica,
) -> api::GuestReport {
    let host_cpu = |cpu: GuestCpuId| replica.host_cpus(&GuestCpuSet::from([cpu])).first();
    let mut cpus: Vec<api::CpuLoad> = report
        .cpus
        .iter()
        .filter_map(|cpu| {
            let earlier = before.and_then(|before| before.cpus.iter().find(|other| other.cpu == cpu.cpu));
            Some(api::CpuLoad {
                cpu: host_cpu(cpu.cpu)?,
                busy_us: micros(busy(cpu)),
                idle_us: micros(cpu.idle),
                steal_us: micros(cpu.steal),
                waited_us: cpu.waited.map(micros),
                busy_share: earlier.and_then(|earlier| busy_share(cpu, earlier)),
            })
        })
        .collect();
    cpus.sort_by_key(|load| load.cpu);
    let mut nodes: Vec<api::NodeLoad> = report
        .nodes
        .iter()
        .filter_map(|node| {
            Some(api::NodeLoad {
                node: replica.host_node(node.node)?,
                total: node.total,
                free: node.free,
                available: node.available,
                file: node.file,
                anonymous: node.anonymous,
                movable: node.movable,
                huge_total: node.huge_total,
                huge_free: node.huge_free,
                online: node.blocks_online,
                offline: node.blocks_offline,
            })
        })
        .collect();
    nodes.sort_by_key(|load| load.node);
    let pressure = |of: Option<Pressure>| {
        of.map(|pressure| api::PressureInfo { avg10: pressure.some.avg10, avg60: pressure.some.avg60 })
    };
    api::GuestReport {
        age_ms: micros(age) / 1000,
        uptime_ms: micros(report.uptime) / 1000,
        runnable: report.runnable,
        blocked: report.blocked,
        cpus,
        nodes,
        cpu_pressure: pressure(report.cpu_pressure),
        memory_pressure: pressure(report.memory_pressure),
        io_pressure: pressure(report.io_pressure),
    }
}

/// In user mode, in the kernel and in interrupts.
pub(crate) fn busy(cpu: &CpuReport) -> Duration {
    cpu.user.saturating_add(cpu.system).saturating_add(cpu.interrupts)
}

/// In hundredths of a percent.
fn busy_share(now: &CpuReport, before: &CpuReport) -> Option<u32> {
    let ran = busy(now).saturating_sub(busy(before)).as_micros();
    let rested = now.idle.saturating_sub(before.idle).as_micros() + now.steal.saturating_sub(before.steal).as_micros();
    u32::try_from((ran * 10_000).checked_div(ran + rested)?).ok()
}
