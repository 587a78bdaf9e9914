//! A terminal of the session: its name, the end of its output, and the pace at which its program is read.
//!
//! ```text
//! program --> pty --read while there is room--> ring --> streams that watch it, each at its own pace
//! ```
//!
//! The quickest of those who watch sets the pace: while it reads on, the program waits for it and no byte is lost to it. One that has not
//! made room for [`PATIENCE`] is waited for no more, until it has caught up: then the program runs on, and bytes that the ring let go
//! are missed. Where nobody watches, nobody is waited for.

use std::time::{Duration, Instant, SystemTime};

use sandpool_wire::agent::{ExecKey, Finished, FromAgent, Outcome, Refusal};
use sandpool_wire::frame;
use sandpool_wire::terminal::{self, Attach, MAX_ARGV, MAX_NAME, Make, News, SCROLLBACK, Size};

use crate::ring::Ring;

/// Bytes that the quickest who watches may be behind, before its program waits.
const WINDOW: u64 = 256 * 1024;

/// How long a program waits for whoever watches.
const PATIENCE: Duration = Duration::from_secs(1);

/// Bytes of output in one message, at most.
const PIECE: usize = 32 * 1024;

/// A size where nobody says one.
const USUAL: Size = Size { rows: 24, columns: 80 };

/// A terminal, also after its program has ended.
#[derive(Debug)]
pub struct Terminal {
    /// What is said of it.
    pub seen: terminal::Terminal,
    /// How it ended.
    pub finished: Option<Finished>,
    /// It was hung up: nobody finds it any more, and it is forgotten when it has ended.
    pub is_leaving: bool,
    ring: Ring,
    pace: Pace,
}

/// Whether its program is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Pace {
    /// It is.
    Reads,
    /// It waits for whoever watches, since then.
    Waits(Instant),
    /// It has waited for long enough.
    Runs,
}

/// How far a stream has come with a terminal.
#[derive(Debug, PartialEq, Eq)]
pub struct Watch {
    /// Which.
    pub exec: ExecKey,
    /// The next byte for it.
    pub offset: u64,
    /// It has heard of the end.
    pub is_over: bool,
}

impl Terminal {
    /// One that has begun.
    #[must_use]
    pub fn new(name: String, make: &Make, size: Option<Size>) -> Self {
        let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let seen = terminal::Terminal {
            name,
            exec: make.exec,
            argv: make.argv.clone(),
            size: size.unwrap_or(USUAL),
            started_ms: u64::try_from(since.as_millis()).unwrap_or(u64::MAX),
            outcome: None,
            attached: 0,
        };
        Self { seen, finished: None, is_leaving: false, ring: Ring::new(SCROLLBACK), pace: Pace::Reads }
    }

    /// Its program wrote this.
    pub fn output(&mut self, bytes: &[u8]) {
        self.ring.add(bytes);
    }

    /// Its program has ended.
    pub fn finish(&mut self, outcome: Outcome, duration: Duration) {
        let duration_us = u64::try_from(duration.as_micros()).unwrap_or(u64::MAX);
        self.seen.outcome = Some(outcome.clone());
        self.finished = Some(Finished { outcome, duration_us, dropped: (0, 0), state_lost: false });
    }

    /// Where somebody goes on who has bytes up to `after`, and how many between are gone. Who claims to have more than there are has
    /// those of another terminal.
    #[must_use]
    pub fn place(&self, after: u64) -> (u64, u64) {
        let after = if after > self.ring.end() { 0 } else { after };
        let offset = after.max(self.ring.first());
        (offset, offset - after)
    }

    /// Looks how far those have come who watch it.
    pub fn look(&mut self, quickest: Option<u64>, now: Instant) {
        let has_room = quickest.is_none_or(|at| self.ring.end().saturating_sub(at) < WINDOW);
        self.pace = match self.pace {
            _ if has_room => Pace::Reads,
            Pace::Reads => Pace::Waits(now),
            Pace::Waits(since) if since + PATIENCE <= now => Pace::Runs,
            same => same,
        };
    }

    /// Whether more of its output should be read.
    #[must_use]
    pub fn has_room(&self) -> bool {
        !matches!(self.pace, Pace::Waits(_))
    }

    /// When to look again.
    #[must_use]
    pub fn wakes(&self) -> Option<Instant> {
        if let Pace::Waits(since) = self.pace { Some(since + PATIENCE) } else { None }
    }

    /// Adds to `stage` what is next for somebody who watches, about `most` bytes.
    pub fn tell(&self, watch: &mut Watch, most: usize, stage: &mut Vec<u8>) {
        let enough = stage.len() + most;
        watch.offset = watch.offset.max(self.ring.first());
        while watch.offset < self.ring.end() && stage.len() < enough {
            let data = self.ring.from(watch.offset, PIECE);
            let next = watch.offset + data.len() as u64;
            say(watch.exec, News::Output { offset: watch.offset, data }, stage);
            watch.offset = next;
        }
        if let Some(finished) = &self.finished
            && watch.offset >= self.ring.end()
            && !watch.is_over
        {
            watch.is_over = true;
            say(watch.exec, News::Ended(finished.clone()), stage);
        }
    }

    /// Whether somebody who watches has something to hear.
    #[must_use]
    pub fn awaits(&self, watch: &Watch) -> bool {
        watch.offset < self.ring.end() || (self.finished.is_some() && !watch.is_over)
    }
}

fn say(exec: ExecKey, news: News, stage: &mut Vec<u8>) {
    // Both kinds are bounded far below the largest frame.
    if let Ok(bytes) = frame::encode(&FromAgent::Terminal { exec, news }) {
        stage.extend_from_slice(&bytes);
    }
}

/// Whether this can be asked for.
///
/// # Errors
/// `Invalid`, and why.
pub fn check(attach: &Attach) -> Result<(), Refusal> {
    let invalid = |why: &str| Err(Refusal::Invalid(why.to_owned()));
    if attach.name.is_empty() || attach.name.len() > MAX_NAME {
        return invalid("a terminal's name has 1 to 64 bytes");
    }
    if attach.size.is_some_and(|size| size.rows == 0 || size.columns == 0) {
        return invalid("a terminal has at least one row and one column");
    }
    let Some(Make { argv, term, .. }) = &attach.make else { return Ok(()) };
    if !terminal::is_term(term) {
        return invalid("TERM has 1 to 64 letters, digits and +._-");
    }
    if argv.first().is_some_and(String::is_empty) || argv.iter().any(|word| word.contains('\0')) {
        return invalid("no program is named, or an argument has a NUL");
    }
    if argv.iter().map(|word| word.len() + 1).sum::<usize>() > MAX_ARGV {
        return invalid("the terminal's command is too long");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn terminal() -> Terminal {
        let make = Make { exec: [1; 16], argv: Vec::new(), term: "xterm".to_owned() };
        Terminal::new("main".to_owned(), &make, None)
    }

    fn watch(offset: u64) -> Watch {
        Watch { exec: [1; 16], offset, is_over: false }
    }

    /// What somebody hears who reads all there is.
    fn told(terminal: &Terminal, watch: &mut Watch) -> Vec<News> {
        let mut stage = Vec::new();
        while terminal.awaits(watch) {
            terminal.tell(watch, 1000, &mut stage);
        }
        let (mut rest, mut all) = (&stage[..], Vec::new());
        while let Some((FromAgent::Terminal { news, .. }, used)) = frame::take(rest).unwrap() {
            all.push(news);
            rest = &rest[used..];
        }
        all
    }

    #[test]
    fn whoever_comes_back_goes_on_where_they_were() {
        let mut terminal = terminal();
        let mut watch = watch(0);
        terminal.output(b"one");
        assert_eq!(told(&terminal, &mut watch), [News::Output { offset: 0, data: b"one".to_vec() }]);
        terminal.output(b"two");
        assert_eq!(terminal.place(3), (3, 0));
        assert_eq!(told(&terminal, &mut watch), [News::Output { offset: 3, data: b"two".to_vec() }]);
        assert_eq!((terminal.place(6), terminal.place(7)), ((6, 0), (0, 0)), "nobody can have the seventh");
        terminal.output(&vec![b'x'; SCROLLBACK]);
        assert_eq!(terminal.place(4), (6, 2));
        terminal.finish(Outcome::Exited(3), Duration::ZERO);
        assert!(matches!(told(&terminal, &mut watch)[..], [News::Output { offset: 6, .. }, .., News::Ended(_)]));
        assert_eq!(told(&terminal, &mut watch), [], "the end is said once");
    }

    #[test]
    fn who_was_overtaken_sees_by_the_offset_what_is_missing() {
        let mut terminal = terminal();
        let mut watch = watch(0);
        terminal.output(&vec![b'a'; SCROLLBACK]);
        terminal.output(b"the end");
        let news = told(&terminal, &mut watch);
        assert!(matches!(&news[0], News::Output { offset: 7, data } if data.len() == PIECE));
        let bytes: usize =
            news.iter().map(|news| if let News::Output { data, .. } = news { data.len() } else { 0 }).sum();
        assert_eq!(bytes, SCROLLBACK);
    }

    #[test]
    fn a_program_waits_for_the_quickest_and_not_for_ever() {
        let (mut terminal, mut now) = (terminal(), Instant::now());
        terminal.output(&vec![0; 300 * 1024]);
        terminal.look(None, now);
        assert!(terminal.has_room(), "nobody watches");
        terminal.look(Some(0), now);
        assert_eq!((terminal.has_room(), terminal.wakes()), (false, Some(now + PATIENCE)));
        now += PATIENCE / 2;
        terminal.look(Some(100 * 1024), now);
        assert!(terminal.has_room(), "it reads");
        terminal.output(&vec![0; 300 * 1024]);
        terminal.look(Some(100 * 1024), now);
        now += PATIENCE;
        terminal.look(Some(110 * 1024), now);
        assert_eq!((terminal.has_room(), terminal.wakes()), (true, None), "too slow to be waited for");
        terminal.output(&vec![0; 300 * 1024]);
        terminal.look(Some(110 * 1024), now);
        assert!(terminal.has_room(), "and still is");
        terminal.look(Some(900 * 1024), now);
        terminal.output(&vec![0; 300 * 1024]);
        terminal.look(Some(900 * 1024), now);
        assert!(!terminal.has_room(), "it had caught up");
    }

    #[test]
    fn what_cannot_be_made_is_refused() {
        let make = |argv: &[&str], term: &str| {
            let argv = argv.iter().map(|word| (*word).to_owned()).collect();
            let make = Some(Make { exec: [0; 16], argv, term: term.to_owned() });
            check(&Attach { name: "a".to_owned(), only: None, size: None, make, after: 0 })
        };
        assert_eq!((make(&[], "xterm"), make(&["vi", ""], "xterm")), (Ok(()), Ok(())));
        for (argv, term) in
            [(&[""][..], "x"), (&["a\0"], "x"), (&["a"], ""), (&["a"], "a b"), (&[&"x".repeat(MAX_ARGV)], "x")]
        {
            assert!(matches!(make(argv, term), Err(Refusal::Invalid(_))), "{term}");
        }
    }
}
