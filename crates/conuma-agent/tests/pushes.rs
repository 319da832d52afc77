//! Reports that the agent sends unasked: against a fake kernel, and with triggers of the running one.
#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout, reason = "helpers of tests")]

mod fake;
mod host;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use conuma_agent::kernel::Linux;
use conuma_agent::triggers::Triggers;
use conuma_agent_proto::*;
use conuma_linux::procfs::Tid;
use conuma_linux::sys;
use conuma_topology::{Bytes, GuestCpuSet};
use fake::Psi;
use host::{BUDGET, Host, Program, with_agent};
use tokio::time::timeout;

const CPU: Trigger = Trigger { stall: Duration::from_millis(100), window: Duration::from_secs(1) };
const MEMORY: Trigger = Trigger { stall: Duration::from_millis(50), window: Duration::from_secs(1) };
const BOTH: RequestBody = RequestBody::Watch { cpu: Some(CPU), memory: Some(MEMORY) };

impl Host {
    async fn watch(&mut self) -> (Option<Trigger>, Option<Trigger>) {
        match self.ask(0, BOTH).await {
            Ok(Reply::Watching { cpu, memory }) => (cpu, memory),
            other => panic!("{other:?}"),
        }
    }

    async fn pushed(&mut self) -> Pushed {
        let response = self.receive().await.expect("the agent is there");
        assert_eq!(response.id, RequestId::PUSHED);
        match response.body {
            Ok(Reply::Pushed(pushed)) => pushed,
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test]
async fn a_trigger_that_fires_brings_a_report_that_nobody_asked_for() {
    with_agent(|mut host, guest| async move {
        host.greet().await;
        assert_eq!(host.watch().await, (Some(CPU), Some(MEMORY)));
        for resource in [Resource::Memory, Resource::Cpu] {
            guest.press(resource);
            let pushed = host.pushed().await;
            assert_eq!(pushed.resource, resource);
            assert_eq!(pushed.report.uptime, Duration::from_millis(12_340));
            let nodes = pushed.report.nodes;
            assert_eq!((nodes[0].refaults, nodes[1].refaults), (None, Some(42)));
            assert_eq!((nodes[0].active_file, nodes[0].shmem), (Some(Bytes::mib(64)), Some(Bytes::mib(1))));
        }
        assert!(host.ask(0, RequestBody::Report).await.is_ok(), "it answers as before");
    })
    .await;
}

#[tokio::test]
async fn pushes_for_one_resource_keep_their_distance() {
    with_agent(|mut host, guest| async move {
        host.greet().await;
        host.watch().await;
        let began = Instant::now();
        guest.press(Resource::Cpu);
        host.pushed().await;
        for _ in 0..5 {
            guest.press(Resource::Cpu);
        }
        guest.press(Resource::Memory);
        assert_eq!(host.pushed().await.resource, Resource::Memory, "each resource has a distance of its own");
        assert_eq!(host.pushed().await.resource, Resource::Cpu, "what fired meanwhile is not lost");
        assert!(began.elapsed() >= Duration::from_millis(250), "{:?}", began.elapsed());
        assert!(host.ask(0, RequestBody::Report).await.is_ok(), "and was one push");
    })
    .await;
}

#[tokio::test]
async fn a_trigger_that_is_gone_ends_nothing_else() {
    with_agent(|mut host, guest| async move {
        host.greet().await;
        host.watch().await;
        guest.end_trigger(Resource::Memory);
        guest.press(Resource::Cpu);
        assert_eq!(host.pushed().await.resource, Resource::Cpu);
        assert!(host.ask(0, RequestBody::Report).await.is_ok());
        // Whoever asks again has both again.
        assert_eq!(host.watch().await, (Some(CPU), Some(MEMORY)));
        guest.press(Resource::Memory);
        assert_eq!(host.pushed().await.resource, Resource::Memory);
        let none = host.ask(0, RequestBody::Watch { cpu: None, memory: None }).await;
        assert_eq!(none, Ok(Reply::Watching { cpu: None, memory: None }));
        assert!(host.ask(0, RequestBody::Report).await.is_ok());
    })
    .await;
}

#[tokio::test]
async fn the_host_learns_which_triggers_the_kernel_takes() {
    with_agent(|mut host, guest| async move {
        let early = host.ask(0, BOTH).await;
        assert!(matches!(early, Err(AgentError::BadRequest(_))), "before the greeting: {early:?}");
        host.greet().await;
        guest.set_psi(Psi::EvenWindows);
        let slower = |millis| Some(Trigger { stall: Duration::from_millis(millis), window: Duration::from_secs(2) });
        assert_eq!(host.watch().await, (slower(200), slower(100)));
        guest.press(Resource::Cpu);
        assert_eq!(host.pushed().await.resource, Resource::Cpu);
        guest.set_psi(Psi::Cpu);
        assert_eq!(host.watch().await, (Some(CPU), None));
        guest.set_psi(Psi::Off);
        let refused = host.ask(0, BOTH).await;
        assert!(matches!(&refused, Err(AgentError::Unsupported(why)) if why.contains("proc/pressure")), "{refused:?}");
        assert!(host.ask(0, RequestBody::Report).await.is_ok());
    })
    .await;
}

#[tokio::test]
async fn a_program_whose_kernel_has_no_pressure_says_so() {
    let program = Program::start();
    let mut host = program.connect().await;
    host.greet().await;
    // Plain files of a fake root: there is none for memory, and none of them can be waited for.
    let refused = host.ask(0, BOTH).await;
    assert!(matches!(refused, Err(AgentError::Unsupported(_))), "{refused:?}");
    assert!(host.ask(0, RequestBody::Report).await.is_ok());
}

/// Threads that want the same CPU until this is dropped.
struct Crowd {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Crowd {
    fn gather() -> Self {
        let allowed: GuestCpuSet = sys::affinity(Tid(0)).unwrap();
        let one: GuestCpuSet = allowed.iter().take(1).collect();
        let stop = Arc::new(AtomicBool::new(false));
        let thread = || {
            let (one, stop) = (one.clone(), stop.clone());
            std::thread::spawn(move || {
                sys::set_affinity(Tid(0), &one).unwrap();
                while !stop.load(Ordering::Relaxed) {
                    std::hint::spin_loop();
                }
            })
        };
        let threads = vec![thread(), thread()];
        Self { stop, threads }
    }
}

impl Drop for Crowd {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            thread.join().unwrap();
        }
    }
}

#[tokio::test]
async fn the_running_kernel_tells_more_than_once_that_tasks_wait_for_a_cpu() {
    let mut triggers = Triggers::default();
    let trigger = Trigger { stall: Duration::from_millis(10), window: MIN_WINDOW };
    if let Err(why) = triggers.arm(&Linux::new("/"), Some(trigger), None) {
        println!("skipped: {why}");
        return;
    }
    let _crowd = Crowd::gather();
    for _ in 0..2 {
        let resource = timeout(BUDGET, triggers.fired()).await.expect("it fires in time");
        assert_eq!(resource, Resource::Cpu);
    }
}
