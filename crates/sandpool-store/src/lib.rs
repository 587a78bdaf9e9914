//! Durable state: sessions that were there, their executions, pools, and the journal, in one embedded database; and snapshots of sessions
//! beside it, in directories ([`snapshots`]).
//!
//! ```text
//! server's threads --(channel)--> one writer thread --(a transaction for all that came meanwhile)--> SQLite, WAL
//!                                                                                                      |
//! looked up, rarely, on a thread for blocking work <---------- a second connection --------------------'
//! ```
//!
//! One truth for each fact: which sandbox belongs to which session is the launcher's to say, and what a live execution does is
//! its agent's. What is here is what nobody else would know any more: that a session was there whose sandbox is gone, what
//! came of the executions in it, which pools were applied, and who did what. What is written survives the end of any of our processes at once,
//! and the end of the machine up to its last moments (WAL, `synchronous = NORMAL`); neither leaves anything half written.

pub mod chain;
mod read;
mod schema;
pub mod snapshots;
pub mod trail;
mod write;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rusqlite::Connection;
use sandpool_core::ids::{ExecutionId, Identifier, PoolName, SandboxId, SessionKey, TenantName};
use tokio::sync::oneshot;

pub use schema::VERSION;

/// How long what is known of a lost session is kept.
pub const KEPT_LOST: Duration = Duration::from_secs(24 * 3600);

/// How long the journal goes back.
pub const KEPT_AUDIT: Duration = Duration::from_secs(90 * 24 * 3600);

/// Records of the journal that are kept, however young: about 400 MiB of them.
pub const KEPT_RECORDS: i64 = 1_000_000;

/// Ended executions of one session that are kept: as many as the service layer keeps.
pub const KEPT_EXECUTIONS: u32 = 64;

/// The largest that the database becomes, unless told otherwise: a bound for what it takes of the disk.
pub const MAX_BYTES: u64 = 4 << 30;

/// Why the state cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The file cannot be opened or written.
    #[error("the state in {} cannot be used: {why}", path.display())]
    Unusable {
        /// Where it is.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// It is not what was written.
    #[error(
        "the state in {path} is damaged: {why}; to start without it, move it away: mv {path} {path}.damaged (what is lost \
         with it: executions of sessions that are gone, pools that were applied, and the journal)",
        path = path.display()
    )]
    Damaged {
        /// Where it is.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// It is somebody else's.
    #[error("{} is a database of another program: move it away, or give another --home", path.display())]
    Foreign {
        /// Where it is.
        path: PathBuf,
    },
    /// A newer version of this program wrote it.
    #[error(
        "the state in {path} has version {found}, and this program knows up to {VERSION}: start the newer program again, or \
         move the state away: mv {path} {path}.newer",
        path = path.display()
    )]
    Newer {
        /// Where it is.
        path: PathBuf,
        /// Its version.
        found: i64,
    },
}

/// Where a session is, and whose it is: made once for each.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// Its pool.
    pub pool: PoolName,
    /// What tells it from others there.
    pub key: SessionKey,
    /// Against whose quota it counts.
    pub payer: TenantName,
    /// Its sandbox.
    pub sandbox: SandboxId,
    /// The subject of the token that made it.
    pub owner: String,
    /// When it was made.
    pub created: SystemTime,
}

/// An execution that can be asked for its record, when it is written.
pub trait Source: Send + Sync {
    /// As it is now.
    fn row(&self) -> Row;
}

/// An execution's record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// Its id.
    pub id: ExecutionId,
    /// It has ended.
    pub is_ended: bool,
    /// All else, in the service layer's own words.
    pub body: Vec<u8>,
}

/// A session that was there, and has not ended in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Known {
    /// What was written of it.
    pub place: Place,
    /// Why it was lost, if that is known already.
    pub lost: Option<String>,
    /// Its owner has heard that it was lost.
    pub is_heard: bool,
}

/// One record of the journal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Audited {
    /// Counts up.
    pub number: i64,
    /// When.
    pub at: SystemTime,
    /// Whose.
    pub tenant: String,
    /// Who: a token's subject.
    pub subject: String,
    /// In which pool.
    pub pool: String,
    /// The session's name.
    pub session: String,
    /// Its sandbox.
    pub sandbox: String,
    /// What, such as `session.opened` or `execution.started`: docs/journal.md has all of them.
    pub what: String,
    /// More about it.
    pub detail: String,
}

impl Audited {
    fn new(what: &str, at: SystemTime) -> Self {
        let (what, none) = (what.to_owned(), String::new);
        let (tenant, subject, pool, session, sandbox, detail) = (none(), none(), none(), none(), none(), none());
        Self { number: 0, at, tenant, subject, pool, session, sandbox, what, detail }
    }
}

/// What somebody did that was not to a session.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Deed {
    /// What.
    pub what: &'static str,
    /// Whose quota they have.
    pub tenant: String,
    /// Who: a token's subject. Empty for the server itself.
    pub subject: String,
    /// To which pool.
    pub pool: String,
    /// More about it.
    pub detail: String,
}

/// The store. Cheap to clone.
#[derive(Clone)]
pub struct Store {
    inner: Arc<Inner>,
}

struct Inner {
    path: PathBuf,
    writes: Sender<Write>,
    writer: Mutex<Option<JoinHandle<()>>>,
    health: Arc<Health>,
    reader: Arc<Mutex<Connection>>,
}

/// Whether writing works.
#[derive(Debug, Default)]
struct Health {
    is_bad: AtomicBool,
    /// Nothing will come any more, and nobody waits for what cannot be written.
    is_closing: AtomicBool,
    why: Mutex<String>,
}

impl Health {
    fn set(&self, why: Option<&str>) {
        if let Some(why) = why {
            why.clone_into(&mut self.why.lock().unwrap_or_else(PoisonError::into_inner));
        }
        self.is_bad.store(why.is_some(), Ordering::Release);
    }
}

/// Something to be written.
enum Write {
    Opened(Arc<Place>),
    Ended(SandboxId),
    Lost {
        sandbox: SandboxId,
        why: String,
        told: String,
        at: SystemTime,
    },
    Heard(SandboxId),
    Execution(SandboxId, Arc<dyn Source>),
    Audit(Deed, SystemTime),
    /// Of a session, also of one that has ended meanwhile.
    Of {
        place: Arc<Place>,
        what: &'static str,
        detail: String,
        at: SystemTime,
    },
    Did {
        sandbox: SandboxId,
        subject: String,
        what: &'static str,
        detail: String,
        at: SystemTime,
    },
    /// A pool that was applied; without a body, one that was removed.
    Pool {
        name: PoolName,
        body: Option<String>,
    },
    /// Answered when all before it is written.
    Ack(oneshot::Sender<()>),
    /// Nothing comes after.
    Close,
}

impl std::fmt::Debug for Store {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("Store").field("path", &self.inner.path).finish_non_exhaustive()
    }
}

impl Store {
    /// Opens the database in `path`, or makes it, brings it to this program's version, and begins to write.
    ///
    /// # Errors
    /// [`StoreError`] says what is wrong with the file, and what to do.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        Self::open_bounded(path, MAX_BYTES)
    }

    /// The same, with another bound on its size.
    ///
    /// # Errors
    /// As [`Store::open`].
    pub fn open_bounded(path: &Path, most: u64) -> Result<Self, StoreError> {
        let connection = schema::open(path, most)?;
        let reader = schema::open_to_read(path)?;
        let (sender, receiver) = std::sync::mpsc::channel();
        let health = Arc::new(Health::default());
        let writer = write::Writer::new(connection, receiver, Arc::clone(&health), path);
        let unusable = |error: io::Error| StoreError::Unusable { path: path.to_owned(), why: error.to_string() };
        let writer = std::thread::Builder::new().name("store".to_owned()).spawn(move || writer.run());
        let writer = writer.map_err(unusable)?;
        let inner = Inner {
            path: path.to_owned(),
            writes: sender,
            writer: Mutex::new(Some(writer)),
            health,
            reader: Arc::new(Mutex::new(reader)),
        };
        Ok(Self { inner: Arc::new(inner) })
    }

    fn push(&self, write: Write) {
        // The writer is there for as long as the store is; after its end nothing is promised any more.
        let _ = self.inner.writes.send(write);
    }

    /// A session is there.
    pub fn opened(&self, place: &Arc<Place>) {
        self.push(Write::Opened(Arc::clone(place)));
    }

    /// A session has ended in order: nothing of it is kept but that it was there.
    pub fn ended(&self, sandbox: SandboxId) {
        self.push(Write::Ended(sandbox));
    }

    /// A session was lost; its owner will hear `why`, and the journal says `told`. Its executions can be read for [`KEPT_LOST`].
    pub fn lost(&self, sandbox: SandboxId, why: &str, told: &str) {
        self.push(Write::Lost { sandbox, why: why.to_owned(), told: told.to_owned(), at: SystemTime::now() });
    }

    /// The owner of a lost session has heard of it.
    pub fn heard(&self, sandbox: SandboxId) {
        self.push(Write::Heard(sandbox));
    }

    /// An execution was accepted, or has ended. It is asked for its record when that is written.
    pub fn execution(&self, sandbox: SandboxId, source: Arc<dyn Source>) {
        self.push(Write::Execution(sandbox, source));
    }

    /// For the journal: the server did something, or somebody did something to a pool or to all of it.
    pub fn audit(&self, deed: Deed) {
        self.push(Write::Audit(deed, SystemTime::now()));
    }

    /// For the journal: somebody did something to a session that is known.
    pub fn did(&self, sandbox: SandboxId, subject: &str, what: &'static str, detail: String) {
        self.push(Write::Did { sandbox, subject: subject.to_owned(), what, detail, at: SystemTime::now() });
    }

    /// For the journal: a session's own programs did something. It may have ended meanwhile.
    pub fn of(&self, place: &Arc<Place>, what: &'static str, detail: String, at: SystemTime) {
        self.push(Write::Of { place: Arc::clone(place), what, detail, at });
    }

    /// A pool was applied, in the words of whoever keeps it, or removed. Who did so is said by [`Store::audit`].
    pub fn pool(&self, name: &PoolName, body: Option<String>) {
        self.push(Write::Pool { name: name.clone(), body });
    }

    /// Waits until all that was given before is written. Answers within milliseconds, or, when writing fails, not before it
    /// works again: give it a deadline.
    pub async fn written(&self) {
        let (told, heard) = oneshot::channel();
        self.push(Write::Ack(told));
        if let Some(writer) = self.inner.writer.lock().unwrap_or_else(PoisonError::into_inner).as_ref() {
            writer.thread().unpark();
        }
        // An error means that the store is closed.
        let _ = heard.await;
    }

    /// Why nothing can be written at the moment.
    #[must_use]
    pub fn trouble(&self) -> Option<String> {
        let health = &self.inner.health;
        let why = || health.why.lock().unwrap_or_else(PoisonError::into_inner).clone();
        health.is_bad.load(Ordering::Acquire).then(why)
    }

    /// Nothing can be written at the moment.
    #[must_use]
    pub fn is_in_trouble(&self) -> bool {
        self.inner.health.is_bad.load(Ordering::Acquire)
    }

    /// Writes what was given, and ends. What is given afterwards is lost.
    pub fn close(&self) {
        self.inner.health.is_closing.store(true, Ordering::Release);
        self.push(Write::Close);
        let writer = self.inner.writer.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(writer) = writer {
            writer.thread().unpark();
            // A writer that panicked has said so.
            let _ = writer.join();
        }
    }
}

fn milliseconds(time: SystemTime) -> i64 {
    let since = time.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis());
    i64::try_from(since).unwrap_or(i64::MAX)
}

fn time(milliseconds: i64) -> SystemTime {
    UNIX_EPOCH + Duration::from_millis(u64::try_from(milliseconds).unwrap_or(0))
}

/// A session's place, as it was written; `None` for what this program would not write.
fn place(
    sandbox: [u8; 16],
    (pool, tenant, payer, identifier, owner): (String, String, String, String, String),
    created: i64,
) -> Option<Place> {
    Some(Place {
        pool: PoolName::parse(&pool).ok()?,
        key: SessionKey::new(TenantName::parse(&tenant).ok()?, Identifier::parse(&identifier).ok()?),
        payer: TenantName::parse(&payer).ok()?,
        sandbox: SandboxId(sandbox),
        owner,
        created: time(created),
    })
}

#[cfg(test)]
mod tests;
