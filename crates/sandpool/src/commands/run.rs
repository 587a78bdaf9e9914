//! `sandpool run`: code or a command in a session, its output as it happens.

use std::io::{IsTerminal, Read, Write};
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use reqwest::Method;
use serde_json::{Value, json};
use tokio::sync::mpsc;

use super::Outcome;
use crate::args::Run;
use crate::client::{Client, Context, block_on, pool_path, random_hex, session_path};
use crate::execution::{self, Execution, Happened};
use crate::failure::Failure;
use crate::print;

/// The longest code that is sent, in bytes: what an agent takes at most.
const MAX_CODE: u64 = sandpool_wire::agent::MAX_CODE as u64;

/// What to run, and where.
struct Job {
    pool: String,
    what: What,
}

enum What {
    Code(String),
    Command(Vec<String>),
}

pub(crate) fn run(context: &Context, run: &Run) -> Outcome {
    let job = read_job(run)?;
    let client = Client::new(context)?;
    block_on(async {
        let throw_away = run.session.is_none();
        let session = match &run.session {
            Some(session) => session.clone(),
            None => format!("run-{}", random_hex(8)?),
        };
        let done = execute(context, &client, run, &job, &session).await;
        if throw_away {
            end_session(&client, &job.pool, &session).await;
        }
        done
    })
}

/// Ends a session that was only made for this command. A failure is told, and changes nothing: its cool-down ends it.
pub(crate) async fn end_session(client: &Client, pool: &str, session: &str) {
    let request = client.request(Method::DELETE, &session_path(pool, session));
    match request.send().await {
        Ok(response) if response.status().is_success() || response.status() == reqwest::StatusCode::NOT_FOUND => {}
        Ok(response) => print::note(&format!("sandpool: session {session} was not ended: {}", response.status())),
        Err(error) => print::note(&format!("sandpool: session {session} was not ended: {error}")),
    }
}

/// Finds out what is to be run, from arguments, a file or standard input.
fn read_job(run: &Run) -> Result<Job, Failure> {
    let pool = |by_default: &str| run.pool.clone().unwrap_or_else(|| by_default.to_owned());
    if !run.command.is_empty() {
        return Ok(Job { pool: pool("shell"), what: What::Command(run.command.clone()) });
    }
    if let Some(code) = &run.code {
        return Ok(Job { pool: pool("python"), what: What::Code(code.clone()) });
    }
    let from_stdin = run.file.as_deref().is_none_or(|file| file == Path::new("-"));
    let code = if from_stdin {
        if run.file.is_none() && std::io::stdin().is_terminal() {
            return Err(Failure::usage("nothing to run").advise("give FILE, -c CODE or -- COMMAND"));
        }
        read_code(std::io::stdin().lock(), "standard input")?
    } else {
        let path = run.file.as_deref().unwrap_or(Path::new("-"));
        let file = std::fs::File::open(path)
            .map_err(|error| Failure::usage(format!("cannot read {}", path.display())).because(error))?;
        read_code(file, &path.display().to_string())?
    };
    let extension = run.file.as_deref().and_then(Path::extension).and_then(|extension| extension.to_str());
    let by_default = match extension {
        Some("js" | "mjs" | "cjs") => "node",
        Some("sh" | "bash") => "shell",
        _ => "python",
    };
    Ok(Job { pool: pool(by_default), what: What::Code(code) })
}

fn read_code(source: impl Read, name: &str) -> Result<String, Failure> {
    let mut code = String::new();
    source
        .take(MAX_CODE + 1)
        .read_to_string(&mut code)
        .map_err(|error| Failure::usage(format!("cannot read {name}")).because(error))?;
    if code.len() as u64 > MAX_CODE {
        return Err(Failure::usage(format!("{name} is longer than {MAX_CODE} bytes"))
            .advise("upload it with `sandpool files put`, and run it from there"));
    }
    Ok(code)
}

async fn execute(context: &Context, client: &Client, run: &Run, job: &Job, session: &str) -> Outcome {
    let mut request = json!({});
    let mut with_input = false;
    match &job.what {
        What::Command(argv) => {
            request["argv"] = json!(argv);
            with_input = !std::io::stdin().is_terminal();
        }
        What::Code(code) => {
            let pool = client.get(&pool_path(&job.pool)).await?;
            if pool["containerType"] == "Shell" {
                request["command"] = json!(code);
            } else {
                request["code"] = json!(code);
            }
        }
    }
    if with_input {
        request["stdin"] = json!(true);
    }
    if run.fresh {
        request["fresh"] = json!(true);
    }
    if let Some(seconds) = run.timeout {
        request["timeoutSeconds"] = json!(seconds);
    }
    let mut execution = Execution::start(client, &job.pool, session, request).await?;
    let path = execution.path().to_owned();
    let (input_out, mut input_in) = mpsc::channel::<Vec<u8>>(4);
    if with_input {
        read_stdin(input_out);
    }
    let mut feeder = tokio::task::JoinSet::new();
    if with_input {
        let (client, path) = (client.clone(), path.clone());
        feeder.spawn(async move {
            while let Some(bytes) = input_in.recv().await {
                let last = bytes.is_empty();
                // A command that has ended takes no more input: that is its own affair.
                if execution::input(&client, &path, bytes).await.is_err() || last {
                    break;
                }
            }
        });
    }
    let mut saver = Saver { directory: run.images.clone(), next: 1 };
    let mut interrupts = 0;
    let ended = loop {
        let happened = tokio::select! {
            happened = execution.next() => happened?,
            pressed = tokio::signal::ctrl_c() => {
                pressed.map_err(|error| Failure::new("cannot hear Ctrl-C").because(error))?;
                interrupts += 1;
                let how = if interrupts == 1 { "interrupt" } else { "kill" };
                if let Err(failure) = execution::stop(client, &path, how).await {
                    if interrupts > 1 {
                        return Err(failure);
                    }
                    print::note(&failure.to_string());
                }
                continue;
            }
        };
        match happened {
            // With --json all of it comes at the end, in one document.
            Happened::Stdout(_) | Happened::Stderr(_) if context.json => {}
            Happened::Stdout(bytes) => print::bytes(&bytes)?,
            Happened::Stderr(bytes) => {
                // Standard error may be closed; there is nobody else to tell.
                let _ = std::io::stderr().lock().write_all(&bytes);
            }
            Happened::Shown { value, last } => saver.show(&value, last, context.json)?,
            Happened::Ended(ended) => break ended,
        }
    };
    feeder.abort_all();
    if context.json {
        print::json(&client.get(&path).await?)?;
        return Ok(ended.code());
    }
    if ended.truncated > 0 {
        print::note(&format!(
            "sandpool: {} of output over the limit were dropped",
            print::human_bytes(ended.truncated)
        ));
    }
    if let Some(remark) = ended.remark() {
        print::note(&format!("sandpool: {remark}"));
    }
    if ended.state_lost {
        print::note("sandpool: the interpreter was replaced; the session's variables are gone");
    }
    Ok(ended.code())
}

/// Reads standard input on a thread of its own: a read cannot be cancelled, and must not hold up the rest. The thread
/// ends with the program.
pub(crate) fn read_stdin(to: mpsc::Sender<Vec<u8>>) {
    std::thread::spawn(move || {
        let mut stdin = std::io::stdin().lock();
        let mut buffer = vec![0; 64 << 10];
        loop {
            let length = match stdin.read(&mut buffer) {
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
                Ok(length) => length,
                Err(_) => 0,
            };
            if to.blocking_send(buffer[..length].to_vec()).is_err() || length == 0 {
                break;
            }
        }
    });
}

/// Shows values, and saves their images.
struct Saver {
    directory: PathBuf,
    next: u32,
}

impl Saver {
    fn show(&mut self, value: &Value, last: bool, quiet: bool) -> Result<(), Failure> {
        let mut saved = false;
        for form in value["forms"].as_array().into_iter().flatten() {
            let (Some(kind), Some(base64)) = (form["type"].as_str(), form["base64"].as_str()) else { continue };
            let Some(extension) = image_extension(kind) else { continue };
            let bytes = STANDARD
                .decode(base64)
                .map_err(|error| Failure::new("the server sent an image that makes no sense").because(error))?;
            let path = self.save(extension, &bytes)?;
            print::note(&format!(
                "sandpool: saved {} ({kind}, {})",
                path.display(),
                print::human_bytes(bytes.len() as u64)
            ));
            saved = true;
        }
        for dropped in value["dropped"].as_array().into_iter().flatten() {
            print::note(&format!("sandpool: a value was too large and left out: {}", print::cell(dropped)));
        }
        // A value that is nothing is not worth a line, as in every interpreter; nor is `<Figure ...>` beside the figure.
        let nothing =
            last && value["json"].is_null() && matches!(value["text"].as_str(), Some("None" | "undefined" | ""));
        match value["text"].as_str() {
            Some(text) if !quiet && !saved && !nothing => print::out(&format!("{}\n", crate::failure::printable(text))),
            _ => Ok(()),
        }
    }

    /// Saves an image under the first free name.
    fn save(&mut self, extension: &str, bytes: &[u8]) -> Result<PathBuf, Failure> {
        loop {
            let path = self.directory.join(format!("figure-{}.{extension}", self.next));
            self.next += 1;
            match std::fs::OpenOptions::new().write(true).create_new(true).open(&path) {
                Ok(mut file) => {
                    file.write_all(bytes)
                        .map_err(|error| Failure::new(format!("cannot write {}", path.display())).because(error))?;
                    return Ok(path);
                }
                Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists && self.next < 100_000 => {}
                Err(error) => {
                    return Err(Failure::new(format!("cannot save an image as {}", path.display()))
                        .because(error)
                        .advise("--images DIR says where images go"));
                }
            }
        }
    }
}

fn image_extension(kind: &str) -> Option<&'static str> {
    match kind {
        "image/png" => Some("png"),
        "image/jpeg" => Some("jpg"),
        "image/svg+xml" => Some("svg"),
        "image/gif" => Some("gif"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    fn job(arguments: &[&str]) -> (String, bool) {
        let words = ["sandpool", "run"].iter().chain(arguments);
        let crate::args::Command::Run(run) = crate::args::Cli::try_parse_from(words).unwrap().command else {
            panic!("not a run")
        };
        let job = read_job(&run).unwrap();
        (job.pool, matches!(job.what, What::Command(_)))
    }

    #[test]
    fn the_pool_follows_from_what_is_run() {
        let directory = tempfile::tempdir().unwrap();
        let file = |name: &str| {
            let path = directory.path().join(name);
            std::fs::write(&path, "1").unwrap();
            path.to_str().unwrap().to_owned()
        };
        assert_eq!(job(&["-c", "1"]), ("python".into(), false));
        assert_eq!(job(&["--", "ls", "-l"]), ("shell".into(), true));
        assert_eq!(job(&["-p", "python", "--", "ls"]), ("python".into(), true));
        assert_eq!(job(&[&file("a.py")]), ("python".into(), false));
        assert_eq!(job(&[&file("a.mjs")]), ("node".into(), false));
        assert_eq!(job(&[&file("a.sh")]), ("shell".into(), false));
        assert_eq!(job(&["-p", "node", &file("a")]), ("node".into(), false));
    }

    #[test]
    fn images_never_replace_a_file() {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("figure-1.png"), "mine").unwrap();
        let mut saver = Saver { directory: directory.path().into(), next: 1 };
        assert!(saver.save("png", b"a").unwrap().ends_with("figure-2.png"));
        assert!(saver.save("png", b"b").unwrap().ends_with("figure-3.png"));
        assert_eq!(std::fs::read(directory.path().join("figure-1.png")).unwrap(), b"mine");
    }
}
