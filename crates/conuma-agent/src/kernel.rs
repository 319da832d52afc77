//! The guest's kernel as the agent acts on it. Reads go straight to the files below the root;
//! what changes something goes through this trait, so that tests can stand in for the kernel.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use conuma_agent_proto::{Resource, Trigger};
use conuma_linux::procfs::{self, Pid, ProcError, ProcFs, Tid};
use conuma_linux::{read_text, sys};
use conuma_topology::{GuestCpuSet, GuestNodeId, Id, IdSet};

/// What the agent asks of a kernel.
pub trait Kernel: Send + Sync {
    /// The directory that holds `proc`, `sys` and so on.
    fn root(&self) -> &Path;

    /// Writes to an existing file below the root, in one go.
    fn write(&self, path: &str, text: &str) -> io::Result<()>;

    /// Creates a directory below the root.
    fn create_dir(&self, path: &str) -> io::Result<()>;

    /// The CPUs a thread may run on now.
    fn affinity(&self, tid: Tid) -> io::Result<GuestCpuSet>;

    /// Sets a thread's own affinity wish.
    fn set_affinity(&self, tid: Tid, cpus: &GuestCpuSet) -> io::Result<()>;

    /// Moves a process's pages between nodes; tells how many stayed.
    fn migrate_pages(&self, pid: Pid, from: GuestNodeId, to: GuestNodeId) -> io::Result<u64>;

    /// Whether a process has memory of its own, as users' have and kernel threads have not.
    fn has_memory(&self, pid: Pid) -> io::Result<bool>;

    /// Sets a trigger of pressure: what comes back is ready for `POLLPRI` when it fires, and ends the trigger when it is
    /// closed.
    fn pressure_trigger(&self, resource: Resource, trigger: Trigger) -> Result<OwnedFd, ProcError>;

    /// A file's text without surrounding white space.
    fn read(&self, path: &str) -> io::Result<String> {
        Ok(read_text(&self.root().join(path))?.trim().to_owned())
    }

    /// Whether there is such a file or directory.
    fn exists(&self, path: &str) -> bool {
        self.root().join(path).exists()
    }

    /// Names of what is in a directory, sorted.
    fn names(&self, path: &str) -> io::Result<Vec<String>> {
        names(&self.root().join(path), |_| true)
    }

    /// Names of the directories in a directory, links left out, sorted.
    fn dirs(&self, path: &str) -> io::Result<Vec<String>> {
        names(&self.root().join(path), |kind| kind.is_dir())
    }
}

fn names(dir: &Path, wanted: impl Fn(fs::FileType) -> bool) -> io::Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        // The kernel tells the type with the name: one call for many entries.
        if wanted(entry.file_type()?)
            && let Ok(name) = entry.file_name().into_string()
        {
            names.push(name);
        }
    }
    names.sort_unstable();
    Ok(names)
}

/// Reads a set in the kernel's list form (`0-3,8`).
pub fn read_list<T: Id>(kernel: &(impl Kernel + ?Sized), path: &str) -> io::Result<IdSet<T>> {
    kernel.read(path)?.parse().map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
}

/// Reads a set in the kernel's mask form (`ff,00000001`).
pub fn read_mask<T: Id>(kernel: &(impl Kernel + ?Sized), path: &str) -> io::Result<IdSet<T>> {
    IdSet::from_mask(&kernel.read(path)?).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
}

/// The running kernel.
#[derive(Debug)]
pub struct Linux {
    root: PathBuf,
}

impl Linux {
    /// With files below this directory. System calls go to the running kernel all the same, so
    /// ids in `<root>/proc` must be its own.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }
}

impl Kernel for Linux {
    fn root(&self) -> &Path {
        &self.root
    }

    fn write(&self, path: &str, text: &str) -> io::Result<()> {
        let mut file = OpenOptions::new().write(true).truncate(true).open(self.root.join(path))?;
        // Kernel interfaces take one write as one command.
        file.write_all(text.as_bytes())
    }

    fn create_dir(&self, path: &str) -> io::Result<()> {
        fs::create_dir(self.root.join(path))
    }

    fn affinity(&self, tid: Tid) -> io::Result<GuestCpuSet> {
        sys::affinity(tid)
    }

    fn set_affinity(&self, tid: Tid, cpus: &GuestCpuSet) -> io::Result<()> {
        sys::set_affinity(tid, cpus)
    }

    fn migrate_pages(&self, pid: Pid, from: GuestNodeId, to: GuestNodeId) -> io::Result<u64> {
        sys::migrate_pages(pid, &IdSet::from([from]), &IdSet::from([to]))
    }

    fn has_memory(&self, pid: Pid) -> io::Result<bool> {
        sys::has_memory(pid)
    }

    fn pressure_trigger(&self, resource: Resource, trigger: Trigger) -> Result<OwnedFd, ProcError> {
        let resource = match resource {
            Resource::Cpu => procfs::Resource::Cpu,
            Resource::Memory => procfs::Resource::Memory,
        };
        ProcFs::new(&self.root).pressure_trigger(resource, trigger.stall, trigger.window)
    }
}
