//! The one program that a sandbox of a custom container is for.
//!
//! ```text
//! idle --Begin--> starting --its port takes connections,----> listening --it ends, or its liveness probe fails--> over
//!                    ^  |    or its start-up and readiness         |
//!                    |  |    probes succeed                        |
//!                    |  +-- it ends, or fails: over, and why       | a session brings variables that it was not started with
//!                    +------ all that it started has ended <-------+
//! ```
//!
//! A sandbox is ready when its program listens. Whoever wants a connection while it starts waits for it here; whoever wants one while its
//! readiness probe fails hears so at once.

use std::ffi::OsString;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use rustix::event::PollFlags;
use sandpool_sys::workload::{Identity, Workload};
use sandpool_wire::agent::{Answer, IdentityToken, LAST_WORDS_ARE, MAX_CHUNK, Main, Probe, Refusal, START};

use crate::environment::Environment;
use crate::identity::Endpoint;
use crate::interpreter::random;
use crate::pipe::{self, Got};
use crate::probe::{Prober, Verdict};
use crate::ring::Ring;
use crate::{port, procs};

/// Bytes of output that are kept: the last ones.
const KEPT: usize = 1 << 20;

/// Bytes of output that stand in the reason why a program is over.
const LAST_WORDS: usize = 600;

/// The pauses between two looks whether it listens: the first, and the longest.
const LOOKS: (Duration, Duration) = (Duration::from_millis(2), Duration::from_millis(50));

/// Callers that wait for a connection while it starts, at most.
const WAITING: usize = 256;

/// What a container's image and pool say, and how its program is.
#[derive(Debug)]
pub struct Container {
    main: Option<Main>,
    identity: Option<Identity>,
    state: State,
    output: Ring,
    stdout: Option<OwnedFd>,
    stderr: Option<OwnedFd>,
    waiting: Vec<OwnedFd>,
    liveness: Option<Prober>,
    readiness: Option<Prober>,
    /// What its readiness probe says, if it has one.
    is_ready: bool,
    /// Gives out tokens, where the pool says so.
    endpoint: Option<Endpoint>,
    /// And who has waited.
    through: Vec<(OwnedFd, u16)>,
}

#[derive(Debug)]
enum State {
    Idle,
    Starting(i32, Start),
    Listening(i32),
    /// It has been told to end, so that it can be started again.
    Ending(Option<i32>, Instant),
    Over,
}

/// How it is seen that it has started.
#[derive(Debug)]
enum Start {
    /// When to look again whether it listens, the pause after that, and when it is given up.
    Port(Instant, Duration, Instant),
    Probe(Box<Prober>),
    /// It has, and its readiness probe has yet to succeed: until when.
    Settling(Instant),
}

/// What the agent hears of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum News {
    /// It takes connections.
    Listens,
    /// It has ended, or could not be started: why, and whether it ended by itself.
    Over(String, bool),
}

/// Which of its descriptors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
    /// A connection to it, on which it is asked how it is, or of it to its identity endpoint.
    Other,
}

impl Default for Container {
    fn default() -> Self {
        Self {
            main: None,
            identity: None,
            state: State::Idle,
            output: Ring::new(KEPT),
            stdout: None,
            stderr: None,
            waiting: Vec::new(),
            liveness: None,
            readiness: None,
            is_ready: false,
            endpoint: None,
            through: Vec::new(),
        }
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
        if main.has_identity {
            let secret = format!("{:016x}{:016x}", random(), random());
            match Endpoint::open(secret) {
                Ok(endpoint) => self.endpoint = Some(endpoint),
                Err(error) => return Ok((Answer::Done, Some(self.over(format!("no identity endpoint: {error}"))))),
            }
        }
        self.main = Some(main);
        Ok((Answer::Done, self.start(environment)))
    }

    fn start(&mut self, environment: &Environment) -> Option<News> {
        match self.try_start(environment) {
            Ok(pid) => {
                let now = Instant::now();
                let startup = self.main.as_ref().and_then(|main| main.startup.as_ref());
                let start = match startup {
                    Some(probe) => Start::Probe(Box::new(Prober::new(probe, true, now))),
                    None => Start::Port(now, LOOKS.0, now + START),
                };
                self.state = State::Starting(pid, start);
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
        for (name, value) in self.endpoint.iter().flat_map(Endpoint::variables) {
            env.retain(|(known, _)| known != name);
            env.push((name.into(), value.into()));
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

    /// It has started: its other probes begin.
    fn started(&mut self, pid: i32, now: Instant) -> Option<News> {
        let prober = |probe: &Option<Probe>| probe.as_ref().map(|probe| Prober::new(probe, false, now));
        let Some(main) = &self.main else { return None };
        (self.liveness, self.readiness) = (prober(&main.liveness), prober(&main.readiness));
        self.is_ready = false;
        if let Some(probe) = &main.readiness {
            self.state = State::Starting(pid, Start::Settling(now + probe.patience().max(START)));
            return None;
        }
        Some(self.listens(pid))
    }

    fn listens(&mut self, pid: i32) -> News {
        self.is_ready = true;
        self.state = State::Listening(pid);
        self.let_through();
        News::Listens
    }

    /// It is of no use any more: all of it ends.
    fn given_up(&mut self, why: String) -> News {
        kill_all();
        self.over(why)
    }

    fn over(&mut self, why: String) -> News {
        self.ended(why, false)
    }

    /// It is over: whoever waits hears that nobody listens.
    fn ended(&mut self, why: String, by_itself: bool) -> News {
        let tail = self.output.from(self.output.end().saturating_sub(LAST_WORDS as u64), LAST_WORDS);
        let tail = String::from_utf8_lossy(&tail).trim().to_owned();
        let why = if tail.is_empty() { why } else { format!("{why}{LAST_WORDS_ARE}{tail}") };
        self.state = State::Over;
        (self.liveness, self.readiness) = (None, None);
        self.let_through();
        News::Over(why, by_itself)
    }

    fn let_through(&mut self) {
        let port = self.main.as_ref().map_or(0, |main| main.port);
        self.through.extend(self.waiting.drain(..).map(|stream| (stream, port)));
    }

    /// What its identity endpoint gives out from now on.
    pub fn identify(&mut self, tokens: Vec<IdentityToken>) {
        if let Some(endpoint) = &mut self.endpoint {
            endpoint.give(tokens);
        }
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
            (self.liveness, self.readiness) = (None, None);
        }
    }

    /// Somebody wants a connection to this port.
    pub fn connect(&mut self, stream: OwnedFd, wanted: u16) {
        let starts = matches!(self.state, State::Starting(..) | State::Ending(..));
        let is_its = self.main.as_ref().is_some_and(|main| main.port == wanted);
        if starts && is_its && self.waiting.len() < WAITING {
            self.waiting.push(stream);
            return;
        }
        if matches!(self.state, State::Listening(_)) && is_its && !self.is_ready {
            // Whoever asked may have gone.
            let _ = port::not_now(&stream);
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
        Answer::Logs { data: self.output.from(offset, most), first: self.output.first(), end: self.output.end() }
    }

    /// Its output, and what is asked of it.
    pub fn descriptors(&self) -> impl Iterator<Item = (End, BorrowedFd<'_>, PollFlags)> {
        let ends = [(End::Stdout, &self.stdout), (End::Stderr, &self.stderr)];
        let output = ends.into_iter().filter_map(|(end, fd)| Some((end, fd.as_ref()?.as_fd(), PollFlags::IN)));
        let probes = self.probers().flat_map(Prober::descriptors);
        let clients = self.endpoint.iter().flat_map(Endpoint::descriptors);
        output.chain(probes.chain(clients).map(|(fd, flags)| (End::Other, fd, flags)))
    }

    fn probers(&self) -> impl Iterator<Item = &Prober> {
        let start = match &self.state {
            State::Starting(_, Start::Probe(prober)) => Some(&**prober),
            _ => None,
        };
        start.into_iter().chain(&self.liveness).chain(&self.readiness)
    }

    /// There is output.
    pub fn ready(&mut self, end: End) {
        let fd = match end {
            End::Stdout => &mut self.stdout,
            End::Stderr => &mut self.stderr,
            // `tick` goes on with it.
            End::Other => return,
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
        let own = match &self.state {
            State::Starting(_, Start::Port(at, ..) | Start::Settling(at)) => Some(*at),
            State::Ending(None, at) => Some(*at),
            State::Idle
            | State::Starting(_, Start::Probe(_))
            | State::Listening(_)
            | State::Ending(Some(_), _)
            | State::Over => None,
        };
        let clients = self.endpoint.as_ref().and_then(Endpoint::wakes);
        self.probers().map(Prober::wakes).chain(own).chain(clients).min()
    }

    /// Looks whether it listens, how it is, or whether it can be started again.
    pub fn tick(&mut self, environment: &Environment, now: Instant) -> Option<News> {
        if let Some(endpoint) = &mut self.endpoint {
            endpoint.go(now);
        }
        let port = self.main.as_ref().map_or(0, |main| main.port);
        match &mut self.state {
            State::Starting(pid, Start::Port(at, pause, until)) if *at <= now => {
                let pid = *pid;
                if port::listens(port) {
                    return self.started(pid, now);
                }
                if *until <= now {
                    let seconds = START.as_secs();
                    return Some(
                        self.given_up(format!("its program does not listen at port {port} after {seconds} s")),
                    );
                }
                (*at, *pause) = (now + *pause, (*pause * 2).min(LOOKS.1));
                None
            }
            State::Starting(pid, Start::Probe(prober)) => {
                let pid = *pid;
                match prober.go(now)? {
                    Verdict::Passes => self.started(pid, now),
                    Verdict::Fails(how) => Some(self.given_up(format!("its start-up probe failed: {how}"))),
                }
            }
            State::Starting(pid, Start::Settling(until)) => {
                let (pid, is_late) = (*pid, *until <= now);
                let Some(said) = self.readiness.as_mut().map(|prober| prober.go(now)) else {
                    return Some(self.listens(pid));
                };
                match said {
                    Some(Verdict::Passes) => Some(self.listens(pid)),
                    Some(Verdict::Fails(how)) if is_late => {
                        Some(self.given_up(format!("its readiness probe has not succeeded: {how}")))
                    }
                    _ if is_late => Some(self.given_up("its readiness probe has not succeeded".to_owned())),
                    _ => self.lives(now),
                }
            }
            State::Listening(_) => {
                match self.readiness.as_mut().and_then(|prober| prober.go(now)) {
                    Some(Verdict::Passes) => self.is_ready = true,
                    Some(Verdict::Fails(_)) => self.is_ready = false,
                    None => {}
                }
                self.lives(now)
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

    /// Whether it is alive; the news that it is not.
    fn lives(&mut self, now: Instant) -> Option<News> {
        match self.liveness.as_mut()?.go(now)? {
            Verdict::Passes => None,
            Verdict::Fails(how) => Some(self.given_up(format!("its liveness probe failed: {how}"))),
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
                let why = format!("its program exited with code {code}{before}");
                Some(self.ended(why, before.is_empty()))
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
