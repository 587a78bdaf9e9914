//! Other systems, in the same run: one executable each, over the contract in `bench/peers/CONTRACT.md`.
//!
//! What they print is read with a limit and judged by its form alone. What they measure is theirs to answer for.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rustix::process::{Pid, Signal};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader};
use tokio::process::Command;

use crate::report::{Row, Unit, figure, markdown};
use crate::stats::Summary;

/// How long one verb of one peer may take.
const LIMIT: Duration = Duration::from_secs(20 * 60);

/// How long a peer may take to end after it was asked to.
const GRACE: Duration = Duration::from_secs(10);

/// What is read of a peer's output, in bytes.
const MAX_OUTPUT: u64 = 16 << 20;

/// Where peers are, and what they are asked.
#[derive(Clone, Debug)]
pub struct Config {
    /// The directory of their executables.
    pub peers: PathBuf,
    /// Where they install what is no package of the system.
    pub state: PathBuf,
    /// Rounds of each scenario.
    pub rounds: usize,
    /// The scenarios; all that they know if there are none.
    pub scenarios: Vec<String>,
}

/// One line of a peer.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Line {
    /// Which.
    pub peer: String,
    /// The pinned version.
    pub version: String,
    /// What was measured.
    pub scenario: String,
    /// One for each round.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub samples_ms: Vec<f64>,
    /// For rates: how many ...
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub count: Option<f64>,
    /// ... in how long.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seconds: Option<f64>,
    /// For memory: of each idle session ...
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_mib: Option<f64>,
    /// ... with so many.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sessions: Option<u32>,
    /// Why there is no figure.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub skipped: Option<String>,
    /// What must be known to be fair.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
}

/// What the peers brought.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Peers {
    /// Their lines, those of one scenario with the same number of sessions joined.
    pub lines: Vec<Line>,
    /// What went wrong with which.
    pub trouble: Vec<String>,
}

/// The peers' names: the executables without a dot in their name.
///
/// # Errors
/// When the directory cannot be read.
pub fn names(directory: &Path) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in std::fs::read_dir(directory).with_context(|| format!("no peers in {}", directory.display()))? {
        let entry = entry?;
        let (found, name) = (entry.metadata()?, entry.file_name().to_string_lossy().into_owned());
        if found.is_file() && found.permissions().mode() & 0o111 != 0 && !name.contains('.') {
            names.push(name);
        }
    }
    names.sort();
    Ok(names)
}

/// Installs and measures one peer. What goes wrong is part of what was found.
pub(crate) async fn measure(config: &Config, name: &str, found: &mut Peers) {
    let state = config.state.join(name);
    let rounds = config.rounds.to_string();
    let directory = state.to_string_lossy().into_owned();
    let mut words = vec!["measure", &directory, "--rounds", &rounds];
    words.extend(config.scenarios.iter().map(String::as_str));
    let measured = async {
        std::fs::create_dir_all(&state).with_context(|| format!("cannot make {}", state.display()))?;
        call(&config.peers.join(name), &["install", &directory], found).await?;
        call(&config.peers.join(name), &words, found).await
    };
    if let Err(error) = measured.await {
        found.trouble.push(format!("{name}: {error:#}"));
    }
}

/// Ends a peer's whole process group when it is dropped.
struct Group(Pid);

impl Drop for Group {
    fn drop(&mut self) {
        // It may be over; then the group is nobody's.
        let _ = rustix::process::kill_process_group(self.0, Signal::KILL);
    }
}

async fn call(program: &Path, words: &[&str], found: &mut Peers) -> Result<()> {
    let mut child = Command::new(program)
        .args(words)
        .process_group(0)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .context("does not start")?;
    let pid = child.id().and_then(|pid| i32::try_from(pid).ok()).and_then(Pid::from_raw).context("ended at once")?;
    let group = Group(pid);
    let (output, errors) = (child.stdout.take().context("no output")?, child.stderr.take().context("no errors")?);
    let told = async {
        let mut last = String::new();
        let mut lines = BufReader::new(errors).lines();
        while let Ok(Some(line)) = lines.next_line().await {
            eprintln!("{line}");
            if !line.trim().is_empty() {
                last = line;
            }
        }
        last
    };
    let read = async {
        let mut lines = BufReader::new(output.take(MAX_OUTPUT)).lines();
        while let Some(line) = lines.next_line().await? {
            found.add(serde_json::from_str(&line).with_context(|| format!("says {line:.200?}"))?);
        }
        anyhow::Ok(())
    };
    let whole = async { tokio::join!(read, told) };
    let ended = tokio::time::timeout(LIMIT, whole).await;
    if ended.is_err() {
        let _ = rustix::process::kill_process_group(pid, Signal::TERM);
        let _ = tokio::time::timeout(GRACE, child.wait()).await;
    }
    let (read, last) = ended.with_context(|| format!("not done after {} min", LIMIT.as_secs() / 60))?;
    read?;
    let status = child.wait().await?;
    drop(group);
    ensure!(status.success(), "{} ended with {status}: {last}", words[0]);
    Ok(())
}

impl Peers {
    fn add(&mut self, line: Line) {
        let is_same = |known: &&mut Line| {
            (&known.peer, &known.version, &known.scenario, known.sessions)
                == (&line.peer, &line.version, &line.scenario, line.sessions)
                && known.skipped.is_none()
                && line.skipped.is_none()
        };
        match self.lines.iter_mut().find(is_same) {
            Some(known) => {
                known.samples_ms.extend(line.samples_ms);
                known.count = sum(known.count, line.count);
                known.seconds = sum(known.seconds, line.seconds);
                known.memory_mib = line.memory_mib.or(known.memory_mib);
                known.note = known.note.take().or(line.note);
            }
            None => self.lines.push(line),
        }
    }

    /// The table: each peer beside ours, of the same run.
    #[must_use]
    pub fn markdown(&self, ours: &[Row]) -> String {
        let heading = ["Scenario", "Peer", "Version", "n", "p50", "p90", "p99", "Unit", "Ours", "Peer / ours"];
        let mut cells = vec![heading.map(str::to_owned).to_vec()];
        let mut notes = Vec::new();
        for line in &self.lines {
            let mut peer = line.peer.clone();
            let word = line.skipped.as_ref().or(line.note.as_ref());
            if let Some(word) = word {
                let number = notes.iter().position(|known| known == word).unwrap_or_else(|| {
                    notes.push(word.clone());
                    notes.len() - 1
                });
                peer.push_str(&format!(" [{}]", number + 1));
            }
            let mut scenario = line.scenario.clone();
            if let Some(sessions) = line.sessions {
                scenario.push_str(&format!(", {sessions} sessions"));
            }
            let mut row = vec![scenario, peer, line.version.clone()];
            let dash = || "-".to_owned();
            let (unit, value) = match line.figure() {
                Some((unit, value)) => (unit, value),
                None => {
                    row.extend([dash(), dash(), dash(), dash(), dash(), dash(), dash()]);
                    cells.push(row);
                    continue;
                }
            };
            if unit == Unit::Milliseconds {
                let summary = Summary::of(&line.samples_ms);
                row.push(summary.count.to_string());
                row.extend([summary.p50, summary.p90, summary.p99].map(figure));
            } else {
                row.extend(["1".to_owned(), figure(value), dash(), dash()]);
            }
            row.push(unit.word().to_owned());
            match line.ours(ours) {
                Some(mine) if mine > 0.0 => row.extend([figure(mine), format!("{:.1}", value / mine)]),
                _ => row.extend([dash(), dash()]),
            }
            cells.push(row);
        }
        let mut text = markdown(&cells);
        if !notes.is_empty() || !self.trouble.is_empty() {
            text.push('\n');
        }
        for (at, note) in notes.iter().enumerate() {
            text.push_str(&format!("- [{}] {note}\n", at + 1));
        }
        for trouble in &self.trouble {
            text.push_str(&format!("- {trouble}\n"));
        }
        text
    }
}

fn sum(a: Option<f64>, b: Option<f64>) -> Option<f64> {
    if a.is_none() && b.is_none() { None } else { Some(a.unwrap_or_default() + b.unwrap_or_default()) }
}

impl Line {
    /// What it says: a median of times, a rate, or memory.
    fn figure(&self) -> Option<(Unit, f64)> {
        if self.skipped.is_some() {
            return None;
        }
        if let (Some(count), Some(seconds)) = (self.count, self.seconds)
            && seconds > 0.0
        {
            return Some((Unit::PerSecond, count / seconds));
        }
        if let Some(memory) = self.memory_mib {
            return Some((Unit::Mebibytes, memory));
        }
        (!self.samples_ms.is_empty()).then(|| (Unit::Milliseconds, Summary::of(&self.samples_ms).p50))
    }

    /// Our figure for the same work, if it was measured in this run.
    fn ours(&self, rows: &[Row]) -> Option<f64> {
        // We always import nothing more: a sandbox of ours is never "bare".
        let scenario = if self.scenario == "cold-bare" { "cold" } else { &self.scenario };
        let of_peer = |row: &&Row| {
            row.scenario == scenario
                && (scenario != "memory"
                    || row.measure.contains("proportional share")
                        && self
                            .sessions
                            .is_some_and(|sessions| row.measure.contains(&format!(", {sessions} sessions:"))))
        };
        let row = rows.iter().find(of_peer)?;
        Some(if row.unit == Unit::PerSecond { row.ours.mean } else { row.ours.p50 })
    }
}

/// Rounds of a quick look and of a measurement: starting some peers takes a second each time.
#[must_use]
pub fn rounds(quick: bool) -> usize {
    if quick { 3 } else { 40 }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(text: &str) -> Peers {
        let mut peers = Peers::default();
        for line in text.lines() {
            peers.add(serde_json::from_str(line).unwrap());
        }
        peers
    }

    #[test]
    fn peers_stand_beside_ours() {
        let peers = lines(concat!(
            r#"{"peer": "bwrap", "version": "1-2", "scenario": "cold", "samples_ms": [14.5, 14.0]}"#,
            "\n",
            r#"{"peer": "bwrap", "version": "1-2", "scenario": "cold", "samples_ms": [15.0], "note": "no pool"}"#,
            "\n",
            r#"{"peer": "bwrap", "version": "1-2", "scenario": "warm", "skipped": "has no live session"}"#,
            "\n",
            r#"{"peer": "bwrap", "version": "1-2", "scenario": "memory", "sessions": 100, "memory_mib": 76.2}"#,
            "\n",
            r#"{"peer": "bwrap", "version": "1-2", "scenario": "churn", "count": 100, "seconds": 4}"#,
            "\n",
            r#"{"peer": "bwrap", "version": "1-2", "scenario": "churn", "count": 50, "seconds": 2}"#,
        ));
        let row = |scenario: &str, measure: &str, unit, value| Row {
            scenario: scenario.to_owned(),
            measure: measure.to_owned(),
            unit,
            ours: Summary::of(&[value]),
            floor_is: None,
            floor: None,
            goal: None,
            notes: Vec::new(),
            spoilt: false,
        };
        let ours = [
            row("cold", "cold", Unit::Milliseconds, 5.0),
            row("memory", "memory, 100 sessions: all-in", Unit::Mebibytes, 3.0),
            row("memory", "memory, 100 sessions: proportional share", Unit::Mebibytes, 2.0),
            row("churn", "churn", Unit::PerSecond, 180.0),
        ];
        expect_test::expect![[r#"
            | Scenario             | Peer      | Version | n |  p50 |  p90 |  p99 | Unit | Ours | Peer / ours |
            |----------------------|-----------|--------:|--:|-----:|-----:|-----:|------|-----:|------------:|
            | cold                 | bwrap [1] |     1-2 | 3 | 14.5 | 15.0 | 15.0 | ms   | 5.00 |         2.9 |
            | warm                 | bwrap [2] |     1-2 | - |    - |    - |    - | -    |    - |           - |
            | memory, 100 sessions | bwrap     |     1-2 | 1 | 76.2 |    - |    - | MiB  | 2.00 |        38.1 |
            | churn                | bwrap     |     1-2 | 1 | 25.0 |    - |    - | /s   |  180 |         0.1 |

            - [1] no pool
            - [2] has no live session
        "#]]
        .assert_eq(&peers.markdown(&ours));
    }

    #[test]
    fn a_line_of_another_form_is_refused() {
        for bad in [r#"{"peer": "x"}"#, "not JSON", r#"{"peer":"x","version":"1","scenario":"warm","seconds_ms":[1]}"#]
        {
            assert!(serde_json::from_str::<Line>(bad).is_err(), "{bad}");
        }
    }
}
