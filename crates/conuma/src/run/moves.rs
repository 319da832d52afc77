//! `lend`, `recall`, `set`: order a transfer and follow it to its end.

use std::collections::BTreeMap;
use std::time::Duration;

use conuma_api::{Client, CoreDemand, Demand, MemoryDemand, TransferRequest};
use conuma_topology::{Bytes, NodeId};

use super::policy::millis;
use super::watch::{Changes, now_unix_ms};
use crate::Outcome;
use crate::cli::{How, LendArgs, RecallArgs, SetArgs, What};
use crate::console::Console;
use crate::failure::WithHint;
use crate::render::{policy, transfer};

pub(super) async fn lend(client: &Client, args: LendArgs, console: &mut Console<'_>) -> anyhow::Result<Outcome> {
    let LendArgs { from, to, what, how, below_guarantee, how_long } = args;
    let request = TransferRequest::Lend { from, to, what: demand(what)?, below_guarantee };
    order(client, request, &how, how_long, console).await
}

pub(super) async fn recall(client: &Client, args: RecallArgs, console: &mut Console<'_>) -> anyhow::Result<Outcome> {
    let RecallArgs { to, from, what, how } = args;
    let what = Some(demand(what)?).filter(|what| *what != Demand::default());
    order(client, TransferRequest::Recall { to, from, what }, &how, None, console).await
}

pub(super) async fn set(client: &Client, args: SetArgs, console: &mut Console<'_>) -> anyhow::Result<Outcome> {
    let SetArgs { vm, what, how, below_guarantee, how_long } = args;
    let request = TransferRequest::Set { vm, what: demand(what)?, below_guarantee };
    order(client, request, &how, how_long, console).await
}

/// What the flags ask for; amounts given for one node twice add up.
fn demand(what: What) -> anyhow::Result<Demand> {
    let mut nodes: BTreeMap<NodeId, Bytes> = BTreeMap::new();
    let mut anywhere = None;
    for given in &what.memory {
        let sum = match given.node {
            Some(node) => nodes.entry(node).or_default(),
            None => anywhere.get_or_insert_default(),
        };
        *sum += given.amount;
    }
    let memory = match anywhere {
        Some(total) if nodes.is_empty() => Some(MemoryDemand::Total(total)),
        None => (!nodes.is_empty()).then_some(MemoryDemand::PerNode(nodes)),
        Some(_) => {
            let what = "--memory names nodes, and also a size without one".into();
            let hint = "say it for every node, or only how much in all".into();
            return Err(WithHint { what, hint }.into());
        }
    };
    Ok(Demand { cores: what.cpus.map(CoreDemand::Cpus).or(what.cores.map(CoreDemand::Count)), memory })
}

async fn order(
    client: &Client,
    request: TransferRequest,
    how: &How,
    pinned: Option<Duration>,
    console: &mut Console<'_>,
) -> anyhow::Result<Outcome> {
    if how.preview {
        let plan = client.preview_transfer(request).await?;
        let ledger = client.ledger().await?;
        console.result(&plan, |plan, style| transfer::preview(plan, &ledger, style))?;
        return Ok(Outcome::Done);
    }
    // Listens before it asks, so that no stage passes unseen.
    let kinds: &[&str] = if how.quiet { &["transfer-ended"] } else { &[] };
    let mut changes = Changes::listen(client, None, kinds, how.deadline).await?;
    let mut moving = client.transfer_pinned(request, pinned.map(millis)).await?;
    loop {
        if !how.quiet {
            console.progress(&transfer::progress(&moving, console.err_style))?;
        }
        if moving.state.is_final() {
            break;
        }
        let id = moving.id;
        if !changes.wait_for(|event| event.transfer() == Some(id)).await? {
            let what = format!("transfer {id} is still under way after {:?}", how.deadline.unwrap_or_default());
            let hint = "it goes on: `conuma events` and `conuma show` tell what becomes of it".into();
            return Err(WithHint { what, hint }.into());
        }
        moving = client.transfer_by_id(id).await?;
    }
    console.result(&moving, transfer::result)?;
    say_pinned(client, moving.id, console).await?;
    Outcome::of_transfer(moving.state).ok_or_else(|| {
        let what = format!("the daemon does not say in words this program knows what became of transfer {}", moving.id);
        WithHint { what, hint: "conuma and conumad should be of the same version".into() }.into()
    })
}

/// Says which VMs this pinned: all while a policy is at work, else only if it was asked for. What cannot be found out is not
/// said: the transfer has ended all the same.
async fn say_pinned(client: &Client, transfer: u64, console: &mut Console<'_>) -> anyhow::Result<()> {
    let Ok(in_force) = client.policy().await else { return Ok(()) };
    match policy::pinned_by_transfer(&in_force.pins, transfer, now_unix_ms()) {
        Some(line) => Ok(console.remark(&line)?),
        None => Ok(()),
    }
}
