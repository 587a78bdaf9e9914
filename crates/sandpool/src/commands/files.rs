//! `sandpool files`: what a session has in `/mnt/data`.

use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use reqwest::Method;
use serde_json::{Value, json};

use super::Outcome;
use crate::args::{Files, Which};
use crate::client::{Client, Context, block_on, segment, session_path};
use crate::failure::Failure;
use crate::print::{self, cell, human_bytes};

/// The largest upload that servers take, in bytes.
const MAX_UPLOAD: u64 = 128 << 20;

pub(crate) fn run(context: &Context, files: &Files) -> Outcome {
    let client = Client::new(context)?;
    block_on(async {
        match files {
            Files::Ls { which, path, recursive } => list(context, &client, which, path, *recursive).await,
            Files::Put { which, files, to } => put(context, &client, which, files, to.as_deref()).await,
            Files::Get { which, path, output } => get(context, &client, which, path, output.as_deref()).await,
            Files::Rm { which, paths } => remove(context, &client, which, paths).await,
        }
    })
}

/// The path of the API for a file of a session. An absolute path outside `/mnt/data` travels as a parameter.
fn file_path(which: &Which, path: &str) -> Result<String, Failure> {
    let files = format!("{}/files", session_path(&which.pool, &which.session));
    let relative = match path.strip_prefix("/mnt/data/") {
        Some(relative) => relative,
        None if path.starts_with('/') => return Ok(format!("{files}/-?absolute={}", segment(path))),
        None => path,
    };
    let relative = relative.trim_start_matches("./");
    if relative.trim_matches('/').is_empty() {
        return Err(Failure::usage(format!("{path:?} does not name a file")));
    }
    let segments: Vec<_> = relative.split('/').map(segment).collect();
    Ok(format!("{files}/{}", segments.join("/")))
}

async fn list(context: &Context, client: &Client, which: &Which, path: &str, recursive: bool) -> Outcome {
    let directory = if path.starts_with('/') {
        path.to_owned()
    } else {
        format!("/mnt/data/{path}").trim_end_matches('/').to_owned()
    };
    let base = format!(
        "{}/files?path={}&recursive={recursive}",
        session_path(&which.pool, &which.session),
        segment(&directory)
    );
    let mut entries = Vec::new();
    let mut after: Option<String> = None;
    loop {
        let page = match &after {
            Some(after) => format!("{base}&after={}", segment(after)),
            None => base.clone(),
        };
        let mut answer = client.get(&page).await?;
        let next = answer["next"].as_str().map(str::to_owned);
        if let Value::Array(found) = answer["value"].take() {
            entries.extend(found);
        }
        // A list that does not go forward would never end.
        if next.is_none() || next <= after {
            break;
        }
        after = next;
    }
    if context.json {
        print::json(&json!({ "value": entries }))?;
        return Ok(0);
    }
    let row = |entry: &Value| {
        let path = cell(entry.get("path").unwrap_or(&entry["name"]));
        let is_directory = entry["type"] == "directory";
        let size = if is_directory { "-".into() } else { entry["size"].as_u64().map_or("-".into(), human_bytes) };
        vec![size, cell(&entry["modifiedAt"]), if is_directory { format!("{path}/") } else { path }]
    };
    print::table(&["SIZE", "MODIFIED", "NAME"], &entries.iter().map(row).collect::<Vec<_>>())?;
    Ok(0)
}

/// Where an upload goes: `to` as a whole, `to` as a directory, or the file's own name.
fn target(file: &Path, to: Option<&str>, many: bool) -> Result<String, Failure> {
    let own_name = || {
        file.file_name()
            .and_then(|name| name.to_str())
            .filter(|_| file != Path::new("-"))
            .map(str::to_owned)
            .ok_or_else(|| {
                Failure::usage(format!("{} has no name of its own", file.display())).advise("give --to PATH")
            })
    };
    match to {
        Some(directory) if directory.ends_with('/') => Ok(format!("{directory}{}", own_name()?)),
        Some(to) if many => {
            Err(Failure::usage(format!("several files cannot all be {to}"))
                .advise(format!("--to {to}/ means a directory")))
        }
        Some(to) => Ok(to.to_owned()),
        None => own_name(),
    }
}

async fn put(context: &Context, client: &Client, which: &Which, files: &[PathBuf], to: Option<&str>) -> Outcome {
    // All arguments are checked before the first byte is sent.
    let targets: Vec<_> = files.iter().map(|file| target(file, to, files.len() > 1)).collect::<Result<_, _>>()?;
    let mut records = Vec::new();
    for (file, target) in files.iter().zip(&targets) {
        let unreadable =
            |error: std::io::Error| Failure::usage(format!("cannot read {}", file.display())).because(error);
        let mut request = client.request(Method::PUT, &file_path(which, target)?);
        request = if file == Path::new("-") {
            let mut data = Vec::new();
            std::io::stdin().lock().take(MAX_UPLOAD + 1).read_to_end(&mut data).map_err(unreadable)?;
            if data.len() as u64 > MAX_UPLOAD {
                return Err(Failure::usage(format!("standard input is longer than {MAX_UPLOAD} bytes")));
            }
            request.body(data)
        } else {
            let file = tokio::fs::File::open(file).await.map_err(unreadable)?;
            let found = file.metadata().await.map_err(unreadable)?;
            if found.is_dir() {
                return Err(unreadable(std::io::ErrorKind::IsADirectory.into()).advise("give its files"));
            }
            if found.is_file() {
                request = request.header(reqwest::header::CONTENT_LENGTH, found.len());
            }
            request.body(file)
        };
        let record = client.json(request.header(reqwest::header::CONTENT_TYPE, "application/octet-stream")).await?;
        if !context.json {
            let size = record["size"].as_u64().map_or(String::new(), |size| format!(" ({})", human_bytes(size)));
            print::out(&format!("{} -> {target}{size}\n", file.display()))?;
        }
        records.push(record);
    }
    if context.json {
        print::json(&json!({ "value": records }))?;
    }
    Ok(0)
}

async fn get(context: &Context, client: &Client, which: &Which, path: &str, output: Option<&Path>) -> Outcome {
    let mut response = client.send(client.request(Method::GET, &file_path(which, path)?)).await?;
    if output == Some(Path::new("-")) {
        while let Some(piece) = response.chunk().await.map_err(|error| client.cut(&error))? {
            print::bytes(&piece)?;
        }
        return Ok(0);
    }
    let name = path.trim_end_matches('/').rsplit('/').next().filter(|name| !matches!(*name, "" | "." | ".."));
    let target = match (output, name) {
        (Some(output), Some(name)) if output.is_dir() => output.join(name),
        (Some(output), _) => output.to_owned(),
        (None, Some(name)) => PathBuf::from(name),
        (None, None) => return Err(Failure::usage(format!("{path:?} does not name a file"))),
    };
    let unwritable = |error: std::io::Error| Failure::new(format!("cannot write {}", target.display())).because(error);
    let directory = target.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    // The file appears under its name when it is whole.
    let mut file = tempfile::Builder::new()
        .permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666))
        .tempfile_in(directory)
        .map_err(unwritable)?;
    let mut size = 0;
    while let Some(piece) = response.chunk().await.map_err(|error| client.cut(&error))? {
        file.write_all(&piece).map_err(unwritable)?;
        size += piece.len() as u64;
    }
    file.persist(&target).map_err(|error| unwritable(error.error))?;
    if context.json {
        print::json(&json!({ "path": target, "size": size }))?;
    } else {
        print::out(&format!("{path} -> {} ({})\n", target.display(), human_bytes(size)))?;
    }
    Ok(0)
}

async fn remove(context: &Context, client: &Client, which: &Which, paths: &[String]) -> Outcome {
    for path in paths {
        client.send(client.request(Method::DELETE, &file_path(which, path)?)).await?;
        if !context.json {
            print::out(&format!("removed {path}\n"))?;
        }
    }
    if context.json {
        print::json(&json!({ "removed": paths }))?;
    }
    Ok(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_addressed_by_its_segments() {
        let which = Which { pool: "python".into(), session: "chat/17".into() };
        let path = |text| file_path(&which, text).map_err(|failure| failure.to_string());
        assert_eq!(path("a b/c.csv").unwrap(), "/pools/python/sessions/chat%2F17/files/a%20b/c.csv");
        assert_eq!(path("/mnt/data/c.csv").unwrap(), "/pools/python/sessions/chat%2F17/files/c.csv");
        assert_eq!(path("/tmp/x").unwrap(), "/pools/python/sessions/chat%2F17/files/-?absolute=%2Ftmp%2Fx");
        assert_eq!(path("../x").unwrap(), "/pools/python/sessions/chat%2F17/files/%2E%2E/x");
        assert!(path("").is_err());
        assert!(path("/mnt/data/").is_err());
    }

    #[test]
    fn an_upload_keeps_its_name_unless_told_otherwise() {
        let name = |file: &str, to, many| target(Path::new(file), to, many).ok();
        assert_eq!(name("dir/a.csv", None, false).as_deref(), Some("a.csv"));
        assert_eq!(name("dir/a.csv", Some("b.csv"), false).as_deref(), Some("b.csv"));
        assert_eq!(name("dir/a.csv", Some("in/"), true).as_deref(), Some("in/a.csv"));
        assert_eq!(name("dir/a.csv", Some("b.csv"), true), None);
        assert_eq!(name("-", None, false), None);
        assert_eq!(name("-", Some("b"), false).as_deref(), Some("b"));
    }
}
