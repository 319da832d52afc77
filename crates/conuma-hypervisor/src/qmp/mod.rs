//! A thin client of QEMU's monitor protocol (docs/interop/qmp-spec.rst).
//!
//! One task reads lines; answers find their command by id, so a command that was given up on does no harm when its
//! answer comes late. Events are passed on as they are, whether this client knows them or not.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncBufRead, AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{Mutex, broadcast, oneshot, watch};
use tokio::task::AbortHandle;

/// Longest line that is read: a `query-memdev` of 16 nodes or a `qom-list` has a few hundred KiB at most.
const MAX_LINE: u64 = 8 << 20;
/// Events kept for a slow reader before it misses the oldest.
const EVENT_BACKLOG: usize = 256;

/// Something about the monitor went wrong.
#[derive(Debug, Clone, thiserror::Error)]
pub enum QmpError {
    /// Nobody listens there.
    #[error("cannot connect to QEMU's monitor at {}: {reason}", path.display())]
    Connect {
        /// The socket.
        path: PathBuf,
        /// The kernel's answer.
        reason: String,
    },
    /// What listens there does not greet as QEMU does.
    #[error("{} does not greet as QEMU does: {reason}", path.display())]
    Greeting {
        /// The socket.
        path: PathBuf,
        /// What was wrong.
        reason: String,
    },
    /// QEMU is gone, or closed the connection.
    #[error("QEMU closed its monitor during `{command}`")]
    Closed {
        /// The command under way.
        command: String,
    },
    /// No answer in time; the command may or may not have been carried out.
    #[error("QEMU did not answer `{command}` within {} ms", budget.as_millis())]
    TimedOut {
        /// The command.
        command: String,
        /// How long was waited.
        budget: Duration,
    },
    /// QEMU says no.
    #[error("QEMU refused `{command}`: {description} ({class})")]
    Refused {
        /// The command.
        command: String,
        /// QEMU's error class.
        class: String,
        /// QEMU's words.
        description: String,
    },
    /// QEMU's answer has another form than it should.
    #[error("QEMU's answer to `{command}` is not understood: {reason}")]
    Malformed {
        /// The command.
        command: String,
        /// What was wrong.
        reason: String,
    },
}

/// An event of QEMU's.
#[derive(Debug, Clone, PartialEq)]
pub struct QmpEvent {
    /// Its name, for example `RESET`.
    pub name: String,
    /// Its data, whatever it is.
    pub data: Value,
}

type Answer = Result<Value, (String, String)>;
type Waiting = Arc<Mutex<HashMap<u64, oneshot::Sender<Answer>>>>;

/// A connection to one QEMU.
#[derive(Debug)]
pub struct Qmp {
    writer: Mutex<OwnedWriteHalf>,
    waiting: Waiting,
    next_id: AtomicU64,
    events: broadcast::Sender<QmpEvent>,
    open: watch::Receiver<bool>,
    reader: AbortHandle,
    greeting: Value,
    peer: Option<u32>,
}

impl Qmp {
    /// Connects and leaves QMP's negotiation mode, all within `budget`.
    pub async fn connect(path: &Path, budget: Duration) -> Result<Self, QmpError> {
        let connect = async {
            let failed = |reason: std::io::Error| QmpError::Connect { path: path.into(), reason: reason.to_string() };
            let stream = UnixStream::connect(path).await.map_err(failed)?;
            let peer = stream.peer_cred().ok().and_then(|peer| u32::try_from(peer.pid()?).ok());
            let (reader, writer) = stream.into_split();
            let mut reader = BufReader::new(reader);
            let wrong = |reason: String| QmpError::Greeting { path: path.into(), reason };
            let line = next_line(&mut reader).await.map_err(|e| wrong(e.to_string()))?;
            let greeting: Value = serde_json::from_str(&line).map_err(|e| wrong(e.to_string()))?;
            if greeting.get("QMP").is_none() {
                return Err(wrong("no `QMP` in its first line".into()));
            }
            Ok((reader, writer, greeting, peer))
        };
        let timed_out = |_| QmpError::TimedOut { command: "greeting".into(), budget };
        let (reader, writer, greeting, peer) = tokio::time::timeout(budget, connect).await.map_err(timed_out)??;
        let mut qmp = Self::serve(reader, writer, greeting);
        qmp.peer = peer;
        qmp.call("qmp_capabilities", json!({}), budget).await?;
        Ok(qmp)
    }

    fn serve(reader: BufReader<OwnedReadHalf>, writer: OwnedWriteHalf, greeting: Value) -> Self {
        let waiting = Waiting::default();
        let (events, _) = broadcast::channel(EVENT_BACKLOG);
        let (closing, open) = watch::channel(true);
        let task = tokio::spawn(read(reader, waiting.clone(), events.clone(), closing));
        let reader = task.abort_handle();
        Self {
            writer: Mutex::new(writer),
            waiting,
            next_id: AtomicU64::new(1),
            events,
            open,
            reader,
            greeting,
            peer: None,
        }
    }

    /// QEMU's version as its greeting tells it: major, minor, micro.
    pub fn version(&self) -> Option<(u64, u64, u64)> {
        let version = &self.greeting["QMP"]["version"]["qemu"];
        Some((version["major"].as_u64()?, version["minor"].as_u64()?, version["micro"].as_u64()?))
    }

    /// The process that listens at the socket, as the kernel knows it.
    pub fn peer(&self) -> Option<u32> {
        self.peer
    }

    /// Runs a command and gives its `return` value.
    pub async fn call(&self, command: &str, arguments: Value, budget: Duration) -> Result<Value, QmpError> {
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        let (sender, answer) = oneshot::channel();
        self.waiting.lock().await.insert(id, sender);
        let exchange = async {
            let line = json!({"execute": command, "arguments": arguments, "id": id}).to_string();
            let sent = self.writer.lock().await.write_all(format!("{line}\n").as_bytes()).await;
            if sent.is_err() || !*self.open.borrow() {
                return Err(QmpError::Closed { command: command.into() });
            }
            answer.await.map_err(|_| QmpError::Closed { command: command.into() })
        };
        let outcome = tokio::time::timeout(budget, exchange).await;
        self.waiting.lock().await.remove(&id);
        let answer = outcome.map_err(|_| QmpError::TimedOut { command: command.into(), budget })??;
        answer.map_err(|(class, description)| QmpError::Refused { command: command.into(), class, description })
    }

    /// Events from now on.
    pub fn events(&self) -> broadcast::Receiver<QmpEvent> {
        self.events.subscribe()
    }

    /// Comes back when QEMU has closed the connection, which it does when it ends.
    pub async fn closed(&self) {
        let mut open = self.open.clone();
        // An error means that the reader is gone: closed as well.
        let _ = open.wait_for(|open| !open).await;
    }
}

impl Drop for Qmp {
    fn drop(&mut self) {
        self.reader.abort();
    }
}

async fn read(
    mut reader: BufReader<OwnedReadHalf>,
    waiting: Waiting,
    events: broadcast::Sender<QmpEvent>,
    closing: watch::Sender<bool>,
) {
    while let Ok(line) = next_line(&mut reader).await {
        match serde_json::from_str::<Value>(&line) {
            Ok(message) => dispatch(message, &waiting, &events).await,
            Err(error) => tracing::warn!(%error, "a line of QEMU's monitor is not JSON"),
        }
    }
    closing.send_replace(false);
    // Whoever still waits learns it by its dropped sender.
    waiting.lock().await.clear();
}

async fn dispatch(mut message: Value, waiting: &Waiting, events: &broadcast::Sender<QmpEvent>) {
    if let Some(name) = message["event"].as_str() {
        // Nobody listening is fine.
        let _ = events.send(QmpEvent { name: name.to_owned(), data: message["data"].clone() });
        return;
    }
    let Some(sender) = (match message["id"].as_u64() {
        Some(id) => waiting.lock().await.remove(&id),
        None => None,
    }) else {
        return;
    };
    let text = |value: &Value| value.as_str().unwrap_or("unknown").to_owned();
    let answer = match message.get("error") {
        Some(error) => Err((text(&error["class"]), text(&error["desc"]))),
        None => Ok(message["return"].take()),
    };
    // Whoever asked may have given up.
    let _ = sender.send(answer);
}

async fn next_line<R: AsyncBufRead + Unpin>(reader: &mut R) -> std::io::Result<String> {
    let mut line = String::new();
    let read = reader.take(MAX_LINE).read_line(&mut line).await?;
    if read == 0 || !line.ends_with('\n') {
        return Err(std::io::Error::new(
            std::io::ErrorKind::UnexpectedEof,
            "the connection ended or the line is too long",
        ));
    }
    Ok(line)
}

#[cfg(test)]
mod tests;
