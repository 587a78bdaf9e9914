//! One change of a pool at a time, whatever goes on in the others.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use sandpool_core::ids::PoolName;
use tokio::sync::OwnedMutexGuard;

/// A lock for each name. Those that nobody holds or waits for are forgotten.
#[derive(Debug, Default)]
pub struct ByName(Mutex<BTreeMap<PoolName, Arc<tokio::sync::Mutex<()>>>>);

impl ByName {
    /// Waits until nobody else changes the pool of this name, and keeps others from it for as long as the guard lives.
    pub async fn lock(&self, name: &PoolName) -> OwnedMutexGuard<()> {
        let lock = {
            let mut locks = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            locks.retain(|known, lock| known == name || Arc::strong_count(lock) > 1);
            Arc::clone(locks.entry(name.clone()).or_default())
        };
        lock.lock_owned().await
    }
}
