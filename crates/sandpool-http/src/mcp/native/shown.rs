//! What an execution looks like to a model: bounded, with the way to the rest.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use futures::{FutureExt, StreamExt};
use rmcp::model::{CallToolResult, ContentBlock, Resource, ResourceContents};
use sandpool_node::{Event, Execution, ExecutionHandle, ExecutionState, Outcome, Rich};
use serde_json::{Value, json};

use super::picture::{self, Seen};
use super::place::Place;
use crate::azure::execution::reason;

/// Bytes of each stream in one answer: half from its beginning, half from its end.
const MOST_OUTPUT: usize = 16 * 1024;

/// Images of one answer; more are links.
const MOST_IMAGES: usize = 4;

/// Letters of a heartbeat's message.
const LAST_LINE: usize = 200;

const KINDS: [&str; 4] = ["image/png", "image/jpeg", "image/webp", "image/gif"];

/// What an execution has printed.
pub(super) struct Output {
    stdout: Vec<u8>,
    stderr: Vec<u8>,
    last_seq: Option<u64>,
}

impl Output {
    /// What it has printed so far, after `after_seq`.
    pub(super) fn of(handle: &ExecutionHandle, after_seq: u64) -> Self {
        let mut output = Self { stdout: Vec::new(), stderr: Vec::new(), last_seq: Some(after_seq) };
        let mut events = handle.events(after_seq);
        // Those that are kept come without waiting.
        while let Some(Some(next)) = events.next().now_or_never() {
            output.last_seq = Some(next.seq);
            match next.event {
                Event::Stdout(data) => output.stdout.extend_from_slice(&data),
                Event::Stderr(data) => output.stderr.extend_from_slice(&data),
                Event::Started | Event::Display(_) | Event::Result(_) | Event::Error(_) | Event::Finished(_) => {}
            }
        }
        output
    }

    /// What is written of one that is over.
    pub(super) fn kept(execution: &Execution) -> Self {
        Self { stdout: execution.stdout.clone(), stderr: execution.stderr.clone(), last_seq: None }
    }
}

/// The answer about an execution.
pub(super) async fn execution(place: &Place, execution: &Execution, output: &Output) -> CallToolResult {
    let (status, exit_code, is_error) = match &execution.state {
        ExecutionState::Queued | ExecutionState::Running => ("running", None, false),
        ExecutionState::Ended(outcome) => match outcome {
            Outcome::Succeeded => ("done", None, false),
            Outcome::Exited(code) => ("done", Some(*code), false),
            Outcome::Raised | Outcome::NotStarted(_) | Outcome::Died(_) => ("error", None, true),
            Outcome::TimedOut => ("timeout", None, true),
            Outcome::Cancelled => ("cancelled", None, true),
        },
    };
    let why = match &execution.state {
        ExecutionState::Ended(outcome) => reason(outcome, execution.state_lost),
        ExecutionState::Queued => Some("It waits for its turn in this session. Go on with wait_execution.".to_owned()),
        ExecutionState::Running => Some("It goes on. Go on with wait_execution.".to_owned()),
    };
    let id = execution.id;
    let mut artifacts = Vec::new();
    let mut blocks = Vec::new();
    let mut is_truncated = false;
    let mut stream = |name: &str, data: &[u8], dropped: u64| {
        let uri = place.of_execution(id, name);
        let (mut text, is_cut) = ends(data, &uri);
        if is_cut {
            artifacts.push(json!({ "uri": uri, "mime_type": "text/plain", "size": data.len() }));
        }
        if dropped > 0 {
            text.push_str(&format!("\n[{dropped} bytes more were not kept]"));
        }
        is_truncated |= is_cut || dropped > 0;
        text
    };
    let stdout = stream("stdout", &output.stdout, execution.dropped.0);
    let stderr = stream("stderr", &output.stderr, execution.dropped.1);
    for (number, (kind, data)) in images(execution).enumerate() {
        let uri = place.of_execution(id, &format!("images/{number}"));
        artifacts.push(json!({ "uri": uri, "mime_type": kind, "size": data.len() }));
        let size = u64::try_from(data.len()).unwrap_or(u64::MAX);
        let seen = if number < MOST_IMAGES { picture::seen(data).await } else { Seen::Nothing };
        if seen == Seen::Whole {
            blocks.push(ContentBlock::image(STANDARD.encode(data), kind));
            continue;
        }
        if let Seen::Smaller(kind, data) = seen {
            blocks.push(ContentBlock::image(STANDARD.encode(data), kind));
        }
        // As it was.
        let link = Resource::new(uri, format!("image {number}")).with_mime_type(kind).with_size(size);
        blocks.push(ContentBlock::resource_link(link));
    }
    let error = execution.error.as_ref().map(|raised| {
        json!({
            "name": clean(raised.name.as_bytes()),
            "message": ends(raised.message.as_bytes(), "stderr").0,
            "traceback": ends(raised.traceback.as_bytes(), "stderr").0,
        })
    });
    let result = execution.result.as_ref().filter(|rich| rich.scalar.as_deref() != Some("null"));
    let structured = json!({
        "session_id": place.session_id(),
        "execution_id": id.to_string(),
        "status": status,
        "reason": why,
        "exit_code": exit_code,
        "stdout": stdout,
        "stderr": stderr,
        "result": result.map(|rich| ends(rich.text.as_bytes(), "the value itself").0),
        "error": error,
        "truncated": is_truncated,
        "artifacts": artifacts,
        "last_seq": output.last_seq,
        "state_lost": execution.state_lost,
        "duration_ms": execution.duration.map(|time| time.as_secs_f64() * 1_000.0),
    });
    let mut content = vec![ContentBlock::text(twin(&structured))];
    content.append(&mut blocks);
    let mut answer = if is_error { CallToolResult::error(content) } else { CallToolResult::success(content) };
    answer.structured_content = Some(structured);
    answer
}

/// The same in fewer letters: what says nothing is left out.
fn twin(structured: &Value) -> String {
    let mut short = structured.clone();
    if let Some(fields) = short.as_object_mut() {
        fields.retain(|name, value| {
            let is_nothing = value.is_null() || *value == json!("") || *value == json!([]) || *value == json!(false);
            // The traceback is in stderr.
            !is_nothing && name != "error"
        });
    }
    short.to_string()
}

/// All that was shown and is an image, in order.
pub(super) fn images(execution: &Execution) -> impl Iterator<Item = (&'static str, &[u8])> {
    let image = |rich: &'_ Rich| {
        KINDS.iter().find_map(|kind| {
            let place = rich.forms.iter().position(|(known, _)| known == kind)?;
            Some((*kind, place))
        })
    };
    execution
        .displays
        .iter()
        .chain(&execution.result)
        .filter_map(move |rich| image(rich).map(|(kind, place)| (kind, rich.forms[place].1.as_slice())))
}

/// The kind of image that these bytes begin like.
pub(super) fn image_kind(data: &[u8]) -> Option<&'static str> {
    match data {
        [0x89, b'P', b'N', b'G', ..] => Some("image/png"),
        [0xff, 0xd8, 0xff, ..] => Some("image/jpeg"),
        [b'G', b'I', b'F', b'8', ..] => Some("image/gif"),
        [b'R', b'I', b'F', b'F', _, _, _, _, b'W', b'E', b'B', b'P', ..] => Some("image/webp"),
        _ => None,
    }
}

/// A file as a resource.
pub(super) fn contents(uri: &str, data: &[u8]) -> ResourceContents {
    match (image_kind(data), std::str::from_utf8(data)) {
        (None, Ok(text)) => ResourceContents::text(text, uri),
        (kind, _) => ResourceContents::blob(STANDARD.encode(data), uri)
            .with_mime_type(kind.unwrap_or("application/octet-stream")),
    }
}

/// Text without what could play tricks on a terminal: control characters but line feeds, returns and tabs.
pub(super) fn clean(data: &[u8]) -> String {
    let text = String::from_utf8_lossy(data);
    text.chars().filter(|letter| !letter.is_control() || matches!(letter, '\n' | '\r' | '\t')).collect()
}

/// The beginning and the end, where the whole would be too much, and whether something between is missing.
fn ends(data: &[u8], rest: &str) -> (String, bool) {
    if data.len() <= MOST_OUTPUT {
        return (clean(data), false);
    }
    let (begin, end) = (MOST_OUTPUT / 2, data.len() - MOST_OUTPUT / 2);
    let left_out = end - begin;
    let text = format!(
        "{}\n[{left_out} of {} bytes are left out here; all that is kept: {rest}]\n{}",
        clean(&data[..begin]),
        data.len(),
        clean(&data[end..])
    );
    (text, true)
}

/// The last line that was printed.
pub(super) fn last_line(execution: &Execution) -> String {
    let tail = &execution.stdout[execution.stdout.len().saturating_sub(4 * LAST_LINE)..];
    let text = clean(tail);
    let line = text.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or("It runs.");
    line.chars().take(LAST_LINE).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_output_keeps_its_ends_and_says_what_is_missing() {
        let (text, is_cut) = ends(&vec![b'a'; MOST_OUTPUT], "x");
        assert_eq!((text.len(), is_cut), (MOST_OUTPUT, false));
        let data = [vec![b'a'; MOST_OUTPUT], vec![b'z'; MOST_OUTPUT]].concat();
        let (text, is_cut) = ends(&data, "sandbox://x");
        assert!(is_cut && text.starts_with("aaa") && text.ends_with("zzz"));
        assert!(text.contains("[16384 of 32768 bytes are left out here; all that is kept: sandbox://x]"), "{text}");
    }

    #[test]
    fn control_characters_are_not_passed_on() {
        assert_eq!(clean(b"a\x1b[31mb\x07\tc\r\n\xff"), "a[31mb\tc\r\n\u{fffd}");
    }
}
