//! The interpreter: one process that runs code, one run at a time, and keeps its variables between runs.
//!
//! ```text
//! booting --ready--> idle --run--> running --end--> idle
//!    |                 +---its process ended---+
//!    v                             v
//! broken (the first time), absent <-- booting again: variables are gone, and the next run says so
//! ```

use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use sandpool_sys::workload::{Identity, Workload};
use sandpool_wire::agent::{Activation, ExecKey, Outcome, Runtime};

use crate::environment::Environment;
use crate::log::{self, Channel, Log};
use crate::pipe::{self, Got, Sink};
use crate::procs::{self, Belonging};
use crate::program::{Ending, KILL_AFTER, TERMINATE_AFTER};
use crate::runner::{self, FromRunner, Report, ToRunner};
use crate::zygote::{self, Zygote};

/// How long code has after SIGINT when its time is up, before the interpreter is replaced.
const GRACE: Duration = Duration::from_secs(1);

/// How long an interpreter may take to become ready again; the first time is limited by whoever waits for `Ready`.
const REBOOT: Duration = Duration::from_secs(60);

/// Attempts to start from a zygote before one without it.
const THAWS: u32 = 3;

/// Bytes of error output that are kept while it boots.
const TAIL: usize = 2048;

/// Where a runner finds its source, what the agent says, and where it answers.
const SOURCE: i32 = 3;
const FROM_AGENT: i32 = 4;
const TO_AGENT: i32 = 5;

/// Where Node's runner finds the numbers of runs that are to be interrupted (u32, little endian), also while its code keeps
/// it from its channel: one for the thread that runs code, and one for the thread that breaks into it.
const INTERRUPTS: [i32; 2] = [7, 8];

/// How long after that SIGINT follows, which breaks Node's code off wherever it is. Code that prints has taken the
/// interrupt up by then, in a place where nothing breaks, also on a machine that is busy.
const BREAK_AFTER: Duration = Duration::from_millis(150);

/// How long after that it follows again, once: the first one is lost on code that had not begun.
const BREAK_AGAIN: Duration = Duration::from_secs(1);

const PYTHON: &str = include_str!("runner.py");
const NODE: &str = include_str!("runner.js");

/// Runs what it reads from descriptor 3, so that neither a file nor a long argument is needed.
const LOAD_PYTHON: &str = "import os; exec(compile(os.fdopen(3, 'rb').read(), '<sandpool>', 'exec'), \
     {'__name__': 'sandpool', '__builtins__': {**vars(__builtins__)}})";
const LOAD_NODE: &str = "{const f=require('fs'),s=f.readFileSync(3,'utf8');f.closeSync(3);\
    new (require('vm').Script)(s,{filename:'sandpool'}).runInThisContext()(require,process)}";

/// The interpreter of a sandbox.
#[derive(Debug)]
pub struct Interpreter {
    runtime: Runtime,
    identity: Option<Identity>,
    zygote: Option<Zygote>,
    /// Starts from the zygote that failed since one was good.
    failed_thaws: u32,
    state: State,
    run: Option<Run>,
    /// Variables were lost since the last run ended.
    is_state_lost: bool,
    activation: Option<Activation>,
    /// It has been asked to renew itself, and has not said that it did.
    is_renewing: bool,
    version: String,
    nonces: u64,
}

#[derive(Debug)]
enum State {
    /// There is a process.
    Alive(Alive),
    /// It went away before it was ready again. The next run tries once more.
    Absent,
    /// It was never ready.
    Broken(String),
}

/// The interpreter's process.
#[derive(Debug)]
pub struct Alive {
    pid: i32,
    is_ready: bool,
    is_thawed: bool,
    booted: Instant,
    to: Option<Sink>,
    from: Option<OwnedFd>,
    stdout: Option<OwnedFd>,
    stderr: Option<OwnedFd>,
    /// When it closed its channel.
    closed: Option<Instant>,
    inbox: Vec<u8>,
    /// The end of what it wrote while booting.
    tail: Vec<u8>,
    /// Why the agent ended it.
    fault: Option<String>,
    /// SIGINT has been sent to the present run.
    is_broken: bool,
    /// The other ends of [`INTERRUPTS`]: Node has them.
    interrupts: Vec<OwnedFd>,
    /// When SIGINT is due.
    break_at: Option<Instant>,
}

/// Which of an interpreter's descriptors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// Its standard output.
    Stdout,
    /// Its error output.
    Stderr,
    /// What its runner says.
    From,
    /// What is said to its runner.
    To,
}

#[derive(Debug)]
struct Run {
    exec: ExecKey,
    code: String,
    is_fresh: bool,
    timeout: Duration,
    began: Option<Began>,
    ending: Ending,
}

#[derive(Debug)]
struct Began {
    at: Instant,
    nonce: String,
    deadline: Option<Instant>,
    kill_at: Option<Instant>,
    belonging: Belonging,
}

/// What the agent must know.
#[derive(Debug, PartialEq)]
pub enum News {
    /// It is warm for the first time.
    Ready,
    /// It could not be started.
    Broken(String),
    /// It draws nothing that another of several draws.
    Renewed,
    /// The run of this execution has ended.
    Finished {
        /// The execution.
        exec: ExecKey,
        /// How.
        outcome: Outcome,
        /// After how long.
        duration: Duration,
        /// Variables are gone.
        state_lost: bool,
    },
}

impl Interpreter {
    /// Starts one.
    #[must_use]
    pub fn start(
        runtime: Runtime,
        environment: &Environment,
        identity: Option<Identity>,
        zygote: Option<Zygote>,
    ) -> Self {
        let state = match Alive::start(runtime, environment, identity, zygote.as_ref()) {
            Ok(alive) => State::Alive(alive),
            Err(error) => State::Broken(format!("{} cannot be started: {error}", runtime.word())),
        };
        Self {
            runtime,
            identity,
            zygote,
            failed_thaws: 0,
            state,
            run: None,
            is_state_lost: false,
            activation: None,
            is_renewing: false,
            version: String::new(),
            nonces: 0,
        }
    }

    /// Its version, once it has been ready.
    #[must_use]
    pub fn version(&self) -> &str {
        &self.version
    }

    /// Why it is of no use.
    #[must_use]
    pub fn broken(&self) -> Option<&str> {
        if let State::Broken(reason) = &self.state { Some(reason) } else { None }
    }

    /// Whether it has a run.
    #[must_use]
    pub fn is_busy(&self) -> bool {
        self.run.is_some()
    }

    /// Whether its run has begun.
    #[must_use]
    pub fn is_running(&self) -> bool {
        self.run.as_ref().is_some_and(|run| run.began.is_some())
    }

    /// The execution that it runs.
    #[must_use]
    pub fn running(&self) -> Option<ExecKey> {
        self.run.as_ref().map(|run| run.exec)
    }

    /// Its process.
    #[must_use]
    pub fn pid(&self) -> Option<i32> {
        if let State::Alive(alive) = &self.state { Some(alive.pid) } else { None }
    }

    /// A session took the sandbox.
    pub fn activate(&mut self, activation: Activation) {
        if let State::Alive(Alive { to: Some(to), .. }) = &mut self.state {
            to.push(&activate_message(&activation, true));
            let _ = to.flush();
        }
        self.activation = Some(activation);
    }

    /// Its process goes on in several machines; `thorough` where it had a session before.
    pub fn renew(&mut self, thorough: bool) {
        if let State::Alive(Alive { to: Some(to), .. }) = &mut self.state {
            to.push(&runner::encode(&ToRunner::Renew { thorough }));
            let _ = to.flush();
            self.is_renewing = true;
        }
    }

    /// Takes a run. It begins at once, or as soon as the interpreter is there again.
    pub fn run(&mut self, exec: ExecKey, code: String, is_fresh: bool, timeout: Duration, environment: &Environment) {
        self.run = Some(Run { exec, code, is_fresh, timeout, began: None, ending: Ending::No });
        if matches!(self.state, State::Absent) {
            self.boot_again(environment);
        }
    }

    /// Begins the run that waits, if there is one and the interpreter is warm. Whether it did.
    pub fn begin(&mut self, log: &mut Log, now: Instant) -> bool {
        let (State::Alive(alive), Some(run)) = (&mut self.state, &mut self.run) else { return false };
        if !alive.is_ready || run.began.is_some() || run.ending != Ending::No {
            return false;
        }
        // What threads of earlier runs wrote in the meantime belongs to nobody.
        for fd in [&alive.stdout, &alive.stderr].into_iter().flatten() {
            pipe::read_present(fd, |_| {});
        }
        self.nonces += 1;
        let nonce = format!("{:x}-{}", random(), self.nonces);
        let marker = procs::name(run.exec);
        let began = sandpool_sys::workload::boot_ticks().0;
        log.started();
        if let Some(to) = &mut alive.to {
            to.push(&runner::encode(&ToRunner::Run {
                nonce: &nonce,
                exec: &marker,
                code: &run.code,
                fresh: run.is_fresh,
            }));
            let _ = to.flush();
        }
        run.code = String::new();
        run.began = Some(Began {
            at: now,
            nonce,
            deadline: now.checked_add(run.timeout),
            kill_at: None,
            belonging: Belonging { marker, leader: None, interpreter: Some((alive.pid, began)) },
        });
        true
    }

    /// Ends the run on request.
    pub fn stop(&mut self, how: sandpool_wire::agent::Stop, now: Instant) {
        if let Some(run) = &mut self.run {
            run.ending.request(how, now);
        }
    }

    /// The descriptors to wait for: for reading, or (for [`End::To`], when something waits) for writing.
    pub fn descriptors(&self) -> impl Iterator<Item = (End, std::os::fd::BorrowedFd<'_>)> {
        use std::os::fd::AsFd;
        let alive = if let State::Alive(alive) = &self.state { Some(alive) } else { None };
        alive.into_iter().flat_map(|alive| {
            let reading = [(End::From, &alive.from), (End::Stdout, &alive.stdout), (End::Stderr, &alive.stderr)];
            let reading = reading.into_iter().filter_map(|(end, fd)| Some((end, fd.as_ref()?.as_fd())));
            let writing = alive.to.as_ref().filter(|to| !to.is_empty()).map(|to| (End::To, to.fd()));
            reading.chain(writing)
        })
    }

    /// One of its descriptors is ready.
    pub fn ready(&mut self, end: End, logs: &mut [Log], now: Instant) -> Option<News> {
        let State::Alive(alive) = &mut self.state else { return None };
        let exec = self.run.as_ref().filter(|run| run.began.is_some()).map(|run| run.exec);
        match end {
            End::To => {
                if alive.to.as_mut().is_some_and(|to| !to.flush()) {
                    alive.to = None;
                }
                None
            }
            End::Stdout | End::Stderr => {
                let mut output = Vec::new();
                let (fd, channel) = match end {
                    End::Stdout => (&mut alive.stdout, Channel::Stdout),
                    _ => (&mut alive.stderr, Channel::Stderr),
                };
                match fd.as_ref().map(|fd| pipe::read(fd, &mut output)) {
                    Some(Got::Bytes(_)) if !alive.is_ready => alive.keep_tail(&output),
                    Some(Got::Bytes(_)) => {
                        if let Some(log) = exec.and_then(|exec| log::find(logs, exec)) {
                            log.output(channel, &output, now);
                        }
                    }
                    Some(Got::End) => *fd = None,
                    Some(Got::Nothing) | None => {}
                }
                None
            }
            End::From => self.hear(logs, now),
        }
    }

    /// Reads what its runner says.
    fn hear(&mut self, logs: &mut [Log], now: Instant) -> Option<News> {
        let State::Alive(alive) = &mut self.state else { return None };
        match alive.from.as_ref().map(|fd| pipe::read(fd, &mut alive.inbox)) {
            Some(Got::Bytes(_)) => {}
            Some(Got::End) => {
                // Most often it is ending: how, is said when it has.
                alive.from = None;
                alive.closed = Some(now);
                return None;
            }
            Some(Got::Nothing) | None => return None,
        }
        loop {
            let State::Alive(alive) = &mut self.state else { return None };
            if alive.fault.is_some() {
                return None;
            }
            match runner::message_length(&alive.inbox).and_then(|_| runner::take(&alive.inbox)) {
                Ok(Some((message, used))) => {
                    alive.inbox.drain(..used);
                    if alive.inbox.is_empty() {
                        alive.inbox = Vec::new();
                    }
                    // At most one message ends a run, and nothing may follow it before the next one begins; so what
                    // is left in the inbox is judged when it is read.
                    if let Some(news) = self.heard(message, logs, now) {
                        return Some(news);
                    }
                }
                Ok(None) => return None,
                Err(error) => {
                    alive.end(&format!("{error} came on its channel"));
                    return None;
                }
            }
        }
    }

    fn heard(&mut self, message: FromRunner, logs: &mut [Log], now: Instant) -> Option<News> {
        let State::Alive(alive) = &mut self.state else { return None };
        let (nonce, report) = match message {
            FromRunner::Ready { version } if !alive.is_ready => {
                alive.is_ready = true;
                alive.tail = Vec::new();
                self.failed_thaws = 0;
                let is_first = self.version.is_empty();
                self.version = version.chars().take(64).collect();
                if let Some(Zygote::Freeze(_)) = self.zygote {
                    match (zygote::ask(), &mut alive.to) {
                        (Some(message), Some(to)) => {
                            to.push(&message);
                            let _ = to.flush();
                        }
                        _ => alive.end("it cannot be frozen on this processor"),
                    }
                    return None;
                }
                if is_first && self.runtime == Runtime::Python && matches!(self.zygote, Some(Zygote::Warm)) {
                    // There is more for it to load than it loads by itself.
                    if let Some(to) = &mut alive.to {
                        to.push(&zygote::warm());
                        let _ = to.flush();
                    }
                    return None;
                }
                return is_first.then_some(News::Ready);
            }
            FromRunner::Frozen(result) if matches!(self.zygote, Some(Zygote::Freeze(_) | Zygote::Warm)) => {
                return Some(match result {
                    Ok(()) => News::Ready,
                    Err(why) => News::Broken(format!("{} cannot be a zygote: {why}", self.runtime.word())),
                });
            }
            FromRunner::Frozen(_) => {
                alive.end("it was frozen and nobody asked for it");
                return None;
            }
            FromRunner::Renewed if self.is_renewing => {
                self.is_renewing = false;
                return Some(News::Renewed);
            }
            FromRunner::Renewed => {
                alive.end("it was renewed and nobody asked for it");
                return None;
            }
            FromRunner::Ready { .. } => {
                alive.end("a second greeting came on its channel");
                return None;
            }
            FromRunner::Run { nonce, report } => (nonce, report),
        };
        let began = self.run.as_ref().and_then(|run| Some((run.exec, run.began.as_ref()?)));
        let Some((exec, began)) = began.filter(|(_, began)| began.nonce == nonce) else {
            alive.end("a message that belongs to no run came on its channel");
            return None;
        };
        let log = log::find(logs, exec)?;
        // What was written before this was said comes before it.
        alive.drain(log, now);
        match report {
            Report::Display(rich) => log.display(rich),
            Report::Value(rich) => log.result(rich),
            Report::Error(raised) => log.error(raised),
            Report::End(is_ok) => {
                if self.run.as_ref().is_some_and(|run| run.ending != Ending::No) {
                    procs::kill(&began.belonging);
                }
                let usual = if is_ok { Outcome::Succeeded } else { Outcome::Raised };
                return self.finish(usual, now);
            }
        }
        None
    }

    /// Its process has ended. Answers what is left of its output, which may still have writers.
    pub fn exited(
        &mut self,
        how: &str,
        environment: &Environment,
        logs: &mut [Log],
        now: Instant,
    ) -> (Option<News>, Vec<OwnedFd>) {
        let State::Alive(mut alive) = std::mem::replace(&mut self.state, State::Absent) else {
            return (None, Vec::new());
        };
        if !alive.is_ready {
            for fd in [alive.stdout.take(), alive.stderr.take()].into_iter().flatten() {
                pipe::read_present(&fd, |bytes| alive.keep_tail(bytes));
            }
            let tail = String::from_utf8_lossy(&alive.tail);
            let reason = alive.fault.as_deref().unwrap_or(how);
            let reason = format!("{} did not start: {reason}; it wrote: {tail}", self.runtime.word());
            if alive.is_thawed {
                // Most often an address was taken, which another attempt finds free. In the end it starts without.
                self.failed_thaws += 1;
                self.boot_again(environment);
                if matches!(self.state, State::Alive(_)) {
                    return (None, Vec::new());
                }
            }
            if self.version.is_empty() {
                self.state = State::Broken(reason.clone());
                return (Some(News::Broken(reason)), Vec::new());
            }
            return (self.finish(Outcome::Died(reason), now), Vec::new());
        }
        if let Some(Zygote::Freeze(_)) = self.zygote {
            // Its memory is in the file, or it has said why not.
            return (None, Vec::new());
        }
        self.is_state_lost = true;
        let began = self.run.as_ref().and_then(|run| Some((run.exec, run.began.as_ref()?)));
        let mut news = None;
        if let Some((exec, began)) = began {
            if let Some(log) = log::find(logs, exec) {
                alive.drain(log, now);
            }
            if self.run.as_ref().is_some_and(|run| run.ending != Ending::No) {
                procs::kill(&began.belonging);
            }
            let why = alive.fault.take().unwrap_or_else(|| how.to_owned());
            news = self.finish(Outcome::Died(format!("the interpreter ended: {why}")), now);
        }
        self.boot_again(environment);
        (news, [alive.stdout.take(), alive.stderr.take()].into_iter().flatten().collect())
    }

    fn finish(&mut self, usual: Outcome, now: Instant) -> Option<News> {
        let run = self.run.take()?;
        if let State::Alive(alive) = &mut self.state {
            alive.break_at = None;
            alive.is_broken = false;
        }
        let outcome = match run.ending {
            Ending::No => usual,
            Ending::Cancelled(_) => Outcome::Cancelled,
            Ending::TimedOut => Outcome::TimedOut,
        };
        let duration = run.began.map_or(Duration::ZERO, |began| now.duration_since(began.at));
        let state_lost = std::mem::take(&mut self.is_state_lost);
        Some(News::Finished { exec: run.exec, outcome, duration, state_lost })
    }

    fn boot_again(&mut self, environment: &Environment) {
        let zygote = self.zygote.as_ref().filter(|_| self.failed_thaws < THAWS);
        if let Ok(mut alive) = Alive::start(self.runtime, environment, self.identity, zygote) {
            if let (Some(activation), Some(to)) = (&self.activation, &mut alive.to) {
                to.push(&activate_message(activation, false));
                let _ = to.flush();
            }
            self.state = State::Alive(alive);
        }
    }

    /// Sends the signals that are due. A run that never began ends here.
    pub fn tick(&mut self, now: Instant) -> Option<News> {
        let is_first = self.version.is_empty();
        match &mut self.state {
            State::Alive(alive) => {
                if !is_first && !alive.is_ready && now.duration_since(alive.booted) >= REBOOT {
                    alive.end("it did not become ready again");
                }
                if alive.closed.is_some_and(|at| at + GRACE <= now) {
                    alive.end("it closed its channel");
                }
            }
            State::Absent if self.run.is_some() => {
                return self.finish(Outcome::Died("the interpreter cannot be started again".to_owned()), now);
            }
            State::Absent | State::Broken(_) => {}
        }
        let number = self.nonces;
        let run = self.run.as_mut()?;
        let Some(began) = &mut run.began else {
            return if run.ending == Ending::No { None } else { self.finish(Outcome::Cancelled, now) };
        };
        let State::Alive(alive) = &mut self.state else { return None };
        let pid = alive.pid;
        if run.ending == Ending::No && began.deadline.is_some_and(|deadline| deadline <= now) {
            run.ending = Ending::TimedOut;
            began.kill_at = Some(now + GRACE);
            alive.interrupt(number, now);
            procs::kill(&began.belonging);
        }
        if began.kill_at.is_some_and(|at| at <= now) {
            began.kill_at = None;
            procs::signal(&[pid], Signal::KILL);
        }
        if alive.break_at.is_some_and(|at| at <= now) {
            alive.break_at = if alive.is_broken { None } else { Some(now + BREAK_AGAIN) };
            alive.is_broken = true;
            procs::signal(&[pid], Signal::INT);
        }
        if let Some(signal) = run.ending.due(now) {
            let started = procs::select(&procs::all(), &began.belonging, std::process::id().cast_signed());
            // The interpreter may only be waiting for what it started. Then that goes first, and the state is kept.
            if signal == Signal::INT {
                alive.interrupt(number, now);
            } else if signal != Signal::TERM || started.is_empty() {
                procs::signal(&[pid], signal);
            }
            procs::signal(&started, signal);
        }
        None
    }

    /// When [`Interpreter::tick`] has something to do.
    #[must_use]
    pub fn wakes(&self) -> Option<Instant> {
        let closed = match &self.state {
            State::Alive(alive) if alive.fault.is_none() => alive.closed.map(|at| at + GRACE),
            _ => None,
        };
        let reboot = match &self.state {
            State::Alive(alive) if !alive.is_ready && !self.version.is_empty() && alive.fault.is_none() => {
                Some(alive.booted + REBOOT)
            }
            _ => None,
        };
        let run = self.run.as_ref().and_then(|run| match &run.began {
            Some(began) if run.ending == Ending::No => began.deadline,
            Some(began) => run.ending.wakes().or(began.kill_at),
            None => None,
        });
        let broken = if let State::Alive(alive) = &self.state { alive.break_at } else { None };
        [closed, reboot, run, broken].into_iter().flatten().min()
    }

    /// The longest that a stop on request may take.
    #[must_use]
    pub fn longest_stop() -> Duration {
        TERMINATE_AFTER + KILL_AFTER
    }
}

impl Alive {
    fn start(
        runtime: Runtime,
        environment: &Environment,
        identity: Option<Identity>,
        zygote: Option<&Zygote>,
    ) -> std::io::Result<Self> {
        let (argv, source) = match runtime {
            // -P: no module of the working directory replaces one that the runner itself imports.
            Runtime::Python => (vec!["python3", "-P", "-c", LOAD_PYTHON], PYTHON),
            Runtime::Node => (vec!["node", "--experimental-repl-await", "-e", LOAD_NODE], NODE),
            Runtime::Shell | Runtime::Container => return Err(std::io::ErrorKind::Unsupported.into()),
        };
        let (stdout, their_stdout) = pipe::from_program()?;
        let (stderr, their_stderr) = pipe::from_program()?;
        let (from, their_to) = pipe::from_program()?;
        let (their_from, to) = pipe::to_program()?;
        let stdin = std::fs::File::open("/dev/null")?.into();
        let mut pass = vec![(their_from, FROM_AGENT), (their_to, TO_AGENT)];
        let mut interrupts = Vec::new();
        if runtime == Runtime::Node {
            for number in INTERRUPTS {
                let (theirs, ours) = pipe::to_program()?;
                // Its reader looks whether there is something, and does not wait for it.
                pipe::set_nonblocking(&theirs)?;
                pass.push((theirs, number));
                interrupts.push(ours);
            }
        }
        let mut file = None;
        match zygote {
            Some(Zygote::Thaw(zygote)) => {
                pass.push((zygote.try_clone()?, SOURCE));
                file = Some(format!("/proc/self/fd/{SOURCE}").into());
            }
            _ => pass.push((crate::program::script(source.as_bytes())?, SOURCE)),
        }
        if let Some(Zygote::Freeze(zygote)) = zygote {
            pass.push((zygote.try_clone()?, zygote::FILE));
        }
        let is_thawed = file.is_some();
        let pid = sandpool_sys::workload::spawn(Workload {
            argv: argv.into_iter().map(Into::into).collect(),
            file,
            env: environment.with(&[]),
            directory: environment.directory().to_owned(),
            identity,
            stdio: [stdin, their_stdout, their_stderr],
            pass,
            terminal: false,
        })?;
        Ok(Self {
            pid: pid.cast_signed(),
            is_ready: false,
            is_thawed,
            booted: Instant::now(),
            to: Some(Sink::new(to)),
            from: Some(from),
            stdout: Some(stdout),
            stderr: Some(stderr),
            closed: None,
            inbox: Vec::new(),
            tail: Vec::new(),
            fault: None,
            interrupts,
            is_broken: false,
            break_at: None,
        })
    }

    /// Asks it to end its run and to keep its state.
    fn interrupt(&mut self, run: u64, now: Instant) {
        if let Some(to) = &mut self.to {
            to.push(&runner::encode(&ToRunner::Interrupt));
            let _ = to.flush();
        }
        if self.interrupts.is_empty() {
            procs::signal(&[self.pid], Signal::INT);
            return;
        }
        for interrupts in &self.interrupts {
            // A full pipe has other numbers in it: the code does not look, and SIGINT comes all the same.
            let number = u32::try_from(run).unwrap_or_default();
            let _ = rustix::io::write(interrupts, &number.to_le_bytes());
        }
        if !self.is_broken {
            self.break_at.get_or_insert(now + BREAK_AFTER);
        }
    }

    /// Ends it, for this reason. What follows is done when it has ended.
    fn end(&mut self, why: &str) {
        if self.fault.is_none() {
            self.fault = Some(why.to_owned());
            procs::signal(&[self.pid], Signal::KILL);
        }
    }

    fn drain(&self, log: &mut Log, now: Instant) {
        for (fd, channel) in [(&self.stdout, Channel::Stdout), (&self.stderr, Channel::Stderr)] {
            if let Some(fd) = fd {
                pipe::read_present(fd, |bytes| log.output(channel, bytes, now));
            }
        }
    }

    fn keep_tail(&mut self, bytes: &[u8]) {
        self.tail.extend_from_slice(bytes);
        let over = self.tail.len().saturating_sub(TAIL);
        self.tail.drain(..over);
    }
}

fn activate_message(activation: &Activation, is_first: bool) -> Vec<u8> {
    // One that is started anew has seeded its generators from the kernel, and must not repeat those of the first.
    let seed =
        if is_first { activation.seed.iter().map(|byte| format!("{byte:02x}")).collect() } else { String::new() };
    runner::encode(&ToRunner::Activate { env: &activation.env, seed })
}

/// Sixty-four bits that the workload cannot foresee.
#[must_use]
pub fn random() -> u64 {
    let mut bytes = [0; 8];
    // The kernel's generator is always there once it has been seeded, at boot; without it, there is no number.
    let _ = rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty());
    u64::from_le_bytes(bytes)
}
