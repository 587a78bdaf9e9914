//! One sandbox, from clone to the last trace of it.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::panic::AssertUnwindSafe;
use std::time::Instant;

use rustix::event::epoll;
use rustix::pipe::PipeFlags;
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, WaitIdStatus};
use sandpool_core::limits::Limits;
use sandpool_sys::counters::Counter;
use sandpool_sys::sandbox::{self as sys, Cloned};
use sandpool_wire::agent::Runtime;

use super::egress::Gate;
use super::{End, Launcher, Place, token};
use crate::cgroup::{Group, Pressure};
use crate::contained::{Contained, become_container};
use crate::control::{Answer, FromLauncher, Id, Purpose, Record, Refusal, Why};
use sandpool_walls::setup::{Blueprint, Inherited, WayOut, Zygote, become_sandbox, told_to_go};

/// The longest sentence taken from a start that failed, in bytes.
const MAX_WORDS: usize = 2048;

/// Memory that a sandbox may use that makes a zygote, in bytes, where its pool allows less: it holds the libraries
/// twice, once in itself and once in the file.
const ZYGOTE_MEMORY: u64 = 2 << 30;

/// The longest file of a zygote, in bytes.
const ZYGOTE_FILE: u64 = 1 << 30;

/// RS1: this much of its memory in use, in percent, ...
const FULL_PERCENT: u64 = 95;
/// ... and so many pages read again from disk between two looks, ...
const FAULTS: u64 = 100;
/// ... and that so many looks in a row: the sandbox does nothing but reclaim.
const LOOKS: u32 = 4;
/// So many looks in a row at which that is not so: the kernel is to tell again when it reclaims.
const CALM_LOOKS: u32 = 4;

/// A sandbox whose first process has not been reaped. Also one that is nobody's yet.
pub(super) struct Live {
    pub(super) slot: u32,
    pub(super) pool: String,
    pub(super) owner: Option<Vec<u8>>,
    pub(super) activated: bool,
    pub(super) group: Group,
    /// Why it is being ended, once it is.
    pub(super) kill_reason: Option<Why>,
    /// The calls that wait for its end.
    pub(super) awaited_by: Vec<u32>,
    /// The zygote that it is for, when it is for one.
    zygote: Option<Making>,
    /// It is to show that it starts.
    is_proof: bool,
    process: OwnedFd,
    control: OwnedFd,
    /// What a failed start says; closed by a good one.
    words: Option<OwnedFd>,
    said: Vec<u8>,
    /// Where the kernel tells that it reclaims memory; `None` where it cannot, and looks must do.
    alarm: Option<(OwnedFd, epoll::EventFlags)>,
    pub(super) limits: Limits,
    /// Its way out, when it has one.
    pub(super) gate: Option<Gate>,
    pressure: Pressure,
    full_looks: u32,
    calm_looks: u32,
}

/// What a look at a sandbox's memory showed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Look {
    /// It does nothing but reclaim, and has for a while.
    Thrashes,
    /// Something is reclaimed, or was a moment ago.
    Reclaims,
    /// Nothing to see any more.
    Calm,
}

/// A zygote in the making.
struct Making {
    file: OwnedFd,
    is_complete: bool,
}

impl Live {
    pub(super) fn purpose(&self) -> Purpose {
        match &self.zygote {
            Some(_) => Purpose::Zygote,
            None if self.is_proof => Purpose::Proof,
            None => Purpose::Session,
        }
    }

    /// Its zygote is complete: ends it.
    pub(super) fn keep_zygote(&mut self) -> Result<(), Refusal> {
        let Some(making) = &mut self.zygote else {
            return Err(Refusal::Invalid("this sandbox makes no zygote".to_owned()));
        };
        making.is_complete = true;
        self.kill_reason.get_or_insert(Why::Destroyed);
        self.kill();
        Ok(())
    }

    pub(super) fn is_leaving(&self) -> bool {
        self.kill_reason.is_some()
    }

    /// Ends its first process, and with that all of them.
    pub(super) fn kill(&self) {
        // It may have ended by itself: then its descriptor says so.
        let _ = rustix::process::pidfd_send_signal(&self.process, Signal::KILL);
    }

    /// A new stream to its agent.
    pub(super) fn dial(&self) -> Result<OwnedFd, Refusal> {
        self.give_stream(b"D")
    }

    /// A stream on which its agent answers with a connection to this port.
    pub(super) fn connect(&self, port: u16) -> Result<OwnedFd, Refusal> {
        let [high, low] = port.to_be_bytes();
        self.give_stream(&[b'P', high, low])
    }

    /// A stream on which its keeper writes everything of the machine.
    pub(super) fn save(&self, stays: bool) -> Result<OwnedFd, Refusal> {
        self.give_stream(if stays { b"S" } else { b"s" })
    }

    /// A stream from which its keeper reads everything of a machine.
    pub(super) fn wake(&self) -> Result<OwnedFd, Refusal> {
        self.give_stream(b"W")
    }

    /// Gives the agent one end of a stream, and a word about what it is for.
    fn give_stream(&self, word: &[u8]) -> Result<OwnedFd, Refusal> {
        let give = || -> io::Result<OwnedFd> {
            let (here, there) = crate::control::stream_pair()?;
            crate::control::send(&self.control, word, Some(there.as_fd()))?;
            Ok(here)
        };
        give().map_err(|error| Refusal::Unavailable(format!("the agent takes no stream: {error}")))
    }

    /// Looks at its memory, once a tick.
    fn look(&mut self) -> Look {
        let now = self.group.pressure();
        let faults = now.major_faults.saturating_sub(self.pressure.major_faults);
        let full = now.usage >= self.limits.memory / 100 * FULL_PERCENT && faults >= FAULTS;
        self.pressure = now;
        (self.full_looks, self.calm_looks) = if full { (self.full_looks + 1, 0) } else { (0, self.calm_looks + 1) };
        match (self.full_looks, self.calm_looks) {
            (LOOKS.., _) => Look::Thrashes,
            (_, CALM_LOOKS..) if self.alarm.is_some() => Look::Calm,
            _ => Look::Reclaims,
        }
    }

    /// Lets its alarm wake us, once.
    fn wind_alarm(&self, epoll: &OwnedFd) {
        if let Some((alarm, flags)) = &self.alarm {
            // It is watched since its launch, so that this cannot fail.
            let _ = epoll::modify(epoll, alarm, token(self.slot, End::Alarm), *flags | epoll::EventFlags::ONESHOT);
        }
    }

    /// Whether its first process still runs.
    pub(super) fn is_alive(&self) -> bool {
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
        matches!(rustix::process::waitid(WaitId::PidFd(self.process.as_fd()), options), Ok(None))
    }

    /// Waits for the end of its first process, which has been killed or has ended.
    pub(super) fn reap(&self) {
        let _ = rustix::process::waitid(WaitId::PidFd(self.process.as_fd()), WaitIdOptions::EXITED);
    }

    /// What its start has said so far, and whether it is over.
    pub(super) fn start_words(&mut self) -> (&[u8], bool) {
        self.listen();
        let closed = self
            .words
            .as_ref()
            .is_none_or(|words| !matches!(rustix::io::read(words, &mut [0; 1]), Err(rustix::io::Errno::AGAIN)));
        (&self.said, closed)
    }

    fn listen(&mut self) {
        let mut buffer = [0; MAX_WORDS];
        while let Some(Ok(count @ 1..)) = self.words.as_ref().map(|words| rustix::io::read(words, &mut buffer)) {
            let room = MAX_WORDS - self.said.len();
            self.said.extend_from_slice(&buffer[..count.min(room)]);
        }
    }
}

impl Launcher {
    pub(super) fn create(&mut self, id: Id, pool: &str, purpose: Purpose) -> Result<(), Refusal> {
        if let Some(live) = self.live.get(&id) {
            return match live.pool == pool && live.purpose() == purpose {
                _ if live.is_leaving() => Err(Refusal::Gone),
                true => Ok(()),
                false => Err(Refusal::Conflict(format!("it is of the pool {}, or for another purpose", live.pool))),
            };
        }
        if self.over.ids.contains(&id) {
            return Err(Refusal::Gone);
        }
        if self.stopping.is_some() {
            return Err(Refusal::Unavailable("sandpool is shutting down".to_owned()));
        }
        let Some(found) = self.pools.get(pool) else {
            return Err(Refusal::Invalid(format!("there is no pool {pool}")));
        };
        if self.live.len() >= usize::try_from(self.config.max_sandboxes).unwrap_or(usize::MAX) {
            return Err(Refusal::Exhausted(format!(
                "all {} places for sandboxes are taken",
                self.config.max_sandboxes
            )));
        }
        let (now, expected) = (Instant::now(), found.expected);
        if let Err(short) = self.admission.check(now, expected) {
            return Err(Refusal::Exhausted(short.to_string()));
        }
        // One whose image has been replaced must say so: none that was made before can.
        let is_as_it_was = found.is_as_it_was();
        let seed = if is_as_it_was && purpose == Purpose::Session { self.seeds.take(pool) } else { None };
        let live = match seed {
            Some(seed) => seed,
            None => self.launch(pool, purpose)?,
        };
        self.admission.made(now, expected);
        self.seeds.wanted(now);
        self.places.insert(live.slot, Place::Sandbox(id));
        if live.alarm.is_none() {
            self.short_of_memory.insert(id);
        }
        // It may have rung when this was nobody's, and was not heard: then it rings now.
        live.wind_alarm(&self.epoll);
        self.live.insert(id, live);
        self.attach(id);
        Ok(())
    }

    /// Makes a sandbox of a pool: its groups, and a process that builds the rest around itself.
    pub(super) fn launch(&mut self, pool: &str, purpose: Purpose) -> Result<Live, Refusal> {
        let Some(found) = self.pools.get(pool) else {
            return Err(Refusal::Invalid(format!("there is no pool {pool}")));
        };
        let mut limits = found.limits;
        if purpose == Purpose::Zygote {
            limits.memory = limits.memory.max(ZYGOTE_MEMORY);
            // No file can be longer than this (RS5).
            limits.data = limits.data.max(ZYGOTE_FILE);
        }
        let Some(slot) = self.slots.take() else {
            return Err(Refusal::Exhausted("no range of ids is left".to_owned()));
        };
        let group = match self.groups.create(slot, &limits) {
            Ok(group) => group,
            Err(error) => {
                self.slots.free(slot);
                return Err(Refusal::Unavailable(format!("its control groups: {}", used_up(&error))));
            }
        };
        let counter = self.next_counter();
        self.clone_first(pool, slot, &group, purpose, (limits, counter)).map_err(|error| {
            self.lingering.add(slot, group);
            Refusal::Unavailable(format!("its first process: {}", used_up(&error)))
        })
    }

    fn clone_first(
        &self,
        name: &str,
        slot: u32,
        group: &Group,
        purpose: Purpose,
        (limits, counter): (Limits, (u32, Counter)),
    ) -> io::Result<Live> {
        let pool = self.pools.get(name).ok_or(io::ErrorKind::NotFound)?;
        let zygote = match purpose {
            Purpose::Zygote => Some(super::empty_zygote()?),
            Purpose::Session | Purpose::Proof => None,
        };
        if purpose == Purpose::Zygote {
            // It is nobody's for ever, and callers with an empty reservoir wait for what it does.
            group.comes_first(&limits)?;
        }
        let alarm = group.alarm().ok();
        let entrance = group.entrance()?;
        let (control, agents_end) = crate::control::packet_pair()?;
        let (go_in, go_out) = crate::control::packet_pair()?;
        let (words_in, words_out) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
        let mut handover = match (&pool.egress, purpose) {
            (Some(_), Purpose::Session | Purpose::Proof) => Some(crate::control::packet_pair()?),
            (None, _) | (_, Purpose::Zygote) => None,
        };
        let mut nonce = [0; 16];
        if purpose != Purpose::Zygote && self.config.trust.contains_key(name) {
            rustix::rand::getrandom(&mut nonce, rustix::rand::GetRandomFlags::empty())?;
        }
        let (pid, process) = match sys::clone_into_namespaces(entrance.birth())? {
            Cloned::Parent { pid, pidfd } => (pid, pidfd),
            Cloned::Child => {
                let blueprint = Blueprint {
                    rootfs: &pool.rootfs,
                    rootfs_is: pool.rootfs_is,
                    trust: self.config.trust.get(name).map(|trust| (trust, nonce)),
                    words: &pool.words(),
                    limits,
                    disk: None,
                    machine_id: None,
                    local_servers: pool.local_servers,
                    is_container: pool.runtime == Runtime::Container && pool.machine.is_none(),
                    filters: if pool.machine.is_some() { &self.vmm_filters } else { &self.filters },
                    way_out: match (&handover, &pool.egress) {
                        (Some((_, there)), _) => WayOut::Listeners(there),
                        (None, Some(_)) => WayOut::FilesOnly,
                        (None, None) => WayOut::None,
                    },
                    kvm: None,
                    lent: pool.machine.as_ref().map(|machine| machine.image.as_fd()),
                };
                // The launcher's ends, so that its death is seen here.
                drop((control, go_out));
                // Never back into the launcher's loop, whatever happens.
                let _ = std::panic::catch_unwind(AssertUnwindSafe(|| {
                    // None of the other sandboxes' descriptors, of which there may be more than one sandbox may have.
                    let own = [&go_in, &words_out, &agents_end, &self.agent, &self.filters_file].into_iter();
                    let image = pool.machine.as_ref().map(|machine| &machine.image);
                    let own = own
                        .chain(image)
                        .chain(&zygote)
                        .chain(&pool.zygote)
                        .chain(handover.as_ref().map(|(_, there)| there));
                    let own = own.map(AsFd::as_fd);
                    if sys::close_all_but(&own.chain(entrance.descriptors()).collect::<Vec<_>>()).is_err() {
                        return;
                    }
                    // Above the numbers that the agent's descriptors will get.
                    let Ok(words) = rustix::io::fcntl_dupfd_cloexec(&words_out, 16) else { return };
                    let say = |text: &str| rustix::io::write(&words, text.as_bytes()).map_or((), |_| ());
                    // Before all else, so that what the sandbox is built with is on its own account.
                    if let Err(error) = entrance.enter() {
                        return say(&format!("its control groups: {error}"));
                    }
                    drop(entrance);
                    let Some(given) = told_to_go(&go_in) else { return };
                    let (kvm, tree) = if pool.machine.is_some() { (given, None) } else { (None, given) };
                    let blueprint = Blueprint { kvm: kvm.as_ref().map(AsFd::as_fd), ..blueprint };
                    let start = || -> io::Result<String> {
                        let zygote = match (&zygote, &pool.zygote) {
                            (Some(file), _) => Some(Zygote::Freeze(file.try_clone()?)),
                            (None, Some(file)) => Some(Zygote::Thaw(file.try_clone()?)),
                            (None, None) => None,
                        };
                        // Where the kernel has no such files, it makes way for nobody.
                        let turns = group.turns().ok().map(|files| (files, group.whole_share(&limits)));
                        if let Some(program) = &pool.program {
                            let (agent, filters) = (self.agent.try_clone()?, self.filters_file.try_clone()?);
                            let contained = Contained { program, release: &self.release, agent, filters };
                            return Ok(become_container(&blueprint, contained, tree, agents_end, turns, &words));
                        }
                        // A keeper does not know what its machine computes for.
                        let turns = turns.filter(|_| image.is_none());
                        let image = image.map(OwnedFd::try_clone).transpose()?;
                        let inherited = Inherited { control: agents_end, image, zygote, turns };
                        Ok(become_sandbox(&blueprint, (self.agent.try_clone()?, tree), inherited))
                    };
                    say(&start().unwrap_or_else(|error| error.to_string()));
                }));
                sys::exit_now(1);
            }
        };
        let live = Live {
            slot,
            pool: name.to_owned(),
            owner: None,
            activated: false,
            group: group.clone(),
            kill_reason: None,
            awaited_by: Vec::new(),
            zygote: zygote.map(|file| Making { file, is_complete: false }),
            is_proof: purpose == Purpose::Proof,
            process,
            control,
            words: Some(words_in),
            said: Vec::new(),
            alarm,
            limits,
            gate: handover.take().map(|(here, _)| Gate::new(here, nonce, counter)),
            pressure: Pressure::default(),
            full_looks: 0,
            calm_looks: 0,
        };
        drop((agents_end, words_out));
        let released = admit(pid, slot).and_then(|()| {
            let watch =
                |fd: &OwnedFd, end: End, flags: epoll::EventFlags| epoll::add(&self.epoll, fd, token(slot, end), flags);
            watch(&live.process, End::Process, epoll::EventFlags::IN)?;
            if let Some(words) = &live.words {
                watch(words, End::Words, epoll::EventFlags::IN)?;
            }
            if let Some(handover) = live.gate.as_ref().and_then(|gate| gate.handover.as_ref()) {
                watch(handover, End::Listeners, epoll::EventFlags::IN)?;
            }
            if let Some((alarm, flags)) = &live.alarm {
                hear(alarm);
                watch(alarm, End::Alarm, *flags | epoll::EventFlags::ONESHOT)?;
            }
            // Its own root needs the image's files to be its own: only we can say so.
            let given =
                match (pool.runtime, &pool.machine) {
                    (_, Some(machine)) if machine.has_kvm => {
                        let node = super::kvm::node(super::slots::first_id(slot) + sandpool_walls::setup::WORKLOAD);
                        Some(node.map_err(|error| io::Error::other(format!("its machine cannot run: {error}")))?)
                    }
                    (Runtime::Container, None) => {
                        let namespace = std::fs::File::open(format!("/proc/{}/ns/user", pid.as_raw_nonzero()))?;
                        let tree = sys::mapped_tree(&pool.rootfs, &namespace);
                        Some(tree.map_err(|error| {
                            io::Error::other(format!("its image's owners cannot be mapped: {error}"))
                        })?)
                    }
                    _ => None,
                };
            let fds: Vec<_> = given.iter().map(AsFd::as_fd).collect();
            sandpool_sys::packet::send(&go_out, b"!", &fds)
        });
        if let Err(error) = released {
            live.kill();
            live.reap();
            return Err(error);
        }
        Ok(live)
    }

    /// The start of a sandbox has said something, or has become the agent and closed the pipe.
    pub(super) fn start_spoke(&mut self, id: Id) {
        if let Some(live) = self.live.get_mut(&id)
            && let (_, true) = live.start_words()
        {
            Self::close_words(&self.epoll, live);
        }
    }

    pub(super) fn close_words(epoll: &OwnedFd, live: &mut Live) {
        if let Some(words) = live.words.take() {
            let _ = epoll::delete(epoll, &words);
        }
    }

    /// The kernel reclaims memory from a sandbox: from now on it is looked at.
    pub(super) fn memory_is_short(&mut self, id: Id) {
        let Some(live) = self.live.get_mut(&id) else { return };
        live.pressure = live.group.pressure();
        (live.full_looks, live.calm_looks) = (0, 0);
        if self.short_of_memory.is_empty() {
            self.next_tick = Instant::now() + super::TICK;
        }
        self.short_of_memory.insert(id);
    }

    /// Looks at all that are short of memory: ends those that do nothing but reclaim, and leaves those alone that do not
    /// any more.
    pub(super) fn look_at_memory(&mut self) {
        let Self { live, short_of_memory, epoll, .. } = self;
        short_of_memory.retain(|id| {
            let Some(live) = live.get_mut(id) else { return false };
            match live.look() {
                Look::Reclaims => true,
                Look::Thrashes => {
                    live.kill_reason.get_or_insert(Why::OutOfMemory);
                    live.kill();
                    true
                }
                Look::Calm => {
                    live.alarm.iter().for_each(|(alarm, _)| hear(alarm));
                    live.wind_alarm(epoll);
                    false
                }
            }
        });
    }

    /// The first process of a sandbox has ended: reaps it, tells, and takes the rest away.
    pub(super) fn sandbox_ended(&mut self, id: Id, wait: bool) {
        let Some(live) = self.live.get_mut(&id) else { return };
        let options = if wait { WaitIdOptions::EXITED } else { WaitIdOptions::EXITED | WaitIdOptions::NOHANG };
        let status = match rustix::process::waitid(WaitId::PidFd(live.process.as_fd()), options) {
            Ok(None) => return,
            Ok(status) => status,
            Err(error) => {
                tracing::error!("a sandbox could not be reaped: {error}");
                None
            }
        };
        live.listen();
        let Some(live) = self.live.remove(&id) else { return };
        self.over.add(id);
        self.short_of_memory.remove(&id);
        self.forget(&live);
        if live.gate.is_some() {
            self.detach(id);
        }
        let said = String::from_utf8_lossy(&live.said).into_owned();
        // What a failed start said explains its end better than the server's wish to be rid of it.
        let why = match live.kill_reason {
            _ if !said.is_empty() => Why::BootFailed(said),
            Some(why) => why,
            None if live.group.oom_kills() > Some(0) => Why::OutOfMemory,
            None => Why::Died(how(status.as_ref())),
        };
        let (pool, peak) = (live.pool, live.group.memory_peak());
        if live.activated && !matches!(why, Why::Destroyed) {
            let (pool, owner, purpose) = (pool.clone(), live.owner, Purpose::Session);
            self.lost.add(Record { id, pool, purpose, owner, activated: true, leaving: false, lost: true });
        }
        if let Some(Making { file, is_complete: true }) = &live.zygote {
            self.keep(&pool, file);
        }
        if live.activated
            && let Some(pool) = self.pools.get_mut(&pool)
        {
            // One that nobody used tells nothing of those that are, and neither does a kernel that does not tell.
            peak.into_iter().for_each(|peak| pool.expected.learn(peak));
        }
        self.clear(live.slot, live.group);
        self.say(&FromLauncher::Gone { id, why }, None);
        for request in live.awaited_by {
            self.say(&FromLauncher::Reply { request, result: Ok(Answer::Done) }, None);
        }
    }

    /// From now on, interpreters of the pool start from this zygote.
    fn keep(&mut self, pool: &str, file: &OwnedFd) {
        let Some(found) = self.pools.get_mut(pool) else { return };
        match super::seal(file) {
            Ok(file) => found.zygote = Some(file),
            Err(error) => return tracing::error!(pool, "its zygote cannot be sealed: {error}"),
        }
        // Those that were made ahead know no zygote.
        self.end_seeds(Some(pool));
    }

    /// Waits no more for what a sandbox tells.
    pub(super) fn forget(&mut self, live: &Live) {
        self.places.remove(&live.slot);
        let handover = live.gate.as_ref().and_then(|gate| gate.handover.as_ref());
        for fd in [Some(&live.process), live.words.as_ref(), live.alarm.as_ref().map(|(alarm, _)| alarm), handover] {
            // A descriptor that was not watched is not watched.
            let _ = fd.map(|fd| epoll::delete(&self.epoll, fd));
        }
    }

    /// Removes what a reaped sandbox leaves, now or as soon as it can be.
    pub(super) fn clear(&mut self, slot: u32, group: Group) {
        if group.remove().is_ok() {
            self.slots.free(slot);
        } else {
            self.lingering.add(slot, group);
        }
    }
}

/// Takes note of all that an alarm has told: only what comes after it wakes us.
fn hear(alarm: &OwnedFd) {
    let mut buffer = [0; 512];
    // A file of version 2, from its beginning; a counter of version 1 knows no places.
    if rustix::io::pread(alarm, &mut buffer, 0).is_err() {
        let _ = rustix::io::read(alarm, &mut buffer);
    }
}

/// Gives the waiting child its ids.
fn admit(pid: Pid, slot: u32) -> io::Result<()> {
    let first = super::slots::first_id(slot);
    let pid = pid.as_raw_nonzero();
    for file in ["uid_map", "gid_map"] {
        std::fs::write(format!("/proc/{pid}/{file}"), format!("0 {first} {}\n", super::slots::IDS))?;
    }
    // RS1: the kernel, if it must choose, takes a sandbox and not the server.
    std::fs::write(format!("/proc/{pid}/oom_score_adj"), "500")
}

/// An error, and where it is one of being used up, what: errno names it only half.
fn used_up(error: &io::Error) -> String {
    let number = |file: &str| std::fs::read_to_string(file).unwrap_or_default().trim().to_owned();
    match error.raw_os_error().map(rustix::io::Errno::from_raw_os_error) {
        Some(rustix::io::Errno::MFILE) => {
            let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current.unwrap_or(u64::MAX);
            format!("{error}: the launcher may have {limit} descriptors (RLIMIT_NOFILE)")
        }
        Some(rustix::io::Errno::NFILE) => {
            format!("{error}: the host may have {} open files (fs.file-max)", number("/proc/sys/fs/file-max"))
        }
        Some(rustix::io::Errno::AGAIN) => format!(
            "{error}: the host may have {} process ids (kernel.pid_max) and {} threads (kernel.threads-max)",
            number("/proc/sys/kernel/pid_max"),
            number("/proc/sys/kernel/threads-max"),
        ),
        Some(rustix::io::Errno::NOSPC) => format!(
            "{error}: the host may have {} user namespaces (user.max_user_namespaces, and likewise those of other kinds)",
            number("/proc/sys/user/max_user_namespaces"),
        ),
        _ => error.to_string(),
    }
}

fn how(status: Option<&WaitIdStatus>) -> String {
    match status {
        None => "its end was not seen".to_owned(),
        Some(status) => match (status.exit_status(), status.terminating_signal()) {
            (Some(code), _) => format!("its first process ended with exit code {code}"),
            (_, Some(signal)) => format!("its first process was ended by signal {signal}"),
            _ => "its first process ended".to_owned(),
        },
    }
}
