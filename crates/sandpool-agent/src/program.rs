//! A running program of an execution: a command, or something on a terminal.
//!
//! ```text
//! running --its process ended--> lingering --its output ended, or a moment passed--> done
//!    |  time is up, or Kill: all that it started is ended by SIGKILL
//!    |  Hang up: SIGHUP to its group and to the one in the foreground; SIGKILL to all after 2 s, and once its process has ended
//!    +- Interrupt: SIGINT to its group; SIGTERM after 2 s; SIGKILL to all after 5 s more, and once its process has ended
//! ```

use std::ffi::OsString;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use rustix::fs::MemfdFlags;
use rustix::process::{Pid, Signal};
use rustix::pty::OpenptFlags;
use rustix::termios::{InputModes, OptionalActions, Winsize};
use sandpool_sys::workload::{Identity, Workload};
use sandpool_wire::agent::{Outcome, Stdin, Stop, Work};

use crate::environment::{Environment, has_bash, shell};
use crate::log::Channel;
use crate::login::Login;
use crate::pipe::{self, Sink};
use crate::procs::{self, Belonging, MARKER};

/// After SIGINT, this long until SIGTERM; then [`KILL_AFTER`] until SIGKILL.
pub const TERMINATE_AFTER: Duration = Duration::from_secs(2);
/// See [`TERMINATE_AFTER`].
pub const KILL_AFTER: Duration = Duration::from_secs(5);

/// How long output is awaited from processes that outlive the main one. What was written before it ended is read in
/// any case.
const LINGER: Duration = Duration::from_millis(100);

/// The longest command that is passed as an argument; the kernel takes 128 KiB, with its terminating NUL.
const MAX_ARGUMENT: usize = 128 * 1024 - 1;

/// Where a longer command is found by the shell.
const SCRIPT: i32 = 9;

/// The same for any shell. Its descriptor stays open to what it starts.
const PLAIN_LOADER: &str = ". /dev/fd/9";

/// Reads the command from its descriptor, closes that, and runs it with no trace left in variables.
const LOADER: &str = "__c=$(</dev/fd/9); exec 9<&-; eval \"unset -v __c; $__c\"";

/// How an execution is being ended, if it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// It is not.
    No,
    /// On request. The next signal, and when it is due.
    Cancelled(Option<(Instant, Signal)>),
    /// Its time was up.
    TimedOut,
}

impl Ending {
    /// The signal to send now, if one is due; the next one follows by itself.
    pub fn due(&mut self, now: Instant) -> Option<Signal> {
        let Self::Cancelled(Some((at, signal))) = *self else { return None };
        if at > now {
            return None;
        }
        *self = Self::Cancelled(match signal {
            Signal::INT => Some((now + TERMINATE_AFTER, Signal::TERM)),
            Signal::TERM => Some((now + KILL_AFTER, Signal::KILL)),
            Signal::HUP => Some((now + TERMINATE_AFTER, Signal::KILL)),
            _ => None,
        });
        Some(signal)
    }

    /// When the next signal is due.
    #[must_use]
    pub fn wakes(&self) -> Option<Instant> {
        if let Self::Cancelled(Some((at, _))) = self { Some(*at) } else { None }
    }

    /// Takes a request to stop. One that is under way is not slowed down by another.
    pub fn request(&mut self, how: Stop, now: Instant) {
        match (*self, how) {
            (Self::TimedOut, _) | (Self::Cancelled(_), Stop::Interrupt) => {}
            (Self::No, Stop::Interrupt) => *self = Self::Cancelled(Some((now, Signal::INT))),
            (_, Stop::Kill) => *self = Self::Cancelled(Some((now, Signal::KILL))),
        }
    }

    /// Its terminal is hung up, unless it is being ended already.
    pub fn hang_up(&mut self, now: Instant) {
        if *self == Self::No {
            *self = Self::Cancelled(Some((now, Signal::HUP)));
        }
    }
}

/// A program that was started.
#[derive(Debug)]
pub struct Program {
    /// Its process, which leads its session and group.
    pub pid: i32,
    /// Where its input goes.
    pub stdin: Option<Sink>,
    /// Its output: a pipe, or its terminal.
    pub stdout: Option<OwnedFd>,
    /// Its error output, unless it is on a terminal.
    pub stderr: Option<OwnedFd>,
    /// It is on a terminal.
    pub is_terminal: bool,
    /// It lives as long as somebody listens to it.
    pub is_service: bool,
    /// How its processes are recognised.
    pub belonging: Belonging,
    /// When it was started.
    pub began: Instant,
    /// When its time is up.
    pub deadline: Option<Instant>,
    /// How it is being ended.
    pub ending: Ending,
    /// How its process ended, and until when its output is awaited.
    pub exited: Option<(i32, Instant)>,
}

impl Program {
    /// Starts `work`. A command is run by a shell that takes its login files as `login` has them, if it is given.
    ///
    /// # Errors
    /// Why it could not be started, for its owner.
    pub fn start(
        work: Work,
        marker: &str,
        environment: &Environment,
        login: Option<&Login>,
        identity: Option<Identity>,
    ) -> Result<Self, String> {
        Self::try_start(work, marker, environment, login, identity).map_err(|error| error.to_string())
    }

    fn try_start(
        work: Work,
        marker: &str,
        environment: &Environment,
        login: Option<&Login>,
        identity: Option<Identity>,
    ) -> std::io::Result<Self> {
        let mut more = vec![(MARKER, marker)];
        let mut pass = Vec::new();
        let (is_service, of_its_own) = match &work {
            Work::Service { env, .. } => (true, env.clone()),
            _ => (false, Vec::new()),
        };
        let (argv, stdin, screen) = match work {
            Work::Shell { command, stdin } if command.len() <= MAX_ARGUMENT => match login {
                Some(login) => {
                    let (words, variable, descriptors) = login.start(command)?;
                    more.push(variable);
                    pass.extend(descriptors);
                    (words, stdin, None)
                }
                None => (vec![shell().into(), "-lc".into(), command], stdin, None),
            },
            Work::Shell { command, stdin } => {
                pass.push((script(command.as_bytes())?, SCRIPT));
                let loader = if has_bash() { LOADER } else { PLAIN_LOADER };
                (vec![shell().into(), "-lc".into(), loader.into()], stdin, None)
            }
            Work::Argv { argv, stdin } => (argv, stdin, None),
            Work::Service { argv, .. } => (argv, Stdin::Stream, None),
            Work::Terminal { ref argv, rows, columns, ref term } => {
                more.push(("TERM", term));
                (argv.clone(), Stdin::Stream, Some((rows, columns)))
            }
            Work::Code { .. } => return Err(std::io::ErrorKind::InvalidInput.into()),
        };
        let argv: Vec<OsString> = argv.into_iter().map(OsString::from).collect();
        // Ours come last: a service cannot hide its processes from its end.
        let own = of_its_own.iter().map(|(name, value)| (name.as_str(), value.as_str()));
        let env = environment.with(&own.chain(more).collect::<Vec<_>>());
        let directory = environment.directory().to_owned();
        let (stdio, stdin, stdout, stderr) = match screen {
            Some(size) => {
                let (ours, theirs) = terminal(size)?;
                let stdio = [theirs.try_clone()?, theirs.try_clone()?, theirs];
                (stdio, Some(Sink::new(ours.try_clone()?)), ours, None)
            }
            None => {
                let (input, sink) = input(stdin)?;
                let (stdout, their_stdout) = pipe::from_program()?;
                let (stderr, their_stderr) = pipe::from_program()?;
                ([input, their_stdout, their_stderr], sink, stdout, Some(stderr))
            }
        };
        let is_terminal = screen.is_some();
        let workload = Workload { argv, file: None, env, directory, identity, stdio, pass, terminal: is_terminal };
        let pid = sandpool_sys::workload::spawn(workload)?.cast_signed();
        let belonging = Belonging { marker: marker.to_owned(), leader: Some(pid), interpreter: None };
        let stdout = Some(stdout);
        let (began, ending) = (Instant::now(), Ending::No);
        let mut program = Self {
            pid,
            stdin,
            stdout,
            stderr,
            is_terminal,
            is_service,
            belonging,
            began,
            deadline: None,
            ending,
            exited: None,
        };
        program.flush_input();
        Ok(program)
    }

    /// Takes input; none means that it ends there.
    pub fn input(&mut self, data: &[u8]) {
        let Some(sink) = &mut self.stdin else { return };
        match (data, self.is_terminal) {
            // What Ctrl-D sends.
            ([], true) => sink.push(&[4]),
            ([], false) => sink.end(),
            (data, _) => sink.push(data),
        }
        self.flush_input();
    }

    /// Writes the input that can be written now.
    pub fn flush_input(&mut self) {
        if self.stdin.as_mut().is_some_and(|sink| !sink.flush()) {
            self.stdin = None;
        }
    }

    /// Gives its terminal a new size.
    pub fn resize(&self, rows: u16, columns: u16) {
        if let (true, Some(terminal)) = (self.is_terminal, &self.stdout) {
            let _ = rustix::termios::tcsetwinsize(terminal, size(rows, columns));
        }
    }

    /// Sends the signals that are due, and ends it when its time is up.
    pub fn tick(&mut self, now: Instant) {
        if self.exited.is_some() {
            return;
        }
        if self.ending == Ending::No && self.deadline.is_some_and(|deadline| deadline <= now) {
            self.ending = Ending::TimedOut;
            procs::kill(&self.belonging);
        }
        match self.ending.due(now) {
            Some(Signal::KILL) => procs::kill(&self.belonging),
            Some(signal) => {
                let own = Pid::from_raw(self.pid);
                let mut groups = vec![own];
                if signal == Signal::HUP {
                    groups.push(self.foreground().filter(|group| Some(*group) != own));
                }
                for group in groups.into_iter().flatten() {
                    // One that has ended in the meantime is no error. Who is stopped hears of nothing until it goes on.
                    let _ = rustix::process::kill_process_group(group, signal);
                    if signal == Signal::HUP {
                        let _ = rustix::process::kill_process_group(group, Signal::CONT);
                    }
                }
            }
            None => {}
        }
    }

    /// The group of processes in the foreground of its terminal.
    fn foreground(&self) -> Option<Pid> {
        let terminal = self.stdout.as_ref().filter(|_| self.is_terminal)?;
        rustix::termios::tcgetpgrp(terminal).ok()
    }

    /// Sends a signal to what is in the foreground of its terminal: its own group where nothing else is.
    pub fn signal(&self, signal: Signal) {
        if self.exited.is_none()
            && let Some(group) = self.foreground().or_else(|| Pid::from_raw(self.pid))
        {
            let _ = rustix::process::kill_process_group(group, signal);
        }
    }

    /// Takes the output that is there now.
    pub fn drain(&self, mut take: impl FnMut(Channel, &[u8])) {
        for (fd, channel) in [(&self.stdout, Channel::Stdout), (&self.stderr, Channel::Stderr)] {
            if let Some(fd) = fd {
                pipe::read_present(fd, |bytes| take(channel, bytes));
            }
        }
    }

    /// Its process has ended. One that was told to leaves nothing behind, be it in the background or in a session of its own.
    pub fn exit(&mut self, code: i32, now: Instant) {
        if self.ending != Ending::No {
            procs::kill(&self.belonging);
        }
        self.exited = Some((code, now + LINGER));
    }

    /// Whether all is over, and how: its process has ended, and so has its output or the time to wait for it.
    #[must_use]
    pub fn done(&self, now: Instant) -> Option<Outcome> {
        let (code, until) = self.exited?;
        let is_over = (self.stdout.is_none() && self.stderr.is_none()) || until <= now;
        is_over.then_some(match self.ending {
            Ending::No => Outcome::Exited(code),
            Ending::Cancelled(_) => Outcome::Cancelled,
            Ending::TimedOut => Outcome::TimedOut,
        })
    }

    /// When [`Program::tick`] or [`Program::done`] has something new to say.
    #[must_use]
    pub fn wakes(&self) -> Option<Instant> {
        match self.exited {
            Some((_, until)) => Some(until),
            None if self.ending == Ending::No => self.deadline,
            None => self.ending.wakes(),
        }
    }
}

/// The version of the shell, which shows that it can be started: as the image says it, or else as the shell says itself,
/// and then waits for it, since nothing runs beside it yet.
///
/// # Errors
/// Why it could not be started, or did not answer.
pub fn shell_version(environment: &Environment, identity: Option<Identity>) -> std::io::Result<String> {
    // The image's build asked the shell itself: to ask again in each sandbox took a fifth of what the sandbox took in all.
    if !environment.version().is_empty() && rustix::fs::access(shell(), rustix::fs::Access::EXEC_OK).is_ok() {
        return Ok(environment.version().chars().take(64).collect());
    }
    let (read, write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
    let null = || std::fs::OpenOptions::new().read(true).write(true).open("/dev/null").map(OwnedFd::from);
    let pid = sandpool_sys::workload::spawn(Workload {
        file: None,
        argv: [shell(), "-c", r#"printf %s "${BASH_VERSION:-sh}""#].into_iter().map(Into::into).collect(),
        env: environment.with(&[]),
        directory: environment.directory().to_owned(),
        identity,
        stdio: [null()?, write, null()?],
        pass: Vec::new(),
        terminal: false,
    })?;
    let mut version = String::new();
    std::io::Read::read_to_string(&mut std::io::Read::take(std::fs::File::from(read), 64), &mut version)?;
    let pid = Pid::from_raw(pid.cast_signed());
    match rustix::process::waitpid(pid, rustix::process::WaitOptions::empty())? {
        Some((_, status)) if status.exit_status() == Some(0) && !version.is_empty() => Ok(version),
        _ => Err(std::io::Error::other("it did not say its version")),
    }
}

/// The agent's end of a new input for a program, if it has one.
fn input(stdin: Stdin) -> std::io::Result<(OwnedFd, Option<Sink>)> {
    let bytes = match stdin {
        Stdin::Empty => return Ok((std::fs::File::open("/dev/null")?.into(), None)),
        Stdin::Bytes(bytes) => Some(bytes),
        Stdin::Stream => None,
    };
    let (theirs, ours) = pipe::to_program()?;
    let mut sink = Sink::new(ours);
    if let Some(bytes) = bytes {
        sink.push(&bytes);
        sink.end();
    }
    Ok((theirs, Some(sink)))
}

/// A terminal of the sandbox's own: the agent's side, which does not block, and the program's.
fn terminal((rows, columns): (u16, u16)) -> std::io::Result<(OwnedFd, OwnedFd)> {
    let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
    let ours = rustix::pty::openpt(flags)?;
    rustix::pty::unlockpt(&ours)?;
    let theirs = rustix::pty::ioctl_tiocgptpeer(&ours, flags)?;
    rustix::termios::tcsetwinsize(&ours, size(rows, columns))?;
    // Where the terminal itself edits a line, a character of several bytes is erased as one.
    let mut modes = rustix::termios::tcgetattr(&ours)?;
    modes.input_modes |= InputModes::IUTF8;
    rustix::termios::tcsetattr(&ours, OptionalActions::Now, &modes)?;
    pipe::set_nonblocking(&ours)?;
    Ok((ours, theirs))
}

fn size(rows: u16, columns: u16) -> Winsize {
    Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 }
}

/// A file in memory that holds `text`, to be read from its start.
///
/// # Errors
/// `ENOMEM` and the like.
pub fn script(text: &[u8]) -> std::io::Result<OwnedFd> {
    let file = rustix::fs::memfd_create("script", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
    let mut rest = text;
    while !rest.is_empty() {
        let count = rustix::io::write(&file, rest)?;
        rest = &rest[count..];
    }
    rustix::fs::seek(&file, rustix::fs::SeekFrom::Start(0))?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interrupt_grows_harder() {
        let mut now = Instant::now();
        let mut ending = Ending::No;
        ending.request(Stop::Interrupt, now);
        assert_eq!((ending.due(now), ending.due(now)), (Some(Signal::INT), None));
        now += TERMINATE_AFTER;
        ending.request(Stop::Interrupt, now);
        assert_eq!((ending.due(now), ending.due(now)), (Some(Signal::TERM), None));
        now += KILL_AFTER;
        assert_eq!(ending.wakes(), Some(now));
        assert_eq!((ending.due(now), ending.due(now), ending.wakes()), (Some(Signal::KILL), None, None));
    }

    #[test]
    fn who_does_not_heed_a_hang_up_is_killed() {
        let now = Instant::now();
        let mut ending = Ending::No;
        ending.hang_up(now);
        assert_eq!((ending.due(now), ending.due(now)), (Some(Signal::HUP), None));
        ending.hang_up(now);
        assert_eq!(ending.due(now + TERMINATE_AFTER), Some(Signal::KILL));
    }

    #[test]
    fn a_kill_does_not_wait() {
        let now = Instant::now();
        let mut ending = Ending::No;
        ending.request(Stop::Interrupt, now);
        let _ = ending.due(now);
        ending.request(Stop::Kill, now);
        assert_eq!(ending.due(now), Some(Signal::KILL));
        let mut ending = Ending::TimedOut;
        ending.request(Stop::Kill, now);
        assert_eq!(ending, Ending::TimedOut);
    }
}
