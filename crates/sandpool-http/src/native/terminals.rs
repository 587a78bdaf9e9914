//! Terminals of a session: over a WebSocket, by name, found again after a broken connection and after this server.
//!
//! ```text
//! GET .../terminals/{terminal}   upgraded; bytes are what is typed and shown, texts are JSON
//!   -> attached, output..., missed, output..., ended, close        <- input, resize, signal
//! GET .../terminals     DELETE .../terminals/{terminal}
//! ```
//!
//! Whoever looks slowly costs one message and misses bytes: the terminal's agent keeps its end, and nothing is kept here.

mod said;

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use axum::Json;
use axum::extract::ws::rejection::WebSocketUpgradeRejection;
use axum::extract::ws::{CloseFrame, Message, WebSocket, WebSocketUpgrade, close_code};
use axum::extract::{FromRequestParts, Request, State};
use axum::http::header::{AUTHORIZATION, HOST, HeaderName, HeaderValue, ORIGIN, SEC_WEBSOCKET_PROTOCOL, UPGRADE};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use futures::stream::{SplitSink, SplitStream};
use futures::{SinkExt, StreamExt};
use sandpool_core::ids::{ExecutionId, PoolName, SessionKey, TerminalName};
use sandpool_node::{
    NewTerminal, NodeError, Open, Outcome, TerminalEvent, TerminalInfo, TerminalInput, TerminalOutput, TerminalRequest,
    TerminalSize, TerminalView,
};
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio::time::Instant;

use self::said::Said;
use super::asked::Asked;
use super::shown;
use crate::app::App;
use crate::auth::{AuthFailure, Role};
use crate::journal::{self, Did};
use crate::problem::Problem;

/// The protocol that is spoken over the WebSocket.
const PROTOCOL: &str = "sandpool.terminal.v1";

/// Before a token among the protocols that are offered: browsers cannot send it elsewhere.
pub(crate) const BEARER: &str = "sandpool.bearer.";

/// The longest message of a client, in bytes: a paste.
const MAX_MESSAGE: usize = 1 << 20;

/// Bytes of a terminal's command, at most: as its agent takes them.
const MAX_COMMAND: usize = 32 * 1024;

/// What is wrong with messages is answered; of more than so many that wait to be sent, the others are dropped.
const REPLIES: usize = 8;

/// How often a client is asked whether it is still there, and how long its silence may last.
const ASKED: Duration = Duration::from_secs(20);
const SILENCE: Duration = Duration::from_secs(70);

/// How long a client may take for one message, before it is given up.
const PATIENCE: Duration = Duration::from_secs(60);

/// How long a client may take to close the connection after it has heard the end.
const FAREWELL: Duration = Duration::from_secs(5);

/// Upgrades to a WebSocket, and attaches to a terminal in a session that is found or made.
pub(super) async fn attach(State(app): State<App>, request: Request) -> Response {
    match upgraded(&app, request).await {
        Ok(response) => response,
        Err(problem) => {
            let wants_upgrade = problem.status == StatusCode::UPGRADE_REQUIRED;
            let mut response = problem.into_response();
            if wants_upgrade {
                response.headers_mut().insert(UPGRADE, HeaderValue::from_static("websocket"));
            }
            response
        }
    }
}

async fn upgraded(app: &App, request: Request) -> Result<Response, Problem> {
    let (mut parts, _) = request.into_parts();
    let offered = Offered::read(&parts.headers)?;
    if is_foreign(&parts.headers) && offered.token.is_none() && !parts.headers.contains_key(AUTHORIZATION) {
        let text =
            "A page of another origin must bring its token in the handshake: as the subprotocol sandpool.bearer.TOKEN.";
        return Err(Problem::new(StatusCode::FORBIDDEN, "OriginNotAllowed", text));
    }
    if let Some(token) = &offered.token {
        // Two could be two people.
        if parts.headers.contains_key(AUTHORIZATION) {
            return Err(AuthFailure::Malformed.into());
        }
        let value = HeaderValue::try_from(format!("Bearer {token}")).map_err(|_| AuthFailure::Malformed)?;
        parts.headers.insert(AUTHORIZATION, value);
    }
    let asked = Asked::from_request_parts(&mut parts, app).await?;
    let (pool, key, name) = asked.terminal(Role::Executor)?;
    let upgrade = WebSocketUpgrade::from_request_parts(&mut parts, app).await.map_err(|why| no_websocket(&why))?;
    if offered.any && !offered.ours {
        let text = format!("The protocol {PROTOCOL} must be among those that are offered.");
        return Err(Problem::invalid("Sec-WebSocket-Protocol", text));
    }
    let is_there = asked.flag("existing")?;
    let request = read(&asked, name)?;
    let open = if is_there || request.make.is_none() { Open::Existing } else { Open::OrCreate };
    app.node.open(&pool, &key, open, &asked.principal.caller()).await?;
    let view = app.node.attach(&pool, &key, request).await.map_err(|error| Problem::from(error).about("terminal"))?;
    let did = if view.is_new { Did::OpenedTerminal } else { Did::AttachedTerminal };
    let about = format!("{} execution:{}", view.terminal.name, view.terminal.execution);
    journal::did(&app.node, &asked.principal, (&pool, &key), did, &about);
    let mut response = upgrade
        .max_message_size(MAX_MESSAGE)
        .max_frame_size(MAX_MESSAGE)
        .protocols([PROTOCOL])
        .on_upgrade(move |socket| talk(socket, view));
    // Proxies that gather what is said would hold it back.
    response.headers_mut().insert(HeaderName::from_static("x-accel-buffering"), HeaderValue::from_static("no"));
    Ok(response)
}

/// The terminals of a session, oldest first.
pub(super) async fn list(State(app): State<App>, asked: Asked) -> Result<Json<Value>, Problem> {
    let (pool, key) = asked.session(Role::Reader)?;
    let terminals = app.node.terminals(&pool, &key).await?;
    Ok(Json(json!({ "value": terminals.iter().map(shown_terminal).collect::<Vec<_>>() })))
}

/// Hangs a terminal up, and ends what it started.
pub(super) async fn end(State(app): State<App>, asked: Asked) -> Result<StatusCode, Problem> {
    let (pool, key, name) = asked.terminal(Role::Executor)?;
    app.node.hang_up(&pool, &key, &name).await.map_err(|error| Problem::from(error).about("terminal"))?;
    journal::did(&app.node, &asked.principal, (&pool, &key), Did::EndedTerminal, name.as_str());
    Ok(StatusCode::NO_CONTENT)
}

impl Asked {
    /// The pool, the session and the terminal.
    fn terminal(&self, role: Role) -> Result<(PoolName, SessionKey, TerminalName), Problem> {
        let (pool, key) = self.session(role)?;
        let name = TerminalName::parse(self.segment("terminal"))
            .map_err(|error| Problem::invalid("terminal", format!("The terminal's name is not one: {error}.")))?;
        Ok((pool, key, name))
    }
}

/// The protocols that a client offers.
#[derive(Default)]
struct Offered {
    any: bool,
    ours: bool,
    token: Option<String>,
}

impl Offered {
    fn read(headers: &HeaderMap) -> Result<Self, Problem> {
        let mut offered = Self::default();
        for value in headers.get_all(SEC_WEBSOCKET_PROTOCOL) {
            let text = value.to_str().map_err(|_| AuthFailure::Malformed)?;
            for word in text.split(',').map(str::trim).filter(|word| !word.is_empty()) {
                offered.any = true;
                offered.ours |= word == PROTOCOL;
                if let Some(token) = word.strip_prefix(BEARER)
                    && offered.token.replace(token.to_owned()).is_some()
                {
                    return Err(AuthFailure::Malformed.into());
                }
            }
        }
        Ok(offered)
    }
}

/// Whether a request comes from a page of another origin.
fn is_foreign(headers: &HeaderMap) -> bool {
    let Some(origin) = headers.get(ORIGIN) else { return false };
    let host = headers.get(HOST).and_then(|host| host.to_str().ok());
    let of = origin.to_str().ok().and_then(|origin| origin.split_once("://")).map(|(_, authority)| authority);
    of.is_none() || !of.zip(host).is_some_and(|(of, host)| of.eq_ignore_ascii_case(host))
}

fn no_websocket(why: &WebSocketUpgradeRejection) -> Problem {
    let text = format!("A terminal is a WebSocket (RFC 6455), version 13, over HTTP/1.1: {why}.");
    match why {
        WebSocketUpgradeRejection::InvalidConnectionHeader(_) | WebSocketUpgradeRejection::InvalidUpgradeHeader(_) => {
            Problem::new(StatusCode::UPGRADE_REQUIRED, "WebSocketRequired", text)
        }
        _ => Problem::invalid("Upgrade", text),
    }
}

/// What is asked for in the query.
fn read(asked: &Asked, name: TerminalName) -> Result<TerminalRequest, Problem> {
    let (rows, columns) = (asked.number("rows", 1, u16::MAX)?, asked.number("columns", 1, u16::MAX)?);
    let size = (rows.is_some() || columns.is_some())
        .then(|| TerminalSize { rows: rows.unwrap_or(24), columns: columns.unwrap_or(80) });
    let after = asked.number("after", 0, u64::MAX)?.unwrap_or(0);
    let only = match asked.text("execution") {
        None => None,
        Some(id) => {
            let id = ExecutionId::parse(id);
            Some(id.ok_or_else(|| Problem::invalid("execution", "execution is a UUID, as `attached` says it."))?)
        }
    };
    let term = asked.text("term").unwrap_or("xterm-256color");
    let is_word = term.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"+._-".contains(&byte));
    if !is_word || term.is_empty() || term.len() > 64 {
        return Err(Problem::invalid("term", "term has 1 to 64 letters, digits and + . _ -."));
    }
    let argv: Vec<String> = asked.texts("command").map(str::to_owned).collect();
    if argv.first().is_some_and(String::is_empty) || argv.iter().any(|word| word.contains('\0')) {
        return Err(Problem::invalid("command", "command begins with the program's name, and has no NUL."));
    }
    if argv.iter().map(|word| word.len() + 1).sum::<usize>() > MAX_COMMAND {
        return Err(Problem::invalid("command", format!("command has at most {MAX_COMMAND} bytes.")));
    }
    let makes = match asked.text("create") {
        None | Some("true") => only.is_none(),
        Some("false") => false,
        Some(_) => return Err(Problem::invalid("create", "create is true or false.")),
    };
    let make = makes.then(|| NewTerminal { argv, term: term.to_owned() });
    Ok(TerminalRequest { name, only, size, make, after })
}

fn shown_terminal(terminal: &TerminalInfo) -> Value {
    let ended = terminal.outcome.as_ref().map(shown::verdict);
    json!({
        "name": terminal.name.as_str(),
        "execution": terminal.execution.to_string(),
        "command": terminal.command,
        "rows": terminal.size.rows,
        "columns": terminal.size.columns,
        "startedAt": shown::instant(terminal.started),
        "state": if ended.is_some() { "ended" } else { "running" },
        "outcome": ended.map(|(outcome, _, _)| outcome),
        "exitCode": ended.and_then(|(_, code, _)| code),
        "attached": terminal.attached,
    })
}

fn attached(view: &TerminalView) -> String {
    let TerminalInfo { name, execution, size, .. } = &view.terminal;
    json!({
        "type": "attached",
        "name": name.as_str(),
        "execution": execution.to_string(),
        "offset": view.offset,
        "missed": view.missed,
        "isNew": view.is_new,
        "rows": size.rows,
        "columns": size.columns,
    })
    .to_string()
}

fn ended(outcome: &Outcome) -> String {
    let (outcome, exit_code, detail) = shown::verdict(outcome);
    json!({ "type": "ended", "outcome": outcome, "exitCode": exit_code, "detail": detail }).to_string()
}

/// How a conversation ends.
enum End {
    /// With this close frame.
    Close(u16, &'static str),
    /// Without a word: nobody is there.
    Gone,
}

async fn talk(socket: WebSocket, view: TerminalView) {
    let first = attached(&view);
    let (mut say, mut hear) = socket.split();
    if !sent(&mut say, Message::Text(first.into())).await {
        return;
    }
    let TerminalView { mut input, mut output, .. } = view;
    let (replies, waiting) = mpsc::channel(REPLIES);
    let began = Instant::now();
    let heard = AtomicU64::new(0);
    let end = tokio::select! {
        end = listen(&mut hear, &mut input, &replies, || heard.store(seconds(began), Ordering::Relaxed)) => end,
        end = show(&mut say, &mut output, waiting, || seconds(began).saturating_sub(heard.load(Ordering::Relaxed))) => end,
    };
    drop((input, output));
    let End::Close(code, reason) = end else { return };
    if !sent(&mut say, Message::Close(Some(CloseFrame { code, reason: reason.into() }))).await {
        return;
    }
    // What it has sent meanwhile is read, so that the kernel does not reset the connection under what it has yet to read.
    let closed = async { while let Some(Ok(_)) = hear.next().await {} };
    // One that does not close is left.
    let _ = tokio::time::timeout(FAREWELL, closed).await;
}

fn seconds(since: Instant) -> u64 {
    since.elapsed().as_secs()
}

/// Whether a message was sent. A client that does not read is given up.
async fn sent(say: &mut SplitSink<WebSocket, Message>, message: Message) -> bool {
    matches!(tokio::time::timeout(PATIENCE, say.send(message)).await, Ok(Ok(())))
}

/// Passes on what the client says.
async fn listen(
    hear: &mut SplitStream<WebSocket>,
    input: &mut TerminalInput,
    replies: &mpsc::Sender<String>,
    heard: impl Fn(),
) -> End {
    loop {
        let message = match hear.next().await {
            Some(Ok(message)) => message,
            Some(Err(error)) => {
                let text = error.to_string();
                return match text.contains("too long") || text.contains("too big") {
                    true => End::Close(close_code::SIZE, "a message has at most 1 MiB"),
                    // Nobody is there, or it does not speak WebSocket: what is said to it is lost or harmless.
                    false => End::Close(close_code::PROTOCOL, "what was sent is no WebSocket message"),
                };
            }
            None => return End::Gone,
        };
        heard();
        let taken = match message {
            Message::Binary(bytes) => input.send(&bytes).await,
            Message::Text(text) => match Said::parse(&text) {
                Ok(Said::Resize(size)) => input.resize(size).await,
                Ok(Said::Signal(signal)) => input.signal(signal).await,
                Err(why) => {
                    // Whoever sends many of them does not read the answers.
                    let _ = replies.try_send(json!({ "type": "error", "message": why }).to_string());
                    Ok(())
                }
            },
            Message::Close(_) => return End::Gone,
            Message::Ping(_) | Message::Pong(_) => Ok(()),
        };
        if let Err(NodeError::Unavailable(_)) = taken {
            // The other half hears why.
            std::future::pending::<()>().await;
        }
    }
}

/// Passes on what the terminal shows.
async fn show(
    say: &mut SplitSink<WebSocket, Message>,
    output: &mut TerminalOutput,
    mut replies: mpsc::Receiver<String>,
    silence: impl Fn() -> u64,
) -> End {
    let mut ask = tokio::time::interval_at(Instant::now() + ASKED, ASKED);
    loop {
        let (message, end) = tokio::select! {
            event = output.next() => match event {
                TerminalEvent::Output { missed, data, offset } => {
                    let notice = json!({ "type": "missed", "bytes": missed, "offset": offset }).to_string();
                    if missed > 0 && !sent(say, Message::Text(notice.into())).await {
                        return End::Gone;
                    }
                    (Message::Binary(data.into()), None)
                }
                TerminalEvent::Ended(finished) => (Message::Text(ended(&finished.outcome).into()), Some("the terminal has ended")),
                TerminalEvent::Gone(why) => (Message::Text(ended(&Outcome::Died(why)).into()), Some("the session has ended")),
            },
            Some(reply) = replies.recv() => (Message::Text(reply.into()), None),
            _ = ask.tick() => {
                if silence() > SILENCE.as_secs() {
                    return End::Gone;
                }
                (Message::Ping(bytes::Bytes::new()), None)
            }
        };
        if !sent(say, message).await {
            return End::Gone;
        }
        if let Some(reason) = end {
            return End::Close(close_code::NORMAL, reason);
        }
    }
}

#[cfg(test)]
mod tests;
