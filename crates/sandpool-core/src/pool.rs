//! A pool's rules: which sandbox a session gets, how many are made, when a session ends.
//!
//! Nothing here waits, makes or destroys anything, or knows what time it is: callers say `now`, a time since any start
//! that they keep to, and do what the answers say.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::time::Duration;

use crate::ids::{Identifier, SandboxId};
use crate::limits::{Life, Scale};

/// The pause after a sandbox that did not start; doubled with each further one, up to [`LONGEST_PAUSE`].
pub const FIRST_PAUSE: Duration = Duration::from_millis(500);

/// The longest pause after sandboxes that did not start.
pub const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// A time since some start.
pub type Moment = Duration;

/// One pool's sandboxes and sessions.
#[derive(Debug)]
pub struct Pool {
    scale: Scale,
    life: Life,
    /// Ready for a session, the longest waiting first.
    ready: VecDeque<SandboxId>,
    booting: BTreeSet<SandboxId>,
    sessions: HashMap<Identifier, Session>,
    owners: HashMap<SandboxId, Identifier>,
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
            booting: BTreeSet::new(),
            sessions: HashMap::new(),
            owners: HashMap::new(),
            failures: 0,
            not_before: None,
        }
    }

    /// The sandbox of a session; one from the reservoir if the session is new. Counts as use.
    pub fn claim(&mut self, identifier: &Identifier, now: Moment) -> Claim {
        if let Some(session) = self.sessions.get_mut(identifier) {
            session.used = now;
            return Claim::Existing(session.sandbox);
        }
        let active = count(self.sessions.len());
        if active >= self.scale.max_sessions {
            let next = self.sessions.values().map(|session| self.ends(session, now)).min().unwrap_or(now);
            let retry_after = next.saturating_sub(now).max(Duration::from_secs(1));
            return Claim::Full { active, limit: self.scale.max_sessions, retry_after };
        }
        match self.ready.pop_front() {
            Some(sandbox) => {
                self.place(identifier.clone(), sandbox, now, now);
                Claim::Fresh(sandbox)
            }
            None => Claim::Wait,
        }
    }

    /// Puts a session in its place that was there before (after a restart). Answers the sandbox to destroy when two
    /// have the same session, because a server was killed in the middle: the session is in the one made last.
    pub fn bind(
        &mut self,
        identifier: Identifier,
        sandbox: SandboxId,
        created: Moment,
        now: Moment,
    ) -> Option<SandboxId> {
        let other = self.sessions.get(&identifier).filter(|other| other.sandbox != sandbox);
        match other.map(|other| (other.sandbox, other.created)) {
            Some((_, later)) if later > created => Some(sandbox),
            Some((earlier, _)) => {
                self.owners.remove(&earlier);
                self.place(identifier, sandbox, created, now);
                Some(earlier)
            }
            None => {
                self.place(identifier, sandbox, created, now);
                None
            }
        }
    }

    fn place(&mut self, identifier: Identifier, sandbox: SandboxId, created: Moment, now: Moment) {
        self.booting.remove(&sandbox);
        self.ready.retain(|ready| *ready != sandbox);
        self.owners.insert(sandbox, identifier.clone());
        self.sessions.insert(identifier, Session { sandbox, created, used: now, busy: 0 });
    }

    /// A sandbox is being made. Nothing changes for one that is known already.
    pub fn booting(&mut self, sandbox: SandboxId) {
        if !self.knows(sandbox) {
            self.booting.insert(sandbox);
        }
    }

    /// It is one of this pool's.
    #[must_use]
    pub fn knows(&self, sandbox: SandboxId) -> bool {
        self.booting.contains(&sandbox) || self.owners.contains_key(&sandbox) || self.ready.contains(&sandbox)
    }

    /// A sandbox is ready. Whether it is one of ours that waited for this.
    pub fn ready(&mut self, sandbox: SandboxId) -> bool {
        let ours = self.booting.remove(&sandbox);
        if ours {
            self.ready.push_back(sandbox);
            self.failures = 0;
            self.not_before = None;
        }
        ours
    }

    /// A sandbox is gone. Answers the session that has lost it.
    pub fn gone(&mut self, sandbox: SandboxId, now: Moment) -> Option<Identifier> {
        if self.booting.remove(&sandbox) {
            self.failed(now);
        }
        self.ready.retain(|ready| *ready != sandbox);
        let identifier = self.owners.remove(&sandbox)?;
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
    pub fn remove(&mut self, identifier: &Identifier) -> Option<SandboxId> {
        let session = self.sessions.remove(identifier)?;
        self.owners.remove(&session.sandbox);
        Some(session.sandbox)
    }

    /// How many sandboxes to begin now, when `waiting` callers wait for one.
    #[must_use]
    pub fn wanted(&self, waiting: usize, now: Moment) -> u32 {
        if self.not_before.is_some_and(|at| now < at) {
            return 0;
        }
        let room = self.scale.max_sessions.saturating_sub(count(self.sessions.len()));
        let target = self.scale.ready.saturating_add(count(waiting)).min(room);
        let coming = count(self.booting.len());
        let missing = target.saturating_sub(count(self.ready.len()).saturating_add(coming));
        missing.min(self.scale.boots.max(1).saturating_sub(coming))
    }

    /// When [`Pool::wanted`] is worth asking again, after failures.
    #[must_use]
    pub fn not_before(&self) -> Option<Moment> {
        self.not_before
    }

    /// Something begins in a sandbox's session (`true`) or ends. Both count as use. By its sandbox, because the same
    /// name may be another session by now, and what ends in the one says nothing of the other.
    pub fn busy(&mut self, sandbox: SandboxId, begins: bool, now: Moment) {
        let session = self.owners.get(&sandbox).and_then(|identifier| self.sessions.get_mut(identifier));
        if let Some(session) = session {
            session.used = session.used.max(now);
            session.busy = if begins { session.busy + 1 } else { session.busy.saturating_sub(1) };
        }
    }

    /// The sessions whose time is over, and when to look again.
    #[must_use]
    pub fn expired(&self, now: Moment) -> (Vec<Identifier>, Option<Moment>) {
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

    /// When a session ends, if it is not used again.
    #[must_use]
    pub fn ends(&self, session: &Session, now: Moment) -> Moment {
        let used = if session.busy > 0 { now } else { session.used };
        let by_idleness = used + self.life.cooldown;
        self.life.max_alive.map_or(by_idleness, |most| by_idleness.min(session.created + most))
    }

    /// A session.
    #[must_use]
    pub fn session(&self, identifier: &Identifier) -> Option<&Session> {
        self.sessions.get(identifier)
    }

    /// Every session.
    pub fn sessions(&self) -> impl Iterator<Item = (&Identifier, &Session)> {
        self.sessions.iter()
    }

    /// Every sandbox that is ready or belongs to a session.
    pub fn known(&self) -> impl Iterator<Item = SandboxId> {
        self.ready.iter().copied().chain(self.owners.keys().copied())
    }

    /// It is being made.
    #[must_use]
    pub fn is_booting(&self, sandbox: SandboxId) -> bool {
        self.booting.contains(&sandbox)
    }

    /// The session that a sandbox belongs to.
    #[must_use]
    pub fn owner(&self, sandbox: SandboxId) -> Option<&Identifier> {
        self.owners.get(&sandbox)
    }

    /// Sandboxes that are ready, that are being made, and that belong to a session.
    #[must_use]
    pub fn counts(&self) -> (u32, u32, u32) {
        (count(self.ready.len()), count(self.booting.len()), count(self.sessions.len()))
    }

    /// The reservoir is as full as it can be.
    #[must_use]
    pub fn is_full(&self) -> bool {
        let room = self.scale.max_sessions.saturating_sub(count(self.sessions.len()));
        count(self.ready.len()) >= self.scale.ready.min(room)
    }
}

fn count(length: usize) -> u32 {
    u32::try_from(length).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests;
