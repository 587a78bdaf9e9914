//! A pool's rules: which sandbox a session gets, how many are made, when a session ends.
//!
//! Nothing here waits, makes or destroys anything, or knows what time it is: callers say `now`, a time since any start
//! that they keep to, and do what the answers say.
//!
//! ```text
//! claim ----> demand: how fast new sessions come, how long a boot takes ----> target: sandboxes to have ready
//!   |                                                                            |         within the scale
//!   +-- its replacement is put off until the first answer is out, or ANSWER ---> wanted: begin so many now
//!                                                                                surplus: end one, slowly
//! ```
//!
//! Callers that wait for a sandbox put nothing off: what they need begins at once.

mod demand;

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::time::Duration;

use demand::Demand;

use crate::ids::{SandboxId, SessionKey};
use crate::limits::{Life, Scale};

/// The pause after a sandbox that did not start; doubled with each further one, up to [`LONGEST_PAUSE`].
pub const FIRST_PAUSE: Duration = Duration::from_millis(500);

/// The longest pause after sandboxes that did not start.
pub const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// The longest that a new session's sandbox is not replaced because its first request has not been answered.
pub const ANSWER: Duration = Duration::from_millis(250);

/// The pause between a first answer and the replacement, in which the answer leaves: a millisecond is several times
/// what that takes, and timers of a millisecond fire up to one later.
pub const LEAVES: Duration = Duration::from_millis(1);

/// Of the sandboxes that are ready and more than wanted, one is ended in so much time.
pub const SHRINK: Duration = Duration::from_secs(2);

/// A time since some start.
pub type Moment = Duration;

/// One pool's sandboxes and sessions.
#[derive(Debug)]
pub struct Pool {
    scale: Scale,
    life: Life,
    /// Ready for a session, the longest waiting first.
    ready: VecDeque<SandboxId>,
    /// Those being made, and since when.
    booting: BTreeMap<SandboxId, Moment>,
    sessions: HashMap<SessionKey, Session>,
    owners: HashMap<SandboxId, SessionKey>,
    demand: Demand,
    /// Sandboxes of sessions that may still be waiting for their first answer, and until when that puts refills off.
    unanswered: BTreeMap<SandboxId, Moment>,
    /// When a sandbox last became ready, or one was too many and ended.
    moved: Moment,
    failures: u32,
    not_before: Option<Moment>,
}

/// One session's place in its pool.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Session {
    /// Its sandbox.
    pub sandbox: SandboxId,
    /// When it was made.
    pub created: Moment,
    /// When it was last used.
    pub used: Moment,
    /// Executions and transfers that go on: while there are any it is in use.
    pub busy: usize,
}

/// What a session gets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Claim {
    /// It is there.
    Existing(SandboxId),
    /// It is new, and this sandbox is its own now.
    Fresh(SandboxId),
    /// No sandbox is ready, but one may be made: claim again when one is.
    Wait,
    /// Every place is taken.
    Full {
        /// Sessions there are.
        active: u32,
        /// Sessions there may be.
        limit: u32,
        /// When the next may end, at the earliest.
        retry_after: Duration,
    },
}

impl Pool {
    /// An empty pool.
    #[must_use]
    pub fn new(scale: Scale, life: Life) -> Self {
        Self {
            scale,
            life,
            ready: VecDeque::new(),
            booting: BTreeMap::new(),
            sessions: HashMap::new(),
            owners: HashMap::new(),
            demand: Demand::default(),
            unanswered: BTreeMap::new(),
            moved: Moment::ZERO,
            failures: 0,
            not_before: None,
        }
    }

    /// From now on it has this scale, and its sessions end so. Sessions over a lower limit stay until they end.
    pub fn declare(&mut self, scale: Scale, life: Life) {
        (self.scale, self.life) = (scale, life);
    }

    /// Gives up the reservoir, because it was made from what is not so any more: answers what is ready, to be destroyed. What is being
    /// made is none of this pool's any more, and to be destroyed when it is ready.
    pub fn give_up_reservoir(&mut self) -> Vec<SandboxId> {
        self.booting.clear();
        self.failures = 0;
        self.not_before = None;
        self.ready.drain(..).collect()
    }

    /// The sandbox of a session; one from the reservoir if the session is new. Counts as use.
    pub fn claim(&mut self, identifier: &SessionKey, now: Moment) -> Claim {
        if let Some(found) = self.found_or_full(identifier, now) {
            return found;
        }
        match self.ready.pop_front() {
            Some(sandbox) => {
                self.demand.arrived(now);
                self.unanswered.retain(|_, until| *until > now);
                self.unanswered.insert(sandbox, now + ANSWER);
                self.place(identifier.clone(), sandbox, now, now);
                Claim::Fresh(sandbox)
            }
            None => Claim::Wait,
        }
    }

    /// The sandbox of a session; if that is not there this one, which is made for it and comes from no reservoir. Counts as use.
    pub fn claim_with(&mut self, identifier: &SessionKey, sandbox: SandboxId, now: Moment) -> Claim {
        if let Some(found) = self.found_or_full(identifier, now) {
            return found;
        }
        self.place(identifier.clone(), sandbox, now, now);
        Claim::Fresh(sandbox)
    }

    /// The session, used now; or that there is no place for it.
    fn found_or_full(&mut self, identifier: &SessionKey, now: Moment) -> Option<Claim> {
        if let Some(session) = self.sessions.get_mut(identifier) {
            session.used = now;
            return Some(Claim::Existing(session.sandbox));
        }
        let active = count(self.sessions.len());
        (active >= self.scale.max_sessions).then(|| {
            let next = self.sessions.values().map(|session| self.ends(session, now)).min().unwrap_or(now);
            let retry_after = next.saturating_sub(now).max(Duration::from_secs(1));
            Claim::Full { active, limit: self.scale.max_sessions, retry_after }
        })
    }

    /// Puts a session in its place that was there before (after a restart). Answers the sandbox to destroy when two
    /// have the same session, because a server was killed in the middle: the session is in the one made last.
    pub fn bind(
        &mut self,
        identifier: SessionKey,
        sandbox: SandboxId,
        created: Moment,
        now: Moment,
    ) -> Option<SandboxId> {
        let other = self.sessions.get(&identifier).filter(|other| other.sandbox != sandbox);
        match other.map(|other| (other.sandbox, other.created)) {
            Some((_, later)) if later > created => Some(sandbox),
            Some((earlier, _)) => {
                self.disown(earlier);
                self.place(identifier, sandbox, created, now);
                Some(earlier)
            }
            None => {
                self.place(identifier, sandbox, created, now);
                None
            }
        }
    }

    fn place(&mut self, identifier: SessionKey, sandbox: SandboxId, created: Moment, now: Moment) {
        self.booting.remove(&sandbox);
        self.ready.retain(|ready| *ready != sandbox);
        self.owners.insert(sandbox, identifier.clone());
        self.sessions.insert(identifier, Session { sandbox, created, used: now, busy: 0 });
    }

    fn disown(&mut self, sandbox: SandboxId) -> Option<SessionKey> {
        self.unanswered.remove(&sandbox);
        self.owners.remove(&sandbox)
    }

    /// The first request of a sandbox's session has been answered: its replacement may begin.
    pub fn answered(&mut self, sandbox: SandboxId, now: Moment) {
        if let Some(until) = self.unanswered.get_mut(&sandbox) {
            *until = (*until).min(now + LEAVES);
        }
    }

    /// A sandbox is being made. Nothing changes for one that is known already.
    pub fn booting(&mut self, sandbox: SandboxId, now: Moment) {
        if !self.knows(sandbox) {
            self.booting.insert(sandbox, now);
        }
    }

    /// It is one of this pool's.
    #[must_use]
    pub fn knows(&self, sandbox: SandboxId) -> bool {
        self.booting.contains_key(&sandbox) || self.owners.contains_key(&sandbox) || self.ready.contains(&sandbox)
    }

    /// A sandbox is ready. Whether it is one of ours that waited for this.
    pub fn ready(&mut self, sandbox: SandboxId, now: Moment) -> bool {
        let Some(began) = self.booting.remove(&sandbox) else { return false };
        self.demand.booted(now.saturating_sub(began));
        self.ready.push_back(sandbox);
        self.moved = now;
        self.failures = 0;
        self.not_before = None;
        true
    }

    /// A sandbox is gone. Answers the session that has lost it.
    pub fn gone(&mut self, sandbox: SandboxId, now: Moment) -> Option<SessionKey> {
        if self.booting.remove(&sandbox).is_some() {
            self.failed(now);
        }
        self.ready.retain(|ready| *ready != sandbox);
        let identifier = self.disown(sandbox)?;
        self.sessions.remove(&identifier);
        Some(identifier)
    }

    /// A sandbox could not be made: the next attempt waits, each time longer.
    pub fn failed(&mut self, now: Moment) {
        let pause = FIRST_PAUSE.saturating_mul(1 << self.failures.min(10)).min(LONGEST_PAUSE);
        self.failures = self.failures.saturating_add(1);
        self.not_before = Some(now + pause);
    }

    /// Ends a session. Answers the sandbox to destroy.
    pub fn remove(&mut self, identifier: &SessionKey) -> Option<SandboxId> {
        let session = self.sessions.remove(identifier)?;
        self.disown(session.sandbox);
        Some(session.sandbox)
    }

    /// The sandboxes to have ready now: as many as the rate of new sessions asks for, within the pool's scale.
    #[must_use]
    pub fn target(&self, now: Moment) -> u32 {
        let most = self.scale.most_ready.max(self.scale.ready);
        self.demand.forecast(now).clamp(self.scale.ready, most).min(self.room())
    }

    /// Sandboxes there may be besides those of sessions.
    fn room(&self) -> u32 {
        self.scale.max_sessions.saturating_sub(count(self.sessions.len()))
    }

    /// How many sandboxes to begin now, when `waiting` callers wait for one.
    #[must_use]
    pub fn wanted(&self, waiting: usize, now: Moment) -> u32 {
        if self.not_before.is_some_and(|at| now < at) {
            return 0;
        }
        let target = self.target(now).saturating_add(count(waiting)).min(self.room());
        let (coming, boots) = (count(self.booting.len()), self.scale.boots.max(1));
        let have = count(self.ready.len()).saturating_add(coming);
        let missing = target.saturating_sub(have).min(boots.saturating_sub(coming));
        let unanswered = count(self.unanswered.values().filter(|until| **until > now).count());
        match unanswered {
            _ if waiting > 0 => missing,
            0 => missing,
            // More than half full: nobody will miss it meanwhile.
            _ if have.saturating_mul(2) >= target => 0,
            // Else one boot is put off for each.
            _ => target.saturating_sub(have).saturating_sub(unanswered.min(boots)).min(missing),
        }
    }

    /// A ready sandbox that is one too many although `waiting` callers wait for one, when for [`SHRINK`] none has become
    /// ready and none was too many: it is none of this pool's any more, and to be destroyed.
    pub fn surplus(&mut self, waiting: usize, now: Moment) -> Option<SandboxId> {
        let wanted = self.target(now).saturating_add(count(waiting));
        if now < self.moved + SHRINK || count(self.ready.len()) <= wanted {
            return None;
        }
        self.moved = now;
        self.ready.pop_back()
    }

    /// When [`Pool::wanted`] and [`Pool::surplus`] are worth asking again, if nothing happens before.
    #[must_use]
    pub fn looks_again(&self, now: Moment) -> Option<Moment> {
        let put_off = self.unanswered.values().copied().filter(|until| *until > now).min();
        let paused = self.not_before.filter(|at| *at > now);
        // What is not too many now may be with the time that passes.
        let may_shrink = count(self.ready.len()) > self.scale.ready.min(self.room());
        let shrinks = may_shrink.then(|| (self.moved + SHRINK).max(now + SHRINK / 2));
        [put_off, paused, shrinks].into_iter().flatten().min()
    }

    /// Until when failures keep [`Pool::wanted`] at none.
    #[must_use]
    pub fn not_before(&self) -> Option<Moment> {
        self.not_before
    }

    /// What goes on in a sandbox's session: when it was last used, and how many executions and transfers there are. By
    /// its sandbox, because the same name may be another session by now.
    pub fn seen(&mut self, sandbox: SandboxId, used: Moment, busy: usize) {
        let session = self.owners.get(&sandbox).and_then(|identifier| self.sessions.get_mut(identifier));
        if let Some(session) = session {
            session.used = session.used.max(used);
            session.busy = busy;
        }
    }

    /// The sessions whose time is over, and when to look again.
    #[must_use]
    pub fn expired(&self, now: Moment) -> (Vec<SessionKey>, Option<Moment>) {
        let mut over = Vec::new();
        let mut next: Option<Moment> = None;
        for (identifier, session) in &self.sessions {
            let ends = self.ends(session, now);
            if ends <= now {
                over.push(identifier.clone());
            } else {
                next = Some(next.map_or(ends, |next| next.min(ends)));
            }
        }
        (over, next)
    }

    /// The sandboxes of sessions that have been idle for so long, and when the next will have been.
    #[must_use]
    pub fn idle(&self, long: Duration, now: Moment) -> (Vec<SandboxId>, Option<Moment>) {
        let due = |session: &&Session| if session.busy > 0 { now + long } else { session.used + long };
        let (over, rest): (Vec<_>, Vec<_>) = self.sessions.values().partition(|session| due(session) <= now);
        let next = rest.iter().map(due).min();
        (over.into_iter().map(|session| session.sandbox).collect(), next)
    }

    /// When a session ends, if it is not used again.
    #[must_use]
    pub fn ends(&self, session: &Session, now: Moment) -> Moment {
        self.life.ends(session.created, if session.busy > 0 { now } else { session.used })
    }

    /// A session.
    #[must_use]
    pub fn session(&self, identifier: &SessionKey) -> Option<&Session> {
        self.sessions.get(identifier)
    }

    /// Every session.
    pub fn sessions(&self) -> impl Iterator<Item = (&SessionKey, &Session)> {
        self.sessions.iter()
    }

    /// Every sandbox that is ready or belongs to a session.
    pub fn known(&self) -> impl Iterator<Item = SandboxId> {
        self.ready.iter().copied().chain(self.owners.keys().copied())
    }

    /// It is being made.
    #[must_use]
    pub fn is_booting(&self, sandbox: SandboxId) -> bool {
        self.booting.contains_key(&sandbox)
    }

    /// The session that a sandbox belongs to.
    #[must_use]
    pub fn owner(&self, sandbox: SandboxId) -> Option<&SessionKey> {
        self.owners.get(&sandbox)
    }

    /// Sandboxes that are ready, that are being made, and that belong to a session.
    #[must_use]
    pub fn counts(&self) -> (u32, u32, u32) {
        (count(self.ready.len()), count(self.booting.len()), count(self.sessions.len()))
    }

    /// The reservoir has at least what the pool always keeps, or all that there is room for.
    #[must_use]
    pub fn is_full(&self) -> bool {
        count(self.ready.len()) >= self.scale.ready.min(self.room())
    }
}

fn count(length: usize) -> u32 {
    u32::try_from(length).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests;
