//! What the API shows of VMs, and the check of the invariants against what is in force now.

use std::collections::BTreeMap;
use std::time::Duration;

use conuma_api as api;
use conuma_api::{
    AgentInfo, AgentState, GateState, Problem, ProcessInfo, VcpuInfo, VmDetail, VmMemory, VmState, VmSummary,
};
use conuma_balancing::{Engine, Ledger, Life, Loan, TransferId, VmView, check_against_reality, check_ledger};
use conuma_hypervisor::RunState;
use conuma_hypervisor::gate::Gate;
use conuma_topology::{Bytes, NodeId, VcpuId, VmName};
use tokio::time::timeout;

use super::start::stopping;
use super::supervise::sizes;
use super::{Entry, Room, Running, observe};
use crate::agent::LinkState;
use crate::clock::unix_ms;
use crate::wire::{count, demand, gate_state, guest_info, guest_report, loan, micros, resources, violation};

/// How long one look at a VM may take; what is not known by then is left out.
const LOOK: Duration = Duration::from_secs(5);

/// What was read of a VM just now; what could not be read is left out.
#[derive(Default)]
struct Seen {
    gates: BTreeMap<VcpuId, Gate>,
    run_times: BTreeMap<VcpuId, Duration>,
    memory: BTreeMap<NodeId, conuma_hypervisor::MemoryState>,
    resident: Option<BTreeMap<NodeId, Bytes>>,
}

impl Room {
    /// All VMs.
    pub(crate) async fn summaries(&self) -> Result<Vec<VmSummary>, Problem> {
        let views = self.core.look(|engine, _| {
            let cores = |view: &VmView| count(engine.host().count_cores(&view.holding.cpus));
            engine.vms().into_iter().map(|view| (cores(&view), view)).collect::<Vec<_>>()
        });
        let views = views.await.map_err(stopping)?;
        let entries = self.entries();
        Ok(views
            .iter()
            .map(|(cores, view)| summary(view, *cores, entries.get(&view.spec.name).map(AsRef::as_ref)))
            .collect())
    }

    /// One VM in full.
    pub(crate) async fn detail(&self, name: &VmName) -> Result<VmDetail, Problem> {
        let entry = self.entry(name)?;
        let of = name.clone();
        let known = self.core.look(move |engine, _| {
            let view = engine.vm(&of)?;
            let cores = count(engine.host().count_cores(&view.holding.cpus));
            let concerns =
                |loan: &&Loan| loan.lender == of || loan.borrower == conuma_balancing::Holder::Vm(of.clone());
            Some((cores, view, engine.loans().iter().filter(concerns).map(loan).collect()))
        });
        let Some((cores, view, loans)) = known.await.map_err(stopping)? else {
            return Err(Problem::new(api::Code::NotFound, format!("VM {name} has just ended")));
        };
        let running = entry.running();
        let seen = match &running {
            Some(running) => look(running, &entry).await,
            None => Seen::default(),
        };
        Ok(VmDetail {
            summary: summary(&view, cores, Some(&entry)),
            limit: demand(&view.spec.limit),
            weight: entry.spec.weight,
            loans,
            process: running.as_ref().map(|running| ProcessInfo { pid: running.vm.process().0, cid: entry.plan.cid }),
            vcpus: self.vcpus(&entry, &view, &seen),
            memory: memory(&entry, &view, &seen),
            agent: self.agent(running.as_deref()),
            report: running.as_ref().and_then(|running| self.report(&entry, running)),
        })
    }

    /// The invariants against what is in force now. Looks again when something moved meanwhile: VMs are looked at one after
    /// the other, and what went from one that was seen to one that was not yet would seem to be used twice.
    pub(crate) async fn check(&self) -> Result<api::CheckReport, Problem> {
        const LOOKS: usize = 4;
        let mut report = api::CheckReport::default();
        for look in 1..=LOOKS {
            let before = self.books_now().await?;
            let used;
            (report, used) = self.check_once().await?;
            if used.is_empty() || before == self.books_now().await? {
                report.violations.extend(used);
                break;
            }
            if look == LOOKS {
                // What was seen tells nothing.
                report.unseen.push("resources moved all the time: ask again when transfers have ended".into());
            }
        }
        report.ok = report.violations.is_empty();
        Ok(report)
    }

    /// The ledger, and the last transfer that ended: what came back to where it was has moved all the same.
    async fn books_now(&self) -> Result<(Ledger, Option<TransferId>), Problem> {
        let books = |engine: &Engine, _| (engine.ledger().clone(), engine.history().back().map(|report| report.id));
        self.core.look(books).await.map_err(stopping)
    }

    /// What is sure, and what VMs use against the ledger, which is worth something only if nothing moved meanwhile.
    async fn check_once(&self) -> Result<(api::CheckReport, Vec<api::ViolationInfo>), Problem> {
        let entries: Vec<_> = self.entries().values().cloned().collect();
        let mut report = api::CheckReport::default();
        let mut seen = BTreeMap::new();
        for entry in &entries {
            let Some(running) = entry.running() else { continue };
            let name = entry.plan.name.clone();
            match timeout(LOOK, observe(running.vm.as_ref(), &entry.plan)).await {
                Ok(Ok(found)) => drop(seen.insert(name.clone(), found)),
                Ok(Err(error)) => report.unseen.push(format!("{name}: {}", crate::actuator::chain(&error))),
                Err(_) => report.unseen.push(format!("{name}: QEMU and cgroups did not answer in time")),
            }
            match timeout(LOOK, self.beyond_holding(entry, &running)).await {
                Ok(Ok(beyond)) => report.violations.extend(beyond),
                Ok(Err(why)) => report.unseen.push(format!("{name}: {why}")),
                Err(_) => report.unseen.push(format!("{name}: the audit of its memory took too long")),
            }
        }
        let violations = self.core.look(move |engine, now| {
            let specs: BTreeMap<_, _> =
                engine.vms().into_iter().map(|view| (view.spec.name.clone(), view.spec)).collect();
            let pairs = seen.iter().filter_map(|(name, seen)| Some((specs.get(name)?, seen)));
            let used = check_against_reality(engine.host(), engine.ledger(), pairs);
            (own_violations(engine, now), used.iter().map(violation).collect())
        });
        let (own, used) = violations.await.map_err(stopping)?;
        report.violations.extend(own);
        Ok((report, used))
    }

    fn vcpus(&self, entry: &Entry, view: &VmView, seen: &Seen) -> Vec<VcpuInfo> {
        let info = |vcpu: &conuma_binding::Vcpu| VcpuInfo {
            vcpu: vcpu.id,
            cpu: vcpu.cpu,
            node: self.machine.node_of(vcpu.cpu),
            held: view.holding.cpus.contains(vcpu.cpu),
            gate: seen.gates.get(&vcpu.id).map_or(GateState::Unknown, |gate| gate_state(*gate)),
            run_time_us: seen.run_times.get(&vcpu.id).copied().map(micros),
        };
        entry.plan.replica.vcpus.iter().map(info).collect()
    }

    fn agent(&self, running: Option<&Running>) -> AgentInfo {
        let Some(running) = running else {
            let since_unix_ms = unix_ms(self.clock.now());
            return AgentInfo { state: AgentState::Awaited, since_unix_ms, guest: None, last_error: None };
        };
        let status = running.link.status();
        AgentInfo {
            state: agent_state(status.state),
            since_unix_ms: unix_ms(status.since),
            guest: status.facts.as_deref().map(guest_info),
            last_error: status.last_error,
        }
    }

    fn report(&self, entry: &Entry, running: &Running) -> Option<api::GuestReport> {
        let reports = running.reports();
        let (last, at) = reports.last.as_ref()?;
        let age = self.clock.now().saturating_sub(*at);
        Some(guest_report(last, reports.before.as_deref(), age, &entry.plan.replica))
    }
}

/// What is wrong by the engine's own account.
fn own_violations(engine: &Engine, now: Duration) -> Vec<api::ViolationInfo> {
    let ledger = check_ledger(engine.host(), engine.ledger());
    ledger.iter().chain(&engine.check_deadlines(now)).map(violation).collect()
}

async fn look(running: &Running, entry: &Entry) -> Seen {
    let vm = &running.vm;
    let vcpus: Vec<VcpuId> = entry.plan.replica.vcpus.iter().map(|vcpu| vcpu.id).collect();
    let (gates, run_times, memory, resident) = tokio::join!(
        timeout(LOOK, vm.gates()),
        timeout(LOOK, vm.run_times(&vcpus)),
        timeout(LOOK, sizes(entry, running)),
        timeout(LOOK, vm.memory_by_node()),
    );
    Seen {
        gates: gates.ok().and_then(Result::ok).unwrap_or_default(),
        run_times: run_times.ok().and_then(Result::ok).unwrap_or_default(),
        memory: memory.unwrap_or_default(),
        resident: resident.ok().and_then(Result::ok),
    }
}

fn memory(entry: &Entry, view: &VmView, seen: &Seen) -> Vec<VmMemory> {
    let mut memory: Vec<VmMemory> = entry
        .plan
        .memory
        .iter()
        .map(|node| {
            let last_known = view.plugged.get(&node.host).copied().unwrap_or_default();
            let (requested, plugged) = match seen.memory.get(&node.host) {
                Some(state) => (state.requested, state.size),
                None => (last_known.requested, last_known.size),
            };
            VmMemory {
                node: node.host,
                boot: node.boot,
                held: view.holding.on(node.host),
                requested,
                plugged,
                max: node.maximum,
                resident: seen.resident.as_ref().map(|nodes| nodes.get(&node.host).copied().unwrap_or_default()),
            }
        })
        .collect();
    memory.sort_by_key(|memory| memory.node);
    memory
}

/// What is told of a VM whose guest is in this state; nothing of one that has ended, which is told otherwise.
pub(super) fn vm_state(state: RunState) -> Option<VmState> {
    Some(match state {
        RunState::Running => VmState::Running,
        RunState::Paused => VmState::Paused,
        RunState::Migrating => VmState::Migrating,
        RunState::Migrated => VmState::Migrated,
        RunState::Stopped => VmState::Halted,
        RunState::Ended => return None,
    })
}

fn summary(view: &VmView, cores: u32, entry: Option<&Entry>) -> VmSummary {
    let running = entry.and_then(Entry::running);
    let stopping = running.as_ref().is_some_and(|running| running.is_stopping());
    VmSummary {
        name: view.spec.name.clone(),
        state: match view.life {
            _ if stopping => VmState::Stopping,
            Life::Starting => VmState::Starting,
            Life::Running => {
                running.as_ref().and_then(|running| vm_state(running.guest.get()?)).unwrap_or(VmState::Running)
            }
        },
        agent: match running.map_or(LinkState::Awaited, |running| running.link.status().state) {
            // What it should do is known a moment after it connects.
            LinkState::Connected if view.agent => AgentState::Connected,
            _ if view.spec.agentless => AgentState::None,
            LinkState::Connected => AgentState::Awaited,
            state => agent_state(state),
        },
        holding: resources(&view.holding),
        cores,
        guarantee: demand(&view.spec.guarantee),
        settled: view.settled,
        lends_memory: view.lends_memory,
        takes_memory: view.takes_memory,
    }
}

fn agent_state(state: LinkState) -> AgentState {
    match state {
        LinkState::Awaited => AgentState::Awaited,
        LinkState::Connected => AgentState::Connected,
        LinkState::Lost => AgentState::Lost,
    }
}
