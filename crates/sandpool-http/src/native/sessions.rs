//! Sessions: who holds which sandbox.

use std::collections::BTreeMap;
use std::time::{SystemTime, UNIX_EPOCH};

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::http::StatusCode;
use sandpool_core::ids::Identifier;
use sandpool_node::{EgressPolicy, Given, Open, SessionInfo, SessionSecret, Suspended, Usage};
use serde::Deserialize;
use serde_json::{Value, json};

use super::asked::Asked;
use super::shown::{instant, seconds};
use super::{body, egress};
use crate::app::App;
use crate::auth::Role;
use crate::journal::{self, Did};
use crate::problem::Problem;

/// Sessions of one page.
const PAGE: usize = 1_000;

/// Where a list goes on: after the session that was made at this time and has this name. A session that ended
/// meanwhile is no trouble, because it need not be found again.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Cursor(u128, String, String);

impl Cursor {
    fn of(session: &SessionInfo) -> Self {
        let (created, identifier, tenant) = session.order();
        Self(nanoseconds(created), identifier.to_string(), tenant.to_string())
    }

    fn text(&self) -> String {
        // A tenant's name has no dot in it, and an identifier may have.
        format!("{}.{}.{}", self.0, self.2, self.1)
    }

    fn parse(text: &str) -> Option<Self> {
        let (created, rest) = text.split_once('.')?;
        let (tenant, identifier) = rest.split_once('.')?;
        Some(Self(created.parse().ok()?, identifier.to_owned(), tenant.to_owned()))
    }
}

fn nanoseconds(time: SystemTime) -> u128 {
    time.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos())
}

/// A pool's sessions, oldest first.
pub(super) async fn list(State(app): State<App>, asked: Asked) -> Result<Json<Value>, Problem> {
    let pool = asked.pool(Role::Reader)?;
    let limit = asked.number("limit", 1, PAGE)?.unwrap_or(PAGE);
    let after = match asked.text("after") {
        Some(text) => {
            let cursor = Cursor::parse(text);
            Some(cursor.ok_or_else(|| Problem::invalid("after", "after is what a page before this gave as next."))?)
        }
        None => None,
    };
    let room = asked.room()?;
    let mut sessions = app.node.sessions(&pool, asked.whose(&room))?;
    sessions.retain(|session| asked.may_see(&session.identifier));
    let begin = after.map_or(0, |after| sessions.partition_point(|session| Cursor::of(session) <= after));
    let end = sessions.len().min(begin + limit);
    let page = &sessions[begin..end];
    let more = end < sessions.len();
    let next = page.last().filter(|_| more).map(|last| Cursor::of(last).text());
    let mut value: Vec<_> = page.iter().map(shown).collect();
    if asked.flag("usage")? {
        let usages = app.node.usages(page).await;
        for (session, shown) in page.iter().zip(&mut value) {
            shown["usage"] = usages.get(&session.sandbox).map_or(Value::Null, usage);
        }
    }
    Ok(Json(json!({ "value": value, "next": next })))
}

/// One session, and what it uses.
pub(super) async fn one(State(app): State<App>, asked: Asked) -> Result<Json<Value>, Problem> {
    let (pool, key) = asked.session(Role::Reader)?;
    let session = app.node.session(&pool, &key)?;
    let used = match session.suspended {
        Some(_) => None,
        None => Some(app.node.usage(&pool, &key).await?),
    };
    let status = app.node.pool(&pool)?;
    let mut body = shown(&session);
    body["usage"] = used.as_ref().map_or(Value::Null, usage);
    body["wall"] = json!(status.wall);
    body["weaker"] = json!(status.weaker);
    Ok(Json(body))
}

fn usage(usage: &Usage) -> Value {
    json!({
        "memoryBytes": usage.memory,
        "memoryPeakBytes": usage.memory_peak.unwrap_or(0),
        "pids": usage.pids,
        "cpuSeconds": seconds(usage.cpu_us.unwrap_or(0)),
        "oomKills": usage.oom_kills.unwrap_or(0),
        "storedBytes": usage.stored,
        "sentBytes": usage.sent.unwrap_or(0),
        "receivedBytes": usage.received.unwrap_or(0),
    })
}

/// What may be in the body that opens a session.
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
struct Opening {
    /// What the session may reach, of what its pool may.
    egress: Option<EgressPolicy>,
    /// Environment variables of a session that is made.
    env: BTreeMap<String, String>,
    /// Secrets of a session that is made.
    secrets: Vec<SecretOpening>,
}

/// A secret of the session's own.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct SecretOpening {
    name: String,
    value: String,
    hosts: Vec<String>,
}

/// Never the value.
impl std::fmt::Debug for SecretOpening {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SecretOpening").field("name", &self.name).finish_non_exhaustive()
    }
}

/// Finds the session, or makes it: 201 when it is new. What it may reach, if the body says it, holds before the answer. Variables and
/// secrets are for one that is made: one that is there has its own, and the call is refused.
pub(super) async fn open(
    State(app): State<App>,
    asked: Asked,
    body: Body,
) -> Result<(StatusCode, Json<Value>), Problem> {
    let (pool, key) = asked.session(Role::Executor)?;
    let bytes = body::whole(body, egress::MAX_BODY).await?;
    let Opening { egress, env, secrets } = if bytes.is_empty() { Opening::default() } else { body::json(&bytes)? };
    if egress.is_some() {
        app.node.egress(&pool)?;
    }
    let secrets = secrets.into_iter().map(|SecretOpening { name, value, hosts }| SessionSecret { name, value, hosts });
    let given = Given { env: env.into_iter().collect(), secrets: secrets.collect() };
    given
        .check(&*app.node.spec(&pool)?)
        .map_err(|(field, why)| Problem::invalid(&field, format!("{field}: {why}.")))?;
    let field = if given.secrets.is_empty() { "env" } else { "secrets" };
    let opened = app.node.open_with(&pool, &key, Open::OrCreate, given, &asked.principal.caller()).await;
    let opened = opened.map_err(|error| egress::wrong(error, field))?;
    if let Some(policy) = &egress
        && let Err(error) = app.node.narrow(&pool, &key, Some(policy)).await
    {
        if opened.new {
            // It was to be narrower than its pool, and nothing has run in it.
            app.node.delete_session(&pool, &key).await?;
        }
        return Err(egress::wrong(error, "egress"));
    }
    if egress.is_some() {
        journal::did(&app.node, &asked.principal, (&pool, &key), Did::Narrowed, "");
    }
    let status = if opened.new { StatusCode::CREATED } else { StatusCode::OK };
    Ok((status, Json(super::suspend::opening(&opened))))
}

/// Ends the session.
pub(super) async fn end(State(app): State<App>, asked: Asked) -> Result<StatusCode, Problem> {
    let (pool, key) = asked.session(Role::Executor)?;
    journal::did(&app.node, &asked.principal, (&pool, &key), Did::Deleted, "");
    app.node.delete_session(&pool, &key).await?;
    Ok(StatusCode::NO_CONTENT)
}

pub(super) fn shown(session: &SessionInfo) -> Value {
    let mut shown = json!({
        "pool": session.pool.as_str(),
        "identifier": Identifier::as_str(&session.identifier),
        "sandbox": session.sandbox.to_string(),
        "tenant": session.tenant.as_str(),
        "owner": session.owner,
        "level": session.level,
        "createdAt": instant(session.created),
        "lastUsedAt": instant(session.used),
        "expiresAt": instant(session.expires),
        "busy": session.busy,
        "state": if session.suspended.is_some() { "suspended" } else { "live" },
    });
    if let Some(Suspended { since, bytes, keeps }) = &session.suspended {
        shown["suspended"] = json!({ "since": instant(*since), "bytes": bytes, "keeps": keeps.word() });
    }
    shown
}

#[cfg(test)]
mod tests {
    use sandpool_core::ids::SandboxId;

    use super::*;
    use crate::served::Served;

    const HERE: &str = "/pools/python/sessions/chat-17";

    #[tokio::test]
    async fn a_session_is_given_variables_and_secrets_when_it_is_made() {
        let served = Served::start().await;
        let body = json!({
            "env": { "STAGE": "test" },
            "secrets": [{ "name": "KEY", "value": "the-value-itself", "hosts": ["api.example"] }],
        });
        let made = served.call("PUT", HERE, body.to_string()).await;
        assert_eq!((made.status.as_u16(), made.text().contains("the-value-itself")), (201, false));
        let sandbox = SandboxId::parse(made.json()["sandbox"].as_str().unwrap()).unwrap();
        let [secret] = &served.memory.entrusted(sandbox)[..] else { panic!("one was given") };
        assert_eq!(
            (secret.value.as_str(), secret.hosts.as_slice()),
            ("the-value-itself", ["api.example".to_owned()].as_slice())
        );
        let code = json!({ "code": "env STAGE\nenv KEY" }).to_string();
        let ran = served.call("POST", &format!("{HERE}/executions"), code).await.json();
        assert_eq!(ran["stdout"], format!("test\n{}\n", secret.placeholder), "{ran}");
        // It has what it was given: a second time is refused, and without any it is found.
        let (status, _, target) = served.call("PUT", HERE, body.to_string()).await.refusal();
        assert_eq!((status, target), (400, json!("secrets")));
        assert_eq!(served.call("PUT", HERE, "{}").await.status, 200);
    }

    #[tokio::test]
    async fn what_a_session_cannot_be_given_is_refused_by_its_field_and_makes_none() {
        let served = Served::start().await;
        let secret = |name: &str, value: &str, hosts: Value| json!({ "secrets": [{ "name": name, "value": value, "hosts": hosts }] });
        for (pool, body, field) in [
            ("python", json!({ "env": { "2": "x" } }), "env.2"),
            ("python", json!({ "env": { "A": "x\u{0}" } }), "env.A"),
            ("python", json!({ "env": { "A": "x".repeat(33_000) } }), "env"),
            ("python", secret("a-b", "12345678", json!(["a.example"])), "secrets[0].name"),
            ("python", secret("A", "short", json!(["a.example"])), "secrets[0].value"),
            ("python", secret("A", "line\nline-line", json!(["a.example"])), "secrets[0].value"),
            ("python", secret("A", "12345678", json!([])), "secrets[0].hosts"),
            ("node", secret("A", "12345678", json!(["a.example"])), "secrets"),
        ] {
            let path = format!("/pools/{pool}/sessions/chat-18");
            let (status, _, target) = served.call("PUT", &path, body.to_string()).await.refusal();
            assert_eq!((status, target), (400, json!(field)), "{body}");
            assert_eq!(served.call("GET", &path, "").await.status, 404);
        }
    }

    #[test]
    fn a_page_goes_on_where_the_last_one_ended() {
        let cursor = Cursor(17, "a.b/c".to_owned(), "default".to_owned());
        assert_eq!(Cursor::parse(&cursor.text()), Some(cursor));
        for bad in ["", "17", "17.y", "x.t.y", "-1.t.y"] {
            assert_eq!(Cursor::parse(bad), None, "{bad}");
        }
    }
}
