//! What leads out of a machine: the sandbox's listeners, each of whose connections is made again by the keeper, in whose network the
//! same listeners are the egress proxy's.
//!
//! ```text
//! program --any address--> listener of its network | --stream: Door--> keeper --the same address--> listener of its network (proxy)
//! program --UDP 53-------> datagram                 | --the same, to TCP 53, as RFC 1035 (4.2.2) frames it
//! ```

use std::io::{self, Write};
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;

use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, SocketAddrAny, SocketFlags};
use sandpool_sys::network::PORTS;

use crate::mux::Door;
use crate::relay::Relay;

/// Questions that are under way at one time. One more is not answered, and asked again.
const QUESTIONS: usize = 64;

/// The longest datagram that is taken for a question, in bytes.
const MAX_QUESTION: usize = 4096;

/// The longest answer, as it is framed.
const MAX_ANSWER: usize = 2 + 65_535;

/// Where questions go: the resolver of the sandbox's own `/etc/resolv.conf`.
const RESOLVER: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 53);

/// Which of the descriptors of [`Doors`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Which {
    Listener(usize),
    Datagrams,
    Question(u64),
}

/// The listeners of a sandbox's network.
#[derive(Debug)]
pub(super) struct Doors {
    listeners: Vec<OwnedFd>,
    datagrams: OwnedFd,
    questions: Vec<Question>,
    next: u64,
}

/// A datagram that waits for its answer.
#[derive(Debug)]
struct Question {
    number: u64,
    from: SocketAddrAny,
    stream: UnixStream,
    answer: Vec<u8>,
}

impl Doors {
    /// Of what the sandbox has handed over: see [`sandpool_sys::network::listeners`].
    pub(super) fn new(mut handed: Vec<OwnedFd>) -> io::Result<Self> {
        match (handed.len() == PORTS.len() + 1, handed.pop()) {
            (true, Some(datagrams)) => Ok(Self { listeners: handed, datagrams, questions: Vec::new(), next: 0 }),
            _ => Err(io::Error::other("the sandbox has handed over other listeners than it has")),
        }
    }

    /// Everything to read from.
    pub(super) fn descriptors(&self) -> impl Iterator<Item = (Which, BorrowedFd<'_>)> {
        let listeners = self.listeners.iter().enumerate().map(|(index, fd)| (Which::Listener(index), fd.as_fd()));
        let questions = self.questions.iter().map(|one| (Which::Question(one.number), one.stream.as_fd()));
        listeners.chain(std::iter::once((Which::Datagrams, self.datagrams.as_fd()))).chain(questions)
    }

    /// One of them can be read from.
    pub(super) fn ready(&mut self, which: Which, relay: &mut Relay) {
        // What goes wrong here is the program's connection, which is closed, and nothing else's.
        let _ = match which {
            Which::Listener(index) => self.accept(index, relay),
            Which::Datagrams => self.ask(relay),
            Which::Question(number) => {
                self.hear(number);
                Ok(())
            }
        };
    }

    fn accept(&self, index: usize, relay: &mut Relay) -> io::Result<()> {
        let listener = self.listeners.get(index).ok_or(io::ErrorKind::NotFound)?;
        let connection = rustix::net::accept_with(listener, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK)?;
        let meant = SocketAddr::try_from(rustix::net::getsockname(&connection)?).map_err(io::Error::other)?;
        // It may be slower then.
        let _ = rustix::net::sockopt::set_tcp_nodelay(&connection, true);
        relay.open(connection, &Door(meant).encode());
        Ok(())
    }

    fn ask(&mut self, relay: &mut Relay) -> io::Result<()> {
        let mut buffer = vec![0; MAX_QUESTION];
        let (count, _, from) = rustix::net::recvfrom(&self.datagrams, &mut buffer, RecvFlags::DONTWAIT)?;
        let from = from.ok_or(io::ErrorKind::InvalidData)?;
        let length = u16::try_from(count).map_err(io::Error::other)?;
        if self.questions.len() >= QUESTIONS {
            return Ok(());
        }
        let (mut stream, through) = UnixStream::pair()?;
        stream.set_nonblocking(true)?;
        through.set_nonblocking(true)?;
        stream.write_all(&[&length.to_be_bytes(), &buffer[..count]].concat())?;
        relay.open(through.into(), &Door(RESOLVER).encode());
        self.next += 1;
        self.questions.push(Question { number: self.next, from, stream, answer: Vec::new() });
        Ok(())
    }

    fn hear(&mut self, number: u64) {
        let Some(index) = self.questions.iter().position(|one| one.number == number) else { return };
        let question = &mut self.questions[index];
        let mut buffer = [0; 4096];
        let is_over = match rustix::io::read(&question.stream, &mut buffer) {
            Ok(count @ 1..) => {
                question.answer.extend_from_slice(&buffer[..count]);
                question.answer.len() > MAX_ANSWER || whole(&question.answer).is_some()
            }
            Err(Errno::AGAIN | Errno::INTR) => false,
            Ok(0) | Err(_) => true,
        };
        if is_over {
            let question = self.questions.swap_remove(index);
            if let Some(answer) = whole(&question.answer) {
                // Who does not wait any more need not have it.
                let _ = rustix::net::sendto(&self.datagrams, answer, SendFlags::DONTWAIT, &question.from);
            }
        }
    }
}

/// The answer in what has come, once all of it has.
fn whole(bytes: &[u8]) -> Option<&[u8]> {
    let (length, rest) = bytes.split_first_chunk::<2>()?;
    rest.get(..usize::from(u16::from_be_bytes(*length)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_whole_when_its_length_says_so() {
        assert_eq!(whole(&[0]), None);
        assert_eq!(whole(&[0, 3, 1, 2]), None);
        assert_eq!(whole(&[0, 3, 1, 2, 3]), Some([1, 2, 3].as_slice()));
        assert_eq!(whole(&[0, 1, 1, 2, 3]), Some([1].as_slice()));
    }
}
