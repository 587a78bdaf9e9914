//! How many new sessions come, as far as those that came can tell.

use std::time::Duration;

use super::Moment;

/// How long the rate that follows a rise remembers.
const QUICK: Duration = Duration::from_secs(2);

/// How long the rate that bridges pauses remembers: a reservoir that has grown stays for about three times as long.
const STEADY: Duration = Duration::from_secs(30);

/// How far a reservoir must reach beyond the time of one boot: as long as a refill may be put off
/// ([`super::ANSWER`]), because it begins so late.
const REACH: Duration = super::ANSWER;

/// Standard deviations of a random number of arrivals that are kept for bursts. Three of a Poisson process are
/// exceeded in about one case of a thousand.
const MARGIN: f64 = 3.0;

/// The part that the newest boot has in the measured time of a boot.
const NEWEST: f64 = 0.25;

/// The arrival rate of new sessions, and the time that a boot takes.
#[derive(Debug, Default)]
pub(super) struct Demand {
    quick: Rate,
    steady: Rate,
    /// Seconds.
    boot: Option<f64>,
}

/// An exponentially weighted rate.
#[derive(Debug, Default)]
struct Rate {
    /// Arrivals per second, as of `at`.
    per_second: f64,
    at: Moment,
}

impl Rate {
    fn at(&self, now: Moment, memory: Duration) -> f64 {
        let passed = now.saturating_sub(self.at).as_secs_f64();
        self.per_second * (-passed / memory.as_secs_f64()).exp()
    }

    fn arrived(&mut self, now: Moment, memory: Duration) {
        self.per_second = self.at(now, memory) + memory.as_secs_f64().recip();
        self.at = self.at.max(now);
    }
}

impl Demand {
    /// A new session has come.
    pub(super) fn arrived(&mut self, now: Moment) {
        self.quick.arrived(now, QUICK);
        self.steady.arrived(now, STEADY);
    }

    /// A boot took so long.
    pub(super) fn booted(&mut self, took: Duration) {
        let took = took.as_secs_f64();
        self.boot = Some(self.boot.map_or(took, |before| before + NEWEST * (took - before)));
    }

    /// The sandboxes to have ready, so that those who come while one boots find one. None for fewer than one of them:
    /// what comes so seldom is served by the least that a pool keeps.
    pub(super) fn forecast(&self, now: Moment) -> u32 {
        let rate = self.quick.at(now, QUICK).max(self.steady.at(now, STEADY));
        let expected = rate * (self.boot.unwrap_or_default() + REACH.as_secs_f64());
        if expected < 1.0 {
            return 0;
        }
        let wanted = (expected + MARGIN * expected.sqrt()).ceil().min(f64::from(u32::MAX));
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "from 1 to the largest")]
        let wanted = wanted as u32;
        wanted
    }
}
