//! The record of every decision (EG7): one line of JSON each, in files of bounded size, never in the way of the data.
//!
//! ```text
//! decision -> a queue of 8,192 -> one task -> egress.jsonl, and egress.1.jsonl to egress.3.jsonl before it
//!                                         `-> the server, as packets (`told`)
//! ```
//!
//! When the queue is full the record is left out, and the next line that is written says how many were.

use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use serde::Serialize;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tokio::sync::mpsc;

use crate::told::Teller;
pub use sandpool_wire::egress::{Decision, Via};

/// Records that wait to be written; then they are left out and counted.
const QUEUE: usize = 8192;

/// Bytes of one file.
const FILE: u64 = 16 << 20;

/// How long a server that does not listen is left alone, when there is nothing new to tell it.
const AGAIN: Duration = Duration::from_secs(1);

/// Files before the present one that are kept.
const KEPT: u32 = 3;

/// One decision.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Record {
    /// When it was made, in UTC (RFC 3339).
    pub time: String,
    /// Whose it is.
    #[serde(serialize_with = "text")]
    pub sandbox: Arc<str>,
    /// The pool of that.
    #[serde(serialize_with = "text")]
    pub pool: Arc<str>,
    /// How it came.
    pub via: Via,
    /// Where to: a name or an address; nothing when that could not be understood.
    pub destination: Option<String>,
    /// At which port.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    /// The address that was dialled.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub address: Option<String>,
    /// What was decided.
    pub decision: Decision,
    /// Why it was not allowed, or how it ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// The secret whose value was put in, by its name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub secret: Option<String>,
    /// Bytes from the sandbox.
    pub sent: u64,
    /// Bytes to it.
    pub received: u64,
    /// How long it took, in milliseconds.
    pub milliseconds: u64,
}

fn text<S: serde::Serializer>(text: &Arc<str>, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(text)
}

/// Now, as records have it.
#[must_use]
pub fn now() -> String {
    OffsetDateTime::now_utc().format(&Rfc3339).unwrap_or_default()
}

/// Where records are put.
#[derive(Clone, Debug)]
pub struct Audit {
    queue: mpsc::Sender<Record>,
    left_out: Arc<AtomicU64>,
}

/// The other end: writes them.
#[derive(Debug)]
pub struct Writer {
    queue: mpsc::Receiver<Record>,
    left_out: Arc<AtomicU64>,
    files: Files,
    server: Option<Teller>,
}

/// Records go to files in this directory, which the caller may write to, and to a server that listens at the other end of `server`.
///
/// # Errors
/// When the file cannot be opened.
pub fn open(directory: &Path, server: Option<OwnedFd>) -> io::Result<(Audit, Writer)> {
    open_with(directory, server, FILE)
}

fn open_with(directory: &Path, server: Option<OwnedFd>, limit: u64) -> io::Result<(Audit, Writer)> {
    let files = Files::open(directory, limit)?;
    let (sender, queue) = mpsc::channel(QUEUE);
    let left_out = Arc::new(AtomicU64::new(0));
    let writer = Writer { queue, left_out: Arc::clone(&left_out), files, server: server.map(Teller::new) };
    Ok((Audit { queue: sender, left_out }, writer))
}

impl Audit {
    /// Puts a record on its way; never waits.
    pub fn put(&self, record: Record) {
        if self.queue.try_send(record).is_err() {
            self.left_out.fetch_add(1, Ordering::Relaxed);
        }
    }
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct LeftOut {
    time: String,
    records_left_out: u64,
}

impl Writer {
    /// Writes until every [`Audit`] is gone.
    pub async fn run(mut self) {
        loop {
            let first = match &mut self.server {
                // What it has missed is said also when nothing follows.
                Some(server) if server.is_behind() => match tokio::time::timeout(AGAIN, self.queue.recv()).await {
                    Ok(first) => first,
                    Err(_) => {
                        server.send();
                        continue;
                    }
                },
                _ => self.queue.recv().await,
            };
            let Some(first) = first else { break };
            let mut lines = Vec::with_capacity(1024);
            let mut next = Some(first);
            while let Some(record) = next {
                line(&mut lines, &record);
                if let Some(server) = &mut self.server {
                    server.tell(&record);
                }
                next = if lines.len() < 64 * 1024 { self.queue.try_recv().ok() } else { None };
            }
            let records_left_out = self.left_out.swap(0, Ordering::Relaxed);
            if records_left_out > 0 {
                line(&mut lines, &LeftOut { time: now(), records_left_out });
            }
            if let Some(server) = &mut self.server {
                server.missed(records_left_out);
                server.send();
            }
            // To the page cache: this does not wait for a disk, except when the host writes back far too much.
            if let Err(error) = self.files.write(&lines) {
                tracing::error!("the egress record cannot be written: {error}");
            }
        }
    }
}

fn line(lines: &mut Vec<u8>, record: &impl Serialize) {
    // Plain data in memory: this cannot fail.
    if serde_json::to_writer(&mut *lines, record).is_ok() {
        lines.push(b'\n');
    }
}

/// The present file, and those before it.
#[derive(Debug)]
struct Files {
    directory: PathBuf,
    file: std::fs::File,
    length: u64,
    limit: u64,
}

impl Files {
    fn open(directory: &Path, limit: u64) -> io::Result<Self> {
        let file = std::fs::File::options().create(true).append(true).open(directory.join("egress.jsonl"))?;
        let length = file.metadata()?.len();
        Ok(Self { directory: directory.to_owned(), file, length, limit })
    }

    fn write(&mut self, lines: &[u8]) -> io::Result<()> {
        if self.length > 0 && self.length + lines.len() as u64 > self.limit {
            let name = |number: u32| match number {
                0 => self.directory.join("egress.jsonl"),
                number => self.directory.join(format!("egress.{number}.jsonl")),
            };
            for number in (0..KEPT).rev() {
                // The first times, there are not so many.
                if name(number).exists() {
                    std::fs::rename(name(number), name(number + 1))?;
                }
            }
            *self = Self::open(&self.directory, self.limit)?;
        }
        self.file.write_all(lines)?;
        self.length += lines.len() as u64;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(port: u16) -> Record {
        Record {
            time: now(),
            sandbox: "s".into(),
            pool: "p".into(),
            via: Via::Tls,
            destination: Some("a.com".to_owned()),
            port: Some(port),
            address: None,
            decision: Decision::Refused,
            reason: Some("no".to_owned()),
            secret: None,
            sent: 1,
            received: 2,
            milliseconds: 3,
        }
    }

    #[tokio::test]
    async fn records_are_lines_and_files_are_bounded() {
        let directory = tempfile::tempdir().unwrap();
        let (audit, writer) = open_with(directory.path(), None, 100_000).unwrap();
        let writer = tokio::spawn(writer.run());
        for port in 1..=4000 {
            audit.put(record(port));
            tokio::task::yield_now().await;
        }
        drop(audit);
        writer.await.unwrap();
        let mut found = std::fs::read_dir(directory.path()).unwrap().map(|it| it.unwrap()).collect::<Vec<_>>();
        found.sort_by_key(std::fs::DirEntry::file_name);
        let names: Vec<_> = found.iter().map(|it| it.file_name().into_string().unwrap()).collect();
        assert_eq!(names, ["egress.1.jsonl", "egress.2.jsonl", "egress.3.jsonl", "egress.jsonl"]);
        assert!(found.iter().all(|it| it.metadata().unwrap().len() <= 100_000));
        let text = std::fs::read_to_string(directory.path().join("egress.jsonl")).unwrap();
        let last: serde_json::Value = serde_json::from_str(text.lines().last().unwrap()).unwrap();
        assert_eq!((&last["port"], &last["via"], &last["decision"]), (&4000.into(), &"tls".into(), &"refused".into()));
    }

    #[tokio::test]
    async fn a_full_queue_leaves_out_and_says_so() {
        let directory = tempfile::tempdir().unwrap();
        let (audit, writer) = open(directory.path(), None).unwrap();
        for _ in 0..QUEUE + 5 {
            audit.put(record(1));
        }
        drop(audit);
        writer.run().await;
        let text = std::fs::read_to_string(directory.path().join("egress.jsonl")).unwrap();
        assert_eq!(text.lines().filter(|line| line.contains("\"recordsLeftOut\":5")).count(), 1);
        assert_eq!(text.lines().count(), QUEUE + 1);
    }
}
