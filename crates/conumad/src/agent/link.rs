//! The link to one agent: connects, and connects again whenever that ends.

use std::sync::Arc;
use std::time::Duration;

use conuma_agent_proto::{AgentError, Generation, GuestFacts, Reply, Report, RequestBody, Resource};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, sleep, timeout, timeout_at};
use tokio_util::sync::CancellationToken;

use super::conversation::{Ask, Conversation};
use super::door::Door;
use super::pushes::Pushes;
use crate::clock::Clock;

/// Between attempts: the first wait, and the longest.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(2));

/// A connection that lasted so long was a good one: the next attempt is made soon.
const LASTED: Duration = Duration::from_secs(10);

/// How long opening a connection may take.
const OPEN: Duration = Duration::from_secs(5);

/// Questions that wait to be sent.
const QUEUE: usize = 16;

/// How much earlier than the host the agent gives up, so that its answer still arrives in time: a
/// tenth, and at most this.
const HEADROOM: Duration = Duration::from_millis(200);

/// Why there is no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AskError {
    /// There is no connection, or it ended.
    #[error("not connected")]
    Unreachable,
    /// No answer in time.
    #[error("no answer in time")]
    TimedOut,
    /// The agent says no.
    #[error(transparent)]
    Agent(AgentError),
}

/// How a link stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LinkState {
    /// Never connected yet.
    Awaited,
    /// Connected.
    Connected,
    /// Was connected.
    Lost,
}

/// What is known of a link.
#[derive(Debug, Clone)]
pub struct LinkStatus {
    /// How it stands.
    pub state: LinkState,
    /// Since when, in engine time.
    pub since: Duration,
    /// What the agent said when it connected last.
    pub facts: Option<Arc<GuestFacts>>,
    /// Why the last attempt failed, the connection ended, or nothing comes by it.
    pub last_error: Option<String>,
    line: Option<mpsc::Sender<Ask>>,
}

/// What happened to a link.
#[derive(Debug, Clone)]
pub enum LinkEvent {
    /// The agent is there.
    Connected(Arc<GuestFacts>),
    /// The connection ended, with its reason.
    Lost(String),
    /// The agent sent a report unasked: what its guest was told to watch is scarce. Eight a second at most.
    Pressed {
        /// What is scarce.
        resource: Resource,
        /// The report.
        report: Arc<Report>,
        /// How many more it sent since the last that was passed on.
        dropped: u64,
    },
}

/// Asks one agent.
#[derive(Debug, Clone)]
pub struct AgentLink {
    status: watch::Sender<LinkStatus>,
}

impl AgentLink {
    /// Starts to connect; what happens goes to `events`. Ends with `stop`.
    pub fn start(door: Door, clock: Clock, events: mpsc::Sender<LinkEvent>, stop: CancellationToken) -> Self {
        let first =
            LinkStatus { state: LinkState::Awaited, since: clock.now(), facts: None, last_error: None, line: None };
        let status = watch::Sender::new(first);
        let keeper = Keeper { door, clock, events, status: status.clone() };
        tokio::spawn(async move { stop.run_until_cancelled(keeper.keep()).await });
        Self { status }
    }

    /// How it stands.
    pub fn status(&self) -> LinkStatus {
        self.status.borrow().clone()
    }

    /// Asks, with an answer expected within `budget`. Questions are sent in the order in which this comes back.
    pub async fn ask(&self, generation: u64, budget: Duration, body: RequestBody) -> Result<Asked, AskError> {
        let line = self.status.borrow().line.clone().ok_or(AskError::Unreachable)?;
        let until = Instant::now() + budget;
        let deadline = budget.saturating_sub(HEADROOM.min(budget / 10));
        let (answer, answered) = oneshot::channel();
        let ask = Ask { generation: Generation(generation), deadline, body, answer };
        let asked = Asked { answered, until, budget, status: self.status.clone() };
        match timeout_at(until, line.send(ask)).await {
            Ok(Ok(())) => Ok(asked),
            Ok(Err(_)) => Err(AskError::Unreachable),
            Err(_) => Err(asked.timed_out()),
        }
    }
}

/// A question that was sent.
#[derive(Debug)]
pub struct Asked {
    answered: oneshot::Receiver<Result<Reply, AgentError>>,
    until: Instant,
    budget: Duration,
    status: watch::Sender<LinkStatus>,
}

impl Asked {
    /// Waits for the answer.
    pub async fn answer(mut self) -> Result<Reply, AskError> {
        match timeout_at(self.until, &mut self.answered).await {
            Ok(Ok(reply)) => {
                self.tell(None);
                reply.map_err(AskError::Agent)
            }
            Ok(Err(_)) => Err(AskError::Unreachable),
            Err(_) => Err(self.timed_out()),
        }
    }

    /// Its connection stands, and yet it is silent: that is seen nowhere else.
    fn timed_out(&self) -> AskError {
        self.tell(Some(format!("it is connected and did not answer within {} ms", self.budget.as_millis())));
        AskError::TimedOut
    }

    /// What is wrong with an agent that is connected.
    fn tell(&self, error: Option<String>) {
        self.status.send_if_modified(|status| {
            let news = status.state == LinkState::Connected && status.last_error != error;
            if news {
                status.last_error = error;
            }
            news
        });
    }
}

struct Keeper {
    door: Door,
    clock: Clock,
    events: mpsc::Sender<LinkEvent>,
    status: watch::Sender<LinkStatus>,
}

impl Keeper {
    async fn keep(self) {
        let mut pushes = Pushes::new(self.events.clone(), std::time::Instant::now());
        if self.door == Door::None {
            self.status.send_modify(|status| status.last_error = Some("the VM has no vsock device".into()));
            return;
        }
        let mut wait = BACKOFF.0;
        loop {
            match self.connect().await {
                Ok((conversation, facts)) => {
                    let began = Instant::now();
                    self.converse(conversation, Arc::new(facts), &mut pushes).await;
                    if began.elapsed() > LASTED {
                        wait = BACKOFF.0;
                    }
                }
                Err(error) => {
                    let text = format!("{}: {error:#}", self.door);
                    self.status.send_modify(|status| status.last_error = Some(text));
                }
            }
            sleep(wait).await;
            wait = (wait * 2).min(BACKOFF.1);
        }
    }

    async fn connect(&self) -> anyhow::Result<(Conversation, GuestFacts)> {
        let stream = timeout(OPEN, self.door.open()).await.map_err(|_| anyhow::anyhow!("nobody answers"))??;
        Conversation::begin(stream).await
    }

    async fn converse(&self, conversation: Conversation, facts: Arc<GuestFacts>, pushes: &mut Pushes) {
        let (line, mut asks) = mpsc::channel(QUEUE);
        self.status.send_modify(|status| {
            status.state = LinkState::Connected;
            status.since = self.clock.now();
            status.facts = Some(facts.clone());
            status.last_error = None;
            status.line = Some(line);
        });
        // Nobody listens only when the VM is being let go.
        let _ = self.events.send(LinkEvent::Connected(facts)).await;
        let why = format!("{:#}", conversation.carry(&mut asks, pushes).await);
        self.status.send_modify(|status| {
            status.state = LinkState::Lost;
            status.since = self.clock.now();
            status.last_error = Some(why.clone());
            status.line = None;
        });
        let _ = self.events.send(LinkEvent::Lost(why)).await;
    }
}
