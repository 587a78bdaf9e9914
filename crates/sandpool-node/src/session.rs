//! One session: its sandbox's stream, its executions, and the queue for its interpreter.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, SystemTime};

use sandpool_core::ids::{ExecutionId, SandboxId, SessionKey, SnapshotId};
use sandpool_core::pool::Moment;
use sandpool_core::tenants::Used;
use sandpool_driver::{Keeps, Usage};
use sandpool_store::{Place, Store};
use sandpool_telemetry::{self as telemetry, Span};
use sandpool_wire::agent::{Call, Execute, Outcome, Refusal, Stdin, Stop, Work};
use tokio::sync::oneshot;

use crate::api::{ExecuteRequest, Execution, ExecutionState, NodeError};
use crate::journal::Journal;
use crate::link::Link;
use crate::metrics::{Loss, Verdict};
use crate::pools::PoolState;
use crate::record::Record;
use crate::samples::Samples;
use crate::tenants::{Running, TenantState};

/// Ended executions that are kept for reading again.
const KEPT: usize = 64;

/// Executions of one session that run or wait, at most, commands included.
const MOST: usize = 256;

/// How long after its time-out an execution may take to be reported as over, before its sandbox is taken for broken:
/// the agent ends what runs with patience.
const GRACE: Duration = Duration::from_secs(30);

/// How long code waits, at most, before it asks again for an interpreter that was busy with something unknown.
const PAUSE: Duration = Duration::from_millis(250);

/// A session with its sandbox.
#[derive(Debug)]
pub(crate) struct Session {
    pub(crate) key: SessionKey,
    pub(crate) sandbox: SandboxId,
    pub(crate) owner: String,
    /// Against whose quota it counts.
    pub(crate) tenant: Arc<TenantState>,
    /// Where its executions are written down.
    pub(crate) journal: Option<Journal>,
    pub(crate) created: SystemTime,
    pub(crate) place: Arc<Place>,
    pub(crate) link: Link,
    pub(crate) activity: Activity,
    /// Its agent has said something since it was given away.
    pub(crate) is_heard: AtomicBool,
    /// What it uses, while somebody looks.
    pub(crate) samples: Samples,
    /// How many look at its terminals.
    pub(crate) looking: AtomicUsize,
    /// It was given secrets, which no server keeps.
    pub(crate) has_secrets: bool,
    /// The snapshot that it came from.
    pub(crate) parent: OnceLock<SnapshotId>,
    /// It was brought back with this of what had been there, and no execution has told so yet.
    pub(crate) resumed: Mutex<Option<Keeps>>,
    /// Before then it is not tried again to suspend it, in nanoseconds of its pool's time.
    pub(crate) stays_until: AtomicU64,
    charged: Mutex<Charged>,
    queue: Mutex<Queue>,
}

/// What a session's tenant has been charged with.
#[derive(Debug)]
struct Charged {
    /// So much in all; `None` when the session is older than this server, and has not been looked at.
    with: Option<Usage>,
    is_over: bool,
}

/// What goes on in a session, kept where no other session's requests come by. The pool's rules are told when they must
/// decide.
#[derive(Debug)]
pub(crate) struct Activity {
    born: Moment,
    /// Nanoseconds after `born`.
    used: AtomicU64,
    busy: AtomicUsize,
    /// Something has begun and ended.
    is_answered: AtomicBool,
    /// Nothing may begin any more.
    is_still: AtomicBool,
}

impl Activity {
    pub(crate) fn new(born: Moment, now: Moment) -> Self {
        let (used, busy) = (AtomicU64::new(0), AtomicUsize::new(0));
        let (is_answered, is_still) = (AtomicBool::new(false), AtomicBool::new(false));
        let activity = Self { born, used, busy, is_answered, is_still };
        activity.touch(now);
        activity
    }

    /// When the session was made.
    pub(crate) fn born(&self) -> Moment {
        self.born
    }

    /// It is used.
    pub(crate) fn touch(&self, now: Moment) {
        let since = u64::try_from(now.saturating_sub(self.born).as_nanos()).unwrap_or(u64::MAX);
        self.used.fetch_max(since, Ordering::Relaxed);
    }

    /// From now on whatever begins sees that it may not; what had begun before is seen in how many go on.
    pub(crate) fn stand_still(&self, still: bool) -> usize {
        self.is_still.store(still, Ordering::SeqCst);
        self.busy.load(Ordering::SeqCst)
    }

    /// Whatever has just begun may not go on.
    pub(crate) fn is_still(&self) -> bool {
        self.is_still.load(Ordering::SeqCst)
    }

    /// When it was last used, and how many executions and transfers go on.
    pub(crate) fn seen(&self) -> (Moment, usize) {
        // In this order: what ends between the two has left its time before it is missing.
        let busy = self.busy.load(Ordering::Acquire);
        (self.born + Duration::from_nanos(self.used.load(Ordering::Relaxed)), busy)
    }
}

/// The executions, and their order.
#[derive(Debug, Default)]
struct Queue {
    /// Oldest first.
    executions: VecDeque<Arc<Record>>,
    /// Completes when the last of them has had its turn. Each waits for the one before it, so that their order is the
    /// one in which they were accepted, whichever task comes first.
    last: Option<oneshot::Receiver<()>>,
}

/// What came of an execution, and how long it took: what the headers of Azure's dialect say of it. Nothing of what it ran or said.
fn tell(mut span: Span, session: &Session, execution: &Execution) {
    span.set("sandpool.pool", session.place.pool.to_string());
    span.set("sandpool.sandbox", session.sandbox.to_string());
    span.set("sandpool.execution", execution.id.to_string());
    if let Some(queued) = execution.queued {
        span.set("sandpool.execution.queued_seconds", queued);
    }
    if let Some(ran) = execution.duration {
        span.set("sandpool.execution.ran_seconds", ran);
    }
    let ExecutionState::Ended(outcome) = &execution.state else { return span.end(None) };
    let word = Verdict::word_of(outcome);
    span.set("sandpool.outcome", word);
    let is_well = match outcome {
        Outcome::Succeeded => true,
        Outcome::Exited(code) => {
            span.set("process.exit.code", i64::from(*code));
            *code == 0
        }
        Outcome::Raised | Outcome::NotStarted(_) | Outcome::TimedOut | Outcome::Cancelled | Outcome::Died(_) => false,
    };
    span.end((!is_well).then_some(word));
}

/// One execution's turn at the interpreter.
struct Turn {
    before: Option<oneshot::Receiver<()>>,
    /// Dropped with this: then the next has its turn.
    _done: oneshot::Sender<()>,
}

impl Turn {
    async fn comes(&mut self) {
        if let Some(before) = &mut self.before {
            // Nothing is ever sent: the one before drops its end.
            let _ = before.await;
            self.before = None;
        }
    }
}

/// Something that goes on in a session: while it lives the session is in use.
pub(crate) struct InUse {
    pool: Arc<PoolState>,
    session: Arc<Session>,
    /// An execution's place in its tenant's quota.
    _place: Option<Running>,
    /// It only keeps the session from being suspended.
    is_quiet: bool,
}

impl InUse {
    pub(crate) fn begin(pool: &Arc<PoolState>, session: &Arc<Session>) -> Self {
        Self::holding(None, pool, session)
    }

    pub(crate) fn holding(place: Option<Running>, pool: &Arc<PoolState>, session: &Arc<Session>) -> Self {
        session.activity.touch(pool.now());
        // In one order with whoever lets it stand still.
        session.activity.busy.fetch_add(1, Ordering::SeqCst);
        Self { pool: Arc::clone(pool), session: Arc::clone(session), _place: place, is_quiet: false }
    }

    /// Keeps a session from being suspended, and is no use of it.
    pub(crate) fn quietly(pool: &Arc<PoolState>, session: &Arc<Session>) -> Self {
        session.activity.busy.fetch_add(1, Ordering::SeqCst);
        Self { pool: Arc::clone(pool), session: Arc::clone(session), _place: None, is_quiet: true }
    }
}

impl Drop for InUse {
    fn drop(&mut self) {
        let activity = &self.session.activity;
        if self.is_quiet {
            activity.busy.fetch_sub(1, Ordering::Release);
            return;
        }
        activity.touch(self.pool.now());
        activity.busy.fetch_sub(1, Ordering::Release);
        if !activity.is_answered.swap(true, Ordering::Relaxed) {
            self.pool.answered(self.session.sandbox);
        }
    }
}

impl Session {
    pub(crate) fn new(
        place: Place,
        tenant: Arc<TenantState>,
        store: Option<Store>,
        activity: Activity,
        link: Link,
    ) -> Self {
        let Place { key, sandbox, owner, created, .. } = place.clone();
        let place = Arc::new(place);
        let journal = store.map(|store| Journal { store, place: Arc::clone(&place) });
        Self {
            key,
            sandbox,
            owner,
            tenant,
            journal,
            created,
            place,
            link,
            activity,
            is_heard: AtomicBool::new(false),
            samples: Samples::default(),
            looking: AtomicUsize::new(0),
            has_secrets: false,
            parent: OnceLock::new(),
            resumed: Mutex::default(),
            stays_until: AtomicU64::new(0),
            charged: Mutex::new(Charged { with: Some(Usage::default()), is_over: false }),
            queue: Mutex::default(),
        }
    }

    /// How old it is, in milliseconds.
    pub(crate) fn age_ms(&self, now: Moment) -> u64 {
        u64::try_from(now.saturating_sub(self.activity.born()).as_millis()).unwrap_or(u64::MAX)
    }

    fn charged(&self) -> MutexGuard<'_, Charged> {
        self.charged.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What was used before this server is nobody's any more.
    pub(crate) fn forget_charges(&self) {
        self.charged().with = None;
    }

    /// Its sandbox has used so much in all: what of it is new is charged to its tenant.
    pub(crate) fn charge(&self, mut usage: Usage, now: Moment) {
        let mut charged = self.charged();
        if charged.is_over {
            usage.stored = 0;
        }
        let mut used = Used { stored: usage.stored, ..Used::default() };
        if let Some(before) = charged.with.replace(usage) {
            let moved = |usage: Usage| usage.sent.unwrap_or(0).saturating_add(usage.received.unwrap_or(0));
            let cpu_us = |usage: Usage| usage.cpu_us.unwrap_or(0);
            used.cpu = Duration::from_micros(cpu_us(usage).saturating_sub(cpu_us(before)));
            used.moved = moved(usage).saturating_sub(moved(before));
            used.stored_before = before.stored;
            self.tenant.counts.used(&before, &usage);
        }
        self.tenant.used(used, now);
    }

    /// It is over: nothing of it is stored any more, whatever is still said of it.
    pub(crate) fn store_nothing(&self, now: Moment) {
        let mut charged = self.charged();
        charged.is_over = true;
        if let Some(before) = &mut charged.with {
            let stored_before = std::mem::take(&mut before.stored);
            self.tenant.used(Used { stored_before, ..Used::default() }, now);
        }
    }

    fn with<T>(&self, work: impl FnOnce(&mut Queue) -> T) -> T {
        work(&mut self.queue.lock().unwrap_or_else(PoisonError::into_inner))
    }

    pub(crate) fn find(&self, id: ExecutionId) -> Option<Arc<Record>> {
        self.with(|queue| queue.find(id))
    }

    pub(crate) fn executions(&self) -> Vec<Arc<Record>> {
        self.with(|queue| queue.executions.iter().cloned().collect())
    }

    /// Takes up an execution that ran before this server did: it counts as use until it ends.
    pub(crate) async fn adopt(self: &Arc<Self>, pool: &Arc<PoolState>, id: ExecutionId) -> Result<(), NodeError> {
        // What it runs is not known any more, so it may be one that takes input.
        let record = Record::new(id, self.key.identifier.clone(), pool.spec().output_limit).taking(true, true);
        let record = Arc::new(record);
        self.link.follow(id.0, Arc::clone(&record));
        self.with(|queue| queue.keep(Arc::clone(&record)));
        if self.link.call(Call::Attach { exec: id.0, after_seq: 0 }).await?.is_err() {
            // The agent has just forgotten it.
            self.link.forget(&id.0);
            self.with(|queue| queue.executions.retain(|other| other.id != id));
            return Ok(());
        }
        let in_use = InUse::holding(self.tenant.resume(), pool, self);
        let (session, counts) = (Arc::clone(self), Arc::clone(&pool.counts));
        tokio::spawn(async move {
            record.ended().await;
            counts.executed(&record.outline());
            drop(in_use);
            session.write(&record);
        });
        Ok(())
    }

    /// Accepts an execution, and sees it through in a task of its own.
    pub(crate) fn execute(
        self: &Arc<Self>,
        pool: &Arc<PoolState>,
        id: ExecutionId,
        request: ExecuteRequest,
    ) -> Result<Arc<Record>, NodeError> {
        let takes_turns = matches!(request.work, Work::Code { .. });
        let longest = pool.spec().max_timeout;
        let timeout = request.timeout.unwrap_or(longest).min(longest);
        let limit = pool.spec().output_limit;
        let output_limit = request.output_limit.unwrap_or(limit).min(limit);
        let terminal = matches!(request.work, Work::Terminal { .. });
        let input = match &request.work {
            Work::Shell { stdin, .. } | Work::Argv { stdin, .. } => *stdin == Stdin::Stream,
            Work::Terminal { .. } | Work::Service { .. } => true,
            Work::Code { .. } => false,
        };
        let record = Record::new(id, self.key.identifier.clone(), output_limit).taking(input, terminal);
        let record = Arc::new(record.taking_turns(takes_turns));
        // In one piece: of two callers with one id the second finds the execution of the first.
        let turn = self.with(|queue| {
            if let Some(found) = queue.find(id) {
                return Ok(Err(found));
            }
            let live = queue.executions.iter().filter(|record| !record.has_ended());
            let (turns, live) = (live.clone().filter(|record| record.takes_turns()).count(), live.count());
            if takes_turns && turns > pool.spec().queue {
                return Err(NodeError::QueueFull { waiting: turns - 1 });
            }
            if live >= MOST {
                return Err(NodeError::QueueFull { waiting: live });
            }
            let place = self.tenant.begin(pool.now())?;
            queue.keep(Arc::clone(&record));
            let turn = takes_turns.then(|| {
                let (done, next) = oneshot::channel();
                Turn { before: queue.last.replace(next), _done: done }
            });
            Ok(Ok((turn, place)))
        })?;
        let (turn, place) = match turn {
            Ok(accepted) => accepted,
            Err(found) => return Ok(found),
        };
        let execute = Execute {
            exec: id.0,
            work: request.work,
            timeout_ms: u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX),
            output_limit,
        };
        let (session, kept, counts) = (Arc::clone(self), Arc::clone(&record), Arc::clone(&pool.counts));
        let in_use = InUse::holding(place, pool, self);
        let span = telemetry::current().and_then(|trace| trace.child("sandpool.execution"));
        tokio::spawn(async move {
            session.see_through(in_use, &kept, execute, turn, timeout).await;
            let outline = kept.outline();
            if let Some(span) = span {
                tell(span, &session, &outline);
            }
            counts.executed(&outline);
            session.write(&kept);
        });
        Ok(record)
    }

    fn write(&self, record: &Arc<Record>) {
        if let Some(journal) = &self.journal {
            journal.write(record);
        }
    }

    /// Takes up what was accepted before this server did, and never begun: it is reported, and not run.
    pub(crate) fn report(&self, record: Arc<Record>) {
        self.write(&record);
        self.with(|queue| queue.keep(record));
    }

    async fn see_through(
        &self,
        in_use: InUse,
        record: &Arc<Record>,
        execute: Execute,
        mut turn: Option<Turn>,
        timeout: Duration,
    ) {
        if let Some(turn) = &mut turn {
            tokio::select! {
                () = turn.comes() => {}
                () = self.link.closed() => {}
                () = record.ended() => {
                    // Stopped while it waited. Those behind it still wait for the one before it.
                    drop(in_use);
                    return turn.comes().await;
                }
            }
        }
        if record.has_ended() {
            return;
        }
        let key = execute.exec;
        self.link.follow(key, Arc::clone(record));
        if let Err(why) = self.start(record, execute).await {
            self.link.forget(&key);
            return record.end(Outcome::NotStarted(why));
        }
        if record.was_ended_here() {
            // Stopped between its turn and its start.
            let _ = self.link.call(Call::Stop { exec: key, how: Stop::Interrupt }).await;
        }
        // RS6: the wall clock is ours. The agent has its own, and uses it well unless it is not what it was.
        if tokio::time::timeout(timeout.saturating_add(GRACE), record.ended()).await.is_err() {
            record.end(Outcome::TimedOut);
            self.link.forget(&key);
            in_use.pool.lose(self.sandbox, Loss::NotStopped, "its execution could not be stopped in time");
        }
    }

    /// Starts what has its turn; says why when it did not.
    async fn start(&self, record: &Arc<Record>, execute: Execute) -> Result<(), String> {
        loop {
            match self.link.call(Call::Execute(execute.clone())).await {
                Ok(Ok(_)) => return Ok(()),
                Ok(Err(Refusal::Busy)) => {
                    // Code that this server did not start: it ran before this server did, or it was stopped while it
                    // was being started. Its end is awaited like any other's.
                    let others = self
                        .executions()
                        .into_iter()
                        .filter(|other| other.id != record.id && other.has_started() && !other.has_ended());
                    let ends: Vec<_> = others.map(|other| Box::pin(async move { other.ended().await })).collect();
                    let pause = tokio::time::sleep(PAUSE);
                    tokio::select! {
                        () = record.ended() => return Ok(()),
                        () = self.link.closed() => {}
                        () = pause => {}
                        () = first(ends) => {}
                    }
                    if record.has_ended() {
                        return Ok(());
                    }
                }
                Ok(Err(refusal)) => return Err(refusal.to_string()),
                Err(error) => return Err(error.to_string()),
            }
        }
    }

    pub(crate) async fn stop(&self, record: &Arc<Record>, how: Stop) -> Result<(), NodeError> {
        if record.has_ended() {
            return Ok(());
        }
        match self.link.call(Call::Stop { exec: record.id.0, how }).await? {
            Ok(_) => Ok(()),
            // It waits for its turn here, or has just ended.
            Err(Refusal::NotFound) => {
                if !record.has_started() {
                    record.end(Outcome::Cancelled);
                }
                Ok(())
            }
            Err(refusal) => Err(NodeError::Invalid(refusal.to_string())),
        }
    }
}

impl Queue {
    fn find(&self, id: ExecutionId) -> Option<Arc<Record>> {
        self.executions.iter().find(|record| record.id == id).cloned()
    }

    fn keep(&mut self, record: Arc<Record>) {
        self.executions.push_back(record);
        let ended = self.executions.iter().filter(|record| record.has_ended()).count();
        let mut surplus = ended.saturating_sub(KEPT);
        self.executions.retain(|record| {
            let goes = surplus > 0 && record.has_ended();
            surplus -= usize::from(goes);
            !goes
        });
    }
}

async fn first(ends: Vec<impl Future<Output = ()> + Unpin>) {
    if ends.is_empty() {
        std::future::pending::<()>().await;
    }
    futures::future::select_all(ends).await;
}
