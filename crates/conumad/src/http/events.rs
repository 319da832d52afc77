//! The event stream.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use axum::response::Sse;
use axum::response::sse::{Event as Frame, KeepAlive};
use conuma_api::{Event, EventKind, Holder, Problem, TransferRequest};
use conuma_topology::VmName;
use futures_util::Stream;
use futures_util::stream::unfold;
use serde::Deserialize;
use utoipa::IntoParams;

use super::answer::{Refused, bad, read_query};
use crate::vms::Room;

/// So that both ends notice when the other is gone.
const PING: Duration = Duration::from_secs(15);

/// Which events.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct EventQuery {
    /// Only those that concern this VM.
    #[param(value_type = Option<String>)]
    vm: Option<VmName>,
    /// Only those of these kinds, separated by commas, and `missed`.
    #[param(example = "transfer-ended,vm-gone")]
    kind: Option<String>,
}

/// What a reader of the stream wants to hear of.
struct Wanted {
    vm: Option<VmName>,
    /// None: all.
    kinds: Vec<String>,
}

impl Wanted {
    fn read(query: EventQuery) -> Result<Self, Refused> {
        let kinds = query.kind.as_deref().unwrap_or_default().split(',').map(str::trim);
        let kinds: Vec<String> = kinds.filter(|kind| !kind.is_empty()).map(str::to_owned).collect();
        match kinds.iter().find(|kind| !EventKind::NAMES.contains(&kind.as_str())) {
            Some(kind) => Err(bad(format!("there are no events {kind:?}, only {}", EventKind::NAMES.join(", ")))),
            None => Ok(Self { vm: query.vm, kinds }),
        }
    }

    fn includes(&self, what: &EventKind) -> bool {
        let kind = self.kinds.is_empty() || self.kinds.iter().any(|kind| kind == what.name());
        let missed = matches!(what, EventKind::Missed { .. });
        missed || (kind && self.vm.as_ref().is_none_or(|vm| concerns(what, vm)))
    }
}

/// What happens from now on, as server-sent events
///
/// The `event` of each is its kind, the `data` an `Event`. Readers pass over kinds they do not know.
#[utoipa::path(get, path = "/v1/events", params(EventQuery),
    responses((status = 200, description = "A stream of `Event`", body = Event, content_type = "text/event-stream"),
        (status = 400, body = Problem)))]
pub(super) async fn events(
    State(room): State<Arc<Room>>,
    query: Result<Query<EventQuery>, QueryRejection>,
) -> Result<Sse<impl Stream<Item = Result<Frame, Infallible>>>, Refused> {
    let wanted = Wanted::read(read_query(query)?)?;
    // Listening begins before the answer does: what happens after that is not missed.
    let listener = room.bus.listen();
    let stop = room.stop.clone();
    let stream = unfold((listener, stop, wanted), |(mut listener, stop, wanted)| async move {
        loop {
            let event = stop.run_until_cancelled(listener.next()).await??;
            if wanted.includes(&event.what) {
                return Some((Ok(frame(&event)), (listener, stop, wanted)));
            }
        }
    });
    Ok(Sse::new(stream).keep_alive(KeepAlive::new().interval(PING)))
}

fn frame(event: &Event) -> Frame {
    let data = serde_json::to_string(event).unwrap_or_default();
    Frame::default().event(event.what.name()).id(event.sequence.to_string()).data(data)
}

/// Whether an event has to do with a VM. What has to do with none concerns everyone, and so does the stage of
/// a transfer between holders that are not named.
fn concerns(what: &EventKind, vm: &VmName) -> bool {
    let is = |holder: &Holder| *holder == Holder::Vm(vm.clone());
    match what {
        EventKind::TransferBegan { plan, .. } => plan.moves.iter().any(|step| is(&step.from) || is(&step.to)),
        EventKind::TransferStage { from, to, .. } => from.iter().chain(to).any(is),
        EventKind::TransferEnded(transfer) => {
            let named = match &transfer.request {
                TransferRequest::Lend { from, to, .. } => from == vm || to == vm,
                TransferRequest::Recall { to, .. } => to == vm,
                TransferRequest::Set { vm: of, .. } => of == vm,
                TransferRequest::Rebalance { .. } => false,
            };
            named || transfer.legs.iter().any(|leg| is(&leg.planned.from) || is(&leg.planned.to))
        }
        other => other.vm().is_none_or(|of| of == vm),
    }
}
