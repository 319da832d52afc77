//! What guests and the host say of each VM's load, as the policy reads it: in host ids, by the host's clock.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use conuma_agent_proto::{CpuReport, NodeReport, Reply, Report, RequestBody};
use conuma_balancing::Event;
use conuma_binding::{Agent, Replica};
use conuma_policy::{CpuSample, NodeSample, Sample};
use conuma_topology::{CpuId, GuestCpuSet, NodeId, VcpuId, VmName};
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use crate::agent::LinkState;
use crate::vms::{Entry, Room, Running};
use crate::wire::busy;

/// A guest whose clock seems to have gone back by less than this has only been heard in another order than it spoke.
const DISORDER: Duration = Duration::from_secs(5);

/// Collects samples of all VMs. Each report is given once, and never an older one after a newer one.
#[derive(Default)]
pub(super) struct Sampler {
    given: BTreeMap<VmName, Given>,
    asking: BTreeMap<VmName, JoinHandle<()>>,
    /// What the host saw of VMs whose guests do not report.
    seen: Arc<Mutex<BTreeMap<VmName, Sample>>>,
    asked: Arc<Asked>,
}

/// What was given of a VM last.
#[derive(Clone, Copy)]
struct Given {
    at: Duration,
    uptime: Duration,
}

/// Questions that are out.
#[derive(Default)]
pub(super) struct Asked {
    out: AtomicUsize,
    /// All of them were answered, or nobody waits for them any more.
    pub(super) done: Notify,
}

impl Sampler {
    /// Questions that are out.
    pub(super) fn asked(&self) -> Arc<Asked> {
        self.asked.clone()
    }

    /// Whether an answer is still awaited.
    pub(super) fn waits(&self) -> bool {
        self.asked.out.load(Ordering::Acquire) > 0
    }

    /// Asks all guests how they do, and looks from outside at those that have nobody to ask. A guest that has not answered is
    /// not asked again.
    pub(super) fn ask(&mut self, room: &Arc<Room>) {
        self.asking.retain(|_, asking| !asking.is_finished());
        let entries: Vec<Arc<Entry>> = room.entries().values().cloned().collect();
        for entry in entries {
            let name = entry.plan.name.clone();
            let Some(running) = entry.running() else { continue };
            let connected = running.link.status().state == LinkState::Connected;
            if self.asking.contains_key(&name) || (!connected && entry.spec.agent != Agent::None) {
                continue;
            }
            self.asked.out.fetch_add(1, Ordering::AcqRel);
            let out = Out(self.asked.clone());
            let (room, seen) = (room.clone(), self.seen.clone());
            let ask = async move {
                let _out = out;
                match connected {
                    true => ask_guest(&room, &entry, &running).await,
                    false => look_from_outside(&room, &entry, &running, &seen).await,
                }
            };
            self.asking.insert(name, tokio::spawn(ask));
        }
    }

    /// What is new.
    pub(super) fn collect(&mut self, room: &Room) -> Vec<(VmName, Sample)> {
        let mut samples: Vec<(VmName, Sample)> = std::mem::take(&mut *lock(&self.seen)).into_iter().collect();
        let entries: Vec<Arc<Entry>> = room.entries().values().cloned().collect();
        for entry in entries {
            let name = &entry.plan.name;
            let Some((report, at)) = entry.running().and_then(|running| running.reports().last.clone()) else {
                continue;
            };
            let given = self.given.get(name);
            let fresh = given.is_none_or(|given| at > given.at && !is_late(report.uptime, given.uptime));
            if fresh {
                self.given.insert(name.clone(), Given { at, uptime: report.uptime });
                samples.push((name.clone(), sample_of(&report, &entry.plan.replica, at)));
            }
        }
        samples
    }

    /// The guest was reset, or the VM ended: what comes next is of another boot.
    pub(super) fn forget(&mut self, vm: &VmName) {
        self.given.remove(vm);
        lock(&self.seen).remove(vm);
    }
}

/// A question that is out.
struct Out(Arc<Asked>);

impl Drop for Out {
    fn drop(&mut self) {
        if self.0.out.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.0.done.notify_one();
        }
    }
}

/// Asks one guest, and keeps what it says where all its reports are kept.
async fn ask_guest(room: &Room, entry: &Entry, running: &Running) {
    let asked_at = room.clock.now();
    let Ok(asked) = running.link.ask(0, room.settings.timing.agent, RequestBody::Report).await else { return };
    let Ok(Reply::Report(report)) = asked.answer().await else { return };
    let free = report.nodes.iter().filter_map(|node| Some((entry.plan.replica.host_node(node.node)?, node.free)));
    let (vm, free, age) = (entry.plan.name.clone(), free.collect(), room.clock.now().saturating_sub(asked_at));
    room.core.happened(Event::GuestMemory { vm, free, age });
    let mut reports = running.reports();
    let newest = reports.last.as_ref().map(|(last, _)| last.uptime);
    // One that was pushed meanwhile is newer.
    if newest.is_none_or(|newest| !is_late(report.uptime, newest)) {
        reports.keep(Arc::new(report), room.clock.now());
    }
}

/// Whether a report with this uptime was made before another, of the same boot, that came first.
fn is_late(uptime: Duration, newest: Duration) -> bool {
    uptime <= newest && newest - uptime <= DISORDER
}

/// What the host sees of a VM: how long its vCPU threads ran. It cannot see what its tasks wait for, nor its memory.
async fn look_from_outside(room: &Room, entry: &Entry, running: &Running, seen: &Mutex<BTreeMap<VmName, Sample>>) {
    let vcpus: Vec<VcpuId> = entry.plan.replica.vcpus.iter().map(|vcpu| vcpu.id).collect();
    let Ok(Ok(times)) = timeout(room.settings.timing.host, running.vm.run_times(&vcpus)).await else { return };
    let now = room.clock.now();
    lock(seen).insert(entry.plan.name.clone(), sample_of_threads(&times, &entry.plan.replica, now));
}

/// A guest's report in host ids. What does not fit its replica is left out.
fn sample_of(report: &Report, replica: &Replica, at: Duration) -> Sample {
    let cpu = |cpu: &CpuReport| -> Option<(CpuId, CpuSample)> {
        let host = replica.host_cpus(&GuestCpuSet::from([cpu.cpu])).first()?;
        let accounted = busy(cpu).saturating_add(cpu.idle);
        Some((host, CpuSample { busy: busy(cpu), waited: cpu.waited, accounted: Some(accounted) }))
    };
    let node = |node: &NodeReport| -> Option<(NodeId, NodeSample)> {
        let sample = NodeSample {
            total: node.total,
            free: node.free,
            available: node.available,
            kept: node.kept.unwrap_or_default(),
            file: node.file.saturating_sub(node.shmem.unwrap_or_default()),
            active_file: node.active_file,
            refaults: node.refaults,
        };
        Some((replica.host_node(node.node)?, sample))
    };
    Sample {
        at,
        uptime: report.uptime,
        cpus: report.cpus.iter().filter_map(cpu).collect(),
        runnable: Some(report.runnable),
        cpu_stall: report.cpu_pressure.map(|pressure| pressure.some.total),
        memory_stall: report.memory_pressure.map(|pressure| pressure.some.total),
        nodes: report.nodes.iter().filter_map(node).collect(),
    }
}

fn sample_of_threads(times: &BTreeMap<VcpuId, Duration>, replica: &Replica, now: Duration) -> Sample {
    let cpu = |(vcpu, ran): (&VcpuId, &Duration)| {
        Some((replica.cpu_of(*vcpu)?, CpuSample { busy: *ran, waited: None, accounted: None }))
    };
    Sample { at: now, uptime: now, cpus: times.iter().filter_map(cpu).collect(), ..Sample::default() }
}

fn lock<T>(of: &Mutex<T>) -> MutexGuard<'_, T> {
    of.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use conuma_agent_proto::{Pressure, PressureLine};
    use conuma_topology::{Bytes, GuestCpuId, GuestNodeId, Machine, NodeSet};

    fn replica() -> Replica {
        let machine: Machine = "2n2c1t@1G".parse().unwrap();
        let nodes: NodeSet = machine.nodes.keys().copied().collect();
        Replica::new(&machine, &nodes).unwrap()
    }

    #[test]
    fn a_report_becomes_a_sample_in_host_ids_and_what_the_guest_cannot_have_is_left_out() {
        let second = Duration::from_secs(1);
        let cpu = |cpu| CpuReport {
            cpu: GuestCpuId(cpu),
            user: second,
            system: second,
            interrupts: second,
            idle: second,
            steal: second,
            ran: None,
            waited: Some(second),
        };
        let node = |node| NodeReport {
            node: GuestNodeId(node),
            total: Bytes::mib(512),
            free: Bytes::mib(64),
            available: Bytes::mib(128),
            file: Bytes::mib(96),
            anonymous: Bytes::ZERO,
            movable: Bytes::ZERO,
            huge_total: Bytes::ZERO,
            huge_free: Bytes::ZERO,
            blocks_online: Bytes::ZERO,
            blocks_offline: Bytes::ZERO,
            refaults: Some(7),
            active_file: None,
            shmem: Some(Bytes::mib(32)),
            kept: Some(Bytes::mib(16)),
        };
        let some = PressureLine { total: second, ..PressureLine::default() };
        let report = Report {
            uptime: 9 * second,
            cpus: vec![cpu(0), cpu(3), cpu(77)],
            nodes: vec![node(1), node(9)],
            runnable: 5,
            cpu_pressure: Some(Pressure { some, full: None }),
            ..Report::default()
        };
        let sample = sample_of(&report, &replica(), 100 * second);
        assert_eq!((sample.at, sample.uptime, sample.runnable), (100 * second, 9 * second, Some(5)));
        assert_eq!((sample.cpu_stall, sample.memory_stall), (Some(second), None));
        let busy = CpuSample { busy: 3 * second, waited: Some(second), accounted: Some(4 * second) };
        assert_eq!(sample.cpus, [(CpuId(0), busy), (CpuId(3), busy)].into());
        assert_eq!(sample.nodes.len(), 1);
        let node = sample.nodes[&NodeId(1)];
        assert_eq!((node.file, node.refaults, node.kept), (Bytes::mib(64), Some(7), Bytes::mib(16)));
    }

    #[test]
    fn run_times_of_threads_are_a_sample_of_a_vm_without_an_agent() {
        let now = Duration::from_secs(50);
        let times = [(VcpuId(1), Duration::from_secs(4)), (VcpuId(99), now)].into();
        let sample = sample_of_threads(&times, &replica(), now);
        assert_eq!((sample.uptime, sample.runnable), (now, None));
        assert_eq!(sample.cpus.len(), 1);
        assert_eq!(sample.cpus[&CpuId(1)], CpuSample { busy: Duration::from_secs(4), waited: None, accounted: None });
    }
}
