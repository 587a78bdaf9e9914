//! Sessions, as callers find and see them.

use std::sync::Arc;
use std::time::SystemTime;

use sandpool_core::ids::SessionKey;

use super::{Inner, PoolState, settled, suspending};
use crate::api::*;
use crate::session::{InUse, Session};

impl PoolState {
    /// A session to use: one that is suspended is brought back.
    pub(crate) async fn existing(self: &Arc<Self>, key: &SessionKey) -> Result<Arc<Session>, NodeError> {
        if let Some(session) = self.settled_now(key) {
            return Ok(session);
        }
        let coming = {
            let mut inner = self.inner();
            if let Some((reason, sandbox)) = inner.lost.take(key) {
                self.heard(sandbox);
                return Err(NodeError::SessionLost { identifier: key.identifier.clone(), reason });
            }
            self.sessions().get(key).cloned()
        };
        let found = match coming {
            Some(coming) => settled(coming).await,
            None if self.is_on_disk(key) => Err(NodeError::Suspended(key.identifier.clone())),
            None => return Err(NodeError::NoSession(key.identifier.clone())),
        };
        match found {
            Err(NodeError::Suspended(_)) => {
                let nothing = (Arc::new(Given::default()), Caller::default());
                Ok(self.open(key, Open::Existing, &nothing.0, &nothing.1).await?.0)
            }
            found => found,
        }
    }

    /// A session to use, and its use: it is not suspended as long as that is there.
    pub(crate) async fn in_use(self: &Arc<Self>, key: &SessionKey) -> Result<(Arc<Session>, InUse), NodeError> {
        self.kept_here(key, InUse::begin).await
    }

    /// The same, without being a use of it.
    pub(crate) async fn kept_here(
        self: &Arc<Self>,
        key: &SessionKey,
        begin: impl Fn(&Arc<Self>, &Arc<Session>) -> InUse,
    ) -> Result<(Arc<Session>, InUse), NodeError> {
        loop {
            let session = self.existing(key).await?;
            let in_use = begin(self, &session);
            if !session.activity.is_still() {
                return Ok((session, in_use));
            }
            // It is on its way to the disk, and whoever asks for it from now on waits until it is there.
        }
    }

    /// A session that is there now. That it was lost is said here as often as it is asked: only who would use the
    /// session has heard of it for good.
    pub(crate) async fn present(&self, key: &SessionKey) -> Result<Arc<Session>, NodeError> {
        if let Some(session) = self.settled_now(key) {
            return Ok(session);
        }
        let coming = {
            let inner = self.inner();
            if let Some(reason) = inner.lost.get(key) {
                return Err(NodeError::SessionLost { identifier: key.identifier.clone(), reason: reason.clone() });
            }
            self.sessions().get(key).cloned()
        };
        if coming.is_none() && self.is_on_disk(key) {
            return Err(NodeError::Suspended(key.identifier.clone()));
        }
        // Just after a restart it is there, and its agent has yet to answer.
        settled(coming.ok_or_else(|| NodeError::NoSession(key.identifier.clone()))?).await
    }

    pub(crate) fn info(&self, key: &SessionKey) -> Result<SessionInfo, NodeError> {
        if let Some(session) = self.settled_now(key) {
            return Ok(self.describe_session(&session));
        }
        let inner = self.inner();
        if let Some(session) = inner.rules.session(key) {
            return Ok(self.describe(&inner, key, session));
        }
        drop(inner);
        match self.on_disk(key)?.map(|manifest| self.describe_suspended(&manifest)) {
            Some(info) => info,
            None => Err(NodeError::NoSession(key.identifier.clone())),
        }
    }

    /// The sessions that are in a tenant's room, or all of them.
    pub(crate) fn infos(&self, whose: Whose<'_>) -> Vec<SessionInfo> {
        let inner = self.inner();
        let is_meant = |key: &SessionKey| match (whose, self.scope) {
            (Whose::Everybody, _) | (_, SessionScope::Pool) => true,
            (Whose::Tenant(tenant), SessionScope::Tenant) => key.tenant == *tenant,
        };
        let sessions = inner.rules.sessions().filter(|(key, _)| is_meant(key));
        let mut all: Vec<_> = sessions.map(|(key, session)| self.describe(&inner, key, session)).collect();
        let suspended = self.snapshots.as_ref().map(|snapshots| snapshots.suspended_of(&self.name)).unwrap_or_default();
        // One that comes back at this moment is there, and on disk.
        let away = suspended.iter().filter_map(|manifest| {
            let key = suspending::key_of(manifest)?;
            (is_meant(&key) && inner.rules.session(&key).is_none()).then(|| self.describe_suspended(manifest).ok())?
        });
        all.extend(away);
        all.sort_by(|one, other| one.order().cmp(&other.order()));
        all
    }

    /// A session's description; of one that is still being made, what the rules know of it.
    fn describe(&self, inner: &Inner, key: &SessionKey, place: &sandpool_core::pool::Session) -> SessionInfo {
        if let Some(session) = self.settled_now(key).filter(|session| session.sandbox == place.sandbox) {
            return self.describe_session(&session);
        }
        let now = self.now();
        let clock = SystemTime::now();
        SessionInfo {
            pool: self.name.clone(),
            identifier: key.identifier.clone(),
            tenant: inner.payers.get(&place.sandbox).map_or_else(|| key.tenant.clone(), |payer| payer.name.clone()),
            sandbox: place.sandbox,
            owner: String::new(),
            level: self.level.clone(),
            created: clock,
            used: clock - now.saturating_sub(place.used),
            expires: clock + inner.rules.ends(place, now).saturating_sub(now),
            busy: place.busy,
            suspended: None,
        }
    }

    pub(crate) fn describe_session(&self, session: &Session) -> SessionInfo {
        let now = self.now();
        let clock = SystemTime::now();
        let (used, busy) = session.activity.seen();
        let ends = self.spec().life.ends(session.activity.born(), if busy > 0 { now } else { used });
        SessionInfo {
            pool: self.name.clone(),
            identifier: session.key.identifier.clone(),
            tenant: session.tenant.name.clone(),
            sandbox: session.sandbox,
            owner: session.owner.clone(),
            level: self.level.clone(),
            created: session.created,
            used: clock - now.saturating_sub(used),
            expires: clock + ends.saturating_sub(now),
            busy,
            suspended: None,
        }
    }
}
