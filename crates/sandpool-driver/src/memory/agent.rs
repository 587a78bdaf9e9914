//! The agent of a sandbox in memory: speaks the agent's protocol, and runs scripts (see [`super::script`]).

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use sandpool_wire::agent::{
    Activation, Answer, Call, Event, ExecKey, Execute, Finished, FromAgent, KEPT_EXECUTIONS, MAX_CHUNK, MAX_CODE,
    Outcome, PROTOCOL, Raised, Refusal, Rich, Runtime, Stdin, Stop, ToAgent, Work,
};
use sandpool_wire::frame;
use sandpool_wire::terminal::{self, Attach, Attached, News, Signal, Size, TERMINALS};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::sync::{mpsc, watch};
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::Instant;

use super::files::Files;
use super::saved::{self, Item, Writer};
use super::script::{Statement, scalar};

/// From an interrupt that is not heeded to the kill, as in the real agent.
const PATIENCE: Duration = Duration::from_secs(7);

/// The most uploads that one stream may have open.
const MAX_UPLOADS: usize = 16;

/// Frames that wait to be written to a stream; whoever has more to say waits.
const BACKLOG: usize = 16;

/// Pieces of input that wait for a program; the stream that brings more waits.
const INPUTS: usize = 16;

/// Bytes in one output event.
const PIECE: usize = 64 * 1024;

/// The smallest figure: one black pixel.
const PNG: &[u8] = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\0\0\x01\0\0\0\x01\x08\0\0\0\0\x3a\x7e\x9b\x55\0\0\0\nIDAT\x78\x9c\
\x63\x60\0\0\0\x02\0\x01\x48\xaf\xa4\x71\0\0\0\0IEND\xae\x42\x60\x82";

/// Nanoseconds from 1970 to the moment at which every sandbox's clock starts.
const CLOCK: i64 = 1_767_225_600_000_000_000;

/// One boot of one sandbox.
pub(super) struct Agent {
    pub(super) boot_id: [u8; 16],
    runtime: Runtime,
    began: Instant,
    warmth: watch::Sender<Warmth>,
    state: Mutex<State>,
    /// All that goes on inside. `None` once the sandbox has ended.
    tasks: Mutex<Option<JoinSet<()>>>,
    /// Ends the sandbox from inside.
    crash: Box<dyn Fn() + Send + Sync>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Warmth {
    Warming,
    Ready,
    Broken(String),
}

struct State {
    activation: Option<Activation>,
    variables: BTreeMap<String, String>,
    files: Files,
    /// In the order in which they were started.
    logs: Vec<Arc<Log>>,
    runs: HashMap<ExecKey, Run>,
    /// The code that the interpreter runs.
    code: Option<ExecKey>,
    /// In the order in which they were made; the second of each is held by all who look at it.
    terminals: Vec<(terminal::Terminal, Arc<()>)>,
}

/// The handles on something that runs.
#[derive(Clone)]
struct Run {
    stop: Arc<watch::Sender<Option<Stop>>>,
    input: mpsc::Sender<Vec<u8>>,
}

/// What is kept of one execution.
struct Log {
    exec: ExecKey,
    began: Instant,
    kept: Mutex<Kept>,
    version: watch::Sender<()>,
}

struct Kept {
    events: Vec<Event>,
    left: u64,
    dropped: (u64, u64),
    outcome: Option<Outcome>,
}

impl std::fmt::Debug for Agent {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("Agent").field("boot_id", &self.boot_id).finish_non_exhaustive()
    }
}

impl Agent {
    pub(super) fn new(runtime: Runtime, boot_id: [u8; 16], room: u64, crash: Box<dyn Fn() + Send + Sync>) -> Self {
        let state = State {
            activation: None,
            variables: BTreeMap::new(),
            files: Files::new(room, CLOCK),
            logs: Vec::new(),
            runs: HashMap::new(),
            code: None,
            terminals: Vec::new(),
        };
        Self {
            boot_id,
            runtime,
            began: Instant::now(),
            warmth: watch::channel(Warmth::Warming).0,
            state: Mutex::new(state),
            tasks: Mutex::new(Some(JoinSet::new())),
            crash,
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn clock(&self) -> i64 {
        CLOCK.saturating_add(i64::try_from(self.began.elapsed().as_nanos()).unwrap_or(i64::MAX))
    }

    pub(super) fn warm(&self, warmth: Warmth) {
        self.warmth.send_replace(warmth);
    }

    /// All of it but what runs.
    pub(super) fn save(&self) -> Vec<u8> {
        let state = self.state();
        let mut out = Writer::default();
        for (name, value) in &state.variables {
            out.push(&Item::Variable(name.clone(), value.clone()));
        }
        state.files.save(&["/".to_owned()], &mut out);
        for log in &state.logs {
            let kept = log.kept();
            if let Some(outcome) = kept.outcome.clone() {
                let (events, dropped) = (kept.events.clone(), kept.dropped);
                out.push(&Item::Ended { exec: log.exec, events, dropped, outcome });
            }
        }
        out.finish()
    }

    /// Becomes what was saved of another, before anybody has this.
    pub(super) fn become_saved(&self, items: Vec<Item>) {
        self.state().become_saved(items);
    }

    /// Bytes of files, and things that run.
    pub(super) fn usage(&self) -> (u64, usize) {
        let state = self.state();
        (state.files.bytes(), state.runs.len())
    }

    /// Starts a task that ends with the sandbox.
    pub(super) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) -> Option<AbortHandle> {
        let mut tasks = self.tasks.lock().unwrap_or_else(PoisonError::into_inner);
        let tasks = tasks.as_mut()?;
        while tasks.try_join_next().is_some() {}
        Some(tasks.spawn(task))
    }

    /// Ends all that goes on inside, and every stream.
    pub(super) fn end(&self) {
        self.tasks.lock().unwrap_or_else(PoisonError::into_inner).take();
    }

    /// Serves one stream until its other end is closed.
    pub(super) async fn serve(self: Arc<Self>, stream: DuplexStream) {
        let (mut input, mut output) = tokio::io::split(stream);
        let (say, mut said) = mpsc::channel::<FromAgent>(BACKLOG);
        let write = async {
            while let Some(message) = said.recv().await {
                let Ok(bytes) = frame::encode(&message) else { return };
                if output.write_all(&bytes).await.is_err() {
                    return;
                }
            }
        };
        let mut warmth = self.warmth.subscribe();
        let version = if *warmth.borrow_and_update() == Warmth::Ready { "1.0 (memory)" } else { "" };
        let hello = FromAgent::Hello {
            protocol: PROTOCOL,
            boot_id: self.boot_id,
            runtime: self.runtime,
            version: version.to_owned(),
        };
        let announce = async {
            // Its sender lives in `self`.
            let settled = warmth.wait_for(|warmth| *warmth != Warmth::Warming).await.map(|warmth| warmth.clone());
            let message = match settled {
                Ok(Warmth::Broken(reason)) => FromAgent::Broken { reason, by_itself: false },
                _ => FromAgent::Ready,
            };
            // A closed stream ends everything here.
            let _ = say.send(message).await;
            std::future::pending::<()>().await;
        };
        let services = Mutex::new(Vec::new());
        let hear = async {
            let mut uploads = Uploads::default();
            let mut followed: HashMap<ExecKey, AbortHandle> = HashMap::new();
            while let Ok(message) = read(&mut input).await {
                if let ToAgent::Call { call: Call::Execute(Execute { exec, work: Work::Service { .. }, .. }), .. } =
                    &message
                {
                    services.lock().unwrap_or_else(PoisonError::into_inner).push(*exec);
                }
                self.answer(&say, &mut uploads, &mut followed, message).await;
            }
        };
        if say.send(hello).await.is_ok() {
            tokio::select! {
                () = write => {}
                () = announce => {}
                () = hear => {}
            }
        }
        // Nobody listens to them any more.
        for exec in services.lock().unwrap_or_else(PoisonError::into_inner).iter() {
            if let Some(run) = self.state().runs.get(exec) {
                run.stop.send_replace(Some(Stop::Kill));
            }
        }
    }

    async fn answer(
        self: &Arc<Self>,
        say: &mpsc::Sender<FromAgent>,
        uploads: &mut Uploads,
        followed: &mut HashMap<ExecKey, AbortHandle>,
        message: ToAgent,
    ) {
        match message {
            ToAgent::Call { request, call } => {
                let (mut follow, mut look) = (None, None);
                let result = match call {
                    Call::Execute(execute) => {
                        let exec = execute.exec;
                        let log = self.execute(&execute);
                        log.map(|log| follow = (!followed.contains_key(&exec)).then_some((log, 0)))
                            .map(|()| Answer::Done)
                    }
                    Call::Attach { exec, after_seq } => self.ready_for(|state| {
                        let log = state.log(exec).ok_or(Refusal::NotFound)?;
                        follow = Some((log, after_seq));
                        Ok(Answer::Done)
                    }),
                    Call::Terminal(attach) => self.attach(&attach).map(|(attached, log, looking)| {
                        look = Some((log, attached.offset, looking));
                        Answer::Attached(attached)
                    }),
                    call => self.call(uploads, call),
                };
                // A closed stream is noticed by its reader.
                let _ = say.send(FromAgent::Reply { request, result }).await;
                if let Some((log, offset, looking)) = look {
                    let say = say.clone();
                    self.spawn(async move {
                        log.show(offset, &say).await;
                        drop(looking);
                    });
                }
                if let Some((log, after)) = follow {
                    let (exec, say) = (log.exec, say.clone());
                    if let Some(task) = self.spawn(async move { log.follow(after, &say).await })
                        && let Some(before) = followed.insert(exec, task)
                    {
                        before.abort();
                    }
                }
            }
            ToAgent::Input { exec, data } => {
                let input = self.state().runs.get(&exec).map(|run| run.input.clone());
                if let Some(input) = input {
                    // What has ended takes no more.
                    let _ = input.send(data).await;
                }
            }
            ToAgent::Resize { exec, rows, columns } => {
                if let Some((terminal, _)) = self.state().terminals.iter_mut().find(|(one, _)| one.exec == exec) {
                    terminal.size = Size { rows, columns };
                }
            }
            ToAgent::Signal { exec, signal } => {
                let ends = !matches!(signal, Signal::Tstp | Signal::Cont);
                if let Some(run) = self.state().runs.get(&exec).filter(|_| ends) {
                    run.stop.send_replace(Some(Stop::Kill));
                }
            }
        }
    }

    /// Does something that only a sandbox with a session does.
    fn ready_for<T>(&self, work: impl FnOnce(&mut State) -> Result<T, Refusal>) -> Result<T, Refusal> {
        let mut state = self.state();
        if state.activation.is_none() {
            return Err(Refusal::Invalid("no session has taken this sandbox".to_owned()));
        }
        work(&mut state)
    }

    pub(super) fn activate(&self, activation: Activation) -> Result<Answer, Refusal> {
        let mut state = self.state();
        if state.activation.is_some() {
            return Err(Refusal::Invalid("a session has already taken this sandbox".to_owned()));
        }
        state.activation = Some(activation);
        Ok(Answer::Done)
    }

    fn call(&self, uploads: &mut Uploads, call: Call) -> Result<Answer, Refusal> {
        let now = self.clock();
        match call {
            Call::Ping => return Ok(Answer::Done),
            Call::Activate(activation) => return self.activate(activation),
            // Whose programs are scripts has none that listens.
            Call::Begin(_) | Call::Identify(_) => return Ok(Answer::Done),
            Call::Logs { .. } => return Ok(Answer::Logs { data: b"begun\n".to_vec(), first: 0, end: 6 }),
            _ => {}
        }
        self.ready_for(|state| match call {
            Call::Stop { exec, how } => {
                if let Some(run) = state.runs.get(&exec) {
                    run.stop.send_modify(|stop| {
                        // A kill is not taken back.
                        if *stop != Some(Stop::Kill) {
                            *stop = Some(how);
                        }
                    });
                } else if state.log(exec).is_none() {
                    return Err(Refusal::NotFound);
                }
                Ok(Answer::Done)
            }
            Call::Executions => {
                let is_terminal = |exec: ExecKey| state.terminals.iter().any(|(one, _)| one.exec == exec);
                let executions = state.logs.iter().filter(|log| !is_terminal(log.exec));
                let known = executions.map(|log| (log.exec, log.kept().outcome.clone()));
                Ok(Answer::Executions(known.collect()))
            }
            Call::Stat { path } => state.files.stat(&path),
            Call::List { path, recursive, after, limit } => state.files.list(&path, recursive, after.as_deref(), limit),
            Call::Read { path, offset, length } => state.files.read(&path, offset, length),
            Call::Remove { path } => state.files.remove(&path),
            Call::WriteOpen { path } => {
                if uploads.open.len() >= MAX_UPLOADS {
                    return Err(Refusal::Invalid(format!("more than {MAX_UPLOADS} uploads on one stream")));
                }
                state.files.prepare(&path, now)?;
                uploads.last = uploads.last.wrapping_add(1);
                uploads.open.insert(uploads.last, (path, Vec::new()));
                Ok(Answer::Upload(uploads.last))
            }
            Call::Write { data, .. } if data.len() > MAX_CHUNK => {
                Err(Refusal::Invalid(format!("more than {MAX_CHUNK} bytes at a time")))
            }
            Call::Write { upload, data } => {
                let unfinished = uploads.open.values().map(|(_, data)| length(data.len())).sum();
                let (_, file) = uploads.open.get_mut(&upload).ok_or(Refusal::NotFound)?;
                state.files.fits(unfinished, length(data.len()))?;
                file.extend(data);
                Ok(Answer::Done)
            }
            Call::WriteCommit { upload } => {
                let (path, data) = uploads.open.remove(&upload).ok_or(Refusal::NotFound)?;
                state.files.put(&path, data, now)
            }
            Call::Pack { roots } => {
                let mut out = Writer::default();
                state.files.save(&roots, &mut out);
                uploads.packing = Some(out.finish());
                Ok(Answer::Done)
            }
            Call::PackNext => {
                let mut data = uploads.packing.take().ok_or(Refusal::NotFound)?;
                let rest = data.split_off(data.len().min(MAX_CHUNK));
                let is_last = rest.is_empty();
                uploads.packing = Some(rest).filter(|_| !is_last);
                Ok(Answer::Packed { data, is_last })
            }
            Call::Unpack { .. } => {
                uploads.unpacking = Some(Vec::new());
                Ok(Answer::Done)
            }
            Call::UnpackNext { data } => {
                let whole = uploads.unpacking.as_mut().ok_or(Refusal::NotFound)?;
                whole.extend(data);
                state.files.fits(0, length(whole.len()))?;
                Ok(Answer::Done)
            }
            Call::UnpackEnd => {
                let whole = uploads.unpacking.take().ok_or(Refusal::NotFound)?;
                let items = saved::items(&whole).map_err(|error| Refusal::Invalid(error.to_string()))?;
                state.become_saved(items);
                Ok(Answer::Done)
            }
            Call::Given => {
                let given = state.activation.as_ref().map(|activation| activation.env.clone());
                Ok(Answer::Given(given.unwrap_or_default()))
            }
            Call::WriteAbort { upload } => uploads.open.remove(&upload).map(|_| Answer::Done).ok_or(Refusal::NotFound),
            Call::Terminals => {
                let seen = state.terminals.iter().map(|(terminal, looking)| terminal::Terminal {
                    outcome: state.log(terminal.exec).and_then(|log| log.kept().outcome.clone()),
                    attached: u32::try_from(Arc::strong_count(looking) - 1).unwrap_or(u32::MAX),
                    ..terminal.clone()
                });
                Ok(Answer::Terminals(seen.collect()))
            }
            Call::HangUp { name } => {
                let at = state.terminals.iter().position(|(terminal, _)| terminal.name == name);
                let (terminal, _) = state.terminals.remove(at.ok_or(Refusal::NotFound)?);
                if let Some(run) = state.runs.get(&terminal.exec) {
                    run.stop.send_replace(Some(Stop::Kill));
                }
                Ok(Answer::Done)
            }
            Call::Terminal(_)
            | Call::Ping
            | Call::Activate(_)
            | Call::Begin(_)
            | Call::Identify(_)
            | Call::Logs { .. }
            | Call::Execute(_)
            | Call::Attach { .. } => Err(Refusal::Failed("not a call of this kind".to_owned())),
        })
    }

    /// Finds or makes a terminal. All of its output is kept.
    fn attach(self: &Arc<Self>, attach: &Attach) -> Result<(Attached, Arc<Log>, Arc<()>), Refusal> {
        let found = self.ready_for(|state| {
            let found = state
                .terminals
                .iter_mut()
                .find(|(one, _)| one.name == attach.name && attach.only.is_none_or(|only| only == one.exec));
            let Some((terminal, looking)) = found else { return Ok(None) };
            terminal.size = attach.size.unwrap_or(terminal.size);
            let (terminal, looking) = (terminal.clone(), Arc::clone(looking));
            let log = state.log(terminal.exec).ok_or(Refusal::NotFound)?;
            Ok(Some((terminal, log, looking)).filter(|(_, log, _)| attach.make.is_none() || !log.has_ended()))
        })?;
        let (terminal, log, looking, is_new) = match (found, &attach.make) {
            (Some((terminal, log, looking)), _) => (terminal, log, looking, false),
            (None, Some(make)) if attach.only.is_none() => {
                let argv = if make.argv.is_empty() { vec!["cat".to_owned()] } else { make.argv.clone() };
                let size = attach.size.unwrap_or(Size { rows: 24, columns: 80 });
                let terminal = terminal::Terminal {
                    name: attach.name.clone(),
                    exec: make.exec,
                    argv: argv.clone(),
                    size,
                    started_ms: u64::try_from(self.clock() / 1_000_000).unwrap_or(0),
                    outcome: None,
                    attached: 0,
                };
                let looking = Arc::new(());
                self.ready_for(|state| {
                    state.terminals.retain(|(one, _)| one.name != attach.name);
                    if state.terminals.len() >= TERMINALS {
                        return Err(Refusal::Full(u32::try_from(TERMINALS).unwrap_or(u32::MAX)));
                    }
                    state.terminals.push((terminal.clone(), Arc::clone(&looking)));
                    Ok(())
                })?;
                let Size { rows, columns } = size;
                let work = Work::Terminal { argv, rows, columns, term: make.term.clone() };
                let execute = Execute { exec: make.exec, work, timeout_ms: u64::MAX, output_limit: u64::MAX };
                (terminal, self.execute(&execute)?, looking, true)
            }
            (None, _) => return Err(Refusal::NotFound),
        };
        let attached = u32::try_from(Arc::strong_count(&looking) - 1).unwrap_or(u32::MAX);
        let terminal = terminal::Terminal { outcome: log.kept().outcome.clone(), attached, ..terminal };
        let offset = if attach.after > log.written() { 0 } else { attach.after };
        Ok((Attached { terminal, offset, missed: 0, is_new }, log, looking))
    }

    /// Starts an execution; one that is known already is left as it is.
    fn execute(self: &Arc<Self>, execute: &Execute) -> Result<Arc<Log>, Refusal> {
        let runtime = self.runtime;
        let (log, program) = self.ready_for(|state| {
            if let Some(log) = state.log(execute.exec) {
                return Ok((log, None));
            }
            let program = Program::of(execute, runtime)?;
            if program.is_code && state.code.is_some() {
                return Err(Refusal::Busy);
            }
            let is_service = matches!(execute.work, Work::Service { .. });
            let log = Arc::new(Log::new(execute.exec, if is_service { u64::MAX } else { execute.output_limit }));
            state.logs.push(Arc::clone(&log));
            let (input, inputs) = mpsc::channel(INPUTS);
            let (stop, stops) = watch::channel(None);
            state.runs.insert(execute.exec, Run { stop: Arc::new(stop), input });
            if program.is_code {
                state.code = Some(execute.exec);
            }
            state.forget();
            Ok((log, Some((program, inputs, stops))))
        })?;
        if let Some((program, inputs, stops)) = program {
            let (agent, kept) = (Arc::clone(self), Arc::clone(&log));
            self.spawn(async move { agent.run(&kept, program, inputs, stops).await });
        }
        Ok(log)
    }

    async fn run(
        &self,
        log: &Log,
        program: Program,
        inputs: mpsc::Receiver<Vec<u8>>,
        stops: watch::Receiver<Option<Stop>>,
    ) {
        log.push(Event::Started);
        let deaf = AtomicBool::new(false);
        let is_code = program.is_code;
        let timeout = program.timeout;
        let end = tokio::select! {
            biased;
            end = stopped(stops, timeout, &deaf) => end,
            end = self.statements(log, program, inputs, &deaf) => end,
        };
        let state_lost = is_code && end.is_process_gone;
        {
            let mut state = self.state();
            state.runs.remove(&log.exec);
            if is_code {
                state.code = None;
            }
            if state_lost {
                state.variables.clear();
            }
        }
        log.finish(end.outcome, state_lost);
        self.state().forget();
    }

    async fn statements(
        &self,
        log: &Log,
        program: Program,
        mut inputs: mpsc::Receiver<Vec<u8>>,
        deaf: &AtomicBool,
    ) -> End {
        let Program { script, stdin, is_code, is_fresh, .. } = program;
        // A namespace of its own is thrown away with this.
        let mut fresh = BTreeMap::new();
        let raise = |name: &str, message: String| {
            let traceback = format!("Traceback (most recent call last):\n{name}: {message}");
            log.push(Event::Stderr(format!("{traceback}\n").into_bytes()));
            if !is_code {
                return End::of(Outcome::Exited(1));
            }
            log.push(Event::Error(Raised { name: name.to_owned(), message, traceback }));
            End::of(Outcome::Raised)
        };
        for line in script.lines() {
            let statement = match Statement::parse(line) {
                Ok(None) => continue,
                Ok(Some(statement)) => statement,
                Err(why) => return raise("SyntaxError", why),
            };
            match statement {
                Statement::Out(text) => log.output(true, format!("{text}\n").as_bytes()),
                Statement::Err(text) => log.output(false, format!("{text}\n").as_bytes()),
                Statement::Flood(mut bytes) => {
                    while bytes > 0 {
                        let piece = bytes.min(PIECE);
                        log.output(true, &vec![b'x'; piece]);
                        bytes -= piece;
                        tokio::task::yield_now().await;
                    }
                }
                Statement::Cat => match &stdin {
                    Stdin::Empty => {}
                    Stdin::Bytes(bytes) => log.output(true, bytes),
                    Stdin::Stream => {
                        while let Some(data) = inputs.recv().await.filter(|data| !data.is_empty()) {
                            log.output(true, &data);
                        }
                    }
                },
                Statement::Value(text) => log.push(Event::Result(value(text))),
                Statement::Text(text) => log.push(Event::Result(Rich { text, ..Rich::default() })),
                Statement::Png => {
                    let forms = vec![("image/png".to_owned(), PNG.to_vec())];
                    log.push(Event::Display(Rich { text: "<Figure>".to_owned(), forms, ..Rich::default() }));
                }
                Statement::Set(name, value) => {
                    if is_fresh {
                        fresh.insert(name, value);
                    } else {
                        self.state().variables.insert(name, value);
                    }
                }
                Statement::Get(name) => {
                    let found =
                        if is_fresh { fresh.get(&name).cloned() } else { self.state().variables.get(&name).cloned() };
                    match found {
                        Some(text) => log.push(Event::Result(value(text))),
                        None => return raise("NameError", format!("name '{name}' is not defined")),
                    }
                }
                Statement::Env(name) => {
                    let value = self.state().activation.as_ref().and_then(|activation| {
                        activation.env.iter().find(|(other, _)| *other == name).map(|(_, value)| value.clone())
                    });
                    log.output(true, format!("{}\n", value.unwrap_or_default()).as_bytes());
                }
                Statement::Save(path, text) => {
                    let now = self.clock();
                    let mut state = self.state();
                    let data = text.into_bytes();
                    let saved = state.files.fits(0, length(data.len()));
                    let saved = saved.and_then(|()| state.files.put(&path, data, now));
                    drop(state);
                    if let Err(refusal) = saved {
                        return raise("OSError", refusal.to_string());
                    }
                }
                Statement::Load(path) => {
                    let mut offset = 0;
                    loop {
                        let read = self.state().files.read(&path, offset, u32::MAX);
                        match read {
                            Ok(Answer::Data { data, .. }) if !data.is_empty() => {
                                offset += length(data.len());
                                log.output(true, &data);
                            }
                            Ok(_) => break,
                            Err(refusal) => return raise("OSError", refusal.to_string()),
                        }
                    }
                }
                Statement::Sleep(time) => tokio::time::sleep(time).await,
                Statement::Wait => std::future::pending::<()>().await,
                Statement::Hang => {
                    deaf.store(true, Ordering::SeqCst);
                    std::future::pending::<()>().await;
                }
                Statement::Raise(name, message) => return raise(&name, message),
                Statement::Exit(code) if is_code => return raise("SystemExit", code.to_string()),
                Statement::Exit(code) => return End::of(Outcome::Exited(code)),
                Statement::Die => {
                    let outcome = if is_code {
                        Outcome::Died("the interpreter ended: it was killed (signal 9)".to_owned())
                    } else {
                        Outcome::Exited(137)
                    };
                    return End { outcome, is_process_gone: true };
                }
                Statement::Crash => {
                    (self.crash)();
                    std::future::pending::<()>().await;
                }
            }
            // Between two statements others get their turn, and a stop is seen.
            tokio::task::yield_now().await;
        }
        End::of(if is_code { Outcome::Succeeded } else { Outcome::Exited(0) })
    }
}

/// How a script ended.
struct End {
    outcome: Outcome,
    is_process_gone: bool,
}

impl End {
    fn of(outcome: Outcome) -> Self {
        Self { outcome, is_process_gone: false }
    }
}

/// Completes when the script has to end: by a stop, or by its time limit.
async fn stopped(mut stops: watch::Receiver<Option<Stop>>, timeout: Duration, deaf: &AtomicBool) -> End {
    // The sender is kept as long as this runs.
    let is_late = tokio::time::timeout(timeout, stops.wait_for(Option::is_some)).await.is_err();
    let is_kill = *stops.borrow() == Some(Stop::Kill);
    let outcome = if is_late { Outcome::TimedOut } else { Outcome::Cancelled };
    let is_deaf = deaf.load(Ordering::SeqCst);
    if is_deaf && !is_kill {
        // A kill ends the patience; its end is a kill.
        let _ = tokio::time::timeout(PATIENCE, stops.wait_for(|stop| *stop == Some(Stop::Kill))).await;
    }
    End { outcome, is_process_gone: is_deaf || is_kill }
}

/// A piece of work, ready to run.
struct Program {
    script: String,
    stdin: Stdin,
    is_code: bool,
    is_fresh: bool,
    timeout: Duration,
}

impl Program {
    fn of(execute: &Execute, runtime: Runtime) -> Result<Self, Refusal> {
        let (script, stdin, is_code, is_fresh) = match execute.work.clone() {
            Work::Code { .. } if runtime == Runtime::Shell => {
                return Err(Refusal::Invalid("this sandbox runs commands, and has no interpreter for code".to_owned()));
            }
            Work::Code { code, fresh } => (code, Stdin::Empty, true, fresh),
            Work::Shell { command, stdin } => (command, stdin, false, false),
            Work::Argv { argv, stdin } => (named(&argv)?, stdin, false, false),
            Work::Terminal { argv, .. } | Work::Service { argv, .. } => (named(&argv)?, Stdin::Stream, false, false),
        };
        if script.len() > MAX_CODE {
            return Err(Refusal::Invalid(format!("code or command is longer than {MAX_CODE} bytes")));
        }
        let is_service = matches!(execute.work, Work::Service { .. });
        let timeout = Duration::from_millis(if is_service { u64::MAX } else { execute.timeout_ms });
        Ok(Self { script, stdin, is_code, is_fresh, timeout })
    }
}

fn named(argv: &[String]) -> Result<String, Refusal> {
    match argv.first() {
        None => Err(Refusal::Invalid("no program is named".to_owned())),
        Some(_) => Ok(argv.join(" ")),
    }
}

impl State {
    fn become_saved(&mut self, items: Vec<Item>) {
        let mut last = String::new();
        for item in items {
            match item {
                Item::Variable(name, value) => drop(self.variables.insert(name, value)),
                Item::Node { path, data, modified_ns } => {
                    last.clone_from(&path);
                    self.files.load(path, data, modified_ns);
                }
                Item::More(data) => self.files.extend(&last, &data),
                Item::Ended { exec, events, dropped, outcome } => {
                    let log = Log::new(exec, 0);
                    *log.kept() = Kept { events, left: 0, dropped, outcome: Some(outcome) };
                    self.logs.push(Arc::new(log));
                }
                Item::Whole(_) => {}
            }
        }
    }

    fn log(&self, exec: ExecKey) -> Option<Arc<Log>> {
        self.logs.iter().find(|log| log.exec == exec).cloned()
    }

    /// Drops the oldest finished executions over the limit.
    fn forget(&mut self) {
        let mut surplus = self.logs.iter().filter(|log| log.has_ended()).count().saturating_sub(KEPT_EXECUTIONS);
        self.logs.retain(|log| {
            let goes = surplus > 0 && log.has_ended();
            surplus -= usize::from(goes);
            !goes
        });
    }
}

impl Log {
    fn new(exec: ExecKey, output_limit: u64) -> Self {
        let kept = Kept { events: Vec::new(), left: output_limit, dropped: (0, 0), outcome: None };
        Self { exec, began: Instant::now(), kept: Mutex::new(kept), version: watch::channel(()).0 }
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn has_ended(&self) -> bool {
        self.kept().outcome.is_some()
    }

    fn push(&self, event: Event) {
        self.kept().events.push(event);
        self.version.send_replace(());
    }

    fn output(&self, is_stdout: bool, bytes: &[u8]) {
        let kept = {
            let mut kept = self.kept();
            let room = usize::try_from(kept.left).map_or(bytes.len(), |left| left.min(bytes.len()));
            let over = length(bytes.len() - room);
            kept.left -= length(room);
            *(if is_stdout { &mut kept.dropped.0 } else { &mut kept.dropped.1 }) += over;
            room
        };
        for piece in bytes[..kept].chunks(PIECE) {
            self.push(if is_stdout { Event::Stdout(piece.to_vec()) } else { Event::Stderr(piece.to_vec()) });
        }
    }

    fn finish(&self, outcome: Outcome, state_lost: bool) {
        let duration_us = u64::try_from(self.began.elapsed().as_micros()).unwrap_or(u64::MAX);
        {
            let mut kept = self.kept();
            let dropped = kept.dropped;
            kept.events.push(Event::Finished(Finished { outcome: outcome.clone(), duration_us, dropped, state_lost }));
            kept.outcome = Some(outcome);
        }
        self.version.send_replace(());
    }

    /// Bytes of output so far.
    fn written(&self) -> u64 {
        self.kept().events.iter().map(|event| length(output_of(event).len())).sum()
    }

    /// Sends the output from byte `offset` on as a terminal's, until its end.
    async fn show(&self, mut offset: u64, say: &mpsc::Sender<FromAgent>) {
        let mut version = self.version.subscribe();
        loop {
            let (data, finished) = {
                let kept = self.kept();
                let all = kept.events.iter().flat_map(|event| output_of(event).iter().copied());
                let data: Vec<u8> = all.skip(usize::try_from(offset).unwrap_or(usize::MAX)).take(PIECE).collect();
                let finished = kept.events.last().and_then(|last| match last {
                    Event::Finished(finished) => Some(finished.clone()),
                    _ => None,
                });
                (data, finished)
            };
            let news = match (data.is_empty(), finished) {
                (false, _) => News::Output { offset, data: data.clone() },
                (true, Some(finished)) => News::Ended(finished),
                (true, None) => {
                    // Its sender lives in `self`.
                    let _ = version.changed().await;
                    continue;
                }
            };
            let is_over = matches!(news, News::Ended(_));
            offset += length(data.len());
            if say.send(FromAgent::Terminal { exec: self.exec, news }).await.is_err() || is_over {
                return;
            }
        }
    }

    /// Sends the events after number `after` until the last.
    async fn follow(&self, after: u64, say: &mpsc::Sender<FromAgent>) {
        let mut version = self.version.subscribe();
        let mut seq = after;
        loop {
            let next = {
                let kept = self.kept();
                let place = usize::try_from(seq).unwrap_or(usize::MAX);
                match kept.events.get(place) {
                    Some(event) => Some(event.clone()),
                    None if kept.outcome.is_some() => return,
                    None => None,
                }
            };
            match next {
                Some(event) => {
                    seq += 1;
                    if say.send(FromAgent::Event { exec: self.exec, seq, event }).await.is_err() {
                        return;
                    }
                }
                // Its sender lives in `self`.
                None => drop(version.changed().await),
            }
        }
    }
}

/// The uploads of one stream.
#[derive(Default)]
struct Uploads {
    last: u32,
    open: BTreeMap<u32, (String, Vec<u8>)>,
    packing: Option<Vec<u8>>,
    unpacking: Option<Vec<u8>>,
}

fn output_of(event: &Event) -> &[u8] {
    match event {
        Event::Stdout(data) | Event::Stderr(data) => data,
        _ => &[],
    }
}

fn value(text: String) -> Rich {
    Rich { scalar: scalar(&text), text, ..Rich::default() }
}

async fn read(input: &mut (impl AsyncReadExt + Unpin)) -> io::Result<ToAgent> {
    let mut header = [0; frame::HEADER];
    input.read_exact(&mut header).await?;
    let mut body = vec![0; frame::body_length(header).map_err(io::Error::other)?];
    input.read_exact(&mut body).await?;
    frame::decode(&body).map_err(io::Error::other)
}

fn length(bytes: usize) -> u64 {
    u64::try_from(bytes).unwrap_or(u64::MAX)
}
