//! The built program against a daemon in this process, whose VMs are fakes without agents: a
//! transfer ends then without the guests' word, by the gates alone.

use std::path::Path;
use std::process::Output;
use std::sync::Arc;
use std::time::Duration;

use conuma_api::{EventKind, HostInfo, Transfer, TransferState, VmDetail, VmSummary};
use conuma_balancing::Timing;
use conuma_binding::{Accel, Reserve};
use conuma_hypervisor::fake::{FakeHypervisor, Faults};
use conuma_topology::{Bytes, CpuSet, NodeId};
use conumad::agent::Doors;
use conumad::{Daemon, Settings, Surroundings};

/// Nobody waits longer for a fake.
const BUDGET: Duration = Duration::from_secs(60);
/// What a fake does not do at once it never does.
const BRIEF: Duration = Duration::from_secs(1);

/// A daemon on a fake host.
struct Lab {
    dir: tempfile::TempDir,
    hypervisor: FakeHypervisor,
    daemon: Daemon,
    settings: Settings,
}

/// What came out, and the exit code.
struct Ran {
    code: i32,
    out: String,
    err: String,
}

impl Lab {
    /// Two nodes of four cores and 1 GiB.
    async fn new() -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let settings = Settings {
            state: dir.path().join("state"),
            run: dir.path().join("run"),
            group: None,
            viewers: None,
            reserve: Reserve { cpus: CpuSet::new(), memory_per_node: Bytes::mib(128) },
            accel: Accel::Kvm,
            doors: Doors::Sockets(dir.path().join("agents")),
            // A fake that keeps its memory keeps it for good, and an agent that is not there stays silent.
            timing: Timing { shrink: BRIEF, grow: BRIEF, agent: Duration::from_millis(300), ..Timing::default() },
            look: Duration::from_secs(1),
            stray: 50,
            report: Duration::from_secs(5),
            audit: Duration::from_secs(60),
            step: Duration::from_secs(15),
        };
        let hypervisor = FakeHypervisor::default();
        let surroundings = Surroundings {
            machine: "2n4c1t@1G".parse().expect("a machine"),
            boot_id: "a boot".into(),
            hypervisor: Arc::new(hypervisor.clone()),
            online: dir.path().join("online"),
        };
        let daemon = Daemon::start(settings.clone(), surroundings).await.expect("a daemon");
        Self { dir, hypervisor, daemon, settings }
    }

    /// With `a` and `b`, each of two cores and 256 MiB a node; `a` on node 0, `b` on node 1.
    async fn with_two_vms() -> Self {
        let lab = Self::new().await;
        for (name, cpus) in [("a", "0-1"), ("b", "4-5")] {
            lab.vm_file(name, cpus);
            lab.done(&format!("start {name}.toml --wait boot")).await;
        }
        lab
    }

    fn vm_file(&self, name: &str, cpus: &str) {
        let text = format!(
            "name = \"{name}\"\n[guarantee]\ncpus = \"{cpus}\"\nmemory = {{ node0 = \"256M\", node1 = \"256M\" }}\n\
             [boot]\nmemory_per_node = \"128M\"\nkernel = \"/vmlinuz\"\n"
        );
        std::fs::write(self.dir.path().join(format!("{name}.toml")), text).expect("writing");
    }

    fn path(&self) -> &Path {
        self.dir.path()
    }

    async fn conuma(&self, line: &str) -> Ran {
        let run = tokio::process::Command::new(env!("CARGO_BIN_EXE_conuma"))
            .current_dir(self.path())
            .env("CONUMA_SOCKET", self.settings.socket())
            .args(line.split_whitespace())
            .kill_on_drop(true)
            .output();
        let Output { status, stdout, stderr } =
            tokio::time::timeout(BUDGET, run).await.expect(line).expect("running the program");
        let text = |bytes| String::from_utf8(bytes).expect("UTF-8");
        Ran { code: status.code().expect("an exit code"), out: text(stdout), err: text(stderr) }
    }

    async fn done(&self, line: &str) -> String {
        let ran = self.conuma(line).await;
        assert_eq!(ran.code, 0, "{line}\n{}{}", ran.out, ran.err);
        ran.out
    }

    async fn json<T: serde::de::DeserializeOwned>(&self, line: &str) -> T {
        let out = self.done(&format!("{line} --json")).await;
        serde_json::from_str(&out).expect(&out)
    }

    async fn cpus_of(&self, vm: &str) -> String {
        self.json::<VmDetail>(&format!("show {vm}")).await.summary.holding.cpus.to_string()
    }

    async fn end(self) {
        self.daemon.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn vms_start_are_listed_shown_and_stopped() {
    let lab = Lab::with_two_vms().await;
    let list = lab.done("list").await;
    assert!(list.lines().any(|line| line.starts_with("a ") && line.contains("running")), "{list}");
    let vms: Vec<VmSummary> = lab.json("list").await;
    assert_eq!(vms.iter().map(|vm| vm.name.as_str()).collect::<Vec<_>>(), ["a", "b"]);

    let shown = lab.done("show a").await;
    assert!(shown.contains("2 cores: CPUs 0-1, node0=256M, node1=256M"), "{shown}");
    let host = lab.done("show").await;
    assert!(host.contains("cores   aa..") && host.contains("cores   bb.."), "{host}");
    let host: HostInfo = lab.json("show").await;
    assert_eq!(host.ledger.cores.len(), 8);

    let preview = lab.conuma("start a.toml --preview").await;
    assert_ne!(preview.code, 0, "a runs already");
    let stopped = lab.done("stop a").await;
    assert!(stopped.contains("a is stopped"), "{stopped}");
    assert_eq!(lab.json::<Vec<VmSummary>>("list").await.len(), 1);
    let preview = lab.done("start a.toml --preview").await;
    assert!(preview.contains("bound to CPUs 0-7"), "{preview}");
    lab.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn cores_and_memory_are_lent_and_recalled() {
    let lab = Lab::with_two_vms().await;
    let lend = "lend --from a --to b --cpus 1 --memory node1=64M --below-guarantee";
    let preview = lab.done(&format!("{lend} --preview")).await;
    assert!(preview.contains("2 → 1") && preview.contains("256M → 192M"), "{preview}");
    assert_eq!(lab.cpus_of("a").await, "0-1", "a preview moves nothing");

    let ran = lab.conuma(lend).await;
    assert_eq!(ran.code, 0, "{}{}", ran.out, ran.err);
    assert!(ran.out.contains("all of it moved"), "{}", ran.out);
    assert!(ran.err.contains("a → b  CPU 1"), "progress goes to the other stream: {}", ran.err);
    assert_eq!(lab.cpus_of("b").await, "1,4-5");
    let shown = lab.done("show b").await;
    assert!(shown.contains("borrowed   CPU 1, node1=64M from a"), "{shown}");

    let back: Transfer = lab.json("recall --to a").await;
    assert_eq!(back.state, TransferState::Complete);
    assert_eq!(lab.cpus_of("a").await, "0-1");
    lab.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_holding_is_set_from_the_free_pool() {
    let lab = Lab::with_two_vms().await;
    lab.done("set a --cpus 0-3 --memory node0=384M").await;
    assert_eq!(lab.cpus_of("a").await, "0-3");
    lab.done("set a --cores 2").await;
    lab.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_says_why_and_what_to_do_and_exits_with_4() {
    let lab = Lab::with_two_vms().await;
    let ran = lab.conuma("lend --from a --to b --cores 1").await;
    assert_eq!(ran.code, 4, "{}{}", ran.out, ran.err);
    assert!(ran.err.contains("its guarantee"), "{}", ran.err);
    assert_eq!(ran.err.matches("--below-guarantee").count(), 1, "told once: {}", ran.err);
    let unknown = lab.conuma("lend --from a --to c --cores 1").await;
    assert_ne!(unknown.code, 0);
    assert!(unknown.err.contains("no VM c"), "{}", unknown.err);
    let unknown = lab.conuma("show c").await;
    assert_eq!(unknown.code, 1);
    assert_eq!(unknown.err, "error: there is no VM c\nhint: the VMs here are a, b\n");
    lab.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_part_exits_with_3_and_says_what_stayed() {
    let lab = Lab::with_two_vms().await;
    // Of the 128 MiB that are plugged there besides the boot memory.
    let stuck = Faults { keeps: [(NodeId(1), Bytes::mib(96))].into(), ..Faults::default() };
    lab.hypervisor.vm(&"a".parse().expect("a name")).expect("a runs").set_faults(stuck);
    let ran = lab.conuma("lend --from a --to b --memory node1=128M --below-guarantee").await;
    assert_eq!(ran.code, 3, "{}{}", ran.out, ran.err);
    assert!(ran.out.contains("a part moved") && ran.out.contains("not moved:"), "{}", ran.out);
    lab.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_amount_without_a_node_comes_from_another_where_one_does_not_do() {
    let lab = Lab::with_two_vms().await;
    // Just what it has plugged there besides the boot memory.
    let stuck = Faults { takes: [(NodeId(1), Bytes::mib(128))].into(), ..Faults::default() };
    lab.hypervisor.vm(&"b".parse().expect("a name")).expect("a runs").set_faults(stuck);
    let ran = lab.conuma("lend --from a --to b --memory 128M --below-guarantee").await;
    assert_eq!(ran.code, 0, "{}{}", ran.out, ran.err);
    assert!(ran.out.contains("node1=128M did not come: looked for on other nodes"), "{}", ran.out);
    let b: VmDetail = lab.json("show b").await;
    assert_eq!(b.loans.first().map(|loan| loan.what.to_string()), Some("node0=128M".into()));
    let mixed = lab.conuma("lend --from a --to b --memory 128M,node1=128M").await;
    assert!(mixed.code == 1 && mixed.err.contains("names nodes, and also a size"), "{}", mixed.err);
    lab.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn waiting_for_an_agent_ends_with_its_budget() {
    let lab = Lab::new().await;
    lab.vm_file("a", "0-1");
    let ran = lab.conuma("start a.toml --deadline 1s").await;
    assert_eq!(ran.code, 1, "{}", ran.err);
    assert!(ran.err.contains("a runs (pid"), "{}", ran.err);
    assert!(ran.err.contains("its agent did not answer within 1s") && ran.err.contains("hint: "), "{}", ran.err);
    assert_eq!(lab.json::<Vec<VmSummary>>("list").await.len(), 1, "the VM goes on");
    lab.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn events_are_followed_until_the_daemon_ends() {
    use tokio::io::{AsyncBufReadExt as _, BufReader};
    let lab = Lab::with_two_vms().await;
    let mut child = tokio::process::Command::new(env!("CARGO_BIN_EXE_conuma"))
        .args(["events", "--json", "--socket"])
        .arg(lab.settings.socket())
        .stdout(std::process::Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .expect("running the program");
    let mut lines = BufReader::new(child.stdout.take().expect("a pipe")).lines();
    // What happens before the program listens is not told, so something happens again and again.
    let told = async {
        for cpus in ["0-2", "0-1"].iter().cycle() {
            lab.done(&format!("set a --cpus {cpus}")).await;
            let Ok(line) = tokio::time::timeout(Duration::from_millis(500), lines.next_line()).await else { continue };
            return line.expect("reading").expect("a line");
        }
        unreachable!("the cycle has no end")
    };
    let line = tokio::time::timeout(BUDGET, told).await.expect("an event");
    let event: conuma_api::Event = serde_json::from_str(&line).expect("an event as JSON");
    assert!(event.what.transfer().is_some() || matches!(event.what, EventKind::VmSettled { .. }), "{line}");
    lab.end().await;
    let status = tokio::time::timeout(BUDGET, child.wait()).await.expect("in time").expect("a status");
    assert!(status.success(), "the end of the stream is no error");
}
