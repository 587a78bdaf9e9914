//! Machines as bytes: what their keepers write of them, and take.

use std::io::{self, ErrorKind};
use std::os::unix::net::UnixStream;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use sandpool_core::ids::{PoolName, SandboxId};
use sandpool_driver::{Driver, DriverError, Keeps, Stream};
use sandpool_vm::saved::{self, END, HEADER};
use sandpool_wire::egress::Policy;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf};

use super::stream::AgentStream;
use super::{ProcessDriver, unavailable};
use crate::control::{Answer, Call};

/// Bytes that are passed on at once.
const PIECE: usize = 1 << 18;

impl ProcessDriver {
    pub(super) async fn save_machine(&self, id: SandboxId, stays: bool) -> Result<Stream, DriverError> {
        {
            let state = self.state();
            let known = state.known.get(&id).ok_or_else(|| DriverError::Gone(id.to_string()))?;
            if known.sandbox.owner.is_none() {
                return Err(DriverError::Invalid("nobody has this sandbox yet".to_owned()));
            }
            let pool = known.sandbox.pool.clone();
            drop(state);
            self.must_be_machine(&pool)?;
        }
        let stream = self.special(Call::Save { id: id.0, stays }).await?;
        Ok(Box::new(Saved { stream, place: Place::Header { bytes: [0; HEADER], count: 0 } }))
    }

    pub(super) async fn load_machine(
        &self,
        id: SandboxId,
        pool: &PoolName,
        saved: Stream,
        narrowed: Option<&Policy>,
    ) -> Result<(), DriverError> {
        self.must_be_machine(pool)?;
        let limit = self.create_known(id, pool).await?;
        let begun = async {
            if narrowed.is_some() {
                self.narrow(id, narrowed).await?;
            }
            self.special(Call::Wake { id: id.0 }).await
        };
        let mut stream = match begun.await {
            Ok(stream) => stream,
            Err(error) => {
                self.destroy(id).await?;
                return Err(error);
            }
        };
        tokio::spawn(async move {
            let mut saved = tokio::io::BufReader::with_capacity(PIECE, saved);
            // Bytes that end too early are an end that the keeper did not expect, and says so to whoever waits for the machine.
            if tokio::io::copy_buf(&mut saved, &mut stream).await.is_ok() {
                let _ = stream.shutdown().await;
            }
        });
        if let (Some(driver), Some(limit)) = (self.this.upgrade(), limit) {
            tokio::spawn(driver.watch_boot(id, limit));
        }
        Ok(())
    }

    fn must_be_machine(&self, pool: &PoolName) -> Result<(), DriverError> {
        match self.keeps(pool) {
            Keeps::Machine => Ok(()),
            Keeps::Files => Err(DriverError::Invalid(format!("nothing but files is kept of sandboxes of {pool}"))),
        }
    }

    async fn special(&self, call: Call) -> Result<AgentStream, DriverError> {
        match self.ask(call).await? {
            (Answer::Dialled, Some(fd)) => AgentStream::new(UnixStream::from(fd)).map_err(|error| unavailable(&error)),
            _ => Err(unavailable(&"the launcher sent no stream")),
        }
    }
}

/// What a keeper writes, as it comes. It knows its end, so that an earlier one is an error. Its keeper sees when it is dropped.
struct Saved {
    stream: AgentStream,
    place: Place,
}

/// Where in a piece the next byte is.
#[derive(Clone, Copy, Debug)]
enum Place {
    Header {
        bytes: [u8; HEADER],
        count: usize,
    },
    Payload {
        left: usize,
    },
    /// All has come.
    Whole,
}

impl Place {
    /// Goes over bytes.
    fn pass(&mut self, mut passed: &[u8]) -> io::Result<()> {
        while !passed.is_empty() {
            match self {
                Self::Header { bytes, count } => {
                    let taken = passed.len().min(HEADER - *count);
                    bytes[*count..*count + taken].copy_from_slice(&passed[..taken]);
                    *count += taken;
                    passed = &passed[taken..];
                    if *count == HEADER {
                        *self = match saved::piece(*bytes)? {
                            (END, _) => Self::Whole,
                            (_, left) => Self::Payload { left },
                        };
                    }
                }
                Self::Payload { left } => {
                    let taken = passed.len().min(*left);
                    *left -= taken;
                    passed = &passed[taken..];
                }
                Self::Whole => return Err(io::Error::new(ErrorKind::InvalidData, "bytes behind the end")),
            }
            if matches!(self, Self::Payload { left: 0 }) {
                *self = Self::Header { bytes: [0; HEADER], count: 0 };
            }
        }
        Ok(())
    }
}

impl AsyncRead for Saved {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, out: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if matches!(this.place, Place::Whole) {
            return Poll::Ready(Ok(()));
        }
        let before = out.filled().len();
        ready!(Pin::new(&mut this.stream).poll_read(context, out))?;
        let came = &out.filled()[before..];
        if came.is_empty() && out.remaining() > 0 {
            return Poll::Ready(Err(io::Error::new(ErrorKind::UnexpectedEof, "the machine was not saved as a whole")));
        }
        Poll::Ready(this.place.pass(came))
    }
}

/// Nothing can be said to it.
impl AsyncWrite for Saved {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, _: &[u8]) -> Poll<io::Result<usize>> {
        Poll::Ready(Err(ErrorKind::Unsupported.into()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
