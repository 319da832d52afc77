//! The lab program: set up, built and run.

use std::path::Path;
use std::process::{Command, ExitCode, ExitStatus, Stdio};

use anyhow::{Context, Result};

use crate::build;
use crate::run::{self, Workspace};
use crate::setup::{self, Needs, Ready};

/// Runs one of its commands on this terminal.
pub(crate) fn run(workspace: &Workspace, command: &str, arguments: &[String]) -> Result<ExitCode> {
    let ready = setup::ensure(workspace, Needs::Lab)?;
    let programs = build::programs(workspace, ready.target)?;
    let mut lab = program(workspace, &ready, &programs, command);
    let status = lab.args(arguments).stdin(Stdio::inherit()).status().context("cannot run the lab")?;
    Ok(code(status))
}

/// The lab program with a command of its own; arguments may follow.
pub(crate) fn program(workspace: &Workspace, ready: &Ready, programs: &Path, command: &str) -> Command {
    let mut lab = run::program(programs.join("conuma-lab"));
    lab.current_dir(&workspace.root);
    lab.arg("--kernels").arg(&ready.kernels).arg("--bin-dir").arg(programs);
    lab.arg("--work").arg(workspace.lab().join("work")).arg(command);
    lab
}

fn code(status: ExitStatus) -> ExitCode {
    status.code().and_then(|code| u8::try_from(code).ok()).map_or(ExitCode::FAILURE, ExitCode::from)
}
