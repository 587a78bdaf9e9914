//! What sessions of a pool may reach, as its settings say it.

use std::time::Duration;

use sandpool_egress::rate::Rate;
use sandpool_egress::sandbox::Limits;
use serde::{Deserialize, Serialize};

use super::Size;

/// What one session may use of the egress proxy, and the proxy of the host.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(crate) struct EgressLimits {
    /// Connections at the same time.
    pub(crate) connections: u32,
    /// New connections; four times as many at once.
    pub(crate) new_per_second: u32,
    /// Questions for names; four times as many at once.
    pub(crate) queries_per_second: u32,
    /// Names that were not asked for before.
    pub(crate) new_names_per_second: u32,
    /// How long a connection may be without a byte.
    pub(crate) idle_seconds: u32,
    /// How long a connection may be open.
    pub(crate) life_seconds: u32,
    /// Bytes both ways in a session's whole life; no limit if not given.
    pub(crate) bytes: Option<Size>,
    /// Memory of the proxy, for all sessions together.
    pub(crate) memory: Size,
}

impl Default for EgressLimits {
    fn default() -> Self {
        let Limits { connections, new, queries, names, idle, life, .. } = Limits::default();
        let seconds = |time: Duration| u32::try_from(time.as_secs()).unwrap_or(u32::MAX);
        Self {
            connections: u32::try_from(connections).unwrap_or(u32::MAX),
            new_per_second: new.per_second,
            queries_per_second: queries.per_second,
            new_names_per_second: names.per_second,
            idle_seconds: seconds(idle),
            life_seconds: seconds(life),
            bytes: None,
            memory: Size(1 << 30),
        }
    }
}

impl EgressLimits {
    /// # Errors
    /// The key, and what is wrong with it.
    pub(crate) fn check(&self) -> Result<(), (&'static str, String)> {
        let numbers = [
            ("connections", self.connections, 1, 10_000),
            ("newPerSecond", self.new_per_second, 1, 10_000),
            ("queriesPerSecond", self.queries_per_second, 1, 10_000),
            ("newNamesPerSecond", self.new_names_per_second, 1, 1_000),
            ("idleSeconds", self.idle_seconds, 1, 86_400),
            ("lifeSeconds", self.life_seconds, 1, 2_592_000),
        ];
        for (field, number, least, most) in numbers {
            if !(least..=most).contains(&number) {
                return Err((field, format!("is {number}, must be from {least} to {most}")));
            }
        }
        let least = Size(64 << 20);
        if self.memory.0 < least.0 {
            return Err(("memory", format!("is {}, must be {least} at least", self.memory)));
        }
        Ok(())
    }

    /// As the proxy takes them.
    pub(crate) fn to_limits(&self) -> Limits {
        let rate = |per_second: u32, times: u32| Rate { per_second, burst: per_second.saturating_mul(times) };
        Limits {
            connections: usize::try_from(self.connections).unwrap_or(usize::MAX),
            new: rate(self.new_per_second, 4),
            queries: rate(self.queries_per_second, 4),
            names: rate(self.new_names_per_second, 60),
            idle: Duration::from_secs(self.idle_seconds.into()),
            life: Duration::from_secs(self.life_seconds.into()),
            bytes: self.bytes.map_or(u64::MAX, |bytes| bytes.0),
            ..Limits::default()
        }
    }
}
