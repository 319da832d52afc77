//! Building the programs as virtual hosts and guests get them: statically linked.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::run::{self, Workspace};
use crate::setup::StaticTarget;

/// A cargo profile, and what is built with it.
const PROGRAMS: [(&str, &[&str]); 2] =
    [("dist", &["conuma-agent"]), ("release", &["conumad", "conuma", "conuma-lab", "conuma-lab-init"])];

/// Packages by profile. The agent is the one program with a promised size, so it is tested as it is shipped.
const PACKAGES: [(&str, &[&str]); 2] = [("dist", &["conuma-agent"]), ("release", &["conumad", "conuma", "conuma-lab"])];

/// Builds them and gives the directory that has them all.
pub(crate) fn programs(workspace: &Workspace, target: StaticTarget) -> Result<PathBuf> {
    for (profile, packages) in PACKAGES {
        println!("build: {} ({profile})", packages.join(" "));
        let mut cargo = workspace.cargo(&["build", "--bins", "--profile", profile]);
        target.apply(&mut cargo);
        for package in packages {
            cargo.args(["--package", package]);
        }
        run::succeed(&mut cargo)?;
    }
    let together = workspace.lab().join("bin");
    fs::create_dir_all(&together).with_context(|| format!("cannot make {}", together.display()))?;
    for (profile, names) in PROGRAMS {
        let built = workspace.target.join(target.triple()).join(profile);
        for name in names {
            place(&built.join(name), &together.join(name))?;
        }
    }
    Ok(together)
}

/// A copy that is never seen half-written, and leaves a running program alone.
fn place(from: &Path, to: &Path) -> Result<()> {
    let aside = to.with_extension("new");
    fs::copy(from, &aside).with_context(|| format!("cannot copy {}", from.display()))?;
    fs::rename(&aside, to).with_context(|| format!("cannot put {} in place", to.display()))
}
