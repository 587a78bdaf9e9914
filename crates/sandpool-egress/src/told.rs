//! What is told to the server: the same decisions as are written down, as packets on a socket that nobody waits for.
//!
//! The launcher holds both ends of it, so it outlives either side. While no server takes anything, its buffer (of the kernel) fills; what
//! has no room then is counted, and the next packet that has says how many were missed.

use std::os::fd::OwnedFd;

use sandpool_core::ids::SandboxId;
use sandpool_sys::packet;
use sandpool_wire::egress::{Decided, MAX_DESTINATION, MAX_REASON, MAX_TOLD, Told};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::audit::Record;

/// Bytes of a packet that are left for its beginning: two numbers.
const BEGINNING: usize = 32;

/// Bytes of a decision besides its texts, at most: a sandbox's id, and numbers of ten bytes at most.
const NUMBERS: usize = 96;

/// Our end of the socket.
#[derive(Debug)]
pub(crate) struct Teller {
    socket: OwnedFd,
    told: Told,
    /// What the decisions that wait for the packet take in it.
    bytes: usize,
}

impl Teller {
    pub(crate) fn new(socket: OwnedFd) -> Self {
        Self { socket, told: Told::default(), bytes: BEGINNING }
    }

    /// There is something that it does not know.
    pub(crate) fn is_behind(&self) -> bool {
        self.told.missed > 0
    }

    /// So many records were not even written down.
    pub(crate) fn missed(&mut self, count: u64) {
        self.told.missed = self.told.missed.saturating_add(count);
    }

    /// Puts a decision into the next packet; one that is full goes out.
    pub(crate) fn tell(&mut self, record: &Record) {
        let Some(decided) = decided(record) else { return self.missed(1) };
        let text = |text: &Option<String>| text.as_ref().map_or(0, String::len);
        let size = NUMBERS + decided.pool.len() + text(&decided.destination) + text(&decided.reason);
        if self.bytes + size > MAX_TOLD {
            self.send();
        }
        self.bytes += size;
        self.told.decided.push(decided);
    }

    /// Sends what waits; where there is no room, it is counted instead.
    pub(crate) fn send(&mut self) {
        if self.told == Told::default() {
            return;
        }
        let sent = postcard::to_stdvec(&self.told).is_ok_and(|bytes| packet::send(&self.socket, &bytes, &[]).is_ok());
        let more = if sent { 0 } else { u64::try_from(self.told.decided.len()).unwrap_or(u64::MAX) };
        self.told.decided.clear();
        self.bytes = BEGINNING;
        self.told.missed = if sent { 0 } else { self.told.missed.saturating_add(more) };
    }
}

/// A record, as the server gets it.
fn decided(record: &Record) -> Option<Decided> {
    let at = OffsetDateTime::parse(&record.time, &Rfc3339).ok()?;
    Some(Decided {
        sandbox: SandboxId::parse(&record.sandbox)?.0,
        pool: record.pool.to_string(),
        at_ms: u64::try_from(at.unix_timestamp_nanos() / 1_000_000).ok()?,
        via: record.via,
        destination: record.destination.clone().filter(|destination| destination.len() <= MAX_DESTINATION),
        port: record.port,
        decision: record.decision,
        reason: record.reason.as_deref().map(plain),
        sent: record.sent,
        received: record.received,
    })
}

/// A reason without what terminals would take for more than text, and not longer than it may be.
fn plain(reason: &str) -> String {
    let mut plain: String = reason.chars().map(|one| if one.is_control() { ' ' } else { one }).collect();
    while plain.len() > MAX_REASON {
        plain.pop();
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::audit::{Decision, Via, now};

    fn pair() -> (OwnedFd, OwnedFd) {
        use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).unwrap()
    }

    fn record(port: u16) -> Record {
        Record {
            time: now(),
            sandbox: SandboxId([7; 16]).to_string().into(),
            pool: "p".into(),
            via: Via::Tls,
            destination: Some("a.example".to_owned()),
            port: Some(port),
            address: None,
            decision: Decision::Refused,
            reason: Some(format!("no\n{}", "x".repeat(300))),
            secret: None,
            sent: 1,
            received: 2,
            milliseconds: 3,
        }
    }

    fn heard(socket: &OwnedFd) -> Option<Told> {
        let mut buffer = [0; MAX_TOLD];
        let (length, _) = packet::receive(socket, &mut buffer).ok()?;
        Some(Told::decode(&buffer[..length]).unwrap())
    }

    #[test]
    fn decisions_are_told_in_packets_and_what_has_no_room_is_counted() {
        let (here, there) = pair();
        let mut teller = Teller::new(here);
        teller.send();
        assert_eq!(heard(&there), None, "there is nothing to tell");
        teller.tell(&record(1));
        teller.send();
        let told = heard(&there).unwrap();
        let [one] = &told.decided[..] else { panic!("{told:?}") };
        assert_eq!((told.missed, one.sandbox, one.port, one.decision), (0, [7; 16], Some(1), Decision::Refused));
        assert_eq!(one.reason.as_ref().map(String::len), Some(MAX_REASON));
        // Nobody takes anything: the socket fills, and the rest is counted.
        let many = 20_000;
        for _ in 0..many {
            teller.tell(&record(2));
        }
        teller.send();
        assert!(teller.is_behind());
        let mut seen = 0;
        while let Some(told) = heard(&there) {
            assert_eq!(told.missed, 0);
            seen += told.decided.len();
        }
        assert!(seen > 100 && seen < many, "{seen}");
        teller.send();
        let told = heard(&there).unwrap();
        assert_eq!((told.decided.len(), usize::try_from(told.missed).unwrap() + seen), (0, many));
        assert!(!teller.is_behind());
    }

    #[test]
    fn what_no_proxy_says_is_refused() {
        let one = decided(&record(1)).unwrap();
        let is_good = |change: &dyn Fn(&mut Decided)| {
            let mut one = one.clone();
            change(&mut one);
            Told::decode(&postcard::to_stdvec(&Told { missed: 0, decided: vec![one] }).unwrap()).is_ok()
        };
        assert!(is_good(&|_| ()));
        assert!(!is_good(&|one| one.destination = Some("a\u{1b}[2J".to_owned())));
        assert!(!is_good(&|one| one.destination = Some("a".repeat(254))));
        assert!(!is_good(&|one| one.reason = Some("a\nb".to_owned())));
        assert!(!is_good(&|one| one.pool = "a b".to_owned()));
        assert!(Told::decode(&[0xff; 40]).is_err());
        assert!(Told::decode(&vec![0; MAX_TOLD + 1]).is_err());
    }
}
