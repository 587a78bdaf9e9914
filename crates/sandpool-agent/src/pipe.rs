//! Descriptors that never make the agent wait.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::buffer::spare_capacity;
use rustix::fs::OFlags;
use rustix::io::Errno;
use rustix::pipe::PipeFlags;

/// Bytes of input that may wait for a program, before the stream they come from is read no further.
pub const WAITING: usize = 1024 * 1024;

/// A pipe: the agent's reading end, which does not block, and the end for a program.
///
/// # Errors
/// `EMFILE` and the like.
pub fn from_program() -> Result<(OwnedFd, OwnedFd), Errno> {
    let (read, write) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
    set_nonblocking(&read)?;
    Ok((read, write))
}

/// A pipe: the end for a program, and the agent's writing end, which does not block.
///
/// # Errors
/// `EMFILE` and the like.
pub fn to_program() -> Result<(OwnedFd, OwnedFd), Errno> {
    let (read, write) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
    set_nonblocking(&write)?;
    Ok((read, write))
}

/// Sets `O_NONBLOCK`.
///
/// # Errors
/// `EBADF` and the like.
pub fn set_nonblocking(fd: impl AsFd) -> Result<(), Errno> {
    let flags = rustix::fs::fcntl_getfl(&fd)?;
    rustix::fs::fcntl_setfl(&fd, flags | OFlags::NONBLOCK)
}

/// Bytes that are read at once, at least.
const PIECE: usize = 64 * 1024;

/// What one read brought.
#[derive(Debug, PartialEq, Eq)]
pub enum Got {
    /// This many bytes.
    Bytes(usize),
    /// Nothing now.
    Nothing,
    /// Nothing any more.
    End,
}

/// Reads once, behind what `buffer` holds. Memory is touched where something came, and nowhere else: an agent that has
/// nothing to do should have nothing.
pub fn read(fd: impl AsFd, buffer: &mut Vec<u8>) -> Got {
    buffer.reserve(PIECE);
    match rustix::io::read(fd, spare_capacity(buffer)) {
        Ok(0) => Got::End,
        Ok(count) => Got::Bytes(count),
        Err(Errno::AGAIN | Errno::INTR) => Got::Nothing,
        // EIO is how a terminal says that nobody holds its other side.
        Err(_) => Got::End,
    }
}

/// Reads what is there now, and not what is written meanwhile: a writer that never stops cannot hold the reader.
pub fn read_present(fd: impl AsFd, mut take: impl FnMut(&[u8])) {
    let Ok(mut left) = rustix::io::ioctl_fionread(&fd) else { return };
    while left > 0 {
        let mut buffer = vec![0; usize::try_from(left).unwrap_or(usize::MAX).min(PIECE)];
        match rustix::io::read(&fd, &mut buffer) {
            Ok(0) | Err(_) => break,
            Ok(count) => {
                take(&buffer[..count]);
                left = left.saturating_sub(count as u64);
            }
        }
    }
}

/// Bytes on their way to a program.
#[derive(Debug)]
pub struct Sink {
    fd: OwnedFd,
    waiting: Vec<u8>,
    written: usize,
    is_ending: bool,
}

impl Sink {
    /// Takes bytes for `fd`, which must not block.
    #[must_use]
    pub fn new(fd: OwnedFd) -> Self {
        Self { fd, waiting: Vec::new(), written: 0, is_ending: false }
    }

    /// Adds bytes.
    pub fn push(&mut self, bytes: &[u8]) {
        if !self.is_ending {
            self.waiting.extend_from_slice(bytes);
        }
    }

    /// Nothing comes any more.
    pub fn end(&mut self) {
        self.is_ending = true;
    }

    /// Bytes that wait.
    #[must_use]
    pub fn len(&self) -> usize {
        self.waiting.len() - self.written
    }

    /// Nothing waits.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The descriptor.
    #[must_use]
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// Writes what can be written now. `false` when the sink is of no more use: everything is written, or nobody
    /// reads.
    pub fn flush(&mut self) -> bool {
        while !self.is_empty() {
            match rustix::io::write(&self.fd, &self.waiting[self.written..]) {
                Ok(count) => self.written += count,
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => {
                    self.compact();
                    return true;
                }
                Err(_) => return false,
            }
        }
        self.waiting = Vec::new();
        self.written = 0;
        !self.is_ending
    }

    fn compact(&mut self) {
        if self.written > 256 * 1024 {
            self.waiting.drain(..self.written);
            self.written = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sink_never_waits_for_its_reader() {
        let (read_end, write_end) = to_program().unwrap();
        let mut sink = Sink::new(write_end);
        let data = vec![7; 300_000];
        sink.push(&data);
        sink.end();
        assert!(sink.flush());
        let mut got = Vec::new();
        while read(&read_end, &mut got) != Got::End {
            if got.len() < data.len() && !sink.flush() {
                assert!(sink.is_empty());
            }
            if got.len() == data.len() {
                break;
            }
        }
        assert_eq!(got, data);
        assert!(!sink.flush(), "an ended, empty sink is done");
    }

    #[test]
    fn a_sink_without_a_reader_is_done() {
        sandpool_sys::workload::ignore_write_signals();
        let (read_end, write_end) = to_program().unwrap();
        drop(read_end);
        let mut sink = Sink::new(write_end);
        sink.push(b"x");
        assert!(!sink.flush());
    }

    #[test]
    fn what_is_there_is_read_and_no_more() {
        let (read_end, write_end) = from_program().unwrap();
        rustix::io::write(&write_end, b"first").unwrap();
        let mut got = Vec::new();
        read_present(&read_end, |bytes| {
            got.extend_from_slice(bytes);
            rustix::io::write(&write_end, b"later").unwrap();
        });
        assert_eq!(got, b"first");
        drop(write_end);
        let mut buffer = Vec::new();
        assert_eq!((read(&read_end, &mut buffer), read(&read_end, &mut buffer)), (Got::Bytes(5), Got::End));
    }
}
