//! Azure's MCP server of a pool, as its documentation has it called: one JSON-RPC request in a POST, one JSON answer, no
//! handshake, no MCP session, no header but the key. SDKs' servers refuse those calls, so this is written by hand.
//!
//! An environment is a session, and its id the session's identifier: what runs here is reachable by REST under the same name.
//! `launch...` only makes up a name; the session is taken by the first run. The name holds when it was made, so that a name
//! whose session has ended is told from one that was never used, also after a restart:
//!
//! ```text
//! launched less than a cool-down ago, no session  ->  not used yet: a session is taken
//! launched longer ago, no session                 ->  expired: launch again
//! ```
//!
//! A text that `launch...` did not make is good too, as on the service, and never expires.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use axum::Json;
use axum::body::Body;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use sandpool_core::ids::{Identifier, PoolName, SessionKey};
use sandpool_node::{ExecuteRequest, Execution, ExecutionState, NodeError, Open, Outcome, Rich, Runtime, Stdin, Work};
use sandpool_objects::PoolFace;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::app::App;
use crate::auth::{Principal, Role};
use crate::azure::execution::{ATTEMPTS, FOREVER, reason, whole};
use crate::azure::value::{Manner, Stream, Value as Shown};
use crate::journal::Digested;
use crate::problem::Problem;

/// The revisions whose handshake is answered in kind; others, and none, get Azure's own.
const REVISIONS: [&str; 4] = ["2024-11-05", "2025-03-26", "2025-06-18", "2025-11-25"];
const AZURES_REVISION: &str = "2025-03-26";

/// Figures of one answer, and the largest of them in bytes.
const MOST_IMAGES: usize = 4;
const LARGEST_IMAGE: usize = 1 << 20;

const PARSE_ERROR: i32 = -32_700;
const INVALID_REQUEST: i32 = -32_600;
const NO_METHOD: i32 = -32_601;
const INVALID_PARAMS: i32 = -32_602;
/// An environment that is not there (any more): clients that launch another one by themselves look for an error of the
/// protocol, and for "environment" and "not found" in its message.
const NO_ENVIRONMENT: i32 = -32_000;

/// What every name that `launch...` makes begins with.
const LAUNCHED: &str = "env-";

/// What a request is about.
struct Asked<'a> {
    app: &'a App,
    principal: Principal,
    pool: PoolName,
    face: &'a PoolFace,
}

/// An error of the protocol itself: code and sentence.
type Fault = (i32, String);

/// Answers one POST.
///
/// # Errors
/// Only before it is known who asks and for which pool; all else is told as JSON-RPC.
pub(crate) async fn answer(app: &App, pool: &str, headers: &HeaderMap, body: &mut Body) -> Result<Response, Problem> {
    let no_pool = || Problem::from(NodeError::NoPool(pool.chars().take(80).collect()));
    let pool = PoolName::parse(pool).map_err(|_| no_pool())?;
    let principal = app.auth.verify_for_pool(headers, &pool).await?;
    let face = app.pools.face(&pool).ok_or_else(no_pool)?;
    if !face.is_mcp_enabled {
        let text = format!("Pool {pool} has no MCP server: see mcpServerSettings.isMCPServerEnabled in the settings.");
        return Err(Problem::new(StatusCode::BAD_REQUEST, "SessionMCPServerNotEnabled", text));
    }
    let body = whole(body).await?;
    let asked = Asked { app, principal, pool, face: &face };
    let request: Value = match serde_json::from_slice(&body) {
        Ok(request) => request,
        Err(error) => {
            let fault = (PARSE_ERROR, format!("The body is not JSON: {error}."));
            return Ok((StatusCode::BAD_REQUEST, Json(told(&Value::Null, Err(fault)))).into_response());
        }
    };
    let id = request.get("id").unwrap_or(&Value::Null);
    let (method, is_fit) = match (request.get("method").and_then(Value::as_str), id) {
        (Some(method), Value::Null | Value::String(_) | Value::Number(_)) => (method, true),
        _ => ("", false),
    };
    if !is_fit {
        let text =
            "The body must be one JSON-RPC request: an object with a method, and an id that is a text or a number.";
        let fault = (INVALID_REQUEST, text.to_owned());
        return Ok((StatusCode::BAD_REQUEST, Json(told(&Value::Null, Err(fault)))).into_response());
    }
    if id.is_null() {
        // A notification: nobody waits for what comes of it, and none means anything here.
        return Ok(StatusCode::ACCEPTED.into_response());
    }
    let params = request.get("params").unwrap_or(&Value::Null);
    let outcome = match method {
        "initialize" => Ok(initialized(asked.app, params)),
        "ping" => Ok(json!({})),
        "tools/list" => Ok(json!({ "tools": tools() })),
        "tools/call" => {
            let trace = sandpool_telemetry::current();
            let name = params.get("name").and_then(Value::as_str).unwrap_or_default();
            let name = NAMES.into_iter().find(|known| *known == name);
            let meta = params.get("_meta").and_then(|meta| meta.get(crate::traced::TRACEPARENT));
            let span = name.and_then(|name| crate::traced::tool(trace.as_ref(), meta, name));
            let inside = span.as_ref().map(|span| span.trace().clone());
            let outcome = sandpool_telemetry::scope(inside.or(trace), call(&asked, params)).await;
            if let Some(span) = span {
                span.end(outcome.is_err().then_some("toolFailed"));
            }
            outcome
        }
        other => Err((NO_METHOD, format!("There is no method {:?} here.", shortened(other)))),
    };
    Ok(Json(told(id, outcome)).into_response())
}

fn told(id: &Value, outcome: Result<Value, Fault>) -> Value {
    match outcome {
        Ok(result) => json!({ "jsonrpc": "2.0", "id": id, "result": result }),
        Err((code, message)) => json!({ "jsonrpc": "2.0", "id": id, "error": { "code": code, "message": message } }),
    }
}

fn initialized(app: &App, params: &Value) -> Value {
    let wanted = params.get("protocolVersion").and_then(Value::as_str);
    json!({
        "protocolVersion": wanted.filter(|wanted| REVISIONS.contains(wanted)).unwrap_or(AZURES_REVISION),
        // `call` and `list` are Azure's own words.
        "capabilities": { "tools": { "call": true, "list": true, "listChanged": false } },
        "serverInfo": { "name": "Sandpool", "version": app.version },
        "instructions": "Call launchShell or launchPythonEnvironment once, and give its environmentId to every run.",
    })
}

/// The tools, the same whatever the pool is.
fn tools() -> Value {
    let environment = json!({ "type": "string", "description": "What a launch tool answered." });
    let timeout = json!({ "type": "number", "description": "Seconds after which it is ended." });
    let nothing = json!({ "type": "object", "properties": {} });
    json!([
        {
            "name": "launchShell",
            "description": "Launches an isolated shell environment and answers its environmentId. It ends when it is not \
                used for some minutes.",
            "inputSchema": nothing,
        },
        {
            "name": "runShellCommandInRemoteEnvironment",
            "description": "Runs a command in an environment: shellCommand, or execCommandAndArgs without a shell. Files \
                in /mnt/data stay until the environment ends.",
            "inputSchema": {
                "type": "object",
                "properties": {
                    "environmentId": environment,
                    "shellCommand": { "type": "string", "description": "A command line for bash." },
                    "execCommandAndArgs": {
                        "type": "array", "items": { "type": "string" },
                        "description": "A program and its arguments. Not together with shellCommand.",
                    },
                    "timeoutSeconds": timeout,
                },
                "required": ["environmentId"],
            },
        },
        {
            "name": "launchPythonEnvironment",
            "description": "Launches an isolated Python environment and answers its environmentId. It ends when it is not \
                used for some minutes.",
            "inputSchema": nothing,
        },
        {
            "name": "runPythonCodeInRemoteEnvironment",
            "description": "Runs Python code in an environment. Variables and files in /mnt/data stay until it ends. \
                Figures that are shown are answered as images.",
            "inputSchema": {
                "type": "object",
                "properties": {
                    "environmentId": environment,
                    "pythonCode": { "type": "string", "description": "The code." },
                    "timeoutSeconds": timeout,
                },
                "required": ["environmentId", "pythonCode"],
            },
        },
    ])
}

/// What a tool is given. What it has no use for is let pass; an empty text or list is none, for models fill in all fields.
#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Arguments {
    environment_id: Option<String>,
    shell_command: Option<String>,
    exec_command_and_args: Option<Vec<String>>,
    python_code: Option<String>,
    timeout_seconds: Option<f64>,
}

/// The tools' names.
const NAMES: [&str; 5] = [
    "launchShell",
    "launchShellEnvironment",
    "launchPythonEnvironment",
    "runShellCommandInRemoteEnvironment",
    "runPythonCodeInRemoteEnvironment",
];

/// What goes wrong in a tool.
enum Failed {
    /// Told to the model, which can mend it.
    Told(String),
    /// Told to the client, which may launch another environment by itself.
    NoEnvironment(String),
}

async fn call(asked: &Asked<'_>, params: &Value) -> Result<Value, Fault> {
    let name = params.get("name").and_then(Value::as_str).unwrap_or_default();
    let arguments = match params.get("arguments") {
        None | Some(Value::Null) => Ok(Arguments::default()),
        Some(arguments) => Arguments::deserialize(arguments),
    };
    let outcome = match arguments {
        Err(error) => Err(Failed::Told(format!("The arguments cannot be read: {error}."))),
        Ok(arguments) => match name {
            "launchShell" | "launchShellEnvironment" | "launchPythonEnvironment" => launch(asked),
            "runShellCommandInRemoteEnvironment" => match command(&arguments) {
                Ok(work) => run(asked, arguments, work, "launchShell").await,
                Err(failed) => Err(failed),
            },
            "runPythonCodeInRemoteEnvironment" => match code(asked, &arguments) {
                Ok(work) => run(asked, arguments, work, "launchPythonEnvironment").await,
                Err(failed) => Err(failed),
            },
            other => return Err((INVALID_PARAMS, format!("Unknown tool: {}", shortened(other)))),
        },
    };
    match outcome {
        Ok(result) => Ok(result),
        Err(Failed::Told(text)) => Ok(json!({ "content": [{ "type": "text", "text": text }], "isError": true })),
        Err(Failed::NoEnvironment(text)) => Err((NO_ENVIRONMENT, text)),
    }
}

fn launch(asked: &Asked<'_>) -> Result<Value, Failed> {
    let identifier = match &asked.principal.session {
        // Whoever is bound to one session has one environment.
        Some(own) => own.clone(),
        None => launched(SystemTime::now()).ok_or_else(|| Failed::Told("No random numbers: try again.".to_owned()))?,
    };
    let structured = json!({ "environmentId": identifier });
    Ok(json!({
        "content": [{ "type": "text", "text": structured.to_string() }],
        "structuredContent": structured,
        "isError": false,
    }))
}

/// A new name: `env-`, twelve digits of the time in milliseconds, `-`, twenty random ones.
fn launched(at: SystemTime) -> Option<String> {
    let mut random = [0; 10];
    getrandom::fill(&mut random).ok()?;
    let milliseconds = at.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis());
    Some(format!("{LAUNCHED}{milliseconds:012x}-{}", hex::encode(random)))
}

/// When a name was made, if `launch...` made it.
fn launched_at(name: &str) -> Option<SystemTime> {
    let (time, random) = name.strip_prefix(LAUNCHED)?.split_once('-')?;
    let is_hex = |text: &str| text.bytes().all(|byte| byte.is_ascii_hexdigit());
    if time.len() != 12 || random.len() != 20 || !is_hex(time) || !is_hex(random) {
        return None;
    }
    Some(UNIX_EPOCH + Duration::from_millis(u64::from_str_radix(time, 16).ok()?))
}

fn command(arguments: &Arguments) -> Result<Work, Failed> {
    let line = arguments.shell_command.clone().filter(|line| !line.is_empty());
    let argv = arguments.exec_command_and_args.clone().filter(|argv| !argv.is_empty());
    match (line, argv) {
        (Some(command), None) => Ok(Work::Shell { command, stdin: Stdin::Empty }),
        (None, Some(argv)) => Ok(Work::Argv { argv, stdin: Stdin::Empty }),
        _ => Err(Failed::Told("Give exactly one of shellCommand and execCommandAndArgs.".to_owned())),
    }
}

fn code(asked: &Asked<'_>, arguments: &Arguments) -> Result<Work, Failed> {
    let runtime = asked.app.node.spec(&asked.pool).map_err(|error| failed(error, ""))?.runtime;
    if runtime != Runtime::Python {
        let text =
            format!("The pool {} does not run Python. Call runShellCommandInRemoteEnvironment instead.", asked.pool);
        return Err(Failed::Told(text));
    }
    match arguments.python_code.clone() {
        Some(code) => Ok(Work::Code { code, fresh: false }),
        None => Err(Failed::Told("Give the code in pythonCode.".to_owned())),
    }
}

async fn run(asked: &Asked<'_>, arguments: Arguments, work: Work, launch: &str) -> Result<Value, Failed> {
    let Some(name) = arguments.environment_id else {
        return Err(Failed::Told(format!("Give an environmentId: call {launch} to get one.")));
    };
    let identifier = Identifier::parse(&name)
        .map_err(|error| Failed::Told(format!("The environmentId is not one: {error}. Call {launch} to get one.")))?;
    let (node, pool, principal) = (&asked.app.node, &asked.pool, &asked.principal);
    principal
        .may(Role::Executor, pool, Some(&identifier))
        .map_err(|error| Failed::Told(Problem::from(error).message))?;
    let timeout = match arguments.timeout_seconds {
        None => None,
        Some(seconds) => Some(
            Duration::try_from_secs_f64(seconds)
                .ok()
                .filter(|timeout| !timeout.is_zero())
                .ok_or_else(|| Failed::Told("timeoutSeconds must be a number above 0.".to_owned()))?,
        ),
    };
    let key = SessionKey::new(principal.tenant.clone(), identifier);
    let spec = node.spec(pool).map_err(|error| failed(error, launch))?;
    let timeout = timeout.map(|timeout| timeout.min(spec.max_timeout));
    let request = ExecuteRequest { id: None, work, timeout, output_limit: None };
    let kept = spec.life.max_alive.map_or(spec.life.cooldown, |most| most.min(spec.life.cooldown));
    let mut attempt = 1;
    let handle = loop {
        // The session that was used within its cool-down is there; of one that is not there the name says how old it is.
        let is_old = launched_at(&name).is_some_and(|at| at.elapsed().is_ok_and(|age| age > kept));
        let open = if is_old { Open::Existing } else { Open::OrCreate };
        node.open(pool, &key, open, &principal.caller()).await.map_err(|error| failed(error, launch))?;
        match node.execute(pool, &key, request.clone()).await {
            // It ended between the two.
            Err(NodeError::NoSession(_)) if attempt < ATTEMPTS => attempt += 1,
            handle => break handle.map_err(|error| failed(error, launch))?,
        }
    };
    Digested::of(&request).accepted(principal, &handle);
    Ok(shown(asked, handle.wait(FOREVER).await))
}

/// What stands in the way, and what to do next.
fn failed(error: NodeError, launch: &str) -> Failed {
    let again = format!("call {launch} again and use the new environmentId");
    match error {
        NodeError::NoSession(name) => Failed::NoEnvironment(format!(
            "Environment not found: {name}. It has expired, and its files and variables are gone: {again}."
        )),
        lost @ NodeError::SessionLost { .. } => {
            let why = Problem::from(lost).message;
            Failed::NoEnvironment(format!("Environment not found: {why} Its files and variables are gone: {again}."))
        }
        other => Failed::Told(Problem::from(other).message),
    }
}

fn shown(asked: &Asked<'_>, mut execution: Execution) -> Value {
    let value = Shown::of(&execution, Manner::default());
    let images = images(&execution);
    let (exit_code, why) = match &execution.state {
        ExecutionState::Ended(outcome) => (exit_code(outcome), reason(outcome, execution.state_lost)),
        ExecutionState::Queued | ExecutionState::Running => (-1, Some("The execution has not ended.".to_owned())),
    };
    if let Some(why) = why {
        if !execution.stderr.is_empty() && !execution.stderr.ends_with(b"\n") {
            execution.stderr.push(b'\n');
        }
        execution.stderr.extend_from_slice(why.as_bytes());
    }
    let limit = Some(asked.face.default_output_limit);
    let stdout = Stream::new(std::mem::take(&mut execution.stdout), execution.dropped.0, limit);
    let stderr = Stream::new(std::mem::take(&mut execution.stderr), execution.dropped.1, limit);
    let mut structured = json!({ "stdout": stdout.text, "stderr": stderr.text, "exitCode": exit_code });
    match value {
        Shown::Image { format, .. } => structured["executionResult"] = json!({ "type": "image", "format": format }),
        Shown::Text(text) if text.is_empty() => {}
        value => structured["executionResult"] = json!(value),
    }
    let mut content = vec![json!({ "type": "text", "text": structured.to_string() })];
    content.extend(images);
    json!({ "content": content, "structuredContent": structured, "isError": exit_code != 0 })
}

/// As the command line has it.
fn exit_code(outcome: &Outcome) -> i32 {
    match outcome {
        Outcome::Succeeded => 0,
        Outcome::Raised => 1,
        Outcome::Exited(code) => *code,
        Outcome::TimedOut => 124,
        Outcome::NotStarted(_) => 127,
        Outcome::Cancelled => 130,
        Outcome::Died(_) => 137,
    }
}

/// All that was shown and is an image, in order.
fn images(execution: &Execution) -> Vec<Value> {
    const KINDS: [&str; 4] = ["image/png", "image/jpeg", "image/webp", "image/gif"];
    let image = |rich: &Rich| {
        let (kind, data) = KINDS.iter().find_map(|kind| rich.forms.iter().find(|(known, _)| known == kind))?;
        Some(if data.len() > LARGEST_IMAGE {
            json!({ "type": "text", "text": format!("An image of {} bytes is too large to be shown.", data.len()) })
        } else {
            json!({ "type": "image", "data": STANDARD.encode(data), "mimeType": kind })
        })
    };
    execution.displays.iter().chain(&execution.result).filter_map(image).take(MOST_IMAGES).collect()
}

fn shortened(text: &str) -> String {
    text.chars().take(80).collect()
}

#[cfg(test)]
mod tests;
