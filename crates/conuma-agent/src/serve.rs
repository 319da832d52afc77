//! Conversations with the host: frames, the handshake, who answers what.

use std::cell::RefCell;
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use bytes::Bytes;
use conuma_agent_proto::{
    AgentError, MAX_FRAME, Pushed, Refusal, Reply, Report, Request, RequestBody, RequestId, Resource, Response,
    VERSIONS, decode_request, encode_response, request_id,
};
use futures_util::{SinkExt as _, StreamExt as _};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::task::JoinSet;
use tokio_util::codec::{Framed, LengthDelimitedCodec};

use crate::holding::{Depth, Holder};
use crate::kernel::Kernel;
use crate::report::Reporter;
use crate::triggers::Triggers;
use crate::{error, facts, memory, warn};

/// Most requests about memory at a time on a connection; these may take long.
const MAX_SLOW: usize = 16;
/// How long after an answer what it left undone is done: by then the other guest of a transfer has its part, whose CPUs it
/// would slow down where hosts are small.
const FINISH_AFTER: Duration = Duration::from_millis(500);

/// The agent: what all conversations share.
pub struct Agent {
    kernel: Arc<dyn Kernel>,
    holder: RefCell<Holder>,
    reporter: RefCell<Reporter>,
    last_refused: RefCell<Vec<Refusal>>,
}

impl Agent {
    /// Starts where an earlier run of this boot stopped. Memory that appears becomes movable,
    /// unless `keep_auto_online`.
    pub fn start(kernel: Arc<dyn Kernel>, run_dir: &Path, keep_auto_online: bool) -> anyhow::Result<Self> {
        let mut holder = Holder::open(Arc::clone(&kernel), run_dir)?;
        if !keep_auto_online && let Err(error) = memory::online_as_movable(&*kernel) {
            warn!("memory that is given may never come back: auto_online_blocks cannot be set: {error}");
        }
        if let Err(error) = holder.settle() {
            warn!("holdings cannot be applied: {error}");
        }
        Ok(Self {
            kernel,
            holder: RefCell::new(holder),
            reporter: RefCell::default(),
            last_refused: RefCell::default(),
        })
    }

    /// Whether some CPU is not to be used, so that the holding needs watching.
    pub fn is_restricted(&self) -> bool {
        self.holder.borrow().is_restricted()
    }

    /// Applies the last holding again. Tells people only what is new.
    pub fn watch_over(&self, depth: Depth) {
        match self.holder.borrow_mut().reapply(depth) {
            Ok(None) => {}
            Ok(Some(outcome)) => {
                if outcome.refused != *self.last_refused.borrow() {
                    for refusal in &outcome.refused {
                        warn!("CPUs {} do not follow the holding: {}", refusal.cpus, refusal.reason);
                    }
                    *self.last_refused.borrow_mut() = outcome.refused;
                }
            }
            Err(error) => error!("the holding cannot be applied again: {error}"),
        }
    }

    /// Comes back when it is time to do what the last answer left undone.
    async fn unfinished(&self) {
        let since = self.holder.borrow().unfinished_since();
        match since {
            Some(since) => tokio::time::sleep_until((since + FINISH_AFTER).into()).await,
            None => std::future::pending().await,
        }
    }

    /// Does what the last answer left undone.
    fn finish(&self) {
        if let Err(error) = self.holder.borrow_mut().finish() {
            error!("the holding cannot be applied in full: {error}");
        }
    }

    /// Answers what is answered at once; `None` for what takes its time.
    fn answer(&self, request: &Request, received: Instant) -> Option<Result<Reply, AgentError>> {
        match &request.body {
            RequestBody::Hello(hello) => Some(match VERSIONS.common(hello.versions) {
                Some(version) => Ok(Reply::Hello(facts::facts(&*self.kernel, &self.holder.borrow(), version))),
                None => Err(AgentError::Version(VERSIONS)),
            }),
            RequestBody::ApplyHolding { cpus } => {
                let deadline = received + request.deadline;
                let outcome = self.holder.borrow_mut().apply(request.generation, cpus, deadline);
                Some(outcome.map(Reply::Holding))
            }
            RequestBody::Report => Some(self.report().map(Reply::Report)),
            RequestBody::PrepareMemory { .. } => self.holder.borrow_mut().fence(request.generation).err().map(Err),
            RequestBody::ConfirmMemory { .. } | RequestBody::Watch { .. } => None,
        }
    }

    fn report(&self) -> Result<Report, AgentError> {
        self.reporter.borrow_mut().report(&*self.kernel).map_err(|error| AgentError::Failed(error.to_string()))
    }

    /// What is sent when a trigger has fired; nothing, if there is nothing to tell.
    fn pushed(&self, resource: Resource) -> Option<Response> {
        match self.report() {
            Ok(report) => {
                Some(Response { id: RequestId::PUSHED, body: Ok(Reply::Pushed(Pushed { resource, report })) })
            }
            Err(error) => {
                error!("the host is not told of pressure: {error}");
                None
            }
        }
    }

    async fn answer_slowly(self: Rc<Self>, request: Request, received: Instant) -> Response {
        // Stops working earlier, so that the answer is there in time.
        let stop = received + request.deadline * 9 / 10;
        let body = match request.body {
            RequestBody::PrepareMemory { node, bytes } => {
                // May wait long in the kernel, so not on the thread that serves.
                let kernel = Arc::clone(&self.kernel);
                let work = tokio::task::spawn_blocking(move || memory::prepare(&*kernel, node, bytes, stop));
                // Pages of one process move in one go: the host gets its answer in time all the same.
                match tokio::time::timeout_at((received + request.deadline).into(), work).await {
                    Ok(Ok(result)) => result.map(Reply::Prepared),
                    Ok(Err(error)) => Err(AgentError::Failed(error.to_string())),
                    Err(_) => Err(AgentError::Deadline(format!("making room on node {node} goes on"))),
                }
            }
            RequestBody::ConfirmMemory { node, at_least } => {
                memory::confirm(&*self.kernel, node, at_least, stop).await.map(Reply::Memory)
            }
            RequestBody::Hello(_)
            | RequestBody::ApplyHolding { .. }
            | RequestBody::Report
            | RequestBody::Watch { .. } => Err(AgentError::Failed("this request is answered at once".into())),
        };
        Response { id: request.id, body }
    }
}

/// What a conversation has come to.
#[derive(Default)]
struct Talk {
    greeted: bool,
    /// Requests under way that take their time.
    slow: JoinSet<Response>,
    triggers: Triggers,
}

/// Talks with a host until it hangs up or breaks the protocol.
pub async fn converse(agent: Rc<Agent>, stream: impl AsyncRead + AsyncWrite + Unpin) -> anyhow::Result<()> {
    let codec = LengthDelimitedCodec::builder().big_endian().max_frame_length(MAX_FRAME).new_codec();
    let mut frames = Framed::new(stream, codec);
    let result = answer_all(&agent, &mut frames).await;
    agent.finish();
    result
}

async fn answer_all<S: AsyncRead + AsyncWrite + Unpin>(
    agent: &Rc<Agent>,
    frames: &mut Framed<S, LengthDelimitedCodec>,
) -> anyhow::Result<()> {
    let mut talk = Talk::default();
    loop {
        let response = tokio::select! {
            frame = frames.next() => {
                let Some(frame) = frame else { return Ok(()) };
                let frame = frame.context("reading a request")?;
                let received = Instant::now();
                match take(agent, &frame, received, &mut talk)? {
                    Some(response) => response,
                    None => continue,
                }
            }
            Some(done) = talk.slow.join_next() => done.context("a request about memory ended early")?,
            resource = talk.triggers.fired() => match agent.pushed(resource) {
                Some(pushed) => pushed,
                None => continue,
            },
            () = agent.unfinished() => {
                agent.finish();
                continue;
            }
        };
        frames.send(Bytes::from(encode_response(&response))).await.context("sending an answer")?;
    }
}

/// Handles one frame; the answer, if there is one already.
fn take(agent: &Rc<Agent>, frame: &[u8], received: Instant, talk: &mut Talk) -> anyhow::Result<Option<Response>> {
    let refuse = |id: RequestId, why: String| Ok(Some(Response { id, body: Err(AgentError::BadRequest(why)) }));
    let mut request = match decode_request(frame) {
        Ok(request) => request,
        // Perhaps of a newer version: refused, not a reason to hang up, if it can be answered.
        Err(error) => match request_id(frame) {
            Some(id) => return refuse(id, error.to_string()),
            None => return Err(error).context("reading a request"),
        },
    };
    // Nothing sensible takes longer, and times far ahead cannot be added up.
    request.deadline = request.deadline.min(Duration::from_secs(3600));
    if !talk.greeted && !matches!(request.body, RequestBody::Hello(_)) {
        return refuse(request.id, "the first request must be a greeting".into());
    }
    if let RequestBody::Watch { cpu, memory } = request.body {
        let body = talk.triggers.arm(&*agent.kernel, cpu, memory);
        return Ok(Some(Response { id: request.id, body }));
    }
    if let Some(body) = agent.answer(&request, received) {
        talk.greeted |= matches!(body, Ok(Reply::Hello(_)));
        return Ok(Some(Response { id: request.id, body }));
    }
    if talk.slow.len() >= MAX_SLOW {
        return refuse(request.id, format!("{MAX_SLOW} requests about memory are under way"));
    }
    talk.slow.spawn_local(Rc::clone(agent).answer_slowly(request, received));
    Ok(None)
}
