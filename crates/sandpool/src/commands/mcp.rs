//! `sandpool mcp`: our MCP server over standard input and output, for hosts that start their servers themselves.
//!
//! A bridge: each line is a message, and goes to the server in a request of its own, with what the protocol wants in its
//! headers. So a message that takes long holds no other up, and one that the host cancels is dropped, which the
//! server hears as its client going away.

use std::collections::HashMap;
use std::io::{BufRead, Write};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use reqwest::Method;
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio::task::{AbortHandle, JoinSet};

use super::Outcome;
use crate::args::Mcp;
use crate::client::{Client, Context, block_on, pool_path};
use crate::failure::Failure;
use crate::sse::Parser;

/// Lines that wait to be sent; the host waits when there are more.
const WAITING: usize = 64;

/// How long a client is used before its token is made anew.
const FRESH: Duration = Duration::from_secs(120);

/// How long what still runs may take when nothing more comes.
const LAST: Duration = Duration::from_secs(2);

const INTERNAL_ERROR: i32 = -32_603;

pub(crate) fn run(context: &Context, mcp: &Mcp) -> Outcome {
    let path = match &mcp.pool {
        None => "/mcp".to_owned(),
        Some(pool) => format!("{}/mcp", pool_path(pool)),
    };
    let (sender, lines) = mpsc::channel(WAITING);
    std::thread::spawn(move || {
        for line in std::io::stdin().lock().lines().map_while(Result::ok) {
            if sender.blocking_send(line).is_err() {
                return;
            }
        }
    });
    block_on(bridge(context, path, lines))
}

/// What messages share.
struct Bridge {
    path: String,
    /// The revision that was agreed on, for the header of what comes after `initialize`.
    revision: Mutex<Option<String>>,
}

async fn bridge(context: &Context, path: String, mut lines: mpsc::Receiver<String>) -> Result<u8, Failure> {
    let bridge = Arc::new(Bridge { path, revision: Mutex::default() });
    let mut client = (Instant::now(), Client::new(context)?);
    let mut running = JoinSet::new();
    let mut known: HashMap<String, AbortHandle> = HashMap::new();
    while let Some(line) = lines.recv().await {
        while running.try_join_next().is_some() {}
        known.retain(|_, task| !task.is_finished());
        if line.trim().is_empty() {
            continue;
        }
        let message: Value = match serde_json::from_str(&line) {
            Ok(message) => message,
            Err(error) => {
                say(
                    &json!({ "jsonrpc": "2.0", "id": null, "error": { "code": -32_700, "message": error.to_string() } }),
                )?;
                continue;
            }
        };
        if message["method"] == "notifications/cancelled" {
            if let Some(task) = known.remove(&message["params"]["requestId"].to_string()) {
                task.abort();
            }
            continue;
        }
        if client.0.elapsed() > FRESH {
            client = (Instant::now(), Client::new(context)?);
        }
        let (bridge, client, id) = (Arc::clone(&bridge), client.1.clone(), message["id"].clone());
        // What is answered to `initialize` is known before the next message goes out.
        if message["method"] == "initialize" {
            bridge.pass(&client, &message).await?;
            continue;
        }
        let task = running.spawn(async move {
            // Standard output is closed: the host has gone, and so will standard input.
            let _ = bridge.pass(&client, &message).await;
        });
        if !id.is_null() {
            known.insert(id.to_string(), task);
        }
    }
    // The host has closed its end. What ends soon is still answered, the rest is dropped.
    let _ = tokio::time::timeout(LAST, async { while running.join_next().await.is_some() {} }).await;
    running.shutdown().await;
    Ok(0)
}

impl Bridge {
    /// Sends a message, and says what comes back.
    async fn pass(&self, client: &Client, message: &Value) -> Result<(), Failure> {
        let id = &message["id"];
        if let Err(failure) = self.send(client, message).await
            && !id.is_null()
        {
            let error = json!({ "code": INTERNAL_ERROR, "message": failure.to_string() });
            say(&json!({ "jsonrpc": "2.0", "id": id, "error": error }))?;
        }
        Ok(())
    }

    async fn send(&self, client: &Client, message: &Value) -> Result<(), Failure> {
        let params = &message["params"];
        let mut request = client
            .request(Method::POST, &self.path)
            .header("accept", "application/json, text/event-stream")
            .json(message);
        if let Some(revision) = params["_meta"]["io.modelcontextprotocol/protocolVersion"].as_str() {
            request = request.header("mcp-protocol-version", revision);
            let name = params["name"].as_str().or(params["uri"].as_str());
            let session = params["arguments"]["session_id"].as_str();
            let named =
                [("mcp-method", message["method"].as_str()), ("mcp-name", name), ("mcp-param-session", session)];
            for (header, value) in named {
                if let Some(value) = value {
                    request = request.header(header, value);
                }
            }
        } else if message["method"] != "initialize"
            && let Some(revision) = self.revision.lock().unwrap_or_else(PoisonError::into_inner).clone()
        {
            request = request.header("mcp-protocol-version", revision);
        }
        let mut response = client.send_any(request).await?;
        let kind = response.headers().get("content-type").and_then(|kind| kind.to_str().ok()).unwrap_or_default();
        if kind.starts_with("text/event-stream") {
            let (mut parser, mut events) = (Parser::default(), Vec::new());
            while let Some(piece) = response.chunk().await.map_err(|error| client.cut(&error))? {
                parser.push(&piece, &mut events).map_err(|error| client.cut(&error))?;
                for event in events.drain(..) {
                    if let Ok(message) = serde_json::from_str(&event.data) {
                        say(&message)?;
                    }
                }
            }
            return Ok(());
        }
        let body = response.bytes().await.map_err(|error| client.cut(&error))?;
        match serde_json::from_slice::<Value>(&body) {
            Ok(answer) if answer["jsonrpc"] == "2.0" => {
                if let Some(revision) = answer["result"]["protocolVersion"].as_str() {
                    *self.revision.lock().unwrap_or_else(PoisonError::into_inner) = Some(revision.to_owned());
                }
                say(&answer)
            }
            Ok(refusal) => {
                Err(Failure::new(refusal["message"].as_str().unwrap_or("the server refuses the request").to_owned()))
            }
            Err(_) if body.is_empty() => Ok(()),
            Err(_) => Err(Failure::new(String::from_utf8_lossy(&body).chars().take(500).collect::<String>())),
        }
    }
}

/// One message to the host, in one line.
fn say(message: &Value) -> Result<(), Failure> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{message}").and_then(|()| out.flush()).map_err(|error| Failure::new("cannot write").because(error))
}
