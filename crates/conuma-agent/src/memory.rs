//! Memory of a node: what happens to what is given, making room for what is taken.

use std::io;
use std::time::{Duration, Instant};

use conuma_agent_proto::{AgentError, AutoOnline, MemoryState, Prepared, Stage, StageTime};
use conuma_linux::procfs::{Pid, ProcFs};
use conuma_topology::{Bytes, GuestNodeId};

use crate::cgroups::Cgroups;
use crate::facts::online_nodes;
use crate::kernel::Kernel;
use crate::zones;

const AUTO_ONLINE: &str = "sys/devices/system/memory/auto_online_blocks";
const ONLINE_POLICY: &str = "sys/module/memory_hotplug/parameters/online_policy";

/// A node that takes in pages from another keeps at least this much free, and a 64th of itself; so does a guest that gives
/// memory, of all that it has.
const KEEP_FREE: Bytes = Bytes::mib(32);

/// Reclaim goes in steps of this size, so that it stops in time.
const RECLAIM_STEP: Bytes = Bytes::mib(64);

/// Cache of all nodes is dropped while at least one part in so many is of the node that it is about.
const GOOD_PART: u64 = 4;

/// Memory blocks of a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Blocks {
    /// In use.
    pub online: Bytes,
    /// There, but not in use.
    pub offline: Bytes,
}

/// So many base pages.
pub fn pages(count: u64) -> Bytes {
    Bytes(count.saturating_mul(rustix::param::page_size() as u64))
}

/// What happens to memory that appears; `None` without memory hotplug.
pub fn auto_online(kernel: &dyn Kernel) -> Option<AutoOnline> {
    let how = kernel.read(AUTO_ONLINE).ok()?;
    let by_policy = || kernel.read(ONLINE_POLICY).is_ok_and(|policy| policy == "auto-movable");
    Some(match how.as_str() {
        "online_movable" => AutoOnline::OnlineMovable,
        "online" if by_policy() => AutoOnline::OnlineMovable,
        "online" => AutoOnline::Online,
        "online_kernel" => AutoOnline::OnlineKernel,
        _ => AutoOnline::Offline,
    })
}

/// Makes memory that appears movable, so that it can be taken again, unless it already is.
pub fn online_as_movable(kernel: &dyn Kernel) -> io::Result<()> {
    match auto_online(kernel) {
        None | Some(AutoOnline::OnlineMovable) => Ok(()),
        Some(_) => kernel.write(AUTO_ONLINE, "online_movable"),
    }
}

/// Size of a hotplug memory block; `None` without memory hotplug.
pub fn block_size(kernel: &dyn Kernel) -> Option<Bytes> {
    let text = kernel.read("sys/devices/system/memory/block_size_bytes").ok()?;
    u64::from_str_radix(&text, 16).ok().map(Bytes)
}

/// Names of a node's memory blocks (`memory42`).
pub fn block_names(kernel: &dyn Kernel, node: GuestNodeId) -> Vec<String> {
    let mut names = kernel.names(&format!("sys/devices/system/node/node{node}")).unwrap_or_default();
    names.retain(|name| name.strip_prefix("memory").is_some_and(|number| number.parse::<u64>().is_ok()));
    names
}

/// Which of these blocks are in use.
pub fn read_blocks(kernel: &dyn Kernel, names: &[String]) -> Blocks {
    let size = block_size(kernel).unwrap_or_default();
    let mut blocks = Blocks::default();
    for name in names {
        if is_offline(kernel, name) { blocks.offline += size } else { blocks.online += size }
    }
    blocks
}

fn is_offline(kernel: &dyn Kernel, block: &str) -> bool {
    kernel.read(&format!("sys/devices/system/memory/{block}/state")).is_ok_and(|state| state == "offline")
}

/// Memory in a node's huge page pools of all sizes: in all, and unused.
pub fn huge_pages(kernel: &dyn Kernel, node: GuestNodeId) -> (Bytes, Bytes) {
    let dir = format!("sys/devices/system/node/node{node}/hugepages");
    let (mut total, mut free) = (Bytes::ZERO, Bytes::ZERO);
    for pool in kernel.dirs(&dir).unwrap_or_default() {
        let size = pool.strip_prefix("hugepages-").and_then(|size| size.strip_suffix("kB")?.parse::<u64>().ok());
        let count = |file: &str| kernel.read(&format!("{dir}/{pool}/{file}")).ok()?.parse::<u64>().ok();
        let amount = |file| Bytes::kib(size.unwrap_or(0).saturating_mul(count(file).unwrap_or(0)));
        total += amount("nr_hugepages");
        free += amount("free_hugepages");
    }
    (total, free)
}

/// Total and free memory of a node.
fn node_memory(proc: &ProcFs, node: GuestNodeId) -> Result<(Bytes, Bytes), AgentError> {
    let info = proc.node_meminfo(node.0).map_err(|error| {
        if error.is_gone() {
            AgentError::BadRequest(format!("there is no node {node}"))
        } else {
            AgentError::Failed(error.to_string())
        }
    })?;
    Ok((info.bytes("MemTotal"), info.bytes("MemFree")))
}

/// Makes `bytes` free on a node, or as much as the guest can do without: drops clean cache, which can be read again, then moves processes' pages to nodes with
/// room, which makes them remote. Runs until that much is free, nothing helps any more, or the deadline has passed; a
/// single process's pages are moved in one go, so it may end somewhat later.
pub fn prepare(
    kernel: &dyn Kernel,
    node: GuestNodeId,
    bytes: Bytes,
    deadline: Instant,
) -> Result<Prepared, AgentError> {
    let proc = ProcFs::new(kernel.root());
    let free = || node_memory(&proc, node).map(|(_, free)| free);
    let goal = bytes.min(spare(&proc)?);
    let enough = |free: Bytes| free >= goal || Instant::now() >= deadline;
    let free_before = free()?;
    let mut timings = Vec::new();
    let mut stage = |stage, work: &mut dyn FnMut() -> Result<(), AgentError>| {
        let start = free()?;
        if !enough(start) {
            let began = Instant::now();
            work()?;
            timings.push(StageTime { stage, took: began.elapsed() });
        }
        free().map(|end| end.saturating_sub(start))
    };
    let reclaimed = stage(Stage::Reclaim, &mut || reclaim(kernel, node, goal, &free, &enough))?;
    let migrated = stage(Stage::Migrate, &mut || evacuate(kernel, &proc, node, &|| free().map(enough)))?;
    let free_after = free()?;
    let (enough, spare) = (free_after >= bytes, spare(&proc)?);
    Ok(Prepared { node, free_before, free_after, migrated, reclaimed, enough, spare, timings })
}

/// What the guest can do without: the kernel gives away what it is told to, and kills what then finds no memory.
fn spare(proc: &ProcFs) -> Result<Bytes, AgentError> {
    let info = proc.meminfo().map_err(|error| AgentError::Failed(error.to_string()))?;
    Ok(info.bytes("MemAvailable").saturating_sub(left_free(info.bytes("MemTotal"))))
}

/// What stays free of so much memory.
fn left_free(total: Bytes) -> Bytes {
    KEEP_FREE + Bytes(total.0 / 64)
}

fn evacuate(
    kernel: &dyn Kernel,
    proc: &ProcFs,
    node: GuestNodeId,
    enough: &dyn Fn() -> Result<bool, AgentError>,
) -> Result<(), AgentError> {
    let mut processes: Vec<(Bytes, Pid)> =
        proc.processes().unwrap_or_default().into_iter().filter_map(|pid| Some((resident(proc, pid)?, pid))).collect();
    processes.sort_unstable_by(|a, b| b.cmp(a));
    for (resident, pid) in processes {
        let Some((to, room)) = roomiest(kernel, proc, node) else { break };
        // Mappings are dear to read, so only where the bound from above is too high.
        if resident > room && on_node(proc, pid, node) > room {
            continue;
        }
        // Some processes may not be moved (their cpuset says so) or have ended: go on with others.
        let _ = kernel.migrate_pages(pid, node, to);
        if enough()? {
            break;
        }
    }
    Ok(())
}

/// Resident memory; `None` for a kernel thread or a process that has ended.
fn resident(proc: &ProcFs, pid: Pid) -> Option<Bytes> {
    proc.resident_pages(pid).ok().filter(|&count| count > 0).map(pages)
}

fn on_node(proc: &ProcFs, pid: Pid, node: GuestNodeId) -> Bytes {
    let maps = proc.numa_maps(pid).unwrap_or_default();
    maps.iter().map(|mapping| mapping.on_node(node.0)).sum()
}

/// The other node with the most room, and how much that is.
fn roomiest(kernel: &dyn Kernel, proc: &ProcFs, not: GuestNodeId) -> Option<(GuestNodeId, Bytes)> {
    let others = online_nodes(kernel);
    let rooms = others.iter().filter(|node| *node != not).filter_map(|node| {
        let (total, free) = node_memory(proc, node).ok()?;
        let room = free.saturating_sub(left_free(total));
        (!room.is_zero()).then_some((node, room))
    });
    rooms.max_by_key(|(_, room)| *room)
}

fn reclaim(
    kernel: &dyn Kernel,
    node: GuestNodeId,
    bytes: Bytes,
    free: &dyn Fn() -> Result<Bytes, AgentError>,
    enough: &dyn Fn(Bytes) -> bool,
) -> Result<(), AgentError> {
    // Newer kernels take from one node; else from everywhere, as long as this node gets a good part of it.
    let of_node = format!("sys/devices/system/node/node{node}/reclaim");
    let by_node = kernel.exists(&of_node);
    let mut now = free()?;
    while !enough(now) {
        let step = bytes.saturating_sub(now).min(RECLAIM_STEP);
        let result = if by_node {
            kernel.write(&of_node, &format!("{} swappiness=0", step.0))
        } else {
            Cgroups::new(kernel).reclaim("", step.0)
        };
        match result {
            Err(error) if error.kind() != io::ErrorKind::WouldBlock => break,
            _ => {}
        }
        let then = std::mem::replace(&mut now, free()?);
        let least = if by_node { Bytes(1) } else { Bytes(step.0 / GOOD_PART) };
        if now < then + least {
            break;
        }
    }
    Ok(())
}

/// Waits until a node's total is at least `at_least`, and says how its memory stands then or at
/// the deadline. Blocks that nobody brought online are brought online as movable.
pub async fn confirm(
    kernel: &dyn Kernel,
    node: GuestNodeId,
    at_least: Bytes,
    deadline: Instant,
) -> Result<MemoryState, AgentError> {
    const FIRST: Duration = Duration::from_millis(2);
    const LONGEST: Duration = Duration::from_millis(50);
    let proc = ProcFs::new(kernel.root());
    let began = Instant::now();
    let mut pause = FIRST;
    let (total, free) = loop {
        let (total, free) = node_memory(&proc, node)?;
        let now = Instant::now();
        if total >= at_least || now >= deadline {
            break (total, free);
        }
        // Beyond the first moments somebody may have to help.
        if pause == LONGEST {
            bring_online(kernel, node);
        }
        tokio::time::sleep(pause.min(deadline - now)).await;
        pause = (pause * 2).min(LONGEST);
    };
    let blocks = read_blocks(kernel, &block_names(kernel, node));
    let zones = proc.zones().unwrap_or_default();
    Ok(MemoryState {
        node,
        total,
        free,
        online: blocks.online,
        movable: zones::movable(&zones, node),
        offline: blocks.offline,
        satisfied: total >= at_least,
        waited: began.elapsed(),
    })
}

fn bring_online(kernel: &dyn Kernel, node: GuestNodeId) {
    for block in block_names(kernel, node) {
        if is_offline(kernel, &block) {
            // It shows in the answer if it did not work.
            let _ = kernel.write(&format!("sys/devices/system/memory/{block}/state"), "online_movable");
        }
    }
}
