//! One pool at work: fills its reservoir, binds sessions to sandboxes, ends them when their time is over.

mod adopting;
mod connecting;
mod found;
mod suspending;
mod waiting;
mod waking;

use std::borrow::Cow;
use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::{Duration, SystemTime};

use sandpool_core::ids::{Identifier, PoolName, SandboxId, SessionKey, TenantName};
use sandpool_core::line::{Line, Ticket};
use sandpool_core::pool::{Claim, Moment, Pool};
use sandpool_driver::{Description, Driver, DriverError, GoneReason, Phase, Sandbox, Usage};
use sandpool_store::snapshots::Snapshots;
use sandpool_store::{Place, Store};
use sandpool_telemetry::{self as telemetry, Span};
use sandpool_wire::agent::without_words;
use tokio::sync::{Notify, Semaphore, watch};
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::api::*;
use crate::journal;
use crate::lost::Lost;
use crate::metrics::{Ended, Loss, PoolCounts, Refused};
use crate::outward::Outward;
use crate::owner::OwnerRecord;
use crate::session::{InUse, Session};
use crate::tenants::{TenantState, Tenants};
pub(crate) use suspending::{Whom, on_disk};
use waiting::{InLine, Waiting, begin_to_wait};
use waking::Source;

/// The pause after which a caller does not wait for the next attempt to start a sandbox.
const PATIENCE: Duration = Duration::from_secs(2);

/// The moment at which this server started, as its pools count time: so late that sessions can be older.
const ORIGIN: Moment = Duration::from_secs(100 * 365 * 24 * 3600);

/// How often a call may get a sandbox that turns out to be gone, before it gives up.
const ATTEMPTS: usize = 3;

/// How often a sandbox is tried to be destroyed after that: for an hour.
const LATER_ATTEMPTS: u32 = 64;

/// How long a session that was brought back is not suspended again: for whoever waited for it to begin.
const GRACE: Duration = Duration::from_millis(20);

/// Callers of one tenant that may wait for a place in a full pool.
const IN_LINE: usize = 64;

/// A session that is there, or will be in a moment.
type Coming = watch::Receiver<Option<Result<Arc<Session>, NodeError>>>;

#[derive(Debug)]
pub(crate) struct PoolState {
    pub(crate) name: PoolName,
    scope: SessionScope,
    /// What it is declared as now. Its name, its scope and its runtime never change.
    spec: RwLock<Arc<PoolSpec>>,
    /// It was there before anybody applied it: the server is ready when it is.
    pub(crate) is_declared: bool,
    /// Its tasks end with it.
    pub(crate) stop: CancellationToken,
    pub(crate) level: String,
    wall: Vec<String>,
    weaker: Vec<String>,
    driver: Shared,
    pub(crate) identities: Option<Arc<dyn Identities>>,
    tenants: Arc<Tenants>,
    store: Option<Store>,
    outward: Arc<Outward>,
    /// Where sessions are that are suspended, and copies of sessions.
    pub(crate) snapshots: Option<Snapshots>,
    /// Machines that may come back at the same time.
    loads: Semaphore,
    clock: Clock,
    pub(crate) counts: Arc<PoolCounts>,
    inner: Mutex<Inner>,
    /// The sessions there are, or will be in a moment. Changed under the lock of `inner` only; a request on a session
    /// that is there reads this and takes no other lock that sessions share.
    sessions: RwLock<HashMap<SessionKey, Coming>>,
    /// Callers that wait for a sandbox.
    waiting: AtomicUsize,
    /// Callers that have begun to wait, since this server's start.
    waited: AtomicU64,
    /// A sandbox became ready, or there is none to hope for.
    changed: Notify,
    /// The reservoir may want filling.
    refill: Notify,
    /// There is a session, and there was none whose end to wait for.
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
    /// Callers that wait for a place, when every one is taken.
    line: Line,
    /// Whose quota each session counts against.
    payers: HashMap<SandboxId, Arc<TenantState>>,
    lost: Lost,
    /// Sandboxes that are being made and that the driver knows. (Of the others being made it may not know yet.)
    created: HashSet<SandboxId>,
    /// The boot ids of the sandboxes that are ready or belong to a session.
    boots: HashMap<SandboxId, [u8; 16]>,
    trouble: Option<String>,
    /// Sandboxes that are loaded for their sessions, whose end is told by whoever loads them.
    loading: HashSet<SandboxId>,
    /// No sandbox is made before it is declared again.
    is_held: bool,
    /// Nobody gets a session any more.
    is_removed: bool,
}

/// What time it is, by clocks that nobody sets.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Clock {
    /// When this node started.
    pub(crate) start: Instant,
    /// What the host's monotonic clock said then.
    pub(crate) offset: Duration,
}

impl Clock {
    fn monotonic(self) -> Duration {
        self.offset + self.start.elapsed()
    }
}

/// What a pool works with.
type Means = (Arc<dyn Driver>, Option<Arc<dyn Identities>>, Clock, CancellationToken);

impl PoolState {
    pub(crate) fn new(
        spec: PoolSpec,
        is_declared: bool,
        (driver, identities, clock, stop): Means,
        tenants: Arc<Tenants>,
        (store, outward, snapshots): (Option<Store>, Arc<Outward>, Option<Snapshots>),
    ) -> Self {
        let Description { level, wall, weaker } = driver.describe_pool(&spec.name);
        let rules = Pool::new(spec.scale, spec.life);
        let loads = Semaphore::new(usize::try_from(spec.scale.boots).unwrap_or(1).max(1));
        Self {
            name: spec.name.clone(),
            scope: spec.scope,
            spec: RwLock::new(Arc::new(spec)),
            is_declared,
            stop,
            level,
            wall,
            weaker,
            driver: Shared(driver),
            identities,
            tenants,
            store,
            outward,
            snapshots,
            loads,
            clock,
            counts: Arc::default(),
            inner: Mutex::new(Inner {
                rules,
                line: Line::new(IN_LINE),
                payers: HashMap::new(),
                lost: Lost::default(),
                created: HashSet::new(),
                boots: HashMap::new(),
                trouble: None,
                loading: HashSet::new(),
                is_held: false,
                is_removed: false,
            }),
            sessions: RwLock::default(),
            waiting: AtomicUsize::new(0),
            waited: AtomicU64::new(0),
            changed: Notify::new(),
            refill: Notify::new(),
            ends: Notify::new(),
        }
    }

    /// What it is declared as now.
    pub(crate) fn spec(&self) -> Arc<PoolSpec> {
        Arc::clone(&self.spec.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// From now on it is declared so. Sessions that are there keep their sandboxes; where those of later ones are made from something
    /// else (`is_made_anew`), the reservoir is made again.
    pub(crate) fn declare(&self, spec: PoolSpec, is_made_anew: bool) {
        let given_up = {
            let mut inner = self.inner();
            inner.rules.declare(spec.scale, spec.life);
            (inner.trouble, inner.is_held) = (None, false);
            *self.spec.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(spec);
            let given_up = if is_made_anew { inner.rules.give_up_reservoir() } else { Vec::new() };
            for sandbox in &given_up {
                inner.boots.remove(sandbox);
            }
            if is_made_anew {
                inner.created.clear();
            }
            given_up
        };
        for sandbox in given_up {
            self.destroy(sandbox);
        }
        self.changed.notify_waiters();
        self.refill.notify_one();
        self.ends.notify_one();
    }

    /// Why its sandboxes cannot be made before it is declared again. One that works goes on.
    pub(crate) fn is_still_broken(&self, why: String) {
        let mut inner = self.inner();
        inner.trouble = if inner.is_held { Some(why) } else { inner.trouble.take() };
    }

    /// Why its sandboxes cannot be made before it is declared again.
    pub(crate) fn is_broken(&self, why: String) {
        let mut inner = self.inner();
        (inner.trouble, inner.is_held) = (Some(why), true);
    }

    /// Nobody gets a session any more, and those that are there end. Answers when all is destroyed, or cannot be for now.
    pub(crate) async fn end_all(self: &Arc<Self>) {
        self.stop.cancel();
        let (sessions, reservoir) = {
            let mut inner = self.inner();
            inner.is_removed = true;
            let sessions: Vec<_> = inner.rules.sessions().map(|(_, session)| session.sandbox).collect();
            let mut reservoir = inner.rules.give_up_reservoir();
            reservoir.extend(std::mem::take(&mut inner.created));
            for (key, (_, sandbox)) in inner.lost.take_all() {
                tracing::debug!(pool = %self.name, session = %key, "a lost session's pool is removed");
                if let Some(store) = &self.store {
                    store.ended(sandbox);
                }
                reservoir.push(sandbox);
            }
            (sessions, reservoir)
        };
        self.changed.notify_waiters();
        let ends = sessions.into_iter().filter_map(|sandbox| self.end(sandbox, Ended::PoolRemoved)).collect::<Vec<_>>();
        let ends = ends.into_iter().chain(reservoir.into_iter().map(|sandbox| self.destroy(sandbox)));
        // They do not panic; and if they did, the sessions would be ended all the same.
        futures::future::join_all(ends).await;
        self.remove_from_disk().await;
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whoever locks `inner` too locks it first.
    fn sessions(&self) -> RwLockReadGuard<'_, HashMap<SessionKey, Coming>> {
        self.sessions.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// For whoever has locked `inner`.
    fn change_sessions(&self) -> RwLockWriteGuard<'_, HashMap<SessionKey, Coming>> {
        self.sessions.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// The session that is there now.
    fn settled_now(&self, key: &SessionKey) -> Option<Arc<Session>> {
        self.sessions().get(key)?.borrow().clone()?.ok()
    }

    pub(crate) fn now(&self) -> Moment {
        ORIGIN + self.clock.start.elapsed()
    }

    fn instant(&self, at: Moment) -> Instant {
        self.clock.start + at.saturating_sub(ORIGIN)
    }

    /// How old a session is, whatever has been done to the host's clock since it was made.
    fn age(&self, record: &OwnerRecord) -> Duration {
        match record.began {
            Some(began) => self.clock.monotonic().saturating_sub(began),
            None => record.created.elapsed().unwrap_or_default(),
        }
    }

    /// The first request of a new session has been answered.
    pub(crate) fn answered(&self, sandbox: SandboxId) {
        let now = self.now();
        self.inner().rules.answered(sandbox, now);
        self.refill.notify_one();
    }

    pub(crate) fn status(&self) -> PoolStatus {
        let inner = self.inner();
        let (ready, booting, sessions) = inner.rules.counts();
        PoolStatus {
            spec: PoolSpec::clone(&self.spec()),
            ready,
            target: inner.rules.target(self.now()),
            booting,
            sessions,
            is_full: inner.rules.is_full(),
            waited: self.waited.load(Ordering::Relaxed),
            level: self.level.clone(),
            wall: self.wall.clone(),
            weaker: self.weaker.clone(),
            trouble: inner.trouble.clone(),
        }
    }

    pub(crate) fn is_full(&self) -> bool {
        self.inner().rules.is_full()
    }

    /// A sandbox is there, and looks like this.
    pub(crate) fn upsert(self: &Arc<Self>, sandbox: &Sandbox) {
        let id = sandbox.id;
        if matches!(sandbox.phase, Phase::Leaving | Phase::Lost) {
            return;
        }
        let mut inner = self.inner();
        if let Some(key) = inner.rules.owner(id).cloned() {
            drop(inner);
            let began = self.settled_now(&key).map(|session| session.link.boot_id());
            if began.is_some_and(|began| sandbox.boot_id.is_some_and(|now| now != began)) {
                self.lose(id, Loss::StartedAnew, "its sandbox started anew");
            }
        } else if sandbox.phase == Phase::Ready && sandbox.owner.is_none() {
            if let Some(boot) = sandbox.boot_id {
                inner.boots.insert(id, boot);
            }
            inner.created.remove(&id);
            if inner.rules.ready(id, self.now()) {
                inner.trouble = None;
                drop(inner);
                self.changed.notify_waiters();
                self.refill.notify_one();
            } else if !inner.rules.knows(id) {
                // Of a call that seemed to have failed: nobody would ever use it.
                inner.boots.remove(&id);
                drop(inner);
                self.destroy(id);
            }
        }
    }

    /// A sandbox is gone. Nothing happens if it is none of this pool's.
    pub(crate) fn gone(&self, sandbox: SandboxId, reason: &GoneReason) {
        let now = self.now();
        {
            let mut inner = self.inner();
            if !inner.rules.knows(sandbox) || inner.loading.contains(&sandbox) {
                return;
            }
            if let GoneReason::BootFailed(why) = reason {
                inner.trouble = Some(why.clone());
                self.counts.boot_failed();
            }
            inner.boots.remove(&sandbox);
            inner.created.remove(&sandbox);
            if let Some(key) = inner.rules.gone(sandbox, now) {
                self.counts.lost(reason.into());
                let why = match reason {
                    GoneReason::Destroyed => "its sandbox was destroyed".to_owned(),
                    GoneReason::OutOfMemory => "its memory was used up".to_owned(),
                    GoneReason::Died(how) | GoneReason::BootFailed(how) => how.clone(),
                };
                self.forget(&mut inner, &key, Some(why), sandbox);
            }
        }
        self.changed.notify_waiters();
        self.refill.notify_one();
    }

    /// Every sandbox that the driver should list.
    pub(crate) fn known(&self) -> Vec<SandboxId> {
        let inner = self.inner();
        inner.rules.known().chain(inner.created.iter().copied()).collect()
    }

    /// After changes were missed: sandboxes of ours that are not there any more.
    pub(crate) fn lose_missing(&self, known: &[SandboxId], there: &HashSet<SandboxId>) {
        for sandbox in known.iter().filter(|sandbox| !there.contains(sandbox)) {
            self.gone(*sandbox, &GoneReason::Died("its sandbox is gone".to_owned()));
        }
    }

    /// Takes a session's sandbox from it. The session, if it was there.
    fn take(&self, sandbox: SandboxId, lost: Option<&str>) -> Option<SessionKey> {
        let mut inner = self.inner();
        let key = inner.rules.owner(sandbox)?.clone();
        inner.rules.remove(&key);
        inner.boots.remove(&sandbox);
        self.forget(&mut inner, &key, lost.map(str::to_owned), sandbox);
        Some(key)
    }

    /// Gives a session up: its owner hears of it with the next request. By its sandbox, since the same name may be
    /// another session by now.
    pub(crate) fn lose(&self, sandbox: SandboxId, loss: Loss, why: &str) {
        if let Some(key) = self.take(sandbox, Some(why)) {
            self.counts.lost(loss);
            tracing::warn!(pool = %self.name, session = %key, %sandbox, "a session is lost: {}", without_words(why));
            self.destroy(sandbox);
            self.changed.notify_waiters();
            self.refill.notify_one();
        }
    }

    /// Ends a session. Answers the task that destroys its sandbox, if there was one.
    pub(super) fn end(self: &Arc<Self>, sandbox: SandboxId, why: Ended) -> Option<JoinHandle<()>> {
        let key = self.inner().rules.owner(sandbox)?.clone();
        let counted = self.settled_now(&key).filter(|session| session.tenant.counts_usage());
        self.take(sandbox, None)?;
        self.counts.ended(why);
        let task = match counted {
            None => self.destroy(sandbox),
            Some(session) => {
                let pool = Arc::clone(self);
                tokio::spawn(async move {
                    // What it used last, before nobody can tell any more.
                    pool.charge(&session).await;
                    // It does not panic, and tells of its failures.
                    let _ = pool.destroy(sandbox).await;
                })
            }
        };
        self.changed.notify_waiters();
        self.refill.notify_one();
        Some(task)
    }

    /// What a sandbox uses now.
    pub(crate) async fn usage(&self, sandbox: SandboxId) -> Result<Usage, DriverError> {
        self.driver.0.usage(sandbox).await
    }

    /// Charges a session's tenant with what it has used since the last time.
    pub(crate) async fn charge(&self, session: &Session) {
        // A sandbox that is gone, or a driver that does not answer, is told elsewhere.
        if let Ok(usage) = self.usage(session.sandbox).await {
            session.charge(usage, self.now());
        }
    }

    /// Ends a session, as asked.
    pub(crate) async fn delete(self: &Arc<Self>, key: &SessionKey) -> Result<(), NodeError> {
        // First, so that nothing brings it back.
        let was_away = self.forget_on_disk(key).await?;
        let sandbox = {
            let mut inner = self.inner();
            let was_lost = inner.lost.take(key);
            match (inner.rules.session(key), was_lost) {
                (Some(session), _) => session.sandbox,
                // It is as gone as it can be, and its owner does not want it back.
                (None, Some((_, sandbox))) => {
                    if let Some(store) = &self.store {
                        store.ended(sandbox);
                    }
                    self.destroy(sandbox);
                    return Ok(());
                }
                (None, None) if was_away => return Ok(()),
                (None, None) => return Err(NodeError::NoSession(key.identifier.clone())),
            }
        };
        if let Some(task) = self.end(sandbox, Ended::Asked) {
            // It does not panic; and if it did, the session would be ended all the same.
            let _ = task.await;
        }
        Ok(())
    }

    fn forget(&self, inner: &mut Inner, key: &SessionKey, lost: Option<String>, sandbox: SandboxId) {
        let coming = self.change_sessions().remove(key);
        let was_there = coming.is_some();
        if let Some(Some(Ok(session))) = coming.map(|coming| coming.borrow().clone()) {
            session.store_nothing(self.now());
            self.outward.over(sandbox, || self.spec().egress.is_some().then(|| Arc::clone(&session.place)));
        }
        if let Some(payer) = inner.payers.remove(&sandbox) {
            payer.closed();
        }
        match (&lost, &self.store) {
            (Some(why), Some(store)) => store.lost(sandbox, why, without_words(why)),
            (None, Some(store)) => store.ended(sandbox),
            (_, None) => {}
        }
        match lost {
            Some(why) if was_there => inner.lost.add(key.clone(), why, sandbox),
            Some(_) => {}
            None => drop(inner.lost.take(key)),
        }
    }

    /// Destroys a sandbox. The task ends when it is destroyed, or after some attempts; then others go on trying, since what is left
    /// takes up room for as long as this server lives.
    pub(crate) fn destroy(&self, sandbox: SandboxId) -> JoinHandle<()> {
        let driver = Arc::clone(&self.driver.0);
        tokio::spawn(async move {
            for _ in 0..ATTEMPTS {
                match driver.destroy(sandbox).await {
                    Ok(()) | Err(DriverError::Gone(_)) => return,
                    Err(error) => tracing::error!(%sandbox, "a sandbox could not be destroyed: {error}"),
                }
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
            tokio::spawn(async move {
                let mut pause = Duration::from_secs(2);
                for _ in 0..LATER_ATTEMPTS {
                    if matches!(driver.destroy(sandbox).await, Ok(()) | Err(DriverError::Gone(_))) {
                        return;
                    }
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(Duration::from_secs(60));
                }
                tracing::error!(%sandbox, "a sandbox could not be destroyed in an hour: it is given up");
            });
        })
    }

    /// The session that a tenant's caller means by this key: found, or made at that tenant's expense.
    pub(crate) async fn open(
        self: &Arc<Self>,
        key: &SessionKey,
        open: Open,
        given: &Arc<Given>,
        caller: &Caller,
    ) -> Result<(Arc<Session>, Found), NodeError> {
        let (tenant, key) = (&key.tenant, &*self.scoped(key));
        if let Some(session) = self.settled_now(key) {
            session.activity.touch(self.now());
            return Ok((session, Found::There));
        }
        let patience = Instant::now() + crate::node::boot_limit(&self.spec());
        let mut attempts = 0;
        // Kept until there is a sandbox: one that is ready for who waits is not one too many.
        let mut waiting = None;
        let mut in_line: Option<InLine<'_>> = None;
        let mut wait: Option<Span> = None;
        loop {
            // Registered before the look, so that nothing happens unseen between the two.
            let changed = self.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            match self.claim(key, tenant, open, (given, caller), in_line.as_ref().map(|place| place.ticket))? {
                Look::There(coming, new) => {
                    (waiting, in_line) = (None, None);
                    if let Some(wait) = wait.take() {
                        wait.end(None);
                    }
                    match settled(coming).await {
                        // Its sandbox turned out to be of no use: the next one may be.
                        Err(NodeError::Unavailable(_)) if attempts + 1 < ATTEMPTS => attempts += 1,
                        // It was on its way to the disk: from there it comes back.
                        Err(NodeError::Suspended(_)) => {}
                        outcome => return outcome.map(|session| (session, new)),
                    }
                }
                Look::Full(full) => {
                    wait = wait.take().or_else(|| begin_to_wait("place"));
                    let place = match &in_line {
                        Some(place) => place,
                        None => match self.join(tenant) {
                            Some(place) => in_line.insert(place),
                            None => return Err(full),
                        },
                    };
                    if tokio::time::timeout_at(place.until, changed).await.is_err() {
                        return Err(full);
                    }
                }
                Look::Boots => {
                    if let Some(reason) = self.hopeless(waiting.is_some()) {
                        return Err(NodeError::PoolBroken { pool: self.name.clone(), reason });
                    }
                    if waiting.is_none() {
                        self.waited.fetch_add(1, Ordering::Relaxed);
                        waiting = Some(Waiting::begin(&self.waiting));
                    }
                    wait = wait.take().or_else(|| begin_to_wait("boot"));
                    self.refill.notify_one();
                    let waited = tokio::time::timeout_at(patience, changed).await;
                    if waited.is_err() {
                        return Err(match self.inner().trouble.clone() {
                            // Others failed meanwhile, and none became ready.
                            Some(reason) => NodeError::PoolBroken { pool: self.name.clone(), reason },
                            None => NodeError::Unavailable("no sandbox became ready in time".to_owned()),
                        });
                    }
                }
            }
        }
    }

    /// A place in the line for a tenant's caller; none where nobody waits, or as many of its callers as may.
    fn join(&self, tenant: &TenantName) -> Option<InLine<'_>> {
        if self.spec().full_wait.is_zero() {
            return None;
        }
        let weight = self.tenants.get(tenant).weight;
        let ticket = self.inner().line.join(tenant, weight).ok()?;
        // Whoever has just joined may be the first, and what it waits for may have come before it did.
        self.changed.notify_waiters();
        Some(InLine { pool: self, ticket, until: Instant::now() + self.spec().full_wait })
    }

    /// Why a caller need not wait for a sandbox: they do not start, none is on its way, and the next attempt has been
    /// waited for or is far off.
    fn hopeless(&self, has_waited: bool) -> Option<String> {
        let inner = self.inner();
        let (_, booting, _) = inner.rules.counts();
        let far = inner.rules.not_before().is_some_and(|at| at > self.now() + PATIENCE);
        inner.trouble.clone().filter(|_| inner.is_held || booting == 0 && (has_waited || far))
    }

    /// How long a tenant that was refused something should wait before it hears so.
    pub(crate) fn hold(&self, tenant: &TenantName) -> Duration {
        self.tenants.get(tenant).hold(self.now())
    }

    /// One look at the rules, for a caller that may have a place in the line.
    fn claim(
        self: &Arc<Self>,
        key: &SessionKey,
        payer: &TenantName,
        open: Open,
        (given, caller): (&Arc<Given>, &Caller),
        ticket: Option<Ticket>,
    ) -> Result<Look, NodeError> {
        let now = self.now();
        let mut inner = self.inner();
        if inner.is_removed {
            return Err(NodeError::NoPool(self.name.to_string()));
        }
        if let Some((reason, sandbox)) = inner.lost.take(key) {
            self.heard(sandbox);
            return Err(NodeError::SessionLost { identifier: key.identifier.clone(), reason });
        }
        let source = if inner.rules.session(key).is_some() { None } else { self.away(key)? };
        // Whose session it was, whoever asks for it.
        let payer = source.as_ref().map_or(payer, Source::payer).clone();
        let tenant = if inner.rules.session(key).is_some() {
            None
        } else if open == Open::Existing && source.is_none() {
            return Err(NodeError::NoSession(key.identifier.clone()));
        } else {
            if self.store.as_ref().is_some_and(Store::is_in_trouble) {
                return Err(journal::unwritable());
            }
            let tenant = self.tenants.get(&payer);
            tenant.may_open(now)?;
            Some(tenant)
        };
        if tenant.is_some() && !inner.line.is_empty() {
            // Others came before, and it is not always one of their tenant's turn.
            let (_, _, active) = inner.rules.counts();
            let places = usize::try_from(self.spec().scale.max_sessions.saturating_sub(active)).unwrap_or(usize::MAX);
            let is_its_turn = match ticket {
                Some(ticket) => inner.line.is_among_first(ticket, places),
                None => inner.line.len() < places,
            };
            if !is_its_turn {
                return Ok(Look::Full(self.exhausted(active, Duration::from_secs(1))));
            }
        }
        let loaded =
            source.as_ref().filter(|source| source.keeps() == Keeps::Machine).map(|_| new_id(true)).transpose()?;
        let claim = |rules: &mut Pool| match loaded {
            Some(sandbox) => rules.claim_with(key, sandbox, now),
            None => rules.claim(key, now),
        };
        let mut claimed = claim(&mut inner.rules);
        if matches!(claimed, Claim::Full { .. }) {
            // When a place becomes free is asked again, with what goes on in the sessions now.
            self.look_at_sessions(&mut inner);
            claimed = claim(&mut inner.rules);
        }
        match claimed {
            Claim::Existing(_) => {
                let coming = self.sessions().get(key).cloned();
                let coming = coming.ok_or_else(|| NodeError::NoSession(key.identifier.clone()))?;
                Ok(Look::There(coming, Found::There))
            }
            Claim::Fresh(sandbox) => {
                let (sender, coming) = watch::channel(None);
                self.change_sessions().insert(key.clone(), coming.clone());
                self.counts.opened();
                if let Some(tenant) = tenant {
                    tenant.opened(now);
                    inner.payers.insert(sandbox, tenant);
                }
                inner.loading.extend(loaded);
                if let Some(ticket) = ticket {
                    inner.line.served(ticket);
                }
                drop(inner);
                let record = OwnerRecord {
                    identifier: key.identifier.clone(),
                    created: SystemTime::now(),
                    began: Some(self.clock.monotonic()),
                    subject: caller.subject.chars().take(200).collect(),
                    tenant: payer,
                    has_secrets: source.is_none() && !given.secrets.is_empty(),
                };
                let found = source.as_ref().map_or(Found::Made, Source::found);
                let (pool, given) = (Arc::clone(self), Arc::clone(given));
                let span = telemetry::current().and_then(|trace| trace.child("sandpool.activation"));
                // A task of its own: a client that goes away in the middle leaves nothing half done.
                tokio::spawn(async move {
                    let session = match source {
                        None => pool.connect(sandbox, record, connecting::Coming::Fresh(given)).await,
                        Some(source) => pool.wake(sandbox, record, source).await,
                    };
                    if let Some(span) = span {
                        span.end(session.as_ref().err().map(Refused::word_of));
                    }
                    pool.inner().loading.remove(&sandbox);
                    if session.is_err() {
                        pool.end(sandbox, Ended::Failed);
                    }
                    // Nobody suspends it again before those it was brought back for have begun.
                    let grace = session.as_ref().ok().filter(|_| found != Found::Made).cloned();
                    let grace = grace.map(|session| InUse::quietly(&pool, &session));
                    sender.send_replace(Some(session));
                    pool.refill.notify_one();
                    pool.ends.notify_one();
                    if grace.is_some() {
                        tokio::time::sleep(GRACE).await;
                    }
                });
                Ok(Look::There(coming, found))
            }
            Claim::Wait => Ok(Look::Boots),
            Claim::Full { active, retry_after, .. } => Ok(Look::Full(self.exhausted(active, retry_after))),
        }
    }

    fn exhausted(&self, active: u32, retry_after: Duration) -> NodeError {
        let limit = self.spec().scale.max_sessions;
        NodeError::Exhausted { pool: self.name.clone(), active, limit, retry_after }
    }

    /// What tells a session from others here.
    fn key(&self, payer: &TenantName, identifier: &Identifier) -> SessionKey {
        let tenant = match self.scope {
            SessionScope::Tenant => payer.clone(),
            SessionScope::Pool => TenantName::default(),
        };
        SessionKey::new(tenant, identifier.clone())
    }

    /// The key under which a caller's session is here: where all tenants share their sessions, in nobody's room.
    pub(crate) fn scoped<'a>(&self, key: &'a SessionKey) -> Cow<'a, SessionKey> {
        match self.scope {
            SessionScope::Tenant => Cow::Borrowed(key),
            SessionScope::Pool if key.tenant.is_default() => Cow::Borrowed(key),
            SessionScope::Pool => Cow::Owned(key.identifier.clone().into()),
        }
    }

    /// A further stream to a sandbox.
    pub(crate) async fn dial(&self, sandbox: SandboxId) -> Result<sandpool_driver::Stream, DriverError> {
        self.driver.0.dial(sandbox).await
    }

    /// Where the session is that has this sandbox.
    pub(crate) fn place_of(&self, sandbox: SandboxId) -> Option<Arc<Place>> {
        let key = self.owner(sandbox)?;
        Some(Arc::clone(&self.settled_now(&key).filter(|session| session.sandbox == sandbox)?.place))
    }

    /// The session that has this sandbox.
    pub(crate) fn owner(&self, sandbox: SandboxId) -> Option<SessionKey> {
        self.inner().rules.owner(sandbox).cloned()
    }

    /// Every session that is there now.
    pub(crate) fn all_sessions(&self) -> Vec<Arc<Session>> {
        self.sessions().values().filter_map(|coming| coming.borrow().clone()?.ok()).collect()
    }

    /// Tells the rules what goes on in the sessions.
    fn look_at_sessions(&self, inner: &mut Inner) {
        for coming in self.sessions().values() {
            if let Some(Ok(session)) = &*coming.borrow() {
                let (used, busy) = session.activity.seen();
                inner.rules.seen(session.sandbox, used, busy);
            }
        }
    }

    /// Fills the reservoir whenever it wants filling.
    pub(crate) async fn fill(self: Arc<Self>) {
        loop {
            let (wanted, surplus) = {
                let (mut inner, now) = (self.inner(), self.now());
                let waiting = self.waiting.load(Ordering::SeqCst);
                let surplus = inner.rules.surplus(waiting, now);
                if let Some(sandbox) = surplus {
                    inner.boots.remove(&sandbox);
                }
                (if inner.is_held { 0 } else { inner.rules.wanted(waiting, now) }, surplus)
            };
            if let Some(sandbox) = surplus {
                tracing::debug!(pool = %self.name, %sandbox, "a ready sandbox is one too many");
                self.destroy(sandbox);
            }
            for _ in 0..wanted {
                self.begin_one().await;
            }
            // Asked afterwards: one of those may have failed at once.
            let later = self.inner().rules.looks_again(self.now()).map(|at| self.instant(at));
            tokio::select! {
                () = self.stop.cancelled() => return,
                () = self.refill.notified() => {}
                () = until(later) => {}
            }
        }
    }

    async fn begin_one(&self) {
        let id = match new_id(false) {
            Ok(id) => id,
            Err(error) => {
                self.inner().trouble = Some(error.to_string());
                return;
            }
        };
        let now = self.now();
        self.inner().rules.booting(id, now);
        match self.driver.0.create(id, &self.name).await {
            Ok(()) => {
                let mut inner = self.inner();
                if inner.rules.is_booting(id) {
                    inner.created.insert(id);
                } else if !inner.rules.knows(id) {
                    // The reservoir was given up meanwhile, or the whole pool.
                    drop(inner);
                    self.destroy(id);
                }
            }
            Err(error) => {
                tracing::warn!(pool = %self.name, "a sandbox could not be made: {}", without_words(&error.to_string()));
                self.counts.boot_failed();
                let now = self.now();
                {
                    let mut inner = self.inner();
                    inner.trouble = Some(error.to_string());
                    inner.rules.gone(id, now);
                }
                // The answer may have been lost, and not the call.
                self.destroy(id);
                self.changed.notify_waiters();
            }
        }
    }

    /// Ends sessions whose time is over.
    pub(crate) async fn reap(self: Arc<Self>) {
        loop {
            let (over, next, idle) = {
                let mut inner = self.inner();
                // Since the last look sessions may have been used: then they end later.
                self.look_at_sessions(&mut inner);
                let now = self.now();
                let (over, next) = inner.rules.expired(now);
                let sandboxes = over.iter().filter_map(|key| inner.rules.session(key));
                let after = self.spec().suspends.after.filter(|_| self.snapshots.is_some());
                let idle = after.map(|after| inner.rules.idle(after, now)).unwrap_or_default();
                (sandboxes.map(|session| session.sandbox).collect::<Vec<_>>(), next, idle)
            };
            let next = [next, self.suspend_idle(idle), self.expire_suspended()].into_iter().flatten().min();
            for sandbox in over {
                tracing::info!(pool = %self.name, %sandbox, "a session ends: it was idle, or old");
                self.end(sandbox, Ended::Over);
            }
            tokio::select! {
                () = self.stop.cancelled() => return,
                () = self.ends.notified() => {}
                () = until(next.map(|at| self.instant(at))) => {}
            }
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

/// How a caller found its session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Found {
    /// It was there.
    There,
    /// It was made for it.
    Made,
    /// It was on disk, with this of it.
    Woken(Keeps),
}

fn new_id(is_loaded: bool) -> Result<SandboxId, NodeError> {
    let mut id = [0; 16];
    getrandom::fill(&mut id).map_err(|error| NodeError::Unavailable(format!("no random numbers: {error}")))?;
    Ok(if is_loaded { SandboxId::of_loaded(id) } else { SandboxId::from_random(id) })
}

/// One look at the rules.
enum Look {
    /// The session is there or comes.
    There(Coming, Found),
    /// It has to wait for a sandbox, which will come.
    Boots,
    /// It has to wait for a place, which may come; and what to say if it does not.
    Full(NodeError),
}
