//! A service of a session: a program that answers for as long as somebody listens, on a stream of its own.
//!
//! Nothing of it is kept. Who reads slowly makes it wait, who writes faster than it reads waits for it, and when both halves
//! are dropped it is ended with all that it started. So it ends with the server too, though its session lives on.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use sandpool_core::ids::{ExecutionId, PoolName, SessionKey};
use sandpool_driver::Stream;
use sandpool_wire::agent::{Call, Event, ExecKey, Execute, FromAgent, MAX_CHUNK, Outcome, PROTOCOL, ToAgent, Work};
use sandpool_wire::frame;
use tokio::io::{AsyncWriteExt, BufReader, ReadHalf, WriteHalf};
use tokio::sync::Mutex;

use crate::api::NodeError;
use crate::link::read;
use crate::node::{Node, of_session};
use crate::pools::PoolState;
use crate::session::{InUse, Session};

/// How long a program may take to be started.
const START: Duration = Duration::from_secs(30);

/// Bytes that are read of its output at a time.
const READ: usize = 16 * 1024;

/// Where a service's input goes. Its clones are one.
#[derive(Clone)]
pub struct ServiceInput {
    inner: Arc<Inner>,
}

struct Inner {
    pool: Arc<PoolState>,
    session: Arc<Session>,
    exec: ExecKey,
    stream: Mutex<WriteHalf<Stream>>,
}

/// What a service says.
pub struct ServiceOutput {
    exec: ExecKey,
    stream: BufReader<ReadHalf<Stream>>,
}

/// Something that a service did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ServiceEvent {
    /// It wrote to its standard output.
    Stdout(Vec<u8>),
    /// It wrote to its standard error.
    Stderr(Vec<u8>),
    /// It has ended. Nothing follows.
    Ended(Outcome),
}

/// Something is awaited of a service: while it lives its session is in use, and it counts as an execution of its tenant.
pub struct Awaited {
    _in_use: InUse,
}

impl std::fmt::Debug for ServiceInput {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("ServiceInput").field("sandbox", &self.inner.session.sandbox).finish_non_exhaustive()
    }
}

impl std::fmt::Debug for ServiceOutput {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("ServiceOutput").finish_non_exhaustive()
    }
}

impl std::fmt::Debug for Awaited {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("Awaited").finish_non_exhaustive()
    }
}

impl Node {
    /// Starts a program in an existing session, as a service: it has no time limit, and ends when both halves are dropped.
    ///
    /// # Errors
    /// Those of [`Node::open`], and `Unavailable` when it could not be begun. A program that cannot be started is one that has
    /// ended: its first event says why.
    pub async fn service(
        &self,
        pool: &PoolName,
        key: &SessionKey,
        argv: Vec<String>,
        env: Vec<(String, String)>,
    ) -> Result<(ServiceInput, ServiceOutput), NodeError> {
        let (pool, session, _kept) = self.session_kept(pool, key).await?;
        // The session's stream is answered in order: once it answers, the sandbox has its configuration, and takes other streams too.
        session.link.call(Call::Ping).await?.map_err(|refusal| NodeError::Unavailable(refusal.to_string()))?;
        let mut id = [0; 16];
        getrandom::fill(&mut id).map_err(|error| NodeError::Unavailable(error.to_string()))?;
        let exec = ExecutionId::from_random(id).0;
        let stream = pool.dial(session.sandbox).await.map_err(|error| of_session(key, error))?;
        let boot_id = session.link.boot_id();
        let late = || NodeError::Unavailable("the session's sandbox does not answer".to_owned());
        let begun = tokio::time::timeout(START, begin(stream, boot_id, exec, Work::Service { argv, env })).await;
        let (read, write) = begun.map_err(|_| late())??;
        session.activity.touch(pool.now());
        let inner = Inner { pool, session, exec, stream: Mutex::new(write) };
        Ok((ServiceInput { inner: Arc::new(inner) }, ServiceOutput { exec, stream: read }))
    }
}

async fn begin(
    stream: Stream,
    boot_id: [u8; 16],
    exec: ExecKey,
    work: Work,
) -> Result<(BufReader<ReadHalf<Stream>>, WriteHalf<Stream>), NodeError> {
    let gone = |error: io::Error| NodeError::Unavailable(format!("the session's sandbox does not answer: {error}"));
    let (input, mut output) = tokio::io::split(stream);
    let mut input = BufReader::with_capacity(READ, input);
    match read(&mut input).await.map_err(gone)? {
        FromAgent::Hello { protocol: PROTOCOL, boot_id: found, .. } if found == boot_id => {}
        _ => return Err(NodeError::Unavailable("its sandbox started anew".to_owned())),
    }
    let call = Call::Execute(Execute { exec, work, timeout_ms: u64::MAX, output_limit: u64::MAX });
    write(&mut output, &ToAgent::Call { request: 1, call }).await.map_err(gone)?;
    loop {
        match read(&mut input).await.map_err(gone)? {
            FromAgent::Reply { result: Ok(_), .. } => return Ok((input, output)),
            FromAgent::Reply { result: Err(refusal), .. } => return Err(NodeError::Unavailable(refusal.to_string())),
            FromAgent::Ready => {}
            FromAgent::Hello { .. }
            | FromAgent::Broken { .. }
            | FromAgent::Event { .. }
            | FromAgent::Terminal { .. } => {
                return Err(gone(io::ErrorKind::InvalidData.into()));
            }
        }
    }
}

async fn write(output: &mut WriteHalf<Stream>, message: &ToAgent) -> io::Result<()> {
    let bytes = frame::encode(message).map_err(io::Error::other)?;
    output.write_all(&bytes).await
}

impl ServiceInput {
    /// Sends bytes, after all that was sent before; waits while the service does not read. A caller that goes away in the middle
    /// may have sent a part: who sends should not be dropped.
    ///
    /// # Errors
    /// `Unavailable` when the sandbox does not answer any more.
    pub async fn send(&self, data: &[u8]) -> Result<(), NodeError> {
        let mut stream = self.inner.stream.lock().await;
        for piece in data.chunks(MAX_CHUNK).filter(|piece| !piece.is_empty()) {
            let message = ToAgent::Input { exec: self.inner.exec, data: piece.to_vec() };
            let sent = write(&mut stream, &message).await;
            sent.map_err(|_| NodeError::Unavailable("the session's sandbox does not answer any more".to_owned()))?;
        }
        Ok(())
    }

    /// The session is used.
    pub fn touch(&self) {
        self.inner.session.activity.touch(self.inner.pool.now());
    }

    /// Something is awaited of it from now on.
    ///
    /// # Errors
    /// `OverQuota` when its tenant may have no more executions at the same time.
    pub fn awaits(&self) -> Result<Awaited, NodeError> {
        let place = self.inner.session.tenant.begin(self.inner.pool.now())?;
        Ok(Awaited { _in_use: InUse::holding(place, &self.inner.pool, &self.inner.session) })
    }
}

impl ServiceOutput {
    /// The next event. `None` when the sandbox is gone. Not to be dropped half-way: a part of a frame would be lost.
    pub async fn next(&mut self) -> Option<ServiceEvent> {
        loop {
            match read(&mut self.stream).await.ok()? {
                FromAgent::Event { exec, event, .. } if exec == self.exec => match event {
                    Event::Stdout(data) => return Some(ServiceEvent::Stdout(data)),
                    Event::Stderr(data) => return Some(ServiceEvent::Stderr(data)),
                    Event::Finished(finished) => return Some(ServiceEvent::Ended(finished.outcome)),
                    Event::Started | Event::Display(_) | Event::Result(_) | Event::Error(_) => {}
                },
                FromAgent::Ready | FromAgent::Reply { .. } => {}
                FromAgent::Hello { .. }
                | FromAgent::Broken { .. }
                | FromAgent::Event { .. }
                | FromAgent::Terminal { .. } => return None,
            }
        }
    }
}
