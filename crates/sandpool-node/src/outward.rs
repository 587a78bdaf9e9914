//! What sessions reached, and what they were refused: kept for whoever looks, counted, and written into the journal.
//!
//! ```text
//! driver's egress proxy -> decided -> the session's last decisions       (who looks)
//!                                 |-> its pool's counts                  (/metrics)
//!                                 `-> at once, or added to what follows  (the journal)
//! ```
//!
//! A program can try to reach something as often as it likes, and each try is a decision; the journal has room for a million records. So
//! the first try of a destination is written at once, and what follows in the same minute is written as one record with its count. Who
//! tries ever new destinations gets one record for many of them, when it has used up what one session may write, or all may.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet, VecDeque};
use std::fmt::Write as _;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use futures::StreamExt;
use futures::stream::BoxStream;
use sandpool_core::ids::SandboxId;
use sandpool_store::{Deed, Place, Store};
use sandpool_wire::egress::{Decided, Decision, Via};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tokio::sync::watch;
use tokio::time::Instant;

/// Decisions of one session that are kept.
const KEPT: usize = 256;

/// In which repeated tries are one record.
pub(crate) const WINDOW: Duration = Duration::from_secs(60);

/// Destinations of one session that are told apart in a window.
const DESTINATIONS: usize = 128;

/// What one session may write: at once, and in a minute.
const OF_ONE: (u32, u32) = (128, 12);

/// What all sessions may write: at once, and in a minute, which is 86,400 a day.
const OF_ALL: (u32, u32) = (8_192, 60);

/// For how long decisions about a session that has ended are still awaited.
const AFTER: Duration = Duration::from_secs(30);

/// Records for the journal that may be written now.
#[derive(Debug)]
struct Room {
    left: f64,
    most: f64,
    per_second: f64,
    at: Instant,
}

impl Room {
    fn new((most, per_minute): (u32, u32), now: Instant) -> Self {
        Self { left: most.into(), most: most.into(), per_second: f64::from(per_minute) / 60.0, at: now }
    }

    fn look(&mut self, now: Instant) -> bool {
        let since = now.saturating_duration_since(self.at).as_secs_f64();
        (self.left, self.at) = ((self.left + since * self.per_second).min(self.most), now);
        self.left >= 1.0
    }
}

/// A decision, as it is kept.
#[derive(Clone, Debug)]
pub struct Reached {
    /// Counts up, by how old the session was in milliseconds: so it goes on when the server was started anew.
    pub sequence: u64,
    /// What was decided.
    pub decided: Decided,
}

/// What tells one try from another.
type Destination = (Decision, Option<String>, Option<u16>);

/// Tries that are one record.
#[derive(Clone, Debug, Default)]
struct Tally {
    count: u64,
    first_ms: u64,
    last_ms: u64,
    sent: u64,
    received: u64,
}

impl Tally {
    fn add(&mut self, decided: &Decided) {
        if self.count == 0 {
            self.first_ms = decided.at_ms;
        }
        self.count += 1;
        self.last_ms = decided.at_ms;
        self.sent = self.sent.saturating_add(decided.sent);
        self.received = self.received.saturating_add(decided.received);
    }

    fn merge(&mut self, other: &Self) {
        self.first_ms = if self.count == 0 { other.first_ms } else { self.first_ms.min(other.first_ms) };
        self.last_ms = self.last_ms.max(other.last_ms);
        self.count += other.count;
        self.sent = self.sent.saturating_add(other.sent);
        self.received = self.received.saturating_add(other.received);
    }

    fn text(&self, destination: &str) -> String {
        let Self { count, first_ms, last_ms, sent, received } = self;
        let [first, last] = [first_ms, last_ms].map(|at| instant(*at));
        format!("{destination} count:{count} first:{first} last:{last} sent:{sent} received:{received}")
    }
}

/// A session, as far as it reaches out.
#[derive(Debug)]
struct Session {
    place: Option<Arc<Place>>,
    kept: VecDeque<Reached>,
    /// Changes with each; what it says is whether there will be more.
    more: watch::Sender<bool>,
    room: Room,
    /// When the first of a window was told.
    window: Option<Instant>,
    destinations: HashMap<Destination, Tally>,
    /// What is told apart no more.
    others: [Tally; DECISIONS.len()],
    /// When it was over.
    over: Option<Instant>,
}

const DECISIONS: [Decision; 3] = [Decision::Allowed, Decision::Refused, Decision::Failed];

/// A record for the journal.
type Line = (Decision, String);

impl Session {
    fn new(now: Instant) -> Self {
        Self {
            place: None,
            kept: VecDeque::new(),
            more: watch::channel(true).0,
            room: Room::new(OF_ONE, now),
            window: None,
            destinations: HashMap::new(),
            others: Default::default(),
            over: None,
        }
    }

    fn keep(&mut self, decided: Decided) {
        if self.kept.len() >= KEPT {
            self.kept.pop_front();
        }
        let since = UNIX_EPOCH + Duration::from_millis(decided.at_ms);
        let created = self.place.as_ref().map_or(UNIX_EPOCH, |place| place.created);
        let age = since.duration_since(created).map_or(0, |age| age.as_millis());
        let next = self.kept.back().map_or(1, |last| last.sequence + 1);
        let sequence = u64::try_from(age).unwrap_or(u64::MAX - 1).max(next);
        self.kept.push_back(Reached { sequence, decided });
        self.more.send_replace(true);
    }

    /// A record to be written now, if this is one.
    fn take(&mut self, decided: &Decided, now: Instant, all: &mut Room) -> Option<Line> {
        self.window.get_or_insert(now);
        let key = (decided.decision, decided.destination.clone(), decided.port);
        if let Some(tally) = self.destinations.get_mut(&key) {
            tally.add(decided);
            return None;
        }
        if self.destinations.len() < DESTINATIONS && write_one(&mut self.room, all, now) {
            self.destinations.insert(key, Tally::default());
            return Some((decided.decision, single(decided)));
        }
        self.others[place_of(decided.decision)].add(decided);
        None
    }

    /// The records of a window that is over. `at_last`: nothing comes any more.
    fn flush(&mut self, now: Instant, all: &mut Room, at_last: bool) -> Vec<Line> {
        let Some(began) = self.window else { return Vec::new() };
        if !at_last && now.saturating_duration_since(began) < WINDOW {
            return Vec::new();
        }
        let mut entries = Vec::new();
        for ((decision, destination, port), tally) in self.destinations.drain().filter(|(_, tally)| tally.count > 0) {
            if write_one(&mut self.room, all, now) {
                entries.push((decision, tally.text(&named(destination.as_deref(), port))));
            } else {
                self.others[place_of(decision)].merge(&tally);
            }
        }
        for (decision, tally) in DECISIONS.into_iter().zip(&mut self.others) {
            if tally.count > 0 && (at_last || write_one(&mut self.room, all, now)) {
                entries.push((decision, std::mem::take(tally).text("others")));
            }
        }
        self.window = self.others.iter().any(|tally| tally.count > 0).then_some(now);
        entries
    }
}

/// Takes the room for one record, of one session and of all.
fn write_one(one: &mut Room, all: &mut Room, now: Instant) -> bool {
    let may = one.look(now) && all.look(now);
    if may {
        one.left -= 1.0;
        all.left -= 1.0;
    }
    may
}

fn place_of(decision: Decision) -> usize {
    match decision {
        Decision::Allowed => 0,
        Decision::Refused => 1,
        Decision::Failed => 2,
    }
}

fn named(destination: Option<&str>, port: Option<u16>) -> String {
    let destination = destination.unwrap_or("?");
    match port {
        Some(port) if destination.contains(':') => format!("[{destination}]:{port}"),
        Some(port) => format!("{destination}:{port}"),
        None => destination.to_owned(),
    }
}

fn instant(at_ms: u64) -> String {
    let at = OffsetDateTime::from(UNIX_EPOCH + Duration::from_millis(at_ms));
    at.format(&Rfc3339).unwrap_or_default()
}

fn single(decided: &Decided) -> String {
    let mut text = named(decided.destination.as_deref(), decided.port);
    // Writing to a string does not fail.
    let _ = write!(text, " via:{}", decided.via.word());
    if decided.via != Via::Dns {
        let _ = write!(text, " sent:{} received:{}", decided.sent, decided.received);
    }
    if let Some(reason) = &decided.reason {
        let _ = write!(text, " reason:{reason}");
    }
    text
}

fn what(decision: Decision) -> &'static str {
    match decision {
        Decision::Allowed => "egress.allowed",
        Decision::Refused => "egress.refused",
        Decision::Failed => "egress.failed",
    }
}

/// All sessions of a node, as far as they reach out.
#[derive(Debug)]
pub(crate) struct Outward {
    inner: Mutex<Inner>,
    missed: AtomicU64,
}

#[derive(Debug)]
struct Inner {
    sessions: HashMap<SandboxId, Session>,
    /// What all of them may write.
    room: Room,
    /// Missed decisions that the journal does not know of.
    missed: u64,
    told: Option<Instant>,
}

impl Default for Outward {
    fn default() -> Self {
        let now = Instant::now();
        let inner = Inner { sessions: HashMap::new(), room: Room::new(OF_ALL, now), missed: 0, told: None };
        Self { inner: Mutex::new(inner), missed: AtomicU64::new(0) }
    }
}

impl Outward {
    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Decisions that nobody knows anything of.
    pub(crate) fn missed(&self) -> u64 {
        self.missed.load(Ordering::Relaxed)
    }

    /// Some more of them.
    pub(crate) fn miss(&self, count: u64) {
        if count > 0 {
            self.missed.fetch_add(count, Ordering::Relaxed);
            self.inner().missed += count;
        }
    }

    /// Takes decisions about one sandbox. `place` says whose it is, where it is a session's that is not known here yet.
    pub(crate) fn take(
        &self,
        sandbox: SandboxId,
        decided: Vec<Decided>,
        place: impl FnOnce() -> Option<Arc<Place>>,
        store: Option<&Store>,
    ) {
        let now = Instant::now();
        // Asked for without the lock: it takes others.
        let place = if self.inner().sessions.contains_key(&sandbox) { None } else { place() };
        let mut inner = self.inner();
        let Inner { sessions, room, .. } = &mut *inner;
        let session = match (sessions.contains_key(&sandbox), place) {
            (true, _) => sessions.get_mut(&sandbox),
            (false, Some(place)) => {
                let session = sessions.entry(sandbox).or_insert_with(|| Session::new(now));
                session.place = Some(place);
                Some(session)
            }
            // It is nobody's, or has been over for long.
            (false, None) => None,
        };
        let Some(session) = session else { return };
        for decided in decided {
            if let Some(entry) = session.take(&decided, now, room) {
                write(store, session.place.as_ref(), entry);
            }
            session.keep(decided);
        }
    }

    /// A session is over: what the proxy still has to say of it is awaited.
    pub(crate) fn over(&self, sandbox: SandboxId, place: impl FnOnce() -> Option<Arc<Place>>) {
        let now = Instant::now();
        let mut inner = self.inner();
        match inner.sessions.entry(sandbox) {
            Entry::Occupied(mut session) => session.get_mut().over = Some(now),
            Entry::Vacant(room) => {
                let Some(place) = place() else { return };
                room.insert(Session { place: Some(place), over: Some(now), ..Session::new(now) });
            }
        }
    }

    /// Writes what is due, and forgets who is over.
    pub(crate) fn tick(&self, store: Option<&Store>) {
        let now = Instant::now();
        let mut inner = self.inner();
        let Inner { sessions, room, missed, told } = &mut *inner;
        let mut gone = HashSet::new();
        for (sandbox, session) in sessions.iter_mut() {
            let at_last = session.over.is_some_and(|over| now.saturating_duration_since(over) >= AFTER);
            for entry in session.flush(now, room, at_last) {
                write(store, session.place.as_ref(), entry);
            }
            if at_last {
                session.more.send_replace(false);
                gone.insert(*sandbox);
            }
        }
        sessions.retain(|sandbox, _| !gone.contains(sandbox));
        let is_due = told.is_none_or(|told| now.saturating_duration_since(told) >= WINDOW);
        if *missed > 0 && is_due {
            if let Some(store) = store {
                store.audit(Deed { what: "egress.missed", detail: format!("count:{missed}"), ..Deed::default() });
            }
            (*missed, *told) = (0, Some(now));
        }
    }

    /// Writes all that waits: nothing comes any more.
    pub(crate) fn finish(&self, store: Option<&Store>) {
        let now = Instant::now();
        let mut inner = self.inner();
        let Inner { sessions, room, told, .. } = &mut *inner;
        *told = None;
        for session in sessions.values_mut() {
            for entry in session.flush(now, room, true) {
                write(store, session.place.as_ref(), entry);
            }
        }
        drop(inner);
        self.tick(store);
    }

    /// Looks at a session's decisions, those kept and those to come.
    pub(crate) fn read(self: &Arc<Self>, sandbox: SandboxId, place: &Arc<Place>) -> ReachedReader {
        let mut inner = self.inner();
        let session = inner.sessions.entry(sandbox).or_insert_with(|| Session::new(Instant::now()));
        session.place.get_or_insert_with(|| Arc::clone(place));
        ReachedReader { outward: Arc::clone(self), sandbox, more: session.more.subscribe() }
    }

    fn next(&self, sandbox: SandboxId, after: u64) -> Option<Reached> {
        let inner = self.inner();
        let kept = &inner.sessions.get(&sandbox)?.kept;
        kept.get(kept.partition_point(|reached| reached.sequence <= after)).cloned()
    }
}

fn write(store: Option<&Store>, place: Option<&Arc<Place>>, (decision, detail): Line) {
    if let (Some(store), Some(place)) = (store, place) {
        store.of(place, what(decision), detail, SystemTime::now());
    }
}

/// Somebody who looks at a session's decisions.
#[derive(Debug)]
pub struct ReachedReader {
    outward: Arc<Outward>,
    sandbox: SandboxId,
    more: watch::Receiver<bool>,
}

impl ReachedReader {
    /// Those after a sequence that are kept, the oldest first.
    #[must_use]
    pub fn kept(&self, after: u64) -> Vec<Reached> {
        let inner = self.outward.inner();
        let kept = inner.sessions.get(&self.sandbox).map(|session| &session.kept);
        kept.into_iter().flatten().filter(|reached| reached.sequence > after).cloned().collect()
    }

    /// Those after a sequence, those kept and those to come, until the session has ended. A slow reader misses those that are not kept any
    /// more.
    #[must_use]
    pub fn after(self, sequence: u64) -> BoxStream<'static, Reached> {
        futures::stream::unfold((self, sequence), async |(mut reader, after)| {
            loop {
                let is_more = *reader.more.borrow_and_update();
                if let Some(next) = reader.outward.next(reader.sandbox, after) {
                    let after = next.sequence;
                    return Some((next, (reader, after)));
                }
                if !is_more {
                    return None;
                }
                reader.more.changed().await.ok()?;
            }
        })
        .boxed()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decided(decision: Decision, destination: &str, at_ms: u64) -> Decided {
        Decided {
            sandbox: [0; 16],
            pool: "p".to_owned(),
            at_ms,
            via: Via::Tls,
            destination: Some(destination.to_owned()),
            port: Some(443),
            decision,
            reason: None,
            sent: 1,
            received: 2,
        }
    }

    fn session() -> (Session, Room, Instant) {
        let now = Instant::now();
        (Session::new(now), Room::new(OF_ALL, now), now)
    }

    #[tokio::test(start_paused = true)]
    async fn the_first_is_written_at_once_and_its_repeats_as_one() {
        let (mut session, mut all, now) = session();
        let mut take =
            |session: &mut Session, decision, at_ms| session.take(&decided(decision, "a", at_ms), now, &mut all);
        assert_eq!(
            take(&mut session, Decision::Refused, 1_000),
            Some((Decision::Refused, "a:443 via:tls sent:1 received:2".to_owned()))
        );
        assert_eq!(take(&mut session, Decision::Refused, 2_000), None);
        assert_eq!(take(&mut session, Decision::Refused, 3_000), None);
        assert!(take(&mut session, Decision::Allowed, 3_000).is_some(), "another decision is another record");
        assert_eq!(session.flush(now + WINDOW / 2, &mut all, false), []);
        let text = "a:443 count:2 first:1970-01-01T00:00:02Z last:1970-01-01T00:00:03Z sent:2 received:4";
        assert_eq!(session.flush(now + WINDOW, &mut all, false), [(Decision::Refused, text.to_owned())]);
        assert_eq!(session.flush(now + WINDOW * 2, &mut all, true), [], "there is nothing more to say");
    }

    #[tokio::test(start_paused = true)]
    async fn a_flood_of_names_is_few_records_and_every_try_is_counted() {
        let (mut session, mut all, mut now) = session();
        let (mut written, mut counted) = (0, 0);
        let mut count = |entries: Vec<Line>| {
            for (_, text) in entries {
                written += 1;
                counted +=
                    text.split(' ').find_map(|word| word.strip_prefix("count:")?.parse::<u64>().ok()).unwrap_or(1);
            }
        };
        let tries = 100_000_u64;
        for number in 0..tries {
            now += Duration::from_millis(10);
            count(Vec::from_iter(session.take(
                &decided(Decision::Refused, &format!("n{number}"), number),
                now,
                &mut all,
            )));
            count(session.flush(now, &mut all, false));
        }
        count(session.flush(now, &mut all, true));
        assert_eq!(counted, tries);
        // Of a thousand seconds: what one session may write.
        assert!(written < 128 + 12 * 17 + 4, "{written}");
    }

    #[tokio::test(start_paused = true)]
    async fn many_sessions_together_write_what_all_may() {
        let now = Instant::now();
        let mut all = Room::new(OF_ALL, now);
        let written = (0..1_000).map(|_| {
            let mut session = Session::new(now);
            let tries = (0..64).filter_map(|number| {
                session.take(&decided(Decision::Refused, &format!("n{number}"), 1), now, &mut all)
            });
            tries.count()
        });
        assert_eq!(written.sum::<usize>(), 8_192);
    }

    #[test]
    fn destinations_are_written_as_they_are_typed() {
        assert_eq!(named(Some("2001:db8::1"), Some(80)), "[2001:db8::1]:80");
        assert_eq!(named(None, None), "?");
    }
}
