//! Connections to what programs of the sandbox serve: made here, in its network, and handed over to whoever asked.
//!
//! ```text
//! asker --(stream, port)--> agent: connects to 127.0.0.1, or to ::1 --(one byte and the connection, or an error's number)--> asker
//!                                                                    (EBUSY: its program says that it takes no requests now)
//! ```
//!
//! The agent waits for milliseconds at most, and passes nothing on: what it hands over may still be connecting.

use std::io::{IoSlice, Result};
use std::mem::MaybeUninit;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketFlags, SocketType, connect, sendmsg,
    socket_with, sockopt,
};

/// Says on `stream` what came of connecting to `port`: the byte 0 with the connection, or the error's number in four bytes.
///
/// # Errors
/// When nobody listens to what is said.
pub fn hand_over(stream: &OwnedFd, port: u16) -> Result<()> {
    say(stream, &open(port))
}

/// Says on `stream` that nobody takes connections to it for now.
///
/// # Errors
/// When nobody listens to what is said.
pub fn not_now(stream: &OwnedFd) -> Result<()> {
    say(stream, &Err(Errno::BUSY))
}

/// A connection to this port that is there or on its way: over version 4 as programs that listen say it; some listen at version 6 alone.
///
/// # Errors
/// `ECONNREFUSED` when nobody listens there.
pub fn open(port: u16) -> std::result::Result<OwnedFd, Errno> {
    begin(Ipv4Addr::LOCALHOST.into(), port).or_else(|error| match error {
        Errno::CONNREFUSED => begin(Ipv6Addr::LOCALHOST.into(), port),
        error => Err(error),
    })
}

fn say(stream: &OwnedFd, attempt: &std::result::Result<OwnedFd, Errno>) -> Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
    match attempt {
        Ok(connection) => {
            let fds = [connection.as_fd()];
            ancillary.push(SendAncillaryMessage::ScmRights(&fds));
            sendmsg(stream, &[IoSlice::new(&[0])], &mut ancillary, flags)?;
        }
        Err(error) => {
            sendmsg(stream, &[IoSlice::new(&error.raw_os_error().to_be_bytes())], &mut ancillary, flags)?;
        }
    }
    Ok(())
}

/// Whether somebody listens at this port.
#[must_use]
pub fn listens(port: u16) -> bool {
    open(port).is_ok()
}

/// A connection that is there or on its way.
fn begin(host: IpAddr, port: u16) -> std::result::Result<OwnedFd, Errno> {
    let family = if host.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let socket = socket_with(family, SocketType::STREAM, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK, None)?;
    match connect(&socket, &SocketAddr::new(host, port)) {
        Ok(()) => return Ok(socket),
        Err(Errno::INPROGRESS) => {}
        Err(error) => return Err(error),
    }
    // On loopback what comes of it is known in microseconds, but not always at once.
    let limit = Timespec { tv_sec: 0, tv_nsec: 5_000_000 };
    let settled = poll(&mut [PollFd::new(&socket, PollFlags::OUT)], Some(&limit))?;
    match sockopt::socket_error(&socket)? {
        Err(error) if settled > 0 => Err(error),
        // It is made, or its listener has no room for now: whoever takes it over sees.
        _ => Ok(socket),
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream};
    use std::os::unix::net::UnixStream;

    use super::*;

    fn asked(port: u16) -> (Vec<u8>, Option<TcpStream>) {
        let (here, there) = UnixStream::pair().unwrap();
        hand_over(&there.into(), port).unwrap();
        let mut buffer = [0; 8];
        let (length, mut fds) = sandpool_sys::packet::receive(&here, &mut buffer).unwrap();
        (buffer[..length].to_vec(), fds.pop().map(TcpStream::from))
    }

    #[test]
    fn a_connection_is_handed_over() {
        for address in ["127.0.0.1:0", "[::1]:0"] {
            let listener = TcpListener::bind(address).unwrap();
            let (said, connection) = asked(listener.local_addr().unwrap().port());
            let mut connection = connection.unwrap();
            assert_eq!(said, [0]);
            connection.set_nonblocking(false).unwrap();
            let (mut other, _) = listener.accept().unwrap();
            other.write_all(b"hi").unwrap();
            let mut heard = [0; 2];
            connection.read_exact(&mut heard).unwrap();
            assert_eq!(&heard, b"hi");
        }
    }

    #[test]
    fn that_nobody_listens_is_told() {
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let (said, connection) = asked(port);
        assert_eq!(said, Errno::CONNREFUSED.raw_os_error().to_be_bytes());
        assert!(connection.is_none());
    }
}
