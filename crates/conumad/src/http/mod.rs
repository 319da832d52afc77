//! The API: HTTP on a Unix socket.

mod answer;
mod events;
mod routes;

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::sync::Arc;

use anyhow::Context as _;
use axum::Router;
use axum::routing::get;
use conuma_api::{Code, Paths, Problem};
use tokio::net::UnixListener;
use tokio_util::sync::CancellationToken;
use utoipa::OpenApi;

use crate::vms::Room;
use answer::Refused;

/// Who may use the API: root and the daemon's group.
const SOCKET_MODE: u32 = 0o660;

/// The description of the API, made from the code that answers.
#[derive(OpenApi)]
#[openapi(
    info(
        title = "Conuma",
        description = "The host daemon of Conuma: who holds which core and how much memory of which node, and \
                       how that moves between virtual machines. Served on a Unix socket. Every answer with a \
                       status of 400 or above has a `Problem` as its body.",
        license(name = "Apache-2.0 OR MIT")
    ),
    paths(
        routes::host,
        routes::ledger,
        routes::check,
        routes::vms,
        routes::vm,
        routes::start,
        routes::stop,
        routes::transfers,
        routes::transfer,
        routes::order,
        events::events,
        routes::openapi
    ),
    components(schemas(conuma_api::Event, conuma_api::Problem))
)]
struct Description;

/// The description of the API as JSON.
pub fn openapi() -> String {
    let mut text = Description::openapi().to_pretty_json().unwrap_or_default();
    text.push('\n');
    text
}

/// Makes the socket. It appears whole: with its mode, and in the place of one that a dead daemon left.
pub fn bind(path: &Path) -> anyhow::Result<UnixListener> {
    let fresh = path.with_extension("new");
    let bind = || {
        match std::fs::remove_file(&fresh) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let listener = UnixListener::bind(&fresh)?;
        std::fs::set_permissions(&fresh, std::fs::Permissions::from_mode(SOCKET_MODE))?;
        std::fs::rename(&fresh, path)?;
        Ok(listener)
    };
    bind().with_context(|| format!("cannot listen on {}", path.display()))
}

/// Serves until `stop`, then lets requests under way end.
pub async fn serve(listener: UnixListener, room: Arc<Room>, stop: CancellationToken) -> anyhow::Result<()> {
    let ended = stop.clone();
    axum::serve(listener, router(room))
        .with_graceful_shutdown(async move { ended.cancelled().await })
        .await
        .context("the API ended")
}

fn router(room: Arc<Room>) -> Router {
    Router::new()
        .route(Paths::HOST, get(routes::host))
        .route(Paths::LEDGER, get(routes::ledger))
        .route(Paths::CHECK, get(routes::check))
        .route(Paths::VMS, get(routes::vms).post(routes::start))
        .route("/v1/vms/{name}", get(routes::vm).delete(routes::stop))
        .route(Paths::TRANSFERS, get(routes::transfers).post(routes::order))
        .route("/v1/transfers/{id}", get(routes::transfer))
        .route(Paths::EVENTS, get(events::events))
        .route(Paths::OPENAPI, get(routes::openapi))
        .fallback(nothing_here)
        .method_not_allowed_fallback(wrong_method)
        .with_state(room)
}

async fn nothing_here(uri: axum::http::Uri) -> Refused {
    Refused(
        Problem::new(Code::NotFound, format!("there is nothing at {}", uri.path()))
            .with_hint(format!("{} lists what there is", Paths::OPENAPI)),
    )
}

async fn wrong_method(method: axum::http::Method, uri: axum::http::Uri) -> Refused {
    Refused(Problem::new(Code::BadRequest, format!("{} does not take {method}", uri.path())))
}
