//! Pools as objects in requests and answers: what the native API and ARM have in common.

use axum::http::StatusCode;
use sandpool_core::ids::PoolName;
use sandpool_node::PoolStatus;
use sandpool_objects::{Kept, PoolObject, PoolsError, Pull};
use serde_json::{Value, json};

use crate::app::App;
use crate::auth::Principal;
use crate::problem::Problem;

/// The longest body with an object, in bytes.
pub(crate) const MAX_OBJECT: usize = 256 * 1024;

impl From<PoolsError> for Problem {
    fn from(error: PoolsError) -> Self {
        let conflict =
            |code, text: String| Self::new(StatusCode::CONFLICT, code, format!("{}.", text.trim_end_matches('.')));
        match error {
            PoolsError::Invalid(fault) => {
                let problem = Self::new(StatusCode::BAD_REQUEST, "SessionPoolInvalid", format!("{fault}."));
                problem.about(&fault.field)
            }
            PoolsError::Forbidden(why) => conflict("SessionPoolNotApplied", why),
            PoolsError::Conflict(field, why) => {
                let text = field.as_ref().map_or_else(|| why.clone(), |field| format!("{field}: {why}"));
                let mut problem = conflict("SessionPoolConflict", text);
                problem.target = field;
                problem
            }
            PoolsError::Node(error) => error.into(),
        }
    }
}

/// The key of a pool's MCP server; a new one, if it says so.
pub(crate) fn mcp_key(app: &App, who: &Principal, pool: &PoolName, rotate: bool) -> Result<String, Problem> {
    let key = app.auth.pool_key(pool, rotate).map_err(|error| {
        Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "KeysUnusable", format!("The key cannot be made: {error}."))
    })?;
    let what = if rotate { "key.rotated" } else { "key.read" };
    app.did_to(who, pool.as_str(), what, "the key of its MCP server".to_owned());
    Ok(key)
}

/// Removes a pool, and what opened it.
pub(crate) async fn remove(app: &App, who: &Principal, pool: &PoolName) -> Result<(), Problem> {
    app.pools.remove(pool).await?;
    app.did_to(who, pool.as_str(), "pool.removed", String::new());
    app.auth.forget_pool_key(pool).map_err(|error| {
        let text = format!("The pool is gone, and its MCP key cannot be forgotten: {error}.");
        Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "KeysUnusable", text)
    })
}

/// Reads an object. What only answers have (`status`, `metadata.generation` and the like) is left out, so that what was got can be
/// applied again.
pub(crate) fn read(mut value: Value) -> Result<PoolObject, Problem> {
    if let Some(object) = value.as_object_mut() {
        object.remove("status");
        if let Some(metadata) = object.get_mut("metadata").and_then(Value::as_object_mut) {
            for name in ["generation", "creationTimestamp", "origin"] {
                metadata.remove(name);
            }
        }
    }
    serde_path_to_error::deserialize(value).map_err(|error| {
        let (path, why) = (error.path().to_string(), error.into_inner().to_string());
        let unknown = why.strip_prefix("unknown field `").and_then(|rest| rest.split_once('`'));
        let field = match (path.as_str(), unknown) {
            (".", Some((name, _))) => name.to_owned(),
            (path, Some((name, _))) if !path.ends_with(name) => format!("{path}.{name}"),
            (".", None) => "body".to_owned(),
            (path, _) => path.to_owned(),
        };
        let field: String = field.chars().take(200).collect();
        Problem::new(StatusCode::BAD_REQUEST, "SessionPoolInvalid", format!("{field}: {why}.")).about(&field)
    })
}

/// An object as it is shown: as it can be applied, and how it is.
pub(crate) fn shown(kept: &Kept, status: Option<&PoolStatus>, pull: Option<&Pull>) -> Value {
    // Plain data: this cannot fail. Values of secrets are for nobody to read.
    let mut object = serde_json::to_value(kept.object.without_values()).unwrap_or_default();
    object["metadata"]["generation"] = json!(kept.generation);
    object["metadata"]["creationTimestamp"] = json!(kept.created_at());
    object["metadata"]["origin"] = json!(kept.origin.word());
    let trouble = trouble(kept, status);
    let is_ready = trouble.is_none() && status.is_some_and(|status| status.is_full);
    let is_coming = matches!(pull, Some(Pull::Coming(..))) && kept.broken.is_some();
    let (reason, message) = match (&trouble, is_ready) {
        (Some(why), _) if is_coming => ("Pulling", why.clone()),
        (Some(why), _) => ("Broken", why.clone()),
        (None, true) => ("Filled", "The reservoir has what it is to keep.".to_owned()),
        (None, false) => ("Filling", "Sandboxes are being made.".to_owned()),
    };
    let mut conditions = vec![json!({
        "type": "Ready",
        "status": if is_ready { "True" } else { "False" },
        "reason": reason,
        "message": message,
    })];
    conditions.extend(pull.map(|pull| image_pulled(kept, pull)));
    object["status"] = json!({
        "ready": status.map_or(0, |status| status.ready),
        "booting": status.map_or(0, |status| status.booting),
        "sessions": status.map_or(0, |status| status.sessions),
        "level": status.map(|status| &status.level),
        "observedGeneration": kept.generation,
        "conditions": conditions,
    });
    object
}

/// How far it is with an image that is got from its registry.
fn image_pulled(kept: &Kept, pull: &Pull) -> Value {
    // One that is here is used, whatever its registry says.
    let is_here = kept.broken.is_none();
    let (reason, message) = match pull {
        Pull::Coming(_, 0) => ("Pulling", "The registry is being asked.".to_owned()),
        Pull::Coming(here, of) => ("Pulling", format!("{here} of {of} bytes are here.")),
        Pull::Done => ("Pulled", "It is what its reference means.".to_owned()),
        Pull::Failed(why) if is_here => {
            ("NotRefreshed", format!("The registry could not be asked; what is here is used: {why}"))
        }
        Pull::Failed(why) => ("Failed", why.clone()),
    };
    let status = if is_here && !matches!(pull, Pull::Coming(..)) { "True" } else { "False" };
    json!({ "type": "ImagePulled", "status": status, "reason": reason, "message": message })
}

/// Why no sandbox can be made of it.
pub(crate) fn trouble(kept: &Kept, status: Option<&PoolStatus>) -> Option<String> {
    kept.broken.clone().or_else(|| status.and_then(|status| status.trouble.clone()))
}
