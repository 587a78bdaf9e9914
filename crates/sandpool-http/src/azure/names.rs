//! Where a file is: names and paths as the data plane takes them, turned into absolute paths of the sandbox.
//!
//! A name is the last part of whatever was sent (`/mnt/data/report.csv` is `report.csv`); folders come from `path`. A
//! `path` is below `/mnt/data`, also when it begins with a slash; `/mnt/data/…` itself means itself. On Shell pools
//! `app/…` is `/app/…`. The segments of a `path` hold no full stop.

use axum::http::StatusCode;
use sandpool_node::Runtime;

use crate::problem::Problem;

/// Where the files of a session are.
pub(crate) const ROOT: &str = "/mnt/data";

/// The longest name, in bytes.
const MAX_NAME: usize = 255;

/// Signs that a new file's name may hold besides letters and digits.
const SIGNS: &str = "-_ .@$&=;,#%^()";

/// Signs that no name may hold in a request. (Code can make files with these names; it can rename them, too.)
const RESERVED: &str = "/\\:*?\"<>|";

/// A directory of a session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Folder {
    /// Absolute.
    pub(crate) path: String,
}

impl Folder {
    /// Reads the parameter `path`; absent and empty are the root.
    pub(crate) fn parse(text: Option<&str>, runtime: Runtime) -> Result<Self, Problem> {
        let text = text.unwrap_or_default().trim();
        let mut segments: Vec<&str> = text.split('/').filter(|segment| !segment.is_empty()).collect();
        if segments.first() == Some(&".") {
            segments.remove(0);
        }
        let mut path = ROOT.to_owned();
        if segments.starts_with(&["mnt", "data"]) {
            segments.drain(..2);
        } else if runtime == Runtime::Shell && segments.first() == Some(&"app") {
            segments.remove(0);
            path = "/app".to_owned();
        }
        for segment in segments {
            if segment.contains('.') || !segment.chars().all(may_be_read) {
                return Err(bad_path(text, "its segments may not hold a full stop or a reserved character"));
            }
            path.push('/');
            path.push_str(segment);
        }
        if path.len() > 4096 - MAX_NAME - 1 || path.split('/').any(|segment| segment.len() > MAX_NAME) {
            return Err(bad_path(text, "it is too long"));
        }
        Ok(Self { path })
    }

    /// The path of a file in it.
    pub(crate) fn file(&self, name: &str) -> String {
        format!("{}/{name}", self.path)
    }

    /// As records show it: relative to the root, which is `.`.
    pub(crate) fn shown(&self) -> &str {
        match self.path.strip_prefix(ROOT) {
            Some("") => ".",
            Some(rest) => rest.trim_start_matches('/'),
            None => &self.path,
        }
    }
}

/// A file that is named in a path: the folder from `path`, then the segments.
pub(crate) fn existing(mut folder: Folder, segments: &[Vec<u8>]) -> Result<(Folder, String), Problem> {
    let mut texts = Vec::with_capacity(segments.len());
    for segment in segments {
        let garbled = |_| bad_name(&String::from_utf8_lossy(segment), "it is not UTF-8");
        texts.push(std::str::from_utf8(segment).map_err(garbled)?);
    }
    let Some((name, above)) = texts.split_last() else { return Err(bad_name("", "it is empty")) };
    // Some clients write the whole path where a name belongs, encoded or not.
    let mut name = *name;
    let above = above.strip_prefix(&["mnt", "data"]).unwrap_or(above);
    if above.is_empty()
        && let Some(rest) = name.trim_start_matches('/').strip_prefix("mnt/data/")
    {
        name = rest;
    }
    for segment in above {
        check_existing(segment)?;
        folder.path = folder.file(segment);
    }
    check_existing(name)?;
    Ok((folder, name.to_owned()))
}

fn check_existing(name: &str) -> Result<(), Problem> {
    match name {
        "" | "." | ".." => Err(bad_name(name, "it is no name of a file")),
        name if name.len() > MAX_NAME => Err(bad_name(name, "it is longer than 255 bytes")),
        name => match name.chars().find(|&sign| !may_be_read(sign)) {
            Some(sign) => Err(bad_name(name, &format!("the character {sign:?} is reserved"))),
            None => Ok(()),
        },
    }
}

fn may_be_read(sign: char) -> bool {
    !sign.is_control() && !RESERVED.contains(sign)
}

/// The name a new file gets, out of the name its sender gave it.
pub(crate) fn new_name(sent: &str) -> Result<String, Problem> {
    let name = sent.rsplit(['/', '\\']).next().unwrap_or_default().trim();
    check_existing(name)?;
    let fits = |sign: char| sign.is_alphanumeric() || SIGNS.contains(sign) || is_mark(sign);
    match name.chars().find(|&sign| !fits(sign)) {
        Some(sign) => {
            let why = format!("only letters, digits and {SIGNS:?} may be in it, not {sign:?}");
            Err(bad_name(name, &why))
        }
        None => Ok(name.to_owned()),
    }
}

/// Accents as some systems send them, apart from their letter.
fn is_mark(sign: char) -> bool {
    matches!(sign, '\u{300}'..='\u{36f}' | '\u{94d}' | '\u{3099}' | '\u{309a}')
}

fn bad_name(name: &str, why: &str) -> Problem {
    let message = format!("The file name {:?} cannot be used: {why}.", shown(name));
    let problem = Problem::new(StatusCode::BAD_REQUEST, "FileNameInvalid", message);
    problem.about("filename")
}

fn bad_path(path: &str, why: &str) -> Problem {
    let message = format!("The path {:?} cannot be used: {why}.", shown(path));
    let problem = Problem::new(StatusCode::BAD_REQUEST, "FilePathInvalid", message);
    problem.about("path")
}

fn shown(text: &str) -> String {
    text.chars().take(100).collect()
}

/// The media type of a file, by its name and, if it is known, by how it begins. Text is text, whatever it is about.
pub(crate) fn content_type(name: &str, begins: Option<&[u8]>) -> &'static str {
    const TEXT: &str = "text/plain; charset=utf-8";
    let ending = name.rsplit_once('.').map(|(_, ending)| ending.to_ascii_lowercase()).unwrap_or_default();
    match ending.as_str() {
        "png" => "image/png",
        "jpg" | "jpeg" => "image/jpeg",
        "gif" => "image/gif",
        "webp" => "image/webp",
        "bmp" => "image/bmp",
        "pdf" => "application/pdf",
        "zip" | "xlsx" | "docx" | "pptx" => "application/zip",
        "gz" | "tgz" => "application/x-gzip",
        "mp3" => "audio/mpeg",
        "wav" => "audio/wave",
        "mp4" => "video/mp4",
        "txt" | "csv" | "tsv" | "md" | "json" | "jsonl" | "ndjson" | "yaml" | "yml" | "toml" | "ini" | "cfg"
        | "log" | "py" | "ipynb" | "js" | "mjs" | "cjs" | "ts" | "tsx" | "jsx" | "sh" | "bash" | "rs" | "c" | "h"
        | "cpp" | "hpp" | "cs" | "java" | "go" | "rb" | "php" | "pl" | "r" | "sql" | "css" | "html" | "htm" | "xml"
        | "svg" | "tex" | "rst" | "bat" | "ps1" | "env" | "diff" | "patch" => TEXT,
        _ => match begins {
            Some(bytes) if is_text(bytes) => TEXT,
            _ => "application/octet-stream",
        },
    }
}

fn is_text(begins: &[u8]) -> bool {
    let begins = &begins[..begins.len().min(512)];
    let whole = match std::str::from_utf8(begins) {
        Ok(text) => text,
        // The last character may go on after what was looked at.
        Err(error) if error.error_len().is_none() => {
            std::str::from_utf8(&begins[..error.valid_up_to()]).unwrap_or_default()
        }
        Err(_) => return false,
    };
    whole.chars().all(|sign| !sign.is_control() || "\t\n\r\u{c}\u{1b}".contains(sign))
}

#[cfg(test)]
mod tests;
