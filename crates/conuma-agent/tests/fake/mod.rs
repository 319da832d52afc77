//! A guest's kernel as the agent sees it: files in a temporary directory, and what a kernel does
//! when they are written. It has memory: tasks sit in cgroups, cpusets cut their masks.
#![allow(clippy::unwrap_used, clippy::panic, dead_code, unreachable_pub, reason = "each test binary uses a part")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::{Arc, Mutex};

use conuma_agent::kernel::Kernel;
use conuma_agent_proto::{Resource, Trigger};
use conuma_linux::procfs::{Pid, ProcError, Tid};
use conuma_topology::{GuestCpuSet, GuestNodeId};
use tempfile::TempDir;

pub const CG: &str = "sys/fs/cgroup";
const ALL: &str = "0-7";

pub fn set(text: &str) -> GuestCpuSet {
    text.parse().unwrap()
}

/// What kind of task.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    User,
    Movable,
    Bound,
}

#[derive(Debug, Clone)]
struct Task {
    parent: u32,
    kind: Kind,
    cgroup: String,
    /// What `sched_setaffinity` said last.
    own: Option<GuestCpuSet>,
    /// What it may use.
    mask: GuestCpuSet,
    /// KiB on each node.
    memory: Vec<u64>,
}

#[derive(Debug, Default)]
struct Cgroup {
    cpus: GuestCpuSet,
    partition: bool,
    /// It should be a partition, but is not valid; the next change of its CPUs makes it one.
    aspires: bool,
}

/// Which triggers of pressure the kernel takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Psi {
    /// Any.
    #[default]
    Any,
    /// With windows of multiples of 2 s, as without `CAP_SYS_RESOURCE`.
    EvenWindows,
    /// For CPUs only.
    Cpu,
    /// None, as it has been switched off.
    Off,
}

#[derive(Debug, Default)]
struct Inner {
    psi: Psi,
    /// The other ends of what waits for `POLLPRI`: urgent data raises that, too.
    triggers: BTreeMap<Resource, UnixStream>,
    keeps_own_affinity: bool,
    cgroups: BTreeMap<String, Cgroup>,
    tasks: BTreeMap<u32, Task>,
    /// KiB free and of cache on each node, of [`NODE_KIB`].
    free: Vec<u64>,
    cache: Vec<u64>,
    managed: BTreeSet<String>,
    fixed_tasks: BTreeSet<u32>,
    fixed_cgroups: BTreeSet<String>,
    writes: Vec<String>,
    /// What was last put into each file.
    written: BTreeMap<String, String>,
}

/// Each node's memory, KiB.
pub const NODE_KIB: u64 = 1 << 20;

pub struct FakeGuest {
    dir: TempDir,
    inner: Mutex<Inner>,
}

/// 8 CPUs on 2 nodes, an init process in the root cgroup, a daemon and a user in slices.
pub fn guest(release: &str) -> Arc<FakeGuest> {
    let guest = FakeGuest { dir: tempfile::tempdir().unwrap(), inner: Mutex::default() };
    let file = |path: &str, text: &str| {
        let path = guest.dir.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    };
    file("proc/sys/kernel/osrelease", &format!("{release}\n"));
    file("proc/sys/kernel/random/boot_id", "5c6b9e1e-0000-4000-8000-000000000001\n");
    file("proc/cmdline", "quiet init_on_alloc=0\n");
    file("proc/uptime", "12.34 50.00\n");
    file(
        "proc/stat",
        "cpu  1 1 1 1\ncpu0 100 0 50 900 0 1 2 3 0 0\ncpu1 7 0 0 1 0 0 0 0 0 0\nprocs_running 2\nprocs_blocked 1\n",
    );
    file("proc/schedstat", "version 15\ntimestamp 1\ncpu0 0 0 0 0 0 0 5000 7000 1\ncpu1 0 0 0 0 0 0 1 2 3\n");
    file(
        "proc/pressure/cpu",
        "some avg10=12.50 avg60=1.00 avg300=0.00 total=99\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=0\n",
    );
    file("proc/zoneinfo", "Node 1, zone  Movable\n  pages free     10\n        high     16\n        managed  1024\n");
    file("proc/buddyinfo", "Node 1, zone  Movable  100  0  0\n");
    file("proc/irq/default_smp_affinity", "ff\n");
    file("proc/irq/24/smp_affinity_list", "0-7\n");
    file("proc/irq/25/smp_affinity_list", "6\n");
    file("proc/irq/26/smp_affinity_list", "7\n");
    file("proc/irq/27/smp_affinity_list", "0-7\n");
    file("proc/irq/27/effective_affinity_list", "1\n");
    file("proc/irq/28/smp_affinity_list", "0-7\n");
    for irq in 24..28 {
        fs::create_dir(guest.dir.path().join(format!("proc/irq/{irq}/virtio{irq}"))).unwrap();
    }
    file("sys/devices/virtual/workqueue/cpumask", "ff\n");
    file("sys/devices/system/cpu/online", ALL);
    file("sys/devices/system/node/online", "0-1\n");
    file("sys/devices/system/memory/block_size_bytes", "8000000\n");
    file("sys/devices/system/memory/auto_online_blocks", "offline\n");
    file(
        "sys/devices/system/node/node1/vmstat",
        "nr_free_pages 1\nworkingset_refault_anon 40\nworkingset_refault_file 2\n",
    );
    for (node, cpus) in [(0, "0-3"), (1, "4-7")] {
        file(&format!("sys/devices/system/node/node{node}/cpulist"), cpus);
        for block in 0..4 {
            let name = format!("memory{}", node * 4 + block);
            file(&format!("sys/devices/system/memory/{name}/state"), "online\n");
            file(&format!("sys/devices/system/node/node{node}/{name}/state"), "online\n");
        }
    }
    file(&format!("{CG}/cgroup.controllers"), "cpuset cpu memory\n");
    file(&format!("{CG}/cgroup.subtree_control"), "cpu memory\n");
    file(&format!("{CG}/memory.reclaim"), "");
    {
        let mut inner = guest.inner.lock().unwrap();
        inner.keeps_own_affinity = !release.starts_with("6.1.");
        inner.managed.insert("26".into());
        inner.free = vec![NODE_KIB / 2; 2];
        inner.cache = vec![NODE_KIB / 8; 2];
        for name in ["system.slice", "user.slice"] {
            inner.cgroups.insert(name.into(), Cgroup::default());
        }
    }
    guest.add_task(1, Kind::User, "");
    guest.add_task(2, Kind::Movable, "");
    guest.add_task(3, Kind::Bound, "");
    guest.add_task(100, Kind::User, "system.slice");
    guest.add_task(200, Kind::User, "user.slice");
    guest.change(|inner| {
        inner.tasks.get_mut(&3).unwrap().mask = set("7");
    });
    Arc::new(guest)
}

impl FakeGuest {
    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    /// Which triggers of pressure it takes from now on.
    pub fn set_psi(&self, psi: Psi) {
        self.change(|inner| inner.psi = psi);
    }

    /// A trigger fires.
    pub fn press(&self, resource: Resource) {
        let inner = self.inner.lock().unwrap();
        let sent = rustix::net::send(&inner.triggers[&resource], b"!", rustix::net::SendFlags::OOB);
        assert_eq!(sent, Ok(1));
    }

    /// The kernel takes a trigger back.
    pub fn end_trigger(&self, resource: Resource) {
        self.change(|inner| inner.triggers.remove(&resource)).unwrap();
    }

    fn change<T>(&self, change: impl FnOnce(&mut Inner) -> T) -> T {
        let mut inner = self.inner.lock().unwrap();
        let result = change(&mut inner);
        inner.write_files(self.dir.path());
        result
    }

    fn ask<T>(&self, ask: impl FnOnce(&Inner) -> T) -> T {
        ask(&self.inner.lock().unwrap())
    }

    pub fn add_task(&self, pid: u32, kind: Kind, cgroup: &str) {
        self.add_child(pid, 0, kind, cgroup);
    }

    /// A new task inherits its parent's masks, as with fork.
    pub fn add_child(&self, pid: u32, parent: u32, kind: Kind, cgroup: &str) {
        self.change(|inner| {
            let (own, mask) = match inner.tasks.get(&parent) {
                Some(parent) => (parent.own.clone(), parent.mask.clone()),
                None => (None, inner.effective(cgroup)),
            };
            let memory = vec![0; 2];
            inner.tasks.insert(pid, Task { parent, kind, cgroup: cgroup.into(), own, mask, memory });
        });
    }

    pub fn remove_task(&self, pid: u32) {
        self.change(|inner| {
            inner.tasks.remove(&pid);
            inner.written.retain(|path, _| !path.starts_with(&format!("proc/{pid}/")));
        });
        fs::remove_dir_all(self.dir.path().join(format!("proc/{pid}"))).unwrap();
    }

    pub fn add_cgroup(&self, path: &str) {
        self.change(|inner| inner.cgroups.insert(path.into(), Cgroup::default()));
    }

    pub fn remove_cgroup(&self, path: &str) {
        self.change(|inner| {
            inner.cgroups.remove(path);
            inner.written.retain(|file, _| !file.starts_with(&format!("{CG}/{path}/")));
        });
        fs::remove_dir_all(self.dir.path().join(CG).join(path)).unwrap();
    }

    /// What an administrator writes into `cpuset.cpus`.
    pub fn administer(&self, cgroup: &str, cpus: &str) {
        self.change(|inner| inner.set_cpuset(cgroup, set(cpus)));
    }

    pub fn make_partition(&self, cgroup: &str, cpus: &str) {
        self.change(|inner| {
            inner.cgroups.get_mut(cgroup).unwrap().partition = true;
            inner.set_cpuset(cgroup, set(cpus));
            inner.settle_tasks("");
        });
    }

    /// A partition that the kernel finds invalid for now.
    pub fn make_invalid_partition(&self, cgroup: &str, cpus: &str) {
        self.change(|inner| {
            inner.set_cpuset(cgroup, set(cpus));
            inner.cgroups.get_mut(cgroup).unwrap().aspires = true;
        });
    }

    /// A task changes its own affinity.
    pub fn wish(&self, pid: u32, cpus: &str) {
        self.set_affinity(Tid(pid), &set(cpus)).unwrap();
    }

    /// The kernel refuses to move this process to another cgroup.
    pub fn pin_to_cgroup(&self, pid: u32) {
        self.change(|inner| inner.fixed_tasks.insert(pid));
    }

    /// The kernel refuses to change this cgroup's `cpuset.cpus`.
    pub fn fix_cpuset(&self, cgroup: &str) {
        self.change(|inner| inner.fixed_cgroups.insert(cgroup.into()));
    }

    pub fn set_memory(&self, pid: u32, node: usize, kib: u64) {
        self.change(|inner| {
            inner.free[node] -= kib;
            inner.tasks.get_mut(&pid).unwrap().memory[node] = kib;
        });
    }

    pub fn set_free(&self, node: usize, kib: u64) {
        self.change(|inner| inner.free[node] = kib);
    }

    pub fn cache(&self, node: usize) -> u64 {
        self.ask(|inner| inner.cache[node])
    }

    pub fn set_cache(&self, node: usize, kib: u64) {
        self.change(|inner| inner.cache[node] = kib);
    }

    pub fn mask(&self, pid: u32) -> String {
        self.ask(|inner| inner.tasks[&pid].mask.to_string())
    }

    pub fn cgroup_of(&self, pid: u32) -> String {
        self.ask(|inner| inner.tasks[&pid].cgroup.clone())
    }

    pub fn cpuset(&self, cgroup: &str) -> String {
        self.ask(|inner| inner.cgroups[cgroup].cpus.to_string())
    }

    pub fn text(&self, path: &str) -> String {
        fs::read_to_string(self.dir.path().join(path)).unwrap().trim().to_owned()
    }

    pub fn put(&self, path: &str, text: &str) {
        fs::write(self.dir.path().join(path), text).unwrap();
    }

    /// Tasks of users that may run outside these CPUs.
    pub fn users_outside(&self, cpus: &GuestCpuSet) -> Vec<u32> {
        self.ask(|inner| {
            let users = inner.tasks.iter().filter(|(_, task)| task.kind == Kind::User);
            users.filter(|(_, task)| !task.mask.is_subset(cpus)).map(|(pid, _)| *pid).collect()
        })
    }

    /// Every mask that others set and the agent may change.
    pub fn masks(&self) -> Vec<String> {
        let mut masks: Vec<String> = self.ask(|inner| {
            let tasks = inner.tasks.iter().map(|(pid, task)| format!("task {pid}: {}", task.mask));
            let cgroups = inner.cgroups.iter().map(|(name, cgroup)| format!("{name}: {}", cgroup.cpus));
            tasks.chain(cgroups).collect()
        });
        for path in [
            "proc/irq/default_smp_affinity",
            "proc/irq/24/smp_affinity_list",
            "proc/irq/25/smp_affinity_list",
            "proc/irq/27/smp_affinity_list",
            "sys/devices/virtual/workqueue/cpumask",
        ] {
            masks.push(format!("{path}: {}", self.text(path)));
        }
        masks
    }

    /// What was written since the last call.
    pub fn take_writes(&self) -> Vec<String> {
        std::mem::take(&mut self.inner.lock().unwrap().writes)
    }
}

impl Inner {
    fn effective(&self, cgroup: &str) -> GuestCpuSet {
        let own = |path: &str| self.cgroups.get(path).map(|cgroup| cgroup.cpus.clone()).unwrap_or_default();
        if cgroup.is_empty() {
            let partitions = self.cgroups.values().filter(|cgroup| cgroup.partition);
            return partitions.fold(set(ALL), |left, partition| left.difference(&partition.cpus));
        }
        if self.cgroups.get(cgroup).is_some_and(|cgroup| cgroup.partition) {
            return own(cgroup);
        }
        let above = self.effective(cgroup.rsplit_once('/').map_or("", |(parent, _)| parent));
        let both = above.intersection(&own(cgroup));
        if both.is_empty() { above } else { both }
    }

    fn set_cpuset(&mut self, cgroup: &str, cpus: GuestCpuSet) {
        let changed = self.cgroups.get_mut(cgroup).unwrap();
        changed.cpus = cpus;
        changed.partition |= changed.aspires;
        let of_all = changed.partition;
        self.settle_tasks(if of_all { "" } else { cgroup });
    }

    /// What the kernel does to tasks in and below a cgroup whose cpuset has changed.
    fn settle_tasks(&mut self, changed: &str) {
        let below =
            |cgroup: &str| changed.is_empty() || cgroup == changed || cgroup.starts_with(&format!("{changed}/"));
        let pids: Vec<u32> = self.tasks.iter().filter(|(_, task)| below(&task.cgroup)).map(|(pid, _)| *pid).collect();
        for pid in pids {
            self.settle_task(pid);
        }
    }

    fn settle_task(&mut self, pid: u32) {
        let effective = self.effective(&self.tasks[&pid].cgroup);
        let keeps = self.keeps_own_affinity;
        let task = self.tasks.get_mut(&pid).unwrap();
        if task.kind != Kind::User {
            return;
        }
        let own = task.own.as_ref().filter(|_| keeps).map(|own| own.intersection(&effective));
        task.mask = own.filter(|own| !own.is_empty()).unwrap_or(effective);
    }

    fn write_files(&mut self, root: &Path) {
        let mut written = std::mem::take(&mut self.written);
        let mut file = |path: String, text: String| {
            if written.get(&path) != Some(&text) {
                let full = root.join(&path);
                fs::create_dir_all(full.parent().unwrap()).unwrap();
                fs::write(full, &text).unwrap();
                written.insert(path, text);
            }
        };
        let enabled = fs::read_to_string(root.join(CG).join("cgroup.subtree_control")).unwrap().contains("cpuset");
        file(format!("{CG}/cpuset.cpus.effective"), self.effective("").to_string());
        for (path, cgroup) in &self.cgroups {
            fs::create_dir_all(root.join(CG).join(path)).unwrap();
            file(format!("{CG}/{path}/cgroup.procs"), self.procs(path));
            if enabled {
                file(format!("{CG}/{path}/cpuset.cpus"), format!("{}\n", cgroup.cpus));
                file(format!("{CG}/{path}/cpuset.cpus.effective"), format!("{}\n", self.effective(path)));
                let partition = match (cgroup.partition, cgroup.aspires) {
                    (true, _) => "root",
                    (false, true) => "root invalid (Cpu list in cpuset.cpus not exclusive)",
                    (false, false) => "member",
                };
                file(format!("{CG}/{path}/cpuset.cpus.partition"), format!("{partition}\n"));
            }
        }
        file(format!("{CG}/cgroup.procs"), self.procs(""));
        for (pid, task) in &self.tasks {
            let flags = match task.kind {
                Kind::User => 0x0040_0000,
                Kind::Movable => 0x0020_0000,
                Kind::Bound => 0x0420_0000,
            };
            let zeros = "0 ".repeat(16);
            let stat = format!(
                "{pid} (task {pid}) S {parent} 0 0 0 0 {flags} 0 0 0 0 1 1 0 0 20 0 1 0 {start} {zeros}{cpu} 0 0\n",
                parent = task.parent,
                start = 1000 + pid,
                cpu = task.mask.first().unwrap(),
            );
            file(format!("proc/{pid}/task/{pid}/stat"), stat);
            let pages: u64 = task.memory.iter().sum::<u64>() / 4;
            file(format!("proc/{pid}/statm"), format!("{pages} {pages} 0 0 0 0 0\n"));
            let counts: Vec<String> =
                task.memory.iter().enumerate().map(|(node, kib)| format!("N{node}={}", kib / 4)).collect();
            file(format!("proc/{pid}/numa_maps"), format!("1000 default {} kernelpagesize_kB=4\n", counts.join(" ")));
        }
        for (node, free) in self.free.iter().enumerate() {
            let cache = self.cache[node];
            file(
                format!("sys/devices/system/node/node{node}/meminfo"),
                format!(
                    "Node {node} MemTotal: {NODE_KIB} kB\nNode {node} MemFree: {free} kB\n\
                     Node {node} FilePages: {cache} kB\nNode {node} Active(file): {active} kB\nNode {node} Shmem: 1024 kB\n",
                    active = cache / 2,
                ),
            );
        }
        let sum = |of: &[u64]| of.iter().sum::<u64>();
        let (all, available) = (NODE_KIB * self.free.len() as u64, sum(&self.free) + sum(&self.cache));
        file("proc/meminfo".into(), format!("MemTotal: {all} kB\nMemAvailable: {available} kB\n"));
        self.written = written;
    }

    fn procs(&self, cgroup: &str) -> String {
        let pids = self.tasks.iter().filter(|(_, task)| task.cgroup == cgroup);
        pids.map(|(pid, _)| format!("{pid}\n")).collect()
    }
}

fn refused(errno: rustix::io::Errno) -> io::Result<()> {
    Err(errno.into())
}

impl Kernel for FakeGuest {
    fn root(&self) -> &Path {
        self.dir.path()
    }

    fn write(&self, path: &str, text: &str) -> io::Result<()> {
        use rustix::io::Errno;
        self.inner.lock().unwrap().writes.push(format!("{path} {}", text.trim()));
        let file = self.dir.path().join(path);
        if !file.exists() {
            return refused(Errno::NOENT);
        }
        let in_cgroup = path.strip_prefix(CG).map(|path| path.trim_start_matches('/'));
        match in_cgroup.map(|path| path.rsplit_once('/').unwrap_or(("", path))) {
            Some(("", "cgroup.subtree_control")) => {
                assert_eq!(text, "+cpuset");
                fs::write(file, "cpuset cpu memory\n")?;
                self.change(|_| ());
                Ok(())
            }
            Some((cgroup, "cpuset.cpus")) => self.change(|inner| {
                if inner.fixed_cgroups.contains(cgroup) {
                    return refused(Errno::BUSY);
                }
                inner.set_cpuset(cgroup, set(text));
                Ok(())
            }),
            Some((cgroup, "cgroup.procs")) => self.change(|inner| {
                let pid = text.parse().unwrap();
                if inner.fixed_tasks.contains(&pid) {
                    return refused(Errno::INVAL);
                }
                inner.tasks.get_mut(&pid).unwrap().cgroup = cgroup.to_owned();
                inner.settle_task(pid);
                Ok(())
            }),
            Some(("", "memory.reclaim")) => self.change(|inner| {
                if text.contains("swappiness") && !inner.keeps_own_affinity {
                    return refused(Errno::INVAL);
                }
                let mut wanted = text.split(' ').next().unwrap().parse::<u64>().unwrap() / 1024;
                for node in 0..2 {
                    let part = wanted.min(inner.cache[node]);
                    inner.cache[node] -= part;
                    inner.free[node] += part;
                    wanted -= part;
                }
                if wanted > 0 { refused(Errno::AGAIN) } else { Ok(()) }
            }),
            Some(other) => panic!("nobody should write {other:?}"),
            None => {
                let irq = path.strip_prefix("proc/irq/").and_then(|path| path.strip_suffix("/smp_affinity_list"));
                if irq.is_some_and(|irq| self.ask(|inner| inner.managed.contains(irq))) {
                    return refused(Errno::IO);
                }
                fs::write(file, text)
            }
        }
    }

    fn create_dir(&self, path: &str) -> io::Result<()> {
        let cgroup = path.strip_prefix(CG).unwrap().trim_start_matches('/').to_owned();
        if self.ask(|inner| inner.cgroups.contains_key(&cgroup)) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        self.add_cgroup(&cgroup);
        Ok(())
    }

    fn affinity(&self, tid: Tid) -> io::Result<GuestCpuSet> {
        let mask = self.ask(|inner| inner.tasks.get(&tid.0).map(|task| task.mask.clone()));
        mask.ok_or(rustix::io::Errno::SRCH.into())
    }

    fn set_affinity(&self, tid: Tid, cpus: &GuestCpuSet) -> io::Result<()> {
        use rustix::io::Errno;
        self.change(|inner| {
            let Some(task) = inner.tasks.get(&tid.0) else { return refused(Errno::SRCH) };
            let mask = inner.effective(&task.cgroup).intersection(cpus);
            if mask.is_empty() || task.kind == Kind::Bound {
                return refused(Errno::INVAL);
            }
            let task = inner.tasks.get_mut(&tid.0).unwrap();
            task.own = Some(cpus.clone());
            task.mask = mask;
            Ok(())
        })
    }

    fn migrate_pages(&self, pid: Pid, from: GuestNodeId, to: GuestNodeId) -> io::Result<u64> {
        self.change(|inner| {
            let (from, to) = (from.0 as usize, to.0 as usize);
            let room = inner.free[to];
            let task = inner.tasks.get_mut(&pid.0).unwrap();
            let moved = task.memory[from].min(room);
            task.memory[from] -= moved;
            task.memory[to] += moved;
            inner.free[from] += moved;
            inner.free[to] -= moved;
            Ok(inner.tasks[&pid.0].memory[from] / 4)
        })
    }

    fn pressure_trigger(&self, resource: Resource, trigger: Trigger) -> Result<OwnedFd, ProcError> {
        use rustix::io::Errno;
        let psi = self.ask(|inner| inner.psi);
        let errno = match psi {
            Psi::Off => Some(Errno::OPNOTSUPP),
            Psi::Cpu if resource != Resource::Cpu => Some(Errno::NOENT),
            Psi::EvenWindows if !trigger.window.as_millis().is_multiple_of(2000) => Some(Errno::INVAL),
            Psi::Any | Psi::Cpu | Psi::EvenWindows => None,
        };
        if let Some(errno) = errno {
            return Err(ProcError::Trigger { path: self.dir.path().join("proc/pressure"), source: errno.into() });
        }
        let (ours, theirs) = UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        self.change(|inner| inner.triggers.insert(resource, theirs));
        Ok(ours.into())
    }

    fn has_memory(&self, pid: Pid) -> io::Result<bool> {
        let kind = self.ask(|inner| inner.tasks.get(&pid.0).map(|task| task.kind));
        kind.map(|kind| kind == Kind::User).ok_or(rustix::io::Errno::SRCH.into())
    }
}
