//! Programs of the distribution: which are missing, and installing them.

use std::path::Path;

use anyhow::Result;

use super::apt::Apt;
use super::{Needs, StaticTarget};
use crate::run;

/// The oldest QEMU that serves: the first with `dynamic-memslots`.
const QEMU: (u32, u32) = (8, 2);

/// A program, and what has it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Program {
    /// What it is called.
    pub(crate) name: &'static str,
    package: &'static str,
    /// What for.
    pub(crate) why: &'static str,
    needs: Needs,
    /// The target that it is needed for, if only for one.
    target: Option<StaticTarget>,
    there: fn(&str) -> bool,
    /// Whether only a recent release has one that is recent enough.
    recent: bool,
}

const PROGRAMS: [Program; 9] = [
    Program {
        name: "qemu-system-x86_64",
        package: "qemu-system-x86",
        why: "8.2 or newer: the virtual NUMA host, and the guests in it",
        needs: Needs::Lab,
        target: None,
        there: qemu_is_recent,
        recent: true,
    },
    Program {
        name: "busybox",
        package: "busybox-static",
        why: "statically linked: the tools in virtual hosts and guests",
        needs: Needs::Lab,
        target: None,
        there: |_| is_static(Path::new("/bin/busybox")),
        recent: false,
    },
    Program {
        name: "musl-gcc",
        package: "musl-tools",
        why: "to compile SQLite into the daemon where that is linked statically",
        needs: Needs::Lab,
        target: Some(StaticTarget::Musl),
        // Under either name it is what the crate that compiles SQLite looks for.
        there: |name| [name, "x86_64-linux-musl-gcc"].into_iter().any(|name| run::find(name).is_some()),
        recent: false,
    },
    Program::ordinary("modprobe", "kmod", "to find the modules a kernel needs", Needs::Lab),
    Program::ordinary("xz", "xz-utils", "to unpack kernel modules", Needs::Lab),
    Program::ordinary("zstd", "zstd", "to unpack kernel modules", Needs::Lab),
    Program::ordinary("hwloc-ls", "hwloc-nox", "to compare our reading of machines with", Needs::Tests),
    Program::ordinary("tar", "tar", "to unpack captured machines", Needs::Tests),
    Program::ordinary("bzip2", "bzip2", "to unpack captured machines", Needs::Tests),
];

impl Program {
    const fn ordinary(name: &'static str, package: &'static str, why: &'static str, needs: Needs) -> Self {
        Self { name, package, why, needs, target: None, there: |name| run::find(name).is_some(), recent: false }
    }

    fn is_needed(&self, needs: Needs, target: StaticTarget) -> bool {
        self.needs <= needs && self.target.is_none_or(|only| only == target)
    }
}

/// Those that are not there, or too old.
pub(crate) fn missing(needs: Needs, target: StaticTarget) -> Vec<Program> {
    let needed = |program: &Program| program.is_needed(needs, target) && !(program.there)(program.name);
    PROGRAMS.into_iter().filter(needed).collect()
}

/// Installs them.
pub(crate) fn install(apt: &mut Apt, programs: &[Program]) -> Result<()> {
    for program in programs {
        println!("setup: missing: {} ({}); package {}", program.name, program.why, program.package);
    }
    let packages = |recent| programs.iter().filter(move |program| program.recent == recent).map(|one| one.package);
    // Those that may add a source go first, so that the package lists are updated once.
    apt.install(&packages(true).collect::<Vec<_>>(), true)?;
    apt.install(&packages(false).collect::<Vec<_>>(), false)
}

fn qemu_is_recent(name: &str) -> bool {
    run::find(name).is_some()
        && run::output(run::program(name).arg("--version"))
            .is_ok_and(|text| version(&text).is_some_and(|version| version >= QEMU))
}

fn version(text: &str) -> Option<(u32, u32)> {
    let mut numbers = text.split_once("version ")?.1.split(|letter: char| !letter.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

/// Whether a file is a program that needs no loader.
fn is_static(file: &Path) -> bool {
    std::fs::read(file).is_ok_and(|image| wants_loader(&image) == Some(false))
}

/// Whether a 64-bit little-endian ELF image names a loader (`PT_INTERP`, see elf(5)); nothing for other files.
fn wants_loader(image: &[u8]) -> Option<bool> {
    const CLASS_64_LITTLE_ENDIAN: &[u8] = b"\x7fELF\x02\x01";
    const INTERPRETER: u32 = 3;
    if !image.starts_with(CLASS_64_LITTLE_ENDIAN) {
        return None;
    }
    let half = |at: usize| Some(usize::from(u16::from_le_bytes(image.get(at..at + 2)?.try_into().ok()?)));
    let start = usize::try_from(u64::from_le_bytes(image.get(32..40)?.try_into().ok()?)).ok()?;
    let (size, count) = (half(54)?, half(56)?);
    for index in 0..count {
        let at = start.checked_add(index * size)?;
        if u32::from_le_bytes(image.get(at..at.checked_add(4)?)?.try_into().ok()?) == INTERPRETER {
            return Some(true);
        }
    }
    Some(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_compiler_for_musl_is_needed_for_musl_alone() {
        let needed = |needs, target| -> Vec<&str> {
            PROGRAMS.iter().filter(|program| program.is_needed(needs, target)).map(|program| program.package).collect()
        };
        for needs in [Needs::Lab, Needs::Tests] {
            assert!(needed(needs, StaticTarget::Musl).contains(&"musl-tools"));
            assert!(!needed(needs, StaticTarget::GnuStatic).contains(&"musl-tools"));
        }
    }

    #[test]
    fn qemu_says_its_version() {
        let check = |text, expected| assert_eq!(version(text), expected, "{text}");
        check("QEMU emulator version 10.0.2 (Debian 1:10.0.2+ds-2)\nCopyright", Some((10, 0)));
        check("QEMU emulator version 7.2.19", Some((7, 2)));
        check("nothing", None);
    }

    #[test]
    fn dynamic_programs_and_scripts_are_not_static() {
        assert_eq!(wants_loader(b"#!/bin/sh\n"), None);
        assert_eq!(wants_loader(b"\x7fELF\x02\x01cut off"), None);
        let mut image = vec![0_u8; 64 + 2 * 56];
        image[..6].copy_from_slice(b"\x7fELF\x02\x01");
        image[32] = 64;
        image[54] = 56;
        image[56] = 2;
        assert_eq!(wants_loader(&image), Some(false));
        image[64 + 56] = 3;
        assert_eq!(wants_loader(&image), Some(true));
    }
}
