//! What may be in the body of `POST .../executions`, and what it means.

use std::fmt;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use sandpool_core::ids::ExecutionId;
use sandpool_node::{ExecuteRequest, MAX_CODE, PoolSpec, Stdin, Work};
use serde::de::{SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};

use super::body::too_long;
use crate::problem::Problem;

/// The longest body, in bytes: code of [`MAX_CODE`] bytes fits even if every one of them is escaped.
pub(super) const MAX_BODY: usize = 6 * MAX_CODE + 64 * 1024;

/// The most arguments of a program.
const MAX_ARGUMENTS: usize = 16_384;

/// The longest wait for an answer.
pub(super) const LONGEST_WAIT: Duration = Duration::from_secs(600);

/// How long an answer waits for the end unless asked otherwise.
pub(super) const WAIT: Duration = Duration::from_secs(60);

/// The shortest time-out: what an agent can count.
const SHORTEST: Duration = Duration::from_millis(1);

/// The body, as it is written.
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Asking {
    code: Option<String>,
    command: Option<String>,
    #[serde(deserialize_with = "arguments")]
    argv: Option<Vec<String>>,
    id: Option<String>,
    fresh: Option<bool>,
    stdin: Option<Input>,
    timeout_seconds: Option<f64>,
    terminal: Option<Terminal>,
    wait_seconds: Option<f64>,
    output_limit_bytes: Option<u64>,
}

/// `true`: what `POST .../input` brings. A text: this. Else bytes in base64.
#[derive(Debug, Deserialize)]
#[serde(untagged, expecting = "stdin is true, false, a text or {\"base64\": BYTES}")]
enum Input {
    Streamed(bool),
    Text(String),
    Bytes(Base64),
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Base64 {
    base64: String,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Terminal {
    rows: u16,
    columns: u16,
    #[serde(default = "usual_term")]
    term: String,
}

fn usual_term() -> String {
    "xterm-256color".to_owned()
}

/// A new size of a terminal.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Size {
    pub(super) rows: u16,
    pub(super) columns: u16,
}

impl Size {
    pub(super) fn check(self, prefix: &str) -> Result<Self, Problem> {
        for (name, value) in [("rows", self.rows), ("columns", self.columns)] {
            if value == 0 {
                let name = format!("{prefix}{name}");
                return Err(Problem::invalid(&name, format!("{name} is a number from 1 to 65535.")));
            }
        }
        Ok(self)
    }
}

/// A list that is refused before it is large: every text in it costs more memory than it has bytes.
fn arguments<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Vec<String>>, D::Error> {
    struct Arguments;
    impl<'de> Visitor<'de> for Arguments {
        type Value = Option<Vec<String>>;

        fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
            out.write_str("a list of texts")
        }

        fn visit_unit<E>(self) -> Result<Self::Value, E> {
            Ok(None)
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Self::Value, A::Error> {
            let mut all = Vec::new();
            while let Some(next) = list.next_element()? {
                if all.len() == MAX_ARGUMENTS {
                    return Err(serde::de::Error::custom(format!("more than {MAX_ARGUMENTS} arguments")));
                }
                all.push(next);
            }
            Ok(Some(all))
        }
    }
    deserializer.deserialize_any(Arguments)
}

/// An execution to start, and how long its answer waits for it.
#[derive(Debug)]
pub(super) struct Start {
    pub(super) request: ExecuteRequest,
    pub(super) wait: Duration,
}

impl Asking {
    /// Checks it against the pool's limits.
    pub(super) fn check(self, spec: &PoolSpec) -> Result<Start, Problem> {
        let id = match &self.id {
            Some(id) => Some(ExecutionId::parse(id).ok_or_else(|| Problem::invalid("id", "id is a UUID."))?),
            None => None,
        };
        let timeout = match self.timeout_seconds {
            Some(seconds) => Some(timeout(seconds, spec)?),
            None => None,
        };
        if let Some(bytes) = self.output_limit_bytes.filter(|bytes| *bytes > spec.output_limit) {
            let text = format!("outputLimitBytes is at most {} in this pool, not {bytes}.", spec.output_limit);
            return Err(Problem::invalid("outputLimitBytes", text));
        }
        let output_limit = self.output_limit_bytes;
        let wait = match self.wait_seconds {
            Some(seconds) => seconds_up_to("waitSeconds", seconds, LONGEST_WAIT)?,
            None => WAIT,
        };
        let work = self.work()?;
        Ok(Start { request: ExecuteRequest { id, work, timeout, output_limit }, wait })
    }

    fn work(self) -> Result<Work, Problem> {
        let Self { code, command, argv, fresh, stdin, terminal, .. } = self;
        let asked = [code.is_some(), command.is_some(), argv.is_some()].into_iter().filter(|is| *is).count();
        if asked != 1 {
            let text = "Exactly one of code, command and argv says what to run.";
            return Err(Problem::invalid(if asked == 0 { "code" } else { "command" }, text));
        }
        let not_with = |name: &str, what: &str| Err(Problem::invalid(name, format!("{name} does not go with {what}.")));
        if let Some(code) = code {
            if stdin.is_some() {
                return not_with("stdin", "code");
            }
            if terminal.is_some() {
                return not_with("terminal", "code");
            }
            fits("code", code.len())?;
            return Ok(Work::Code { code, fresh: fresh.unwrap_or(false) });
        }
        if fresh.is_some() {
            return not_with("fresh", "command and argv");
        }
        let argv = match argv {
            Some(argv) => Some(program(argv)?),
            None => None,
        };
        if let Some(command) = &command {
            fits("command", command.len())?;
            no_nul("command", command)?;
        }
        if let Some(Terminal { rows, columns, term }) = terminal {
            if stdin.is_some() {
                return not_with("stdin", "terminal, which brings its own");
            }
            let Size { rows, columns } = Size { rows, columns }.check("terminal.")?;
            no_nul("terminal.term", &term)?;
            if term.is_empty() || term.len() > 128 {
                return Err(Problem::invalid("terminal.term", "terminal.term has 1 to 128 bytes."));
            }
            let in_shell = |command| ["/bin/bash", "-lc"].into_iter().map(str::to_owned).chain([command]).collect();
            let argv = argv.or_else(|| command.map(in_shell)).unwrap_or_default();
            return Ok(Work::Terminal { argv, rows, columns, term });
        }
        let stdin = input(stdin)?;
        let length = match &stdin {
            Stdin::Bytes(bytes) => bytes.len(),
            Stdin::Empty | Stdin::Stream => 0,
        };
        let said: usize = command.iter().chain(argv.iter().flatten()).map(String::len).sum();
        // Both travel in one message.
        fits("stdin", length + said)?;
        Ok(match (command, argv) {
            (Some(command), _) => Work::Shell { command, stdin },
            (None, argv) => Work::Argv { argv: argv.unwrap_or_default(), stdin },
        })
    }
}

fn input(stdin: Option<Input>) -> Result<Stdin, Problem> {
    Ok(match stdin {
        None | Some(Input::Streamed(false)) => Stdin::Empty,
        Some(Input::Streamed(true)) => Stdin::Stream,
        Some(Input::Text(text)) => Stdin::Bytes(text.into_bytes()),
        Some(Input::Bytes(Base64 { base64 })) => {
            let bytes = STANDARD.decode(base64);
            Stdin::Bytes(bytes.map_err(|error| Problem::invalid("stdin", format!("stdin is not base64: {error}.")))?)
        }
    })
}

fn program(argv: Vec<String>) -> Result<Vec<String>, Problem> {
    if argv.first().is_none_or(String::is_empty) {
        return Err(Problem::invalid("argv", "argv begins with the program's name."));
    }
    fits("argv", argv.iter().map(|argument| argument.len() + 1).sum())?;
    for argument in &argv {
        no_nul("argv", argument)?;
    }
    Ok(argv)
}

fn fits(name: &str, length: usize) -> Result<(), Problem> {
    if length > MAX_CODE { Err(too_long(name, u64::try_from(MAX_CODE).unwrap_or(u64::MAX))) } else { Ok(()) }
}

fn no_nul(name: &str, text: &str) -> Result<(), Problem> {
    if text.contains('\0') {
        return Err(Problem::invalid(name, format!("{name} has a NUL in it, which no program can be given.")));
    }
    Ok(())
}

fn timeout(seconds: f64, spec: &PoolSpec) -> Result<Duration, Problem> {
    let timeout = seconds_up_to("timeoutSeconds", seconds, spec.max_timeout)?;
    if timeout < SHORTEST {
        return Err(Problem::invalid("timeoutSeconds", "timeoutSeconds is at least 0.001."));
    }
    Ok(timeout)
}

fn seconds_up_to(name: &str, seconds: f64, most: Duration) -> Result<Duration, Problem> {
    Duration::try_from_secs_f64(seconds).ok().filter(|time| *time <= most).ok_or_else(|| {
        Problem::invalid(name, format!("{name} is a number from 0 to {}, not {seconds}.", most.as_secs_f64()))
    })
}

#[cfg(test)]
mod tests;
