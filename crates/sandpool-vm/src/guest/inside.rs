//! The sandbox inside, once it is built: warm for others, standing still to be saved, going on as another.

use std::fs;
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::process::Pid;
use sandpool_wire::agent::{FromAgent, Runtime};
use sandpool_wire::frame;

use super::doors::Doors;
use super::{about, set_clock, until};

/// Its control group.
pub(super) const GROUP: &str = "/groups/sandbox";

/// Those of its processes that stand still while others go on.
const APART: &str = "/groups/sandbox/apart";

/// The most of an agent's greeting that is read.
const MAX_GREETING: usize = 64 * 1024;

/// A day, in nanoseconds: by so much the clock is ahead while an interpreter is renewed.
const DAY: u64 = 24 * 60 * 60 * 1_000_000_000;

/// How long an idle interpreter may take for that.
const RENEWAL: Duration = Duration::from_secs(30);

pub(super) struct Inside {
    /// The agent's control socket.
    pub(super) control: OwnedFd,
    /// Its first process.
    pub(super) process: OwnedFd,
    pub(super) pid: Pid,
    /// What leads out of it.
    pub(super) doors: Option<Doors>,
    pub(super) stands_still: bool,
}

impl Inside {
    /// Dials the agent, which starts its interpreter for that, and hears it out.
    pub(super) fn wait_until_warm(&self) -> io::Result<()> {
        let (mut here, there) = UnixStream::pair()?;
        there.set_nonblocking(true)?;
        sandpool_sys::packet::send(&self.control, b"D", &[there.as_fd()])?;
        drop(there);
        loop {
            let mut header = [0; frame::HEADER];
            here.read_exact(&mut header).map_err(about("the agent"))?;
            let length = frame::body_length(header).map_err(io::Error::other)?;
            if length > MAX_GREETING {
                return Err(io::Error::other("the agent talks too much"));
            }
            let mut body = vec![0; length];
            here.read_exact(&mut body).map_err(about("the agent"))?;
            match frame::decode::<FromAgent>(&body).map_err(io::Error::other)? {
                FromAgent::Ready => return Ok(()),
                FromAgent::Broken { reason, .. } => return Err(io::Error::other(reason)),
                _ => {}
            }
        }
    }

    /// Has all its processes stand still, or go on.
    pub(super) fn stand_still(&mut self, still: bool) -> io::Result<()> {
        if self.stands_still != still {
            freeze(GROUP, still)?;
            self.stands_still = still;
        }
        Ok(())
    }

    /// Has it go on as another one.
    pub(super) fn renew(&mut self, runtime: Runtime, epoch_ns: u64) -> io::Result<()> {
        // Only what was saved stands still, and only OpenSSL in Node cannot be told: to it the clock must say that it has slept. Nothing
        // else may see that clock.
        if self.stands_still && runtime == Runtime::Node {
            return self.renew_apart(epoch_ns);
        }
        // Before any stream, which the agent takes in the order in which they come.
        sandpool_sys::packet::send(&self.control, b"R", &[])?;
        self.stand_still(false)
    }

    /// Renews agent and interpreter while everything else stands still, at a time that is no other's.
    fn renew_apart(&mut self, epoch_ns: u64) -> io::Result<()> {
        let began = Instant::now();
        if !Path::new(APART).is_dir() {
            fs::create_dir(APART).map_err(about(APART))?;
        }
        for pid in processes(GROUP)?.into_iter().filter(|pid| *pid != self.pid.as_raw_nonzero().get()) {
            put(pid, APART);
        }
        freeze(APART, true)?;
        set_clock(epoch_ns + DAY)?;
        let (mut here, there) = UnixStream::pair()?;
        there.set_nonblocking(true)?;
        sandpool_sys::packet::send(&self.control, b"R", &[there.as_fd()])?;
        drop(there);
        self.stand_still(false)?;
        // What it does not do in time it does later, at the right time. Then what another drew before it is not drawn anew in OpenSSL.
        let _ = wait_for_renewal(&mut here);
        set_clock(epoch_ns + u64::try_from(began.elapsed().as_nanos()).unwrap_or(0))?;
        freeze(APART, false)
    }
}

fn wait_for_renewal(here: &mut UnixStream) -> io::Result<()> {
    here.set_read_timeout(Some(RENEWAL))?;
    let mut wanted = [0; 4];
    here.read_exact(&mut wanted)?;
    let wanted = match i32::from_le_bytes(wanted) {
        0 => return Ok(()),
        pid => pid.to_string(),
    };
    for pid in processes(APART)? {
        // As it is numbered by the machine, and last, by the innermost namespace.
        let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
        let numbers = status.lines().find_map(|line| line.strip_prefix("NSpid:"));
        if numbers.and_then(|numbers| numbers.split_whitespace().nth(1)) == Some(&wanted) {
            put(pid, GROUP);
        }
    }
    here.read_exact(&mut [0])
}

fn processes(group: &str) -> io::Result<Vec<i32>> {
    let text = fs::read_to_string(format!("{group}/cgroup.procs"))?;
    Ok(text.lines().filter_map(|line| line.parse().ok()).collect())
}

/// Puts a process into a group. It may have ended.
fn put(pid: i32, group: &str) {
    let _ = fs::write(format!("{group}/cgroup.procs"), pid.to_string());
}

fn freeze(group: &str, still: bool) -> io::Result<()> {
    let word = if still { "1" } else { "0" };
    fs::write(format!("{group}/cgroup.freeze"), word).map_err(about("the sandbox's processes"))?;
    let wanted = format!("frozen {word}");
    until("a sandbox that stands still", || {
        let events = fs::read_to_string(format!("{group}/cgroup.events"))?;
        // What has no processes need not be waited for.
        if events.lines().any(|line| line == wanted || line == "populated 0") {
            Ok(())
        } else {
            Err(io::ErrorKind::WouldBlock.into())
        }
    })
}
