//! One stream to a sandbox's agent, shared by all that is going on in its session.

use std::collections::HashMap;
use std::io;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use sandpool_driver::Stream;
use sandpool_wire::agent::{Answer, Call, ExecKey, FromAgent, Outcome, PROTOCOL, Refusal, ToAgent};
use sandpool_wire::frame;
use tokio::io::{AsyncReadExt, AsyncWriteExt, ReadHalf};
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use crate::api::NodeError;
use crate::record::Record;

/// Messages that wait to be written; callers wait when there are more.
const BACKLOG: usize = 32;

/// A live stream.
#[derive(Debug)]
pub(crate) struct Link {
    out: mpsc::Sender<Vec<u8>>,
    next: AtomicU32,
    shared: Arc<Shared>,
    boot_id: [u8; 16],
}

#[derive(Debug, Default)]
struct Shared {
    table: Mutex<Table>,
    closed: CancellationToken,
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

    async fn listen(&self, mut input: ReadHalf<Stream>) -> io::Result<()> {
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
                FromAgent::Hello { .. } | FromAgent::Broken { .. } => return Err(io::ErrorKind::InvalidData.into()),
            }
        }
    }
}

async fn read(input: &mut (impl AsyncReadExt + Unpin)) -> io::Result<FromAgent> {
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
        let (input, mut output) = tokio::io::split(stream);
        let (out, mut pending) = mpsc::channel::<Vec<u8>>(BACKLOG);
        let shared = Arc::new(Shared::default());
        let closed = shared.closed.clone();
        tokio::spawn(async move {
            loop {
                let bytes = tokio::select! {
                    () = closed.cancelled() => break,
                    bytes = pending.recv() => bytes,
                };
                let Some(bytes) = bytes else { break };
                if output.write_all(&bytes).await.is_err() {
                    break;
                }
            }
            closed.cancel();
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
        self.out.send(bytes).await.map_err(|_| gone())
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
