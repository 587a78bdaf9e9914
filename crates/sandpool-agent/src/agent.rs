//! The loop: waits for whatever comes first, and hands it to the part that it belongs to.
//!
//! ```text
//! control: a dialled stream ----> streams ---> calls ---> files, programs, interpreter
//! a child has ended ------------> programs, interpreter --+
//! output of a program, news of the interpreter -----------+--> logs ---> streams that follow them
//! ```

mod calls;
mod terminals;

use std::cell::OnceCell;
use std::collections::BTreeMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags};
use rustix::process::{Pid, WaitOptions, WaitStatus};
use sandpool_sys::workload::{self, Identity};
use sandpool_wire::agent::{ExecKey, FromAgent, KEPT_EXECUTIONS, Outcome, PROTOCOL, Runtime, Stop};

use crate::container::{self, Container};
use crate::environment::Environment;
use crate::interpreter::{self, Interpreter, News, random};
use crate::log::{Channel, Log};
use crate::login::Login;
use crate::pipe::{self, Got, WAITING};
use crate::port;
use crate::program::{Ending, Program};
use crate::relay::{self, Relays};
use crate::stream::{Closed, Sources, Stream};
use crate::terminal::Terminal;
use crate::turn::Turn;
use crate::zygote::Zygote;

/// The most streams at one time; a further one is closed at once.
const STREAMS: usize = 256;

/// Bytes of finished executions' events that are kept in all, besides those that a stream has yet to send.
const KEPT_BYTES: usize = 64 * 1024 * 1024;

/// Pipes of programs whose execution has ended, that are still emptied for whoever writes to them. The oldest are
/// closed first.
const LEFTOVERS: usize = 256;

/// What is said of a run that has just begun waits this long for what follows: a short run is one message to whoever
/// asked for it, and wakes them once.
const HOLD: Duration = Duration::from_millis(1);

/// Bytes of the reason in [`FromAgent::Broken`].
const REASON: usize = 4096;

/// What an agent is started with.
#[derive(Debug)]
pub struct Config {
    /// What answers code.
    pub runtime: Runtime,
    /// The socket on which streams arrive: SEQPACKET, and one descriptor in each message. `D` is a stream to the agent; `P` and a port in two
    /// bytes asks for a connection to that port, which is handed over on the stream ([`crate::port`]). `R` comes
    /// from the first program of a machine: this is another sandbox from here on, that goes on from where one stood. Where a stream comes with
    /// it, the interpreter's process id is said there at once (i32, little endian; 0 for none, or for one that runs code and cannot be renewed
    /// before that ends), and one byte when that has been renewed.
    pub control: OwnedFd,
    /// Whom programs and the interpreter run as. `None` is for tests only: they stay what the agent is.
    pub identity: Option<Identity>,
    /// Where programs start.
    pub directory: PathBuf,
    /// The text of [`crate::environment::IMAGE_FILE`].
    pub image: Option<String>,
    /// What the interpreter has to do with its pool's zygote.
    pub zygote: Option<Zygote>,
    /// How it makes way for other sandboxes.
    pub turn: Turn,
    /// Descriptors can be received here and not be handed over: connections to ports are passed on, byte by byte.
    pub passes_on: bool,
}

/// The agent of a sandbox.
#[derive(Debug)]
pub struct Agent {
    runtime: Runtime,
    identity: Option<Identity>,
    control: OwnedFd,
    children: OwnedFd,
    boot_id: [u8; 16],
    environment: Environment,
    /// Read when the first command comes.
    login: OnceCell<Option<Login>>,
    is_activated: bool,
    /// `None` for a shell, and for a container.
    interpreter: Option<Interpreter>,
    container: Option<Container>,
    /// Whether [`FromAgent::Ready`] was said, or why it never will be.
    warmth: Warmth,
    version: String,
    programs: BTreeMap<ExecKey, Program>,
    /// In the order in which they were started.
    logs: Vec<Log>,
    /// In the order in which they were made.
    terminals: Vec<Terminal>,
    streams: BTreeMap<u64, Stream>,
    leftovers: BTreeMap<u64, OwnedFd>,
    /// Until when streams are sent nothing, because a run has just begun. See [`HOLD`].
    hold_until: Option<Instant>,
    turn: Turn,
    /// The connections that are passed on, where they cannot be handed over.
    relays: Option<Relays>,
    /// Who waits for the interpreter to be renewed.
    renewing: Option<OwnedFd>,
    /// Numbers streams and leftovers.
    next_id: u64,
}

#[derive(Clone, Debug)]
enum Warmth {
    Warming,
    Ready,
    Broken(String, bool),
}

/// What a descriptor belongs to.
#[derive(Clone, Copy, Debug)]
enum Owner {
    Control,
    Children,
    Stream(u64),
    Interpreter(interpreter::End),
    Container(container::End),
    Program(ExecKey, ProgramEnd),
    Leftover(u64),
    Relay(u64, relay::End),
}

/// Which of a program's descriptors.
#[derive(Clone, Copy, Debug)]
enum ProgramEnd {
    Stdin,
    Stdout,
    Stderr,
}

impl Agent {
    /// Starts the interpreter. Blocks SIGCHLD in the calling thread, which must be the only one.
    ///
    /// # Errors
    /// `EMFILE` and the like.
    pub fn new(config: Config) -> std::io::Result<Self> {
        let Config { runtime, control, identity, directory, image, zygote, turn, passes_on } = config;
        pipe::set_nonblocking(&control)?;
        workload::ignore_write_signals();
        let children = workload::child_signal()?;
        let environment = Environment::new(runtime, image.as_deref(), directory);
        let mut agent = Self {
            runtime,
            identity,
            control,
            children,
            boot_id: (u128::from(random()) << 64 | u128::from(random())).to_le_bytes(),
            environment,
            login: OnceCell::new(),
            is_activated: false,
            interpreter: None,
            container: None,
            warmth: Warmth::Warming,
            version: String::new(),
            programs: BTreeMap::new(),
            logs: Vec::new(),
            terminals: Vec::new(),
            streams: BTreeMap::new(),
            leftovers: BTreeMap::new(),
            hold_until: None,
            turn,
            relays: passes_on.then(Relays::default),
            renewing: None,
            next_id: 0,
        };
        if runtime == Runtime::Shell {
            match crate::program::shell_version(&agent.environment, identity) {
                Ok(version) => agent.warm(version),
                Err(error) => agent.broken(&format!("the shell cannot be started: {error}")),
            }
        } else if runtime == Runtime::Container {
            // Ready once its program listens.
            agent.container = Some(Container::default());
        } else {
            let interpreter = Interpreter::start(runtime, &agent.environment, identity, zygote);
            if let Some(reason) = interpreter.broken() {
                agent.broken(reason);
            }
            agent.interpreter = Some(interpreter);
        }
        Ok(agent)
    }

    /// Serves until the control socket is closed.
    ///
    /// # Errors
    /// What keeps the agent from waiting at all.
    pub fn run(mut self) -> std::io::Result<()> {
        loop {
            self.tick(Instant::now());
            self.pump();
            self.let_through();
            for (owner, events) in self.wait()? {
                if !self.ready(owner, events, Instant::now()) {
                    return Ok(());
                }
            }
        }
    }

    /// Connects those who need wait for it no longer.
    fn let_through(&mut self) {
        for (stream, port) in self.container.as_mut().map(Container::through).unwrap_or_default() {
            self.connect(stream, port);
        }
    }

    /// Waits until a descriptor is ready or something is due.
    fn wait(&mut self) -> std::io::Result<Vec<(Owner, PollFlags)>> {
        let now = Instant::now();
        let is_running = self.interpreter.as_ref().is_some_and(Interpreter::is_running);
        let works = is_running || self.programs.values().any(|program| !program.is_service);
        self.turn.tick(works, now);
        let limit = self.wakes().map(|at| {
            let left = at.saturating_duration_since(now);
            let seconds = i64::try_from(left.as_secs()).unwrap_or(i64::MAX);
            Timespec { tv_sec: seconds, tv_nsec: i64::from(left.subsec_nanos()) }
        });
        let (owners, mut fds): (Vec<_>, Vec<_>) = self
            .descriptors()
            .into_iter()
            .map(|(owner, fd, flags)| (owner, PollFd::from_borrowed_fd(fd, flags)))
            .unzip();
        match rustix::event::poll(&mut fds, limit.as_ref()) {
            Ok(_) => {}
            Err(Errno::INTR) => return Ok(Vec::new()),
            Err(error) => return Err(error.into()),
        }
        let events = fds.iter().map(PollFd::revents);
        Ok(owners.into_iter().zip(events).filter(|(_, events)| !events.is_empty()).collect())
    }

    /// Everything to wait for. What a child wrote comes before the news that it has ended.
    fn descriptors(&mut self) -> Vec<(Owner, BorrowedFd<'_>, PollFlags)> {
        let Self { interpreter, container, programs, logs, terminals, streams, leftovers, relays, .. } = self;
        let sources = Sources { logs, terminals };
        let is_holding = self.hold_until.is_some();
        let mut all = vec![(Owner::Control, self.control.as_fd(), PollFlags::IN)];
        for (id, stream) in streams {
            let mut flags = PollFlags::empty();
            flags.set(PollFlags::IN, stream.wants_input());
            flags.set(PollFlags::OUT, !is_holding && stream.wants_output(sources));
            all.push((Owner::Stream(*id), stream.fd.as_fd(), flags));
        }
        for (end, fd) in interpreter.iter().flat_map(Interpreter::descriptors) {
            // What a short run printed is read at its end.
            if is_holding && end == interpreter::End::Stdout {
                continue;
            }
            let flags = if end == interpreter::End::To { PollFlags::OUT } else { PollFlags::IN };
            all.push((Owner::Interpreter(end), fd, flags));
        }
        for (exec, program) in programs {
            if let Some(sink) = program.stdin.as_ref().filter(|sink| !sink.is_empty()) {
                all.push((Owner::Program(*exec, ProgramEnd::Stdin), sink.fd(), PollFlags::OUT));
            }
            let terminal = program.is_terminal.then(|| terminals.iter().find(|one| one.seen.exec == *exec)).flatten();
            let has_room = terminal.is_none_or(Terminal::has_room)
                && (!program.is_service || logs.iter().find(|log| log.exec() == *exec).is_none_or(Log::has_room));
            for (end, fd) in [(ProgramEnd::Stdout, &program.stdout), (ProgramEnd::Stderr, &program.stderr)] {
                if let Some(fd) = fd.as_ref().filter(|_| has_room) {
                    all.push((Owner::Program(*exec, end), fd.as_fd(), PollFlags::IN));
                }
            }
        }
        let of_container = container.iter().flat_map(Container::descriptors);
        all.extend(of_container.map(|(end, fd, flags)| (Owner::Container(end), fd, flags)));
        all.extend(leftovers.iter().map(|(id, fd)| (Owner::Leftover(*id), fd.as_fd(), PollFlags::IN)));
        let of_relays = relays.iter().flat_map(Relays::descriptors);
        all.extend(of_relays.map(|(id, end, fd, flags)| (Owner::Relay(id, end), fd, flags)));
        all.push((Owner::Children, self.children.as_fd(), PollFlags::IN));
        all
    }

    /// When [`Agent::tick`] has something to do.
    fn wakes(&self) -> Option<Instant> {
        let programs = self.programs.values().filter_map(Program::wakes);
        let interpreter = self.interpreter.iter().filter_map(Interpreter::wakes);
        let logs = self.logs.iter().filter_map(Log::due);
        let container = self.container.as_ref().and_then(Container::wakes);
        let terminals = self.terminals.iter().filter_map(Terminal::wakes);
        programs
            .chain(terminals)
            .chain(interpreter)
            .chain(container)
            .chain(logs)
            .chain(self.hold_until)
            .chain(self.turn.wakes())
            .min()
    }

    /// A descriptor is ready. `false` when there is nothing left to serve.
    fn ready(&mut self, owner: Owner, events: PollFlags, now: Instant) -> bool {
        match owner {
            Owner::Control => return self.take_stream(),
            Owner::Children => self.reap(now),
            Owner::Stream(id) => self.hear(id, events),
            Owner::Interpreter(end) => self.interpreter_ready(end, now),
            Owner::Container(end) => {
                if let Some(container) = &mut self.container {
                    container.ready(end);
                }
            }
            Owner::Program(exec, end) => self.program_ready(exec, end, now),
            Owner::Leftover(id) => {
                if self.leftovers.get(&id).is_some_and(|fd| pipe::read(fd, &mut Vec::new()) == Got::End) {
                    self.leftovers.remove(&id);
                }
            }
            Owner::Relay(id, end) => {
                if let Some(relays) = &mut self.relays {
                    relays.ready(id, end);
                }
            }
        }
        true
    }

    /// Answers whoever wants a connection to this port.
    fn connect(&mut self, stream: OwnedFd, port: u16) {
        match &mut self.relays {
            Some(relays) => relays.begin(stream, port),
            // Whoever asked may have gone.
            None => drop(port::hand_over(&stream, port)),
        }
    }

    /// This sandbox was one of several until now. It is nobody's again, and what is in it stays.
    fn renew(&mut self, asked: Option<OwnedFd>) {
        self.boot_id = (u128::from(random()) << 64 | u128::from(random())).to_le_bytes();
        self.is_activated = false;
        self.streams.clear();
        let pid = self.interpreter.as_ref().filter(|interpreter| !interpreter.is_running()).and_then(Interpreter::pid);
        if let Some(interpreter) = &mut self.interpreter {
            interpreter.renew(asked.is_some());
        }
        // Whoever does not listen goes on without it.
        self.renewing = asked.filter(|asked| rustix::io::write(asked, &pid.unwrap_or(0).to_le_bytes()) == Ok(4));
    }

    /// Takes one stream from the control socket. `false` when that is closed.
    fn take_stream(&mut self) -> bool {
        let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let mut word = [0; 3];
        let mut buffers = [std::io::IoSliceMut::new(&mut word)];
        let length = match rustix::net::recvmsg(&self.control, &mut buffers, &mut ancillary, RecvFlags::CMSG_CLOEXEC) {
            Ok(message) if message.bytes == 0 => return false,
            Ok(message) => message.bytes,
            Err(Errno::AGAIN | Errno::INTR) => return true,
            Err(_) => return false,
        };
        let received = ancillary.drain().find_map(|message| match message {
            RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
            _ => None,
        });
        if word[..length.min(3)] == *b"R" {
            self.renew(received);
            return true;
        }
        let Some(fd) = received else { return true };
        match word.get(..length) {
            Some([b'P', high, low]) => {
                // Whoever asked may have gone.
                let port = u16::from_be_bytes([*high, *low]);
                match &mut self.container {
                    Some(container) => container.connect(fd, port),
                    None => self.connect(fd, port),
                }
                return true;
            }
            Some(b"D") if self.streams.len() < STREAMS => {}
            _ => return true,
        }
        if pipe::set_nonblocking(&fd).is_err() {
            return true;
        }
        let mut stream = Stream::new(fd);
        stream.say(&FromAgent::Hello {
            protocol: PROTOCOL,
            boot_id: self.boot_id,
            runtime: self.runtime,
            version: self.version.clone(),
        });
        match &self.warmth {
            Warmth::Warming => {}
            Warmth::Ready => stream.say(&FromAgent::Ready),
            Warmth::Broken(reason, by_itself) => {
                stream.say(&FromAgent::Broken { reason: reason.clone(), by_itself: *by_itself });
            }
        }
        self.next_id += 1;
        self.streams.insert(self.next_id, stream);
        true
    }

    /// Reads from a stream.
    fn hear(&mut self, id: u64, events: PollFlags) {
        let Some(stream) = self.streams.get_mut(&id) else { return };
        let is_over = events.intersects(PollFlags::HUP | PollFlags::ERR);
        let heard = match stream.wants_input() {
            true if is_over || events.contains(PollFlags::IN) => stream.receive(),
            // Nobody is there to take the answers to what was asked and not yet read.
            false if is_over => Err(Closed),
            _ => Ok(()),
        };
        if heard.is_err() {
            self.streams.remove(&id);
        }
    }

    /// Does what the streams ask, and sends them what there is, until neither goes on without waiting.
    fn pump(&mut self) {
        loop {
            let ids: Vec<u64> = self.streams.keys().copied().collect();
            let mut was_asked = false;
            for id in ids {
                was_asked |= self.serve(id);
            }
            self.begin_code();
            self.forget();
            if self.hold_until.is_some() {
                if was_asked {
                    continue;
                }
                break;
            }
            let sources = Sources { logs: &self.logs, terminals: &self.terminals };
            self.streams.retain(|_, stream| stream.send(sources) != Err(Closed));
            self.let_go();
            if !was_asked {
                break;
            }
        }
        let now = Instant::now();
        for terminal in self.terminals.iter_mut().filter(|terminal| terminal.finished.is_none()) {
            let exec = terminal.seen.exec;
            terminal.look(self.streams.values().filter_map(|stream| stream.watches(exec)).max(), now);
        }
    }

    /// Does what one stream asks. Whether it asked for something.
    fn serve(&mut self, id: u64) -> bool {
        let mut was_asked = false;
        // Taken out, so that a call can change both the stream and the agent.
        let Some(mut stream) = self.streams.remove(&id) else { return false };
        if let Some(exec) = stream.held_by {
            let waits = |program: &Program| program.stdin.as_ref().is_some_and(|sink| sink.len() > WAITING);
            if !self.programs.get(&exec).is_some_and(waits) {
                stream.held_by = None;
            }
        }
        loop {
            match stream.take() {
                Ok(Some(message)) => {
                    was_asked = true;
                    self.answer(&mut stream, message);
                }
                Ok(None) => break,
                Err(Closed) => return was_asked,
            }
        }
        self.streams.insert(id, stream);
        was_asked
    }

    /// Does what is due.
    fn tick(&mut self, now: Instant) {
        if self.hold_until.is_some_and(|until| until <= now) {
            self.hold_until = None;
        }
        let mut ended = Vec::new();
        for (exec, program) in &mut self.programs {
            program.tick(now);
            if let Some(outcome) = program.done(now) {
                ended.push((*exec, outcome));
            }
        }
        for (exec, outcome) in ended {
            self.end_program(exec, outcome, now);
        }
        if let Some(news) = self.interpreter.as_mut().and_then(|interpreter| interpreter.tick(now)) {
            self.hear_news(news);
        }
        let news = self.container.as_mut().and_then(|container| container.tick(&self.environment, now));
        if let Some(news) = news {
            self.hear_container(news);
        }
        for log in &mut self.logs {
            log.pass_on(now);
        }
    }

    fn hear_container(&mut self, news: container::News) {
        match news {
            // Started again for its session, it has said so before.
            container::News::Listens if matches!(self.warmth, Warmth::Ready) => {}
            container::News::Listens => self.warm(String::new()),
            container::News::Over(why, by_itself) => self.over(&why, by_itself),
        }
    }

    /// Reaps every child that has ended, whoever started it.
    fn reap(&mut self, now: Instant) {
        workload::clear_child_signal(&self.children);
        while let Ok(Some((pid, status))) = rustix::process::wait(WaitOptions::NOHANG) {
            let pid = Pid::as_raw(Some(pid));
            if self.interpreter.as_ref().and_then(Interpreter::pid) == Some(pid) {
                self.interpreter_exited(&describe(status), now);
                continue;
            }
            let ended = self.container.as_mut().and_then(|one| one.exited(pid, exit_code(status), now));
            if let Some(news) = ended {
                self.hear_container(news);
                continue;
            }
            let found = self.programs.iter_mut().find(|(_, program)| program.pid == pid && program.exited.is_none());
            let Some((exec, program)) = found.map(|(exec, program)| (*exec, program)) else { continue };
            if let Some(mut kept) = kept(&mut self.logs, &mut self.terminals, exec) {
                program.drain(|channel, bytes| kept.output(channel, bytes, now));
            }
            program.exit(exit_code(status), now);
            if let Some(outcome) = program.done(now) {
                self.end_program(exec, outcome, now);
            }
        }
    }

    fn program_ready(&mut self, exec: ExecKey, end: ProgramEnd, now: Instant) {
        let Some(program) = self.programs.get_mut(&exec) else { return };
        let (fd, channel) = match end {
            ProgramEnd::Stdin => return program.flush_input(),
            ProgramEnd::Stdout => (&mut program.stdout, Channel::Stdout),
            ProgramEnd::Stderr => (&mut program.stderr, Channel::Stderr),
        };
        let mut output = Vec::new();
        match fd.as_ref().map(|fd| pipe::read(fd, &mut output)) {
            Some(Got::Bytes(_)) => {
                if let Some(mut kept) = kept(&mut self.logs, &mut self.terminals, exec) {
                    kept.output(channel, &output, now);
                }
            }
            Some(Got::End) => *fd = None,
            Some(Got::Nothing) | None => {}
        }
        if let Some(outcome) = program.done(now) {
            self.end_program(exec, outcome, now);
        }
    }

    fn end_program(&mut self, exec: ExecKey, outcome: Outcome, now: Instant) {
        let Some(mut program) = self.programs.remove(&exec) else { return };
        if let Some(mut kept) = kept(&mut self.logs, &mut self.terminals, exec) {
            program.drain(|channel, bytes| kept.output(channel, bytes, now));
            kept.finish(outcome, now.duration_since(program.began));
        }
        if let Some(at) = self.terminals.iter().position(|terminal| terminal.seen.exec == exec && terminal.is_leaving) {
            self.forget_terminal(None, at);
        }
        // A terminal is closed with its program, which hangs up whoever is left on it.
        if !program.is_terminal {
            self.keep_open([program.stdout.take(), program.stderr.take()].into_iter().flatten());
        }
    }

    /// Processes that outlive their execution may go on to write: into pipes that are emptied, not into broken ones.
    fn keep_open(&mut self, fds: impl IntoIterator<Item = OwnedFd>) {
        for fd in fds {
            self.next_id += 1;
            self.leftovers.insert(self.next_id, fd);
            if self.leftovers.len() > LEFTOVERS {
                self.leftovers.pop_first();
            }
        }
    }

    fn interpreter_ready(&mut self, end: interpreter::End, now: Instant) {
        let Some(interpreter) = &mut self.interpreter else { return };
        if self.hold_until.is_some() && end == interpreter::End::Stderr {
            // What was printed before it comes before it, as far as can be seen from here.
            self.hold_until = None;
            interpreter.ready(interpreter::End::Stdout, &mut self.logs, now);
        }
        if let Some(news) = interpreter.ready(end, &mut self.logs, now) {
            self.hear_news(news);
        }
    }

    fn interpreter_exited(&mut self, how: &str, now: Instant) {
        // What it said last may still be on the way.
        self.interpreter_ready(interpreter::End::From, now);
        let Some(interpreter) = &mut self.interpreter else { return };
        let (news, fds) = interpreter.exited(how, &self.environment, &mut self.logs, now);
        self.keep_open(fds);
        if let Some(news) = news {
            self.hear_news(news);
        }
    }

    fn hear_news(&mut self, news: News) {
        match news {
            News::Ready => {
                let version = self.interpreter.as_ref().map(|interpreter| interpreter.version().to_owned());
                self.warm(version.unwrap_or_default());
            }
            News::Broken(reason) => self.broken(&reason),
            News::Renewed => {
                if let Some(asked) = self.renewing.take() {
                    let _ = rustix::io::write(&asked, b"!");
                }
            }
            News::Finished { exec, outcome, duration, state_lost } => {
                self.hold_until = None;
                if let Some(log) = crate::log::find(&mut self.logs, exec) {
                    // A run that never began ends in the same order as every other.
                    if log.size() == 0 {
                        log.started();
                    }
                    log.finish(outcome, duration, state_lost);
                }
            }
        }
    }

    fn warm(&mut self, version: String) {
        self.version = version;
        self.warmth = Warmth::Ready;
        for stream in self.streams.values_mut() {
            stream.say(&FromAgent::Ready);
        }
    }

    fn broken(&mut self, reason: &str) {
        self.over(reason, false);
    }

    fn over(&mut self, reason: &str, by_itself: bool) {
        // Who hears of it may end all of this: whoever has waited has an answer before.
        self.let_through();
        let mut reason = reason.to_owned();
        reason.truncate(reason.floor_char_boundary(REASON));
        for stream in self.streams.values_mut() {
            stream.say(&FromAgent::Broken { reason: reason.clone(), by_itself });
        }
        self.warmth = Warmth::Broken(reason, by_itself);
    }

    /// Begins the code that waits for a warm interpreter.
    fn begin_code(&mut self) {
        let Some(interpreter) = &mut self.interpreter else { return };
        if let Some(log) = interpreter.running().and_then(|exec| crate::log::find(&mut self.logs, exec)) {
            let now = Instant::now();
            if interpreter.begin(log, now) {
                self.hold_until = Some(now + HOLD);
            }
        }
    }

    /// Lets go of what services said and their listeners were sent, and ends those that nobody listens to any more.
    fn let_go(&mut self) {
        let now = Instant::now();
        for (exec, program) in self.programs.iter_mut().filter(|(_, program)| program.is_service) {
            let Some(log) = crate::log::find(&mut self.logs, *exec) else { continue };
            match self.streams.values().filter_map(|stream| stream.position(*exec)).min() {
                Some(position) => log.let_go(position),
                None => {
                    log.let_go(usize::MAX);
                    if program.ending != Ending::No {
                        continue;
                    }
                    program.ending.request(Stop::Kill, now);
                    program.tick(now);
                }
            }
        }
    }

    /// Drops the logs of the oldest finished executions over the limits, but none that a stream has yet to send.
    fn forget(&mut self) {
        let is_kept =
            |log: &Log| log.outcome().is_none() || self.streams.values().any(|one| one.awaits(log.exec(), log));
        let finished = self.logs.iter().filter(|log| log.outcome().is_some());
        let (mut count, mut bytes) = finished.fold((0, 0), |(count, bytes), log| (count + 1, bytes + log.size()));
        let mut index = 0;
        while index < self.logs.len() && (count > KEPT_EXECUTIONS || (bytes > KEPT_BYTES && count > 1)) {
            if is_kept(&self.logs[index]) {
                index += 1;
            } else {
                count -= 1;
                bytes -= self.logs.remove(index).size();
            }
        }
    }
}

/// What is kept of what a program writes.
enum Kept<'a> {
    Log(&'a mut Log),
    Terminal(&'a mut Terminal),
}

fn kept<'a>(logs: &'a mut [Log], terminals: &'a mut [Terminal], exec: ExecKey) -> Option<Kept<'a>> {
    let terminal = terminals.iter_mut().find(|terminal| terminal.seen.exec == exec).map(Kept::Terminal);
    terminal.or_else(|| crate::log::find(logs, exec).map(Kept::Log))
}

impl Kept<'_> {
    fn output(&mut self, channel: Channel, bytes: &[u8], now: Instant) {
        match self {
            Self::Log(log) => log.output(channel, bytes, now),
            Self::Terminal(terminal) => terminal.output(bytes),
        }
    }

    fn finish(&mut self, outcome: Outcome, duration: Duration) {
        match self {
            Self::Log(log) => log.finish(outcome, duration, false),
            Self::Terminal(terminal) => terminal.finish(outcome, duration),
        }
    }
}

/// The exit code that a shell would give.
fn exit_code(status: WaitStatus) -> i32 {
    match (status.exit_status(), status.terminating_signal()) {
        (Some(code), _) => code,
        (None, Some(signal)) => 128 + signal,
        // Neither stopped nor continued children are waited for.
        (None, None) => 255,
    }
}

fn describe(status: WaitStatus) -> String {
    match (status.exit_status(), status.terminating_signal()) {
        (Some(code), _) => format!("it exited with code {code}"),
        (None, Some(9)) => "it was killed (signal 9), perhaps for want of memory".to_owned(),
        (None, Some(signal)) => format!("signal {signal} ended it"),
        (None, None) => "it ended".to_owned(),
    }
}
