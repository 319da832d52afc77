//! One connection to an agent: greeting, then requests and answers in any order.
//!
//! The guest is not trusted: frames are bounded by the protocol, so is the number of requests under way, and
//! a peer that does not read, or sends what is no answer, loses the connection.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use bytes::Bytes;
use conuma_agent_proto::{
    AgentError, Generation, GuestFacts, Hello, MAX_FRAME, Reply, Request, RequestBody, RequestId, VERSIONS,
    decode_response, encode_request, is_pushed,
};
use futures_util::{SinkExt as _, StreamExt as _};
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;
use tokio_util::codec::{Framed, LengthDelimitedCodec};

use super::door::Stream;
use super::pushes::Pushes;

/// Requests under way on one connection at most.
const MAX_UNDER_WAY: usize = 32;

/// How long the greeting may take: a guest that has just booted is slow.
const GREETING: Duration = Duration::from_secs(10);

/// How long a peer may refuse to read.
const SEND: Duration = Duration::from_secs(5);

/// Why a connection ends.
const NO_ANSWER: &str = "what it sent is no answer";

/// A question to an agent.
#[derive(Debug)]
pub(super) struct Ask {
    pub(super) generation: Generation,
    pub(super) deadline: Duration,
    pub(super) body: RequestBody,
    pub(super) answer: oneshot::Sender<Result<Reply, AgentError>>,
}

/// A connection.
pub(super) struct Conversation {
    frames: Framed<Box<dyn Stream>, LengthDelimitedCodec>,
    next: u64,
    under_way: HashMap<RequestId, oneshot::Sender<Result<Reply, AgentError>>>,
}

impl Conversation {
    /// Greets the agent and learns what it says of its guest.
    pub(super) async fn begin(stream: Box<dyn Stream>) -> anyhow::Result<(Self, GuestFacts)> {
        let codec = LengthDelimitedCodec::builder().max_frame_length(MAX_FRAME).new_codec();
        let mut this = Self { frames: Framed::new(stream, codec), next: 0, under_way: HashMap::new() };
        let hello = Hello { versions: VERSIONS, daemon_version: env!("CARGO_PKG_VERSION").into() };
        let greet = async {
            this.send(Generation::default(), GREETING, RequestBody::Hello(hello)).await?;
            let frame = this.frames.next().await.context("it closed the connection instead of greeting")??;
            match decode_response(&frame)?.body {
                Ok(Reply::Hello(facts)) => anyhow::Ok(facts),
                Ok(_) => bail!("it answered the greeting with something else"),
                Err(error) => Err(error.into()),
            }
        };
        let facts = timeout(GREETING, greet).await.context("it did not greet in time")??;
        if VERSIONS.common(conuma_agent_proto::Versions { min: facts.version, max: facts.version }).is_none() {
            bail!("it wants to speak version {}, which was not offered", facts.version);
        }
        Ok((this, facts))
    }

    /// Carries questions and answers, and what the agent sends unasked, until the connection ends; says why it did.
    pub(super) async fn carry(mut self, asks: &mut mpsc::Receiver<Ask>, pushes: &mut Pushes) -> anyhow::Error {
        loop {
            let step = tokio::select! {
                frame = self.frames.next() => match frame {
                    Some(Ok(frame)) if is_pushed(&frame) => pushes.take(&frame, Instant::now()).context(NO_ANSWER),
                    Some(Ok(frame)) => self.answered(&frame),
                    Some(Err(error)) => Err(error.into()),
                    None => Err(anyhow::anyhow!("it closed the connection")),
                },
                ask = asks.recv(), if self.has_room() => match ask {
                    Some(ask) => self.ask(ask).await,
                    None => Err(anyhow::anyhow!("it is not needed any more")),
                },
            };
            if let Err(error) = step {
                return error;
            }
        }
    }

    fn has_room(&mut self) -> bool {
        if self.under_way.len() >= MAX_UNDER_WAY {
            self.under_way.retain(|_, answer| !answer.is_closed());
        }
        self.under_way.len() < MAX_UNDER_WAY
    }

    async fn ask(&mut self, ask: Ask) -> anyhow::Result<()> {
        let id = self.send(ask.generation, ask.deadline, ask.body).await?;
        self.under_way.insert(id, ask.answer);
        Ok(())
    }

    fn answered(&mut self, frame: &[u8]) -> anyhow::Result<()> {
        let response = decode_response(frame).context(NO_ANSWER)?;
        // An answer that nobody waits for is late or made up: both do no harm.
        if let Some(answer) = self.under_way.remove(&response.id) {
            let _ = answer.send(response.body);
        }
        Ok(())
    }

    async fn send(
        &mut self,
        generation: Generation,
        deadline: Duration,
        body: RequestBody,
    ) -> anyhow::Result<RequestId> {
        let id = RequestId(self.next);
        self.next += 1;
        let bytes = encode_request(&Request { id, generation, deadline, body });
        timeout(SEND, self.frames.send(Bytes::from(bytes))).await.context("it does not read")??;
        Ok(id)
    }
}
