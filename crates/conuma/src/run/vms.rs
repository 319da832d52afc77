//! `start`, `stop`, `list`.

use std::time::Duration;

use anyhow::Context;
use conuma_api::{AgentState, Client, ReleaseAnswer, StopQuery, VmDetail};
use conuma_topology::VmName;
use serde::Serialize;
use serde_json::json;

use super::watch::Changes;
use crate::Outcome;
use crate::cli::{ReleaseArgs, StartArgs, StopArgs, WaitFor};
use crate::console::Console;
use crate::failure::WithHint;
use crate::render;

pub(super) async fn start(client: &Client, args: &StartArgs, console: &mut Console<'_>) -> anyhow::Result<Outcome> {
    let text = std::fs::read_to_string(&args.file).with_context(|| format!("cannot read {}", args.file.display()))?;
    if args.preview {
        let plan = client.preview_start(&text).await?;
        console.result(&plan, render::start::preview)?;
        return Ok(Outcome::Done);
    }
    let mut changes = Changes::listen(client, None, &[], Some(args.deadline)).await?;
    console.progress(&[format!("starting {}", args.file.display())])?;
    let Ok(started) = tokio::time::timeout(args.deadline, client.start(&text, args.wait != WaitFor::None)).await else {
        let what = format!("QEMU did not run the guest of {} within {:?}", args.file.display(), args.deadline);
        return Err(
            WithHint { what, hint: "the daemon goes on: `conuma list` and `conuma events` tell how".into() }.into()
        );
    };
    let mut vm = started?;
    if args.wait == WaitFor::Agent {
        vm = agent(client, vm, &mut changes, args.deadline, console).await?;
    }
    console.result(&vm, |vm, style| render::vm::list(std::slice::from_ref(&vm.summary), style))?;
    Ok(Outcome::Done)
}

/// Waits until the agent answers.
async fn agent(
    client: &Client,
    mut vm: VmDetail,
    changes: &mut Changes,
    budget: Duration,
    console: &mut Console<'_>,
) -> anyhow::Result<VmDetail> {
    let name = vm.summary.name.clone();
    while vm.agent.state != AgentState::Connected && vm.summary.agent != AgentState::None {
        let pid = vm.process.as_ref().map(|process| format!(" (pid {})", process.pid)).unwrap_or_default();
        console.progress(&[format!("{name} runs{pid}; waiting for the agent in the guest")])?;
        if !changes.wait_for(|event| event.vm() == Some(&name)).await? {
            let why = vm.agent.last_error.map(|error| format!(": {error}")).unwrap_or_default();
            let what = format!("{name} runs, but its agent did not answer within {budget:?}{why}");
            let hint = format!("`conuma show {name}` tells how it stands; --wait boot does not wait for the agent");
            return Err(WithHint { what, hint }.into());
        }
        vm = client.vm(&name).await.with_context(|| format!("{name} ended while it started"))?;
    }
    Ok(vm)
}

pub(super) async fn release(client: &Client, args: ReleaseArgs, console: &mut Console<'_>) -> anyhow::Result<Outcome> {
    let vms = match args.all {
        true => client.vms().await?.into_iter().map(|vm| vm.name).collect(),
        false => args.vms,
    };
    if !args.yes {
        for vm in &vms {
            client.vm(vm).await?;
        }
        let names = vms.iter().map(VmName::as_str).collect::<Vec<_>>().join(", ");
        let what = match vms.is_empty() {
            true => "there is no VM to release".to_owned(),
            false => format!(
                "{names} would run on every CPU beside the other VMs, and Conuma would forget them; nothing was done"
            ),
        };
        return Err(WithHint { what, hint: "--yes does it".into() }.into());
    }
    let mut released = Vec::new();
    for vm in vms {
        console.progress(&[format!("releasing {vm}")])?;
        let answer = client.release(&vm).await?;
        released.push(Released { vm, answer });
    }
    console.result(&released, |released, style| {
        released
            .iter()
            .map(|Released { vm, answer }| {
                let agent = match &answer.why_not {
                    None => String::new(),
                    Some(why) => style.warn(&format!(
                        "; its agent was not told ({why}), the guest keeps to its CPUs until it boots anew"
                    )),
                };
                format!("{} runs on without Conuma{agent}\n", style.bold(vm.as_str()))
            })
            .collect()
    })?;
    Ok(Outcome::Done)
}

/// A VM that was released, as `--json` prints it.
#[derive(Serialize)]
struct Released {
    vm: VmName,
    #[serde(flatten)]
    answer: ReleaseAnswer,
}

pub(super) async fn stop(client: &Client, args: &StopArgs, console: &mut Console<'_>) -> anyhow::Result<Outcome> {
    let how = if args.force { "ending" } else { "asking the guest to power off:" };
    console.progress(&[format!("{how} {}", args.vm)])?;
    let deadline_ms = (!args.force).then(|| u64::try_from(args.deadline.as_millis()).unwrap_or(u64::MAX));
    client.stop(&args.vm, StopQuery { force: args.force, wait: true, deadline_ms }).await?;
    console.result(&json!({ "stopped": args.vm }), |_, style| {
        format!("{} is stopped, what it held is free\n", style.bold(args.vm.as_str()))
    })?;
    Ok(Outcome::Done)
}

pub(super) async fn list(client: &Client, console: &mut Console<'_>) -> anyhow::Result<Outcome> {
    console.result(&client.vms().await?, |vms, style| render::vm::list(vms, style))?;
    Ok(Outcome::Done)
}
