//! Events, a line each.

use conuma_api::{Event, EventKind, GateState, Holder};

use super::{amount, decision, transfer, vm};
use crate::style::Style;

/// When, what kind, and what happened.
pub fn line(event: &Event, style: Style) -> String {
    let time = style.dim(&amount::clock(event.unix_ms));
    let kind = format!("{:<16}", event.what.name());
    format!("{time}  {}  {}", style.bold(&kind), what(&event.what, event.unix_ms, style).trim_end())
}

fn what(kind: &EventKind, unix_ms: u64, style: Style) -> String {
    let holder = |holder: &Option<Holder>| holder.as_ref().map_or("?".into(), ToString::to_string);
    match kind {
        EventKind::VmStarting { vm } | EventKind::VmRunning { vm } | EventKind::VmReset { vm } => vm.to_string(),
        EventKind::VmChanged { vm, state } => format!("{vm}: {}", vm::state(*state, style)),
        EventKind::VmGone { vm, why } => format!("{vm}: {why}"),
        EventKind::AgentConnected { vm } => format!("{vm}: the agent answers"),
        EventKind::AgentLost { vm, why } => style.warn(&format!("{vm}: {why}")),
        EventKind::VmSettled { vm } => format!("{vm}: guest, gates and QEMU follow the ledger"),
        EventKind::VmSilent { vm } => style.warn(&format!("{vm}: did not answer, its memory cannot move")),
        EventKind::VmTrespasses { vm, trespasses: true } => {
            style.warn(&format!("{vm}: uses more memory than it holds, and gets none"))
        }
        EventKind::VmTrespasses { vm, trespasses: false } => format!("{vm}: uses no more memory than it holds"),
        EventKind::HostCpus { offline } if offline.is_empty() => "all CPUs of the host are online".into(),
        EventKind::HostCpus { offline } => {
            style.warn(&format!("CPUs {offline} of the host are offline, their vCPUs are stopped"))
        }
        EventKind::Repaired { vm, what } => style.warn(&format!("{vm}: set right: {}", what.join("; "))),
        EventKind::GateChanged { vm, cpu, gate } => format!("{vm}: CPU {cpu} {}", gate_name(*gate)),
        EventKind::TransferWaiting { transfer } => format!("transfer {transfer} waits for another"),
        EventKind::TransferBegan { transfer, plan } => {
            let moves = plan.moves.iter().map(|m| format!("{} {} → {}", amount::resources(&m.what), m.from, m.to));
            format!("transfer {transfer}: {}", moves.collect::<Vec<_>>().join("; "))
        }
        EventKind::TransferStage { transfer, leg, from, to, stage } => {
            format!("transfer {transfer}, move {}: {stage} ({} → {})", leg + 1, holder(from), holder(to))
        }
        EventKind::TransferEnded(ended) => transfer::result(ended, style).lines().next().unwrap_or_default().to_owned(),
        EventKind::PolicyApplied { mode, changes } => {
            let changes = if changes.is_empty() { "as before".into() } else { changes.join("; ") };
            format!("mode {mode}: {changes}")
        }
        EventKind::DecisionMade { id, summary } => format!("{}{summary}", decision_number(*id)),
        EventKind::DecisionEnded { id, state, summary } => {
            format!("{}{}: {summary}", decision_number(*id), decision::state(*state, style))
        }
        EventKind::VmPinned { vm, until_unix_ms: Some(until) } => {
            format!("{vm}: the policy leaves it as it is for {}", amount::until(*until, unix_ms))
        }
        EventKind::VmPinned { vm, until_unix_ms: None } => {
            format!("{vm}: the policy leaves it as it is until it is unpinned")
        }
        EventKind::VmUnpinned { vm } => format!("{vm}: the policy may move its cores and memory"),
        EventKind::GuaranteeLate { vm, waited_ms, cores, memory } => {
            let cores = (*cores > 0).then(|| amount::plural((*cores).into(), "core"));
            let memory = (!memory.is_zero()).then(|| format!("{memory} of memory"));
            let lacks: Vec<String> = cores.into_iter().chain(memory).collect();
            let waited = amount::micros(waited_ms.saturating_mul(1000));
            style.bad(&format!("{vm}: has waited {waited} for {} of its guarantee", lacks.join(" and ")))
        }
        EventKind::Violated(violation) => style.bad(&violation.message),
        EventKind::Missed { events } => style.warn(&format!("{} missed here", amount::plural(*events, "event"))),
    }
}

fn decision_number(id: Option<u64>) -> String {
    id.map(|id| format!("decision {id}: ")).unwrap_or_default()
}

fn gate_name(gate: GateState) -> &'static str {
    match gate {
        GateState::Open => "may run",
        GateState::Soft => "runs only when nothing else wants to",
        GateState::Firm => "is held back firmly",
        GateState::Unknown => "unknown gate",
    }
}
