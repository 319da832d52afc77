//! Kernels for the lab: packages of the distribution, unpacked below `target/`, never installed.
//!
//! Delete a kernel's directory to have the newest of its kind fetched.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result, bail};

use super::apt::Apt;
use super::distribution::Distribution;
use crate::run;

/// What a kernel is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    /// The virtual host.
    Host,
    /// Guests of this day.
    Guest612,
    /// The oldest guests that are supported.
    Guest61,
}

const ROLES: [Role; 3] = [Role::Host, Role::Guest612, Role::Guest61];

impl Role {
    /// The directory of it below the kernels.
    pub(crate) fn dir(self) -> &'static str {
        match self {
            Self::Host => "host",
            Self::Guest612 => "guest-6.12",
            Self::Guest61 => "guest-6.1",
        }
    }

    /// The version it is meant to have.
    fn version(self) -> &'static str {
        match self {
            Self::Host | Self::Guest612 => "6.12.",
            Self::Guest61 => "6.1.",
        }
    }

    /// The package that stands for the newest kernel of this kind, and whether it comes from the backports.
    fn package(self, distribution: Distribution) -> Option<(&'static str, bool)> {
        match (distribution, self) {
            (Distribution::Debian12 | Distribution::Debian13, Self::Host) => Some(("linux-image-amd64", true)),
            (Distribution::Debian12 | Distribution::Debian13, Self::Guest612) => {
                Some(("linux-image-cloud-amd64", true))
            }
            (Distribution::Debian12, Self::Guest61) => Some(("linux-image-cloud-amd64", false)),
            (Distribution::Ubuntu2404, Self::Host | Self::Guest612) => Some(("linux-image-generic-hwe-24.04", true)),
            (Distribution::Debian13 | Distribution::Ubuntu2404, Self::Guest61) => None,
        }
    }
}

/// Kernels that are not there, but could be. On an unknown distribution that is all that are not there.
pub(crate) fn absent(kernels: &Path, distribution: Option<Distribution>) -> Vec<Role> {
    let to_be_had = |role: &Role| distribution.is_none_or(|distribution| role.package(distribution).is_some());
    ROLES.into_iter().filter(to_be_had).filter(|role| !kernels.join(role.dir()).is_dir()).collect()
}

/// Says which kernels this distribution does not have.
pub(crate) fn tell_lacking(distribution: Distribution) {
    for role in ROLES.into_iter().filter(|role| role.package(distribution).is_none()) {
        println!("setup: note: {} has no Linux {}x for {}", distribution.name(), role.version(), role.dir());
    }
}

/// Fetches one.
pub(crate) fn fetch(apt: &mut Apt, kernels: &Path, role: Role) -> Result<()> {
    let Some((meta, recent)) = role.package(apt.distribution) else {
        bail!("{} has no kernel for {}", apt.distribution.name(), role.dir());
    };
    let suite = apt.prepare(recent)?;
    let image = apt.resolve(meta, "linux-image-", suite)?;
    let release = image.trim_start_matches("linux-image-").to_owned();
    if !release.starts_with(role.version()) {
        println!("setup: note: Linux {release} stands in for {}x as {}", role.version(), role.dir());
    }
    let mut packages = vec![image];
    // Ubuntu keeps modules apart.
    let modules = ["linux-modules-", "linux-modules-extra-"].map(|prefix| format!("{prefix}{release}"));
    packages.extend(modules.into_iter().filter(|package| apt.knows(package)));

    let began = Instant::now();
    println!("setup: fetching {} for {}, unpacked below target, not installed ...", packages.join(" "), role.dir());
    let aside = kernels.join(format!("{}.unfinished", role.dir()));
    if aside.exists() {
        fs::remove_dir_all(&aside)?;
    }
    let (archives, tree) = (aside.join("archives"), aside.join("tree"));
    fs::create_dir_all(&archives).with_context(|| format!("cannot make {}", archives.display()))?;
    fs::create_dir_all(&tree)?;
    apt.unpack(&packages, suite, &archives, &tree)?;
    arrange(&tree)?;
    let release = only_entry(&tree.join("lib/modules"))?;
    if !tree.join(format!("boot/vmlinuz-{release}")).is_file() {
        bail!("{} have no image of Linux {release}", packages.join(" "));
    }
    run::output(run::program("depmod").arg("-b").arg(&tree).arg(&release))?;
    fs::rename(&tree, kernels.join(role.dir()))?;
    fs::remove_dir_all(&aside)?;
    println!("setup: fetched in {:.0} s", began.elapsed().as_secs_f32());
    Ok(())
}

/// Modules are in `lib/modules`, wherever the package has them; kmod finds them there and below `usr`, as it likes.
fn arrange(tree: &Path) -> Result<()> {
    let (plain, merged) = (tree.join("lib/modules"), tree.join("usr/lib/modules"));
    if merged.is_dir() && !plain.exists() {
        fs::create_dir_all(tree.join("lib"))?;
        fs::rename(&merged, &plain)?;
    }
    if !merged.exists() {
        fs::create_dir_all(tree.join("usr/lib"))?;
        symlink("../../lib/modules", &merged)?;
    }
    Ok(())
}

fn only_entry(dir: &Path) -> Result<String> {
    let entries = fs::read_dir(dir).with_context(|| format!("the package has no {}", dir.display()))?;
    let names = entries.map(|entry| Ok(entry?.file_name())).collect::<Result<Vec<_>>>()?;
    match names.as_slice() {
        [name] => Ok(name.to_string_lossy().into_owned()),
        _ => bail!("{} should have one kernel's modules, and has {}", dir.display(), names.len()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check_arranged(modules: &str) {
        let tree = tempfile::tempdir().unwrap();
        fs::create_dir_all(tree.path().join(modules).join("6.12.1")).unwrap();
        arrange(tree.path()).unwrap();
        for below in ["lib/modules", "usr/lib/modules"] {
            assert_eq!(only_entry(&tree.path().join(below)).unwrap(), "6.12.1", "{modules}, {below}");
        }
        assert!(!tree.path().join("lib/modules").is_symlink());
    }

    #[test]
    fn modules_are_found_in_both_places() {
        check_arranged("lib/modules");
        check_arranged("usr/lib/modules");
    }

    #[test]
    fn half_done_kernels_are_absent() {
        let kernels = tempfile::tempdir().unwrap();
        fs::create_dir_all(kernels.path().join("host.unfinished/tree")).unwrap();
        fs::create_dir_all(kernels.path().join("guest-6.12")).unwrap();
        assert_eq!(absent(kernels.path(), Some(Distribution::Debian12)), [Role::Host, Role::Guest61]);
        assert_eq!(absent(kernels.path(), Some(Distribution::Debian13)), [Role::Host]);
        assert_eq!(absent(kernels.path(), None), [Role::Host, Role::Guest61]);
    }
}
