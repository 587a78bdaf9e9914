//! A connection to a port of a sandbox, as its agent hands it over.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use rustix::net::{AddressFamily, SocketType};
use sandpool_driver::{DriverError, Stream};
use sandpool_sys::packet;
use tokio::io::unix::AsyncFd;
use tokio::net::TcpStream;

use super::stream::AgentStream;
use super::unavailable;

/// How long a connection may take, once it has begun: it stays on this host.
const CONNECT: Duration = Duration::from_secs(5);

/// Takes the connection that the agent hands over on this stream, once it is made. A container's agent waits with it for as long as its
/// program starts: at most `patience`.
pub(super) async fn take(stream: OwnedFd, port: u16, patience: Duration) -> Result<Stream, DriverError> {
    let silent = |_| DriverError::Refused(format!("nothing answers at port {port}"));
    let connection = match tokio::time::timeout(patience + CONNECT, taken(stream, port)).await.map_err(silent)?? {
        Taken::Connection(connection) => connection,
        Taken::Relayed(relayed) => return Ok(Box::new(relayed)),
    };
    let made = tokio::time::timeout(CONNECT, made(connection)).await.map_err(silent)?;
    made.map(|connection| Box::new(connection) as Stream).map_err(|error| refused(port, &error))
}

fn refused(port: u16, error: &io::Error) -> DriverError {
    match error.kind() {
        io::ErrorKind::ConnectionRefused => DriverError::Refused(format!("nothing listens at port {port}")),
        io::ErrorKind::PermissionDenied => {
            DriverError::Refused("programs of this pool may have no servers of their own".to_owned())
        }
        // Its agent says so, and has asked it.
        io::ErrorKind::ResourceBusy => DriverError::NotReady,
        _ => DriverError::Refused(format!("port {port}: {error}")),
    }
}

/// What an agent gives.
enum Taken {
    /// The connection itself.
    Connection(OwnedFd),
    /// What it brings, since the agent cannot hand it over.
    Relayed(AgentStream),
}

async fn taken(stream: OwnedFd, port: u16) -> Result<Taken, DriverError> {
    #[expect(deprecated, reason = "what it fears is a descriptor that changes; an `OwnedFd` does not")]
    let stream = AsyncFd::new(stream).map_err(|error| unavailable(&error))?;
    // Byte by byte: after a yes without a connection, what follows is that one's own.
    let mut said = Vec::new();
    let connection = loop {
        let mut ready = stream.readable().await.map_err(|error| unavailable(&error))?;
        let mut byte = [0];
        match packet::receive(stream.get_ref(), &mut byte) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                ready.clear_ready();
                continue;
            }
            Err(error) => return Err(unavailable(&error)),
            Ok((0, _)) => return Err(unavailable(&"the agent handed over no connection")),
            Ok((_, mut fds)) => {
                said.push(byte[0]);
                match (said.as_slice(), fds.pop()) {
                    ([0], Some(connection)) => break connection,
                    // It cannot be handed over: what follows is what it brings, and what is written goes to it.
                    ([1], None) => {
                        let relayed = AgentStream::new(UnixStream::from(stream.into_inner()));
                        return relayed.map(Taken::Relayed).map_err(|error| unavailable(&error));
                    }
                    ([a, b, c, d], None) => {
                        let number = i32::from_be_bytes([*a, *b, *c, *d]);
                        return Err(refused(port, &io::Error::from_raw_os_error(number)));
                    }
                    ([0, ..], None) => {}
                    _ => return Err(unavailable(&"the agent handed over no connection")),
                }
            }
        }
    };
    // It comes out of a sandbox: it is a TCP connection, or nothing.
    let is_tcp = matches!(rustix::net::sockopt::socket_type(&connection), Ok(SocketType::STREAM))
        && matches!(rustix::net::sockopt::socket_domain(&connection), Ok(AddressFamily::INET | AddressFamily::INET6));
    if !is_tcp {
        return Err(unavailable(&"the agent handed over what is no connection"));
    }
    Ok(Taken::Connection(connection))
}

async fn made(connection: OwnedFd) -> io::Result<TcpStream> {
    let connection = std::net::TcpStream::from(connection);
    connection.set_nonblocking(true)?;
    let connection = TcpStream::from_std(connection)?;
    connection.writable().await?;
    match connection.take_error()? {
        Some(error) => Err(error),
        None => {
            connection.set_nodelay(true)?;
            Ok(connection)
        }
    }
}
