//! VMs: the list, and one in full.

use std::collections::BTreeMap;

use conuma_api::{AgentState, GateState, GuestReport, PressureInfo, VcpuInfo, VmDetail, VmState, VmSummary};
use conuma_topology::{Bytes, CpuSet, NodeId};

use super::amount;
use crate::style::Style;
use crate::table::Table;

/// One line a VM.
pub fn list(vms: &[VmSummary], style: Style) -> String {
    if vms.is_empty() {
        return "no VM is running; `conuma start VM.toml` starts one\n".into();
    }
    let mut table = Table::new(&["name", "state", "agent", ">cores", "CPUs", ">memory", "guarantee", ""]);
    for vm in vms {
        table.row([
            style.bold(vm.name.as_str()),
            state(vm.state, style),
            agent(vm.agent, style),
            vm.cores.to_string(),
            vm.holding.cpus.to_string(),
            vm.holding.total_memory().to_string(),
            amount::demand(&vm.guarantee, "nothing"),
            remarks(vm, style),
        ]);
    }
    table.render(style)
}

/// One VM: what it holds, its loans, node by node what ledger, QEMU, host and guest say.
/// `now_unix_ms` is when it is looked at.
pub fn show(vm: &VmDetail, now_unix_ms: u64, style: Style) -> String {
    let mut text = head(vm, now_unix_ms, style);
    let memory = memory(vm, style);
    if !memory.is_empty() {
        text.push_str(&format!("\n{}\n{memory}", style.bold("Memory by host node")));
    }
    let cpus = cpus(vm, style);
    if !cpus.is_empty() {
        text.push_str(&format!("\n{}\n{cpus}", style.bold("CPUs by host node")));
    }
    text
}

fn head(vm: &VmDetail, now_unix_ms: u64, style: Style) -> String {
    let summary = &vm.summary;
    let mut lines = vec![
        ("state", join(&[state(summary.state, style), remarks(summary, style)])),
        ("holding", format!("{}: {}", amount::cores(summary.cores as usize), amount::resources(&summary.holding))),
        ("guarantee", amount::demand(&summary.guarantee, "nothing")),
        ("limit", amount::demand(&vm.limit, "the host less its reserve")),
        ("weight", vm.weight.to_string()),
    ];
    for loan in &vm.loans {
        if loan.lender == summary.name {
            lines.push(("lent", amount::lent(loan)));
        } else {
            lines.push(("borrowed", format!("{} from {}", amount::resources(&loan.what), loan.lender)));
        }
    }
    if let Some(process) = &vm.process {
        let cid = process.cid.map(|cid| format!(", vsock CID {cid}")).unwrap_or_default();
        lines.push(("process", format!("QEMU, pid {}{cid}", process.pid)));
    }
    let since = amount::long(now_unix_ms.saturating_sub(vm.agent.since_unix_ms) / 1000);
    let error = vm.agent.last_error.as_ref().map(|error| style.warn(error)).unwrap_or_default();
    lines.push(("agent", join(&[format!("{} for {since}", agent(vm.agent.state, style)), error])));
    if let Some(guest) = &vm.agent.guest {
        lines.push((
            "guest",
            format!(
                "Linux {}, CPUs {}, {}, agent {}",
                guest.kernel,
                guest.cpus,
                amount::plural(guest.nodes.into(), "node"),
                guest.agent_version
            ),
        ));
        lines.extend(guest.notes.iter().map(|note| ("", style.warn(note))));
    }
    if let Some(report) = &vm.report {
        lines.push(("load", load(report)));
    }
    let name = style.bold(summary.name.as_str());
    let lines = lines.into_iter().map(|(key, value)| format!("  {}{value}\n", style.dim(&format!("{key:<11}"))));
    std::iter::once(format!("{name}\n")).chain(lines).collect()
}

fn load(report: &GuestReport) -> String {
    let pressure = |what: &str, pressure: Option<PressureInfo>| {
        pressure.map(|p| format!("{what} pressure {}", amount::share(p.avg10))).unwrap_or_default()
    };
    join(&[
        format!("{} runnable, {} blocked", report.runnable, report.blocked),
        pressure("CPU", report.cpu_pressure),
        pressure("memory", report.memory_pressure),
        pressure("I/O", report.io_pressure),
        format!("{} ago", amount::micros(report.age_ms * 1000)),
    ])
}

/// Ledger, QEMU, host and guest side by side.
fn memory(vm: &VmDetail, style: Style) -> String {
    let guest: BTreeMap<NodeId, _> =
        vm.report.iter().flat_map(|report| &report.nodes).map(|node| (node.node, node)).collect();
    let mut table = Table::new(&[
        "node",
        ">held",
        ">boot",
        ">asked",
        ">plugged",
        ">at most",
        ">on host",
        ">guest total",
        ">available",
        ">movable",
    ])
    .indented(2);
    let known = |bytes: Option<Bytes>| bytes.map_or("-".into(), |bytes| bytes.to_string());
    for node in &vm.memory {
        let seen = guest.get(&node.node);
        let plugged = node.plugged.to_string();
        table.row([
            node.node.to_string(),
            node.held.to_string(),
            node.boot.to_string(),
            node.requested.to_string(),
            if node.plugged == node.requested { plugged } else { style.warn(&plugged) },
            node.max.to_string(),
            known(node.resident),
            known(seen.map(|guest| guest.total)),
            known(seen.map(|guest| guest.available)),
            known(seen.map(|guest| guest.movable)),
        ]);
    }
    if table.is_empty() { String::new() } else { table.render(style) }
}

#[derive(Default)]
struct NodeCpus {
    held: CpuSet,
    open: CpuSet,
    soft: CpuSet,
    firm: CpuSet,
    run_time_us: Option<u64>,
    busy: Vec<u32>,
}

fn cpus(vm: &VmDetail, style: Style) -> String {
    let busy: BTreeMap<_, _> = vm.report.iter().flat_map(|r| &r.cpus).map(|cpu| (cpu.cpu, cpu.busy_share)).collect();
    let mut nodes: BTreeMap<Option<NodeId>, NodeCpus> = BTreeMap::new();
    for vcpu in &vm.vcpus {
        let node = nodes.entry(vcpu.node).or_default();
        node.count(vcpu);
        node.busy.extend(busy.get(&vcpu.cpu).copied().flatten().filter(|_| vcpu.held));
    }
    let mut table = Table::new(&["node", "held", "gate open", "soft", "firm", ">run time", ">guest busy"]).indented(2);
    for (node, cpus) in &nodes {
        let set = |set: &CpuSet| if set.is_empty() { "-".to_owned() } else { set.to_string() };
        let open = set(&cpus.open);
        table.row([
            node.map_or("?".into(), |node| node.to_string()),
            set(&cpus.held),
            // A gate that is open without a holding, or closed in spite of one, deserves a look.
            if cpus.open == cpus.held { open } else { style.warn(&open) },
            set(&cpus.soft),
            set(&cpus.firm),
            cpus.run_time_us.map_or("-".into(), amount::micros),
            mean(&cpus.busy).map_or("-".into(), amount::share),
        ]);
    }
    if table.is_empty() { String::new() } else { table.render(style) }
}

impl NodeCpus {
    fn count(&mut self, vcpu: &VcpuInfo) {
        if vcpu.held {
            self.held.insert(vcpu.cpu);
        }
        match vcpu.gate {
            GateState::Open => _ = self.open.insert(vcpu.cpu),
            GateState::Soft => _ = self.soft.insert(vcpu.cpu),
            GateState::Firm => _ = self.firm.insert(vcpu.cpu),
            GateState::Unknown => {}
        }
        if let Some(us) = vcpu.run_time_us {
            *self.run_time_us.get_or_insert(0) += us;
        }
    }
}

fn mean(values: &[u32]) -> Option<u32> {
    let sum: u64 = values.iter().map(|value| u64::from(*value)).sum();
    u32::try_from(sum.checked_div(values.len() as u64)?).ok()
}

/// What a VM is doing, in a word or two.
pub(super) fn state(state: VmState, style: Style) -> String {
    match state {
        VmState::Starting => style.warn("starting"),
        VmState::Running => style.good("running"),
        VmState::Paused => style.warn("paused"),
        VmState::Migrating => style.warn("migrating"),
        VmState::Migrated => style.bad("migrated away"),
        VmState::Halted => style.bad("halted"),
        VmState::Stopping => style.warn("stopping"),
        VmState::Unknown => "unknown".into(),
    }
}

fn agent(agent: AgentState, style: Style) -> String {
    match agent {
        AgentState::Connected => style.good("connected"),
        AgentState::Awaited => style.warn("awaited"),
        AgentState::Lost => style.bad("lost"),
        AgentState::None => "none".into(),
        AgentState::Unknown => "unknown".into(),
    }
}

fn remarks(vm: &VmSummary, style: Style) -> String {
    let unsettled = if vm.settled { "" } else { "does not follow the ledger yet" };
    let fixed = matches!(vm.state, VmState::Migrating | VmState::Migrated);
    let silent = if vm.lends_memory || fixed { "" } else { "its memory cannot move: the guest did not answer" };
    let trespasses =
        if vm.takes_memory || !vm.lends_memory { "" } else { "it uses more memory than it holds, and gets none" };
    let stays = match vm.state {
        VmState::Migrated => "its guest runs elsewhere; its memory stays here until it is stopped",
        VmState::Halted => "its guest cannot go on; `conuma stop --force` ends it",
        _ => "",
    };
    join(&[style.bad(stays), style.warn(unsettled), style.warn(silent), style.bad(trespasses)])
}

fn join(parts: &[String]) -> String {
    parts.iter().filter(|part| !part.is_empty()).cloned().collect::<Vec<_>>().join("; ")
}
