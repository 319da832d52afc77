//! Mount namespaces.

use std::io;

use rustix::thread::{UnshareFlags, unshare_unsafe};

/// From now on this thread, and what it starts, has mounts of its own, which are those of before.
pub fn own_mounts() -> io::Result<()> {
    // SAFETY: of mounts only: no memory and no descriptor table is shared or parted by it.
    unsafe { unshare_unsafe(UnshareFlags::NEWNS) }.map_err(io::Error::from)
}
