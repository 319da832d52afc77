//! Answers that say no, and the reading of what was asked.

use axum::Json;
use axum::extract::Query;
use axum::extract::rejection::QueryRejection;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use conuma_api::{Code, Problem};
use conuma_topology::VmName;
use serde::de::DeserializeOwned;

/// A request that is not fulfilled.
#[derive(Debug)]
pub(super) struct Refused(pub(super) Problem);

pub(super) type Answer<T> = Result<Json<T>, Refused>;

impl From<Problem> for Refused {
    fn from(problem: Problem) -> Self {
        Self(problem)
    }
}

impl IntoResponse for Refused {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.0.code.status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        (status, Json(self.0)).into_response()
    }
}

pub(super) fn read_json<T: DeserializeOwned>(body: &[u8]) -> Result<T, Refused> {
    serde_json::from_slice(body).map_err(|error| bad(format!("the body is not understood: {error}")))
}

pub(super) fn read_query<T>(query: Result<Query<T>, QueryRejection>) -> Result<T, Refused> {
    query.map(|Query(query)| query).map_err(|error| bad(error.body_text()))
}

pub(super) fn read_name(text: &str) -> Result<VmName, Refused> {
    text.parse().map_err(|error: conuma_topology::ParseVmNameError| bad(error.to_string()))
}

pub(super) fn bad(message: String) -> Refused {
    Refused(Problem::new(Code::BadRequest, message))
}
