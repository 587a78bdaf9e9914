//! Running code and commands, and telling what came of it in the shape of the route.

use std::collections::{HashMap, VecDeque};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use axum::Json;
use axum::body::Body;
use axum::http::header::{HeaderName, USER_AGENT};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use futures::StreamExt;
use http_body_util::{BodyExt, LengthLimitError, Limited};
use sandpool_core::ids::{ExecutionId, Identifier, SessionKey};
use sandpool_node::{ExecuteRequest, Execution, ExecutionState, NodeError, Open, Opened, Outcome, Runtime};
use serde::Serialize;
use serde_json::Value as Json_;
use sha2::{Digest, Sha256};

use super::body::{Fields, MAX_BODY, Wanted};
use super::route::Envelope;
use super::value::{Manner, Stream, Value, outputs};
use super::{Call, insert, no_identifier, tell_session};
use crate::journal::Digested;
use crate::problem::Problem;

const OPERATION_ID: HeaderName = HeaderName::from_static("operation-id");
const OPERATION_LOCATION: HeaderName = HeaderName::from_static("operation-location");
/// Ours: the streams that the answer does not hold whole.
const TRUNCATED: HeaderName = HeaderName::from_static("x-sandpool-truncated");

/// The longest `operation-id`, in characters.
const MAX_OPERATION_ID: usize = 128;

/// Executions whose wishes are remembered.
const REMEMBERED: usize = 16_384;

/// How long an asynchronous execution may take to begin before its answer says that it has not.
const BEGINS: Duration = Duration::from_millis(50);

/// How often an execution is tried anew when its session ends under it.
pub(crate) const ATTEMPTS: usize = 3;

/// The longest wait for the end of an execution; each has a time-out that is far shorter.
pub(crate) const FOREVER: Duration = Duration::from_secs(7 * 24 * 3600);

/// What a caller asked for besides running: remembered for when the execution is read again. The oldest are forgotten;
/// then the pool's own settings hold.
#[derive(Debug, Default)]
pub(crate) struct Memory {
    inner: Mutex<Kept>,
}

/// By pool, session and execution; the order is that of their coming.
#[derive(Debug, Default)]
struct Kept {
    wishes: HashMap<[u8; 32], Wishes>,
    order: VecDeque<[u8; 32]>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Wishes {
    is_asynchronous: bool,
    jupyter_format: bool,
    output_length: Option<u64>,
}

impl Memory {
    fn key(call: &Call, session: &SessionKey, id: ExecutionId) -> [u8; 32] {
        let mut hash = Sha256::new();
        hash.update(call.pool.as_str());
        hash.update([0]);
        hash.update(session.tenant.as_str());
        hash.update([0]);
        hash.update(session.identifier.as_str());
        hash.update([0]);
        hash.update(id.0);
        hash.finalize().into()
    }

    fn keep(&self, key: [u8; 32], wishes: Wishes) {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        let Kept { wishes: kept, order } = &mut *inner;
        if kept.insert(key, wishes).is_none() {
            order.push_back(key);
        }
        if order.len() > REMEMBERED
            && let Some(oldest) = order.pop_front()
        {
            kept.remove(&oldest);
        }
    }

    fn find(&self, key: &[u8; 32]) -> Wishes {
        let inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        inner.wishes.get(key).copied().unwrap_or_default()
    }
}

/// Runs something.
pub(super) async fn run(mut call: Call, envelope: Envelope, body: &mut Body) -> Result<Response, Problem> {
    let fields = Fields::parse(&whole(body).await?)?;
    if call.session.is_none() {
        let identifier = fields.identifier()?.ok_or_else(no_identifier)?;
        call.principal = call.app.admit(&call.headers, call.role, &call.pool, Some(&identifier)).await?;
        call.session = Some(SessionKey::new(call.principal.room(call.query.get("tenant"))?, identifier));
    }
    let wanted = fields.wanted(call.runtime)?;
    let key = call.session()?.clone();
    let own_id = own_id(&call.headers)?;
    let began = Instant::now();
    let Wanted { work, is_asynchronous, timeout, output_length, jupyter_format } = wanted;
    let request = ExecuteRequest { id: own_id.as_deref().map(execution_id), work, timeout, output_limit: None };
    let mut retries = 0;
    let (opened, allocated, handle) = loop {
        let opened = call.open(&key, Open::OrCreate).await?;
        let allocated = Instant::now();
        match call.app.node.execute(&call.pool, &key, request.clone()).await {
            // It ended between the two: the next look makes it anew.
            Err(NodeError::NoSession(_)) if retries + 1 < ATTEMPTS => retries += 1,
            handle => break (opened, allocated, handle?),
        }
    };
    Digested::of(&request).accepted(&call.principal, &handle);
    let accepted = allocated.elapsed();
    let wishes = Wishes { is_asynchronous, jupyter_format, output_length };
    if wishes != Wishes::default() {
        call.memory.keep(Memory::key(&call, &key, handle.id()), wishes);
    }
    let execution = if is_asynchronous {
        handle.kept().await?;
        // Whether it began or waits: the first event says so, and no answer waits long for it.
        let begun = tokio::time::timeout(BEGINS, handle.events(0).next()).await.is_ok_and(|event| event.is_some());
        let state = if begun { ExecutionState::Running } else { ExecutionState::Queued };
        Execution { state, ..handle.snapshot() }
    } else {
        handle.wait(FOREVER).await
    };
    let ended = Instant::now();
    let shown_id = own_id.unwrap_or_else(|| handle.id().to_string());
    let timed = Timed { retries, began, accepted, ended, queued: execution.queued, inside: execution.duration };
    let status = if is_asynchronous { StatusCode::ACCEPTED } else { StatusCode::OK };
    let mut response = tell(&call, &key.identifier, &shown_id, execution, wishes, envelope, status);
    let headers = response.headers_mut();
    tell_session(headers, &opened);
    timed.tell(headers, &opened, call.arrived);
    Ok(response)
}

/// Reads an execution again.
pub(super) async fn read(call: &Call, envelope: Envelope) -> Result<Response, Problem> {
    let key = call.session()?;
    let shown_id = call.held.first().map(|bytes| String::from_utf8_lossy(bytes).into_owned()).unwrap_or_default();
    let id = execution_id(&shown_id);
    let execution = match call.app.node.execution(&call.pool, key, &id).await {
        Ok(handle) => handle.snapshot(),
        Err(error) => call.app.node.past_execution(&call.pool, key, id).await.ok_or_else(|| match error {
            NodeError::NoExecution(_) => NodeError::NoExecution(shown_id.chars().take(MAX_OPERATION_ID).collect()),
            error => error,
        })?,
    };
    let mut wishes = call.memory.find(&Memory::key(call, key, id));
    if let Some(length) = call.query.number("outputstreamsmaxlength")? {
        wishes.output_length = Some(length);
    }
    let mut response = tell(call, &key.identifier, &shown_id, execution, wishes, envelope, StatusCode::OK);
    if let Ok(session) = call.app.node.session(&call.pool, key) {
        insert(response.headers_mut(), super::SESSION_GUID, &session.sandbox.to_string());
    }
    Ok(response)
}

/// The whole body, if it is not too long.
pub(crate) async fn whole(body: &mut Body) -> Result<bytes::Bytes, Problem> {
    match Limited::new(body, MAX_BODY).collect().await {
        Ok(collected) => Ok(collected.to_bytes()),
        Err(error) if error.is::<LengthLimitError>() => {
            let message = format!("The body is longer than {MAX_BODY} bytes. Upload what is long as a file.");
            Err(Problem::new(StatusCode::PAYLOAD_TOO_LARGE, "RequestBodyTooLarge", message))
        }
        Err(_) => Err(Problem::invalid("body", "The body broke off.")),
    }
}

/// The id that the caller wants for it.
fn own_id(headers: &HeaderMap) -> Result<Option<String>, Problem> {
    let Some(value) = headers.get(OPERATION_ID) else { return Ok(None) };
    match value.to_str() {
        Ok("") => Ok(None),
        Ok(text) if text.len() <= MAX_OPERATION_ID && text.bytes().all(|byte| byte.is_ascii_graphic()) => {
            Ok(Some(text.to_owned()))
        }
        _ => {
            let message = format!("The header operation-id has up to {MAX_OPERATION_ID} visible ASCII characters.");
            Err(Problem::invalid("operation-id", message))
        }
    }
}

/// The execution that a text names: a UUID is itself, any other text is always the same one.
fn execution_id(text: &str) -> ExecutionId {
    ExecutionId::parse(text).unwrap_or_else(|| {
        let digest: [u8; 32] = Sha256::digest(text.as_bytes()).into();
        let mut bytes = [0; 16];
        bytes.copy_from_slice(&digest[..16]);
        ExecutionId::from_random(bytes)
    })
}

/// When what happened.
struct Timed {
    retries: usize,
    began: Instant,
    accepted: Duration,
    ended: Instant,
    queued: Option<Duration>,
    inside: Option<Duration>,
}

impl Timed {
    fn tell(&self, headers: &mut HeaderMap, opened: &Opened, arrived: Instant) {
        let allocation = if opened.new { opened.took } else { Duration::ZERO };
        let times = [
            ("x-ms-allocation-time", Some(allocation)),
            ("x-ms-preparation-time", self.queued),
            ("x-ms-execution-request-time", Some(self.accepted)),
            ("x-ms-execution-read-response-time", Some(self.ended.elapsed())),
            ("x-ms-container-execution-duration", self.inside),
            ("x-ms-overall-execution-time", Some(self.began.elapsed())),
            ("x-ms-total-execution-service-time", Some(arrived.elapsed())),
        ];
        for (name, time) in times {
            if let Some(time) = time {
                let text = format!("{:.3}", time.as_secs_f64() * 1_000.0);
                insert(headers, HeaderName::from_static(name), &text);
            }
        }
        insert(headers, HeaderName::from_static("x-ms-allocation-retries"), &self.retries.to_string());
    }
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Modern<'a> {
    id: &'a str,
    identifier: &'a str,
    execution_type: &'a str,
    status: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    result: Option<ModernResult<'a>>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ModernResult<'a> {
    stdout: &'a str,
    stderr: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    execution_result: Option<&'a Value>,
    execution_time_in_milliseconds: u64,
    /// Ours: all that was shown.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    outputs: Vec<Json_>,
    /// Ours: the streams that are not whole, and where to read them whole.
    #[serde(skip_serializing_if = "Option::is_none")]
    truncated: Option<Truncated<'a>>,
    /// Ours: what ended it, if that was not its own end.
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'a str>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Truncated<'a> {
    streams: &'a [&'static str],
    #[serde(skip_serializing_if = "Option::is_none")]
    full_output: Option<String>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Legacy<'a> {
    #[serde(rename = "$id")]
    number: &'static str,
    id: &'a str,
    identifier: &'a str,
    status: &'a str,
    result: &'a Value,
    stdout: &'a str,
    stderr: &'a str,
    properties: LegacyProperties<'a>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct LegacyProperties<'a> {
    #[serde(rename = "$id")]
    number: &'static str,
    status: &'a str,
    stdout: &'a str,
    stderr: &'a str,
    result: &'a Value,
    execution_result: &'a Value,
    execution_time_in_milliseconds: u64,
}

/// An execution's answer.
fn tell(
    call: &Call,
    identifier: &Identifier,
    id: &str,
    mut execution: Execution,
    wishes: Wishes,
    envelope: Envelope,
    code: StatusCode,
) -> Response {
    let runtime = call.runtime;
    let verdict = Verdict::of(&execution.state, runtime, execution.state_lost, envelope);
    if let Some(reason) = &verdict.on_stderr {
        if !execution.stderr.is_empty() && !execution.stderr.ends_with(b"\n") {
            execution.stderr.push(b'\n');
        }
        execution.stderr.extend_from_slice(reason.as_bytes());
    }
    let limit = match envelope {
        Envelope::Modern => Some(wishes.output_length.unwrap_or(call.face.default_output_limit)),
        Envelope::Legacy => None,
    };
    let (kept_out, kept_err) = (execution.stdout.len(), execution.stderr.len());
    let stdout = Stream::new(std::mem::take(&mut execution.stdout), execution.dropped.0, limit);
    let stderr = Stream::new(std::mem::take(&mut execution.stderr), execution.dropped.1, limit);
    let cut: Vec<&'static str> = [("stdout", stdout.is_cut), ("stderr", stderr.is_cut)]
        .into_iter()
        .filter_map(|(name, is_cut)| is_cut.then_some(name))
        .collect();
    let text_only = is_dotnet(&call.headers);
    let value = Value::of(&execution, Manner { jupyter_format: wishes.jupyter_format, text_only });
    let milliseconds = execution.duration.map_or(0, |time| u64::try_from(time.as_millis()).unwrap_or(u64::MAX));
    let mut response = match envelope {
        Envelope::Modern => {
            let truncated = (!cut.is_empty()).then(|| {
                let all = kept_out.max(kept_err).max(1).min(i32::MAX as usize);
                let more = format!("&outputStreamsMaxLength={all}");
                let path = format!("executions/{}", percent_encoding::utf8_percent_encode(id, crate::app::SEGMENT));
                Truncated { streams: &cut, full_output: Some(call.link(&path, Some(identifier), &more)) }
            });
            let result = verdict.has_ended.then(|| ModernResult {
                stdout: &stdout.text,
                stderr: &stderr.text,
                execution_result: (!verdict.is_command).then_some(&value),
                execution_time_in_milliseconds: milliseconds,
                outputs: outputs(&execution),
                truncated,
                reason: verdict.reason.as_deref(),
            });
            let execution_type = if wishes.is_asynchronous { "Asynchronous" } else { "Synchronous" };
            let body = Modern { id, identifier: identifier.as_str(), execution_type, status: &verdict.word, result };
            (code, Json(body)).into_response()
        }
        Envelope::Legacy => {
            let body = Legacy {
                number: "1",
                id,
                identifier: identifier.as_str(),
                status: &verdict.word,
                result: &value,
                stdout: &stdout.text,
                stderr: &stderr.text,
                properties: LegacyProperties {
                    number: "2",
                    status: &verdict.word,
                    stdout: &stdout.text,
                    stderr: &stderr.text,
                    result: &value,
                    execution_result: &value,
                    execution_time_in_milliseconds: milliseconds,
                },
            };
            (code, Json(body)).into_response()
        }
    };
    let headers = response.headers_mut();
    insert(headers, OPERATION_ID, id);
    let path = format!("executions/{}", percent_encoding::utf8_percent_encode(id, crate::app::SEGMENT));
    insert(headers, OPERATION_LOCATION, &call.link(&path, Some(identifier), ""));
    if !cut.is_empty() {
        insert(headers, TRUNCATED, &cut.join(", "));
    }
    response
}

/// How an execution ended, in the words of its route.
#[derive(Debug, PartialEq, Eq)]
struct Verdict {
    word: String,
    has_ended: bool,
    /// The word is an exit code, and there is no value.
    is_command: bool,
    reason: Option<String>,
    /// The reason, where clients look for it.
    on_stderr: Option<String>,
}

impl Verdict {
    fn of(state: &ExecutionState, runtime: Runtime, state_lost: bool, envelope: Envelope) -> Self {
        let (good, bad) = match envelope {
            Envelope::Modern => ("Succeeded", "Failed"),
            Envelope::Legacy => ("Success", "Failure"),
        };
        let outcome = match state {
            ExecutionState::Queued => return Self::going("NotStarted", runtime),
            ExecutionState::Running => return Self::going("Running", runtime),
            ExecutionState::Ended(outcome) => outcome,
        };
        let reason = reason(outcome, state_lost);
        let is_command = runtime == Runtime::Shell || matches!(outcome, Outcome::Exited(_));
        // A command's own streams are left as they are, unless it never had any.
        let on_stderr = match outcome {
            Outcome::NotStarted(_) => reason.clone(),
            _ if is_command => None,
            _ => reason.clone(),
        };
        let word = match outcome {
            Outcome::Exited(code) if envelope == Envelope::Modern => code.to_string(),
            Outcome::Exited(0) | Outcome::Succeeded => good.to_owned(),
            // As a shell has it for a program that cannot be run.
            Outcome::NotStarted(_) if is_command && envelope == Envelope::Modern => "127".to_owned(),
            _ if is_command && envelope == Envelope::Modern => "-1".to_owned(),
            Outcome::Cancelled if envelope == Envelope::Modern => "Canceled".to_owned(),
            _ => bad.to_owned(),
        };
        Self { word, has_ended: true, is_command, reason, on_stderr }
    }

    fn going(word: &str, runtime: Runtime) -> Self {
        let is_command = runtime == Runtime::Shell;
        Self { word: word.to_owned(), has_ended: false, is_command, reason: None, on_stderr: None }
    }
}

/// What ended it, if that was not its own end.
pub(crate) fn reason(outcome: &Outcome, state_lost: bool) -> Option<String> {
    let lost = if state_lost { " The interpreter was started anew, and its variables are gone." } else { "" };
    match outcome {
        Outcome::Succeeded | Outcome::Raised | Outcome::Exited(_) => None,
        Outcome::TimedOut => Some(format!("The execution timed out: its time limit passed before it ended.{lost}")),
        Outcome::Cancelled => Some(format!("The execution was canceled.{lost}")),
        Outcome::NotStarted(why) => Some(format!("The execution could not be started: {why}.")),
        Outcome::Died(how) => Some(format!("The execution was aborted: {how}.{lost}")),
    }
}

/// Semantic-kernel for .NET reads the value into a text, and throws at anything else.
fn is_dotnet(headers: &HeaderMap) -> bool {
    let agent = headers.get(USER_AGENT).and_then(|value| value.to_str().ok()).unwrap_or_default().to_ascii_lowercase();
    agent.starts_with("semantic-kernel/") && agent.contains("language=dotnet")
}
