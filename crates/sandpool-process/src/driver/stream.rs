//! The server's end of a stream to an agent.
//!
//! A Unix socket tells whoever waits for it also each time that the other end has read something. Of that the server
//! wants to hear only when it has more to say than the socket takes: it costs a wake-up for every request.

use std::io::{self, ErrorKind, Read};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use rustix::net::SendFlags;
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};

/// A connected stream that does not block.
#[derive(Debug)]
pub(super) struct AgentStream {
    socket: AsyncFd<UnixStream>,
    /// The same socket, watched for room while it is full.
    full: Option<AsyncFd<OwnedFd>>,
}

impl AgentStream {
    /// # Errors
    /// Those of a runtime without room for one more.
    pub(super) fn new(socket: UnixStream) -> io::Result<Self> {
        Ok(Self { socket: watch(socket, Interest::READABLE)?, full: None })
    }

    fn send(&self, bytes: &[u8]) -> io::Result<usize> {
        Ok(rustix::net::send(self.socket.get_ref(), bytes, SendFlags::NOSIGNAL | SendFlags::DONTWAIT)?)
    }
}

#[expect(deprecated, reason = "what it fears is a descriptor that changes; what owns one keeps it")]
fn watch<T: AsRawFd + Into<OwnedFd>>(socket: T, interest: Interest) -> io::Result<AsyncFd<T>> {
    AsyncFd::with_interest(socket, interest)
}

impl AsyncRead for AgentStream {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, out: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        loop {
            let mut ready = ready!(self.socket.poll_read_ready(context))?;
            let buffer = out.initialize_unfilled();
            let asked = buffer.len();
            match ready.try_io(|socket| socket.get_ref().read(buffer)) {
                Ok(Ok(count)) => {
                    if 0 < count && count < asked {
                        // That was all: asking again would only be told so.
                        ready.clear_ready();
                    }
                    out.advance(count);
                    return Poll::Ready(Ok(()));
                }
                Ok(Err(error)) if error.kind() == ErrorKind::Interrupted => {}
                Ok(Err(error)) => return Poll::Ready(Err(error)),
                Err(_would_block) => {}
            }
        }
    }
}

impl AsyncWrite for AgentStream {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        loop {
            match self.send(bytes) {
                Ok(count) => {
                    self.full = None;
                    return Poll::Ready(Ok(count));
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    if self.full.is_none() {
                        let socket = self.socket.get_ref().as_fd().try_clone_to_owned()?;
                        self.full = Some(watch(socket, Interest::WRITABLE)?);
                    }
                    if let Some(full) = &self.full {
                        // There was room once, and is none now.
                        ready!(full.poll_write_ready(context))?.clear_ready();
                    }
                }
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(self.socket.get_ref().shutdown(std::net::Shutdown::Write))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    fn pair() -> (AgentStream, AgentStream) {
        let (one, other) = UnixStream::pair().unwrap();
        one.set_nonblocking(true).unwrap();
        other.set_nonblocking(true).unwrap();
        (AgentStream::new(one).unwrap(), AgentStream::new(other).unwrap())
    }

    #[tokio::test]
    async fn more_than_a_socket_takes_arrives_whole_in_both_directions() {
        let (one, other) = pair();
        let sent: Vec<u8> = (0..3_000_000_u32).map(|number| number.to_le_bytes()[0]).collect();
        let exchange = |stream: AgentStream, sent: Vec<u8>| async move {
            let (mut input, mut output) = tokio::io::split(stream);
            let length = sent.len();
            let write = async move {
                output.write_all(&sent).await.unwrap();
                output
            };
            let mut received = vec![0; length];
            let (_output, read) = tokio::join!(write, input.read_exact(&mut received));
            read.unwrap();
            received
        };
        let (left, right) = tokio::join!(exchange(one, sent.clone()), exchange(other, sent.clone()));
        assert!(left == sent && right == sent);
    }

    #[tokio::test]
    async fn what_is_cut_at_the_other_end_is_an_end_to_read_and_an_error_to_write() {
        let (mut one, other) = pair();
        drop(other);
        assert_eq!(one.read(&mut [0; 8]).await.unwrap(), 0);
        assert_eq!(one.write(b"x").await.unwrap_err().kind(), ErrorKind::BrokenPipe);
    }
}
