//! One sandbox, from clone to the last trace of it.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::panic::AssertUnwindSafe;

use rustix::event::epoll;
use rustix::pipe::PipeFlags;
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, WaitIdStatus};
use sandpool_sys::sandbox::{self as sys, Cloned};

use super::{Launcher, SANDBOXES};
use crate::cgroup::{Group, Pressure};
use crate::control::{Answer, FromLauncher, Id, Record, Refusal, Why};
use crate::setup::{Blueprint, become_sandbox};

/// The longest sentence taken from a start that failed, in bytes.
const MAX_WORDS: usize = 2048;

/// RS1: this much of its memory in use, in percent, ...
const FULL_PERCENT: u64 = 95;
/// ... and so many pages read again from disk between two looks, ...
const FAULTS: u64 = 100;
/// ... and that so many looks in a row: the sandbox does nothing but reclaim.
const LOOKS: u32 = 4;

/// A sandbox whose first process has not been reaped.
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
    process: OwnedFd,
    control: OwnedFd,
    /// What a failed start says; closed by a good one.
    words: Option<OwnedFd>,
    said: Vec<u8>,
    memory_limit: u64,
    pressure: Pressure,
    full_looks: u32,
}

impl Live {
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
        let dial = || -> io::Result<OwnedFd> {
            let (here, there) = crate::control::stream_pair()?;
            crate::control::send(&self.control, b"D", Some(there.as_fd()))?;
            Ok(here)
        };
        dial().map_err(|error| Refusal::Unavailable(format!("the agent takes no stream: {error}")))
    }

    /// Looks at its memory, once a tick.
    pub(super) fn is_thrashing(&mut self) -> bool {
        let now = self.group.pressure();
        let faults = now.major_faults.saturating_sub(self.pressure.major_faults);
        let full = now.usage >= self.memory_limit / 100 * FULL_PERCENT && faults >= FAULTS;
        self.pressure = now;
        self.full_looks = if full { self.full_looks + 1 } else { 0 };
        self.full_looks >= LOOKS
    }

    fn listen(&mut self) {
        let mut buffer = [0; MAX_WORDS];
        while let Some(Ok(count @ 1..)) = self.words.as_ref().map(|words| rustix::io::read(words, &mut buffer)) {
            let room = MAX_WORDS - self.said.len();
            self.said.extend_from_slice(&buffer[..count.min(room)]);
        }
    }
}

fn token(slot: u32) -> u64 {
    SANDBOXES + 2 * u64::from(slot)
}

impl Launcher {
    pub(super) fn create(&mut self, id: Id, pool: &str) -> Result<(), Refusal> {
        if let Some(live) = self.live.get(&id) {
            return match live.pool == pool {
                _ if live.is_leaving() => Err(Refusal::Gone),
                true => Ok(()),
                false => Err(Refusal::Conflict(format!("it is of the pool {}", live.pool))),
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
        let limits = found.limits;
        let Some(slot) = self.slots.take() else {
            return Err(Refusal::Exhausted(format!(
                "all {} places for sandboxes are taken",
                self.config.max_sandboxes
            )));
        };
        let group = match self.groups.create(slot, &limits) {
            Ok(group) => group,
            Err(error) => {
                self.slots.free(slot);
                return Err(Refusal::Unavailable(format!("its control groups: {error}")));
            }
        };
        match self.launch(pool, slot, &group) {
            Ok(live) => {
                self.live.insert(id, live);
                Ok(())
            }
            Err(error) => {
                self.lingering.push((slot, group));
                self.sweep_lingering();
                Err(Refusal::Unavailable(format!("its first process: {error}")))
            }
        }
    }

    fn launch(&self, name: &str, slot: u32, group: &Group) -> io::Result<Live> {
        let pool = self.pools.get(name).ok_or(io::ErrorKind::NotFound)?;
        let (control, agents_end) = crate::control::packet_pair()?;
        let (go_in, go_out) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
        let (words_in, words_out) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
        let (pid, process) = match sys::clone_into_namespaces()? {
            Cloned::Parent { pid, pidfd } => (pid, pidfd),
            Cloned::Child => {
                let blueprint = Blueprint {
                    rootfs: &pool.rootfs,
                    rootfs_is: pool.rootfs_is,
                    runtime: pool.runtime.word(),
                    limits: pool.limits,
                    filters: &self.filters,
                };
                // The launcher's ends, so that its death is seen here.
                drop((control, go_out));
                // Never back into the launcher's loop, whatever happens.
                let _ = std::panic::catch_unwind(AssertUnwindSafe(|| {
                    // Above the numbers that the agent's descriptors will get.
                    let Ok(words) = rustix::io::fcntl_dupfd_cloexec(&words_out, 16) else { return };
                    if rustix::io::read(&go_in, &mut [0]) != Ok(1) {
                        return;
                    }
                    let error = match self.agent.try_clone() {
                        Ok(agent) => become_sandbox(&blueprint, agent, agents_end),
                        Err(error) => error.to_string(),
                    };
                    let _ = rustix::io::write(&words, error.as_bytes());
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
            process,
            control,
            words: Some(words_in),
            said: Vec::new(),
            memory_limit: pool.limits.memory,
            pressure: Pressure::default(),
            full_looks: 0,
        };
        drop((agents_end, words_out));
        let released = self.admit(pid, slot, group).and_then(|()| {
            let watch = |fd: &OwnedFd, token: u64| {
                epoll::add(&self.epoll, fd, epoll::EventData::new_u64(token), epoll::EventFlags::IN)
            };
            watch(&live.process, token(slot))?;
            if let Some(words) = &live.words {
                watch(words, token(slot) + 1)?;
            }
            Ok(rustix::io::write(&go_out, b"!")?)
        });
        if let Err(error) = released {
            live.kill();
            let _ = rustix::process::waitid(WaitId::PidFd(live.process.as_fd()), WaitIdOptions::EXITED);
            return Err(error);
        }
        Ok(live)
    }

    /// Gives the waiting child its ids and its place in the control groups.
    fn admit(&self, pid: Pid, slot: u32, group: &Group) -> io::Result<()> {
        let first = super::slots::first_id(slot);
        let pid_text = pid.as_raw_nonzero();
        for file in ["uid_map", "gid_map"] {
            std::fs::write(format!("/proc/{pid_text}/{file}"), format!("0 {first} {}\n", super::slots::IDS))?;
        }
        // RS1: the kernel, if it must choose, takes a sandbox and not the server.
        std::fs::write(format!("/proc/{pid_text}/oom_score_adj"), "500")?;
        group.add(pid)
    }

    /// The start of a sandbox has said something, or has become the agent and closed the pipe.
    pub(super) fn start_spoke(&mut self, id: Id) {
        let Some(live) = self.live.get_mut(&id) else { return };
        live.listen();
        let closed = live
            .words
            .as_ref()
            .is_some_and(|words| !matches!(rustix::io::read(words, &mut [0; 1]), Err(rustix::io::Errno::AGAIN)));
        if closed && let Some(words) = live.words.take() {
            let _ = epoll::delete(&self.epoll, &words);
        }
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
        let _ = epoll::delete(&self.epoll, &live.process);
        if let Some(words) = &live.words {
            let _ = epoll::delete(&self.epoll, words);
        }
        let said = String::from_utf8_lossy(&live.said).into_owned();
        // What a failed start said explains its end better than the server's wish to be rid of it.
        let why = match live.kill_reason {
            _ if !said.is_empty() => Why::BootFailed(said),
            Some(why) => why,
            None if live.group.usage().oom_kills > 0 => Why::OutOfMemory,
            None => Why::Died(how(status.as_ref())),
        };
        if live.activated && !matches!(why, Why::Destroyed) {
            let (pool, owner) = (live.pool, live.owner);
            self.lost.add(Record { id, pool, owner, activated: true, leaving: false, lost: true });
        }
        if live.group.remove().is_ok() {
            self.slots.free(live.slot);
        } else {
            self.lingering.push((live.slot, live.group));
        }
        self.say(&FromLauncher::Gone { id, why }, None);
        for request in live.awaited_by {
            self.say(&FromLauncher::Reply { request, result: Ok(Answer::Done) }, None);
        }
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
