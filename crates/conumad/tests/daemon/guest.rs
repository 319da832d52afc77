//! A fake agent on a Unix socket: keeps what it is told, and misbehaves when told to.

use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use conuma_agent_proto::{
    AutoOnline, CgroupMode, Generation, GuestFacts, GuestNodeFacts, HoldingOutcome, MemoryState, NodeReport, Prepared,
    Refusal, RefusalReason, Reply, Report, Request, RequestBody, Response, decode_request, encode_response,
};
use conuma_topology::{Bytes, GuestCpuSet, GuestNodeId};
use futures_util::{SinkExt as _, StreamExt as _};
use tokio::net::{UnixListener, UnixStream};
use tokio_util::codec::{Framed, LengthDelimitedCodec};
use tokio_util::sync::{CancellationToken, DropGuard};

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
}

/// A guest's agent; gone when dropped.
pub struct Guest {
    state: Arc<Mutex<State>>,
    stop: CancellationToken,
    _end: DropGuard,
}

pub const CPUS: u32 = 8;
pub const NODES: u32 = 2;
pub const BOOT: Bytes = Bytes::mib(128);

impl Guest {
    /// Listens at `path`.
    pub fn listen(path: &Path) -> Self {
        let _ = std::fs::remove_file(path);
        let listener = UnixListener::bind(path).unwrap();
        let state = Arc::new(Mutex::new(State::default()));
        let stop = CancellationToken::new();
        let (serving, ended) = (state.clone(), stop.clone());
        tokio::spawn(async move {
            while let Some(Ok((stream, _))) = ended.run_until_cancelled(listener.accept()).await {
                let (state, ended) = (serving.clone(), ended.clone());
                tokio::spawn(async move { ended.run_until_cancelled(converse(stream, state)).await });
            }
        });
        Self { state, stop: stop.clone(), _end: stop.drop_guard() }
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

async fn converse(stream: UnixStream, state: Arc<Mutex<State>>) {
    let mut frames = Framed::new(stream, LengthDelimitedCodec::new());
    while let Some(Ok(frame)) = frames.next().await {
        let Request { id, generation, body, .. } = decode_request(&frame).unwrap();
        let reply = answer(&mut state.lock().unwrap(), generation, body);
        if let Some(reply) = reply {
            let bytes = encode_response(&Response { id, body: Ok(reply) });
            if frames.send(bytes::Bytes::from(bytes)).await.is_err() {
                return;
            }
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
        RequestBody::Report => Reply::Report(report()),
        RequestBody::Hello(_) => unreachable!("answered above"),
    })
}

fn report() -> Report {
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
    };
    Report { uptime: Duration::from_secs(1), nodes: (0..NODES).map(node).collect(), ..Report::default() }
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
