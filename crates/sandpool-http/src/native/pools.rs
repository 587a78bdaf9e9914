//! Pools: what they are, and how they are.

use std::time::Duration;

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::http::StatusCode;
use sandpool_core::ids::{Identifier, PoolName};
use sandpool_node::{NodeError, PoolStatus, SessionScope, Start, Whose};
use sandpool_objects::Applied;
use serde_json::{Value, json};

use super::asked::Asked;
use super::body;
use super::shown::instant;
use crate::app::App;
use crate::auth::Role;
use crate::objects;
use crate::problem::Problem;

/// Whether every pool has its ready sandboxes. Needs no token: it is what a supervisor asks.
pub(super) async fn readiness(State(app): State<App>) -> Result<Json<Value>, Problem> {
    if app.node.is_ready() {
        return Ok(Json(json!({ "status": "ready" })));
    }
    let missing: Vec<_> = app.node.pools().iter().filter(|pool| !pool.is_full).map(lacks).collect();
    let text = if missing.is_empty() { "The server is stopping.".to_owned() } else { missing.join(" ") };
    let problem = Problem::new(StatusCode::SERVICE_UNAVAILABLE, "NotReady", text);
    Err(problem.again_in(Duration::from_secs(1)).everyday())
}

/// What a pool that is not ready waits for.
fn lacks(pool: &PoolStatus) -> String {
    let PoolStatus { spec, ready, booting, .. } = pool;
    let why = pool.trouble.as_deref().map(|why| format!(": {}", why.trim_end_matches('.'))).unwrap_or_default();
    format!("Pool {} has {ready} of {} ready, {booting} booting{why}.", spec.name, spec.scale.ready)
}

/// The pools that the token is good for.
pub(super) async fn list(State(app): State<App>, asked: Asked) -> Result<Json<Value>, Problem> {
    let own = asked.principal.session.as_deref().and_then(|own| Identifier::parse(own).ok());
    let pools = app.node.pools();
    let seen = pools.iter().filter(|pool| asked.principal.may(Role::Reader, &pool.spec.name, own.as_ref()).is_ok());
    Ok(Json(json!({ "value": seen.map(|pool| shown(&app, &asked, pool)).collect::<Result<Vec<_>, _>>()? })))
}

/// One pool.
pub(super) async fn one(State(app): State<App>, asked: Asked) -> Result<Json<Value>, Problem> {
    let pool = asked.pool(Role::Reader)?;
    Ok(Json(shown(&app, &asked, &app.node.pool(&pool)?)?))
}

/// The pool, for something that only an operator may: an admin of the tenant `default`.
fn operated(asked: &Asked, text: &str) -> Result<PoolName, Problem> {
    let pool = asked.pool(Role::Admin)?;
    if !asked.principal.is_operator() {
        let text = format!("{text} An operator is an admin of the tenant default.");
        return Err(Problem::new(StatusCode::FORBIDDEN, "Forbidden", text));
    }
    Ok(pool)
}

/// Why others than operators do not see or change objects.
const OBJECTS: &str = "Pools are the operator's, and their objects hold variables of every session.";

/// A pool as an object, as it can be applied again.
pub(super) async fn object(State(app): State<App>, asked: Asked) -> Result<Json<Value>, Problem> {
    let pool = operated(&asked, OBJECTS)?;
    let kept = app.pools.get(&pool).ok_or_else(|| NodeError::NoPool(pool.to_string()))?;
    Ok(Json(objects::shown(&kept, app.pools.status(&pool).ok().as_ref(), app.pools.pulled(&pool).as_ref())))
}

/// Makes a pool, or changes it. With `dryRun` all is checked and nothing done.
pub(super) async fn apply(
    State(app): State<App>,
    asked: Asked,
    body: Body,
) -> Result<(StatusCode, Json<Value>), Problem> {
    let pool = operated(&asked, OBJECTS)?;
    let is_dry = asked.flag("dryRun")?;
    let object = objects::read(body::json(&body::whole(body, objects::MAX_OBJECT).await?)?)?;
    if object.metadata.name != pool.as_str() {
        let text = format!("metadata.name: is {:?}, and the path names {pool}.", object.metadata.name);
        return Err(Problem::new(StatusCode::BAD_REQUEST, "SessionPoolInvalid", text).about("metadata.name"));
    }
    let applied = app.pools.apply(object, is_dry).await?;
    if !is_dry {
        app.did_apply(&asked.principal, &applied);
    }
    let (status, word) = match &applied {
        Applied::Created(_) => (StatusCode::CREATED, "created"),
        Applied::Changed(_) => (StatusCode::OK, "changed"),
        Applied::Unchanged(_) => (StatusCode::OK, "unchanged"),
    };
    let status = if is_dry { StatusCode::OK } else { status };
    let shown = objects::shown(applied.kept(), app.pools.status(&pool).ok().as_ref(), app.pools.pulled(&pool).as_ref());
    Ok((status, Json(json!({ "result": word, "isDryRun": is_dry, "object": shown }))))
}

/// Removes a pool that was applied, and ends its sessions.
pub(super) async fn remove(State(app): State<App>, asked: Asked) -> Result<StatusCode, Problem> {
    let pool = operated(&asked, OBJECTS)?;
    objects::remove(&app, &asked.principal, &pool).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// The key of a pool's MCP server; a new one if `rotate` says so. It is the operator's to give away: it is good in the
/// tenant `default`.
pub(super) async fn mcp_credentials(State(app): State<App>, asked: Asked) -> Result<Json<Value>, Problem> {
    let pool = operated(&asked, "A pool's MCP key is the operator's. Tenants use API keys and tokens.")?;
    app.node.spec(&pool)?;
    let key = objects::mcp_key(&app, &asked.principal, &pool, asked.flag("rotate")?)?;
    Ok(Json(json!({ "apiKey": key, "path": format!("/pools/{pool}/mcp") })))
}

fn shown(app: &App, asked: &Asked, pool: &PoolStatus) -> Result<Value, Problem> {
    let PoolStatus { spec, ready, booting, .. } = pool;
    let kept = app.pools.get(&spec.name);
    let face = kept.as_ref().map(|kept| &kept.face);
    // How many others there are is nobody's business but the operator's.
    let room = asked.room()?;
    let sessions = match asked.whose(&room) {
        Whose::Everybody => usize::try_from(pool.sessions).unwrap_or(usize::MAX),
        whose @ Whose::Tenant(_) => app.node.sessions(&spec.name, whose)?.len(),
    };
    Ok(json!({
        "name": spec.name.as_str(),
        "containerType": face.map(|face| &face.container_type),
        "runtime": face.map(|face| json!({ "name": face.metadata.runtime, "version": face.metadata.version })),
        "imageCreatedAt": face.map(|face| instant(face.metadata.created)),
        "isReady": pool.is_full,
        "ready": ready,
        "readyWanted": spec.scale.ready,
        "readyTarget": pool.target,
        "maxReady": spec.scale.most_ready.max(spec.scale.ready),
        "booting": booting,
        "waited": pool.waited,
        "sessions": sessions,
        "maxSessions": spec.scale.max_sessions,
        "level": pool.level,
        "wall": pool.wall,
        "weaker": pool.weaker,
        "trouble": pool.trouble,
        "limits": {
            "memoryBytes": spec.limits.memory,
            "cpuMilli": spec.limits.cpu_milli,
            "pids": spec.limits.pids,
            "dataBytes": spec.limits.data,
            "tmpBytes": spec.limits.tmp,
        },
        "cooldownSeconds": spec.life.cooldown.as_secs_f64(),
        "maxAliveSeconds": spec.life.max_alive.map(|most| most.as_secs_f64()),
        "maxTimeoutSeconds": spec.max_timeout.as_secs_f64(),
        "outputLimitBytes": spec.output_limit,
        "queue": spec.queue,
        "origin": kept.as_ref().map(|kept| kept.origin.word()),
        "generation": kept.as_ref().map(|kept| kept.generation),
        "interpreterStart": match spec.start {
            Start::Zygote => "zygote",
            Start::Cold => "cold",
        },
        "sessionScope": match spec.scope {
            SessionScope::Tenant => "tenant",
            SessionScope::Pool => "pool",
        },
        "waitWhenFullSeconds": spec.full_wait.as_secs_f64(),
    }))
}
