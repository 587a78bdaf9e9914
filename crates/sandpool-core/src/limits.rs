//! What a pool promises and allows, in types with units.

use std::time::Duration;

/// What one sandbox may use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Memory in bytes, without swap; what is written to `/mnt/data`, `/tmp` and `/dev/shm` counts too.
    pub memory: u64,
    /// Processes and threads.
    pub pids: u32,
    /// Thousandths of a processor.
    pub cpu_milli: u32,
    /// Bytes on `/mnt/data`.
    pub data: u64,
    /// Bytes on `/tmp`.
    pub tmp: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self { memory: 2 << 30, pids: 256, cpu_milli: 1_000, data: 1 << 30, tmp: 256 << 20 }
    }
}

/// How many sandboxes a pool has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Scale {
    /// Sessions at the same time, at most.
    pub max_sessions: u32,
    /// Sandboxes kept ready for the next sessions, at least.
    pub ready: u32,
    /// Sandboxes kept ready when new sessions come fast, at most. Fewer than `ready` counts as `ready`.
    pub most_ready: u32,
    /// Sandboxes that are being made at the same time, at most.
    pub boots: u32,
}

/// When a session ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Life {
    /// After this long without a request (and without a running execution).
    pub cooldown: Duration,
    /// After this long in any case.
    pub max_alive: Option<Duration>,
}

impl Life {
    /// When a session ends that was made and last used then, both times since the same start.
    #[must_use]
    pub fn ends(&self, created: Duration, used: Duration) -> Duration {
        let by_idleness = used + self.cooldown;
        self.max_alive.map_or(by_idleness, |most| by_idleness.min(created + most))
    }
}

/// What becomes of idle sessions before they would end, and of those that are suspended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Suspends {
    /// After this long without a request (and without a running execution) a session is suspended; `None` for never.
    pub after: Option<Duration>,
    /// After this long a suspended session ends.
    pub kept_for: Duration,
}

impl Default for Suspends {
    fn default() -> Self {
        Self { after: None, kept_for: Duration::from_secs(7 * 24 * 3600) }
    }
}
