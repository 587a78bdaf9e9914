//! One execution, followed from here: its events as they happen, through broken connections, until it has ended.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use reqwest::header::ACCEPT;
use reqwest::{Method, Response};
use serde_json::{Value, json};

use crate::client::{Client, random_hex, session_path};
use crate::failure::Failure;
use crate::sse;

/// How often a broken stream is taken up again without an event in between.
const RETRIES: u32 = 5;

/// How an execution ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Ended {
    outcome: String,
    exit_code: Option<i64>,
    detail: Option<String>,
    /// The interpreter's variables are gone.
    pub(crate) state_lost: bool,
    /// Bytes of stdout and stderr that were dropped over the limit.
    pub(crate) truncated: u64,
}

/// What happened in an execution.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Happened {
    /// Bytes for standard output.
    Stdout(Vec<u8>),
    /// Bytes for standard error.
    Stderr(Vec<u8>),
    /// Something it displayed, or (`last`) the value of its last expression.
    Shown { value: Value, last: bool },
    /// The end.
    Ended(Ended),
}

impl Ended {
    /// Reads the data of a `finished` event, or an execution's record.
    pub(crate) fn read(data: &Value) -> Self {
        let truncated = &data["truncated"];
        Self {
            outcome: data["outcome"].as_str().unwrap_or("died").to_owned(),
            exit_code: data["exitCode"].as_i64(),
            detail: data["detail"].as_str().map(str::to_owned),
            state_lost: data["stateLost"].as_bool().unwrap_or(false),
            truncated: truncated["stdout"].as_u64().unwrap_or(0) + truncated["stderr"].as_u64().unwrap_or(0),
        }
    }

    /// The exit code of `run`: the command's own where there is one, else what shells and timeout(1) use.
    pub(crate) fn code(&self) -> u8 {
        match (self.outcome.as_str(), self.exit_code) {
            ("succeeded", _) => 0,
            ("exited", Some(code)) => u8::try_from(code & 0xff).unwrap_or(1),
            ("timedOut", _) => 124,
            ("notStarted", _) => 127,
            ("cancelled", _) => 130,
            _ => 1,
        }
    }

    /// What to tell besides the output, if anything.
    pub(crate) fn remark(&self) -> Option<String> {
        let detail = self.detail.as_deref().map(|detail| format!(": {detail}")).unwrap_or_default();
        match self.outcome.as_str() {
            "timedOut" => Some("the time-out passed; what the execution started has been ended".into()),
            "notStarted" => Some(format!("the command could not be started{detail}")),
            "cancelled" => Some("interrupted".into()),
            "died" => Some(format!("the execution died{detail}")),
            _ => None,
        }
    }
}

/// An execution that was asked for.
pub(crate) struct Execution {
    client: Client,
    path: String,
    response: Option<Response>,
    parser: sse::Parser,
    waiting: std::collections::VecDeque<sse::Event>,
    last_id: u64,
}

impl Execution {
    /// Asks for an execution. `request` is the body of the native API, without an id.
    pub(crate) async fn start(client: &Client, pool: &str, session: &str, mut request: Value) -> Result<Self, Failure> {
        // Our own id, so that it can be stopped before the server has said a word.
        let id = uuid(&random_hex(16)?);
        request["id"] = json!(id);
        let executions = format!("{}/executions", session_path(pool, session));
        let post = client
            .request(Method::POST, &format!("{executions}?bytes=base64"))
            .header(ACCEPT, "text/event-stream")
            .json(&request);
        let response = client.send(post).await?;
        Ok(Self {
            client: client.clone(),
            path: format!("{executions}/{id}"),
            response: Some(response),
            parser: sse::Parser::default(),
            waiting: std::collections::VecDeque::new(),
            last_id: 0,
        })
    }

    /// Its path, for requests about it.
    pub(crate) fn path(&self) -> &str {
        &self.path
    }

    /// What happens next. Cancel-safe: an event is either returned or still to come.
    pub(crate) async fn next(&mut self) -> Result<Happened, Failure> {
        let mut failures = 0;
        loop {
            while let Some(event) = self.waiting.pop_front() {
                if let Some(id) = event.id {
                    if id <= self.last_id {
                        continue;
                    }
                    self.last_id = id;
                }
                if let Some(happened) = understand(&event)? {
                    return Ok(happened);
                }
            }
            let trouble = match self.response.as_mut() {
                Some(response) => match response.chunk().await {
                    Ok(Some(piece)) => {
                        let mut events = Vec::new();
                        self.parser.push(&piece, &mut events).map_err(|error| self.client.cut(&error))?;
                        if !events.is_empty() {
                            failures = 0;
                        }
                        self.waiting.extend(events);
                        continue;
                    }
                    Ok(None) => Failure::new("the server ended the stream of events early"),
                    Err(error) => self.client.cut(&error),
                },
                None => Failure::new("the stream of events broke off"),
            };
            self.response = None;
            self.parser = sse::Parser::default();
            failures += 1;
            if failures > RETRIES {
                return Err(trouble);
            }
            tokio::time::sleep(Duration::from_millis(100) * failures).await;
            self.response = self.resume().await?;
        }
    }

    /// Takes the stream up again after the last event seen; `None` if the server is not there just now.
    async fn resume(&self) -> Result<Option<Response>, Failure> {
        let path = format!("{}/events?bytes=base64&after={}", self.path, self.last_id);
        let request = self.client.request(Method::GET, &path).header(ACCEPT, "text/event-stream");
        match request.send().await {
            Ok(response) if response.status().is_success() => Ok(Some(response)),
            Ok(response) if response.status().is_server_error() => Ok(None),
            // The server knows nothing of it any more: it will not get better.
            Ok(response) => Err(Failure::new("the execution was lost")
                .because(format!("the server answers {}", response.status()))
                .advise("again; what the session held may be gone")),
            Err(_) => Ok(None),
        }
    }
}

/// Asks the server to end an execution.
pub(crate) async fn stop(client: &Client, path: &str, how: &str) -> Result<(), Failure> {
    let request = client.request(Method::POST, &format!("{path}/stop")).json(&json!({ "how": how }));
    client.send(request).await.map(drop)
}

/// Sends bytes to an execution's standard input or terminal; none means end of input.
pub(crate) async fn input(client: &Client, path: &str, bytes: Vec<u8>) -> Result<(), Failure> {
    let request = client
        .request(Method::POST, &format!("{path}/input"))
        .header(reqwest::header::CONTENT_TYPE, "application/octet-stream")
        .body(bytes);
    client.send(request).await.map(drop)
}

/// What an event means here; `None` for those that need no answer.
fn understand(event: &sse::Event) -> Result<Option<Happened>, Failure> {
    let strange = |why: String| Failure::new("the server sent an event that makes no sense").because(why);
    let data: Value = serde_json::from_str(&event.data).map_err(|error| strange(error.to_string()))?;
    let bytes = || match (data["base64"].as_str(), data["text"].as_str()) {
        (Some(base64), _) => STANDARD.decode(base64).map_err(|error| strange(error.to_string())),
        (None, Some(text)) => Ok(text.as_bytes().to_vec()),
        (None, None) => Err(strange(format!("{} without text", event.name))),
    };
    Ok(match event.name.as_str() {
        "stdout" => Some(Happened::Stdout(bytes()?)),
        "stderr" => Some(Happened::Stderr(bytes()?)),
        "display" => Some(Happened::Shown { value: data, last: false }),
        "result" => Some(Happened::Shown { value: data, last: true }),
        "finished" => Some(Happened::Ended(Ended::read(&data))),
        // `started` needs no answer; the traceback of `error` has come on stderr already.
        _ => None,
    })
}

/// 32 hexadecimal digits as a random UUID.
fn uuid(hex: &str) -> String {
    format!("{}-{}-4{}-a{}-{}", &hex[..8], &hex[8..12], &hex[13..16], &hex[17..20], &hex[20..32])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exit_codes_pass_through() {
        let code = |data: Value| Ended::read(&data).code();
        assert_eq!(code(json!({"outcome": "succeeded"})), 0);
        assert_eq!(code(json!({"outcome": "raised"})), 1);
        assert_eq!(code(json!({"outcome": "exited", "exitCode": 3})), 3);
        assert_eq!(code(json!({"outcome": "exited", "exitCode": 137})), 137);
        assert_eq!(code(json!({"outcome": "timedOut"})), 124);
        assert_eq!(code(json!({"outcome": "cancelled"})), 130);
        assert_eq!(code(json!({"outcome": "notStarted"})), 127);
        assert_eq!(code(json!({"outcome": "died"})), 1);
        assert_eq!(code(json!({})), 1);
    }

    #[test]
    fn output_is_bytes() {
        let event = |name: &str, data: &str| sse::Event { id: Some(1), name: name.into(), data: data.into() };
        let happened = |name, data| understand(&event(name, data)).unwrap();
        assert_eq!(happened("stdout", r#"{"base64":"/w=="}"#), Some(Happened::Stdout(vec![0xff])));
        assert_eq!(happened("stderr", r#"{"text":"ä"}"#), Some(Happened::Stderr("ä".into())));
        assert_eq!(happened("started", "{}"), None);
        assert!(understand(&event("stdout", "no json")).is_err());
        assert!(understand(&event("stdout", "{}")).is_err());
    }

    #[test]
    fn an_id_is_a_uuid() {
        let id = uuid("000102030405060708090a0b0c0d0e0f");
        assert_eq!(id, "00010203-0405-4607-a809-0a0b0c0d0e0f");
        assert!(sandpool_core::ids::ExecutionId::parse(&id).is_some());
    }
}
