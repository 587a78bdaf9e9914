//! Files of a session: listed, sent and taken in pieces, so that none is ever in memory as a whole.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use axum::Json;
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::header::{
    CACHE_CONTROL, CONTENT_DISPOSITION, CONTENT_LENGTH, CONTENT_TYPE, EXPECT, X_CONTENT_TYPE_OPTIONS,
};
use axum::http::{HeaderMap, HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use futures::{Stream, StreamExt, stream};
use percent_encoding::utf8_percent_encode;
use sandpool_node::{Entry, EntryKind, NodeError, Open};
use serde_json::{Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::asked::Asked;
use super::body;
use crate::app::{App, SEGMENT};
use crate::journal::{self, Did};
use crate::problem::Problem;

/// Where relative paths begin.
const DATA: &str = "/mnt/data";

/// The largest upload, in bytes.
const MAX_UPLOAD: u64 = 128 << 20;

/// How much of an upload that is too large is still taken in, and for how long, so that its sender hears the answer
/// instead of a broken connection.
const PATIENCE: (u64, Duration) = (MAX_UPLOAD, Duration::from_secs(30));

/// Entries of one page.
const PAGE: u32 = 1_000;

/// A directory's entries, sorted by path.
pub(super) async fn list(State(app): State<App>, asked: Asked) -> Result<Json<Value>, Problem> {
    let (pool, key) = asked.files()?;
    let path = directory(asked.text("path").unwrap_or_default())?;
    let recursive = asked.flag("recursive")?;
    let limit = asked.number("limit", 1, PAGE)?.unwrap_or(PAGE);
    let after = asked.text("after").map(str::to_owned);
    let listed = app.node.list_files(&pool, &key, &path, recursive, after, limit).await;
    let (entries, more) = listed.map_err(|error| Problem::from(error).about("path"))?;
    let next = entries.last().filter(|_| more).map(|last| last.path.clone());
    let value: Vec<_> = entries.iter().map(|entry| shown(entry, &entry.path)).collect();
    Ok(Json(json!({ "value": value, "next": next })))
}

/// A file's bytes.
pub(super) async fn read(State(app): State<App>, asked: Asked) -> Result<Response, Problem> {
    let (pool, key) = asked.files()?;
    let path = file(&asked)?;
    let read = app.node.read_file(&pool, &key, &path).await;
    let (size, pieces) = read.map_err(|error| Problem::from(error).about("path"))?;
    let mut headers = HeaderMap::new();
    headers.insert(CONTENT_LENGTH, HeaderValue::from(size));
    // It comes from a sandbox: no browser shall take it for anything but a file to save.
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    if let Ok(disposition) = HeaderValue::from_str(&disposition(base_name(&path))) {
        headers.insert(CONTENT_DISPOSITION, disposition);
    }
    Ok((headers, Body::from_stream(pieces)).into_response())
}

/// Writes a file, whole or not at all. The session is made if it is not there.
pub(super) async fn write(
    State(app): State<App>,
    asked: Asked,
    headers: HeaderMap,
    mut body: Body,
) -> Result<Json<Value>, Problem> {
    let mut has_begun = !headers.contains_key(EXPECT);
    let written = take(&app, &asked, &headers, &mut body, &mut has_begun).await;
    // Whoever still waits to be told to begin hears the refusal at once; others send all before they listen.
    if written.is_err() && has_begun {
        drain(&mut body).await;
    }
    written
}

async fn take(
    app: &App,
    asked: &Asked,
    headers: &HeaderMap,
    body: &mut Body,
    has_begun: &mut bool,
) -> Result<Json<Value>, Problem> {
    let (pool, key) = asked.files()?;
    let path = file(asked)?;
    let length = headers.get(CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse::<u64>().ok());
    if length.is_some_and(|length| length > MAX_UPLOAD) {
        return Err(body::too_long("body", MAX_UPLOAD));
    }
    app.node.open(&pool, &key, Open::OrCreate, &asked.principal.caller()).await?;
    *has_begun = true;
    let refused = Arc::new(OnceLock::new());
    let pieces = limited(body, MAX_UPLOAD, Arc::clone(&refused));
    let written = app.node.write_file(&pool, &key, &path, pieces.boxed()).await;
    match (written, refused.get()) {
        (Ok(entry), _) => {
            journal::did(&app.node, &asked.principal, (&pool, &key), Did::WroteFile, &path);
            Ok(Json(shown(&entry, &path)))
        }
        (Err(_), Some(refusal)) => Err(refusal.clone()),
        (Err(error), None) => Err(Problem::from(error).about("path")),
    }
}

/// The bytes of a body, up to `limit`. Why it ends early is in `refused` then.
fn limited(
    body: &mut Body,
    limit: u64,
    refused: Arc<OnceLock<Problem>>,
) -> impl Stream<Item = Result<Bytes, NodeError>> + Send {
    stream::unfold((body, 0_u64, refused), move |(body, before, refused)| async move {
        let refusal = match body::next(body).await {
            Ok(None) => return None,
            Ok(Some(piece)) => {
                let sum = before + u64::try_from(piece.len()).unwrap_or(u64::MAX);
                if sum <= limit {
                    return Some((Ok(piece), (body, sum, refused)));
                }
                body::too_long("body", limit)
            }
            Err(problem) => problem,
        };
        let said = NodeError::Invalid(refusal.message.clone());
        // Nothing is asked of this stream after an error.
        let _ = refused.set(refusal);
        Some((Err(said), (body, before, refused)))
    })
}

/// Takes in what is still being sent, within bounds.
async fn drain(body: &mut Body) {
    let (mut room, time) = PATIENCE;
    // However it ends: the answer follows.
    let _ = tokio::time::timeout(time, async {
        while let Ok(Some(piece)) = body::next(body).await {
            room = room.saturating_sub(u64::try_from(piece.len()).unwrap_or(u64::MAX));
            if room == 0 {
                break;
            }
        }
    })
    .await;
}

/// Removes a file, or a directory with all in it.
pub(super) async fn remove(State(app): State<App>, asked: Asked) -> Result<StatusCode, Problem> {
    let (pool, key) = asked.files()?;
    let path = file(&asked)?;
    let removed = app.node.remove_file(&pool, &key, &path).await;
    removed.map_err(|error| Problem::from(error).about("path"))?;
    journal::did(&app.node, &asked.principal, (&pool, &key), Did::RemovedFile, &path);
    Ok(StatusCode::NO_CONTENT)
}

/// The absolute path of the file that is meant: what the URL's path says below `/mnt/data`, or `-?absolute=`.
fn file(asked: &Asked) -> Result<String, Problem> {
    match (asked.file(), asked.text("absolute")) {
        ("-", Some(absolute)) if absolute.starts_with('/') => Ok(absolute.to_owned()),
        ("-", Some(_)) => Err(Problem::invalid("absolute", "absolute is a path that begins with /.")),
        (_, Some(_)) => Err(Problem::invalid("absolute", "absolute goes with the path files/- only.")),
        (relative, None) => Ok(format!("{DATA}/{relative}")),
    }
}

/// The absolute path of a directory to list: without `.` and empty components, which mean nothing.
pub(crate) fn directory(path: &str) -> Result<String, Problem> {
    let base = if path.starts_with('/') { "" } else { DATA };
    let mut absolute = base.to_owned();
    for name in path.split('/').filter(|name| !matches!(*name, "" | ".")) {
        if name == ".." {
            return Err(Problem::invalid("path", "The path has a component .. in it."));
        }
        absolute.push('/');
        absolute.push_str(name);
    }
    Ok(if absolute.is_empty() { "/".to_owned() } else { absolute })
}

fn base_name(path: &str) -> &str {
    path.rsplit_once('/').map_or(path, |(_, name)| name)
}

/// RFC 6266 and 8187: a name for old programs, and the true one.
fn disposition(name: &str) -> String {
    let plain = |letter: char| letter.is_ascii_graphic() && !matches!(letter, '"' | '\\' | '%' | '/' | ';');
    let ascii: String = name.chars().map(|letter| if plain(letter) || letter == ' ' { letter } else { '_' }).collect();
    format!("attachment; filename=\"{ascii}\"; filename*=UTF-8''{}", utf8_percent_encode(name, SEGMENT))
}

fn shown(entry: &Entry, path: &str) -> Value {
    let modified = OffsetDateTime::from_unix_timestamp_nanos(i128::from(entry.modified_ns));
    json!({
        "name": base_name(path),
        "path": path,
        "type": match entry.kind {
            EntryKind::File => "file",
            EntryKind::Directory => "directory",
            EntryKind::Other => "other",
        },
        "size": entry.size,
        "modifiedAt": modified.ok().and_then(|time| time.format(&Rfc3339).ok()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_body_without_a_declared_length_is_counted() {
        for (limit, taken) in [(7, None), (6, None), (5, Some(413))] {
            let pieces = ["abc", "", "def"].map(|piece| Ok::<_, std::convert::Infallible>(Bytes::from(piece)));
            let mut body = Body::from_stream(stream::iter(pieces));
            let refused = Arc::new(OnceLock::new());
            let all: Vec<_> = limited(&mut body, limit, Arc::clone(&refused)).take(3).collect().await;
            assert_eq!(refused.get().map(|problem| problem.status.as_u16()), taken, "{limit}");
            assert_eq!(all.iter().any(Result::is_err), taken.is_some(), "{limit}");
        }
    }

    #[test]
    fn directories_are_named_in_many_ways() {
        for (given, meant) in [
            ("", "/mnt/data"),
            (".", "/mnt/data"),
            ("a//b/", "/mnt/data/a/b"),
            ("./a", "/mnt/data/a"),
            ("/", "/"),
            ("/mnt/data/", "/mnt/data"),
            ("/tmp/./x", "/tmp/x"),
            ("...", "/mnt/data/..."),
        ] {
            assert_eq!(directory(given).unwrap(), meant, "{given}");
        }
        for bad in ["..", "a/../b", "/.."] {
            assert_eq!(directory(bad).unwrap_err().target.as_deref(), Some("path"), "{bad}");
        }
    }

    #[test]
    fn a_name_cannot_leave_its_header() {
        assert_eq!(disposition("a b.csv"), "attachment; filename=\"a b.csv\"; filename*=UTF-8''a%20b.csv");
        assert_eq!(
            disposition("ä\"\r\n;\\%.x"),
            "attachment; filename=\"_______.x\"; filename*=UTF-8''%C3%A4%22%0D%0A%3B%5C%25.x"
        );
    }

    #[test]
    fn a_record_says_what_it_is() {
        let entry = Entry { path: "d/a".into(), kind: EntryKind::File, size: 3, modified_ns: 1_500_000_000 };
        let wanted = json!({
            "name": "a", "path": "d/a", "type": "file", "size": 3, "modifiedAt": "1970-01-01T00:00:01.5Z",
        });
        assert_eq!(shown(&entry, &entry.path), wanted);
    }
}
