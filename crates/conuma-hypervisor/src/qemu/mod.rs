//! The QEMU back end.

mod command;
mod known;
mod probe;
mod process;
mod vm;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use conuma_binding::BindingPlan;
use conuma_linux::cgroup::Limit;
use conuma_linux::procfs::{Pid, ProcFs};
use conuma_topology::{Bytes, CpuId, CpuSet, VcpuId};
use serde_json::json;

pub use command::{command_line, shell_text};

use crate::error::HypervisorError;
use crate::facts::HypervisorFacts;
use crate::gates::{GateRoot, Gates};
use crate::qmp::{Qmp, QmpError};
use crate::vm::{Hypervisor, Vm};
use known::Stamp;
use process::{LaunchError, Process, remove_file};
use vm::QemuVm;

/// Until QEMU listens: it loads a kernel and an initial file system first.
const START_BUDGET: Duration = Duration::from_secs(60);
/// Until QEMU greets a daemon that comes back.
const ATTACH_BUDGET: Duration = Duration::from_secs(10);
/// Until a QEMU that failed to start is gone.
const CLEANUP_BUDGET: Duration = Duration::from_secs(10);

/// QEMU on this host.
#[derive(Debug)]
pub struct Qemu {
    program: PathBuf,
    facts: HypervisorFacts,
    gates: Arc<dyn GateRoot>,
    proc: ProcFs,
}

impl Qemu {
    /// Asks `program` what it can do. VMs get their gates from `gates`; `proc` reads threads and memory maps; `scratch` is
    /// a directory for the files of the question, and for its answer.
    pub async fn probe(
        program: impl Into<PathBuf>,
        gates: Arc<dyn GateRoot>,
        proc: ProcFs,
        scratch: &Path,
    ) -> Result<Self, HypervisorError> {
        let program = program.into();
        let stamp = Stamp::of(&program);
        let mut facts = match stamp.as_ref().and_then(|stamp| stamp.recall(scratch)) {
            Some(facts) => facts,
            None => {
                let facts = probe::probe(&program, scratch).await?;
                if let Some(stamp) = stamp {
                    stamp.keep(&facts, scratch);
                }
                facts
            }
        };
        facts.topoext = proc.cpu_has("topoext").map_err(|error| HypervisorError::Program {
            program: program.clone(),
            reason: format!("it is not known which CPU its guests will see: {error}"),
        })?;
        tracing::info!(version = facts.version, program = %program.display(), "hypervisor");
        Ok(Self { program, facts, gates, proc })
    }

    fn possible(&self, plan: &BindingPlan) -> Result<(), HypervisorError> {
        let refused = |reason: &str| HypervisorError::Refused { vm: plan.name.clone(), reason: reason.into() };
        if plan.cid.is_some() && !self.facts.vsock {
            return Err(refused("this QEMU has no vhost-vsock device"));
        }
        let lacking = !self.facts.vfio || !self.facts.pxb_pcie;
        if lacking && !plan.bridges.is_empty() {
            return Err(refused("this QEMU has no vfio-pci or no pxb-pcie device, so none can be passed through"));
        }
        Ok(())
    }

    async fn launch(&self, plan: &BindingPlan, gates: &Arc<dyn Gates>) -> Result<Arc<dyn Vm>, HypervisorError> {
        let args = command_line(plan, &self.facts);
        let entrance = gates.entrance();
        let files = &plan.files;
        let (process, qmp) =
            Process::launch(&self.program, &args, entrance.as_deref(), &files.qmp_socket, &files.log, START_BUDGET)
                .await
                .map_err(|error| launch_failed(plan, error))?;
        let made = QemuVm::new(plan, process, qmp, gates.clone(), self.proc.clone()).await;
        let vm = made.map_err(|(process, error)| {
            process.kill();
            error
        })?;
        Ok(Arc::new(vm))
    }

    /// Removes what a VM left behind that does not run.
    async fn clean_up(&self, plan: &BindingPlan, gates: &dyn Gates) -> Result<(), HypervisorError> {
        if gates.exist() {
            // Kernels without cgroup.kill: whatever is there will have to be found by removal failing.
            let _ = gates.kill();
            vm::remove_gates(&plan.name, gates, CLEANUP_BUDGET).await?;
        }
        for path in [&plan.files.qmp_socket, &plan.files.pid_file] {
            remove_file(path).map_err(|source| HypervisorError::File {
                vm: plan.name.clone(),
                what: "remove",
                path: path.clone(),
                source,
            })?;
        }
        Ok(())
    }
}

#[async_trait]
impl Hypervisor for Qemu {
    fn facts(&self) -> &HypervisorFacts {
        &self.facts
    }

    async fn start(&self, plan: &BindingPlan, open: &CpuSet) -> Result<Arc<dyn Vm>, HypervisorError> {
        self.possible(plan)?;
        let gates = self.gates.of(&plan.name);
        match Qmp::connect(&plan.files.qmp_socket, ATTACH_BUDGET).await {
            Err(QmpError::Connect { .. }) => self.clean_up(plan, gates.as_ref()).await?,
            _ => return Err(HypervisorError::Exists { vm: plan.name.clone() }),
        }
        let failed = |source| HypervisorError::Gate { vm: plan.name.clone(), source };
        let started = match gates.create(&vcpu_cpus(plan), open, &plan.emulator_cpus).map_err(failed) {
            Ok(()) => match gates.set_memory_max(Limit::At(ceiling(plan))).map_err(failed) {
                Ok(()) => self.launch(plan, &gates).await,
                Err(error) => Err(error),
            },
            Err(error) => Err(error),
        };
        if started.is_err()
            && let Err(error) = self.clean_up(plan, gates.as_ref()).await
        {
            tracing::warn!(vm = %plan.name, error = &error as &dyn std::error::Error, "leftovers of a failed start");
        }
        started
    }

    async fn attach(&self, plan: &BindingPlan) -> Result<Option<Arc<dyn Vm>>, HypervisorError> {
        let gates = self.gates.of(&plan.name);
        let failed = |source| HypervisorError::Qmp { vm: plan.name.clone(), source };
        let refused = |reason: String| HypervisorError::Refused { vm: plan.name.clone(), reason };
        let in_use = || {
            let failed = |source| HypervisorError::Gate { vm: plan.name.clone(), source };
            Ok::<_, HypervisorError>(gates.exist() && gates.in_use().map_err(failed)?)
        };
        let qmp = match Qmp::connect(&plan.files.qmp_socket, ATTACH_BUDGET).await {
            Ok(qmp) => qmp,
            // A monitor that is not there, or takes nobody, says nothing about the process.
            Err(error @ QmpError::Connect { .. }) if in_use()? => {
                let reason = error;
                return Err(refused(format!("its processes run, but its monitor cannot be reached: {reason}")));
            }
            Err(QmpError::Connect { .. }) => {
                self.clean_up(plan, gates.as_ref()).await?;
                return Ok(None);
            }
            Err(error) => return Err(failed(error)),
        };
        let name = qmp.call("query-name", json!({}), ATTACH_BUDGET).await.map_err(failed)?;
        if name["name"] != plan.name.as_str() {
            return Err(refused(format!("its monitor belongs to a VM that calls itself {}", name["name"])));
        }
        let pid = qmp.peer().ok_or_else(|| refused("the kernel does not tell whose its monitor is".into()))?;
        if !gates.exist() {
            tracing::warn!(vm = %plan.name, pid, "it runs, but not in a cgroup of ours: it was being released");
            return Ok(None);
        }
        let process =
            Process::of(Pid(pid)).map_err(|source| refused(format!("cannot watch process {pid}: {source}")))?;
        let made = QemuVm::new(plan, process, qmp, gates, self.proc.clone()).await;
        Ok(Some(Arc::new(made.map_err(|(_, error)| error)?)))
    }
}

fn launch_failed(plan: &BindingPlan, error: LaunchError) -> HypervisorError {
    let vm = plan.name.clone();
    match error {
        LaunchError::Io { what, path, source } => HypervisorError::File { vm, what, path, source },
        LaunchError::Ended(log) => {
            let log = hint(&log).map_or(log.clone(), |hint| format!("{log} (hint: {hint})"));
            HypervisorError::EndedEarly { vm, log }
        }
        LaunchError::Monitor(source) => HypervisorError::Qmp { vm, source },
    }
}

/// What to do about QEMU's commoner complaints.
fn hint(log: &str) -> Option<&'static str> {
    let hints = [
        ("vhost-vsock: unable to set guest cid", "another VM has this vsock CID: choose another `cid`"),
        ("vhost-vsock", "the host's vhost_vsock module must be loaded: modprobe vhost_vsock"),
        ("KVM", "KVM must be enabled in the firmware, its module loaded and /dev/kvm open to this user"),
        ("vfio", "bind the device and all of its IOMMU group to vfio-pci"),
        ("cgroup.procs", "the VM's cgroup does not take processes: is its parent delegated?"),
        ("mbind", "the host's node must be online and have memory"),
    ];
    hints.into_iter().find(|(complaint, _)| log.contains(complaint)).map(|(_, hint)| hint)
}

fn vcpu_cpus(plan: &BindingPlan) -> BTreeMap<VcpuId, CpuId> {
    plan.replica.vcpus.iter().map(|vcpu| (vcpu.id, vcpu.cpu)).collect()
}

/// The most memory the VM's process could need: everything its guest may ever have, and QEMU itself.
pub(super) fn ceiling(plan: &BindingPlan) -> Bytes {
    let all: Bytes = plan.memory.iter().map(|node| node.boot + node.maximum).sum();
    with_overhead(plan.envelope_memory.map_or(all, |limit| all.min(limit)))
}

/// Guest memory and what QEMU and KVM need for it: page tables and per-page records (up to 0.5 %, here twice that), QEMU's
/// own heap, and buffers of its devices.
pub(super) fn with_overhead(guest: Bytes) -> Bytes {
    // Cgroups count pages.
    (guest + Bytes(guest.0 / 100) + Bytes::mib(512)).round_down(Bytes::mib(1))
}
