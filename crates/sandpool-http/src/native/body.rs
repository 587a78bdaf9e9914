//! What was sent: bounded before it is parsed, and refused with the place of what is wrong.

use axum::body::{Body, Bytes};
use axum::http::StatusCode;
use http_body_util::BodyExt;
use serde::de::DeserializeOwned;
use serde_json::error::Category;

use crate::problem::Problem;

/// 413: more than `limit` bytes.
pub(super) fn too_long(target: &str, limit: u64) -> Problem {
    let text = format!("{target} is longer than {limit} bytes.");
    Problem::new(StatusCode::PAYLOAD_TOO_LARGE, "RequestTooLarge", text).about(target)
}

/// The body broke off, or its coding is wrong.
pub(super) fn broken(why: impl std::fmt::Display) -> Problem {
    Problem::invalid("body", format!("The body cannot be read: {why}."))
}

/// The next bytes of a body; `None` at its end.
pub(super) async fn next(body: &mut Body) -> Result<Option<Bytes>, Problem> {
    while let Some(frame) = body.frame().await {
        match frame.map_err(broken)?.into_data() {
            Ok(data) if data.is_empty() => {}
            Ok(data) => return Ok(Some(data)),
            // Trailers.
            Err(_) => {}
        }
    }
    Ok(None)
}

/// A whole body of at most `limit` bytes.
pub(super) async fn whole(mut body: Body, limit: usize) -> Result<Vec<u8>, Problem> {
    let mut bytes = Vec::new();
    while let Some(piece) = next(&mut body).await? {
        if bytes.len() + piece.len() > limit {
            return Err(too_long("body", u64::try_from(limit).unwrap_or(u64::MAX)));
        }
        bytes.extend_from_slice(&piece);
    }
    Ok(bytes)
}

/// Reads JSON; what is wrong is said with its place, and names the field.
pub(super) fn json<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Problem> {
    if bytes.trim_ascii_start().first() == Some(&b'[') {
        // serde would take the fields in their order.
        return Err(Problem::invalid("body", "The body is a JSON list, not an object."));
    }
    let mut deserializer = serde_json::Deserializer::from_slice(bytes);
    let value: T = serde_path_to_error::deserialize(&mut deserializer).map_err(|error| {
        let path = error.path().to_string();
        let inner = error.into_inner();
        let field = unknown_field(&inner).unwrap_or(if path == "." { "body".to_owned() } else { path });
        match inner.classify() {
            Category::Data => Problem::invalid(&field, format!("{field}: {inner}.")),
            Category::Syntax | Category::Eof | Category::Io => {
                Problem::invalid("body", format!("The body is not JSON: {inner}."))
            }
        }
    })?;
    deserializer.end().map_err(|error| Problem::invalid("body", format!("The body is not JSON: {error}.")))?;
    Ok(value)
}

/// The key that serde did not know: it is in the text only.
fn unknown_field(error: &serde_json::Error) -> Option<String> {
    let text = error.to_string();
    let rest = text.strip_prefix("unknown field `")?;
    rest.split_once("`, expected ").map(|(name, _)| name.chars().take(100).collect())
}
