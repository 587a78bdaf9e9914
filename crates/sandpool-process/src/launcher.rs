//! The launcher: root, one thread, no network. It builds sandboxes, owns them, and keeps the server running.
//!
//! ```text
//! loop: signals | the server's calls | the server's end | a sandbox's first words, short memory, end | time
//! ```
//!
//! Nothing in it waits, and nothing in it is done for each sandbox: with nothing to do for anybody it sleeps, however many
//! there are. What takes long is done by the sandbox's own first process, and most of that before anybody asks (`seeds`).
//!
//! It reads nothing that came from a sandbox but the sentence in which a failed start is reported, which no workload
//! can write to, and takes calls from the server, which it checks. Who owns which sandbox is remembered here, so that
//! it outlives the server.

mod admission;
mod egress;
mod kvm;
mod lingering;
mod sandbox;
mod seeds;
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
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::epoll;
use rustix::fs::{FlockOperation, MemfdFlags, SealFlags};
use rustix::process::{Resource, Rlimit, Signal};
use sandpool_core::limits::Limits;
use sandpool_sys::counters::Counters;
use sandpool_sys::sandbox as sys;
use sandpool_vm::machine::Machine;
use sandpool_vm::vmm::Platform;
use sandpool_wire::agent::Runtime;
use sandpool_wire::egress::MAX_POLICY;

use crate::cgroup::Groups;
use crate::control::{Answer, Call, FromLauncher, Id, MadeBy, PAGE, Record, Refusal, ToLauncher, Why, WireUsage};
use crate::host;
use crate::oci::{self, OciRuntime, Program, Runtimes};
use admission::{Admission, Expected};
use egress::{Egress, Gate};
use lingering::Lingering;
use sandbox::Live;
use sandpool_walls::seccomp::Filters;
pub use sandpool_walls::setup::Trust;
use seeds::Seeds;
use server::Server;
use slots::Slots;

/// The server's exit code that means "do not start me again" (`EX_CONFIG` of sysexits.h).
pub const SERVER_GIVES_UP: i32 = 78;

/// How often a sandbox's memory is looked at while the kernel reclaims from it.
const TICK: Duration = Duration::from_millis(500);

/// Sandboxes that are over and remembered as such, so that no late `create` brings one back.
const OVER: usize = 65_536;

/// Sessions' sandboxes that ended by themselves and are remembered until the server has destroyed them.
const LOST: usize = 4_096;

/// Descriptors that a sandbox takes here: of its process, its agent's control socket, its alarm, and while it starts the
/// pipe of its words. And those of the launcher itself.
const DESCRIPTORS_EACH: u64 = 4;
/// And with a way out, those of its listeners.
const DESCRIPTORS_OUT: u64 = 7;
const DESCRIPTORS: u64 = 256;

/// Sandboxes that have a counter of their own; the next ones have those of the first. 16 bytes each.
const COUNTERS: usize = 65_536;

/// How much of so much memory stays free when nobody says how much: a twentieth, and 256 MiB at least.
#[must_use]
pub fn default_reserve(total: u64) -> u64 {
    (total / 20).max(256 << 20)
}

/// What the launcher works with.
#[derive(Debug)]
pub struct LauncherConfig {
    /// The static agent: an ELF file's bytes.
    pub agent: &'static [u8],
    /// The state directory. Of launchers with the same one, only the first runs.
    pub home: PathBuf,
    /// Every pool's root file system lies below this directory.
    pub images: PathBuf,
    /// The OCI runtimes of this host, for pools whose sandboxes they make.
    pub runtimes: Runtimes,
    /// What sandboxes of these pools trust besides their image's certificates.
    pub trust: BTreeMap<String, Trust>,
    /// Sandboxes at the same time, at most.
    pub max_sandboxes: u32,
    /// Bytes of the host's memory that stay free: a sandbox for which there is not more is refused. `None` for
    /// [`default_reserve`].
    pub memory_reserve: Option<u64>,
    /// The server.
    pub server: ServerProcess,
    /// The egress proxy, for pools with a way out; without it there are none. It gets the counters as 4, and as 5 what it tells the
    /// server, which gets the other end of that as 4.
    pub egress: Option<ServerProcess>,
    /// Bytes of memory that the egress proxy may use.
    pub egress_memory: u64,
    /// From the server's SIGTERM to its SIGKILL at shutdown.
    pub grace: Duration,
}

/// How the server, or the egress proxy, is started: this program's own file, as another user.
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
    /// Descriptors that it gets after those.
    pub inherit: Vec<OwnedFd>,
}

/// What sandboxes of a pool are made from.
struct Pool {
    runtime: Runtime,
    rootfs: PathBuf,
    rootfs_is: (u64, u64),
    limits: Limits,
    /// Whether its programs may have servers on loopback.
    local_servers: bool,
    /// The OCI runtime that makes its sandboxes.
    program: Option<Program>,
    /// What a sandbox takes of the host's memory.
    expected: Expected,
    /// What interpreters of new sandboxes start from, open for reading alone.
    zygote: Option<OwnedFd>,
    /// What its sandboxes may reach, as the egress proxy reads it.
    egress: Option<Vec<u8>>,
    /// What its sandboxes keep, when they are around machines.
    machine: Option<PoolMachine>,
}

/// What runs in the sandboxes of a pool of machines.
struct PoolMachine {
    machine: Machine,
    /// The image as a block device, open for reading alone; and device and inode of its file.
    image: OwnedFd,
    image_is: (u64, u64),
    /// Its processors are those of the host, which `/dev/kvm` lends.
    has_kvm: bool,
}

impl PoolMachine {
    /// # Errors
    /// Why there can be no such machine.
    fn new(machine: Machine, image: &str, images: &Path, platform: &Platform) -> Result<Self, String> {
        machine.check()?;
        let has_kvm = !platform.is_emulated;
        if has_kvm {
            kvm::node(0).map_err(|error| format!("its machines run on the host's processors: {error}"))?;
        }
        let found = std::fs::canonicalize(image).map_err(|error| format!("{image}: {error}"))?;
        if found != Path::new(image) || !found.starts_with(images) {
            return Err(format!("{image} is no image: its own path must lie below {}", images.display()));
        }
        let file = File::open(&found).map_err(|error| format!("{image}: {error}"))?;
        let meta = file.metadata().map_err(|error| format!("{image}: {error}"))?;
        if !meta.is_file() {
            return Err(format!("{image} is no file"));
        }
        Ok(Self { machine, image: file.into(), image_is: (meta.dev(), meta.ino()), has_kvm })
    }
}

impl Pool {
    /// The arguments of its sandboxes' first processes, without what depends on their purpose.
    fn words(&self) -> Vec<String> {
        match &self.machine {
            None => vec![self.runtime.word().to_owned()],
            Some(PoolMachine { machine, .. }) => [vec!["keeper".to_owned()], machine.words()].concat(),
        }
    }

    /// Whether its image is the one that was there when the pool was made.
    fn is_as_it_was(&self) -> bool {
        std::fs::metadata(&self.rootfs).is_ok_and(|meta| (meta.dev(), meta.ino()) == self.rootfs_is)
    }
}

const SIGNALS: u64 = 0;
const SERVER_SOCKET: u64 = 1;
const SERVER_END: u64 = 2;
const EGRESS_SOCKET: u64 = 3;
const EGRESS_END: u64 = 4;
/// From here on: four times a slot, plus which of a sandbox's descriptors ([`End`]).
const SANDBOXES: u64 = 16;

/// Which of a sandbox's descriptors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// Its first process has ended.
    Process,
    /// Its start says what went wrong, or that all went well.
    Words,
    /// Its memory is short.
    Alarm,
    /// Its listeners come.
    Listeners,
}

/// Who is in a slot.
#[derive(Clone, Debug)]
enum Place {
    /// Nobody's sandbox, of this pool.
    Seed(String),
    /// The sandbox of this id.
    Sandbox(Id),
}

fn token(slot: u32, end: End) -> epoll::EventData {
    let end = match end {
        End::Process => 0,
        End::Words => 1,
        End::Alarm => 2,
        End::Listeners => 3,
    };
    epoll::EventData::new_u64(SANDBOXES + 4 * u64::from(slot) + end)
}

/// The reverse of [`token`], for one that is.
fn slot_and_end(token: u64) -> (u32, End) {
    let end = match (token - SANDBOXES) % 4 {
        0 => End::Process,
        1 => End::Words,
        2 => End::Alarm,
        _ => End::Listeners,
    };
    (u32::try_from((token - SANDBOXES) / 4).unwrap_or(u32::MAX), end)
}

struct Launcher {
    config: LauncherConfig,
    _lock: File,
    agent: OwnedFd,
    filters: Filters,
    /// The filters, as an agent in a container takes them.
    filters_file: OwnedFd,
    /// The release of the host's kernel.
    release: String,
    /// Those of sandboxes around machines.
    vmm_filters: Filters,
    groups: Groups,
    epoll: OwnedFd,
    signals: OwnedFd,
    pools: BTreeMap<String, Pool>,
    admission: Admission,
    live: BTreeMap<Id, Live>,
    seeds: Seeds,
    places: BTreeMap<u32, Place>,
    over: Over,
    lost: Lost,
    slots: Slots,
    lingering: Lingering,
    server: Server,
    egress: Egress,
    /// What the egress proxy counts in.
    counters: Arc<Counters>,
    stopping: Option<Stopping>,
    /// Whose memory is looked at with each tick.
    short_of_memory: BTreeSet<Id>,
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

/// For how long a process of ours computes at a stretch while others wait. Requests are made of many short ones, which do not wait for
/// the end of somebody's computing: the p99 of a quiet tenant beside one that computes was 2.3 times its own with the kernel's 1.4 ms.
const TIME_SLICE: Duration = Duration::from_micros(300);

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
    fn new(mut config: LauncherConfig) -> io::Result<Self> {
        if [Some(&config.server), config.egress.as_ref()].into_iter().flatten().any(|it| it.uid == 0 || it.gid == 0) {
            return Err(io::Error::other("neither the server nor the egress proxy may run as root"));
        }
        let lock = File::create(config.home.join("launcher.lock"))?;
        rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive)
            .map_err(|_| io::Error::other(format!("another sandpool runs with {}", config.home.display())))?;
        allow_descriptors(config.max_sandboxes)?;
        // For the server and all sandboxes, which inherit it. Whoever cannot have it is as fast as before.
        let _ = sys::set_time_slice(TIME_SLICE);
        let (file, counters) = Counters::create(COUNTERS)?;
        // Kept here, both ends: what one of the two says finds the other also when that has been started anew.
        let (hears, tells) = crate::control::packet_pair()?;
        config.server.inherit.insert(0, hears);
        if let Some(egress) = &mut config.egress {
            egress.inherit.splice(0..0, [file, tells]);
        }
        let home = std::fs::metadata(&config.home)?;
        let groups = Groups::open(&format!("{:x}-{:x}", home.dev(), home.ino()))?;
        let agent = sealed(config.agent)?;
        let filters = Filters::compile()?;
        let filters_file = sealed(&filters.to_bytes())?;
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let signals = sys::signal_fd(&[Signal::TERM.as_raw(), Signal::INT.as_raw(), Signal::HUP.as_raw()])?;
        let data = epoll::EventData::new_u64(SIGNALS);
        epoll::add(&epoll, &signals, data, epoll::EventFlags::IN)?;
        Ok(Self {
            slots: Slots::new(config.max_sandboxes.saturating_add(seeds::MOST)),
            _lock: lock,
            agent,
            filters: Filters::compile()?,
            filters_file,
            vmm_filters: Filters::compile_for_vmm()?,
            release: rustix::system::uname().release().to_string_lossy().into_owned(),
            groups,
            epoll,
            signals,
            pools: BTreeMap::new(),
            admission: Admission::new(
                config.memory_reserve.unwrap_or_else(|| default_reserve(host::memory_total())),
                File::open("/proc/meminfo").ok(),
            ),
            live: BTreeMap::new(),
            seeds: Seeds::default(),
            places: BTreeMap::new(),
            over: Over::default(),
            lost: Lost::default(),
            lingering: Lingering::default(),
            server: Server::default(),
            egress: Egress::default(),
            counters,
            stopping: None,
            short_of_memory: BTreeSet::new(),
            next_tick: Instant::now(),
            config,
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
        self.end_seeds(None);
        self.egress.finish();
        self.lingering.sweep_at_last(&mut self.slots);
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
        if !self.short_of_memory.is_empty() {
            next = next.min(self.next_tick);
        }
        let due =
            [self.server.starts_at(), self.egress.starts_at(), self.lingering.due(), self.seeds.due(self.pools.keys())];
        next = due.into_iter().flatten().fold(next, Instant::min);
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
            EGRESS_SOCKET => self.hear_egress(),
            EGRESS_END => self.egress_ended(),
            sandbox => {
                let (slot, end) = slot_and_end(sandbox);
                // Of several events of one sandbox, its end may have been the first.
                match (self.places.get(&slot).cloned(), end) {
                    (None, _) => {}
                    (Some(place), End::Listeners) => self.listeners_came(slot, &place),
                    (Some(Place::Sandbox(id)), End::Process) => self.sandbox_ended(id, false),
                    (Some(Place::Sandbox(id)), End::Words) => self.start_spoke(id),
                    (Some(Place::Sandbox(id)), End::Alarm) => self.memory_is_short(id),
                    (Some(Place::Seed(pool)), End::Process) => self.seed_ended(&pool, slot),
                    (Some(Place::Seed(pool)), End::Words) => self.seed_spoke(&pool, slot),
                    // Its limit is the pool's: what fails in it for want of memory ends it.
                    (Some(Place::Seed(_)), End::Alarm) => {}
                }
            }
        }
    }

    fn time(&mut self) {
        let now = Instant::now();
        if self.stopping.is_none() && self.server.starts_at().is_some_and(|at| now >= at) {
            self.start_server();
        }
        if self.stopping.is_none() && self.egress.starts_at().is_some_and(|at| now >= at) {
            self.start_egress();
        }
        self.lingering.sweep(now, &mut self.slots);
        if self.stopping.is_none() {
            self.grow_seed(now);
        }
        if !self.short_of_memory.is_empty() && now >= self.next_tick {
            self.next_tick = now + TICK;
            self.look_at_memory();
        }
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
            Call::EnsurePool { pool, runtime, rootfs, limits, local_servers, container, egress, machine_image } => self
                .ensure_pool(
                    &pool,
                    runtime,
                    (&rootfs, machine_image),
                    (limits.check(), local_servers, container),
                    egress,
                ),
            Call::RemovePool { pool } => {
                self.remove_pool(&pool);
                Ok(Answer::Done)
            }
            Call::Create { id, pool, purpose } => self.create(id, &pool, purpose).map(|()| Answer::Done),
            Call::KeepZygote { id } => match self.present(id).and_then(|live| live.keep_zygote()) {
                Ok(()) => {
                    if let Some(live) = self.live.get_mut(&id) {
                        live.awaited_by.push(request);
                    }
                    return None;
                }
                Err(refusal) => Err(refusal),
            },
            Call::Assign { id, record } => self.assign(id, record).map(|()| Answer::Done),
            Call::Activated { id } => self.present(id).map(|live| {
                live.activated = true;
                Answer::Done
            }),
            Call::Give { id, record } => self.assign(id, record).and_then(|()| {
                self.present(id)?.activated = true;
                Ok(Answer::Done)
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
            Call::Narrow { id, policy } => self.narrow(request, id, policy)?,
            Call::Entrust { id, secrets } => self.entrust(request, id, secrets)?,
            Call::Narrowed { id } => self
                .present(id)
                .map(|live| Answer::Narrowed { policy: live.gate.as_ref().and_then(|gate| gate.narrowed()) }),
            Call::Dial { id } => match self.present(id).and_then(|live| live.dial()) {
                Ok(stream) => return Some((Ok(Answer::Dialled), Some(stream))),
                Err(refusal) => Err(refusal),
            },
            Call::Save { id, stays } => match self.machine(id).and_then(|live| live.save(stays)) {
                Ok(stream) => return Some((Ok(Answer::Dialled), Some(stream))),
                Err(refusal) => Err(refusal),
            },
            Call::Wake { id } => match self.machine(id).and_then(|live| live.wake()) {
                Ok(stream) => return Some((Ok(Answer::Dialled), Some(stream))),
                Err(refusal) => Err(refusal),
            },
            Call::Connect { id, port } => match self.present(id).and_then(|live| live.connect(port)) {
                Ok(stream) => return Some((Ok(Answer::Dialled), Some(stream))),
                Err(refusal) => Err(refusal),
            },
            Call::Usage { id } => self
                .present(id)
                .map(|live| Answer::Usage(WireUsage::new(live.group.usage(), live.gate.as_ref().map(Gate::moved)))),
        };
        Some((result, None))
    }

    fn present(&mut self, id: Id) -> Result<&mut Live, Refusal> {
        self.live.get_mut(&id).filter(|live| !live.is_leaving()).ok_or(Refusal::Gone)
    }

    /// A sandbox around a machine.
    fn machine(&mut self, id: Id) -> Result<&mut Live, Refusal> {
        let pool = self.present(id)?.pool.clone();
        if self.pools.get(&pool).is_none_or(|pool| pool.machine.is_none()) {
            return Err(Refusal::Invalid(format!("sandboxes of {pool} are no machines")));
        }
        self.present(id)
    }

    fn ensure_pool(
        &mut self,
        name: &str,
        runtime: Runtime,
        (rootfs, machine_image): (&str, Option<String>),
        (limits, local_servers, container): (Result<Limits, String>, bool, Option<Option<OciRuntime>>),
        egress: Option<Vec<u8>>,
    ) -> Result<Answer, Refusal> {
        let mut limits = limits.map_err(Refusal::Invalid)?;
        let program = container.map(|wanted| oci::choose(&self.config.runtimes, wanted).cloned()).transpose();
        let program = program.map_err(Refusal::Invalid)?;
        if !local_servers && program.as_ref().is_some_and(|program| program.runtime == OciRuntime::Runsc) {
            let why = "localServers: false needs Landlock, and gVisor's kernel has none";
            return Err(Refusal::Invalid(why.to_owned()));
        }
        if egress.as_ref().is_some_and(|policy| policy.len() > MAX_POLICY) {
            return Err(Refusal::Invalid("what may be reached is said with too many words".to_owned()));
        }
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
        let machine = match machine_image {
            None => None,
            Some(image) => {
                let (leads_out, trusts) = (egress.is_some(), self.config.trust.contains_key(name));
                let machine = Machine { runtime, limits, local_servers, leads_out, trusts };
                let platform = Platform::read(&rootfs);
                let platform = platform.map_err(|error| Refusal::Invalid(format!("what its machines are: {error}")))?;
                limits = machine.around(platform.vmm);
                Some(PoolMachine::new(machine, &image, &images, &platform).map_err(Refusal::Invalid)?)
            }
        };
        if !self.pools.values().any(|pool| pool.rootfs == rootfs) {
            warmth::keep(&rootfs);
        }
        if egress.is_some() {
            self.want_egress()?;
        }
        let rootfs_is = (meta.dev(), meta.ino());
        let is_known = self.pools.get(name).is_some_and(|pool| {
            pool.runtime == runtime
                && pool.rootfs == rootfs
                && pool.rootfs_is == rootfs_is
                && pool.limits == limits
                && pool.local_servers == local_servers
                && pool.program == program
                && pool.egress.is_some() == egress.is_some()
                && same_machine(pool.machine.as_ref(), machine.as_ref())
        });
        if is_known
            && let Some(pool) = self.pools.get_mut(name)
            && pool.egress != egress
        {
            pool.egress = egress.clone();
            self.rule_pool(name);
        }
        if !is_known {
            // What was made from the old one is not what is asked for. A zygote is of its image and runtime alone.
            self.end_seeds(Some(name));
            let old = self.pools.remove(name);
            // And of a way out, of which an interpreter may remember that there was none.
            let is_alike = |old: &Pool| {
                (old.runtime, old.rootfs_is, old.egress.is_some()) == (runtime, rootfs_is, egress.is_some())
                    && old.program.is_none()
                    && program.is_none()
                    && same_machine(old.machine.as_ref(), machine.as_ref())
            };
            // Those that are there keep their way out, with the rules of now.
            let is_ruled_anew = old.as_ref().is_some_and(|old| old.egress != egress);
            let zygote = old.filter(is_alike).and_then(|old| old.zygote);
            let expected = Expected::new(runtime, machine.is_some(), limits.memory);
            let pool =
                Pool { runtime, rootfs, rootfs_is, limits, local_servers, program, expected, zygote, egress, machine };
            self.pools.insert(name.to_owned(), pool);
            if is_ruled_anew {
                self.rule_pool(name);
            }
        }
        let pool = self.pools.get(name);
        let made_by = pool.and_then(|pool| pool.program.as_ref()).map(|program| MadeBy {
            runtime: program.runtime,
            version: program.version.clone(),
            below_floor: program.below_floor.clone(),
        });
        Ok(Answer::Pool { has_zygote: pool.is_some_and(|pool| pool.zygote.is_some()), made_by })
    }

    /// Nothing more is made for this pool, and nothing is reached from it.
    fn remove_pool(&mut self, name: &str) {
        self.end_seeds(Some(name));
        if self.pools.remove(name).is_some() {
            self.rule_pool(name);
        }
    }

    fn assign(&mut self, id: Id, record: Vec<u8>) -> Result<(), Refusal> {
        if record.len() > sandpool_driver::MAX_RECORD {
            return Err(Refusal::Invalid(format!("an owner's record of {} bytes is too long", record.len())));
        }
        let live = self.present(id)?;
        match &live.owner {
            Some(owner) if *owner != record => Err(Refusal::Conflict("it belongs to another session".to_owned())),
            Some(_) => Ok(()),
            None => {
                let first = live.group.comes_first(&live.limits);
                first.map_err(|error| Refusal::Unavailable(format!("its processor share: {error}")))?;
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
            purpose: live.purpose(),
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

/// Whether two pools' sandboxes keep the same machines, or none.
fn same_machine(one: Option<&PoolMachine>, other: Option<&PoolMachine>) -> bool {
    let what = |pool: &PoolMachine| (pool.machine, pool.image_is, pool.has_kvm);
    one.map(what) == other.map(what)
}

/// Lets this process, and the server, have as many descriptors as so many sandboxes need.
fn allow_descriptors(max_sandboxes: u32) -> io::Result<()> {
    let allowed = rustix::process::getrlimit(Resource::Nofile).maximum;
    let needed =
        u64::from(max_sandboxes.saturating_add(seeds::MOST)) * (DESCRIPTORS_EACH + DESCRIPTORS_OUT) + DESCRIPTORS;
    let raised = allowed.map(|allowed| allowed.max(needed));
    // Where more than was allowed is not allowed to us either, what was allowed must do; the refusal that follows when
    // it is used up says so.
    [raised, allowed]
        .into_iter()
        .map(|limit| rustix::process::setrlimit(Resource::Nofile, Rlimit { current: limit, maximum: limit }))
        .reduce(|first, second| first.or(second))
        .unwrap_or(Ok(()))
        .map_err(io::Error::from)
}

/// Puts a program into memory where nobody, we included, can change it.
fn sealed(program: &[u8]) -> io::Result<OwnedFd> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let fd = rustix::fs::memfd_create("sandpool-agent", flags)?;
    let mut file = File::from(fd);
    io::Write::write_all(&mut file, program)?;
    let fd = OwnedFd::from(file);
    seal(&fd)
}

/// Takes from everybody, us included, the power to change a file in memory; answers it open for reading alone.
///
/// # Errors
/// `EBUSY` when somebody has it mapped for writing.
fn seal(fd: &OwnedFd) -> io::Result<OwnedFd> {
    rustix::fs::fcntl_add_seals(fd, SealFlags::WRITE | SealFlags::GROW | SealFlags::SHRINK | SealFlags::SEAL)?;
    // Executed through a descriptor that cannot write.
    let path = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(fd));
    Ok(File::open(path)?.into())
}

/// A file in memory for one sandbox to write a zygote to, until it is sealed. It is a program.
fn empty_zygote() -> io::Result<OwnedFd> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    Ok(rustix::fs::memfd_create("sandpool-zygote", flags)?)
}
