//! Reading below a root directory that is not trusted: symbolic links never lead out of it, every
//! file is read up to a limit, and what is not there is simply absent.

use std::cell::RefCell;
use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use conuma_topology::{Id, IdSet};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

/// An attribute file is never longer than this; the longest are CPU masks and PCI resources.
const ATTRIBUTE_LIMIT: u64 = 64 << 10;
/// `/proc/cpuinfo` of the largest machines is a few MiB.
const DOCUMENT_LIMIT: u64 = 32 << 20;
/// Entries of one directory.
const ENTRY_LIMIT: usize = 1 << 16;
/// Links followed on the way to one file, as in the kernel.
const LINK_LIMIT: usize = 40;

/// A directory that stands for `/`.
#[derive(Debug)]
pub(super) struct Tree {
    root: PathBuf,
    /// Where the directories seen so far really are, by the path asked for.
    directories: RefCell<HashMap<String, Option<PathBuf>>>,
}

impl Tree {
    /// Opens a tree; fails if `root` is not a directory.
    pub(super) fn open(root: &Path) -> io::Result<Self> {
        if !fs::metadata(root)?.is_dir() {
            return Err(io::ErrorKind::NotADirectory.into());
        }
        Ok(Self { root: root.to_owned(), directories: RefCell::default() })
    }

    /// The text of an attribute file, trimmed; `None` if there is no such readable file.
    pub(super) fn text(&self, path: &str) -> Option<String> {
        self.read(path, ATTRIBUTE_LIMIT).map(|text| text.trim().to_owned())
    }

    /// The text of a long file.
    pub(super) fn document(&self, path: &str) -> Option<String> {
        self.read(path, DOCUMENT_LIMIT)
    }

    /// A file's text as a value; `None` if it is absent or not one.
    pub(super) fn value<T: FromStr>(&self, path: &str) -> Option<T> {
        self.text(path)?.parse().ok()
    }

    /// A file's text as a hexadecimal number with or without `0x`.
    pub(super) fn hex(&self, path: &str) -> Option<u32> {
        u32::from_str_radix(self.text(path)?.trim_start_matches("0x"), 16).ok()
    }

    /// A set from a file in the kernel's list form.
    pub(super) fn list<T: Id>(&self, path: &str) -> Option<IdSet<T>> {
        self.value(path)
    }

    /// A set from a file in the kernel's mask form.
    pub(super) fn mask<T: Id>(&self, path: &str) -> Option<IdSet<T>> {
        // Some old kernels and captures write `0x` before the mask.
        IdSet::from_mask(self.text(path)?.trim_start_matches("0x")).ok()
    }

    /// The names in a directory, sorted; none if there is no such directory.
    pub(super) fn names(&self, directory: &str) -> Vec<String> {
        let Some(directory) = self.directory(directory) else { return Vec::new() };
        let entries = fs::read_dir(self.root.join(directory)).into_iter().flatten().flatten().take(ENTRY_LIMIT);
        let mut names: Vec<String> = entries.filter_map(|entry| entry.file_name().into_string().ok()).collect();
        names.sort_unstable();
        names
    }

    /// The numbers N of the entries `<prefix>N` of a directory, ascending.
    pub(super) fn numbered(&self, directory: &str, prefix: &str) -> Vec<u32> {
        let number = |name: &String| {
            let digits = name.strip_prefix(prefix)?;
            (!digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit())).then(|| digits.parse().ok())?
        };
        let mut numbers: Vec<u32> = self.names(directory).iter().filter_map(number).collect();
        numbers.sort_unstable();
        numbers
    }

    /// Whether there is such a directory.
    pub(super) fn has_directory(&self, directory: &str) -> bool {
        self.directory(directory).is_some_and(|at| self.root.join(at).is_dir())
    }

    /// Whether there is such a file, directory or link, whatever a link points to.
    pub(super) fn has_entry(&self, path: &str) -> bool {
        self.place(path).is_some_and(|at| at.symlink_metadata().is_ok())
    }

    /// What a link says, unresolved.
    pub(super) fn link(&self, path: &str) -> Option<String> {
        fs::read_link(self.place(path)?).ok()?.into_os_string().into_string().ok()
    }

    /// The last part of what a link says: the name of what it points to.
    pub(super) fn link_name(&self, path: &str) -> Option<String> {
        self.link(path)?.trim_end_matches('/').rsplit('/').next().map(str::to_owned)
    }

    /// Where a directory really is, relative to the root, all links resolved.
    pub(super) fn directory(&self, path: &str) -> Option<PathBuf> {
        if let Some(known) = self.directories.borrow().get(path) {
            return known.clone();
        }
        let found = match path.trim_matches('/').rsplit_once('/') {
            Some((parent, name)) => self.directory(parent).and_then(|parent| self.resolve(parent, name)),
            None => self.resolve(PathBuf::new(), path.trim_matches('/')),
        };
        self.directories.borrow_mut().insert(path.to_owned(), found.clone());
        found
    }

    /// The real path of an entry of which the last part is not resolved.
    fn place(&self, path: &str) -> Option<PathBuf> {
        let path = path.trim_matches('/');
        let (directory, name) = path.rsplit_once('/').unwrap_or(("", path));
        if name.is_empty() || name == "." || name == ".." {
            return None;
        }
        let directory = if directory.is_empty() { PathBuf::new() } else { self.directory(directory)? };
        Some(self.root.join(directory).join(name))
    }

    /// Walks `path` from `from` (both relative to the root) and resolves links on the way. `..`
    /// stops at the root and absolute links begin there.
    fn resolve(&self, from: PathBuf, path: &str) -> Option<PathBuf> {
        let mut here = from;
        let mut ahead: Vec<String> = path.split('/').rev().map(str::to_owned).collect();
        let mut links = 0;
        while let Some(part) = ahead.pop() {
            match part.as_str() {
                "" | "." => {}
                ".." => _ = here.pop(),
                name => match fs::read_link(self.root.join(&here).join(name)) {
                    Ok(target) => {
                        links += 1;
                        if links > LINK_LIMIT {
                            return None;
                        }
                        if target.is_absolute() {
                            here.clear();
                        }
                        ahead.extend(target.to_str()?.split('/').rev().map(str::to_owned));
                    }
                    Err(error) if error.kind() == io::ErrorKind::NotFound => return None,
                    Err(_) => here.push(name),
                },
            }
        }
        Some(here)
    }

    /// Reads a regular file up to a limit.
    fn read(&self, path: &str, limit: u64) -> Option<String> {
        let place = self.place(path)?;
        let file = match open(&place) {
            Err(Errno::LOOP) => {
                let (directory, name) = path.trim_matches('/').rsplit_once('/').unwrap_or(("", path));
                let from = if directory.is_empty() { PathBuf::new() } else { self.directory(directory)? };
                open(&self.root.join(self.resolve(from, name)?)).ok()?
            }
            opened => opened.ok()?,
        };
        if !file.metadata().ok()?.is_file() {
            return None;
        }
        let mut bytes = Vec::new();
        file.take(limit).read_to_end(&mut bytes).ok()?;
        Some(String::from_utf8_lossy(&bytes).into_owned())
    }
}

/// Opens without following a link and without waiting for the other end of a pipe.
fn open(path: &Path) -> Result<File, Errno> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC | OFlags::NOCTTY;
    rustix::fs::open(path, flags, Mode::empty()).map(File::from)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn tree() -> (tempfile::TempDir, Tree) {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("root/sys/a/b")).unwrap();
        fs::write(dir.path().join("secret"), "out").unwrap();
        fs::write(dir.path().join("root/sys/a/value"), " 42\n").unwrap();
        fs::write(dir.path().join("root/secret"), "in").unwrap();
        let tree = Tree::open(&dir.path().join("root")).unwrap();
        (dir, tree)
    }

    #[test]
    fn links_never_lead_out_of_the_root() {
        let (dir, tree) = tree();
        let a = dir.path().join("root/sys/a");
        symlink("/secret", a.join("absolute")).unwrap();
        symlink("../../../../../../secret", a.join("upward")).unwrap();
        symlink(dir.path().join("secret"), a.join("host")).unwrap();
        symlink("/sys/a", a.join("b/around")).unwrap();
        assert_eq!(tree.text("sys/a/absolute").as_deref(), Some("in"));
        assert_eq!(tree.text("sys/a/upward").as_deref(), Some("in"));
        assert_eq!(tree.text("sys/a/host"), None);
        assert_eq!(tree.value("sys/a/b/around/b/around/value"), Some(42));
        assert_eq!(tree.text("sys/../../secret").as_deref(), Some("in"));
    }

    #[test]
    fn loops_and_dangling_links_are_absent() {
        let (dir, tree) = tree();
        let a = dir.path().join("root/sys/a");
        symlink("loop", a.join("loop")).unwrap();
        symlink("two", a.join("one")).unwrap();
        symlink("one", a.join("two")).unwrap();
        symlink("nowhere", a.join("dangling")).unwrap();
        for name in ["loop", "one", "dangling", "loop/value", "one/value", "dangling/value", "missing"] {
            assert_eq!(tree.text(&format!("sys/a/{name}")), None, "{name}");
        }
        assert!(tree.has_entry("sys/a/dangling"));
        assert!(!tree.has_directory("sys/a/dangling"));
    }

    #[test]
    fn pipes_and_directories_are_not_read() {
        let (dir, tree) = tree();
        let pipe = dir.path().join("root/sys/a/pipe");
        rustix::fs::mknodat(rustix::fs::CWD, &pipe, rustix::fs::FileType::Fifo, Mode::from_raw_mode(0o600), 0).unwrap();
        assert_eq!(tree.text("sys/a/pipe"), None);
        assert_eq!(tree.text("sys/a/b"), None);
        assert_eq!(tree.text("sys/a"), None);
    }

    #[test]
    fn long_files_are_cut() {
        let (dir, tree) = tree();
        fs::write(dir.path().join("root/sys/a/long"), "x".repeat(1 << 20)).unwrap();
        assert_eq!(tree.text("sys/a/long").unwrap().len() as u64, ATTRIBUTE_LIMIT);
    }
}
