//! What needs no daemon: `topology`, `plan`, `completions`, `man`.

use anyhow::Context;

use crate::Outcome;
use crate::cli::{CompletionsArgs, ManArgs, PlanArgs, TopologyArgs};
use crate::console::Console;
use crate::{reference, source};

pub(super) fn topology(args: &TopologyArgs, console: &mut Console<'_>) -> anyhow::Result<Outcome> {
    let machine = source::machine(args.machine.topology.as_deref(), &args.root)?;
    console.result(&machine, |machine, _| machine.to_text())?;
    Ok(Outcome::Done)
}

pub(super) fn plan(args: &PlanArgs, console: &mut Console<'_>) -> anyhow::Result<Outcome> {
    let _machine = source::machine(args.machine.topology.as_deref(), &args.root)?;
    console.remark("")?;
    Ok(Outcome::Done)
}

pub(super) fn completions(args: &CompletionsArgs, console: &mut Console<'_>) -> anyhow::Result<Outcome> {
    reference::completions(args.shell, console.out)?;
    Ok(Outcome::Done)
}

pub(super) fn man(args: &ManArgs, console: &mut Console<'_>) -> anyhow::Result<Outcome> {
    let place = || format!("cannot write man pages into {}", args.dir.display());
    std::fs::create_dir_all(&args.dir).with_context(place)?;
    let names = reference::man_pages(&args.dir).with_context(place)?;
    console
        .result(&names, |names, _| names.iter().map(|name| format!("{}\n", args.dir.join(name).display())).collect())?;
    Ok(Outcome::Done)
}
