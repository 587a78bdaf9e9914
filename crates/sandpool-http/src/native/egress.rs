//! What a session may reach: what its pool may, and what the session itself was narrowed to. Both must allow.

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::http::StatusCode;
use sandpool_node::{EgressPolicy, NodeError};
use serde_json::{Value, json};

use super::asked::Asked;
use super::body;
use crate::app::App;
use crate::auth::Role;
use crate::journal::{self, Did};
use crate::problem::Problem;

/// The longest body with a policy in it, in bytes: more than the longest policy (24 KiB) has as JSON.
pub(super) const MAX_BODY: usize = 128 * 1024;

/// The pool's policy and the session's own.
pub(super) async fn one(State(app): State<App>, asked: Asked) -> Result<Json<Value>, Problem> {
    let (pool, key) = asked.session(Role::Reader)?;
    let (whole, own) = app.node.reached(&pool, &key).await?;
    Ok(Json(json!({ "pool": whole, "session": own })))
}

/// Narrows the session, instead of what it was narrowed to before. When it is answered, connections that are forbidden now are cut.
pub(super) async fn narrow(State(app): State<App>, asked: Asked, body: Body) -> Result<Json<Value>, Problem> {
    let (pool, key) = asked.session(Role::Executor)?;
    app.node.egress(&pool)?;
    let policy: EgressPolicy = body::json(&body::whole(body, MAX_BODY).await?)?;
    app.node.narrow(&pool, &key, Some(&policy)).await.map_err(|error| wrong(error, "body"))?;
    journal::did(&app.node, &asked.principal, (&pool, &key), Did::Narrowed, "");
    let (whole, own) = app.node.reached(&pool, &key).await?;
    Ok(Json(json!({ "pool": whole, "session": own })))
}

/// Gives back what the pool may reach.
pub(super) async fn widen(State(app): State<App>, asked: Asked) -> Result<StatusCode, Problem> {
    let (pool, key) = asked.session(Role::Executor)?;
    app.node.narrow(&pool, &key, None).await?;
    journal::did(&app.node, &asked.principal, (&pool, &key), Did::Widened, "");
    Ok(StatusCode::NO_CONTENT)
}

/// What is wrong with a policy is in the field that it came in.
pub(super) fn wrong(error: NodeError, field: &str) -> Problem {
    let is_policy = matches!(error, NodeError::Invalid(_));
    let problem = Problem::from(error);
    if is_policy { problem.about(field) } else { problem }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::served::Served;

    const EGRESS: &str = "/pools/python/sessions/chat-17/egress";

    #[tokio::test(start_paused = true)]
    async fn a_session_is_narrowed_and_widened() {
        let served = Served::start().await;
        assert_eq!(served.call("GET", EGRESS, "").await.status, 404, "there is no session yet");
        let body = r#"{"egress": {"mode": "allow-list", "allow": ["pypi.org"]}}"#;
        assert_eq!(served.call("PUT", "/pools/python/sessions/chat-17", body).await.status, 201);
        let seen = served.call("GET", EGRESS, "").await.json();
        assert_eq!(seen["pool"]["mode"], "open");
        assert_eq!((&seen["session"]["mode"], &seen["session"]["allow"]), (&json!("allow-list"), &json!(["pypi.org"])));
        let narrowed = served.call("PUT", EGRESS, r#"{"mode": "none"}"#).await;
        assert_eq!((narrowed.status.as_u16(), &narrowed.json()["session"]["mode"]), (200, &json!("none")));
        assert_eq!(served.call("DELETE", EGRESS, "").await.status, 204);
        assert_eq!(served.call("GET", EGRESS, "").await.json()["session"], Value::Null);
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_no_policy_is_refused_with_the_field() {
        let served = Served::start().await;
        let session = "/pools/python/sessions/chat-18";
        for (body, target) in [
            (r#"{"egress": {"mode": "shut"}}"#, "egress.mode"),
            (r#"{"egress": {"hosts": {"a": ["x"]}}}"#, "egress.hosts.a[0]"),
            (r#"{"egres": {}}"#, "egres"),
            ("{", "body"),
        ] {
            let (status, _, about) = served.call("PUT", session, body).await.refusal();
            assert_eq!((status, about), (400, json!(target)), "{body}");
        }
        assert_eq!(served.call("GET", session, "").await.status, 404, "nothing was made");
        assert_eq!(served.call("PUT", session, "").await.status, 201);
        let (status, _, about) = served.call("PUT", &format!("{session}/egress"), r#"{"allow": "x"}"#).await.refusal();
        assert_eq!((status, about), (400, json!("allow")));
    }

    #[tokio::test(start_paused = true)]
    async fn a_pool_that_reaches_nothing_has_nothing_to_narrow() {
        let served = Served::start().await;
        let session = "/pools/node/sessions/chat-19";
        let body = r#"{"egress": {"mode": "none"}}"#;
        assert_eq!(served.call("PUT", session, body).await.refusal().0, 400);
        assert_eq!(served.call("GET", session, "").await.status, 404, "nothing was made");
        assert_eq!(served.call("PUT", session, "{}").await.status, 201);
        for (method, body) in [("GET", ""), ("PUT", "{}"), ("DELETE", "")] {
            let (status, code, _) = served.call(method, &format!("{session}/egress"), body).await.refusal();
            assert_eq!((status, code.as_str()), (400, "SessionRequestNotSupported"), "{method}");
        }
    }
}
