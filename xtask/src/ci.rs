//! `cargo xtask ci`: one stage after another, each with its time, and a line with the counts at the end.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::fuzz::{self, Fuzzing};
use crate::{cargo, root, target_directory, tidy};

/// The server with the fixtures of MCP's conformance suite. It is built by itself, since no other program has these features.
const FIXTURES: [&str; 7] =
    ["--quiet", "--package", "sandpool-http", "--example", "conformance", "--features", "conformance-fixtures"];

/// What the stages add up to.
#[derive(Default)]
struct Sums {
    passed: u64,
    failed: u64,
    skipped: u64,
    /// What failed, was run once more, and passed. Each is named at the end: a test that does so is wrong, or what it tests
    /// is; but the work of a day is not thrown away for it.
    flaky: Vec<String>,
    stages: Vec<(&'static str, Duration)>,
}

/// How much of it runs.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Extent {
    /// Without real clients and fuzzing.
    Fast,
    /// All of it. Real clients drive the program as tests build it, which checks more than a released one (overflow, debug
    /// assertions) and saves the longest build of all.
    Whole,
    /// All of it, with real clients against the released program.
    Release,
}

pub(crate) fn run(extent: Extent) -> Result<String> {
    let start = Instant::now();
    let mut sums = Sums::default();
    let is_fast = extent == Extent::Fast;
    sums.stage("format", |_| run_quietly(cargo().args(["fmt", "--all", "--check"])))?;
    sums.stage("tidy", |_| tidy::run().map(drop))?;
    sums.stage("lints", |_| {
        run_quietly(cargo().args(["clippy", "--quiet", "--workspace", "--all-targets", "--", "-D", "warnings"]))?;
        run_quietly(cargo().arg("clippy").args(FIXTURES).args(["--", "-D", "warnings"]))
    })?;
    sums.stage("build", |_| {
        run_quietly(cargo().args(["test", "--quiet", "--workspace", "--all-targets", "--no-run"]))
    })?;
    if extent == Extent::Release {
        sums.stage("release build", |_| {
            run_quietly(cargo().args(["build", "--quiet", "--release", "--package", "sandpool"]))
        })?;
    }
    if !is_fast {
        sums.stage("fixtures build", |_| run_quietly(cargo().arg("build").args(FIXTURES)))?;
        sums.stage("fuzz build", |_| fuzz::build())?;
    }
    let program = program(extent);
    let is_must = !is_fast && is_root();
    if is_must {
        sums.stage("images", |_| build_images(&program))?;
    } else if !is_fast {
        println!("images: not root, so tests that run sandboxes say that they skip");
    }
    let fuzzing = if is_fast { None } else { Some(Fuzzing::all(fuzz::MINUTES)?) };
    sums.stage("tests", |sums| {
        // Not nextest: several of these programs are a launcher and its server, and list nothing.
        let mut tests = cargo();
        tests.args(["test", "--quiet", "--workspace", "--all-targets", "--no-fail-fast"]);
        prepare(&mut tests, is_must);
        let failed = sums.failed;
        let output = run_counting(&mut tests, sums)?;
        let Err(error) = output.judged else { return Ok(()) };
        // A target that failed is run once more, alone: see `Sums::flaky`.
        let targets = failed_targets(&output.text);
        if targets.is_empty() || targets.len() > MOST_AGAIN {
            return Err(error);
        }
        for target in targets {
            println!("== tests, once more: {}", target.join(" "));
            let mut again = cargo();
            again.args(["test", "--quiet", "--no-fail-fast"]).args(&target);
            prepare(&mut again, is_must);
            run_counting(&mut again, &mut Sums::default())?.judged?;
            sums.flaky.push(target.join(" "));
        }
        sums.failed = failed;
        Ok(())
    })?;
    sums.stage("doc tests", |sums| {
        run_counting(cargo().args(["test", "--quiet", "--workspace", "--doc"]), sums)?.judged
    })?;
    if !is_fast {
        sums.stage("real clients", |sums| real_clients(sums, &program, is_must, None))?;
        sums.stage("in machines", |sums| real_clients(sums, &program, is_must, Some(("microvm", &IN_MACHINES))))?;
    }
    if let Some(fuzzing) = fuzzing {
        sums.stage("fuzzing", |_| {
            println!("{}", fuzzing.end()?);
            Ok(())
        })?;
    }
    for (name, took) in &sums.stages {
        println!("  {name:<14} {:>7.1} s", took.as_secs_f64());
    }
    println!("  {:<14} {:>7.1} s", "all", start.elapsed().as_secs_f64());
    for name in &sums.flaky {
        println!("FLAKY: {name} failed and then passed; find out why before it costs somebody a night");
    }
    Ok(format!("ci: {} passed, {} failed, {} skipped", sums.passed, sums.failed, sums.skipped))
}

/// What is run once more with its server's sandboxes in machines: what the first clients do, and suspending.
const IN_MACHINES: [&str; 4] = ["test_clients_python.py", "test_clients_node.py", "test_10_wire.py", "test_suspend.py"];

/// Runs the tests of real clients against the program: all of them, or these with their server at this level.
fn real_clients(sums: &mut Sums, program: &Path, is_must: bool, at: Option<(&str, &[&str])>) -> Result<()> {
    let script = root().join("e2e/run");
    let clients = |words: &[&str]| {
        let mut clients = Command::new(&script);
        clients.args(words).current_dir(root()).env("SANDPOOL_BIN", program);
        if let Some((level, files)) = at {
            clients.args(files).env("SANDPOOL_E2E_ISOLATION", level);
        }
        prepare(&mut clients, is_must);
        clients
    };
    let failed = sums.failed;
    // Two at a time, a file each, each with a server of its own: most of them wait for something.
    let output = run_counting(&mut clients(&["--cache-clear", "-n", "2", "--dist", "loadfile"]), sums)?;
    let Err(error) = output.judged else { return Ok(()) };
    let tests = failed_clients(&output.text);
    if tests.is_empty() || tests.len() > MOST_AGAIN {
        return Err(error);
    }
    println!("== real clients, once more: {}", tests.join(", "));
    run_counting(&mut clients(&["--last-failed"]), &mut Sums::default())?.judged?;
    sums.flaky.extend(tests);
    sums.failed = failed;
    Ok(())
}

/// How many targets or tests may be run once more: what breaks more than these is no flake.
const MOST_AGAIN: usize = 3;

/// What tests in real sandboxes are told.
fn prepare(tests: &mut Command, is_must: bool) {
    if is_must {
        // A test that says it cannot run has failed.
        tests.env("SANDPOOL_MUST", "1");
    }
    if let Some(images) = images() {
        tests.env("SANDPOOL_IMAGES", images);
    }
}

/// The arguments of the targets that cargo says have failed, at its end: one a line, as `` `-p PACKAGE --test NAME` ``.
fn failed_targets(output: &str) -> Vec<Vec<String>> {
    let lines = output.lines().map(strip_colours);
    let targets = lines.filter_map(|line| {
        let words = line.trim().strip_prefix('`')?.strip_suffix('`')?.to_owned();
        words.starts_with("-p ").then(|| words.split(' ').map(str::to_owned).collect())
    });
    targets.collect()
}

/// The tests that pytest says have failed, in its summary.
fn failed_clients(output: &str) -> Vec<String> {
    let lines = output.lines().map(strip_colours);
    let tests = lines.filter_map(|line| {
        let rest = line.strip_prefix("FAILED ").or_else(|| line.strip_prefix("ERROR "))?;
        rest.split(' ').next().filter(|test| test.contains("::")).map(str::to_owned)
    });
    tests.collect()
}

impl Sums {
    fn stage(&mut self, name: &'static str, work: impl FnOnce(&mut Self) -> Result<()>) -> Result<()> {
        println!("== {name}");
        let start = Instant::now();
        let done = work(self);
        self.stages.push((name, start.elapsed()));
        done.with_context(|| {
            format!(
                "stage {name:?} failed after {:.1} s ({} passed, {} failed so far)",
                start.elapsed().as_secs_f64(),
                self.passed,
                self.failed
            )
        })
    }

    /// Adds what one line of a test runner's summary says.
    fn count(&mut self, line: &str) {
        let line = strip_colours(line);
        let is_summary = line.starts_with("test result:")
            || line.trim_start().starts_with("Summary [")
            || line.starts_with('=') && line.contains(" in ")
            || line.trim_end().ends_with(')') && line.contains(" passed") && line.contains(" in ");
        if !is_summary {
            return;
        }
        let words: Vec<&str> = line.split([' ', ',', ';', '=']).filter(|word| !word.is_empty()).collect();
        for pair in words.windows(2) {
            let Ok(number) = pair[0].parse::<u64>() else { continue };
            match pair[1].trim_end_matches(':') {
                "passed" => self.passed += number,
                "failed" | "error" | "errors" => self.failed += number,
                "skipped" | "ignored" => self.skipped += number,
                _ => {}
            }
        }
    }
}

/// `line` without escape sequences for colours.
fn strip_colours(line: &str) -> String {
    let mut out = String::with_capacity(line.len());
    let mut chars = line.chars();
    while let Some(c) = chars.next() {
        if c == '\u{1b}' {
            // `ESC [ ... letter`
            for c in chars.by_ref() {
                if c.is_ascii_alphabetic() {
                    break;
                }
            }
        } else {
            out.push(c);
        }
    }
    out
}

fn run_quietly(command: &mut Command) -> Result<()> {
    let status = command.status().with_context(|| format!("cannot run {}", shown(command)))?;
    if !status.success() {
        bail!("{} failed ({status})", shown(command));
    }
    Ok(())
}

/// What tests said, and whether they passed.
struct Output {
    text: String,
    judged: Result<()>,
}

/// Runs tests, passing their output on, and adds up what they say of themselves.
fn run_counting(command: &mut Command, sums: &mut Sums) -> Result<Output> {
    // Both streams into one pipe: test runners print their summaries to either.
    let (reader, writer) = std::io::pipe()?;
    command.stdout(writer.try_clone()?).stderr(writer);
    let mut child = command.spawn().with_context(|| format!("cannot run {}", shown(command)))?;
    // Our own ends of the pipe would keep it open for ever.
    command.stdout(Stdio::null()).stderr(Stdio::null());
    let mut reader = BufReader::new(reader);
    let mut line = Vec::new();
    let mut all = String::new();
    while reader.read_until(b'\n', &mut line)? > 0 {
        let text = String::from_utf8_lossy(&line);
        print!("{text}");
        sums.count(text.trim_end());
        all.push_str(&text);
        line.clear();
    }
    let status = child.wait()?;
    let judged = if status.success() { Ok(()) } else { Err(anyhow::anyhow!("{} failed ({status})", shown(command))) };
    Ok(Output { text: all, judged })
}

fn shown(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ")
}

fn program(extent: Extent) -> PathBuf {
    target_directory().join(if extent == Extent::Release { "release/sandpool" } else { "debug/sandpool" })
}

/// Where the tests find images: as told, else in the state directory of this machine, so that they are built once.
fn images() -> Option<PathBuf> {
    match std::env::var_os("SANDPOOL_IMAGES") {
        Some(images) => Some(images.into()),
        None => is_root().then(|| "/var/lib/sandpool/images".into()),
    }
}

fn build_images(program: &Path) -> Result<()> {
    let mut build = Command::new(program);
    build.args(["image", "build"]);
    if let Some(images) = images() {
        build.env("SANDPOOL_IMAGES", images);
    }
    run_quietly(&mut build)
}

fn is_root() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let uids = status.lines().find_map(|line| line.strip_prefix("Uid:")).unwrap_or_default();
    uids.split_whitespace().nth(1) == Some("0")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn summaries_of_all_runners_are_counted() {
        let count = |line: &str| {
            let mut sums = Sums::default();
            sums.count(line);
            (sums.passed, sums.failed, sums.skipped)
        };
        let libtest = "test result: ok. 12 passed; 0 failed; 3 ignored; 0 measured; 0 filtered out; finished in 0.01s";
        assert_eq!(count(libtest), (12, 0, 3));
        assert_eq!(count("     Summary [   1.2s] 5 tests run: 4 passed (1 slow), 1 failed, 2 skipped"), (4, 1, 2));
        assert_eq!(count("\u{1b}[32m===== \u{1b}[1m7 passed\u{1b}[0m, 2 skipped in 3.10s =====\u{1b}[0m"), (7, 0, 2));
        assert_eq!(count("===== 1 failed, 7 passed, 1 error in 3.10s ====="), (7, 2, 0));
        assert_eq!(count("3 passed the gate"), (0, 0, 0));
    }

    #[test]
    fn what_failed_is_found_in_what_was_said() {
        let cargo =
            "error: 2 targets failed:\n    `-p sandpool-process --test walls`\n    `-p sandpool --bin sandpool`\n";
        assert_eq!(
            failed_targets(cargo),
            [["-p", "sandpool-process", "--test", "walls"], ["-p", "sandpool", "--bin", "sandpool"]]
        );
        let pytest =
            "FAILED test_kills.py::test_whatever - ProcessLookupError: x\nERROR test_mcp.py::test_y\nFAILED it\n";
        assert_eq!(failed_clients(pytest), ["test_kills.py::test_whatever", "test_mcp.py::test_y"]);
    }
}
