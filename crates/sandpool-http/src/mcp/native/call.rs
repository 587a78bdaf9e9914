//! The nine tools, and resources.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use futures::StreamExt;
use rmcp::model::{
    CallToolResponse, CallToolResult, ContentBlock, ProgressNotificationParam, ReadResourceResult, ResourceContents,
};
use sandpool_core::ids::{ExecutionId, Identifier, PoolName};
use sandpool_node::{
    EntryKind, ExecuteRequest, Execution, ExecutionHandle, ExecutionState, NodeError, Open, Runtime, Stdin, Stop, Work,
};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::picture::Seen;
use super::place::{Place, Thing, parse};
use super::shown::{self, Output};
use super::{Asked, Told, picture, tasks};
use crate::auth::Role;
use crate::journal::{self, Did, Digested};
use crate::native::files::directory;
use crate::native::shown::instant;

/// How long a call waits for an execution, by default and at most.
const WAIT: Duration = Duration::from_secs(45);
const LONGEST_WAIT: f64 = 300.0;

/// How often a client that wants to know hears that something still runs.
const HEARTBEAT: Duration = Duration::from_secs(10);

/// How long an execution whose client has gone may take to end by itself.
const GRACE: Duration = Duration::from_secs(2);

/// Bytes of a file in one answer, by default and at most.
const PART: u64 = 64 * 1024;
const LARGEST_PART: u64 = 256 * 1024;

/// The largest file that is read as a resource.
const LARGEST_RESOURCE: u64 = 8 << 20;

/// Entries of one list.
const PAGE: u32 = 500;

type Outcome = Result<CallToolResult, Told>;

#[derive(Deserialize)]
struct OpenSession {
    pool: Option<String>,
    name: Option<String>,
}

#[derive(Deserialize)]
struct Waits {
    wait_seconds: Option<f64>,
    timeout_seconds: Option<f64>,
    background: Option<bool>,
}

#[derive(Deserialize)]
struct RunCode {
    session_id: String,
    code: String,
    language: Option<String>,
    #[serde(flatten)]
    waits: Waits,
}

#[derive(Deserialize)]
struct RunCommand {
    session_id: String,
    command: Option<String>,
    argv: Option<Vec<String>>,
    cwd: Option<String>,
    #[serde(default)]
    env: BTreeMap<String, String>,
    stdin: Option<String>,
    #[serde(flatten)]
    waits: Waits,
}

#[derive(Deserialize)]
struct WaitExecution {
    session_id: String,
    execution_id: String,
    after_seq: Option<u64>,
    wait_seconds: Option<f64>,
}

#[derive(Deserialize)]
struct StopExecution {
    session_id: String,
    execution_id: String,
    signal: Option<Signal>,
}

#[derive(Clone, Copy, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Signal {
    Interrupt,
    Kill,
}

#[derive(Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Encoding {
    Text,
    Base64,
}

#[derive(Deserialize)]
struct ReadFile {
    session_id: String,
    path: String,
    offset: Option<u64>,
    limit: Option<u64>,
    encoding: Option<Encoding>,
}

#[derive(Deserialize)]
struct WriteFile {
    session_id: String,
    path: String,
    content: String,
    encoding: Option<Encoding>,
    #[serde(default)]
    append: bool,
}

#[derive(Deserialize)]
struct ListFiles {
    session_id: String,
    path: Option<String>,
    recursive: Option<bool>,
    cursor: Option<String>,
}

#[derive(Deserialize)]
struct CloseSession {
    session_id: String,
}

fn read<T: DeserializeOwned>(arguments: Value) -> Result<T, Told> {
    serde_json::from_value(arguments).map_err(|error| Told::new(format!("The arguments cannot be read: {error}.")))
}

/// An answer, and its text twin.
fn answered(structured: Value) -> CallToolResult {
    CallToolResult::structured(structured)
}

/// Stops an execution whose caller has gone, unless it is told to let it be.
struct StopWhenGone(Option<ExecutionHandle>);

impl Drop for StopWhenGone {
    fn drop(&mut self) {
        if let Some(handle) = self.0.take() {
            tokio::spawn(async move {
                // It has ended, or its session has: nothing is left to stop.
                let _ = handle.stop(Stop::Interrupt).await;
                if !has_ended(&handle.wait(GRACE).await) {
                    let _ = handle.stop(Stop::Kill).await;
                }
            });
        }
    }
}

impl Asked<'_> {
    /// What the tool of that name answers; `None` when there is none.
    pub(super) async fn call(&self, name: &str, arguments: Value) -> Option<Result<CallToolResponse, Told>> {
        let result = match name {
            "run_code" => return Some(self.run_code(arguments).await),
            "run_command" => return Some(self.run_command(arguments).await),
            "open_session" => self.open_session(arguments).await,
            "wait_execution" => self.wait_execution(arguments).await,
            "stop_execution" => self.stop_execution(arguments).await,
            "read_file" => self.read_file(arguments).await,
            "write_file" => self.write_file(arguments).await,
            "list_files" => self.list_files(arguments).await,
            "close_session" => self.close_session(arguments).await,
            _ => return None,
        };
        Some(result.map(CallToolResponse::from))
    }

    async fn open_session(&self, arguments: Value) -> Outcome {
        let OpenSession { pool, name } = read(arguments)?;
        let pool = self.pool(pool.as_deref())?;
        let name = match (&self.principal().session, name) {
            // Whoever is bound to one session has that one.
            (Some(own), None) => own.clone(),
            (_, Some(name)) => name,
            (None, None) => {
                let mut random = [0; 16];
                getrandom::fill(&mut random).map_err(|_| Told::new("No random numbers: try again."))?;
                format!("ses-{}", hex::encode(random))
            }
        };
        let identifier = Identifier::parse(&name).map_err(|error| Told::new(format!("The name is none: {error}.")))?;
        let place = self.asker.at(pool, identifier)?;
        let node = &self.app.node;
        let opened = node.open(&place.pool, &place.key, Open::OrCreate, &self.principal().caller()).await?;
        let spec = node.spec(&place.pool)?;
        let languages = match spec.runtime {
            Runtime::Python => vec!["python", "bash"],
            Runtime::Node => vec!["javascript", "bash"],
            Runtime::Shell | Runtime::Container => vec!["bash"],
        };
        Ok(answered(json!({
            "session_id": place.session_id(),
            "is_new": opened.new,
            "pool": place.pool.as_str(),
            "languages": languages,
            "workdir": "/mnt/data",
            "expires_at": instant(opened.session.expires),
            "idle_timeout_seconds": spec.life.cooldown.as_secs_f64(),
        })))
    }

    /// The pool that is asked for, or goes without saying.
    fn pool(&self, asked: Option<&str>) -> Result<PoolName, Told> {
        let may = |pool: &PoolName| {
            let own = self.principal().session.as_deref().and_then(|own| Identifier::parse(own).ok());
            self.principal().may(Role::Executor, pool, own.as_ref()).is_ok()
        };
        let known: Vec<_> =
            self.app.node.pools().into_iter().map(|pool| pool.spec.name).filter(|pool| may(pool)).collect();
        let list = || known.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
        match (asked, &self.asker.pool) {
            (None, Some(pool)) => Ok(pool.clone()),
            (Some(asked), Some(pool)) if asked != pool.as_str() => {
                Err(Told::new(format!("This address is for the pool {pool} only: leave pool out.")))
            }
            (Some(asked), _) => known.iter().find(|pool| pool.as_str() == asked).cloned().ok_or_else(|| {
                let asked: String = asked.chars().take(80).collect();
                Told::new(format!("There is no pool {asked:?} for you; there are: {}.", list()))
            }),
            (None, None) => match &known[..] {
                [only] => Ok(only.clone()),
                all => all
                    .iter()
                    .find(|pool| pool.as_str() == "python")
                    .cloned()
                    .ok_or_else(|| Told::new(format!("Say which pool: {}.", list()))),
            },
        }
    }

    async fn run_code(&self, arguments: Value) -> Result<CallToolResponse, Told> {
        let RunCode { session_id, code, language, waits } = read(arguments)?;
        let place = self.asker.place(&session_id)?;
        let own = self.app.node.spec(&place.pool)?.runtime;
        let asked = match language.as_deref().map(str::to_ascii_lowercase).as_deref() {
            None | Some("") => own,
            Some("python" | "python3" | "py") => Runtime::Python,
            Some("javascript" | "js" | "node" | "nodejs") => Runtime::Node,
            Some("bash" | "sh" | "shell") => Runtime::Shell,
            Some(other) => {
                let other: String = other.chars().take(40).collect();
                return Err(Told::new(format!("{other:?} does not run here; python, javascript and bash do.")));
            }
        };
        let work = match asked {
            Runtime::Shell | Runtime::Container => Work::Shell { command: code, stdin: Stdin::Empty },
            asked if asked == own => Work::Code { code, fresh: false },
            other => {
                return Err(Told::new(format!(
                    "The pool {} does not run {}: open a session in one that does.",
                    place.pool,
                    if other == Runtime::Python { "python" } else { "javascript" }
                )));
            }
        };
        self.run(&place, work, &waits).await
    }

    async fn run_command(&self, arguments: Value) -> Result<CallToolResponse, Told> {
        let RunCommand { session_id, command, argv, cwd, env, stdin, waits } = read(arguments)?;
        let place_of = surroundings(cwd.as_deref(), &env)?;
        let place = self.asker.place(&session_id)?;
        let stdin = stdin.map_or(Stdin::Empty, |text| Stdin::Bytes(text.into_bytes()));
        let (command, argv) = (command.filter(|line| !line.is_empty()), argv.filter(|argv| !argv.is_empty()));
        let work = match (command, argv) {
            (Some(command), None) => Work::Shell { command: around_a_line(&place_of, &command), stdin },
            (None, Some(argv)) => Work::Argv { argv: around_a_program(&place_of, argv)?, stdin },
            _ => return Err(Told::new("Give exactly one of command and argv.")),
        };
        self.run(&place, work, &waits).await
    }

    async fn run(&self, place: &Place, work: Work, waits: &Waits) -> Result<CallToolResponse, Told> {
        let node = &self.app.node;
        let most = node.spec(&place.pool)?.max_timeout;
        let timeout = match waits.timeout_seconds {
            None => None,
            Some(seconds) => match Duration::try_from_secs_f64(seconds) {
                Ok(timeout) if !timeout.is_zero() => Some(timeout.min(most)),
                _ => return Err(Told::new("timeout_seconds is a number above 0.")),
            },
        };
        let in_background = waits.background.unwrap_or(false);
        let knows_tasks = self.knows_tasks();
        let wait = if in_background { Duration::ZERO } else { waiting(waits.wait_seconds)? };
        let wait = if knows_tasks { wait.min(tasks::PATIENCE) } else { wait };
        node.open(&place.pool, &place.key, Open::Existing, &self.principal().caller()).await?;
        let request = ExecuteRequest { id: None, work, timeout, output_limit: None };
        let digested = Digested::of(&request);
        let handle = node.execute(&place.pool, &place.key, request).await?;
        digested.accepted(self.principal(), &handle);
        let mut guard = StopWhenGone((!in_background).then(|| handle.clone()));
        let waited = self.watch(&handle, wait).await;
        let Some(execution) = waited else {
            // The guard stops it.
            return Err(Told::new(format!(
                "Cancelled. What it printed is kept under the execution_id {}.",
                handle.id()
            )));
        };
        let goes_on = !has_ended(&execution);
        if goes_on {
            handle.kept().await?;
        }
        guard.0 = None;
        if goes_on && knows_tasks {
            return Ok(tasks::created(place, &execution).into());
        }
        Ok(shown::execution(place, &execution, &Output::of(&handle, 0)).await.into())
    }

    /// Waits for the end of an execution, and tells a client that wants to know that it goes on. `None`: the client has gone.
    async fn watch(&self, handle: &ExecutionHandle, limit: Duration) -> Option<Execution> {
        let token = self.context.meta.get_progress_token();
        let began = Instant::now();
        loop {
            let left = limit.saturating_sub(began.elapsed());
            let execution = tokio::select! {
                execution = handle.wait(left.min(HEARTBEAT)) => execution,
                () = self.context.ct.cancelled() => return None,
            };
            if has_ended(&execution) || left <= HEARTBEAT {
                return Some(execution);
            }
            if let Some(token) = &token {
                let beat = ProgressNotificationParam::new(token.clone(), began.elapsed().as_secs_f64())
                    .with_message(shown::last_line(&execution));
                // A client that does not hear it hears the answer, or has gone, which is heard above.
                let _ = self.context.peer.notify_progress(beat).await;
            }
        }
    }

    async fn wait_execution(&self, arguments: Value) -> Outcome {
        let WaitExecution { session_id, execution_id, after_seq, wait_seconds } = read(arguments)?;
        let wait = waiting(wait_seconds)?;
        let place = self.asker.place(&session_id)?;
        let id = execution(&execution_id)?;
        match self.find(&place, id).await? {
            Found::Alive(handle) => {
                let execution = self.watch(&handle, wait).await.unwrap_or_else(|| handle.snapshot());
                Ok(shown::execution(&place, &execution, &Output::of(&handle, after_seq.unwrap_or(0))).await)
            }
            Found::Past(execution) => Ok(shown::execution(&place, &execution, &Output::kept(&execution)).await),
        }
    }

    async fn stop_execution(&self, arguments: Value) -> Outcome {
        let StopExecution { session_id, execution_id, signal } = read(arguments)?;
        let place = self.asker.place(&session_id)?;
        let handle = self.app.node.execution(&place.pool, &place.key, &execution(&execution_id)?).await?;
        let (how, wait) = match signal.unwrap_or(Signal::Interrupt) {
            // As long as the harder ways take.
            Signal::Interrupt => (Stop::Interrupt, Duration::from_secs(8)),
            Signal::Kill => (Stop::Kill, Duration::from_secs(2)),
        };
        handle.stop(how).await?;
        let execution = handle.wait(wait).await;
        let mut result = shown::execution(&place, &execution, &Output::of(&handle, 0)).await;
        // It is what was asked for.
        result.is_error = Some(false);
        Ok(result)
    }

    async fn find(&self, place: &Place, id: ExecutionId) -> Result<Found, Told> {
        let node = &self.app.node;
        match node.execution(&place.pool, &place.key, &id).await {
            Ok(handle) => Ok(Found::Alive(handle)),
            Err(error) => {
                let past = node.past_execution(&place.pool, &place.key, id).await;
                past.map(Box::new).map(Found::Past).ok_or_else(|| error.into())
            }
        }
    }

    /// Bytes of a file from `offset` on, `limit` at most, and its size.
    async fn part(&self, place: &Place, path: &str, offset: u64, limit: u64) -> Result<(Vec<u8>, u64), NodeError> {
        let (size, mut pieces) = self.app.node.read_file(&place.pool, &place.key, path).await?;
        let wanted = usize::try_from(limit.min(size.saturating_sub(offset))).unwrap_or(usize::MAX);
        let mut skip = usize::try_from(offset).unwrap_or(usize::MAX);
        let mut data = Vec::new();
        while data.len() < wanted {
            let Some(piece) = pieces.next().await.transpose()? else { break };
            let begin = skip.min(piece.len());
            skip -= begin;
            let end = piece.len().min(begin + wanted - data.len());
            data.extend_from_slice(&piece[begin..end]);
        }
        Ok((data, size))
    }

    async fn read_file(&self, arguments: Value) -> Outcome {
        let ReadFile { session_id, path, offset, limit, encoding } = read(arguments)?;
        let place = self.asker.place(&session_id)?;
        let path = absolute(&path)?;
        let (offset, limit) = (offset.unwrap_or(0), limit.unwrap_or(PART).clamp(1, LARGEST_PART));
        let (data, size) = self.part(&place, &path, offset, limit).await?;
        let uri = place.file(&path);
        if offset == 0
            && encoding.is_none()
            && size <= LARGEST_RESOURCE
            && shown::image_kind(&data).is_some()
            && let Some(answer) = self.image(&place, &path, &data, size).await?
        {
            return Ok(answer);
        }
        // A character that the limit cuts in half is read with the next part.
        let whole = match std::str::from_utf8(&data) {
            Ok(_) => Some(data.len()),
            Err(error) if error.error_len().is_none() && error.valid_up_to() > 0 => Some(error.valid_up_to()),
            Err(_) => None,
        };
        let (encoding, content, length) = match (encoding, whole) {
            (Some(Encoding::Base64), _) | (None, None) => ("base64", STANDARD.encode(&data), data.len()),
            (_, Some(whole)) => ("text", shown::clean(&data[..whole]), whole),
            (Some(Encoding::Text), None) => ("text", shown::clean(&data), data.len()),
        };
        let next = offset.saturating_add(u64::try_from(length).unwrap_or(u64::MAX));
        let is_cut = next < size;
        Ok(answered(json!({
            "path": path, "uri": uri, "size": size, "encoding": encoding, "content": content,
            "truncated": is_cut, "next_offset": is_cut.then_some(next),
        })))
    }

    /// A file that is an image, of which `begin` has been read: it is seen, and not read letter by letter.
    async fn image(&self, place: &Place, path: &str, begin: &[u8], size: u64) -> Result<Option<CallToolResult>, Told> {
        let is_whole = u64::try_from(begin.len()) == Ok(size);
        let data = if is_whole { begin.to_vec() } else { self.part(place, path, 0, size).await?.0 };
        let Some(kind) = shown::image_kind(&data) else { return Ok(None) };
        let (kind, data) = match picture::seen(&data).await {
            Seen::Whole => (kind, data),
            Seen::Smaller(kind, data) => (kind, data),
            Seen::Nothing => return Ok(None),
        };
        let mut result = answered(json!({
            "path": path, "uri": place.file(path), "size": size, "encoding": "image", "content": "",
            "truncated": false, "next_offset": null,
        }));
        result.content.push(ContentBlock::image(STANDARD.encode(&data), kind));
        Ok(Some(result))
    }

    async fn write_file(&self, arguments: Value) -> Outcome {
        let WriteFile { session_id, path, content, encoding, append } = read(arguments)?;
        let place = self.asker.place(&session_id)?;
        let path = absolute(&path)?;
        let data = match encoding.unwrap_or(Encoding::Text) {
            Encoding::Text => content.into_bytes(),
            Encoding::Base64 => STANDARD
                .decode(content.trim())
                .map_err(|error| Told::new(format!("The content is no base64: {error}.")))?,
        };
        let length = data.len();
        let data = if append { self.appended(&place, &path, data).await? } else { data };
        let data = futures::stream::iter([Ok(Bytes::from(data))]).boxed();
        self.app.node.write_file(&place.pool, &place.key, &path, data).await?;
        journal::did(&self.app.node, self.principal(), (&place.pool, &place.key), Did::WroteFile, &path);
        Ok(answered(json!({ "path": path, "uri": place.file(&path), "bytes_written": length })))
    }

    /// What a file has, and these bytes after it. One that is not there has nothing.
    async fn appended(&self, place: &Place, path: &str, data: Vec<u8>) -> Result<Vec<u8>, Told> {
        match self.part(place, path, 0, LARGEST_RESOURCE).await {
            Ok((_, size)) if size > LARGEST_RESOURCE => Err(Told::new(format!(
                "The file has {size} bytes; append is for those of up to {LARGEST_RESOURCE}. Append to this one with run_command."
            ))),
            Ok((mut whole, _)) => {
                whole.extend_from_slice(&data);
                Ok(whole)
            }
            Err(NodeError::NoFile(_)) => Ok(data),
            Err(error) => Err(error.into()),
        }
    }

    async fn list_files(&self, arguments: Value) -> Outcome {
        let ListFiles { session_id, path, recursive, cursor } = read(arguments)?;
        let place = self.asker.place(&session_id)?;
        let path = absolute(path.as_deref().unwrap_or_default())?;
        let recursive = recursive.unwrap_or(false);
        let listed = self.app.node.list_files(&place.pool, &place.key, &path, recursive, cursor, PAGE).await;
        let (entries, more) = listed?;
        let next = entries.last().filter(|_| more).map(|last| last.path.clone());
        let shown: Vec<_> = entries
            .iter()
            .map(|entry| {
                let modified = OffsetDateTime::from_unix_timestamp_nanos(entry.modified_ns.into());
                json!({
                    "path": shown::clean(entry.path.as_bytes()),
                    "kind": match entry.kind {
                        EntryKind::File => "file",
                        EntryKind::Directory => "directory",
                        EntryKind::Other => "other",
                    },
                    "size": entry.size,
                    "modified_at": modified.ok().and_then(|at| at.format(&Rfc3339).ok()).unwrap_or_default(),
                })
            })
            .collect();
        Ok(answered(json!({ "entries": shown, "truncated": more, "next_cursor": next })))
    }

    async fn close_session(&self, arguments: Value) -> Outcome {
        let CloseSession { session_id } = read(arguments)?;
        let place = self.asker.place(&session_id)?;
        journal::did(&self.app.node, self.principal(), (&place.pool, &place.key), Did::Deleted, "");
        let closed = match self.app.node.delete_session(&place.pool, &place.key).await {
            Ok(()) => true,
            Err(NodeError::NoSession(_)) => false,
            Err(error) => return Err(error.into()),
        };
        Ok(answered(json!({ "session_id": place.session_id(), "closed": closed })))
    }

    /// What an address means, read.
    pub(super) async fn resource(&self, uri: &str) -> Result<ReadResourceResult, Told> {
        let unknown = || Told::new(format!("There is nothing at {}.", uri.chars().take(200).collect::<String>()));
        let (session_id, thing) = parse(uri).ok_or_else(unknown)?;
        let place = self.asker.place(&session_id)?;
        let contents = match thing {
            Thing::File(path) => {
                let path = absolute(&path)?;
                let (data, size) = self.part(&place, &path, 0, LARGEST_RESOURCE).await?;
                if size > LARGEST_RESOURCE {
                    return Err(Told::new(format!(
                        "The file has {size} bytes, more than the {LARGEST_RESOURCE} of a resource: read it in parts with read_file."
                    )));
                }
                shown::contents(uri, &data)
            }
            Thing::Stdout(id) => ResourceContents::text(shown::clean(&self.past(&place, id).await?.stdout), uri),
            Thing::Stderr(id) => ResourceContents::text(shown::clean(&self.past(&place, id).await?.stderr), uri),
            Thing::Image(id, number) => {
                let execution = self.past(&place, id).await?;
                let (kind, data) = shown::images(&execution).nth(number).ok_or_else(unknown)?;
                ResourceContents::blob(STANDARD.encode(data), uri).with_mime_type(kind)
            }
        };
        Ok(ReadResourceResult::new(vec![contents]))
    }

    async fn past(&self, place: &Place, id: ExecutionId) -> Result<Execution, Told> {
        Ok(self.output(place, id).await?.0)
    }

    /// An execution as it is, and what it has printed.
    pub(super) async fn output(&self, place: &Place, id: ExecutionId) -> Result<(Execution, Output), Told> {
        Ok(match self.find(place, id).await? {
            Found::Alive(handle) => (handle.snapshot(), Output::of(&handle, 0)),
            Found::Past(execution) => {
                let output = Output::kept(&execution);
                (*execution, output)
            }
        })
    }
}

/// Where a command runs, and with what variables.
struct Surroundings {
    cwd: Option<String>,
    env: Vec<(String, String)>,
}

fn surroundings(cwd: Option<&str>, env: &BTreeMap<String, String>) -> Result<Surroundings, Told> {
    let cwd = cwd.filter(|path| !path.is_empty()).map(absolute).transpose()?;
    for (name, value) in env {
        let is_name = !name.is_empty()
            && !name.starts_with(|letter: char| letter.is_ascii_digit())
            && name.bytes().all(|letter| letter.is_ascii_alphanumeric() || letter == b'_');
        if !is_name || value.contains('\0') {
            let name: String = name.chars().take(40).collect();
            return Err(Told::new(format!(
                "{name:?} is no variable: a name has letters, digits and _, a value no NUL."
            )));
        }
    }
    Ok(Surroundings { cwd, env: env.iter().map(|(name, value)| (name.clone(), value.clone())).collect() })
}

/// The line with what has to be done before it.
fn around_a_line(surroundings: &Surroundings, line: &str) -> String {
    let quoted = |text: &str| format!("'{}'", text.replace('\'', r"'\''"));
    let mut before = String::new();
    if let Some(cwd) = &surroundings.cwd {
        before.push_str(&format!("cd -- {} || exit\n", quoted(cwd)));
    }
    for (name, value) in &surroundings.env {
        before.push_str(&format!("export {name}={}\n", quoted(value)));
    }
    before + line
}

/// The program behind `env`, when there is something for that to do.
fn around_a_program(surroundings: &Surroundings, argv: Vec<String>) -> Result<Vec<String>, Told> {
    if surroundings.cwd.is_none() && surroundings.env.is_empty() {
        return Ok(argv);
    }
    if argv[0].contains('=') {
        return Err(Told::new("With cwd or env, the program's name has no `=` in it."));
    }
    let mut words = vec!["env".to_owned()];
    words.extend(surroundings.cwd.iter().map(|cwd| format!("--chdir={cwd}")));
    words.extend(surroundings.env.iter().map(|(name, value)| format!("{name}={value}")));
    words.extend(argv);
    Ok(words)
}

/// An execution that is known.
enum Found {
    Alive(ExecutionHandle),
    /// Its session is gone, or its server was started anew.
    Past(Box<Execution>),
}

fn has_ended(execution: &Execution) -> bool {
    matches!(execution.state, ExecutionState::Ended(_))
}

fn waiting(seconds: Option<f64>) -> Result<Duration, Told> {
    match seconds {
        None => Ok(WAIT),
        Some(seconds) if (0.0..=LONGEST_WAIT).contains(&seconds) => Ok(Duration::from_secs_f64(seconds)),
        Some(_) => Err(Told::new(format!("wait_seconds is a number from 0 to {LONGEST_WAIT}."))),
    }
}

fn execution(text: &str) -> Result<ExecutionId, Told> {
    ExecutionId::parse(text)
        .ok_or_else(|| Told::new("An execution_id is a UUID: use the one that run_code or run_command answered."))
}

fn absolute(path: &str) -> Result<String, Told> {
    directory(path).map_err(|problem| Told::new(problem.message))
}
