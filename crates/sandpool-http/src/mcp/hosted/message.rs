//! What one JSON-RPC message is, without taking apart what it says: the envelope is read, the rest is passed on as it came.

use std::borrow::Cow;

use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;
use sha2::{Digest, Sha256};

/// Bytes of an id or a progress token.
const MAX_ID: usize = 256;

/// Characters of a tool's name in the journal.
const MAX_TOOL: usize = 128;

/// Takes a request back.
const CANCELLED: &str = "notifications/cancelled";

/// Messages in one batch of a server (the revision 2025-03-26 had them).
const MAX_BATCH: usize = 64;

/// An id or a progress token, in the one spelling that JSON has for it here.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Id(String);

impl Id {
    /// As JSON.
    pub(super) fn json(&self) -> &str {
        &self.0
    }
}

/// What a message is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Wants an answer.
    Request {
        id: Id,
        method: String,
        /// What notifications of its progress will name.
        progress: Option<Id>,
    },
    /// Wants none.
    Notification {
        method: String,
        /// Whose progress it tells.
        progress: Option<Id>,
        /// The request that it takes back.
        cancels: Option<Id>,
    },
    /// Is one. Without an id it answers what could not be read.
    Response { id: Option<Id>, is_error: bool },
}

/// A message, ready to be passed on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Message {
    pub(super) kind: Kind,
    /// As it came, on one line.
    pub(super) line: String,
}

#[derive(Deserialize)]
struct Envelope<'a> {
    #[serde(borrow)]
    jsonrpc: Cow<'a, str>,
    #[serde(borrow, default, deserialize_with = "present")]
    id: Option<&'a RawValue>,
    #[serde(borrow, default)]
    method: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    params: Option<&'a RawValue>,
    #[serde(borrow, default, deserialize_with = "present")]
    result: Option<&'a RawValue>,
    #[serde(borrow, default)]
    error: Option<&'a RawValue>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Params<'a> {
    #[serde(borrow, default, rename = "_meta")]
    meta: Option<Meta<'a>>,
    #[serde(borrow, default)]
    progress_token: Option<&'a RawValue>,
    #[serde(borrow, default)]
    request_id: Option<&'a RawValue>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Meta<'a> {
    #[serde(borrow, default)]
    progress_token: Option<&'a RawValue>,
}

/// A call of a tool.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Tool {
    /// Its name, printable and cut where it is long.
    pub(super) name: String,
    /// SHA-256 of its arguments as they came, in hexadecimal digits; of nothing where there are none.
    pub(super) digest: String,
}

/// What is asked of a tool, for the journal.
pub(super) fn tool(message: &Message) -> Option<Tool> {
    #[derive(Deserialize)]
    struct Call<'a> {
        #[serde(borrow)]
        params: Asked<'a>,
    }
    #[derive(Deserialize)]
    struct Asked<'a> {
        #[serde(borrow)]
        name: Cow<'a, str>,
        #[serde(borrow, default)]
        arguments: Option<&'a RawValue>,
    }
    if !matches!(&message.kind, Kind::Request { method, .. } if method == "tools/call") {
        return None;
    }
    let Call { params } = serde_json::from_str(&message.line).ok()?;
    let plain = |one: char| if one.is_control() || one.is_whitespace() { '?' } else { one };
    let name = params.name.chars().take(MAX_TOOL).map(plain).collect();
    let digest = hex::encode(Sha256::digest(params.arguments.map_or("", RawValue::get)));
    Some(Tool { name, digest })
}

/// What is there, be it null.
fn present<'de: 'a, 'a, D: Deserializer<'de>>(from: D) -> Result<Option<&'a RawValue>, D::Error> {
    <&RawValue>::deserialize(from).map(Some)
}

/// Reads one message. Its text must be bounded already.
///
/// # Errors
/// What is wrong with it, for whoever sent it.
pub(super) fn parse(text: &str) -> Result<Message, String> {
    let text = text.trim();
    if text.starts_with('[') {
        return Err("one message at a time: batches are not taken".to_owned());
    }
    let envelope: Envelope<'_> = serde_json::from_str(text).map_err(|error| format!("no JSON-RPC message: {error}"))?;
    if envelope.jsonrpc != "2.0" {
        return Err("jsonrpc must be \"2.0\"".to_owned());
    }
    let id = envelope.id.map(id).transpose()?.flatten();
    let kind = match envelope.method {
        Some(method) if id.is_some() || envelope.id.is_none() => {
            let params: Option<Params<'_>> = envelope.params.and_then(|params| serde_json::from_str(params.get()).ok());
            let of = |raw: Option<&RawValue>| raw.and_then(|raw| self::id(raw).ok().flatten());
            let method = method.into_owned();
            match id {
                Some(id) => {
                    let meta = params.and_then(|params| params.meta);
                    Kind::Request { id, method, progress: of(meta.and_then(|meta| meta.progress_token)) }
                }
                None => {
                    let params = params.as_ref();
                    let progress = of(params.and_then(|params| params.progress_token));
                    let cancels = params.and_then(|params| params.request_id).filter(|_| method == CANCELLED);
                    Kind::Notification { method, progress, cancels: of(cancels) }
                }
            }
        }
        Some(_) => return Err("the id of a request must be a text or a number".to_owned()),
        None if envelope.result.is_some() != envelope.error.is_some() => {
            Kind::Response { id, is_error: envelope.error.is_some() }
        }
        None => return Err("neither a request nor a notification nor a response".to_owned()),
    };
    // Outside of texts a line's end is a space, and inside of one it cannot be.
    Ok(Message { kind, line: text.replace(['\n', '\r'], " ") })
}

/// Reads what a server wrote on one line: a message, or a batch of them.
pub(super) fn parse_line(text: &str) -> Result<Vec<Message>, String> {
    if !text.trim_start().starts_with('[') {
        return parse(text).map(|message| vec![message]);
    }
    let batch: Vec<&RawValue> = serde_json::from_str(text).map_err(|error| error.to_string())?;
    if batch.len() > MAX_BATCH {
        return Err(format!("more than {MAX_BATCH} messages in a batch"));
    }
    batch.into_iter().map(|raw| parse(raw.get())).collect()
}

/// An id: a text or a number; `None` for null.
fn id(raw: &RawValue) -> Result<Option<Id>, String> {
    let wrong = || format!("an id must be a text or a number of at most {MAX_ID} bytes");
    if raw.get().len() > MAX_ID {
        return Err(wrong());
    }
    match serde_json::from_str(raw.get()) {
        Ok(value @ (serde_json::Value::String(_) | serde_json::Value::Number(_))) => Ok(Some(Id(value.to_string()))),
        Ok(serde_json::Value::Null) => Ok(None),
        _ => Err(wrong()),
    }
}

/// A response that says that something went wrong.
pub(super) fn error(id: Option<&Id>, code: i32, message: &str) -> String {
    let message = serde_json::Value::from(message);
    let id = id.map_or("null", Id::json);
    format!(r#"{{"jsonrpc":"2.0","id":{id},"error":{{"code":{code},"message":{message}}}}}"#)
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_call_of_a_tool_is_told_by_its_name_and_a_digest() {
        let of = |params: &str| {
            let line = format!(r#"{{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{params}}}"#);
            tool(&parse(&line).unwrap())
        };
        let digest = hex::encode(Sha256::digest(r#"{"path": "/secret"}"#));
        let read = Tool { name: "read_file".to_owned(), digest };
        assert_eq!(of(r#"{"name":"read_file","arguments":{"path": "/secret"}}"#), Some(read));
        let odd = of(r#"{"name":"a\nsession.deleted"}"#).unwrap();
        assert_eq!((odd.name.as_str(), odd.digest), ("a?session.deleted", hex::encode(Sha256::digest(""))));
        assert_eq!(of(&format!(r#"{{"name":"{}"}}"#, "n".repeat(1_000))).unwrap().name.len(), MAX_TOOL);
        assert_eq!(of("[]"), None);
        let other = r#"{"jsonrpc":"2.0","id":1,"method":"tools/list","params":{"name":"x"}}"#;
        assert_eq!(tool(&parse(other).unwrap()), None);
    }

    use super::*;
    use proptest::prelude::*;

    fn kind(text: &str) -> Kind {
        parse(text).unwrap_or_else(|error| panic!("{error}: {text}")).kind
    }

    fn id(json: &str) -> Id {
        Id(json.to_owned())
    }

    #[test]
    fn messages_are_told_apart_and_passed_on_as_they_came() {
        let call = "{\"jsonrpc\": \"2.0\",\r\n \"id\": \"\\u0061\", \"method\": \"tools/call\", \
            \"params\": {\"_meta\": {\"progressToken\": 7}, \"n\": 1e400, \"t\": \"a\\nb\"}}\n";
        let message = parse(call).unwrap();
        assert_eq!(
            message.kind,
            Kind::Request { id: id("\"a\""), method: "tools/call".to_owned(), progress: Some(id("7")) }
        );
        assert!(message.line.contains("1e400") && message.line.contains(r"a\nb") && !message.line.contains('\n'));
        let told = r#"{"jsonrpc":"2.0","method":"notifications/progress","params":{"progressToken":7,"progress":1}}"#;
        let method = "notifications/progress".to_owned();
        assert_eq!(kind(told), Kind::Notification { method, progress: Some(id("7")), cancels: None });
        let taken_back = r#"{"jsonrpc":"2.0","method":"notifications/cancelled","params":{"requestId":"a"}}"#;
        assert!(matches!(kind(taken_back), Kind::Notification { cancels: Some(found), .. } if found == id("\"a\"")));
        assert_eq!(
            kind(r#"{"jsonrpc":"2.0","id":1,"result":{}}"#),
            Kind::Response { id: Some(id("1")), is_error: false }
        );
        let unread = r#"{"jsonrpc":"2.0","id":null,"error":{"code":-32700,"message":"?"}}"#;
        assert_eq!(kind(unread), Kind::Response { id: None, is_error: true });
        let odd = r#"{"jsonrpc":"2.0","id":1,"method":"a","params":[1]}"#;
        assert_eq!(kind(odd), Kind::Request { id: id("1"), method: "a".to_owned(), progress: None });
    }

    #[test]
    fn what_is_no_message_is_refused_with_a_reason() {
        let long = format!(r#"{{"jsonrpc":"2.0","id":"{}","method":"a"}}"#, "x".repeat(MAX_ID));
        for (text, reason) in [
            ("", "no JSON-RPC message"),
            ("[]", "one message at a time"),
            ("{}", "missing field `jsonrpc`"),
            (r#"{"jsonrpc":"1.0","id":1,"method":"a"}"#, "jsonrpc"),
            (r#"{"jsonrpc":"2.0","id":{},"method":"a"}"#, "an id must be"),
            (r#"{"jsonrpc":"2.0","id":null,"method":"a"}"#, "the id of a request"),
            (r#"{"jsonrpc":"2.0","id":1}"#, "neither"),
            (r#"{"jsonrpc":"2.0","id":1,"result":1,"error":1}"#, "neither"),
            (r#"{"jsonrpc":"2.0","id":1,"id":2,"method":"a"}"#, "duplicate field"),
            (long.as_str(), "an id must be"),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.contains(reason), "{text}: {error}");
        }
        assert_eq!(
            parse_line(r#"[{"jsonrpc":"2.0","id":1,"result":{}},{"jsonrpc":"2.0","method":"a"}]"#).unwrap().len(),
            2
        );
    }

    #[test]
    fn an_error_is_a_response() {
        let text = error(Some(&id("\"a\"")), -32000, "it \"ended\"\n");
        assert_eq!(kind(&text), Kind::Response { id: Some(id("\"a\"")), is_error: true });
        assert_eq!(kind(&error(None, 1, "")), Kind::Response { id: None, is_error: true });
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic_and_what_is_passed_on_is_one_line(text in ".{0,200}") {
            let _ = parse_line(&text);
            let quoted = serde_json::Value::from(text.as_str());
            let call = format!("{{\"jsonrpc\":\"2.0\",\n\"id\":1,\"method\":{quoted}\r}}");
            let message = parse(&call).unwrap();
            prop_assert!(!message.line.contains(['\n', '\r']));
            prop_assert_eq!(message.kind, Kind::Request { id: id("1"), method: text, progress: None });
        }
    }
}
