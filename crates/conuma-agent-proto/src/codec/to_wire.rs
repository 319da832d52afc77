//! Domain values to wire messages: cannot fail, cuts what is too long.

use std::time::Duration;

use conuma_topology::{GuestCpuSet, Id};

use crate::pressure::{Pushed, Resource, Trigger};
use crate::report::{CpuReport, NodeReport, Pressure, PressureLine, Report};
use crate::request::{Hello, Request, RequestBody, Versions};
use crate::response::{
    AgentError, AutoOnline, CgroupMode, GuestFacts, GuestNodeFacts, HoldingOutcome, Leftover, MemoryState, Prepared,
    Refusal, RefusalReason, Reply, Response, Stage, StageTime, TaskKind,
};
use crate::{MAX_CPUS, MAX_LEFTOVERS, MAX_NODES, MAX_REFUSALS, MAX_TEXT, wire};

fn text(text: &str) -> String {
    let mut end = text.len().min(MAX_TEXT);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text[..end].to_owned()
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

fn many<'a, T, W: From<&'a T>>(items: &'a [T], limit: usize) -> Vec<W> {
    items.iter().take(limit).map(W::from).collect()
}

fn both(cpu: Option<&Trigger>, memory: Option<&Trigger>) -> wire::Triggers {
    wire::Triggers { cpu: cpu.map(Into::into), memory: memory.map(Into::into) }
}

impl From<&Trigger> for wire::Trigger {
    fn from(trigger: &Trigger) -> Self {
        Self { stall_us: micros(trigger.stall), window_us: micros(trigger.window) }
    }
}

impl From<&GuestCpuSet> for wire::IdRanges {
    fn from(set: &GuestCpuSet) -> Self {
        let mut bounds: Vec<u32> = Vec::new();
        for id in set.iter().map(Id::number) {
            match bounds.last_mut() {
                Some(last) if *last + 1 == id => *last = id,
                _ => bounds.extend([id, id]),
            }
        }
        Self { bounds }
    }
}

impl From<&Versions> for wire::Versions {
    fn from(versions: &Versions) -> Self {
        Self { min: versions.min, max: versions.max }
    }
}

impl From<&Request> for wire::Request {
    fn from(request: &Request) -> Self {
        let body = match &request.body {
            RequestBody::Hello(Hello { versions, daemon_version }) => wire::RequestBody::Hello(wire::Hello {
                versions: Some(versions.into()),
                daemon_version: text(daemon_version),
            }),
            RequestBody::ApplyHolding { cpus } => {
                wire::RequestBody::ApplyHolding(wire::ApplyHolding { cpus: Some(cpus.into()) })
            }
            RequestBody::PrepareMemory { node, bytes } => {
                wire::RequestBody::PrepareMemory(wire::NodeAmount { node: node.0, bytes: bytes.0 })
            }
            RequestBody::ConfirmMemory { node, at_least } => {
                wire::RequestBody::ConfirmMemory(wire::NodeAmount { node: node.0, bytes: at_least.0 })
            }
            RequestBody::Report => wire::RequestBody::Report(wire::Nothing {}),
            RequestBody::Watch { cpu, memory } => wire::RequestBody::Watch(both(cpu.as_ref(), memory.as_ref())),
        };
        Self {
            id: request.id.0,
            generation: request.generation.0,
            deadline_ms: u32::try_from(request.deadline.as_millis()).unwrap_or(u32::MAX),
            body: Some(body),
        }
    }
}

impl From<&Response> for wire::Response {
    fn from(response: &Response) -> Self {
        let body = match &response.body {
            Ok(Reply::Hello(facts)) => wire::ResponseBody::Hello(facts.into()),
            Ok(Reply::Holding(outcome)) => wire::ResponseBody::Holding(outcome.into()),
            Ok(Reply::Prepared(prepared)) => wire::ResponseBody::Prepared(prepared.into()),
            Ok(Reply::Memory(memory)) => wire::ResponseBody::Memory(memory.into()),
            Ok(Reply::Report(report)) => wire::ResponseBody::Report(report.into()),
            Ok(Reply::Watching { cpu, memory }) => wire::ResponseBody::Watching(both(cpu.as_ref(), memory.as_ref())),
            Ok(Reply::Pushed(pushed)) => wire::ResponseBody::Pushed(pushed.into()),
            Err(error) => wire::ResponseBody::Error(error.into()),
        };
        Self { id: response.id.0, body: Some(body) }
    }
}

impl From<&AgentError> for wire::Error {
    fn from(error: &AgentError) -> Self {
        let mut wire = Self::default();
        let (kind, why) = match error {
            AgentError::Version(versions) => {
                wire.versions = Some(versions.into());
                (wire::ErrorKind::Version, "")
            }
            AgentError::Stale { newest } => {
                wire.newest = newest.0;
                (wire::ErrorKind::Stale, "")
            }
            AgentError::Deadline(why) => (wire::ErrorKind::Deadline, why.as_str()),
            AgentError::BadRequest(why) => (wire::ErrorKind::BadRequest, why.as_str()),
            AgentError::Unsupported(why) => (wire::ErrorKind::Unsupported, why.as_str()),
            AgentError::Failed(why) => (wire::ErrorKind::Failed, why.as_str()),
        };
        wire.set_kind(kind);
        wire.text = text(why);
        wire
    }
}

impl From<&GuestFacts> for wire::Facts {
    fn from(facts: &GuestFacts) -> Self {
        let cgroup_mode = match facts.cgroup_mode {
            CgroupMode::Unified => wire::CgroupMode::Unified,
            CgroupMode::Hybrid => wire::CgroupMode::Hybrid,
            CgroupMode::Absent => wire::CgroupMode::Absent,
        };
        let auto_online = match facts.auto_online {
            AutoOnline::Absent => wire::AutoOnline::Absent,
            AutoOnline::Offline => wire::AutoOnline::Offline,
            AutoOnline::Online => wire::AutoOnline::Online,
            AutoOnline::OnlineKernel => wire::AutoOnline::OnlineKernel,
            AutoOnline::OnlineMovable => wire::AutoOnline::OnlineMovable,
        };
        Self {
            version: facts.version,
            agent_version: text(&facts.agent_version),
            kernel_release: text(&facts.kernel_release),
            boot_id: text(&facts.boot_id),
            cpus_online: Some((&facts.cpus_online).into()),
            nodes: many(&facts.nodes, MAX_NODES),
            cgroup_mode: cgroup_mode.into(),
            init_on_alloc: facts.init_on_alloc,
            auto_online: auto_online.into(),
            memory_block: facts.memory_block.map(|block| block.0),
            psi: facts.psi,
            newest: facts.newest.0,
            holding: facts.holding.as_ref().map(Into::into),
        }
    }
}

impl From<&GuestNodeFacts> for wire::NodeFacts {
    fn from(node: &GuestNodeFacts) -> Self {
        Self { node: node.node.0, cpus: Some((&node.cpus).into()), memory: node.memory.0 }
    }
}

impl From<&HoldingOutcome> for wire::Holding {
    fn from(outcome: &HoldingOutcome) -> Self {
        let leftovers = &outcome.leftovers;
        let cut = leftovers.tasks.len().saturating_sub(MAX_LEFTOVERS);
        Self {
            held: Some((&outcome.held).into()),
            quiesced: Some((&outcome.quiesced).into()),
            refused: many(&outcome.refused, MAX_REFUSALS),
            tasks: many(&leftovers.tasks, MAX_LEFTOVERS),
            more_tasks: leftovers.more_tasks.saturating_add(u32::try_from(cut).unwrap_or(u32::MAX)),
            bound_kernel_threads: leftovers.bound_kernel_threads,
            managed_interrupts: leftovers.managed_interrupts,
            timings: many(&outcome.timings, usize::MAX),
        }
    }
}

impl From<&Refusal> for wire::Refusal {
    fn from(refusal: &Refusal) -> Self {
        let (kind, cgroup, why) = match &refusal.reason {
            RefusalReason::Exclusive { cgroup } => (wire::RefusalKind::Exclusive, cgroup.as_str(), ""),
            RefusalReason::NotOnline => (wire::RefusalKind::NotOnline, "", ""),
            RefusalReason::Cgroup { cgroup, error } => (wire::RefusalKind::Cgroup, cgroup.as_str(), error.as_str()),
            RefusalReason::InUse { tasks } => (wire::RefusalKind::InUse, "", tasks.as_str()),
            RefusalReason::Other(why) => (wire::RefusalKind::Other, "", why.as_str()),
        };
        Self { cpus: Some((&refusal.cpus).into()), kind: kind.into(), cgroup: text(cgroup), text: text(why) }
    }
}

impl From<&Leftover> for wire::Leftover {
    fn from(task: &Leftover) -> Self {
        Self { tid: task.tid, name: text(&task.name), cpu: task.cpu.0, kernel: task.kind == TaskKind::Kernel }
    }
}

impl From<&StageTime> for wire::StageTime {
    fn from(time: &StageTime) -> Self {
        let stage = match time.stage {
            Stage::Cgroups => wire::Stage::Cgroups,
            Stage::Tasks => wire::Stage::Tasks,
            Stage::Interrupts => wire::Stage::Interrupts,
            Stage::Workqueues => wire::Stage::Workqueues,
            Stage::Verify => wire::Stage::Verify,
            Stage::Migrate => wire::Stage::Migrate,
            Stage::Reclaim => wire::Stage::Reclaim,
            Stage::Wait => wire::Stage::Wait,
        };
        Self { stage: stage.into(), took_us: micros(time.took) }
    }
}

impl From<&Prepared> for wire::Prepared {
    fn from(prepared: &Prepared) -> Self {
        Self {
            node: prepared.node.0,
            free_before: prepared.free_before.0,
            free_after: prepared.free_after.0,
            migrated: prepared.migrated.0,
            reclaimed: prepared.reclaimed.0,
            enough: prepared.enough,
            timings: many(&prepared.timings, usize::MAX),
            spare: Some(prepared.spare.0),
        }
    }
}

impl From<&MemoryState> for wire::Memory {
    fn from(memory: &MemoryState) -> Self {
        Self {
            node: memory.node.0,
            total: memory.total.0,
            free: memory.free.0,
            online: memory.online.0,
            movable: memory.movable.0,
            offline: memory.offline.0,
            satisfied: memory.satisfied,
            waited_us: micros(memory.waited),
        }
    }
}

impl From<&Report> for wire::Report {
    fn from(report: &Report) -> Self {
        Self {
            uptime_us: micros(report.uptime),
            cpus: many(&report.cpus, MAX_CPUS),
            nodes: many(&report.nodes, MAX_NODES),
            runnable: report.runnable,
            blocked: report.blocked,
            cpu_pressure: report.cpu_pressure.as_ref().map(Into::into),
            memory_pressure: report.memory_pressure.as_ref().map(Into::into),
            io_pressure: report.io_pressure.as_ref().map(Into::into),
        }
    }
}

impl From<&Pushed> for wire::Pushed {
    fn from(pushed: &Pushed) -> Self {
        let resource = match pushed.resource {
            Resource::Cpu => wire::Resource::Cpu,
            Resource::Memory => wire::Resource::Memory,
        };
        Self { resource: resource.into(), report: Some((&pushed.report).into()) }
    }
}

impl From<&CpuReport> for wire::CpuReport {
    fn from(cpu: &CpuReport) -> Self {
        Self {
            cpu: cpu.cpu.0,
            user_us: micros(cpu.user),
            system_us: micros(cpu.system),
            interrupts_us: micros(cpu.interrupts),
            idle_us: micros(cpu.idle),
            steal_us: micros(cpu.steal),
            ran_us: cpu.ran.map(micros),
            waited_us: cpu.waited.map(micros),
        }
    }
}

impl From<&NodeReport> for wire::NodeReport {
    fn from(node: &NodeReport) -> Self {
        Self {
            node: node.node.0,
            total: node.total.0,
            free: node.free.0,
            available: node.available.0,
            file: node.file.0,
            anonymous: node.anonymous.0,
            movable: node.movable.0,
            huge_total: node.huge_total.0,
            huge_free: node.huge_free.0,
            blocks_online: node.blocks_online.0,
            blocks_offline: node.blocks_offline.0,
            refaults: node.refaults,
            active_file: node.active_file.map(|bytes| bytes.0),
            shmem: node.shmem.map(|bytes| bytes.0),
            kept: node.kept.map(|bytes| bytes.0),
        }
    }
}

impl From<&Pressure> for wire::Pressure {
    fn from(pressure: &Pressure) -> Self {
        Self { some: Some((&pressure.some).into()), full: pressure.full.as_ref().map(Into::into) }
    }
}

impl From<&PressureLine> for wire::PressureLine {
    fn from(line: &PressureLine) -> Self {
        Self { avg10: line.avg10, avg60: line.avg60, total_us: micros(line.total) }
    }
}
