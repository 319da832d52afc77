//! The main series: four nodes, two guests that replicate them, and everything that moves between the two.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use conuma_api::{AgentState, TransferState, VmDetail};
use conuma_topology::{Bytes, CpuId, CpuSet, Machine, NodeId};

use super::{Report, Trial, Verdict, shapes};
use crate::host::{Kit, Look};
use crate::stage::{GuestSpec, Stage};

/// Four nodes of two cores, two near pairs, and a network card on node 2.
pub(crate) const TOPOLOGY: &str = "4n2c1t@2G; dist=10,16,32,32/16,10,32,32/32,32,10,16/32,32,16,10; \
                                   dev 0000:3b:00.0 node=2 class=020000";

/// `a` holds six cores and 256 MiB of node 1 more than it is guaranteed; `b` has just its guarantee.
pub(crate) const GUESTS: [GuestSpec; 2] = [
    GuestSpec { memory: &[(1, Bytes::mib(256))], ..GuestSpec::plain("a", "cpus = \"2-3\"", "2-7") },
    GuestSpec::plain("b", "cpus = \"0-1\"", "0-1"),
];

const TRIALS: [Trial<Stage>; 14] = [
    Trial { name: "the_host_reads_back", body: |stage| shapes::reads_back(&stage.lab) },
    Trial { name: "a_device_is_at_home_on_its_node", body: device_home },
    Trial { name: "guests_replicate_the_host", body: |stage| shapes::replicates(stage, &[]) },
    Trial { name: "vcpus_are_bound_one_to_one_and_gated", body: bound_and_gated },
    Trial { name: "programs_run_with_what_their_units_grant", body: confined },
    Trial { name: "the_agent_is_small_and_quiet", body: small_agent },
    Trial { name: "cores_and_memory_move_and_come_back", body: lend_and_recall },
    Trial { name: "interrupts_and_kernel_work_move_along", body: kernel_work },
    Trial { name: "room_is_made_where_there_is_not_enough", body: make_room },
    Trial { name: "tasks_get_their_own_affinity_back", body: affinity_comes_back },
    Trial { name: "an_exclusive_cpuset_is_refused_with_its_reason", body: exclusive_cpuset },
    Trial { name: "a_silent_agent_does_not_keep_a_core", body: silent_agent },
    Trial { name: "a_killed_daemon_finds_everything_again", body: killed_daemon },
    Trial { name: "stopping_leaves_nothing_behind", body: stop_all },
];

pub(super) fn run(kit: &Kit, report: &mut Report) -> Result<()> {
    report.series(&TRIALS, || Stage::open(kit, "grid", TOPOLOGY, &GUESTS))
}

pub(super) fn cpus(text: &str) -> CpuSet {
    text.parse().unwrap_or_default()
}

fn device_home(stage: &Stage) -> Verdict {
    let machine: Machine = serde_json::from_str(&stage.lab.ok(&["conuma", "topology", "--json"])?)?;
    let homes: Vec<_> = machine.devices.values().filter(|d| d.class >> 16 == 2).map(|device| device.home).collect();
    ensure!(homes == [Some(NodeId(2))], "network cards are at home on {homes:?}");
    Ok(())
}

/// By the kernel's word, not the daemon's: each vCPU thread may run on its CPU only, and its gate is closed unless the VM
/// holds the CPU.
fn bound_and_gated(stage: &Stage) -> Verdict {
    for guest in &GUESTS {
        let text = stage.lab.sh(&format!(
            "cd /sys/fs/cgroup/conuma/{}; for k in vcpu*; do t=$(cat $k/cgroup.threads); echo $k \
             $(grep Cpus_allowed_list /proc/$t/status | cut -f2) $(cat $k/cpu.idle); done",
            guest.name
        ))?;
        let held = cpus(guest.cpus);
        let mut seen = CpuSet::new();
        for line in text.lines() {
            let words: Vec<&str> = line.split_whitespace().collect();
            let [vcpu, allowed, idle] = words[..] else { anyhow::bail!("not a line of three: {line}") };
            let number: u32 = vcpu.trim_start_matches("vcpu").parse()?;
            ensure!(allowed == number.to_string(), "{vcpu} of {} may run on {allowed}", guest.name);
            let closed = idle == "1";
            ensure!(closed != held.contains(CpuId(number)), "{vcpu} of {}: gate closed: {closed}", guest.name);
            seen.insert(CpuId(number));
        }
        ensure!(seen == stage.lab.spec.machine.online_cpus(), "{} has vCPUs {seen}", guest.name);
        ensure!(stage.guest_cpus(guest.name)? == held, "tasks in {} may use other CPUs than it holds", guest.name);
    }
    Ok(())
}

/// Daemon, QEMU and agent run, in this and every trial, behind filters, with few capabilities, and cannot write to what is
/// protected: so what their units grant is enough.
fn confined(stage: &Stage) -> Verdict {
    let look = |pid: &str| {
        format!(
            "grep -hE '^(Seccomp|CapBnd):' /proc/{pid}/status; awk '$5 == \"/etc\" || $5 == \"/\" {{print $5, $6}}' /proc/{pid}/mountinfo"
        )
    };
    let qemu = stage.show("a")?.process.context("a runs")?.pid.to_string();
    let all = [
        ("conumad", stage.lab.sh(&look("$(cat /run/conumad.pid)"))?),
        ("QEMU", stage.lab.sh(&look(&qemu))?),
        ("conuma-agent", stage.lab.guest("a", &look("$(pidof conuma-agent)"))?),
    ];
    for (program, said) in all {
        let value = |key: &str| said.lines().find_map(|line| line.strip_prefix(key)).map(str::trim);
        // See proc(5): 2 is a filter.
        ensure!(value("Seccomp:") == Some("2"), "{program} has no filter: {said}");
        let capabilities = u64::from_str_radix(value("CapBnd:").context("no capabilities")?, 16)?;
        ensure!((1..=4).contains(&capabilities.count_ones()), "{program} has capabilities {capabilities:#x}");
        ensure!(
            value("/etc ").is_some_and(|options| options.starts_with("ro")),
            "{program} could write to /etc: {said}"
        );
        let all_is_protected = value("/ ").is_some_and(|options| options.starts_with("ro"));
        ensure!(all_is_protected == (program == "conuma-agent"), "{program} and /: {said}");
    }
    Ok(())
}

/// What the agent may run in a second, in system calls that do next to nothing: of those a processor of today makes five million.
const CALLS: f64 = 10_000.0;

/// The agent's program, its memory, and what it runs while the daemon asks for its reports and nothing else happens. An emulated
/// guest's seconds say nothing, so that is told in what something else takes in the same guest: small system calls.
fn small_agent(stage: &Stage) -> Verdict {
    let size: u64 = stage.lab.guest("b", "wc -c < /bin/conuma-agent")?.trim().parse()?;
    ensure!(size <= 3 << 20, "the program has {size} bytes");
    let resident = stage.lab.guest("b", "grep VmRSS /proc/$(pidof conuma-agent)/status | tr -dc 0-9")?;
    ensure!(resident.trim().parse::<u64>()? <= 6 << 10, "{resident} KiB are resident");
    // Whatever else the machine does only adds to it.
    let mut least = f64::INFINITY;
    for _ in 0..4 {
        least = least.min(agents_calls(stage)?);
        if least < CALLS {
            return Ok(());
        }
    }
    bail!("in a second the agent ran as long as {least:.0} system calls take, at least")
}

/// What the agent runs in each of some twenty seconds, in system calls.
fn agents_calls(stage: &Stage) -> Result<f64> {
    let look = "cat /proc/uptime /proc/$(pidof conuma-agent)/schedstat | cut -d' ' -f1";
    let at = || numbers::<2>(&stage.lab.guest("b", look)?);
    let [begun, before] = at()?;
    let [now, after] = stage.lab.until("twenty seconds of the guest's", Duration::from_secs(120), |_| {
        let seen = at()?;
        Ok(if seen[0] - begun >= 20.0 { Look::Done(seen) } else { Look::NotYet(format!("{seen:?}")) })
    })?;
    let share = (after - before) / 1e9 / (now - begun);
    Ok(share / seconds_per_call(stage)?)
}

/// How long a small system call takes in the guest.
fn seconds_per_call(stage: &Stage) -> Result<f64> {
    const BYTES: u32 = 50_000;
    let clock = "cut -d' ' -f1 /proc/uptime";
    let script = format!("{clock}; busybox dd if=/dev/zero of=/dev/null bs=1 count={BYTES} 2>/dev/null; {clock}");
    let [began, ended] = numbers(&stage.lab.guest("b", &script)?)?;
    Ok((ended - began).max(0.01) / f64::from(2 * BYTES))
}

fn numbers<const N: usize>(text: &str) -> Result<[f64; N]> {
    let found: Vec<f64> = text.split_whitespace().map(str::parse).collect::<Result<_, _>>()?;
    found.try_into().map_err(|_| anyhow::anyhow!("{N} numbers expected: {text}"))
}

/// Whatever an earlier trial has left lent comes back, so that each begins the same way.
pub(super) fn as_at_first(stage: &Stage) -> Verdict {
    stage.transfer(&["conuma", "recall", "--to", "a"])?;
    let detail = stage.until_agent("a")?;
    ensure!(detail.summary.holding.cpus == cpus("2-7"), "a holds {:?} after an earlier trial", detail.summary.holding);
    stage.nothing_was_refused()
}

/// CPUs 4-7 and 256 MiB of node 1 go from `a` to `b` and back, under load and under the eyes of the witness.
fn lend_and_recall(stage: &Stage) -> Verdict {
    as_at_first(stage)?;
    let amount = Bytes::mib(256);
    let before = [stage.guest_memory("a", 1)?, stage.guest_memory("b", 1)?];
    stage.start_load("a", &[4, 6])?;
    let witness = stage.witness(&["a", "b"])?;

    let argv = ["conuma", "lend", "--from", "a", "--to", "b", "--cpus", "4-7", "--memory", "node1=256M"];
    stage.moved(&argv)?;
    ensure!(stage.guest_cpus("a")? == cpus("2-3"), "a may use {}", stage.guest_cpus("a")?);
    ensure!(stage.guest_cpus("b")? == cpus("0-1,4-7"), "b may use {}", stage.guest_cpus("b")?);
    let during = [stage.guest_memory("a", 1)?, stage.guest_memory("b", 1)?];
    ensure!(during[0] + amount == before[0], "node 1 of a went from {} to {}", before[0], during[0]);
    ensure!(during[1] == before[1] + amount, "node 1 of b went from {} to {}", before[1], during[1]);
    runs_only_where_held(stage, "a", &cpus("4-7"))?;
    guest_and_host_agree(stage)?;

    stage.moved(&["conuma", "recall", "--to", "a"])?;
    ensure!(stage.guest_cpus("a")? == cpus("2-7"), "a may use {}", stage.guest_cpus("a")?);
    ensure!(stage.guest_cpus("b")? == cpus("0-1"), "b may use {}", stage.guest_cpus("b")?);
    let after = [stage.guest_memory("a", 1)?, stage.guest_memory("b", 1)?];
    ensure!(after == before, "node 1 had {before:?} before and has {after:?} after");

    let findings = witness.nothing_wrong()?;
    stage.stop_load("a")?;
    ensure!(findings.samples >= 10 && findings.memory_samples >= 10, "the witness saw too little: {findings:#?}");
    let seen = &findings.holdings_seen["b"];
    ensure!(seen.contains(&"0,1,4,5,6,7".to_owned()), "the witness never saw b hold CPUs 4-7: {seen:?}");
    Ok(())
}

/// The host's count of the time that vCPU threads ran: on CPUs that `vm` does not hold it stands (nearly) still, although
/// the guest is busy; on those that it holds it grows.
fn runs_only_where_held(stage: &Stage, vm: &str, lent: &CpuSet) -> Result<()> {
    let ran = |detail: &VmDetail, held: bool| -> u64 {
        let wanted = detail.vcpus.iter().filter(|vcpu| vcpu.held == held && (held || lent.contains(vcpu.cpu)));
        wanted.filter_map(|vcpu| vcpu.run_time_us).sum()
    };
    let first = stage.show(vm)?;
    // Until the busy CPUs have run for two seconds together.
    let last = stage.lab.until("the load", Duration::from_secs(60), |_| {
        let now = stage.show(vm)?;
        let grown = ran(&now, true).saturating_sub(ran(&first, true));
        Ok(if grown > 2_000_000 { Look::Done(now) } else { Look::NotYet(format!("{grown} us")) })
    })?;
    let (held, lent) = (ran(&last, true) - ran(&first, true), ran(&last, false) - ran(&first, false));
    ensure!(lent * 10 < held, "{vm} ran {lent} us on CPUs it had lent and {held} us on those it held");
    Ok(())
}

/// What guest and host say of memory is the same.
fn guest_and_host_agree(stage: &Stage) -> Result<()> {
    for guest in &GUESTS {
        let detail = stage.show(guest.name)?;
        for memory in &detail.memory {
            ensure!(memory.requested == memory.plugged, "{}: {memory:?}", guest.name);
            ensure!(memory.held == memory.boot + memory.plugged, "{}: {memory:?}", guest.name);
            let resident = memory.resident.context("the daemon reads numa_maps")?;
            ensure!(
                resident <= memory.held + Bytes::mib(64),
                "{} uses more of a node than it holds: {memory:?}",
                guest.name
            );
        }
    }
    let (home, elsewhere) = stage.placed_pages()?;
    ensure!(home > 0 && elsewhere == 0, "{elsewhere} of {} pages lie on another node than bound to", home + elsewhere);
    Ok(())
}

/// What `a` lends is left by interrupts and unbound kernel work, and they are back when it comes back.
fn kernel_work(stage: &Stage) -> Verdict {
    as_at_first(stage)?;
    let before = Masks::read(stage)?;
    let (code, transfer) = stage.transfer(&["conuma", "lend", "--from", "a", "--to", "b", "--cpus", "4-7"])?;
    ensure!(code == 0, "{transfer:#?}");
    let lent = cpus("4-7");
    // What fires elsewhere already follows after the answer.
    stage.lab.until("interrupts and kernel work to leave", Duration::from_secs(60), |_| {
        let now = Masks::read(stage)?;
        // One that nobody uses fires nowhere; others change over when they fire next.
        let used = || now.interrupts.values().filter(|(_, fires_on)| !fires_on.is_empty());
        let done = now.workqueues.is_disjoint(&lent) && used().all(|(mask, _)| mask.is_disjoint(&lent));
        Ok(if done && used().count() > 0 { Look::Done(()) } else { Look::NotYet(format!("{now:?}")) })
    })?;
    let (code, transfer) = stage.transfer(&["conuma", "recall", "--to", "a"])?;
    ensure!(code == 0, "{transfer:#?}");
    stage.lab.until("interrupts and kernel work to come back", Duration::from_secs(60), |_| {
        let now = Masks::read(stage)?;
        let same = now.workqueues == before.workqueues
            && before
                .interrupts
                .iter()
                .all(|(irq, (mask, _))| now.interrupts.get(irq).is_none_or(|(now, _)| now == mask));
        Ok(if same { Look::Done(()) } else { Look::NotYet(format!("{now:?}, before {before:?}")) })
    })
}

/// Where kernel work of guest `a` may run.
#[derive(Debug)]
struct Masks {
    workqueues: CpuSet,
    /// Of each interrupt: its mask, and where it fires.
    interrupts: BTreeMap<u32, (CpuSet, CpuSet)>,
}

impl Masks {
    fn read(stage: &Stage) -> Result<Self> {
        let text = stage.lab.guest(
            "a",
            "cat /sys/devices/virtual/workqueue/cpumask; cd /proc/irq; for i in [0-9]*; do \
             echo $i $(cat $i/smp_affinity_list):$(cat $i/effective_affinity_list); done",
        )?;
        let mut lines = text.lines();
        let workqueues = CpuSet::from_mask(lines.next().unwrap_or_default())?;
        let interrupt = |line: &str| {
            let (irq, masks) = line.split_once(' ')?;
            let (mask, fires_on) = masks.split_once(':')?;
            Some((irq.parse().ok()?, (mask.parse().ok()?, fires_on.parse().ok()?)))
        };
        let interrupts = lines.map(|line| interrupt(line).with_context(|| format!("not an interrupt's masks: {line}")));
        Ok(Self { workqueues, interrupts: interrupts.collect::<Result<_>>()? })
    }
}

/// Node 1 of `a` is full of processes' memory. The agent moves as much of it as is needed to other nodes before the rest goes.
fn make_room(stage: &Stage) -> Verdict {
    as_at_first(stage)?;
    // A writer that waits for its reader keeps its whole block in memory, on the node where it runs.
    let hog = "mkfifo /run/hog; setsid sleep 100000 </run/hog >/dev/null 2>&1 & \
               for i in 1 2; do setsid taskset -c 2 dd if=/dev/zero of=/run/hog bs=100M count=1 >/dev/null 2>&1 & done";
    stage.lab.guest("a", hog)?;
    let on_node = |node: u32| -> Result<u64> {
        let script = format!(
            "cat /proc/[0-9]*/numa_maps 2>/dev/null | grep anon= | tr ' ' '\\n' | grep ^N{node}= | cut -d= -f2"
        );
        let pages = stage.lab.guest("a", &script)?;
        Ok(pages.lines().filter_map(|count| count.trim().parse::<u64>().ok()).sum())
    };
    let amount = Bytes::mib(256);
    stage.lab.until("the guest to report that node 1 is full", Duration::from_secs(180), |_| {
        let report = stage.show("a")?.report.context("the agent reports")?;
        let free = report.nodes.iter().find(|node| node.node == NodeId(1)).context("node 1 is reported")?.free;
        Ok(if free < amount { Look::Done(()) } else { Look::NotYet(format!("{free} are free")) })
    })?;
    let before = on_node(1)?;
    let transfer = stage.moved(&["conuma", "lend", "--from", "a", "--to", "b", "--memory", "node1=256M"])?;
    ensure!(transfer.legs[0].stages[0].stage == conuma_api::Stage::Prepare, "{transfer:#?}");
    ensure!(transfer.legs[0].remarks.is_empty(), "{transfer:#?}");
    let after = on_node(1)?;
    ensure!(after + 20_000 < before, "node 1 had {before} pages of processes before and has {after} after");
    ensure!(stage.lab.guest("a", "pidof dd")?.split_whitespace().count() == 2, "a process has died");
    stage.lab.guest("a", "kill $(pidof dd); rm /run/hog")?;
    let (code, transfer) = stage.transfer(&["conuma", "recall", "--to", "a"])?;
    ensure!(code == 0, "{transfer:#?}");
    Ok(())
}

/// A task that bound itself to CPU 5 loses it with the CPU, and has it again when the CPU comes back.
fn affinity_comes_back(stage: &Stage) -> Verdict {
    as_at_first(stage)?;
    let own = "grep Cpus_allowed_list /proc/$(cat /run/bound)/status | cut -f2";
    stage.lab.guest("a", "setsid taskset -c 5 sleep 100000 >/dev/null 2>&1 & echo $! > /run/bound")?;
    let bound = stage.lab.guest("a", own)?;
    ensure!(bound.trim() == "5", "the task is bound to {bound}");
    let (code, _) = stage.transfer(&["conuma", "lend", "--from", "a", "--to", "b", "--cpus", "4-5"])?;
    ensure!(code == 0, "lending CPUs 4-5: exit code {code}");
    let meanwhile = stage.lab.guest("a", own)?;
    ensure!(cpus(meanwhile.trim()).is_disjoint(&cpus("4-5")), "the task may still run on {meanwhile}");
    stage.transfer(&["conuma", "recall", "--to", "a"])?;
    let after = stage.lab.guest("a", own)?;
    ensure!(after.trim() == "5", "the task may run on {after} now");
    stage.lab.guest("a", "kill $(cat /run/bound)")?;
    Ok(())
}

/// A cgroup in `a` owns CPU 6: it stays, with the reason; CPU 7 goes.
fn exclusive_cpuset(stage: &Stage) -> Verdict {
    as_at_first(stage)?;
    stage.lab.guest("a", "mkdir /sys/fs/cgroup/owner")?;
    stage.lab.until("the agent to confine the new cgroup", Duration::from_secs(60), |lab| {
        let set = lab.guest("a", "cat /sys/fs/cgroup/owner/cpuset.cpus")?;
        Ok(if set.trim() == "2-7" { Look::Done(()) } else { Look::NotYet(set) })
    })?;
    // A partition is valid only if no sibling names its CPUs.
    let state = stage.lab.guest(
        "a",
        "cd /sys/fs/cgroup; echo 2-5,7 > conuma.rest/cpuset.cpus; echo 6 > owner/cpuset.cpus; \
         echo root > owner/cpuset.cpus.partition; cat owner/cpuset.cpus.partition",
    )?;
    ensure!(state.trim() == "root", "the kernel says {state}");
    let (code, transfer) = stage.transfer(&["conuma", "lend", "--from", "a", "--to", "b", "--cpus", "6-7"])?;
    ensure!(code == 3 && transfer.state == TransferState::Partial, "exit code {code}: {transfer:#?}");
    let said: Vec<_> = transfer.legs.iter().flat_map(|leg| &leg.shortfalls).map(|short| &short.message).collect();
    ensure!(said.iter().any(|message| message.contains("owner")), "the reason does not name the cgroup: {said:?}");
    ensure!(stage.guest_cpus("b")? == cpus("0-1,7"), "b may use {}", stage.guest_cpus("b")?);
    stage.lab.guest("a", "cd /sys/fs/cgroup; rmdir owner; echo 2-7 > conuma.rest/cpuset.cpus")?;
    let (code, transfer) = stage.transfer(&["conuma", "recall", "--to", "a"])?;
    ensure!(code == 0, "{transfer:#?}");
    Ok(())
}

/// The agent of `a` is stopped: its CPU is taken all the same, by the gate; when it runs again it learns its holding.
fn silent_agent(stage: &Stage) -> Verdict {
    as_at_first(stage)?;
    let witness = stage.witness(&["a", "b"])?;
    stage.lab.guest("a", "kill -STOP $(pidof conuma-agent)")?;
    let transfer = stage.moved(&["conuma", "lend", "--from", "a", "--to", "b", "--cpus", "6"])?;
    ensure!(transfer.legs.iter().any(|leg| !leg.remarks.is_empty()), "no word of the silent agent: {transfer:#?}");
    ensure!(stage.guest_cpus("a")?.contains(CpuId(6)), "a stopped agent cannot have acted");
    let why = stage.lab.run(&["conuma", "show", "a"])?.out;
    ensure!(why.contains("did not answer"), "show does not tell why: {why}");
    the_gate_holds(stage)?;
    stage.lab.guest("a", "kill -CONT $(pidof conuma-agent)")?;
    stage.lab.until("the agent to learn its holding", Duration::from_secs(120), |_| {
        let (may, detail) = (stage.guest_cpus("a")?, stage.show("a")?);
        let done = !may.contains(CpuId(6)) && detail.summary.agent == AgentState::Connected && detail.summary.settled;
        Ok(if done { Look::Done(()) } else { Look::NotYet(format!("{may}, {:?}", detail.summary)) })
    })?;
    stage.transfer(&["conuma", "recall", "--to", "a"])?;
    witness.nothing_wrong().map(drop)
}

/// Both guests want CPU 6 without a pause: the quota on the vCPU of `a`, which does not hold it, leaves it to `b`.
fn the_gate_holds(stage: &Stage) -> Result<()> {
    stage.start_load("a", &[6])?;
    stage.start_load("b", &[6])?;
    let vcpu = "/sys/fs/cgroup/conuma/a/vcpu6";
    stage.lab.until("the quota of a's vCPU 6", Duration::from_secs(120), |lab| {
        let max = lab.sh(&format!("cat {vcpu}/cpu.max"))?;
        Ok(if max.starts_with("max") { Look::NotYet(max) } else { Look::Done(()) })
    })?;
    let (a, b) = share_of_cpu_6(stage, 5_000_000)?;
    ensure!(a * 5 < b, "a ran {a} us on the CPU that it had lent, b {b} us");
    stage.stop_load("b")?;
    stage.stop_load("a")
}

/// How long `a` and `b` run on CPU 6, in microseconds, until `b` has run for so many.
pub(super) fn share_of_cpu_6(stage: &Stage, enough: u64) -> Result<(u64, u64)> {
    let ran = |vm: &str| -> Result<u64> {
        let detail = stage.show(vm)?;
        let vcpu = detail.vcpus.iter().find(|vcpu| vcpu.cpu == CpuId(6)).context("there is a vCPU 6")?;
        vcpu.run_time_us.context("its run time is known")
    };
    let first = (ran("a")?, ran("b")?);
    stage.lab.until(&format!("b to run for {enough} us"), Duration::from_secs(300), |_| {
        let (a, b) = (ran("a")? - first.0, ran("b")? - first.1);
        Ok(if b > enough { Look::Done((a, b)) } else { Look::NotYet(format!("{b} us")) })
    })
}

/// The daemon is killed while `b` has borrowed cores: the guests run on, a new daemon knows all, and the loan comes back.
fn killed_daemon(stage: &Stage) -> Verdict {
    as_at_first(stage)?;
    stage.transfer(&["conuma", "lend", "--from", "a", "--to", "b", "--cpus", "4-5"])?;
    let before = [stage.show("a")?.summary.holding, stage.show("b")?.summary.holding];
    let pids = stage.lab.sh("pidof qemu-system-x86_64")?;
    stage.kill_daemon()?;
    ensure!(stage.lab.sh("pidof qemu-system-x86_64")? == pids, "the guests did not survive the daemon");
    stage.start_daemon()?;
    stage.until_agent("a")?;
    stage.until_agent("b")?;
    let after = [stage.show("a")?.summary.holding, stage.show("b")?.summary.holding];
    ensure!(after == before, "held {before:?} before and {after:?} after");
    let (code, transfer) = stage.transfer(&["conuma", "recall", "--to", "a"])?;
    ensure!(code == 0, "{transfer:#?}");
    ensure!(stage.guest_cpus("a")? == cpus("2-7"), "a may use {}", stage.guest_cpus("a")?);
    Ok(())
}

fn stop_all(stage: &Stage) -> Verdict {
    for guest in &GUESTS {
        stage.lab.ok(&["conuma", "stop", guest.name, "--force"])?;
    }
    let left = stage.lab.sh("pidof qemu-system-x86_64 || true; ls -d /sys/fs/cgroup/conuma/*/ 2>/dev/null || true")?;
    let left: BTreeSet<&str> = left.split_whitespace().collect();
    ensure!(left.is_empty(), "left behind: {left:?}");
    Ok(())
}
