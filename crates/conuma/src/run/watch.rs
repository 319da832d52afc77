//! Following what happens: `events`, `show` and its `--watch`, and waiting for a change.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use conuma_api::{CheckReport, Client, Event, EventKind, EventStream, HostInfo};
use conuma_topology::VmName;
use serde::Serialize;
use tokio::time::{Instant, Interval, MissedTickBehavior};

use crate::Outcome;
use crate::cli::{EventsArgs, ShowArgs};
use crate::console::Console;
use crate::render;

/// How often to look again when no event says so.
const TICK: Duration = Duration::from_millis(500);

/// Says when it is worth looking again: at an event, now and then without, never after a deadline.
pub(super) struct Changes {
    events: Option<EventStream>,
    tick: Interval,
    deadline: Option<Instant>,
}

impl Changes {
    /// Listens from now on, for `budget` at most; to all that concerns `vm`, or to some `kinds` only.
    pub(super) async fn listen(
        client: &Client,
        vm: Option<&VmName>,
        kinds: &[&str],
        budget: Option<Duration>,
    ) -> anyhow::Result<Self> {
        let events = Some(client.events(vm, kinds).await?);
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        tick.tick().await;
        Ok(Self { events, tick, deadline: budget.map(|budget| Instant::now() + budget) })
    }

    /// Waits until it is worth looking again; `false` when the deadline has passed.
    pub(super) async fn wait_for(&mut self, concerns: impl Fn(&EventKind) -> bool) -> anyhow::Result<bool> {
        loop {
            let Self { events, tick, deadline } = self;
            let next = async {
                match events {
                    Some(stream) => stream.next().await,
                    None => std::future::pending().await,
                }
            };
            let over = async {
                match deadline {
                    Some(deadline) => tokio::time::sleep_until(*deadline).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                event = next => match event? {
                    Some(Event { what, .. }) if concerns(&what) || matches!(what, EventKind::Missed { .. }) => return Ok(true),
                    Some(_) => {}
                    // The daemon ended the stream: looking again tells why.
                    None => self.events = None,
                },
                _ = tick.tick() => return Ok(true),
                () = over => return Ok(false),
            }
        }
    }
}

pub(super) async fn events(client: &Client, args: &EventsArgs, console: &mut Console<'_>) -> anyhow::Result<Outcome> {
    let kinds: Vec<&str> = args.kinds.iter().map(String::as_str).collect();
    let mut events = client.events(args.vm.as_ref(), &kinds).await?;
    while let Some(event) = events.next().await? {
        console.result_line(&event, render::event::line)?;
    }
    console.remark("the daemon ended the stream")?;
    Ok(Outcome::Done)
}

/// The host as `--json` prints it.
#[derive(Serialize)]
struct HostView {
    #[serde(flatten)]
    host: HostInfo,
    check: CheckReport,
}

pub(super) async fn show(client: &Client, args: &ShowArgs, console: &mut Console<'_>) -> anyhow::Result<Outcome> {
    if !args.watch {
        picture(client, args, console).await?;
        return Ok(Outcome::Done);
    }
    let mut changes = Changes::listen(client, args.vm.as_ref(), &[], None).await?;
    let mut first = true;
    loop {
        console.next_picture(first)?;
        picture(client, args, console).await?;
        first = false;
        changes.wait_for(|_| true).await?;
    }
}

async fn picture(client: &Client, args: &ShowArgs, console: &mut Console<'_>) -> anyhow::Result<()> {
    match &args.vm {
        Some(name) if args.why => {
            let why = client.why(name).await?;
            let now = now_unix_ms();
            one(console, args.watch, &why, |why, style| render::why::show(why, now, style))
        }
        Some(name) => {
            let vm = client.vm(name).await?;
            let now = now_unix_ms();
            one(console, args.watch, &vm, |vm, style| render::vm::show(vm, now, style))
        }
        None => {
            let view = HostView { host: client.host().await?, check: client.check().await? };
            one(console, args.watch, &view, |view, style| render::host::show(&view.host, &view.check, style))
        }
    }
}

/// One of many JSON values is a line; a single one is laid out.
fn one<T: Serialize>(
    console: &mut Console<'_>,
    of_many: bool,
    value: &T,
    text: impl FnOnce(&T, crate::style::Style) -> String,
) -> anyhow::Result<()> {
    if of_many { console.result_line(value, text) } else { console.result(value, text) }
}

pub(super) fn now_unix_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
