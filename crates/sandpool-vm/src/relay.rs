//! One end of a machine's port with the sockets whose bytes pass through it. Nothing in it waits.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SendFlags, Shutdown, SocketFlags, SocketType};

use crate::identity::Identity;
use crate::mux::{Door, Heard, MAX_PIECE, Mux, Side};

/// What a descriptor of a relay is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// The port.
    Port,
    /// A stream's socket.
    Stream(u32),
}

/// Waits until one of these is ready, and tells which are, and for what. Nothing, when a signal came first.
pub(crate) fn ready_of<'a, Owner>(
    all: impl Iterator<Item = (Owner, BorrowedFd<'a>, PollFlags)>,
) -> io::Result<Vec<(Owner, PollFlags)>> {
    let (owners, mut fds): (Vec<_>, Vec<_>) =
        all.map(|(owner, fd, flags)| (owner, PollFd::from_borrowed_fd(fd, flags))).unzip();
    match poll(&mut fds, None) {
        Ok(_) => {}
        Err(Errno::INTR) => return Ok(Vec::new()),
        Err(error) => return Err(error.into()),
    }
    let events = fds.iter().map(PollFd::revents);
    Ok(owners.into_iter().zip(events).filter(|(_, events)| !events.is_empty()).collect())
}

/// What a relay leaves to its owner, who does it before what was said after it ([`Relay::go_on`]).
#[derive(Debug, PartialEq, Eq)]
pub enum News {
    /// See [`Heard::Prepare`].
    Prepare,
    /// See [`Heard::Hush`].
    Hush,
    /// See [`Heard::Resume`].
    Resume(crate::mux::Resume),
    /// See [`Heard::Up`].
    Up(Box<Identity>),
    /// See [`Heard::Serves`].
    Serves,
    /// See [`Heard::Broken`].
    Broken(String),
}

/// One stream's socket.
#[derive(Debug)]
struct Socket {
    fd: OwnedFd,
    /// What its reader has yet to take: at most a window.
    pending: Vec<u8>,
    peer_has_ended: bool,
    /// It will be replaced by a connection to a port, which its other end makes.
    awaits: Awaits,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Awaits {
    Nothing,
    /// The connection itself.
    Connection,
    /// That the connection is made.
    Made,
}

/// The port, and the sockets of its streams.
#[derive(Debug)]
pub struct Relay {
    /// What is said over the port.
    pub mux: Mux,
    port: OwnedFd,
    sockets: BTreeMap<u32, Socket>,
    /// What was said, and is not yet done.
    heard: VecDeque<Heard>,
    /// Who takes the streams that the other end opens, inside a machine.
    agent: Option<OwnedFd>,
    /// Outside: whether the streams that it opens lead anywhere.
    leads_out: bool,
}

impl Relay {
    /// Over this port, which does not block.
    #[must_use]
    pub fn new(side: Side, port: OwnedFd) -> Self {
        let (sockets, heard) = (BTreeMap::new(), VecDeque::new());
        Self { mux: Mux::new(side), port, sockets, heard, agent: None, leads_out: false }
    }

    /// Goes on with another port, on which nothing was said yet. All streams of the old one end.
    pub fn begin_anew(&mut self, port: OwnedFd) {
        (self.mux, self.port) = (Mux::new(self.mux.side()), port);
        self.sockets.clear();
        self.heard.clear();
        self.agent = None;
    }

    /// From now on, streams that the other end opens are given to the agent at this control socket. Before, they are refused.
    pub fn serve(&mut self, agent: OwnedFd) {
        self.agent = Some(agent);
    }

    /// From now on, where programs of the machine connect to is connected to here, in this process's network. Before, nothing is.
    pub fn lead_out(&mut self) {
        self.leads_out = true;
    }

    /// Opens a stream for what comes from and goes to this socket. Where there is no room for it, the socket is closed.
    pub fn open(&mut self, fd: OwnedFd, word: &[u8]) {
        if let Some(stream) = self.mux.open(word) {
            self.adopt(stream, fd, Awaits::Nothing);
        }
    }

    fn adopt(&mut self, stream: u32, fd: OwnedFd, awaits: Awaits) {
        self.sockets.insert(stream, Socket { fd, pending: Vec::new(), peer_has_ended: false, awaits });
    }

    /// Connects to where a program of the machine has.
    fn connect(&mut self, stream: u32, word: &[u8]) {
        let connect = || -> io::Result<OwnedFd> {
            let Door(to) = Door::decode(word).filter(|_| self.leads_out).ok_or(io::ErrorKind::PermissionDenied)?;
            let family = if to.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
            let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
            let socket = rustix::net::socket_with(family, SocketType::STREAM, flags, None)?;
            match rustix::net::connect(&socket, &to) {
                // What is written before it is made waits, and an error is met there.
                Ok(()) | Err(Errno::INPROGRESS) => {}
                Err(error) => return Err(error.into()),
            }
            // It may be slower then.
            let _ = rustix::net::sockopt::set_tcp_nodelay(&socket, true);
            Ok(socket)
        };
        match connect() {
            Ok(socket) => self.adopt(stream, socket, Awaits::Nothing),
            Err(_) => self.mux.reset(stream),
        }
    }

    /// Gives a stream that was opened to the agent.
    fn give(&mut self, stream: u32, word: &[u8]) {
        let give = || -> io::Result<OwnedFd> {
            let agent = self.agent.as_ref().ok_or(io::ErrorKind::NotConnected)?;
            let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
            let (here, there) = rustix::net::socketpair(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
            sandpool_sys::packet::send(agent, word, &[there.as_fd()])?;
            Ok(here)
        };
        match give() {
            Ok(here) => self.adopt(stream, here, if word == b"D" { Awaits::Nothing } else { Awaits::Connection }),
            Err(_) => self.mux.reset(stream),
        }
    }

    /// Everything to wait for.
    pub fn descriptors(&self) -> impl Iterator<Item = (Source, BorrowedFd<'_>, PollFlags)> {
        let mut of_port = PollFlags::IN;
        of_port.set(PollFlags::OUT, !self.mux.output().is_empty());
        let streams = self.sockets.iter().filter_map(|(stream, socket)| {
            let mut flags = PollFlags::empty();
            let is_settled = socket.awaits == Awaits::Nothing;
            flags.set(PollFlags::IN, socket.awaits != Awaits::Made && self.mux.room(*stream) > 0);
            flags.set(PollFlags::OUT, socket.awaits == Awaits::Made || (is_settled && !socket.pending.is_empty()));
            // Without a wish it would still be told of hang-ups, again and again.
            (!flags.is_empty()).then_some((Source::Stream(*stream), socket.fd.as_fd(), flags))
        });
        std::iter::once((Source::Port, self.port.as_fd(), of_port)).chain(streams)
    }

    /// A descriptor is ready. What is answered is to be done, and then [`Relay::go_on`] to be called until it has nothing more.
    ///
    /// # Errors
    /// When the port is closed, or what came from it breaks the protocol.
    pub fn ready(&mut self, source: Source, events: PollFlags) -> io::Result<Option<News>> {
        match source {
            Source::Port => {
                if events.contains(PollFlags::OUT) {
                    self.flush()?;
                }
                if events.intersects(PollFlags::IN | PollFlags::HUP | PollFlags::ERR) {
                    self.hear()?;
                }
                Ok(self.go_on())
            }
            Source::Stream(stream) => {
                self.stream_ready(stream, events);
                Ok(None)
            }
        }
    }

    /// Writes to the port what it takes.
    ///
    /// # Errors
    /// When it is closed.
    pub fn flush(&mut self) -> io::Result<()> {
        while !self.mux.output().is_empty() {
            let said = self.mux.output();
            match rustix::io::write(&self.port, &said[..said.len().min(MAX_PIECE)]) {
                Ok(count) => self.mux.written(count),
                Err(Errno::AGAIN) => break,
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    fn hear(&mut self) -> io::Result<()> {
        let mut buffer = vec![0; MAX_PIECE];
        match rustix::io::read(&self.port, &mut buffer) {
            Ok(0) => Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(count) => {
                self.heard.extend(self.mux.hear(&buffer[..count]).map_err(io::Error::other)?);
                Ok(())
            }
            Err(Errno::AGAIN | Errno::INTR) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Does what was said, up to the next word that is for the owner.
    pub fn go_on(&mut self) -> Option<News> {
        while let Some(heard) = self.heard.pop_front() {
            match heard {
                Heard::Open { stream, word } => match self.mux.side() {
                    Side::Machine => self.give(stream, &word),
                    Side::Keeper => self.connect(stream, &word),
                },
                Heard::Prepare => return Some(News::Prepare),
                Heard::Hush => return Some(News::Hush),
                Heard::Resume(resume) => {
                    if !resume.is_the_same {
                        self.sockets.clear();
                    }
                    return Some(News::Resume(resume));
                }
                Heard::Up(identity) => return Some(News::Up(identity)),
                Heard::Serves => return Some(News::Serves),
                Heard::Broken(why) => return Some(News::Broken(why)),
                Heard::Credit(_) => {}
                Heard::Data { stream, bytes } => {
                    if let Some(socket) = self.sockets.get_mut(&stream) {
                        socket.pending.extend(bytes);
                        self.pass_on(stream);
                    }
                }
                Heard::End(stream) => {
                    if let Some(socket) = self.sockets.get_mut(&stream) {
                        socket.peer_has_ended = true;
                        self.pass_on(stream);
                    }
                }
                Heard::Reset(stream) => {
                    self.sockets.remove(&stream);
                }
            }
        }
        None
    }

    fn stream_ready(&mut self, stream: u32, events: PollFlags) {
        let Some(socket) = self.sockets.get_mut(&stream) else { return };
        match socket.awaits {
            Awaits::Connection => return self.take_connection(stream),
            Awaits::Made => {
                let made = rustix::net::sockopt::socket_error(&socket.fd).unwrap_or_else(Err);
                return self.connected(stream, made);
            }
            Awaits::Nothing => {}
        }
        if events.contains(PollFlags::OUT) {
            self.pass_on(stream);
        }
        if events.intersects(PollFlags::IN | PollFlags::HUP | PollFlags::ERR) {
            self.take(stream);
        }
    }

    /// Takes what a stream's socket has, as far as it may be sent.
    fn take(&mut self, stream: u32) {
        let Some(socket) = self.sockets.get(&stream) else { return };
        let mut buffer = vec![0; self.mux.room(stream)];
        if buffer.is_empty() {
            return;
        }
        match rustix::io::read(&socket.fd, &mut buffer) {
            Ok(0) => {
                self.mux.end(stream);
                self.close_if_over(stream);
            }
            Ok(count) => self.mux.send(stream, &buffer[..count]),
            Err(Errno::AGAIN | Errno::INTR) => {}
            Err(_) => self.cut(stream),
        }
    }

    /// Passes on to a stream's socket what it takes.
    fn pass_on(&mut self, stream: u32) {
        let Some(socket) = self.sockets.get_mut(&stream).filter(|socket| socket.awaits == Awaits::Nothing) else {
            return;
        };
        while !socket.pending.is_empty() {
            match rustix::net::send(&socket.fd, &socket.pending, SendFlags::NOSIGNAL | SendFlags::DONTWAIT) {
                Ok(count) => {
                    socket.pending.drain(..count);
                    self.mux.took(stream, count);
                }
                Err(Errno::AGAIN) => return,
                Err(Errno::INTR) => {}
                Err(_) => return self.cut(stream),
            }
        }
        if socket.peer_has_ended {
            // Who does not listen any more need not be told.
            let _ = rustix::net::shutdown(&socket.fd, Shutdown::Write);
            self.close_if_over(stream);
        }
    }

    fn close_if_over(&mut self, stream: u32) {
        if self.sockets.get(&stream).is_some_and(|socket| socket.pending.is_empty()) && self.mux.is_over(stream) {
            self.sockets.remove(&stream);
        }
    }

    fn cut(&mut self, stream: u32) {
        self.mux.reset(stream);
        self.sockets.remove(&stream);
    }

    /// What the agent says of a connection that it was asked for: see `sandpool_agent::port`.
    fn take_connection(&mut self, stream: u32) {
        let Some(socket) = self.sockets.get_mut(&stream) else { return };
        let mut said = [0; 8];
        match sandpool_sys::packet::receive(&socket.fd, &mut said) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Ok((1, mut fds)) if fds.len() == 1 => {
                if let Some(connection) = fds.pop() {
                    (socket.fd, socket.awaits) = (connection, Awaits::Made);
                }
            }
            Ok((4, _)) => {
                let [a, b, c, d, ..] = said;
                let errno = Errno::from_raw_os_error(i32::from_be_bytes([a, b, c, d]));
                self.connected(stream, Err(errno));
            }
            _ => self.cut(stream),
        }
    }

    /// Says what came of a connection: the byte 1, after which its own bytes follow, or the error's number in four bytes.
    fn connected(&mut self, stream: u32, made: Result<(), Errno>) {
        let Some(socket) = self.sockets.get_mut(&stream) else { return };
        let made = made.and_then(|()| rustix::io::ioctl_fionbio(&socket.fd, true));
        if self.mux.room(stream) < 4 {
            return self.cut(stream);
        }
        match made {
            Ok(()) => {
                socket.awaits = Awaits::Nothing;
                // It may be slower then.
                let _ = rustix::net::sockopt::set_tcp_nodelay(&socket.fd, true);
                self.mux.send(stream, &[1]);
                self.pass_on(stream);
            }
            Err(error) => {
                self.mux.send(stream, &error.raw_os_error().to_be_bytes());
                self.mux.end(stream);
                // What comes from the peer from now on is of no stream.
                self.sockets.remove(&stream);
                self.mux.is_over(stream);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;

    use rustix::event::Timespec;

    use super::*;
    use crate::mux::Resume;

    /// Lets both ends do what they can, until nothing is left to do for a moment.
    fn settle(ends: &mut [&mut Relay]) -> Vec<News> {
        let mut all = Vec::new();
        loop {
            let mut is_quiet = true;
            for relay in ends.iter_mut() {
                let (sources, mut fds): (Vec<_>, Vec<_>) = relay
                    .descriptors()
                    .map(|(source, fd, flags)| (source, PollFd::from_borrowed_fd(fd, flags)))
                    .unzip();
                poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })).unwrap();
                let events: Vec<PollFlags> = fds.iter().map(PollFd::revents).collect();
                for (source, events) in sources.into_iter().zip(events).filter(|(_, events)| !events.is_empty()) {
                    is_quiet = false;
                    let mut news = relay.ready(source, events).unwrap();
                    while let Some(one) = news {
                        all.push(one);
                        news = relay.go_on();
                    }
                }
            }
            if is_quiet {
                return all;
            }
        }
    }

    fn pair() -> (UnixStream, OwnedFd) {
        let (here, there) = UnixStream::pair().unwrap();
        here.set_nonblocking(true).unwrap();
        there.set_nonblocking(true).unwrap();
        (here, there.into())
    }

    /// Both ends, and what the agent has in the place of its control socket.
    fn ends() -> (Relay, Relay, OwnedFd) {
        let (keeper, machine) = pair();
        let (mut keeper, mut machine) = (Relay::new(Side::Keeper, keeper.into()), Relay::new(Side::Machine, machine));
        let (relays, agents) =
            rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap();
        machine.serve(relays);
        keeper.mux.resume(&Resume { seed: [1; 32], epoch_ns: 1, is_the_same: false, authority: String::new() });
        assert!(matches!(settle(&mut [&mut keeper, &mut machine]).as_slice(), [News::Resume(_)]));
        (keeper, machine, agents)
    }

    fn taken(agent: &OwnedFd, expected: &[u8]) -> UnixStream {
        let mut word = [0; 8];
        let (length, mut fds) = sandpool_sys::packet::receive(agent, &mut word).unwrap();
        assert_eq!(&word[..length], expected);
        UnixStream::from(fds.pop().unwrap())
    }

    #[test]
    fn bytes_and_ends_pass_through_in_both_directions() {
        let (mut keeper, mut machine, agent) = ends();
        let (mut server, through) = pair();
        keeper.open(through, b"D");
        server.write_all(b"question").unwrap();
        settle(&mut [&mut keeper, &mut machine]);
        let mut inside = taken(&agent, b"D");
        let mut buffer = [0; 16];
        assert_eq!(inside.read(&mut buffer).unwrap(), 8);
        inside.write_all(b"answer").unwrap();
        drop(inside);
        settle(&mut [&mut keeper, &mut machine]);
        let mut heard = Vec::new();
        server.read_to_end(&mut heard).unwrap();
        assert_eq!(heard, b"answer");
        drop(server);
        settle(&mut [&mut keeper, &mut machine]);
        assert!(keeper.sockets.is_empty() && machine.sockets.is_empty());
    }

    #[test]
    fn what_a_program_inside_connects_to_is_connected_to_outside_where_that_may_be() {
        let (mut keeper, mut machine, _agent) = ends();
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let door = Door(listener.local_addr().unwrap()).encode();
        let (mut program, through) = pair();
        machine.open(through, &door);
        settle(&mut [&mut keeper, &mut machine]);
        assert_eq!(program.read(&mut [0; 8]).unwrap(), 0, "nothing leads out");
        keeper.lead_out();
        let (mut program, through) = pair();
        machine.open(through, &door);
        program.write_all(b"question").unwrap();
        settle(&mut [&mut keeper, &mut machine]);
        let (mut served, _) = listener.accept().unwrap();
        let mut buffer = [0; 8];
        served.read_exact(&mut buffer).unwrap();
        assert_eq!(&buffer, b"question");
        served.write_all(b"answer").unwrap();
        drop(served);
        settle(&mut [&mut keeper, &mut machine]);
        let mut heard = Vec::new();
        program.read_to_end(&mut heard).unwrap();
        assert_eq!(heard, b"answer");
        // Nobody there any more.
        drop(listener);
        let (mut program, through) = pair();
        machine.open(through, &door);
        settle(&mut [&mut keeper, &mut machine]);
        assert_eq!(program.read(&mut buffer).unwrap_or(0), 0);
    }

    #[test]
    fn nobody_is_served_before_there_is_an_agent() {
        let (keeper, machine) = pair();
        let (mut keeper, mut machine) = (Relay::new(Side::Keeper, keeper.into()), Relay::new(Side::Machine, machine));
        let (mut server, through) = pair();
        keeper.open(through, b"D");
        settle(&mut [&mut keeper, &mut machine]);
        assert_eq!(server.read(&mut [0; 8]).unwrap(), 0);
    }

    #[test]
    fn more_than_anybody_keeps_passes_through() {
        let (mut keeper, mut machine, agent) = ends();
        let (mut server, through) = pair();
        keeper.open(through, b"D");
        settle(&mut [&mut keeper, &mut machine]);
        let mut inside = taken(&agent, b"D");
        let sent: Vec<u8> = (0..3_000_000_u32).map(|number| number.to_le_bytes()[0]).collect();
        let (mut count, mut came, mut piece) = (0, Vec::new(), vec![0; 65536]);
        while came.len() < sent.len() {
            if count < sent.len() {
                count += server.write(&sent[count..]).unwrap_or(0);
            }
            settle(&mut [&mut keeper, &mut machine]);
            if let Ok(length) = inside.read(&mut piece) {
                came.extend_from_slice(&piece[..length]);
            }
        }
        assert!(came == sent);
    }

    #[test]
    fn a_connection_is_made_on_the_inside() {
        let (mut keeper, mut machine, agent) = ends();
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        for listens in [true, false] {
            let (mut server, through) = pair();
            keeper.open(through, b"P\x1f\x90");
            // Before there is anybody for it.
            server.write_all(b"ho").unwrap();
            settle(&mut [&mut keeper, &mut machine]);
            let asked = taken(&agent, b"P\x1f\x90");
            if listens {
                let connection = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
                sandpool_sys::packet::send(&asked, &[0], &[connection.as_fd()]).unwrap();
                let (mut served, _) = listener.accept().unwrap();
                served.write_all(b"hi").unwrap();
                let mut buffer = [0; 16];
                settle(&mut [&mut keeper, &mut machine]);
                assert_eq!(server.read(&mut buffer).unwrap(), 3);
                assert_eq!(&buffer[..3], b"\x01hi");
                served.read_exact(&mut buffer[..2]).unwrap();
                assert_eq!(&buffer[..2], b"ho");
            } else {
                let number = Errno::CONNREFUSED.raw_os_error().to_be_bytes();
                sandpool_sys::packet::send(&asked, &number, &[]).unwrap();
                settle(&mut [&mut keeper, &mut machine]);
                let mut heard = Vec::new();
                server.read_to_end(&mut heard).unwrap();
                assert_eq!(heard, number);
            }
        }
    }
}
