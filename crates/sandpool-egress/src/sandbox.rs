//! One sandbox, as the proxy knows it: its rules, its names, its doors, and what is open.
//!
//! ```text
//! door -> admit (how many, how often) -> target (address back to name) -> enter: judged AND registered in one step
//!      -> dial -> arrived: its address judged by the rules of now -> relay, until it ends or the rules forbid it
//! ```

mod doors;
mod http;
mod tls;

use std::collections::HashMap;
use std::io;
use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use sandpool_sys::counters::Counter;
use tokio::net::{TcpStream, UdpSocket};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::audit::{self, Audit, Decision, Record, Via};
use crate::dial::{DialError, Dialler};
use crate::dns::{self, Answer, Kind};
use crate::host::{Host, Target};
use crate::names::{self, Names};
use crate::policy::Rules;
use crate::rate::{Bucket, Rate};
use crate::relay::{Count, Metered, stale};
use crate::secrets::{SandboxSecrets, Secrets};

/// What one sandbox may use of the proxy (EG5).
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Connections that are open at the same time.
    pub connections: usize,
    /// New connections; more wait.
    pub new: Rate,
    /// Questions for names; more are not answered.
    pub queries: Rate,
    /// Names that were not asked for before; more are refused. What would be told by names is told slowly.
    pub names: Rate,
    /// How long a connection may be without a byte.
    pub idle: Duration,
    /// How long a connection may be open.
    pub life: Duration,
    /// How long a client may take to say where it wants to go.
    pub handshake: Duration,
    /// Bytes of a request's head.
    pub head: usize,
    /// Bytes both ways, in the sandbox's whole life.
    pub bytes: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 128,
            new: Rate { per_second: 50, burst: 200 },
            queries: Rate { per_second: 100, burst: 400 },
            names: Rate { per_second: 5, burst: 300 },
            idle: Duration::from_secs(300),
            life: Duration::from_secs(6 * 3600),
            handshake: Duration::from_secs(10),
            head: 32 * 1024,
            bytes: u64::MAX,
        }
    }
}

/// What all sandboxes have in common.
#[derive(Clone, Debug)]
pub struct Common {
    /// Resolves and connects.
    pub dialler: Dialler,
    /// Where decisions are recorded.
    pub audit: Audit,
    /// What each may use.
    pub limits: Limits,
    /// Every pool's secrets.
    pub secrets: Arc<Secrets>,
}

/// One sandbox.
#[derive(Debug)]
pub struct Sandbox {
    id: Arc<str>,
    pool: Arc<str>,
    common: Common,
    state: Mutex<State>,
    places: Arc<Semaphore>,
    count: Counter,
    tasks: TaskTracker,
    over: CancellationToken,
}

#[derive(Debug)]
struct State {
    rules: Arc<Rules>,
    secrets: Option<Arc<SandboxSecrets>>,
    names: Names,
    open: HashMap<u64, Open>,
    next: u64,
    new: Bucket,
    queries: Bucket,
    fresh: Bucket,
}

/// A connection that was allowed.
#[derive(Debug)]
struct Open {
    target: Target,
    port: u16,
    /// Once it has been dialled.
    address: Option<IpAddr>,
    cut: CancellationToken,
}

impl Open {
    fn is_allowed(&self, rules: &Rules) -> bool {
        rules.judge(&self.target, self.port).is_ok()
            && self.address.is_none_or(|address| rules.judge_address(address, self.port).is_ok())
    }
}

impl Sandbox {
    /// One that reaches what `rules` say, and whose bytes (from it, to it) are added to `count`.
    #[must_use]
    pub fn new(id: &str, pool: &str, rules: Rules, count: Counter, common: Common) -> Arc<Self> {
        let (limits, now) = (common.limits, Instant::now());
        let state = State {
            rules: Arc::new(rules),
            secrets: None,
            names: Names::default(),
            open: HashMap::new(),
            next: 0,
            new: Bucket::new(limits.new, now),
            queries: Bucket::new(limits.queries, now),
            fresh: Bucket::new(limits.names, now),
        };
        Arc::new(Self {
            id: id.into(),
            pool: pool.into(),
            common,
            state: Mutex::new(state),
            places: Arc::new(Semaphore::new(limits.connections)),
            count,
            tasks: TaskTracker::new(),
            over: CancellationToken::new(),
        })
    }

    /// Serves its listeners, in the order of [`sandpool_wire::egress::ToEgress::Attach`], until [`Sandbox::end`].
    ///
    /// # Errors
    /// When they are not what they should be.
    pub fn serve(self: &Arc<Self>, listeners: Vec<OwnedFd>) -> io::Result<()> {
        let Ok([http, tls, proxy, socks, dns, datagrams]) = <[OwnedFd; 6]>::try_from(listeners) else {
            return Err(io::Error::other("a sandbox has six listeners"));
        };
        let doors = [
            (http, doors::Door::Http),
            (tls, doors::Door::Tls),
            (proxy, doors::Door::Proxy),
            (socks, doors::Door::Socks),
            (dns, doors::Door::Dns),
        ];
        for (listener, door) in doors {
            let listener = std::net::TcpListener::from(listener);
            listener.set_nonblocking(true)?;
            let listener = tokio::net::TcpListener::from_std(listener)?;
            self.tasks.spawn(doors::keep(Arc::clone(self), listener, door));
        }
        let datagrams = std::net::UdpSocket::from(datagrams);
        datagrams.set_nonblocking(true)?;
        self.tasks.spawn(Arc::clone(self).answer_datagrams(UdpSocket::from_std(datagrams)?));
        Ok(())
    }

    /// From now on these rules hold: when this returns, none is judged by older ones, and what they forbid is being cut.
    pub fn rule(&self, rules: Rules) {
        let mut state = self.state();
        state.rules = Arc::new(rules);
        for open in state.open.values() {
            if !open.is_allowed(&state.rules) {
                open.cut.cancel();
            }
        }
    }

    /// From now on it has these secrets.
    pub fn entrust(&self, secrets: Option<Arc<SandboxSecrets>>) {
        self.state().secrets = secrets;
    }

    /// Cuts all that is open, and closes the doors.
    pub async fn end(&self) {
        self.over.cancel();
        self.tasks.close();
        self.tasks.wait().await;
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn rules(&self) -> Arc<Rules> {
        Arc::clone(&self.state().rules)
    }

    /// A place for one more connection.
    fn admit(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.places).try_acquire_owned().ok()
    }

    /// Where an address leads, as the sandbox sees it.
    fn target(&self, address: IpAddr) -> Result<Target, Target> {
        let address = address.to_canonical();
        match self.state().names.host(address) {
            Ok(Some(host)) => Ok(Target::Host(host.clone())),
            Ok(None) => Ok(Target::Address(address)),
            Err(names::Unknown) => Err(Target::Address(address)),
        }
    }

    /// A target as a client named it: a synthetic address is the name it stands for.
    fn named(&self, target: Target) -> Result<Target, String> {
        match target {
            Target::Host(_) => Ok(target),
            Target::Address(address) => {
                self.target(address).map_err(|_| "the address stands for no name that was looked up".to_owned())
            }
        }
    }

    /// Judges a destination and, in the same step, registers a connection to it.
    fn enter(self: &Arc<Self>, via: Via, target: &Target, port: u16) -> Result<Passage, String> {
        let mut state = self.state();
        if let Err(reason) = state.rules.judge(target, port) {
            drop(state);
            let reason = reason.to_string();
            self.refuse(via, Some((target, port)), &reason);
            return Err(reason);
        }
        let (number, cut) = (state.next, CancellationToken::new());
        state.next += 1;
        state.open.insert(number, Open { target: target.clone(), port, address: None, cut: cut.clone() });
        Ok(Passage {
            sandbox: Arc::clone(self),
            number,
            via,
            target: target.clone(),
            port,
            address: None,
            cut,
            count: Arc::default(),
            began: Instant::now(),
            ended: None,
        })
    }

    /// Records a refusal that was not preceded by a [`Sandbox::enter`].
    fn refuse(&self, via: Via, destination: Option<(&Target, u16)>, reason: &str) {
        self.record(via, destination.map(|(target, port)| (target.to_string(), Some(port))), Decision::Refused, reason);
    }

    /// Its secrets, where a destination is a host of one of them.
    fn secrets(&self, target: &Target, port: u16) -> Option<Arc<SandboxSecrets>> {
        self.state().secrets.clone().filter(|secrets| secrets.covers(target, port))
    }

    /// Records that a secret's value went out.
    fn used(&self, via: Via, target: &Target, port: u16, secret: &str) {
        let mut record = self.note(via, Some((target.to_string(), Some(port))), Decision::Allowed, "");
        record.secret = Some(secret.to_owned());
        self.common.audit.put(record);
    }

    fn record(&self, via: Via, destination: Option<(String, Option<u16>)>, decision: Decision, reason: &str) {
        self.common.audit.put(self.note(via, destination, decision, reason));
    }

    fn note(&self, via: Via, destination: Option<(String, Option<u16>)>, decision: Decision, reason: &str) -> Record {
        let (destination, port) = destination.map_or((None, None), |(name, port)| (Some(name), port));
        Record {
            time: audit::now(),
            sandbox: Arc::clone(&self.id),
            pool: Arc::clone(&self.pool),
            via,
            destination,
            port,
            address: None,
            decision,
            reason: (!reason.is_empty()).then(|| reason.to_owned()),
            secret: None,
            sent: 0,
            received: 0,
            milliseconds: 0,
        }
    }

    async fn answer_datagrams(self: Arc<Self>, socket: UdpSocket) {
        let mut buffer = [0; dns::MAX_QUERY + 1];
        loop {
            let received = tokio::select! {
                biased;
                () = self.over.cancelled() => return,
                received = socket.recv_from(&mut buffer) => received,
            };
            // An error is of one datagram (such as an answer that nobody took), never of the socket.
            let Ok((length, from)) = received else { continue };
            if let Some(answer) = self.answer(&buffer[..length]) {
                // Where it does not go out at once it is lost, as any datagram may be.
                let _ = socket.try_send_to(&answer, from);
            }
        }
    }

    /// Answers a question for a name; `None` when it is no question, or one too many.
    fn answer(&self, bytes: &[u8]) -> Option<Vec<u8>> {
        let query = dns::query(bytes)?;
        let now = Instant::now();
        let mut state = self.state();
        if !state.queries.take(now) {
            return None;
        }
        let host = query.name.clone().filter(|host| state.rules.knows(host));
        let (answer, note) = match (host, query.kind) {
            (None, _) => (Answer::NoName, Some((Decision::Refused, "no list allows the name"))),
            (Some(_), Kind::Carrier) => (Answer::Refused, Some((Decision::Refused, "such records are not looked up"))),
            (Some(_), Kind::Other) => (Answer::Nothing, None),
            (Some(host), Kind::A | Kind::Aaaa) => {
                let is_new = !state.names.has(&host);
                if is_new && !state.fresh.take(now) {
                    (Answer::Refused, Some((Decision::Refused, "too many new names")))
                } else {
                    let number = state.names.number(&host);
                    let address: IpAddr = match query.kind {
                        Kind::Aaaa => names::v6(number).into(),
                        Kind::A | Kind::Carrier | Kind::Other => names::v4(number).into(),
                    };
                    (Answer::Address(address), is_new.then_some((Decision::Allowed, "")))
                }
            }
        };
        drop(state);
        if let Some((decision, reason)) = note {
            let destination = query.name.as_ref().map(|host: &Host| (host.to_string(), None));
            self.record(Via::Dns, destination, decision, reason);
        }
        Some(dns::answer(&query, answer))
    }
}

/// A connection that was allowed, until it ends: then it is recorded.
#[derive(Debug)]
struct Passage {
    sandbox: Arc<Sandbox>,
    number: u64,
    via: Via,
    target: Target,
    port: u16,
    address: Option<IpAddr>,
    cut: CancellationToken,
    count: Arc<Count>,
    began: Instant,
    /// How it ended, when not by itself.
    ended: Option<(Decision, String)>,
}

impl Passage {
    /// Connects to where it leads. On an error it has been recorded.
    async fn dial(mut self) -> Result<(Self, Metered), String> {
        let rules = self.sandbox.rules();
        let dialler = self.sandbox.common.dialler.clone();
        let dialled = tokio::select! {
            biased;
            () = self.cut.cancelled() => Err((Decision::Refused, "the rules have changed".to_owned())),
            () = self.sandbox.over.cancelled() => Err((Decision::Failed, "the sandbox is over".to_owned())),
            dialled = dialler.dial(&rules, &self.target, self.port) => dialled.map_err(|error| match &error {
                DialError::Refused(_) => (Decision::Refused, error.to_string()),
                DialError::Resolve(_) | DialError::Connect(_) => (Decision::Failed, error.to_string()),
            }),
        };
        let stream = dialled.and_then(|stream| self.arrived(&stream).map(|()| stream));
        match stream {
            Ok(stream) => {
                let Sandbox { count, common, .. } = &*self.sandbox;
                let metered = Metered::new(stream, Arc::clone(&self.count), count.clone(), common.limits.bytes);
                Ok((self, metered))
            }
            Err((decision, reason)) => {
                self.ended = Some((decision, reason.clone()));
                Err(reason)
            }
        }
    }

    /// Its address is known: the rules of now judge it, and later ones will.
    fn arrived(&mut self, stream: &TcpStream) -> Result<(), (Decision, String)> {
        let address = stream.peer_addr().map_err(|error| (Decision::Failed, error.to_string()))?.ip().to_canonical();
        self.address = Some(address);
        let mut state = self.sandbox.state();
        let rules = Arc::clone(&state.rules);
        if let Some(open) = state.open.get_mut(&self.number) {
            open.address = Some(address);
        }
        rules.judge_address(address, self.port).map_err(|reason| (Decision::Refused, reason.to_string()))
    }

    /// Goes on with `work` as long as this may be open; on an end that is not its own, says which.
    async fn during(&mut self, work: impl Future<Output = Result<(), String>>) {
        let limits = self.sandbox.common.limits;
        let ended = tokio::select! {
            biased;
            () = self.cut.cancelled() => Some("the rules have changed".to_owned()),
            () = self.sandbox.over.cancelled() => Some("the sandbox is over".to_owned()),
            done = work => done.err(),
            why = stale(&self.count, limits.idle, limits.life) => Some(why.to_owned()),
        };
        if let Some(why) = ended {
            self.ended.get_or_insert((Decision::Allowed, why));
        }
    }

    /// It turned out not to be allowed.
    fn refused(mut self, reason: &str) {
        self.ended = Some((Decision::Refused, reason.to_owned()));
    }
}

impl Drop for Passage {
    fn drop(&mut self) {
        self.sandbox.state().open.remove(&self.number);
        let (decision, reason) = match self.ended.take() {
            Some((decision, reason)) => (decision, Some(reason)),
            None => (Decision::Allowed, None),
        };
        self.sandbox.common.audit.put(Record {
            time: audit::now(),
            sandbox: Arc::clone(&self.sandbox.id),
            pool: Arc::clone(&self.sandbox.pool),
            via: self.via,
            destination: Some(self.target.to_string()),
            port: Some(self.port),
            address: self.address.map(|address| address.to_string()),
            decision,
            reason,
            secret: None,
            sent: self.count.sent.load(Ordering::Relaxed),
            received: self.count.received.load(Ordering::Relaxed),
            milliseconds: u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX),
        });
    }
}

#[cfg(test)]
mod tests;
