//! What server and launcher say to each other: one message per packet, at most one descriptor with it.
//!
//! The server faces the network, so the launcher takes nothing from it on trust: packets have a limit, values are
//! checked when they are read, and no path of a client or a sandbox is among them.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use sandpool_core::limits::Limits;
use sandpool_driver::{OciRuntime, Usage};
use sandpool_sys::packet;
use sandpool_wire::agent::Runtime;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// The largest packet, in bytes. A page of [`Answer::Page`] with the largest records fits.
pub(crate) const MAX_PACKET: usize = 64 * 1024;

/// Sandboxes in one [`Answer::Page`].
pub(crate) const PAGE: usize = 32;

/// A sandbox's id, as it travels.
pub(crate) type Id = [u8; 16];

/// Said to the launcher.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct ToLauncher {
    /// Comes back in the answer.
    pub(crate) request: u32,
    pub(crate) call: Call,
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Call {
    EnsurePool {
        pool: String,
        runtime: Runtime,
        rootfs: String,
        limits: WireLimits,
        /// Whether its programs may have servers on loopback.
        local_servers: bool,
        /// Its sandboxes are made by an OCI runtime: by this one, or any.
        container: Option<Option<OciRuntime>>,
        /// What its sandboxes may reach, as the egress proxy reads it; `None` for nothing, and no way out at all.
        egress: Option<Vec<u8>>,
        /// For sandboxes around machines: the image as a block device; `rootfs` is then their VMM's, and the limits are the machine's.
        machine_image: Option<String>,
    },
    RemovePool {
        pool: String,
    },
    Create {
        id: Id,
        pool: String,
        purpose: Purpose,
    },
    /// The zygote that this sandbox was for is in its file: the sandbox ends, and others of its pool start from it.
    KeepZygote {
        id: Id,
    },
    Assign {
        id: Id,
        record: Vec<u8>,
    },
    /// The sandbox has had its configuration.
    Activated {
        id: Id,
    },
    /// Both in one: it has an owner, and its configuration is on its way.
    Give {
        id: Id,
        record: Vec<u8>,
    },
    Destroy {
        id: Id,
    },
    /// The sandboxes after this one, by id.
    List {
        after: Option<Id>,
    },
    Dial {
        id: Id,
    },
    /// A stream on which everything of a machine comes, which then goes on (`stays`) or stands until it is ended.
    Save {
        id: Id,
        stays: bool,
    },
    /// A stream that takes everything of a machine that was saved. Before any other to this sandbox, which goes on from it.
    Wake {
        id: Id,
    },
    /// A stream on which its agent hands over a connection to this port of it, or says why not.
    Connect {
        id: Id,
        port: u16,
    },
    Usage {
        id: Id,
    },
    /// Of what its pool may reach, this sandbox may reach from now on what this policy says; `None` for all.
    Narrow {
        id: Id,
        policy: Option<Vec<u8>>,
    },
    /// What this sandbox is narrowed to.
    Narrowed {
        id: Id,
    },
    /// This sandbox's session has these secrets of its own.
    Entrust {
        id: Id,
        secrets: Vec<u8>,
    },
}

/// What a sandbox is made for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Purpose {
    /// One session.
    Session,
    /// Its pool's zygote. No session ever gets it.
    Zygote,
    /// To see that it starts, with the wall that it is to have. No session ever gets it.
    Proof,
}

/// [`Limits`], as they travel.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct WireLimits {
    memory: u64,
    pids: u32,
    cpu_milli: u32,
    data: u64,
    tmp: u64,
}

impl From<Limits> for WireLimits {
    fn from(limits: Limits) -> Self {
        let Limits { memory, pids, cpu_milli, data, tmp } = limits;
        Self { memory, pids, cpu_milli, data, tmp }
    }
}

impl WireLimits {
    /// The limits, if a sandbox can live within them.
    pub(crate) fn check(self) -> Result<Limits, String> {
        let Self { memory, pids, cpu_milli, data, tmp } = self;
        let within = |name: &str, value: u64, least: u64, most: u64| {
            if (least..=most).contains(&value) {
                Ok(())
            } else {
                Err(format!("the limit {name} is {value}; it can be {least} to {most}"))
            }
        };
        within("memory", memory, 16 << 20, 1 << 44)?;
        within("pids", pids.into(), 8, 1 << 20)?;
        within("cpu", cpu_milli.into(), 10, 1_000_000)?;
        within("data", data, 1 << 16, 1 << 44)?;
        within("tmp", tmp, 1 << 16, 1 << 44)?;
        Ok(Limits { memory, pids, cpu_milli, data, tmp })
    }
}

/// [`Usage`], as it travels.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct WireUsage {
    memory: u64,
    memory_peak: Option<u64>,
    memory_pressure: Option<u32>,
    pids: u32,
    cpu_us: Option<u64>,
    throttled_us: Option<u64>,
    oom_kills: Option<u64>,
    stored: u64,
    /// Read from disks, and written.
    disk: [Option<u64>; 2],
    /// Out of it, and into it.
    moved: Option<[u64; 2]>,
}

impl WireUsage {
    /// What a sandbox uses, and what has gone out of it and come into it, where anything can.
    pub(crate) fn new(usage: Usage, moved: Option<[u64; 2]>) -> Self {
        let Usage { memory, memory_peak, memory_pressure, pids, cpu_us, throttled_us, oom_kills, stored, .. } = usage;
        let disk = [usage.read, usage.written];
        Self { memory, memory_peak, memory_pressure, pids, cpu_us, throttled_us, oom_kills, stored, disk, moved }
    }
}

impl From<WireUsage> for Usage {
    fn from(usage: WireUsage) -> Self {
        let WireUsage { memory, memory_peak, memory_pressure, pids, cpu_us, throttled_us, oom_kills, stored, .. } =
            usage;
        let [read, written] = usage.disk;
        let (sent, received) = (usage.moved.map(|moved| moved[0]), usage.moved.map(|moved| moved[1]));
        Self {
            memory,
            memory_peak,
            memory_pressure,
            pids,
            cpu_us,
            throttled_us,
            oom_kills,
            stored,
            read,
            written,
            sent,
            received,
        }
    }
}

/// Said by the launcher.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum FromLauncher {
    Reply { request: u32, result: Result<Answer, Refusal> },
    Gone { id: Id, why: Why },
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Answer {
    Done,
    /// A pool is known, and may have its zygote already.
    Pool {
        has_zygote: bool,
        /// What makes its sandboxes, where that is an OCI runtime.
        made_by: Option<MadeBy>,
    },
    /// The stream is the packet's descriptor.
    Dialled,
    Page {
        sandboxes: Vec<Record>,
        more: bool,
    },
    Usage(WireUsage),
    Narrowed {
        policy: Option<Vec<u8>>,
    },
}

/// The OCI runtime that makes a pool's sandboxes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct MadeBy {
    pub(crate) runtime: OciRuntime,
    pub(crate) version: String,
    /// Why it is weaker than it should be.
    pub(crate) below_floor: Option<String>,
}

/// What the launcher remembers of a sandbox.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Record {
    pub(crate) id: Id,
    pub(crate) pool: String,
    pub(crate) purpose: Purpose,
    pub(crate) owner: Option<Vec<u8>>,
    pub(crate) activated: bool,
    pub(crate) leaving: bool,
    /// It has ended by itself, and nobody has destroyed it yet.
    pub(crate) lost: bool,
}

/// Why a sandbox is gone.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) enum Why {
    Destroyed,
    OutOfMemory,
    Died(String),
    BootFailed(String),
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Refusal {
    Conflict(String),
    Exhausted(String),
    Invalid(String),
    Unavailable(String),
    Gone,
}

/// The name under which the proof of a pool's wall is made: none that a pool can have.
pub(crate) fn of_proof(pool: &str) -> String {
    format!("{pool}{PROOF}")
}

/// Whether it is such a name.
pub(crate) fn is_of_proof(pool: &str) -> bool {
    pool.ends_with(PROOF)
}

const PROOF: &str = "~proof";

/// Sends one packet.
pub(crate) fn send(socket: impl AsFd, bytes: &[u8], fd: Option<BorrowedFd<'_>>) -> io::Result<()> {
    packet::send(socket, bytes, fd.as_slice())
}

/// Encodes a message for [`send`].
pub(crate) fn encode(message: &impl Serialize) -> io::Result<Vec<u8>> {
    let bytes = postcard::to_stdvec(message).map_err(io::Error::other)?;
    if bytes.len() > MAX_PACKET { Err(io::ErrorKind::InvalidInput.into()) } else { Ok(bytes) }
}

/// Receives one packet without waiting. `None` when the other end is closed.
///
/// # Errors
/// `WouldBlock` when there is none; `InvalidData` for one that is too long or not a `T`.
pub(crate) fn receive<T: DeserializeOwned>(socket: impl AsFd) -> io::Result<Option<(T, Option<OwnedFd>)>> {
    let mut buffer = vec![0; MAX_PACKET];
    let (length, fds) = packet::receive(socket, &mut buffer)?;
    message(&buffer[..length], fds)
}

/// As [`receive`], in the server: a message whose descriptor cannot be had, since the server has as many as it may, comes without it.
///
/// # Errors
/// As [`receive`].
pub(crate) fn receive_from_launcher(socket: impl AsFd) -> io::Result<Option<(FromLauncher, Option<OwnedFd>)>> {
    let mut buffer = vec![0; MAX_PACKET];
    let (length, fds) = packet::receive_what_fits(socket, &mut buffer)?;
    message(&buffer[..length], fds.unwrap_or_default())
}

/// What a packet brought, which is nothing at the end of a connection, and one descriptor at most.
fn message<T: DeserializeOwned>(bytes: &[u8], mut fds: Vec<OwnedFd>) -> io::Result<Option<(T, Option<OwnedFd>)>> {
    match (bytes, fds.len()) {
        ([], _) => Ok(None),
        (_, 0 | 1) => Ok(Some((decode(bytes)?, fds.pop()))),
        _ => Err(io::ErrorKind::InvalidData.into()),
    }
}

/// One packet's message.
fn decode<T: DeserializeOwned>(bytes: &[u8]) -> io::Result<T> {
    match postcard::take_from_bytes(bytes) {
        Ok((message, [])) => Ok(message),
        _ => Err(io::ErrorKind::InvalidData.into()),
    }
}

/// Whether the launcher, or a server, would take these bytes for a message. For fuzzing, which asks for no answer.
pub fn is_packet(bytes: &[u8]) -> bool {
    let call = decode::<ToLauncher>(bytes);
    if let Ok(ToLauncher { call: Call::EnsurePool { limits, .. }, .. }) = &call
        && let Ok(limits) = limits.check()
    {
        assert!(limits.pids >= 8 && limits.memory >= 16 << 20, "{limits:?}");
    }
    call.is_ok() || decode::<FromLauncher>(bytes).is_ok()
}

/// A connected pair of sockets that keep packets apart. Neither end waits.
pub(crate) fn packet_pair() -> io::Result<(OwnedFd, OwnedFd)> {
    pair(rustix::net::SocketType::SEQPACKET)
}

/// A connected pair of byte streams. Neither end waits.
pub(crate) fn stream_pair() -> io::Result<(OwnedFd, OwnedFd)> {
    pair(rustix::net::SocketType::STREAM)
}

fn pair(kind: rustix::net::SocketType) -> io::Result<(OwnedFd, OwnedFd)> {
    let flags = rustix::net::SocketFlags::CLOEXEC | rustix::net::SocketFlags::NONBLOCK;
    Ok(rustix::net::socketpair(rustix::net::AddressFamily::UNIX, kind, flags, None)?)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn any_bytes_are_a_message_or_an_error(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            is_packet(&bytes);
        }

        #[test]
        fn calls_with_one_byte_changed_are_calls_or_errors(
            id in any::<Id>(),
            record in proptest::collection::vec(any::<u8>(), 0..40),
            at in any::<prop::sample::Index>(),
            byte in any::<u8>(),
        ) {
            let calls = [
                Call::Assign { id, record },
                Call::Create { id, pool: "pool".to_owned(), purpose: Purpose::Session },
                Call::RemovePool { pool: "pool".to_owned() },
                Call::EnsurePool {
                    pool: "pool".to_owned(),
                    runtime: Runtime::Shell,
                    rootfs: "/images/a".to_owned(),
                    limits: Limits::default().into(),
                    local_servers: true,
                    container: Some(Some(OciRuntime::Crun)),
                    egress: Some(vec![1, 2, 3]),
                    machine_image: Some("/images/a.erofs".to_owned()),
                },
            ];
            for call in calls {
                let mut bytes = encode(&ToLauncher { request: 1, call }).unwrap();
                prop_assert!(is_packet(&bytes));
                let at = at.index(bytes.len());
                bytes[at] = byte;
                is_packet(&bytes);
                bytes.truncate(at);
                prop_assert!(decode::<ToLauncher>(&bytes).is_err(), "half a call is none");
            }
        }
    }

    #[test]
    fn a_descriptor_travels_with_its_message() {
        let (here, there) = packet_pair().unwrap();
        let (kept, passed) = stream_pair().unwrap();
        let message = ToLauncher { request: 7, call: Call::Dial { id: [3; 16] } };
        send(&here, &encode(&message).unwrap(), Some(passed.as_fd())).unwrap();
        drop(passed);
        let (message, fd) = receive::<ToLauncher>(&there).unwrap().unwrap();
        assert!(matches!(message, ToLauncher { request: 7, call: Call::Dial { id } } if id == [3; 16]));
        rustix::io::write(fd.unwrap(), b"x").unwrap();
        assert_eq!(rustix::io::read(&kept, &mut [0; 8]).unwrap(), 1);
        drop(here);
        assert!(receive::<ToLauncher>(&there).unwrap().is_none());
    }

    #[test]
    fn garbage_is_an_error() {
        let (here, there) = packet_pair().unwrap();
        send(&here, &[0xff; 40], None).unwrap();
        assert_eq!(receive::<ToLauncher>(&there).unwrap_err().kind(), io::ErrorKind::InvalidData);
        assert_eq!(receive::<ToLauncher>(&there).unwrap_err().kind(), io::ErrorKind::WouldBlock);
    }

    #[test]
    fn the_largest_page_fits_into_a_packet() {
        let record = Record {
            id: [255; 16],
            pool: "p".repeat(63),
            purpose: Purpose::Session,
            owner: Some(vec![255; sandpool_driver::MAX_RECORD]),
            activated: true,
            leaving: true,
            lost: false,
        };
        let page = Answer::Page { sandboxes: vec![record; PAGE], more: true };
        encode(&FromLauncher::Reply { request: u32::MAX, result: Ok(page) }).unwrap();
    }
}
