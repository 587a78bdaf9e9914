//! Sessions, in both sets of routes, and what is in a pool's image.

use axum::Json;
use axum::http::StatusCode;
use axum::http::header::HeaderName;
use axum::response::{IntoResponse, Response};
use sandpool_core::ids::Identifier;
use sandpool_node::{NodeError, Runtime, SessionInfo};
use serde_json::{Value, json};

use super::{Call, SESSION_GUID, insert, moment};
use crate::journal::{self, Did};
use crate::problem::Problem;

const ETAG: HeaderName = HeaderName::from_static("x-ms-session-etag");

/// Sessions of one page.
const PAGE: u64 = 300;

/// The most sessions of one page.
const MAX_PAGE: u64 = 1_000;

fn etag(session: &SessionInfo) -> String {
    format!("0--{}", session.sandbox)
}

/// A session's record, in the words of both sets.
fn record(call: &Call, session: &SessionInfo) -> Value {
    let expires = moment(session.expires);
    let mut record = json!({
        "identifier": session.identifier.as_str(),
        "createdAt": moment(session.created),
        "lastAccessedAt": moment(session.used),
        "expireAt": expires,
        "expiresAt": expires,
        "etag": etag(session),
    });
    if call.principal.is_operator() {
        // Ours: an operator sees every tenant's sessions, and two of them may have one identifier.
        record["tenant"] = session.tenant.as_str().into();
    }
    record
}

fn tell(call: &Call, session: &SessionInfo) -> Response {
    let mut response = Json(record(call, session)).into_response();
    let headers = response.headers_mut();
    insert(headers, ETAG, &etag(session));
    insert(headers, SESSION_GUID, &session.sandbox.to_string());
    response
}

/// A session's record.
pub(super) fn get(call: &Call) -> Result<Response, Problem> {
    Ok(tell(call, &call.app.node.session(&call.pool, call.session()?)?))
}

/// Ends a session.
pub(super) async fn end(call: &Call) -> Result<Response, Problem> {
    let key = call.session()?;
    journal::did(&call.app.node, &call.principal, (&call.pool, key), Did::Deleted, "");
    call.app.node.delete_session(&call.pool, key).await?;
    Ok(StatusCode::NO_CONTENT.into_response())
}

/// Where a page begins, and how many sessions are on it.
type Page = (u64, u64);

/// One page of sessions, and where the next one begins.
fn page(call: &Call) -> Result<(Vec<Value>, Option<Page>), Problem> {
    let skip = match call.query.number("skip")? {
        Some(skip) => skip,
        None => call.query.number("offset")?.unwrap_or(0),
    };
    let limit = call.query.number("limit")?.unwrap_or(PAGE);
    if !(1..=MAX_PAGE).contains(&limit) {
        return Err(Problem::invalid("limit", format!("The parameter limit is a number from 1 to {MAX_PAGE}.")));
    }
    let sessions = call.app.node.sessions(&call.pool, call.principal.whose(call.query.get("tenant"), &call.room))?;
    let from = usize::try_from(skip).unwrap_or(usize::MAX).min(sessions.len());
    let to = from.saturating_add(usize::try_from(limit).unwrap_or(usize::MAX)).min(sessions.len());
    let next = (to < sessions.len()).then(|| (skip.saturating_add(limit), limit));
    Ok((sessions[from..to].iter().map(|session| record(call, session)).collect(), next))
}

fn next_link(call: &Call, path: &str, next: Option<Page>) -> Option<String> {
    next.map(|(skip, limit)| call.link(path, None, &format!("&skip={skip}&limit={limit}")))
}

/// The sessions of the pool.
pub(super) fn list(call: &Call) -> Result<Response, Problem> {
    let (sessions, next) = page(call)?;
    let mut body = json!({ "sessions": sessions });
    if let Some(link) = next_link(call, "listSessions", next) {
        body["nextLink"] = link.into();
    }
    Ok(Json(body).into_response())
}

/// The older set knows no session by this code.
fn unknown(identifier: &Identifier) -> Problem {
    let message = format!("There is no session with the identifier {identifier}.");
    Problem::new(StatusCode::BAD_REQUEST, "SessionWithIdentifierNotFound", message)
}

/// The older set: a session's record.
pub(super) fn managed_get(call: &Call) -> Result<Response, Problem> {
    let key = call.session()?;
    match call.app.node.session(&call.pool, key) {
        Ok(session) => Ok(tell(call, &session)),
        Err(NodeError::NoSession(_)) => Err(unknown(&key.identifier)),
        Err(error) => Err(error.into()),
    }
}

/// The older set: the sessions of the pool.
pub(super) fn managed_list(call: &Call) -> Result<Response, Problem> {
    let (sessions, next) = page(call)?;
    let count = sessions.len();
    let link = next_link(call, ".management/listSessions", next);
    let sessions = Value::from(sessions);
    let body = json!({ "value": sessions, "sessions": sessions, "count": count, "nextLink": link });
    Ok(Json(body).into_response())
}

/// The older set: ends a session.
pub(super) async fn managed_stop(call: &Call) -> Result<Response, Problem> {
    let key = call.session()?;
    journal::did(&call.app.node, &call.principal, (&call.pool, key), Did::Deleted, "");
    match call.app.node.delete_session(&call.pool, key).await {
        Ok(()) => Ok(format!("Session {} was stopped.", key.identifier).into_response()),
        Err(NodeError::NoSession(_)) => Err(unknown(&key.identifier)),
        Err(error) => Err(error.into()),
    }
}

/// What is in the pool's image.
pub(super) fn metadata(call: &Call) -> Response {
    let image = &call.face.metadata;
    let packages: Vec<_> =
        image.packages.iter().map(|(name, version)| json!({ "name": name, "version": version })).collect();
    let created = moment(image.created);
    let mut body = json!({
        "runtimes": [{ "name": image.runtime, "version": image.version }],
        "preInstalledPackages": packages,
        "createdAt": created,
        "lastUpdatedAt": created,
    });
    let package = |wanted: &str| {
        image.packages.iter().find(|(name, _)| name.eq_ignore_ascii_case(wanted)).map(|(_, version)| version.clone())
    };
    let kernel = match call.runtime {
        Runtime::Python => Some(json!({
            "name": "ipython",
            "version": package("ipython").unwrap_or_else(|| image.version.clone()),
            "projectUrl": "https://ipython.org",
            "description": "Python, through IPython's interactive shell",
        })),
        Runtime::Node => Some(json!({
            "name": "node-repl",
            "version": image.version,
            "projectUrl": "https://nodejs.org/api/repl.html",
            "description": "JavaScript, through Node's own evaluation of a REPL",
        })),
        Runtime::Shell | Runtime::Container => None,
    };
    if let Some(kernel) = kernel {
        body["jupyterKernel"] = kernel;
    }
    Json(body).into_response()
}
