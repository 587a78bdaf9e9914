//! The server, as its launcher knows it: a process to keep running, and a socket to answer on.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::epoll;
use rustix::process::{Pid, PidfdFlags, Signal, WaitId, WaitIdOptions};
use sandpool_sys::workload::{Identity, Workload};

use super::{Launcher, SERVER_END, SERVER_GIVES_UP, SERVER_SOCKET, ServerProcess};
use crate::control::ToLauncher;

/// The first pause before a server that died is started again; doubled each time it dies, up to [`LONGEST_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(10);

/// A server that lived this long has earned the first pause again.
const STEADY: Duration = Duration::from_secs(30);

/// Answers that wait for the server to read; no further call is read meanwhile.
const BACKLOG: usize = 64;

/// When one of our own programs that ended is started again.
#[derive(Debug, Default)]
pub(super) struct Pause {
    started: Option<Instant>,
    pause: Duration,
    starts_at: Option<Instant>,
}

impl Pause {
    pub(super) fn starts_at(&self) -> Option<Instant> {
        self.starts_at
    }

    /// It runs.
    pub(super) fn started(&mut self) {
        (self.started, self.starts_at) = (Some(Instant::now()), None);
    }

    /// It has ended, or did not start: answers how long to wait.
    pub(super) fn plan(&mut self) -> Duration {
        let steady = self.started.take().is_some_and(|started| started.elapsed() >= STEADY);
        self.pause = if steady { FIRST_PAUSE } else { (self.pause * 2).clamp(FIRST_PAUSE, LONGEST_PAUSE) };
        self.starts_at = Some(Instant::now() + self.pause);
        self.pause
    }
}

/// Starts one of our own programs; answers its process, and our end of the socket that it finds at
/// [`crate::CONTROL_FD`].
pub(super) fn spawn(program: &ServerProcess) -> io::Result<(Pid, OwnedFd, OwnedFd)> {
    let (here, there) = crate::control::packet_pair()?;
    let mut pass = vec![(there, crate::CONTROL_FD)];
    for (fd, number) in program.inherit.iter().zip(crate::CONTROL_FD + 1..) {
        pass.push((fd.try_clone()?, number));
    }
    let workload = Workload {
        file: None,
        argv: ["/proc/self/exe".into()].into_iter().chain(program.args.iter().cloned()).collect(),
        env: program.env.clone(),
        directory: "/".into(),
        identity: Some(Identity { uid: program.uid, gid: program.gid }),
        stdio: [
            std::fs::File::open("/dev/null")?.into(),
            rustix::stdio::stdout().try_clone_to_owned()?,
            rustix::stdio::stderr().try_clone_to_owned()?,
        ],
        pass,
        terminal: false,
    };
    let pid = sandpool_sys::workload::spawn(workload)?;
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw).ok_or(io::ErrorKind::InvalidData)?;
    Ok((pid, rustix::process::pidfd_open(pid, PidfdFlags::empty())?, here))
}

#[derive(Default)]
pub(super) struct Server {
    process: Option<OwnedFd>,
    socket: Option<OwnedFd>,
    waiting: VecDeque<(Vec<u8>, Option<OwnedFd>)>,
    pause: Pause,
}

impl Server {
    pub(super) fn is_running(&self) -> bool {
        self.process.is_some()
    }

    pub(super) fn starts_at(&self) -> Option<Instant> {
        self.pause.starts_at()
    }

    pub(super) fn has_backlog(&self) -> bool {
        self.waiting.len() >= BACKLOG
    }

    pub(super) fn terminate(&self) {
        self.signal(Signal::TERM);
    }

    pub(super) fn kill(&self) {
        self.signal(Signal::KILL);
    }

    fn signal(&self, signal: Signal) {
        if let Some(process) = &self.process {
            // It may have ended by itself: then its descriptor says so.
            let _ = rustix::process::pidfd_send_signal(process, signal);
        }
    }

    pub(super) fn receive(&self) -> io::Result<Option<ToLauncher>> {
        let Some(socket) = &self.socket else { return Err(io::ErrorKind::WouldBlock.into()) };
        // A descriptor that came along is none of ours, and closed here.
        Ok(crate::control::receive::<ToLauncher>(socket)?.map(|(message, _)| message))
    }

    /// Sends, or keeps for when the server reads again. Nothing is kept for a server that is not there: the next
    /// one asks for the list.
    pub(super) fn send(&mut self, epoll: &OwnedFd, bytes: Vec<u8>, fd: Option<OwnedFd>) {
        if self.socket.is_some() {
            self.waiting.push_back((bytes, fd));
            self.flush(epoll);
        }
    }

    pub(super) fn flush(&mut self, epoll: &OwnedFd) {
        let Some(socket) = &self.socket else { return };
        while let Some((bytes, fd)) = self.waiting.front() {
            match crate::control::send(socket, bytes, fd.as_ref().map(AsFd::as_fd)) {
                Ok(()) => drop(self.waiting.pop_front()),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(_) => return self.hang_up(epoll),
            }
        }
        let mut interest = epoll::EventFlags::empty();
        interest.set(epoll::EventFlags::IN, !self.has_backlog());
        interest.set(epoll::EventFlags::OUT, !self.waiting.is_empty());
        let _ = epoll::modify(epoll, socket, epoll::EventData::new_u64(SERVER_SOCKET), interest);
    }

    pub(super) fn hang_up(&mut self, epoll: &OwnedFd) {
        self.waiting.clear();
        if let Some(socket) = self.socket.take() {
            let _ = epoll::delete(epoll, &socket);
        }
    }
}

impl Launcher {
    /// Starts the server, or plans the next attempt.
    pub(super) fn start_server(&mut self) {
        match self.spawn_server() {
            Ok((process, socket)) => {
                self.server.process = Some(process);
                self.server.socket = Some(socket);
                self.server.pause.started();
            }
            Err(error) => {
                tracing::error!("the server could not be started: {error}");
                self.server.pause.plan();
            }
        }
    }

    fn spawn_server(&self) -> io::Result<(OwnedFd, OwnedFd)> {
        let (_, process, here) = spawn(&self.config.server)?;
        epoll::add(&self.epoll, &process, epoll::EventData::new_u64(SERVER_END), epoll::EventFlags::IN)?;
        epoll::add(&self.epoll, &here, epoll::EventData::new_u64(SERVER_SOCKET), epoll::EventFlags::IN)?;
        Ok((process, here))
    }

    pub(super) fn server_ended(&mut self) {
        let Some(process) = self.server.process.take() else { return };
        let _ = epoll::delete(&self.epoll, &process);
        let status = rustix::process::waitid(WaitId::PidFd(process.as_fd()), WaitIdOptions::EXITED);
        self.server.hang_up(&self.epoll);
        let code = status.ok().flatten().and_then(|status| status.exit_status());
        if self.stopping.is_some() {
            return;
        }
        match code {
            Some(0) => self.stop(0),
            Some(SERVER_GIVES_UP) => self.stop(1),
            other => {
                let how = other.map_or("a signal".to_owned(), |code| format!("exit code {code}"));
                let pause = self.server.pause.plan();
                tracing::error!("the server ended by {how}; it starts again in {pause:?}");
            }
        }
    }
}
