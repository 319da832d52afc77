//! The commands: read what is asked for, ask the daemon, print what came of it.

mod decisions;
mod local;
mod moves;
mod policy;
mod vms;
mod watch;

use conuma_api::Client;

use crate::Outcome;
use crate::cli::{Cli, Command, PlanArgs, PlanCommand};
use crate::console::Console;
use crate::failure;

/// Runs one command.
pub fn run(cli: Cli, console: &mut Console<'_>) -> anyhow::Result<Outcome> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let client = Client::new(cli.global.socket);
    runtime.block_on(async {
        match command(&client, cli.command, console).await {
            Err(error) if failure::is_not_found(&error) => match client.vms().await {
                Ok(vms) => {
                    let names: Vec<String> = vms.iter().map(|vm| vm.name.to_string()).collect();
                    Err(failure::with_names(error, &names))
                }
                Err(_) => Err(error),
            },
            result => result,
        }
    })
}

async fn command(client: &Client, command: Command, console: &mut Console<'_>) -> anyhow::Result<Outcome> {
    match command {
        Command::Topology(args) => local::topology(&args, console),
        Command::Plan(PlanArgs { file: None, command: Some(PlanCommand::Rebalance), .. }) => {
            decisions::plan(client, console).await
        }
        Command::Plan(args) => local::plan(&args, console),
        Command::Start(args) => vms::start(client, &args, console).await,
        Command::Stop(args) => vms::stop(client, &args, console).await,
        Command::Release(args) => vms::release(client, args, console).await,
        Command::List => vms::list(client, console).await,
        Command::Show(args) => watch::show(client, &args, console).await,
        Command::Lend(args) => moves::lend(client, args, console).await,
        Command::Recall(args) => moves::recall(client, args, console).await,
        Command::Set(args) => moves::set(client, args, console).await,
        Command::Policy(args) => policy::policy(client, args, console).await,
        Command::Rebalance(args) => decisions::rebalance(client, &args, console).await,
        Command::Pin(args) => policy::pin(client, &args, console).await,
        Command::Unpin(args) => policy::unpin(client, &args, console).await,
        Command::History(args) => decisions::history(client, args, console).await,
        Command::Events(args) => watch::events(client, &args, console).await,
        Command::Completions(args) => local::completions(&args, console),
        Command::Man(args) => local::man(&args, console),
    }
}
