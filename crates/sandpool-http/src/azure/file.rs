//! Files: stored as they arrive, read as they are asked for, and their records in each generation's shape.

use std::sync::{Arc, Mutex, PoisonError};

use axum::Json;
use axum::body::Body;
use axum::http::StatusCode;
use axum::http::header::{CONTENT_LENGTH, CONTENT_TYPE, EXPECT, HeaderName, HeaderValue};
use axum::response::{IntoResponse, Response};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use futures::StreamExt;
use futures::stream::BoxStream;
use percent_encoding::utf8_percent_encode;
use sandpool_node::{Entry, EntryKind, NodeError, Open, Opened};
use serde_json::{Map, Value, json};
use time::OffsetDateTime;

use super::multipart::Multipart;
use super::names::{self, Folder};
use super::query::Shape;
use super::route::{Listed, Uploaded};
use super::{Call, instant, tell_session};
use crate::journal::{self, Did};
use crate::problem::Problem;

/// The largest file that may be uploaded, in bytes.
const MAX_FILE: u64 = 128 << 20;

/// What may stand around the files of an upload, in bytes.
const AROUND: u64 = 1 << 20;

/// The most files of one upload.
const MAX_FILES: usize = 64;

/// The most records of one answer to a list.
const MAX_LISTED: usize = 10_000;

/// Records that are asked for at once.
const PAGE: u32 = 1_000;

/// The size that a directory is told to have, as Azure does.
const DIRECTORY_SIZE: u64 = 4_096;

type Pieces = BoxStream<'static, Result<Bytes, NodeError>>;

/// A record, and where its file is.
struct Record {
    name: String,
    folder: String,
    kind: EntryKind,
    content_type: &'static str,
    size: u64,
    modified: String,
}

impl Record {
    fn new(entry: &Entry, name: String, folder: &str, begins: Option<&[u8]>) -> Self {
        let (size, content_type) = match entry.kind {
            EntryKind::Directory => (DIRECTORY_SIZE, "application/octet-stream"),
            _ => (entry.size, names::content_type(&name, begins)),
        };
        let at =
            OffsetDateTime::from_unix_timestamp_nanos(entry.modified_ns.into()).unwrap_or(OffsetDateTime::UNIX_EPOCH);
        Self { name, folder: folder.to_owned(), kind: entry.kind, content_type, size, modified: instant(at) }
    }

    /// In a shape; `number` counts up as .NET's references do.
    fn json(&self, shape: Shape, number: &mut u32) -> Value {
        let mut record = Map::new();
        let mut next = || {
            *number += 1;
            number.to_string()
        };
        if shape != Shape::Modern {
            record.insert("$id".to_owned(), next().into());
        }
        if shape != Shape::Legacy {
            let kind = match self.kind {
                EntryKind::File => "file",
                EntryKind::Directory => "directory",
                EntryKind::Other => "other",
            };
            record.insert("name".to_owned(), self.name.clone().into());
            record.insert("type".to_owned(), kind.into());
            record.insert("contentType".to_owned(), self.content_type.into());
            record.insert("sizeInBytes".to_owned(), self.size.into());
            record.insert("lastModifiedAt".to_owned(), self.modified.clone().into());
            record.insert("directory".to_owned(), self.folder.clone().into());
        }
        if shape == Shape::Both {
            record.insert("filename".to_owned(), self.name.clone().into());
            record.insert("bytes".to_owned(), self.size.into());
            record.insert("size".to_owned(), self.size.into());
        }
        if shape != Shape::Modern {
            let properties = json!({
                "$id": next(),
                "filename": self.name,
                "size": self.size,
                "lastModifiedTime": self.modified,
            });
            record.insert("properties".to_owned(), properties);
        }
        record.into()
    }
}

/// Stores the files of a multipart body.
pub(super) async fn upload(call: &Call, shape: Uploaded, body: &mut Body) -> Result<Response, Problem> {
    let key = call.session()?;
    let folder = Folder::parse(call.query.get("path"), call.runtime)?;
    let declared = call.headers.get(CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
    if declared.is_some_and(|length| length > MAX_FILE + AROUND) && call.headers.contains_key(EXPECT) {
        return Err(too_large());
    }
    let named = match call.held.first() {
        Some(bytes) => Some(names::new_name(&String::from_utf8_lossy(bytes))?),
        None => None,
    };
    let content_type = call.headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok());
    let source = std::mem::take(body).into_data_stream();
    let mut multipart = Multipart::begin(source, content_type).await?;
    let mut opened: Option<Opened> = None;
    let mut records = Vec::new();
    let mut numbered = 1;
    while let Some(part) = multipart.next().await? {
        if !part.name.as_deref().is_some_and(|name| name.eq_ignore_ascii_case("file")) {
            continue;
        }
        if records.len() >= MAX_FILES {
            return Err(Problem::invalid("file", format!("An upload has at most {MAX_FILES} files.")));
        }
        let name = match (&named, part.filename) {
            (Some(name), _) if records.is_empty() => name.clone(),
            (_, Some(sent)) => names::new_name(&sent)?,
            (_, None) => return Err(Problem::invalid("file", "The part file has no filename.")),
        };
        if opened.is_none() {
            opened = Some(call.open(key, Open::OrCreate).await?);
        }
        let path = folder.file(&name);
        let mut arriving = Arriving { multipart: &mut multipart, taken: 0, begins: None, problem: None };
        let stored = call.app.node.write_file(&call.pool, key, &path, arriving.pieces()).await;
        let Arriving { begins, problem, .. } = arriving;
        if let Some(problem) = problem {
            return Err(problem);
        }
        let stored = stored?;
        journal::did(&call.app.node, &call.principal, (&call.pool, key), Did::WroteFile, &path);
        let begins = begins.unwrap_or_default();
        records.push(Record::new(&stored, name, folder.shown(), Some(&begins)));
    }
    let (Some(opened), Some(first)) = (opened, records.first()) else {
        let message = "The body has no part `file`. Send the file as the part `file` of multipart/form-data.";
        return Err(Problem::invalid("file", message));
    };
    let body = match shape {
        Uploaded::One => first.json(Shape::Modern, &mut numbered),
        Uploaded::Many => {
            let value: Vec<_> = records.iter().map(|record| record.json(Shape::Both, &mut numbered)).collect();
            json!({ "$id": "1", "value": value })
        }
        Uploaded::Oldest => {
            let value: Vec<_> = records.iter().map(|record| record.json(Shape::Both, &mut numbered)).collect();
            let mut top = first.json(Shape::Both, &mut 0);
            top["$values"] = value.clone().into();
            top["value"] = value.into();
            top
        }
    };
    let mut response = Json(body).into_response();
    tell_session(response.headers_mut(), &opened);
    Ok(response)
}

fn too_large() -> Problem {
    let message = format!("The file is larger than {} MB ({MAX_FILE} bytes).", MAX_FILE >> 20);
    let problem = Problem::new(StatusCode::PAYLOAD_TOO_LARGE, "FileTooLarge", message);
    problem.about("file")
}

/// One part on its way into the sandbox.
struct Arriving<'a, S> {
    multipart: &'a mut Multipart<S>,
    taken: u64,
    /// Its first bytes.
    begins: Option<Bytes>,
    /// Why it did not arrive: what the service layer answers then says less.
    problem: Option<Problem>,
}

impl<S> Arriving<'_, S>
where
    S: futures::Stream<Item = Result<Bytes, axum::Error>> + Unpin + Send,
{
    fn pieces(&mut self) -> BoxStream<'_, Result<Bytes, NodeError>> {
        futures::stream::unfold(self, async |it| {
            let piece = it.multipart.piece().await.and_then(|piece| {
                it.taken += piece.as_ref().map_or(0, |piece| u64::try_from(piece.len()).unwrap_or(u64::MAX));
                if it.taken > MAX_FILE { Err(too_large()) } else { Ok(piece) }
            });
            match piece {
                Ok(None) => None,
                Ok(Some(piece)) => {
                    it.begins.get_or_insert_with(|| Bytes::copy_from_slice(&piece[..piece.len().min(512)]));
                    Some((Ok(piece), it))
                }
                Err(problem) => {
                    it.problem = Some(problem);
                    Some((Err(NodeError::Invalid("the file did not arrive".to_owned())), it))
                }
            }
        })
        .boxed()
    }
}

/// Lists a directory.
pub(super) async fn list(call: &Call, listed: Listed) -> Result<Response, Problem> {
    let key = call.session()?;
    let folder = Folder::parse(call.query.get("path"), call.runtime)?;
    let recursive = call.query.switch("recursive")?;
    let mut after = call.query.get("after").map(str::to_owned);
    let opened = call.open(key, Open::OrCreate).await?;
    let shape = match listed {
        Listed::ByVersion => Shape::of(call.version),
        Listed::Oldest => Shape::Both,
    };
    let mut value = Vec::new();
    let mut number = 1;
    let next = loop {
        let page = call.app.node.list_files(&call.pool, key, &folder.path, recursive, after.clone(), PAGE).await?;
        let (entries, more) = page;
        after = entries.last().map(|entry| entry.path.clone());
        for entry in entries {
            // The old record cannot say that it is no file.
            if shape == Shape::Legacy && entry.kind != EntryKind::File {
                continue;
            }
            let (above, name) = entry.path.rsplit_once('/').unwrap_or((".", &entry.path));
            value.push(Record::new(&entry, name.to_owned(), above, None).json(shape, &mut number));
        }
        match &after {
            Some(last) if more && value.len() >= MAX_LISTED => break Some(last.clone()),
            Some(_) if more => {}
            _ => break None,
        }
    };
    let mut body = Map::new();
    if shape != Shape::Modern {
        body.insert("$id".to_owned(), "1".into());
    }
    if listed == Listed::Oldest {
        body.insert("$values".to_owned(), value.clone().into());
    }
    body.insert("value".to_owned(), value.into());
    if let Some(last) = next {
        let encoded = |text: &str| utf8_percent_encode(text, crate::app::SEGMENT).to_string();
        let path = call.query.get("path").unwrap_or_default();
        let more = format!("&path={}&recursive={recursive}&after={}", encoded(path), encoded(&last));
        body.insert("nextLink".to_owned(), call.link("files", Some(&key.identifier), &more).into());
    }
    let mut response = Json(Value::from(body)).into_response();
    tell_session(response.headers_mut(), &opened);
    Ok(response)
}

/// The file that the request names, in a session that is there.
async fn named(call: &Call) -> Result<(Folder, String, Opened), Problem> {
    let key = call.session()?;
    let folder = Folder::parse(call.query.get("path"), call.runtime)?;
    let in_query;
    let segments = if call.held.is_empty() {
        let name = call.query.get("filename").filter(|name| !name.is_empty());
        let name = name.ok_or_else(|| Problem::invalid("filename", "The parameter filename is missing."))?;
        let last = name.rsplit('/').next().unwrap_or(name);
        in_query = [last.as_bytes().to_vec()];
        &in_query[..]
    } else {
        &call.held[..]
    };
    let (folder, name) = names::existing(folder, segments)?;
    match call.app.node.open(&call.pool, key, Open::Existing, &call.principal.caller()).await {
        Ok(opened) => Ok((folder, name, opened)),
        // A session that is not there has no files; no slot is taken to say so.
        Err(NodeError::NoSession(_)) => Err(NodeError::NoFile(name).into()),
        Err(error) => Err(error.into()),
    }
}

/// What is told about a file that cannot be had: its name, not where it is.
fn about(name: &str) -> impl Fn(NodeError) -> Problem {
    move |error| match error {
        NodeError::NoFile(_) | NodeError::NoSession(_) => NodeError::NoFile(name.to_owned()).into(),
        error => error.into(),
    }
}

/// One file's record.
pub(super) async fn stat(call: &Call) -> Result<Response, Problem> {
    let (folder, name, opened) = named(call).await?;
    let key = call.session()?;
    let entry = call.app.node.stat_file(&call.pool, key, &folder.file(&name)).await.map_err(about(&name))?;
    let record = Record::new(&entry, name, folder.shown(), None);
    let mut response = Json(record.json(Shape::of(call.version), &mut 0)).into_response();
    tell_session(response.headers_mut(), &opened);
    Ok(response)
}

async fn contents(call: &Call) -> Result<(u64, Pieces, Opened), Problem> {
    let (folder, name, opened) = named(call).await?;
    let key = call.session()?;
    let (size, pieces) = call.app.node.read_file(&call.pool, key, &folder.file(&name)).await.map_err(about(&name))?;
    Ok((size, pieces, opened))
}

/// A file's bytes.
pub(super) async fn download(call: &Call) -> Result<Response, Problem> {
    let (size, pieces, opened) = contents(call).await?;
    let mut response = Body::from_stream(pieces).into_response();
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
    headers.insert(CONTENT_LENGTH, HeaderValue::from(size));
    headers.insert(HeaderName::from_static("x-content-type-options"), HeaderValue::from_static("nosniff"));
    tell_session(headers, &opened);
    Ok(response)
}

/// A file's bytes in base64, in JSON, written as they are read.
pub(super) async fn download_json(call: &Call) -> Result<Response, Problem> {
    let (_, pieces, opened) = contents(call).await?;
    // What does not fill three bytes waits for the next piece.
    let rest = Arc::new(Mutex::new(Vec::new()));
    let last = Arc::clone(&rest);
    let encoded = pieces.map(move |piece| {
        piece.map(|piece| {
            let mut rest = rest.lock().unwrap_or_else(PoisonError::into_inner);
            rest.extend_from_slice(&piece);
            let whole = rest.len() / 3 * 3;
            let left = rest.split_off(whole);
            Bytes::from(STANDARD.encode(std::mem::replace(&mut *rest, left)))
        })
    });
    let end = futures::stream::once(async move {
        let rest = last.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(Bytes::from(format!("{}\"}}", STANDARD.encode(&*rest))))
    });
    let begin = futures::stream::once(async { Ok(Bytes::from_static(b"{\"content\":\"")) });
    let mut response = Body::from_stream(begin.chain(encoded).chain(end)).into_response();
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    tell_session(headers, &opened);
    Ok(response)
}

/// Removes a file.
pub(super) async fn remove(call: &Call) -> Result<Response, Problem> {
    let (folder, name, opened) = named(call).await?;
    let key = call.session()?;
    let path = folder.file(&name);
    call.app.node.remove_file(&call.pool, key, &path).await.map_err(about(&name))?;
    journal::did(&call.app.node, &call.principal, (&call.pool, key), Did::RemovedFile, &path);
    let mut response = StatusCode::NO_CONTENT.into_response();
    tell_session(response.headers_mut(), &opened);
    Ok(response)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn item_4_a_file_of_128_mb_fits_and_one_more_byte_does_not() {
        for (size, fits) in [(128_usize << 20, true), ((128 << 20) + 1, false)] {
            let head = "--b\r\nContent-Disposition: form-data; name=\"file\"; filename=\"a\"\r\n\r\n";
            let chunk = Bytes::from(vec![b'x'; 1 << 20]);
            let rest = chunk.slice(..size % (1 << 20));
            let data = std::iter::repeat_n(chunk, size >> 20).chain([rest, "\r\n--b--\r\n".into()]);
            let pieces = std::iter::once(head.into()).chain(data).map(Ok::<Bytes, axum::Error>);
            let mut multipart = Multipart::begin(futures::stream::iter(pieces), None).await.unwrap();
            multipart.next().await.unwrap().unwrap();
            let mut arriving = Arriving { multipart: &mut multipart, taken: 0, begins: None, problem: None };
            let mut pieces = arriving.pieces();
            let mut taken = 0;
            while let Some(Ok(piece)) = pieces.next().await {
                // However long the file is, little of it is held.
                assert!(piece.len() <= 2 << 20, "{}", piece.len());
                taken += piece.len();
            }
            drop(pieces);
            let told = arriving.problem.map(|problem| problem.status);
            assert_eq!(told, (!fits).then_some(StatusCode::PAYLOAD_TOO_LARGE));
            assert_eq!(taken == size, fits);
        }
    }
}
