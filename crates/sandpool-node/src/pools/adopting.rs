//! What was there before this server: sandboxes of the driver, and sessions that only the store knows.

use std::sync::Arc;

use sandpool_core::ids::SandboxId;
use sandpool_driver::{Phase, Sandbox};
use sandpool_store::{Known, Place};
use sandpool_wire::agent::without_words;
use tokio::sync::watch;

use super::PoolState;
use super::connecting::Coming;
use crate::api::NodeError;
use crate::metrics::Loss;
use crate::owner::OwnerRecord;

impl PoolState {
    /// Takes over a sandbox that was there before this server.
    pub(crate) fn adopt(self: &Arc<Self>, sandbox: &Sandbox) {
        match sandbox.phase {
            Phase::Leaving => return,
            Phase::Lost => return self.adopt_lost(sandbox),
            Phase::Booting | Phase::Ready => {}
        }
        let id = sandbox.id;
        match sandbox.owner.as_ref().map(|owner| OwnerRecord::parse(&owner.record)) {
            // It was on its way to the disk and is there, or on its way back, and nobody has had an answer from it.
            Some(Some(record)) if self.is_on_disk(&self.key(&record.tenant, &record.identifier)) => {
                self.went_to_disk(id);
                self.destroy(id);
            }
            Some(Some(record)) if sandbox.activated => self.adopt_session(id, record),
            // Half given away: whoever it was meant for has had no answer.
            Some(_) => drop(self.destroy(id)),
            // Nobody's, and what somebody had is in it.
            None if id.is_loaded() => drop(self.destroy(id)),
            None => {
                {
                    let mut inner = self.inner();
                    inner.rules.booting(id, self.now());
                    inner.created.insert(id);
                }
                self.upsert(sandbox);
            }
        }
    }

    /// A session's sandbox has ended, and no server was there to see it.
    fn adopt_lost(&self, sandbox: &Sandbox) {
        if let Some(record) = sandbox.owner.as_ref().and_then(|owner| OwnerRecord::parse(&owner.record)) {
            let mut inner = self.inner();
            // A session of the same name that is there now was made by an owner who had heard.
            let key = self.key(&record.tenant, &record.identifier);
            if self.is_on_disk(&key) {
                drop(inner);
                self.went_to_disk(sandbox.id);
            } else if inner.rules.session(&key).is_none() {
                let reason = "its sandbox ended while the server was not there".to_owned();
                if let Some(store) = &self.store {
                    store.lost(sandbox.id, &reason, without_words(&reason));
                }
                self.counts.lost(Loss::Restart);
                inner.lost.add(key, reason, sandbox.id);
                return;
            }
        }
        self.destroy(sandbox.id);
    }

    /// A session was there whose sandbox is not: it ended with the launcher, and nobody else knows of it any more.
    pub(crate) fn remember(&self, known: &Known) {
        let Place { key, payer, sandbox, .. } = &known.place;
        if known.lost.is_none() && self.is_on_disk(&self.key(payer, &key.identifier)) {
            return self.went_to_disk(*sandbox);
        }
        let why = known.lost.clone().unwrap_or_else(|| "its sandbox ended with its launcher".to_owned());
        if let Some(store) = self.store.as_ref().filter(|_| known.lost.is_none()) {
            store.lost(*sandbox, &why, without_words(&why));
            self.counts.lost(Loss::Restart);
        }
        let key = self.key(payer, &key.identifier);
        let mut inner = self.inner();
        if !known.is_heard && inner.rules.session(&key).is_none() {
            inner.lost.add(key, why, *sandbox);
        }
    }

    /// The owner of a lost session has heard of it: its driver may forget it.
    pub(super) fn heard(&self, sandbox: SandboxId) {
        if let Some(store) = &self.store {
            store.heard(sandbox);
        }
        self.destroy(sandbox);
    }

    fn adopt_session(self: &Arc<Self>, sandbox: SandboxId, record: OwnerRecord) {
        let now = self.now();
        let age = self.age(&record);
        let (sender, coming) = watch::channel(None);
        let surplus = {
            let key = self.key(&record.tenant, &record.identifier);
            let mut inner = self.inner();
            if let Some((_, before)) = inner.lost.take(&key) {
                self.heard(before);
            }
            let surplus = inner.rules.bind(key.clone(), sandbox, now.saturating_sub(age), now);
            if surplus != Some(sandbox) {
                if let Some(payer) = surplus.and_then(|earlier| inner.payers.remove(&earlier)) {
                    payer.closed();
                }
                let payer = self.tenants.get(&record.tenant);
                payer.adopted();
                inner.payers.insert(sandbox, payer);
                self.change_sessions().insert(key, coming);
            }
            surplus
        };
        if let Some(surplus) = surplus {
            self.destroy(surplus);
            if surplus == sandbox {
                return;
            }
        }
        let pool = Arc::clone(self);
        tokio::spawn(async move {
            let session = pool.connect(sandbox, record, Coming::Back).await;
            if let Err(error) = &session {
                let why = match error {
                    NodeError::Unavailable(why) => why.clone(),
                    error => error.to_string(),
                };
                pool.lose(sandbox, Loss::Restart, &why);
            }
            sender.send_replace(Some(session));
        });
    }
}
