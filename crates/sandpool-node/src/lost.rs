//! Lost sessions, until their owners have heard of it.

use std::collections::{HashMap, VecDeque};

use sandpool_core::ids::{SandboxId, SessionKey};

/// Lost sessions that are remembered until their owner hears of it; the oldest are forgotten first.
const LOST: usize = 4096;

/// Sessions whose owners have yet to hear that they are lost, and why.
#[derive(Debug, Default)]
pub(crate) struct Lost {
    reasons: HashMap<SessionKey, (String, SandboxId)>,
    /// Oldest first; also of some that are not there any more.
    order: VecDeque<SessionKey>,
}

impl Lost {
    pub(crate) fn get(&self, key: &SessionKey) -> Option<&String> {
        self.reasons.get(key).map(|(reason, _)| reason)
    }

    /// Why it was lost, and the sandbox that its driver may forget now.
    pub(crate) fn take(&mut self, key: &SessionKey) -> Option<(String, SandboxId)> {
        self.reasons.remove(key)
    }

    pub(crate) fn add(&mut self, key: SessionKey, reason: String, sandbox: SandboxId) {
        while self.order.len() >= LOST
            && let Some(oldest) = self.order.pop_front()
        {
            self.reasons.remove(&oldest);
        }
        self.order.retain(|other| *other != key);
        self.order.push_back(key.clone());
        self.reasons.insert(key, (reason, sandbox));
    }

    /// All of them, for nobody will ask any more.
    pub(crate) fn take_all(&mut self) -> HashMap<SessionKey, (String, SandboxId)> {
        std::mem::take(&mut self.reasons)
    }
}
