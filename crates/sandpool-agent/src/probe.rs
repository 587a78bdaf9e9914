//! Asking a container's program how it is, again and again, over the sandbox's loopback.
//!
//! ```text
//! waits --its time comes--> connects --> asks --> hears a status, or nothing in time --> counts: so many in a row are a verdict --> waits
//! ```
//!
//! The program is hostile: what it says is read up to the end of one short line, and counted. Nothing here waits.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{SendFlags, sockopt};
use sandpool_wire::agent::{Check, Probe};

use crate::port;

/// Bytes in which an answer must have said its status.
const LINE: usize = 1024;

/// Bytes of the rest of an answer that are taken, so that whoever writes it is not cut off in the middle.
const REST: usize = 10 << 10;

/// The pauses between two looks whether somebody listens, while the program starts: the first, and the longest.
const LOOKS: (Duration, Duration) = (Duration::from_millis(2), Duration::from_millis(50));

/// One probe, and how far it is.
#[derive(Debug)]
pub struct Prober {
    probe: Probe,
    /// The program starts: it is looked at often until it listens, and that counts once a period.
    is_start: bool,
    next: Instant,
    pause: Duration,
    counts_at: Instant,
    attempt: Option<Attempt>,
    rest: Option<Rest>,
    failed: u16,
    passed: u16,
}

#[derive(Debug)]
struct Attempt {
    connection: OwnedFd,
    unsent: Vec<u8>,
    heard: Vec<u8>,
    until: Instant,
}

/// What still comes of an answer that has been judged.
#[derive(Debug)]
struct Rest {
    connection: OwnedFd,
    left: usize,
    until: Instant,
}

/// As many attempts in a row as it takes have come out alike.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// They succeeded.
    Passes,
    /// They failed: how the last one did.
    Fails(String),
}

impl Prober {
    /// Begins now, with the delay that the probe has.
    #[must_use]
    pub fn new(probe: &Probe, is_start: bool, now: Instant) -> Self {
        let next = now + seconds(probe.initial_delay_s);
        Self {
            probe: probe.clone(),
            is_start,
            next,
            pause: LOOKS.0,
            counts_at: next,
            attempt: None,
            rest: None,
            failed: 0,
            passed: 0,
        }
    }

    /// When [`Prober::go`] has something to do, whatever comes on its descriptors.
    #[must_use]
    pub fn wakes(&self) -> Instant {
        let attempt = self.attempt.as_ref().map_or(self.next, |attempt| attempt.until);
        self.rest.as_ref().map_or(attempt, |rest| rest.until.min(attempt))
    }

    /// What to wait for.
    pub fn descriptors(&self) -> impl Iterator<Item = (BorrowedFd<'_>, PollFlags)> {
        let attempt = self.attempt.iter().map(|attempt| {
            let writes = !attempt.unsent.is_empty() || matches!(self.probe.check, Check::Tcp { .. });
            (attempt.connection.as_fd(), if writes { PollFlags::OUT } else { PollFlags::IN })
        });
        attempt.chain(self.rest.iter().map(|rest| (rest.connection.as_fd(), PollFlags::IN)))
    }

    /// Does what is due, and what can be done without waiting.
    pub fn go(&mut self, now: Instant) -> Option<Verdict> {
        if self.rest.as_mut().is_some_and(|rest| rest.is_over(now)) {
            self.rest = None;
        }
        if self.attempt.is_none() {
            if now < self.next {
                return None;
            }
            let period = seconds(self.probe.period_s);
            let port = match self.probe.check {
                Check::Tcp { port } | Check::Http { port, .. } => port,
            };
            match port::open(port) {
                Ok(connection) => {
                    self.next = now + period;
                    self.rest = None;
                    self.attempt = Some(Attempt {
                        connection,
                        unsent: self.request(),
                        heard: Vec::new(),
                        until: now + seconds(self.probe.timeout_s),
                    });
                }
                Err(error) => {
                    let counts = !self.is_start || now >= self.counts_at;
                    self.next = now + if self.is_start { self.pause } else { period };
                    self.pause = (self.pause * 2).min(LOOKS.1);
                    if !counts {
                        return None;
                    }
                    self.counts_at = now + period;
                    let how = match error {
                        Errno::CONNREFUSED => "nothing listens".to_owned(),
                        error => error.to_string(),
                    };
                    return self.count(Err(how));
                }
            }
        }
        let outcome = self.heard(now)?;
        if let Some(Attempt { connection, until, .. }) = self.attempt.take()
            && matches!(self.probe.check, Check::Http { .. })
        {
            self.rest = Some(Rest { connection, left: REST, until });
        }
        self.counts_at = now + seconds(self.probe.period_s);
        self.count(outcome)
    }

    fn request(&self) -> Vec<u8> {
        let Check::Http { port, path, headers } = &self.probe.check else { return Vec::new() };
        let mut head = format!("GET {path} HTTP/1.1\r\n");
        let own = [("Host", format!("localhost:{port}")), ("User-Agent", "sandpool-probe".to_owned())];
        let own = own.iter().map(|(name, value)| (*name, value.as_str()));
        let said = headers.iter().map(|(name, value)| (name.as_str(), value.as_str()));
        let is_said = |name: &str| headers.iter().any(|(other, _)| other.eq_ignore_ascii_case(name));
        for (name, value) in own.filter(|(name, _)| !is_said(name)).chain(said) {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        head.push_str("Accept: */*\r\nConnection: close\r\n\r\n");
        head.into_bytes()
    }

    /// What came of the attempt, if that is known.
    fn heard(&mut self, now: Instant) -> Option<Result<(), String>> {
        let attempt = self.attempt.as_mut()?;
        let outcome = match self.probe.check {
            Check::Tcp { .. } => connected(&attempt.connection),
            Check::Http { .. } => attempt.status(),
        };
        let late = || now >= attempt.until;
        outcome.or_else(|| late().then(|| Err(format!("no answer in {} s", self.probe.timeout_s))))
    }

    fn count(&mut self, outcome: Result<(), String>) -> Option<Verdict> {
        match outcome {
            Ok(()) => {
                (self.passed, self.failed) = (self.passed.saturating_add(1), 0);
                (self.passed >= self.probe.successes).then_some(Verdict::Passes)
            }
            Err(how) => {
                (self.passed, self.failed) = (0, self.failed.saturating_add(1));
                let what = match &self.probe.check {
                    Check::Tcp { port } => format!("port {port}"),
                    Check::Http { port, path, .. } => format!("GET {path} at port {port}"),
                };
                (self.failed >= self.probe.failures).then(|| Verdict::Fails(format!("{what}: {how}")))
            }
        }
    }
}

impl Attempt {
    /// Asks, and reads the line with the status.
    fn status(&mut self) -> Option<Result<(), String>> {
        while !self.unsent.is_empty() {
            match rustix::net::send(&self.connection, &self.unsent, SendFlags::NOSIGNAL | SendFlags::DONTWAIT) {
                Ok(count) => drop(self.unsent.drain(..count)),
                Err(Errno::AGAIN | Errno::INTR) => return None,
                Err(error) => return Some(Err(error.to_string())),
            }
        }
        loop {
            if let Some(end) = self.heard.windows(2).position(|pair| pair == b"\r\n") {
                return Some(judged(&self.heard[..end]));
            }
            let mut piece = [0; LINE];
            let room = LINE - self.heard.len();
            if room == 0 {
                return Some(Err("what answers is not HTTP".to_owned()));
            }
            match rustix::io::read(&self.connection, &mut piece[..room]) {
                Ok(0) => return Some(Err("the connection was closed without an answer".to_owned())),
                Ok(count) => self.heard.extend_from_slice(&piece[..count]),
                Err(Errno::AGAIN | Errno::INTR) => return None,
                Err(error) => return Some(Err(error.to_string())),
            }
        }
    }
}

impl Rest {
    /// Takes what is there; whether there is no more of interest.
    fn is_over(&mut self, now: Instant) -> bool {
        let mut piece = [0; 4096];
        loop {
            match rustix::io::read(&self.connection, &mut piece) {
                Ok(0) => return true,
                Ok(count) if count >= self.left => return true,
                Ok(count) => self.left -= count,
                Err(Errno::AGAIN | Errno::INTR) => return now >= self.until,
                Err(_) => return true,
            }
        }
    }
}

/// What a status line means to a probe.
fn judged(line: &[u8]) -> Result<(), String> {
    let status = line.strip_prefix(b"HTTP/1.").and_then(|rest| rest.get(2..5)).and_then(|digits| {
        let digits = std::str::from_utf8(digits).ok()?;
        digits.bytes().all(|byte| byte.is_ascii_digit()).then(|| digits.parse::<u16>().ok())?
    });
    match status {
        Some(200..400) => Ok(()),
        Some(status) => Err(format!("it answers {status}")),
        None => Err("what answers is not HTTP".to_owned()),
    }
}

/// Whether a connection is made.
fn connected(connection: &OwnedFd) -> Option<Result<(), String>> {
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    match poll(&mut [PollFd::new(connection, PollFlags::OUT)], Some(&now)) {
        Ok(0) | Err(Errno::INTR) => None,
        Ok(_) => Some(match sockopt::socket_error(connection) {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) | Err(error) => Err(error.to_string()),
        }),
        Err(error) => Some(Err(error.to_string())),
    }
}

fn seconds(count: u16) -> Duration {
    Duration::from_secs(count.into())
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::TcpListener;

    use super::*;

    fn probe(check: Check, failures: u16, successes: u16) -> Probe {
        Probe { check, initial_delay_s: 0, period_s: 1, timeout_s: 1, failures, successes }
    }

    fn http(port: u16) -> Check {
        Check::Http { port, path: "/up?x=1".to_owned(), headers: vec![("host".to_owned(), "me".to_owned())] }
    }

    /// Goes on until there is a verdict; time passes only when a connection is idle.
    fn until_verdict(prober: &mut Prober, mut now: Instant) -> (Verdict, Instant) {
        loop {
            if let Some(verdict) = prober.go(now) {
                return (verdict, now);
            }
            let mut fds: Vec<_> = prober.descriptors().map(|(fd, flags)| PollFd::from_borrowed_fd(fd, flags)).collect();
            let limit = Timespec { tv_sec: 0, tv_nsec: 20_000_000 };
            if fds.is_empty() || poll(&mut fds, Some(&limit)).unwrap() == 0 {
                now = prober.wakes();
            }
        }
    }

    #[test]
    fn a_status_is_asked_for_and_judged() {
        for (answer, verdict) in [
            ("HTTP/1.1 204 Fine\r\n\r\n", Verdict::Passes),
            ("HTTP/1.0 302\r\nLocation: /\r\n\r\n", Verdict::Passes),
            ("HTTP/1.1 503 Not now\r\n\r\n", Verdict::Fails("it answers 503".to_owned())),
            ("SSH-2.0-x\r\n", Verdict::Fails("what answers is not HTTP".to_owned())),
            ("HTTP/1.1 +20 x\r\n", Verdict::Fails("what answers is not HTTP".to_owned())),
            ("", Verdict::Fails("the connection was closed without an answer".to_owned())),
        ] {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let port = listener.local_addr().unwrap().port();
            let mut prober = Prober::new(&probe(http(port), 1, 1), false, Instant::now());
            let serving = std::thread::spawn(move || {
                let (mut connection, _) = listener.accept().unwrap();
                let mut asked = [0; 4096];
                let count = connection.read(&mut asked).unwrap();
                connection.write_all(answer.as_bytes()).unwrap();
                String::from_utf8_lossy(&asked[..count]).into_owned()
            });
            let (said, _) = until_verdict(&mut prober, Instant::now());
            match (said, verdict) {
                (Verdict::Fails(why), Verdict::Fails(how)) => {
                    assert_eq!(why, format!("GET /up?x=1 at port {port}: {how}"));
                }
                (said, verdict) => assert_eq!(said, verdict, "{answer}"),
            }
            let asked = serving.join().unwrap();
            assert!(asked.starts_with("GET /up?x=1 HTTP/1.1\r\nUser-Agent: sandpool-probe\r\nhost: me\r\n"), "{asked}");
        }
    }

    #[test]
    fn an_answer_without_end_is_bounded_and_one_that_never_comes_is_given_up() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let mut prober = Prober::new(&probe(http(port), 1, 1), false, Instant::now());
        assert_eq!(prober.go(Instant::now()), None);
        let (mut connection, _) = listener.accept().unwrap();
        connection.write_all(&[b'x'; 4 * LINE]).unwrap();
        let (said, _) = until_verdict(&mut prober, Instant::now());
        assert_eq!(said, Verdict::Fails(format!("GET /up?x=1 at port {port}: what answers is not HTTP")));
        // Nobody takes this one.
        let (said, at) = until_verdict(&mut prober, Instant::now() + Duration::from_secs(2));
        assert_eq!(said, Verdict::Fails(format!("GET /up?x=1 at port {port}: no answer in 1 s")));
        assert!(at > Instant::now());
    }

    #[test]
    fn it_takes_so_many_in_a_row() {
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let mut prober = Prober::new(&probe(Check::Tcp { port }, 3, 2), false, Instant::now());
        let now = Instant::now();
        assert_eq!(prober.go(now), None);
        assert_eq!(prober.go(now), None, "not before its time");
        let second = Duration::from_secs(1);
        assert_eq!(prober.go(now + second), None);
        let failed = Some(Verdict::Fails(format!("port {port}: nothing listens")));
        assert_eq!(prober.go(now + 2 * second), failed);
        let _listener = TcpListener::bind(("127.0.0.1", port)).unwrap();
        assert_eq!(prober.go(now + 3 * second), None, "one is not two");
        assert_eq!(prober.go(now + 4 * second), Some(Verdict::Passes));
    }

    #[test]
    fn a_start_is_seen_soon_and_counted_once_a_period() {
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let now = Instant::now();
        let start = Probe { period_s: 10, ..probe(Check::Tcp { port }, 2, 1) };
        let mut prober = Prober::new(&start, true, now);
        let (said, at) = until_verdict(&mut prober, now);
        assert!(matches!(said, Verdict::Fails(_)), "{said:?}");
        assert!((Duration::from_secs(10)..Duration::from_secs(11)).contains(&(at - now)), "{:?}", at - now);
        let mut prober = Prober::new(&start, true, now);
        assert_eq!(prober.go(now), None);
        let _listener = TcpListener::bind(("127.0.0.1", port)).unwrap();
        let (said, at) = until_verdict(&mut prober, now);
        assert_eq!(said, Verdict::Passes);
        assert!(at - now < Duration::from_secs(1), "{:?}", at - now);
    }
}
