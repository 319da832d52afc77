//! What trials, demo and chaos do to a stage: loads, lies, and what else may befall a host.

use anyhow::{Result, ensure};

use crate::stage::{GuestSpec, Stage};

impl Stage {
    /// Gives a command without arguments to a guest's QEMU, past the daemon.
    pub fn monitor(&self, vm: &str, command: &str) -> Result<()> {
        self.tell_qemu(vm, &[command])
    }

    /// Begins to migrate a guest live, into a program that a shell runs in the host: it gets all of its memory and state. The VM
    /// stays as it is until that has come to an end.
    pub fn migrate(&self, vm: &str, into: &str) -> Result<()> {
        let arguments = serde_json::json!({ "uri": format!("exec:{into}") }).to_string();
        self.tell_qemu(vm, &["migrate", &arguments])
    }

    /// Starts a VM that has ended, when the other one has again no more than what it had at first.
    pub fn start_again(&self, vm: &str, guests: &[GuestSpec; 2]) -> Result<()> {
        let [a, b] = guests;
        let (ended, other) = if a.name == vm { (a, b) } else { (b, a) };
        let first = self.at_first(other);
        let argv: Vec<&str> =
            ["conuma", "set", other.name].into_iter().chain(first.iter().map(String::as_str)).collect();
        let (_, back) = self.transfer(&argv)?;
        let (has, had) = (self.show(other.name)?.summary.holding.cpus, other.cpus.parse()?);
        ensure!(has == had, "{} holds {has}: {back:#?}", other.name);
        self.start_guests(std::slice::from_ref(ended))
    }

    /// A command, and its arguments in JSON if it has any.
    fn tell_qemu(&self, vm: &str, words: &[&str]) -> Result<()> {
        let socket = format!("/run/hand-{vm}.sock");
        let argv: Vec<&str> = ["conuma-lab-init", "qmp", &socket].into_iter().chain(words.iter().copied()).collect();
        self.lab.ok(&argv).map(drop)
    }

    /// What follows does not take resets so far for faults of the emulator: they were asked for.
    pub fn forgive_reset(&self) -> Result<()> {
        // The daemon goes on adding to the same file.
        let log = "/run/conumad.log";
        let script =
            format!("sed 's/guest was reset/guest was told to boot/' {log} > {log}.new; cat {log}.new > {log}");
        self.lab.sh(&script).map(drop)
    }

    /// Leaves not a byte where the daemon keeps its journal.
    pub fn fill_disk(&self) -> Result<()> {
        let fill = "cd /var/lib/conuma; dd if=/dev/zero of=filler bs=4k 2>/dev/null; rm -f *.new; \
                    dd if=/dev/zero of=filler2 bs=1 count=4096 2>/dev/null; true";
        self.lab.sh(fill).map(drop)
    }

    /// Makes room there again.
    pub fn free_disk(&self) -> Result<()> {
        self.lab.sh("rm -f /var/lib/conuma/filler*").map(drop)
    }

    /// A guest's kernel gives up.
    pub fn panic(&self, vm: &str) -> Result<()> {
        // Whoever tells it to must not wait for an answer.
        self.lab.guest(vm, "(sleep 0.1; echo c > /proc/sysrq-trigger) >/dev/null 2>&1 </dev/null &").map(drop)
    }

    /// Starts a task in a guest on each of these CPUs that never sleeps.
    pub fn start_load(&self, vm: &str, cpus: &[u32]) -> Result<()> {
        for cpu in cpus {
            let script =
                format!("setsid taskset -c {cpu} sh -c 'while :; do :; done' >/dev/null 2>&1 & echo $! >> /run/load");
            self.lab.guest(vm, &script)?;
        }
        Ok(())
    }

    /// Ends the load of a guest.
    pub fn stop_load(&self, vm: &str) -> Result<()> {
        self.lab.guest(vm, "kill -9 $(cat /run/load); rm /run/load").map(drop)
    }

    /// Ends the load of a guest if it has one.
    pub fn stop_any_load(&self, vm: &str) -> Result<()> {
        self.lab.guest(vm, "[ -e /run/load ] && kill -9 $(cat /run/load); rm -f /run/load").map(drop)
    }

    /// The agent of a guest is killed, and a liar begins to answer in its place.
    pub fn begin_to_lie(&self, vm: &str, about: &str) -> Result<()> {
        self.lab.guest(vm, &format!("echo {about} > /run/liar; kill -9 $(pidof conuma-agent); true")).map(drop)
    }

    /// No liar answers any more; the agent begins to.
    pub fn end_lies(&self, vm: &str) -> Result<()> {
        let script = "rm -f /run/liar; liars=$(ps -o pid,args | grep '[c]onuma-lab-init lie' | awk '{print $1}'); \
                      [ -z \"$liars\" ] || kill -9 $liars; true";
        self.lab.guest(vm, script).map(drop)
    }
}
