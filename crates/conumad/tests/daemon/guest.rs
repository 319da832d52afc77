//! A fake agent on a Unix socket: keeps what it is told, and misbehaves when told to.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use conuma_agent_proto::{
    AgentError, AutoOnline, CgroupMode, Generation, GuestFacts, GuestNodeFacts, HoldingOutcome, MemoryState,
    NodeReport, Prepared, Pushed, Refusal, RefusalReason, Reply, Report, Request, RequestBody, RequestId, Resource,
    Response, Trigger, decode_request, encode_response,
};
use conuma_hypervisor::fake::FakeVm;
use conuma_topology::{Bytes, GuestCpuSet, GuestNodeId};
use futures_util::{SinkExt as _, StreamExt as _};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::broadcast;
use tokio_util::codec::{Framed, LengthDelimitedCodec};
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::load::{Load, totals};

/// What the guest does, and has been told.
#[derive(Debug, Default)]
pub struct State {
    /// Answers nothing but greetings.
    pub silent: bool,
    /// Does not answer when it should make room.
    pub never_makes_room: bool,
    /// Refuses to leave these CPUs.
    pub clings_to: GuestCpuSet,
    /// The holding it was told last.
    pub holding: Option<GuestCpuSet>,
    /// The newest generation it has seen.
    pub newest: Generation,
    /// Greetings so far.
    pub greetings: u32,
    /// Its agent is of before pushes.
    pub old: bool,
    /// The triggers that it was told last, for CPUs and memory.
    pub triggers: Option<(Option<Trigger>, Option<Trigger>)>,
    /// Reports that it was asked for so far.
    pub reports: u32,
    /// What runs in it; without this its reports never change.
    pub load: Option<Load>,
}

/// What it can send unasked before a connection has carried it away.
const UNSENT: usize = 8192;

/// A guest's agent; gone when dropped.
pub struct Guest {
    state: Arc<Mutex<State>>,
    pushes: broadcast::Sender<Response>,
    stop: CancellationToken,
    _end: DropGuard,
}

pub const CPUS: u32 = 8;
pub const NODES: u32 = 2;
pub const BOOT: Bytes = Bytes::mib(128);

/// How long it is up by reports that it is asked for.
pub const UPTIME: Duration = Duration::from_secs(50);

impl Guest {
    /// Listens at `path`.
    pub fn listen(path: &Path) -> Self {
        let _ = std::fs::remove_file(path);
        let listener = UnixListener::bind(path).unwrap();
        let state = Arc::new(Mutex::new(State::default()));
        let stop = CancellationToken::new();
        let pushes = broadcast::Sender::new(UNSENT);
        let (serving, pushed, ended) = (state.clone(), pushes.clone(), stop.clone());
        tokio::spawn(async move {
            while let Some(Ok((stream, _))) = ended.run_until_cancelled(listener.accept()).await {
                let (state, pushed, ended) = (serving.clone(), pushed.subscribe(), ended.clone());
                tokio::spawn(async move { ended.run_until_cancelled(converse(stream, state, pushed)).await });
            }
        });
        Self { state, pushes, stop: stop.clone(), _end: stop.drop_guard() }
    }

    /// Sends a report unasked, of a guest that is up for so long.
    pub fn push(&self, resource: Resource, uptime: Duration) {
        let pushed = Pushed { resource, report: report(uptime) };
        self.pushes.send(Response { id: RequestId::PUSHED, body: Ok(Reply::Pushed(pushed)) }).unwrap();
    }

    /// From now on it has a load, at first one of nothing.
    pub fn begin_load(&self, vm: Arc<FakeVm>) {
        self.state().load = Some(Load::none(vm));
    }

    /// Changes its load.
    pub fn load(&self, change: impl FnOnce(&mut Load)) {
        let mut state = self.state();
        state.count();
        change(state.load.as_mut().expect("a guest with a load"));
    }

    /// So many threads want to run.
    pub fn run(&self, threads: f64) {
        self.load(|load| load.threads = threads);
    }

    /// So much of a node is in use.
    pub fn fill(&self, node: u32, mib: u64) {
        self.load(|load| {
            load.in_use.insert(node, Bytes::mib(mib));
        });
    }

    /// Reports its load unasked.
    pub async fn press(&self, resource: Resource) {
        let vm = self.state().load.as_ref().expect("a guest with a load").vm();
        let totals = totals(&vm).await;
        let report = self.state().counted(&totals).expect("a load");
        let pushed = Pushed { resource, report };
        self.pushes.send(Response { id: RequestId::PUSHED, body: Ok(Reply::Pushed(pushed)) }).unwrap();
    }

    /// What it does and was told.
    pub fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// Whether it was told exactly these CPUs.
    pub fn uses(&self, cpus: &str) -> bool {
        self.state().holding == Some(cpus.parse().unwrap())
    }

    /// Closes its connections and listens no more.
    pub fn vanish(self) {
        self.stop.cancel();
    }
}

impl State {
    /// Its kernel counts what ran.
    fn count(&mut self) {
        let held = self.holding.clone().unwrap_or_else(|| GuestCpuSet::range(0, CPUS - 1));
        if let Some(load) = &mut self.load {
            load.count(&held);
        }
    }

    fn counted(&mut self, totals: &BTreeMap<u32, Bytes>) -> Option<Report> {
        self.count();
        self.load.as_ref().map(|load| load.report(totals))
    }
}

/// The VM whose load is to be reported, if there is one and its guest answers.
fn reports_of(state: &Mutex<State>) -> Option<Arc<FakeVm>> {
    let state = state.lock().unwrap();
    state.load.as_ref().filter(|_| !state.silent).map(Load::vm)
}

async fn converse(stream: UnixStream, state: Arc<Mutex<State>>, mut pushes: broadcast::Receiver<Response>) {
    let mut frames = Framed::new(stream, LengthDelimitedCodec::new());
    loop {
        let response = tokio::select! {
            frame = frames.next() => {
                let Some(Ok(frame)) = frame else { return };
                let Request { id, generation, body, .. } = decode_request(&frame).unwrap();
                if let (Some(vm), RequestBody::Report) = (reports_of(&state), &body) {
                    let totals = totals(&vm).await;
                    let report = {
                        let mut state = state.lock().unwrap();
                        state.reports += 1;
                        state.counted(&totals)
                    };
                    let response = Response { id, body: Ok(Reply::Report(report.unwrap())) };
                    let frame = bytes::Bytes::from(encode_response(&response));
                    if frames.send(frame).await.is_err() {
                        return;
                    }
                    continue;
                }
                let old = state.lock().unwrap().old && matches!(body, RequestBody::Watch { .. });
                match answer(&mut state.lock().unwrap(), generation, body) {
                    _ if old => Response { id, body: Err(AgentError::BadRequest("what is that?".into())) },
                    Some(reply) => Response { id, body: Ok(reply) },
                    None => continue,
                }
            }
            pushed = pushes.recv() => match pushed {
                Ok(pushed) => pushed,
                // Too much at once.
                Err(broadcast::error::RecvError::Lagged(_)) => continue,
                Err(broadcast::error::RecvError::Closed) => return,
            },
        };
        if frames.send(bytes::Bytes::from(encode_response(&response))).await.is_err() {
            return;
        }
    }
}

fn answer(state: &mut State, generation: Generation, body: RequestBody) -> Option<Reply> {
    if let RequestBody::Hello(_) = body {
        state.greetings += 1;
        return Some(Reply::Hello(facts(state)));
    }
    let stuck = state.never_makes_room && matches!(body, RequestBody::PrepareMemory { .. });
    if state.silent || stuck {
        return None;
    }
    Some(match body {
        RequestBody::ApplyHolding { cpus } => {
            assert!(generation >= state.newest, "an older decision came after a newer one");
            state.count();
            state.newest = generation;
            let all = GuestCpuSet::range(0, CPUS - 1);
            let refused = state.clings_to.difference(&cpus);
            let reason = RefusalReason::Exclusive { cgroup: "/mine".into() };
            let refusals = match refused.is_empty() {
                true => Vec::new(),
                false => vec![Refusal { cpus: refused.clone(), reason }],
            };
            let quiesced = all.difference(&cpus).difference(&refused);
            state.holding = Some(cpus.clone());
            Reply::Holding(HoldingOutcome { held: cpus, quiesced, refused: refusals, ..HoldingOutcome::default() })
        }
        RequestBody::PrepareMemory { node, bytes } => Reply::Prepared(Prepared {
            node,
            free_before: bytes,
            free_after: bytes,
            migrated: Bytes::ZERO,
            reclaimed: Bytes::ZERO,
            enough: true,
            spare: bytes,
            timings: Vec::new(),
        }),
        RequestBody::ConfirmMemory { node, at_least } => Reply::Memory(MemoryState {
            node,
            total: at_least,
            free: at_least,
            online: at_least,
            movable: at_least,
            offline: Bytes::ZERO,
            satisfied: true,
            waited: Duration::ZERO,
        }),
        RequestBody::Report => {
            state.reports += 1;
            Reply::Report(report(UPTIME))
        }
        RequestBody::Watch { cpu, memory } => {
            state.triggers = Some((cpu, memory));
            Reply::Watching { cpu, memory }
        }
        RequestBody::Hello(_) => unreachable!("answered above"),
    })
}

fn report(uptime: Duration) -> Report {
    let node = |node| NodeReport {
        node: GuestNodeId(node),
        total: BOOT,
        free: Bytes::ZERO,
        available: BOOT,
        file: Bytes::ZERO,
        anonymous: Bytes::ZERO,
        movable: Bytes::ZERO,
        huge_total: Bytes::ZERO,
        huge_free: Bytes::ZERO,
        blocks_online: BOOT,
        blocks_offline: Bytes::ZERO,
        refaults: Some(0),
        active_file: Some(Bytes::ZERO),
        shmem: Some(Bytes::ZERO),
        kept: Some(Bytes::ZERO),
    };
    Report { uptime, nodes: (0..NODES).map(node).collect(), ..Report::default() }
}

fn facts(state: &State) -> GuestFacts {
    let node = |node| GuestNodeFacts { node: GuestNodeId(node), cpus: GuestCpuSet::new(), memory: BOOT };
    GuestFacts {
        version: 1,
        agent_version: "fake".into(),
        kernel_release: "6.12".into(),
        boot_id: "boot".into(),
        cpus_online: GuestCpuSet::range(0, CPUS - 1),
        nodes: (0..NODES).map(node).collect(),
        cgroup_mode: CgroupMode::Unified,
        init_on_alloc: Some(false),
        auto_online: AutoOnline::OnlineMovable,
        memory_block: Some(Bytes::mib(128)),
        psi: true,
        newest: state.newest,
        holding: state.holding.clone(),
    }
}
