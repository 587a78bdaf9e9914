//! How executions look as JSON: as records, and as the data of events.

use std::time::{Duration, SystemTime};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use sandpool_core::ids::PoolName;
use sandpool_node::{Event, Execution, ExecutionState, Finished, Outcome, Raised, Rich};
use serde::Serialize;
use serde_json::value::RawValue;
use serde_json::{Map, Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// A point in time: RFC 3339, in UTC.
pub(crate) fn instant(time: SystemTime) -> String {
    OffsetDateTime::from(time).format(&Rfc3339).unwrap_or_default()
}

/// A time that passed, to the microsecond.
pub(super) fn milliseconds(time: Duration) -> f64 {
    (time.as_secs_f64() * 1_000_000.0).round() / 1_000.0
}

/// Seconds, of microseconds.
#[expect(clippy::cast_precision_loss, reason = "285 years are still exact")]
pub(super) fn seconds(microseconds: u64) -> f64 {
    microseconds as f64 / 1_000_000.0
}

/// Text out of bytes that come in pieces, without ever cutting a character in half.
#[derive(Clone, Debug, Default)]
pub(super) struct Text {
    /// The beginning of a character whose end is still to come.
    begun: Vec<u8>,
}

impl Text {
    /// The whole characters so far. What cannot be one becomes U+FFFD.
    pub(super) fn push(&mut self, piece: &[u8]) -> String {
        let joined;
        let bytes = if self.begun.is_empty() {
            piece
        } else {
            joined = [std::mem::take(&mut self.begun).as_slice(), piece].concat();
            &joined
        };
        let mut text = String::with_capacity(bytes.len());
        let mut chunks = bytes.utf8_chunks().peekable();
        while let Some(chunk) = chunks.next() {
            text.push_str(chunk.valid());
            let rest = chunk.invalid();
            let may_go_on = std::str::from_utf8(rest).is_err_and(|error| error.error_len().is_none());
            if may_go_on && chunks.peek().is_none() {
                self.begun = rest.to_vec();
            } else if !rest.is_empty() {
                text.push(char::REPLACEMENT_CHARACTER);
            }
        }
        text
    }

    /// What is left when nothing more comes.
    pub(super) fn end(&mut self) -> String {
        String::from_utf8_lossy(&std::mem::take(&mut self.begun)).into_owned()
    }
}

/// A value, as the interpreter shows it.
#[derive(Serialize)]
pub(super) struct Shown<'a> {
    text: &'a str,
    /// Verbatim, so that an integer keeps all its digits.
    #[serde(skip_serializing_if = "Option::is_none")]
    json: Option<Box<RawValue>>,
    forms: Vec<Value>,
    dropped: Vec<Value>,
}

pub(super) fn rich(rich: &Rich) -> Shown<'_> {
    let form = |(kind, bytes): &(String, Vec<u8>)| match std::str::from_utf8(bytes) {
        Ok(text) if is_text(kind) => json!({ "type": kind, "text": text }),
        _ => json!({ "type": kind, "base64": STANDARD.encode(bytes) }),
    };
    Shown {
        text: &rich.text,
        json: rich.scalar.as_deref().and_then(scalar),
        forms: rich.forms.iter().map(form).collect(),
        dropped: rich.dropped.iter().map(|(kind, bytes)| json!({ "type": kind, "bytes": bytes })).collect(),
    }
}

/// A form that is read as text. Images, also those in SVG, are bytes to whoever saves them.
fn is_text(kind: &str) -> bool {
    kind.starts_with("text/") || kind == "application/json" || kind.ends_with("+json")
}

/// JSON of one scalar. It comes from a sandbox: anything else is left out.
fn scalar(text: &str) -> Option<Box<RawValue>> {
    let value = RawValue::from_string(text.to_owned()).ok()?;
    (!value.get().starts_with(['{', '['])).then_some(value)
}

pub(super) fn raised(raised: &Raised) -> Value {
    json!({ "name": raised.name, "message": raised.message, "traceback": raised.traceback })
}

/// How it ended: the same words in events and records.
pub(super) fn verdict(outcome: &Outcome) -> (&'static str, Option<i32>, Option<&str>) {
    match outcome {
        Outcome::Succeeded => ("succeeded", None, None),
        Outcome::Raised => ("raised", None, None),
        Outcome::Exited(code) => ("exited", Some(*code), None),
        Outcome::NotStarted(why) => ("notStarted", None, Some(why)),
        Outcome::TimedOut => ("timedOut", None, None),
        Outcome::Cancelled => ("cancelled", None, None),
        Outcome::Died(how) => ("died", None, Some(how)),
    }
}

/// The data of `finished`.
pub(super) fn finished(finished: &Finished) -> Value {
    let (outcome, exit_code, detail) = verdict(&finished.outcome);
    json!({
        "outcome": outcome,
        "exitCode": exit_code,
        "detail": detail,
        "durationMilliseconds": milliseconds(Duration::from_micros(finished.duration_us)),
        "stateLost": finished.state_lost,
        "truncated": { "stdout": finished.dropped.0, "stderr": finished.dropped.1 },
    })
}

/// The name of an event.
pub(super) fn name(event: &Event) -> &'static str {
    match event {
        Event::Started => "started",
        Event::Stdout(_) => "stdout",
        Event::Stderr(_) => "stderr",
        Event::Display(_) => "display",
        Event::Result(_) => "result",
        Event::Error(_) => "error",
        Event::Finished(_) => "finished",
    }
}

/// An execution without its output: what lists have.
pub(super) fn outline(pool: &PoolName, execution: &Execution) -> Map<String, Value> {
    let (state, ended) = match &execution.state {
        ExecutionState::Queued => ("queued", None),
        ExecutionState::Running => ("running", None),
        ExecutionState::Ended(outcome) => ("ended", Some(verdict(outcome))),
    };
    let (outcome, exit_code, detail) = ended.map_or((None, None, None), |(word, code, why)| (Some(word), code, why));
    let Value::Object(map) = json!({
        "id": execution.id.to_string(),
        "pool": pool.as_str(),
        "session": execution.identifier.as_str(),
        "state": state,
        "outcome": outcome,
        "exitCode": exit_code,
        "detail": detail,
        "createdAt": instant(execution.created),
        "queuedMilliseconds": execution.queued.map(milliseconds),
        "durationMilliseconds": execution.duration.map(milliseconds),
        "stateLost": execution.state_lost,
        "truncated": { "stdout": execution.dropped.0, "stderr": execution.dropped.1 },
    }) else {
        return Map::new();
    };
    map
}

/// An execution with all that is known of it.
#[derive(Serialize)]
pub(super) struct Full<'a> {
    #[serde(flatten)]
    outline: Map<String, Value>,
    #[serde(flatten)]
    streams: Map<String, Value>,
    /// Of the first execution of a session that was suspended.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) resumed: Option<Value>,
    result: Option<Shown<'a>>,
    displays: Vec<Shown<'a>>,
    error: Option<Value>,
}

pub(super) fn full<'a>(pool: &PoolName, execution: &'a Execution, base64: bool) -> Full<'a> {
    let has_ended = matches!(execution.state, ExecutionState::Ended(_));
    let mut streams = Map::new();
    for (name, bytes) in [("stdout", &execution.stdout), ("stderr", &execution.stderr)] {
        if base64 {
            streams.insert(format!("{name}Base64"), STANDARD.encode(bytes).into());
        } else {
            let mut text = Text::default();
            let mut all = text.push(bytes);
            if has_ended {
                all.push_str(&text.end());
            }
            streams.insert(name.to_owned(), all.into());
        }
    }
    Full {
        outline: outline(pool, execution),
        streams,
        resumed: None,
        result: execution.result.as_ref().map(rich),
        displays: execution.displays.iter().map(rich).collect(),
        error: execution.error.as_ref().map(raised),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_the_same_however_its_bytes_are_cut() {
        let whole = "aä€😀\u{fffd}z".as_bytes().to_vec();
        let bad = [b"x\xff\xc3(\xe2\x82".to_vec(), vec![0xf0, 0x9f, 0x98], b"\xed\xa0\x80ok".to_vec()];
        for bytes in bad.into_iter().chain([whole]) {
            let wanted = String::from_utf8_lossy(&bytes).into_owned();
            for size in 1..=bytes.len() {
                let mut text = Text::default();
                let mut found: String = bytes.chunks(size).map(|piece| text.push(piece)).collect();
                found.push_str(&text.end());
                assert_eq!(found, wanted, "pieces of {size}");
            }
        }
    }

    #[test]
    fn an_integer_keeps_its_digits_and_nothing_but_a_scalar_passes() {
        let value = |scalar: &str| {
            let value = Rich { text: "t".into(), scalar: Some(scalar.into()), ..Rich::default() };
            serde_json::to_string(&rich(&value)).unwrap()
        };
        let digits = "123456789012345678901234567890";
        assert_eq!(value(digits), format!(r#"{{"text":"t","json":{digits},"forms":[],"dropped":[]}}"#));
        assert_eq!(value(" null "), r#"{"text":"t","json":null,"forms":[],"dropped":[]}"#);
        for bad in ["[1]", "{}", "1 2", "nope", "", "\"a\nb\""] {
            assert_eq!(value(bad), r#"{"text":"t","forms":[],"dropped":[]}"#, "{bad}");
        }
    }

    #[test]
    fn images_are_base64_and_text_is_text() {
        let form = |kind: &str, bytes: &[u8]| {
            let value = Rich { forms: vec![(kind.into(), bytes.into())], ..Rich::default() };
            serde_json::to_value(rich(&value)).unwrap()["forms"][0].clone()
        };
        assert_eq!(form("image/svg+xml", b"<svg/>")["base64"], "PHN2Zy8+");
        assert_eq!(form("text/html", b"<b>")["text"], "<b>");
        assert_eq!(form("text/html", &[0xff])["base64"], "/w==");
    }

    #[test]
    fn a_character_that_is_still_being_written_is_not_shown_yet() {
        let mut execution = Execution {
            id: sandpool_core::ids::ExecutionId([0; 16]),
            identifier: sandpool_core::ids::Identifier::parse("test-1").unwrap(),
            state: ExecutionState::Running,
            created: SystemTime::UNIX_EPOCH,
            stdout: vec![b'a', 0xc3],
            stderr: Vec::new(),
            dropped: (0, 0),
            result: None,
            displays: Vec::new(),
            error: None,
            duration: None,
            queued: None,
            state_lost: false,
        };
        let pool = PoolName::parse("python").unwrap();
        let stdout =
            |execution: &Execution| serde_json::to_value(full(&pool, execution, false)).unwrap()["stdout"].clone();
        assert_eq!(stdout(&execution), "a");
        execution.state = ExecutionState::Ended(Outcome::Exited(3));
        assert_eq!(stdout(&execution), "a\u{fffd}");
        let record = serde_json::to_value(full(&pool, &execution, true)).unwrap();
        assert_eq!((&record["stdoutBase64"], &record["exitCode"]), (&json!("YcM="), &json!(3)));
        assert_eq!(record["createdAt"], "1970-01-01T00:00:00Z");
    }
}
