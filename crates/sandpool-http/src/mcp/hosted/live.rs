//! One MCP session: a server that runs in a sandbox, and those who wait for what it says.
//!
//! ```text
//! POST --line--> [writer] --stdin-->  the server  --stdout--> [reader] --> calls, or the standing stream
//! ```
//!
//! Who does not take what is said to them holds up their own session and no other: its reader waits, and then the server does.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use sandpool_node::{Awaited, NodeError, Outcome, ServiceEvent, ServiceInput, ServiceOutput};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_util::sync::CancellationToken;

use super::exchange::{CallId, Exchange, Goes, NotTaken};
use super::message::{self, Id, Kind, Message};

/// The longest message in either direction, in bytes.
pub(super) const MAX_MESSAGE: usize = 4 << 20;

/// Bytes of a server's messages that are on their way to calls of one session, in KiB.
const ROOM_KIB: usize = 16 << 10;

/// Messages that wait for one call to take them.
const WAITING: usize = 16;

/// Messages to a server that wait for it to read; who sends more waits.
const UNREAD: usize = 4;

/// What waits for the standing stream: messages, and their bytes. The oldest is dropped when there is more.
const STANDING: (usize, usize) = (256, 4 << 20);

/// The last bytes of a server's standard error that are told when it ends.
const TAIL: usize = 2 << 10;

/// The code of the errors that we answer in a server's place.
pub(super) const ENDED: i32 = -32_000;

/// Something for a call.
#[derive(Debug)]
pub(super) struct Said {
    pub(super) line: String,
    /// It is the answer, or says that there will be none.
    pub(super) is_last: bool,
    pub(super) is_error: bool,
    _room: Option<OwnedSemaphorePermit>,
}

/// One session.
#[derive(Debug)]
pub(super) struct Live {
    to_server: mpsc::Sender<String>,
    service: ServiceInput,
    room: Arc<Semaphore>,
    state: Mutex<State>,
    /// Something waits for the standing stream, or it is another's.
    standing: Notify,
    /// It is to end, or has ended.
    pub(super) ended: CancellationToken,
}

#[derive(Debug, Default)]
struct State {
    exchange: Exchange,
    calls: HashMap<CallId, mpsc::Sender<Said>>,
    standing: VecDeque<Message>,
    standing_bytes: usize,
    /// Which standing stream is the newest: only that one is served.
    stream: u64,
    /// Why there is no server any more.
    why: Option<String>,
}

/// A call that waits for its answer.
#[derive(Debug)]
pub(super) struct Call {
    live: Arc<Live>,
    id: CallId,
    said: mpsc::Receiver<Said>,
    _awaited: Awaited,
}

/// Why something was not passed on.
#[derive(Debug, thiserror::Error)]
pub(super) enum NotPassed {
    #[error("{0}")]
    NotTaken(#[from] NotTaken),
    #[error("{0}")]
    Ended(String),
    #[error("{0}")]
    Node(#[from] NodeError),
}

impl Live {
    /// Takes over a server that was just started. The second is its life, which has to be run: it ends with the server, and
    /// ends it.
    pub(super) fn begin(service: ServiceInput, output: ServiceOutput) -> (Arc<Self>, impl Future<Output = ()> + Send) {
        let (to_server, lines) = mpsc::channel(UNREAD);
        let live = Arc::new(Self {
            to_server,
            service: service.clone(),
            room: Arc::new(Semaphore::new(ROOM_KIB)),
            state: Mutex::default(),
            standing: Notify::new(),
            ended: CancellationToken::new(),
        });
        let life = run(Arc::clone(&live), service, lines, output);
        (live, life)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Why there is no server any more.
    fn why(&self) -> String {
        self.state().why.clone().unwrap_or_else(|| "the server has ended".to_owned())
    }

    /// Passes a notification or a response on.
    pub(super) async fn pass(&self, line: String) -> Result<(), NotPassed> {
        self.service.touch();
        tokio::select! {
            () = self.ended.cancelled() => Err(NotPassed::Ended(self.why())),
            sent = self.to_server.send(line) => sent.map_err(|_| NotPassed::Ended(self.why())),
        }
    }

    /// Passes a request on. `listens`: more than its answer is taken.
    pub(super) async fn ask(self: &Arc<Self>, request: Message, listens: bool) -> Result<Call, NotPassed> {
        let Kind::Request { id, progress, .. } = request.kind else {
            return Err(NotPassed::Node(NodeError::Invalid("not a request".to_owned())));
        };
        let awaited = self.service.awaits()?;
        let (sender, said) = mpsc::channel(WAITING);
        let id = {
            let mut state = self.state();
            if let Some(why) = &state.why {
                return Err(NotPassed::Ended(why.clone()));
            }
            let id = state.exchange.ask(id, progress, listens)?;
            state.calls.insert(id, sender);
            id
        };
        // From here on it leaves when it is dropped.
        let call = Call { live: Arc::clone(self), id, said, _awaited: awaited };
        if let Err(error) = self.pass(request.line).await {
            self.state().exchange.forget(id);
            return Err(error);
        }
        if listens {
            self.hand_over(id);
        }
        Ok(call)
    }

    /// What waits for a stream that is not there goes to a call that has just begun; a part of it, if it is much.
    fn hand_over(&self, call: CallId) {
        let mut state = self.state();
        let Some(to) = state.calls.get(&call).cloned() else { return };
        for _ in 0..WAITING / 2 {
            let Some(message) = state.take() else { return };
            // There is room: it has been told nothing yet, or little.
            if to.try_send(Said { line: message.line, is_last: false, is_error: false, _room: None }).is_err() {
                return;
            }
        }
    }

    /// The client wants no answer to this any more, and the server may give none: its call ends without one.
    pub(super) fn cancel(&self, id: &Id) {
        let mut state = self.state();
        if let Some(call) = state.exchange.cancel(id) {
            state.calls.remove(&call);
        }
    }

    /// Brings what the server said to where it belongs.
    async fn deliver(&self, message: Message) {
        let (goes, to) = {
            let mut state = self.state();
            let goes = state.exchange.hear(&message.kind);
            let to = match goes {
                Goes::Answers(call) => state.calls.remove(&call),
                Goes::To(call) => state.calls.get(&call).cloned(),
                Goes::Standing | Goes::Nowhere => None,
            };
            (goes, to)
        };
        match (goes, to) {
            (Goes::Nowhere, _) => {}
            (Goes::Standing, _) => self.keep(message),
            (Goes::Answers(_) | Goes::To(_), None) => {}
            (goes, Some(to)) => {
                let kib = u32::try_from(message.line.len() / 1024 + 1).unwrap_or(u32::MAX);
                // Nobody closes it.
                let room = Arc::clone(&self.room).acquire_many_owned(kib).await.ok();
                let is_error = matches!(message.kind, Kind::Response { is_error: true, .. });
                let said =
                    Said { line: message.line, is_last: matches!(goes, Goes::Answers(_)), is_error, _room: room };
                // One that has gone takes nothing.
                let _ = to.send(said).await;
            }
        }
    }

    /// Keeps a message for the standing stream.
    fn keep(&self, message: Message) {
        let dropped = self.state().keep(message);
        self.standing.notify_waiters();
        for message in dropped {
            // A request that nobody will hear is answered in the client's place.
            if let Kind::Request { id, .. } = message.kind {
                let _ = self.to_server.try_send(message::error(Some(&id), ENDED, "the client does not listen"));
            }
        }
    }

    /// Begins to serve the standing stream, in place of the one before.
    pub(super) fn stand(&self) -> u64 {
        let number = {
            let mut state = self.state();
            state.stream += 1;
            state.stream
        };
        self.standing.notify_waiters();
        number
    }

    /// The next message of the standing stream; `None` when it has ended, or another took its place.
    pub(super) async fn next_standing(&self, stream: u64) -> Option<String> {
        loop {
            // Registered before the look, so that nothing happens unseen between the two.
            let more = self.standing.notified();
            tokio::pin!(more);
            more.as_mut().enable();
            {
                let mut state = self.state();
                if state.stream != stream || self.ended.is_cancelled() {
                    return None;
                }
                if let Some(message) = state.take() {
                    return Some(message.line);
                }
            }
            tokio::select! {
                () = more => {}
                () = self.ended.cancelled() => return None,
            }
        }
    }

    /// The server is no more: those who wait hear why.
    async fn end(&self, why: String) {
        let waiting = {
            let mut state = self.state();
            state.why = Some(why.clone());
            let ended = state.exchange.end();
            let mut calls = std::mem::take(&mut state.calls);
            ended.into_iter().filter_map(|(call, id)| Some((calls.remove(&call)?, id))).collect::<Vec<_>>()
        };
        self.ended.cancel();
        for (call, id) in waiting {
            let line = message::error(Some(&id), ENDED, &why);
            // Who takes nothing is not waited for: the channel's end says it too.
            let _ = call.try_send(Said { line, is_last: true, is_error: true, _room: None });
        }
    }
}

impl State {
    fn take(&mut self) -> Option<Message> {
        let message = self.standing.pop_front()?;
        self.standing_bytes -= message.line.len();
        Some(message)
    }

    /// Keeps one more, and gives back those that have no room any more.
    fn keep(&mut self, message: Message) -> Vec<Message> {
        self.standing_bytes += message.line.len();
        self.standing.push_back(message);
        let mut dropped = Vec::new();
        while self.standing.len() > STANDING.0 || self.standing_bytes > STANDING.1 {
            dropped.extend(self.take());
        }
        dropped
    }
}

impl Call {
    /// What the server says next to whoever asked. The last is the answer.
    pub(super) async fn next(&mut self) -> Option<Said> {
        self.said.recv().await
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        let mut state = self.live.state();
        state.exchange.leave(self.id);
        state.calls.remove(&self.id);
    }
}

/// A server's life.
async fn run(live: Arc<Live>, service: ServiceInput, mut lines: mpsc::Receiver<String>, mut output: ServiceOutput) {
    let ended = live.ended.clone();
    let write = async {
        while let Some(mut line) = lines.recv().await {
            line.push('\n');
            if let Err(error) = service.send(line.as_bytes()).await {
                return error.to_string();
            }
        }
        // The sender is in `live`.
        std::future::pending().await
    };
    let why = tokio::select! {
        () = ended.cancelled() => "the session was ended".to_owned(),
        why = write => why,
        why = listen(&live, &mut output) => why,
    };
    live.end(why).await;
}

/// Hears the server until it has ended; says how it did.
async fn listen(live: &Live, output: &mut ServiceOutput) -> String {
    let mut pending = Vec::new();
    let mut tail = Vec::new();
    loop {
        match output.next().await {
            Some(ServiceEvent::Stdout(data)) => {
                for (at, piece) in data.split(|byte| *byte == b'\n').enumerate() {
                    if at > 0 {
                        hear(live, &std::mem::take(&mut pending)).await;
                    }
                    pending.extend_from_slice(piece);
                }
                if pending.len() > MAX_MESSAGE {
                    return format!("the server was ended: it sent a message of more than {MAX_MESSAGE} bytes");
                }
            }
            Some(ServiceEvent::Stderr(data)) => {
                tail.extend_from_slice(&data);
                tail.drain(..tail.len().saturating_sub(TAIL));
            }
            Some(ServiceEvent::Ended(outcome)) => {
                let how = match outcome {
                    Outcome::Exited(code) => format!("with code {code}"),
                    Outcome::NotStarted(why) => format!("before it began: {why}"),
                    other => format!("{other:?}"),
                };
                let said = String::from_utf8_lossy(&tail);
                let said: String = said.chars().filter(|c| !c.is_control() || *c == '\n').collect();
                let last =
                    if said.trim().is_empty() { String::new() } else { format!("; its last words: {}", said.trim()) };
                return format!("the server has ended {how}{last}");
            }
            None => return "the sandbox of the server is gone".to_owned(),
        }
    }
}

/// Takes one line of the server. What is no message is what some servers print besides; it is for nobody.
async fn hear(live: &Live, line: &[u8]) {
    let Ok(text) = std::str::from_utf8(line) else { return };
    if text.trim().is_empty() {
        return;
    }
    match message::parse_line(text) {
        Ok(messages) => {
            for message in messages {
                live.deliver(message).await;
            }
        }
        Err(error) => tracing::debug!(%error, "a hosted server wrote what is no message"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn note(text: &str) -> Message {
        message::parse(&format!(r#"{{"jsonrpc":"2.0","method":"{text}"}}"#)).unwrap()
    }

    #[test]
    fn what_waits_for_a_stream_is_bounded_and_the_oldest_goes_first() {
        let mut state = State::default();
        for number in 0..=STANDING.0 {
            let dropped = state.keep(note(&number.to_string()));
            assert_eq!(dropped.len(), usize::from(number == STANDING.0));
        }
        assert_eq!(state.take(), Some(note("1")));
        let long = "x".repeat(STANDING.1 / 2);
        assert_eq!(state.keep(note(&long)).len(), 0);
        assert!(state.keep(note(&long)).len() >= STANDING.0, "all but the newest");
        assert!(state.standing_bytes <= STANDING.1);
    }
}
