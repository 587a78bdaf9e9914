//! One execution: what is known of it, kept so that anybody may read it, now or later.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use futures::StreamExt;
use futures::stream::BoxStream;
use sandpool_core::ids::{ExecutionId, Identifier};
use sandpool_wire::agent::{Event, Finished, Outcome, Rich};
use tokio::sync::watch;
use tokio::time::Instant;

use crate::api::{Execution, ExecutionState, Sequenced};

/// Bytes of values, figures and errors that are kept of one execution, besides its output. The agent keeps less; this
/// holds when the agent is not what it was.
const MAX_RICH: u64 = 64 << 20;

/// Events that are kept of one execution.
const MAX_EVENTS: usize = 100_000;

/// What a part of an event costs in memory besides its bytes, at most.
const OVERHEAD: usize = 64;

/// One execution's record.
#[derive(Debug)]
pub(crate) struct Record {
    pub(crate) id: ExecutionId,
    pub(crate) identifier: Identifier,
    created: SystemTime,
    asked: Instant,
    room: u64,
    takes_input: bool,
    is_terminal: bool,
    takes_turns: bool,
    kept: Mutex<Kept>,
    /// Changes whenever something has happened.
    version: watch::Sender<u64>,
}

#[derive(Debug, Default)]
struct Kept {
    events: Vec<Sequenced>,
    bytes: u64,
    lost: (u64, u64),
    started: bool,
    queued: Option<Duration>,
    finished: Option<Finished>,
    /// The agent did not say so: it may not know.
    ended_here: bool,
}

impl Record {
    pub(crate) fn new(id: ExecutionId, identifier: Identifier, output_limit: u64) -> Self {
        Self {
            id,
            identifier,
            created: SystemTime::now(),
            asked: Instant::now(),
            room: output_limit.saturating_add(MAX_RICH),
            takes_input: false,
            is_terminal: false,
            takes_turns: false,
            kept: Mutex::default(),
            version: watch::channel(0).0,
        }
    }

    /// Whether it takes input while it runs, and whether that comes from a terminal.
    pub(crate) fn taking(self, input: bool, terminal: bool) -> Self {
        Self { takes_input: input, is_terminal: terminal, ..self }
    }

    /// Whether it is for the interpreter, which runs one at a time.
    pub(crate) fn taking_turns(self, takes_turns: bool) -> Self {
        Self { takes_turns, ..self }
    }

    pub(crate) fn takes_turns(&self) -> bool {
        self.takes_turns
    }

    pub(crate) fn takes_input(&self) -> bool {
        self.takes_input
    }

    pub(crate) fn is_terminal(&self) -> bool {
        self.is_terminal
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes an event. One that was seen already, or that comes after the end, changes nothing.
    pub(crate) fn push(&self, seq: u64, event: Event) {
        {
            let mut kept = self.kept();
            // The last number is nobody's: there is always one after.
            let is_old = kept.events.last().is_some_and(|last| seq <= last.seq);
            if kept.finished.is_some() || is_old || seq == u64::MAX {
                return;
            }
            let bytes = size(&event);
            match &event {
                Event::Started if kept.started => return,
                Event::Started => {
                    kept.started = true;
                    kept.queued = Some(self.asked.elapsed());
                }
                Event::Finished(finished) => kept.finished = Some(finished.clone()),
                _ if kept.bytes + bytes > self.room || kept.events.len() >= MAX_EVENTS => {
                    match event {
                        Event::Stdout(data) => kept.lost.0 += length(data.len()),
                        Event::Stderr(data) => kept.lost.1 += length(data.len()),
                        _ => {}
                    }
                    return;
                }
                _ => kept.bytes += bytes,
            }
            kept.events.push(Sequenced { seq, event });
        }
        self.version.send_modify(|version| *version += 1);
    }

    /// Ends it from our side. Nothing happens if it has ended.
    pub(crate) fn end(&self, outcome: Outcome) {
        {
            let mut kept = self.kept();
            if kept.finished.is_some() {
                return;
            }
            let ran = if kept.started {
                self.asked.elapsed().saturating_sub(kept.queued.unwrap_or_default())
            } else {
                Duration::ZERO
            };
            let duration_us = u64::try_from(ran.as_micros()).unwrap_or(u64::MAX);
            let finished = Finished { outcome, duration_us, dropped: (0, 0), state_lost: false };
            let seq = kept.events.last().map_or(1, |last| last.seq.saturating_add(1));
            kept.finished = Some(finished.clone());
            kept.ended_here = true;
            kept.events.push(Sequenced { seq, event: Event::Finished(finished) });
        }
        self.version.send_modify(|version| *version += 1);
    }

    pub(crate) fn has_ended(&self) -> bool {
        self.kept().finished.is_some()
    }

    /// Whether it was ended from our side, and not by its agent.
    pub(crate) fn was_ended_here(&self) -> bool {
        self.kept().ended_here
    }

    pub(crate) fn has_started(&self) -> bool {
        self.kept().started
    }

    pub(crate) async fn ended(&self) {
        // An error would mean that the record is gone, and it is `self`.
        let _ = self.version.subscribe().wait_for(|_| self.has_ended()).await;
    }

    /// Waits until it has started or ended.
    pub(crate) async fn started(&self) {
        let _ = self.version.subscribe().wait_for(|_| self.has_started() || self.has_ended()).await;
    }

    /// As it is now, with its output.
    pub(crate) fn snapshot(&self) -> Execution {
        self.describe(true)
    }

    /// As it is now, without output and values, however many those are.
    pub(crate) fn outline(&self) -> Execution {
        self.describe(false)
    }

    fn describe(&self, with_output: bool) -> Execution {
        let kept = self.kept();
        let mut stdout = Vec::new();
        let mut stderr = Vec::new();
        let mut displays: Vec<Rich> = Vec::new();
        let (mut result, mut error) = (None, None);
        for sequenced in kept.events.iter().filter(|_| with_output) {
            match &sequenced.event {
                Event::Stdout(data) => stdout.extend_from_slice(data),
                Event::Stderr(data) => stderr.extend_from_slice(data),
                Event::Display(rich) => displays.push(rich.clone()),
                Event::Result(rich) => result = Some(rich.clone()),
                Event::Error(raised) => error = Some(raised.clone()),
                Event::Started | Event::Finished(_) => {}
            }
        }
        let finished = kept.finished.as_ref();
        let dropped = finished.map_or((0, 0), |finished| finished.dropped);
        Execution {
            id: self.id,
            identifier: self.identifier.clone(),
            state: match finished {
                Some(finished) => ExecutionState::Ended(finished.outcome.clone()),
                None if kept.started => ExecutionState::Running,
                None => ExecutionState::Queued,
            },
            created: self.created,
            stdout,
            stderr,
            dropped: (dropped.0 + kept.lost.0, dropped.1 + kept.lost.1),
            result,
            displays,
            error,
            duration: finished.map(|finished| Duration::from_micros(finished.duration_us)),
            queued: kept.queued,
            state_lost: finished.is_some_and(|finished| finished.state_lost),
        }
    }

    /// The next event after `seq`; `None` when it has ended and there is none.
    async fn next(&self, seq: u64) -> Option<Sequenced> {
        let mut version = self.version.subscribe();
        loop {
            {
                let kept = self.kept();
                let place = kept.events.partition_point(|event| event.seq <= seq);
                if let Some(event) = kept.events.get(place) {
                    return Some(event.clone());
                }
                if kept.finished.is_some() {
                    return None;
                }
            }
            version.changed().await.ok()?;
        }
    }

    pub(crate) fn events(self: std::sync::Arc<Self>, after_seq: u64) -> BoxStream<'static, Sequenced> {
        futures::stream::unfold((self, after_seq), async |(record, seq)| {
            let next = record.next(seq).await?;
            let seq = next.seq;
            Some((next, (record, seq)))
        })
        .boxed()
    }
}

fn length(bytes: usize) -> u64 {
    u64::try_from(bytes).unwrap_or(u64::MAX)
}

fn size(event: &Event) -> u64 {
    length(match event {
        Event::Stdout(data) | Event::Stderr(data) => data.len(),
        Event::Display(rich) | Event::Result(rich) => {
            let forms = rich.forms.iter().map(|(kind, data)| OVERHEAD + kind.len() + data.len()).sum::<usize>();
            let dropped = rich.dropped.iter().map(|(kind, _)| OVERHEAD + kind.len()).sum::<usize>();
            OVERHEAD + rich.text.len() + rich.scalar.as_ref().map_or(0, String::len) + forms + dropped
        }
        Event::Error(raised) => raised.name.len() + raised.message.len() + raised.traceback.len(),
        Event::Started | Event::Finished(_) => 0,
    })
}
