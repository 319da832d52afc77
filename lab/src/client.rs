//! The asking end of a virtio-serial port: a Unix socket of QEMU's.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::wire::{Ask, Say};

/// What a command did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Output {
    /// Its exit code.
    pub code: i32,
    /// Its standard output.
    pub out: String,
    /// Its standard error.
    pub err: String,
}

impl Output {
    /// Its standard output, if it ended well.
    pub fn ok(self) -> Result<String> {
        if self.code != 0 {
            bail!("exit code {}: {}{}", self.code, self.err, self.out);
        }
        Ok(self.out)
    }
}

type Listeners = Arc<Mutex<HashMap<u64, Sender<Say>>>>;

/// A connection to a responder.
#[derive(Debug)]
pub struct Client {
    stream: Mutex<UnixStream>,
    listeners: Listeners,
    next: AtomicU64,
}

impl Client {
    /// Connects to QEMU's end of the port.
    pub fn connect(socket: &Path) -> Result<Self> {
        let stream = UnixStream::connect(socket).with_context(|| format!("connecting to {}", socket.display()))?;
        let listeners = Listeners::default();
        let lines = BufReader::new(stream.try_clone()?);
        let to = listeners.clone();
        thread::spawn(move || {
            for line in lines.lines().map_while(Result::ok) {
                // The first line after somebody else's visit may be the rest of theirs.
                let Ok(say) = serde_json::from_str::<Say>(&line) else { continue };
                if let Some(listener) = to.lock().unwrap_or_else(PoisonError::into_inner).get(&say.id()) {
                    let _ = listener.send(say);
                }
            }
            to.lock().unwrap_or_else(PoisonError::into_inner).clear();
        });
        // Ids must differ from those of clients before this one.
        let first = std::time::UNIX_EPOCH.elapsed().unwrap_or_default().as_nanos() as u64;
        Ok(Self { stream: Mutex::new(stream), listeners, next: AtomicU64::new(first) })
    }

    /// Starts a command.
    pub fn start(&self, argv: &[&str], stdin: &str) -> Result<Command<'_>> {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let (sender, says) = channel();
        self.listeners.lock().unwrap_or_else(PoisonError::into_inner).insert(id, sender);
        let argv = argv.iter().map(|word| (*word).to_owned()).collect();
        self.ask(&Ask::Run { id, argv, stdin: stdin.to_owned() })?;
        Ok(Command { client: self, id, says, output: Output::default() })
    }

    fn ask(&self, ask: &Ask) -> Result<()> {
        let line = format!("{}\n", serde_json::to_string(ask)?);
        Ok(self.stream.lock().unwrap_or_else(PoisonError::into_inner).write_all(line.as_bytes())?)
    }
}

/// A command under way.
#[derive(Debug)]
pub struct Command<'a> {
    client: &'a Client,
    id: u64,
    says: Receiver<Say>,
    output: Output,
}

impl Command<'_> {
    /// Waits for its end; `live` sees each part of its output as it comes.
    pub fn wait(mut self, budget: Duration, live: &mut dyn FnMut(&Say)) -> Result<Output> {
        let until = Instant::now() + budget;
        loop {
            match self.says.recv_timeout(until.saturating_duration_since(Instant::now())) {
                Ok(say) => {
                    live(&say);
                    match say {
                        Say::Out { text, .. } => self.output.out.push_str(&text),
                        Say::Err { text, .. } => self.output.err.push_str(&text),
                        Say::Exit { code, .. } => {
                            self.output.code = code;
                            return Ok(std::mem::take(&mut self.output));
                        }
                    }
                }
                Err(RecvTimeoutError::Timeout) => {
                    self.client.ask(&Ask::Kill { id: self.id })?;
                    bail!("not done after {} s; so far: {}{}", budget.as_secs(), self.output.out, self.output.err);
                }
                Err(RecvTimeoutError::Disconnected) => bail!("the machine is gone"),
            }
        }
    }

    /// Ends it.
    pub fn kill(&self) -> Result<()> {
        self.client.ask(&Ask::Kill { id: self.id })
    }
}

impl Drop for Command<'_> {
    fn drop(&mut self) {
        self.client.listeners.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.id);
    }
}
