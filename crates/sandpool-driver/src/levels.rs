//! Several drivers as one: each pool's sandboxes are made by the driver of its isolation level.
//!
//! ```text
//! pool --(its template's isolation)--> driver      sandbox --(its pool, when it was made; or the list)--> driver
//! ```
//!
//! A pool keeps its level as long as it is there, which is for whoever declares pools to see to.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Poll;

use async_trait::async_trait;
use sandpool_core::ids::{PoolName, SandboxId};
use sandpool_wire::agent::Activation;
use sandpool_wire::egress::{Policy, SecretValue, Told};
use tokio::sync::broadcast::{self, error::RecvError};

use crate::{Change, Description, Driver, DriverError, GoneReason, Keeps, Owner, Sandbox, Stream, Template, Usage};

/// Changes kept for a watcher that is slow; then it must list.
const CHANGES: usize = 1024;

/// The drivers of several levels.
pub struct Levels {
    /// With the words of [`crate::Isolation::word`] that each makes sandboxes for. The first is that of the host itself.
    drivers: Vec<(Vec<&'static str>, Arc<dyn Driver>)>,
    known: Arc<Mutex<Known>>,
}

/// Which driver has what, by its place in the list.
#[derive(Default)]
struct Known {
    pools: HashMap<PoolName, usize>,
    sandboxes: HashMap<SandboxId, usize>,
}

impl std::fmt::Debug for Levels {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Levels").finish_non_exhaustive()
    }
}

fn lock(known: &Mutex<Known>) -> MutexGuard<'_, Known> {
    known.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Levels {
    /// Joins drivers, each with the levels that it makes sandboxes for; one at least.
    ///
    /// # Panics
    /// Outside a runtime of tokio, and without a driver.
    #[must_use]
    pub fn new(drivers: Vec<(Vec<&'static str>, Arc<dyn Driver>)>) -> Self {
        assert!(!drivers.is_empty(), "no driver of any level");
        let known = Arc::<Mutex<Known>>::default();
        for (at, (_, driver)) in drivers.iter().enumerate() {
            let known = Arc::downgrade(&known);
            let note = move |change| {
                let Some(known) = known.upgrade() else { return false };
                match change {
                    Change::Upsert(sandbox) => drop(lock(&known).sandboxes.insert(sandbox.id, at)),
                    Change::Gone { id, .. } => drop(lock(&known).sandboxes.remove(&id)),
                }
                true
            };
            tokio::spawn(follow(driver.watch(), Arc::downgrade(driver), note));
        }
        Self { drivers, known }
    }

    fn of_pool(&self, pool: &PoolName) -> Result<(usize, &Arc<dyn Driver>), DriverError> {
        let at = lock(&self.known).pools.get(pool).copied();
        let found = at.and_then(|at| Some((at, &self.drivers.get(at)?.1)));
        found.ok_or_else(|| DriverError::Invalid(format!("there is no pool {pool}")))
    }

    /// Who makes a sandbox of this pool. One id is one sandbox, whatever driver has it.
    fn for_new(&self, id: SandboxId, pool: &PoolName) -> Result<(usize, &Arc<dyn Driver>), DriverError> {
        let (at, driver) = self.of_pool(pool)?;
        let other = lock(&self.known).sandboxes.get(&id).copied().filter(|other| *other != at);
        if other.is_some() { Err(DriverError::Conflict("it is of another pool".to_owned())) } else { Ok((at, driver)) }
    }

    async fn of(&self, id: SandboxId) -> Result<&Arc<dyn Driver>, DriverError> {
        let known = |levels: &Self| lock(&levels.known).sandboxes.get(&id).copied();
        let at = match known(self) {
            Some(at) => Some(at),
            None => {
                self.list().await?;
                known(self)
            }
        };
        let found = at.and_then(|at| self.drivers.get(at));
        found.map(|(_, driver)| driver).ok_or_else(|| DriverError::Gone(id.to_string()))
    }
}

/// Passes on what a driver tells, as long as `tell` takes it. Where that was too much to hear, what has come and gone meanwhile is seen
/// from the driver's list.
async fn follow(
    mut told: broadcast::Receiver<Change>,
    driver: std::sync::Weak<dyn Driver>,
    mut tell: impl FnMut(Change) -> bool,
) {
    let mut there = BTreeSet::new();
    loop {
        let changes = match told.recv().await {
            Ok(change) => vec![change],
            Err(RecvError::Closed) => return,
            Err(RecvError::Lagged(_)) => {
                let Some(driver) = driver.upgrade() else { return };
                let Ok(sandboxes) = driver.list().await else { continue };
                let now: BTreeSet<SandboxId> = sandboxes.iter().map(|sandbox| sandbox.id).collect();
                let reason = || GoneReason::Died("its end was not seen".to_owned());
                let gone = there.difference(&now).map(|id| Change::Gone { id: *id, reason: reason() });
                gone.chain(sandboxes.into_iter().map(Change::Upsert)).collect()
            }
        };
        for change in changes {
            match &change {
                Change::Upsert(sandbox) => there.insert(sandbox.id),
                Change::Gone { id, .. } => there.remove(id),
            };
            if !tell(change) {
                return;
            }
        }
    }
}

#[async_trait]
impl Driver for Levels {
    fn describe(&self) -> Description {
        self.drivers[0].1.describe()
    }

    fn describe_pool(&self, pool: &PoolName) -> Description {
        match self.of_pool(pool) {
            Ok((_, driver)) => driver.describe_pool(pool),
            Err(_) => self.describe(),
        }
    }

    async fn ensure_pool(&self, template: &Template) -> Result<(), DriverError> {
        let word = template.isolation.word();
        let found = self.drivers.iter().position(|(words, _)| words.contains(&word));
        let at = found.ok_or_else(|| DriverError::Invalid(format!("isolation {word} is not there on this host")))?;
        // Also of one that is refused: its description says what it would be.
        lock(&self.known).pools.insert(template.pool.clone(), at);
        self.drivers[at].1.ensure_pool(template).await
    }

    async fn remove_pool(&self, pool: &PoolName) -> Result<(), DriverError> {
        let at = lock(&self.known).pools.remove(pool);
        match at.and_then(|at| self.drivers.get(at)) {
            Some((_, driver)) => driver.remove_pool(pool).await,
            None => Ok(()),
        }
    }

    async fn create(&self, id: SandboxId, pool: &PoolName) -> Result<(), DriverError> {
        let (at, driver) = self.for_new(id, pool)?;
        driver.create(id, pool).await?;
        lock(&self.known).sandboxes.insert(id, at);
        Ok(())
    }

    async fn assign(&self, id: SandboxId, owner: &Owner) -> Result<(), DriverError> {
        self.of(id).await?.assign(id, owner).await
    }

    async fn activate(&self, id: SandboxId, activation: &Activation) -> Result<(), DriverError> {
        self.of(id).await?.activate(id, activation).await
    }

    async fn give(&self, id: SandboxId, owner: &Owner, activation: &Activation) -> Result<Stream, DriverError> {
        self.of(id).await?.give(id, owner, activation).await
    }

    async fn destroy(&self, id: SandboxId) -> Result<(), DriverError> {
        let at = lock(&self.known).sandboxes.get(&id).copied();
        match at.and_then(|at| self.drivers.get(at)) {
            Some((_, driver)) => driver.destroy(id).await,
            // Also one that never was: a call to make it may be on its way, to whichever driver.
            None => {
                for (_, driver) in &self.drivers {
                    driver.destroy(id).await?;
                }
                Ok(())
            }
        }
    }

    async fn list(&self) -> Result<Vec<Sandbox>, DriverError> {
        let mut all = Vec::new();
        for (at, (_, driver)) in self.drivers.iter().enumerate() {
            let of_it = driver.list().await?;
            lock(&self.known).sandboxes.extend(of_it.iter().map(|sandbox| (sandbox.id, at)));
            all.extend(of_it);
        }
        Ok(all)
    }

    fn watch(&self) -> broadcast::Receiver<Change> {
        if let [(_, only)] = self.drivers.as_slice() {
            return only.watch();
        }
        let (changes, watch) = broadcast::channel(CHANGES);
        for (_, driver) in &self.drivers {
            let changes = changes.clone();
            let tell = move |change| changes.send(change).is_ok();
            tokio::spawn(follow(driver.watch(), Arc::downgrade(driver), tell));
        }
        watch
    }

    async fn dial(&self, id: SandboxId) -> Result<Stream, DriverError> {
        self.of(id).await?.dial(id).await
    }

    async fn connect(&self, id: SandboxId, port: u16) -> Result<Stream, DriverError> {
        self.of(id).await?.connect(id, port).await
    }

    async fn usage(&self, id: SandboxId) -> Result<Usage, DriverError> {
        self.of(id).await?.usage(id).await
    }

    async fn narrow(&self, id: SandboxId, policy: Option<&Policy>) -> Result<(), DriverError> {
        self.of(id).await?.narrow(id, policy).await
    }

    async fn entrust(&self, id: SandboxId, secrets: &[SecretValue]) -> Result<(), DriverError> {
        self.of(id).await?.entrust(id, secrets).await
    }

    async fn decided(&self) -> Told {
        let mut waiting: Vec<_> = self.drivers.iter().map(|(_, driver)| driver.decided()).collect();
        std::future::poll_fn(|context| {
            let told = waiting.iter_mut().find_map(|told| match told.as_mut().poll(context) {
                Poll::Ready(told) => Some(told),
                Poll::Pending => None,
            });
            told.map_or(Poll::Pending, Poll::Ready)
        })
        .await
    }

    async fn narrowed(&self, id: SandboxId) -> Result<Option<Policy>, DriverError> {
        self.of(id).await?.narrowed(id).await
    }
    fn keeps(&self, pool: &PoolName) -> Keeps {
        self.of_pool(pool).map_or(Keeps::Files, |(_, driver)| driver.keeps(pool))
    }

    async fn save(&self, id: SandboxId, stays: bool) -> Result<Stream, DriverError> {
        self.of(id).await?.save(id, stays).await
    }

    async fn load(
        &self,
        id: SandboxId,
        pool: &PoolName,
        saved: Stream,
        narrowed: Option<&Policy>,
    ) -> Result<(), DriverError> {
        let (at, driver) = self.for_new(id, pool)?;
        driver.load(id, pool, saved, narrowed).await?;
        lock(&self.known).sandboxes.insert(id, at);
        Ok(())
    }
}
