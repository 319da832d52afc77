//! The one owner of the engine: a task that takes what happened, asks the engine what to do, writes the journal, and
//! only then hands actions to the actuators and answers to callers.
//!
//! A task and not a thread: each step of a transfer comes from an actuator and goes to one, and waking another thread twice
//! for each would cost more than the step. Writing the journal, which goes to the page cache, is as short.

use std::collections::BTreeMap;
use std::time::Duration;

use conuma_balancing::{
    Action, Engine, Event, Failure, Outcome, Refusal, Request, Resources, State, TransferId, VmSpec,
};
use conuma_topology::VmName;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use crate::actuator::Actuator;
use crate::bus::Bus;
use crate::clock::Clock;
use crate::journal::Journal;
use crate::wire::notice_event;

/// Longest sleep, so that a deadline that is far away is not a special case.
const LONGEST_WAIT: Duration = Duration::from_secs(60);

/// What is told to the core.
enum Message {
    Happened(Event),
    Attach(VmName, Actuator),
    Detach(VmName),
    Call(Call),
    Begin(Beginning),
    Stop,
}

/// Something to do with the engine; what it returns answers the caller, after the journal is written.
type Call = Box<dyn FnOnce(&mut Engine, Duration) -> Reply + Send>;
type Reply = Box<dyn FnOnce() + Send>;

/// Something that begins only if the journal can be written with it; what it returns answers the caller.
type Beginning = Box<dyn FnOnce(&mut Core) -> Reply + Send>;

/// Why nothing was begun.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NotBegun {
    /// The engine says no.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// It could not be written to the journal, as the text says.
    #[error("the journal cannot be written, so nothing is begun: {0}")]
    Journal(String),
    /// The daemon ends.
    #[error(transparent)]
    Stopped(#[from] Stopped),
}

/// The core has ended, because the daemon does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the daemon is stopping")]
pub struct Stopped;

/// Speaks to the core.
#[derive(Debug, Clone)]
pub struct CoreHandle {
    sender: UnboundedSender<Message>,
}

impl std::fmt::Debug for Message {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Message")
    }
}

/// A core that can be waited for.
#[derive(Debug)]
pub struct CoreTask(JoinHandle<()>);

/// What a core that has not started yet is told.
#[derive(Debug)]
pub struct Inbox(UnboundedReceiver<Message>);

/// A core to be started: it can be told things already, and learns them first.
pub fn open() -> (CoreHandle, Inbox) {
    let (sender, inbox) = unbounded_channel();
    (CoreHandle { sender }, Inbox(inbox))
}

/// Starts the core.
pub fn start(inbox: Inbox, engine: Engine, journal: Journal, clock: Clock, bus: Bus) -> CoreTask {
    let actuators = BTreeMap::new();
    let core = Core { engine, journal, clock, bus, actuators, journal_failed: false, written_history: None };
    CoreTask(tokio::spawn(core.run(inbox.0)))
}

impl CoreTask {
    /// Waits until the core has ended; [`CoreHandle::stop`] makes it end.
    pub async fn ended(self) {
        if self.0.await.is_err() {
            tracing::error!("the core ended by a panic");
        }
    }
}

impl CoreHandle {
    /// Tells what happened.
    pub fn happened(&self, event: Event) {
        // A core that has ended needs to know nothing.
        let _ = self.sender.send(Message::Happened(event));
    }

    /// From now on actions of `vm` go to `actuator`.
    pub fn attach(&self, vm: VmName, actuator: Actuator) {
        let _ = self.sender.send(Message::Attach(vm, actuator));
    }

    /// From now on nobody acts for `vm`.
    pub fn detach(&self, vm: VmName) {
        let _ = self.sender.send(Message::Detach(vm));
    }

    /// Ends the core after what it was told before.
    pub fn stop(&self) {
        let _ = self.sender.send(Message::Stop);
    }

    /// Looks at the engine.
    pub async fn look<T: Send + 'static>(
        &self,
        look: impl FnOnce(&Engine, Duration) -> T + Send + 'static,
    ) -> Result<T, Stopped> {
        self.call(move |engine, now| look(engine, now)).await
    }

    /// Admits a VM: its resources are booked, and in the journal, when this comes back.
    pub async fn admit(&self, spec: VmSpec) -> Result<Resources, NotBegun> {
        self.begin(move |engine, now| engine.start(spec, now)).await
    }

    /// Begins a transfer, which is in the journal when this comes back.
    pub async fn request(&self, request: Request) -> Result<TransferId, NotBegun> {
        self.begin(move |engine, now| engine.request(request, now)).await
    }

    async fn begin<T: Send + 'static>(
        &self,
        call: impl FnOnce(&mut Engine, Duration) -> Result<T, Refusal> + Send + 'static,
    ) -> Result<T, NotBegun> {
        let (answer, answered) = oneshot::channel();
        let begin: Beginning = Box::new(move |core| {
            let begun = core.begin(call);
            Box::new(move || {
                // The caller may have gone.
                let _ = answer.send(begun);
            })
        });
        self.sender.send(Message::Begin(begin)).map_err(|_| Stopped)?;
        answered.await.map_err(|_| Stopped)?
    }

    async fn call<T: Send + 'static>(
        &self,
        call: impl FnOnce(&mut Engine, Duration) -> T + Send + 'static,
    ) -> Result<T, Stopped> {
        let (answer, answered) = oneshot::channel();
        let call: Call = Box::new(move |engine, now| {
            let result = call(engine, now);
            Box::new(move || {
                // The caller may have gone.
                let _ = answer.send(result);
            })
        });
        self.sender.send(Message::Call(call)).map_err(|_| Stopped)?;
        answered.await.map_err(|_| Stopped)
    }
}

struct Core {
    engine: Engine,
    journal: Journal,
    clock: Clock,
    bus: Bus,
    actuators: BTreeMap<VmName, Actuator>,
    journal_failed: bool,
    /// The newest of the ended transfers that are in the journal.
    written_history: Option<TransferId>,
}

impl Core {
    async fn run(mut self, mut inbox: UnboundedReceiver<Message>) {
        let mut replies: Vec<Reply> = Vec::new();
        // Those who act for the VMs found come first: what is due at once has somewhere to go.
        while let Ok(message) = inbox.try_recv() {
            match message {
                Message::Stop => return,
                message => replies.extend(self.take(message)),
            }
        }
        loop {
            self.act();
            for reply in std::mem::take(&mut replies) {
                reply();
            }
            let wait = self.engine.next_deadline().map_or(LONGEST_WAIT, |at| self.clock.until(at).min(LONGEST_WAIT));
            let mut next = match timeout(wait, inbox.recv()).await {
                Ok(Some(message)) => Some(message),
                Ok(None) => return,
                Err(_) => None,
            };
            // All that is there already is one step: one look at the engine, one write to the journal.
            while let Some(message) = next {
                match message {
                    Message::Stop => return,
                    message => replies.extend(self.take(message)),
                }
                next = inbox.try_recv().ok();
            }
        }
    }

    fn take(&mut self, message: Message) -> Option<Reply> {
        match message {
            Message::Happened(event) => {
                tracing::debug!(?event, "happened");
                self.engine.update(event, self.clock.now());
            }
            Message::Attach(vm, actuator) => drop(self.actuators.insert(vm, actuator)),
            Message::Detach(vm) => drop(self.actuators.remove(&vm)),
            Message::Call(call) => return Some(call(&mut self.engine, self.clock.now())),
            Message::Begin(begin) => return Some(begin(self)),
            Message::Stop => {}
        }
        None
    }

    /// Begins something, unless the journal cannot be written with it: then nothing has happened.
    fn begin<T>(&mut self, call: impl FnOnce(&mut Engine, Duration) -> Result<T, Refusal>) -> Result<T, NotBegun> {
        let before = self.engine.clone();
        let begun = call(&mut self.engine, self.clock.now())?;
        let actions = self.engine.next_actions(self.clock.now());
        match self.write_journal() {
            Ok(()) => {
                self.carry_out(actions);
                Ok(begun)
            }
            Err(why) => {
                self.engine = before;
                Err(NotBegun::Journal(why))
            }
        }
    }

    /// Asks the engine what to do until there is nothing more that nobody can do.
    fn act(&mut self) {
        loop {
            let actions = self.engine.next_actions(self.clock.now());
            // What is under way already goes on without a journal: see there.
            let _said = self.write_journal();
            let undone = self.carry_out(actions);
            for notice in self.engine.take_notices() {
                if let Some(event) = notice_event(&notice, &self.engine, self.clock.now()) {
                    self.bus.tell(event);
                }
            }
            if !undone {
                return;
            }
        }
    }

    /// Hands actions to those who act; tells whether there was one that nobody can do.
    fn carry_out(&mut self, actions: Vec<Action>) -> bool {
        let mut undone = false;
        for action in actions {
            tracing::debug!(generation = action.id.0, vm = %action.vm, kind = ?action.kind, "action");
            if let Err(action) = self.hand_over(action) {
                let outcome = Outcome::Failed(Failure::Unreachable);
                self.engine.update(Event::Done { id: action.id, outcome }, self.clock.now());
                undone = true;
            }
        }
        undone
    }

    fn hand_over(&self, action: Action) -> Result<(), Action> {
        match self.actuators.get(&action.vm) {
            Some(actuator) => actuator.send(action),
            None => Err(action),
        }
    }

    /// A journal that cannot be written costs loans and transfers under way if the daemon dies now; stopping
    /// half-way through a transfer costs more. So what was begun goes on, nothing else begins, and people are told.
    fn write_journal(&mut self) -> Result<(), String> {
        let state: &State = self.engine.state();
        let newest = self.engine.history().back().map(|report| report.id);
        let history = (newest != self.written_history).then(|| self.engine.history());
        let written = self.journal.write(state, history).map(|told| {
            if told {
                self.written_history = newest;
            }
        });
        let written = written.map_err(|error| format!("{error:#}"));
        match &written {
            Ok(()) if self.journal_failed => {
                self.journal_failed = false;
                tracing::info!("the journal can be written again");
            }
            Err(why) if !self.journal_failed => {
                self.journal_failed = true;
                tracing::error!("the journal cannot be written, nothing is begun until it can: {why}");
            }
            Ok(()) | Err(_) => {}
        }
        written
    }
}
