//! The sockets of a VMM: its API, and those of its machine's vsock. Each wait has an end, whatever the VMM does.

use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SendFlags, SocketAddrUnix, SocketFlags, SocketType};
use rustix::process::{Pid, WaitId, WaitIdOptions};
use serde_json::Value;

use super::VSOCK_PORT;
pub use super::http::{Answer, MAX_BODY, MAX_HEAD, NoAnswer, parse};

/// The longest wait for one connection, after which another is tried: a device may lose what came before its driver.
const ATTEMPT: Duration = Duration::from_millis(250);

/// Between two looks at what does not tell when it has changed.
const PAUSE: Duration = Duration::from_millis(2);

/// The longest first line on a connection over vsock.
const LINE: usize = 32;

/// Why a VMM did not do what it was asked for.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// It says no.
    #[error("{what}: it refuses (HTTP {status}): {why}")]
    Refused {
        /// The request.
        what: String,
        /// Its status.
        status: u16,
        /// In its own words, or some of them.
        why: String,
    },
    /// It says nothing.
    #[error("{what}: no whole answer in {limit:?}")]
    Silent {
        /// The request.
        what: String,
        /// How long it had for it.
        limit: Duration,
    },
    /// It says what cannot be understood.
    #[error("{what}: {source}")]
    Garbled {
        /// The request.
        what: String,
        /// What is wrong with it.
        source: NoAnswer,
    },
    /// It is not there any more.
    #[error("{what}: the VMM has closed its socket")]
    Closed {
        /// The request.
        what: String,
    },
    /// Its process has ended.
    #[error("{what}: the VMM has ended")]
    Ended {
        /// The request.
        what: String,
    },
}

impl From<Failure> for io::Error {
    fn from(failure: Failure) -> Self {
        let kind = match failure {
            Failure::Refused { .. } => io::ErrorKind::Other,
            Failure::Silent { .. } => io::ErrorKind::TimedOut,
            Failure::Garbled { .. } => io::ErrorKind::InvalidData,
            Failure::Closed { .. } | Failure::Ended { .. } => io::ErrorKind::BrokenPipe,
        };
        Self::new(kind, failure)
    }
}

/// The API of a VMM that runs.
#[derive(Debug)]
pub struct Api {
    socket: PathBuf,
    pid: u32,
    /// Its machine's port is not open yet.
    pub(super) has_no_port: bool,
}

impl Api {
    /// Waits until the VMM, which is this child, listens at its socket.
    ///
    /// # Errors
    /// When it ends before that, or takes too long.
    pub fn wait(socket: PathBuf, pid: u32, limit: Duration) -> io::Result<Self> {
        let api = Self { socket, pid, has_no_port: false };
        let until = Instant::now() + limit;
        loop {
            match connect(&api.socket) {
                Ok(_) => return Ok(api),
                Err(Errno::NOENT | Errno::CONNREFUSED | Errno::AGAIN) => {}
                Err(error) => return Err(error.into()),
            }
            api.is_alive("its start")?;
            if Instant::now() > until {
                return Err(Failure::Silent { what: "its start".to_owned(), limit }.into());
            }
            std::thread::sleep(PAUSE);
        }
    }

    fn is_alive(&self, what: &str) -> io::Result<()> {
        let pid = i32::try_from(self.pid).ok().and_then(Pid::from_raw).ok_or(io::ErrorKind::InvalidInput)?;
        // Its end is for its keeper to hear of, too.
        let look = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
        match rustix::process::waitid(WaitId::Pid(pid), look)? {
            None => Ok(()),
            Some(_) => Err(Failure::Ended { what: what.to_owned() }.into()),
        }
    }

    /// Makes one request and answers the body of what came of it.
    ///
    /// # Errors
    /// See [`Failure`].
    pub fn ask(&self, method: &str, path: &str, body: Option<&Value>, limit: Duration) -> io::Result<Vec<u8>> {
        let what = format!("{method} {path}");
        let until = Instant::now() + limit;
        let body = body.map(Value::to_string).unwrap_or_default();
        let kind = if body.is_empty() { "" } else { "Content-Type: application/json\r\n" };
        let request = format!(
            "{method} {path} HTTP/1.1\r\nHost: localhost\r\nAccept: application/json\r\n{kind}Content-Length: {}\r\n\r\n{body}",
            body.len()
        );
        let answer = self.exchange(&what, request.as_bytes(), until);
        let answer = answer.map_err(|error| match error.kind() {
            io::ErrorKind::TimedOut => Failure::Silent { what: what.clone(), limit }.into(),
            _ => error,
        })?;
        if (200..300).contains(&answer.status) {
            return Ok(answer.body);
        }
        Err(Failure::Refused { what, status: answer.status, why: reason(&answer.body) }.into())
    }

    fn exchange(&self, what: &str, request: &[u8], until: Instant) -> io::Result<Answer> {
        let closed = || io::Error::from(Failure::Closed { what: what.to_owned() });
        let socket = loop {
            match connect(&self.socket) {
                Ok(socket) => break socket,
                // Others are before us.
                Err(Errno::AGAIN) if Instant::now() < until => std::thread::sleep(PAUSE),
                Err(Errno::AGAIN) => return Err(io::ErrorKind::TimedOut.into()),
                Err(_) => return Err(closed()),
            }
        };
        let mut sent = 0;
        while sent < request.len() {
            wait(&socket, PollFlags::OUT, until)?;
            match rustix::net::send(&socket, &request[sent..], SendFlags::NOSIGNAL) {
                Ok(count) => sent += count,
                Err(Errno::AGAIN | Errno::INTR) => {}
                // It may have answered all the same.
                Err(_) => break,
            }
        }
        let mut bytes = Vec::new();
        let mut piece = [0; 4096];
        loop {
            wait(&socket, PollFlags::IN, until)?;
            match rustix::io::read(&socket, &mut piece) {
                Ok(0) => return Err(closed()),
                Ok(count) => bytes.extend_from_slice(&piece[..count]),
                Err(Errno::AGAIN | Errno::INTR) => continue,
                Err(_) => return Err(closed()),
            }
            let answer = parse(&bytes).map_err(|source| Failure::Garbled { what: what.to_owned(), source })?;
            if let Some(answer) = answer {
                return Ok(answer);
            }
        }
    }

    /// Opens the machine's port, at the socket of its vsock: waits until its first program takes the connection. It does not block.
    ///
    /// Both VMMs have it from the same source: `CONNECT <port>\n`, answered by `OK <other port>\n` (Firecracker's docs/vsock.md, Cloud
    /// Hypervisor's docs/vsock.md).
    ///
    /// # Errors
    /// When the VMM ends before that, or it takes too long.
    pub fn port(&self, socket: &Path, limit: Duration) -> io::Result<OwnedFd> {
        let until = Instant::now() + limit;
        loop {
            if let Some(port) = attempt(socket, until.min(Instant::now() + ATTEMPT))? {
                return Ok(port);
            }
            self.is_alive("its port")?;
            if Instant::now() >= until {
                return Err(Failure::Silent { what: "its port".to_owned(), limit }.into());
            }
            std::thread::sleep(PAUSE);
        }
    }
}

/// One attempt at a machine's port. `None` where nobody takes it.
fn attempt(socket: &Path, until: Instant) -> io::Result<Option<OwnedFd>> {
    let Ok(socket) = connect(socket) else { return Ok(None) };
    let word = format!("CONNECT {VSOCK_PORT}\n");
    // A socket that nothing was written to has room for it.
    if !matches!(rustix::net::send(&socket, word.as_bytes(), SendFlags::NOSIGNAL), Ok(count) if count == word.len()) {
        return Ok(None);
    }
    // Byte by byte: what follows the line is the machine's.
    let mut line = Vec::new();
    while line.len() < LINE {
        let mut byte = [0];
        match wait(&socket, PollFlags::IN, until) {
            Err(error) if error.kind() == io::ErrorKind::TimedOut => return Ok(None),
            waited => waited?,
        }
        match rustix::io::read(&socket, &mut byte) {
            Ok(0) => return Ok(None),
            Ok(_) if byte == *b"\n" => break,
            Ok(_) => line.push(byte[0]),
            Err(Errno::AGAIN | Errno::INTR) => {}
            Err(_) => return Ok(None),
        }
    }
    let number = line.strip_prefix(b"OK ");
    if number.is_some_and(|number| !number.is_empty() && number.iter().all(u8::is_ascii_digit)) {
        return Ok(Some(socket));
    }
    let said = String::from_utf8_lossy(&line).escape_debug().to_string();
    Err(io::Error::new(io::ErrorKind::InvalidData, format!("its port: the VMM says {said:?}, and not that it is open")))
}

/// Connects without waiting.
fn connect(path: &Path) -> Result<OwnedFd, Errno> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    rustix::net::connect(&socket, &SocketAddrUnix::new(path)?)?;
    Ok(socket)
}

/// Waits until a socket is ready, or it is later than this.
fn wait(socket: &OwnedFd, flags: PollFlags, until: Instant) -> io::Result<()> {
    loop {
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        let left = Timespec::try_from(left).map_err(io::Error::other)?;
        match poll(&mut [PollFd::new(socket, flags)], Some(&left)) {
            Ok(0) | Err(Errno::INTR) => {}
            Ok(_) => return Ok(()),
            Err(error) => return Err(error.into()),
        }
    }
}

/// The reason in a refusal: Firecracker's is `{"fault_message": "..."}`, Cloud Hypervisor's a list of sentences.
fn reason(body: &[u8]) -> String {
    let text = match serde_json::from_slice::<Value>(body) {
        Ok(Value::Object(fields)) => fields.get("fault_message").and_then(Value::as_str).map(str::to_owned),
        Ok(Value::Array(sentences)) => Some(sentences.iter().filter_map(Value::as_str).collect::<Vec<_>>().join(": ")),
        _ => None,
    };
    let text = text.unwrap_or_else(|| String::from_utf8_lossy(body).into_owned());
    // It may be printed where people read.
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(500).collect()
}
