//! The control socket: HTTP and JSON on a unix socket that only the owner may open.

use super::api::{AttachRequest, Attached, Content, Exported, Health, Problem};
use super::{Attachments, ExportSpec, Registry, metrics};
use crate::error::{Error, Kind, Result};
use axum::extract::{Query, State};
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use backends::cache::Store;
use serde::Deserialize;
use std::sync::Arc;
use tokio::net::UnixListener;
use tokio_util::sync::CancellationToken;

/// What requests act on.
#[derive(Clone, Debug)]
pub(crate) struct Control {
    pub(crate) registry: Arc<Registry>,
    pub(crate) attachments: Arc<Attachments>,
    pub(crate) store: Option<Store>,
}

/// What is here, for those who write clients.
const OPENAPI: &str = include_str!("openapi.json");

/// Answers control requests until `stop`.
pub(crate) async fn serve(listener: UnixListener, control: Control, stop: CancellationToken) -> Result<()> {
    let router = Router::new()
        .route("/v1/health", get(health))
        .route("/v1/openapi.json", get(async || ([(CONTENT_TYPE, "application/json")], OPENAPI)))
        .route("/v1/exports", get(exports).post(add).delete(remove))
        .route("/metrics", get(figures))
        .route("/v1/attachments/content", get(content))
        .route("/v1/attachments", get(list).post(attach).delete(detach))
        .with_state(control);
    axum::serve(listener, router)
        .with_graceful_shutdown(stop.cancelled_owned())
        .await
        .map_err(|error| Error::failed(format!("the control socket failed: {error}")))
}

async fn health(State(control): State<Control>) -> Json<Health> {
    Json(Health {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        pid: std::process::id(),
        exports: control.registry.entries().iter().map(|entry| entry.name().to_owned()).collect(),
        attached: control.attachments.list().len(),
    })
}

#[derive(Deserialize)]
struct Listing {
    #[serde(default)]
    progress: bool,
}

async fn list(
    State(control): State<Control>,
    Query(Listing { progress }): Query<Listing>,
) -> Json<Vec<Attached>> {
    control.attachments.settled().await;
    Json(match progress {
        true => control.attachments.list_with_progress().await,
        false => control.attachments.list(),
    })
}

async fn exports(State(control): State<Control>) -> Json<Vec<Exported>> {
    Json(control.registry.describe().await)
}

async fn add(
    State(control): State<Control>,
    Json(spec): Json<ExportSpec>,
) -> std::result::Result<Json<Exported>, Answer> {
    Ok(Json(control.registry.add(spec).await?.describe().await))
}

#[derive(Deserialize)]
struct Name {
    name: String,
}

async fn remove(State(control): State<Control>, Query(Name { name }): Query<Name>) -> Json<Option<Exported>> {
    Json(match control.registry.remove(&name) {
        Some(entry) => Some(entry.describe().await),
        None => None,
    })
}

async fn figures(State(control): State<Control>) -> impl IntoResponse {
    let text = metrics::text(&control.registry, &control.attachments, control.store.as_ref());
    ([(CONTENT_TYPE, metrics::CONTENT_TYPE)], text)
}

async fn attach(
    State(control): State<Control>,
    Json(request): Json<AttachRequest>,
) -> std::result::Result<Json<Attached>, Answer> {
    // Dropped with this, which is when the client is gone.
    let gone = CancellationToken::new();
    let _client = gone.clone().drop_guard();
    Ok(Json(whole(async move { control.attachments.attach(request, &gone).await }).await?))
}

#[derive(Deserialize)]
struct Key {
    key: String,
}

async fn detach(
    State(control): State<Control>,
    Query(Key { key }): Query<Key>,
) -> std::result::Result<Json<Option<Attached>>, Answer> {
    Ok(Json(whole(async move { control.attachments.detach(&key).await }).await?))
}

/// Runs a change of the kernel's devices to its end, though the client that asked for it may be gone: half of one is a
/// device that nobody knows, or one that is listed and is not there.
async fn whole<T: Send + 'static>(change: impl Future<Output = Result<T>> + Send + 'static) -> Result<T> {
    match tokio::spawn(change).await {
        Ok(result) => result,
        Err(error) => Err(Error::failed(format!("a change of the kernel's devices broke off: {error}"))),
    }
}

async fn content(
    State(control): State<Control>,
    Query(Key { key }): Query<Key>,
) -> std::result::Result<Json<Content>, Answer> {
    Ok(Json(control.attachments.content(&key).await?))
}

/// An error on its way to the client.
struct Answer(Error);

impl From<Error> for Answer {
    fn from(error: Error) -> Self {
        Answer(error)
    }
}

impl IntoResponse for Answer {
    fn into_response(self) -> Response {
        let refused = self.0.kind == Kind::Refused;
        let status = match self.0.kind {
            Kind::Refused => StatusCode::CONFLICT,
            Kind::Usage => StatusCode::BAD_REQUEST,
            Kind::NoServer => StatusCode::SERVICE_UNAVAILABLE,
            _ => StatusCode::INTERNAL_SERVER_ERROR,
        };
        (status, Json(Problem { error: self.0.message, refused })).into_response()
    }
}
