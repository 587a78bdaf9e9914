//! A connection to a port of a sandbox, as its agent hands it over.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;

use rustix::net::{AddressFamily, SocketType};
use sandpool_driver::{DriverError, Stream};
use sandpool_sys::packet;
use tokio::io::unix::AsyncFd;
use tokio::net::TcpStream;

use super::stream::AgentStream;
use super::unavailable;

/// Takes the connection that the agent hands over on this stream, once it is made. Whoever calls sets the limit.
pub(super) async fn take(stream: OwnedFd, port: u16) -> Result<Stream, DriverError> {
    let refused = |error: &io::Error| {
        DriverError::Refused(match error.kind() {
            io::ErrorKind::ConnectionRefused => format!("nothing listens at port {port}"),
            io::ErrorKind::PermissionDenied => "programs of this pool may have no servers of their own".to_owned(),
            _ => format!("port {port}: {error}"),
        })
    };
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
                    // A machine's: it is made inside, and passed on here.
                    ([1], None) => {
                        let stream = AgentStream::new(UnixStream::from(stream.into_inner()));
                        return stream.map(|stream| Box::new(stream) as Stream).map_err(|error| unavailable(&error));
                    }
                    ([a, b, c, d], None) => {
                        let number = i32::from_be_bytes([*a, *b, *c, *d]);
                        return Err(refused(&io::Error::from_raw_os_error(number)));
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
    let connection = std::net::TcpStream::from(connection);
    let made = async {
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
    };
    let made: io::Result<TcpStream> = made.await;
    made.map(|connection| Box::new(connection) as Stream).map_err(|error| refused(&error))
}
