//! One stream: frames in, replies and followed events out.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;

use rustix::io::Errno;
use sandpool_wire::agent::{ExecKey, FromAgent, ToAgent};
use sandpool_wire::frame;

use crate::files::Upload;
use crate::log::Log;
use crate::pipe::{self, Got};
use crate::terminal::{Terminal, Watch};
use crate::tree::{Pack, Unpack};

/// Bytes of replies that may wait; above it no further request is read.
const REPLIES: usize = 2 * 1024 * 1024;

/// Bytes of events that are copied out of a log at a time.
const STAGE: usize = 64 * 1024;

/// A stream that someone dialled.
#[derive(Debug)]
pub struct Stream {
    /// Its socket, which does not block.
    pub fd: OwnedFd,
    /// What it uploads.
    pub uploads: BTreeMap<u32, Upload>,
    /// The next upload's handle.
    pub next_upload: u32,
    /// The tree of files that it reads.
    pub packing: Option<Pack>,
    /// The tree of files that it writes.
    pub unpacking: Option<Unpack>,
    /// Its last input waits for this execution: nothing more is read.
    pub held_by: Option<ExecKey>,
    inbox: Vec<u8>,
    replies: Vec<u8>,
    stage: Vec<u8>,
    written: usize,
    followed: Vec<(ExecKey, usize)>,
    watched: Vec<Watch>,
}

/// What streams copy from.
#[derive(Clone, Copy, Debug)]
pub struct Sources<'a> {
    /// Of executions.
    pub logs: &'a [Log],
    /// Of terminals.
    pub terminals: &'a [Terminal],
}

impl<'a> Sources<'a> {
    fn log(self, exec: ExecKey) -> Option<&'a Log> {
        self.logs.iter().find(|log| log.exec() == exec)
    }

    fn terminal(self, exec: ExecKey) -> Option<&'a Terminal> {
        self.terminals.iter().find(|terminal| terminal.seen.exec == exec)
    }
}

/// A stream is of no more use: its peer is gone, or sent what is not a frame.
#[derive(Debug, PartialEq, Eq)]
pub struct Closed;

impl Stream {
    /// A new stream on `fd`.
    #[must_use]
    pub fn new(fd: OwnedFd) -> Self {
        Self {
            fd,
            uploads: BTreeMap::new(),
            next_upload: 1,
            packing: None,
            unpacking: None,
            held_by: None,
            inbox: Vec::new(),
            replies: Vec::new(),
            stage: Vec::new(),
            written: 0,
            followed: Vec::new(),
            watched: Vec::new(),
        }
    }

    /// Queues a message.
    pub fn say(&mut self, message: &FromAgent) {
        // Whatever the agent says is bounded below the largest frame.
        if let Ok(bytes) = frame::encode(message) {
            self.replies.extend_from_slice(&bytes);
        }
    }

    /// Follows an execution's log from byte `position` on; one that is followed already is left as it is.
    pub fn follow(&mut self, exec: ExecKey, position: usize) {
        if self.followed.iter().all(|(known, _)| *known != exec) {
            self.followed.push((exec, position));
        }
    }

    /// Follows an execution's log from byte `position` on, in place of where it was.
    pub fn follow_again(&mut self, exec: ExecKey, position: usize) {
        self.followed.retain(|(known, _)| *known != exec);
        self.followed.push((exec, position));
    }

    /// Whether events of `exec` wait to be sent.
    #[must_use]
    pub fn awaits(&self, exec: ExecKey, log: &Log) -> bool {
        self.followed.iter().any(|(known, position)| *known == exec && *position < log.end())
    }

    /// Up to where it has the events of `exec`, if it follows them.
    #[must_use]
    pub fn position(&self, exec: ExecKey) -> Option<usize> {
        self.followed.iter().find(|(known, _)| *known == exec).map(|(_, position)| *position)
    }

    /// Follows a terminal's output from byte `offset` on, in place of where it was.
    pub fn watch(&mut self, exec: ExecKey, offset: u64) {
        self.watched.retain(|watch| watch.exec != exec);
        self.watched.push(Watch { exec, offset, is_over: false });
    }

    /// Up to where it has a terminal's output, if it follows it.
    #[must_use]
    pub fn watches(&self, exec: ExecKey) -> Option<u64> {
        self.watched.iter().find(|watch| watch.exec == exec).map(|watch| watch.offset)
    }

    /// A terminal will not be known any more: what is left of it is said now.
    pub fn forget(&mut self, terminal: &Terminal) {
        for watch in self.watched.iter_mut().filter(|watch| watch.exec == terminal.seen.exec) {
            // Its scrollback, at most.
            terminal.tell(watch, usize::MAX >> 1, &mut self.replies);
        }
        self.watched.retain(|watch| watch.exec != terminal.seen.exec);
    }

    /// Whether it should be read now.
    #[must_use]
    pub fn wants_input(&self) -> bool {
        self.held_by.is_none() && self.replies.len() < REPLIES
    }

    /// Reads once.
    ///
    /// # Errors
    /// [`Closed`] when the peer is gone.
    pub fn receive(&mut self) -> Result<(), Closed> {
        match pipe::read(&self.fd, &mut self.inbox) {
            Got::Bytes(_) | Got::Nothing => Ok(()),
            Got::End => Err(Closed),
        }
    }

    /// The next whole message, if it is there and the stream is not held back.
    ///
    /// # Errors
    /// [`Closed`] when what was received is not a frame.
    pub fn take(&mut self) -> Result<Option<ToAgent>, Closed> {
        if !self.wants_input() {
            return Ok(None);
        }
        match frame::take::<ToAgent>(&self.inbox) {
            Ok(Some((message, used))) => {
                self.inbox.drain(..used);
                if self.inbox.is_empty() {
                    self.inbox = Vec::new();
                }
                Ok(Some(message))
            }
            Ok(None) => Ok(None),
            Err(_) => Err(Closed),
        }
    }

    /// Whether there is something to send.
    pub fn wants_output(&mut self, sources: Sources<'_>) -> bool {
        self.written < self.stage.len() || self.refill(sources)
    }

    /// Sends what can be sent now.
    ///
    /// # Errors
    /// [`Closed`] when the peer is gone.
    pub fn send(&mut self, sources: Sources<'_>) -> Result<(), Closed> {
        while self.wants_output(sources) {
            match rustix::io::write(&self.fd, &self.stage[self.written..]) {
                Ok(count) => self.written += count,
                Err(Errno::AGAIN) => return Ok(()),
                Err(Errno::INTR) => {}
                Err(_) => return Err(Closed),
            }
        }
        Ok(())
    }

    /// Puts the next frames on the stage, once it is empty: replies first, then events of each log and terminal in turn.
    fn refill(&mut self, sources: Sources<'_>) -> bool {
        self.written = 0;
        self.stage = std::mem::take(&mut self.replies);
        for (exec, position) in &mut self.followed {
            if self.stage.len() >= STAGE {
                break;
            }
            if let Some(log) = sources.log(*exec) {
                let bytes = log.read(*position, STAGE);
                self.stage.extend_from_slice(bytes);
                *position += bytes.len();
            }
        }
        // One that has ended and been sent as a whole, or is no longer kept, is followed no more.
        self.followed.retain(|(exec, position)| {
            sources.log(*exec).is_some_and(|log| log.outcome().is_none() || *position < log.end())
        });
        for watch in &mut self.watched {
            if self.stage.len() >= STAGE {
                break;
            }
            if let Some(terminal) = sources.terminal(watch.exec).filter(|terminal| terminal.awaits(watch)) {
                terminal.tell(watch, STAGE - self.stage.len(), &mut self.stage);
            }
        }
        self.watched.retain(|watch| !watch.is_over);
        // The next turn begins with another.
        if self.followed.len() > 1 {
            self.followed.rotate_left(1);
        }
        if self.watched.len() > 1 {
            self.watched.rotate_left(1);
        }
        !self.stage.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use sandpool_wire::agent::{Answer, Call, Outcome};
    use std::os::unix::net::UnixStream;
    use std::time::{Duration, Instant};

    fn pair() -> (UnixStream, Stream) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        theirs.set_nonblocking(true).unwrap();
        (ours, Stream::new(theirs.into()))
    }

    fn messages(bytes: &[u8]) -> Vec<FromAgent> {
        let (mut rest, mut all) = (bytes, Vec::new());
        while let Some((message, used)) = frame::take(rest).unwrap() {
            all.push(message);
            rest = &rest[used..];
        }
        all
    }

    #[test]
    fn a_reply_comes_before_the_events_of_what_it_answers() {
        let (ours, mut stream) = pair();
        let mut log = Log::new([1; 16], 1000);
        log.started();
        stream.say(&FromAgent::Reply { request: 1, result: Ok(Answer::Done) });
        stream.follow([1; 16], 0);
        log.output(crate::log::Channel::Stdout, b"x", Instant::now());
        log.finish(Outcome::Succeeded, Duration::ZERO, false);
        stream.send(Sources { logs: std::slice::from_ref(&log), terminals: &[] }).unwrap();
        assert!(
            !stream.wants_output(Sources { logs: std::slice::from_ref(&log), terminals: &[] })
                && stream.followed.is_empty()
        );
        drop(stream);
        let mut bytes = Vec::new();
        std::io::Read::read_to_end(&mut &ours, &mut bytes).unwrap();
        let all = messages(&bytes);
        assert!(matches!(all[0], FromAgent::Reply { .. }));
        assert_eq!(all.len(), 4);
    }

    #[test]
    fn a_reader_that_does_not_read_holds_up_nobody() {
        let (_ours, mut stream) = pair();
        let mut log = Log::new([1; 16], u64::MAX);
        stream.follow([1; 16], 0);
        let mut now = Instant::now();
        for _ in 0..100 {
            now += Duration::from_millis(10);
            log.output(crate::log::Channel::Stdout, &[0; 60_000], now);
            stream.send(Sources { logs: std::slice::from_ref(&log), terminals: &[] }).unwrap();
        }
        assert!(
            stream.wants_output(Sources { logs: std::slice::from_ref(&log), terminals: &[] })
                && stream.stage.len() < 4 * STAGE
        );
    }

    #[test]
    fn requests_are_not_read_while_replies_wait() {
        let (_ours, mut stream) = pair();
        let reply = FromAgent::Reply { request: 1, result: Ok(Answer::Data { data: vec![0; 1 << 20], size: 0 }) };
        stream.say(&reply);
        assert!(stream.wants_input());
        stream.say(&reply);
        assert!(!stream.wants_input());
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let (ours, mut stream) = pair();
            std::io::Write::write_all(&mut &ours, &bytes).unwrap();
            let _ = stream.receive();
            while let Ok(Some(_)) = stream.take() {}
        }

        #[test]
        fn frames_may_come_in_any_pieces(cuts in proptest::collection::vec(0_usize..200, 0..6)) {
            let (ours, mut stream) = pair();
            let call = ToAgent::Call { request: 3, call: Call::Stat { path: "/mnt/data".to_owned() } };
            let bytes = [frame::encode(&call).unwrap(), frame::encode(&call).unwrap()].concat();
            let mut cuts: Vec<_> = cuts.into_iter().map(|cut| cut % bytes.len()).collect();
            cuts.extend([0, bytes.len()]);
            cuts.sort_unstable();
            let mut got = 0;
            for piece in cuts.windows(2) {
                std::io::Write::write_all(&mut &ours, &bytes[piece[0]..piece[1]]).unwrap();
                let _ = stream.receive();
                while let Ok(Some(message)) = stream.take() {
                    prop_assert_eq!(&message, &call);
                    got += 1;
                }
            }
            prop_assert_eq!(got, 2);
        }
    }
}
