//! One pool at work: fills its reservoir, binds sessions to sandboxes, ends them when their time is over.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use sandpool_core::ids::{ExecutionId, Identifier, SandboxId};
use sandpool_core::pool::{Claim, Moment, Pool};
use sandpool_driver::{Description, Driver, DriverError, GoneReason, Owner, Phase, Sandbox};
use sandpool_wire::agent::{Activation, Answer, Call};
use tokio::sync::{Notify, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::api::*;
use crate::link::Link;
use crate::record::Record;
use crate::session::Session;

/// Lost sessions that are remembered until their owner hears of it.
const LOST: usize = 4096;

/// How often a call may get a sandbox that turns out to be gone, before it gives up.
const ATTEMPTS: usize = 3;

/// How long a sandbox may take to become ready.
pub(crate) const BOOT_LIMIT: Duration = Duration::from_secs(60);

/// A session that is there, or will be in a moment.
type Coming = watch::Receiver<Option<Result<Arc<Session>, NodeError>>>;

#[derive(Debug)]
pub(crate) struct PoolState {
    pub(crate) spec: PoolSpec,
    pub(crate) level: String,
    wall: Vec<String>,
    weaker: Vec<String>,
    driver: Shared,
    start: Instant,
    inner: Mutex<Inner>,
    /// Callers that wait for a sandbox.
    waiting: AtomicUsize,
    /// A sandbox became ready, or there is none to hope for.
    changed: Notify,
    /// The reservoir may want filling.
    refill: Notify,
    /// The next end of a session may be sooner than it was.
    ends: Notify,
}

/// A driver, for `Debug`.
pub(crate) struct Shared(pub(crate) Arc<dyn Driver>);

impl std::fmt::Debug for Shared {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.write_str("driver")
    }
}

#[derive(Debug)]
struct Inner {
    rules: Pool,
    sessions: HashMap<Identifier, Coming>,
    lost: HashMap<Identifier, String>,
    trouble: Option<String>,
}

impl PoolState {
    pub(crate) fn new(spec: PoolSpec, driver: Arc<dyn Driver>, start: Instant) -> Self {
        let Description { level, wall, weaker } = driver.describe();
        let rules = Pool::new(spec.scale, spec.life);
        Self {
            spec,
            level,
            wall,
            weaker,
            driver: Shared(driver),
            start,
            inner: Mutex::new(Inner { rules, sessions: HashMap::new(), lost: HashMap::new(), trouble: None }),
            waiting: AtomicUsize::new(0),
            changed: Notify::new(),
            refill: Notify::new(),
            ends: Notify::new(),
        }
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn now(&self) -> Moment {
        self.start.elapsed()
    }

    pub(crate) fn busy(&self, identifier: &Identifier, begins: bool) {
        let now = self.now();
        self.inner().rules.busy(identifier, begins, now);
        if !begins {
            self.ends.notify_one();
        }
    }

    pub(crate) fn status(&self) -> PoolStatus {
        let inner = self.inner();
        let (ready, booting, sessions) = inner.rules.counts();
        PoolStatus {
            spec: self.spec.clone(),
            ready,
            booting,
            sessions,
            is_full: inner.rules.is_full(),
            level: self.level.clone(),
            wall: self.wall.clone(),
            weaker: self.weaker.clone(),
            trouble: inner.trouble.clone(),
        }
    }

    pub(crate) fn is_full(&self) -> bool {
        self.inner().rules.is_full()
    }

    /// Takes over a sandbox that was there before this server.
    pub(crate) fn adopt(self: &Arc<Self>, sandbox: &Sandbox) {
        let now = self.now();
        let known = sandbox.owner.as_ref().and_then(|owner| OwnerRecord::parse(&owner.record));
        match (known, sandbox.phase) {
            (_, Phase::Leaving) => {}
            (Some(record), _) if sandbox.activated => {
                let (sender, coming) = watch::channel(None);
                {
                    let mut inner = self.inner();
                    inner.rules.bind(record.identifier.clone(), sandbox.id, now);
                    inner.sessions.insert(record.identifier.clone(), coming);
                }
                let (pool, sandbox) = (Arc::clone(self), sandbox.id);
                tokio::spawn(async move {
                    let identifier = record.identifier.clone();
                    let session = pool.connect(sandbox, record, true).await;
                    if let Err(error) = &session {
                        pool.lose(&identifier, &error.to_string());
                    }
                    sender.send_replace(Some(session));
                });
            }
            // Half given away: whoever it was meant for has had no answer.
            _ if sandbox.owner.is_some() => self.destroy(sandbox.id),
            (_, phase) => {
                let mut inner = self.inner();
                inner.rules.booting(sandbox.id);
                if phase == Phase::Ready {
                    inner.rules.ready(sandbox.id);
                }
            }
        }
    }

    /// A sandbox is ready.
    pub(crate) fn ready(&self, sandbox: SandboxId) {
        {
            let mut inner = self.inner();
            if !inner.rules.ready(sandbox) {
                return;
            }
            inner.trouble = None;
        }
        self.changed.notify_waiters();
        self.refill.notify_one();
    }

    /// A sandbox is gone.
    pub(crate) fn gone(&self, sandbox: SandboxId, reason: &GoneReason) {
        let now = self.now();
        {
            let mut inner = self.inner();
            if let GoneReason::BootFailed(why) = reason {
                inner.trouble = Some(why.clone());
            }
            if let Some(identifier) = inner.rules.gone(sandbox, now) {
                let why = match reason {
                    GoneReason::Destroyed => "its sandbox was destroyed".to_owned(),
                    GoneReason::OutOfMemory => "its memory was used up".to_owned(),
                    GoneReason::Died(how) | GoneReason::BootFailed(how) => how.clone(),
                };
                inner.forget(&identifier, Some(why));
            }
        }
        self.changed.notify_waiters();
        self.refill.notify_one();
    }

    /// After changes were missed: sandboxes of ours that are not there any more.
    pub(crate) fn lose_missing(&self, there: &[SandboxId]) {
        let missing: Vec<_> = self.inner().rules.known().filter(|sandbox| !there.contains(sandbox)).collect();
        for sandbox in missing {
            self.gone(sandbox, &GoneReason::Died("its sandbox is gone".to_owned()));
        }
    }

    /// Gives a session up: its owner hears of it with the next request.
    pub(crate) fn lose(self: &Arc<Self>, identifier: &Identifier, why: &str) {
        let sandbox = {
            let mut inner = self.inner();
            let sandbox = inner.rules.remove(identifier);
            inner.forget(identifier, Some(why.to_owned()));
            sandbox
        };
        if let Some(sandbox) = sandbox {
            self.destroy(sandbox);
        }
        self.refill.notify_one();
    }

    /// Ends a session, as asked. Whether there was one.
    pub(crate) fn end(self: &Arc<Self>, identifier: &Identifier) -> bool {
        let sandbox = {
            let mut inner = self.inner();
            let sandbox = inner.rules.remove(identifier);
            inner.forget(identifier, None);
            sandbox
        };
        if let Some(sandbox) = sandbox {
            self.destroy(sandbox);
        }
        self.changed.notify_waiters();
        self.refill.notify_one();
        sandbox.is_some()
    }

    fn destroy(&self, sandbox: SandboxId) {
        let driver = Arc::clone(&self.driver.0);
        tokio::spawn(async move {
            for _ in 0..ATTEMPTS {
                match driver.destroy(sandbox).await {
                    Ok(()) => return,
                    Err(error) => tracing::error!(%sandbox, "a sandbox could not be destroyed: {error}"),
                }
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        });
    }

    pub(crate) async fn open(
        self: &Arc<Self>,
        identifier: &Identifier,
        open: Open,
        caller: &Caller,
    ) -> Result<(Arc<Session>, bool), NodeError> {
        let patience = Instant::now() + BOOT_LIMIT;
        let mut attempts = 0;
        loop {
            // Registered before the look, so that nothing happens unseen between the two.
            let changed = self.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            match self.claim(identifier, open, caller)? {
                Some((coming, new)) => match settled(coming).await {
                    Err(NodeError::Unavailable(_)) if new && attempts + 1 < ATTEMPTS => attempts += 1,
                    outcome => return outcome.map(|session| (session, new)),
                },
                None => {
                    self.waiting.fetch_add(1, Ordering::SeqCst);
                    self.refill.notify_one();
                    let waited = tokio::time::timeout_at(patience, changed).await;
                    self.waiting.fetch_sub(1, Ordering::SeqCst);
                    let trouble = self.inner().trouble.clone();
                    if let Some(reason) = trouble {
                        return Err(NodeError::PoolBroken { pool: self.spec.name.clone(), reason });
                    }
                    if waited.is_err() {
                        return Err(NodeError::Unavailable("no sandbox became ready in time".to_owned()));
                    }
                }
            }
        }
    }

    /// One look at the rules: the session that is there or comes, and whether it is new; `None` to wait.
    fn claim(
        self: &Arc<Self>,
        identifier: &Identifier,
        open: Open,
        caller: &Caller,
    ) -> Result<Option<(Coming, bool)>, NodeError> {
        let now = self.now();
        let mut inner = self.inner();
        if let Some(reason) = inner.lost.remove(identifier) {
            return Err(NodeError::SessionLost { identifier: identifier.clone(), reason });
        }
        if open == Open::Existing && inner.rules.session(identifier).is_none() {
            return Err(NodeError::NoSession(identifier.clone()));
        }
        match inner.rules.claim(identifier, now) {
            Claim::Existing(_) => {
                let coming = inner.sessions.get(identifier).cloned();
                coming.map(|coming| Some((coming, false))).ok_or_else(|| NodeError::NoSession(identifier.clone()))
            }
            Claim::Fresh(sandbox) => {
                let (sender, coming) = watch::channel(None);
                inner.sessions.insert(identifier.clone(), coming.clone());
                drop(inner);
                let record = OwnerRecord {
                    identifier: identifier.clone(),
                    created: SystemTime::now(),
                    subject: caller.subject.chars().take(200).collect(),
                };
                let pool = Arc::clone(self);
                // A task of its own: a client that goes away in the middle leaves nothing half done.
                tokio::spawn(async move {
                    let identifier = record.identifier.clone();
                    let session = pool.connect(sandbox, record, false).await;
                    if session.is_err() {
                        pool.end(&identifier);
                    }
                    sender.send_replace(Some(session));
                    pool.refill.notify_one();
                    pool.ends.notify_one();
                });
                Ok(Some((coming, true)))
            }
            Claim::Wait => Ok(None),
            Claim::Full { active, limit, retry_after } => {
                Err(NodeError::Exhausted { pool: self.spec.name.clone(), active, limit, retry_after })
            }
        }
    }

    /// Makes a sandbox a session's own (unless it is already), and opens the stream to it.
    async fn connect(
        self: &Arc<Self>,
        sandbox: SandboxId,
        record: OwnerRecord,
        adopted: bool,
    ) -> Result<Arc<Session>, NodeError> {
        let driver = &self.driver.0;
        let failed = |error: DriverError| NodeError::Unavailable(error.to_string());
        if !adopted {
            driver.assign(sandbox, &Owner { record: record.encode() }).await.map_err(failed)?;
            let mut seed = [0; 32];
            getrandom::fill(&mut seed).map_err(|error| NodeError::Unavailable(error.to_string()))?;
            let activation = Activation { env: self.spec.env.clone(), seed };
            driver.activate(sandbox, &activation).await.map_err(failed)?;
        }
        let stream = driver.dial(sandbox).await.map_err(failed)?;
        let link = Link::open(stream).await.map_err(|error| NodeError::Unavailable(error.to_string()))?;
        let identifier = record.identifier.clone();
        let session = Arc::new(Session::new(record.identifier, record.subject, record.created, link));
        if adopted && let Ok(Answer::Executions(known)) = session.link.call(Call::Executions).await? {
            for (key, _) in known {
                // What it runs is not known any more, so it may be one that takes input.
                let kept = Record::new(ExecutionId(key), session.identifier.clone(), self.spec.output_limit)
                    .taking(true, true);
                let kept = Arc::new(kept);
                session.link.follow(key, Arc::clone(&kept));
                session.keep(kept);
                // One that the agent has just forgotten ends with the stream.
                let _ = session.link.call(Call::Attach { exec: key, after_seq: 0 }).await?;
            }
        }
        let (pool, watched) = (Arc::clone(self), Arc::downgrade(&session));
        let closed = session.link.closed_token();
        tokio::spawn(async move {
            closed.cancelled().await;
            // Only if the session still counts on it: otherwise it was ended, and this is the echo.
            if watched.upgrade().is_some() && pool.sandbox_of(&identifier) == Some(sandbox) {
                pool.lose(&identifier, "its sandbox stopped answering");
            }
        });
        Ok(session)
    }

    fn sandbox_of(&self, identifier: &Identifier) -> Option<SandboxId> {
        self.inner().rules.session(identifier).map(|session| session.sandbox)
    }

    pub(crate) async fn existing(&self, identifier: &Identifier) -> Result<Arc<Session>, NodeError> {
        let coming = {
            let inner = self.inner();
            if let Some(reason) = inner.lost.get(identifier) {
                return Err(NodeError::SessionLost { identifier: identifier.clone(), reason: reason.clone() });
            }
            inner.sessions.get(identifier).cloned()
        };
        settled(coming.ok_or_else(|| NodeError::NoSession(identifier.clone()))?).await
    }

    /// A session that is there now.
    pub(crate) fn present(&self, identifier: &Identifier) -> Result<Arc<Session>, NodeError> {
        let inner = self.inner();
        if let Some(reason) = inner.lost.get(identifier) {
            return Err(NodeError::SessionLost { identifier: identifier.clone(), reason: reason.clone() });
        }
        let coming = inner.sessions.get(identifier).map(|coming| coming.borrow().clone());
        match coming {
            Some(Some(session)) => session,
            _ => Err(NodeError::NoSession(identifier.clone())),
        }
    }

    pub(crate) fn info(&self, identifier: &Identifier) -> Result<SessionInfo, NodeError> {
        let inner = self.inner();
        let session = inner.rules.session(identifier).ok_or_else(|| NodeError::NoSession(identifier.clone()))?;
        Ok(self.describe(&inner, identifier, session))
    }

    pub(crate) fn infos(&self) -> Vec<SessionInfo> {
        let inner = self.inner();
        let mut all: Vec<_> =
            inner.rules.sessions().map(|(identifier, session)| self.describe(&inner, identifier, session)).collect();
        all.sort_by(|one, other| (one.created, &one.identifier).cmp(&(other.created, &other.identifier)));
        all
    }

    fn describe(&self, inner: &Inner, identifier: &Identifier, place: &sandpool_core::pool::Session) -> SessionInfo {
        let now = self.now();
        let clock = SystemTime::now();
        let session = inner.sessions.get(identifier).and_then(|coming| coming.borrow().clone()).and_then(Result::ok);
        SessionInfo {
            pool: self.spec.name.clone(),
            identifier: identifier.clone(),
            sandbox: place.sandbox,
            owner: session.as_ref().map(|session| session.owner.clone()).unwrap_or_default(),
            level: self.level.clone(),
            created: session.map_or(clock, |session| session.created),
            used: clock - now.saturating_sub(place.used),
            expires: clock + inner.rules.ends(place, now).saturating_sub(now),
            busy: place.busy,
        }
    }

    /// Fills the reservoir whenever it wants filling.
    pub(crate) async fn fill(self: Arc<Self>, stop: CancellationToken) {
        loop {
            let (wanted, not_before) = {
                let inner = self.inner();
                let waiting = self.waiting.load(Ordering::SeqCst);
                (inner.rules.wanted(waiting, self.now()), inner.rules.not_before())
            };
            for _ in 0..wanted {
                self.begin_one().await;
            }
            let later = not_before.filter(|at| *at > self.now()).map(|at| self.start + at);
            tokio::select! {
                () = stop.cancelled() => return,
                () = self.refill.notified() => {}
                () = until(later) => {}
            }
        }
    }

    async fn begin_one(&self) {
        let mut id = [0; 16];
        if let Err(error) = getrandom::fill(&mut id) {
            self.inner().trouble = Some(format!("no random numbers: {error}"));
            return;
        }
        let id = SandboxId::from_random(id);
        self.inner().rules.booting(id);
        if let Err(error) = self.driver.0.create(id, &self.spec.name).await {
            tracing::warn!(pool = %self.spec.name, "a sandbox could not be made: {error}");
            let now = self.now();
            let mut inner = self.inner();
            inner.trouble = Some(error.to_string());
            inner.rules.gone(id, now);
            drop(inner);
            self.changed.notify_waiters();
        }
    }

    /// Ends sessions whose time is over.
    pub(crate) async fn reap(self: Arc<Self>, stop: CancellationToken) {
        loop {
            let (over, next) = self.inner().rules.expired(self.now());
            for identifier in over {
                tracing::info!(pool = %self.spec.name, %identifier, "a session ends: it was idle, or old");
                self.end(&identifier);
            }
            tokio::select! {
                () = stop.cancelled() => return,
                () = self.ends.notified() => {}
                () = until(next.map(|at| self.start + at)) => {}
            }
        }
    }
}

impl Inner {
    fn forget(&mut self, identifier: &Identifier, lost: Option<String>) {
        let was_there = self.sessions.remove(identifier).is_some();
        match lost {
            Some(why) if was_there && self.lost.len() < LOST => {
                self.lost.insert(identifier.clone(), why);
            }
            Some(_) => {}
            None => drop(self.lost.remove(identifier)),
        }
    }
}

async fn settled(mut coming: Coming) -> Result<Arc<Session>, NodeError> {
    let settled = coming.wait_for(Option::is_some).await;
    match settled.map(|outcome| outcome.clone()) {
        Ok(Some(outcome)) => outcome,
        _ => Err(NodeError::Unavailable("the session is being ended".to_owned())),
    }
}

async fn until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

/// What is kept with the driver about a sandbox's owner: three lines of text.
struct OwnerRecord {
    identifier: Identifier,
    created: SystemTime,
    subject: String,
}

impl OwnerRecord {
    fn encode(&self) -> Vec<u8> {
        let created = self.created.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis());
        let subject: String = self.subject.chars().filter(|character| !character.is_control()).collect();
        format!("{}\n{created}\n{subject}", self.identifier).into_bytes()
    }

    fn parse(bytes: &[u8]) -> Option<Self> {
        let text = std::str::from_utf8(bytes).ok()?;
        let mut lines = text.splitn(3, '\n');
        let identifier = Identifier::parse(lines.next()?).ok()?;
        let created = UNIX_EPOCH + Duration::from_millis(lines.next()?.parse().ok()?);
        Some(Self { identifier, created, subject: lines.next()?.to_owned() })
    }
}
