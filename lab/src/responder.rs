//! Runs commands for whoever is at the other end of a virtio-serial port.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use anyhow::{Context, Result};
use rustix::event::epoll;

use crate::wire::{Ask, Say};

/// Serves the port with this name for ever.
pub fn serve(name: &str) -> Result<()> {
    let path = find_port(name)?;
    let open = || OpenOptions::new().read(true).write(true).open(&path);
    let port = open().with_context(|| format!("opening {}", path.display()))?;
    let changes = Changes::of(&port)?;
    let answers = Answers { port: Arc::new(Mutex::new(port.try_clone()?)) };
    let running: Children = Children::default();
    let mut lines = BufReader::new(port);
    let mut line = String::new();
    loop {
        line.clear();
        match lines.read_line(&mut line) {
            // Nobody is connected: the port reads as ended.
            Ok(0) | Err(_) => changes.wait()?,
            Ok(_) => match serde_json::from_str(&line) {
                Ok(ask) => handle(ask, &answers, &running),
                // The rest of a line whose beginning went to nobody.
                Err(error) => drop(writeln!(std::io::stderr(), "conuma-lab-init: {error}: {line}")),
            },
        }
    }
}

/// Wakes when something happens at a port: only then may somebody have come. Looking again and again instead would keep a
/// guest from ever being at rest.
struct Changes(OwnedFd);

impl Changes {
    fn of(port: &File) -> Result<Self> {
        let changes = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        // By edges: that nobody is there is a state that would be told for ever.
        let flags = epoll::EventFlags::IN | epoll::EventFlags::ET;
        epoll::add(&changes, port, epoll::EventData::new_u64(0), flags).context("watching the port")?;
        Ok(Self(changes))
    }

    fn wait(&self) -> Result<()> {
        let mut events = [epoll::Event { flags: epoll::EventFlags::empty(), data: epoll::EventData::new_u64(0) }];
        match epoll::wait(&self.0, &mut events, None) {
            Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
            Err(error) => Err(error).context("waiting for the port"),
        }
    }
}

type Children = Arc<Mutex<HashMap<u64, Child>>>;

#[derive(Clone)]
struct Answers {
    port: Arc<Mutex<File>>,
}

impl Answers {
    fn say(&self, say: &Say) {
        let Ok(mut text) = serde_json::to_string(say) else { return };
        text.push('\n');
        // Nobody there to hear it: then it is lost.
        let _ = self.port.lock().unwrap_or_else(PoisonError::into_inner).write_all(text.as_bytes());
    }
}

fn handle(ask: Ask, answers: &Answers, running: &Children) {
    match ask {
        Ask::Run { id, argv, stdin } => {
            let (answers, running) = (answers.clone(), running.clone());
            thread::spawn(move || {
                let code = run(id, &argv, stdin, &answers, &running).unwrap_or_else(|error| {
                    answers.say(&Say::Err { id, text: format!("{error:#}\n") });
                    127
                });
                answers.say(&Say::Exit { id, code });
            });
        }
        Ask::Kill { id } => {
            if let Some(child) = running.lock().unwrap_or_else(PoisonError::into_inner).get_mut(&id) {
                // It may have ended by itself just now.
                let _ = child.kill();
            }
        }
    }
}

fn run(id: u64, argv: &[String], stdin: String, answers: &Answers, running: &Children) -> Result<i32> {
    let (program, arguments) = argv.split_first().context("no program to run")?;
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("running {program}"))?;
    let mut input = child.stdin.take().context("stdin is piped")?;
    let out = child.stdout.take().context("stdout is piped")?;
    let err = child.stderr.take().context("stderr is piped")?;
    running.lock().unwrap_or_else(PoisonError::into_inner).insert(id, child);
    thread::scope(|scope| {
        // A program need not read what it is given.
        scope.spawn(move || drop(input.write_all(stdin.as_bytes())));
        scope.spawn(|| forward(out, |text| answers.say(&Say::Out { id, text })));
        forward(err, |text| answers.say(&Say::Err { id, text }));
    });
    let child = running.lock().unwrap_or_else(PoisonError::into_inner).remove(&id);
    let status = child.context("the child is ours")?.wait()?;
    Ok(status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0)))
}

fn forward(mut from: impl Read, say: impl Fn(String)) {
    let mut buffer = [0; 8192];
    let mut pending = Vec::new();
    while let Ok(read @ 1..) = from.read(&mut buffer) {
        pending.extend_from_slice(&buffer[..read]);
        // Cut only between characters.
        let whole = match std::str::from_utf8(&pending) {
            Ok(_) => pending.len(),
            Err(error) if error.error_len().is_none() => error.valid_up_to(),
            Err(_) => pending.len(),
        };
        let rest = pending.split_off(whole);
        say(String::from_utf8_lossy(&pending).into_owned());
        pending = rest;
    }
}

/// The device of a named virtio-serial port.
fn find_port(name: &str) -> Result<PathBuf> {
    let ports = Path::new("/sys/class/virtio-ports");
    for entry in std::fs::read_dir(ports).with_context(|| format!("reading {}", ports.display()))?.flatten() {
        if std::fs::read_to_string(entry.path().join("name")).is_ok_and(|found| found.trim() == name) {
            return Ok(Path::new("/dev").join(entry.file_name()));
        }
    }
    anyhow::bail!("there is no virtio-serial port `{name}`")
}
