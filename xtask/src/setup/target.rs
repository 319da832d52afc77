//! What programs for virtual hosts and guests are built for: they find no libraries there.

use std::path::Path;
use std::process::Command;

use anyhow::Result;

use crate::run;

const MUSL: &str = "x86_64-unknown-linux-musl";
const GNU: &str = "x86_64-unknown-linux-gnu";

/// How to link statically.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum StaticTarget {
    /// With musl, which is always static.
    Musl,
    /// With glibc, told to be static: where the musl target cannot be had.
    GnuStatic,
}

impl StaticTarget {
    /// The best that this machine has, or can be given.
    pub(crate) fn choose() -> Result<Self> {
        if musl_is_there()? {
            return Ok(Self::Musl);
        }
        if run::find("rustup").is_some() {
            println!("setup: adding Rust's target {MUSL}, for statically linked programs");
            let added = run::output(run::program("rustup").args(["target", "add", MUSL]));
            if added.is_ok() && musl_is_there()? {
                return Ok(Self::Musl);
            }
        }
        println!("setup: no target {MUSL} to be had: linking with glibc, statically");
        Ok(Self::GnuStatic)
    }

    /// Its name for the compiler.
    pub(crate) fn triple(self) -> &'static str {
        match self {
            Self::Musl => MUSL,
            Self::GnuStatic => GNU,
        }
    }

    /// Tells a cargo command to build for it. Flags go to the target alone, as build scripts cannot be static.
    pub(crate) fn apply(self, cargo: &mut Command) {
        cargo.args(["--target", self.triple()]);
        if self == Self::GnuStatic {
            cargo.env("CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_RUSTFLAGS", "-C target-feature=+crt-static");
        }
    }
}

fn musl_is_there() -> Result<bool> {
    let libraries = run::output(run::program("rustc").args(["--print", "target-libdir", "--target", MUSL]))?;
    Ok(Path::new(libraries.trim()).is_dir())
}
