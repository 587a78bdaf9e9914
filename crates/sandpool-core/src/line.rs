//! Callers that wait for something scarce, in an order that is fair to tenants and not to callers.
//!
//! Weighted fair queueing by start times (Goyal, Vin, Cheng, "Start-time fair queueing", 1996): each caller gets a start
//! on a clock that only serving moves; a tenant's next start is behind its last one by the inverse of its weight. So a
//! tenant with a hundred callers waits behind itself, and one that comes anew is next but for who is served now.
//!
//! ```text
//! noisy 0 1 2 3 4 5 ...      the clock is at 1 when quiet comes: its start is 1, and it is served
//! quiet   1                  after noisy's 1 and before noisy's 2
//! ```

use std::collections::{BTreeMap, HashMap};

use crate::ids::TenantName;

/// The clock's step for one place of a tenant of weight 1.
const STEP: u64 = 1 << 20;

/// One caller's place in a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ticket {
    start: u64,
    number: u64,
}

/// A line.
#[derive(Debug)]
pub struct Line {
    /// Callers of one tenant, at most.
    most: usize,
    clock: u64,
    next: u64,
    waiting: BTreeMap<Ticket, TenantName>,
    tenants: HashMap<TenantName, Standing>,
}

/// One tenant in a line.
#[derive(Clone, Copy, Debug, Default)]
struct Standing {
    /// The start of its next caller, unless the clock has gone past it.
    next: u64,
    waiting: usize,
}

/// A tenant has as many callers in the line as it may.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LineFull;

impl Line {
    /// An empty one, for at most `most` callers of each tenant.
    #[must_use]
    pub fn new(most: usize) -> Self {
        Self { most, clock: 0, next: 0, waiting: BTreeMap::new(), tenants: HashMap::new() }
    }

    /// A caller joins.
    ///
    /// # Errors
    /// [`LineFull`].
    pub fn join(&mut self, tenant: &TenantName, weight: u32) -> Result<Ticket, LineFull> {
        let standing = self.tenants.entry(tenant.clone()).or_default();
        if standing.waiting >= self.most {
            return Err(LineFull);
        }
        let start = standing.next.max(self.clock);
        standing.next = start + STEP / u64::from(weight.max(1)).min(STEP);
        standing.waiting += 1;
        let ticket = Ticket { start, number: self.next };
        self.next += 1;
        self.waiting.insert(ticket, tenant.clone());
        Ok(ticket)
    }

    /// A caller got what it waited for. Nothing happens if it is not there.
    pub fn served(&mut self, ticket: Ticket) {
        self.clock = self.clock.max(ticket.start);
        self.left(ticket);
    }

    /// A caller waits no more. Nothing happens if it is not there.
    pub fn left(&mut self, ticket: Ticket) {
        let Some(tenant) = self.waiting.remove(&ticket) else { return };
        if let Some(standing) = self.tenants.get_mut(&tenant) {
            standing.waiting -= 1;
        }
        if self.waiting.is_empty() {
            // Nobody is owed anything any more.
            self.tenants.clear();
            self.clock = 0;
        }
    }

    /// Whether a caller is one of the first `places`.
    #[must_use]
    pub fn is_among_first(&self, ticket: Ticket, places: usize) -> bool {
        self.first(places).any(|first| first == ticket)
    }

    /// The first `places` callers.
    pub fn first(&self, places: usize) -> impl Iterator<Item = Ticket> {
        self.waiting.keys().copied().take(places)
    }

    /// Nobody waits.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Callers that wait.
    #[must_use]
    pub fn len(&self) -> usize {
        self.waiting.len()
    }
}

#[cfg(test)]
mod tests;
