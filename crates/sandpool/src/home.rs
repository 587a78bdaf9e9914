//! The state directory: what is where, who owns it, and who runs on it.
//!
//! ```text
//! <home>/                 root's
//!   lock                  held by the launcher for its whole life
//!   run/                  root's: server.json (who runs here, at which address), plan.json (what it was told)
//!   keys/                 the server's, for nobody else: signing keys, secrets
//!   tls/                  the server's: the local authority and its certificate
//!   state/                the server's, for nobody else: sandpool.db, what must be known after a restart
//!   images/               root's: the image store
//!   log/server.log        of `up --detach`
//!   egress/               the egress proxy's: its record of decisions, and secrets' values while it runs
//! ```
//!
//! `run/` is root's, so that `down` can believe what it reads there.

use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::failure::Failure;

/// A state directory.
#[derive(Clone, Debug)]
pub(crate) struct Home(PathBuf);

/// Who runs on a state directory, and where it listens.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ServerRecord {
    /// `http://ADDR:PORT`, reachable from this machine.
    pub(crate) endpoint: String,
    /// The same of the TLS listener.
    pub(crate) https_endpoint: Option<String>,
    /// The launcher, parent of all its processes.
    #[serde(flatten)]
    pub(crate) launcher: Process,
    /// The version of its program.
    pub(crate) version: String,
}

/// One process for ever: a pid alone may be used again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Process {
    /// Its pid.
    pub(crate) pid: i32,
    /// When it started, in clock ticks after boot.
    pub(crate) start_time: u64,
}

impl Process {
    /// This one.
    pub(crate) fn current() -> io::Result<Self> {
        let pid = rustix::process::getpid().as_raw_nonzero().get();
        let start_time = start_time(pid).ok_or_else(|| io::Error::other("/proc does not show this process"))?;
        Ok(Self { pid, start_time })
    }

    /// It has ended.
    pub(crate) fn is_gone(self) -> bool {
        start_time(self.pid) != Some(self.start_time)
    }
}

impl Home {
    /// The one that was asked for, else the user's own.
    pub(crate) fn find(asked: Option<&Path>) -> Result<Self, Failure> {
        if let Some(asked) = asked {
            let absolute = std::path::absolute(asked)
                .map_err(|error| Failure::usage(format!("--home {}: not a path", asked.display())).because(error))?;
            return Ok(Self(absolute));
        }
        if rustix::process::geteuid().is_root() {
            return Ok(Self("/var/lib/sandpool".into()));
        }
        let data = std::env::var_os("XDG_DATA_HOME").filter(|data| !data.is_empty()).map(PathBuf::from);
        let user = std::env::var_os("HOME").filter(|home| !home.is_empty()).map(PathBuf::from);
        data.or_else(|| user.map(|user| user.join(".local/share")))
            .map(|data| Self(data.join("sandpool")))
            .ok_or_else(|| Failure::usage("no state directory: HOME is not set").advise("give --home DIR"))
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }

    pub(crate) fn keys(&self) -> PathBuf {
        self.0.join("keys")
    }

    pub(crate) fn state(&self) -> PathBuf {
        self.0.join("state")
    }

    pub(crate) fn tls(&self) -> PathBuf {
        self.0.join("tls")
    }

    pub(crate) fn run(&self) -> PathBuf {
        self.0.join("run")
    }

    pub(crate) fn images(&self) -> PathBuf {
        self.0.join("images")
    }

    pub(crate) fn log(&self) -> PathBuf {
        self.0.join("log/server.log")
    }

    pub(crate) fn egress(&self) -> PathBuf {
        self.0.join("egress")
    }

    pub(crate) fn plan(&self) -> PathBuf {
        self.run().join("plan.json")
    }

    pub(crate) fn server_record_path(&self) -> PathBuf {
        self.run().join("server.json")
    }

    pub(crate) fn lock_path(&self) -> PathBuf {
        self.0.join("lock")
    }

    /// The flag to give so that another command means the same directory; empty for the default one.
    pub(crate) fn flag(&self) -> String {
        match Self::find(None) {
            Ok(default) if default.0 == self.0 => String::new(),
            _ => format!(" --home {}", quoted(&self.0.to_string_lossy())),
        }
    }

    /// Who runs on this directory, if that process is alive.
    pub(crate) fn server(&self) -> Option<ServerRecord> {
        let text = read_small(&self.server_record_path())?;
        let record: ServerRecord = serde_json::from_str(&text).ok()?;
        (!record.launcher.is_gone()).then_some(record)
    }
}

/// `text` as one word of a shell.
pub(crate) fn quoted(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "_-./:=@%+,".contains(c);
    if !text.is_empty() && text.chars().all(plain) {
        text.to_owned()
    } else {
        format!("'{}'", text.replace('\'', r"'\''"))
    }
}

/// When a process started, in clock ticks after boot; `None` if there is none, or it is only waiting to be reaped.
pub(crate) fn start_time(pid: i32) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name in parentheses may contain anything; the fields follow its last parenthesis.
    let mut fields = stat.get(stat.rfind(')')? + 2..)?.split(' ');
    let state = fields.next()?;
    (!matches!(state, "Z" | "X")).then(|| fields.nth(18)?.parse().ok())?
}

/// A file's text, if it is a small one.
fn read_small(path: &Path) -> Option<String> {
    use std::io::Read;
    let mut text = String::new();
    std::fs::File::open(path).ok()?.take(1 << 20).read_to_string(&mut text).ok()?;
    Some(text)
}

/// Replaces a file as a whole: a reader sees the old text or the new one.
pub(crate) fn write_atomically(path: &Path, text: &str, mode: u32, group: Option<u32>) -> io::Result<()> {
    use std::io::Write;
    let directory = path.parent().unwrap_or(Path::new("."));
    let mut file = tempfile::NamedTempFile::new_in(directory)?;
    file.write_all(text.as_bytes())?;
    if let Some(gid) = group {
        std::os::unix::fs::fchown(file.as_file(), None, Some(gid))?;
    }
    file.as_file().set_permissions(std::fs::Permissions::from_mode(mode))?;
    file.as_file().sync_all()?;
    file.persist(path).map_err(|error| error.error)?;
    Ok(())
}

/// Makes a directory, with this mode and owner. An existing one gets them too.
pub(crate) fn make_directory(path: &Path, mode: u32, owner: Option<(u32, u32)>) -> io::Result<()> {
    std::fs::create_dir_all(path)?;
    let found = std::fs::symlink_metadata(path)?;
    if !found.is_dir() {
        return Err(io::Error::new(io::ErrorKind::NotADirectory, format!("{} is not a directory", path.display())));
    }
    if let Some((uid, gid)) = owner.filter(|owner| *owner != (found.uid(), found.gid())) {
        std::os::unix::fs::lchown(path, Some(uid), Some(gid))?;
    }
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))
}

/// Gives what root made in a directory of the server's to the server. Links are not followed.
pub(crate) fn give_away(directory: &Path) -> io::Result<()> {
    let owner = std::fs::symlink_metadata(directory)?;
    for entry in std::fs::read_dir(directory)? {
        let entry = entry?;
        let found = std::fs::symlink_metadata(entry.path())?;
        if found.is_file() && (found.uid(), found.gid()) != (owner.uid(), owner.gid()) {
            std::os::unix::fs::lchown(entry.path(), Some(owner.uid()), Some(owner.gid()))?;
        }
    }
    Ok(())
}

/// Takes the directory's lock; `None` if another process has it. It is held until the file is dropped.
pub(crate) fn lock(home: &Home) -> io::Result<Option<std::fs::File>> {
    let file = std::fs::OpenOptions::new().create(true).truncate(false).write(true).open(home.lock_path())?;
    match file.try_lock() {
        Ok(()) => Ok(Some(file)),
        Err(std::fs::TryLockError::WouldBlock) => Ok(None),
        Err(std::fs::TryLockError::Error(error)) => Err(error),
    }
}

/// Waits until `done` is true, or `limit` has passed; says which.
pub(crate) fn wait_until(limit: Duration, mut done: impl FnMut() -> bool) -> bool {
    let start = std::time::Instant::now();
    loop {
        if done() {
            return true;
        }
        if start.elapsed() >= limit {
            return false;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_known_by_its_start_time() {
        let me = i32::try_from(std::process::id()).unwrap();
        assert!(start_time(me).is_some_and(|ticks| ticks > 0));
        assert_eq!(start_time(i32::MAX), None);
        let mut child = std::process::Command::new("true").spawn().unwrap();
        let pid = i32::try_from(child.id()).unwrap();
        // It becomes a zombie without being waited for, and is then no process any more.
        assert!(wait_until(Duration::from_secs(10), || start_time(pid).is_none()));
        child.wait().unwrap();
    }

    #[test]
    fn a_stale_record_names_nobody() {
        let directory = tempfile::tempdir().unwrap();
        let home = Home::find(Some(directory.path())).unwrap();
        assert_eq!(home.server(), None);
        std::fs::create_dir(home.run()).unwrap();
        let me = Process::current().unwrap();
        let write = |launcher| {
            let record =
                ServerRecord { endpoint: "http://x".into(), https_endpoint: None, launcher, version: "1".into() };
            let text = serde_json::to_string(&record).unwrap();
            write_atomically(&home.server_record_path(), &text, 0o644, None).unwrap();
        };
        write(Process { start_time: 1, ..me });
        assert_eq!(home.server(), None, "the pid is alive, but it is another process");
        write(me);
        assert_eq!(home.server().map(|record| record.launcher), Some(me));
    }

    #[test]
    fn one_process_has_the_lock() {
        let directory = tempfile::tempdir().unwrap();
        let home = Home::find(Some(directory.path())).unwrap();
        let first = lock(&home).unwrap();
        assert!(first.is_some());
        assert!(lock(&home).unwrap().is_none());
        drop(first);
        assert!(lock(&home).unwrap().is_some());
    }

    #[test]
    fn words_are_quoted_for_a_shell() {
        assert_eq!(quoted("/var/lib/sandpool"), "/var/lib/sandpool");
        assert_eq!(quoted("it's here"), r"'it'\''s here'");
        assert_eq!(quoted(""), "''");
    }
}
