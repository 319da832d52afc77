//! Wires the guest agent: arguments, one thread, one listener, one watch.

use std::io::{Write as _, stdout};
use std::process::ExitCode;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use conuma_agent::args::{self, Command, HELP, Options};
use conuma_agent::cgroups::WATCHED;
use conuma_agent::holding::Depth;
use conuma_agent::kernel::Linux;
use conuma_agent::listen::Listener;
use conuma_agent::serve::{Agent, converse};
use conuma_agent::watch::Watch;
use conuma_agent::{error, info, warn};
use tokio::task::{JoinHandle, LocalSet, spawn_local};
use tokio::time::{MissedTickBehavior, interval, sleep};

/// How often the effect of a holding is looked at while some CPU is not to be used. New cgroups
/// are told by the kernel at once; this is for what it does not tell.
const LOOK: Duration = Duration::from_secs(5);

/// Every so many looks everything is read anew.
const LOOKS_PER_FULL_LOOK: u32 = 12;

fn main() -> ExitCode {
    let options = match args::parse(std::env::args().skip(1)) {
        Ok(Command::Serve(options)) => options,
        Ok(Command::Help) => return show(HELP),
        Ok(Command::Version) => return show(concat!("conuma-agent ", env!("CARGO_PKG_VERSION"), "\n")),
        Err(message) => {
            error!("{message}");
            return ExitCode::from(2);
        }
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().max_blocking_threads(4).build();
    let served = match runtime {
        Ok(runtime) => runtime.block_on(LocalSet::new().run_until(serve(options))),
        Err(error) => Err(error).context("cannot start"),
    };
    match served {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            error!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

fn show(text: &str) -> ExitCode {
    match stdout().write_all(text.as_bytes()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

async fn serve(options: Options) -> anyhow::Result<()> {
    let kernel = Arc::new(Linux::new(&options.root));
    let agent = Rc::new(Agent::start(kernel, &options.run, options.keep_auto_online)?);
    let cgroups = options.root.join(WATCHED);
    let watch = Watch::new(&cgroups).unwrap_or_else(|error| {
        warn!("{} cannot be watched, so new cgroups are seen late: {error}", cgroups.display());
        Watch::nothing()
    });
    let listener = Listener::bind(&options.listen)
        .await
        .with_context(|| format!("cannot listen on {} (choose another address with --listen)", options.listen))?;
    info!("listening on {}", options.listen);

    let mut conversation: Option<JoinHandle<()>> = None;
    let mut looks = interval(LOOK);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut count = 0;
    loop {
        tokio::select! {
            stream = listener.accept() => match stream {
                Ok(stream) => {
                    // The host talks on one connection; if it makes a new one, the old one is dead.
                    if let Some(old) = conversation.take() {
                        old.abort();
                    }
                    let agent = Rc::clone(&agent);
                    conversation = Some(spawn_local(async move {
                        if let Err(error) = converse(agent, stream).await {
                            warn!("the conversation with the host ended: {error:#}");
                        }
                    }));
                }
                Err(error) => {
                    warn!("a connection could not be accepted: {error}");
                    sleep(Duration::from_secs(1)).await;
                }
            },
            changed = watch.changed() => {
                changed.context("cannot watch cgroups")?;
                if agent.is_restricted() {
                    agent.watch_over(Depth::Light);
                }
            }
            _ = looks.tick(), if agent.is_restricted() => {
                count += 1;
                let full = count % LOOKS_PER_FULL_LOOK == 0;
                agent.watch_over(if full { Depth::Everything } else { Depth::Light });
            }
        }
    }
}
