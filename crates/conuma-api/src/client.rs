//! A client of the daemon: one connection for each request, as a Unix socket costs next to nothing.

use std::collections::VecDeque;
use std::io;
use std::path::{Path, PathBuf};

use bytes::Bytes as Payload;
use conuma_topology::VmName;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;

use crate::path::Paths;
use crate::sse::{Frame, FrameReader};
use crate::types::{
    CheckReport, Code, DecisionInfo, DecisionSummary, Event, EventKind, HistoryQuery, HostInfo, LedgerInfo, ModeOrder,
    PinAnswer, PinOrder, Plan, PolicyApplied, PolicyCheck, PolicyInfo, PolicyMode, PolicyText, Problem, ReleaseAnswer,
    StartAnswer, StartPlan, StartQuery, StopQuery, Transfer, TransferAnswer, TransferOrder, TransferRequest, VmDetail,
    VmSummary, VmWhy,
};

/// Largest answer that a client reads, in bytes: a machine of thousands of CPUs fits.
const MAX_ANSWER: usize = 64 << 20;

/// The name of the socket for those who may only look.
pub const VIEWERS: &str = "viewers.sock";

/// Speaks to one daemon.
#[derive(Debug, Clone)]
pub struct Client {
    socket: PathBuf,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The socket cannot be opened.
    #[error("cannot reach the daemon at {}: {source}", socket.display())]
    Connect {
        /// The socket.
        socket: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The conversation broke off.
    #[error("the daemon did not answer {what}")]
    Broken {
        /// What was asked.
        what: String,
        /// Why.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The answer is not what it should be: daemon and client do not fit together.
    #[error("the daemon's answer to {what} cannot be understood: {why}")]
    Malformed {
        /// What was asked.
        what: String,
        /// What is wrong.
        why: String,
    },
    /// The daemon says no.
    #[error(transparent)]
    Problem(#[from] Problem),
}

impl ClientError {
    /// What can be done about it.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Connect { source, .. } => Some(match source.kind() {
                io::ErrorKind::PermissionDenied => {
                    "the socket belongs to root and the daemon's --group (for looking, to --viewers): join it or use sudo".into()
                }
                _ => "is conumad running? `systemctl status conumad`; --socket names another socket".into(),
            }),
            Self::Broken { .. } => Some("`journalctl -u conumad` may say why".into()),
            Self::Malformed { .. } => Some("conuma and conumad should be of the same version".into()),
            Self::Problem(problem) => problem.hint.clone(),
        }
    }

    /// The daemon's own word, if it gave one.
    pub fn problem(&self) -> Option<&Problem> {
        match self {
            Self::Problem(problem) => Some(problem),
            _ => None,
        }
    }
}

impl Client {
    /// A client of the daemon that listens on `socket`. Nothing is opened yet.
    pub fn new(socket: impl Into<PathBuf>) -> Self {
        Self { socket: socket.into() }
    }

    /// Where the daemon listens.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// The machine, its reserve and who holds what.
    pub async fn host(&self) -> Result<HostInfo, ClientError> {
        self.get(Paths::HOST).await
    }

    /// Who holds what.
    pub async fn ledger(&self) -> Result<LedgerInfo, ClientError> {
        self.get(Paths::LEDGER).await
    }

    /// The invariants, held against reality now.
    pub async fn check(&self) -> Result<CheckReport, ClientError> {
        self.get(Paths::CHECK).await
    }

    /// All VMs, by name.
    pub async fn vms(&self) -> Result<Vec<VmSummary>, ClientError> {
        self.get(Paths::VMS).await
    }

    /// One VM in full.
    pub async fn vm(&self, name: &VmName) -> Result<VmDetail, ClientError> {
        self.get(&Paths::vm(name)).await
    }

    /// Starts the VM that `file` describes (the text of a VM file). With `wait` it returns when
    /// QEMU runs the guest, otherwise as soon as its resources are booked.
    pub async fn start(&self, file: &str, wait: bool) -> Result<VmDetail, ClientError> {
        match self.post_vm(file, StartQuery { preview: false, wait }).await? {
            StartAnswer::Vm(vm) => Ok(*vm),
            StartAnswer::Plan(_) => Err(unexpected("a start", "it is a preview")),
        }
    }

    /// What starting that VM would do.
    pub async fn preview_start(&self, file: &str) -> Result<StartPlan, ClientError> {
        match self.post_vm(file, StartQuery { preview: true, wait: true }).await? {
            StartAnswer::Plan(plan) => Ok(*plan),
            StartAnswer::Vm(_) => Err(unexpected("a preview", "the VM was started")),
        }
    }

    /// Stops a VM.
    pub async fn stop(&self, name: &VmName, how: StopQuery) -> Result<(), ClientError> {
        let mut path = format!("{}?force={}&wait={}", Paths::vm(name), how.force, how.wait);
        if let Some(deadline) = how.deadline_ms {
            path.push_str(&format!("&deadline_ms={deadline}"));
        }
        let what = format!("DELETE {path}");
        let response = self.send(Method::DELETE, &path, "application/json", Payload::new()).await?;
        accepted(&what, response).await.map(drop)
    }

    /// Lets go of a VM, which runs on without Conuma.
    pub async fn release(&self, name: &VmName) -> Result<ReleaseAnswer, ClientError> {
        self.post(&Paths::release(name), &serde_json::json!({})).await
    }

    /// Moves cores and memory; returns as soon as the transfer is accepted.
    pub async fn transfer(&self, request: TransferRequest) -> Result<Transfer, ClientError> {
        self.transfer_pinned(request, None).await
    }

    /// The same; the policy leaves its VMs as they are then for so many milliseconds (see [`TransferOrder::pin_for_ms`]).
    pub async fn transfer_pinned(
        &self,
        request: TransferRequest,
        pin_for_ms: Option<u64>,
    ) -> Result<Transfer, ClientError> {
        match self.post_transfer(TransferOrder { request, preview: false, pin_for_ms }).await? {
            TransferAnswer::Transfer(transfer) => Ok(*transfer),
            TransferAnswer::Plan(_) => Err(unexpected("a transfer", "it is a preview")),
        }
    }

    /// What would move.
    pub async fn preview_transfer(&self, request: TransferRequest) -> Result<Plan, ClientError> {
        match self.post_transfer(TransferOrder { request, preview: true, pin_for_ms: None }).await? {
            TransferAnswer::Plan(plan) => Ok(plan),
            TransferAnswer::Transfer(_) => Err(unexpected("a preview", "the transfer was begun")),
        }
    }

    /// The transfers that the daemon remembers, oldest first.
    pub async fn transfers(&self) -> Result<Vec<Transfer>, ClientError> {
        self.get(Paths::TRANSFERS).await
    }

    /// One transfer.
    pub async fn transfer_by_id(&self, id: u64) -> Result<Transfer, ClientError> {
        self.get(&Paths::transfer(id)).await
    }

    /// The policy in force, its mode and pins.
    pub async fn policy(&self) -> Result<PolicyInfo, ClientError> {
        self.get(Paths::POLICY).await
    }

    /// Whether a policy could be applied, and what it would change. Changes nothing: viewers may.
    pub async fn check_policy(&self, text: PolicyText) -> Result<PolicyCheck, ClientError> {
        self.post(Paths::POLICY_CHECK, &text).await
    }

    /// Applies a policy; if it cannot be applied, the one before stays in force.
    pub async fn apply_policy(&self, text: PolicyText) -> Result<PolicyApplied, ClientError> {
        self.post(Paths::POLICY, &text).await
    }

    /// From now on decisions are made (or not) and carried out (or not).
    pub async fn set_policy_mode(&self, mode: PolicyMode) -> Result<PolicyInfo, ClientError> {
        self.put(Paths::POLICY_MODE, &ModeOrder { mode }).await
    }

    /// What would be decided now, in any mode.
    pub async fn plan_rebalance(&self) -> Result<DecisionInfo, ClientError> {
        self.get(Paths::PLAN_REBALANCE).await
    }

    /// Decides now and carries that out once, in any mode. Returns when its transfers have begun.
    pub async fn rebalance(&self) -> Result<DecisionInfo, ClientError> {
        self.post(Paths::REBALANCE, &serde_json::json!({})).await
    }

    /// Why a VM holds what it holds.
    pub async fn why(&self, name: &VmName) -> Result<VmWhy, ClientError> {
        self.get(&Paths::why(name)).await
    }

    /// The policy leaves a VM as it is.
    pub async fn pin(&self, name: &VmName, order: PinOrder) -> Result<PinAnswer, ClientError> {
        self.put(&Paths::pin(name), &order).await
    }

    /// The policy may move a VM's cores and memory again.
    pub async fn unpin(&self, name: &VmName) -> Result<PinAnswer, ClientError> {
        let path = Paths::pin(name);
        let what = format!("DELETE {path}");
        let response = self.send(Method::DELETE, &path, "application/json", Payload::new()).await?;
        decode(&what, &accepted(&what, response).await?)
    }

    /// The decisions that were made, newest first.
    pub async fn history(&self, query: &HistoryQuery) -> Result<Vec<DecisionSummary>, ClientError> {
        self.get(&Paths::history(query)).await
    }

    /// One decision, with its inputs and what came of it.
    pub async fn decision(&self, id: u64) -> Result<DecisionInfo, ClientError> {
        self.get(&Paths::decision(id)).await
    }

    /// The description of the API (OpenAPI).
    pub async fn openapi(&self) -> Result<serde_json::Value, ClientError> {
        self.get(Paths::OPENAPI).await
    }

    /// What happens from now on; with a name only what concerns this VM, with kinds ([`EventKind::NAMES`]) only those.
    ///
    /// Events that happen after this returned are not missed, unless [`EventKind::Missed`] says so.
    pub async fn events(&self, vm: Option<&VmName>, kinds: &[&str]) -> Result<EventStream, ClientError> {
        let path = Paths::events(vm, kinds);
        let what = format!("GET {path}");
        let response = self.send(Method::GET, &path, "application/json", Payload::new()).await?;
        let status = response.status();
        if !status.is_success() {
            return Err(refusal(&what, status, &read(&what, response).await?));
        }
        Ok(EventStream { body: response.into_body(), reader: FrameReader::new(), ready: VecDeque::new() })
    }

    async fn post_vm(&self, file: &str, query: StartQuery) -> Result<StartAnswer, ClientError> {
        let path = format!("{}?preview={}&wait={}", Paths::VMS, query.preview, query.wait);
        let what = format!("POST {path}");
        let body = Payload::copy_from_slice(file.as_bytes());
        let response = self.send(Method::POST, &path, "application/toml", body).await?;
        decode(&what, &accepted(&what, response).await?)
    }

    async fn post_transfer(&self, order: TransferOrder) -> Result<TransferAnswer, ClientError> {
        self.post(Paths::TRANSFERS, &order).await
    }

    async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, ClientError> {
        let what = format!("GET {path}");
        let response = self.send(Method::GET, path, "application/json", Payload::new()).await?;
        decode(&what, &accepted(&what, response).await?)
    }

    async fn post<T: DeserializeOwned>(&self, path: &str, body: &impl Serialize) -> Result<T, ClientError> {
        self.write(Method::POST, path, body).await
    }

    async fn put<T: DeserializeOwned>(&self, path: &str, body: &impl Serialize) -> Result<T, ClientError> {
        self.write(Method::PUT, path, body).await
    }

    async fn write<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: &impl Serialize,
    ) -> Result<T, ClientError> {
        let what = format!("{method} {path}");
        let body = serde_json::to_vec(body).map_err(|e| unexpected(&what, e))?;
        let response = self.send(method, path, "application/json", body.into()).await?;
        decode(&what, &accepted(&what, response).await?)
    }

    async fn send(
        &self,
        method: Method,
        path: &str,
        content_type: &str,
        body: Payload,
    ) -> Result<Response<Incoming>, ClientError> {
        let what = format!("{method} {path}");
        let looks = method == Method::GET || path == Paths::POLICY_CHECK;
        let stream = match UnixStream::connect(&self.socket).await {
            // Whoever may only look has a socket beside the other.
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied && looks => {
                UnixStream::connect(self.socket.with_file_name(VIEWERS)).await.map_err(|_| error)
            }
            stream => stream,
        };
        let stream = stream.map_err(|source| ClientError::Connect { socket: self.socket.clone(), source })?;
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|e| broken(&what, e))?;
        // Ends when the answer has been read or dropped.
        tokio::spawn(connection);
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("host", "conumad")
            .header("content-type", content_type)
            .body(Full::new(body))
            .map_err(|e| unexpected(&what, e))?;
        sender.send_request(request).await.map_err(|e| broken(&what, e))
    }
}

/// What happens on the host, as it happens.
#[derive(Debug)]
pub struct EventStream {
    body: Incoming,
    reader: FrameReader,
    ready: VecDeque<Frame>,
}

impl EventStream {
    /// The next event; `None` when the daemon ended the stream. Safe to cancel: no event is lost.
    pub async fn next(&mut self) -> Result<Option<Event>, ClientError> {
        let what = "the event stream";
        loop {
            while let Some(frame) = self.ready.pop_front() {
                match serde_json::from_str(&frame.data) {
                    Ok(event) => return Ok(Some(event)),
                    Err(error) if EventKind::NAMES.contains(&frame.event.as_str()) => {
                        return Err(unexpected(what, error));
                    }
                    // Of a newer daemon.
                    Err(_) => {}
                }
            }
            match self.body.frame().await {
                None => return Ok(None),
                Some(Err(error)) => return Err(broken(what, error)),
                Some(Ok(part)) => {
                    let bytes = part.into_data().unwrap_or_default();
                    self.ready.extend(self.reader.push(&bytes).map_err(|e| unexpected(what, e))?);
                }
            }
        }
    }
}

async fn accepted(what: &str, response: Response<Incoming>) -> Result<Payload, ClientError> {
    let status = response.status();
    let body = read(what, response).await?;
    if status.is_success() { Ok(body) } else { Err(refusal(what, status, &body)) }
}

async fn read(what: &str, response: Response<Incoming>) -> Result<Payload, ClientError> {
    let body = Limited::new(response.into_body(), MAX_ANSWER);
    Ok(body.collect().await.map_err(|source| ClientError::Broken { what: what.into(), source })?.to_bytes())
}

fn refusal(what: &str, status: StatusCode, body: &[u8]) -> ClientError {
    match serde_json::from_slice::<Problem>(body) {
        Ok(problem) => ClientError::Problem(problem),
        Err(_) => {
            let text: String = String::from_utf8_lossy(body).chars().take(200).collect();
            ClientError::Problem(Problem::new(Code::Unknown, format!("{what} was answered by {status}: {text}")))
        }
    }
}

fn decode<T: DeserializeOwned>(what: &str, body: &[u8]) -> Result<T, ClientError> {
    serde_json::from_slice(body).map_err(|e| unexpected(what, e))
}

fn unexpected(what: &str, why: impl ToString) -> ClientError {
    ClientError::Malformed { what: what.into(), why: why.to_string() }
}

fn broken(what: &str, source: hyper::Error) -> ClientError {
    ClientError::Broken { what: what.into(), source: Box::new(source) }
}
