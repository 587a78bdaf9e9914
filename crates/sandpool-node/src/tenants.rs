//! The tenants: who competes with what weight, and what each has used.
//!
//! A session has its tenant at hand, so that a request on a session that is there looks nothing up; and a tenant without a
//! quota has no counter, and no lock.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use sandpool_core::ids::TenantName;
use sandpool_core::pool::Moment;
use sandpool_core::tenants::{Meter, Refusal, Tenant, Used};

use crate::api::NodeError;
use crate::metrics::{TenantCounts, TenantMetrics};

/// The declared tenants. Another name is a tenant without a quota: it has sessions that are older than the settings, and
/// nobody's token.
#[derive(Debug)]
pub(crate) struct Tenants {
    declared: HashMap<TenantName, Arc<TenantState>>,
}

/// One tenant.
#[derive(Debug)]
pub(crate) struct TenantState {
    pub(crate) name: TenantName,
    pub(crate) weight: u32,
    pub(crate) counts: TenantCounts,
    /// Nothing, when there is nothing to hold it against.
    meter: Option<Mutex<Meter>>,
}

impl Tenants {
    pub(crate) fn new(declared: Vec<Tenant>) -> Self {
        let declared = declared.into_iter().map(|tenant| (tenant.name.clone(), Arc::new(TenantState::new(tenant))));
        Self { declared: declared.collect() }
    }

    /// Whether it is counted what anybody's sandboxes use.
    pub(crate) fn count_usage(&self) -> bool {
        self.declared.values().any(|tenant| tenant.counts_usage())
    }

    /// What is counted of those that have a quota, by name.
    pub(crate) fn metrics(&self, now: Moment) -> Vec<TenantMetrics> {
        let counted = self.declared.values().filter_map(|tenant| {
            let (standing, counts_usage) =
                tenant.meter().map(|meter| (meter.standing(now), meter.quota().is_of_usage()))?;
            Some(TenantMetrics::of(&tenant.name, &standing, &tenant.counts, counts_usage))
        });
        let mut counted: Vec<_> = counted.collect();
        counted.sort_by(|one, other| one.name.cmp(&other.name));
        counted
    }

    pub(crate) fn get(&self, name: &TenantName) -> Arc<TenantState> {
        let undeclared = || Arc::new(TenantState::new(Tenant::unlimited(name.clone())));
        self.declared.get(name).cloned().unwrap_or_else(undeclared)
    }
}

impl TenantState {
    fn new(tenant: Tenant) -> Self {
        let Tenant { name, weight, quota } = tenant;
        let meter = (!quota.is_unlimited()).then(|| Mutex::new(Meter::new(quota)));
        Self { name, weight, counts: TenantCounts::default(), meter }
    }

    fn meter(&self) -> Option<MutexGuard<'_, Meter>> {
        self.meter.as_ref().map(|meter| meter.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn refused(&self, refusal: Refusal) -> NodeError {
        let Refusal { resource, limit, retry_after } = refusal;
        self.counts.refused(resource);
        NodeError::OverQuota { tenant: self.name.clone(), resource, limit, retry_after }
    }

    /// It was refused something. How long it should wait before it hears so.
    pub(crate) fn hold(&self, now: Moment) -> Duration {
        self.meter().map_or(Duration::ZERO, |mut meter| meter.refused(now))
    }

    /// Whether it may have one more session.
    pub(crate) fn may_open(&self, now: Moment) -> Result<(), NodeError> {
        self.meter().map_or(Ok(()), |meter| meter.may_open(now)).map_err(|refusal| self.refused(refusal))
    }

    /// It has one more session, which is new.
    pub(crate) fn opened(&self, now: Moment) {
        if let Some(mut meter) = self.meter() {
            meter.opened(now);
        }
    }

    /// It has one more session, which was there before this server.
    pub(crate) fn adopted(&self) {
        if let Some(mut meter) = self.meter() {
            meter.adopted();
        }
    }

    /// It has one session less.
    pub(crate) fn closed(&self) {
        if let Some(mut meter) = self.meter() {
            meter.closed();
        }
    }

    /// Whether it is counted what its sandboxes use.
    pub(crate) fn counts_usage(&self) -> bool {
        self.meter().is_some_and(|meter| meter.quota().is_of_usage())
    }

    /// So much was used.
    pub(crate) fn used(&self, used: Used, now: Moment) {
        if let Some(mut meter) = self.meter() {
            meter.used(used, now);
        }
    }

    /// Whether a file may be stored in one of its sessions.
    pub(crate) fn may_store(&self) -> Result<(), NodeError> {
        self.meter().map_or(Ok(()), |meter| meter.may_store()).map_err(|refusal| self.refused(refusal))
    }

    /// Takes the place of an execution, if there is something to count.
    pub(crate) fn begin(self: &Arc<Self>, now: Moment) -> Result<Option<Running>, NodeError> {
        let Some(mut meter) = self.meter() else { return Ok(None) };
        meter.begin(now).map_err(|refusal| self.refused(refusal))?;
        Ok(Some(Running(Arc::clone(self))))
    }

    /// The place of an execution that ran before this server did.
    pub(crate) fn resume(self: &Arc<Self>) -> Option<Running> {
        self.meter()?.resumed();
        Some(Running(Arc::clone(self)))
    }
}

/// The place of one execution, until it is dropped.
#[derive(Debug)]
pub(crate) struct Running(Arc<TenantState>);

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(mut meter) = self.0.meter() {
            meter.end();
        }
    }
}
