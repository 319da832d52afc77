//! What moves by itself: loads come and go in guests, and cores and memory follow.

use std::time::Duration;

use conuma_agent_proto::Resource;
use conuma_api::{EventKind, HistoryQuery, Holder, PolicyMode, PolicyText};
use conuma_topology::{Bytes, NodeId};

use crate::guest::Guest;
use crate::harness::{Host, name};

/// A policy that follows quickly, so that tests need not wait.
pub const BRISK: &str = "[tuning]\nattack = 0.05\ndecay = 0.2\nmemory_decay = 0.2\ndwell = 0.1\n";

/// Applies a policy of this mode that follows quickly, with more at its end.
pub async fn apply(host: &Host, mode: &str, more: &str) {
    let text = PolicyText { text: format!("mode = \"{mode}\"\n{BRISK}{more}"), name: None };
    host.client.apply_policy(text).await.unwrap();
}

/// VM `a` with CPUs 0-3 and VM `b` with CPUs 4-5, two cores guaranteed to each; both have a load of nothing, and the policy knows it.
pub async fn two_idle_vms(host: &Host) -> (Guest, Guest) {
    let (a, b) = host.two_vms().await;
    a.begin_load(host.fake("a"));
    b.begin_load(host.fake("b"));
    known(host, &["a", "b"]).await;
    (a, b)
}

/// Waits until the policy knows something of the loads of these VMs.
pub async fn known(host: &Host, vms: &[&str]) {
    for vm in vms {
        host.eventually(&format!("something is known of {vm}"), || async {
            host.client.why(&name(vm)).await.is_ok_and(|why| why.estimate.is_some())
        })
        .await;
    }
}

pub async fn cores_of(host: &Host, vm: &str) -> u32 {
    host.vm(vm).await.summary.cores
}

/// Waits until a VM has at least so many cores.
pub async fn gets(host: &Host, vm: &str, cores: u32) {
    host.eventually(&format!("{vm} gets {cores} cores"), || async { cores_of(host, vm).await >= cores }).await;
}

/// Waits until a guest has been asked for so many more reports: so often the policy has looked.
async fn looked(host: &Host, guest: &Guest, times: u32) {
    let before = guest.state().reports;
    host.eventually("the policy has looked", || async { guest.state().reports >= before + times }).await;
}

async fn on_node(host: &Host, holder: &Holder, node: u32) -> Bytes {
    host.held(holder).await.memory.get(&NodeId(node)).copied().unwrap_or_default()
}

#[tokio::test(flavor = "multi_thread")]
async fn cores_follow_a_burst_and_come_back() {
    let host = Host::boot().await;
    let (a, b) = two_idle_vms(&host).await;
    apply(&host, "auto", "").await;
    b.run(6.0);
    gets(&host, "b", 6).await;
    b.run(0.0);
    a.run(5.0);
    gets(&host, "a", 5).await;
    host.check().await;
    assert!(host.vm("a").await.loans.is_empty(), "what the policy moves is no loan");
    assert!(host.client.policy().await.unwrap().pins.is_empty(), "nor does it pin");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_constant_load_moves_nothing() {
    let host = Host::boot().await;
    let (a, b) = two_idle_vms(&host).await;
    a.run(2.5);
    b.run(1.0);
    apply(&host, "auto", "").await;
    looked(&host, &a, 30).await;
    assert!(host.client.transfers().await.unwrap().is_empty());
    assert!(host.client.history(&HistoryQuery::default()).await.unwrap().is_empty());
    assert_eq!((cores_of(&host, "a").await, cores_of(&host, "b").await), (4, 2));
}

#[tokio::test(flavor = "multi_thread")]
async fn advice_moves_nothing_and_off_decides_nothing() {
    let host = Host::boot().await;
    let (_a, b) = two_idle_vms(&host).await;
    b.run(6.0);
    looked(&host, &b, 10).await;
    assert!(host.client.history(&HistoryQuery::default()).await.unwrap().is_empty());
    // Also where nothing is decided it can be asked what would be.
    host.eventually("a plan for b", || async {
        host.client.plan_rebalance().await.unwrap().moves.iter().any(|step| step.to == Holder::Vm(name("b")))
    })
    .await;
    apply(&host, "advise", "").await;
    host.eventually("it was advised", || async {
        let advised = host.client.history(&HistoryQuery::default()).await.unwrap();
        advised.iter().any(|decision| decision.state == conuma_api::DecisionState::Advised)
    })
    .await;
    looked(&host, &b, 10).await;
    assert!(host.client.transfers().await.unwrap().is_empty());
    assert_eq!(cores_of(&host, "b").await, 2);
    // What is advised can be done once.
    let done = host.client.rebalance().await.unwrap();
    assert!(!done.moves.is_empty() && done.id.is_some(), "{done:#?}");
    gets(&host, "b", 4).await;
    assert_eq!(host.client.policy().await.unwrap().mode, PolicyMode::Advise);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_idle_guarantee_is_lent_and_comes_back_when_it_is_needed() {
    let host = Host::boot().await;
    let (a, b) = two_idle_vms(&host).await;
    apply(&host, "auto", "").await;
    b.run(8.0);
    gets(&host, "b", 7).await;
    a.run(2.0);
    gets(&host, "a", 2).await;
    let moved = host.client.history(&HistoryQuery { vm: Some(name("a")), ..HistoryQuery::default() }).await.unwrap();
    let mut reasons = Vec::new();
    for decision in moved {
        let to_a = host.client.decision(decision.id).await.unwrap().moves.into_iter();
        reasons.extend(to_a.filter(|step| step.to == Holder::Vm(name("a"))).map(|step| step.why.code));
    }
    assert!(reasons.contains(&"guarantee".to_owned()), "{reasons:?}");
    host.check().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guarantee_that_is_late_is_told() {
    let host = Host::boot_with(|settings| settings.recall_deadline = Duration::from_millis(100)).await;
    let (a, b) = two_idle_vms(&host).await;
    apply(&host, "auto", "").await;
    b.run(8.0);
    gets(&host, "b", 7).await;
    let mut events = host.client.events(None, &["guarantee-late"]).await.unwrap();
    // Its gate closes without it in the end, but not at once.
    b.state().silent = true;
    a.run(2.0);
    let event = events.next().await.unwrap().expect("the daemon runs");
    let EventKind::GuaranteeLate { vm, waited_ms, cores, memory } = event.what else { panic!("{event:?}") };
    assert_eq!((vm, cores, memory), (name("a"), 1, Bytes::ZERO));
    assert!(waited_ms >= 100, "{waited_ms}");
    gets(&host, "a", 2).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn memory_of_a_node_moves_to_the_guest_that_grows_there() {
    let host = Host::boot().await;
    let (_a, b) = two_idle_vms(&host).await;
    // All of it comes at once here: not to be taken for growth that goes on.
    let text = "mode = \"auto\"\n[tuning]\nattack = 1.0\nforesight = 1.0\n".into();
    host.client.apply_policy(PolicyText { text, name: None }).await.unwrap();
    b.fill(1, 250);
    let on = async |node| on_node(&host, &Holder::Vm(name("b")), node).await;
    host.eventually("b has more of node 1", || async { on(1).await > Bytes::mib(280) }).await;
    assert_eq!(on(0).await, Bytes::mib(256));
    host.check().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_that_lies_gets_no_more_than_its_share() {
    let host = Host::boot().await;
    let (a, b) = two_idle_vms(&host).await;
    apply(&host, "auto", "").await;
    b.load(|load| load.lies = true);
    gets(&host, "b", 7).await;
    a.run(8.0);
    gets(&host, "a", 4).await;
    looked(&host, &a, 20).await;
    assert_eq!((cores_of(&host, "a").await, cores_of(&host, "b").await), (4, 4));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_that_is_short_of_memory_gets_some_back() {
    let host = Host::boot().await;
    let guests = (host.guest("a"), host.guest("b"));
    let file = |vm: &str, cpus: &str, mib: u64| {
        crate::harness::vm_file(vm, cpus).replace("node1 = \"256M\"", &format!("node1 = \"{mib}M\""))
    };
    host.client.start(&file("a", "0-3", 600), true).await.unwrap();
    host.client.start(&file("b", "4-5", 256), true).await.unwrap();
    host.settled(&["a", "b"]).await;
    guests.0.begin_load(host.fake("a"));
    guests.1.begin_load(host.fake("b"));
    known(&host, &["a", "b"]).await;
    apply(&host, "auto", "").await;
    let before = on_node(&host, &Holder::Pool, 1).await;
    assert_eq!(before, Bytes::mib(40));
    host.host_has_available(1, 8);
    host.eventually("the host has more of node 1", || async {
        on_node(&host, &Holder::Pool, 1).await >= Bytes::mib(128)
    })
    .await;
    let need = host.client.policy().await.unwrap().host_need;
    assert!(need.get(&NodeId(1)).is_some_and(|need| *need >= Bytes::mib(64)), "{need:?}");
    assert_eq!(on_node(&host, &Holder::Vm(name("b")), 1).await, Bytes::mib(256));
    host.check().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_that_is_short_of_cores_gets_what_nobody_is_guaranteed() {
    let host = Host::boot().await;
    let (a, b) = two_idle_vms(&host).await;
    apply(&host, "auto", "").await;
    a.run(8.0);
    b.run(8.0);
    host.eventually("all cores are held", || async { cores_of(&host, "a").await + cores_of(&host, "b").await == 8 })
        .await;
    let began = std::time::Instant::now();
    host.eventually("the host has one to itself", || async {
        host.services_waited(began.elapsed());
        cores_of(&host, "a").await + cores_of(&host, "b").await < 8
    })
    .await;
    assert!(host.client.policy().await.unwrap().host_need_cores >= 1);
    host.check().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn pressure_is_answered_before_the_next_tick() {
    let host = Host::boot_with(|settings| settings.balance_tick = Duration::from_secs(3600)).await;
    let (_a, b) = two_idle_vms(&host).await;
    apply(&host, "auto", "").await;
    b.run(4.0);
    host.eventually("b gets 4 cores", || async {
        b.press(Resource::Cpu).await;
        cores_of(&host, "b").await >= 4
    })
    .await;
    let causes: Vec<String> = host
        .client
        .history(&HistoryQuery::default())
        .await
        .unwrap()
        .into_iter()
        .map(|decision| decision.cause)
        .collect();
    assert!(causes.contains(&"pressure".to_owned()), "{causes:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vm_without_an_agent_is_seen_from_outside() {
    use conuma_hypervisor::fake::Faults;
    use conuma_topology::VcpuId;
    let host = Host::boot().await;
    let file = format!("agent = \"none\"\n{}", crate::harness::vm_file("a", "0-3"));
    host.client.start(&file, true).await.unwrap();
    apply(&host, "advise", "").await;
    host.fake("a").set_faults(Faults { busy: [VcpuId(0), VcpuId(1)].into(), ..Faults::default() });
    host.eventually("it is seen that a uses two cores", || async {
        let estimate = host.client.why(&name("a")).await.unwrap().estimate;
        estimate.is_some_and(|estimate| (1.8..2.2).contains(&estimate.cores.used) && estimate.cores.waiting.is_none())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn room_is_made_for_a_vm_that_starts() {
    let host = Host::boot().await;
    let (a, b) = two_idle_vms(&host).await;
    apply(&host, "auto", "").await;
    a.run(8.0);
    b.run(8.0);
    host.eventually("nothing is free", || async { host.held(&Holder::Pool).await.cpus.is_empty() }).await;
    let _c = host.guest("c");
    let file = crate::harness::vm_file("c", "0").replace("[initial]\ncpus = \"0\"", "[initial]\ncores = 2");
    let c = host.client.start(&file, true).await.unwrap();
    assert_eq!(c.summary.cores, 2);
    host.settled(&["a", "b", "c"]).await;
    assert_eq!(cores_of(&host, "a").await + cores_of(&host, "b").await, 6);
    host.check().await;
    // Without a policy at work nobody makes room.
    host.client.set_policy_mode(PolicyMode::Advise).await.unwrap();
    let file = file.replace("\"c\"", "\"d\"");
    let (code, message) = crate::harness::problem(host.client.start(&file, true).await.expect_err("no room"));
    assert!(code == conuma_api::Code::Refused && message.contains("core"), "{message}");
}
