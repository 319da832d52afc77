//! How the host itself does, read from its kernel.

use std::collections::BTreeMap;
use std::time::Duration;

use conuma_balancing::Host;
use conuma_linux::cgroup::Cgroup;
use conuma_linux::procfs::{ProcError, ProcFs, Resource};
use conuma_policy::HostSample;
use conuma_topology::CpuSet;

/// Reads samples of the host.
pub(crate) struct HostReader {
    proc: ProcFs,
    /// Of all VMs; those beside it are the host's own.
    vms: Cgroup,
    before: Option<Stalls>,
    ailing: bool,
}

/// Time in which tasks waited for a CPU since boot, by cgroup.
struct Stalls {
    at: Duration,
    by_cgroup: BTreeMap<String, Duration>,
}

impl HostReader {
    /// Of the host's kernel below its root; `vms` is the cgroup of all VMs.
    pub(crate) fn new(proc: ProcFs, vms: Cgroup) -> Self {
        Self { proc, vms, before: None, ailing: false }
    }

    /// How it does now. A node that cannot be read is left out: nothing is known of it, which is said once.
    pub(super) fn read(&mut self, host: &Host, now: Duration) -> HostSample {
        let mut sample = HostSample { cpu_stall: self.cpu_stall(&host.reserve.cpus, now), ..HostSample::default() };
        let mut failed = None;
        for node in host.memory.keys() {
            match self.proc.node_meminfo(node.0) {
                Ok(info) => drop(sample.available.insert(*node, info.available_on_node())),
                Err(error) => failed = Some(error),
            }
        }
        self.tell(failed);
        sample
    }

    /// Share of the time since the last look in which a task of the cgroup that suffered most waited for a CPU. The machine's own pressure
    /// would count vCPUs that wait behind their gates. A cgroup that may use reserved CPUs only gains nothing by others.
    fn cpu_stall(&mut self, reserved: &CpuSet, now: Duration) -> Option<f64> {
        let beside = self.vms.path().parent().map(Cgroup::at)?.children().ok()?;
        let waited = |cgroup: &Cgroup| {
            if cgroup.effective_cpus().is_ok_and(|cpus| cpus.is_subset(reserved)) {
                return None;
            }
            let waited = cgroup.pressure(Resource::Cpu).ok()?.some.total;
            Some((cgroup.name().to_owned(), waited))
        };
        let by_cgroup = beside.iter().filter(|cgroup| **cgroup != self.vms).filter_map(waited).collect();
        let stalls = Stalls { at: now, by_cgroup };
        let before = self.before.replace(stalls)?;
        let window = now.saturating_sub(before.at).as_secs_f64();
        let share = |(name, waited): (&String, &Duration)| {
            let waited = waited.saturating_sub(*before.by_cgroup.get(name)?).as_secs_f64();
            (window > 0.0).then(|| (waited / window).min(1.0))
        };
        self.before.as_ref()?.by_cgroup.iter().filter_map(share).max_by(f64::total_cmp)
    }

    fn tell(&mut self, failed: Option<ProcError>) {
        match failed {
            Some(error) if !self.ailing => {
                self.ailing = true;
                tracing::warn!("it cannot be seen how much memory the host itself has left: {error}");
            }
            Some(_) => {}
            None => self.ailing = false,
        }
    }
}

#[cfg(test)]
mod tests {
    use conuma_topology::{Bytes, NodeId};

    use super::*;

    fn host() -> Host {
        Host::new(&"2n4c1t@1G".parse().unwrap(), &"0".parse().unwrap(), Bytes::ZERO)
    }

    #[test]
    fn what_is_available_is_read_by_node() {
        let dir = tempfile::tempdir().unwrap();
        let line = |name: &str, kib: u64| format!("Node 1 {name}: {kib} kB\n");
        let text = [line("MemFree", 1024), line("FilePages", 2048), line("Shmem", 1024), line("SReclaimable", 512)];
        let node = dir.path().join("sys/devices/system/node/node1");
        std::fs::create_dir_all(&node).unwrap();
        std::fs::write(node.join("meminfo"), text.concat()).unwrap();
        let mut reader = HostReader::new(ProcFs::new(dir.path()), Cgroup::at("/nowhere/conuma"));
        let sample = reader.read(&host(), Duration::from_secs(10));
        assert_eq!(sample, HostSample { available: [(NodeId(1), Bytes::kib(2560))].into(), cpu_stall: None });
    }

    #[test]
    fn the_cgroup_that_waits_most_counts_and_vms_do_not() {
        let dir = tempfile::tempdir().unwrap();
        let waits = |name: &str, us: u64| {
            let cgroup = dir.path().join(name);
            std::fs::create_dir_all(&cgroup).unwrap();
            let text = format!("some avg10=0.00 avg60=0.00 avg300=0.00 total={us}\n");
            std::fs::write(cgroup.join("cpu.pressure"), text).unwrap();
        };
        let mut reader = HostReader::new(ProcFs::new(dir.path()), Cgroup::at(dir.path().join("conuma")));
        let mut stall = |at: u64| reader.read(&host(), Duration::from_secs(at)).cpu_stall;
        waits("conuma", 0);
        assert_eq!((stall(1), stall(2)), (None, None), "nobody else is there");
        waits("system.slice", 1_000_000);
        waits("user.slice", 5_000_000);
        assert_eq!(stall(3), None, "new ones have no past");
        waits("system.slice", 2_000_000);
        waits("user.slice", 5_200_000);
        waits("conuma", 9_000_000);
        assert_eq!(stall(5), Some(0.5));
        std::fs::write(dir.path().join("system.slice/cpuset.cpus.effective"), "0\n").unwrap();
        waits("system.slice", 9_000_000);
        waits("user.slice", 5_400_000);
        assert_eq!(stall(6), Some(0.2), "it has its own CPUs");
    }
}
