//! What can go wrong with a cgroup file, and what to do about it.

use std::io;
use std::path::PathBuf;

/// A cgroup could not be read or changed.
#[derive(Debug, thiserror::Error)]
pub enum CgroupError {
    /// Making it failed.
    #[error("cannot make cgroup {}", path.display())]
    Create {
        /// Its directory.
        path: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
    /// Removing it failed.
    #[error("cannot remove cgroup {}{}", path.display(), hint_remove(source))]
    Remove {
        /// Its directory.
        path: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
    /// Reading a file failed.
    #[error("cannot read {}{}", path.display(), hint_missing(source))]
    Read {
        /// The file.
        path: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
    /// Writing a file failed.
    #[error("cannot write `{value}` to {}{}", path.display(), hint_write(source))]
    Write {
        /// The file.
        path: PathBuf,
        /// What was written.
        value: String,
        /// The kernel's answer.
        source: io::Error,
    },
    /// A file has another form than it should.
    #[error("{} says `{text}`, which is not understood", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// Its text, shortened.
        text: String,
    },
}

impl CgroupError {
    /// Whether the cgroup, the file or the task does not exist (any more).
    pub fn is_gone(&self) -> bool {
        match self {
            Self::Create { source, .. }
            | Self::Remove { source, .. }
            | Self::Read { source, .. }
            | Self::Write { source, .. } => {
                source.kind() == io::ErrorKind::NotFound
                    || matches!(source.raw_os_error(), Some(libc::ESRCH | libc::ENODEV))
            }
            Self::Malformed { .. } => false,
        }
    }
}

fn hint_missing(source: &io::Error) -> &'static str {
    match source.kind() {
        io::ErrorKind::NotFound => " (is cgroup v2 mounted there and the controller enabled in the parent?)",
        _ => "",
    }
}

fn hint_remove(source: &io::Error) -> &'static str {
    match source.raw_os_error() {
        Some(libc::EBUSY) => " (it still has members or children)",
        _ => "",
    }
}

fn hint_write(source: &io::Error) -> &'static str {
    match source.raw_os_error() {
        Some(libc::ENOENT) => hint_missing(source),
        Some(libc::EBUSY) => " (a cgroup with processes of its own cannot hand out controllers)",
        Some(libc::EOPNOTSUPP) => " (the cgroup's type does not allow it: threaded and domain cgroups do not mix)",
        Some(libc::EACCES | libc::EPERM) => " (the cgroup is not delegated to this user)",
        _ => "",
    }
}
