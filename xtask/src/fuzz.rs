//! `cargo xtask fuzz`: the fuzz targets of `fuzz/`, with the stable compiler.
//!
//! libFuzzer needs no more of a compiler than LLVM's coverage pass, and `-C passes=sancov-module` asks a stable one for
//! it: the flags below are those that `cargo fuzz` gives, without a sanitizer. Ours is safe Rust, so what a sanitizer would
//! find are panics, overflows and endless loops, and those are found without one.
//!
//! A target's seeds are `fuzz/corpus/TARGET`; what a run finds new goes to the target directory, and is kept there for the
//! next run. What breaks a target is written beside it, and its path is printed.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::{cargo, root, target_directory};

/// Fuzz-minutes over all targets together when nobody says otherwise.
pub(crate) const MINUTES: u64 = 14;

/// Bytes of an input at most: more than any frame's header and fewer than make a run slow.
const MAX_LEN: u32 = 8_192;

/// Memory of a target at most, in MiB: what grows over it has found something.
const MEMORY: u32 = 2_048;

/// Seconds that one input may take.
const TIMEOUT: u32 = 25;

/// A target that has been built.
struct Target {
    name: String,
    program: PathBuf,
}

/// The targets, by the programs that `fuzz/Cargo.toml` lists.
fn targets() -> Result<Vec<String>> {
    let sources = root().join("fuzz/fuzz_targets");
    let entries = std::fs::read_dir(&sources).with_context(|| sources.display().to_string())?;
    let mut names = Vec::new();
    for entry in entries {
        let name = entry?.file_name().to_string_lossy().into_owned();
        names.extend(name.strip_suffix(".rs").map(str::to_owned));
    }
    names.sort();
    Ok(names)
}

fn target_dir() -> PathBuf {
    target_directory().join("fuzz")
}

/// The machine that this was built for: with `--target` cargo keeps the flags away from build scripts.
fn host() -> Result<String> {
    let said = Command::new("rustc").arg("-vV").output().context("cannot run rustc")?;
    let said = String::from_utf8_lossy(&said.stdout).into_owned();
    let host = said.lines().find_map(|line| line.strip_prefix("host: "));
    host.map(str::to_owned).context("rustc -vV names no host")
}

/// Builds all targets.
pub(crate) fn build() -> Result<()> {
    let flags = [
        "-Cpasses=sancov-module",
        "-Cllvm-args=-sanitizer-coverage-level=4",
        "-Cllvm-args=-sanitizer-coverage-inline-8bit-counters",
        "-Cllvm-args=-sanitizer-coverage-pc-table",
        "-Cllvm-args=-sanitizer-coverage-trace-compares",
        "-Cdebug-assertions",
        "-Coverflow-checks",
        "--cfg=fuzzing",
    ];
    let status = cargo()
        .args(["build", "--quiet", "--release", "--target", &host()?, "--manifest-path"])
        .arg(root().join("fuzz/Cargo.toml"))
        .env("CARGO_TARGET_DIR", target_dir())
        .env("CARGO_ENCODED_RUSTFLAGS", flags.join("\u{1f}"))
        .status()
        .context("cannot run cargo")?;
    if !status.success() {
        bail!("the fuzz targets do not build ({status}); libFuzzer is C++: apt-get install g++");
    }
    Ok(())
}

/// `cargo xtask fuzz [--minutes N] [TARGET…]`.
pub(crate) fn run(minutes: u64, asked: &[&str]) -> Result<String> {
    let known = targets()?;
    if let Some(unknown) = asked.iter().find(|name| !known.iter().any(|known| known == *name)) {
        bail!("no fuzz target is called {unknown:?}; there are {}", known.join(", "));
    }
    build()?;
    let chosen = known.into_iter().filter(|name| asked.is_empty() || asked.contains(&name.as_str()));
    Fuzzing::start(chosen.collect(), minutes)?.end()
}

/// Fuzzing in the background, two targets at a time, on processor time that nobody else wants.
pub(crate) struct Fuzzing {
    lanes: Vec<std::thread::JoinHandle<Result<Vec<String>>>>,
    /// Set when the targets that wait shall not start.
    stop: Arc<AtomicBool>,
}

impl Fuzzing {
    /// All targets for as many minutes together.
    pub(crate) fn all(minutes: u64) -> Result<Self> {
        Self::start(targets()?, minutes)
    }

    fn start(names: Vec<String>, minutes: u64) -> Result<Self> {
        let directory = target_dir();
        let programs = directory.join(host()?).join("release");
        let seconds = (minutes * 60).div_ceil(names.len().max(1) as u64).max(1);
        let mut lanes: [Vec<Target>; 2] = Default::default();
        for (number, name) in names.into_iter().enumerate() {
            let program = programs.join(&name);
            lanes[number % 2].push(Target { name, program });
        }
        let stop = Arc::new(AtomicBool::new(false));
        let lanes = lanes.into_iter().map(|lane| {
            let (directory, stop) = (directory.clone(), Arc::clone(&stop));
            std::thread::spawn(move || {
                let mut said = Vec::new();
                for target in lane {
                    if stop.load(Ordering::Relaxed) {
                        bail!("fuzzing ended early: {} was not run", target.name);
                    }
                    let line = target.fuzz(&directory, seconds, &stop)?;
                    println!("fuzz: {line}");
                    said.push(line);
                }
                Ok(said)
            })
        });
        Ok(Self { lanes: lanes.collect(), stop })
    }

    /// Waits for all of it. Answers the line that sums it up.
    ///
    /// # Errors
    ///
    /// Names each target that found something, and where the input is.
    pub(crate) fn end(mut self) -> Result<String> {
        let mut clean = 0;
        let mut wrong = Vec::new();
        for lane in self.lanes.drain(..) {
            match lane.join() {
                Ok(Ok(said)) => clean += said.len(),
                Ok(Err(error)) => wrong.push(format!("{error:#}")),
                Err(_) => wrong.push("a fuzzing lane panicked".to_owned()),
            }
        }
        if !wrong.is_empty() {
            bail!("{}", wrong.join("; "));
        }
        Ok(format!("fuzz: {clean} targets clean"))
    }
}

impl Drop for Fuzzing {
    /// What still runs when a stage beside it has failed ends with it.
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for lane in self.lanes.drain(..) {
            let _ = lane.join();
        }
    }
}

impl Target {
    fn fuzz(&self, directory: &Path, seconds: u64, stop: &AtomicBool) -> Result<String> {
        let found = directory.join("corpus").join(&self.name);
        let broken = directory.join("artifacts").join(&self.name);
        std::fs::create_dir_all(&found)?;
        std::fs::create_dir_all(&broken)?;
        let log = directory.join(format!("{}.log", self.name));
        let mut command = Command::new("nice");
        command
            .args(["-n", "19"])
            .arg(&self.program)
            .arg(&found)
            .args(Some(root().join("fuzz/corpus").join(&self.name)).filter(|seeds| seeds.is_dir()))
            .arg(format!("-max_total_time={seconds}"))
            .arg(format!("-max_len={MAX_LEN}"))
            .arg(format!("-rss_limit_mb={MEMORY}"))
            .arg(format!("-timeout={TIMEOUT}"))
            .arg("-print_final_stats=1")
            .arg(format!("-artifact_prefix={}/", broken.display()))
            .current_dir(directory)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(std::fs::File::create(&log)?);
        let mut child = command.spawn().with_context(|| format!("cannot run {}", self.program.display()))?;
        let status = wait(&mut child, stop)?;
        let said = String::from_utf8_lossy(&std::fs::read(&log)?).into_owned();
        if !status.is_some_and(|status| status.success()) {
            let Some(status) = status else { bail!("fuzzing ended early: {} was stopped", self.name) };
            let tail: Vec<&str> = said.lines().rev().take(25).collect();
            let tail: Vec<&str> = tail.into_iter().rev().collect();
            bail!(
                "{} found something ({status}); the input is in {}:\n{}",
                self.name,
                broken.display(),
                tail.join("\n")
            );
        }
        let runs = said.lines().find_map(|line| line.strip_prefix("stat::number_of_executed_units:"));
        let runs = runs.map_or("?", str::trim);
        Ok(format!("{}: {runs} runs in {seconds} s, clean", self.name))
    }
}

/// Waits for a child, and ends it when told to. `None`: it was ended.
fn wait(child: &mut Child, stop: &AtomicBool) -> Result<Option<std::process::ExitStatus>> {
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        if stop.load(Ordering::Relaxed) {
            child.kill()?;
            child.wait()?;
            return Ok(None);
        }
        std::thread::sleep(Duration::from_millis(200));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_target_is_in_the_manifest() {
        let manifest = std::fs::read_to_string(root().join("fuzz/Cargo.toml")).unwrap();
        for name in targets().unwrap() {
            assert!(manifest.contains(&format!("path = \"fuzz_targets/{name}.rs\"")), "{name} is not built");
        }
    }
}
