//! How requests come to a handler of the SDK: who asks, the protocol's own sessions, and clients that go away.
//!
//! A client of the old protocol that begins with `initialize` gets a session of the protocol: without one, neither its word that a
//! call is cancelled nor a subscription would find its way. Nothing of ours hangs on it. One that the server does not know, since it
//! was started anew or has forgotten it, is made again under its name; and who calls without one is answered all the same.
//!
//! The name of such a session is bound to its caller: for everybody else there is none of that name.

use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::Request;
use axum::http::header::{CONTENT_LENGTH, WWW_AUTHENTICATE};
use axum::http::request::Parts;
use axum::http::{HeaderValue, Method, StatusCode};
use axum::response::{IntoResponse, Response};
use hyper::body::{Frame, SizeHint};
use rmcp::ServerHandler;
use rmcp::model::{InitializeRequestParams, ProtocolVersion};
use rmcp::transport::streamable_http_server::session::local::{LocalSessionManager, SessionConfig};
use rmcp::transport::streamable_http_server::session::never::NeverSessionManager;
use rmcp::transport::streamable_http_server::session::{SessionState, SessionStore, SessionStoreError};
use rmcp::transport::{StreamableHttpServerConfig, StreamableHttpService};
use sandpool_core::ids::PoolName;
use sandpool_node::NodeError;
use serde::Deserialize;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tower::ServiceExt;

use super::METADATA;
use super::place::Asker;
use crate::app::App;
use crate::auth::{Principal, Role, Scope};
use crate::problem::Problem;

/// The largest request, in bytes: the longest code fits, when every character of it is escaped.
const MAX_BODY: usize = 20 << 20;

/// The largest request that is looked at for whether it begins a session of the protocol, in bytes.
const MAX_OPENING: usize = 64 * 1024;

/// Sessions of the protocol at the same time. Who comes when there are as many is answered without one.
const MOST_SESSIONS: usize = 2_000;

/// When one that is not used is forgotten: later than the longest wait of a call.
const IDLE: Duration = Duration::from_secs(15 * 60);

/// Ended ones that are remembered as such.
const MOST_ENDED: usize = 1_024;

/// Pages of this machine may call; all others that say where they come from are refused, so that no page of somebody
/// else's can speak for a browser's user.
const ORIGINS: [&str; 6] = [
    "http://localhost:*",
    "https://localhost:*",
    "http://127.0.0.1:*",
    "https://127.0.0.1:*",
    "http://[::1]:*",
    "https://[::1]:*",
];

const SESSION: &str = "mcp-session-id";

/// The door to a handler.
#[derive(Clone)]
pub(super) struct Entrance<H: ServerHandler> {
    pub(super) app: App,
    /// For the new protocol, and for those who call without a session of the old one.
    plain: StreamableHttpService<H, NeverSessionManager>,
    /// For sessions of the old one.
    lasting: StreamableHttpService<H, LocalSessionManager>,
    sessions: Arc<LocalSessionManager>,
}

impl<H: ServerHandler + Clone> Entrance<H> {
    pub(super) fn new(app: App, handler: H) -> Self {
        let config = || {
            StreamableHttpServerConfig::default()
                .with_max_request_body_bytes(MAX_BODY)
                // Whoever reaches it needs a token, by whatever name; what a browser could be led to do is in its Origin.
                .disable_allowed_hosts()
                .with_allowed_origins(ORIGINS)
                // A stream that breaks off ends its call: there is nothing to come back for.
                .with_sse_retry(None)
        };
        let mut sessions = LocalSessionManager::default();
        let mut each = SessionConfig::default();
        each.keep_alive = Some(IDLE);
        each.sse_retry = None;
        each.completed_cache_ttl = Duration::from_secs(1);
        sessions.session_config = each;
        let sessions = Arc::new(sessions);
        let plain = {
            let handler = handler.clone();
            let config = config().with_legacy_session_mode(false).with_json_response(true);
            StreamableHttpService::new(move || Ok(handler.clone()), Arc::new(NeverSessionManager::default()), config)
        };
        let mut lasting = config().with_legacy_session_mode(true);
        lasting.session_store = Some(Arc::new(Known { sessions: Arc::clone(&sessions), ended: Mutex::default() }));
        let lasting = StreamableHttpService::new(move || Ok(handler.clone()), Arc::clone(&sessions), lasting);
        Self { app, plain, lasting, sessions }
    }

    /// Answers a request, for the pool that its address names.
    pub(super) async fn enter(&self, pool: Option<&str>, request: Request) -> Response {
        let (mut parts, mut body) = request.into_parts();
        let asker = match self.asker(pool, &parts).await {
            Ok(asker) => asker,
            Err(problem) => return refusal(problem, &parts),
        };
        if asker.principal.scopes.is_some() {
            let Ok(whole) = axum::body::to_bytes(body, MAX_BODY).await else { return too_large(MAX_BODY) };
            // What it is in the end is asked again there. Here a client hears in time what to ask its user for.
            if let Some(needed) = needed(&whole)
                && let Err(failure) = asker.principal.allows(needed)
            {
                return refusal(failure.into(), &parts);
            }
            body = Body::from(whole);
        }
        let owner = owner(&asker.principal);
        parts.extensions.insert(asker);
        if let Some(named) = parts.headers.get(SESSION) {
            let Some(name) = named.to_str().ok().and_then(|named| own(named, &owner)) else { return no_session() };
            parts.headers.insert(SESSION, name);
            return self.in_session(parts, body).await;
        }
        if !may_open(&parts) {
            return self.plain(Request::from_parts(parts, body)).await;
        }
        let Ok(body) = axum::body::to_bytes(body, MAX_OPENING).await else { return too_large(MAX_OPENING) };
        let is_full = || async { self.sessions.sessions.read().await.len() >= MOST_SESSIONS };
        let opens = is_opening(&body) && !is_full().await;
        let request = Request::from_parts(parts, Body::from(body));
        if !opens {
            return self.plain(request).await;
        }
        let mut response = self.lasting(request).await;
        if let Some(name) = response.headers().get(SESSION).and_then(|name| name.to_str().ok())
            && let Ok(bound) = HeaderValue::from_str(&format!("{name}.{}", mark(name, &owner)))
        {
            response.headers_mut().insert(SESSION, bound);
        }
        response
    }

    async fn plain(&self, request: Request) -> Response {
        let response = self.plain.clone().oneshot(request).await;
        response.map_or_else(|never| match never {}, |response| response.map(Body::new))
    }

    async fn lasting(&self, request: Request) -> Response {
        let response = self.lasting.clone().oneshot(request).await;
        response.map_or_else(|never| match never {}, |response| response.map(Body::new))
    }

    /// A request in a session of the protocol. A call whose client goes away before it was answered is cancelled, as it would
    /// be without a session.
    async fn in_session(&self, parts: Parts, body: Body) -> Response {
        if parts.method != Method::POST {
            return self.lasting(Request::from_parts(parts, body)).await;
        }
        let Ok(body) = axum::body::to_bytes(body, MAX_BODY).await else { return too_large(MAX_BODY) };
        let message = serde_json::from_slice::<Message>(&body);
        let call = message.ok().filter(|message| message.method.as_deref() == Some("tools/call"));
        let gone = call.and_then(|call| call.id).map(|id| Gone {
            entrance: self.clone(),
            parts: parts.clone(),
            id,
            is_answered: false,
        });
        let response = self.lasting(Request::from_parts(parts, Body::from(body))).await;
        response.map(|body| Body::new(Heard { body, gone }))
    }

    /// Who asks, and where. What they may do is asked with each session.
    async fn asker(&self, pool: Option<&str>, parts: &Parts) -> Result<Asker, Problem> {
        let principal = self.app.auth.verify(&parts.headers).await?;
        let Some(pool) = pool else { return Ok(Asker { principal, pool: None }) };
        let no_pool = || Problem::from(NodeError::NoPool(pool.chars().take(80).collect()));
        let pool = PoolName::parse(pool).map_err(|_| no_pool())?;
        let own = principal.session.as_deref().and_then(|own| sandpool_core::ids::Identifier::parse(own).ok());
        principal.may(Role::Executor, &pool, own.as_ref())?;
        self.app.node.spec(&pool).map_err(|_| no_pool())?;
        Ok(Asker { principal, pool: Some(pool) })
    }
}

/// The refusal. Where it challenges, it also says where it is said who gives tokens (RFC 9728), and to whom nothing was asked of, which
/// scopes there are.
fn refusal(problem: Problem, parts: &Parts) -> Response {
    let is_unknown = problem.status == StatusCode::UNAUTHORIZED;
    let mut response = problem.into_response();
    if let Some(challenge) = response.headers().get(WWW_AUTHENTICATE).and_then(|challenge| challenge.to_str().ok()) {
        let place = format!("{}{METADATA}{}", crate::azure::origin(parts), parts.uri.path());
        let usual = [Scope::Execute, Scope::Files].map(Scope::word).join(" ");
        let scope = if is_unknown { format!(r#", scope="{usual}""#) } else { String::new() };
        if let Ok(challenge) = HeaderValue::from_str(&format!(r#"{challenge}, resource_metadata="{place}"{scope}"#)) {
            response.headers_mut().insert(WWW_AUTHENTICATE, challenge);
        }
    }
    response
}

/// The scope that a message needs.
fn needed(body: &[u8]) -> Option<Scope> {
    let message = serde_json::from_slice::<Value>(body).ok()?;
    match message["method"].as_str()? {
        "tools/call" => Some(super::scope_of(message["params"]["name"].as_str()?)),
        "resources/read" | "resources/subscribe" => Some(super::scope_of_resource(message["params"]["uri"].as_str()?)),
        "tasks/get" | "tasks/cancel" | "tasks/update" => Some(Scope::Execute),
        _ => None,
    }
}

fn no_session() -> Response {
    (StatusCode::NOT_FOUND, "There is no such session of the protocol: begin one with initialize.").into_response()
}

fn too_large(limit: usize) -> Response {
    let text = format!("The request could not be read: it has more than {limit} bytes, or did not come whole.");
    (StatusCode::PAYLOAD_TOO_LARGE, text).into_response()
}

/// Whether it may be the first request of a client: those are small, and say how small.
fn may_open(parts: &Parts) -> bool {
    let length = parts.headers.get(CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse::<usize>().ok());
    parts.method == Method::POST && length.is_some_and(|length| length <= MAX_OPENING)
}

/// What is read of a message to know what it is.
#[derive(Deserialize)]
struct Message {
    id: Option<Value>,
    method: Option<String>,
}

/// Whether it is the old protocol's `initialize`. The new one has none, and says its version with each request.
fn is_opening(body: &[u8]) -> bool {
    // Most are something else, which is seen without keeping what they carry.
    let is_initialize = |message: Message| message.method.as_deref() == Some("initialize");
    serde_json::from_slice(body).is_ok_and(is_initialize)
        && serde_json::from_slice::<Value>(body)
            .is_ok_and(|message| message["params"]["_meta"]["io.modelcontextprotocol/protocolVersion"].is_null())
}

/// Whose a session of the protocol is.
fn owner(principal: &Principal) -> String {
    format!("{}\n{}", principal.tenant, principal.subject)
}

/// What binds a name to its owner. The name itself cannot be guessed; who has learnt it has nothing without being its owner.
fn mark(name: &str, owner: &str) -> String {
    let digest = Sha256::new().chain_update(name).chain_update("\n").chain_update(owner).finalize();
    hex::encode(&digest[..8])
}

/// The SDK's name of a session, if it is the owner's.
fn own(named: &str, owner: &str) -> Option<HeaderValue> {
    let (name, mark_given) = named.split_once('.')?;
    let is_own = name.len() <= 64 && mark(name, owner) == mark_given;
    is_own.then(|| HeaderValue::from_str(name).ok())?
}

/// Which sessions of the protocol there could be: all that were not ended. There is nothing in them that could be lost.
struct Known {
    sessions: Arc<LocalSessionManager>,
    ended: Mutex<std::collections::VecDeque<String>>,
}

impl Known {
    fn ended(&self) -> std::sync::MutexGuard<'_, std::collections::VecDeque<String>> {
        self.ended.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait::async_trait]
impl SessionStore for Known {
    async fn load(&self, name: &str) -> Result<Option<SessionState>, SessionStoreError> {
        if self.ended().iter().any(|ended| ended == name) || self.sessions.sessions.read().await.len() >= MOST_SESSIONS
        {
            return Ok(None);
        }
        let mut client = InitializeRequestParams::default();
        client.protocol_version = ProtocolVersion::V_2025_11_25;
        Ok(Some(SessionState::new(client)))
    }

    async fn store(&self, _: &str, _: &SessionState) -> Result<(), SessionStoreError> {
        Ok(())
    }

    async fn delete(&self, name: &str) -> Result<(), SessionStoreError> {
        let mut ended = self.ended();
        if ended.len() >= MOST_ENDED {
            ended.pop_front();
        }
        ended.push_back(name.to_owned());
        Ok(())
    }
}

/// A call in a session of the protocol. Dropped before it was answered, it is cancelled: its client has gone.
struct Gone<H: ServerHandler + Clone> {
    entrance: Entrance<H>,
    parts: Parts,
    id: Value,
    is_answered: bool,
}

impl<H: ServerHandler + Clone> Drop for Gone<H> {
    fn drop(&mut self) {
        if self.is_answered {
            return;
        }
        let note = json!({
            "jsonrpc": "2.0", "method": "notifications/cancelled",
            "params": { "requestId": self.id, "reason": "The client has gone." },
        });
        let mut parts = self.parts.clone();
        parts.headers.remove(CONTENT_LENGTH);
        parts.headers.remove("mcp-method");
        parts.headers.remove("mcp-name");
        let (entrance, request) = (self.entrance.clone(), Request::from_parts(parts, Body::from(note.to_string())));
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(async move { entrance.lasting(request).await });
        }
    }
}

/// An answer, until it was heard to its end.
struct Heard<H: ServerHandler + Clone> {
    body: Body,
    gone: Option<Gone<H>>,
}

impl<H: ServerHandler + Clone> hyper::body::Body for Heard<H> {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let polled = Pin::new(&mut self.body).poll_frame(context);
        let is_over = matches!(polled, Poll::Ready(None)) || self.body.is_end_stream();
        if let Some(gone) = self.gone.as_mut().filter(|_| is_over) {
            gone.is_answered = true;
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
