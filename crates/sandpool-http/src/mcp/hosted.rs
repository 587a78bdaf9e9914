//! Hosted MCP servers: somebody else's, from npm, PyPI or an image, that run in a pool's sandboxes and are offered at
//! `/pools/{pool}/servers/{server}/mcp`.
//!
//! ```text
//! hosted   who asks, and HTTP            live       one session's server, and those who wait for it
//! message  what one message is           exchange   who hears what
//! ```
//!
//! They speak over their standard input and output; to the outside it is Streamable HTTP of the revisions 2025-03-26 to 2025-11-25.
//! An MCP session is a server of its own: `initialize` opens a session of the pool and starts the server in it, DELETE ends both, and so
//! does the pool's cool-down when nothing is asked. What is said is passed on as it is, in both directions: tools, resources, prompts,
//! sampling, elicitation, roots and what comes after them.
//!
//! The server ends with our own process; its client then hears that its session is not there, and begins anew, as the protocol
//! has it.

mod exchange;
mod live;
mod message;

use std::collections::HashMap;
use std::convert::Infallible;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::{Path, Request, State};
use axum::http::header::{ACCEPT, CONTENT_TYPE, ORIGIN};
use axum::http::request::Parts;
use axum::http::{HeaderName, HeaderValue, StatusCode, Uri};
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use futures::{StreamExt, stream};
use sandpool_core::ids::{Identifier, PoolName, SessionKey};
use sandpool_node::{Node, NodeError, Open};
use sandpool_objects::HostedServer;

use crate::app::App;
use crate::auth::{Principal, Role, Scope};
use crate::problem::Problem;
use live::{Call, ENDED, Live, MAX_MESSAGE, NotPassed};
use message::{Id, Kind, Message};

/// Names an MCP session.
const SESSION_ID: HeaderName = HeaderName::from_static("mcp-session-id");

/// How long a server may take to answer `initialize`, its start included.
const BEGIN: Duration = Duration::from_secs(60);

/// How long an answer is waited for before the client is sent a stream to wait on: what comes before is one JSON answer.
const HOLD: Duration = Duration::from_secs(5);

/// How long a stream may be silent before a comment says that it lives.
const HEARTBEAT: Duration = Duration::from_secs(15);

/// JSON-RPC's word for a message that is none.
const INVALID_REQUEST: i32 = -32_600;

/// What SDKs answer for a session that is not there.
const NO_SESSION: i32 = -32_001;

/// Everything that requests share.
#[derive(Clone)]
struct Hosted {
    app: App,
    sessions: Arc<Mutex<HashMap<String, Entry>>>,
}

/// One MCP session, and whose it is.
#[derive(Clone)]
struct Entry {
    pool: PoolName,
    server: String,
    key: SessionKey,
    live: Arc<Live>,
}

/// A request whose caller is known, and may use that pool.
struct Asked<'a> {
    hosted: &'a Hosted,
    principal: Principal,
    pool: PoolName,
    name: String,
    server: HostedServer,
    parts: Parts,
}

/// Its routes.
pub(crate) fn routes(app: App) -> Router {
    let hosted = Hosted { app, sessions: Arc::default() };
    Router::new().route("/pools/{pool}/servers/{server}/mcp", get(listen).post(say).delete(end)).with_state(hosted)
}

/// A message of the client.
async fn say(
    State(hosted): State<Hosted>,
    Path((pool, server)): Path<(String, String)>,
    request: Request,
) -> Result<Response, Problem> {
    let (parts, body) = request.into_parts();
    let asked = hosted.asked(&pool, &server, parts).await?;
    let takes = asked.takes()?;
    let body = axum::body::to_bytes(body, MAX_MESSAGE).await;
    let Ok(body) = body else {
        let text = format!("The message is longer than {MAX_MESSAGE} bytes, or it did not come whole.");
        return Err(Problem::new(StatusCode::PAYLOAD_TOO_LARGE, "RequestTooLarge", text));
    };
    let message = match std::str::from_utf8(&body).map_err(|error| error.to_string()).and_then(message::parse) {
        Ok(message) => message,
        Err(why) => return Ok(refusal(StatusCode::BAD_REQUEST, None, INVALID_REQUEST, &why)),
    };
    match &message.kind {
        Kind::Request { id, method, .. } if method == "initialize" => {
            if asked.parts.headers.contains_key(SESSION_ID) {
                let why = "this session has begun: initialize without Mcp-Session-Id begins another";
                return Ok(refusal(StatusCode::BAD_REQUEST, Some(id), INVALID_REQUEST, why));
            }
            let id = id.clone();
            asked.begin(message, &id).await
        }
        Kind::Request { id, .. } => {
            let id = id.clone();
            let entry = match asked.entry(Some(&id)).await {
                Ok(entry) => entry,
                Err(response) => return Ok(response),
            };
            let tool = message::tool(&message);
            match entry.live.ask(message, takes.events).await {
                Ok(call) => {
                    if let Some(message::Tool { name, digest }) = tool {
                        let detail = format!("server:{} tool:{name} sha256:{digest}", entry.server);
                        let node = &hosted.app.node;
                        node.did(&entry.pool, &entry.key, &asked.principal.subject, "tool.called", detail);
                    }
                    Ok(answer(call, takes).await)
                }
                Err(error) => not_passed(error, Some(&id)),
            }
        }
        Kind::Notification { cancels, .. } => {
            let cancels = cancels.clone();
            let entry = match asked.entry(None).await {
                Ok(entry) => entry,
                Err(response) => return Ok(response),
            };
            let passed = entry.live.pass(message.line).await;
            if let Some(id) = cancels {
                entry.live.cancel(&id);
            }
            passed.map_or_else(|error| not_passed(error, None), |()| Ok(StatusCode::ACCEPTED.into_response()))
        }
        Kind::Response { .. } => match asked.entry(None).await {
            Ok(entry) => {
                let passed = entry.live.pass(message.line).await;
                passed.map_or_else(|error| not_passed(error, None), |()| Ok(StatusCode::ACCEPTED.into_response()))
            }
            Err(response) => Ok(response),
        },
    }
}

/// The stream on which a client hears what belongs to none of its calls.
async fn listen(
    State(hosted): State<Hosted>,
    Path((pool, server)): Path<(String, String)>,
    request: Request,
) -> Result<Response, Problem> {
    let asked = hosted.asked(&pool, &server, request.into_parts().0).await?;
    if !asked.takes()?.events {
        return Err(not_acceptable("text/event-stream"));
    }
    let entry = match asked.entry(None).await {
        Ok(entry) => entry,
        Err(response) => return Ok(response),
    };
    let number = entry.live.stand();
    let said = stream::unfold((entry.live, number), async |(live, number)| {
        let line = live.next_standing(number).await?;
        Some((Ok::<_, Infallible>(Event::default().data(line)), (live, number)))
    });
    Ok(streamed(said))
}

/// The end of a session.
async fn end(
    State(hosted): State<Hosted>,
    Path((pool, server)): Path<(String, String)>,
    request: Request,
) -> Result<Response, Problem> {
    let asked = hosted.asked(&pool, &server, request.into_parts().0).await?;
    let entry = match asked.entry(None).await {
        Ok(entry) => entry,
        Err(response) => return Ok(response),
    };
    entry.live.ended.cancel();
    let ended = hosted.app.node.delete_session(&entry.pool, &entry.key).await;
    match ended {
        // It was on its way out.
        Ok(()) | Err(NodeError::NoSession(_)) => Ok(StatusCode::NO_CONTENT.into_response()),
        Err(error) => Err(error.into()),
    }
}

impl Hosted {
    fn sessions(&self) -> MutexGuard<'_, HashMap<String, Entry>> {
        self.sessions.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Who asks, and for which server.
    async fn asked(&self, pool: &str, server: &str, parts: Parts) -> Result<Asked<'_>, Problem> {
        let no_pool = || Problem::from(NodeError::NoPool(pool.chars().take(80).collect()));
        if !parts.headers.get(ORIGIN).is_none_or(is_of_this_machine) {
            let text = "A page of another origin may not speak for whoever looks at it.";
            return Err(Problem::new(StatusCode::FORBIDDEN, "Forbidden", text));
        }
        let principal = self.app.auth.verify(&parts.headers).await?;
        let pool = PoolName::parse(pool).map_err(|_| no_pool())?;
        let own = principal.session.as_deref().and_then(|own| Identifier::parse(own).ok());
        principal.may(Role::Executor, &pool, own.as_ref())?;
        principal.allows(Scope::Execute)?;
        let face = self.app.pools.face(&pool).ok_or_else(no_pool)?;
        let Some(found) = face.servers.get(server).cloned() else {
            let names: Vec<_> = face.servers.keys().map(String::as_str).collect();
            let there = if names.is_empty() { "none".to_owned() } else { names.join(", ") };
            let shown: String = server.chars().take(80).collect();
            let text = format!("The pool {pool} has no server {shown:?}; it has: {there}.");
            return Err(Problem::no_route(text));
        };
        Ok(Asked { hosted: self, principal, pool, name: server.to_owned(), server: found, parts })
    }
}

/// What a client takes for an answer.
#[derive(Clone, Copy)]
struct Takes {
    json: bool,
    events: bool,
}

impl Asked<'_> {
    fn takes(&self) -> Result<Takes, Problem> {
        let accept: Vec<_> =
            self.parts.headers.get_all(ACCEPT).iter().filter_map(|value| value.to_str().ok()).collect();
        let accept = accept.join(",").to_ascii_lowercase();
        let kinds: Vec<_> = accept.split(',').map(|kind| kind.split(';').next().unwrap_or_default().trim()).collect();
        let takes = |kind: &str| kinds.iter().any(|known| *known == kind || *known == "*/*");
        let takes = Takes { json: accept.is_empty() || takes("application/json"), events: takes("text/event-stream") };
        if takes.json || takes.events { Ok(takes) } else { Err(not_acceptable("application/json, text/event-stream")) }
    }

    /// The session that the request names, if it is there and the caller's own.
    async fn entry(&self, id: Option<&Id>) -> Result<Entry, Response> {
        let Some(session) = self.parts.headers.get(SESSION_ID).and_then(|value| value.to_str().ok()) else {
            let why = "the header Mcp-Session-Id is missing: a session begins with initialize";
            return Err(refusal(StatusCode::BAD_REQUEST, id, ENDED, why));
        };
        let found = self.hosted.sessions().get(session).cloned();
        if let Some(entry) = found
            && !entry.live.ended.is_cancelled()
            && (&entry.pool, &entry.server) == (&self.pool, &self.name)
            && entry.key.tenant == self.principal.tenant
            && self.principal.may(Role::Executor, &entry.pool, Some(&entry.key.identifier)).is_ok()
        {
            return Ok(entry);
        }
        // A sandbox whose server ended with the process before this one is of no use to anybody.
        if session.len() == 2 * ID
            && session.bytes().all(|byte| byte.is_ascii_hexdigit())
            && let Some(key) = self.key(session)
        {
            let _ = self.hosted.app.node.delete_session(&self.pool, &key).await;
        }
        let why = "there is no such session: it has ended. Begin another with initialize";
        Err(refusal(StatusCode::NOT_FOUND, id, NO_SESSION, why))
    }

    /// The session of the pool that an MCP session runs in.
    fn key(&self, session: &str) -> Option<SessionKey> {
        let identifier = match &self.principal.session {
            // The token is for this one only.
            Some(_) => return None,
            None => format!("mcp-{}-{session}", self.name),
        };
        Some(SessionKey::new(self.principal.tenant.clone(), Identifier::parse(&identifier).ok()?))
    }

    /// Opens a session, starts the server in it, and answers what it says to `initialize`.
    async fn begin(&self, message: Message, id: &Id) -> Result<Response, Problem> {
        let node = &self.hosted.app.node;
        let mut bytes = [0; ID];
        getrandom::fill(&mut bytes).map_err(|error| NodeError::Unavailable(error.to_string()))?;
        let session = hex::encode(bytes);
        let Some(key) = self.key(&session) else {
            let text = "The token is for one session of this pool only; a hosted server has one of its own.";
            return Err(Problem::new(StatusCode::FORBIDDEN, "Forbidden", text));
        };
        let opened = Begun { node: node.clone(), pool: self.pool.clone(), key: key.clone() };
        node.open(&self.pool, &key, Open::OrCreate, &self.principal.caller()).await?;
        let HostedServer { argv, env } = self.server.clone();
        let (input, output) = node.service(&self.pool, &key, argv, env).await?;
        let (live, life) = Live::begin(input, output);
        let entry = Entry { pool: self.pool.clone(), server: self.name.clone(), key, live: Arc::clone(&live) };
        self.hosted.sessions().insert(session.clone(), entry);
        // It ends with the sandbox's stream, which the service layer closes at its end.
        let (hosted, named) = (self.hosted.clone(), session.clone());
        tokio::spawn(async move {
            life.await;
            hosted.sessions().remove(&named);
            drop(opened);
        });
        // Until its client knows of it, it ends with this request.
        let ends = live.ended.clone().drop_guard();
        let failed = |why: &str| Ok(refusal(StatusCode::BAD_GATEWAY, Some(id), ENDED, why));
        let mut call = match live.ask(message, false).await {
            Ok(call) => call,
            Err(NotPassed::Ended(why)) => return failed(&why),
            Err(error) => return not_passed(error, Some(id)),
        };
        match tokio::time::timeout(BEGIN, call.next()).await {
            Ok(Some(said)) if live.ended.is_cancelled() => Ok(json(StatusCode::BAD_GATEWAY, said.line)),
            Ok(Some(said)) if said.is_error => Ok(json(StatusCode::OK, said.line)),
            Ok(Some(said)) => {
                let mut response = json(StatusCode::OK, said.line);
                let named =
                    HeaderValue::from_str(&session).map_err(|error| NodeError::Unavailable(error.to_string()))?;
                response.headers_mut().insert(SESSION_ID, named);
                ends.disarm();
                Ok(response)
            }
            Ok(None) => failed("the server has ended"),
            Err(_) => failed(&format!("the server did not answer initialize within {} s", BEGIN.as_secs())),
        }
    }
}

/// Bytes of a session's name.
const ID: usize = 16;

/// A session that was opened for a server: ended when this is dropped, in a task of its own.
struct Begun {
    node: Node,
    pool: PoolName,
    key: SessionKey,
}

impl Drop for Begun {
    fn drop(&mut self) {
        let (node, pool, key) = (self.node.clone(), self.pool.clone(), self.key.clone());
        tokio::spawn(async move {
            // Nothing, if it has been ended before.
            let _ = node.delete_session(&pool, &key).await;
        });
    }
}

/// What a call brings: one JSON answer, if it comes soon and alone; else a stream.
async fn answer(mut call: Call, takes: Takes) -> Response {
    let first = if takes.json && !takes.events {
        call.next().await
    } else {
        match tokio::time::timeout(HOLD, call.next()).await {
            Ok(first) => first,
            Err(_) => return streamed(follow(call)),
        }
    };
    match first {
        // It was taken back, and has no answer.
        None => StatusCode::ACCEPTED.into_response(),
        Some(said) if said.is_last && takes.json => json(StatusCode::OK, said.line),
        Some(said) => {
            let is_last = said.is_last;
            let first = stream::iter([Ok(Event::default().data(said.line))]);
            if is_last { streamed(first) } else { streamed(first.chain(follow(call))) }
        }
    }
}

/// What the server says to a call, to its answer.
fn follow(call: Call) -> impl futures::Stream<Item = Result<Event, Infallible>> + Send + 'static {
    stream::unfold(Some(call), async |call| {
        let mut call = call?;
        let said = call.next().await?;
        Some((Ok(Event::default().data(said.line)), (!said.is_last).then_some(call)))
    })
}

fn streamed(events: impl futures::Stream<Item = Result<Event, Infallible>> + Send + 'static) -> Response {
    // Proxies that gather answers would hold events back.
    let direct = [(HeaderName::from_static("x-accel-buffering"), HeaderValue::from_static("no"))];
    (direct, Sse::new(events).keep_alive(KeepAlive::new().interval(HEARTBEAT).text(""))).into_response()
}

fn json(status: StatusCode, line: String) -> Response {
    (status, [(CONTENT_TYPE, HeaderValue::from_static("application/json"))], Body::from(line)).into_response()
}

fn refusal(status: StatusCode, id: Option<&Id>, code: i32, why: &str) -> Response {
    json(status, message::error(id, code, why))
}

fn not_passed(error: NotPassed, id: Option<&Id>) -> Result<Response, Problem> {
    match error {
        NotPassed::NotTaken(why) => Ok(refusal(StatusCode::BAD_REQUEST, id, INVALID_REQUEST, &why.to_string())),
        NotPassed::Ended(why) => Ok(refusal(StatusCode::NOT_FOUND, id, NO_SESSION, &why)),
        NotPassed::Node(error) => Err(error.into()),
    }
}

fn not_acceptable(kinds: &str) -> Problem {
    Problem::new(StatusCode::NOT_ACCEPTABLE, "NotAcceptable", format!("The header Accept must name {kinds}."))
}

/// Pages of this machine may call; all others that say where they come from are refused, so that no page of somebody
/// else's can speak for a browser's user.
fn is_of_this_machine(origin: &HeaderValue) -> bool {
    let uri = origin.to_str().ok().and_then(|text| text.parse::<Uri>().ok());
    uri.is_some_and(|uri| {
        matches!(uri.scheme_str(), Some("http" | "https"))
            && matches!(uri.host(), Some("localhost" | "127.0.0.1" | "[::1]"))
    })
}

#[cfg(test)]
mod tests;
