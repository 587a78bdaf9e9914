//! What many sessions use, for those who look at all of them at once, again and again.
//!
//! The launcher is asked for one sandbox after another, by one caller at a time, and an answer is good for some seconds for everybody: how
//! many look makes no difference to it.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use sandpool_core::ids::SandboxId;
use sandpool_driver::{Driver, DriverError, Usage};
use tokio::sync::Semaphore;
use tokio::time::Instant;

/// How long an answer is good for.
const FRESH: Duration = Duration::from_secs(2);

/// What was seen last, of each sandbox.
#[derive(Debug)]
pub(crate) struct Usages {
    seen: Mutex<HashMap<SandboxId, (Instant, Usage)>>,
    /// Who may ask.
    asking: Semaphore,
}

impl Default for Usages {
    fn default() -> Self {
        Self { seen: Mutex::default(), asking: Semaphore::new(1) }
    }
}

impl Usages {
    /// What these sandboxes use, or used at most two seconds ago. Those that are gone are not in it, and neither are those behind one that
    /// could not be asked.
    pub(crate) async fn of(&self, driver: &dyn Driver, sandboxes: Vec<SandboxId>) -> HashMap<SandboxId, Usage> {
        let _one = self.asking.acquire().await;
        self.with(|seen| seen.retain(|_, (at, _)| at.elapsed() < FRESH));
        let mut all = HashMap::with_capacity(sandboxes.len());
        for sandbox in sandboxes {
            let usage = match self.with(|seen| seen.get(&sandbox).map(|(_, usage)| *usage)) {
                Some(usage) => usage,
                None => match driver.usage(sandbox).await {
                    Ok(usage) => usage,
                    Err(DriverError::Gone(_)) => continue,
                    Err(_) => break,
                },
            };
            self.with(|seen| seen.entry(sandbox).or_insert_with(|| (Instant::now(), usage)).1);
            all.insert(sandbox, usage);
        }
        all
    }

    fn with<T>(&self, work: impl FnOnce(&mut HashMap<SandboxId, (Instant, Usage)>) -> T) -> T {
        work(&mut self.seen.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use sandpool_driver::memory::{Memory, MemoryConfig};

    #[tokio::test(start_paused = true)]
    async fn usages_are_asked_for_once_in_a_while() {
        let driver = Memory::new(MemoryConfig::default()).driver();
        let usages = Usages::default();
        let nobody = SandboxId([1; 16]);
        assert!(usages.of(&*driver, vec![nobody]).await.is_empty(), "it is not there");
        let known = Usage { memory: 7, ..Usage::default() };
        usages.with(|seen| seen.insert(nobody, (Instant::now(), known)));
        assert_eq!(usages.of(&*driver, vec![nobody]).await[&nobody], known, "it was seen a moment ago");
        tokio::time::advance(FRESH).await;
        assert!(usages.of(&*driver, vec![nobody]).await.is_empty(), "that was too long ago");
    }
}
