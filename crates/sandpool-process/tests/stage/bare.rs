//! Bare sandboxes under test: a driver over a real launcher, without the layers above.

use std::error::Error;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use sandpool_core::ids::SandboxId;
use sandpool_driver::contract::Harness;
use sandpool_driver::{Change, Driver, Phase, Template};
use sandpool_wire::agent::{Call, Event, Execute, FromAgent, Stdin, ToAgent, Work};
use sandpool_wire::frame;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

pub(crate) type Outcome<T> = Result<T, Box<dyn Error>>;

/// Kills, for the server that may not, the first processes of all sandboxes, whenever it is asked to; `look` is what it does when it is
/// asked with `?`.
pub(crate) fn killer(look: impl Fn() -> Outcome<()>) -> Outcome<()> {
    let mut asked = UnixStream::from(rustix::stdio::stdin().try_clone_to_owned()?);
    let launcher = rustix::process::getppid().map(|pid| pid.as_raw_nonzero().get()).ok_or("no launcher")?;
    let me = rustix::process::getpid().as_raw_nonzero().get();
    let mut word = [0];
    while asked.read(&mut word)? == 1 {
        if word == *b"?" {
            look()?;
            asked.write_all(b"!")?;
            continue;
        }
        let mut killed = Vec::new();
        for entry in std::fs::read_dir("/proc")?.flatten() {
            let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else { continue };
            let stat = std::fs::read_to_string(entry.path().join("stat")).unwrap_or_default();
            let parent = stat.rsplit(')').next().and_then(|rest| rest.split_whitespace().nth(1)?.parse().ok());
            let arguments = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
            let is_server = arguments.split(|byte| *byte == 0).nth(1) == Some(b"server");
            if parent == Some(launcher) && pid != me && !is_server {
                let pid = rustix::process::Pid::from_raw(pid).ok_or("no process")?;
                // It may have ended by itself.
                let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
                killed.push(entry.path());
            }
        }
        // Until the launcher knows: it must not give out a sandbox made ahead that is at its end.
        while killed.iter().any(|process| process.exists()) {
            std::thread::sleep(Duration::from_millis(1));
        }
        asked.write_all(b"!")?;
    }
    Ok(())
}

/// The contract's way to real sandboxes.
pub(crate) struct Real {
    pub(crate) driver: Arc<dyn Driver>,
    pub(crate) template: Template,
    pub(crate) killer: UnixStream,
}

#[async_trait::async_trait]
impl Harness for Real {
    fn driver(&self) -> Arc<dyn Driver> {
        Arc::clone(&self.driver)
    }

    fn template(&self) -> Template {
        self.template.clone()
    }

    fn endless(&self) -> Work {
        Work::Shell { command: "echo on; exec sleep 1000".to_owned(), stdin: Stdin::Empty }
    }

    fn changes_kept(&self) -> usize {
        4096
    }

    async fn kill(&self, _id: SandboxId) {
        let mut killer = &self.killer;
        killer.write_all(b"!").expect("the killer listens");
        killer.read_exact(&mut [0]).expect("the killer has done it");
    }
}

pub(crate) fn id(number: u8) -> SandboxId {
    SandboxId([number; 16])
}

pub(crate) async fn ready(
    driver: &dyn Driver,
    watch: &mut tokio::sync::broadcast::Receiver<Change>,
    which: SandboxId,
) -> Outcome<()> {
    loop {
        if driver.list().await?.iter().any(|sandbox| sandbox.id == which && sandbox.phase == Phase::Ready) {
            return Ok(());
        }
        match tokio::time::timeout(Duration::from_secs(60), watch.recv()).await?? {
            Change::Gone { id, reason } if id == which => return Err(format!("it is gone: {reason:?}").into()),
            _ => {}
        }
    }
}

/// Runs a command; answers its standard output once it has ended.
pub(crate) async fn shell(driver: &dyn Driver, which: SandboxId, command: &str) -> Outcome<String> {
    said(driver, which, Work::Shell { command: command.to_owned(), stdin: Stdin::Empty }).await
}

/// Runs code; answers what it printed once it has ended.
#[allow(dead_code, reason = "not every test has an interpreter")]
pub(crate) async fn code(driver: &dyn Driver, which: SandboxId, code: &str) -> Outcome<String> {
    said(driver, which, Work::Code { code: code.to_owned(), fresh: false }).await
}

async fn said(driver: &dyn Driver, which: SandboxId, work: Work) -> Outcome<String> {
    let mut stream = driver.dial(which).await?;
    // Each its own: the same again would be the one before.
    static RUNS: AtomicU64 = AtomicU64::new(1);
    let run = u128::from(RUNS.fetch_add(1, Ordering::Relaxed));
    let execute = Execute { exec: run.to_le_bytes(), work, timeout_ms: 30_000, output_limit: 1 << 20 };
    let call = ToAgent::Call { request: 1, call: Call::Execute(execute) };
    stream.write_all(&frame::encode(&call)?).await?;
    let mut out = Vec::new();
    loop {
        let mut header = [0; frame::HEADER];
        stream.read_exact(&mut header).await?;
        let mut body = vec![0; frame::body_length(header)?];
        stream.read_exact(&mut body).await?;
        match frame::decode::<FromAgent>(&body)? {
            FromAgent::Event { event: Event::Stdout(data) | Event::Stderr(data), .. } => out.extend(data),
            FromAgent::Event { event: Event::Finished { .. }, .. } => return Ok(String::from_utf8(out)?),
            FromAgent::Reply { result: Err(refusal), .. } => return Err(refusal.into()),
            _ => {}
        }
    }
}
