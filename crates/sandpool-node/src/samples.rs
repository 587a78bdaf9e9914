//! What a session uses, second by second, for as long as somebody looks.
//!
//! ```text
//! first reader -> a task asks the driver once a second -> the last 300 samples -> every reader
//! last reader goes -> the task goes on for a minute, and ends
//! ```
//!
//! Of a session that nobody looks at nothing is asked and nothing kept.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use futures::StreamExt;
use futures::stream::BoxStream;
use sandpool_driver::Usage;
use tokio::sync::{OwnedSemaphorePermit, watch};
use tokio::time::{Instant, MissedTickBehavior};

use crate::api::NodeError;
use crate::pools::PoolState;
use crate::session::Session;

/// From one sample to the next.
pub const SAMPLE_INTERVAL: Duration = Duration::from_secs(1);

/// Samples of a session that are kept: of five minutes.
const KEPT: usize = 300;

/// How long samples are taken after the last reader has gone: who asks again meanwhile misses none.
const LINGER: Duration = Duration::from_secs(60);

/// How long the first sample is waited for.
const FIRST: Duration = Duration::from_secs(5);

/// Sessions of a node of which samples are taken at the same time.
pub(crate) const MOST: usize = 256;

/// What a session used at one moment.
#[derive(Clone, Debug)]
pub struct Sample {
    /// Counts up, by how old the session was in milliseconds: so it goes on when the server was started anew.
    pub sequence: u64,
    /// When.
    pub time: SystemTime,
    /// What.
    pub usage: Usage,
}

/// A session's samples.
#[derive(Debug, Default)]
pub(crate) struct Samples(Mutex<Option<Arc<Taken>>>);

/// Those that are being taken.
#[derive(Debug)]
struct Taken {
    state: Mutex<State>,
    /// Changes with each; what it says is whether there will be more.
    more: watch::Sender<bool>,
}

#[derive(Debug)]
struct State {
    kept: VecDeque<Sample>,
    readers: usize,
    /// When the last of them went.
    left: Instant,
}

/// Somebody who looks at a session's samples.
#[derive(Debug)]
pub struct SampleReader(Arc<Taken>);

impl Taken {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Samples {
    fn taken(&self) -> MutexGuard<'_, Option<Arc<Taken>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Looks, and has samples taken if they are not yet. `place` gives one of the node's places for that.
    pub(crate) fn read(
        pool: &Arc<PoolState>,
        session: &Arc<Session>,
        place: impl FnOnce() -> Option<OwnedSemaphorePermit>,
    ) -> Result<SampleReader, NodeError> {
        let mut present = session.samples.taken();
        let taken = match &*present {
            Some(taken) => Arc::clone(taken),
            None => {
                let place = place().ok_or_else(|| {
                    let why = format!("samples of {MOST} sessions are being taken already; ask again later");
                    NodeError::Unavailable(why)
                })?;
                let state = State { kept: VecDeque::new(), readers: 0, left: Instant::now() };
                let taken = Arc::new(Taken { state: Mutex::new(state), more: watch::channel(true).0 });
                *present = Some(Arc::clone(&taken));
                let (pool, session, taking) = (Arc::clone(pool), Arc::clone(session), Arc::clone(&taken));
                tokio::spawn(async move {
                    take(&pool, &session, &taking).await;
                    drop(place);
                });
                taken
            }
        };
        // Under the lock of those that are taken: the task does not end between the two.
        taken.state().readers += 1;
        Ok(SampleReader(taken))
    }
}

/// Takes samples until the session is over, or nobody has looked for a while.
async fn take(pool: &Arc<PoolState>, session: &Arc<Session>, taken: &Taken) {
    let mut ticks = tokio::time::interval(SAMPLE_INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            biased;
            () = session.link.closed() => break,
            _ = ticks.tick() => {}
        }
        {
            let mut present = session.samples.taken();
            let state = taken.state();
            if state.readers == 0 && state.left.elapsed() >= LINGER {
                *present = None;
                break;
            }
        }
        match pool.usage(session.sandbox).await {
            Ok(usage) => {
                let sequence = session.age_ms(pool.now());
                let mut state = taken.state();
                if state.kept.len() >= KEPT {
                    state.kept.pop_front();
                }
                let sequence = sequence.max(state.kept.back().map_or(1, |last| last.sequence + 1));
                state.kept.push_back(Sample { sequence, time: SystemTime::now(), usage });
                drop(state);
                taken.more.send_replace(true);
            }
            Err(sandpool_driver::DriverError::Gone(_)) => break,
            // There is no sample of this moment.
            Err(error) => tracing::debug!(sandbox = %session.sandbox, "no sample: {error}"),
        }
    }
    session.samples.taken().take_if(|present| std::ptr::eq(Arc::as_ptr(present), taken));
    taken.more.send_replace(false);
}

impl SampleReader {
    /// Those that are kept, the oldest first; there is one at least, unless the session ended meanwhile or its driver does not answer.
    pub async fn kept(&self) -> Vec<Sample> {
        // With or without the first, what is kept is told.
        let _ = tokio::time::timeout(FIRST, self.next(0)).await;
        self.0.state().kept.iter().cloned().collect()
    }

    /// Those after a sequence, those kept and those to come, until the session ends. A slow reader misses those that are not kept
    /// any more.
    #[must_use]
    pub fn after(self, sequence: u64) -> BoxStream<'static, Sample> {
        futures::stream::unfold((self, sequence), async |(reader, after)| {
            let next = reader.next(after).await?;
            let after = next.sequence;
            Some((next, (reader, after)))
        })
        .boxed()
    }

    async fn next(&self, after: u64) -> Option<Sample> {
        let mut more = self.0.more.subscribe();
        loop {
            let is_more = *more.borrow_and_update();
            {
                let state = self.0.state();
                let place = state.kept.partition_point(|sample| sample.sequence <= after);
                if let Some(sample) = state.kept.get(place) {
                    return Some(sample.clone());
                }
            }
            if !is_more {
                return None;
            }
            more.changed().await.ok()?;
        }
    }
}

impl Drop for SampleReader {
    fn drop(&mut self) {
        let mut state = self.0.state();
        state.readers -= 1;
        state.left = Instant::now();
    }
}
