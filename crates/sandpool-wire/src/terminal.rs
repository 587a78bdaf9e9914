//! Terminals of a session: each has a name, a program, and the end of what was written to it.
//!
//! ```text
//! Attach(name) --> found, or made: Attached { offset, missed }
//!                  then on the same stream: Output, Output, ... Ended
//! ```
//!
//! The agent keeps the last [`SCROLLBACK`] bytes of each terminal, counted from its beginning, so that whoever comes back says how far
//! it had come. A terminal belongs to the session and to no stream: it outlives those who look at it, and the server.

use serde::{Deserialize, Serialize};

use crate::agent::{ExecKey, Finished, Outcome};

/// Bytes of output that an agent keeps of each terminal: the last ones.
pub const SCROLLBACK: usize = 1 << 20;

/// Terminals of one session that an agent knows, at most; the oldest that has ended makes room for a new one.
pub const TERMINALS: usize = 16;

/// Bytes of a terminal's name, at most.
pub const MAX_NAME: usize = 64;

/// Bytes of a terminal's program and its arguments, at most.
pub const MAX_ARGV: usize = 64 * 1024;

/// Whether this can be the value of TERM: 1 to 64 letters, digits and `+`, `.`, `_`, `-`.
#[must_use]
pub fn is_term(term: &str) -> bool {
    let fits = term.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"+._-".contains(&byte));
    fits && (1..=64).contains(&term.len())
}

/// Rows and columns of text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Size {
    /// Rows.
    pub rows: u16,
    /// Columns.
    pub columns: u16,
}

/// Asks for a terminal's output, and for the terminal itself where it is not there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attach {
    /// Its name: 1 to [`MAX_NAME`] bytes.
    pub name: String,
    /// Only this one, whatever has the name now.
    pub only: Option<ExecKey>,
    /// The terminal's new size.
    pub size: Option<Size>,
    /// What to make where none of this name runs. Without it one that has ended, and is still known, is found too.
    pub make: Option<Make>,
    /// Bytes of its output that the caller has.
    pub after: u64,
}

/// A terminal to make.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Make {
    /// The key of what runs on it.
    pub exec: ExecKey,
    /// The program; nothing for the login shell. At most [`MAX_ARGV`] bytes.
    pub argv: Vec<String>,
    /// The value of TERM: see [`is_term`].
    pub term: String,
}

/// What the agent answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attached {
    /// The terminal.
    pub terminal: Terminal,
    /// The first byte that follows.
    pub offset: u64,
    /// Bytes between those that the caller has and that one: they are not kept any more.
    pub missed: u64,
    /// It was made by this call.
    pub is_new: bool,
}

/// A terminal, as it is now.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Terminal {
    /// Its name.
    pub name: String,
    /// What runs on it: another of the same name, later, has another.
    pub exec: ExecKey,
    /// Its program.
    pub argv: Vec<String>,
    /// Its size.
    pub size: Size,
    /// When it was made, in milliseconds since 1970.
    pub started_ms: u64,
    /// How it ended, if it has.
    pub outcome: Option<Outcome>,
    /// Streams that follow it.
    pub attached: u32,
}

/// Something that happened on a terminal.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum News {
    /// Bytes that were written to it. Where `offset` is not the end of those before, what lies between is not kept any more.
    Output {
        /// The first of them, counted from the terminal's beginning.
        offset: u64,
        /// At most [`crate::agent::MAX_CHUNK`].
        #[serde(with = "serde_bytes")]
        data: Vec<u8>,
    },
    /// Its program has ended. Nothing follows.
    Ended(Finished),
}

/// A signal for the program in the foreground of a terminal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Signal {
    /// SIGINT: what Ctrl-C sends.
    Int,
    /// SIGTERM.
    Term,
    /// SIGKILL.
    Kill,
    /// SIGHUP.
    Hup,
    /// SIGQUIT: what Ctrl-\ sends.
    Quit,
    /// SIGTSTP: what Ctrl-Z sends.
    Tstp,
    /// SIGCONT.
    Cont,
    /// SIGUSR1.
    Usr1,
    /// SIGUSR2.
    Usr2,
}

impl Signal {
    /// All of them, by the words that clients use.
    pub const WORDS: [(&'static str, Self); 9] = [
        ("INT", Self::Int),
        ("TERM", Self::Term),
        ("KILL", Self::Kill),
        ("HUP", Self::Hup),
        ("QUIT", Self::Quit),
        ("TSTP", Self::Tstp),
        ("CONT", Self::Cont),
        ("USR1", Self::Usr1),
        ("USR2", Self::Usr2),
    ];

    /// The signal that `word` names.
    #[must_use]
    pub fn from_word(word: &str) -> Option<Self> {
        Self::WORDS.into_iter().find(|(known, _)| *known == word).map(|(_, signal)| signal)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_term_is_a_word() {
        assert!(is_term("xterm-256color") && is_term("screen.xterm+x") && !is_term("") && !is_term("a;b"));
    }

    #[test]
    fn every_signal_has_a_word() {
        assert_eq!(Signal::from_word("INT"), Some(Signal::Int));
        assert_eq!((Signal::from_word("int"), Signal::from_word("STOP")), (None, None));
    }
}
