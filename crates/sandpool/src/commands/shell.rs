//! `sandpool shell`: an interactive terminal in a session.

use std::io::IsTerminal;

use rustix::termios::{OptionalActions, Termios};
use serde_json::json;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;

use super::Outcome;
use super::run::{end_session, read_stdin};
use crate::args::Shell;
use crate::client::{Client, Context, block_on, random_hex};
use crate::execution::{self, Execution, Happened};
use crate::failure::Failure;
use crate::print;

/// The terminal in raw mode: keys go to the session as they are typed. Dropping it puts the old mode back.
struct RawMode {
    before: Termios,
}

impl RawMode {
    fn enter() -> Result<Self, Failure> {
        let failure = |error: rustix::io::Errno| Failure::new("cannot set the terminal up").because(error);
        let before = rustix::termios::tcgetattr(std::io::stdin()).map_err(failure)?;
        let mut raw = before.clone();
        raw.make_raw();
        rustix::termios::tcsetattr(std::io::stdin(), OptionalActions::Flush, &raw).map_err(failure)?;
        Ok(Self { before })
    }
}

impl Drop for RawMode {
    fn drop(&mut self) {
        // Nothing can be done about a terminal that has gone away.
        let _ = rustix::termios::tcsetattr(std::io::stdin(), OptionalActions::Flush, &self.before);
    }
}

pub(crate) fn run(context: &Context, shell: &Shell) -> Outcome {
    if !std::io::stdin().is_terminal() || !std::io::stdout().is_terminal() {
        return Err(Failure::usage("`sandpool shell` needs a terminal").advise("sandpool run -- COMMAND"));
    }
    let client = Client::new(context)?;
    block_on(async {
        let throw_away = shell.session.is_none();
        let session = match &shell.session {
            Some(session) => session.clone(),
            None => format!("shell-{}", random_hex(8)?),
        };
        let done = talk(&client, shell, &session).await;
        if throw_away {
            end_session(&client, &shell.pool, &session).await;
        }
        done
    })
}

/// Rows and columns of our terminal.
fn size() -> (u16, u16) {
    match rustix::termios::tcgetwinsize(std::io::stdout()) {
        Ok(size) if size.ws_row > 0 && size.ws_col > 0 => (size.ws_row, size.ws_col),
        Ok(_) | Err(_) => (24, 80),
    }
}

async fn talk(client: &Client, shell: &Shell, session: &str) -> Outcome {
    let argv = if shell.command.is_empty() {
        vec!["/bin/sh".into(), "-c".into(), r#"exec "$SHELL" -l"#.into()]
    } else {
        shell.command.clone()
    };
    let (rows, columns) = size();
    let term = std::env::var("TERM").unwrap_or_else(|_| "xterm-256color".into());
    let request = json!({
        "argv": argv,
        "terminal": { "rows": rows, "columns": columns, "term": term },
        "waitSeconds": 0,
    });
    let mut resized =
        signal(SignalKind::window_change()).map_err(|error| Failure::new("cannot hear of resizes").because(error))?;
    let mut execution = Execution::start(client, &shell.pool, session, request).await?;
    let path = execution.path().to_owned();
    let raw = RawMode::enter()?;
    let (keys_out, mut keys_in) = mpsc::channel::<Vec<u8>>(64);
    read_stdin(keys_out);
    let mut feeder = tokio::task::JoinSet::new();
    feeder.spawn({
        let (client, path) = (client.clone(), path.clone());
        async move {
            while let Some(mut bytes) = keys_in.recv().await {
                let mut last = bytes.is_empty();
                // What was typed while the last request was under way goes in one.
                while let Ok(more) = keys_in.try_recv() {
                    last |= more.is_empty();
                    bytes.extend(more);
                }
                if !bytes.is_empty() && execution::input(&client, &path, bytes).await.is_err() {
                    break;
                }
                if last {
                    // Our terminal hung up.
                    let _ = execution::stop(&client, &path, "kill").await;
                    break;
                }
            }
        }
    });
    let ended = loop {
        tokio::select! {
            happened = execution.next() => match happened? {
                Happened::Stdout(bytes) | Happened::Stderr(bytes) => print::bytes(&bytes)?,
                Happened::Shown { .. } => {}
                Happened::Ended(ended) => break ended,
            },
            Some(()) = resized.recv() => {
                let (rows, columns) = size();
                let body = json!({ "rows": rows, "columns": columns });
                // A size that is not taken over is a blemish; the next resize may do better.
                let _ = client.send(client.request(reqwest::Method::POST, &format!("{path}/resize")).json(&body)).await;
            }
        }
    };
    drop(raw);
    feeder.abort_all();
    if let Some(remark) = ended.remark() {
        print::note(&format!("sandpool: {remark}"));
    }
    Ok(ended.code())
}
