//! Wire messages to domain values, with every size checked.

use std::time::Duration;

use conuma_topology::{Bytes, GuestCpuId, GuestCpuSet, GuestNodeId};

use super::DecodeError;
use crate::pressure::{Pushed, Resource, Trigger};
use crate::report::{CpuReport, NodeReport, Pressure, PressureLine, Report};
use crate::request::{Generation, Hello, Request, RequestBody, RequestId, Versions};
use crate::response::{
    AgentError, AutoOnline, CgroupMode, GuestFacts, GuestNodeFacts, HoldingOutcome, Leftover, Leftovers, MemoryState,
    Prepared, Refusal, RefusalReason, Reply, Response, Stage, StageTime, TaskKind,
};
use crate::{MAX_CPUS, MAX_LEFTOVERS, MAX_NODES, MAX_REFUSALS, MAX_TEXT, MAX_WINDOW, MIN_WINDOW, wire};

/// No Linux numbers CPUs or nodes higher.
const MAX_ID: u32 = 65_535;

/// Most stage times in one answer.
const MAX_STAGES: usize = 64;

type Decoded<T> = Result<T, DecodeError>;

/// What would move a cursor, begin a line or turn the direction of writing where a text is shown or logged.
fn is_unprintable(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}')
}

fn text(what: &'static str, text: String) -> Decoded<String> {
    if text.len() > MAX_TEXT {
        return Err(DecodeError::OutOfBounds { what, why: "text too long" });
    }
    // No longer than before, so that it can be sent on.
    Ok(if text.contains(is_unprintable) { text.replace(is_unprintable, "?") } else { text })
}

fn id(what: &'static str, id: u32) -> Decoded<u32> {
    if id > MAX_ID { Err(DecodeError::OutOfBounds { what, why: "id too large" }) } else { Ok(id) }
}

fn set(what: &'static str, ranges: Option<wire::IdRanges>) -> Decoded<GuestCpuSet> {
    let wrong = |why| DecodeError::OutOfBounds { what, why };
    let bounds = ranges.unwrap_or_default().bounds;
    let (pairs, rest) = bounds.as_chunks::<2>();
    if !rest.is_empty() {
        return Err(wrong("a range without an end"));
    }
    let mut set = GuestCpuSet::new();
    let mut above: Option<u32> = None;
    for &[first, last] in pairs {
        if last > MAX_ID {
            return Err(wrong("id too large"));
        }
        if first > last || above.is_some_and(|end| first <= end) {
            return Err(wrong("ranges not in ascending order"));
        }
        set.insert_range(GuestCpuId(first), GuestCpuId(last));
        above = Some(last);
    }
    Ok(set)
}

fn many<T: TryFrom<W, Error = DecodeError>, W>(what: &'static str, items: Vec<W>, limit: usize) -> Decoded<Vec<T>> {
    if items.len() > limit {
        return Err(DecodeError::OutOfBounds { what, why: "too many entries" });
    }
    items.into_iter().map(T::try_from).collect()
}

fn stages(times: Vec<wire::StageTime>) -> Decoded<Vec<StageTime>> {
    if times.len() > MAX_STAGES {
        return Err(DecodeError::OutOfBounds { what: "timings", why: "too many entries" });
    }
    Ok(times
        .into_iter()
        .filter_map(|time| {
            let stage = match time.stage() {
                wire::Stage::Unknown => return None,
                wire::Stage::Cgroups => Stage::Cgroups,
                wire::Stage::Tasks => Stage::Tasks,
                wire::Stage::Interrupts => Stage::Interrupts,
                wire::Stage::Workqueues => Stage::Workqueues,
                wire::Stage::Verify => Stage::Verify,
                wire::Stage::Migrate => Stage::Migrate,
                wire::Stage::Reclaim => Stage::Reclaim,
                wire::Stage::Wait => Stage::Wait,
            };
            Some(StageTime { stage, took: Duration::from_micros(time.took_us) })
        })
        .collect())
}

fn both(triggers: wire::Triggers) -> Decoded<(Option<Trigger>, Option<Trigger>)> {
    let one = |trigger: Option<wire::Trigger>| trigger.map(Trigger::try_from).transpose();
    Ok((one(triggers.cpu)?, one(triggers.memory)?))
}

impl TryFrom<wire::Trigger> for Trigger {
    type Error = DecodeError;

    fn try_from(trigger: wire::Trigger) -> Decoded<Self> {
        let wrong = |why| DecodeError::OutOfBounds { what: "a trigger", why };
        let (stall, window) = (Duration::from_micros(trigger.stall_us), Duration::from_micros(trigger.window_us));
        if !(MIN_WINDOW..=MAX_WINDOW).contains(&window) {
            return Err(wrong("window too short or too long"));
        }
        if stall.is_zero() || stall > window {
            return Err(wrong("no stall, or one that is longer than its window"));
        }
        Ok(Self { stall, window })
    }
}

impl TryFrom<wire::Versions> for Versions {
    type Error = DecodeError;

    fn try_from(versions: wire::Versions) -> Decoded<Self> {
        if versions.min > versions.max {
            return Err(DecodeError::OutOfBounds { what: "versions", why: "range runs backwards" });
        }
        Ok(Self { min: versions.min, max: versions.max })
    }
}

impl TryFrom<wire::Request> for Request {
    type Error = DecodeError;

    fn try_from(request: wire::Request) -> Decoded<Self> {
        let body = match request.body.ok_or(DecodeError::Missing("the request's body"))? {
            wire::RequestBody::Hello(hello) => RequestBody::Hello(Hello {
                versions: hello.versions.ok_or(DecodeError::Missing("versions"))?.try_into()?,
                daemon_version: text("daemon_version", hello.daemon_version)?,
            }),
            wire::RequestBody::ApplyHolding(apply) => RequestBody::ApplyHolding { cpus: set("cpus", apply.cpus)? },
            wire::RequestBody::PrepareMemory(amount) => {
                RequestBody::PrepareMemory { node: GuestNodeId(id("node", amount.node)?), bytes: Bytes(amount.bytes) }
            }
            wire::RequestBody::ConfirmMemory(amount) => RequestBody::ConfirmMemory {
                node: GuestNodeId(id("node", amount.node)?),
                at_least: Bytes(amount.bytes),
            },
            wire::RequestBody::Report(wire::Nothing {}) => RequestBody::Report,
            wire::RequestBody::Watch(triggers) => {
                let (cpu, memory) = both(triggers)?;
                RequestBody::Watch { cpu, memory }
            }
        };
        let id = RequestId(request.id);
        if id == RequestId::PUSHED {
            return Err(DecodeError::OutOfBounds { what: "the request's id", why: "kept for what is sent unasked" });
        }
        Ok(Self {
            id,
            generation: Generation(request.generation),
            deadline: Duration::from_millis(request.deadline_ms.into()),
            body,
        })
    }
}

impl TryFrom<wire::Response> for Response {
    type Error = DecodeError;

    fn try_from(response: wire::Response) -> Decoded<Self> {
        let body = match response.body.ok_or(DecodeError::Missing("the answer's body"))? {
            wire::ResponseBody::Hello(facts) => Ok(Reply::Hello(facts.try_into()?)),
            wire::ResponseBody::Holding(holding) => Ok(Reply::Holding(holding.try_into()?)),
            wire::ResponseBody::Prepared(prepared) => Ok(Reply::Prepared(prepared.try_into()?)),
            wire::ResponseBody::Memory(memory) => Ok(Reply::Memory(memory.try_into()?)),
            wire::ResponseBody::Report(report) => Ok(Reply::Report(report.try_into()?)),
            wire::ResponseBody::Error(error) => Err(error.try_into()?),
            wire::ResponseBody::Watching(triggers) => {
                let (cpu, memory) = both(triggers)?;
                Ok(Reply::Watching { cpu, memory })
            }
            wire::ResponseBody::Pushed(pushed) => Ok(Reply::Pushed(pushed.try_into()?)),
        };
        let id = RequestId(response.id);
        if (id == RequestId::PUSHED) != matches!(body, Ok(Reply::Pushed(_))) {
            return Err(DecodeError::OutOfBounds { what: "the answer's id", why: "of what is sent unasked, or not" });
        }
        Ok(Self { id, body })
    }
}

impl TryFrom<wire::Error> for AgentError {
    type Error = DecodeError;

    fn try_from(error: wire::Error) -> Decoded<Self> {
        let kind = error.kind();
        let why = text("the error's text", error.text)?;
        Ok(match kind {
            wire::ErrorKind::Version => {
                Self::Version(error.versions.ok_or(DecodeError::Missing("versions"))?.try_into()?)
            }
            wire::ErrorKind::Stale => Self::Stale { newest: Generation(error.newest) },
            wire::ErrorKind::Deadline => Self::Deadline(why),
            wire::ErrorKind::BadRequest => Self::BadRequest(why),
            wire::ErrorKind::Unsupported => Self::Unsupported(why),
            wire::ErrorKind::Failed => Self::Failed(why),
        })
    }
}

impl TryFrom<wire::Facts> for GuestFacts {
    type Error = DecodeError;

    fn try_from(facts: wire::Facts) -> Decoded<Self> {
        let cgroup_mode = match facts.cgroup_mode() {
            wire::CgroupMode::Unified => CgroupMode::Unified,
            wire::CgroupMode::Hybrid => CgroupMode::Hybrid,
            wire::CgroupMode::Absent => CgroupMode::Absent,
        };
        let auto_online = match facts.auto_online() {
            wire::AutoOnline::Absent => AutoOnline::Absent,
            wire::AutoOnline::Offline => AutoOnline::Offline,
            wire::AutoOnline::Online => AutoOnline::Online,
            wire::AutoOnline::OnlineKernel => AutoOnline::OnlineKernel,
            wire::AutoOnline::OnlineMovable => AutoOnline::OnlineMovable,
        };
        Ok(Self {
            version: facts.version,
            agent_version: text("agent_version", facts.agent_version)?,
            kernel_release: text("kernel_release", facts.kernel_release)?,
            boot_id: text("boot_id", facts.boot_id)?,
            cpus_online: set("cpus_online", facts.cpus_online)?,
            nodes: many("nodes", facts.nodes, MAX_NODES)?,
            cgroup_mode,
            init_on_alloc: facts.init_on_alloc,
            auto_online,
            memory_block: facts.memory_block.map(Bytes),
            psi: facts.psi,
            newest: Generation(facts.newest),
            holding: facts.holding.map(|holding| set("holding", Some(holding))).transpose()?,
        })
    }
}

impl TryFrom<wire::NodeFacts> for GuestNodeFacts {
    type Error = DecodeError;

    fn try_from(node: wire::NodeFacts) -> Decoded<Self> {
        Ok(Self {
            node: GuestNodeId(id("node", node.node)?),
            cpus: set("the node's cpus", node.cpus)?,
            memory: Bytes(node.memory),
        })
    }
}

impl TryFrom<wire::Holding> for HoldingOutcome {
    type Error = DecodeError;

    fn try_from(holding: wire::Holding) -> Decoded<Self> {
        Ok(Self {
            held: set("held", holding.held)?,
            quiesced: set("quiesced", holding.quiesced)?,
            refused: many("refused", holding.refused, MAX_REFUSALS)?,
            leftovers: Leftovers {
                tasks: many("leftover tasks", holding.tasks, MAX_LEFTOVERS)?,
                more_tasks: holding.more_tasks,
                bound_kernel_threads: holding.bound_kernel_threads,
                managed_interrupts: holding.managed_interrupts,
            },
            timings: stages(holding.timings)?,
        })
    }
}

impl TryFrom<wire::Refusal> for Refusal {
    type Error = DecodeError;

    fn try_from(refusal: wire::Refusal) -> Decoded<Self> {
        let kind = refusal.kind();
        let why = text("the refusal's reason", refusal.text)?;
        let cgroup = text("the refusing cgroup", refusal.cgroup)?;
        let reason = match kind {
            wire::RefusalKind::Exclusive => RefusalReason::Exclusive { cgroup },
            wire::RefusalKind::NotOnline => RefusalReason::NotOnline,
            wire::RefusalKind::Cgroup => RefusalReason::Cgroup { cgroup, error: why },
            wire::RefusalKind::InUse => RefusalReason::InUse { tasks: why },
            wire::RefusalKind::Other => RefusalReason::Other(why),
        };
        Ok(Self { cpus: set("the refused cpus", refusal.cpus)?, reason })
    }
}

impl TryFrom<wire::Leftover> for Leftover {
    type Error = DecodeError;

    fn try_from(task: wire::Leftover) -> Decoded<Self> {
        Ok(Self {
            tid: task.tid,
            name: text("a task's name", task.name)?,
            cpu: GuestCpuId(id("a task's cpu", task.cpu)?),
            kind: if task.kernel { TaskKind::Kernel } else { TaskKind::User },
        })
    }
}

impl TryFrom<wire::Prepared> for Prepared {
    type Error = DecodeError;

    fn try_from(prepared: wire::Prepared) -> Decoded<Self> {
        Ok(Self {
            node: GuestNodeId(id("node", prepared.node)?),
            free_before: Bytes(prepared.free_before),
            free_after: Bytes(prepared.free_after),
            migrated: Bytes(prepared.migrated),
            reclaimed: Bytes(prepared.reclaimed),
            enough: prepared.enough,
            spare: Bytes(prepared.spare.unwrap_or(prepared.free_after)),
            timings: stages(prepared.timings)?,
        })
    }
}

impl TryFrom<wire::Memory> for MemoryState {
    type Error = DecodeError;

    fn try_from(memory: wire::Memory) -> Decoded<Self> {
        Ok(Self {
            node: GuestNodeId(id("node", memory.node)?),
            total: Bytes(memory.total),
            free: Bytes(memory.free),
            online: Bytes(memory.online),
            movable: Bytes(memory.movable),
            offline: Bytes(memory.offline),
            satisfied: memory.satisfied,
            waited: Duration::from_micros(memory.waited_us),
        })
    }
}

impl TryFrom<wire::Report> for Report {
    type Error = DecodeError;

    fn try_from(report: wire::Report) -> Decoded<Self> {
        let pressure = |pressure: Option<wire::Pressure>| pressure.map(Pressure::try_from).transpose();
        Ok(Self {
            uptime: Duration::from_micros(report.uptime_us),
            cpus: many("cpus", report.cpus, MAX_CPUS)?,
            nodes: many("nodes", report.nodes, MAX_NODES)?,
            runnable: report.runnable,
            blocked: report.blocked,
            cpu_pressure: pressure(report.cpu_pressure)?,
            memory_pressure: pressure(report.memory_pressure)?,
            io_pressure: pressure(report.io_pressure)?,
        })
    }
}

impl TryFrom<wire::Pushed> for Pushed {
    type Error = DecodeError;

    fn try_from(pushed: wire::Pushed) -> Decoded<Self> {
        let resource = match pushed.resource() {
            wire::Resource::Unknown => return Err(DecodeError::Missing("the pressed resource")),
            wire::Resource::Cpu => Resource::Cpu,
            wire::Resource::Memory => Resource::Memory,
        };
        let report = pushed.report.ok_or(DecodeError::Missing("the pushed report"))?.try_into()?;
        Ok(Self { resource, report })
    }
}

impl TryFrom<wire::CpuReport> for CpuReport {
    type Error = DecodeError;

    fn try_from(cpu: wire::CpuReport) -> Decoded<Self> {
        Ok(Self {
            cpu: GuestCpuId(id("cpu", cpu.cpu)?),
            user: Duration::from_micros(cpu.user_us),
            system: Duration::from_micros(cpu.system_us),
            interrupts: Duration::from_micros(cpu.interrupts_us),
            idle: Duration::from_micros(cpu.idle_us),
            steal: Duration::from_micros(cpu.steal_us),
            ran: cpu.ran_us.map(Duration::from_micros),
            waited: cpu.waited_us.map(Duration::from_micros),
        })
    }
}

impl TryFrom<wire::NodeReport> for NodeReport {
    type Error = DecodeError;

    fn try_from(node: wire::NodeReport) -> Decoded<Self> {
        Ok(Self {
            node: GuestNodeId(id("node", node.node)?),
            total: Bytes(node.total),
            free: Bytes(node.free),
            available: Bytes(node.available),
            file: Bytes(node.file),
            anonymous: Bytes(node.anonymous),
            movable: Bytes(node.movable),
            huge_total: Bytes(node.huge_total),
            huge_free: Bytes(node.huge_free),
            blocks_online: Bytes(node.blocks_online),
            blocks_offline: Bytes(node.blocks_offline),
            refaults: node.refaults,
            active_file: node.active_file.map(Bytes),
            shmem: node.shmem.map(Bytes),
            kept: node.kept.map(Bytes),
        })
    }
}

impl TryFrom<wire::Pressure> for Pressure {
    type Error = DecodeError;

    fn try_from(pressure: wire::Pressure) -> Decoded<Self> {
        Ok(Self {
            some: pressure.some.ok_or(DecodeError::Missing("pressure"))?.try_into()?,
            full: pressure.full.map(TryInto::try_into).transpose()?,
        })
    }
}

impl TryFrom<wire::PressureLine> for PressureLine {
    type Error = DecodeError;

    fn try_from(line: wire::PressureLine) -> Decoded<Self> {
        let share = |share: u32| {
            if share > 10_000 {
                Err(DecodeError::OutOfBounds { what: "pressure", why: "more than the whole" })
            } else {
                Ok(share)
            }
        };
        Ok(Self { avg10: share(line.avg10)?, avg60: share(line.avg60)?, total: Duration::from_micros(line.total_us) })
    }
}
