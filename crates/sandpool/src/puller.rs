//! Who gets images for pools that are applied while a server runs: a process of root's beside the launcher, since the server may not write
//! images. It takes its orders from the server alone, and reads no byte of a registry or an image itself.
//!
//! ```text
//! server --Order, one JSON line, over <home>/run/pull.sock--> puller --Task--> __unpack, behind walls: fetches | unpacks
//!        <--News, JSON lines--
//! ```

use std::cell::Cell;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Component, Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use rustix::fs::{Mode, OFlags};
use sandpool_image::Store;
use sandpool_oci::blobs::Blobs;
use sandpool_oci::registry;
use sandpool_vm::found::Wanted;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use tracing::{error, info};

use crate::commands::foreign::{self, BLOBS};
use crate::commands::image::explain;
use crate::failure::Failure;
use crate::home::Home;
use crate::unpack::{Said, Task, have_done};

/// The socket, in the directory of a server's run files.
const SOCKET: &str = "pull.sock";

/// The longest order and the longest news, in bytes.
const MAX_LINE: u64 = 64 << 10;

/// Orders at the same time, besides which others wait.
const AT_ONCE: usize = 4;

/// The most that one part of an image may have, and all its files together, in bytes: as for `image pull`.
const MOST: u64 = 16 << 30;

/// What to do.
#[derive(Serialize, Deserialize)]
enum Order {
    /// To get an image.
    Pull {
        reference: String,
        credentials: Option<(String, String)>,
        /// What it must be signed with (PEM).
        key: Option<String>,
    },
    /// To prepare machines of this image.
    Machines {
        /// Its root file system.
        rootfs: PathBuf,
    },
}

/// How it goes.
#[derive(Debug, Serialize, Deserialize)]
enum News {
    Came { bytes: u64, of: u64 },
    Done,
    Failed(String),
}

/// Starts it, with the server's user as the only one who is heard. It ends with the calling thread, which becomes the launcher.
///
/// # Errors
/// Where the socket cannot be made, or the process not be started.
pub(crate) fn start(home: &Home, images: &Path, machines: &Wanted, server: (u32, u32)) -> Result<(), Failure> {
    let failed = |error: std::io::Error| Failure::new("what pulls images cannot be started").because(error);
    let listener = listen(&home.run(), server.1).map_err(failed)?;
    let program = std::env::current_exe().map_err(failed)?;
    Command::new(program)
        .arg("--home")
        .arg(home.path())
        .arg("__puller")
        .arg("--images")
        .arg(images)
        .args(["--machines", &serde_json::to_string(machines).map_err(std::io::Error::from).map_err(failed)?])
        .args(["--user", &server.0.to_string()])
        .args(["--parent", &std::process::id().to_string()])
        .stdin(Stdio::from(OwnedFd::from(listener)))
        .stdout(Stdio::null())
        .spawn()
        .map_err(failed)?;
    Ok(())
}

fn listen(directory: &Path, group: u32) -> std::io::Result<UnixListener> {
    let place = Place::open(directory)?;
    match std::fs::remove_file(place.path()) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(place.path())?;
    let socket = directory.join(SOCKET);
    std::os::unix::fs::chown(&socket, Some(0), Some(group))?;
    std::fs::set_permissions(&socket, std::os::unix::fs::PermissionsExt::from_mode(0o660))?;
    Ok(listener)
}

/// The socket's directory, open: a path below it is short, whatever the home's is.
struct Place(OwnedFd);

impl Place {
    fn open(directory: &Path) -> std::io::Result<Self> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(Self(rustix::fs::open(directory, flags, Mode::empty())?))
    }

    fn path(&self) -> PathBuf {
        PathBuf::from(format!("/proc/self/fd/{}/{SOCKET}", self.0.as_raw_fd()))
    }
}

/// The process itself.
pub(crate) fn run(images: &Path, machines: &str, user: u32, parent: i32) -> ExitCode {
    let Ok(wanted) = serde_json::from_str::<Wanted>(machines) else { return ExitCode::FAILURE };
    // With the launcher ends all that it has; one that has ended already has another process in its place.
    let ends = rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL));
    let is_there = rustix::process::getppid().is_some_and(|pid| pid.as_raw_nonzero().get() == parent);
    let listener = rustix::stdio::stdin().try_clone_to_owned().map(UnixListener::from);
    let (Ok(()), true, Ok(listener)) = (ends, is_there, listener) else { return ExitCode::FAILURE };
    let busy = Arc::new(AtomicUsize::new(0));
    for stream in listener.incoming() {
        let Ok(stream) = stream else { return ExitCode::FAILURE };
        let asks = rustix::net::sockopt::socket_peercred(stream.as_fd());
        if !asks.is_ok_and(|who| who.uid.as_raw() == user) {
            continue;
        }
        while busy.load(Ordering::SeqCst) >= AT_ONCE {
            std::thread::sleep(std::time::Duration::from_millis(50));
        }
        busy.fetch_add(1, Ordering::SeqCst);
        let (images, wanted, busy) = (images.to_owned(), wanted.clone(), Arc::clone(&busy));
        std::thread::spawn(move || {
            serve(&images, &wanted, &stream);
            busy.fetch_sub(1, Ordering::SeqCst);
        });
    }
    ExitCode::SUCCESS
}

fn serve(images: &Path, wanted: &Wanted, stream: &UnixStream) {
    let mut line = Vec::new();
    let read = BufReader::new(stream.take(MAX_LINE)).read_until(b'\n', &mut line);
    let order = read.ok().and_then(|_| serde_json::from_slice::<Order>(&line).ok());
    let Some(order) = order else { return };
    let told = |news: &News| say(stream, news);
    let (what, done) = match order {
        Order::Pull { reference, credentials, key } => {
            let pulled = get(images, &reference, credentials, key, &told);
            (format!("pulling {reference}"), pulled)
        }
        Order::Machines { rootfs } => (format!("machines of {}", rootfs.display()), prepare(images, &rootfs, wanted)),
    };
    let news = match done {
        Ok(name) => {
            info!(image = name, "{what}: done");
            News::Done
        }
        Err(failure) => {
            let lines = failure.to_string();
            let words = lines.lines().map(|line| {
                let line = line.trim();
                ["error: ", "because: "].iter().find_map(|word| line.strip_prefix(word)).unwrap_or(line)
            });
            let why: String = words.collect::<Vec<_>>().join(": ").chars().take(4_000).collect();
            error!("{what}: {why}");
            News::Failed(why)
        }
    };
    told(&news);
}

fn say(mut stream: &UnixStream, news: &News) {
    let mut line = serde_json::to_vec(news).unwrap_or_default();
    line.push(b'\n');
    // The server may have ended: its next one asks again.
    let _ = stream.write_all(&line);
}

/// Makes machines of an image possible. Answers the image's digest.
fn prepare(images: &Path, rootfs: &Path, wanted: &Wanted) -> Result<String, Failure> {
    // The server names it, which is not trusted with more than what images are.
    let inside = rootfs.strip_prefix(images).ok().map(|inside| inside.components().collect::<Vec<_>>());
    let digest = match inside.as_deref() {
        Some([Component::Normal(digest), Component::Normal(root)]) if *root == "rootfs" => digest.to_string_lossy(),
        _ => return Err(Failure::new(format!("{} is no image", rootfs.display()))),
    };
    machines(images, &[rootfs], wanted)?;
    Ok(digest.into_owned())
}

/// Prepares what machines of these images need and is not there yet.
pub(crate) fn machines(images: &Path, rootfs: &[&Path], wanted: &Wanted) -> Result<(), Failure> {
    let prepared = sandpool_vm::build::prepare(images, rootfs, crate::AGENT, wanted);
    prepared.map(drop).map_err(|error| Failure::new("machines cannot be prepared").because(error))
}

fn get(
    images: &Path,
    reference: &str,
    credentials: Option<(String, String)>,
    key: Option<String>,
    told: &dyn Fn(&News),
) -> Result<String, Failure> {
    let parsed = registry::parse(reference).map_err(foreign::explain_oci)?;
    let store = Store::open(images).map_err(explain)?;
    let name = match store.meant(reference).map_err(explain)? {
        Some(image) => image.name,
        None => named(reference, parsed.repository())?,
    };
    let blobs = store.directory().join(BLOBS);
    let _lock = Blobs::open(&blobs).and_then(|blobs| blobs.lock()).map_err(foreign::explain_oci)?;
    let (came, total, told_at) = (Cell::new(0), Cell::new(0), Cell::new(0));
    let task = Task::Fetch { reference: reference.to_owned(), credentials, key, blobs, most: MOST };
    let done = have_done(&task, |said| match said {
        Said::Total(bytes) => total.set(*bytes),
        Said::Came(bytes) => {
            came.set(came.get() + bytes);
            // A hundred steps are enough for anybody.
            if came.get() - told_at.get() >= total.get() / 100 {
                told_at.set(came.get());
                told(&News::Came { bytes: came.get(), of: total.get() });
            }
        }
        _ => {}
    })?;
    let Said::Imported(bundle) = done else { return Err(Failure::new("nothing was fetched")) };
    foreign::keep(&store, &name, bundle, MOST)?;
    Ok(name)
}

/// An image's name for a reference that nobody has named: the last part of its repository, and what tells it from others like it.
fn named(reference: &str, repository: &str) -> Result<String, Failure> {
    let last: String =
        foreign::name_of(None, repository).unwrap_or_else(|_| "image".to_owned()).chars().take(50).collect();
    let own = hex::encode(&Sha256::digest(reference)[..4]);
    foreign::name_of(Some(&format!("{last}-{own}")), repository)
}

/// Has an image pulled; for the server. `progress` hears how many bytes are here, and of how many. Waits.
///
/// # Errors
/// Why it is not here, as a sentence's rest.
pub(crate) fn pull(
    run: &Path,
    reference: &str,
    credentials: Option<(String, String)>,
    key: Option<&str>,
    progress: &dyn Fn(u64, u64),
) -> Result<(), String> {
    let order = Order::Pull { reference: reference.to_owned(), credentials, key: key.map(str::to_owned) };
    have(run, &order, progress)
}

/// Has machines of an image prepared; for the server. Waits.
///
/// # Errors
/// Why they cannot be.
pub(crate) fn prepare_machines(run: &Path, rootfs: &Path) -> Result<(), String> {
    have(run, &Order::Machines { rootfs: rootfs.to_owned() }, &|_, _| {})
}

fn have(run: &Path, order: &Order, progress: &dyn Fn(u64, u64)) -> Result<(), String> {
    let gone = |error: std::io::Error| format!("what pulls images does not answer ({error}): start the server again");
    let place = Place::open(run).map_err(gone)?;
    let stream = UnixStream::connect(place.path()).map_err(gone)?;
    let mut line = serde_json::to_vec(order).map_err(|error| error.to_string())?;
    line.push(b'\n');
    (&stream).write_all(&line).map_err(gone)?;
    let mut lines = BufReader::new(&stream);
    loop {
        let mut line = Vec::new();
        let count = (&mut lines).take(MAX_LINE).read_until(b'\n', &mut line).map_err(gone)?;
        if count == 0 {
            return Err(gone(std::io::ErrorKind::UnexpectedEof.into()));
        }
        match serde_json::from_slice(&line).map_err(|error| error.to_string())? {
            News::Came { bytes, of } => progress(bytes, of),
            News::Done => return Ok(()),
            News::Failed(why) => return Err(why),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_that_nobody_has_named_have_names_of_their_own() {
        let name = |reference: &str, repository: &str| named(reference, repository).unwrap();
        let one = name("reg.test/team/Web.App:1", "team/Web.App");
        assert!(one.starts_with("web-app-") && one.len() == 16, "{one}");
        assert_ne!(one, name("reg.test/other/web.app:1", "other/web.app"));
        assert_ne!(name("reg.test/python:3", "python"), "python", "the name of a recipe's");
        assert!(name(&format!("reg.test/{}:1", "a".repeat(200)), &"a".repeat(200)).len() <= 63);
    }
}
