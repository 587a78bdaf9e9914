//! What reads an image's archives and layers: a process of its own, behind walls, that is told what to do on its standard input and answers
//! in lines on its standard output.
//!
//! ```text
//! sandpool image pull | import, the puller  --Task, JSON-->  sandpool __unpack  --Said, JSON lines-->  ...
//! ```

use std::cell::Cell;
use std::io::{BufRead, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Resource, Rlimit};
use sandpool_oci::blobs::Blobs;
use sandpool_oci::registry::{self, Access, Credentials, Progress};
use sandpool_oci::signature::Key;
use sandpool_oci::unpack::{Limits, Unpacked, has_program, make_inside, unpack, write_inside};
use sandpool_oci::{Bundle, Layer};
use serde::{Deserialize, Serialize};

use crate::failure::Failure;

/// The longest task, in bytes, and the longest line of an answer: a manifest's worth.
const MAX_TASK: u64 = 16 << 20;

/// Memory that it may use, in bytes.
const MEMORY: u64 = 2 << 30;

/// What an image says its programs need; agents look for it.
const IMAGE_FILE: &str = "etc/sandpool-image.json";

/// What to do.
#[derive(Serialize, Deserialize)]
pub(crate) enum Task {
    /// Takes an image out of an archive into the blobs.
    Import { path: PathBuf, wanted: Option<String>, blobs: PathBuf, most: u64 },
    /// Gets an image's parts from its registry into the blobs.
    Fetch {
        reference: String,
        credentials: Option<(String, String)>,
        /// What it must be signed with (PEM).
        key: Option<String>,
        blobs: PathBuf,
        most: u64,
    },
    /// Unpacks layers into an empty directory.
    Unpack { blobs: PathBuf, layers: Vec<Layer>, root: PathBuf, limits: Limits, env: Vec<(String, String)> },
}

/// What came of it, or how far it is.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Said {
    /// This layer is next.
    Layer(usize),
    /// So many bytes are to come.
    Total(u64),
    /// So many more are here.
    Came(u64),
    Imported(Bundle),
    Unpacked {
        what: Unpacked,
        shell: Option<String>,
    },
    Failed(String),
}

/// The process itself.
pub(crate) fn run() -> ExitCode {
    let say = |said: &Said| {
        let mut line = serde_json::to_vec(said).unwrap_or_default();
        line.push(b'\n');
        // Nobody is left to hear it when this fails.
        let _ = std::io::stdout().write_all(&line).and_then(|()| std::io::stdout().flush());
    };
    let said = work(&say).unwrap_or_else(|error| Said::Failed(error.to_string()));
    say(&said);
    ExitCode::SUCCESS
}

fn work(say: &dyn Fn(&Said)) -> anyhow::Result<Said> {
    // With whoever started it ends what it was started for.
    rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))?;
    let mut task = Vec::new();
    std::io::stdin().take(MAX_TASK).read_to_end(&mut task)?;
    let task: Task = serde_json::from_slice(&task)?;
    let limit = Rlimit { current: Some(MEMORY), maximum: Some(MEMORY) };
    rustix::process::setrlimit(Resource::As, limit)?;
    match task {
        Task::Import { path, wanted, blobs, most } => {
            sandpool_process::confine(&[&path], &[&blobs])?;
            let blobs = Blobs::open(&blobs)?;
            let bundle = sandpool_oci::archive::import(&path, wanted.as_deref(), &blobs, most)?;
            Ok(Said::Imported(bundle))
        }
        Task::Fetch { reference, credentials, key, blobs, most } => {
            sandpool_process::confine_proxy(&blobs)?;
            let credentials =
                credentials.map_or(Credentials::None, |(user, password)| Credentials::Basic(user, password));
            let key = key.as_deref().map(Key::parse).transpose()?;
            let access = Access { credentials, key, ..Access::default() };
            let blobs = Blobs::open(&blobs)?;
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            Ok(Said::Imported(runtime.block_on(fetched(&reference, &access, &blobs, most, say))?))
        }
        Task::Unpack { blobs, layers, root, limits, env } => {
            // Its own descriptors, by which a directory is named that is being removed.
            let reads = [blobs.as_path(), Path::new("/proc/self")];
            sandpool_process::confine(&reads, &[&root])?;
            let blobs = Blobs::open(&blobs)?;
            let what = unpack(&blobs, &layers, &root, limits, |layer| say(&Said::Layer(layer)))?;
            make_inside(&root, "usr")?;
            let shell = ["bash", "sh"].into_iter().find(|shell| has_program(&root, &format!("bin/{shell}")));
            let env: std::collections::BTreeMap<_, _> = env.into_iter().collect();
            // Without a version: the shell is asked itself.
            let about = serde_json::json!({ "runtime": "shell", "env": env });
            write_inside(&root, IMAGE_FILE, format!("{about:#}\n").as_bytes())?;
            Ok(Said::Unpacked { what, shell: shell.map(str::to_owned) })
        }
    }
}

/// How long a registry may say nothing.
const SILENCE: Duration = Duration::from_secs(60);

struct Coming<'a> {
    say: &'a dyn Fn(&Said),
    heard: Cell<Instant>,
}

impl Progress for Coming<'_> {
    fn total(&self, bytes: u64, _: usize) {
        self.heard.set(Instant::now());
        (self.say)(&Said::Total(bytes));
    }

    fn came(&self, bytes: u64) {
        self.heard.set(Instant::now());
        (self.say)(&Said::Came(bytes));
    }
}

async fn fetched(
    reference: &str,
    access: &Access,
    blobs: &Blobs,
    most: u64,
    say: &dyn Fn(&Said),
) -> anyhow::Result<Bundle> {
    let coming = Coming { say, heard: Cell::new(Instant::now()) };
    let silence = async {
        while coming.heard.get().elapsed() < SILENCE {
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    };
    tokio::select! {
        bundle = registry::pull(reference, access, blobs, most, &coming) => Ok(bundle?),
        () = silence => anyhow::bail!("the registry has said nothing for {} s", SILENCE.as_secs()),
    }
}

/// Has a task done. `heard` is told how far it is.
pub(crate) fn have_done(task: &Task, mut heard: impl FnMut(&Said)) -> Result<Said, Failure> {
    let what = match task {
        Task::Fetch { .. } => "the image cannot be fetched",
        Task::Import { .. } | Task::Unpack { .. } => "the image cannot be unpacked",
    };
    let failed = |why: &dyn std::fmt::Display| Failure::new(what).because(why);
    let program = std::env::current_exe().map_err(|error| failed(&error))?;
    // Whoever fetches may have to go through a proxy.
    const PASSED: [&str; 7] =
        ["HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "https_proxy", "NO_PROXY", "no_proxy", "ALL_PROXY"];
    let passed = PASSED.iter().filter(|_| matches!(task, Task::Fetch { .. }));
    let mut child = Command::new(program)
        .arg("__unpack")
        .env_clear()
        .envs(passed.filter_map(|name| Some((name, std::env::var_os(name)?))))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .map_err(|error| failed(&error))?;
    let task = serde_json::to_vec(task).map_err(|error| failed(&error))?;
    if let Some(mut stdin) = child.stdin.take() {
        // What it did not read it says nothing about: then its end says why.
        let _ = stdin.write_all(&task);
    }
    let mut last = None;
    if let Some(stdout) = child.stdout.take() {
        let mut lines = std::io::BufReader::new(stdout);
        let mut line = Vec::new();
        loop {
            line.clear();
            let count = (&mut lines).take(MAX_TASK).read_until(b'\n', &mut line).map_err(|error| failed(&error))?;
            if count == 0 {
                break;
            }
            match serde_json::from_slice(&line) {
                Ok(said @ (Said::Layer(_) | Said::Total(_) | Said::Came(_))) => heard(&said),
                Ok(said) => last = Some(said),
                Err(_) => break,
            }
        }
    }
    let ended = child.wait().map_err(|error| failed(&error))?;
    match last {
        Some(Said::Failed(why)) if why.contains("too large") => {
            Err(failed(&why).advise("--max-size SIZE, if it may be that large"))
        }
        Some(Said::Failed(why)) => Err(failed(&why)),
        Some(said) => Ok(said),
        // Such as for want of memory, with which it was made to work.
        None => Err(failed(&format!(
            "it was given up ({ended}): its archive needs more than {} MiB to be read",
            MEMORY >> 20
        ))),
    }
}
