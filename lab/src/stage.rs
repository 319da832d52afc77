//! A virtual host with the daemon and two guests on it: where tests, demo and measurements begin.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use conuma_api::{AgentState, Transfer, TransferState, VmDetail, VmState, VmSummary};
use conuma_topology::{Bytes, CpuId, CpuSet, NodeId};
use serde::de::DeserializeOwned;

use crate::client::{Command, Output};
use crate::host::{Kit, Lab, Look, guest_socket};
use crate::observe::Findings;
use crate::spec::LabSpec;

/// The cgroup directory of the VMs.
const CGROUPS: &str = "/sys/fs/cgroup/conuma";
/// Boot memory of a guest on each node.
const BOOT_MEMORY: &str = "192M";
/// What the daemon leaves to the host on each node.
const RESERVE: &str = "256M";
/// Everything is emulated: deadlines made for real hosts are too short by that much.
const PATIENCE: u32 = 3;
/// Milliseconds for a recall, before patience: to leave a core takes a guest here as long as a recall elsewhere.
const RECALL: u32 = 5000;
/// What is owed of cores comes back within this time.
pub(crate) const RECALL_DEADLINE: Duration = Duration::from_millis((RECALL * PATIENCE) as u64);
/// Seconds between audits of memory.
const AUDIT: u32 = 20;
/// A kernel that chooses its place anew with each boot takes its 40 MiB from another node: sizes could not be compared.
const GUEST_CMDLINE: &str = "console=ttyS0 quiet nowatchdog mitigations=off nokaslr rdinit=/init";
/// The emulator's SVM now and then corrupts a host that runs two guests on one processor: its kernel panics, or a guest
/// faults and boots anew. That says nothing about what is tested.
const BOOTS: usize = 5;
const GUESTS_BUDGET: Duration = Duration::from_secs(300);
/// Guests at rest use so many microseconds of CPU time in half a second, all together: to be emulated costs that much.
const AT_REST: u64 = 125_000;
const AT_REST_BUDGET: Duration = Duration::from_secs(120);
const WITNESS_STOP: &str = "/run/witness.stop";

/// A guest to be started.
#[derive(Debug, Clone)]
pub struct GuestSpec {
    /// Its name.
    pub name: &'static str,
    /// Name of its kernel, one of [`crate::image::GUEST_KERNELS`].
    pub kernel: &'static str,
    /// `cores` or `cpus` it is guaranteed, as in a VM file.
    pub guarantee: &'static str,
    /// CPUs it holds at start.
    pub cpus: &'static str,
    /// Memory it holds at start beyond its boot memory.
    pub memory: &'static [(u32, Bytes)],
    /// Neither has it an agent, nor does its VM file expect one.
    pub agentless: bool,
    /// More arguments of QEMU.
    pub qemu_args: &'static [&'static str],
}

impl GuestSpec {
    /// A guest that has no more than its guarantee, and an agent.
    pub const fn plain(name: &'static str, guarantee: &'static str, cpus: &'static str) -> Self {
        Self { name, kernel: "guest-6.12", guarantee, cpus, memory: &[], agentless: false, qemu_args: &[] }
    }
}

/// A host with its daemon.
#[derive(Debug)]
pub struct Stage {
    /// The host.
    pub lab: Lab,
}

impl Stage {
    /// Boots a host, starts its daemon, and guests. What was logged is kept if that fails.
    pub fn open(kit: &Kit, name: &str, topology: &str, guests: &[GuestSpec]) -> Result<Self> {
        let mut boots = 1;
        loop {
            let stage = Self { lab: Lab::boot(kit, name, LabSpec::parse(topology)?)? };
            let Err(error) = stage.start_daemon().and_then(|()| stage.start_guests(guests)) else { return Ok(stage) };
            if boots == BOOTS || stage.is_sound() {
                stage.lab.collect_logs();
                return Err(error.context(format!("logs: {}", stage.lab.logs.display())));
            }
            boots += 1;
            let epitaph = stage.lab.last_words();
            writeln!(
                std::io::stdout(),
                "the emulator killed the host or a guest; booting again ({boots} of {BOOTS}): {error:#}{epitaph}"
            )?;
        }
    }

    /// Opens a stage and does something on it; again on a new one if the emulator has failed it.
    pub fn play<T>(
        kit: &Kit,
        name: &str,
        topology: &str,
        guests: &[GuestSpec],
        mut body: impl FnMut(&Self) -> Result<T>,
    ) -> Result<T> {
        let mut plays = 1;
        loop {
            let stage = Self::open(kit, name, topology, guests)?;
            let error = match body(&stage) {
                Ok(done) => return Ok(done),
                Err(error) => error,
            };
            if stage.is_sound() || plays == BOOTS {
                stage.lab.collect_logs();
                return Err(error.context(format!("logs: {}", stage.lab.logs.display())));
            }
            plays += 1;
            let epitaph = stage.lab.last_words();
            writeln!(
                std::io::stdout(),
                "the emulator failed the host or a guest: once more ({plays} of {BOOTS}): {error:#}{epitaph}"
            )?;
        }
    }

    /// Whether host and guests have run without a fault of the emulator: the host lives, no guest was reset, which no trial
    /// does, none hangs before its first word, and none has lost the timer of a vCPU that no gate holds back. A defect of
    /// ours that looked like that would do so each time.
    pub fn is_sound(&self) -> bool {
        let faultless = format!(
            "grep -q 'guest was reset' /run/conumad.log && exit 1; \
             for console in /run/*.console; do [ -e $console ] || continue; vm=$(basename $console .console); \
             [ -s $console ] || ! ps -o args | grep -q \"[g]uest=$vm,\" || exit 1; \
             for cpu in $(sed -n 's/.*Possible timer handling issue on cpu=\\([0-9]*\\).*/\\1/p' $console); do \
             [ \"$(cat {CGROUPS}/$vm/vcpu$cpu/cpu.idle)\" = 0 ] && exit 1; done; done; exit 0"
        );
        self.lab.is_alive() && self.lab.sh(&faultless).is_ok()
    }

    /// Starts the daemon and waits until it answers.
    pub fn start_daemon(&self) -> Result<()> {
        // A vCPU that halts would spin for a while: on an emulated CPU that is time another one needs.
        self.lab.sh("echo 0 > /sys/module/kvm/parameters/halt_poll_ns")?;
        self.lab.sh(&format!(
            "setsid conuma-lab-init confine conumad --patience {PATIENCE} --recall-deadline {RECALL} --audit-every {AUDIT} \
             --reserve-memory {RESERVE} </dev/null >>/run/conumad.log 2>&1 & echo $! >/run/conumad.pid"
        ))?;
        self.lab.until("the daemon", Duration::from_secs(60), |lab| {
            let output = lab.run(&["conuma", "list", "--json"])?;
            Ok(if output.code == 0 { Look::Done(()) } else { Look::NotYet(output.err) })
        })
    }

    /// Ends the daemon as a crash would, and waits until it is gone.
    pub fn kill_daemon(&self) -> Result<()> {
        self.lab.sh(
            "kill -9 $(cat /run/conumad.pid); while kill -0 $(cat /run/conumad.pid) 2>/dev/null; do sleep 0.05; done",
        )?;
        Ok(())
    }

    /// Starts guests, one after the other: two that boot side by side on the same emulated processors tempt the emulator.
    pub fn start_guests(&self, guests: &[GuestSpec]) -> Result<()> {
        for guest in guests {
            let file = format!("/lab/{}.toml", guest.name);
            self.lab.write(&file, &self.vm_file(guest))?;
            let start = self.lab.spawn(&["conuma", "start", &file, "--wait", "agent", "--deadline", "10m"])?;
            start.wait(GUESTS_BUDGET, &mut |_| {})?.ok().with_context(|| format!("starting {}", guest.name))?;
        }
        for guest in guests {
            self.until_settled(guest.name)?;
        }
        Ok(())
    }

    /// Waits until everything follows the ledger, whether there is an agent or none is expected.
    pub fn until_settled(&self, vm: &str) -> Result<VmDetail> {
        self.until_follows(vm, &[AgentState::Connected, AgentState::None])
    }

    /// Waits until a VM's agent is connected and everything follows the ledger.
    pub fn until_agent(&self, vm: &str) -> Result<VmDetail> {
        self.until_follows(vm, &[AgentState::Connected])
    }

    fn until_follows(&self, vm: &str, agent: &[AgentState]) -> Result<VmDetail> {
        self.lab.until(&format!("{vm} to follow the ledger, its agent {agent:?}"), GUESTS_BUDGET, |_| {
            let detail = self.show(vm)?;
            let ready = agent.contains(&detail.summary.agent) && detail.summary.settled;
            Ok(if ready { Look::Done(detail) } else { Look::NotYet(format!("{:?}", detail.summary)) })
        })
    }

    /// No agent was ended because it did what its unit does not grant; the guest's init would only start it again.
    pub fn nothing_was_refused(&self) -> Result<()> {
        let said = self.lab.sh("grep -l 'that its unit does not grant' /run/*.console; true")?;
        ensure!(said.trim().is_empty(), "its agent made a system call that its unit does not grant: {said}");
        Ok(())
    }

    /// Waits until a VM is in this state.
    pub fn until_state(&self, vm: &str, state: VmState) -> Result<()> {
        self.lab.until(&format!("{vm} to be {state:?}"), GUESTS_BUDGET, |_| {
            let now = self.show(vm)?.summary.state;
            Ok(if now == state { Look::Done(()) } else { Look::NotYet(format!("{now:?}")) })
        })
    }

    /// Waits until the daemon knows a VM no more.
    pub fn until_gone(&self, vm: &str) -> Result<()> {
        self.lab.until(&format!("{vm} to be gone"), Duration::from_secs(120), |_| {
            let list: Vec<VmSummary> = self.json(&["conuma", "list", "--json"])?;
            let there = list.iter().any(|summary| summary.name.as_str() == vm);
            Ok(if there { Look::NotYet(format!("{list:?}")) } else { Look::Done(()) })
        })
    }

    /// Waits until no guest does anything worth mentioning.
    pub fn at_rest(&self) -> Result<()> {
        let script = format!(
            "used() {{ cat {CGROUPS}/*/cpu.stat | awk '/^usage_usec/ {{ sum += $2 }} END {{ print sum }}'; }}; \
             before=$(used); sleep 0.5; echo $(($(used) - before))"
        );
        self.lab.until("guests at rest", AT_REST_BUDGET, |lab| {
            let used: u64 = lab.sh(&script)?.trim().parse()?;
            Ok(if used < AT_REST {
                Look::Done(())
            } else {
                Look::NotYet(format!("{used} µs of CPU time in half a second"))
            })
        })
    }

    /// The text of a guest's VM file.
    pub fn vm_file(&self, guest: &GuestSpec) -> String {
        let table = |more: &[(u32, Bytes)]| {
            let parts: Vec<String> =
                self.memory(more).iter().map(|(node, bytes)| format!("node{node} = \"{bytes}\"")).collect();
            format!("{{ {} }}", parts.join(", "))
        };
        let name = guest.name;
        let mut qemu_args = vec![
            "-device".to_owned(),
            "virtio-serial-pci".to_owned(),
            "-chardev".to_owned(),
            format!("socket,id=lab,path={},server=on,wait=off", guest_socket(name)),
            "-device".to_owned(),
            "virtserialport,chardev=lab,name=conuma.lab".to_owned(),
            "-serial".to_owned(),
            format!("file:/run/{name}.console"),
            "-qmp".to_owned(),
            format!("unix:/run/witness-{name}.sock,server=on,wait=off"),
            // Each serves one at a time: this one is for what trials do to a guest while the witness watches.
            "-qmp".to_owned(),
            format!("unix:/run/hand-{name}.sock,server=on,wait=off"),
        ];
        qemu_args.extend(guest.qemu_args.iter().map(|arg| (*arg).to_owned()));
        let (agent, word) = if guest.agentless { ("none", " conuma.agent=none") } else { ("expected", "") };
        format!(
            "name = \"{name}\"\nagent = \"{agent}\"\nqemu_args = {qemu_args:?}\n\n[guarantee]\n{guarantee}\nmemory = {guaranteed}\n\n\
             [initial]\ncpus = \"{cpus}\"\nmemory = {initial}\n\n[boot]\nmemory_per_node = \"{BOOT_MEMORY}\"\n\
             kernel = \"/lab/{kernel}.vmlinuz\"\ninitrd = \"/lab/{kernel}.cpio\"\ncmdline = \"{GUEST_CMDLINE}{word}\"\n",
            guarantee = guest.guarantee,
            guaranteed = table(&[]),
            cpus = guest.cpus,
            initial = table(guest.memory),
            kernel = guest.kernel,
        )
    }

    /// Boot memory and more, by node.
    fn memory(&self, more: &[(u32, Bytes)]) -> Vec<(NodeId, Bytes)> {
        let boot: Bytes = BOOT_MEMORY.parse().unwrap_or_default();
        let on = |node| more.iter().filter(move |(n, _)| NodeId(*n) == node).map(|(_, bytes)| *bytes).sum::<Bytes>();
        self.lab.spec.machine.memory_nodes().iter().map(|node| (node, boot + on(node))).collect()
    }

    /// What of CPUs and memory a guest has at first, as arguments of `conuma set`.
    pub fn at_first(&self, guest: &GuestSpec) -> [String; 4] {
        let memory: Vec<String> =
            self.memory(guest.memory).iter().map(|(node, bytes)| format!("node{node}={bytes}")).collect();
        ["--cpus".into(), guest.cpus.into(), "--memory".into(), memory.join(",")]
    }

    /// All that the daemon knows of a VM.
    pub fn show(&self, vm: &str) -> Result<VmDetail> {
        self.json(&["conuma", "show", vm, "--json"])
    }

    /// Runs a command that moves something, and gives the transfer that it reports, whatever became of it.
    pub fn transfer(&self, argv: &[&str]) -> Result<(i32, Transfer)> {
        let argv: Vec<&str> = argv.iter().copied().chain(["--json"]).collect();
        let Output { code, out, err } = self.lab.run(&argv)?;
        let transfer = serde_json::from_str(&out).with_context(|| format!("{argv:?}: exit code {code}: {err}{out}"))?;
        Ok((code, transfer))
    }

    /// Runs a command that moves something; anything but all of it is an error that tells what became of it.
    pub fn moved(&self, argv: &[&str]) -> Result<Transfer> {
        let (code, transfer) = self.transfer(argv)?;
        ensure!(code == 0 && transfer.state == TransferState::Complete, "{argv:?}: exit code {code}: {transfer:#?}");
        Ok(transfer)
    }

    fn json<T: DeserializeOwned>(&self, argv: &[&str]) -> Result<T> {
        let text = self.lab.ok(argv)?;
        serde_json::from_str(&text).with_context(|| format!("{argv:?} printed {text}"))
    }

    /// Starts the independent witness over these VMs.
    pub fn witness(&self, vms: &[&str]) -> Result<Witness<'_>> {
        let reserve: Bytes = RESERVE.parse()?;
        self.lab.sh(&format!("rm -f {WITNESS_STOP}"))?;
        let mut argv: Vec<String> =
            ["conuma-lab-init", "observe", "--cgroups", CGROUPS, "--until", WITNESS_STOP].map(str::to_owned).to_vec();
        for vm in vms {
            argv.push(format!("--monitor={vm}=/run/witness-{vm}.sock"));
        }
        for (node, capacity) in self.capacities()? {
            argv.push(format!("--limit={node}={}", capacity.saturating_sub(reserve).0));
        }
        let argv: Vec<&str> = argv.iter().map(String::as_str).collect();
        Ok(Witness { stage: self, command: Some(self.lab.spawn(&argv)?) })
    }

    /// `MemTotal` of the host's nodes, read by the lab itself.
    fn capacities(&self) -> Result<Vec<(u32, Bytes)>> {
        let text = self.lab.sh("cat /sys/devices/system/node/node*/meminfo | grep MemTotal")?;
        text.lines()
            .map(|line| {
                let words: Vec<&str> = line.split_whitespace().collect();
                let node = words.get(1).and_then(|word| word.parse().ok());
                let kib = words.get(3).and_then(|word| word.parse().ok());
                node.zip(kib.map(Bytes::kib)).with_context(|| format!("not a line of meminfo: {line}"))
            })
            .collect()
    }

    /// Pages of VMs' memory that lie on the node they are bound to, and pages that lie elsewhere, by the host kernel's word.
    pub fn placed_pages(&self) -> Result<(u64, u64)> {
        let text = self.lab.sh("for p in $(pidof qemu-system-x86_64); do grep bind: /proc/$p/numa_maps; done")?;
        let (mut home, mut elsewhere) = (0, 0);
        for line in text.lines() {
            let bound = line.split_whitespace().find_map(|word| word.strip_prefix("bind:"));
            for (node, pages) in line.split_whitespace().filter_map(|word| word.strip_prefix('N')?.split_once('=')) {
                let pages: u64 = pages.parse().unwrap_or(0);
                if Some(node) == bound { home += pages } else { elsewhere += pages }
            }
        }
        Ok((home, elsewhere))
    }

    /// The CPUs that an ordinary task in a guest may use, by the guest's own word.
    pub fn guest_cpus(&self, vm: &str) -> Result<CpuSet> {
        let list = self.lab.guest(vm, "grep Cpus_allowed_list /proc/self/status | cut -f2")?;
        Ok(list.trim().parse()?)
    }

    /// How long each CPU of a guest was busy since it booted, by its `/proc/stat`.
    pub fn guest_busy(&self, vm: &str) -> Result<BTreeMap<CpuId, Duration>> {
        /// The unit of the file, whatever the kernel's own clock (`USER_HZ`, see proc(5)).
        const TICK: Duration = Duration::from_millis(10);
        let text = self.lab.guest(vm, "grep '^cpu[0-9]' /proc/stat")?;
        let line = |line: &str| -> Result<(CpuId, Duration)> {
            let mut words = line.trim_start_matches("cpu").split_whitespace().map(str::parse::<u32>);
            let mut next = || words.next().context("a number")?.context("a number");
            let (cpu, user, nice, system) = (next()?, next()?, next()?, next()?);
            let (_idle, _waiting, hard, soft) = (next()?, next()?, next()?, next()?);
            Ok((CpuId(cpu), TICK * (user + nice + system + hard + soft)))
        };
        text.lines().map(|text| line(text).with_context(|| format!("not a line of /proc/stat: {text}"))).collect()
    }

    /// `MemTotal` of a node in a guest, by the guest's own word.
    pub fn guest_memory(&self, vm: &str, node: u32) -> Result<Bytes> {
        let script = format!("grep MemTotal /sys/devices/system/node/node{node}/meminfo | tr -s ' ' | cut -d' ' -f4");
        Ok(Bytes::kib(self.lab.guest(vm, &script)?.trim().parse()?))
    }
}

/// The witness at work. It ends its watch when it is dropped, too: what follows a failed trial must find its monitors free.
#[derive(Debug)]
pub struct Witness<'a> {
    stage: &'a Stage,
    command: Option<Command<'a>>,
}

impl Drop for Witness<'_> {
    fn drop(&mut self) {
        if let Some(command) = self.command.take() {
            // If that fails the host is gone, and the witness with it.
            let _ = self.stage.lab.sh(&format!("touch {WITNESS_STOP}"));
            let _ = command.wait(Duration::from_secs(60), &mut |_| {});
        }
    }
}

impl Witness<'_> {
    /// Ends the watch and gives what was seen; a violation is an error.
    pub fn nothing_wrong(self) -> Result<Findings> {
        let findings = self.findings()?;
        ensure!(findings.violation_count == 0, "{findings:#?}");
        Ok(findings)
    }

    /// Ends the watch and gives what was seen.
    pub fn findings(mut self) -> Result<Findings> {
        self.stage.lab.sh(&format!("touch {WITNESS_STOP}"))?;
        let command = self.command.take().context("it watches")?;
        let text = command.wait(Duration::from_secs(60), &mut |_| {})?.ok().context("the witness")?;
        serde_json::from_str(&text).with_context(|| format!("the witness said {text}"))
    }
}
