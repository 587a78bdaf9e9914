//! The command line as a client of the native API.

use std::time::Duration;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use reqwest::{Method, RequestBuilder, Response, StatusCode};
use serde_json::Value;

use crate::credentials;
use crate::failure::Failure;
use crate::home::Home;

/// What is not percent-encoded in one segment of a path.
const SEGMENT: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~');

/// The longest error body that is read, in bytes.
const MAX_ERROR: usize = 64 << 10;

/// The longest answer that is kept in memory, in bytes.
const MAX_ANSWER: usize = 256 << 20;

/// Where commands find a server, and how they print.
#[derive(Clone, Debug)]
pub(crate) struct Context {
    /// The state directory.
    pub(crate) home: Home,
    /// An address that was asked for.
    pub(crate) server: Option<String>,
    /// Print JSON.
    pub(crate) json: bool,
}

impl Context {
    /// The address of the server to talk to.
    pub(crate) fn endpoint(&self) -> Result<String, Failure> {
        let endpoint = match (&self.server, self.home.server()) {
            (Some(asked), _) => asked.trim_end_matches('/').to_owned(),
            (None, Some(record)) => record.endpoint,
            (None, None) => {
                return Err(Failure::new("no server runs here")
                    .because(format!("{} names no living process", self.home.server_record_path().display()))
                    .advise(format!("sandpool up --detach{}, or give --server URL", self.home.flag())));
            }
        };
        if endpoint.starts_with("http://") || endpoint.starts_with("https://") {
            Ok(endpoint)
        } else {
            Err(Failure::usage(format!("{endpoint:?} is not the address of a server"))
                .advise("an http or https URL, such as http://127.0.0.1:7300"))
        }
    }
}

/// A connection to one server.
#[derive(Clone, Debug)]
pub(crate) struct Client {
    http: reqwest::Client,
    /// For what is upgraded, which HTTP/2 does not know.
    plain: reqwest::Client,
    endpoint: String,
    token: String,
    up: String,
}

impl Client {
    /// Finds the server and a token for it. Nothing is sent yet.
    pub(crate) fn new(context: &Context) -> Result<Self, Failure> {
        let endpoint = context.endpoint()?;
        let token = credentials::client_token(context)?;
        let builder = || {
            let builder = reqwest::Client::builder().connect_timeout(Duration::from_secs(10)).tcp_nodelay(true);
            // A proxy for the world outside cannot reach this machine's loopback.
            if is_loopback(&endpoint) { builder.no_proxy() } else { builder }
        };
        let failed = |error: reqwest::Error| Failure::new("cannot set up an HTTP client").caused_by(&error);
        let http = builder().build().map_err(failed)?;
        let plain = builder().http1_only().build().map_err(failed)?;
        let up = format!("sandpool up --detach{}", context.home.flag());
        Ok(Self { http, plain, endpoint, token, up })
    }

    /// A request to `path`, with the token.
    pub(crate) fn request(&self, method: Method, path: &str) -> RequestBuilder {
        self.http.request(method, format!("{}{path}", self.endpoint)).bearer_auth(&self.token)
    }

    /// A GET of `path`, with the token, that is to be upgraded.
    pub(crate) fn upgrade(&self, path: &str) -> RequestBuilder {
        self.plain.get(format!("{}{path}", self.endpoint)).bearer_auth(&self.token)
    }

    /// Sends a request, and turns every answer that is no success into a failure.
    pub(crate) async fn send(&self, request: RequestBuilder) -> Result<Response, Failure> {
        let response = request.send().await.map_err(|error| self.unreachable(&error))?;
        if response.status().is_success() { Ok(response) } else { Err(self.refusal(response).await) }
    }

    /// Sends a request, whatever is answered.
    pub(crate) async fn send_any(&self, request: RequestBuilder) -> Result<Response, Failure> {
        request.send().await.map_err(|error| self.unreachable(&error))
    }

    /// Sends a request and reads the JSON of its answer; null if it has no body.
    pub(crate) async fn json(&self, request: RequestBuilder) -> Result<Value, Failure> {
        let response = self.send(request).await?;
        let body = read_bounded(response, MAX_ANSWER).await.map_err(|error| self.cut(&error))?;
        if body.is_empty() {
            return Ok(Value::Null);
        }
        serde_json::from_slice(&body).map_err(|error| {
            Failure::new(format!("{} does not answer like a Sandpool server", self.endpoint)).because(error)
        })
    }

    /// GETs the JSON at `path`.
    pub(crate) async fn get(&self, path: &str) -> Result<Value, Failure> {
        self.json(self.request(Method::GET, path)).await
    }

    /// The failure of a stream that ended early.
    pub(crate) fn cut(&self, error: &(dyn std::error::Error + 'static)) -> Failure {
        Failure::new(format!("the connection to {} broke off", self.endpoint)).caused_by(error)
    }

    fn unreachable(&self, error: &reqwest::Error) -> Failure {
        let failure = Failure::new(format!("cannot reach a server at {}", self.endpoint));
        match std::error::Error::source(error) {
            Some(source) => failure.caused_by(source),
            None => failure.because(error),
        }
        .advise(&self.up)
    }

    pub(crate) async fn refusal(&self, response: Response) -> Failure {
        let status = response.status();
        let retry_after = response
            .headers()
            .get(reqwest::header::RETRY_AFTER)
            .and_then(|value| value.to_str().ok())
            .and_then(|text| text.parse::<u64>().ok());
        let body = read_bounded(response, MAX_ERROR).await.unwrap_or_default();
        let failure = Failure::new(refusal_text(status, &body));
        match status {
            StatusCode::UNAUTHORIZED => failure.advise(
                "a token of this server: `sandpool token` as the user that runs it prints one; export it as SANDPOOL_TOKEN",
            ),
            StatusCode::TOO_MANY_REQUESTS => failure.advise(match retry_after {
                Some(seconds) => format!("again in {seconds} s; `sandpool session ls` says who holds the sessions"),
                None => "again later; `sandpool session ls` says who holds the sessions".to_owned(),
            }),
            _ => failure,
        }
    }
}

/// What an error answer says.
fn refusal_text(status: StatusCode, body: &[u8]) -> String {
    let json: Value = serde_json::from_slice(body).unwrap_or_default();
    let message = json["error"]["message"].as_str().or(json["message"].as_str());
    let code = json["error"]["code"].as_str().or(json["code"].as_str());
    match (message, code) {
        (Some(message), Some(code)) => format!("{} ({code})", message.trim_end_matches('.')),
        (Some(message), None) => message.trim_end_matches('.').to_owned(),
        (None, _) => format!("the server answers {status}"),
    }
}

/// The address is one of this machine's own.
fn is_loopback(endpoint: &str) -> bool {
    let host = endpoint.split_once("://").map_or(endpoint, |(_, rest)| rest);
    host.starts_with("127.") || host.starts_with("[::1]") || host.starts_with("localhost")
}

/// Reads a body of at most `limit` bytes.
async fn read_bounded(mut response: Response, limit: usize) -> Result<Vec<u8>, std::io::Error> {
    let mut body = Vec::new();
    while let Some(piece) = response.chunk().await.map_err(std::io::Error::other)? {
        if body.len() + piece.len() > limit {
            return Err(std::io::Error::other(format!("the answer is longer than {limit} bytes")));
        }
        body.extend_from_slice(&piece);
    }
    Ok(body)
}

/// `text` as one segment of a path.
pub(crate) fn segment(text: &str) -> String {
    match text {
        // These two would be taken as steps in a path.
        "." => "%2E".into(),
        ".." => "%2E%2E".into(),
        _ => utf8_percent_encode(text, SEGMENT).to_string(),
    }
}

/// The path of a pool.
pub(crate) fn pool_path(pool: &str) -> String {
    format!("/pools/{}", segment(pool))
}

/// The path of a session.
pub(crate) fn session_path(pool: &str, session: &str) -> String {
    format!("/pools/{}/sessions/{}", segment(pool), segment(session))
}

/// Runs a client command.
pub(crate) fn block_on<T>(command: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::new("cannot start").because(error))?
        .block_on(command)
}

/// A new random name for a session or execution: `bytes` random bytes in hexadecimal digits.
pub(crate) fn random_hex(bytes: usize) -> Result<String, Failure> {
    let mut random = vec![0; bytes];
    getrandom::fill(&mut random).map_err(|error| Failure::new("no random numbers").because(error))?;
    Ok(hex::encode(random))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_identifier_is_one_segment() {
        assert_eq!(segment("chat-17"), "chat-17");
        assert_eq!(segment("a/b?c#d%e"), "a%2Fb%3Fc%23d%25e");
        assert_eq!(segment(".."), "%2E%2E");
        assert_eq!(session_path("python", "a/.."), "/pools/python/sessions/a%2F..");
    }

    #[test]
    fn an_error_answer_is_told_in_its_own_words() {
        let nested = br#"{"error":{"code":"NoPool","message":"There is no pool x."}}"#;
        assert_eq!(refusal_text(StatusCode::NOT_FOUND, nested), "There is no pool x (NoPool)");
        let flat = br#"{"code":"SessionsCountExceedsLimit","message":"Requested 1, active 10, limit 10."}"#;
        assert_eq!(
            refusal_text(StatusCode::TOO_MANY_REQUESTS, flat),
            "Requested 1, active 10, limit 10 (SessionsCountExceedsLimit)"
        );
        assert_eq!(refusal_text(StatusCode::BAD_GATEWAY, b"<html>"), "the server answers 502 Bad Gateway");
    }

    #[test]
    fn a_proxy_is_not_asked_for_this_machine() {
        assert!(is_loopback("http://127.0.0.1:7300"));
        assert!(is_loopback("https://localhost:7343"));
        assert!(is_loopback("http://[::1]:7300"));
        assert!(!is_loopback("https://pools.example"));
    }
}
