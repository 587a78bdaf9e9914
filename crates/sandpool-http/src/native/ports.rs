//! What programs of a session serve: passed on to whoever has a token, and by an address to whoever has that.
//!
//! ```text
//! /pools/{pool}/sessions/{session}/ports/{port}/{path}     with a token
//! /pools/{pool}/sessions/{session}/previews                makes an address, good for a while
//! /preview/{word}/{path}                                   that address, below ours: alone in a browser, without cookies
//! {word}.{host of previews}/{path}                         the same as a host of its own: an ordinary site
//! ```

use std::time::Duration;

use axum::Json;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::http::header::HOST;
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use sandpool_core::ids::{Identifier, PoolName, SessionKey};
use sandpool_node::Open;
use serde::Deserialize;
use serde_json::{Value, json};

use super::asked::Asked;
use super::{body, shown};
use crate::app::App;
use crate::auth::previews::{NoPreview, Preview};
use crate::auth::{Role, Scope};
use crate::forward::{self, Place, Room};
use crate::problem::Problem;

/// How long an address is good for, unless it says otherwise, and at most.
const USUAL: u64 = 3_600;
const LONGEST: u64 = 7 * 24 * 3_600;

/// The longest body that asks for an address, in bytes.
const MAX_BODY: usize = 4 * 1024;

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Asking {
    port: u16,
    #[serde(default)]
    ttl_seconds: Option<u64>,
}

/// Makes an address under which anybody who has it reaches a port of a session that is there.
pub(super) async fn make(
    State(app): State<App>,
    asked: Asked,
    request: Request,
) -> Result<(StatusCode, Json<Value>), Problem> {
    let (pool, key) = asked.session(Role::Executor)?;
    let (parts, body) = request.into_parts();
    let Asking { port, ttl_seconds } = body::json(&body::whole(body, MAX_BODY).await?)?;
    if port == 0 {
        return Err(Problem::invalid("port", "port is a number from 1 to 65535."));
    }
    let ttl = ttl_seconds.unwrap_or(USUAL);
    if !(1..=LONGEST).contains(&ttl) {
        return Err(Problem::invalid("ttlSeconds", format!("ttlSeconds is a number from 1 to {LONGEST}.")));
    }
    let opened = app.node.open(&pool, &key, Open::Existing, &asked.principal.caller()).await?;
    let ends = std::time::SystemTime::now() + Duration::from_secs(ttl);
    let since = ends.duration_since(std::time::UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let preview = Preview { sandbox: opened.session.sandbox, port, ends: u32::try_from(since).unwrap_or(u32::MAX) };
    let word = app.auth.preview(&preview).map_err(|error| {
        Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "KeysUnusable", format!("The address cannot be made: {error}."))
    })?;
    let origin = crate::azure::origin(&parts);
    let (scheme, authority) = origin.split_once("://").unwrap_or(("http", "localhost"));
    let beyond = authority.rsplit_once(':').filter(|(_, port)| port.parse::<u16>().is_ok());
    let port_of_ours = beyond.map(|(_, port)| format!(":{port}")).unwrap_or_default();
    let answer = json!({
        "url": format!("{origin}/preview/{word}/"),
        "hostUrl": format!("{scheme}://{word}.{}{port_of_ours}/", app.preview_host),
        "port": port,
        "expiresAt": shown::instant(ends),
    });
    Ok((StatusCode::CREATED, Json(answer)))
}

/// What the program of a container session has written: to standard output and to standard error, as it came.
pub(super) async fn logs(State(app): State<App>, asked: Asked) -> Result<Json<Value>, Problem> {
    let (pool, key) = asked.session(Role::Reader)?;
    let after = asked.number("after", 0, u64::MAX)?.unwrap_or(0);
    let (bytes, first, end) = app.node.logs(&pool, &key, after).await?;
    let from = after.max(first);
    let next = from.saturating_add(bytes.len() as u64);
    Ok(Json(json!({
        "text": String::from_utf8_lossy(&bytes),
        "dropped": from.saturating_sub(after),
        "next": next.min(end.max(next)),
        "isAll": next >= end,
    })))
}

/// Passes a request on that comes with a token. What stands behind the port, and the query, are the program's to read.
pub(super) async fn with_token(State(app): State<App>, request: Request) -> Result<Response, Problem> {
    let principal = app.auth.verify(request.headers()).await?;
    let segments: Vec<&str> = request.uri().path().split('/').collect();
    let decoded = |at: usize, name: &str| {
        let segment = segments.get(at).copied().unwrap_or_default();
        let text = percent_encoding::percent_decode_str(segment).decode_utf8();
        text.map(|text| text.into_owned())
            .map_err(|_| Problem::invalid(name, format!("The {name} in the path is not UTF-8.")))
    };
    let pool = PoolName::parse(&decoded(2, "pool")?)
        .map_err(|error| Problem::invalid("pool", format!("There is no such pool: {error}.")))?;
    let identifier = Identifier::parse(&decoded(4, "session")?)
        .map_err(|error| Problem::invalid("session", format!("The session's identifier is not one: {error}.")))?;
    principal.allows(Scope::Execute)?;
    principal.may(Role::Executor, &pool, Some(&identifier))?;
    let key = SessionKey::new(principal.room(None)?, identifier);
    let port = decoded(6, "port")?.parse().ok().filter(|port| *port != 0);
    let port = port.ok_or_else(|| Problem::invalid("port", "A port is a number from 1 to 65535."))?;
    let (prefix, target) = split(request.uri().path(), 6, request.uri().query());
    let place = Place { pool: &pool, key: &key, port, prefix, room: Room::Ours };
    forward::pass(&app, place, &target, request).await
}

/// Passes a request on that comes by an address below ours.
pub(super) async fn by_address(State(app): State<App>, request: Request) -> Result<Response, Problem> {
    let word = request.uri().path().split('/').nth(2).unwrap_or_default().to_owned();
    let (prefix, target) = split(request.uri().path(), 2, request.uri().query());
    by_word(&app, &word, prefix, &target, Room::Ours, request).await
}

/// Passes requests on that come to a host of previews; the others go on.
pub(crate) async fn by_host(State(app): State<App>, request: Request, next: Next) -> Response {
    let Some(word) = word_of_host(&app, &request) else { return next.run(request).await };
    let target = request.uri().path_and_query().map_or_else(|| "/".to_owned(), ToString::to_string);
    let passed = by_word(&app, &word, String::new(), &target, Room::Its, request).await;
    passed.unwrap_or_else(IntoResponse::into_response)
}

/// The first label of a host of previews.
fn word_of_host(app: &App, request: &Request) -> Option<String> {
    let host = match request.uri().authority() {
        Some(authority) => authority.host(),
        None => request.headers().get(HOST)?.to_str().ok()?,
    };
    let host = host
        .rsplit_once(':')
        .filter(|(_, port)| port.bytes().all(|b| b.is_ascii_digit()))
        .map_or(host, |(host, _)| host);
    let at = host.len().checked_sub(app.preview_host.len() + 1)?;
    let (word, rest) = host.split_at_checked(at)?;
    let rest = rest.strip_prefix('.')?;
    (rest.eq_ignore_ascii_case(&app.preview_host) && !word.contains('.')).then(|| word.to_owned())
}

async fn by_word(
    app: &App,
    word: &str,
    prefix: String,
    target: &str,
    room: Room,
    request: Request<Body>,
) -> Result<Response, Problem> {
    let gone = || Problem::new(StatusCode::NOT_FOUND, "PreviewNotFound", "Nothing is at this address.");
    let Preview { sandbox, port, .. } = app.auth.read_preview(word).map_err(|why| match why {
        NoPreview::Unknown => gone(),
        NoPreview::Over => Problem::new(
            StatusCode::GONE,
            "PreviewExpired",
            "This address was good for a while, which is over. Ask for another.",
        ),
    })?;
    let (pool, key): (PoolName, _) = app.node.of_sandbox(sandbox).ok_or_else(gone)?;
    let place = Place { pool: &pool, key: &key, port, prefix, room };
    forward::pass(app, place, target, request).await
}

/// The first so many segments of a path, and what is behind them with the query.
fn split(path: &str, segments: usize, query: Option<&str>) -> (String, String) {
    let at = path.match_indices('/').nth(segments).map_or(path.len(), |(at, _)| at);
    let (prefix, rest) = path.split_at(at);
    let mut target = if rest.is_empty() { "/".to_owned() } else { rest.to_owned() };
    if let Some(query) = query {
        target.push('?');
        target.push_str(query);
    }
    (prefix.to_owned(), target)
}
