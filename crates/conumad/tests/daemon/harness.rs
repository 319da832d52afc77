//! A daemon in this process, on a fake hypervisor and fake agents, used through its API.

use std::future::Future;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use conuma_api::{
    Client, ClientError, Code, CoreDemand, Demand, GateState, Holder, MemoryDemand, Resources, Transfer,
    TransferRequest, VmDetail,
};
use conuma_balancing::Timing;
use conuma_binding::{Accel, Reserve};
use conuma_hypervisor::fake::{FakeHypervisor, FakeVm};
use conuma_linux::cgroup::Cgroup;
use conuma_linux::procfs::ProcFs;
use conuma_topology::{Bytes, CpuSet, NodeId, VmName};
use conumad::agent::Doors;
use conumad::{Daemon, Settings, Surroundings, Triggers};
use tempfile::TempDir;
use tokio::time::{Instant, sleep};

use crate::guest::Guest;

/// How long anything here may take.
const BUDGET: Duration = Duration::from_secs(20);

/// Two nodes of four cores each.
const MACHINE: &str = "2n4c1t@1G";

pub struct Host {
    dir: TempDir,
    adjust: fn(&mut Settings),
    machine: &'static str,
    pub hypervisor: FakeHypervisor,
    pub daemon: Option<Daemon>,
    pub client: Client,
}

pub fn name(text: &str) -> VmName {
    text.parse().unwrap()
}

pub fn cores(count: u32) -> Demand {
    Demand { cores: Some(CoreDemand::Count(count)), memory: None }
}

pub fn cpus(list: &str) -> Demand {
    Demand { cores: Some(CoreDemand::Cpus(list.parse().unwrap())), memory: None }
}

pub fn memory(node: u32, mib: u64) -> Demand {
    Demand { cores: None, memory: Some(MemoryDemand::PerNode([(NodeId(node), Bytes::mib(mib))].into())) }
}

pub fn lend(from: &str, to: &str, what: Demand) -> TransferRequest {
    TransferRequest::Lend { from: name(from), to: name(to), what, below_guarantee: false }
}

pub fn recall(to: &str) -> TransferRequest {
    TransferRequest::Recall { to: name(to), from: None, what: None }
}

pub fn set(vm: &str, what: Demand) -> TransferRequest {
    TransferRequest::Set { vm: name(vm), what, below_guarantee: false }
}

/// A VM file: two guaranteed cores, `initial` CPUs, 128 MiB of boot memory per node.
pub fn vm_file(vm: &str, initial: &str) -> String {
    format!(
        "name = \"{vm}\"\n[guarantee]\ncores = 2\nmemory = \"256M\"\n[initial]\ncpus = \"{initial}\"\n\
         memory = {{ node0 = \"256M\", node1 = \"256M\" }}\n[boot]\nmemory_per_node = \"128M\"\n"
    )
}

impl Host {
    pub async fn boot() -> Self {
        Self::boot_with(|_| ()).await
    }

    /// With other settings than usual, also for daemons that are started later.
    pub async fn boot_with(adjust: fn(&mut Settings)) -> Self {
        Self::boot_on(MACHINE, adjust).await
    }

    /// On another machine than usual.
    pub async fn boot_on(machine: &'static str, adjust: fn(&mut Settings)) -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("agents")).unwrap();
        std::fs::write(dir.path().join("online"), "0-2047\n").unwrap();
        let client = Client::new(dir.path().join("run/conumad.sock"));
        let mut host = Self { dir, adjust, machine, hypervisor: FakeHypervisor::default(), daemon: None, client };
        host.start_daemon().await;
        host
    }

    pub fn settings(&self) -> Settings {
        let root = self.dir.path();
        let short = Duration::from_millis(1500);
        let timing = Timing {
            agent: short,
            host: short,
            idle_window: Duration::from_millis(5),
            verify: short,
            prepare: short,
            shrink: 2 * short,
            grow: 2 * short,
            confirm: short,
            poll: Duration::from_millis(20),
            restart: Duration::from_millis(200),
            retry: Duration::from_millis(100),
            ..Timing::default()
        };
        let mut settings = Settings {
            state: root.join("state"),
            run: root.join("run"),
            group: None,
            viewers: None,
            reserve: Reserve { cpus: CpuSet::new(), memory_per_node: Bytes::mib(128) },
            accel: Accel::Kvm,
            doors: Doors::Sockets(root.join("agents")),
            timing,
            look: Duration::from_millis(50),
            stray: 50,
            report: Duration::from_millis(100),
            triggers: Triggers::default(),
            audit: Duration::from_millis(100),
            step: Duration::from_secs(5),
            policy: None,
            balance_tick: Duration::from_millis(100),
            recall_deadline: Duration::from_secs(1),
        };
        (self.adjust)(&mut settings);
        settings
    }

    fn surroundings(&self) -> Surroundings {
        let hypervisor = Arc::new(self.hypervisor.clone());
        let online = self.dir.path().join("online");
        let proc = ProcFs::new(self.dir.path().join("host"));
        let machine = self.machine.parse().unwrap();
        let cgroup = Cgroup::at(self.dir.path().join("cgroup/conuma"));
        Surroundings { machine, boot_id: "this boot".into(), hypervisor, online, proc, cgroup }
    }

    /// The host's kernel says that these CPUs are online.
    pub fn cpus_online(&self, list: &str) {
        std::fs::write(self.dir.path().join("online"), format!("{list}\n")).unwrap();
    }

    /// The host's kernel says that so much of each node could be had.
    pub fn host_has_available(&self, node: u32, mib: u64) {
        let dir = self.dir.path().join(format!("host/sys/devices/system/node/node{node}"));
        std::fs::create_dir_all(&dir).unwrap();
        let text = format!("Node {node} MemFree: {} kB\nNode {node} FilePages: 0 kB\n", mib * 1024);
        std::fs::write(dir.join("meminfo"), text).unwrap();
    }

    /// The host's kernel says that tasks of the host's own services have waited so long for a CPU.
    pub fn services_waited(&self, waited: Duration) {
        let dir = self.dir.path().join("cgroup/system.slice");
        std::fs::create_dir_all(&dir).unwrap();
        let text = format!("some avg10=0.00 avg60=0.00 avg300=0.00 total={}\n", waited.as_micros());
        std::fs::write(dir.join("cpu.pressure"), text).unwrap();
    }

    /// What a second start of the daemon comes to.
    pub async fn second_daemon(&self) -> anyhow::Result<Daemon> {
        Daemon::start(self.settings(), self.surroundings()).await
    }

    pub async fn start_daemon(&mut self) {
        self.daemon = Some(Daemon::start(self.settings(), self.surroundings()).await.unwrap());
    }

    pub async fn stop_daemon(&mut self) {
        self.daemon.take().expect("a daemon runs").stop().await;
    }

    pub fn state_file(&self, name: &str) -> PathBuf {
        self.dir.path().join("state").join(name)
    }

    /// An agent for a VM, started before or after it.
    pub fn guest(&self, vm: &str) -> Guest {
        Guest::listen(&self.dir.path().join(format!("agents/{vm}.sock")))
    }

    pub fn fake(&self, vm: &str) -> Arc<FakeVm> {
        self.hypervisor.vm(&name(vm)).expect("a VM that was started")
    }

    /// VM `a` with CPUs 0-3 and VM `b` with CPUs 4-5, both with agents that were told so.
    pub async fn two_vms(&self) -> (Guest, Guest) {
        let guests = (self.guest("a"), self.guest("b"));
        self.client.start(&vm_file("a", "0-3"), true).await.unwrap();
        self.client.start(&vm_file("b", "4-5"), true).await.unwrap();
        self.settled(&["a", "b"]).await;
        guests
    }

    /// Waits until guests, gates and QEMU all follow the ledger.
    pub async fn settled(&self, vms: &[&str]) {
        for vm in vms {
            self.eventually(&format!("{vm} is settled"), || async {
                let summary = self.vm(vm).await.summary;
                summary.settled && summary.agent == conuma_api::AgentState::Connected
            })
            .await;
        }
    }

    pub async fn vm(&self, vm: &str) -> VmDetail {
        self.client.vm(&name(vm)).await.unwrap()
    }

    /// Waits until the gate of this CPU stands so.
    pub async fn gate(&self, vm: &str, cpu: u32, gate: GateState) {
        self.eventually(&format!("the gate of {vm} on CPU {cpu} is {gate:?}"), || async {
            self.vm(vm).await.vcpus.iter().any(|vcpu| vcpu.cpu.0 == cpu && vcpu.gate == gate)
        })
        .await;
    }

    pub async fn held(&self, holder: &Holder) -> Resources {
        let ledger = self.client.ledger().await.unwrap();
        let account = ledger.accounts.into_iter().find(|account| account.holder == *holder);
        account.map(|account| account.holds).unwrap_or_default()
    }

    pub async fn cpus_of(&self, vm: &str) -> String {
        self.held(&Holder::Vm(name(vm))).await.cpus.to_string()
    }

    /// Begins a transfer and waits for its end.
    pub async fn transfer(&self, request: TransferRequest) -> Transfer {
        let begun = self.client.transfer(request).await.unwrap();
        self.ended(begun.id).await
    }

    pub async fn ended(&self, id: u64) -> Transfer {
        let budget = Instant::now() + BUDGET;
        loop {
            let transfer = self.client.transfer_by_id(id).await.unwrap();
            if transfer.state.is_final() {
                return transfer;
            }
            assert!(Instant::now() < budget, "transfer {id} does not end: {transfer:#?}");
            sleep(Duration::from_millis(10)).await;
        }
    }

    pub async fn refused(&self, request: TransferRequest) -> (Code, String) {
        problem(self.client.transfer(request).await.expect_err("a refusal"))
    }

    /// The invariants hold, as found on the (fake) host.
    pub async fn check(&self) {
        let report = self.client.check().await.unwrap();
        assert!(report.ok && report.unseen.is_empty(), "{report:#?}");
    }

    pub async fn eventually<F: Future<Output = bool>>(&self, what: &str, mut look: impl FnMut() -> F) {
        let budget = Instant::now() + BUDGET;
        while !look().await {
            if Instant::now() > budget {
                let vms = self.client.vms().await;
                panic!("not in time: {what}; {vms:#?}");
            }
            sleep(Duration::from_millis(10)).await;
        }
    }
}

pub fn problem(error: ClientError) -> (Code, String) {
    match error {
        ClientError::Problem(problem) => (problem.code, problem.message),
        other => panic!("no answer: {other}"),
    }
}
