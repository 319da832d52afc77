//! What happens on the host.

use conuma_topology::{Bytes, CpuId, CpuSet, VmName};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::decision::DecisionState;
use super::host::ViolationInfo;
use super::policy::PolicyMode;
use super::resources::Holder;
use super::transfer::{Plan, Stage, Transfer};
use super::vm::{GateState, VmState};

/// Something that happened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Event {
    /// Grows by one with each event of this daemon's life.
    pub sequence: u64,
    /// When, milliseconds since 1970.
    pub unix_ms: u64,
    /// What.
    pub what: EventKind,
}

/// What happened. A client passes over kinds that it does not know.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum EventKind {
    /// A VM was admitted; QEMU is being started.
    VmStarting {
        /// The VM.
        #[schema(value_type = String)]
        vm: VmName,
    },
    /// QEMU runs the guest.
    VmRunning {
        /// The VM.
        #[schema(value_type = String)]
        vm: VmName,
    },
    /// QEMU ended, or never came to life.
    VmGone {
        /// The VM.
        #[schema(value_type = String)]
        vm: VmName,
        /// Why.
        why: String,
    },
    /// The guest was reset.
    VmReset {
        /// The VM.
        #[schema(value_type = String)]
        vm: VmName,
    },
    /// Whether the guest runs has changed: it was paused, goes on, is being migrated, was migrated away, cannot go on.
    VmChanged {
        /// The VM.
        #[schema(value_type = String)]
        vm: VmName,
        /// What it is now.
        state: VmState,
    },
    /// The agent answers.
    AgentConnected {
        /// The VM.
        #[schema(value_type = String)]
        vm: VmName,
    },
    /// The agent does not answer any more.
    AgentLost {
        /// The VM.
        #[schema(value_type = String)]
        vm: VmName,
        /// Why.
        why: String,
    },
    /// Guest, gates and QEMU all follow the ledger.
    VmSettled {
        /// The VM.
        #[schema(value_type = String)]
        vm: VmName,
    },
    /// The VM no longer lends memory, since it did not answer.
    VmSilent {
        /// The VM.
        #[schema(value_type = String)]
        vm: VmName,
    },
    /// The VM was found to use more memory than it holds, and gets none; or does so no longer.
    VmTrespasses {
        /// The VM.
        #[schema(value_type = String)]
        vm: VmName,
        /// Whether it does.
        trespasses: bool,
    },
    /// CPUs of the host went offline, or came back: vCPUs of those that are offline are stopped.
    HostCpus {
        /// Those that are offline now.
        #[schema(value_type = String)]
        offline: CpuSet,
    },
    /// Someone else had changed what Conuma sets for this VM; it was set right.
    Repaired {
        /// The VM.
        #[schema(value_type = String)]
        vm: VmName,
        /// What was found.
        what: Vec<String>,
    },
    /// A gated vCPU kept running and was braked harder, or left off and was braked less.
    GateChanged {
        /// The VM.
        #[schema(value_type = String)]
        vm: VmName,
        /// The host CPU.
        #[schema(value_type = u32)]
        cpu: CpuId,
        /// The brake now.
        gate: GateState,
    },
    /// A transfer waits for another of the same VMs.
    TransferWaiting {
        /// Which.
        transfer: u64,
    },
    /// A transfer began.
    TransferBegan {
        /// Which.
        transfer: u64,
        /// What it will do.
        plan: Plan,
    },
    /// A move of a transfer reached a stage.
    TransferStage {
        /// Which.
        transfer: u64,
        /// Its move, counted from 0.
        leg: u32,
        /// Who gives.
        from: Option<Holder>,
        /// Who gets.
        to: Option<Holder>,
        /// The stage.
        stage: Stage,
    },
    /// A transfer ended.
    TransferEnded(Box<Transfer>),
    /// Another policy holds, or another mode.
    PolicyApplied {
        /// The mode now.
        mode: PolicyMode,
        /// What changed, in the words of policy files.
        changes: Vec<String>,
    },
    /// It was decided what should move; in mode `auto` its transfers begin.
    DecisionMade {
        /// Its number in the history; `None` if the history could not keep it.
        id: Option<u64>,
        /// In one line.
        summary: String,
    },
    /// All that came of a decision is known.
    DecisionEnded {
        /// Its number in the history; `None` if the history could not keep it.
        id: Option<u64>,
        /// How it ended.
        state: DecisionState,
        /// In one line.
        summary: String,
    },
    /// The policy leaves this VM as people set it.
    VmPinned {
        /// The VM.
        #[schema(value_type = String)]
        vm: VmName,
        /// Until when, milliseconds since 1970; `None`: until it is unpinned.
        until_unix_ms: Option<u64>,
    },
    /// The policy may move this VM's cores and memory again.
    VmUnpinned {
        /// The VM.
        #[schema(value_type = String)]
        vm: VmName,
    },
    /// A VM needed what it is guaranteed and did not get it in time.
    GuaranteeLate {
        /// The VM.
        #[schema(value_type = String)]
        vm: VmName,
        /// How long it has waited, in milliseconds.
        waited_ms: u64,
        /// Cores that it still lacks.
        cores: u32,
        /// Memory that it still lacks, in bytes, on all nodes together.
        #[serde(default)]
        #[schema(value_type = u64)]
        memory: Bytes,
    },
    /// An invariant does not hold.
    Violated(ViolationInfo),
    /// The reader was too slow: this many events are missing here.
    Missed {
        /// How many.
        events: u64,
    },
}

impl EventKind {
    /// All kinds, as on the wire.
    pub const NAMES: [&'static str; 25] = [
        "vm-starting",
        "vm-running",
        "vm-gone",
        "vm-reset",
        "vm-changed",
        "agent-connected",
        "agent-lost",
        "vm-settled",
        "vm-silent",
        "vm-trespasses",
        "host-cpus",
        "repaired",
        "gate-changed",
        "transfer-waiting",
        "transfer-began",
        "transfer-stage",
        "transfer-ended",
        "policy-applied",
        "decision-made",
        "decision-ended",
        "vm-pinned",
        "vm-unpinned",
        "guarantee-late",
        "violated",
        "missed",
    ];

    /// The kind in one word, as on the wire.
    pub fn name(&self) -> &'static str {
        match self {
            Self::VmStarting { .. } => "vm-starting",
            Self::VmRunning { .. } => "vm-running",
            Self::VmGone { .. } => "vm-gone",
            Self::VmReset { .. } => "vm-reset",
            Self::VmChanged { .. } => "vm-changed",
            Self::AgentConnected { .. } => "agent-connected",
            Self::AgentLost { .. } => "agent-lost",
            Self::VmSettled { .. } => "vm-settled",
            Self::VmSilent { .. } => "vm-silent",
            Self::VmTrespasses { .. } => "vm-trespasses",
            Self::HostCpus { .. } => "host-cpus",
            Self::Repaired { .. } => "repaired",
            Self::GateChanged { .. } => "gate-changed",
            Self::TransferWaiting { .. } => "transfer-waiting",
            Self::TransferBegan { .. } => "transfer-began",
            Self::TransferStage { .. } => "transfer-stage",
            Self::TransferEnded(_) => "transfer-ended",
            Self::PolicyApplied { .. } => "policy-applied",
            Self::DecisionMade { .. } => "decision-made",
            Self::DecisionEnded { .. } => "decision-ended",
            Self::VmPinned { .. } => "vm-pinned",
            Self::VmUnpinned { .. } => "vm-unpinned",
            Self::GuaranteeLate { .. } => "guarantee-late",
            Self::Violated(_) => "violated",
            Self::Missed { .. } => "missed",
        }
    }

    /// The VM it is about, if it is about one.
    pub fn vm(&self) -> Option<&VmName> {
        match self {
            Self::VmStarting { vm }
            | Self::VmRunning { vm }
            | Self::VmGone { vm, .. }
            | Self::VmReset { vm }
            | Self::VmChanged { vm, .. }
            | Self::AgentConnected { vm }
            | Self::AgentLost { vm, .. }
            | Self::VmSettled { vm }
            | Self::VmSilent { vm }
            | Self::VmTrespasses { vm, .. }
            | Self::Repaired { vm, .. }
            | Self::VmPinned { vm, .. }
            | Self::VmUnpinned { vm }
            | Self::GuaranteeLate { vm, .. }
            | Self::GateChanged { vm, .. } => Some(vm),
            _ => None,
        }
    }

    /// The transfer it is about, if it is about one.
    pub fn transfer(&self) -> Option<u64> {
        match self {
            Self::TransferWaiting { transfer }
            | Self::TransferBegan { transfer, .. }
            | Self::TransferStage { transfer, .. } => Some(*transfer),
            Self::TransferEnded(transfer) => Some(transfer.id),
            _ => None,
        }
    }
}
