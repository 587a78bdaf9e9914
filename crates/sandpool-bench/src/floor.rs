//! Floors: the same work without us, measured in the same run.
//!
//! ```text
//! ours    generator -> HTTP -> server -> agent -> interpreter, in a sandbox made by the launcher
//! floor   generator -> HTTP -> a bare hyper server -> interpreter, no walls, no sessions, no records
//! ```
//!
//! The floor's server is a process of its own on one thread, as ours is a process of its own, and starts the interpreters
//! of the same images. A floor is what nobody who does the work at all can do without; nothing in it is there for comfort.

mod interpreter;
mod launch;
mod process;

use std::ffi::OsString;
use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result};
use hyper::Method;
use serde::{Deserialize, Serialize};

use crate::http::{Answer, Client};

pub use process::serve;

/// What the floor's process is told, as one JSON text.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Plan {
    /// The root file system whose Python is started.
    pub python: PathBuf,
    /// The root file system whose Node is started.
    pub node: PathBuf,
}

/// A running floor. Dropping it ends its process, and with it all that it started.
#[derive(Debug)]
pub struct Floor {
    client: Client,
    process: Child,
}

impl Floor {
    /// Starts `command` (this program, with the words that make it call [`serve`]) with the plan as its last word, and
    /// waits until its Python has imported the libraries.
    ///
    /// # Errors
    /// When it does not start, or says nothing.
    pub fn start(command: &[OsString], plan: &Plan) -> Result<Self> {
        let (program, words) = command.split_first().context("no command for the floor")?;
        let mut process = Command::new(program)
            .args(words)
            .arg(serde_json::to_string(plan)?)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("the floor does not start")?;
        let mut line = String::new();
        if let Some(output) = process.stdout.take() {
            BufReader::new(output).read_line(&mut line)?;
        }
        let address = line.trim().parse().context("the floor ended before it listened; what it said is above")?;
        Ok(Self { client: Client::new(address, None)?, process })
    }

    /// Its client.
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// Asks it to do something (see [`serve`]).
    ///
    /// # Errors
    /// When it cannot.
    pub async fn ask(&self, path: &str, body: &'static str) -> Result<Answer> {
        self.client.ask(Method::POST, path, body).await
    }
}

impl Drop for Floor {
    fn drop(&mut self) {
        // It ends when its standard input does; whoever it started ends with it.
        drop(self.process.stdin.take());
        let _ = self.process.wait();
    }
}
