//! What trials, demo and chaos do to a stage: loads, lies, and what else may befall a host.

use anyhow::Result;

use crate::stage::Stage;

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
