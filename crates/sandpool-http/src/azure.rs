//! Azure's data plane: every generation of dynamic sessions, told apart by their routes.
//!
//! ```text
//! route       which call a path means: the table         query      identifier, version and the rest of the query
//! body        what is to be run                          execution  running it, and how it is told
//! value       values, figures and streams in an answer   file       uploads, downloads, records
//! multipart   uploads, read as they arrive               names      names and paths of files
//! session     sessions, and what is in an image
//! ```
//!
//! Whoever has no token learns nothing about pools: the token is looked at first, then the request, then the pool.

mod body;
pub(crate) mod execution;
mod file;
mod multipart;
mod names;
mod query;
pub(crate) mod route;
mod session;
pub(crate) mod value;

use std::fmt::Write;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::header::{ALLOW, EXPECT, HOST, HeaderName, HeaderValue};
use axum::http::request::Parts;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use http_body_util::BodyExt;
use percent_encoding::utf8_percent_encode;
use sandpool_core::ids::{Identifier, PoolName, SessionKey, TenantName};
use sandpool_node::{NodeError, Open, Opened, Runtime};
use sandpool_objects::PoolFace;
use time::OffsetDateTime;

use crate::app::App;
use crate::auth::{Principal, Role};
use crate::problem::Problem;
use execution::Memory;
use query::{Query, Version};
use route::{Action, Fit, ROUTES};

/// The versions there are.
const VERSIONS: HeaderValue = HeaderValue::from_static(
    "2023-08-01-preview, 2024-02-02-preview, 2024-08-02-preview, 2024-09-01, 2024-10-02-preview, \
     2025-02-02-preview, 2025-10-02-preview",
);
const SUPPORTED_VERSIONS: HeaderName = HeaderName::from_static("api-supported-versions");
const SESSION_GUID: HeaderName = HeaderName::from_static("x-ms-session-guid");
const NEW_ALLOCATION: HeaderName = HeaderName::from_static("x-ms-new-allocation");
const FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");

/// The version that links name when their caller named none.
const NEWEST: &str = "2025-10-02-preview";

/// How long the rest of a refused request is listened to, so that its sender hears the answer.
const LISTEN: Duration = Duration::from_secs(20);

/// All that is no other dialect's.
pub(crate) fn service(app: App) -> Router {
    let state = (app, Arc::new(Memory::default()));
    Router::new().fallback(answer).with_state(state)
}

/// One request for a pool, admitted.
pub(crate) struct Call {
    app: App,
    memory: Arc<Memory>,
    principal: Principal,
    pool: PoolName,
    face: Arc<PoolFace>,
    runtime: Runtime,
    role: Role,
    /// In whose room this is.
    room: TenantName,
    /// From the query or the path.
    session: Option<SessionKey>,
    query: Query,
    version: Option<Version>,
    headers: HeaderMap,
    /// The address up to the pool, as the caller wrote it.
    base: String,
    /// What the path holds.
    held: Vec<Vec<u8>>,
    arrived: Instant,
}

async fn answer(State((app, memory)): State<(App, Arc<Memory>)>, request: Request) -> Response {
    let arrived = Instant::now();
    let (parts, mut body) = request.into_parts();
    let waits_to_send = parts.headers.contains_key(EXPECT);
    let mut response = match handle(app, memory, parts, &mut body, arrived).await {
        Ok(response) => response,
        Err(refused) => {
            if !waits_to_send {
                listen(body, &refused.problem).await;
            }
            let mut response = refused.problem.into_response();
            if let Some(allow) = refused.allow {
                response.headers_mut().insert(ALLOW, allow);
            }
            response
        }
    };
    // What a program answers is not ours.
    if response.extensions().get::<crate::forward::Passed>().is_none() {
        response.headers_mut().insert(SUPPORTED_VERSIONS, VERSIONS);
    }
    response
}

/// A request for a custom container: what is below the pool is its program's, whatever it is.
async fn forwarded(
    app: &App,
    principal: &Principal,
    target: &route::Target,
    query: &Query,
    port: u16,
    parts: Parts,
    body: &mut Body,
) -> Result<Response, Problem> {
    let pool = PoolName::parse(&target.pool).map_err(|_| NodeError::NoPool(target.pool.chars().take(80).collect()))?;
    let identifier = query.identifier(target.identifier.as_deref())?.ok_or_else(|| {
        Problem::invalid("identifier", "The query has no identifier: it names the session (?identifier=NAME).")
    })?;
    principal.allows(crate::auth::Scope::Execute)?;
    principal.may(Role::Executor, &pool, Some(&identifier))?;
    let key = SessionKey::new(principal.room(query.get("tenant"))?, identifier);
    app.node.open(&pool, &key, Open::OrCreate, &principal.caller()).await?;
    // The path and the query as they were sent.
    let below = parts.uri.path().get(target.prefix_length(parts.uri.path())..).unwrap_or_default();
    let mut path = if below.starts_with('/') { below.to_owned() } else { format!("/{below}") };
    if let Some(query) = parts.uri.query() {
        path.push('?');
        path.push_str(query);
    }
    let prefix = target.prefix.clone();
    let request = axum::http::Request::from_parts(parts, std::mem::take(body));
    let place = crate::forward::Place { pool: &pool, key: &key, port, prefix, room: crate::forward::Room::Data };
    crate::forward::pass(app, place, &path, request).await
}

/// A refusal, and the methods that would do.
struct Refused {
    problem: Problem,
    allow: Option<HeaderValue>,
}

impl<P: Into<Problem>> From<P> for Refused {
    fn from(problem: P) -> Self {
        Self { problem: problem.into(), allow: None }
    }
}

/// Reads on what a refused client still sends, within bounds: most clients read no answer before they have sent all.
async fn listen(mut body: Body, problem: &Problem) {
    let mut left: usize = match problem.status {
        StatusCode::PAYLOAD_TOO_LARGE => 512 << 20,
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => 1 << 20,
        _ => 16 << 20,
    };
    let read = async {
        while let Some(Ok(frame)) = body.frame().await {
            let length = frame.data_ref().map_or(0, bytes::Bytes::len);
            match left.checked_sub(length) {
                Some(rest) => left = rest,
                None => return,
            }
        }
    };
    // Whether all was read makes no difference to the answer.
    let _ = tokio::time::timeout(LISTEN, read).await;
}

async fn handle(
    app: App,
    memory: Arc<Memory>,
    parts: Parts,
    body: &mut Body,
    arrived: Instant,
) -> Result<Response, Refused> {
    if let Some(target) = crate::arm::Target::parse(parts.uri.path()) {
        crate::traced::is_route(
            "/subscriptions/{subscription}/resourceGroups/{resourceGroup}/providers/Microsoft.App/sessionPools/{pool}",
        );
        return Ok(crate::arm::answer(&app, target, &parts, origin(&parts), body).await?);
    }
    let Some(target) = route::target(parts.uri.path()) else {
        return Err(Problem::no_route(nothing_here("There is nothing at this address.")).into());
    };
    if target.is_mcp() {
        crate::traced::is_route("mcp");
        if parts.method != axum::http::Method::POST {
            let message = format!("This address answers POST, not {}: there is no stream to follow.", parts.method);
            let problem = Problem::new(StatusCode::METHOD_NOT_ALLOWED, "MethodNotAllowed", message);
            return Err(Refused { problem, allow: Some(HeaderValue::from_static("POST")) });
        }
        return Ok(crate::mcp::azure::answer(&app, &target.pool, &parts.headers, body).await?);
    }
    let principal = app.auth.verify(&parts.headers).await.map_err(Problem::from)?;
    let query = Query::parse(parts.uri.query().unwrap_or_default());
    if let Some(port) = target.container(&app) {
        crate::traced::is_route("{path}");
        return Ok(forwarded(&app, &principal, &target, &query, port, parts, body).await?);
    }
    crate::app::drop_body(&parts.method, body).await?;
    let (route, held) = match route::fit(&parts.method, &target.below) {
        Fit::Route(route, held) => (route, held),
        Fit::Methods(methods) => {
            let list = methods.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
            let message = format!("This address answers {list}, not {}.", parts.method);
            let problem = Problem::new(StatusCode::METHOD_NOT_ALLOWED, "MethodNotAllowed", message);
            return Err(Refused { problem, allow: HeaderValue::from_str(&list).ok() });
        }
        Fit::Nothing => return Err(Problem::no_route(nothing_here("The pool has nothing at this path.")).into()),
    };
    crate::traced::is_route(route.path);
    if let Some(scope) = route.action.scope() {
        principal.allows(scope).map_err(Problem::from)?;
    }
    let version = query.version()?;
    let identifier = query.identifier(target.identifier.as_deref())?;
    let no_pool = || Problem::from(NodeError::NoPool(target.pool.chars().take(80).collect()));
    let pool = PoolName::parse(&target.pool).map_err(|_| no_pool())?;
    // What the body may still say about the session is looked at there.
    let waits_for_body = matches!(route.action, Action::Execute(_)) && identifier.is_none();
    if !waits_for_body {
        let own = principal.session.as_deref().and_then(|session| Identifier::parse(session).ok());
        let about = match route.action {
            Action::Metadata => identifier.as_ref().or(own.as_ref()),
            _ => identifier.as_ref(),
        };
        principal.may(route.role, &pool, about).map_err(Problem::from)?;
    }
    let room = principal.room(query.get("tenant")).map_err(Problem::from)?;
    let runtime = app.node.spec(&pool).map_err(|_| no_pool())?.runtime;
    let face = app.pools.face(&pool).ok_or_else(no_pool)?;
    let base = format!("{}{}", origin(&parts), target.prefix);
    let role = route.role;
    let headers = parts.headers;
    let call = Call {
        app,
        memory,
        principal,
        pool,
        face,
        runtime,
        role,
        session: identifier.map(|identifier| SessionKey::new(room.clone(), identifier)),
        room,
        query,
        version,
        headers,
        base,
        held,
        arrived,
    };
    let outcome = match route.action {
        Action::Execute(envelope) => execution::run(call, envelope, body).await,
        Action::ReadExecution(envelope) => execution::read(&call, envelope).await,
        Action::Upload(shape) => file::upload(&call, shape, body).await,
        Action::List(shape) => file::list(&call, shape).await,
        Action::Stat => file::stat(&call).await,
        Action::Download => file::download(&call).await,
        Action::DownloadJson => file::download_json(&call).await,
        Action::Remove => file::remove(&call).await,
        Action::Session => session::get(&call),
        Action::EndSession => session::end(&call).await,
        Action::Sessions => session::list(&call),
        Action::Metadata => Ok(session::metadata(&call)),
        Action::ManagedSession => session::managed_get(&call),
        Action::ManagedSessions => session::managed_list(&call),
        Action::ManagedStop => session::managed_stop(&call).await,
    };
    outcome.map_err(Refused::from)
}

/// What an unknown path is answered: all that there is.
fn nothing_here(what: &str) -> String {
    let mut text = format!(
        "{what} A pool is at /pools/POOL and at /subscriptions/S/resourceGroups/R/sessionPools/POOL, and has: "
    );
    for (at, route) in ROUTES.iter().enumerate() {
        let comma = if at == 0 { "" } else { ", " };
        // Writing into a text cannot fail.
        let _ = write!(text, "{comma}{} {}", route.method, route.path);
    }
    text.push('.');
    text
}

/// How the caller reached us: `https://host:port`.
pub(crate) fn origin(parts: &Parts) -> String {
    let forwarded = parts.headers.get(FORWARDED_PROTO).and_then(|value| value.to_str().ok());
    let scheme = match forwarded {
        Some(scheme) if scheme.eq_ignore_ascii_case("https") => "https",
        Some(scheme) if scheme.eq_ignore_ascii_case("http") => "http",
        _ => match parts.extensions.get::<crate::serve::Secure>() {
            Some(_) => "https",
            None => "http",
        },
    };
    let host = parts.uri.authority().map(ToString::to_string);
    let named = || parts.headers.get(HOST).and_then(|value| value.to_str().ok()).map(str::to_owned);
    format!("{scheme}://{}", host.or_else(named).unwrap_or_else(|| "localhost".to_owned()))
}

impl Call {
    /// The session that it is about.
    fn session(&self) -> Result<&SessionKey, Problem> {
        self.session.as_ref().ok_or_else(no_identifier)
    }

    /// Finds the session, or makes it.
    async fn open(&self, key: &SessionKey, open: Open) -> Result<Opened, Problem> {
        Ok(self.app.node.open(&self.pool, key, open, &self.principal.caller()).await?)
    }

    /// An address below the pool, with the session and the version.
    fn link(&self, path: &str, identifier: Option<&Identifier>, more: &str) -> String {
        let version = self.query.get("api-version").filter(|version| !version.is_empty()).unwrap_or(NEWEST);
        let mut link = format!("{}/{path}?api-version={version}", self.base);
        if let Some(identifier) = identifier {
            link.push_str("&identifier=");
            link.extend(utf8_percent_encode(identifier.as_str(), crate::app::SEGMENT));
        }
        link.push_str(more);
        link
    }
}

fn no_identifier() -> Problem {
    let message = "The request names no session: add the parameter identifier (4 to 128 characters) to the query.";
    Problem::invalid("identifier", message)
}

/// Says which sandbox answered.
fn tell_session(headers: &mut HeaderMap, opened: &Opened) {
    insert(headers, SESSION_GUID, &opened.session.sandbox.to_string());
    headers.insert(NEW_ALLOCATION, HeaderValue::from_static(if opened.new { "true" } else { "false" }));
}

/// Inserts a text of our own making.
fn insert(headers: &mut HeaderMap, name: HeaderName, text: &str) {
    if let Ok(value) = HeaderValue::from_str(text) {
        headers.insert(name, value);
    }
}

/// A time with seven digits of its second, as .NET writes it.
fn instant(at: OffsetDateTime) -> String {
    let at = at.to_offset(time::UtcOffset::UTC);
    let (year, month, day) = (at.year(), u8::from(at.month()), at.day());
    let (hour, minute, second) = at.time().as_hms();
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{:07}Z", at.nanosecond() / 100)
}

fn moment(at: SystemTime) -> String {
    instant(OffsetDateTime::from(at))
}

#[cfg(test)]
mod tests;
