//! Being told when top-level cgroups appear or the root cgroup's files are written.

use std::future::pending;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::inotify::{self, CreateFlags, WatchFlags};
use tokio::io::unix::AsyncFd;

/// Watches one directory; one that cannot be watched never changes.
pub struct Watch {
    events: Option<AsyncFd<OwnedFd>>,
}

impl Watch {
    /// Begins to watch.
    pub fn new(dir: &Path) -> io::Result<Self> {
        let events = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?;
        inotify::add_watch(&events, dir, WatchFlags::CREATE | WatchFlags::MODIFY | WatchFlags::ONLYDIR)?;
        Ok(Self { events: Some(AsyncFd::register(events)?) })
    }

    /// Watches nothing.
    pub fn nothing() -> Self {
        Self { events: None }
    }

    /// Ends when something has happened since the last call.
    pub async fn changed(&self) -> io::Result<()> {
        let Some(events) = &self.events else { return pending().await };
        let mut ready = events.readable().await?;
        let mut buffer = [0; 4096];
        loop {
            match rustix::io::read(events, &mut buffer) {
                Ok(0) | Err(rustix::io::Errno::AGAIN) => break,
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        ready.clear_ready();
        Ok(())
    }
}
