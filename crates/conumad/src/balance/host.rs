//! How the host itself does, read from its kernel.

use std::time::Duration;

use conuma_linux::procfs::{ProcError, ProcFs, Resource};
use conuma_policy::HostSample;
use conuma_topology::NodeId;

/// Reads samples of the host.
pub(super) struct HostReader {
    proc: ProcFs,
    nodes: Vec<NodeId>,
    before: Option<Stalls>,
    ailing: bool,
}

/// Time in which tasks waited, since boot.
#[derive(Clone, Copy)]
struct Stalls {
    at: Duration,
    cpu: Option<Duration>,
    memory: Option<Duration>,
}

impl HostReader {
    /// Of these nodes, those of the host's kernel below its root.
    pub(super) fn new(proc: ProcFs, nodes: Vec<NodeId>) -> Self {
        Self { proc, nodes, before: None, ailing: false }
    }

    /// How it does now. A node that cannot be read is left out: nothing is known of it, which is said once.
    pub(super) fn read(&mut self, now: Duration) -> HostSample {
        let mut sample = HostSample::default();
        let mut failed = None;
        for node in &self.nodes {
            match self.proc.node_meminfo(node.0) {
                Ok(info) => drop(sample.available.insert(*node, info.available_on_node())),
                Err(error) => failed = Some(error),
            }
        }
        self.tell(failed);
        let total = |resource| self.proc.pressure(resource).ok().map(|pressure| pressure.some.total);
        let stalls = Stalls { at: now, cpu: total(Resource::Cpu), memory: total(Resource::Memory) };
        if let Some(before) = self.before.replace(stalls) {
            let window = now.saturating_sub(before.at).as_secs_f64();
            let share = |now: Option<Duration>, then: Option<Duration>| {
                let waited = now?.saturating_sub(then?).as_secs_f64();
                (window > 0.0).then(|| (waited / window).min(1.0))
            };
            sample.cpu_stall = share(stalls.cpu, before.cpu);
            sample.memory_stall = share(stalls.memory, before.memory);
        }
        sample
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
    use conuma_topology::Bytes;

    use super::*;

    #[test]
    fn what_is_available_is_read_by_node_and_stalls_are_shares_of_time() {
        let dir = tempfile::tempdir().unwrap();
        let write = |path: &str, text: &str| {
            let path = dir.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        };
        let line = |name: &str, kib: u64| format!("Node 1 {name}: {kib} kB\n");
        let text = [line("MemFree", 1024), line("FilePages", 2048), line("Shmem", 1024), line("SReclaimable", 512)];
        write("sys/devices/system/node/node1/meminfo", &text.concat());
        let psi = |us: u64| format!("some avg10=0.00 avg60=0.00 avg300=0.00 total={us}\n");
        write("proc/pressure/memory", &psi(1_000_000));
        let mut reader = HostReader::new(ProcFs::new(dir.path()), vec![NodeId(0), NodeId(1)]);
        let first = reader.read(Duration::from_secs(10));
        assert_eq!(first.available, [(NodeId(1), Bytes::kib(2560))].into());
        assert_eq!(first.memory_stall, None);
        write("proc/pressure/memory", &psi(1_500_000));
        let second = reader.read(Duration::from_secs(11));
        assert_eq!((second.memory_stall, second.cpu_stall), (Some(0.5), None));
    }
}
