//! What needs no daemon: `topology`, `plan`, `completions`, `man`.

use std::path::Path;

use anyhow::Context;
use conuma_binding::{Accel, BindingPlan, PlanOptions, Reserve, VmSpec, render_table};
use conuma_hypervisor::HypervisorFacts;
use conuma_hypervisor::qemu::{command_line, shell_text};
use conuma_topology::{DrawOptions, draw};

use crate::Outcome;
use crate::cli::{CompletionsArgs, ManArgs, PlanArgs, TopologyArgs};
use crate::console::Console;
use crate::failure::WithHint;
use crate::{reference, source};

pub(super) fn topology(args: &TopologyArgs, console: &mut Console<'_>) -> anyhow::Result<Outcome> {
    let machine = source::machine(args.machine.topology.as_deref(), &args.root)?;
    let width = console.columns;
    console.result(&machine, |machine, style| draw(machine, &DrawOptions { width, color: style.is_color() }))?;
    Ok(Outcome::Done)
}

pub(super) fn plan(args: &PlanArgs, console: &mut Console<'_>) -> anyhow::Result<Outcome> {
    let (Some(file), None) = (&args.file, &args.command) else {
        let what = "a VM file and `rebalance` are two plans".into();
        return Err(WithHint { what, hint: "ask for one at a time".into() }.into());
    };
    let text = std::fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
    let spec = VmSpec::parse(&text, &file.display().to_string())?;
    let machine = source::machine(args.machine.topology.as_deref(), &args.root)?;
    let reserve = Reserve { cpus: args.reserve.reserve_cpus.clone(), memory_per_node: args.reserve.reserve_memory };
    let dir = args.state.join("vms").join(spec.name.as_str());
    let options = PlanOptions { accel: Accel::default(), cid: Some(args.cid), dir };
    let plan = BindingPlan::new(&spec, &machine, &reserve, &options)?;
    if !args.qemu {
        console.result(&plan, |plan, _| render_table(plan))?;
        return Ok(Outcome::Done);
    }
    let facts = HypervisorFacts::qemu_10();
    let words = command_line(&plan, &facts);
    console
        .remark(&format!("for {}; `conuma start --preview --json` tells what the daemon would run", facts.version))?;
    let all: Vec<&String> = std::iter::once(&args.qemu_program).chain(&words).collect();
    console.result(&all, |_, _| shell_text(Path::new(&args.qemu_program), &words))?;
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
