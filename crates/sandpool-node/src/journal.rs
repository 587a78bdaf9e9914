//! What is written down of a session and its executions, and how it is read again.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use sandpool_core::ids::{ExecutionId, Identifier};
use sandpool_store::{Place, Row, Source, Store};
use sandpool_wire::agent::{Outcome, Raised, Rich};
use serde::{Deserialize, Serialize};

use crate::api::{Execution, ExecutionState, NodeError};
use crate::record::Record;

/// Bytes of one execution's output that are written down, and as many of its values. What is more is cut, and said to be.
const KEPT: usize = 64 << 10;

/// How long a caller waits until it is written down what it will be told.
const PATIENCE: Duration = Duration::from_secs(2);

/// Where one session's executions are written.
#[derive(Clone, Debug)]
pub(crate) struct Journal {
    pub(crate) store: Store,
    pub(crate) place: Arc<Place>,
}

impl Journal {
    /// An execution has come this far.
    pub(crate) fn write(&self, record: &Arc<Record>) {
        self.store.execution(self.place.sandbox, Arc::clone(record) as Arc<dyn Source>);
    }

    /// Writes down that an execution was accepted, and waits until it is.
    pub(crate) async fn keep(&self, record: &Arc<Record>) -> Result<(), NodeError> {
        self.write(record);
        let written = tokio::time::timeout(PATIENCE, self.store.written()).await;
        written.map_err(|_| unwritable())
    }
}

/// Why nothing new is taken while nothing can be written. The path, and the cause, are for the log.
pub(crate) fn unwritable() -> NodeError {
    NodeError::Unavailable("the server cannot write its state; its log says why".to_owned())
}

/// An execution as it is written. A change of this is a new variant, so that what is there can be read.
#[derive(Serialize, Deserialize)]
enum Stored {
    V1(StoredV1),
}

#[derive(Serialize, Deserialize)]
struct StoredV1 {
    created_ms: u64,
    state: StoredState,
    stdout: Vec<u8>,
    stderr: Vec<u8>,
    dropped: (u64, u64),
    result: Option<Rich>,
    displays: Vec<Rich>,
    error: Option<Raised>,
    duration_us: Option<u64>,
    queued_us: Option<u64>,
    state_lost: bool,
}

#[derive(Serialize, Deserialize)]
enum StoredState {
    Queued,
    Running,
    Ended(Outcome),
}

impl Source for Record {
    fn row(&self) -> Row {
        let seen = self.snapshot();
        let micros = |time: Duration| u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        let (stdout, out_cut) = cut(seen.stdout);
        let (stderr, err_cut) = cut(seen.stderr);
        let mut room = KEPT;
        let is_ended = matches!(seen.state, ExecutionState::Ended(_));
        let stored = Stored::V1(StoredV1 {
            created_ms: u64::try_from(seen.created.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis()))
                .unwrap_or(u64::MAX),
            state: match seen.state {
                ExecutionState::Queued => StoredState::Queued,
                ExecutionState::Running => StoredState::Running,
                ExecutionState::Ended(outcome) => StoredState::Ended(outcome),
            },
            stdout,
            stderr,
            dropped: (seen.dropped.0 + out_cut, seen.dropped.1 + err_cut),
            result: seen.result.map(|rich| lighter(rich, &mut room)),
            displays: seen.displays.into_iter().map(|rich| lighter(rich, &mut room)).collect(),
            error: seen.error,
            duration_us: seen.duration.map(micros),
            queued_us: seen.queued.map(micros),
            state_lost: seen.state_lost,
        });
        // These types can always be encoded; an empty body is read as nothing.
        let body = postcard::to_allocvec(&stored).unwrap_or_default();
        Row { id: self.id, is_ended, body }
    }
}

/// As much of an output as is kept, and how many bytes are not.
fn cut(mut output: Vec<u8>) -> (Vec<u8>, u64) {
    let over = output.len().saturating_sub(KEPT);
    output.truncate(KEPT);
    (output, u64::try_from(over).unwrap_or(u64::MAX))
}

/// A value without the forms for which there is no room.
fn lighter(mut rich: Rich, room: &mut usize) -> Rich {
    let mut left_out = Vec::new();
    rich.forms.retain(|(kind, bytes)| {
        let fits = bytes.len() <= *room;
        if fits {
            *room -= bytes.len();
        } else {
            left_out.push((kind.clone(), u64::try_from(bytes.len()).unwrap_or(u64::MAX)));
        }
        fits
    });
    rich.dropped.append(&mut left_out);
    if rich.text.len() > *room {
        let mut end = *room;
        while !rich.text.is_char_boundary(end) {
            end -= 1;
        }
        rich.text.truncate(end);
    }
    *room -= rich.text.len();
    rich
}

/// An execution as it was written, of a session that is not there any more: it goes on no more, however far it was.
pub(crate) fn read(identifier: Identifier, row: &Row) -> Option<Execution> {
    let Stored::V1(stored) = postcard::from_bytes(&row.body).ok()?;
    Some(Execution {
        id: row.id,
        identifier,
        state: ExecutionState::Ended(match stored.state {
            StoredState::Ended(outcome) => outcome,
            StoredState::Queued | StoredState::Running => Outcome::Died("its session was lost".to_owned()),
        }),
        created: UNIX_EPOCH + Duration::from_millis(stored.created_ms),
        stdout: stored.stdout,
        stderr: stored.stderr,
        dropped: stored.dropped,
        result: stored.result,
        displays: stored.displays,
        error: stored.error,
        duration: stored.duration_us.map(Duration::from_micros),
        queued: stored.queued_us.map(Duration::from_micros),
        state_lost: stored.state_lost,
    })
}

/// The record of an execution that its server had accepted and its agent never heard of.
pub(crate) fn never_begun(id: ExecutionId, identifier: Identifier, output_limit: u64) -> Arc<Record> {
    let record = Record::new(id, identifier, output_limit);
    record.end(Outcome::NotStarted("the server was killed before it began".to_owned()));
    Arc::new(record)
}

/// Now, to the millisecond: as times are written.
pub(crate) fn written(time: SystemTime) -> SystemTime {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    UNIX_EPOCH + Duration::from_millis(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}
