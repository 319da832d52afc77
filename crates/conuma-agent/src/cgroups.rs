//! cgroup v2 as far as cpusets need it (Documentation/admin-guide/cgroup-v2.rst, "Cpuset").

use std::collections::BTreeSet;
use std::io;

use conuma_agent_proto::CgroupMode;
use conuma_linux::procfs::Pid;
use conuma_topology::GuestCpuSet;

use crate::kernel::{Kernel, read_list};

/// Where systemd and everybody else mounts it, below the root.
const MOUNT: &str = "sys/fs/cgroup";

/// The agent's own top-level cgroup: tasks that sat in the root cgroup, which has no `cpuset.cpus`.
pub const REST: &str = "conuma.rest";

/// A cgroup that owns CPUs exclusively.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Owner {
    /// Its path below the cgroup root.
    pub path: String,
    /// The CPUs it owns.
    pub cpus: GuestCpuSet,
}

impl Owner {
    /// The top-level cgroup it is or is below.
    pub fn top_level(&self) -> &str {
        self.path.split('/').next().unwrap_or(&self.path)
    }

    /// Whether it is a top-level cgroup itself.
    pub fn is_top_level(&self) -> bool {
        self.top_level() == self.path
    }
}

/// The guest's cgroups.
#[derive(Clone, Copy)]
pub struct Cgroups<'a> {
    kernel: &'a dyn Kernel,
}

impl<'a> Cgroups<'a> {
    /// Of this kernel.
    pub fn new(kernel: &'a dyn Kernel) -> Self {
        Self { kernel }
    }

    /// How cgroups are mounted.
    pub fn mode(self) -> CgroupMode {
        match self.kernel.read(&file("", "cgroup.controllers")) {
            Ok(controllers) if has_word(&controllers, "cpuset") => CgroupMode::Unified,
            Ok(_) => CgroupMode::Hybrid,
            Err(_) if self.kernel.exists(&file("unified", "cgroup.controllers")) => CgroupMode::Hybrid,
            Err(_) => CgroupMode::Absent,
        }
    }

    /// Makes sure that top-level cgroups have cpusets and that [`REST`] is there.
    pub fn enable(self) -> io::Result<()> {
        let subtree = file("", "cgroup.subtree_control");
        if !has_word(&self.kernel.read(&subtree)?, "cpuset") {
            self.kernel.write(&subtree, "+cpuset")?;
        }
        match self.kernel.create_dir(&format!("{MOUNT}/{REST}")) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
            _ => Ok(()),
        }
    }

    /// The top-level cgroups.
    pub fn top_level(self) -> io::Result<Vec<String>> {
        self.kernel.dirs(MOUNT)
    }

    /// What is set in a cgroup's `cpuset.cpus`; empty if nothing.
    pub fn cpus(self, cgroup: &str) -> io::Result<GuestCpuSet> {
        read_list(self.kernel, &file(cgroup, "cpuset.cpus"))
    }

    /// Sets a cgroup's `cpuset.cpus`; the empty set unsets it.
    pub fn set_cpus(self, cgroup: &str, cpus: &GuestCpuSet) -> io::Result<()> {
        // An empty write would do nothing at all.
        self.kernel.write(&file(cgroup, "cpuset.cpus"), &format!("{cpus}\n"))
    }

    /// Whether a cgroup is, or is meant to be, a partition: one that is not valid now becomes so, and takes its CPUs from
    /// all others, when its `cpuset.cpus` is changed to what is free.
    pub fn is_partition(self, cgroup: &str) -> bool {
        self.kernel.read(&file(cgroup, "cpuset.cpus.partition")).is_ok_and(|state| state != "member")
    }

    /// The CPUs that tasks in a cgroup may use.
    pub fn effective(self, cgroup: &str) -> io::Result<GuestCpuSet> {
        read_list(self.kernel, &file(cgroup, "cpuset.cpus.effective"))
    }

    /// The processes in the root cgroup, kernel threads included.
    pub fn root_processes(self) -> io::Result<BTreeSet<Pid>> {
        let text = self.kernel.read(&file("", "cgroup.procs"))?;
        Ok(text.lines().filter_map(|pid| pid.trim().parse().ok()).map(Pid).collect())
    }

    /// Moves a process with all its threads to [`REST`].
    pub fn move_to_rest(self, pid: Pid) -> io::Result<()> {
        self.kernel.write(&file(REST, "cgroup.procs"), &pid.to_string())
    }

    /// The cgroups that own CPUs exclusively. Every valid partition, however deep, takes its CPUs
    /// out of the root's effective ones, so that the tree need not be walked while those are all.
    pub fn owners(self, online: &GuestCpuSet) -> io::Result<Vec<Owner>> {
        let mut owners = Vec::new();
        if !online.is_subset(&self.effective("")?) {
            for name in self.top_level()? {
                self.collect_owners(&name, &mut owners)?;
            }
        }
        Ok(owners)
    }

    fn collect_owners(self, cgroup: &str, owners: &mut Vec<Owner>) -> io::Result<()> {
        // Without the file the controller is not enabled here, so nowhere below either.
        let Ok(partition) = self.kernel.read(&file(cgroup, "cpuset.cpus.partition")) else { return Ok(()) };
        if matches!(partition.as_str(), "root" | "isolated") {
            let cpus = self.effective(cgroup)?;
            if !cpus.is_empty() {
                owners.push(Owner { path: cgroup.to_owned(), cpus });
            }
        }
        let below = match self.kernel.dirs(&format!("{MOUNT}/{cgroup}")) {
            // It may have been removed meanwhile.
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            below => below?,
        };
        for name in below {
            self.collect_owners(&format!("{cgroup}/{name}"), owners)?;
        }
        Ok(())
    }

    /// Asks the kernel to take so many bytes of page cache, not of anonymous memory, from a
    /// top-level cgroup or (with the empty name) from all. That it got less is no error.
    pub fn reclaim(self, cgroup: &str, bytes: u64) -> io::Result<()> {
        let path = file(cgroup, "memory.reclaim");
        let result = match self.kernel.write(&path, &format!("{bytes} swappiness=0")) {
            // Before 6.9 there is no such key.
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => self.kernel.write(&path, &bytes.to_string()),
            result => result,
        };
        match result {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(()),
            result => result,
        }
    }
}

/// The directory to watch for new top-level cgroups and for changes of the root's files, below
/// the root.
pub const WATCHED: &str = MOUNT;

fn file(cgroup: &str, name: &str) -> String {
    if cgroup.is_empty() { format!("{MOUNT}/{name}") } else { format!("{MOUNT}/{cgroup}/{name}") }
}

fn has_word(text: &str, word: &str) -> bool {
    text.split_ascii_whitespace().any(|other| other == word)
}
