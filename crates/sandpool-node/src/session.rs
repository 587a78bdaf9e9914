//! One session: its sandbox's stream, its executions, and the queue for its interpreter.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use sandpool_core::ids::{ExecutionId, Identifier};
use sandpool_wire::agent::{Call, Event, Execute, Finished, Outcome, Refusal, Stdin, Stop, Work};
use tokio::sync::Semaphore;

use crate::api::{ExecuteRequest, NodeError};
use crate::link::Link;
use crate::pools::PoolState;
use crate::record::Record;

/// Ended executions that are kept for reading again.
const KEPT: usize = 64;

/// Executions of one session that run or wait, at most, commands included.
const MOST: usize = 256;

/// How long after its time-out an execution may take to be reported as over, before its sandbox is taken for broken:
/// the agent ends what runs with patience.
const GRACE: Duration = Duration::from_secs(30);

/// A session with its sandbox.
#[derive(Debug)]
pub(crate) struct Session {
    pub(crate) identifier: Identifier,
    pub(crate) owner: String,
    pub(crate) created: SystemTime,
    pub(crate) link: Link,
    executions: Mutex<VecDeque<Arc<Record>>>,
    turn: Semaphore,
    waiting: AtomicUsize,
}

/// Something that goes on in a session: while it lives the session is in use.
pub(crate) struct InUse {
    pool: Arc<PoolState>,
    identifier: Identifier,
}

impl InUse {
    pub(crate) fn begin(pool: &Arc<PoolState>, identifier: &Identifier) -> Self {
        pool.busy(identifier, true);
        Self { pool: Arc::clone(pool), identifier: identifier.clone() }
    }
}

impl Drop for InUse {
    fn drop(&mut self) {
        self.pool.busy(&self.identifier, false);
    }
}

impl Session {
    pub(crate) fn new(identifier: Identifier, owner: String, created: SystemTime, link: Link) -> Self {
        Self {
            identifier,
            owner,
            created,
            link,
            executions: Mutex::default(),
            turn: Semaphore::new(1),
            waiting: AtomicUsize::new(0),
        }
    }

    fn with<T>(&self, work: impl FnOnce(&mut VecDeque<Arc<Record>>) -> T) -> T {
        work(&mut self.executions.lock().unwrap_or_else(PoisonError::into_inner))
    }

    pub(crate) fn find(&self, id: ExecutionId) -> Option<Arc<Record>> {
        self.with(|all| all.iter().find(|record| record.id == id).cloned())
    }

    pub(crate) fn executions(&self) -> Vec<Arc<Record>> {
        self.with(|all| all.iter().cloned().collect())
    }

    pub(crate) fn keep(&self, record: Arc<Record>) {
        self.with(|all| {
            all.push_back(record);
            let ended = all.iter().filter(|record| record.has_ended()).count();
            let mut surplus = ended.saturating_sub(KEPT);
            all.retain(|record| {
                let goes = surplus > 0 && record.has_ended();
                surplus -= usize::from(goes);
                !goes
            });
        });
    }

    /// Accepts an execution, and sees it through in a task of its own.
    pub(crate) fn execute(
        self: &Arc<Self>,
        pool: &Arc<PoolState>,
        id: ExecutionId,
        request: ExecuteRequest,
    ) -> Result<Arc<Record>, NodeError> {
        if let Some(found) = self.find(id) {
            return Ok(found);
        }
        let takes_turns = matches!(request.work, Work::Code { .. });
        let live = self.with(|all| all.iter().filter(|record| !record.has_ended()).count());
        let waiting = self.waiting.load(Ordering::SeqCst);
        if live >= MOST || (takes_turns && waiting > pool.spec.queue) {
            return Err(NodeError::QueueFull { waiting: if takes_turns { waiting.saturating_sub(1) } else { live } });
        }
        let longest = pool.spec.max_timeout;
        let timeout = request.timeout.unwrap_or(longest).min(longest);
        let limit = pool.spec.output_limit;
        let output_limit = request.output_limit.unwrap_or(limit).min(limit);
        let terminal = matches!(request.work, Work::Terminal { .. });
        let input = match &request.work {
            Work::Shell { stdin, .. } | Work::Argv { stdin, .. } => *stdin == Stdin::Stream,
            Work::Terminal { .. } => true,
            Work::Code { .. } => false,
        };
        let record = Record::new(id, self.identifier.clone(), output_limit).taking(input, terminal);
        let record = Arc::new(record);
        let execute = Execute {
            exec: id.0,
            work: request.work,
            timeout_ms: u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX),
            output_limit,
        };
        self.keep(Arc::clone(&record));
        if takes_turns {
            self.waiting.fetch_add(1, Ordering::SeqCst);
        }
        let (session, kept) = (Arc::clone(self), Arc::clone(&record));
        let in_use = InUse::begin(pool, &self.identifier);
        tokio::spawn(async move {
            session.see_through(&in_use.pool, &kept, execute, takes_turns, timeout).await;
            if takes_turns {
                session.waiting.fetch_sub(1, Ordering::SeqCst);
            }
            drop(in_use);
        });
        Ok(record)
    }

    async fn see_through(
        &self,
        pool: &Arc<PoolState>,
        record: &Arc<Record>,
        execute: Execute,
        takes_turns: bool,
        timeout: Duration,
    ) {
        let permit = if takes_turns {
            tokio::select! {
                permit = self.turn.acquire() => permit.ok(),
                // Stopped while it waited.
                () = record.ended() => return,
                () = self.link.closed() => None,
            }
        } else {
            None
        };
        if record.has_ended() {
            return;
        }
        self.link.follow(record.id.0, Arc::clone(record));
        let key = execute.exec;
        let accepted = self.link.call(Call::Execute(execute)).await;
        let refused = match accepted {
            Ok(Ok(_)) => None,
            Ok(Err(Refusal::Busy)) => Some("the interpreter is busy".to_owned()),
            Ok(Err(refusal)) => Some(refusal.to_string()),
            Err(error) => Some(error.to_string()),
        };
        if let Some(why) = refused {
            self.link.forget(&key);
            record.end(Outcome::NotStarted(why));
            return;
        }
        if record.has_ended() {
            // Stopped between its turn and its start; harmless when the agent itself has ended it.
            let _ = self.link.call(Call::Stop { exec: key, how: Stop::Kill }).await;
        }
        // RS6: the wall clock is ours. The agent has its own, and uses it well unless it is not what it was.
        if tokio::time::timeout(timeout.saturating_add(GRACE), record.ended()).await.is_err() {
            record.end(Outcome::TimedOut);
            self.link.forget(&key);
            pool.lose(&self.identifier, "its execution could not be stopped in time");
        }
        drop(permit);
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
                    let finished =
                        Finished { outcome: Outcome::Cancelled, duration_us: 0, dropped: (0, 0), state_lost: false };
                    record.push(1, Event::Finished(finished));
                }
                Ok(())
            }
            Err(refusal) => Err(NodeError::Invalid(refusal.to_string())),
        }
    }
}
