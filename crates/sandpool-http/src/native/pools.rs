//! Pools: what they are, and how they are.

use std::time::Duration;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use sandpool_core::ids::Identifier;
use sandpool_node::{PoolStatus, SessionScope, Start, Whose};
use serde_json::{Value, json};

use super::asked::Asked;
use super::shown::instant;
use crate::app::App;
use crate::auth::Role;
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

/// The key of a pool's MCP server; a new one if `rotate` says so. It is the operator's to give away: it is good in the
/// tenant `default`.
pub(super) async fn mcp_credentials(State(app): State<App>, asked: Asked) -> Result<Json<Value>, Problem> {
    let pool = asked.pool(Role::Admin)?;
    if !asked.principal.is_operator() {
        let text =
            "A pool's MCP key is the operator's: an admin of the tenant default. Tenants use API keys and tokens.";
        return Err(Problem::new(StatusCode::FORBIDDEN, "Forbidden", text));
    }
    app.node.spec(&pool)?;
    let key = app.auth.pool_key(&pool, asked.flag("rotate")?).map_err(|error| {
        Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "KeysUnusable", format!("The key cannot be made: {error}."))
    })?;
    Ok(Json(json!({ "apiKey": key, "path": format!("/pools/{pool}/mcp") })))
}

fn shown(app: &App, asked: &Asked, pool: &PoolStatus) -> Result<Value, Problem> {
    let PoolStatus { spec, ready, booting, .. } = pool;
    let face = app.pools.get(&spec.name);
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
