//! One server under test: started on a state directory of its own, and ended whatever happens.

use std::collections::BTreeSet;
use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use hyper::{Method, StatusCode};
use serde_json::Value;
use tempfile::TempDir;

use crate::http::{Answer, Client};
use crate::load::milliseconds;
use crate::scenario::EGRESS;

/// How long a server may take until its pools are ready. It says itself what it waits for when that is too short.
const START_LIMIT: Duration = Duration::from_secs(400);

/// How long a pool may take until it is full again.
const FULL_LIMIT: Duration = Duration::from_secs(300);

/// How long a token of a run is good for.
const TOKEN: &str = "24h";

/// What a server is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Setting {
    /// Python sandboxes that are kept ready.
    pub python: u32,
    /// The same of Node.
    pub node: u32,
    /// The same of the shell.
    pub shell: u32,
    /// Sessions that each pool may have.
    pub max_sessions: u32,
    /// Executions that the tenant `noisy` may have at the same time, beside the tenant `quiet`; 0: there are no tenants.
    pub tenant_executions: u32,
    /// Whether Python sessions may reach the server that the scenario `egress` starts.
    pub has_egress: bool,
}

impl Setting {
    /// What most scenarios need: sessions that live on.
    pub const PLAIN: Self =
        Self { python: 2, node: 2, shell: 2, max_sessions: 250, tenant_executions: 0, has_egress: false };

    fn yaml(self) -> String {
        let mut text = String::from("listen: 127.0.0.1:0\n");
        if self.tenant_executions > 0 {
            let quota = format!("quota: {{ executions: {} }}", self.tenant_executions);
            let _ = writeln!(text, "tenants: [{{ name: quiet }}, {{ name: noisy, {quota} }}]");
        }
        text.push_str("pools:\n");
        for (name, kind, ready) in
            [("python", "PythonLTS", self.python), ("node", "NodeLTS", self.node), ("shell", "Shell", self.shell)]
        {
            let _ = write!(
                text,
                "  - metadata: {{ name: {name} }}\n    spec:\n      containerType: {kind}\n      \
                 scaleConfiguration: {{ maxConcurrentSessions: {}, readySessionInstances: {ready} }}\n      \
                 dynamicPoolConfiguration: {{ lifecycleConfiguration: {{ cooldownPeriodInSeconds: 86400 }} }}\n",
                self.max_sessions.max(ready),
            );
            if self.has_egress && name == "python" {
                let _ = writeln!(text, "      {EGRESS}");
            }
        }
        text
    }
}

/// A running server. Dropping it stops it, and everything it started.
#[derive(Debug)]
pub struct Server {
    running: Running,
    setting: Setting,
    client: Client,
    launcher: i32,
    started_ms: f64,
}

/// What has to be ended, from the moment of its start on.
#[derive(Debug)]
struct Running {
    program: PathBuf,
    home: TempDir,
    /// The process that waits until the pools are ready, while it does.
    starting: Option<Child>,
}

impl Server {
    /// Starts `program` with this setting, and waits until its pools are ready. Must be called in a `LocalSet`.
    ///
    /// # Errors
    /// What the program itself says when it does not start.
    pub async fn start(program: &Path, images: &Path, setting: Setting) -> Result<Self> {
        Self::start_with(program, images, &setting.yaml(), setting).await
    }

    /// Begins the program and waits for its end: it says its version, and does nothing else.
    ///
    /// # Errors
    /// When it does not.
    pub(crate) fn begin_and_end(&self) -> Result<()> {
        self.running.begin_and_end()
    }

    /// Starts `program` with this configuration file, which must say `listen: 127.0.0.1:0`, and waits until its pools are
    /// ready. Must be called in a `LocalSet`.
    ///
    /// # Errors
    /// What the program itself says when it does not start.
    pub async fn configured(program: &Path, images: &Path, config: &str) -> Result<Self> {
        Self::start_with(program, images, config, Setting::PLAIN).await
    }

    async fn start_with(program: &Path, images: &Path, yaml: &str, setting: Setting) -> Result<Self> {
        let home = tempfile::Builder::new().prefix("sandpool-bench-").tempdir()?;
        let config = home.path().join("bench.yaml");
        std::fs::write(&config, yaml)?;
        let mut running = Running { program: program.to_owned(), home, starting: None };
        let begun = Instant::now();
        // What it says is read when it is over, from files: a pipe would be held open by the server it leaves behind.
        let said = running.home.path().join("start.log");
        let log = std::fs::File::create(&said)?;
        let starting = running
            .command(&["serve", "--detach", "--config"])
            .arg(&config)
            .arg("--images")
            .arg(images)
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .with_context(|| format!("cannot run {}", program.display()))?;
        running.starting = Some(starting);
        while begun.elapsed() < START_LIMIT {
            if let Some(starting) = &mut running.starting
                && let Some(status) = starting.try_wait()?
            {
                running.starting = None;
                let words = std::fs::read_to_string(&said).unwrap_or_default();
                ensure!(status.success(), "the server does not start:\n{}", words.trim());
                return Self::find(running, setting, milliseconds(begun.elapsed()));
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        bail!("the server is not ready after {} s", START_LIMIT.as_secs());
    }

    fn find(running: Running, setting: Setting, started_ms: f64) -> Result<Self> {
        let record = std::fs::read_to_string(running.home.path().join("run/server.json"))?;
        let record: Value = serde_json::from_str(&record)?;
        let endpoint = record["endpoint"].as_str().context("the server does not say where it listens")?;
        let address = endpoint.trim_start_matches("http://").parse().context("no address of a server")?;
        let launcher = record["pid"].as_i64().and_then(|pid| i32::try_from(pid).ok());
        let launcher = launcher.context("the server does not say who it is")?;
        let token = running.output(&["token", "--role", "admin", "--ttl", TOKEN])?;
        let client = Client::new(address, Some(String::from_utf8_lossy(&token.stdout).trim()))?;
        Ok(Self { running, setting, client, launcher, started_ms })
    }

    /// What it was told.
    #[must_use]
    pub fn setting(&self) -> Setting {
        self.setting
    }

    /// From calling the program to ready pools, in milliseconds.
    #[must_use]
    pub fn started_ms(&self) -> f64 {
        self.started_ms
    }

    /// Its client.
    #[must_use]
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// A client of a tenant of it.
    ///
    /// # Errors
    /// When it has no such tenant.
    pub fn client_of(&self, tenant: &str) -> Result<Client> {
        let token = self.running.output(&["token", "--tenant", tenant, "--ttl", TOKEN])?;
        Client::new(self.client.address(), Some(String::from_utf8_lossy(&token.stdout).trim()))
    }

    /// The pid of its launcher, parent of all its processes.
    #[must_use]
    pub fn launcher(&self) -> i32 {
        self.launcher
    }

    /// The process that serves now: the launcher's child that was told to.
    #[must_use]
    pub fn serving(&self) -> Option<rustix::process::Pid> {
        let launcher = self.launcher;
        let children = std::fs::read_to_string(format!("/proc/{launcher}/task/{launcher}/children")).ok()?;
        let mut pids = children.split_whitespace().filter_map(|pid| pid.parse().ok());
        let serves = |pid: &i32| {
            let words = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            words.split(|byte| *byte == 0).any(|word| word == b"__server")
        };
        rustix::process::Pid::from_raw(pids.find(serves)?)
    }

    /// Runs something in a session, which is made if it is not there: `{"code": ...}` or `{"command": ...}`.
    ///
    /// # Errors
    /// When it is refused, or does not end well.
    pub async fn execute(&self, pool: &str, session: &str, work: impl Into<bytes::Bytes>) -> Result<Answer> {
        let path = format!("/pools/{pool}/sessions/{session}/executions");
        let answer = self.client.ask(Method::POST, &path, work).await?;
        let ended = answer.says("\"succeeded\"") || answer.says("\"exitCode\":0");
        ensure!(
            ended && answer.status == StatusCode::OK,
            "{path}: {} {}",
            answer.status,
            String::from_utf8_lossy(&answer.body)
        );
        Ok(answer)
    }

    /// Ends a session.
    ///
    /// # Errors
    /// When it is refused.
    pub async fn delete(&self, pool: &str, session: &str) -> Result<()> {
        self.client.ask(Method::DELETE, &format!("/pools/{pool}/sessions/{session}"), "").await.map(drop)
    }

    /// What a pool says of itself.
    ///
    /// # Errors
    /// When it is refused.
    pub async fn pool(&self, pool: &str) -> Result<Value> {
        let answer = self.client.ask(Method::GET, &format!("/pools/{pool}"), "").await?;
        Ok(serde_json::from_slice(&answer.body)?)
    }

    /// Waits until a pool's reservoir is full and nothing is being made.
    ///
    /// # Errors
    /// When that takes too long; with what the pool says.
    pub async fn full(&self, pool: &str) -> Result<()> {
        let begun = Instant::now();
        loop {
            let found = self.pool(pool).await?;
            if found["isReady"] == true && found["booting"] == 0 {
                return Ok(());
            }
            ensure!(begun.elapsed() < FULL_LIMIT, "the pool {pool} did not become full: {found}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Waits until a pool has no sessions.
    ///
    /// # Errors
    /// When that takes too long.
    pub async fn empty(&self, pool: &str) -> Result<()> {
        let begun = Instant::now();
        while self.pool(pool).await?["sessions"] != 0 {
            ensure!(begun.elapsed() < FULL_LIMIT, "the pool {pool} did not become empty");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        Ok(())
    }

    /// The directories of its sandboxes' control groups, of every controller.
    #[must_use]
    pub fn groups(&self) -> Vec<PathBuf> {
        let mut found = Vec::new();
        for own in self.group_roots() {
            for entry in std::fs::read_dir(own).into_iter().flatten().flatten() {
                if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                    found.push(entry.path());
                }
            }
        }
        found
    }

    /// The processes in its sandboxes' control groups.
    #[must_use]
    pub fn sandboxed(&self) -> BTreeSet<i32> {
        let pids =
            self.groups().into_iter().filter_map(|group| std::fs::read_to_string(group.join("cgroup.procs")).ok());
        pids.flat_map(|text| text.lines().filter_map(|line| line.parse().ok()).collect::<Vec<_>>()).collect()
    }

    /// Its state directory.
    #[must_use]
    pub fn home(&self) -> &Path {
        self.running.home.path()
    }

    /// Where its control groups are: the directories that bear the name of its state directory.
    #[must_use]
    pub fn group_roots(&self) -> Vec<PathBuf> {
        use std::os::unix::fs::MetadataExt;
        let Ok(home) = std::fs::metadata(self.running.home.path()) else { return Vec::new() };
        let name = format!("sandpool-{:x}-{:x}", home.dev(), home.ino());
        let mut found = Vec::new();
        let mut levels = vec![(PathBuf::from("/sys/fs/cgroup"), 0)];
        while let Some((directory, depth)) = levels.pop() {
            for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
                if !entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                    continue;
                }
                if entry.file_name() == name.as_str() {
                    found.push(entry.path());
                } else if depth < 4 && !entry.file_name().to_string_lossy().starts_with("sandpool-") {
                    levels.push((entry.path(), depth + 1));
                }
            }
        }
        found
    }
}

impl Running {
    fn begin_and_end(&self) -> Result<()> {
        let ended = self.command(&["--version"]).stdout(Stdio::null()).status()?;
        ensure!(ended.success(), "the program does not say its version: {ended}");
        Ok(())
    }

    fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        // Nothing of the caller's environment points anywhere else.
        for name in ["SANDPOOL_ENDPOINT", "SANDPOOL_TOKEN", "SANDPOOL_IMAGES"] {
            command.env_remove(name);
        }
        command.arg("--home").arg(self.home.path()).args(words).stdin(Stdio::null());
        command
    }

    fn output(&self, words: &[&str]) -> Result<Output> {
        let output = self.command(words).output()?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "{} {}: {}", self.program.display(), words.join(" "), said.trim());
        Ok(output)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(mut starting) = self.starting.take() {
            // It was interrupted while it waited for the pools: its child is the launcher, which it would leave behind.
            let children = format!("/proc/{0}/task/{0}/children", starting.id());
            let children = std::fs::read_to_string(children).unwrap_or_default();
            for child in children.split_whitespace().filter_map(|pid| pid.parse().ok()) {
                if let Some(child) = rustix::process::Pid::from_raw(child) {
                    let _ = rustix::process::kill_process(child, rustix::process::Signal::TERM);
                }
            }
            let _ = starting.wait();
        }
        if !self.home.path().join("run/server.json").exists() {
            // It ended by itself, or before it began.
            return;
        }
        // What it says is for whoever sees it.
        let stopped = self.command(&["down", "--timeout", "30"]).stdout(Stdio::null()).status();
        if !stopped.is_ok_and(|status| status.success()) {
            eprintln!("the server on {} could not be stopped", self.home.path().display());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_configuration_says_what_the_scenario_needs() {
        expect_test::expect![[r#"
            listen: 127.0.0.1:0
            pools:
              - metadata: { name: python }
                spec:
                  containerType: PythonLTS
                  scaleConfiguration: { maxConcurrentSessions: 250, readySessionInstances: 64 }
                  dynamicPoolConfiguration: { lifecycleConfiguration: { cooldownPeriodInSeconds: 86400 } }
              - metadata: { name: node }
                spec:
                  containerType: NodeLTS
                  scaleConfiguration: { maxConcurrentSessions: 250, readySessionInstances: 2 }
                  dynamicPoolConfiguration: { lifecycleConfiguration: { cooldownPeriodInSeconds: 86400 } }
              - metadata: { name: shell }
                spec:
                  containerType: Shell
                  scaleConfiguration: { maxConcurrentSessions: 250, readySessionInstances: 2 }
                  dynamicPoolConfiguration: { lifecycleConfiguration: { cooldownPeriodInSeconds: 86400 } }
        "#]]
        .assert_eq(&Setting { python: 64, ..Setting::PLAIN }.yaml());
    }
}
