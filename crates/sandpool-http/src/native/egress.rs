//! What a session may reach: what its pool may, and what the session itself was narrowed to. Both must allow.

use std::time::{Duration, UNIX_EPOCH};

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use sandpool_node::{EgressPolicy, NodeError, Reached};
use serde_json::{Value, json};

use super::asked::Asked;
use super::shown::instant;
use super::{body, events};
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

/// Decisions of one page.
const PAGE: usize = 256;

/// What was decided about what the session would reach: the last decisions, and with `Accept: text/event-stream` those to come.
pub(super) async fn decisions(State(app): State<App>, asked: Asked, headers: HeaderMap) -> Result<Response, Problem> {
    let (pool, key) = asked.session(Role::Reader)?;
    let limit = asked.number("limit", 1, PAGE)?.unwrap_or(PAGE);
    let after = events::after(&asked, &headers)?;
    let reader = app.node.decisions(&pool, &key).await?;
    if events::is_wanted(&headers) {
        return Ok(events::told("decision", reader.after(after), |reached| (reached.sequence, shown(reached))));
    }
    let kept = reader.kept(after);
    let page: Vec<_> = kept.iter().take(limit).collect();
    let next = page.last().filter(|_| kept.len() > page.len()).map(|last| last.sequence);
    Ok(Json(json!({ "decisions": page.into_iter().map(shown).collect::<Vec<_>>(), "next": next })).into_response())
}

fn shown(Reached { sequence, decided }: &Reached) -> Value {
    json!({
        "sequence": sequence,
        "time": instant(UNIX_EPOCH + Duration::from_millis(decided.at_ms)),
        "host": decided.destination,
        "port": decided.port,
        "via": decided.via,
        "decision": decided.decision,
        "reason": decided.reason,
        "sentBytes": decided.sent,
        "receivedBytes": decided.received,
    })
}

/// What is wrong with a policy is in the field that it came in.
pub(super) fn wrong(error: NodeError, field: &str) -> Problem {
    let is_policy = matches!(error, NodeError::Invalid(_));
    let problem = Problem::from(error);
    if is_policy { problem.about(field) } else { problem }
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use futures::StreamExt;
    use sandpool_core::ids::SandboxId;
    use sandpool_node::{Decided, Decision, Told, Via};

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
    async fn decisions_are_listed_page_by_page_and_streamed() {
        let served = Served::start().await;
        let session = "/pools/python/sessions/chat-17";
        let made = served.call("PUT", session, "{}").await.json();
        let sandbox = SandboxId::parse(made["sandbox"].as_str().unwrap()).unwrap();
        let list = format!("{session}/egress/decisions");
        assert_eq!(served.call("GET", &list, "").await.json(), json!({ "decisions": [], "next": null }));
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
        let decided = |port: u16| Decided {
            sandbox: sandbox.0,
            pool: "python".to_owned(),
            at_ms: u64::try_from(now.as_millis()).unwrap(),
            via: Via::Tls,
            destination: Some("evil.example".to_owned()),
            port: Some(port),
            decision: Decision::Refused,
            reason: Some("no list allows the name".to_owned()),
            sent: 0,
            received: 0,
        };
        let stream = served.stream("GET", &list, ("x-none", ""), "").await.into_body();
        // What nobody's sandbox did is nobody's.
        let strange = Decided { sandbox: [9; 16], ..decided(1) };
        served.memory.tell(Told { missed: 3, decided: vec![strange, decided(443), decided(444), decided(445)] });
        let mut stream = stream.into_data_stream();
        let mut text = String::new();
        while text.matches("event: decision").count() < 3 {
            text.push_str(std::str::from_utf8(&stream.next().await.unwrap().unwrap()).unwrap());
        }
        let page = served.call("GET", &format!("{list}?limit=2"), "").await.json();
        let [first, second] = &page["decisions"].as_array().unwrap()[..] else { panic!("{page}") };
        assert_eq!((&first["host"], &first["port"]), (&json!("evil.example"), &json!(443)));
        assert_eq!((&first["via"], &first["decision"]), (&json!("tls"), &json!("refused")));
        assert_eq!(page["next"], second["sequence"]);
        let rest = served.call("GET", &format!("{list}?after={}", page["next"]), "").await.json();
        assert_eq!((&rest["decisions"][0]["port"], &rest["next"]), (&json!(445), &Value::Null));
        let metrics = served.node.metrics();
        let pool = metrics.pools.iter().find(|pool| pool.status.spec.name.as_str() == "python").unwrap();
        let refused = pool.egress.as_ref().unwrap().decisions.iter().find(|(word, _)| *word == "refused");
        assert_eq!((refused, metrics.decisions_missed), (Some(&("refused", 4)), 3));
        assert_eq!(served.call("PUT", "/pools/node/sessions/chat-20", "{}").await.status, 201);
        let refused = served.call("GET", "/pools/node/sessions/chat-20/egress/decisions", "").await.refusal();
        assert_eq!((refused.0, refused.1.as_str()), (400, "SessionRequestNotSupported"));
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
