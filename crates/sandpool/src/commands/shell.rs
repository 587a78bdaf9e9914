//! `sandpool shell`: an interactive terminal in a session, which is left and found again.
//!
//! ```text
//! connect --attached--> talk --its program has ended--> its exit code
//!    ^                   |  +-- Ctrl-] d, or our own terminal hangs up: it goes on, and is found again by its name
//!    +-- broken off -----+      (a connection that broke off is made anew for as long as a server may take to start again)
//! ```

use std::collections::VecDeque;
use std::io::IsTerminal;
use std::time::Duration;

use rustix::termios::{OptionalActions, Termios};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_tungstenite::tungstenite::protocol::Message;

use super::Outcome;
use super::run::{end_session, read_stdin};
use crate::args::Shell;
use crate::client::{Client, Context, block_on, random_hex};
use crate::execution::Ended;
use crate::failure::Failure;
use crate::print;
use crate::terminal::{NoTerminal, Said, Terminal, Wanted, resize, typed};

/// The name of a session's terminal where nobody says one.
const USUAL: &str = "main";

/// What begins a command to this program: Ctrl-].
const ESCAPE: u8 = 0x1d;

/// What a terminal takes for the end of input: Ctrl-D.
const END: u8 = 4;

/// How long a broken connection is tried to be made anew.
const PATIENCE: Duration = Duration::from_secs(60);

/// The pauses between two attempts: the first, and the longest.
const PAUSES: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(2));

/// How often whoever reads is told that input has ended: a program that began to read later has not heard.
const END_AGAIN: Duration = Duration::from_secs(1);

/// The terminal in raw mode: keys go to the session as they are typed. Dropping it puts the old mode back.
struct RawMode {
    before: Termios,
}

impl RawMode {
    fn enter() -> Result<Self, Failure> {
        let failure = |error: rustix::io::Errno| Failure::new("cannot set the terminal up").because(error);
        let before = rustix::termios::tcgetattr(std::io::stdin()).map_err(failure)?;
        let mut raw = before.clone();
        raw.make_raw();
        rustix::termios::tcsetattr(std::io::stdin(), OptionalActions::Flush, &raw).map_err(failure)?;
        Ok(Self { before })
    }
}

impl Drop for RawMode {
    fn drop(&mut self) {
        // Nothing can be done about a terminal that has gone away.
        let _ = rustix::termios::tcsetattr(std::io::stdin(), OptionalActions::Flush, &self.before);
    }
}

/// How a conversation ended.
enum Left {
    /// The program on the terminal has ended.
    Ended(Ended),
    /// It goes on without us.
    Detached,
    /// The connection was lost, or could not be made.
    Failed(Failure),
}

pub(crate) fn run(context: &Context, shell: &Shell) -> Outcome {
    let client = Client::new(context)?;
    block_on(async {
        let throw_away = shell.session.is_none();
        let session = match &shell.session {
            Some(session) => session.clone(),
            None => format!("shell-{}", random_hex(8)?),
        };
        let name = match &shell.name {
            Some(name) => name.clone(),
            // A command is not what runs already.
            None if shell.new || !shell.command.is_empty() => format!("{USUAL}-{}", random_hex(4)?),
            None => USUAL.to_owned(),
        };
        let wanted = Wanted {
            pool: shell.pool.clone(),
            session,
            name,
            command: shell.command.clone(),
            term: std::env::var("TERM").ok().filter(|term| is_term(term)).unwrap_or_else(|| "xterm-256color".into()),
            execution: None,
            after: 0,
        };
        let left = Talk::begin(context, &client, wanted.clone()).await;
        let again = format!("sandpool shell -p {} -s {} --name {}", wanted.pool, wanted.session, wanted.name);
        match left? {
            Left::Ended(ended) => {
                if throw_away {
                    // Its token may be older than it is good for.
                    end_session(&Client::new(context).unwrap_or(client), &wanted.pool, &wanted.session).await;
                }
                if let Some(remark) = ended.remark() {
                    print::note(&format!("sandpool: {}", remark.replace("the execution died", "the terminal is gone")));
                }
                Ok(ended.code())
            }
            Left::Detached => {
                print::note(&format!("sandpool: detached; it goes on until its session ends: {again}"));
                Ok(0)
            }
            Left::Failed(failure) => Err(failure.advise(again)),
        }
    })
}

/// Whether a server takes this for TERM.
fn is_term(term: &str) -> bool {
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || b"+._-".contains(&byte);
    (1..=64).contains(&term.len()) && term.bytes().all(fits)
}

/// Rows and columns of our terminal.
fn size() -> (u16, u16) {
    match rustix::termios::tcgetwinsize(std::io::stdout()) {
        Ok(size) if size.ws_row > 0 && size.ws_col > 0 => (size.ws_row, size.ws_col),
        Ok(_) | Err(_) => (24, 80),
    }
}

/// What was typed, without what was meant for this program.
#[derive(Debug, Default)]
struct Keys {
    is_escaped: bool,
}

impl Keys {
    /// What is for the terminal, and whether it is to be left.
    fn take(&mut self, bytes: &[u8]) -> (Vec<u8>, bool) {
        let mut out = Vec::with_capacity(bytes.len());
        for byte in bytes {
            match (std::mem::take(&mut self.is_escaped), *byte) {
                (true, b'd' | b'D') => return (out, true),
                (true, ESCAPE) => out.push(ESCAPE),
                (true, other) => out.extend([ESCAPE, other]),
                (false, ESCAPE) => self.is_escaped = true,
                (false, other) => out.push(other),
            }
        }
        (out, false)
    }
}

/// A conversation with a terminal, over as many connections as it takes.
struct Talk<'a> {
    context: &'a Context,
    wanted: Wanted,
    /// There are keys; else what is read is passed on as it is.
    has_keys: bool,
    keys: Keys,
    typed: mpsc::Receiver<Vec<u8>>,
    resized: tokio::signal::unix::Signal,
    hung_up: tokio::signal::unix::Signal,
    /// Input has ended: when that is said next.
    ends: Option<Instant>,
    /// The last byte that was read.
    last: u8,
    waiting: VecDeque<Message>,
}

impl<'a> Talk<'a> {
    async fn begin(context: &'a Context, client: &Client, wanted: Wanted) -> Result<Left, Failure> {
        let hears = |kind| signal(kind).map_err(|error| Failure::new("cannot hear signals").because(error));
        let (resized, hung_up) = (hears(SignalKind::window_change())?, hears(SignalKind::hangup())?);
        let terminal = Terminal::attach(client, &wanted, size()).await.map_err(NoTerminal::failure)?;
        if !terminal.is_new {
            print::note(&format!("sandpool: this is the terminal {}, which was there", wanted.name));
        }
        let has_keys = std::io::stdin().is_terminal();
        let raw = if has_keys { Some(RawMode::enter()?) } else { None };
        let (keys_out, typed) = mpsc::channel(64);
        read_stdin(keys_out);
        let mut talk = Self {
            context,
            wanted,
            has_keys,
            keys: Keys::default(),
            typed,
            resized,
            hung_up,
            ends: None,
            last: b'\n',
            waiting: VecDeque::new(),
        };
        let left = talk.hold(terminal).await;
        drop(raw);
        left
    }

    /// Talks until it is over, over one connection after the other.
    async fn hold(&mut self, mut terminal: Terminal) -> Result<Left, Failure> {
        loop {
            self.wanted.execution = Some(terminal.execution.clone());
            if terminal.missed > 0 {
                self.tell(&format!("{} bytes of output are missing here", terminal.missed));
            }
            self.wanted.after = terminal.offset;
            if let Some(left) = self.over(&mut terminal).await? {
                terminal.leave().await;
                return Ok(left);
            }
            drop(terminal);
            self.tell("the connection broke off; it is made anew (Ctrl-C gives up)");
            terminal = match self.again().await {
                Ok(terminal) => terminal,
                Err(left) => return Ok(left),
            };
            self.tell("connected again");
        }
    }

    /// Says something beside the terminal's own output.
    fn tell(&self, text: &str) {
        // In raw mode a line does not begin at the left by itself.
        let around = if self.has_keys { "\r\n" } else { "" };
        print::note(&format!("{around}sandpool: {text}{}", if self.has_keys { "\r" } else { "" }));
    }

    /// Talks over one connection; `None` when it broke off.
    async fn over(&mut self, terminal: &mut Terminal) -> Result<Option<Left>, Failure> {
        let mouth = terminal.mouth();
        loop {
            let ends = self.ends;
            tokio::select! {
                said = terminal.next() => match said {
                    Some(Said::Output(bytes)) => {
                        self.wanted.after += bytes.len() as u64;
                        print::bytes(&bytes)?;
                    }
                    Some(Said::Missed(bytes)) => {
                        self.wanted.after += bytes;
                        self.tell(&format!("{bytes} bytes of output are missing here"));
                    }
                    Some(Said::Refused(why)) => self.tell(&why),
                    Some(Said::Ended(ended)) => return Ok(Some(Left::Ended(ended))),
                    None => return Ok(None),
                },
                place = mouth.reserve(), if !self.waiting.is_empty() => match (place, self.waiting.pop_front()) {
                    (Ok(place), Some(message)) => place.send(message),
                    // Nothing is written any more: the reader hears of it too.
                    _ => return Ok(None),
                },
                Some(bytes) = self.typed.recv(), if self.waiting.is_empty() && self.ends.is_none() => {
                    if self.read(&bytes) {
                        self.say_rest(&mouth).await;
                        return Ok(Some(Left::Detached));
                    }
                }
                () = until(ends), if ends.is_some() => {
                    self.waiting.extend(typed(&[END]));
                    self.ends = Some(Instant::now() + END_AGAIN);
                }
                Some(()) = self.resized.recv() => self.waiting.push_back(resize(size())),
                Some(()) = self.hung_up.recv() => return Ok(Some(Left::Detached)),
            }
        }
    }

    /// Says what was typed before the terminal is left.
    async fn say_rest(&mut self, mouth: &mpsc::Sender<Message>) {
        for message in self.waiting.drain(..) {
            // A broken connection takes nothing, and what was typed is lost with it.
            let _ = mouth.send(message).await;
        }
    }

    /// Takes what was read from standard input. Whether the terminal is to be left.
    fn read(&mut self, bytes: &[u8]) -> bool {
        if bytes.is_empty() {
            // Our own terminal hung up, and nobody is there; or all is said, and whoever reads should hear so.
            if !self.has_keys {
                if self.last != b'\n' {
                    // In the middle of a line it only ends the line.
                    self.waiting.extend(typed(&[END]));
                }
                self.ends = Some(Instant::now());
            }
            return self.has_keys;
        }
        self.last = bytes[bytes.len() - 1];
        let (bytes, leaves) = if self.has_keys { self.keys.take(bytes) } else { (bytes.to_vec(), false) };
        self.waiting.extend(typed(&bytes));
        leaves
    }

    /// Makes a connection anew, where the last one broke off.
    async fn again(&mut self) -> Result<Terminal, Left> {
        let (until_then, mut pause) = (Instant::now() + PATIENCE, PAUSES.0);
        // What was on its way is lost with the connection: half a command is worse than none.
        self.waiting.clear();
        loop {
            let (context, wanted) = (self.context, &self.wanted);
            let attempt = async {
                // The server may have another address now, and a token that is good for a while.
                let client = Client::new(context).map_err(NoTerminal::Later)?;
                Terminal::attach(&client, wanted, size()).await
            };
            let why = tokio::select! {
                attached = attempt => match attached {
                    Ok(terminal) => return Ok(terminal),
                    Err(NoTerminal::Never(failure)) => {
                        return Err(Left::Failed(Failure::new("the terminal was lost").because(failure_text(&failure))));
                    }
                    Err(NoTerminal::Later(failure)) => failure,
                },
                left = gives_up(&mut self.typed, self.has_keys) => return Err(left),
                Some(()) = self.hung_up.recv() => return Err(Left::Detached),
            };
            if Instant::now() >= until_then {
                let text = format!("the connection was not made anew in {} s", PATIENCE.as_secs());
                return Err(Left::Failed(Failure::new(text).because(failure_text(&why))));
            }
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                left = gives_up(&mut self.typed, self.has_keys) => return Err(left),
                Some(()) = self.hung_up.recv() => return Err(Left::Detached),
            }
            pause = (pause * 2).min(PAUSES.1);
        }
    }
}

/// A failure's own words.
fn failure_text(failure: &Failure) -> String {
    failure.to_string().trim_start_matches("error: ").lines().next().unwrap_or_default().to_owned()
}

/// Completes when somebody who waits for a connection does not want to any more. Other keys are for nobody. What is read from elsewhere
/// waits.
async fn gives_up(typed: &mut mpsc::Receiver<Vec<u8>>, has_keys: bool) -> Left {
    if !has_keys {
        std::future::pending::<()>().await;
    }
    loop {
        match typed.recv().await {
            Some(bytes) if bytes.is_empty() => return Left::Detached,
            Some(bytes) if bytes.contains(&3) || bytes.contains(&ESCAPE) => {
                return Left::Failed(Failure::new("given up while the connection was being made anew"));
            }
            Some(_) => {}
            None => std::future::pending().await,
        }
    }
}

async fn until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_meant_for_this_program_is_taken_out() {
        let mut keys = Keys::default();
        assert_eq!(keys.take(b"ls\r"), (b"ls\r".to_vec(), false));
        assert_eq!(keys.take(b"a\x1ddb"), (b"a".to_vec(), true));
        // In pieces, twice, and before something else.
        assert_eq!(keys.take(b"\x1d"), (vec![], false));
        assert_eq!(keys.take(b"d"), (vec![], true));
        assert_eq!(keys.take(b"\x1d\x1dx"), (b"\x1dx".to_vec(), false));
        assert_eq!(keys.take(b"\x1dq"), (b"\x1dq".to_vec(), false));
    }
}
