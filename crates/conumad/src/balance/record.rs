//! The history of decisions, kept by a thread of its own: the disk may be slow or full, and balancing waits for neither.
//!
//! What is to be written goes into a bounded queue. What does not fit, or cannot be written, is lost for the history: that is
//! said once, until it works again.

use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::time::{Duration, Instant};

use conuma_api::{
    Code, DecidedMove, DecisionInfo, DecisionState, DecisionSummary, EventKind, HistoryQuery, PolicyMode, Problem,
    RejectedInfo, VmOutlook,
};
use conuma_history::{
    Decision, DecisionId, Finished, History, HistoryError, Kind, NewDecision, Outcome, Query, StateFilter, UnixMillis,
};
use conuma_topology::VmName;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::sync::{oneshot, watch};
use tokio_util::sync::CancellationToken;

use crate::actuator::chain;
use crate::bus::Bus;
use crate::clock::{Clock, unix_ms};

const FILE: &str = "decisions.db";

/// Decisions and questions that may wait.
const QUEUE: usize = 256;

/// How often a thread with nothing to do looks whether it should end.
const LOOK: Duration = Duration::from_millis(500);

/// A file that cannot be opened is tried again after this.
const REOPEN: Duration = Duration::from_secs(60);

/// The number that the history gives a decision, once it is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Number {
    /// Not known yet.
    Awaited,
    /// The history could not keep it.
    None,
    /// This.
    Is(u64),
}

/// Where a decision's number appears.
pub(super) type NumberSlot = watch::Receiver<Number>;

/// Hands on what is to be written, and asks for what was.
#[derive(Debug, Clone)]
pub(crate) struct Recorder {
    queue: SyncSender<Job>,
    bus: Bus,
}

/// What the thread gets to do.
pub(super) struct Jobs(Receiver<Job>);

enum Job {
    Append { decision: Box<NewDecision>, number: watch::Sender<Number> },
    Finish { number: NumberSlot, outcome: Box<Outcome>, summary: String },
    List { query: Box<Query>, answer: oneshot::Sender<Result<Vec<Decision>, Problem>> },
    Get { id: DecisionId, answer: oneshot::Sender<Result<Option<Decision>, Problem>> },
    Stop,
}

impl std::fmt::Debug for Job {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Job")
    }
}

/// What was known when a decision was made, as it is kept.
#[derive(Serialize, Deserialize)]
struct Inputs {
    vms: Vec<VmOutlook>,
}

/// What was to be done.
#[derive(Serialize, Deserialize)]
struct Plan {
    score_now: f64,
    score_after: f64,
    moves: Vec<DecidedMove>,
    rejected: Vec<RejectedInfo>,
}

/// What came of it.
#[derive(Serialize, Deserialize)]
struct Detail {
    score_achieved: Option<f64>,
    moves: Vec<DecidedMove>,
}

/// A recorder, and what it hands on before the thread has begun.
pub(super) fn open(bus: Bus) -> (Recorder, Jobs) {
    let (queue, jobs) = sync_channel(QUEUE);
    (Recorder { queue, bus }, Jobs(jobs))
}

impl Recorder {
    /// Keeps a decision that was made just now.
    pub(super) fn append(&self, decision: &DecisionInfo) -> NumberSlot {
        let (number, slot) = watch::channel(Number::Awaited);
        let new = Box::new(new_decision(decision));
        if let Err(Job::Append { number, .. }) = self.hand_on(Job::Append { decision: new, number }) {
            number.send_replace(Number::None);
            self.bus.tell(EventKind::DecisionMade { id: None, summary: decision.summary.clone() });
        }
        slot
    }

    /// Keeps what came of a decision.
    pub(super) fn finish(&self, number: NumberSlot, ended: &DecisionInfo) {
        let summary = ended.summary.clone();
        if let Err(Job::Finish { number, .. }) =
            self.hand_on(Job::Finish { number, outcome: Box::new(outcome(ended)), summary: summary.clone() })
        {
            self.bus.tell(EventKind::DecisionEnded { id: known(&number), state: ended.state, summary });
        }
    }

    /// The decisions that `query` asks for, newest first.
    pub(crate) async fn list(&self, query: HistoryQuery) -> Result<Vec<DecisionSummary>, Problem> {
        let (answer, answered) = oneshot::channel();
        self.ask(Job::List { query: Box::new(history_query(query)), answer })?;
        let decisions = answered.await.unwrap_or_else(|_| Err(stopping()))?;
        Ok(decisions.iter().map(summary).collect())
    }

    /// One decision.
    pub(crate) async fn get(&self, id: u64) -> Result<DecisionInfo, Problem> {
        let unknown = || {
            Problem::new(Code::NotFound, format!("decision {id} is not in the history"))
                .with_hint("`conuma history` lists those that are")
        };
        let (answer, answered) = oneshot::channel();
        self.ask(Job::Get { id: DecisionId(i64::try_from(id).map_err(|_| unknown())?), answer })?;
        answered.await.unwrap_or_else(|_| Err(stopping()))?.as_ref().map(info).ok_or_else(unknown)
    }

    /// Ends the thread after what it was told before.
    pub(super) fn stop(&self) {
        // If there is no room for it, the thread sees that the daemon stops when it has done all the rest.
        let _ = self.queue.try_send(Job::Stop);
    }

    fn ask(&self, job: Job) -> Result<(), Problem> {
        self.queue.try_send(job).map_err(|error| match error {
            TrySendError::Full(_) => {
                Problem::new(Code::TimedOut, "the history is busy: its disk is slow").with_hint("ask again in a moment")
            }
            TrySendError::Disconnected(_) => stopping(),
        })
    }

    fn hand_on(&self, job: Job) -> Result<(), Job> {
        self.queue.try_send(job).map_err(|error| {
            tracing::warn!("the history is too slow: a decision is missing in it");
            match error {
                TrySendError::Full(job) | TrySendError::Disconnected(job) => job,
            }
        })
    }
}

/// The number of a decision, if it has one already.
pub(super) fn known(number: &NumberSlot) -> Option<u64> {
    match *number.borrow() {
        Number::Is(id) => Some(id),
        Number::Awaited | Number::None => None,
    }
}

/// The number of a decision, as soon as it is known.
pub(super) async fn number_of(mut slot: NumberSlot) -> Option<u64> {
    let reached = slot.wait_for(|number| *number != Number::Awaited).await;
    match reached.as_deref() {
        Ok(Number::Is(id)) => Some(*id),
        _ => None,
    }
}

/// The thread's work, until it is told to stop, or has nothing more to do and `stop` has fired.
pub(super) fn keep(jobs: Jobs, state: &Path, clock: Clock, bus: Bus, stop: &CancellationToken) {
    let mut keeper = Keeper { path: state.join(FILE), clock, bus, history: None, tried: None, failed: false };
    keeper.open();
    loop {
        let job = match jobs.0.recv_timeout(LOOK) {
            Err(RecvTimeoutError::Timeout) if !stop.is_cancelled() => continue,
            Err(_) | Ok(Job::Stop) => return,
            Ok(job) => job,
        };
        match job {
            Job::Stop => return,
            Job::Append { decision, number } => keeper.append(&decision, &number),
            Job::Finish { number, outcome, summary } => keeper.finish(&number, &outcome, summary),
            Job::List { query, answer } => drop(answer.send(keeper.read(|history| history.list(&query)))),
            Job::Get { id, answer } => drop(answer.send(keeper.read(|history| history.get(id)))),
        }
    }
}

/// Writes and reads the file.
struct Keeper {
    path: PathBuf,
    clock: Clock,
    bus: Bus,
    history: Option<History>,
    /// When it was last tried to open it.
    tried: Option<Instant>,
    failed: bool,
}

impl Keeper {
    /// The history, if it can be used. One that could not be opened is tried again now and then.
    fn open(&mut self) -> Option<&mut History> {
        if self.history.is_none() && self.tried.is_none_or(|tried| tried.elapsed() >= REOPEN) {
            self.tried = Some(Instant::now());
            let opened = History::open(&self.path);
            if let Some(opened) = self.told(opened) {
                if let Some(aside) = opened.set_aside {
                    tracing::warn!(moved_to = %aside.moved_to.display(), "a new history is begun: {}", aside.why);
                }
                self.history = Some(opened.history);
                self.end_interrupted();
            }
        }
        self.history.as_mut()
    }

    /// What an earlier daemon had under way: its transfers were ended or undone by the engine, and nobody saw what that was
    /// worth.
    fn end_interrupted(&mut self) {
        loop {
            let listed = self.history.as_ref().map(History::under_way);
            let Some(under_way) = listed.and_then(|listed| self.told(listed)) else { return };
            if under_way.is_empty() {
                return;
            }
            for decision in under_way {
                let outcome = Outcome {
                    at: self.now(),
                    state: DecisionState::Interrupted.name().into(),
                    achieved: None,
                    detail: value(&Detail { score_achieved: None, moves: plan_of(&decision).moves }),
                };
                let finished = self.history.as_mut().map(|history| history.finish(decision.id, &outcome));
                if finished.and_then(|finished| self.told(finished)).is_none() {
                    return;
                }
            }
        }
    }

    fn append(&mut self, decision: &NewDecision, number: &watch::Sender<Number>) {
        let appended = self.open().map(|history| history.append(decision));
        let id = appended.and_then(|appended| self.told(appended)).and_then(|id| u64::try_from(id.0).ok());
        number.send_replace(id.map_or(Number::None, Number::Is));
        self.bus.tell(EventKind::DecisionMade { id, summary: decision.summary.clone() });
    }

    fn finish(&mut self, number: &NumberSlot, outcome: &Outcome, summary: String) {
        let id = known(number);
        if let Some(id) = id.and_then(|id| i64::try_from(id).ok()) {
            let finished = self.open().map(|history| history.finish(DecisionId(id), outcome));
            if finished.and_then(|finished| self.told(finished)) == Some(Finished::Unknown) {
                tracing::debug!(decision = id, "it ended after it was forgotten");
            }
        }
        self.bus.tell(EventKind::DecisionEnded { id, state: DecisionState::of(&outcome.state), summary });
    }

    fn read<T>(&mut self, read: impl FnOnce(&History) -> conuma_history::Result<T>) -> Result<T, Problem> {
        let unusable = || Problem::new(Code::Internal, "the history of decisions cannot be used");
        let Some(history) = self.open() else {
            return Err(unusable().with_hint("`journalctl -u conumad` says why; balancing goes on without it"));
        };
        read(history).map_err(|error| {
            let message = format!("the history of decisions cannot be read: {}", chain(&error));
            self.told::<()>(Err(error));
            Problem::new(Code::Internal, message)
        })
    }

    /// Says once that it fails, and once that it works again. A file that was found damaged is opened anew, which moves it aside.
    fn told<T>(&mut self, result: conuma_history::Result<T>) -> Option<T> {
        match result {
            Ok(value) => {
                if std::mem::take(&mut self.failed) {
                    tracing::info!("the history of decisions can be used again");
                }
                Some(value)
            }
            Err(error) => {
                self.fails(&error);
                None
            }
        }
    }

    fn fails(&mut self, error: &HistoryError) {
        if error.kind() == Kind::Damaged {
            (self.history, self.tried) = (None, None);
        }
        if !std::mem::replace(&mut self.failed, true) {
            tracing::error!("decisions are carried out, but not kept: {}", chain(error));
        }
    }

    fn now(&self) -> UnixMillis {
        millis(unix_ms(self.clock.now()))
    }
}

fn new_decision(of: &DecisionInfo) -> NewDecision {
    let vms = of.moves.iter().flat_map(|step| [&step.from, &step.to]).filter_map(|holder| holder.vm().cloned());
    let vms: std::collections::BTreeSet<VmName> = vms.collect();
    NewDecision {
        at: millis(of.at_unix_ms),
        cause: of.cause.clone(),
        mode: of.mode.name().into(),
        vms: vms.into_iter().collect(),
        summary: of.summary.clone(),
        predicted: of.score_after - of.score_now,
        inputs: value(&Inputs { vms: of.vms.clone() }),
        plan: value(&Plan {
            score_now: of.score_now,
            score_after: of.score_after,
            moves: of.moves.clone(),
            rejected: of.rejected.clone(),
        }),
    }
}

fn outcome(of: &DecisionInfo) -> Outcome {
    Outcome {
        at: millis(of.ended_unix_ms.unwrap_or(of.at_unix_ms)),
        state: of.state.name().into(),
        achieved: of.score_achieved.map(|achieved| achieved - of.score_now),
        detail: value(&Detail { score_achieved: of.score_achieved, moves: of.moves.clone() }),
    }
}

/// As it was made, with what came of it. What an older daemon kept in another form is left out.
fn info(of: &Decision) -> DecisionInfo {
    let plan = plan_of(of);
    let detail: Option<Detail> = of.outcome.as_ref().and_then(|outcome| read(&outcome.detail));
    let inputs: Option<Inputs> = read(&of.inputs);
    let SummaryParts { id, at_unix_ms, mode, state, ended_unix_ms } = parts(of);
    DecisionInfo {
        id: Some(id),
        at_unix_ms,
        cause: of.cause.clone(),
        mode,
        state,
        summary: of.summary.clone(),
        score_now: plan.score_now,
        score_after: plan.score_after,
        score_achieved: detail.as_ref().and_then(|detail| detail.score_achieved),
        ended_unix_ms,
        vms: inputs.map(|inputs| inputs.vms).unwrap_or_default(),
        moves: detail.map_or(plan.moves, |detail| detail.moves),
        rejected: plan.rejected,
    }
}

fn summary(of: &Decision) -> DecisionSummary {
    let SummaryParts { id, at_unix_ms, mode, state, ended_unix_ms } = parts(of);
    DecisionSummary {
        id,
        at_unix_ms,
        cause: of.cause.clone(),
        mode,
        state,
        summary: of.summary.clone(),
        vms: of.vms.clone(),
        predicted: of.predicted,
        achieved: of.outcome.as_ref().and_then(|outcome| outcome.achieved),
        ended_unix_ms,
    }
}

struct SummaryParts {
    id: u64,
    at_unix_ms: u64,
    mode: PolicyMode,
    state: DecisionState,
    ended_unix_ms: Option<u64>,
}

fn parts(of: &Decision) -> SummaryParts {
    let modes = [PolicyMode::Off, PolicyMode::Advise, PolicyMode::Auto];
    SummaryParts {
        id: u64::try_from(of.id.0).unwrap_or_default(),
        at_unix_ms: u64::try_from(of.at.0).unwrap_or_default(),
        mode: modes.into_iter().find(|mode| mode.name() == of.mode).unwrap_or(PolicyMode::Unknown),
        state: of.outcome.as_ref().map_or(DecisionState::UnderWay, |outcome| DecisionState::of(&outcome.state)),
        ended_unix_ms: of.outcome.as_ref().and_then(|outcome| u64::try_from(outcome.at.0).ok()),
    }
}

fn plan_of(of: &Decision) -> Plan {
    let empty = || Plan { score_now: 0.0, score_after: of.predicted, moves: Vec::new(), rejected: Vec::new() };
    read(&of.plan).unwrap_or_else(empty)
}

fn history_query(of: HistoryQuery) -> Query {
    let usual = Query::default();
    let state = of.state.map(|state| match state {
        DecisionState::UnderWay => StateFilter::UnderWay,
        state => StateFilter::Ended(state.name().into()),
    });
    Query {
        vm: of.vm,
        from: of.since_ms.map(millis),
        to: of.until_ms.map(millis),
        state,
        before: of.before.map(|id| DecisionId(i64::try_from(id).unwrap_or(i64::MAX))),
        limit: of.limit.unwrap_or(usual.limit),
    }
}

fn millis(of: u64) -> UnixMillis {
    UnixMillis(i64::try_from(of).unwrap_or(i64::MAX))
}

/// All of these types can be written as JSON.
fn value(of: &impl Serialize) -> Value {
    serde_json::to_value(of).unwrap_or_default()
}

fn read<T: for<'de> Deserialize<'de>>(of: &Value) -> Option<T> {
    T::deserialize(of).ok()
}

fn stopping() -> Problem {
    Problem::new(Code::Stopping, "the daemon is stopping").with_hint("VMs run on; ask again when it is back")
}

#[cfg(test)]
mod tests {
    use super::*;
    use conuma_api::{Holder, Reason, Resources};
    use conuma_topology::{Bytes, CpuSet, NodeId};

    fn decision(summary: &str) -> DecisionInfo {
        let what = Resources { cpus: CpuSet::range(2, 3), memory: [(NodeId(1), Bytes::mib(64))].into() };
        let step = DecidedMove {
            from: Holder::Vm("a".parse().unwrap()),
            to: Holder::Pool,
            what,
            why: Reason { code: "host".into(), text: "the host itself is short".into() },
            transfer: Some(7),
            state: None,
            refusal: None,
        };
        DecisionInfo {
            id: None,
            at_unix_ms: 1_000,
            cause: "tick".into(),
            mode: PolicyMode::Auto,
            state: DecisionState::UnderWay,
            summary: summary.into(),
            score_now: 50.0,
            score_after: 60.0,
            score_achieved: None,
            ended_unix_ms: None,
            vms: Vec::new(),
            moves: vec![step],
            rejected: Vec::new(),
        }
    }

    fn thread(dir: &Path) -> (Recorder, std::thread::JoinHandle<()>) {
        let (clock, dir) = (Clock::start(), dir.to_owned());
        let bus = Bus::new(clock);
        let (recorder, jobs) = open(bus.clone());
        (recorder, std::thread::spawn(move || keep(jobs, &dir, clock, bus, &CancellationToken::new())))
    }

    #[tokio::test]
    async fn a_decision_is_kept_with_what_came_of_it_and_what_was_under_way_is_interrupted() {
        let dir = tempfile::tempdir().unwrap();
        let (recorder, thread_of_first) = thread(dir.path());
        let first = recorder.append(&decision("first"));
        let ended = DecisionInfo {
            state: DecisionState::Done,
            score_achieved: Some(58.0),
            ended_unix_ms: Some(2_000),
            ..decision("first")
        };
        recorder.finish(first.clone(), &ended);
        let second = recorder.append(&decision("second"));
        assert_eq!((number_of(first).await, number_of(second).await), (Some(1), Some(2)));
        let found = recorder.get(1).await.unwrap();
        assert_eq!(found, DecisionInfo { id: Some(1), ..ended });
        assert_eq!(recorder.get(2).await.unwrap().state, DecisionState::UnderWay);
        recorder.stop();
        thread_of_first.join().unwrap();

        let (recorder, _thread) = thread(dir.path());
        let list = recorder.list(HistoryQuery::default()).await.unwrap();
        let states: Vec<_> = list.iter().map(|decision| (decision.id, decision.state, decision.achieved)).collect();
        assert_eq!(states, [(2, DecisionState::Interrupted, None), (1, DecisionState::Done, Some(8.0))]);
        assert_eq!(recorder.get(2).await.unwrap().moves, decision("").moves);
        assert_eq!(recorder.get(99).await.unwrap_err().code, Code::NotFound);
        let only = HistoryQuery { state: Some(DecisionState::Done), vm: "a".parse().ok(), ..HistoryQuery::default() };
        assert_eq!(recorder.list(only).await.unwrap().len(), 1);
        recorder.stop();
    }

    #[tokio::test]
    async fn a_history_that_cannot_be_kept_is_told_and_loses_only_itself() {
        let dir = tempfile::tempdir().unwrap();
        let (recorder, _thread) = thread(&dir.path().join("not there"));
        let slot = recorder.append(&decision("lost"));
        assert_eq!(number_of(slot).await, None);
        assert_eq!(recorder.list(HistoryQuery::default()).await.unwrap_err().code, Code::Internal);
        recorder.stop();
    }
}
