//! Installs what is missing, fetches the lab's kernels, and says what it does.
//!
//! Every step looks at what is there first, so that a second run does nothing. What takes several steps is built aside and
//! renamed into place at the end, so that half-done work is never taken for done.

mod apt;
mod distribution;
mod kernels;
mod programs;
mod target;

use std::fs::{self, File};
use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context, Result, bail};

use self::apt::Apt;
use self::distribution::Distribution;
pub(crate) use self::target::StaticTarget;
use crate::run::Workspace;

/// What the machine is to be made ready for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Needs {
    /// Booting virtual hosts.
    Lab,
    /// That, and tests that compare with other programs.
    Tests,
}

/// What a machine has that is ready.
#[derive(Debug, Clone)]
pub(crate) struct Ready {
    /// Unpacked kernels, by role.
    pub(crate) kernels: PathBuf,
    /// What statically linked programs are built for.
    pub(crate) target: StaticTarget,
}

/// Makes the machine ready.
pub(crate) fn ensure(workspace: &Workspace, needs: Needs) -> Result<Ready> {
    let began = Instant::now();
    if std::env::consts::ARCH != "x86_64" {
        bail!("the lab emulates x86 hosts with x86 programs; this machine is {}", std::env::consts::ARCH);
    }
    let lab = workspace.lab();
    fs::create_dir_all(&lab).with_context(|| format!("cannot make {}", lab.display()))?;
    let lock = File::create(lab.join("setup.lock")).context("cannot make the lock file of the set-up")?;
    lock.lock().context("cannot lock the set-up")?;

    let distribution = Distribution::read()?;
    let target = StaticTarget::choose()?;
    let missing = programs::missing(needs, target);
    let kernels = lab.join("kernels");
    let absent = kernels::absent(&kernels, distribution);
    if missing.is_empty() && absent.is_empty() {
        println!("setup: all there ({})", target.triple());
        return Ok(Ready { kernels, target });
    }
    let Some(distribution) = distribution else {
        let list = missing.iter().map(|program| format!("\n  {} ({})", program.name, program.why));
        let kernels =
            absent.iter().map(|role| format!("\n  an unpacked kernel at {}", kernels.join(role.dir()).display()));
        bail!(
            "set-up knows Debian 12, Debian 13 and Ubuntu 24.04, and this is none of them. Missing:{}",
            list.chain(kernels).collect::<String>()
        );
    };
    let mut apt = Apt::new(distribution, &lab)?;
    kernels::tell_lacking(distribution);
    programs::install(&mut apt, &missing)?;
    let still = programs::missing(needs, target);
    if !still.is_empty() {
        let names: Vec<&str> = still.iter().map(|program| program.name).collect();
        bail!("all was installed, but these are still missing or too old: {}", names.join(", "));
    }
    for role in absent {
        kernels::fetch(&mut apt, &kernels, role)?;
    }
    println!("setup: done in {:.0} s ({})", began.elapsed().as_secs_f32(), target.triple());
    Ok(Ready { kernels, target })
}
