//! A QEMU process: started so that it outlives whoever started it, found again, ended for certain.

use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::time::Duration;

use conuma_linux::procfs::Pid;
use rustix::process::{PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::time::{Instant, sleep};

use crate::qmp::{Qmp, QmpError};

/// How much of a log's end is shown in errors.
const LOG_TAIL: u64 = 2000;
/// Between two looks whether QEMU listens yet.
const LOOK_AGAIN: Duration = Duration::from_millis(5);
/// Joins the cgroup (if one is named), then becomes QEMU in a session of its own: QEMU is in its cgroup before it has
/// taken any memory, and a signal to the daemon's session does not reach it.
const LAUNCH: &str =
    r#"entrance=$1; shift; if [ -n "$entrance" ]; then echo $$ > "$entrance" || exit 120; fi; exec setsid "$@""#;

/// Why a process could not be started.
#[derive(Debug)]
pub(super) enum LaunchError {
    /// A file or program.
    Io { what: &'static str, path: PathBuf, source: io::Error },
    /// It ended at once; the end of what it said.
    Ended(String),
    /// It runs but its monitor does not answer.
    Monitor(QmpError),
}

/// A process by its pidfd, so that its id cannot come to mean another one.
#[derive(Debug)]
pub(super) struct Process {
    pid: Pid,
    handle: AsyncFd<OwnedFd>,
    /// Only if this daemon started it: to be reaped.
    child: Mutex<Option<Child>>,
}

impl Process {
    /// Starts `program` and connects to its monitor, all within `budget`. What it says goes to `log`.
    pub(super) async fn launch(
        program: &Path,
        args: &[String],
        entrance: Option<&Path>,
        socket: &Path,
        log: &Path,
        budget: Duration,
    ) -> Result<(Self, Qmp), LaunchError> {
        let io = |what: &'static str, path: &Path| {
            let path = path.to_owned();
            move |source| LaunchError::Io { what, path, source }
        };
        remove_file(socket).map_err(io("remove", socket))?;
        let output = File::create(log).map_err(io("create", log))?;
        let errors = output.try_clone().map_err(io("open", log))?;
        let mut child = Command::new("/bin/sh")
            .args(["-c", LAUNCH, "sh"])
            .arg(entrance.map_or("".as_ref(), Path::as_os_str))
            .arg(program)
            .args(args)
            .stdin(Stdio::null())
            .stdout(output)
            .stderr(errors)
            .spawn()
            .map_err(io("run", program))?;
        let until = Instant::now() + budget;
        let failure = loop {
            match Qmp::connect(socket, until.saturating_duration_since(Instant::now())).await {
                Ok(qmp) => match Self::of(Pid(child.id())) {
                    Ok(mut process) => {
                        process.child = Mutex::new(Some(child));
                        return Ok((process, qmp));
                    }
                    Err(source) => break LaunchError::Io { what: "watch", path: program.to_owned(), source },
                },
                // Not yet listening, or already ending: QEMU listens before it has looked at all its arguments.
                Err(error @ (QmpError::Connect { .. } | QmpError::Greeting { .. } | QmpError::Closed { .. })) => {
                    match child.try_wait() {
                        Ok(Some(status)) => return Err(LaunchError::Ended(last_words(log, &status.to_string()))),
                        _ if Instant::now() >= until => break LaunchError::Monitor(error),
                        _ => sleep(LOOK_AGAIN).await,
                    }
                }
                Err(error) => break LaunchError::Monitor(error),
            }
        };
        // Nothing may stay behind.
        let _ = child.kill();
        let _ = child.wait();
        Err(failure)
    }

    /// A process that runs already.
    pub(super) fn of(pid: Pid) -> io::Result<Self> {
        let raw = i32::try_from(pid.0).ok().and_then(rustix::process::Pid::from_raw);
        let raw = raw.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "not a process id"))?;
        let pidfd = pidfd_open(raw, PidfdFlags::empty())?;
        #[allow(
            deprecated,
            reason = "its successor is unsafe; this use is sound, as an OwnedFd stays the same descriptor"
        )]
        let handle = AsyncFd::with_interest(pidfd, Interest::READABLE)?;
        Ok(Self { pid, handle, child: Mutex::new(None) })
    }

    pub(super) fn pid(&self) -> Pid {
        self.pid
    }

    /// Comes back when it has ended.
    pub(super) async fn ended(&self) {
        // A pidfd is readable once the process has ended, and stays so. An error means that there is no reactor any
        // more: nobody is left to be told.
        let _ = self.handle.ready(Interest::READABLE).await.map(drop);
        self.reap();
    }

    /// Whether it has ended.
    pub(super) fn has_ended(&self) -> bool {
        self.reap();
        // Readable also for a zombie that someone else has to reap.
        let poll = &mut [rustix::event::PollFd::new(self.handle.get_ref(), rustix::event::PollFlags::IN)];
        rustix::event::poll(poll, Some(&rustix::event::Timespec::default())).is_ok_and(|ready| ready > 0)
    }

    /// Kills it.
    pub(super) fn kill(&self) {
        // It may have ended just now.
        let _ = pidfd_send_signal(self.handle.get_ref(), Signal::KILL);
    }

    fn reap(&self) {
        let mut child = self.child.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if let Some(Ok(Some(_))) = child.as_mut().map(Child::try_wait) {
            *child = None;
        }
    }
}

/// Removes a file that may not be there.
pub(super) fn remove_file(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// The end of a log, or `instead` if it is empty.
fn last_words(log: &Path, instead: &str) -> String {
    let read = || {
        let mut file = File::open(log)?;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(LOG_TAIL)))?;
        let mut bytes = Vec::new();
        file.take(LOG_TAIL).read_to_end(&mut bytes)?;
        Ok::<_, io::Error>(String::from_utf8_lossy(&bytes).trim().to_owned())
    };
    read().ok().filter(|text| !text.is_empty()).unwrap_or_else(|| format!("nothing ({instead})"))
}
