//! Being told when top-level cgroups appear or the root cgroup's files are written.

use std::future::pending;
use std::io;
use std::path::Path;

use rustix::fs::inotify::{self, CreateFlags, WatchFlags};
use tokio::net::unix::pipe::Receiver;

/// Watches one directory.
pub struct Watch {
    /// inotify's events; tokio takes any descriptor that can be polled and read for a pipe.
    events: Option<Receiver>,
}

impl Watch {
    /// Begins to watch.
    pub fn new(dir: &Path) -> io::Result<Self> {
        let events = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?;
        inotify::add_watch(&events, dir, WatchFlags::CREATE | WatchFlags::MODIFY | WatchFlags::ONLYDIR)?;
        Ok(Self { events: Some(Receiver::from_owned_fd_unchecked(events)?) })
    }

    /// Watches nothing: never changes.
    pub fn nothing() -> Self {
        Self { events: None }
    }

    /// Ends when something has happened since the last call.
    pub async fn changed(&self) -> io::Result<()> {
        let Some(events) = &self.events else { return pending().await };
        let mut buffer = [0; 4096];
        let mut changed = false;
        loop {
            match events.try_read(&mut buffer) {
                Ok(_) => changed = true,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    if changed {
                        return Ok(());
                    }
                    events.readable().await?;
                }
                Err(error) => return Err(error),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::time::Duration;
    use tokio::time::timeout;

    #[tokio::test]
    async fn new_directories_and_writes_are_seen() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("file"), "").unwrap();
        let watch = Watch::new(dir.path()).unwrap();
        let budget = Duration::from_secs(10);
        assert!(timeout(Duration::from_millis(20), watch.changed()).await.is_err(), "nothing has happened yet");
        fs::create_dir(dir.path().join("new")).unwrap();
        timeout(budget, watch.changed()).await.unwrap().unwrap();
        fs::write(dir.path().join("file"), "+cpuset").unwrap();
        timeout(budget, watch.changed()).await.unwrap().unwrap();
    }
}
