//! What can be asked of the agent, and what it answers.

use std::path::Path;
use std::time::{Duration, Instant};

use sandpool_wire::agent::{
    Activation, Answer, Call, ExecKey, Execute, FromAgent, MAX_CHUNK, MAX_CODE, Outcome, Refusal, Stdin, Stop, ToAgent,
    Work,
};
use sandpool_wire::terminal::Size;

use super::{Agent, terminals};
use crate::environment;
use crate::files::{self, MAX_UPLOADS, Upload};
use crate::interpreter::random;
use crate::log::{self, Log};
use crate::login::{self, Login};
use crate::pipe::WAITING;
use crate::procs;
use crate::program::Program;
use crate::stream::Stream;
use crate::tree::{Pack, Unpack};

/// The most programs that run at the same time, besides the interpreter's code.
pub(super) const PROGRAMS: usize = 128;

impl Agent {
    /// Does what `message` asks; replies go to `stream`.
    pub(super) fn answer(&mut self, stream: &mut Stream, message: ToAgent) {
        match message {
            ToAgent::Call { request, call } => {
                let result = self.call(stream, call);
                stream.say(&FromAgent::Reply { request, result });
            }
            ToAgent::Input { exec, data } => {
                if let Some(program) = self.programs.get_mut(&exec) {
                    program.input(&data);
                    if program.stdin.as_ref().is_some_and(|sink| sink.len() > WAITING) {
                        stream.held_by = Some(exec);
                    }
                }
            }
            ToAgent::Resize { exec, rows, columns } => self.resize(exec, Size { rows, columns }),
            ToAgent::Signal { exec, signal } => {
                if let Some(program) = self.programs.get(&exec).filter(|program| program.is_terminal) {
                    program.signal(terminals::signal(signal));
                }
            }
        }
    }

    fn call(&mut self, stream: &mut Stream, call: Call) -> Result<Answer, Refusal> {
        match call {
            Call::Ping => return Ok(Answer::Done),
            Call::Activate(activation) => return self.activate(activation),
            Call::Begin(main) => {
                let Some(container) = &mut self.container else {
                    return Err(Refusal::Invalid("this sandbox is no container".to_owned()));
                };
                let (answer, news) = container.begin(*main, &self.environment)?;
                // Its files, and what is run beside it, belong to whom it runs as.
                if let (Some(_), Some(identity)) = (self.identity, container.identity()) {
                    self.identity = Some(identity);
                    // Where the kernel does not, they are the other user's, who may do less.
                    let _ = sandpool_sys::workload::set_file_identity(identity);
                    let _ = rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable);
                }
                if let Some(news) = news {
                    if let crate::container::News::Over(reason, by_itself) = &news {
                        // This stream is not among those that hear it below.
                        stream.say(&FromAgent::Broken { reason: reason.clone(), by_itself: *by_itself });
                    }
                    self.hear_container(news);
                }
                return Ok(answer);
            }
            _ if !self.is_activated => return Err(Refusal::Invalid("no session has taken this sandbox".to_owned())),
            _ => {}
        }
        match call {
            Call::Ping | Call::Activate(_) | Call::Begin(_) => Ok(Answer::Done),
            Call::Identify(tokens) => {
                if let Some(container) = &mut self.container {
                    container.identify(tokens);
                }
                Ok(Answer::Done)
            }
            Call::Logs { offset, length } => match &self.container {
                Some(container) => Ok(container.logs(offset, length)),
                None => Err(Refusal::Invalid("this sandbox is no container".to_owned())),
            },
            Call::Execute(execute) => {
                let exec = execute.exec;
                self.execute(execute)?;
                stream.follow(exec, 0);
                Ok(Answer::Done)
            }
            Call::Stop { exec, how } => self.stop(exec, how),
            Call::Attach { exec, after_seq } => {
                let log = self.logs.iter().find(|log| log.exec() == exec).ok_or(Refusal::NotFound)?;
                stream.follow_again(exec, log.position_after(after_seq));
                Ok(Answer::Done)
            }
            Call::Executions => {
                let known = self.logs.iter().map(|log| (log.exec(), log.outcome().cloned()));
                Ok(Answer::Executions(known.collect()))
            }
            Call::Terminal(attach) => self.attach(stream, attach),
            Call::Terminals => Ok(self.known_terminals(stream)),
            Call::HangUp { name } => self.hang_up(stream, &name),
            Call::Stat { path } => files::stat(&path),
            Call::List { path, recursive, after, limit } => files::list(&path, recursive, after.as_deref(), limit),
            Call::Read { path, offset, length } => files::read(&path, offset, length),
            Call::Remove { path } => files::remove(&path),
            Call::WriteOpen { path } => {
                if stream.uploads.len() >= MAX_UPLOADS {
                    return Err(Refusal::Invalid(format!("more than {MAX_UPLOADS} uploads on one stream")));
                }
                let upload = Upload::open(&path, random())?;
                let handle = stream.next_upload;
                stream.next_upload = handle.wrapping_add(1);
                stream.uploads.insert(handle, upload);
                Ok(Answer::Upload(handle))
            }
            Call::Write { upload, data } => {
                if data.len() > MAX_CHUNK {
                    return Err(Refusal::Invalid(format!("more than {MAX_CHUNK} bytes at a time")));
                }
                stream.uploads.get(&upload).ok_or(Refusal::NotFound)?.write(&data)
            }
            Call::WriteCommit { upload } => stream.uploads.remove(&upload).ok_or(Refusal::NotFound)?.commit(),
            Call::WriteAbort { upload } => {
                stream.uploads.remove(&upload).map(|_| Answer::Done).ok_or(Refusal::NotFound)
            }
            Call::Pack { roots } => {
                stream.packing = Some(Pack::begin(roots)?);
                Ok(Answer::Done)
            }
            Call::PackNext => {
                let (data, is_last) = stream.packing.as_mut().ok_or(Refusal::NotFound)?.take()?;
                if is_last {
                    stream.packing = None;
                }
                Ok(Answer::Packed { data, is_last })
            }
            Call::Unpack { roots } => {
                stream.unpacking = Some(Unpack::begin(roots)?);
                Ok(Answer::Done)
            }
            Call::UnpackNext { data } => {
                if data.len() > MAX_CHUNK {
                    return Err(Refusal::Invalid(format!("more than {MAX_CHUNK} bytes at a time")));
                }
                let mut unpack = stream.unpacking.take().ok_or(Refusal::NotFound)?;
                unpack.put(&data)?;
                stream.unpacking = Some(unpack);
                Ok(Answer::Done)
            }
            Call::UnpackEnd => stream.unpacking.take().ok_or(Refusal::NotFound)?.end(),
            Call::Given => Ok(Answer::Given(self.environment.given())),
        }
    }

    fn activate(&mut self, activation: Activation) -> Result<Answer, Refusal> {
        if self.is_activated {
            return Err(Refusal::Invalid("a session has already taken this sandbox".to_owned()));
        }
        let has = |(name, value): &(String, String)| self.container.as_ref().is_some_and(|one| one.has(name, value));
        let brings = activation.env.iter().any(|pair| !has(pair));
        self.environment.activate(&activation)?;
        self.is_activated = true;
        if let Some(container) = &mut self.container {
            container.activated(brings, Instant::now());
        }
        if let Some(interpreter) = &mut self.interpreter {
            interpreter.activate(activation);
        }
        Ok(Answer::Done)
    }

    /// Starts an execution. One that is known already is left as it is.
    fn execute(&mut self, execute: Execute) -> Result<(), Refusal> {
        let Execute { exec, work, timeout_ms, output_limit } = execute;
        if self.logs.iter().any(|log| log.exec() == exec) {
            return Ok(());
        }
        check(&work)?;
        let is_service = matches!(work, Work::Service { .. });
        let timeout = Duration::from_millis(if is_service { u64::MAX } else { timeout_ms });
        if let Work::Code { code, fresh } = work {
            let Some(interpreter) = &mut self.interpreter else {
                return Err(Refusal::Invalid("this sandbox runs commands, and has no interpreter for code".to_owned()));
            };
            if let Some(reason) = interpreter.broken() {
                return Err(Refusal::Failed(reason.to_owned()));
            }
            if interpreter.is_busy() {
                return Err(Refusal::Busy);
            }
            self.logs.push(Log::new(exec, output_limit));
            // It begins when the streams have been served, which is in this round.
            interpreter.run(exec, code, fresh, timeout, &self.environment);
            return Ok(());
        }
        if self.programs.len() >= PROGRAMS {
            return Err(Refusal::Failed(format!("more than {PROGRAMS} programs at the same time")));
        }
        let mut log = if is_service { Log::flowing(exec) } else { Log::new(exec, output_limit) };
        log.started();
        let login = match work {
            Work::Shell { .. } if login::is_usual(&self.environment) => self
                .login
                .get_or_init(|| if environment::has_bash() { Login::read(Path::new("/")) } else { None })
                .as_ref(),
            _ => None,
        };
        match Program::start(work, &procs::name(exec), &self.environment, login, self.identity) {
            Ok(mut program) => {
                program.deadline = program.began.checked_add(timeout);
                self.programs.insert(exec, program);
            }
            Err(reason) => log.finish(Outcome::NotStarted(reason), Duration::ZERO, false),
        }
        self.logs.push(log);
        Ok(())
    }

    fn stop(&mut self, exec: ExecKey, how: Stop) -> Result<Answer, Refusal> {
        let now = Instant::now();
        if let Some(program) = self.programs.get_mut(&exec) {
            program.ending.request(how, now);
            program.tick(now);
        } else if let Some(interpreter) = self.interpreter.as_mut().filter(|one| one.running() == Some(exec)) {
            interpreter.stop(how, now);
            if let Some(news) = interpreter.tick(now) {
                self.hear_news(news);
            }
        } else if log::find(&mut self.logs, exec).is_none() {
            return Err(Refusal::NotFound);
        }
        Ok(Answer::Done)
    }
}

/// Whether `work` is within the limits of the protocol, and can be given to a program at all.
fn check(work: &Work) -> Result<(), Refusal> {
    let invalid = |why: String| Err(Refusal::Invalid(why));
    let (words, stdin): (&[String], _) = match work {
        Work::Code { code, .. } => (std::slice::from_ref(code), None),
        Work::Shell { command, stdin } => (std::slice::from_ref(command), Some(stdin)),
        Work::Argv { argv, stdin } => (argv, Some(stdin)),
        Work::Terminal { argv, .. } | Work::Service { argv, .. } => (argv, None),
    };
    if words.first().is_none_or(|first| first.is_empty() && !matches!(work, Work::Code { .. } | Work::Shell { .. })) {
        return invalid("no program is named".to_owned());
    }
    if words.iter().map(String::len).sum::<usize>() > MAX_CODE {
        return invalid(format!("code or command is longer than {MAX_CODE} bytes"));
    }
    if !matches!(work, Work::Code { .. }) && words.iter().any(|word| word.contains('\0')) {
        return invalid("a command or argument has a NUL".to_owned());
    }
    match (work, stdin) {
        (Work::Service { env, .. }, _) => environment::check_all(env),
        (Work::Terminal { term, .. }, _) if term.contains('\0') || term.len() > 64 => {
            invalid("the terminal's name has a NUL, or is longer than 64 bytes".to_owned())
        }
        (_, Some(Stdin::Bytes(bytes))) if bytes.len() > MAX_CODE => {
            invalid(format!("standard input is longer than {MAX_CODE} bytes"))
        }
        _ => Ok(()),
    }
}
