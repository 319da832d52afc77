//! What plays the host, and the agent as a library and as a program for it.
#![allow(clippy::unwrap_used, clippy::panic, dead_code, unreachable_pub, reason = "each test binary uses a part")]

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes as Buffer;
use conuma_agent::serve::{Agent, converse};
use conuma_agent_proto::*;
use futures_util::{SinkExt as _, StreamExt as _};
use tokio::net::UnixStream;
use tokio::task::{LocalSet, spawn_local};
use tokio::time::timeout;
use tokio_util::codec::{Framed, LengthDelimitedCodec};

use crate::fake::{FakeGuest, guest};

pub const BUDGET: Duration = Duration::from_secs(20);

/// A host that asks one thing after the other.
pub struct Host {
    pub frames: Framed<UnixStream, LengthDelimitedCodec>,
    next: u64,
}

impl Host {
    pub fn new(stream: UnixStream) -> Self {
        let codec = LengthDelimitedCodec::builder().max_frame_length(MAX_FRAME).new_codec();
        Self { frames: Framed::new(stream, codec), next: 1 }
    }

    pub async fn send(&mut self, generation: u64, deadline: Duration, body: RequestBody) -> RequestId {
        let id = RequestId(self.next);
        self.next += 1;
        let request = Request { id, generation: Generation(generation), deadline, body };
        self.frames.send(Buffer::from(encode_request(&request))).await.unwrap();
        id
    }

    /// `None`: the agent has hung up.
    pub async fn receive(&mut self) -> Option<Response> {
        let frame = timeout(BUDGET, self.frames.next()).await.expect("an answer in time")?.ok()?;
        Some(decode_response(&frame).unwrap())
    }

    pub async fn ask(&mut self, generation: u64, body: RequestBody) -> Result<Reply, AgentError> {
        let id = self.send(generation, BUDGET, body).await;
        let response = self.receive().await.expect("the agent is there");
        assert_eq!(response.id, id);
        response.body
    }

    pub async fn greet(&mut self) -> GuestFacts {
        let hello = Hello { versions: VERSIONS, daemon_version: "test".into() };
        match self.ask(0, RequestBody::Hello(hello)).await {
            Ok(Reply::Hello(facts)) => facts,
            other => panic!("{other:?}"),
        }
    }
}

/// Runs a test against an agent on a fake kernel.
pub async fn with_agent<F: Future<Output = ()>>(test: impl FnOnce(Host, Arc<FakeGuest>) -> F) {
    let guest = guest("6.12.95");
    let dir = tempfile::tempdir().unwrap();
    let agent = Rc::new(Agent::start(guest.clone(), dir.path(), false).unwrap());
    let (ours, theirs) = UnixStream::pair().unwrap();
    let talk = async {
        let conversation = spawn_local(converse(agent, theirs));
        test(Host::new(ours), guest).await;
        conversation.abort();
    };
    LocalSet::new().run_until(talk).await;
}

/// The program on a fake root. No holding is applied here: system calls are real ones.
pub struct Program {
    child: Child,
    dir: tempfile::TempDir,
    _guest: Arc<FakeGuest>,
}

impl Drop for Program {
    fn drop(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Program {
    pub fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let guest = guest("6.12.95");
        let child = Command::new(env!("CARGO_BIN_EXE_conuma-agent"))
            .arg(format!("--listen=unix:{}", dir.path().join("socket").display()))
            .arg("--root")
            .arg(guest.path())
            .arg("--run")
            .arg(dir.path())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        Self { child, dir, _guest: guest }
    }

    pub async fn connect(&self) -> Host {
        let socket = self.dir.path().join("socket");
        let last = Instant::now() + BUDGET;
        loop {
            match UnixStream::connect(&socket).await {
                Ok(stream) => return Host::new(stream),
                Err(error) if Instant::now() > last => panic!("{}: {error}", socket.display()),
                Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
            }
        }
    }

    fn proc(&self, file: &str) -> String {
        fs::read_to_string(Path::new("/proc").join(self.child.id().to_string()).join(file)).unwrap()
    }

    pub fn resident_kib(&self) -> u64 {
        let status = self.proc("status");
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        line.trim().split(' ').next().unwrap().parse().unwrap()
    }

    /// Times the program was put on a CPU.
    pub fn wakeups(&self) -> u64 {
        self.proc("schedstat").split_whitespace().nth(2).unwrap().parse().unwrap()
    }
}
