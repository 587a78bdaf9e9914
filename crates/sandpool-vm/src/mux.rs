//! Many streams over the one port of a machine: frames, and what may be said when. No I/O.
//!
//! ```text
//! u32 stream | u8 kind | u8 0 | u16 length    payload of `length` bytes, at most MAX_PIECE          (little endian)
//!
//! keeper --Prepare, Hush, Resume-->  machine       both: Open, Data, End, Reset, Credit       machine --Up, Serves, Broken--> keeper
//! ```
//!
//! Between `Hush` and `Resume` nothing is said of streams: an end that stands still there is told from one that goes on from it by
//! nothing that is under way. Another machine that goes on has none of the streams; the same one has all.
//!
//! Of each stream an end may send [`WINDOW`] bytes that its peer has not passed on yet, and no more: so one that nobody reads
//! holds up no other, and what is kept for all of them has a bound. A peer that breaks a rule is not spoken to any more.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use crate::identity::{Identity, MAX_IDENTITY};

/// Bytes of a header.
pub const HEADER: usize = 8;

/// The longest payload, in bytes.
pub const MAX_PIECE: usize = 32 * 1024;

/// Bytes of one stream that may be under way in one direction.
pub const WINDOW: u32 = 128 * 1024;

/// Streams of each end's making at one time: what an agent takes, and more than an egress proxy does.
pub const STREAMS: usize = 256;

/// Numbers from here on are of the machine's streams, those below of the keeper's.
const OF_MACHINE: u32 = 1 << 31;

/// The longest sentence in [`Heard::Broken`], in bytes.
pub const MAX_WORDS: usize = 2048;

/// Bytes that wait for the port, above which nothing more is taken from streams.
const ENOUGH: usize = 256 * 1024;

const OPEN: u8 = 0;
const DATA: u8 = 1;
const END: u8 = 2;
const RESET: u8 = 3;
const CREDIT: u8 = 4;
const RESUME: u8 = 5;
const UP: u8 = 6;
const BROKEN: u8 = 7;
const SERVES: u8 = 8;
const PREPARE: u8 = 9;
const HUSH: u8 = 10;

/// Which end of the port this is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// Outside, around the machine.
    Keeper,
    /// Inside it.
    Machine,
}

/// What makes a machine one of its own, before it does anything for anybody.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resume {
    /// For the kernel's generator, and what else is drawn from it: nobody else's.
    pub seed: [u8; 32],
    /// The time, in nanoseconds since 1970.
    pub epoch_ns: u64,
    /// It is the same machine that stood still for a while, and not another that goes on from where one stood.
    pub is_the_same: bool,
    /// The certificate (PEM) that its sandbox trusts besides its image's, if there is one; else nothing.
    pub authority: String,
}

impl Resume {
    fn encode(&self) -> Vec<u8> {
        let kind = [u8::from(self.is_the_same)];
        [self.seed.as_slice(), &self.epoch_ns.to_le_bytes(), &kind, self.authority.as_bytes()].concat()
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let (seed, rest) = bytes.split_first_chunk::<32>()?;
        let (time, rest) = rest.split_first_chunk::<8>()?;
        let (kind @ (0 | 1), authority) = rest.split_first()? else { return None };
        let authority = String::from_utf8(authority.to_vec()).ok()?;
        Some(Self { seed: *seed, epoch_ns: u64::from_le_bytes(*time), is_the_same: *kind == 1, authority })
    }
}

/// Where a program inside has connected to: the keeper does so in its own network, in which every address is its own too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Door(pub SocketAddr);

impl Door {
    const LENGTH: usize = 19;

    /// `C`, the port, and the address as one of version 6.
    #[must_use]
    pub fn encode(self) -> [u8; Self::LENGTH] {
        let address = match self.0.ip() {
            IpAddr::V4(address) => address.to_ipv6_mapped(),
            IpAddr::V6(address) => address,
        };
        let mut bytes = [b'C'; Self::LENGTH];
        bytes[1..3].copy_from_slice(&self.0.port().to_be_bytes());
        bytes[3..].copy_from_slice(&address.octets());
        bytes
    }

    /// The reverse of [`Door::encode`].
    #[must_use]
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let (b'C', rest) = bytes.split_first()? else { return None };
        let (port, address) = rest.split_first_chunk::<2>()?;
        let address = Ipv6Addr::from_octets(address.try_into().ok()?).to_canonical();
        Some(Self(SocketAddr::new(address, u16::from_be_bytes(*port))))
    }
}

/// What the peer said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Heard {
    /// A new stream, for what this word says: see `Config::control` of the agent.
    Open {
        /// Its number.
        stream: u32,
        /// To the machine: `D`, or `P` and a port. To the keeper: [`Door::encode`].
        word: Vec<u8>,
    },
    /// Bytes of a stream.
    Data {
        /// Its number.
        stream: u32,
        /// At least one.
        bytes: Vec<u8>,
    },
    /// Nothing more comes on this stream.
    End(u32),
    /// This stream is over, in both directions.
    Reset(u32),
    /// There may be room again on this stream.
    Credit(u32),
    /// The machine is to be a template: to do what does not depend on whose it is, and then to wait.
    Prepare,
    /// The machine is to stand still, and to wait.
    Hush,
    /// The machine is to be one of its own from now on.
    Resume(Resume),
    /// The machine waits for that, and says whose kernel it runs.
    Up(Box<Identity>),
    /// Its agent takes streams.
    Serves,
    /// The machine is of no use: says why.
    Broken(String),
}

/// The peer broke a rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the other end of the port does not keep to the protocol: {0}")]
pub struct Breach(&'static str);

/// One stream's account.
#[derive(Clone, Copy, Debug)]
struct Account {
    /// Bytes that may still be sent.
    may_send: u32,
    /// Bytes that may still come.
    may_come: u32,
    /// Bytes that were passed on, and are not yet told.
    taken: u32,
    has_ended: bool,
    peer_has_ended: bool,
}

/// One end of the port.
#[derive(Debug)]
pub struct Mux {
    side: Side,
    input: Vec<u8>,
    output: Vec<u8>,
    streams: BTreeMap<u32, Account>,
    /// The last streams that were opened, by this end and by the other.
    last: u32,
    peers_last: u32,
    /// What is to be said of streams once something may be.
    held: Vec<u8>,
    is_hushed: bool,
}

/// Before the first stream of this end, and of the other.
fn first_numbers(side: Side) -> (u32, u32) {
    match side {
        Side::Keeper => (0, OF_MACHINE),
        Side::Machine => (OF_MACHINE, 0),
    }
}

impl Mux {
    /// Nothing is open yet.
    #[must_use]
    pub fn new(side: Side) -> Self {
        let (last, peers_last) = first_numbers(side);
        let (input, output, held) = (Vec::new(), Vec::new(), Vec::new());
        Self { side, input, output, streams: BTreeMap::new(), last, peers_last, held, is_hushed: false }
    }

    /// What is to be written to the port.
    #[must_use]
    pub fn output(&self) -> &[u8] {
        &self.output
    }

    /// So many bytes of it were written.
    pub fn written(&mut self, count: usize) {
        self.output.drain(..count);
    }

    /// Whether what waits for the port is little enough to add to it.
    fn has_room(&self) -> bool {
        self.output.len() + self.held.len() < ENOUGH
    }

    /// How many bytes of a stream can be taken now.
    #[must_use]
    pub fn room(&self, stream: u32) -> usize {
        let Some(account) = self.streams.get(&stream).filter(|account| !account.has_ended) else { return 0 };
        if self.has_room() { MAX_PIECE.min(usize::try_from(account.may_send).unwrap_or(MAX_PIECE)) } else { 0 }
    }

    /// Whether neither end has anything more to say on this stream. Then it is forgotten.
    pub fn is_over(&mut self, stream: u32) -> bool {
        let is_over = self.streams.get(&stream).is_none_or(|account| account.has_ended && account.peer_has_ended);
        if is_over {
            self.streams.remove(&stream);
        }
        is_over
    }

    /// How many streams an end has opened that are not over.
    fn count(&self, side: Side) -> usize {
        match side {
            Side::Keeper => self.streams.range(..OF_MACHINE).count(),
            Side::Machine => self.streams.range(OF_MACHINE..).count(),
        }
    }

    /// Which end this is.
    #[must_use]
    pub fn side(&self) -> Side {
        self.side
    }

    /// Opens a stream; `None` when there are [`STREAMS`] of this end's.
    pub fn open(&mut self, word: &[u8]) -> Option<u32> {
        if self.count(self.side) >= STREAMS {
            return None;
        }
        self.last = self.last.checked_add(1).filter(|last| (*last >= OF_MACHINE) == (self.side == Side::Machine))?;
        self.begin(self.last);
        self.say(self.last, OPEN, word);
        Some(self.last)
    }

    fn begin(&mut self, stream: u32) {
        let account = Account { may_send: WINDOW, may_come: WINDOW, taken: 0, has_ended: false, peer_has_ended: false };
        self.streams.insert(stream, account);
    }

    /// Sends bytes of a stream, at most [`Mux::room`] of them.
    pub fn send(&mut self, stream: u32, bytes: &[u8]) {
        assert!(bytes.len() <= self.room(stream), "{} bytes on stream {stream}", bytes.len());
        if let (Some(account), Ok(count)) = (self.streams.get_mut(&stream), u32::try_from(bytes.len())) {
            account.may_send -= count;
            self.say(stream, DATA, bytes);
        }
    }

    /// Says that nothing more comes on a stream.
    pub fn end(&mut self, stream: u32) {
        if let Some(account) = self.streams.get_mut(&stream).filter(|account| !account.has_ended) {
            account.has_ended = true;
            self.say(stream, END, &[]);
        }
    }

    /// Ends a stream in both directions.
    pub fn reset(&mut self, stream: u32) {
        if self.streams.remove(&stream).is_some() {
            self.say(stream, RESET, &[]);
        }
    }

    /// So many bytes of a stream were passed on.
    pub fn took(&mut self, stream: u32, count: usize) {
        let Some(account) = self.streams.get_mut(&stream) else { return };
        account.taken += u32::try_from(count).unwrap_or(u32::MAX);
        // Told in large pieces: each costs a wake-up.
        if account.taken >= WINDOW / 4 {
            let taken = std::mem::take(&mut account.taken);
            account.may_come += taken;
            self.say(stream, CREDIT, &taken.to_le_bytes());
        }
    }

    /// Makes the machine a template.
    pub fn prepare(&mut self) {
        self.say(0, PREPARE, &[]);
    }

    /// Has the machine stand still.
    pub fn hush(&mut self) {
        self.say(0, HUSH, &[]);
        self.is_hushed = true;
    }

    /// Makes the machine one of its own.
    pub fn resume(&mut self, resume: &Resume) {
        self.say(0, RESUME, &resume.encode());
        self.go_on();
    }

    /// Says that this machine waits for [`Mux::resume`], and whose kernel it runs.
    pub fn up(&mut self, identity: &Identity) {
        let words = serde_json::to_vec(identity).unwrap_or_default();
        self.say(0, UP, &words);
    }

    /// Says that the agent takes streams.
    pub fn serves(&mut self) {
        self.say(0, SERVES, &[]);
    }

    /// Says that this machine is of no use.
    pub fn broken(&mut self, why: &str) {
        self.say(0, BROKEN, &why.as_bytes()[..why.floor_char_boundary(MAX_WORDS)]);
    }

    fn say(&mut self, stream: u32, kind: u8, payload: &[u8]) {
        let Ok(length) = u16::try_from(payload.len()) else { return };
        let output = if self.is_hushed && stream != 0 { &mut self.held } else { &mut self.output };
        output.extend_from_slice(&stream.to_le_bytes());
        output.extend_from_slice(&[kind, 0]);
        output.extend_from_slice(&length.to_le_bytes());
        output.extend_from_slice(payload);
    }

    /// Takes bytes from the port, and tells what they say.
    ///
    /// # Errors
    /// A breach of the protocol: nothing of what was said after it counts.
    pub fn hear(&mut self, bytes: &[u8]) -> Result<Vec<Heard>, Breach> {
        self.input.extend_from_slice(bytes);
        let mut heard = Vec::new();
        let mut used = 0;
        while let Some(header) = self.input[used..].first_chunk::<HEADER>() {
            let [a, b, c, d, kind, zero, low, high] = *header;
            let length = usize::from(u16::from_le_bytes([low, high]));
            if length > MAX_PIECE || zero != 0 {
                return Err(Breach("a header makes no sense"));
            }
            let Some(payload) = self.input.get(used + HEADER..used + HEADER + length) else { break };
            let payload = payload.to_vec();
            used += HEADER + length;
            heard.extend(self.judge(u32::from_le_bytes([a, b, c, d]), kind, payload)?);
        }
        self.input.drain(..used);
        Ok(heard)
    }

    fn judge(&mut self, stream: u32, kind: u8, payload: Vec<u8>) -> Result<Option<Heard>, Breach> {
        let of_all = matches!(kind, RESUME | UP | SERVES | BROKEN | PREPARE | HUSH);
        if of_all != (stream == 0) {
            return Err(Breach("a number that is no stream's"));
        }
        match (self.side, kind) {
            (side, OPEN) => {
                let (is_known, peer) = match side {
                    Side::Machine => (matches!(payload.as_slice(), [b'D'] | [b'P', _, _]), Side::Keeper),
                    Side::Keeper => (Door::decode(&payload).is_some(), Side::Machine),
                };
                let is_peers = (stream >= OF_MACHINE) == (peer == Side::Machine);
                if !is_known || !is_peers || stream <= self.peers_last {
                    return Err(Breach("a stream that cannot be"));
                }
                self.peers_last = stream;
                self.begin(stream);
                if self.count(peer) > STREAMS {
                    self.reset(stream);
                    return Ok(None);
                }
                Ok(Some(Heard::Open { stream, word: payload }))
            }
            (Side::Machine, RESUME) => {
                let resume = Resume::decode(&payload).ok_or(Breach("half a resume"))?;
                if resume.is_the_same {
                    self.go_on();
                } else {
                    self.begin_anew();
                }
                Ok(Some(Heard::Resume(resume)))
            }
            (Side::Machine, PREPARE) if payload.is_empty() => Ok(Some(Heard::Prepare)),
            (Side::Machine, HUSH) if payload.is_empty() => {
                self.is_hushed = true;
                Ok(Some(Heard::Hush))
            }
            (Side::Keeper, UP) if payload.len() <= MAX_IDENTITY => {
                let identity = serde_json::from_slice(&payload).map_err(|_| Breach("an identity that is none"))?;
                Ok(Some(Heard::Up(identity)))
            }
            (Side::Keeper, SERVES) if payload.is_empty() => Ok(Some(Heard::Serves)),
            (Side::Keeper, BROKEN) if payload.len() <= MAX_WORDS => {
                Ok(Some(Heard::Broken(String::from_utf8_lossy(&payload).into_owned())))
            }
            (_, DATA | END | RESET | CREDIT) => self.judge_stream(stream, kind, payload),
            _ => Err(Breach("a word that this end does not say")),
        }
    }

    /// Says what was held back.
    fn go_on(&mut self) {
        self.is_hushed = false;
        self.output.append(&mut self.held);
    }

    /// No stream is left, and what was under way of them is nobody's.
    fn begin_anew(&mut self) {
        self.streams.clear();
        self.held.clear();
        (self.last, self.peers_last) = first_numbers(self.side);
        self.is_hushed = false;
    }

    fn judge_stream(&mut self, stream: u32, kind: u8, bytes: Vec<u8>) -> Result<Option<Heard>, Breach> {
        // One that has been reset here, of which the peer has yet to hear.
        let Some(account) = self.streams.get_mut(&stream) else { return Ok(None) };
        match kind {
            DATA => {
                let count = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
                if account.peer_has_ended || bytes.is_empty() || count > account.may_come {
                    return Err(Breach("more bytes than there is room for"));
                }
                account.may_come -= count;
                Ok(Some(Heard::Data { stream, bytes }))
            }
            CREDIT => {
                let count = bytes.try_into().map(u32::from_le_bytes).map_err(|_| Breach("half a number"))?;
                account.may_send = account
                    .may_send
                    .checked_add(count)
                    .filter(|sum| *sum <= WINDOW)
                    .ok_or(Breach("more room than there ever was"))?;
                Ok(Some(Heard::Credit(stream)))
            }
            _ if !bytes.is_empty() => Err(Breach("an end with bytes in it")),
            END if account.peer_has_ended => Err(Breach("an end after the end")),
            END => {
                account.peer_has_ended = true;
                Ok(Some(Heard::End(stream)))
            }
            _ => {
                self.streams.remove(&stream);
                Ok(Some(Heard::Reset(stream)))
            }
        }
    }
}

#[cfg(test)]
mod tests;
