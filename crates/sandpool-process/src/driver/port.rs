//! A connection to a port of a sandbox, as its agent hands it over.

use std::io;
use std::os::fd::OwnedFd;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use rustix::net::{AddressFamily, SocketType};
use sandpool_driver::{DriverError, Stream};
use sandpool_sys::packet;
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
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
    Relayed(Relayed),
}

async fn taken(stream: OwnedFd, port: u16) -> Result<Taken, DriverError> {
    #[expect(deprecated, reason = "what it fears is a descriptor that changes; an `OwnedFd` does not")]
    let stream = AsyncFd::new(stream).map_err(|error| unavailable(&error))?;
    let mut said = [0; 8];
    let (length, mut fds) = loop {
        let mut ready = stream.readable().await.map_err(|error| unavailable(&error))?;
        match packet::receive(stream.get_ref(), &mut said) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => ready.clear_ready(),
            Err(error) => return Err(unavailable(&error)),
            Ok(received) => break received,
        }
    };
    let connection = match (&said[..length], fds.pop()) {
        ([0], Some(connection)) => connection,
        // It cannot hand over: what follows is what the connection brings, and what is written goes to it.
        ([1, first @ ..], None) => {
            let rest = AgentStream::new(stream.into_inner().into()).map_err(|error| unavailable(&error))?;
            return Ok(Taken::Relayed(Relayed { first: io::Cursor::new(first.to_vec()), rest }));
        }
        ([a, b, c, d], None) => {
            let number = i32::from_be_bytes([*a, *b, *c, *d]);
            return Err(refused(port, &io::Error::from_raw_os_error(number)));
        }
        _ => return Err(unavailable(&"the agent handed over no connection")),
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

/// A connection that the agent passes on, some of whose bytes have come already.
struct Relayed {
    first: io::Cursor<Vec<u8>>,
    rest: AgentStream,
}

impl AsyncRead for Relayed {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, out: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = out.filled().len();
        // A cursor is always ready; at its end it adds nothing.
        let first = Pin::new(&mut self.first).poll_read(context, out);
        if out.filled().len() > before || out.remaining() == 0 {
            return first;
        }
        Pin::new(&mut self.rest).poll_read(context, out)
    }
}

impl AsyncWrite for Relayed {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.rest).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.rest).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.rest).poll_shutdown(context)
    }
}
