//! What every handler has, and the one router over all dialects.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::body::HttpBody as _;
use axum::extract::{MatchedPath, Request};
use axum::http::{HeaderMap, Method, StatusCode};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC};
use sandpool_core::ids::{Identifier, PoolName};
use sandpool_node::{Caller, Node};
use sandpool_objects::Pools;
use sandpool_telemetry::Exporter;
use serde_json::json;

use crate::auth::{Auth, Principal, Role};
use crate::problem::Problem;
use crate::{azure, console, mcp, metrics, native, openapi, traced};

/// What stays as it is in one segment of a path, in the value of a parameter, and in a file's name in a header (RFC 3986
/// calls it unreserved; RFC 8187 allows it).
pub(crate) const SEGMENT: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~');

/// What handlers work with. Cheap to clone.
#[derive(Clone, Debug)]
pub struct App {
    /// The service layer.
    pub node: Node,
    /// Who may call.
    pub auth: Arc<Auth>,
    /// The pools as objects, and how they look to clients. Every pool of `node` is in it.
    pub pools: Pools,
    /// What stands behind the dot in the names of hosts under which ports of sessions are reached.
    pub preview_host: Arc<str>,
    /// `/metrics` is answered to who has no token.
    pub open_metrics: bool,
    /// This program's version.
    pub version: &'static str,
}

/// All dialects.
pub fn router(app: App) -> Router {
    router_telling(app, None).0
}

/// All dialects, whose requests are told to an exporter; and what is counted, for whoever tells that.
pub fn router_telling(app: App, exporter: Option<Exporter>) -> (Router, metrics::Counted) {
    let requests = Arc::<metrics::Requests>::default();
    let counted = metrics::Counted::new(app.clone(), Arc::clone(&requests), exporter.clone());
    let alive = || async { Json(json!({ "status": "alive" })) };
    let router = Router::new()
        .route("/healthz", get(alive))
        .merge(native::routes(app.clone()))
        .merge(mcp::native::routes(app.clone()))
        .merge(mcp::hosted::routes(app.clone()))
        .merge(openapi::routes())
        .merge(console::routes(app.clone()))
        .merge(metrics::routes(counted.clone()))
        .merge(crate::auth::routes(Arc::clone(&app.auth)))
        .method_not_allowed_fallback(native::wrong_method)
        .fallback_service(azure::service(app.clone()))
        .layer(axum::middleware::from_fn(without_body))
        .layer(axum::middleware::from_fn_with_state(app, native::ports::by_host))
        .layer(axum::middleware::from_fn_with_state(requests, metrics::count));
    let router = match exporter.filter(|exporter| exporter.signals().traces) {
        Some(exporter) => router.layer(axum::middleware::from_fn_with_state(exporter, traced::request)),
        None => router,
    };
    (router, counted)
}

/// The longest body that is read of a request that means nothing by it, in bytes.
const MAX_MEANINGLESS: usize = 64 * 1024;

/// How long such a body may take.
const PATIENCE: Duration = Duration::from_secs(30);

/// Reads and drops the body of a GET, HEAD or DELETE, which means nothing here: left unread, it would make the kernel reset the
/// connection under the answer.
async fn without_body(mut request: Request, next: Next) -> Response {
    // What is passed on to a program is the program's. Paths without a route are looked at by Azure's dialect, which knows whose they are.
    let route = request.extensions().get::<MatchedPath>().map(MatchedPath::as_str);
    let is_ours = route.is_some_and(|path| !path.starts_with("/preview/") && !path.contains("/ports/{port}"));
    if is_ours {
        let method = request.method().clone();
        if let Err(problem) = drop_body(&method, request.body_mut()).await {
            return problem.into_response();
        }
    }
    next.run(request).await
}

/// Reads and drops a body that means nothing.
///
/// # Errors
/// 413 for one that is too long, or does not come.
pub(crate) async fn drop_body(method: &Method, body: &mut Body) -> Result<(), Problem> {
    if !matches!(*method, Method::GET | Method::HEAD | Method::DELETE) || body.is_end_stream() {
        return Ok(());
    }
    let body = std::mem::take(body);
    let read = tokio::time::timeout(PATIENCE, axum::body::to_bytes(body, MAX_MEANINGLESS)).await;
    if matches!(read, Ok(Ok(_))) {
        return Ok(());
    }
    let text = format!("A {method} takes no body; this one is too long, or did not come.");
    Err(Problem::new(StatusCode::PAYLOAD_TOO_LARGE, "RequestTooLarge", text))
}

impl App {
    /// Who asks, if they may do this, in this pool, with this session.
    ///
    /// # Errors
    /// 401 or 403, and what is missing.
    pub(crate) async fn admit(
        &self,
        headers: &HeaderMap,
        role: Role,
        pool: &PoolName,
        session: Option<&Identifier>,
    ) -> Result<Principal, Problem> {
        let principal = self.auth.verify(headers).await?;
        principal.may(role, pool, session)?;
        Ok(principal)
    }
}

impl Principal {
    /// As the service layer wants to know them.
    pub(crate) fn caller(&self) -> Caller {
        Caller { subject: self.subject.clone() }
    }
}
