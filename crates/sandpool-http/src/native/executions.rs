//! Executions: started, looked at, waited for, stopped, fed.

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::http::header::LOCATION;
use axum::http::{HeaderMap, HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use sandpool_core::ids::{Identifier, PoolName};
use sandpool_node::{Execution, ExecutionHandle, ExecutionState, Open, Stop};
use serde::Deserialize;
use serde_json::{Value, json};

use super::asked::Asked;
use super::request::{Asking, LONGEST_WAIT, MAX_BODY, Size, Start};
use super::{body, events, shown};
use crate::app::App;
use crate::auth::{Role, Scope};
use crate::journal::Digested;
use crate::problem::Problem;

/// The largest body of one `POST .../input`, in bytes.
const MAX_INPUT: usize = 16 * 1024 * 1024;

/// The largest body of the small ones, in bytes.
const MAX_SMALL: usize = 4 * 1024;

/// Starts an execution in a session that is found or made. It belongs to the session from here on: whoever asked may
/// go away.
pub(super) async fn start(
    State(app): State<App>,
    asked: Asked,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    let (pool, key) = asked.session(Role::Executor)?;
    let base64 = asked.base64()?;
    let after = events::after(&asked, &headers)?;
    let spec = app.node.spec(&pool)?;
    let Start { request, wait } = body::json::<Asking>(&body::whole(body, MAX_BODY).await?)?.check(&spec)?;
    // A session that was made with something of its own is not to be made again without it.
    let open = if asked.flag("existing")? { Open::Existing } else { Open::OrCreate };
    app.node.open(&pool, &key, open, &asked.principal.caller()).await?;
    let digested = Digested::of(&request);
    let handle = app.node.execute(&pool, &key, request).await?;
    digested.accepted(&asked.principal, &handle);
    let mut response = if events::is_wanted(&headers) {
        handle.kept().await?;
        events::stream(&handle, after, base64)
    } else {
        let execution = handle.wait(wait).await;
        let status = match execution.state {
            ExecutionState::Ended(_) => StatusCode::OK,
            ExecutionState::Queued | ExecutionState::Running => {
                handle.kept().await?;
                StatusCode::ACCEPTED
            }
        };
        let mut shown = shown::full(&pool, &execution, base64);
        shown.resumed = handle.resumed().map(super::suspend::resumed);
        (status, Json(shown)).into_response()
    };
    if let Ok(location) = HeaderValue::from_str(&location(&pool, &key.identifier, &handle)) {
        response.headers_mut().insert(LOCATION, location);
    }
    Ok(response)
}

/// Where it is found again.
fn location(pool: &PoolName, identifier: &Identifier, handle: &ExecutionHandle) -> String {
    let session = percent_encoding::utf8_percent_encode(identifier.as_str(), crate::app::SEGMENT);
    format!("/pools/{pool}/sessions/{session}/executions/{}", handle.id())
}

fn answer(pool: &PoolName, execution: &Execution, base64: bool) -> Response {
    Json(shown::full(pool, execution, base64)).into_response()
}

/// The executions that are still known, oldest first, without their output.
pub(super) async fn list(State(app): State<App>, asked: Asked) -> Result<Json<Value>, Problem> {
    asked.principal.allows(Scope::Execute)?;
    let (pool, key) = asked.session(Role::Reader)?;
    let handles = app.node.executions(&pool, &key).await?;
    let outlines: Vec<_> = handles.iter().map(|handle| shown::outline(&pool, &handle.outline())).collect();
    Ok(Json(json!({ "value": outlines })))
}

/// One execution, after `wait` seconds or when it has ended.
pub(super) async fn one(State(app): State<App>, asked: Asked) -> Result<Response, Problem> {
    let (pool, key, id) = asked.execution(Role::Reader)?;
    let wait = asked.seconds("wait", LONGEST_WAIT)?;
    let base64 = asked.base64()?;
    let execution = match (app.node.execution(&pool, &key, &id).await, wait) {
        (Ok(handle), Some(wait)) => handle.wait(wait).await,
        (Ok(handle), None) => handle.snapshot(),
        (Err(error), _) => app.node.past_execution(&pool, &key, id).await.ok_or(error)?,
    };
    Ok(answer(&pool, &execution, base64))
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Stopping {
    how: Option<How>,
}

#[derive(Clone, Copy, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
enum How {
    #[default]
    Interrupt,
    Kill,
}

/// Ends it. An empty body means to interrupt. Nothing happens if it has ended.
pub(super) async fn stop(State(app): State<App>, asked: Asked, body: Body) -> Result<StatusCode, Problem> {
    let (pool, key, id) = asked.execution(Role::Executor)?;
    let body = body::whole(body, MAX_SMALL).await?;
    let Stopping { how } = if body.is_empty() { Stopping::default() } else { body::json(&body)? };
    let handle = app.node.execution(&pool, &key, &id).await?;
    handle
        .stop(match how.unwrap_or_default() {
            How::Interrupt => Stop::Interrupt,
            How::Kill => Stop::Kill,
        })
        .await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Sends bytes to its standard input or terminal; no bytes are the end of input.
pub(super) async fn input(State(app): State<App>, asked: Asked, mut body: Body) -> Result<StatusCode, Problem> {
    let (pool, key, id) = asked.execution(Role::Executor)?;
    let handle = app.node.execution(&pool, &key, &id).await?;
    let mut sent = 0;
    // Piece by piece, as fast as it is read in the sandbox.
    while let Some(piece) = body::next(&mut body).await? {
        sent += piece.len();
        if sent > MAX_INPUT {
            return Err(body::too_long("body", u64::try_from(MAX_INPUT).unwrap_or(u64::MAX)));
        }
        handle.input(piece.into()).await.map_err(|error| Problem::from(error).about("execution"))?;
    }
    if sent == 0 {
        handle.input(Vec::new()).await.map_err(|error| Problem::from(error).about("execution"))?;
    }
    Ok(StatusCode::NO_CONTENT)
}

/// Tells its terminal a new size.
pub(super) async fn resize(State(app): State<App>, asked: Asked, body: Body) -> Result<StatusCode, Problem> {
    let (pool, key, id) = asked.execution(Role::Executor)?;
    let Size { rows, columns } = body::json::<Size>(&body::whole(body, MAX_SMALL).await?)?.check("")?;
    let handle = app.node.execution(&pool, &key, &id).await?;
    handle.resize(rows, columns).await.map_err(|error| Problem::from(error).about("execution"))?;
    Ok(StatusCode::NO_CONTENT)
}
