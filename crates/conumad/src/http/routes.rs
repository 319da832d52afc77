//! What is answered to requests.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::body::Bytes;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::IntoResponse;
use conuma_api::{
    CheckReport, Code, HostInfo, LedgerInfo, Problem, ReleaseAnswer, StartAnswer, StartQuery, StopQuery, Transfer,
    TransferAnswer, TransferOrder, VmDetail, VmSummary,
};
use conuma_balancing::TransferId;

use super::answer::{Answer, Refused, bad, read_json, read_name, read_query};
use crate::clock::unix_ms;
use crate::core::{NotBegun, Stopped};
use crate::vms::Room;
use crate::wire;

pub(super) type Shared = State<Arc<Room>>;

pub(super) fn stopping(_: Stopped) -> Refused {
    Refused(Problem::new(Code::Stopping, "the daemon is stopping"))
}

/// The machine, its reserve and who holds what
#[utoipa::path(get, path = "/v1/host", responses((status = 200, body = HostInfo)))]
pub(super) async fn host(State(room): Shared) -> Answer<HostInfo> {
    let known = room.core.look(|engine, _| (wire::ledger(engine), wire::resources(&engine.host().reserve)));
    let (ledger, reserve) = known.await.map_err(stopping)?;
    Ok(Json(HostInfo {
        version: env!("CARGO_PKG_VERSION").into(),
        started_unix_ms: unix_ms(room.started),
        machine: room.machine.clone(),
        reserve,
        ledger,
    }))
}

/// Who holds what
#[utoipa::path(get, path = "/v1/ledger", responses((status = 200, body = LedgerInfo)))]
pub(super) async fn ledger(State(room): Shared) -> Answer<LedgerInfo> {
    Ok(Json(room.core.look(|engine, _| wire::ledger(engine)).await.map_err(stopping)?))
}

/// The invariants, held against what is in force on the host now
#[utoipa::path(get, path = "/v1/check", responses((status = 200, body = CheckReport)))]
pub(super) async fn check(State(room): Shared) -> Answer<CheckReport> {
    Ok(Json(room.check().await?))
}

/// All VMs, by name
#[utoipa::path(get, path = "/v1/vms", responses((status = 200, body = Vec<VmSummary>)))]
pub(super) async fn vms(State(room): Shared) -> Answer<Vec<VmSummary>> {
    Ok(Json(room.summaries().await?))
}

/// One VM in full
#[utoipa::path(get, path = "/v1/vms/{name}", params(("name" = String, Path, description = "The VM")),
    responses((status = 200, body = VmDetail), (status = 404, body = Problem)))]
pub(super) async fn vm(State(room): Shared, Path(name): Path<String>) -> Answer<VmDetail> {
    Ok(Json(room.detail(&read_name(&name)?).await?))
}

/// Start a VM, or tell what that would do
///
/// The body is the text of a VM file.
#[utoipa::path(post, path = "/v1/vms", params(StartQuery),
    request_body(content = String, content_type = "application/toml"),
    responses((status = 200, description = "What would be done, or the VM", body = StartAnswer),
        (status = 409, body = Problem), (status = 422, body = Problem), (status = 502, body = Problem)))]
pub(super) async fn start(
    State(room): Shared,
    query: Result<Query<StartQuery>, QueryRejection>,
    body: Bytes,
) -> Answer<StartAnswer> {
    let query = read_query(query)?;
    let file = std::str::from_utf8(&body).map_err(|error| bad(format!("the VM file is not UTF-8: {error}")))?;
    Ok(Json(match query.preview {
        true => StartAnswer::Plan(Box::new(room.preview_start(file).await?)),
        false => StartAnswer::Vm(Box::new(room.start(file, query.wait).await?)),
    }))
}

/// Stop a VM
#[utoipa::path(delete, path = "/v1/vms/{name}", params(("name" = String, Path, description = "The VM"), StopQuery),
    responses((status = 204, description = "It has ended, or was told to"), (status = 404, body = Problem),
        (status = 504, body = Problem)))]
pub(super) async fn stop(
    State(room): Shared,
    Path(name): Path<String>,
    query: Result<Query<StopQuery>, QueryRejection>,
) -> Result<StatusCode, Refused> {
    room.stop(&read_name(&name)?, read_query(query)?).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Let go of a VM: it runs on with every CPU and the memory it has, without Conuma
#[utoipa::path(post, path = "/v1/vms/{name}/release", params(("name" = String, Path, description = "The VM")),
    responses((status = 200, body = ReleaseAnswer), (status = 404, body = Problem), (status = 502, body = Problem)))]
pub(super) async fn release(State(room): Shared, Path(name): Path<String>) -> Answer<ReleaseAnswer> {
    Ok(Json(room.release(&read_name(&name)?).await?))
}

/// The transfers that are remembered: those that ended, oldest first, then those under way
#[utoipa::path(get, path = "/v1/transfers", responses((status = 200, body = Vec<Transfer>)))]
pub(super) async fn transfers(State(room): Shared) -> Answer<Vec<Transfer>> {
    let known = room
        .core
        .look(|engine, now| engine.reports().iter().map(|report| wire::transfer(report, now)).collect::<Vec<_>>());
    Ok(Json(known.await.map_err(stopping)?))
}

/// One transfer: its stages, what moved, what did not and why
#[utoipa::path(get, path = "/v1/transfers/{id}", params(("id" = u64, Path, description = "Its number")),
    responses((status = 200, body = Transfer), (status = 404, body = Problem)))]
pub(super) async fn transfer(State(room): Shared, Path(id): Path<String>) -> Answer<Transfer> {
    let id: u64 = id.parse().map_err(|_| bad(format!("`{id}` is not the number of a transfer")))?;
    Ok(Json(known_transfer(&room, TransferId(id)).await?))
}

/// Lend, recall or set, or tell what that would move
#[utoipa::path(post, path = "/v1/transfers", request_body = TransferOrder,
    responses((status = 200, description = "What would move, or the transfer that was begun", body = TransferAnswer),
        (status = 404, body = Problem), (status = 409, body = Problem)))]
pub(super) async fn order(State(room): Shared, body: Bytes) -> Answer<TransferAnswer> {
    let TransferOrder { request, preview, pin_for_ms } = read_json(&body)?;
    if preview {
        let request = wire::engine_request(request);
        let planned = room.core.look(move |engine, _| engine.preview(&request)).await.map_err(stopping)?;
        return Ok(Json(TransferAnswer::Plan(wire::plan(&planned.map_err(|why| wire::refusal(&why))?))));
    }
    let pin_for = pin_for_ms.map(Duration::from_millis);
    let begun = match room.balance.order(request.clone(), pin_for).await {
        // People's transfers do not hang on the policy.
        Err(NotBegun::Stopped(_)) => room.core.request(wire::engine_request(request)).await,
        begun => begun,
    };
    let id = begun.map_err(|why| wire::not_begun(&why))?;
    tracing::info!(transfer = id.0, "transfer accepted");
    Ok(Json(TransferAnswer::Transfer(Box::new(known_transfer(&room, id).await?))))
}

/// This description
#[utoipa::path(get, path = "/v1/openapi.json", responses((status = 200, description = "OpenAPI 3.1")))]
pub(super) async fn openapi() -> impl IntoResponse {
    ([(CONTENT_TYPE, "application/json")], super::openapi())
}

async fn known_transfer(room: &Room, id: TransferId) -> Result<Transfer, Refused> {
    let known = room.core.look(move |engine, now| engine.report(id).map(|report| wire::transfer(&report, now)));
    known.await.map_err(stopping)?.ok_or_else(|| {
        let problem = Problem::new(Code::NotFound, format!("transfer {id} is not known"));
        Refused(problem.with_hint("only the last transfers are remembered"))
    })
}
