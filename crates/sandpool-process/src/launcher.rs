//! The launcher: root, one thread, no network. It builds sandboxes, owns them, and keeps the server running.
//!
//! ```text
//! loop: signals | the server's calls | the server's end | a sandbox's first words | a sandbox's end | time
//! ```
//!
//! It reads nothing that came from a sandbox but the sentence in which a failed start is reported, which no workload
//! can write to, and takes calls from the server, which it checks. Who owns which sandbox is remembered here, so that
//! it outlives the server.

mod sandbox;
mod server;
mod slots;
mod warmth;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use rustix::event::epoll;
use rustix::fs::{FlockOperation, MemfdFlags, SealFlags};
use rustix::process::{Resource, Rlimit, Signal};
use sandpool_core::limits::Limits;
use sandpool_sys::sandbox as sys;
use sandpool_wire::agent::Runtime;

use crate::cgroup::{Group, Groups};
use crate::control::{Answer, Call, FromLauncher, Id, PAGE, Record, Refusal, ToLauncher, Why};
use crate::seccomp::Filters;
use sandbox::Live;
use server::Server;
use slots::Slots;

/// The server's exit code that means "do not start me again" (`EX_CONFIG` of sysexits.h).
pub const SERVER_GIVES_UP: i32 = 78;

/// How often memory is looked at, and groups that were busy are tried again.
const TICK: Duration = Duration::from_millis(500);

/// Sandboxes that are over and remembered as such, so that no late `create` brings one back.
const OVER: usize = 65_536;

/// Sessions' sandboxes that ended by themselves and are remembered until the server has destroyed them.
const LOST: usize = 4_096;

/// What the launcher works with.
#[derive(Debug)]
pub struct LauncherConfig {
    /// The static agent: an ELF file's bytes.
    pub agent: &'static [u8],
    /// The state directory. Of launchers with the same one, only the first runs.
    pub home: PathBuf,
    /// Every pool's root file system lies below this directory.
    pub images: PathBuf,
    /// Sandboxes at the same time, at most.
    pub max_sandboxes: u32,
    /// The server.
    pub server: ServerProcess,
    /// From the server's SIGTERM to its SIGKILL at shutdown.
    pub grace: Duration,
}

/// How the server is started: this program's own file, as another user.
#[derive(Debug)]
pub struct ServerProcess {
    /// Its user id; not 0.
    pub uid: u32,
    /// Its group id; not 0.
    pub gid: u32,
    /// Its arguments, without the program's name.
    pub args: Vec<OsString>,
    /// Its whole environment.
    pub env: Vec<(OsString, OsString)>,
    /// Descriptors that it gets as 4, 5, 6, ...
    pub inherit: Vec<OwnedFd>,
}

/// What sandboxes of a pool are made from.
struct Pool {
    runtime: Runtime,
    rootfs: PathBuf,
    rootfs_is: (u64, u64),
    limits: Limits,
}

const SIGNALS: u64 = 0;
const SERVER_SOCKET: u64 = 1;
const SERVER_END: u64 = 2;
/// From here on: twice a slot, plus 1 for the pipe of a start's errors.
const SANDBOXES: u64 = 16;

struct Launcher {
    config: LauncherConfig,
    _lock: File,
    agent: OwnedFd,
    filters: Filters,
    groups: Groups,
    epoll: OwnedFd,
    signals: OwnedFd,
    pools: BTreeMap<String, Pool>,
    live: BTreeMap<Id, Live>,
    over: Over,
    lost: Lost,
    slots: Slots,
    /// Groups whose directories were still busy when their sandbox ended.
    lingering: Vec<(u32, Group)>,
    server: Server,
    stopping: Option<Stopping>,
    next_tick: Instant,
}

/// Ids of sandboxes that are over, the oldest first.
#[derive(Default)]
struct Over {
    ids: BTreeSet<Id>,
    order: VecDeque<Id>,
}

impl Over {
    fn add(&mut self, id: Id) {
        if self.ids.insert(id) {
            self.order.push_back(id);
        }
        if self.order.len() > OVER
            && let Some(oldest) = self.order.pop_front()
        {
            self.ids.remove(&oldest);
        }
    }
}

/// Sessions' sandboxes that ended by themselves: a server that was not there meanwhile learns of them from the list.
#[derive(Default)]
struct Lost {
    records: BTreeMap<Id, Record>,
    /// Oldest first; also of some that are not there any more.
    order: VecDeque<Id>,
}

impl Lost {
    fn add(&mut self, record: Record) {
        while self.order.len() >= LOST
            && let Some(oldest) = self.order.pop_front()
        {
            self.records.remove(&oldest);
        }
        self.order.push_back(record.id);
        self.records.insert(record.id, record);
    }

    fn forget(&mut self, id: Id) {
        self.records.remove(&id);
    }
}

/// The shutdown, once it has begun.
struct Stopping {
    kill_at: Instant,
    code: u8,
}

/// Becomes the launcher: starts the server and serves it until it ends well, gives up ([`SERVER_GIVES_UP`]) or SIGTERM
/// or SIGINT comes. Every sandbox ends with it.
///
/// The process must have one thread. The exit code is 0, or 1 after an error, which has been printed.
#[must_use]
pub fn run(config: LauncherConfig) -> ExitCode {
    let finished = Launcher::new(config).and_then(Launcher::serve);
    match finished {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            tracing::error!("launcher: {error}");
            ExitCode::FAILURE
        }
    }
}

impl Launcher {
    fn new(config: LauncherConfig) -> io::Result<Self> {
        if config.server.uid == 0 || config.server.gid == 0 {
            return Err(io::Error::other("the server must not run as root"));
        }
        let lock = File::create(config.home.join("launcher.lock"))?;
        rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive)
            .map_err(|_| io::Error::other(format!("another sandpool runs with {}", config.home.display())))?;
        let files = rustix::process::getrlimit(Resource::Nofile);
        rustix::process::setrlimit(Resource::Nofile, Rlimit { current: files.maximum, maximum: files.maximum })?;
        let home = std::fs::metadata(&config.home)?;
        let groups = Groups::open(&format!("{:x}-{:x}", home.dev(), home.ino()))?;
        let agent = sealed(config.agent)?;
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let signals = sys::signal_fd(&[Signal::TERM.as_raw(), Signal::INT.as_raw(), Signal::HUP.as_raw()])?;
        let data = epoll::EventData::new_u64(SIGNALS);
        epoll::add(&epoll, &signals, data, epoll::EventFlags::IN)?;
        Ok(Self {
            slots: Slots::new(config.max_sandboxes),
            config,
            _lock: lock,
            agent,
            filters: Filters::compile()?,
            groups,
            epoll,
            signals,
            pools: BTreeMap::new(),
            live: BTreeMap::new(),
            over: Over::default(),
            lost: Lost::default(),
            lingering: Vec::new(),
            server: Server::default(),
            stopping: None,
            next_tick: Instant::now() + TICK,
        })
    }

    fn serve(mut self) -> io::Result<u8> {
        let result = self.events();
        // Whatever happened: no sandbox without its launcher.
        self.server.kill();
        for live in self.live.values() {
            live.kill();
        }
        while let Some(id) = self.live.keys().next().copied() {
            self.sandbox_ended(id, true);
        }
        self.sweep_lingering();
        self.groups.close();
        result
    }

    fn events(&mut self) -> io::Result<u8> {
        self.start_server();
        let mut buffer = Vec::with_capacity(64);
        loop {
            if let Some(stopping) = &self.stopping {
                if !self.server.is_running() {
                    return Ok(stopping.code);
                }
                if Instant::now() >= stopping.kill_at {
                    self.server.kill();
                }
            }
            let wait = self.wait();
            let timeout = rustix::event::Timespec {
                tv_sec: i64::try_from(wait.as_secs()).unwrap_or(i64::MAX),
                tv_nsec: wait.subsec_nanos().into(),
            };
            match epoll::wait(&self.epoll, rustix::buffer::spare_capacity(&mut buffer), Some(&timeout)) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
            for event in std::mem::replace(&mut buffer, Vec::with_capacity(64)) {
                self.handle(event.data.u64(), event.flags);
            }
            self.time();
        }
    }

    /// How long nothing is due.
    fn wait(&self) -> Duration {
        let now = Instant::now();
        let mut next = now + Duration::from_secs(3600);
        if !self.live.is_empty() || !self.lingering.is_empty() {
            next = next.min(self.next_tick);
        }
        if let Some(at) = self.server.starts_at() {
            next = next.min(at);
        }
        if let Some(stopping) = &self.stopping {
            next = next.min(stopping.kill_at.max(now + Duration::from_millis(20)));
        }
        next.saturating_duration_since(now)
    }

    fn handle(&mut self, token: u64, flags: epoll::EventFlags) {
        match token {
            SIGNALS => {
                let numbers = sys::pending_signals(self.signals.as_fd());
                if numbers.iter().any(|number| *number != Signal::HUP.as_raw()) {
                    self.stop(0);
                }
            }
            SERVER_SOCKET => self.serve_calls(flags),
            SERVER_END => self.server_ended(),
            sandbox => {
                let (slot, is_start) = ((sandbox - SANDBOXES) / 2, sandbox % 2 == 1);
                let found = self.live.iter().find(|(_, live)| u64::from(live.slot) == slot);
                if let Some(id) = found.map(|(id, _)| *id) {
                    if is_start { self.start_spoke(id) } else { self.sandbox_ended(id, false) }
                }
            }
        }
    }

    fn time(&mut self) {
        let now = Instant::now();
        if self.stopping.is_none() && self.server.starts_at().is_some_and(|at| now >= at) {
            self.start_server();
        }
        if now < self.next_tick {
            return;
        }
        self.next_tick = now + TICK;
        self.sweep_lingering();
        for live in self.live.values_mut() {
            if live.is_thrashing() {
                live.kill_reason.get_or_insert(Why::OutOfMemory);
                live.kill();
            }
        }
    }

    fn sweep_lingering(&mut self) {
        let slots = &mut self.slots;
        self.lingering.retain(|(slot, group)| {
            let busy = group.remove().is_err();
            if !busy {
                slots.free(*slot);
            }
            busy
        });
    }

    fn stop(&mut self, code: u8) {
        if self.stopping.is_none() {
            self.stopping = Some(Stopping { kill_at: Instant::now() + self.config.grace, code });
            self.server.terminate();
        }
    }

    /// Reads and answers what the server asks, a bounded number of calls at a time, as long as it takes the answers.
    fn serve_calls(&mut self, flags: epoll::EventFlags) {
        if flags.contains(epoll::EventFlags::OUT) {
            self.server.flush(&self.epoll);
        }
        for _ in 0..64 {
            if self.server.has_backlog() {
                return;
            }
            match self.server.receive() {
                Ok(Some(ToLauncher { request, call })) => {
                    if let Some((result, fd)) = self.call(request, call) {
                        self.say(&FromLauncher::Reply { request, result }, fd);
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                // Closed, also with answers unread, or not speaking our language: either way this server is at its end.
                Ok(None) => return self.server.hang_up(&self.epoll),
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset => {
                    return self.server.hang_up(&self.epoll);
                }
                Err(error) => {
                    tracing::error!("the server said something that makes no sense: {error}");
                    self.server.kill();
                    return self.server.hang_up(&self.epoll);
                }
            }
        }
    }

    fn say(&mut self, message: &FromLauncher, fd: Option<OwnedFd>) {
        match crate::control::encode(message) {
            Ok(bytes) => self.server.send(&self.epoll, bytes, fd),
            Err(error) => tracing::error!("a message to the server could not be encoded: {error}"),
        }
    }

    /// Answers a call; `None` when the answer comes later.
    fn call(&mut self, request: u32, call: Call) -> Option<(Result<Answer, Refusal>, Option<OwnedFd>)> {
        let result = match call {
            Call::EnsurePool { pool, runtime, rootfs, limits } => {
                self.ensure_pool(pool, runtime, &rootfs, limits.check()).map(|()| Answer::Done)
            }
            Call::Create { id, pool } => self.create(id, &pool).map(|()| Answer::Done),
            Call::Assign { id, record } => self.assign(id, record).map(|()| Answer::Done),
            Call::Activated { id } => self.present(id).map(|live| {
                live.activated = true;
                Answer::Done
            }),
            Call::Destroy { id } => match self.live.get_mut(&id) {
                Some(live) => {
                    live.kill_reason.get_or_insert(Why::Destroyed);
                    live.awaited_by.push(request);
                    live.kill();
                    return None;
                }
                None => {
                    // Also one that never was: a call to make it may be on its way.
                    self.over.add(id);
                    self.lost.forget(id);
                    Ok(Answer::Done)
                }
            },
            Call::List { after } => Ok(self.list(after)),
            Call::Dial { id } => match self.present(id).and_then(|live| live.dial()) {
                Ok(stream) => return Some((Ok(Answer::Dialled), Some(stream))),
                Err(refusal) => Err(refusal),
            },
            Call::Usage { id } => self.present(id).map(|live| {
                let usage = live.group.usage();
                Answer::Usage {
                    memory: usage.memory,
                    memory_peak: usage.memory_peak,
                    pids: usage.pids,
                    cpu_us: usage.cpu_us,
                    oom_kills: usage.oom_kills,
                }
            }),
        };
        Some((result, None))
    }

    fn present(&mut self, id: Id) -> Result<&mut Live, Refusal> {
        self.live.get_mut(&id).filter(|live| !live.is_leaving()).ok_or(Refusal::Gone)
    }

    fn ensure_pool(
        &mut self,
        name: String,
        runtime: Runtime,
        rootfs: &str,
        limits: Result<Limits, String>,
    ) -> Result<(), Refusal> {
        let limits = limits.map_err(Refusal::Invalid)?;
        let rootfs = PathBuf::from(rootfs);
        let images = std::fs::canonicalize(&self.config.images)
            .map_err(|error| Refusal::Unavailable(format!("{}: {error}", self.config.images.display())))?;
        let found = std::fs::canonicalize(&rootfs)
            .map_err(|error| Refusal::Invalid(format!("{}: {error}", rootfs.display())))?;
        if found != rootfs || !found.starts_with(&images) || found == images {
            return Err(Refusal::Invalid(format!(
                "{} is no image: its own path must lie below {}",
                rootfs.display(),
                images.display()
            )));
        }
        let meta = std::fs::metadata(&found).map_err(|error| Refusal::Invalid(error.to_string()))?;
        if !meta.is_dir() || !Path::new(&found).join("usr").is_dir() {
            return Err(Refusal::Invalid(format!("{} holds no root file system", found.display())));
        }
        if !self.pools.values().any(|pool| pool.rootfs == rootfs) {
            warmth::keep(&rootfs);
        }
        self.pools.insert(name, Pool { runtime, rootfs, rootfs_is: (meta.dev(), meta.ino()), limits });
        Ok(())
    }

    fn assign(&mut self, id: Id, record: Vec<u8>) -> Result<(), Refusal> {
        if record.len() > sandpool_driver::MAX_RECORD {
            return Err(Refusal::Invalid(format!("an owner's record of {} bytes is too long", record.len())));
        }
        let live = self.present(id)?;
        match &live.owner {
            Some(owner) if *owner != record => Err(Refusal::Conflict("it belongs to another session".to_owned())),
            _ => {
                live.owner = Some(record);
                Ok(())
            }
        }
    }

    fn list(&self, after: Option<Id>) -> Answer {
        use std::ops::Bound::{Excluded, Unbounded};
        let rest = (after.map_or(Unbounded, Excluded), Unbounded);
        let live = self.live.range(rest).take(PAGE + 1).map(|(id, live)| Record {
            id: *id,
            pool: live.pool.clone(),
            owner: live.owner.clone(),
            activated: live.activated,
            leaving: live.is_leaving(),
            lost: false,
        });
        let lost = self.lost.records.range(rest).take(PAGE + 1).map(|(_, record)| record.clone());
        let mut sandboxes: Vec<_> = live.chain(lost).collect();
        sandboxes.sort_unstable_by_key(|record| record.id);
        let more = sandboxes.len() > PAGE;
        sandboxes.truncate(PAGE);
        Answer::Page { sandboxes, more }
    }
}

/// Puts a program into memory where nobody, we included, can change it.
fn sealed(program: &[u8]) -> io::Result<OwnedFd> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let fd = rustix::fs::memfd_create("sandpool-agent", flags)?;
    let mut file = File::from(fd);
    io::Write::write_all(&mut file, program)?;
    let fd = OwnedFd::from(file);
    rustix::fs::fcntl_add_seals(&fd, SealFlags::WRITE | SealFlags::GROW | SealFlags::SHRINK | SealFlags::SEAL)?;
    // Executed through a descriptor that cannot write.
    let path = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&fd));
    Ok(File::open(path)?.into())
}
