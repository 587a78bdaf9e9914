//! One stream to a sandbox's agent, shared by all that is going on in its session.

use std::collections::HashMap;
use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use sandpool_driver::Stream;
use sandpool_wire::agent::{Answer, Call, ExecKey, FromAgent, Outcome, PROTOCOL, Refusal, ToAgent};
use sandpool_wire::frame;
use tokio::io::{AsyncReadExt, AsyncWrite, BufReader, ReadHalf, WriteHalf};
use tokio::sync::{Notify, oneshot};
use tokio_util::sync::CancellationToken;

use crate::api::NodeError;
use crate::record::Record;

/// Bytes that wait to be written; callers wait when there are more. One message more than this may be held.
const BACKLOG: usize = 2 * 1024 * 1024;

/// Bytes that are read from an agent at a time: an ordinary execution's answer and events in one.
const READ: usize = 4 * 1024;

/// A live stream.
#[derive(Debug)]
pub(crate) struct Link {
    out: Arc<Out>,
    next: AtomicU32,
    shared: Arc<Shared>,
    boot_id: [u8; 16],
}

#[derive(Debug, Default)]
struct Shared {
    table: Mutex<Table>,
    closed: CancellationToken,
    /// What the agent said of its end, and whether its program came to it by itself.
    reason: std::sync::OnceLock<(String, bool)>,
}

#[derive(Debug, Default)]
struct Table {
    waiting: HashMap<u32, oneshot::Sender<Result<Answer, Refusal>>>,
    records: HashMap<ExecKey, Arc<Record>>,
}

impl Shared {
    fn with<T>(&self, work: impl FnOnce(&mut Table) -> T) -> T {
        work(&mut self.table.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn close(&self) {
        self.closed.cancel();
        let table = self.with(std::mem::take);
        for record in table.records.into_values() {
            record.end(Outcome::Died("its sandbox is gone".to_owned()));
        }
    }

    async fn listen(&self, input: ReadHalf<Stream>) -> io::Result<()> {
        let mut input = BufReader::with_capacity(READ, input);
        loop {
            match read(&mut input).await? {
                FromAgent::Reply { request, result } => {
                    if let Some(waiting) = self.with(|table| table.waiting.remove(&request)) {
                        // Whoever asked may have gone.
                        let _ = waiting.send(result);
                    }
                }
                FromAgent::Event { exec, seq, event } => {
                    let Some(record) = self.with(|table| table.records.get(&exec).cloned()) else { continue };
                    record.push(seq, event);
                    if record.has_ended() {
                        self.with(|table| table.records.remove(&exec));
                    }
                }
                FromAgent::Ready => {}
                FromAgent::Broken { reason, by_itself } => {
                    let reason = reason.chars().filter(|c| !c.is_control() || *c == '\n').take(1_000).collect();
                    // Nobody else says it, and it is said once.
                    let _ = self.reason.set((reason, by_itself));
                    return Err(io::ErrorKind::InvalidData.into());
                }
                FromAgent::Hello { .. } => return Err(io::ErrorKind::InvalidData.into()),
            }
        }
    }
}

/// What is written to a stream. Whoever has something to say writes it without a detour, as long as the stream takes it;
/// what it does not take at once waits for a task of its own.
#[derive(Debug)]
struct Out {
    pending: Mutex<Pending>,
    /// There is less that waits.
    room: Notify,
}

struct Pending {
    stream: WriteHalf<Stream>,
    /// Whole messages, but for the first, of which the stream may have taken a part.
    bytes: Vec<u8>,
    written: usize,
    /// Wakes the task that writes what waits.
    task: Option<Waker>,
}

impl Out {
    fn pending(&self) -> MutexGuard<'_, Pending> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes what can be written now, and keeps the rest. `false`, and nothing done, when too much waits already.
    fn push(&self, message: &[u8]) -> io::Result<bool> {
        let mut pending = self.pending();
        if pending.left() > BACKLOG {
            return Ok(false);
        }
        if pending.left() > 0 {
            pending.bytes.extend_from_slice(message);
            return Ok(true);
        }
        // Nobody waits with this waker: when the stream is full, the task below asks again with its own.
        let mut context = Context::from_waker(Waker::noop());
        let mut rest = message;
        while !rest.is_empty() {
            match Pin::new(&mut pending.stream).poll_write(&mut context, rest) {
                Poll::Ready(Ok(0)) => return Err(io::ErrorKind::WriteZero.into()),
                Poll::Ready(Ok(count)) => rest = &rest[count..],
                Poll::Ready(Err(error)) => return Err(error),
                Poll::Pending => {
                    pending.bytes.extend_from_slice(rest);
                    if let Some(task) = pending.task.take() {
                        task.wake();
                    }
                    return Ok(true);
                }
            }
        }
        Ok(true)
    }

    /// Writes what waits, whenever something does. Ends with the stream.
    async fn write(&self) -> io::Error {
        std::future::poll_fn(|context| {
            let mut pending = self.pending();
            let Pending { stream, bytes, written, task } = &mut *pending;
            while *written < bytes.len() {
                match Pin::new(&mut *stream).poll_write(context, &bytes[*written..]) {
                    Poll::Ready(Ok(0)) => return Poll::Ready(io::ErrorKind::WriteZero.into()),
                    Poll::Ready(Ok(count)) => *written += count,
                    Poll::Ready(Err(error)) => return Poll::Ready(error),
                    Poll::Pending => return Poll::Pending,
                }
            }
            *bytes = Vec::new();
            *written = 0;
            *task = Some(context.waker().clone());
            self.room.notify_waiters();
            Poll::Pending
        })
        .await
    }
}

impl std::fmt::Debug for Pending {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("Pending").field("left", &self.left()).finish_non_exhaustive()
    }
}

impl Pending {
    fn left(&self) -> usize {
        self.bytes.len() - self.written
    }
}

pub(crate) async fn read(input: &mut (impl AsyncReadExt + Unpin)) -> io::Result<FromAgent> {
    let mut header = [0; frame::HEADER];
    input.read_exact(&mut header).await?;
    let mut body = vec![0; frame::body_length(header).map_err(io::Error::other)?];
    input.read_exact(&mut body).await?;
    frame::decode(&body).map_err(io::Error::other)
}

impl Link {
    /// Takes over a stream that was just dialled.
    pub(crate) async fn open(mut stream: Stream) -> io::Result<Self> {
        // One stream is one boot: an agent that starts anew has closed it.
        let FromAgent::Hello { protocol: PROTOCOL, boot_id, .. } = read(&mut stream).await? else {
            return Err(io::Error::other("the agent did not say hello in our version"));
        };
        let (input, output) = tokio::io::split(stream);
        let pending = Pending { stream: output, bytes: Vec::new(), written: 0, task: None };
        let out = Arc::new(Out { pending: Mutex::new(pending), room: Notify::new() });
        let shared = Arc::new(Shared::default());
        let (closed, writer) = (shared.closed.clone(), Arc::clone(&out));
        tokio::spawn(async move {
            tokio::select! {
                () = closed.cancelled() => {}
                _ = writer.write() => closed.cancel(),
            }
            // Those that wait for room see that there is nobody to write to.
            writer.room.notify_waiters();
        });
        let reader = Arc::clone(&shared);
        tokio::spawn(async move {
            tokio::select! {
                () = reader.closed.cancelled() => {}
                ended = reader.listen(input) => {
                    if let Err(error) = ended {
                        tracing::debug!("a stream to an agent ended: {error}");
                    }
                }
            }
            reader.close();
        });
        Ok(Self { out, next: AtomicU32::new(1), shared, boot_id })
    }

    pub(crate) async fn send(&self, message: &ToAgent) -> Result<(), NodeError> {
        let bytes = frame::encode(message).map_err(|error| NodeError::Invalid(error.to_string()))?;
        loop {
            // Registered before the look, so that nothing happens unseen between the two.
            let room = self.out.room.notified();
            tokio::pin!(room);
            room.as_mut().enable();
            if self.is_closed() {
                return Err(gone());
            }
            match self.out.push(&bytes) {
                Ok(true) => return Ok(()),
                Ok(false) => room.await,
                Err(_) => {
                    self.shared.closed.cancel();
                    return Err(gone());
                }
            }
        }
    }

    /// Why its agent is of no use any more, if it has said so.
    pub(crate) fn reason(&self) -> Option<&str> {
        self.shared.reason.get().map(|(reason, _)| reason.as_str())
    }

    /// The same, and whether that was its program's own doing.
    pub(crate) fn ended(&self) -> Option<(String, bool)> {
        self.shared.reason.get().cloned()
    }

    /// Asks, and waits for the answer.
    pub(crate) async fn call(&self, call: Call) -> Result<Result<Answer, Refusal>, NodeError> {
        // The highest number is the driver's.
        let request = self.next.fetch_add(1, Ordering::Relaxed) & (u32::MAX >> 1);
        let (sender, receiver) = oneshot::channel();
        self.shared.with(|table| table.waiting.insert(request, sender));
        let asked = self.send(&ToAgent::Call { request, call }).await;
        let answer = match asked {
            Ok(()) if self.is_closed() => Err(gone()),
            Ok(()) => receiver.await.map_err(|_| gone()),
            Err(error) => Err(error),
        };
        self.shared.with(|table| table.waiting.remove(&request));
        answer
    }

    /// The events of this execution go to `record` from now on.
    pub(crate) fn follow(&self, key: ExecKey, record: Arc<Record>) {
        self.shared.with(|table| table.records.insert(key, record));
    }

    pub(crate) fn forget(&self, key: &ExecKey) {
        self.shared.with(|table| table.records.remove(key));
    }

    /// Which boot of the sandbox this is a stream to.
    pub(crate) fn boot_id(&self) -> [u8; 16] {
        self.boot_id
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.shared.closed.is_cancelled()
    }

    pub(crate) fn closed_token(&self) -> CancellationToken {
        self.shared.closed.clone()
    }

    pub(crate) async fn closed(&self) {
        self.shared.closed.cancelled().await;
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.shared.closed.cancel();
    }
}

fn gone() -> NodeError {
    NodeError::Unavailable("the session's sandbox does not answer any more".to_owned())
}
