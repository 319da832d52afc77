//! The API: HTTP on a Unix socket.

mod answer;
mod events;
mod policy;
mod routes;

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::sync::Arc;

use anyhow::Context as _;
use axum::Router;
use axum::extract::Request;
use axum::extract::connect_info::{ConnectInfo, Connected};
use axum::http::{Method, Uri};
use axum::middleware::{Next, from_fn};
use axum::response::Response;
use axum::routing::{delete, get, post, put};
use axum::serve::IncomingStream;
use conuma_api::{Code, Paths, Problem};
use tokio::net::UnixListener;
use tokio::net::unix::UCred;
use tokio_util::sync::CancellationToken;
use utoipa::OpenApi;

use crate::vms::Room;
use answer::Refused;

/// Root, and the group of the socket.
const SOCKET_MODE: u32 = 0o660;

/// What a socket is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// All that the API has.
    Change,
    /// Only looking.
    View,
}

/// Who is at the other end of a connection, by the kernel's word.
#[derive(Debug, Clone, Copy)]
struct Peer {
    uid: Option<u32>,
    pid: Option<i32>,
}

impl Connected<IncomingStream<'_, UnixListener>> for Peer {
    fn connect_info(stream: IncomingStream<'_, UnixListener>) -> Self {
        let peer = stream.io().peer_cred().ok();
        Self { uid: peer.as_ref().map(UCred::uid), pid: peer.as_ref().and_then(UCred::pid) }
    }
}

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
        routes::release,
        routes::transfers,
        routes::transfer,
        routes::order,
        policy::policy,
        policy::check,
        policy::apply,
        policy::mode,
        policy::plan,
        policy::rebalance,
        policy::why,
        policy::pin,
        policy::unpin,
        policy::history,
        policy::decision,
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

/// Makes a socket for root and, if one is named, a group. It appears whole: with its owner and mode, and in the place of one
/// that a dead daemon left.
pub fn bind(path: &Path, group: Option<u32>) -> anyhow::Result<UnixListener> {
    let fresh = path.with_extension("new");
    let bind = || {
        match std::fs::remove_file(&fresh) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let listener = UnixListener::bind(&fresh)?;
        std::fs::set_permissions(&fresh, std::fs::Permissions::from_mode(SOCKET_MODE))?;
        if group.is_some() {
            std::os::unix::fs::chown(&fresh, None, group)?;
        }
        std::fs::rename(&fresh, path)?;
        Ok(listener)
    };
    bind().with_context(|| format!("cannot listen on {}", path.display()))
}

/// Serves until `stop`, then lets requests under way end.
pub async fn serve(
    listener: UnixListener,
    access: Access,
    room: Arc<Room>,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    let ended = stop.clone();
    axum::serve(listener, router(room, access).into_make_service_with_connect_info::<Peer>())
        .with_graceful_shutdown(async move { ended.cancelled().await })
        .await
        .context("the API ended")
}

fn router(room: Arc<Room>, access: Access) -> Router {
    let viewing = Router::new()
        .route(Paths::HOST, get(routes::host))
        .route(Paths::LEDGER, get(routes::ledger))
        .route(Paths::CHECK, get(routes::check))
        .route(Paths::VMS, get(routes::vms))
        .route("/v1/vms/{name}", get(routes::vm))
        .route(Paths::TRANSFERS, get(routes::transfers))
        .route("/v1/transfers/{id}", get(routes::transfer))
        .route(Paths::POLICY, get(policy::policy))
        // Tells only what would change.
        .route(Paths::POLICY_CHECK, post(policy::check))
        .route(Paths::PLAN_REBALANCE, get(policy::plan))
        .route("/v1/vms/{name}/why", get(policy::why))
        .route(Paths::HISTORY, get(policy::history))
        .route("/v1/history/{id}", get(policy::decision))
        .route(Paths::EVENTS, get(events::events))
        .route(Paths::OPENAPI, get(routes::openapi));
    let all = match access {
        Access::View => viewing.method_not_allowed_fallback(not_to_viewers),
        Access::Change => viewing
            .route(Paths::VMS, post(routes::start))
            .route("/v1/vms/{name}", delete(routes::stop))
            .route("/v1/vms/{name}/release", post(routes::release))
            .route(Paths::TRANSFERS, post(routes::order))
            .route(Paths::POLICY, post(policy::apply))
            .route(Paths::POLICY_MODE, put(policy::mode))
            .route(Paths::REBALANCE, post(policy::rebalance))
            .route("/v1/vms/{name}/pin", put(policy::pin).delete(policy::unpin))
            .method_not_allowed_fallback(wrong_method),
    };
    all.fallback(nothing_here).layer(from_fn(tell_who)).with_state(room)
}

/// Who changes what is in the log.
async fn tell_who(ConnectInfo(peer): ConnectInfo<Peer>, request: Request, next: Next) -> Response {
    if request.method() != Method::GET {
        let (method, path) = (request.method(), request.uri().path());
        tracing::info!(uid = peer.uid, pid = peer.pid, %method, path = path.escape_debug().to_string(), "asked");
    }
    next.run(request).await
}

async fn not_to_viewers(method: Method, uri: Uri) -> Refused {
    let what = format!("{method} {} changes something, and this socket is for looking only", uri.path());
    Refused(Problem::new(Code::Refused, what).with_hint("use the socket of those who may change things"))
}

async fn nothing_here(uri: Uri) -> Refused {
    Refused(
        Problem::new(Code::NotFound, format!("there is nothing at {}", uri.path()))
            .with_hint(format!("{} lists what there is", Paths::OPENAPI)),
    )
}

async fn wrong_method(method: Method, uri: Uri) -> Refused {
    Refused(Problem::new(Code::BadRequest, format!("{} does not take {method}", uri.path())))
}
