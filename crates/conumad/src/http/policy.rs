//! The policy, its decisions, their history, and pins.

use axum::Json;
use axum::body::Bytes;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Path, Query, State};
use conuma_api::{
    DecisionInfo, DecisionSummary, HistoryQuery, ModeOrder, PinAnswer, PinOrder, PolicyApplied, PolicyCheck,
    PolicyInfo, PolicyText, Problem, VmWhy,
};

use super::answer::{Answer, bad, read_json, read_name, read_query};
use super::routes::{Shared, stopping};
use crate::wire::decision::policy_mode;

/// The policy in force, its mode and its pins
#[utoipa::path(get, path = "/v1/policy", responses((status = 200, body = PolicyInfo)))]
pub(super) async fn policy(State(room): Shared) -> Answer<PolicyInfo> {
    Ok(Json(room.balance.policy().await.map_err(stopping)?))
}

/// Whether a policy could be applied, and what it would change
///
/// Changes nothing: those who may only look may ask, too.
#[utoipa::path(post, path = "/v1/policy/check", request_body = PolicyText,
    responses((status = 200, body = PolicyCheck), (status = 400, body = Problem)))]
pub(super) async fn check(State(room): Shared, body: Bytes) -> Answer<PolicyCheck> {
    Ok(Json(room.balance.check(read_json(&body)?).await.map_err(stopping)??))
}

/// Apply a policy
///
/// If anything is wrong with it, the one before stays in force.
#[utoipa::path(post, path = "/v1/policy", request_body = PolicyText,
    responses((status = 200, body = PolicyApplied),
        (status = 409, description = "What it guarantees is not there", body = Problem),
        (status = 422, description = "It has errors, with their lines", body = Problem)))]
pub(super) async fn apply(State(room): Shared, body: Bytes) -> Answer<PolicyApplied> {
    let text: PolicyText = read_json(&body)?;
    Ok(Json(room.balance.apply(text).await.map_err(stopping)??))
}

/// Switch whether decisions are made and carried out: `off`, `advise` or `auto`
#[utoipa::path(put, path = "/v1/policy/mode", request_body = ModeOrder,
    responses((status = 200, body = PolicyInfo), (status = 400, body = Problem)))]
pub(super) async fn mode(State(room): Shared, body: Bytes) -> Answer<PolicyInfo> {
    let ModeOrder { mode } = read_json(&body)?;
    let mode = policy_mode(mode).ok_or_else(|| bad("there are the modes off, advise and auto".into()))?;
    Ok(Json(room.balance.set_mode(mode).await.map_err(stopping)??))
}

/// What would be decided now, in any mode
#[utoipa::path(get, path = "/v1/plan/rebalance", responses((status = 200, body = DecisionInfo)))]
pub(super) async fn plan(State(room): Shared) -> Answer<DecisionInfo> {
    Ok(Json(room.balance.plan().await.map_err(stopping)??))
}

/// Decide now and carry that out once, in any mode
///
/// Answers when its transfers have begun. Where nothing is to be done, its state is `done` and it has no moves.
#[utoipa::path(post, path = "/v1/rebalance", responses((status = 200, body = DecisionInfo)))]
pub(super) async fn rebalance(State(room): Shared) -> Answer<DecisionInfo> {
    Ok(Json(room.balance.rebalance().await.map_err(stopping)??))
}

/// Why a VM holds what it holds: what it is believed to want, what holds for it, what was decided
#[utoipa::path(get, path = "/v1/vms/{name}/why", params(("name" = String, Path, description = "The VM")),
    responses((status = 200, body = VmWhy), (status = 404, body = Problem), (status = 409, body = Problem)))]
pub(super) async fn why(State(room): Shared, Path(name): Path<String>) -> Answer<VmWhy> {
    Ok(Json(room.balance.why(read_name(&name)?).await.map_err(stopping)??))
}

/// Pin a VM: the policy leaves it as it is
#[utoipa::path(put, path = "/v1/vms/{name}/pin", params(("name" = String, Path, description = "The VM")),
    request_body = PinOrder,
    responses((status = 200, body = PinAnswer), (status = 400, body = Problem), (status = 404, body = Problem)))]
pub(super) async fn pin(State(room): Shared, Path(name): Path<String>, body: Bytes) -> Answer<PinAnswer> {
    let order = if body.is_empty() { PinOrder::default() } else { read_json(&body)? };
    Ok(Json(room.balance.pin(read_name(&name)?, order).await.map_err(stopping)??))
}

/// Unpin a VM: the policy may move its cores and memory again
#[utoipa::path(delete, path = "/v1/vms/{name}/pin", params(("name" = String, Path, description = "The VM")),
    responses((status = 200, body = PinAnswer), (status = 404, body = Problem)))]
pub(super) async fn unpin(State(room): Shared, Path(name): Path<String>) -> Answer<PinAnswer> {
    Ok(Json(room.balance.unpin(read_name(&name)?).await.map_err(stopping)??))
}

/// The decisions that were made, newest first
#[utoipa::path(get, path = "/v1/history", params(HistoryQuery),
    responses((status = 200, body = Vec<DecisionSummary>), (status = 400, body = Problem)))]
pub(super) async fn history(
    State(room): Shared,
    query: Result<Query<HistoryQuery>, QueryRejection>,
) -> Answer<Vec<DecisionSummary>> {
    Ok(Json(room.balance.history.list(read_query(query)?).await?))
}

/// One decision: what it was made from, what moved and why, what came of it
#[utoipa::path(get, path = "/v1/history/{id}", params(("id" = u64, Path, description = "Its number")),
    responses((status = 200, body = DecisionInfo), (status = 404, body = Problem)))]
pub(super) async fn decision(State(room): Shared, Path(id): Path<String>) -> Answer<DecisionInfo> {
    let id: u64 = id.parse().map_err(|_| bad(format!("`{id}` is not the number of a decision")))?;
    Ok(Json(room.balance.history.get(id).await?))
}
