//! The initial RAM file systems of the virtual host and of its guests.

mod cpio;
mod modules;

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use self::cpio::Cpio;
use self::modules::Kernel;

/// Kernels that guests can have, by the name of their directory.
pub const GUEST_KERNELS: [&str; 2] = ["guest-6.12", "guest-6.1"];

/// The project's programs, statically linked.
pub const PROGRAMS: [&str; 4] = ["conumad", "conuma", "conuma-agent", "conuma-lab-init"];

const HOST_MODULES: [&str; 3] = ["kvm_amd", "vhost_vsock", "virtio_net"];
const GUEST_MODULES: [&str; 4] = ["virtio_pci", "virtio_mem", "vmw_vsock_virtio_transport", "virtio_console"];

/// Firmware and option ROMs that QEMU loads for the guests that the daemon starts.
const FIRMWARE: [&str; 4] = ["bios-256k.bin", "kvmvapic.bin", "linuxboot_dma.bin", "pvh.bin"];
const FIRMWARE_DIRS: [&str; 2] = ["/usr/share/qemu", "/usr/share/seabios"];

const QEMU: &str = "/usr/bin/qemu-system-x86_64";
const BUSYBOX: &str = "/bin/busybox";

const HOST_RC: &str = include_str!("host.rc");
const GUEST_RC: &str = include_str!("guest.rc");
const GUEST_AGENT: &str = include_str!("guest.agent");
const HOST_INITTAB: &str = "::sysinit:/etc/rc\n::respawn:/bin/conuma-lab-init serve conuma.lab\n";
const GUEST_INITTAB: &str =
    "::sysinit:/etc/rc\n::respawn:/bin/conuma-lab-init serve conuma.lab\n::respawn:/etc/agent\n";

/// What the virtual host boots from.
#[derive(Debug, Clone)]
pub struct HostImage {
    /// Its kernel.
    pub kernel: PathBuf,
    /// Its initial RAM file system.
    pub initrd: PathBuf,
}

/// Builds the images below `work` from unpacked kernels below `kernels` and programs in `programs`.
pub fn build(kernels: &Path, programs: &Path, work: &Path) -> Result<HostImage> {
    fs::create_dir_all(work)?;
    let host = Kernel::open(&kernels.join("host"))?;
    let initrd = work.join("host.cpio");
    let mut cpio = Cpio::new(BufWriter::new(File::create(&initrd)?));
    add_host(&mut cpio, &host)?;
    for name in PROGRAMS {
        let path = programs.join(name);
        cpio.copy(&format!("/bin/{name}"), &path).with_context(|| format!("packing {}", path.display()))?;
    }
    for name in GUEST_KERNELS {
        let dir = kernels.join(name);
        if dir.exists() {
            add_guest(&mut cpio, name, &Kernel::open(&dir)?, programs)?;
        }
    }
    cpio.finish()?;
    Ok(HostImage { kernel: host.image, initrd })
}

/// Tools, QEMU and modules.
fn add_host<W: Write>(cpio: &mut Cpio<W>, host: &Kernel) -> Result<()> {
    skeleton(cpio, HOST_RC, HOST_INITTAB)?;
    cpio.copy(QEMU, Path::new(QEMU)).context("packing QEMU (package qemu-system-x86)")?;
    for library in libraries(Path::new(QEMU))? {
        cpio.copy(&library, Path::new(&library)).with_context(|| format!("packing {library}"))?;
    }
    for name in FIRMWARE {
        if let Some(dir) = FIRMWARE_DIRS.iter().find(|dir| Path::new(dir).join(name).exists()) {
            cpio.copy(&format!("{}/{name}", FIRMWARE_DIRS[0]), &Path::new(dir).join(name))?;
        }
    }
    host.add_modules(cpio, &HOST_MODULES)
}

/// A guest's kernel and initial RAM file system, as files of the host: `/lab/<name>.vmlinuz` and `/lab/<name>.cpio`.
fn add_guest<W: Write>(cpio: &mut Cpio<W>, name: &str, kernel: &Kernel, programs: &Path) -> Result<()> {
    let mut guest = Cpio::new(Vec::new());
    skeleton(&mut guest, GUEST_RC, GUEST_INITTAB)?;
    guest.file("/etc/agent", 0o755, GUEST_AGENT.as_bytes())?;
    kernel.add_modules(&mut guest, &GUEST_MODULES)?;
    for program in ["conuma-agent", "conuma-lab-init"] {
        guest
            .copy(&format!("/bin/{program}"), &programs.join(program))
            .with_context(|| format!("packing {program}"))?;
    }
    cpio.file(&format!("/lab/{name}.cpio"), 0o644, &guest.finish()?)?;
    Ok(cpio.copy(&format!("/lab/{name}.vmlinuz"), &kernel.image)?)
}

fn skeleton<W: Write>(cpio: &mut Cpio<W>, rc: &str, inittab: &str) -> Result<()> {
    for dir in ["bin", "sbin", "dev", "etc", "proc", "run", "sys", "tmp", "root", "var/lib"] {
        cpio.directory(dir)?;
    }
    cpio.copy(BUSYBOX, Path::new(BUSYBOX)).context("packing busybox (package busybox-static)")?;
    for link in ["/init", "/sbin/init", "/bin/sh"] {
        cpio.link(link, BUSYBOX)?;
    }
    cpio.file("/etc/rc", 0o755, rc.as_bytes())?;
    cpio.file("/etc/inittab", 0o644, inittab.as_bytes())?;
    Ok(())
}

/// The shared libraries of a program, and its loader.
fn libraries(program: &Path) -> Result<BTreeSet<String>> {
    let output = Command::new("ldd").arg(program).output().context("running ldd")?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let paths: BTreeSet<String> =
        text.split_whitespace().filter(|word| word.starts_with('/')).map(str::to_owned).collect();
    if !output.status.success() || paths.is_empty() {
        bail!("ldd cannot tell the libraries of {}: {text}", program.display());
    }
    Ok(paths)
}
