//! Writes the kernel's initial RAM file system format, "newc" (Documentation/driver-api/early-userspace/buffer-format.rst).

use std::collections::BTreeSet;
use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Component, Path};

/// An archive under construction. Directories on the way to a file are made by themselves.
pub(super) struct Cpio<W: Write> {
    to: W,
    written: usize,
    inode: u32,
    directories: BTreeSet<String>,
}

const DIRECTORY: u32 = 0o040_755;
const SYMLINK: u32 = 0o120_777;
const REGULAR: u32 = 0o100_000;

impl<W: Write> Cpio<W> {
    pub(super) fn new(to: W) -> Self {
        Self { to, written: 0, inode: 1, directories: BTreeSet::new() }
    }

    /// A directory and those above it.
    pub(super) fn directory(&mut self, path: &str) -> io::Result<()> {
        let mut name = String::new();
        for part in Path::new(path).components().filter(|part| matches!(part, Component::Normal(_))) {
            if !name.is_empty() {
                name.push('/');
            }
            name.push_str(&part.as_os_str().to_string_lossy());
            if self.directories.insert(name.clone()) {
                self.entry(&name, DIRECTORY, &[])?;
            }
        }
        Ok(())
    }

    /// A file with this content.
    pub(super) fn file(&mut self, path: &str, mode: u32, content: &[u8]) -> io::Result<()> {
        self.parents(path)?;
        self.entry(path.trim_start_matches('/'), REGULAR | mode, content)
    }

    /// A file of this machine, with its permissions.
    pub(super) fn copy(&mut self, path: &str, from: &Path) -> io::Result<()> {
        let mode = fs::metadata(from)?.permissions().mode() & 0o777;
        self.file(path, mode, &fs::read(from)?)
    }

    /// A symbolic link.
    pub(super) fn link(&mut self, path: &str, target: &str) -> io::Result<()> {
        self.parents(path)?;
        self.entry(path.trim_start_matches('/'), SYMLINK, target.as_bytes())
    }

    /// Ends the archive.
    pub(super) fn finish(mut self) -> io::Result<W> {
        self.entry("TRAILER!!!", 0, &[])?;
        // The kernel wants archives that follow each other to begin at a multiple of four.
        self.pad(512)?;
        self.to.flush()?;
        Ok(self.to)
    }

    fn parents(&mut self, path: &str) -> io::Result<()> {
        match Path::new(path).parent() {
            Some(parent) => self.directory(&parent.to_string_lossy()),
            None => Ok(()),
        }
    }

    fn entry(&mut self, name: &str, mode: u32, content: &[u8]) -> io::Result<()> {
        self.inode += 1;
        let size = u32::try_from(content.len()).map_err(|_| io::Error::other(format!("{name} is too large")))?;
        // magic, inode, mode, uid, gid, links, mtime, size, device and rdevice (major, minor), name length, checksum
        let header = format!(
            "070701{:08x}{mode:08x}{:08x}{:08x}{:08x}{:08x}{size:08x}{:08x}{:08x}{:08x}{:08x}{:08x}{:08x}",
            self.inode,
            0,
            0,
            1,
            0,
            0,
            0,
            0,
            0,
            name.len() + 1,
            0
        );
        self.bytes(header.as_bytes())?;
        self.bytes(name.as_bytes())?;
        self.bytes(&[0])?;
        self.pad(4)?;
        self.bytes(content)?;
        self.pad(4)
    }

    fn bytes(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.written += bytes.len();
        self.to.write_all(bytes)
    }

    fn pad(&mut self, to: usize) -> io::Result<()> {
        let missing = self.written.next_multiple_of(to) - self.written;
        self.bytes(&vec![0; missing])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Command, Stdio};

    #[test]
    fn busybox_unpacks_what_was_packed() {
        let Ok(version) = Command::new("busybox").arg("cpio").arg("--help").output() else {
            println!("skipped: busybox is not installed");
            return;
        };
        assert!(!version.stderr.is_empty() || !version.stdout.is_empty());
        let mut cpio = Cpio::new(Vec::new());
        cpio.file("/a/b/c", 0o755, b"hello\n").unwrap();
        cpio.link("/a/d", "b/c").unwrap();
        let archive = cpio.finish().unwrap();
        let dir = tempfile::tempdir().unwrap();
        let mut child = Command::new("busybox")
            .args(["cpio", "-idm"])
            .current_dir(dir.path())
            .stdin(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(&archive).unwrap();
        assert!(child.wait().unwrap().success());
        assert_eq!(fs::read_to_string(dir.path().join("a/d")).unwrap(), "hello\n");
        assert_eq!(fs::metadata(dir.path().join("a/b/c")).unwrap().permissions().mode() & 0o777, 0o755);
    }
}
