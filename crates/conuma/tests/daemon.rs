//! The built program against a daemon in this process, whose VMs are fakes without agents: a
//! transfer ends then without the guests' word, by the gates alone.

use std::path::Path;
use std::process::Output;
use std::sync::Arc;
use std::time::Duration;

use conuma_api::{
    DecisionInfo, DecisionSummary, EventKind, HostInfo, PolicyInfo, PolicyMode, Transfer, TransferState, VmDetail,
    VmSummary,
};
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
            triggers: conumad::Triggers::default(),
            audit: Duration::from_secs(60),
            step: Duration::from_secs(15),
            policy: None,
            balance_tick: Duration::from_secs(1),
            recall_deadline: Duration::from_secs(1),
        };
        let hypervisor = FakeHypervisor::default();
        let surroundings = Surroundings {
            machine: "2n4c1t@1G".parse().expect("a machine"),
            boot_id: "a boot".into(),
            hypervisor: Arc::new(hypervisor.clone()),
            online: dir.path().join("online"),
            proc: conuma_linux::procfs::ProcFs::new(dir.path()),
            cgroup: conuma_linux::cgroup::Cgroup::at(dir.path().join("cgroup/conuma")),
        };
        let daemon = Daemon::start(settings.clone(), surroundings).await.expect("a daemon");
        Self { dir, hypervisor, daemon, settings }
    }

    /// With `a` and `b`, each of two cores and 256 MiB a node; `a` on node 0, `b` on node 1.
    async fn with_two_vms() -> Self {
        let lab = Self::new().await;
        for (name, cpus) in [("a", "0-1"), ("b", "4-5")] {
            // The host alone enforces what they hold: an agent that is expected and silent would give no memory.
            lab.vm_file(name, cpus, "agent = \"none\"\n");
            lab.done(&format!("start {name}.toml --wait boot")).await;
        }
        lab
    }

    fn vm_file(&self, name: &str, cpus: &str, more: &str) {
        let text = format!(
            "name = \"{name}\"\n{more}[guarantee]\ncpus = \"{cpus}\"\nmemory = {{ node0 = \"256M\", node1 = \"256M\" }}\n\
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
    lab.vm_file("a", "0-1", "");
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

#[tokio::test(flavor = "multi_thread")]
async fn a_policy_is_checked_compared_applied_and_shown() {
    let lab = Lab::with_two_vms().await;
    let shown = lab.done("policy show").await;
    assert!(shown.contains("off: nothing moves by itself") && shown.contains("VM file"), "{shown}");

    let text = "mode = \"advise\"\n[vm.b]\nweight = 300\n";
    std::fs::write(lab.path().join("p.toml"), text).expect("writing");
    let checked = lab.done("policy check p.toml").await;
    assert!(checked.contains("ok p.toml is valid") && checked.contains("vm.b.weight = 300"), "{checked}");
    let diff = lab.done("policy diff p.toml").await;
    assert!(diff.contains("Would change") && diff.contains("vm.b.weight = 300"), "{diff}");
    assert_eq!(lab.json::<PolicyInfo>("policy show").await.text, "", "nothing was applied");

    let applied = lab.done("policy apply p.toml").await;
    assert!(applied.contains("vm.b.weight = 300") && applied.contains("in force; advise"), "{applied}");
    assert_eq!(lab.done("policy show --text").await, text);
    let shown = lab.done("policy show").await;
    assert!(shown.lines().any(|line| line.starts_with("b ") && line.contains("300")), "{shown}");
    assert!(lab.done("policy diff p.toml").await.contains("nothing changes"));

    std::fs::write(lab.path().join("p.toml"), text.replace("weight", "wieght")).expect("writing");
    for command in ["diff", "apply"] {
        let ran = lab.conuma(&format!("policy {command} p.toml")).await;
        assert_eq!(ran.code, 1, "{}{}", ran.out, ran.err);
        assert!(ran.err.contains("p.toml:3:1") && ran.err.contains("3 | wieght = 300"), "{}", ran.err);
        assert_eq!(ran.err.contains("the policy before it stays in force"), command == "apply", "{}", ran.err);
    }
    assert_eq!(lab.done("policy show --text").await, text);
    let both = "mode = \"auto\"\n[vm.a]\nguarantee = { cores = 9 }\n";
    std::fs::write(lab.path().join("p.toml"), both).expect("writing");
    let ran = lab.conuma("policy check p.toml").await;
    assert!(ran.code == 1 && ran.out.contains("cannot be applied on this host"), "{}{}", ran.out, ran.err);

    assert!(lab.done("policy mode off").await.contains("nothing moves by itself"));
    assert_eq!(lab.json::<PolicyInfo>("policy show").await.mode, PolicyMode::Off);
    lab.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_people_set_is_pinned_while_a_policy_is_at_work() {
    let lab = Lab::with_two_vms().await;
    let ran = lab.conuma("set a --cpus 0-2").await;
    assert!(ran.code == 0 && !ran.err.contains("pinned"), "the policy is off: {}", ran.err);
    lab.done("policy mode advise").await;
    let ran = lab.conuma("set a --cpus 0-1 --for 2h").await;
    assert!(ran.err.contains("a is pinned for 2 h 0 min: the policy leaves it so"), "{}", ran.err);
    let ran = lab.conuma("lend --from a --to b --cpus 1 --below-guarantee").await;
    assert!(ran.err.contains("a and b are pinned until `conuma unpin`"), "{}", ran.err);
    let ran = lab.conuma("set b --cpus 4-5 --for 0").await;
    assert!(ran.code == 0 && !ran.err.contains("is pinned"), "{}", ran.err);

    assert!(lab.done("unpin a").await.contains("not pinned any more"));
    assert!(lab.done("unpin a").await.contains("was not pinned"));
    assert!(lab.done("pin a --for 2h").await.contains("a is pinned for 2 h 0 min more"));
    let shown = lab.done("policy show").await;
    assert!(shown.contains("pinned  a by pin, for 1 h 59 min more") || shown.contains("for 2 h 0 min more"), "{shown}");
    let unknown = lab.conuma("pin c").await;
    assert!(unknown.code == 1 && unknown.err.contains("the VMs here are a, b"), "{}", unknown.err);
    lab.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_policy_would_do_is_told_with_its_reasons() {
    let lab = Lab::with_two_vms().await;
    let plan = lab.done("plan rebalance").await;
    assert!(plan.contains("fair share") && plan.contains("hint: the policy is off"), "{plan}");
    let plan: DecisionInfo = lab.json("plan rebalance").await;
    assert_eq!(plan.vms.iter().map(|vm| vm.vm.as_str()).collect::<Vec<_>>(), ["a", "b"]);
    let why = lab.done("show a --why").await;
    assert!(why.contains("weight 100, priority normal") && why.contains("pinned     no"), "{why}");
    assert!(lab.done("history").await.contains("nothing was decided yet"));
    let unknown = lab.conuma("history 99999").await;
    assert!(unknown.code == 1 && unknown.err.contains("hint: `conuma history` lists"), "{}", unknown.err);
    lab.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_vm_is_guaranteed_comes_by_a_rebalance_and_stands_in_the_history() {
    let lab = Lab::with_two_vms().await;
    lab.done("set a --cores 1 --below-guarantee --for 0").await;
    let plan = lab.done("plan rebalance").await;
    assert!(plan.contains("Would make 1 move") && plan.contains("it needs what it is guaranteed"), "{plan}");
    assert_eq!(lab.cpus_of("a").await.len(), 1, "a plan moves nothing");
    let ran = lab.conuma("rebalance").await;
    assert_eq!(ran.code, 0, "{}{}", ran.out, ran.err);
    assert!(ran.out.contains("decision 1: done") && ran.out.contains("all      it needs"), "{}", ran.out);
    assert_eq!(lab.cpus_of("a").await, "0-1");
    let again = lab.done("rebalance").await;
    assert!(again.contains("nothing is to be moved"), "{again}");

    let listed: Vec<DecisionSummary> = lab.json("history --vm a --since 1h --state done").await;
    assert_eq!(listed.iter().map(|decision| decision.id).collect::<Vec<_>>(), [1]);
    let told = lab.done("history 1").await;
    for text in ["decision 1: 1 core from free to a", "manual, in mode off", "1 → 2", "What it was made from"] {
        assert!(told.contains(text), "no `{text}` in\n{told}");
    }
    assert!(lab.done("show a --why").await.contains("last moved by decision 1"));
    lab.end().await;
}
