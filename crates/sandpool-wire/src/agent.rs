//! The agent's protocol: what the service layer and the program inside a sandbox say to each other.
//!
//! ```text
//! service layer  --ToAgent-->    agent      over one byte stream, in frames (see crate::frame)
//!                <--FromAgent--             many streams may be open to one agent at a time
//! ```
//!
//! On every new stream the agent first says [`FromAgent::Hello`]; it says [`FromAgent::Ready`] once the
//! interpreter is warm (at once, if it is already). Each request carries a number chosen by the caller and is
//! answered by exactly one [`FromAgent::Reply`] with the same number. Executions outlive streams: their events
//! are kept by the agent (bounded) and can be read again with [`Call::Attach`].

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::terminal;

/// The version of this protocol. Both sides must agree exactly; the agent travels inside the server's binary.
pub const PROTOCOL: u32 = 5;

/// The largest piece of a file in one message, in bytes.
pub const MAX_CHUNK: usize = 1024 * 1024;

/// The largest code or command of one execution, in bytes.
pub const MAX_CODE: usize = 3 * 1024 * 1024;

/// The executions whose events an agent keeps for reading again; the oldest finished ones go first.
pub const KEPT_EXECUTIONS: usize = 64;

/// Before what a program said last, in the reason for its end.
pub const LAST_WORDS_ARE: &str = "; its last words: ";

/// A reason without what a program said: for logs, in which nobody wants to find that.
#[must_use]
pub fn without_words(reason: &str) -> &str {
    reason.split(LAST_WORDS_ARE).next().unwrap_or_default()
}

/// What answers code in a sandbox.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Runtime {
    /// Python, through IPython's `InteractiveShell`.
    Python,
    /// Node, through its own REPL evaluation.
    Node,
    /// Shell commands only; no interpreter is kept.
    Shell,
    /// A program of the image, which listens at a port. Commands too, where the image has what runs them.
    Container,
}

impl Runtime {
    /// The word for it in settings, arguments and paths.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Python => "python",
            Self::Node => "node",
            Self::Shell => "shell",
            Self::Container => "container",
        }
    }

    /// The runtime that `word` names.
    #[must_use]
    pub fn from_word(word: &str) -> Option<Self> {
        [Self::Python, Self::Node, Self::Shell, Self::Container].into_iter().find(|runtime| runtime.word() == word)
    }
}

/// An execution's number inside one sandbox: 128 bits, chosen by the service layer, unique in the sandbox.
pub type ExecKey = [u8; 16];

/// Said to the agent.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum ToAgent {
    /// Asks for something; answered by one [`FromAgent::Reply`] with the same `request`.
    Call {
        /// The caller's number for this request on this stream.
        request: u32,
        /// What is asked.
        call: Call,
    },
    /// Input for a running execution's standard input or terminal. Not answered.
    Input {
        /// The execution.
        exec: ExecKey,
        /// The bytes, at most [`MAX_CHUNK`]. Empty means end of input.
        #[serde(with = "serde_bytes")]
        data: Vec<u8>,
    },
    /// The terminal of an execution has a new size. Not answered.
    Resize {
        /// The execution.
        exec: ExecKey,
        /// Rows of text.
        rows: u16,
        /// Columns of text.
        columns: u16,
    },
    /// A signal for the program in the foreground of a terminal. Not answered.
    Signal {
        /// The terminal's execution.
        exec: ExecKey,
        /// Which.
        signal: terminal::Signal,
    },
}

/// What can be asked of the agent.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Call {
    /// Starts the program that a sandbox of a container is for; the agent is ready when it listens. The same again changes nothing.
    /// Reply: [`Answer::Done`].
    Begin(Box<Main>),
    /// What that program has written, from this byte on. Reply: [`Answer::Logs`].
    Logs {
        /// Counted from its beginning.
        offset: u64,
        /// At most this many bytes, and at most [`MAX_CHUNK`].
        length: u32,
    },
    /// Sends what a sandbox gets when a session takes it. Done once, before any other call but `Ping`; a second
    /// time is [`Refusal::Invalid`]. Reply: [`Answer::Done`].
    Activate(Activation),
    /// Starts an execution. Reply: [`Answer::Done`] as soon as it is accepted, or [`Refusal::Busy`]. Its events
    /// follow on this stream, as if attached with `after_seq` 0.
    Execute(Execute),
    /// Ends an execution: see [`Stop`]. Reply: [`Answer::Done`]; `Finished` follows as an event.
    Stop {
        /// The execution.
        exec: ExecKey,
        /// How hard.
        how: Stop,
    },
    /// Follows the events of an execution on this stream, from those after `after_seq` on (0: all).
    /// Reply: [`Answer::Done`], or [`Refusal::NotFound`].
    Attach {
        /// The execution.
        exec: ExecKey,
        /// The last event the caller has seen, or 0.
        after_seq: u64,
    },
    /// The executions the agent still knows. Reply: [`Answer::Executions`].
    Executions,
    /// One file's or directory's record. Reply: [`Answer::Entry`].
    Stat {
        /// See [`FilePath`].
        path: FilePath,
    },
    /// A directory's entries, sorted by path, at most `limit` of those after `after`. Reply: [`Answer::Entries`].
    List {
        /// The directory.
        path: FilePath,
        /// Also what is in directories below.
        recursive: bool,
        /// Continue after this path (as in [`Entry::path`]).
        after: Option<String>,
        /// At most this many entries; the agent gives at most 1,000.
        limit: u32,
    },
    /// Bytes of a regular file. Reply: [`Answer::Data`].
    Read {
        /// The file.
        path: FilePath,
        /// First byte.
        offset: u64,
        /// At most this many bytes, and at most [`MAX_CHUNK`].
        length: u32,
    },
    /// Starts an upload: data goes to a hidden temporary file beside the target until `WriteCommit`.
    /// Parent directories are made. Reply: [`Answer::Upload`] with a handle that belongs to this stream.
    WriteOpen {
        /// The file to write.
        path: FilePath,
    },
    /// Appends to an open upload. Reply: [`Answer::Done`].
    Write {
        /// From [`Answer::Upload`].
        upload: u32,
        /// At most [`MAX_CHUNK`] bytes.
        #[serde(with = "serde_bytes")]
        data: Vec<u8>,
    },
    /// Puts an upload in place, replacing what was there. Reply: [`Answer::Entry`].
    WriteCommit {
        /// From [`Answer::Upload`].
        upload: u32,
    },
    /// Forgets an upload. (Also happens when its stream closes.) Reply: [`Answer::Done`].
    WriteAbort {
        /// From [`Answer::Upload`].
        upload: u32,
    },
    /// Removes a file, or a directory with all in it. Reply: [`Answer::Done`].
    Remove {
        /// The file or directory.
        path: FilePath,
    },
    /// What a container's identity endpoint gives out from now on. Reply: [`Answer::Done`].
    Identify(Vec<IdentityToken>),
    /// Is anyone there? Reply: [`Answer::Done`].
    Ping,
    /// Follows a terminal on this stream, and makes it where it is not there. Reply: [`Answer::Attached`], or [`Refusal::NotFound`],
    /// or [`Refusal::Full`]. Its news follow.
    Terminal(terminal::Attach),
    /// The terminals the agent knows, oldest first. Reply: [`Answer::Terminals`].
    Terminals,
    /// Hangs a terminal up: SIGHUP to its program and to the one in its foreground; SIGKILL to all that it started after 2 s, and once its
    /// program has ended. Nobody finds it from now on. Reply: [`Answer::Done`], or [`Refusal::NotFound`].
    HangUp {
        /// Its name.
        name: String,
    },
    /// Begins to read these directories, with all in them, as one tree ([`crate::tree`]), in place of what this stream read before. Those
    /// that are not there are left out. Reply: [`Answer::Done`].
    Pack {
        /// At most 8.
        roots: Vec<FilePath>,
    },
    /// The next bytes of what `Pack` began. Reply: [`Answer::Packed`].
    PackNext,
    /// Begins to put a tree into these directories, in place of what this stream wrote before; what is there stays, but for what has the
    /// name of something else. Reply: [`Answer::Done`].
    Unpack {
        /// As many as there were.
        roots: Vec<FilePath>,
    },
    /// The next bytes of a tree. Reply: [`Answer::Done`], or a refusal: then what was unpacked until then stays, and no more comes.
    UnpackNext {
        /// At most [`MAX_CHUNK`].
        #[serde(with = "serde_bytes")]
        data: Vec<u8>,
    },
    /// It was all. Reply: [`Answer::Done`] when it was whole, and all of it is there.
    UnpackEnd,
    /// The variables that the session was given. Reply: [`Answer::Given`].
    Given,
}

/// The program that a sandbox of a container is for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Main {
    /// At least one; the first is looked up in PATH.
    pub argv: Vec<String>,
    /// Its variables, over the sandbox's own.
    pub env: Vec<(String, String)>,
    /// Where it starts; empty for the root.
    pub directory: String,
    /// Whom it runs as, as images say it; empty for root, who has no capability.
    pub user: String,
    /// Where it listens.
    pub port: u16,
    /// Its sandbox has an identity endpoint, at [`IDENTITY_PORT`].
    pub has_identity: bool,
    /// Decides when it has started, instead of its port.
    pub startup: Option<Probe>,
    /// Decides whether it is alive, from its start on.
    pub liveness: Option<Probe>,
    /// Decides whether it takes requests, from its start on.
    pub readiness: Option<Probe>,
}

/// Where a sandbox's identity endpoint listens: the port of the service whose protocol it speaks.
pub const IDENTITY_PORT: u16 = 42356;

/// A token for one audience.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct IdentityToken {
    /// Whom it is for.
    pub audience: String,
    /// The token itself.
    pub token: String,
    /// When it expires, in seconds since 1970.
    pub expires_at: u64,
    /// Whose it is.
    pub client_id: String,
}

/// Never the token.
impl std::fmt::Debug for IdentityToken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("IdentityToken").field("audience", &self.audience).finish_non_exhaustive()
    }
}

impl Main {
    /// How long its start may take at most, with all attempts that its probes have; less than a minute without any.
    #[must_use]
    pub fn patience(&self) -> Duration {
        let own = self.startup.as_ref().map_or(START, |probe| probe.patience().max(START));
        own + self.readiness.as_ref().map_or(Duration::ZERO, |probe| probe.patience().max(START))
    }
}

/// How long a program has until it takes connections, where no probe says more.
pub const START: Duration = Duration::from_secs(50);

/// How a container is asked again and again how it is: the fields, and what they mean, are those of Kubernetes ("Probe v1 core").
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Probe {
    /// What is asked.
    pub check: Check,
    /// Seconds from when it begins to the first attempt.
    pub initial_delay_s: u16,
    /// Seconds from one attempt to the next, at least 1.
    pub period_s: u16,
    /// Seconds that one attempt may take, at least 1.
    pub timeout_s: u16,
    /// How many attempts must fail in a row, at least 1.
    pub failures: u16,
    /// How many must succeed in a row, at least 1.
    pub successes: u16,
}

impl Probe {
    /// How long it can take until it has failed.
    #[must_use]
    pub fn patience(&self) -> Duration {
        let attempt = u64::from(self.period_s.max(self.timeout_s));
        Duration::from_secs(
            u64::from(self.initial_delay_s) + attempt * u64::from(self.failures.max(self.successes) + 1),
        )
    }
}

/// What a probe asks, on the sandbox's loopback.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Check {
    /// A connection is taken.
    Tcp {
        /// Where.
        port: u16,
    },
    /// `GET` is answered with a status from 200 to 399.
    Http {
        /// Where.
        port: u16,
        /// The path, with its query; begins with `/`.
        path: String,
        /// Headers of the request, over our own.
        headers: Vec<(String, String)>,
    },
}

/// What arrives when a session takes a warm sandbox. A warm sandbox holds none of it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Activation {
    /// Environment variables for every execution from now on, besides the built-in ones.
    pub env: Vec<(String, String)>,
    /// Bytes to reseed generators with (Python's `random`, numpy, Node's `Math.random`).
    pub seed: [u8; 32],
}

/// A path as the agent takes it: absolute and normal (no empty, `.` or `..` component, no NUL).
/// The agent resolves it with the sandbox's own rights.
pub type FilePath = String;

/// One execution to start.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Execute {
    /// Its key. Starting the same key twice is answered `Done` and starts nothing: a retry is harmless.
    pub exec: ExecKey,
    /// What to run.
    pub work: Work,
    /// Wall-clock limit in milliseconds. At its end what the execution started is ended, and
    /// [`Outcome::TimedOut`] reported.
    pub timeout_ms: u64,
    /// Bytes of stdout and stderr together, that are passed on; what is over it is counted and dropped.
    pub output_limit: u64,
}

/// What an execution runs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Work {
    /// Code for the sandbox's interpreter. One at a time: a second one meanwhile is [`Refusal::Busy`].
    Code {
        /// The source text, at most [`MAX_CODE`] bytes.
        code: String,
        /// Run in a fresh, empty namespace that is thrown away afterwards.
        fresh: bool,
    },
    /// A command line for `/bin/bash -lc`, in the working directory.
    Shell {
        /// The command, at most [`MAX_CODE`] bytes (also over the kernel's limit on one argument).
        command: String,
        /// What its standard input reads.
        stdin: Stdin,
    },
    /// A program and its arguments, without a shell.
    Argv {
        /// At least one; the first is looked up in PATH.
        argv: Vec<String>,
        /// What its standard input reads.
        stdin: Stdin,
    },
    /// A program on a new terminal of the sandbox's own; its output comes as stdout events.
    Terminal {
        /// At least one.
        argv: Vec<String>,
        /// Rows of text.
        rows: u16,
        /// Columns of text.
        columns: u16,
        /// The value of TERM.
        term: String,
    },
    /// A program that answers for as long as somebody listens: it reads what [`ToAgent::Input`] brings, and is killed
    /// with all that it started when the stream that started it is closed. It has no time limit, and its output no limit
    /// either: it is passed on and not kept, and the program waits while its listener does not read.
    Service {
        /// At least one; the first is looked up in PATH.
        argv: Vec<String>,
        /// Environment variables of its own, over the session's.
        env: Vec<(String, String)>,
    },
}

/// What an execution's standard input reads.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Stdin {
    /// Nothing: end of input at once.
    Empty,
    /// These bytes, at most [`MAX_CODE`], then end of input.
    Bytes(#[serde(with = "serde_bytes")] Vec<u8>),
    /// What [`ToAgent::Input`] brings, until it brings nothing.
    Stream,
}

/// How to end an execution.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Stop {
    /// SIGINT; if it runs on, SIGTERM after 2 s and SIGKILL after 5 s more (an interpreter is then replaced by a
    /// fresh one, and the outcome says that its state was lost).
    Interrupt,
    /// SIGKILL, at once.
    Kill,
}

/// Said by the agent.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum FromAgent {
    /// The first message on every stream.
    Hello {
        /// [`PROTOCOL`] of the agent.
        protocol: u32,
        /// Made anew each time the agent starts. If it changes, everything inside is gone.
        boot_id: [u8; 16],
        /// What answers code.
        runtime: Runtime,
        /// The interpreter's own version, or the shell's; empty until it is ready.
        version: String,
    },
    /// The interpreter is warm. Said once on every stream, at once or when it becomes true.
    Ready,
    /// The interpreter could not be started. The sandbox is of no use.
    Broken {
        /// Why, for the operator's log. At most 4 KiB.
        reason: String,
        /// A container's program has ended by itself, which may be how its session is meant to end.
        by_itself: bool,
    },
    /// The answer to a call.
    Reply {
        /// The call's number.
        request: u32,
        /// What came of it.
        result: Result<Answer, Refusal>,
    },
    /// Something happened in an execution.
    Event {
        /// The execution.
        exec: ExecKey,
        /// Counts up from 1 in each execution.
        seq: u64,
        /// What happened.
        event: Event,
    },
    /// Something happened on a terminal that this stream follows.
    Terminal {
        /// Its execution.
        exec: ExecKey,
        /// What happened.
        news: terminal::News,
    },
}

/// What a call brought.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Answer {
    /// It was done.
    Done,
    /// One record.
    Entry(Entry),
    /// Records of a directory.
    Entries {
        /// Sorted by path.
        entries: Vec<Entry>,
        /// There are more: list again after the last.
        more: bool,
    },
    /// Bytes of a file. Fewer than asked for means that the file ends there.
    Data {
        /// The bytes.
        #[serde(with = "serde_bytes")]
        data: Vec<u8>,
        /// The file's size, in bytes, when this was read.
        size: u64,
    },
    /// What a container's program has written.
    Logs {
        /// The bytes.
        #[serde(with = "serde_bytes")]
        data: Vec<u8>,
        /// The first byte that is still there.
        first: u64,
        /// How many there were in all.
        end: u64,
    },
    /// An upload was opened.
    Upload(u32),
    /// The executions the agent knows: key, and outcome if finished.
    Executions(Vec<(ExecKey, Option<Outcome>)>),
    /// A terminal is followed.
    Attached(terminal::Attached),
    /// The terminals the agent knows, at most [`terminal::TERMINALS`].
    Terminals(Vec<terminal::Terminal>),
    /// Bytes of a tree.
    Packed {
        /// At most [`MAX_CHUNK`].
        #[serde(with = "serde_bytes")]
        data: Vec<u8>,
        /// It was all.
        is_last: bool,
    },
    /// Names and values.
    Given(Vec<(String, String)>),
}

/// Why a call was not done.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum Refusal {
    /// The interpreter runs something else.
    #[error("the interpreter is busy with another execution")]
    Busy,
    /// No such execution, file or upload.
    #[error("not found")]
    NotFound,
    /// A directory where a file was meant, or the other way round; or neither of the two.
    #[error("not a {0}")]
    WrongKind(String),
    /// The sandbox's own rights do not allow it.
    #[error("permission denied")]
    Denied,
    /// No space is left within the session's disk limit.
    #[error("no space is left in the session")]
    NoSpace,
    /// The request makes no sense here; says why.
    #[error("{0}")]
    Invalid(String),
    /// Anything else; says what.
    #[error("{0}")]
    Failed(String),
    /// So many are there already.
    #[error("there are {0} already")]
    Full(u32),
}

/// A file's or directory's record.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// Relative to the listed directory (the name alone for `Stat`). Bytes that are not UTF-8 are replaced.
    pub path: String,
    /// What it is.
    pub kind: EntryKind,
    /// Apparent size in bytes.
    pub size: u64,
    /// Nanoseconds since 1970.
    pub modified_ns: i64,
}

/// What a directory entry is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum EntryKind {
    /// A regular file.
    File,
    /// A directory.
    Directory,
    /// A symbolic link, device, socket or pipe: listed, never followed.
    Other,
}

/// What happens in an execution, in this order: `Started`, any of the middle ones, `Finished`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Event {
    /// It began to run.
    Started,
    /// Bytes it wrote to standard output, as it wrote them: not always whole characters.
    Stdout(#[serde(with = "serde_bytes")] Vec<u8>),
    /// Bytes it wrote to standard error.
    Stderr(#[serde(with = "serde_bytes")] Vec<u8>),
    /// Something it displayed on the way (a figure, a table).
    Display(Rich),
    /// The value of its last expression, when it has one.
    Result(Rich),
    /// The exception that ended it. The traceback has also been sent as `Stderr`.
    Error(Raised),
    /// The end. No event follows.
    Finished(Finished),
}

/// A value as the interpreter shows it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rich {
    /// The pretty-printed `repr`.
    pub text: String,
    /// JSON text of the value when it is one of: null (Python's `None`, Node's `null` and `undefined`), a boolean, a
    /// finite number, a string. An integer keeps all its digits. `None` for every other value, NaN and infinities
    /// included.
    pub scalar: Option<String>,
    /// Other forms: media type and bytes (raw bytes, not base64, also for images), such as `image/png`, `text/html`.
    #[serde(with = "forms")]
    pub forms: Vec<(String, Vec<u8>)>,
    /// Forms that were left out because they were too large: media type and size in bytes.
    pub dropped: Vec<(String, u64)>,
}

/// Bytes that are bytes, and not a row of numbers: the same on the wire, at the speed of memory.
mod forms {
    use serde::{Deserialize, Deserializer, Serializer};
    use serde_bytes::{ByteBuf, Bytes};

    pub(super) fn serialize<S: Serializer>(forms: &[(String, Vec<u8>)], to: S) -> Result<S::Ok, S::Error> {
        to.collect_seq(forms.iter().map(|(media, data)| (media, Bytes::new(data))))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<(String, Vec<u8>)>, D::Error> {
        let forms = Vec::<(String, ByteBuf)>::deserialize(from)?;
        Ok(forms.into_iter().map(|(media, data)| (media, data.into_vec())).collect())
    }
}

/// An exception.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Raised {
    /// Its class, such as `ZeroDivisionError`.
    pub name: String,
    /// Its message.
    pub message: String,
    /// Its traceback as plain text (no colour codes).
    pub traceback: String,
}

/// How an execution ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finished {
    /// The verdict.
    pub outcome: Outcome,
    /// Wall-clock time inside the sandbox, in microseconds.
    pub duration_us: u64,
    /// Bytes of stdout and of stderr that were dropped over the output limit.
    pub dropped: (u64, u64),
    /// The interpreter had to be replaced: its variables are gone.
    pub state_lost: bool,
}

/// The verdict over an execution.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Outcome {
    /// Code ran to its end.
    Succeeded,
    /// Code ended with an exception (see [`Event::Error`]).
    Raised,
    /// A command or program ended: its exit code, or 128 + the signal that ended it.
    Exited(i32),
    /// The program could not be started: says why.
    NotStarted(String),
    /// The time limit passed.
    TimedOut,
    /// It was stopped on request.
    Cancelled,
    /// The interpreter went away under it (out of memory, `os._exit`, a crash): says how.
    Died(String),
}
