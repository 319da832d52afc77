//! One cgroup v2 directory (Documentation/admin-guide/cgroup-v2.rst): its place, its members and the
//! knobs that Conuma turns.
//!
//! Every path is given by the caller, so the same code works on a real hierarchy and, for what
//! needs no kernel, on a plain directory.

mod error;
mod knobs;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::str::FromStr;

pub use error::CgroupError;
pub use knobs::{CpuMax, Idle, Limit};

use crate::procfs::{Pid, Tid};
use crate::read_text;

/// What `cgroup.type` says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Members are processes.
    Domain,
    /// A domain below which threads of its processes are spread.
    DomainThreaded,
    /// Under a threaded subtree but not yet made threaded; cannot have members.
    DomainInvalid,
    /// Members are threads.
    Threaded,
}

/// A cgroup, by its directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cgroup {
    path: PathBuf,
}

impl Cgroup {
    /// The cgroup at this directory, whether it exists or not.
    pub fn at(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into() }
    }

    /// Its directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The cgroup `name` directly below.
    pub fn child(&self, name: &str) -> Self {
        Self { path: self.path.join(name) }
    }

    /// Whether it exists.
    pub fn exists(&self) -> bool {
        self.path.is_dir()
    }

    /// Makes it, if it is not there. The parent must exist.
    pub fn create(&self) -> Result<(), CgroupError> {
        match fs::create_dir(&self.path) {
            Err(source) if source.kind() != io::ErrorKind::AlreadyExists => {
                Err(CgroupError::Create { path: self.path.clone(), source })
            }
            _ => Ok(()),
        }
    }

    /// Removes it; it must have no members and no children.
    pub fn remove(&self) -> Result<(), CgroupError> {
        match fs::remove_dir(&self.path) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                Err(CgroupError::Remove { path: self.path.clone(), source })
            }
            _ => Ok(()),
        }
    }

    /// Removes everything below it and then itself.
    pub fn remove_tree(&self) -> Result<(), CgroupError> {
        if !self.exists() {
            return Ok(());
        }
        for child in self.children()? {
            child.remove_tree()?;
        }
        self.remove()
    }

    /// The cgroups directly below, by name.
    pub fn children(&self) -> Result<Vec<Self>, CgroupError> {
        let failed = |source| CgroupError::Read { path: self.path.clone(), source };
        let mut children = Vec::new();
        for entry in fs::read_dir(&self.path).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            if entry.file_type().map_err(failed)?.is_dir() {
                children.push(Self { path: entry.path() });
            }
        }
        children.sort_by(|a, b| a.path.cmp(&b.path));
        Ok(children)
    }

    /// Its last component.
    pub fn name(&self) -> &str {
        self.path.file_name().and_then(|name| name.to_str()).unwrap_or_default()
    }

    /// Lets children use these controllers; those that already may stay as they are.
    pub fn enable(&self, controllers: &[&str]) -> Result<(), CgroupError> {
        let enabled = self.read("cgroup.subtree_control")?;
        for controller in controllers {
            if !enabled.split_whitespace().any(|word| word == *controller) {
                self.write("cgroup.subtree_control", &format!("+{controller}"))?;
            }
        }
        Ok(())
    }

    /// What kind it is.
    pub fn kind(&self) -> Result<Kind, CgroupError> {
        match self.read("cgroup.type")?.as_str() {
            "domain" => Ok(Kind::Domain),
            "domain threaded" => Ok(Kind::DomainThreaded),
            "domain invalid" => Ok(Kind::DomainInvalid),
            "threaded" => Ok(Kind::Threaded),
            text => Err(self.malformed("cgroup.type", text)),
        }
    }

    /// Lets its members be threads; its parent becomes a threaded domain. Cannot be undone.
    pub fn make_threaded(&self) -> Result<(), CgroupError> {
        match self.kind()? {
            Kind::Threaded => Ok(()),
            _ => self.write("cgroup.type", "threaded"),
        }
    }

    /// Moves a process with all its threads here.
    pub fn add_process(&self, process: Pid) -> Result<(), CgroupError> {
        self.write("cgroup.procs", &process.to_string())
    }

    /// Moves one thread here; it must be of a process in the same threaded domain.
    pub fn add_thread(&self, thread: Tid) -> Result<(), CgroupError> {
        self.write("cgroup.threads", &thread.to_string())
    }

    /// The threads in this cgroup itself.
    pub fn threads(&self) -> Result<Vec<Tid>, CgroupError> {
        self.numbers("cgroup.threads").map(|ids| ids.into_iter().map(Tid).collect())
    }

    /// The processes in this cgroup itself.
    pub fn processes(&self) -> Result<Vec<Pid>, CgroupError> {
        self.numbers("cgroup.procs").map(|ids| ids.into_iter().map(Pid).collect())
    }

    /// Whether any process lives here or below.
    pub fn populated(&self) -> Result<bool, CgroupError> {
        let events = self.read("cgroup.events")?;
        let value = events.lines().find_map(|line| line.strip_prefix("populated "));
        Ok(value.ok_or_else(|| self.malformed("cgroup.events", &events))?.trim() == "1")
    }

    /// Kills every process here and below (Linux 5.14).
    pub fn kill(&self) -> Result<(), CgroupError> {
        self.write("cgroup.kill", "1")
    }

    fn numbers(&self, name: &'static str) -> Result<Vec<u32>, CgroupError> {
        let text = self.read(name)?;
        text.lines().map(|line| line.trim().parse().map_err(|_| self.malformed(name, line))).collect()
    }

    fn parsed<T: FromStr>(&self, name: &'static str) -> Result<T, CgroupError> {
        let text = self.read(name)?;
        text.parse().map_err(|_| self.malformed(name, &text))
    }

    fn read(&self, name: &str) -> Result<String, CgroupError> {
        let path = self.path.join(name);
        match read_text(&path) {
            Ok(text) => Ok(text.trim_end().to_owned()),
            Err(source) => Err(CgroupError::Read { path, source }),
        }
    }

    fn write(&self, name: &str, value: &str) -> Result<(), CgroupError> {
        let path = self.path.join(name);
        // cgroup files never grow by a write and must not be created where the kernel has none.
        let written = fs::OpenOptions::new().write(true).open(&path).and_then(|mut file| {
            use io::Write as _;
            file.write_all(value.as_bytes())
        });
        written.map_err(|source| CgroupError::Write { path, value: value.to_owned(), source })
    }

    fn malformed(&self, name: &'static str, text: &str) -> CgroupError {
        CgroupError::Malformed { path: self.path.join(name), text: text.chars().take(80).collect() }
    }
}

#[cfg(test)]
mod tests;
