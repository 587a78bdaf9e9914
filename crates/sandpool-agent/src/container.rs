//! The one program that a sandbox of a custom container is for.
//!
//! ```text
//! idle --Begin--> starting --its port takes connections--> listening --it ends--> over
//!                    ^  |                                      |
//!                    |  +-- it ends: over, and why             | a session brings variables that it was not started with
//!                    +------ all that it started has ended <---+
//! ```
//!
//! A sandbox is ready when its program listens. Whoever wants a connection while it starts waits for it here.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use sandpool_sys::workload::{Identity, Workload};
use sandpool_wire::agent::{Answer, LAST_WORDS_ARE, MAX_CHUNK, Main, Refusal};

use crate::environment::Environment;
use crate::pipe::{self, Got};
use crate::{port, procs};

/// Bytes of output that are kept: the last ones.
const KEPT: usize = 1 << 20;

/// Bytes of output that stand in the reason why a program is over.
const LAST_WORDS: usize = 600;

/// The pauses between two looks whether it listens: the first, and the longest.
const LOOKS: (Duration, Duration) = (Duration::from_millis(2), Duration::from_millis(50));

/// How long it may take until it listens: less than whoever waits for the sandbox does.
const PATIENCE: Duration = Duration::from_secs(50);

/// Callers that wait for a connection while it starts, at most.
const WAITING: usize = 256;

/// What a container's image and pool say, and how its program is.
#[derive(Debug, Default)]
pub struct Container {
    main: Option<Main>,
    identity: Option<Identity>,
    state: State,
    output: Output,
    stdout: Option<OwnedFd>,
    stderr: Option<OwnedFd>,
    waiting: Vec<OwnedFd>,
    /// And who has waited.
    through: Vec<(OwnedFd, u16)>,
}

#[derive(Debug, Default)]
enum State {
    #[default]
    Idle,
    /// When to look again whether it listens, the pause after that, and when it is given up.
    Starting(i32, Instant, Duration, Instant),
    Listening(i32),
    /// It has been told to end, so that it can be started again.
    Ending(Option<i32>, Instant),
    Over,
}

/// What the agent hears of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum News {
    /// It takes connections.
    Listens,
    /// It has ended, or could not be started: why.
    Over(String),
}

/// Which of its descriptors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

/// The last bytes of what it has written.
#[derive(Debug, Default)]
struct Output {
    bytes: VecDeque<u8>,
    /// How many there were before these.
    dropped: u64,
}

impl Output {
    fn add(&mut self, bytes: &[u8]) {
        let bytes = match bytes.len().checked_sub(KEPT) {
            Some(over) => {
                self.dropped += over as u64;
                &bytes[over..]
            }
            None => bytes,
        };
        let over = (self.bytes.len() + bytes.len()).saturating_sub(KEPT);
        self.dropped += over as u64;
        self.bytes.drain(..over);
        self.bytes.extend(bytes);
    }

    fn end(&self) -> u64 {
        self.dropped + self.bytes.len() as u64
    }

    /// The bytes from this one on, or from the first that is still there.
    fn from(&self, offset: u64, most: usize) -> Vec<u8> {
        let skip = usize::try_from(offset.saturating_sub(self.dropped)).unwrap_or(usize::MAX);
        self.bytes.iter().skip(skip).take(most).copied().collect()
    }
}

impl Container {
    /// Starts the program, when nothing has yet. Whether it is the one that was begun.
    ///
    /// # Errors
    /// `Invalid` for another one than was begun.
    pub fn begin(&mut self, main: Main, environment: &Environment) -> Result<(Answer, Option<News>), Refusal> {
        match &self.main {
            Some(begun) if *begun == main => return Ok((Answer::Done, None)),
            Some(_) => return Err(Refusal::Invalid("another program was begun in this sandbox".to_owned())),
            None => {}
        }
        if main.argv.is_empty() {
            return Err(Refusal::Invalid("a container without a program".to_owned()));
        }
        match who(&main.user) {
            Ok(identity) => self.identity = Some(identity),
            Err(why) => return Ok((Answer::Done, Some(self.over(why)))),
        }
        self.main = Some(main);
        Ok((Answer::Done, self.start(environment)))
    }

    fn start(&mut self, environment: &Environment) -> Option<News> {
        match self.try_start(environment) {
            Ok(pid) => {
                let now = Instant::now();
                self.state = State::Starting(pid, now, LOOKS.0, now + PATIENCE);
                None
            }
            Err(why) => Some(self.over(format!("its program could not be started: {why}"))),
        }
    }

    fn try_start(&mut self, environment: &Environment) -> Result<i32, String> {
        let (Some(main), Some(identity)) = (&self.main, self.identity) else {
            return Err("nobody has said which".to_owned());
        };
        let text = |error: std::io::Error| error.to_string();
        let errno = |error: rustix::io::Errno| error.to_string();
        let null = std::fs::File::open("/dev/null").map_err(text)?;
        let (stdout, their_stdout) = pipe::from_program().map_err(errno)?;
        let (stderr, their_stderr) = pipe::from_program().map_err(errno)?;
        let own: Vec<(&str, &str)> = main.env.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        let mut env = environment.with(&[]);
        // What a session brought comes last.
        for (name, value) in own {
            if !environment.is_of_session(name) {
                env.retain(|(known, _)| known != name);
                env.push((name.into(), value.into()));
            }
        }
        let workload = Workload {
            argv: main.argv.iter().map(OsString::from).collect(),
            file: None,
            env,
            directory: PathBuf::from(if main.directory.is_empty() { "/" } else { &main.directory }),
            identity: Some(identity),
            stdio: [null.into(), their_stdout, their_stderr],
            pass: Vec::new(),
            terminal: false,
        };
        let pid = sandpool_sys::workload::spawn(workload).map_err(|error| format!("{}: {error}", main.argv[0]))?;
        (self.stdout, self.stderr) = (Some(stdout), Some(stderr));
        Ok(pid.cast_signed())
    }

    /// It is over: whoever waits hears that nobody listens.
    fn over(&mut self, why: String) -> News {
        let tail = self.output.from(self.output.end().saturating_sub(LAST_WORDS as u64), LAST_WORDS);
        let tail = String::from_utf8_lossy(&tail).trim().to_owned();
        let why = if tail.is_empty() { why } else { format!("{why}{LAST_WORDS_ARE}{tail}") };
        self.state = State::Over;
        self.let_through();
        News::Over(why)
    }

    fn let_through(&mut self) {
        let port = self.main.as_ref().map_or(0, |main| main.port);
        self.through.extend(self.waiting.drain(..).map(|stream| (stream, port)));
    }

    /// Whom its program runs as, and all that is run beside it.
    #[must_use]
    pub fn identity(&self) -> Option<Identity> {
        self.identity
    }

    /// Whether it was started with this variable.
    #[must_use]
    pub fn has(&self, name: &str, value: &str) -> bool {
        let env = self.main.iter().flat_map(|main| &main.env);
        env.rev().find(|(known, _)| known == name).is_some_and(|(_, known)| known == value)
    }

    /// A session brings its variables: a program that was not started with them is started again.
    pub fn activated(&mut self, brings: bool, now: Instant) {
        if !brings {
            return;
        }
        if let State::Starting(pid, ..) | State::Listening(pid) = self.state {
            kill_all();
            self.state = State::Ending(Some(pid), now);
        }
    }

    /// Somebody wants a connection to this port.
    pub fn connect(&mut self, stream: OwnedFd, wanted: u16) {
        let starts = matches!(self.state, State::Starting(..) | State::Ending(..));
        let is_its = self.main.as_ref().is_some_and(|main| main.port == wanted);
        if starts && is_its && self.waiting.len() < WAITING {
            self.waiting.push(stream);
        } else {
            self.through.push((stream, wanted));
        }
    }

    /// Those who want a connection and need wait for it no longer, and the port of each.
    pub fn through(&mut self) -> Vec<(OwnedFd, u16)> {
        std::mem::take(&mut self.through)
    }

    /// What it wrote from this byte on.
    pub fn logs(&self, offset: u64, length: u32) -> Answer {
        let most = usize::try_from(length).unwrap_or(MAX_CHUNK).min(MAX_CHUNK);
        Answer::Logs { data: self.output.from(offset, most), first: self.output.dropped, end: self.output.end() }
    }

    /// Its output.
    pub fn descriptors(&self) -> impl Iterator<Item = (End, BorrowedFd<'_>)> {
        let ends = [(End::Stdout, &self.stdout), (End::Stderr, &self.stderr)];
        ends.into_iter().filter_map(|(end, fd)| Some((end, fd.as_ref()?.as_fd())))
    }

    /// There is output.
    pub fn ready(&mut self, end: End) {
        let fd = match end {
            End::Stdout => &mut self.stdout,
            End::Stderr => &mut self.stderr,
        };
        let mut bytes = Vec::new();
        match fd.as_ref().map(|fd| pipe::read(fd, &mut bytes)) {
            Some(Got::Bytes(_)) => self.output.add(&bytes),
            Some(Got::End) => *fd = None,
            Some(Got::Nothing) | None => {}
        }
    }

    /// When [`Container::tick`] has something to look at.
    #[must_use]
    pub fn wakes(&self) -> Option<Instant> {
        match &self.state {
            State::Starting(_, at, ..) => Some(*at),
            State::Ending(None, at) => Some(*at),
            State::Idle | State::Listening(_) | State::Ending(Some(_), _) | State::Over => None,
        }
    }

    /// Looks whether it listens, or can be started again.
    pub fn tick(&mut self, environment: &Environment, now: Instant) -> Option<News> {
        match &mut self.state {
            State::Starting(pid, at, pause, until) if *at <= now => {
                let port = self.main.as_ref().map_or(0, |main| main.port);
                if !port::listens(port) {
                    if *until <= now {
                        let seconds = PATIENCE.as_secs();
                        return Some(
                            self.over(format!("its program does not listen at port {port} after {seconds} s")),
                        );
                    }
                    (*at, *pause) = (now + *pause, (*pause * 2).min(LOOKS.1));
                    return None;
                }
                self.state = State::Listening(*pid);
                self.let_through();
                Some(News::Listens)
            }
            State::Ending(None, at) if *at <= now => {
                // What it had started may hold its port.
                if procs::all().iter().any(|process| process.pid != 1 && !process.is_zombie) {
                    kill_all();
                    *at = now + LOOKS.0;
                    return None;
                }
                self.start(environment)
            }
            _ => None,
        }
    }

    /// A process has ended; how, if it was the program.
    pub fn exited(&mut self, pid: i32, code: i32, now: Instant) -> Option<News> {
        match self.state {
            State::Starting(main, ..) | State::Listening(main) if main == pid => {
                let before = if matches!(self.state, State::Starting(..)) { " before it listened" } else { "" };
                for fd in [&self.stdout, &self.stderr].into_iter().flatten() {
                    let mut last = Vec::new();
                    pipe::read_present(fd, |bytes| last.extend_from_slice(bytes));
                    self.output.add(&last);
                }
                Some(self.over(format!("its program exited with code {code}{before}")))
            }
            State::Ending(Some(main), _) if main == pid => {
                (self.stdout, self.stderr) = (None, None);
                self.state = State::Ending(None, now);
                None
            }
            _ => None,
        }
    }
}

/// Ends everything in the sandbox but its first process.
fn kill_all() {
    let pids: Vec<i32> = procs::all().into_iter().map(|process| process.pid).filter(|pid| *pid != 1).collect();
    procs::signal(&pids, rustix::process::Signal::KILL);
}

/// Whom an image wants its program to run as: `user`, `uid`, `user:group` or `uid:gid`; nobody said means root, who is nobody special in a
/// sandbox: without a capability, and owner of the image's files.
fn who(user: &str) -> Result<Identity, String> {
    const ROOT: Identity = Identity { uid: 0, gid: 0 };
    if user.is_empty() {
        return Ok(ROOT);
    }
    let read = |file: &str| {
        let mut text = String::new();
        if let Ok(file) = std::fs::File::open(file) {
            // An image without it, or with one that is not text, has numbers only.
            let _ = std::io::Read::read_to_string(&mut std::io::Read::take(file, 1 << 20), &mut text);
        }
        text
    };
    identity(user, &read("/etc/passwd"), &read("/etc/group"))
}

fn identity(user: &str, passwd: &str, group: &str) -> Result<Identity, String> {
    let (name, in_group) = match user.split_once(':') {
        Some((name, group)) => (name, Some(group)),
        None => (user, None),
    };
    let find = |text: &str, name: &str| -> Option<Vec<String>> {
        let line = text.lines().find(|line| line.split(':').next() == Some(name))?;
        Some(line.split(':').map(str::to_owned).collect())
    };
    let number = |fields: &[String], at: usize| fields.get(at).and_then(|field| field.parse::<u32>().ok());
    let (uid, its_gid) = match (name.parse::<u32>(), find(passwd, name)) {
        (Ok(uid), _) => {
            let line = passwd.lines().find(|line| line.split(':').nth(2) == Some(name));
            let gid = line.and_then(|line| line.split(':').nth(3)?.parse().ok());
            (uid, gid.unwrap_or(0))
        }
        (Err(_), Some(fields)) => {
            let uid = number(&fields, 2).ok_or_else(|| format!("the image's user {name} has no number"))?;
            (uid, number(&fields, 3).unwrap_or(0))
        }
        (Err(_), None) => return Err(format!("the image has no user {name}")),
    };
    let gid = match in_group {
        None => its_gid,
        Some(group_name) => match group_name.parse() {
            Ok(gid) => gid,
            Err(_) => find(group, group_name)
                .and_then(|fields| number(&fields, 2))
                .ok_or_else(|| format!("the image has no group {group_name}"))?,
        },
    };
    // Ids of a sandbox go up to there.
    if uid >= 65_536 || gid >= 65_536 {
        return Err(format!("the image's user {uid}:{gid} is beyond 65535"));
    }
    Ok(Identity { uid, gid })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn output_is_kept_from_its_end() {
        let mut output = Output::default();
        output.add(b"one\n");
        assert_eq!((output.from(0, 100), output.end()), (b"one\n".to_vec(), 4));
        output.add(&vec![b'x'; KEPT]);
        assert_eq!((output.dropped, output.end()), (4, 4 + KEPT as u64));
        assert_eq!(output.from(0, 3), b"xxx");
        output.add(&vec![b'y'; KEPT + 7]);
        assert_eq!(output.dropped, 4 + KEPT as u64 + 7);
        assert_eq!(output.from(output.end() - 2, 100), b"yy");
        assert_eq!(output.from(u64::MAX, 100), b"");
    }

    #[test]
    fn users_are_found_as_images_name_them() {
        let passwd = "root:x:0:0::/root:/bin/sh\nweb:x:33:34::/:/bin/false\n";
        let group = "root:x:0:\nweb:x:34:\nstaff:x:50:\n";
        let of = |user: &str| identity(user, passwd, group).map(|one| (one.uid, one.gid));
        assert_eq!(of("web"), Ok((33, 34)));
        assert_eq!(of("web:staff"), Ok((33, 50)));
        assert_eq!(of("33"), Ok((33, 34)));
        assert_eq!(of("1234"), Ok((1234, 0)));
        assert_eq!(of("1234:5"), Ok((1234, 5)));
        assert_eq!(of("root"), Ok((0, 0)));
        assert!(of("nobody").unwrap_err().contains("no user nobody"));
        assert!(of("web:none").unwrap_err().contains("no group none"));
        assert!(of("70000").unwrap_err().contains("beyond"));
    }
}
