//! Sessions on disk: suspended, resumed, copied, forked.

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::http::StatusCode;
use sandpool_core::ids::{Identifier, SessionKey};
use sandpool_node::{Keeps, Opened, SnapshotInfo};
use serde::Deserialize;
use serde_json::{Value, json};

use super::asked::Asked;
use super::body;
use super::sessions::shown;
use super::shown::{instant, milliseconds};
use crate::app::App;
use crate::auth::Role;
use crate::journal::{self, Did};
use crate::problem::Problem;

/// The largest body here, in bytes.
const MAX_BODY: usize = 4 * 1024;

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Suspending {
    force: bool,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Copying {
    name: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Forking {
    identifier: String,
    #[serde(default)]
    snapshot: Option<String>,
}

async fn asked_for<T: Default + serde::de::DeserializeOwned>(body: Body) -> Result<T, Problem> {
    let bytes = body::whole(body, MAX_BODY).await?;
    if bytes.is_empty() { Ok(T::default()) } else { body::json(&bytes) }
}

/// Puts it on disk. One that is there already stays there.
pub(super) async fn suspend(State(app): State<App>, asked: Asked, body: Body) -> Result<Json<Value>, Problem> {
    let (pool, key) = asked.session(Role::Executor)?;
    let Suspending { force } = asked_for(body).await?;
    let session = app.node.suspend(&pool, &key, force, &asked.principal.caller()).await?;
    Ok(Json(shown(&session)))
}

/// Brings it back. One that is there stays.
pub(super) async fn resume(State(app): State<App>, asked: Asked) -> Result<Json<Value>, Problem> {
    let (pool, key) = asked.session(Role::Executor)?;
    let opened = app.node.resume(&pool, &key, &asked.principal.caller()).await?;
    Ok(Json(opening(&opened)))
}

/// Its copies, the oldest first.
pub(super) async fn list(State(app): State<App>, asked: Asked) -> Result<Json<Value>, Problem> {
    let (pool, key) = asked.session(Role::Reader)?;
    let copies: Vec<_> = app.node.snapshots(&pool, &key)?.iter().map(copied).collect();
    Ok(Json(json!({ "value": copies })))
}

/// Copies it, while it goes on.
pub(super) async fn copy(
    State(app): State<App>,
    asked: Asked,
    body: Body,
) -> Result<(StatusCode, Json<Value>), Problem> {
    let (pool, key) = asked.session(Role::Executor)?;
    let Copying { name } = asked_for(body).await?;
    let copy = app.node.snapshot(&pool, &key, name, &asked.principal.caller()).await?;
    journal::did(&app.node, &asked.principal, (&pool, &key), Did::Copied, &format!("snapshot:{}", copy.id));
    Ok((StatusCode::CREATED, Json(copied(&copy))))
}

/// Removes a copy.
pub(super) async fn remove(State(app): State<App>, asked: Asked) -> Result<StatusCode, Problem> {
    let (pool, key) = asked.session(Role::Executor)?;
    app.node.delete_snapshot(&pool, &key, asked.segment("snapshot"), &asked.principal.caller()).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Makes another session of it, or of a copy of it.
pub(super) async fn fork(
    State(app): State<App>,
    asked: Asked,
    body: Body,
) -> Result<(StatusCode, Json<Value>), Problem> {
    let (pool, key) = asked.session(Role::Executor)?;
    let Forking { identifier, snapshot } = body::json(&body::whole(body, MAX_BODY).await?)?;
    let identifier = Identifier::parse(&identifier).map_err(|error| {
        Problem::invalid("identifier", format!("The new session's identifier is not one: {error}."))
    })?;
    // A token that is bound to one session is not good for another.
    asked.principal.may(Role::Executor, &pool, Some(&identifier))?;
    let new = SessionKey::new(key.tenant.clone(), identifier);
    let opened = app.node.fork(&pool, &key, snapshot.as_deref(), &new, &asked.principal.caller()).await?;
    let of = format!("of:{}", key.identifier);
    journal::did(&app.node, &asked.principal, (&pool, &new), Did::Forked, &of);
    Ok((StatusCode::CREATED, Json(opening(&opened))))
}

/// A session that was found, made, or brought back.
pub(super) fn opening(opened: &Opened) -> Value {
    let mut body = shown(&opened.session);
    body["isNew"] = json!(opened.new);
    body["resumed"] = json!(opened.resumed.map(resumed));
    body["openMilliseconds"] = json!(milliseconds(opened.took));
    body
}

/// What a session that was brought back has of what had been there, and what it has not.
pub(super) fn resumed(keeps: Keeps) -> Value {
    let lost: &[&str] = match keeps {
        Keeps::Files => &["variables", "processes", "executions"],
        Keeps::Machine => &[],
    };
    json!({ "keeps": keeps.word(), "lost": lost })
}

fn copied(copy: &SnapshotInfo) -> Value {
    json!({
        "id": copy.id.to_string(),
        "name": copy.name,
        "pool": copy.pool.as_str(),
        "session": copy.identifier.as_str(),
        "takenAt": instant(copy.taken),
        "bytes": copy.bytes,
        "keeps": copy.keeps.word(),
        "parent": copy.parent.map(|parent| parent.to_string()),
    })
}

#[cfg(test)]
mod tests;
