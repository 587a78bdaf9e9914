//! Multipart bodies, read as they arrive: memory stays bounded however long the body is.
//!
//! The boundary is what the body begins with: several clients keep another content type from their last request, so the
//! header is only asked when the body does not begin with two hyphens.

use axum::http::StatusCode;
use bytes::{Buf, Bytes, BytesMut};
use futures::{Stream, StreamExt};
use percent_encoding::percent_decode_str;

use crate::problem::Problem;

/// The longest boundary, in bytes. (RFC 2046 has 70.)
const MAX_BOUNDARY: usize = 200;

/// The longest head of a part, in bytes.
const MAX_HEAD: usize = 16 * 1024;

/// The longest text before the first part, in bytes.
const MAX_PREAMBLE: usize = 64 * 1024;

/// The most blanks behind a boundary, in bytes.
const MAX_PADDING: usize = 64;

/// Pieces of this size are handed out, unless a part ends.
const PIECE: usize = 256 * 1024;

/// A body, taken apart.
pub(crate) struct Multipart<S> {
    source: S,
    buffer: BytesMut,
    is_at_end: bool,
    /// What ends a part: a line end, two hyphens, the boundary.
    delimiter: Vec<u8>,
    /// How much of the buffer is known to hold no delimiter.
    searched: usize,
    place: Place,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// Before the head of a part.
    Head,
    /// In the bytes of a part.
    Data,
    /// After the last part.
    Over,
}

/// What a part says about itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Part {
    pub(crate) name: Option<String>,
    pub(crate) filename: Option<String>,
}

impl<S, E> Multipart<S>
where
    S: Stream<Item = Result<Bytes, E>> + Unpin,
{
    /// Finds the first part.
    ///
    /// # Errors
    /// When the body is empty, or no multipart body.
    pub(crate) async fn begin(source: S, content_type: Option<&str>) -> Result<Self, Problem> {
        let mut it = Self {
            source,
            buffer: BytesMut::new(),
            is_at_end: false,
            delimiter: Vec::new(),
            searched: 0,
            place: Place::Head,
        };
        let declared = content_type.and_then(boundary);
        while it.buffer.len() < 2 && it.more().await? {}
        if it.buffer.is_empty() {
            return Err(bad("The body is empty. Send the file as the part `file` of a multipart/form-data body."));
        }
        // A line end before the first boundary is an empty preamble.
        if it.buffer.starts_with(b"\r\n") {
            it.buffer.advance(2);
            while it.buffer.len() < 2 && it.more().await? {}
        }
        if it.buffer.starts_with(b"--") {
            let line = it.line(MAX_BOUNDARY + MAX_PADDING).await?;
            let Some((line, end)) = line else {
                return Err(bad("The body begins with two hyphens, but its first line is no boundary."));
            };
            let found = line.trim_ascii_end();
            if declared.as_ref().is_some_and(|declared| found == [b"--", declared.as_slice(), b"--"].concat()) {
                it.place = Place::Over;
                return Ok(it);
            }
            if found.len() <= 2 || found.len() > MAX_BOUNDARY + 2 {
                return Err(bad("The boundary in the body's first line is empty or too long."));
            }
            it.delimiter = [end, found].concat();
            return Ok(it);
        }
        let Some(declared) = declared else {
            return Err(bad("The body is not multipart. Send the file as the part `file` of multipart/form-data."));
        };
        it.delimiter = [b"\r\n--", declared.as_slice()].concat();
        it.place = Place::Data;
        let mut skipped = 0;
        while let Some(piece) = it.piece().await? {
            skipped += piece.len();
            if skipped > MAX_PREAMBLE {
                return Err(bad("The body does not begin with its boundary."));
            }
        }
        Ok(it)
    }

    /// The next part, past what is left of this one.
    ///
    /// # Errors
    /// When the body ends in the middle, or a head makes no sense.
    pub(crate) async fn next(&mut self) -> Result<Option<Part>, Problem> {
        while self.place == Place::Data {
            self.piece().await?;
        }
        if self.place == Place::Over {
            return Ok(None);
        }
        let mut part = Part::default();
        let mut left = MAX_HEAD;
        loop {
            let Some((line, _)) = self.line(left).await? else {
                return Err(bad("The head of a part is too long, or the body ends in it."));
            };
            if line.is_empty() {
                break;
            }
            left = left.saturating_sub(line.len() + 2);
            let Some(colon) = line.iter().position(|&byte| byte == b':') else {
                return Err(bad("The head of a part has a line that is no header."));
            };
            if line[..colon].trim_ascii().eq_ignore_ascii_case(b"content-disposition") {
                part = disposition(&readable(&line[colon + 1..]));
            }
        }
        self.place = Place::Data;
        self.searched = 0;
        // A part without bytes may end where its head does.
        let bare = self.delimiter.iter().position(|&byte| byte == b'-').unwrap_or(0);
        while self.buffer.len() < self.delimiter.len() - bare && self.more().await? {}
        if self.buffer.starts_with(&self.delimiter[bare..]) && self.ends_at(0, self.delimiter.len() - bare).await? {
            self.searched = 0;
        }
        Ok(Some(part))
    }

    /// The next bytes of this part; `None` at its end.
    ///
    /// # Errors
    /// When the body ends in the middle.
    pub(crate) async fn piece(&mut self) -> Result<Option<Bytes>, Problem> {
        while self.place == Place::Data {
            match memchr::memmem::find(&self.buffer[self.searched..], &self.delimiter) {
                Some(at) => {
                    let at = self.searched + at;
                    if at > 0 {
                        // What comes before it goes out first.
                        self.searched = 0;
                        return Ok(Some(self.buffer.split_to(at).freeze()));
                    }
                    if !self.ends_at(0, self.delimiter.len()).await? {
                        self.searched = 1;
                    }
                }
                None => {
                    self.searched = (self.buffer.len() + 1).saturating_sub(self.delimiter.len()).max(self.searched);
                    if self.searched >= PIECE {
                        let piece = self.buffer.split_to(self.searched).freeze();
                        self.searched = 0;
                        return Ok(Some(piece));
                    }
                    if !self.more().await? {
                        return Err(bad("The body ends in the middle of a part."));
                    }
                }
            }
        }
        Ok(None)
    }

    /// Whether a delimiter at `at` is one: what follows decides. Takes it, if it is.
    async fn ends_at(&mut self, at: usize, length: usize) -> Result<bool, Problem> {
        let after = at + length;
        while self.buffer.len() < after + 2 && self.more().await? {}
        if self.buffer[after..].starts_with(b"--") {
            self.buffer.advance(after + 2);
            self.place = Place::Over;
            return Ok(true);
        }
        let mut end = after;
        loop {
            while self.buffer.len() < end + 2 && self.more().await? {}
            match &self.buffer[end..] {
                [b' ' | b'\t', ..] if end < after + MAX_PADDING => end += 1,
                [b'\r', b'\n', ..] => end += 2,
                [b'\n', ..] => end += 1,
                [] => return Err(bad("The body ends in the middle of a boundary.")),
                _ => return Ok(false),
            }
            if self.buffer[end - 1] == b'\n' {
                self.buffer.advance(end);
                self.place = Place::Head;
                return Ok(true);
            }
        }
    }

    /// Takes one line, without its end, and its end; `None` when there is none within `limit` bytes.
    async fn line(&mut self, limit: usize) -> Result<Option<(Vec<u8>, &'static [u8])>, Problem> {
        let mut looked = 0;
        loop {
            if let Some(at) = memchr::memchr(b'\n', &self.buffer[looked..]) {
                let mut line = self.buffer.split_to(looked + at + 1).to_vec();
                line.pop();
                let end: &[u8] = if line.last() == Some(&b'\r') { b"\r\n" } else { b"\n" };
                line.truncate(line.len() + 1 - end.len());
                return Ok((line.len() <= limit).then_some((line, end)));
            }
            looked = self.buffer.len();
            if looked > limit || !self.more().await? {
                return Ok(None);
            }
        }
    }

    /// Reads on. Whether there was more.
    async fn more(&mut self) -> Result<bool, Problem> {
        if self.is_at_end {
            return Ok(false);
        }
        match self.source.next().await {
            Some(Ok(bytes)) => {
                self.buffer.extend_from_slice(&bytes);
                Ok(true)
            }
            Some(Err(_)) => Err(bad("The body broke off.")),
            None => {
                self.is_at_end = true;
                Ok(false)
            }
        }
    }
}

fn bad(message: &str) -> Problem {
    let problem = Problem::new(StatusCode::BAD_REQUEST, "SessionRequestValidationFailed", message);
    problem.about("file")
}

/// Bytes of a head as text: UTF-8, else as the old standard has them.
fn readable(bytes: &[u8]) -> String {
    match std::str::from_utf8(bytes) {
        Ok(text) => text.to_owned(),
        Err(_) => bytes.iter().map(|&byte| char::from(byte)).collect(),
    }
}

/// The boundary that a content type declares.
fn boundary(content_type: &str) -> Option<Vec<u8>> {
    let (kind, parameters) = content_type.split_once(';')?;
    if !kind.trim().get(..10)?.eq_ignore_ascii_case("multipart/") {
        return None;
    }
    let found = parameters_of(parameters).into_iter().find(|(name, _)| name == "boundary")?.1;
    (!found.is_empty() && found.len() <= MAX_BOUNDARY).then(|| found.into_bytes())
}

fn disposition(value: &str) -> Part {
    let mut part = Part::default();
    let Some((_, parameters)) = value.split_once(';') else { return part };
    let mut extended = None;
    for (name, value) in parameters_of(parameters) {
        match name.as_str() {
            "name" => part.name = Some(value),
            "filename" => part.filename = Some(value),
            "filename*" => extended = decoded(&value),
            _ => {}
        }
    }
    if extended.is_some() {
        part.filename = extended;
    }
    part
}

/// RFC 8187's form: `UTF-8'language'percent-encoded`.
fn decoded(value: &str) -> Option<String> {
    let (charset, rest) = value.split_once('\'')?;
    let (_, text) = rest.split_once('\'')?;
    let bytes: Vec<u8> = percent_decode_str(text).collect();
    if charset.eq_ignore_ascii_case("utf-8") { String::from_utf8(bytes).ok() } else { Some(readable(&bytes)) }
}

/// `name=value; name="value"`, names in lower case. In quotes a backslash quotes a quote or itself; before anything else
/// it is one, as in the paths of Windows.
fn parameters_of(text: &str) -> Vec<(String, String)> {
    let mut found = Vec::new();
    let mut rest = text;
    loop {
        rest = rest.trim_start_matches([';', ' ', '\t']);
        let Some((name, after)) = rest.split_once('=') else { return found };
        let name = name.trim().to_ascii_lowercase();
        let after = after.trim_start();
        if let Some(quoted) = after.strip_prefix('"') {
            let mut value = String::new();
            let mut signs = quoted.char_indices().peekable();
            let mut end = quoted.len();
            while let Some((at, sign)) = signs.next() {
                match sign {
                    '"' => {
                        end = at + 1;
                        break;
                    }
                    '\\' => match signs.next_if(|(_, next)| matches!(next, '"' | '\\')) {
                        Some((_, next)) => value.push(next),
                        None => value.push('\\'),
                    },
                    sign => value.push(sign),
                }
            }
            found.push((name, value));
            rest = &quoted[end..];
            // What stands between the quotes and the next semicolon means nothing.
            rest = rest.find(';').map_or("", |at| &rest[at..]);
        } else {
            let (value, after) = after.split_at(after.find(';').unwrap_or(after.len()));
            found.push((name, value.trim().to_owned()));
            rest = after;
        }
    }
}

#[cfg(test)]
mod tests;
