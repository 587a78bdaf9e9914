//! What can be asked about the terminals of a session.

use std::time::{Duration, Instant};

use rustix::process::Signal;
use sandpool_wire::agent::{Answer, ExecKey, Outcome, Refusal, Work};
use sandpool_wire::terminal::{self, Attach, Attached, Make, Size, TERMINALS};

use super::Agent;
use super::calls::PROGRAMS;
use crate::environment::shell;
use crate::procs;
use crate::program::Program;
use crate::stream::Stream;
use crate::terminal::{Terminal, check};

impl Agent {
    /// Follows a terminal on `stream`, and makes it first if it is not there.
    pub(super) fn attach(&mut self, stream: &mut Stream, attach: Attach) -> Result<Answer, Refusal> {
        check(&attach)?;
        let Attach { name, only, size, make, after } = attach;
        let found = match (&make, only) {
            // Made by a call whose answer was lost.
            (Some(make), _) if self.terminal(make.exec).is_some() => self.terminal(make.exec),
            (_, Some(only)) => self.terminal(only).filter(|at| self.terminals[*at].seen.name == name),
            (Some(_), None) => self.named(&name).filter(|at| self.terminals[*at].finished.is_none()),
            (None, None) => self.named(&name),
        };
        let (at, is_new) = match (found, make) {
            (Some(at), _) => (at, false),
            (None, Some(make)) if only.is_none() => {
                self.make_terminal(stream, name, make, size)?;
                (self.terminals.len() - 1, true)
            }
            (None, _) => return Err(Refusal::NotFound),
        };
        let exec = self.terminals[at].seen.exec;
        if let Some(size) = size.filter(|_| !is_new) {
            self.resize(exec, size);
        }
        let terminal = &self.terminals[at];
        let (offset, missed) = terminal.place(after);
        stream.watch(exec, offset);
        let terminal = self.seen(stream, terminal);
        Ok(Answer::Attached(Attached { terminal, offset, missed, is_new }))
    }

    fn terminal(&self, exec: ExecKey) -> Option<usize> {
        self.terminals.iter().position(|terminal| terminal.seen.exec == exec)
    }

    fn named(&self, name: &str) -> Option<usize> {
        self.terminals.iter().position(|terminal| terminal.seen.name == name && !terminal.is_leaving)
    }

    /// Makes a terminal, the last of all. One of its name that has ended, or the oldest that has, goes for it.
    fn make_terminal(
        &mut self,
        stream: &mut Stream,
        name: String,
        mut make: Make,
        size: Option<Size>,
    ) -> Result<(), Refusal> {
        if let Some(before) = self.named(&name) {
            self.forget_terminal(Some(stream), before);
        } else if self.terminals.len() >= TERMINALS {
            match self.terminals.iter().position(|terminal| terminal.finished.is_some()) {
                Some(oldest) => self.forget_terminal(Some(stream), oldest),
                None => return Err(Refusal::Full(u32::try_from(TERMINALS).unwrap_or(u32::MAX))),
            }
        }
        if self.programs.len() >= PROGRAMS {
            return Err(Refusal::Failed(format!("more than {PROGRAMS} programs at the same time")));
        }
        if make.argv.is_empty() {
            make.argv = vec![shell().to_owned(), "-l".to_owned()];
        }
        let mut terminal = Terminal::new(name, &make, size);
        let Make { exec, argv, term } = make;
        let Size { rows, columns } = terminal.seen.size;
        let work = Work::Terminal { argv, rows, columns, term };
        match Program::start(work, &procs::name(exec), &self.environment, None, self.identity) {
            Ok(program) => drop(self.programs.insert(exec, program)),
            Err(reason) => terminal.finish(Outcome::NotStarted(reason), Duration::ZERO),
        }
        self.terminals.push(terminal);
        Ok(())
    }

    /// Forgets a terminal that has ended; who has not heard of its end hears of it now. `stream` is not among the others while it asks.
    pub(super) fn forget_terminal(&mut self, stream: Option<&mut Stream>, at: usize) {
        let terminal = self.terminals.remove(at);
        for stream in self.streams.values_mut().chain(stream) {
            stream.forget(&terminal);
        }
    }

    /// A terminal, as it is told.
    fn seen(&self, stream: &Stream, terminal: &Terminal) -> terminal::Terminal {
        let streams = self.streams.values().chain([stream]);
        let attached = streams.filter(|stream| stream.watches(terminal.seen.exec).is_some()).count();
        terminal::Terminal { attached: u32::try_from(attached).unwrap_or(u32::MAX), ..terminal.seen.clone() }
    }

    pub(super) fn known_terminals(&self, stream: &Stream) -> Answer {
        let known = self.terminals.iter().filter(|terminal| !terminal.is_leaving);
        Answer::Terminals(known.map(|terminal| self.seen(stream, terminal)).collect())
    }

    /// Ends a terminal, and forgets it.
    pub(super) fn hang_up(&mut self, stream: &mut Stream, name: &str) -> Result<Answer, Refusal> {
        let at = self.named(name).ok_or(Refusal::NotFound)?;
        let now = Instant::now();
        match self.programs.get_mut(&self.terminals[at].seen.exec) {
            Some(program) => {
                program.ending.hang_up(now);
                program.tick(now);
                self.terminals[at].is_leaving = true;
            }
            None => self.forget_terminal(Some(stream), at),
        }
        Ok(Answer::Done)
    }

    pub(super) fn resize(&mut self, exec: ExecKey, size: Size) {
        let Some(program) = self.programs.get(&exec) else { return };
        program.resize(size.rows, size.columns);
        if let Some(at) = self.terminal(exec) {
            self.terminals[at].seen.size = size;
        }
    }
}

/// As the kernel knows it.
pub(super) fn signal(signal: terminal::Signal) -> Signal {
    match signal {
        terminal::Signal::Int => Signal::INT,
        terminal::Signal::Term => Signal::TERM,
        terminal::Signal::Kill => Signal::KILL,
        terminal::Signal::Hup => Signal::HUP,
        terminal::Signal::Quit => Signal::QUIT,
        terminal::Signal::Tstp => Signal::TSTP,
        terminal::Signal::Cont => Signal::CONT,
        terminal::Signal::Usr1 => Signal::USR1,
        terminal::Signal::Usr2 => Signal::USR2,
    }
}
