//! `cargo xtask ci`: one stage after another, each with its time, and a line with the counts at the end.

use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::{root, tidy};

/// What the stages add up to.
#[derive(Default)]
struct Sums {
    passed: u64,
    failed: u64,
    skipped: u64,
    stages: Vec<(&'static str, Duration)>,
}

pub(crate) fn run(fast: bool) -> Result<String> {
    let start = Instant::now();
    let mut sums = Sums::default();
    let cargo = || {
        let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        cargo.current_dir(root());
        cargo
    };
    sums.stage("format", |_| run_quietly(cargo().args(["fmt", "--all", "--check"])))?;
    sums.stage("tidy", |_| tidy::run().map(drop))?;
    sums.stage("lints", |_| {
        run_quietly(cargo().args(["clippy", "--quiet", "--workspace", "--all-targets", "--", "-D", "warnings"]))
    })?;
    let tests_need_release = !fast && is_root();
    if tests_need_release {
        sums.stage("release build", |_| {
            run_quietly(cargo().args(["build", "--quiet", "--release", "--package", "sandpool"]))
        })?;
        sums.stage("images", |_| build_images())?;
    } else if !fast {
        sums.stage("release build", |_| {
            run_quietly(cargo().args(["build", "--quiet", "--release", "--package", "sandpool"]))
        })?;
        println!("images: not root, so tests that run sandboxes say that they skip");
    }
    sums.stage("tests", |sums| {
        // Not nextest: several of these programs are a launcher and its server, and list nothing.
        let mut tests = cargo();
        tests.args(["test", "--quiet", "--workspace", "--all-targets", "--no-fail-fast"]);
        if tests_need_release {
            // A test that says it cannot run has failed.
            tests.env("SANDPOOL_MUST", "1");
        }
        if let Some(images) = images() {
            tests.env("SANDPOOL_IMAGES", images);
        }
        run_counting(&mut tests, sums)
    })?;
    sums.stage("doc tests", |sums| run_counting(cargo().args(["test", "--quiet", "--workspace", "--doc"]), sums))?;
    if !fast {
        sums.stage("real clients", |sums| {
            let script = root().join("e2e/run");
            let mut clients = Command::new(&script);
            clients.current_dir(root()).env("SANDPOOL_BIN", program());
            if let Some(images) = images() {
                clients.env("SANDPOOL_IMAGES", images);
            }
            if tests_need_release {
                clients.env("SANDPOOL_MUST", "1");
            }
            run_counting(&mut clients, sums).with_context(|| script.display().to_string())
        })?;
    }
    for (name, took) in &sums.stages {
        println!("  {name:<14} {:>7.1} s", took.as_secs_f64());
    }
    println!("  {:<14} {:>7.1} s", "all", start.elapsed().as_secs_f64());
    Ok(format!("ci: {} passed, {} failed, {} skipped", sums.passed, sums.failed, sums.skipped))
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

/// Runs tests, passing their output on, and adds up what they say of themselves.
fn run_counting(command: &mut Command, sums: &mut Sums) -> Result<()> {
    // Both streams into one pipe: test runners print their summaries to either.
    let (reader, writer) = std::io::pipe()?;
    command.stdout(writer.try_clone()?).stderr(writer);
    let mut child = command.spawn().with_context(|| format!("cannot run {}", shown(command)))?;
    // Our own ends of the pipe would keep it open for ever.
    command.stdout(Stdio::null()).stderr(Stdio::null());
    let mut reader = BufReader::new(reader);
    let mut line = Vec::new();
    while reader.read_until(b'\n', &mut line)? > 0 {
        let text = String::from_utf8_lossy(&line);
        print!("{text}");
        sums.count(text.trim_end());
        line.clear();
    }
    let status = child.wait()?;
    if !status.success() {
        bail!("{} failed ({status})", shown(command));
    }
    Ok(())
}

fn shown(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ")
}

fn program() -> PathBuf {
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from);
    target.join("release/sandpool")
}

/// Where the tests find images: as told, else in the state directory of this machine, so that they are built once.
fn images() -> Option<PathBuf> {
    match std::env::var_os("SANDPOOL_IMAGES") {
        Some(images) => Some(images.into()),
        None => is_root().then(|| "/var/lib/sandpool/images".into()),
    }
}

fn build_images() -> Result<()> {
    let mut build = Command::new(program());
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
}
