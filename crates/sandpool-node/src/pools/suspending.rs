//! Sessions on their way to the disk.
//!
//! ```text
//! nothing begins any more -> nothing goes on -> all of it on disk, whole -> its sandbox is destroyed -> who waited is told, and wakes it
//!                         `-- something does: Busy                `-- it could not be: it goes on as it was
//! ```
//!
//! Whose snapshot is on disk is suspended, whatever else there is: a start destroys what is left of its sandbox.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use sandpool_core::ids::{Identifier, PoolName, SandboxId, SessionKey, SnapshotId, TenantName};
use sandpool_core::limits::Limits;
use sandpool_core::pool::Moment;
use sandpool_driver::Stream;
use sandpool_store::snapshots::{Kind, Manifest, SnapshotError, Snapshots, Writing};
use sandpool_wire::agent::{Answer, Call, MAX_CHUNK, Refusal};
use tokio::io::AsyncReadExt;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

use super::{Coming, PoolState};
use crate::api::*;
use crate::metrics::Kept;
use crate::session::Session;

/// The directories whose files are kept where nothing else is.
pub(super) const ROOTS: [&str; 2] = ["/mnt/data", "/home/sandbox"];

/// The file of a snapshot that has them.
pub(super) const FILES: &str = "files";

/// The file of a snapshot that has all of a machine.
pub(super) const MACHINE: &str = "machine";

/// What a snapshot may have over what its session may use: names, and what a VMM adds.
const OVER: u64 = 512 << 20;

/// Pieces that wait for the disk.
const PIECES: usize = 4;

/// How long it is waited for what goes on: what is shorter is in nobody's way.
const PATIENCE: Duration = Duration::from_millis(250);

/// How long what is ended by force may take to end.
const FORCE: Duration = Duration::from_secs(30);

/// How often it is looked whether it has.
const LOOK: Duration = Duration::from_millis(20);

/// How long a session that could not be suspended when it was idle is left alone.
const AGAIN: Duration = Duration::from_secs(60);

/// Whom a snapshot is to be of.
pub(crate) struct Whom {
    pub(crate) kind: Kind,
    pub(crate) name: Option<String>,
    pub(crate) key: SessionKey,
    pub(crate) payer: TenantName,
    pub(crate) owner: String,
    pub(crate) created: SystemTime,
    pub(crate) alive: Duration,
}

/// A piece on its way to the disk.
enum Piece {
    Bytes(Vec<u8>),
    /// It is whole.
    Whole(Box<Manifest>),
}

/// A session in which nothing begins any more: whoever asks for it waits. Dropped, it goes on.
struct Standing {
    pool: Arc<PoolState>,
    session: Arc<Session>,
    /// Where it was found.
    before: Coming,
    sender: Option<watch::Sender<Option<Result<Arc<Session>, NodeError>>>>,
    busy: usize,
}

impl Standing {
    /// `None` when it is not there any more, or is on its way already.
    fn begin(pool: &Arc<PoolState>, session: &Arc<Session>) -> Option<Self> {
        let (sender, coming) = watch::channel(None);
        let before = {
            let inner = pool.inner();
            inner.rules.owner(session.sandbox)?;
            let mut sessions = pool.change_sessions();
            let before = sessions.get(&session.key)?.clone();
            let is_it = matches!(&*before.borrow(), Some(Ok(found)) if found.sandbox == session.sandbox);
            if !is_it {
                return None;
            }
            sessions.insert(session.key.clone(), coming);
            before
        };
        let busy = session.activity.stand_still(true);
        let (pool, session) = (Arc::clone(pool), Arc::clone(session));
        Some(Self { pool, session, before, sender: Some(sender), busy })
    }

    /// It is on disk: who waited for it finds it there.
    fn is_away(mut self) {
        if let Some(sender) = self.sender.take() {
            sender.send_replace(Some(Err(NodeError::Suspended(self.session.key.identifier.clone()))));
        }
    }
}

impl Drop for Standing {
    fn drop(&mut self) {
        let Some(sender) = self.sender.take() else { return };
        let Self { pool, session, before, .. } = self;
        session.activity.stand_still(false);
        let inner = pool.inner();
        let goes_on = inner.rules.owner(session.sandbox).is_some();
        if goes_on {
            pool.change_sessions().insert(session.key.clone(), before.clone());
        }
        drop(inner);
        if !goes_on {
            pool.is_over(session);
        }
        let ended = || NodeError::Unavailable("the session has ended".to_owned());
        sender.send_replace(Some(if goes_on { Ok(Arc::clone(session)) } else { Err(ended()) }));
    }
}

/// Whose session a manifest is of.
pub(super) fn key_of(manifest: &Manifest) -> Option<SessionKey> {
    let tenant = TenantName::parse(&manifest.tenant).ok()?;
    Some(SessionKey::new(tenant, Identifier::parse(&manifest.identifier).ok()?))
}

pub(super) fn keeps_of(manifest: &Manifest) -> Keeps {
    if manifest.keeps == Keeps::Machine.word() { Keeps::Machine } else { Keeps::Files }
}

fn milliseconds(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

pub(super) fn time(milliseconds: u64) -> SystemTime {
    UNIX_EPOCH + Duration::from_millis(milliseconds)
}

/// What an error of the disk means for whose session it is.
pub(super) fn of_disk(identifier: &Identifier, error: SnapshotError) -> NodeError {
    match error {
        SnapshotError::Missing(id) => NodeError::NoSnapshot(id),
        error @ SnapshotError::Damaged { .. } => {
            NodeError::SnapshotDamaged { identifier: identifier.clone(), why: error.to_string() }
        }
        error @ (SnapshotError::TooMuch { .. } | SnapshotError::NoSpace) => NodeError::SnapshotsFull(error.to_string()),
        SnapshotError::Failed(why) => {
            tracing::error!("a snapshot: {why}");
            NodeError::Unavailable("the host's disk does not do what it should; the server's log says more".to_owned())
        }
    }
}

/// Does what waits for the disk where that may be waited for.
pub(crate) async fn on_disk<T: Send + 'static>(
    identifier: &Identifier,
    work: impl FnOnce() -> Result<T, SnapshotError> + Send + 'static,
) -> Result<T, NodeError> {
    let done = tokio::task::spawn_blocking(work).await;
    let done = done.map_err(|_| NodeError::Unavailable("the disk's work was given up".to_owned()))?;
    done.map_err(|error| of_disk(identifier, error))
}

/// Writes what comes, until it is whole. What ends before is nothing.
fn write(
    mut writing: Writing,
    name: &str,
    mut pieces: mpsc::Receiver<Piece>,
) -> Result<Option<Arc<Manifest>>, SnapshotError> {
    writing.file(name)?;
    while let Some(piece) = pieces.blocking_recv() {
        match piece {
            Piece::Bytes(bytes) => writing.write(&bytes)?,
            Piece::Whole(manifest) => return writing.commit(*manifest).map(Some),
        }
    }
    Ok(None)
}

impl PoolState {
    pub(crate) fn snapshots(&self) -> Result<&Snapshots, NodeError> {
        let none = || NodeError::Unsupported("this server keeps no sessions on disk".to_owned());
        self.snapshots.as_ref().ok_or_else(none)
    }

    /// A session is suspended.
    pub(super) fn is_on_disk(&self, key: &SessionKey) -> bool {
        self.snapshots.as_ref().is_some_and(|snapshots| snapshots.suspended(&self.name, key).is_some())
    }

    /// What is known of a suspended session.
    pub(crate) fn on_disk(&self, key: &SessionKey) -> Result<Option<Arc<Manifest>>, NodeError> {
        let held = self.snapshots.as_ref().and_then(|snapshots| snapshots.suspended(&self.name, key));
        held.map(|held| held.manifest.map_err(|error| of_disk(&key.identifier, error))).transpose()
    }

    /// A session's sandbox went to the disk before this server, which was to tell so.
    pub(super) fn went_to_disk(&self, sandbox: SandboxId) {
        if let Some(store) = &self.store {
            store.did(sandbox, "", "session.suspended", String::new());
            store.ended(sandbox);
        }
    }

    pub(super) fn describe_suspended(&self, manifest: &Manifest) -> Result<SessionInfo, NodeError> {
        let wrong = || NodeError::Unavailable("a snapshot is of no session".to_owned());
        let since = time(manifest.taken_ms);
        let (keeps, bytes) = (keeps_of(manifest), manifest.bytes());
        Ok(SessionInfo {
            pool: self.name.clone(),
            identifier: Identifier::parse(&manifest.identifier).map_err(|_| wrong())?,
            tenant: TenantName::parse(&manifest.payer).map_err(|_| wrong())?,
            sandbox: SandboxId::parse(&manifest.sandbox).ok_or_else(wrong)?,
            owner: manifest.owner.clone(),
            level: manifest.level.clone(),
            created: time(manifest.created_ms),
            used: since,
            expires: since + self.spec().suspends.kept_for,
            busy: 0,
            suspended: Some(Suspended { since, bytes, keeps }),
        })
    }

    /// Suspends a session; one that is suspended stays so. In a task of its own: whoever asked for it may go away.
    pub(crate) async fn suspend(
        self: &Arc<Self>,
        key: &SessionKey,
        force: bool,
        subject: &str,
    ) -> Result<SessionInfo, NodeError> {
        let (pool, key, subject) = (Arc::clone(self), key.clone(), subject.to_owned());
        let task = tokio::spawn(async move {
            let suspended = pool.suspend_now(&key, force, &subject).await;
            match &suspended {
                Ok(_) => {}
                Err(error) => {
                    pool.counts.kept(Kept::NotSuspended);
                    tracing::debug!(pool = %pool.name, session = %key, "a session is not suspended: {error}");
                }
            }
            pool.ends.notify_one();
            suspended
        });
        task.await.unwrap_or_else(|_| Err(NodeError::Unavailable("it was given up".to_owned())))
    }

    async fn suspend_now(
        self: &Arc<Self>,
        key: &SessionKey,
        force: bool,
        subject: &str,
    ) -> Result<SessionInfo, NodeError> {
        let snapshots = self.snapshots()?.clone();
        let began = Instant::now();
        let (session, standing) = loop {
            let session = match self.present(key).await {
                Err(NodeError::Suspended(identifier)) => {
                    let found = self.on_disk(key)?;
                    return self.describe_suspended(&*found.ok_or(NodeError::NoSession(identifier))?);
                }
                found => found?,
            };
            self.may_be_kept(&session)?;
            // Looked at before it stands still: who has just been given it shall begin.
            let busy = match session.activity.seen().1 {
                busy if busy > 0 && !force => busy,
                _ => match Standing::begin(self, &session) {
                    Some(standing) if standing.busy == 0 || force => break (session, standing),
                    Some(standing) => standing.busy,
                    // Somebody else does it at this moment.
                    None => 0,
                },
            };
            if began.elapsed() > PATIENCE && busy > 0 {
                return Err(NodeError::Busy { identifier: key.identifier.clone(), busy });
            }
            tokio::time::sleep(LOOK).await;
        };
        self.end_by_force(&session, standing.busy).await?;
        let whom = Whom {
            kind: Kind::Suspended,
            name: None,
            key: key.clone(),
            payer: session.tenant.name.clone(),
            owner: session.owner.clone(),
            created: session.created,
            alive: self.now().saturating_sub(session.activity.born()),
        };
        if session.tenant.counts_usage() {
            self.charge(&session).await;
        }
        let (manifest, stream) = self.store_away(&session, &snapshots, whom, false).await?;
        if !self.leave(&session, &manifest, subject) {
            // It was ended meanwhile.
            self.retire(&key.identifier, &manifest).await?;
            return Err(NodeError::NoSession(key.identifier.clone()));
        }
        // It does not panic; and if it did, the session would be suspended all the same.
        let _ = self.destroy(session.sandbox).await;
        drop(stream);
        standing.is_away();
        self.counts.kept(Kept::Suspended);
        self.changed.notify_waiters();
        self.refill.notify_one();
        tracing::info!(pool = %self.name, session = %key, bytes = manifest.bytes(), "a session is suspended");
        self.describe_suspended(&manifest)
    }

    /// A session's sandbox is not its own any more. `false` when it was ended meanwhile.
    fn leave(&self, session: &Session, manifest: &Manifest, subject: &str) -> bool {
        if let Some(store) = &self.store {
            let detail = format!("snapshot:{} keeps:{} bytes:{}", manifest.id, manifest.keeps, manifest.bytes());
            store.did(session.sandbox, subject, "session.suspended", detail);
        }
        let mut inner = self.inner();
        if inner.rules.owner(session.sandbox).is_none() {
            // That it was lost in its last moment is nobody's trouble any more.
            let was_lost = inner.lost.take(&session.key).is_some();
            if let Some(store) = self.store.as_ref().filter(|_| was_lost) {
                store.ended(session.sandbox);
            }
            return was_lost;
        }
        inner.rules.remove(&session.key);
        inner.boots.remove(&session.sandbox);
        self.forget(&mut inner, &session.key, None, session.sandbox);
        drop(inner);
        self.counts.ended(crate::metrics::Ended::Suspended);
        self.is_over(session);
        true
    }

    /// Nothing more comes of a session that nobody found any more when it went.
    fn is_over(&self, session: &Session) {
        session.store_nothing(self.now());
        let has_egress = self.spec().egress.is_some();
        self.outward.over(session.sandbox, || has_egress.then(|| Arc::clone(&session.place)));
    }

    /// Whether a session can be put back from disk as it is now.
    pub(super) fn may_be_kept(&self, session: &Session) -> Result<(), NodeError> {
        if session.has_secrets {
            let why = format!(
                "session {} has secrets of its own, which no server keeps: they could not be put back",
                session.key.identifier
            );
            return Err(NodeError::NotSuspendable(why));
        }
        Ok(())
    }

    /// Ends what goes on, and waits until it has ended.
    async fn end_by_force(&self, session: &Arc<Session>, busy: usize) -> Result<(), NodeError> {
        let refused = |busy| NodeError::Busy { identifier: session.key.identifier.clone(), busy };
        if busy == 0 {
            return Ok(());
        }
        for record in session.executions().into_iter().filter(|record| !record.has_ended()) {
            session.stop(&record, Stop::Kill).await?;
        }
        let deadline = Instant::now() + FORCE;
        loop {
            match session.activity.seen().1 {
                0 => return Ok(()),
                busy if Instant::now() > deadline => return Err(refused(busy)),
                _ => tokio::time::sleep(LOOK).await,
            }
        }
    }

    /// Writes a session to the disk, whole or not at all. As long as the stream is there that comes with it, a machine that does not stay
    /// stands still.
    pub(super) async fn store_away(
        self: &Arc<Self>,
        session: &Session,
        snapshots: &Snapshots,
        whom: Whom,
        stays: bool,
    ) -> Result<(Arc<Manifest>, Option<Stream>), NodeError> {
        let identifier = &session.key.identifier;
        let (driver, spec, keeps) = (&self.driver.0, self.spec(), self.driver.0.keeps(&self.name));
        let narrowed = match spec.egress {
            Some(_) => {
                driver.narrowed(session.sandbox).await.map_err(|it| crate::node::of_session(&session.key, it))?
            }
            None => None,
        };
        let manifest = self.manifest(session, &whom, narrowed.as_ref(), keeps, self.given_of(session).await?)?;
        let most = spec.limits.data.saturating_add(spec.limits.tmp).saturating_add(OVER);
        let (name, most) = match keeps {
            Keeps::Files => (FILES, most),
            Keeps::Machine => (MACHINE, most.saturating_add(spec.limits.memory.saturating_mul(2))),
        };
        let (sender, pieces) = mpsc::channel(PIECES);
        let (snapshots, payer) = (snapshots.clone(), whom.payer.clone());
        let writer = tokio::task::spawn_blocking(move || write(snapshots.begin(&payer)?, name, pieces));
        let mut stream = None;
        let fed = async {
            match keeps {
                Keeps::Files => self.feed_files(session, &sender, most).await,
                Keeps::Machine => {
                    let saved = driver.save(session.sandbox, stays).await;
                    let saved = saved.map_err(|error| crate::node::of_session(&session.key, error))?;
                    feed(stream.insert(saved), &sender, most).await
                }
            }
        };
        let fed = fed.await;
        if fed.is_ok() {
            // A writer that has ended says why below.
            let _ = sender.send(Piece::Whole(Box::new(manifest))).await;
        }
        drop(sender);
        let written = writer.await;
        let written = written.map_err(|_| NodeError::Unavailable("the disk's work was given up".to_owned()))?;
        // What the disk says is the cause of what the other end saw.
        let written = written.map_err(|error| of_disk(identifier, error))?;
        fed?;
        let ended = || NodeError::Unavailable("the snapshot was not finished".to_owned());
        Ok((written.ok_or_else(ended)?, stream))
    }

    /// What a session's sandbox must be made of when it comes back.
    pub(super) fn made_of(&self) -> std::collections::BTreeMap<String, String> {
        let spec = self.spec();
        // An image is a directory with the name of its digest.
        let image = spec.rootfs.parent().and_then(|image| image.file_name()).unwrap_or(spec.rootfs.as_os_str());
        let Limits { memory, pids, cpu_milli, data, tmp } = spec.limits;
        let (image, isolation, runtime) = (image.to_string_lossy(), spec.isolation.word(), spec.runtime.word());
        [
            ("image", image.into_owned()),
            ("isolation", isolation.to_owned()),
            ("level", self.level.clone()),
            ("runtime", runtime.to_owned()),
            ("limits.memory", memory.to_string()),
            ("limits.pids", pids.to_string()),
            ("limits.cpu", cpu_milli.to_string()),
            ("limits.dataDisk", data.to_string()),
            ("limits.tmpDisk", tmp.to_string()),
        ]
        .into_iter()
        .map(|(name, value)| (name.to_owned(), value))
        .collect()
    }

    fn manifest(
        &self,
        session: &Session,
        whom: &Whom,
        narrowed: Option<&EgressPolicy>,
        keeps: Keeps,
        env: Vec<(String, String)>,
    ) -> Result<Manifest, NodeError> {
        let narrowed = narrowed.map(serde_json::to_value).transpose();
        Ok(Manifest {
            format: 0,
            id: String::new(),
            kind: whom.kind,
            name: whom.name.clone(),
            pool: self.name.to_string(),
            tenant: whom.key.tenant.to_string(),
            identifier: whom.key.identifier.to_string(),
            payer: whom.payer.to_string(),
            owner: whom.owner.clone(),
            sandbox: session.sandbox.to_string(),
            created_ms: milliseconds(whom.created.duration_since(UNIX_EPOCH).unwrap_or_default()),
            alive_ms: milliseconds(whom.alive),
            taken_ms: milliseconds(SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()),
            parent: session.parent.get().map(SnapshotId::to_string),
            level: self.level.clone(),
            keeps: keeps.word().to_owned(),
            made_of: self.made_of(),
            narrowed: narrowed.map_err(|error| NodeError::Invalid(error.to_string()))?,
            env,
            files: Vec::new(),
        })
    }

    /// The variables that a session has of its own, as its agent says.
    async fn given_of(&self, session: &Session) -> Result<Vec<(String, String)>, NodeError> {
        let mut env = match session.link.call(Call::Given).await? {
            Ok(Answer::Given(env)) => env,
            Ok(_) => return Err(nonsense()),
            Err(refusal) => return Err(NodeError::Unavailable(refusal.to_string())),
        };
        let spec = self.spec();
        env.retain(|(name, _)| spec.env.iter().all(|(other, _)| other != name));
        // It may be no agent of ours any more.
        let given = Given { env, secrets: Vec::new() };
        given.check(&spec).map_err(|_| nonsense())?;
        Ok(given.env)
    }

    async fn feed_files(&self, session: &Session, to: &mpsc::Sender<Piece>, most: u64) -> Result<(), NodeError> {
        let refused = |refusal: Refusal| match refusal {
            Refusal::Failed(why) => NodeError::NotSuspendable(format!("its files cannot be kept: {why}")),
            other => NodeError::Unavailable(other.to_string()),
        };
        let roots = ROOTS.map(str::to_owned).to_vec();
        session.link.call(Call::Pack { roots }).await?.map_err(refused)?;
        let mut left = most;
        loop {
            let Answer::Packed { data, is_last } = session.link.call(Call::PackNext).await?.map_err(refused)? else {
                return Err(nonsense());
            };
            give(to, data, &mut left).await?;
            if is_last {
                return Ok(());
            }
        }
    }

    /// Nothing becomes of a snapshot any more.
    pub(super) async fn retire(&self, identifier: &Identifier, manifest: &Manifest) -> Result<(), NodeError> {
        let snapshots = self.snapshots()?.clone();
        let id = SnapshotId::parse(&manifest.id).ok_or_else(|| NodeError::NoSnapshot(manifest.id.clone()))?;
        on_disk(identifier, move || snapshots.retire(id)).await
    }

    /// A session that is suspended ends. Whether there was one.
    pub(super) async fn forget_on_disk(&self, key: &SessionKey) -> Result<bool, NodeError> {
        let Some(snapshots) = self.snapshots.clone() else { return Ok(false) };
        let Some(held) = snapshots.suspended(&self.name, key) else { return Ok(false) };
        match on_disk(&key.identifier, move || snapshots.retire(held.id)).await {
            // It came back, or another call was quicker.
            Err(NodeError::NoSnapshot(_)) => Ok(false),
            done => done.map(|()| true),
        }
    }

    /// All that is on disk of a pool that is removed.
    pub(super) async fn remove_from_disk(&self) {
        let Some(snapshots) = self.snapshots.clone() else { return };
        let pool = self.name.clone();
        let task = tokio::task::spawn_blocking(move || {
            for id in snapshots.of_pool(&pool) {
                if let Err(error) = snapshots.retire(id) {
                    tracing::error!(%pool, "a snapshot of a removed pool stays: {error}");
                }
            }
        });
        // It does not panic.
        let _ = task.await;
    }

    /// Suspends sessions that are idle; answers when to look again.
    pub(super) fn suspend_idle(self: &Arc<Self>, (idle, mut next): (Vec<SandboxId>, Option<Moment>)) -> Option<Moment> {
        let now = self.now();
        for sandbox in idle {
            let Some(key) = self.owner(sandbox) else { continue };
            let Some(session) = self.settled_now(&key).filter(|session| session.sandbox == sandbox) else { continue };
            let stays_until = Duration::from_nanos(session.stays_until.load(Ordering::Relaxed));
            if session.has_secrets {
                continue;
            }
            let again = if now < stays_until { stays_until } else { now + AGAIN };
            next = Some(next.map_or(again, |next| next.min(again)));
            if now < stays_until {
                continue;
            }
            session.stays_until.store(u64::try_from(again.as_nanos()).unwrap_or(u64::MAX), Ordering::Relaxed);
            let pool = Arc::clone(self);
            tokio::spawn(async move {
                if let Err(error) = pool.suspend(&key, false, "").await {
                    tracing::warn!(pool = %pool.name, session = %key, "an idle session is not suspended: {error}");
                }
            });
        }
        next
    }

    /// Ends suspended sessions whose time is over; answers when to look again.
    pub(super) fn expire_suspended(self: &Arc<Self>) -> Option<Moment> {
        let snapshots = self.snapshots.as_ref()?;
        let (now, kept_for) = (SystemTime::now(), self.spec().suspends.kept_for);
        let mut next: Option<Moment> = None;
        for manifest in snapshots.suspended_of(&self.name) {
            let left = (time(manifest.taken_ms) + kept_for).duration_since(now).unwrap_or_default();
            // One that comes back at this moment is in use.
            let is_back = key_of(&manifest).is_some_and(|key| self.sessions().contains_key(&key));
            if !left.is_zero() || is_back {
                let at = self.now() + left.max(Duration::from_secs(1));
                next = Some(next.map_or(at, |next| next.min(at)));
                continue;
            }
            let pool = Arc::clone(self);
            tokio::spawn(async move {
                let Some(key) = key_of(&manifest) else { return };
                match pool.retire(&key.identifier, &manifest).await {
                    Ok(()) => {
                        pool.counts.kept(Kept::Expired);
                        tracing::info!(pool = %pool.name, session = %key, "a suspended session ends: its time is over");
                        pool.audit("session.ended", &manifest, "");
                    }
                    Err(error) => tracing::warn!(pool = %pool.name, session = %key, "it does not end: {error}"),
                }
            });
        }
        next
    }

    /// For the journal: something became of a session that has no sandbox.
    pub(crate) fn audit(&self, what: &'static str, manifest: &Manifest, subject: &str) {
        let Some(store) = &self.store else { return };
        let Some((key, payer)) = key_of(manifest).zip(TenantName::parse(&manifest.payer).ok()) else { return };
        let Some(sandbox) = SandboxId::parse(&manifest.sandbox) else { return };
        let created = time(manifest.created_ms);
        let (pool, owner) = (self.name.clone(), subject.to_owned());
        let place = Arc::new(sandpool_store::Place { pool, key, payer, sandbox, owner, created });
        store.of(&place, what, format!("snapshot:{}", manifest.id), SystemTime::now());
    }

    /// A copy of a session that goes on.
    pub(crate) async fn copy(
        self: &Arc<Self>,
        key: &SessionKey,
        whom: impl FnOnce(&Session) -> Whom + Send + 'static,
    ) -> Result<Arc<Manifest>, NodeError> {
        let (pool, key) = (Arc::clone(self), key.clone());
        // In a task of its own: whoever asked for it may go away.
        let task = tokio::spawn(async move {
            let snapshots = pool.snapshots()?.clone();
            if pool.driver.0.keeps(&pool.name) == Keeps::Machine {
                // It goes on where it was stopped, with all that runs.
                let (session, _in_use) = pool.in_use(&key).await?;
                pool.may_be_kept(&session)?;
                let whom = whom(&session);
                return Ok(pool.store_away(&session, &snapshots, whom, true).await?.0);
            }
            let (session, standing) = loop {
                let session = pool.existing(&key).await?;
                pool.may_be_kept(&session)?;
                if let Some(standing) = Standing::begin(&pool, &session) {
                    break (session, standing);
                }
                tokio::task::yield_now().await;
            };
            if standing.busy > 0 {
                return Err(NodeError::Busy { identifier: key.identifier.clone(), busy: standing.busy });
            }
            let whom = whom(&session);
            Ok(pool.store_away(&session, &snapshots, whom, true).await?.0)
        });
        task.await.unwrap_or_else(|_| Err(NodeError::Unavailable("it was given up".to_owned())))
    }

    /// Makes a suspended session of a copy on disk, of another or the same.
    pub(crate) async fn copy_on_disk(
        &self,
        reading: sandpool_store::snapshots::Reading,
        whom: Whom,
    ) -> Result<Arc<Manifest>, NodeError> {
        let snapshots = self.snapshots()?.clone();
        let identifier = whom.key.identifier.clone();
        let mut manifest = Manifest::clone(&reading.manifest);
        manifest.parent = Some(std::mem::take(&mut manifest.id));
        manifest.kind = whom.kind;
        manifest.name = whom.name;
        manifest.tenant = whom.key.tenant.to_string();
        manifest.identifier = whom.key.identifier.to_string();
        manifest.payer = whom.payer.to_string();
        manifest.owner = whom.owner;
        manifest.created_ms = milliseconds(whom.created.duration_since(UNIX_EPOCH).unwrap_or_default());
        manifest.taken_ms = milliseconds(SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default());
        manifest.alive_ms = milliseconds(whom.alive);
        on_disk(&identifier, move || {
            let mut writing = snapshots.begin(&whom.payer)?;
            for part in &reading.manifest.files {
                writing.file(&part.name)?;
                let mut file = reading.file(&part.name)?;
                let mut buffer = vec![0; MAX_CHUNK];
                loop {
                    match std::io::Read::read(&mut file, &mut buffer) {
                        Ok(0) => break,
                        Ok(count) => writing.write(&buffer[..count])?,
                        Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                        Err(error) => return Err(SnapshotError::Failed(error.to_string())),
                    }
                }
            }
            writing.commit(manifest)
        })
        .await
    }

    /// A copy, as it is told.
    pub(crate) fn describe_copy(&self, manifest: &Manifest) -> Option<SnapshotInfo> {
        Some(SnapshotInfo {
            id: SnapshotId::parse(&manifest.id)?,
            name: manifest.name.clone(),
            pool: PoolName::parse(&manifest.pool).ok()?,
            identifier: Identifier::parse(&manifest.identifier).ok()?,
            taken: time(manifest.taken_ms),
            bytes: manifest.bytes(),
            keeps: keeps_of(manifest),
            parent: manifest.parent.as_deref().and_then(SnapshotId::parse),
        })
    }
}

fn nonsense() -> NodeError {
    NodeError::Unavailable("the agent answered something else".to_owned())
}

/// Gives one piece to the disk, which may be behind.
async fn give(to: &mpsc::Sender<Piece>, bytes: Vec<u8>, left: &mut u64) -> Result<(), NodeError> {
    let length = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
    let too_much = || NodeError::NotSuspendable("the session gives more bytes than it can have".to_owned());
    *left = left.checked_sub(length).ok_or_else(too_much)?;
    // Whoever writes has ended, and says why.
    to.send(Piece::Bytes(bytes)).await.map_err(|_| NodeError::Unavailable("the disk takes no more".to_owned()))
}

async fn feed(stream: &mut Stream, to: &mpsc::Sender<Piece>, most: u64) -> Result<(), NodeError> {
    let mut left = most;
    loop {
        let mut bytes = vec![0; MAX_CHUNK];
        let read = stream.read(&mut bytes).await;
        let count = read.map_err(|error| NodeError::Unavailable(format!("the machine is not whole: {error}")))?;
        if count == 0 {
            return Ok(());
        }
        bytes.truncate(count);
        give(to, bytes, &mut left).await?;
    }
}
