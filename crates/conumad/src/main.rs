//! Wires the daemon to this host.

use std::io::{IsTerminal as _, Write as _};
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Context as _;
use clap::Parser as _;
use conuma_hypervisor::CgroupRoot;
use conuma_hypervisor::qemu::Qemu;
use conuma_linux::procfs::ProcFs;
use conumad::{Config, Daemon, Surroundings, http, notify};
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;

fn main() -> ExitCode {
    let config = Config::parse();
    if config.openapi {
        return match std::io::stdout().write_all(http::openapi().as_bytes()) {
            Ok(()) => ExitCode::SUCCESS,
            Err(_) => ExitCode::FAILURE,
        };
    }
    let result = log_to_stderr(&config.log).and_then(|()| {
        // What it does is short, or waits; each more would only be woken for nothing.
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
        runtime.context("cannot start")?.block_on(run(config))
    });
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Nobody to tell if this fails, too.
            let _ = writeln!(std::io::stderr(), "conumad: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run(config: Config) -> anyhow::Result<()> {
    // Before anything is begun that an early signal would leave half done.
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let settings = config.settings();
    conumad::config::make_private_dir(&settings.state)
        .with_context(|| format!("cannot make {}", settings.state.display()))?;
    let proc = ProcFs::new(&config.root);
    let gates = CgroupRoot::prepare(&config.cgroup_root, proc.clone())
        .with_context(|| format!("cannot use the cgroup {}", config.cgroup_root.display()))?;
    let hypervisor = Qemu::probe(&config.qemu, Arc::new(gates), proc, &settings.state)
        .await
        .context("cannot use QEMU (--qemu names the program)")?;
    let surroundings = Surroundings::read(&config.root, &config.cgroup_root, Arc::new(hypervisor))?;
    let daemon = Daemon::start(settings, surroundings).await?;
    let watchdog = tokio::spawn(notify::watchdog(daemon.core(), daemon.stopped()));
    notify::ready();
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    tracing::info!("stopping; VMs run on");
    notify::stopping();
    watchdog.abort();
    daemon.stop().await;
    // Fails, as it should, while there are VMs in it.
    let _ = std::fs::remove_dir(&config.cgroup_root);
    Ok(())
}

fn log_to_stderr(filter: &str) -> anyhow::Result<()> {
    let filter = EnvFilter::try_new(filter).with_context(|| format!("--log {filter} is not a filter"))?;
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal());
    // The journal has its own times.
    match std::env::var_os("JOURNAL_STREAM") {
        Some(_) => log.without_time().init(),
        None => log.init(),
    }
    Ok(())
}
