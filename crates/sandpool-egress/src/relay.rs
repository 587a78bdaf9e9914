//! Bytes from one side to the other: counted, and ended when nothing moves, when it has been long, or when it is enough.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use sandpool_sys::counters::Counter;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf, copy_bidirectional_with_sizes};
use tokio::net::TcpStream;

/// Bytes that are taken at once, in each direction.
const BUFFER: usize = 64 * 1024;

/// What has gone over one connection.
#[derive(Debug, Default)]
pub(crate) struct Count {
    /// From the sandbox.
    pub(crate) sent: AtomicU64,
    /// To it.
    pub(crate) received: AtomicU64,
}

impl Count {
    /// Both ways.
    pub(crate) fn total(&self) -> u64 {
        self.sent.load(Ordering::Relaxed).saturating_add(self.received.load(Ordering::Relaxed))
    }
}

/// A connection to the outside that counts what goes over it, and ends when its sandbox has had all it may have.
#[derive(Debug)]
pub(crate) struct Metered {
    stream: TcpStream,
    own: Arc<Count>,
    /// Of its sandbox, from the first to the last proxy.
    all: Counter,
    most: u64,
}

impl Metered {
    pub(crate) fn new(stream: TcpStream, own: Arc<Count>, all: Counter, most: u64) -> Self {
        Self { stream, own, all, most }
    }

    fn check(&self) -> io::Result<()> {
        if self.all.read().iter().fold(0, |sum, part| part.saturating_add(sum)) > self.most {
            Err(io::Error::other("the sandbox has used up its bytes"))
        } else {
            Ok(())
        }
    }
}

impl AsyncRead for Metered {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, out: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.check()?;
        let before = out.filled().len();
        let polled = Pin::new(&mut self.stream).poll_read(context, out);
        let count = (out.filled().len() - before) as u64;
        self.own.received.fetch_add(count, Ordering::Relaxed);
        self.all.add(0, count);
        polled
    }
}

impl AsyncWrite for Metered {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.check()?;
        let polled = Pin::new(&mut self.stream).poll_write(context, bytes);
        if let Poll::Ready(Ok(count)) = polled {
            self.own.sent.fetch_add(count as u64, Ordering::Relaxed);
            self.all.add(count as u64, 0);
        }
        polled
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

/// A connection from which something has been read already, which is read again first.
#[derive(Debug)]
pub(crate) struct Early<S> {
    early: io::Cursor<Vec<u8>>,
    stream: S,
}

impl<S> Early<S> {
    pub(crate) fn new(early: Vec<u8>, stream: S) -> Self {
        Self { early: io::Cursor::new(early), stream }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Early<S> {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, out: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = out.filled().len();
        // Bytes in memory are there at once; at their end there are none.
        let polled = Pin::new(&mut self.early).poll_read(context, out);
        if out.filled().len() > before || out.remaining() == 0 {
            return polled;
        }
        Pin::new(&mut self.stream).poll_read(context, out)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Early<S> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

/// Copies both ways until both have ended, or one breaks.
pub(crate) async fn relay(
    client: &mut (impl AsyncRead + AsyncWrite + Unpin),
    upstream: &mut (impl AsyncRead + AsyncWrite + Unpin),
) -> Result<(), String> {
    copy_bidirectional_with_sizes(client, upstream, BUFFER, BUFFER).await.map(drop).map_err(|error| error.to_string())
}

/// Completes when nothing has moved for so long, or when it has been so long in all.
pub(crate) async fn stale(count: &Count, idle: Duration, life: Duration) -> &'static str {
    let rest = async {
        let mut seen = count.total();
        loop {
            tokio::time::sleep(idle).await;
            let now = count.total();
            if now == seen {
                return "nothing moved for too long";
            }
            seen = now;
        }
    };
    tokio::time::timeout(life, rest).await.unwrap_or("it was open for too long")
}
