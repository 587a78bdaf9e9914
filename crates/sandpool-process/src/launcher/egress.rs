//! The egress proxy, as its launcher knows it: a process to keep running, and whose listeners it has.
//!
//! ```text
//! sandbox's first process --listeners--> its Gate --(when it has an id)--> Attach --> proxy
//! server: Narrow ----------------------> its Gate --> Rule --> proxy --Ruled--> the call is answered
//! ```
//!
//! The proxy is started when the first pool has a way out, and never for pools that have none. The listeners stay here too, with
//! what each sandbox may reach: a proxy that died is started again and given all of it.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::epoll;
use rustix::process::{Signal, WaitId, WaitIdOptions};
use sandpool_sys::counters::Counter;
use sandpool_sys::packet;
use sandpool_wire::egress::{FromEgress, LISTENERS, MAX_POLICY, MAX_SECRETS, Policy, Rules, ToEgress};

use super::server::{Pause, spawn};
use super::{EGRESS_END, EGRESS_SOCKET, Launcher, Place};
use crate::control::{Answer, FromLauncher, Id, Refusal};

/// Both sides mean the same ports.
const _: () = {
    let (ours, theirs) = (sandpool_sys::network::PORTS, sandpool_wire::egress::PORTS);
    let mut at = 0;
    while at < ours.len() {
        assert!(ours[at] == theirs[at]);
        at += 1;
    }
};

/// How long the proxy gets to write its last records, when all sandboxes are gone.
const FAREWELL: Duration = Duration::from_secs(2);

/// A sandbox's way out.
pub(super) struct Gate {
    /// Where its listeners come from, until they have come.
    pub(super) handover: Option<OwnedFd>,
    listeners: Vec<OwnedFd>,
    /// What tells the authority that its files trust from others.
    nonce: [u8; 16],
    /// Its counter's number, and the counter.
    counter: (u32, Counter),
    own: Own,
}

/// What a session has of its own, as the egress proxy reads it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Own {
    /// Of what its pool may reach, what it may.
    narrowed: Option<Vec<u8>>,
    /// Its secrets.
    secrets: Option<Vec<u8>>,
}

impl Gate {
    /// One whose listeners will come from here.
    pub(super) fn new(handover: OwnedFd, nonce: [u8; 16], counter: (u32, Counter)) -> Self {
        Self { handover: Some(handover), listeners: Vec::new(), nonce, counter, own: Own::default() }
    }

    /// Bytes that have gone out of the sandbox, and come into it.
    pub(super) fn moved(&self) -> [u64; 2] {
        self.counter.1.read()
    }

    /// What its session is narrowed to.
    pub(super) fn narrowed(&self) -> Option<Vec<u8>> {
        self.own.narrowed.clone()
    }

    /// Takes what has come. Only the sandbox's first process could send, before it was anybody's program.
    fn take(&mut self) -> io::Result<()> {
        let Some(handover) = self.handover.take() else { return Ok(()) };
        let (_, listeners) = packet::receive(handover, &mut [0; 8])?;
        if listeners.len() != LISTENERS {
            return Err(io::Error::other(format!("{} of {LISTENERS} listeners came", listeners.len())));
        }
        self.listeners = listeners;
        Ok(())
    }
}

/// Rules under which nothing is reached.
fn nothing() -> Rules {
    // The shortest policy there is: this cannot fail.
    Rules { pool: Policy::default().encode().unwrap_or_default(), session: None, secrets: None }
}

/// What is yet to be said to the proxy. What it is about is looked up when it is said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Saying {
    Attach(Id),
    Rule(Id, u32),
    Detach(Id),
}

/// A server's call that waits for the proxy.
struct Changing {
    number: u32,
    request: u32,
    id: Id,
    /// What the session has of its own from now on.
    own: Own,
    /// What comes back if that cannot be used.
    before: Own,
}

/// The proxy.
#[derive(Default)]
pub(super) struct Egress {
    process: Option<OwnedFd>,
    socket: Option<OwnedFd>,
    waiting: VecDeque<Saying>,
    awaited: VecDeque<Changing>,
    next: u32,
    /// Sandboxes that have had a counter.
    counted: u32,
    is_wanted: bool,
    pause: Pause,
}

impl Egress {
    pub(super) fn starts_at(&self) -> Option<Instant> {
        self.pause.starts_at()
    }

    fn interest(&self, epoll: &OwnedFd) {
        let Some(socket) = &self.socket else { return };
        let mut interest = epoll::EventFlags::IN;
        interest.set(epoll::EventFlags::OUT, !self.waiting.is_empty());
        // It is watched since its start, so that this cannot fail.
        let _ = epoll::modify(epoll, socket, epoll::EventData::new_u64(EGRESS_SOCKET), interest);
    }

    /// Ends the proxy, once all it has written is written.
    pub(super) fn finish(&mut self) {
        // Its end of the socket closes, which tells it.
        self.socket = None;
        let Some(process) = self.process.take() else { return };
        let until = Instant::now() + FAREWELL;
        let ended = || {
            let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG;
            !matches!(rustix::process::waitid(WaitId::PidFd(process.as_fd()), options), Ok(None))
        };
        while !ended() {
            if Instant::now() >= until {
                let _ = rustix::process::pidfd_send_signal(&process, Signal::KILL);
                let _ = rustix::process::waitid(WaitId::PidFd(process.as_fd()), WaitIdOptions::EXITED);
                return;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Launcher {
    /// A pool has a way out: the proxy runs from now on.
    pub(super) fn want_egress(&mut self) -> Result<(), Refusal> {
        if self.config.egress.is_none() {
            return Err(Refusal::Invalid("this launcher was started without an egress proxy".to_owned()));
        }
        if !self.egress.is_wanted {
            self.egress.is_wanted = true;
            self.start_egress();
        }
        Ok(())
    }

    /// Starts the proxy and tells it all, or plans the next attempt.
    pub(super) fn start_egress(&mut self) {
        let Some(program) = &self.config.egress else { return };
        let group = self.groups.of_egress(self.config.egress_memory);
        let started = group.and_then(|group| Ok((group, spawn(program)?)));
        let started = started.and_then(|(group, (pid, process, socket))| {
            // With its first thread: those that it starts are in the group with it.
            group.take_in(pid)?;
            epoll::add(&self.epoll, &process, epoll::EventData::new_u64(EGRESS_END), epoll::EventFlags::IN)?;
            epoll::add(&self.epoll, &socket, epoll::EventData::new_u64(EGRESS_SOCKET), epoll::EventFlags::IN)?;
            Ok((process, socket))
        });
        match started {
            Ok((process, socket)) => {
                self.egress.pause.started();
                (self.egress.process, self.egress.socket) = (Some(process), Some(socket));
                let present =
                    self.live.iter().filter(|(_, live)| live.gate.is_some()).map(|(id, _)| Saying::Attach(*id));
                self.egress.waiting = present.collect();
                self.flush_egress();
            }
            Err(error) => {
                let pause = self.egress.pause.plan();
                tracing::error!("the egress proxy could not be started; again in {pause:?}: {error}");
            }
        }
    }

    /// The proxy has ended. Nothing is reached until the next one is there.
    pub(super) fn egress_ended(&mut self) {
        let Some(process) = self.egress.process.take() else { return };
        let _ = epoll::delete(&self.epoll, &process);
        let _ = rustix::process::waitid(WaitId::PidFd(process.as_fd()), WaitIdOptions::EXITED);
        self.hang_up_egress();
        if self.stopping.is_none() {
            let pause = self.egress.pause.plan();
            tracing::error!("the egress proxy ended; it starts again in {pause:?}");
        }
    }

    fn hang_up_egress(&mut self) {
        if let Some(socket) = self.egress.socket.take() {
            let _ = epoll::delete(&self.epoll, &socket);
        }
        self.egress.waiting.clear();
        // What they asked for is so: a proxy that is not there lets nothing through, and the next begins with it.
        for Changing { request, .. } in std::mem::take(&mut self.egress.awaited) {
            self.say(&FromLauncher::Reply { request, result: Ok(Answer::Done) }, None);
        }
    }

    /// The proxy has said something, or has room.
    pub(super) fn hear_egress(&mut self) {
        let mut buffer = [0; 4096];
        loop {
            let Some(socket) = &self.egress.socket else { return };
            let message = match packet::receive(socket, &mut buffer) {
                Ok((0, _)) => return self.hang_up_egress(),
                Ok((length, _)) => postcard::from_bytes(&buffer[..length]),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(_) => return self.hang_up_egress(),
            };
            let Ok(FromEgress::Ruled { number, problem }) = message else { return self.hang_up_egress() };
            let at = self.egress.awaited.iter().position(|awaited| awaited.number == number);
            if let Some(changing) = at.and_then(|at| self.egress.awaited.remove(at)) {
                self.changed(changing, problem);
            }
        }
        self.flush_egress();
    }

    /// Says what waits, as far as the proxy takes it.
    fn flush_egress(&mut self) {
        while let (Some(socket), Some(saying)) = (&self.egress.socket, self.egress.waiting.front().copied()) {
            let sent = match self.message(saying) {
                Some((message, fds)) => match crate::control::encode(&message) {
                    Ok(bytes) => packet::send(socket, &bytes, &fds),
                    Err(error) => Err(error),
                },
                // The sandbox is over, or its listeners have not come: then it comes when they do.
                None => Ok(()),
            };
            match sent {
                Ok(()) => drop(self.egress.waiting.pop_front()),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => {
                    tracing::error!("the egress proxy takes nothing: {error}");
                    return self.hang_up_egress();
                }
            }
        }
        self.egress.interest(&self.epoll);
    }

    fn message(&self, saying: Saying) -> Option<(ToEgress, Vec<BorrowedFd<'_>>)> {
        let about = |id: Id| {
            let live = self.live.get(&id)?;
            let gate = live.gate.as_ref().filter(|gate| !gate.listeners.is_empty())?;
            let pool = self.pools.get(&live.pool)?.egress.clone()?;
            let Own { narrowed, secrets } = gate.own.clone();
            Some((live, gate, Rules { pool, session: narrowed, secrets }))
        };
        match saying {
            Saying::Detach(sandbox) => Some((ToEgress::Detach { sandbox }, Vec::new())),
            Saying::Attach(sandbox) => {
                let (live, gate, rules) = about(sandbox)?;
                let fds = gate.listeners.iter().map(AsFd::as_fd).collect();
                let (pool, nonce, counter) = (live.pool.clone(), gate.nonce, gate.counter.0);
                Some((ToEgress::Attach { sandbox, pool, nonce, counter, rules }, fds))
            }
            Saying::Rule(sandbox, number) => {
                // Without a pool that says so, nothing is reached.
                let rules = about(sandbox).map_or_else(nothing, |(_, _, rules)| rules);
                Some((ToEgress::Rule { sandbox, number, rules }, Vec::new()))
            }
        }
    }

    fn tell_egress(&mut self, saying: Saying) {
        if self.egress.socket.is_some() {
            self.egress.waiting.push_back(saying);
            self.flush_egress();
        }
    }

    /// The listeners of a sandbox have come, or its process has closed their way.
    pub(super) fn listeners_came(&mut self, slot: u32, place: &Place) {
        let live = match place {
            Place::Sandbox(id) => self.live.get_mut(id),
            Place::Seed(pool) => self.seeds.find_mut(pool, slot),
        };
        let Some(gate) = live.and_then(|live| live.gate.as_mut()) else { return };
        if let Some(handover) = &gate.handover {
            let _ = epoll::delete(&self.epoll, handover);
        }
        // A start that failed says why; and without listeners nothing is reached.
        if let Err(error) = gate.take() {
            tracing::debug!("a sandbox has no way out: {error}");
        }
        if let Place::Sandbox(id) = place {
            self.tell_egress(Saying::Attach(*id));
        }
    }

    /// A sandbox has got its id.
    pub(super) fn attach(&mut self, id: Id) {
        if self.live.get(&id).is_some_and(|live| live.gate.as_ref().is_some_and(|gate| !gate.listeners.is_empty())) {
            self.tell_egress(Saying::Attach(id));
        }
    }

    /// A sandbox is over.
    pub(super) fn detach(&mut self, id: Id) {
        self.tell_egress(Saying::Detach(id));
    }

    /// What a pool may reach has changed: it holds for all of its sandboxes.
    pub(super) fn rule_pool(&mut self, pool: &str) {
        let ids = self.live.iter().filter(|(_, live)| live.pool == pool && live.gate.is_some());
        for id in ids.map(|(id, _)| *id).collect::<Vec<_>>() {
            let number = self.egress_number();
            self.tell_egress(Saying::Rule(id, number));
        }
    }

    /// Narrows what a sandbox may reach; answers now when there is no proxy to ask, and else when the proxy has confirmed it.
    pub(super) fn narrow(&mut self, request: u32, id: Id, policy: Option<Vec<u8>>) -> Option<Result<Answer, Refusal>> {
        if policy.as_ref().is_some_and(|policy| policy.len() > MAX_POLICY) {
            return Some(Err(Refusal::Invalid("the policy is too long".to_owned())));
        }
        self.change(request, id, |own| own.narrowed = policy)
    }

    /// Gives a sandbox's session secrets of its own. Answers as [`Launcher::narrow`].
    pub(super) fn entrust(&mut self, request: u32, id: Id, secrets: Vec<u8>) -> Option<Result<Answer, Refusal>> {
        if secrets.len() > MAX_SECRETS {
            return Some(Err(Refusal::Invalid("the secrets are too long".to_owned())));
        }
        self.change(request, id, |own| own.secrets = Some(secrets))
    }

    fn change(&mut self, request: u32, id: Id, change: impl FnOnce(&mut Own)) -> Option<Result<Answer, Refusal>> {
        let gate = match self.present(id) {
            Err(refusal) => return Some(Err(refusal)),
            Ok(live) => match &mut live.gate {
                None => return Some(Err(Refusal::Invalid("nothing is reached from this pool".to_owned()))),
                Some(gate) => gate,
            },
        };
        let before = gate.own.clone();
        change(&mut gate.own);
        let (own, has_listeners) = (gate.own.clone(), !gate.listeners.is_empty());
        if self.egress.socket.is_none() || !has_listeners {
            return Some(Ok(Answer::Done));
        }
        let number = self.egress_number();
        self.egress.awaited.push_back(Changing { number, request, id, own, before });
        self.tell_egress(Saying::Rule(id, number));
        None
    }

    /// The proxy has taken what a session has of its own, or says why it cannot be used: then all is as it was.
    fn changed(&mut self, changing: Changing, problem: Option<String>) {
        let Changing { request, id, own, before, .. } = changing;
        if problem.is_some()
            && let Some(gate) = self.live.get_mut(&id).and_then(|live| live.gate.as_mut())
            && gate.own == own
        {
            gate.own = before;
        }
        let result = problem.map_or(Ok(Answer::Done), |problem| Err(Refusal::Invalid(problem)));
        self.say(&FromLauncher::Reply { request, result }, None);
    }

    /// A counter for one more sandbox. So many others come before it is another one's that nobody counts in it any more.
    pub(super) fn next_counter(&mut self) -> (u32, Counter) {
        let number = self.egress.counted;
        self.egress.counted = self.egress.counted.wrapping_add(1);
        let counter = self.counters.counter(number);
        counter.clear();
        (number, counter)
    }

    fn egress_number(&mut self) -> u32 {
        self.egress.next = self.egress.next.wrapping_add(1);
        self.egress.next
    }
}
