//! What a unit says of paths, as mounts like those that systemd makes of it. What is mounted below a protected directory is not
//! protected: in the lab there is nothing.

use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use conuma_linux::sys::own_mounts;
use rustix::mount::{
    MountFlags, MountPropagationFlags, mount, mount_bind, mount_bind_recursive, mount_change, mount_move, mount_remount,
};

use super::words;

/// Of `/`, what `ProtectSystem=strict` leaves as it is.
const API: [&str; 3] = ["/dev", "/proc", "/sys"];

/// What of `/dev` there is with `PrivateDevices=yes`.
const DEVICES: [&str; 6] = ["full", "null", "random", "tty", "urandom", "zero"];

/// Gives this process mounts of its own, with all that the unit protects protected.
pub(super) fn protect(unit: &str) -> Result<()> {
    own_mounts().context("leaving the mounts of others")?;
    mount_change("/", MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC).context("detaching mounts")?;
    if is_set(unit, "PrivateDevices=")? {
        private_devices().context("PrivateDevices=")?;
    }
    let own = writable(unit);
    for path in &own {
        fs::create_dir_all(path).with_context(|| format!("making {}", path.display()))?;
    }
    for path in read_only(unit)? {
        make_read_only(&path).with_context(|| format!("protecting {}", path.display()))?;
    }
    for path in own {
        make_writable(&path).with_context(|| format!("leaving {} writable", path.display()))?;
    }
    if is_set(unit, "PrivateTmp=")? {
        each(&["/tmp", "/var/tmp"], |path| empty(path, "mode=1777")).context("PrivateTmp=")?;
    }
    if is_set(unit, "ProtectHome=")? {
        each(&["/home", "/root", "/run/user"], inaccessible).context("ProtectHome=")?;
    }
    if is_set(unit, "ProtectKernelModules=")? {
        each(&["/lib/modules", "/usr/lib/modules"], inaccessible).context("ProtectKernelModules=")?;
    }
    Ok(())
}

fn is_set(unit: &str, key: &str) -> Result<bool> {
    Ok(match words(unit, key).next() {
        None | Some("no") => false,
        Some("yes") => true,
        Some(word) => bail!("{key}{word} is not understood here"),
    })
}

/// Directories that `ProtectSystem=` protects, those that there are; the root is last.
fn read_only(unit: &str) -> Result<Vec<PathBuf>> {
    let all: Vec<PathBuf> = match words(unit, "ProtectSystem=").next() {
        None | Some("no") => Vec::new(),
        Some("full") => ["/usr", "/boot", "/efi", "/etc"].map(PathBuf::from).to_vec(),
        Some("strict") => {
            let all = fs::read_dir("/")?.flatten().map(|entry| entry.path());
            let below = all.filter(|path| !API.iter().any(|api| path == Path::new(api)));
            below.chain([PathBuf::from("/")]).collect()
        }
        Some(word) => bail!("ProtectSystem={word} is not understood here"),
    };
    Ok(all.into_iter().filter(|path| path.is_dir() && !path.is_symlink()).collect())
}

/// The directories that are the unit's own.
fn writable(unit: &str) -> Vec<PathBuf> {
    let below = |key, parent: &'static str| words(unit, key).map(move |name| Path::new(parent).join(name));
    below("RuntimeDirectory=", "/run").chain(below("StateDirectory=", "/var/lib")).collect()
}

fn make_read_only(path: &Path) -> rustix::io::Result<()> {
    // What would be mounted over the root would be out of sight.
    if path != Path::new("/") {
        mount_bind_recursive(path, path)?;
    }
    mount_remount(path, MountFlags::BIND | MountFlags::RDONLY, "")
}

fn make_writable(path: &Path) -> rustix::io::Result<()> {
    mount_bind_recursive(path, path)?;
    mount_remount(path, MountFlags::BIND, "")
}

fn inaccessible(path: &Path) -> rustix::io::Result<()> {
    empty(path, "mode=000")?;
    mount_remount(path, MountFlags::RDONLY, "mode=000")
}

fn empty(path: &Path, options: &str) -> rustix::io::Result<()> {
    let options = std::ffi::CString::new(options).map_err(|_| rustix::io::Errno::INVAL)?;
    mount("tmpfs", path, "tmpfs", MountFlags::NOSUID | MountFlags::NODEV, options.as_c_str())
}

/// Does it to those of these directories that there are.
fn each(paths: &[&str], what: impl Fn(&Path) -> rustix::io::Result<()>) -> Result<()> {
    for path in paths.iter().map(Path::new).filter(|path| path.is_dir() && !path.is_symlink()) {
        what(path).with_context(|| path.display().to_string())?;
    }
    Ok(())
}

/// A `/dev` without hardware.
fn private_devices() -> Result<()> {
    let new = Path::new("/tmp/conuma-lab-devices");
    fs::create_dir_all(new)?;
    empty(new, "mode=755")?;
    for name in DEVICES {
        File::create(new.join(name))?;
        mount_bind(Path::new("/dev").join(name), new.join(name)).context(name)?;
    }
    fs::set_permissions(new, fs::Permissions::from_mode(0o755))?;
    mount_move(new, "/dev")?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::{AGENT, DAEMON};
    use super::*;

    #[test]
    fn units_protect_programs_and_configuration_and_leave_what_is_theirs() {
        for unit in [DAEMON, AGENT] {
            let protected = read_only(unit).expect("a unit that is understood");
            assert!(["/usr", "/etc"].iter().all(|path| protected.contains(&PathBuf::from(path))), "{protected:?}");
            assert!(API.iter().all(|path| !protected.contains(&PathBuf::from(path))), "{protected:?}");
        }
        assert_eq!(writable(DAEMON), ["/run/conuma", "/var/lib/conuma"].map(PathBuf::from));
        assert_eq!(writable(AGENT), [PathBuf::from("/run/conuma-agent")]);
        let nearly_all = read_only(AGENT).expect("understood");
        assert!(["/", "/var"].iter().all(|path| nearly_all.contains(&PathBuf::from(path))), "{nearly_all:?}");
    }

    #[test]
    fn what_is_not_understood_is_an_error() {
        assert!(read_only("ProtectSystem=maybe").is_err());
        assert!(is_set("ProtectHome=tmpfs", "ProtectHome=").is_err());
    }
}
