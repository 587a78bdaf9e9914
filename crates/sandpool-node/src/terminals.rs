//! Terminals of a session: one stream to the agent for each who looks at one.
//!
//! Nothing of a terminal is kept here: its agent has its name, its program and the end of its output. So it outlives whoever looks at it,
//! and this server too. Who looks slowly misses bytes, and hears how many ([`sandpool_wire::terminal`]).
//!
//! What is typed, and what is written while somebody looks, is use of the session. A connection on which nothing happens is not.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::{Buf, BytesMut};
use sandpool_core::ids::{ExecutionId, PoolName, SessionKey, TerminalName};
use sandpool_driver::Stream;
use sandpool_store::Store;
use sandpool_wire::agent::{Answer, Call, ExecKey, FromAgent, MAX_CHUNK, PROTOCOL, Refusal, ToAgent};
use sandpool_wire::frame;
use sandpool_wire::terminal::{Attach, Attached, Make, News, TERMINALS};
pub use sandpool_wire::terminal::{Signal, Size as TerminalSize};
use tokio::io::{AsyncReadExt, AsyncWriteExt, ReadHalf, WriteHalf};

use crate::api::{Finished, NodeError, Outcome};
use crate::journal;
use crate::node::{Node, of_session};
use crate::pools::PoolState;
use crate::session::Session;

/// Those who look at terminals of one session at the same time, at most.
const LOOKING: usize = 32;

/// How long a terminal may take to be attached to.
const BEGIN: Duration = Duration::from_secs(30);

/// How long the news that a session has ended may come after the end of a stream to it.
const NEWS: Duration = Duration::from_secs(2);

/// Bytes that are read at a time.
const READ: usize = 16 * 1024;

/// Bytes of output that are given on at a time, at most.
const PIECE: usize = 64 * 1024;

/// A terminal that somebody wants to look at.
#[derive(Clone, Debug)]
pub struct TerminalRequest {
    /// Its name.
    pub name: TerminalName,
    /// Only this one, whatever has the name now.
    pub only: Option<ExecutionId>,
    /// Its new size.
    pub size: Option<TerminalSize>,
    /// What to make where none of this name runs. Without it one that has ended is found too, while it is still known.
    pub make: Option<NewTerminal>,
    /// Bytes of its output that are known already.
    pub after: u64,
}

/// A terminal to make.
#[derive(Clone, Debug)]
pub struct NewTerminal {
    /// Its program; nothing for the login shell.
    pub argv: Vec<String>,
    /// The value of TERM.
    pub term: String,
}

/// A terminal, as it is now.
#[derive(Clone, Debug)]
pub struct TerminalInfo {
    /// Its name.
    pub name: TerminalName,
    /// What runs on it: a later one of that name has another.
    pub execution: ExecutionId,
    /// Its program.
    pub command: Vec<String>,
    /// Its size.
    pub size: TerminalSize,
    /// When it was made.
    pub started: SystemTime,
    /// How it ended, if it has.
    pub outcome: Option<Outcome>,
    /// How many look at it.
    pub attached: u32,
}

/// Somebody looks at a terminal. When both halves are dropped nobody does, and the terminal goes on.
#[derive(Debug)]
pub struct TerminalView {
    /// The terminal.
    pub terminal: TerminalInfo,
    /// The first byte that follows.
    pub offset: u64,
    /// Bytes before it that are not kept any more, of those that were asked for.
    pub missed: u64,
    /// It was made for this.
    pub is_new: bool,
    /// What is typed.
    pub input: TerminalInput,
    /// What is shown.
    pub output: TerminalOutput,
}

/// Where what is typed goes.
pub struct TerminalInput {
    place: Arc<Place>,
    stream: WriteHalf<Stream>,
}

/// What a terminal shows.
pub struct TerminalOutput {
    place: Arc<Place>,
    stream: ReadHalf<Stream>,
    received: BytesMut,
    /// The next byte.
    offset: u64,
}

struct Place {
    pool: Arc<PoolState>,
    session: Arc<Session>,
    exec: ExecKey,
}

/// Something that happened on a terminal.
#[derive(Clone, Debug, PartialEq)]
pub enum TerminalEvent {
    /// Bytes that were written to it.
    Output {
        /// The first of them.
        offset: u64,
        /// Bytes before it that are missing.
        missed: u64,
        /// At least one.
        data: Vec<u8>,
    },
    /// Its program has ended. Nothing follows.
    Ended(Finished),
    /// It ended with its session: why.
    Gone(String),
}

impl std::fmt::Debug for TerminalInput {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("TerminalInput").field("sandbox", &self.place.session.sandbox).finish_non_exhaustive()
    }
}

impl std::fmt::Debug for TerminalOutput {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("TerminalOutput").field("offset", &self.offset).finish_non_exhaustive()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.session.looking.fetch_sub(1, Ordering::AcqRel);
    }
}

impl Node {
    /// Attaches to a terminal of an existing session, and makes it where it is not there and that was asked for. To make one takes the
    /// place of an execution of its tenant, until it has begun.
    ///
    /// # Errors
    /// Those of [`Node::open`]; `NoTerminal`, `TooMany` terminals or lookers, `OverQuota`, `Invalid`.
    pub async fn attach(
        &self,
        pool: &PoolName,
        key: &SessionKey,
        request: TerminalRequest,
    ) -> Result<TerminalView, NodeError> {
        if request.make.is_some() && self.store().is_some_and(Store::is_in_trouble) {
            return Err(journal::unwritable());
        }
        let (pool, session, in_use) = self.session_in_use(pool, key).await?;
        // Until it is known, no terminal's.
        let place = Place::take(pool, session, [0; 16])?;
        let late = || NodeError::Unavailable("the session's sandbox does not answer".to_owned());
        let view = tokio::time::timeout(BEGIN, attach(place, key, request)).await.map_err(|_| late())?;
        drop(in_use);
        view
    }

    /// The terminals of a session, oldest first. Not counted as use.
    ///
    /// # Errors
    /// `NoPool`, `NoSession`, `SessionLost`, `Unavailable`.
    pub async fn terminals(&self, pool: &PoolName, key: &SessionKey) -> Result<Vec<TerminalInfo>, NodeError> {
        let session = self.session_to_look_at(pool, key).await?;
        match session.link.call(Call::Terminals).await? {
            // What cannot be is left out: an agent is not believed.
            Ok(Answer::Terminals(known)) => Ok(known.into_iter().take(2 * TERMINALS).filter_map(info).collect()),
            Ok(_) => Err(nonsense()),
            Err(refusal) => Err(refused(refusal, "")),
        }
    }

    /// Hangs a terminal up, and ends all that it started: in order within 2 s, by force then. It is not known any more.
    ///
    /// # Errors
    /// Those of [`Node::terminals`], and `NoTerminal`.
    pub async fn hang_up(&self, pool: &PoolName, key: &SessionKey, name: &TerminalName) -> Result<(), NodeError> {
        let (_, session, _in_use) = self.session_in_use(pool, key).await?;
        match session.link.call(Call::HangUp { name: name.to_string() }).await? {
            Ok(_) => Ok(()),
            Err(refusal) => Err(refused(refusal, name.as_str())),
        }
    }
}

impl Place {
    fn take(pool: Arc<PoolState>, session: Arc<Session>, exec: ExecKey) -> Result<Self, NodeError> {
        let looking = session.looking.fetch_add(1, Ordering::AcqRel);
        // Dropped, it gives back what it took.
        let place = Self { pool, session, exec };
        if looking >= LOOKING {
            return Err(NodeError::TooMany(format!(
                "{LOOKING} connections to terminals of this session are open already"
            )));
        }
        Ok(place)
    }

    fn touch(&self) {
        self.session.activity.touch(self.pool.now());
    }

    /// Why a stream to it has ended.
    async fn why(&self) -> String {
        let link = &self.session.link;
        match tokio::time::timeout(NEWS, link.closed()).await {
            Ok(()) => {
                link.reason().map_or("its session has ended".to_owned(), |why| format!("its session has ended: {why}"))
            }
            Err(_) => "its agent has closed the connection".to_owned(),
        }
    }
}

async fn attach(mut place: Place, key: &SessionKey, request: TerminalRequest) -> Result<TerminalView, NodeError> {
    let Place { pool, session, .. } = &place;
    // The session's stream is answered in order: once it answers, the sandbox has its configuration, and takes other streams too.
    session.link.call(Call::Ping).await?.map_err(|refusal| NodeError::Unavailable(refusal.to_string()))?;
    let TerminalRequest { name, only, size, make, after } = request;
    // Held until it has begun.
    let mut full = None;
    let mut held = None;
    let make = match make {
        None => None,
        Some(NewTerminal { argv, term }) => match session.tenant.begin(pool.now()) {
            Ok(place) => {
                held = place;
                let mut id = [0; 16];
                getrandom::fill(&mut id).map_err(|error| NodeError::Unavailable(error.to_string()))?;
                Some(Make { exec: ExecutionId::from_random(id).0, argv, term })
            }
            // One that is there may be looked at all the same.
            Err(error) => {
                full = Some(error);
                None
            }
        },
    };
    let stream = pool.dial(session.sandbox).await.map_err(|error| of_session(key, error))?;
    let gone =
        |error: std::io::Error| NodeError::Unavailable(format!("the session's sandbox does not answer: {error}"));
    let (mut input, mut output) = tokio::io::split(stream);
    let mut received = BytesMut::new();
    match next(&mut input, &mut received).await.map_err(gone)? {
        FromAgent::Hello { protocol: PROTOCOL, boot_id, .. } if boot_id == session.link.boot_id() => {}
        _ => return Err(NodeError::Unavailable("its sandbox started anew".to_owned())),
    }
    let shown = name.to_string();
    let call = Call::Terminal(Attach { name: shown.clone(), only: only.map(|id| id.0), size, make, after });
    write(&mut output, &ToAgent::Call { request: 1, call }).await.map_err(gone)?;
    let result = loop {
        match next(&mut input, &mut received).await.map_err(gone)? {
            FromAgent::Reply { result, .. } => break result,
            FromAgent::Ready => {}
            _ => return Err(nonsense()),
        }
    };
    drop(held);
    let Attached { terminal, offset, missed, is_new } = match (result, full) {
        (Ok(Answer::Attached(attached)), None) => attached,
        (Ok(Answer::Attached(attached)), Some(full)) => match attached.terminal.outcome {
            None => attached,
            Some(_) => return Err(full),
        },
        (Err(Refusal::NotFound), Some(full)) => return Err(full),
        (Ok(_), _) => return Err(nonsense()),
        (Err(refusal), _) => return Err(refused(refusal, &shown)),
    };
    let terminal = info(terminal).ok_or_else(nonsense)?;
    place.exec = terminal.execution.0;
    let place = Arc::new(place);
    let shown = TerminalOutput { place: Arc::clone(&place), stream: input, received, offset };
    let input = TerminalInput { place, stream: output };
    Ok(TerminalView { terminal, offset, missed, is_new, input, output: shown })
}

impl TerminalInput {
    /// Sends what was typed, after all that was sent before; waits while nobody reads it. A caller that goes away in the middle may have
    /// sent a part, and sends nothing after it.
    ///
    /// # Errors
    /// `Unavailable` when the sandbox does not answer any more.
    pub async fn send(&mut self, data: &[u8]) -> Result<(), NodeError> {
        for piece in data.chunks(MAX_CHUNK).filter(|piece| !piece.is_empty()) {
            self.say(&ToAgent::Input { exec: self.place.exec, data: piece.to_vec() }).await?;
        }
        Ok(())
    }

    /// Gives the terminal a new size.
    ///
    /// # Errors
    /// As [`TerminalInput::send`].
    pub async fn resize(&mut self, size: TerminalSize) -> Result<(), NodeError> {
        let TerminalSize { rows, columns } = size;
        self.say(&ToAgent::Resize { exec: self.place.exec, rows, columns }).await
    }

    /// Sends a signal to what is in the foreground.
    ///
    /// # Errors
    /// As [`TerminalInput::send`].
    pub async fn signal(&mut self, signal: Signal) -> Result<(), NodeError> {
        self.say(&ToAgent::Signal { exec: self.place.exec, signal }).await
    }

    async fn say(&mut self, message: &ToAgent) -> Result<(), NodeError> {
        self.place.touch();
        let sent = write(&mut self.stream, message).await;
        sent.map_err(|_| NodeError::Unavailable("the session's sandbox does not answer any more".to_owned()))
    }
}

impl TerminalOutput {
    /// What happens next. Cancel-safe: nothing is lost when it is dropped.
    pub async fn next(&mut self) -> TerminalEvent {
        loop {
            match next(&mut self.stream, &mut self.received).await {
                Ok(FromAgent::Terminal { exec, news }) if exec == self.place.exec => match news {
                    News::Output { offset, data } if offset >= self.offset && !data.is_empty() => {
                        return self.gathered(offset, data);
                    }
                    News::Output { .. } => return TerminalEvent::Gone("its agent speaks nonsense".to_owned()),
                    News::Ended(finished) => return TerminalEvent::Ended(finished),
                },
                Ok(FromAgent::Ready) => {}
                Ok(_) | Err(_) => return TerminalEvent::Gone(self.place.why().await),
            }
        }
    }

    /// This output, and what of the next has been received already.
    fn gathered(&mut self, offset: u64, mut data: Vec<u8>) -> TerminalEvent {
        self.place.touch();
        let missed = offset - self.offset;
        self.offset = offset.saturating_add(data.len() as u64);
        while data.len() < PIECE
            && let Ok(Some((FromAgent::Terminal { exec, news: News::Output { offset, data: more } }, used))) =
                frame::take(&self.received[..])
            && exec == self.place.exec
            && offset == self.offset
        {
            self.received.advance(used);
            self.offset = offset.saturating_add(more.len() as u64);
            data.extend_from_slice(&more);
        }
        TerminalEvent::Output { offset, missed, data }
    }
}

/// The next message of an agent. Cancel-safe: a part of one stays in `received`.
async fn next(stream: &mut ReadHalf<Stream>, received: &mut BytesMut) -> std::io::Result<FromAgent> {
    loop {
        if let Some((message, used)) = frame::take(&received[..]).map_err(std::io::Error::other)? {
            received.advance(used);
            return Ok(message);
        }
        received.reserve(READ);
        if stream.read_buf(received).await? == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
    }
}

async fn write(stream: &mut WriteHalf<Stream>, message: &ToAgent) -> std::io::Result<()> {
    stream.write_all(&frame::encode(message).map_err(std::io::Error::other)?).await
}

/// A terminal as its agent tells it, if it can be one.
fn info(terminal: sandpool_wire::terminal::Terminal) -> Option<TerminalInfo> {
    Some(TerminalInfo {
        name: TerminalName::parse(&terminal.name).ok()?,
        execution: ExecutionId(terminal.exec),
        command: terminal.argv,
        size: terminal.size,
        started: UNIX_EPOCH.checked_add(Duration::from_millis(terminal.started_ms.min(1 << 46)))?,
        outcome: terminal.outcome,
        attached: terminal.attached,
    })
}

fn refused(refusal: Refusal, name: &str) -> NodeError {
    match refusal {
        Refusal::NotFound => NodeError::NoTerminal(name.to_owned()),
        Refusal::Full(most) => NodeError::TooMany(format!("{most} terminals are open in this session already")),
        Refusal::Invalid(why) => NodeError::Invalid(why),
        other => NodeError::Unavailable(other.to_string()),
    }
}

fn nonsense() -> NodeError {
    NodeError::Unavailable("the agent answered something else".to_owned())
}
