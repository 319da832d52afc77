//! Running other programs from the workspace.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

/// Where administrators' programs are; an ordinary user's `PATH` on Debian leaves these out.
const SYSTEM_PATHS: &str = "/usr/local/sbin:/usr/sbin:/sbin";

/// The checkout and its build directory.
#[derive(Debug, Clone)]
pub(crate) struct Workspace {
    /// The checkout.
    pub(crate) root: PathBuf,
    /// Where cargo builds.
    pub(crate) target: PathBuf,
}

impl Workspace {
    /// The one at `root`.
    pub(crate) fn find(root: PathBuf) -> Result<Self> {
        if !root.join("Cargo.toml").is_file() {
            bail!("{} is not the checkout any more: build xtask again (cargo xtask)", root.display());
        }
        let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), |dir| root.join(dir));
        Ok(Self { root, target })
    }

    /// Where the lab's kernels, programs and logs are.
    pub(crate) fn lab(&self) -> PathBuf {
        self.target.join("lab")
    }

    /// A cargo command in the checkout.
    pub(crate) fn cargo(&self, arguments: &[&str]) -> Command {
        let mut command = program(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        command.args(arguments).current_dir(&self.root);
        command
    }
}

/// A command that also finds administrators' programs, and reads nothing.
pub(crate) fn program(name: impl Into<OsString>) -> Command {
    let mut command = Command::new(name.into());
    command.env("PATH", search_path()).stdin(Stdio::null());
    command
}

/// `PATH` with the directories of administrators' programs.
fn search_path() -> OsString {
    let mut path = std::env::var_os("PATH").unwrap_or_default();
    path.push(":");
    path.push(SYSTEM_PATHS);
    path
}

/// The file of a program, if it is installed.
pub(crate) fn find(name: &str) -> Option<PathBuf> {
    std::env::split_paths(&search_path()).map(|dir| dir.join(name)).find(|file| file.is_file())
}

/// Runs it with its output on the terminal.
pub(crate) fn succeed(command: &mut Command) -> Result<()> {
    let status = command.status().with_context(|| format!("cannot run {}", shown(command)))?;
    if !status.success() {
        bail!("{} ended with {status}", shown(command));
    }
    Ok(())
}

/// Runs it and gives what it wrote to its standard output; what it wrote elsewhere goes into the error.
pub(crate) fn output(command: &mut Command) -> Result<String> {
    let output = command.output().with_context(|| format!("cannot run {}", shown(command)))?;
    if !output.status.success() {
        let said = [output.stdout, output.stderr].concat();
        bail!("{} ended with {}:\n{}", shown(command), output.status, tail(&String::from_utf8_lossy(&said)));
    }
    String::from_utf8(output.stdout).with_context(|| format!("{} does not write UTF-8", shown(command)))
}

/// A command as one would type it, without the path of the program.
fn shown(command: &Command) -> String {
    let name = Path::new(command.get_program()).file_name().unwrap_or_default();
    let words = std::iter::once(name).chain(command.get_args());
    words.map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ")
}

/// The last lines of a long text.
fn tail(text: &str) -> String {
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(20)..].join("\n")
}
