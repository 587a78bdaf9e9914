//! A run: the scenarios one after the other, each beside its floor, and what is kept of it.
//!
//! ```text
//! <date>-<machine>/   command        how it was called
//!                     machine.json   on what, and how busy that was before
//!                     raw.jsonl      every sample, one line a measure and side
//!                     summary.json   the rows
//!                     summary.md     the same for people
//! ```

use std::ffi::OsString;
use std::fmt::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use hyper::Method;
use serde::{Deserialize, Serialize};
use tokio::task::LocalSet;

use crate::floor::{Floor, Plan};
use crate::machine::Machine;
use crate::peers::{self, Peers};
use crate::report::{self, Row, Unit};
use crate::scenario::{Block, Measured, Scale, Scenario, Subject, measure_whole, turn_of_floor};
use crate::server::{Server, Setting};
use crate::stats::Summary;

/// The version of `summary.json`.
const FORM: u32 = 1;

/// How often each part of the floor is taken, at the beginning and again at the end.
const PARTS: usize = 200;

/// What is run.
#[derive(Clone, Debug)]
pub struct Config {
    /// The program under test.
    pub program: PathBuf,
    /// The image store.
    pub images: PathBuf,
    /// This program, and the words that make it call [`crate::floor::serve`] with the word that follows.
    pub floor: Vec<OsString>,
    /// The root file systems that the floor takes its interpreters from.
    pub plan: Plan,
    /// The scenarios, in this order.
    pub scenarios: Vec<Scenario>,
    /// How much.
    pub scale: Scale,
    /// Other systems, if they are asked for.
    pub peers: Option<peers::Config>,
}

/// Who is told how far it is.
pub trait Progress {
    /// A scenario begins, which has so many turns.
    fn stage(&self, title: &str, turns: usize);
    /// One turn is done.
    fn step(&self);
}

/// What a run brought.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Run {
    /// The version of this form.
    pub form: u32,
    /// When it began: RFC 3339, in UTC.
    pub began: String,
    /// What was run: the program's own words about its version.
    pub version: String,
    /// A look instead of a measurement.
    pub quick: bool,
    /// On what.
    pub machine: Machine,
    /// The figures.
    pub rows: Vec<Row>,
    /// Scenarios that could not be measured, and why.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub trouble: Vec<String>,
    /// Other systems' figures.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peers: Option<Peers>,
    /// Every sample; kept in a file of its own.
    #[serde(skip)]
    pub raw: Vec<Series>,
}

/// The samples of one side of a measure, in the order in which they were taken.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Series {
    /// The scenario.
    pub scenario: String,
    /// `ours` or `floor`.
    pub side: String,
    /// What they count.
    pub unit: Unit,
    /// Rounds of whole numbers of [`Self::STEP`] of the unit.
    pub rounds: Vec<Vec<i64>>,
}

impl Series {
    /// The smallest difference that is kept: 0.1 us of a time.
    const STEP: f64 = 1e-4;

    fn new(scenario: &str, side: &str, unit: Unit, rounds: &[Vec<f64>]) -> Self {
        #[expect(clippy::cast_possible_truncation, reason = "a run is shorter than 29 million years")]
        let whole = |sample: &f64| (sample / Self::STEP).round() as i64;
        let rounds = rounds.iter().map(|round| round.iter().map(whole).collect()).collect();
        Self { scenario: scenario.to_owned(), side: side.to_owned(), unit, rounds }
    }
}

/// Runs it all. SIGINT and SIGTERM end it: whatever it started ends with it, and it answers an error.
///
/// # Errors
/// When a server does not start, or something does not work that has nothing to do with load.
pub fn run(config: &Config, progress: &dyn Progress) -> Result<Run> {
    interruptible(async {
        let mut bench = Bench::start(config, progress)?;
        bench.parts().await?;
        for scenario in &config.scenarios {
            // What was measured before is kept, whatever becomes of this one.
            if let Err(error) = bench.measure(*scenario).await {
                bench.trouble.push(format!("{}: {error:#}", scenario.name()));
                bench.subject = None;
            }
        }
        bench.parts().await?;
        bench.peers().await?;
        bench.finish()
    })
}

/// Runs a future on this thread until it is done, or the user has enough.
pub(crate) fn interruptible<T>(work: impl Future<Output = Result<T>>) -> Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    LocalSet::new().block_on(&runtime, async {
        let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
        tokio::select! {
            done = work => done,
            interrupted = tokio::signal::ctrl_c() => interrupted.map_err(Into::into).and_then(|()| bail!("interrupted")),
            _ = terminate.recv() => bail!("terminated"),
        }
    })
}

struct Bench<'a> {
    config: &'a Config,
    progress: &'a dyn Progress,
    began: time::OffsetDateTime,
    version: String,
    machine: Machine,
    floor: Floor,
    subject: Option<Subject>,
    parts: Vec<(&'static str, Vec<f64>)>,
    rows: Vec<Row>,
    trouble: Vec<String>,
    peers: Option<Peers>,
    raw: Vec<Series>,
}

impl<'a> Bench<'a> {
    fn start(config: &'a Config, progress: &'a dyn Progress) -> Result<Self> {
        let machine = Machine::now()?;
        progress.stage("the floor", 1);
        let floor = Floor::start(&config.floor, &config.plan)?;
        progress.step();
        Ok(Self {
            config,
            progress,
            began: time::OffsetDateTime::now_utc(),
            version: version(&config.program)?,
            machine,
            floor,
            subject: None,
            parts: Vec::new(),
            rows: Vec::new(),
            trouble: Vec::new(),
            peers: None,
            raw: Vec::new(),
        })
    }

    /// The server with this setting: the one that runs, if it has it.
    async fn subject(&mut self, setting: Setting) -> Result<&Subject> {
        if self.subject.as_ref().is_none_or(|subject| subject.server().setting() != setting) {
            // The old one goes first: the machine is for one at a time.
            self.subject = None;
            let Config { program, images, .. } = self.config;
            self.subject = Some(Subject::new(Server::start(program, images, setting).await?));
        }
        self.subject.as_ref().context("a server was started")
    }

    /// A scenario and its floor, taking turns.
    async fn measure(&mut self, scenario: Scenario) -> Result<()> {
        let scale = self.config.scale;
        let rounds = scenario.rounds(scale);
        self.progress.stage(&format!("{}: {}", scenario.name(), scenario.about()), 2 * rounds.rounds);
        self.subject(scenario.setting(scale)).await?;
        if !scenario.has_turns() {
            let subject = self.subject.as_ref().context("a server was started")?;
            for measured in measure_whole(subject, &self.floor, scenario, scale).await? {
                self.take(scenario, measured);
            }
            return Ok(());
        }
        let (mut ours, mut floors) = (Vec::new(), Vec::new());
        for round in 0..rounds.rounds {
            // Who begins changes, so that neither always follows the other.
            for side in if round % 2 == 0 { [Side::Floor, Side::Ours] } else { [Side::Ours, Side::Floor] } {
                match side {
                    Side::Floor => floors.push(turn_of_floor(&self.floor, scenario, scale, rounds, round).await?),
                    Side::Ours => {
                        let subject = self.subject.as_ref().context("a server was started")?;
                        ours.push(subject.turn(scenario, scale, rounds, round).await?);
                    }
                }
                self.progress.step();
            }
        }
        self.take(scenario, measured(scenario, ours, floors));
        Ok(())
    }

    fn take(&mut self, scenario: Scenario, measured: Measured) {
        let Measured { measure, unit, ours, floor, goal, notes, spoilt } = measured;
        let has_floor = floor.iter().any(|round| !round.is_empty());
        self.raw.push(Series::new(&measure, "ours", unit, &ours));
        if has_floor {
            self.raw.push(Series::new(&measure, "floor", unit, &floor));
        }
        self.rows.push(Row {
            scenario: scenario.name().to_owned(),
            measure,
            unit,
            ours: Summary::of(&ours.concat()),
            floor_is: has_floor.then(|| scenario.floor().to_owned()),
            floor: has_floor.then(|| Summary::of(&floor.concat())),
            goal,
            notes,
            spoilt,
        });
    }

    /// What floors are made of, each alone.
    async fn parts(&mut self) -> Result<()> {
        const PARTS_OF: [(&str, &str, &str); 4] = [
            ("a bare hyper echo", "/echo", r#"{"code": "print(1)"}"#),
            ("a bare launch of namespaces and mounts, and its end", "/place", ""),
            ("a bare `bash -c`", "/bash", "echo hi"),
            ("a bare hyper server and a bare Python", "/run/0", r#"{"code": "print(1)"}"#),
        ];
        let count = if self.config.scale.quick { PARTS / 10 } else { PARTS };
        self.progress.stage("parts of the floor", PARTS_OF.len() + 1);
        let mut taken = Vec::new();
        for (name, path, body) in PARTS_OF {
            let mut samples = Vec::new();
            self.floor.ask(path, body).await?;
            for _ in 0..count {
                let begun = std::time::Instant::now();
                self.floor.ask(path, body).await?;
                samples.push(crate::load::milliseconds(begun.elapsed()));
            }
            taken.push((name, samples));
            self.progress.step();
        }
        let body = r#"{"code": "print(1)"}"#;
        let piped = self.floor.client().ask(Method::POST, &format!("/pipe/{count}"), body).await?;
        taken.push(("a bare Python on a socket, without HTTP", serde_json::from_slice(&piped.body)?));
        self.progress.step();
        for (name, samples) in taken {
            match self.parts.iter_mut().find(|(known, _)| *known == name) {
                Some((_, known)) => known.extend(samples),
                None => self.parts.push((name, samples)),
            }
        }
        Ok(())
    }

    /// Other systems, when nothing of ours runs any more.
    async fn peers(&mut self) -> Result<()> {
        let Some(config) = &self.config.peers else { return Ok(()) };
        self.subject = None;
        let names = peers::names(&config.peers)?;
        let mut found = Peers::default();
        for name in names {
            self.progress.stage(&format!("peer: {name}"), 1);
            peers::measure(config, &name, &mut found).await;
            self.progress.step();
        }
        self.peers = Some(found);
        Ok(())
    }

    fn finish(mut self) -> Result<Run> {
        for (name, samples) in std::mem::take(&mut self.parts) {
            self.raw.push(Series::new(name, "floor", Unit::Milliseconds, std::slice::from_ref(&samples)));
            self.rows.push(Row {
                scenario: "floor".to_owned(),
                measure: name.to_owned(),
                unit: Unit::Milliseconds,
                ours: Summary::of(&samples),
                floor_is: None,
                floor: None,
                goal: None,
                notes: Vec::new(),
                spoilt: false,
            });
        }
        let began = self.began.format(&time::format_description::well_known::Rfc3339)?;
        Ok(Run {
            form: FORM,
            began,
            version: self.version,
            quick: self.config.scale.quick,
            machine: self.machine,
            rows: self.rows,
            trouble: self.trouble,
            peers: self.peers,
            raw: self.raw,
        })
    }
}

/// The turns of a scenario and of its floor as one measure.
fn measured(scenario: Scenario, ours: Vec<Block>, floors: Vec<Block>) -> Measured {
    let mut notes: Vec<String> = Vec::new();
    let late: Vec<f64> = ours.iter().flat_map(|block| block.late_ms.iter().copied()).collect();
    if !late.is_empty() {
        notes.push(format!("the generator was late by {} ms at its p99", report::figure(Summary::of(&late).p99)));
    }
    let refused: Vec<&String> = ours.iter().flat_map(|block| &block.refused).collect();
    if let Some(first) = refused.first() {
        notes.push(format!("{} were refused or failed, the first with: {first}", refused.len()));
    }
    let spoilt = !refused.is_empty();
    notes.extend(ours.iter().flat_map(|block| block.notes.iter().cloned()));
    notes.dedup();
    let samples = |blocks: Vec<Block>| blocks.into_iter().map(|block| block.samples).collect();
    Measured {
        measure: scenario.about().to_owned(),
        unit: scenario.unit(),
        ours: samples(ours),
        floor: samples(floors),
        goal: scenario.goal(),
        notes,
        spoilt,
    }
}

#[derive(Clone, Copy)]
enum Side {
    Ours,
    Floor,
}

/// What a program says of its version.
pub(crate) fn version(program: &Path) -> Result<String> {
    let output = std::process::Command::new(program).arg("--version").output();
    let output = output.with_context(|| format!("cannot run {}", program.display()))?;
    ensure!(output.status.success(), "{} has no version", program.display());
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

impl Run {
    /// The report.
    #[must_use]
    pub fn markdown(&self) -> String {
        let mut text = format!("# {} on {}\n\n{}", self.version, self.began, self.machine.sentence());
        if self.quick {
            text.push_str(" A quick look: too few samples to judge by.");
        }
        text.push_str("\n\n");
        let (parts, rows): (Vec<_>, Vec<_>) = self.rows.iter().cloned().partition(|row| row.scenario == "floor");
        text.push_str(&report::table(&rows));
        for trouble in &self.trouble {
            let _ = writeln!(text, "- Not measured: {trouble}");
        }
        if !parts.is_empty() {
            text.push_str("\nWhat floors are made of:\n\n");
            text.push_str(&report::table(&parts));
        }
        if let Some(peers) = &self.peers {
            text.push_str("\nOther systems, in the same run, through their own clients:\n\n");
            text.push_str(&peers.markdown(&self.rows));
        }
        text
    }

    /// Writes it into a directory, which is made.
    ///
    /// # Errors
    /// When a file cannot be written.
    pub fn write(&self, directory: &Path, command: &str) -> Result<()> {
        let write = |name: &str, text: String| {
            let path = directory.join(name);
            std::fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))
        };
        std::fs::create_dir_all(directory).with_context(|| format!("cannot make {}", directory.display()))?;
        let mut raw = String::new();
        for series in &self.raw {
            let _ = writeln!(raw, "{}", serde_json::to_string(series)?);
        }
        write("command", format!("{command}\n"))?;
        write("machine.json", format!("{}\n", serde_json::to_string_pretty(&self.machine)?))?;
        write("raw.jsonl", raw)?;
        write("summary.json", format!("{}\n", serde_json::to_string_pretty(self)?))?;
        write("summary.md", self.markdown())
    }

    /// Reads what [`Self::write`] wrote, without the samples.
    ///
    /// # Errors
    /// When it is not there, or of another form.
    pub fn read(directory: &Path) -> Result<Self> {
        let path = directory.join("summary.json");
        let text = std::fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let run: Self = serde_json::from_str(&text).with_context(|| format!("{} is no summary", path.display()))?;
        ensure!(run.form == FORM, "{} has form {}, and this program knows {FORM}", path.display(), run.form);
        Ok(run)
    }

    /// The name of its directory: date and machine.
    #[must_use]
    pub fn name(&self) -> String {
        let date: String = self.began.chars().take(16).filter(|letter| *letter != ':').collect();
        format!("{date}-{}", self.machine.name())
    }
}
