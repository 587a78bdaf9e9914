//! Connections that are passed on: where a descriptor can be received and not be handed over, as in gVisor's kernel.
//!
//! ```text
//! asker --(stream, port)--> agent: connects, and answers the byte 1, or an error's number in four bytes
//!       <------- bytes, both ways, until each side has said its last ------->
//! ```

use std::collections::BTreeMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::event::PollFlags;
use rustix::io::Errno;
use rustix::net::{Shutdown, shutdown, sockopt};

use crate::{pipe, port};

/// The most connections at one time; a further one is refused.
const MOST: usize = 256;

/// Bytes of one direction that wait for who takes them.
const WAITING: usize = 64 * 1024;

/// What is said when the connection is there.
const MADE: u8 = 1;

/// Which end of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The stream to whoever asked.
    Asker,
    /// The connection to the program.
    Program,
}

/// All connections that are passed on.
#[derive(Debug, Default)]
pub struct Relays {
    relays: BTreeMap<u64, Relay>,
    next_id: u64,
}

#[derive(Debug)]
struct Relay {
    asker: OwnedFd,
    program: OwnedFd,
    is_made: bool,
    /// What the asker says, and what the program does.
    there: Way,
    back: Way,
}

/// One direction.
#[derive(Debug, Default)]
struct Way {
    waiting: Vec<u8>,
    written: usize,
    /// Nothing more comes.
    is_ended: bool,
    /// And that was told.
    is_closed: bool,
}

impl Way {
    fn is_empty(&self) -> bool {
        self.written == self.waiting.len()
    }

    fn has_room(&self) -> bool {
        !self.is_ended && self.waiting.len() - self.written < WAITING
    }

    fn read(&mut self, from: impl AsFd) {
        if self.has_room() && pipe::read(from, &mut self.waiting) == pipe::Got::End {
            self.is_ended = true;
        }
    }

    /// Writes what can be written now. `false` when nobody takes it any more.
    fn write(&mut self, to: impl AsFd) -> bool {
        while !self.is_empty() {
            match rustix::io::write(&to, &self.waiting[self.written..]) {
                Ok(count) => self.written += count,
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return true,
                Err(_) => return false,
            }
        }
        (self.waiting, self.written) = (Vec::new(), 0);
        if self.is_ended && !self.is_closed {
            self.is_closed = true;
            // It may be gone already.
            let _ = shutdown(&to, Shutdown::Write);
        }
        true
    }
}

impl Relays {
    /// Makes a connection to this port for whoever holds the other end of `asker`.
    pub fn begin(&mut self, asker: OwnedFd, wanted: u16) {
        let begun = if self.relays.len() < MOST { port::open(wanted) } else { Err(Errno::MFILE) };
        match begun.and_then(|program| pipe::set_nonblocking(&asker).map(|()| program)) {
            Ok(program) => {
                self.next_id += 1;
                let (there, back) = (Way::default(), Way::default());
                self.relays.insert(self.next_id, Relay { asker, program, is_made: false, there, back });
            }
            Err(error) => refuse(&asker, error),
        }
    }

    /// Everything to wait for.
    pub fn descriptors(&self) -> impl Iterator<Item = (u64, End, BorrowedFd<'_>, PollFlags)> {
        self.relays.iter().flat_map(|(id, relay)| {
            let wants = |reads: &Way, writes: &Way| {
                let mut flags = PollFlags::empty();
                flags.set(PollFlags::IN, relay.is_made && reads.has_room());
                flags.set(PollFlags::OUT, !writes.is_empty());
                flags
            };
            let mut of_program = wants(&relay.back, &relay.there);
            of_program.set(PollFlags::OUT, !relay.is_made || !relay.there.is_empty());
            let asker = (*id, End::Asker, relay.asker.as_fd(), wants(&relay.there, &relay.back));
            let program = (*id, End::Program, relay.program.as_fd(), of_program);
            // One that has nothing to say and nothing to hear would be told of its end again and again.
            [asker, program].into_iter().filter(|(.., flags)| !flags.is_empty())
        })
    }

    /// One of its descriptors is ready.
    pub fn ready(&mut self, id: u64, end: End) {
        let Some(relay) = self.relays.get_mut(&id) else { return };
        if !relay.is_made {
            if end == End::Asker {
                return;
            }
            match sockopt::socket_error(&relay.program) {
                Ok(Ok(())) => {
                    relay.is_made = true;
                    relay.back.waiting.push(MADE);
                }
                Ok(Err(error)) | Err(error) => {
                    refuse(&relay.asker, error);
                    self.relays.remove(&id);
                    return;
                }
            }
        }
        match end {
            End::Asker => relay.there.read(&relay.asker),
            End::Program => relay.back.read(&relay.program),
        }
        let goes_on = relay.there.write(&relay.program) && relay.back.write(&relay.asker);
        if !goes_on || relay.there.is_closed && relay.back.is_closed {
            self.relays.remove(&id);
        }
    }
}

fn refuse(asker: &OwnedFd, error: Errno) {
    // Whoever asked may have gone.
    let _ = rustix::io::write(asker, &error.raw_os_error().to_be_bytes());
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::TcpListener;
    use std::os::unix::net::UnixStream;

    use rustix::event::PollFd;

    use super::*;

    /// Passes on until nothing is left to.
    fn run(mut relays: Relays) {
        while !relays.relays.is_empty() {
            let (who, mut fds): (Vec<_>, Vec<_>) = relays
                .descriptors()
                .map(|(id, end, fd, flags)| ((id, end), PollFd::from_borrowed_fd(fd, flags)))
                .unzip();
            rustix::event::poll(&mut fds, None).unwrap();
            let ready: Vec<_> =
                who.into_iter().zip(&fds).filter(|(_, fd)| !fd.revents().is_empty()).map(|(who, _)| who).collect();
            for (id, end) in ready {
                relays.ready(id, end);
            }
        }
    }

    #[test]
    fn megabytes_pass_both_ways_and_each_side_hears_the_others_end() {
        sandpool_sys::workload::ignore_write_signals();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let data: Vec<u8> = (0..3_000_000_u32).map(|number| number.to_le_bytes()[0]).collect();
        let (mut here, there) = UnixStream::pair().unwrap();
        let passing = std::thread::spawn(move || {
            let mut relays = Relays::default();
            relays.begin(there.into(), port);
            run(relays);
        });
        let server = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut all = Vec::new();
            stream.read_to_end(&mut all).unwrap();
            stream.write_all(&all).unwrap();
        });
        let mut sender = here.try_clone().unwrap();
        let sent = data.clone();
        let sending = std::thread::spawn(move || {
            sender.write_all(&sent).unwrap();
            sender.shutdown(std::net::Shutdown::Write).unwrap();
        });
        let mut heard = Vec::new();
        here.read_to_end(&mut heard).unwrap();
        assert_eq!(heard[0], MADE);
        assert!(heard[1..] == data);
        for thread in [passing, server, sending] {
            thread.join().unwrap();
        }
    }

    #[test]
    fn that_nobody_listens_is_told() {
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let (mut here, there) = UnixStream::pair().unwrap();
        let mut relays = Relays::default();
        relays.begin(there.into(), port);
        run(relays);
        let mut heard = Vec::new();
        here.read_to_end(&mut heard).unwrap();
        assert_eq!(heard, Errno::CONNREFUSED.raw_os_error().to_be_bytes());
    }
}
