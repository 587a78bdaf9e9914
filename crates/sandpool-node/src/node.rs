//! [`Node`]: one machine's pools and sessions.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{Arc, PoisonError, RwLock, RwLockWriteGuard};
use std::time::Duration;

use futures::stream::BoxStream;
use sandpool_core::ids::{ExecutionId, PoolName, SandboxId, SessionKey};
use sandpool_driver::{Change, Driver, DriverError, Phase, Template, Usage};
use sandpool_store::snapshots::Snapshots;
use sandpool_store::{Deed, Store};
use sandpool_telemetry as telemetry;
use sandpool_wire::agent::ToAgent;
use sandpool_wire::egress::Decided;
use tokio::sync::Semaphore;
use tokio::sync::broadcast::error::RecvError;
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;

use crate::api::*;
use crate::by_name::ByName;
use crate::journal;
use crate::metrics::{Calls, Metrics, Refused, counted};
use crate::outward::{Outward, ReachedReader};
use crate::pools::{Clock, Found, PoolState};
use crate::record::Record;
use crate::samples::{self, SampleReader, Samples};
use crate::session::{InUse, Session};
use crate::tenants::Tenants;
use crate::usages::Usages;

/// The pause before sandboxes that could not be listed are listed again.
const LIST_AGAIN: Duration = Duration::from_secs(1);

/// How often it is counted what sandboxes use, of tenants for which that is limited.
const USAGE_COUNTED: Duration = Duration::from_secs(5);

/// How often it is looked which decisions are to be written.
const DECISIONS_LOOKED_AT: Duration = Duration::from_secs(1);

/// How long an execution that need not wait may take to begin.
const BEGINS: Duration = Duration::from_millis(20);

/// How often the last sandboxes are looked for at shutdown.
const ROUNDS: usize = 5;

/// One machine's pools and sessions. Cheap to clone; all clones are the same node.
#[derive(Clone, Debug)]
pub struct Node {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    driver: crate::pools::Shared,
    calls: Arc<Calls>,
    pools: RwLock<BTreeMap<PoolName, Arc<PoolState>>>,
    /// One change of a pool at a time.
    changing: ByName,
    tenants: Arc<Tenants>,
    usages: Usages,
    store: Option<Store>,
    snapshots: Option<Snapshots>,
    /// What sessions reached.
    outward: Arc<Outward>,
    /// Places for sessions of which samples are taken.
    sampled: Arc<Semaphore>,
    identities: Option<Arc<dyn Identities>>,
    clock: Clock,
    stop: CancellationToken,
}

/// What a node is built from.
#[derive(Debug, Default)]
pub struct NodeConfig {
    /// The pools that are there from the start. When they have their ready sandboxes, the node is ready.
    pub pools: Vec<PoolSpec>,
    /// Pools that were applied to a node before this one, and why there can be no sandbox of one, where that is known. One that cannot be
    /// made is there all the same, and says why.
    pub applied: Vec<(PoolSpec, Option<String>)>,
    /// The tenants that have a quota or a weight of their own.
    pub tenants: Vec<Tenant>,
    /// What the host's monotonic clock says now (`CLOCK_MONOTONIC` of Linux). It goes on from server to server, so that sessions
    /// are as old as they are, whatever is done to the clock that people set.
    pub monotonic: Duration,
    /// Where it is written down what nobody else would know after a restart; without it nothing is.
    pub store: Option<Store>,
    /// Where sessions are that are suspended, and copies of them; without it no session is.
    pub snapshots: Option<Snapshots>,
    /// Who signs sessions' identities; without it they have none.
    pub identities: Option<Arc<dyn Identities>>,
}

/// A handle on one execution. Dropping it changes nothing.
#[derive(Clone, Debug)]
pub struct ExecutionHandle {
    session: Arc<Session>,
    record: Arc<Record>,
    /// It is the first since its session was brought back, with this of what had been there.
    resumed: Option<Keeps>,
}

/// What a driver's answer about a session's sandbox means for the session.
pub(crate) fn of_session(key: &SessionKey, error: DriverError) -> NodeError {
    match error {
        DriverError::Gone(_) => NodeError::NoSession(key.identifier.clone()),
        error => NodeError::Unavailable(error.to_string()),
    }
}

/// A refusal, once its tenant may hear it: one that asks without end for more than its quota is slowed down, so that its asking costs the
/// others little.
pub(crate) async fn held(pool: &PoolState, error: NodeError) -> NodeError {
    pool.counts.refused(&error);
    if let NodeError::OverQuota { tenant, .. } = &error {
        let hold = pool.hold(tenant);
        if !hold.is_zero() {
            tokio::time::sleep(hold).await;
        }
    }
    error
}

/// How long a sandbox may take to become ready.
const BOOT_LIMIT: Duration = Duration::from_secs(60);

/// How long a sandbox of this pool may take to become ready.
pub(crate) fn boot_limit(spec: &PoolSpec) -> Duration {
    let own = spec.container.as_ref().map(|container| container.main.patience() + Duration::from_secs(10));
    own.map_or(BOOT_LIMIT, |own| own.max(BOOT_LIMIT))
}

/// What a pool's sandboxes are made from.
fn template(spec: &PoolSpec) -> Template {
    Template {
        pool: spec.name.clone(),
        runtime: spec.runtime,
        rootfs: spec.rootfs.clone(),
        isolation: spec.isolation,
        limits: spec.limits,
        boot_limit: boot_limit(spec),
        local_servers: spec.local_servers,
        main: spec.container.as_ref().map(|container| container.main.clone()),
        start: spec.start,
        egress: spec.egress.clone(),
    }
}

/// A pool begins to work.
fn begin(pool: Arc<PoolState>) {
    tokio::spawn(Arc::clone(&pool).fill());
    tokio::spawn(pool.reap());
}

impl Node {
    /// Takes over what the driver already has, and begins to fill the reservoirs.
    ///
    /// # Errors
    /// `PoolBroken` when a pool cannot be made of its image and limits, `Unavailable` when the driver does not answer.
    pub async fn start(config: NodeConfig, driver: Arc<dyn Driver>) -> Result<Self, NodeError> {
        let clock = Clock { start: Instant::now(), offset: config.monotonic };
        let (driver, calls) = counted(driver);
        let mut changes = driver.watch();
        let tenants = Arc::new(Tenants::new(config.tenants));
        let node = Self {
            inner: Arc::new(Inner {
                driver: crate::pools::Shared(Arc::clone(&driver)),
                calls,
                pools: RwLock::default(),
                changing: ByName::default(),
                tenants: Arc::clone(&tenants),
                usages: Usages::default(),
                store: config.store,
                snapshots: config.snapshots,
                outward: Arc::default(),
                sampled: Arc::new(Semaphore::new(samples::MOST)),
                identities: config.identities,
                clock,
                stop: CancellationToken::new(),
            }),
        };
        for spec in config.pools {
            let name = spec.name.clone();
            let pool = match driver.ensure_pool(&template(&spec)).await {
                Ok(()) => node.new_pool(spec, true),
                // What this host cannot offer is that pool's state, and no reason to be without the others.
                Err(error) if spec.isolation != Isolation::Process => {
                    tracing::error!(pool = %name, "a pool is refused: {error}");
                    let pool = node.new_pool(spec, false);
                    pool.is_broken(error.to_string());
                    pool
                }
                Err(error) => return Err(NodeError::PoolBroken { pool: name, reason: error.to_string() }),
            };
            node.change_pools().insert(name, pool);
        }
        for (spec, broken) in config.applied {
            let name = spec.name.clone();
            let broken = match broken {
                Some(why) => Some(why),
                None => driver.ensure_pool(&template(&spec)).await.err().map(|error| error.to_string()),
            };
            let pool = node.new_pool(spec, false);
            if let Some(why) = broken {
                tracing::error!(pool = %name, "an applied pool cannot be made: {why}");
                pool.is_broken(why);
            }
            node.change_pools().entry(name).or_insert(pool);
        }
        let listed = driver.list().await.map_err(|error| NodeError::Unavailable(error.to_string()))?;
        // What a server before this one had tried to destroy in vain.
        let over = match &node.inner.store {
            Some(store) => store.over().await,
            None => HashSet::new(),
        };
        let there: HashSet<_> = listed.iter().map(|sandbox| sandbox.id).filter(|id| !over.contains(id)).collect();
        for sandbox in listed {
            match node.find(&sandbox.pool) {
                Some(pool) if over.contains(&sandbox.id) => drop(pool.destroy(sandbox.id)),
                Some(pool) => pool.adopt(&sandbox),
                None => {
                    // Of a pool that is not declared any more.
                    if let Err(error) = driver.destroy(sandbox.id).await {
                        tracing::error!("a sandbox of an old pool could not be destroyed: {error}");
                    }
                }
            }
        }
        if let Some(store) = &node.inner.store {
            for known in store.sessions().await {
                match node.find(&known.place.pool) {
                    Some(pool) if !there.contains(&known.place.sandbox) => pool.remember(&known),
                    Some(_) | None => {}
                }
            }
        }
        node.all().into_iter().for_each(begin);
        if tenants.count_usage() {
            tokio::spawn(node.clone().count_usage());
        }
        tokio::spawn(node.clone().hear_decisions());
        let watching = node.clone();
        tokio::spawn(async move {
            loop {
                let change = tokio::select! {
                    () = watching.inner.stop.cancelled() => return,
                    change = changes.recv() => change,
                };
                match change {
                    Ok(change) => watching.changed(&change),
                    Err(RecvError::Lagged(_)) => watching.list_again().await,
                    Err(RecvError::Closed) => return,
                }
            }
        });
        Ok(node)
    }

    /// Charges tenants for which it is limited with what their sandboxes use, session by session, all in one task.
    async fn count_usage(self) {
        loop {
            tokio::select! {
                () = self.inner.stop.cancelled() => return,
                () = tokio::time::sleep(USAGE_COUNTED) => {}
            }
            for pool in self.all() {
                for session in pool.all_sessions().iter().filter(|session| session.tenant.counts_usage()) {
                    pool.charge(session).await;
                }
            }
        }
    }

    /// Takes what the driver's egress proxy decides.
    async fn hear_decisions(self) {
        let Inner { driver, outward, store, stop, .. } = &*self.inner;
        let mut ticks = tokio::time::interval(DECISIONS_LOOKED_AT);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let told = tokio::select! {
                biased;
                () = stop.cancelled() => return,
                _ = ticks.tick() => {
                    outward.tick(store.as_ref());
                    continue;
                }
                told = driver.0.decided() => told,
            };
            outward.miss(told.missed);
            let mut of: BTreeMap<(String, SandboxId), Vec<Decided>> = BTreeMap::new();
            for decided in told.decided {
                of.entry((decided.pool.clone(), SandboxId(decided.sandbox))).or_default().push(decided);
            }
            for ((pool, sandbox), decided) in of {
                // One that was removed meanwhile has no counts any more.
                let Some(pool) = PoolName::parse(&pool).ok().and_then(|pool| self.find(&pool)) else { continue };
                decided.iter().for_each(|decided| pool.counts.decided(decided));
                outward.take(sandbox, decided, || pool.place_of(sandbox), store.as_ref());
            }
        }
    }

    fn changed(&self, change: &Change) {
        match change {
            Change::Upsert(sandbox) => {
                if let Some(pool) = self.find(&sandbox.pool) {
                    pool.upsert(sandbox);
                }
            }
            Change::Gone { id, reason } => {
                for pool in self.all() {
                    pool.gone(*id, reason);
                }
            }
        }
    }

    /// Changes have been missed, so all that is there counts as changed.
    async fn list_again(&self) {
        loop {
            // Before the list is taken: what is made meanwhile is not in it, and not missing.
            let known: Vec<_> = self.all().into_iter().map(|pool| (pool.known(), pool)).collect();
            match self.inner.driver.0.list().await {
                Ok(sandboxes) => {
                    let there = sandboxes.iter().filter(|sandbox| sandbox.phase != Phase::Lost);
                    let there: HashSet<_> = there.map(|sandbox| sandbox.id).collect();
                    for (known, pool) in known {
                        pool.lose_missing(&known, &there);
                    }
                    for sandbox in sandboxes {
                        self.changed(&Change::Upsert(sandbox));
                    }
                    return;
                }
                Err(error) => tracing::error!("the sandboxes cannot be listed: {error}"),
            }
            // Without the list, what was missed would stay missed.
            tokio::select! {
                () = self.inner.stop.cancelled() => return,
                () = tokio::time::sleep(LIST_AGAIN) => {}
            }
        }
    }

    /// Stops in order: no new work, running executions get `grace` to end, then every sandbox is destroyed.
    pub async fn shutdown(&self, grace: Duration) {
        self.inner.stop.cancel();
        let deadline = Instant::now() + grace;
        for pool in self.all() {
            for session in pool.all_sessions() {
                for record in session.executions() {
                    if tokio::time::timeout_at(deadline, record.ended()).await.is_err() {
                        break;
                    }
                }
            }
        }
        // More than once: one may have been in the making.
        for _ in 0..ROUNDS {
            let Ok(sandboxes) = self.inner.driver.0.list().await else { break };
            if sandboxes.is_empty() {
                // In order, all of them: there is nothing to be told of them later.
                for session in self.all().iter().flat_map(|pool| pool.all_sessions()) {
                    if let Some(journal) = &session.journal {
                        journal.store.ended(session.sandbox);
                    }
                }
                break;
            }
            let ends = sandboxes.into_iter().map(|sandbox| self.inner.driver.0.destroy(sandbox.id));
            futures::future::join_all(ends).await;
        }
        if let Some(store) = self.inner.store.clone() {
            self.inner.outward.finish(Some(&store));
            // It writes what is left, if it can. A panic in it has been told.
            let _ = tokio::task::spawn_blocking(move || store.close()).await;
        }
    }

    /// Every pool that was there from the start has as many ready sandboxes as it was asked to keep (or sessions that use them).
    #[must_use]
    pub fn is_ready(&self) -> bool {
        !self.inner.stop.is_cancelled() && self.all().iter().all(|pool| !pool.is_declared || pool.is_full())
    }

    /// The pools, by name.
    #[must_use]
    pub fn pools(&self) -> Vec<PoolStatus> {
        self.all().iter().map(|pool| pool.status()).collect()
    }

    /// What is counted here, as it is now.
    #[must_use]
    pub fn metrics(&self) -> Metrics {
        let Inner { tenants, calls, store, outward, .. } = &*self.inner;
        Metrics::of(&self.all(), tenants, calls, store.as_ref(), outward.missed())
    }

    /// One pool.
    ///
    /// # Errors
    /// `NoPool`.
    pub fn pool(&self, pool: &PoolName) -> Result<PoolStatus, NodeError> {
        self.state(pool).map(|pool| pool.status())
    }

    /// What a pool was declared as.
    ///
    /// # Errors
    /// `NoPool`.
    pub fn spec(&self, pool: &PoolName) -> Result<Arc<PoolSpec>, NodeError> {
        self.state(pool).map(|pool| pool.spec())
    }

    pub(crate) fn state(&self, pool: &PoolName) -> Result<Arc<PoolState>, NodeError> {
        self.find(pool).ok_or_else(|| NodeError::NoPool(pool.to_string()))
    }

    fn find(&self, pool: &PoolName) -> Option<Arc<PoolState>> {
        self.inner.pools.read().unwrap_or_else(PoisonError::into_inner).get(pool).cloned()
    }

    pub(crate) fn driver(&self) -> &Arc<dyn Driver> {
        &self.inner.driver.0
    }

    pub(crate) fn all(&self) -> Vec<Arc<PoolState>> {
        self.inner.pools.read().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }

    fn change_pools(&self) -> RwLockWriteGuard<'_, BTreeMap<PoolName, Arc<PoolState>>> {
        self.inner.pools.write().unwrap_or_else(PoisonError::into_inner)
    }

    fn new_pool(&self, spec: PoolSpec, is_declared: bool) -> Arc<PoolState> {
        let Inner { driver, tenants, store, snapshots, identities, outward, clock, stop, .. } = &*self.inner;
        let with = (Arc::clone(&driver.0), identities.clone(), *clock, stop.child_token());
        let told = (store.clone(), Arc::clone(outward), snapshots.clone());
        Arc::new(PoolState::new(spec, is_declared, with, Arc::clone(tenants), told))
    }

    /// Makes a pool, or changes one: sessions that are there keep their sandboxes, and those that follow are made from what is said now.
    /// What they may reach holds for both at once.
    ///
    /// # Errors
    /// `Invalid` for another runtime, scope or isolation than the pool has, `PoolBroken` when no sandbox can be made of this: then all is as it was.
    pub async fn apply(&self, spec: PoolSpec) -> Result<(), NodeError> {
        let _one = self.inner.changing.lock(&spec.name).await;
        if self.inner.stop.is_cancelled() {
            return Err(NodeError::Unavailable("the server is stopping".to_owned()));
        }
        let (name, after) = (spec.name.clone(), template(&spec));
        let present = self.find(&name);
        if let Some(before) = present.as_ref().map(|pool| pool.spec())
            && (before.runtime, before.scope, before.isolation) != (spec.runtime, spec.scope, spec.isolation)
        {
            let why = "a pool keeps its runtime, its scope and its isolation: remove it, and make it anew";
            return Err(NodeError::Invalid(why.to_owned()));
        }
        let ensured = self.inner.driver.0.ensure_pool(&after).await;
        ensured.map_err(|error| NodeError::PoolBroken { pool: name.clone(), reason: error.to_string() })?;
        match present {
            Some(pool) => {
                let mut before = template(&pool.spec());
                if before.egress.is_some() == after.egress.is_some() {
                    // It holds for those that are there as well.
                    before.egress.clone_from(&after.egress);
                }
                pool.declare(spec, before != after);
            }
            None => {
                let pool = self.new_pool(spec, false);
                self.change_pools().insert(name, Arc::clone(&pool));
                begin(pool);
            }
        }
        Ok(())
    }

    /// A pool of which no sandbox can be made before it is applied: whoever wants a session is told why. One that works stays as it is.
    ///
    /// # Errors
    /// `Unavailable` when the server is stopping.
    pub async fn announce(&self, spec: PoolSpec, why: String) -> Result<(), NodeError> {
        let _one = self.inner.changing.lock(&spec.name).await;
        if self.inner.stop.is_cancelled() {
            return Err(NodeError::Unavailable("the server is stopping".to_owned()));
        }
        match self.find(&spec.name) {
            Some(pool) => pool.is_still_broken(why),
            None => {
                let name = spec.name.clone();
                let pool = self.new_pool(spec, false);
                pool.is_broken(why);
                self.change_pools().insert(name, Arc::clone(&pool));
                begin(pool);
            }
        }
        Ok(())
    }

    /// Removes a pool, and ends its sessions. Answers when all of it is gone, but for what cannot be destroyed for now.
    ///
    /// # Errors
    /// `NoPool`; `Unavailable` when the driver does not answer: then the pool is gone, and its sessions end.
    pub async fn remove(&self, name: &PoolName) -> Result<(), NodeError> {
        let _one = self.inner.changing.lock(name).await;
        let pool = self.change_pools().remove(name).ok_or_else(|| NodeError::NoPool(name.to_string()))?;
        let forgotten = self.inner.driver.0.remove_pool(name).await;
        pool.end_all().await;
        forgotten.map_err(|error| NodeError::Unavailable(error.to_string()))
    }

    /// The session of that name: found, or made from a ready sandbox (waiting for one to boot if none is ready and
    /// the pool may have more, for at most its boot limit). Counts as use.
    ///
    /// # Errors
    /// `Exhausted` when the pool is full, `SessionLost` once for a session whose sandbox is gone, `NoSession` when it
    /// may not be made, `PoolBroken` and `Unavailable` when no sandbox can be had.
    pub async fn open(
        &self,
        pool: &PoolName,
        key: &SessionKey,
        open: Open,
        caller: &Caller,
    ) -> Result<Opened, NodeError> {
        self.open_with(pool, key, open, Given::default(), caller).await
    }

    /// The same; a session that is made is given this.
    ///
    /// # Errors
    /// Those of [`Node::open`]; `Invalid` for what the pool's sessions cannot be given ([`Given::check`] says it before), and where the
    /// session is there already: it has what it was given.
    pub async fn open_with(
        &self,
        pool: &PoolName,
        key: &SessionKey,
        open: Open,
        given: Given,
        caller: &Caller,
    ) -> Result<Opened, NodeError> {
        let began = Instant::now();
        if self.inner.stop.is_cancelled() {
            return Err(NodeError::Unavailable("the server is stopping".to_owned()));
        }
        let pool = self.state(pool)?;
        given.check(&pool.spec()).map_err(|(field, why)| NodeError::Invalid(format!("{field}: {why}")))?;
        let is_given = !given.is_empty();
        let span = telemetry::current().and_then(|trace| trace.child("sandpool.allocation"));
        let inside = span.as_ref().map(|span| span.trace().clone());
        let given = Arc::new(given);
        let opened = telemetry::scope(inside, pool.open(key, open, &given, caller)).await;
        if let Some(mut span) = span
            && !matches!(opened, Ok((_, Found::There)))
        {
            // One that is there is found in no time, and nothing is told of it.
            span.set("sandpool.pool", pool.name.to_string());
            if let Ok((session, _)) = &opened {
                span.set("sandpool.sandbox", session.sandbox.to_string());
            }
            span.end(opened.as_ref().err().map(Refused::word_of));
        }
        let (session, found) = match opened {
            Ok(opened) => opened,
            Err(error) => return Err(held(&pool, error).await),
        };
        let new = found == Found::Made;
        let resumed = if let Found::Woken(keeps) = found { Some(keeps) } else { None };
        if is_given && !new {
            let why =
                "the session is there already, and has the variables and secrets that it was given when it was made";
            return Err(NodeError::Invalid(why.to_owned()));
        }
        let took = began.elapsed();
        if new {
            pool.counts.allocated(took);
        }
        Ok(Opened { session: pool.describe_session(&session), new, resumed, took })
    }

    /// A session, without counting as use.
    ///
    /// # Errors
    /// `NoPool`, `NoSession`.
    pub fn session(&self, pool: &PoolName, key: &SessionKey) -> Result<SessionInfo, NodeError> {
        let pool = self.state(pool)?;
        pool.info(&pool.scoped(key))
    }

    /// A session that has a sandbox.
    fn awake(&self, pool: &PoolName, key: &SessionKey) -> Result<SessionInfo, NodeError> {
        let info = self.session(pool, key)?;
        if info.suspended.is_some() { Err(NodeError::Suspended(info.identifier)) } else { Ok(info) }
    }

    /// The sessions of a pool, oldest first.
    ///
    /// # Errors
    /// `NoPool`.
    pub fn sessions(&self, pool: &PoolName, whose: Whose<'_>) -> Result<Vec<SessionInfo>, NodeError> {
        Ok(self.state(pool)?.infos(whose))
    }

    /// What a session's sandbox uses.
    ///
    /// # Errors
    /// `NoPool`, `NoSession`, `Unavailable`.
    pub async fn usage(&self, pool: &PoolName, key: &SessionKey) -> Result<Usage, NodeError> {
        let info = self.awake(pool, key)?;
        self.inner.driver.0.usage(info.sandbox).await.map_err(|error| of_session(key, error))
    }

    /// What a session uses, second by second, from now on. It does not count as use.
    ///
    /// # Errors
    /// `NoPool`, `NoSession`, `SessionLost`; `Unavailable` when so many sessions are looked at that no more can be.
    pub async fn samples(&self, pool: &PoolName, key: &SessionKey) -> Result<SampleReader, NodeError> {
        let pool = self.state(pool)?;
        let session = pool.present(&pool.scoped(key)).await?;
        Samples::read(&pool, &session, || Arc::clone(&self.inner.sampled).try_acquire_owned().ok())
    }

    /// What the sandboxes of these sessions use, or used two seconds ago at most. Of some it may not be known.
    pub async fn usages(&self, sessions: &[SessionInfo]) -> HashMap<SandboxId, Usage> {
        let sandboxes = sessions.iter().map(|session| session.sandbox).collect();
        self.inner.usages.of(&*self.inner.driver.0, sandboxes).await
    }

    /// What a pool may reach.
    ///
    /// # Errors
    /// `NoPool`; `Unsupported` where it reaches nothing.
    pub fn egress(&self, pool: &PoolName) -> Result<EgressPolicy, NodeError> {
        self.spec(pool)?.egress.clone().ok_or_else(|| {
            NodeError::Unsupported("nothing is reached from this pool: it has no egress to narrow".to_owned())
        })
    }

    /// Takes away, of what a session's pool may reach, all that `policy` does not allow too; `None` gives it back. When it answers,
    /// what is forbidden now is reached no more.
    ///
    /// # Errors
    /// `NoPool`, `NoSession`, `Unavailable`; `Unsupported` where the pool reaches nothing, `Invalid` for a policy that cannot be
    /// used, and then all is as it was.
    pub async fn narrow(
        &self,
        pool: &PoolName,
        key: &SessionKey,
        policy: Option<&EgressPolicy>,
    ) -> Result<(), NodeError> {
        self.egress(pool)?;
        let info = self.awake(pool, key)?;
        self.inner.driver.0.narrow(info.sandbox, policy).await.map_err(|error| match error {
            DriverError::Invalid(why) => NodeError::Invalid(why),
            error => of_session(key, error),
        })
    }

    /// What a session's pool may reach, and what of it is left to the session ([`Node::narrow`]).
    ///
    /// # Errors
    /// `NoPool`, `NoSession`, `Unavailable`; `Unsupported` where the pool reaches nothing.
    pub async fn reached(
        &self,
        pool: &PoolName,
        key: &SessionKey,
    ) -> Result<(EgressPolicy, Option<EgressPolicy>), NodeError> {
        let whole = self.egress(pool)?;
        let info = self.awake(pool, key)?;
        let own = self.inner.driver.0.narrowed(info.sandbox).await.map_err(|error| of_session(key, error))?;
        Ok((whole, own))
    }

    /// What was decided about what a session would reach. It does not count as use.
    ///
    /// # Errors
    /// `NoPool`, `NoSession`, `SessionLost`; `Unsupported` where the pool reaches nothing.
    pub async fn decisions(&self, pool: &PoolName, key: &SessionKey) -> Result<ReachedReader, NodeError> {
        self.egress(pool)?;
        let pool = self.state(pool)?;
        let session = pool.present(&pool.scoped(key)).await?;
        Ok(self.inner.outward.read(session.sandbox, &session.place))
    }

    /// For the journal: somebody did this to a session that is there. Waits for nothing.
    pub fn did(&self, pool: &PoolName, key: &SessionKey, subject: &str, what: &'static str, detail: String) {
        let Some(store) = &self.inner.store else { return };
        let Ok(pool) = self.state(pool) else { return };
        let key = pool.scoped(key);
        match (pool.on_disk(&key), pool.info(&key)) {
            (_, Ok(info)) if info.suspended.is_none() => store.did(info.sandbox, subject, what, detail),
            (Ok(Some(manifest)), _) => pool.audit(what, &manifest, subject),
            _ => {}
        }
    }

    /// For the journal: somebody did this to no session. Waits for nothing.
    pub fn audit(&self, deed: Deed) {
        if let Some(store) = &self.inner.store {
            store.audit(deed);
        }
    }

    /// Ends a session. Answers once its sandbox is gone with all that was in it, so that no restart brings it back;
    /// its place is free at once. A caller that goes away meanwhile changes nothing.
    ///
    /// # Errors
    /// `NoPool`, `NoSession`.
    pub async fn delete_session(&self, pool: &PoolName, key: &SessionKey) -> Result<(), NodeError> {
        let pool = self.state(pool)?;
        pool.delete(&pool.scoped(key)).await
    }

    /// Accepts an execution in an existing session (see [`Node::open`]): code waits its turn in the session's queue,
    /// commands run beside it.
    ///
    /// # Errors
    /// `QueueFull`, `Unsupported` for code without an interpreter, and those of [`Node::open`].
    pub async fn execute(
        &self,
        pool: &PoolName,
        key: &SessionKey,
        request: ExecuteRequest,
    ) -> Result<ExecutionHandle, NodeError> {
        let pool = self.state(pool)?;
        if self.inner.stop.is_cancelled() {
            return Err(NodeError::Unavailable("the server is stopping".to_owned()));
        }
        if matches!(request.work, Work::Code { .. })
            && matches!(pool.spec().runtime, Runtime::Shell | Runtime::Container)
        {
            return Err(NodeError::Unsupported(format!("the pool {} runs commands, not code", pool.name)));
        }
        let id = match request.id {
            Some(id) => id,
            None => {
                let mut bytes = [0; 16];
                getrandom::fill(&mut bytes).map_err(|error| NodeError::Unavailable(error.to_string()))?;
                ExecutionId::from_random(bytes)
            }
        };
        if self.inner.store.as_ref().is_some_and(Store::is_in_trouble) {
            return Err(held(&pool, journal::unwritable()).await);
        }
        let (session, _begins) = pool.kept_here(&pool.scoped(key), InUse::quietly).await?;
        let resumed = session.resumed.lock().unwrap_or_else(PoisonError::into_inner).take();
        match session.execute(&pool, id, request) {
            Ok(record) => Ok(ExecutionHandle { session, record, resumed }),
            Err(error) => Err(held(&pool, error).await),
        }
    }

    /// An execution that was accepted earlier. The last 64 finished ones of a session are kept.
    ///
    /// # Errors
    /// `NoPool`, `NoSession`, `NoExecution`.
    pub async fn execution(
        &self,
        pool: &PoolName,
        key: &SessionKey,
        id: &ExecutionId,
    ) -> Result<ExecutionHandle, NodeError> {
        let pool = self.state(pool)?;
        let session = pool.present(&pool.scoped(key)).await?;
        let record = session.find(*id).ok_or_else(|| NodeError::NoExecution(id.to_string()))?;
        Ok(ExecutionHandle { session, record, resumed: None })
    }

    /// An execution that [`Node::execution`] does not know any more, as it was written down: of a session that was lost, or
    /// of one that has that name now.
    pub async fn past_execution(&self, pool: &PoolName, key: &SessionKey, id: ExecutionId) -> Option<Execution> {
        let pool = self.state(pool).ok()?;
        let row = self.inner.store.as_ref()?.find(&pool.name, &pool.scoped(key), id).await?;
        journal::read(key.identifier.clone(), &row)
    }

    /// The executions of a session that are still known, oldest first.
    ///
    /// # Errors
    /// `NoPool`, `NoSession`.
    pub async fn executions(&self, pool: &PoolName, key: &SessionKey) -> Result<Vec<ExecutionHandle>, NodeError> {
        let pool = self.state(pool)?;
        let session = pool.present(&pool.scoped(key)).await?;
        let records = session.executions();
        Ok(records
            .into_iter()
            .map(|record| ExecutionHandle { session: Arc::clone(&session), record, resumed: None })
            .collect())
    }

    /// A session to look at, which is not use of it.
    pub(crate) async fn session_to_look_at(
        &self,
        pool: &PoolName,
        key: &SessionKey,
    ) -> Result<Arc<Session>, NodeError> {
        let pool = self.state(pool)?;
        pool.present(&pool.scoped(key)).await
    }

    pub(crate) fn store(&self) -> Option<&Store> {
        self.inner.store.as_ref()
    }

    /// A session that is used for as long as the third of these is there.
    pub(crate) async fn session_in_use(
        &self,
        pool: &PoolName,
        key: &SessionKey,
    ) -> Result<(Arc<PoolState>, Arc<Session>, InUse), NodeError> {
        let pool = self.state(pool)?;
        let (session, in_use) = pool.in_use(&pool.scoped(key)).await?;
        Ok((pool, session, in_use))
    }

    /// The same of one that is not used by that.
    pub(crate) async fn session_kept(
        &self,
        pool: &PoolName,
        key: &SessionKey,
    ) -> Result<(Arc<PoolState>, Arc<Session>, InUse), NodeError> {
        let pool = self.state(pool)?;
        let (session, kept) = pool.kept_here(&pool.scoped(key), InUse::quietly).await?;
        Ok((pool, session, kept))
    }
}

impl ExecutionHandle {
    /// Its id.
    #[must_use]
    pub fn id(&self) -> ExecutionId {
        self.record.id
    }

    /// It is the first since its session was brought back from being suspended, with this of what had been there.
    #[must_use]
    pub fn resumed(&self) -> Option<Keeps> {
        self.resumed
    }

    /// As it is now.
    #[must_use]
    pub fn snapshot(&self) -> Execution {
        self.record.snapshot()
    }

    /// As it is now, without its output and values.
    #[must_use]
    pub fn outline(&self) -> Execution {
        self.record.outline()
    }

    /// For the journal: somebody did this with it. Waits for nothing.
    pub fn did(&self, subject: &str, what: &'static str, detail: String) {
        if let Some(journal) = &self.session.journal {
            journal.store.did(journal.place.sandbox, subject, what, detail);
        }
    }

    /// Waits until it has ended, or for `limit`.
    pub async fn wait(&self, limit: Duration) -> Execution {
        // It has ended or it has not: the snapshot says which.
        let _ = tokio::time::timeout(limit, self.record.ended()).await;
        self.record.snapshot()
    }

    /// For whoever is told of it before it has ended: waits until its agent knows of it, or, when it has to wait for its
    /// turn, until it is written down. A server that is killed then knows of it afterwards.
    ///
    /// # Errors
    /// `Unavailable` when it cannot be written. It goes on all the same.
    pub async fn kept(&self) -> Result<(), NodeError> {
        let Some(journal) = &self.session.journal else { return Ok(()) };
        let begun = tokio::time::timeout(BEGINS, self.record.started()).await;
        if begun.is_ok() { Ok(()) } else { journal.keep(&self.record).await }
    }

    /// Its events after `after_seq`, those kept and those to come, until it has ended. Where output was dropped over
    /// the limit there is a gap in `seq`.
    #[must_use]
    pub fn events(&self, after_seq: u64) -> BoxStream<'static, Sequenced> {
        Arc::clone(&self.record).events(after_seq)
    }

    /// Stops it. Nothing happens if it has ended.
    ///
    /// # Errors
    /// `Unavailable` when the sandbox does not answer.
    pub async fn stop(&self, how: Stop) -> Result<(), NodeError> {
        self.session.stop(&self.record, how).await
    }

    /// Sends input to it (empty: end of input), once it runs.
    ///
    /// # Errors
    /// `Invalid` for work without `Stdin::Stream` and terminals, `Ended` when it has ended, `Unavailable` when the
    /// sandbox does not answer.
    pub async fn input(&self, data: Vec<u8>) -> Result<(), NodeError> {
        if !self.record.takes_input() {
            return Err(NodeError::Invalid("this execution was not started with streamed input".to_owned()));
        }
        self.running().await?;
        let exec = self.record.id.0;
        if data.is_empty() {
            return self.session.link.send(&ToAgent::Input { exec, data }).await;
        }
        for piece in data.chunks(sandpool_wire::agent::MAX_CHUNK) {
            self.session.link.send(&ToAgent::Input { exec, data: piece.to_vec() }).await?;
        }
        Ok(())
    }

    /// Tells its terminal a new size, once it runs.
    ///
    /// # Errors
    /// `Invalid` when it has no terminal, `Ended` when it has ended, `Unavailable` when the sandbox does not answer.
    pub async fn resize(&self, rows: u16, columns: u16) -> Result<(), NodeError> {
        if !self.record.is_terminal() {
            return Err(NodeError::Invalid("this execution has no terminal".to_owned()));
        }
        self.running().await?;
        self.session.link.send(&ToAgent::Resize { exec: self.record.id.0, rows, columns }).await
    }

    /// Waits until it runs: what is sent to an agent before would be for nobody.
    async fn running(&self) -> Result<(), NodeError> {
        self.record.started().await;
        if self.record.has_ended() { Err(NodeError::Ended(self.record.id)) } else { Ok(()) }
    }
}
