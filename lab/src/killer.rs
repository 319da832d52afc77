//! Kills a process at the n-th step it takes: a step is a change of a file that it writes. For trials that end a daemon
//! between any two things it does.

use std::fs;
use std::mem::MaybeUninit;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use rustix::fs::inotify;
use rustix::process::{Pid, Signal, kill_process};

/// When and whom.
#[derive(Debug, Clone)]
pub struct Kill {
    /// The process.
    pub pid: i32,
    /// Files whose changes are steps; of a directory, changes of the file `journal.json` in it.
    pub watch: Vec<PathBuf>,
    /// The step after which it dies, from 1.
    pub nth: u32,
    /// Made as soon as steps are counted.
    pub armed: PathBuf,
    /// Made when it is dead.
    pub killed: PathBuf,
}

/// Waits for the step and kills.
pub fn kill_at(kill: &Kill) -> Result<()> {
    let steps = inotify::init(inotify::CreateFlags::CLOEXEC)?;
    for path in &kill.watch {
        let flags = inotify::WatchFlags::MODIFY | inotify::WatchFlags::MOVED_TO;
        inotify::add_watch(&steps, path, flags).with_context(|| format!("watching {}", path.display()))?;
    }
    fs::write(&kill.armed, "")?;
    let mut buffer = [MaybeUninit::uninit(); 4096];
    let mut reader = inotify::Reader::new(&steps, &mut buffer);
    let mut left = kill.nth;
    while left > 0 {
        let event = reader.next()?;
        // A file that is watched by itself has no name in its events.
        let is_step = event.file_name().is_none_or(|name| name.to_bytes() == b"journal.json");
        left -= u32::from(is_step);
    }
    let pid = Pid::from_raw(kill.pid).context("not a process id")?;
    kill_process(pid, Signal::KILL).context("killing")?;
    while Path::new(&format!("/proc/{}/exe", kill.pid)).exists() {
        std::thread::yield_now();
    }
    fs::write(&kill.killed, "")?;
    Ok(())
}
