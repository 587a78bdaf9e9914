//! What a tenant may use, and whether it may have more now.
//!
//! Nothing here waits or knows what time it is: callers say `now`, a time since any start that they keep to. Rates are
//! kept as one moment each, "paid up to then": every use moves it on, time catches up with it, and who is too far
//! ahead waits. So there is nothing to refill, and no timer.

use std::fmt;
use std::time::Duration;

use crate::ids::TenantName;
use crate::pool::Moment;

/// In how long a tenant's processor time, and the bytes that it may move, come again.
pub const HOUR: Duration = Duration::from_secs(3600);

/// When to come again for room that is looked at every few seconds.
const WHEN_LOOKED_AT: Duration = Duration::from_secs(5);

/// When to come again for what only comes back when the tenant itself gives something up.
const WHEN_GIVEN_BACK: Duration = Duration::from_secs(1);

/// A tenant, as declared.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tenant {
    /// Its name.
    pub name: TenantName,
    /// Its share where tenants compete, as against the others': 1 or more.
    pub weight: u32,
    /// What it may use.
    pub quota: Quota,
}

impl Tenant {
    /// One without limits of its own.
    #[must_use]
    pub fn unlimited(name: TenantName) -> Self {
        Self { name, weight: 1, quota: Quota::default() }
    }
}

/// The most that a tenant may use, in all pools together; `None` is as much as the pools have.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Quota {
    /// Sessions at the same time.
    pub sessions: Option<u32>,
    /// New sessions per second; as many may come at once.
    pub creates_per_second: Option<u32>,
    /// Executions at the same time, those that wait for an interpreter included.
    pub executions: Option<u32>,
    /// Processor time per hour; as much may be used at once.
    pub cpu_per_hour: Option<Duration>,
    /// Bytes of files that its sessions have at the same time.
    pub stored_bytes: Option<u64>,
    /// Bytes per hour that its sessions send out and get from outside; as many may be moved at once.
    pub egress_bytes_per_hour: Option<u64>,
}

impl Quota {
    /// There is nothing to count.
    #[must_use]
    pub fn is_unlimited(&self) -> bool {
        *self == Self::default()
    }

    /// Whether it has to be looked, from time to time, what sandboxes have used.
    #[must_use]
    pub fn is_of_usage(&self) -> bool {
        self.cpu_per_hour.is_some() || self.stored_bytes.is_some() || self.egress_bytes_per_hour.is_some()
    }
}

/// What a quota is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resource {
    /// [`Quota::sessions`].
    Sessions,
    /// [`Quota::creates_per_second`].
    Creates,
    /// [`Quota::executions`].
    Executions,
    /// [`Quota::cpu_per_hour`], in seconds.
    Cpu,
    /// [`Quota::stored_bytes`].
    Stored,
    /// [`Quota::egress_bytes_per_hour`].
    Egress,
}

impl fmt::Display for Resource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Sessions => "sessions",
            Self::Creates => "new sessions per second",
            Self::Executions => "concurrent executions",
            Self::Cpu => "CPU seconds per hour",
            Self::Stored => "stored bytes",
            Self::Egress => "egress bytes per hour",
        })
    }
}

/// A quota that is used up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// Which.
    pub resource: Resource,
    /// What it allows.
    pub limit: u64,
    /// When it may be worth to come again.
    pub retry_after: Duration,
}

/// How a tenant stands with one limit of its quota.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Standing {
    /// What of.
    pub resource: Resource,
    /// How much is in use, or used and has not come again. It may be more than the limit.
    pub used: f64,
    /// How much it may be.
    pub limit: f64,
}

/// What one tenant uses, held against its quota.
#[derive(Clone, Debug)]
pub struct Meter {
    quota: Quota,
    sessions: u32,
    executions: u32,
    /// New sessions are paid for up to then.
    creates: Moment,
    cpu: Hourly,
    egress: Hourly,
    /// Bytes of files.
    stored: u64,
    /// Refusals are paid for up to then.
    refusals: Moment,
}

/// What comes again within an hour: it is paid for up to then.
#[derive(Clone, Copy, Debug, Default)]
struct Hourly(Moment);

impl Hourly {
    /// Uses so much of what there is in an hour. It may be more than there was: then the tenant waits longer.
    fn uses(&mut self, used: u128, budget: u128, now: Moment) {
        let nanoseconds = used.saturating_mul(HOUR.as_nanos()) / budget.max(1);
        let costs = Duration::from_nanos(u64::try_from(nanoseconds).unwrap_or(u64::MAX));
        self.0 = self.0.max(now).saturating_add(costs);
    }

    /// How many times what there is in an hour is used, and has not come again.
    fn used(self, now: Moment) -> f64 {
        self.0.saturating_sub(now).as_secs_f64() / HOUR.as_secs_f64()
    }

    /// When there is something again, if there is nothing now: a little later than the moment of nothing left.
    fn comes_again(self, now: Moment) -> Option<Duration> {
        (self.0 >= now + HOUR).then(|| self.0 - (now + HOUR) + Duration::from_secs(1))
    }
}

/// What a session has used since the last look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Used {
    /// Processor time.
    pub cpu: Duration,
    /// Bytes that it moved, both ways.
    pub moved: u64,
    /// Bytes of its files at the last look.
    pub stored_before: u64,
    /// And now.
    pub stored: u64,
}

/// Refusals that a tenant hears at once, and each second after that. Who asks again so often does not heed what it is told, and costs others
/// more than what it asks for would.
const REFUSALS_PER_SECOND: u32 = 50;

/// The longest that a refusal is held back.
const LONGEST_HOLD: Duration = Duration::from_secs(1);

impl Meter {
    /// Nothing is used yet.
    #[must_use]
    pub fn new(quota: Quota) -> Self {
        Self {
            quota,
            sessions: 0,
            executions: 0,
            creates: Moment::ZERO,
            cpu: Hourly::default(),
            egress: Hourly::default(),
            stored: 0,
            refusals: Moment::ZERO,
        }
    }

    /// What it is held against.
    #[must_use]
    pub fn quota(&self) -> &Quota {
        &self.quota
    }

    /// Whether there may be one more session. Nothing is taken yet.
    ///
    /// # Errors
    /// The quota that is used up.
    pub fn may_open(&self, now: Moment) -> Result<(), Refusal> {
        if let Some(limit) = self.quota.sessions.filter(|limit| self.sessions >= *limit) {
            return Err(refusal(Resource::Sessions, limit.into(), WHEN_GIVEN_BACK));
        }
        if let Some(rate) = self.quota.creates_per_second {
            let each = each(rate);
            let earliest = (self.creates + each).saturating_sub(Duration::from_secs(1).max(each));
            if now < earliest {
                return Err(refusal(Resource::Creates, rate.into(), earliest - now));
            }
        }
        self.may_store()?;
        self.may_go_on(now)
    }

    /// There is one more session: one that is new.
    pub fn opened(&mut self, now: Moment) {
        self.adopted();
        if let Some(rate) = self.quota.creates_per_second {
            self.creates = self.creates.max(now) + each(rate);
        }
    }

    /// There is one more session: one that was there before this count began.
    pub fn adopted(&mut self) {
        self.sessions = self.sessions.saturating_add(1);
    }

    /// There is one session less.
    pub fn closed(&mut self) {
        self.sessions = self.sessions.saturating_sub(1);
    }

    /// Takes the place of one more execution.
    ///
    /// # Errors
    /// The quota that is used up.
    pub fn begin(&mut self, now: Moment) -> Result<(), Refusal> {
        if let Some(limit) = self.quota.executions.filter(|limit| self.executions >= *limit) {
            return Err(refusal(Resource::Executions, limit.into(), WHEN_GIVEN_BACK));
        }
        self.may_go_on(now)?;
        self.executions = self.executions.saturating_add(1);
        Ok(())
    }

    /// There is one execution more that was there before this count began.
    pub fn resumed(&mut self) {
        self.executions = self.executions.saturating_add(1);
    }

    /// An execution has ended.
    pub fn end(&mut self) {
        self.executions = self.executions.saturating_sub(1);
    }

    fn may_go_on(&self, now: Moment) -> Result<(), Refusal> {
        let Quota { cpu_per_hour, egress_bytes_per_hour, .. } = self.quota;
        if let (Some(budget), Some(retry_after)) = (cpu_per_hour, self.cpu.comes_again(now)) {
            return Err(refusal(Resource::Cpu, budget.as_secs(), retry_after));
        }
        if let (Some(budget), Some(retry_after)) = (egress_bytes_per_hour, self.egress.comes_again(now)) {
            return Err(refusal(Resource::Egress, budget, retry_after));
        }
        Ok(())
    }

    /// Whether more may be stored by who asks us to.
    ///
    /// # Errors
    /// The quota that is used up.
    pub fn may_store(&self) -> Result<(), Refusal> {
        match self.quota.stored_bytes {
            Some(limit) if self.stored >= limit => Err(refusal(Resource::Stored, limit, WHEN_LOOKED_AT)),
            _ => Ok(()),
        }
    }

    /// A session has used so much.
    pub fn used(&mut self, used: Used, now: Moment) {
        if let Some(budget) = self.quota.cpu_per_hour {
            self.cpu.uses(used.cpu.as_nanos(), budget.as_nanos(), now);
        }
        if let Some(budget) = self.quota.egress_bytes_per_hour {
            self.egress.uses(used.moved.into(), budget.into(), now);
        }
        self.stored = self.stored.saturating_sub(used.stored_before).saturating_add(used.stored);
    }

    /// It was refused something. How long it should wait before it hears so: nothing, as long as it does not ask without end.
    pub fn refused(&mut self, now: Moment) -> Duration {
        const SECOND: Duration = Duration::from_secs(1);
        let most = now + SECOND + LONGEST_HOLD;
        self.refusals = (self.refusals.max(now) + each(REFUSALS_PER_SECOND)).min(most);
        (self.refusals - now).saturating_sub(SECOND)
    }

    /// How it stands with every limit that it has.
    #[must_use]
    #[expect(clippy::cast_precision_loss, reason = "eight petabytes are still exact")]
    pub fn standing(&self, now: Moment) -> Vec<Standing> {
        let Quota { sessions, creates_per_second, executions, cpu_per_hour, stored_bytes, egress_bytes_per_hour } =
            self.quota;
        let limited = |resource, used: f64, limit: Option<f64>| limit.map(|limit| Standing { resource, used, limit });
        let budget = |hourly: Hourly, limit: Option<f64>| hourly.used(now) * limit.unwrap_or_default();
        let rate = creates_per_second.map(f64::from);
        let cpu = cpu_per_hour.map(|budget| budget.as_secs_f64());
        let egress = egress_bytes_per_hour.map(|budget| budget as f64);
        let made = self.creates.saturating_sub(now).as_secs_f64() * rate.unwrap_or_default();
        [
            limited(Resource::Sessions, self.sessions.into(), sessions.map(f64::from)),
            limited(Resource::Creates, made, rate),
            limited(Resource::Executions, self.executions.into(), executions.map(f64::from)),
            limited(Resource::Cpu, budget(self.cpu, cpu), cpu),
            limited(Resource::Stored, self.stored as f64, stored_bytes.map(|limit| limit as f64)),
            limited(Resource::Egress, budget(self.egress, egress), egress),
        ]
        .into_iter()
        .flatten()
        .collect()
    }

    /// Sessions and executions.
    #[must_use]
    pub fn uses(&self) -> (u32, u32) {
        (self.sessions, self.executions)
    }
}

fn refusal(resource: Resource, limit: u64, retry_after: Duration) -> Refusal {
    Refusal { resource, limit, retry_after }
}

/// How long one of so many per second is paid for.
fn each(per_second: u32) -> Duration {
    Duration::from_secs(1) / per_second.max(1)
}

#[cfg(test)]
mod tests;
