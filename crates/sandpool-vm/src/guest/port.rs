//! The port of a machine, from its inside: a serial port that is always open, or a socket that is listened at.
//!
//! A socket's connection ends when its machine is written to a file: whoever goes on from there takes the next one, which is its keeper's. So
//! the newest connection is the port, whatever has become of the one before it.

use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{Mode, OFlags};
use sandpool_sys::vsock;

use crate::relay::Relay;
use crate::vmm::VSOCK_PORT;

/// What is there once the modules of such sockets are loaded, which they are where the VMM has no serial port.
const DEVICE: &str = "/dev/vsock";

/// Where the port comes from.
pub(super) enum Port {
    /// It is there, and has no other.
    Serial,
    /// Connections come from here.
    Socket(OwnedFd),
}

impl Port {
    /// Finds it, and what is open of it: waits until something is.
    pub(super) fn open() -> io::Result<(Self, OwnedFd)> {
        if !Path::new(DEVICE).exists() {
            return Ok((Self::Serial, serial()?));
        }
        let listener = super::until("the port", || vsock::listen(VSOCK_PORT))?;
        let first = next(&listener)?;
        Ok((Self::Socket(listener), first))
    }

    /// What is ready when there is a newer one.
    pub(super) fn listener(&self) -> Option<BorrowedFd<'_>> {
        match self {
            Self::Serial => None,
            Self::Socket(listener) => Some(listener.as_fd()),
        }
    }

    /// There is a newer one.
    pub(super) fn renew(&self, relay: &mut Relay) -> io::Result<()> {
        if let Self::Socket(listener) = self
            && let Some(newer) = take(listener)?
        {
            relay.begin_anew(newer);
        }
        Ok(())
    }

    /// What was open of it may be closed: waits for a newer one, where there can be one.
    pub(super) fn lost(&self, relay: &mut Relay, error: io::Error) -> io::Result<()> {
        use io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset, NotConnected, UnexpectedEof};
        let is_closed =
            matches!(error.kind(), UnexpectedEof | ConnectionReset | ConnectionAborted | BrokenPipe | NotConnected);
        match self {
            Self::Socket(listener) if is_closed => {
                relay.begin_anew(next(listener)?);
                Ok(())
            }
            Self::Serial | Self::Socket(_) => Err(error),
        }
    }
}

/// The next connection of whoever is around the machine.
fn next(listener: &OwnedFd) -> io::Result<OwnedFd> {
    loop {
        match poll(&mut [PollFd::new(listener, PollFlags::IN)], None) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        if let Some(connection) = take(listener)? {
            return Ok(connection);
        }
    }
}

/// A connection of whoever is around the machine: programs inside have none to give.
fn take(listener: &OwnedFd) -> io::Result<Option<OwnedFd>> {
    match vsock::accept(listener) {
        Ok((connection, vsock::HOST)) => Ok(Some(connection)),
        Ok(_) => Ok(None),
        Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => Ok(None),
        // It was closed before it was taken.
        Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => Ok(None),
        Err(error) => Err(super::about("the port")(error)),
    }
}

/// The only serial port, which the kernel names `vport<device>p1`.
fn serial() -> io::Result<OwnedFd> {
    let flags = OFlags::RDWR | OFlags::CLOEXEC | OFlags::NONBLOCK;
    super::until("the port", || {
        for entry in fs::read_dir("/dev")?.flatten() {
            if entry.file_name().to_str().is_some_and(|name| name.starts_with("vport")) {
                return Ok(rustix::fs::open(entry.path(), flags, Mode::empty())?);
            }
        }
        Err(io::ErrorKind::NotFound.into())
    })
}
