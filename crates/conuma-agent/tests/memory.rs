//! Memory against a fake kernel: making room, confirming what came, reports.
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests")]

mod fake;

use std::time::{Duration, Instant};

use conuma_agent::kernel::Kernel as _;
use conuma_agent::memory;
use conuma_agent::report::Reporter;
use conuma_agent_proto::{AgentError, AutoOnline, MemoryState, Prepared, Stage};
use conuma_topology::{Bytes, GuestNodeId};
use fake::{FakeGuest, NODE_KIB, guest};

const NODE0: GuestNodeId = GuestNodeId(0);
const NODE1: GuestNodeId = GuestNodeId(1);

fn mib(mib: u64) -> u64 {
    mib << 10
}

fn prepare(guest: &FakeGuest, bytes: Bytes) -> Prepared {
    memory::prepare(guest, NODE1, bytes, Instant::now() + Duration::from_secs(5)).unwrap()
}

fn stages(prepared: &Prepared) -> Vec<Stage> {
    prepared.timings.iter().map(|time| time.stage).collect()
}

#[test]
fn nothing_is_done_while_enough_is_free() {
    let guest = guest("6.12.0");
    let prepared = prepare(&guest, Bytes::mib(512));
    assert!(prepared.enough);
    assert_eq!(stages(&prepared), []);
    assert_eq!(guest.take_writes(), Vec::<String>::new());
}

#[test]
fn cache_goes_first_and_pages_move_where_that_was_not_enough() {
    let guest = guest("6.12.0");
    guest.set_memory(100, 1, mib(300));
    guest.set_memory(200, 1, mib(100));
    let prepared = prepare(&guest, Bytes::mib(400));
    assert_eq!(prepared.free_before, Bytes::mib(112));
    assert_eq!(prepared.migrated, Bytes::mib(300), "the largest process was enough");
    assert_eq!(prepared.reclaimed, Bytes::ZERO, "this node had no cache");
    assert!(prepared.enough);

    let guest = self::guest("6.12.0");
    guest.set_memory(100, 1, mib(300));
    guest.set_cache(0, 0);
    guest.set_cache(1, mib(300));
    let prepared = prepare(&guest, Bytes::mib(400));
    assert_eq!((prepared.reclaimed, prepared.migrated), (Bytes::mib(188), Bytes::ZERO), "no more than was asked");
    assert_eq!(stages(&prepared), [Stage::Reclaim]);
}

#[test]
fn a_guest_keeps_what_it_cannot_do_without() {
    let guest = guest("6.12.0");
    let left = Bytes::mib(32) + Bytes(Bytes::kib(2 * fake::NODE_KIB).0 / 64);
    guest.set_memory(100, 1, mib(300));
    for node in [0, 1] {
        guest.set_cache(node, 0);
        guest.set_free(node, mib(100));
    }
    let prepared = prepare(&guest, Bytes::mib(400));
    assert!(!prepared.enough);
    assert_eq!(prepared.spare, Bytes::mib(200).saturating_sub(left));
    assert_eq!(prepared.migrated, Bytes::ZERO, "there is nowhere to go");
}

#[test]
fn cache_of_other_nodes_is_spared_when_little_of_it_would_help() {
    let guest = guest("6.12.0");
    guest.set_memory(100, 1, mib(300));
    guest.set_cache(0, mib(400));
    guest.set_cache(1, mib(200));
    let prepared = prepare(&guest, Bytes::mib(400));
    assert!(prepared.enough);
    assert_eq!(prepared.migrated, Bytes::mib(300));
    assert_eq!(guest.cache(0), mib(400 - 64), "one step was tried");
}

#[test]
fn cache_goes_where_there_is_no_room_elsewhere() {
    for release in ["6.1.0", "6.12.0"] {
        let guest = guest(release);
        guest.set_memory(100, 1, mib(300));
        guest.set_free(0, mib(40));
        guest.set_cache(0, 0);
        guest.set_cache(1, mib(200));
        let prepared = prepare(&guest, Bytes::mib(380));
        assert_eq!(prepared.migrated, Bytes::ZERO, "the other node keeps what it has");
        assert_eq!(prepared.reclaimed, Bytes::mib(168), "no more than was asked");
        assert!(prepared.enough);
    }
}

#[test]
fn what_cannot_be_made_free_is_told() {
    let guest = guest("6.12.0");
    guest.set_memory(100, 1, mib(300));
    guest.set_free(0, mib(120));
    guest.set_cache(0, 0);
    guest.set_cache(1, mib(20));
    let prepared = prepare(&guest, Bytes::mib(400));
    assert!(!prepared.enough);
    assert_eq!(prepared.free_after, Bytes::mib(232));
}

#[test]
fn a_node_that_is_not_there_is_a_bad_request() {
    let guest = guest("6.12.0");
    let result = memory::prepare(&*guest, GuestNodeId(7), Bytes::mib(1), Instant::now());
    assert_eq!(result, Err(AgentError::BadRequest("there is no node 7".into())));
}

async fn confirm(guest: &FakeGuest, at_least: Bytes, within: Duration) -> MemoryState {
    memory::confirm(guest, NODE0, at_least, Instant::now() + within).await.unwrap()
}

#[tokio::test]
async fn memory_is_confirmed_when_it_is_there() {
    let guest = guest("6.12.0");
    let state = confirm(&guest, Bytes::kib(NODE_KIB), Duration::from_secs(5)).await;
    assert!(state.satisfied);
    assert_eq!(state.online, Bytes::mib(512));
    assert_eq!(state.offline, Bytes::ZERO);
}

#[tokio::test]
async fn memory_that_comes_late_is_waited_for_and_brought_online() {
    let guest = guest("6.12.0");
    let state = "sys/devices/system/memory/memory2/state";
    guest.put(state, "offline\n");
    let grow = async {
        while guest.text(state) != "online_movable" {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        guest.put("sys/devices/system/node/node0/meminfo", "Node 0 MemTotal: 1200000 kB\nNode 0 MemFree: 5 kB\n");
    };
    let (state, ()) = tokio::join!(confirm(&guest, Bytes::kib(1_100_000), Duration::from_secs(20)), grow);
    assert!(state.satisfied);
    assert_eq!(state.total, Bytes::kib(1_200_000));
    assert_eq!(state.offline, Bytes::ZERO);
}

#[tokio::test]
async fn memory_that_does_not_come_is_told_at_the_deadline() {
    let guest = guest("6.12.0");
    let within = Duration::from_millis(30);
    let state = confirm(&guest, Bytes::gib(2), within).await;
    assert!(!state.satisfied);
    assert!(state.waited >= within);
    assert_eq!(state.total, Bytes::kib(NODE_KIB));
}

#[test]
fn memory_that_appears_becomes_movable() {
    let guest = guest("6.12.0");
    let file = "sys/devices/system/memory/auto_online_blocks";
    let check = |before: &str, policy: Option<&str>, after: &str, told: AutoOnline| {
        guest.put(file, before);
        if let Some(policy) = policy {
            std::fs::create_dir_all(guest.path().join("sys/module/memory_hotplug/parameters")).unwrap();
            guest.put("sys/module/memory_hotplug/parameters/online_policy", policy);
        }
        memory::online_as_movable(&*guest).unwrap();
        assert_eq!(guest.text(file), after);
        assert_eq!(memory::auto_online(&*guest), Some(told));
    };
    check("offline\n", None, "online_movable", AutoOnline::OnlineMovable);
    check("online_kernel\n", None, "online_movable", AutoOnline::OnlineMovable);
    check("online\n", Some("contig-zones\n"), "online_movable", AutoOnline::OnlineMovable);
    check("online\n", Some("auto-movable\n"), "online", AutoOnline::OnlineMovable);
}

#[test]
fn reports_say_what_the_kernel_says() {
    let guest = guest("6.12.0");
    let pools = guest.path().join("sys/devices/system/node/node1/hugepages/hugepages-2048kB");
    std::fs::create_dir_all(&pools).unwrap();
    std::fs::write(pools.join("nr_hugepages"), "4\n").unwrap();
    std::fs::write(pools.join("free_hugepages"), "3\n").unwrap();
    let mut reporter = Reporter::default();
    let report = reporter.report(&*guest).unwrap();
    assert_eq!(report.uptime, Duration::from_millis(12_340));
    assert_eq!((report.runnable, report.blocked), (2, 1));
    let cpu = &report.cpus[0];
    assert_eq!((cpu.cpu.0, cpu.user, cpu.idle), (0, Duration::from_secs(1), Duration::from_secs(9)));
    assert_eq!((cpu.interrupts, cpu.steal), (Duration::from_millis(30), Duration::from_millis(30)));
    assert_eq!((cpu.ran, cpu.waited), (Some(Duration::from_micros(5)), Some(Duration::from_micros(7))));
    let pressure = report.cpu_pressure.unwrap();
    assert_eq!((pressure.some.avg10, pressure.some.total), (1250, Duration::from_micros(99)));
    assert_eq!(report.memory_pressure, None, "this kernel does not tell");
    let node = &report.nodes[1];
    assert_eq!((node.total, node.free), (Bytes::kib(NODE_KIB), Bytes::mib(512)));
    assert_eq!((node.file, node.available), (Bytes::mib(128), Bytes::mib(639)));
    assert_eq!((node.movable, node.kept), (Bytes::mib(4), Some(Bytes::kib(64))));
    assert_eq!((node.huge_total, node.huge_free), (Bytes::mib(8), Bytes::mib(6)));
    assert_eq!((node.blocks_online, node.blocks_offline), (Bytes::mib(512), Bytes::ZERO));

    // The kernel keeps no more than is free; its marks are dear to read, and seldom change.
    guest.put("proc/buddyinfo", "Node 1, zone  Movable  3  1  0\n");
    assert_eq!(reporter.report(&*guest).unwrap().nodes[1].kept, Some(Bytes::kib(20)));
    guest.put("proc/buddyinfo", "Node 1, zone  Movable  100  0  0\n");
    guest.put(
        "proc/zoneinfo",
        "Node 1, zone  Movable\n  pages free     10\n        high     32\n        managed  1024\n",
    );
    assert_eq!(reporter.report(&*guest).unwrap().nodes[1].kept, Some(Bytes::kib(64)), "not read again in vain");
    guest.put("proc/uptime", "42.34 50.00\n");
    assert_eq!(reporter.report(&*guest).unwrap().nodes[1].kept, Some(Bytes::kib(128)), "it was long ago");
    guest.put(
        "proc/zoneinfo",
        "Node 1, zone  Movable\n  pages free     10\n        high     8\n        managed  1024\n",
    );
    guest.put("sys/devices/system/node/node0/meminfo", "Node 0 MemTotal: 5 kB\n");
    assert_eq!(reporter.report(&*guest).unwrap().nodes[1].kept, Some(Bytes::kib(32)), "another node has changed");

    guest.write("sys/devices/system/memory/memory4/state", "offline").unwrap();
    assert_eq!(reporter.report(&*guest).unwrap().nodes[1].blocks_offline, Bytes::ZERO, "not read again in vain");
    guest.put("sys/devices/system/node/node1/meminfo", "Node 1 MemTotal: 5 kB\n");
    assert_eq!(reporter.report(&*guest).unwrap().nodes[1].blocks_offline, Bytes::mib(128), "the size has changed");
}
