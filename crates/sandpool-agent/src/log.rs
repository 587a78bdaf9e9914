//! What is kept of one execution: its events, as the frames that streams are sent.
//!
//! Streams copy from the log at their own pace, so a slow reader holds up nobody and costs no memory. The log is
//! bounded by the execution's output limit and by [`RICH_LIMIT`].

use std::time::{Duration, Instant};

use sandpool_wire::agent::{Event, ExecKey, Finished, FromAgent, Outcome, Raised, Rich};
use sandpool_wire::frame;

/// Bytes of displayed things and values that one execution may keep.
pub const RICH_LIMIT: usize = 16 * 1024 * 1024;

/// The largest output limit that is honoured, in bytes.
pub const OUTPUT_LIMIT: u64 = 64 * 1024 * 1024;

/// Bytes of forms in one displayed thing: a frame has to hold them beside the text.
pub const FORMS_LIMIT: usize = 3 * 1024 * 1024;

/// Bytes of the text of one displayed thing.
pub const TEXT_LIMIT: usize = 256 * 1024;

/// Bytes of a message and of a traceback.
const MESSAGE_LIMIT: usize = 64 * 1024;

/// The most bytes in one output event.
const OUTPUT_EVENT: usize = 64 * 1024;

/// Output within this time becomes one event, so that a program that writes byte by byte does not fill the log with
/// frames. The first output after a pause goes out at once.
const GATHER: Duration = Duration::from_millis(5);

/// Bytes of a service's events that wait for its listener; the service waits when there are more.
pub const WINDOW: usize = 256 * 1024;

/// What an event costs beside its bytes.
const OVERHEAD: usize = 64;

/// The log of an execution.
pub fn find(logs: &mut [Log], exec: ExecKey) -> Option<&mut Log> {
    logs.iter_mut().find(|log| log.exec == exec)
}

/// Which of the two output streams.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Channel {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

/// The events of one execution.
#[derive(Debug)]
pub struct Log {
    exec: ExecKey,
    /// Whole frames, one after the other: the event with number n is the n-th, those that were let go counted too.
    frames: Vec<u8>,
    /// Bytes and frames that were let go.
    gone: (usize, u64),
    is_flowing: bool,
    seq: u64,
    gathered: Option<(Channel, Vec<u8>)>,
    last_output: Option<Instant>,
    output_left: u64,
    rich_left: usize,
    dropped: (u64, u64),
    outcome: Option<Outcome>,
}

impl Log {
    /// An empty log, that takes `output_limit` bytes of output.
    #[must_use]
    pub fn new(exec: ExecKey, output_limit: u64) -> Self {
        Self {
            exec,
            frames: Vec::new(),
            gone: (0, 0),
            is_flowing: false,
            seq: 0,
            gathered: None,
            last_output: None,
            output_left: output_limit.min(OUTPUT_LIMIT),
            rich_left: RICH_LIMIT,
            dropped: (0, 0),
            outcome: None,
        }
    }

    /// An empty log of a service: it takes output without end, and keeps it until it was sent.
    #[must_use]
    pub fn flowing(exec: ExecKey) -> Self {
        Self { is_flowing: true, output_left: u64::MAX, ..Self::new(exec, 0) }
    }

    /// Whether more output should be read for it.
    #[must_use]
    pub fn has_room(&self) -> bool {
        !self.is_flowing || self.size() < WINDOW
    }

    /// A service's events before byte `position` were sent, or are for nobody.
    pub fn let_go(&mut self, position: usize) {
        if !self.is_flowing {
            return;
        }
        let mut end = 0;
        while let Some(next) = frame_end(&self.frames[end..]).filter(|next| self.gone.0 + end + next <= position) {
            end += next;
            self.gone.1 += 1;
        }
        self.gone.0 += end;
        if end == self.frames.len() {
            self.frames = Vec::new();
        } else {
            self.frames.drain(..end);
        }
    }

    /// The byte position behind all that it took.
    #[must_use]
    pub fn end(&self) -> usize {
        self.gone.0 + self.size()
    }

    /// The execution.
    #[must_use]
    pub fn exec(&self) -> ExecKey {
        self.exec
    }

    /// How it ended, if it has.
    #[must_use]
    pub fn outcome(&self) -> Option<&Outcome> {
        self.outcome.as_ref()
    }

    /// Bytes that the log holds.
    #[must_use]
    pub fn size(&self) -> usize {
        self.frames.len() + self.gathered.as_ref().map_or(0, |(_, bytes)| bytes.len())
    }

    /// Whole frames from byte `position` on: at least one if there is one, and not many more than `limit` bytes.
    #[must_use]
    pub fn read(&self, position: usize, limit: usize) -> &[u8] {
        let rest = position.checked_sub(self.gone.0).and_then(|at| self.frames.get(at..)).unwrap_or_default();
        let mut end = 0;
        while let Some(next) = frame_end(&rest[end..]) {
            if end > 0 && end + next > limit {
                break;
            }
            end += next;
        }
        &rest[..end]
    }

    /// The byte position behind the event with number `seq` (0: the start; past the last: the end).
    #[must_use]
    pub fn position_after(&self, seq: u64) -> usize {
        let mut position = 0;
        for _ in self.gone.1..seq {
            match frame_end(&self.frames[position..]) {
                Some(next) => position += next,
                None => break,
            }
        }
        self.gone.0 + position
    }

    /// It began.
    pub fn started(&mut self) {
        self.push(Event::Started);
    }

    /// It wrote `bytes`. What is over the limit is counted and dropped.
    pub fn output(&mut self, channel: Channel, bytes: &[u8], now: Instant) {
        if self.outcome.is_some() || bytes.is_empty() {
            return;
        }
        let kept = usize::try_from(self.output_left).map_or(bytes.len(), |left| left.min(bytes.len()));
        let (bytes, over) = bytes.split_at(kept);
        if !self.is_flowing {
            self.output_left -= kept as u64;
        }
        let dropped = match channel {
            Channel::Stdout => &mut self.dropped.0,
            Channel::Stderr => &mut self.dropped.1,
        };
        *dropped = dropped.saturating_add(over.len() as u64);
        for piece in bytes.chunks(OUTPUT_EVENT) {
            match &mut self.gathered {
                Some((same, gathered)) if *same == channel && gathered.len() + piece.len() <= OUTPUT_EVENT => {
                    gathered.extend_from_slice(piece);
                }
                _ => {
                    self.seal();
                    self.gathered = Some((channel, piece.to_vec()));
                }
            }
        }
        if self.last_output.is_none_or(|last| now.duration_since(last) >= GATHER) {
            self.last_output = Some(now);
            self.seal();
        }
    }

    /// When gathered output should be passed on with [`Log::pass_on`].
    #[must_use]
    pub fn due(&self) -> Option<Instant> {
        self.gathered.as_ref().and(self.last_output).map(|last| last + GATHER)
    }

    /// Makes an event of gathered output, if it is time.
    pub fn pass_on(&mut self, now: Instant) {
        if self.due().is_some_and(|due| due <= now) {
            self.last_output = Some(now);
            self.seal();
        }
    }

    /// It displayed something.
    pub fn display(&mut self, rich: Rich) {
        if let Some(rich) = self.afford(rich) {
            self.push(Event::Display(rich));
        }
    }

    /// Its last expression has a value.
    pub fn result(&mut self, rich: Rich) {
        // The value is worth more than what was displayed before it: it is kept, cut, also when nothing is left.
        let rich = bounded(rich, TEXT_LIMIT, FORMS_LIMIT.min(self.rich_left));
        self.rich_left = self.rich_left.saturating_sub(cost(&rich));
        self.push(Event::Result(rich));
    }

    /// An exception ended it.
    pub fn error(&mut self, mut raised: Raised) {
        cut(&mut raised.name, 256);
        cut(&mut raised.message, MESSAGE_LIMIT);
        cut(&mut raised.traceback, TEXT_LIMIT);
        self.push(Event::Error(raised));
    }

    /// It ended. Nothing is taken after this.
    pub fn finish(&mut self, outcome: Outcome, duration: Duration, state_lost: bool) {
        let finished = Finished {
            outcome: outcome.clone(),
            duration_us: u64::try_from(duration.as_micros()).unwrap_or(u64::MAX),
            dropped: self.dropped,
            state_lost,
        };
        self.push(Event::Finished(finished));
        self.outcome = Some(outcome);
        self.frames.shrink_to_fit();
    }

    fn afford(&mut self, rich: Rich) -> Option<Rich> {
        if self.rich_left == 0 {
            return None;
        }
        let rich = bounded(rich, TEXT_LIMIT, FORMS_LIMIT);
        match self.rich_left.checked_sub(cost(&rich)) {
            Some(left) => {
                self.rich_left = left;
                Some(rich)
            }
            None => {
                // Said once; what comes after it is left out.
                self.rich_left = 0;
                let text = format!("[more was displayed, and left out: over the limit of {RICH_LIMIT} bytes]");
                Some(Rich { text, ..bounded(rich, 0, 0) })
            }
        }
    }

    fn seal(&mut self) {
        if let Some((channel, bytes)) = self.gathered.take() {
            self.push_frame(match channel {
                Channel::Stdout => Event::Stdout(bytes),
                Channel::Stderr => Event::Stderr(bytes),
            });
        }
    }

    fn push(&mut self, event: Event) {
        self.seal();
        self.push_frame(event);
    }

    fn push_frame(&mut self, event: Event) {
        if self.outcome.is_some() {
            return;
        }
        let message = FromAgent::Event { exec: self.exec, seq: self.seq + 1, event };
        // Every event was bounded far below the largest frame.
        if let Ok(bytes) = frame::encode(&message) {
            self.seq += 1;
            self.frames.extend_from_slice(&bytes);
        }
    }
}

fn frame_end(bytes: &[u8]) -> Option<usize> {
    let header = bytes.first_chunk::<{ frame::HEADER }>()?;
    frame::body_length(*header).ok().map(|length| frame::HEADER + length)
}

fn cost(rich: &Rich) -> usize {
    let forms: usize = rich.forms.iter().map(|(kind, bytes)| kind.len() + bytes.len()).sum();
    OVERHEAD + rich.text.len() + rich.scalar.as_ref().map_or(0, String::len) + forms
}

/// `rich` within limits: its text and scalar cut or left out, its forms moved to `dropped` from the first that does
/// not fit.
fn bounded(mut rich: Rich, text: usize, forms: usize) -> Rich {
    cut(&mut rich.text, text);
    if rich.scalar.as_ref().is_some_and(|scalar| scalar.len() > text) {
        rich.scalar = None;
    }
    let mut left = forms;
    let mut kept = Vec::new();
    for (mut kind, bytes) in rich.forms {
        cut(&mut kind, 128);
        match left.checked_sub(bytes.len()) {
            Some(rest) => {
                left = rest;
                kept.push((kind, bytes));
            }
            None => rich.dropped.push((kind, bytes.len() as u64)),
        }
    }
    kept.truncate(32);
    rich.forms = kept;
    rich.dropped.truncate(32);
    for (kind, _) in &mut rich.dropped {
        cut(kind, 128);
    }
    rich
}

/// Cuts `text` to at most `limit` bytes and an ellipsis, at a character's boundary.
fn cut(text: &mut String, limit: usize) {
    if text.len() > limit {
        let mut end = limit;
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        text.truncate(end);
        text.push('…');
    }
}

#[cfg(test)]
mod tests;
