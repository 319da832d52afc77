//! All that a change has to pass besides the tests.

use anyhow::{Result, bail};
use clap::Args;

use crate::run::{self, Workspace};
use crate::tidy;

/// What to leave out.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Without licences and sources of dependencies, which need the program cargo-deny.
    #[arg(long)]
    without_deny: bool,
}

/// Runs every check, also after one has failed.
pub(crate) fn run(workspace: &Workspace, options: &Options) -> Result<()> {
    let mut failed = Vec::new();
    let mut step = |name: &'static str, result: Result<()>| {
        if let Err(error) = result {
            println!("check: {name}: {error:#}");
            failed.push(name);
        }
    };
    let cargo = |arguments: &[&str]| {
        println!("check: cargo {}", arguments.join(" "));
        run::succeed(&mut workspace.cargo(arguments))
    };
    step("format", cargo(&["fmt", "--all", "--check"]));
    println!("check: tidy");
    step("tidy", tidy::run(&workspace.root));
    if options.without_deny {
        println!("check: licences and sources of dependencies left out");
    } else if run::find("cargo-deny").is_none() {
        step(
            "deny",
            Err(anyhow::anyhow!("`cargo install --locked cargo-deny` first, or leave it out with --without-deny")),
        );
    } else {
        step("deny", cargo(&["deny", "check", "bans", "licenses", "sources"]));
    }
    step("lints", cargo(&["clippy", "--workspace", "--all-targets", "--", "--deny", "warnings"]));
    println!("check: cargo doc");
    let mut doc = workspace.cargo(&["doc", "--workspace", "--no-deps"]);
    step("docs", run::succeed(doc.env("RUSTDOCFLAGS", "--deny warnings")));
    step("command line reference", cargo(&["test", "--quiet", "--package", "conuma", "--test", "generated"]));
    step("API document", cargo(&["test", "--quiet", "--package", "conumad", "--test", "openapi"]));
    if !failed.is_empty() {
        bail!("not in order: {}", failed.join(", "));
    }
    println!("check: all in order");
    Ok(())
}
