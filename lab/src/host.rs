//! The virtual host: booting it, running things in it, and leaving nothing behind.

use std::fs::{self, File};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::client::{self, Client, Output};
use crate::image;
use crate::spec::LabSpec;
use crate::wire::Say;

/// What the lab is built from.
#[derive(Debug, Clone)]
pub struct Kit {
    /// Unpacked kernels: `host`, `guest-6.12`, `guest-6.1`.
    pub kernels: PathBuf,
    /// The project's programs, statically linked.
    pub programs: PathBuf,
    /// Where images, sockets and logs go.
    pub work: PathBuf,
}

/// A running virtual host. Ends with its value, and with this process however that ends.
#[derive(Debug)]
pub struct Lab {
    qemu: Child,
    client: Client,
    /// Where its console and collected logs are.
    pub logs: PathBuf,
    /// What it was booted as.
    pub spec: LabSpec,
    run_dir: PathBuf,
    /// Held while the lab runs: the machine has no room for two.
    _only_one: File,
}

/// A command under way in the host.
pub type Running<'a> = client::Command<'a>;

/// It takes ten seconds on an idle machine.
const BOOT_BUDGET: Duration = Duration::from_secs(90);
/// An emulated machine of several processors now and then hangs before its kernel runs anything of ours.
const BOOTS: usize = 3;
const COMMAND_BUDGET: Duration = Duration::from_secs(400);
/// Looking costs: what is run inside is emulated, and takes the processor from those that are waited for.
const POLL: Duration = Duration::from_millis(300);

impl Lab {
    /// Boots a host; `name` names its logs.
    pub fn boot(kit: &Kit, name: &str, spec: LabSpec) -> Result<Self> {
        fs::create_dir_all(&kit.work)?;
        let only_one = File::create(kit.work.join("lock"))?;
        only_one.lock().context("waiting for another lab to end")?;
        let image = image::build(&kit.kernels, &kit.programs, &kit.work)?;
        let logs = kit.work.join("logs").join(name);
        fs::create_dir_all(&logs)?;
        let run_dir = kit.work.join(format!("run-{}", std::process::id()));
        fs::create_dir_all(&run_dir)?;
        let socket = run_dir.join("port.sock");
        let mut boots = 1;
        loop {
            let mut qemu = spawn_qemu(&image, &spec, &socket, &logs.join("console.log"))?;
            match connect(&socket, &mut qemu, &logs) {
                Ok(client) => return Ok(Self { qemu, client, logs, spec, run_dir, _only_one: only_one }),
                Err(error) => {
                    end(&mut qemu);
                    if boots == BOOTS {
                        return Err(error);
                    }
                }
            }
            boots += 1;
            writeln!(std::io::stdout(), "the virtual host hangs; booting it again ({boots} of {BOOTS})")?;
        }
    }

    /// Runs a program in the host and waits for it.
    pub fn run(&self, argv: &[&str]) -> Result<Output> {
        self.run_within(argv, COMMAND_BUDGET)
    }

    /// The same with a budget of its own.
    pub fn run_within(&self, argv: &[&str], budget: Duration) -> Result<Output> {
        let output = self.client.start(argv, "")?.wait(budget, &mut |_| {});
        output.with_context(|| format!("in the virtual host: {}", argv.join(" ")))
    }

    /// Runs a program and gives its standard output; anything but success is an error with what it said.
    pub fn ok(&self, argv: &[&str]) -> Result<String> {
        self.run(argv)?.ok().with_context(|| format!("in the virtual host: {}", argv.join(" ")))
    }

    /// Runs a shell script.
    pub fn sh(&self, script: &str) -> Result<String> {
        self.ok(&["/bin/sh", "-c", script])
    }

    /// Runs a program and shows what it says as it comes.
    pub fn live(&self, argv: &[&str], show: &mut dyn FnMut(&Say)) -> Result<Output> {
        self.client.start(argv, "")?.wait(COMMAND_BUDGET, show)
    }

    /// Starts a program and goes on.
    pub fn spawn(&self, argv: &[&str]) -> Result<Running<'_>> {
        self.client.start(argv, "")
    }

    /// Writes a file in the host.
    pub fn write(&self, path: &str, text: &str) -> Result<()> {
        let output = self.client.start(&["/bin/sh", "-c", &format!("cat > '{path}'")], text)?;
        output
            .wait(COMMAND_BUDGET, &mut |_| {})?
            .ok()
            .with_context(|| format!("writing {path} in the virtual host"))?;
        Ok(())
    }

    /// Runs a shell script in a guest whose lab port is at its usual place.
    pub fn guest(&self, vm: &str, script: &str) -> Result<String> {
        let socket = guest_socket(vm);
        self.ok(&["conuma-lab-init", "exec", "--socket", &socket, "/bin/sh", "-c", script])
            .with_context(|| format!("in guest {vm}: {script}"))
    }

    /// Whether it still runs: an emulated host that runs guests now and then panics, and ends then.
    pub fn is_alive(&self) -> bool {
        self.run_within(&["/bin/true"], Duration::from_secs(60)).is_ok()
    }

    /// The end of its console, or where it began to give up, and what QEMU said, also of a processor that gave up: why it died,
    /// if it did. Each line is marked, as it is no word of ours.
    pub fn last_words(&self) -> String {
        /// As many lines of each tell a panic from what came before.
        const LINES: usize = 12;
        let mut words = String::new();
        for file in ["console.log", "qemu.log", "reset.log"] {
            let text = fs::read(self.logs.join(file)).unwrap_or_default();
            let text = String::from_utf8_lossy(&text);
            let lines: Vec<&str> = text.lines().filter(|line| !line.trim().is_empty()).collect();
            // A kernel says why it gives up first, and then at length where.
            let why = lines
                .iter()
                .position(|line| ["BUG:", "Oops", "panic", "Triple fault"].iter().any(|word| line.contains(word)));
            // Every processor is reset as a host boots.
            let last = if file == "reset.log" { 0 } else { LINES };
            for line in lines.iter().skip(why.unwrap_or(lines.len().saturating_sub(last))).take(LINES) {
                let line: String = line.chars().filter(|c| !c.is_control()).collect();
                words.push_str(&format!("\n  {file}: {line}"));
            }
        }
        words
    }

    /// Copies what was logged inside to [`Self::logs`].
    pub fn collect_logs(&self) {
        let script = "for f in /run/*.log /run/*.console /var/lib/conuma/vms/*/qemu.log; do \
                      [ -f $f ] && echo \"==== $f\" && cat $f; done; echo ==== dmesg; dmesg | tail -50; ps -o pid,args";
        let text = self.sh(script).unwrap_or_else(|error| format!("{error:#}\n"));
        // The test has failed already; a log that cannot be written does not make it worse.
        let _ = fs::write(self.logs.join("inside.log"), text);
    }

    /// Waits for a condition; the last state is in the error when the budget runs out.
    pub fn until<T>(&self, what: &str, budget: Duration, mut look: impl FnMut(&Self) -> Result<Look<T>>) -> Result<T> {
        wait_until(what, budget, || look(self))
    }
}

/// What a look at a condition found.
#[derive(Debug)]
pub enum Look<T> {
    /// It holds.
    Done(T),
    /// Not yet; this is what there is instead.
    NotYet(String),
}

/// Looks again and again until the condition holds.
pub fn wait_until<T>(what: &str, budget: Duration, mut look: impl FnMut() -> Result<Look<T>>) -> Result<T> {
    let until = Instant::now() + budget;
    loop {
        match look()? {
            Look::Done(value) => return Ok(value),
            Look::NotYet(state) if Instant::now() >= until => {
                bail!("{what}: not within {} s; last seen: {state}", budget.as_secs())
            }
            Look::NotYet(_) => std::thread::sleep(POLL),
        }
    }
}

/// Where a guest's lab port is in the host.
pub(crate) fn guest_socket(vm: &str) -> String {
    format!("/run/lab-{vm}.sock")
}

fn spawn_qemu(image: &image::HostImage, spec: &LabSpec, socket: &Path, console: &Path) -> Result<Child> {
    let accel = ["-machine", "q35", "-accel", "tcg,thread=multi", "-cpu", "qemu64,+svm,+npt"];
    let plain = ["-nodefaults", "-no-user-config", "-nographic", "-no-reboot", "-serial"];
    // setpriv makes the kernel end QEMU with us, whatever ends us.
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", "qemu-system-x86_64"]).args(accel).args(plain);
    command.arg(format!("file:{}", console.display()));
    command.args(["-d", "cpu_reset", "-D"]).arg(console.with_file_name("reset.log"));
    command.args(spec.qemu_arguments()?);
    command.args(["-device", "virtio-serial-pci,bus=pcie.0", "-chardev"]);
    command.arg(format!("socket,id=lab,path={},server=on,wait=off", socket.display()));
    command.args(["-device", "virtserialport,chardev=lab,name=conuma.lab", "-kernel"]).arg(&image.kernel);
    command.arg("-initrd").arg(&image.initrd);
    command.args([
        "-append",
        "console=ttyS0 quiet nowatchdog mitigations=off no_timer_check init_on_alloc=0 panic=-1 \
         sysctl.kernel.panic_on_rcu_stall=1 rcupdate.rcu_cpu_stall_timeout=60 rdinit=/init",
    ]);
    command.stdin(Stdio::null()).stdout(Stdio::null());
    let errors = File::create(console.with_file_name("qemu.log"))?;
    command.stderr(errors).spawn().context("starting QEMU for the virtual host")
}

fn connect(socket: &Path, qemu: &mut Child, logs: &Path) -> Result<Client> {
    let client = wait_until("QEMU of the virtual host", Duration::from_secs(20), || {
        if let Some(status) = qemu.try_wait()? {
            let said = fs::read_to_string(logs.join("qemu.log")).unwrap_or_default();
            bail!("QEMU of the virtual host ended with {status}: {said}");
        }
        Ok(match Client::connect(socket) {
            Ok(client) => Look::Done(client),
            Err(error) => Look::NotYet(format!("{error:#}")),
        })
    })?;
    // What is written before the responder reads stays in the port until it does.
    client
        .start(&["/bin/true"], "")?
        .wait(BOOT_BUDGET, &mut |_| {})
        .with_context(|| format!("the virtual host did not come up; see {}", logs.display()))?;
    Ok(client)
}

fn end(qemu: &mut Child) {
    // It may be gone already.
    let _ = qemu.kill();
    let _ = qemu.wait();
}

impl Drop for Lab {
    fn drop(&mut self) {
        end(&mut self.qemu);
        let _ = fs::remove_dir_all(&self.run_dir);
    }
}
