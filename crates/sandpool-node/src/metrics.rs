//! What the service layer counts, and how it is read.
//!
//! ```text
//! PoolCounts    of one pool: allocations, sessions, executions, refusals       TenantCounts   of one tenant with a quota
//! Calls         of the driver: a wrapper that times every call                 Metrics        all of it at one moment, for who renders it
//! ```
//!
//! What happens adds to an atomic number and waits for nobody. How pools *are* is not counted: it is looked at when somebody reads.
//! Labels are words of the enums here, names of pools, and names of tenants with a quota: never a session, and nothing that a session
//! brought.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use sandpool_core::ids::{PoolName, SandboxId, TenantName};
use sandpool_core::tenants::{Resource, Standing};
use sandpool_driver::{
    Change, Description, Driver, DriverError, GoneReason, Keeps, Owner, Sandbox, Stream, Template, Usage,
};
use sandpool_store::Store;
use sandpool_wire::agent::{Activation, Outcome};
use sandpool_wire::egress::{Decided, Decision, Policy, SecretValue, Told};
use tokio::sync::broadcast;
use tokio::time::Instant;

use crate::api::{Execution, ExecutionState, NodeError, PoolStatus};
use crate::pools::PoolState;
use crate::tenants::Tenants;

/// Makes an enum whose values are the words of a label.
macro_rules! words {
    ($(#[$about:meta])* $visible:vis enum $name:ident { $($(#[$what:meta])* $value:ident = $word:literal,)* }) => {
        $(#[$about])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        $visible enum $name { $($(#[$what])* $value,)* }

        impl Words for $name {
            const WORDS: &'static [&'static str] = &[$($word,)*];

            fn place(self) -> usize {
                self as usize
            }
        }
    };
}

/// The words of a label.
trait Words: Copy {
    const WORDS: &'static [&'static str];

    /// Where its word is.
    fn place(self) -> usize;
}

words! {
    /// Why a session ended without being lost.
    pub(crate) enum Ended {
        /// Somebody asked for it.
        Asked = "asked",
        /// It was idle, or as old as it may be.
        Over = "over",
        /// Its pool was removed.
        PoolRemoved = "poolRemoved",
        /// It never began: the sandbox that it was to have was of no use.
        Failed = "failed",
        /// The program of its container did.
        Program = "program",
        /// It is on disk now.
        Suspended = "suspended",
    }
}

words! {
    /// Why a session was lost.
    pub(crate) enum Loss {
        /// Its first process ended.
        Died = "died",
        /// Its memory was used up.
        OutOfMemory = "outOfMemory",
        /// Its sandbox was destroyed by somebody else.
        Destroyed = "destroyed",
        /// Its agent stopped answering, or said that its program has ended, which is mostly the first that is heard of a sandbox that died.
        StoppedAnswering = "stoppedAnswering",
        /// Its sandbox started anew, without what had been in it.
        StartedAnew = "startedAnew",
        /// Its execution could not be stopped in time.
        NotStopped = "notStopped",
        /// After a restart of the server it was not there any more, or could not be reached.
        Restart = "restart",
    }
}

words! {
    /// What was done with sessions on disk.
    pub(crate) enum Kept {
        Suspended = "suspended",
        /// A session could not be suspended, and went on.
        NotSuspended = "notSuspended",
        Resumed = "resumed",
        /// A session could not be resumed, and stays suspended.
        NotResumed = "notResumed",
        Copied = "copied",
        Forked = "forked",
        /// A suspended session's time was over.
        Expired = "expired",
    }
}

words! {
    /// Why a pool gave no session, or took no execution.
    pub(crate) enum Refused {
        Exhausted = "exhausted",
        OverQuota = "overQuota",
        PoolBroken = "poolBroken",
        QueueFull = "queueFull",
        SessionLost = "sessionLost",
        Unavailable = "unavailable",
        Other = "other",
    }
}

words! {
    /// How an execution ended: the words are those of the API.
    pub(crate) enum Verdict {
        Succeeded = "succeeded",
        Raised = "raised",
        Exited = "exited",
        NotStarted = "notStarted",
        TimedOut = "timedOut",
        Cancelled = "cancelled",
        Died = "died",
    }
}

words! {
    /// What was decided about what a sandbox would reach: the words are those of the API.
    enum Judged {
        Allowed = "allowed",
        Refused = "refused",
        Failed = "failed",
    }
}

words! {
    /// A call of the driver.
    enum Operation {
        EnsurePool = "ensurePool",
        RemovePool = "removePool",
        Create = "create",
        Assign = "assign",
        Activate = "activate",
        Give = "give",
        Destroy = "destroy",
        List = "list",
        Dial = "dial",
        /// [`Driver::connect`].
        Connect = "connect",
        Usage = "usage",
        Narrow = "narrow",
        Narrowed = "narrowed",
        Entrust = "entrust",
        Save = "save",
        Load = "load",
    }
}

words! {
    /// What came of it.
    enum Answered {
        Done = "done",
        Conflict = "conflict",
        Exhausted = "exhausted",
        Invalid = "invalid",
        Unavailable = "unavailable",
        Gone = "gone",
        /// Nobody in the sandbox took the connection.
        Refused = "refused",
    }
}

impl From<&GoneReason> for Loss {
    fn from(reason: &GoneReason) -> Self {
        match reason {
            GoneReason::Destroyed => Self::Destroyed,
            GoneReason::OutOfMemory => Self::OutOfMemory,
            GoneReason::Died(_) | GoneReason::BootFailed(_) => Self::Died,
        }
    }
}

impl From<&NodeError> for Refused {
    fn from(error: &NodeError) -> Self {
        match error {
            NodeError::Exhausted { .. } => Self::Exhausted,
            NodeError::OverQuota { .. } => Self::OverQuota,
            NodeError::PoolBroken { .. } => Self::PoolBroken,
            NodeError::QueueFull { .. } => Self::QueueFull,
            NodeError::SessionLost { .. } => Self::SessionLost,
            NodeError::Unavailable(_) | NodeError::NotReady(_) | NodeError::NoSpace | NodeError::SnapshotsFull(_) => {
                Self::Unavailable
            }
            NodeError::NoPool(_)
            | NodeError::NoSession(_)
            | NodeError::NoExecution(_)
            | NodeError::Unsupported(_)
            | NodeError::Invalid(_)
            | NodeError::NoTerminal(_)
            | NodeError::TooMany(_)
            | NodeError::Ended(_)
            | NodeError::NoFile(_)
            | NodeError::WrongKind(_)
            | NodeError::Denied(_)
            | NodeError::Busy { .. }
            | NodeError::Suspended(_)
            | NodeError::NotSuspendable(_)
            | NodeError::SessionExists(_)
            | NodeError::NoSnapshot(_)
            | NodeError::SnapshotDamaged { .. }
            | NodeError::SnapshotUnusable { .. }
            | NodeError::Refused(_) => Self::Other,
        }
    }
}

impl From<&Outcome> for Verdict {
    fn from(outcome: &Outcome) -> Self {
        match outcome {
            Outcome::Succeeded => Self::Succeeded,
            Outcome::Raised => Self::Raised,
            Outcome::Exited(_) => Self::Exited,
            Outcome::NotStarted(_) => Self::NotStarted,
            Outcome::TimedOut => Self::TimedOut,
            Outcome::Cancelled => Self::Cancelled,
            Outcome::Died(_) => Self::Died,
        }
    }
}

impl<T> From<&Result<T, DriverError>> for Answered {
    fn from(answer: &Result<T, DriverError>) -> Self {
        match answer {
            Ok(_) => Self::Done,
            Err(DriverError::Conflict(_)) => Self::Conflict,
            Err(DriverError::Exhausted(_)) => Self::Exhausted,
            Err(DriverError::Invalid(_)) => Self::Invalid,
            Err(DriverError::Unavailable { .. }) => Self::Unavailable,
            Err(DriverError::Gone(_)) => Self::Gone,
            Err(DriverError::Refused(_) | DriverError::NotReady) => Self::Refused,
        }
    }
}

impl Refused {
    /// The word for an error.
    pub(crate) fn word_of(error: &NodeError) -> &'static str {
        Self::WORDS[Self::from(error).place()]
    }
}

impl Verdict {
    /// The word for an outcome.
    pub(crate) fn word_of(outcome: &Outcome) -> &'static str {
        Self::WORDS[Self::from(outcome).place()]
    }
}

/// The word for what a quota is about: that of the settings.
fn word(resource: Resource) -> &'static str {
    match resource {
        Resource::Sessions => "sessions",
        Resource::Creates => "createsPerSecond",
        Resource::Executions => "executions",
        Resource::Cpu => "cpuSecondsPerHour",
        Resource::Stored => "storedBytes",
        Resource::Egress => "egressBytesPerHour",
    }
}

const RESOURCES: [Resource; 6] =
    [Resource::Sessions, Resource::Creates, Resource::Executions, Resource::Cpu, Resource::Stored, Resource::Egress];

/// One number for each word.
#[derive(Debug)]
struct Tally<W>(Box<[AtomicU64]>, std::marker::PhantomData<W>);

impl<W: Words> Default for Tally<W> {
    fn default() -> Self {
        Self(W::WORDS.iter().map(|_| AtomicU64::new(0)).collect(), std::marker::PhantomData)
    }
}

impl<W: Words> Tally<W> {
    fn add(&self, word: W) {
        self.0[word.place()].fetch_add(1, Ordering::Relaxed);
    }

    fn read(&self) -> Vec<(&'static str, u64)> {
        let counts = self.0.iter().map(|count| count.load(Ordering::Relaxed));
        W::WORDS.iter().copied().zip(counts).collect()
    }
}

/// The upper bounds of every histogram's buckets, in milliseconds: from what a warm sandbox takes to an hour.
const BOUNDS_MS: [u32; 18] =
    [1, 2, 5, 10, 20, 50, 100, 200, 500, 1_000, 2_000, 5_000, 10_000, 30_000, 60_000, 300_000, 900_000, 3_600_000];

/// How long something took, many times.
#[derive(Debug)]
pub struct Histogram {
    /// As many as there are bounds, and one for what is over the last.
    buckets: [AtomicU64; BOUNDS_MS.len() + 1],
    nanoseconds: AtomicU64,
}

/// A histogram as it was at one moment.
#[derive(Clone, Debug, PartialEq)]
pub struct Durations {
    /// Upper bounds in seconds, the last of them infinite, and how many were over the one before and not over this.
    pub buckets: Vec<(f64, u64)>,
    /// All of them together, in seconds.
    pub sum: f64,
    /// How many.
    pub count: u64,
}

impl Default for Histogram {
    fn default() -> Self {
        Self { buckets: std::array::from_fn(|_| AtomicU64::new(0)), nanoseconds: AtomicU64::new(0) }
    }
}

impl Histogram {
    /// It took so long.
    pub fn add(&self, took: Duration) {
        let bucket = BOUNDS_MS.partition_point(|bound| Duration::from_millis((*bound).into()) < took);
        self.buckets[bucket].fetch_add(1, Ordering::Relaxed);
        self.nanoseconds.fetch_add(u64::try_from(took.as_nanos()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    /// As it is now.
    #[must_use]
    pub fn read(&self) -> Durations {
        let bounds = BOUNDS_MS.iter().map(|bound| f64::from(*bound) / 1_000.0).chain([f64::INFINITY]);
        let counts = self.buckets.iter().map(|bucket| bucket.load(Ordering::Relaxed));
        let buckets: Vec<_> = bounds.zip(counts).collect();
        let count = buckets.iter().map(|(_, count)| count).sum();
        let sum = Duration::from_nanos(self.nanoseconds.load(Ordering::Relaxed)).as_secs_f64();
        Durations { buckets, sum, count }
    }
}

/// What is counted of one pool.
#[derive(Debug, Default)]
pub(crate) struct PoolCounts {
    /// From the request to the session, of sessions that were made.
    allocations: Histogram,
    opened: AtomicU64,
    ended: Tally<Ended>,
    lost: Tally<Loss>,
    refused: Tally<Refused>,
    executions: Tally<Verdict>,
    ran: Histogram,
    queued: Histogram,
    boots_failed: AtomicU64,
    kept: Tally<Kept>,
    decided: Tally<Judged>,
    sent: AtomicU64,
    received: AtomicU64,
}

impl PoolCounts {
    /// A caller has its new session.
    pub(crate) fn allocated(&self, took: Duration) {
        self.allocations.add(took);
    }

    /// A new session has its sandbox.
    pub(crate) fn opened(&self) {
        self.opened.fetch_add(1, Ordering::Relaxed);
    }

    /// A session has ended in order.
    pub(crate) fn ended(&self, why: Ended) {
        self.ended.add(why);
    }

    /// A session was lost.
    pub(crate) fn lost(&self, why: Loss) {
        self.lost.add(why);
    }

    /// Something was done with a session on disk.
    pub(crate) fn kept(&self, what: Kept) {
        self.kept.add(what);
    }

    /// A caller got no session, or no execution.
    pub(crate) fn refused(&self, error: &NodeError) {
        self.refused.add(error.into());
    }

    /// An execution is over.
    pub(crate) fn executed(&self, execution: &Execution) {
        if let ExecutionState::Ended(outcome) = &execution.state {
            self.executions.add(outcome.into());
        }
        // What never ran took no time.
        if let (Some(queued), Some(ran)) = (execution.queued, execution.duration) {
            self.queued.add(queued);
            self.ran.add(ran);
        }
    }

    /// It was decided about a connection, which has ended, or about a question for a name.
    pub(crate) fn decided(&self, decided: &Decided) {
        self.decided.add(match decided.decision {
            Decision::Allowed => Judged::Allowed,
            Decision::Refused => Judged::Refused,
            Decision::Failed => Judged::Failed,
        });
        self.sent.fetch_add(decided.sent, Ordering::Relaxed);
        self.received.fetch_add(decided.received, Ordering::Relaxed);
    }

    /// A sandbox could not be made.
    pub(crate) fn boot_failed(&self) {
        self.boots_failed.fetch_add(1, Ordering::Relaxed);
    }
}

/// What is counted of one tenant with a quota.
#[derive(Debug, Default)]
pub(crate) struct TenantCounts {
    refused: [AtomicU64; RESOURCES.len()],
    cpu_us: AtomicU64,
    sent: AtomicU64,
    received: AtomicU64,
}

impl TenantCounts {
    /// It was refused something of which it has no more.
    pub(crate) fn refused(&self, resource: Resource) {
        if let Some(place) = RESOURCES.iter().position(|other| *other == resource) {
            self.refused[place].fetch_add(1, Ordering::Relaxed);
        }
    }

    /// One of its sandboxes had used so much, and now has used so much.
    pub(crate) fn used(&self, before: &Usage, now: &Usage) {
        let more = |of: fn(&Usage) -> Option<u64>| of(now).unwrap_or(0).saturating_sub(of(before).unwrap_or(0));
        self.cpu_us.fetch_add(more(|usage| usage.cpu_us), Ordering::Relaxed);
        self.sent.fetch_add(more(|usage| usage.sent), Ordering::Relaxed);
        self.received.fetch_add(more(|usage| usage.received), Ordering::Relaxed);
    }
}

/// What is counted of a driver's calls.
#[derive(Debug, Default)]
pub(crate) struct Calls {
    each: [Call; Operation::WORDS.len()],
}

#[derive(Debug, Default)]
struct Call {
    took: Histogram,
    answers: Tally<Answered>,
}

/// A driver whose calls are counted.
struct Counted {
    driver: Arc<dyn Driver>,
    calls: Arc<Calls>,
}

/// The driver, whose calls are counted from now on.
pub(crate) fn counted(driver: Arc<dyn Driver>) -> (Arc<dyn Driver>, Arc<Calls>) {
    let calls = Arc::new(Calls::default());
    (Arc::new(Counted { driver, calls: Arc::clone(&calls) }), calls)
}

impl Counted {
    async fn time<T>(
        &self,
        operation: Operation,
        call: impl Future<Output = Result<T, DriverError>>,
    ) -> Result<T, DriverError> {
        let began = Instant::now();
        let answer = call.await;
        let counts = &self.calls.each[operation.place()];
        counts.took.add(began.elapsed());
        counts.answers.add(Answered::from(&answer));
        answer
    }
}

#[async_trait]
impl Driver for Counted {
    fn describe(&self) -> Description {
        self.driver.describe()
    }

    fn describe_pool(&self, pool: &PoolName) -> Description {
        self.driver.describe_pool(pool)
    }

    async fn ensure_pool(&self, template: &Template) -> Result<(), DriverError> {
        self.time(Operation::EnsurePool, self.driver.ensure_pool(template)).await
    }

    async fn remove_pool(&self, pool: &PoolName) -> Result<(), DriverError> {
        self.time(Operation::RemovePool, self.driver.remove_pool(pool)).await
    }

    async fn create(&self, id: SandboxId, pool: &PoolName) -> Result<(), DriverError> {
        self.time(Operation::Create, self.driver.create(id, pool)).await
    }

    async fn assign(&self, id: SandboxId, owner: &Owner) -> Result<(), DriverError> {
        self.time(Operation::Assign, self.driver.assign(id, owner)).await
    }

    async fn activate(&self, id: SandboxId, activation: &Activation) -> Result<(), DriverError> {
        self.time(Operation::Activate, self.driver.activate(id, activation)).await
    }

    async fn give(&self, id: SandboxId, owner: &Owner, activation: &Activation) -> Result<Stream, DriverError> {
        self.time(Operation::Give, self.driver.give(id, owner, activation)).await
    }

    async fn destroy(&self, id: SandboxId) -> Result<(), DriverError> {
        self.time(Operation::Destroy, self.driver.destroy(id)).await
    }

    async fn list(&self) -> Result<Vec<Sandbox>, DriverError> {
        self.time(Operation::List, self.driver.list()).await
    }

    fn watch(&self) -> broadcast::Receiver<Change> {
        self.driver.watch()
    }

    async fn dial(&self, id: SandboxId) -> Result<Stream, DriverError> {
        self.time(Operation::Dial, self.driver.dial(id)).await
    }

    async fn connect(&self, id: SandboxId, port: u16) -> Result<Stream, DriverError> {
        self.time(Operation::Connect, self.driver.connect(id, port)).await
    }

    async fn usage(&self, id: SandboxId) -> Result<Usage, DriverError> {
        self.time(Operation::Usage, self.driver.usage(id)).await
    }

    async fn narrow(&self, id: SandboxId, policy: Option<&Policy>) -> Result<(), DriverError> {
        self.time(Operation::Narrow, self.driver.narrow(id, policy)).await
    }

    async fn entrust(&self, id: SandboxId, secrets: &[SecretValue]) -> Result<(), DriverError> {
        self.time(Operation::Entrust, self.driver.entrust(id, secrets)).await
    }

    async fn decided(&self) -> Told {
        // It waits for as long as nothing is decided: there is no time to count.
        self.driver.decided().await
    }

    async fn narrowed(&self, id: SandboxId) -> Result<Option<Policy>, DriverError> {
        self.time(Operation::Narrowed, self.driver.narrowed(id)).await
    }

    fn keeps(&self, pool: &PoolName) -> Keeps {
        self.driver.keeps(pool)
    }

    async fn save(&self, id: SandboxId, stays: bool) -> Result<Stream, DriverError> {
        self.time(Operation::Save, self.driver.save(id, stays)).await
    }

    async fn load(
        &self,
        id: SandboxId,
        pool: &PoolName,
        saved: Stream,
        narrowed: Option<&Policy>,
    ) -> Result<(), DriverError> {
        self.time(Operation::Load, self.driver.load(id, pool, saved, narrowed)).await
    }
}

/// All that is known of a node at one moment. Lists of words and counts have every word, also those that nothing was counted for.
#[derive(Clone, Debug)]
pub struct Metrics {
    /// The pools, by name.
    pub pools: Vec<PoolMetrics>,
    /// The tenants with a quota, by name.
    pub tenants: Vec<TenantMetrics>,
    /// The driver's calls.
    pub calls: Vec<CallMetrics>,
    /// Nothing can be written to the store. `None` where there is no store.
    pub store_trouble: Option<bool>,
    /// Decisions of the egress proxy that nobody heard of.
    pub decisions_missed: u64,
}

/// Of one pool, since it is there.
#[derive(Clone, Debug)]
pub struct PoolMetrics {
    /// How it is.
    pub status: PoolStatus,
    /// Sessions in which something goes on.
    pub busy: u64,
    /// From the request to the session, of sessions that were made.
    pub allocations: Durations,
    /// Sessions that were given a sandbox.
    pub opened: u64,
    /// Sessions that have ended without being lost, by why.
    pub ended: Vec<(&'static str, u64)>,
    /// Sessions that were lost, by why.
    pub lost: Vec<(&'static str, u64)>,
    /// Sessions and executions that were refused, by why.
    pub refused: Vec<(&'static str, u64)>,
    /// Executions that are over, by how they ended.
    pub executions: Vec<(&'static str, u64)>,
    /// How long executions ran.
    pub ran: Durations,
    /// How long they had waited for their turn.
    pub queued: Durations,
    /// Sandboxes that could not be made.
    pub boots_failed: u64,
    /// Sessions that are suspended.
    pub suspended: u64,
    /// Bytes of snapshots.
    pub snapshot_bytes: u64,
    /// What was done with sessions on disk.
    pub kept: Vec<(&'static str, u64)>,
    /// What was decided about what its sandboxes would reach; `None` where they reach nothing.
    pub egress: Option<EgressMetrics>,
}

/// What sandboxes of a pool reached.
#[derive(Clone, Debug)]
pub struct EgressMetrics {
    /// Connections and questions for names, by what was decided.
    pub decisions: Vec<(&'static str, u64)>,
    /// Bytes of connections that have ended: out of sandboxes, and into them.
    pub bytes: [(&'static str, u64); 2],
}

/// Of one tenant with a quota.
#[derive(Clone, Debug)]
pub struct TenantMetrics {
    /// Which.
    pub name: TenantName,
    /// What it may have, and how much of it it has: a resource, the use, the limit.
    pub quota: Vec<(&'static str, f64, f64)>,
    /// What it was refused because it has no more, by what.
    pub refused: Vec<(&'static str, u64)>,
    /// What its sandboxes have used, where that is counted.
    pub used: Option<TenantUse>,
}

/// What a tenant's sandboxes have used since this server's start.
#[derive(Clone, Copy, Debug)]
pub struct TenantUse {
    /// Processor time.
    pub cpu: Duration,
    /// Bytes that went out of them.
    pub sent: u64,
    /// Bytes that came into them.
    pub received: u64,
}

/// Of one call of the driver.
#[derive(Clone, Debug)]
pub struct CallMetrics {
    /// Which.
    pub name: &'static str,
    /// How long it took.
    pub took: Durations,
    /// What came of it.
    pub answers: Vec<(&'static str, u64)>,
}

impl Metrics {
    pub(crate) fn of(
        pools: &[Arc<PoolState>],
        tenants: &Tenants,
        calls: &Calls,
        store: Option<&Store>,
        decisions_missed: u64,
    ) -> Self {
        Self {
            decisions_missed,
            pools: pools.iter().map(|pool| PoolMetrics::of(pool)).collect(),
            tenants: tenants.metrics(pools.first().map(|pool| pool.now()).unwrap_or_default()),
            calls: Operation::WORDS.iter().zip(&calls.each).map(|(name, call)| CallMetrics::of(name, call)).collect(),
            store_trouble: store.map(Store::is_in_trouble),
        }
    }
}

impl PoolMetrics {
    fn of(pool: &PoolState) -> Self {
        let counts = &pool.counts;
        let busy = pool.all_sessions().iter().filter(|session| session.activity.seen().1 > 0).count();
        let (suspended, snapshot_bytes) = pool.snapshots.as_ref().map(|it| it.counts(&pool.name)).unwrap_or_default();
        Self {
            suspended: u64::try_from(suspended).unwrap_or(u64::MAX),
            snapshot_bytes,
            kept: counts.kept.read(),
            status: pool.status(),
            busy: u64::try_from(busy).unwrap_or(u64::MAX),
            allocations: counts.allocations.read(),
            opened: counts.opened.load(Ordering::Relaxed),
            ended: counts.ended.read(),
            lost: counts.lost.read(),
            refused: counts.refused.read(),
            executions: counts.executions.read(),
            ran: counts.ran.read(),
            queued: counts.queued.read(),
            boots_failed: counts.boots_failed.load(Ordering::Relaxed),
            egress: pool.spec().egress.is_some().then(|| EgressMetrics {
                decisions: counts.decided.read(),
                bytes: [("sent", &counts.sent), ("received", &counts.received)]
                    .map(|(word, count)| (word, count.load(Ordering::Relaxed))),
            }),
        }
    }
}

impl TenantMetrics {
    pub(crate) fn of(name: &TenantName, standing: &[Standing], counts: &TenantCounts, counts_usage: bool) -> Self {
        let refused = RESOURCES.iter().zip(&counts.refused);
        // What nothing limits is refused to nobody.
        let refused = refused.filter(|(resource, _)| standing.iter().any(|standing| standing.resource == **resource));
        Self {
            name: name.clone(),
            quota: standing.iter().map(|one| (word(one.resource), one.used, one.limit)).collect(),
            refused: refused.map(|(resource, count)| (word(*resource), count.load(Ordering::Relaxed))).collect(),
            used: counts_usage.then(|| TenantUse {
                cpu: Duration::from_micros(counts.cpu_us.load(Ordering::Relaxed)),
                sent: counts.sent.load(Ordering::Relaxed),
                received: counts.received.load(Ordering::Relaxed),
            }),
        }
    }
}

impl CallMetrics {
    fn of(name: &'static str, call: &Call) -> Self {
        Self { name, took: call.took.read(), answers: call.answers.read() }
    }
}

#[cfg(test)]
mod tests;
