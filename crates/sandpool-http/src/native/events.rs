//! Executions as streams of server-sent events, which can be taken up again where they broke off.

use std::convert::Infallible;
use std::time::Duration;

use axum::extract::State;
use axum::http::header::ACCEPT;
use axum::http::{HeaderMap, HeaderName, HeaderValue};
use axum::response::sse::{Event as Sent, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use futures::{Stream, StreamExt, stream};
use sandpool_node::{Event, ExecutionHandle, Sequenced};
use serde::Serialize;
use serde_json::{Value, json};

use super::asked::Asked;
use super::shown::{self, Text};
use crate::app::App;
use crate::auth::Role;
use crate::problem::Problem;

/// How long a stream may be silent before a comment says that it lives.
const HEARTBEAT: Duration = Duration::from_secs(10);

/// Follows an execution from its beginning, or after the event that was seen last.
pub(super) async fn follow(State(app): State<App>, asked: Asked, headers: HeaderMap) -> Result<Response, Problem> {
    let (pool, key, id) = asked.execution(Role::Reader)?;
    let after = after(&asked, &headers)?;
    let base64 = asked.base64()?;
    let handle = app.node.execution(&pool, &key, &id).await?;
    Ok(stream(&handle, after, base64))
}

/// The last event that was seen: the later of what the URL and the header say, because browsers take a stream up again
/// with the old URL and a new header.
pub(super) fn after(asked: &Asked, headers: &HeaderMap) -> Result<u64, Problem> {
    let in_query = asked.number("after", 0, u64::MAX)?.unwrap_or(0);
    let in_header = match headers.get("last-event-id").map(HeaderValue::as_bytes) {
        None | Some(b"") => 0,
        Some(text) => std::str::from_utf8(text)
            .ok()
            .and_then(|text| text.trim().parse().ok())
            .ok_or_else(|| Problem::invalid("Last-Event-ID", "Last-Event-ID is the id of an event: a number."))?,
    };
    Ok(in_query.max(in_header))
}

/// The events after `after`. At most one is in memory beside those that are kept anyway: a slow reader is waited for.
pub(super) fn stream(handle: &ExecutionHandle, after: u64, base64: bool) -> Response {
    let mut telling = Telling { after, base64, stdout: Text::default(), stderr: Text::default() };
    // Text goes on in the middle of a character only if the bytes before it are known.
    let events = handle.events(if base64 { after } else { 0 });
    streamed(events.flat_map(move |event| stream::iter(telling.tell(&event).into_iter().map(Ok::<_, Infallible>))))
}

/// Whether the client asked for a stream of events.
pub(super) fn is_wanted(headers: &HeaderMap) -> bool {
    let accepted = headers.get_all(ACCEPT).iter().filter_map(|value| value.to_str().ok());
    accepted.flat_map(|value| value.split(',')).any(|range| {
        let mut parts = range.split(';').map(str::trim);
        let kind = parts.next().unwrap_or_default();
        let refused = parts.any(|part| part.strip_prefix("q=").is_some_and(|q| q.parse() == Ok(0.0)));
        kind.eq_ignore_ascii_case("text/event-stream") && !refused
    })
}

/// A stream of what comes, each with its number.
pub(super) fn told<T: 'static>(
    name: &'static str,
    what: impl Stream<Item = T> + Send + 'static,
    shown: impl Fn(&T) -> (u64, Value) + Send + 'static,
) -> Response {
    streamed(what.map(move |one| {
        let (id, data) = shown(&one);
        Ok::<_, Infallible>(Sent::default().event(name).id(id.to_string()).data(data.to_string()))
    }))
}

fn streamed(told: impl Stream<Item = Result<Sent, Infallible>> + Send + 'static) -> Response {
    let alive = KeepAlive::new().interval(HEARTBEAT).text("");
    // Proxies that gather answers would hold events back.
    let direct = [(HeaderName::from_static("x-accel-buffering"), HeaderValue::from_static("no"))];
    (direct, Sse::new(told).keep_alive(alive)).into_response()
}

/// What is told of an execution's events.
struct Telling {
    after: u64,
    base64: bool,
    stdout: Text,
    stderr: Text,
}

impl Telling {
    fn tell(&mut self, Sequenced { seq, event }: &Sequenced) -> Vec<Sent> {
        let is_new = *seq > self.after;
        let mut told = Vec::new();
        let mut say = |id: Option<u64>, name: &str, data: String| {
            let sent = Sent::default().event(name).data(data);
            told.push(match id {
                Some(id) => sent.id(id.to_string()),
                None => sent,
            });
        };
        match event {
            Event::Stdout(bytes) | Event::Stderr(bytes) if self.base64 && is_new => {
                say(Some(*seq), shown::name(event), json!({ "base64": STANDARD.encode(bytes) }).to_string());
            }
            Event::Stdout(bytes) | Event::Stderr(bytes) if !self.base64 => {
                let text = match event {
                    Event::Stdout(_) => self.stdout.push(bytes),
                    _ => self.stderr.push(bytes),
                };
                if is_new && !text.is_empty() {
                    say(Some(*seq), shown::name(event), json!({ "text": text }).to_string());
                }
            }
            Event::Finished(finished) if is_new => {
                // Characters that will never be whole. They have no id of their own.
                for (name, text) in [("stdout", self.stdout.end()), ("stderr", self.stderr.end())] {
                    if !text.is_empty() {
                        say(None, name, json!({ "text": text }).to_string());
                    }
                }
                say(Some(*seq), "finished", shown::finished(finished).to_string());
            }
            Event::Display(rich) | Event::Result(rich) if is_new => {
                say(Some(*seq), shown::name(event), written(&shown::rich(rich)));
            }
            Event::Error(raised) if is_new => say(Some(*seq), "error", shown::raised(raised).to_string()),
            Event::Started if is_new => say(Some(*seq), "started", "{}".to_owned()),
            _ => {}
        }
        told
    }
}

fn written(value: &impl Serialize) -> String {
    // Only a map with keys that are no texts could fail.
    serde_json::to_string(value).unwrap_or_else(|_| "{}".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use http_body_util::BodyExt;
    use sandpool_node::{Finished, Outcome};

    /// What a stream of `events` says after `after`, without its blank lines.
    async fn told(events: &[Event], after: u64, base64: bool) -> String {
        let mut telling = Telling { after, base64, stdout: Text::default(), stderr: Text::default() };
        let numbered = events.iter().cloned().zip(1..).map(|(event, seq)| Sequenced { seq, event });
        let all: Vec<_> = numbered.flat_map(|event| telling.tell(&event)).map(Ok::<_, Infallible>).collect();
        let body = Sse::new(stream::iter(all)).into_response().into_body().collect().await.unwrap();
        String::from_utf8(body.to_bytes().to_vec()).unwrap().replace("\n\n", "\n")
    }

    fn finished() -> Event {
        Event::Finished(Finished {
            outcome: Outcome::Exited(0),
            duration_us: 1_500,
            dropped: (0, 2),
            state_lost: false,
        })
    }

    #[tokio::test]
    async fn a_character_is_told_when_it_is_whole_also_across_a_resume() {
        let events = [
            Event::Started,
            Event::Stdout(vec![b'a', 0xc3]),
            Event::Stderr(b"e".into()),
            Event::Stdout(vec![0xa4, 0xff, 0xc3]),
            finished(),
        ];
        let end = "event: finished\ndata: {\"detail\":null,\"durationMilliseconds\":1.5,\"exitCode\":0,\"outcome\":\"exited\",\
                   \"stateLost\":false,\"truncated\":{\"stderr\":2,\"stdout\":0}}\nid: 5\n";
        let rest = format!(
            "event: stdout\ndata: {{\"text\":\"ä\u{fffd}\"}}\nid: 4\nevent: stdout\ndata: {{\"text\":\"\u{fffd}\"}}\n{end}"
        );
        let whole = format!(
            "event: started\ndata: {{}}\nid: 1\nevent: stdout\ndata: {{\"text\":\"a\"}}\nid: 2\n\
             event: stderr\ndata: {{\"text\":\"e\"}}\nid: 3\n{rest}"
        );
        assert_eq!(told(&events, 0, false).await, whole);
        assert_eq!(told(&events, 3, false).await, rest);
        assert_eq!(told(&events, 5, false).await, "");
        let raw = told(&events, 3, true).await;
        assert_eq!(raw, format!("event: stdout\ndata: {{\"base64\":\"pP/D\"}}\nid: 4\n{end}"));
    }

    #[test]
    fn events_are_sent_to_whoever_accepts_them() {
        let wants = |value: &'static str| is_wanted(&HeaderMap::from_iter([(ACCEPT, HeaderValue::from_static(value))]));
        assert!(wants("text/event-stream"));
        assert!(wants("application/json;q=0.5, Text/Event-Stream;q=0.9"));
        assert!(!wants("text/event-stream;q=0, */*"));
        assert!(!wants("*/*"));
        assert!(!is_wanted(&HeaderMap::new()));
    }
}
