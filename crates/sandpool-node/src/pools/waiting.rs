//! Callers that wait: for a sandbox that boots, or for a place in a full pool.

use std::sync::atomic::{AtomicUsize, Ordering};

use sandpool_core::line::Ticket;
use sandpool_telemetry::{self as telemetry, Span};
use tokio::time::Instant;

use super::PoolState;

/// A caller that waits for a sandbox, for as long as it does.
pub(super) struct Waiting<'a>(&'a AtomicUsize);

impl<'a> Waiting<'a> {
    pub(super) fn begin(count: &'a AtomicUsize) -> Self {
        count.fetch_add(1, Ordering::SeqCst);
        Self(count)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

/// The span of a caller that waits, for a sandbox that boots or for a place.
pub(super) fn begin_to_wait(what: &'static str) -> Option<Span> {
    let mut span = telemetry::current()?.child("sandpool.wait")?;
    span.set("sandpool.wait.for", what);
    Some(span)
}

/// A caller that waits for a place, for as long as it does.
pub(super) struct InLine<'a> {
    pub(super) pool: &'a PoolState,
    pub(super) ticket: Ticket,
    pub(super) until: Instant,
}

impl Drop for InLine<'_> {
    fn drop(&mut self) {
        self.pool.inner().line.left(self.ticket);
        // It may have stood before somebody.
        self.pool.changed.notify_waiters();
    }
}
