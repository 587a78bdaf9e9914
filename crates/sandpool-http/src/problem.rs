//! What a refusal looks like: one table from causes to a status, a stable code and a sentence.
//!
//! Three shapes of errors are in use among clients of dynamic sessions; the body serves the two that are read by code,
//! nested and flat, at once:
//!
//! ```json
//! { "error": { "code", "message", "target", "traceId" }, "code", "message" }
//! ```

use std::time::Duration;

use axum::Json;
use axum::http::header::{HeaderName, HeaderValue, RETRY_AFTER, WWW_AUTHENTICATE};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use sandpool_node::{NodeError, without_words};
use serde_json::json;

use crate::auth::AuthFailure;
use crate::metrics::Code;

/// The header that repeats the code.
const ERROR_CODE: HeaderName = HeaderName::from_static("x-ms-error-code");

/// A refusal, ready to be sent.
#[derive(Clone, Debug)]
pub(crate) struct Problem {
    pub(crate) status: StatusCode,
    pub(crate) code: &'static str,
    pub(crate) message: String,
    /// The field, parameter or file that it is about.
    pub(crate) target: Option<String>,
    pub(crate) retry_after: Option<Duration>,
    challenge: Option<&'static str>,
    /// An everyday answer, which is not worth a line in the log.
    is_everyday: bool,
}

impl Problem {
    pub(crate) fn new(status: StatusCode, code: &'static str, message: impl Into<String>) -> Self {
        let message = message.into();
        Self { status, code, message, target: None, retry_after: None, challenge: None, is_everyday: false }
    }

    /// A value of the request that cannot be used: 400.
    pub(crate) fn invalid(target: &str, message: impl Into<String>) -> Self {
        let problem = Self::new(StatusCode::BAD_REQUEST, "SessionRequestValidationFailed", message);
        Self { target: Some(target.to_owned()), ..problem }
    }

    /// Says what it is about, unless it says so already.
    pub(crate) fn about(mut self, target: &str) -> Self {
        self.target.get_or_insert_with(|| target.to_owned());
        self
    }

    /// When to come again.
    pub(crate) fn again_in(self, after: Duration) -> Self {
        Self { retry_after: Some(after), ..self }
    }

    /// Keeps it out of the log: it is asked for, and answered, all day.
    pub(crate) fn everyday(self) -> Self {
        Self { is_everyday: true, ..self }
    }

    /// 404 for what is no route.
    pub(crate) fn no_route(what: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, "NotFound", what)
    }
}

impl From<AuthFailure> for Problem {
    fn from(failure: AuthFailure) -> Self {
        let status = failure.status();
        let code = match status {
            StatusCode::UNAUTHORIZED => "Unauthorized",
            StatusCode::FORBIDDEN => "Forbidden",
            _ => "ServiceUnavailable",
        };
        let mut problem = Self::new(status, code, sentence(&failure.to_string()));
        problem.challenge = failure.challenge();
        if status == StatusCode::SERVICE_UNAVAILABLE {
            problem.retry_after = Some(Duration::from_secs(10));
        }
        problem
    }
}

impl From<NodeError> for Problem {
    fn from(error: NodeError) -> Self {
        let text = sentence(&error.to_string());
        let (status, code) = match &error {
            NodeError::NoPool(_) => (StatusCode::NOT_FOUND, "SessionPoolNotFound"),
            NodeError::NoSession(_) => (StatusCode::NOT_FOUND, "NoSessionFoundError"),
            NodeError::SessionLost { .. } => (StatusCode::GONE, "SessionLost"),
            NodeError::NoExecution(_) => (StatusCode::NOT_FOUND, "ExecutionNotFound"),
            NodeError::Exhausted { .. } => (StatusCode::TOO_MANY_REQUESTS, "SessionsCountExceedsLimit"),
            NodeError::OverQuota { .. } => (StatusCode::TOO_MANY_REQUESTS, "TenantQuotaExceeded"),
            NodeError::PoolBroken { .. } => (StatusCode::SERVICE_UNAVAILABLE, "SessionPoolBroken"),
            NodeError::QueueFull { .. } => (StatusCode::TOO_MANY_REQUESTS, "ExecutionQueueFull"),
            NodeError::Unsupported(_) => (StatusCode::BAD_REQUEST, "SessionRequestNotSupported"),
            NodeError::Invalid(_) => (StatusCode::BAD_REQUEST, "SessionRequestValidationFailed"),
            NodeError::NoTerminal(_) => (StatusCode::NOT_FOUND, "TerminalNotFound"),
            NodeError::TooMany(_) => (StatusCode::TOO_MANY_REQUESTS, "TerminalsCountExceedsLimit"),
            NodeError::Ended(_) => (StatusCode::CONFLICT, "ExecutionEnded"),
            NodeError::NoFile(_) => (StatusCode::NOT_FOUND, "FileNotFound"),
            NodeError::WrongKind(_) => (StatusCode::CONFLICT, "FileKindInvalid"),
            NodeError::Denied(_) => (StatusCode::FORBIDDEN, "FileAccessDenied"),
            NodeError::Refused(_) => (StatusCode::BAD_GATEWAY, "SessionPortRefused"),
            NodeError::NotReady(_) => (StatusCode::SERVICE_UNAVAILABLE, "SessionNotReady"),
            NodeError::Busy { .. } => (StatusCode::CONFLICT, "SessionBusy"),
            NodeError::Suspended(_) => (StatusCode::CONFLICT, "SessionSuspended"),
            NodeError::NotSuspendable(_) => (StatusCode::CONFLICT, "SessionNotSuspendable"),
            NodeError::SessionExists(_) => (StatusCode::CONFLICT, "SessionExists"),
            NodeError::NoSnapshot(_) => (StatusCode::NOT_FOUND, "SnapshotNotFound"),
            NodeError::SnapshotDamaged { .. } => (StatusCode::CONFLICT, "SnapshotDamaged"),
            NodeError::SnapshotUnusable { .. } => (StatusCode::CONFLICT, "SnapshotUnusable"),
            NodeError::SnapshotsFull(_) => (StatusCode::INSUFFICIENT_STORAGE, "SnapshotStorageFull"),
            NodeError::NoSpace => (StatusCode::INSUFFICIENT_STORAGE, "SessionStorageFull"),
            NodeError::Unavailable(_) => (StatusCode::SERVICE_UNAVAILABLE, "ServiceUnavailable"),
        };
        let mut problem = Self::new(status, code, text);
        match error {
            NodeError::Exhausted { pool, active, limit, retry_after } => {
                problem.message = format!(
                    "Requested 1, active {active}, limit {limit}. Every session of pool {pool} is in use; one may end in \
                     {} s, or end one with DELETE session. `sandpool session ls` says who holds them.",
                    retry_after.as_secs().max(1)
                );
                problem.retry_after = Some(retry_after);
            }
            NodeError::OverQuota { resource, retry_after, .. } => {
                problem.target = Some(resource.to_string());
                problem.retry_after = Some(retry_after);
            }
            NodeError::QueueFull { .. }
            | NodeError::NotReady(_)
            | NodeError::TooMany(_)
            | NodeError::Unavailable(_) => {
                problem.retry_after = Some(Duration::from_secs(1));
            }
            NodeError::PoolBroken { .. } => problem.retry_after = Some(Duration::from_secs(5)),
            NodeError::Busy { identifier, busy } => {
                problem.message = format!(
                    "Session {identifier} is busy: {busy} executions or transfers go on in it. Wait until they have ended, or \
                     suspend it with force, which ends them."
                );
            }
            NodeError::Suspended(identifier) => {
                problem.message =
                    format!("Session {identifier} is suspended, and this does not bring it back: resume it first.");
            }
            NodeError::SnapshotDamaged { .. } | NodeError::SnapshotUnusable { .. } => {
                problem.message.push_str(" It is kept until it is deleted with DELETE.");
            }
            _ => {}
        }
        problem
    }
}

/// An error's text as a sentence for people.
fn sentence(text: &str) -> String {
    let mut letters = text.chars();
    let first: String = letters.next().into_iter().flat_map(char::to_uppercase).collect();
    let end = if text.ends_with(['.', '!', '?']) { "" } else { "." };
    format!("{first}{}{end}", letters.as_str())
}

/// A number under which a refusal can be found again, in W3C's trace-context form: its request's, where that is traced.
fn trace_id() -> String {
    if let Some(place) = crate::traced::place() {
        return place.to_string();
    }
    let mut random = [0; 24];
    // Without random numbers it is all zeros, which says that there is none.
    let _ = getrandom::fill(&mut random);
    format!("00-{}-{}-01", hex::encode(&random[..16]), hex::encode(&random[16..]))
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let trace = trace_id();
        if self.status.is_server_error() && !self.is_everyday {
            tracing::warn!(code = self.code, trace, "a request failed: {}", without_words(&self.message));
        }
        let body = json!({
            "error": { "code": self.code, "message": self.message, "target": self.target, "traceId": trace },
            "code": self.code,
            "message": self.message,
        });
        let mut headers = HeaderMap::new();
        headers.insert(ERROR_CODE, HeaderValue::from_static(self.code));
        if let Some(after) = self.retry_after {
            let seconds = after.as_secs() + u64::from(after.subsec_nanos() > 0);
            headers.insert(RETRY_AFTER, HeaderValue::from(seconds.max(1)));
        }
        if let Some(challenge) = self.challenge {
            headers.insert(WWW_AUTHENTICATE, HeaderValue::from_static(challenge));
        }
        let mut response = (self.status, headers, Json(body)).into_response();
        response.extensions_mut().insert(Code(self.code));
        response
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use sandpool_core::ids::PoolName;

    #[test]
    fn an_exhausted_pool_says_when_to_come_again_and_who_is_in_it() {
        let pool = PoolName::parse("python").unwrap();
        let error = NodeError::Exhausted { pool, active: 10, limit: 10, retry_after: Duration::from_millis(1_500) };
        let response = Problem::from(error).into_response();
        assert_eq!(response.status(), StatusCode::TOO_MANY_REQUESTS);
        assert_eq!(response.headers()["retry-after"], "2");
        assert_eq!(response.headers()["x-ms-error-code"], "SessionsCountExceedsLimit");
    }

    #[test]
    fn a_missing_token_is_challenged() {
        let response = Problem::from(AuthFailure::Missing).into_response();
        assert_eq!(response.status(), StatusCode::UNAUTHORIZED);
        assert!(response.headers()["www-authenticate"].to_str().unwrap().starts_with("Bearer"));
    }

    #[test]
    fn errors_become_sentences() {
        assert_eq!(sentence("there is no pool x"), "There is no pool x.");
        assert_eq!(sentence("Done!"), "Done!");
    }
}
